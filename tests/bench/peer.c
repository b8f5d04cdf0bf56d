/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <time.h>

#include "peer.h"

#define BIT(n) (UINT64_C(1) << (n))
#define RING_FEATURES (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VHOST_USER_F_PROTOCOL_FEATURES))
#define PROTOCOL_FEATURES (BIT(VHOST_USER_PROTOCOL_F_MQ) | BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) | BIT(VHOST_USER_PROTOCOL_F_CONFIG) | \
                BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))

void peer_connect(FrontEnd *f, const char *path, pid_t pid, uint64_t features, unsigned n_queues) {
        fe_connect(f, path, pid);
        fe_negotiate_some(f, ~(features | RING_FEATURES), PROTOCOL_FEATURES);
        fe_set_mem_table(f);
        if (f->protocol_features & BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
                fe_share_inflight(f, (uint16_t) n_queues, PEER_NUM);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(f, i, PEER_NUM);
}

static uint64_t clock_nsec(clockid_t clock) {
        struct timespec t = {};

        if (clock_gettime(clock, &t) < 0)
                abort();
        return (uint64_t) t.tv_sec * 1000000000U + (uint64_t) t.tv_nsec;
}

uint64_t peer_cpu_nsec(const FrontEnd *f) {
        clockid_t clock;

        if (clock_getcpuclockid(f->pid, &clock) != 0)
                abort();
        return clock_nsec(clock);
}

uint64_t peer_now_nsec(void) {
        return clock_nsec(CLOCK_MONOTONIC);
}

/* virtio 1.2 §2.7.10 */
void peer_kick(FrontEnd *f, unsigned queue, uint16_t before) {
        FrontEndQueue *q = &f->queues[queue];
        const uint16_t *event = (const uint16_t *) (const void *) &q->used->ring[q->num];
        bool wanted;

        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (f->features & BIT(VIRTIO_RING_F_EVENT_IDX))
                wanted = vring_need_event(__atomic_load_n(event, __ATOMIC_RELAXED), q->avail_idx, before);
        else
                wanted = !(__atomic_load_n(&q->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
        if (wanted)
                fe_kick(f, queue);
}

unsigned peer_used_now(FrontEnd *f, unsigned queue) {
        const FrontEndQueue *q = &f->queues[queue];

        return (uint16_t) (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) - q->used_idx);
}

unsigned peer_used(FrontEnd *f, unsigned queue, int timeout_ms) {
        FrontEndQueue *q = &f->queues[queue];
        bool events = f->features & BIT(VIRTIO_RING_F_EVENT_IDX);
        unsigned n = peer_used_now(f, queue);

        if (n > 0)
                return n;
        if (events)
                __atomic_store_n(&q->avail->ring[q->num], q->used_idx, __ATOMIC_RELAXED);
        else
                __atomic_store_n(&q->avail->flags, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        for (uint64_t end = now_usec() + (uint64_t) timeout_ms * USEC_PER_MSEC; (n = peer_used_now(f, queue)) == 0 && now_usec() < end;)
                (void) fe_eventfd(q->call, timeout_ms);
        if (!events)
                __atomic_store_n(&q->avail->flags, VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_RELAXED);
        return n;
}

struct vring_used_elem peer_take(FrontEnd *f, unsigned queue) {
        FrontEndQueue *q = &f->queues[queue];

        return q->used->ring[q->used_idx++ % q->num];
}
