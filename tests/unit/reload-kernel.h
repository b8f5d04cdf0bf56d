/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What reload-kernel.c tells of itself, where test-reload.c sees it through the guest's memory. */

#include <stdint.h>

#define REPORT_ADDRESS 0x2000000
#define REPORT_MAGIC 0x64616f6c6572ULL

typedef struct Report {
        uint64_t magic;
        uint64_t loops;     /* of the main loop: one request and one register access each */
        uint64_t ticks;     /* of the LAPIC's timer; each arms the next */
        uint64_t requests;  /* to the random number generator */
        uint64_t replies;   /* each after an interrupt by MSI-X */
        uint64_t interrupts;
        uint64_t registers; /* of the serial port, written and read back */
        uint64_t tsc_back;  /* how often the TSC went back; and the rest is what went wrong, too */
        uint64_t clock_back;
        uint64_t clock_jumped; /* KVM's clock and the TSC do not say the same of how long something took */
        uint64_t wrong_registers;
        uint64_t wrong_interrupts;
        uint64_t has_clock, has_rng, has_serial;
        uint64_t longest_tick; /* in TSC cycles */
        uint64_t tsc_per_msec;
} Report;
