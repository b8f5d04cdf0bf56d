/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One call: what may be in it, whether it may be made, and its answers. */

#include <stdarg.h>
#include <stdio.h>

#include "server-internal.h"

/* What of a peer's own text is sent back to him, at most. */
#define ECHO_MAX 256

static VarlinkCall *call_free(VarlinkCall *call) {
        if (!call)
                return NULL;
        for (size_t i = 0; i < call->n_fds; i++)
                (void) safe_close(call->fds[i]);
        free(call->fds);
        json_putp(&call->parameters);
        varlink_message_done(&call->message);
        free(call->method);
        (void) connection_unref(call->connection);
        return mfree(call);
}

VarlinkCall *varlink_call_ref(VarlinkCall *call) {
        call->n_ref++;
        return call;
}

VarlinkCall *varlink_call_unref(VarlinkCall *call) {
        if (!call || --call->n_ref > 0)
                return NULL;
        call->closed = NULL;
        if (!call->answered)
                (void) varlink_call_error_errno(call, -ECANCELED);
        /* Where even that could not be queued: the connection waits for nobody any more, and ends. */
        if (call->connection->current == call) {
                call->connection->current = NULL;
                connection_close(call->connection);
        }
        return call_free(call);
}

/* A boolean of the call object: absent and null are false. */
static int take_flag(json_object *value, bool *ret) {
        if (value && !json_object_is_type(value, json_type_boolean))
                return -EBADMSG;
        *ret = value && json_object_get_boolean(value);
        return 0;
}

static int take_parameters(VarlinkCall *call, json_object *value) {
        if (value && !json_object_is_type(value, json_type_object))
                return -EBADMSG;
        call->parameters = json_object_get(value);
        return 0;
}

/* The members of a call are few and known; only names of somebody's own domain may be added (varlink.org, "Method Call"). */
static int take_member(VarlinkCall *call, const char *key, json_object *value) {
        if (streq(key, "method")) {
                if (!json_object_is_type(value, json_type_string))
                        return -EBADMSG;
                call->method = strdup(json_object_get_string(value));
                return call->method ? 0 : -ENOMEM;
        }
        if (streq(key, "parameters"))
                return take_parameters(call, value);
        if (streq(key, "more"))
                return take_flag(value, &call->more);
        if (streq(key, "oneway"))
                return take_flag(value, &call->oneway);
        if (streq(key, "upgrade"))
                return take_flag(value, &call->upgrade);
        return strchr(key, '.') ? 0 : -EBADMSG;
}

static int call_parse(VarlinkCall *call) {
        const char *dot;
        int r;

        json_object_object_foreach(call->message.json, key, value) {
                r = take_member(call, key, value);
                if (r < 0)
                        return r;
        }
        /* Each of them says what answers there will be, so any two contradict each other. */
        if (!call->method || call->oneway + call->more + call->upgrade > 1)
                return -EBADMSG;
        dot = strrchr(call->method, '.');
        if (!dot || dot == call->method || dot[1] == 0)
                return -EBADMSG;
        if (!call->parameters)
                call->parameters = json_object_new_object();
        return call->parameters ? 0 : -ENOMEM;
}

int call_new(Connection *c, VarlinkMessage *message, VarlinkCall **ret) {
        VarlinkCall *call;
        int r;

        call = calloc(1, sizeof(*call));
        if (!call) {
                varlink_message_done(message);
                return -ENOMEM;
        }
        call->n_ref = 1;
        call->connection = connection_ref(c);
        call->message = *message;
        *message = (VarlinkMessage) {};

        r = call_parse(call);
        if (r < 0) {
                (void) call_free(call);
                return r;
        }
        *ret = call;
        return 0;
}

/* ---- dispatch ---- */

static void call_finish(VarlinkCall *call) {
        Connection *c = call->connection;

        call->answered = true;
        call->authorizing = false;
        call->closed = NULL;
        call->drained = NULL;
        if (c->current != call)
                return;
        c->current = NULL;
        if (c->server)
                (void) connection_schedule(c);
}

