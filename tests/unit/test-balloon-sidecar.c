/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-balloon-policy as a process, between a machine that is none, a socket for pressure, and a service manager that only listens.
 * $BALLOON_POLICY is the program. */

#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "interfaces.h"
#include "json-util.h"
#include "server.h"
#include "skip.h"
#include "stream.h"

#define PATIENCE_USEC (60 * USEC_PER_SEC)
#define MEMORY MIB(1000)

typedef struct Fixture {
        char directory[64];
        char control[96], pressure[96], notify[96], errors[96];
        int pressure_listener, pressure_fd, notify_fd, stored_fd;
        sd_event *event;

        /* the machine */
        VarlinkServer *server;
        VarlinkStream *stream;
        bool denies, without_balloon, without_driver, fails;
        int pid; /* what it calls its own */
        uint64_t target, actual, oom_deflations;
        unsigned n_sets;
        int64_t statistics_interval;

        pid_t sidecar;
        char told[8192]; /* to the service manager */
        char trigger[64];
        size_t trigger_size;
} Fixture;

/* ---- the machine ---- */

static json_object *balloon_state(const Fixture *f) {
        char text[300];

        (void) snprintf(text, sizeof(text), "{\"device\":\"balloon\",\"target\":%" PRIu64 ",\"actual\":%" PRIu64 ",\"driver\":%s,"
                "\"features\":[\"statistics\",\"deflateOnOom\"],\"oomDeflations\":%" PRIu64 ",\"reported\":0}",
                f->target, f->actual, f->without_driver ? "false" : "true", f->oom_deflations);
        return json_tokener_parse(text);
}

static json_object *balloons(const Fixture *f) {
        json_object *list = json_object_new_array();

        /* Another one comes first in the list, and is somebody else's where one is named. */
        if (!f->without_balloon)
                assert_int_equal(json_append(list, balloon_state(f)), 0);
        return list;
}

static int describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        _cleanup_json_ json_object *reply = json_tokener_parse(
                "{\"name\":\"demo\",\"state\":\"running\",\"since\":1700000000000000,\"guestReady\":true,\"vcpus\":1,\"memory\":1048576000,"
                "\"pid\":1,\"version\":\"0\",\"resets\":0,\"exits\":0,\"firstEntry\":1,\"commandLine\":\"\",\"lastProblem\":null,\"devices\":[]}");

        if (f->denies)
                return varlink_call_error_denied(call, "'nobody' is not in group 'vmm-balloon'");
        (void) json_add_integer(reply, "pid", f->pid);
        (void) json_add(reply, "balloons", balloons(f));
        return varlink_call_reply(call, reply);
}

static json_object *new_event(const char *type) {
        json_object *event = json_object_new_object();

        (void) json_add_string(event, "type", type);
        (void) json_add_integer(event, "time", 1700000000000000);
        return event;
}

static int subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        _cleanup_json_ json_object *first = new_event("present"), *present = NULL;

        f->statistics_interval = json_get_integer(parameters, "statisticsInterval", 0);
        present = json_tokener_parse("{\"state\":\"running\",\"since\":1,\"guestReady\":true,\"devices\":[]}");
        (void) json_add(present, "balloons", balloons(f));
        (void) json_add(first, "present", TAKE_PTR(present));
        return varlink_stream_add(f->stream, call, first, UINT64_MAX, NULL, NULL, NULL);
}

static void publish_balloon(Fixture *f, const char *type) {
        _cleanup_json_ json_object *event = new_event(type);

        (void) json_add(event, "balloon", balloon_state(f));
        assert_int_equal(varlink_stream_publish(f->stream, 0, NULL, event), 0);
}

static void publish_available(Fixture *f, uint64_t available) {
        _cleanup_json_ json_object *event = new_event("statistics"), *statistics = json_tokener_parse("{\"age\":1000}");

        (void) json_add_integer(statistics, "availableMemory", (int64_t) available);
        (void) json_add_integer(statistics, "totalMemory", MEMORY);
        (void) json_add_string(event, "device", "balloon");
        (void) json_add(event, "statistics", TAKE_PTR(statistics));
        assert_int_equal(varlink_stream_publish(f->stream, 1, NULL, event), 0);
}

