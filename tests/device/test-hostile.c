/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A driver that does everything wrong, to each kind of device: "test-hostile NAME". It knows from a table (requests.h) what a well-formed request looks
 * like, and spoils it: in the descriptors, in the rings, in the rings' addresses and sizes, in its content, and while the helper is reading
 * it.
 *
 * Each time: the helper lives and answers, nothing outside the shared regions of the memory has changed, nothing was written for a chain that was
 * refused; it says NEEDS_RESET where a rule was broken; and after a reset, in each of the ways there are, it serves well-formed requests as before.
 *
 * The memory has two regions with a hole between them. They begin and end in the middle of pages, so the helper has the rest of
 * these pages mapped, too, and what it writes there shows. */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "front-end.h"
#include "hostile-host.h"
#include "requests.h"

#define NUM 64
/* Offsets in RAM. */
#define FIRST_BEGIN 0x10040U
#define FIRST_END 0x7fffc0U
#define SECOND_BEGIN 0x900040U
#define SECOND_END 0xffefc0U
#define RINGS(queue) (0x20000U + (queue) * 0x10000U)
#define AVAIL 0x4000U
#define USED 0x8000U
#define TABLE 0x300000U /* for indirect tables */
#define BUFFERS MIB(4)
#define BUFFERS_SIZE MIB(1)
#define BUFFER(i) (BUFFERS + (i) * KIB(64))
#define BEFORE 8 /* index of the first buffer of what comes before a request */
#define CANARY 0xc7

#define ALL_FEATURES 0
#define PLAIN (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC | UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX)

typedef struct Hostile {
        FrontEnd f;
        Host host;
        uint64_t without; /* features that were not taken */
        unsigned n_resets;
        unsigned first;   /* index of the first buffer of the request that is laid out */
        bool racing;      /* whatever is said first may not be heard any more */
        uint8_t *before;  /* what the buffers held */
} Hostile;

static const RequestDevice *device;
static char doing[256]; /* for whoever has to find out what went wrong */

static void on_abort(int signal) {
        ssize_t n = write(STDERR_FILENO, doing, strlen(doing));
        (void) n;
}

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);    \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

#define now_doing(...) (void) snprintf(doing, sizeof(doing), __VA_ARGS__)

/* ---- the machine ---- */

static bool in_hole(size_t offset) {
        return offset < FIRST_BEGIN || (offset >= FIRST_END && offset < SECOND_BEGIN) || offset >= SECOND_END;
}

static void set_canaries(Hostile *h) {
        memset(h->f.ram, CANARY, FIRST_BEGIN);
        memset(h->f.ram + FIRST_END, CANARY, SECOND_BEGIN - FIRST_END);
        memset(h->f.ram + SECOND_END, CANARY, FE_RAM_SIZE - SECOND_END);
}

/* Around the edges, where the helper could reach; a memory comparison of the whole would take most of the test's time. */
static void check_canaries(Hostile *h) {
        static const size_t edges[] = { FIRST_BEGIN, FIRST_END, SECOND_BEGIN, SECOND_END };

        for (size_t i = 0; i < ELEMENTSOF(edges); i++)
                for (size_t at = edges[i] - KIB(8); at < MIN(edges[i] + KIB(8), FE_RAM_SIZE); at++)
                        must(!in_hole(at) || h->f.ram[at] == CANARY);
}

static void check_all_canaries(Hostile *h) {
        for (size_t at = 0; at < FE_RAM_SIZE; at++)
                must(!in_hole(at) || h->f.ram[at] == CANARY);
}

static void share_memory(Hostile *h) {
        VhostUserMemory table = {
                .nregions = 2,
                .regions = {
                        { FE_ADDRESS(FIRST_BEGIN), FIRST_END - FIRST_BEGIN, FE_USER_BASE + FIRST_BEGIN, FIRST_BEGIN },
                        { FE_ADDRESS(SECOND_BEGIN), SECOND_END - SECOND_BEGIN, FE_USER_BASE + SECOND_BEGIN, SECOND_BEGIN },
                },
        };
        int fds[] = { h->f.ram_fd, h->f.ram_fd };

        must(fe_acknowledged(&h->f, VHOST_USER_SET_MEM_TABLE, &table, offsetof(VhostUserMemory, regions[2]), fds, 2) == 0);
}

static void lay_out_queues(Hostile *h) {
        for (unsigned i = 0; i < device->n_queues; i++) {
                uint8_t *base = h->f.ram + RINGS(i);
                FrontEndQueue *q = &h->f.queues[i];

                memset(base, 0, KIB(64));
                q->num = NUM;
                q->desc = (struct vring_desc *) (void *) base;
                q->avail = (struct vring_avail *) (void *) (base + AVAIL);
                q->used = (struct vring_used *) (void *) (base + USED);
                q->avail_idx = q->used_idx = 0;
        }
}

static void start_queues(Hostile *h) {
        lay_out_queues(h);
        for (unsigned i = 0; i < device->n_queues; i++)
                fe_send_queue(&h->f, i, 0);
}

