/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a snapshot's files say, and what does not fit. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "json-util.h"
#include "snapshot.h"

#define DEVICES "\"devices\": { \"root\": { \"type\": \"block\", \"path\": \"/srv/a.img\" }, \"con\": { \"type\": \"console\" } }"
#define META_DEVICES \
        "[{\"name\":\"root\",\"type\":\"block\",\"queues\":1,\"slot\":1},{\"name\":\"con\",\"type\":\"console\",\"queues\":2,\"slot\":2}]"

static MachineDefinition *define(const char *more) {
        MachineDefinition *d = NULL;
        DefinitionError e = {};
        char text[1024];

        (void) snprintf(text, sizeof(text), "{ \"memory\": \"64M\", \"vcpus\": 2, \"kernel\": \"/k\", %s }", more);
        if (definition_parse(text, strlen(text), "test", "tiny", &d, &e) < 0)
                fail_msg("%s", definition_error_to_string(&e));
        return d;
}

static int parse(const char *text, json_object **ret, char **ret_message) {
        return snapshot_meta_parse(text, strlen(text), ret, ret_message);
}

static void make_meta_text(char text[static 1024], const char *architecture, uint64_t memory, unsigned vcpus, const char *devices) {
        (void) snprintf(text, 1024,
                "{\"format\":1,\"architecture\":\"%s\",\"machine\":\"tiny\",\"memory\":%llu,\"vcpus\":%u,\"devices\":%s,\"disks\":[]}", architecture,
                (unsigned long long) memory, vcpus, devices);
}

static void expect_refusal(const char *architecture, uint64_t memory, unsigned vcpus, const char *devices, const char *more, const char *word) {
        _cleanup_json_ json_object *meta = NULL;
        _cleanup_free_ char *message = NULL;
        MachineDefinition *d = define(more);
        char text[1024];
        int r;

        make_meta_text(text, architecture, memory, vcpus, devices);
        assert_int_equal(parse(text, &meta, &message), 0);
        r = snapshot_check_definition(meta, d, &message);
        if (word ? r != -EXDEV || !message || !strstr(message, word) : r != 0)
                fail_msg("%d, %s; expected %s", r, message ?: "nothing", word ?: "success");
        (void) machine_definition_free(d);
}

static void refuses_another_architecture(void **state) {
        expect_refusal("riscv64", MIB(64), 2, META_DEVICES, DEVICES, "riscv64");
}

static void refuses_another_size_of_memory(void **state) {
        expect_refusal(snapshot_architecture(), MIB(65), 2, META_DEVICES, DEVICES, "bytes of memory");
}

static void refuses_another_number_of_vcpus(void **state) {
        expect_refusal(snapshot_architecture(), MIB(64), 3, META_DEVICES, DEVICES, "3 vCPUs");
}

static void refuses_other_devices(void **state) {
        static const char other[] = "[{\"name\":\"root\",\"type\":\"block\",\"queues\":1,\"slot\":1},{\"name\":\"rng\",\"type\":\"rng\",\"queues\":1,\"slot\":2}]";
        static const char types[] = "[{\"name\":\"root\",\"type\":\"rng\",\"queues\":1,\"slot\":1},{\"name\":\"con\",\"type\":\"console\",\"queues\":2,\"slot\":2}]";
        static const char queues[] = "[{\"name\":\"root\",\"type\":\"block\",\"queues\":4,\"slot\":1},{\"name\":\"con\",\"type\":\"console\",\"queues\":2,\"slot\":2}]";

        expect_refusal(snapshot_architecture(), MIB(64), 2, other, DEVICES, "'rng'");
        expect_refusal(snapshot_architecture(), MIB(64), 2, types, DEVICES, "of type rng");
        expect_refusal(snapshot_architecture(), MIB(64), 2, queues, DEVICES, "4 queues");
}

static void refuses_devices_that_are_not_there(void **state) {
        expect_refusal(snapshot_architecture(), MIB(64), 2, META_DEVICES,
                "\"devices\": { \"root\": { \"type\": \"block\", \"path\": \"/srv/a.img\" } }", "'con' (console)");
        expect_refusal(snapshot_architecture(), MIB(64), 2, "[]", DEVICES, "'root' of the machine");
}

