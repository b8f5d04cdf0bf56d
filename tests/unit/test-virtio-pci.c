/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The virtio transport as a driver uses it, with the real helpers behind it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/virtio_blk.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include "virtio-rig.h"

#define COMMON(field) (RIG_COMMON + VIRTIO_PCI_COMMON_##field)

static const char *const rng[] = { "rng", NULL };

static int set_up_rng(void **state) {
        Rig *rig = malloc(sizeof(Rig));

        if (!rig)
                return -1;
        rig_new(rig, VIRTIO_ID_RNG, 1);
        rig_spawn(rig, rng);
        rig_start(rig);
        *state = rig;
        return 0;
}

static int tear_down(void **state) {
        rig_free(*state);
        free(*state);
        return 0;
}

static uint8_t status(Rig *rig) {
        return (uint8_t) rig_read(rig, COMMON(STATUS), 1);
}

static void expect_entropy(Rig *rig) {
        static const uint8_t zeroes[64] = {};
        uint8_t *buffer = guest_memory_at(&rig->memory, 0x100000, 64);
        struct vring_used_elem used;

        memset(buffer, 0, 64);
        rig_submit(rig, 0, 3, 0x100000, 64);
        assert_true(rig_used(rig, 0, 5000, &used));
        assert_int_equal(used.id, 3);
        assert_int_equal(used.len, 64);
        assert_memory_not_equal(buffer, zeroes, 64);
}

/* --- refusals --- */

static void refuses_features_that_were_not_offered(void **state) {
        Rig *rig = *state;

        rig_reset(rig);
        rig_write(rig, COMMON(STATUS), 3, 1);
        rig_write(rig, COMMON(GFSELECT), 1, 4);
        rig_write(rig, COMMON(GF), 0xFFFFFFFF, 4);
        rig_write(rig, COMMON(STATUS), 11, 1);
        assert_int_equal(status(rig), 3);
        /* A selector out of range reaches nothing. */
        rig_write(rig, COMMON(GFSELECT), 2, 4);
        rig_write(rig, COMMON(GF), 1, 4);
        assert_int_equal(rig_read(rig, COMMON(GF), 4), 0);
        rig_write(rig, COMMON(DFSELECT), 0xFFFFFFFF, 4);
        assert_int_equal(rig_read(rig, COMMON(DF), 4), 0);
}

