/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdio.h>

#include "unit-name.h"

static bool is_plain(char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == ':' || c == '_' ||
                c == '.';
}

char *unit_name_escape(const char *s) {
        static const char digits[] = "0123456789abcdef";
        char *escaped = malloc(strlen(s) * 4 + 1), *t = escaped;

        if (!escaped)
                return NULL;
        for (size_t i = 0; s[i] != 0; i++) {
                unsigned char c = (unsigned char) s[i];

                if (c == '/')
                        *t++ = '-';
                else if (is_plain((char) c) && !(c == '.' && i == 0))
                        *t++ = (char) c;
                else {
                        *t++ = '\\';
                        *t++ = 'x';
                        *t++ = digits[c >> 4];
                        *t++ = digits[c & 0xf];
                }
        }
        *t = 0;
        return escaped;
}

char *device_unit_name(const char *machine, const char *device, const char *suffix) {
        _cleanup_free_ char *path = NULL, *instance = NULL;
        char *name;

        if (asprintf(&path, "%s/%s", machine, device) < 0) {
                path = NULL;
                return NULL;
        }
        instance = unit_name_escape(path);
        if (!instance || asprintf(&name, "vmm-device@%s.%s", instance, suffix) < 0)
                return NULL;
        return name;
}

char *machine_unit_name(const char *machine, const char *suffix) {
        char *name;

        return asprintf(&name, "vmm@%s.%s", machine, suffix) < 0 ? NULL : name;
}

char *machine_slice_name(const char *machine) {
        _cleanup_free_ char *escaped = unit_name_escape(machine);
        char *name;

        if (!escaped || asprintf(&name, "vmm-%s.slice", escaped) < 0)
                return NULL;
        return name;
}

/* FNV-1a, 64 bits, folded to 40. Nobody gains by a collision: whoever writes definitions is root. */
static uint64_t hash_name(const char *s) {
        uint64_t h = UINT64_C(0xcbf29ce484222325);

        for (; *s; s++)
                h = (h ^ (uint8_t) *s) * UINT64_C(0x100000001b3);
        return (h ^ (h >> 40)) & UINT64_C(0xffffffffff);
}

char *unit_user_name(const char *machine, const char *device) {
        _cleanup_free_ char *path = NULL;
        char readable[17], *name;
        size_t n = 0;

        if (asprintf(&path, "%s%s%s", machine, device ? "/" : "", device ? device : "") < 0) {
                path = NULL;
                return NULL;
        }
        /* What useradd(8) would take. */
        for (const char *p = path; *p && n < sizeof(readable) - 1; p++)
                readable[n++] = *p != '.' && *p != ':' && is_plain(*p) ? *p : '-';
        readable[n] = 0;
        return asprintf(&name, "vmm-%s-%010" PRIx64, readable, hash_name(path)) < 0 ? NULL : name;
}
