/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* vmm-device slot: the helper of a device that is not known yet. io.vmmd.Slot tells which one it is; then it goes through the stages of any
 * other helper, but opens nothing. */

#include "helper.h"

typedef struct Slot Slot;

/* The exit status where a successor is to begin at once: with what was kept it is the device. In the unit's RestartForceExitStatus=. */
#define SLOT_STATUS_AGAIN 133

int slot_new(Helper *h, Slot **ret);
/* Becomes at once what a predecessor was told, or waits, in a sandbox of its own. Says what went wrong, and READY=1. The helper has taken its
 * sockets already. 1 where there is nothing left to do. */
int slot_begin(Slot *s);
/* Where it was released: ends the helper, and then says so. */
void slot_end(Slot *s);
/* After the helper's end: its device still uses the slot's options. */
Slot *slot_free(Slot *s);
DEFINE_CLEANUP(Slot, slot_free)