static void publish_state(Fixture *f, const char *state) {
        _cleanup_json_ json_object *event = new_event("machineState");

        (void) json_add_string(event, "state", state);
        assert_int_equal(varlink_stream_publish(f->stream, 2, NULL, event), 0);
}

static int set_target(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object();

        f->n_sets++;
        if (f->fails) {
                _cleanup_json_ json_object *p = json_tokener_parse("{\"device\":\"balloon\",\"reason\":\"it is away\"}");
                return varlink_call_error(call, "io.vmmd.Machine.DeviceFailed", p);
        }
        if (!streq(json_get_string(parameters, "device", ""), "balloon"))
                return varlink_call_error_invalid_parameter(call, "device");
        f->target = (uint64_t) json_get_integer(parameters, "target", -1);
        publish_balloon(f, "balloonTarget");
        (void) json_add(reply, "balloon", balloon_state(f));
        return varlink_call_reply(call, reply);
}

static int listen_on(const char *path, int type) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        assert_return_code(fd, errno);
        strcpy(address.sun_path, path);
        (void) unlink(path);
        assert_return_code(bind(fd, (struct sockaddr *) &address, sizeof(address)), errno);
        if (type == SOCK_STREAM)
                assert_return_code(listen(fd, 8), errno);
        return fd;
}

static void begin_machine(Fixture *f) {
        static const VarlinkMethod methods[] = {
                { "Describe", describe, 0 },
                { "SubscribeEvents", subscribe, VARLINK_METHOD_REQUIRES_MORE },
                { "SetBalloonTarget", set_target, 0 },
                {},
        };

        assert_int_equal(varlink_server_new(&f->server, f->event), 0);
        assert_int_equal(varlink_stream_new(&f->stream, 0), 0);
        assert_int_equal(varlink_server_add_interface(f->server, varlink_text_io_vmmd_Machine, methods, f), 0);
        assert_int_equal(varlink_server_listen_fd(f->server, listen_on(f->control, SOCK_STREAM)), 0);
}

/* As when vmmd is killed: no last words. */
static void kill_machine(Fixture *f) {
        f->server = varlink_server_free(f->server);
        f->stream = varlink_stream_free(f->stream);
        (void) unlink(f->control);
}

/* ---- pressure and the service manager ---- */

static void take_pressure(Fixture *f) {
        ssize_t n;

        if (f->pressure_fd < 0) {
                f->pressure_fd = accept4(f->pressure_listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (f->pressure_fd < 0)
                        return;
        }
        n = recv(f->pressure_fd, f->trigger + f->trigger_size, sizeof(f->trigger) - f->trigger_size, 0);
        if (n > 0)
                f->trigger_size += (size_t) n;
}

static void press(Fixture *f) {
        assert_int_equal(send(f->pressure_fd, "!", 1, MSG_NOSIGNAL), 1);
}

static void take_notifications(Fixture *f) {
        for (;;) {
                union {
                        struct cmsghdr header;
                        uint8_t space[CMSG_SPACE(sizeof(int))];
                } control = {};
                size_t used = strlen(f->told);
                struct iovec iov = { .iov_base = f->told + used, .iov_len = sizeof(f->told) - used - 2 };
                struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.space) };
                ssize_t n = recvmsg(f->notify_fd, &message, MSG_CMSG_CLOEXEC);

                if (n <= 0)
                        return;
                f->told[used + (size_t) n] = '\n';
                f->told[used + (size_t) n + 1] = 0;
                struct cmsghdr *c = CMSG_FIRSTHDR(&message);
                if (c && c->cmsg_type == SCM_RIGHTS) {
                        (void) safe_close(f->stored_fd);
                        memcpy(&f->stored_fd, CMSG_DATA(c), sizeof(int));
                }
        }
}

/* ---- the sidecar ---- */

