/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The vhost-user back-end of the frame, with the entropy device behind it: what it refuses, what it survives, what it does. */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "front-end.h"

static const char *const rng[] = { "rng", NULL };

static void start_rng(FrontEnd *f) {
        fe_start(f, rng, 1, 8);
}

/* One request for `length` random bytes with descriptor `i`. */
static void ask(FrontEnd *f, uint16_t i, uint32_t length) {
        fe_desc(f, 0, i, FE_ADDRESS(FE_BUFFERS + i * KIB(128)), length, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, i);
        fe_kick(f, 0);
}

static bool is_zero(const uint8_t *p, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (p[i] != 0)
                        return false;
        return true;
}

/* Refusals */

static void refuses(void (*misbehave)(FrontEnd *f)) {
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        misbehave(&f);
        fe_expect_hang_up(&f);
        fe_end(&f); /* a clean end: the helper did not crash */
}

static void send_unknown_request(FrontEnd *f) {
        fe_send(f, 200, NULL, 0, NULL, 0);
}

static void refuses_an_unknown_request(void **state) {
        refuses(send_unknown_request);
}

static void send_wrong_version(FrontEnd *f) {
        VhostUserHeader header = { .request = VHOST_USER_GET_FEATURES, .flags = 2 };

        assert_int_equal(write(f->fd, &header, sizeof(header)), sizeof(header));
}

static void refuses_a_wrong_version(void **state) {
        refuses(send_wrong_version);
}

static void send_huge_message(FrontEnd *f) {
        VhostUserHeader header = { .request = VHOST_USER_SET_CONFIG, .flags = 1, .size = UINT32_MAX };

        assert_int_equal(write(f->fd, &header, sizeof(header)), sizeof(header));
}

static void refuses_a_message_of_4_gib(void **state) {
        refuses(send_huge_message);
}

static void send_unknown_features(FrontEnd *f) {
        fe_set_u64(f, VHOST_USER_SET_FEATURES, UINT64_MAX);
}

static void refuses_features_that_were_not_offered(void **state) {
        refuses(send_unknown_features);
}

static void send_unknown_protocol_features(FrontEnd *f) {
        fe_set_u64(f, VHOST_USER_SET_PROTOCOL_FEATURES, UINT64_MAX);
}

static void refuses_protocol_features_that_were_not_offered(void **state) {
        refuses(send_unknown_protocol_features);
}

static void send_queue_out_of_range(FrontEnd *f) {
        fe_set_state(f, VHOST_USER_SET_VRING_NUM, 1, 8);
}

static void refuses_a_queue_that_is_not_there(void **state) {
        refuses(send_queue_out_of_range);
}

static void send_odd_size(FrontEnd *f) {
        fe_set_state(f, VHOST_USER_SET_VRING_NUM, 0, 7);
}

static void refuses_a_queue_size_that_is_no_power_of_two(void **state) {
        refuses(send_odd_size);
}

static void send_short_payload(FrontEnd *f) {
        fe_send(f, VHOST_USER_SET_VRING_ADDR, &(uint64_t) { 0 }, sizeof(uint64_t), NULL, 0);
}

static void refuses_a_payload_of_the_wrong_size(void **state) {
        refuses(send_short_payload);
}

static void send_kick_without_fd(FrontEnd *f) {
        fe_set_u64(f, VHOST_USER_SET_VRING_KICK, 0);
}

static void refuses_a_kick_message_without_descriptor(void **state) {
        refuses(send_kick_without_fd);
}

static void send_memory_beyond_its_file(FrontEnd *f) {
        VhostUserMemory table = { .nregions = 1, .regions = { { 0, FE_RAM_SIZE * 2, FE_USER_BASE, 0 } } };

        fe_send(f, VHOST_USER_SET_MEM_TABLE, &table, offsetof(VhostUserMemory, regions[1]), &f->ram_fd, 1);
}

static void refuses_memory_that_is_longer_than_its_file(void **state) {
        refuses(send_memory_beyond_its_file);
}

static void send_nine_regions(FrontEnd *f) {
        VhostUserMemory table = { .nregions = 9 };

        fe_send(f, VHOST_USER_SET_MEM_TABLE, &table, sizeof(table), &f->ram_fd, 1);
}

static void refuses_more_regions_than_there_can_be(void **state) {
        refuses(send_nine_regions);
}

