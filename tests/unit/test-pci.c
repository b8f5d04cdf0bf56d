/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <linux/pci_regs.h>
#include <sched.h>
#include <semaphore.h>

#include "pci.h"

#define WINDOW 0xC0000000
#define BAR_SIZE 0x4000
#define ECAM(slot, offset) ((uint64_t) (slot) << 15 | (offset))

typedef struct Bus {
        Kvm kvm;
        IoSpace mmio;
        PciBus bus;
        PciDevice devices[2];
        uint64_t mapped[2];
        unsigned accesses[2];
} Bus;

static Bus *the_bus;

static void on_mapped(PciDevice *device, unsigned bar, uint64_t address, bool mapped) {
        the_bus->mapped[device - the_bus->devices] = mapped ? address : 0;
}

static void on_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        PciDevice *device = userdata;

        the_bus->accesses[device - the_bus->devices]++;
        if (!is_write)
                memset(data, 0x50 + (int) (device - the_bus->devices), size);
}

static int set_up(void **state) {
        static const PciDeviceOps ops = { .bar_mapped = on_mapped };
        Bus *b = the_bus = calloc(1, sizeof(Bus));

        if (!b || io_space_init(&b->mmio) < 0)
                return -1;
        pci_bus_init(&b->bus, &b->kvm, &b->mmio, WINDOW, MIB(1));
        for (unsigned i = 0; i < 2; i++) {
                const PciIdentity identity = { .vendor = 0x1AF4, .device = (uint16_t) (0x1040 + i), .class_code = 0xFF0000 };

                pci_device_init(&b->devices[i], &identity, &ops);
                pci_device_set_bar(&b->devices[i], 0, BAR_SIZE, on_access, &b->devices[i]);
                if (pci_bus_add(&b->bus, &b->devices[i], -1) != (int) i + 1)
                        return -1;
        }
        *state = b;
        return 0;
}

static int tear_down(void **state) {
        Bus *b = *state;

        io_space_done(&b->mmio);
        free(b);
        return 0;
}

static uint32_t ecam_read(Bus *b, uint64_t offset, unsigned size) {
        uint32_t value = UINT32_MAX;

        pci_ecam_access(&b->bus, 0, offset, &value, size, false);
        return size == 4 ? value : value & ((UINT32_C(1) << 8 * size) - 1);
}

static void ecam_write(Bus *b, uint64_t offset, uint32_t value, unsigned size) {
        pci_ecam_access(&b->bus, 0, offset, &value, size, true);
}

static uint32_t port_read(Bus *b, uint64_t offset, unsigned size) {
        uint32_t value = UINT32_MAX;

        pci_port_access(&b->bus, 0, offset, &value, size, false);
        return size == 4 ? value : value & ((UINT32_C(1) << 8 * size) - 1);
}

static void port_write(Bus *b, uint64_t offset, uint32_t value, unsigned size) {
        pci_port_access(&b->bus, 0, offset, &value, size, true);
}

static uint8_t bar_read(Bus *b, uint64_t address) {
        uint8_t value = 0;

        io_space_access(&b->mmio, 0, address, &value, 1, false);
        return value;
}

/* --- refusals --- */

static void what_is_not_there_reads_as_ones(void **state) {
        Bus *b = *state;

        assert_int_equal(ecam_read(b, ECAM(5, 0), 4), UINT32_MAX);
        assert_int_equal(ecam_read(b, ECAM(1, 0) | 1 << 12, 4), UINT32_MAX); /* function 1 */
        assert_int_equal(ecam_read(b, ECAM(1, 0) | 1 << 20, 4), UINT32_MAX); /* bus 1 */
        assert_int_equal(ecam_read(b, ECAM(1, 0x100), 4), 0);                /* no extended capability */
        assert_int_equal(ecam_read(b, ECAM(1, 0xFFC), 4), 0);
        assert_int_equal(ecam_read(b, ECAM(1, 0xFE), 4), 0);
        ecam_write(b, ECAM(1, 0xFE), UINT32_MAX, 4);
        ecam_write(b, ECAM(1, 0xFFF), UINT32_MAX, 4);
        port_write(b, 0, 0x80002800, 4);
        assert_int_equal(port_read(b, 4, 4), UINT32_MAX);
        port_write(b, 0, 0x00000800, 4); /* not enabled */
        assert_int_equal(port_read(b, 4, 4), UINT32_MAX);
        port_write(b, 0, 0x80010800, 4); /* bus 1 */
        assert_int_equal(port_read(b, 4, 4), UINT32_MAX);
}

