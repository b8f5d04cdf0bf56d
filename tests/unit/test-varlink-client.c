/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

#include "client.h"
#include "json-util.h"
#include "message.h"
#include "server.h"

/* What one end of a socket pair answers, whatever is asked, reply by reply. */
typedef struct Script {
        int fd;
        const char *const *replies;
        size_t n_replies;
        pthread_t thread;
        char asked[4096]; /* the calls as they came, one a line */
} Script;

/* "\1" stands for a NUL within: several messages, or one and what is none. */
static bool answer(int fd, const char *reply) {
        char bytes[512];
        size_t size;

        if (!reply)
                return true;
        size = strlen(reply) + 1;
        if (size > sizeof(bytes))
                return false;
        for (size_t i = 0; i < size; i++)
                bytes[i] = reply[i] == 1 ? 0 : reply[i];
        return write_full(fd, bytes, size) >= 0;
}

static void *run_script(void *userdata) {
        Script *s = userdata;
        size_t n = 0, done = 0;
        char buffer[4096];

        while (done < s->n_replies) {
                ssize_t got = read(s->fd, buffer, sizeof(buffer));
                if (got <= 0)
                        break;
                for (ssize_t i = 0; i < got && n < sizeof(s->asked) - 1; i++) {
                        s->asked[n++] = buffer[i] ? buffer[i] : '\n';
                        if (buffer[i])
                                continue;
                        if (!answer(s->fd, s->replies[done++]))
                                return NULL;
                        if (done == s->n_replies)
                                break;
                }
        }
        (void) shutdown(s->fd, SHUT_WR);
        return NULL;
}

static VarlinkClient *start(Script *s, const char *const *replies, size_t n_replies) {
        VarlinkClient *c = NULL;
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        *s = (Script) { .fd = fds[1], .replies = replies, .n_replies = n_replies };
        assert_int_equal(varlink_client_new_fd(fds[0], &c), 0);
        assert_int_equal(pthread_create(&s->thread, NULL, run_script, s), 0);
        return c;
}

static void finish(Script *s) {
        (void) pthread_join(s->thread, NULL);
        (void) safe_close(s->fd);
}

static void refuses_replies_that_are_none(void **state) {
        static const char *const replies[] = { "[]", "garbage", "{\"parameters\":[]}", "{\"error\":5}", "{\"continues\":1}",
                "{\"parameters\":{},\"continues\":true}", "" };

        for (size_t i = 0; i < ELEMENTSOF(replies); i++) {
                Script s;
                _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, &replies[i], 1);

                assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -EPROTO);
                /* and it stays dead */
                assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -EPROTO);
                finish(&s);
        }
}

static void notices_that_the_server_went_away(void **state) {
        static const char *const replies[] = { NULL };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 1);

        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -ECONNRESET);
        finish(&s);
}

static void gives_up_in_time(void **state) {
        static const char *const replies[] = { NULL, NULL };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 2);
        uint64_t begin = now_usec();

        varlink_client_set_timeout(c, 50 * USEC_PER_MSEC);
        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -ETIMEDOUT);
        assert_true(now_usec() - begin >= 50 * USEC_PER_MSEC);
        c = varlink_client_unref(c);
        finish(&s);
}

static void says_why_it_cannot_connect(void **state) {
        VarlinkClient *c = NULL;
        char path[200];

        memset(path, 'a', sizeof(path) - 1);
        path[sizeof(path) - 1] = 0;
        assert_int_equal(varlink_client_connect(path, &c), -ENAMETOOLONG);
        assert_int_equal(varlink_client_connect("/nonexistent/socket", &c), -ENOENT);
        assert_int_equal(varlink_client_connect_within("/nonexistent/socket", USEC_PER_SEC, &c), -ENOENT);
        assert_null(c);
}

typedef struct Acceptor {
        int listener;
        pthread_t waiter;
} Acceptor;

static void on_signal(int sig) {
}

static void *accept_two(void *userdata) {
        const Acceptor *a = userdata;

        for (size_t i = 0; i < 2; i++) {
                int fd;

                /* So that the other one does wait, and goes on waiting after a signal. */
                (void) usleep(50 * USEC_PER_MSEC);
                (void) pthread_kill(a->waiter, SIGUSR1);
                (void) usleep(20 * USEC_PER_MSEC);
                fd = accept(a->listener, NULL, NULL);
                if (fd < 0)
                        return NULL;
                (void) close(fd);
        }
        return userdata;
}

