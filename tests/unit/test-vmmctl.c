/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmctl without systemd: a fake machine on a socket, and vmmctl as a process, as people run it. $VMMCTL is the program. */

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <utmp.h>

#include <cmocka.h>

#include "interfaces.h"
#include "json-util.h"
#include "server.h"

typedef struct Fixture {
        char directory[64];
        char control[96];
        pid_t machine;
} Fixture;

/* ---- the fake machine, in a process of its own ---- */

static int describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        static const char text[] =
                "{\"name\":\"demo\",\"state\":\"running\",\"since\":1700000000000000,\"vcpus\":2,\"memory\":536870912,\"pid\":77,"
                "\"version\":\"0.1.0\",\"resets\":1,\"exits\":5,\"firstEntry\":7,\"commandLine\":\"quiet\",\"lastProblem\":null,"
                "\"devices\":[{\"name\":\"my-disk\",\"type\":\"block\",\"unit\":\"vmm-device@demo-my\\\\x2ddisk.service\","
                "\"transport\":\"vhostUser\",\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\",\"reconnects\":0,\"error\":null},"
                "{\"name\":\"serial\",\"type\":\"serial\",\"unit\":\"vmm-device@demo-serial.service\",\"transport\":\"bus\","
                "\"state\":\"failed\",\"pciAddress\":null,\"reconnects\":3,\"error\":\"it went away\"}]}";
        _cleanup_json_ json_object *reply = json_tokener_parse(text);

        return varlink_call_reply(call, reply);
}

static int done(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, NULL);
}

static int wrong_state(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *p = json_object_new_object();
        (void) json_add_string(p, "state", "paused");
        return varlink_call_error(call, "io.vmmd.Machine.WrongState", p);
}

static int denied(VarlinkCall *call, json_object *parameters, void *userdata) {
        return -EACCES;
}

/* Greets, then sends back what comes, in capitals; "end" ends it; and the last size it was told is what '?' shows. */
static void serve_console(int fd) {
        char buffer[512];
        ssize_t n;

        (void) !write(fd, "login: ", 7);
        while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
                bool ends = memmem(buffer, (size_t) n, "end", 3);
                for (ssize_t i = 0; i < n; i++)
                        if (buffer[i] >= 'a' && buffer[i] <= 'z')
                                buffer[i] -= 'a' - 'A';
                (void) write_full(fd, buffer, (size_t) n);
                if (ends)
                        break;
        }
        _exit(0);
}

static int open_console(VarlinkCall *call, json_object *parameters, void *userdata) {
        const char *device = json_get_string(parameters, "device", "console");
        _cleanup_json_ json_object *reply = json_object_new_object();
        int fds[2];

        if (!streq(device, "console")) {
                (void) json_add_string(reply, "device", device);
                return varlink_call_error(call, "io.vmmd.Machine.NoSuchDevice", reply);
        }
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
                return -errno;
        if (fork() == 0) {
                (void) close(fds[0]);
                serve_console(fds[1]);
        }
        (void) close(fds[1]);
        (void) json_add_integer(reply, "fileDescriptorIndex", varlink_call_push_fd(call, fds[0]));
        return varlink_call_reply(call, reply);
}

/* What it was told goes to a file, for the test to read. */
static int set_size(VarlinkCall *call, json_object *parameters, void *userdata) {
        const Fixture *f = userdata;
        char path[96];
        FILE *file;

        (void) snprintf(path, sizeof(path), "%s/size", f->directory);
        file = fopen(path, "we");
        if (!file)
                return -errno;
        (void) fprintf(file, "%i %i", (int) json_get_integer(parameters, "columns", 0), (int) json_get_integer(parameters, "rows", 0));
        (void) fclose(file);
        return varlink_call_reply(call, NULL);
}

static void run_machine(Fixture *f, int fd) {
        static const VarlinkMethod methods[] = {
                { "Describe", describe, 0 },      { "Reset", done, 0 },      { "Pause", done, 0 },
                { "Resume", wrong_state, 0 },     { "PowerButton", denied, 0 }, { "OpenConsole", open_console, 0 },
                { "SetConsoleSize", set_size, 0 }, {},
        };
        sd_event *event = NULL;
        VarlinkServer *server = NULL;

        (void) signal(SIGCHLD, SIG_IGN);
        if (sd_event_new(&event) < 0 || varlink_server_new(&server, event) < 0 ||
                varlink_server_add_interface(server, varlink_text_io_vmmd_Machine, methods, f) < 0 ||
                varlink_server_listen_fd(server, fd) < 0)
                _exit(1);
        _exit(sd_event_loop(event) < 0);
}

