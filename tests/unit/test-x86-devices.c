/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "acpi-pm.h"
#include "cmos.h"
#include "i8042.h"

/* --- power registers --- */

static unsigned n_sci, n_power_off, n_reset;
static bool sci_level;

static void set_sci(bool level, void *userdata) {
        assert_int_not_equal(sci_level, level); /* only changes are told */
        sci_level = level;
        n_sci++;
}

static void power_off(void *userdata) {
        n_power_off++;
}

static void reset(void *userdata) {
        n_reset++;
}

static const AcpiPmCallbacks callbacks = { set_sci, power_off, reset };

static void begin(AcpiPm *pm) {
        acpi_pm_init(pm, &callbacks, NULL);
        n_sci = n_power_off = n_reset = 0;
        sci_level = false;
}

static uint16_t event_read16(AcpiPm *pm, uint64_t offset) {
        uint8_t data[2];

        acpi_pm_event_read(pm, offset, data, sizeof(data));
        return load_le16(data);
}

static void event_write16(AcpiPm *pm, uint64_t offset, uint16_t v) {
        acpi_pm_event_write(pm, offset, &v, sizeof(v));
}

static void ignores_accesses_beyond_the_power_registers(void **state) {
        uint8_t data[8] = {};
        AcpiPm pm;

        begin(&pm);
        acpi_pm_event_read(&pm, 3, data, 8);
        assert_int_equal(data[0], 0);
        assert_int_equal(data[1], 0xFF);
        assert_int_equal(data[7], 0xFF);
        acpi_pm_event_read(&pm, UINT64_MAX, data, 8);
        assert_int_equal(data[0], 0xFF);
        acpi_pm_event_write(&pm, 4, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8);
        acpi_pm_event_write(&pm, UINT64_MAX - 1, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8);
        acpi_pm_control_write(&pm, 2, "\x00\x34", 2);
        acpi_pm_reset_write(&pm, 1, "\x06", 1);
        acpi_pm_reset_write(&pm, 0, "", 0);
        assert_int_equal(event_read16(&pm, 2), 0);
        assert_int_equal(n_sci + n_power_off + n_reset, 0);
}

static void turns_nothing_off_for_another_sleep_type(void **state) {
        AcpiPm pm;

        begin(&pm);
        for (uint16_t type = 0; type < 8; type++) {
                uint16_t v = (uint16_t) (type << 10 | 1 << 13);
                if (type != 5)
                        acpi_pm_control_write(&pm, 0, &v, 2);
        }
        /* S5's type without SLP_EN. */
        acpi_pm_control_write(&pm, 0, "\x00\x14", 2);
        assert_int_equal(n_power_off, 0);
}

static void enters_s5_by_a_word_or_its_upper_byte(void **state) {
        AcpiPm pm;
        uint8_t data[2];

        begin(&pm);
        acpi_pm_control_write(&pm, 0, "\x00\x34", 2);
        assert_int_equal(n_power_off, 1);
        acpi_pm_control_write(&pm, 1, "\x34", 1);
        assert_int_equal(n_power_off, 2);
        /* SLP_EN reads as 0, SCI_EN as 1. */
        acpi_pm_control_read(&pm, 0, data, 2);
        assert_int_equal(load_le16(data), 0x1401);
}

static void raises_the_sci_while_a_button_is_pending_and_enabled(void **state) {
        AcpiPm pm;

        begin(&pm);
        acpi_pm_press_power_button(&pm);
        assert_false(sci_level);
        assert_false(acpi_pm_power_button_enabled(&pm));
        assert_int_equal(event_read16(&pm, 0), 0x100);
        event_write16(&pm, 2, 0xFFFF);
        assert_true(acpi_pm_power_button_enabled(&pm));
        assert_int_equal(event_read16(&pm, 2), 0x0721);
        assert_true(sci_level);
        acpi_pm_press_power_button(&pm);
        acpi_pm_press_sleep_button(&pm);
        assert_int_equal(n_sci, 1);
        event_write16(&pm, 0, 0x100);
        assert_true(sci_level);
        event_write16(&pm, 0, 0x200);
        assert_false(sci_level);
        assert_int_equal(event_read16(&pm, 0), 0);
        assert_int_equal(n_sci, 2);
}

static void resets_by_the_rising_bit(void **state) {
        uint8_t data;
        AcpiPm pm;

        begin(&pm);
        acpi_pm_reset_write(&pm, 0, "\x02", 1);
        assert_int_equal(n_reset, 0);
        acpi_pm_reset_write(&pm, 0, "\x06", 1);
        assert_int_equal(n_reset, 1);
        acpi_pm_reset_read(&pm, 0, &data, 1);
        assert_int_equal(data, 6);
        acpi_pm_reset_write(&pm, 0, "\x06", 1);
        assert_int_equal(n_reset, 1);
        acpi_pm_reset(&pm);
        acpi_pm_reset_write(&pm, 0, "\x06", 1);
        assert_int_equal(n_reset, 2);
}