static void begin(Hostile *h, uint64_t without) {
        const char *arguments[16] = { device->type };
        unsigned n = 1;

        now_doing("starting\n");
        *h = (Hostile) { .without = without };
        if (!host_open(&h->host, device->type))
                exit(EXIT_SUCCESS);
        for (unsigned i = 0; i < ELEMENTSOF(h->host.arguments); i++)
                if (h->host.arguments[i][0])
                        arguments[n++] = h->host.arguments[i];
        for (unsigned i = 0; device->options[i]; i++)
                arguments[n++] = device->options[i];
        arguments[n] = NULL;
        fe_spawn(&h->f, arguments);
        fe_negotiate(&h->f, without);
        h->before = malloc(BUFFERS_SIZE);
        must(h->before);
        set_canaries(h);
        share_memory(h);
        start_queues(h);
}

static void end(Hostile *h) {
        check_all_canaries(h);
        fe_end(&h->f);
        host_close(&h->host);
        free(h->before);
}

/* ---- requests ---- */

static void serves(Hostile *h, const Request *r, bool indirect);

/* Puts the request into descriptors 0 … n-1; returns n. */
static unsigned lay_out(Hostile *h, const Request *r) {
        unsigned n = request_n_buffers(r);

        if (r->before) {
                h->first = BEFORE;
                if (h->racing) {
                        (void) lay_out(h, r->before);
                        fe_offer(&h->f, r->before->queue, 0);
                        fe_kick(&h->f, r->before->queue);
                } else
                        serves(h, r->before, false);
                h->first = 0;
        }
        memset(h->f.ram + BUFFER(h->first), 0x5a, REQUEST_BUFFERS_MAX * KIB(64));
        for (unsigned i = 0; i < n; i++) {
                const RequestBuffer *b = &r->buffers[i];

                if (!b->writable)
                        memcpy(h->f.ram + BUFFER(h->first + i), b->data, b->length);
                fe_desc(&h->f, r->queue, (uint16_t) i, FE_ADDRESS(BUFFER(h->first + i)), b->length,
                        (uint16_t) ((b->writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
                        (uint16_t) (i + 1 < n ? i + 1 : 0));
        }
        return n;
}

/* The same by an indirect table, whose address is returned. */
static struct vring_desc *lay_out_indirect(Hostile *h, const Request *r) {
        struct vring_desc *table = (struct vring_desc *) (void *) (h->f.ram + TABLE);
        unsigned n = lay_out(h, r);

        memcpy(table, h->f.queues[r->queue].desc, n * sizeof(*table));
        memset(h->f.queues[r->queue].desc, 0, n * sizeof(*table));
        fe_desc(&h->f, r->queue, 0, FE_ADDRESS(TABLE), (uint32_t) (n * sizeof(*table)), VRING_DESC_F_INDIRECT, 0);
        return table;
}

static bool is_broken(Hostile *h) {
        return fe_get_u64(&h->f, VHOST_USER_GET_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/* Two questions and answers: what was signalled before the first has been dispatched before the second. */
static void let_it_work(Hostile *h) {
        (void) fe_get_u64(&h->f, VHOST_USER_GET_FEATURES);
        (void) fe_get_u64(&h->f, VHOST_USER_GET_FEATURES);
}

/* Has the helper look; where the request waits for the host, until something comes of it, or for so long. */
static void kick(Hostile *h, const Request *r, int timeout_ms) {
        FrontEndQueue *q = &h->f.queues[r->queue];
        uint64_t until = now_usec() + (uint64_t) timeout_ms * USEC_PER_MSEC;

        memcpy(h->before, h->f.ram + BUFFERS, BUFFERS_SIZE);
        fe_kick(&h->f, r->queue);
        let_it_work(h);
        while (r->waits && now_usec() < until) {
                struct pollfd p[] = { { .fd = q->call, .events = POLLIN }, { .fd = q->err, .events = POLLIN } };

                host_stimulate(&h->host, r->queue);
                if (poll(p, ELEMENTSOF(p), 20) > 0)
                        break;
        }
}

/* The driver resets the device, in one of the ways that front-ends have; all is as in the beginning. */
static void reset(Hostile *h) {
        switch (h->n_resets++ % 3) {
        case 0:
                fe_set_u64(&h->f, VHOST_USER_SET_STATUS, 0);
                break;
        case 1:
                fe_send(&h->f, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0);
                break;
        default:
                for (unsigned i = 0; i < device->n_queues; i++)
                        (void) fe_stop_queue(&h->f, i);
        }
        must(!is_broken(h));
        start_queues(h);
}

static void serves(Hostile *h, const Request *r, bool indirect) {
        unsigned n = request_n_buffers(r);
        struct vring_used_elem e;
        uint64_t until = now_usec() + 60 * USEC_PER_SEC;
        uint32_t writable = 0;

        if (indirect)
                (void) lay_out_indirect(h, r);
        else
                (void) lay_out(h, r);
        for (unsigned i = 0; i < n; i++)
                writable += r->buffers[i].writable ? r->buffers[i].length : 0;
        fe_offer(&h->f, r->queue, 0);
        fe_kick(&h->f, r->queue);
        while (!fe_used(&h->f, r->queue, r->waits ? 20 : 60000, &e)) {
                must(r->waits && now_usec() < until);
                host_stimulate(&h->host, r->queue);
        }
        must(e.id == 0 && e.len <= writable);
        if (r->answers)
                must(h->f.ram[BUFFER(h->first + n - 1) + r->buffers[n - 1].length - 1] == 0);
        /* Nothing behind any buffer was touched. */
        for (unsigned i = 0; i < n; i++)
                for (unsigned k = 0; k < 64; k++)
                        must(h->f.ram[BUFFER(h->first + i) + r->buffers[i].length + k] == 0x5a);
}

/* It does what it is for. */
static void works(Hostile *h) {
        for (const Request *r = device->requests; r->name; r++) {
                serves(h, r, false);
                if (h->without == ALL_FEATURES)
                        serves(h, r, true);
        }
        must(!is_broken(h));
        check_canaries(h);
}

/* Whatever has happened: it is there, and can be used again. */
static void survives(Hostile *h, const Request *r) {
        let_it_work(h);
        must(fe_alive(&h->f));
        for (unsigned i = 0; i < device->n_queues; i++) /* what is under way comes to its end */
                (void) fe_stop_queue(&h->f, i);
        check_canaries(h);
        reset(h);
        serves(h, r, false);
}

/* A rule was broken: that is said, nothing was written, nothing more is done. */
static void is_refused(Hostile *h, const Request *r) {
        FrontEndQueue *q = &h->f.queues[r->queue];

        must(fe_eventfd(q->err, 10000) > 0);
        must(is_broken(h));
        must(memcmp(h->before, h->f.ram + BUFFERS, BUFFERS_SIZE) == 0);
        must(q->used->idx == 0);
        survives(h, r);
}

/* ---- ways to spoil a request that has n descriptors from 0 on ---- */

typedef enum Outcome {
        REFUSED,  /* NEEDS_RESET, in any device */
        SURVIVED, /* what it comes to is the device's */
} Outcome;

typedef struct Spoiler {
        const char *name;
        Outcome outcome;
        bool each; /* once for each of its buffers, `i` being which; else once */
        /* Returns false where the request cannot be spoilt in this way. */
        bool (*spoil)(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i);
} Spoiler;

static bool loop(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[n - 1].flags |= VRING_DESC_F_NEXT;
        d[n - 1].next = (uint16_t) i;
        return true;
}

static bool loop_to_itself(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags |= VRING_DESC_F_NEXT;
        d[i].next = (uint16_t) i;
        return true;
}

static bool next_outside(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags |= VRING_DESC_F_NEXT;
        d[i].next = NUM;
        return true;
}

static bool next_far_outside(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags |= VRING_DESC_F_NEXT;
        d[i].next = UINT16_MAX;
        return true;
}

static bool empty(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len = 0;
        return true;
}

static bool as_long_as_can_be(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len = UINT32_MAX;
        return true;
}

static bool beyond_its_region(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len = (uint32_t) (FIRST_END - BUFFER(i) + 1);
        return true;
}

static bool at_zero(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = 0;
        return true;
}

static bool before_memory(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_ADDRESS(FIRST_BEGIN) - 1;
        return true;
}

static bool into_the_hole(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_ADDRESS(FIRST_END) - d[i].len + 1;
        return true;
}

static bool in_the_hole(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_ADDRESS(FIRST_END + KIB(64));
        return true;
}

static bool beyond_the_end(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_ADDRESS(SECOND_END) - d[i].len + 1;
        return true;
}

static bool at_the_top(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = UINT64_MAX;
        return true;
}

static bool around_the_top(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = UINT64_MAX - d[i].len / 2;
        return true;
}

/* The front-end's addresses are not the guest's. */
static bool at_a_user_address(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_USER_BASE + BUFFER(i);
        return true;
}

static bool readable_behind_writable(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[n - 1].flags |= VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
        d[n - 1].next = NUM - 1;
        fe_desc(&h->f, r->queue, NUM - 1, FE_ADDRESS(BUFFER(REQUEST_BUFFERS_MAX)), 16, 0, 0);
        return true;
}

static bool turned_round(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        for (unsigned k = 0; k < n; k++)
                d[k].flags ^= VRING_DESC_F_WRITE;
        return true;
}

static bool one_turned_round(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags ^= VRING_DESC_F_WRITE;
        return true;
}

static bool cut_off(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags &= (uint16_t) ~VRING_DESC_F_NEXT;
        return true;
}

static bool without_its_beginning(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[0] = d[i];
        return i > 0;
}

static bool one_byte(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len = 1;
        return true;
}

static bool a_byte_less(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        return --d[i].len > 0;
}

static bool a_byte_more(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len++;
        return true;
}

static bool all_that_there_is(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].len = (uint32_t) (FIRST_END - BUFFER(i));
        return true;
}

static bool unknown_flags(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].flags |= (uint16_t) ~(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT);
        return true;
}

/* Its buffers are the rings: its own descriptors, available ring, used ring. */
static bool on_its_rings(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        d[i].addr = FE_ADDRESS(RINGS(r->queue));
        d[i].len = KIB(64);
        return true;
}

static bool all_in_one_place(Hostile *h, const Request *r, struct vring_desc *d, unsigned n, unsigned i) {
        for (unsigned k = 0; k < n; k++)
                d[k].addr = FE_ADDRESS(BUFFER(0));
        return true;
}

static const Spoiler spoilers[] = {
        { "a loop", REFUSED, true, loop },
        { "a loop to itself", REFUSED, true, loop_to_itself },
        { "a descriptor outside the table", REFUSED, true, next_outside },
        { "a descriptor far outside the table", REFUSED, true, next_far_outside },
        { "an empty buffer", REFUSED, true, empty },
        { "a buffer of 4 GiB", REFUSED, true, as_long_as_can_be },
        { "a buffer that leaves its region", REFUSED, true, beyond_its_region },
        { "a buffer at zero", REFUSED, true, at_zero },
        { "a buffer that begins before memory", REFUSED, true, before_memory },
        { "a buffer that reaches into the hole", REFUSED, true, into_the_hole },
        { "a buffer in the hole", REFUSED, true, in_the_hole },
        { "a buffer that ends behind memory", REFUSED, true, beyond_the_end },
        { "a buffer at the last address", REFUSED, true, at_the_top },
        { "a buffer that wraps around", REFUSED, true, around_the_top },
        { "an address of the front-end", REFUSED, true, at_a_user_address },
        { "a readable buffer behind a writable one", REFUSED, false, readable_behind_writable },
        { "buffers for the other direction", SURVIVED, false, turned_round },
        { "a buffer for the other direction", SURVIVED, true, one_turned_round },
        { "a chain that is cut off", SURVIVED, true, cut_off },
        { "a chain without its beginning", SURVIVED, true, without_its_beginning },
        { "a buffer of one byte", SURVIVED, true, one_byte },
        { "a buffer that lacks a byte", SURVIVED, true, a_byte_less },
        { "a buffer with a byte more", SURVIVED, true, a_byte_more },
        { "a buffer of all memory", SURVIVED, true, all_that_there_is },
        { "flags that nobody knows", SURVIVED, true, unknown_flags },
        { "a buffer that is the rings", SURVIVED, true, on_its_rings },
        { "buffers in one place", SURVIVED, false, all_in_one_place },
};

/* An empty place for input, or none at all, may be nothing to the device. */
#define NOTHING_MAY_COME_MS 100

static void try_one(Hostile *h, const Request *r, Outcome outcome) {
        fe_offer(&h->f, r->queue, 0);
        kick(h, r, outcome == REFUSED ? 10000 : NOTHING_MAY_COME_MS);
        if (outcome == REFUSED)
                is_refused(h, r);
        else
                survives(h, r);
}

static void spoil_chains(Hostile *h, bool indirect) {
        for (const Request *r = device->requests; r->name; r++)
                for (size_t s = 0; s < ELEMENTSOF(spoilers); s++)
                        for (unsigned i = 0; i < (spoilers[s].each ? request_n_buffers(r) : 1); i++) {
                                unsigned n = request_n_buffers(r);
                                struct vring_desc *d = h->f.queues[r->queue].desc;

                                now_doing("%s: %s in buffer %u%s\n", r->name, spoilers[s].name, i, indirect ? ", indirect" : "");
                                reset(h);
                                if (indirect)
                                        d = lay_out_indirect(h, r);
                                else
                                        (void) lay_out(h, r);
                                if (spoilers[s].spoil == readable_behind_writable && indirect)
                                        continue; /* its descriptor would be in the other table */
                                if (spoilers[s].spoil(h, r, d, n, i))
                                        try_one(h, r, spoilers[s].outcome);
                        }
        works(h);
}

/* ---- what else there is in rings ---- */

/* Spoils the descriptor that refers to the table, or the table as a whole; returns the outcome. */
typedef Outcome (*TableSpoiler)(struct vring_desc *d, struct vring_desc *table, unsigned n);

static Outcome table_outside(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->addr = FE_ADDRESS(FIRST_END) - d->len + 1;
        return REFUSED;
}

static Outcome table_around_the_top(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->addr = UINT64_MAX - 7;
        return REFUSED;
}

static Outcome table_empty(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->len = 0;
        return REFUSED;
}

static Outcome table_cut_off(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->len--;
        return REFUSED;
}

static Outcome table_too_long(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->len = 16 * (VIRTQUEUE_NUM_MAX + 1);
        return REFUSED;
}

static Outcome table_of_4_gib(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->len = UINT32_MAX & ~15U;
        return REFUSED;
}

static Outcome table_and_next(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->flags |= VRING_DESC_F_NEXT;
        return REFUSED;
}

static Outcome table_in_table(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        table[n - 1] = *d;
        return REFUSED;
}

static Outcome table_is_itself(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        d->addr = FE_ADDRESS(TABLE);
        table[0] = *d;
        return REFUSED;
}

static void fill_table(struct vring_desc *d, struct vring_desc *table, unsigned n, uint16_t flags) {
        for (unsigned i = 0; i < n; i++)
                table[i] = (struct vring_desc) { FE_ADDRESS(FIRST_BEGIN), FIRST_END - FIRST_BEGIN,
                        (uint16_t) (flags | (i + 1 < n ? VRING_DESC_F_NEXT : 0)), (uint16_t) (i + 1) };
        d->len = n * 16;
}

#define WITHIN_4_GIB (UINT32_MAX / (FIRST_END - FIRST_BEGIN))

static Outcome more_than_4_gib_to_read(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        fill_table(d, table, WITHIN_4_GIB + 1, 0);
        return REFUSED;
}

static Outcome more_than_4_gib_to_write(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        fill_table(d, table, WITHIN_4_GIB + 1, VRING_DESC_F_WRITE);
        return REFUSED;
}

static Outcome nearly_4_gib_to_read(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        fill_table(d, table, WITHIN_4_GIB, 0);
        return SURVIVED;
}

static Outcome nearly_4_gib_to_write(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        fill_table(d, table, WITHIN_4_GIB, VRING_DESC_F_WRITE);
        return SURVIVED;
}

/* The request's own beginning, and behind it as much as a chain can hold. */
static Outcome well_begun_and_nearly_4_gib(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        struct vring_desc first = table[0];

        fill_table(d, table, WITHIN_4_GIB, n > 1 ? table[n - 1].flags & VRING_DESC_F_WRITE : first.flags & VRING_DESC_F_WRITE);
        table[0] = first;
        table[0].flags |= VRING_DESC_F_NEXT;
        return SURVIVED;
}

static Outcome a_thousand_bytes_one_by_one(struct vring_desc *d, struct vring_desc *table, unsigned n) {
        uint16_t flags = table[n - 1].flags & VRING_DESC_F_WRITE;

        for (unsigned i = 0; i < VIRTQUEUE_CHAIN_MAX; i++)
                table[i] = (struct vring_desc) { FE_ADDRESS(BUFFERS) + i, 1,
                        (uint16_t) (flags | (i + 1 < VIRTQUEUE_CHAIN_MAX ? VRING_DESC_F_NEXT : 0)), (uint16_t) (i + 1) };
        d->len = VIRTQUEUE_CHAIN_MAX * 16;
        return SURVIVED;
}

static void spoils_indirect_tables(void **state) {
        static const struct {
                const char *name;
                TableSpoiler spoil;
        } table_spoilers[] = {
                { "outside memory", table_outside },
                { "around the top", table_around_the_top },
                { "empty", table_empty },
                { "cut off", table_cut_off },
                { "too long", table_too_long },
                { "4 GiB", table_of_4_gib },
                { "followed by another descriptor", table_and_next },
                { "in a table", table_in_table },
                { "in itself", table_is_itself },
                { "more than 4 GiB to read", more_than_4_gib_to_read },
                { "more than 4 GiB to write", more_than_4_gib_to_write },
                { "nearly 4 GiB to read", nearly_4_gib_to_read },
                { "nearly 4 GiB to write", nearly_4_gib_to_write },
                { "well begun", well_begun_and_nearly_4_gib },
                { "a thousand buffers", a_thousand_bytes_one_by_one },
        };
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++)
                for (size_t s = 0; s < ELEMENTSOF(table_spoilers); s++) {
                        struct vring_desc *table;
                        Outcome outcome;

                        now_doing("%s: indirect table: %s\n", r->name, table_spoilers[s].name);
                        reset(&h);
                        table = lay_out_indirect(&h, r);
                        outcome = table_spoilers[s].spoil(h.f.queues[r->queue].desc, table, request_n_buffers(r));
                        try_one(&h, r, outcome);
                }
        works(&h);
        end(&h);
}

static void spoils_chains(void **state) {
        Hostile h;

        begin(&h, ALL_FEATURES);
        works(&h);
        spoil_chains(&h, false);
        end(&h);
}

static void spoils_indirect_chains(void **state) {
        Hostile h;

        begin(&h, ALL_FEATURES);
        works(&h);
        spoil_chains(&h, true);
        end(&h);
}

static void spoils_chains_of_a_plain_driver(void **state) {
        Hostile h;

        begin(&h, PLAIN);
        works(&h);
        spoil_chains(&h, false);
        for (const Request *r = device->requests; r->name; r++) {
                now_doing("%s: an indirect table that was not negotiated\n", r->name);
                reset(&h);
                (void) lay_out_indirect(&h, r);
                try_one(&h, r, REFUSED);
        }
        works(&h);
        end(&h);
}

static void lies_in_the_available_ring(void **state) {
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++) {
                FrontEndQueue *q = &h.f.queues[r->queue];
                static const uint16_t heads[] = { NUM, NUM + 1, 0x8000, UINT16_MAX }, indices[] = { NUM + 1, 0x7fff, 0x8000, UINT16_MAX };

                for (size_t i = 0; i < ELEMENTSOF(heads); i++) {
                        now_doing("%s: head %u\n", r->name, heads[i]);
                        reset(&h);
                        (void) lay_out(&h, r);
                        fe_offer(&h.f, r->queue, heads[i]);
                        kick(&h, r, 10000);
                        is_refused(&h, r);
                }
                for (size_t i = 0; i < ELEMENTSOF(indices); i++) {
                        now_doing("%s: index %u\n", r->name, indices[i]);
                        reset(&h);
                        (void) lay_out(&h, r);
                        q->avail->idx = indices[i];
                        kick(&h, r, 10000);
                        is_refused(&h, r);
                }

                now_doing("%s: one chain as often as there is room\n", r->name);
                reset(&h);
                (void) lay_out(&h, r);
                for (unsigned i = 0; i < NUM; i++)
                        fe_offer(&h.f, r->queue, 0);
                kick(&h, r, NOTHING_MAY_COME_MS);
                survives(&h, r);

                now_doing("%s: an index that goes back\n", r->name);
                reset(&h);
                (void) lay_out(&h, r);
                fe_offer(&h.f, r->queue, 0);
                kick(&h, r, NOTHING_MAY_COME_MS);
                q->avail->idx = UINT16_MAX;
                kick(&h, r, NOTHING_MAY_COME_MS);
                survives(&h, r);

                now_doing("%s: kicks without a chain\n", r->name);
                reset(&h);
                for (unsigned i = 0; i < 100; i++)
                        fe_kick(&h.f, r->queue);
                survives(&h, r);
        }
        works(&h);
        end(&h);
}

