/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-authorize: what it decides by itself, of peers that are made up and of real processes of other users, and what it makes of polkit's answers. */

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

#include "client.h"
#include "decide.h"
#include "fake-bus.h"
#include "json-util.h"
#include "service.h"
#include "skip.h"

/* Of every Debian: users and groups of these names and numbers. */
#define DAEMON 1
#define SYS 3
#define ADM 4
#define NOBODY_SPECIAL 61234

/* --- deciding --- */

static Question question(Right right) {
        return (Question) { .right = right, .machine = "m", .method = "io.example.Do", .read_group = READ_GROUP_DEFAULT };
}

static void assert_decision(const Peer *peer, const Question *q, int decision, const char *reason) {
        _cleanup_free_ char *found = NULL;

        assert_int_equal(decide(peer, q, &found), decision);
        assert_string_equal(found, reason);
}

static Peer stranger(char *name) {
        return (Peer) { .uid = NOBODY_SPECIAL, .gid = NOBODY_SPECIAL, .pid = 1, .pidfd = -EBADF, .name = name };
}

static void a_stranger_may_nothing_and_hears_why(void **state) {
        Peer peer = stranger((char *) "user 61234");
        Question q = question(RIGHT_CHANGE);

        assert_decision(&peer, &q, 0, "user 61234 is not root");
        q.owner = "daemon";
        q.access_group = "adm";
        assert_decision(&peer, &q, 0, "user 61234 is not root, is not the owner 'daemon', is not in group 'adm'");
        q.right = RIGHT_READ;
        q.read_group = "sys";
        assert_decision(&peer, &q, 0, "user 61234 is not root, is not the owner 'daemon', is not in group 'adm', is not in group 'sys', "
                "is not in group 'vmm-balloon', which does not exist on this host");
}

static void names_that_do_not_exist_are_nobody(void **state) {
        Peer peer = stranger((char *) "user 61234");
        Question q = question(RIGHT_CHANGE);

        q.owner = "no-such-user";
        q.access_group = "no-such-group";
        assert_decision(&peer, &q, 0, "user 61234 is not root, is not the owner 'no-such-user', who does not exist on this host, "
                "is not in group 'no-such-group', which does not exist on this host");
}

static void the_groups_of_lesser_rights_do_not_give_greater_ones(void **state) {
        gid_t groups[] = { SYS };
        Peer peer = stranger((char *) "user 61234");
        Question q = question(RIGHT_BALLOON);

        peer.groups = groups;
        peer.n_groups = 1;
        q.read_group = "sys";
        assert_decision(&peer, &q, 0, "user 61234 is not root, is not in group 'vmm-balloon', which does not exist on this host");
        q.right = RIGHT_CHANGE;
        assert_decision(&peer, &q, 0, "user 61234 is not root");
        q.right = RIGHT_READ;
        assert_decision(&peer, &q, 1, "user 61234 is in group 'sys'");
}

static void root_the_owner_and_the_access_group_may_do_anything(void **state) {
        gid_t groups[] = { 7, ADM, 9 };
        Peer root = { .uid = 0, .pidfd = -EBADF, .name = (char *) "user 'root'" };
        Peer owner = { .uid = DAEMON, .gid = NOBODY_SPECIAL, .pidfd = -EBADF, .name = (char *) "user 'daemon'" };
        Peer by_group = stranger((char *) "user 61234"), by_first_group = by_group;

        by_group.groups = groups;
        by_group.n_groups = ELEMENTSOF(groups);
        by_first_group.gid = ADM;
        for (Right right = 0; right < _RIGHT_MAX; right++) {
                Question q = question(right);

                q.owner = "daemon";
                q.access_group = "adm";
                assert_decision(&root, &q, 1, "user 'root' may do anything");
                assert_decision(&owner, &q, 1, "user 'daemon' owns the machine");
                assert_decision(&by_group, &q, 1, "user 61234 is in group 'adm'");
                assert_decision(&by_first_group, &q, 1, "user 61234 is in group 'adm'");
        }
}

