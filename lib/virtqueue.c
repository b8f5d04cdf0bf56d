/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_ring.h>

#include "virtqueue.h"

typedef enum HeadState {
        HEAD_FREE,
        HEAD_TAKEN,  /* by virtqueue_pop() */
        HEAD_TAKEN_AGAIN, /* the same, from the log */
        HEAD_PUSHED, /* given back, not shown to the driver yet */
} HeadState;

struct Virtqueue {
        const GuestMemory *memory;
        struct vring_desc *desc;
        struct vring_avail *avail;
        struct vring_used *used;
        uint16_t num;
        bool event_idx, indirect;
        int call_fd;

        uint16_t last_avail; /* the next entry of the available ring to look at */
        uint16_t used_idx;   /* what the driver sees in the used ring */
        uint16_t n_pushed;   /* entries written behind it, not shown yet */
        uint16_t signalled;  /* used_idx when the driver was last asked whether it wants a signal, */
        bool signalled_valid; /* if it ever was */
        unsigned n_in_flight;
        uint8_t *heads;      /* HeadState of each: what is not free cannot be made available again */
        uint16_t *pushed;    /* heads of the entries not shown yet */

        QueueRegionSplit *log;
        uint64_t counter;
        uint16_t *resubmit; /* heads from the log, in the order in which they were taken */
        size_t n_resubmit, at_resubmit;

        const char *error;
};

