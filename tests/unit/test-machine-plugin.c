/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Machines whose hardware is a plugin's, with vmmd, the plugin's parent and the plugin as they are: what becomes of a machine whose plugin does as it
 * should, or not. On the real /dev/kvm. With $SANDBOXED, the parent and its plugin run by that. */

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "machine-rig.h"

/* What a machine may take to end beyond the plugin's grace of a second, also where the processors are busy. */
#define END_USEC (40 * USEC_PER_SEC)

typedef struct PluginRun {
        Run run;
        pid_t parent;
        char directory[64], socket[96];
} PluginRun;

static void make_directory(const char *path) {
        assert_int_equal(mkdir(path, 0755), 0);
}

static pid_t start_parent(const PluginRun *p, int output, const char *program, const char *what, const char *interface) {
        char socket[128], path[256], argument[64], option[64];
        const char *arguments[9], *sandboxed = getenv("SANDBOXED");
        size_t n = 0;
        pid_t pid;

        (void) snprintf(socket, sizeof(socket), "--socket-path=%s", p->socket);
        (void) snprintf(path, sizeof(path), "--path=%s", program);
        (void) snprintf(argument, sizeof(argument), "--arguments=%s", what);
        if (sandboxed)
                arguments[n++] = sandboxed;
        arguments[n++] = getenv("VMM_DEVICE");
        arguments[n++] = "plugin";
        arguments[n++] = socket;
        arguments[n++] = path;
        arguments[n++] = argument;
        (void) snprintf(option, sizeof(option), "--interface=%s", interface ?: "");
        if (interface)
                arguments[n++] = option;
        arguments[n] = NULL;
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(output, STDERR_FILENO);
                (void) execv(arguments[0], (char *const *) arguments);
                _exit(127);
        }
        return pid;
}

/* Nobody tells that the parent listens. */
static void wait_for_socket(const PluginRun *p) {
        for (unsigned i = 0; access(p->socket, F_OK) < 0; i++) {
                assert_true(i < 12000);
                (void) usleep(5000);
        }
}

static void begin_on_tap(PluginRun *p, const char *program, const char *what, unsigned vcpus, const char *interface) {
        char definition[128], control[96], runtime[96], text[512];
        _cleanup_close_ int fd = -EBADF;
        int output[2];

        *p = (PluginRun) { .run.directory = "/tmp/vmm-machine-XXXXXX" };
        assert_non_null(mkdtemp(p->run.directory));
        (void) snprintf(p->directory, sizeof(p->directory), "%s/tiny", p->run.directory);
        make_directory(p->directory);
        (void) snprintf(p->socket, sizeof(p->socket), "%s/plugin.plugin", p->directory);
        (void) snprintf(p->run.control, sizeof(p->run.control), "%s/control", p->run.directory);
        (void) snprintf(definition, sizeof(definition), "%s/definition.json", p->run.directory);
        (void) snprintf(text, sizeof(text), "{ \"plugin\": { \"path\": \"%s\", \"arguments\": [\"%s\"] }, \"vcpus\": %u }", program, what, vcpus);
        fd = open(definition, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write_full(fd, text, strlen(text)), 0);

        assert_int_equal(pipe2(output, O_CLOEXEC), 0);
        p->parent = start_parent(p, output[1], program, what, interface);
        wait_for_socket(p);
        (void) snprintf(definition, sizeof(definition), "--definition=%s/definition.json", p->run.directory);
        (void) snprintf(control, sizeof(control), "--control=%s", p->run.control);
        (void) snprintf(runtime, sizeof(runtime), "--runtime-directory=%s", p->run.directory);
        p->run.pid = fork();
        assert_true(p->run.pid >= 0);
        if (p->run.pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(output[1], STDERR_FILENO);
                (void) execl(getenv("VMMD"), "vmmd", definition, control, runtime, "tiny", NULL);
                _exit(127);
        }
        (void) close(output[1]);
        p->run.output = output[0];
}

static void begin_program(PluginRun *p, const char *program, const char *what, unsigned vcpus) {
        begin_on_tap(p, program, what, vcpus, NULL);
}

static void begin(PluginRun *p, const char *what) {
        begin_program(p, getenv("PLUGIN_PROGRAM"), what, 1);
}

/* The end of vmmd and of all that has the same output: the parent and the plugin. */
static int end(PluginRun *p, char text[static 4096]) {
        int status, r;

        r = run_end(&p->run, text);
        assert_int_equal(waitpid(p->parent, &status, 0), p->parent);
        (void) unlink(p->socket);
        (void) rmdir(p->directory);
        (void) rmdir(p->run.directory);
        return r;
}