static void refuses_a_driver_without_version_1(void **state) {
        Rig *rig = *state;

        assert_false(rig_negotiate(rig, UINT64_C(1) << VIRTIO_F_VERSION_1) & VIRTIO_CONFIG_S_FEATURES_OK);
        rig_write(rig, COMMON(STATUS), 15, 1);
        /* DRIVER_OK all the same: FEATURES_OK, tried again, is refused again. */
        assert_int_equal(status(rig), 3 | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void never_offers_what_it_cannot_do(void **state) {
        uint64_t features = rig_offered_features(*state);

        assert_true(features & UINT64_C(1) << VIRTIO_F_VERSION_1);
        assert_false(features & (UINT64_C(1) << 30 | UINT64_C(1) << VIRTIO_F_RING_PACKED | UINT64_C(1) << VIRTIO_F_ACCESS_PLATFORM));
}

static void refuses_rings_that_do_not_lie_in_memory(void **state) {
        static const struct {
                uint32_t field_low, value_low, value_high;
        } wrong[] = {
                { VIRTIO_PCI_COMMON_Q_DESCLO, RIG_MEMORY - 16 * RIG_QUEUE_SIZE + 16, 0 }, /* ends beyond */
                { VIRTIO_PCI_COMMON_Q_DESCLO, 0x10000, 1 },                                /* above 4 GiB */
                { VIRTIO_PCI_COMMON_Q_DESCLO, 0x10008, 0 },                                /* misaligned */
                { VIRTIO_PCI_COMMON_Q_AVAILLO, 0xFFFFFFFF, 0xFFFFFFFF },                   /* wraps */
                { VIRTIO_PCI_COMMON_Q_AVAILLO, 0x11001, 0 },
                { VIRTIO_PCI_COMMON_Q_USEDLO, 0x12002, 0 },
                { VIRTIO_PCI_COMMON_Q_USEDLO, 0xC0000000, 0 },                             /* our own BAR */
        };
        Rig *rig = *state;

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                assert_true(rig_negotiate(rig, 0) & VIRTIO_CONFIG_S_FEATURES_OK);
                rig_set_queue(rig, 0);
                rig_reset(rig);
                assert_true(rig_negotiate(rig, 0) & VIRTIO_CONFIG_S_FEATURES_OK);
                rig_write(rig, COMMON(Q_SELECT), 0, 2);
                rig_write(rig, COMMON(Q_SIZE), RIG_QUEUE_SIZE, 2);
                rig_write(rig, COMMON(Q_DESCLO), 0x10000, 4);
                rig_write(rig, COMMON(Q_AVAILLO), 0x11000, 4);
                rig_write(rig, COMMON(Q_USEDLO), 0x12000, 4);
                rig_write(rig, wrong[i].field_low, wrong[i].value_low, 4);
                rig_write(rig, wrong[i].field_low + 4, wrong[i].value_high, 4);
                rig_write(rig, COMMON(Q_ENABLE), 1, 2);
                rig_write(rig, COMMON(STATUS), 15, 1);
                assert_true(status(rig) & VIRTIO_CONFIG_S_NEEDS_RESET);
                assert_int_equal(vhost_frontend_state(rig->frontend), VHOST_FRONTEND_READY);
        }
        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
}

static void refuses_wrong_queue_sizes(void **state) {
        Rig *rig = *state;

        rig_reset(rig);
        rig_write(rig, COMMON(Q_SELECT), 0, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_SIZE), 2), 256);
        rig_write(rig, COMMON(Q_SIZE), 0, 2);
        rig_write(rig, COMMON(Q_SIZE), 3, 2);
        rig_write(rig, COMMON(Q_SIZE), 512, 2);
        rig_write(rig, COMMON(Q_SIZE), 0xFFFF, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_SIZE), 2), 256);
        rig_write(rig, COMMON(Q_SIZE), 8, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_SIZE), 2), 8);
        /* A queue that is not there has size 0, and takes nothing. */
        rig_write(rig, COMMON(Q_SELECT), 1, 2);
        rig_write(rig, COMMON(Q_SIZE), 8, 2);
        rig_write(rig, COMMON(Q_ENABLE), 1, 2);
        rig_write(rig, COMMON(Q_MSIX), 0, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_SIZE), 2), 0);
        rig_write(rig, COMMON(Q_SELECT), 0xFFFF, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_ENABLE), 2), 0);
}

static void takes_no_access_of_another_width(void **state) {
        Rig *rig = *state;
        uint64_t value = UINT64_MAX;

        rig_reset(rig);
        rig_write(rig, COMMON(STATUS), 3, 4);
        rig_write(rig, COMMON(STATUS), 3, 2);
        assert_int_equal(status(rig), 0);
        io_space_access(&rig->mmio, 0, rig->bar + COMMON(Q_DESCLO), &value, 8, true);
        assert_int_equal(rig_read(rig, COMMON(Q_DESCLO), 4), 0);
        assert_int_equal(rig_read(rig, COMMON(Q_DESCLO) + 1, 4), 0);
        /* Everything else of the BAR: no access is to be more than ignored. */
        for (uint64_t offset = 0; offset < 0x8000; offset += 0x3F4)
                for (unsigned size = 1; size <= 8; size *= 2)
                        for (unsigned w = 0; w < 2; w++) {
                                if (offset / 0x1000 == RIG_COMMON / 0x1000)
                                        continue;
                                value = UINT64_MAX;
                                io_space_access(&rig->mmio, 0, rig->bar + offset, &value, size, w);
                        }
        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
}

