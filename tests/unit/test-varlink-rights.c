/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Who may call what, where that takes a while to find out; and calls that end in another protocol. */

#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "json-util.h"
#include "skip.h"
#include "varlink-rig.h"

static const char text[] =
        "interface org.example.test\n"
        "method Read() -> (n: int)\n"
        "method Change(n: int) -> (n: int)\n"
        "method Free() -> ()\n"
        "method Ask() -> ()\n"
        "method Attach(n: int) -> (n: int)\n"
        "method Half() -> ()\n";

enum { READ = 1, CHANGE = 2 };

typedef struct Fixture {
        Rig rig;
        int decision;            /* what the authorizer returns */
        bool admits, refuses;    /* and what it does before */
        VarlinkCall *asked[8];
        size_t n_asked, n_decided, n_ran, n_closed, n_upgraded, n_attach_closed;
        unsigned right;
        int upgraded_fd;
        char upgraded_data[64];
} Fixture;

static void on_closed(VarlinkCall *call, void *userdata) {
        ((Fixture *) userdata)->n_closed++;
}

static int authorize(VarlinkCall *call, unsigned right, void *userdata) {
        Fixture *f = userdata;

        f->n_decided++;
        f->right = right;
        if (varlink_call_granted(call) & right)
                return 1;
        if (f->admits)
                assert_int_equal(varlink_call_admit(call), 0);
        if (f->refuses)
                return varlink_call_error_denied(call, "Only on %s.", "Sundays");
        if (f->decision == -EINPROGRESS && !f->admits) {
                assert_true(f->n_asked < ELEMENTSOF(f->asked));
                f->asked[f->n_asked++] = varlink_call_ref(call);
                varlink_call_on_close(call, on_closed, f);
        }
        return f->decision;
}

static int count(VarlinkCall *call, json_object *parameters, void *userdata) {
        Fixture *f = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object();

        f->n_ran++;
        assert_int_equal(json_add_integer(reply, "n", (int64_t) f->n_ran), 0);
        return varlink_call_reply(call, reply);
}

static int nothing(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, NULL);
}

static int ask(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_error(call, "io.systemd.InteractiveAuthenticationRequired", NULL);
}

static void on_upgraded(int fd, const void *data, size_t size, void *userdata) {
        Fixture *f = userdata;

        assert_int_equal(f->upgraded_fd, -EBADF);
        assert_true(size < sizeof(f->upgraded_data));
        f->n_upgraded++;
        f->upgraded_fd = fd;
        if (size > 0)
                memcpy(f->upgraded_data, data, size);
}

static void on_attach_closed(VarlinkCall *call, void *userdata) {
        ((Fixture *) userdata)->n_attach_closed++;
}

static int attach(VarlinkCall *call, json_object *parameters, void *userdata) {
        assert_true(varlink_call_wants_upgrade(call));
        if (json_get_integer(parameters, "n", 0) < 0)
                return -ENODEV;
        varlink_call_on_close(call, on_attach_closed, userdata);
        return varlink_call_reply_upgrade(call, parameters, on_upgraded, userdata);
}

/* Answers as if there had been no "upgrade". */
static int half(VarlinkCall *call, json_object *parameters, void *userdata) {
        assert_int_equal(varlink_call_reply(call, NULL), -EPROTO);
        return 0;
}

static const VarlinkMethod methods[] = {
        { "Read", count, 0, READ },
        { "Change", count, 0, CHANGE },
        { "Free", nothing, 0, 0 },
        { "Ask", ask, 0, 0 },
        { "Attach", attach, VARLINK_METHOD_UPGRADES, 0 },
        { "Half", half, VARLINK_METHOD_UPGRADES, 0 },
        {},
};

static int set_up(void **state) {
        Fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        f->upgraded_fd = -EBADF;
        rig_open(&f->rig, text, methods, f);
        varlink_server_set_authorize(f->rig.server, authorize, f);
        *state = f;
        return 0;
}

static void forget(Fixture *f, size_t i) {
        f->asked[i] = varlink_call_unref(f->asked[i]);
}

static int tear_down(void **state) {
        Fixture *f = *state;

        f->rig.server = varlink_server_free(f->rig.server);
        for (size_t i = 0; i < f->n_asked; i++)
                forget(f, i);
        rig_close(&f->rig);
        (void) safe_close(f->upgraded_fd);
        free(f);
        return 0;
}