static void waits_for_a_place_in_the_queue_as_long_as_it_may(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        VarlinkClient *first = NULL, *second = NULL;
        const struct sigaction action = { .sa_handler = on_signal };
        char directory[] = "/tmp/vmm-test.XXXXXX";
        void *result = NULL;
        Acceptor acceptor;
        pthread_t thread;
        uint64_t begin;
        int fd;

        assert_non_null(mkdtemp(directory));
        assert_true(snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", directory) > 0);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 0), 0);

        assert_int_equal(varlink_client_connect(address.sun_path, &first), 0);
        assert_int_equal(varlink_client_connect(address.sun_path, &second), -EAGAIN);
        begin = now_usec();
        assert_int_equal(varlink_client_connect_within(address.sun_path, 50 * USEC_PER_MSEC, &second), -EAGAIN);
        assert_true(now_usec() - begin >= 40 * USEC_PER_MSEC);
        assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
        acceptor = (Acceptor) { .listener = fd, .waiter = pthread_self() };
        assert_int_equal(pthread_create(&thread, NULL, accept_two, &acceptor), 0);
        assert_int_equal(varlink_client_connect_within(address.sun_path, 60 * USEC_PER_SEC, &second), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_non_null(result);

        first = varlink_client_unref(first);
        second = varlink_client_unref(second);
        (void) close(fd);
        assert_int_equal(unlink(address.sun_path), 0);
        assert_int_equal(rmdir(directory), 0);
}

static void returns_replies_and_errors(void **state) {
        static const char *const replies[] = { "{\"parameters\":{\"a\":1}}", "{}", "{\"parameters\":null}",
                "{\"error\":\"a.b.Nope\",\"parameters\":{\"why\":\"so\"}}" };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 4);
        _cleanup_free_ char *error_id = NULL;
        json_object *reply = NULL;

        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, &reply, &error_id), 0);
        assert_int_equal(json_get_integer(reply, "a", 0), 1);
        assert_null(error_id);
        json_putp(&reply);
        for (unsigned i = 0; i < 2; i++) {
                assert_int_equal(varlink_client_call(c, "a.b.C", NULL, &reply, NULL), 0);
                assert_int_equal(json_object_object_length(reply), 0);
                json_putp(&reply);
        }
        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, &reply, &error_id), -EREMOTEIO);
        assert_true(varlink_error_is(error_id, "a.b.Nope"));
        assert_string_equal(json_get_string(reply, "why", ""), "so");
        json_putp(&reply);
        finish(&s);
        assert_non_null(startswith(s.asked, "{\"method\":\"a.b.C\",\"parameters\":{}}\n"));
}

static void receives_several_replies(void **state) {
        static const char *const replies[] = {
                "{\"parameters\":{\"a\":1},\"continues\":true}\1{\"parameters\":{\"a\":2},\"continues\":true}\1{\"parameters\":{\"a\":3}}",
                "{\"error\":\"a.b.Nope\"}",
        };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 2);
        _cleanup_free_ char *error_id = NULL;
        json_object *reply = NULL;
        bool continues = false;

        assert_int_equal(varlink_client_receive(c, &reply, NULL, &continues), -EINVAL);
        assert_int_equal(varlink_client_call_more(c, "a.b.C", NULL), 0);
        for (int i = 1; i <= 3; i++) {
                assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -EBUSY);
                assert_int_equal(varlink_client_send_oneway(c, "a.b.C", NULL), -EBUSY);
                assert_int_equal(varlink_client_receive(c, &reply, NULL, &continues), 0);
                assert_int_equal(json_get_integer(reply, "a", 0), i);
                assert_int_equal(continues, i < 3);
                json_putp(&reply);
        }
        assert_int_equal(varlink_client_call_more(c, "a.b.C", NULL), 0);
        assert_int_equal(varlink_client_receive(c, &reply, &error_id, &continues), -EREMOTEIO);
        assert_string_equal(error_id, "a.b.Nope");
        assert_false(continues);
        json_putp(&reply);
        assert_int_equal(varlink_client_receive(c, &reply, NULL, &continues), -EINVAL);
        finish(&s);
        assert_non_null(startswith(s.asked, "{\"method\":\"a.b.C\",\"parameters\":{},\"more\":true}\n"));
}