static void identity_is_not_for_writing(void **state) {
        Bus *b = *state;

        for (unsigned offset = 0; offset < 256; offset += 4)
                if (offset != PCI_COMMAND && offset != PCI_BASE_ADDRESS_0 && offset != PCI_CACHE_LINE_SIZE && offset != PCI_INTERRUPT_LINE) {
                        uint32_t before = ecam_read(b, ECAM(1, offset), 4);

                        ecam_write(b, ECAM(1, offset), ~before, 4);
                        assert_int_equal(ecam_read(b, ECAM(1, offset), 4), before);
                }
        ecam_write(b, ECAM(1, PCI_COMMAND), 0xFFFF, 2);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_COMMAND), 2) & PCI_COMMAND_IO, 0);
}

static void refuses_too_many_devices_bars_and_capabilities(void **state) {
        static const PciIdentity identity = { .vendor = 1, .device = 2 };
        uint8_t body[64] = {};
        Bus *b = *state;
        PciDevice extra[PCI_SLOTS];
        int r = 0, last = 0;

        pci_device_init(&extra[0], &identity, NULL);
        assert_int_equal(pci_bus_add(&b->bus, &extra[0], 1), -EEXIST);
        assert_int_equal(pci_bus_add(&b->bus, &extra[0], PCI_SLOTS), -ENOSPC);
        pci_device_set_bar(&extra[0], 0, MIB(1), on_access, &extra[0]); /* what is left of the window is less */
        assert_int_equal(pci_bus_add(&b->bus, &extra[0], -1), -ENOSPC);
        for (unsigned i = 0; i < PCI_SLOTS && r >= 0; i++) {
                pci_device_init(&extra[i], &identity, NULL);
                r = pci_bus_add(&b->bus, &extra[i], -1);
                last = r < 0 ? last : r;
        }
        assert_int_equal(r, -ENOSPC);
        assert_int_equal(last, PCI_SLOTS - 1);

        pci_device_init(&extra[0], &identity, NULL);
        for (unsigned i = 0; i < 2; i++)
                assert_true(pci_device_add_capability(&extra[0], PCI_CAP_ID_VNDR, body, sizeof(body)) > 0);
        assert_int_equal(pci_device_add_capability(&extra[0], PCI_CAP_ID_VNDR, body, sizeof(body)), -ENOSPC);
}

static void refuses_a_state_of_another_device(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        Bus *b = *state;
        const void *data;
        size_t size;

        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(pci_device_save(&b->devices[0], w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(pci_device_load(&b->devices[1], r, &message), -ENOENT);
        b->devices[1].slot = 1;
        message = mfree(message);
        assert_int_equal(pci_device_load(&b->devices[1], r, &message), -EBADMSG);
        assert_non_null(strstr(message, "another device: byte 0x2"));
}

/* --- use --- */

static void both_mechanisms_show_the_same(void **state) {
        Bus *b = *state;

        for (unsigned slot = 0; slot < 3; slot++)
                for (unsigned offset = 0; offset < 256; offset += 4) {
                        port_write(b, 0, 0x80000000 | slot << 11 | offset, 4);
                        assert_int_equal(port_read(b, 0, 4), 0x80000000 | slot << 11 | offset);
                        assert_int_equal(port_read(b, 4, 4), ecam_read(b, ECAM(slot, offset), 4));
                        for (unsigned i = 0; i < 4; i++)
                                assert_int_equal(port_read(b, 4 + i, 1), ecam_read(b, ECAM(slot, offset + i), 1));
                        assert_int_equal(port_read(b, 6, 2), ecam_read(b, ECAM(slot, offset + 2), 2));
                }
        /* Other widths at the address register are not the address register. */
        port_write(b, 0, 0, 1);
        port_write(b, 2, 0, 2);
        assert_int_equal(port_read(b, 0, 4), 0x800010FC);
}

static void a_bar_is_sized_and_moved(void **state) {
        Bus *b = *state;
        uint32_t first = ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4);

        assert_int_equal(b->mapped[0], 0);
        assert_int_equal(bar_read(b, first), 0xFF);
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        assert_int_equal(b->mapped[0], first);
        assert_int_equal(bar_read(b, first), 0x50);

        /* Sizing while it decodes: it goes out of the way and comes back. */
        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0), UINT32_MAX, 4);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4), (uint32_t) ~(BAR_SIZE - 1));
        assert_int_equal(b->mapped[0], 0);
        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0), 0xD0000000, 4);
        assert_int_equal(b->mapped[0], 0xD0000000);
        assert_int_equal(bar_read(b, first), 0xFF);
        assert_int_equal(bar_read(b, 0xD0003FFF), 0x50);
        assert_int_equal(bar_read(b, 0xD0004000), 0xFF);
        /* A byte at a time, as a guest may. */
        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0 + 3), 0xD1, 1);
        assert_int_equal(b->mapped[0], 0xD1000000);
        /* The other BARs are not there. */
        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_1), UINT32_MAX, 4);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_1), 4), 0);

        pci_bus_reset(&b->bus);
        assert_int_equal(b->mapped[0], 0);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4), first);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_COMMAND), 2), 0);
}

