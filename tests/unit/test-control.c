/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The control interfaces of a running vmmd: each event is caused here, by the guest, by a helper or by a client. */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "fake-balloon.h"
#include "idl.h"
#include "interfaces.h"
#include "json-util.h"
#include "machine-rig.h"

#define INTERFACE "io.vmmd.Machine."
#define WAIT_FOR_BUTTON "mov $0x600, %dx\n 1: in %dx, %ax\n test $0x100, %ax\n jz 1b\n"
/* Slot 1 of the bus is the first device: its BAR, decoding, to rdi. */
#define FIND_DEVICE                                                                                            \
        "mov $0xcf8, %dx\n mov $0x80000810, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n in %dx, %eax\n mov %rax, %rdi\n" \
        "mov $0xcf8, %dx\n mov $0x80000804, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n mov $2, %ax\n out %ax, %dx\n"
/* ACKNOWLEDGE, DRIVER, VERSION_1, FEATURES_OK, DRIVER_OK; no queue. */
#define DRIVE_DEVICE                                                                                           \
        "movb $1, 0x14(%rdi)\n movb $3, 0x14(%rdi)\n movl $1, 8(%rdi)\n movl $1, 0xc(%rdi)\n movb $11, 0x14(%rdi)\n" \
        "movb $15, 0x14(%rdi)\n"
/* A gate for NMIs that powers off, then one access to a port, by which the test sees that the guest is that far. */
#define PREPARE_NMI                                                                                            \
        "mov $0x2100000, %rsp\n lea 5f(%rip), %rax\n mov $0x2000000, %rdi\n mov %ax, 32(%rdi)\n mov %cs, %cx\n" \
        "mov %cx, 34(%rdi)\n movw $0x8e00, 36(%rdi)\n shr $16, %rax\n mov %ax, 38(%rdi)\n shr $16, %rax\n mov %eax, 40(%rdi)\n" \
        "movl $0, 44(%rdi)\n lidt 6f(%rip)\n in $0x71, %al\n"
#define ON_NMI "5: " KERNEL_POWER_OFF "6: .word 0xfff\n .quad 0x2000000\n"

__asm__(".pushsection .rodata\n"
        "kernel_idle: cli\n 1: hlt\n jmp 1b\n kernel_idle_end:\n"
        "kernel_button_crash: " WAIT_FOR_BUTTON KERNEL_CRASH "kernel_button_crash_end:\n"
        "kernel_button: " WAIT_FOR_BUTTON KERNEL_POWER_OFF "kernel_button_end:\n"
        "kernel_button_panic: " WAIT_FOR_BUTTON KERNEL_PANIC "kernel_button_panic_end:\n"
        "kernel_driver: " FIND_DEVICE DRIVE_DEVICE WAIT_FOR_BUTTON "movb $0, 0x14(%rdi)\n cli\n 1: hlt\n jmp 1b\n kernel_driver_end:\n"
        "kernel_nmi_halted: " PREPARE_NMI "cli\n 1: hlt\n jmp 1b\n" ON_NMI "kernel_nmi_halted_end:\n"
        "kernel_nmi_busy: " PREPARE_NMI "1: jmp 1b\n" ON_NMI "kernel_nmi_busy_end:\n"
        /* Says "ok" on the first serial port, then what it hears. */
        "kernel_echo: mov $0x3f8, %dx\n mov $0x6f, %al\n out %al, %dx\n mov $0x6b, %al\n out %al, %dx\n"
        "1: mov $0x3fd, %dx\n in %dx, %al\n test $1, %al\n jz 1b\n mov $0x3f8, %dx\n in %dx, %al\n out %al, %dx\n jmp 1b\n"
        "kernel_echo_end:\n"
        ".popsection\n");
KERNEL_DECLARE(idle)
KERNEL_DECLARE(button_crash)
KERNEL_DECLARE(button)
KERNEL_DECLARE(button_panic)
KERNEL_DECLARE(driver)
KERNEL_DECLARE(nmi_halted)
KERNEL_DECLARE(nmi_busy)
KERNEL_DECLARE(echo)

/* --- helpers --- */

typedef struct Helper {
        pid_t pid;
        char sockets[2][96];
} Helper;

/* The real one. `varlink` is the name of its Varlink socket, by which vmmd finds it or not. */
static void helper_start(Helper *h, const Run *run, const char *type, const char *device, const char *varlink) {
        const char *program = getenv("VMM_DEVICE"), *suffix = streq(type, "serial") ? "bus" : "vhost-user";
        char directory[64], socket_option[128], varlink_option[128];

        assert_non_null(program);
        (void) snprintf(directory, sizeof(directory), "%s/devices", run->directory);
        (void) mkdir(directory, 0700);
        (void) snprintf(directory, sizeof(directory), "%s/devices/tiny", run->directory);
        (void) mkdir(directory, 0700);
        (void) snprintf(h->sockets[0], sizeof(h->sockets[0]), "%s/%s.%s", directory, device, suffix);
        (void) snprintf(h->sockets[1], sizeof(h->sockets[1]), "%s/%s.varlink", directory, varlink);
        (void) snprintf(socket_option, sizeof(socket_option), "--socket-path=%s", h->sockets[0]);
        (void) snprintf(varlink_option, sizeof(varlink_option), "--varlink-path=%s", h->sockets[1]);
        h->pid = fork();
        assert_true(h->pid >= 0);
        if (h->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
                (void) execl(program, program, type, socket_option, varlink_option, NULL);
                _exit(127);
        }
        for (unsigned i = 0; access(h->sockets[0], F_OK) < 0 || access(h->sockets[1], F_OK) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
}

static void helper_kill(Helper *h) {
        (void) kill(h->pid, SIGKILL);
        assert_int_equal(waitpid(h->pid, NULL, 0), h->pid);
        (void) unlink(h->sockets[0]);
        (void) unlink(h->sockets[1]);
}

static void remove_devices(const Run *run) {
        char path[64];

        (void) snprintf(path, sizeof(path), "%s/devices/tiny", run->directory);
        (void) rmdir(path);
        (void) snprintf(path, sizeof(path), "%s/devices", run->directory);
        (void) rmdir(path);
        (void) rmdir(run->directory);
}

/* --- subscribers --- */

static int subscribe(const Run *run, const char *parameters) {
        int fd = run_connect(run);

        send_call(fd, INTERFACE "SubscribeEvents", parameters, ",\"more\":true");
        return fd;
}

/* The next event is of that type, and `word` is in its text. Returns its sequence number. */
static int64_t expect_event(int fd, const char *type, const char *word) {
        _cleanup_json_ json_object *reply = receive(fd);
        json_object *parameters = json_get(reply, "parameters", json_type_object);
        const char *text = reply ? json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN) : "(nothing)";

        if (!streq(json_get_string(parameters, "type", ""), type) || !strstr(text, word))
                fail_msg("expected %s with '%s': %s", type, word, text);
        assert_true(json_get_boolean(reply, "continues", false));
        return json_get_integer(parameters, "sequence", -1);
}

