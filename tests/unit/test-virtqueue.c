/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <linux/virtio_ring.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "virtqueue.h"

#define NUM 8
#define USER UINT64_C(0x10000000)
#define GUEST UINT64_C(0x40000000)
#define AVAIL 4096
#define USED 8192
#define BUFFERS 65536
#define RAM_SIZE (1 << 20)

typedef struct Fixture {
        GuestMemory memory;
        uint8_t *ram;
        struct vring_desc *desc;
        struct vring_avail *avail;
        struct vring_used *used;
        VirtqueueSetup setup;
        Virtqueue *q;
        VirtqueueChain chain;
        int call;
        _Alignas(8) uint8_t log[sizeof(QueueRegionSplit) + NUM * sizeof(DescStateSplit)];
} Fixture;

/* Two regions next to each other for the guest, not for the host: a buffer may cross from one to the other. */
static int make(void **state) {
        Fixture *f = calloc(1, sizeof(Fixture));

        assert_non_null(f);
        assert_int_equal(guest_memory_add(&f->memory, guest_memory_create_fd(RAM_SIZE, 0), 0, GUEST, RAM_SIZE, USER), 0);
        assert_int_equal(guest_memory_add(&f->memory, guest_memory_create_fd(RAM_SIZE, 0), 0, GUEST + RAM_SIZE, RAM_SIZE,
                                 USER + 16 * RAM_SIZE), 0);
        f->ram = guest_memory_at(&f->memory, GUEST, RAM_SIZE);
        f->desc = (struct vring_desc *) (void *) f->ram;
        f->avail = (struct vring_avail *) (void *) (f->ram + AVAIL);
        f->used = (struct vring_used *) (void *) (f->ram + USED);
        f->setup = (VirtqueueSetup) { NUM, USER, USER + AVAIL, USER + USED, 0, true, true, NULL, 0 };
        f->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        *state = f;
        return 0;
}

static int clean(void **state) {
        Fixture *f = *state;

        virtqueue_chain_done(&f->chain);
        (void) virtqueue_free(f->q);
        guest_memory_done(&f->memory);
        (void) close(f->call);
        free(f);
        return 0;
}

static Virtqueue *open_queue(Fixture *f) {
        f->q = virtqueue_free(f->q);
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), 0);
        virtqueue_set_call_fd(f->q, f->call);
        return f->q;
}

static void desc(Fixture *f, uint16_t i, uint64_t address, uint32_t length, uint16_t flags, uint16_t next) {
        f->desc[i] = (struct vring_desc) { address, length, flags, next };
}

static void offer(Fixture *f, uint16_t head) {
        f->avail->ring[f->avail->idx % NUM] = head;
        f->avail->idx++;
}

static uint64_t signals(Fixture *f) {
        uint64_t n = 0;

        return read(f->call, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static void pop_refuses(Fixture *f) {
        assert_int_equal(virtqueue_pop(f->q, &f->chain), -EBADMSG);
        assert_non_null(virtqueue_error(f->q));
        /* And stays broken, whatever comes. */
        desc(f, 7, GUEST + BUFFERS, 16, 0, 0);
        offer(f, 7);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), -EBADMSG);
        assert_false(virtqueue_want_kicks(f->q));
}

static void refuses_sizes_that_a_queue_cannot_have(void **state) {
        static const uint16_t sizes[] = { 0, 3, 7, 100, 65535 };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                f->setup.num = sizes[i];
                assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EINVAL);
        }
        assert_null(f->q);
}

static void refuses_rings_outside_memory(void **state) {
        Fixture *f = *state;

        f->setup.desc_user_addr = USER + RAM_SIZE - 16 * NUM + 16;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EFAULT);
        f->setup.desc_user_addr = USER + RAM_SIZE - 16 * NUM;
        f->setup.used_user_addr = USER + RAM_SIZE - 4;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EFAULT);
        f->setup.used_user_addr = UINT64_MAX - 3;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EFAULT);
}