static void expect_status(int r, int status, const char *text, const char *word) {
        if (r != status || !strstr(text, word))
                fail_msg("status %d, expected %d and '%s': %s", r, status, word, text);
}

/* Without anybody's doing, and in time. */
static void expect_end(const char *what, int status, const char *word) {
        uint64_t since = now_usec();
        char text[4096];
        PluginRun p;
        int r;

        begin(&p, what);
        r = end(&p, text);
        expect_status(r, status, text, word);
        assert_true(now_usec() - since < 2 * USEC_PER_SEC + END_USEC);
}

static void stop_and_expect(PluginRun *p, int status, const char *word) {
        uint64_t since = now_usec();
        char text[4096];
        int r;

        assert_int_equal(kill(p->run.pid, SIGTERM), 0);
        r = end(p, text);
        expect_status(r, status, text, word);
        assert_true(now_usec() - since < USEC_PER_SEC + END_USEC);
}

/* --- plugins that do not do as they should --- */

static void a_program_that_is_not_there_is_37(void **state) {
        char text[4096];
        PluginRun p;
        int r;

        begin_program(&p, "/nonexistent/plugin", "x", 1);
        r = end(&p, text);
        expect_status(r, 37, text, "The plugin could not be run");
        assert_non_null(strstr(text, "Cannot run /nonexistent/plugin: No such file or directory"));
}

static void a_plugin_that_ends_before_the_start_is_37(void **state) {
        expect_end("exit-early", 37, "The plugin ended before it let the machine start.");
}

static void a_plugin_that_ends_with_an_error_is_37(void **state) {
        expect_end("fail", 37, "The plugin ended with status 3.");
}

static void a_plugin_that_is_killed_is_37(void **state) {
        expect_end("die", 37, "The plugin was ended by signal KILL.");
}

static void a_plugin_that_closes_a_pipe_half_way_is_37(void **state) {
        expect_end("close-pipes", 37, "The plugin lets vCPU 0 down: it closed their pipe.");
}

static void a_plugin_that_closes_its_socket_and_goes_on_is_37(void **state) {
        expect_end("close-socket", 37, "The plugin is of no use any more: it closed its connection.");
}

static void garbage_on_the_socket_is_37(void **state) {
        expect_end("spoil-socket", 37, "it sent what is no request of the plugin protocol");
}

static void garbage_in_a_pipe_is_37(void **state) {
        expect_end("spoil-pipes", 37, "The plugin lets vCPU 0 down: it sent what is no request of the plugin protocol.");
}

static void garbage_in_a_ring_is_37(void **state) {
        expect_end("spoil-ring", 37, "The plugin lets vCPU 0 down:");
}

static void a_flood_whose_answers_nobody_reads_is_37(void **state) {
        expect_end("flood", 37, "it does not read its answers");
}

static void a_flood_holds_nobody_else_up(void **state) {
        PluginRun p;

        begin(&p, "ask-on");
        wait_for_state(&p.run, "running");
        for (unsigned i = 0; i < 20; i++)
                call_and_expect(&p.run, "Describe", "{}", "\"state\":\"running\"");
        call_and_expect(&p.run, "Pause", "{}", "\"parameters\":{}");
        call_and_expect(&p.run, "Resume", "{}", "\"parameters\":{}");
        stop_and_expect(&p, 0, "did not end");
}

static void memory_that_shrinks_harms_nobody(void **state) {
        PluginRun p;

        begin(&p, "shrink");
        wait_for_state(&p.run, "running");
        call_and_expect(&p.run, "Describe", "{}", "\"transport\":\"plugin\"");
        stop_and_expect(&p, 0, "");
}

static void a_plugin_that_hangs_is_ended_after_its_grace(void **state) {
        PluginRun p;

        begin(&p, "run-and-hang");
        wait_for_state(&p.run, "running");
        stop_and_expect(&p, 0, "The plugin did not end within 1 s");
}

static void a_vcpu_that_waits_for_its_plugin_holds_no_stop_up(void **state) {
        PluginRun p;

        begin(&p, "leave-unanswered");
        wait_for_state(&p.run, "running");
        stop_and_expect(&p, 0, "The plugin did not end within 1 s");
}

