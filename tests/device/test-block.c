/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The block device, by the real helper: what is on the disk afterwards is looked at through the image file. */

#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "front-end.h"

#define IMAGE_SIZE MIB(8)
#define NUM 128
#define STATUS_UNTOUCHED 0xee

static char image[] = "/var/tmp/vmm-test-block-XXXXXX"; /* O_DIRECT may not work on a tmpfs */
static char path_argument[64];
static int image_fd = -EBADF;

static int make_image(void **state) {
        _cleanup_free_ uint8_t *data = malloc(IMAGE_SIZE);

        assert_non_null(data);
        for (size_t i = 0; i < IMAGE_SIZE; i++)
                data[i] = (uint8_t) (i / 512 + i);
        assert_int_equal(ftruncate(image_fd, 0), 0);
        assert_int_equal(pwrite(image_fd, data, IMAGE_SIZE, 0), IMAGE_SIZE);
        assert_int_equal(fsync(image_fd), 0);
        return 0;
}

static void start(FrontEnd *f, const char *a, const char *b) {
        const char *arguments[] = { "block", path_argument, a, a ? b : NULL, NULL };

        fe_start(f, arguments, 1, NUM);
}

/* Where request `i` has its header, status and data. */
static uint8_t *header_of(FrontEnd *f, unsigned i) {
        return f->ram + FE_BUFFERS - KIB(128) + i * 64;
}

static uint8_t *data_of(FrontEnd *f, unsigned i) {
        return f->ram + FE_BUFFERS + i * KIB(64);
}

static uint64_t address_of(FrontEnd *f, const uint8_t *p) {
        return FE_ADDRESS((uint64_t) (p - f->ram));
}

/* Lays request `i` out in descriptors 3i … 3i + 2, `misalign` bytes off, and offers it. */
static void offer_request(FrontEnd *f, unsigned queue, unsigned i, uint32_t type, uint64_t sector, uint32_t length, unsigned misalign) {
        struct virtio_blk_outhdr header = { .type = type, .sector = sector };
        bool input = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
        uint16_t d = (uint16_t) (3 * i);

        memcpy(header_of(f, i), &header, sizeof(header));
        header_of(f, i)[32] = STATUS_UNTOUCHED;
        fe_desc(f, queue, d, address_of(f, header_of(f, i)), sizeof(header), VRING_DESC_F_NEXT, (uint16_t) (length > 0 ? d + 1 : d + 2));
        fe_desc(f, queue, (uint16_t) (d + 1), address_of(f, data_of(f, i) + misalign), length,
                VRING_DESC_F_NEXT | (input ? VRING_DESC_F_WRITE : 0), (uint16_t) (d + 2));
        fe_desc(f, queue, (uint16_t) (d + 2), address_of(f, header_of(f, i) + 32), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, queue, d);
}

static uint8_t request(FrontEnd *f, uint32_t type, uint64_t sector, uint32_t length) {
        offer_request(f, 0, 0, type, sector, length, 0);
        fe_kick(f, 0);
        assert_int_equal(fe_wait(f, 0).id, 0);
        return header_of(f, 0)[32];
}

static void expect_image(uint64_t offset, const uint8_t *data, size_t length) {
        _cleanup_free_ uint8_t *is = malloc(length);

        assert_non_null(is);
        assert_int_equal(pread(image_fd, is, length, (off_t) offset), length);
        assert_memory_equal(is, data, length);
}

static bool image_is_zero(uint64_t offset, size_t length) {
        _cleanup_free_ uint8_t *is = malloc(length);

        assert_int_equal(pread(image_fd, is, length, (off_t) offset), length);
        for (size_t i = 0; i < length; i++)
                if (is[i] != 0)
                        return false;
        return true;
}

/* Refusals of the program */

static void refuses_to_start(const char *a, const char *b, const char *says) {
        const char *arguments[] = { "block", a, b, NULL };
        char text[4096];

        assert_int_equal(fe_spawn_failing(arguments, text, sizeof(text)), 1);
        if (!strstr(text, says))
                fail_msg("'%s' is not in: %s", says, text);
}