static void refuses_rings_that_are_not_aligned(void **state) {
        Fixture *f = *state;

        f->setup.desc_user_addr += 8;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EINVAL);
        f->setup.desc_user_addr -= 8;
        f->setup.avail_user_addr += 1;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EINVAL);
        f->setup.avail_user_addr -= 1;
        f->setup.used_user_addr += 2;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EINVAL);
}

static void refuses_a_chain_that_loops(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_NEXT, 1);
        desc(f, 1, GUEST + BUFFERS, 16, VRING_DESC_F_NEXT, 0);
        offer(f, 0);
        pop_refuses(f);
}

static void refuses_a_chain_whose_indirect_part_loops(void **state) {
        Fixture *f = *state;
        struct vring_desc *table = (struct vring_desc *) (void *) (f->ram + BUFFERS);

        open_queue(f);
        table[0] = (struct vring_desc) { GUEST, 16, VRING_DESC_F_NEXT, 1 };
        table[1] = (struct vring_desc) { GUEST, 16, VRING_DESC_F_NEXT, 0 };
        desc(f, 0, GUEST + BUFFERS, 32, VRING_DESC_F_INDIRECT, 0);
        offer(f, 0);
        pop_refuses(f);
}

static void refuses_an_empty_buffer(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 0, 0, 0);
        offer(f, 0);
        pop_refuses(f);
}

static void refuses_a_readable_buffer_behind_a_writable_one(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
        desc(f, 1, GUEST + BUFFERS, 16, 0, 0);
        offer(f, 0);
        pop_refuses(f);
}

static void refuses_more_than_2_to_the_32_bytes(void **state) {
        Fixture *f = *state;

        open_queue(f);
        /* Memory for so much is not needed: the sum is looked at first. */
        desc(f, 0, GUEST, 2 * RAM_SIZE, VRING_DESC_F_NEXT, 1);
        desc(f, 1, GUEST, UINT32_MAX, 0, 0);
        offer(f, 0);
        pop_refuses(f);
        assert_string_equal(virtqueue_error(f->q), "a chain describes more than 2^32 bytes");
}

static void refuses_indirect_descriptors_that_break_a_rule(void **state) {
        static const struct { uint32_t length; uint16_t flags; uint64_t address; } cases[] = {
                { 0, VRING_DESC_F_INDIRECT, GUEST + BUFFERS },
                { 17, VRING_DESC_F_INDIRECT, GUEST + BUFFERS },
                { 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, GUEST + BUFFERS },
                { 16, VRING_DESC_F_INDIRECT, GUEST - 8 },
                { UINT32_MAX - 15, VRING_DESC_F_INDIRECT, GUEST },
        };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                open_queue(f);
                f->avail->idx = 0;
                desc(f, 0, cases[i].address, cases[i].length, cases[i].flags, 0);
                offer(f, 0);
                pop_refuses(f);
        }
}

static void refuses_a_chain_longer_than_it_keeps(void **state) {
        Fixture *f = *state;
        struct vring_desc *table = (struct vring_desc *) (void *) (f->ram + BUFFERS);

        for (unsigned n = VIRTQUEUE_CHAIN_MAX; n <= VIRTQUEUE_CHAIN_MAX + 1; n++) {
                open_queue(f);
                f->avail->idx = 0;
                for (unsigned i = 0; i < n; i++)
                        table[i] = (struct vring_desc) { GUEST, 1, i + 1 < n ? VRING_DESC_F_NEXT : 0, (uint16_t) (i + 1) };
                desc(f, 0, GUEST + BUFFERS, n * 16, VRING_DESC_F_INDIRECT, 0);
                offer(f, 0);
                if (n == VIRTQUEUE_CHAIN_MAX)
                        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        }
        pop_refuses(f);
}

static void refuses_an_indirect_descriptor_that_was_not_negotiated(void **state) {
        Fixture *f = *state;

        f->setup.indirect = false;
        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_INDIRECT, 0);
        offer(f, 0);
        pop_refuses(f);
}

