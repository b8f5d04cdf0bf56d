/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a snapshot has of a device beside its registers: where its queues were, and what its helper keeps of it. */

#include "bus-protocol.h"
#include "machine-device.h"
#include "vhost-frontend.h"

/* The sections of each, and their version. */
#define SNAPSHOT_VHOST_SECTION "snapshot-virtio"
#define SNAPSHOT_IN_FLIGHT_SECTION "snapshot-inflight" /* where there is something */
#define SNAPSHOT_BUS_SECTION "snapshot-bus"
#define SNAPSHOT_DEVICE_VERSION 1

typedef struct SavedDevice {
        VhostSnapshot vhost;               /* of a virtio device */
        uint8_t bus_state[BUS_STATE_SIZE]; /* of one of registers */
} SavedDevice;

void saved_device_done(SavedDevice *s);
/* Of a device that was suspended; `index` is its place in the snapshot. Waits for its helper. *ret_state is the helper's own, the caller's; NULL for one of registers. */
int saved_device_write(MachineDevice *d, unsigned index, StateWriter *w, void **ret_state, size_t *ret_size, char **ret_message);
int saved_device_read(const MachineDevice *d, unsigned index, StateReader *r, SavedDevice *ret, char **ret_message);