/* The orderly end: a last reply, and then nothing. */
static void expect_last(int fd, const char *reason) {
        _cleanup_json_ json_object *reply = receive(fd);
        json_object *parameters = json_get(reply, "parameters", json_type_object);

        assert_non_null(reply);
        assert_string_equal(json_get_string(parameters, "type", ""), "machineState");
        assert_string_equal(json_get_string(parameters, "state", ""), "stopping");
        if (!strstr(json_get_string(parameters, "reason", ""), reason))
                fail_msg("'%s' does not say '%s'", json_get_string(parameters, "reason", ""), reason);
        assert_false(json_get_boolean(reply, "continues", false));
        assert_null(receive(fd));
        (void) close(fd);
}

static void wait_for_answer(const Run *run, const char *method, const char *word) {
        char name[64], reply[4096];

        (void) snprintf(name, sizeof(name), INTERFACE "%s", method);
        for (unsigned i = 0; i < 6000; i++) {
                call_text(run, name, "{}", reply);
                if (strstr(reply, word))
                        return;
                (void) usleep(10000);
        }
        fail_msg("%s never says '%s': %s", method, word, reply);
}

static void terminate(Run *run) {
        char text[4096];

        call_and_succeed(run, "Terminate", "{}");
        assert_int_equal(run_end(run, text), 0);
}

/* --- the interface --- */

static void every_method_has_a_callback(void **state) {
        static const char *const texts[] = { varlink_text_io_vmmd_Machine, varlink_text_io_systemd_MachineInstance,
                                             varlink_text_io_systemd_Metrics };
        Run run;

        RUN_START(&run, idle, "");
        wait_for_state(&run, "running");
        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                _cleanup_(varlink_interface_freep) VarlinkInterface *interface = NULL;

                assert_int_equal(varlink_interface_parse(texts[i], &interface, NULL), 0);
                for (size_t k = 0; k < interface->n_symbols; k++) {
                        char name[128], reply[4096];

                        if (interface->symbols[k].kind != VARLINK_SYMBOL_METHOD)
                                continue;
                        (void) snprintf(name, sizeof(name), "%s.%s", interface->name, interface->symbols[k].name);
                        call_text(&run, name, "{\"nonsense\":1}", reply);
                        /* Refused for its parameters, or for its flags, but not for want of an implementation. */
                        if (!strstr(reply, "InvalidParameter") && !strstr(reply, "ExpectedMore") && !strstr(reply, "ExpectedUpgrade"))
                                fail_msg("%s: %s", name, reply);
                }
        }
        terminate(&run);
}

static void assert_same_type(const VarlinkType *a, const VarlinkType *b, const char *where) {
        if (a->kind != b->kind || a->nullable != b->nullable || !streq_ptr(a->name, b->name) || a->n_fields != b->n_fields)
                fail_msg("%s differs", where);
        for (size_t i = 0; i < a->n_fields; i++) {
                if (!streq(a->fields[i].name, b->fields[i].name) ||
                        !streq_ptr(a->fields[i].documentation, b->fields[i].documentation))
                        fail_msg("%s: %s and %s differ", where, a->fields[i].name, b->fields[i].name);
                assert_same_type(&a->fields[i].type, &b->fields[i].type, a->fields[i].name);
        }
        if (a->element)
                assert_same_type(a->element, b->element, where);
}

static void the_types_that_interfaces_share_are_the_same(void **state) {
        static const char *const same[] = { "BalloonFeature", "BalloonStatistics", "WorkingSetBucket" };
        _cleanup_(varlink_interface_freep) VarlinkInterface *machine = NULL, *balloon = NULL;
        const VarlinkSymbol *a, *b;

        assert_int_equal(varlink_interface_parse(varlink_text_io_vmmd_Machine, &machine, NULL), 0);
        assert_int_equal(varlink_interface_parse(varlink_text_io_vmmd_Balloon, &balloon, NULL), 0);
        for (size_t i = 0; i < ELEMENTSOF(same); i++) {
                a = varlink_interface_find(machine, VARLINK_SYMBOL_TYPE, same[i]);
                b = varlink_interface_find(balloon, VARLINK_SYMBOL_TYPE, same[i]);
                assert_non_null(a);
                assert_non_null(b);
                assert_same_type(&a->type, &b->type, same[i]);
        }
        /* vmmd puts the device's name in front, and passes the rest on. */
        a = varlink_interface_find(machine, VARLINK_SYMBOL_TYPE, "BalloonState");
        b = varlink_interface_find(balloon, VARLINK_SYMBOL_TYPE, "BalloonState");
        assert_int_equal(a->type.n_fields, b->type.n_fields + 1);
        assert_string_equal(a->type.fields[0].name, "device");
        for (size_t i = 0; i < b->type.n_fields; i++) {
                assert_string_equal(a->type.fields[i + 1].name, b->type.fields[i].name);
                assert_same_type(&a->type.fields[i + 1].type, &b->type.fields[i].type, b->type.fields[i].name);
        }
        /* Errors go by their names. */
        for (size_t i = 0; i < balloon->n_symbols; i++) {
                if (balloon->symbols[i].kind != VARLINK_SYMBOL_ERROR)
                        continue;
                a = varlink_interface_find(machine, VARLINK_SYMBOL_ERROR, balloon->symbols[i].name);
                assert_non_null(a);
                assert_same_type(&a->type, &balloon->symbols[i].type, a->name);
        }
}

static void wrong_calls_are_refused(void **state) {
        static const struct {
                const char *method, *parameters, *word;
        } cases[] = {
                { "SubscribeEvents", "{}", "ExpectedMore" },
                { "AttachConsole", "{}", "ExpectedUpgrade" },
                { "OpenConsole", "{}", "NoConsole" },
                { "OpenConsole", "{\"device\":\"x\"}", "NoSuchDevice" },
                { "SetConsoleSize", "{\"columns\":1,\"rows\":1}", "NoConsole" },
                { "SendKeys", "{\"keys\":[\"a\"]}", "NoInput" },
                { "SendKeys", "{\"keys\":[\"a\"],\"device\":\"x\"}", "NoSuchDevice" },
                { "SendInput", "{\"events\":[]}", "NoInput" },
                { "DescribeBalloon", "{}", "NoBalloon" },
                { "SetBalloonTarget", "{\"target\":-1}", "InvalidParameter" },
                { "SetBalloonTarget", "{\"target\":67108865}", "InvalidParameter" },
                { "SetBalloonTarget", "{\"target\":0}", "NoBalloon" },
                { "GetBalloonStatistics", "{}", "NoBalloon" },
                { "GetBalloonStatistics", "{\"maximumAge\":-1}", "maximumAge" },
                { "GetWorkingSet", "{\"device\":\"x\"}", "NoSuchDevice" },
                { "HintFreePages", "{}", "NoBalloon" },
                { "ConfigureWorkingSet", "{\"intervals\":[1],\"refreshThreshold\":0,\"reportThreshold\":0}", "NoBalloon" },
                { "ResizeDisk", "{\"device\":\"x\"}", "NoSuchDevice" },
                { "ResizeDisk", "{\"device\":\"x\",\"size\":513}", "InvalidParameter" },
                { "ResizeDisk", "{\"device\":\"x\",\"size\":-512}", "InvalidParameter" },
                { "SetLogLevel", "{\"level\":\"loud\"}", "InvalidParameter" },
                { "SetLogLevel", "{\"level\":\"info\",\"device\":\"x\"}", "NoSuchDevice" },
                { "InjectNmi", "{\"vcpu\":-1}", "InvalidParameter" },
                { "InjectNmi", "{\"vcpu\":1}", "InvalidParameter" },
                { "Resume", "{}", "WrongState" },
        };
        int fd;
        Run run;

        RUN_START(&run, idle, "");
        wait_for_state(&run, "running");
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                call_and_expect(&run, cases[i].method, cases[i].parameters, cases[i].word);
        fd = run_connect(&run);
        send_call(fd, INTERFACE "SubscribeEvents", "{\"statisticsInterval\":99999}", ",\"more\":true");
        send_call(fd, INTERFACE "SubscribeEvents", "{\"filter\":[\"weather\"]}", ",\"more\":true");
        for (unsigned i = 0; i < 2; i++) {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_string_equal(json_get_string(reply, "error", ""), "org.varlink.service.InvalidParameter");
        }
        (void) close(fd);
        terminate(&run);
}

