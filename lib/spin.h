/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Waiting for another process at a word of shared memory: first looking, then sleeping. For the bus protocol and the plugins' rings. Stands alone, since
 * libcrosvm_plugin has it, too, and is linked into other people's programs. */

#include <stdbool.h>
#include <stdint.h>

/* Waits until *word is no longer `expected`, until a wake, or for `timeout_usec` (UINT64_MAX: for ever). 0, -EAGAIN, -EINTR, -ETIMEDOUT. `shared`:
 * between processes. */
int futex_wait(const uint32_t *word, uint32_t expected, uint64_t timeout_usec, bool shared);
void futex_wake(const uint32_t *word, int n, bool shared);

/* How long to look before sleeping: longer while looking pays off, shorter while it does not, not at all where there
 * is one processor and the other side cannot run meanwhile. */
typedef struct Spin {
        uint64_t limit_nsec;
        uint64_t minimum_nsec, maximum_nsec;
        unsigned misses;
} Spin;
void spin_init(Spin *spin, uint64_t maximum_nsec);
/* Looks until condition() holds; whether it did. Adapts the limit. */
bool spin_until(Spin *spin, bool (*condition)(void *userdata), void *userdata);
