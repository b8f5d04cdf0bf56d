/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Everything vmmctl prints: errors on standard error, results on standard output as text for people or as JSON. */

#include <stdio.h>

#include "json-util.h"
#include "vmmctl.h"

/* Once, first of all. */
void output_begin(void);
/* Whether whoever read our standard output has seen enough: no error, and nothing that a pipeline should fail for. */
bool output_is_gone(void);

/* "vmmctl: …" on standard error. */
void complain(const char *format, ...) _printf_(1, 2);
/* What others said, fit for a terminal: control characters, the escape among them, become question marks. Changes and returns `text`; NULL is NULL. */
char *make_printable(char *text);

/* Prints the value in the mode that was asked for; in JSON_OFF as JSON_PRETTY. */
int print_json(const Options *o, json_object *value);

typedef enum Color { COLOR_NONE, COLOR_GREEN, COLOR_YELLOW, COLOR_RED, COLOR_GREY, COLOR_BOLD } Color;
/* Escape sequences; empty where standard output is no terminal, or $NO_COLOR is set, or $TERM is "dumb". */
const char *color(Color c);
const char *color_end(void);
/* Of a machine's, a device's or a unit's state. */
Color color_of_state(const char *state);

/* The formatted text; the caller frees it, NULL when out of memory. */
char *format_bytes(uint64_t bytes);           /* "512 MiB" */
char *format_time(uint64_t realtime_usec);    /* "Sun 2026-11-22 02:03:11 UTC" */
char *format_ago(uint64_t realtime_usec);     /* "5min 3s" until now */

/* A table: cells are added row by row, then printed with columns as wide as they need to be. */
typedef struct Table {
        size_t n_columns;
        char **cells;
        Color *colors;
        size_t n_cells;
        bool failed; /* out of memory */
} Table;
void table_done(Table *t);
void table_add(Table *t, Color c, const char *format, ...) _printf_(3, 4);
int table_print(const Table *t, const char *indent);

/* What became of each machine a command was for: as text at once (errors only), as one JSON array at the end. */
typedef struct Outcomes {
        const Options *options;
        json_object *array; /* NULL unless JSON was asked for */
        int status;         /* the exit code so far */
} Outcomes;
int outcomes_begin(Outcomes *outcomes, const Options *o);
/* `problem` NULL is success. `status` is the exit code this one asks for; the first that is not 0 wins. */
void outcomes_add(Outcomes *outcomes, const char *machine, int status, const char *problem);
/* Prints the array, frees, and returns the exit code. */
int outcomes_end(Outcomes *outcomes);