static void send_inflight_of_wrong_size(FrontEnd *f) {
        VhostUserInflight inflight = { .mmap_size = 4096, .num_queues = 1, .queue_size = 32768 };

        fe_send(f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &f->ram_fd, 1);
}

static void refuses_an_in_flight_log_that_is_too_small(void **state) {
        refuses(send_inflight_of_wrong_size);
}

static void a_signal_descriptor_that_nobody_reads_is_survived(void **state) {
        uint64_t payload = 0;
        FrontEnd f;
        int p[2];

        start_rng(&f);
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        fe_send(&f, VHOST_USER_SET_VRING_CALL, &payload, sizeof(payload), &p[1], 1);
        (void) close(p[0]);
        (void) close(p[1]);
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        fe_end(&f);
}

static void says_no_to_who_asks_for_an_acknowledgement_and_goes_on(void **state) {
        struct vhost_vring_state wrong = { .index = 7, .num = 8 };
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_SET_VRING_NUM, &wrong, sizeof(wrong), NULL, 0), 0);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM), 1);
        fe_end(&f);
}

static void a_half_sent_message_blocks_nobody(void **state) {
        VhostUserHeader header = { .request = VHOST_USER_SET_FEATURES, .flags = 1, .size = 8 };
        FrontEnd f;

        start_rng(&f);
        assert_int_equal(write(f.fd, &header, sizeof(header)), sizeof(header));
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        assert_int_equal(write(f.fd, &f.features, sizeof(f.features)), sizeof(f.features));
        fe_set_mem_table(&f);
        fe_end(&f);
}

/* What a guest does wrong breaks its device, not the helper. */

static void breaks(void (*misbehave)(FrontEnd *f)) {
        struct vring_used_elem e;
        FrontEnd f;

        start_rng(&f);
        misbehave(&f);
        fe_kick(&f, 0);
        fe_expect_broken(&f, 0);
        assert_false(fe_used(&f, 0, 50, &e));

        /* The driver resets the device, and it works again. */
        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_STATUS), 0);
        fe_start_queue(&f, 0, 8);
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        fe_end(&f);
}

