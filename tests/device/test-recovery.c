/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Helpers that are killed, under a service manager made for them: that their successors go on with what it kept, without the front-end's noticing;
 * that they do not where a request was half done; and that a guest that checks all it asks for finds nothing wrong. */

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "bus-client.h"
#include "disk-load.h"
#include "front-end.h"
#include "manager.h"
#include "vsock-notify-port.h"

/* How often a helper is killed under load. */
#define KILLS 40

static const char *const rng[] = { "rng", NULL };

/* A front-end that does what vmmd does. */
static void connect_front_end_without(FrontEnd *f, Manager *m, unsigned n_queues, uint16_t num, uint64_t without) {
        fe_connect(f, m->transport_path, m->pid);
        fe_negotiate(f, without);
        fe_set_mem_table(f);
        fe_share_inflight(f, (uint16_t) n_queues, num);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(f, i, num);
        /* Answered when all of it was taken. */
        (void) fe_get_u64(f, VHOST_USER_GET_STATUS);
}

static void connect_front_end(FrontEnd *f, Manager *m, unsigned n_queues, uint16_t num) {
        connect_front_end_without(f, m, n_queues, num, 0);
}

static void ask(FrontEnd *f, uint16_t i) {
        memset(f->ram + FE_BUFFERS + i * KIB(4), 0, 64);
        fe_desc(f, 0, i, FE_ADDRESS(FE_BUFFERS + i * KIB(4)), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, i);
        fe_kick(f, 0);
}

static void expect_answer(FrontEnd *f, uint16_t i) {
        struct vring_used_elem e = fe_wait(f, 0);

        assert_int_equal(e.id, i);
        assert_int_equal(e.len, 64);
}

static void up(Manager *m, FrontEnd *f) {
        manager_up(m, "vhost-user", rng);
        connect_front_end(f, m, 1, 8);
        ask(f, 0);
        expect_answer(f, 0);
}

static void down(Manager *m, FrontEnd *f) {
        fe_disconnect(f);
        manager_down(m);
}

static bool has_hung_up(FrontEnd *f) {
        struct pollfd p = { .fd = f->fd, .events = POLLRDHUP };

        return poll(&p, 1, 0) != 0;
}

/* Waits until the helper is between two requests: its answer comes a moment before that. session-keep.c has the mark as the third word. */
static void settle(Manager *m) {
        int fd = manager_peek(m, "session-state");
        uint32_t busy = 1;

        for (unsigned i = 0; i < 60000 && busy; i++) {
                assert_int_equal(pread(fd, &busy, sizeof(busy), 8), sizeof(busy));
                if (busy)
                        (void) usleep(1000);
        }
        assert_int_equal(busy, 0);
        (void) close(fd);
}

/* Begins a message and waits until the helper has read that much. */
static void begin_message(FrontEnd *f) {
        VhostUserHeader header = { .request = VHOST_USER_SET_FEATURES, .flags = 1, .size = 8 };
        int unread = 1;

        assert_int_equal(write(f->fd, &header, sizeof(header)), sizeof(header));
        for (unsigned i = 0; i < 60000 && unread > 0; i++) {
                assert_return_code(ioctl(f->fd, SIOCOUTQ, &unread), errno);
                if (unread > 0)
                        (void) usleep(1000);
        }
        assert_int_equal(unread, 0);
}

/* What is not gone on with */

static void a_session_torn_within_a_message_is_closed_and_nothing_of_it_kept(void **state) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        assert_true(manager_count(&m, "session-") > 0);
        begin_message(&f);
        manager_restart(&m);
        fe_expect_hang_up(&f);
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

