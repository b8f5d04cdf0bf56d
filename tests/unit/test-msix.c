/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* MSI-X with the real KVM behind it: what is attached shows by whether KVM takes the eventfd's count away. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <linux/kvm.h>
#include <linux/pci_regs.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "arch.h"

#define VECTORS 4
#define TABLE 0x0
#define PBA 0x1000
#define CONTROL(b) ((uint64_t) 1 << 15 | ((b)->capability + PCI_MSIX_FLAGS))

typedef struct Bus {
        Kvm kvm;
        IoSpace pio, mmio;
        GuestMemory memory;
        Arch *arch;
        VcpuSet vcpus;
        PciBus bus;
        PciDevice device;
        Msix *msix;
        unsigned capability;
        int fd, other;
} Bus;

static void no_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
}

static void no_pause(void *userdata) {
}

static void no_arch_event(ArchEvent event, void *userdata) {
}

static int set_up(void **state) {
        const PciIdentity identity = { .vendor = 0x1AF4, .device = 0x1040 };
        const VcpuSetHandlers handlers = { .event = no_event, .paused = no_pause };
        const ArchConfig config = { .machine_name = "test", .n_vcpus = 1, .event = no_arch_event };
        Bus *b = calloc(1, sizeof(Bus));

        if (!b)
                return -1;
        assert_int_equal(kvm_init(&b->kvm, NULL), 0);
        assert_int_equal(io_space_init(&b->pio), 0);
        assert_int_equal(io_space_init(&b->mmio), 0);
        assert_int_equal(arch_new(&b->kvm, &b->pio, &b->mmio, &b->memory, &config, &b->arch, NULL), 0);
        assert_int_equal(vcpu_set_init(&b->vcpus, &b->kvm, 1, &b->pio, &b->mmio, &handlers, NULL), 0);
        pci_bus_init(&b->bus, &b->kvm, &b->mmio, 0xC0000000, MIB(1));
        pci_device_init(&b->device, &identity, NULL);
        assert_int_equal(msix_new(&b->device, VECTORS, 0, TABLE, PBA, &b->msix), 0);
        b->capability = b->device.config[PCI_CAPABILITY_LIST];
        assert_int_equal(pci_bus_add(&b->bus, &b->device, 1), 1);
        b->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        b->other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        *state = b;
        return 0;
}

static int tear_down(void **state) {
        Bus *b = *state;

        vcpu_set_done(&b->vcpus);
        (void) msix_free(b->msix);
        (void) arch_free(b->arch);
        kvm_done(&b->kvm);
        io_space_done(&b->pio);
        io_space_done(&b->mmio);
        (void) close(b->fd);
        (void) close(b->other);
        free(b);
        return 0;
}

static void set_control(Bus *b, uint16_t control) {
        pci_ecam_access(&b->bus, 0, CONTROL(b), &control, 2, true);
}

static void set_entry(Bus *b, unsigned vector, uint64_t address, uint32_t data, uint32_t control) {
        uint32_t words[4] = { (uint32_t) address, (uint32_t) (address >> 32), data, control };

        for (unsigned i = 0; i < 4; i++)
                msix_table_access(b->msix, vector * 16 + i * 4, &words[i], 4, true);
}

/* Whether a signal is taken by KVM within that time, which then raised the vector. Leaves the eventfd empty. */
static bool fires_within(int fd, unsigned msec) {
        uint64_t count;

        assert_int_equal(eventfd_write(fd, 1), 0);
        for (unsigned i = 0; i < msec; i++) {
                if (poll(&(struct pollfd) { .fd = fd, .events = POLLIN }, 1, 0) == 0)
                        return true;
                (void) usleep(1000);
        }
        assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
        return false;
}

static uint32_t pending(Bus *b) {
        uint32_t bits = UINT32_MAX;

        msix_pba_access(b->msix, 0, &bits, 4, false);
        return bits;
}

static void refuses_what_is_not_its_table(void **state) {
        uint64_t value = 0x1122334455667788;
        Bus *b = *state;
        Msix *msix;

        assert_int_equal(msix_bind(b->msix, VECTORS, b->fd), -EINVAL);
        assert_int_equal(msix_bind(b->msix, MSIX_NO_VECTOR, b->fd), -EINVAL);
        assert_int_equal(msix_new(&b->device, 0, 0, TABLE, PBA, &msix), -EINVAL);
        assert_int_equal(msix_new(&b->device, MSIX_VECTORS_MAX + 1, 0, TABLE, PBA, &msix), -EINVAL);
        for (unsigned size = 1; size <= 2; size++)
                msix_table_access(b->msix, 0, &value, size, true);
        msix_table_access(b->msix, 2, &value, 4, true);
        msix_table_access(b->msix, 4, &value, 8, true);
        msix_table_access(b->msix, VECTORS * 16, &value, 4, true);
        msix_table_access(b->msix, VECTORS * 16 - 4, &value, 8, true);
        msix_table_access(b->msix, 0xFF8, &value, 8, true);
        msix_pba_access(b->msix, 0, &value, 8, true);
        msix_pba_access(b->msix, 0xFFC, &value, 4, false);
        msix_table_access(b->msix, 0, &value, 8, false);
        assert_true(value == 0);
        assert_int_equal(pending(b), 0);
        /* The count of vectors in the control word is not for writing, reserved bits of an entry neither. */
        set_control(b, 0xFFFF);
        assert_int_equal(load_le16(b->device.config + b->capability + PCI_MSIX_FLAGS), 0xC000 | (VECTORS - 1));
        set_entry(b, 0, 0, 0, UINT32_MAX);
        msix_table_access(b->msix, 8, &value, 8, false);
        assert_true(value == UINT64_C(1) << 32);
}

