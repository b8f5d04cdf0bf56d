/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The state of each device, from one helper to another of its kind, by the descriptor that the front-end gives. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_console.h>
#include <linux/virtio_input.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include "front-end.h"
#include "state.h"

#define STATE_MAX KIB(64)

static char disk[64], disk_option[80];

typedef struct State {
        uint8_t data[STATE_MAX];
        size_t size;
} State;

static void spawn(FrontEnd *f, const char *const *arguments) {
        fe_spawn(f, arguments);
        fe_negotiate(f, 0);
        assert_true(f->protocol_features & (UINT64_C(1) << VHOST_USER_PROTOCOL_F_DEVICE_STATE));
}

/* What the helper says to the descriptor, and the one that it gives in place of it; negative where there is none. */
static uint64_t begin(FrontEnd *f, uint32_t direction, uint32_t phase, int fd, int *ret_fd) {
        const VhostUserTransfer transfer = { .direction = direction, .phase = phase };
        int fds[VHOST_USER_FDS_MAX];
        size_t n_fds = ELEMENTSOF(fds);
        VhostUserMsg msg;

        fe_send(f, VHOST_USER_SET_DEVICE_STATE_FD, &transfer, sizeof(transfer), &fd, 1);
        assert_int_equal(vhost_user_recv(f->fd, &msg, fds, &n_fds), 0);
        assert_int_equal(msg.header.request, VHOST_USER_SET_DEVICE_STATE_FD);
        assert_int_equal(n_fds, msg.payload.u64 & VHOST_USER_TRANSFER_NOFD ? 0 : 1);
        *ret_fd = n_fds > 0 ? fds[0] : -EBADF;
        return msg.payload.u64;
}

static int begin_well(FrontEnd *f, uint32_t direction) {
        int p[2], fd;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        assert_int_equal(begin(f, direction, VHOST_USER_TRANSFER_PHASE_STOPPED, p[direction == VHOST_USER_TRANSFER_DIRECTION_SAVE], &fd), 0);
        (void) close(p[0]);
        (void) close(p[1]);
        return fd;
}

static void begin_in_vain(FrontEnd *f, uint32_t direction, uint32_t phase) {
        int p[2], fd;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        assert_int_equal(begin(f, direction, phase, p[1], &fd), VHOST_USER_TRANSFER_NOFD | 1);
        (void) close(p[0]);
        (void) close(p[1]);
}

static void save(FrontEnd *f, State *ret) {
        int fd = begin_well(f, VHOST_USER_TRANSFER_DIRECTION_SAVE);

        ret->size = 0;
        for (;;) {
                struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
                ssize_t n;

                assert_int_equal(poll(&poll_fd, 1, 60000), 1);
                n = read(fd, ret->data + ret->size, STATE_MAX - ret->size);
                assert_true(n >= 0);
                if (n == 0)
                        break;
                ret->size += (size_t) n;
        }
        (void) close(fd);
        assert_int_equal(fe_get_u64(f, VHOST_USER_CHECK_DEVICE_STATE), 0);
}

/* 0 where the helper has taken it. */
static uint64_t load(FrontEnd *f, const void *data, size_t size) {
        int fd = begin_well(f, VHOST_USER_TRANSFER_DIRECTION_LOAD);

        assert_int_equal(write_full(fd, data, size), 0);
        (void) close(fd);
        return fe_get_u64(f, VHOST_USER_CHECK_DEVICE_STATE);
}

static const char *const rng[] = { "rng", NULL };
static const char *const balloon[] = { "balloon", NULL };
static const char *const console[] = { "console", "--ports=agent", NULL };
static const char *const input[] = { "input", NULL };
static const char *const vsock[] = { "vsock", NULL };
static const char *const block[] = { "block", disk_option, NULL };
static const char *const pmem[] = { "pmem", disk_option, NULL };
static const char *const *const all[] = { rng, balloon, console, input, vsock, block, pmem };

