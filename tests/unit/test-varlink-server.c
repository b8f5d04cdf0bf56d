/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "interfaces.h"
#include "json-util.h"
#include "server-internal.h"
#include "varlink-rig.h"

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
        Rig rig;
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

static int refuse_all(VarlinkCall *call, unsigned right, void *userdata) {
        return 0;
}

static int set_up(void **state) {
        Fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        rig_open(&f->rig, text, methods, f);
        *state = f;
        return 0;
}

static int tear_down(void **state) {
        Fixture *f = *state;

        f->rig.server = varlink_server_free(f->rig.server);
        for (size_t i = 0; i < f->n_later; i++)
                (void) varlink_call_unref(f->later[i]);
        rig_close(&f->rig);
        free(f);
        return 0;
}

static void send_text(Fixture *f, const char *s) {
        rig_send(&f->rig.peer, s);
}

static char *next_reply(Fixture *f) {
        return rig_receive(&f->rig, &f->rig.peer);
}

#define assert_reply(f, expected) assert_next(&(f)->rig, &(f)->rig.peer, expected)
#define assert_no_reply(f) assert_nothing(&(f)->rig, &(f)->rig.peer)

static void closes_on_violations_of_the_protocol(void **state) {
        static const char *const calls[] = {
                "garbage", "{}", "[]", "{\"method\":1}", "{\"method\":\"Echo\"}", "{\"method\":\".Echo\"}", "{\"method\":\"a.\"}",
                "{\"method\":\"a.b.C\",\"parameters\":[]}", "{\"method\":\"a.b.C\",\"parameters\":\"\"}",
                "{\"method\":\"a.b.C\",\"bogus\":1}", "{\"method\":\"a.b.C\",\"more\":1}",
                "{\"method\":\"a.b.C\",\"more\":true,\"oneway\":true}", "{\"method\":\"a.b.C\",\"upgrade\":true,\"more\":true}", "",
        };
        Fixture *f = *state;
        VarlinkChannel bystander;

        assert_int_equal(rig_attach(&f->rig, &bystander), 0);
        for (size_t i = 0; i < ELEMENTSOF(calls); i++) {
                _cleanup_free_ char *reply = NULL;

                send_text(f, calls[i]);
                reply = next_reply(f);
                if (!streq_ptr(reply, "closed"))
                        fail_msg("%s: %s", calls[i], reply ?: "nothing");
                varlink_channel_done(&f->rig.peer);
                assert_int_equal(rig_attach(&f->rig, &f->rig.peer), 0);
        }
        /* and nobody else noticed */
        assert_int_equal(varlink_server_n_connections(f->rig.server), 2);
        varlink_channel_done(&bystander);
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

        varlink_server_set_authorize(f->rig.server, refuse_all, NULL);
        send_text(f, "{\"method\":\"org.example.test.Guarded\"}");
        assert_reply(f, "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}");
        /* by default we are our own user */
        varlink_server_set_authorize(f->rig.server, NULL, NULL);
        send_text(f, "{\"method\":\"org.example.test.Guarded\"}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}");
}

static void refuses_what_is_no_interface(void **state) {
        static const VarlinkMethod bogus[] = { { "Bogus", echo, 0 }, {} };
        Fixture *f = *state;

        assert_int_equal(varlink_server_add_interface(f->rig.server, "interface x", methods, f), -EINVAL);
        assert_int_equal(varlink_server_add_interface(f->rig.server, "interface x.y", bogus, f), -EINVAL);
        assert_int_equal(varlink_server_add_interface(f->rig.server, text, methods, f), -EEXIST);
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
        rig_send_bytes(&f->rig.peer, calls, n);
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
        rig_pump(&f->rig);
        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_int_equal(f->closed, 1);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
        assert_int_equal(varlink_call_reply(f->later[0], NULL), -ENOTCONN);
}

static void answers_whoever_has_shut_down_his_sending_side(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"2\"}}");
        assert_int_equal(shutdown(f->rig.peer.fd, SHUT_WR), 0);
        assert_no_reply(f);
        assert_int_equal(varlink_call_reply(f->later[0], varlink_call_parameters(f->later[0])), 0);
        assert_reply(f, "{\"parameters\":{\"text\":\"1\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"2\"}}");
        assert_reply(f, "closed");
}

