/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "json-ascii.h"
#include "json-source.h"

#define EXCERPT_MAX 60

typedef struct Scanner {
        const char *text;
        size_t size;
        size_t at;
        size_t error_at;      /* where the text is wrong, */
        const char *expected; /* and what should have stood there */
        JsonPlace *place;     /* filled by the value that is looked for */
        bool located;
} Scanner;

typedef struct KeySet {
        char **keys;
        size_t n, allocated;
} KeySet;

static void key_set_done(KeySet *set) {
        for (size_t i = 0; i < set->n; i++)
                free(set->keys[i]);
        free(set->keys);
}

static int wrong(Scanner *s, size_t at, const char *expected) {
        s->error_at = at;
        s->expected = expected;
        return -EBADMSG;
}

static char peek(const Scanner *s) {
        return s->at < s->size ? s->text[s->at] : 0;
}

static void skip_blanks(Scanner *s) {
        while (s->at < s->size && strchr(" \t\r\n", s->text[s->at]))
                s->at++;
}

static bool is_digit(char c) {
        return c >= '0' && c <= '9';
}

static bool is_hex_digit(char c) {
        return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* One string token, quotes included (RFC 8259 §7). */
static int scan_string(Scanner *s) {
        size_t begin = s->at;

        s->at++;
        for (size_t length; s->at < s->size; s->at += length) {
                unsigned char c = (unsigned char) s->text[s->at];

                length = utf8_sequence(s->text + s->at, s->size - s->at);
                if (length == 0)
                        return wrong(s, begin, "a string in UTF-8");

                if (c == '"') {
                        s->at++;
                        return 0;
                }
                if (c < 0x20)
                        return wrong(s, begin, "a string that ends on its line (control characters are written \\n, \\t, \\u00XX)");
                if (c != '\\')
                        continue;

                s->at++;
                if (peek(s) == 'u') {
                        for (unsigned i = 1; i <= 4; i++)
                                if (s->at + i >= s->size || !is_hex_digit(s->text[s->at + i]))
                                        return wrong(s, begin, "four hexadecimal digits after \\u");
                        /* C strings carry everything from here on. */
                        if (strncmp(s->text + s->at, "u0000", 5) == 0)
                                return wrong(s, begin, "a string without a NUL character");
                        s->at += 4;
                } else if (peek(s) == 0 || !strchr("\"\\/bfnrt", peek(s)))
                        return wrong(s, begin, "one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX after a backslash");
        }
        return wrong(s, begin, "a string that ends");
}

/* RFC 8259 §6 */
static int scan_number(Scanner *s) {
        size_t begin = s->at;

        if (peek(s) == '-')
                s->at++;
        if (!is_digit(peek(s)))
                return wrong(s, begin, "a value");
        if (peek(s) == '0' && s->at + 1 < s->size && is_digit(s->text[s->at + 1]))
                return wrong(s, begin, "a number without leading zeroes");
        while (is_digit(peek(s)))
                s->at++;
        if (peek(s) == '.') {
                s->at++;
                if (!is_digit(peek(s)))
                        return wrong(s, begin, "a digit after the decimal point");
                while (is_digit(peek(s)))
                        s->at++;
        }
        if (peek(s) == 'e' || peek(s) == 'E') {
                s->at++;
                if (peek(s) == '+' || peek(s) == '-')
                        s->at++;
                if (!is_digit(peek(s)))
                        return wrong(s, begin, "a digit in the exponent");
                while (is_digit(peek(s)))
                        s->at++;
        }
        return 0;
}

static int scan_word(Scanner *s) {
        static const char *const words[] = { "true", "false", "null" };
        size_t begin = s->at, length;

        while (s->at < s->size && ((s->text[s->at] | 0x20) >= 'a') && ((s->text[s->at] | 0x20) <= 'z'))
                s->at++;
        length = s->at - begin;
        for (size_t i = 0; i < ELEMENTSOF(words); i++)
                if (strlen(words[i]) == length && strncmp(s->text + begin, words[i], length) == 0)
                        return 0;
        return wrong(s, begin, "a value");
}

/* The characters of a string token. json-c decodes the escapes, so that we agree with it by construction. */
static int decode_string(const Scanner *s, size_t begin, size_t end, char **ret) {
        _cleanup_free_ char *token = strndup(s->text + begin, end - begin);
        json_object *decoded;
        char *copy;

        if (!token)
                return -ENOMEM;
        if (!strchr(token, '\\'))
                copy = strndup(token + 1, end - begin - 2);
        else {
                decoded = json_tokener_parse(token);
                if (!decoded)
                        return -ENOMEM;
                copy = strdup(json_object_get_string(decoded));
                json_object_put(decoded);
        }
        if (!copy)
                return -ENOMEM;
        *ret = copy;
        return 0;
}

/* Takes ownership of key. 0, -EEXIST, -E2BIG, -ENOMEM. */
static int key_set_add(KeySet *set, char *key) {
        for (size_t i = 0; i < set->n; i++)
                if (streq(set->keys[i], key)) {
                        free(key);
                        return -EEXIST;
                }
        if (set->n >= JSON_SOURCE_MEMBERS_MAX) {
                free(key);
                return -E2BIG;
        }
        if (set->n == set->allocated) {
                size_t more = set->allocated == 0 ? 16 : set->allocated * 2;
                char **grown = reallocarray(set->keys, more, sizeof(char *));
                if (!grown) {
                        free(key);
                        return -ENOMEM;
                }
                set->keys = grown;
                set->allocated = more;
        }
        set->keys[set->n++] = key;
        return 0;
}

/* Whether the pointer's first reference token (RFC 6901 §4) is `key`; returns the rest of the pointer, or NULL. */
static const char *pointer_enter(const char *pointer, const char *key) {
        if (!pointer || *pointer != '/')
                return NULL;
        for (pointer++; *pointer != 0 && *pointer != '/'; pointer++, key++) {
                char c = *pointer;

                if (c == '~' && (pointer[1] == '0' || pointer[1] == '1'))
                        c = *++pointer == '0' ? '~' : '/';
                if (*key != c)
                        return NULL;
        }
        return *key == 0 ? pointer : NULL;
}

static int scan_value(Scanner *s, unsigned depth, const char *pointer);

static int scan_member(Scanner *s, unsigned depth, const char *pointer, KeySet *keys) {
        size_t begin = s->at;
        char *key;
        int r;

        if (peek(s) != '"')
                return wrong(s, s->at, "a key in double quotes");
        r = scan_string(s);
        if (r < 0)
                return r;
        r = decode_string(s, begin, s->at, &key);
        if (r < 0)
                return r;

        pointer = pointer_enter(pointer, key);
        r = key_set_add(keys, key);
        if (r == -EEXIST)
                return wrong(s, begin, "each key only once in an object");
        if (r == -E2BIG)
                return wrong(s, begin, "at most 1024 keys in an object");
        if (r < 0)
                return r;

        skip_blanks(s);
        if (peek(s) != ':')
                return wrong(s, s->at, "a colon after the key");
        s->at++;
        return scan_value(s, depth, pointer);
}

static int scan_object(Scanner *s, unsigned depth, const char *pointer) {
        _cleanup_(key_set_done) KeySet keys = {};
        int r;

        s->at++;
        skip_blanks(s);
        if (peek(s) == '}') {
                s->at++;
                return 0;
        }
        for (;;) {
                skip_blanks(s);
                r = scan_member(s, depth + 1, pointer, &keys);
                if (r < 0)
                        return r;
                skip_blanks(s);
                if (peek(s) == '}')
                        break;
                if (peek(s) != ',')
                        return wrong(s, s->at, "a comma or a closing brace");
                s->at++;
        }
        s->at++;
        return 0;
}

static int scan_array(Scanner *s, unsigned depth, const char *pointer) {
        char index[24];
        int r;

        s->at++;
        skip_blanks(s);
        if (peek(s) == ']') {
                s->at++;
                return 0;
        }
        for (size_t i = 0;; i++) {
                const char *rest = NULL;

                if (pointer) {
                        (void) snprintf(index, sizeof(index), "%zu", i);
                        rest = pointer_enter(pointer, index);
                }
                r = scan_value(s, depth + 1, rest);
                if (r < 0)
                        return r;
                skip_blanks(s);
                if (peek(s) == ']')
                        break;
                if (peek(s) != ',')
                        return wrong(s, s->at, "a comma or a closing bracket");
                s->at++;
        }
        s->at++;
        return 0;
}

/* `pointer` leads from here to the value that is looked for; NULL where that is not below here. */
static int scan_value(Scanner *s, unsigned depth, const char *pointer) {
        size_t begin;
        char c;
        int r;

        skip_blanks(s);
        begin = s->at;
        c = peek(s);
        if ((c == '{' || c == '[') && depth >= JSON_SOURCE_DEPTH_MAX)
                return wrong(s, begin, "at most 16 levels of objects and arrays");

        if (c == '{')
                r = scan_object(s, depth, pointer);
        else if (c == '[')
                r = scan_array(s, depth, pointer);
        else if (c == '"')
                r = scan_string(s);
        else if (c == '-' || is_digit(c))
                r = scan_number(s);
        else
                r = scan_word(s);
        if (r < 0)
                return r;

        if (pointer && *pointer == 0 && s->place) {
                s->place->begin = begin;
                s->place->end = s->at;
                s->located = true;
        }
        return 0;
}

static int scan_document(Scanner *s, const char *pointer) {
        int r;

        skip_blanks(s);
        if (s->at == s->size)
                return wrong(s, s->at, "an object");
        r = scan_value(s, 0, pointer);
        if (r < 0)
                return r;
        skip_blanks(s);
        if (s->at != s->size)
                return wrong(s, s->at, "nothing after the end of the object");
        return 0;
}

/* Replaces comments by blanks, so that offsets and lines stay. */
static int blank_comments(Scanner *s, char *text) {
        bool in_string = false;

        for (size_t i = 0; i < s->size; i++) {
                if (in_string) {
                        if (text[i] == '\\')
                                i++;
                        else if (text[i] == '"' || text[i] == '\n')
                                in_string = false; /* an unterminated string is the scanner's business */
                        continue;
                }
                if (text[i] == '"')
                        in_string = true;
                else if (text[i] == '/' && text[i + 1] == '/')
                        while (i < s->size && text[i] != '\n')
                                text[i++] = ' ';
                else if (text[i] == '/' && text[i + 1] == '*') {
                        char *end = strstr(text + i + 2, "*/");
                        if (!end)
                                return wrong(s, i, "a comment that ends");
                        for (; text + i < end + 2; i++)
                                if (text[i] != '\n')
                                        text[i] = ' ';
                        i--;
                }
        }
        return 0;
}

static unsigned line_at(const char *text, size_t at) {
        unsigned line = 1;

        for (size_t i = 0; i < at; i++)
                if (text[i] == '\n')
                        line++;
        return line;
}

/* Where the token at `at` ends: a string with its closing quote or the end of the line, other things at the next separator. */
static size_t token_end(const char *text, size_t size, size_t at) {
        size_t end = at + 1;

        if (text[at] == '"') {
                for (; end < size && text[end] != '\n' && text[end] != '"'; end++)
                        if (text[end] == '\\' && end + 1 < size && text[end + 1] != '\n')
                                end++;
                return end < size && text[end] == '"' ? end + 1 : end;
        }
        while (end < size && !strchr(" \t\r\n,:]}\"", text[end]))
                end++;
        return end;
}

/* The token that stands at `at`, shortened and fit for a terminal. */
static char *excerpt_at(const char *text, size_t size, size_t at) {
        size_t end, length;
        char *found;

        if (at >= size)
                return strdup("the end of the text");
        end = MIN(token_end(text, size, at), size);
        length = MIN(end - at, (size_t) EXCERPT_MAX);
        /* Not in the middle of a UTF-8 sequence. */
        while (length > 0 && length < end - at && ((unsigned char) text[at + length] & 0xc0) == 0x80)
                length--;

        if (asprintf(&found, "%.*s%s", (int) length, text + at, length < end - at ? "…" : "") < 0)
                return NULL;
        for (size_t i = 0, n; i < length; i += MAX(n, (size_t) 1)) {
                n = utf8_sequence(found + i, length - i);
                if (n == 0 || (unsigned char) found[i] < 0x20 || found[i] == 0x7f)
                        found[i] = '?';
        }
        return found;
}

static int fill_error(const char *text, size_t size, size_t at, const char *expected, JsonSourceError *ret) {
        char *found = excerpt_at(text, size, at);

        if (!found)
                return -ENOMEM;
        *ret = (JsonSourceError) { .line = line_at(text, at), .found = found, .expected = expected };
        return -EBADMSG;
}

static int parse_by_json_c(const char *text, size_t size, json_object **ret, size_t *ret_at) {
        json_tokener *tokener = json_tokener_new_ex(JSON_SOURCE_DEPTH_MAX + 1);
        json_object *root;
        int r = 0;

        if (!tokener)
                return -ENOMEM;
        /* The scanner was strict. json-c's strict parser of version 0.18 refuses all but ASCII, and numbers of more than 64 bits. */
        root = json_tokener_parse_ex(tokener, text, (int) size + 1);
        if (!root && json_tokener_get_error(tokener) != json_tokener_success) {
                *ret_at = MIN(json_tokener_get_parse_end(tokener), size);
                r = -EBADMSG;
        } else
                *ret = root;
        json_tokener_free(tokener);
        return r;
}

int json_source_parse(const char *text, size_t size, const char *file, JsonSource *ret, JsonSourceError *ret_error) {
        _cleanup_free_ char *copy = NULL, *name = NULL;
        json_object *root = NULL;
        Scanner s = { .size = size };
        size_t at = 0;
        int r;

        if (size > JSON_SOURCE_SIZE_MAX)
                return fill_error("", 0, 0, "at most 1 MiB of text", ret_error);

        copy = malloc(size + 1);
        name = strdup(file);
        if (!copy || !name)
                return -ENOMEM;
        memcpy(copy, text, size);
        copy[size] = 0;
        if (strlen(copy) != size)
                return fill_error(copy, strlen(copy), strlen(copy), "text without NUL bytes", ret_error);
        /* A byte order mark is what some editors leave; RFC 8259 §8.1 lets parsers ignore it. */
        if (startswith(copy, "\xef\xbb\xbf"))
                memset(copy, ' ', 3);

        s.text = copy;
        r = blank_comments(&s, copy);
        if (r >= 0)
                r = scan_document(&s, NULL);
        if (r == -EBADMSG)
                return fill_error(copy, size, s.error_at, s.expected, ret_error);
        if (r < 0)
                return r;

        r = parse_by_json_c(copy, size, &root, &at);
        if (r == -EBADMSG)
                return fill_error(copy, size, at, "JSON", ret_error);
        if (r < 0)
                return r;

        *ret = (JsonSource) { .file = TAKE_PTR(name), .text = TAKE_PTR(copy), .size = size, .root = root };
        return 0;
}

void json_source_done(JsonSource *source) {
        free(source->file);
        free(source->text);
        json_object_put(source->root);
        *source = (JsonSource) {};
}

int json_source_locate(const JsonSource *source, const char *pointer, JsonPlace *ret) {
        JsonPlace place = {};
        Scanner s = { .text = source->text, .size = source->size, .place = &place };
        int r;

        r = scan_document(&s, pointer);
        if (r < 0)
                return r;
        if (!s.located)
                return -ENOENT;
        place.line = line_at(source->text, place.begin);
        *ret = place;
        return 0;
}

char *json_source_excerpt(const JsonSource *source, const JsonPlace *place) {
        if (source->text[place->begin] == '{')
                return strdup("an object");
        if (source->text[place->begin] == '[')
                return strdup("an array");
        return excerpt_at(source->text, source->size, place->begin);
}

char *json_pointer_join(const char *pointer, const char *key) {
        size_t length = strlen(pointer), at = length;
        char *joined = malloc(length + 1 + 2 * strlen(key) + 1);

        if (!joined)
                return NULL;
        memcpy(joined, pointer, length);
        joined[at++] = '/';
        for (; *key != 0; key++)
                if (*key == '~' || *key == '/') {
                        joined[at++] = '~';
                        joined[at++] = *key == '~' ? '0' : '1';
                } else
                        joined[at++] = *key;
        joined[at] = 0;
        return joined;
}
