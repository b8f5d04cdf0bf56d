/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A guest's byte stream as lines fit for the journal: terminal sequences removed, everything unprintable shown as \xNN, invalid UTF-8 too.
 * Bounded: lines that are too long are cut in pieces. */

#include "util.h"

#define LINE_LOG_MAX 2048

typedef struct LineLog {
        char line[LINE_LOG_MAX];
        size_t length;
        void (*emit)(void *userdata, const char *line);
        void *userdata;
} LineLog;

void line_log_write(LineLog *l, const void *data, size_t length);
/* Emits an unfinished line, too: a prompt, for example. */
void line_log_flush(LineLog *l);

/* The printable form of `length` bytes; the caller frees it. NULL when out of memory. */
char *line_log_printable(const char *data, size_t length);
