/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Logging, for programs only: a function in lib/ or varlink/ returns an error and says nothing.
 *
 * Under systemd the message goes to the journal with the code location and, where given, a message id from
 * catalog-ids.h; elsewhere a line goes to standard error. What is set here is the one piece of global state in lib/. */

#include <stdarg.h>
#include <syslog.h>

#include "util.h"

/* Decides once where messages go ($JOURNAL_STREAM), and takes the level from $VMM_LOG_LEVEL (a name or 0..7).
 * Call before any sandbox: it looks for the journal. */
void log_open(const char *program);

/* Levels above this one (LOG_DEBUG is the highest) are dropped. */
void log_set_max_level(int level);
int log_get_max_level(void);
/* "err", "warning", "info", "debug", … or a digit; -EINVAL otherwise. */
int log_level_from_string(const char *s);

/* Extra journal fields for every message of this process, e.g. "VMM_MACHINE=demo". At most LOG_FIELDS_MAX; copied. */
#define LOG_FIELDS_MAX 4
void log_add_field(const char *assignment);
/* How many there are, and the fields. May be called by a signal's handler. */
size_t log_get_fields(const char *const **ret);

/* From now on, what is logged as an error goes to *slot, too, in place of what was there; it is the caller's. NULL ends that. For whoever has to tell
 * somebody else why something failed whose reason is only logged. */
void log_copy_errors(char **slot);

/* One message. `error` is 0 or a (negative or positive) errno: it becomes %m and the ERRNO= field. `message_id` is NULL or 32
 * hex digits. Returns -abs(error), so that `return log_error_errno(r, …)` reads well. */
int log_full(int level, int error, const char *message_id, const char *file, int line, const char *function,
        const char *format, ...) _printf_(7, 8);

#define log_full_errno(level, error, ...)                                                                      \
        log_full((level), (error), NULL, __FILE__, __LINE__, __func__, __VA_ARGS__)
#define log_error_errno(error, ...) log_full_errno(LOG_ERR, error, __VA_ARGS__)
#define log_warning_errno(error, ...) log_full_errno(LOG_WARNING, error, __VA_ARGS__)
#define log_debug_errno(error, ...) log_full_errno(LOG_DEBUG, error, __VA_ARGS__)
#define log_error(...) (void) log_full_errno(LOG_ERR, 0, __VA_ARGS__)
#define log_warning(...) (void) log_full_errno(LOG_WARNING, 0, __VA_ARGS__)
#define log_notice(...) (void) log_full_errno(LOG_NOTICE, 0, __VA_ARGS__)
#define log_info(...) (void) log_full_errno(LOG_INFO, 0, __VA_ARGS__)
#define log_debug(...)                                                                                         \
        (void) (log_get_max_level() >= LOG_DEBUG ? log_full_errno(LOG_DEBUG, 0, __VA_ARGS__) : 0)
/* With a catalogued message id (catalog-ids.h). */
#define log_id(level, id, ...) (void) log_full((level), 0, (id), __FILE__, __LINE__, __func__, __VA_ARGS__)
#define log_oom() log_error_errno(-ENOMEM, "Out of memory.")

/* A budget for messages that a guest or client can cause: `burst` per `interval_usec`, then silence until the interval ends.
 * Returns whether to log now; *ret_suppressed counts what was dropped since the last yes. Not thread-safe by itself: one
 * per thread or under the device's lock. */
typedef struct LogRateLimit {
        uint64_t interval_usec;
        unsigned burst;
        uint64_t begin_usec;
        unsigned count;
        unsigned suppressed;
} LogRateLimit;
bool log_ratelimit(LogRateLimit *limit, unsigned *ret_suppressed);