static void a_plugin_that_never_starts_its_machine_can_be_stopped(void **state) {
        PluginRun p;

        begin(&p, "connect-and-hang");
        call_and_expect(&p.run, "Describe", "{}", "\"state\":\"starting\"");
        stop_and_expect(&p, 0, "The plugin did not end within 1 s");
}

static void a_guest_that_crashes_is_33_and_its_plugin_is_told(void **state) {
        char text[4096];
        PluginRun p;
        int r;

        begin(&p, "fault");
        r = end(&p, text);
        expect_status(r, 33, text, "triple fault");
        assert_non_null(strstr(text, "was told to exit"));
}

static void a_parent_that_is_killed_is_37_and_takes_the_plugin_along(void **state) {
        char text[4096];
        PluginRun p;
        int r;

        begin(&p, "run-and-hang");
        wait_for_state(&p.run, "running");
        assert_int_equal(kill(p.parent, SIGKILL), 0);
        r = end(&p, text);
        expect_status(r, 37, text, "The plugin's unit has ended without a word");
}

static void a_killed_vmmd_leaves_nothing_behind(void **state) {
        struct pollfd poll_end;
        int status;
        PluginRun p;
        char byte;
        ssize_t n;

        begin(&p, "run-and-hang");
        wait_for_state(&p.run, "running");
        assert_int_equal(kill(p.run.pid, SIGKILL), 0);
        assert_int_equal(waitpid(p.run.pid, &status, 0), p.run.pid);
        poll_end = (struct pollfd) { .fd = p.run.output, .events = POLLIN };
        do {
                assert_int_equal(poll(&poll_end, 1, (int) ((USEC_PER_SEC + END_USEC) / USEC_PER_MSEC)), 1);
                n = read(p.run.output, &byte, 1);
        } while (n > 0);
        assert_int_equal(n, 0); /* its parent and the plugin are gone, too */
        assert_int_equal(waitpid(p.parent, &status, 0), p.parent);
        (void) close(p.run.output);
        for (const char *const *name = (const char *const[]) { "tiny/plugin.plugin", "tiny", "definition.json", "control", "", NULL }; *name; name++) {
                char path[128];

                (void) snprintf(path, sizeof(path), "%s/%s", p.run.directory, *name);
                (void) remove(path);
        }
}

/* --- and those that do --- */

static void a_plugin_that_is_done_ends_its_machine_with_0(void **state) {
        char text[4096];
        PluginRun p;
        int r;

        begin(&p, "add");
        r = end(&p, text);
        expect_status(r, 0, text, "plugin-program: the sum is 42\n");
        assert_non_null(strstr(text, "The plugin has ended, and the machine with it."));
}

static void a_plugin_has_its_socket_and_nothing_else(void **state) {
        unsigned lines = 0, number;
        char text[4096], line[64];
        const char *at;
        PluginRun p;

        begin(&p, "show-fds");
        assert_int_equal(end(&p, text), 37);
        at = strstr(text, "the socket is ");
        assert_non_null(at);
        number = (unsigned) strtoul(at + strlen("the socket is "), NULL, 10);
        (void) snprintf(line, sizeof(line), "plugin-program: %u is socket:", number);
        assert_non_null(strstr(text, line));
        assert_non_null(strstr(text, "plugin-program: 0 is /dev/null"));
        for (at = text; (at = strstr(at, "plugin-program: ")); at++)
                lines++;
        assert_int_equal(lines, 1 + 3 + 1);
}

static void is_described_paused_and_stopped(void **state) {
        PluginRun p;

        begin(&p, "run-until-told");
        wait_for_state(&p.run, "running");
        call_and_expect(&p.run, "Describe", "{}", "\"name\":\"plugin\",\"type\":\"plugin\",\"unit\":\"vmm-device@tiny-plugin.service\","
                "\"transport\":\"plugin\",\"state\":\"active\"");
        call_and_expect(&p.run, "Describe", "{}", "\"memory\":0");
        call_and_expect(&p.run, "Pause", "{}", "\"parameters\":{}");
        wait_for_state(&p.run, "paused");
        call_and_expect(&p.run, "Resume", "{}", "\"parameters\":{}");
        wait_for_state(&p.run, "running");
        stop_and_expect(&p, 0, "was told to exit");
}