static void refuses_options_that_make_no_sense(void **state) {
        refuses_to_start(NULL, NULL, "needs --path=");
        refuses_to_start("--path=/does/not/exist", NULL, "Cannot open /does/not/exist");
        refuses_to_start("--path=/var/tmp", "--read-only=yes", "neither a regular file nor a block device");
        refuses_to_start("--path=/dev/null", NULL, "neither a regular file nor a block device");
        refuses_to_start(path_argument, "--serial=123456789012345678901", "--serial=");
        refuses_to_start(path_argument, "--queues=17", "--queues=17");
        refuses_to_start(path_argument, "--queues=0", "--queues=0");
        refuses_to_start(path_argument, "--queues=99999999999999999999999", "--queues=");
        refuses_to_start(path_argument, "--block-size=1024", "--block-size=1024");
        refuses_to_start(path_argument, "--read-only=maybe", "--read-only=maybe");
        refuses_to_start(path_argument, "--root=yes", "not an option");
        refuses_to_start(path_argument, "--frobnicate=yes", "not an option");
        refuses_to_start(path_argument, "--fd=9999", "--fd=9999");
        refuses_to_start(path_argument, NULL, "no socket");
}

static void refuses_an_image_that_another_one_writes(void **state) {
        FrontEnd f;

        start(&f, NULL, NULL);
        refuses_to_start(path_argument, "--fd=0", "is in use by another process");
        refuses_to_start(path_argument, "--read-only=yes", "is in use by another process");
        fe_end(&f);
}

static void readers_share_an_image(void **state) {
        FrontEnd a, b;

        start(&a, "--read-only=yes", NULL);
        start(&b, "--read-only=yes", NULL);
        refuses_to_start(path_argument, NULL, "is in use by another process");
        assert_int_equal(request(&a, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
        assert_int_equal(request(&b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
        fe_end(&a);
        fe_end(&b);
}

/* Refusals of requests */

static void refuses_requests_beyond_the_end(void **state) {
        FrontEnd f;

        start(&f, NULL, NULL);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, IMAGE_SIZE / 512, 512), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, IMAGE_SIZE / 512 - 1, 1024), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, UINT64_MAX / 512 + 1, 512), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, IMAGE_SIZE / 512, 512), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, IMAGE_SIZE / 512 - 1, 512), VIRTIO_BLK_S_OK);
        fe_end(&f);
        assert_int_equal(lseek(image_fd, 0, SEEK_END), IMAGE_SIZE);
}

static void refuses_lengths_that_are_no_sectors(void **state) {
        FrontEnd f;

        start(&f, NULL, NULL);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 513), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 0), VIRTIO_BLK_S_IOERR);
        fe_end(&f);
}

static void refuses_writing_to_a_read_only_disk(void **state) {
        struct virtio_blk_discard_write_zeroes range = { .sector = 0, .num_sectors = 8 };
        FrontEnd f;

        start(&f, "--read-only=yes", NULL);
        assert_true(f.features & (UINT64_C(1) << VIRTIO_BLK_F_RO));
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
        memcpy(data_of(&f, 0), &range, sizeof(range));
        assert_int_equal(request(&f, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(range)), VIRTIO_BLK_S_IOERR);
        assert_int_not_equal(request(&f, VIRTIO_BLK_T_DISCARD, 0, sizeof(range)), VIRTIO_BLK_S_OK);
        assert_int_equal(request(&f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
        fe_end(&f);
}

/* Whichever way a write takes, its failure is the request's. */
static void a_write_that_fails_is_the_guests_to_know(void **state) {
        const struct rlimit limit = { .rlim_cur = MIB(1), .rlim_max = MIB(1) };
        FrontEnd f;

        for (unsigned direct = 0; direct < 2; direct++) {
                start(&f, direct ? "--direct=yes" : NULL, NULL);
                assert_int_equal(prlimit(f.pid, RLIMIT_FSIZE, &limit, NULL), 0);
                assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, MIB(1) / 512, 4096), VIRTIO_BLK_S_IOERR);
                assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
                assert_int_equal(request(&f, VIRTIO_BLK_T_IN, MIB(1) / 512, 4096), VIRTIO_BLK_S_OK);
                fe_end(&f);
        }
}

static void does_not_know_other_types(void **state) {
        FrontEnd f;

        start(&f, NULL, NULL);
        assert_int_equal(request(&f, 2, 0, 512), VIRTIO_BLK_S_UNSUPP);
        assert_int_equal(request(&f, VIRTIO_BLK_T_SECURE_ERASE, 0, 512), VIRTIO_BLK_S_UNSUPP);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_BARRIER, 0, 512), VIRTIO_BLK_S_UNSUPP);
        fe_end(&f);
}

