/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "guest-memory.h"

#define LOW MIB(1)
#define HIGH_ADDRESS GIB(4)

/* Two regions of one file with a gap between them, as a PC has. */
static GuestMemory make(void) {
        GuestMemory memory = {};
        int fd = guest_memory_create_fd(2 * LOW, 0);

        assert_true(fd >= 0);
        assert_int_equal(guest_memory_add(&memory, fcntl(fd, F_DUPFD_CLOEXEC, 3), LOW, HIGH_ADDRESS, LOW, 0), 0);
        assert_int_equal(guest_memory_add(&memory, fd, 0, 0, LOW, 0), 0);
        return memory;
}

static int make_file(const char *text, size_t size) {
        int fd = memfd_create("file", MFD_CLOEXEC);

        assert_int_equal(write_full(fd, text, size), 0);
        return fd;
}

static void refuses_regions_that_overlap_wrap_or_lack_their_file(void **state) {
        GuestMemory memory = make();

        assert_int_equal(guest_memory_add(&memory, guest_memory_create_fd(LOW, 0), 0, LOW - 4096, LOW, 0), -EINVAL);
        assert_int_equal(guest_memory_add(&memory, guest_memory_create_fd(LOW, 0), 0, UINT64_MAX - 4096, LOW, 0), -EINVAL);
        assert_int_equal(guest_memory_add(&memory, guest_memory_create_fd(LOW, 0), 0, GIB(8), 0, 0), -EINVAL);
        assert_int_equal(guest_memory_add(&memory, guest_memory_create_fd(LOW, 0), 4096, GIB(8), LOW, 0), -ERANGE);
        assert_int_equal(guest_memory_add(&memory, guest_memory_create_fd(LOW, 0), UINT64_MAX - 4096, GIB(8), LOW, 0), -EINVAL);
        assert_int_equal(memory.n_regions, 2);
        guest_memory_done(&memory);
}

static void gives_no_pointer_for_what_is_not_all_memory(void **state) {
        GuestMemory memory = make();

        assert_null(guest_memory_at(&memory, 0, 0));
        assert_null(guest_memory_at(&memory, LOW - 1, 2));
        assert_null(guest_memory_at(&memory, LOW, 1));
        assert_null(guest_memory_at(&memory, HIGH_ADDRESS - 1, 2));
        assert_null(guest_memory_at(&memory, HIGH_ADDRESS, UINT64_MAX));
        assert_null(guest_memory_at(&memory, UINT64_MAX, 1));
        /* Behind whichever is lower the other one may follow at once. */
        assert_null(guest_memory_at_user(&memory, MIN(memory.regions[0].user_address, memory.regions[1].user_address) - 1, 1));
        guest_memory_done(&memory);
}

static void a_file_beyond_memory_or_its_end_is_refused(void **state) {
        GuestMemory memory = make();
        _cleanup_close_ int fd = make_file("0123456789", 10);

        assert_int_equal(guest_memory_read_file(&memory, LOW - 4, 10, fd, 0), -EFAULT);
        assert_int_equal(guest_memory_read_file(&memory, GIB(1), 1, fd, 0), -EFAULT);
        assert_int_equal(guest_memory_read_file(&memory, 0, 11, fd, 0), -ENODATA);
        assert_int_equal(guest_memory_read_file(&memory, 0, 5, fd, 8), -ENODATA);
        guest_memory_done(&memory);
}

static void regions_are_sorted_and_found_by_both_addresses(void **state) {
        GuestMemory memory = make();
        uint8_t *p = guest_memory_at(&memory, HIGH_ADDRESS + 8, 8);
        void *span;

        assert_int_equal(memory.regions[0].guest_address, 0);
        assert_ptr_equal(p, memory.regions[1].host + 8);
        assert_ptr_equal(guest_memory_at_user(&memory, (uint64_t) (uintptr_t) p, 8), p);
        assert_int_equal(guest_memory_span(&memory, LOW - 16, 64, &span), 16);
        assert_int_equal(guest_memory_size(&memory), 2 * LOW);
        guest_memory_done(&memory);
}

static void a_region_is_removed_by_its_whole_description(void **state) {
        GuestMemory memory = make();
        uint64_t user = memory.regions[0].user_address;

        assert_int_equal(guest_memory_remove(&memory, 0, LOW - 1, user), -EINVAL);
        assert_int_equal(guest_memory_remove(&memory, 1, LOW, user), -EINVAL);
        assert_int_equal(guest_memory_remove(&memory, 0, LOW, user + 1), -EINVAL);
        assert_int_equal(guest_memory_remove(&memory, 0, UINT64_MAX, user), -EINVAL);
        assert_int_equal(guest_memory_remove(&memory, 1, UINT64_MAX, user), -EINVAL);
        assert_int_equal(guest_memory_remove(&memory, GIB(1), LOW, user), -ENOENT);
        assert_int_equal(guest_memory_remove(&memory, 0, LOW, user), 0);
        assert_int_equal(guest_memory_remove(&memory, 0, LOW, user), -ENOENT);
        assert_null(guest_memory_at(&memory, 0, 1));
        assert_non_null(guest_memory_at(&memory, HIGH_ADDRESS, LOW));
        assert_int_equal(guest_memory_size(&memory), LOW);
        guest_memory_done(&memory);
}

static void a_file_lands_where_it_was_to_and_nowhere_else(void **state) {
        GuestMemory memory = make();
        _cleanup_close_ int fd = make_file("0123456789", 10);
        char *p = guest_memory_at(&memory, HIGH_ADDRESS + 4093, 16);

        memset(p, 'x', 16);
        /* Across a page boundary, at odd places. */
        assert_int_equal(guest_memory_read_file(&memory, HIGH_ADDRESS + 4094, 7, fd, 2), 0);
        assert_memory_equal(p, "x2345678xxxxxxxx", 16);
        assert_int_equal(guest_memory_read_file(&memory, HIGH_ADDRESS + LOW - 3, 3, fd, 7), 0);
        assert_memory_equal(guest_memory_at(&memory, HIGH_ADDRESS + LOW - 3, 3), "789", 3);
        guest_memory_done(&memory);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_regions_that_overlap_wrap_or_lack_their_file),
                cmocka_unit_test(gives_no_pointer_for_what_is_not_all_memory),
                cmocka_unit_test(a_file_beyond_memory_or_its_end_is_refused),
                cmocka_unit_test(regions_are_sorted_and_found_by_both_addresses),
                cmocka_unit_test(a_region_is_removed_by_its_whole_description),
                cmocka_unit_test(a_file_lands_where_it_was_to_and_nowhere_else),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