/* ---- addresses and sizes of rings ---- */

static struct vhost_vring_addr good_address(unsigned queue) {
        return (struct vhost_vring_addr) {
                .index = queue,
                .desc_user_addr = FE_USER_BASE + RINGS(queue),
                .avail_user_addr = FE_USER_BASE + RINGS(queue) + AVAIL,
                .used_user_addr = FE_USER_BASE + RINGS(queue) + USED,
        };
}

static void try_address(Hostile *h, const Request *r, const struct vhost_vring_addr *address, bool refused) {
        reset(h);
        (void) lay_out(h, r);
        must(fe_acknowledged(&h->f, VHOST_USER_SET_VRING_ADDR, address, sizeof(*address), NULL, 0) == 0);
        fe_offer(&h->f, r->queue, 0);
        kick(h, r, refused ? 10000 : NOTHING_MAY_COME_MS);
        if (refused)
                is_refused(h, r);
        else
                survives(h, r);
}

static void puts_rings_where_they_cannot_be(void **state) {
        static const uint64_t wrong[] = {
                0, 1, UINT64_MAX, UINT64_MAX - 15, FE_USER_BASE, FE_USER_BASE + FIRST_BEGIN - 16, FE_USER_BASE + FIRST_END - 16,
                FE_USER_BASE + FIRST_END, FE_USER_BASE + SECOND_BEGIN - 32, FE_USER_BASE + SECOND_END - 16, FE_USER_BASE + SECOND_END,
                FE_USER_BASE + FE_RAM_SIZE, FE_GUEST_BASE + RINGS(0), UINT64_C(1) << 63,
        };
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++)
                for (unsigned part = 0; part < 3; part++) {
                        struct vhost_vring_addr address;
                        __u64 *const parts[] = { &address.desc_user_addr, &address.avail_user_addr, &address.used_user_addr };

                        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                                now_doing("%s: part %u at %#llx\n", r->name, part, (unsigned long long) wrong[i]);
                                address = good_address(r->queue);
                                *parts[part] = wrong[i];
                                try_address(&h, r, &address, true);
                        }
                        now_doing("%s: part %u not aligned\n", r->name, part);
                        address = good_address(r->queue);
                        (*parts[part])++;
                        try_address(&h, r, &address, true);

                        /* On each other, and on what other queues have. */
                        for (unsigned other = 0; other < 3; other++) {
                                now_doing("%s: part %u on part %u\n", r->name, part, other);
                                address = good_address(r->queue);
                                *parts[part] = *parts[other];
                                try_address(&h, r, &address, false);
                        }
                        now_doing("%s: part %u on buffers\n", r->name, part);
                        address = good_address(r->queue);
                        *parts[part] = FE_USER_BASE + BUFFER(0);
                        try_address(&h, r, &address, false);
                }
        works(&h);
        end(&h);
}

