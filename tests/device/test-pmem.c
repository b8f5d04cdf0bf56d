/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The helper of persistent memory as it is, with its seccomp policy: what it answers, and that it writes what the memory holds to the disk. */

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/virtio_pmem.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include <cmocka.h>

#include "front-end.h"

#define FILE_SIZE MIB(2)
#define REQUEST(i) (FE_BUFFERS + (uint64_t) (i) * 4096)
#define RESPONSE(i) (REQUEST(i) + 2048)
#define UNTOUCHED 0xaaaaaaaaU

typedef struct Fixture {
        FrontEnd front_end;
        char path[48], varlink[64];
        const char *arguments[6];
        char options[3][80];
} Fixture;

static void fixture_prepare(Fixture *f, bool read_only) {
        int fd;

        *f = (Fixture) {};
        (void) snprintf(f->path, sizeof(f->path), "/tmp/test-pmem-XXXXXX");
        fd = mkostemp(f->path, O_CLOEXEC);
        assert_return_code(fd, errno);
        assert_return_code(ftruncate(fd, FILE_SIZE), errno);
        (void) close(fd);
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s.varlink", f->path);
        (void) snprintf(f->options[0], sizeof(f->options[0]), "--path=%s", f->path);
        (void) snprintf(f->options[1], sizeof(f->options[1]), "--varlink-path=%s", f->varlink);
        (void) snprintf(f->options[2], sizeof(f->options[2]), "--read-only=%s", read_only ? "yes" : "no");
        f->arguments[0] = "pmem";
        for (unsigned i = 0; i < 3; i++)
                f->arguments[i + 1] = f->options[i];
}

static void fixture_up(Fixture *f, bool read_only, uint16_t num) {
        fixture_prepare(f, read_only);
        fe_start(&f->front_end, f->arguments, 1, num);
}

static void fixture_down(Fixture *f) {
        fe_end(&f->front_end);
        (void) unlink(f->path);
        (void) unlink(f->varlink);
}

/* Descriptors 2i and 2i+1. */
static void lay_out(Fixture *f, uint16_t i, uint32_t type, uint32_t n_request, uint32_t n_response) {
        FrontEnd *fe = &f->front_end;
        uint32_t untouched = UNTOUCHED;

        memcpy(fe->ram + REQUEST(i), &type, sizeof(type));
        memcpy(fe->ram + RESPONSE(i), &untouched, sizeof(untouched));
        fe_desc(fe, 0, (uint16_t) (2 * i), FE_ADDRESS(REQUEST(i)), n_request, VRING_DESC_F_NEXT, (uint16_t) (2 * i + 1));
        fe_desc(fe, 0, (uint16_t) (2 * i + 1), FE_ADDRESS(RESPONSE(i)), n_response, VRING_DESC_F_WRITE, 0);
        fe_offer(fe, 0, (uint16_t) (2 * i));
}

static uint32_t response(const Fixture *f, unsigned i) {
        uint32_t value;

        memcpy(&value, f->front_end.ram + RESPONSE(i), sizeof(value));
        return value;
}

static uint32_t ask(Fixture *f, uint32_t type, uint32_t n_request, uint32_t n_response) {
        lay_out(f, 0, type, n_request, n_response);
        fe_kick(&f->front_end, 0);
        assert_int_equal(fe_wait(&f->front_end, 0).len, MIN(n_response, 4u));
        return response(f, 0);
}

static int64_t counter(const Fixture *f, const char *name) {
        const char *text = fe_call(f->varlink, "{\"method\":\"io.vmmd.Device.GetCounters\"}", -EBADF), *at;
        char key[40];

        (void) snprintf(key, sizeof(key), "\"%s\":", name);
        at = strstr(text, key);
        assert_non_null(at);
        return strtoll(at + strlen(key), NULL, 10);
}

