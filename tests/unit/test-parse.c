/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "key-name.h"
#include "parse.h"

#define UNTOUCHED UINT64_C(0x5eed)

typedef int (*Parser)(const char *s, uint64_t *ret);

static void check(Parser parser, const char *text, int result, uint64_t value) {
        uint64_t got = UNTOUCHED;
        int r = parser(text, &got);

        if (r != result || got != (result < 0 ? UNTOUCHED : value))
                fail_msg("'%s' is %i, %" PRIu64 "; not %i, %" PRIu64, text, r, got, result, value);
}

static void knows_keys_by_their_names(void **state) {
        static const char *const wrong[] = { "", " ", "A", "KEY_A", "ctrl+a", "249", "0x1e", "195", "-1", "99999999999999999999" };
        static const struct { const char *name; unsigned code; } keys[] = {
                { "esc", 1 }, { "1", 2 }, { "0", 11 }, { "10", 10 }, { "ctrl", 29 }, { "leftctrl", 29 }, { "a", 30 }, { "f12", 88 }, { "del", 111 },
                { "116", 116 }, { "power", 116 }, { "micmute", 248 },
        };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                if (key_code(wrong[i]) != 0)
                        fail_msg("'%s' is %u", wrong[i], key_code(wrong[i]));
        for (size_t i = 0; i < ELEMENTSOF(keys); i++)
                assert_int_equal(key_code(keys[i].name), keys[i].code);
        assert_null(key_name(0));
        assert_null(key_name(KEY_CODE_END));
        assert_null(key_name(UINT32_MAX));
        for (unsigned code = 1; code < KEY_CODE_END; code++)
                if (key_name(code) && strlen(key_name(code)) > 1)
                        assert_int_equal(key_code(key_name(code)), code);
}

static void refuses_what_is_no_number(void **state) {
        static const char *const wrong[] = { "", " ", "x", "-1", "+1", " 1", "1 ", "0x10", "1.5", "1,5", "1e3", "\xd9\xa1" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                check(parse_unsigned, wrong[i], -EINVAL, 0);
                check(parse_size, wrong[i], -EINVAL, 0);
        }
        check(parse_unsigned, "1K", -EINVAL, 0);
        check(parse_unsigned, "18446744073709551616", -ERANGE, 0);
        check(parse_unsigned, "99999999999999999999999999999999", -ERANGE, 0);
        check(parse_unsigned, "18446744073709551616x", -EINVAL, 0);
}

static void refuses_sizes_with_other_suffixes_or_beyond_64_bits(void **state) {
        static const char *const wrong[] = { "K", "1k", "1KB", "1KiB", "1P", "1E", "1MM", "1M1", "M1", "1 M" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                check(parse_size, wrong[i], -EINVAL, 0);
        check(parse_size, "16777216T", -ERANGE, 0);
        check(parse_size, "18446744073709551616", -ERANGE, 0);
        check(parse_size, "18446744073709551615K", -ERANGE, 0);
}

static void refuses_times_without_numbers_or_with_unknown_units(void **state) {
        static const char *const wrong[] = { "", " ", "s", "1x", "1.5s", "-1s", "1s -1s", "1S", "1 fortnight", "1s,1s" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                check(parse_time, wrong[i], -EINVAL, 0);
        check(parse_time, "18446744073709551615s", -ERANGE, 0);
        check(parse_time, "18446744073709551615us 1us", -ERANGE, 0);
}

static void takes_numbers_and_sizes(void **state) {
        check(parse_unsigned, "0", 0, 0);
        check(parse_unsigned, "007", 0, 7);
        check(parse_unsigned, "18446744073709551615", 0, UINT64_MAX);
        check(parse_size, "4096", 0, 4096);
        check(parse_size, "1K", 0, 1024);
        check(parse_size, "256M", 0, MIB(256));
        check(parse_size, "3G", 0, GIB(3));
        check(parse_size, "16T", 0, GIB(1024) * 16);
        check(parse_size, "0T", 0, 0);
        check(parse_size, "16777215T", 0, UINT64_C(16777215) << 40);
}

static void takes_times(void **state) {
        check(parse_time, "90", 0, 90 * USEC_PER_SEC);
        check(parse_time, "500ms", 0, 500 * USEC_PER_MSEC);
        check(parse_time, " 1min 30s ", 0, 90 * USEC_PER_SEC);
        check(parse_time, "1h2m3s4ms5us", 0, 3723 * USEC_PER_SEC + 4005);
        check(parse_time, "2 days", 0, 2 * 86400 * USEC_PER_SEC);
        check(parse_time, "0", 0, 0);
}

static void writes_sizes_as_it_reads_them(void **state) {
        static const struct {
                uint64_t size;
                const char *text;
        } sizes[] = {
                { 0, "0" }, { 1, "1" }, { 1023, "1023" }, { 1024, "1K" }, { 1536, "1536" }, { MIB(256), "256M" }, { GIB(1), "1G" },
                { GIB(1024), "1T" }, { GIB(1024) * 1024, "1024T" }, { UINT64_MAX, "18446744073709551615" },
        };

        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                char text[SIZE_TEXT_MAX];

                size_to_text(sizes[i].size, text);
                assert_string_equal(text, sizes[i].text);
                check(parse_size, text, 0, sizes[i].size);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(knows_keys_by_their_names),
                cmocka_unit_test(refuses_what_is_no_number),
                cmocka_unit_test(refuses_sizes_with_other_suffixes_or_beyond_64_bits),
                cmocka_unit_test(refuses_times_without_numbers_or_with_unknown_units),
                cmocka_unit_test(takes_numbers_and_sizes),
                cmocka_unit_test(takes_times),
                cmocka_unit_test(writes_sizes_as_it_reads_them),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
