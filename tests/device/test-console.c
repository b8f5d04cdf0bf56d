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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "front-end.h"

enum { RECEIVE = 0, TRANSMIT = 1, CONTROL_RECEIVE = 2, CONTROL_TRANSMIT = 3, AGENT_RECEIVE = 4, AGENT_TRANSMIT = 5 };
#define N_QUEUES_WITH_PORTS 8

#define BUFFER(queue, i) (FE_BUFFERS + (queue) * MIB(1) + (uint64_t) (i) * KIB(4))

typedef struct Fixture {
        FrontEnd front_end;
        char directory[32], varlink[64], log[64];
} Fixture;

static void fixture_spawn_with(Fixture *f, const char *const *ports) {
        const char *arguments[8] = { "console" };
        char a[80], b[80];
        size_t n = 1;

        (void) snprintf(f->directory, sizeof(f->directory), "/tmp/test-console-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s/varlink", f->directory);
        (void) snprintf(f->log, sizeof(f->log), "%s/log", f->directory);
        (void) snprintf(a, sizeof(a), "--varlink-path=%s", f->varlink);
        (void) snprintf(b, sizeof(b), "--log=%s", f->log);
        arguments[n++] = a;
        arguments[n++] = b;
        arguments[n++] = "--history=65536";
        for (; ports && *ports; ports++)
                arguments[n++] = *ports;
        fe_spawn(&f->front_end, arguments);
}

