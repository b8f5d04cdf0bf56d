/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmd's side of the decision: whom it knows, when it asks, what it remembers, and what it makes of each answer. The other side is made up here; the
 * clients are processes of another user, without whom (and so without root) there is nothing to test. */

#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "access.h"
#include "interfaces.h"
#include "json-util.h"
#include "message.h"

#define STRANGER 61234

static const char text[] =
        "interface org.example.test\n"
        "method Free() -> ()\n"
        "method Read(allowInteractiveAuthentication: ?bool) -> (n: int)\n"
        "method Balloon() -> (n: int)\n"
        "method Change(allowInteractiveAuthentication: ?bool) -> (n: int)\n"
        "method Wait() -> ()\n";

/* What vmm-authorize is to say. */
typedef enum Say { SAY_NO, SAY_CHALLENGE, SAY_YES, SAY_YES_FOR_GOOD, SAY_NOTHING, SAY_ERROR } Say;

typedef struct Fixture {
        sd_event *event;
        VarlinkServer *server, *authorizer;
        Access *access;
        MachineDefinition definition;
        char directory[32], control[64], authorize[64];

        Say say;
        size_t n_asked, n_asker_gone, n_ran, n_waiter_gone;
        VarlinkCall *held[128];
        size_t n_held;
        char question[512];
        uid_t uid; /* of the connection that came with the last question */
} Fixture;

/* --- vmm-authorize, made up --- */

static int answer(VarlinkCall *call, Say say) {
        _cleanup_json_ json_object *reply = json_object_new_object();

        if (say == SAY_ERROR)
                return varlink_call_error_denied(call, "Not you.");
        assert_int_equal(json_add_boolean(reply, "authorized", say == SAY_YES || say == SAY_YES_FOR_GOOD), 0);
        assert_int_equal(json_add_boolean(reply, "challenge", say == SAY_CHALLENGE), 0);
        assert_int_equal(json_add_boolean(reply, "permanent", say == SAY_YES_FOR_GOOD), 0);
        assert_int_equal(json_add_string(reply, "reason", "because"), 0);
        return varlink_call_reply(call, reply);
}

static void on_asker_gone(VarlinkCall *call, void *userdata) {
        ((Fixture *) userdata)->n_asker_gone++;
}

static int on_check(VarlinkCall *call, json_object *parameters, void *userdata) {
        struct ucred credentials;
        socklen_t size = sizeof(credentials);
        Fixture *f = userdata;
        int fd;

        f->n_asked++;
        (void) snprintf(f->question, sizeof(f->question), "%s", json_object_to_json_string_ext(parameters, JSON_C_TO_STRING_PLAIN));
        fd = varlink_call_take_fd(call, json_get_integer(parameters, "fileDescriptorIndex", -1));
        assert_true(fd >= 0);
        assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size), 0);
        f->uid = credentials.uid;
        (void) close(fd);
        if (f->say != SAY_NOTHING)
                return answer(call, f->say);
        assert_true(f->n_held < ELEMENTSOF(f->held));
        f->held[f->n_held++] = varlink_call_ref(call);
        varlink_call_on_close(call, on_asker_gone, f);
        return 0;
}

static void release(Fixture *f, Say say) {
        assert_true(f->n_held > 0);
        varlink_call_on_close(f->held[0], NULL, NULL);
        assert_int_equal(answer(f->held[0], say), 0);
        (void) varlink_call_unref(f->held[0]);
        f->n_held--;
        for (size_t i = 0; i < f->n_held; i++)
                f->held[i] = f->held[i + 1];
}

/* --- the machine, made up --- */

static int on_method(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        Fixture *f = userdata;

        assert_int_equal(json_add_integer(reply, "n", (int64_t) ++f->n_ran), 0);
        return varlink_call_reply(call, reply);
}

static int on_free(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, NULL);
}

