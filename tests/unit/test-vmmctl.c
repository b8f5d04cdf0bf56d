/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmctl without systemd: a fake machine on a socket, and vmmctl as a process, as people run it. $VMMCTL is the program. */

#include <fcntl.h>
#include <ftw.h>
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
#include <libfdt.h>

#include "base64.h"
#include "interfaces.h"
#include "json-util.h"
#include "parse.h"
#include "server.h"
#include "skip.h"

typedef struct Fixture {
        char directory[64];
        char control[96];
        pid_t machine;
        sd_event *event; /* the machine's */
} Fixture;

/* In the fixture's directory: what the machine was called, a line each; and how it shall answer: "ERROR {parameters}", "hang", "once" (an error
 * for whoever does not let the user be asked), or as it likes. */
#define CALLS "calls"
#define ANSWER "answer"

static char *path_of(const Fixture *f, const char *name) {
        char *path;

        assert_true(asprintf(&path, "%s/%s", f->directory, name) >= 0);
        return path;
}

/* NULL where there is no such file. */
static char *read_file(const Fixture *f, const char *name) {
        _cleanup_free_ char *path = path_of(f, name);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        char *text = NULL;

        if (fd >= 0)
                assert_int_equal(read_whole_fd(fd, MIB(1), &text, NULL), 0);
        return text;
}

static void write_file(const Fixture *f, const char *name, const char *text) {
        _cleanup_free_ char *path = path_of(f, name);
        FILE *file = fopen(path, "we");

        assert_non_null(file);
        (void) fputs(text, file);
        assert_int_equal(fclose(file), 0);
}

/* ---- the fake machine, in a process of its own ---- */

#define BALLOON(target, actual) \
        "{\"device\":\"balloon\",\"target\":" target ",\"actual\":" actual ",\"driver\":true," \
        "\"features\":[\"statistics\",\"deflateOnOom\"],\"oomDeflations\":2,\"reported\":4096}"
#define BUCKETS \
        "[{\"age\":1000,\"fileBytes\":4096,\"anonymousBytes\":8192},{\"age\":null,\"fileBytes\":1048576,\"anonymousBytes\":0}]"

static const char description[] =
                "{\"name\":\"demo\",\"state\":\"running\",\"since\":1700000000000000,\"vcpus\":2,\"memory\":536870912,\"pid\":77,"
                "\"version\":\"0.1.0\",\"resets\":1,\"exits\":5,\"guestReady\":true,\"balloons\":[" BALLOON("268435456", "134217728") "],\"firstEntry\":7,\"commandLine\":\"quiet\",\"lastProblem\":null,"
                "\"devices\":[{\"name\":\"my-disk\",\"type\":\"block\",\"unit\":\"vmm-device@demo-my\\\\x2ddisk.service\","
                "\"transport\":\"vhostUser\",\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\",\"attached\":false,\"leaving\":false,\"reconnects\":0,\"error\":null},"
                "{\"name\":\"serial\",\"type\":\"serial\",\"unit\":\"vmm-device@demo-serial.service\",\"transport\":\"bus\","
                "\"state\":\"failed\",\"pciAddress\":null,\"attached\":false,\"leaving\":false,\"pid\":78,\"reconnects\":3,\"error\":\"it went away\",\"errorTime\":1700000000000000}]}";

/* What a method answers, where it was not told otherwise. */
static const struct {
        const char *method, *reply;
} replies[] = {
        { "Describe", description },
        { "DescribeBalloon", "{\"balloon\":" BALLOON("268435456", "134217728") "}" },
        { "SetBalloonTarget", "{\"balloon\":" BALLOON("536870912", "536870912") "}" },
        { "GetBalloonStatistics",
                "{\"statistics\":{\"age\":250000,\"freeMemory\":1048576,\"majorFaults\":7,\"totalMemory\":-1,\"other\":{\"99\":5}},"
                "\"balloon\":" BALLOON("1024", "0") "}" },
        { "GetWorkingSet", "{\"workingSet\":" BUCKETS ",\"balloon\":" BALLOON("1024", "0") "}" },
        { "HintFreePages", "{\"freed\":3145728}" },
        { "ResizeDisk", "{\"size\":1073741824}" },
};

