/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Snapshots of a running vmmd with real helpers, on the real /dev/kvm: taken, ended, and restored into other processes. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "machine-rig.h"
#include "restore.h"
#include "snapshot-memory.h"
#include "snapshot.h"

#define PATTERN 0x2000000 /* 16 MiB of pages, each with its own address in it */
#define N_PAGES 4096

/* Writes the pattern; then counts in memory and in a register, which have to agree, until the power button is pressed; then looks at the pattern and at
 * another register, and powers off. Whatever it finds changed is a triple fault. */
__asm__(".pushsection .rodata\n"
        "kernel_count: mov $0x123456789abcdef, %r15\n"
        "mov $0x2000000, %rdi\n mov $4096, %ecx\n 1: mov %rdi, (%rdi)\n add $4096, %rdi\n dec %ecx\n jnz 1b\n"
        "mov $0x1800000, %rsi\n xor %rbx, %rbx\n"
        "2: incq (%rsi)\n inc %rbx\n cmp %rbx, (%rsi)\n jne 9f\n mov $0x600, %dx\n in %dx, %ax\n test $0x100, %ax\n jz 2b\n"
        "mov $0x2000000, %rdi\n mov $4096, %ecx\n 3: cmp %rdi, (%rdi)\n jne 9f\n add $4096, %rdi\n dec %ecx\n jnz 3b\n"
        "mov $0x123456789abcdef, %rax\n cmp %rax, %r15\n jne 9f\n " KERNEL_POWER_OFF "9: " KERNEL_CRASH "kernel_count_end:\n"
        ".popsection\n");
KERNEL_DECLARE(count)

#define DEVICES \
        ", \"devices\": { \"disk\": { \"type\": \"block\", \"path\": \"%s/disk.img\" }, \"con\": { \"type\": \"console\" }, \"rng\": { \"type\": \"rng\" }, " \
        "\"ser\": { \"type\": \"serial\" } }"

/* --- helpers --- */

typedef struct Helpers {
        pid_t pids[4];
        char directory[64];
} Helpers;

static const char *const helper_types[] = { "block", "console", "rng", "serial" };
static const char *const helper_names[] = { "disk", "con", "rng", "ser" };

static void socket_path(const Helpers *h, unsigned i, const char *suffix, char path[static 128]) {
        (void) snprintf(path, 128, "%s/%s.%s", h->directory, helper_names[i], suffix);
}

static void start_helper(Helpers *h, const char *disk, unsigned i) {
        const char *program = getenv("VMM_DEVICE");
        char socket[128], varlink[128], options[3][192];

        socket_path(h, i, i == 3 ? "bus" : "vhost-user", socket);
        socket_path(h, i, "varlink", varlink);
        (void) snprintf(options[0], sizeof(options[0]), "--socket-path=%s", socket);
        (void) snprintf(options[1], sizeof(options[1]), "--varlink-path=%s", varlink);
        (void) snprintf(options[2], sizeof(options[2]), "--path=%s", disk);
        h->pids[i] = fork();
        assert_true(h->pids[i] >= 0);
        if (h->pids[i] == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) execl(program, program, helper_types[i], options[0], options[1], i == 0 ? options[2] : NULL, NULL);
                _exit(127);
        }
        for (unsigned k = 0; access(socket, F_OK) < 0 || access(varlink, F_OK) < 0; k++) {
                assert_true(k < 6000);
                (void) usleep(10000);
        }
}

static void make_device_directory(Helpers *h, const Run *run) {
        (void) snprintf(h->directory, sizeof(h->directory), "%s/devices", run->directory);
        assert_int_equal(mkdir(h->directory, 0700), 0);
        (void) snprintf(h->directory, sizeof(h->directory), "%s/devices/tiny", run->directory);
        assert_int_equal(mkdir(h->directory, 0700), 0);
}

/* And that of the run, which lacked nothing else. */
static void remove_device_directory(Helpers *h) {
        for (unsigned i = 0; i < 3; i++) {
                (void) rmdir(h->directory);
                if (i < 2)
                        *strrchr(h->directory, '/') = 0;
        }
}

static void start_helpers(Helpers *h, const Run *run, const char *disk) {
        make_device_directory(h, run);
        for (unsigned i = 0; i < ELEMENTSOF(h->pids); i++)
                start_helper(h, disk, i);
}