static int set_up(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        Fixture *f = calloc(1, sizeof(*f));
        char demo[96];
        int fd;

        assert_non_null(f);
        strcpy(f->directory, "/tmp/vmmctl-test-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(demo, sizeof(demo), "%s/demo", f->directory);
        assert_int_equal(mkdir(demo, 0700), 0);
        (void) snprintf(f->control, sizeof(f->control), "%s/demo/control", f->directory);
        strcpy(address.sun_path, f->control);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 16), 0);
        f->machine = fork();
        assert_true(f->machine >= 0);
        if (f->machine == 0)
                run_machine(f, fd);
        (void) close(fd);
        assert_int_equal(setenv("VMM_RUNTIME_DIRECTORY", f->directory, 1), 0);
        *state = f;
        return 0;
}

static void remove_path(const char *directory, const char *name) {
        char path[128];
        (void) snprintf(path, sizeof(path), "%s/%s", directory, name);
        (void) remove(path);
}

static int tear_down(void **state) {
        static const char *const names[] = { "demo/control", "demo", "size", "input", "bad.json", "good.json", "etc/vmm/m.json", "etc/vmm", "etc", "" };
        Fixture *f = *state;

        (void) kill(f->machine, SIGKILL);
        (void) waitpid(f->machine, NULL, 0);
        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                remove_path(f->directory, names[i]);
        free(f);
        return 0;
}

/* ---- vmmctl ---- */

/* Runs `vmmctl arguments` by the shell. Returns the exit code; *ret is standard output and error. */
static int run(char **ret, const char *format, ...) _printf_(2, 3);
static int run(char **ret, const char *format, ...) {
        _cleanup_free_ char *arguments = NULL, *command = NULL;
        va_list ap;
        FILE *f;
        int r;

        va_start(ap, format);
        assert_true(vasprintf(&arguments, format, ap) >= 0);
        va_end(ap);
        assert_true(asprintf(&command, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent \"$VMMCTL\" %s 2>&1", arguments) >= 0);
        f = popen(command, "re");
        assert_non_null(f);
        free(*ret);
        *ret = NULL;
        assert_int_equal(read_whole_fd(fileno(f), MIB(1), ret, NULL), 0);
        r = pclose(f);
        assert_true(WIFEXITED(r));
        return WEXITSTATUS(r);
}

static void write_file(Fixture *f, const char *name, const char *text) {
        char path[128];
        FILE *file;

        (void) snprintf(path, sizeof(path), "%s/%s", f->directory, name);
        file = fopen(path, "we");
        assert_non_null(file);
        (void) fputs(text, file);
        assert_int_equal(fclose(file), 0);
}

static void refuses_wrong_usage(void **state) {
        static const char *const wrong[] = { "", "bogus", "--bogus", "start", "console", "console a b c", "list a", "--json=xml list",
                "--timeout=-1 stop a", "--timeout= stop a", "--escape=x console a", "--escape=^1 console a" };
        _cleanup_free_ char *out = NULL;

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                if (run(&out, "%s", wrong[i]) != 2)
                        fail_msg("%s: %s", wrong[i], out);
}

static void refuses_names_that_are_paths(void **state) {
        _cleanup_free_ char *out = NULL;

        assert_int_equal(run(&out, "describe ../demo"), 1);
        assert_string_equal(out, "vmmctl: ../demo: this is no name of a machine\n");
        assert_int_equal(run(&out, "start ../demo"), 4);
        assert_int_equal(run(&out, "status a/b"), 4);
}

static void says_that_a_machine_does_not_run(void **state) {
        _cleanup_free_ char *out = NULL;

        assert_int_equal(run(&out, "describe other"), 3);
        assert_string_equal(out, "vmmctl: other: the machine does not run\n");
        assert_int_equal(run(&out, "console other </dev/null"), 3);
        assert_int_equal(run(&out, "start other"), 4);
        assert_int_equal(run(&out, "status other"), 4);
}