static void the_mark_is_set_before_anything_is_read(void **state) {
        FrontEnd f;
        Manager m;
        int fd;

        up(&m, &f);
        manager_kill(&m);
        /* As if it had died a moment later. */
        fd = manager_peek(&m, "session-state");
        assert_int_equal(pwrite(fd, &(uint32_t) { 1 }, sizeof(uint32_t), 8), sizeof(uint32_t));
        (void) close(fd);
        manager_start(&m);
        fe_expect_hang_up(&f);
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

static void another_versions_session_is_closed(void **state) {
        FrontEnd f;
        Manager m;
        int fd;

        up(&m, &f);
        manager_kill(&m);
        fd = manager_peek(&m, "session-state");
        assert_int_equal(pwrite(fd, &(uint32_t) { 99 }, sizeof(uint32_t), 0), sizeof(uint32_t));
        (void) close(fd);
        manager_start(&m);
        fe_expect_hang_up(&f);
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

static void without(const char *name) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        manager_kill(&m);
        assert_int_equal(manager_count(&m, name), 1);
        manager_drop(&m, name);
        manager_start(&m);
        fe_expect_hang_up(&f);
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

static void a_session_that_is_kept_in_part_is_closed(void **state) {
        without("session-memory-0");
        without("session-kick-0");
        without("session-call-0");
        without("session-in-flight");
        without("session-back-end");
        without("session-state");
}

static void who_keeps_no_log_connects_again(void **state) {
        FrontEnd f;
        Manager m;

        manager_up(&m, "vhost-user", rng);
        fe_connect(&f, m.transport_path, m.pid);
        fe_negotiate_some(&f, 0, ~(UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD));
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        ask(&f, 0);
        expect_answer(&f, 0);
        manager_restart(&m);
        fe_expect_hang_up(&f);
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

static void nothing_is_kept_of_a_session_that_has_ended(void **state) {
        FrontEnd f, g;
        Manager m;

        up(&m, &f);
        assert_true(manager_count(&m, "session-memory-") == 1);
        fe_disconnect(&f);
        /* The next one is only served when the first one has gone. */
        connect_front_end(&g, &m, 1, 8);
        fe_disconnect(&g);
        connect_front_end(&f, &m, 1, 8);
        assert_int_equal(manager_count(&m, "session-connection"), 1);
        assert_int_equal(manager_count(&m, "session-memory-"), 1);
        assert_int_equal(manager_count(&m, "session-kick-"), 1);
        fe_disconnect(&f);
        manager_down(&m);
}

static void who_hangs_up_while_nobody_is_there_is_let_go(void **state) {
        FrontEnd f, g;
        Manager m;

        up(&m, &f);
        manager_kill(&m);
        fe_disconnect(&f);
        manager_start(&m);
        connect_front_end(&g, &m, 1, 8);
        ask(&g, 0);
        expect_answer(&g, 0);
        assert_int_equal(manager_count(&m, "session-memory-"), 1);
        down(&m, &g);
}

static void a_unit_that_is_given_up_lets_its_front_end_know(void **state) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        manager_kill(&m);
        assert_false(has_hung_up(&f));
        manager_drop(&m, ""); /* as at a start limit, or where it is stopped */
        fe_expect_hang_up(&f);
        down(&m, &f);
}

static void a_session_that_cannot_be_kept_is_served_all_the_same(void **state) {
        char elsewhere[72];
        FrontEnd f;
        Manager m;

        manager_up(&m, "vhost-user", rng);
        (void) snprintf(elsewhere, sizeof(elsewhere), "%s-not", m.notify_path);
        assert_return_code(rename(m.notify_path, elsewhere), errno); /* nobody can be told anything */
        connect_front_end(&f, &m, 1, 8);
        ask(&f, 0);
        expect_answer(&f, 0);
        assert_return_code(rename(elsewhere, m.notify_path), errno);
        ask(&f, 1);
        expect_answer(&f, 1);
        assert_false(has_hung_up(&f));
        assert_int_equal(manager_count(&m, "session-"), 0);
        down(&m, &f);
}

/* What its image is made of will be the same the next time. */
static void who_cannot_be_a_disk_says_so_to_whoever_waits(void **state) {
        VhostUserMsg ask = { .header = { .request = VHOST_USER_GET_FEATURES } }, msg = {};
        char path[] = "/var/tmp/test-recovery-XXXXXX", argument[64];
        int disk = mkostemp(path, O_CLOEXEC), fd;
        Manager m;

        assert_return_code(disk, errno);
        (void) snprintf(argument, sizeof(argument), "--path=%s", path);
        manager_prepare(&m, "vhost-user", (const char *const[]) { "block", argument, NULL });
        fd = connect_unix(m.transport_path);
        assert_return_code(fd, errno);
        assert_int_equal(vhost_user_send(fd, &ask, NULL, 0), 0);
        assert_int_equal(manager_start_failing(&m), 69); /* HELPER_STATUS_REFUSED */
        assert_int_equal(vhost_user_recv(fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.header.request, VHOST_USER_REFUSAL);
        assert_non_null(memmem(msg.payload.refusal, msg.header.size, path, strlen(path)));
        assert_non_null(memmem(msg.payload.refusal, msg.header.size, "is empty", 8));
        (void) close(fd);
        /* Who is a successor may fail for a while: nobody is told, and the next one is tried. */
        fd = memfd_create("state", MFD_CLOEXEC);
        assert_return_code(fd, errno);
        manager_give(&m, "session-state", fd);
        fd = connect_unix(m.transport_path);
        assert_return_code(fd, errno);
        assert_int_equal(manager_start_failing(&m), EXIT_FAILURE);
        assert_int_equal(recv(fd, &msg, sizeof(msg), MSG_DONTWAIT), -1);
        assert_int_equal(errno, EAGAIN);
        (void) close(fd);
        (void) close(disk);
        (void) unlink(path);
        manager_down(&m);
}

/* It goes on */

static void a_successor_goes_on_without_its_front_ends_noticing(void **state) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        for (uint16_t i = 1; i < 8; i++) {
                manager_kill(&m);
                ask(&f, i); /* nobody is there */
                (void) fe_eventfd(f.queues[0].kick, 0); /* nor does the successor learn of it by this: somebody has read it */
                manager_start(&m);
                expect_answer(&f, i);
        }
        assert_false(has_hung_up(&f));
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM), 1);
        down(&m, &f);
}

static void a_request_that_comes_while_nobody_is_there_is_answered(void **state) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        manager_kill(&m);
        fe_send(&f, VHOST_USER_GET_STATUS, NULL, 0, NULL, 0);
        manager_start(&m);
        {
                struct pollfd p = { .fd = f.fd, .events = POLLIN };
                VhostUserMsg msg;

                assert_int_equal(poll(&p, 1, 60000), 1);
                assert_int_equal(vhost_user_recv(f.fd, &msg, NULL, NULL), 0);
                assert_int_equal(msg.header.request, VHOST_USER_GET_STATUS);
        }
        down(&m, &f);
}

