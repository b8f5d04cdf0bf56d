/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The serial port's helper as it is: the program with its seccomp policy, driven by vmmd's side of the bus protocol. */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "bus-client.h"

static const BusSpace com1 = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = 8 };

typedef struct Fixture {
        char directory[32], bus[64], varlink[64], file[64];
        const char *output;
        bool patient; /* the helper waits until somebody reads its standard error */
        pid_t pid;
        int messages; /* the helper's standard error */
        int irq_fd;
        BusClient *client;
} Fixture;

static void start_helper(Fixture *f) {
        char a[80], b[80], c[80], d[80];
        int pipe_fds[2];

        (void) unlink(f->bus);
        (void) unlink(f->varlink);
        (void) snprintf(a, sizeof(a), "--socket-path=%s", f->bus);
        (void) snprintf(b, sizeof(b), "--varlink-path=%s", f->varlink);
        (void) snprintf(c, sizeof(c), "--output=%s", f->output);
        (void) snprintf(d, sizeof(d), "--path=%s", f->file);
        assert_return_code(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), errno);
        if (f->patient)
                assert_return_code(fcntl(pipe_fds[1], F_SETFL, 0), errno);
        f->pid = fork();
        assert_return_code(f->pid, errno);
        if (f->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) unsetenv("JOURNAL_STREAM");
                (void) dup2(pipe_fds[1], STDERR_FILENO);
                (void) execl(getenv("VMM_DEVICE"), "vmm-device", "serial", a, b, c, streq(f->output, "file") ? d : NULL, NULL);
                _exit(127);
        }
        (void) close(pipe_fds[1]);
        f->messages = safe_close(f->messages);
        f->messages = pipe_fds[0];
}

static void connect_client(Fixture *f) {
        int r = -ENOENT;

        for (unsigned i = 0; i < 6000 && (r == -ENOENT || r == -ECONNREFUSED); i++) {
                r = bus_client_connect_path(f->client, f->bus);
                if (r < 0)
                        (void) usleep(10000);
        }
        assert_int_equal(r, 0);
        assert_int_equal(bus_client_wait(f->client, 60 * USEC_PER_SEC, NULL), 0);
        assert_int_equal(bus_client_n_registers(f->client), 8);
}

static void fixture_up(Fixture *f, const char *output) {
        f->output = output;
        f->messages = -EBADF;
        (void) snprintf(f->directory, sizeof(f->directory), "/tmp/test-serial-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->bus, sizeof(f->bus), "%s/bus", f->directory);
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s/varlink", f->directory);
        (void) snprintf(f->file, sizeof(f->file), "%s/file", f->directory);
        f->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        assert_int_equal(bus_client_new(2, &com1, &f->irq_fd, 1, &f->client), 0);
        start_helper(f);
        connect_client(f);
}

/* Ends the helper in order, and says how it ended. */
static int stop_helper(Fixture *f) {
        int status = -1;

        (void) kill(f->pid, SIGTERM);
        assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
        return status;
}

static void fixture_down(Fixture *f) {
        if (f->pid > 0)
                assert_int_equal(stop_helper(f), 0);
        f->client = bus_client_free(f->client);
        f->irq_fd = safe_close(f->irq_fd);
        f->messages = safe_close(f->messages);
        (void) unlink(f->bus);
        (void) unlink(f->varlink);
        (void) unlink(f->file);
        (void) rmdir(f->directory);
}

static uint8_t in(Fixture *f, unsigned offset) {
        uint8_t v = 0;
        assert_int_equal(bus_client_access(f->client, 0, offset, false, &v, 1), 0);
        return v;
}

static void out(Fixture *f, unsigned offset, uint8_t v) {
        assert_int_equal(bus_client_access(f->client, 1, offset, true, &v, 1), 0);
}

static void send_text(Fixture *f, const char *s) {
        for (; *s; s++) {
                assert_int_equal(in(f, 5) & 0x20, 0x20);
                out(f, 0, (uint8_t) *s);
        }
}

/* Reads from `fd` until `words` was there. */
static void wait_for_words(int fd, const char *words) {
        char buffer[4096] = {};
        size_t n = 0;

        for (unsigned i = 0; i < 6000 && !strstr(buffer, words); i++) {
                ssize_t got = read(fd, buffer + n, sizeof(buffer) - 1 - n);
                if (got > 0)
                        n += (size_t) got;
                else
                        (void) usleep(10000);
        }
        if (!strstr(buffer, words))
                fail_msg("'%s' did not come; '%s' did", words, buffer);
}

static int wait_for_interrupt(Fixture *f) {
        struct pollfd p = { .fd = f->irq_fd, .events = POLLIN };
        uint64_t count;

        return poll(&p, 1, 60000) == 1 && read(f->irq_fd, &count, sizeof(count)) == sizeof(count) ? (int) count : 0;
}

/* Attaches by io.vmmd.Device.OpenConsole. */
static int attach(Fixture *f) {
        static const char call[] = "{\"method\":\"io.vmmd.Device.OpenConsole\"}";
        _cleanup_close_ int socket = -EBADF;
        char reply[256] = {};
        size_t n_fds = 1;
        int fd = -EBADF;

        socket = connect_unix(f->varlink);
        assert_return_code(socket, 0);
        assert_int_equal(write(socket, call, sizeof(call)), sizeof(call));
        assert_true(recv_with_fds(socket, reply, sizeof(reply) - 1, &fd, &n_fds, 0) > 0);
        assert_non_null(strstr(reply, "\"fileDescriptorIndex\":0"));
        assert_int_equal(n_fds, 1);
        return fd;
}

static void refuses_a_second_client(void **state) {
        _cleanup_free_ char *message = NULL;
        BusClient *second;
        Fixture f = {};

        fixture_up(&f, "none");
        assert_int_equal(bus_client_new(1, &com1, &f.irq_fd, 1, &second), 0);
        assert_int_equal(bus_client_connect_path(second, f.bus), 0);
        assert_int_equal(bus_client_wait(second, 60 * USEC_PER_SEC, &message), -EBUSY);
        assert_string_equal(message, "refused: somebody else is connected");
        (void) bus_client_free(second);
        out(&f, 7, 0x77);
        assert_int_equal(in(&f, 7), 0x77);
        fixture_down(&f);
}

static void refuses_options_that_make_no_sense(void **state) {
        static const char *const wrong[] = { "--output=printer", "--output=file", "--colour=red", "--port=lpt1" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                int status;
                pid_t pid = fork();

                if (pid == 0) {
                        (void) close(STDERR_FILENO);
                        (void) execl(getenv("VMM_DEVICE"), "vmm-device", "serial", "--socket-path=/tmp/test-serial-none", wrong[i], NULL);
                        _exit(127);
                }
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFEXITED(status));
                assert_int_equal(WEXITSTATUS(status), 1);
        }
}