static void rights_have_names(void **state) {
        assert_int_equal(right_from_string("all"), -EINVAL);
        assert_int_equal(right_from_string(""), -EINVAL);
        for (Right right = 0; right < _RIGHT_MAX; right++)
                assert_int_equal(right_from_string(right_to_string(right)), right);
}

/* --- peers --- */

static void what_is_no_connection_has_no_peer(void **state) {
        int fds[2], fd;
        Peer peer;

        assert_int_equal(peer_read(-EBADF, &peer), -EBADF);
        assert_int_equal(pipe(fds), 0);
        assert_int_equal(peer_read(fds[0], &peer), -ENOTSOCK);
        (void) close(fds[0]);
        (void) close(fds[1]);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(peer_read(fd, &peer), -ENOTCONN);
        (void) close(fd);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0)
                assert_int_equal(peer_read(fd, &peer), -EPROTOTYPE);
        (void) close(fd);
        assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
        assert_int_equal(peer_read(fds[0], &peer), -EPROTOTYPE);
        (void) close(fds[0]);
        (void) close(fds[1]);
}

/* A connection whose client is a process of that user: its end that a server sees. Without privileges, of this process. */
typedef struct OtherPeer {
        pid_t pid;
        int fd;        /* the server's end */
        int client_fd; /* the client's; its process has it, too */
} OtherPeer;

static void run_child(const struct sockaddr_un *address, uid_t uid, const gid_t *groups, size_t n_groups, int report) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        if (setgroups(n_groups, groups) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0 ||
                connect(fd, (const struct sockaddr *) address, sizeof(*address)) < 0 || send_with_fds(report, "x", 1, &fd, 1) != 1)
                _exit(1);
        for (;;)
                (void) pause();
}

static void other_peer_open(OtherPeer *p, uid_t uid, const gid_t *groups, size_t n_groups) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char directory[] = "/tmp/vmm-peer-XXXXXX", byte;
        int listen_fd, report[2];
        size_t n = 1;

        assert_non_null(mkdtemp(directory));
        assert_int_equal(chmod(directory, 0755), 0);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", directory);
        listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(listen_fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(chmod(address.sun_path, 0666), 0);
        assert_int_equal(listen(listen_fd, 1), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, report), 0);
        if (geteuid() == 0) {
                p->pid = fork();
                assert_true(p->pid >= 0);
                if (p->pid == 0)
                        run_child(&address, uid, groups, n_groups, report[1]);
                assert_int_equal(recv_with_fds(report[0], &byte, 1, &p->client_fd, &n, 0), 1);
                assert_int_equal(n, 1);
        } else {
                p->pid = 0;
                p->client_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
                assert_int_equal(connect(p->client_fd, (struct sockaddr *) &address, sizeof(address)), 0);
        }
        p->fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        assert_true(p->fd >= 0);
        (void) close(listen_fd);
        (void) close(report[0]);
        (void) close(report[1]);
        (void) unlink(address.sun_path);
        (void) rmdir(directory);
}

static void other_peer_end(OtherPeer *p) {
        if (p->pid > 0) {
                (void) kill(p->pid, SIGKILL);
                (void) waitpid(p->pid, NULL, 0);
        }
        p->pid = 0;
}

static void other_peer_close(OtherPeer *p) {
        other_peer_end(p);
        p->fd = safe_close(p->fd);
        p->client_fd = safe_close(p->client_fd);
}

