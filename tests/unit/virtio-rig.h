/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A PCI bus with one virtio device whose helper is whatever listens on a socket, an event loop on a thread of its own as in
 * vmmd, and the driver's side: registers through the BAR, rings in guest memory. Without KVM; everything here asserts. */

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdatomic.h>

#include "pci.h"
#include "virtio-pci.h"

#define RIG_MEMORY MIB(4)
#define RIG_QUEUE_SIZE 16
#define RIG_ECAM(slot) ((uint64_t) (slot) << 15)

/* Parts of the BAR, as the capabilities say; rig_new() asserts that they do. */
#define RIG_COMMON 0x0000
#define RIG_ISR 0x1000
#define RIG_DEVICE 0x2000
#define RIG_NOTIFY 0x3000
#define RIG_MSIX 0x4000

typedef struct RigQueue {
        struct vring_desc *descriptors;
        struct vring_avail *available;
        struct vring_used *used;
        uint16_t used_seen;
} RigQueue;

typedef struct Rig {
        char directory[32];
        char path[64]; /* of the helper's socket */
        Kvm kvm;
        IoSpace mmio;
        PciBus bus;
        GuestMemory memory;
        VhostFrontend *frontend;
        VirtioPci *virtio;
        unsigned slot;
        uint64_t bar;
        RigQueue queues[4];
        pid_t helper;

        pthread_t loop;
        int wake_fd, end_fd;
        atomic_bool ending;
        atomic_uint n_states, n_config, n_broken, n_lost;
} Rig;

/* A front-end and its device, not connected. */
void rig_new(Rig *rig, uint16_t virtio_id, unsigned n_queues);
void rig_free(Rig *rig);
/* Begins to connect. */
void rig_start(Rig *rig);
/* Starts the real helper with these arguments (beside the socket's path) and waits until it listens. */
void rig_spawn(Rig *rig, const char *const *arguments);
void rig_kill(Rig *rig);
/* Waits for a state, for at most ten seconds. */
void rig_expect_state(Rig *rig, VhostFrontendState state);

uint32_t rig_read(Rig *rig, uint64_t offset, unsigned size);
void rig_write(Rig *rig, uint64_t offset, uint32_t value, unsigned size);
uint32_t rig_config_read(Rig *rig, unsigned offset, unsigned size);
void rig_config_write(Rig *rig, unsigned offset, uint32_t value, unsigned size);
/* Offset of a capability in configuration space, of this virtio type where it is a vendor's; 0 where there is none. */
unsigned rig_capability(Rig *rig, uint8_t id, uint8_t virtio_type);

uint64_t rig_offered_features(Rig *rig);
/* From reset to FEATURES_OK with all that is offered but `without`; the resulting status. */
uint8_t rig_negotiate(Rig *rig, uint64_t without);
/* Lays a ring out and enables it. */
void rig_set_queue(Rig *rig, unsigned index);
/* All of it: negotiate, queue 0, DRIVER_OK. Returns the status. */
uint8_t rig_drive(Rig *rig);
void rig_reset(Rig *rig);

/* Makes [buffer, buffer + size) of guest memory available for the device to write, and kicks. */
void rig_submit(Rig *rig, unsigned queue, uint16_t descriptor, uint64_t buffer, uint32_t size);
/* Waits for a used element; false after `msec`. */
bool rig_used(Rig *rig, unsigned queue, int msec, struct vring_used_elem *ret);
