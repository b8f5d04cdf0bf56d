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

typedef enum JsonMode { JSON_OFF, JSON_PRETTY, JSON_SHORT } JsonMode;

#define ESCAPE_NONE (-1)
#define ESCAPE_DEFAULT 0x1d /* ^] */

typedef struct Options {
        JsonMode json;
        bool quiet;
        bool no_ask_password;
        bool force;
        uint64_t timeout_usec; /* UINT64_MAX where not given */
        const char *root;
        const char *runtime_directory;
        int escape;
} Options;

/* Returns an exit code; what went wrong was said already. `arguments` are those behind the command's name. */
typedef int (*CommandFunction)(const Options *o, char **arguments, size_t n);

typedef struct Command {
        const char *name;
        const char *arguments; /* as help shows them */
        size_t min, max;
        CommandFunction run;
        const char *description;
} Command;

int command_start(const Options *o, char **arguments, size_t n);       /* units.c */
int command_stop(const Options *o, char **arguments, size_t n);        /* units.c */
int command_reset(const Options *o, char **arguments, size_t n);       /* control.c */
int command_pause(const Options *o, char **arguments, size_t n);       /* control.c */
int command_resume(const Options *o, char **arguments, size_t n);      /* control.c */
int command_power_button(const Options *o, char **arguments, size_t n); /* control.c */
int command_describe(const Options *o, char **arguments, size_t n);    /* control.c */
int command_status(const Options *o, char **arguments, size_t n);      /* status.c */
int command_list(const Options *o, char **arguments, size_t n);        /* list.c */
int command_console(const Options *o, char **arguments, size_t n);     /* console.c */
int command_verify(const Options *o, char **arguments, size_t n);      /* verify.c */
