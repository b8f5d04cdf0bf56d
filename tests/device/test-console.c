/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The console's helper as it is, with its seccomp policy: a driver on one side, clients and the pseudo terminal on the other. */

#include <fcntl.h>
#include <linux/virtio_console.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "front-end.h"

enum { RECEIVE = 0, TRANSMIT = 1 };

#define BUFFER(queue, i) (FE_BUFFERS + (queue) * MIB(1) + (uint64_t) (i) * KIB(4))

typedef struct Fixture {
        FrontEnd front_end;
        char directory[32], varlink[64], log[64];
} Fixture;

static void fixture_spawn(Fixture *f) {
        char a[80], b[80];

        (void) snprintf(f->directory, sizeof(f->directory), "/tmp/test-console-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s/varlink", f->directory);
        (void) snprintf(f->log, sizeof(f->log), "%s/log", f->directory);
        (void) snprintf(a, sizeof(a), "--varlink-path=%s", f->varlink);
        (void) snprintf(b, sizeof(b), "--log=%s", f->log);
        const char *const arguments[] = { "console", a, b, "--history=65536", NULL };
        fe_spawn(&f->front_end, arguments);
}

static void fixture_up(Fixture *f) {
        fixture_spawn(f);
        fe_negotiate(&f->front_end, 0);
        fe_set_mem_table(&f->front_end);
        fe_start_queue(&f->front_end, RECEIVE, 8);
        fe_start_queue(&f->front_end, TRANSMIT, 8);
}

static void fixture_down(Fixture *f) {
        fe_end(&f->front_end);
        (void) unlink(f->varlink);
        (void) unlink(f->log);
        (void) rmdir(f->directory);
}

/* A Varlink call by hand; returns the reply's text and possibly a descriptor. */
static char *call(Fixture *f, const char *text, int *ret_fd) {
        _cleanup_close_ int socket = -EBADF;
        static char reply[4096];
        size_t n_fds = 1;
        int fd = -EBADF;
        ssize_t n;

        for (unsigned i = 0; i < 500 && socket < 0; i++) {
                socket = connect_unix(f->varlink);
                if (socket < 0)
                        (void) usleep(10000);
        }
        assert_return_code(socket, 0);
        assert_int_equal(write(socket, text, strlen(text) + 1), (ssize_t) strlen(text) + 1);
        n = recv_with_fds(socket, reply, sizeof(reply) - 1, &fd, &n_fds, 0);
        assert_true(n > 0);
        reply[n] = 0;
        if (ret_fd)
                *ret_fd = fd;
        else
                assert_int_equal(n_fds, 0);
        return reply;
}

static int attach(Fixture *f) {
        int fd;

        assert_non_null(strstr(call(f, "{\"method\":\"io.vmmd.Device.OpenConsole\"}", &fd), "\"fileDescriptorIndex\":0"));
        assert_return_code(fd, 0);
        return fd;
}

/* The guest writes. */
static void transmit(Fixture *f, const char *text) {
        FrontEnd *fe = &f->front_end;

        memcpy(fe->ram + BUFFER(TRANSMIT, 0), text, strlen(text));
        fe_desc(fe, TRANSMIT, 0, FE_ADDRESS(BUFFER(TRANSMIT, 0)), (uint32_t) strlen(text), 0, 0);
        fe_offer(fe, TRANSMIT, 0);
        fe_kick(fe, TRANSMIT);
        assert_int_equal(fe_wait(fe, TRANSMIT).len, 0);
}

static void offer_buffer(Fixture *f, uint16_t i, uint32_t length) {
        fe_desc(&f->front_end, RECEIVE, i, FE_ADDRESS(BUFFER(RECEIVE, i)), length, VRING_DESC_F_WRITE, 0);
        fe_offer(&f->front_end, RECEIVE, i);
        fe_kick(&f->front_end, RECEIVE);
}

static void assert_reads(int fd, const char *expected) {
        char buffer[256] = {};
        size_t length = strlen(expected);

        for (size_t n = 0; n < length;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t got;

                if (poll(&p, 1, 5000) != 1)
                        fail_msg("'%s' came, not '%s'", buffer, expected);
                got = read(fd, buffer + n, length - n);
                assert_true(got > 0);
                n += (size_t) got;
        }
        assert_string_equal(buffer, expected);
}

