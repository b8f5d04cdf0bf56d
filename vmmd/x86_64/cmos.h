/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The CMOS clock (MC146818) behind ports 0x70 and 0x71. It shows the host's UTC plus an offset that changes when the guest sets it.
 * Alarm and update-ended interrupts come where the owner gives it a line and a timer (cmos_set_interrupt()): Linux' hwclock waits
 * for them. The periodic interrupt never comes; Linux makes its own. */

#include "state.h"
#include "util.h"

typedef struct Cmos {
        /* Nanoseconds of CLOCK_REALTIME; replaced by tests. */
        uint64_t (*now)(void *userdata);
        void (*set_irq)(bool level, void *userdata); /* both NULL: no interrupts */
        void (*arm)(uint64_t nsec, void *userdata);
        void *userdata;
        uint64_t update_at, alarm_at; /* second of the host's clock at which the interrupt is due; 0: it is not awaited */
        bool irq;
        int64_t offset;   /* seconds between the guest's clock and the host's */
        uint8_t index;    /* last byte written to 0x70; its top bit (NMI mask) is kept apart */
        uint8_t bytes[128]; /* time registers: what the guest wrote while the clock was halted (register B, SET) */
} Cmos;

void cmos_init(Cmos *cmos);
/* `set_irq` is told each change of the line X86_IRQ_RTC. `arm` is to have cmos_expired() called after so many nanoseconds, instead of
 * whenever it was last asked for; 0 is never. Both are called from within the functions below. */
void cmos_set_interrupt(Cmos *cmos, void (*set_irq)(bool level, void *userdata), void (*arm)(uint64_t nsec, void *userdata),
        void *userdata);
void cmos_expired(Cmos *cmos);
/* Power-on: index and registers; the time the guest has set stays, as a battery would have it. */
void cmos_reset(Cmos *cmos);
/* Offset from X86_PORT_CMOS. */
void cmos_read(Cmos *cmos, uint64_t offset, void *data, size_t size);
void cmos_write(Cmos *cmos, uint64_t offset, const void *data, size_t size);
int cmos_save(const Cmos *cmos, StateWriter *w);
int cmos_load(Cmos *cmos, StateReader *r, char **ret_message);
