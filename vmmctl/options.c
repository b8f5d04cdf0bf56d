/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The options, in one table: what getopt takes, what the help shows, what is passed on to another host. */

#include <getopt.h>

#include "config.h"
#include "output.h"
#include "parse.h"

typedef int (*OptionParser)(const char *value, Options *o);

typedef struct OptionEntry {
        const char *name;
        char letter;       /* 0 where there is none */
        const char *value;  /* as help shows it; NULL where it takes none */
        unsigned bit;       /* OptionBit; 0 for those that every command takes */
        OptionParser parse; /* NULL where the bit says all */
        const char *description;
        bool optional;      /* the value may be left out */
} OptionEntry;

static int parse_quiet(const char *value, Options *o) {
        o->quiet = true;
        return 0;
}

static int parse_no_ask_password(const char *value, Options *o) {
        o->no_ask_password = true;
        return 0;
}

static int parse_json(const char *value, Options *o) {
        if (!value)
                o->json = JSON_AUTO;
        else if (streq(value, "pretty"))
                o->json = JSON_PRETTY;
        else if (streq(value, "short"))
                o->json = JSON_SHORT;
        else if (streq(value, "off"))
                o->json = JSON_OFF;
        else
                return -EINVAL;
        return 0;
}

/* A name that ssh(1) would take for an option, or as none, never reaches it. */
static int parse_host(const char *value, Options *o) {
        const char *at = strrchr(value, '@');

        if (*value == 0 || *value == '-' || (at && (at[1] == 0 || at[1] == '-' || at == value)))
                return -EINVAL;
        o->host = value;
        return 0;
}

static int parse_root(const char *value, Options *o) {
        o->root = value;
        return 0;
}

static int parse_runtime_directory(const char *value, Options *o) {
        o->runtime_directory = value;
        return 0;
}

static int parse_timeout(const char *value, Options *o) {
        return parse_time(value, &o->timeout_usec);
}

/* "none", or a control character as ^X or as itself. */
static int parse_escape(const char *value, Options *o) {
        if (streq(value, "none"))
                o->escape = ESCAPE_NONE;
        else if (value[0] == '^' && value[1] >= '@' && value[1] <= '_' && value[2] == 0)
                o->escape = value[1] - '@';
        else if (value[0] == '^' && value[1] >= 'a' && value[1] <= 'z' && value[2] == 0)
                o->escape = value[1] - 'a' + 1;
        else if (value[0] > 0 && value[0] < 0x20 && value[1] == 0)
                o->escape = (unsigned char) value[0];
        else
                return -EINVAL;
        return 0;
}

static int parse_device(const char *value, Options *o) {
        o->device = value;
        return 0;
}

static int parse_port(const char *value, Options *o) {
        o->port = value;
        return 0;
}

static int parse_directory(const char *value, Options *o) {
        o->directory = value;
        return *value ? 0 : -EINVAL;
}

static int parse_hold(const char *value, Options *o) {
        return parse_time(value, &o->hold_usec);
}

static int parse_intervals(const char *value, Options *o) {
        o->intervals = value;
        return 0;
}

static int parse_refresh(const char *value, Options *o) {
        return parse_time(value, &o->refresh_usec);
}

static int parse_report(const char *value, Options *o) {
        return parse_time(value, &o->report_usec);
}

static int parse_filter(const char *value, Options *o) {
        o->filter = value;
        return 0;
}

static int parse_statistics(const char *value, Options *o) {
        return parse_time(value, &o->statistics_usec);
}

static const OptionEntry entries[] = {
        { "help", 'h', NULL, 0, NULL, "Show this help" },
        { "version", 0, NULL, 0, NULL, "Show the version" },
        { "host", 'H', "[USER@]HOST", 0, parse_host, "Run the command on that host, by ssh" },
        { "json", 0, "pretty|short|off", 0, parse_json, "Print JSON", true },
        { "quiet", 'q', NULL, 0, parse_quiet, "Print no headings and no confirmations" },
        { "no-ask-password", 0, NULL, 0, parse_no_ask_password, "Do not ask for authorization" },
        { "runtime-directory", 0, "PATH", 0, parse_runtime_directory, "Where the control sockets are (default /run/vmm)" },
        { "root", 0, "PATH", OPTION_ROOT, parse_root, "verify, list, status: look for definitions below PATH" },
        { "force", 'f', NULL, OPTION_FORCE, NULL, "stop: cut the power; detach: pull it out: without asking the guest" },
        { "timeout", 0, "TIME", OPTION_TIMEOUT, parse_timeout, "stop, balloon --wait, attach, detach: how long the guest may take" },
        { "full", 0, NULL, OPTION_FULL, NULL, "pause, resume: the devices, too" },
        { "escape", 0, "none|^X", OPTION_ESCAPE, parse_escape,
                "console: what leaves when pressed three times within 1 s (default ^])" },
        { "port", 0, "NAME", OPTION_PORT, parse_port, "console: one of its ports that have names" },
        { "hold", 0, "TIME", OPTION_HOLD, parse_hold, "send-key: how long (default 50ms, at most 1min)" },
        { "stop", 0, NULL, OPTION_STOP, NULL, "snapshot take: leave the machine stopped" },
        { "compress", 0, NULL, OPTION_COMPRESS, NULL, "snapshot take: keep the memory in less room, which takes longer" },
        { "directory", 0, "PATH", OPTION_DIRECTORY, parse_directory, "snapshot: where they are (default /var/lib/vmm/snapshots)" },
        { "device", 0, "NAME", OPTION_DEVICE, parse_device, "balloon, send-key: which one, where there are several" },
        { "wait", 0, NULL, OPTION_WAIT, NULL, "balloon: wait until the guest has got there" },
        { "stats", 0, NULL, OPTION_STATS, NULL, "balloon: what the guest says about its memory" },
        { "working-set", 0, NULL, OPTION_WORKING_SET, NULL, "balloon: how old the guest's memory is" },
        { "intervals", 0, "TIME,...", OPTION_INTERVALS, parse_intervals,
                "balloon --working-set: set the ages that divide it" },
        { "refresh-threshold", 0, "TIME", OPTION_REFRESH, parse_refresh,
                "With --intervals: least time between refreshes (default 1s)" },
        { "report-threshold", 0, "TIME", OPTION_REPORT, parse_report,
                "With --intervals: least time between reports (default 1s)" },
        { "hint", 0, NULL, OPTION_HINT, NULL, "balloon: take the pages that are free right now" },
        { "follow", 0, NULL, OPTION_FOLLOW, NULL, "events: do not end before the machine does" },
        { "filter", 0, "TYPE,...", OPTION_FILTER, parse_filter, "events: only these" },
        { "statistics", 0, "TIME", OPTION_STATISTICS, parse_statistics,
                "events: the guest's memory statistics, this often" },
        { "dtb", 0, NULL, OPTION_DTB, NULL, "fdt: compiled, as the guest got it" },
        { "prometheus", 0, NULL, OPTION_PROMETHEUS, NULL, "metrics: in Prometheus' text format" },
};

