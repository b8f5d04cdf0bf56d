/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A disk without PCI: virtio over MMIO (virtio 1.2, 4.2), one queue, a file behind it. */

#include "crosvm.h"
#include "guest-memory.h"
#include "virtqueue.h"

#define LINUX_BLOCK_ADDRESS UINT64_C(0xD0000000) /* linux.asl says the same */
#define LINUX_BLOCK_SIZE 0x200
#define LINUX_BLOCK_IRQ 5

typedef struct LinuxBlock {
        const GuestMemory *memory;
        int file_fd;
        uint64_t sectors;
        struct crosvm_irq *irq;
        struct crosvm_io *notify;
        uint32_t device_features_select, driver_features_select, queue_num, status, interrupt_status;
        uint64_t driver_features, rings[3]; /* descriptors, driver's, device's */
        Virtqueue *queue;
        VirtqueueChain chain;
} LinuxBlock;

/* Takes the file. Reserves its addresses and makes its events. */
int linux_block_init(LinuxBlock *b, struct crosvm *crosvm, const GuestMemory *memory, int file_fd);
void linux_block_access(LinuxBlock *b, uint64_t offset, uint8_t *data, size_t size, bool is_write);
/* The driver has written to QueueNotify. */
void linux_block_notified(LinuxBlock *b);
/* The driver is done with an interrupt. */
void linux_block_resampled(LinuxBlock *b);