static void fixture_spawn(Fixture *f) {
        fixture_spawn_with(f, NULL);
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

        for (unsigned i = 0; i < 6000 && socket < 0; i++) {
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

/* A console with the ports "agent" and "log.2". */
static void ports_up(Fixture *f, uint64_t without) {
        static const char *const ports[] = { "--ports=agent", "--ports=log.2", NULL };

        fixture_spawn_with(f, ports);
        fe_negotiate(&f->front_end, without);
        fe_set_mem_table(&f->front_end);
        for (unsigned i = 0; i < N_QUEUES_WITH_PORTS; i++)
                fe_start_queue(&f->front_end, i, 8);
}

/* The driver says something; the helper has taken it. */
static void say_bytes(Fixture *f, const void *data, uint32_t size) {
        FrontEnd *fe = &f->front_end;

        memcpy(fe->ram + BUFFER(CONTROL_TRANSMIT, 0), data, size);
        fe_desc(fe, CONTROL_TRANSMIT, 0, FE_ADDRESS(BUFFER(CONTROL_TRANSMIT, 0)), size, 0, 0);
        fe_offer(fe, CONTROL_TRANSMIT, 0);
        fe_kick(fe, CONTROL_TRANSMIT);
        assert_int_equal(fe_wait(fe, CONTROL_TRANSMIT).len, 0);
}

static void say(Fixture *f, uint32_t port, uint16_t event, uint16_t value) {
        const struct virtio_console_control m = { .id = port, .event = event, .value = value };

        say_bytes(f, &m, sizeof(m));
}

static void offer_control(Fixture *f, uint16_t i, uint32_t length) {
        fe_desc(&f->front_end, CONTROL_RECEIVE, i, FE_ADDRESS(BUFFER(CONTROL_RECEIVE, i)), length, VRING_DESC_F_WRITE, 0);
        fe_offer(&f->front_end, CONTROL_RECEIVE, i);
        fe_kick(&f->front_end, CONTROL_RECEIVE);
}

/* The next message to the driver, into a buffer that waits for it or comes now. */
static void expect_message(Fixture *f, uint32_t port, uint16_t event, const void *more, uint32_t n_more) {
        const struct virtio_console_control *m = (const void *) (f->front_end.ram + BUFFER(CONTROL_RECEIVE, 0));

        offer_control(f, 0, 4096);
        assert_int_equal(fe_wait(&f->front_end, CONTROL_RECEIVE).len, sizeof(*m) + n_more);
        if (m->id != port || m->event != event || m->value != 1)
                fail_msg("event %u value %u for port %u, not event %u for port %u", m->event, m->value, m->id, event, port);
        if (n_more > 0)
                assert_memory_equal(m + 1, more, n_more);
}

static void expect_silence(Fixture *f) {
        struct vring_used_elem e;

        (void) call(f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL);
        assert_false(fe_used(&f->front_end, CONTROL_RECEIVE, 100, &e));
}

/* As Linux' driver does it. */
static void introduce(Fixture *f) {
        static const struct { uint16_t columns, rows; } size = { 80, 25 };

        say(f, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        for (uint32_t i = 0; i < 3; i++)
                expect_message(f, i, VIRTIO_CONSOLE_PORT_ADD, NULL, 0);
        say(f, 0, VIRTIO_CONSOLE_PORT_READY, 1);
        expect_message(f, 0, VIRTIO_CONSOLE_CONSOLE_PORT, NULL, 0);
        expect_message(f, 0, VIRTIO_CONSOLE_RESIZE, &size, sizeof(size));
        expect_message(f, 0, VIRTIO_CONSOLE_PORT_OPEN, NULL, 0);
        say(f, 1, VIRTIO_CONSOLE_PORT_READY, 1);
        expect_message(f, 1, VIRTIO_CONSOLE_PORT_NAME, "agent", 5);
        expect_message(f, 1, VIRTIO_CONSOLE_PORT_OPEN, NULL, 0);
        say(f, 2, VIRTIO_CONSOLE_PORT_READY, 1);
        expect_message(f, 2, VIRTIO_CONSOLE_PORT_NAME, "log.2", 5);
        expect_message(f, 2, VIRTIO_CONSOLE_PORT_OPEN, NULL, 0);
}

static int attach_port(Fixture *f, const char *port) {
        char text[128];
        int fd;

        (void) snprintf(text, sizeof(text), "{\"method\":\"io.vmmd.Device.OpenConsole\",\"parameters\":{\"port\":\"%s\"}}", port);
        assert_non_null(strstr(call(f, text, &fd), "\"fileDescriptorIndex\":0"));
        assert_return_code(fd, 0);
        return fd;
}

static void write_to(Fixture *f, unsigned queue, const char *text) {
        FrontEnd *fe = &f->front_end;

        memcpy(fe->ram + BUFFER(queue, 0), text, strlen(text));
        fe_desc(fe, queue, 0, FE_ADDRESS(BUFFER(queue, 0)), (uint32_t) strlen(text), 0, 0);
        fe_offer(fe, queue, 0);
        fe_kick(fe, queue);
        assert_int_equal(fe_wait(fe, queue).len, 0);
}

static void offer_to(Fixture *f, unsigned queue) {
        fe_desc(&f->front_end, queue, 0, FE_ADDRESS(BUFFER(queue, 0)), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f->front_end, queue, 0);
        fe_kick(&f->front_end, queue);
}

static void assert_reads(int fd, const char *expected) {
        char buffer[256] = {};
        size_t length = strlen(expected);

        for (size_t n = 0; n < length;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t got;

                if (poll(&p, 1, 60000) != 1)
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

static void what_is_no_stream_socket_is_not_attached(void **state) {
        static const char attach_to[] = "{\"method\":\"io.vmmd.Device.AttachConsole\",\"parameters\":{\"fileDescriptorIndex\":0}}";
        int file, datagram[2];
        Fixture f = {};

        fixture_spawn(&f);
        assert_non_null(strstr(fe_call(f.varlink, attach_to, -EBADF), "\"parameter\":\"fileDescriptorIndex\""));
        file = open("/dev/null", O_RDWR | O_CLOEXEC);
        assert_non_null(strstr(fe_call(f.varlink, attach_to, file), "\"parameter\":\"fileDescriptorIndex\""));
        assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagram), 0);
        assert_non_null(strstr(fe_call(f.varlink, attach_to, datagram[0]), "\"parameter\":\"fileDescriptorIndex\""));
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF), "\"clients\":0"));
        (void) close(file);
        (void) close(datagram[0]);
        (void) close(datagram[1]);
        fixture_down(&f);
}

static void a_connection_that_the_caller_brings_is_attached(void **state) {
        Fixture f = {};
        int pair[2];

        fixture_up(&f);
        transmit(&f, "past ");
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.AttachConsole\",\"parameters\":{\"fileDescriptorIndex\":0}}",
                pair[1]), "{\"parameters\":{}}"));
        (void) close(pair[1]);
        assert_reads(pair[0], "past ");
        transmit(&f, "present");
        assert_reads(pair[0], "present");
        offer_buffer(&f, 0, 16);
        assert_int_equal(write(pair[0], "typed", 5), 5);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 5);
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.GetCounters\"}", -EBADF), "\"outputBytes\":12"));
        (void) close(pair[0]);
        fixture_down(&f);
}

