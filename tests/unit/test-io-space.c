/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>

#include "io-space.h"

typedef struct Seen {
        uint64_t offset;
        unsigned vcpu, size, n;
        bool is_write;
} Seen;

static void on_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Seen *seen = userdata;

        *seen = (Seen) { .offset = offset, .vcpu = vcpu, .size = size, .n = seen->n + 1, .is_write = is_write };
        if (!is_write)
                memset(data, 0, size);
}

static void refuses_ranges_that_overlap_or_wrap(void **state) {
        IoSpace space;
        Seen seen = {};

        assert_int_equal(io_space_init(&space), 0);
        assert_int_equal(io_space_add(&space, 0x1000, 0, on_access, &seen), -EINVAL);
        assert_int_equal(io_space_add(&space, UINT64_MAX, 2, on_access, &seen), -EINVAL);
        assert_int_equal(io_space_add(&space, 1, UINT64_MAX, on_access, &seen), 0);
        assert_int_equal(io_space_remove(&space, 1), 0);
        assert_int_equal(io_space_add(&space, 0x1000, 0x100, on_access, &seen), 0);
        assert_int_equal(io_space_add(&space, 0x1000, 0x100, on_access, &seen), -EEXIST);
        assert_int_equal(io_space_add(&space, 0x0FFF, 2, on_access, &seen), -EEXIST);
        assert_int_equal(io_space_add(&space, 0x10FF, 1, on_access, &seen), -EEXIST);
        assert_int_equal(io_space_add(&space, 0, UINT64_MAX, on_access, &seen), -EEXIST);
        assert_int_equal(io_space_add(&space, 0x0FFF, 1, on_access, &seen), 0);
        assert_int_equal(io_space_add(&space, 0x1100, 1, on_access, &seen), 0);
        assert_int_equal(io_space_add(&space, UINT64_MAX, 1, on_access, &seen), 0);
        assert_int_equal(io_space_remove(&space, 0x1001), -ENOENT);
        io_space_done(&space);
}

static void an_access_goes_to_one_range_or_nowhere(void **state) {
        Seen low = {}, high = {};
        IoSpace space;
        uint64_t data;

        assert_int_equal(io_space_init(&space), 0);
        assert_int_equal(io_space_add(&space, 0x2000, 0x10, on_access, &high), 0);
        assert_int_equal(io_space_add(&space, 0x1000, 0x10, on_access, &low), 0);

        io_space_access(&space, 3, 0x100C, &data, 4, true);
        assert_true(low.n == 1 && low.offset == 0xC && low.size == 4 && low.vcpu == 3 && low.is_write);
        /* Across the end, in a hole, beyond all: ones for a read, nothing for a write. */
        data = 0;
        io_space_access(&space, 0, 0x100D, &data, 4, false);
        assert_int_equal(data, 0xFFFFFFFF);
        io_space_access(&space, 0, 0x1800, &data, 8, false);
        assert_true(data == UINT64_MAX);
        io_space_access(&space, 0, UINT64_MAX, &data, 8, true);
        io_space_access(&space, 0, 0xFFE, &data, 4, true);
        assert_int_equal(low.n + high.n, 1);

        data = UINT64_MAX;
        io_space_access(&space, 0, 0x200F, &data, 1, false);
        assert_true(high.n == 1 && !high.is_write && data == UINT64_MAX - 0xFF);
        assert_int_equal(io_space_remove(&space, 0x1000), 0);
        io_space_access(&space, 0, 0x1000, &data, 1, true);
        assert_int_equal(low.n, 1);
        io_space_done(&space);
}

typedef struct Mover {
        IoSpace space;
        atomic_bool end;
        atomic_uint n;
} Mover;

static void count(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Mover *m = userdata;

        assert_true(offset < 0x10);
        m->n++;
}

static void *look(void *userdata) {
        Mover *m = userdata;
        uint32_t data;

        while (!m->end)
                for (uint64_t a = 0; a < 0x400; a += 4)
                        io_space_access(&m->space, 1, a, &data, 4, false);
        return NULL;
}

static void ranges_move_while_others_look(void **state) {
        pthread_t threads[2];
        Mover m = {};

        assert_int_equal(io_space_init(&m.space), 0);
        for (size_t i = 0; i < ELEMENTSOF(threads); i++)
                assert_int_equal(pthread_create(&threads[i], NULL, look, &m), 0);
        for (unsigned i = 0; i < 3000 || m.n == 0; i++) {
                assert_int_equal(io_space_add(&m.space, i % 50 * 0x10, 0x10, count, &m), 0);
                assert_int_equal(io_space_add(&m.space, 0x380, 0x10, count, &m), 0);
                assert_int_equal(io_space_remove(&m.space, i % 50 * 0x10), 0);
                assert_int_equal(io_space_remove(&m.space, 0x380), 0);
        }
        m.end = true;
        for (size_t i = 0; i < ELEMENTSOF(threads); i++)
                assert_int_equal(pthread_join(threads[i], NULL), 0);
        io_space_done(&m.space);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_ranges_that_overlap_or_wrap),
                cmocka_unit_test(an_access_goes_to_one_range_or_nowhere),
                cmocka_unit_test(ranges_move_while_others_look),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