static void stop_while_nobody_is_there(bool disabled_first) {
        const struct vhost_vring_state of_first = { .index = 0 };
        struct pollfd p;
        VhostUserMsg msg;
        FrontEnd f;
        Manager m;

        up(&m, &f);
        for (uint16_t i = 1; i < 4; i++) {
                ask(&f, i);
                expect_answer(&f, i);
        }
        manager_kill(&m);
        if (disabled_first)
                fe_send(&f, VHOST_USER_SET_VRING_ENABLE, &of_first, sizeof(of_first), NULL, 0);
        fe_send(&f, VHOST_USER_GET_VRING_BASE, &of_first, sizeof(of_first), NULL, 0);
        manager_start(&m);
        p = (struct pollfd) { .fd = f.fd, .events = POLLIN };
        assert_int_equal(poll(&p, 1, 60000), 1);
        assert_int_equal(vhost_user_recv(f.fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.header.request, VHOST_USER_GET_VRING_BASE);
        assert_int_equal(msg.payload.state.num, 4);
        down(&m, &f);
}

/* A machine is paused just when its helper has died: where the ring was when the helper's session was kept is long ago. Some front-ends disable rings before they
 * ask where they are. */
static void a_ring_that_is_stopped_while_nobody_is_there_is_where_it_was(void **state) {
        stop_while_nobody_is_there(false);
        stop_while_nobody_is_there(true);
}

static void a_ring_that_was_stopped_stays_stopped(void **state) {
        struct vring_used_elem e;
        FrontEnd f;
        Manager m;

        up(&m, &f);
        assert_int_equal(fe_stop_queue(&f, 0), 1);
        assert_int_equal(manager_count(&m, "session-kick-"), 0);
        settle(&m);
        manager_restart(&m);
        ask(&f, 1);
        assert_false(fe_used(&f, 0, 100, &e));
        fe_send_queue(&f, 0, 1);
        fe_kick(&f, 0);
        expect_answer(&f, 1);
        manager_restart(&m);
        ask(&f, 2);
        expect_answer(&f, 2);
        down(&m, &f);
}

static void memory_that_comes_in_two_pieces_of_one_file_is_kept(void **state) {
        VhostUserMemory table = {
                .nregions = 2,
                .regions = { { FE_GUEST_BASE, FE_RAM_SIZE / 2, FE_USER_BASE, 0 },
                             { FE_GUEST_BASE + FE_RAM_SIZE / 2, FE_RAM_SIZE / 2, FE_USER_BASE + FE_RAM_SIZE / 2, FE_RAM_SIZE / 2 } },
        };
        FrontEnd f;
        Manager m;

        up(&m, &f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_MEM_TABLE, &table, offsetof(VhostUserMemory, regions[2]),
                                 (int[]) { f.ram_fd, f.ram_fd }, 2), 0);
        assert_int_equal(manager_count(&m, "session-memory-"), 1);
        for (uint16_t i = 1; i < 3; i++) {
                ask(&f, i);
                expect_answer(&f, i); /* the rings lie in it */
                manager_restart(&m);
        }
        ask(&f, 3);
        expect_answer(&f, 3);
        assert_false(has_hung_up(&f));
        down(&m, &f);
}

static void a_front_end_that_was_hung_up_on_connects_again_and_loses_nothing(void **state) {
        FrontEnd f;
        Manager m;

        up(&m, &f);
        begin_message(&f);
        ask(&f, 1);
        expect_answer(&f, 1);
        manager_kill(&m);
        ask(&f, 2);
        manager_start(&m);
        fe_expect_hang_up(&f);

        (void) close(f.fd);
        f.fd = connect_unix(m.transport_path);
        assert_return_code(f.fd, errno);
        f.backend_fd = safe_close(f.backend_fd);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_send_queue(&f, 0, 2);
        expect_answer(&f, 2);
        down(&m, &f);
}

/* Block, under load */

static int make_disk(char *argument, size_t size, char *path) {
        int fd = mkostemp(path, O_CLOEXEC);

        assert_return_code(fd, errno);
        assert_return_code(ftruncate(fd, DISK_LOAD_SIZE), errno);
        (void) snprintf(argument, size, "--path=%s", path);
        return fd;
}

static void every_request_to_a_disk_is_done_once_and_right(void **state) {
        char path[] = "/var/tmp/test-recovery-XXXXXX", argument[64];
        DiskLoad load = { .seed = 1 };
        FrontEnd f;
        Manager m;
        int fd;

        fd = make_disk(argument, sizeof(argument), path);
        manager_up(&m, "vhost-user", (const char *const[]) { "block", argument, NULL });
        connect_front_end(&f, &m, 1, DISK_LOAD_NUM);
        settle(&m);
        disk_load_begin(&load, &f);
        manager_kill_at_random(&m, KILLS, 20 * USEC_PER_MSEC);
        while (manager_is_killing(&m))
                (void) disk_load_step(&load, &f, true, 100);
        manager_wait_for_kills(&m);
        disk_load_finish(&load, &f);
        print_message("# %u requests over %u deaths, at least %u of each of %u\n", load.n_done, KILLS, disk_load_least(&load), DISK_LOAD_DEPTH);
        assert_true(disk_load_least(&load) > 1);
        assert_false(has_hung_up(&f));
        down(&m, &f);
        (void) close(fd);
        (void) unlink(path);
}

/* Who says that each write is to last does not flush. */
static void a_disk_stays_write_through(void **state) {
        char path[] = "/var/tmp/test-recovery-XXXXXX", argument[64];
        struct virtio_blk_config config;
        FrontEnd f;
        Manager m;
        int fd;

        fd = make_disk(argument, sizeof(argument), path);
        manager_up(&m, "vhost-user", (const char *const[]) { "block", argument, NULL });
        connect_front_end(&f, &m, 1, 8);
        settle(&m);
        for (uint8_t wce = 0; wce < 2; wce++) {
                assert_int_equal(fe_set_config(&f, offsetof(struct virtio_blk_config, wce), &wce, sizeof(wce)), 0);
                settle(&m);
                manager_restart(&m);
                fe_get_config(&f, &config, offsetof(struct virtio_blk_config, wce) + sizeof(wce));
                assert_int_equal(config.wce, wce);
        }
        assert_false(has_hung_up(&f));
        down(&m, &f);
        (void) close(fd);
        (void) unlink(path);
}

/* Console: numbered lines each way, of which none may be missing or come twice */

enum { CONSOLE_RECEIVE, CONSOLE_TRANSMIT };

typedef struct Lines {
        char have[64];
        size_t n;
        unsigned next; /* the number of the next line */
} Lines;

#define LINE_SIZE 9U

static void put_line(char *to, unsigned number) {
        char line[LINE_SIZE + 1];

        (void) snprintf(line, sizeof(line), "%08u\n", number);
        memcpy(to, line, LINE_SIZE);
}