static int error_with_name(VarlinkCall *call, const char *error_id, const char *key, const char *name) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        size_t size = strlen(name);
        int r;

        if (!parameters)
                return -ENOMEM;
        if (size > ECHO_MAX) {
                /* Not in the middle of a UTF-8 sequence: its further bytes are 10xxxxxx. */
                for (size = ECHO_MAX; size > 0 && ((unsigned char) name[size] & 0xc0) == 0x80; size--)
                        ;
        }
        r = json_add(parameters, key, json_object_new_string_len(name, (int) size));
        return r < 0 ? r : varlink_call_error(call, error_id, parameters);
}

int varlink_call_error_invalid_parameter(VarlinkCall *call, const char *name) {
        return error_with_name(call, "org.varlink.service.InvalidParameter", "parameter", name);
}

static const VarlinkMethod *find_implementation(const ServerInterface *i, const char *name) {
        for (const VarlinkMethod *m = i->methods; m->name; m++)
                if (streq(m->name, name))
                        return m;
        return NULL;
}

static int check_parameters(VarlinkCall *call) {
        _cleanup_free_ char *where = NULL;
        int r;

        r = varlink_type_check(call->interface->idl, &call->symbol->type, call->parameters, &where);
        if (r != -EINVAL)
                return r < 0 ? r : 1;
        r = varlink_call_error_invalid_parameter(call, where ?: "");
        return r < 0 ? r : 0;
}

/* Finds out what is called. Returns > 0, or 0 where that does not exist and the call was told so. */
static int find_method(VarlinkCall *call) {
        const char *name = strrchr(call->method, '.') + 1;
        int r;

        call->interface = server_find_interface(call->connection->server, call->method, (size_t) (name - 1 - call->method));
        if (!call->interface) {
                _cleanup_free_ char *interface = strndup(call->method, (size_t) (name - 1 - call->method));
                r = !interface ? -ENOMEM :
                        error_with_name(call, "org.varlink.service.InterfaceNotFound", "interface", interface);
                return r < 0 ? r : 0;
        }
        call->symbol = varlink_interface_find(call->interface->idl, VARLINK_SYMBOL_METHOD, name);
        call->implementation = call->symbol ? find_implementation(call->interface, name) : NULL;
        if (call->implementation)
                return 1;
        r = error_with_name(call, call->symbol ? "org.varlink.service.MethodNotImplemented" : "org.varlink.service.MethodNotFound",
                "method", call->method);
        return r < 0 ? r : 0;
}

/* Whether the call has what the method's flags ask for. Returns > 0, or 0 where it was told what is missing. */
static int check_flags(VarlinkCall *call) {
        VarlinkMethodFlags flags = call->implementation->flags;
        int r;

        if (flags & VARLINK_METHOD_PRIVILEGED) {
                VarlinkServer *s = call->connection->server;

                r = s->authorize ? s->authorize(call, 0, s->authorize_userdata) : varlink_call_is_privileged(call);
                if (r <= 0)
                        return r < 0 ? r : -EACCES;
        }
        if ((flags & VARLINK_METHOD_REQUIRES_MORE) && !call->more)
                r = varlink_call_error(call, "org.varlink.service.ExpectedMore", NULL);
        else if ((flags & VARLINK_METHOD_UPGRADES) && !call->upgrade)
                r = varlink_call_error(call, "org.varlink.service.ExpectedUpgrade", NULL);
        else if (call->upgrade && !(flags & VARLINK_METHOD_UPGRADES))
                /* An ordinary reply would be taken for the end of the protocol. */
                r = varlink_call_error_invalid_parameter(call, "upgrade");
        else
                return 1;
        return r < 0 ? r : 0;
}

/* Returns > 0 where the call may be made, 0 where that is not known yet or the call was answered. */
static int authorize(VarlinkCall *call) {
        VarlinkServer *s = call->connection->server;
        unsigned right = call->implementation->right;
        int r;

        if (right == 0)
                return 1;
        if (!s->authorize) {
                r = varlink_call_is_privileged(call);
                return r == 0 ? -EACCES : r;
        }
        call->authorizing = true;
        r = s->authorize(call, right, s->authorize_userdata);
        /* It may have admitted or answered it by itself, or the connection is gone. */
        if (!call->authorizing || call->answered || !call->connection->server)
                return 0;
        if (r == -EINPROGRESS)
                return 0;
        call->authorizing = false;
        return r == 0 ? -EACCES : r;
}

