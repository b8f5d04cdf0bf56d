/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mac-address.h"
#include "tap.h"

static void refuses_what_is_no_address_of_a_station(void **state) {
        static const char *const wrong[] = {
                "", ":", "52", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:", "52:54:00:12:34:56:78", "52-54-00-12-34-56",
                "525400123456", "52:54:00:12:34:5g", " 2:54:00:12:34:56", "0x:54:00:12:34:56", "52:54:00:12:34:56 ",
                "00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff",
        };
        uint8_t address[MAC_ADDRESS_SIZE] = { 9, 9, 9, 9, 9, 9 };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                assert_false(mac_address_is_valid(wrong[i]));
                assert_int_equal(mac_address_parse(wrong[i], address), -EINVAL);
        }
        assert_memory_equal(address, ((uint8_t[]) { 9, 9, 9, 9, 9, 9 }), 6);
}

static void refuses_what_cannot_name_an_interface(void **state) {
        static const char *const wrong[] = { "", ".", "..", "a/b", "a b", "a:b", "a%d", "sixteenletters00", "a\nb", "\xc3\xa4" };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                assert_false(tap_name_is_valid(wrong[i]));
        assert_true(tap_name_is_valid("vm-demo.0"));
        assert_true(tap_name_is_valid("fifteenletters0"));
}

static void reads_what_it_writes(void **state) {
        uint8_t address[MAC_ADDRESS_SIZE];
        char text[MAC_ADDRESS_TEXT_MAX];

        assert_int_equal(mac_address_parse("52:54:00:aB:Cd:09", address), 0);
        mac_address_format(address, text);
        assert_string_equal(text, "52:54:00:ab:cd:09");
}

static void derives_addresses_that_stay_and_differ(void **state) {
        static const char *const names[][2] = {
                { "demo", "net" }, { "demo", "net1" }, { "demo1", "net" }, { "demon", "et" }, { "d", "emonet" }, { "demo", "" },
        };
        uint8_t addresses[ELEMENTSOF(names)][MAC_ADDRESS_SIZE], again[MAC_ADDRESS_SIZE];

        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                mac_address_derive(names[i][0], names[i][1], addresses[i]);
                mac_address_derive(names[i][0], names[i][1], again);
                assert_memory_equal(addresses[i], again, MAC_ADDRESS_SIZE);
                assert_int_equal(addresses[i][0] & 3, 2);
                for (size_t k = 0; k < i; k++)
                        assert_memory_not_equal(addresses[i], addresses[k], MAC_ADDRESS_SIZE);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_address_of_a_station),
                cmocka_unit_test(refuses_what_cannot_name_an_interface),
                cmocka_unit_test(reads_what_it_writes),
                cmocka_unit_test(derives_addresses_that_stay_and_differ),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
