/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "uart.h"

enum {
        /* Register offsets; RBR, THR, IER give way to the divisor latch while LCR.DLAB is set. */
        REG_RBR_THR_DLL = 0,
        REG_IER_DLM = 1,
        REG_IIR_FCR = 2,
        REG_LCR = 3,
        REG_MCR = 4,
        REG_LSR = 5,
        REG_MSR = 6,
        REG_SCR = 7,

        IER_ERBFI = 0x01,
        IER_ETBEI = 0x02,
        IER_ELSI = 0x04,
        IER_EDSSI = 0x08,
        IER_ALL = 0x0f,

        IIR_NONE = 0x01,
        IIR_MODEM_STATUS = 0x00,
        IIR_THR_EMPTY = 0x02,
        IIR_DATA_AVAILABLE = 0x04,
        IIR_LINE_STATUS = 0x06,
        IIR_TIMEOUT = 0x0c,
        IIR_FIFOS_ENABLED = 0xc0,

        FCR_ENABLE = 0x01,
        FCR_CLEAR_RX = 0x02,
        FCR_CLEAR_TX = 0x04,
        FCR_KEPT = 0xc9, /* enable, DMA mode, trigger level */

        LCR_DLAB = 0x80,

        MCR_DTR = 0x01,
        MCR_RTS = 0x02,
        MCR_OUT1 = 0x04,
        MCR_OUT2 = 0x08,
        MCR_LOOP = 0x10,
        MCR_ALL = 0x1f,

        LSR_DR = 0x01,
        LSR_OE = 0x02,
        LSR_ERRORS = 0x1e,
        LSR_THRE = 0x20,
        LSR_TEMT = 0x40,

        MSR_DELTAS = 0x0f,
        MSR_TERI = 0x04,
        MSR_CTS = 0x10,
        MSR_DSR = 0x20,
        MSR_RI = 0x40,
        MSR_DCD = 0x80,
};

static unsigned rx_room(const Uart *u) {
        unsigned size = (u->fcr & FCR_ENABLE) ? UART_FIFO_SIZE : 1;
        return u->rx_count < size ? size - u->rx_count : 0;
}

static unsigned rx_trigger(const Uart *u) {
        static const uint8_t levels[] = { 1, 4, 8, 14 };
        return (u->fcr & FCR_ENABLE) ? levels[u->fcr >> 6] : 1;
}

/* In loop-back nothing leaves, so there is always room. */
static bool thr_is_empty(const Uart *u) {
        return (u->mcr & MCR_LOOP) || u->can_send(u->userdata);
}

/* The pending interrupt of the highest priority (data sheet, table III). Fewer bytes than the trigger level are a character timeout at
 * once: no time passes between characters here. */
static uint8_t pending_interrupt(const Uart *u) {
        if ((u->ier & IER_ELSI) && u->lsr_errors)
                return IIR_LINE_STATUS;
        if ((u->ier & IER_ERBFI) && u->rx_count > 0)
                return u->rx_count >= rx_trigger(u) ? IIR_DATA_AVAILABLE : IIR_TIMEOUT;
        if ((u->ier & IER_ETBEI) && u->thr_pending)
                return IIR_THR_EMPTY;
        if ((u->ier & IER_EDSSI) && u->msr_deltas)
                return IIR_MODEM_STATUS;
        return IIR_NONE;
}

/* OUT2 gates the line on PC cards; like other virtual UARTs this one does not insist on it. */
static void update_interrupt(Uart *u) {
        bool now = pending_interrupt(u) != IIR_NONE;

        if (now && !u->interrupting)
                u->interrupt(u->userdata);
        u->interrupting = now;
}

static uint8_t modem_status(const Uart *u) {
        if (!(u->mcr & MCR_LOOP))
                return MSR_CTS | MSR_DSR | MSR_DCD;
        return (uint8_t) (((u->mcr & MCR_RTS) ? MSR_CTS : 0) | ((u->mcr & MCR_DTR) ? MSR_DSR : 0) |
                ((u->mcr & MCR_OUT1) ? MSR_RI : 0) | ((u->mcr & MCR_OUT2) ? MSR_DCD : 0));
}

