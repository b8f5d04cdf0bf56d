/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "catalog-ids.h"
#include "log.h"
#include "util.h"
#include "watchdog.h"

#define TEXT "The event loop hung, and the service manager's watchdog ends this process; it is started again.\n"

/* What the handler says and where to, ready beforehand: nothing may be allocated there. */
static const struct sockaddr_un journal = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket" };
static char *last_words = NULL;
static size_t last_words_size = 0;
static int last_words_fd = -EBADF;

/* With whose they are: whoever reads them looks up the unit of a process that may be gone by then, and what the unit says of its messages. */
static bool say_last_words(void) {
        struct iovec iov[1 + 2 * LOG_FIELDS_MAX] = { { .iov_base = last_words, .iov_len = last_words_size } };
        struct msghdr message = { .msg_name = (void *) &journal, .msg_namelen = sizeof(journal), .msg_iov = iov, .msg_iovlen = 1 };
        const char *const *fields;
        size_t n = log_get_fields(&fields);

        for (size_t i = 0; i < n; i++) {
                iov[message.msg_iovlen++] = (struct iovec) { .iov_base = (void *) fields[i], .iov_len = strlen(fields[i]) };
                iov[message.msg_iovlen++] = (struct iovec) { .iov_base = (void *) "\n", .iov_len = 1 };
        }
        return sendmsg(last_words_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/* Async-signal-safe. The action is the default again (SA_RESETHAND). */
static void on_abort(int sig, siginfo_t *info, void *context) {
        if (info->si_code == SI_USER && !say_last_words())
                (void) !write(STDERR_FILENO, TEXT, sizeof(TEXT) - 1);
        (void) raise(SIGABRT);
}

static int prepare_last_words(const char *program) {
        const struct sigaction action = { .sa_sigaction = on_abort, .sa_flags = SA_SIGINFO | (int) SA_RESETHAND | SA_NODEFER };
        int r;

        if (last_words)
                return 0;
        last_words_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (last_words_fd < 0)
                return -errno;
        r = asprintf(&last_words, "MESSAGE=" TEXT "PRIORITY=2\nMESSAGE_ID=" MESSAGE_HUNG "\nSYSLOG_IDENTIFIER=%s\n", program);
        if (r < 0) {
                last_words = NULL;
                return -ENOMEM;
        }
        last_words_size = (size_t) r;
        return sigaction(SIGABRT, &action, NULL) < 0 ? -errno : 0;
}

int watchdog_begin(sd_event *event, const char *program) {
        int r;

        r = sd_event_set_watchdog(event, true);
        /* Positive: there is one. */
        return r > 0 ? prepare_last_words(program) : r;
}

void watchdog_feed(void) {
        (void) sd_notify(false, "WATCHDOG=1");
}
