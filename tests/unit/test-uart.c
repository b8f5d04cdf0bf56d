/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The 16550A: what drivers look for, in the order in which they do. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "uart.h"

typedef struct Line {
        Uart uart;
        char sent[64];
        size_t n_sent, room;
        unsigned pulses, calls;
} Line;

static void line_send(void *userdata, uint8_t byte) {
        Line *l = userdata;
        if (l->n_sent < l->room)
                l->sent[l->n_sent++] = (char) byte;
}

static bool line_can_send(void *userdata) {
        Line *l = userdata;
        return l->n_sent < l->room;
}

static void line_interrupt(void *userdata) {
        Line *l = userdata;
        l->pulses++;
}

static void line_can_receive(void *userdata) {
        Line *l = userdata;
        l->calls++;
}

static Uart *line_up(Line *l) {
        *l = (Line) {
                .room = sizeof(l->sent),
                .uart = { .send = line_send, .can_send = line_can_send, .interrupt = line_interrupt, .can_receive = line_can_receive, .userdata = l },
        };
        uart_reset(&l->uart);
        return &l->uart;
}

static void refuses_a_state_that_nobody_saved(void **state) {
        uint8_t good[UART_STATE_SIZE], bad[UART_STATE_SIZE];
        Line l;
        Uart *u = line_up(&l);

        uart_write(u, 7, 0x42);
        uart_save(u, good);
        for (unsigned i = 0; i < 12; i++) {
                static const uint8_t wrong[12] = { 2, 0, 0, 0x10, 0x02, 0, 0x20, 0x01, 0x10, 0, 2, 17 };
                if (wrong[i] == 0)
                        continue;
                memcpy(bad, good, sizeof(bad));
                bad[i] = wrong[i];
                assert_int_equal(uart_load(u, bad, sizeof(bad)), -EBADMSG);
        }
        assert_int_equal(uart_load(u, good, sizeof(good) - 1), -EBADMSG);
        memcpy(bad, good, sizeof(bad));
        bad[11] = 2; /* two bytes received while the FIFO is off */
        assert_int_equal(uart_load(u, bad, sizeof(bad)), -EBADMSG);
        assert_int_equal(uart_read(u, 7), 0x42);
        assert_int_equal(uart_load(u, good, sizeof(good)), 0);
}

static void survives_any_sequence_of_writes(void **state) {
        uint32_t seed = 1;
        Line l;
        Uart *u = line_up(&l);

        for (unsigned i = 0; i < 200000; i++) {
                uint8_t s[UART_STATE_SIZE];

                seed = seed * 1664525 + 1013904223;
                if (seed & 0x80000000)
                        uart_write(u, (seed >> 8) & 7, (uint8_t) (seed >> 16));
                else
                        (void) uart_read(u, (seed >> 8) & 7);
                if (i % 7 == 0)
                        (void) uart_receive(u, "abc", 3);
                if (i % 1000 == 0) {
                        l.n_sent = 0;
                        uart_save(u, s);
                        assert_int_equal(uart_load(u, s, sizeof(s)), 0); /* what it saves it takes */
                }
        }
}

/* The steps of Linux' 8250_port.c: autoconfig() and what it calls. */
static void a_driver_finds_a_16550a(void **state) {
        Line l;
        Uart *u = line_up(&l);
        unsigned n;

        /* IER keeps four bits. */
        uart_write(u, 1, 0);
        assert_int_equal(uart_read(u, 1), 0);
        uart_write(u, 1, 0x0f);
        assert_int_equal(uart_read(u, 1), 0x0f);
        uart_write(u, 1, 0);

        /* Loop-back: OUT2 and RTS come back as DCD and CTS. */
        uart_write(u, 4, 0x10 | 0x0a);
        assert_int_equal(uart_read(u, 6) & 0xf0, 0x90);
        uart_write(u, 4, 0);

        /* FIFOs work; no extended registers, no 64-byte FIFO, no unknown enable bits. */
        uart_write(u, 3, 0xbf);
        uart_write(u, 2, 0);
        uart_write(u, 3, 0);
        uart_write(u, 2, 0x01);
        assert_int_equal(uart_read(u, 2) >> 6, 3);
        uart_write(u, 3, 0x80);
        assert_int_not_equal(uart_read(u, 2), 0);
        uart_write(u, 3, 0xbf);
        assert_int_not_equal(uart_read(u, 2), 0);
        uart_write(u, 3, 0);
        uart_write(u, 2, 0x01 | 0x20);
        assert_int_equal(uart_read(u, 2) >> 5, 6);
        uart_write(u, 3, 0x80);
        uart_write(u, 2, 0x01 | 0x20);
        assert_int_equal(uart_read(u, 2) >> 5, 6);
        uart_write(u, 3, 0);
        uart_write(u, 1, 0x40);
        assert_int_equal(uart_read(u, 1) & 0x40, 0);

        /* size_fifo(): what comes back in loop-back is as much as the FIFO holds. */
        uart_write(u, 2, 0x07);
        uart_write(u, 4, 0x10);
        for (n = 0; n < 256; n++)
                uart_write(u, 0, (uint8_t) n);
        for (n = 0; n < 256 && (uart_read(u, 5) & 0x01); n++)
                assert_int_equal(uart_read(u, 0), n);
        assert_int_equal(n, 16);
        uart_write(u, 4, 0);
        assert_int_equal(l.n_sent, 0);

        /* The scratch register, and the divisor beside THR and IER. */
        uart_write(u, 7, 0xa5);
        assert_int_equal(uart_read(u, 7), 0xa5);
        uart_write(u, 3, 0x83);
        uart_write(u, 0, 0x0c);
        uart_write(u, 1, 0x01);
        assert_int_equal(uart_read(u, 0), 0x0c);
        assert_int_equal(uart_read(u, 1), 0x01);
        uart_write(u, 3, 0x03);
        assert_int_equal(uart_read(u, 1), 0);
}

