/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A device that copies what is readable to what is writable, on rings and memory full of what the fuzzer likes. The first bytes say what
 * was negotiated; the rest is guest memory, and is written again between the rounds, as a guest on another processor would. */

#include <sys/mman.h>

#include "virtqueue.h"

#define RAM_SIZE 65536
#define USER UINT64_C(0x10000)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static GuestMemory memory;

static void serve(Virtqueue *q, VirtqueueChain *chain) {
        uint8_t buffer[64];
        int budget = 64;

        do {
                virtqueue_suppress_kicks(q);
                while (budget-- > 0 && virtqueue_pop(q, chain) > 0) {
                        size_t n = iov_cursor_read(&chain->readable, buffer, sizeof(buffer));
                        (void) iov_cursor_skip(&chain->writable, n);
                        virtqueue_push(q, chain, (uint32_t) iov_cursor_write(&chain->writable, buffer, n));
                        if (budget % 3 == 0)
                                virtqueue_notify(q);
                }
                virtqueue_notify(q);
        } while (budget > 0 && virtqueue_want_kicks(q));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _Alignas(8) static uint8_t log[sizeof(QueueRegionSplit) + 256 * sizeof(DescStateSplit)];
        VirtqueueChain chain = {};
        VirtqueueSetup setup;
        Virtqueue *q = NULL;
        uint8_t *ram;

        if (size < 8)
                return 0;
        /* Two regions, so that buffers can cross. */
        if (memory.n_regions == 0 && (guest_memory_add(&memory, guest_memory_create_fd(RAM_SIZE, 0), 0, 0, RAM_SIZE, USER) < 0 ||
                                             guest_memory_add(&memory, guest_memory_create_fd(RAM_SIZE, 0), 0, RAM_SIZE, RAM_SIZE,
                                                     USER + 4 * RAM_SIZE) < 0))
                abort();
        ram = guest_memory_at(&memory, 0, RAM_SIZE);

        setup = (VirtqueueSetup) {
                .num = (uint16_t) (1U << (data[0] % 9)),
                .desc_user_addr = USER + (uint64_t) data[1] % 4 * 8,
                .avail_user_addr = USER + 4096,
                .used_user_addr = USER + 6144,
                .base = load_le16(data + 2),
                .event_idx = data[4] & 1,
                .indirect = data[4] & 2,
        };
        if (data[4] & 4) {
                setup.log = (QueueRegionSplit *) (void *) log;
                setup.log_num = 256;
                memset(log, 0, sizeof(log));
                memcpy(log, data + 8, MIN(size - 8, sizeof(log)));
                if (data[4] & 8)
                        setup.log->version = QUEUE_REGION_VERSION, setup.log->features = 0, setup.log->desc_num = setup.num;
        }
        memset(ram, 0, RAM_SIZE);
        memcpy(ram, data + 8, MIN(size - 8, (size_t) RAM_SIZE));
        if (virtqueue_new(&memory, &setup, &q) < 0)
                return 0;
        for (unsigned round = 0; round < 3; round++) {
                serve(q, &chain);
                memcpy(ram, data + 8, MIN(size - 8, (size_t) 8192));
                if (size > 16)
                        ram[4098 + round] = data[8 + round];
        }
        virtqueue_chain_done(&chain);
        (void) virtqueue_free(q);
        return 0;
}