static void of_two_bars_at_one_place_the_first_wins_until_it_moves(void **state) {
        Bus *b = *state;

        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0), 0xD0000000, 4);
        ecam_write(b, ECAM(2, PCI_BASE_ADDRESS_0), 0xD0000000, 4);
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        ecam_write(b, ECAM(2, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        assert_int_equal(bar_read(b, 0xD0000000), 0x50);
        assert_int_equal(b->mapped[1], 0);
        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0), 0xD1000000, 4);
        assert_int_equal(bar_read(b, 0xD0000000), 0x51);
        assert_int_equal(bar_read(b, 0xD1000000), 0x50);
        assert_int_equal(b->mapped[1], 0xD0000000);
}

static void capabilities_form_a_list(void **state) {
        static const uint8_t body[6] = { 1, 2, 3, 4, 5, 6 };
        Bus *b = *state;
        int first, second;

        first = pci_device_add_capability(&b->devices[0], PCI_CAP_ID_VNDR, body, sizeof(body));
        second = pci_device_add_capability(&b->devices[0], PCI_CAP_ID_MSIX, body, 5);
        assert_int_equal(first, 0x40);
        assert_int_equal(second, 0x48);
        assert_true(ecam_read(b, ECAM(1, PCI_STATUS), 2) & PCI_STATUS_CAP_LIST);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_CAPABILITY_LIST), 1), first);
        assert_int_equal(ecam_read(b, ECAM(1, (unsigned) first), 4), 0x02014809);
        assert_int_equal(ecam_read(b, ECAM(1, (unsigned) second + 1), 1), 0);
}

static void a_device_comes_back_from_its_state(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        Bus *b = *state;
        const void *data;
        size_t size;

        ecam_write(b, ECAM(1, PCI_BASE_ADDRESS_0), 0xD0000000, 4);
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(pci_device_save(&b->devices[0], w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        pci_bus_reset(&b->bus);
        assert_int_equal(b->mapped[0], 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(pci_device_load(&b->devices[0], r, NULL), 0);
        assert_int_equal(b->mapped[0], 0xD0000000);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_COMMAND), 2), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

/* --- coming and going --- */

static void only_what_is_removable_is_ejected(void **state) {
        Bus *b = *state;

        assert_false(pci_bus_eject(&b->bus, 0));
        assert_false(pci_bus_eject(&b->bus, 1));
        assert_false(pci_bus_eject(&b->bus, 17));
        assert_false(pci_bus_eject(&b->bus, PCI_SLOTS));
        assert_int_equal(ecam_read(b, ECAM(1, PCI_VENDOR_ID), 2), 0x1AF4);
}

static void what_is_ejected_is_gone_at_once_and_its_place_is_free_once_it_is_removed(void **state) {
        static const PciIdentity identity = { .vendor = 3, .device = 4 };
        Bus *b = *state;
        PciDevice other;
        uint32_t place = ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4);

        b->devices[0].removable = true;
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        assert_int_equal(bar_read(b, place), 0x50);
        assert_true(pci_bus_eject(&b->bus, 1));
        assert_true(pci_device_is_ejected(&b->devices[0]));
        assert_int_equal(ecam_read(b, ECAM(1, 0), 4), UINT32_MAX);
        assert_int_equal(bar_read(b, place), 0xFF);
        assert_int_equal(b->mapped[0], 0);
        /* Not even by writing to what is not there. */
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        ecam_write(b, ECAM(2, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        assert_int_equal(b->mapped[0], 0);

        pci_device_init(&other, &identity, NULL);
        pci_device_set_bar(&other, 0, BAR_SIZE, on_access, &b->devices[0]);
        assert_int_equal(pci_bus_add(&b->bus, &other, 1), -EEXIST);
        pci_bus_remove(&b->bus, &b->devices[0]);
        assert_int_equal(pci_bus_add(&b->bus, &other, -1), 1);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_VENDOR_ID), 2), 3);
        assert_int_equal(ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4), place);
}