/* --- the machine's events --- */

static void a_life_is_told(void **state) {
        int fd, filtered;
        int64_t first, last;
        Run run;

        RUN_START(&run, idle, ", \"vcpus\": 2");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        first = expect_event(fd, "present", "\"guestReady\":true");
        filtered = subscribe(&run, "{\"filter\":[\"guestReady\"]}");
        assert_int_equal(expect_event(filtered, "present", "\"state\":\"running\""), first);

        call_and_succeed(&run, "Pause", "{}");
        (void) expect_event(fd, "machineState", "\"paused\"");
        call_and_expect(&run, "Describe", "{}", "\"state\":\"paused\"");
        call_and_succeed(&run, "Resume", "{}");
        (void) expect_event(fd, "machineState", "\"running\"");
        call_and_succeed(&run, "Reset", "{}");
        (void) expect_event(fd, "machineState", "\"resetting\"");
        (void) expect_event(fd, "machineState", "\"running\"");
        last = expect_event(fd, "guestReady", "guestReady");
        assert_int_equal(last, first + 5);
        /* What a filter left out is counted. */
        assert_int_equal(expect_event(filtered, "guestReady", "\"missed\":0"), last);
        call_and_expect(&run, "Describe", "{}", "\"guestReady\":true");
        terminate(&run);
        expect_last(fd, "as asked");
        expect_last(filtered, "as asked");
}

static void the_end_of_a_guest_is_told_whatever_it_was(void **state) {
        char text[4096];
        int fd;
        Run run;

        RUN_START(&run, button, "");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "PowerOff", "{}");
        (void) expect_event(fd, "machineState", "stopping");
        expect_last(fd, "powered off");
        assert_int_equal(run_end(&run, text), 0);

        RUN_START(&run, button_panic, "");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "PowerButton", "{}");
        (void) expect_event(fd, "panic", "panicked");
        expect_last(fd, "panicked");
        assert_int_equal(run_end(&run, text), 34);

        RUN_START(&run, button_panic, ", \"onPanic\": \"pause\"");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "PowerButton", "{}");
        (void) expect_event(fd, "panic", "panicked");
        (void) expect_event(fd, "machineState", "\"panicked\"");
        call_and_expect(&run, "PowerButton", "{}", "WrongState");
        call_and_succeed(&run, "Reboot", "{}");
        (void) expect_event(fd, "machineState", "\"resetting\"");
        (void) expect_event(fd, "machineState", "\"running\"");
        (void) close(fd);
        terminate(&run);
}

static void a_crash_is_told(void **state) {
        char text[4096];
        int fd;
        Run run;

        RUN_START(&run, button_crash, "");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "PowerButton", "{}");
        expect_last(fd, "triple fault");
        assert_int_equal(run_end(&run, text), 33);
}

static void an_end_that_others_ask_for_is_told(void **state) {
        char text[4096];
        int fd;
        Run run;

        RUN_START(&run, idle, "");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        assert_int_equal(kill(run.pid, SIGTERM), 0);
        (void) expect_event(fd, "machineState", "stopping");
        call_and_expect(&run, "Reset", "{}", "WrongState");
        call_and_expect(&run, "Reboot", "{}", "WrongState");
        call_and_succeed(&run, "Terminate", "{}");
        expect_last(fd, "as asked");
        assert_int_equal(run_end(&run, text), 0);
}

/* --- orderly reboot --- */

static void a_reboot_is_a_power_off_that_ends_in_a_boot(void **state) {
        char text[4096];
        int fd;
        Run run;

        RUN_START(&run, button, ", \"onReboot\": \"stop\"");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{\"filter\":[\"machineState\"]}");
        (void) expect_event(fd, "present", "running");
        for (unsigned i = 0; i < 3; i++) {
                if (i == 1) {
                        call_and_succeed(&run, "Pause", "{}");
                        (void) expect_event(fd, "machineState", "paused");
                }
                if (i == 2)
                        assert_int_equal(kill(run.pid, SIGINT), 0);
                else
                        call_and_succeed(&run, "Reboot", "{}");
                (void) expect_event(fd, "machineState", "stopping");
                (void) expect_event(fd, "machineState", "powered off");
                (void) expect_event(fd, "machineState", "\"running\"");
        }
        call_and_expect(&run, "Describe", "{}", "\"resets\":3");
        assert_int_equal(kill(run.pid, SIGRTMIN + 4), 0);
        (void) expect_event(fd, "machineState", "stopping");
        expect_last(fd, "powered off");
        assert_int_equal(run_end(&run, text), 0);
}

static void a_deaf_guest_is_reset(void **state) {
        int fd;
        Run run;

        /* As long as it has time. */
        RUN_START(&run, idle, ", \"stopTimeout\": \"1h\"");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Reboot", "{}");
        call_and_succeed(&run, "Reboot", "{}");
        call_and_expect(&run, "Pause", "{}", "WrongState");
        call_and_expect(&run, "PowerButton", "{}", "WrongState");
        terminate(&run);

        RUN_START(&run, idle, ", \"stopTimeout\": \"1s\"");
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{\"filter\":[\"machineState\"]}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "Reboot", "{}");
        (void) expect_event(fd, "machineState", "stopping");
        (void) expect_event(fd, "machineState", "did not power off in time");
        (void) expect_event(fd, "machineState", "\"running\"");
        (void) close(fd);
        terminate(&run);
}

static void a_power_off_comes_after_a_reboot_that_was_asked_for(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, idle, ", \"stopTimeout\": \"1s\"");
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Reboot", "{}");
        call_and_succeed(&run, "PowerOff", "{}");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "did not power off"));
}

/* --- non-maskable interrupts --- */

static void wait_for_exits(const Run *run) {
        char reply[4096];

        for (unsigned i = 0; i < 6000; i++) {
                call_text(run, INTERFACE "Describe", "{}", reply);
                if (!strstr(reply, "\"exits\":0,"))
                        return;
                (void) usleep(10000);
        }
        fail_msg("the guest does not get anywhere: %s", reply);
}