static void make_disk(void) {
        int fd;

        (void) snprintf(disk, sizeof(disk), "/tmp/test-device-state.%d", getpid());
        (void) snprintf(disk_option, sizeof(disk_option), "--path=%s", disk);
        fd = open(disk, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, (off_t) MIB(2)), 0);
        (void) close(fd);
}

/* --- what holds for all --- */

static void each_takes_what_its_like_gave_and_gives_the_same(void **state) {
        for (size_t i = 0; i < ELEMENTSOF(all); i++) {
                State before, after;
                FrontEnd f;

                spawn(&f, all[i]);
                save(&f, &before);
                fe_end(&f);
                spawn(&f, all[i]);
                assert_int_equal(load(&f, before.data, before.size), 0);
                save(&f, &after);
                assert_int_equal(after.size, before.size);
                assert_memory_equal(after.data, before.data, before.size);
                fe_end(&f);
        }
}

static void none_takes_that_of_another_kind(void **state) {
        State other;
        FrontEnd f;

        for (size_t i = 0; i < ELEMENTSOF(all); i++) {
                spawn(&f, all[i]);
                save(&f, &other);
                fe_end(&f);
                spawn(&f, all[(i + 1) % ELEMENTSOF(all)]);
                assert_int_equal(load(&f, other.data, other.size), 1);
                assert_true(fe_alive(&f));
                fe_end(&f);
        }
}

static void none_takes_nonsense(void **state) {
        for (size_t i = 0; i < ELEMENTSOF(all); i++) {
                State good, bad;
                FrontEnd f;

                spawn(&f, all[i]);
                save(&f, &good);
                assert_int_equal(load(&f, "", 0), 1);
                assert_int_equal(load(&f, good.data, good.size - 1), 1);
                assert_int_equal(load(&f, good.data, good.size / 2), 1);
                /* Any byte may be another: it may be taken, where it is another value, but never more than that. */
                for (size_t at = 0; at < good.size; at++) {
                        bad = good;
                        bad.data[at] ^= 0xff;
                        (void) load(&f, bad.data, bad.size);
                }
                assert_int_equal(load(&f, good.data, good.size), 0);
                assert_true(fe_alive(&f));
                fe_end(&f);
        }
}

static void not_while_its_rings_are_served(void **state) {
        State s;
        int fd;
        FrontEnd f;

        fe_start(&f, rng, 1, 16);
        (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        (void) fe_wait(&f, 0);
        begin_in_vain(&f, VHOST_USER_TRANSFER_DIRECTION_SAVE, VHOST_USER_TRANSFER_PHASE_STOPPED);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE), 1);
        (void) fe_stop_queue(&f, 0);
        save(&f, &s);

        /* Nor where they are while it is on its way. */
        fd = begin_well(&f, VHOST_USER_TRANSFER_DIRECTION_LOAD);
        fe_send_queue(&f, 0, 1);
        (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        (void) fe_wait(&f, 0);
        assert_int_equal(write_full(fd, s.data, s.size), 0);
        (void) close(fd);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE), 1);
        fe_end(&f);
}

/* Whatever a front-end hands over, the helper has nothing to do with it: it is not kept busy by it, nor waits for it. */
static void no_kind_of_descriptor_is_used(void **state) {
        State s;
        FrontEnd f;

        spawn(&f, rng);
        for (unsigned i = 0; i < 7; i++) {
                int fd = i == 0 ? open("/dev/zero", O_RDWR | O_CLOEXEC) : i == 1 ? open("/dev/full", O_RDWR | O_CLOEXEC) :
                        i == 2 ? eventfd(8, EFD_CLOEXEC) : i == 3 ? epoll_create1(EPOLL_CLOEXEC) : i == 4 ? open("/", O_DIRECTORY | O_CLOEXEC) :
                        i == 5 ? memfd_create("state", MFD_CLOEXEC) : timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), ours;

                assert_true(fd >= 0);
                for (uint32_t direction = 0; direction <= VHOST_USER_TRANSFER_DIRECTION_LOAD; direction++) {
                        assert_int_equal(begin(&f, direction, VHOST_USER_TRANSFER_PHASE_STOPPED, fd, &ours), 0);
                        (void) close(ours);
                        (void) fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE);
                }
                if (i == 5)
                        assert_int_equal(lseek(fd, 0, SEEK_END), 0);
                (void) close(fd);
        }
        save(&f, &s);
        assert_int_equal(load(&f, s.data, s.size), 0);
        assert_true(fe_alive(&f));
        fe_end(&f);
}

