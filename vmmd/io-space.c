/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "io-space.h"

void io_users_init(IoUsers *users, void (*idle)(void *userdata), void *userdata) {
        users->n = 1;
        users->idle = idle;
        users->userdata = userdata;
}

void io_users_get(IoUsers *users) {
        atomic_fetch_add(&users->n, 1);
}

void io_users_put(IoUsers *users) {
        /* Once the count is given up, they may be gone. */
        void (*idle)(void *userdata) = users->idle;
        void *userdata = users->userdata;

        if (atomic_fetch_sub(&users->n, 1) == 1 && idle)
                idle(userdata);
}

int io_space_init(IoSpace *space) {
        *space = (IoSpace) {};
        return -pthread_rwlock_init(&space->lock, NULL);
}

void io_space_done(IoSpace *space) {
        space->ranges = mfree(space->ranges);
        space->n_ranges = 0;
}

/* The first range that ends beyond `address`. */
static size_t find(const IoSpace *space, uint64_t address) {
        size_t low = 0, high = space->n_ranges;

        while (low < high) {
                size_t middle = (low + high) / 2;

                if (space->ranges[middle].base + (space->ranges[middle].size - 1) < address)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

int io_space_add(IoSpace *space, uint64_t base, uint64_t size, IoHandler handler, void *userdata) {
        return io_space_add_counted(space, base, size, handler, userdata, NULL);
}

int io_space_add_counted(IoSpace *space, uint64_t base, uint64_t size, IoHandler handler, void *userdata, IoUsers *users) {
        IoRange *grown;
        size_t at;
        int r = 0;

        if (size == 0 || base + (size - 1) < base)
                return -EINVAL;

        (void) pthread_rwlock_wrlock(&space->lock);
        at = find(space, base);
        if (at < space->n_ranges && space->ranges[at].base <= base + (size - 1))
                r = -EEXIST;
        else if (!(grown = realloc(space->ranges, (space->n_ranges + 1) * sizeof(IoRange))))
                r = -ENOMEM;
        else {
                space->ranges = grown;
                memmove(&grown[at + 1], &grown[at], (space->n_ranges - at) * sizeof(IoRange));
                grown[at] = (IoRange) { .base = base, .size = size, .handler = handler, .userdata = userdata, .users = users };
                space->n_ranges++;
        }
        (void) pthread_rwlock_unlock(&space->lock);
        return r;
}

int io_space_remove(IoSpace *space, uint64_t base) {
        size_t at;
        int r = -ENOENT;

        (void) pthread_rwlock_wrlock(&space->lock);
        at = find(space, base);
        if (at < space->n_ranges && space->ranges[at].base == base) {
                memmove(&space->ranges[at], &space->ranges[at + 1], (space->n_ranges - at - 1) * sizeof(IoRange));
                space->n_ranges--;
                r = 0;
        }
        (void) pthread_rwlock_unlock(&space->lock);
        return r;
}

void io_space_access(IoSpace *space, unsigned vcpu, uint64_t address, void *data, unsigned size, bool is_write) {
        IoRange range = {};
        size_t at;

        /* The handler runs without the lock: it may itself move ranges (a BAR), and it may wait for a helper. */
        (void) pthread_rwlock_rdlock(&space->lock);
        at = find(space, address);
        if (at < space->n_ranges && space->ranges[at].base <= address &&
                range_within(address - space->ranges[at].base, size, space->ranges[at].size))
                range = space->ranges[at];
        if (range.users)
                io_users_get(range.users); /* who takes the range away waits for the lock first */
        (void) pthread_rwlock_unlock(&space->lock);

        if (!is_write)
                memset(data, 0xff, size);
        if (range.handler)
                range.handler(range.userdata, vcpu, address - range.base, data, size, is_write);
        if (range.users)
                io_users_put(range.users);
}