static void record(const Fixture *f, const char *what, json_object *parameters) {
        _cleanup_free_ char *path = path_of(f, CALLS);
        FILE *file = fopen(path, "ae");

        if (!file)
                _exit(2);
        (void) fprintf(file, "%s %s\n", what, parameters ? json_object_to_json_string_ext(parameters, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : "");
        (void) fclose(file);
}

static void on_closed(VarlinkCall *call, void *userdata) {
        record(userdata, "closed", NULL);
        varlink_call_unref(call);
}

/* Records the call. Returns > 0 where it was answered as the test wants it. */
static int begin(VarlinkCall *call, json_object *parameters, const Fixture *f) {
        _cleanup_free_ char *answer = read_file(f, ANSWER);
        _cleanup_json_ json_object *p = NULL;
        char *space;

        record(f, strrchr(varlink_call_method(call), '.') + 1, parameters);
        if (!answer)
                return 0;
        if (streq(answer, "hang")) {
                varlink_call_on_close(varlink_call_ref(call), on_closed, (void *) f);
                return 1;
        }
        if (streq(answer, "once")) {
                if (json_get_boolean(parameters, "allowInteractiveAuthentication", false))
                        return 0;
                (void) varlink_call_error(call, "io.systemd.InteractiveAuthenticationRequired", NULL);
                return 1;
        }
        space = strchr(answer, ' ');
        if (!space)
                return 0;
        *space = 0;
        p = json_tokener_parse(space + 1);
        (void) varlink_call_error(call, answer, p);
        return 1;
}

static int answer(VarlinkCall *call, json_object *parameters, void *userdata) {
        const char *method = strrchr(varlink_call_method(call), '.') + 1;
        _cleanup_json_ json_object *reply = NULL;

        if (begin(call, parameters, userdata) > 0)
                return 0;
        for (size_t i = 0; i < ELEMENTSOF(replies); i++)
                if (streq(replies[i].method, method))
                        reply = json_tokener_parse(replies[i].reply);
        return varlink_call_reply(call, reply);
}

#define ATTACHED(state) \
        "{\"device\":{\"name\":\"data\",\"type\":\"block\",\"unit\":\"vmm-device@demo-slot0.service\",\"transport\":\"vhostUser\"," \
        "\"state\":\"" state "\",\"pciAddress\":\"0000:00:05.0\",\"attached\":true,\"leaving\":false,\"reconnects\":0}}"

/* Records what came along, too. The driver is there by the time the client is prepared to wait for. */
static int attach_device(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_tokener_parse(json_get(parameters, "timeout", json_type_int) ? ATTACHED("active") : ATTACHED("ready"));
        json_object *list = json_get(parameters, "fileDescriptors", json_type_array);

        if (begin(call, parameters, userdata) > 0)
                return 0;
        for (size_t i = 0; list && i < json_object_array_length(list); i++) {
                json_object *d = json_object_array_get_idx(list, i);
                _cleanup_close_ int fd = varlink_call_take_fd(call, json_get_integer(d, "index", -1));
                char link[32], target[256] = "nothing", text[400];
                int flags = fcntl(fd, F_GETFL);

                (void) snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
                (void) !readlink(link, target, sizeof(target) - 1);
                (void) snprintf(text, sizeof(text), "%s %s%s %s", json_get_string(d, "option", "?"),
                        (flags & O_ACCMODE) == O_RDWR ? "rw" : (flags & O_ACCMODE) == O_WRONLY ? "w" : "r", flags & O_APPEND ? "+" : "", target);
                record(userdata, text, NULL);
        }
        return varlink_call_reply(call, reply);
}

/* Replies, one a line in the file; the last one ends it. */
static int answer_lines(VarlinkCall *call, json_object *parameters, void *userdata, const char *name) {
        _cleanup_free_ char *text = read_file(userdata, name);
        char *rest = text, *line;

        while (text && (line = strsep(&rest, "\n"))) {
                _cleanup_json_ json_object *reply = json_tokener_parse(line);
                bool last = !rest || *rest == 0;
                int r;

                r = last ? varlink_call_reply(call, reply) : varlink_call_reply_continues(call, reply);
                if (r < 0 || last)
                        return r;
        }
        return -ENODATA;
}

static int on_tick(sd_event_source *source, uint64_t usec, void *userdata) {
        _cleanup_json_ json_object *event = json_tokener_parse("{\"type\":\"machineState\",\"sequence\":2,\"time\":2,\"missed\":0,\"state\":\"paused\"}");
        VarlinkCall *call = userdata;

        if (varlink_call_reply_continues(call, event) == -ENOTCONN)
                return 0;
        (void) sd_event_source_set_time_relative(source, USEC_PER_MSEC);
        return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* When all that was said is sent. */
static int on_replaced(sd_event_source *source, void *userdata) {
        VarlinkCall *call = userdata;
        int r = shutdown(varlink_call_peer_fd(call), SHUT_RDWR) < 0 ? -errno : 0;

        (void) varlink_call_unref(call);
        return r;
}

/* A process that is replaced: what is in the file is told, and the connection ends. Who comes back has had it, which the next file goes on from. */
static int subscribe_in_parts(VarlinkCall *call, json_object *parameters, Fixture *f) {
        json_object *after = json_get(parameters, "after", json_type_object);
        _cleanup_free_ char *text = read_file(f, "parts");
        char *rest = text, *line;
        sd_event_source *source;
        int r;

        if (after)
                return answer_lines(call, parameters, f, json_get_integer(after, "sequence", 0) == 8 ? "later" : "elsewhere");
        while (text && (line = strsep(&rest, "\n")) && *line) {
                _cleanup_json_ json_object *reply = json_tokener_parse(line);

                r = varlink_call_reply_continues(call, reply);
                if (r < 0)
                        return r;
        }
        r = sd_event_add_defer(f->event, &source, on_replaced, varlink_call_ref(call));
        if (r < 0)
                return r;
        r = sd_event_source_set_priority(source, SD_EVENT_PRIORITY_IDLE);
        if (r >= 0)
                r = sd_event_source_set_floating(source, true);
        (void) sd_event_source_unref(source);
        return r;
}

/* "endless": an event each millisecond. "silent": nothing after the first. "replaced": see above. Else those in the file. */
static int subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        static const char present[] = "{\"type\":\"present\",\"sequence\":1,\"time\":1700000000123456,\"missed\":0,\"present\":"
                "{\"state\":\"running\",\"since\":1700000000000000,\"guestReady\":true,\"devices\":[],\"balloons\":[" BALLOON("1048576", "0") "]}}";
        Fixture *f = userdata;
        _cleanup_free_ char *mode = read_file(f, ANSWER);
        _cleanup_json_ json_object *first = json_tokener_parse(present);
        int r;

        r = begin(call, parameters, f);
        if (r > 0)
                return 0;
        if (mode && streq(mode, "replaced"))
                return subscribe_in_parts(call, parameters, f);
        r = varlink_call_reply_continues(call, first);
        if (r < 0)
                return r;
        if (mode && streq(mode, "endless"))
                return sd_event_add_time_relative(f->event, NULL, CLOCK_MONOTONIC, 0, 1, on_tick, varlink_call_ref(call));
        if (mode && streq(mode, "silent")) {
                varlink_call_on_close(varlink_call_ref(call), on_closed, f);
                return 0;
        }
        return answer_lines(call, parameters, f, "events");
}

static int list_metrics(VarlinkCall *call, json_object *parameters, void *userdata) {
        return begin(call, parameters, userdata) > 0 ? 0 : answer_lines(call, parameters, userdata, "metrics");
}

static int describe_metrics(VarlinkCall *call, json_object *parameters, void *userdata) {
        return begin(call, parameters, userdata) > 0 ? 0 : answer_lines(call, parameters, userdata, "descriptions");
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
        _cleanup_free_ char *mode = read_file(userdata, ANSWER);
        int fds[2];

        if (begin(call, parameters, userdata) > 0)
                return 0;
        if (mode && streq(mode, "no-fds")) {
                (void) json_add_integer(reply, "fileDescriptorIndex", 0);
                return varlink_call_reply(call, reply);
        }
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

static void on_attached(int fd, const void *data, size_t size, void *userdata) {
        if (fork() == 0) {
                (void) fcntl(fd, F_SETFL, 0);
                (void) write_full(fd, "(upgraded) ", 11);
                serve_console(fd);
        }
        (void) close(fd);
}

static int attach_console(VarlinkCall *call, json_object *parameters, void *userdata) {
        return begin(call, parameters, userdata) > 0 ? 0 : varlink_call_reply_upgrade(call, NULL, on_attached, NULL);
}

/* The file "tree" is the reply. */
static int get_device_tree(VarlinkCall *call, json_object *parameters, void *userdata) {
        if (begin(call, parameters, userdata) > 0)
                return 0;
        return answer_lines(call, parameters, userdata, "tree");
}

/* What it was told goes to a file, for the test to read. */
static int set_size(VarlinkCall *call, json_object *parameters, void *userdata) {
        const Fixture *f = userdata;
        char text[64];

        (void) snprintf(text, sizeof(text), "%i %i", (int) json_get_integer(parameters, "columns", 0), (int) json_get_integer(parameters, "rows", 0));
        write_file(f, "size", text);
        return varlink_call_reply(call, NULL);
}

static void run_machine(Fixture *f, int fd) {
        static const VarlinkMethod methods[] = {
                { "Describe", answer },
                { "SubscribeEvents", subscribe, VARLINK_METHOD_REQUIRES_MORE },
                { "PowerButton", answer },
                { "SleepButton", answer },
                { "Reboot", answer },
                { "Reset", answer },
                { "Pause", answer },
                { "Resume", answer },
                { "GetDeviceTree", get_device_tree },
                { "InjectNmi", answer },
                { "SendKeys", answer },
                { "ResizeDisk", answer },
                { "AttachDevice", attach_device },
                { "DetachDevice", answer },
                { "OpenConsole", open_console },
                { "AttachConsole", attach_console, VARLINK_METHOD_UPGRADES },
                { "SetConsoleSize", set_size },
                { "SetLogLevel", answer },
                { "DescribeBalloon", answer },
                { "SetBalloonTarget", answer },
                { "GetBalloonStatistics", answer },
                { "GetWorkingSet", answer },
                { "ConfigureWorkingSet", answer },
                { "HintFreePages", answer },
                {},
        };
        static const VarlinkMethod metrics[] = {
                { "List", list_metrics, VARLINK_METHOD_REQUIRES_MORE },
                { "Describe", describe_metrics, VARLINK_METHOD_REQUIRES_MORE },
                {},
        };
        VarlinkServer *server = NULL;

        (void) signal(SIGCHLD, SIG_IGN);
        if (sd_event_new(&f->event) < 0 || varlink_server_new(&server, f->event) < 0 ||
                varlink_server_add_interface(server, varlink_text_io_vmmd_Machine, methods, f) < 0 ||
                varlink_server_add_interface(server, varlink_text_io_systemd_Metrics, metrics, f) < 0 ||
                varlink_server_listen_fd(server, fd) < 0)
                _exit(1);
        _exit(sd_event_loop(f->event) < 0);
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

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
        return remove(path);
}

static int tear_down(void **state) {
        Fixture *f = *state;

        (void) kill(f->machine, SIGKILL);
        (void) waitpid(f->machine, NULL, 0);
        (void) nftw(f->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
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

/* What the machine was called since the last time; "" where it was not. The caller frees it. */
static char *calls(const Fixture *f) {
        _cleanup_free_ char *path = path_of(f, CALLS);
        char *text = read_file(f, CALLS);

        (void) unlink(path);
        return text ?: strdup("");
}

/* Runs it and compares what the machine was called, what was printed (NULL is whatever), and how it ended. */
static void check(const Fixture *f, const char *arguments, const char *called, const char *printed, int status) {
        _cleanup_free_ char *out = NULL, *got = NULL;
        int r;

        r = run(&out, "%s", arguments);
        got = calls(f);
        if (r != status || (printed && !streq(out, printed)) || (called && !streq(got, called)))
                fail_msg("vmmctl %s: status %i, not %i; called\n%sinstead of\n%sand printed\n%sinstead of\n%s", arguments, r, status, got,
                        called ?: "", out, printed ?: "(whatever)\n");
}

static void refuses_wrong_usage(void **state) {
        static const char *const wrong[] = { "", "bogus", "--bogus", "start", "console", "console a b c", "list a", "--json=xml list",
                "--timeout=-1 stop a", "--timeout= stop a", "--escape=x console a", "--escape=^1 console a",
                "send-key demo", "send-key demo a+", "send-key demo +a", "send-key demo A", "send-key demo a nokey", "send-key demo a --hold=x",
                "reset --full a", "list --follow", "status --wait a", "pause", "nmi demo x", "nmi demo -- -1", "nmi demo 1 2",
                "balloon demo 1X", "balloon demo 101%", "balloon demo %", "balloon demo +", "balloon demo 1G --stats",
                "balloon demo --stats --hint", "balloon demo --wait", "balloon demo 1G --timeout=5", "balloon demo --refresh-threshold=1s",
                "balloon demo 18446744073709551616", "balloon demo --working-set --hint", "balloon demo --device",
                "balloon-ws demo --intervals=", "balloon-ws demo --intervals=2s,1s", "balloon-ws demo --intervals=1s,1s",
                "balloon-ws demo --intervals=1us", "balloon-ws demo --intervals=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
                "resize demo root 1000", "resize demo root 1X", "resize demo", "attach demo", "attach demo data", "attach demo data floppy",
                "attach demo data balloon", "attach demo data rng path=/x", "attach demo data block path", "attach demo data block readOnly=maybe",
                "attach demo data block queues=many", "attach demo data block queues=1 queues=2", "attach demo data net interface=a/b",
                "attach demo data net interface=x queuePairs=99", "attach demo data rng --force", "detach demo", "detach demo a b",
                "disk grow demo root", "disk resize demo",
                "events", "events a b", "events demo --filter=bogus", "events demo --filter=", "events demo --filter=panic,",
                "events demo --statistics=99ms", "events demo --statistics=x", "log-level demo", "log-level demo loud",
                "log-level demo root", "-H", "-H '' list", "-H -oProxyCommand=x list", "-H user@-x list", "-H @x list", "-H x bogus" };
        _cleanup_free_ char *out = NULL;

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                if (run(&out, "%s", wrong[i]) != 2)
                        fail_msg("%s: %s", wrong[i], out);
}

static void refuses_names_that_are_paths(void **state) {
        _cleanup_free_ char *out = NULL;

        assert_int_equal(run(&out, "describe ../demo"), 4);
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
                                 "\"defined\":true,\"devices\":0}]\n");
}

static void sends_each_command_as_the_call_that_it_is(void **state) {
        Fixture *f = *state;

        check(f, "reset demo", "Reset {}\n", "", 0);
        check(f, "reboot demo", "Reboot {}\n", "", 0);
        check(f, "pause demo demo", "Pause {}\nPause {}\n", "", 0);
        check(f, "pause demo --full", "Pause {\"devices\":true}\n", "", 0);
        check(f, "suspend demo", "Pause {}\n", "", 0);
        check(f, "suspend --full demo", "Pause {\"devices\":true}\n", "", 0);
        check(f, "resume demo", "Resume {}\n", "", 0);
        check(f, "resume --full demo", "Resume {}\n", "", 0);
        check(f, "power-button demo", "PowerButton {}\n", "", 0);
        check(f, "powerbtn demo", "PowerButton {}\n", "", 0);
        check(f, "sleep-button demo", "SleepButton {}\n", "", 0);
        check(f, "sleepbtn demo", "SleepButton {}\n", "", 0);
        check(f, "nmi demo", "InjectNmi {}\n", "", 0);
        check(f, "nmi demo 3", "InjectNmi {\"vcpu\":3}\n", "", 0);
        check(f, "log-level demo debug", "SetLogLevel {\"level\":\"debug\"}\n", "", 0);
        check(f, "log-level demo root warning", "SetLogLevel {\"level\":\"warning\",\"device\":\"root\"}\n", "", 0);
        check(f, "log_level demo info", "SetLogLevel {\"level\":\"info\"}\n", "", 0);
        check(f, "--json=short reset demo other", "Reset {}\n",
                "vmmctl: other: the machine does not run\n"
                "[{\"name\":\"demo\",\"ok\":true},{\"name\":\"other\",\"ok\":false,\"problem\":\"the machine does not run\"}]\n", 3);
}

static void resizes_disks(void **state) {
        Fixture *f = *state;

        check(f, "resize demo root 1G", "ResizeDisk {\"device\":\"root\",\"size\":1073741824}\n", "demo: the disk 'root' has 1 GiB now.\n", 0);
        check(f, "disk resize demo root 1073741824", "ResizeDisk {\"device\":\"root\",\"size\":1073741824}\n", NULL, 0);
        check(f, "-q resize demo root", "ResizeDisk {\"device\":\"root\"}\n", "", 0);
        check(f, "--json=short resize demo root 512", "ResizeDisk {\"device\":\"root\",\"size\":512}\n", "{\"size\":1073741824}\n", 0);
}

/* The files are opened by vmmctl, and as the definition asks. */
static void attaches_devices_with_what_they_are_made_of(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *arguments = NULL, *called = NULL;

        write_file(f, "disk", "x");
        assert_true(asprintf(&arguments, "attach demo data block path=%s/demo/../disk serial=A=B queues=4 direct=no blockSize=4096", f->directory) >= 0);
        assert_true(asprintf(&called, "AttachDevice {\"name\":\"data\",\"definition\":{\"type\":\"block\",\"path\":\"%s/disk\",\"serial\":\"A=B\","
                        "\"queues\":4,\"direct\":false,\"blockSize\":4096},\"fileDescriptors\":[{\"option\":\"path\",\"index\":0}],\"timeout\":30000000}\n"
                        "path rw %s/disk \n", f->directory, f->directory) >= 0);
        check(f, arguments, called, "demo: the block device 'data' is attached at 0000:00:05.0, and the guest uses it.\n", 0);

        freep(&arguments);
        freep(&called);
        assert_true(asprintf(&arguments, "--timeout=0 attach demo data block read-only=yes path=%s/disk", f->directory) >= 0);
        assert_true(asprintf(&called, "AttachDevice {\"name\":\"data\",\"definition\":{\"type\":\"block\",\"readOnly\":true,\"path\":\"%s/disk\"},"
                        "\"fileDescriptors\":[{\"option\":\"path\",\"index\":0}]}\npath r %s/disk \n", f->directory, f->directory) >= 0);
        check(f, arguments, called, "demo: the block device 'data' is attached at 0000:00:05.0; the guest's driver has not taken it yet.\n", 0);

        freep(&arguments);
        freep(&called);
        assert_true(asprintf(&arguments, "-q --timeout=2s attach demo con console log=%s/new-log ports=a ports=b", f->directory) >= 0);
        assert_true(asprintf(&called, "AttachDevice {\"name\":\"con\",\"definition\":{\"type\":\"console\",\"log\":\"%s/new-log\",\"ports\":[\"a\",\"b\"]},"
                        "\"fileDescriptors\":[{\"option\":\"log\",\"index\":0}],\"timeout\":2000000}\nlog w+ %s/new-log \n", f->directory, f->directory) >= 0);
        check(f, arguments, called, "", 0);

        check(f, "--json=short attach demo random rng --timeout=0",
                "AttachDevice {\"name\":\"random\",\"definition\":{\"type\":\"rng\"},\"fileDescriptors\":[]}\n", NULL, 0);
}

static void attaches_nothing_that_the_user_cannot_open(void **state) {
        Fixture *f = *state;

        check(f, "attach demo data block path=/nonexistent/disk", "", "vmmctl: path=/nonexistent/disk: No such file or directory\n", 1);
        check(f, "attach demo data block path=/usr/..", "", "vmmctl: Cannot open /: Is a directory\n", 1);
        check(f, "attach demo con console log=/nonexistent/log", "", "vmmctl: log=/nonexistent/log: No such file or directory\n", 1);
        check(f, "attach demo lan net interface=nonexistent0", "", NULL, 1);
}

static void detaches_devices(void **state) {
        Fixture *f = *state;

        check(f, "detach demo data", "DetachDevice {\"name\":\"data\"}\n", "demo: the device 'data' is detached.\n", 0);
        check(f, "-q --force detach demo data", "DetachDevice {\"name\":\"data\",\"force\":true}\n", "", 0);
        check(f, "detach demo data --timeout=1min", "DetachDevice {\"name\":\"data\",\"timeout\":60000000}\n", NULL, 0);
}

static void shows_balloons(void **state) {
        static const char heading[] = "BALLOON  TARGET   ACTUAL   OOM-DEFLATIONS  REPORTED  GUEST'S DRIVER\n",
                          row[] = "balloon  256 MiB  128 MiB  2               4 KiB     statistics deflateOnOom\n",
                          alone[] = "balloon  256 MiB  128 MiB  2  4 KiB  statistics deflateOnOom\n";
        Fixture *f = *state;
        _cleanup_free_ char *both = NULL;

        assert_true(asprintf(&both, "%s%s", heading, row) >= 0);
        check(f, "balloon demo", "Describe {}\n", both, 0);
        check(f, "balloon demo --device=balloon", "DescribeBalloon {\"device\":\"balloon\"}\n", both, 0);
        check(f, "-q balloon demo", "Describe {}\n", alone, 0);
        check(f, "--json=short balloon demo", "Describe {}\n", "[" BALLOON("268435456", "134217728") "]\n", 0);
}

static void sets_a_balloon_in_each_unit(void **state) {
        static const struct {
                const char *size, *called;
        } sizes[] = {
                { "0", "SetBalloonTarget {\"target\":0}\n" },
                { "4096", "SetBalloonTarget {\"target\":4096}\n" },
                { "512K", "SetBalloonTarget {\"target\":524288}\n" },
                { "1G", "SetBalloonTarget {\"target\":1073741824}\n" },
                { "1T", "SetBalloonTarget {\"target\":1099511627776}\n" },
                { "50%", "Describe {}\nSetBalloonTarget {\"target\":268435456}\n" },
                { "33%", "Describe {}\nSetBalloonTarget {\"target\":177167400}\n" },
                { "max", "Describe {}\nSetBalloonTarget {\"target\":536870912}\n" },
                { "+64M", "DescribeBalloon {}\nSetBalloonTarget {\"target\":335544320}\n" },
                { "-- -64M", "DescribeBalloon {}\nSetBalloonTarget {\"target\":201326592}\n" },
                { "-- -1T", "DescribeBalloon {}\nSetBalloonTarget {\"target\":0}\n" },
        };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                _cleanup_free_ char *command = NULL;

                assert_true(asprintf(&command, "balloon demo %s", sizes[i].size) >= 0);
                check(f, command, sizes[i].called, "demo: balloon: 512 MiB of 512 MiB\n", 0);
        }
        check(f, "balloon demo 1M --wait", "SetBalloonTarget {\"target\":1048576,\"wait\":true}\n", "demo: balloon: 512 MiB of 512 MiB\n", 0);
        check(f, "balloon demo 1M --device=b", "SetBalloonTarget {\"device\":\"b\",\"target\":1048576}\n", NULL, 0);
        check(f, "balloon demo +1M --device=b", "DescribeBalloon {\"device\":\"b\"}\nSetBalloonTarget {\"device\":\"b\",\"target\":269484032}\n", NULL, 0);
        check(f, "-q balloon demo 1M", NULL, "", 0);
        check(f, "--json=short balloon demo 1M", NULL, BALLOON("536870912", "536870912") "\n", 0);
}

static void shows_what_the_guest_says_of_its_memory(void **state) {
        static const char statistics[] = "Free memory:   1 MiB\nMajor faults:  7\nTotal memory:  -1\nTag 99:        5\n"
                                         "Balloon:       0 B of 1 KiB\nAge:           250 ms\n",
                          working_set[] = "USED WITHIN  FILES  ANONYMOUS\n1.000 s      4 KiB  8 KiB\nlonger ago   1 MiB  0 B\n";
        Fixture *f = *state;

        check(f, "balloon demo --stats", "GetBalloonStatistics {}\n", statistics, 0);
        check(f, "balloon-stats demo --device=b", "GetBalloonStatistics {\"device\":\"b\"}\n", statistics, 0);
        check(f, "balloon_stats demo", "GetBalloonStatistics {}\n", statistics, 0);
        check(f, "--json=short balloon-stats demo", NULL,
                "{\"statistics\":{\"age\":250000,\"freeMemory\":1048576,\"majorFaults\":7,\"totalMemory\":-1,\"other\":{\"99\":5}},"
                "\"balloon\":" BALLOON("1024", "0") "}\n", 0);
        check(f, "balloon demo --working-set", "GetWorkingSet {}\n", working_set, 0);
        check(f, "balloon-ws demo", "GetWorkingSet {}\n", working_set, 0);
        check(f, "balloon-ws demo --intervals=500ms,10s,1min",
                "ConfigureWorkingSet {\"intervals\":[500,10000,60000],\"refreshThreshold\":1000,\"reportThreshold\":1000}\n", "", 0);
        check(f, "balloon demo --working-set --intervals=1 --refresh-threshold=2 --report-threshold=3s --device=b",
                "ConfigureWorkingSet {\"device\":\"b\",\"intervals\":[1000],\"refreshThreshold\":2000,\"reportThreshold\":3000}\n", "", 0);
        check(f, "balloon demo --hint", "HintFreePages {}\n", "demo: took 3 MiB that the guest did not use.\n", 0);
        check(f, "--json=short balloon demo --hint", NULL, "{\"freed\":3145728}\n", 0);
}

static void says_each_error_in_words(void **state) {
        static const struct {
                const char *answer, *words;
        } errors[] = {
                { "io.vmmd.Machine.NoSuchDevice {\"device\":\"x\"}", "there is no device 'x'" },
                { "io.vmmd.Machine.NoConsole {}", "the machine has no console" },
                { "io.vmmd.Machine.NoInput {}", "the machine has no input device" },
                { "io.vmmd.Machine.NoSuchPort {\"port\":\"x\"}", "the console has no port 'x'" },
                { "io.vmmd.Machine.NoBalloon {}", "the machine has no balloon" },
                { "io.vmmd.Machine.TargetSuperseded {\"target\":1048576}",
                        "another target, 1 MiB, was set before the guest had reached this one" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"statistics\"}",
                        "the guest has no balloon driver that reports statistics of its memory" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"mustTellHost\"}",
                        "the guest has no balloon driver that tells before it takes pages back" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"deflateOnOom\"}",
                        "the guest has no balloon driver that takes pages back when memory runs out" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"freePageHinting\"}",
                        "the guest has no balloon driver that says which pages are free when it is asked" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"freePageReporting\"}",
                        "the guest has no balloon driver that reports pages as they become free" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"pagePoison\"}",
                        "the guest has no balloon driver that says what it poisons free pages with" },
                { "io.vmmd.Machine.GuestCannot {\"feature\":\"workingSet\"}",
                        "the guest has no balloon driver that reports how old its memory is" },
                { "io.vmmd.Machine.GuestDoesNotAnswer {\"timeout\":5250000}", "the guest did not answer within 5.2 s" },
                { "io.vmmd.Machine.NotSupported {}", "it cannot do that" },
                { "io.vmmd.Machine.WrongState {\"state\":\"paused\"}", "it cannot do that while it is paused" },
                { "io.vmmd.Machine.DeviceExists {\"device\":\"root\"}", "there is a device 'root' already" },
                { "io.vmmd.Machine.NoFreeSlot {}",
                        "all its spare devices, or places on the PCI bus, are taken (hotplugSlots in the definition)" },
                { "io.vmmd.Machine.NotDetachable {\"device\":\"root\"}", "the device 'root' cannot be detached" },
                { "io.vmmd.Machine.DetachTimedOut {\"device\":\"root\",\"timeout\":30000000}",
                        "the guest did not let go of the device 'root' within 30.0 s; it stays attached. --force takes it away all the same" },
                { "io.vmmd.Machine.WrongDefinition {\"message\":\"/data/queues: found 17\"}", "/data/queues: found 17" },
                { "io.vmmd.Machine.DeviceFailed {\"device\":\"root\",\"reason\":\"no space\"}", "the device 'root' failed: no space" },
                /* What a helper says goes to somebody's terminal. */
                { "io.vmmd.Machine.DeviceFailed {\"device\":\"root\",\"reason\":\"\\u001b[2J\\u009bgone\"}", "the device 'root' failed: ?[2J??gone" },
                { "org.varlink.service.PermissionDenied {}", "permission denied" },
                { "org.varlink.service.PermissionDenied {\"reason\":\"you are not of the group vmm-read\"}",
                        "permission denied: you are not of the group vmm-read" },
                { "org.varlink.service.InvalidParameter {\"parameter\":\"target\"}", "it does not take that value of 'target'" },
                { "org.varlink.service.MethodNotFound {\"method\":\"a.b.C\"}", "its vmmd does not know the method a.b.C" },
                { "org.varlink.service.InterfaceNotFound {\"interface\":\"a.b\"}", "its vmmd does not know the interface a.b" },
                { "io.systemd.System {\"errno\":28}", "No space left on device" },
                { "io.systemd.InteractiveAuthenticationRequired {}", "permission denied: you would have to be asked, which takes a terminal as "
                                                                       "standard input, and no --no-ask-password" },
                { "io.systemd.Metrics.NoSuchMetric {}", "it has no such numbers" },
                /* One that has no words of its own */
                { "org.varlink.service.ExpectedMore {}", "org.varlink.service.ExpectedMore {}" },
        };
        static const char *const commands[] = { "reset demo", "describe demo", "balloon demo", "balloon demo 1M --wait", "balloon demo --hint",
                "resize demo root", "events demo", "events --follow demo", "metrics demo", "console demo </dev/null" };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(errors); i++) {
                _cleanup_free_ char *expected = NULL;

                write_file(f, ANSWER, errors[i].answer);
                assert_true(asprintf(&expected, "vmmctl: demo: %s\n", errors[i].words) >= 0);
                /* All by the first command, and a few by all. */
                for (size_t j = 0; j < (i < 2 ? ELEMENTSOF(commands) : 1); j++)
                        check(f, commands[j], NULL, expected, 1);
        }
}

static void describes_a_running_machine(void **state) {
        _cleanup_json_ json_object *json = NULL, *status = NULL;
        _cleanup_free_ char *out = NULL;
        json_object *machine, *device;

        assert_int_equal(run(&out, "describe demo"), 0);
        json = json_tokener_parse(out);
        assert_int_equal(json_get_integer(json, "pid", 0), 77);
        assert_int_equal(run(&out, "status demo"), 0);
        assert_non_null(strstr(out, "● demo - running since "));
        assert_non_null(strstr(out, "PID: 77\n"));
        assert_non_null(strstr(out, "Memory: 512 MiB\n"));
        assert_non_null(strstr(out, "Balloon: balloon: 128 MiB of 256 MiB; deflated 2 times for want of memory\n"));
        assert_non_null(strstr(out, "vmm-device@demo-my\\x2ddisk.service"));
        assert_non_null(strstr(out, " 78 "));
        assert_non_null(strstr(out, "it went away ("));
        assert_non_null(strstr(out, " ago)\n"));
        assert_null(strstr(out, "not ready"));
        assert_null(strchr(out, '\x1b'));
        assert_int_equal(run(&out, "--json=short status demo"), 0);
        status = json_tokener_parse(out);
        machine = json_object_array_get_idx(status, 0);
        assert_string_equal(json_get_string(machine, "state", ""), "running");
        assert_true(json_get_boolean(machine, "guestReady", false));
        assert_int_equal(json_get_integer(json_object_array_get_idx(json_get(machine, "balloons", json_type_array), 0), "actual", 0), 134217728);
        device = json_object_array_get_idx(json_get(machine, "devices", json_type_array), 1);
        assert_int_equal(json_get_integer(device, "pid", 0), 78);
        assert_int_equal(json_get_integer(device, "reconnects", 0), 3);
        assert_int_equal(json_get_integer(device, "errorTime", 0), 1700000000000000);
}

/* ---- events ---- */

#define PRESENT "2023-11-14 22:13:20.123  present               running since Tue 2023-11-14 22:13:20 UTC, guest ready, balloon: 0 B of 1 MiB\n"
#define EVENT(type, rest) "{\"type\":\"" type "\",\"sequence\":7,\"time\":1700000001000000,\"missed\":0" rest "}\n"

static void shows_the_present_state_and_ends(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;
        _cleanup_json_ json_object *json = NULL;

        /* A machine that would go on for ever. */
        write_file(f, ANSWER, "endless");
        assert_int_equal(setenv("TZ", "UTC", 1), 0);
        check(f, "events demo", "SubscribeEvents {}\n", PRESENT, 0);
        assert_int_equal(run(&out, "--json events demo"), 0);
        assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
        json = json_tokener_parse(out);
        assert_string_equal(json_get_string(json, "type", ""), "present");
        assert_int_equal(run(&out, "--json=pretty events demo"), 0);
        assert_ptr_not_equal(strchr(out, '\n'), out + strlen(out) - 1);
}

static void follows_events_to_the_machine_s_end(void **state) {
        static const char events[] =
                EVENT("guestReady", "")
                EVENT("panic", ",\"reason\":\"oops\"")
                EVENT("deviceState", ",\"device\":\"root\",\"deviceState\":\"active\"")
                EVENT("deviceFailed", ",\"device\":\"root\",\"deviceState\":\"failed\",\"reason\":\"it went away\"")
                EVENT("deviceRestarted", ",\"device\":\"root\",\"deviceState\":\"active\"")
                EVENT("balloonTarget", ",\"balloon\":" BALLOON("2048", "1024"))
                EVENT("workingSet", ",\"device\":\"balloon\",\"workingSet\":" BUCKETS)
                EVENT("statistics", ",\"device\":\"balloon\",\"statistics\":{\"age\":1,\"freeMemory\":1024,\"totalMemory\":2048}")
                "{\"type\":\"machineState\",\"sequence\":99,\"time\":1700000002000000,\"missed\":5,\"state\":\"stopping\",\"reason\":\"the guest powered off\"}\n";
        Fixture *f = *state;

        write_file(f, "events", events);
        assert_int_equal(setenv("TZ", "UTC", 1), 0);
        check(f, "events demo --follow --filter=panic,machineState --statistics=1s",
                "SubscribeEvents {\"filter\":[\"panic\",\"machineState\"],\"statisticsInterval\":1000000}\n",
                PRESENT
                "2023-11-14 22:13:21.000  guestReady            all drivers of the guest are at work\n"
                "2023-11-14 22:13:21.000  panic                 oops\n"
                "2023-11-14 22:13:21.000  deviceState           root: active\n"
                "2023-11-14 22:13:21.000  deviceFailed          root: failed (it went away)\n"
                "2023-11-14 22:13:21.000  deviceRestarted       root: active\n"
                "2023-11-14 22:13:21.000  balloonTarget         balloon: 1 KiB of 2 KiB\n"
                "2023-11-14 22:13:21.000  workingSet            balloon: 1000 ms 12 KiB, older 1 MiB\n"
                "2023-11-14 22:13:21.000  statistics            balloon: total 2 KiB, free 1 KiB\n"
                "                         5 events were missed\n"
                "2023-11-14 22:13:22.000  machineState          stopping (the guest powered off)\n", 0);
}

#define PRESENT_OF(run, sequence, missed) \
        "{\"type\":\"present\",\"sequence\":" sequence ",\"time\":1700000000123456,\"missed\":" missed ",\"run\":\"" run "\",\"present\":" \
        "{\"state\":\"running\",\"since\":1700000000000000,\"guestReady\":true,\"devices\":[],\"balloons\":[]}}\n"
#define NUMBERED(reason, sequence) "{\"type\":\"panic\",\"sequence\":" sequence ",\"time\":1700000001000000,\"missed\":0,\"reason\":\"" reason "\"}\n"
#define LINE(reason) "2023-11-14 22:13:21.000  panic                 " reason "\n"
#define HERE "2023-11-14 22:13:20.123  present               running since Tue 2023-11-14 22:13:20 UTC, guest ready\n"
#define ENDED "{\"type\":\"machineState\",\"sequence\":99,\"time\":1700000002000000,\"missed\":0,\"state\":\"stopping\"}\n"
#define ENDED_LINE "2023-11-14 22:13:22.000  machineState          stopping\n"
#define CALLS_OF_TWO "SubscribeEvents {}\nSubscribeEvents {\"after\":{\"run\":\"one\",\"sequence\":8}}\n"

static void goes_on_where_the_machine_s_process_was_replaced(void **state) {
        Fixture *f = *state;

        assert_int_equal(setenv("TZ", "UTC", 1), 0);
        write_file(f, ANSWER, "replaced");
        write_file(f, "parts", PRESENT_OF("one", "6", "0") NUMBERED("a", "7") NUMBERED("b", "8"));
        /* What is new, and nothing else. */
        write_file(f, "later", PRESENT_OF("one", "8", "0") NUMBERED("c", "9") ENDED);
        check(f, "events demo --follow", CALLS_OF_TWO, HERE LINE("a") LINE("b") LINE("c") ENDED_LINE, 0);
        write_file(f, "later", PRESENT_OF("one", "11", "3") NUMBERED("d", "12") ENDED);
        check(f, "events demo --follow", CALLS_OF_TWO,
                HERE LINE("a") LINE("b") "                         3 events were missed\n" HERE LINE("d") ENDED_LINE, 0);
        write_file(f, "later", PRESENT_OF("two", "2", "0") NUMBERED("e", "3") ENDED);
        check(f, "events demo --follow", CALLS_OF_TWO,
                HERE LINE("a") LINE("b") "                         the machine was started again, and what happened meanwhile is not known\n" HERE LINE("e") ENDED_LINE, 0);
}

/* Its exit status goes around the reader. */
static void check_reader_that_goes(Fixture *f, const char *arguments, const char *reader) {
        _cleanup_free_ char *command = NULL, *status = NULL;

        assert_true(asprintf(&command, "%s >%s/fifo & %s <%s/fifo >/dev/null; wait $!; echo $? >%s/status", arguments, f->directory, reader,
                            f->directory, f->directory) >= 0);
        {
                _cleanup_free_ char *fifo = path_of(f, "fifo");
                (void) unlink(fifo);
                assert_int_equal(mkfifo(fifo, 0600), 0);
        }
        check(f, command, NULL, "", 0);
        status = read_file(f, "status");
        assert_string_equal(status, "0\n");
}

static void ends_quietly_when_nobody_reads_on(void **state) {
        Fixture *f = *state;

        /* Whether there is more to say */
        write_file(f, ANSWER, "endless");
        check_reader_that_goes(f, "events --follow demo", "head -n 1");
        /* or not: then it is the reader's going that ends it. */
        write_file(f, ANSWER, "silent");
        check_reader_that_goes(f, "events --follow demo", "head -n 1");
        /* or was too little to begin with. */
        check_reader_that_goes(f, "--json describe demo", ":");
}

/* Starts vmmctl by itself: ret_out is its standard output and error. */
static pid_t spawn(int *ret_out, const char *const *arguments) {
        int fds[2];
        pid_t pid;

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) dup2(fds[1], STDOUT_FILENO);
                (void) dup2(fds[1], STDERR_FILENO);
                (void) execv(getenv("VMMCTL"), (char *const *) arguments);
                _exit(127);
        }
        (void) close(fds[1]);
        *ret_out = fds[0];
        return pid;
}