#define CALL(method) "{\"method\":\"org.example.test." method "\"}"
#define CHANGE_CALL "{\"method\":\"org.example.test.Change\",\"parameters\":{\"n\":1}}"
#define ONEWAY_CALL "{\"method\":\"org.example.test.Read\",\"oneway\":true}"
#define ATTACH_CALL(n) "{\"method\":\"org.example.test.Attach\",\"upgrade\":true,\"parameters\":{\"n\":" n "}}"
#define DENIED "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}"
#define CANCELED "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":125,\"errnoName\":\"ECANCELED\"}}"

#define assert_reply(f, expected) assert_next(&(f)->rig, &(f)->rig.peer, expected)
#define assert_no_reply(f) assert_nothing(&(f)->rig, &(f)->rig.peer)

static void denies_what_the_authorizer_denies(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, DENIED);
        f->decision = -EPERM;
        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, DENIED);
        f->refuses = true;
        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{\"reason\":\"Only on Sundays.\"}}");
        assert_int_equal(f->n_ran, 0);
}

static void passes_on_that_the_authorizer_failed(void **state) {
        Fixture *f = *state;

        f->decision = -ENOMEM;
        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":12,\"errnoName\":\"ENOMEM\"}}");
        assert_int_equal(f->n_ran, 0);
}

static void asks_only_after_the_parameters_were_checked(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, CALL("Change"));
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"n\"}}");
        rig_send(&f->rig.peer, CALL("Free"));
        assert_reply(f, "{\"parameters\":{}}");
        assert_int_equal(f->n_decided, 0);
        rig_send(&f->rig.peer, CHANGE_CALL);
        assert_reply(f, DENIED);
        assert_int_equal(f->right, CHANGE);
}

static void makes_no_call_while_one_is_being_authorized(void **state) {
        Fixture *f = *state;

        f->decision = -EINPROGRESS;
        rig_send(&f->rig.peer, ONEWAY_CALL);
        rig_send(&f->rig.peer, CHANGE_CALL);
        rig_send(&f->rig.peer, CALL("Free"));
        assert_no_reply(f);
        assert_int_equal(f->n_asked, 1);
        assert_int_equal(f->n_ran, 0);

        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        assert_int_equal(f->n_ran, 1);
        assert_int_equal(varlink_call_admit(f->asked[0]), -EALREADY);
        assert_no_reply(f);
        assert_int_equal(f->n_asked, 2);
        assert_int_equal(varlink_call_admit(f->asked[1]), 0);
        assert_reply(f, "{\"parameters\":{\"n\":2}}");
        assert_reply(f, "{\"parameters\":{}}");
        assert_int_equal(f->n_closed, 0);
}

static void goes_on_after_a_late_refusal(void **state) {
        Fixture *f = *state;

        f->decision = -EINPROGRESS;
        for (unsigned i = 0; i < 2; i++) {
                rig_send(&f->rig.peer, CHANGE_CALL);
                rig_send(&f->rig.peer, ONEWAY_CALL);
        }
        rig_send(&f->rig.peer, CALL("Free"));
        rig_pump(&f->rig);
        assert_int_equal(varlink_call_error_denied(f->asked[0], "No."), 0);
        assert_int_equal(varlink_call_admit(f->asked[0]), -EALREADY);
        assert_reply(f, "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{\"reason\":\"No.\"}}");
        assert_int_equal(varlink_call_error_denied(f->asked[1], "No."), 0);
        /* Those that the authorizer forgets end, too */
        rig_pump(&f->rig);
        forget(f, 2);
        assert_reply(f, CANCELED);
        assert_int_equal(f->n_asked, 4);
        forget(f, 3);
        assert_reply(f, "{\"parameters\":{}}");
        assert_int_equal(f->n_ran, 0);
}

