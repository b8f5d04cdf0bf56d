/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* polkit asks by an agent: that of the desktop, or, at a terminal, pkttyagent(1), which is started for one call and serves this process
 * only (its parent). */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <systemd/sd-login.h>

#include "machine.h"

/* It is a courtesy: where it does not come up, polkit says no by itself. */
#define READY_TIMEOUT_MSEC 30000

bool agent_may_ask(const Options *o) {
        return !o->no_ask_password && isatty(STDIN_FILENO) > 0;
}

void agent_start(Agent *a) {
        int fds[2] = { -EBADF, -EBADF };
        struct pollfd p;
        char fd_text[16];
        int r;

        *a = (Agent) {};
        /* Only the end that says that it is ready is the agent's. */
        if (pipe2(fds, O_CLOEXEC) < 0)
                return;
        (void) snprintf(fd_text, sizeof(fd_text), "%i", fds[1]);
        a->pid = fork();
        if (a->pid == 0) {
                /* The session's own agent comes first. Where there is no session, polkit (122) would not find one that steps back. */
                const char *fallback = sd_pid_get_session(0, NULL) >= 0 ? "--fallback" : NULL;

                (void) fcntl(fds[1], F_SETFD, 0);
                (void) execlp("pkttyagent", "pkttyagent", "--notify-fd", fd_text, fallback, NULL);
                _exit(127);
        }
        (void) close(fds[1]);
        if (a->pid < 0)
                a->pid = 0;
        else {
                p = (struct pollfd) { .fd = fds[0], .events = POLLIN };
                do
                        r = poll(&p, 1, READY_TIMEOUT_MSEC);
                while (r < 0 && errno == EINTR);
        }
        (void) close(fds[0]);
}

void agent_stop(Agent *a) {
        if (a->pid <= 0)
                return;
        /* It is stopped where it wanted the terminal in the background. */
        (void) kill(a->pid, SIGTERM);
        (void) kill(a->pid, SIGCONT);
        while (waitpid(a->pid, NULL, 0) < 0 && errno == EINTR)
                ;
        a->pid = 0;
}
