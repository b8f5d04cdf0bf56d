/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <grp.h>
#include <stdio.h>

#include "access.h"
#include "client.h"
#include "json-util.h"
#include "log.h"

#define INTERACTION_NEEDED "io.systemd.InteractiveAuthenticationRequired"

/* Questions under way at once; more wait for their turn. Those for which somebody may be asked may take minutes: they do not wait, they are refused. */
#define CHECKS_MAX 64
#define INTERACTIVE_CHECKS_MAX 16

/* A call that waits for vmm-authorize. Each has a connection of its own: polkit may be asking somebody for a password,
 * for which others need not wait. */
typedef struct Check {
        struct Check *next;
        Access *access;
        VarlinkCall *call;
        VarlinkClient *client;
        unsigned right;
        bool interactive;
} Check;

struct Access {
        sd_event *event;
        const MachineDefinition *definition;
        const char *authorize_path;
        Check *running, *waiting; /* the latter oldest first */
        size_t n_running, n_interactive;
        sd_event_source *turn;
        LogRateLimit log_limit;
};

static const char *right_to_string(unsigned right) {
        switch (right) {
        case ACCESS_READ:
                return "read";
        case ACCESS_BALLOON:
                return "balloon";
        default:
                return "change";
        }
}

/* Who may do more may do less. */
static unsigned right_with_lesser(unsigned right) {
        switch (right) {
        case ACCESS_READ:
                return ACCESS_READ;
        case ACCESS_BALLOON:
                return ACCESS_READ | ACCESS_BALLOON;
        default:
                return ACCESS_READ | ACCESS_BALLOON | ACCESS_CHANGE;
        }
}

static bool unlink_check(Check **list, const Check *check) {
        for (; *list; list = &(*list)->next)
                if (*list == check) {
                        *list = check->next;
                        return true;
                }
        return false;
}

/* Somebody has come or gone: on the next turn of the loop it is seen who may ask. */
static void schedule(Access *a) {
        if (a->waiting && a->n_running < CHECKS_MAX)
                (void) sd_event_source_set_enabled(a->turn, SD_EVENT_ONESHOT);
}

static Check *check_free(Check *check) {
        Access *a;

        if (!check)
                return NULL;
        a = check->access;
        if (unlink_check(&a->running, check))
                a->n_running--;
        else
                (void) unlink_check(&a->waiting, check);
        if (check->interactive)
                a->n_interactive--;
        if (check->call)
                varlink_call_on_close(check->call, NULL, NULL);
        (void) varlink_call_unref(check->call);
        (void) varlink_client_unref(check->client);
        schedule(a);
        return mfree(check);
}
DEFINE_CLEANUP(Check, check_free)

/* The client went away: whoever asks polkit for it may stop. */
static void on_client_gone(VarlinkCall *call, void *userdata) {
        (void) check_free(userdata);
}

static int deny_unasked(Access *a, VarlinkCall *call, int error, const char *error_id) {
        static const char text[] = "vmm-authorize, which tells who may do what with machine '%s', cannot be asked: %s. Root may do it%s%s.";
        const MachineDefinition *d = a->definition;
        const char *why = error_id ?: strerrordesc_np(abs(error)) ?: "unknown error", *group = d->access_group;

        if (log_ratelimit(&a->log_limit, NULL))
                log_warning("Cannot ask vmm-authorize about a client: %s.", why);
        return varlink_call_error_denied(call, text, d->name, why, group ? ", and members of group " : "", group ?: "");
}

static int reply_refusal(VarlinkCall *call, const Check *check, json_object *answer) {
        const char *reason = json_get_string(answer, "reason", "The answer was no, without a reason.");
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        if (check->interactive || !json_get_boolean(answer, "challenge", false))
                return varlink_call_error_denied(call, "%s", reason);
        r = parameters ? json_add_string(parameters, "reason", reason) : -ENOMEM;
        return r < 0 ? r : varlink_call_error(call, INTERACTION_NEEDED, parameters);
}

static void on_answer(VarlinkClient *client, int error, const char *error_id, json_object *answer, bool continues, void *userdata) {
        _cleanup_(check_freep) Check *check = userdata;
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = TAKE_PTR(check->call);
        int r;

        /* Before the method runs, which may want to be told, too. */
        varlink_call_on_close(call, NULL, NULL);
        if (error < 0)
                r = deny_unasked(check->access, call, error, error_id);
        else if (!json_get_boolean(answer, "authorized", false))
                r = reply_refusal(call, check, answer);
        else {
                if (json_get_boolean(answer, "permanent", false))
                        varlink_call_grant(call, right_with_lesser(check->right));
                r = varlink_call_admit(call);
        }
        if (r < 0 && r != -ENOTCONN && r != -EALREADY)
                (void) varlink_call_error_errno(call, r);
}

