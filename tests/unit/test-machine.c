/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmd as a process, without any unit: machines of one tiny kernel each, on the real /dev/kvm. */

#include <signal.h>

#include "machine-rig.h"

/* The count of boots is in the clock's memory, which is all that
 * outlasts a reset. */
#define READ_COUNT "mov $0x40, %al\n out %al, $0x70\n in $0x71, %al\n"
#define NEXT_COUNT "inc %al\n mov %al, %bl\n mov $0x40, %al\n out %al, $0x70\n mov %bl, %al\n out %al, $0x71\n"

__asm__(".pushsection .rodata\n"
        "kernel_off: " KERNEL_POWER_OFF "kernel_off_end:\n"
        /* Memory must be as at first on each boot; powers off at the third. By 0xCF9, then by the keyboard controller. */
        "kernel_reset: mov $0x2000000, %rdi\n cmpl $0, (%rdi)\n je 1f\n" KERNEL_CRASH "1: movl $0x12345678, (%rdi)\n" READ_COUNT
        "cmp $2, %al\n jae 3f\n" NEXT_COUNT "cmp $1, %bl\n jne 2f\n"
        "mov $0xcf9, %dx\n mov $6, %al\n out %al, %dx\n 4: hlt\n jmp 4b\n"
        "2: mov $0xfe, %al\n out %al, $0x64\n 4: hlt\n jmp 4b\n"
        "3: " KERNEL_POWER_OFF "kernel_reset_end:\n"
        "kernel_panic: " KERNEL_PANIC "kernel_panic_end:\n"
        "kernel_fault: " KERNEL_CRASH "kernel_fault_end:\n"
        /* Powers off at the power button. */
        "kernel_button: mov $0x600, %dx\n 1: in %dx, %ax\n test $0x100, %ax\n jz 1b\n" KERNEL_POWER_OFF "kernel_button_end:\n"
        "kernel_idle: cli\n 1: hlt\n jmp 1b\n kernel_idle_end:\n"
        /* Asks the clock for its update interrupt, and waits for the flag. */
        "kernel_clock: mov $0x0b, %al\n out %al, $0x70\n mov $0x12, %al\n out %al, $0x71\n"
        "1: mov $0x0c, %al\n out %al, $0x70\n in $0x71, %al\n test $0x10, %al\n jz 1b\n" KERNEL_POWER_OFF "kernel_clock_end:\n"
        ".popsection\n");
KERNEL_DECLARE(off)
KERNEL_DECLARE(reset)
KERNEL_DECLARE(panic)
KERNEL_DECLARE(fault)
KERNEL_DECLARE(button)
KERNEL_DECLARE(idle)
KERNEL_DECLARE(clock)

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

static void a_pc_has_no_device_tree_and_nothing_is_run_for_it(void **state) {
        char text[4096];
        Run run;

        RUN_PREPARE(&run, off, "");
        run.option = "--print-device-tree";
        run_vmmd(&run, false);
        assert_int_equal(run_end(&run, text), 1);
        assert_string_equal(text, "vmmd: On this architecture guests have no device tree.\n");
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

static void the_power_button_is_seen_by_the_guest(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, button, "");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "The guest powered off"));
}

static void sigterm_is_the_power_button_and_then_the_end(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, idle, ", \"stopTimeout\": \"1s\"");
        wait_for_state(&run, "running");
        assert_int_equal(kill(run.pid, SIGTERM), 0);
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "did not power off"));
}

static void pause_reset_and_resume_in_any_order(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, idle, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        call_and_expect(&run, "Resume", "{}", "WrongState");
        for (unsigned i = 0; i < 20; i++) {
                call_and_succeed(&run, "Pause", "{}");
                call_and_expect(&run, "Pause", "{}", "WrongState");
                if (i % 3 == 0) {
                        call_and_succeed(&run, "Reset", "{}");
                        wait_for_state(&run, "running");
                } else
                        call_and_succeed(&run, "Resume", "{}");
        }
        /* Mostly before the last is over. */
        for (unsigned i = 0; i < 50; i++)
                call_and_succeed(&run, "Reset", "{}");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Terminate", "{}");
        assert_int_equal(run_end(&run, text), 0);
}

static void a_panicked_guest_can_be_kept(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, panic, ", \"onPanic\": \"pause\"");
        wait_for_state(&run, "panicked");
        call_and_expect(&run, "Resume", "{}", "WrongState");
        call_and_expect(&run, "Describe", "{}", "panicked");
        call_and_succeed(&run, "Terminate", "{}");
        assert_int_equal(run_end(&run, text), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_broken_kernel_is_35),
                cmocka_unit_test(a_wrong_definition_is_35),
                cmocka_unit_test(a_pc_has_no_device_tree_and_nothing_is_run_for_it),
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