static void refuses_more_replies_behind_an_error(void **state) {
        static const char *const replies[] = { "{\"error\":\"a.b.C\",\"continues\":true}" };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 1);

        assert_int_equal(varlink_client_call_more(c, "a.b.C", NULL), 0);
        assert_int_equal(varlink_client_receive(c, NULL, NULL, NULL), -EPROTO);
        assert_int_equal(varlink_client_receive(c, NULL, NULL, NULL), -EPROTO);
        finish(&s);
}

static void takes_the_connection_over(void **state) {
        static const char *const replies[] = { "{\"error\":\"a.b.Nope\"}", "{\"parameters\":{\"a\":1}}\1raw" };
        Script s;
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = start(&s, replies, 2);
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *data = NULL;
        json_object *reply = NULL;
        size_t size = 1;

        assert_int_equal(varlink_client_call_upgrade(c, "a.b.C", NULL, NULL, NULL, &fd, &data, &size), -EREMOTEIO);
        assert_int_equal(fd, -EBADF);
        assert_int_equal(varlink_client_call_upgrade(c, "a.b.C", NULL, &reply, NULL, &fd, &data, &size), 0);
        assert_int_equal(json_get_integer(reply, "a", 0), 1);
        json_putp(&reply);
        assert_int_equal(size, 4);
        assert_memory_equal(data, "raw", 4);
        assert_true(fd >= 0);
        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -ENOTCONN);
        finish(&s);
        assert_non_null(strstr(s.asked, "\"upgrade\":true}\n"));
}

/* ---- on an event loop, against our own server ---- */

static const char text[] = "interface org.example.test\n"
                           "method Echo(text: string) -> (text: string)\n"
                           "method Never() -> ()\n"
                           "method Stream() -> (n: int)\n"
                           "method OpenNull() -> (fileDescriptorIndex: int)\n";

static VarlinkCall *held;

static int echo(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, parameters);
}

static int never(VarlinkCall *call, json_object *parameters, void *userdata) {
        held = varlink_call_ref(call);
        return 0;
}

static int stream(VarlinkCall *call, json_object *parameters, void *userdata) {
        for (int i = 0; i < 3; i++) {
                _cleanup_json_ json_object *reply = json_object_new_object();
                assert_int_equal(json_add_integer(reply, "n", i), 0);
                assert_int_equal(i < 2 ? varlink_call_reply_continues(call, reply) : varlink_call_reply(call, reply), 0);
        }
        return 0;
}

static int open_null(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r = varlink_call_push_fd(call, open("/dev/null", O_RDWR | O_CLOEXEC));
        assert_int_equal(r, 0);
        assert_int_equal(json_add_integer(reply, "fileDescriptorIndex", r), 0);
        return varlink_call_reply(call, reply);
}

static const VarlinkMethod methods[] = {
        { "Echo", echo, 0 },
        { "Never", never, 0 },
        { "Stream", stream, VARLINK_METHOD_REQUIRES_MORE },
        { "OpenNull", open_null, 0 },
        {},
};

typedef struct Log {
        char text[512];
        bool drop;
} Log;

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Log *log = userdata;
        size_t n = strlen(log->text);
        int fd;

        (void) snprintf(log->text + n, sizeof(log->text) - n, "%d %s %s%s\n", error, error_id ?: "-",
                reply ? json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN) : "-", continues ? " +" : "");
        fd = varlink_client_take_fd(c, 0);
        if (fd >= 0)
                strcat(log->text, "fd\n");
        (void) safe_close(fd);
        if (log->drop)
                (void) varlink_client_unref(c);
}

static void pump(sd_event *event) {
        for (unsigned idle = 0; idle < 2;) {
                int r = sd_event_run(event, 0);
                assert_true(r >= 0);
                idle = r == 0 ? idle + 1 : 0;
        }
}