static void end_helpers(Helpers *h) {
        static const char *const suffixes[] = { "bus", "vhost-user", "varlink" };

        for (unsigned i = 0; i < ELEMENTSOF(h->pids); i++) {
                char path[128];

                (void) kill(h->pids[i], SIGKILL);
                assert_int_equal(waitpid(h->pids[i], NULL, 0), h->pids[i]);
                for (size_t k = 0; k < ELEMENTSOF(suffixes); k++) {
                        socket_path(h, i, suffixes[k], path);
                        (void) unlink(path);
                }
        }
        remove_device_directory(h);
}

/* --- snapshots --- */

typedef struct Snapshot {
        char directory[32];
        int state_fd, memory_fd;
        bool compress;
} Snapshot;

static int make_file(const Snapshot *s, const char *name) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "%s/%s", s->directory, name);
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        return fd;
}

static void snapshot_make(Snapshot *s) {
        *s = (Snapshot) { .directory = "/tmp/vmm-snapshot-XXXXXX" };
        assert_non_null(mkdtemp(s->directory));
        s->state_fd = make_file(s, "state");
        s->memory_fd = make_file(s, "memory");
}

static void snapshot_remove(Snapshot *s) {
        static const char *const names[] = { "state", "memory", "disk.img" };
        char path[64];

        (void) close(s->state_fd);
        (void) close(s->memory_fd);
        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                (void) snprintf(path, sizeof(path), "%s/%s", s->directory, names[i]);
                (void) unlink(path);
        }
        assert_int_equal(rmdir(s->directory), 0);
}