/* What getopt_long() returns for the long form of entry i. */
#define LONG_BASE 0x100

const char *option_name(OptionBit bit) {
        for (size_t i = 0; i < ELEMENTSOF(entries); i++)
                if (entries[i].bit == (unsigned) bit)
                        return entries[i].name;
        return "?";
}

void options_print_help(void) {
        (void) printf("\n%sOptions:%s\n", color(COLOR_BOLD), color_end());
        for (size_t i = 0; i < ELEMENTSOF(entries); i++) {
                const OptionEntry *e = &entries[i];
                int width;

                (void) (e->letter ? printf("  -%c ", e->letter) : printf("     "));
                width = printf("--%s%s%s%s%s", e->name, e->optional ? "[" : "", e->value ? "=" : "", e->value ?: "",
                        e->optional ? "]" : "");
                (void) printf("%*s %s\n", 31 - width, "", e->description);
        }
}

static void make_getopt_tables(struct option *long_options, char *letters) {
        for (size_t i = 0; i < ELEMENTSOF(entries); i++) {
                const OptionEntry *e = &entries[i];

                long_options[i] = (struct option) {
                        .name = e->name,
                        .has_arg = !e->value ? no_argument : e->optional ? optional_argument : required_argument,
                        .val = LONG_BASE + (int) i,
                };
                if (e->letter) {
                        *letters++ = e->letter;
                        if (e->value)
                                *letters++ = ':';
                }
        }
        *letters = 0;
}

static const OptionEntry *find_entry(int c) {
        for (size_t i = 0; i < ELEMENTSOF(entries); i++)
                if (c == LONG_BASE + (int) i || (entries[i].letter && c == entries[i].letter))
                        return &entries[i];
        return NULL;
}

/* For the vmmctl of another host. */
static int remember(Options *o, const OptionEntry *e, const char *value) {
        char **grown, *argument;

        grown = reallocarray(o->arguments, o->n_arguments + 1, sizeof(char *));
        if (!grown)
                return -ENOMEM;
        o->arguments = grown;
        if (asprintf(&argument, "--%s%s%s", e->name, value ? "=" : "", value ?: "") < 0)
                return -ENOMEM;
        o->arguments[o->n_arguments++] = argument;
        return 0;
}

static int take_option(const OptionEntry *e, const char *value, Options *o) {
        int r;

        r = e->parse ? e->parse(value, o) : 0;
        if (r < 0) {
                complain("--%s: '%s' is not what it takes; see vmmctl --help.", e->name, value);
                return r;
        }
        o->given |= e->bit;
        return e->parse == parse_host ? 0 : remember(o, e, value);
}

int options_parse(int argc, char **argv, Options *ret) {
        struct option long_options[ELEMENTSOF(entries) + 1] = {};
        char letters[2 * ELEMENTSOF(entries) + 1];
        int c, r;

        *ret = (Options) {
                .timeout_usec = UINT64_MAX,
                .escape = ESCAPE_DEFAULT,
                .refresh_usec = USEC_PER_SEC,
                .report_usec = USEC_PER_SEC,
                .runtime_directory = getenv("VMM_RUNTIME_DIRECTORY") ?: RUNTIME_DIRECTORY,
        };
        make_getopt_tables(long_options, letters);
        while ((c = getopt_long(argc, argv, letters, long_options, NULL)) >= 0) {
                const OptionEntry *e = find_entry(c);

                if (!e)
                        return -EINVAL;
                if (e->letter == 'h') {
                        (void) command_help(ret, NULL, 0);
                        return 0;
                }
                if (streq(e->name, "version")) {
                        (void) puts("vmmctl " PROJECT_VERSION);
                        return 0;
                }
                r = take_option(e, optarg, ret);
                if (r < 0)
                        return r;
        }
        return 1;
}

void options_done(Options *o) {
        for (size_t i = 0; i < o->n_arguments; i++)
                free(o->arguments[i]);
        free(o->arguments);
        *o = (Options) {};
}