static void start(Fixture *f, const char *const *more) {
        const char *arguments[24] = { getenv("BALLOON_POLICY"), "--settle=100ms", "--calm=1s", "--oom-backoff=1s", "--statistics-interval=100ms" };
        char socket_option[128], pressure_option[128];
        size_t n = 5;
        int stored = f->stored_fd;

        (void) snprintf(socket_option, sizeof(socket_option), "--socket=%s", f->control);
        (void) snprintf(pressure_option, sizeof(pressure_option), "--pressure=%s", f->pressure);
        arguments[n++] = socket_option;
        if (!more || !streq(more[0], "--no-pressure-option"))
                arguments[n++] = pressure_option;
        else
                more++;
        for (size_t i = 0; more && more[i]; i++)
                arguments[n++] = more[i];
        arguments[n] = "demo";

        f->told[0] = 0;
        f->sidecar = fork();
        assert_return_code(f->sidecar, errno);
        if (f->sidecar > 0)
                return;
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void) setenv("NOTIFY_SOCKET", f->notify, 1);
        (void) dup2(open(f->errors, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), STDERR_FILENO);
        if (stored >= 0) {
                char pid[16];
                (void) snprintf(pid, sizeof(pid), "%i", getpid());
                (void) dup2(stored, 3);
                (void) setenv("LISTEN_PID", pid, 1);
                (void) setenv("LISTEN_FDS", "1", 1);
                (void) setenv("LISTEN_FDNAMES", "found", 1);
        }
        (void) execv(arguments[0], (char **) arguments);
        _exit(127);
}

static bool has_ended(Fixture *f, int *ret_status) {
        int status;

        if (waitpid(f->sidecar, &status, WNOHANG) != f->sidecar)
                return false;
        f->sidecar = 0;
        *ret_status = status;
        return true;
}