static void what_is_no_file_is_refused(void **state) {
        static const char *const missing[] = { "pmem", "--path=/nonexistent/file", "--socket-path=/tmp/test-pmem.none", NULL };
        static const char *const none[] = { "pmem", "--socket-path=/tmp/test-pmem.none", NULL };
        static const char *const directory[] = { "pmem", "--path=/tmp", "--read-only=yes", "--socket-path=/tmp/test-pmem.none", NULL };
        char text[256];

        assert_int_not_equal(fe_spawn_failing(missing, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "/nonexistent/file"));
        assert_int_not_equal(fe_spawn_failing(none, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "--path"));
        assert_int_not_equal(fe_spawn_failing(directory, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "neither a regular file nor a block device"));
        (void) unlink("/tmp/test-pmem.none");
}

static void a_file_that_a_disk_uses_is_refused(void **state) {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
        const char *arguments[] = { "pmem", NULL, "--socket-path=/tmp/test-pmem.none", NULL };
        char text[256];
        Fixture f;
        int fd;

        fixture_prepare(&f, false);
        arguments[1] = f.options[0];
        fd = open(f.path, O_RDWR | O_CLOEXEC);
        assert_return_code(fcntl(fd, F_OFD_SETLK, &lock), errno);
        assert_int_not_equal(fe_spawn_failing(arguments, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "in use by another process"));
        (void) close(fd);
        (void) unlink(f.path);
        (void) unlink("/tmp/test-pmem.none");
}

static void requests_that_make_no_sense_fail(void **state) {
        Fixture f;

        fixture_up(&f, false, 8);
        assert_int_equal(ask(&f, 1, 4, 4), 1);
        assert_int_equal(ask(&f, UINT32_MAX, 4, 4), 1);
        assert_int_equal(ask(&f, VIRTIO_PMEM_REQ_TYPE_FLUSH, 3, 4), 1);
        assert_int_equal(counter(&f, "flushes"), 0);
        fixture_down(&f);
}

static void a_response_without_room_is_left_out(void **state) {
        Fixture f;

        fixture_up(&f, false, 8);
        assert_int_equal(ask(&f, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 2) & 0xffff0000U, UNTOUCHED & 0xffff0000U);
        /* no writable buffer at all */
        fe_desc(&f.front_end, 0, 0, FE_ADDRESS(REQUEST(0)), 4, 0, 0);
        fe_offer(&f.front_end, 0, 0);
        fe_kick(&f.front_end, 0);
        assert_int_equal(fe_wait(&f.front_end, 0).len, 0);
        assert_int_equal(ask(&f, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 4), 0);
        fixture_down(&f);
}

static void a_request_outside_memory_breaks_the_device(void **state) {
        Fixture f;

        fixture_up(&f, false, 8);
        fe_desc(&f.front_end, 0, 0, 0x10, 4, 0, 0);
        fe_offer(&f.front_end, 0, 0);
        fe_kick(&f.front_end, 0);
        fe_expect_broken(&f.front_end, 0);
        assert_true(fe_alive(&f.front_end));
        fixture_down(&f);
}

/* More of them than the helper takes at once, again and again, while others wait for a flush: it goes on, and answers all. */
static void a_flood_of_nonsense_is_answered(void **state) {
        const uint16_t n = 128;
        unsigned answered = 0;
        Fixture f;

        fixture_up(&f, false, 2 * n);
        for (unsigned round = 0; round < 20; round++) {
                for (uint16_t i = 0; i < n; i++)
                        lay_out(&f, i, i % 16 == 0 ? VIRTIO_PMEM_REQ_TYPE_FLUSH : 7, 4, 4);
                fe_kick(&f.front_end, 0);
                for (uint16_t i = 0; i < n; i++, answered++)
                        assert_int_equal(fe_wait(&f.front_end, 0).len, 4);
                for (uint16_t i = 0; i < n; i++)
                        assert_int_equal(response(&f, i), i % 16 == 0 ? 0 : 1);
        }
        assert_int_equal(counter(&f, "flushRequests"), answered);
        fixture_down(&f);
}