static void gives_rings_sizes_they_cannot_have(void **state) {
        static const uint32_t wrong[] = { 0, 3, NUM - 1, NUM + 1, 32767, 32769, 65535, 65536, UINT32_C(1) << 31, UINT32_MAX };
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (unsigned queue = 0; queue < device->n_queues; queue++) {
                struct vhost_vring_state s = { .index = queue };

                for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                        now_doing("queue %u of size %u\n", queue, wrong[i]);
                        s.num = wrong[i];
                        must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_NUM, &s, sizeof(s), NULL, 0) != 0);
                }
                s.num = 65536;
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_BASE, &s, sizeof(s), NULL, 0) != 0);
                s.num = 2;
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_ENABLE, &s, sizeof(s), NULL, 0) != 0);
                s.index = device->n_queues;
                s.num = NUM;
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_NUM, &s, sizeof(s), NULL, 0) != 0);
        }
        for (const Request *r = device->requests; r->name; r++) {
                struct vhost_vring_state s = { .index = r->queue, .num = VIRTQUEUE_NUM_MAX };
                struct vhost_vring_addr address = good_address(r->queue);

                /* The largest there is: not in a place where it does not fit, */
                now_doing("%s: a large queue at the end of memory\n", r->name);
                reset(&h);
                (void) lay_out(&h, r);
                address.desc_user_addr = FE_USER_BASE + SECOND_END - 16 * VIRTQUEUE_NUM_MAX + 16;
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_NUM, &s, sizeof(s), NULL, 0) == 0);
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0) == 0);
                kick(&h, r, 10000);
                is_refused(&h, r);

                /* and over everything else where it does. */
                now_doing("%s: a large queue over all the others\n", r->name);
                reset(&h);
                (void) lay_out(&h, r);
                address = good_address(r->queue);
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_NUM, &s, sizeof(s), NULL, 0) == 0);
                must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0) == 0);
                fe_offer(&h.f, r->queue, 0);
                kick(&h, r, NOTHING_MAY_COME_MS);
                survives(&h, r);

                /* The smallest; and a base that has nothing to do with the ring. */
                for (uint32_t base = 1; base <= UINT16_MAX; base = base * 256 + 255) {
                        now_doing("%s: a queue of one, from %u\n", r->name, base);
                        reset(&h);
                        (void) lay_out(&h, r);
                        s.num = 1;
                        must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_NUM, &s, sizeof(s), NULL, 0) == 0);
                        s.num = base;
                        must(fe_acknowledged(&h.f, VHOST_USER_SET_VRING_BASE, &s, sizeof(s), NULL, 0) == 0);
                        fe_offer(&h.f, r->queue, 0);
                        kick(&h, r, NOTHING_MAY_COME_MS);
                        survives(&h, r);
                }
        }
        reset(&h);
        works(&h);
        end(&h);
}