/* Serves everybody until the condition holds. */
#define until(f, condition)                                                                                    \
        do {                                                                                                   \
                uint64_t _end = now_usec() + PATIENCE_USEC;                                                    \
                while (!(condition)) {                                                                         \
                        if (now_usec() > _end)                                                                 \
                                fail_msg("%s; told: %s", #condition, (f)->told);                               \
                        turn(f);                                                                               \
                }                                                                                              \
        } while (0)

static void turn(Fixture *f) {
        assert_return_code(sd_event_run(f->event, 10 * USEC_PER_MSEC), 0);
        take_pressure(f);
        take_notifications(f);
}

/* Serves everybody for a while, for what must not happen. */
static void serve(Fixture *f, uint64_t usec) {
        uint64_t end = now_usec() + usec;

        while (now_usec() < end)
                turn(f);
}

static void follow(Fixture *f) {
        f->actual = f->target;
        publish_balloon(f, "balloonActual");
}

static int exit_status(Fixture *f) {
        int status = -1;

        until(f, has_ended(f, &status));
        if (!WIFEXITED(status))
                fail_msg("ended with status 0x%x; told: %s", (unsigned) status, f->told);
        return WEXITSTATUS(status);
}

/* What it wrote on standard error, when it has ended. */
static void assert_said(Fixture *f, const char *text) {
        _cleanup_close_ int fd = open(f->errors, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *said = NULL;
        size_t size;

        assert_return_code(fd, errno);
        assert_int_equal(read_whole_fd(fd, KIB(64), &said, &size), 0);
        if (!strstr(said, text))
                fail_msg("it did not say '%s' but: %s", text, said);
}

static int stop(Fixture *f) {
        assert_return_code(kill(f->sidecar, SIGTERM), errno);
        return exit_status(f);
}

static void start_and_wait(Fixture *f, const char *const *more) {
        start(f, more);
        until(f, strstr(f->told, "READY=1"));
}

/* Pressure, until something is taken. */
static void take_something(Fixture *f) {
        uint64_t before = f->target, end = now_usec() + PATIENCE_USEC;

        while (f->target <= before) {
                if (now_usec() > end)
                        fail_msg("nothing was taken; told: %s", f->told);
                publish_available(f, MEMORY - f->actual - MIB(100));
                press(f);
                serve(f, 50 * USEC_PER_MSEC);
        }
        follow(f);
}

static int set_up(void **state) {
        static Fixture f;

        f = (Fixture) { .pressure_fd = -EBADF, .stored_fd = -EBADF, .pid = 77 };
        strcpy(f.directory, "/tmp/test-balloon-sidecar.XXXXXX");
        assert_non_null(mkdtemp(f.directory));
        (void) snprintf(f.control, sizeof(f.control), "%s/control", f.directory);
        (void) snprintf(f.pressure, sizeof(f.pressure), "%s/pressure", f.directory);
        (void) snprintf(f.notify, sizeof(f.notify), "%s/notify", f.directory);
        (void) snprintf(f.errors, sizeof(f.errors), "%s/errors", f.directory);
        assert_return_code(sd_event_new(&f.event), 0);
        f.pressure_listener = listen_on(f.pressure, SOCK_STREAM);
        f.notify_fd = listen_on(f.notify, SOCK_DGRAM);
        begin_machine(&f);
        *state = &f;
        return 0;
}

static int tear_down(void **state) {
        Fixture *f = *state;

        if (f->sidecar > 0) {
                (void) kill(f->sidecar, SIGKILL);
                (void) waitpid(f->sidecar, NULL, 0);
        }
        kill_machine(f);
        (void) safe_close(f->pressure_fd);
        (void) safe_close(f->pressure_listener);
        (void) safe_close(f->notify_fd);
        (void) safe_close(f->stored_fd);
        (void) sd_event_unref(f->event);
        (void) unlink(f->pressure);
        (void) unlink(f->notify);
        (void) unlink(f->errors);
        (void) rmdir(f->directory);
        return 0;
}

/* ---- tests ---- */

static void refuses_wrong_usage(void **state) {
        static const char *const wrong[][2] = {
                { "--bogus", "'--bogus': there is no such option" },
                { "--calm=x", "--calm=x: expected a time from 1s" },
                { "other", "'demo': expected one machine only" },
                { "--hysteresis=90%", "leaves nothing that could be taken" },
        };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                const char *const more[] = { wrong[i][0], NULL };
                start(f, more);
                assert_int_equal(exit_status(f), 78);
                assert_said(f, wrong[i][1]);
        }
        assert_int_equal(setenv("VMM_BALLOON_CALM", "soon", 1), 0);
        start(f, NULL);
        assert_int_equal(unsetenv("VMM_BALLOON_CALM"), 0);
        assert_int_equal(exit_status(f), 78);
        assert_said(f, "$VMM_BALLOON_CALM=soon: expected a time");
}

static void ends_where_it_is_refused(void **state) {
        Fixture *f = *state;

        f->denies = true;
        start(f, NULL);
        assert_int_equal(exit_status(f), 78);
        assert_said(f, "'nobody' is not in group 'vmm-balloon'");
        assert_null(strstr(f->told, "READY=1"));
}

static void ends_where_there_is_no_balloon(void **state) {
        static const char *const other[] = { "--device=other", NULL };
        Fixture *f = *state;

        start(f, other);
        assert_int_equal(exit_status(f), 78);
        assert_said(f, "The machine has no balloon other: expected a device of type balloon");
        f->without_balloon = true;
        start(f, NULL);
        assert_int_equal(exit_status(f), 78);
        assert_said(f, "The machine has no balloon: expected a device of type balloon");
}

static void ends_without_a_pressure_file(void **state) {
        Fixture *f = *state;
        const char *const nowhere[] = { "--no-pressure-option", "--pressure=/nonexistent", NULL };
        const char *const nothing[] = { "--no-pressure-option", "--pressure=/dev/zero", NULL };

        start(f, nowhere);
        assert_int_equal(exit_status(f), 1);
        assert_said(f, "/nonexistent: No such file or directory; expected a file with pressure stall information");
        start(f, nothing);
        assert_int_not_equal(exit_status(f), 0);
        assert_said(f, "/dev/zero: No such device; expected a file with pressure stall information");
}

static void is_ready_once_subscribed(void **state) {
        Fixture *f = *state;
        const char *status;

        assert_int_equal(unlink(f->control), 0);
        start(f, NULL);
        serve(f, 300 * USEC_PER_MSEC);
        assert_null(strstr(f->told, "READY=1"));
        kill_machine(f);
        begin_machine(f);
        until(f, strstr(f->told, "READY=1"));
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 1);
        assert_int_equal(f->statistics_interval, 100000);
        /* Whoever waits until it is ready finds its status there. */
        status = strstr(f->told, "STATUS=");
        if (!status || status > strstr(f->told, "READY=1"))
                fail_msg("there is no status before READY=1: %s", f->told);
        until(f, strstr(f->told, "STATUS=Steady: the balloon has 0 MiB of 0 MiB"));
        assert_int_equal(f->trigger_size, strlen("some 150000 2000000") + 1);
        assert_string_equal(f->trigger, "some 150000 2000000");
        assert_int_equal(stop(f), 0);
        assert_int_equal(f->n_sets, 0);
}