static void fires_exactly_while_it_is_not_masked(void **state) {
        Bus *b = *state;

        assert_int_equal(msix_bind(b->msix, 1, b->fd), 0);
        set_entry(b, 1, 0xFEE00000, 0x41, 0);
        assert_false(fires_within(b->fd, 50));
        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        assert_true(fires_within(b->fd, 60000));
        set_control(b, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
        assert_false(fires_within(b->fd, 50));
        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        set_entry(b, 1, 0xFEE00000, 0x41, 1);
        assert_false(fires_within(b->fd, 50));
        set_entry(b, 1, 0xFEE00000, 0x42, 0);
        assert_true(fires_within(b->fd, 60000));
        /* Two of one vector. */
        assert_int_equal(msix_bind(b->msix, 1, b->other), 0);
        assert_true(fires_within(b->other, 60000));
        assert_true(fires_within(b->fd, 60000));
        msix_unbind(b->msix, 1, b->fd);
        assert_false(fires_within(b->fd, 50));
        assert_true(fires_within(b->other, 60000));
        msix_reset(b->msix);
        assert_false(fires_within(b->other, 50));
}

static void what_comes_while_masked_is_pending_and_fires_on_unmasking(void **state) {
        Bus *b = *state;

        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        set_entry(b, 2, 0xFEE00000, 0x51, 1);
        assert_int_equal(msix_bind(b->msix, 2, b->fd), 0);
        assert_int_equal(eventfd_write(b->fd, 1), 0);
        assert_int_equal(pending(b), 1 << 2);
        set_entry(b, 2, 0xFEE00000, 0x51, 0);
        for (unsigned i = 0; poll(&(struct pollfd) { .fd = b->fd, .events = POLLIN }, 1, 0) > 0 && i < 60000; i++)
                (void) usleep(1000);
        assert_int_equal(poll(&(struct pollfd) { .fd = b->fd, .events = POLLIN }, 1, 0), 0);
        assert_int_equal(pending(b), 0);
}

static void a_message_that_kvm_refuses_hurts_no_other(void **state) {
        Bus *b = *state;

        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        assert_int_equal(msix_bind(b->msix, 0, b->fd), 0);
        assert_int_equal(msix_bind(b->msix, 1, b->other), 0);
        /* With 32-bit APIC ids the low byte of the upper half is reserved. */
        set_entry(b, 0, 0x000000FFFEE00000, 0x41, 0);
        set_entry(b, 1, 0xFEE00000, 0x42, 0);
        assert_true(fires_within(b->other, 60000));
        set_entry(b, 0, 0xFEE00000, 0x41, 0);
        assert_true(fires_within(b->fd, 60000));
        assert_int_equal(kvm_route_commit(&b->kvm), 0);
}

static void a_guest_that_plays_with_the_table_breaks_nothing(void **state) {
        uint32_t random = 1;
        Bus *b = *state;

        assert_int_equal(msix_bind(b->msix, 0, b->fd), 0);
        assert_int_equal(msix_bind(b->msix, 3, b->other), 0);
        for (unsigned i = 0; i < 2000; i++) {
                uint64_t value;

                random = random * 1103515245 + 12345;
                value = (uint64_t) random << 32 | ~random;
                if (i % 7 == 0)
                        set_control(b, (uint16_t) (random >> 16));
                else if (i % 11 == 0)
                        (void) eventfd_write(i & 1 ? b->fd : b->other, 1);
                else
                        msix_table_access(b->msix, (random >> 8) % (VECTORS * 16 + 32), &value, 1u << (random >> 28) % 4, random & 0x80000);
        }
        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        for (unsigned i = 0; i < VECTORS; i++)
                set_entry(b, i, 0xFEE00000, 0x41, 0);
        assert_true(fires_within(b->fd, 60000));
        assert_true(fires_within(b->other, 60000));
}

static void comes_back_from_its_state(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        Bus *b = *state;
        const void *data;
        size_t size;

        assert_int_equal(msix_bind(b->msix, 1, b->fd), 0);
        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        set_entry(b, 1, 0xFEE00000, 0x41, 0);
        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(pci_device_save(&b->device, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        pci_bus_reset(&b->bus);
        assert_false(fires_within(b->fd, 50));
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(pci_device_load(&b->device, r, NULL), 0);
        assert_true(fires_within(b->fd, 60000));
}

/* A helper that holds the descriptor on does not interrupt whoever has the vector's number next. */
static void what_was_attached_is_not_when_it_is_freed(void **state) {
        Bus *b = *state;

        set_control(b, PCI_MSIX_FLAGS_ENABLE);
        set_entry(b, 0, 0xFEE00000, 0x41, 0);
        assert_int_equal(msix_bind(b->msix, 0, b->fd), 0);
        assert_true(fires_within(b->fd, 60000));
        b->msix = msix_free(b->msix);
        b->device.msix = NULL;
        assert_false(fires_within(b->fd, 50));
}

#define with_bus(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
        const struct CMUnitTest tests[] = {
                with_bus(refuses_what_is_not_its_table),
                with_bus(a_message_that_kvm_refuses_hurts_no_other),
                with_bus(a_guest_that_plays_with_the_table_breaks_nothing),
                with_bus(fires_exactly_while_it_is_not_masked),
                with_bus(what_comes_while_masked_is_pending_and_fires_on_unmasking),
                with_bus(what_was_attached_is_not_when_it_is_freed),
                with_bus(comes_back_from_its_state),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