/* --- clock --- */

static uint64_t fake_nsec;

static uint64_t fake_now(void *userdata) {
        return fake_nsec;
}

static void begin_clock(Cmos *cmos, const char *utc, uint64_t nsec) {
        struct tm tm = {};

        assert_non_null(strptime(utc, "%Y-%m-%d %H:%M:%S", &tm));
        fake_nsec = (uint64_t) timegm(&tm) * NSEC_PER_SEC + nsec;
        cmos_init(cmos);
        cmos->now = fake_now;
}

static uint8_t cmos_get(Cmos *cmos, uint8_t reg) {
        uint8_t v;

        cmos_write(cmos, 0, &reg, 1);
        cmos_read(cmos, 1, &v, 1);
        return v;
}

static void cmos_set(Cmos *cmos, uint8_t reg, uint8_t v) {
        cmos_write(cmos, 0, &reg, 1);
        cmos_write(cmos, 1, &v, 1);
}

static void expect_clock(Cmos *cmos, const uint8_t expected[8]) {
        static const uint8_t registers[8] = { 0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00 };

        for (size_t i = 0; i < 8; i++)
                assert_int_equal(cmos_get(cmos, registers[i]), expected[i]);
}

static void ignores_odd_accesses_to_the_clock(void **state) {
        uint8_t data[8];
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", 0);
        cmos_read(&cmos, 0, data, 1); /* the index cannot be read */
        assert_int_equal(data[0], 0xFF);
        cmos_read(&cmos, 1, data, 4);
        assert_int_equal(data[3], 0xFF);
        cmos_read(&cmos, 7, data, 1);
        assert_int_equal(data[0], 0xFF);
        cmos_set(&cmos, 0x0D, 0);
        assert_int_equal(cmos_get(&cmos, 0x0D), 0x80);
        cmos_set(&cmos, 0x8E, 0x55); /* the index' top bit is the NMI mask */
        assert_int_equal(cmos_get(&cmos, 0x0E), 0x55);
}

static void survives_any_registers(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", 0);
        for (unsigned value = 0; value < 256; value += 5)
                for (unsigned reg = 0; reg < 128; reg++) {
                        cmos_set(&cmos, (uint8_t) reg, (uint8_t) (value + reg * 7));
                        (void) cmos_get(&cmos, (uint8_t) (127 - reg));
                }
        cmos_reset(&cmos);
        assert_int_equal(cmos_get(&cmos, 0x0B), 0x02);
}

static void shows_the_host_s_time(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 23:59:58", 0);
        expect_clock(&cmos, (const uint8_t[]) { 0x20, 0x26, 0x11, 0x22, 0x01, 0x23, 0x59, 0x58 });
        fake_nsec += 2 * NSEC_PER_SEC;
        expect_clock(&cmos, (const uint8_t[]) { 0x20, 0x26, 0x11, 0x23, 0x02, 0x00, 0x00, 0x00 });
        /* Binary, and 12 hours. */
        cmos_set(&cmos, 0x0B, 0x04);
        expect_clock(&cmos, (const uint8_t[]) { 20, 26, 11, 23, 2, 12, 0, 0 });
        fake_nsec += 13 * 3600 * NSEC_PER_SEC;
        assert_int_equal(cmos_get(&cmos, 0x04), 0x81);
}

static void announces_an_update_just_before_it(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", NSEC_PER_SEC - 244001);
        assert_int_equal(cmos_get(&cmos, 0x0A), 0x26);
        fake_nsec += 1;
        assert_int_equal(cmos_get(&cmos, 0x0A), 0xA6);
        fake_nsec += 244000;
        assert_int_equal(cmos_get(&cmos, 0x0A), 0x26);
}

static void keeps_the_time_that_the_guest_sets(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", 500);
        cmos_set(&cmos, 0x0B, 0x82);
        cmos_set(&cmos, 0x32, 0x20);
        cmos_set(&cmos, 0x09, 0x31);
        cmos_set(&cmos, 0x08, 0x02);
        cmos_set(&cmos, 0x07, 0x03);
        cmos_set(&cmos, 0x04, 0x04);
        cmos_set(&cmos, 0x02, 0x05);
        cmos_set(&cmos, 0x00, 0x06);
        fake_nsec += 7 * NSEC_PER_SEC; /* the clock stands still while it is set */
        assert_int_equal(cmos_get(&cmos, 0x00), 0x06);
        cmos_set(&cmos, 0x0B, 0x02);
        fake_nsec += NSEC_PER_SEC;
        expect_clock(&cmos, (const uint8_t[]) { 0x20, 0x31, 0x02, 0x03, 0x02, 0x04, 0x05, 0x07 });
        cmos_reset(&cmos);
        assert_int_equal(cmos_get(&cmos, 0x09), 0x31);
        /* One register at a time, while the clock runs. */
        cmos_set(&cmos, 0x04, 0x14);
        assert_int_equal(cmos_get(&cmos, 0x04), 0x14);
        assert_int_equal(cmos_get(&cmos, 0x02), 0x05);
}