static void survives_its_end_while_a_call_is_held(void **state) {
        Fixture *f = *state;

        send_text(f, "{\"method\":\"org.example.test.Later\",\"parameters\":{\"text\":\"1\"}}");
        rig_pump(&f->rig);
        f->rig.server = varlink_server_free(f->rig.server);
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
        assert_int_equal(send_with_fds(f->rig.peer.fd, call, sizeof(call), fds, 1), sizeof(call));
        rig_pump(&f->rig);
        assert_int_equal(varlink_channel_read(&f->rig.peer), 1);
        assert_int_equal(varlink_channel_next(&f->rig.peer, &m), 1);
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

        varlink_server_set_limits(f->rig.server, &limits);
        for (unsigned i = 0; i < 100000 && !stopped; i++) {
                stopped = send_with_fds(f->rig.peer.fd, call, sizeof(call), NULL, 0) != sizeof(call);
                if (i % 16 == 0 || stopped)
                        rig_pump(&f->rig);
        }
        assert_true(stopped);
        /* and is dropped after a while */
        for (unsigned i = 0; i < 100 && varlink_server_n_connections(f->rig.server) > 0; i++)
                assert_true(sd_event_run(f->rig.event, 100 * USEC_PER_MSEC) >= 0);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

/* Thousands may do that, who need no right for it: so it is little that is kept for one of them. */
static void keeps_little_for_who_does_not_read(void **state) {
        static const char call[] = "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.example.test\"}}";
        Fixture *f = *state;

        for (unsigned i = 0; i < 100000 && send_with_fds(f->rig.peer.fd, call, sizeof(call), NULL, 0) == sizeof(call); i++)
                rig_pump(&f->rig);
        assert_non_null(f->rig.server->connections);
        assert_true(f->rig.server->connections->channel.out_size > 0);
        assert_true(f->rig.server->connections->channel.out_size < KIB(128));
}

static void refuses_a_call_beyond_the_limit_of_calls(void **state) {
        static const VarlinkLimits limits = { .call_size = 128 };
        char call[256];
        Fixture *f = *state;
        VarlinkChannel peer;

        varlink_server_set_limits(f->rig.server, &limits);
        assert_int_equal(rig_attach(&f->rig, &peer), 0);
        rig_send(&peer, "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.example.test\"}}");
        {
                _cleanup_free_ char *reply = rig_receive(&f->rig, &peer);
                assert_non_null(strstr(reply, "description"));
                assert_true(strlen(reply) > limits.call_size);
        }
        memset(call, ' ', sizeof(call));
        rig_send_bytes(&peer, call, sizeof(call));
        assert_next(&f->rig, &peer, "closed");
        varlink_channel_done(&peer);
}

static void bounds_a_stream_nobody_reads(void **state) {
        static const VarlinkLimits limits = { .write_queue = KIB(4) };
        Fixture *f = *state;

        varlink_server_set_limits(f->rig.server, &limits);
        send_text(f, "{\"method\":\"org.example.test.Stream\",\"more\":true,\"parameters\":{\"count\":1000000}}");
        rig_pump(&f->rig);
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

        varlink_server_set_limits(f->rig.server, &limits);
        rig_send_bytes(&f->rig.peer, "{", 1);
        /* A byte now and then does not help */
        while (varlink_server_n_connections(f->rig.server) > 0 && now_usec() - begin < 60 * USEC_PER_SEC) {
                (void) send_with_fds(f->rig.peer.fd, " ", 1, NULL, 0);
                assert_true(sd_event_run(f->rig.event, 5 * USEC_PER_MSEC) >= 0);
        }
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

static void lets_the_idle_be(void **state) {
        static const VarlinkLimits limits = { .timeout_usec = 10 * USEC_PER_MSEC };
        Fixture *f = *state;

        varlink_server_set_limits(f->rig.server, &limits);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
        for (unsigned i = 0; i < 5; i++)
                assert_true(sd_event_run(f->rig.event, 10 * USEC_PER_MSEC) >= 0);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 1);
}

static void refuses_a_message_beyond_the_limit(void **state) {
        Fixture *f = *state;
        _cleanup_free_ char *big = malloc(KIB(64));

        memset(big, ' ', KIB(64));
        for (unsigned i = 0; i < 64 && varlink_server_n_connections(f->rig.server) > 0; i++) {
                (void) send_with_fds(f->rig.peer.fd, big, KIB(64), NULL, 0);
                rig_pump(&f->rig);
        }
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

/* Not even the error fits: the connection ends, and nothing of the call is left behind. */
static void ends_where_no_answer_fits(void **state) {
        static const char call[] = "{\"method\":\"org.varlink.service.GetInfo\"}", kept[] = "{\"method\":\"org.example.test.Keep\"}";
        static const VarlinkLimits limits = { .message_size = 64 };
        Fixture *f = *state;
        VarlinkChannel peer;

        varlink_server_set_limits(f->rig.server, &limits);
        assert_int_equal(rig_attach(&f->rig, &peer), 0);
        assert_int_equal(send_with_fds(peer.fd, call, sizeof(call), NULL, 0), sizeof(call));
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 1);
        varlink_channel_done(&peer);

        /* The same where the call was kept for later, and is given up. */
        assert_int_equal(rig_attach(&f->rig, &peer), 0);
        assert_int_equal(send_with_fds(peer.fd, kept, sizeof(kept), NULL, 0), sizeof(kept));
        rig_pump(&f->rig);
        assert_int_equal(f->n_later, 1);
        (void) varlink_call_unref(f->later[--f->n_later]);
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 1);
        varlink_channel_done(&peer);
}