/* Before anything happens: it would never be paused where its plugin does not answer. */
static void is_not_kept_in_a_snapshot(void **state) {
        static const char call[] = "{\"method\":\"io.vmmd.Machine.TakeSnapshot\",\"parameters\":{\"state\":0,\"memory\":1}}";
        const int files[] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
        json_object *reply;
        PluginRun p;
        int fd;

        begin(&p, "leave-unanswered");
        wait_for_state(&p.run, "running");
        fd = run_connect(&p.run);
        assert_int_equal(send_with_fds(fd, call, sizeof(call), files, ELEMENTSOF(files)), sizeof(call));
        reply = receive(fd);
        assert_non_null(reply);
        if (!strstr(json_object_to_json_string(reply), "The machine's hardware is a plugin's"))
                fail_msg("%s", json_object_to_json_string(reply));
        json_object_put(reply);
        for (size_t i = 0; i < ELEMENTSOF(files); i++)
                (void) close(files[i]);
        (void) close(fd);
        call_and_expect(&p.run, "Describe", "{}", "\"state\":\"running\"");
        stop_and_expect(&p, 0, "The plugin did not end within 1 s");
}

static void says_what_it_cannot_do(void **state) {
        static const struct {
                const char *method, *parameters;
        } calls[] = {
                { "Reset", "{}" }, { "Reboot", "{}" }, { "SleepButton", "{}" }, { "Pause", "{\"devices\":true}" },
                { "AttachDevice", "{\"name\":\"a\",\"definition\":{\"type\":\"rng\"}}" },
        };
        PluginRun p;

        begin(&p, "run-until-told");
        wait_for_state(&p.run, "running");
        for (size_t i = 0; i < ELEMENTSOF(calls); i++)
                call_and_expect(&p.run, calls[i].method, calls[i].parameters, "io.vmmd.Machine.NotSupported");
        call_and_expect(&p.run, "PowerButton", "{}", "\"parameters\":{}");
        {
                char text[4096];

                expect_status(end(&p, text), 0, text, "was told to exit");
        }
}

/* Also what a limit on descriptors would keep others from: as many as the unit has. */
static void a_plugin_that_takes_all_there_is_holds_nobody_up(void **state) {
        const struct rlimit limit = { .rlim_cur = 65536, .rlim_max = 65536 };
        struct rlimit before;
        char text[4096];
        PluginRun p;

        assert_return_code(getrlimit(RLIMIT_NOFILE, &before), errno);
        if (before.rlim_max < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &limit) < 0)
                skip();
        assert_return_code(setrlimit(RLIMIT_NOFILE, &(struct rlimit) { .rlim_cur = limit.rlim_cur, .rlim_max = MAX(before.rlim_max, limit.rlim_max) }), errno);
        begin(&p, "too-much");
        assert_return_code(setrlimit(RLIMIT_NOFILE, &before), errno);
        wait_for_state(&p.run, "running");
        for (unsigned i = 0; i < 100; i++)
                call_and_expect(&p.run, "Describe", "{}", "\"state\":\"running\"");
        call_and_expect(&p.run, "Pause", "{}", "\"parameters\":{}");
        call_and_expect(&p.run, "Resume", "{}", "\"parameters\":{}");
        assert_int_equal(kill(p.run.pid, SIGTERM), 0);
        expect_status(end(&p, text), 0, text, "has enough");
}

static void descriptors_of_another_kind_are_refused(void **state) {
        PluginRun p;

        begin(&p, "wrong-fds");
        wait_for_state(&p.run, "running");
        stop_and_expect(&p, 0, "has tried all");
}

static void writes_that_nobody_hears_of_hold_no_stop_up(void **state) {
        PluginRun p;

        begin(&p, "never-read");
        wait_for_state(&p.run, "running");
        call_and_expect(&p.run, "Describe", "{}", "\"state\":\"running\"");
        stop_and_expect(&p, 0, "The plugin did not end within 1 s");
}

/* Who keeps the plugin's sockets is not who it was made for. */
static void a_child_that_outlives_its_plugin_is_not_waited_for(void **state) {
        expect_end("leave-a-child", 0, "The plugin has ended, and the machine with it.");
}

static void memory_without_pages_is_33(void **state) {
        expect_end("no-pages", 33, "KVM");
}

static void calls_every_function_on(unsigned vcpus) {
        char text[4096], line[64];
        PluginRun p;
        int r;

        begin_program(&p, getenv("PLUGIN_FUNCTIONS"), "x", vcpus);
        r = end(&p, text);
        (void) snprintf(line, sizeof(line), "%u vCPUs, 60 functions, all as they should", vcpus);
        expect_status(r, 0, text, line);
}

