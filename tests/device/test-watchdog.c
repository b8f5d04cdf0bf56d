/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The service manager's watchdog: who is ended by it says whose he was, and who waits for a slow disk is not taken for one that hangs. */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../unit/skip.h"
#include "disk-load.h"
#include "front-end.h"
#include "log.h"
#include "manager.h"
#include "watchdog.h"

#define PAGE KIB(4)

/* ---- last words ---- */

/* A journal of our own in place of the host's. In a child, which it may be shown to alone. */
static int listen_as_journal(void) {
        const struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket" };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
                mount("tmpfs", "/run", "tmpfs", 0, NULL) < 0)
                return -errno;
        (void) mkdir("/run/systemd", 0755);
        (void) mkdir("/run/systemd/journal", 0755);
        return fd < 0 || bind(fd, (const struct sockaddr *) &address, sizeof(address)) < 0 ? -errno : fd;
}

static _noreturn_ void hang(int ready_fd) {
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;

        (void) setenv("WATCHDOG_USEC", "60000000", 1);
        (void) unsetenv("WATCHDOG_PID");
        log_add_field("VMM_MACHINE=demo");
        if (sd_event_default(&event) < 0 || watchdog_begin(event, "somebody") < 0)
                _exit(EXIT_FAILURE);
        log_add_field("VMM_DEVICE=disk"); /* as a slot's helper learns of it */
        if (write(ready_fd, "", 1) != 1)
                _exit(EXIT_FAILURE);
        for (;;)
                (void) pause();
}

/* 0, or what went wrong; 77 where there can be no such journal. */
static int hear_last_words(void) {
        struct pollfd p = { .fd = listen_as_journal(), .events = POLLIN };
        int status, ready[2];
        char text[1024] = "\n", byte;
        pid_t pid;

        if (p.fd < 0)
                return 77;
        if (pipe2(ready, O_CLOEXEC) < 0)
                return 5;
        pid = fork();
        if (pid == 0)
                hang(ready[1]);
        /* Until it has its handler: before, it would die without a word. */
        (void) close(ready[1]);
        if (read(ready[0], &byte, 1) != 1)
                return 4;
        (void) close(ready[0]);
        if (kill(pid, SIGABRT) < 0 || waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
                return 1;
        if (poll(&p, 1, 0) != 1 || recv(p.fd, text + 1, sizeof(text) - 2, 0) <= 0)
                return 2;
        (void) fprintf(stderr, "%s", text);
        return strstr(text, "\nVMM_MACHINE=demo\n") && strstr(text, "\nVMM_DEVICE=disk\n") && strstr(text, "\nSYSLOG_IDENTIFIER=somebody\n") ? 0 : 3;
}

static void last_words_say_whose_they_are(void **state) {
        pid_t pid = fork();
        int status;

        if (pid == 0)
                _exit(hear_last_words());
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
                skip_for_want_of("a mount namespace");
        assert_int_equal(status, 0);
}

/* ---- a disk that takes its time ---- */

/* A file that nobody can write to: somebody is writing to it, holds its lock, and waits for memory that does not come. */
typedef struct Slow {
        int fd, uffd;
        void *page;
        pthread_t writer;
} Slow;

static void *write_page(void *userdata) {
        Slow *s = userdata;

        return pwrite(s->fd, s->page, PAGE, 0) == PAGE ? s : NULL;
}

static bool slow_begin(Slow *s, int fd) {
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
        struct pollfd p;

        *s = (Slow) { .fd = fd, .uffd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK) };
        if (s->uffd < 0 || ioctl(s->uffd, UFFDIO_API, &api) < 0)
                return false;
        s->page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(s->page, MAP_FAILED);
        reg.range = (struct uffdio_range) { .start = (uint64_t) (uintptr_t) s->page, .len = PAGE };
        assert_return_code(ioctl(s->uffd, UFFDIO_REGISTER, &reg), errno);
        assert_int_equal(pthread_create(&s->writer, NULL, write_page, s), 0);
        p = (struct pollfd) { .fd = s->uffd, .events = POLLIN };
        assert_int_equal(poll(&p, 1, 60000), 1); /* it has begun */
        return true;
}