static void follows_the_service_managers_convention(void **state) {
        Fixture *f = *state;
        const char *const none[] = { "--no-pressure-option", NULL };

        assert_int_equal(setenv("MEMORY_PRESSURE_WATCH", f->pressure, 1), 0);
        assert_int_equal(setenv("MEMORY_PRESSURE_WRITE", "ZnVsbCAxMDAwMDAgMjAwMDAwMAA=", 1), 0);
        start_and_wait(f, none);
        assert_int_equal(unsetenv("MEMORY_PRESSURE_WATCH"), 0);
        assert_int_equal(unsetenv("MEMORY_PRESSURE_WRITE"), 0);
        until(f, f->trigger_size > 0);
        assert_string_equal(f->trigger, "full 100000 2000000");
        assert_int_equal(f->trigger_size, strlen(f->trigger) + 1);
        take_something(f);
        assert_int_equal(stop(f), 0);
}

static void takes_under_pressure_and_gives_back_when_calm(void **state) {
        Fixture *f = *state;

        start_and_wait(f, NULL);
        publish_available(f, MIB(900));
        serve(f, 300 * USEC_PER_MSEC);
        assert_int_equal(f->n_sets, 0);
        take_something(f);
        assert_int_equal(f->target, MIB(100));
        until(f, strstr(f->told, "STATUS=Taking: the balloon has 100 MiB of 100 MiB"));
        take_something(f);
        assert_int_equal(f->target, MIB(200));
        /* Pressure is valid for twice its window, and then it has to be calm. */
        until(f, f->target == 0);
        follow(f);
        until(f, strstr(f->told, "STATUS=Steady: the balloon has 0 MiB of 0 MiB"));
        assert_int_equal(stop(f), 0);
}

/* The guest still boots when this begins, and its driver finds nothing to do that would be an event. */
static void a_driver_that_comes_later_is_noticed(void **state) {
        Fixture *f = *state;

        f->without_driver = true;
        start_and_wait(f, NULL);
        serve(f, 200 * USEC_PER_MSEC);
        f->without_driver = false;
        take_something(f);
        assert_int_equal(f->target, MIB(100));
        assert_int_equal(stop(f), 0);
}

static void gives_back_at_once_when_the_guest_runs_out_of_memory(void **state) {
        static const char *const patient[] = { "--oom-backoff=1h", NULL };
        Fixture *f = *state;
        uint64_t before;

        start_and_wait(f, patient);
        for (unsigned i = 0; i < 4; i++)
                take_something(f);
        before = f->target;
        f->oom_deflations++;
        f->actual -= MIB(1);
        publish_balloon(f, "balloonDeflatedOnOom");
        until(f, f->target < before);
        assert_int_equal(f->target, MIB(219)); /* 180 less than the 399 it had left */
        until(f, strstr(f->told, "STATUS=Backing off"));
        follow(f);
        for (unsigned i = 0; i < 10; i++) {
                publish_available(f, MIB(600));
                press(f);
                serve(f, 50 * USEC_PER_MSEC);
        }
        assert_in_range(f->target, 0, MIB(219));
}

static void stopping_restores_what_was_found(void **state) {
        Fixture *f = *state;

        f->target = f->actual = MIB(50);
        start_and_wait(f, NULL);
        take_something(f);
        assert_int_equal(f->target, MIB(150));
        assert_int_equal(stop(f), 0);
        assert_int_equal(f->target, MIB(50));
        assert_non_null(strstr(f->told, "STOPPING=1"));
}

static void stopping_keeps_where_told_to(void **state) {
        static const char *const keep[] = { "--at-exit=keep", NULL };
        Fixture *f = *state;

        start_and_wait(f, keep);
        take_something(f);
        assert_int_equal(stop(f), 0);
        assert_int_equal(f->target, MIB(100));
}