static void calls_every_function_on_one_vcpu(void **state) {
        calls_every_function_on(1);
}

static void calls_every_function_on_four_vcpus(void **state) {
        calls_every_function_on(4);
}

static void a_plugin_without_a_tap_has_no_network(void **state) {
        expect_end("no-network", 37, "The plugin ended with status 4.");
}

/* In a network of our own, which is why this is the last test. */
static void a_plugin_has_the_tap_of_its_machine(void **state) {
        const struct sockaddr_in echo = { .sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(0xc0000202) };
        struct timeval timeout = { .tv_sec = 20 };
        char answer[16] = {}, text[4096];
        PluginRun p;
        int s;

        if (getenv("SANDBOXED") || geteuid() != 0 || unshare(CLONE_NEWNET) < 0 ||
            system("ip tuntap add dev tapplugin mode tap 2>/dev/null && ip link set tapplugin address 02:00:5e:10:00:01 up && "
                   "ip address add 192.0.2.1/30 dev tapplugin && ip neighbour add 192.0.2.2 lladdr 02:00:5e:10:00:02 dev tapplugin") != 0)
                skip();
        begin_on_tap(&p, getenv("PLUGIN_PROGRAM"), "network", 1, "tapplugin");
        wait_for_state(&p.run, "running");
        s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        assert_return_code(s, errno);
        assert_return_code(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), errno);
        assert_return_code(connect(s, (const struct sockaddr *) &echo, sizeof(echo)), errno);
        assert_int_equal(send(s, "back again", 10, 0), 10);
        assert_int_equal(recv(s, answer, sizeof(answer), 0), 10);
        assert_string_equal(answer, "back again");
        (void) close(s);
        assert_int_equal(kill(p.run.pid, SIGTERM), 0);
        expect_status(end(&p, text), 0, text, "the host is 192.0.2.1 in 255.255.255.252, 02:00:5e:10:00:01\n");
}

int main(void) {
        static const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_program_that_is_not_there_is_37),
                cmocka_unit_test(a_plugin_that_ends_before_the_start_is_37),
                cmocka_unit_test(a_plugin_that_ends_with_an_error_is_37),
                cmocka_unit_test(a_plugin_that_is_killed_is_37),
                cmocka_unit_test(a_plugin_that_closes_a_pipe_half_way_is_37),
                cmocka_unit_test(a_plugin_that_closes_its_socket_and_goes_on_is_37),
                cmocka_unit_test(garbage_on_the_socket_is_37),
                cmocka_unit_test(garbage_in_a_pipe_is_37),
                cmocka_unit_test(garbage_in_a_ring_is_37),
                cmocka_unit_test(a_flood_whose_answers_nobody_reads_is_37),
                cmocka_unit_test(a_flood_holds_nobody_else_up),
                cmocka_unit_test(memory_that_shrinks_harms_nobody),
                cmocka_unit_test(a_plugin_that_hangs_is_ended_after_its_grace),
                cmocka_unit_test(a_vcpu_that_waits_for_its_plugin_holds_no_stop_up),
                cmocka_unit_test(a_plugin_that_never_starts_its_machine_can_be_stopped),
                cmocka_unit_test(a_guest_that_crashes_is_33_and_its_plugin_is_told),
                cmocka_unit_test(a_parent_that_is_killed_is_37_and_takes_the_plugin_along),
                cmocka_unit_test(a_killed_vmmd_leaves_nothing_behind),
                cmocka_unit_test(a_plugin_that_is_done_ends_its_machine_with_0),
                cmocka_unit_test(a_plugin_has_its_socket_and_nothing_else),
                cmocka_unit_test(is_described_paused_and_stopped),
                cmocka_unit_test(is_not_kept_in_a_snapshot),
                cmocka_unit_test(says_what_it_cannot_do),
                cmocka_unit_test(a_plugin_that_takes_all_there_is_holds_nobody_up),
                cmocka_unit_test(descriptors_of_another_kind_are_refused),
                cmocka_unit_test(writes_that_nobody_hears_of_hold_no_stop_up),
                cmocka_unit_test(a_child_that_outlives_its_plugin_is_not_waited_for),
                cmocka_unit_test(memory_without_pages_is_33),
                cmocka_unit_test(calls_every_function_on_one_vcpu),
                cmocka_unit_test(calls_every_function_on_four_vcpus),
                cmocka_unit_test(a_plugin_without_a_tap_has_no_network),
                cmocka_unit_test(a_plugin_has_the_tap_of_its_machine),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
