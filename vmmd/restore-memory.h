/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A guest's memory as it comes back from a snapshot's file (snapshot-memory.h), while the guest is at work in it: a page that somebody touches is fetched at
 * once, its neighbours behind it, and all of them in turn.
 *
 * Two threads do that. One has nothing to do but to answer who waits: the page first, and what else is in its chunk when nobody is waiting any more. The
 * other reads from the beginning to the end, a chunk at a time, and never begins with one while somebody is answered. It is no lesser thread to the
 * scheduler: until it has got to the end some of the guest's devices may wait, and on a host that has more to do than processors one of low priority might
 * get there when the guest has given its disk up.
 *
 * By userfaultfd(2) on this process' mapping of the memory. KVM faults there in the kernel, so the descriptor has to be one that takes such faults, as
 * /dev/userfaultfd gives. Others who have the memory mapped see holes where a page has not come yet: nobody else may look before `done` was called, but
 * processes that have a userfaultfd of their own on it and let us answer it (RestorePeer). A page that is there is never written again, so whatever the
 * guest has made of it stands: also where it came while somebody else was waiting for it, who is then woken when his own question is read. */

#include "guest-memory.h"
#include "snapshot-memory.h"

typedef struct RestoreMemory RestoreMemory;

typedef struct RestoreMemoryStatistics {
        uint64_t bytes;  /* that came from the file */
        uint64_t faults; /* pages that were waited for */
        uint64_t usec;   /* from restore_memory_new() to the end */
} RestoreMemoryStatistics;

/* All at once, before anybody looks: for memory in huge pages, or where there is no userfaultfd. That may take long: `progress`, which may be NULL, is called now and then as long as it goes on. */
int restore_memory_read(const GuestMemory *memory, const SnapshotMemory *file, void (*progress)(void *userdata), void *userdata, char **ret_message);

/* `uffd` is of userfault.h, and is taken over, also on error; `file` and `memory` stay the caller's and must outlive it. From now on pages come when they
 * are touched, until it is freed. `done` is called once, on a thread of its own, when all of them are there (0), or when one cannot be had (a negative
 * errno; that may also come after a 0): then those of this process who wait for one get zeroes as soon as it returns, so it has to see to it that they make
 * nothing of them. All peers have ended before. */
int restore_memory_new(int uffd, const GuestMemory *memory, const SnapshotMemory *file, void (*done)(int error, void *userdata), void *userdata, RestoreMemory **ret);
/* Has all the others come, too. */
void restore_memory_begin(RestoreMemory *r);
/* Ends it, wherever it has got to: what is not there is a hole from then on. Nobody may be waiting for a page, and all peers are freed. */
RestoreMemory *restore_memory_free(RestoreMemory *r);
DEFINE_CLEANUP(RestoreMemory, restore_memory_free)
/* After `done` with an error: what is wrong, in words; NULL where there are none. */
const char *restore_memory_message(const RestoreMemory *r);
/* After `done`: as it was then. */
void restore_memory_statistics(const RestoreMemory *r, RestoreMemoryStatistics *ret);

/* Another process that has the memory mapped, and faults where a page is not there. */
typedef struct RestorePeer RestorePeer;
/* `uffd` is its; `leash` one of a pair of sockets whose other end it has, and which ends it when ours closes (VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT). Both are
 * taken over, also on error. -ENOTTY where the one is no userfaultfd; -ESHUTDOWN where memory cannot be had any more. */
int restore_peer_new(RestoreMemory *r, int uffd, int leash, RestorePeer **ret);
/* Where it has `memory` mapped, of which what is not the guest's memory is no concern of ours: `bases` are the addresses of the regions there. In place of
 * what was said before. */
void restore_peer_map(RestorePeer *p, const GuestMemory *memory, const uint64_t *bases);
/* It has let go of the leash, having unregistered all; or else it ends. */
RestorePeer *restore_peer_free(RestorePeer *p);
DEFINE_CLEANUP(RestorePeer, restore_peer_free)
