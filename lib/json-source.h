/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A JSON text with comments, kept beside its parsed form so that every value still has a place.
 *
 * json-c builds the objects, but it forgets where they stood, takes more than JSON and lets the last of two equal keys win. So a scanner of our own
 * goes over the text first: it takes strict JSON (RFC 8259) plus slash-star and double-slash comments, refuses duplicate keys
 * and NUL characters, bounds depth and size, and says line and column. What it let through is handed to json-c in strict mode;
 * both must agree. Later the same scanner finds the place of a value by its JSON pointer (RFC 6901). */

#include <json-c/json.h>

#include "util.h"

#define JSON_SOURCE_SIZE_MAX ((size_t) MIB(1))
#define JSON_SOURCE_DEPTH_MAX 16
#define JSON_SOURCE_MEMBERS_MAX 1024 /* of one object */

typedef struct JsonSource {
        char *file;        /* how errors call it */
        char *text;        /* comments replaced by blanks; NUL-terminated beyond size */
        size_t size;
        json_object *root; /* holds a reference */
} JsonSource;

/* Where a text is wrong. */
typedef struct JsonSourceError {
        unsigned line;
        char *found;          /* what stood there; owned */
        const char *expected; /* static text */
} JsonSourceError;

/* A place: begin and end (exclusive) in JsonSource.text. */
typedef struct JsonPlace {
        unsigned line;
        size_t begin, end;
} JsonPlace;

/* 0, -EBADMSG with *ret_error filled (the caller frees .found), or -ENOMEM. Copies text and file. */
int json_source_parse(const char *text, size_t size, const char *file, JsonSource *ret, JsonSourceError *ret_error);
void json_source_done(JsonSource *source);

/* Finds the value the pointer leads to: 0, -ENOENT where the text has no such value, -ENOMEM. */
int json_source_locate(const JsonSource *source, const char *pointer, JsonPlace *ret);

/* A few words for what stands at the place: "an object", or the text itself, shortened. The caller frees it; NULL when out of memory. */
char *json_source_excerpt(const JsonSource *source, const JsonPlace *place);

/* `pointer` extended by one key, escaped as RFC 6901 says. The caller frees it; NULL when out of memory. */
char *json_pointer_join(const char *pointer, const char *key);
