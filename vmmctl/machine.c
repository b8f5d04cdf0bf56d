/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "bus.h"
#include "definition.h"
#include "machine.h"
#include "output.h"
#include "unit-name.h"

/* For what is shown beside other things: one machine that hangs does not make `vmmctl list` hang. */
#define DESCRIBE_TIMEOUT_USEC (3 * USEC_PER_SEC)
/* For a place in the queue of those who want to connect, which anybody may fill. */
#define CONNECT_TIMEOUT_USEC (3 * USEC_PER_SEC)

/* Whether it is known that its unit has failed. */
static bool has_failed(const Options *o, const char *name) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_(unit_state_done) UnitState state = {};
        _cleanup_free_ char *unit = machine_unit_name(name, "service");

        return unit && bus_open(o, &bus) >= 0 && unit_state_get(bus, unit, &state) >= 0 && streq(state.active_state, "failed");
}

/* There is no socket of it, or nobody behind it: `r`. Machines that run by hand have theirs elsewhere, and nobody knows what they are made of. */
static int explain_absence(const Options *o, const char *name, int r, char **ret_problem) {
        _cleanup_strings_ char **files = NULL;

        if (streq(o->runtime_directory, RUNTIME_DIRECTORY)) {
                if (definition_files(NULL, name, &files) == -ENOENT)
                        return set_message(ret_problem, -ESRCH, "there is no such machine");
                if (has_failed(o, name))
                        return set_message(ret_problem, r, "the machine does not run: it has failed, see vmmctl status %s", name);
        }
        return set_message(ret_problem, r, "the machine does not run");
}

