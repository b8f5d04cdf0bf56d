/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A guest that has many requests to a disk under way and checks each: that it is done once, well, and that what is read is what was written. Needs a ring of
 * DISK_LOAD_NUM and a disk of DISK_LOAD_SIZE. Everything here ends the process on failure. */

#include "front-end.h"

#define DISK_LOAD_SIZE MIB(16)
#define DISK_LOAD_NUM 128
#define DISK_LOAD_DEPTH 32U

typedef struct DiskRequest {
        bool reading, under_way;
        uint32_t round, sector;
        unsigned n_done;
} DiskRequest;

typedef struct DiskLoad {
        DiskRequest requests[DISK_LOAD_DEPTH];
        unsigned seed, n_done, n_under_way;
} DiskLoad;

/* Offers one request of each kind that has none under way. */
void disk_load_begin(DiskLoad *l, FrontEnd *f);
/* Takes one request that was done, within `timeout_ms`, and offers the next one in its place if there shall be more. False where none was. */
bool disk_load_step(DiskLoad *l, FrontEnd *f, bool more, int timeout_ms);
/* Until none is under way, and checks that nothing is done twice. */
void disk_load_finish(DiskLoad *l, FrontEnd *f);
/* How often the one was done that was done least. */
unsigned disk_load_least(const DiskLoad *l);