static void push_rx(Uart *u, uint8_t byte) {
        u->rx[(u->rx_first + u->rx_count) % UART_FIFO_SIZE] = byte;
        u->rx_count++;
}

static uint8_t read_rbr(Uart *u) {
        uint8_t byte;

        if (u->rx_count == 0)
                return 0;
        byte = u->rx[u->rx_first];
        u->rx_first = (uint8_t) ((u->rx_first + 1) % UART_FIFO_SIZE);
        if (--u->rx_count == 0 && u->can_receive && !(u->mcr & MCR_LOOP))
                u->can_receive(u->userdata);
        return byte;
}

static void write_thr(Uart *u, uint8_t byte) {
        if (u->mcr & MCR_LOOP) {
                if (rx_room(u) > 0)
                        push_rx(u, byte);
                else
                        u->lsr_errors |= LSR_OE;
        } else
                u->send(u->userdata, byte); /* where there is no room it is lost, as on a real one */

        /* Empty again at once. Where the interrupt was pending already the line does not fall: one pulse for a FIFO's worth of
         * bytes, since every reading of IIR makes room for a new edge. */
        u->thr_pending = thr_is_empty(u);
}

static uint8_t read_iir(Uart *u) {
        uint8_t pending = pending_interrupt(u);

        if (pending == IIR_THR_EMPTY)
                u->thr_pending = false; /* reading it is the answer to this one only */
        return (uint8_t) (pending | ((u->fcr & FCR_ENABLE) ? IIR_FIFOS_ENABLED : 0));
}

static void write_ier(Uart *u, uint8_t value) {
        uint8_t old = u->ier;

        u->ier = value & IER_ALL;
        /* Enabling it while THR is empty raises the interrupt anew; drivers test for that. */
        if (!(old & IER_ETBEI) && (u->ier & IER_ETBEI) && thr_is_empty(u))
                u->thr_pending = true;
}

static void write_fcr(Uart *u, uint8_t value) {
        /* Switching the FIFOs on or off empties them; the other bits count only while bit 0 is written as 1. */
        if (((u->fcr ^ value) & FCR_ENABLE) || (value & (FCR_ENABLE | FCR_CLEAR_RX)) == (FCR_ENABLE | FCR_CLEAR_RX)) {
                u->rx_first = u->rx_count = 0;
                if (u->can_receive)
                        u->can_receive(u->userdata);
        }
        u->fcr = (value & FCR_ENABLE) ? value & FCR_KEPT : 0;
}

static void write_mcr(Uart *u, uint8_t value) {
        uint8_t before = modem_status(u), changed;

        if ((u->mcr & MCR_LOOP) && !(value & MCR_LOOP) && u->can_receive)
                u->can_receive(u->userdata);
        u->mcr = value & MCR_ALL;
        changed = before ^ modem_status(u);
        /* Deltas of CTS, DSR and DCD; of RI only the trailing edge (TERI). */
        u->msr_deltas |= (uint8_t) ((changed >> 4) & ~MSR_TERI);
        if ((changed & MSR_RI) && (before & MSR_RI))
                u->msr_deltas |= MSR_TERI;
}

static uint8_t read_lsr(Uart *u) {
        uint8_t v = u->lsr_errors;

        if (u->rx_count > 0)
                v |= LSR_DR;
        if (thr_is_empty(u))
                v |= LSR_THRE | LSR_TEMT;
        u->lsr_errors = 0;
        return v;
}

static uint8_t read_msr(Uart *u) {
        uint8_t v = (uint8_t) (modem_status(u) | u->msr_deltas);

        u->msr_deltas = 0;
        return v;
}

void uart_reset(Uart *u) {
        Uart fresh = {
                .dll = 1, /* 115200 baud */
                .send = u->send,
                .can_send = u->can_send,
                .interrupt = u->interrupt,
                .can_receive = u->can_receive,
                .userdata = u->userdata,
        };

        *u = fresh;
}

