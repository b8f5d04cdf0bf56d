/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The host's side of a console: history, journal lines, clients that are slow, late or gone, and the pseudo terminal. */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <termios.h>

#include <cmocka.h>

#include "history.h"
#include "line-log.h"
#include "log.h"
#include "terminal.h"

static void history_forgets_the_oldest(void **state) {
        const void *p;
        History h;

        assert_int_equal(history_init(&h, 0), -EINVAL);
        assert_int_equal(history_init(&h, 8), 0);
        assert_int_equal(history_span(&h, 0, &p), 0);
        history_write(&h, "abcdef", 6);
        assert_int_equal(history_begin(&h), 0);
        history_write(&h, "ghij", 4);
        assert_int_equal(history_begin(&h), 2);
        assert_int_equal(history_span(&h, 1, &p), 0); /* gone */
        assert_int_equal(history_span(&h, 11, &p), 0); /* not there yet */
        assert_int_equal(history_span(&h, 2, &p), 6);
        assert_memory_equal(p, "cdefgh", 6);
        assert_int_equal(history_span(&h, 8, &p), 2);
        assert_memory_equal(p, "ij", 2);
        history_write(&h, "0123456789abcdefghijklmno", 25); /* three times its size */
        assert_int_equal(history_begin(&h), 27);
        assert_int_equal(history_span(&h, 27, &p), 5);
        assert_memory_equal(p, "hijkl", 5);
        assert_int_equal(history_span(&h, 32, &p), 3);
        assert_memory_equal(p, "mno", 3);
        history_done(&h);
}

typedef struct Lines {
        char *text;
        size_t length;
        FILE *file;
} Lines;

static void emit(void *userdata, const char *line) {
        Lines *l = userdata;
        (void) fprintf(l->file, "<%s>", line);
}

static void assert_lines(const char *in, size_t length, const char *out) {
        Lines l = {};
        LineLog log = { .emit = emit, .userdata = &l };

        l.file = open_memstream(&l.text, &l.length);
        assert_non_null(l.file);
        for (size_t i = 0; i < length; i++) /* byte by byte, as a serial port has it */
                line_log_write(&log, in + i, 1);
        line_log_flush(&log);
        (void) fclose(l.file);
        assert_string_equal(l.text, out);
        free(l.text);

        l = (Lines) {};
        l.file = open_memstream(&l.text, &l.length);
        line_log_write(&log, in, length); /* and at once */
        line_log_flush(&log);
        (void) fclose(l.file);
        assert_string_equal(l.text, out);
        free(l.text);
}
#define ASSERT_LINES(in, out) assert_lines(in, sizeof(in) - 1, out)

static void journal_lines_are_printable_and_bounded(void **state) {
        _cleanup_free_ char *big = malloc(3 * LINE_LOG_MAX), *expected = malloc(3 * LINE_LOG_MAX + 16);

        ASSERT_LINES("one\r\ntwo\n\n\nthree", "<one><two><three>");
        ASSERT_LINES("a\033[0;32mgreen\033[0m\033]0;title\abc\033(Bd\033[", "<agreenbcd>");
        ASSERT_LINES("nul \0 bell \a tab \t del \x7f\n", "<nul \\x00 bell \\x07 tab \t del \\x7f>");
        ASSERT_LINES("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7\n", "<gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa7>");
        ASSERT_LINES("\xff \xc3 \xc0\x80 \xed\xa0\x80 \xc2\x9b \xf4\x90\x80\x80 \xe2\x82",
                "<\\xff \\xc3 \\xc0\\x80 \\xed\\xa0\\x80 \\xc2\\x9b \\xf4\\x90\\x80\\x80 \\xe2\\x82>");
        ASSERT_LINES("", "");
        ASSERT_LINES("\033", "");

        memset(big, 'x', 2 * LINE_LOG_MAX + 5);
        (void) sprintf(expected, "<%.*s><%.*s><xxxxx>", LINE_LOG_MAX, big, LINE_LOG_MAX, big);
        assert_lines(big, 2 * LINE_LOG_MAX + 5, expected);
}

