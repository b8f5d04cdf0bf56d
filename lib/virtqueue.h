/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The device's side of a split virtqueue (virtio 1.2 §2.7), with the in-flight log of vhost-user ("Inflight I/O tracking").
 *
 * Everything behind the rings' addresses is shared with a running, hostile guest. virtqueue_pop() reads each value of it once,
 * checks the whole chain, and hands it out as cursors; after that the guest can change descriptors without anybody
 * noticing. -EBADMSG means that the guest broke the rules, and virtqueue_error() which.
 *
 * The way to drain a queue, which costs no notification that is not needed:
 *
 *         do {
 *                 virtqueue_suppress_kicks(q);
 *                 while ((r = virtqueue_pop(q, &chain)) > 0)
 *                         … virtqueue_push(q, &chain, written);
 *                 virtqueue_notify(q);
 *         } while (virtqueue_want_kicks(q));
 */

#include "guest-memory.h"
#include "iovec.h"
#include "util.h"

#define VIRTQUEUE_NUM_MAX 32768U /* §2.7: "The maximum Queue Size value is 32768" */

/* §2.7.5.3.1 allows no chain longer than the queue, but drivers put more into an indirect table of a small one. What a chain can make us keep
 * is bounded by this, or by the size of the queue where that is larger. */
#define VIRTQUEUE_CHAIN_MAX 1024U

/* The shared log of one queue; names and layout are the vhost-user specification's. */
typedef struct DescStateSplit {
        uint8_t inflight;
        uint8_t padding[5];
        uint16_t next;
        uint64_t counter;
} DescStateSplit;

typedef struct QueueRegionSplit {
        uint64_t features;
        uint16_t version;
        uint16_t desc_num;
        uint16_t last_batch_head;
        uint16_t used_idx;
        DescStateSplit desc[];
} QueueRegionSplit;

#define QUEUE_REGION_VERSION 1
/* Bytes of one queue's region, so that the next one is aligned. */
static inline uint64_t queue_region_size(uint16_t num) {
        return ALIGN_UP(sizeof(QueueRegionSplit) + (uint64_t) num * sizeof(DescStateSplit), UINT64_C(64));
}

/* What the log of a queue of `num` has as in flight while nobody serves it, in the order in which it was taken: returns how many heads, of which *ret is an array that the caller
 * frees. -EBADMSG where it is of another queue. */
int queue_region_in_flight(const QueueRegionSplit *log, uint16_t num, uint16_t **ret);
/* The way back, into a log that is all zeroes: `used_idx` is that of the used ring. -EINVAL where a head is none of the queue's, or there twice. */
int queue_region_fill(QueueRegionSplit *log, uint16_t num, uint16_t used_idx, const uint16_t *heads, size_t n);

typedef struct VirtqueueSetup {
        uint16_t num;                           /* a power of two, 1 … VIRTQUEUE_NUM_MAX */
        uint64_t desc_user_addr;                /* in the front-end's address space, as vhost-user has it */
        uint64_t avail_user_addr;
        uint64_t used_user_addr;
        uint16_t base;                          /* the next available entry to take; a log with something in flight overrides it */
        bool event_idx, indirect;               /* VIRTIO_RING_F_EVENT_IDX, _INDIRECT_DESC are negotiated */
        QueueRegionSplit *log;                  /* the queue's region of the in-flight log, or NULL; */
        uint16_t log_num;                       /* and for how many descriptors it has room */
} VirtqueueSetup;

typedef struct Virtqueue Virtqueue;

typedef struct VirtqueueChain {
        IovCursor readable; /* what the driver wrote for the device */
        IovCursor writable; /* where the device writes */
        size_t n_readable, n_writable; /* how many buffers each has */
        uint16_t head;
        struct iovec *iov;
        size_t allocated;
} VirtqueueChain;

/* Makes a queue on memory that must stay mapped while it lives. -EINVAL for a bad size or alignment, -EFAULT where a ring is not in
 * guest memory as a whole, -EBADMSG for a log that makes no sense. What the log has as in flight comes first from virtqueue_pop(). */
int virtqueue_new(const GuestMemory *memory, const VirtqueueSetup *setup, Virtqueue **ret);
Virtqueue *virtqueue_free(Virtqueue *q);
DEFINE_CLEANUP(Virtqueue, virtqueue_free)

/* Where to signal used buffers; borrowed, -EBADF for none. */
void virtqueue_set_call_fd(Virtqueue *q, int fd);

/* Takes the next chain. Returns 1, 0 where the queue is empty, -EBADMSG where the guest broke the rules (and for ever after), or -ENOMEM. A
 * chain structure can be used again and again; its memory is kept until virtqueue_chain_done(). */
int virtqueue_pop(Virtqueue *q, VirtqueueChain *chain);
void virtqueue_chain_done(VirtqueueChain *chain);

/* As if the chain had not been taken: the next virtqueue_pop() finds it again. Only for the one taken last of those that are not given back;
 * then for the one before it, and so on. */
void virtqueue_unpop(Virtqueue *q, const VirtqueueChain *chain);

/* Gives a chain back, `written` bytes of its writable part being written. The driver sees it at the next virtqueue_notify(). */
void virtqueue_push(Virtqueue *q, const VirtqueueChain *chain, uint32_t written);
/* Shows the driver everything pushed so far with one update of the index, and signals it if it asked for that. */
void virtqueue_notify(Virtqueue *q);

void virtqueue_suppress_kicks(Virtqueue *q);
/* Asks for a kick at the next available chain. Returns whether there is one already, for which no kick may come. */
bool virtqueue_want_kicks(Virtqueue *q);
/* Whether a chain is waiting. */
bool virtqueue_pending(Virtqueue *q);

/* How many chains the driver has made available in all, modulo 2^16: also those that nobody has taken yet. */
uint16_t virtqueue_offered(const Virtqueue *q);
/* For who waits for a driver to come back with a buffer while others lie ready: asks for a kick at the first chain beyond the `offered` ones. Returns
 * whether there is one already. Not together with virtqueue_want_kicks(), which asks for something else. */
bool virtqueue_want_kicks_beyond(Virtqueue *q, uint16_t offered);

/* The same way to drain a queue for who is done with each chain at once. */
typedef struct VirtqueueServer {
        bool (*wanted)(void *userdata);                             /* whether there is something to do for a chain; NULL: always */
        uint32_t (*serve)(VirtqueueChain *chain, void *userdata);   /* returns how many bytes were written */
        unsigned max;                                               /* chains, before others have their turn */
} VirtqueueServer;

/* 1 where it stopped early and has to be called again, 0 where the next kick is soon enough, or what virtqueue_pop() said. */
int virtqueue_serve(Virtqueue *q, VirtqueueChain *chain, const VirtqueueServer *server, void *userdata);

/* For a device that gives chains back in the order in which it takes them: the index in the used ring of the one that is given back next. With that it can
 * note what it has done of a chain that was taken but not shown to the driver when it died. */
uint16_t virtqueue_next_used(const Virtqueue *q);
/* Whether there are chains that a predecessor had taken and nobody has taken again; and whether this one, not given back yet, was such. */
bool virtqueue_resumes(const Virtqueue *q);
bool virtqueue_taken_again(const Virtqueue *q, const VirtqueueChain *chain);

uint16_t virtqueue_num(const Virtqueue *q);
/* Chains taken and not given back. */
unsigned virtqueue_in_flight(const Virtqueue *q);
/* The next available entry, what GET_VRING_BASE answers. */
uint16_t virtqueue_base(const Virtqueue *q);
/* Which rule was broken, or NULL. */
const char *virtqueue_error(const Virtqueue *q);