uint8_t uart_read(Uart *u, unsigned offset) {
        bool dlab = u->lcr & LCR_DLAB;
        uint8_t v = 0xff;

        switch (offset) {
        case REG_RBR_THR_DLL:
                v = dlab ? u->dll : read_rbr(u);
                break;
        case REG_IER_DLM:
                v = dlab ? u->dlm : u->ier;
                break;
        case REG_IIR_FCR:
                v = read_iir(u);
                break;
        case REG_LCR:
                v = u->lcr;
                break;
        case REG_MCR:
                v = u->mcr;
                break;
        case REG_LSR:
                v = read_lsr(u);
                break;
        case REG_MSR:
                v = read_msr(u);
                break;
        case REG_SCR:
                v = u->scr;
                break;
        }
        update_interrupt(u);
        return v;
}

void uart_write(Uart *u, unsigned offset, uint8_t value) {
        bool dlab = u->lcr & LCR_DLAB;

        switch (offset) {
        case REG_RBR_THR_DLL:
                if (dlab)
                        u->dll = value;
                else
                        write_thr(u, value);
                break;
        case REG_IER_DLM:
                if (dlab)
                        u->dlm = value;
                else
                        write_ier(u, value);
                break;
        case REG_IIR_FCR:
                write_fcr(u, value);
                break;
        case REG_LCR:
                u->lcr = value;
                break;
        case REG_MCR:
                write_mcr(u, value);
                break;
        case REG_SCR:
                u->scr = value;
                break;
        default: /* LSR and MSR: "intended for read operations only" */
                break;
        }
        update_interrupt(u);
}

size_t uart_receive_room(const Uart *u) {
        return (u->mcr & MCR_LOOP) ? 0 : rx_room(u); /* in loop-back the receiver is disconnected from the line */
}

size_t uart_receive(Uart *u, const void *data, size_t length) {
        const uint8_t *p = data;
        size_t n = 0;

        while (n < length && uart_receive_room(u) > 0)
                push_rx(u, p[n++]);
        update_interrupt(u);
        return n;
}

void uart_sent(Uart *u) {
        u->thr_pending = true;
        update_interrupt(u);
}

void uart_save(const Uart *u, uint8_t state[static UART_STATE_SIZE]) {
        memset(state, 0, UART_STATE_SIZE);
        state[0] = 1; /* version */
        state[1] = u->dll;
        state[2] = u->dlm;
        state[3] = u->ier;
        state[4] = u->fcr;
        state[5] = u->lcr;
        state[6] = u->mcr;
        state[7] = u->lsr_errors;
        state[8] = u->msr_deltas;
        state[9] = u->scr;
        state[10] = u->thr_pending;
        state[11] = u->rx_count;
        for (unsigned i = 0; i < u->rx_count; i++)
                state[12 + i] = u->rx[(u->rx_first + i) % UART_FIFO_SIZE];
}

int uart_load(Uart *u, const uint8_t *state, size_t size) {
        if (size != UART_STATE_SIZE || state[0] != 1)
                return -EBADMSG;
        if ((state[3] & ~IER_ALL) || (state[4] & ~FCR_KEPT) || (state[6] & ~MCR_ALL) || (state[7] & ~LSR_ERRORS) ||
            (state[8] & ~MSR_DELTAS) || state[10] > 1 || state[11] > ((state[4] & FCR_ENABLE) ? UART_FIFO_SIZE : 1))
                return -EBADMSG;

        uart_reset(u);
        u->dll = state[1];
        u->dlm = state[2];
        u->ier = state[3];
        u->fcr = state[4];
        u->lcr = state[5];
        u->mcr = state[6];
        u->lsr_errors = state[7];
        u->msr_deltas = state[8];
        u->scr = state[9];
        u->thr_pending = state[10];
        u->rx_count = state[11];
        memcpy(u->rx, state + 12, u->rx_count);
        /* The last pulse may have died with the process that sent it: a spurious one is harmless. */
        update_interrupt(u);
        return 0;
}
