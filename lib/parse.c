/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdio.h>

#include "parse.h"

static const char size_suffixes[] = "KMGT";

/* Digits; returns what follows them in *ret_rest. */
static int take_digits(const char *s, uint64_t *ret, const char **ret_rest) {
        uint64_t value = 0;
        bool fits = true;

        if (*s < '0' || *s > '9')
                return -EINVAL;
        for (; *s >= '0' && *s <= '9'; s++)
                fits = fits && !__builtin_mul_overflow(value, UINT64_C(10), &value) &&
                        !__builtin_add_overflow(value, (uint64_t) (*s - '0'), &value);
        *ret = value;
        *ret_rest = s;
        return fits ? 0 : -ERANGE;
}

int parse_unsigned(const char *s, uint64_t *ret) {
        const char *rest = NULL;
        uint64_t value;
        int r;

        r = take_digits(s, &value, &rest);
        if (rest && *rest)
                return -EINVAL;
        if (r >= 0)
                *ret = value;
        return r;
}

int parse_size(const char *s, uint64_t *ret) {
        const char *rest = NULL, *suffix;
        uint64_t value;
        int r;

        r = take_digits(s, &value, &rest);
        if (rest && *rest) {
                suffix = strchr(size_suffixes, *rest);
                if (!suffix || rest[1])
                        return -EINVAL;
                if (r >= 0 && __builtin_mul_overflow(value, UINT64_C(1024) << (10 * (suffix - size_suffixes)), &value))
                        r = -ERANGE;
        }
        if (r >= 0)
                *ret = value;
        return r;
}

void size_to_text(uint64_t size, char ret[SIZE_TEXT_MAX]) {
        unsigned i = 0;

        while (i < sizeof(size_suffixes) - 1 && size != 0 && size % 1024 == 0) {
                size /= 1024;
                i++;
        }
        (void) snprintf(ret, SIZE_TEXT_MAX, "%" PRIu64 "%.*s", size, i > 0, i > 0 ? size_suffixes + i - 1 : "");
}

static bool find_time_unit(const char *unit, size_t length, uint64_t *ret) {
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

int parse_time(const char *s, uint64_t *ret) {
        uint64_t sum = 0;

        s += strspn(s, " ");
        if (*s == 0)
                return -EINVAL;
        while (*s) {
                uint64_t value, unit;
                size_t length;
                int r;

                r = take_digits(s, &value, &s);
                if (r < 0)
                        return r;
                s += strspn(s, " ");
                length = strspn(s, "abcdefghijklmnopqrstuvwxyz");
                if (!find_time_unit(s, length, &unit))
                        return -EINVAL;
                s += length;
                s += strspn(s, " ");
                if (__builtin_mul_overflow(value, unit, &value) || __builtin_add_overflow(sum, value, &sum))
                        return -ERANGE;
        }
        *ret = sum;
        return 0;
}

bool path_is_normalized(const char *path) {
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
