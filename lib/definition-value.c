/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Single values of a definition. */

#include <inttypes.h>
#include <stdio.h>

#include "definition-internal.h"
#include "parse.h"

int definition_take_boolean(const DefinitionCheck *c, const char *pointer, json_object *v, bool *ret) {
        if (!json_object_is_type(v, json_type_boolean))
                return definition_refuse(c, pointer, "true or false");
        *ret = json_object_get_boolean(v);
        return 0;
}

int definition_take_unsigned(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t minimum,
        uint64_t maximum, uint64_t *ret) {
        uint64_t value;

        /* What fits neither type is saturated by json-c, which is beyond every maximum that we have. */
        if (!json_object_is_type(v, json_type_int) || json_object_get_int64(v) < 0)
                goto refuse;
        value = json_object_get_uint64(v);
        if (value < minimum || value > maximum)
                goto refuse;
        *ret = value;
        return 0;

refuse:
        return definition_refuse(c, pointer, "an integer from %" PRIu64 " to %" PRIu64, minimum, maximum);
}

int definition_take_size(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t minimum,
        uint64_t maximum, uint64_t *ret) {
        char least[SIZE_TEXT_MAX], most[SIZE_TEXT_MAX];
        uint64_t value = 0;
        bool good = false;

        if (json_object_is_type(v, json_type_string))
                good = parse_size(json_object_get_string(v), &value) >= 0;
        else if (json_object_is_type(v, json_type_int)) {
                value = json_object_get_uint64(v);
                good = json_object_get_int64(v) >= 0;
        }
        if (good && value >= minimum && value <= maximum) {
                *ret = value;
                return 0;
        }

        size_to_text(minimum, least);
        size_to_text(maximum, most);
        return definition_refuse(c, pointer, "a size from %s to %s, in bytes or as a string with the suffix K, M, G or T", least,
                most);
}

int definition_take_enum(const DefinitionCheck *c, const char *pointer, json_object *v, const char *const *values,
        size_t *ret) {
        char list[256];
        size_t at = 0;

        if (json_object_is_type(v, json_type_string))
                for (size_t i = 0; values[i]; i++)
                        if (streq(json_object_get_string(v), values[i])) {
                                *ret = i;
                                return 0;
                        }

        /* Our own tables: all of their lists fit. */
        list[0] = 0;
        for (size_t i = 0; values[i] && at < sizeof(list); i++)
                at += (size_t) snprintf(list + at, sizeof(list) - at, "%s\"%s\"",
                        i == 0 ? "" : values[i + 1] ? ", " : " or ", values[i]);
        return definition_refuse(c, pointer, "%s", list);
}

int definition_take_string(const DefinitionCheck *c, const char *pointer, json_object *v, size_t maximum,
        const char **ret) {
        if (!json_object_is_type(v, json_type_string))
                return definition_refuse(c, pointer, "a string");
        if ((size_t) json_object_get_string_len(v) > maximum)
                return definition_refuse(c, pointer, "a string of at most %zu bytes", maximum);
        *ret = json_object_get_string(v);
        return 0;
}

int definition_take_path(const DefinitionCheck *c, const char *pointer, json_object *v, const char **ret) {
        const char *path;
        int r;

        if (!json_object_is_type(v, json_type_string))
                return definition_refuse(c, pointer, "an absolute path");
        r = definition_take_string(c, pointer, v, 4095, &path);
        if (r < 0)
                return r;
        if (!path_is_normalized(path))
                return definition_refuse(c, pointer, "an absolute path without empty, \".\" and \"..\" components");
        for (const char *p = path; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return definition_refuse(c, pointer, "a path without control characters");
        *ret = path;
        return 0;
}

int definition_take_time(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t maximum, uint64_t *ret) {
        uint64_t value = 0;
        bool good = false;

        if (json_object_is_type(v, json_type_string))
                good = parse_time(json_object_get_string(v), &value) >= 0;
        else if (json_object_is_type(v, json_type_int) && json_object_get_int64(v) >= 0)
                good = !__builtin_mul_overflow(json_object_get_uint64(v), USEC_PER_SEC, &value);
        if (!good || value > maximum)
                return definition_refuse(c, pointer, "a time of at most %" PRIu64 " seconds, as an integer or as in \"1min 30s\"",
                        maximum / USEC_PER_SEC);
        *ret = value;
        return 0;
}