int machine_connect(const Options *o, const char *name, VarlinkClient **ret, char **ret_problem) {
        _cleanup_free_ char *path = NULL;
        int r;

        if (!machine_name_is_valid(name))
                return set_message(ret_problem, -ESRCH, "this is no name of a machine");
        if (asprintf(&path, "%s/%s/control", o->runtime_directory, name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        r = varlink_client_connect_within(path, CONNECT_TIMEOUT_USEC, ret);
        if (r == -ENOENT || r == -ECONNREFUSED)
                return ret_problem ? explain_absence(o, name, r, ret_problem) : r;
        if (r == -EAGAIN)
                return set_message(ret_problem, r, "the machine did not accept the connection within 3 s: too many others want to connect to %s", path);
        if (r < 0)
                return set_message(ret_problem, r, "cannot connect to %s: %s", path, strerror(-r));
        return 0;
}

static char *full_name(const char *method) {
        char *full;

        if (strchr(method, '.'))
                return strdup(method);
        return asprintf(&full, "io.vmmd.Machine.%s", method) < 0 ? NULL : full;
}

static int no_answer(int r, char **ret_problem) {
        if (r == -ECONNRESET || r == -EPIPE)
                return set_message(ret_problem, r, "the machine ended, or dropped the connection");
        return set_message(ret_problem, r, "the machine does not answer: %s", strerror(-r));
}

/* The same call, but so that polkit may ask. */
static int make_interactive(json_object *parameters, json_object **ret) {
        _cleanup_json_ json_object *copy = NULL;
        int r;

        if (parameters && json_object_deep_copy(parameters, &copy, NULL) < 0)
                return -ENOMEM;
        if (!copy)
                copy = json_object_new_object();
        if (!copy)
                return -ENOMEM;
        r = json_add_boolean(copy, "allowInteractiveAuthentication", true);
        if (r >= 0)
                *ret = TAKE_PTR(copy);
        return r;
}

/* Only our own interface's methods know how to be told that it is all right to ask. */
static bool asking_helps(const Options *o, const char *method, const char *error_id) {
        return varlink_error_is(error_id, "io.systemd.InteractiveAuthenticationRequired") && startswith(method, "io.vmmd.") &&
                agent_may_ask(o);
}

static int push_fds(VarlinkClient *client, const int *fds, size_t n_fds) {
        for (size_t i = 0; i < n_fds; i++) {
                _cleanup_close_ int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
                int r;

                if (copy < 0)
                        return -errno;
                r = varlink_client_push_fd(client, copy);
                if (r < 0)
                        return r;
                TAKE_FD(copy);
        }
        return 0;
}

/* People take their time to type a password. */
static int call_interactively(VarlinkClient *client, const char *method, json_object *parameters, const int *fds, size_t n_fds,
        json_object **ret_reply, char **ret_error_id) {
        _cleanup_json_ json_object *interactive = NULL;
        _cleanup_(agent_stop) Agent agent = {};
        int r;

        r = make_interactive(parameters, &interactive);
        if (r >= 0)
                r = push_fds(client, fds, n_fds);
        if (r < 0)
                return r;
        agent_start(&agent);
        varlink_client_set_timeout(client, UINT64_MAX);
        r = varlink_client_call(client, method, interactive, ret_reply, ret_error_id);
        varlink_client_set_timeout(client, VARLINK_CLIENT_TIMEOUT_DEFAULT);
        return r;
}

int machine_call_passing(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, const int *fds, size_t n_fds,
        json_object **ret_reply, char **ret_problem) {
        _cleanup_free_ char *full = full_name(method), *error_id = NULL;
        _cleanup_json_ json_object *reply = NULL;
        int r;

        if (!full)
                return -ENOMEM;
        r = push_fds(client, fds, n_fds);
        if (r < 0)
                return r;
        r = varlink_client_call(client, full, parameters, &reply, &error_id);
        if (r == -EREMOTEIO && asking_helps(o, full, error_id)) {
                json_putp(&reply);
                freep(&error_id);
                r = call_interactively(client, full, parameters, fds, n_fds, &reply, &error_id);
        }
        if (r == -EREMOTEIO)
                return error_translate(error_id, reply, ret_problem);
        if (r < 0)
                return no_answer(r, ret_problem);
        if (ret_reply)
                *ret_reply = TAKE_PTR(reply);
        return 0;
}

int machine_call(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem) {
        return machine_call_passing(o, client, method, parameters, NULL, 0, ret_reply, ret_problem);
}

int machine_call_upgrade(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, int *ret_fd, char **ret_data,
        size_t *ret_size, char **ret_problem) {
        _cleanup_free_ char *full = full_name(method), *error_id = NULL;
        _cleanup_json_ json_object *reply = NULL, *interactive = NULL;
        _cleanup_(agent_stop) Agent agent = {};
        int r;

        if (!full)
                return -ENOMEM;
        r = varlink_client_call_upgrade(client, full, parameters, &reply, &error_id, ret_fd, ret_data, ret_size);
        if (r == -EREMOTEIO && asking_helps(o, full, error_id)) {
                json_putp(&reply);
                freep(&error_id);
                r = make_interactive(parameters, &interactive);
                if (r < 0)
                        return r;
                agent_start(&agent);
                varlink_client_set_timeout(client, UINT64_MAX);
                r = varlink_client_call_upgrade(client, full, interactive, &reply, &error_id, ret_fd, ret_data, ret_size);
        }
        if (r == -EREMOTEIO)
                return error_translate(error_id, reply, ret_problem);
        return r < 0 ? no_answer(r, ret_problem) : 0;
}

int machine_call_by_name(const Options *o, const char *name, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        int r;

        r = machine_connect(o, name, &client, ret_problem);
        return r < 0 ? r : machine_call(o, client, method, parameters, ret_reply, ret_problem);
}

json_object *machine_describe(const Options *o, const char *name) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        json_object *reply = NULL;

        if (machine_connect(o, name, &client, NULL) < 0)
                return NULL;
        varlink_client_set_timeout(client, DESCRIBE_TIMEOUT_USEC);
        return varlink_client_call(client, "io.vmmd.Machine.Describe", NULL, &reply, NULL) < 0 ? NULL : reply;
}

int machine_conclude(const char *name, int r, const char *problem) {
        if (r < 0)
                complain("%s: %s", name, problem ?: strerror(-r));
        return machine_exit_code(r);
}

/* ---- calls that take long ---- */

typedef struct Stream {
        const Options *options;
        sd_event *event;
        const char *method;
        json_object *parameters;
        StreamFlags flags;
        MachineReply callback;
        void *userdata;
        bool asked; /* the user, about rights */
        bool ended; /* what comes behind the last reply that was wanted may be read already */
        Agent agent;
        char *problem;
} Stream;

static void stream_done(Stream *s) {
        agent_stop(&s->agent);
        free(s->problem);
        s->event = sd_event_unref(s->event);
}

/* What sd_event_loop() returns; for it an exit code may be negative, too. */
static void stream_end(Stream *s, int r) {
        s->ended = true;
        (void) sd_event_exit(s->event, r);
}

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata);