/* Shared memory is read with these and nothing else: exactly one load that the compiler cannot repeat. */
static uint16_t read_once16(const uint16_t *p) {
        return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static uint16_t read_acquire16(const uint16_t *p) {
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

/* An indirect table has no alignment (§2.7.5.3), so this is a copy that is finished before anybody looks at it. */
static struct vring_desc read_once_desc(const struct vring_desc *table, size_t i) {
        struct vring_desc d;

        memcpy(&d, (const uint8_t *) table + i * sizeof(d), sizeof(d));
        __asm__ volatile("" : "+m"(d) : : "memory");
        return d;
}

/* Keeps stores to the log in program order; whoever reads it later does so after this process has died. */
static void log_barrier(void) {
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static int broken(Virtqueue *q, const char *rule) {
        q->error = rule;
        return -EBADMSG;
}

/* §2.7.6 and §2.7.8: the words behind the rings by which each side says when it wants to hear from the other. */
static uint16_t *used_event(Virtqueue *q) {
        return (uint16_t *) &q->avail->ring[q->num];
}

static uint16_t *avail_event(Virtqueue *q) {
        return (uint16_t *) (void *) &q->used->ring[q->num];
}

static int map_rings(Virtqueue *q, const VirtqueueSetup *setup) {
        uint64_t num = setup->num;

        /* §2.7 has alignment and size of each part. */
        q->desc = guest_memory_at_user(q->memory, setup->desc_user_addr, 16 * num);
        q->avail = guest_memory_at_user(q->memory, setup->avail_user_addr, 6 + 2 * num);
        q->used = guest_memory_at_user(q->memory, setup->used_user_addr, 6 + 8 * num);
        if (!q->desc || !q->avail || !q->used)
                return -EFAULT;
        if ((uintptr_t) q->desc % 16 != 0 || (uintptr_t) q->avail % 2 != 0 || (uintptr_t) q->used % 4 != 0)
                return -EINVAL;
        return 0;
}

typedef struct LogEntry {
        uint64_t counter;
        uint16_t head;
} LogEntry;

static int compare_log_entries(const void *a, const void *b) {
        uint64_t x = ((const LogEntry *) a)->counter, y = ((const LogEntry *) b)->counter;

        return x < y ? -1 : x > y;
}

/* "When reconnecting", first step: the batch that was being shown to the driver when the process died. */
static void log_finish_last_batch(Virtqueue *q) {
        uint16_t n = (uint16_t) (q->used_idx - q->log->used_idx), head = q->log->last_batch_head;

        /* More than the ring holds cannot be a batch: the driver has reset the ring since, and nothing of the log is true any more. */
        if (n > q->num) {
                memset(q->log->desc, 0, q->num * sizeof(DescStateSplit));
                n = 0;
        }
        for (; n > 0 && head < q->num; n--) {
                q->log->desc[head].inflight = 0;
                head = q->log->desc[head].next;
        }
        log_barrier();
        q->log->used_idx = q->used_idx;
}

int queue_region_in_flight(const QueueRegionSplit *log, uint16_t num, uint16_t **ret) {
        _cleanup_free_ LogEntry *entries = NULL;
        _cleanup_free_ uint16_t *heads = NULL;
        size_t n = 0;

        if (log->version != QUEUE_REGION_VERSION || log->features != 0 || log->desc_num != num)
                return -EBADMSG;
        entries = calloc(num, sizeof(LogEntry));
        heads = calloc(num, sizeof(uint16_t));
        if (!entries || !heads)
                return -ENOMEM;
        for (uint16_t i = 0; i < num; i++)
                if (log->desc[i].inflight != 0)
                        entries[n++] = (LogEntry) { .counter = log->desc[i].counter, .head = i };
        qsort(entries, n, sizeof(LogEntry), compare_log_entries);
        for (size_t i = 0; i < n; i++)
                heads[i] = entries[i].head;
        *ret = TAKE_PTR(heads);
        return (int) n;
}

int queue_region_fill(QueueRegionSplit *log, uint16_t num, uint16_t used_idx, const uint16_t *heads, size_t n) {
        log->version = QUEUE_REGION_VERSION;
        log->desc_num = num;
        log->used_idx = used_idx;
        for (size_t i = 0; i < n; i++) {
                if (heads[i] >= num || log->desc[heads[i]].inflight != 0)
                        return -EINVAL;
                log->desc[heads[i]].counter = i;
                log->desc[heads[i]].inflight = 1;
        }
        return 0;
}

/* Second step: what is in flight is taken again, in the order in which it was taken first. */
static int log_collect(Virtqueue *q) {
        int n = queue_region_in_flight(q->log, q->num, &q->resubmit);

        if (n <= 0)
                return n;
        q->n_resubmit = (size_t) n;
        q->counter = q->log->desc[q->resubmit[n - 1]].counter + 1;
        return 0;
}

static int log_open_region(Virtqueue *q, const VirtqueueSetup *setup) {
        int r;

        if (!setup->log)
                return 0;
        if (setup->log_num < q->num)
                return -EBADMSG;
        q->log = setup->log;

        if (q->log->version != 0 && (q->log->version != QUEUE_REGION_VERSION || q->log->features != 0))
                return -EBADMSG;
        /* Also where it is of a queue of another size: a driver has made it anew, as an operating system does after its firmware, and all rings were
         * stopped in between. */
        if (q->log->version == 0 || q->log->desc_num != q->num) {
                memset(q->log, 0, sizeof(QueueRegionSplit) + q->num * sizeof(DescStateSplit));
                q->log->desc_num = q->num;
                q->log->used_idx = q->used_idx;
                log_barrier();
                q->log->version = QUEUE_REGION_VERSION;
                return 0;
        }

        log_finish_last_batch(q);
        r = log_collect(q);
        if (r < 0)
                return r;
        /* Whatever was taken is either used or in flight. The base that the front-end knows may be older. */
        if (q->n_resubmit > 0)
                q->last_avail = (uint16_t) (q->used_idx + q->n_resubmit);
        return 0;
}

int virtqueue_new(const GuestMemory *memory, const VirtqueueSetup *setup, Virtqueue **ret) {
        _cleanup_(virtqueue_freep) Virtqueue *q = NULL;
        int r;

        if (setup->num == 0 || setup->num > VIRTQUEUE_NUM_MAX || (setup->num & (setup->num - 1)) != 0)
                return -EINVAL;
        q = calloc(1, sizeof(Virtqueue));
        if (!q)
                return -ENOMEM;
        *q = (Virtqueue) {
                .memory = memory,
                .num = setup->num,
                .event_idx = setup->event_idx,
                .indirect = setup->indirect,
                .call_fd = -EBADF,
                .last_avail = setup->base,
                .heads = calloc(setup->num, sizeof(uint8_t)),
                .pushed = calloc(setup->num, sizeof(uint16_t)),
        };
        if (!q->heads || !q->pushed)
                return -ENOMEM;

        r = map_rings(q, setup);
        if (r < 0)
                return r;
        q->used_idx = read_acquire16(&q->used->idx);
        r = log_open_region(q, setup);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(q);
        return 0;
}

Virtqueue *virtqueue_free(Virtqueue *q) {
        if (!q)
                return NULL;
        free(q->heads);
        free(q->pushed);
        free(q->resubmit);
        return mfree(q);
}

void virtqueue_set_call_fd(Virtqueue *q, int fd) {
        q->call_fd = fd;
}

uint16_t virtqueue_next_used(const Virtqueue *q) {
        return (uint16_t) (q->used_idx + q->n_pushed);
}

bool virtqueue_resumes(const Virtqueue *q) {
        return q->at_resubmit < q->n_resubmit;
}

bool virtqueue_taken_again(const Virtqueue *q, const VirtqueueChain *chain) {
        return q->heads[chain->head] == HEAD_TAKEN_AGAIN;
}

uint16_t virtqueue_num(const Virtqueue *q) {
        return q->num;
}

unsigned virtqueue_in_flight(const Virtqueue *q) {
        return q->n_in_flight;
}

uint16_t virtqueue_base(const Virtqueue *q) {
        return q->last_avail;
}

const char *virtqueue_error(const Virtqueue *q) {
        return q->error;
}

void virtqueue_chain_done(VirtqueueChain *chain) {
        free(chain->iov);
        *chain = (VirtqueueChain) {};
}

static int chain_append(VirtqueueChain *chain, void *base, uint64_t length, bool writable) {
        size_t n = chain->n_readable + chain->n_writable;

        if (n == chain->allocated) {
                size_t allocated = MAX(chain->allocated * 2, (size_t) 16);
                struct iovec *grown = reallocarray(chain->iov, allocated, sizeof(struct iovec));
                if (!grown)
                        return -ENOMEM;
                chain->iov = grown;
                chain->allocated = allocated;
        }
        chain->iov[n] = (struct iovec) { .iov_base = base, .iov_len = length };
        *(writable ? &chain->n_writable : &chain->n_readable) += 1;
        return 0;
}

static int chain_add_buffer(Virtqueue *q, VirtqueueChain *chain, const struct vring_desc *d, uint64_t *total) {
        bool writable = d->flags & VRING_DESC_F_WRITE;
        uint64_t address = d->addr, left = d->len;

        if (left == 0)
                return broken(q, "a buffer is empty");
        if (!writable && chain->n_writable > 0)
                return broken(q, "a readable buffer comes after a writable one"); /* §2.7.4.2 */
        *total += left;
        if (*total > UINT64_C(1) << 32)
                return broken(q, "a chain describes more than 2^32 bytes"); /* §2.7.5.2 */

        /* A buffer may cross from one region of memory to the next. */
        while (left > 0) {
                void *p;
                uint64_t n = guest_memory_span(q->memory, address, left, &p);
                int r;

                if (n == 0)
                        return broken(q, "a buffer lies outside guest memory");
                r = chain_append(chain, p, n, writable);
                if (r < 0)
                        return r;
                address += n;
                left -= n;
        }
        return 0;
}

/* The descriptors of one indirect table, which hold the rest of the chain. */
static int chain_walk_indirect(Virtqueue *q, VirtqueueChain *chain, const struct vring_desc *indirect, uint64_t *total) {
        uint32_t n = indirect->len / sizeof(struct vring_desc), max = MIN(n, MAX((uint32_t) q->num, VIRTQUEUE_CHAIN_MAX)), i = 0;
        const struct vring_desc *table;

        if (!q->indirect)
                return broken(q, "an indirect descriptor was not negotiated");
        if (indirect->flags & VRING_DESC_F_NEXT)
                return broken(q, "a descriptor is both indirect and followed by another"); /* §2.7.5.3.1 */
        if (indirect->len == 0 || indirect->len % sizeof(struct vring_desc) != 0 || n > VIRTQUEUE_NUM_MAX)
                return broken(q, "an indirect table has a wrong size");
        table = guest_memory_at(q->memory, indirect->addr, indirect->len);
        if (!table)
                return broken(q, "an indirect table lies outside guest memory");

        for (uint32_t walked = 0; walked < max; walked++) {
                struct vring_desc d = read_once_desc(table, i);
                int r;

                if (d.flags & VRING_DESC_F_INDIRECT)
                        return broken(q, "an indirect table is in an indirect table"); /* §2.7.5.3.1 */
                r = chain_add_buffer(q, chain, &d, total);
                if (r < 0)
                        return r;
                if (!(d.flags & VRING_DESC_F_NEXT))
                        return 0;
                i = d.next;
                if (i >= n)
                        return broken(q, "a descriptor is followed by one outside its table");
        }
        return broken(q, "a chain is longer than its table or than any we take");
}

static int chain_walk(Virtqueue *q, VirtqueueChain *chain, uint16_t head) {
        uint64_t total = 0;
        uint16_t i = head;

        /* A chain of more than Queue Size descriptors loops (§2.7.5.2). */
        for (uint32_t walked = 0; walked < q->num; walked++) {
                struct vring_desc d = read_once_desc(q->desc, i);
                int r;

                /* §2.7.5.3.2: any number of normal descriptors, then at most one indirect one */
                if (d.flags & VRING_DESC_F_INDIRECT)
                        return chain_walk_indirect(q, chain, &d, &total);
                r = chain_add_buffer(q, chain, &d, &total);
                if (r < 0)
                        return r;
                if (!(d.flags & VRING_DESC_F_NEXT))
                        return 0;
                i = d.next;
                if (i >= q->num)
                        return broken(q, "a descriptor is followed by one outside the table");
        }
        return broken(q, "a chain loops");
}

/* The next head, from the log or the available ring. Returns 1 or 0 like virtqueue_pop(). */
static int next_head(Virtqueue *q, uint16_t *ret) {
        uint16_t pending, head;

        if (q->at_resubmit < q->n_resubmit) {
                *ret = q->resubmit[q->at_resubmit];
                return 1;
        }

        pending = (uint16_t) (read_acquire16(&q->avail->idx) - q->last_avail);
        if (pending == 0)
                return 0;
        if (pending > q->num)
                return broken(q, "the available ring holds more entries than its size");
        head = read_once16(&q->avail->ring[q->last_avail & (q->num - 1)]);
        if (head >= q->num)
                return broken(q, "the head of a chain is outside the descriptor table");
        if (q->heads[head] != HEAD_FREE)
                return broken(q, "a chain is made available that is still in use");
        *ret = head;
        return 1;
}

/* Notes that `head` is in flight: from here on a restart takes it again. */
static void head_taken(Virtqueue *q, uint16_t head) {
        if (q->at_resubmit < q->n_resubmit) {
                q->at_resubmit++;
                q->heads[head] = HEAD_TAKEN_AGAIN;
        } else {
                if (q->log) {
                        q->log->desc[head].counter = q->counter++;
                        log_barrier();
                        q->log->desc[head].inflight = 1;
                        log_barrier();
                }
                q->last_avail++;
                q->heads[head] = HEAD_TAKEN;
        }
        q->n_in_flight++;
}

int virtqueue_pop(Virtqueue *q, VirtqueueChain *chain) {
        uint16_t head;
        int r;

        if (q->error)
                return -EBADMSG;
        r = next_head(q, &head);
        if (r <= 0)
                return r;

        chain->head = head;
        chain->n_readable = chain->n_writable = 0;
        r = chain_walk(q, chain, head);
        if (r < 0)
                return r;
        chain->readable = iov_cursor(chain->iov, chain->n_readable);
        chain->writable = iov_cursor(chain->iov + chain->n_readable, chain->n_writable);
        head_taken(q, head);
        return 1;
}

void virtqueue_unpop(Virtqueue *q, const VirtqueueChain *chain) {
        uint16_t head = chain->head;

        assert(head < q->num && (q->heads[head] == HEAD_TAKEN || q->heads[head] == HEAD_TAKEN_AGAIN));
        if (q->heads[head] == HEAD_TAKEN_AGAIN)
                q->at_resubmit--; /* in flight as it was before we came */
        else {
                q->last_avail--;
                if (q->log) {
                        log_barrier();
                        q->log->desc[head].inflight = 0;
                }
        }
        q->heads[head] = HEAD_FREE;
        q->n_in_flight--;
}

void virtqueue_push(Virtqueue *q, const VirtqueueChain *chain, uint32_t written) {
        struct vring_used_elem *e = &q->used->ring[(uint16_t) (q->used_idx + q->n_pushed) & (q->num - 1)];
        uint16_t head = chain->head;

        assert(head < q->num && (q->heads[head] == HEAD_TAKEN || q->heads[head] == HEAD_TAKEN_AGAIN));
        e->id = head;
        e->len = written;
        if (q->log) {
                q->log->desc[head].next = q->log->last_batch_head;
                log_barrier();
                q->log->last_batch_head = head;
        }
        q->heads[head] = HEAD_PUSHED;
        q->n_in_flight--;
        q->pushed[q->n_pushed++] = head;
}

/* "Increase the idx value of used ring", then clear `inflight` of the batch, then note the new idx. */
static void show_batch(Virtqueue *q) {
        q->used_idx = (uint16_t) (q->used_idx + q->n_pushed);
        __atomic_store_n(&q->used->idx, q->used_idx, __ATOMIC_RELEASE);
        if (q->log) {
                log_barrier();
                for (uint16_t i = 0; i < q->n_pushed; i++)
                        q->log->desc[q->pushed[i]].inflight = 0;
                log_barrier();
                q->log->used_idx = q->used_idx;
        }
        for (uint16_t i = 0; i < q->n_pushed; i++)
                q->heads[q->pushed[i]] = HEAD_FREE;
        q->n_pushed = 0;
}

/* §2.7.7.2: whether the driver asked for a signal about what was shown since the last time it was asked. */
static bool driver_wants_signal(Virtqueue *q) {
        uint16_t before = q->signalled, event;
        bool valid = q->signalled_valid;

        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the index is out before the driver's wish is read */
        if (!q->event_idx)
                return !(read_once16(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);

        event = read_once16(used_event(q));
        q->signalled = q->used_idx;
        q->signalled_valid = true;
        return !valid || vring_need_event(event, q->used_idx, before);
}

void virtqueue_notify(Virtqueue *q) {
        if (q->n_pushed == 0)
                return;
        show_batch(q);
        if (driver_wants_signal(q) && q->call_fd >= 0) {
                /* An eventfd only refuses when it is at its limit, and then the signal is already there. */
                ssize_t n = write(q->call_fd, &(const uint64_t) { 1 }, sizeof(uint64_t));
                (void) n;
        }
}

void virtqueue_suppress_kicks(Virtqueue *q) {
        /* With EVENT_IDX the driver kicks when it passes avail_event, which just stays where it is: behind. */
        if (!q->event_idx)
                __atomic_store_n(&q->used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool virtqueue_want_kicks(Virtqueue *q) {
        if (q->error)
                return false;
        if (q->event_idx)
                __atomic_store_n(avail_event(q), q->last_avail, __ATOMIC_RELAXED);
        else
                __atomic_store_n(&q->used->flags, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the wish is out before the last look (§2.7.10) */
        return virtqueue_pending(q);
}

static bool is_wanted(const VirtqueueServer *server, void *userdata) {
        return !server->wanted || server->wanted(userdata);
}

int virtqueue_serve(Virtqueue *q, VirtqueueChain *chain, const VirtqueueServer *server, void *userdata) {
        unsigned served = 0;
        int r = 0;

        do {
                virtqueue_suppress_kicks(q); /* for good, where nothing is wanted */
                while (served < server->max && is_wanted(server, userdata) && (r = virtqueue_pop(q, chain)) > 0) {
                        virtqueue_push(q, chain, server->serve(chain, userdata));
                        served++;
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (served >= server->max) {
                        (void) virtqueue_want_kicks(q); /* not everybody does call again */
                        return 1;
                }
        } while (is_wanted(server, userdata) && virtqueue_want_kicks(q));
        return 0;
}

uint16_t virtqueue_offered(const Virtqueue *q) {
        return read_acquire16(&q->avail->idx);
}

bool virtqueue_want_kicks_beyond(Virtqueue *q, uint16_t offered) {
        /* §2.7.10: the driver kicks when it makes the entry of this index available, which is the next one. */
        if (q->event_idx)
                __atomic_store_n(avail_event(q), offered, __ATOMIC_RELAXED);
        else
                __atomic_store_n(&q->used->flags, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the wish is out before the last look */
        return (int16_t) (virtqueue_offered(q) - offered) > 0;
}

bool virtqueue_pending(Virtqueue *q) {
        return !q->error && (q->at_resubmit < q->n_resubmit || read_acquire16(&q->avail->idx) != q->last_avail);
}
