/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a vCPU's port or memory access that KVM did not take itself is handed to: ranges of addresses, each with one
 * handler. Two such spaces exist, ports and memory. Lookups come from every vCPU thread at once; ranges come and go when the guest
 * moves a BAR. */

#include <pthread.h>
#include <stdatomic.h>

#include "util.h"

/* `offset` is relative to the range, `size` is 1, 2, 4 or 8 and the access lies within the range. On a read the handler fills `data`,
 * which is preset to all ones. Runs on the vCPU's thread. */
typedef void (*IoHandler)(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write);

/* How many are inside a handler whose userdata may go away while the guest runs: whoever wants to free it takes its ranges out first, drops
 * his own share, and waits for `idle`, which is called once, by the last to leave, on his thread. */
typedef struct IoUsers {
        atomic_uint n;
        void (*idle)(void *userdata); /* NULL where nobody waits */
        void *userdata;
} IoUsers;

/* One user is there from the beginning: the owner. */
void io_users_init(IoUsers *users, void (*idle)(void *userdata), void *userdata);
/* Only by one who knows that another user stays meanwhile. */
void io_users_get(IoUsers *users);
void io_users_put(IoUsers *users);

typedef struct IoRange {
        uint64_t base;
        uint64_t size;
        IoHandler handler;
        void *userdata;
        IoUsers *users; /* NULL: it stays for as long as the space does */
} IoRange;

typedef struct IoSpace {
        pthread_rwlock_t lock;
        IoRange *ranges; /* sorted by base */
        size_t n_ranges;
} IoSpace;

int io_space_init(IoSpace *space);
void io_space_done(IoSpace *space);

/* -EEXIST where the range overlaps one that is there, -EINVAL where it wraps. */
int io_space_add(IoSpace *space, uint64_t base, uint64_t size, IoHandler handler, void *userdata);
/* The same of a handler that may go away. */
int io_space_add_counted(IoSpace *space, uint64_t base, uint64_t size, IoHandler handler, void *userdata, IoUsers *users);
/* Removes the range that starts at `base`; -ENOENT where there is none. */
int io_space_remove(IoSpace *space, uint64_t base);

/* Performs the access; where no range has it whole, a read gives all ones and a write goes nowhere, as on a PC. */
void io_space_access(IoSpace *space, unsigned vcpu, uint64_t address, void *data, unsigned size, bool is_write);