static void on_waiter_gone(VarlinkCall *call, void *userdata) {
        ((Fixture *) userdata)->n_waiter_gone++;
        (void) varlink_call_unref(call);
}

/* Waits for its client's end, as subscriptions do. */
static int on_wait(VarlinkCall *call, json_object *parameters, void *userdata) {
        varlink_call_on_close(varlink_call_ref(call), on_waiter_gone, userdata);
        return 0;
}

static const VarlinkMethod methods[] = {
        { "Free", on_free },
        { "Read", on_method, .right = ACCESS_READ },
        { "Balloon", on_method, .right = ACCESS_BALLOON },
        { "Change", on_method, .right = ACCESS_CHANGE },
        { "Wait", on_wait, .right = ACCESS_READ },
        {},
};

static int listen_at(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd;

        strcpy(address.sun_path, path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(chmod(path, 0666), 0);
        assert_int_equal(listen(fd, SOMAXCONN), 0);
        return fd;
}

static int set_up(void **state) {
        static const VarlinkLimits limits = { .connections = 512, .connections_per_uid = 512 };
        static const VarlinkMethod authorizer_methods[] = { { "Check", on_check }, {} };
        Fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        f->definition = (MachineDefinition) { .name = (char *) "demo", .owner = (char *) "alice", .access_group = (char *) "adm" };
        strcpy(f->directory, "/tmp/vmm-access-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        assert_int_equal(chmod(f->directory, 0755), 0);
        (void) snprintf(f->control, sizeof(f->control), "%s/control", f->directory);
        (void) snprintf(f->authorize, sizeof(f->authorize), "%s/authorize", f->directory);

        assert_true(sd_event_new(&f->event) >= 0);
        assert_int_equal(varlink_server_new(&f->authorizer, f->event), 0);
        varlink_server_set_limits(f->authorizer, &limits);
        assert_int_equal(varlink_server_add_interface(f->authorizer, varlink_text_io_vmmd_Authorization, authorizer_methods, f), 0);
        assert_int_equal(varlink_server_listen_fd(f->authorizer, listen_at(f->authorize)), 0);
        assert_int_equal(varlink_server_new(&f->server, f->event), 0);
        varlink_server_set_limits(f->server, &limits);
        assert_int_equal(varlink_server_add_interface(f->server, text, methods, f), 0);
        assert_int_equal(access_new(f->server, f->event, &f->definition, f->authorize, &f->access), 0);
        assert_int_equal(varlink_server_listen_fd(f->server, listen_at(f->control)), 0);
        *state = f;
        return 0;
}

static int tear_down(void **state) {
        Fixture *f = *state;

        for (size_t i = 0; i < f->n_held; i++)
                (void) varlink_call_unref(f->held[i]);
        (void) varlink_server_free(f->server);
        (void) access_free(f->access);
        (void) varlink_server_free(f->authorizer);
        (void) unlink(f->control);
        (void) unlink(f->authorize);
        (void) rmdir(f->directory);
        sd_event_unref(f->event);
        free(f);
        return 0;
}

/* --- clients --- */

/* A connection that a process of that user has made. The process is gone by the time it is used: the kernel remembers. */
static VarlinkChannel client_open(const Fixture *f, uid_t uid, gid_t group) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        VarlinkChannel channel;
        int report[2], fd, status;
        size_t n = 1;
        pid_t pid;
        char byte;

        strcpy(address.sun_path, f->control);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, report), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                fd = socket(AF_UNIX, SOCK_STREAM, 0);
                if (setgroups(1, &group) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0 ||
                        connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || send_with_fds(report[1], "x", 1, &fd, 1) != 1)
                        _exit(1);
                _exit(0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_int_equal(recv_with_fds(report[0], &byte, 1, &fd, &n, 0), 1);
        (void) close(report[0]);
        (void) close(report[1]);
        assert_int_equal(varlink_channel_open(&channel, fd), 0);
        return channel;
}

static void pump(Fixture *f) {
        while (sd_event_run(f->event, 10 * USEC_PER_MSEC) > 0)
                ;
}

static void send_call(VarlinkChannel *client, const char *method, const char *parameters) {
        char call[256];
        int n = snprintf(call, sizeof(call), "{\"method\":\"org.example.test.%s\",\"parameters\":%s}", method, parameters);

        assert_int_equal(write_full(client->fd, call, (size_t) n + 1), 0);
}

/* The next message, as text; NULL where there is none. The caller's. */
static char *receive(Fixture *f, VarlinkChannel *client) {
        VarlinkMessage message = {};
        char *found = NULL;

        pump(f);
        (void) varlink_channel_read(client);
        if (varlink_channel_next(client, &message) > 0)
                found = strdup(json_object_to_json_string_ext(message.json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
        varlink_message_done(&message);
        return found;
}

static void assert_next(Fixture *f, VarlinkChannel *client, const char *expected) {
        _cleanup_free_ char *found = receive(f, client);

        if (!expected)
                assert_null(found);
        else {
                assert_non_null(found);
                assert_string_equal(found, expected);
        }
}

static void assert_call(Fixture *f, VarlinkChannel *client, const char *method, const char *parameters, const char *expected) {
        send_call(client, method, parameters);
        assert_next(f, client, expected);
}

#define DENIED(reason) "{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{\"reason\":\"" reason "\"}}"

static void root_and_the_access_group_are_known_and_nobody_is_asked(void **state) {
        Fixture *f = *state;
        VarlinkChannel root, member;

        root = client_open(f, 0, 0);
        assert_call(f, &root, "Change", "{}", "{\"parameters\":{\"n\":1}}");
        member = client_open(f, STRANGER, 4); /* adm */
        assert_call(f, &member, "Change", "{}", "{\"parameters\":{\"n\":2}}");
        assert_int_equal(f->n_asked, 0);
        varlink_channel_done(&root);
        varlink_channel_done(&member);
}

static void what_needs_no_right_is_for_everybody(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        assert_call(f, &c, "Free", "{}", "{\"parameters\":{}}");
        assert_int_equal(f->n_asked, 0);
        varlink_channel_done(&c);
}

static void a_no_is_passed_on_with_its_reason(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_NO;
        assert_call(f, &c, "Change", "{}", DENIED("because"));
        assert_string_equal(f->question, "{\"fileDescriptorIndex\":0,\"right\":\"change\",\"machine\":\"demo\","
                "\"method\":\"org.example.test.Change\",\"owner\":\"alice\",\"accessGroup\":\"adm\",\"interactive\":false}");
        assert_int_equal(f->uid, STRANGER);
        assert_call(f, &c, "Balloon", "{}", DENIED("because"));
        assert_non_null(strstr(f->question, "\"right\":\"balloon\""));
        assert_call(f, &c, "Read", "{}", DENIED("because"));
        assert_non_null(strstr(f->question, "\"right\":\"read\""));
        assert_int_equal(f->n_ran, 0);
        assert_int_equal(f->n_asked, 3);
        varlink_channel_done(&c);
}

static void where_asking_would_help_the_client_is_told_so(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_CHALLENGE;
        assert_call(f, &c, "Change", "{}",
                "{\"error\":\"io.systemd.InteractiveAuthenticationRequired\",\"parameters\":{\"reason\":\"because\"}}");
        /* It was asked for, and did not help. */
        assert_call(f, &c, "Change", "{\"allowInteractiveAuthentication\":true}", DENIED("because"));
        assert_non_null(strstr(f->question, "\"interactive\":true"));
        assert_int_equal(f->n_ran, 0);
        varlink_channel_done(&c);
}

static void a_yes_for_once_is_asked_for_again(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_YES;
        assert_call(f, &c, "Change", "{}", "{\"parameters\":{\"n\":1}}");
        f->say = SAY_NO;
        assert_call(f, &c, "Change", "{}", DENIED("because"));
        assert_int_equal(f->n_asked, 2);
        varlink_channel_done(&c);
}

static void a_yes_for_good_holds_for_the_connection_and_for_lesser_rights(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER), other;

        f->say = SAY_YES_FOR_GOOD;
        assert_call(f, &c, "Balloon", "{}", "{\"parameters\":{\"n\":1}}");
        f->say = SAY_NO;
        assert_call(f, &c, "Balloon", "{}", "{\"parameters\":{\"n\":2}}");
        assert_call(f, &c, "Read", "{}", "{\"parameters\":{\"n\":3}}");
        assert_int_equal(f->n_asked, 1);
        assert_call(f, &c, "Change", "{}", DENIED("because"));
        assert_int_equal(f->n_asked, 2);
        other = client_open(f, STRANGER, STRANGER);
        assert_call(f, &other, "Balloon", "{}", DENIED("because"));
        varlink_channel_done(&c);
        varlink_channel_done(&other);
}

static void an_authorizer_that_refuses_to_answer_is_a_no(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_ERROR;
        assert_call(f, &c, "Change", "{}", DENIED("vmm-authorize, which tells who may do what with machine 'demo', cannot be asked: "
                "org.varlink.service.PermissionDenied. Root may do it, and members of group adm."));
        varlink_channel_done(&c);
}

static void without_an_authorizer_the_answer_is_no(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        assert_int_equal(unlink(f->authorize), 0);
        assert_call(f, &c, "Change", "{}", DENIED("vmm-authorize, which tells who may do what with machine 'demo', cannot be asked: "
                "No such file or directory. Root may do it, and members of group adm."));
        f->definition.access_group = NULL;
        assert_call(f, &c, "Read", "{}", DENIED("vmm-authorize, which tells who may do what with machine 'demo', cannot be asked: "
                "No such file or directory. Root may do it."));
        assert_int_equal(f->n_ran, 0);
        varlink_channel_done(&c);
}

static void an_authorizer_that_dies_is_a_no(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_NOTHING;
        send_call(&c, "Change", "{}");
        assert_next(f, &c, NULL);
        assert_int_equal(f->n_held, 1);
        f->authorizer = varlink_server_free(f->authorizer);
        assert_next(f, &c, DENIED("vmm-authorize, which tells who may do what with machine 'demo', cannot be asked: "
                "Connection reset by peer. Root may do it, and members of group adm."));
        varlink_channel_done(&c);
}

static void others_go_on_while_one_waits(void **state) {
        Fixture *f = *state;
        VarlinkChannel slow = client_open(f, STRANGER, STRANGER), quick = client_open(f, STRANGER + 1, STRANGER + 1);

        f->say = SAY_NOTHING;
        send_call(&slow, "Change", "{\"allowInteractiveAuthentication\":true}");
        assert_next(f, &slow, NULL);
        f->say = SAY_YES;
        assert_call(f, &quick, "Change", "{}", "{\"parameters\":{\"n\":1}}");
        assert_next(f, &slow, NULL);
        release(f, SAY_YES);
        assert_next(f, &slow, "{\"parameters\":{\"n\":2}}");
        varlink_channel_done(&slow);
        varlink_channel_done(&quick);
}

static void a_client_that_goes_away_takes_its_question_with_it(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_NOTHING;
        send_call(&c, "Change", "{}");
        pump(f);
        assert_int_equal(f->n_held, 1);
        varlink_channel_done(&c);
        pump(f);
        assert_int_equal(f->n_asker_gone, 1);
        assert_int_equal(answer(f->held[0], SAY_YES), -ENOTCONN);
        pump(f);
        assert_int_equal(f->n_ran, 0);
        assert_int_equal(varlink_server_n_connections(f->server), 0);
}

static void a_method_that_was_allowed_hears_of_its_clients_end(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_YES_FOR_GOOD;
        send_call(&c, "Wait", "{}");
        assert_next(f, &c, NULL);
        varlink_channel_done(&c);
        pump(f);
        assert_int_equal(f->n_waiter_gone, 1);
}

static void a_flood_of_questions_is_bounded_and_loses_none(void **state) {
        Fixture *f = *state;
        VarlinkChannel clients[100];

        f->say = SAY_NOTHING;
        for (size_t i = 0; i < ELEMENTSOF(clients); i++) {
                clients[i] = client_open(f, STRANGER, STRANGER);
                send_call(&clients[i], "Change", "{}");
        }
        pump(f);
        assert_int_equal(f->n_held, 64);
        for (size_t i = 0; i < ELEMENTSOF(clients); i++) {
                release(f, SAY_YES);
                pump(f);
                assert_true(f->n_held <= 64);
        }
        assert_int_equal(f->n_ran, ELEMENTSOF(clients));
        for (size_t i = 0; i < ELEMENTSOF(clients); i++)
                varlink_channel_done(&clients[i]);
        pump(f);
        assert_int_equal(varlink_server_n_connections(f->server), 0);
}

static void a_flood_of_dialogs_is_refused(void **state) {
        Fixture *f = *state;
        VarlinkChannel clients[17];

        f->say = SAY_NOTHING;
        for (size_t i = 0; i < ELEMENTSOF(clients); i++) {
                clients[i] = client_open(f, STRANGER, STRANGER);
                send_call(&clients[i], "Change", "{\"allowInteractiveAuthentication\":true}");
                pump(f);
        }
        assert_int_equal(f->n_held, 16);
        assert_next(f, &clients[16], DENIED("So many users are being asked for passwords for machine 'demo' that no more can be; try again later."));
        release(f, SAY_NO);
        assert_next(f, &clients[0], DENIED("because"));
        f->say = SAY_YES;
        assert_call(f, &clients[16], "Change", "{\"allowInteractiveAuthentication\":true}", "{\"parameters\":{\"n\":1}}");
        for (size_t i = 0; i < ELEMENTSOF(clients); i++)
                varlink_channel_done(&clients[i]);
}

static void the_machines_end_ends_questions_too(void **state) {
        Fixture *f = *state;
        VarlinkChannel c = client_open(f, STRANGER, STRANGER);

        f->say = SAY_NOTHING;
        send_call(&c, "Change", "{}");
        pump(f);
        assert_int_equal(f->n_held, 1);
        f->server = varlink_server_free(f->server);
        f->access = access_free(f->access);
        pump(f);
        assert_int_equal(f->n_asker_gone, 1);
        varlink_channel_done(&c);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                TEST(a_no_is_passed_on_with_its_reason),
                TEST(where_asking_would_help_the_client_is_told_so),
                TEST(an_authorizer_that_refuses_to_answer_is_a_no),
                TEST(without_an_authorizer_the_answer_is_no),
                TEST(an_authorizer_that_dies_is_a_no),
                TEST(a_flood_of_dialogs_is_refused),
                TEST(a_flood_of_questions_is_bounded_and_loses_none),
                TEST(what_needs_no_right_is_for_everybody),
                TEST(root_and_the_access_group_are_known_and_nobody_is_asked),
                TEST(a_yes_for_once_is_asked_for_again),
                TEST(a_yes_for_good_holds_for_the_connection_and_for_lesser_rights),
                TEST(others_go_on_while_one_waits),
                TEST(a_client_that_goes_away_takes_its_question_with_it),
                TEST(a_method_that_was_allowed_hears_of_its_clients_end),
                TEST(the_machines_end_ends_questions_too),
        };

        if (geteuid() != 0) {
                (void) printf("1..0 # SKIP needs root, for clients of other users\n");
                return 0;
        }
        return cmocka_run_group_tests(tests, NULL, NULL);
}
