/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "fake-balloon.h"
#include "interfaces.h"
#include "json-util.h"
#include "server.h"
#include "stream.h"

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        (void) fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
                        _exit(3);                                                                              \
                }                                                                                              \
        } while (false)

/* --- the process --- */

typedef struct Fake {
        int socket; /* to the test */
        VarlinkStream *stream;
        int64_t target, actual, oom_deflations;
        unsigned asked;
        bool hold;
        VarlinkCall *waiting, *held; /* for the target, for statistics */
} Fake;

static void say(Fake *f, const char *text) {
        must(send(f->socket, text, strlen(text) + 1, MSG_NOSIGNAL) > 0);
}

static json_object *balloon_state(const Fake *f) {
        json_object *o = json_object_new_object(), *features = json_object_new_array();

        must(o && features && json_append(features, json_object_new_string("statistics")) == 0);
        must(json_add_integer(o, "target", f->target) == 0 && json_add_integer(o, "actual", f->actual) == 0);
        must(json_add_boolean(o, "driver", true) == 0 && json_add(o, "features", features) == 0);
        must(json_add_integer(o, "oomDeflations", f->oom_deflations) == 0 && json_add_integer(o, "reported", 0) == 0);
        return o;
}

static json_object *with_balloon(const Fake *f) {
        json_object *o = json_object_new_object();

        must(o && json_add(o, "balloon", balloon_state(f)) == 0);
        return o;
}

static json_object *event(const Fake *f, const char *type) {
        json_object *o = with_balloon(f);

        must(json_add_string(o, "type", type) == 0);
        return o;
}

static void publish(Fake *f, const char *type) {
        _cleanup_json_ json_object *o = event(f, type);

        if (streq(type, "workingSet"))
                must(json_add(o, "workingSet",
                             json_tokener_parse("[{\"age\":1000,\"fileBytes\":1,\"anonymousBytes\":2},"
                                                "{\"fileBytes\":3,\"anonymousBytes\":4}]")) == 0);
        must(varlink_stream_publish(f->stream, 0, NULL, o) >= 0);
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = with_balloon(userdata);

        return varlink_call_reply(call, reply);
}

static int on_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fake *f = userdata;
        _cleanup_json_ json_object *first = event(f, "present");

        return varlink_stream_add(f->stream, call, first, 1, NULL, NULL, NULL);
}

static void on_waiter_gone(VarlinkCall *call, void *userdata) {
        Fake *f = userdata;

        f->waiting = varlink_call_unref(f->waiting);
        say(f, "left");
}

static void answer_waiting(Fake *f) {
        _cleanup_json_ json_object *reply = with_balloon(f);

        if (f->waiting && f->actual == f->target) {
                must(varlink_call_reply(f->waiting, reply) >= 0);
                f->waiting = varlink_call_unref(f->waiting);
        }
}

static int on_set_target(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fake *f = userdata;
        _cleanup_json_ json_object *superseded = json_object_new_object(), *reply = NULL;

        f->target = json_get_integer(parameters, "target", 0);
        publish(f, "target");
        if (f->waiting) {
                must(json_add_integer(superseded, "target", f->target) == 0);
                must(varlink_call_error(f->waiting, "io.vmmd.Balloon.TargetSuperseded", superseded) >= 0);
                f->waiting = varlink_call_unref(f->waiting);
        }
        if (json_get_boolean(parameters, "wait", false)) {
                f->waiting = varlink_call_ref(call);
                varlink_call_on_close(call, on_waiter_gone, f);
                answer_waiting(f);
                return 0;
        }
        reply = with_balloon(f);
        return varlink_call_reply(call, reply);
}

static int answer_statistics(Fake *f, VarlinkCall *call) {
        _cleanup_json_ json_object *reply = with_balloon(f);

        must(json_add(reply, "statistics", json_tokener_parse("{\"age\":7,\"freeMemory\":4096}")) == 0);
        return varlink_call_reply(call, reply);
}

static int on_get_statistics(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fake *f = userdata;

        f->asked++;
        if (!f->hold)
                return answer_statistics(f, call);
        must(!f->held); /* one at a time */
        f->held = varlink_call_ref(call);
        return 0;
}

static int on_get_working_set(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *p = json_object_new_object();

        must(json_add_string(p, "feature", "workingSet") == 0);
        return varlink_call_error(call, "io.vmmd.Balloon.GuestCannot", p);
}

static int on_hint_free_pages(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *p = json_object_new_object();

        must(json_add_integer(p, "timeout", 5000000) == 0);
        return varlink_call_error(call, "io.vmmd.Balloon.GuestDoesNotAnswer", p);
}

