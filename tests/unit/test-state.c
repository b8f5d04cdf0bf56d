/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "state.h"

#define HEADER_SIZE 24
#define SECTION_SIZE 48

/* Two sections, "a".0 with 15 bytes of fields and a blob of 3, and "b".7 without anything. The caller frees. */
static uint8_t *make_state(size_t *ret_size) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        const void *data;
        uint8_t *copy;

        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "a", 0, 2);
        state_put_u8(w, 1);
        state_put_u16(w, 0x0203);
        state_put_u32(w, 0x04050607);
        state_put_u64(w, 0x08090A0B0C0D0E0F);
        state_put_blob(w, "xyz", 3);
        assert_int_equal(state_end(w), 0);
        state_begin(w, "b", 7, 1);
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, ret_size), 0);
        copy = malloc(*ret_size);
        assert_non_null(copy);
        memcpy(copy, data, *ret_size);
        return copy;
}

static void expect_refusal(const uint8_t *data, size_t size, int error, const char *text) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;

        assert_int_equal(state_reader_new(data, size, &r, &message), error);
        assert_null(r);
        assert_non_null(message);
        assert_string_equal(message, text);
}

static void refuses_what_is_no_state(void **state) {
        size_t size;
        _cleanup_free_ uint8_t *data = make_state(&size);

        assert_int_equal(size, HEADER_SIZE + 2 * SECTION_SIZE + 22);
        expect_refusal(data, 0, -EBADMSG, "State has 0 bytes, expected at least the 24 of its header.");
        expect_refusal(data, 23, -EBADMSG, "State has 23 bytes, expected at least the 24 of its header.");
        expect_refusal(data, size - 1, -EBADMSG, "State claims a size of 142 bytes, but has 141.");
        data[8] = 2;
        expect_refusal(data, size, -EPROTONOSUPPORT, "State has format 2, expected 1.");
        data[0] = 'X';
        expect_refusal(data, size, -EBADMSG, "State does not begin with \"VMMSTATE\".");
}

static void refuses_sections_out_of_bounds(void **state) {
        size_t size;
        _cleanup_free_ uint8_t *data = make_state(&size);

        store_le32(data + 12, 3);
        expect_refusal(data, size, -EBADMSG, "State claims 3 sections, more than its 142 bytes can hold.");
        store_le32(data + 12, UINT32_MAX);
        expect_refusal(data, size, -EBADMSG, "State claims 4294967295 sections, more than its 142 bytes can hold.");
        store_le32(data + 12, 1);
        expect_refusal(data, size, -EBADMSG, "State has 48 bytes behind its last section.");
        store_le32(data + 12, 2);
        store_le64(data + HEADER_SIZE + 40, UINT64_MAX);
        expect_refusal(data, size, -EBADMSG, "State section a.0 claims 18446744073709551615 bytes, expected at most the 70 that follow.");
        store_le64(data + HEADER_SIZE + 40, 23);
        expect_refusal(data, size, -EBADMSG, "State ends within the header of a section, at offset 95.");
}

static void refuses_sections_without_name_or_version_or_twice(void **state) {
        size_t size;
        _cleanup_free_ uint8_t *data = make_state(&size);
        uint8_t *a = data + HEADER_SIZE, *b = data + HEADER_SIZE + SECTION_SIZE + 22;

        b[31] = 'x';
        expect_refusal(data, size, -EBADMSG, "State has a section without a proper name at offset 94.");
        b[31] = 0;
        store_le32(a + 36, 0);
        expect_refusal(data, size, -EBADMSG, "State section a.0 has version 0.");
        store_le32(a + 36, 1);
        b[0] = 'a';
        store_le32(b + 32, 0);
        expect_refusal(data, size, -EBADMSG, "State has two sections a.0.");
        a[0] = b[0] = 0;
        expect_refusal(data, size, -EBADMSG, "State has a section without a proper name at offset 24.");
}