static VarlinkClient *connect_both(sd_event **event, VarlinkServer **server) {
        VarlinkClient *c = NULL;
        int fds[2];

        assert_true(sd_event_new(event) >= 0);
        assert_int_equal(varlink_server_new(server, *event), 0);
        assert_int_equal(varlink_server_add_interface(*server, text, methods, NULL), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(varlink_server_adopt_connection(*server, fds[1]), 0);
        assert_int_equal(varlink_client_new_fd(fds[0], &c), 0);
        assert_int_equal(varlink_client_attach_event(c, *event), 0);
        return c;
}

static void tells_every_caller_that_the_server_is_gone(void **state) {
        sd_event *event = NULL;
        VarlinkServer *server = NULL;
        VarlinkClient *c = connect_both(&event, &server);
        Log log = {};

        assert_int_equal(varlink_client_call(c, "a.b.C", NULL, NULL, NULL), -EBUSY);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Never", NULL, 0, on_reply, &log), 0);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Never", NULL, 0, on_reply, &log), 0);
        pump(event);
        server = varlink_server_free(server);
        held = varlink_call_unref(held);
        pump(event);
        assert_string_equal(log.text, "-104 - -\n-104 - -\n");
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Never", NULL, 0, on_reply, &log), -ECONNRESET);
        (void) varlink_client_unref(c);
        sd_event_unref(event);
}

static void tells_a_caller_that_time_is_up(void **state) {
        sd_event *event = NULL;
        VarlinkServer *server = NULL;
        VarlinkClient *c = connect_both(&event, &server);
        Log log = {};

        varlink_client_set_timeout(c, 20 * USEC_PER_MSEC);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Never", NULL, 0, on_reply, &log), 0);
        for (unsigned i = 0; i < 100 && log.text[0] == 0; i++)
                assert_true(sd_event_run(event, 20 * USEC_PER_MSEC) >= 0);
        assert_string_equal(log.text, "-110 - -\n");
        (void) varlink_client_unref(c);
        (void) varlink_server_free(server);
        held = varlink_call_unref(held);
        sd_event_unref(event);
}

static void calls_back_in_order(void **state) {
        sd_event *event = NULL;
        VarlinkServer *server = NULL;
        VarlinkClient *c = connect_both(&event, &server);
        _cleanup_json_ json_object *parameters = json_object_new_object();
        Log log = {};

        assert_int_equal(json_add_string(parameters, "text", "a"), 0);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Echo", parameters, 0, on_reply, &log), 0);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Nope", NULL, 0, on_reply, &log), 0);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.Stream", NULL, VARLINK_CLIENT_MORE, on_reply, &log), 0);
        assert_int_equal(varlink_client_send_oneway(c, "org.example.test.Echo", parameters), 0);
        assert_int_equal(varlink_client_call_async(c, "org.example.test.OpenNull", NULL, 0, on_reply, &log), 0);
        pump(event);
        assert_string_equal(log.text,
                "0 - {\"text\":\"a\"}\n"
                "-121 org.varlink.service.MethodNotFound {\"method\":\"org.example.test.Nope\"}\n"
                "0 - {\"n\":0} +\n"
                "0 - {\"n\":1} +\n"
                "0 - {\"n\":2}\n"
                "0 - {\"fileDescriptorIndex\":0}\n"
                "fd\n");
        (void) varlink_client_unref(c);
        (void) varlink_server_free(server);
        sd_event_unref(event);
}

static void may_be_dropped_by_its_callback(void **state) {
        sd_event *event = NULL;
        VarlinkServer *server = NULL;
        VarlinkClient *c = connect_both(&event, &server);
        Log log = { .drop = true };

        assert_int_equal(varlink_client_call_async(c, "org.varlink.service.GetInfo", NULL, 0, on_reply, &log), 0);
        assert_int_equal(varlink_client_call_async(c, "org.varlink.service.GetInfo", NULL, 0, on_reply, &log), 0);
        pump(event);
        /* The second one is not called any more */
        assert_non_null(startswith(log.text, "0 - "));
        assert_ptr_equal(strchr(log.text, '\n'), log.text + strlen(log.text) - 1);
        (void) varlink_server_free(server);
        sd_event_unref(event);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_replies_that_are_none),
                cmocka_unit_test(notices_that_the_server_went_away),
                cmocka_unit_test(gives_up_in_time),
                cmocka_unit_test(says_why_it_cannot_connect),
                cmocka_unit_test(waits_for_a_place_in_the_queue_as_long_as_it_may),
                cmocka_unit_test(returns_replies_and_errors),
                cmocka_unit_test(refuses_more_replies_behind_an_error),
                cmocka_unit_test(receives_several_replies),
                cmocka_unit_test(takes_the_connection_over),
                cmocka_unit_test(tells_every_caller_that_the_server_is_gone),
                cmocka_unit_test(tells_a_caller_that_time_is_up),
                cmocka_unit_test(calls_back_in_order),
                cmocka_unit_test(may_be_dropped_by_its_callback),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