static void refuses_more_entries_than_the_ring_has(void **state) {
        Fixture *f = *state;

        open_queue(f);
        f->avail->idx = NUM + 1;
        pop_refuses(f);
}

static void refuses_a_chain_that_is_still_in_use(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 0);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        pop_refuses(f);
}

/* Given back, but not shown: the driver cannot know yet. Otherwise it could make us note more chains than there are. */
static void refuses_a_chain_that_was_not_shown_as_used_yet(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 0);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        virtqueue_push(f->q, &f->chain, 0);
        pop_refuses(f);
}

static void refuses_a_log_that_is_too_small_or_of_another_kind(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = (QueueRegionSplit *) (void *) f->log;

        f->setup.log = log;
        f->setup.log_num = NUM / 2;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EBADMSG);
        f->setup.log_num = NUM;
        log->desc_num = NUM;
        log->version = 2;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EBADMSG);
        log->version = 1;
        log->features = 1;
        assert_int_equal(virtqueue_new(&f->memory, &f->setup, &f->q), -EBADMSG);
}

static void hands_a_chain_out_as_cursors(void **state) {
        Fixture *f = *state;
        char text[16] = {};

        open_queue(f);
        memcpy(f->ram + BUFFERS, "hello ", 6);
        memcpy(f->ram + BUFFERS + 100, "world", 5);
        desc(f, 2, GUEST + BUFFERS, 6, VRING_DESC_F_NEXT, 5);
        desc(f, 5, GUEST + BUFFERS + 100, 5, VRING_DESC_F_NEXT, 1);
        desc(f, 1, GUEST + BUFFERS + 200, 32, VRING_DESC_F_WRITE, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
        offer(f, 2);

        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.readable.left, 11);
        assert_int_equal(f->chain.writable.left, 32);
        assert_int_equal(iov_cursor_read(&f->chain.readable, text, sizeof(text)), 11);
        assert_string_equal(text, "hello world");
        assert_int_equal(iov_cursor_write(&f->chain.writable, "abc", 3), 3);
        virtqueue_push(f->q, &f->chain, 3);
        assert_int_equal(f->used->idx, 0);
        virtqueue_notify(f->q);
        assert_int_equal(f->used->idx, 1);
        assert_int_equal(f->used->ring[0].id, 2);
        assert_int_equal(f->used->ring[0].len, 3);
        assert_memory_equal(f->ram + BUFFERS + 200, "abc", 3);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
}

static void a_buffer_may_cross_from_one_region_to_the_next(void **state) {
        Fixture *f = *state;
        uint8_t data[64];

        open_queue(f);
        desc(f, 0, GUEST + RAM_SIZE - 32, 64, VRING_DESC_F_WRITE, 0);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.n_writable, 2);
        memset(data, 0xaa, sizeof(data));
        assert_int_equal(iov_cursor_write(&f->chain.writable, data, sizeof(data)), 64);
        assert_int_equal(f->ram[RAM_SIZE - 1], 0xaa);
        assert_int_equal(*(uint8_t *) guest_memory_at(&f->memory, GUEST + RAM_SIZE + 31, 1), 0xaa);
}

static void normal_descriptors_may_come_before_an_indirect_one(void **state) {
        Fixture *f = *state;
        struct vring_desc *table = (struct vring_desc *) (void *) (f->ram + BUFFERS);

        open_queue(f);
        table[1] = (struct vring_desc) { GUEST + BUFFERS + 512, 40, VRING_DESC_F_WRITE, 0 };
        table[0] = (struct vring_desc) { GUEST + BUFFERS + 256, 30, 0 | VRING_DESC_F_NEXT, 1 };
        desc(f, 0, GUEST + BUFFERS + 128, 20, VRING_DESC_F_NEXT, 1);
        /* "MUST ignore the write-only flag" of the indirect descriptor itself */
        desc(f, 1, GUEST + BUFFERS, 32, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.readable.left, 50);
        assert_int_equal(f->chain.writable.left, 40);
}