static void loop(FrontEnd *f) {
        fe_desc(f, 0, 0, FE_ADDRESS(FE_BUFFERS), 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
        fe_desc(f, 0, 1, FE_ADDRESS(FE_BUFFERS), 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 0);
        fe_offer(f, 0, 0);
}

static void a_chain_that_loops_breaks_the_device(void **state) {
        breaks(loop);
}

static void outside(FrontEnd *f) {
        fe_desc(f, 0, 0, FE_ADDRESS(FE_RAM_SIZE - 16), 32, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, 0);
}

static void a_buffer_that_leaves_memory_breaks_the_device(void **state) {
        breaks(outside);
}

static void wrap(FrontEnd *f) {
        fe_desc(f, 0, 0, UINT64_MAX - 8, 64, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, 0);
}

static void a_buffer_that_wraps_around_breaks_the_device(void **state) {
        breaks(wrap);
}

static void next_outside(FrontEnd *f) {
        fe_desc(f, 0, 0, FE_ADDRESS(FE_BUFFERS), 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 8);
        fe_offer(f, 0, 0);
}

static void a_next_descriptor_outside_the_table_breaks_the_device(void **state) {
        breaks(next_outside);
}

static void head_outside(FrontEnd *f) {
        fe_offer(f, 0, 4711);
}

static void a_head_outside_the_table_breaks_the_device(void **state) {
        breaks(head_outside);
}

static void too_much(FrontEnd *f) {
        f->queues[0].avail_idx = 100;
        fe_offer(f, 0, 0);
}

static void an_available_index_that_runs_ahead_breaks_the_device(void **state) {
        breaks(too_much);
}

static void nested(FrontEnd *f) {
        struct vring_desc *table = (struct vring_desc *) (void *) (f->ram + FE_BUFFERS);

        table[0] = (struct vring_desc) { FE_ADDRESS(FE_BUFFERS), 16, VRING_DESC_F_INDIRECT, 0 };
        fe_desc(f, 0, 0, FE_ADDRESS(FE_BUFFERS), 16, VRING_DESC_F_INDIRECT, 0);
        fe_offer(f, 0, 0);
}

static void an_indirect_table_in_another_breaks_the_device(void **state) {
        breaks(nested);
}

/* What a front-end does at a driver's reset that knows neither SET_STATUS nor RESET_DEVICE. */
static void stopping_all_rings_heals_a_broken_device(void **state) {
        FrontEnd f;

        start_rng(&f);
        loop(&f);
        fe_kick(&f, 0);
        fe_expect_broken(&f, 0);
        (void) fe_stop_queue(&f, 0);
        fe_start_queue(&f, 0, 8);
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        fe_end(&f);
}

static void rings_outside_memory_break_the_device(void **state) {
        struct vhost_vring_addr address = { .desc_user_addr = FE_USER_BASE + FE_RAM_SIZE - 16,
                .avail_user_addr = FE_USER_BASE, .used_user_addr = FE_USER_BASE };
        FrontEnd f;

        start_rng(&f);
        fe_send(&f, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0);
        fe_expect_broken(&f, 0);
        fe_end(&f);
}

static void rings_that_are_not_aligned_break_the_device(void **state) {
        struct vhost_vring_addr address = { .desc_user_addr = FE_USER_BASE + 8, .avail_user_addr = FE_USER_BASE + 4096,
                .used_user_addr = FE_USER_BASE + 8192 };
        FrontEnd f;

        start_rng(&f);
        fe_send(&f, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0);
        fe_expect_broken(&f, 0);
        fe_end(&f);
}

static void tells_of_a_broken_device_on_the_back_end_channel_only_with_configuration_space(void **state) {
        FrontEnd f;

        start_rng(&f);
        loop(&f);
        fe_kick(&f, 0);
        fe_expect_broken(&f, 0);
        assert_int_equal(poll(&(struct pollfd) { .fd = f.backend_fd, .events = POLLIN }, 1, 50), 0);
        fe_end(&f);
}

/* What works */

static void gives_random_numbers(void **state) {
        FrontEnd f;

        start_rng(&f);
        ask(&f, 3, 4000);
        struct vring_used_elem e = fe_wait(&f, 0);
        assert_int_equal(e.id, 3);
        assert_int_equal(e.len, 4000);
        assert_false(is_zero(f.ram + FE_BUFFERS + 3 * KIB(128), 64));
        assert_false(is_zero(f.ram + FE_BUFFERS + 3 * KIB(128) + 4000 - 64, 64));
        assert_true(is_zero(f.ram + FE_BUFFERS + 3 * KIB(128) + 4000, 96));
        fe_end(&f);
}

static void a_request_gets_at_most_64_kib(void **state) {
        FrontEnd f;

        start_rng(&f);
        ask(&f, 0, KIB(100));
        assert_int_equal(fe_wait(&f, 0).len, KIB(64));
        fe_end(&f);
}

static void serves_an_indirect_chain_that_is_not_aligned(void **state) {
        struct vring_desc table[2] = {
                { FE_ADDRESS(FE_BUFFERS + 4096), 100, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1 },
                { FE_ADDRESS(FE_BUFFERS + 8192), 28, VRING_DESC_F_WRITE, 0 },
        };
        FrontEnd f;

        start_rng(&f);
        memcpy(f.ram + FE_BUFFERS + 1, table, sizeof(table));
        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS + 1), sizeof(table), VRING_DESC_F_INDIRECT, 0);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        assert_int_equal(fe_wait(&f, 0).len, 128);
        assert_false(is_zero(f.ram + FE_BUFFERS + 8192, 28));
        fe_end(&f);
}

static void descriptors_changed_after_the_kick_do_no_harm(void **state) {
        FrontEnd f;

        start_rng(&f);
        for (int i = 0; i < 500; i++) {
                struct vring_used_elem e;
                bool used = false;

                fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 4096, VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 0, 0);
                fe_kick(&f, 0);
                /* While it looks: another address, length, flags. */
                for (int k = 0; k < 50; k++)
                        fe_desc(&f, 0, 0, k % 2 ? UINT64_MAX : FE_ADDRESS(FE_BUFFERS), k % 3 ? UINT32_MAX : 4096,
                                VRING_DESC_F_WRITE | (k % 5 ? VRING_DESC_F_NEXT : 0), (uint16_t) k);
                while (!used && !(fe_get_u64(&f, VHOST_USER_GET_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET))
                        used = fe_used(&f, 0, 10, &e);
                if (!used) {
                        fe_expect_broken(&f, 0);
                        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
                        fe_start_queue(&f, 0, 8);
                        continue;
                }
                assert_true(e.len <= KIB(64));
        }
        assert_true(fe_alive(&f));
        fe_end(&f);
}

