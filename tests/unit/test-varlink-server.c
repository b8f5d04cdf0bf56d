/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

#include "interfaces.h"
#include "json-util.h"
#include "message.h"
#include "server.h"

static const char text[] =
        "interface org.example.test\n"
        "method Echo(text: string, number: ?int) -> (text: string, number: ?int)\n"
        "method Later(text: string) -> (text: string)\n"
        "method Stream(count: int) -> (n: int)\n"
        "method Fail(number: int) -> ()\n"
        "method Refuse() -> ()\n"
        "method Guarded() -> ()\n"
        "method Wrong() -> (text: string)\n"
        "method Silent() -> ()\n"
        "method Swap(fileDescriptorIndex: int) -> (fileDescriptorIndex: int)\n"
        "method Keep() -> ()\n"
        "method Missing() -> ()\n"
        "error Refused (why: string)\n";

typedef struct Fixture {
        sd_event *event;
        VarlinkServer *server;
        VarlinkStream peer;
        VarlinkCall *later[4];
        size_t n_later;
        unsigned closed, called;
} Fixture;

static int echo(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        f->called++;
        return varlink_call_reply(call, parameters);
}

static void on_closed(VarlinkCall *call, void *userdata) {
        Fixture *f = userdata;
        f->closed++;
}

static int later(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;

        assert_true(f->n_later < ELEMENTSOF(f->later));
        f->later[f->n_later++] = varlink_call_ref(call);
        varlink_call_on_close(call, on_closed, f);
        return 0;
}

static int stream(VarlinkCall *call, json_object *parameters, void *userdata) {
        int64_t count = json_get_integer(parameters, "count", 0);
        int r = 0;

        for (int64_t i = 0; i <= count && r >= 0; i++) {
                _cleanup_json_ json_object *reply = json_object_new_object();
                assert_int_equal(json_add_integer(reply, "n", i), 0);
                r = i < count ? varlink_call_reply_continues(call, reply) : varlink_call_reply(call, reply);
        }
        return r;
}

static int fail_with(VarlinkCall *call, json_object *parameters, void *userdata) {
        return -(int) json_get_integer(parameters, "number", 0);
}

static int refuse(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *p = json_object_new_object();
        assert_int_equal(json_add_string(p, "why", "because"), 0);
        return varlink_call_error(call, "org.example.test.Refused", p);
}

static int wrong(VarlinkCall *call, json_object *parameters, void *userdata) {
        int r = varlink_call_reply(call, NULL);
        assert_int_equal(r, -EPROTO);
        assert_int_equal(varlink_call_reply(call, NULL), -EALREADY);
        return r;
}

static int silent(VarlinkCall *call, json_object *parameters, void *userdata) {
        return 0;
}

static int swap(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int fd, r;

        fd = varlink_call_take_fd(call, json_get_integer(parameters, "fileDescriptorIndex", -1));
        if (fd < 0)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");
        assert_int_equal(varlink_call_take_fd(call, 0), -ENXIO);
        r = varlink_call_push_fd(call, fd);
        assert_int_equal(r, 0);
        assert_int_equal(json_add_integer(reply, "fileDescriptorIndex", r), 0);
        return varlink_call_reply(call, reply);
}

static const VarlinkMethod methods[] = {
        { "Echo", echo, 0 },
        { "Later", later, 0 },
        { "Stream", stream, VARLINK_METHOD_REQUIRES_MORE },
        { "Fail", fail_with, 0 },
        { "Refuse", refuse, 0 },
        { "Guarded", silent, VARLINK_METHOD_PRIVILEGED },
        { "Wrong", wrong, 0 },
        { "Silent", silent, 0 },
        { "Swap", swap, 0 },
        { "Keep", later, 0 },
        {},
};

static int refuse_all(VarlinkCall *call, void *userdata) {
        return 0;
}

static void pump(Fixture *f) {
        for (unsigned idle = 0; idle < 2;) {
                int r = sd_event_run(f->event, 0);
                assert_true(r >= 0);
                idle = r == 0 ? idle + 1 : 0;
        }
}