static void a_loop_in_its_queue_breaks_the_device_and_not_the_console(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f);
        transmit(&f, "last words");
        fe_desc(&f.front_end, TRANSMIT, 1, FE_ADDRESS(BUFFER(TRANSMIT, 1)), 16, VRING_DESC_F_NEXT, 1);
        fe_offer(&f.front_end, TRANSMIT, 1);
        fe_kick(&f.front_end, TRANSMIT);
        fe_expect_broken(&f.front_end, TRANSMIT);
        fd = attach(&f);
        assert_reads(fd, "last words");
        (void) close(fd);
        fixture_down(&f);
}

static void a_broken_receive_queue_is_found_when_somebody_types(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f);
        fd = attach(&f);
        fe_desc(&f.front_end, RECEIVE, 0, 0x10, 16, VRING_DESC_F_WRITE, 0); /* no such memory */
        fe_offer(&f.front_end, RECEIVE, 0);
        assert_int_equal(write(fd, "x", 1), 1);
        fe_expect_broken(&f.front_end, RECEIVE);
        (void) close(fd);
        fixture_down(&f);
}

/* Nothing is taken from the driver any more, whoever types. */
static void a_broken_device_takes_no_buffers(void **state) {
        struct vring_used_elem e;
        Fixture f = {};
        int fd;

        fixture_up(&f);
        fd = attach(&f);
        fe_desc(&f.front_end, TRANSMIT, 1, FE_ADDRESS(BUFFER(TRANSMIT, 1)), 16, VRING_DESC_F_NEXT, 1);
        fe_offer(&f.front_end, TRANSMIT, 1);
        fe_kick(&f.front_end, TRANSMIT);
        fe_expect_broken(&f.front_end, TRANSMIT);
        (void) call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL);
        offer_buffer(&f, 0, 16);
        assert_int_equal(write(fd, "x", 1), 1);
        assert_false(fe_used(&f.front_end, RECEIVE, 200, &e));
        (void) close(fd);
        fixture_down(&f);
}

static void buffers_without_room_do_not_keep_the_helper_busy(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f);
        fd = attach(&f);
        assert_int_equal(write(fd, "x", 1), 1);
        /* A buffer that the device may only read, in the receive queue. */
        fe_desc(&f.front_end, RECEIVE, 0, FE_ADDRESS(BUFFER(RECEIVE, 0)), 16, 0, 0);
        fe_offer(&f.front_end, RECEIVE, 0);
        fe_kick(&f.front_end, RECEIVE);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 0);
        offer_buffer(&f, 1, 16);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 1);
        assert_int_equal(f.front_end.ram[BUFFER(RECEIVE, 1)], 'x');
        (void) close(fd);
        fixture_down(&f);
}

static void overlapping_buffers_are_cut_off(void **state) {
        Fixture f = {};
        struct stat st;

        fixture_up(&f);
        for (uint16_t i = 0; i < 8; i++) /* 8 times the same 2 MiB */
                fe_desc(&f.front_end, TRANSMIT, i, FE_ADDRESS(MIB(8)), MIB(2), i < 7 ? VRING_DESC_F_NEXT : 0, (uint16_t) (i + 1));
        fe_offer(&f.front_end, TRANSMIT, 0);
        fe_kick(&f.front_end, TRANSMIT);
        (void) fe_wait(&f.front_end, TRANSMIT);
        assert_return_code(stat(f.log, &st), errno);
        assert_in_range(st.st_size, 1, MIB(1) + 4096);
        fixture_down(&f);
}

/* Somebody pastes without end while the guest reads nothing: he waits, and nobody else notices. */
static void a_flood_of_input_waits(void **state) {
        static char paste[4096];
        unsigned taken = 0;
        Fixture f = {};
        size_t sent = 0;
        ssize_t n;
        int fd;

        fixture_up(&f);
        fd = attach(&f);
        memset(paste, 'x', sizeof(paste));
        for (unsigned idle = 0; idle < 10;) {
                n = send(fd, paste, sizeof(paste), MSG_DONTWAIT | MSG_NOSIGNAL);
                assert_true(n > 0 || errno == EAGAIN);
                sent += n > 0 ? (size_t) n : 0;
                assert_in_range(sent, 1, MIB(2));
                idle = n > 0 ? 0 : idle + 1;
                if (n < 0)
                        (void) usleep(10000);
        }
        transmit(&f, "busy");
        assert_reads(fd, "busy");
        while (taken < sent) {
                offer_buffer(&f, 0, 4096);
                taken += fe_wait(&f.front_end, RECEIVE).len;
        }
        assert_int_equal(taken, sent);
        (void) close(fd);
        fixture_down(&f);
}