static void the_log_level_can_be_changed(void **state) {
        Fixture f = {};

        fixture_spawn(&f);
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.SetLogLevel\",\"parameters\":{\"level\":\"loud\"}}", -EBADF),
                "InvalidParameter"));
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.SetLogLevel\",\"parameters\":{\"level\":\"error\"}}", -EBADF),
                "{\"parameters\":{}}"));
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.Resize\"}", -EBADF), "NotSupported"));
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
        assert_int_equal(poll(&p, 1, 60000), 1);
        assert_true(read(f.front_end.backend_fd, &message, sizeof(message)) >= (ssize_t) sizeof(message.header));
        assert_int_equal(message.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL), "\"columns\":132,\"rows\":43"));
        fixture_down(&f);
}

static void ports_of_one_name_or_too_many_are_refused(void **state) {
        static const char *const twice[] = { "console", "--ports=a", "--ports=a", "--fd=0", NULL };
        static const char *const wrong[] = { "console", "--ports=a/b", "--fd=0", NULL };
        const char *many[34] = { "console", "--fd=0" };
        char text[256], names[31][16];
        int pair[2], input = dup(STDIN_FILENO);

        for (unsigned i = 0; i < 31; i++) {
                (void) snprintf(names[i], sizeof(names[i]), "--ports=p%u", i);
                many[i + 2] = names[i];
        }
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(dup2(pair[0], STDIN_FILENO), STDIN_FILENO);
        assert_int_not_equal(fe_spawn_failing(twice, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "--ports=a twice"));
        assert_int_not_equal(fe_spawn_failing(wrong, text, sizeof(text)), 0);
        assert_int_not_equal(fe_spawn_failing(many, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "at most 30"));
        assert_int_equal(dup2(input, STDIN_FILENO), STDIN_FILENO);
        (void) close(input);
        (void) close(pair[0]);
        (void) close(pair[1]);
}

static void messages_that_make_no_sense_are_ignored(void **state) {
        static const struct { uint32_t port; uint16_t event, value; } nonsense[] = {
                { 3, VIRTIO_CONSOLE_PORT_READY, 1 },
                { 0xffffffff, VIRTIO_CONSOLE_PORT_OPEN, 1 },
                { 0, VIRTIO_CONSOLE_PORT_ADD, 1 },
                { 0, VIRTIO_CONSOLE_PORT_NAME, 1 },
                { 0, 0xffff, 0xffff },
        };
        Fixture f = {};

        ports_up(&f, 0);
        for (unsigned i = 0; i < ELEMENTSOF(nonsense); i++)
                say(&f, nonsense[i].port, nonsense[i].event, nonsense[i].value);
        say_bytes(&f, "short", 5);
        offer_control(&f, 1, 4096);
        expect_silence(&f);
        assert_true(fe_alive(&f.front_end));
        fixture_down(&f);
}

