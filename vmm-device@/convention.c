/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "convention.h"

#define PROGRAM "vmm-device-"

/* Features of vhost-user.json are options that the program takes. */
typedef struct Feature {
        const char *type, *feature;
        const char *option; /* theirs, */
        const char *ours;   /* and ours; what follows one follows the other */
} Feature;

static const Feature features[] = {
        { "block", "read-only", "--read-only", "--read-only=yes" },
        { "block", "blk-file", "--blk-file=", "--path=" },
        { "input", "evdev-path", "--evdev-path=", "--path=" },
};

const char *convention_type_of_program(const char *argv0) {
        const char *slash = argv0 ? strrchr(argv0, '/') : NULL;

        return argv0 ? startswith(slash ? slash + 1 : argv0, PROGRAM) : NULL;
}

bool convention_wants_capabilities(int argc, char **argv) {
        for (int i = 1; i < argc; i++)
                if (streq(argv[i], "--print-capabilities"))
                        return true;
        return false;
}

int convention_print_capabilities(const DeviceClass *class) {
        const char *separator = "";

        if (class->bus || class->queues_max == 0)
                return -EOPNOTSUPP;
        printf("{\n  \"type\": \"%s\",\n  \"features\": [", class->name);
        for (size_t i = 0; i < ELEMENTSOF(features); i++)
                if (streq(features[i].type, class->name)) {
                        printf("%s\n    \"%s\"", separator, features[i].feature);
                        separator = ",";
                }
        printf("%s]\n}\n", *separator ? "\n  " : "");
        return 1;
}

int convention_translate(const DeviceClass *class, const char *argument, char **ret) {
        for (size_t i = 0; i < ELEMENTSOF(features); i++) {
                const Feature *f = &features[i];
                const char *rest = streq(f->type, class->name) ? startswith(argument, f->option) : NULL;

                /* An option without a value is nothing but itself. */
                if (!rest || (*rest && f->option[strlen(f->option) - 1] != '='))
                        continue;
                if (asprintf(ret, "%s%s", f->ours, rest) < 0) {
                        *ret = NULL;
                        return -ENOMEM;
                }
                return 1;
        }
        return 0;
}
