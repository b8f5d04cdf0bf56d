/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>
#include <systemd/sd-login.h>

#include "config.h"
#include "definition.h"
#include "interfaces.h"
#include "json-util.h"
#include "log.h"
#include "polkit.h"
#include "service.h"

#define METHOD_SIZE_MAX 128
#define ACCOUNT_SIZE_MAX 64

/* Each machine's vmmd is a user of its own. */
#define CONNECTIONS_MAX 4096
#define CONNECTIONS_PER_MACHINE_MAX 128

/* A question that polkit has. */
typedef struct Request {
        struct Request *next;
        Service *service;
        VarlinkCall *call;
        PolkitCheck *check;
        Peer peer;
        Question question; /* its texts are the call's */
        char *why_not;     /* what the definition said */
} Request;

struct Service {
        sd_event *event;
        VarlinkServer *server;
        Polkit *polkit;
        Request *requests;
        sd_event_source *idle;
        uint64_t idle_usec;
        LogRateLimit log_limit;
};

static Request *request_free(Request *q) {
        if (!q)
                return NULL;
        for (Request **p = &q->service->requests; *p; p = &(*p)->next)
                if (*p == q) {
                        *p = q->next;
                        break;
                }
        if (q->call)
                varlink_call_on_close(q->call, NULL, NULL);
        (void) varlink_call_unref(q->call);
        (void) polkit_check_cancel(q->check);
        peer_done(&q->peer);
        free(q->why_not);
        return mfree(q);
}
DEFINE_CLEANUP(Request, request_free)

/* --- answering --- */

/* So that an administrator sees who does what; and who tries, within reason. */
static void record(const Request *q, bool authorized, const char *reason) {
        if (q->question.right == RIGHT_READ && authorized)
                return;
        if (!authorized && !log_ratelimit(&q->service->log_limit, NULL))
                return;
        (void) log_full_errno(authorized ? LOG_INFO : LOG_NOTICE, 0, "%s %s on machine '%s': %s.", authorized ? "Allowed" : "Refused",
                q->question.method, q->question.machine, reason);
}

static int answer(const Request *q, bool authorized, bool challenge, bool permanent, const char *reason) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r;

        record(q, authorized, reason);
        if (!reply)
                return -ENOMEM;
        r = json_add_boolean(reply, "authorized", authorized);
        if (r >= 0)
                r = json_add_boolean(reply, "challenge", challenge);
        if (r >= 0)
                r = json_add_boolean(reply, "permanent", permanent);
        if (r >= 0)
                r = json_add_string(reply, "reason", reason);
        return r < 0 ? r : varlink_call_reply(q->call, reply);
}

/* What polkit said, as the end of a sentence. */
static int explain(const Request *q, PolkitAnswer polkit_answer, const char *error, char **ret) {
        const char *right = right_to_string(q->question.right);
        _cleanup_free_ char *hint = NULL;
        int r;

        switch (polkit_answer) {
        case POLKIT_YES:
                r = asprintf(ret, "%s is allowed to by polkit (action io.vmmd.machine.%s)", q->peer.name, right);
                break;
        case POLKIT_NO:
                r = asprintf(ret, "%s, and polkit refused (action io.vmmd.machine.%s)", q->why_not, right);
                break;
        case POLKIT_CHALLENGE:
                r = asprintf(ret, "%s, and polkit wants to ask for a password first (action io.vmmd.machine.%s)%s", q->why_not, right,
                        q->question.interactive ? ", but found no agent to ask through" : ", for which this call does not allow it");
                break;
        case POLKIT_DISMISSED:
                r = asprintf(ret, "%s, and polkit's question for a password was dismissed (action io.vmmd.machine.%s)", q->why_not, right);
                break;
        default:
                if (decide_hint(&q->question, &hint) < 0)
                        return -ENOMEM;
                r = asprintf(ret, "%s; and polkit, which could allow it, %s (%s): %s", q->why_not,
                        polkit_answer == POLKIT_ABSENT ? "is not here" : "cannot be asked", error ?: "unknown error", hint);
        }
        return r < 0 ? -ENOMEM : 0;
}

