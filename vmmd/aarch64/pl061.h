/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* General purpose input: ARM PrimeCell PL061 (DDI 0190B). Eight pins, some of which are keys. Whoever owns it calls it from one thread at a time. */

#include "state.h"
#include "util.h"

#define PL061_PINS 8

typedef struct Pl061 {
        void (*set_irq)(bool level, void *userdata);
        void *userdata;
        uint8_t input;  /* what comes from outside */
        uint8_t output; /* what the guest has written */
        uint8_t direction, sense, both_edges, event, mask, raw, alternate;
        uint8_t unseen; /* pins that went high and were not read since */
        bool level;
} Pl061;

void pl061_init(Pl061 *p, void (*set_irq)(bool level, void *userdata), void *userdata);
void pl061_reset(Pl061 *p);
void pl061_set_pin(Pl061 *p, unsigned pin, bool high);
/* Whether a pin is high that the guest has not read since it went high. */
bool pl061_is_unseen(const Pl061 *p);
/* An access of 8 to 32 bits at a multiple of 4, since Linux' driver reads and writes bytes; anything else reads as zero and goes nowhere. */
void pl061_access(Pl061 *p, uint64_t offset, void *data, size_t size, bool is_write);
int pl061_save(const Pl061 *p, StateWriter *w);
int pl061_load(Pl061 *p, StateReader *r, char **ret_message);
