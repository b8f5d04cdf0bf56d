/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "idl.h"
#include "json-util.h"

/* Bounds of one text, so that a foreign one costs little: nesting of types, and symbols or fields side by side. */
#define DEPTH_MAX 16
#define MEMBERS_MAX 512

typedef struct Parser {
        const char *p;
        unsigned line;
        char *comment; /* the lines of comment directly before what comes next */
        char **ret_message;
} Parser;

static void type_done(VarlinkType *t) {
        free(t->name);
        if (t->element)
                type_done(t->element);
        free(t->element);
        for (size_t i = 0; i < t->n_fields; i++) {
                free(t->fields[i].name);
                free(t->fields[i].documentation);
                type_done(&t->fields[i].type);
        }
        free(t->fields);
        *t = (VarlinkType) {};
}

VarlinkInterface *varlink_interface_free(VarlinkInterface *i) {
        if (!i)
                return NULL;
        free(i->name);
        free(i->documentation);
        for (size_t k = 0; k < i->n_symbols; k++) {
                free(i->symbols[k].name);
                free(i->symbols[k].documentation);
                type_done(&i->symbols[k].type);
                type_done(&i->symbols[k].output);
        }
        free(i->symbols);
        return mfree(i);
}

/* ASCII, whatever the locale says. */
static bool is_letter(char c) {
        return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool is_digit(char c) {
        return c >= '0' && c <= '9';
}

static bool is_alphanumeric(char c) {
        return is_letter(c) || is_digit(c);
}

static int fail(Parser *s, const char *what) {
        char c = *s->p;

        if (c == 0)
                return set_message(s->ret_message, -EBADMSG, "%u: the text ends where %s was expected", s->line, what);
        if (c == '\n')
                return set_message(s->ret_message, -EBADMSG, "%u: the line ends where %s was expected", s->line, what);
        if (c < ' ' || c > '~')
                return set_message(s->ret_message, -EBADMSG, "%u: found the byte 0x%02x where %s was expected", s->line,
                        (unsigned char) c, what);
        return set_message(s->ret_message, -EBADMSG, "%u: found '%c' where %s was expected", s->line, c, what);
}

/* Adds one line of comment to those before it. */
static int add_comment(Parser *s, const char *text, size_t size) {
        size_t before = s->comment ? strlen(s->comment) + 1 : 0;
        char *grown;

        while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\r'))
                size--;
        grown = realloc(s->comment, before + size + 1);
        if (!grown)
                return -ENOMEM;
        if (before > 0)
                grown[before - 1] = '\n';
        memcpy(grown + before, text, size);
        grown[before + size] = 0;
        s->comment = grown;
        return 0;
}

/* Skips white space and comments; keeps the comment for what follows. An empty line ends a comment's belonging. */
static int skip(Parser *s) {
        unsigned newlines = 0;

        for (;; s->p++) {
                if (*s->p == '\n') {
                        s->line++;
                        if (++newlines > 1)
                                s->comment = mfree(s->comment);
                } else if (*s->p == '#') {
                        size_t size = strcspn(s->p, "\n");
                        const char *text = s->p + 1;
                        int r;

                        r = add_comment(s, text + (*text == ' '), size - 1 - (*text == ' '));
                        if (r < 0)
                                return r;
                        s->p += size - 1;
                        newlines = 0;
                } else if (*s->p != ' ' && *s->p != '\t' && *s->p != '\r')
                        return 0;
        }
}

static int expect(Parser *s, const char *token) {
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        if (!startswith(s->p, token)) {
                char what[16] = "'";
                /* The tokens are ours and short. */
                strncat(strncat(what, token, 10), "'", 2);
                return fail(s, what);
        }
        s->p += strlen(token);
        s->comment = mfree(s->comment);
        return 0;
}

/* Whether the token comes next; takes it then. */
static int accept_token(Parser *s, const char *token) {
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        if (!startswith(s->p, token))
                return 0;
        s->p += strlen(token);
        s->comment = mfree(s->comment);
        return 1;
}

/* A keyword is followed by something that cannot be part of it. */
static int accept_word(Parser *s, const char *word) {
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        if (!startswith(s->p, word) || is_alphanumeric(s->p[strlen(word)]) || s->p[strlen(word)] == '_')
                return 0;
        s->p += strlen(word);
        return 1;
}

static int take_text(Parser *s, size_t size, char **ret) {
        char *text = strndup(s->p, size);
        if (!text)
                return -ENOMEM;
        s->p += size;
        *ret = text;
        return 0;
}

/* [A-Z][A-Za-z0-9]* */
static int parse_symbol_name(Parser *s, char **ret) {
        size_t n = 0;
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        if (s->p[0] < 'A' || s->p[0] > 'Z')
                return fail(s, "a name that begins with a capital letter");
        while (is_alphanumeric(s->p[n]))
                n++;
        return take_text(s, n, ret);
}

/* [A-Za-z](_?[A-Za-z0-9])* */
static int parse_field_name(Parser *s, char **ret) {
        size_t n = 1;

        if (!is_letter(s->p[0]))
                return fail(s, "a field's name");
        while (is_alphanumeric(s->p[n]) || (s->p[n] == '_' && is_alphanumeric(s->p[n + 1])))
                n++;
        return take_text(s, n, ret);
}

/* [A-Za-z](-*[A-Za-z0-9])*(\.[A-Za-z0-9](-*[A-Za-z0-9])*)+ : returns how many bytes of `p` are one, 0 where none is. */
static size_t interface_name_length(const char *p) {
        size_t n = 0;
        unsigned parts = 0;

        if (!is_letter(p[0]))
                return 0;
        for (;;) {
                size_t hyphens;

                if (!is_alphanumeric(p[n]))
                        return 0;
                for (n++;; n += hyphens + 1) {
                        hyphens = strspn(p + n, "-");
                        if (!is_alphanumeric(p[n + hyphens]))
                                break;
                }
                parts++;
                if (p[n] != '.')
                        return parts > 1 ? n : 0;
                n++;
        }
}

bool varlink_interface_name_is_valid(const char *name) {
        size_t n = interface_name_length(name);
        return n > 0 && name[n] == 0;
}

static int parse_type(Parser *s, unsigned depth, VarlinkType *ret);

static int add_field(Parser *s, VarlinkType *t, VarlinkField *field) {
        VarlinkField *grown;

        for (size_t i = 0; i < t->n_fields; i++)
                if (streq(t->fields[i].name, field->name))
                        return set_message(s->ret_message, -EBADMSG, "%u: the field %s is there twice", s->line, field->name);
        if (t->n_fields >= MEMBERS_MAX)
                return set_message(s->ret_message, -EBADMSG, "%u: too many fields", s->line);
        grown = realloc(t->fields, (t->n_fields + 1) * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        t->fields = grown;
        t->fields[t->n_fields++] = *field;
        *field = (VarlinkField) {};
        return 0;
}

static void field_done(VarlinkField *f) {
        free(f->name);
        free(f->documentation);
        type_done(&f->type);
}

/* One field; whether it has a type decides, with the first one, what the whole is: a struct or an enum. */
static int parse_field(Parser *s, unsigned depth, VarlinkType *t) {
        _cleanup_(field_done) VarlinkField field = {};
        bool typed;
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        field.documentation = TAKE_PTR(s->comment);
        r = parse_field_name(s, &field.name);
        if (r < 0)
                return r;
        r = accept_token(s, ":");
        if (r < 0)
                return r;
        typed = r > 0;
        if (t->n_fields == 0)
                t->kind = typed ? VARLINK_TYPE_STRUCT : VARLINK_TYPE_ENUM;
        else if (typed != (t->kind == VARLINK_TYPE_STRUCT))
                return fail(s, typed ? "',' after the name in an enumeration" : "':' and the field's type");
        if (typed) {
                r = parse_type(s, depth, &field.type);
                if (r < 0)
                        return r;
        }
        return add_field(s, t, &field);
}

/* "(" has been seen already. */
static int parse_fields(Parser *s, unsigned depth, VarlinkType *t) {
        int r;

        t->kind = VARLINK_TYPE_STRUCT;
        r = accept_token(s, ")");
        if (r != 0)
                return r < 0 ? r : 0;
        for (;;) {
                r = parse_field(s, depth, t);
                if (r < 0)
                        return r;
                r = accept_token(s, ",");
                if (r < 0)
                        return r;
                if (r == 0)
                        return expect(s, ")");
        }
}

static int parse_element(Parser *s, unsigned depth, VarlinkType *t, VarlinkTypeKind kind) {
        t->kind = kind;
        t->element = calloc(1, sizeof(*t->element));
        if (!t->element)
                return -ENOMEM;
        return parse_type(s, depth + 1, t->element);
}

static int parse_plain_type(Parser *s, unsigned depth, VarlinkType *t) {
        static const struct {
                const char *word;
                VarlinkTypeKind kind;
        } words[] = {
                { "bool", VARLINK_TYPE_BOOL },     { "int", VARLINK_TYPE_INT },       { "float", VARLINK_TYPE_FLOAT },
                { "string", VARLINK_TYPE_STRING }, { "object", VARLINK_TYPE_OBJECT },
        };
        int r;

        r = accept_token(s, "[]");
        if (r != 0)
                return r < 0 ? r : parse_element(s, depth, t, VARLINK_TYPE_ARRAY);
        r = accept_token(s, "[string]");
        if (r != 0)
                return r < 0 ? r : parse_element(s, depth, t, VARLINK_TYPE_MAP);
        r = accept_token(s, "(");
        if (r != 0)
                return r < 0 ? r : parse_fields(s, depth + 1, t);
        for (size_t i = 0; i < ELEMENTSOF(words); i++) {
                r = accept_word(s, words[i].word);
                if (r != 0) {
                        t->kind = words[i].kind;
                        return r < 0 ? r : 0;
                }
        }
        if (s->p[0] < 'A' || s->p[0] > 'Z')
                return fail(s, "a type");
        t->kind = VARLINK_TYPE_NAMED;
        return parse_symbol_name(s, &t->name);
}

/* *ret is zeroed and its owner's: what was built so far is freed by him also where this fails. */
static int parse_type(Parser *s, unsigned depth, VarlinkType *ret) {
        int r;

        if (depth > DEPTH_MAX)
                return set_message(s->ret_message, -EBADMSG, "%u: types are nested too deeply", s->line);
        r = accept_token(s, "?");
        if (r < 0)
                return r;
        ret->nullable = r > 0;
        return parse_plain_type(s, depth, ret);
}

static int parse_struct(Parser *s, VarlinkType *ret) {
        int r;

        r = expect(s, "(");
        if (r < 0)
                return r;
        r = parse_fields(s, 1, ret);
        if (r < 0)
                return r;
        if (ret->kind == VARLINK_TYPE_ENUM)
                return set_message(s->ret_message, -EBADMSG, "%u: found an enumeration where fields with types were expected", s->line);
        return 0;
}

static int parse_symbol(Parser *s, VarlinkSymbol *symbol) {
        static const struct {
                const char *word;
                VarlinkSymbolKind kind;
        } words[] = {
                { "type", VARLINK_SYMBOL_TYPE }, { "method", VARLINK_SYMBOL_METHOD }, { "error", VARLINK_SYMBOL_ERROR },
        };
        size_t k;
        int r = 0;

        symbol->documentation = TAKE_PTR(s->comment);
        for (k = 0; k < ELEMENTSOF(words); k++) {
                r = accept_word(s, words[k].word);
                if (r != 0)
                        break;
        }
        if (r < 0)
                return r;
        if (r == 0)
                return fail(s, "'type', 'method' or 'error'");
        symbol->kind = words[k].kind;

        r = parse_symbol_name(s, &symbol->name);
        if (r < 0)
                return r;
        if (symbol->kind == VARLINK_SYMBOL_TYPE) {
                r = expect(s, "(");
                return r < 0 ? r : parse_fields(s, 1, &symbol->type);
        }
        r = parse_struct(s, &symbol->type);
        if (r < 0 || symbol->kind == VARLINK_SYMBOL_ERROR)
                return r;
        r = expect(s, "->");
        return r < 0 ? r : parse_struct(s, &symbol->output);
}

/* Types, methods and errors share one namespace. */
static const VarlinkSymbol *find_symbol(const VarlinkInterface *i, const char *name) {
        for (size_t k = 0; k < i->n_symbols; k++)
                if (streq(i->symbols[k].name, name))
                        return &i->symbols[k];
        return NULL;
}

const VarlinkSymbol *varlink_interface_find(const VarlinkInterface *i, VarlinkSymbolKind kind, const char *name) {
        const VarlinkSymbol *symbol = find_symbol(i, name);
        return symbol && symbol->kind == kind ? symbol : NULL;
}

static int check_names(const VarlinkInterface *i, const VarlinkType *t, char **ret_message) {
        int r;

        if (t->kind == VARLINK_TYPE_NAMED && !varlink_interface_find(i, VARLINK_SYMBOL_TYPE, t->name))
                return set_message(ret_message, -EBADMSG, "there is no type %s", t->name);
        if (t->element)
                return check_names(i, t->element, ret_message);
        for (size_t k = 0; t->kind == VARLINK_TYPE_STRUCT && k < t->n_fields; k++) {
                r = check_names(i, &t->fields[k].type, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int parse_header(Parser *s, VarlinkInterface *i) {
        size_t n;
        int r;

        r = skip(s);
        if (r < 0)
                return r;
        i->documentation = TAKE_PTR(s->comment);
        r = accept_word(s, "interface");
        if (r <= 0)
                return r < 0 ? r : fail(s, "'interface'");
        r = skip(s);
        if (r < 0)
                return r;
        n = interface_name_length(s->p);
        if (n == 0)
                return fail(s, "an interface's name");
        return take_text(s, n, &i->name);
}

static int parse_member(Parser *s, VarlinkInterface *i) {
        VarlinkSymbol *grown, *symbol;
        int r;

        if (i->n_symbols >= MEMBERS_MAX)
                return set_message(s->ret_message, -EBADMSG, "%u: too many symbols", s->line);
        grown = realloc(i->symbols, (i->n_symbols + 1) * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        i->symbols = grown;
        symbol = &i->symbols[i->n_symbols];
        *symbol = (VarlinkSymbol) {};

        r = parse_symbol(s, symbol);
        if (r >= 0 && find_symbol(i, symbol->name))
                r = set_message(s->ret_message, -EBADMSG, "%u: the name %s is there twice", s->line, symbol->name);
        i->n_symbols++;
        return r;
}

static int parse_interface(Parser *s, VarlinkInterface *i) {
        int r;

        r = parse_header(s, i);
        while (r >= 0) {
                r = skip(s);
                if (r < 0 || *s->p == 0)
                        break;
                r = parse_member(s, i);
        }
        for (size_t k = 0; r >= 0 && k < i->n_symbols; k++) {
                r = check_names(i, &i->symbols[k].type, s->ret_message);
                if (r >= 0)
                        r = check_names(i, &i->symbols[k].output, s->ret_message);
        }
        return r < 0 ? r : 0;
}

int varlink_interface_parse(const char *text, VarlinkInterface **ret, char **ret_message) {
        _cleanup_(varlink_interface_freep) VarlinkInterface *i = NULL;
        Parser s = { .p = text, .line = 1, .ret_message = ret_message };
        int r;

        if (strnlen(text, VARLINK_IDL_SIZE_MAX + 1) > VARLINK_IDL_SIZE_MAX)
                return set_message(ret_message, -EBADMSG, "the text is too long");
        i = calloc(1, sizeof(*i));
        if (!i)
                return -ENOMEM;
        r = parse_interface(&s, i);
        free(s.comment);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(i);
        return 0;
}

/* ---- values ---- */

/* Prepends a step to the place that a nested check reported. */
static int at_field(char **ret_where, const char *field, int error) {
        const char *rest = ret_where && *ret_where ? *ret_where : "";
        return set_message(ret_where, error, "%s%s%s", field, *rest == 0 || *rest == '[' ? "" : ".", rest);
}

static int at_index(char **ret_where, size_t index, int error) {
        const char *rest = ret_where && *ret_where ? *ret_where : "";
        return set_message(ret_where, error, "[%zu]%s%s", index, *rest == 0 || *rest == '[' ? "" : ".", rest);
}

static int mismatch(char **ret_where) {
        return set_message(ret_where, -EINVAL, "%s", "");
}

static const VarlinkField *find_field(const VarlinkType *t, const char *name) {
        for (size_t k = 0; k < t->n_fields; k++)
                if (streq(t->fields[k].name, name))
                        return &t->fields[k];
        return NULL;
}

static int check_struct(const VarlinkInterface *i, const VarlinkType *type, json_object *value, char **ret_where) {
        int r;

        if (!json_object_is_type(value, json_type_object))
                return mismatch(ret_where);
        json_object_object_foreach(value, key, member) {
                (void) member;
                if (!find_field(type, key))
                        return at_field(ret_where, key, mismatch(ret_where));
        }
        for (size_t k = 0; k < type->n_fields; k++) {
                r = varlink_type_check(i, &type->fields[k].type,
                        json_object_object_get(value, type->fields[k].name), ret_where);
                if (r < 0)
                        return at_field(ret_where, type->fields[k].name, r);
        }
        return 0;
}

static int check_array(const VarlinkInterface *i, const VarlinkType *type, json_object *value, char **ret_where) {
        int r;

        if (!json_object_is_type(value, json_type_array))
                return mismatch(ret_where);
        for (size_t k = 0; k < json_object_array_length(value); k++) {
                r = varlink_type_check(i, type->element, json_object_array_get_idx(value, k), ret_where);
                if (r < 0)
                        return at_index(ret_where, k, r);
        }
        return 0;
}

static int check_map(const VarlinkInterface *i, const VarlinkType *type, json_object *value, char **ret_where) {
        int r;

        if (!json_object_is_type(value, json_type_object))
                return mismatch(ret_where);
        json_object_object_foreach(value, key, member) {
                r = varlink_type_check(i, type->element, member, ret_where);
                if (r < 0)
                        return at_field(ret_where, key, r);
        }
        return 0;
}

static bool is_int64(json_object *value) {
        /* json-c keeps what is beyond int64_t as uint64_t and clamps it here. */
        return json_object_is_type(value, json_type_int) &&
                (json_object_get_int64(value) < INT64_MAX || json_object_get_uint64(value) == (uint64_t) INT64_MAX);
}

static bool is_plain(const VarlinkType *type, json_object *value) {
        switch (type->kind) {
        case VARLINK_TYPE_BOOL:
                return json_object_is_type(value, json_type_boolean);
        case VARLINK_TYPE_INT:
                return is_int64(value);
        case VARLINK_TYPE_FLOAT:
                /* JSON does not tell 1 from 1.0 */
                return json_object_is_type(value, json_type_double) || json_object_is_type(value, json_type_int);
        case VARLINK_TYPE_STRING:
                return json_object_is_type(value, json_type_string);
        case VARLINK_TYPE_OBJECT:
                /* Foreign and untyped: whatever JSON has. Clients take it so, and numbers of io.systemd.Metrics are sent so. */
                return true;
        case VARLINK_TYPE_ENUM:
                return json_object_is_type(value, json_type_string) && find_field(type, json_object_get_string(value));
        default:
                return false;
        }
}

int varlink_type_check(const VarlinkInterface *i, const VarlinkType *type, json_object *value, char **ret_where) {
        const VarlinkSymbol *symbol;

        if (!value)
                return type->nullable ? 0 : mismatch(ret_where);
        switch (type->kind) {
        case VARLINK_TYPE_STRUCT:
                return check_struct(i, type, value, ret_where);
        case VARLINK_TYPE_ARRAY:
                return check_array(i, type, value, ret_where);
        case VARLINK_TYPE_MAP:
                return check_map(i, type, value, ret_where);
        case VARLINK_TYPE_NAMED:
                symbol = varlink_interface_find(i, VARLINK_SYMBOL_TYPE, type->name);
                return symbol ? varlink_type_check(i, &symbol->type, value, ret_where) : mismatch(ret_where);
        default:
                return is_plain(type, value) ? 0 : mismatch(ret_where);
        }
}