static uint8_t zero_ranges(FrontEnd *f, uint32_t type, const struct virtio_blk_discard_write_zeroes *ranges, uint32_t size) {
        memcpy(data_of(f, 0), ranges, size);
        return request(f, type, 0, size);
}

static void refuses_ranges_that_make_no_sense(void **state) {
        struct virtio_blk_discard_write_zeroes many[17] = {}, bad[] = {
                { .sector = IMAGE_SIZE / 512, .num_sectors = 1 },
                { .sector = IMAGE_SIZE / 512 - 1, .num_sectors = 2 },
                { .sector = UINT64_MAX, .num_sectors = 2 },
                { .sector = 0, .num_sectors = UINT32_MAX },
                { .sector = 0, .num_sectors = 0 },
        };
        FrontEnd f;

        start(&f, NULL, NULL);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, &bad[i], sizeof(bad[i])), VIRTIO_BLK_S_IOERR);
        for (size_t i = 0; i < ELEMENTSOF(many); i++)
                many[i].num_sectors = 1;
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_DISCARD, many, sizeof(many)), VIRTIO_BLK_S_IOERR);
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_DISCARD, many, 15), VIRTIO_BLK_S_IOERR);
        many[0].flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_DISCARD, many, 16), VIRTIO_BLK_S_UNSUPP);
        many[0].flags = 2;
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, many, 16), VIRTIO_BLK_S_UNSUPP);
        assert_false(image_is_zero(0, 512));
        fe_end(&f);
}

static void breaks_on(uint32_t header_length, bool status) {
        FrontEnd f;

        start(&f, NULL, NULL);
        fe_desc(&f, 0, 0, address_of(&f, header_of(&f, 0)), header_length, status ? VRING_DESC_F_NEXT : 0, 1);
        fe_desc(&f, 0, 1, address_of(&f, header_of(&f, 0) + 32), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        fe_expect_broken(&f, 0);

        /* It says so by a configuration change, too; and a reset heals it. */
        VhostUserMsg msg;
        assert_int_equal(poll(&(struct pollfd) { .fd = f.backend_fd, .events = POLLIN }, 1, 30000), 1);
        assert_int_equal(vhost_user_recv(f.backend_fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
        fe_start_queue(&f, 0, NUM);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
        fe_end(&f);
}

static void a_request_without_header_breaks_the_device(void **state) {
        breaks_on(15, true);
}

static void a_request_without_status_byte_breaks_the_device(void **state) {
        breaks_on(16, false);
}

/* What works */

static void read_config(FrontEnd *f, struct virtio_blk_config *ret) {
        VhostUserMsg msg = { .payload.config = { .size = sizeof(*ret) } };

        fe_send(f, VHOST_USER_GET_CONFIG, &msg.payload, VHOST_USER_CONFIG_HEADER_SIZE + sizeof(*ret), NULL, 0);
        assert_int_equal(vhost_user_recv(f->fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.header.size, VHOST_USER_CONFIG_HEADER_SIZE + sizeof(*ret));
        memcpy(ret, msg.payload.config.region, sizeof(*ret));
}

static void describes_itself(void **state) {
        struct virtio_blk_config config;
        FrontEnd f;

        start(&f, "--serial=serial-number-of-20", "--queues=4");
        read_config(&f, &config);
        assert_int_equal(config.capacity, IMAGE_SIZE / 512);
        assert_int_equal(config.blk_size, 512);
        assert_int_equal(config.num_queues, 4);
        assert_int_equal(config.wce, 1);
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM), 4);
        assert_true(f.features & (UINT64_C(1) << VIRTIO_BLK_F_FLUSH));
        assert_true(f.features & (UINT64_C(1) << VIRTIO_BLK_F_MQ));
        assert_int_equal(request(&f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
        assert_memory_equal(data_of(&f, 0), "serial-number-of-20", 20);
        fe_end(&f);
}

static void a_configuration_change_outside_the_file_is_refused(void **state) {
        VhostUserConfig config = { .offset = offsetof(struct virtio_blk_config, wce), .size = 1 };
        FrontEnd f;

        start(&f, NULL, NULL);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_CONFIG, &config, VHOST_USER_CONFIG_HEADER_SIZE + 1, NULL, 0), 0);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
        config.offset = 0;
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_SET_CONFIG, &config, VHOST_USER_CONFIG_HEADER_SIZE + 1, NULL, 0), 0);
        config.offset = 250;
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_SET_CONFIG, &config, VHOST_USER_CONFIG_HEADER_SIZE + 1, NULL, 0), 0);
        fe_end(&f);
}

