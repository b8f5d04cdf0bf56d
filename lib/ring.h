/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A pair of pipes in shared memory: messages both ways between a vCPU's thread and the plugin's thread that serves it, without a system call
 * while both are awake. Stands alone, as spin.h does.
 *
 * The memory has a buffer for each direction, a count of what was written and one of what was read. A message is a word (its size, and in the
 * high byte its kind) and its bytes; one that is larger than the buffer goes through it in pieces. Who finds nothing looks for a bounded time (spin.h; not where
 * the other side needs the same processor), then sleeps for a short one by futex, and then in a read of the real pipe that both have beside the ring: so the other side's death ends each wait,
 * and nobody wakes up for nothing. A sleeper says how it sleeps, and is woken accordingly.
 *
 * Each side takes the other for hostile: both keep their own positions to themselves, counts of the other's are checked, bytes
 * are copied once. The memory cannot shrink (seals); who makes it sees to that, who maps it checks. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spin.h"

#define RING_SIZE UINT32_C(16384) /* of one direction: what two processors pass to and fro stays in their caches */

typedef enum RingSide { RING_PLUGIN = 0, RING_MACHINE = 1 } RingSide;

/* Kinds of messages. */
enum { RING_MESSAGE = 0 /* of the plugin protocol */ };

/* Counts run on and wrap; each is in a cache line of its own. */
typedef struct RingCount {
        uint32_t value;
        uint8_t padding[60];
} RingCount;

typedef struct RingMemory {
        struct {
                RingCount written, read;
        } of[2]; /* what this side writes */
        struct {
                uint32_t sleeping; /* RING_SLEEPS_… and what for, or 0 */
                uint32_t bell;     /* the futex: counts wake-ups */
                uint32_t processor; /* where this side was when it last began or ceased to wait */
                uint8_t padding[52];
        } sleepers[2];
        uint8_t padding[4096 - 6 * 64];
        uint8_t bytes[2][RING_SIZE];
} RingMemory;

_Static_assert(sizeof(RingMemory) == 4096 + 2 * RING_SIZE, "whole pages, at the same places on both sides");

typedef struct Ring {
        RingMemory *memory;
        RingSide side;
        int read_fd, write_fd;    /* of the pipes; borrowed */
        uint32_t written, read;   /* this side's positions */
        uint32_t room, available; /* for so many bytes the other side's counts need not be looked at again: they only ever allow for more */
        uint32_t processor;       /* what this side said last */
        const _Atomic bool *stop; /* set: every wait ends with -ECANCELED; or NULL */
        Spin spin;
} Ring;

/* One ring for each vCPU, at this distance, in a memfd. */
static inline size_t ring_memory_size(unsigned n) {
        return n * sizeof(RingMemory);
}
/* Maps the rings of `n` vCPUs. -EPERM where the memfd could shrink, -ERANGE where it is too short. `fd` stays the caller's. */
int ring_memory_map(int fd, unsigned n, RingMemory **ret);
void ring_memory_unmap(RingMemory *memory, unsigned n);

void ring_init(Ring *ring, RingMemory *memory, RingSide side, int read_fd, int write_fd, const _Atomic bool *stop);

/* -EPIPE where the other side is gone, -EBADMSG where its counts make no sense, -ECANCELED. After an error the ring is of no use any more. */
int ring_send(Ring *ring, uint8_t kind, const void *data, size_t size);
/* The next message; -EBADMSG where it has more than `room` bytes. */
int ring_receive(Ring *ring, uint8_t *ret_kind, void *buffer, size_t room, size_t *ret_size);
