/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmd as a process, without any unit: machines of one tiny kernel each, on the real /dev/kvm. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "util.h"

#define KERNEL_ADDRESS 0x1000000

/* 64-bit kernels, entered with paging on and everything below 4 GiB mapped. The count of boots is in the clock's memory, which is all that
 * outlasts a reset. */
#define POWER_OFF "mov $0x604, %dx\n mov $0x3400, %ax\n out %ax, %dx\n 9: hlt\n jmp 9b\n"
#define READ_COUNT "mov $0x40, %al\n out %al, $0x70\n in $0x71, %al\n"
#define NEXT_COUNT "inc %al\n mov %al, %bl\n mov $0x40, %al\n out %al, $0x70\n mov %bl, %al\n out %al, $0x71\n"
#define CRASH "lidt 8f(%rip)\n ud2\n 8: .quad 0\n .word 0\n"

__asm__(".pushsection .rodata\n"
        "kernel_off: " POWER_OFF "kernel_off_end:\n"
        /* Memory must be as at first on each boot; powers off at the third. By 0xCF9, then by the keyboard controller. */
        "kernel_reset: mov $0x2000000, %rdi\n cmpl $0, (%rdi)\n je 1f\n" CRASH "1: movl $0x12345678, (%rdi)\n" READ_COUNT
        "cmp $2, %al\n jae 3f\n" NEXT_COUNT "cmp $1, %bl\n jne 2f\n"
        "mov $0xcf9, %dx\n mov $6, %al\n out %al, %dx\n 4: hlt\n jmp 4b\n"
        "2: mov $0xfe, %al\n out %al, $0x64\n 4: hlt\n jmp 4b\n"
        "3: " POWER_OFF "kernel_reset_end:\n"
        /* pvpanic is in slot 31: finds its BAR, lets it decode, says that it panicked. */
        "kernel_panic: mov $0xcf8, %dx\n mov $0x8000f810, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n in %dx, %eax\n mov %rax, %rdi\n"
        "mov $0xcf8, %dx\n mov $0x8000f804, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n mov $2, %ax\n out %ax, %dx\n"
        "movb $1, (%rdi)\n 1: hlt\n jmp 1b\n kernel_panic_end:\n"
        "kernel_fault: " CRASH "kernel_fault_end:\n"
        /* Powers off at the power button. */
        "kernel_button: mov $0x600, %dx\n 1: in %dx, %ax\n test $0x100, %ax\n jz 1b\n" POWER_OFF "kernel_button_end:\n"
        "kernel_idle: cli\n 1: hlt\n jmp 1b\n kernel_idle_end:\n"
        /* Asks the clock for its update interrupt, and waits for the flag. */
        "kernel_clock: mov $0x0b, %al\n out %al, $0x70\n mov $0x12, %al\n out %al, $0x71\n"
        "1: mov $0x0c, %al\n out %al, $0x70\n in $0x71, %al\n test $0x10, %al\n jz 1b\n" POWER_OFF "kernel_clock_end:\n"
        ".popsection\n");
#define DECLARE(name) extern const uint8_t kernel_##name[], kernel_##name##_end[];
DECLARE(off)
DECLARE(reset)
DECLARE(panic)
DECLARE(fault)
DECLARE(button)
DECLARE(idle)
DECLARE(clock)

typedef struct Run {
        char directory[32];
        char control[64];
        pid_t pid;
        int output;
} Run;

static void write_file(const Run *run, const char *name, const void *data, size_t size) {
        _cleanup_close_ int fd = -EBADF;
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/%s", run->directory, name);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write_full(fd, data, size), 0);
}

static void write_kernel(const Run *run, const uint8_t *code, size_t size) {
        struct {
                Elf64_Ehdr ehdr;
                Elf64_Phdr phdr;
                uint8_t code[512];
        } image = {
                .ehdr = { .e_ident = { 0x7F, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT }, .e_type = ET_EXEC,
                          .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_entry = KERNEL_ADDRESS, .e_phoff = sizeof(Elf64_Ehdr),
                          .e_ehsize = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 1 },
                .phdr = { .p_type = PT_LOAD, .p_paddr = KERNEL_ADDRESS, .p_filesz = sizeof(image.code), .p_memsz = sizeof(image.code),
                          .p_flags = PF_R | PF_X },
        };

        assert_true(size <= sizeof(image.code));
        image.phdr.p_offset = (size_t) ((uint8_t *) image.code - (uint8_t *) &image);
        memcpy(image.code, code, size);
        write_file(run, "kernel", &image, sizeof(image));
}

