/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Single values of a definition. */

#include <inttypes.h>
#include <stdio.h>

#include "definition-internal.h"

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

/* "256M": digits and one suffix, base 1024. */
static bool parse_size(const char *s, uint64_t *ret) {
        static const char suffixes[] = "KMGT";
        const char *suffix;
        uint64_t value = 0;

        if (*s == 0)
                return false;
        for (; *s >= '0' && *s <= '9'; s++)
                if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
                        __builtin_add_overflow(value, (uint64_t) (*s - '0'), &value))
                        return false;
        if (*s != 0) {
                suffix = strchr(suffixes, *s);
                if (!suffix || s[1] != 0)
                        return false;
                if (__builtin_mul_overflow(value, UINT64_C(1) << (10 * (suffix - suffixes + 1)), &value))
                        return false;
        }
        *ret = value;
        return true;
}

/* The shortest way to write a size. */
static void format_size(uint64_t size, char *buffer, size_t length) {
        static const char suffixes[] = "\0KMGT";
        unsigned i = 0;

        while (i < 4 && size != 0 && size % 1024 == 0) {
                size /= 1024;
                i++;
        }
        (void) snprintf(buffer, length, "%" PRIu64 "%.1s", size, suffixes + i);
}

int definition_take_size(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t minimum,
        uint64_t maximum, uint64_t *ret) {
        char least[24], most[24];
        uint64_t value = 0;
        bool good = false;

        if (json_object_is_type(v, json_type_string)) {
                const char *s = json_object_get_string(v);
                good = *s >= '0' && *s <= '9' && parse_size(s, &value);
        } else if (json_object_is_type(v, json_type_int)) {
                value = json_object_get_uint64(v);
                good = json_object_get_int64(v) >= 0;
        }
        if (good && value >= minimum && value <= maximum) {
                *ret = value;
                return 0;
        }

        format_size(minimum, least, sizeof(least));
        format_size(maximum, most, sizeof(most));
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

/* No empty, "." or ".." components, no slash at the end. */
static bool path_is_normalized(const char *path) {
        if (*path != '/')
                return false;
        while (*path == '/') {
                size_t length = strcspn(++path, "/");

                if (length == 0 || (length == 1 && path[0] == '.') || (length == 2 && path[0] == '.' && path[1] == '.'))
                        return false;
                path += length;
        }
        return true;
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

static bool parse_time_unit(const char *unit, size_t length, uint64_t *ret) {
        static const struct {
                const char *name;
                uint64_t usec;
        } units[] = {
                { "us", 1 }, { "usec", 1 }, { "ms", USEC_PER_MSEC }, { "msec", USEC_PER_MSEC },
                { "", USEC_PER_SEC }, { "s", USEC_PER_SEC }, { "sec", USEC_PER_SEC }, { "second", USEC_PER_SEC },
                { "seconds", USEC_PER_SEC }, { "m", 60 * USEC_PER_SEC }, { "min", 60 * USEC_PER_SEC },
                { "minute", 60 * USEC_PER_SEC }, { "minutes", 60 * USEC_PER_SEC }, { "h", 3600 * USEC_PER_SEC },
                { "hr", 3600 * USEC_PER_SEC }, { "hour", 3600 * USEC_PER_SEC }, { "hours", 3600 * USEC_PER_SEC },
                { "d", 86400 * USEC_PER_SEC }, { "day", 86400 * USEC_PER_SEC }, { "days", 86400 * USEC_PER_SEC },
        };

        for (size_t i = 0; i < ELEMENTSOF(units); i++)
                if (strlen(units[i].name) == length && strncmp(units[i].name, unit, length) == 0) {
                        *ret = units[i].usec;
                        return true;
                }
        return false;
}

/* "1min 30s", "90", "500ms": integers with units, added up (systemd.time(7), without fractions). */
static bool parse_time(const char *s, uint64_t *ret) {
        uint64_t sum = 0;

        s += strspn(s, " ");
        if (*s == 0)
                return false;
        while (*s) {
                uint64_t value = 0, unit;
                size_t length;

                if (*s < '0' || *s > '9')
                        return false;
                for (; *s >= '0' && *s <= '9'; s++)
                        if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
                                __builtin_add_overflow(value, (uint64_t) (*s - '0'), &value))
                                return false;
                s += strspn(s, " ");
                length = strspn(s, "abcdefghijklmnopqrstuvwxyz");
                if (!parse_time_unit(s, length, &unit))
                        return false;
                s += length;
                s += strspn(s, " ");
                if (__builtin_mul_overflow(value, unit, &value) || __builtin_add_overflow(sum, value, &sum))
                        return false;
        }
        *ret = sum;
        return true;
}

int definition_take_time(const DefinitionCheck *c, const char *pointer, json_object *v, uint64_t maximum, uint64_t *ret) {
        uint64_t value = 0;
        bool good = false;

        if (json_object_is_type(v, json_type_string))
                good = parse_time(json_object_get_string(v), &value);
        else if (json_object_is_type(v, json_type_int) && json_object_get_int64(v) >= 0)
                good = !__builtin_mul_overflow(json_object_get_uint64(v), USEC_PER_SEC, &value);
        if (!good || value > maximum)
                return definition_refuse(c, pointer, "a time of at most %" PRIu64 " seconds, as an integer or as in \"1min 30s\"",
                        maximum / USEC_PER_SEC);
        *ret = value;
        return 0;
}