/* The driver's THRE test and its transmit interrupt. */
static void transmitter_interrupts_when_enabled_and_after_each_answer(void **state) {
        Line l;
        Uart *u = line_up(&l);

        uart_write(u, 2, 0x01);
        uart_write(u, 1, 0x02);
        assert_int_equal(l.pulses, 1);
        assert_int_equal(uart_read(u, 2), 0xc2);
        assert_int_equal(uart_read(u, 2), 0xc1); /* reading it was the answer */
        uart_write(u, 1, 0);
        uart_write(u, 1, 0x02);
        assert_int_equal(l.pulses, 2); /* and enabling raises it again */
        assert_int_equal(uart_read(u, 2), 0xc2);

        for (unsigned i = 0; i < 16; i++) {
                assert_int_equal(uart_read(u, 5) & 0x60, 0x60);
                uart_write(u, 0, (uint8_t) ('a' + i));
        }
        assert_int_equal(l.pulses, 3); /* one for a FIFO's worth */
        assert_int_equal(uart_read(u, 2), 0xc2);
        assert_memory_equal(l.sent, "abcdefghijklmnop", 16);
        uart_write(u, 1, 0);
        uart_write(u, 0, '!');
        assert_int_equal(l.pulses, 3); /* not while disabled */
}

static void transmitter_is_busy_while_the_host_has_no_room(void **state) {
        Line l;
        Uart *u = line_up(&l);

        l.room = 1;
        uart_write(u, 1, 0x02);
        (void) uart_read(u, 2);
        uart_write(u, 0, 'x');
        assert_int_equal(uart_read(u, 5) & 0x60, 0);
        assert_int_equal(uart_read(u, 2), 0x01);
        assert_int_equal(l.pulses, 1);
        l.room = 2;
        uart_sent(u);
        assert_int_equal(l.pulses, 2);
        assert_int_equal(uart_read(u, 5) & 0x60, 0x60);
        assert_int_equal(uart_read(u, 2), 0x02);
}

static void receiver_takes_what_its_fifo_holds(void **state) {
        Line l;
        Uart *u = line_up(&l);

        assert_int_equal(uart_receive_room(u), 1);
        uart_write(u, 2, 0x81); /* FIFOs on, trigger level 8 */
        uart_write(u, 1, 0x01);
        assert_int_equal(uart_receive(u, "0123456789abcdefghij", 20), 16);
        assert_int_equal(l.pulses, 1);
        assert_int_equal(uart_read(u, 2), 0xc4);
        for (unsigned i = 0; i < 10; i++)
                assert_int_equal(uart_read(u, 0), "0123456789"[i]);
        assert_int_equal(uart_read(u, 2), 0xcc); /* below the level: a character timeout */
        l.calls = 0;
        while (uart_read(u, 5) & 0x01)
                (void) uart_read(u, 0);
        assert_int_equal(l.calls, 1); /* asks for more once, when empty */
        assert_int_equal(uart_read(u, 2), 0xc1);
        assert_int_equal(uart_receive(u, "x", 1), 1);
        assert_int_equal(l.pulses, 2);
}

static void overrun_is_a_line_status_interrupt(void **state) {
        Line l;
        Uart *u = line_up(&l);

        uart_write(u, 1, 0x04);
        uart_write(u, 4, 0x10);
        uart_write(u, 0, 'a');
        assert_int_equal(l.pulses, 0);
        uart_write(u, 0, 'b');
        assert_int_equal(l.pulses, 1);
        assert_int_equal(uart_read(u, 2), 0x06);
        assert_int_equal(uart_read(u, 5) & 0x1e, 0x02);
        assert_int_equal(uart_read(u, 2), 0x01);
}

static void a_saved_state_goes_on_where_it_was(void **state) {
        uint8_t s[UART_STATE_SIZE];
        Line l, m;
        Uart *u = line_up(&l), *v = line_up(&m);

        uart_write(u, 2, 0x01);
        uart_write(u, 3, 0x03);
        uart_write(u, 4, 0x0b);
        uart_write(u, 1, 0x05);
        (void) uart_receive(u, "typed", 5);
        (void) uart_read(u, 0);
        uart_save(u, s);
        assert_int_equal(uart_load(v, s, sizeof(s)), 0);
        assert_int_equal(m.pulses, 1); /* the line is up: the guest is told again */
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(uart_read(v, 0), "yped"[i]);
        assert_int_equal(uart_read(v, 1), 0x05);
        assert_int_equal(uart_read(v, 4), 0x0b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_a_state_that_nobody_saved),
                cmocka_unit_test(survives_any_sequence_of_writes),
                cmocka_unit_test(a_driver_finds_a_16550a),
                cmocka_unit_test(transmitter_interrupts_when_enabled_and_after_each_answer),
                cmocka_unit_test(transmitter_is_busy_while_the_host_has_no_room),
                cmocka_unit_test(receiver_takes_what_its_fifo_holds),
                cmocka_unit_test(overrun_is_a_line_status_interrupt),
                cmocka_unit_test(a_saved_state_goes_on_where_it_was),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