/* The reply as text. */
static void take(const Run *run, const Snapshot *s, bool resume, char reply[static 4096]) {
        const int fds[] = { s->state_fd, s->memory_fd };
        int fd = run_connect(run);
        char call[256];
        json_object *o;
        int n;

        n = snprintf(call, sizeof(call), "{\"method\":\"io.vmmd.Machine.TakeSnapshot\",\"parameters\":{\"state\":0,\"memory\":1,\"resume\":%s%s}}",
                resume ? "true" : "false", s->compress ? ",\"compress\":true" : "");
        assert_int_equal(send_with_fds(fd, call, (size_t) n + 1, fds, 2), n + 1);
        o = receive(fd);
        assert_non_null(o);
        (void) snprintf(reply, 4096, "%s", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
        json_object_put(o);
        (void) close(fd);
}

static void take_successfully(const Run *run, const Snapshot *s, bool resume) {
        char reply[4096];

        take(run, s, resume, reply);
        if (!strstr(reply, "\"meta\"") || strstr(reply, "\"error\""))
                fail_msg("%s", reply);
}

/* In the last page of the pattern, as a machine would have it. */
static bool pattern_is_whole(const Snapshot *s) {
        _cleanup_(snapshot_memory_buffer_done) SnapshotMemoryBuffer buffer = {};
        _cleanup_(snapshot_memory_freep) SnapshotMemory *memory = NULL;
        uint64_t word = 0, address = PATTERN + (N_PAGES - 1) * KIB(4);
        uint16_t page = (uint16_t) (1U << address % SNAPSHOT_CHUNK / SNAPSHOT_PAGE);

        if (s->compress) {
                assert_int_equal(snapshot_memory_open(s->memory_fd, MIB(64), true, &memory, NULL), 0);
                assert_int_equal(snapshot_memory_buffer_init(memory, &buffer), 0);
                if (!(snapshot_memory_pages(memory, address / SNAPSHOT_CHUNK) & page))
                        return false;
                assert_int_equal(snapshot_memory_read(memory, &buffer, address / SNAPSHOT_CHUNK, page, NULL), 0);
                memcpy(&word, buffer.chunk + address % SNAPSHOT_CHUNK, sizeof(word));
                return word == address;
        }
        return pread(s->memory_fd, &word, sizeof(word), (off_t) address) == sizeof(word) && word == address;
}

/* Takes one after another until the guest has written all of its pattern. The last is of a machine that stays paused. */
static void take_with_pattern(const Run *run, const Snapshot *s) {
        for (unsigned i = 0;; i++) {
                assert_true(i < 1000);
                assert_int_equal(ftruncate(s->state_fd, 0), 0);
                assert_int_equal(ftruncate(s->memory_fd, 0), 0);
                assert_int_equal(lseek(s->state_fd, 0, SEEK_SET), 0);
                take_successfully(run, s, false);
                if (pattern_is_whole(s))
                        return;
                call_and_succeed(run, "Resume", "{}");
        }
}

static void restore_into(Run *run, const Snapshot *s, const char *more) {
        RUN_PREPARE(run, count, more);
        (void) snprintf(run->restore, sizeof(run->restore), "%s", s->directory);
}

static void expect_good_end(Run *run) {
        char text[4096];
        int r;

        wait_for_state(run, "running");
        call_and_succeed(run, "PowerOff", "{}");
        r = run_end(run, text);
        /* It may be done before the last of its memory has come. */
        if (r != 0 || !strstr(text, "goes on from the snapshot") || !strstr(text, "powered off"))
                fail_msg("status %d: %s", r, text);
}

static void end_at_once(Run *run) {
        char text[4096];

        call_and_succeed(run, "Terminate", "{}");
        assert_int_equal(run_end(run, text), 0);
}

/* --- tests --- */

static void goes_on_where_it_was_also_twice_at_once(void **state) {
        Run run, again[2];
        Snapshot s;

        snapshot_make(&s);
        RUN_START(&run, count, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        wait_for_state(&run, "paused");
        end_at_once(&run);

        for (unsigned i = 0; i < ELEMENTSOF(again); i++) {
                restore_into(&again[i], &s, ", \"vcpus\": 2");
                run_vmmd(&again[i], false);
        }
        for (unsigned i = 0; i < ELEMENTSOF(again); i++)
                expect_good_end(&again[i]);
        snapshot_remove(&s);
}

/* As soon as all of its memory is there, before which it is refused. */
static void take_again(const Run *run, Snapshot *s) {
        char reply[4096];

        for (unsigned i = 0;; i++) {
                assert_true(i < 10000);
                take(run, s, false, reply);
                if (!strstr(reply, "\"error\""))
                        return;
                if (!strstr(reply, "not all is there yet") && !strstr(reply, "WrongState"))
                        fail_msg("%s", reply);
                (void) usleep(1000);
        }
}

/* Each from the one before it, the guest counting all the while. */
static void goes_on_twenty_times_in_a_row(void **state) {
        Snapshot s, next;
        char text[4096];
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        for (unsigned i = 0; i < 20; i++) {
                restore_into(&run, &s, ", \"vcpus\": 2");
                run_vmmd(&run, false);
                wait_for_state(&run, "running");
                snapshot_make(&next);
                take_again(&run, &next);
                call_and_succeed(&run, "Terminate", "{}");
                assert_int_equal(run_end(&run, text), 0);
                snapshot_remove(&s);
                s = next;
        }
        restore_into(&run, &s, ", \"vcpus\": 2");
        run_vmmd(&run, false);
        expect_good_end(&run);
        snapshot_remove(&s);
}

static void the_machine_goes_on_after_it(void **state) {
        char text[4096];
        Snapshot s;
        Run run;

        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        for (unsigned i = 0; i < 5; i++) {
                snapshot_make(&s);
                take_successfully(&run, &s, true);
                wait_for_state(&run, "running");
                snapshot_remove(&s);
        }
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
}

static void a_paused_one_stays_paused(void **state) {
        char text[4096];
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Pause", "{}");
        take_successfully(&run, &s, true);
        wait_for_state(&run, "paused");
        call_and_succeed(&run, "Resume", "{}");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        restore_into(&run, &s, "");
        run_vmmd(&run, false);
        expect_good_end(&run);
        snapshot_remove(&s);
}

/* A file of which there is no room for more: also where it was to stay paused behind a snapshot, there is none to stay paused for. */
static void the_machine_goes_on_where_it_fails(void **state) {
        char text[4096], reply[4096];
        Snapshot s;
        Run run;

        snapshot_make(&s);
        (void) close(s.memory_fd);
        s.memory_fd = memfd_create("full", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_true(s.memory_fd >= 0);
        assert_int_equal(fcntl(s.memory_fd, F_ADD_SEALS, F_SEAL_GROW), 0);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        for (unsigned i = 0; i < 2; i++) {
                take(&run, &s, i > 0, reply);
                if (!strstr(reply, "SnapshotFailed") || !strstr(reply, "Cannot write the guest's memory"))
                        fail_msg("%s", reply);
                call_and_expect(&run, "Describe", "{}", "\"state\":\"running\"");
        }
        call_and_succeed(&run, "Pause", "{}");
        take(&run, &s, true, reply);
        assert_non_null(strstr(reply, "SnapshotFailed"));
        call_and_expect(&run, "Describe", "{}", "\"state\":\"paused\"");
        call_and_succeed(&run, "Resume", "{}");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        snapshot_remove(&s);
}

static void memory_at_once_is_as_good(void **state) {
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        restore_into(&run, &s, ", \"prefault\": true");
        run_vmmd(&run, false);
        expect_good_end(&run);
        snapshot_remove(&s);
}

static void expect_start_refused(const Snapshot *s, const char *more, const char *word) {
        char text[4096];
        Run run;
        int r;

        restore_into(&run, s, more);
        run_vmmd(&run, false);
        r = run_end(&run, text);
        if (r != 35 || !strstr(text, word))
                fail_msg("status %d, expected 35 and '%s': %s", r, word, text);
}

static void compressed_memory_is_as_good_and_smaller(void **state) {
        struct stat st;
        Snapshot s;
        Run run;

        if (!snapshot_memory_can_compress())
                skip();
        snapshot_make(&s);
        s.compress = true;
        RUN_START(&run, count, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        assert_int_equal(fstat(s.memory_fd, &st), 0);
        print_message("# 16 MiB of pattern take %lu KiB\n", (unsigned long) st.st_size / 1024);
        assert_true(st.st_size < (off_t) MIB(4));
        for (unsigned i = 0; i < 2; i++) {
                restore_into(&run, &s, i ? ", \"vcpus\": 2, \"prefault\": true" : ", \"vcpus\": 2");
                run_vmmd(&run, false);
                expect_good_end(&run);
        }
        snapshot_remove(&s);
}

static void flip(int fd, off_t offset) {
        uint8_t byte;

        assert_int_equal(pread(fd, &byte, 1, offset), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
}

/* Of the index, before anything runs; of a piece, when its turn comes: then the machine ends, and the guest has seen nothing of it. */
static void compressed_memory_that_is_damaged_is_refused(void **state) {
        char text[4096];
        struct stat st;
        Snapshot s;
        Run run;
        int r;

        if (!snapshot_memory_can_compress())
                skip();
        snapshot_make(&s);
        s.compress = true;
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);

        flip(s.memory_fd, 64 + 200);
        expect_start_refused(&s, "", "index of the file 'memory' is damaged");
        flip(s.memory_fd, 64 + 200);
        assert_int_equal(fstat(s.memory_fd, &st), 0);
        assert_int_equal(ftruncate(s.memory_fd, st.st_size - 1), 0);
        expect_start_refused(&s, "", "cut off");
        assert_int_equal(ftruncate(s.memory_fd, st.st_size), 0);
        assert_int_equal(ftruncate(s.memory_fd, 500), 0);
        expect_start_refused(&s, "", "cut off");
        snapshot_remove(&s);

        snapshot_make(&s);
        s.compress = true;
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        assert_int_equal(fstat(s.memory_fd, &st), 0);
        flip(s.memory_fd, st.st_size - 20);
        expect_start_refused(&s, ", \"prefault\": true", "of the file 'memory', the 64 KiB of the guest's memory at 0x");
        restore_into(&run, &s, "");
        run_vmmd(&run, false);
        r = run_end(&run, text);
        if (r != 1 || !strstr(text, "The rest of the guest's memory cannot be read from the snapshot: Chunk "))
                fail_msg("status %d: %s", r, text);
        snapshot_remove(&s);
}

static void a_restored_machine_can_be_reset(void **state) {
        char text[4096];
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        restore_into(&run, &s, "");
        run_vmmd(&run, false);
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Reset", "{}");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        snapshot_remove(&s);
}

static void refuses_files_that_are_none(void **state) {
        char text[4096], reply[4096];
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        call_and_expect(&run, "TakeSnapshot", "{\"state\":0,\"memory\":1}", "InvalidParameter");
        assert_int_equal(write(s.memory_fd, "x", 1), 1);
        take(&run, &s, true, reply);
        assert_non_null(strstr(reply, "InvalidParameter"));
        wait_for_state(&run, "running");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        snapshot_remove(&s);
}

static void refuses_to_start_what_does_not_fit(void **state) {
        uint8_t byte;
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_successfully(&run, &s, false);
        end_at_once(&run);

        expect_start_refused(&s, ", \"vcpus\": 2", "vCPUs");
        expect_start_refused(&s, ", \"devices\": { \"r\": { \"type\": \"rng\" } }", "'r' of the machine");

        assert_int_equal(ftruncate(s.memory_fd, (off_t) MIB(64) - 4096), 0);
        expect_start_refused(&s, "", "The file 'memory' has");
        assert_int_equal(ftruncate(s.memory_fd, (off_t) MIB(64)), 0);

        assert_int_equal(pread(s.state_fd, &byte, 1, 1000), 1);
        byte ^= 1;
        assert_int_equal(pwrite(s.state_fd, &byte, 1, 1000), 1);
        expect_start_refused(&s, "", "checksum");
        assert_int_equal(ftruncate(s.state_fd, 500), 0);
        expect_start_refused(&s, "", "cut off");
        snapshot_remove(&s);
}

/* Another host's processor: the vendor is the first thing that does not fit. */
static void refuses_another_processor(void **state) {
        _cleanup_free_ void *buffer = NULL;
        const void *data;
        uint8_t *at;
        Snapshot s;
        size_t size;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_successfully(&run, &s, false);
        end_at_once(&run);
        assert_int_equal(snapshot_read_state(s.state_fd, &buffer, &data, &size, NULL), 0);
        at = memmem(data, size, "GenuntelineI", 12) ?: memmem(data, size, "AuthcAMDenti", 12);
        assert_non_null(at);
        at[3] = 'X';
        assert_int_equal(lseek(s.state_fd, 0, SEEK_SET), 0);
        assert_int_equal(snapshot_write_state(s.state_fd, data, size), 0);
        expect_start_refused(&s, "", "on a processor of");
        snapshot_remove(&s);
}

/* One of tomorrow may have anything in it. */
static void refuses_a_later_format_and_files_that_are_missing(void **state) {
        char path[64];
        Snapshot s;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_successfully(&run, &s, false);
        end_at_once(&run);
        assert_int_equal(pwrite(s.state_fd, &(const uint8_t) { SNAPSHOT_FORMAT + 1 }, 1, 8), 1);
        expect_start_refused(&s, "", "this version reads");
        assert_int_equal(pwrite(s.state_fd, &(const uint8_t) { SNAPSHOT_FORMAT }, 1, 8), 1);

        (void) snprintf(path, sizeof(path), "%s/memory", s.directory);
        assert_int_equal(unlink(path), 0);
        expect_start_refused(&s, "", "Cannot open the files");
        (void) snprintf(path, sizeof(path), "%s/state", s.directory);
        assert_int_equal(unlink(path), 0);
        expect_start_refused(&s, "", "Cannot open the files");
        snapshot_remove(&s);
}

/* The service manager may have lost one. */
static void refuses_one_file_of_two(void **state) {
        for (unsigned i = 0; i < 2; i++) {
                RestoreFiles files = RESTORE_FILES_NULL;
                _cleanup_free_ char *message = NULL;
                int fd = memfd_create("half", MFD_CLOEXEC);
                Restore *restore = NULL;

                assert_true(fd >= 0);
                assert_true(restore_files_take(&files, i == 0 ? "restore-state" : "restore-memory", fd));
                assert_false(restore_files_take(&files, i == 0 ? "restore-state" : "restore-memory", fd)); /* twice the same is not both */
                assert_false(restore_files_take(&files, "memory", fd));
                assert_int_equal(restore_new(&files, NULL, &restore, &message), -EBADF);
                assert_null(restore);
                assert_non_null(strstr(message, "A snapshot is two files, of which one was not handed over."));
                assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was taken over */
        }
}

/* One part of tomorrow's, in a file of today's. */
static void refuses_a_later_version_of_one_section(void **state) {
        static const char *const sections[] = { "x86-vcpu", "cmos", "pci-bus", "snapshot" };
        _cleanup_free_ void *buffer = NULL;
        const void *data;
        Snapshot s;
        size_t size;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_successfully(&run, &s, false);
        end_at_once(&run);
        assert_int_equal(snapshot_read_state(s.state_fd, &buffer, &data, &size, NULL), 0);
        for (size_t i = 0; i < ELEMENTSOF(sections); i++) {
                char name[32] = "";
                uint8_t *at;

                (void) snprintf(name, sizeof(name), "%s", sections[i]);
                at = memmem(data, size, name, sizeof(name));
                assert_non_null(at);
                at[36] += 70;
                assert_int_equal(lseek(s.state_fd, 0, SEEK_SET), 0);
                assert_int_equal(snapshot_write_state(s.state_fd, data, size), 0);
                expect_start_refused(&s, "", sections[i]);
                at[36] -= 70;
        }
        snapshot_remove(&s);
}

/* What a snapshot says of itself is somebody's text, and the service manager is told what is wrong with it. */
static void what_it_says_is_one_line(void **state) {
        static const char honest[] = "\"architecture\":\"x86_64\"", other[] = "\"architecture\":\"x8\\n64\"";
        _cleanup_free_ void *buffer = NULL;
        const void *data;
        Snapshot s;
        size_t size;
        char *at;
        Run run;

        snapshot_make(&s);
        RUN_START(&run, count, "");
        wait_for_state(&run, "running");
        take_successfully(&run, &s, false);
        end_at_once(&run);

        assert_int_equal(snapshot_read_state(s.state_fd, &buffer, &data, &size, NULL), 0);
        at = memmem(data, size, honest, strlen(honest));
        assert_non_null(at);
        assert_int_equal(strlen(other), strlen(honest));
        memcpy(at, other, strlen(other));
        assert_int_equal(lseek(s.state_fd, 0, SEEK_SET), 0);
        assert_int_equal(snapshot_write_state(s.state_fd, data, size), 0);
        expect_start_refused(&s, "", "machine of x8?64;");
        snapshot_remove(&s);
}

static void copy_disk(const Snapshot *s, const char *directory) {
        char from[96], to[96];
        struct timespec times[2];
        struct stat st;
        int fd;

        (void) snprintf(from, sizeof(from), "%s/disk.img", s->directory);
        (void) snprintf(to, sizeof(to), "%s/disk.img", directory);
        assert_int_equal(stat(from, &st), 0);
        fd = open(to, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, st.st_size), 0);
        times[0] = st.st_atim;
        times[1] = st.st_mtim;
        assert_int_equal(futimens(fd, times), 0);
        (void) close(fd);
}

static void run_with_devices(Run *run, Helpers *h, const Snapshot *s, bool restore) {
        char more[512], disk[96];

        (void) snprintf(more, sizeof(more), DEVICES, s->directory);
        RUN_PREPARE(run, count, more);
        (void) snprintf(disk, sizeof(disk), "%s/disk.img", restore ? run->directory : s->directory);
        if (restore) {
                copy_disk(s, run->directory);
                (void) snprintf(run->restore, sizeof(run->restore), "%s", s->directory);
        }
        start_helpers(h, run, disk);
}

/* Of another project's program, as many are: before anything is paused. */
static void refuses_a_device_that_cannot_tell_its_state(void **state) {
        char text[4096], more[256], path[128], reply[4096], options[3][160];
        Helpers h = {};
        Snapshot s;
        Run run;
        pid_t pid;

        if (access("/usr/bin/qemu-storage-daemon", X_OK) < 0 || access("/usr/bin/qemu-img", X_OK) < 0) {
                print_message("# SKIPPED, as there is no qemu-storage-daemon\n");
                return;
        }
        snapshot_make(&s);
        (void) snprintf(path, sizeof(path), "qemu-img create -q -f qcow2 %s/disk.img 1M", s.directory);
        assert_int_equal(system(path), 0);
        (void) snprintf(more, sizeof(more), ", \"devices\": { \"disk\": { \"type\": \"block\", \"format\": \"qcow2\", \"path\": \"%s/disk.img\" } }", s.directory);
        RUN_PREPARE(&run, count, more);
        make_device_directory(&h, &run);
        (void) snprintf(options[0], sizeof(options[0]), "--socket-path=%s/disk.vhost-user", h.directory);
        (void) snprintf(options[1], sizeof(options[1]), "--varlink-path=%s/disk.varlink", h.directory);
        (void) snprintf(options[2], sizeof(options[2]), "--path=%s/disk.img", s.directory);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGTERM);
                (void) setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* it would be looked for behind a seccomp policy */
                (void) execl(getenv("VMM_DEVICE"), "vmm-device", "block", "--format=qcow2", options[0], options[1], options[2], NULL);
                _exit(127);
        }
        for (unsigned k = 0; access(options[0] + strlen("--socket-path="), F_OK) < 0 || access(options[1] + strlen("--varlink-path="), F_OK) < 0; k++) {
                assert_true(k < 6000);
                (void) usleep(10000);
        }
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        take(&run, &s, true, reply);
        if (!strstr(reply, "Device 'disk' (block) is of a kind that cannot tell its state"))
                fail_msg("%s", reply);
        call_and_expect(&run, "Describe", "{}", "\"state\":\"running\"");
        call_and_succeed(&run, "Terminate", "{}");
        assert_int_equal(run_end(&run, text), 0);
        (void) kill(pid, SIGTERM);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        (void) unlink(options[0] + strlen("--socket-path="));
        (void) unlink(options[1] + strlen("--varlink-path="));
        remove_device_directory(&h);
        snapshot_remove(&s);
}

static void end_with_devices(Run *run, Helpers *h) {
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/disk.img", run->directory);
        (void) unlink(path);
        end_helpers(h);
}

static void helpers_give_and_take_their_state(void **state) {
        char text[4096], path[96];
        Snapshot s;
        Helpers h;
        Run run;
        int fd, r;

        snapshot_make(&s);
        fd = make_file(&s, "disk.img");
        assert_int_equal(ftruncate(fd, (off_t) MIB(1)), 0);
        run_with_devices(&run, &h, &s, false);
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        take_with_pattern(&run, &s);
        end_at_once(&run);
        end_with_devices(&run, &h);

        run_with_devices(&run, &h, &s, true);
        run_vmmd(&run, true);
        expect_good_end(&run);
        end_with_devices(&run, &h);

        /* A disk that was written to is another: its helper says so, and nothing has run. */
        run_with_devices(&run, &h, &s, true);
        (void) snprintf(path, sizeof(path), "%s/disk.img", run.directory);
        assert_int_equal(utimensat(AT_FDCWD, path, NULL, 0), 0);
        run_vmmd(&run, true);
        r = run_end(&run, text);
        if (r != 35 || !strstr(text, "Device 'disk'"))
                fail_msg("status %d: %s", r, text);
        end_with_devices(&run, &h);
        (void) close(fd);
        snapshot_remove(&s);
}

/* With the name of a test, that one alone. */
int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(goes_on_where_it_was_also_twice_at_once),
                cmocka_unit_test(goes_on_twenty_times_in_a_row),
                cmocka_unit_test(the_machine_goes_on_after_it),
                cmocka_unit_test(a_paused_one_stays_paused),
                cmocka_unit_test(the_machine_goes_on_where_it_fails),
                cmocka_unit_test(memory_at_once_is_as_good),
                cmocka_unit_test(compressed_memory_is_as_good_and_smaller),
                cmocka_unit_test(compressed_memory_that_is_damaged_is_refused),
                cmocka_unit_test(a_restored_machine_can_be_reset),
                cmocka_unit_test(refuses_files_that_are_none),
                cmocka_unit_test(refuses_to_start_what_does_not_fit),
                cmocka_unit_test(refuses_another_processor),
                cmocka_unit_test(refuses_a_later_format_and_files_that_are_missing),
                cmocka_unit_test(refuses_a_device_that_cannot_tell_its_state),
                cmocka_unit_test(refuses_one_file_of_two),
                cmocka_unit_test(refuses_a_later_version_of_one_section),
                cmocka_unit_test(what_it_says_is_one_line),
                cmocka_unit_test(helpers_give_and_take_their_state),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
