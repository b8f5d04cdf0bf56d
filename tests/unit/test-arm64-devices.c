/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The small devices of a 64-bit Arm machine: clock, keys, firmware's files. On any architecture. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fw-cfg.h"
#include "layout.h"
#include "pl031.h"
#include "pl061.h"
#include "ramoops.h"

static bool level;
static unsigned n_changes;
static uint64_t armed, host_second;

static void set_irq(bool now, void *userdata) {
        level = now;
        n_changes++;
}

static void arm(uint64_t second, void *userdata) {
        armed = second;
}

static uint64_t now(void *userdata) {
        return host_second;
}

typedef void (*Access)(void *device, uint64_t offset, void *data, size_t size, bool is_write);

static uint32_t read32(Access access, void *device, uint64_t offset) {
        uint8_t data[4] = { 0xff, 0xff, 0xff, 0xff };

        access(device, offset, data, sizeof(data), false);
        return load_le32(data);
}

static void write32(Access access, void *device, uint64_t offset, uint32_t v) {
        access(device, offset, &v, sizeof(v), true);
}

static void access_clock(void *device, uint64_t offset, void *data, size_t size, bool is_write) {
        pl031_access(device, offset, data, size, is_write);
}

static void access_keys(void *device, uint64_t offset, void *data, size_t size, bool is_write) {
        pl061_access(device, offset, data, size, is_write);
}