static int reap(pid_t pid) {
        int status;

        assert_int_equal(waitpid(pid, &status, 0), pid);
        return status;
}

/* Waits until the machine was called so. */
static void await_call(const Fixture *f, const char *call) {
        uint64_t until = now_usec() + 60 * USEC_PER_SEC;

        for (;;) {
                _cleanup_free_ char *got = read_file(f, CALLS);

                if (got && strstr(got, call))
                        return;
                if (now_usec() >= until)
                        fail_msg("never called: %s; but: %s", call, got ?: "");
                (void) usleep(5000);
        }
}

static void says_that_a_machine_went_without_a_word(void **state) {
        static const char *const arguments[] = { "vmmctl", "events", "demo", "--follow", NULL };
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;
        int fd, status;
        pid_t pid;

        write_file(f, ANSWER, "silent");
        pid = spawn(&fd, arguments);
        await_call(f, "SubscribeEvents");
        (void) kill(f->machine, SIGKILL);
        assert_int_equal(read_whole_fd(fd, MIB(1), &out, NULL), 0);
        status = reap(pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
        assert_non_null(strstr(out, "vmmctl: demo: the machine ended, or dropped the connection\n"));
        (void) close(fd);
}

static void stops_waiting_for_a_balloon_when_interrupted(void **state) {
        static const char *const arguments[] = { "vmmctl", "balloon", "demo", "1M", "--wait", NULL };
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;
        int fd, status;
        pid_t pid;

        write_file(f, ANSWER, "hang");
        pid = spawn(&fd, arguments);
        await_call(f, "SetBalloonTarget {\"target\":1048576,\"wait\":true}\n");
        (void) kill(pid, SIGINT);
        assert_int_equal(read_whole_fd(fd, MIB(1), &out, NULL), 0);
        assert_string_equal(out, "\ndemo: not waiting any longer; the target stays.\n");
        /* Killed by it, so that a shell's loop ends; and the machine sees that nobody waits. */
        status = reap(pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
        await_call(f, "closed");
        (void) close(fd);
}

static void stops_waiting_for_a_balloon_in_time(void **state) {
        Fixture *f = *state;

        write_file(f, ANSWER, "hang");
        check(f, "balloon demo 1M --wait --timeout=200ms", NULL,
                "vmmctl: demo: the guest has not got there within 0 s; the target stays\n", 1);
}

/* ---- device tree ---- */

/* A node with a value of each kind. */
static void make_tree(const Fixture *f, uint8_t *tree, int size) {
        static const char texts[] = "first\0sec\"ond";
        _cleanup_free_ char *text = NULL, *reply = NULL, *path = path_of(f, "blob");
        FILE *blob;

        assert_int_equal(fdt_create(tree, size), 0);
        assert_int_equal(fdt_finish_reservemap(tree), 0);
        assert_int_equal(fdt_begin_node(tree, ""), 0);
        assert_int_equal(fdt_property(tree, "texts", texts, sizeof(texts)), 0);
        assert_int_equal(fdt_property_u64(tree, "cells", UINT64_C(0x100000002)), 0);
        assert_int_equal(fdt_begin_node(tree, "node@10"), 0);
        assert_int_equal(fdt_property(tree, "bytes", "\x01\xfe", 2), 0);
        assert_int_equal(fdt_property(tree, "flag", NULL, 0), 0);
        assert_int_equal(fdt_property(tree, "escape", "\x1b[2", 4), 0);
        assert_int_equal(fdt_end_node(tree), 0);
        assert_int_equal(fdt_end_node(tree), 0);
        assert_int_equal(fdt_finish(tree), 0);
        text = base64_encode(tree, fdt_totalsize(tree));
        assert_true(text && asprintf(&reply, "{\"deviceTree\":\"%s\"}\n", text) > 0);
        write_file(f, "tree", reply);
        blob = fopen(path, "we");
        assert_non_null(blob);
        assert_int_equal(fwrite(tree, 1, fdt_totalsize(tree), blob), fdt_totalsize(tree));
        assert_int_equal(fclose(blob), 0);
}

static void refuses_what_is_no_device_tree(void **state) {
        Fixture *f = *state;

        write_file(f, "tree", "{\"deviceTree\":\"0A0=\"}\n");
        check(f, "fdt demo", "GetDeviceTree {}\n", "vmmctl: The machine's answer is no device tree.\n", 1);
        write_file(f, "tree", "{\"deviceTree\":\"*\"}\n");
        check(f, "fdt demo --dtb", NULL, "vmmctl: The machine's answer is no device tree.\n", 1);
        write_file(f, ANSWER, "io.vmmd.Machine.NotSupported {}");
        check(f, "fdt demo", NULL, "vmmctl: demo: it cannot do that\n", 1);
}

static void shows_the_device_tree(void **state) {
        _cleanup_free_ char *out = NULL;
        Fixture *f = *state;
        uint8_t tree[1024];

        make_tree(f, tree, sizeof(tree));
        check(f, "fdt demo", "GetDeviceTree {}\n",
                "/dts-v1/;\n\n"
                "/ {\n"
                "\ttexts = \"first\", \"sec\\\"ond\";\n"
                "\tcells = <0x00000001 0x00000002>;\n\n"
                "\tnode@10 {\n"
                "\t\tbytes = [01 fe];\n"
                "\t\tflag;\n"
                "\t\tescape = <0x1b5b3200>;\n"
                "\t};\n"
                "};\n", 0);
        assert_int_equal(run(&out, "fdt demo --dtb | cmp - %s/blob", f->directory), 0);
}

/* ---- metrics ---- */

static void shows_metrics(void **state) {
        static const char metrics[] =
                "{\"name\":\"io.vmmd.Machine.VcpuExits\",\"value\":5}\n"
                "{\"name\":\"io.vmmd.Machine.DeviceCounter\",\"value\":1,\"object\":\"root\",\"fields\":{\"counter\":\"readBytes\"}}\n"
                "{\"name\":\"io.vmmd.Machine.State\",\"value\":\"run\\\"ning\\\\\"}\n"
                "{\"name\":\"io.vmmd.Machine.DeviceCounter\",\"value\":2.5,\"object\":\"rng\",\"fields\":{\"counter\":\"readBytes\"}}\n";
        static const char descriptions[] =
                "{\"name\":\"io.vmmd.Machine.VcpuExits\",\"description\":\"Exits that\\nvmmd handled\",\"type\":\"counter\"}\n"
                "{\"name\":\"io.vmmd.Machine.DeviceCounter\",\"description\":\"A counter\",\"type\":\"counter\"}\n"
                "{\"name\":\"io.vmmd.Machine.State\",\"description\":\"What it does\",\"type\":\"string\"}\n";
        Fixture *f = *state;

        write_file(f, "metrics", metrics);
        write_file(f, "descriptions", descriptions);
        check(f, "metrics demo", "List {}\n",
                "NAME                           OBJECT  FIELDS             VALUE\n"
                "io.vmmd.Machine.VcpuExits      -       -                  5\n"
                "io.vmmd.Machine.DeviceCounter  root    counter=readBytes  1\n"
                "io.vmmd.Machine.State          -       -                  run\"ning\\\n"
                "io.vmmd.Machine.DeviceCounter  rng     counter=readBytes  2.5\n", 0);
        check(f, "-q metrics", "List {}\n",
                "demo  io.vmmd.Machine.VcpuExits      -     -                  5\n"
                "demo  io.vmmd.Machine.DeviceCounter  root  counter=readBytes  1\n"
                "demo  io.vmmd.Machine.State          -     -                  run\"ning\\\n"
                "demo  io.vmmd.Machine.DeviceCounter  rng   counter=readBytes  2.5\n", 0);
        check(f, "metrics other", "", "vmmctl: other: the machine does not run\n", 3);
        check(f, "metrics --prometheus", "List {}\nDescribe {}\n",
                "# HELP vmmd_machine_vcpu_exits_total Exits that\\nvmmd handled\n"
                "# TYPE vmmd_machine_vcpu_exits_total counter\n"
                "vmmd_machine_vcpu_exits_total{machine=\"demo\"} 5\n"
                "# HELP vmmd_machine_device_counter_total A counter\n"
                "# TYPE vmmd_machine_device_counter_total counter\n"
                "vmmd_machine_device_counter_total{machine=\"demo\",object=\"root\",counter=\"readBytes\"} 1\n"
                "vmmd_machine_device_counter_total{machine=\"demo\",object=\"rng\",counter=\"readBytes\"} 2.5\n"
                "# HELP vmmd_machine_state_info What it does\n"
                "# TYPE vmmd_machine_state_info gauge\n"
                "vmmd_machine_state_info{machine=\"demo\",value=\"run\\\"ning\\\\\"} 1\n", 0);
        write_file(f, "metrics", "{\"name\":\"a.B\",\"value\":1}\n");
        check(f, "--json=short metrics demo demo", "List {}\nList {}\n",
                "[{\"name\":\"a.B\",\"value\":1,\"machine\":\"demo\"},{\"name\":\"a.B\",\"value\":1,\"machine\":\"demo\"}]\n", 0);
}

/* ---- other hosts, and asking the user ---- */

/* Puts a program of that name in front of all others. */
static void install_program(const Fixture *f, const char *name, const char *text) {
        _cleanup_free_ char *bin = path_of(f, "bin"), *file = NULL, *path = NULL, *search = NULL;

        (void) mkdir(bin, 0700);
        assert_true(asprintf(&file, "bin/%s", name) >= 0);
        write_file(f, file, text);
        path = path_of(f, file);
        assert_int_equal(chmod(path, 0700), 0);
        assert_true(asprintf(&search, "%s:/usr/bin:/bin", bin) >= 0);
        assert_int_equal(setenv("PATH", search, 1), 0);
}

/* As ssh does it: everything behind the host is one line for a shell. */
#define FAKE_SSH \
        "#!/bin/sh\n" \
        "while [ \"$1\" != -- ]; do echo \"ssh option $1\"; shift; done\n" \
        "echo \"host $2\"; shift 2\n" \
        "vmmctl() { \"$VMMCTL\" \"$@\"; }\n" \
        "eval \"$*\"\n"

static void runs_on_another_host_with_every_word_as_it_was(void **state) {
        Fixture *f = *state;

        install_program(f, "ssh", FAKE_SSH);
        check(f, "-H me@there reset demo </dev/null", "Reset {}\n", "host me@there\n", 0);
        check(f, "--host=ssh://me@there:2222 --json=short reset other </dev/null", "",
                "host ssh://me@there:2222\nvmmctl: other: the machine does not run\n"
                "[{\"name\":\"other\",\"ok\":false,\"problem\":\"the machine does not run\"}]\n", 3);
        check(f, "-H there console demo \"it's \\$(echo x) * ; \\\"&|\\\\\" </dev/null",
                "OpenConsole {\"device\":\"it's $(echo x) * ; \\\"&|\\\\\"}\n",
                "host there\nvmmctl: demo: there is no device 'it's $(echo x) * ; \"&|\\'\n", 1);
        check(f, "-H there balloon demo --wait -- -64M </dev/null", "DescribeBalloon {}\nSetBalloonTarget {\"target\":201326592,\"wait\":true}\n",
                "host there\ndemo: balloon: 512 MiB of 512 MiB\n", 0);
        check(f, "-H there pause --full -q demo </dev/null", "Pause {\"devices\":true}\n", "host there\n", 0);
        install_program(f, "ssh", "#!/bin/sh\nexit 255\n");
        check(f, "-H there list", "", "", 255);
        assert_int_equal(setenv("PATH", "/nonexistent", 1), 0);
        check(f, "-H there list", "", "vmmctl: Cannot run ssh: No such file or directory\n", 1);
        assert_int_equal(setenv("PATH", "/usr/bin:/bin", 1), 0);
}

#define SSHD "/usr/sbin/sshd"

/* OpenSSH's own client and server, with keys of this test only, and a pipe instead of the network. Returns false where there is none, or where
 * it lets nobody in. */
static bool install_real_ssh(const Fixture *f) {
        _cleanup_free_ char *set_up_keys = NULL, *client = NULL, *server = NULL, *wrapper = NULL;

        if (access(SSHD, X_OK) < 0 || access("/usr/bin/ssh", X_OK) < 0)
                return false;
        if (geteuid() == 0)
                (void) mkdir("/run/sshd", 0755);
        install_program(f, "vmmctl", "#!/bin/sh\nexec \"$VMMCTL\" \"$@\"\n");
        assert_true(asprintf(&client, "Host *\n  ProxyCommand " SSHD " -i -f %s/sshd.conf\n  IdentityFile %s/key\n  IdentitiesOnly yes\n"
                                      "  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n  LogLevel ERROR\n  BatchMode yes\n",
                            f->directory, f->directory) >= 0);
        write_file(f, "ssh.conf", client);
        assert_true(asprintf(&server, "HostKey %s/key\nAuthorizedKeysFile %s/key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
                                      "PidFile none\nSetEnv VMMCTL=%s VMM_RUNTIME_DIRECTORY=%s PATH=%s\n",
                            f->directory, f->directory, getenv("VMMCTL"), f->directory, getenv("PATH")) >= 0);
        write_file(f, "sshd.conf", server);
        assert_true(asprintf(&wrapper, "#!/bin/sh\nexec /usr/bin/ssh -F %s/ssh.conf \"$@\"\n", f->directory) >= 0);
        install_program(f, "ssh", wrapper);
        assert_true(asprintf(&set_up_keys, "ssh-keygen -q -t ed25519 -N '' -f %s/key && ssh -- localhost true </dev/null", f->directory) >= 0);
        return system(set_up_keys) == 0; /* NOLINT(cert-env33-c): it is our own text */
}

static char *run_at_terminal(const char *const *arguments, const char *typed, int status);

static void runs_over_real_ssh(void **state) {
        static const char *const console[] = { "vmmctl", "-H", "localhost", "console", "demo", NULL },
                          *const events[] = { "vmmctl", "-H", "localhost", "events", "demo", "--follow", NULL };
        _cleanup_free_ char *seen = NULL;
        Fixture *f = *state;
        pid_t pid;
        int fd;

        if (!install_real_ssh(f))
                skip_for_want_of("an sshd that lets us in");
        check(f, "-H localhost reset demo </dev/null", "Reset {}\n", "", 0);
        check(f, "-H localhost reset other </dev/null", "", "vmmctl: other: the machine does not run\n", 3);
        check(f, "-H localhost --json=short resize demo root </dev/null", "ResizeDisk {\"device\":\"root\"}\n", "{\"size\":1073741824}\n", 0);
        check(f, "-H localhost console demo \"it's \\$(echo x) * ; \\\"&|\\\\\" </dev/null",
                "OpenConsole {\"device\":\"it's $(echo x) * ; \\\"&|\\\\\"}\n",
                "vmmctl: demo: there is no device 'it's $(echo x) * ; \"&|\\'\n", 1);
        check(f, "-H localhost --bogus </dev/null", "", NULL, 2);
        check(f, "-H localhost balloon demo x </dev/null", "", NULL, 2);
        /* What is interrupted over here ends over there, too, though it has nothing more to say. */
        write_file(f, ANSWER, "silent");
        pid = spawn(&fd, events);
        await_call(f, "SubscribeEvents");
        (void) kill(pid, SIGINT);
        (void) reap(pid);
        await_call(f, "closed");
        (void) close(fd);
        /* A console at a terminal is one at both ends. */
        write_file(f, ANSWER, "-");
        seen = run_at_terminal(console, "\x1d\x1d\x1d", 0);
        assert_non_null(strstr(seen, "Press ^] three times"));
        assert_non_null(strstr(seen, "login: "));
        assert_non_null(strstr(seen, "Disconnected from demo."));
        assert_int_equal(setenv("PATH", "/usr/bin:/bin", 1), 0);
}

/* Runs it at a terminal, where something is typed as soon as "login: " is seen. Returns what was seen; the caller frees it. */
static char *run_at_terminal(const char *const *arguments, const char *typed, int status) {
        char *seen = calloc(1, 65536);
        size_t used = 0;
        int master, slave, r;
        pid_t pid;

        assert_non_null(seen);
        assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) close(master);
                (void) login_tty(slave);
                (void) execv(getenv("VMMCTL"), (char *const *) arguments);
                _exit(127);
        }
        (void) close(slave);
        for (;;) {
                ssize_t got = read(master, seen + used, 65535 - used);

                if (got <= 0)
                        break;
                used += (size_t) got;
                if (typed && strstr(seen, "login: ")) {
                        assert_int_equal(write_full(master, typed, strlen(typed)), 0);
                        typed = NULL;
                }
        }
        (void) close(master);
        r = reap(pid);
        if (!WIFEXITED(r) || WEXITSTATUS(r) != status)
                fail_msg("%s ended with %i: %s", arguments[1], r, seen);
        return seen;
}

