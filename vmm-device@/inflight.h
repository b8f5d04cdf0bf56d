/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The memory of the in-flight log ("Inflight I/O tracking"): one region per queue, shared with the front-end, who keeps it for the
 * next helper. Its content is virtqueue.c's. */

#include "util.h"
#include "virtqueue.h"

typedef struct Inflight {
        uint8_t *mapping;
        uint64_t size;
        uint16_t num_queues, queue_size;
} Inflight;

/* Makes a new log; returns the fd, for the front-end. The log is not kept here: the front-end sends it back. */
int inflight_create(uint16_t num_queues, uint16_t queue_size, uint64_t *ret_size);
/* Maps a log that the front-end sent. `fd` stays the caller's. -EINVAL where its parts do not fit together. */
int inflight_open(Inflight *inflight, int fd, uint64_t size, uint64_t offset, uint16_t num_queues, uint16_t queue_size);
void inflight_done(Inflight *inflight);
/* The region of a queue, or NULL where there is no log for it. */
QueueRegionSplit *inflight_region(const Inflight *inflight, unsigned index);
/* Forgets what was in flight: the driver has reset the device. */
void inflight_clear(Inflight *inflight);