static void sends_no_signal_that_was_not_asked_for(void **state) {
        FrontEnd f;

        start_rng(&f);
        ask(&f, 0, 64);
        (void) fe_wait(&f, 0);
        (void) fe_eventfd(f.queues[0].call, 0);

        /* The driver wants to hear of the fifth from here. */
        f.queues[0].avail->ring[8] = (uint16_t) (f.queues[0].used_idx + 4);
        for (uint16_t i = 0; i < 4; i++) {
                ask(&f, i, 64);
                while (__atomic_load_n(&f.queues[0].used->idx, __ATOMIC_ACQUIRE) != (uint16_t) (f.queues[0].used_idx + i + 1))
                        usleep(100);
        }
        assert_int_equal(fe_eventfd(f.queues[0].call, 50), 0);
        ask(&f, 4, 64);
        assert_int_equal(fe_eventfd(f.queues[0].call, 30000), 1);
        fe_end(&f);
}

static void a_stopped_ring_tells_its_base_and_is_left_alone(void **state) {
        struct vring_used_elem e;
        FrontEnd f;

        start_rng(&f);
        ask(&f, 0, 64);
        (void) fe_wait(&f, 0);
        assert_int_equal(fe_stop_queue(&f, 0), 1);
        ask(&f, 1, 64);
        assert_false(fe_used(&f, 0, 50, &e));

        /* It goes on where it was. */
        fe_send_queue(&f, 0, 1);
        assert_int_equal(fe_wait(&f, 0).id, 1);
        fe_end(&f);
}

static void a_disabled_ring_is_left_alone(void **state) {
        struct vring_used_elem e;
        FrontEnd f;

        start_rng(&f);
        fe_set_state(&f, VHOST_USER_SET_VRING_ENABLE, 0, 0);
        ask(&f, 0, 64);
        assert_false(fe_used(&f, 0, 50, &e));
        fe_set_state(&f, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        (void) fe_wait(&f, 0);
        fe_end(&f);
}

static void memory_can_be_replaced_while_rings_run(void **state) {
        FrontEnd f;

        start_rng(&f);
        ask(&f, 0, 64);
        (void) fe_wait(&f, 0);
        fe_set_mem_table(&f);
        ask(&f, 1, 64);
        assert_int_equal(fe_wait(&f, 0).id, 1);
        fe_end(&f);
}

/* Memory region by region */

static uint64_t change_region(FrontEnd *f, uint32_t request, uint64_t offset, uint64_t size) {
        VhostUserMemRegMsg message = { .region = { FE_GUEST_BASE + offset, size, FE_USER_BASE + offset, offset } };

        return fe_acknowledged(f, request, &message, sizeof(message), &f->ram_fd, request == VHOST_USER_ADD_MEM_REG);
}

static void refuses_regions_that_do_not_fit(void **state) {
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_MAX_MEM_SLOTS), GUEST_MEMORY_REGIONS_MAX);
        assert_int_not_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, 0), 0);
        assert_int_not_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, FE_RAM_SIZE + 1), 0);
        assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, MIB(2)), 0);
        assert_int_not_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, MIB(1), MIB(2)), 0);
        assert_int_not_equal(change_region(&f, VHOST_USER_REM_MEM_REG, 0, MIB(1)), 0);
        for (unsigned i = 1; i < GUEST_MEMORY_REGIONS_MAX; i++)
                assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, MIB(2) + i * KIB(4), KIB(4)), 0);
        assert_int_not_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, MIB(3), KIB(4)), 0);
        fe_end(&f);
}

/* As QEMU 7.2 does it for a network with several pairs of queues. */
static void takes_a_region_that_is_said_twice_once(void **state) {
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        for (unsigned i = 0; i < 2 * GUEST_MEMORY_REGIONS_MAX; i++)
                assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, FE_RAM_SIZE), 0);
        fe_start_queue(&f, 0, 8);
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        assert_int_equal(change_region(&f, VHOST_USER_REM_MEM_REG, 0, FE_RAM_SIZE), 0);
        assert_int_equal(change_region(&f, VHOST_USER_REM_MEM_REG, 0, FE_RAM_SIZE), 0);
        fe_end(&f);
}