static void asks_the_user_where_that_helps(void **state) {
        static const char *const reset[] = { "vmmctl", "reset", "demo", NULL }, *const refuse[] = { "vmmctl", "--no-ask-password", "reset", "demo", NULL },
                          *const events[] = { "vmmctl", "events", "demo", NULL };
        Fixture *f = *state;
        _cleanup_free_ char *agent = NULL, *seen = NULL, *called = NULL, *said = NULL;
        uint64_t pid = 0, notify = 0;
        char *rest;

        assert_true(asprintf(&agent, "#!/bin/sh\necho $$ $2 >%s/agent\neval \"exec $2>&-\"\nexec sleep 1000\n", f->directory) >= 0);
        install_program(f, "pkttyagent", agent);
        write_file(f, ANSWER, "once");
        /* Not where nobody can be asked, or nobody wants to */
        check(f, "reset demo </dev/null", "Reset {}\n", NULL, 1);
        seen = run_at_terminal(refuse, NULL, 1);
        assert_non_null(strstr(seen, "permission denied: you would have to be asked"));
        freep(&seen);
        called = calls(f);
        assert_string_equal(called, "Reset {}\n");
        said = read_file(f, "agent");
        assert_null(said);

        seen = run_at_terminal(reset, NULL, 0);
        assert_string_equal(seen, "");
        freep(&called);
        called = calls(f);
        assert_string_equal(called, "Reset {}\nReset {\"allowInteractiveAuthentication\":true}\n");
        said = read_file(f, "agent");
        assert_non_null(said);
        said[strcspn(said, "\n")] = 0;
        rest = said;
        assert_int_equal(parse_unsigned(strsep(&rest, " "), &pid), 0);
        assert_int_equal(parse_unsigned(rest, &notify), 0);
        assert_true(pid > 1 && notify > 2);
        /* It went with the call. */
        assert_int_equal(kill((pid_t) pid, 0), -1);

        write_file(f, "events", EVENT("guestReady", ""));
        freep(&seen);
        seen = run_at_terminal(events, NULL, 0);
        assert_non_null(strstr(seen, "present"));
        freep(&called);
        called = calls(f);
        assert_string_equal(called, "SubscribeEvents {}\nSubscribeEvents {\"allowInteractiveAuthentication\":true}\n");
        assert_int_equal(setenv("PATH", "/usr/bin:/bin", 1), 0);
}