static void check_lines(Lines *l, const char *data, size_t n) {
        for (size_t i = 0; i < n; i++) {
                char line[LINE_SIZE];

                l->have[l->n++] = data[i];
                if (l->n < LINE_SIZE)
                        continue;
                put_line(line, l->next);
                if (memcmp(line, l->have, LINE_SIZE) != 0)
                        fail_msg("line %u is %.8s", l->next, l->have);
                l->next++;
                l->n = 0;
        }
}

#define CONSOLE_BUFFER(queue, i) (FE_BUFFERS + (queue) * MIB(1) + (uint64_t) (i) * KIB(1))
#define CONSOLE_NUM 32

static void guest_transmits(FrontEnd *f, uint16_t i, unsigned *next) {
        char *to = (char *) f->ram + CONSOLE_BUFFER(CONSOLE_TRANSMIT, i);
        unsigned n = 1 + *next % 17; /* lines at once */

        for (unsigned k = 0; k < n; k++)
                put_line(to + k * LINE_SIZE, (*next)++);
        fe_desc(f, CONSOLE_TRANSMIT, i, FE_ADDRESS(CONSOLE_BUFFER(CONSOLE_TRANSMIT, i)), n * LINE_SIZE, 0, 0);
        fe_offer(f, CONSOLE_TRANSMIT, i);
}

static void guest_receives(FrontEnd *f, uint16_t i) {
        fe_desc(f, CONSOLE_RECEIVE, i, FE_ADDRESS(CONSOLE_BUFFER(CONSOLE_RECEIVE, i)), 16 + i, VRING_DESC_F_WRITE, 0);
        fe_offer(f, CONSOLE_RECEIVE, i);
}

/* A client of the console that is there from the beginning. */
static int attach(Manager *m) {
        static const char text[] = "{\"method\":\"io.vmmd.Device.OpenConsole\"}";
        _cleanup_close_ int s = connect_unix(m->varlink_path);
        char reply[512];
        size_t n_fds = 1;
        int fd = -EBADF;

        assert_return_code(s, errno);
        assert_int_equal(write(s, text, sizeof(text)), sizeof(text));
        assert_true(recv_with_fds(s, reply, sizeof(reply), &fd, &n_fds, 0) > 0);
        assert_int_equal(n_fds, 1);
        assert_return_code(fcntl(fd, F_SETFL, O_NONBLOCK), errno);
        return fd;
}

static void client_reads(int client, Lines *l) {
        char buffer[4096];
        ssize_t n;

        while ((n = read(client, buffer, sizeof(buffer))) > 0)
                check_lines(l, buffer, (size_t) n);
        if (n == 0)
                fail_msg("the client was dropped at line %u", l->next);
        assert_int_equal(errno, EAGAIN);
}

/* Whole lines, as far as the socket takes them. */
static void client_types(int client, unsigned *next) {
        char line[LINE_SIZE];
        int unread = 0;

        assert_return_code(ioctl(client, SIOCOUTQ, &unread), errno);
        while (unread < (int) KIB(16)) {
                put_line(line, *next);
                assert_int_equal(write(client, line, LINE_SIZE), LINE_SIZE);
                (*next)++;
                unread += (int) KIB(1); /* as the kernel counts */
        }
}

static void console_step(FrontEnd *f, int client, Lines *seen, Lines *typed, unsigned *transmitted, bool more) {
        struct vring_used_elem e;

        while (fe_used(f, CONSOLE_TRANSMIT, 0, &e))
                if (more)
                        guest_transmits(f, (uint16_t) e.id, transmitted);
        while (fe_used(f, CONSOLE_RECEIVE, 0, &e)) {
                check_lines(typed, (char *) f->ram + CONSOLE_BUFFER(CONSOLE_RECEIVE, e.id), e.len);
                guest_receives(f, (uint16_t) e.id);
        }
        fe_kick(f, CONSOLE_TRANSMIT);
        fe_kick(f, CONSOLE_RECEIVE);
        client_reads(client, seen);
}

static void a_console_keeps_its_clients_and_neither_loses_nor_repeats_a_byte(void **state) {
        const char *arguments[] = { "console", NULL };
        unsigned transmitted = 0, sent = 0;
        Lines seen = {}, typed = {};
        uint64_t end;
        FrontEnd f;
        Manager m;
        int client;

        manager_up(&m, "vhost-user", arguments);
        connect_front_end(&f, &m, 2, CONSOLE_NUM);
        settle(&m);
        client = attach(&m);
        for (uint16_t i = 0; i < CONSOLE_NUM; i++) {
                guest_receives(&f, i);
                guest_transmits(&f, i, &transmitted);
        }
        manager_kill_at_random(&m, KILLS, 15 * USEC_PER_MSEC);
        while (manager_is_killing(&m)) {
                client_types(client, &sent);
                console_step(&f, client, &seen, &typed, &transmitted, true);
        }
        manager_wait_for_kills(&m);
        end = now_usec() + 60 * USEC_PER_SEC;
        while ((seen.next < transmitted || typed.next < sent) && now_usec() < end)
                console_step(&f, client, &seen, &typed, &transmitted, false);
        print_message("# %u lines out, %u in over %u deaths\n", seen.next, typed.next, KILLS);
        assert_int_equal(seen.next, transmitted);
        assert_int_equal(typed.next, sent);
        assert_true(seen.next > 1000 && typed.next > 1000);
        assert_false(has_hung_up(&f));
        (void) close(client);
        down(&m, &f);
}

static char *pty_of(Manager *m) {
        const char *reply = fe_call(m->varlink_path, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF), *at = strstr(reply, "\"pty\":\"");

        assert_non_null(at);
        return strndup(at + strlen("\"pty\":\""), strcspn(at + strlen("\"pty\":\""), "\""));
}

