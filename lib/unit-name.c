/* SPDX-License-Identifier: LGPL-2.1-or-later */

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