/* The answer to the first call was that he has to be asked: what came along goes along again. */
static void hands_files_over_again_when_the_user_was_asked(void **state) {
        static const char *const attach[] = { "vmmctl", "-q", "attach", "demo", "data", "block", "path=disk", "--timeout=0", NULL };
        Fixture *f = *state;
        _cleanup_free_ char *seen = NULL, *called = NULL, *expected = NULL;
        char cwd[256];

        write_file(f, "disk", "x");
        write_file(f, ANSWER, "once");
        assert_non_null(getcwd(cwd, sizeof(cwd)));
        assert_int_equal(chdir(f->directory), 0);
        install_program(f, "pkttyagent", "#!/bin/sh\neval \"exec $2>&-\"\nexec sleep 1000\n");
        seen = run_at_terminal(attach, NULL, 0);
        assert_int_equal(chdir(cwd), 0);
        assert_string_equal(seen, "");
        called = calls(f);
        assert_true(asprintf(&expected, "path rw %s/disk \n", f->directory) >= 0);
        if (!strstr(called, "\"allowInteractiveAuthentication\":true}\n") || !strstr(called, expected))
                fail_msg("%s", called);
        assert_int_equal(setenv("PATH", "/usr/bin:/bin", 1), 0);
}

/* ---- the manual and the completions ---- */