static void a_target_of_somebody_else_is_what_memory_goes_back_to(void **state) {
        Fixture *f = *state;

        start_and_wait(f, NULL);
        take_something(f);
        f->target = f->actual = MIB(60);
        publish_balloon(f, "balloonTarget");
        publish_balloon(f, "balloonActual");
        until(f, strstr(f->told, "the balloon has 60 MiB of 60 MiB"));
        take_something(f);
        assert_int_equal(f->target, MIB(160));
        until(f, f->target < MIB(160));
        assert_int_equal(f->target, MIB(60));
        serve(f, 500 * USEC_PER_MSEC);
        assert_int_equal(f->target, MIB(60));
}

static void a_guest_that_is_reset_boots_with_what_was_found(void **state) {
        Fixture *f = *state;

        start_and_wait(f, NULL);
        take_something(f);
        publish_state(f, "resetting");
        until(f, f->target == 0);
        follow(f);
        publish_state(f, "running");
        take_something(f);
        assert_int_equal(f->target, MIB(100));
}

static void a_new_vmmd_is_connected_to_again(void **state) {
        Fixture *f = *state;

        start_and_wait(f, NULL);
        take_something(f);
        kill_machine(f);
        until(f, strstr(f->told, "STATUS=Connecting"));
        /* The same process, as after an upgrade in place, remembers the target; what was found stays what was found. */
        begin_machine(f);
        f->told[0] = 0;
        until(f, strstr(f->told, "the balloon has 100 MiB of 100 MiB"));
        take_something(f);
        assert_int_equal(f->target, MIB(200));

        /* Another process has another balloon. */
        kill_machine(f);
        f->pid++;
        f->target = f->actual = MIB(20);
        begin_machine(f);
        until(f, strstr(f->told, "the balloon has 20 MiB of 20 MiB"));
        take_something(f);
        assert_int_equal(f->target, MIB(120));
        assert_int_equal(stop(f), 0);
        assert_int_equal(f->target, MIB(20));
}

static void a_successor_knows_what_its_predecessor_found(void **state) {
        Fixture *f = *state;
        int status;

        f->target = f->actual = MIB(30);
        start_and_wait(f, NULL);
        assert_non_null(strstr(f->told, "FDSTORE=1\nFDNAME=found"));
        assert_true(f->stored_fd >= 0);
        take_something(f);
        assert_return_code(kill(f->sidecar, SIGKILL), errno);
        until(f, has_ended(f, &status));
        f->pressure_fd = safe_close(f->pressure_fd);
        assert_int_equal(f->target, MIB(130));

        start_and_wait(f, NULL);
        assert_int_equal(stop(f), 0);
        assert_int_equal(f->target, MIB(30));
}

static void a_target_that_was_not_set_is_set_later(void **state) {
        static const char *const patient[] = { "--calm=1h", NULL };
        Fixture *f = *state;

        start_and_wait(f, patient);
        f->fails = true;
        /* A sample of a time before it was ready is left aside, so one is not enough. */
        for (uint64_t end = now_usec() + PATIENCE_USEC; f->n_sets == 0 && now_usec() < end;) {
                publish_available(f, MIB(900));
                press(f);
                serve(f, 50 * USEC_PER_MSEC);
        }
        assert_true(f->n_sets > 0);
        serve(f, 200 * USEC_PER_MSEC);
        f->fails = false;
        until(f, f->target > 0);
        assert_int_equal(f->target, MIB(100));
}

static void ends_with_the_machine(void **state) {
        Fixture *f = *state;
        _cleanup_json_ json_object *last = new_event("machineState");

        start_and_wait(f, NULL);
        take_something(f);
        (void) json_add_string(last, "state", "stopping");
        assert_int_equal(varlink_stream_close(f->stream, last), 0);
        assert_int_equal(exit_status(f), 0);
        assert_int_equal(f->target, MIB(100));
}

static void ends_with_its_pressure_file(void **state) {
        Fixture *f = *state;

        start_and_wait(f, NULL);
        until(f, f->pressure_fd >= 0);
        f->pressure_fd = safe_close(f->pressure_fd);
        assert_int_equal(exit_status(f), 1);
}