/* Nothing comes, or part of it, or nothing is taken; and all that the front-end has is made to block. A helper that waited would answer nothing. */
static void who_makes_descriptors_block_is_not_waited_for(void **state) {
        for (unsigned i = 0; i < 4; i++) {
                bool saves = i == 3;
                int p[2], fd;
                FrontEnd f;
                State s;

                spawn(&f, rng);
                assert_int_equal(pipe2(p, O_CLOEXEC), 0);
                assert_int_equal(begin(&f, saves ? VHOST_USER_TRANSFER_DIRECTION_SAVE : VHOST_USER_TRANSFER_DIRECTION_LOAD,
                        VHOST_USER_TRANSFER_PHASE_STOPPED, p[saves], &fd), 0);
                assert_int_equal(fcntl(p[saves], F_SETFL, 0), 0);
                assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
                if (i == 1)
                        assert_int_equal(write(p[1], "part", 4), 4);
                if (i == 2)
                        assert_int_equal(write(fd, "part", 4), 4);
                (void) fe_get_u64(&f, VHOST_USER_GET_FEATURES);
                if (!saves)
                        assert_int_equal(fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE), 1); /* it has not ended */
                (void) close(fd);
                (void) close(p[0]);
                (void) close(p[1]);
                save(&f, &s);
                assert_true(fe_alive(&f));
                fe_end(&f);
        }
}

static void other_phases_and_directions_are_refused(void **state) {
        FrontEnd f;
        int fd;

        spawn(&f, rng);
        begin_in_vain(&f, 2, 0);
        begin_in_vain(&f, 0, 1);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE), 1); /* nothing was transferred */
        /* A front-end that goes away in the middle, and one that never ends. */
        (void) close(begin_well(&f, VHOST_USER_TRANSFER_DIRECTION_SAVE));
        fd = begin_well(&f, VHOST_USER_TRANSFER_DIRECTION_LOAD);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_CHECK_DEVICE_STATE), 1);
        assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1); /* it has let go of it */
        (void) close(fd);
        assert_true(fe_alive(&f));
        fe_end(&f);
}

/* --- and each by itself --- */