static void reads_and_writes_with(const char *option, const char *second, unsigned misalign) {
        uint8_t pattern[8192];
        FrontEnd f;

        start(&f, option, second);
        for (size_t i = 0; i < sizeof(pattern); i++)
                pattern[i] = (uint8_t) (i * 7 + 3);
        memcpy(data_of(&f, 1) + misalign, pattern, sizeof(pattern));
        offer_request(&f, 0, 0, VIRTIO_BLK_T_IN, 17 * 8, 4096, misalign);
        offer_request(&f, 0, 1, VIRTIO_BLK_T_OUT, 42 * 8, sizeof(pattern), misalign);
        fe_kick(&f, 0);
        (void) fe_wait(&f, 0);
        (void) fe_wait(&f, 0);
        assert_int_equal(header_of(&f, 0)[32], VIRTIO_BLK_S_OK);
        assert_int_equal(header_of(&f, 1)[32], VIRTIO_BLK_S_OK);
        expect_image(17 * 4096, data_of(&f, 0) + misalign, 4096);
        assert_int_equal(request(&f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
        expect_image(42 * 4096, pattern, sizeof(pattern));
        fe_end(&f);
}

static void reads_writes_and_flushes(void **state) {
        reads_and_writes_with(NULL, NULL, 0);
}

static void reads_and_writes_past_the_page_cache(void **state) {
        reads_and_writes_with("--direct=yes", NULL, 0);
}

static void reads_and_writes_past_the_page_cache_with_buffers_that_are_not_aligned(void **state) {
        reads_and_writes_with("--direct=yes", "--block-size=4096", 3);
}

static void serves_several_queues(void **state) {
        const char *arguments[] = { "block", path_argument, "--queues=4", NULL };
        FrontEnd f;

        fe_start(&f, arguments, 4, NUM);
        for (unsigned round = 0; round < 50; round++) {
                for (unsigned queue = 0; queue < 4; queue++) {
                        offer_request(&f, queue, queue, VIRTIO_BLK_T_IN, round * 16 + queue * 8, 4096, 0);
                        fe_kick(&f, queue);
                }
                for (unsigned queue = 0; queue < 4; queue++) {
                        assert_int_equal(fe_wait(&f, queue).id, 3 * queue);
                        assert_int_equal(header_of(&f, queue)[32], VIRTIO_BLK_S_OK);
                        expect_image((round * 16 + queue * 8) * 512, data_of(&f, queue), 4096);
                }
        }
        fe_end(&f);
}

/* More than there are requests for, over queues that share them. */
static void serves_more_chains_than_it_takes_at_once(void **state) {
        const char *arguments[] = { "block", path_argument, "--queues=16", NULL };
        FrontEnd f;

        fe_start(&f, arguments, 16, NUM);
        for (unsigned queue = 0; queue < 16; queue++)
                for (unsigned i = 0; i < 40; i++)
                        offer_request(&f, queue, i, VIRTIO_BLK_T_IN, i * 8, 4096, 0);
        for (unsigned queue = 0; queue < 16; queue++)
                fe_kick(&f, queue);
        for (unsigned queue = 0; queue < 16; queue++)
                for (unsigned i = 0; i < 40; i++)
                        (void) fe_wait(&f, queue);
        for (unsigned i = 0; i < 40; i++)
                expect_image(i * 4096, data_of(&f, i), 4096);
        fe_end(&f);
}

static void discards_and_writes_zeroes(void **state) {
        struct virtio_blk_discard_write_zeroes ranges[] = {
                { .sector = 1024, .num_sectors = 2048 },
                { .sector = 8192, .num_sectors = 1024 },
        };
        struct stat before, after;
        FrontEnd f;

        start(&f, NULL, NULL);
        assert_int_equal(fstat(image_fd, &before), 0);
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_DISCARD, ranges, sizeof(ranges)), VIRTIO_BLK_S_OK);
        assert_int_equal(fstat(image_fd, &after), 0);
        assert_true(after.st_blocks < before.st_blocks);
        assert_true(image_is_zero(1024 * 512, 2048 * 512));
        assert_true(image_is_zero(8192 * 512, 1024 * 512));
        assert_false(image_is_zero(1023 * 512, 512));
        assert_false(image_is_zero(3072 * 512, 512));

        ranges[0] = (struct virtio_blk_discard_write_zeroes) { .sector = 5, .num_sectors = 3 };
        ranges[1] = (struct virtio_blk_discard_write_zeroes) { .sector = 4096, .num_sectors = 512, .flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, ranges, sizeof(ranges)), VIRTIO_BLK_S_OK);
        assert_true(image_is_zero(5 * 512, 3 * 512));
        assert_true(image_is_zero(4096 * 512, 512 * 512));
        assert_false(image_is_zero(4 * 512, 512));
        assert_false(image_is_zero(8 * 512, 512));
        assert_int_equal(lseek(image_fd, 0, SEEK_END), IMAGE_SIZE);
        fe_end(&f);
}

