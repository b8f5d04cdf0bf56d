/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmctl: a table of commands, and the options they share. */

#include <getopt.h>
#include <locale.h>

#include "config.h"
#include "output.h"

static int command_help(const Options *o, char **arguments, size_t n);

static const Command commands[] = {
        { "start", "NAME...", 1, SIZE_MAX, command_start, "Start machines; reload the units first where definitions are newer" },
        { "stop", "NAME...", 1, SIZE_MAX, command_stop, "Stop machines: by the power button, and in the end by force" },
        { "reset", "NAME...", 1, SIZE_MAX, command_reset, "Put machines back to power-on, without asking the guest" },
        { "pause", "NAME...", 1, SIZE_MAX, command_pause, "Stop the vCPUs" },
        { "resume", "NAME...", 1, SIZE_MAX, command_resume, "Let the vCPUs run again" },
        { "power-button", "NAME...", 1, SIZE_MAX, command_power_button, "Press the power button" },
        { "status", "[NAME...]", 0, SIZE_MAX, command_status, "Show machines with their devices, and what went wrong" },
        { "list", "", 0, 0, command_list, "List all machines" },
        { "console", "NAME [DEVICE]", 1, 2, command_console, "Attach to a console" },
        { "verify", "NAME|FILE...", 1, SIZE_MAX, command_verify, "Check definitions without starting anything" },
        { "describe", "NAME", 1, 1, command_describe, "Show what the running machine says of itself, as JSON" },
        { "help", "", 0, SIZE_MAX, command_help, "Show this help" },
};

static int command_help(const Options *o, char **arguments, size_t n) {
        (void) printf("vmmctl [OPTIONS...] COMMAND ...\n\n"
                      "%sControl virtual machines that run as systemd services.%s\n\nCommands:\n",
                color(COLOR_BOLD), color_end());
        for (size_t i = 0; i < ELEMENTSOF(commands); i++) {
                int width = 24 - (int) strlen(commands[i].name) - 1;
                (void) printf("  %s %-*s %s\n", commands[i].name, width, commands[i].arguments, commands[i].description);
        }
        (void) printf("\nOptions:\n"
                      "  -h --help                 Show this help\n"
                      "     --version              Show the version\n"
                      "     --json=pretty|short|off  Print JSON\n"
                      "  -q --quiet                Print no headings and no confirmations\n"
                      "  -f --force                stop: cut the power instead of asking the guest\n"
                      "     --timeout=SECONDS      stop: how long the guest may take\n"
                      "     --escape=none|^X       console: what leaves when pressed three times within 1 s (default ^])\n"
                      "     --no-ask-password      Do not ask for authorization\n"
                      "     --root=PATH            verify, list, status: look for definitions below PATH\n"
                      "     --runtime-directory=PATH  Where the control sockets are (default /run/vmm)\n"
                      "\nSee vmmctl(1) for details.\n");
        return STATUS_OK;
}

static int print_version(void) {
        (void) puts("vmmctl " PROJECT_VERSION);
        return STATUS_OK;
}

static int parse_json_mode(const char *text, JsonMode *ret) {
        if (streq(text, "pretty"))
                *ret = JSON_PRETTY;
        else if (streq(text, "short"))
                *ret = JSON_SHORT;
        else if (streq(text, "off"))
                *ret = JSON_OFF;
        else
                return -EINVAL;
        return 0;
}

static int parse_seconds(const char *text, uint64_t *ret) {
        uint64_t seconds = 0;

        if (*text == 0)
                return -EINVAL;
        for (; *text; text++) {
                if (*text < '0' || *text > '9')
                        return -EINVAL;
                seconds = seconds * 10 + (uint64_t) (*text - '0');
                if (seconds > UINT32_MAX)
                        return -ERANGE;
        }
        *ret = seconds * USEC_PER_SEC;
        return 0;
}

/* "none", or a control character as ^X or as itself. */
static int parse_escape(const char *text, int *ret) {
        if (streq(text, "none"))
                *ret = ESCAPE_NONE;
        else if (text[0] == '^' && text[1] >= '@' && text[1] <= '_' && text[2] == 0)
                *ret = text[1] - '@';
        else if (text[0] == '^' && text[1] >= 'a' && text[1] <= 'z' && text[2] == 0)
                *ret = text[1] - 'a' + 1;
        else if (text[0] > 0 && text[0] < 0x20 && text[1] == 0)
                *ret = (unsigned char) text[0];
        else
                return -EINVAL;
        return 0;
}