static void tells_the_authorizer_that_the_client_is_gone(void **state) {
        Fixture *f = *state;

        f->decision = -EINPROGRESS;
        rig_send(&f->rig.peer, CHANGE_CALL);
        rig_pump(&f->rig);
        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_int_equal(f->n_closed, 1);
        assert_int_equal(varlink_call_peer_fd(f->asked[0]), -ENOTCONN);
        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        assert_int_equal(f->n_ran, 0);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

static void may_be_admitted_at_once(void **state) {
        Fixture *f = *state;

        f->decision = -EINPROGRESS;
        f->admits = true;
        rig_send(&f->rig.peer, CHANGE_CALL);
        assert_reply(f, "{\"parameters\":{\"n\":1}}");
        rig_send(&f->rig.peer, ONEWAY_CALL);
        rig_send(&f->rig.peer, CHANGE_CALL);
        assert_reply(f, "{\"parameters\":{\"n\":3}}");
}

static void remembers_rights_of_one_connection_only(void **state) {
        Fixture *f = *state;
        VarlinkChannel other;
        struct stat mine, theirs;

        f->decision = -EINPROGRESS;
        rig_send(&f->rig.peer, CALL("Read"));
        rig_pump(&f->rig);
        assert_int_equal(varlink_call_granted(f->asked[0]), 0);
        assert_int_equal(fstat(varlink_call_peer_fd(f->asked[0]), &mine), 0);
        assert_true(S_ISSOCK(mine.st_mode));
        assert_int_equal(fstat(f->rig.peer.fd, &theirs), 0);
        assert_int_not_equal(mine.st_ino, theirs.st_ino);
        varlink_call_grant(f->asked[0], READ);
        assert_int_equal(varlink_call_granted(f->asked[0]), READ);
        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        assert_reply(f, "{\"parameters\":{\"n\":1}}");
        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, "{\"parameters\":{\"n\":2}}");
        rig_send(&f->rig.peer, CHANGE_CALL);
        assert_no_reply(f);
        assert_int_equal(f->n_asked, 2);

        assert_int_equal(rig_attach(&f->rig, &other), 0);
        rig_send(&other, CALL("Read"));
        assert_nothing(&f->rig, &other);
        assert_int_equal(f->n_asked, 3);
        varlink_channel_done(&other);
}

/* As somebody whom our user namespace does not map. */
static int attach_stranger(Fixture *f, VarlinkChannel *peer) {
        int r;

        assert_int_equal(seteuid(65534), 0);
        r = rig_attach(&f->rig, peer);
        assert_int_equal(seteuid(0), 0);
        return r;
}

/* Strangers who are merely there make room for the next; who has a right, or waits for an answer, stays. */
static void is_not_filled_by_idle_strangers(void **state) {
        static const VarlinkLimits limits = { .connections = 10, .connections_per_uid = 4 };
        Fixture *f = *state;
        VarlinkChannel friend, asking, idle, flood[20];

        if (geteuid() != 0)
                skip_for_want_of("root");
        varlink_server_set_limits(f->rig.server, &limits);
        assert_int_equal(attach_stranger(f, &idle), 0);
        f->decision = -EINPROGRESS;
        assert_int_equal(attach_stranger(f, &friend), 0);
        rig_send(&friend, CALL("Read"));
        rig_pump(&f->rig);
        varlink_call_grant(f->asked[0], READ);
        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        assert_int_equal(attach_stranger(f, &asking), 0);
        rig_send(&asking, CHANGE_CALL);
        rig_pump(&f->rig);
        assert_int_equal(f->n_asked, 2);

        for (size_t i = 0; i < ELEMENTSOF(flood); i++)
                assert_int_equal(attach_stranger(f, &flood[i]), 0);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 5);
        assert_next(&f->rig, &idle, "closed");
        assert_next(&f->rig, &flood[0], "closed");
        assert_nothing(&f->rig, &flood[ELEMENTSOF(flood) - 1]);
        assert_next(&f->rig, &friend, "{\"parameters\":{\"n\":1}}");
        rig_send(&friend, CALL("Read"));
        assert_next(&f->rig, &friend, "{\"parameters\":{\"n\":2}}");
        assert_int_equal(varlink_call_admit(f->asked[1]), 0);
        assert_next(&f->rig, &asking, "{\"parameters\":{\"n\":3}}");

        /* Nobody goes for them where all the others are busy */
        for (size_t i = 0; i < 2; i++) {
                rig_send(i ? &asking : &flood[ELEMENTSOF(flood) - 1], CHANGE_CALL);
                rig_pump(&f->rig);
        }
        varlink_channel_done(&flood[0]);
        assert_int_equal(attach_stranger(f, &flood[0]), 0);
        rig_send(&flood[0], CHANGE_CALL);
        rig_pump(&f->rig);
        assert_int_equal(f->n_asked, 5);
        varlink_channel_done(&flood[1]);
        assert_int_equal(attach_stranger(f, &flood[1]), -EMFILE);

        varlink_channel_done(&friend);
        varlink_channel_done(&asking);
        varlink_channel_done(&idle);
        for (size_t i = 0; i < ELEMENTSOF(flood); i++)
                varlink_channel_done(&flood[i]);
}