static int attach(Fixture *f, VarlinkStream *peer) {
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(varlink_stream_open(peer, fds[0]), 0);
        return varlink_server_adopt_connection(f->server, fds[1]);
}

static int set_up(void **state) {
        Fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        assert_true(sd_event_new(&f->event) >= 0);
        assert_int_equal(varlink_server_new(&f->server, f->event), 0);
        assert_int_equal(varlink_server_set_info(f->server, "a vendor", "a product", "1.0", "https://example.org/"), 0);
        assert_int_equal(varlink_server_add_interface(f->server, text, methods, f), 0);
        assert_int_equal(attach(f, &f->peer), 0);
        *state = f;
        return 0;
}

static int tear_down(void **state) {
        Fixture *f = *state;

        (void) varlink_server_free(f->server);
        for (size_t i = 0; i < f->n_later; i++)
                (void) varlink_call_unref(f->later[i]);
        varlink_stream_done(&f->peer);
        sd_event_unref(f->event);
        free(f);
        return 0;
}

static void send_bytes(Fixture *f, const char *bytes, size_t size) {
        assert_int_equal(send_with_fds(f->peer.fd, bytes, size, NULL, 0), size);
}

static void send_text(Fixture *f, const char *s) {
        send_bytes(f, s, strlen(s) + 1);
}

/* The next reply's text, or NULL where there is none; "closed" where the server closed the connection. */
static char *next_reply(Fixture *f) {
        VarlinkMessage m = {};
        char *copy = NULL;
        int r;

        pump(f);
        while ((r = varlink_stream_next(&f->peer, &m)) == 0) {
                r = varlink_stream_read(&f->peer);
                if (r == -EAGAIN)
                        return NULL;
                if (r == 0 || r == -ECONNRESET)
                        return strdup("closed");
                assert_true(r > 0);
                pump(f);
        }
        assert_int_equal(r, 1);
        copy = strdup(json_object_to_json_string_ext(m.json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
        varlink_message_done(&m);
        return copy;
}

#define assert_reply(f, expected)                                                                              \
        do {                                                                                                   \
                _cleanup_free_ char *_reply = next_reply(f);                                                   \
                assert_non_null(_reply);                                                                       \
                assert_string_equal(_reply, expected);                                                         \
        } while (false)
#define assert_no_reply(f)                                                                                     \
        do {                                                                                                   \
                _cleanup_free_ char *_reply = next_reply(f);                                                   \
                assert_null(_reply);                                                                           \
        } while (false)

static void closes_on_violations_of_the_protocol(void **state) {
        static const char *const calls[] = {
                "garbage", "{}", "[]", "{\"method\":1}", "{\"method\":\"Echo\"}", "{\"method\":\".Echo\"}", "{\"method\":\"a.\"}",
                "{\"method\":\"a.b.C\",\"parameters\":[]}", "{\"method\":\"a.b.C\",\"parameters\":\"\"}",
                "{\"method\":\"a.b.C\",\"bogus\":1}", "{\"method\":\"a.b.C\",\"more\":1}",
                "{\"method\":\"a.b.C\",\"more\":true,\"oneway\":true}", "{\"method\":\"a.b.C\",\"upgrade\":true}", "",
        };
        Fixture *f = *state;
        VarlinkStream bystander;

        assert_int_equal(attach(f, &bystander), 0);
        for (size_t i = 0; i < ELEMENTSOF(calls); i++) {
                _cleanup_free_ char *reply = NULL;

                send_text(f, calls[i]);
                reply = next_reply(f);
                if (!streq_ptr(reply, "closed"))
                        fail_msg("%s: %s", calls[i], reply ?: "nothing");
                varlink_stream_done(&f->peer);
                assert_int_equal(attach(f, &f->peer), 0);
        }
        /* and nobody else noticed */
        assert_int_equal(varlink_server_n_connections(f->server), 2);
        varlink_stream_done(&bystander);
}

static void refuses_wrong_parameters_by_name(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Echo\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"text\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":5}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"text\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\",\"bogus\":1}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"bogus\"}}");
        assert_int_equal(f->called, 0);
}