static void a_peer_is_what_it_was_when_it_connected(void **state) {
        const gid_t groups[] = { 9001, ADM };
        OtherPeer other;
        Peer peer;

        if (geteuid() != 0)
                skip_for_want_of("root");
        other_peer_open(&other, NOBODY_SPECIAL, groups, ELEMENTSOF(groups));
        assert_int_equal(peer_read(other.fd, &peer), 0);
        assert_int_equal(peer.uid, NOBODY_SPECIAL);
        assert_int_equal(peer.gid, NOBODY_SPECIAL);
        assert_int_equal(peer.pid, other.pid);
        assert_true(peer.start_time > 0);
        assert_true(peer_in_group(&peer, ADM));
        assert_true(peer_in_group(&peer, 9001));
        assert_true(peer_in_group(&peer, NOBODY_SPECIAL));
        assert_false(peer_in_group(&peer, 0));
        assert_string_equal(peer.name, "user 61234");
        peer_done(&peer);

        /* The connection outlives the process; who made it is still known, and that the process is gone: as long as its PID is in /proc, too. */
        (void) kill(other.pid, SIGKILL);
        assert_int_equal(waitid(P_PID, (id_t) other.pid, &(siginfo_t) {}, WEXITED | WNOWAIT), 0);
        assert_int_equal(peer_read(other.fd, &peer), 0);
        assert_int_equal(peer.uid, NOBODY_SPECIAL);
        if (peer.pidfd >= 0)
                assert_int_equal(peer.start_time, 0);
        peer_done(&peer);
        other_peer_end(&other);
        assert_int_equal(peer_read(other.fd, &peer), 0);
        assert_int_equal(peer.uid, NOBODY_SPECIAL);
        assert_int_equal(peer.start_time, 0);
        peer_done(&peer);
        other_peer_close(&other);
}

static void a_peer_may_be_in_very_many_groups(void **state) {
        static gid_t groups[5000];
        OtherPeer other;
        Peer peer;

        if (geteuid() != 0)
                skip_for_want_of("root");
        for (size_t i = 0; i < ELEMENTSOF(groups); i++)
                groups[i] = (gid_t) (100000 + i);
        other_peer_open(&other, NOBODY_SPECIAL, groups, ELEMENTSOF(groups));
        assert_int_equal(peer_read(other.fd, &peer), 0);
        assert_int_equal(peer.n_groups, ELEMENTSOF(groups));
        assert_true(peer_in_group(&peer, 104999));
        assert_false(peer_in_group(&peer, 105000));
        peer_done(&peer);
        other_peer_close(&other);
}

/* --- the service, with a polkit that says what the test wants --- */

typedef struct Answer {
        VarlinkClient *client;
        bool done;
        int error;
        char *error_id, *text;
} Answer;

typedef struct Fixture {
        sd_event *event;
        FakeBus bus;
        Service *service;
        char directory[32], path[64];
        OtherPeer peer;
} Fixture;

static int set_up_idle(void **state, uint64_t idle_usec) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        Fixture *f = calloc(1, sizeof(*f));
        int fd;

        assert_non_null(f);
        assert_true(sd_event_new(&f->event) >= 0);
        fake_bus_open(&f->bus, f->event);
        strcpy(f->directory, "/tmp/vmm-authorize-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->path, sizeof(f->path), "%s/socket", f->directory);
        strcpy(address.sun_path, f->path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, SOMAXCONN), 0);
        assert_int_equal(service_new(&f->service, f->event, idle_usec), 0);
        assert_int_equal(service_listen(f->service, fd), 0);
        other_peer_open(&f->peer, NOBODY_SPECIAL, NULL, 0);
        *state = f;
        return 0;
}

static int set_up(void **state) {
        return set_up_idle(state, UINT64_MAX);
}

static int tear_down(void **state) {
        Fixture *f = *state;

        other_peer_close(&f->peer);
        (void) service_free(f->service);
        fake_bus_close(&f->bus);
        (void) unlink(f->path);
        (void) rmdir(f->directory);
        sd_event_unref(f->event);
        free(f);
        return 0;
}

static void on_reply(VarlinkClient *client, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Answer *a = userdata;

        a->done = true;
        a->error = error;
        a->error_id = error_id ? strdup(error_id) : NULL;
        a->text = reply ? strdup(json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN)) : NULL;
}

static void answer_done(Answer *a) {
        a->client = varlink_client_unref(a->client);
        free(a->error_id);
        free(a->text);
        *a = (Answer) {};
}

static void ask_text(Fixture *f, Answer *a, int fd, const char *text) {
        _cleanup_json_ json_object *parameters = json_tokener_parse(text);

        assert_non_null(parameters);
        *a = (Answer) {};
        assert_int_equal(varlink_client_connect(f->path, &a->client), 0);
        assert_int_equal(varlink_client_attach_event(a->client, f->event), 0);
        if (fd >= 0)
                assert_int_equal(varlink_client_push_fd(a->client, dup(fd)), 0);
        assert_int_equal(varlink_client_call_async(a->client, "io.vmmd.Authorization.Check", parameters, 0, on_reply, a), 0);
}

