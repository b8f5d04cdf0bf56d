/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Files that are a guest's memory: where they lie, and, on the real /dev/kvm, that what a guest stores there is in the file. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "machine-rig.h"
#include "pmem.h"

#define FILE_SIZE MIB(2)

/* Maps the first 2 MiB behind 4 GiB and behind 5 GiB. Copies the first word of the second to the first, writes to the second, copies it again; counts
 * in the first, and boots anew until it is at three. */
__asm__(".pushsection .rodata\n"
        "kernel_pmem: movl $0x11003, 0xa020\n movl $0x12003, 0xa028\n"
        "mov $0x100000083, %rax\n mov %rax, 0x11000\n mov $0x140000083, %rax\n mov %rax, 0x12000\n"
        "mov $0x100000000, %rdi\n mov $0x140000000, %rsi\n"
        "mov (%rsi), %rax\n mov %rax, 8(%rdi)\n movl $0x55, (%rsi)\n mov (%rsi), %rax\n mov %rax, 16(%rdi)\n"
        "incl (%rdi)\n cmpl $3, (%rdi)\n je 1f\n"
        "mov $0xcf9, %dx\n mov $6, %al\n out %al, %dx\n 4: hlt\n jmp 4b\n"
        "1: " KERNEL_POWER_OFF "kernel_pmem_end:\n"
        ".popsection\n");
KERNEL_DECLARE(pmem)

typedef struct Device {
        pid_t pid;
        char sockets[2][96], file[96];
} Device;

static void make_file(Device *d, const Run *run, const char *name, uint64_t size, uint64_t first) {
        int fd;

        (void) snprintf(d->file, sizeof(d->file), "%s/%s.memory", run->directory, name);
        fd = open(d->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, &first, sizeof(first), 0), sizeof(first));
        assert_int_equal(ftruncate(fd, (off_t) size), 0);
        (void) close(fd);
}

static void start_helper(Device *d, const Run *run, const char *name, bool read_only) {
        char directory[64], options[3][128];

        (void) snprintf(directory, sizeof(directory), "%s/devices", run->directory);
        (void) mkdir(directory, 0700);
        (void) snprintf(directory, sizeof(directory), "%s/devices/tiny", run->directory);
        (void) mkdir(directory, 0700);
        (void) snprintf(d->sockets[0], sizeof(d->sockets[0]), "%s/%s.vhost-user", directory, name);
        (void) snprintf(d->sockets[1], sizeof(d->sockets[1]), "%s/%s.varlink", directory, name);
        (void) snprintf(options[0], sizeof(options[0]), "--socket-path=%s", d->sockets[0]);
        (void) snprintf(options[1], sizeof(options[1]), "--varlink-path=%s", d->sockets[1]);
        (void) snprintf(options[2], sizeof(options[2]), "--path=%s", d->file);
        d->pid = fork();
        assert_true(d->pid >= 0);
        if (d->pid == 0) {
                const char *program = getenv("VMM_DEVICE");

                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) execl(program, program, "pmem", options[0], options[1], options[2], read_only ? "--read-only=yes" : NULL, NULL);
                _exit(127);
        }
        for (unsigned i = 0; access(d->sockets[0], F_OK) < 0 || access(d->sockets[1], F_OK) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
}

static void end_device(Device *d) {
        if (d->pid > 0) {
                (void) kill(d->pid, SIGKILL);
                assert_int_equal(waitpid(d->pid, NULL, 0), d->pid);
                (void) unlink(d->sockets[0]);
                (void) unlink(d->sockets[1]);
        }
        (void) unlink(d->file);
}

static void remove_directories(const Run *run) {
        char path[64];

        (void) snprintf(path, sizeof(path), "%s/devices/tiny", run->directory);
        (void) rmdir(path);
        (void) snprintf(path, sizeof(path), "%s/devices", run->directory);
        (void) rmdir(path);
        (void) rmdir(run->directory);
}

static uint64_t word_of(const Device *d, unsigned index) {
        int fd = open(d->file, O_RDONLY | O_CLOEXEC);
        uint64_t word = 0;

        assert_true(fd >= 0);
        assert_int_equal(pread(fd, &word, sizeof(word), (off_t) (index * sizeof(word))), sizeof(word));
        (void) close(fd);
        return word;
}