static void bounds_connections(void **state) {
        static const VarlinkLimits limits = { .connections_per_uid = 3 };
        Fixture *f = *state;
        VarlinkChannel peers[3];

        varlink_server_set_limits(f->rig.server, &limits);
        assert_int_equal(rig_attach(&f->rig, &peers[0]), 0);
        assert_int_equal(rig_attach(&f->rig, &peers[1]), 0);
        assert_int_equal(rig_attach(&f->rig, &peers[2]), -EMFILE);
        varlink_channel_done(&peers[0]);
        rig_pump(&f->rig);
        varlink_channel_done(&peers[2]);
        assert_int_equal(rig_attach(&f->rig, &peers[2]), 0);
        varlink_channel_done(&peers[1]);
        varlink_channel_done(&peers[2]);
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
        assert_int_equal(varlink_server_listen_fd(f->rig.server, fd), 0);

        peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(peer, (struct sockaddr *) &address, size), 0);
        varlink_channel_done(&f->rig.peer);
        assert_int_equal(varlink_channel_open(&f->rig.peer, peer), 0);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
}

/* Two peers' bytes come in turns. */
static void keeps_interleaved_peers_apart(void **state) {
        static const char a[] = "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}",
                          b[] = "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"b\"}}";
        Fixture *f = *state;
        VarlinkChannel other;

        assert_int_equal(rig_attach(&f->rig, &other), 0);
        for (size_t i = 0; i < sizeof(a); i++) {
                rig_send_bytes(&f->rig.peer, a + i, 1);
                rig_send_bytes(&other, b + i, 1);
                rig_pump(&f->rig);
        }
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
        assert_next(&f->rig, &other, "{\"parameters\":{\"text\":\"b\"}}");
        varlink_channel_done(&other);
}

/* Hundreds that say half a call, and hundreds that call and never read: one who does both is answered at once. */
static void serves_on_beside_the_stalled(void **state) {
        static const char half[] = "{\"method\":\"org.varlink.service.GetInfo\"";
        static const char call[] = "{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"org.example.test\"}}";
        Fixture *f = *state;
        VarlinkChannel peers[400];

        for (size_t i = 0; i < ELEMENTSOF(peers); i++) {
                assert_int_equal(rig_attach(&f->rig, &peers[i]), 0);
                if (i % 2)
                        rig_send_bytes(&peers[i], half, strlen(half));
                else
                        for (unsigned k = 0; k < 20; k++)
                                (void) send_with_fds(peers[i].fd, call, sizeof(call), NULL, 0);
        }
        rig_pump(&f->rig);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
        assert_int_equal(varlink_server_n_connections(f->rig.server), ELEMENTSOF(peers) + 1);
        for (size_t i = 0; i < ELEMENTSOF(peers); i++)
                varlink_channel_done(&peers[i]);
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 1);
}

/* A flood through the listening socket: who is too many is thrown out, who was there is served, and who comes later, too. */
static void survives_a_flood_of_connections(void **state) {
        static const VarlinkLimits limits = { .connections = 50 };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        socklen_t size = sizeof(address);
        Fixture *f = *state;
        VarlinkChannel peers[300];
        unsigned open = 0;
        int fd;

        varlink_server_set_limits(f->rig.server, &limits);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(sa_family_t)), 0);
        assert_int_equal(listen(fd, ELEMENTSOF(peers)), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *) &address, &size), 0);
        assert_int_equal(varlink_server_listen_fd(f->rig.server, fd), 0);

        for (size_t i = 0; i < ELEMENTSOF(peers); i++) {
                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
                assert_int_equal(connect(fd, (struct sockaddr *) &address, size), 0);
                assert_int_equal(varlink_channel_open(&peers[i], fd), 0);
        }
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 50);
        send_text(f, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"text\":\"a\"}}");
        assert_reply(f, "{\"parameters\":{\"text\":\"a\"}}");
        for (size_t i = 0; i < ELEMENTSOF(peers); i++) {
                _cleanup_free_ char *closed = rig_receive(&f->rig, &peers[i]);
                open += closed == NULL;
        }
        assert_int_equal(open, 49);
        for (size_t i = 0; i < ELEMENTSOF(peers); i++)
                varlink_channel_done(&peers[i]);
        rig_pump(&f->rig);
        assert_int_equal(rig_attach(&f->rig, &peers[0]), 0);
        varlink_channel_done(&peers[0]);
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
                test(keeps_little_for_who_does_not_read),
                test(refuses_a_call_beyond_the_limit_of_calls),
                test(bounds_a_stream_nobody_reads),
                test(drops_who_does_not_finish_a_message),
                test(lets_the_idle_be),
                test(ends_where_no_answer_fits),
                test(bounds_connections),
                test(survives_a_flood_of_connections),
                test(serves_on_beside_the_stalled),
                test(keeps_interleaved_peers_apart),
                test(accepts_on_a_listening_socket),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