static void ask(Fixture *f, Answer *a, const char *right, bool interactive) {
        char text[256];

        (void) snprintf(text, sizeof(text), "{\"fileDescriptorIndex\":0,\"right\":\"%s\",\"machine\":\"demo\","
                "\"method\":\"io.vmmd.Machine.Terminate\",\"owner\":\"daemon\",\"interactive\":%s}", right, interactive ? "true" : "false");
        ask_text(f, a, f->peer.fd, text);
}

/* Until nothing happens any more. */
static void pump(Fixture *f) {
        while (sd_event_run(f->event, 20 * USEC_PER_MSEC) > 0)
                ;
}

static void wait_for(Fixture *f, const Answer *a) {
        uint64_t deadline = now_usec() + 60 * USEC_PER_SEC;

        while (!a->done && now_usec() < deadline)
                assert_true(sd_event_run(f->event, USEC_PER_SEC) >= 0);
        assert_true(a->done);
}

static const char *peer_name(const Fixture *f) {
        static char name[64];
        Peer peer;

        assert_int_equal(peer_read(f->peer.fd, &peer), 0);
        (void) snprintf(name, sizeof(name), "%s", peer.name);
        peer_done(&peer);
        return name;
}

/* One question from beginning to end; "@" in `expected` is the peer's name. */
static void assert_answer(Fixture *f, const char *right, bool interactive, const char *expected) {
        _cleanup_free_ char *whole = NULL;
        const char *mark = strchr(expected, '@');
        Answer a;

        ask(f, &a, right, interactive);
        wait_for(f, &a);
        assert_int_equal(a.error, 0);
        assert_true(asprintf(&whole, "%.*s%s%s", (int) (mark ? mark - expected : 0), expected, mark ? peer_name(f) : "",
                mark ? mark + 1 : expected) >= 0);
        assert_string_equal(a.text, whole);
        answer_done(&a);
}

#define REFUSED "{\"authorized\":false,\"challenge\":false,\"permanent\":false,\"reason\":\"@ is not root, is not the owner 'daemon'"

static void polkits_no_is_a_no(void **state) {
        Fixture *f = *state;

        f->bus.polkit = FAKE_NO;
        assert_answer(f, "change", false, REFUSED ", and polkit refused (action io.vmmd.machine.change)\"}");
        assert_string_equal(f->bus.action, "io.vmmd.machine.change");
        assert_string_equal(f->bus.machine, "demo");
        assert_string_equal(f->bus.method, "io.vmmd.Machine.Terminate");
        assert_int_equal(f->bus.flags, 0);
        assert_string_equal(f->bus.cancellation_id, "");
        assert_int_equal(f->bus.uid, geteuid() == 0 ? NOBODY_SPECIAL : geteuid());
        assert_int_equal(f->bus.pid, f->peer.pid > 0 ? f->peer.pid : getpid());
        assert_true(f->bus.start_time > 0);
}

static void without_polkit_the_answer_says_so_and_what_would_help(void **state) {
        Fixture *f = *state;

        f->bus.polkit = FAKE_ABSENT;
        assert_answer(f, "change", false, REFUSED "; and polkit, which could allow it, is not here (The name is not activatable): "
                "an owner or an accessGroup in the definition of machine 'demo' would be needed\"}");
        f->bus.polkit = FAKE_MASKED;
        assert_answer(f, "balloon", false, REFUSED ", is not in group 'vmm-balloon', which does not exist on this host; and polkit, which could "
                "allow it, is not here (Unit polkit.service is masked.): membership of group 'vmm-balloon' would be enough\"}");
}