static void a_balloon_keeps_its_size(void **state) {
        struct virtio_balloon_config config;
        uint32_t actual = 77, poison = 0xaaaaaaaa;
        State s;
        FrontEnd f;

        spawn(&f, balloon);
        assert_int_equal(fe_set_config(&f, offsetof(struct virtio_balloon_config, actual), &actual, sizeof(actual)), 0);
        assert_int_equal(fe_set_config(&f, offsetof(struct virtio_balloon_config, poison_val), &poison, sizeof(poison)), 0);
        save(&f, &s);
        fe_end(&f);
        fe_start(&f, balloon, 2, 16);
        (void) fe_stop_queue(&f, 0);
        (void) fe_stop_queue(&f, 1);
        assert_int_equal(load(&f, s.data, s.size), 0);
        fe_send_queue(&f, 0, 0);
        fe_send_queue(&f, 1, 0);
        (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        /* Memory that it has not seen is the one it is about. */
        fe_get_config(&f, &config, sizeof(config));
        assert_int_equal(config.actual, 77);
        assert_int_equal(config.poison_val, 0xaaaaaaaa);
        fe_end(&f);
}

static void a_keyboard_keeps_what_was_chosen(void **state) {
        struct virtio_input_config before, after;
        const uint8_t selection[] = { VIRTIO_INPUT_CFG_EV_BITS, 1 };
        State s;
        FrontEnd f;

        spawn(&f, input);
        assert_int_equal(fe_set_config(&f, 0, selection, sizeof(selection)), 0);
        fe_get_config(&f, &before, sizeof(before));
        save(&f, &s);
        fe_end(&f);
        spawn(&f, input);
        assert_int_equal(load(&f, s.data, s.size), 0);
        fe_get_config(&f, &after, sizeof(after));
        assert_true(before.size > 0);
        assert_memory_equal(&before, &after, sizeof(before));
        fe_end(&f);
}

static void a_disk_keeps_the_mode_of_its_cache(void **state) {
        const uint8_t write_through = 0;
        struct virtio_blk_config config;
        State s;
        FrontEnd f;

        spawn(&f, block);
        assert_int_equal(fe_set_config(&f, offsetof(struct virtio_blk_config, wce), &write_through, 1), 0);
        save(&f, &s);
        fe_end(&f);
        spawn(&f, block);
        assert_int_equal(load(&f, s.data, s.size), 0);
        fe_get_config(&f, &config, 60);
        assert_int_equal(config.wce, 0);
        fe_end(&f);
}

static void a_disk_that_changed_is_refused(void **state) {
        const char *const *const disks[] = { block, pmem };

        for (size_t i = 0; i < ELEMENTSOF(disks); i++) {
                struct stat st;
                State s;
                FrontEnd f;
                int fd;

                make_disk();
                spawn(&f, disks[i]);
                save(&f, &s);
                fe_end(&f);
                assert_int_equal(stat(disk, &st), 0);

                fd = open(disk, O_RDWR | O_CLOEXEC);
                assert_int_equal(pwrite(fd, "x", 1, 0), 1);
                spawn(&f, disks[i]);
                assert_int_equal(load(&f, s.data, s.size), 1);
                fe_end(&f);
                /* It is told by its time, which a copy keeps. */
                assert_int_equal(futimens(fd, (struct timespec[]) { st.st_atim, st.st_mtim }), 0);
                spawn(&f, disks[i]);
                assert_int_equal(load(&f, s.data, s.size), 0);
                fe_end(&f);
                assert_int_equal(ftruncate(fd, (off_t) MIB(4)), 0);
                assert_int_equal(futimens(fd, (struct timespec[]) { st.st_atim, st.st_mtim }), 0);
                spawn(&f, disks[i]);
                assert_int_equal(load(&f, s.data, s.size), 1);
                fe_end(&f);
                (void) close(fd);
        }
}

/* A state as its helper writes it. */
static void craft(State *ret, const char *type, const char *section, void (*fields)(StateWriter *w)) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        const void *data;

        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "device", 0, 1);
        state_put_blob(w, type, strlen(type));
        assert_int_equal(state_end(w), 0);
        state_begin(w, section, 0, 1);
        fields(w);
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, &ret->size), 0);
        assert_true(ret->size <= STATE_MAX);
        memcpy(ret->data, data, ret->size);
}

static void take_and_give_back(const char *const *arguments, const State *s) {
        State after;
        FrontEnd f;

        spawn(&f, arguments);
        assert_int_equal(load(&f, s->data, s->size), 0);
        save(&f, &after);
        assert_int_equal(after.size, s->size);
        assert_memory_equal(after.data, s->data, s->size);
        fe_end(&f);
}

static void refuse(const char *const *arguments, const State *s) {
        FrontEnd f;

        spawn(&f, arguments);
        assert_int_equal(load(&f, s->data, s->size), 1);
        fe_end(&f);
}

static void put_console(StateWriter *w) {
        state_put_u16(w, 132);
        state_put_u16(w, 43);
        state_put_u32(w, 2);
        for (unsigned i = 0; i < 2; i++) {
                state_put_u8(w, i == 0 ? 0 : 4); /* the driver is owed the name of the second */
                state_put_u8(w, true);
        }
}

static void put_wrong_console(StateWriter *w) {
        state_put_u16(w, 132);
        state_put_u16(w, 43);
        state_put_u32(w, 2);
        for (unsigned i = 0; i < 4; i++)
                state_put_u8(w, 4); /* the first has no name */
}

