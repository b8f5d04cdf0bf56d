/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A 16550A UART as a state machine: registers, FIFOs and interrupt conditions (National Semiconductor PC16550D data sheet, whose register
 * and bit names are used here). It knows no host: bytes and the interrupt go through the callbacks.
 *
 * Sending takes no time: a byte written to THR is gone at once, so that THRE and TEMT are set whenever `can_send` says that there is
 * room. The baud rate is stored and means nothing. The other end always asserts CTS, DSR and DCD. */

#include "util.h"

#define UART_N_REGISTERS 8
#define UART_FIFO_SIZE 16

typedef struct Uart {
        /* What of it must outlive a restart, all checked by uart_load(). */
        uint8_t dll, dlm, ier, fcr, lcr, mcr, lsr_errors, msr_deltas, scr;
        bool thr_pending; /* the interrupt "transmitter holding register empty" was raised and neither identified nor answered */
        uint8_t rx[UART_FIFO_SIZE];
        uint8_t rx_first, rx_count;

        bool interrupting; /* the line's level, to pulse on its edges */

        void (*send)(void *userdata, uint8_t byte);
        bool (*can_send)(void *userdata);
        void (*interrupt)(void *userdata); /* the line goes from inactive to active */
        void (*can_receive)(void *userdata); /* there is room again for what arrives; may be NULL */
        void *userdata;
} Uart;

/* State at power-on; the callbacks stay. */
void uart_reset(Uart *u);

/* One byte-wide access; offset < UART_N_REGISTERS. */
uint8_t uart_read(Uart *u, unsigned offset);
void uart_write(Uart *u, unsigned offset, uint8_t value);

/* Bytes that arrive on the line; returns how many found room in the FIFO, which uart_receive_room() told before. */
size_t uart_receive_room(const Uart *u);
size_t uart_receive(Uart *u, const void *data, size_t length);
/* can_send() has become true again. */
void uart_sent(Uart *u);

#define UART_STATE_SIZE 32
void uart_save(const Uart *u, uint8_t state[static UART_STATE_SIZE]);
/* -EBADMSG where it is no state that uart_save() could have written; the UART is unchanged then. */
int uart_load(Uart *u, const uint8_t *state, size_t size);