static void an_nmi_reaches_a_guest_that_halts_or_runs(void **state) {
        char text[4096];
        Run run;

        RUN_START(&run, nmi_halted, ", \"vcpus\": 2");
        wait_for_exits(&run);
        call_and_succeed(&run, "Pause", "{}");
        call_and_expect(&run, "InjectNmi", "{}", "WrongState");
        call_and_succeed(&run, "Resume", "{}");
        call_and_succeed(&run, "InjectNmi", "{\"vcpu\":0}");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "powered off"));

        RUN_START(&run, nmi_busy, "");
        wait_for_exits(&run);
        call_and_succeed(&run, "InjectNmi", "{}");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "powered off"));
}

/* --- devices --- */

static void a_driver_makes_a_guest_ready(void **state) {
        Helper helper;
        int fd;
        Run run;

        RUN_PREPARE(&run, driver, ", \"devices\": { \"r\": { \"type\": \"rng\" } }");
        helper_start(&helper, &run, "rng", "r", "r");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        wait_for_answer(&run, "Describe", "\"guestReady\":true");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "devices");
        (void) close(fd);

        /* From its reset on, everything is seen. */
        call_and_succeed(&run, "Pause", "{}");
        fd = subscribe(&run, "{\"filter\":[\"deviceState\",\"guestReady\"]}");
        (void) expect_event(fd, "present", "paused");
        call_and_succeed(&run, "Reset", "{}");
        for (unsigned i = 0; i < 2; i++) {
                (void) expect_event(fd, "deviceState", "\"ready\"");
                (void) expect_event(fd, "deviceState", "\"active\"");
                (void) expect_event(fd, "guestReady", "guestReady");
                call_and_expect(&run, "Describe", "{}", "\"guestReady\":true");
                if (i == 0)
                        call_and_succeed(&run, "Reset", "{}");
        }
        call_and_succeed(&run, "PowerButton", "{}");
        (void) expect_event(fd, "deviceState", "\"ready\"");
        call_and_expect(&run, "Describe", "{}", "\"guestReady\":true"); /* it was, since the reset */
        (void) close(fd);
        terminate(&run);
        helper_kill(&helper);
        remove_devices(&run);
}

/* The Varlink side of a vsock device's helper: what the guest says is what the test says. */
typedef struct FakeVsock {
        int listener, device, vsock; /* the two subscriptions */
} FakeVsock;

static int bind_socket(const char *path, int type) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_return_code(bind(fd, (struct sockaddr *) &address, sizeof(address)), errno);
        return fd;
}

static void guest_says(const FakeVsock *f, const char *guest) {
        char text[512];
        int n = snprintf(text, sizeof(text), "{\"parameters\":{\"guest\":%s,\"sequence\":1,\"missed\":0},\"continues\":true}", guest);

        assert_int_equal(write_full(f->vsock, text, (size_t) n + 1), 0);
}

static void fake_vsock_accept(FakeVsock *f) {
        f->device = f->vsock = -EBADF;
        for (unsigned i = 0; i < 2; i++) {
                struct pollfd p = { .fd = f->listener, .events = POLLIN };
                _cleanup_json_ json_object *call = NULL;
                int fd;

                assert_int_equal(poll(&p, 1, 60000), 1);
                fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
                assert_return_code(fd, errno);
                call = receive(fd);
                *(streq(json_get_string(call, "method", ""), "io.vmmd.Vsock.Subscribe") ? &f->vsock : &f->device) = fd;
        }
        assert_true(f->device >= 0 && f->vsock >= 0);
        guest_says(f, "{\"ready\":false}");
}

/* Reads what the service manager is told until `word` comes; whether READY=1 was in it. */
static bool notified(int fd, const char *word) {
        bool ready = false;
        char text[1024];

        for (;;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t n;

                if (poll(&p, 1, 60000) != 1)
                        fail_msg("the service manager was never told '%s'", word);
                n = recv(fd, text, sizeof(text) - 1, 0);
                assert_true(n >= 0);
                text[n] = 0;
                for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
                        ready = ready || streq(line, "READY=1");
                        if (streq(line, word))
                                return ready;
                }
        }
}

static void a_guest_says_itself_when_it_is_ready(void **state) {
        char path[96], notify[96];
        FakeVsock fake;
        Helper helper;
        int fd, manager;
        Run run;

        RUN_PREPARE(&run, driver, ", \"readyWhen\": \"guest\", \"devices\": { \"v\": { \"type\": \"vsock\" } }");
        helper_start(&helper, &run, "vsock", "v", "unused");
        (void) snprintf(path, sizeof(path), "%s/devices/tiny/v.varlink", run.directory);
        fake.listener = bind_socket(path, SOCK_STREAM);
        assert_return_code(listen(fake.listener, 8), errno);
        (void) snprintf(notify, sizeof(notify), "%s/notify", run.directory);
        manager = bind_socket(notify, SOCK_DGRAM);
        assert_return_code(setenv("NOTIFY_SOCKET", notify, 1), errno);
        run_vmmd(&run, true);
        (void) unsetenv("NOTIFY_SOCKET");
        fake_vsock_accept(&fake);
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{\"filter\":[\"guestReady\",\"guestStatus\"]}");
        (void) expect_event(fd, "present", "\"guestReady\":false");

        /* It runs, its driver is at work, and still it is not ready. Nor can it say so by what it says to people. */
        guest_says(&fake, "{\"ready\":false,\"status\":\"booting\\nREADY=1\\nMAINPID=1\"}");
        (void) expect_event(fd, "guestStatus", "\"reason\":\"booting?READY=1?MAINPID=1\"");
        assert_false(notified(manager, "STATUS=Guest is not ready: booting?READY=1?MAINPID=1"));
        guest_says(&fake, "{\"ready\":true,\"status\":\"Startup finished.\"}");
        (void) expect_event(fd, "guestReady", "service manager");
        (void) expect_event(fd, "guestStatus", "Startup finished.");
        assert_false(notified(manager, "STATUS=Guest is ready: Startup finished."));
        assert_true(notified(manager, "READY=1"));
        call_and_expect(&run, "Describe", "{}", "\"guestReady\":true,\"guestStatus\":\"Startup finished.\"");

        /* The same again is no news; a shutdown is. */
        guest_says(&fake, "{\"ready\":true,\"status\":\"Startup finished.\"}");
        guest_says(&fake, "{\"ready\":false,\"status\":\"bye\"}");
        (void) expect_event(fd, "guestStatus", "bye");
        (void) notified(manager, "STATUS=Guest is not ready: bye");
        call_and_expect(&run, "Describe", "{}", "\"guestReady\":false,\"guestStatus\":\"bye\"");
        guest_says(&fake, "{\"ready\":true,\"status\":\"back\"}");
        (void) expect_event(fd, "guestReady", "guestReady");
        (void) expect_event(fd, "guestStatus", "back");
        call_and_succeed(&run, "Reset", "{}");
        for (unsigned i = 0;; i++) {
                char reply[4096];

                call_text(&run, "io.vmmd.Machine.Describe", "{}", reply);
                if (strstr(reply, "\"guestReady\":false") && !strstr(reply, "guestStatus"))
                        break;
                assert_true(i < 6000);
                (void) usleep(10000);
        }
        (void) close(fd);
        terminate(&run);
        helper_kill(&helper);
        (void) close(fake.device);
        (void) close(fake.vsock);
        (void) close(fake.listener);
        (void) close(manager);
        (void) unlink(path);
        (void) unlink(notify);
        remove_devices(&run);
}

