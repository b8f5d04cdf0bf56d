/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What json-c lacks for code that shows ownership and checks every step. Every json_add_*() leaves the object as it was where
 * it fails. Readers take a member only where it has the right type. */

#include <json-c/json.h>

#include "util.h"

static inline void json_putp(json_object **o) {
        if (*o)
                (void) json_object_put(*o);
        *o = NULL;
}
#define _cleanup_json_ _cleanup_(json_putp)

/* Adds `value` under `key` and takes the reference over, also on error. A NULL value (out of memory while it was made) is
 * -ENOMEM. */
static inline int json_add(json_object *into, const char *key, json_object *value) {
        if (!value)
                return -ENOMEM;
        if (json_object_object_add(into, key, value) < 0) {
                (void) json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

/* A NULL string is left out: that is how a nullable field is absent. */
static inline int json_add_string(json_object *into, const char *key, const char *value) {
        return value ? json_add(into, key, json_object_new_string(value)) : 0;
}

static inline int json_add_integer(json_object *into, const char *key, int64_t value) {
        return json_add(into, key, json_object_new_int64(value));
}

static inline int json_add_boolean(json_object *into, const char *key, bool value) {
        return json_add(into, key, json_object_new_boolean(value));
}

/* Appends and takes the reference over, also on error. */
static inline int json_append(json_object *array, json_object *value) {
        if (!value)
                return -ENOMEM;
        if (json_object_array_add(array, value) < 0) {
                (void) json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

/* The member of that type, borrowed; NULL where absent, null or of another type. `from` may be NULL. */
static inline json_object *json_get(json_object *from, const char *key, json_type type) {
        json_object *v;

        if (!from || !json_object_is_type(from, json_type_object) || !json_object_object_get_ex(from, key, &v))
                return NULL;
        return json_object_is_type(v, type) ? v : NULL;
}

static inline const char *json_get_string(json_object *from, const char *key, const char *otherwise) {
        json_object *v = json_get(from, key, json_type_string);
        return v ? json_object_get_string(v) : otherwise;
}

/* The caller's own; NULL where there is none, or no memory. */
static inline char *json_dup_string(json_object *from, const char *key) {
        const char *text = json_get_string(from, key, NULL);
        return text ? strdup(text) : NULL;
}

static inline int64_t json_get_integer(json_object *from, const char *key, int64_t otherwise) {
        json_object *v = json_get(from, key, json_type_int);
        return v ? json_object_get_int64(v) : otherwise;
}

static inline bool json_get_boolean(json_object *from, const char *key, bool otherwise) {
        json_object *v = json_get(from, key, json_type_boolean);
        return v ? json_object_get_boolean(v) : otherwise;
}