static void output_goes_to_the_file(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f, "file");
        send_text(&f, "Linux version 6.1\r\nlogin: ");
        fd = open(f.file, O_RDONLY | O_CLOEXEC);
        assert_return_code(fd, errno);
        wait_for_words(fd, "Linux version 6.1\r\nlogin: ");
        (void) close(fd);
        fixture_down(&f);
}

static void output_is_logged_line_by_line_and_a_prompt_after_a_while(void **state) {
        Fixture f = {};

        fixture_up(&f, "journal");
        send_text(&f, "\033[1mbold\033[0m\r\nsecond\r\nlogin: ");
        wait_for_words(f.messages, "vmm-device: bold\nvmm-device: second\nvmm-device: login: \n");
        send_text(&f, "no end of line");
        assert_int_equal(stop_helper(&f), 0);
        f.pid = 0;
        wait_for_words(f.messages, "no end of line\n"); /* nothing is lost at the end */
        fixture_down(&f);
}

static void interrupts_reach_the_line(void **state) {
        Fixture f = {};

        fixture_up(&f, "none");
        out(&f, 2, 0x01);
        out(&f, 1, 0x02);
        assert_int_equal(wait_for_interrupt(&f), 1);
        assert_int_equal(in(&f, 2), 0xc2);
        send_text(&f, "abc");
        assert_int_equal(wait_for_interrupt(&f), 1);
        fixture_down(&f);
}

static void a_client_sees_the_past_and_can_type(void **state) {
        char typed[41] = {};
        size_t n = 0;
        Fixture f = {};
        int fd;

        fixture_up(&f, "none");
        out(&f, 2, 0x01);
        out(&f, 1, 0x01);
        send_text(&f, "login: ");
        (void) usleep(50000);
        fd = attach(&f);
        wait_for_words(fd, "login: ");
        send_text(&f, "now");
        wait_for_words(fd, "now");

        assert_int_equal(write(fd, "0123456789abcdefghijklmnopqrstuvwxyzABCD", 40), 40); /* more than a FIFO */
        for (unsigned i = 0; i < 1000 && n < 40; i++) {
                assert_true(wait_for_interrupt(&f) > 0);
                while (in(&f, 5) & 0x01)
                        typed[n++] = (char) in(&f, 0);
        }
        assert_string_equal(typed, "0123456789abcdefghijklmnopqrstuvwxyzABCD");
        (void) close(fd);
        fixture_down(&f);
}

static void wide_accesses_are_several_narrow_ones(void **state) {
        uint32_t v = 0;
        Fixture f = {};

        fixture_up(&f, "none");
        out(&f, 7, 0x5a);
        out(&f, 3, 0x03);
        assert_int_equal(bus_client_access(f.client, 0, 4, false, &v, 4), 0);
        assert_int_equal(v, 0x5ab06000);
        fixture_down(&f);
}