typedef struct Fixture {
        sd_event *event;
        Terminal *terminal;
        unsigned inputs;
} Fixture;

static void on_input(void *userdata) {
        Fixture *f = userdata;
        f->inputs++;
}

static void fixture_up(Fixture *f, size_t history) {
        *f = (Fixture) {};
        assert_return_code(sd_event_new(&f->event), 0);
        assert_int_equal(terminal_new(f->event, history, on_input, f, &f->terminal), 0);
}

static void fixture_down(Fixture *f) {
        f->terminal = terminal_free(f->terminal);
        f->event = sd_event_unref(f->event);
}

/* Lets the loop work until it has nothing to do for a moment. Returns how often it woke up. */
static unsigned run(Fixture *f) {
        unsigned n = 0;

        while (sd_event_run(f->event, 20 * USEC_PER_MSEC) > 0)
                assert_true(++n < 10000); /* it must not spin */
        return n;
}

static void output(Fixture *f, const char *s) {
        terminal_output(f->terminal, s, strlen(s));
}

static void assert_reads(int fd, const char *expected) {
        char buffer[256] = {};
        size_t length = strlen(expected);

        for (size_t n = 0; n < length;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t got;

                assert_int_equal(poll(&p, 1, 60000), 1);
                got = read(fd, buffer + n, length - n);
                assert_return_code(got, errno);
                assert_int_not_equal(got, 0);
                n += (size_t) got;
        }
        assert_string_equal(buffer, expected);
}

static void assert_nothing_to_read(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        assert_int_equal(poll(&p, 1, 0), 0);
}

static void a_client_that_does_not_read_is_dropped_and_others_are_not(void **state) {
        static char block[65536];
        uint64_t total = 0, got = 0;
        int idle, busy;
        Fixture f;

        memset(block, 'x', sizeof(block));
        fixture_up(&f, KIB(256));
        idle = terminal_attach(f.terminal);
        busy = terminal_attach(f.terminal);
        assert_return_code(idle, 0);
        assert_return_code(busy, 0);
        assert_return_code(fcntl(busy, F_SETFL, O_NONBLOCK), errno);
        for (unsigned i = 0; i < 100; i++) {
                ssize_t n;

                terminal_output(f.terminal, block, sizeof(block));
                total += sizeof(block);
                do {
                        (void) sd_event_run(f.event, 0);
                        while ((n = read(busy, block, sizeof(block))) > 0)
                                got += (uint64_t) n;
                } while (got < total);
        }
        assert_int_equal(terminal_n_clients(f.terminal), 1);
        assert_int_equal(got, total); /* the one that reads misses nothing */
        (void) close(idle);
        (void) close(busy);
        (void) run(&f);
        assert_int_equal(terminal_n_clients(f.terminal), 0);
        fixture_down(&f);
}

static void too_many_clients_are_refused(void **state) {
        int fds[33];
        Fixture f;

        fixture_up(&f, 0);
        for (unsigned i = 0; i < 32; i++)
                assert_return_code(fds[i] = terminal_attach(f.terminal), 0);
        assert_int_equal(terminal_attach(f.terminal), -EUSERS);
        for (unsigned i = 0; i < 32; i++)
                (void) close(fds[i]);
        (void) run(&f);
        fds[0] = terminal_attach(f.terminal);
        assert_return_code(fds[0], 0);
        (void) close(fds[0]);
        fixture_down(&f);
}

static void input_is_bounded_and_goes_on_when_taken(void **state) {
        char block[1024], buffer[512];
        size_t written = 0, taken = 0, n;
        Fixture f;
        ssize_t w;
        int fd;

        fixture_up(&f, 0);
        fd = terminal_attach(f.terminal);
        assert_return_code(fcntl(fd, F_SETFL, O_NONBLOCK), errno);
        memset(block, 'i', sizeof(block));
        while ((w = write(fd, block, sizeof(block))) > 0) {
                written += (size_t) w;
                if (written > 512 * 1024)
                        break;
        }
        (void) run(&f);
        assert_int_equal(terminal_input_available(f.terminal), 4096);
        assert_int_equal(run(&f), 0); /* and the loop rests */
        while ((n = terminal_take_input(f.terminal, buffer, sizeof(buffer))) > 0) {
                taken += n;
                (void) run(&f);
        }
        assert_int_equal(taken, written);
        (void) close(fd);
        fixture_down(&f);
}