static void lies_above_everything_else(void **state) {
        uint64_t address = 1;

        assert_int_equal(pmem_place(GIB(64), GIB(2), GIB(65), &address), -ERANGE);
        assert_int_equal(pmem_place(GIB(64), MIB(2), GIB(64), &address), -ERANGE);
        assert_int_equal(pmem_place(UINT64_MAX - 1, MIB(2), UINT64_MAX, &address), -ERANGE);
        assert_int_equal(pmem_place(MIB(16), UINT64_MAX, UINT64_MAX, &address), -ERANGE);
        assert_int_equal(address, 1);
        assert_int_equal(pmem_place(MIB(16), MIB(2), GIB(64), &address), 0);
        assert_int_equal(address, GIB(4));
        assert_int_equal(pmem_place(GIB(4) + MIB(2), MIB(2), GIB(64), &address), 0);
        assert_int_equal(address, GIB(5));
        assert_int_equal(pmem_place(GIB(5), GIB(59), GIB(64), &address), 0);
        assert_int_equal(address, GIB(5));
}

/* Returns its exit status. */
static int run_with(uint64_t size, bool locked, char text[static 4096]) {
        char more[256];
        Device d = {};
        int fd = -EBADF, r;
        Run run;

        RUN_PREPARE(&run, pmem, "");
        (void) unlink(run.control);
        make_file(&d, &run, "a", size, 0);
        if (locked) {
                fd = open(d.file, O_RDWR | O_CLOEXEC);
                assert_int_equal(flock(fd, LOCK_EX), 0);
        }
        (void) snprintf(more, sizeof(more), ", \"devices\": { \"a\": { \"type\": \"pmem\", \"path\": \"%s\" } }", d.file);
        {
                Run other;

                RUN_PREPARE(&other, pmem, more);
                run_vmmd(&other, false);
                r = run_end(&other, text);
        }
        (void) safe_close(fd);
        (void) unlink(d.file);
        (void) snprintf(more, sizeof(more), "%s/kernel", run.directory);
        (void) unlink(more);
        (void) snprintf(more, sizeof(more), "%s/definition.json", run.directory);
        (void) unlink(more);
        remove_directories(&run);
        return r;
}

static void a_file_of_odd_size_is_refused(void **state) {
        char text[4096];

        assert_int_equal(run_with(FILE_SIZE + 4096, false, text), 1);
        assert_non_null(strstr(text, "2101248 bytes, is not a multiple of 2 MiB"));
}

static void a_file_that_is_the_memory_of_another_machine_is_refused(void **state) {
        char text[4096];

        assert_int_equal(run_with(FILE_SIZE, true, text), 1);
        assert_non_null(strstr(text, "another machine has it as its memory"));
}

static void what_the_guest_stores_is_in_the_file(void **state) {
        Device a = {}, b = {};
        char more[512], text[4096];
        Run run, files;
        int r;

        /* The files' names are part of the definition: they lie in a directory of their own. */
        RUN_PREPARE(&files, pmem, "");
        make_file(&a, &files, "a", FILE_SIZE, 0);
        make_file(&b, &files, "b", FILE_SIZE, 0x1122334455667788);
        (void) snprintf(more, sizeof(more), ", \"devices\": { \"a\": { \"type\": \"pmem\", \"path\": \"%s\" }, "
                "\"b\": { \"type\": \"pmem\", \"path\": \"%s\", \"readOnly\": true } }", a.file, b.file);
        RUN_PREPARE(&run, pmem, more);
        start_helper(&a, &run, "a", false);
        start_helper(&b, &run, "b", true);
        run_vmmd(&run, true);
        r = run_end(&run, text);
        if (r != 0)
                fail_msg("status %d: %s", r, text);
        assert_int_equal(word_of(&a, 0), 3); /* also over resets, which RAM is emptied by */
        assert_int_equal(word_of(&a, 1), 0x1122334455667788);
        assert_int_equal(word_of(&a, 2), 0x1122334455667788);
        assert_int_equal(word_of(&b, 0), 0x1122334455667788);
        end_device(&a);
        end_device(&b);
        remove_directories(&run);
        (void) snprintf(more, sizeof(more), "%s/kernel", files.directory);
        (void) unlink(more);
        (void) snprintf(more, sizeof(more), "%s/definition.json", files.directory);
        (void) unlink(more);
        remove_directories(&files);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(lies_above_everything_else),
                cmocka_unit_test(a_file_of_odd_size_is_refused),
                cmocka_unit_test(a_file_that_is_the_memory_of_another_machine_is_refused),
                cmocka_unit_test(what_the_guest_stores_is_in_the_file),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