/* Everything before the callback, which may run where this returns > 0. */
static int call_check(VarlinkCall *call) {
        int r;

        r = find_method(call);
        if (r > 0)
                r = check_flags(call);
        if (r > 0)
                r = check_parameters(call);
        return r > 0 ? authorize(call) : r;
}

/* Calls back where r > 0. Negative only where the connection is to be closed. */
static int call_settle(VarlinkCall *call, int r) {
        if (r > 0)
                r = call->implementation->callback(call, call->parameters, call->interface->userdata);
        if (r < 0 && !call->answered)
                r = varlink_call_error_errno(call, r);
        /* Nobody waits for it, so it is over when the callback is, whoever still holds it. */
        if (call->oneway && !call->authorizing && !call->answered)
                call_finish(call);
        /* Where not even the error could be queued, nothing orderly can follow on this connection. */
        return r < 0 && !call->answered && call->connection->server ? r : 0;
}

int call_dispatch(VarlinkCall *call) {
        /* Also a oneway call: while it is not known whether it may be made, none behind it is made. */
        call->connection->current = call;
        return call_settle(call, call_check(call));
}

int varlink_call_admit(VarlinkCall *call) {
        Connection *c = call->connection;

        if (!call->authorizing)
                return -EALREADY;
        call->authorizing = false;
        /* What the authorizer wanted to know is of no interest to the method. */
        call->closed = NULL;
        if (!c->server)
                return 0;
        call = varlink_call_ref(call);
        if (call_settle(call, 1) < 0)
                connection_close(c);
        (void) varlink_call_unref(call);
        return 0;
}

void call_abandon(VarlinkCall *call) {
        VarlinkClosed closed = call->closed;

        call->closed = NULL;
        if (!closed)
                return;
        call = varlink_call_ref(call);
        closed(call, call->closed_userdata);
        (void) varlink_call_unref(call);
}

/* ---- answers ---- */

static void drop_fds(VarlinkCall *call) {
        for (size_t i = 0; i < call->n_fds; i++)
                (void) safe_close(call->fds[i]);
        call->n_fds = 0;
}

/* Builds the reply object around the parameters, which are shared, not copied. */
static int make_reply(const char *error_id, json_object *parameters, bool continues, json_object **ret) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r;

        if (!reply)
                return -ENOMEM;
        r = json_add_string(reply, "error", error_id);
        if (r >= 0)
                r = json_add(reply, "parameters", parameters ? json_object_get(parameters) : json_object_new_object());
        if (r >= 0 && continues)
                r = json_add_boolean(reply, "continues", true);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(reply);
        return 0;
}

/* A call that goes on for long does not keep what nobody took: it could be the other end of its own connection, which then never ended. */
static void drop_received_fds(VarlinkCall *call) {
        for (size_t i = 0; i < call->message.n_fds; i++)
                call->message.fds[i] = safe_close(call->message.fds[i]);
}

static int call_send(VarlinkCall *call, const char *error_id, json_object *parameters, bool final) {
        Connection *c = call->connection;
        _cleanup_json_ json_object *reply = NULL;
        int r;

        if (call->answered)
                return -EALREADY;
        if (!c->server || call->oneway) {
                drop_fds(call);
                if (final)
                        call_finish(call);
                return c->server ? 0 : -ENOTCONN;
        }

        r = make_reply(error_id, parameters, !final, &reply);
        if (r < 0)
                return r;
        r = varlink_channel_queue(&c->channel, reply, call->fds, call->n_fds);
        if (r < 0)
                return r;
        call->n_fds = 0;
        drop_received_fds(call);
        if (final)
                call_finish(call);
        connection_kick(c);
        return 0;
}

int call_send_buffer(VarlinkCall *call, VarlinkBuffer *buffer, bool final) {
        Connection *c = call->connection;
        int r;

        if (call->answered)
                return -EALREADY;
        if (!c->server)
                return -ENOTCONN;
        r = varlink_channel_queue_buffer(&c->channel, buffer, NULL, 0);
        if (r < 0)
                return r;
        drop_received_fds(call);
        if (final)
                call_finish(call);
        /* Where the connection is broken, or full, its next turn sees that. */
        if (varlink_channel_flush(&c->channel) < 0)
                (void) connection_schedule(c);
        return 0;
}

bool call_is_behind(VarlinkCall *call) {
        return call->connection->channel.out;
}