static void without_a_bus_the_answer_says_so(void **state) {
        Fixture *f = *state;

        assert_int_equal(setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/tmp/vmm-there-is-no-bus", true), 0);
        assert_answer(f, "change", false, REFUSED "; and polkit, which could allow it, is not here (No such file or directory): "
                "an owner or an accessGroup in the definition of machine 'demo' would be needed\"}");
}

static void a_bus_that_lets_nobody_in_is_none(void **state) {
        Fixture *f = *state;

        f->bus.refuses_clients = true;
        assert_answer(f, "change", false, REFUSED "; and polkit, which could allow it, is not here (the system bus closed the connection): "
                "an owner or an accessGroup in the definition of machine 'demo' would be needed\"}");
        assert_int_equal(f->bus.n_asked, 0);
        f->bus.refuses_clients = false;
        f->bus.polkit = FAKE_NO;
        assert_answer(f, "change", false, REFUSED ", and polkit refused (action io.vmmd.machine.change)\"}");
}

static void a_polkit_that_fails_is_a_no(void **state) {
        Fixture *f = *state;
        const char *hint = "an owner or an accessGroup in the definition of machine 'demo' would be needed\"}";
        char expected[512];

        f->bus.polkit = FAKE_ERROR;
        (void) snprintf(expected, sizeof(expected), REFUSED "; and polkit, which could allow it, cannot be asked (Rules are broken): %s", hint);
        assert_answer(f, "change", false, expected);
        f->bus.polkit = FAKE_GARBAGE;
        (void) snprintf(expected, sizeof(expected), REFUSED "; and polkit, which could allow it, cannot be asked (%s): %s",
                strerrordesc_np(ENXIO), hint);
        assert_answer(f, "change", false, expected);
}

static void a_bus_that_goes_away_is_a_no_and_is_found_again(void **state) {
        Fixture *f = *state;
        Answer a;

        f->bus.polkit = FAKE_HANG_UP;
        ask(f, &a, "change", false);
        wait_for(f, &a);
        assert_int_equal(a.error, 0);
        assert_non_null(strstr(a.text, "{\"authorized\":false,\"challenge\":false,"));
        assert_non_null(strstr(a.text, "cannot be asked"));
        answer_done(&a);
        f->bus.polkit = FAKE_YES;
        assert_answer(f, "change", false, "{\"authorized\":true,\"challenge\":false,\"permanent\":false,\"reason\":\"@ is allowed to by polkit "
                "(action io.vmmd.machine.change)\"}");
        assert_int_equal(f->bus.n_asked, 2);
}

static void polkit_asks_people_only_where_the_call_allows_it(void **state) {
        Fixture *f = *state;

        f->bus.polkit = FAKE_CHALLENGE;
        assert_answer(f, "change", false, "{\"authorized\":false,\"challenge\":true,\"permanent\":false,\"reason\":\"@ is not root, is not the "
                "owner 'daemon', and polkit wants to ask for a password first (action io.vmmd.machine.change), for which this call does not "
                "allow it\"}");
        assert_int_equal(f->bus.flags, 0);
        assert_answer(f, "change", true, "{\"authorized\":false,\"challenge\":true,\"permanent\":false,\"reason\":\"@ is not root, is not the "
                "owner 'daemon', and polkit wants to ask for a password first (action io.vmmd.machine.change), but found no agent to ask "
                "through\"}");
        assert_int_equal(f->bus.flags, 1);
        assert_true(strlen(f->bus.cancellation_id) > 0);
        f->bus.polkit = FAKE_DISMISSED;
        assert_answer(f, "change", true, REFUSED ", and polkit's question for a password was dismissed (action io.vmmd.machine.change)\"}");
}

static void polkits_yes_is_a_yes_for_once(void **state) {
        Fixture *f = *state;

        f->bus.polkit = FAKE_YES;
        assert_answer(f, "read", false, "{\"authorized\":true,\"challenge\":false,\"permanent\":false,\"reason\":\"@ is allowed to by polkit "
                "(action io.vmmd.machine.read)\"}");
        assert_string_equal(f->bus.action, "io.vmmd.machine.read");
        assert_answer(f, "balloon", false, "{\"authorized\":true,\"challenge\":false,\"permanent\":false,\"reason\":\"@ is allowed to by polkit "
                "(action io.vmmd.machine.balloon)\"}");
        assert_string_equal(f->bus.action, "io.vmmd.machine.balloon");
}

static void the_definitions_yes_is_for_good_and_polkit_is_not_asked(void **state) {
        Fixture *f = *state;

        f->bus.polkit = FAKE_NO;
        other_peer_close(&f->peer);
        other_peer_open(&f->peer, DAEMON, NULL, 0);
        if (geteuid() != 0)
                skip_for_want_of("root");
        assert_answer(f, "change", false, "{\"authorized\":true,\"challenge\":false,\"permanent\":true,\"reason\":\"@ owns the machine\"}");
        assert_int_equal(f->bus.n_asked, 0);
}

static void a_dialog_ends_when_nobody_waits_for_it(void **state) {
        Fixture *f = *state;
        Answer a, b;

        f->bus.polkit = FAKE_HOLD;
        ask(f, &a, "change", true);
        pump(f);
        ask(f, &b, "change", true);
        pump(f);
        assert_int_equal(f->bus.n_held, 2);
        assert_int_equal(f->bus.n_cancelled, 0);
        answer_done(&b);
        pump(f);
        assert_int_equal(f->bus.n_cancelled, 1);
        assert_string_equal(f->bus.cancelled_id, f->bus.cancellation_id);
        assert_false(a.done);
        fake_bus_release(&f->bus, FAKE_YES);
        fake_bus_release(&f->bus, FAKE_YES);
        wait_for(f, &a);
        assert_non_null(strstr(a.text, "\"authorized\":true"));
        answer_done(&a);
}

static void many_questions_of_one_user_wait_for_each_other(void **state) {
        Fixture *f = *state;
        Answer answers[100];
        size_t done = 0;

        f->bus.polkit = FAKE_HOLD;
        for (size_t i = 0; i < ELEMENTSOF(answers); i++)
                ask(f, &answers[i], "change", false);
        pump(f);
        assert_int_equal(f->bus.n_held, 16);
        for (size_t i = 0; i < ELEMENTSOF(answers); i++) {
                while (f->bus.n_held == 0)
                        assert_true(sd_event_run(f->event, 60 * USEC_PER_SEC) > 0);
                assert_true(f->bus.n_held <= 16);
                fake_bus_release(&f->bus, i % 2 == 0 ? FAKE_YES : FAKE_NO);
        }
        pump(f);
        for (size_t i = 0; i < ELEMENTSOF(answers); i++) {
                done += answers[i].done && answers[i].error == 0;
                answer_done(&answers[i]);
        }
        assert_int_equal(done, ELEMENTSOF(answers));
        assert_int_equal(f->bus.n_asked, ELEMENTSOF(answers));
}

static void the_dialogs_of_one_user_do_not_keep_others_waiting(void **state) {
        OtherPeer first;
        Fixture *f = *state;
        Answer held[8], more, other;

        if (geteuid() != 0)
                skip_for_want_of("root");
        f->bus.polkit = FAKE_HOLD;
        for (size_t i = 0; i < ELEMENTSOF(held); i++)
                ask(f, &held[i], "change", true);
        pump(f);
        assert_int_equal(f->bus.n_held, 4);
        /* Nor does he fill vmmd's list of those who wait for a dialog. */
        ask(f, &more, "change", true);
        wait_for(f, &more);
        assert_non_null(strstr(more.text, "\"authorized\":false"));
        assert_non_null(strstr(more.text, "enough to ask the same user"));
        answer_done(&more);
        first = f->peer;
        other_peer_open(&f->peer, NOBODY_SPECIAL + 1, NULL, 0);
        f->bus.polkit = FAKE_YES;
        ask(f, &other, "change", true);
        wait_for(f, &other);
        assert_non_null(strstr(other.text, "\"authorized\":true"));
        answer_done(&other);
        for (size_t i = 0; i < ELEMENTSOF(held); i++)
                answer_done(&held[i]);
        other_peer_close(&first);
}

static void a_process_that_has_ended_is_not_put_to_polkit(void **state) {
        Fixture *f = *state;
        Answer a;

        if (geteuid() != 0)
                skip_for_want_of("root");
        f->bus.polkit = FAKE_YES;
        other_peer_end(&f->peer);
        ask(f, &a, "change", false);
        wait_for(f, &a);
        assert_non_null(strstr(a.text, "\"authorized\":false"));
        assert_non_null(strstr(a.text, "polkit cannot be asked about a process that has ended"));
        assert_int_equal(f->bus.n_asked, 0);
        answer_done(&a);
}

static void refuses_questions_that_make_no_sense(void **state) {
#define REST "\"right\":\"read\",\"method\":\"a.b.C\",\"interactive\":false"
        static const struct {
                const char *text, *parameter;
                bool without_fd;
        } cases[] = {
                { "{\"fileDescriptorIndex\":0,\"machine\":\"../x\"," REST "}", "machine" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"\"," REST "}", "machine" },
                { "{\"fileDescriptorIndex\":1,\"machine\":\"m\"," REST "}", "fileDescriptorIndex" },
                { "{\"fileDescriptorIndex\":-1,\"machine\":\"m\"," REST "}", "fileDescriptorIndex" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\"," REST "}", "fileDescriptorIndex", true },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"right\":\"all\",\"method\":\"a.b.C\",\"interactive\":false}", "right" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"right\":\"read\",\"method\":\"a\\nb\",\"interactive\":false}", "method" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"owner\":\"\"," REST "}", "owner" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"accessGroup\":\"a'; b\"," REST "}", "accessGroup" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"readGroup\":\"\\u001b\"," REST "}", "readGroup" },
                { "{\"fileDescriptorIndex\":0,\"machine\":\"m\",\"uid\":0," REST "}", "uid" },
        };
        Fixture *f = *state;

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                char expected[64];
                Answer a;

                ask_text(f, &a, cases[i].without_fd ? -1 : f->peer.fd, cases[i].text);
                wait_for(f, &a);
                assert_int_equal(a.error, -EREMOTEIO);
                assert_string_equal(a.error_id, "org.varlink.service.InvalidParameter");
                (void) snprintf(expected, sizeof(expected), "{\"parameter\":\"%s\"}", cases[i].parameter);
                assert_string_equal(a.text, expected);
                answer_done(&a);
        }
        assert_int_equal(f->bus.n_asked, 0);
}