static void a_helper_that_dies_and_comes_back_is_told(void **state) {
        char word[64];
        Helper helper;
        int fd;
        Run run;

        RUN_PREPARE(&run, driver, ", \"devices\": { \"r\": { \"type\": \"rng\" } }");
        helper_start(&helper, &run, "rng", "r", "r");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{\"filter\":[\"deviceFailed\",\"deviceRestarted\"]}");
        (void) expect_event(fd, "present", "running");
        for (unsigned i = 1; i <= 2; i++) {
                helper_kill(&helper);
                (void) expect_event(fd, "deviceFailed", "\"deviceState\":\"connecting\"");
                call_and_expect(&run, "Describe", "{}", "\"error\":\"its helper went away\",\"errorTime\":1");
                helper_start(&helper, &run, "rng", "r", "r");
                (void) expect_event(fd, "deviceRestarted", "\"device\":\"r\"");
                (void) snprintf(word, sizeof(word), "\"reconnects\":%u", i);
                call_and_expect(&run, "Describe", "{}", word);
        }
        /* Its helper says by itself who it is. */
        (void) snprintf(word, sizeof(word), "\"pid\":%d,\"reconnects\"", (int) helper.pid);
        wait_for_answer(&run, "Describe", word);
        /* For good. */
        helper_kill(&helper);
        (void) expect_event(fd, "deviceFailed", "connecting");
        (void) expect_event(fd, "deviceFailed", "\"deviceState\":\"failed\"");
        call_and_expect(&run, "Describe", "{}", "\"state\":\"failed\"");
        (void) close(fd);
        terminate(&run);
        remove_devices(&run);
}

/* What the helper of a device says its state is. */
static void ask_helper(const Run *run, const char *device, char state[static 16]) {
        _cleanup_json_ json_object *reply = NULL;
        _cleanup_close_ int fd = -EBADF;
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/devices/tiny/%s.varlink", run->directory, device);
        fd = connect_unix(path);
        assert_return_code(fd, errno);
        send_call(fd, "io.vmmd.Device.Describe", "{}", "");
        reply = receive(fd);
        (void) snprintf(state, 16, "%s", json_get_string(json_get(reply, "parameters", json_type_object), "state", ""));
}

/* From the present state to the last reply: no event tells what was known. */
static void expect_no_state_twice(int fd) {
        _cleanup_json_ json_object *present = receive(fd);
        json_object *devices = json_get(json_get(json_get(present, "parameters", json_type_object), "present", json_type_object), "devices", json_type_array);
        const char *known = json_get_string(json_object_array_get_idx(devices, 0), "state", "");
        bool continues = true;

        assert_string_not_equal(known, "");
        for (char told[16]; continues; known = told) {
                _cleanup_json_ json_object *reply = receive(fd);
                json_object *event = json_get(reply, "parameters", json_type_object);

                assert_non_null(event);
                continues = json_get_boolean(reply, "continues", false);
                if (!continues)
                        break;
                assert_string_not_equal(json_get_string(event, "deviceState", ""), known);
                (void) snprintf(told, sizeof(told), "%s", json_get_string(event, "deviceState", ""));
        }
        (void) close(fd);
}

/* Who subscribes when a device has just answered, and nobody was told of it yet. */
static void a_devices_state_is_not_told_twice(void **state) {
        char told[16] = "";
        Helper helper;
        int fds[16];
        Run run;

        RUN_PREPARE(&run, idle, ", \"devices\": { \"s\": { \"type\": \"serial\" } }");
        helper_start(&helper, &run, "serial", "s", "s");
        assert_return_code(kill(helper.pid, SIGSTOP), errno);
        run_vmmd(&run, true);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                fds[i] = run_connect(&run);
                send_call(fds[i], INTERFACE "Describe", "{}", "");
                json_object_put(receive(fds[i]));
        }
        call_and_expect(&run, "Describe", "{}", "\"state\":\"connecting\"");
        assert_return_code(kill(run.pid, SIGSTOP), errno);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                send_call(fds[i], INTERFACE "SubscribeEvents", "{\"filter\":[\"deviceState\"]}", ",\"more\":true");
        assert_return_code(kill(helper.pid, SIGCONT), errno);
        for (unsigned i = 0; !streq(told, "running"); i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
                ask_helper(&run, "s", told);
        }
        assert_return_code(kill(run.pid, SIGCONT), errno);
        wait_for_state(&run, "running");
        terminate(&run);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                expect_no_state_twice(fds[i]);
        helper_kill(&helper);
        remove_devices(&run);
}

static void a_pause_with_devices_suspends_their_helpers(void **state) {
        char told[16];
        Helper helper;
        int fd;
        Run run;

        RUN_PREPARE(&run, driver, ", \"devices\": { \"r\": { \"type\": \"rng\" } }");
        helper_start(&helper, &run, "rng", "r", "r");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        fd = subscribe(&run, "{}");
        (void) expect_event(fd, "present", "running");
        call_and_succeed(&run, "Pause", "{\"devices\":true}");
        ask_helper(&run, "r", told);
        assert_string_equal(told, "suspended");
        call_and_succeed(&run, "Reset", "{}"); /* from there, too */
        wait_for_state(&run, "running");
        call_and_succeed(&run, "Pause", "{\"devices\":true}");
        call_and_succeed(&run, "PowerOff", "{}"); /* resumes it */
        call_and_expect(&run, "Describe", "{}", "\"stopping\"");
        call_and_succeed(&run, "Terminate", "{}");
        for (;;) {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_non_null(reply);
                if (!json_get_boolean(reply, "continues", false))
                        break;
        }
        (void) close(fd);
        {
                char text[4096];

                assert_int_equal(run_end(&run, text), 0);
        }
        helper_kill(&helper);
        remove_devices(&run);
}

/* --- balloons --- */

typedef struct BalloonRun {
        Run run;
        Helper helper; /* for its queues */
        FakeBalloon fake;
        char path[96];
} BalloonRun;

static void balloon_run_start(BalloonRun *b) {
        RUN_PREPARE(&b->run, idle, ", \"devices\": { \"b\": { \"type\": \"balloon\" } }");
        helper_start(&b->helper, &b->run, "balloon", "b", "unused");
        (void) snprintf(b->path, sizeof(b->path), "%s/devices/tiny/b.varlink", b->run.directory);
        fake_balloon_start(&b->fake, b->path);
        run_vmmd(&b->run, true);
        wait_for_state(&b->run, "running");
}

static void balloon_run_end(BalloonRun *b) {
        terminate(&b->run);
        fake_balloon_end(&b->fake);
        (void) unlink(b->path);
        helper_kill(&b->helper);
        remove_devices(&b->run);
}

/* A subscriber who has the balloon's first word behind him. */
static int subscribe_to_balloon(BalloonRun *b, const char *parameters) {
        int fd = subscribe(&b->run, parameters);

        (void) expect_event(fd, "present", "\"device\":\"b\"");
        return fd;
}

static void wait_for_balloon(BalloonRun *b, const char *word) {
        wait_for_answer(&b->run, "DescribeBalloon", word);
}