static void no_queue_joins_and_none_changes_after_driver_ok(void **state) {
        Rig *rig = *state;

        assert_int_equal(rig_drive(rig), 15);
        rig_write(rig, COMMON(Q_SELECT), 0, 2);
        rig_write(rig, COMMON(Q_ENABLE), 0, 2);
        rig_write(rig, COMMON(Q_DESCLO), 0, 4);
        rig_write(rig, COMMON(Q_SIZE), 128, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_ENABLE), 2), 1);
        assert_int_equal(rig_read(rig, COMMON(Q_DESCLO), 4), 0x10000);
        assert_int_equal(rig_read(rig, COMMON(Q_SIZE), 2), RIG_QUEUE_SIZE);
        /* No status bit goes but by a reset; so nobody activates twice with other features. */
        rig_write(rig, COMMON(STATUS), 3, 1);
        assert_int_equal(status(rig), 15);
        rig_write(rig, COMMON(GFSELECT), 0, 4);
        rig_write(rig, COMMON(GF), 0xFFFFFFFF, 4);
        rig_write(rig, COMMON(STATUS), 15, 1);
        expect_entropy(rig);
}

static void a_kick_without_a_ring_goes_nowhere(void **state) {
        Rig *rig = *state;

        rig_reset(rig);
        for (unsigned i = 0; i < 200; i++)
                rig_write(rig, RIG_NOTIFY + 4 * i, i, 2);
        assert_int_equal(rig_negotiate(rig, 0), 11);
        rig_write(rig, COMMON(STATUS), 15, 1); /* a driver without any queue */
        rig_write(rig, RIG_NOTIFY, 0, 2);
        (void) usleep(100000);
        assert_int_equal(status(rig), 15);
        assert_int_equal(vhost_frontend_reconnects(rig->frontend), 0);
        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
}

static void the_configuration_window_reaches_the_bar_and_nothing_else(void **state) {
        Rig *rig = *state;
        unsigned cap = rig_capability(rig, PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_PCI_CFG);

        assert_int_not_equal(cap, 0);
        rig_reset(rig);
        /* The device's status, written and read. */
        rig_config_write(rig, cap + 4, 0, 1);
        rig_config_write(rig, cap + 8, COMMON(STATUS), 4);
        rig_config_write(rig, cap + 12, 1, 4);
        rig_config_write(rig, cap + 16, 3, 1);
        assert_int_equal(status(rig), 3);
        assert_int_equal(rig_config_read(rig, cap + 16, 1), 3);
        /* Another BAR, odd lengths, offsets beyond: nothing happens, least of all here. */
        rig_config_write(rig, cap + 4, 2, 1);
        rig_config_write(rig, cap + 16, 0, 4);
        rig_config_write(rig, cap + 4, 0, 1);
        rig_config_write(rig, cap + 12, 3, 4);
        rig_config_write(rig, cap + 16, 0, 4);
        rig_config_write(rig, cap + 12, 0xFFFFFFFF, 4);
        rig_config_write(rig, cap + 16, 0, 4);
        rig_config_write(rig, cap + 12, 4, 4);
        rig_config_write(rig, cap + 8, 0x8000, 4);
        rig_config_write(rig, cap + 16, 0, 4);
        rig_config_write(rig, cap + 8, 0xFFFFFFFC, 4);
        rig_config_write(rig, cap + 16, 0, 4);
        (void) rig_config_read(rig, cap + 16, 4);
        rig_config_write(rig, cap + 8, 2, 4);
        rig_config_write(rig, cap + 16, 0, 4);
        assert_int_equal(status(rig), 3);
        /* Decoding is off, and the window works still: that is what it is for. */
        rig_config_write(rig, PCI_COMMAND, 0, 2);
        assert_int_equal(rig_read(rig, COMMON(STATUS), 1), 0xFF);
        rig_config_write(rig, cap + 8, COMMON(STATUS), 4);
        rig_config_write(rig, cap + 12, 1, 4);
        assert_int_equal(rig_config_read(rig, cap + 16, 1), 3);
        rig_config_write(rig, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
}

static void refuses_vectors_it_does_not_have(void **state) {
        Rig *rig = *state;

        rig_reset(rig);
        rig_write(rig, COMMON(Q_SELECT), 0, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_MSIX), 2), 0xFFFF);
        rig_write(rig, COMMON(Q_MSIX), 2, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_MSIX), 2), 0xFFFF);
        rig_write(rig, COMMON(Q_MSIX), 1, 2);
        rig_write(rig, COMMON(MSIX), 0, 2);
        assert_int_equal(rig_read(rig, COMMON(Q_MSIX), 2), 1);
        assert_int_equal(rig_read(rig, COMMON(MSIX), 2), 0);
        rig_reset(rig);
        assert_int_equal(rig_read(rig, COMMON(Q_MSIX), 2), 0xFFFF);
        assert_int_equal(rig_read(rig, COMMON(MSIX), 2), 0xFFFF);
}

