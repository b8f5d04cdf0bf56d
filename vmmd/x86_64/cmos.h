/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The CMOS clock (MC146818) behind ports 0x70 and 0x71. It shows the host's UTC plus an offset that changes when the guest sets it.
 * No interrupts: periodic, alarm and update-ended never come, and their flags in register C stay 0. */

#include "state.h"
#include "util.h"

typedef struct Cmos {
        /* Nanoseconds of CLOCK_REALTIME; replaced by tests. */
        uint64_t (*now)(void *userdata);
        void *userdata;
        int64_t offset;   /* seconds between the guest's clock and the host's */
        uint8_t index;    /* last byte written to 0x70; its top bit (NMI mask) is kept apart */
        uint8_t bytes[128]; /* time registers: what the guest wrote while the clock was halted (register B, SET) */
} Cmos;

void cmos_init(Cmos *cmos);
/* Power-on: index and registers; the time the guest has set stays, as a battery would have it. */
void cmos_reset(Cmos *cmos);
/* Offset from X86_PORT_CMOS. */
void cmos_read(Cmos *cmos, uint64_t offset, void *data, size_t size);
void cmos_write(Cmos *cmos, uint64_t offset, const void *data, size_t size);
int cmos_save(const Cmos *cmos, StateWriter *w);
int cmos_load(Cmos *cmos, StateReader *r, char **ret_message);