static void slow_end(Slow *s) {
        struct uffdio_zeropage zero = { .range = { .start = (uint64_t) (uintptr_t) s->page, .len = PAGE } };
        void *written;

        assert_return_code(ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero), errno);
        assert_int_equal(pthread_join(s->writer, &written), 0);
        assert_non_null(written);
        (void) munmap(s->page, PAGE);
        (void) close(s->uffd);
}

static void write_zeroes(FrontEnd *f) {
        struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_WRITE_ZEROES };
        struct virtio_blk_discard_write_zeroes range = { .num_sectors = 8 };

        memcpy(f->ram + FE_BUFFERS, &header, sizeof(header));
        memcpy(f->ram + FE_BUFFERS + KIB(1), &range, sizeof(range));
        fe_desc(f, 0, 0, FE_ADDRESS(FE_BUFFERS), sizeof(header), VRING_DESC_F_NEXT, 1);
        fe_desc(f, 0, 1, FE_ADDRESS(FE_BUFFERS + KIB(1)), sizeof(range), VRING_DESC_F_NEXT, 2);
        fe_desc(f, 0, 2, FE_ADDRESS(FE_BUFFERS + KIB(2)), 1, VRING_DESC_F_WRITE, 0);
        f->ram[FE_BUFFERS + KIB(2)] = 0xee;
        fe_offer(f, 0, 0);
        fe_kick(f, 0);
}

/* Stopping a ring waits for what is under way in it. */
static void who_waits_for_a_slow_disk_does_not_hang(void **state) {
        char path[] = "/var/tmp/test-watchdog-XXXXXX", argument[64];
        const char *arguments[] = { "block", argument, NULL };
        struct vhost_vring_state stop = {};
        int fd = mkostemp(path, O_CLOEXEC);
        VhostUserMsg reply;
        struct pollfd p;
        FrontEnd f;
        Manager m;
        Slow slow;

        assert_return_code(fd, errno);
        assert_return_code(unlink(path), errno);
        assert_return_code(ftruncate(fd, MIB(1)), errno);
        if (!slow_begin(&slow, fd)) {
                (void) close(fd);
                skip_for_want_of("userfaultfd");
        }
        (void) snprintf(argument, sizeof(argument), "--path=/proc/%d/fd/%d", (int) getpid(), fd);
        manager_prepare(&m, "vhost-user", arguments);
        m.watchdog_usec = "1000000";
        manager_start(&m);
        fe_connect(&f, m.transport_path, m.pid);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        assert_true(manager_is_fed(&m, 1));

        write_zeroes(&f);
        (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        assert_int_equal(f.ram[FE_BUFFERS + KIB(2)], 0xee); /* it was taken, and waits */
        fe_send(&f, VHOST_USER_GET_VRING_BASE, &stop, sizeof(stop), NULL, 0);
        p = (struct pollfd) { .fd = f.fd, .events = POLLIN };
        assert_true(manager_is_fed(&m, 8));
        assert_int_equal(poll(&p, 1, 0), 0);

        slow_end(&slow);
        assert_int_equal(vhost_user_recv(f.fd, &reply, NULL, NULL), 0);
        assert_int_equal(reply.header.request, VHOST_USER_GET_VRING_BASE);
        assert_int_equal(reply.payload.state.num, 1);
        assert_int_equal(f.ram[FE_BUFFERS + KIB(2)], VIRTIO_BLK_S_OK);
        fe_disconnect(&f);
        manager_down(&m);
        (void) close(fd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(last_words_say_whose_they_are),
                cmocka_unit_test(who_waits_for_a_slow_disk_does_not_hang),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