static void takes_what_fits(void **state) {
        expect_refusal(snapshot_architecture(), MIB(64), 2, META_DEVICES, DEVICES, NULL);
}

static void refuses_meta_data_that_is_none(void **state) {
        static const char *const wrong[] = {
                "", "[]", "{", "{}", "null", "{\"format\":\"1\"}", "{\"format\":2}",
                "{\"format\":1,\"architecture\":\"x\",\"machine\":\"m\",\"memory\":1,\"vcpus\":1,\"devices\":[]}",
                "{\"format\":1,\"architecture\":\"x\",\"machine\":\"m\",\"memory\":0,\"vcpus\":1,\"devices\":[],\"disks\":[]}",
                "{\"format\":1,\"architecture\":\"x\",\"machine\":\"m\",\"memory\":1,\"vcpus\":1,\"devices\":[1],\"disks\":[]}",
                "{\"format\":1,\"architecture\":\"x\",\"machine\":\"m\",\"memory\":1,\"vcpus\":1,\"devices\":[{\"name\":\"../x\",\"type\":\"t\",\"queues\":1}],\"disks\":[]}",
                "{\"format\":1,\"architecture\":\"x\",\"machine\":\"m\",\"memory\":1,\"vcpus\":1,\"devices\":[],\"disks\":[{\"device\":\"d\",\"size\":1,\"modifiedSec\":1,\"modifiedNsec\":1000000000}]}",
        };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                _cleanup_json_ json_object *meta = NULL;
                _cleanup_free_ char *message = NULL;
                int r = parse(wrong[i], &meta, &message);

                if (r != -EBADMSG && r != -EPROTONOSUPPORT)
                        fail_msg("%s: %d", wrong[i], r);
                assert_non_null(message);
                assert_null(meta);
        }
}

/* --- the file `state` --- */

static int write_state(size_t size) {
        int fd = memfd_create("state", MFD_CLOEXEC);
        char data[256] = "what a machine is";

        assert_true(fd >= 0);
        assert_int_equal(snapshot_write_state(fd, data, size), 0);
        return fd;
}

static void expect_bad_state(int fd, int error, const char *word) {
        _cleanup_free_ char *message = NULL;
        void *buffer = NULL;
        const void *data;
        size_t size;
        int r;

        r = snapshot_read_state(fd, &buffer, &data, &size, &message);
        if (r != error || !message || !strstr(message, word))
                fail_msg("%d, %s; expected %d, %s", r, message ?: "nothing", error, word);
        assert_null(buffer);
        (void) close(fd);
}

static void refuses_a_state_that_is_cut_off(void **state) {
        int fd = write_state(200);

        assert_int_equal(ftruncate(fd, 199), 0);
        expect_bad_state(fd, -EBADMSG, "cut off");
        fd = write_state(200);
        assert_int_equal(ftruncate(fd, 10), 0);
        expect_bad_state(fd, -EBADMSG, "cut off");
        fd = write_state(200);
        assert_int_equal(ftruncate(fd, 300), 0);
        expect_bad_state(fd, -EBADMSG, "damaged");
}

static void refuses_a_state_with_any_byte_changed(void **state) {
        for (off_t at = 24; at < 32 + 200; at += 7) {
                int fd = write_state(200);
                uint8_t byte;

                assert_int_equal(pread(fd, &byte, 1, at), 1);
                byte ^= 0x10;
                assert_int_equal(pwrite(fd, &byte, 1, at), 1);
                expect_bad_state(fd, -EBADMSG, "checksum");
        }
}

static void refuses_another_format(void **state) {
        const uint32_t format = 2;
        int fd = write_state(200);

        assert_int_equal(pwrite(fd, &format, sizeof(format), 8), sizeof(format));
        expect_bad_state(fd, -EPROTONOSUPPORT, "format 2");
        fd = write_state(200);
        assert_int_equal(pwrite(fd, "x", 1, 0), 1);
        expect_bad_state(fd, -EBADMSG, "not of a snapshot");
}