static char *read_source(const char *name) {
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -EBADF;
        char *text = NULL;

        assert_true(asprintf(&path, "%s/%s", getenv("SOURCE_ROOT"), name) >= 0);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(read_whole_fd(fd, MIB(1), &text, NULL), 0);
        return text;
}

static void require(const char *where, const char *text, const char *format, const char *word) _printf_(3, 0);
static void require(const char *where, const char *text, const char *format, const char *word) {
        _cleanup_free_ char *needle = NULL;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        assert_true(asprintf(&needle, format, word) >= 0);
#pragma GCC diagnostic pop
        if (!strstr(text, needle))
                fail_msg("%s lacks '%s'", where, needle);
}

static void knows_each_command_in_manual_and_completions(void **state) {
        _cleanup_free_ char *out = NULL, *manual = read_source("man/vmmctl.1.scd"), *bash = read_source("vmmctl/completion/vmmctl.bash"),
                            *zsh = read_source("vmmctl/completion/_vmmctl");
        _cleanup_json_ json_object *table = NULL;

        assert_int_equal(run(&out, "--json=short help"), 0);
        table = json_tokener_parse(out);
        assert_true(json_object_array_length(table) > 20);
        for (size_t i = 0; i < json_object_array_length(table); i++) {
                json_object *command = json_object_array_get_idx(table, i), *options = json_get(command, "options", json_type_array);

                for (size_t n = 0; n < 2; n++) {
                        const char *name = json_get_string(command, n == 0 ? "name" : "alias", NULL);
                        _cleanup_free_ char *summary = NULL;

                        if (!name)
                                continue;
                        require("vmmctl(1)", manual, "*%s*", name);
                        require("the completion of zsh", zsh, "\n                '%s:", name);
                        assert_int_equal(run(&summary, "help"), 0);
                        require("the help", summary, n == 0 ? "\n  %s " : "(also: %s)", name);
                }
                for (size_t j = 0; j < json_object_array_length(options); j++) {
                        const char *option = json_object_get_string(json_object_array_get_idx(options, j));

                        require("vmmctl(1)", manual, "*--%s", option);
                        require("the completion of zsh", zsh, "--%s", option);
                        require("the completion of bash", bash, "--%s", option);
                }
        }
}

