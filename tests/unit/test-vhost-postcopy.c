/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A disk whose memory comes while it is at work: the front-end, what answers faults, and the real helper. What is on the disk afterwards is looked at
 * through the image. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "skip.h"
#include "userfault.h"
#include "virtio-rig.h"

#define PAGE KIB(4)
#define HEADERS 0x100000
#define DATA 0x200000
#define PIECE KIB(64)
#define IMAGE_SIZE MIB(1)
#define UNTOUCHED 0xcc /* of the image */

typedef struct Disk {
        Rig rig;
        char image[40];
        int image_fd, device_fd, file, done_fd;
        VhostSnapshot snapshot;
        SnapshotMemory *source;
        RestoreMemory *pages;
        atomic_int error, n_done;
} Disk;

static uint8_t pattern(uint64_t offset) {
        return (uint8_t) (offset / 512 + offset % 251 + 1);
}

static void start_helper(Disk *d) {
        char argument[64];

        (void) snprintf(argument, sizeof(argument), "--path=%s", d->image);
        rig_spawn(&d->rig, (const char *const[]) { "block", argument, NULL });
}

/* Three descriptors from `slot` * 3 on. Its status is behind the header, in a page of its own kind. */
static void submit(Disk *d, unsigned slot, uint32_t type, uint64_t sector, uint64_t data, uint32_t length) {
        RigQueue *q = &d->rig.queues[0];
        uint64_t header = HEADERS + slot * PAGE;
        struct virtio_blk_outhdr *h = guest_memory_at(&d->rig.memory, header, PAGE);
        uint16_t first = (uint16_t) (slot * 3), index = q->available->idx;

        assert_non_null(h);
        *h = (struct virtio_blk_outhdr) { .type = type, .sector = sector };
        ((uint8_t *) h)[64] = 0xee;
        q->descriptors[first] = (struct vring_desc) { .addr = header, .len = sizeof(*h), .flags = VRING_DESC_F_NEXT, .next = (uint16_t) (first + 1) };
        q->descriptors[first + 1] = (struct vring_desc) {
                .addr = data, .len = length, .next = (uint16_t) (first + 2),
                .flags = (uint16_t) (VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0)),
        };
        q->descriptors[first + 2] = (struct vring_desc) { .addr = header + 64, .len = 1, .flags = VRING_DESC_F_WRITE };
        q->available->ring[index % RIG_QUEUE_SIZE] = first;
        __atomic_store_n(&q->available->idx, (uint16_t) (index + 1), __ATOMIC_RELEASE);
        rig_write(&d->rig, RIG_NOTIFY, 0, 2);
}

static void expect_done(Disk *d) {
        struct vring_used_elem used;
        uint8_t *header;

        assert_true(rig_used(&d->rig, 0, 20000, &used));
        header = guest_memory_at(&d->rig.memory, HEADERS + used.id / 3 * PAGE, PAGE);
        assert_non_null(header);
        assert_int_equal(header[64], VIRTIO_BLK_S_OK);
}

static void on_done(int error, void *userdata) {
        Disk *d = userdata;

        d->error = error;
        d->n_done++;
        assert_int_equal(eventfd_write(d->done_fd, 1), 0);
}

static void wait_until_done(Disk *d) {
        uint64_t count;

        assert_int_equal(read(d->done_fd, &count, sizeof(count)), sizeof(count));
}

static void make_image(Disk *d) {
        static uint8_t data[IMAGE_SIZE];

        (void) snprintf(d->image, sizeof(d->image), "/var/tmp/vmm-postcopy-XXXXXX");
        d->image_fd = mkostemp(d->image, O_CLOEXEC);
        assert_true(d->image_fd >= 0);
        memset(data, UNTOUCHED, sizeof(data));
        assert_int_equal(write(d->image_fd, data, sizeof(data)), sizeof(data));
}

/* Keeps what there is of the memory in the file, and empties it. */
static void take_memory(Disk *d) {
        GuestRegion *region = &d->rig.memory.regions[0];

        d->file = memfd_create("memory", MFD_CLOEXEC);
        assert_true(d->file >= 0);
        assert_int_equal(ftruncate(d->file, RIG_MEMORY), 0);
        for (uint64_t at = 0; at < RIG_MEMORY; at += PAGE)
                if (lseek(region->fd, (off_t) at, SEEK_DATA) == (off_t) at)
                        assert_int_equal(pwrite(d->file, region->host + at, PAGE, (off_t) at), PAGE);
        assert_int_equal(fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, RIG_MEMORY), 0);
        assert_int_equal(snapshot_memory_open(d->file, RIG_MEMORY, false, &d->source, NULL), 0);
}

static bool is_there(const Disk *d, uint64_t address) {
        return lseek(d->rig.memory.regions[0].fd, (off_t) address, SEEK_DATA) == (off_t) address;
}

/* A disk that was suspended with `n` writes before it, of `length` bytes each, and that another helper has; its memory is gone. False where there is no
 * userfaultfd. */
