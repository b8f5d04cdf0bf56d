/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Streams of events: who is behind loses the least, is told how much, and keeps nobody waiting. */

#include <malloc.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "json-util.h"
#include "skip.h"
#include "stream.h"
#include "varlink-rig.h"

static const char text[] =
        "interface org.example.test\n"
        "method Watch(kinds: ?int, after: ?int) -> (name: ?string, value: ?int, sequence: int, missed: int)\n"
        "method Narrow() -> (value: ?int, sequence: int, missed: int)\n"
        "method Echo(n: int) -> (n: int)\n";

#define BACKLOG 8
#define MANY 1000

typedef struct Fixture {
        Rig rig;
        VarlinkStream *stream;
        VarlinkSubscriber *latest;
        size_t n_gone;
} Fixture;

static void on_gone(VarlinkSubscriber *subscriber, void *userdata) {
        ((Fixture *) userdata)->n_gone++;
}

static int watch(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        _cleanup_json_ json_object *first = json_object_new_object();

        assert_int_equal(json_add_string(first, "name", "first"), 0);
        if (json_get(parameters, "after", json_type_int))
                return varlink_stream_add_after(f->stream, call, first, (uint64_t) json_get_integer(parameters, "kinds", -1),
                        (uint64_t) json_get_integer(parameters, "after", 0), on_gone, f, &f->latest);
        return varlink_stream_add(f->stream, call, first, (uint64_t) json_get_integer(parameters, "kinds", -1), on_gone, f,
                &f->latest);
}

static int narrow(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        return varlink_stream_add(f->stream, call, NULL, UINT64_MAX, NULL, NULL, NULL);
}

static int echo(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, parameters);
}

static const VarlinkMethod methods[] = {
        { "Watch", watch, VARLINK_METHOD_REQUIRES_MORE, 0 },
        { "Narrow", narrow, 0, 0 },
        { "Echo", echo, 0, 0 },
        {},
};

static int set_up(void **state) {
        Fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        rig_open(&f->rig, text, methods, f);
        assert_int_equal(varlink_stream_new(&f->stream, BACKLOG), 0);
        *state = f;
        return 0;
}

static int tear_down(void **state) {
        Fixture *f = *state;

        f->stream = varlink_stream_free(f->stream);
        rig_close(&f->rig);
        free(f);
        return 0;
}

#define WATCH "{\"method\":\"org.example.test.Watch\",\"more\":true}"
#define WATCH_KINDS(n) "{\"method\":\"org.example.test.Watch\",\"more\":true,\"parameters\":{\"kinds\":" n "}}"
#define REPLY(name, value, sequence, missed)                                                                   \
        "{\"parameters\":{\"name\":\"" name "\",\"value\":" value ",\"sequence\":" sequence ",\"missed\":" missed "},\"continues\":true}"
#define FIRST(sequence) "{\"parameters\":{\"name\":\"first\",\"sequence\":" sequence ",\"missed\":0},\"continues\":true}"

static json_object *make_event(const char *name, int64_t value) {
        json_object *event = json_object_new_object();

        assert_int_equal(json_add_string(event, "name", name), 0);
        assert_int_equal(json_add_integer(event, "value", value), 0);
        return event;
}

static int publish(Fixture *f, unsigned kind, const char *key, int64_t value) {
        _cleanup_json_ json_object *event = make_event(key ?: "-", value);
        return varlink_stream_publish(f->stream, kind, key, event);
}