/* More than is ever taken from clients may wait after that; nothing of it is written over, and clients are read again once there is room. */
static void rewound_input_is_whole_and_goes_on(void **state) {
        uint8_t block[8192], buffer[100];
        uint64_t begun;
        size_t at = 0;
        Fixture f;
        int fd;

        for (size_t i = 0; i < sizeof(block); i++)
                block[i] = (uint8_t) (i % 251);
        fixture_up(&f, 0);
        fd = terminal_attach(f.terminal);
        assert_return_code(fd, 0);
        assert_int_equal(write(fd, block, 4096), 4096);
        (void) run(&f);
        begun = terminal_input_bytes(f.terminal);
        for (unsigned i = 0; i < 30; i++)
                assert_int_equal(terminal_take_input(f.terminal, buffer, sizeof(buffer)), sizeof(buffer));
        assert_int_equal(write(fd, block + 4096, 2000), 2000);
        (void) run(&f);
        assert_int_equal(terminal_rewind_input(f.terminal, begun), 0);
        assert_int_equal(terminal_input_available(f.terminal), 6096);
        assert_int_equal(write(fd, block + 6096, sizeof(block) - 6096), sizeof(block) - 6096);
        (void) run(&f);
        assert_int_equal(terminal_input_available(f.terminal), 6096);
        while (at < sizeof(block)) {
                size_t n = terminal_take_input(f.terminal, buffer, sizeof(buffer));

                assert_int_not_equal(n, 0);
                assert_memory_equal(buffer, block + at, n);
                at += n;
                (void) run(&f);
        }
        (void) close(fd);
        fixture_down(&f);
}

static void a_late_client_sees_the_recent_past(void **state) {
        Fixture f;
        int fd, fd2;

        fixture_up(&f, 10);
        output(&f, "long gone, login: ");
        fd = terminal_attach(f.terminal);
        assert_reads(fd, "e, login: ");
        output(&f, "now");
        assert_reads(fd, "now");
        fd2 = terminal_attach(f.terminal);
        assert_reads(fd2, "login: now");
        assert_nothing_to_read(fd);
        (void) close(fd);
        (void) close(fd2);
        fixture_down(&f);

        fixture_up(&f, 0);
        output(&f, "past");
        fd = terminal_attach(f.terminal);
        assert_nothing_to_read(fd);
        output(&f, "present");
        assert_reads(fd, "present");
        (void) close(fd);
        fixture_down(&f);
}

/* The kernel remembers for our side that something was not read; what came before that is there all the same. */
static void a_client_that_left_without_reading_is_still_heard(void **state) {
        char buffer[16];
        Fixture f;
        int fd;

        fixture_up(&f, 10);
        output(&f, "login: ");
        fd = terminal_attach(f.terminal);
        assert_int_equal(write(fd, "root\n", 5), 5);
        (void) close(fd);
        (void) run(&f);
        assert_int_equal(terminal_take_input(f.terminal, buffer, sizeof(buffer)), 5);
        assert_memory_equal(buffer, "root\n", 5);
        assert_int_equal(terminal_n_clients(f.terminal), 0);
        fixture_down(&f);
}

static void a_client_that_ended_its_input_still_sees_output(void **state) {
        char buffer[16];
        Fixture f;
        int fd;

        fixture_up(&f, 0);
        fd = terminal_attach(f.terminal);
        assert_int_equal(write(fd, "date\n", 5), 5);
        assert_return_code(shutdown(fd, SHUT_WR), errno);
        (void) run(&f);
        assert_int_equal(terminal_take_input(f.terminal, buffer, sizeof(buffer)), 5);
        assert_memory_equal(buffer, "date\n", 5);
        assert_true(f.inputs > 0);
        assert_int_equal(run(&f), 0);
        output(&f, "today");
        assert_reads(fd, "today");
        (void) close(fd);
        output(&f, "nobody there");
        (void) run(&f);
        assert_int_equal(terminal_n_clients(f.terminal), 0);
        fixture_down(&f);
}