static void a_listening_socket_is_nobodys_connection(void **state) {
        Fixture *f = *state;
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        Answer a;

        ask_text(f, &a, fd, "{\"fileDescriptorIndex\":0,\"machine\":\"m\"," REST "}");
        (void) close(fd);
        wait_for(f, &a);
        assert_string_equal(a.error_id, "org.varlink.service.InvalidParameter");
        answer_done(&a);
}

/* A child asks, as some user who is in no unit of ours. */
static void only_a_machine_may_ask_about_itself(void **state) {
        Fixture *f = *state;
        int status, report[2];
        char text[512] = {};
        ssize_t n;
        pid_t pid;

        if (geteuid() != 0)
                skip_for_want_of("root");
        assert_int_equal(chmod(f->directory, 0755), 0);
        assert_int_equal(chmod(f->path, 0666), 0);
        assert_int_equal(pipe(report), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                _cleanup_json_ json_object *parameters = json_tokener_parse("{\"fileDescriptorIndex\":0,\"machine\":\"m\"," REST "}"), *reply = NULL;
                _cleanup_free_ char *error_id = NULL;
                VarlinkClient *client = NULL;

                if (setresuid(NOBODY_SPECIAL, NOBODY_SPECIAL, NOBODY_SPECIAL) < 0 || varlink_client_connect(f->path, &client) < 0 ||
                        varlink_client_push_fd(client, dup(f->peer.fd)) != 0 ||
                        varlink_client_call(client, "io.vmmd.Authorization.Check", parameters, &reply, &error_id) != -EREMOTEIO)
                        _exit(1);
                (void) dprintf(report[1], "%s %s", error_id, json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN));
                _exit(0);
        }
        while (waitpid(pid, &status, WNOHANG) == 0)
                assert_true(sd_event_run(f->event, 10 * USEC_PER_MSEC) >= 0);
        assert_int_equal(status, 0);
        n = read(report[0], text, sizeof(text) - 1);
        assert_true(n > 0);
        assert_string_equal(text,
                "org.varlink.service.PermissionDenied {\"reason\":\"Only vmm@m.service may ask about this machine.\"}");
        (void) close(report[0]);
        (void) close(report[1]);
        assert_int_equal(f->bus.n_asked, 0);
}