/* Makes the server's side take little before it is full; what it takes depends on the kernel's accounting. */
static void subscribe_narrowly(Fixture *f, VarlinkChannel *peer) {
        int end[2], size = 1;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, end), 0);
        assert_int_equal(setsockopt(end[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
        assert_int_equal(varlink_channel_open(peer, end[0]), 0);
        assert_int_equal(varlink_server_adopt_connection(f->rig.server, end[1]), 0);
        rig_send(peer, WATCH);
        assert_next(&f->rig, peer, FIRST("0"));
}

/* One reply read apart. */
typedef struct Told {
        char name[32];
        int64_t value, sequence, missed;
        bool continues;
} Told;

static bool next_told(Fixture *f, VarlinkChannel *peer, Told *ret) {
        _cleanup_free_ char *reply = rig_receive(&f->rig, peer);
        _cleanup_json_ json_object *json = NULL;
        json_object *parameters;

        if (!reply || streq(reply, "closed"))
                return false;
        json = json_tokener_parse(reply);
        parameters = json_get(json, "parameters", json_type_object);
        assert_non_null(parameters);
        *ret = (Told) {
                .value = json_get_integer(parameters, "value", -1),
                .sequence = json_get_integer(parameters, "sequence", -1),
                .missed = json_get_integer(parameters, "missed", -1),
                .continues = json_get_boolean(json, "continues", false),
        };
        (void) snprintf(ret->name, sizeof(ret->name), "%s", json_get_string(parameters, "name", "-"));
        return true;
}

static void refuses_a_call_for_one_reply(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Narrow\"}");
        assert_next(&f->rig, &f->rig.peer,
                "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":95,\"errnoName\":\"EOPNOTSUPP\"}}");
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 0);
}

/* An event that is not what the text says reaches nobody whose method it does not fit, and everybody else. */
static void sends_nothing_that_the_text_does_not_have(void **state) {
        Fixture *f = *state;
        VarlinkChannel other;

        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Narrow\",\"more\":true}");
        assert_next(&f->rig, &f->rig.peer, "{\"parameters\":{\"sequence\":0,\"missed\":0},\"continues\":true}");
        assert_int_equal(rig_attach(&f->rig, &other), 0);
        rig_send(&other, WATCH);
        assert_next(&f->rig, &other, FIRST("0"));
        assert_int_equal(publish(f, 0, NULL, 1), -EPROTO);
        assert_nothing(&f->rig, &f->rig.peer);
        assert_next(&f->rig, &other, REPLY("-", "1", "1", "0"));
        assert_int_equal(varlink_stream_publish(f->stream, 64, NULL, NULL), -EINVAL);
        varlink_channel_done(&other);
}

static void tells_everybody_in_order(void **state) {
        Fixture *f = *state;
        VarlinkChannel other;

        /* Nobody is there yet */
        assert_int_equal(publish(f, 1, NULL, 1), 0);
        rig_send(&f->rig.peer, WATCH);
        assert_next(&f->rig, &f->rig.peer, FIRST("1"));
        assert_int_equal(publish(f, 1, "a", 2), 0);
        assert_int_equal(rig_attach(&f->rig, &other), 0);
        rig_send(&other, WATCH);
        assert_next(&f->rig, &other, FIRST("2"));
        assert_int_equal(publish(f, 2, "b", 3), 0);
        assert_next(&f->rig, &f->rig.peer, REPLY("a", "2", "2", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("b", "3", "3", "0"));
        assert_next(&f->rig, &other, REPLY("b", "3", "3", "0"));
        assert_nothing(&f->rig, &other);
        assert_int_equal(varlink_stream_sequence(f->stream), 3);
        varlink_channel_done(&other);
}

static void tells_nobody_what_he_does_not_want(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, WATCH_KINDS("6"));
        assert_next(&f->rig, &f->rig.peer, FIRST("0"));
        assert_false(varlink_stream_wants(f->stream, 0));
        assert_true(varlink_stream_wants(f->stream, 1));
        assert_true(varlink_stream_wants(f->stream, 2));
        assert_false(varlink_stream_wants(f->stream, 3));
        assert_false(varlink_stream_wants(f->stream, 64));
        for (unsigned kind = 0; kind < 4; kind++)
                assert_int_equal(publish(f, kind, NULL, kind), 0);
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "1", "2", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "2", "3", "0"));
        assert_nothing(&f->rig, &f->rig.peer);
        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_false(varlink_stream_wants(f->stream, 1));
}