/* A driver may wait for an answer of a device that was pulled out. */
static void what_is_hidden_answers_where_it_is_mapped(void **state) {
        Bus *b = *state;
        uint32_t place = ecam_read(b, ECAM(1, PCI_BASE_ADDRESS_0), 4);

        b->devices[0].removable = true;
        ecam_write(b, ECAM(1, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
        pci_device_hide(&b->devices[0]);
        assert_false(pci_device_is_ejected(&b->devices[0]));
        assert_int_equal(ecam_read(b, ECAM(1, 0), 4), UINT32_MAX);
        assert_int_equal(bar_read(b, place), 0x50);
        ecam_write(b, ECAM(1, PCI_COMMAND), 0, 2);
        assert_int_equal(bar_read(b, place), 0x50);
        assert_true(pci_bus_eject(&b->bus, 1));
        assert_int_equal(bar_read(b, place), 0xFF);
}

#define ALIVE 0x600DF00D
#define WINDOW_AT 0x60

typedef struct Visitor {
        PciDevice pci;
        uint32_t alive;
        sem_t idle;
} Visitor;

typedef struct Crowd {
        Bus *bus;
        atomic_bool end;
        atomic_uint inside;
} Crowd;

static Crowd crowd;

static void on_visit(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Visitor *v = userdata;

        if (__atomic_load_n(&v->alive, __ATOMIC_RELAXED) != ALIVE)
                abort();
        crowd.inside++;
        (void) sched_yield();
        if (__atomic_load_n(&v->alive, __ATOMIC_RELAXED) != ALIVE)
                abort();
}

static bool visitor_window(PciDevice *device, unsigned offset, unsigned *ret_bar, uint64_t *ret_offset, unsigned *ret_length) {
        *ret_bar = 0;
        *ret_offset = 0;
        *ret_length = 4;
        return offset == WINDOW_AT;
}

static void on_idle(void *userdata) {
        Visitor *v = userdata;

        (void) sem_post(&v->idle);
}

/* By its BAR, by the window in its configuration space, and by both mechanisms. */
static void *look_around(void *userdata) {
        Bus *b = crowd.bus;

        while (!crowd.end) {
                (void) bar_read(b, WINDOW + 2 * BAR_SIZE);
                (void) ecam_read(b, ECAM(3, WINDOW_AT), 4);
                ecam_write(b, ECAM(3, WINDOW_AT), 7, 4);
                ecam_write(b, ECAM(3, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
                (void) pci_bus_eject(&b->bus, 3);
                port_write(b, 0, 0x80001810, 4);
                (void) port_read(b, 4, 4);
        }
        return NULL;
}

static void devices_come_and_go_while_others_are_inside(void **state) {
        static const PciIdentity identity = { .vendor = 5, .device = 6 };
        static const PciDeviceOps ops = { .window = visitor_window };
        Bus *b = *state;
        pthread_t threads[2];

        crowd = (Crowd) { .bus = b };
        for (size_t i = 0; i < ELEMENTSOF(threads); i++)
                assert_int_equal(pthread_create(&threads[i], NULL, look_around, NULL), 0);
        for (unsigned i = 0; i < 2000 || crowd.inside < 100; i++) {
                Visitor *v = calloc(1, sizeof(Visitor));

                assert_non_null(v);
                v->alive = ALIVE;
                assert_int_equal(sem_init(&v->idle, 0, 0), 0);
                pci_device_init(&v->pci, &identity, &ops);
                io_users_init(&v->pci.users, on_idle, v);
                v->pci.removable = i % 2 == 0;
                pci_device_set_bar(&v->pci, 0, BAR_SIZE, on_visit, v);
                assert_int_equal(pci_bus_add(&b->bus, &v->pci, -1), 3);
                ecam_write(b, ECAM(3, PCI_COMMAND), PCI_COMMAND_MEMORY, 2);
                (void) sched_yield();
                pci_bus_remove(&b->bus, &v->pci);
                io_users_put(&v->pci.users);
                assert_int_equal(sem_wait(&v->idle), 0);
                __atomic_store_n(&v->alive, 0, __ATOMIC_RELAXED);
                (void) sem_destroy(&v->idle);
                free(v);
        }
        crowd.end = true;
        for (size_t i = 0; i < ELEMENTSOF(threads); i++)
                assert_int_equal(pthread_join(threads[i], NULL), 0);
}

#define with_bus(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
        const struct CMUnitTest tests[] = {
                with_bus(what_is_not_there_reads_as_ones),
                with_bus(identity_is_not_for_writing),
                with_bus(refuses_too_many_devices_bars_and_capabilities),
                with_bus(refuses_a_state_of_another_device),
                with_bus(both_mechanisms_show_the_same),
                with_bus(a_bar_is_sized_and_moved),
                with_bus(of_two_bars_at_one_place_the_first_wins_until_it_moves),
                with_bus(capabilities_form_a_list),
                with_bus(a_device_comes_back_from_its_state),
                with_bus(only_what_is_removable_is_ejected),
                with_bus(what_is_ejected_is_gone_at_once_and_its_place_is_free_once_it_is_removed),
                with_bus(what_is_hidden_answers_where_it_is_mapped),
                with_bus(devices_come_and_go_while_others_are_inside),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