#define IDLE_USEC (50 * USEC_PER_MSEC)

static int set_up_impatient(void **state) {
        return set_up_idle(state, IDLE_USEC);
}

/* Has somebody wait for an answer; false where the idle time was over before we got that far. */
static bool hold_somebody(Fixture *f, Answer *a) {
        f->bus.polkit = FAKE_HOLD;
        ask(f, a, "change", false);
        while (f->bus.n_held == 0 && sd_event_get_state(f->event) != SD_EVENT_FINISHED)
                assert_true(sd_event_run(f->event, 60 * USEC_PER_SEC) >= 0);
        return f->bus.n_held > 0;
}

static void ends_when_nobody_asks_and_not_before(void **state) {
        uint64_t idle_usec = IDLE_USEC, until;
        Fixture *f = *state;
        Answer a;

        /* On a host that is busy. */
        while (!hold_somebody(f, &a)) {
                answer_done(&a);
                assert_int_equal(tear_down(state), 0);
                idle_usec *= 4;
                assert_true(idle_usec < 60 * USEC_PER_SEC);
                assert_int_equal(set_up_idle(state, idle_usec), 0);
                f = *state;
        }
        /* Somebody waits for an answer: three times the idle time, and it is still there. */
        for (until = now_usec() + 3 * idle_usec; now_usec() < until;)
                assert_true(sd_event_run(f->event, 10 * USEC_PER_MSEC) >= 0);
        assert_int_not_equal(sd_event_get_state(f->event), SD_EVENT_FINISHED);
        fake_bus_release(&f->bus, FAKE_YES);
        wait_for(f, &a);
        assert_non_null(strstr(a.text, "\"authorized\":true"));
        answer_done(&a);
        assert_int_equal(sd_event_loop(f->event), 0);
}

