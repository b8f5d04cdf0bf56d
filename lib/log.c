/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>

#include "log.h"

static int max_level = LOG_INFO;
static bool to_journal = false;
static const char *program_name = "vmm";
static const char *fields[LOG_FIELDS_MAX];
static size_t n_fields = 0;
static char **error_copy = NULL;

void log_open(const char *program) {
        const char *level = getenv("VMM_LOG_LEVEL");

        program_name = program;
        to_journal = getenv("JOURNAL_STREAM") != NULL;
        if (level && log_level_from_string(level) >= 0)
                max_level = log_level_from_string(level);
        /* sd_journal_sendv() takes a missing socket for success. Where it is not in our mount namespace, standard error still leads there. */
        to_journal = to_journal && access("/run/systemd/journal/socket", W_OK) >= 0;
}

void log_set_max_level(int level) {
        max_level = level;
}

int log_get_max_level(void) {
        return max_level;
}

int log_level_from_string(const char *s) {
        static const char *const names[] = { "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug" };

        if (s[0] >= '0' && s[0] <= '7' && s[1] == 0)
                return s[0] - '0';
        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                if (streq(s, names[i]))
                        return (int) i;
        return -EINVAL;
}

void log_add_field(const char *assignment) {
        char *copy = n_fields < LOG_FIELDS_MAX ? strdup(assignment) : NULL;

        if (!copy)
                return;
        fields[n_fields] = copy;
        __atomic_store_n(&n_fields, n_fields + 1, __ATOMIC_RELEASE);
}

size_t log_get_fields(const char *const **ret) {
        *ret = fields;
        return __atomic_load_n(&n_fields, __ATOMIC_ACQUIRE);
}

void log_copy_errors(char **slot) {
        error_copy = slot;
}

static int field(struct iovec *iov, char **slot, const char *format, ...) _printf_(3, 4);
static int field(struct iovec *iov, char **slot, const char *format, ...) {
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(slot, format, ap);
        va_end(ap);
        if (r < 0) {
                *slot = NULL;
                return -ENOMEM;
        }
        *iov = (struct iovec) { .iov_base = *slot, .iov_len = (size_t) r };
        return 0;
}

static bool send_to_journal(int level, int error, const char *message_id, const char *file, int line,
        const char *function, const char *text) {
        struct iovec iov[8 + LOG_FIELDS_MAX];
        char *slots[8] = {};
        size_t n = 0, s = 0;
        bool sent;

        if (field(&iov[n], &slots[s++], "MESSAGE=%s", text) >= 0)
                n++;
        if (field(&iov[n], &slots[s++], "PRIORITY=%i", level) >= 0)
                n++;
        if (field(&iov[n], &slots[s++], "SYSLOG_IDENTIFIER=%s", program_name) >= 0)
                n++;
        if (field(&iov[n], &slots[s++], "CODE_FILE=%s", file) >= 0)
                n++;
        if (field(&iov[n], &slots[s++], "CODE_LINE=%i", line) >= 0)
                n++;
        if (field(&iov[n], &slots[s++], "CODE_FUNC=%s", function) >= 0)
                n++;
        if (error != 0 && field(&iov[n], &slots[s++], "ERRNO=%i", error) >= 0)
                n++;
        if (message_id && field(&iov[n], &slots[s++], "MESSAGE_ID=%s", message_id) >= 0)
                n++;
        for (size_t i = 0; i < n_fields; i++)
                iov[n++] = (struct iovec) { .iov_base = (void *) fields[i], .iov_len = strlen(fields[i]) };

        sent = sd_journal_sendv(iov, (int) n) >= 0;
        for (size_t i = 0; i < ELEMENTSOF(slots); i++)
                free(slots[i]);
        return sent;
}

int log_full(int level, int error, const char *message_id, const char *file, int line, const char *function,
        const char *format, ...) {
        _cleanup_free_ char *text = NULL, *line_text = NULL;
        int saved = errno, code = abs(error);
        va_list ap;
        int r;

        if (level > max_level && !(error_copy && level <= LOG_ERR))
                goto finish;

        errno = code; /* for %m */
        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0) {
                text = NULL;
                goto finish;
        }
        if (error_copy && level <= LOG_ERR) {
                free(*error_copy);
                *error_copy = strdup(text);
        }
        if (level > max_level)
                goto finish;

        if (!to_journal || !send_to_journal(level, code, message_id, file, line, function, text)) {
                /* Under systemd the prefix keeps the level; on a terminal it would only disturb. No stdio: it asks what the
                 * descriptor is by a call that no sandbox has. */
                bool prefix = getenv("JOURNAL_STREAM");
                r = prefix ? asprintf(&line_text, "<%i>%s\n", level, text) : asprintf(&line_text, "%s: %s\n", program_name, text);
                if (r < 0)
                        line_text = NULL;
                else
                        (void) write_full(STDERR_FILENO, line_text, (size_t) r);
        }

finish:
        errno = saved;
        return -code;
}

bool log_ratelimit(LogRateLimit *limit, unsigned *ret_suppressed) {
        uint64_t now = now_usec();

        if (limit->begin_usec == 0 || now - limit->begin_usec >= limit->interval_usec) {
                limit->begin_usec = now;
                limit->count = 0;
        }
        if (limit->count >= limit->burst) {
                limit->suppressed++;
                return false;
        }
        limit->count++;
        if (ret_suppressed)
                *ret_suppressed = limit->suppressed;
        limit->suppressed = 0;
        return true;
}