/* Each of them has much to say, and is there first. */
static void serves_strangers_after_all_others(void **state) {
        static const VarlinkLimits limits = { .strangers = 8 };
        Fixture *f = *state;
        VarlinkChannel friend, flood[8];

        if (geteuid() != 0)
                skip_for_want_of("root");
        varlink_server_set_limits(f->rig.server, &limits);
        f->decision = -EINPROGRESS;
        assert_int_equal(attach_stranger(f, &friend), 0);
        rig_send(&friend, CALL("Read"));
        rig_pump(&f->rig);
        varlink_call_grant(f->asked[0], READ);
        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        rig_pump(&f->rig);

        for (size_t i = 0; i < ELEMENTSOF(flood); i++) {
                assert_int_equal(attach_stranger(f, &flood[i]), 0);
                for (size_t n = 0; n < 10; n++)
                        rig_send(&flood[i], CALL("Free"));
        }
        /* So that there is more for them to do whenever the loop looks. */
        for (size_t i = 0; i < ELEMENTSOF(flood); i++)
                assert_true(sd_event_run(f->rig.event, 0) > 0);
        rig_send(&f->rig.peer, CALL("Free"));
        rig_send(&friend, CALL("Free"));
        for (size_t i = 0; i < 2; i++)
                assert_true(sd_event_run(f->rig.event, 0) > 0);
        assert_true(varlink_channel_read(&f->rig.peer) > 0);
        assert_true(varlink_channel_read(&friend) > 0);

        /* A call each in a round. */
        for (size_t i = 0; i < ELEMENTSOF(flood); i++) {
                char replies[1024];
                ssize_t n = recv(flood[i].fd, replies, sizeof(replies), MSG_DONTWAIT);

                assert_true(n < 0 || (size_t) n <= 2 * sizeof("{\"parameters\":{}}"));
        }
        rig_pump(&f->rig);
        for (size_t i = 0; i < ELEMENTSOF(flood); i++) {
                char replies[1024];

                assert_true(recv(flood[i].fd, replies, sizeof(replies), MSG_DONTWAIT) >= (ssize_t) (8 * sizeof("{\"parameters\":{}}")));
                varlink_channel_done(&flood[i]);
        }
        varlink_channel_done(&friend);
}

static void has_only_so_many_strangers(void **state) {
        static const VarlinkLimits limits = { .strangers = 3 };
        Fixture *f = *state;
        VarlinkChannel friend[4], stranger[4];

        if (geteuid() != 0)
                skip_for_want_of("root");
        varlink_server_set_limits(f->rig.server, &limits);
        f->decision = -EINPROGRESS;
        for (size_t i = 0; i < ELEMENTSOF(friend); i++) {
                assert_int_equal(attach_stranger(f, &friend[i]), 0);
                rig_send(&friend[i], CALL("Read"));
                rig_pump(&f->rig);
                varlink_call_grant(f->asked[i], READ);
                assert_int_equal(varlink_call_admit(f->asked[i]), 0);
        }
        for (size_t i = 0; i < ELEMENTSOF(stranger); i++)
                assert_int_equal(attach_stranger(f, &stranger[i]), 0);
        assert_next(&f->rig, &stranger[0], "closed");
        for (size_t i = 1; i < ELEMENTSOF(stranger); i++)
                assert_nothing(&f->rig, &stranger[i]);
        assert_next(&f->rig, &friend[0], "{\"parameters\":{\"n\":1}}");
        for (size_t i = 0; i < ELEMENTSOF(friend); i++)
                varlink_channel_done(&friend[i]);
        for (size_t i = 0; i < ELEMENTSOF(stranger); i++)
                varlink_channel_done(&stranger[i]);
}