static int make_question(const Check *check, int fd_index, json_object **ret) {
        const MachineDefinition *d = check->access->definition;
        _cleanup_json_ json_object *question = json_object_new_object();
        int r;

        if (!question)
                return -ENOMEM;
        r = json_add_integer(question, "fileDescriptorIndex", fd_index);
        if (r >= 0)
                r = json_add_string(question, "right", right_to_string(check->right));
        if (r >= 0)
                r = json_add_string(question, "machine", d->name);
        if (r >= 0)
                r = json_add_string(question, "method", varlink_call_method(check->call));
        if (r >= 0)
                r = json_add_string(question, "owner", d->owner);
        if (r >= 0)
                r = json_add_string(question, "accessGroup", d->access_group);
        if (r >= 0)
                r = json_add_string(question, "readGroup", d->read_group);
        if (r >= 0)
                r = json_add_boolean(question, "interactive", check->interactive);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(question);
        return 0;
}

/* Hands the client's connection to vmm-authorize, with the question. */
static int ask(Check *check) {
        _cleanup_json_ json_object *question = NULL;
        _cleanup_close_ int fd = -EBADF;
        int peer, index, r;

        r = varlink_client_connect(check->access->authorize_path, &check->client);
        if (r >= 0)
                r = varlink_client_attach_event(check->client, check->access->event);
        if (r < 0)
                return r;
        peer = varlink_call_peer_fd(check->call);
        if (peer < 0)
                return peer;
        fd = fcntl(peer, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
                return -errno;
        index = varlink_client_push_fd(check->client, fd);
        if (index < 0)
                return index;
        TAKE_FD(fd);
        r = make_question(check, index, &question);
        if (r < 0)
                return r;
        /* vmm-authorize limits how long polkit may take to ask somebody. */
        if (check->interactive)
                varlink_client_set_timeout(check->client, UINT64_MAX);
        return varlink_client_call_async(check->client, "io.vmmd.Authorization.Check", question, 0, on_answer, check);
}

static void start(Check *check) {
        Access *a = check->access;
        VarlinkCall *call;
        int r;

        (void) unlink_check(&a->waiting, check);
        check->next = a->running;
        a->running = check;
        a->n_running++;
        r = ask(check);
        if (r >= 0)
                return;
        call = TAKE_PTR(check->call);
        varlink_call_on_close(call, NULL, NULL);
        (void) (r == -ENOMEM ? varlink_call_error_errno(call, r) : deny_unasked(a, call, r, NULL));
        (void) varlink_call_unref(call);
        (void) check_free(check);
}

static int on_turn(sd_event_source *source, void *userdata) {
        Access *a = userdata;

        if (a->waiting && a->n_running < CHECKS_MAX)
                start(a->waiting);
        schedule(a);
        return 0;
}

static int authorize(VarlinkCall *call, unsigned right, void *userdata) {
        Check *check, **end;
        Access *a = userdata;
        bool interactive;
        int r;

        r = varlink_call_is_privileged(call);
        if (r != 0)
                return r;
        if ((varlink_call_granted(call) & right) == right)
                return 1;
        interactive = json_get_boolean(varlink_call_parameters(call), "allowInteractiveAuthentication", false);
        if (interactive && a->n_interactive >= INTERACTIVE_CHECKS_MAX)
                return varlink_call_error_denied(call, "So many users are being asked for passwords for machine '%s' that no more can be; try again later.",
                        a->definition->name);

        check = calloc(1, sizeof(*check));
        if (!check)
                return -ENOMEM;
        *check = (Check) { .access = a, .call = varlink_call_ref(call), .right = right, .interactive = interactive };
        varlink_call_on_close(call, on_client_gone, check);
        for (end = &a->waiting; *end; end = &(*end)->next)
                ;
        *end = check;
        if (interactive)
                a->n_interactive++;
        schedule(a);
        return -EINPROGRESS;
}

/* In its unit vmmd runs with the accessGroup, and sees neither other groups (PrivateUsers=) nor their names. */
static void set_access_group(VarlinkServer *server, const MachineDefinition *d) {
        struct group *group;

        if (!d->access_group)
                return;
        group = getgrnam(d->access_group);
        if (group || getgid() != 0)
                varlink_server_set_access_group(server, group ? group->gr_gid : getgid());
        else
                log_warning("The definition's accessGroup '%s' does not exist on this host.", d->access_group);
}

int access_new(VarlinkServer *server, sd_event *event, const MachineDefinition *definition, const char *authorize_path, Access **ret) {
        _cleanup_(access_freep) Access *a = NULL;
        int r;

        a = calloc(1, sizeof(*a));
        if (!a)
                return -ENOMEM;
        r = sd_event_add_defer(event, &a->turn, on_turn, a);
        if (r >= 0)
                r = sd_event_source_set_enabled(a->turn, SD_EVENT_OFF);
        if (r < 0)
                return r;
        a->event = sd_event_ref(event);
        a->definition = definition;
        a->authorize_path = authorize_path ?: ACCESS_AUTHORIZE_PATH;
        a->log_limit = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };
        set_access_group(server, definition);
        varlink_server_set_authorize(server, authorize, a);
        *ret = TAKE_PTR(a);
        return 0;
}

Access *access_free(Access *a) {
        if (!a)
                return NULL;
        while (a->running)
                (void) check_free(a->running);
        while (a->waiting)
                (void) check_free(a->waiting);
        sd_event_source_disable_unref(a->turn);
        sd_event_unref(a->event);
        return mfree(a);
}