void call_on_drained(VarlinkCall *call, void (*drained)(VarlinkCall *call, void *userdata), void *userdata) {
        call->drained = drained;
        call->drained_userdata = userdata;
}

/* io.systemd.System is how systemd's programs pass an errno on, so its tools show it in words. `field` is for our own mistakes. */
static int send_errno(VarlinkCall *call, int error, const char *field) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        if (!parameters)
                return -ENOMEM;
        r = json_add_string(parameters, "origin", "linux");
        if (r >= 0)
                r = json_add_integer(parameters, "errno", abs(error));
        if (r >= 0)
                r = json_add_string(parameters, "errnoName", strerrorname_np(abs(error)));
        if (r >= 0)
                r = json_add_string(parameters, "field", field);
        if (r < 0)
                return r;
        drop_fds(call);
        return call_send(call, "io.systemd.System", parameters, true);
}

int varlink_call_error_errno(VarlinkCall *call, int error) {
        if (abs(error) == EACCES || abs(error) == EPERM)
                return varlink_call_error(call, "org.varlink.service.PermissionDenied", NULL);
        return send_errno(call, error, NULL);
}

/* An answer that is not what the text says. */
static int own_mistake(VarlinkCall *call, const char *where) {
        int r;

        r = send_errno(call, EPROTO, where);
        return r < 0 ? r : -EPROTO;
}

static int check_answer(VarlinkCall *call, const VarlinkInterface *i, const VarlinkType *type, json_object *parameters) {
        _cleanup_json_ json_object *empty = NULL;
        _cleanup_free_ char *where = NULL;
        int r;

        if (!parameters) {
                parameters = empty = json_object_new_object();
                if (!empty)
                        return -ENOMEM;
        }
        r = varlink_type_check(i, type, parameters, &where);
        return r == -EINVAL ? own_mistake(call, where ?: "") : r;
}

int call_check_output(VarlinkCall *call, json_object *parameters) {
        int r;

        if (!call->connection->server)
                return -ENOTCONN;
        r = call->symbol ? varlink_type_check(call->interface->idl, &call->symbol->output, parameters, NULL) : -EINVAL;
        return r == -EINVAL ? -EPROTO : r;
}

static int reply_checked(VarlinkCall *call, json_object *parameters, bool final) {
        int r;

        if (call->answered)
                return -EALREADY;
        if (call->upgrade && call->connection->server)
                return own_mistake(call, "upgrade");
        /* The text is the server's: without it there is nobody to answer to, either. */
        if (call->connection->server) {
                r = call->symbol ? check_answer(call, call->interface->idl, &call->symbol->output, parameters) : -EINVAL;
                if (r < 0)
                        return r;
        }
        return call_send(call, NULL, parameters, final);
}

int varlink_call_reply(VarlinkCall *call, json_object *parameters) {
        return reply_checked(call, parameters, true);
}

int varlink_call_reply_continues(VarlinkCall *call, json_object *parameters) {
        Connection *c = call->connection;

        if (!call->more)
                return -EOPNOTSUPP;
        if (c->server && c->channel.out_size > c->server->limits.write_queue)
                return -ENOBUFS;
        return reply_checked(call, parameters, false);
}

/* Errors that any method may answer and that no text of ours defines so: systemd's own, and what goes beyond the specification's. */
static bool is_known_elsewhere(const char *error_id, const ServerInterface *i) {
        return (!i && startswith(error_id, "io.systemd.")) || streq(error_id, "org.varlink.service.ExpectedUpgrade") ||
                streq(error_id, "org.varlink.service.PermissionDenied");
}

int varlink_call_error(VarlinkCall *call, const char *error_id, json_object *parameters) {
        VarlinkServer *s = call->connection->server;
        const char *dot = strrchr(error_id, '.');
        const ServerInterface *i;
        const VarlinkSymbol *symbol;
        int r;

        if (call->answered)
                return -EALREADY;
        i = s && dot ? server_find_interface(s, error_id, (size_t) (dot - error_id)) : NULL;
        if (s && !is_known_elsewhere(error_id, i)) {
                symbol = i ? varlink_interface_find(i->idl, VARLINK_SYMBOL_ERROR, dot + 1) : NULL;
                if (!symbol)
                        return own_mistake(call, error_id);
                r = check_answer(call, i->idl, &symbol->type, parameters);
                if (r < 0)
                        return r;
        }
        drop_fds(call);
        return call_send(call, error_id, parameters, true);
}