/* What bash offers for the last of the words. */
static char *complete(const char *words) {
        _cleanup_free_ char *command = NULL;
        char *out = NULL;
        FILE *p;

        /* compopt complains that this is no completion, and has nothing to say here. */
        assert_true(asprintf(&command,
                            "bash -c 'vmmctl() { DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent \"$VMMCTL\" \"$@\"; }; compopt() { :; }; "
                            ". \"$SOURCE_ROOT/vmmctl/completion/vmmctl.bash\"; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
                            "_vmmctl; echo \"${COMPREPLY[*]}\"' 2>&1", words) >= 0);
        p = popen(command, "re");
        assert_non_null(p);
        assert_int_equal(read_whole_fd(fileno(p), MIB(1), &out, NULL), 0);
        (void) pclose(p);
        return out;
}

static void check_completion(const char *words, const char *expected) {
        _cleanup_free_ char *got = complete(words);

        if (!streq(got, expected))
                fail_msg("completion of '%s' is '%s', not '%s'", words, got, expected);
}

static void completes_what_is_typed(void **state) {
        _cleanup_free_ char *commands = complete("vmmctl \"\""), *table_text = NULL;
        _cleanup_json_ json_object *table = NULL;

        /* Every command of the table is offered */
        assert_int_equal(run(&table_text, "--json=short help"), 0);
        table = json_tokener_parse(table_text);
        for (size_t i = 0; i < json_object_array_length(table); i++)
                for (size_t n = 0; n < 2; n++) {
                        const char *name = json_get_string(json_object_array_get_idx(table, i), n == 0 ? "name" : "alias", NULL);
                        _cleanup_free_ char *word = NULL, *line = NULL;

                        if (!name)
                                continue;
                        assert_true(asprintf(&word, " %s ", name) >= 0 && asprintf(&line, " %s", commands) >= 0);
                        line[strlen(line) - 1] = ' ';
                        if (!strstr(line, word))
                                fail_msg("the completion of bash lacks %s: %s", name, line);
                }
        check_completion("vmmctl powerb", "powerbtn\n");
        check_completion("vmmctl -H host balloon-s", "balloon-stats\n");
        check_completion("vmmctl events demo --fol", "--follow\n");
        check_completion("vmmctl events demo --filter = pan", "panic\n");
        check_completion("vmmctl events demo --filter = panic,guestR", "panic,guestReady\n");
        check_completion("vmmctl log-level demo root w", "warning\n");
        check_completion("vmmctl log-level demo my", "my-disk\n");
        check_completion("vmmctl console demo s", "serial\n");
        check_completion("vmmctl resize demo \"\"", "my-disk\n");
        check_completion("vmmctl attach demo new c", "console\n");
        check_completion("vmmctl detach demo my", "my-disk\n");
        check_completion("vmmctl disk resize demo m", "my-disk\n");
        check_completion("vmmctl disk r", "resize\n");
        check_completion("vmmctl balloon demo m", "max\n");
        check_completion("vmmctl --json = p", "pretty\n");
        check_completion("vmmctl --timeout = 5 st", "start stop status\n");
}