static void a_descriptor_changed_after_the_pop_changes_nothing(void **state) {
        Fixture *f = *state;

        open_queue(f);
        desc(f, 0, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        desc(f, 0, UINT64_MAX, UINT32_MAX, 0, 7);
        assert_int_equal(iov_cursor_write(&f->chain.writable, "0123456789abcdefXX", 18), 16);
        assert_memory_equal(f->ram + BUFFERS, "0123456789abcdef", 16);
        assert_int_equal(f->ram[BUFFERS + 16], 0);
}

/* 70000 chains: the 16-bit indices wrap. */
static void indices_wrap(void **state) {
        Fixture *f = *state;

        open_queue(f);
        for (unsigned i = 0; i < 70000; i++) {
                uint16_t head = (uint16_t) (i % NUM);

                desc(f, head, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
                offer(f, head);
                assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
                virtqueue_push(f->q, &f->chain, i % 16);
                virtqueue_notify(f->q);
                assert_int_equal(f->used->idx, (uint16_t) (i + 1));
                assert_int_equal(f->used->ring[i % NUM].len, i % 16);
        }
        assert_int_equal(virtqueue_base(f->q), (uint16_t) 70000);
}

static void use_up(Fixture *f, unsigned n) {
        for (unsigned i = 0; i < n; i++) {
                desc(f, (uint16_t) i, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
                offer(f, (uint16_t) i);
                assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
                virtqueue_push(f->q, &f->chain, 0);
        }
        virtqueue_notify(f->q);
}

static void a_batch_is_one_signal(void **state) {
        Fixture *f = *state;

        open_queue(f);
        f->avail->ring[NUM] = 0;
        use_up(f, 5);
        assert_int_equal(signals(f), 1);
}

static void signals_as_the_event_index_asks(void **state) {
        Fixture *f = *state;

        open_queue(f);
        use_up(f, 1);
        (void) signals(f);
        f->avail->ring[NUM] = 3; /* when the index goes beyond 3 */
        use_up(f, 1);
        use_up(f, 1);
        assert_int_equal(signals(f), 0);
        use_up(f, 1);
        assert_int_equal(signals(f), 1);
        use_up(f, 1);
        assert_int_equal(signals(f), 0);
}

static void signals_as_the_flag_asks_without_event_index(void **state) {
        Fixture *f = *state;

        f->setup.event_idx = false;
        open_queue(f);
        f->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
        use_up(f, 1);
        assert_int_equal(signals(f), 0);
        f->avail->flags = 0;
        use_up(f, 1);
        assert_int_equal(signals(f), 1);
}

static void asks_for_kicks_only_when_it_waits(void **state) {
        Fixture *f = *state;
        uint16_t *avail_event;

        open_queue(f);
        avail_event = (uint16_t *) (void *) &f->used->ring[NUM];
        assert_false(virtqueue_want_kicks(f->q));
        virtqueue_suppress_kicks(f->q);
        use_up(f, 3);
        assert_int_equal(*avail_event, 0);
        offer(f, 4);
        assert_true(virtqueue_want_kicks(f->q));
        assert_int_equal(*avail_event, 3);

        f->setup.event_idx = false;
        f->setup.base = 4;
        open_queue(f);
        virtqueue_suppress_kicks(f->q);
        assert_int_equal(f->used->flags, VRING_USED_F_NO_NOTIFY);
        assert_false(virtqueue_want_kicks(f->q));
        assert_int_equal(f->used->flags, 0);
}

static void asks_for_kicks_beyond_what_lies_ready(void **state) {
        Fixture *f = *state;
        uint16_t *avail_event;

        open_queue(f);
        avail_event = (uint16_t *) (void *) &f->used->ring[NUM];
        offer(f, 0);
        offer(f, 1);
        assert_int_equal(virtqueue_offered(f->q), 2);
        assert_false(virtqueue_want_kicks_beyond(f->q, 2));
        assert_int_equal(*avail_event, 2);
        offer(f, 2);
        assert_true(virtqueue_want_kicks_beyond(f->q, 2));
        /* The index wraps. */
        f->avail->idx = UINT16_MAX;
        assert_false(virtqueue_want_kicks_beyond(f->q, UINT16_MAX));
        f->avail->idx = 0;
        assert_true(virtqueue_want_kicks_beyond(f->q, UINT16_MAX));

        f->setup.event_idx = false;
        open_queue(f);
        virtqueue_suppress_kicks(f->q);
        assert_false(virtqueue_want_kicks_beyond(f->q, 0));
        assert_int_equal(f->used->flags, 0);
}

/* Serving */

typedef struct Work {
        unsigned todo, done;
} Work;

static bool has_work(void *userdata) {
        const Work *w = userdata;

        return w->todo > 0;
}

static uint32_t work(VirtqueueChain *chain, void *userdata) {
        Work *w = userdata;

        assert_int_equal(chain->n_readable, 1);
        w->todo -= w->todo > 0;
        return ++w->done;
}

static void serves_what_is_wanted_and_no_more_at_once(void **state) {
        static const VirtqueueServer some = { .wanted = has_work, .serve = work, .max = 3 }, all = { .serve = work, .max = 3 };
        Fixture *f = *state;
        Work w = { .todo = 5 };

        f->setup.event_idx = false;
        open_queue(f);
        for (uint16_t i = 0; i < 7; i++) {
                desc(f, i, GUEST + BUFFERS, 16, 0, 0);
                offer(f, i);
        }
        assert_int_equal(virtqueue_serve(f->q, &f->chain, &some, &w), 1);
        assert_int_equal(w.done, 3);
        assert_int_equal(f->used->idx, 3);
        assert_int_equal(f->used->ring[2].len, 3);
        assert_int_equal(f->used->flags, 0); /* a kick would be heard */
        assert_int_equal(virtqueue_serve(f->q, &f->chain, &some, &w), 0);
        assert_int_equal(w.done, 5);
        /* Nothing is wanted of the two that are left, and so no kick. */
        assert_int_equal(f->used->flags, VRING_USED_F_NO_NOTIFY);
        assert_int_equal(virtqueue_serve(f->q, &f->chain, &all, &w), 0);
        assert_int_equal(w.done, 7);
        assert_int_equal(f->used->flags, 0);
        offer(f, 7 + NUM);
        assert_int_equal(virtqueue_serve(f->q, &f->chain, &all, &w), -EBADMSG);
        assert_int_equal(w.done, 7);
}

/* The log */

static QueueRegionSplit *with_log(Fixture *f) {
        f->setup.log = (QueueRegionSplit *) (void *) f->log;
        f->setup.log_num = NUM;
        return f->setup.log;
}

static void logs_what_is_in_flight(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = with_log(f);
        VirtqueueChain second = {};

        open_queue(f);
        assert_int_equal(log->version, QUEUE_REGION_VERSION);
        assert_int_equal(log->desc_num, NUM);
        desc(f, 3, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        desc(f, 4, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 4);
        offer(f, 3);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(virtqueue_pop(f->q, &second), 1);
        assert_true(log->desc[3].inflight == 1 && log->desc[4].inflight == 1);
        assert_true(log->desc[4].counter < log->desc[3].counter);

        virtqueue_push(f->q, &second, 0);
        assert_int_equal(log->last_batch_head, 3);
        assert_int_equal(log->desc[3].inflight, 1); /* until the driver can see it */
        virtqueue_notify(f->q);
        assert_int_equal(log->desc[3].inflight, 0);
        assert_int_equal(log->desc[4].inflight, 1);
        assert_int_equal(log->used_idx, 1);
        virtqueue_chain_done(&second);
}

static void a_successor_takes_what_was_in_flight_then_what_is_new(void **state) {
        Fixture *f = *state;

        (void) with_log(f);
        open_queue(f);
        for (uint16_t i = 0; i < 4; i++)
                desc(f, i, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 2);
        offer(f, 0);
        offer(f, 1);
        for (int i = 0; i < 3; i++)
                assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        /* The last one is used, out of order; the others die with the process. */
        virtqueue_push(f->q, &f->chain, 0);
        virtqueue_notify(f->q);
        offer(f, 3);

        f->setup.base = f->used->idx; /* what a front-end knows of a helper that died */
        open_queue(f);
        assert_true(virtqueue_pending(f->q));
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.head, 2);
        virtqueue_push(f->q, &f->chain, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.head, 0);
        virtqueue_push(f->q, &f->chain, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.head, 3);
        virtqueue_push(f->q, &f->chain, 0);
        virtqueue_notify(f->q);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
        assert_int_equal(f->used->idx, 4);
}

static void a_chain_that_was_not_taken_after_all_comes_again(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = with_log(f);
        VirtqueueChain second = {};

        open_queue(f);
        for (uint16_t i = 0; i < 4; i++)
                desc(f, i, GUEST + BUFFERS, 16, VRING_DESC_F_WRITE, 0);
        offer(f, 2);
        offer(f, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(virtqueue_pop(f->q, &second), 1);
        virtqueue_unpop(f->q, &second);
        assert_int_equal(virtqueue_in_flight(f->q), 1);
        assert_int_equal(virtqueue_base(f->q), 1);
        assert_int_equal(log->desc[0].inflight, 0);
        assert_int_equal(log->desc[2].inflight, 1);

        /* The same with those of the log, and one that is new behind them. */
        offer(f, 3);
        f->setup.base = f->used->idx;
        open_queue(f);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(f->chain.head, 2);
        assert_int_equal(virtqueue_pop(f->q, &second), 1);
        assert_int_equal(second.head, 0);
        virtqueue_unpop(f->q, &second);
        virtqueue_unpop(f->q, &f->chain);
        assert_int_equal(virtqueue_in_flight(f->q), 0);
        assert_int_equal(log->desc[2].inflight, 1);
        for (unsigned i = 0; i < 3; i++) {
                static const uint16_t heads[] = { 2, 0, 3 };
                assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
                assert_int_equal(f->chain.head, heads[i]);
                virtqueue_push(f->q, &f->chain, 0);
        }
        virtqueue_notify(f->q);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
        assert_int_equal(f->used->idx, 3);
        virtqueue_chain_done(&second);
}

static void a_log_whose_batch_list_loops_is_survived(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = with_log(f);

        log->version = 1;
        log->desc_num = NUM;
        log->last_batch_head = 2;
        log->desc[2] = (DescStateSplit) { .inflight = 1, .next = 2 };
        f->used->idx = NUM;
        f->avail->idx = NUM;
        f->setup.base = NUM;
        open_queue(f);
        assert_int_equal(log->desc[2].inflight, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);

        log->used_idx = 0;
        log->last_batch_head = 60000;
        open_queue(f);
}

static void a_log_from_before_the_driver_reset_the_ring_is_forgotten(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = with_log(f);

        log->version = 1;
        log->desc_num = NUM;
        log->used_idx = 1000;
        log->desc[5].inflight = 1;
        open_queue(f);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
        assert_int_equal(virtqueue_base(f->q), 0);
}

/* Firmware made the queue smaller than the operating system does now. */
static void a_log_of_another_size_of_queue_is_begun_anew(void **state) {
        Fixture *f = *state;
        QueueRegionSplit *log = with_log(f);

        log->version = 1;
        log->desc_num = NUM / 2;
        log->used_idx = 3;
        log->last_batch_head = 7;
        log->desc[2].inflight = 1;
        open_queue(f);
        assert_int_equal(log->desc_num, NUM);
        assert_int_equal(log->used_idx, 0);
        assert_int_equal(log->desc[2].inflight, 0);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 0);
        desc(f, 1, GUEST + BUFFERS, 8, VRING_DESC_F_WRITE, 0);
        offer(f, 1);
        assert_int_equal(virtqueue_pop(f->q, &f->chain), 1);
        assert_int_equal(log->desc[1].inflight, 1);
}

static void cursors_never_leave_their_buffers(void **state) {
        char a[4] = "abc", b[1], c[8] = "defghij", text[16] = {};
        struct iovec iov[] = { { a, 3 }, { b, 0 }, { c, 7 } }, mapped[4];
        IovCursor cursor = iov_cursor(iov, 3), part;
        size_t n;

        assert_int_equal(cursor.left, 10);
        part = iov_cursor_take(&cursor, 5);
        assert_int_equal(part.left, 5);
        assert_int_equal(cursor.left, 5);
        assert_int_equal(iov_cursor_map(&part, 100, mapped, 4, &n), 5);
        assert_int_equal(n, 2);
        assert_int_equal(iov_cursor_map(&part, 100, mapped, 1, &n), 3);
        assert_int_equal(iov_cursor_read(&part, text, 100), 5);
        assert_string_equal(text, "abcde");
        assert_int_equal(iov_cursor_read(&part, text, 100), 0);
        assert_int_equal(iov_cursor_write(&part, "x", 1), 0);
        assert_int_equal(iov_cursor_skip(&cursor, 3), 3);
        assert_int_equal(iov_cursor_write(&cursor, "XYZ", 3), 2);
        assert_memory_equal(c, "defghXY", 7);
}

int main(void) {
#define with_fixture(test) cmocka_unit_test_setup_teardown(test, make, clean)
        const struct CMUnitTest tests[] = {
                with_fixture(refuses_sizes_that_a_queue_cannot_have),
                with_fixture(refuses_rings_outside_memory),
                with_fixture(refuses_rings_that_are_not_aligned),
                with_fixture(refuses_a_chain_that_loops),
                with_fixture(refuses_a_chain_whose_indirect_part_loops),
                with_fixture(refuses_an_empty_buffer),
                with_fixture(refuses_a_readable_buffer_behind_a_writable_one),
                with_fixture(refuses_more_than_2_to_the_32_bytes),
                with_fixture(refuses_indirect_descriptors_that_break_a_rule),
                with_fixture(refuses_a_chain_longer_than_it_keeps),
                with_fixture(refuses_an_indirect_descriptor_that_was_not_negotiated),
                with_fixture(refuses_more_entries_than_the_ring_has),
                with_fixture(refuses_a_chain_that_is_still_in_use),
                with_fixture(refuses_a_chain_that_was_not_shown_as_used_yet),
                with_fixture(refuses_a_log_that_is_too_small_or_of_another_kind),
                with_fixture(hands_a_chain_out_as_cursors),
                with_fixture(a_buffer_may_cross_from_one_region_to_the_next),
                with_fixture(normal_descriptors_may_come_before_an_indirect_one),
                with_fixture(a_descriptor_changed_after_the_pop_changes_nothing),
                with_fixture(indices_wrap),
                with_fixture(a_batch_is_one_signal),
                with_fixture(signals_as_the_event_index_asks),
                with_fixture(signals_as_the_flag_asks_without_event_index),
                with_fixture(asks_for_kicks_only_when_it_waits),
                with_fixture(asks_for_kicks_beyond_what_lies_ready),
                with_fixture(serves_what_is_wanted_and_no_more_at_once),
                with_fixture(logs_what_is_in_flight),
                with_fixture(a_successor_takes_what_was_in_flight_then_what_is_new),
                with_fixture(a_chain_that_was_not_taken_after_all_comes_again),
                with_fixture(a_log_whose_batch_list_loops_is_survived),
                with_fixture(a_log_from_before_the_driver_reset_the_ring_is_forgotten),
                with_fixture(a_log_of_another_size_of_queue_is_begun_anew),
                cmocka_unit_test(cursors_never_leave_their_buffers),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