/* --- use --- */

static void a_driver_gets_entropy_again_and_again(void **state) {
        Rig *rig = *state;

        for (unsigned i = 0; i < 20; i++) {
                assert_int_equal(rig_drive(rig), 15);
                assert_true(virtio_pci_is_active(rig->virtio));
                expect_entropy(rig);
                expect_entropy(rig);
                rig_reset(rig);
                assert_false(virtio_pci_is_active(rig->virtio));
        }
}

static void after_a_reset_nothing_is_written_any_more(void **state) {
        Rig *rig = *state;
        struct vring_used_elem used;

        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
        rig_reset(rig);
        rig_submit(rig, 0, 1, 0x100000, 64);
        assert_true(eventfd_write(vhost_frontend_queue(rig->frontend, 0)->kick_fd, 1) == 0);
        assert_false(rig_used(rig, 0, 300, &used));
}

static void a_broken_ring_asks_for_a_reset_and_is_well_after_it(void **state) {
        Rig *rig = *state;

        assert_int_equal(rig_drive(rig), 15);
        rig_submit(rig, 0, 1, 0xFFFFFFFFFFFF0000, 64);
        for (unsigned i = 0; !(status(rig) & VIRTIO_CONFIG_S_NEEDS_RESET) && i < 60000; i++)
                (void) usleep(1000);
        assert_true(status(rig) & VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_int_equal(rig->n_broken, 1);
        assert_int_equal(rig_read(rig, RIG_ISR, 1), 2);
        assert_int_equal(rig_read(rig, RIG_ISR, 1), 0);
        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
}

static void a_helper_that_is_killed_is_replaced_and_the_request_answered_once(void **state) {
        Rig *rig = *state;
        struct vring_used_elem used;

        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(kill(rig->helper, SIGSTOP), 0);
                rig_submit(rig, 0, 5, 0x100000, 64);
                rig_kill(rig);
                assert_false(rig_used(rig, 0, 50, &used));
                rig_spawn(rig, rng);
                assert_true(rig_used(rig, 0, 10000, &used));
                assert_int_equal(used.id, 5);
                assert_false(rig_used(rig, 0, 100, &used));
                assert_int_equal(vhost_frontend_reconnects(rig->frontend), i + 1);
                expect_entropy(rig);
        }
        assert_int_equal(status(rig), 15);
}

static void a_reset_while_the_helper_is_away_waits_for_the_next(void **state) {
        Rig *rig = *state;

        assert_int_equal(rig_drive(rig), 15);
        rig_kill(rig);
        rig_spawn(rig, rng);
        rig_reset(rig);
        assert_int_equal(rig_drive(rig), 15);
        expect_entropy(rig);
}

/* --- configuration space and state, with a disk --- */