static void what_a_balloon_says_is_told(void **state) {
        BalloonRun b;
        int fd;

        balloon_run_start(&b);
        wait_for_balloon(&b, "\"driver\":true");
        fd = subscribe_to_balloon(&b, "{}");
        call_and_expect(&b.run, "SetBalloonTarget", "{\"device\":\"b\",\"target\":8192}", "\"target\":8192");
        (void) expect_event(fd, "balloonTarget", "\"target\":8192");
        fake_balloon_tell(&b.fake, "actual 4096");
        (void) expect_event(fd, "balloonActual", "\"device\":\"b\",\"target\":8192,\"actual\":4096");
        fake_balloon_tell(&b.fake, "oom");
        (void) expect_event(fd, "balloonDeflatedOnOom", "\"oomDeflations\":1");
        fake_balloon_tell(&b.fake, "ws");
        (void) expect_event(fd, "workingSet", "\"device\":\"b\",\"workingSet\":[{\"age\":1000,\"fileBytes\":1,\"anonymousBytes\":2}");
        call_and_expect(&b.run, "DescribeBalloon", "{}", "\"actual\":4096");
        call_and_expect(&b.run, "Describe", "{}", "\"actual\":4096");
        (void) close(fd);
        balloon_run_end(&b);
}

static void calls_of_a_balloon_are_passed_on_with_its_errors(void **state) {
        BalloonRun b;

        balloon_run_start(&b);
        call_and_expect(&b.run, "GetBalloonStatistics", "{}", "\"freeMemory\":4096");
        call_and_expect(&b.run, "GetBalloonStatistics", "{\"maximumAge\":5}", "\"device\":\"b\"");
        call_and_expect(&b.run, "GetWorkingSet", "{}", "io.vmmd.Machine.GuestCannot\",\"parameters\":{\"feature\":\"workingSet\"");
        call_and_expect(&b.run, "HintFreePages", "{}", "io.vmmd.Machine.GuestDoesNotAnswer\",\"parameters\":{\"timeout\":5000000");
        /* A method that this helper does not have. */
        call_and_expect(&b.run, "ConfigureWorkingSet", "{\"intervals\":[1],\"refreshThreshold\":0,\"reportThreshold\":0}",
                "io.vmmd.Machine.NotSupported");
        call_and_expect(&b.run, "ResizeDisk", "{\"device\":\"b\",\"size\":512}", "io.vmmd.Machine.NotSupported");
        /* Nobody there. */
        fake_balloon_end(&b.fake);
        call_and_expect(&b.run, "GetBalloonStatistics", "{}", "io.vmmd.Machine.DeviceFailed\",\"parameters\":{\"device\":\"b\"");
        fake_balloon_start(&b.fake, b.path);
        balloon_run_end(&b);
}

static void who_waits_for_a_target_is_answered_superseded_or_leaves(void **state) {
        BalloonRun b;
        int first, second, third;

        balloon_run_start(&b);
        first = run_connect(&b.run);
        send_call(first, INTERFACE "SetBalloonTarget", "{\"target\":4096,\"wait\":true}", "");
        second = subscribe(&b.run, "{\"filter\":[\"balloonTarget\"]}");
        /* Others are answered meanwhile. */
        wait_for_balloon(&b, "\"target\":4096");
        (void) close(second);

        second = run_connect(&b.run);
        send_call(second, INTERFACE "SetBalloonTarget", "{\"target\":8192,\"wait\":true}", "");
        {
                _cleanup_json_ json_object *reply = receive(first);

                assert_string_equal(json_get_string(reply, "error", ""), INTERFACE "TargetSuperseded");
                assert_int_equal(json_get_integer(json_get(reply, "parameters", json_type_object), "target", 0), 8192);
        }
        fake_balloon_tell(&b.fake, "actual 8192");
        {
                _cleanup_json_ json_object *reply = receive(second);

                assert_null(json_get_string(reply, "error", NULL));
        }
        third = run_connect(&b.run);
        send_call(third, INTERFACE "SetBalloonTarget", "{\"target\":0,\"wait\":true}", "");
        wait_for_balloon(&b, "\"target\":0");
        (void) close(third);
        fake_balloon_expect(&b.fake, "left");
        (void) close(first);
        (void) close(second);
        balloon_run_end(&b);
}

static void a_target_is_set_again_where_a_helper_forgot_it(void **state) {
        BalloonRun b;
        int fd;

        balloon_run_start(&b);
        wait_for_balloon(&b, "\"driver\":true");
        call_and_expect(&b.run, "SetBalloonTarget", "{\"target\":12288}", "\"target\":12288");
        fd = subscribe_to_balloon(&b, "{\"filter\":[\"deviceRestarted\",\"balloonTarget\"]}");
        fake_balloon_end(&b.fake);
        helper_kill(&b.helper);
        fake_balloon_start(&b.fake, b.path); /* which begins with 0 */
        helper_start(&b.helper, &b.run, "balloon", "b", "unused");
        (void) expect_event(fd, "deviceRestarted", "\"device\":\"b\"");
        (void) expect_event(fd, "balloonTarget", "\"target\":12288");
        (void) close(fd);
        balloon_run_end(&b);
}

static void statistics_come_at_ones_own_interval_and_are_asked_for_once(void **state) {
        BalloonRun b;
        int fds[3], without;
        unsigned asked = 0;

        balloon_run_start(&b);
        wait_for_balloon(&b, "\"driver\":true");
        without = subscribe_to_balloon(&b, "{\"filter\":[\"statistics\",\"balloonActual\"]}");
        assert_int_equal(fake_balloon_count(&b.fake), 0);
        fake_balloon_tell(&b.fake, "hold");
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                fds[i] = subscribe_to_balloon(&b, "{\"statisticsInterval\":100000}");
        /* All intervals end while the first question is open: the helper would not survive a second one. */
        while (fake_balloon_count(&b.fake) == 0)
                (void) usleep(10000);
        (void) usleep(250000);
        assert_int_equal(fake_balloon_count(&b.fake), 1);
        fake_balloon_tell(&b.fake, "release");
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                for (unsigned k = 0; k < 3; k++)
                        (void) expect_event(fds[i], "statistics", "\"device\":\"b\",\"statistics\":{\"age\":7,\"freeMemory\":4096}");
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);
        /* With the last of them the questions end, as soon as it is seen that they have gone. */
        for (unsigned i = 0; i == 0 || fake_balloon_count(&b.fake) != asked; i++) {
                assert_true(i < 100);
                asked = fake_balloon_count(&b.fake);
                (void) usleep(300000);
        }
        /* Who gave no interval got none. */
        fake_balloon_tell(&b.fake, "actual 4096");
        (void) expect_event(without, "balloonActual", "4096");
        (void) close(without);
        balloon_run_end(&b);
}

