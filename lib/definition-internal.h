/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the parts of the definition's implementation share: finding the files (definition-search.c), merging them
 * (definition-merge.c), checking the result (definition-parse.c, definition-device.c). */

#include "definition.h"
#include "json-source.h"

/* The texts one definition is made of, in the order in which they are merged. */
typedef struct DefinitionSources {
        JsonSource *sources;
        size_t n;
} DefinitionSources;

void definition_sources_done(DefinitionSources *sources);
/* Parses one more text. -EBADMSG with *ret_error filled where it is no JSON object. */
int definition_sources_add(DefinitionSources *sources, const char *text, size_t size, const char *file,
        DefinitionError *ret_error);
/* The merged object (a new reference). Objects merge member by member, other values replace, null removes (RFC 7396). */
int definition_sources_merge(const DefinitionSources *sources, json_object **ret);

/* One pass over a merged definition: everything a check needs to say what is wrong, and where. */
typedef struct DefinitionCheck {
        const DefinitionSources *sources;
        DefinitionError *error;
} DefinitionCheck;

/* Fill the error and return -EBADMSG (or -ENOMEM). The value at `pointer` is not as expected: */
int definition_refuse(const DefinitionCheck *c, const char *pointer, const char *expected, ...) _printf_(3, 4);
/* the same, where what is wrong about it is not its text: */
int definition_refuse_found(const DefinitionCheck *c, const char *pointer, const char *found, const char *expected, ...)
        _printf_(4, 5);
/* the object at `pointer` lacks `key`: */
int definition_refuse_missing(const DefinitionCheck *c, const char *pointer, const char *key, const char *expected);
/* the object at `pointer` has a `key` that nobody knows; `known` is NULL-terminated: */
int definition_refuse_key(const DefinitionCheck *c, const char *pointer, const char *key, const char *const *known,
        const char *what);

/* Values. Each takes the value at pointer, or refuses it. */
int definition_take_boolean(const DefinitionCheck *c, const char *pointer, json_object *v, bool *ret);
int definition_take_unsigned(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t minimum,
        uint64_t maximum, uint64_t *ret);
int definition_take_size(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t minimum,
        uint64_t maximum, uint64_t *ret);
int definition_take_enum(const DefinitionCheck *c, const char *pointer, json_object *v, const char *const *values,
        size_t *ret);
int definition_take_string(const DefinitionCheck *c, const char *pointer, json_object *v, size_t maximum,
        const char **ret);
/* Absolute, normalized, without control characters. */
int definition_take_path(const DefinitionCheck *c, const char *pointer, json_object *v, const char **ret);
/* Integer seconds, or numbers with units as in systemd.time(7). */
int definition_take_time(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t maximum, uint64_t *ret);

/* Checks what is under "devices" and stores it. definition-device.c */
int definition_take_devices(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d);
/* Checks the machine's plugin, the only device that it has then. definition-device.c */
int definition_take_plugin(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d);
/* What no single value can be blamed for: conflicts between devices. */
int definition_check_devices(const DefinitionCheck *c, const MachineDefinition *d);

/* Makes the definition `name` of the sources. definition-parse.c */
int definition_from_sources(const DefinitionSources *sources, const char *name, MachineDefinition **ret,
        DefinitionError *ret_error);