static int stream_call(Stream *s, VarlinkClient *c, json_object *parameters) {
        return varlink_client_call_async(c, s->method, parameters, s->flags & STREAM_MORE ? VARLINK_CLIENT_MORE : 0, on_reply, s);
}

static int ask_and_call_again(Stream *s, VarlinkClient *c) {
        _cleanup_json_ json_object *interactive = NULL;
        int r;

        s->asked = true;
        r = make_interactive(s->parameters, &interactive);
        if (r < 0)
                return r;
        agent_start(&s->agent);
        varlink_client_set_timeout(c, UINT64_MAX);
        return stream_call(s, c, interactive);
}

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Stream *s = userdata;
        int r;

        if (s->ended)
                return;
        if (error == -EREMOTEIO && !s->asked && asking_helps(s->options, s->method, error_id)) {
                r = ask_and_call_again(s, c);
                if (r < 0)
                        stream_end(s, r);
                return;
        }
        agent_stop(&s->agent);
        if (error == -EREMOTEIO)
                r = error_translate(error_id, reply, &s->problem);
        else if (error == -ETIMEDOUT)
                r = error;
        else if (error < 0)
                r = no_answer(error, &s->problem);
        else
                r = s->callback(reply, s->userdata);
        if (r != 0 || !continues)
                stream_end(s, r);
}

static int on_interrupt(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata) {
        return sd_event_exit(userdata, -EINTR);
}

/* Who reads our output may go while we have nothing to say: then it is for nobody that we wait. */
static int on_output(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        return sd_event_exit(userdata, 1);
}

static int watch(Stream *s) {
        int r;

        r = sd_event_add_io(s->event, NULL, STDOUT_FILENO, 0, on_output, s->event);
        /* A file, or nothing at all. */
        if (r < 0 && r != -EPERM && r != -EBADF)
                return r;
        if (s->flags & STREAM_INTERRUPT) {
                sigset_t set;

                (void) sigemptyset(&set);
                (void) sigaddset(&set, SIGINT);
                if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
                        return -errno;
                return sd_event_add_signal(s->event, NULL, SIGINT, on_interrupt, s->event);
        }
        return 0;
}

int machine_stream(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, StreamFlags flags,
        MachineReply callback, void *userdata, char **ret_problem) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = client;
        _cleanup_free_ char *full = full_name(method);
        _cleanup_(stream_done) Stream s = { .options = o, .method = full, .parameters = parameters, .flags = flags,
                .callback = callback, .userdata = userdata };
        int r;

        if (!full)
                return -ENOMEM;
        r = sd_event_new(&s.event);
        if (r >= 0)
                r = varlink_client_attach_event(c, s.event);
        if (r >= 0)
                r = watch(&s);
        if (r >= 0)
                r = stream_call(&s, c, parameters);
        if (r >= 0)
                r = sd_event_loop(s.event);
        if (s.problem && ret_problem)
                *ret_problem = TAKE_PTR(s.problem);
        return r;
}