static void a_console_keeps_its_pseudo_terminal(void **state) {
        const char *arguments[] = { "console", NULL };
        _cleanup_free_ char *before = NULL, *after = NULL;
        struct vring_used_elem e;
        FrontEnd f;
        Manager m;
        int pty;

        manager_up(&m, "vhost-user", arguments);
        connect_front_end(&f, &m, 2, 8);
        settle(&m);
        before = pty_of(&m);
        pty = open(before, O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_return_code(pty, errno);
        for (unsigned i = 0; i < 3; i++) {
                char buffer[16] = {};

                manager_restart(&m);
                guest_receives(&f, 0);
                fe_kick(&f, CONSOLE_RECEIVE);
                assert_int_equal(write(pty, "typed", 5), 5);
                e = fe_wait(&f, CONSOLE_RECEIVE);
                assert_int_equal(e.len, 5);
                assert_memory_equal(f.ram + CONSOLE_BUFFER(CONSOLE_RECEIVE, 0), "typed", 5);
                memcpy(f.ram + CONSOLE_BUFFER(CONSOLE_TRANSMIT, 0), "shown", 5);
                fe_desc(&f, CONSOLE_TRANSMIT, 0, FE_ADDRESS(CONSOLE_BUFFER(CONSOLE_TRANSMIT, 0)), 5, 0, 0);
                fe_offer(&f, CONSOLE_TRANSMIT, 0);
                fe_kick(&f, CONSOLE_TRANSMIT);
                assert_int_equal(read(pty, buffer, sizeof(buffer)), 5);
                assert_memory_equal(buffer, "shown", 5);
                (void) fe_wait(&f, CONSOLE_TRANSMIT);
        }
        after = pty_of(&m);
        assert_string_equal(before, after);
        (void) close(pty);
        down(&m, &f);
}

/* Who was kept a moment before he was noted, or is no longer noted and still kept, would wait for ever, and be taken for the next one in his place. */
static void a_console_lets_go_of_clients_that_it_does_not_know(void **state) {
        const char *arguments[] = { "console", NULL };
        struct pollfd end = { .events = POLLIN };
        int known, pair[2];
        FrontEnd f;
        Manager m;
        char byte;

        manager_up(&m, "vhost-user", arguments);
        connect_front_end(&f, &m, 2, 8);
        settle(&m);
        known = attach(&m);
        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), errno);
        manager_kill(&m);
        manager_give(&m, "terminal-00-client-5", pair[0]);
        manager_start(&m);
        end.fd = pair[1];
        assert_int_equal(poll(&end, 1, 60000), 1);
        assert_int_equal(read(pair[1], &byte, 1), 0);
        assert_int_equal(manager_count(&m, "terminal-00-client-5"), 0);
        assert_int_equal(manager_count(&m, "terminal-00-client-"), 1);
        assert_int_equal(read(known, &byte, 1), -1);
        assert_int_equal(errno, EAGAIN);
        (void) close(pair[1]);
        (void) close(known);
        down(&m, &f);
}

/* Serial port: the same by single accesses */

static uint8_t port_in(BusClient *c, unsigned offset) {
        uint8_t v = 0;

        assert_int_equal(bus_client_access(c, 0, offset, false, &v, 1), 0);
        return v;
}

static void port_out(BusClient *c, unsigned offset, uint8_t v) {
        assert_int_equal(bus_client_access(c, 1, offset, true, &v, 1), 0);
}

typedef struct Port {
        BusClient *client;
        int terminal, irq;
        Lines seen, typed;
        unsigned transmitted, sent, at; /* `at` of the line under way */
} Port;

static void port_up(Port *p, Manager *m) {
        static const BusSpace com1 = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = 8 };

        *p = (Port) { .irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
        manager_up(m, "bus", (const char *const[]) { "serial", "--output=none", NULL });
        assert_int_equal(bus_client_new(2, &com1, &p->irq, 1, &p->client), 0);
        assert_int_equal(bus_client_connect_path(p->client, m->transport_path), 0);
        assert_int_equal(bus_client_wait(p->client, 60 * USEC_PER_SEC, NULL), 0);
        p->terminal = attach(m);
        port_out(p->client, 2, 1); /* FIFOs */
}

static void port_down(Port *p, Manager *m) {
        p->client = bus_client_free(p->client);
        (void) close(p->terminal);
        (void) close(p->irq);
        manager_down(m);
}

static void port_step(Port *p, bool more) {
        char line[LINE_SIZE];

        put_line(line, p->transmitted);
        if (more && port_in(p->client, 5) & 0x20) {
                port_out(p->client, 0, (uint8_t) line[p->at]);
                if (++p->at == LINE_SIZE) {
                        p->at = 0;
                        p->transmitted++;
                }
        }
        if (port_in(p->client, 5) & 1) {
                char c = (char) port_in(p->client, 0);

                check_lines(&p->typed, &c, 1);
        }
        client_reads(p->terminal, &p->seen);
}

static void a_serial_port_does_each_access_once(void **state) {
        uint64_t end;
        Manager m;
        Port p;

        port_up(&p, &m);
        manager_kill_at_random(&m, KILLS, 15 * USEC_PER_MSEC);
        while (manager_is_killing(&m) || p.at != 0) {
                if (manager_is_killing(&m))
                        client_types(p.terminal, &p.sent);
                port_step(&p, true);
        }
        manager_wait_for_kills(&m);
        end = now_usec() + 60 * USEC_PER_SEC;
        while ((p.seen.next < p.transmitted || p.typed.next < p.sent) && now_usec() < end)
                port_step(&p, false);
        print_message("# %u lines out, %u in over %u deaths\n", p.seen.next, p.typed.next, KILLS);
        assert_int_equal(p.seen.next, p.transmitted);
        assert_int_equal(p.typed.next, p.sent);
        assert_true(p.seen.next > 100 && p.typed.next > 100);
        assert_true(bus_client_is_connected(p.client));
        assert_int_equal(bus_client_process(p.client, NULL), 0); /* nor did the helper hang up */
        port_down(&p, &m);
}