/* Starts vmmd on a definition: `more` is JSON that follows the kernel's path. */
static void run_start(Run *run, const uint8_t *code, size_t size, const char *more) {
        const char *program = getenv("VMMD");
        char text[512], definition[96], control[96];
        int p[2];

        assert_non_null(program);
        *run = (Run) { .directory = "/tmp/vmm-machine-XXXXXX" };
        assert_non_null(mkdtemp(run->directory));
        write_kernel(run, code, size);
        (void) snprintf(text, sizeof(text), "{ \"memory\": \"64M\", \"kernel\": \"%s/kernel\"%s }", run->directory, more);
        write_file(run, "definition.json", text, strlen(text));
        (void) snprintf(run->control, sizeof(run->control), "%s/control", run->directory);
        (void) snprintf(definition, sizeof(definition), "--definition=%s/definition.json", run->directory);
        (void) snprintf(control, sizeof(control), "--control=%s", run->control);

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        run->pid = fork();
        assert_true(run->pid >= 0);
        if (run->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(p[1], STDERR_FILENO);
                (void) execl(program, program, definition, control, "--runtime-directory=/nonexistent", "tiny", NULL);
                _exit(127);
        }
        (void) close(p[1]);
        run->output = p[0];
}

/* Waits for its end; returns the exit status, and everything it said in `text`. */
static int run_end(Run *run, char text[static 4096]) {
        static const char *const files[] = { "kernel", "definition.json", "control" };
        uint64_t until = now_usec() + 20 * USEC_PER_SEC;
        size_t have = 0;
        int status;

        for (;;) {
                struct pollfd p = { .fd = run->output, .events = POLLIN };
                ssize_t n;

                if (now_usec() > until)
                        (void) kill(run->pid, SIGKILL);
                if (poll(&p, 1, 1000) <= 0)
                        continue;
                n = read(run->output, text + have, 4095 - have);
                if (n <= 0)
                        break;
                have += (size_t) n;
        }
        text[have] = 0;
        (void) close(run->output);
        assert_int_equal(waitpid(run->pid, &status, 0), run->pid);
        for (size_t i = 0; i < ELEMENTSOF(files); i++) {
                char path[96];

                (void) snprintf(path, sizeof(path), "%s/%s", run->directory, files[i]);
                (void) unlink(path);
        }
        (void) rmdir(run->directory);
        if (!WIFEXITED(status))
                fail_msg("vmmd ended by signal %d: %s", WTERMSIG(status), text);
        return WEXITSTATUS(status);
}

static void expect_end(const uint8_t *code, const uint8_t *end, const char *more, int status, const char *word) {
        char text[4096];
        Run run;
        int r;

        run_start(&run, code, (size_t) (end - code), more);
        r = run_end(&run, text);
        if (r != status || !strstr(text, word))
                fail_msg("status %d, expected %d and '%s': %s", r, status, word, text);
}
#define KERNEL(name) kernel_##name, kernel_##name##_end

/* One Varlink call; the reply's text. */
static void call(const Run *run, const char *method, char reply[static 4096]) {
        _cleanup_close_ int fd = -EBADF;
        char message[256];
        size_t have = 0;

        for (unsigned i = 0; (fd = connect_unix(run->control)) < 0; i++) {
                assert_true(i < 1000);
                (void) usleep(10000);
        }
        (void) snprintf(message, sizeof(message), "{\"method\":\"io.vmmd.Machine.%s\"}", method);
        assert_int_equal(write_full(fd, message, strlen(message) + 1), 0);
        for (;;) {
                ssize_t n = read(fd, reply + have, 4095 - have);

                if (n <= 0)
                        break;
                have += (size_t) n;
                if (reply[have - 1] == 0)
                        break;
        }
        reply[have] = 0;
}

static void call_and_expect(const Run *run, const char *method, const char *word) {
        char reply[4096];

        call(run, method, reply);
        if (!strstr(reply, word))
                fail_msg("%s: no '%s' in %s", method, word, reply);
}

static void wait_for_state(const Run *run, const char *state) {
        char reply[4096], word[64];

        (void) snprintf(word, sizeof(word), "\"state\":\"%s\"", state);
        for (unsigned i = 0; i < 1000; i++) {
                char *p;

                call(run, "Describe", reply);
                /* Whether there are blanks in it is json-c's matter. */
                for (p = reply; (p = strchr(p, ' '));)
                        memmove(p, p + 1, strlen(p));
                if (strstr(reply, word))
                        return;
                (void) usleep(10000);
        }
        fail_msg("never %s: %s", state, reply);
}

/* --- what becomes of the guest, and what vmmd's exit status says of it --- */