static void does_not_echo_without_bound(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *call = malloc(KIB(1024)), *reply = NULL;
        size_t n = (size_t) sprintf(call, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"");

        for (unsigned i = 0; i < KIB(64); i++, n += 2)
                memcpy(call + n, "\xc3\xa4", 2);
        strcpy(call + n, "\":1}}");
        send_text(f, call);
        reply = next_reply(f);
        assert_non_null(reply);
        assert_non_null(startswith(reply, "{\"error\":\"org.varlink.service.InvalidParameter\""));
        assert_true(strlen(reply) < 512);
}

static void refuses_unknown_methods(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.nothing.Echo\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InterfaceNotFound\",\"parameters\":{\"interface\":\"org.example.nothing\"}}");
        send_text(f, "{\"method\":\"org.example.test.Nope\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":\"org.example.test.Nope\"}}");
        send_text(f, "{\"method\":\"org.example.test.Refused\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":\"org.example.test.Refused\"}}");
        send_text(f, "{\"method\":\"org.example.test.Missing\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.MethodNotImplemented\",\"parameters\":{\"method\":\"org.example.test.Missing\"}}");
}

static void refuses_a_stream_without_more(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Stream\",\"parameters\":{\"count\":2}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.ExpectedMore\",\"parameters\":{}}");
}

static void refuses_guarded_methods_to_the_unprivileged(void **state) {
        Fixture *f = *state;

        varlink_server_set_authorize(f->server, refuse_all, NULL);
        send_text(f, "{\"method\":\"org.example.test.Guarded\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}");
        /* by default we are our own user */
        varlink_server_set_authorize(f->server, NULL, NULL);
        send_text(f, "{\"method\":\"org.example.test.Guarded\"}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}");
}

static void refuses_what_is_no_interface(void **state) {
        static const VarlinkMethod bogus[] = { { "Bogus", echo, 0 }, {} };
        Fixture *f = *state;

        assert_int_equal(varlink_server_add_interface(f->server, "interface x", methods, f), -EINVAL);
        assert_int_equal(varlink_server_add_interface(f->server, "interface x.y", bogus, f), -EINVAL);
        assert_int_equal(varlink_server_add_interface(f->server, text, methods, f), -EEXIST);
}

static void tells_errors(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Fail\",\"parameters\":{\"number\":2}}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":2,\"errnoName\":\"ENOENT\"}}");
        send_text(f, "{\"method\":\"org.example.test.Fail\",\"parameters\":{\"number\":13}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}");
        send_text(f, "{\"method\":\"org.example.test.Refuse\"}");
        assert_reply(f, "{\"error\":\"org.example.test.Refused\",\"parameters\":{\"why\":\"because\"}}");
        /* the callback never answered, nobody holds the call */
        send_text(f, "{\"method\":\"org.example.test.Silent\"}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}");
        /* the callback's answer is not what the text says */
        send_text(f, "{\"method\":\"org.example.test.Wrong\"}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":71,\"errnoName\":\"EPROTO\",\"field\":\"text\"}}");
}

static void takes_calls_with_header_names_of_other_domains(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Echo\",\"com.example.trace\":7,\"oneway\":null,\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
}

static void describes_itself(void **state) {
        Fixture *f = *state;
        _cleanup_json_ json_object *reply = NULL;
        _cleanup_free_ char *s = NULL;

        send_text(f, "{\"method\":\"org.varlink.service.GetInfo\",\"parameters\":{}}");
        assert_reply(f, "{\"parameters\":{\"interfaces\":[\"org.varlink.service\",\"org.example.test\"],\"vendor\":\"a vendor\","
                        "\"product\":\"a product\",\"version\":\"1.0\",\"url\":\"https://example.org/\"}}");
        send_text(f, "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.example.test\"}}");
        s = next_reply(f);
        reply = json_tokener_parse(s);
        assert_string_equal(json_get_string(json_get(reply, "parameters", json_type_object), "description", ""), text);
        send_text(f, "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.nope\"}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InterfaceNotFound\",\"parameters\":{\"interface\":\"org.nope\"}}");
}

