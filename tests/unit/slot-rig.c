/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "fd-store.h"
#include "slot-rig.h"

#define SLOT_STATUS_AGAIN 133 /* as its unit has it in RestartForceExitStatus= */

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        (void) fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
                        _exit(3);                                                                              \
                }                                                                                              \
        } while (false)

static int listen_at(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        assert_true(fd >= 0 && strlen(path) < sizeof(address.sun_path));
        strcpy(address.sun_path, path);
        (void) unlink(path);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 16), 0);
        return fd;
}

_noreturn_ static void helper(const FdStore *store, const int fds[static 2], const char *notify_path, pid_t manager) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != manager)
                _exit(0); /* it died before it could be said to matter */
        /* Its sandbox does not let it look for leaks in itself. */
        (void) setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        if (!getenv("SLOT_RIG_SPEAKS"))
                (void) dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        fd_store_execute_slot(store, fds, notify_path);
}

/* Until the helper has ended; what it said before that is taken, too. */
static int watch(FdStore *store, pid_t pid, int notify, SlotShared *shared) {
        int pidfd = pidfd_open(pid, 0), status;

        must(pidfd >= 0);
        for (;;) {
                struct pollfd p[] = { { .fd = notify, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };

                must(poll(p, 2, -1) > 0);
                while (fd_store_receive(store, notify, MSG_DONTWAIT))
                        __atomic_store_n(&shared->n_stored, (unsigned) store->n, __ATOMIC_RELAXED);
                if (p[1].revents)
                        break;
        }
        (void) close(pidfd);
        must(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
        __atomic_add_fetch(&shared->n_ended, 1, __ATOMIC_RELEASE);
        return WEXITSTATUS(status);
}

_noreturn_ static void manage(const int fds[static 2], int notify, const char *notify_path, SlotShared *shared) {
        static FdStore store;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
                pid_t self = getpid(), pid = fork();
                int status;

                must(pid >= 0);
                if (pid == 0)
                        helper(&store, fds, notify_path, self);
                status = watch(&store, pid, notify, shared);
                must(status == 0 || status == SLOT_STATUS_AGAIN);
        }
}

void slot_unit_start(SlotUnit *u, const Run *run, unsigned n) {
        static const char *const suffixes[] = { "vhost-user", "varlink" };
        char directory[64];
        int fds[2], notify;

        (void) snprintf(directory, sizeof(directory), "%s/devices", run->directory);
        (void) mkdir(directory, 0700);
        (void) snprintf(directory, sizeof(directory), "%s/devices/tiny", run->directory);
        (void) mkdir(directory, 0700);
        for (unsigned i = 0; i < 2; i++) {
                (void) snprintf(u->sockets[i], sizeof(u->sockets[i]), "%s/slot%u.%s", directory, n, suffixes[i]);
                /* Out of the way of the numbers that they get. */
                int fd = listen_at(u->sockets[i]);
                fds[i] = fcntl(fd, F_DUPFD, 64);
                assert_true(fds[i] >= 0);
                (void) close(fd);
        }
        (void) snprintf(u->notify, sizeof(u->notify), "%s/slot%u.notify", directory, n);
        notify = fd_store_listen(u->notify);
        u->shared = mmap(NULL, sizeof(SlotShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(u->shared != MAP_FAILED);
        u->manager = fork();
        assert_true(u->manager >= 0);
        if (u->manager == 0)
                manage(fds, notify, u->notify, u->shared);
        (void) close(fds[0]);
        (void) close(fds[1]);
        (void) close(notify);
}

void slot_unit_stop(SlotUnit *u) {
        (void) kill(u->manager, SIGKILL);
        assert_int_equal(waitpid(u->manager, NULL, 0), u->manager);
        (void) unlink(u->sockets[0]);
        (void) unlink(u->sockets[1]);
        (void) unlink(u->notify);
        (void) munmap(u->shared, sizeof(SlotShared));
}