static void sends_keys_one_after_the_other(void **state) {
        Fixture *f = *state;

        check(f, "send-key demo ctrl+alt+del a", "SendKeys {\"keys\":[\"ctrl\",\"alt\",\"del\"],\"hold\":50000}\n"
                "SendKeys {\"keys\":[\"a\"],\"hold\":50000}\n", "", 0);
        check(f, "send-key --device=kbd --hold=2s demo power", "SendKeys {\"keys\":[\"power\"],\"device\":\"kbd\",\"hold\":2000000}\n", "", 0);
        write_file(f, ANSWER, "io.vmmd.Machine.UnknownKey {\"key\":\"a\"}");
        check(f, "send-key demo a b", "SendKeys {\"keys\":[\"a\"],\"hold\":50000}\n", "vmmctl: demo: the device has no key 'a'\n", 1);
}

static void copies_a_console_until_input_ends(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *out = NULL;

        write_file(f, "input", "hello\n\x1d\x1d\x1d bye\n");
        assert_int_equal(run(&out, "console demo <%s/input", f->directory), 0);
        assert_string_equal(out, "login: HELLO\n\x1d\x1d\x1d BYE\n");
        free(calls(f));
        check(f, "console demo other </dev/null", "OpenConsole {\"device\":\"other\"}\n", "vmmctl: demo: there is no device 'other'\n", 1);
        check(f, "console --port=agent demo console </dev/null", "OpenConsole {\"device\":\"console\",\"port\":\"agent\"}\n",
                "login: ", 0);
        write_file(f, ANSWER, "no-fds");
        check(f, "console --port=agent demo </dev/null", "OpenConsole {\"port\":\"agent\"}\nAttachConsole {\"port\":\"agent\"}\n",
                "(upgraded) login: ", 0);
}

/* A socket that something forwards loses the descriptor. */
static void makes_a_console_of_the_connection_where_there_are_no_descriptors(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *command = NULL;

        write_file(f, ANSWER, "no-fds");
        write_file(f, "input", "hello\n");
        assert_true(asprintf(&command, "console demo <%s/input", f->directory) >= 0);
        check(f, command, "OpenConsole {}\nAttachConsole {}\n", "(upgraded) login: HELLO\n", 0);
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
        uint64_t until = now_usec() + 60 * USEC_PER_SEC;
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
        char seen[4096] = "";
        _cleanup_free_ char *told = NULL;
        int master, slave, status;
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
        told = read_file(f, "size");
        assert_string_equal(told, "100 33");
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
                test(says_each_error_in_words),
                test(says_that_a_machine_went_without_a_word),
                test(sends_each_command_as_the_call_that_it_is),
                test(resizes_disks),
                test(attaches_devices_with_what_they_are_made_of),
                test(attaches_nothing_that_the_user_cannot_open),
                test(hands_files_over_again_when_the_user_was_asked),
                test(detaches_devices),
                test(shows_balloons),
                test(sets_a_balloon_in_each_unit),
                test(shows_what_the_guest_says_of_its_memory),
                test(describes_a_running_machine),
                test(shows_the_present_state_and_ends),
                test(follows_events_to_the_machine_s_end),
                test(goes_on_where_the_machine_s_process_was_replaced),
                test(ends_quietly_when_nobody_reads_on),
                test(stops_waiting_for_a_balloon_when_interrupted),
                test(stops_waiting_for_a_balloon_in_time),
                test(refuses_what_is_no_device_tree),
                test(shows_the_device_tree),
                test(shows_metrics),
                test(runs_on_another_host_with_every_word_as_it_was),
                test(runs_over_real_ssh),
                test(asks_the_user_where_that_helps),
                test(knows_each_command_in_manual_and_completions),
                test(completes_what_is_typed),
                test(sends_keys_one_after_the_other),
                test(copies_a_console_until_input_ends),
                test(makes_a_console_of_the_connection_where_there_are_no_descriptors),
                test(ends_a_console_when_the_machine_does),
                test(is_a_raw_terminal_with_an_escape),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