static void tells_one_alone(void **state) {
        Fixture *f = *state;
        _cleanup_json_ json_object *event = make_event("own", 5);
        VarlinkChannel other;

        rig_send(&f->rig.peer, WATCH_KINDS("2"));
        assert_next(&f->rig, &f->rig.peer, FIRST("0"));
        assert_int_equal(rig_attach(&f->rig, &other), 0);
        rig_send(&other, WATCH_KINDS("2"));
        assert_next(&f->rig, &other, FIRST("0"));
        assert_int_equal(varlink_subscriber_publish(f->latest, 1, NULL, event), 0);
        assert_int_equal(varlink_subscriber_publish(f->latest, 2, NULL, event), 0);
        assert_int_equal(publish(f, 1, NULL, 6), 0);
        assert_next(&f->rig, &other, REPLY("own", "5", "1", "0"));
        assert_next(&f->rig, &other, REPLY("-", "6", "3", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "6", "3", "0"));
        assert_nothing(&f->rig, &other);
        varlink_channel_done(&other);
}

static void goes_on_from_the_number_of_its_predecessor(void **state) {
        Fixture *f = *state;

        varlink_stream_set_sequence(f->stream, 41);
        rig_send(&f->rig.peer, WATCH);
        assert_next(&f->rig, &f->rig.peer, FIRST("41"));
        assert_int_equal(publish(f, 0, NULL, 1), 0);
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "1", "42", "0"));
}

#define WATCH_AFTER(n, kinds) "{\"method\":\"org.example.test.Watch\",\"more\":true,\"parameters\":{\"after\":" n ",\"kinds\":" kinds "}}"
#define FIRST_MISSED(sequence, missed) \
        "{\"parameters\":{\"name\":\"first\",\"sequence\":" sequence ",\"missed\":" missed "},\"continues\":true}"

static void tells_who_comes_back_what_he_has_not_had(void **state) {
        Fixture *f = *state;
        VarlinkChannel other;

        assert_int_equal(varlink_stream_remember(f->stream, 3, 7), 0);
        assert_true(varlink_stream_wants(f->stream, 2));
        assert_false(varlink_stream_wants(f->stream, 3));
        for (unsigned i = 1; i <= 6; i++)
                assert_int_equal(publish(f, i % 4, "a", i), 0); /* 3 is not of those that are kept */

        rig_send(&f->rig.peer, WATCH_AFTER("4", "-1"));
        assert_next(&f->rig, &f->rig.peer, FIRST("4"));
        assert_next(&f->rig, &f->rig.peer, REPLY("a", "5", "5", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("a", "6", "6", "0"));
        assert_int_equal(publish(f, 0, NULL, 7), 0);
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "7", "7", "0"));
        assert_nothing(&f->rig, &f->rig.peer);
        /* Only what he wants: 5 is of kind 1, 6 of kind 2, 7 of kind 0. */
        assert_int_equal(rig_attach(&f->rig, &other), 0);
        rig_send(&other, WATCH_AFTER("4", "4"));
        assert_next(&f->rig, &other, FIRST("4"));
        assert_next(&f->rig, &other, REPLY("a", "6", "6", "0"));
        assert_nothing(&f->rig, &other);
        varlink_channel_done(&other);
}

static void tells_who_comes_back_too_late_of_a_gap(void **state) {
        Fixture *f = *state;

        assert_int_equal(varlink_stream_remember(f->stream, 2, UINT64_MAX), 0);
        for (unsigned i = 1; i <= 6; i++)
                assert_int_equal(publish(f, 0, NULL, i), 0);
        rig_send(&f->rig.peer, WATCH_AFTER("1", "-1"));
        assert_next(&f->rig, &f->rig.peer, FIRST_MISSED("4", "3"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "5", "5", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "6", "6", "0"));
        assert_nothing(&f->rig, &f->rig.peer);
}