static void refuses_regions_of_who_has_not_negotiated_them(void **state) {
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_u64(&f, VHOST_USER_SET_PROTOCOL_FEATURES, UINT64_C(1) << VHOST_USER_PROTOCOL_F_REPLY_ACK);
        assert_int_not_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, MIB(1)), 0);
        assert_int_not_equal(change_region(&f, VHOST_USER_REM_MEM_REG, 0, MIB(1)), 0);
        fe_end(&f);
}

/* The rings are in one region, the buffers in another: without the first the ring waits, without the second its chain is wrong. */
static void memory_comes_and_goes_region_by_region(void **state) {
        struct vring_used_elem e;
        FrontEnd f;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, MIB(1)), 0);
        assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, FE_BUFFERS, MIB(4)), 0);
        fe_start_queue(&f, 0, 8);
        ask(&f, 0, 64);
        assert_int_equal(fe_wait(&f, 0).len, 64);

        /* More is added while it runs. */
        assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, MIB(12), MIB(1)), 0);
        fe_desc(&f, 0, 1, FE_ADDRESS(MIB(12)), 100, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 1);
        fe_kick(&f, 0);
        assert_int_equal(fe_wait(&f, 0).len, 100);

        assert_int_equal(change_region(&f, VHOST_USER_REM_MEM_REG, 0, MIB(1)), 0);
        ask(&f, 2, 64);
        assert_false(fe_used(&f, 0, 50, &e));
        assert_false(fe_get_u64(&f, VHOST_USER_GET_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_int_equal(change_region(&f, VHOST_USER_ADD_MEM_REG, 0, MIB(2)), 0);
        assert_int_equal(fe_wait(&f, 0).id, 2);

        assert_int_equal(change_region(&f, VHOST_USER_REM_MEM_REG, FE_BUFFERS, MIB(4)), 0);
        ask(&f, 3, 64);
        fe_expect_broken(&f, 0);
        fe_end(&f);
}

/* Gets a log, gives it back, fills in what a helper would have left that died with two chains in flight. */
static void resumes_what_the_log_has_in_flight_in_its_order(void **state) {
        VhostUserMsg msg = { .header = { .request = VHOST_USER_GET_INFLIGHT_FD, .size = sizeof(VhostUserInflight) },
                .payload.inflight = { .num_queues = 1, .queue_size = 8 } };
        QueueRegionSplit *region;
        size_t n_fds = 1;
        FrontEnd f;
        int fd;

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_send(&f, VHOST_USER_GET_INFLIGHT_FD, &msg.payload, msg.header.size, NULL, 0);
        assert_int_equal(vhost_user_recv(f.fd, &msg, &fd, &n_fds), 0);
        assert_int_equal(n_fds, 1);
        region = mmap(NULL, msg.payload.inflight.mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(region, MAP_FAILED);
        /* One chain was used, and the index noted; two more were taken. */
        region->version = QUEUE_REGION_VERSION;
        region->desc_num = 8;
        region->used_idx = 1;
        region->desc[5] = (DescStateSplit) { .inflight = 1, .counter = 10 };
        region->desc[2] = (DescStateSplit) { .inflight = 1, .counter = 11 };
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &msg.payload.inflight, sizeof(VhostUserInflight), &fd, 1), 0);

        fe_lay_out_queue(&f, 0, 8);
        fe_desc(&f, 0, 5, FE_ADDRESS(FE_BUFFERS), 50, VRING_DESC_F_WRITE, 0);
        fe_desc(&f, 0, 2, FE_ADDRESS(FE_BUFFERS + 4096), 20, VRING_DESC_F_WRITE, 0);
        f.queues[0].used->idx = f.queues[0].used_idx = 1;
        f.queues[0].avail->idx = f.queues[0].avail_idx = 3;
        fe_send_queue(&f, 0, 1); /* all that the front-end knows is the used index */

        assert_int_equal(fe_wait(&f, 0).id, 5);
        assert_int_equal(fe_wait(&f, 0).id, 2);
        ask(&f, 1, 64);
        assert_int_equal(fe_wait(&f, 0).id, 1);
        assert_int_equal(fe_stop_queue(&f, 0), 4);
        for (unsigned i = 0; i < 8; i++)
                assert_int_equal(region->desc[i].inflight, 0);
        assert_int_equal(region->used_idx, f.queues[0].used->idx);
        (void) munmap(region, msg.payload.inflight.mmap_size);
        (void) close(fd);
        fe_end(&f);
}