static void a_serial_ports_client_that_is_not_greeted_connects_again(void **state) {
        uint32_t busy = 1;
        Manager m;
        Port p;
        int fd;

        port_up(&p, &m);
        port_out(p.client, 7, 0x5a); /* a register that keeps what is written */
        manager_kill(&m);
        fd = manager_peek(&m, "session-state");
        assert_int_equal(pwrite(fd, &busy, sizeof(busy), 8), sizeof(busy));
        (void) close(fd);
        manager_start(&m);
        assert_int_equal(bus_client_process(p.client, NULL), -ECONNRESET);
        assert_int_equal(manager_count(&m, "session-"), 0);
        bus_client_disconnected(p.client, 10 * USEC_PER_SEC);
        assert_int_equal(bus_client_connect_path(p.client, m.transport_path), 0);
        assert_int_equal(bus_client_wait(p.client, 60 * USEC_PER_SEC, NULL), 0);
        assert_int_equal(port_in(p.client, 7), 0x5a);
        manager_restart(&m);
        assert_int_equal(port_in(p.client, 7), 0x5a);
        port_down(&p, &m);
}

/* Network: numbered packets, of which none may be wrong or out of order. What is under way from the tap to the guest may be lost, as packets are. */

#define PACKET_NUM 64
#define PACKET_HEADER 12U
#define PACKET_BUFFER(queue, i) (FE_BUFFERS + (queue) * MIB(1) + (uint64_t) (i) * KIB(2))

static size_t make_packet(uint8_t *to, uint32_t number) {
        size_t length = 64 + number % 1200;

        memcpy(to, "\x52\x54\x00\x12\x34\x56\x02\x00\x00\x00\x00\x01\x88\xb5", 14);
        memcpy(to + 14, &number, sizeof(number));
        for (size_t i = 18; i < length; i++)
                to[i] = (uint8_t) (number * 7 + i + i / 251);
        return length;
}

/* Returns its number. */
static uint32_t check_packet(const uint8_t *data, size_t length) {
        uint8_t expected[2048];
        uint32_t number;

        assert_true(length >= 64);
        memcpy(&number, data + 14, sizeof(number));
        assert_int_equal(make_packet(expected, number), length);
        assert_memory_equal(data, expected, length);
        return number;
}

static struct ifreq interface_request(const char *name) {
        struct ifreq r = {};

        (void) snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
        return r;
}