static void keeps_oneway_calls_unanswered(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Echo\",\"oneway\":true,\"parameters\":{\"text\":\"a\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"oneway\":true}");
        send_text(f, "{\"method\":\"org.example.test.Later\",\"oneway\":true,\"parameters\":{\"text\":\"a\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"b\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"b\"}}");
        assert_no_reply(f);
        assert_int_equal(f->called, 2);
        assert_int_equal(varlink_call_reply(f->later[0], NULL), -EALREADY);
}

static void streams_replies(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Stream\",\"more\":true,\"parameters\":{\"count\":2}}");
        assert_reply(f, "{\"parameters\":{\"n\":0},\"continues\":true}");
        assert_reply(f, "{\"parameters\":{\"n\":1},\"continues\":true}");
        assert_reply(f, "{\"parameters\":{\"n\":2}}");
}

/* Several hundred calls in one write: more than one turn of the connection. */
static void answers_pipelined_calls_in_order(void **state) {
        static const char call[] = "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"p\",\"number\":%03u}}";
        Fixture *f = *state;
        _cleanup_free_ char *calls = malloc(300 * sizeof(call));
        char expected[64];
        size_t n = 0;

        for (unsigned i = 100; i < 400; i++)
                n += (size_t) sprintf(calls + n, call, i) + 1;
        send_bytes(f, calls, n);
        for (unsigned i = 100; i < 400; i++) {
                (void) snprintf(expected, sizeof(expected), "{\"parameters\":{\"text\":\"p\",\"number\":%u}}", i);
                assert_reply(f, expected);
        }
}

static void answers_in_order_where_one_answer_comes_late(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"2\"}}");
        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"3\"}}");
        assert_no_reply(f);
        assert_int_equal(f->n_later, 1);
        assert_int_equal(f->called, 0);
        assert_int_equal(varlink_call_reply(f->later[0], varlink_call_parameters(f->later[0])), 0);
        assert_reply(f, "{\"parameters\":{\"text\":\"1\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"2\"}}");
        assert_no_reply(f);
        assert_int_equal(f->n_later, 2);
        assert_int_equal(varlink_call_error_errno(f->later[1], -ETIMEDOUT), 0);
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":110,\"errnoName\":\"ETIMEDOUT\"}}");
        assert_int_equal(varlink_call_reply(f->later[0], NULL), -EALREADY);
        assert_int_equal(f->closed, 0);
}

static void tells_who_waits_that_the_client_is_gone(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        pump(f);
        varlink_stream_done(&f->peer);
        pump(f);
        assert_int_equal(f->closed, 1);
        assert_int_equal(varlink_server_n_connections(f->server), 0);
        assert_int_equal(varlink_call_reply(f->later[0], NULL), -ENOTCONN);
}

static void answers_whoever_has_shut_down_his_sending_side(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"2\"}}");
        assert_int_equal(shutdown(f->peer.fd, SHUT_WR), 0);
        assert_no_reply(f);
        assert_int_equal(varlink_call_reply(f->later[0], varlink_call_parameters(f->later[0])), 0);
        assert_reply(f, "{\"parameters\":{\"text\":\"1\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"2\"}}");
        assert_reply(f, "closed");
}

static void survives_its_end_while_a_call_is_held(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        pump(f);
        f->server = varlink_server_free(f->server);
        assert_int_equal(f->closed, 1);
        assert_int_equal(varlink_call_reply(f->later[0], NULL), -ENOTCONN);
}

static ino_t inode(int fd) {
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        return st.st_ino;
}

