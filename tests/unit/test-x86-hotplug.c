/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The registers by which a guest learns that PCI functions come and go, used as the method _E01 of dsdt.asl does. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "acpi-hotplug.h"
#include "layout.h"

#define GPE 2
#define UP 0
#define DOWN 4
#define EJECT 8

static bool sci_level;
static unsigned n_sci;

static void set_sci(bool level, void *userdata) {
        assert_int_not_equal(sci_level, level); /* only changes are told */
        sci_level = level;
        n_sci++;
}

static const AcpiHotplugCallbacks callbacks = { set_sci };

static void begin(AcpiHotplug *h) {
        acpi_hotplug_init(h, &callbacks, NULL);
        sci_level = false;
        n_sci = 0;
}

static uint32_t get(AcpiHotplug *h, uint64_t offset) {
        uint32_t v = 0x12345678;

        acpi_hotplug_read(h, offset, &v, sizeof(v));
        return v;
}

static uint32_t put(AcpiHotplug *h, uint64_t offset, uint32_t v) {
        return acpi_hotplug_write(h, offset, &v, sizeof(v));
}

static void gpe_put(AcpiHotplug *h, uint64_t offset, uint8_t v) {
        acpi_hotplug_gpe_write(h, offset, &v, 1);
}

static uint8_t gpe_get(AcpiHotplug *h, uint64_t offset) {
        uint8_t v;

        acpi_hotplug_gpe_read(h, offset, &v, 1);
        return v;
}

static void ignores_other_accesses_than_its_own(void **state) {
        uint8_t bytes[8] = {};
        AcpiHotplug h;

        begin(&h);
        acpi_hotplug_plugged(&h, 4);
        memset(bytes, 0xFF, sizeof(bytes));
        assert_int_equal(acpi_hotplug_write(&h, UP, bytes, 1), 0);
        assert_int_equal(acpi_hotplug_write(&h, UP, bytes, 2), 0);
        assert_int_equal(acpi_hotplug_write(&h, UP, bytes, 8), 0);
        assert_int_equal(acpi_hotplug_write(&h, UP + 1, bytes, 4), 0);
        assert_int_equal(acpi_hotplug_write(&h, EJECT + 1, bytes, 4), 0);
        assert_int_equal(acpi_hotplug_write(&h, X86_PORT_HOTPLUG_SIZE, bytes, 4), 0);
        assert_int_equal(acpi_hotplug_write(&h, UINT64_MAX - 3, bytes, 4), 0);
        assert_int_equal(get(&h, UP), 1u << 4);
        assert_int_equal(get(&h, UP + 2), 0x12345678);
        assert_int_equal(get(&h, X86_PORT_HOTPLUG_SIZE), 0x12345678);

        acpi_hotplug_gpe_write(&h, X86_PORT_GPE0_SIZE, bytes, 8);
        acpi_hotplug_gpe_write(&h, UINT64_MAX - 7, bytes, 8);
        assert_int_equal(gpe_get(&h, 1), 0);
        acpi_hotplug_gpe_read(&h, 1, bytes, 8);
        assert_int_equal(bytes[0], 0);
        assert_int_equal(bytes[1], 0xFF);
        assert_int_equal(bytes[7], 0xFF);
        assert_int_equal(n_sci, 0);
}

static void ejects_neither_bridge_nor_the_last_slot(void **state) {
        AcpiHotplug h;

        begin(&h);
        assert_int_equal(put(&h, EJECT, UINT32_MAX), ACPI_HOTPLUG_SLOTS);
        assert_int_equal(put(&h, EJECT, 1u << 31 | 1), 0);
        assert_int_equal(put(&h, EJECT, 1u << 30), 1u << 30);
        assert_int_equal(get(&h, EJECT), 0);
        acpi_hotplug_plugged(&h, 0);
        acpi_hotplug_ask(&h, 31, true);
        assert_int_equal(get(&h, UP), 0);
        assert_int_equal(get(&h, DOWN), 0);
}

static void raises_the_sci_once_the_guest_listens_and_until_it_has_seen_it(void **state) {
        AcpiHotplug h;

        begin(&h);
        acpi_hotplug_plugged(&h, 3);
        assert_false(sci_level);
        gpe_put(&h, 1, 0xFF);
        assert_int_equal(gpe_get(&h, 1), GPE); /* there is one event */
        assert_true(sci_level);
        acpi_hotplug_plugged(&h, 5);
        assert_int_equal(n_sci, 1);

        /* An edge event: the status first, then the method. What comes between them is not lost. */
        gpe_put(&h, 0, GPE);
        assert_false(sci_level);
        acpi_hotplug_ask(&h, 7, true);
        assert_true(sci_level);
        assert_int_equal(get(&h, UP), 1u << 3 | 1u << 5);
        assert_int_equal(put(&h, UP, 1u << 3), 0);
        assert_int_equal(get(&h, UP), 1u << 5);
        assert_int_equal(get(&h, DOWN), 1u << 7);
        assert_int_equal(put(&h, DOWN, 1u << 7), 0);
        assert_int_equal(get(&h, DOWN), 0);
        gpe_put(&h, 1, 0);
        assert_false(sci_level);
}

static void forgets_what_the_guest_need_not_know_any_more(void **state) {
        AcpiHotplug h;

        begin(&h);
        acpi_hotplug_plugged(&h, 3);
        acpi_hotplug_ask(&h, 3, true);
        acpi_hotplug_ask(&h, 4, true);
        acpi_hotplug_ask(&h, 4, false);
        assert_int_equal(get(&h, DOWN), 1u << 3);
        acpi_hotplug_gone(&h, 3);
        assert_int_equal(get(&h, UP) | get(&h, DOWN), 0);

        gpe_put(&h, 1, GPE);
        acpi_hotplug_plugged(&h, 3);
        assert_true(sci_level);
        acpi_hotplug_reset(&h);
        assert_false(sci_level);
        assert_int_equal(get(&h, UP) | get(&h, DOWN) | gpe_get(&h, 0) | gpe_get(&h, 1), 0);
}

static void comes_back_from_its_state(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        AcpiHotplug h, loaded;
        const void *data;
        size_t size;

        begin(&h);
        gpe_put(&h, 1, GPE);
        acpi_hotplug_plugged(&h, 9);
        acpi_hotplug_ask(&h, 2, true);
        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(acpi_hotplug_save(&h, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        begin(&loaded);
        assert_int_equal(acpi_hotplug_load(&loaded, r, NULL), 0);
        assert_true(sci_level);
        assert_int_equal(get(&loaded, UP), 1u << 9);
        assert_int_equal(get(&loaded, DOWN), 1u << 2);
}

static void refuses_a_state_without_its_section(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        const void *data;
        AcpiHotplug h;
        size_t size;

        begin(&h);
        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "acpi-hotplug", 1, 1);
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(acpi_hotplug_load(&h, r, &message), -ENOENT);
        assert_string_equal(message, "State has no section acpi-hotplug.0 that this version understands.");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(ignores_other_accesses_than_its_own),
                cmocka_unit_test(ejects_neither_bridge_nor_the_last_slot),
                cmocka_unit_test(refuses_a_state_without_its_section),
                cmocka_unit_test(raises_the_sci_once_the_guest_listens_and_until_it_has_seen_it),
                cmocka_unit_test(forgets_what_the_guest_need_not_know_any_more),
                cmocka_unit_test(comes_back_from_its_state),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