static void a_subscriber_that_does_not_read_misses_events_and_holds_nobody_up(void **state) {
        int64_t missed = 0, n = 0;
        int stalled, reading;
        BalloonRun b;

        balloon_run_start(&b);
        wait_for_balloon(&b, "\"driver\":true");
        stalled = subscribe(&b.run, "{}");
        reading = subscribe_to_balloon(&b, "{\"filter\":[\"balloonDeflatedOnOom\"]}");
        for (unsigned i = 1; i <= 100; i++) {
                char word[64];

                /* No more at once than the helper itself keeps for vmmd. */
                fake_balloon_tell(&b.fake, "many 50");
                (void) snprintf(word, sizeof(word), "\"actual\":%u", i * 50 * 4096);
                wait_for_balloon(&b, word);
        }
        fake_balloon_tell(&b.fake, "oom");
        (void) expect_event(reading, "balloonDeflatedOnOom", "\"oomDeflations\":1");
        /* It learns how much it missed, and nothing is lost without a word. */
        for (;;) {
                _cleanup_json_ json_object *reply = receive(stalled);
                json_object *parameters = json_get(reply, "parameters", json_type_object);

                assert_non_null(parameters);
                missed += json_get_integer(parameters, "missed", 0);
                if (streq(json_get_string(parameters, "type", ""), "balloonDeflatedOnOom"))
                        break;
                n += streq(json_get_string(parameters, "type", ""), "balloonActual");
        }
        assert_true(missed > 0);
        assert_int_equal(n + missed, 5000);
        (void) close(stalled);
        (void) close(reading);
        balloon_run_end(&b);
}

/* --- input --- */

static void keys_go_to_the_input_device(void **state) {
        static const struct {
                const char *method, *parameters, *word;
        } cases[] = {
                { "SendKeys", "{\"keys\":[]}", "\"parameter\":\"keys\"" },
                { "SendKeys", "{\"keys\":[\"nokey\"]}", "\"error\":\"io.vmmd.Machine.UnknownKey\",\"parameters\":{\"key\":\"nokey\"}" },
                { "SendKeys", "{\"keys\":[\"a\"],\"hold\":-1}", "\"parameter\":\"hold\"" },
                { "SendKeys", "{\"keys\":[\"a\"]}", "the guest has no driver for it at present" },
                { "SendInput", "{\"device\":\"k\",\"events\":[{\"type\":2,\"code\":0,\"value\":1}]}", "\"parameter\":\"events\"" },
                { "SendInput", "{\"device\":\"k\",\"events\":[{\"type\":1,\"code\":30,\"value\":1}]}", "the guest has no driver for it at present" },
        };
        char text[4096];
        Helper helper;
        Run run;

        /* A guest that powers off at the other power button, if that were pressed. */
        RUN_PREPARE(&run, button, ", \"devices\": { \"k\": { \"type\": \"input\", \"powerKey\": true } }");
        helper_start(&helper, &run, "input", "k", "k");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                call_and_expect(&run, cases[i].method, cases[i].parameters, cases[i].word);
        call_and_succeed(&run, "PowerButton", "{}");
        call_and_succeed(&run, "PowerButton", "{}");
        call_and_expect(&run, "SendKeys", "{\"keys\":[\"a\"]}", "no driver"); /* the presses have been answered, too */
        call_and_expect(&run, "Describe", "{}", "\"state\":\"running\"");
        call_and_succeed(&run, "Terminate", "{}");
        assert_int_equal(run_end(&run, text), 0);
        assert_non_null(strstr(text, "Cannot press the power key of device 'k': the guest has no driver for it."));
        helper_kill(&helper);
        remove_devices(&run);
}

/* --- consoles --- */

static void read_until(int fd, const char *text) {
        char all[256] = "";
        size_t have = 0;

        while (!strstr(all, text)) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t n;

                if (poll(&p, 1, 60000) != 1)
                        fail_msg("no '%s' in '%s'", text, all);
                n = read(fd, all + have, sizeof(all) - 1 - have);
                if (n <= 0)
                        fail_msg("ended without '%s': '%s'", text, all);
                have += (size_t) n;
                all[have] = 0;
        }
}

static void a_connection_becomes_the_console(void **state) {
        static const char attach[] = "{\"method\":\"" INTERFACE "AttachConsole\",\"parameters\":{\"device\":\"s\"},\"upgrade\":true}";
        char early[sizeof(attach) + 8];
        Helper helper;
        int fd;
        Run run;

        RUN_PREPARE(&run, echo, ", \"devices\": { \"s\": { \"type\": \"serial\", \"output\": \"none\" } }");
        helper_start(&helper, &run, "serial", "s", "s");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");

        fd = run_connect(&run);
        assert_int_equal(write_full(fd, attach, sizeof(attach)), 0);
        {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_non_null(reply);
                assert_null(json_get_string(reply, "error", NULL));
        }
        read_until(fd, "ok");
        assert_int_equal(write_full(fd, "abc", 3), 0);
        read_until(fd, "abc");
        (void) close(fd);

        /* What comes behind the call in one go is input, too. */
        memcpy(early, attach, sizeof(attach));
        memcpy(early + sizeof(attach), "xyz", 3);
        fd = run_connect(&run);
        assert_int_equal(write_full(fd, early, sizeof(attach) + 3), 0);
        {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_non_null(reply);
        }
        read_until(fd, "xyz");
        (void) close(fd);
        terminate(&run);
        helper_kill(&helper);
        remove_devices(&run);
}

/* --- what systemd asks --- */

static void expect_reply(const Run *run, const char *method, const char *parameters, const char *word) {
        char reply[4096];

        call_text(run, method, parameters, reply);
        if (!strstr(reply, word))
                fail_msg("%s: no '%s' in %s", method, word, reply);
}

static void expect_instance_event(int fd, const char *event, bool continues) {
        _cleanup_json_ json_object *reply = receive(fd);

        assert_non_null(reply);
        assert_string_equal(json_get_string(json_get(reply, "parameters", json_type_object), "event", ""), event);
        assert_int_equal(json_get_boolean(reply, "continues", false), continues);
}

static void systemd_knows_the_machine(void **state) {
        char text[4096];
        int fd, filtered;
        Run run;

        RUN_START(&run, button, "");
        wait_for_state(&run, "running");
        expect_reply(&run, "io.systemd.MachineInstance.Describe", "{}",
                "\"running\":true,\"status\":\"running\",\"memory\":{\"configuredBytes\":67108864,\"targetBytes\":67108864,"
                "\"actualBytes\":67108864}");
        expect_reply(&run, "io.systemd.MachineInstance.SetMemory", "{\"bytes\":1}", "io.systemd.MachineInstance.NotSupported");
        expect_reply(&run, "io.systemd.MachineInstance.RemoveStorage", "{\"name\":\"x\"}", "io.systemd.MachineInstance.NoSuchStorage");
        expect_reply(&run, "io.systemd.MachineInstance.AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"x\"}", "InvalidParameter");
        expect_reply(&run, "io.systemd.MachineInstance.Resume", "{}", "EBUSY");

        fd = run_connect(&run);
        send_call(fd, "io.systemd.MachineInstance.SubscribeEvents", "{}", ",\"more\":true");
        expect_instance_event(fd, "READY", true);
        filtered = run_connect(&run);
        send_call(filtered, "io.systemd.MachineInstance.SubscribeEvents", "{\"filter\":[\"RESUME\"]}", ",\"more\":true");
        expect_instance_event(filtered, "READY", true);
        expect_reply(&run, "io.systemd.MachineInstance.Pause", "{}", "{\"parameters\":{}}");
        expect_reply(&run, "io.systemd.MachineInstance.Describe", "{}", "\"running\":false,\"status\":\"paused\"");
        expect_reply(&run, "io.systemd.MachineInstance.Resume", "{}", "{\"parameters\":{}}");
        expect_instance_event(fd, "STOP", true);
        expect_instance_event(fd, "RESUME", true);
        expect_instance_event(filtered, "RESUME", true);
        expect_reply(&run, "io.systemd.MachineInstance.Reboot", "{}", "{\"parameters\":{}}");
        expect_instance_event(fd, "POWERDOWN", true);
        expect_instance_event(fd, "RESET", true);
        wait_for_state(&run, "running");
        expect_reply(&run, "io.systemd.MachineInstance.PowerOff", "{}", "{\"parameters\":{}}");
        expect_instance_event(fd, "POWERDOWN", true);
        expect_instance_event(fd, "SHUTDOWN", false);
        expect_instance_event(filtered, "SHUTDOWN", false);
        assert_int_equal(run_end(&run, text), 0);
        (void) close(fd);
        (void) close(filtered);
}