static int connect_to(int listener) {
        struct sockaddr_un address = {};
        socklen_t size = sizeof(address);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        assert_int_equal(getsockname(listener, (struct sockaddr *) &address, &size), 0);
        assert_int_equal(connect(fd, (struct sockaddr *) &address, size), 0);
        return fd;
}

/* They fill the queue of the listening socket, and whoever comes then is behind them. */
static void a_queue_of_strangers_is_gone_through_at_once(void **state) {
        static const VarlinkLimits limits = { .strangers = 4 };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), crowd[40];
        Fixture *f = *state;

        if (geteuid() != 0) {
                (void) close(listener);
                skip_for_want_of("root");
        }
        varlink_server_set_limits(f->rig.server, &limits);
        assert_int_equal(bind(listener, (struct sockaddr *) &address, sizeof(sa_family_t)), 0);
        assert_int_equal(listen(listener, 100), 0);
        assert_int_equal(varlink_server_listen_fd(f->rig.server, listener), 0);
        assert_int_equal(seteuid(65534), 0);
        for (size_t i = 0; i < ELEMENTSOF(crowd); i++)
                crowd[i] = connect_to(listener);
        assert_int_equal(seteuid(0), 0);
        varlink_channel_done(&f->rig.peer);
        assert_int_equal(varlink_channel_open(&f->rig.peer, connect_to(listener)), 0);
        rig_send(&f->rig.peer, CALL("Free"));

        /* The end of the rig's first connection, the queue, the call. */
        for (size_t i = 0; i < 3; i++)
                assert_true(sd_event_run(f->rig.event, 0) > 0);
        assert_true(varlink_channel_read(&f->rig.peer) > 0);
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 1 + 2);
        for (size_t i = 0; i < ELEMENTSOF(crowd); i++)
                (void) close(crowd[i]);
}

static void makes_the_calls_of_who_left_without_wanting_an_answer(void **state) {
        Fixture *f = *state;

        f->decision = -EINPROGRESS;
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Read\",\"oneway\":true}");
        rig_pump(&f->rig);
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Change\",\"parameters\":{\"n\":1},\"oneway\":true}");
        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_int_equal(f->n_closed, 0);
        assert_int_equal(f->n_asked, 1);
        assert_int_equal(varlink_call_admit(f->asked[0]), 0);
        assert_int_equal(f->n_ran, 1);
        rig_pump(&f->rig);
        assert_int_equal(f->n_asked, 2);
        assert_int_equal(varlink_call_admit(f->asked[1]), 0);
        assert_int_equal(f->n_ran, 2);
        rig_pump(&f->rig);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

static void needs_a_privileged_peer_without_an_authorizer(void **state) {
        Fixture *f = *state;

        varlink_server_set_authorize(f->rig.server, NULL, NULL);
        rig_send(&f->rig.peer, CALL("Read"));
        assert_reply(f, "{\"parameters\":{\"n\":1}}");
}

static void lets_any_method_ask_for_authentication(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, CALL("Ask"));
        assert_reply(f, "{\"error\":\"io.systemd.InteractiveAuthenticationRequired\",\"parameters\":{}}");
}

static void refuses_upgrades_where_there_are_none(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Free\",\"upgrade\":true}");
        assert_reply(f, "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"upgrade\"}}");
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Nope\",\"upgrade\":true}");
        assert_reply(f, "{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":\"org.example.test.Nope\"}}");
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Attach\",\"parameters\":{\"n\":1}}");
        assert_reply(f, "{\"error\":\"org.varlink.service.ExpectedUpgrade\",\"parameters\":{}}");
        /* Each of these leaves the connection as it was */
        rig_send(&f->rig.peer, CALL("Free"));
        assert_reply(f, "{\"parameters\":{}}");
}

static void goes_on_where_an_upgrade_fails(void **state) {
        Fixture *f = *state;

        rig_send(&f->rig.peer, ATTACH_CALL("-1"));
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":19,\"errnoName\":\"ENODEV\"}}");
        rig_send(&f->rig.peer, "{\"method\":\"org.example.test.Half\",\"upgrade\":true}");
        assert_reply(f, "{\"error\":\"io.systemd.System\",\"parameters\":{\"origin\":\"linux\",\"errno\":71,\"errnoName\":\"EPROTO\",\"field\":\"upgrade\"}}");
        rig_send(&f->rig.peer, CALL("Free"));
        assert_reply(f, "{\"parameters\":{}}");
        assert_int_equal(f->n_upgraded, 0);
}