static uint64_t armed_nsec;
static bool rtc_level;

static void rtc_set_irq(bool level, void *userdata) {
        assert_int_not_equal(rtc_level, level);
        rtc_level = level;
}

static void rtc_arm(uint64_t nsec, void *userdata) {
        armed_nsec = nsec;
}

/* The time that was asked for passes. */
static void pass(Cmos *cmos) {
        fake_nsec += armed_nsec;
        cmos_expired(cmos);
}

static void sets_no_alarm_for_a_time_that_never_comes(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", 250000000);
        cmos_set_interrupt(&cmos, rtc_set_irq, rtc_arm, NULL);
        cmos_set(&cmos, 0x05, 0x24);
        cmos_set(&cmos, 0x0B, 0x22);
        assert_int_equal(armed_nsec, 0);
        cmos_set(&cmos, 0x05, 0x23);
        cmos_set(&cmos, 0x03, 0x7F);
        assert_int_equal(armed_nsec, 0);
        cmos_set(&cmos, 0x03, 0x59);
        cmos_set(&cmos, 0x01, 0x61);
        assert_int_equal(armed_nsec, 0);
}

static void interrupts_at_the_alarm(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 23:59:58", 250000000);
        rtc_level = false;
        cmos_set_interrupt(&cmos, rtc_set_irq, rtc_arm, NULL);
        cmos_set(&cmos, 0x01, 0x00);
        cmos_set(&cmos, 0x03, 0x00);
        cmos_set(&cmos, 0x05, 0x00);
        cmos_set(&cmos, 0x0B, 0x22);
        assert_true(armed_nsec == 1750000000);
        cmos_expired(&cmos); /* too early: nothing but the same again */
        assert_false(rtc_level);
        assert_true(armed_nsec == 1750000000);
        pass(&cmos);
        assert_true(rtc_level);
        assert_true(armed_nsec == UINT64_C(86400000000000));
        assert_int_equal(cmos_get(&cmos, 0x0C), 0xA0);
        assert_false(rtc_level);
        assert_int_equal(cmos_get(&cmos, 0x0C), 0);
        /* Every minute, at 30 seconds. */
        cmos_set(&cmos, 0x01, 0x30);
        cmos_set(&cmos, 0x03, 0xFF);
        cmos_set(&cmos, 0x05, 0xFF);
        assert_true(armed_nsec == 30 * NSEC_PER_SEC);
        /* The clock is set: the alarm is nearer. */
        cmos_set(&cmos, 0x00, 0x28);
        assert_true(armed_nsec == 2 * NSEC_PER_SEC);
        pass(&cmos);
        assert_true(rtc_level);
        cmos_set(&cmos, 0x0B, 0x02);
        assert_false(rtc_level);
        assert_true(armed_nsec == 0);
}

static void interrupts_at_each_update(void **state) {
        Cmos cmos;

        begin_clock(&cmos, "2026-11-22 01:02:03", 400000000);
        rtc_level = false;
        cmos_set_interrupt(&cmos, rtc_set_irq, rtc_arm, NULL);
        cmos_set(&cmos, 0x0B, 0x12);
        assert_true(armed_nsec == 600000000);
        for (unsigned i = 0; i < 3; i++) {
                pass(&cmos);
                assert_true(rtc_level);
                assert_true(armed_nsec == NSEC_PER_SEC);
                assert_int_equal(cmos_get(&cmos, 0x0C), 0x90);
        }
        cmos_reset(&cmos);
        assert_true(armed_nsec == 0);
        assert_false(rtc_level);
}

/* --- keyboard controller --- */

static uint8_t i8042_get(I8042 *dev, uint64_t offset) {
        uint8_t v;

        i8042_read(dev, offset, &v, 1);
        return v;
}

static void i8042_put(I8042 *dev, uint64_t offset, uint8_t v) {
        i8042_write(dev, offset, &v, 1);
}

static void resets_by_the_keyboard_controller_only_when_asked(void **state) {
        I8042 dev;

        n_reset = 0;
        i8042_init(&dev, reset, NULL);
        for (unsigned command = 0; command < 0xF0; command++)
                i8042_put(&dev, 4, (uint8_t) command);
        i8042_put(&dev, 4, 0xFF); /* pulses nothing */
        i8042_put(&dev, 0, 0xFE);
        i8042_put(&dev, 1, 0xFE);
        i8042_write(&dev, 4, NULL, 0);
        i8042_put(&dev, 4, 0xD1);
        i8042_put(&dev, 0, 0x03);
        assert_int_equal(n_reset, 0);
        i8042_put(&dev, 4, 0xFE);
        assert_int_equal(n_reset, 1);
        i8042_put(&dev, 4, 0xD1);
        i8042_put(&dev, 0, 0x02);
        assert_int_equal(n_reset, 2);
}