static void passes_descriptors_both_ways(void **state) {
        static const char call[] = "{\"method\":\"org.example.test.Swap\",\"parameters\":{\"fileDescriptorIndex\":0}}";
        Fixture *f = *state;
        VarlinkMessage m = {};
        int fds[2], taken;

        send_text(f, call);
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"fileDescriptorIndex\"}}");

        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        assert_int_equal(send_with_fds(f->peer.fd, call, sizeof(call), fds, 1), sizeof(call));
        pump(f);
        assert_int_equal(varlink_stream_read(&f->peer), 1);
        assert_int_equal(varlink_stream_next(&f->peer, &m), 1);
        assert_int_equal(m.n_fds, 1);
        taken = varlink_message_take_fd(&m, 0);
        assert_int_equal(inode(taken), inode(fds[0]));
        (void) safe_close(taken);
        (void) safe_close(fds[0]);
        (void) safe_close(fds[1]);
        varlink_message_done(&m);
}

/* He calls and calls and never reads an answer. */
static void stops_listening_to_who_does_not_read(void **state) {
        static const char call[] = "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.example.test\"}}";
        static const VarlinkLimits limits = { .write_queue = KIB(16), .timeout_usec = 50 * USEC_PER_MSEC };
        Fixture *f = *state;
        bool stopped = false;

        varlink_server_set_limits(f->server, &limits);
        for (unsigned i = 0; i < 100000 && !stopped; i++) {
                stopped = send_with_fds(f->peer.fd, call, sizeof(call), NULL, 0) != sizeof(call);
                if (i % 16 == 0 || stopped)
                        pump(f);
        }
        assert_true(stopped);
        /* and is dropped after a while */
        for (unsigned i = 0; i < 100 && varlink_server_n_connections(f->server) > 0; i++)
                assert_true(sd_event_run(f->event, 100 * USEC_PER_MSEC) >= 0);
        assert_int_equal(varlink_server_n_connections(f->server), 0);
}

static void bounds_a_stream_nobody_reads(void **state) {
        static const VarlinkLimits limits = { .write_queue = KIB(4) };
        Fixture *f = *state;

        varlink_server_set_limits(f->server, &limits);
        send_text(f, "{\"method\":\"org.example.test.Stream\",\"more\":true,\"parameters\":{\"count\":1000000}}");
        pump(f);
        for (;;) {
                _cleanup_free_ char *reply = next_reply(f);
                assert_non_null(reply);
                if (strstr(reply, "error")) {
                        assert_non_null(strstr(reply, "ENOBUFS"));
                        break;
                }
        }
}

static void drops_who_does_not_finish_a_message(void **state) {
        static const VarlinkLimits limits = { .timeout_usec = 30 * USEC_PER_MSEC };
        Fixture *f = *state;
        uint64_t begin = now_usec();

        varlink_server_set_limits(f->server, &limits);
        send_bytes(f, "{", 1);
        /* A byte now and then does not help */
        while (varlink_server_n_connections(f->server) > 0 && now_usec() - begin < 10 * USEC_PER_SEC) {
                (void) send_with_fds(f->peer.fd, " ", 1, NULL, 0);
                assert_true(sd_event_run(f->event, 5 * USEC_PER_MSEC) >= 0);
        }
        assert_int_equal(varlink_server_n_connections(f->server), 0);
}

static void lets_the_idle_be(void **state) {
        static const VarlinkLimits limits = { .timeout_usec = 10 * USEC_PER_MSEC };
        Fixture *f = *state;

        varlink_server_set_limits(f->server, &limits);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
        for (unsigned i = 0; i < 5; i++)
                assert_true(sd_event_run(f->event, 10 * USEC_PER_MSEC) >= 0);
        assert_int_equal(varlink_server_n_connections(f->server), 1);
}