static void offers_no_discard_where_it_is_switched_off(void **state) {
        struct virtio_blk_discard_write_zeroes range = { .sector = 0, .num_sectors = 8 };
        FrontEnd f;

        start(&f, "--discard=no", NULL);
        assert_false(f.features & (UINT64_C(1) << VIRTIO_BLK_F_DISCARD));
        assert_int_equal(zero_ranges(&f, VIRTIO_BLK_T_DISCARD, &range, sizeof(range)), VIRTIO_BLK_S_UNSUPP);
        fe_end(&f);
}

static void the_tail_that_is_no_sector_is_out_of_reach(void **state) {
        struct virtio_blk_config config;
        FrontEnd f;

        assert_int_equal(ftruncate(image_fd, IMAGE_SIZE - 100), 0);
        start(&f, NULL, NULL);
        read_config(&f, &config);
        assert_int_equal(config.capacity, IMAGE_SIZE / 512 - 1);
        fe_end(&f);
}

static void the_tail_that_is_no_block_is_out_of_reach(void **state) {
        struct virtio_blk_config config;
        FrontEnd f;

        assert_int_equal(ftruncate(image_fd, IMAGE_SIZE - 512), 0);
        start(&f, "--block-size=4096", NULL);
        read_config(&f, &config);
        assert_int_equal(config.capacity, IMAGE_SIZE / 512 - 8);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, IMAGE_SIZE / 512 - 8, 512), VIRTIO_BLK_S_IOERR);
        fe_end(&f);

        assert_int_equal(ftruncate(image_fd, 512), 0);
        refuses_to_start(path_argument, "--block-size=4096", "less than one block");
}

/* Without event indices, and at the worst moment: a kick finds the queue empty, and while kicks are suppressed a chain comes. */
static void a_chain_that_comes_while_kicks_are_suppressed_is_served(void **state) {
        const char *arguments[] = { "block", path_argument, NULL };
        FrontEnd f;

        fe_spawn(&f, arguments);
        fe_negotiate(&f, UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, NUM);
        for (unsigned round = 0; round < 3000; round++) {
                FrontEndQueue *q = &f.queues[0];
                uint64_t end = now_usec() + 60 * USEC_PER_SEC;

                offer_request(&f, 0, 0, VIRTIO_BLK_T_GET_ID, 0, 20, 0);
                q->avail->idx = --q->avail_idx; /* laid out, not offered yet */
                fe_kick(&f, 0);
                for (unsigned i = 0; i < 100000 && __atomic_load_n(&q->used->flags, __ATOMIC_RELAXED) == 0; i++)
                        ;
                __atomic_store_n(&q->avail->idx, ++q->avail_idx, __ATOMIC_SEQ_CST);
                if (!(__atomic_load_n(&q->used->flags, __ATOMIC_ACQUIRE) & VRING_USED_F_NO_NOTIFY))
                        fe_kick(&f, 0);
                while (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->used_idx) {
                        assert_true(now_usec() < end);
                        (void) usleep(10);
                }
                q->used_idx++;
        }
        fe_end(&f);
}