/* ---- content ---- */

static void try_content(Hostile *h, const Request *r) {
        fe_offer(&h->f, r->queue, 0);
        kick(h, r, NOTHING_MAY_COME_MS);
        survives(h, r);
}

static void lies_in_what_is_read(void **state) {
        static const uint8_t values[] = { 0x00, 0x01, 0x7f, 0x80, 0xff };
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++)
                for (unsigned i = 0; i < request_n_buffers(r) && !r->waits; i++) {
                        const RequestBuffer *b = &r->buffers[i];

                        for (uint32_t at = 0; at < MIN(b->length, 64U) && !b->writable; at++) {
                                for (size_t v = 0; v < ELEMENTSOF(values); v++) {
                                        now_doing("%s: byte %u of buffer %u is %#x\n", r->name, at, i, values[v]);
                                        (void) lay_out(&h, r);
                                        h.f.ram[BUFFER(i) + at] = values[v];
                                        try_content(&h, r);
                                }
                                /* Fields of two, four and eight bytes. */
                                for (uint32_t size = 2; size <= 8 && at % size == 0 && at + size <= b->length; size *= 2) {
                                        now_doing("%s: %u bytes from %u of buffer %u are 0xff\n", r->name, size, at, i);
                                        (void) lay_out(&h, r);
                                        memset(h.f.ram + BUFFER(i) + at, 0xff, size);
                                        try_content(&h, r);
                                }
                        }
                }
        works(&h);
        end(&h);
}