/* Saves and loads through the form that states have. */
#define PASS_STATE(name, from, to)                                                                             \
        do {                                                                                                   \
                _cleanup_(state_writer_freep) StateWriter *w_ = NULL;                                          \
                _cleanup_(state_reader_freep) StateReader *r_ = NULL;                                          \
                const void *data_;                                                                             \
                size_t size_;                                                                                  \
                assert_int_equal(state_writer_new(&w_), 0);                                                    \
                assert_int_equal(name##_save(from, w_), 0);                                                    \
                assert_int_equal(state_writer_finish(w_, &data_, &size_), 0);                                  \
                assert_int_equal(state_reader_new(data_, size_, &r_, NULL), 0);                                \
                assert_int_equal(name##_load(to, r_, NULL), 0);                                                \
                assert_int_equal(state_reader_finish(r_, NULL), 0);                                            \
        } while (false)

/* --- clock --- */

static void begin_clock(Pl031 *p) {
        level = false;
        armed = n_changes = 0;
        host_second = 1000000;
        pl031_init(p, set_irq, arm, NULL);
        p->now = now;
}

static void ignores_accesses_that_no_register_has(void **state) {
        uint8_t data[8];
        Pl031 clock;
        Pl061 keys;

        begin_clock(&clock);
        pl061_init(&keys, set_irq, NULL);
        for (unsigned size = 1; size <= 8; size *= 2) {
                memset(data, 0xff, sizeof(data));
                pl031_access(&clock, 2, data, size, false);
                assert_int_equal(data[0], 0);
                pl061_access(&keys, 0xFFE, data, size, false);
                assert_int_equal(data[0], 0);
        }
        memset(data, 0xff, sizeof(data));
        pl031_access(&clock, 0x10, data, 1, true);
        pl061_access(&keys, 0x410, data, 8, true);
        assert_int_equal(read32(access_clock, &clock, 0x10), 0);
        assert_int_equal(read32(access_keys, &keys, 0x410), 0);
        assert_int_equal(n_changes, 0);
}

static void identifies_itself_as_a_primecell(void **state) {
        static const uint32_t clock_id[] = { 0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };
        Pl031 clock;
        Pl061 keys;

        begin_clock(&clock);
        pl061_init(&keys, set_irq, NULL);
        for (unsigned i = 0; i < ELEMENTSOF(clock_id); i++) {
                assert_int_equal(read32(access_clock, &clock, 0xFE0 + 4 * i), clock_id[i]);
                assert_int_equal(read32(access_keys, &keys, 0xFE0 + 4 * i), i == 0 ? 0x61 : clock_id[i]);
        }
}

static void keeps_the_time_that_the_guest_sets(void **state) {
        Pl031 clock;

        begin_clock(&clock);
        assert_int_equal(read32(access_clock, &clock, 0), 1000000);
        write32(access_clock, &clock, 8, 5000);
        host_second += 10;
        assert_int_equal(read32(access_clock, &clock, 0), 5010);
        pl031_reset(&clock);
        assert_int_equal(read32(access_clock, &clock, 0), 5010);
}

static void rings_its_alarm_once_it_is_due_and_enabled(void **state) {
        Pl031 clock;

        begin_clock(&clock);
        write32(access_clock, &clock, 4, 1000010);
        assert_int_equal(armed, 0);
        write32(access_clock, &clock, 0x10, 1);
        assert_int_equal(armed, 1000010);
        /* The host's clock was set back: it is not due yet. */
        host_second = 1000005;
        pl031_expired(&clock);
        assert_false(level);
        assert_int_equal(armed, 1000010);
        host_second = 1000010;
        pl031_expired(&clock);
        assert_true(level);
        assert_int_equal(read32(access_clock, &clock, 0x18), 1);
        write32(access_clock, &clock, 0x10, 0);
        assert_false(level);
        assert_int_equal(read32(access_clock, &clock, 0x14), 1);
        write32(access_clock, &clock, 0x1C, 1);
        assert_int_equal(read32(access_clock, &clock, 0x14), 0);
        /* One that has passed is not awaited. */
        write32(access_clock, &clock, 0x10, 1);
        assert_int_equal(armed, 0);
}

static void takes_its_alarm_over_a_state(void **state) {
        Pl031 clock, other;

        begin_clock(&clock);
        write32(access_clock, &clock, 8, 50);
        write32(access_clock, &clock, 4, 60);
        write32(access_clock, &clock, 0x10, 1);
        begin_clock(&other);
        PASS_STATE(pl031, &clock, &other);
        assert_int_equal(armed, 1000010);
        assert_int_equal(read32(access_clock, &other, 0), 50);
        host_second = 1000010;
        pl031_expired(&other);
        n_changes = 0;
        PASS_STATE(pl031, &other, &clock);
        assert_true(level);
        assert_int_equal(n_changes, 1);
}

/* --- keys --- */

static void raises_an_interrupt_at_either_edge_of_a_key(void **state) {
        Pl061 keys, other;

        level = false;
        pl061_init(&keys, set_irq, NULL);
        pl061_init(&other, set_irq, NULL);
        /* As Linux asks for both edges. */
        write32(access_keys, &keys, 0x408, 8);
        pl061_set_pin(&keys, 3, true);
        assert_false(level);
        assert_int_equal(read32(access_keys, &keys, 0x414), 8);
        write32(access_keys, &keys, 0x410, 8);
        assert_true(level);
        assert_int_equal(read32(access_keys, &keys, 8 << 2), 8);
        assert_int_equal(read32(access_keys, &keys, 4 << 2), 0);
        PASS_STATE(pl061, &keys, &other);
        assert_true(level);
        assert_int_equal(read32(access_keys, &other, 0x418), 8);
        write32(access_keys, &keys, 0x41C, 8);
        assert_false(level);
        pl061_set_pin(&keys, 3, true); /* no change */
        assert_false(level);
        pl061_set_pin(&keys, 3, false);
        assert_true(level);
        assert_int_equal(read32(access_keys, &keys, 8 << 2), 0);
        pl061_reset(&keys);
        assert_false(level);
}

/* As Linux' driver does it, byte by byte; and it has seen a key only when it has looked. */
static void is_driven_by_bytes(void **state) {
        uint8_t bit = 1 << 3, value = 0xff, word[2] = { 0xff, 0xff };
        Pl061 keys;

        pl061_init(&keys, set_irq, NULL);
        pl061_access(&keys, 0x408, &bit, 1, true); /* both edges */
        pl061_access(&keys, 0x410, &bit, 1, true); /* unmasked */
        pl061_access(&keys, 0x410, &value, 1, false);
        assert_int_equal(value, bit);
        assert_false(pl061_is_unseen(&keys));
        pl061_set_pin(&keys, 3, true);
        assert_true(level);
        assert_true(pl061_is_unseen(&keys));
        pl061_access(&keys, 0x418, word, 2, false);
        assert_int_equal(load_le16(word), bit);
        pl061_access(&keys, 4 << 2, &value, 1, false); /* another pin */
        assert_true(pl061_is_unseen(&keys));
        pl061_access(&keys, (uint64_t) bit << 2, &value, 1, false);
        assert_int_equal(value, bit);
        assert_false(pl061_is_unseen(&keys));
        pl061_access(&keys, 0x41C, &bit, 1, true);
        assert_false(level);
        pl061_set_pin(&keys, 3, false);
        assert_true(level);
        pl061_set_pin(&keys, 3, true);
        pl061_set_pin(&keys, 3, false);
        assert_false(pl061_is_unseen(&keys));
}

static void follows_the_level_where_asked_to(void **state) {
        Pl061 keys;

        level = false;
        pl061_init(&keys, set_irq, NULL);
        write32(access_keys, &keys, 0x404, 8);
        write32(access_keys, &keys, 0x40C, 8);
        write32(access_keys, &keys, 0x410, 8);
        pl061_set_pin(&keys, 3, true);
        assert_true(level);
        write32(access_keys, &keys, 0x41C, 8); /* it is still there */
        assert_true(level);
        pl061_set_pin(&keys, 3, false);
        assert_false(level);
}

static void shows_what_is_written_to_outputs_only(void **state) {
        Pl061 keys;

        pl061_init(&keys, set_irq, NULL);
        write32(access_keys, &keys, 0x400, 0x0f);
        write32(access_keys, &keys, 0x3c << 2, 0xff);
        assert_int_equal(read32(access_keys, &keys, 0xff << 2), 0x0c);
}

/* --- firmware's files --- */

static void refuses_strings_that_the_guest_would_not_find(void **state) {
        static const char *const no_credential[] = { "something else", NULL },
                                *const no_value[] = { "io.systemd.credential:name", NULL },
                                *const long_name[] = { "io.systemd.credential:a.name.of.twenty.nine.letters=x", NULL },
                                *const no_base64[] = { "io.systemd.credential.binary:name=!!!!", NULL };
        static const struct {
                const char *const *strings;
                int error;
                const char *why;
        } cases[] = {
                { no_credential, -EOPNOTSUPP, "something else" },
                { no_value, -EOPNOTSUPP, "no SMBIOS" },
                { long_name, -ENAMETOOLONG, "a.name.of.twenty" },
                { no_base64, -EINVAL, "no Base64" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *message = NULL;
                FwCfg *f = NULL;

                assert_int_equal(fw_cfg_new(cases[i].strings, &f, &message), cases[i].error);
                assert_null(f);
                assert_non_null(strstr(message, cases[i].why));
        }
}

static void select_key(FwCfg *f, uint16_t key) {
        uint16_t swapped = __builtin_bswap16(key);

        fw_cfg_access(f, 8, &swapped, sizeof(swapped), true);
}

static void shows_credentials_as_files(void **state) {
        static const char *const strings[] = {
                "io.systemd.credential:vmm.notify_socket=vsock-stream:2:9999", "io.systemd.credential.binary:raw=AP8Q", NULL,
        };
        uint8_t data[4 + 2 * 64 + 8];
        FwCfg *f = NULL, *other = NULL;

        assert_int_equal(fw_cfg_new(strings, &f, NULL), 0);
        for (size_t i = 0; i < 5; i++)
                fw_cfg_access(f, 0, data + i, 1, false);
        assert_memory_equal(data, "QEMU\0", 5);
        select_key(f, 1);
        fw_cfg_access(f, 0, data, 4, false);
        assert_int_equal(load_le32(data), 1);
        select_key(f, 0x19);
        for (size_t i = 0; i < sizeof(data); i++)
                fw_cfg_access(f, 0, data + i, 1, false);
        assert_memory_equal(data, "\0\0\0\2" "\0\0\0\x13" "\0\x20" "\0\0" "opt/io.systemd.credentials/vmm.notify_socket\0", 4 + 8 + 45);
        assert_memory_equal(data + 4 + 64, "\0\0\0\3" "\0\x21" "\0\0" "opt/io.systemd.credentials/raw\0", 8 + 31);
        assert_int_equal(load_le64(data + sizeof(data) - 8), 0);
        select_key(f, 0x21);
        fw_cfg_access(f, 0, data, 1, false);
        assert_int_equal(data[0], 0);

        /* What was begun goes on. */
        assert_int_equal(fw_cfg_new(strings, &other, NULL), 0);
        PASS_STATE(fw_cfg, f, other);
        fw_cfg_access(other, 0, data, 8, false);
        assert_memory_equal(data, "\xff\x10\0\0\0\0\0\0", 8);
        fw_cfg_reset(other);
        fw_cfg_access(other, 0, data, 4, false);
        assert_memory_equal(data, "QEMU", 4);
        (void) fw_cfg_free(f);
        (void) fw_cfg_free(other);
}

static void has_nothing_under_other_keys(void **state) {
        uint8_t data[8];
        FwCfg *f = NULL;

        assert_int_equal(fw_cfg_new(NULL, &f, NULL), 0);
        for (unsigned key = 2; key <= UINT16_MAX; key++) {
                uint32_t expected = 0;

                select_key(f, (uint16_t) key);
                fw_cfg_access(f, 0, data, 4, false);
                assert_memory_equal(data, &expected, 4);
        }
        memset(data, 0xff, sizeof(data));
        fw_cfg_access(f, 8, data, 8, false);
        assert_int_equal(load_le64(data), 0);
        (void) fw_cfg_free(f);
}

/* --- last words --- */

static void count_panic(void *userdata) {
        ++*(unsigned *) userdata;
}

/* As the kernel's driver does it: an empty buffer, its signature, then a record. */
static void write_record(Ramoops *p, const char *text) {
        uint8_t word[4] = {};
        size_t n = strlen(text);

        ramoops_access(p, 4, word, 4, true);
        ramoops_access(p, 8, word, 4, true);
        for (size_t i = 0; i < n; i++) {
                store_le32(word, (uint32_t) i + 1);
                ramoops_access(p, 8, word, 4, true);
                ramoops_access(p, 12 + i, (void *) (uintptr_t) (text + i), 1, true);
        }
}

static void ignores_last_words_beyond_their_region(void **state) {
        uint64_t word = UINT64_MAX;
        unsigned n = 0;
        Ramoops *p = NULL;

        assert_int_equal(ramoops_new(count_panic, &n, &p), 0);
        ramoops_access(p, ARM64_RAMOOPS_SIZE - 4, &word, 8, true);
        ramoops_access(p, ARM64_RAMOOPS_SIZE, &word, 1, true);
        ramoops_access(p, UINT64_MAX - 3, &word, 8, true);
        ramoops_access(p, ARM64_RAMOOPS_SIZE - 4, &word, 8, false);
        assert_int_equal(word, 0);
        ramoops_access(p, ARM64_RAMOOPS_SIZE - 8, &word, 8, false);
        assert_int_equal(word, 0);
        assert_int_equal(n, 0);
        (void) ramoops_free(p);
}

static void takes_no_broken_state_of_last_words(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        unsigned n = 0;
        Ramoops *p = NULL;
        const void *data;
        size_t size;

        assert_int_equal(ramoops_new(count_panic, &n, &p), 0);
        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "arm64-ramoops", 0, 1);
        state_put_blob(w, "short", 5);
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_true(ramoops_load(p, r, &message) < 0);
        assert_non_null(message);
        (void) ramoops_free(p);
}

static void tells_of_each_record_once_and_keeps_it(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        unsigned n = 0, n_other = 0;
        Ramoops *p = NULL, *other = NULL;
        const void *data;
        char text[16] = {};
        size_t size;

        assert_int_equal(ramoops_new(count_panic, &n, &p), 0);
        assert_int_equal(ramoops_new(count_panic, &n_other, &other), 0);
        write_record(p, "Panic#1");
        assert_int_equal(n, 1);
        write_record(p, "Panic#2");
        assert_int_equal(n, 2);

        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(ramoops_save(p, w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(ramoops_load(other, r, NULL), 0);
        ramoops_access(other, 12, text, 7, false);
        assert_string_equal(text, "Panic#2");
        assert_int_equal(n_other, 0);
        (void) ramoops_free(p);
        (void) ramoops_free(other);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(ignores_accesses_that_no_register_has),
                cmocka_unit_test(refuses_strings_that_the_guest_would_not_find),
                cmocka_unit_test(has_nothing_under_other_keys),
                cmocka_unit_test(ignores_last_words_beyond_their_region),
                cmocka_unit_test(takes_no_broken_state_of_last_words),
                cmocka_unit_test(tells_of_each_record_once_and_keeps_it),
                cmocka_unit_test(identifies_itself_as_a_primecell),
                cmocka_unit_test(keeps_the_time_that_the_guest_sets),
                cmocka_unit_test(rings_its_alarm_once_it_is_due_and_enabled),
                cmocka_unit_test(takes_its_alarm_over_a_state),
                cmocka_unit_test(raises_an_interrupt_at_either_edge_of_a_key),
                cmocka_unit_test(is_driven_by_bytes),
                cmocka_unit_test(follows_the_level_where_asked_to),
                cmocka_unit_test(shows_what_is_written_to_outputs_only),
                cmocka_unit_test(shows_credentials_as_files),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
