/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the files of vmmctl share: options, the table of commands, exit codes. One file per group of commands. */

#include "util.h"

/* vmmctl(1), "Exit status" */
enum {
        STATUS_OK = 0,
        STATUS_FAILED = 1,
        STATUS_USAGE = 2,
        STATUS_NOT_RUNNING = 3,
        STATUS_UNKNOWN_MACHINE = 4,
};

typedef enum JsonMode {
        JSON_OFF,
        JSON_AUTO, /* --json without a mode: for people, but a line each where there is one object after another */
        JSON_PRETTY,
        JSON_SHORT,
} JsonMode;

#define RUNTIME_DIRECTORY "/run/vmm"

#define ESCAPE_NONE (-1)
#define ESCAPE_DEFAULT 0x1d /* ^] */

/* The options that only some commands take. */
typedef enum OptionBit {
        OPTION_FORCE = 1 << 0,
        OPTION_TIMEOUT = 1 << 1,
        OPTION_ESCAPE = 1 << 2,
        OPTION_ROOT = 1 << 3,
        OPTION_FULL = 1 << 4,
        OPTION_DEVICE = 1 << 5,
        OPTION_WAIT = 1 << 6,
        OPTION_STATS = 1 << 7,
        OPTION_WORKING_SET = 1 << 8,
        OPTION_HINT = 1 << 9,
        OPTION_INTERVALS = 1 << 10,
        OPTION_REFRESH = 1 << 11,
        OPTION_REPORT = 1 << 12,
        OPTION_FOLLOW = 1 << 13,
        OPTION_FILTER = 1 << 14,
        OPTION_STATISTICS = 1 << 15,
        OPTION_PROMETHEUS = 1 << 16,
        OPTION_PORT = 1 << 17,
        OPTION_HOLD = 1 << 18,
        OPTION_COMPRESS = 1 << 19,
        OPTION_STOP = 1 << 20,
        OPTION_DIRECTORY = 1 << 21,
        OPTION_DTB = 1 << 22,
} OptionBit;

typedef struct Options {
        unsigned given; /* mask of OptionBit; those without a value have no other member */
        JsonMode json;
        bool quiet;
        bool no_ask_password;
        uint64_t timeout_usec; /* UINT64_MAX where not given */
        const char *host;      /* NULL is this one */
        const char *root;
        const char *runtime_directory;
        int escape;
        const char *device;
        const char *port;
        const char *directory; /* of snapshots; NULL is the usual one */
        const char *intervals, *filter; /* lists with commas */
        uint64_t refresh_usec, report_usec, statistics_usec, hold_usec;

        char **arguments; /* every option but --host, in its long form: for the vmmctl of that host */
        size_t n_arguments;
} Options;

/* Returns 1 where there is a command to run, which `optind` is the index of; 0 where all is done, negative where the usage is wrong. options.c */
int options_parse(int argc, char **argv, Options *ret);
void options_done(Options *o);
void options_print_help(void);
/* The long name of an option that is one bit. */
const char *option_name(OptionBit bit);
static inline bool option_given(const Options *o, OptionBit bit) {
        return o->given & bit;
}

/* Runs the same on another host, by ssh. Returns an exit code only where that fails. remote.c */
int remote_run(const Options *o, char **arguments, size_t n);

/* Returns an exit code; what went wrong was said already. `arguments` are those behind the command's name. */
typedef int (*CommandFunction)(const Options *o, char **arguments, size_t n);

typedef enum CommandGroup { GROUP_MACHINE, GROUP_GUEST, GROUP_DEVICE, GROUP_WATCH, _GROUP_MAX } CommandGroup;

typedef struct Command {
        const char *name;
        const char *alias;     /* the name that crosvm has for it, or people think of first; NULL where there is none */
        CommandGroup group;
        const char *arguments; /* as help shows them */
        size_t min, max;
        CommandFunction run;
        unsigned options;      /* mask of OptionBit */
        const char *description;
} Command;

extern const Command commands[]; /* ends with an entry whose name is NULL. commands.c */
/* Underscores are as good as dashes. */
const Command *command_find(const char *name);

int command_start(const Options *o, char **arguments, size_t n);        /* units.c */
int command_stop(const Options *o, char **arguments, size_t n);         /* units.c */
int command_reboot(const Options *o, char **arguments, size_t n);       /* control.c */
int command_reset(const Options *o, char **arguments, size_t n);        /* control.c */
int command_pause(const Options *o, char **arguments, size_t n);        /* control.c */
int command_resume(const Options *o, char **arguments, size_t n);       /* control.c */
int command_reload(const Options *o, char **arguments, size_t n);       /* control.c */
int command_power_button(const Options *o, char **arguments, size_t n); /* control.c */
int command_sleep_button(const Options *o, char **arguments, size_t n); /* control.c */
int command_nmi(const Options *o, char **arguments, size_t n);          /* control.c */
int command_describe(const Options *o, char **arguments, size_t n);     /* control.c */
int command_fdt(const Options *o, char **arguments, size_t n);          /* fdt.c */
int command_disk(const Options *o, char **arguments, size_t n);         /* control.c */
int command_resize(const Options *o, char **arguments, size_t n);       /* control.c */
int command_log_level(const Options *o, char **arguments, size_t n);    /* control.c */
int command_status(const Options *o, char **arguments, size_t n);       /* status.c */
int command_list(const Options *o, char **arguments, size_t n);         /* list.c */
int command_attach(const Options *o, char **arguments, size_t n);       /* attach.c */
int command_detach(const Options *o, char **arguments, size_t n);       /* attach.c */
int command_send_key(const Options *o, char **arguments, size_t n);     /* send-key.c */
int command_console(const Options *o, char **arguments, size_t n);      /* console.c */
int command_verify(const Options *o, char **arguments, size_t n);       /* verify.c */
int command_balloon(const Options *o, char **arguments, size_t n);      /* balloon.c */
int command_balloon_stats(const Options *o, char **arguments, size_t n); /* balloon.c */
int command_balloon_ws(const Options *o, char **arguments, size_t n);   /* balloon.c */
int command_snapshot(const Options *o, char **arguments, size_t n);     /* snapshot.c */
int command_events(const Options *o, char **arguments, size_t n);       /* events.c */
int command_metrics(const Options *o, char **arguments, size_t n);      /* metrics.c */
int command_help(const Options *o, char **arguments, size_t n);         /* commands.c */
