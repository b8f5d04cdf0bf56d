/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* --host: the same command by the vmmctl of another host, over ssh. Everything that a guest can be asked for needs local file
 * descriptors or a local peer's credentials, so it is the program that goes there and not its calls. ssh passes on input, output and
 * exit status. */

#include "output.h"

/* ssh joins its arguments with blanks, and a shell over there takes them apart again: each is quoted so that it stays what it is. */
static char *quote(const char *s) {
        size_t n = 3;
        char *quoted, *p;

        for (const char *c = s; *c; c++)
                n += *c == '\'' ? 4 : 1;
        quoted = calloc(1, n);
        if (!quoted)
                return NULL;
        p = quoted;
        *p++ = '\'';
        for (; *s; s++)
                if (*s == '\'')
                        p = stpcpy(p, "'\\''");
                else
                        *p++ = *s;
        *p = '\'';
        return quoted;
}

/* The words behind "vmmctl", quoted, NULL-terminated. */
static int add_words(const Options *o, char **arguments, size_t n, char **words) {
        for (size_t i = 0; i < o->n_arguments; i++)
                if (!(*words++ = quote(o->arguments[i])))
                        return -ENOMEM;
        /* Whatever was an argument here is none of the options there. */
        if (!(*words++ = quote("--")))
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                if (!(*words++ = quote(arguments[i])))
                        return -ENOMEM;
        return 0;
}

int remote_run(const Options *o, char **arguments, size_t n) {
        /* Where somebody types at a console here, it has to be a terminal there. */
        bool terminal = command_find(arguments[0])->run == command_console && isatty(STDIN_FILENO) > 0;
        char **command = calloc(o->n_arguments + n + 7, sizeof(char *));
        size_t used = 0, fixed;
        int r = -ENOMEM;

        if (command) {
                command[used++] = (char *) "ssh";
                if (terminal)
                        command[used++] = (char *) "-t";
                command[used++] = (char *) "--";
                command[used++] = (char *) o->host;
                command[used++] = (char *) "vmmctl";
                fixed = used;
                r = add_words(o, arguments, n, command + used);
                if (r >= 0) {
                        (void) execvp("ssh", command);
                        r = -errno;
                }
                for (size_t i = fixed; command[i]; i++)
                        free(command[i]);
        }
        free(command);
        complain("Cannot run ssh: %s", strerror(-r));
        return STATUS_FAILED;
}