/* ---- while it is being read ---- */

typedef struct Racer {
        Hostile *h;
        const Request *request;
        atomic_bool stop;
        uint64_t seed;
} Racer;

static uint64_t next_random(uint64_t *seed) {
        *seed ^= *seed >> 12;
        *seed ^= *seed << 25;
        *seed ^= *seed >> 27;
        return *seed * 0x2545F4914F6CDD1D;
}

static void *race(void *userdata) {
        Racer *racer = userdata;
        const Request *r = racer->request;
        FrontEndQueue *q = &racer->h->f.queues[r->queue];
        uint8_t *desc = racer->h->f.ram + RINGS(r->queue);
        unsigned n = request_n_buffers(r);

        while (!racer->stop) {
                uint64_t x = next_random(&racer->seed);
                unsigned i = (unsigned) (x >> 32) % n;

                switch (x % 8) {
                case 0:
                        desc[16 * i + (x >> 8) % 16] ^= (uint8_t) (1U << ((x >> 16) % 8));
                        break;
                case 1: /* and right again, so that many a chain is good when it is looked at first */
                case 2:
                        q->desc[i] = (struct vring_desc) { FE_ADDRESS(BUFFER(i)), r->buffers[i].length,
                                (uint16_t) ((r->buffers[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
                                (uint16_t) (i + 1) };
                        break;
                case 3:
                        __atomic_store_n(&q->desc[i].len, (uint32_t) (x >> 24), __ATOMIC_RELAXED);
                        break;
                case 4:
                        __atomic_store_n(&q->desc[i].addr, x & 1024 ? UINT64_MAX - (x >> 40) : FE_ADDRESS(x >> 40), __ATOMIC_RELAXED);
                        break;
                case 5:
                        racer->h->f.ram[BUFFER(i) + (x >> 16) % r->buffers[i].length] = (uint8_t) (x >> 48);
                        break;
                case 6:
                        q->avail->ring[(x >> 16) % NUM] = (uint16_t) ((x >> 24) % (NUM + 1));
                        break;
                case 7:
                        if ((x >> 16) % 16 == 0)
                                __atomic_store_n(&q->avail->idx, (uint16_t) (q->avail_idx + (x >> 24) % 3), __ATOMIC_RELAXED);
                        break;
                }
        }
        return NULL;
}

static void changes_what_is_being_read(void **state) {
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++) {
                Racer racer = { .h = &h, .request = r, .seed = 0x9E3779B97F4A7C15 + r->queue };
                unsigned n_broken = 0, rounds = r->waits ? 100 : 400;
                pthread_t thread;

                now_doing("%s: changed while it is read\n", r->name);
                h.racing = true;
                must(pthread_create(&thread, NULL, race, &racer) == 0);
                for (unsigned i = 0; i < rounds; i++) {
                        (void) lay_out(&h, r);
                        for (unsigned k = 0; k < 8; k++) {
                                fe_offer(&h.f, r->queue, 0);
                                fe_kick(&h.f, r->queue);
                        }
                        if (r->waits)
                                host_stimulate(&h.host, r->queue);
                        let_it_work(&h);
                        must(fe_alive(&h.f));
                        n_broken += is_broken(&h);
                        reset(&h);
                }
                racer.stop = true;
                must(pthread_join(thread, NULL) == 0);
                h.racing = false;
                must(r->waits || n_broken > 0); /* or it was no race */
                survives(&h, r);
                set_canaries(&h); /* they were never the device's to write, but they were ours: none has changed up to here */
        }
        works(&h);
        end(&h);
}

/* ---- configuration space ---- */

/* A write that may be refused. */
static void write_config(Hostile *h, uint32_t offset, uint32_t size, uint32_t flags, uint8_t value) {
        VhostUserConfig config = { .offset = offset, .size = size, .flags = flags };

        now_doing("configuration: %u bytes %#x at %u, flags %u\n", size, value, offset, flags);
        memset(config.region, value, size);
        (void) fe_acknowledged(&h->f, VHOST_USER_SET_CONFIG, &config, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0);
}

static void read_config(Hostile *h, uint32_t offset, uint32_t size) {
        VhostUserMsg msg = { .payload.config = { .offset = offset, .size = size } };

        now_doing("configuration: %u bytes from %u are read\n", size, offset);
        fe_send(&h->f, VHOST_USER_GET_CONFIG, &msg.payload, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0);
        must(vhost_user_recv(h->f.fd, &msg, NULL, NULL) == 0);
        must(msg.header.request == VHOST_USER_GET_CONFIG);
        must(msg.payload.config.size == (range_within(offset, size, VHOST_USER_CONFIG_MAX) ? size : 0));
}

static void writes_all_of_configuration_space(void **state) {
        static const uint32_t sizes[] = { 1, 2, 4, 8, 64, 256 }, far[] = { 255, 256, 4096, 0x7fffffff, UINT32_MAX - 3, UINT32_MAX };
        static const uint8_t values[] = { 0x00, 0x01, 0x80, 0xff };
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (size_t s = 0; s < ELEMENTSOF(sizes); s++) {
                for (uint32_t offset = 0; offset < 160; offset++)
                        for (size_t v = 0; v < ELEMENTSOF(values); v++) {
                                read_config(&h, offset, sizes[s]);
                                write_config(&h, offset, sizes[s], VHOST_USER_CONFIG_WRITABLE, values[v]);
                        }
                for (size_t i = 0; i < ELEMENTSOF(far); i++) {
                        read_config(&h, far[i], sizes[s]);
                        write_config(&h, far[i], sizes[s], VHOST_USER_CONFIG_WRITABLE, 0xff);
                }
                write_config(&h, 0, sizes[s], VHOST_USER_CONFIG_MIGRATION, 0xff);
                write_config(&h, 0, sizes[s], UINT32_MAX, 0xff);
        }
        write_config(&h, 0, 0, VHOST_USER_CONFIG_WRITABLE, 0);
        read_config(&h, 0, 0);
        must(!is_broken(&h));
        works(&h);
        end(&h);
}

/* ---- rest ---- */

/* How long it has had a processor, in microseconds. */
static uint64_t cpu_usec(pid_t pid) {
        _cleanup_close_ int fd = -EBADF;
        unsigned long long nsec;
        char path[32], text[128], *end;
        ssize_t n;

        (void) snprintf(path, sizeof(path), "/proc/%d/schedstat", (int) pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        must(fd >= 0);
        n = read(fd, text, sizeof(text) - 1);
        must(n > 0);
        text[n] = 0;
        nsec = strtoull(text, &end, 10);
        must(*end == ' ');
        return nsec / NSEC_PER_USEC;
}

/* What a broken device does is nothing: also while it is kicked, and the host has something for the guest. */
static void a_broken_device_rests(void **state) {
        Hostile h;

        begin(&h, ALL_FEATURES);
        for (const Request *r = device->requests; r->name; r++) {
                uint16_t used;
                uint64_t before;

                now_doing("%s: after it broke\n", r->name);
                reset(&h);
                (void) lay_out(&h, r);
                fe_offer(&h.f, r->queue, NUM);
                kick(&h, r, 10000);
                must(fe_eventfd(h.f.queues[r->queue].err, 10000) > 0 && is_broken(&h));
                used = h.f.queues[r->queue].used->idx;
                h.f.queues[r->queue].avail->ring[0] = 0;
                for (unsigned i = 0; i < 10; i++) {
                        fe_offer(&h.f, r->queue, 0);
                        kick(&h, r, 0);
                        if (r->waits)
                                host_stimulate(&h.host, r->queue);
                }
                let_it_work(&h);
                must(h.f.queues[r->queue].used->idx == used);
                before = cpu_usec(h.f.pid);
                (void) poll(NULL, 0, 100);
                must(cpu_usec(h.f.pid) - before < 30 * USEC_PER_MSEC);
                must(is_broken(&h));
        }
        reset(&h);
        works(&h);
        end(&h);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(spoils_chains),
                cmocka_unit_test(spoils_indirect_chains),
                cmocka_unit_test(spoils_chains_of_a_plain_driver),
                cmocka_unit_test(spoils_indirect_tables),
                cmocka_unit_test(lies_in_the_available_ring),
                cmocka_unit_test(puts_rings_where_they_cannot_be),
                cmocka_unit_test(gives_rings_sizes_they_cannot_have),
                cmocka_unit_test(lies_in_what_is_read),
                cmocka_unit_test(changes_what_is_being_read),
                cmocka_unit_test(writes_all_of_configuration_space),
                cmocka_unit_test(a_broken_device_rests),
        };

        device = argc == 2 ? request_device_find(argv[1]) : NULL;
        if (!device) {
                (void) fprintf(stderr, "test-hostile NAME\n");
                return EXIT_FAILURE;
        }
        (void) signal(SIGABRT, on_abort);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
