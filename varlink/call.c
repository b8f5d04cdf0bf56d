/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One call: what may be in it, whether it may be made, and its answers. */

#include <stdio.h>

#include "server-internal.h"

/* How every user and group looks that our user namespace does not map (user_namespaces(7)): no identity to grant anything to. */
#define OVERFLOW_ID 65534

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
static int take_member(VarlinkCall *call, const char *key, json_object *value, bool *upgrade) {
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
                return take_flag(value, upgrade);
        return strchr(key, '.') ? 0 : -EBADMSG;
}

static int call_parse(VarlinkCall *call) {
        bool upgrade = false;
        const char *dot;
        int r;

        json_object_object_foreach(call->message.json, key, value) {
                r = take_member(call, key, value, &upgrade);
                if (r < 0)
                        return r;
        }
        if (!call->method || (call->oneway && call->more))
                return -EBADMSG;
        dot = strrchr(call->method, '.');
        if (!dot || dot == call->method || dot[1] == 0)
                return -EBADMSG;
        /* No method of ours changes the protocol, and to go on in the old one would not be understood. */
        if (upgrade)
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
                return r;
        r = varlink_call_error_invalid_parameter(call, where ?: "");
        return r < 0 ? r : 1;
}

/* Everything before the callback. Returns the method, or NULL where the call was answered (or could not be: *ret_error). */
static const VarlinkMethod *admit(VarlinkCall *call, int *ret_error) {
        const char *name = strrchr(call->method, '.') + 1;
        const VarlinkMethod *m;

        call->interface = server_find_interface(call->connection->server, call->method, (size_t) (name - 1 - call->method));
        if (!call->interface) {
                _cleanup_free_ char *interface = strndup(call->method, (size_t) (name - 1 - call->method));
                *ret_error = !interface ? -ENOMEM :
                        error_with_name(call, "org.varlink.service.InterfaceNotFound", "interface", interface);
                return NULL;
        }
        call->symbol = varlink_interface_find(call->interface->idl, VARLINK_SYMBOL_METHOD, name);
        if (!call->symbol) {
                *ret_error = error_with_name(call, "org.varlink.service.MethodNotFound", "method", call->method);
                return NULL;
        }
        m = find_implementation(call->interface, name);
        if (!m) {
                *ret_error = error_with_name(call, "org.varlink.service.MethodNotImplemented", "method", call->method);
                return NULL;
        }
        if (m->flags & VARLINK_METHOD_PRIVILEGED) {
                int r = varlink_call_is_privileged(call);
                if (r <= 0) {
                        *ret_error = r < 0 ? r : -EACCES;
                        return NULL;
                }
        }
        if ((m->flags & VARLINK_METHOD_REQUIRES_MORE) && !call->more) {
                *ret_error = varlink_call_error(call, "org.varlink.service.ExpectedMore", NULL);
                return NULL;
        }
        *ret_error = check_parameters(call);
        return *ret_error == 0 ? m : NULL;
}

int call_dispatch(VarlinkCall *call) {
        Connection *c = call->connection;
        const VarlinkMethod *m;
        int r = 0;

        if (!call->oneway)
                c->current = call;
        m = admit(call, &r);
        if (m)
                r = m->callback(call, call->parameters, call->interface->userdata);
        if (r < 0 && !call->answered)
                r = varlink_call_error_errno(call, r);
        /* Nobody waits for it, so it is over when the callback is, whoever still holds it. */
        if (call->oneway)
                call->answered = true;
        /* Where not even the error could be queued, nothing orderly can follow on this connection. */
        return r < 0 && !call->answered && c->server ? r : 0;
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

static void call_finish(VarlinkCall *call) {
        call->answered = true;
        call->closed = NULL;
        if (call->connection->current == call)
                call->connection->current = NULL;
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
        r = varlink_stream_queue(&c->stream, reply, call->fds, call->n_fds);
        if (r < 0)
                return r;
        call->n_fds = 0;
        if (final)
                call_finish(call);
        connection_kick(c);
        return 0;
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

static int reply_checked(VarlinkCall *call, json_object *parameters, bool final) {
        int r;

        if (call->answered)
                return -EALREADY;
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
        if (c->server && c->stream.out_size > c->server->limits.write_queue)
                return -ENOBUFS;
        return reply_checked(call, parameters, false);
}

int varlink_call_error(VarlinkCall *call, const char *error_id, json_object *parameters) {
        VarlinkServer *s = call->connection->server;
        const char *dot = strrchr(error_id, '.');
        const ServerInterface *i;
        const VarlinkSymbol *symbol;
        int r;

        if (call->answered)
                return -EALREADY;
        /* systemd's own errors are documented elsewhere. */
        if (s && !startswith(error_id, "io.systemd.")) {
                i = dot ? server_find_interface(s, error_id, (size_t) (dot - error_id)) : NULL;
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
        if (s->authorize)
                return s->authorize(call, s->authorize_userdata);
        if (uid == 0 || (uid == s->uid && uid != (uid_t) -1 && uid != OVERFLOW_ID))
                return 1;
        return varlink_call_peer_in_group(call, s->access_group);
}

void varlink_call_on_close(VarlinkCall *call, VarlinkClosed closed, void *userdata) {
        call->closed = closed;
        call->closed_userdata = userdata;
}