static void hands_on_what_it_remembers(void **state) {
        _cleanup_(varlink_stream_freep) VarlinkStream *old = NULL;
        Fixture *f = *state;
        json_object *kept;

        assert_int_equal(varlink_stream_new(&old, BACKLOG), 0);
        assert_int_equal(varlink_stream_remember(old, 2, 1), 0);
        for (unsigned i = 1; i <= 4; i++) {
                _cleanup_json_ json_object *event = make_event("-", i);
                assert_int_equal(varlink_stream_publish(old, 0, NULL, event), 0);
        }
        assert_int_equal(varlink_stream_forgotten(old), 2);

        assert_int_equal(varlink_stream_remember(f->stream, 2, 1), 0);
        assert_int_equal(publish(f, 0, NULL, 99), 0); /* what it said of itself before is not the predecessor's */
        varlink_stream_forget(f->stream, varlink_stream_forgotten(old));
        for (size_t i = 0; (kept = varlink_stream_remembered(old, i)); i++)
                assert_int_equal(varlink_stream_recall(f->stream, 0, kept), 0);
        assert_int_equal(varlink_stream_recall(f->stream, 0, varlink_stream_remembered(old, 0)), -EBADMSG); /* not in order */
        varlink_stream_set_sequence(f->stream, varlink_stream_sequence(old));
        assert_int_equal(publish(f, 0, NULL, 5), 0);

        rig_send(&f->rig.peer, WATCH_AFTER("3", "-1"));
        assert_next(&f->rig, &f->rig.peer, FIRST("3"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "4", "4", "0"));
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "5", "5", "0"));
        assert_nothing(&f->rig, &f->rig.peer);
}

static void forgets_who_is_gone(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, WATCH);
        rig_pump(&f->rig);
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 1);
        varlink_channel_done(&f->rig.peer);
        /* Noticed from the loop only: publishing calls nobody back. */
        for (unsigned i = 0; i < 3 * BACKLOG; i++)
                assert_int_equal(publish(f, 0, NULL, i), 0);
        assert_int_equal(f->n_gone, 0);
        rig_pump(&f->rig);
        assert_int_equal(f->n_gone, 1);
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 0);
        assert_int_equal(publish(f, 0, NULL, 1), 0);
}

/* Whoever passes the server his own end of the connection is gone all the same when he closes his. */
static void is_not_kept_alive_by_itself(void **state) {
        Fixture *f = *state;

        assert_int_equal(send_with_fds(f->rig.peer.fd, WATCH, sizeof(WATCH), &f->rig.peer.fd, 1), sizeof(WATCH));
        assert_next(&f->rig, &f->rig.peer, FIRST("0"));
        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_int_equal(f->n_gone, 1);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

static void ends_with_a_last_reply(void **state) {
        Fixture *f = *state;
        _cleanup_json_ json_object *last = make_event("end", 9), *wrong = json_object_new_object();

        rig_send(&f->rig.peer, WATCH);
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Echo\",\"parameters\":{\"n\":3}}");
        assert_next(&f->rig, &f->rig.peer, FIRST("0"));
        assert_int_equal(publish(f, 0, NULL, 1), 0);
        assert_int_equal(varlink_stream_close(f->stream, last), 0);
        assert_int_equal(f->n_gone, 1);
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 0);
        assert_next(&f->rig, &f->rig.peer, REPLY("-", "1", "1", "0"));
        assert_next(&f->rig, &f->rig.peer, "{\"parameters\":{\"name\":\"end\",\"value\":9,\"sequence\":2,\"missed\":0}}");
        /* and the connection goes on */
        assert_next(&f->rig, &f->rig.peer, "{\"parameters\":{\"n\":3}}");

        /* A last reply that may not be one: the call is ended all the same. */
        rig_send(&f->rig.peer, WATCH);
        assert_next(&f->rig, &f->rig.peer, FIRST("2"));
        assert_int_equal(json_add_integer(wrong, "bogus", 1), 0);
        assert_int_equal(varlink_stream_close(f->stream, wrong), -EPROTO);
        assert_next(&f->rig, &f->rig.peer,
                "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}");
}

static void cancels_where_it_just_ends(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, WATCH);
        assert_next(&f->rig, &f->rig.peer, FIRST("0"));
        f->stream = varlink_stream_free(f->stream);
        assert_int_equal(f->n_gone, 0);
        assert_next(&f->rig, &f->rig.peer,
                "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}");
}

static void survives_the_server(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, WATCH);
        rig_pump(&f->rig);
        f->rig.server = varlink_server_free(f->rig.server);
        assert_int_equal(f->n_gone, 1);
        assert_int_equal(publish(f, 0, NULL, 1), 0);
}