static void answers_as_a_keyboard_controller_without_keyboard(void **state) {
        I8042 dev;

        i8042_init(&dev, reset, NULL);
        assert_int_equal(i8042_get(&dev, 4), 0x14);
        i8042_put(&dev, 4, 0xAA);
        assert_int_equal(i8042_get(&dev, 4), 0x15);
        assert_int_equal(i8042_get(&dev, 0), 0x55);
        assert_int_equal(i8042_get(&dev, 4), 0x14);
        i8042_put(&dev, 4, 0x60);
        i8042_put(&dev, 0, 0x47);
        i8042_put(&dev, 4, 0x20);
        assert_int_equal(i8042_get(&dev, 0), 0x47);
        assert_int_equal(i8042_get(&dev, 1), 0xFF);
}

/* --- state --- */

static void survives_save_and_load(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        AcpiPm pm, pm2;
        Cmos cmos, cmos2;
        I8042 kbd, kbd2;
        const void *data;
        size_t size;

        begin(&pm);
        event_write16(&pm, 2, 0x100);
        acpi_pm_press_power_button(&pm);
        begin_clock(&cmos, "2026-11-22 01:02:03", 0);
        cmos_set(&cmos, 0x04, 0x23);
        cmos_set(&cmos, 0x40, 0x77);
        i8042_init(&kbd, reset, NULL);
        i8042_put(&kbd, 4, 0xAA);

        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(acpi_pm_save(&pm, w), 0);
        assert_int_equal(cmos_save(&cmos, w), 0);
        assert_int_equal(i8042_save(&kbd, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);

        begin(&pm2);
        begin_clock(&cmos2, "2026-11-22 01:02:03", 0);
        i8042_init(&kbd2, reset, NULL);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(acpi_pm_load(&pm2, r, NULL), 0);
        assert_int_equal(cmos_load(&cmos2, r, NULL), 0);
        assert_int_equal(i8042_load(&kbd2, r, NULL), 0);
        assert_int_equal(state_reader_finish(r, NULL), 0);
        assert_true(sci_level);
        assert_int_equal(event_read16(&pm2, 0), 0x100);
        assert_int_equal(cmos_get(&cmos2, 0x04), 0x23);
        assert_int_equal(cmos_get(&cmos2, 0x40), 0x77);
        assert_int_equal(i8042_get(&kbd2, 0), 0x55);
}

static void refuses_a_state_without_its_section(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        AcpiPm pm;
        Cmos cmos;
        const void *data;
        size_t size;

        begin(&pm);
        begin_clock(&cmos, "2026-11-22 01:02:03", 0);
        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "cmos", 0, 1);
        state_put_u64(w, UINT64_C(1) << 62);
        state_put_u8(w, 0);
        state_put_blob(w, cmos.bytes, sizeof(cmos.bytes));
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(acpi_pm_load(&pm, r, &message), -ENOENT);
        assert_string_equal(message, "State has no section acpi-pm.0 that this version understands.");
        assert_int_equal(cmos_load(&cmos, r, &message), -EBADMSG);
        assert_string_equal(message, "State section cmos.0 has a clock offset of 4611686018427387904 s, expected at most 2^40.");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(ignores_accesses_beyond_the_power_registers),
                cmocka_unit_test(turns_nothing_off_for_another_sleep_type),
                cmocka_unit_test(enters_s5_by_a_word_or_its_upper_byte),
                cmocka_unit_test(raises_the_sci_while_a_button_is_pending_and_enabled),
                cmocka_unit_test(resets_by_the_rising_bit),
                cmocka_unit_test(ignores_odd_accesses_to_the_clock),
                cmocka_unit_test(survives_any_registers),
                cmocka_unit_test(sets_no_alarm_for_a_time_that_never_comes),
                cmocka_unit_test(shows_the_host_s_time),
                cmocka_unit_test(interrupts_at_the_alarm),
                cmocka_unit_test(interrupts_at_each_update),
                cmocka_unit_test(announces_an_update_just_before_it),
                cmocka_unit_test(keeps_the_time_that_the_guest_sets),
                cmocka_unit_test(resets_by_the_keyboard_controller_only_when_asked),
                cmocka_unit_test(answers_as_a_keyboard_controller_without_keyboard),
                cmocka_unit_test(refuses_a_state_without_its_section),
                cmocka_unit_test(survives_save_and_load),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