enum { ARG_VERSION = 0x100, ARG_JSON, ARG_TIMEOUT, ARG_ESCAPE, ARG_NO_ASK_PASSWORD, ARG_ROOT, ARG_RUNTIME_DIRECTORY };

static int bad_value(const char *option, const char *value) {
        complain("--%s: '%s' is not what it takes; see vmmctl --help.", option, value);
        return -EINVAL;
}

static int parse_option(int c, Options *o) {
        switch (c) {
        case 'q':
                o->quiet = true;
                return 0;
        case 'f':
                o->force = true;
                return 0;
        case ARG_NO_ASK_PASSWORD:
                o->no_ask_password = true;
                return 0;
        case ARG_ROOT:
                o->root = optarg;
                return 0;
        case ARG_RUNTIME_DIRECTORY:
                o->runtime_directory = optarg;
                return 0;
        case ARG_JSON:
                return parse_json_mode(optarg, &o->json) < 0 ? bad_value("json", optarg) : 0;
        case ARG_TIMEOUT:
                return parse_seconds(optarg, &o->timeout_usec) < 0 ? bad_value("timeout", optarg) : 0;
        case ARG_ESCAPE:
                return parse_escape(optarg, &o->escape) < 0 ? bad_value("escape", optarg) : 0;
        default:
                return -EINVAL;
        }
}

/* Returns 1 where there is a command to run, 0 where all is done, negative where the usage is wrong. */
static int parse_options(int argc, char **argv, Options *o) {
        static const struct option long_options[] = {
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, ARG_VERSION },
                { "json", required_argument, NULL, ARG_JSON },
                { "quiet", no_argument, NULL, 'q' },
                { "force", no_argument, NULL, 'f' },
                { "timeout", required_argument, NULL, ARG_TIMEOUT },
                { "escape", required_argument, NULL, ARG_ESCAPE },
                { "no-ask-password", no_argument, NULL, ARG_NO_ASK_PASSWORD },
                { "root", required_argument, NULL, ARG_ROOT },
                { "runtime-directory", required_argument, NULL, ARG_RUNTIME_DIRECTORY },
                {},
        };
        int c, r;

        while ((c = getopt_long(argc, argv, "hqf", long_options, NULL)) >= 0) {
                if (c == 'h')
                        return command_help(o, NULL, 0);
                if (c == ARG_VERSION)
                        return print_version();
                r = parse_option(c, o);
                if (r < 0)
                        return r;
        }
        return 1;
}

static const Command *find_command(const char *name) {
        for (size_t i = 0; i < ELEMENTSOF(commands); i++)
                if (streq(commands[i].name, name))
                        return &commands[i];
        return NULL;
}

int main(int argc, char **argv) {
        Options o = { .timeout_usec = UINT64_MAX, .escape = ESCAPE_DEFAULT };
        const Command *command;
        size_t n;
        int r;

        /* For the names of days and months; numbers stay as they are. */
        (void) setlocale(LC_TIME, "");
        (void) setlocale(LC_CTYPE, "");
        o.runtime_directory = getenv("VMM_RUNTIME_DIRECTORY") ?: "/run/vmm";

        r = parse_options(argc, argv, &o);
        if (r <= 0)
                return r < 0 ? STATUS_USAGE : STATUS_OK;
        if (optind >= argc) {
                complain("Which command? See vmmctl --help.");
                return STATUS_USAGE;
        }
        command = find_command(argv[optind]);
        if (!command) {
                complain("There is no command '%s'; see vmmctl --help.", argv[optind]);
                return STATUS_USAGE;
        }
        n = (size_t) (argc - optind - 1);
        if (n < command->min || n > command->max) {
                complain("Usage: vmmctl %s %s", command->name, command->arguments);
                return STATUS_USAGE;
        }
        r = command->run(&o, argv + optind + 1, n);
        if (fflush(stdout) != 0 || ferror(stdout)) {
                complain("Cannot write to standard output: %s", strerror(errno));
                return STATUS_FAILED;
        }
        return r;
}