/* Whatever a helper, or a guest through it, makes the machine say. */
static void survives_senseless_events(void **state) {
        static const char *const senseless[] = {
                "{\"type\":\"statistics\",\"time\":0,\"device\":\"balloon\"}",
                "{\"type\":\"statistics\",\"time\":0,\"statistics\":{\"age\":0,\"availableMemory\":5}}",
                "{\"type\":\"statistics\",\"time\":0,\"device\":\"balloon\",\"statistics\":{\"age\":-5,\"availableMemory\":-1,\"swapIn\":-9223372036854775807}}",
                "{\"type\":\"statistics\",\"time\":0,\"device\":\"balloon\",\"statistics\":{\"age\":9223372036854775807,\"availableMemory\":9223372036854775807}}",
                "{\"type\":\"statistics\",\"time\":0,\"device\":\"balloon\",\"statistics\":{\"age\":0}}",
                "{\"type\":\"balloonActual\",\"time\":0}",
                "{\"type\":\"balloonDeflatedOnOom\",\"time\":0,\"balloon\":{\"device\":\"other\",\"target\":1,\"actual\":1,\"driver\":true,\"features\":[],\"oomDeflations\":9,\"reported\":0}}",
                "{\"type\":\"balloonTarget\",\"time\":0,\"balloon\":{\"device\":\"other\",\"target\":1,\"actual\":1,\"driver\":true,\"features\":[],\"oomDeflations\":9,\"reported\":0}}",
                "{\"type\":\"balloonActual\",\"time\":0,\"balloon\":{\"device\":\"balloon\",\"target\":-1,\"actual\":9223372036854775807,\"driver\":true,\"features\":[],\"oomDeflations\":-1,\"reported\":-1}}",
                "{\"type\":\"machineState\",\"time\":0}",
                "{\"type\":\"guestReady\",\"time\":0}",
        };
        Fixture *f = *state;

        start_and_wait(f, NULL);
        for (size_t i = 0; i < ELEMENTSOF(senseless); i++) {
                _cleanup_json_ json_object *event = json_tokener_parse(senseless[i]);
                assert_non_null(event);
                assert_int_equal(varlink_stream_publish(f->stream, 3, NULL, event), 0);
                press(f);
                serve(f, 20 * USEC_PER_MSEC);
        }
        publish_balloon(f, "balloonActual");
        f->target = 0;
        f->actual = 0;
        publish_balloon(f, "balloonTarget");
        take_something(f);
        assert_int_equal(stop(f), 0);
}

/* The kernel's own file, where there is one that lets us. */
static void sets_a_trigger_of_the_kernel(void **state) {
        static const char *const kernel[] = { "--no-pressure-option", "--pressure=/proc/pressure/memory", NULL };
        Fixture *f = *state;

        if (access("/proc/pressure/memory", W_OK) < 0 || geteuid() != 0)
                skip_for_want_of("/proc/pressure, or root");
        start_and_wait(f, kernel);
        assert_int_equal(stop(f), 0);
}

#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
        const struct CMUnitTest tests[] = {
                test(refuses_wrong_usage),
                test(ends_where_it_is_refused),
                test(ends_where_there_is_no_balloon),
                test(ends_without_a_pressure_file),
                test(is_ready_once_subscribed),
                test(follows_the_service_managers_convention),
                test(takes_under_pressure_and_gives_back_when_calm),
                test(a_driver_that_comes_later_is_noticed),
                test(gives_back_at_once_when_the_guest_runs_out_of_memory),
                test(stopping_restores_what_was_found),
                test(stopping_keeps_where_told_to),
                test(a_target_of_somebody_else_is_what_memory_goes_back_to),
                test(a_guest_that_is_reset_boots_with_what_was_found),
                test(a_new_vmmd_is_connected_to_again),
                test(a_successor_knows_what_its_predecessor_found),
                test(a_target_that_was_not_set_is_set_later),
                test(ends_with_the_machine),
                test(ends_with_its_pressure_file),
                test(survives_senseless_events),
                test(sets_a_trigger_of_the_kernel),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