/* What comes right behind the call is the other protocol's already, and not looked at. */
static void gives_the_connection_away(void **state) {
        static const char call[] = ATTACH_CALL("7"), raw[] = "raw\0{bytes";
        Fixture *f = *state;
        char bytes[256], more[8];

        memcpy(bytes, call, sizeof(call));
        memcpy(bytes + sizeof(call), raw, sizeof(raw));
        rig_send_bytes(&f->rig.peer, bytes, sizeof(call) + sizeof(raw));
        assert_reply(f, "{\"parameters\":{\"n\":7}}");
        assert_int_equal(f->n_upgraded, 1);
        assert_memory_equal(f->upgraded_data, raw, sizeof(raw));
        assert_int_equal(f->n_attach_closed, 0);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);

        rig_send_bytes(&f->rig.peer, "there", 5);
        assert_int_equal(read(f->upgraded_fd, more, sizeof(more)), 5);
        assert_memory_equal(more, "there", 5);
        assert_int_equal(write(f->upgraded_fd, "back", 4), 4);
        assert_int_equal(read(f->rig.peer.fd, more, sizeof(more)), 4);
        assert_memory_equal(more, "back", 4);
}

/* A client whose socket is full before it calls, and who does not read. Returns its end. */
static int call_without_reading(Fixture *f, const char *call) {
        char junk[512] = {};
        int end[2];

        varlink_channel_done(&f->rig.peer);
        rig_pump(&f->rig);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, end), 0);
        while (send(end[1], junk, sizeof(junk), MSG_NOSIGNAL) > 0)
                ;
        assert_int_equal(varlink_server_adopt_connection(f->rig.server, end[1]), 0);
        assert_int_equal(send(end[0], call, strlen(call) + 1, MSG_NOSIGNAL), strlen(call) + 1);
        rig_pump(&f->rig);
        assert_int_equal(f->n_upgraded, 0);
        assert_int_equal(f->n_attach_closed, 0);
        return end[0];
}

static void waits_with_the_upgrade_until_its_answer_is_written(void **state) {
        static const char expected[] = "{\"parameters\":{\"n\":7}}";
        Fixture *f = *state;
        int fd = call_without_reading(f, ATTACH_CALL("7"));
        char bytes[4096];
        ssize_t n;

        do {
                n = read(fd, bytes, sizeof(bytes));
                assert_true(n > 0);
                rig_pump(&f->rig);
        } while (bytes[n - 1] == 0 && (n < (ssize_t) sizeof(expected) || bytes[n - 2] == 0));
        assert_memory_equal(bytes + n - sizeof(expected), expected, sizeof(expected));
        assert_int_equal(f->n_upgraded, 1);
        (void) safe_close(fd);
}

static void tells_the_method_where_the_client_leaves_before_the_upgrade(void **state) {
        Fixture *f = *state;

        (void) safe_close(call_without_reading(f, ATTACH_CALL("7")));
        rig_pump(&f->rig);
        assert_int_equal(f->n_upgraded, 0);
        assert_int_equal(f->n_attach_closed, 1);
        assert_int_equal(varlink_server_n_connections(f->rig.server), 0);
}

int main(void) {
#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                test(denies_what_the_authorizer_denies),
                test(passes_on_that_the_authorizer_failed),
                test(asks_only_after_the_parameters_were_checked),
                test(makes_no_call_while_one_is_being_authorized),
                test(goes_on_after_a_late_refusal),
                test(tells_the_authorizer_that_the_client_is_gone),
                test(refuses_upgrades_where_there_are_none),
                test(goes_on_where_an_upgrade_fails),
                test(tells_the_method_where_the_client_leaves_before_the_upgrade),
                test(waits_with_the_upgrade_until_its_answer_is_written),
                test(is_not_filled_by_idle_strangers),
                test(has_only_so_many_strangers),
                test(a_queue_of_strangers_is_gone_through_at_once),
                test(serves_strangers_after_all_others),
                test(makes_the_calls_of_who_left_without_wanting_an_answer),
                test(may_be_admitted_at_once),
                test(remembers_rights_of_one_connection_only),
                test(needs_a_privileged_peer_without_an_authorizer),
                test(lets_any_method_ask_for_authentication),
                test(gives_the_connection_away),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