/* As many as a busy disk has: the C library's functions behave differently for many elements than for a few. */
static void resumes_hundreds_of_requests(void **state) {
        VhostUserInflight inflight = { .num_queues = 1, .queue_size = 512, .mmap_size = queue_region_size(512) };
        _cleanup_close_ int fd = guest_memory_create_fd(ALIGN_UP(queue_region_size(512), UINT64_C(4096)), 0);
        QueueRegionSplit *region;
        FrontEnd f;

        region = mmap(NULL, inflight.mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(region, MAP_FAILED);
        region->version = QUEUE_REGION_VERSION;
        region->desc_num = 512;
        for (unsigned i = 0; i < 512; i++)
                region->desc[i] = (DescStateSplit) { .inflight = 1, .counter = 1000 - i };

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &fd, 1), 0);
        fe_lay_out_queue(&f, 0, 512);
        for (uint16_t i = 0; i < 512; i++)
                fe_desc(&f, 0, i, FE_ADDRESS(FE_BUFFERS), 1, VRING_DESC_F_WRITE, 0);
        f.queues[0].avail->idx = f.queues[0].avail_idx = 512;
        fe_send_queue(&f, 0, 0);
        for (unsigned i = 0; i < 512; i++)
                assert_int_equal(fe_wait(&f, 0).id, 511 - i);
        (void) munmap(region, inflight.mmap_size);
        fe_end(&f);
}

/* The driver's queue is larger than the front-end reckoned with. */
static void serves_a_queue_that_is_too_large_for_the_log(void **state) {
        VhostUserInflight inflight = { .num_queues = 1, .queue_size = 8, .mmap_size = queue_region_size(8) };
        _cleanup_close_ int fd = guest_memory_create_fd(4096, 0);
        uint8_t *log = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        FrontEnd f;

        assert_ptr_not_equal(log, MAP_FAILED);
        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &fd, 1), 0);
        fe_start_queue(&f, 0, 16);
        for (uint16_t i = 0; i < 16; i++) {
                ask(&f, i, 64);
                assert_int_equal(fe_wait(&f, 0).id, i);
        }
        assert_true(is_zero(log, 4096));
        /* The next one fits. */
        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
        fe_start_queue(&f, 0, 8);
        ask(&f, 3, 64);
        assert_int_equal(fe_wait(&f, 0).id, 3);
        assert_false(is_zero(log, 4096));
        (void) munmap(log, 4096);
        fe_end(&f);
}

/* The helper died between showing the last batch to the driver and noting it: nothing of that batch is done twice. */
static void does_not_repeat_a_batch_that_was_shown(void **state) {
        VhostUserInflight inflight = { .num_queues = 1, .queue_size = 8, .mmap_size = queue_region_size(8) };
        _cleanup_close_ int fd = guest_memory_create_fd(4096, 0);
        QueueRegionSplit *region;
        struct vring_used_elem e;
        FrontEnd f;

        region = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(region, MAP_FAILED);
        region->version = QUEUE_REGION_VERSION;
        region->desc_num = 8;
        region->used_idx = 0;
        region->last_batch_head = 1;
        region->desc[1] = (DescStateSplit) { .inflight = 1, .counter = 2, .next = 6 };
        region->desc[6] = (DescStateSplit) { .inflight = 1, .counter = 1, .next = 3 };
        region->desc[3] = (DescStateSplit) { .inflight = 1, .counter = 3 };

        fe_spawn(&f, rng);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &fd, 1), 0);
        fe_lay_out_queue(&f, 0, 8);
        fe_desc(&f, 0, 3, FE_ADDRESS(FE_BUFFERS), 50, VRING_DESC_F_WRITE, 0);
        f.queues[0].used->idx = f.queues[0].used_idx = 2;
        f.queues[0].avail->idx = f.queues[0].avail_idx = 3;
        fe_send_queue(&f, 0, 2);

        assert_int_equal(fe_wait(&f, 0).id, 3);
        assert_false(fe_used(&f, 0, 50, &e));
        assert_int_equal(fe_stop_queue(&f, 0), 3);
        (void) munmap(region, 4096);
        fe_end(&f);
}