static void a_pty_nobody_has_open_costs_nothing(void **state) {
        static char block[65536];
        Fixture f;
        int fd;

        memset(block, 'x', sizeof(block));
        fixture_up(&f, KIB(64));
        assert_int_equal(terminal_make_pty(f.terminal), 0);
        (void) run(&f);
        for (unsigned i = 0; i < 20; i++)
                terminal_output(f.terminal, block, sizeof(block));
        assert_int_equal(run(&f), 0);

        fd = open(terminal_pty_path(f.terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_return_code(fd, errno);
        (void) run(&f);
        (void) close(fd);
        (void) run(&f);
        assert_int_equal(run(&f), 0);
        terminal_output(f.terminal, block, sizeof(block));
        assert_int_equal(run(&f), 0);
        fixture_down(&f);
}

static void a_pty_shows_the_past_each_time_it_is_opened(void **state) {
        char buffer[16];
        struct termios t;
        Fixture f;
        int fd;

        fixture_up(&f, 8);
        assert_int_equal(terminal_make_pty(f.terminal), 0);
        output(&f, "before: login: ");
        for (unsigned i = 0; i < 3; i++) {
                fd = open(terminal_pty_path(f.terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
                assert_return_code(fd, errno);
                assert_return_code(tcgetattr(fd, &t), errno);
                assert_int_equal(t.c_lflag & (ECHO | ICANON | ISIG), 0);
                (void) run(&f);
                assert_reads(fd, i == 0 ? " login: " : "n: after");
                output(&f, "after");
                assert_reads(fd, "after");
                assert_int_equal(write(fd, "root\r", 5), 5);
                (void) run(&f);
                assert_int_equal(terminal_take_input(f.terminal, buffer, sizeof(buffer)), 5);
                assert_memory_equal(buffer, "root\r", 5);
                if (i == 0)
                        output(&f, "\rlogin: after");
                else
                        output(&f, "login: after");
                (void) run(&f);
                (void) tcflush(fd, TCIFLUSH);
                (void) close(fd);
                (void) run(&f);
        }
        fixture_down(&f);
}

static void a_pty_nobody_reads_never_blocks(void **state) {
        static char block[65536];
        uint64_t got = 0;
        Fixture f;
        ssize_t n;
        int fd;

        memset(block, 'x', sizeof(block));
        fixture_up(&f, KIB(64));
        assert_int_equal(terminal_make_pty(f.terminal), 0);
        fd = open(terminal_pty_path(f.terminal), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
        (void) run(&f);
        for (unsigned i = 0; i < 20; i++) {
                terminal_output(f.terminal, block, sizeof(block));
                (void) run(&f);
        }
        for (unsigned i = 0; i < 200; i++) {
                while ((n = read(fd, block, sizeof(block))) > 0)
                        got += (uint64_t) n;
                if (run(&f) == 0 && got >= KIB(64))
                        break;
        }
        assert_in_range(got, KIB(64), KIB(128)); /* the ring's worth, and what lay in the kernel's buffers */
        (void) close(fd);
        fixture_down(&f);
}

static void pty_input_is_bounded_and_goes_on_when_taken(void **state) {
        char block[256], buffer[512];
        size_t written = 0, taken = 0, n;
        Fixture f;
        ssize_t w;
        int fd;

        fixture_up(&f, 0);
        assert_int_equal(terminal_make_pty(f.terminal), 0);
        fd = open(terminal_pty_path(f.terminal), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
        assert_return_code(fd, errno);
        memset(block, 'i', sizeof(block));
        for (unsigned i = 0; i < 64; i++) {
                while (written < 32768 && (w = write(fd, block, sizeof(block))) > 0)
                        written += (size_t) w;
                (void) run(&f);
        }
        assert_int_equal(terminal_input_available(f.terminal), 4096);
        assert_int_equal(run(&f), 0);
        while ((n = terminal_take_input(f.terminal, buffer, sizeof(buffer))) > 0) {
                taken += n;
                (void) run(&f);
        }
        assert_int_equal(taken, written);
        (void) close(fd);
        fixture_down(&f);
}

typedef struct Feeder {
        Terminal *terminal;
        int fd;
        unsigned left, fed;
} Feeder;

/* A guest that takes everything at once, and somebody who writes as fast. */
static void feed(void *userdata) {
        Feeder *feeder = userdata;
        char buffer[64];

        while (terminal_take_input(feeder->terminal, buffer, sizeof(buffer)) > 0)
                ;
        if (feeder->left == 0)
                return;
        feeder->left--;
        feeder->fed++;
        assert_int_equal(write(feeder->fd, "x", 1), 1);
        (void) usleep(5000); /* until it has come through the terminal's line */
}

static void a_flood_on_the_pty_leaves_others_their_turn(void **state) {
        Feeder feeder = { .left = 60 };
        sd_event *event = NULL;
        unsigned most = 0;

        assert_return_code(sd_event_new(&event), 0);
        assert_int_equal(terminal_new(event, 0, feed, &feeder, &feeder.terminal), 0);
        assert_int_equal(terminal_make_pty(feeder.terminal), 0);
        feeder.fd = open(terminal_pty_path(feeder.terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_return_code(feeder.fd, errno);
        assert_int_equal(write(feeder.fd, "x", 1), 1);
        for (int r = 1; r > 0 && feeder.left > 0;) {
                unsigned before = feeder.fed;

                r = sd_event_run(event, 60 * USEC_PER_SEC);
                most = MAX(most, feeder.fed - before);
        }
        assert_int_equal(feeder.left, 0); /* and nothing was forgotten */
        assert_in_range(most, 1, 16);
        (void) close(feeder.fd);
        (void) terminal_free(feeder.terminal);
        (void) sd_event_unref(event);
}

static void the_log_has_everything(void **state) {
        char buffer[32] = {};
        int fd, pipe_fds[2];
        Fixture f;

        fixture_up(&f, 0);
        assert_return_code(pipe2(pipe_fds, O_CLOEXEC), errno);
        assert_int_equal(terminal_set_log(f.terminal, pipe_fds[1]), -EINVAL);
        (void) close(pipe_fds[0]);
        fd = memfd_create("log", MFD_CLOEXEC);
        assert_int_equal(terminal_set_log(f.terminal, fcntl(fd, F_DUPFD_CLOEXEC, 3)), 0);
        output(&f, "raw \033[1m");
        output(&f, "bytes\r\n");
        assert_int_equal(pread(fd, buffer, sizeof(buffer), 0), 15);
        assert_string_equal(buffer, "raw \033[1mbytes\r\n");
        (void) close(fd);
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(history_forgets_the_oldest),
                cmocka_unit_test(journal_lines_are_printable_and_bounded),
                cmocka_unit_test(a_client_that_does_not_read_is_dropped_and_others_are_not),
                cmocka_unit_test(too_many_clients_are_refused),
                cmocka_unit_test(input_is_bounded_and_goes_on_when_taken),
                cmocka_unit_test(rewound_input_is_whole_and_goes_on),
                cmocka_unit_test(a_late_client_sees_the_recent_past),
                cmocka_unit_test(a_client_that_ended_its_input_still_sees_output),
                cmocka_unit_test(a_client_that_left_without_reading_is_still_heard),
                cmocka_unit_test(a_pty_nobody_has_open_costs_nothing),
                cmocka_unit_test(a_pty_shows_the_past_each_time_it_is_opened),
                cmocka_unit_test(a_pty_nobody_reads_never_blocks),
                cmocka_unit_test(pty_input_is_bounded_and_goes_on_when_taken),
                cmocka_unit_test(a_flood_on_the_pty_leaves_others_their_turn),
                cmocka_unit_test(the_log_has_everything),
        };

        log_set_max_level(LOG_EMERG);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
