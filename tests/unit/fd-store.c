/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fd-store.h"

#define FIRST 3 /* SD_LISTEN_FDS_START */

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        (void) fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
                        _exit(3);                                                                              \
                }                                                                                              \
        } while (false)

int fd_store_listen(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        must(fd >= 0 && strlen(path) < sizeof(address.sun_path));
        strcpy(address.sun_path, path);
        (void) unlink(path);
        must(bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0);
        return fd;
}

static void drop(FdStore *s, const char *name) {
        size_t k = 0;

        for (size_t i = 0; i < s->n; i++)
                if (!name || streq(s->entries[i].name, name))
                        (void) close(s->entries[i].fd);
                else
                        s->entries[k++] = s->entries[i];
        s->n = k;
}

void fd_store_remove(FdStore *s, const char *name) {
        drop(s, name);
}

void fd_store_clear(FdStore *s) {
        drop(s, NULL);
}

void fd_store_add(FdStore *s, const char *name, int fd) {
        must(s->n < FD_STORE_MAX);
        (void) snprintf(s->entries[s->n].name, sizeof(s->entries[0].name), "%s", name);
        s->entries[s->n++].fd = fd;
}

void fd_store_take(FdStore *s, char *text, const int *fds, size_t n_fds) {
        bool store = false, remove = false;
        const char *name = "stored", *value;
        char *save = NULL;

        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                store = store || streq(line, "FDSTORE=1");
                remove = remove || streq(line, "FDSTOREREMOVE=1");
                s->n_ready += streq(line, "READY=1");
                if ((value = startswith(line, "FDNAME=")))
                        name = value;
        }
        if (remove)
                drop(s, name);
        for (size_t i = 0; i < n_fds; i++)
                if (store)
                        fd_store_add(s, name, fds[i]);
                else
                        (void) close(fds[i]);
}

bool fd_store_receive(FdStore *s, int socket, int flags) {
        char text[512] = {};
        int fds[8];
        size_t n_fds = ELEMENTSOF(fds);

        if (recv_with_fds(socket, text, sizeof(text) - 1, fds, &n_fds, flags) <= 0)
                return false;
        fd_store_take(s, text, fds, n_fds);
        return true;
}

void fd_store_execute_slot(const FdStore *s, const int sockets[static 2], const char *notify_path) {
        char names[(FD_STORE_MAX + 2) * 64] = "slot.socket:slot.socket", text[16];
        int fds[FD_STORE_MAX + 2], n_fds = 2;
        const char *program = getenv("VMM_DEVICE");

        must(program);
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* First all of them out of the way of the numbers that they get. */
        for (int i = 0; i < 2; i++)
                fds[i] = fcntl(sockets[i], F_DUPFD_CLOEXEC, 300);
        for (size_t i = 0; i < s->n; i++) {
                fds[n_fds++] = fcntl(s->entries[i].fd, F_DUPFD_CLOEXEC, 300);
                (void) strcat(strcat(names, ":"), s->entries[i].name);
        }
        for (int i = 0; i < n_fds; i++)
                must(fds[i] >= 0 && dup2(fds[i], FIRST + i) == FIRST + i);
        (void) close_range((unsigned) (FIRST + n_fds), ~0U, CLOSE_RANGE_CLOEXEC);
        (void) snprintf(text, sizeof(text), "%d", (int) getpid());
        (void) setenv("LISTEN_PID", text, 1);
        (void) snprintf(text, sizeof(text), "%d", n_fds);
        (void) setenv("LISTEN_FDS", text, 1);
        (void) setenv("LISTEN_FDNAMES", names, 1);
        (void) setenv("NOTIFY_SOCKET", notify_path, 1);
        (void) setenv("VMM_DEFAULT_MAC", "52:54:00:00:00:01", 1);
        (void) execl(program, "vmm-device", "slot", NULL);
        _exit(127);
}