/* It asks a thousand times and gives no buffer: what it is owed is owed once. */
static void a_driver_that_only_asks_is_answered_once(void **state) {
        Fixture f = {};

        ports_up(&f, 0);
        for (unsigned i = 0; i < 1000; i++)
                say(&f, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        introduce(&f);
        offer_control(&f, 1, 4096);
        expect_silence(&f);
        fixture_down(&f);
}

static void a_buffer_too_small_for_a_message_stays_empty(void **state) {
        Fixture f = {};

        ports_up(&f, 0);
        offer_control(&f, 1, 4);
        say(&f, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        assert_int_equal(fe_wait(&f.front_end, CONTROL_RECEIVE).len, 0);
        expect_message(&f, 1, VIRTIO_CONSOLE_PORT_ADD, NULL, 0);
        fixture_down(&f);
}

static void a_broken_control_queue_breaks_the_device(void **state) {
        Fixture f = {};

        ports_up(&f, 0);
        fe_desc(&f.front_end, CONTROL_RECEIVE, 0, 0x10, 16, VRING_DESC_F_WRITE, 0); /* no such memory */
        fe_offer(&f.front_end, CONTROL_RECEIVE, 0);
        fe_kick(&f.front_end, CONTROL_RECEIVE);
        say(&f, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
        fe_expect_broken(&f.front_end, CONTROL_RECEIVE);
        fixture_down(&f);
}

static void a_port_that_does_not_exist_cannot_be_attached_to(void **state) {
        static const char other[] = "{\"method\":\"io.vmmd.Device.OpenConsole\",\"parameters\":{\"port\":\"other\"}}";
        Fixture f = {};

        ports_up(&f, 0);
        assert_non_null(strstr(call(&f, other, NULL), "{\"error\":\"io.vmmd.Device.NoSuchPort\",\"parameters\":{\"port\":\"other\"}}"));
        fixture_down(&f);
        fixture_up(&f);
        assert_non_null(strstr(call(&f, other, NULL), "NoSuchPort"));
        fixture_down(&f);
}

static void each_port_is_a_channel_of_its_own(void **state) {
        Fixture f = {};
        int agent, log;

        ports_up(&f, 0);
        introduce(&f);
        write_to(&f, AGENT_TRANSMIT, "early ");
        agent = attach_port(&f, "agent");
        log = attach_port(&f, "log.2");
        write_to(&f, AGENT_TRANSMIT, "hello");
        write_to(&f, 7, "a line");
        transmit(&f, "on the console");
        assert_reads(agent, "early hello");
        assert_reads(log, "a line");
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.GetCounters\"}", NULL), "\"agent.outputBytes\":11"));
        (void) close(agent);
        (void) close(log);
        fixture_down(&f);
}

/* Linux throws away what comes before that. */
static void input_waits_until_the_guest_has_the_port_open(void **state) {
        struct vring_used_elem e;
        Fixture f = {};
        int fd;

        ports_up(&f, 0);
        introduce(&f);
        fd = attach_port(&f, "agent");
        offer_to(&f, AGENT_RECEIVE);
        assert_int_equal(write(fd, "ping", 4), 4);
        assert_false(fe_used(&f.front_end, AGENT_RECEIVE, 200, &e));
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL), "\"clients\":1,\"open\":false"));
        say(&f, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
        assert_int_equal(fe_wait(&f.front_end, AGENT_RECEIVE).len, 4);
        assert_memory_equal(f.front_end.ram + BUFFER(AGENT_RECEIVE, 0), "ping", 4);
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", NULL), "\"clients\":1,\"open\":true"));
        say(&f, 1, VIRTIO_CONSOLE_PORT_OPEN, 0);
        offer_to(&f, AGENT_RECEIVE);
        assert_int_equal(write(fd, "more", 4), 4);
        assert_false(fe_used(&f.front_end, AGENT_RECEIVE, 200, &e));
        (void) close(fd);
        fixture_down(&f);
}

/* A driver without the feature has the console, and no way to anything else. */
static void a_driver_of_one_port_has_the_console(void **state) {
        struct vring_used_elem e;
        Fixture f = {};
        int fd;

        ports_up(&f, UINT64_C(1) << VIRTIO_CONSOLE_F_MULTIPORT);
        fd = attach(&f);
        transmit(&f, "login: ");
        assert_reads(fd, "login: ");
        offer_buffer(&f, 0, 16);
        assert_int_equal(write(fd, "root", 4), 4);
        assert_int_equal(fe_wait(&f.front_end, RECEIVE).len, 4);
        fe_desc(&f.front_end, AGENT_TRANSMIT, 0, FE_ADDRESS(BUFFER(AGENT_TRANSMIT, 0)), 4, 0, 0);
        fe_offer(&f.front_end, AGENT_TRANSMIT, 0);
        fe_kick(&f.front_end, AGENT_TRANSMIT);
        assert_false(fe_used(&f.front_end, AGENT_TRANSMIT, 200, &e));
        (void) close(fd);
        fixture_down(&f);
}

