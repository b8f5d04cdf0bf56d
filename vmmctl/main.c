/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmctl: options, then one of the commands of commands.c. */

#include <getopt.h>
#include <locale.h>

#include "output.h"

/* An option that the command would do nothing about is a mistake of whoever typed it. */
static int check_options(const Options *o, const Command *command) {
        unsigned left = o->given & ~command->options;

        if (left == 0)
                return 0;
        complain("'%s' does not take --%s; see vmmctl --help.", command->name, option_name(left & -left));
        return -EINVAL;
}

static int run(const Options *o, char **arguments, size_t n) {
        const Command *command;

        if (n == 0) {
                complain("Which command? See vmmctl --help.");
                return STATUS_USAGE;
        }
        command = command_find(arguments[0]);
        if (!command) {
                complain("There is no command '%s'; see vmmctl --help.", arguments[0]);
                return STATUS_USAGE;
        }
        if (n - 1 < command->min || n - 1 > command->max) {
                complain("Usage: vmmctl %s %s", command->name, command->arguments);
                return STATUS_USAGE;
        }
        if (check_options(o, command) < 0)
                return STATUS_USAGE;
        if (o->host)
                return remote_run(o, arguments, n);
        return command->run(o, arguments + 1, n - 1);
}

int main(int argc, char **argv) {
        _cleanup_(options_done) Options o = {};
        int r;

        /* For the names of days and months; numbers stay as they are. */
        (void) setlocale(LC_TIME, "");
        (void) setlocale(LC_CTYPE, "");
        output_begin();

        r = options_parse(argc, argv, &o);
        if (r < 0)
                return STATUS_USAGE;
        r = r == 0 ? STATUS_OK : run(&o, argv + optind, (size_t) (argc - optind));
        if ((fflush(stdout) != 0 || ferror(stdout)) && !output_is_gone()) {
                complain("Cannot write to standard output: %s", strerror(errno));
                return STATUS_FAILED;
        }
        return r;
}