/* A descriptor that comes with a call that cannot use it (none can be read and written like a disk that is written only) does not stay open. */
static void storage_is_refused_and_its_descriptor_closed(void **state) {
        static const char add[] =
                "{\"method\":\"io.systemd.MachineInstance.AddStorage\",\"parameters\":{\"fileDescriptorIndex\":0,\"name\":\"x\"}}";
        int fd, pair[2];
        char c;
        Run run;

        RUN_START(&run, idle, "");
        fd = run_connect(&run);
        assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
        assert_int_equal(send_with_fds(fd, add, sizeof(add), &pair[1], 1), sizeof(add));
        (void) close(pair[1]);
        {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_string_equal(json_get_string(reply, "error", ""), "io.systemd.MachineInstance.BadConfig");
        }
        assert_int_equal(read(pair[0], &c, 1), 0);
        (void) close(pair[0]);
        (void) close(fd);
        terminate(&run);
}

/* Anybody may connect, and often: what he has us keep is memory and descriptors of the machine's own process. */
static void little_is_kept_for_anybody(void **state) {
        static const char describe[] = "{\"method\":\"" INTERFACE "Describe\"}";
        static char large[KIB(32)];
        int fd, fds[16];
        Run run;

        RUN_START(&run, idle, "");
        wait_for_state(&run, "running");
        fd = run_connect(&run);
        memset(large, ' ', sizeof(large));
        assert_int_equal(write_full(fd, large, sizeof(large)), 0);
        assert_null(receive(fd));
        (void) close(fd);

        fd = run_connect(&run);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                fds[i] = STDERR_FILENO;
        assert_int_equal(send_with_fds(fd, describe, sizeof(describe), fds, ELEMENTSOF(fds)), sizeof(describe));
        assert_null(receive(fd));
        (void) close(fd);
        call_and_expect(&run, "Describe", "{}", "running");
        terminate(&run);
}

static void systemd_knows_the_service(void **state) {
        Run run;

        RUN_START(&run, idle, "");
        wait_for_state(&run, "running");
        expect_reply(&run, "io.systemd.service.Ping", "{}", "{\"parameters\":{}}");
        expect_reply(&run, "io.systemd.service.Reload", "{}", "MethodNotImplemented");
        expect_reply(&run, "io.systemd.service.SetLogLevel", "{\"level\":8}", "InvalidParameter");
        expect_reply(&run, "io.systemd.service.SetLogLevel", "{\"level\":7}", "{\"parameters\":{}}");
        terminate(&run);
}

static void every_number_is_described(void **state) {
        char names[2048] = "";
        unsigned n = 0;
        Helper helper;
        int fd;
        Run run;

        RUN_PREPARE(&run, idle, ", \"devices\": { \"b\": { \"type\": \"balloon\" } }");
        helper_start(&helper, &run, "balloon", "b", "b");
        run_vmmd(&run, true);
        wait_for_state(&run, "running");
        fd = run_connect(&run);
        send_call(fd, "io.systemd.Metrics.Describe", "{}", ",\"more\":true");
        for (bool more = true; more;) {
                _cleanup_json_ json_object *reply = receive(fd);

                assert_non_null(reply);
                more = json_get_boolean(reply, "continues", false);
                strcat(strcat(names, json_get_string(json_get(reply, "parameters", json_type_object), "name", "?")), ";");
                assert_true(strlen(names) < sizeof(names) - 128);
        }
        send_call(fd, "io.systemd.Metrics.List", "{}", ",\"more\":true");
        for (bool more = true; more; n++) {
                _cleanup_json_ json_object *reply = receive(fd);
                json_object *parameters = json_get(reply, "parameters", json_type_object);
                char name[128];

                assert_non_null(reply);
                more = json_get_boolean(reply, "continues", false);
                (void) snprintf(name, sizeof(name), "%s;", json_get_string(parameters, "name", "?"));
                if (!strstr(names, name))
                        fail_msg("%s is not described", name);
                if (streq(name, "io.vmmd.Machine.MemoryBytes;"))
                        assert_int_equal(json_get_integer(parameters, "value", 0), 67108864);
        }
        assert_true(n >= 12); /* with what its helper counts */
        (void) close(fd);
        terminate(&run);
        helper_kill(&helper);
        remove_devices(&run);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(wrong_calls_are_refused),
                cmocka_unit_test(every_method_has_a_callback),
                cmocka_unit_test(the_types_that_interfaces_share_are_the_same),
                cmocka_unit_test(a_life_is_told),
                cmocka_unit_test(the_end_of_a_guest_is_told_whatever_it_was),
                cmocka_unit_test(a_crash_is_told),
                cmocka_unit_test(an_end_that_others_ask_for_is_told),
                cmocka_unit_test(a_reboot_is_a_power_off_that_ends_in_a_boot),
                cmocka_unit_test(a_deaf_guest_is_reset),
                cmocka_unit_test(a_power_off_comes_after_a_reboot_that_was_asked_for),
                cmocka_unit_test(an_nmi_reaches_a_guest_that_halts_or_runs),
                cmocka_unit_test(a_driver_makes_a_guest_ready),
                cmocka_unit_test(a_guest_says_itself_when_it_is_ready),
                cmocka_unit_test(a_helper_that_dies_and_comes_back_is_told),
                cmocka_unit_test(a_devices_state_is_not_told_twice),
                cmocka_unit_test(a_pause_with_devices_suspends_their_helpers),
                cmocka_unit_test(what_a_balloon_says_is_told),
                cmocka_unit_test(calls_of_a_balloon_are_passed_on_with_its_errors),
                cmocka_unit_test(who_waits_for_a_target_is_answered_superseded_or_leaves),
                cmocka_unit_test(a_target_is_set_again_where_a_helper_forgot_it),
                cmocka_unit_test(statistics_come_at_ones_own_interval_and_are_asked_for_once),
                cmocka_unit_test(a_subscriber_that_does_not_read_misses_events_and_holds_nobody_up),
                cmocka_unit_test(keys_go_to_the_input_device),
                cmocka_unit_test(a_connection_becomes_the_console),
                cmocka_unit_test(systemd_knows_the_machine),
                cmocka_unit_test(storage_is_refused_and_its_descriptor_closed),
                cmocka_unit_test(little_is_kept_for_anybody),
                cmocka_unit_test(systemd_knows_the_service),
                cmocka_unit_test(every_number_is_described),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