static void a_disk_shows_its_configuration(void **state) {
        _cleanup_close_ int fd = -EBADF;
        char image[64], option[96];
        const char *arguments[] = { "block", option, NULL };
        struct virtio_blk_config config = {};
        uint32_t generation;
        Rig rig;

        if (syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno == ENOSYS) {
                /* What cmocka makes of skip() is a failure to meson. */
                print_message("# skipped: a_disk_shows_its_configuration: no helper serves a disk without io_uring, as under qemu-user\n");
                return;
        }
        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        (void) snprintf(image, sizeof(image), "%s/image", rig.directory);
        (void) snprintf(option, sizeof(option), "--path=%s", image);
        fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, MIB(1)), 0);
        rig_spawn(&rig, arguments);
        rig_start(&rig);

        assert_int_equal(rig_drive(&rig), 15);
        generation = rig_read(&rig, COMMON(CFGGENERATION), 1);
        io_space_access(&rig.mmio, 0, rig.bar + RIG_DEVICE, &config.capacity, 8, false);
        assert_int_equal(config.capacity, 2048);
        assert_int_equal(rig_read(&rig, RIG_DEVICE + 0xFF8, 4), 0); /* beyond its end */
        rig_write(&rig, RIG_DEVICE, 0, 4);                          /* a capacity is not for writing */
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 2048);
        assert_int_equal(rig_read(&rig, COMMON(CFGGENERATION), 1), generation);
        assert_int_equal(status(&rig), 15);
        (void) unlink(image);
        rig_free(&rig);
}

static void refuses_a_state_of_another_device(void **state) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_free_ char *message = NULL;
        Rig *rig = *state, other;
        const void *data;
        size_t size;

        assert_int_equal(rig_drive(rig), 15);
        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(virtio_pci_save(rig->virtio, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        rig_new(&other, VIRTIO_ID_CONSOLE, 2);
        assert_int_equal(state_reader_new(data, size, &r, &message), 0);
        assert_int_equal(virtio_pci_load(other.virtio, r, &message), -EBADMSG);
        assert_non_null(strstr(message, "2 queues"));
        rig_free(&other);
}

static void registers_come_back_from_their_state(void **state) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        Rig *rig = *state, other;
        const void *data;
        size_t size;

        assert_int_equal(rig_drive(rig), 15);
        rig_write(rig, COMMON(Q_SELECT), 0, 2);
        rig_write(rig, COMMON(Q_MSIX), 1, 2);
        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(virtio_pci_save(rig->virtio, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        rig_new(&other, VIRTIO_ID_RNG, 1);
        rig_spawn(&other, rng);
        rig_start(&other);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(virtio_pci_load(other.virtio, r, NULL), 0);
        for (unsigned offset = 0; offset <= VIRTIO_PCI_COMMON_Q_USEDHI; offset += 4)
                assert_int_equal(rig_read(&other, offset, 4), rig_read(rig, offset, 4));
        assert_int_equal(status(&other), 15);
        assert_int_equal(rig_read(&other, COMMON(Q_MSIX), 2), 1);
        rig_free(&other);
}

#define with_rng(name) cmocka_unit_test_setup_teardown(name, set_up_rng, tear_down)

int main(void) {
        const struct CMUnitTest tests[] = {
                with_rng(refuses_features_that_were_not_offered),
                with_rng(refuses_a_driver_without_version_1),
                with_rng(never_offers_what_it_cannot_do),
                with_rng(refuses_rings_that_do_not_lie_in_memory),
                with_rng(refuses_wrong_queue_sizes),
                with_rng(refuses_vectors_it_does_not_have),
                with_rng(takes_no_access_of_another_width),
                with_rng(no_queue_joins_and_none_changes_after_driver_ok),
                with_rng(a_kick_without_a_ring_goes_nowhere),
                with_rng(the_configuration_window_reaches_the_bar_and_nothing_else),
                with_rng(refuses_a_state_of_another_device),
                with_rng(a_driver_gets_entropy_again_and_again),
                with_rng(after_a_reset_nothing_is_written_any_more),
                with_rng(a_broken_ring_asks_for_a_reset_and_is_well_after_it),
                with_rng(a_helper_that_is_killed_is_replaced_and_the_request_answered_once),
                with_rng(a_reset_while_the_helper_is_away_waits_for_the_next),
                cmocka_unit_test(a_disk_shows_its_configuration),
                with_rng(registers_come_back_from_their_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