/* How much of the mapping at `p` was written to and is not on the disk, in KiB, as the kernel counts it. */
static unsigned long dirty_kib(const void *p) {
        FILE *smaps = fopen("/proc/self/smaps", "re");
        char line[512], begin[32];
        unsigned long sum = 0;
        bool here = false;

        assert_non_null(smaps);
        (void) snprintf(begin, sizeof(begin), "%lx-", (unsigned long) (uintptr_t) p);
        while (fgets(line, sizeof(line), smaps)) {
                if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' '))
                        here = startswith(line, begin);
                if (here && (startswith(line, "Private_Dirty:") || startswith(line, "Shared_Dirty:")))
                        sum += strtoul(strchr(line, ':') + 1, NULL, 10);
        }
        (void) fclose(smaps);
        return sum;
}

/* What the memory holds is in the page cache dirty; after the answer it is not. */
static void a_flush_writes_what_the_memory_holds(void **state) {
        struct statfs fs;
        uint8_t *memory;
        Fixture f;
        int fd;

        fixture_up(&f, false, 8);
        fd = open(f.path, O_RDWR | O_CLOEXEC);
        memory = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(memory, MAP_FAILED);
        assert_return_code(fstatfs(fd, &fs), errno);
        memset(memory, 'x', FILE_SIZE);
        assert_int_equal(dirty_kib(memory), FILE_SIZE / 1024);
        assert_int_equal(ask(&f, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 4), 0);
        assert_int_equal(counter(&f, "flushes"), 1);
        if (fs.f_type == TMPFS_MAGIC)
                print_message("# %s has no disk behind it\n", f.path);
        else
                assert_int_equal(dirty_kib(memory), 0);
        (void) munmap(memory, FILE_SIZE);
        (void) close(fd);
        fixture_down(&f);
}

/* Those that come while one is under way share the next. */
static void flushes_at_once_are_few(void **state) {
        const uint16_t n = 100;
        Fixture f;

        fixture_up(&f, false, 256);
        for (uint16_t i = 0; i < n; i++)
                lay_out(&f, i, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 4);
        fe_kick(&f.front_end, 0);
        for (uint16_t i = 0; i < n; i++)
                (void) fe_wait(&f.front_end, 0);
        for (uint16_t i = 0; i < n; i++)
                assert_int_equal(response(&f, i), 0);
        assert_int_equal(counter(&f, "flushRequests"), n);
        assert_in_range(counter(&f, "flushes"), 1, 4);
        fixture_down(&f);
}

static void what_was_taken_is_answered_before_a_stop(void **state) {
        Fixture f;

        fixture_up(&f, false, 256);
        for (uint16_t i = 0; i < 100; i++)
                lay_out(&f, i, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 4);
        fe_kick(&f.front_end, 0);
        while (fe_stop_queue(&f.front_end, 0) != f.front_end.queues[0].used->idx)
                fail_msg("taken and not answered");
        fixture_down(&f);
}

static void memory_that_is_only_read_needs_no_flush(void **state) {
        Fixture f;

        fixture_up(&f, true, 8);
        assert_int_equal(ask(&f, VIRTIO_PMEM_REQ_TYPE_FLUSH, 4, 4), 0);
        assert_int_equal(counter(&f, "flushes"), 0);
        assert_non_null(strstr(fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF), "\"size\":2097152,\"readOnly\":true"));
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(what_is_no_file_is_refused),
                cmocka_unit_test(a_file_that_a_disk_uses_is_refused),
                cmocka_unit_test(requests_that_make_no_sense_fail),
                cmocka_unit_test(a_response_without_room_is_left_out),
                cmocka_unit_test(a_request_outside_memory_breaks_the_device),
                cmocka_unit_test(a_flood_of_nonsense_is_answered),
                cmocka_unit_test(a_flush_writes_what_the_memory_holds),
                cmocka_unit_test(flushes_at_once_are_few),
                cmocka_unit_test(what_was_taken_is_answered_before_a_stop),
                cmocka_unit_test(memory_that_is_only_read_needs_no_flush),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