static void says_where_a_definition_is_wrong(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL, *expected = NULL;
        _cleanup_json_ json_object *json = NULL;
        json_object *error;

        write_file(f, "bad.json", "{\n  \"kernel\": \"/vmlinuz\",\n  \"vcpus\": \"two\"\n}\n");
        assert_int_equal(run(&out, "verify %s/bad.json", f->directory), 1);
        assert_true(asprintf(&expected, "%s/bad.json:3: /vcpus: found \"two\", expected ", f->directory) >= 0);
        assert_non_null(startswith(out, expected));
        assert_int_equal(run(&out, "--json=short verify %s/bad.json", f->directory), 1);
        json = json_tokener_parse(out);
        assert_false(json_get_boolean(json_object_array_get_idx(json, 0), "valid", true));
        error = json_get(json_object_array_get_idx(json, 0), "error", json_type_object);
        assert_int_equal(json_get_integer(error, "line", 0), 3);
        assert_string_equal(json_get_string(error, "pointer", ""), "/vcpus");
        assert_int_equal(run(&out, "verify nosuch"), 4);
}

static void takes_a_definition_that_is_right(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL, *expected = NULL;

        write_file(f, "good.json", "{ \"kernel\": \"/vmlinuz\", // the newest\n \"devices\": { \"rng\": { \"type\": \"rng\" } } }\n");
        assert_int_equal(run(&out, "verify %s/good.json", f->directory), 0);
        assert_true(asprintf(&expected, "%s/good.json: OK\n", f->directory) >= 0);
        assert_string_equal(out, expected);
        assert_int_equal(run(&out, "-q verify %s/good.json", f->directory), 0);
        assert_string_equal(out, "");
}

static void lists_what_is_below_a_root(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;
        char path[128];

        (void) snprintf(path, sizeof(path), "%s/etc", f->directory);
        assert_int_equal(mkdir(path, 0700), 0);
        (void) snprintf(path, sizeof(path), "%s/etc/vmm", f->directory);
        assert_int_equal(mkdir(path, 0700), 0);
        write_file(f, "etc/vmm/m.json", "{ \"kernel\": \"/vmlinuz\", \"memory\": \"1G\", \"vcpus\": 3 }");
        assert_int_equal(run(&out, "--root=%s list", f->directory), 0);
        assert_string_equal(out, "NAME  STATE    VCPUS  MEMORY  DEVICES  SINCE\nm     stopped  3      1 GiB   0        -\n");
        assert_int_equal(run(&out, "--root=%s verify m", f->directory), 0);
        assert_int_equal(run(&out, "--root=%s --json=short list", f->directory), 0);
        assert_string_equal(out, "[{\"name\":\"m\",\"state\":\"stopped\",\"unit\":\"vmm@m.service\",\"vcpus\":3,\"memory\":1073741824,"
                                 "\"devices\":0,\"defined\":true}]\n");
}

static void calls_the_machine(void **state) {
        _cleanup_free_ char *out = NULL;

        assert_int_equal(run(&out, "reset demo"), 0);
        assert_string_equal(out, "");
        assert_int_equal(run(&out, "pause demo demo"), 0);
        assert_int_equal(run(&out, "resume demo"), 1);
        assert_string_equal(out, "vmmctl: demo: it cannot do that while it is paused\n");
        assert_int_equal(run(&out, "power-button demo other"), 1);
        assert_string_equal(out, "vmmctl: demo: permission denied\nvmmctl: other: the machine does not run\n");
        assert_int_equal(run(&out, "--json=short reset demo"), 0);
        assert_string_equal(out, "[{\"name\":\"demo\",\"ok\":true}]\n");
}

static void describes_a_running_machine(void **state) {
        _cleanup_json_ json_object *json = NULL, *status = NULL;
        _cleanup_free_ char *out = NULL;

        assert_int_equal(run(&out, "describe demo"), 0);
        json = json_tokener_parse(out);
        assert_int_equal(json_get_integer(json, "pid", 0), 77);
        assert_int_equal(run(&out, "status demo"), 0);
        assert_non_null(strstr(out, "● demo - running since "));
        assert_non_null(strstr(out, "PID: 77\n"));
        assert_non_null(strstr(out, "Memory: 512 MiB\n"));
        assert_non_null(strstr(out, "vmm-device@demo-my\\x2ddisk.service"));
        assert_non_null(strstr(out, "it went away"));
        assert_null(strchr(out, '\x1b'));
        assert_int_equal(run(&out, "--json=short status demo"), 0);
        status = json_tokener_parse(out);
        assert_string_equal(json_get_string(json_object_array_get_idx(status, 0), "state", ""), "running");
}