static void on_polkit(PolkitAnswer polkit_answer, const char *error, void *userdata) {
        _cleanup_(request_freep) Request *q = userdata;
        _cleanup_free_ char *reason = NULL;
        int r;

        q->check = NULL;
        r = explain(q, polkit_answer, error, &reason);
        if (r < 0)
                reason = NULL;
        else
                r = answer(q, polkit_answer == POLKIT_YES, polkit_answer == POLKIT_CHALLENGE, false, reason);
        if (r < 0 && r != -ENOTCONN && r != -EALREADY)
                (void) varlink_call_error_errno(q->call, r);
}

/* --- asking --- */

/* vmmd went away, or its client did. */
static void on_asker_gone(VarlinkCall *call, void *userdata) {
        (void) request_free(userdata);
}

static bool is_plain(const char *s, size_t maximum) {
        for (const char *p = s; *p; p++)
                if (!(*p >= 'a' && *p <= 'z') && !(*p >= 'A' && *p <= 'Z') && !(*p >= '0' && *p <= '9') && !strchr("._-", *p))
                        return false;
        return *s && strlen(s) <= maximum;
}

/* Texts that go into messages, logs and polkit's rules: returns the name of the parameter that is unfit, or NULL. */
static const char *unfit_parameter(const Question *q) {
        if (!machine_name_is_valid(q->machine))
                return "machine";
        if (!is_plain(q->method, METHOD_SIZE_MAX))
                return "method";
        if (q->owner && !is_plain(q->owner, ACCOUNT_SIZE_MAX))
                return "owner";
        if (q->access_group && !is_plain(q->access_group, ACCOUNT_SIZE_MAX))
                return "accessGroup";
        if (!is_plain(q->read_group, ACCOUNT_SIZE_MAX))
                return "readGroup";
        return NULL;
}

static Question read_question(json_object *parameters) {
        return (Question) {
                .right = (Right) right_from_string(json_get_string(parameters, "right", "change")),
                .machine = json_get_string(parameters, "machine", ""),
                .method = json_get_string(parameters, "method", ""),
                .owner = json_get_string(parameters, "owner", NULL),
                .access_group = json_get_string(parameters, "accessGroup", NULL),
                .read_group = json_get_string(parameters, "readGroup", READ_GROUP_DEFAULT),
                .interactive = json_get_boolean(parameters, "interactive", false),
        };
}

/* The socket is open to the users that vmmds run as. None may put questions to people in the name of another machine. Root may, and who runs
 * us by hand. */
static int check_asker(Service *s, VarlinkCall *call, const char *machine) {
        _cleanup_free_ char *unit = NULL, *expected = NULL;
        int r;

        if (varlink_call_peer_uid(call) == 0 || varlink_call_peer_uid(call) == geteuid())
                return 1;
        if (asprintf(&expected, "vmm@%s.service", machine) < 0) {
                expected = NULL;
                return -ENOMEM;
        }
        r = sd_peer_get_unit(varlink_call_peer_fd(call), &unit);
        if (r >= 0 && streq(unit, expected))
                return 1;
        if (log_ratelimit(&s->log_limit, NULL))
                log_warning("Process %i of user %u asks in the name of %s, but belongs to %s; refused.", varlink_call_peer_pid(call),
                        varlink_call_peer_uid(call), expected, r < 0 ? "no service" : unit);
        return 0;
}

static int ask_polkit(Request *q) {
        _cleanup_free_ char *reason = NULL;
        int r;

        /* Nothing that could be named to it. */
        if (q->peer.pid == 0 || q->peer.start_time == 0) {
                r = asprintf(&reason, "%s; and polkit cannot be asked about a process that %s", q->why_not,
                        q->peer.pid == 0 ? "is in another PID namespace" : "has ended");
                if (r < 0) {
                        reason = NULL;
                        return -ENOMEM;
                }
                return answer(q, false, false, false, reason);
        }
        r = polkit_check(q->service->polkit, &q->peer, &q->question, on_polkit, q, &q->check);
        if (r == -EUSERS) {
                r = asprintf(&reason, "%s; and polkit has enough to ask the same user about this machine already", q->why_not);
                if (r < 0) {
                        reason = NULL;
                        return -ENOMEM;
                }
                return answer(q, false, false, false, reason);
        }
        if (r < 0)
                return r;
        varlink_call_on_close(q->call, on_asker_gone, q);
        return 1;
}