/* With a socket of its own, the helper outlives a front-end and takes the next one. */
static void waits_for_the_next_front_end(void **state) {
        char path[] = "/tmp/vmm-test-XXXXXX", argument[64], node[48];
        FrontEnd f = { .ram_fd = -EBADF };
        int status;

        assert_non_null(mkdtemp(path));
        (void) snprintf(node, sizeof(node), "%s/s", path);
        (void) snprintf(argument, sizeof(argument), "--socket-path=%s", node);
        f.pid = fork();
        assert_true(f.pid >= 0);
        if (f.pid == 0) {
                execl(getenv("VMM_DEVICE"), "vmm-device", "rng", argument, NULL);
                _exit(127);
        }
        for (int i = 0; i < 20; i++) {
                for (int k = 0; (f.fd = connect_unix(node)) < 0 && k < 6000; k++)
                        usleep(10000);
                assert_true(f.fd >= 0);
                fe_negotiate(&f, 0);
                assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM), 1);
                f.backend_fd = safe_close(f.backend_fd);
                f.fd = safe_close(f.fd);
        }
        assert_true(fe_alive(&f));
        assert_int_equal(kill(f.pid, SIGTERM), 0);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        (void) unlink(node);
        (void) rmdir(path);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_an_unknown_request),
                cmocka_unit_test(refuses_a_wrong_version),
                cmocka_unit_test(refuses_a_message_of_4_gib),
                cmocka_unit_test(refuses_features_that_were_not_offered),
                cmocka_unit_test(refuses_protocol_features_that_were_not_offered),
                cmocka_unit_test(refuses_a_queue_that_is_not_there),
                cmocka_unit_test(refuses_a_queue_size_that_is_no_power_of_two),
                cmocka_unit_test(refuses_a_payload_of_the_wrong_size),
                cmocka_unit_test(refuses_a_kick_message_without_descriptor),
                cmocka_unit_test(refuses_memory_that_is_longer_than_its_file),
                cmocka_unit_test(refuses_more_regions_than_there_can_be),
                cmocka_unit_test(refuses_an_in_flight_log_that_is_too_small),
                cmocka_unit_test(a_signal_descriptor_that_nobody_reads_is_survived),
                cmocka_unit_test(says_no_to_who_asks_for_an_acknowledgement_and_goes_on),
                cmocka_unit_test(a_half_sent_message_blocks_nobody),
                cmocka_unit_test(a_chain_that_loops_breaks_the_device),
                cmocka_unit_test(a_buffer_that_leaves_memory_breaks_the_device),
                cmocka_unit_test(a_buffer_that_wraps_around_breaks_the_device),
                cmocka_unit_test(a_next_descriptor_outside_the_table_breaks_the_device),
                cmocka_unit_test(a_head_outside_the_table_breaks_the_device),
                cmocka_unit_test(an_available_index_that_runs_ahead_breaks_the_device),
                cmocka_unit_test(an_indirect_table_in_another_breaks_the_device),
                cmocka_unit_test(stopping_all_rings_heals_a_broken_device),
                cmocka_unit_test(rings_outside_memory_break_the_device),
                cmocka_unit_test(rings_that_are_not_aligned_break_the_device),
                cmocka_unit_test(tells_of_a_broken_device_on_the_back_end_channel_only_with_configuration_space),
                cmocka_unit_test(gives_random_numbers),
                cmocka_unit_test(a_request_gets_at_most_64_kib),
                cmocka_unit_test(serves_an_indirect_chain_that_is_not_aligned),
                cmocka_unit_test(descriptors_changed_after_the_kick_do_no_harm),
                cmocka_unit_test(sends_no_signal_that_was_not_asked_for),
                cmocka_unit_test(a_stopped_ring_tells_its_base_and_is_left_alone),
                cmocka_unit_test(a_disabled_ring_is_left_alone),
                cmocka_unit_test(memory_can_be_replaced_while_rings_run),
                cmocka_unit_test(refuses_regions_that_do_not_fit),
                cmocka_unit_test(takes_a_region_that_is_said_twice_once),
                cmocka_unit_test(refuses_regions_of_who_has_not_negotiated_them),
                cmocka_unit_test(memory_comes_and_goes_region_by_region),
                cmocka_unit_test(resumes_what_the_log_has_in_flight_in_its_order),
                cmocka_unit_test(resumes_hundreds_of_requests),
                cmocka_unit_test(serves_a_queue_that_is_too_large_for_the_log),
                cmocka_unit_test(does_not_repeat_a_batch_that_was_shown),
                cmocka_unit_test(waits_for_the_next_front_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