static bool disk_new(Disk *d, unsigned n, uint32_t length) {
        uint8_t *data;
        unsigned before;

        *d = (Disk) { .device_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), .done_fd = eventfd(0, EFD_CLOEXEC) };
        if (d->device_fd < 0) {
                (void) close(d->done_fd);
                return false;
        }
        make_image(d);
        rig_new(&d->rig, VIRTIO_ID_BLOCK, 1);
        start_helper(d);
        rig_start(&d->rig);
        assert_int_equal(rig_drive(&d->rig), 15);
        vhost_frontend_suspend(d->rig.frontend);
        data = guest_memory_at(&d->rig.memory, DATA, n * PIECE);
        assert_non_null(data);
        for (uint64_t i = 0; i < n * (uint64_t) PIECE; i++)
                data[i] = pattern(i);
        for (unsigned i = 0; i < n; i++)
                submit(d, i, VIRTIO_BLK_T_OUT, i * PIECE / 512, DATA + i * PIECE, length);
        assert_int_equal(vhost_frontend_save(d->rig.frontend, &d->snapshot, NULL), 0);
        take_memory(d);

        before = vhost_frontend_reconnects(d->rig.frontend);
        rig_kill(&d->rig);
        start_helper(d);
        for (unsigned i = 0; vhost_frontend_reconnects(d->rig.frontend) == before && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&d->rig, VHOST_FRONTEND_READY);
        assert_int_equal(restore_memory_new(userfault_new(d->device_fd), &d->rig.memory, d->source, on_done, d, &d->pages), 0);
        assert_int_equal(vhost_frontend_restore(d->rig.frontend, &d->snapshot, NULL), 0);
        assert_int_equal(vhost_frontend_restored(d->rig.frontend, &d->snapshot), 0);
        vhost_frontend_serve_pages(d->rig.frontend, d->pages, d->device_fd);
        return true;
}

static void disk_free(Disk *d) {
        vhost_frontend_release(d->rig.frontend);
        d->pages = restore_memory_free(d->pages);
        d->source = snapshot_memory_free(d->source);
        vhost_snapshot_done(&d->snapshot);
        rig_free(&d->rig);
        (void) unlink(d->image);
        (void) close(d->image_fd);
        (void) close(d->device_fd);
        (void) close(d->file);
        (void) close(d->done_fd);
}

/* As the driver wrote it, or not at all: a byte of anything else was nobody's. */
static void expect_image(Disk *d, unsigned n, bool written) {
        uint8_t data[PIECE];

        for (unsigned i = 0; i < IMAGE_SIZE / PIECE; i++) {
                assert_int_equal(pread(d->image_fd, data, sizeof(data), (off_t) i * PIECE), sizeof(data));
                for (size_t k = 0; k < sizeof(data); k++) {
                        uint8_t right = i < n && written ? pattern(i * (uint64_t) PIECE + k) : UNTOUCHED;

                        if (data[k] != right && (written || i >= n || data[k] != pattern(i * (uint64_t) PIECE + k)))
                                fail_msg("byte %zu of piece %u is %#x, and should be %#x", k, i, data[k], right);
                }
        }
}

/* --- tests --- */

static void a_disk_works_before_its_memory_is_there(void **state) {
        RestoreMemoryStatistics statistics;
        Disk d;

        if (!disk_new(&d, 4, PIECE))
                skip_for_want_of("/dev/userfaultfd");
        vhost_frontend_resume(d.rig.frontend);
        assert_false(vhost_frontend_is_held(d.rig.frontend));
        for (unsigned i = 0; i < 4; i++)
                expect_done(&d);
        expect_image(&d, 4, true);
        assert_false(is_there(&d, DATA + 4 * PIECE));
        assert_int_equal(d.n_done, 0);

        /* A read into pages that the snapshot does not have. */
        submit(&d, 0, VIRTIO_BLK_T_IN, 0, DATA + 8 * PIECE, PIECE);
        expect_done(&d);
        assert_memory_equal(guest_memory_at(&d.rig.memory, DATA + 8 * PIECE, PIECE), guest_memory_at(&d.rig.memory, DATA, PIECE), PIECE);

        restore_memory_begin(d.pages);
        wait_until_done(&d);
        assert_int_equal(d.error, 0);
        /* Zeroes are asked for until it is released. */
        submit(&d, 1, VIRTIO_BLK_T_OUT, 8 * PIECE / 512, DATA + 10 * PIECE, 512);
        expect_done(&d);
        restore_memory_statistics(d.pages, &statistics);
        assert_true(statistics.faults >= 5);
        vhost_frontend_release(d.rig.frontend);
        d.pages = restore_memory_free(d.pages);
        submit(&d, 2, VIRTIO_BLK_T_OUT, 0, DATA + 11 * PIECE, 512);
        expect_done(&d);
        assert_int_equal(waitpid(d.rig.helper, NULL, WNOHANG), 0);
        disk_free(&d);
}

