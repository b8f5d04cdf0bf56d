/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Spare units without systemd: a process holds the sockets and the descriptor store of one slot, and starts the real helper again whenever that has ended.
 * Everything here asserts. */

#include "machine-rig.h"

/* What the process tells. */
typedef struct SlotShared {
        unsigned n_stored; /* descriptors in the store */
        unsigned n_ended;  /* helpers that have */
} SlotShared;

typedef struct SlotUnit {
        pid_t manager;
        char sockets[2][96], notify[96];
        SlotShared *shared;
} SlotUnit;

/* Slot number `n` of the machine that `run` prepares; before vmmd runs. */
void slot_unit_start(SlotUnit *u, const Run *run, unsigned n);
/* The helper dies, and none comes after it. */
void slot_unit_stop(SlotUnit *u);