/* Returns the tap; *ret_host is a socket at its other end. */
static int make_tap(int *ret_host) {
        struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
        struct ifreq r = interface_request("recovery");
        int tap, host, size = (int) MIB(16);

        tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
        if (tap < 0)
                return -errno;
        r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        assert_return_code(ioctl(tap, TUNSETIFF, &r), errno);
        host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
        assert_return_code(host, errno);
        r = interface_request("recovery");
        r.ifr_flags = IFF_UP;
        assert_return_code(ioctl(host, SIOCSIFFLAGS, &r), errno);
        r = interface_request("recovery");
        assert_return_code(ioctl(host, SIOCGIFINDEX, &r), errno);
        address.sll_ifindex = r.ifr_ifindex;
        assert_return_code(bind(host, (struct sockaddr *) &address, sizeof(address)), errno);
        (void) setsockopt(host, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
        (void) setsockopt(host, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &(int) { 1 }, sizeof(int));
        *ret_host = host;
        return tap;
}

typedef struct Packets {
        uint32_t transmitted, received, sent; /* the number of the next one */
        unsigned n_received, n_repeated;
        uint32_t seen;
} Packets;

static void offer_packet(FrontEnd *f, uint16_t i, Packets *p) {
        size_t length = make_packet(f->ram + PACKET_BUFFER(1, i) + PACKET_HEADER, p->transmitted++);

        memset(f->ram + PACKET_BUFFER(1, i), 0, PACKET_HEADER);
        fe_desc(f, 1, i, FE_ADDRESS(PACKET_BUFFER(1, i)), (uint32_t) length + PACKET_HEADER, 0, 0);
        fe_offer(f, 1, i);
}

static void offer_packet_buffer(FrontEnd *f, uint16_t i) {
        fe_desc(f, 0, i, FE_ADDRESS(PACKET_BUFFER(0, i)), KIB(2), VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, i);
}

static void host_reads(int host, Packets *p) {
        uint8_t packet[2048];
        ssize_t n;

        while ((n = recv(host, packet, sizeof(packet), MSG_DONTWAIT)) > 0) {
                uint32_t number;

                if (packet[12] != 0x88 || packet[13] != 0xb5)
                        continue; /* the kernel's own */
                number = check_packet(packet, (size_t) n);
                /* What was handed over and not shown as used is handed over again. */
                if (number < p->seen) {
                        assert_true(p->seen - number <= PACKET_NUM);
                        p->n_repeated++;
                        p->seen = number;
                }
                assert_int_equal(number, p->seen);
                p->seen++;
        }
}

static void packets_step(FrontEnd *f, int host, Packets *p, bool more) {
        uint8_t packet[2048];
        struct vring_used_elem e;

        while (fe_used(f, 1, 0, &e))
                if (more)
                        offer_packet(f, (uint16_t) e.id, p);
        while (fe_used(f, 0, 0, &e)) {
                const uint8_t *data = f->ram + PACKET_BUFFER(0, e.id) + PACKET_HEADER;

                if (data[12] == 0x88 && data[13] == 0xb5) {
                        uint32_t number = check_packet(data, e.len - PACKET_HEADER);

                        assert_true(number >= p->received);
                        p->received = number + 1;
                        p->n_received++;
                }
                offer_packet_buffer(f, (uint16_t) e.id);
        }
        fe_kick(f, 0);
        fe_kick(f, 1);
        for (unsigned i = 0; more && i < 4; i++)
                if (send(host, packet, make_packet(packet, p->sent), MSG_DONTWAIT) > 0)
                        p->sent++;
        host_reads(host, p);
}

static void packets_are_neither_wrong_nor_out_of_order_nor_lost_on_their_way_out(void **state) {
        uint64_t without = ~(UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES | UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
        Packets p = {};
        uint64_t end;
        FrontEnd f;
        Manager m;
        int tap, host = -EBADF;

        tap = unshare(CLONE_NEWNET) < 0 ? -errno : make_tap(&host);
        if (tap < 0)
                skip(); /* no right to, or no taps here */
        manager_prepare(&m, "vhost-user", (const char *const[]) { "net", "--interface=recovery", "--mac=52:54:00:12:34:56", NULL });
        manager_give(&m, "interface", tap);
        manager_start(&m);
        connect_front_end_without(&f, &m, 2, PACKET_NUM, without);
        settle(&m);
        for (uint16_t i = 0; i < PACKET_NUM; i++) {
                offer_packet_buffer(&f, i);
                offer_packet(&f, i, &p);
        }
        manager_kill_at_random(&m, KILLS, 15 * USEC_PER_MSEC);
        while (manager_is_killing(&m))
                packets_step(&f, host, &p, true);
        manager_wait_for_kills(&m);
        end = now_usec() + 60 * USEC_PER_SEC;
        while ((p.seen < p.transmitted || p.received == 0) && now_usec() < end)
                packets_step(&f, host, &p, false);
        print_message("# %u packets out, %u times some again; %u of %u in, over %u deaths\n", p.seen, p.n_repeated, p.n_received, p.sent, KILLS);
        assert_int_equal(p.seen, p.transmitted);
        assert_true(p.seen > 1000 && p.n_received > 100);
        assert_false(has_hung_up(&f));
        (void) close(host);
        down(&m, &f);
}

/* Balloon: what the guest gives away is gone when it is told so */

#define PAGE KIB(4)
#define PAGES 1024U

static void a_balloon_takes_each_page_that_it_says_it_has(void **state) {
        uint64_t without = ~(UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES | UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
        struct virtio_balloon_config config;
        unsigned n = 0;
        FrontEnd f;
        Manager m;

        manager_up(&m, "vhost-user", (const char *const[]) { "balloon", "--initial=4M", NULL });
        connect_front_end_without(&f, &m, 2, 8, without);
        settle(&m);
        assert_int_equal(fe_set_config(&f, offsetof(struct virtio_balloon_config, actual), &(uint32_t) { 77 }, sizeof(uint32_t)), 0);
        assert_int_equal(fe_set_config(&f, offsetof(struct virtio_balloon_config, poison_val), &(uint32_t) { 0xaaaaaaaa }, sizeof(uint32_t)), 0);
        settle(&m);
        manager_kill_at_random(&m, KILLS, 10 * USEC_PER_MSEC);
        while (manager_is_killing(&m)) {
                uint8_t *page = f.ram + MIB(8) + (n++ % PAGES) * PAGE;
                uint32_t pfn = (uint32_t) (FE_ADDRESS((uint64_t) (page - f.ram)) / PAGE);

                memset(page, 0xaa, PAGE);
                memcpy(f.ram + FE_BUFFERS, &pfn, sizeof(pfn));
                fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), sizeof(pfn), 0, 0);
                fe_offer(&f, 0, 0);
                fe_kick(&f, 0);
                (void) fe_wait(&f, 0);
                assert_int_equal(page[0] | page[PAGE - 1], 0);
        }
        manager_wait_for_kills(&m);
        fe_get_config(&f, &config, sizeof(config));
        assert_int_equal(config.num_pages, MIB(4) / PAGE);
        assert_int_equal(config.actual, 77);
        assert_int_equal(config.poison_val, 0xaaaaaaaa);
        print_message("# %u pages over %u deaths\n", n, KILLS);
        assert_false(has_hung_up(&f));
        down(&m, &f);
}

/* Persistent memory: each flush is answered once */

static void persistent_memory_is_flushed_once_for_each_request(void **state) {
        char path[] = "/var/tmp/test-recovery-XXXXXX", argument[64];
        struct vring_used_elem e;
        unsigned n = 0;
        FrontEnd f;
        Manager m;
        int fd;

        fd = make_disk(argument, sizeof(argument), path);
        manager_up(&m, "vhost-user", (const char *const[]) { "pmem", argument, NULL });
        connect_front_end(&f, &m, 1, 8);
        settle(&m);
        manager_kill_at_random(&m, KILLS / 2, 10 * USEC_PER_MSEC);
        for (; manager_is_killing(&m); n++) {
                memset(f.ram + FE_BUFFERS, 0, 4);
                memset(f.ram + FE_BUFFERS + 64, 0xff, 4);
                fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 4, VRING_DESC_F_NEXT, 1);
                fe_desc(&f, 0, 1, FE_ADDRESS(FE_BUFFERS + 64), 4, VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 0, 0);
                fe_kick(&f, 0);
                e = fe_wait(&f, 0);
                assert_int_equal(e.len, 4);
                assert_int_equal(f.ram[FE_BUFFERS + 64], 0);
        }
        manager_wait_for_kills(&m);
        assert_false(fe_used(&f, 0, 20, &e));
        print_message("# %u flushes over %u deaths\n", n, KILLS / 2);
        assert_false(has_hung_up(&f));
        down(&m, &f);
        (void) close(fd);
        (void) unlink(path);
}

/* Sockets: the connections died with the helper, and the guest is told so */