static void refuses_a_message_beyond_the_limit(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *big = malloc(KIB(64));

        memset(big, ' ', KIB(64));
        for (unsigned i = 0; i < 64 && varlink_server_n_connections(f->server) > 0; i++) {
                (void) send_with_fds(f->peer.fd, big, KIB(64), NULL, 0);
                pump(f);
        }
        assert_int_equal(varlink_server_n_connections(f->server), 0);
}

/* Not even the error fits: the connection ends, and nothing of the call is left behind. */
static void ends_where_no_answer_fits(void **state) {
        static const char call[] = "{\"method\":\"org.varlink.service.GetInfo\"}", kept[] = "{\"method\":\"org.example.test.Keep\"}";
        static const VarlinkLimits limits = { .message_size = 64 };
        Fixture *f = *state;
        VarlinkStream peer;

        varlink_server_set_limits(f->server, &limits);
        assert_int_equal(attach(f, &peer), 0);
        assert_int_equal(send_with_fds(peer.fd, call, sizeof(call), NULL, 0), sizeof(call));
        pump(f);
        assert_int_equal(varlink_server_n_connections(f->server), 1);
        varlink_stream_done(&peer);

        /* The same where the call was kept for later, and is given up. */
        assert_int_equal(attach(f, &peer), 0);
        assert_int_equal(send_with_fds(peer.fd, kept, sizeof(kept), NULL, 0), sizeof(kept));
        pump(f);
        assert_int_equal(f->n_later, 1);
        (void) varlink_call_unref(f->later[--f->n_later]);
        pump(f);
        assert_int_equal(varlink_server_n_connections(f->server), 1);
        varlink_stream_done(&peer);
}

static void bounds_connections(void **state) {
        static const VarlinkLimits limits = { .connections_per_uid = 3 };
        Fixture *f = *state;
        VarlinkStream peers[3];

        varlink_server_set_limits(f->server, &limits);
        assert_int_equal(attach(f, &peers[0]), 0);
        assert_int_equal(attach(f, &peers[1]), 0);
        assert_int_equal(attach(f, &peers[2]), -EMFILE);
        varlink_stream_done(&peers[0]);
        pump(f);
        varlink_stream_done(&peers[2]);
        assert_int_equal(attach(f, &peers[2]), 0);
        varlink_stream_done(&peers[1]);
        varlink_stream_done(&peers[2]);
}

static void accepts_on_a_listening_socket(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        socklen_t size = sizeof(address);
        Fixture *f = *state;
        int fd, peer;

        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(sa_family_t)), 0);
        assert_int_equal(listen(fd, 5), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *) &address, &size), 0);
        assert_int_equal(varlink_server_listen_fd(f->server, fd), 0);

        peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(peer, (struct sockaddr *) &address, size), 0);
        varlink_stream_done(&f->peer);
        assert_int_equal(varlink_stream_open(&f->peer, peer), 0);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
}

int main(void) {
#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                test(closes_on_violations_of_the_protocol),
                test(refuses_wrong_parameters_by_name),
                test(does_not_echo_without_bound),
                test(refuses_unknown_methods),
                test(refuses_a_stream_without_more),
                test(refuses_guarded_methods_to_the_unprivileged),
                test(refuses_what_is_no_interface),
                test(refuses_a_message_beyond_the_limit),
                test(tells_errors),
                test(takes_calls_with_header_names_of_other_domains),
                test(describes_itself),
                test(keeps_oneway_calls_unanswered),
                test(streams_replies),
                test(answers_pipelined_calls_in_order),
                test(answers_in_order_where_one_answer_comes_late),
                test(tells_who_waits_that_the_client_is_gone),
                test(answers_whoever_has_shut_down_his_sending_side),
                test(survives_its_end_while_a_call_is_held),
                test(passes_descriptors_both_ways),
                test(stops_listening_to_who_does_not_read),
                test(bounds_a_stream_nobody_reads),
                test(drops_who_does_not_finish_a_message),
                test(lets_the_idle_be),
                test(ends_where_no_answer_fits),
                test(bounds_connections),
                test(accepts_on_a_listening_socket),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