static void sizes_out_of_range_are_refused(void **state) {
        Fixture f = {};

        fixture_spawn(&f);
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.SetConsoleSize\",\"parameters\":{\"columns\":0,\"rows\":5}}", NULL),
                "\"error\":\"org.varlink.service.InvalidParameter\""));
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.SetConsoleSize\",\"parameters\":{\"columns\":80,\"rows\":65536}}", NULL),
                "\"parameter\":\"rows\""));
        fixture_down(&f);
}

static void output_goes_to_clients_and_the_log(void **state) {
        Fixture f = {};
        char buffer[64] = {};
        int early, late, log;

        fixture_up(&f);
        early = attach(&f);
        transmit(&f, "Debian GNU/Linux 12\r\n");
        assert_reads(early, "Debian GNU/Linux 12\r\n");
        transmit(&f, "login: ");
        late = attach(&f);
        assert_reads(late, "Debian GNU/Linux 12\r\nlogin: ");
        assert_reads(early, "login: ");
        (void) close(early);
        transmit(&f, "still there");
        assert_reads(late, "still there");
        (void) close(late);
        transmit(&f, "nobody"); /* nobody is attached: the guest is not held up */

        log = open(f.log, O_RDONLY | O_CLOEXEC);
        assert_return_code(read(log, buffer, sizeof(buffer) - 1), errno);
        assert_string_equal(buffer, "Debian GNU/Linux 12\r\nlogin: still therenobody");
        (void) close(log);
        fixture_down(&f);
}

static void input_waits_for_the_guests_buffers(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f);
        fd = attach(&f);
        assert_int_equal(write(fd, "root\r", 5), 5);
        offer_buffer(&f, 0, 3); /* smaller than what waits */
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 3);
        assert_memory_equal(f.front_end.ram + BUFFER(RECEIVE, 0), "roo", 3);
        offer_buffer(&f, 1, 4096);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 2);
        assert_memory_equal(f.front_end.ram + BUFFER(RECEIVE, 1), "t\r", 2);

        offer_buffer(&f, 2, 4096); /* and buffers wait for input */
        assert_int_equal(write(fd, "x", 1), 1);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 1);
        (void) close(fd);
        fixture_down(&f);
}

static void the_pty_is_a_client_too(void **state) {
        Fixture f = {};
        char *pty, *end;
        int fd;

        fixture_up(&f);
        transmit(&f, "past ");
        pty = strstr(call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL), "/dev/pts/");
        assert_non_null(pty);
        end = strchr(pty, '"');
        assert_non_null(end);
        *end = 0;
        fd = open(pty, O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_return_code(fd, errno);
        assert_reads(fd, "past ");
        transmit(&f, "present");
        assert_reads(fd, "present");
        offer_buffer(&f, 0, 64);
        assert_int_equal(write(fd, "typed", 5), 5);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 5);
        (void) close(fd);
        transmit(&f, "gone");
        fixture_down(&f);
}

static void a_new_size_reaches_the_driver(void **state) {
        struct {
                VhostUserHeader header;
                uint8_t payload[12];
        } __attribute__((packed)) message;
        struct pollfd p;
        Fixture f = {};

        fixture_up(&f);
        assert_true(f.front_end.features & (UINT64_C(1) << VIRTIO_CONSOLE_F_SIZE));
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.SetConsoleSize\",\"parameters\":{\"columns\":132,\"rows\":43}}", NULL),
                "{\"parameters\":{}}"));
        p = (struct pollfd) { .fd = f.front_end.backend_fd, .events = POLLIN };
        assert_int_equal(poll(&p, 1, 5000), 1);
        assert_true(read(f.front_end.backend_fd, &message, sizeof(message)) >= (ssize_t) sizeof(message.header));
        assert_int_equal(message.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL), "\"columns\":132,\"rows\":43"));
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_loop_in_its_queue_breaks_the_device_and_not_the_console),
                cmocka_unit_test(a_broken_receive_queue_is_found_when_somebody_types),
                cmocka_unit_test(a_broken_device_takes_no_buffers),
                cmocka_unit_test(buffers_without_room_do_not_keep_the_helper_busy),
                cmocka_unit_test(overlapping_buffers_are_cut_off),
                cmocka_unit_test(a_flood_of_input_waits),
                cmocka_unit_test(sizes_out_of_range_are_refused),
                cmocka_unit_test(output_goes_to_clients_and_the_log),
                cmocka_unit_test(input_waits_for_the_guests_buffers),
                cmocka_unit_test(the_pty_is_a_client_too),
                cmocka_unit_test(a_new_size_reaches_the_driver),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