static int on_command(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Fake *f = userdata;
        char text[64] = "";
        ssize_t n = recv(fd, text, sizeof(text) - 1, 0);

        if (n <= 0)
                return sd_event_exit(sd_event_source_get_event(s), 0);
        if (startswith(text, "actual ")) {
                must(sscanf(text, "actual %" SCNd64, &f->actual) == 1); /* NOLINT(cert-err34-c): the test itself wrote it */
                publish(f, "actual");
                answer_waiting(f);
        } else if (startswith(text, "many ")) {
                unsigned many = 0;

                must(sscanf(text, "many %u", &many) == 1); /* NOLINT(cert-err34-c) */
                for (unsigned i = 0; i < many; i++) {
                        f->actual += 4096;
                        publish(f, "actual");
                }
        } else if (streq(text, "oom")) {
                f->oom_deflations++;
                publish(f, "deflatedOnOom");
        } else if (streq(text, "ws"))
                publish(f, "workingSet");
        else if (streq(text, "hold"))
                f->hold = true;
        else if (streq(text, "release")) {
                f->hold = false;
                if (f->held)
                        (void) answer_statistics(f, f->held);
                f->held = varlink_call_unref(f->held);
        } else if (streq(text, "forget"))
                f->target = 0;
        else if (streq(text, "count")) {
                (void) snprintf(text, sizeof(text), "%u", f->asked);
                say(f, text);
                return 0;
        }
        say(f, "done");
        return 0;
}

static int serve(const char *path, int fd) {
        static const VarlinkMethod methods[] = {
                { "Describe", on_describe },
                { "Subscribe", on_subscribe, VARLINK_METHOD_REQUIRES_MORE },
                { "SetTarget", on_set_target },
                { "GetStatistics", on_get_statistics },
                { "GetWorkingSet", on_get_working_set },
                { "HintFreePages", on_hint_free_pages },
                {},
        };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        VarlinkServer *server;
        Fake f = { .socket = fd };
        sd_event *event;
        int listen_fd;

        must(strlen(path) < sizeof(address.sun_path));
        strcpy(address.sun_path, path);
        (void) unlink(path);
        listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        must(bind(listen_fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(listen_fd, 64) == 0);
        must(sd_event_new(&event) >= 0 && varlink_server_new(&server, event) >= 0 && varlink_stream_new(&f.stream, 0) >= 0);
        must(varlink_server_add_interface(server, varlink_text_io_vmmd_Balloon, methods, &f) >= 0);
        must(varlink_server_listen_fd(server, listen_fd) >= 0);
        must(sd_event_add_io(event, NULL, fd, EPOLLIN, on_command, &f) >= 0);
        say(&f, "ready");
        must(sd_event_loop(event) >= 0);
        return 0;
}

/* --- the test's side --- */

void fake_balloon_expect(FakeBalloon *f, const char *line) {
        struct pollfd p = { .fd = f->socket, .events = POLLIN };
        char text[64] = "";

        if (poll(&p, 1, 60000) != 1 || recv(f->socket, text, sizeof(text) - 1, 0) <= 0)
                fail_msg("the balloon does not say '%s'", line);
        assert_string_equal(text, line);
}

void fake_balloon_tell(FakeBalloon *f, const char *what) {
        assert_true(send(f->socket, what, strlen(what) + 1, MSG_NOSIGNAL) > 0);
        fake_balloon_expect(f, "done");
}

unsigned fake_balloon_count(FakeBalloon *f) {
        struct pollfd p = { .fd = f->socket, .events = POLLIN };
        char text[64] = "";
        unsigned count;

        assert_true(send(f->socket, "count", 6, MSG_NOSIGNAL) > 0);
        assert_true(poll(&p, 1, 60000) == 1 && recv(f->socket, text, sizeof(text) - 1, 0) > 0);
        assert_int_equal(sscanf(text, "%u", &count), 1); /* NOLINT(cert-err34-c) */
        return count;
}

void fake_balloon_start(FakeBalloon *f, const char *path) {
        int pair[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        f->pid = fork();
        assert_true(f->pid >= 0);
        if (f->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) close(pair[0]);
                _exit(serve(path, pair[1]));
        }
        (void) close(pair[1]);
        f->socket = pair[0];
        fake_balloon_expect(f, "ready");
}

void fake_balloon_end(FakeBalloon *f) {
        int status;

        (void) close(f->socket);
        assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