static void refuses_reading_too_much_or_too_little(void **state) {
        size_t size, length;
        _cleanup_free_ uint8_t *data = make_state(&size);
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        char blob[4];

        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(state_leave(r, NULL), -EINVAL);
        assert_int_equal(state_enter(r, "c", 0, 9), -ENOENT);
        assert_int_equal(state_enter(r, "a", 1, 9), -ENOENT);
        assert_int_equal(state_enter(r, "a", 0, 1), -EPROTONOSUPPORT);

        assert_int_equal(state_enter(r, "a", 0, 2), 2);
        assert_int_equal(state_enter(r, "b", 7, 1), -EINVAL); /* one at a time */
        assert_int_equal(state_get_u8(r), 1);
        assert_int_equal(state_leave(r, &message), -EBADMSG);
        assert_string_equal(message, "State section a.0 (version 2) has 22 bytes, expected 1.");

        assert_int_equal(state_enter(r, "b", 7, 1), 1);
        assert_int_equal(state_get_u64(r), 0);
        assert_int_equal(state_get_u8(r), 0);
        assert_int_equal(state_leave(r, &message), -EBADMSG);
        assert_string_equal(message,
                "State section b.7 (version 1, 0 bytes) does not hold the fields that were expected, from offset 0 on.");

        /* A blob of another size, and one that is too large. */
        assert_int_equal(state_enter(r, "a", 0, 2), 2);
        (void) state_get_u64(r);
        (void) state_get_u32(r);
        (void) state_get_u16(r);
        (void) state_get_u8(r);
        state_get_blob(r, blob, sizeof(blob));
        assert_int_equal(state_leave(r, NULL), -EBADMSG);
        assert_int_equal(state_enter(r, "a", 0, 2), 2);
        assert_null(state_get_blob_view(r, 3, &length));
        assert_int_equal(length, 0);
        assert_int_equal(state_leave(r, NULL), -EBADMSG);
}

static void refuses_wrong_use_of_the_writer(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        const void *data;
        size_t size;

        assert_int_equal(state_writer_new(&w), 0);
        assert_int_equal(state_end(w), -EINVAL);
        state_writer_free(w);

        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "a", 0, 1);
        state_begin(w, "b", 0, 1);
        assert_int_equal(state_end(w), -EINVAL);
        assert_int_equal(state_writer_finish(w, &data, &size), -EINVAL);
        state_writer_free(w);

        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "a name of more than 31 characters", 0, 1);
        assert_int_equal(state_end(w), -EINVAL);
        state_writer_free(w);

        assert_int_equal(state_writer_new(&w), 0);
        state_begin(w, "a", 0, 1);
        assert_int_equal(state_writer_finish(w, &data, &size), -EINVAL);
}

static void names_a_section_that_nobody_took(void **state) {
        size_t size;
        _cleanup_free_ uint8_t *data = make_state(&size);
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;

        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_true(state_enter(r, "a", 0, 2) > 0);
        (void) state_leave(r, NULL);
        assert_int_equal(state_reader_finish(r, &message), -EBADMSG);
        assert_string_equal(message, "State section b.7 belongs to nothing here.");
        assert_int_equal(state_enter(r, "b", 7, 1), 1);
        assert_int_equal(state_leave(r, NULL), 0);
        assert_int_equal(state_reader_finish(r, NULL), 0);
}

static void reads_what_was_written(void **state) {
        size_t size;
        _cleanup_free_ uint8_t *data = make_state(&size);
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        char blob[3];

        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(state_enter(r, "a", 0, 5), 2);
        assert_int_equal(state_get_u8(r), 1);
        assert_int_equal(state_get_u16(r), 0x0203);
        assert_int_equal(state_get_u32(r), 0x04050607);
        assert_true(state_get_u64(r) == 0x08090A0B0C0D0E0F);
        state_get_blob(r, blob, sizeof(blob));
        assert_memory_equal(blob, "xyz", 3);
        assert_int_equal(state_leave(r, NULL), 0);
}

static void finds_each_of_many_sections(void **state) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        const void *data;
        size_t size;

        assert_int_equal(state_writer_new(&w), 0);
        for (uint32_t i = 0; i < 3000; i++) {
                state_begin(w, i % 2 ? "vcpu" : "a-device", i * 7919 % 3000, 1);
                state_put_u32(w, i);
                assert_int_equal(state_end(w), 0);
        }
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        for (uint32_t i = 0; i < 3000; i++) {
                assert_int_equal(state_enter(r, i % 2 ? "vcpu" : "a-device", i * 7919 % 3000, 1), 1);
                assert_int_equal(state_get_u32(r), i);
                assert_int_equal(state_leave(r, NULL), 0);
        }
        assert_int_equal(state_reader_finish(r, NULL), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_state),
                cmocka_unit_test(refuses_sections_out_of_bounds),
                cmocka_unit_test(refuses_sections_without_name_or_version_or_twice),
                cmocka_unit_test(refuses_reading_too_much_or_too_little),
                cmocka_unit_test(refuses_wrong_use_of_the_writer),
                cmocka_unit_test(names_a_section_that_nobody_took),
                cmocka_unit_test(reads_what_was_written),
                cmocka_unit_test(finds_each_of_many_sections),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
