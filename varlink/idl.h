/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Interface texts of Varlink (varlink.org, "Interface Definition"): parsed, and values checked against them. */

#include <json-c/json.h>

#include "util.h"

#define VARLINK_IDL_SIZE_MAX KIB(256)

typedef enum VarlinkTypeKind {
        VARLINK_TYPE_BOOL,
        VARLINK_TYPE_INT,
        VARLINK_TYPE_FLOAT,
        VARLINK_TYPE_STRING,
        VARLINK_TYPE_OBJECT,
        VARLINK_TYPE_ARRAY,  /* of `element` */
        VARLINK_TYPE_MAP,    /* of `element` */
        VARLINK_TYPE_STRUCT, /* `fields` */
        VARLINK_TYPE_ENUM,   /* `fields`, of which only the names count */
        VARLINK_TYPE_NAMED,  /* `name` */
} VarlinkTypeKind;

typedef struct VarlinkField VarlinkField;
typedef struct VarlinkType VarlinkType;

struct VarlinkType {
        VarlinkTypeKind kind;
        bool nullable;
        char *name;
        VarlinkType *element;
        VarlinkField *fields;
        size_t n_fields;
};

struct VarlinkField {
        char *name;
        char *documentation; /* the comment before it, NULL where none */
        VarlinkType type;
};

typedef enum VarlinkSymbolKind { VARLINK_SYMBOL_TYPE, VARLINK_SYMBOL_METHOD, VARLINK_SYMBOL_ERROR } VarlinkSymbolKind;

typedef struct VarlinkSymbol {
        VarlinkSymbolKind kind;
        char *name;
        char *documentation;
        VarlinkType type;   /* the type itself, a method's parameters, an error's parameters */
        VarlinkType output; /* what a method returns */
} VarlinkSymbol;

typedef struct VarlinkInterface {
        char *name;
        char *documentation;
        VarlinkSymbol *symbols;
        size_t n_symbols;
} VarlinkInterface;

/* -EBADMSG where the text is wrong; *ret_message then says "LINE: what". */
int varlink_interface_parse(const char *text, VarlinkInterface **ret, char **ret_message);
VarlinkInterface *varlink_interface_free(VarlinkInterface *i);
DEFINE_CLEANUP(VarlinkInterface, varlink_interface_free)

/* NULL where there is none of that name and kind. */
const VarlinkSymbol *varlink_interface_find(const VarlinkInterface *i, VarlinkSymbolKind kind, const char *name);

/* Whether `value` is what `type` (of that interface) says: every field there unless nullable, none unknown, each of its type.
 * -EINVAL where not; *ret_where is then the first wrong place, "devices[2].state" ("" is the value itself). NULL is null. */
int varlink_type_check(const VarlinkInterface *i, const VarlinkType *type, json_object *value, char **ret_where);

/* "org.varlink.service": at least two parts, as the specification's grammar has it. */
bool varlink_interface_name_is_valid(const char *name);