static void reads_what_was_written(void **state) {
        int fd = write_state(200);
        void *buffer = NULL;
        const void *data;
        size_t size;

        assert_int_equal(snapshot_read_state(fd, &buffer, &data, &size, NULL), 0);
        assert_int_equal(size, 200);
        assert_string_equal(data, "what a machine is");
        free(buffer);
        (void) close(fd);
}

static void refuses_to_write_what_would_not_be_read(void **state) {
        int fd = memfd_create("state", MFD_CLOEXEC);
        char *data = calloc(1, SNAPSHOT_STATE_MAX);

        assert_non_null(data);
        assert_int_equal(snapshot_write_state(fd, data, SNAPSHOT_STATE_MAX), -E2BIG);
        assert_int_equal(lseek(fd, 0, SEEK_END), 0);
        free(data);
        (void) close(fd);
}

/* The check value of CRC-64/XZ. */
static void the_checksum_is_the_one_that_is_documented(void **state) {
        int fd = memfd_create("state", MFD_CLOEXEC);
        uint64_t checksum;

        assert_int_equal(snapshot_write_state(fd, "123456789", 9), 0);
        assert_int_equal(pread(fd, &checksum, sizeof(checksum), 24), sizeof(checksum));
        assert_true(checksum == UINT64_C(0x995dc9bbdf1939fa));
        (void) close(fd);
}

/* --- disks --- */

static void a_disk_that_was_written_to_is_another(void **state) {
        SnapshotDisk then, now, loaded;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        char *message = NULL;
        const void *data;
        size_t size;
        int fd = memfd_create("disk", MFD_CLOEXEC);

        assert_int_equal(ftruncate(fd, 4096), 0);
        assert_int_equal(snapshot_disk_look(fd, &then), 0);
        assert_int_equal(then.size, 4096);
        assert_int_equal(state_writer_new(&w), 0);
        snapshot_disk_save(&then, w);
        assert_int_equal(state_end(w), 0);
        assert_int_equal(state_writer_finish(w, &data, &size), 0);
        assert_int_equal(state_reader_new(data, size, &reader, NULL), 0);
        assert_int_equal(snapshot_disk_load(reader, &loaded, NULL), 0);

        assert_int_equal(snapshot_disk_look(fd, &now), 0);
        assert_int_equal(snapshot_disk_compare(&loaded, &now, "The disk", &message), 0);
        now.inode++; /* a copy that kept its times */
        assert_int_equal(snapshot_disk_compare(&loaded, &now, "The disk", &message), 0);
        now.mtime_nsec ^= 1;
        assert_int_equal(snapshot_disk_compare(&loaded, &now, "The disk", &message), -ESTALE);
        assert_non_null(strstr(message, "written to"));
        message = mfree(message);
        assert_int_equal(ftruncate(fd, 8192), 0);
        assert_int_equal(snapshot_disk_look(fd, &now), 0);
        assert_int_equal(snapshot_disk_compare(&loaded, &now, "The disk", &message), -ESTALE);
        assert_non_null(strstr(message, "8192"));
        message = mfree(message);
        now = loaded;
        now.is_device = true;
        assert_int_equal(snapshot_disk_compare(&loaded, &now, "The disk", &message), -ESTALE);
        message = mfree(message);
        (void) close(fd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_another_architecture),
                cmocka_unit_test(refuses_another_size_of_memory),
                cmocka_unit_test(refuses_another_number_of_vcpus),
                cmocka_unit_test(refuses_other_devices),
                cmocka_unit_test(refuses_devices_that_are_not_there),
                cmocka_unit_test(refuses_meta_data_that_is_none),
                cmocka_unit_test(takes_what_fits),
                cmocka_unit_test(refuses_a_state_that_is_cut_off),
                cmocka_unit_test(refuses_a_state_with_any_byte_changed),
                cmocka_unit_test(refuses_another_format),
                cmocka_unit_test(reads_what_was_written),
                cmocka_unit_test(refuses_to_write_what_would_not_be_read),
                cmocka_unit_test(the_checksum_is_the_one_that_is_documented),
                cmocka_unit_test(a_disk_that_was_written_to_is_another),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