static void copies_a_console_until_input_ends(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;

        write_file(f, "input", "hello\n\x1d\x1d\x1d bye\n");
        assert_int_equal(run(&out, "console demo <%s/input", f->directory), 0);
        assert_string_equal(out, "login: HELLO\n\x1d\x1d\x1d BYE\n");
        assert_int_equal(run(&out, "console demo other </dev/null"), 1);
        assert_string_equal(out, "vmmctl: demo: there is no device 'other'\n");
}

static void ends_a_console_when_the_machine_does(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;
        char path[96];
        int fd;

        /* A pipe that stays open: it is not the end of the input that ends it. */
        (void) snprintf(path, sizeof(path), "%s/input", f->directory);
        assert_int_equal(mkfifo(path, 0600), 0);
        fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(write_full(fd, "end", 3), 0);
        assert_int_equal(run(&out, "console demo <%s", path), 0);
        assert_string_equal(out, "login: END");
        (void) close(fd);
}

/* Reads from the terminal until `text` was seen; what was seen so far stays in `seen`. */
static void expect(int fd, char *seen, size_t size, const char *text) {
        uint64_t until = now_usec() + 10 * USEC_PER_SEC;
        size_t n = strlen(seen);

        while (!strstr(seen, text)) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t got;

                if (now_usec() >= until)
                        fail_msg("'%s' never came; instead: %s", text, seen);
                if (poll(&p, 1, 100) <= 0)
                        continue;
                got = read(fd, seen + n, size - n - 1);
                if (got <= 0)
                        fail_msg("'%s' never came, the terminal closed; instead: %s", text, seen);
                n += (size_t) got;
                seen[n] = 0;
        }
}

static void is_a_raw_terminal_with_an_escape(void **state) {
        Fixture *f = *state;
        struct winsize size = { .ws_col = 91, .ws_row = 33 };
        struct termios before, after;
        char seen[4096] = "", path[96], told[32] = "";
        int master, slave, status, fd;
        pid_t pid;

        assert_int_equal(openpty(&master, &slave, NULL, NULL, &size), 0);
        assert_int_equal(tcgetattr(slave, &before), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) close(master);
                (void) login_tty(dup(slave));
                (void) execl(getenv("VMMCTL"), "vmmctl", "console", "demo", NULL);
                _exit(127);
        }

        expect(master, seen, sizeof(seen), "login: ");
        assert_non_null(strstr(seen, "^]"));
        /* What the terminal would have acted upon goes through: ^C, ^D */
        assert_int_equal(write_full(master, "a\x03\x04z", 4), 0);
        expect(master, seen, sizeof(seen), "A\x03\x04Z");
        /* Two are not enough, and something between them counts from anew */
        assert_int_equal(write_full(master, "\x1d\x1dq\x1d", 4), 0);
        expect(master, seen, sizeof(seen), "\x1d\x1dQ\x1d");
        size.ws_col = 100;
        assert_int_equal(ioctl(master, TIOCSWINSZ, &size), 0);
        assert_int_equal(write_full(master, "size", 4), 0);
        expect(master, seen, sizeof(seen), "SIZE");
        assert_int_equal(write_full(master, "x\x1d\x1d\x1d", 4), 0);
        expect(master, seen, sizeof(seen), "Disconnected from demo.");

        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(tcgetattr(slave, &after), 0);
        assert_int_equal(after.c_lflag, before.c_lflag);
        assert_int_equal(after.c_iflag, before.c_iflag);
        (void) snprintf(path, sizeof(path), "%s/size", f->directory);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_true(read(fd, told, sizeof(told) - 1) > 0);
        assert_string_equal(told, "100 33");
        (void) close(fd);
        (void) close(master);
        (void) close(slave);
}

int main(void) {
#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                test(refuses_wrong_usage),
                test(refuses_names_that_are_paths),
                test(says_that_a_machine_does_not_run),
                test(says_where_a_definition_is_wrong),
                test(takes_a_definition_that_is_right),
                test(lists_what_is_below_a_root),
                test(calls_the_machine),
                test(describes_a_running_machine),
                test(copies_a_console_until_input_ends),
                test(ends_a_console_when_the_machine_does),
                test(is_a_raw_terminal_with_an_escape),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