/* A ring is only stopped when everything that was taken is done. */
static void stopping_a_ring_finishes_what_was_taken(void **state) {
        FrontEnd f;

        start(&f, "--direct=yes", NULL);
        for (unsigned round = 0; round < 20; round++) {
                for (unsigned i = 0; i < 40; i++)
                        offer_request(&f, 0, i, VIRTIO_BLK_T_IN, i * 8, 4096, 0);
                fe_kick(&f, 0);
                uint32_t base = fe_stop_queue(&f, 0);
                assert_int_equal((uint16_t) base, f.queues[0].used->idx);
                uint16_t used = f.queues[0].used->idx;
                usleep(1000);
                assert_int_equal(f.queues[0].used->idx, used);
                fe_send_queue(&f, 0, (uint16_t) base);
                for (unsigned i = 0; i < 40; i++)
                        (void) fe_wait(&f, 0);
        }
        fe_end(&f);
}

/* Killed in the middle, again and again: a successor with the same log finishes every request, and each is used once. */
static void a_killed_helper_loses_no_request(void **state) {
        VhostUserInflight inflight = { .num_queues = 1, .queue_size = NUM, .mmap_size = queue_region_size(NUM) };
        _cleanup_close_ int log = guest_memory_create_fd(ALIGN_UP(queue_region_size(NUM), UINT64_C(4096)), 0);
        const char *arguments[] = { "block", path_argument, "--direct=yes", NULL };
        FrontEnd f;

        fe_spawn(&f, arguments);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &log, 1), 0);
        fe_start_queue(&f, 0, NUM);

        for (unsigned round = 0; round < 10; round++) {
                bool seen[40] = {};
                FrontEnd next;

                for (unsigned i = 0; i < 40; i++) {
                        memset(data_of(&f, i), (int) (round * 40 + i), 4096);
                        offer_request(&f, 0, i, VIRTIO_BLK_T_OUT, i * 8, 4096, 0);
                }
                fe_kick(&f, 0);
                usleep(round * 300);
                assert_int_equal(kill(f.pid, SIGKILL), 0);
                assert_int_equal(waitpid(f.pid, NULL, 0), f.pid);

                /* The memory stays, the helper and its connection are new. */
                fe_spawn(&next, arguments);
                (void) munmap(next.ram, FE_RAM_SIZE);
                (void) close(next.ram_fd);
                next.ram_fd = f.ram_fd;
                next.ram = f.ram;
                (void) close(f.fd);
                (void) close(f.backend_fd);
                memcpy(next.queues, f.queues, sizeof(f.queues));
                f = next;
                fe_negotiate(&f, 0);
                fe_set_mem_table(&f);
                assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &log, 1), 0);
                fe_send_queue(&f, 0, f.queues[0].used->idx);
                for (unsigned i = 0; i < 40; i++) {
                        uint32_t id = fe_wait(&f, 0).id / 3;
                        assert_true(id < 40 && !seen[id]);
                        seen[id] = true;
                }
                for (unsigned i = 0; i < 40; i++) {
                        assert_int_equal(header_of(&f, i)[32], VIRTIO_BLK_S_OK);
                        expect_image(i * 4096, data_of(&f, i), 4096);
                }
        }
        fe_end(&f);
}

static int open_image(void **state) {
        image_fd = mkostemp(image, O_CLOEXEC);
        if (image_fd < 0)
                return -1;
        (void) snprintf(path_argument, sizeof(path_argument), "--path=%s", image);
        return 0;
}

static int remove_image(void **state) {
        (void) unlink(image);
        image_fd = safe_close(image_fd);
        return 0;
}

/* Resize */

#define RESIZE "{\"method\":\"io.vmmd.Device.Resize\",\"parameters\":{"

static char control_path[64], control_argument[96];

static void start_with_control(FrontEnd *f, const char *a) {
        (void) snprintf(control_path, sizeof(control_path), "%s.varlink", image);
        (void) snprintf(control_argument, sizeof(control_argument), "--varlink-path=%s", control_path);
        start(f, control_argument, a);
}

static void expect_reply(const char *call, const char *part) {
        const char *reply = fe_call(control_path, call, -EBADF);

        if (!strstr(reply, part))
                fail_msg("'%s' is not in: %s", part, reply);
}

static uint64_t file_size(void) {
        struct stat st;

        assert_int_equal(fstat(image_fd, &st), 0);
        return (uint64_t) st.st_size;
}

