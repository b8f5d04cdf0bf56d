/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "serve.h"

static int listen_at(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0)
                return -errno;
        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        memcpy(address.sun_path, path, strlen(path));
        if (bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, 64) < 0)
                return -errno;
        return TAKE_FD(fd);
}

static int on_end(sd_event_source *source, const siginfo_t *info, void *userdata) {
        return sd_event_exit(sd_event_source_get_event(source),
                info->si_code == CLD_EXITED ? info->si_status : EXIT_FAILURE);
}

static pid_t start(char **command, const sigset_t *mask) {
        pid_t pid = fork();

        if (pid == 0) {
                (void) sigprocmask(SIG_SETMASK, mask, NULL);
                (void) execvp(command[0], command);
                (void) fprintf(stderr, "%s: %m\n", command[0]);
                _exit(127);
        }
        return pid;
}

int serve_while(VarlinkServer *server, sd_event *event, const char *path, char **command) {
        sigset_t mask, before;
        int fd, r;

        fd = listen_at(path);
        if (fd < 0) {
                (void) fprintf(stderr, "%s: %s\n", path, strerror(-fd));
                return EXIT_FAILURE;
        }
        (void) sigemptyset(&mask);
        (void) sigaddset(&mask, SIGCHLD);
        (void) sigprocmask(SIG_BLOCK, &mask, &before);
        r = varlink_server_listen_fd(server, fd);
        if (r >= 0) {
                pid_t pid = start(command, &before);
                r = pid < 0 ? -errno : sd_event_add_child(event, NULL, pid, WEXITED, on_end, NULL);
        }
        if (r >= 0)
                r = sd_event_loop(event);
        (void) unlink(path);
        if (r < 0)
                (void) fprintf(stderr, "%s\n", strerror(-r));
        return r < 0 ? EXIT_FAILURE : r;
}