static void a_killed_helper_is_replaced_without_the_driver_noticing(void **state) {
        Fixture f = {};
        int status, fd;

        fixture_up(&f, "file");
        out(&f, 2, 0x01);
        out(&f, 3, 0x03);
        out(&f, 4, 0x0b);
        out(&f, 1, 0x05);
        out(&f, 7, 0x99);
        send_text(&f, "before ");
        fd = open(f.file, O_RDONLY | O_CLOEXEC);
        assert_return_code(fd, errno);
        wait_for_words(fd, "before ");

        (void) kill(f.pid, SIGKILL);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), -ECONNRESET);
        bus_client_disconnected(f.client, 10 * USEC_PER_SEC);
        start_helper(&f);
        connect_client(&f);

        assert_int_equal(in(&f, 1), 0x05);
        assert_int_equal(in(&f, 2), 0xc1);
        assert_int_equal(in(&f, 3), 0x03);
        assert_int_equal(in(&f, 4), 0x0b);
        assert_int_equal(in(&f, 7), 0x99);
        send_text(&f, "after");
        wait_for_words(fd, "after");
        (void) close(fd);
        fd = open(f.file, O_RDONLY | O_CLOEXEC);
        wait_for_words(fd, "before after");
        (void) close(fd);

        assert_int_equal(bus_client_reset(f.client), 0);
        assert_int_equal(in(&f, 7), 0);
        fixture_down(&f);
}

static void a_flood_is_held_up_but_not_lost(void **state) {
        static char expected[300000];
        struct stat st;
        Fixture f = {};

        fixture_up(&f, "file");
        for (size_t i = 0; i < sizeof(expected); i++) {
                uint8_t c = (uint8_t) ('!' + i % 90);

                while ((in(&f, 5) & 0x20) == 0)
                        (void) usleep(1000);
                out(&f, 0, c);
        }
        for (unsigned i = 0; i < 6000; i++) {
                assert_return_code(stat(f.file, &st), errno);
                if (st.st_size == sizeof(expected))
                        break;
                (void) usleep(10000);
        }
        assert_int_equal(st.st_size, sizeof(expected));
        fixture_down(&f);
}

/* vmmd ends, in order or not; the port, its output and its clients stay for the next one. */
static void outlives_those_it_serves(void **state) {
        Fixture f = {};
        int fd;

        fixture_up(&f, "none");
        fd = attach(&f);
        for (unsigned i = 0; i < 5; i++) {
                out(&f, 7, 0x55);
                send_text(&f, "round;");
                f.client = bus_client_free(f.client);
                assert_int_equal(bus_client_new(2, &com1, &f.irq_fd, 1, &f.client), 0);
                connect_client(&f);
                assert_int_equal(in(&f, 7), 0); /* a new machine, a port as at power-on */
        }
        wait_for_words(fd, "round;round;round;round;round;");
        (void) close(fd);
        fixture_down(&f);
}

/* Its transmitter is busy, the event loop is waiting for the journal, and then it has to end. */
static void ends_in_order_while_the_guest_is_held_up(void **state) {
        Fixture f = { .patient = true };
        unsigned sent = 0;
        char buffer[4096];
        int status;

        fixture_up(&f, "journal");
        out(&f, 1, 0x02); /* it wants to know when there is room */
        while ((in(&f, 5) & 0x20) != 0) {
                assert_true(sent < 4000000);
                for (unsigned i = 0; i < 64; i++, sent++)
                        out(&f, 0, sent % 100 == 99 ? '\n' : 'x');
        }
        assert_return_code(kill(f.pid, SIGTERM), errno);
        while (waitpid(f.pid, &status, WNOHANG) == 0)
                if (read(f.messages, buffer, sizeof(buffer)) <= 0)
                        (void) usleep(1000);
        f.pid = 0;
        assert_int_equal(status, 0);
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_a_second_client),
                cmocka_unit_test(refuses_options_that_make_no_sense),
                cmocka_unit_test(output_goes_to_the_file),
                cmocka_unit_test(output_is_logged_line_by_line_and_a_prompt_after_a_while),
                cmocka_unit_test(interrupts_reach_the_line),
                cmocka_unit_test(a_client_sees_the_past_and_can_type),
                cmocka_unit_test(wide_accesses_are_several_narrow_ones),
                cmocka_unit_test(a_killed_helper_is_replaced_without_the_driver_noticing),
                cmocka_unit_test(a_flood_is_held_up_but_not_lost),
                cmocka_unit_test(outlives_those_it_serves),
                cmocka_unit_test(ends_in_order_while_the_guest_is_held_up),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