/* It has to be asked again: what its successor is given is all that it takes. */
static void a_helper_that_dies_meanwhile_is_followed_by_another(void **state) {
        for (unsigned k = 0; k < 20; k++) {
                unsigned before;
                Disk d;

                if (!disk_new(&d, 5, PIECE))
                        skip_for_want_of("/dev/userfaultfd");
                vhost_frontend_resume(d.rig.frontend);
                (void) usleep(k * 100);
                before = vhost_frontend_reconnects(d.rig.frontend);
                rig_kill(&d.rig);
                start_helper(&d);
                if (k % 2)
                        restore_memory_begin(d.pages);
                for (unsigned i = 0; i < 5; i++)
                        expect_done(&d);
                expect_image(&d, 5, true);
                assert_int_equal(vhost_frontend_reconnects(d.rig.frontend), before + 1);
                disk_free(&d);
        }
}

static void expect_end(Disk *d, int number) {
        int status;

        assert_int_equal(waitpid(d->rig.helper, &status, 0), d->rig.helper);
        d->rig.helper = 0;
        if (!WIFSIGNALED(status) || WTERMSIG(status) != number)
                fail_msg("it ended with status %#x", (unsigned) status);
}

/* Whoever wrote what is found where reading has failed would write zeroes to the disk. */
static void where_reading_fails_nothing_is_written(void **state) {
        for (unsigned k = 0; k < 10; k++) {
                Disk d;

                /* The ring and the headers can be had, the data not all. */
                if (!disk_new(&d, 3, PIECE))
                        skip_for_want_of("/dev/userfaultfd");
                assert_int_equal(ftruncate(d.file, DATA + (off_t) (k % 3) * (off_t) PIECE + (off_t) PAGE * (k % 5)), 0);
                vhost_frontend_resume(d.rig.frontend);
                if (k > 5)
                        restore_memory_begin(d.pages);
                wait_until_done(&d);
                assert_int_equal(d.error, -ENODATA);
                expect_end(&d, SIGIO);
                expect_image(&d, 3, false);
                vhost_frontend_abort(d.rig.frontend); /* there will be no successor to wait for */
                disk_free(&d);
        }
}

/* Without a descriptor for its helper, or where that cannot do with it. */
static void who_cannot_waits(void **state) {
        struct vring_used_elem used;
        Disk d;

        if (!disk_new(&d, 2, PIECE))
                skip_for_want_of("/dev/userfaultfd");
        /* No userfaultfd can be made of this. */
        vhost_frontend_serve_pages(d.rig.frontend, d.pages, d.image_fd);
        vhost_frontend_resume(d.rig.frontend);
        assert_true(vhost_frontend_is_held(d.rig.frontend));
        assert_false(rig_used(&d.rig, 0, 50, &used));
        restore_memory_begin(d.pages);
        wait_until_done(&d);
        vhost_frontend_release(d.rig.frontend);
        vhost_frontend_resume(d.rig.frontend);
        for (unsigned i = 0; i < 2; i++)
                expect_done(&d);
        expect_image(&d, 2, true);
        disk_free(&d);
}

/* Suspended and resumed in the middle, and set up by another driver. */
static void it_can_be_suspended_and_reset_meanwhile(void **state) {
        struct vring_used_elem used;
        Disk d;

        if (!disk_new(&d, 2, PIECE))
                skip_for_want_of("/dev/userfaultfd");
        for (unsigned i = 0; i < 3; i++) {
                vhost_frontend_resume(d.rig.frontend);
                vhost_frontend_suspend(d.rig.frontend);
        }
        submit(&d, 2, VIRTIO_BLK_T_OUT, 2 * PIECE / 512, DATA + 2 * PIECE, 512);
        vhost_frontend_resume(d.rig.frontend);
        for (unsigned i = 0; i < 3; i++)
                expect_done(&d);
        assert_int_equal(waitpid(d.rig.helper, NULL, WNOHANG), 0);

        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(rig_drive(&d.rig), 15);
                submit(&d, 3, VIRTIO_BLK_T_OUT, i, DATA + PIECE + i * 512, 512);
                expect_done(&d);
                rig_reset(&d.rig);
        }
        assert_false(is_there(&d, DATA + 4 * PIECE));
        /* All is there, and it is suspended: it stays that. */
        assert_int_equal(rig_drive(&d.rig), 15);
        vhost_frontend_suspend(d.rig.frontend);
        restore_memory_begin(d.pages);
        wait_until_done(&d);
        vhost_frontend_release(d.rig.frontend);
        submit(&d, 4, VIRTIO_BLK_T_OUT, 3, DATA + PIECE + 3 * 512, 512);
        assert_false(rig_used(&d.rig, 0, 50, &used));
        vhost_frontend_resume(d.rig.frontend);
        expect_done(&d);
        assert_int_equal(waitpid(d.rig.helper, NULL, WNOHANG), 0);
        assert_int_equal(vhost_frontend_reconnects(d.rig.frontend), 1);
        disk_free(&d);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_disk_works_before_its_memory_is_there),
                cmocka_unit_test(a_helper_that_dies_meanwhile_is_followed_by_another),
                cmocka_unit_test(where_reading_fails_nothing_is_written),
                cmocka_unit_test(who_cannot_waits),
                cmocka_unit_test(it_can_be_suspended_and_reset_meanwhile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