int varlink_call_error_denied(VarlinkCall *call, const char *format, ...) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        _cleanup_free_ char *reason = NULL;
        va_list arguments;
        int r;

        va_start(arguments, format);
        r = vasprintf(&reason, format, arguments);
        va_end(arguments);
        if (r < 0) {
                reason = NULL;
                return -ENOMEM;
        }
        r = parameters ? json_add_string(parameters, "reason", reason) : -ENOMEM;
        return r < 0 ? r : varlink_call_error(call, "org.varlink.service.PermissionDenied", parameters);
}

int varlink_call_reply_upgrade(VarlinkCall *call, json_object *parameters, VarlinkUpgraded upgraded, void *userdata) {
        Connection *c = call->connection;
        VarlinkClosed closed = call->closed;
        int r;

        if (call->answered)
                return -EALREADY;
        if (!call->upgrade)
                return -EOPNOTSUPP;
        if (c->server) {
                r = check_answer(call, call->interface->idl, &call->symbol->output, parameters);
                if (r < 0)
                        return r;
        }
        r = call_send(call, NULL, parameters, true);
        if (r < 0)
                return r;
        c->upgrading = varlink_call_ref(call);
        c->upgraded = upgraded;
        c->upgraded_userdata = userdata;
        call->closed = closed;
        return 0;
}

/* ---- descriptors ---- */

int varlink_call_push_fd(VarlinkCall *call, int fd) {
        Connection *c = call->connection;
        int *grown;

        if (call->n_fds >= (c->server ? c->server->limits.fds : VARLINK_FDS_DEFAULT))
                return -ENOBUFS;
        grown = realloc(call->fds, (call->n_fds + 1) * sizeof(int));
        if (!grown)
                return -ENOMEM;
        call->fds = grown;
        call->fds[call->n_fds] = fd;
        return (int) call->n_fds++;
}

int varlink_call_take_fd(VarlinkCall *call, int64_t index) {
        return varlink_message_take_fd(&call->message, index);
}

/* ---- what a callback may ask ---- */

const char *varlink_call_method(VarlinkCall *call) {
        return call->method;
}

json_object *varlink_call_parameters(VarlinkCall *call) {
        return call->parameters;
}

bool varlink_call_wants_more(VarlinkCall *call) {
        return call->more;
}

bool varlink_call_wants_upgrade(VarlinkCall *call) {
        return call->upgrade;
}

bool varlink_call_is_oneway(VarlinkCall *call) {
        return call->oneway;
}

uid_t varlink_call_peer_uid(VarlinkCall *call) {
        return call->connection->peer.uid;
}

gid_t varlink_call_peer_gid(VarlinkCall *call) {
        return call->connection->peer.gid;
}

pid_t varlink_call_peer_pid(VarlinkCall *call) {
        return call->connection->peer.pid;
}

bool varlink_call_peer_in_group(VarlinkCall *call, gid_t gid) {
        Connection *c = call->connection;

        if (gid == (gid_t) -1 || gid == OVERFLOW_ID)
                return false;
        if (c->peer.gid == gid)
                return true;
        for (size_t i = 0; i < c->n_groups; i++)
                if (c->groups[i] == gid)
                        return true;
        return false;
}

int varlink_call_is_privileged(VarlinkCall *call) {
        VarlinkServer *s = call->connection->server;
        uid_t uid = call->connection->peer.uid;

        if (!s)
                return -ENOTCONN;
        if (uid == 0 || (uid == s->uid && uid != (uid_t) -1 && uid != OVERFLOW_ID))
                return 1;
        return varlink_call_peer_in_group(call, s->access_group);
}

unsigned varlink_call_granted(VarlinkCall *call) {
        return call->connection->granted;
}

void varlink_call_grant(VarlinkCall *call, unsigned rights) {
        call->connection->granted |= rights;
        if (call->connection->server)
                (void) connection_set_priority(call->connection);
}

int varlink_call_peer_fd(VarlinkCall *call) {
        return call->connection->server ? call->connection->channel.fd : -ENOTCONN;
}

void varlink_call_on_close(VarlinkCall *call, VarlinkClosed closed, void *userdata) {
        call->closed = closed;
        call->closed_userdata = userdata;
}