static int on_check(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_(request_freep) Request *q = NULL;
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;
        Service *s = userdata;
        const char *unfit;
        int r;

        (void) sd_event_source_set_time_relative(s->idle, s->idle_usec);
        q = calloc(1, sizeof(*q));
        if (!q)
                return -ENOMEM;
        *q = (Request) { .next = s->requests, .service = s, .call = varlink_call_ref(call), .question = read_question(parameters) };
        q->peer.pidfd = -EBADF;
        s->requests = q;

        unfit = unfit_parameter(&q->question);
        if (unfit)
                return varlink_call_error_invalid_parameter(call, unfit);
        r = check_asker(s, call, q->question.machine);
        if (r <= 0)
                return r < 0 ? r : varlink_call_error_denied(call, "Only vmm@%s.service may ask about this machine.", q->question.machine);
        fd = varlink_call_take_fd(call, json_get_integer(parameters, "fileDescriptorIndex", -1));
        if (fd < 0 || peer_read(fd, &q->peer) < 0)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");

        r = decide(&q->peer, &q->question, &reason);
        if (r > 0)
                return answer(q, true, false, true, reason);
        if (r == 0) {
                q->why_not = TAKE_PTR(reason);
                r = ask_polkit(q);
                if (r > 0)
                        TAKE_PTR(q);
        }
        return r;
}

/* --- life --- */

/* Nothing is lost where somebody connects just now: what we have not accepted waits in the socket, which is systemd's, and starts us again. */
static int on_idle(sd_event_source *source, uint64_t usec, void *userdata) {
        Service *s = userdata;

        if (varlink_server_n_connections(s->server) == 0)
                return sd_event_exit(s->event, 0);
        (void) sd_event_source_set_time_relative(s->idle, s->idle_usec);
        return sd_event_source_set_enabled(s->idle, SD_EVENT_ONESHOT);
}

static int add_idle_timer(Service *s) {
        int r;

        r = sd_event_add_time(s->event, &s->idle, CLOCK_MONOTONIC, UINT64_MAX, 0, on_idle, s);
        if (r < 0 || s->idle_usec == UINT64_MAX)
                return r;
        return sd_event_source_set_time_relative(s->idle, s->idle_usec);
}

static int make_server(Service *s) {
        static const VarlinkMethod methods[] = { { "Check", on_check }, {} };
        static const VarlinkLimits limits = { .connections = CONNECTIONS_MAX, .connections_per_uid = CONNECTIONS_PER_MACHINE_MAX };
        int r;

        r = varlink_server_new(&s->server, s->event);
        if (r < 0)
                return r;
        varlink_server_set_limits(s->server, &limits);
        r = varlink_server_set_info(s->server, "vmmd", "vmm-authorize", PROJECT_VERSION, "");
        return r < 0 ? r : varlink_server_add_interface(s->server, varlink_text_io_vmmd_Authorization, methods, s);
}

int service_new(Service **ret, sd_event *event, uint64_t idle_usec) {
        _cleanup_(service_freep) Service *s = NULL;
        int r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->event = sd_event_ref(event);
        s->idle_usec = idle_usec;
        s->log_limit = (LogRateLimit) { .interval_usec = 30 * USEC_PER_SEC, .burst = 100 };
        r = polkit_new(&s->polkit, event);
        if (r >= 0)
                r = add_idle_timer(s);
        if (r >= 0)
                r = make_server(s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

Service *service_free(Service *s) {
        if (!s)
                return NULL;
        while (s->requests)
                (void) request_free(s->requests);
        (void) varlink_server_free(s->server);
        (void) polkit_free(s->polkit);
        sd_event_source_disable_unref(s->idle);
        sd_event_unref(s->event);
        return mfree(s);
}

int service_listen(Service *s, int fd) {
        return varlink_server_listen_fd(s->server, fd);
}
