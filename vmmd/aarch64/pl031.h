/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The clock: ARM PrimeCell PL031 (DDI 0224C). A counter of seconds that begins with the host's time, and an alarm. Whoever owns it calls it from one
 * thread at a time. */

#include "state.h"
#include "util.h"

typedef struct Pl031 {
        uint64_t (*now)(void *userdata); /* seconds of CLOCK_REALTIME; replaced by tests */
        void (*set_irq)(bool level, void *userdata);
        /* pl031_expired() is to be called at that second of the host's clock, instead of when it was last asked for; 0 is never. */
        void (*arm)(uint64_t second, void *userdata);
        void *userdata;
        uint32_t offset; /* guest's clock minus host's, modulo 2^32 */
        uint32_t match;
        bool raised;  /* RIS */
        bool enabled; /* IMSC */
        bool level;
} Pl031;

void pl031_init(Pl031 *p, void (*set_irq)(bool level, void *userdata), void (*arm)(uint64_t second, void *userdata), void *userdata);
/* The time that the guest has set stays, as with a battery. */
void pl031_reset(Pl031 *p);
void pl031_expired(Pl031 *p);
/* An access of 32 bits at a multiple of 4; anything else reads as zero and goes nowhere. */
void pl031_access(Pl031 *p, uint64_t offset, void *data, size_t size, bool is_write);
int pl031_save(const Pl031 *p, StateWriter *w);
int pl031_load(Pl031 *p, StateReader *r, char **ret_message);