static void a_new_size_reaches_a_driver_of_ports(void **state) {
        static const struct { uint16_t columns, rows; } size = { 132, 43 };
        Fixture f = {};

        ports_up(&f, 0);
        introduce(&f);
        say(&f, 0, VIRTIO_CONSOLE_PORT_OPEN, 1);
        assert_non_null(strstr(call(&f, "{\"method\":\"io.vmmd.Device.SetConsoleSize\",\"parameters\":{\"columns\":132,\"rows\":43}}", NULL),
                "{\"parameters\":{}}"));
        expect_message(&f, 0, VIRTIO_CONSOLE_RESIZE, &size, sizeof(size));
        fixture_down(&f);
}

/* A driver says once that a port is open; who takes the helper's place still knows. */
static void a_successor_knows_what_the_driver_said(void **state) {
        _cleanup_close_ int kept = memfd_create("kept", MFD_CLOEXEC);
        const char *arguments[] = { "console", "--ports=agent", "--ports=log.2", NULL, NULL };
        char varlink[96];
        Fixture f = {};
        int fd;

        (void) snprintf(f.directory, sizeof(f.directory), "/tmp/test-console-XXXXXX");
        assert_non_null(mkdtemp(f.directory));
        assert_return_code(ftruncate(kept, 66), errno); /* as large as the helper makes it, or it takes it for an older version's */
        (void) snprintf(f.varlink, sizeof(f.varlink), "%s/varlink", f.directory);
        (void) snprintf(varlink, sizeof(varlink), "--varlink-path=%s", f.varlink);
        arguments[3] = varlink;
        for (unsigned life = 0; life < 2; life++) {
                fe_spawn_passing(&f.front_end, arguments, "console-state", kept);
                fe_negotiate(&f.front_end, 0);
                fe_set_mem_table(&f.front_end);
                for (unsigned i = 0; i < N_QUEUES_WITH_PORTS; i++)
                        fe_start_queue(&f.front_end, i, 8);
                if (life == 0) {
                        introduce(&f);
                        say(&f, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
                        say(&f, 2, VIRTIO_CONSOLE_PORT_READY, 1); /* and is owed an answer */
                } else {
                        fd = attach_port(&f, "agent");
                        offer_to(&f, AGENT_RECEIVE);
                        assert_int_equal(write(fd, "ping", 4), 4);
                        assert_int_equal(fe_wait(&f.front_end, AGENT_RECEIVE).len, 4);
                        expect_message(&f, 2, VIRTIO_CONSOLE_PORT_NAME, "log.2", 5);
                        (void) close(fd);
                }
                fe_end(&f.front_end);
                (void) unlink(f.varlink);
        }
        (void) rmdir(f.directory);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_loop_in_its_queue_breaks_the_device_and_not_the_console),
                cmocka_unit_test(a_broken_receive_queue_is_found_when_somebody_types),
                cmocka_unit_test(a_broken_device_takes_no_buffers),
                cmocka_unit_test(buffers_without_room_do_not_keep_the_helper_busy),
                cmocka_unit_test(overlapping_buffers_are_cut_off),
                cmocka_unit_test(a_flood_of_input_waits),
                cmocka_unit_test(what_is_no_stream_socket_is_not_attached),
                cmocka_unit_test(sizes_out_of_range_are_refused),
                cmocka_unit_test(a_connection_that_the_caller_brings_is_attached),
                cmocka_unit_test(the_log_level_can_be_changed),
                cmocka_unit_test(output_goes_to_clients_and_the_log),
                cmocka_unit_test(input_waits_for_the_guests_buffers),
                cmocka_unit_test(the_pty_is_a_client_too),
                cmocka_unit_test(a_new_size_reaches_the_driver),
                cmocka_unit_test(ports_of_one_name_or_too_many_are_refused),
                cmocka_unit_test(messages_that_make_no_sense_are_ignored),
                cmocka_unit_test(a_driver_that_only_asks_is_answered_once),
                cmocka_unit_test(a_buffer_too_small_for_a_message_stays_empty),
                cmocka_unit_test(a_broken_control_queue_breaks_the_device),
                cmocka_unit_test(a_port_that_does_not_exist_cannot_be_attached_to),
                cmocka_unit_test(each_port_is_a_channel_of_its_own),
                cmocka_unit_test(input_waits_until_the_guest_has_the_port_open),
                cmocka_unit_test(a_driver_of_one_port_has_the_console),
                cmocka_unit_test(a_new_size_reaches_a_driver_of_ports),
                cmocka_unit_test(a_successor_knows_what_the_driver_said),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