static void a_broken_kernel_is_35(void **state) {
        /* The later of two like keys counts, or the definition is refused for it: 35 in either case, and the file is named. */
        expect_end(KERNEL(off), ", \"initrd\": \"/dev/null\", \"kernel\": \"/etc/passwd\"", 35, "kernel");
        expect_end(KERNEL(off), ", \"initrd\": \"/nonexistent/initrd\"", 35, "/nonexistent/initrd");
}

static void a_wrong_definition_is_35(void **state) {
        expect_end(KERNEL(off), ", \"colour\": \"blue\"", 35, "colour");
        expect_end(KERNEL(off), ", \"memory\": \"1K\"", 35, "memory");
        expect_end(KERNEL(off), ", \"vcpus\": 0", 35, "vcpus");
}

static void a_missing_helper_is_36(void **state) {
        expect_end(KERNEL(idle), ", \"devices\": { \"r\": { \"type\": \"rng\" } }", 36, "/nonexistent/tiny/r.vhost-user");
}

static void a_triple_fault_is_33(void **state) {
        expect_end(KERNEL(fault), "", 33, "triple fault");
}

static void a_panic_is_34(void **state) {
        expect_end(KERNEL(panic), "", 34, "panicked");
}

static void a_reset_where_the_definition_says_stop_is_32(void **state) {
        expect_end(KERNEL(reset), ", \"onReboot\": \"stop\"", 32, "reboot");
}

static void power_off_is_0(void **state) {
        expect_end(KERNEL(off), "", 0, "powered off");
        expect_end(KERNEL(off), ", \"vcpus\": 4", 0, "powered off");
}

static void a_guest_resets_in_place_twice_and_powers_off(void **state) {
        expect_end(KERNEL(reset), "", 0, "boots again");
        expect_end(KERNEL(reset), ", \"vcpus\": 3, \"prefault\": true", 0, "boots again");
}

static void the_clock_ticks(void **state) {
        expect_end(KERNEL(clock), "", 0, "powered off");
}

/* --- the control interface --- */

#define START(run, name, more) run_start(run, kernel_##name, (size_t) (kernel_##name##_end - kernel_##name), more)

static void the_power_button_is_seen_by_the_guest(void **state) {
        char text[4096];
        Run run;

        START(&run, button, "");
        wait_for_state(&run, "running");
        call_and_expect(&run, "PowerOff", "{");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "The guest powered off"));
}

static void sigterm_is_the_power_button_and_then_the_end(void **state) {
        char text[4096];
        Run run;

        START(&run, idle, ", \"stopTimeout\": \"1s\"");
        wait_for_state(&run, "running");
        assert_int_equal(kill(run.pid, SIGTERM), 0);
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "did not power off"));
}

static void pause_reset_and_resume_in_any_order(void **state) {
        char text[4096];
        Run run;

        START(&run, idle, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        call_and_expect(&run, "Resume", "WrongState");
        for (unsigned i = 0; i < 20; i++) {
                call_and_expect(&run, "Pause", "{");
                call_and_expect(&run, "Pause", "WrongState");
                if (i % 3 == 0) {
                        call_and_expect(&run, "Reset", "{");
                        wait_for_state(&run, "running");
                } else
                        call_and_expect(&run, "Resume", "{");
        }
        for (unsigned i = 0; i < 10; i++) {
                char reply[4096];

                call(&run, "Reset", reply); /* or WrongState, where the last is not over */
        }
        wait_for_state(&run, "running");
        call_and_expect(&run, "Terminate", "{");
        assert_int_equal(run_end(&run, text), 0);
}

static void a_panicked_guest_can_be_kept(void **state) {
        char text[4096];
        Run run;

        START(&run, panic, ", \"onPanic\": \"pause\"");
        wait_for_state(&run, "panicked");
        call_and_expect(&run, "Resume", "WrongState");
        call_and_expect(&run, "Describe", "panicked");
        call_and_expect(&run, "Terminate", "{");
        assert_int_equal(run_end(&run, text), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_broken_kernel_is_35),
                cmocka_unit_test(a_wrong_definition_is_35),
                cmocka_unit_test(a_missing_helper_is_36),
                cmocka_unit_test(a_triple_fault_is_33),
                cmocka_unit_test(a_panic_is_34),
                cmocka_unit_test(a_reset_where_the_definition_says_stop_is_32),
                cmocka_unit_test(power_off_is_0),
                cmocka_unit_test(a_guest_resets_in_place_twice_and_powers_off),
                cmocka_unit_test(the_clock_ticks),
                cmocka_unit_test(the_power_button_is_seen_by_the_guest),
                cmocka_unit_test(sigterm_is_the_power_button_and_then_the_end),
                cmocka_unit_test(pause_reset_and_resume_in_any_order),
                cmocka_unit_test(a_panicked_guest_can_be_kept),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