static void put_another_console(StateWriter *w) {
        state_put_u16(w, 132);
        state_put_u16(w, 43);
        state_put_u32(w, 1);
        state_put_u8(w, 0);
        state_put_u8(w, true);
}

static void a_console_keeps_its_size_and_which_ports_are_open(void **state) {
        struct virtio_console_config config;
        FrontEnd f;
        State s;

        craft(&s, "console", "console", put_console);
        take_and_give_back(console, &s);
        spawn(&f, console);
        assert_int_equal(load(&f, s.data, s.size), 0);
        fe_get_config(&f, &config, sizeof(config));
        assert_int_equal(config.cols, 132);
        assert_int_equal(config.rows, 43);
        fe_end(&f);
        craft(&s, "console", "console", put_wrong_console);
        refuse(console, &s);
        craft(&s, "console", "console", put_another_console);
        refuse(console, &s);
}

static void put_guest(StateWriter *w) {
        state_put_u8(w, true);
        state_put_blob(w, "Startup finished.", 17);
        state_put_blob(w, "demo", 4);
        state_put_blob(w, "", 0);
        state_put_blob(w, "multi-user.target", 17);
        state_put_u8(w, true); /* it was told of a reset, when it had offered so many buffers */
        state_put_u16(w, 300);
}

static void vsock_keeps_what_the_guest_has_said(void **state) {
        State s;

        craft(&s, "vsock", "vsock", put_guest);
        take_and_give_back(vsock, &s);
}

/* The guest had used its queues: it is told that its connections are gone. */
static void vsock_tells_the_guest_that_its_connections_are_gone(void **state) {
        static const uint16_t base = 5;
        struct vring_used_elem used;
        State s;
        FrontEnd f;

        spawn(&f, vsock);
        save(&f, &s);
        fe_end(&f);
        spawn(&f, vsock);
        assert_int_equal(load(&f, s.data, s.size), 0);
        fe_set_mem_table(&f);
        for (unsigned i = 0; i < 3; i++) {
                fe_lay_out_queue(&f, i, 16);
                f.queues[i].avail_idx = f.queues[i].used_idx = i == 2 ? 0 : base;
                f.queues[i].avail->idx = f.queues[i].used->idx = f.queues[i].avail_idx;
        }
        fe_desc(&f, 2, 0, FE_ADDRESS(FE_BUFFERS), 4, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 2, 0);
        for (unsigned i = 0; i < 3; i++)
                fe_send_queue(&f, i, i == 2 ? 0 : base);
        used = fe_wait(&f, 2);
        assert_int_equal(used.id, 0);
        assert_int_equal(used.len, 4);
        assert_int_equal(load_le32(f.ram + FE_BUFFERS), 0); /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */
        fe_end(&f);
}

static int set_up(void **state) {
        (void) signal(SIGPIPE, SIG_IGN);
        make_disk();
        return 0;
}

static int tear_down(void **state) {
        (void) unlink(disk);
        return 0;
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(none_takes_that_of_another_kind),
                cmocka_unit_test(none_takes_nonsense),
                cmocka_unit_test(not_while_its_rings_are_served),
                cmocka_unit_test(no_kind_of_descriptor_is_used),
                cmocka_unit_test(who_makes_descriptors_block_is_not_waited_for),
                cmocka_unit_test(other_phases_and_directions_are_refused),
                cmocka_unit_test(a_disk_that_changed_is_refused),
                cmocka_unit_test(each_takes_what_its_like_gave_and_gives_the_same),
                cmocka_unit_test(a_balloon_keeps_its_size),
                cmocka_unit_test(a_keyboard_keeps_what_was_chosen),
                cmocka_unit_test(a_disk_keeps_the_mode_of_its_cache),
                cmocka_unit_test(a_console_keeps_its_size_and_which_ports_are_open),
                cmocka_unit_test(vsock_keeps_what_the_guest_has_said),
                cmocka_unit_test(vsock_tells_the_guest_that_its_connections_are_gone),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