static void a_vsock_guest_is_told_that_its_connections_are_gone(void **state) {
        struct virtio_vsock_hdr response, request = { .src_cid = 5, .dst_cid = 2, .dst_port = VSOCK_NOTIFY_PORT, .type = VIRTIO_VSOCK_TYPE_STREAM,
                                                      .op = VIRTIO_VSOCK_OP_REQUEST, .buf_alloc = KIB(4) };
        struct vring_used_elem e;
        uint32_t event;
        FrontEnd f;
        Manager m;

        manager_up(&m, "vhost-user", (const char *const[]) { "vsock", "--cid=5", NULL });
        connect_front_end(&f, &m, 3, 8);
        settle(&m);
        for (unsigned i = 0; i < 4; i++) {
                /* Where there is room to say that it has to be done again, it is done. */
                fe_desc(&f, 2, 0, FE_ADDRESS(FE_BUFFERS + KIB(4)), sizeof(event), VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 2, 0);
                fe_kick(&f, 2);
                /* There is somebody whom it concerns: nobody is connected before that room was seen. */
                fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS + KIB(8)), KIB(4), VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 0, 0);
                fe_kick(&f, 0);
                request.src_port = 1000 + i;
                memcpy(f.ram + FE_BUFFERS, &request, sizeof(request));
                fe_desc(&f, 1, 0, FE_ADDRESS(FE_BUFFERS), sizeof(request), 0, 0);
                fe_offer(&f, 1, 0);
                fe_kick(&f, 1);
                (void) fe_wait(&f, 1);
                (void) fe_wait(&f, 0);
                memcpy(&response, f.ram + FE_BUFFERS + KIB(8), sizeof(response));
                assert_int_equal(response.op, VIRTIO_VSOCK_OP_RESPONSE);
                assert_int_equal(response.dst_port, request.src_port);

                manager_restart(&m);
                e = fe_wait(&f, 2);
                assert_int_equal(e.len, sizeof(event));
                memcpy(&event, f.ram + FE_BUFFERS + KIB(4), sizeof(event));
                assert_int_equal(event, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
        }
        assert_false(has_hung_up(&f));
        down(&m, &f);
}

/* Input: what is typed comes after a death as before */

static void a_keyboard_goes_on(void **state) {
        static const char press[] = "{\"method\":\"io.vmmd.Input.PressKeys\",\"parameters\":{\"keys\":[\"a\"]}}";
        struct virtio_input_event { uint16_t type, code; uint32_t value; } first;
        FrontEnd f;
        Manager m;

        manager_up(&m, "vhost-user", (const char *const[]) { "input", NULL });
        connect_front_end(&f, &m, 2, 64);
        settle(&m);
        for (uint16_t i = 0; i < 64; i++) {
                fe_desc(&f, 0, i, FE_ADDRESS(FE_BUFFERS + i * 64), 8, VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 0, i);
        }
        for (unsigned i = 0; i < 4; i++) {
                struct vring_used_elem e;

                manager_restart(&m);
                fe_kick(&f, 0);
                /* Who types before the rings are taken up is told that there is no driver. */
                for (unsigned k = 0; strstr(fe_call(m.varlink_path, press, -EBADF), "error"); k++) {
                        assert_in_range(k, 0, 1000);
                        (void) usleep(1000);
                }
                e = fe_wait(&f, 0);
                memcpy(&first, f.ram + FE_BUFFERS + e.id * 64, sizeof(first));
                assert_int_equal(first.type, 1);  /* EV_KEY */
                assert_int_equal(first.code, 30); /* KEY_A */
                assert_int_equal(first.value, 1);
                while (fe_used(&f, 0, 200, &e)) /* a report each, and the key is let go */
                        ;
        }
        assert_false(has_hung_up(&f));
        down(&m, &f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_session_torn_within_a_message_is_closed_and_nothing_of_it_kept),
                cmocka_unit_test(the_mark_is_set_before_anything_is_read),
                cmocka_unit_test(another_versions_session_is_closed),
                cmocka_unit_test(a_session_that_is_kept_in_part_is_closed),
                cmocka_unit_test(who_keeps_no_log_connects_again),
                cmocka_unit_test(nothing_is_kept_of_a_session_that_has_ended),
                cmocka_unit_test(who_hangs_up_while_nobody_is_there_is_let_go),
                cmocka_unit_test(a_unit_that_is_given_up_lets_its_front_end_know),
                cmocka_unit_test(a_session_that_cannot_be_kept_is_served_all_the_same),
                cmocka_unit_test(who_cannot_be_a_disk_says_so_to_whoever_waits),
                cmocka_unit_test(a_successor_goes_on_without_its_front_ends_noticing),
                cmocka_unit_test(a_request_that_comes_while_nobody_is_there_is_answered),
                cmocka_unit_test(a_ring_that_is_stopped_while_nobody_is_there_is_where_it_was),
                cmocka_unit_test(a_ring_that_was_stopped_stays_stopped),
                cmocka_unit_test(memory_that_comes_in_two_pieces_of_one_file_is_kept),
                cmocka_unit_test(a_front_end_that_was_hung_up_on_connects_again_and_loses_nothing),
                cmocka_unit_test(every_request_to_a_disk_is_done_once_and_right),
                cmocka_unit_test(a_disk_stays_write_through),
                cmocka_unit_test(a_console_keeps_its_clients_and_neither_loses_nor_repeats_a_byte),
                cmocka_unit_test(a_console_keeps_its_pseudo_terminal),
                cmocka_unit_test(a_console_lets_go_of_clients_that_it_does_not_know),
                cmocka_unit_test(a_serial_port_does_each_access_once),
                cmocka_unit_test(a_balloon_takes_each_page_that_it_says_it_has),
                cmocka_unit_test(persistent_memory_is_flushed_once_for_each_request),
                cmocka_unit_test(a_vsock_guest_is_told_that_its_connections_are_gone),
                cmocka_unit_test(a_keyboard_goes_on),
                cmocka_unit_test(packets_are_neither_wrong_nor_out_of_order_nor_lost_on_their_way_out),
                cmocka_unit_test(a_serial_ports_client_that_is_not_greeted_connects_again),
        };

        return cmocka_run_group_tests_name("recovery", tests, NULL, NULL);
}