/* Stalled until far behind: what superseded nothing is dropped last. */
static void drops_the_superseded_first(void **state) {
        Fixture *f = *state;
        VarlinkChannel peer;
        Told told, last[BACKLOG];
        size_t n = 0;
        int64_t total = 0, published = 0;

        subscribe_narrowly(f, &peer);
        /* Beyond what the socket takes, only these are kept: */
        for (; published < 2000; published++)
                assert_int_equal(publish(f, 0, "filler", published), 0);
        assert_int_equal(publish(f, 0, "one", 1), 0);
        for (unsigned i = 0; i < 100; i++)
                assert_int_equal(publish(f, 1, "state", i), 0);
        /* the same key of another kind, and no key at all, supersede nothing */
        assert_int_equal(publish(f, 2, "state", 7), 0);
        assert_int_equal(publish(f, 1, NULL, 8), 0);
        assert_int_equal(publish(f, 1, NULL, 9), 0);
        published += 104;

        while (next_told(f, &peer, &told)) {
                total += 1 + told.missed;
                assert_int_equal(told.continues, true);
                memmove(last, last + 1, sizeof(last) - sizeof(last[0]));
                last[BACKLOG - 1] = told;
                n++;
        }
        assert_int_equal(total, published);
        assert_true(n < 2000);
        assert_string_equal(last[BACKLOG - 1].name, "-");
        assert_int_equal(last[BACKLOG - 1].value, 9);
        assert_int_equal(last[BACKLOG - 2].value, 8);
        assert_int_equal(last[BACKLOG - 3].value, 7);
        assert_string_equal(last[BACKLOG - 4].name, "state");
        assert_int_equal(last[BACKLOG - 4].value, 99);
        /* nothing but its age spoke against "one" */
        for (n = 0; n < BACKLOG && !streq(last[n].name, "one"); n++)
                ;
        assert_true(n < BACKLOG);
        varlink_channel_done(&peer);
}

static void drops_the_oldest_where_nothing_is_superseded(void **state) {
        Fixture *f = *state;
        VarlinkChannel peer;
        Told told;
        int64_t total = 0, sequence = 0, jumps = 0;

        subscribe_narrowly(f, &peer);
        for (unsigned i = 0; i < 3000; i++)
                assert_int_equal(publish(f, 0, NULL, i), 0);
        while (next_told(f, &peer, &told)) {
                /* what was dropped is exactly what is not there */
                assert_int_equal(told.sequence, sequence + told.missed + 1);
                sequence = told.sequence;
                total += 1 + told.missed;
                jumps += told.missed > 0;
        }
        assert_int_equal(total, 3000);
        assert_int_equal(jumps, 1);
        assert_int_equal(sequence, 3000);
        /* and who has caught up misses no more */
        assert_int_equal(publish(f, 0, NULL, 1), 0);
        assert_next(&f->rig, &peer, REPLY("-", "1", "3001", "0"));
        varlink_channel_done(&peer);
}

/* A subscriber may be behind for longer than any client may be with an ordinary answer. */
static void does_not_drop_the_stalled(void **state) {
        static const VarlinkLimits limits = { .timeout_usec = 1 };
        Fixture *f = *state;
        VarlinkChannel peer;
        Told told;
        int64_t total = 0;

        subscribe_narrowly(f, &peer);
        varlink_server_set_limits(f->rig.server, &limits);
        for (unsigned i = 0; i < 1000; i++) {
                assert_int_equal(publish(f, 0, NULL, i), 0);
                rig_pump(&f->rig);
        }
        while (next_told(f, &peer, &told))
                total += 1 + told.missed;
        assert_int_equal(total, 1000);
        varlink_channel_done(&peer);
}

/* But not for ever: nobody may be there any more, and a descriptor in flight keep the other end open. */
static void drops_who_has_stalled_for_too_long(void **state) {
        static const VarlinkLimits limits = { .stall_usec = 20 * USEC_PER_MSEC };
        Fixture *f = *state;
        VarlinkChannel peer;

        subscribe_narrowly(f, &peer);
        varlink_server_set_limits(f->rig.server, &limits);
        for (unsigned i = 0; i < 1000; i++)
                assert_int_equal(publish(f, 0, NULL, i), 0);
        for (unsigned i = 0; i < 100 && f->n_gone == 0; i++)
                assert_true(sd_event_run(f->rig.event, 100 * USEC_PER_MSEC) >= 0);
        assert_int_equal(f->n_gone, 1);
        varlink_channel_done(&peer);
}