int main(void) {
#define SERVICE_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_stranger_may_nothing_and_hears_why),
                cmocka_unit_test(names_that_do_not_exist_are_nobody),
                cmocka_unit_test(the_groups_of_lesser_rights_do_not_give_greater_ones),
                cmocka_unit_test(root_the_owner_and_the_access_group_may_do_anything),
                cmocka_unit_test(rights_have_names),
                cmocka_unit_test(what_is_no_connection_has_no_peer),
                cmocka_unit_test(a_peer_is_what_it_was_when_it_connected),
                cmocka_unit_test(a_peer_may_be_in_very_many_groups),
                SERVICE_TEST(polkits_no_is_a_no),
                SERVICE_TEST(without_polkit_the_answer_says_so_and_what_would_help),
                SERVICE_TEST(without_a_bus_the_answer_says_so),
                SERVICE_TEST(a_bus_that_lets_nobody_in_is_none),
                SERVICE_TEST(a_polkit_that_fails_is_a_no),
                SERVICE_TEST(a_bus_that_goes_away_is_a_no_and_is_found_again),
                SERVICE_TEST(polkit_asks_people_only_where_the_call_allows_it),
                SERVICE_TEST(polkits_yes_is_a_yes_for_once),
                SERVICE_TEST(the_definitions_yes_is_for_good_and_polkit_is_not_asked),
                SERVICE_TEST(a_dialog_ends_when_nobody_waits_for_it),
                SERVICE_TEST(many_questions_of_one_user_wait_for_each_other),
                SERVICE_TEST(the_dialogs_of_one_user_do_not_keep_others_waiting),
                SERVICE_TEST(a_process_that_has_ended_is_not_put_to_polkit),
                SERVICE_TEST(refuses_questions_that_make_no_sense),
                SERVICE_TEST(a_listening_socket_is_nobodys_connection),
                SERVICE_TEST(only_a_machine_may_ask_about_itself),
                cmocka_unit_test_setup_teardown(ends_when_nobody_asks_and_not_before, set_up_impatient, tear_down),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
