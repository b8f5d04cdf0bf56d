/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "parse.h"
#include "reload-keeper.h"

#define STACK_SIZE KIB(64)

struct ReloadKeeper {
        int hold_fd;   /* our end of its pipe */
        int process_fd;
        void *stack;   /* MAP_FAILED: of no concern of ours, in another map */
        int read_fd;   /* the child's end */
        int *unwanted; /* what it closes of the others that it was born with */
        size_t n_unwanted;
};

static int add_unwanted(ReloadKeeper *k, int fd) {
        int *grown = realloc(k->unwanted, (k->n_unwanted + 1) * sizeof(int));

        if (!grown)
                return -ENOMEM;
        k->unwanted = grown;
        k->unwanted[k->n_unwanted++] = fd;
        return 0;
}

/* Whoever is at the other end of a connection that execve() closes is to hear of it then. */
static int list_unwanted(ReloadKeeper *k) {
        DIR *d = opendir("/proc/self/fd");
        struct dirent *e;
        int r;

        if (!d)
                return -errno;
        r = add_unwanted(k, k->hold_fd);
        while (r >= 0 && (e = readdir(d))) {
                struct stat st;
                uint64_t fd;

                if (parse_unsigned(e->d_name, &fd) >= 0 && fd <= INT32_MAX && fstat((int) fd, &st) >= 0 && S_ISSOCK(st.st_mode))
                        r = add_unwanted(k, (int) fd);
        }
        (void) closedir(d);
        return r;
}

/* Runs in our memory, thread-local variables included, beside us: system calls alone, of which none fails or is interrupted. */
__attribute__((no_sanitize("address", "undefined"))) static int keep(void *userdata) {
        const ReloadKeeper *k = userdata;
        char byte;

        for (size_t i = 0; i < k->n_unwanted; i++)
                (void) syscall(SYS_close, k->unwanted[i]);
        (void) syscall(SYS_read, k->read_fd, &byte, sizeof(byte));
        return 0;
}

/* No signal is for it: whoever stops the unit ends vmmd, and thereby the pipe. It says its end by none either. */
static int start(ReloadKeeper *k) {
        sigset_t all, before;
        int r = 0;

        (void) sigfillset(&all);
        (void) sigprocmask(SIG_SETMASK, &all, &before);
        if (clone(keep, (uint8_t *) k->stack + STACK_SIZE, CLONE_VM | CLONE_PIDFD, k, &k->process_fd) < 0)
                r = -errno;
        (void) sigprocmask(SIG_SETMASK, &before, NULL);
        return r;
}

static ReloadKeeper *allocate(void) {
        ReloadKeeper *k = malloc(sizeof(ReloadKeeper));

        if (k)
                *k = (ReloadKeeper) { .hold_fd = -EBADF, .process_fd = -EBADF, .stack = MAP_FAILED };
        return k;
}

int reload_keeper_new(ReloadKeeper **ret) {
        _cleanup_(reload_keeper_freep) ReloadKeeper *k = allocate();
        int p[2], r;

        if (!k)
                return -ENOMEM;
        k->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (k->stack == MAP_FAILED)
                return -errno;
        if (pipe2(p, O_CLOEXEC) < 0)
                return -errno;
        k->read_fd = p[0];
        k->hold_fd = p[1];
        r = list_unwanted(k);
        if (r >= 0)
                r = start(k);
        (void) close(p[0]); /* the child has its own */
        if (r < 0)
                return r;
        *ret = TAKE_PTR(k);
        return 0;
}

void reload_keeper_put(const ReloadKeeper *k, Handover *h) {
        handover_put_fd(h, k ? k->hold_fd : -EBADF);
        handover_put_fd(h, k ? k->process_fd : -EBADF);
}

int reload_keeper_get(Handover *h, ReloadKeeper **ret) {
        _cleanup_(reload_keeper_freep) ReloadKeeper *k = allocate();

        if (!k)
                return -ENOMEM;
        k->hold_fd = handover_get_fd(h);
        k->process_fd = handover_get_fd(h);
        *ret = k->hold_fd >= 0 && k->process_fd >= 0 ? TAKE_PTR(k) : NULL;
        return 0;
}

static void reap(int process_fd, int options) {
        siginfo_t si;

        (void) waitid(P_PIDFD, (id_t) process_fd, &si, WEXITED | __WALL | options);
}

static int on_end(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        reap(fd, WNOHANG);
        /* The loop's was the last reference. */
        (void) sd_event_source_set_enabled(s, SD_EVENT_OFF);
        (void) sd_event_source_set_floating(s, false);
        return 0;
}

void reload_keeper_dismiss(ReloadKeeper *k, sd_event *event) {
        sd_event_source *s = NULL;

        if (!k)
                return;
        k->hold_fd = safe_close(k->hold_fd);
        if (sd_event_add_io(event, &s, k->process_fd, EPOLLIN, on_end, NULL) >= 0) {
                (void) sd_event_source_set_io_fd_own(s, true);
                k->process_fd = -EBADF;
                /* The loop's from here. */
                (void) sd_event_source_set_floating(s, true);
                (void) sd_event_source_unref(s);
        }
        (void) reload_keeper_free(k);
}

ReloadKeeper *reload_keeper_free(ReloadKeeper *k) {
        if (!k)
                return NULL;
        (void) safe_close(k->hold_fd);
        if (k->stack != MAP_FAILED) {
                /* It ends at once, and is no last user of anything. */
                if (k->process_fd >= 0)
                        reap(k->process_fd, 0);
                (void) munmap(k->stack, STACK_SIZE);
        }
        (void) safe_close(k->process_fd);
        free(k->unwanted);
        return mfree(k);
}