static bool may_have_descriptors(rlim_t n) {
        struct rlimit limit;

        assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
        if (limit.rlim_max < n)
                return false;
        limit.rlim_cur = MAX(limit.rlim_cur, n);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        return true;
}

/* One of a thousand does not read: each of the others has each event when publish() returns, before the loop runs at all; and what
 * the stalled one costs does not grow. */
static void delays_nobody_because_of_one_of_a_thousand(void **state) {
        static const unsigned events = 120, checked = 60;
        Fixture *f = *state;
        VarlinkChannel *peers, stalled;
        size_t before = 0, after = 0;
        int64_t total = 0;
        Told told;

        if (!may_have_descriptors(2 * MANY + 64))
                skip_for_want_of("a higher limit of open files");
        peers = calloc(MANY, sizeof(*peers));
        assert_non_null(peers);
        for (size_t i = 0; i < MANY; i++) {
                /* The stalled one is somewhere among them */
                if (i == MANY / 2)
                        subscribe_narrowly(f, &stalled);
                assert_int_equal(rig_attach(&f->rig, &peers[i]), 0);
                rig_send(&peers[i], WATCH);
                assert_next(&f->rig, &peers[i], FIRST("0"));
        }
        assert_int_equal(varlink_stream_n_subscribers(f->stream), MANY + 1);

        for (unsigned n = 1; n <= events; n++) {
                assert_int_equal(publish(f, 0, n % 2 ? "a" : NULL, n), 0);
                /* Half of all readers at each event, so that all were asked after two. */
                for (size_t i = n % 2; i < MANY; i += 2) {
                        VarlinkMessage m = {};

                        /* What came since last time, the latest included: nothing ran in between. */
                        assert_int_equal(varlink_channel_read(&peers[i]), 1);
                        for (unsigned expected = n > 1 ? n - 1 : n; expected <= n; expected++) {
                                json_object *parameters;

                                assert_int_equal(varlink_channel_next(&peers[i], &m), 1);
                                parameters = json_get(m.json, "parameters", json_type_object);
                                assert_int_equal(json_get_integer(parameters, "sequence", 0), expected);
                                assert_int_equal(json_get_integer(parameters, "missed", -1), 0);
                                varlink_message_done(&m);
                        }
                }
                /* By then the stalled one's queue is full. */
                if (n == checked)
                        before = mallinfo2().uordblks;
                if (n == events)
                        after = mallinfo2().uordblks;
        }
        /* Events come and go, and nothing stays of them. The sanitizers have an allocator that does not count. */
        assert_true(after <= before + KIB(16));

        while (next_told(f, &stalled, &told))
                total += 1 + told.missed;
        assert_int_equal(total, events);
        for (size_t i = 0; i < MANY; i++)
                varlink_channel_done(&peers[i]);
        free(peers);
        varlink_channel_done(&stalled);
        rig_pump(&f->rig);
        assert_int_equal(varlink_stream_n_subscribers(f->stream), 0);
        assert_int_equal(f->n_gone, MANY + 1);
}

int main(void) {
#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                test(refuses_a_call_for_one_reply),
                test(sends_nothing_that_the_text_does_not_have),
                test(drops_the_superseded_first),
                test(drops_the_oldest_where_nothing_is_superseded),
                test(does_not_drop_the_stalled),
                test(drops_who_has_stalled_for_too_long),
                test(tells_everybody_in_order),
                test(tells_nobody_what_he_does_not_want),
                test(tells_one_alone),
                test(goes_on_from_the_number_of_its_predecessor),
                test(tells_who_comes_back_what_he_has_not_had),
                test(tells_who_comes_back_too_late_of_a_gap),
                test(hands_on_what_it_remembers),
                test(forgets_who_is_gone),
                test(is_not_kept_alive_by_itself),
                test(ends_with_a_last_reply),
                test(cancels_where_it_just_ends),
                test(survives_the_server),
                test(delays_nobody_because_of_one_of_a_thousand),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