static void sizes_that_are_none_are_refused(void **state) {
        FrontEnd f;

        start_with_control(&f, "--block-size=4096");
        expect_reply(RESIZE "\"size\":0}}", "InvalidParameter");
        expect_reply(RESIZE "\"size\":-512}}", "InvalidParameter");
        expect_reply(RESIZE "\"size\":1000}}", "InvalidParameter");
        expect_reply(RESIZE "\"size\":4608}}", "InvalidParameter"); /* whole sectors, but no whole blocks */
        expect_reply(RESIZE "\"size\":9223372036854771712}}", "\"error\":\"io.vmmd.Device.Unavailable\"");
        assert_int_equal(file_size(), IMAGE_SIZE);
        assert_false(fe_config_changed(&f, 50));
        fe_end(&f);
        (void) unlink(control_path);
}

static void a_read_only_disk_is_not_resized(void **state) {
        FrontEnd f;

        start_with_control(&f, "--read-only=yes");
        expect_reply(RESIZE "\"size\":1048576}}", "\"reason\":\"the disk is read-only\"");
        assert_int_equal(file_size(), IMAGE_SIZE);
        fe_end(&f);
        (void) unlink(control_path);
}

static void another_size_reaches_file_and_guest(void **state) {
        struct virtio_blk_config config;
        FrontEnd f;

        start_with_control(&f, NULL);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, IMAGE_SIZE / 512, 512), VIRTIO_BLK_S_IOERR);
        expect_reply(RESIZE "\"size\":16777216}}", "\"size\":16777216");
        assert_true(fe_config_changed(&f, 30000));
        read_config(&f, &config);
        assert_int_equal(config.capacity, MIB(16) / 512);
        assert_int_equal(file_size(), MIB(16));
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, MIB(16) / 512 - 8, 4096), VIRTIO_BLK_S_OK);

        expect_reply(RESIZE "\"size\":4194304}}", "\"size\":4194304");
        assert_true(fe_config_changed(&f, 30000));
        assert_int_equal(file_size(), MIB(4));
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, MIB(4) / 512, 512), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(&f, VIRTIO_BLK_T_IN, MIB(4) / 512 - 1, 512), VIRTIO_BLK_S_OK);

        /* What others did to the file is taken over; where it is nothing, nobody is told. */
        assert_int_equal(ftruncate(image_fd, (off_t) MIB(6) + 100), 0);
        expect_reply(RESIZE "}}", "\"size\":6291456");
        assert_true(fe_config_changed(&f, 30000));
        expect_reply(RESIZE "\"size\":null}}", "\"size\":6291456");
        assert_false(fe_config_changed(&f, 50));

        expect_reply("{\"method\":\"io.vmmd.Device.GetCounters\"}", "\"writtenBytes\":4096");
        fe_end(&f);
        (void) unlink(control_path);
}

int main(void) {
#define with_image(test) cmocka_unit_test_setup(test, make_image)
        const struct CMUnitTest tests[] = {
                with_image(refuses_options_that_make_no_sense),
                with_image(refuses_an_image_that_another_one_writes),
                with_image(readers_share_an_image),
                with_image(refuses_requests_beyond_the_end),
                with_image(refuses_lengths_that_are_no_sectors),
                with_image(refuses_writing_to_a_read_only_disk),
                with_image(a_write_that_fails_is_the_guests_to_know),
                with_image(does_not_know_other_types),
                with_image(refuses_ranges_that_make_no_sense),
                with_image(a_request_without_header_breaks_the_device),
                with_image(a_request_without_status_byte_breaks_the_device),
                with_image(describes_itself),
                with_image(a_configuration_change_outside_the_file_is_refused),
                with_image(reads_writes_and_flushes),
                with_image(reads_and_writes_past_the_page_cache),
                with_image(reads_and_writes_past_the_page_cache_with_buffers_that_are_not_aligned),
                with_image(serves_several_queues),
                with_image(serves_more_chains_than_it_takes_at_once),
                with_image(discards_and_writes_zeroes),
                with_image(offers_no_discard_where_it_is_switched_off),
                with_image(the_tail_that_is_no_sector_is_out_of_reach),
                with_image(the_tail_that_is_no_block_is_out_of_reach),
                with_image(a_chain_that_comes_while_kicks_are_suppressed_is_served),
                with_image(stopping_a_ring_finishes_what_was_taken),
                with_image(a_killed_helper_loses_no_request),
                with_image(sizes_that_are_none_are_refused),
                with_image(a_read_only_disk_is_not_resized),
                with_image(another_size_reaches_file_and_guest),
        };

        return cmocka_run_group_tests(tests, open_image, remove_image);
}
