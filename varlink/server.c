/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The server and its connections: who may connect, when is read, when is written, when is enough.
 *
 * A connection's input is looked at only while no call of it waits for its answer and while its peer reads what we send; so neither
 * many pipelined calls nor a peer that does not read can make us keep more than one message and one full queue. */

#include <stdio.h>
#include <sys/epoll.h>

#include "interfaces.h"
#include "server-internal.h"

/* Calls of one connection handled in a row before others get their turn. */
#define CALLS_PER_TURN 16
/* How long nobody is accepted after we ran out of descriptors or memory. */
#define RETRY_USEC (1 * USEC_PER_SEC)

static const VarlinkLimits limits_default = {
        .message_size = VARLINK_MESSAGE_SIZE_DEFAULT,
        .depth = VARLINK_DEPTH_DEFAULT,
        .fds = VARLINK_FDS_DEFAULT,
        .write_queue = MIB(2),
        .connections = 256,
        .connections_per_uid = 64,
        .timeout_usec = 30 * USEC_PER_SEC,
};

/* ---- connections ---- */

Connection *connection_ref(Connection *c) {
        c->n_ref++;
        return c;
}

Connection *connection_unref(Connection *c) {
        if (!c || --c->n_ref > 0)
                return NULL;
        sd_event_source_disable_unref(c->io);
        sd_event_source_disable_unref(c->timer);
        sd_event_source_disable_unref(c->resume);
        varlink_stream_done(&c->stream);
        free(c->groups);
        return mfree(c);
}

void connection_close(Connection *c) {
        VarlinkServer *s = c->server;
        VarlinkCall *call = c->current;

        if (!s)
                return;
        for (Connection **i = &s->connections; *i; i = &(*i)->next)
                if (*i == c) {
                        *i = c->next;
                        break;
                }
        s->n_connections--;
        c->server = NULL;
        c->current = NULL;
        /* The sources go before the fd that one of them watches. */
        c->io = sd_event_source_disable_unref(c->io);
        c->timer = sd_event_source_disable_unref(c->timer);
        c->resume = sd_event_source_disable_unref(c->resume);
        varlink_stream_done(&c->stream);
        if (call)
                call_abandon(call);
        (void) connection_unref(c);
}

void connection_kick(Connection *c) {
        if (c->server && sd_event_source_set_enabled(c->resume, SD_EVENT_ONESHOT) < 0)
                connection_close(c);
}

static bool wants_input(Connection *c) {
        return !c->current && c->stream.out_size <= c->server->limits.write_queue;
}

/* Tells epoll and the timer what the connection waits for now. */
static int connection_arm(Connection *c) {
        uint64_t since = UINT64_MAX;
        uint32_t events = 0;
        int r;

        if (wants_input(c) && !c->ended)
                events |= EPOLLIN;
        if (c->stream.out)
                events |= EPOLLOUT;
        r = sd_event_source_set_io_events(c->io, events);
        if (r < 0)
                return r;

        /* A message that has begun must end in time, however slowly its bytes trickle in; of an answer it is enough that some of it is read. */
        if (!(events & EPOLLIN) || !varlink_stream_is_partial(&c->stream))
                c->input_since = 0;
        else if (c->input_since == 0)
                c->input_since = now_usec();
        if (!c->stream.out)
                c->output_since = 0;
        else if (c->output_since == 0)
                c->output_since = now_usec();

        if (c->input_since > 0)
                since = c->input_since;
        if (c->output_since > 0)
                since = MIN(since, c->output_since);
        if (since == UINT64_MAX)
                return sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
        /* Setting the time takes back a timer that is due already; whoever keeps us busy does not gain by that. */
        if (now_usec() - since >= c->server->limits.timeout_usec)
                return -ETIMEDOUT;
        r = sd_event_source_set_time(c->timer, since + c->server->limits.timeout_usec);
        return r < 0 ? r : sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

static int connection_flush(Connection *c) {
        size_t before = c->stream.out_size;
        int r;

        r = varlink_stream_flush(&c->stream);
        if (c->stream.out_size < before)
                c->output_since = 0;
        return r == -EAGAIN ? 0 : r;
}

/* Handles whole messages that are here already. Returns > 0 where there may be more of them, 0 where there are none or their turn
 * has not come, negative where the connection is to be closed. */
static int connection_process(Connection *c) {
        int r;

        for (unsigned i = 0; i < CALLS_PER_TURN; i++) {
                VarlinkMessage message = {};
                _cleanup_(varlink_call_unrefp) VarlinkCall *call = NULL;

                if (!wants_input(c))
                        return 0;
                r = varlink_stream_next(&c->stream, &message);
                if (r <= 0)
                        return r;
                c->input_since = 0;
                r = call_new(c, &message, &call);
                if (r >= 0)
                        r = call_dispatch(call);
                if (r < 0)
                        return r;
                /* The callback may have ended it all. */
                if (!c->server)
                        return 0;
        }
        return 1;
}

/* One turn of a connection: process what is here, send what can be sent, arm for what is missing. */
static void connection_turn(Connection *c) {
        int r, more;

        more = r = connection_process(c);
        if (!c->server)
                return;
        if (r >= 0)
                r = connection_flush(c);
        /* After the end of the peer's calls it waits for our answers at most. */
        if (r >= 0 && c->ended && more == 0 && !c->current && !c->stream.out)
                r = -ECONNRESET;
        if (r >= 0)
                r = connection_arm(c);
        if (r < 0)
                connection_close(c);
        else if (more > 0)
                connection_kick(c);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        _cleanup_(connection_unrefp) Connection *c = connection_ref(userdata);
        int r = 1;

        if (revents & EPOLLIN) {
                r = varlink_stream_read(&c->stream);
                if (r == 0)
                        c->ended = true;
                if (r == -EAGAIN)
                        r = 1;
        } else if (revents & (EPOLLHUP | EPOLLERR))
                /* Nobody is there any more to read an answer, and we do not want to read (or there is nothing). */
                r = -ECONNRESET;
        if (r < 0)
                connection_close(c);
        else
                connection_turn(c);
        return 0;
}

static int on_resume(sd_event_source *source, void *userdata) {
        _cleanup_(connection_unrefp) Connection *c = connection_ref(userdata);

        connection_turn(c);
        return 0;
}

static int on_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        _cleanup_(connection_unrefp) Connection *c = connection_ref(userdata);

        connection_close(c);
        return 0;
}

/* Who the peer was when it connected: what it is now does not matter, the connection may have been handed on. */
static int connection_identify(Connection *c) {
        socklen_t size = sizeof(c->peer);

        if (getsockopt(c->stream.fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &size) < 0)
                return -errno;

        size = 0;
        if (getsockopt(c->stream.fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) >= 0 || errno != ERANGE)
                return 0;
        c->groups = malloc(size);
        if (!c->groups)
                return -ENOMEM;
        if (getsockopt(c->stream.fd, SOL_SOCKET, SO_PEERGROUPS, c->groups, &size) < 0)
                return -errno;
        c->n_groups = size / sizeof(gid_t);
        return 0;
}

static bool server_is_full(VarlinkServer *s, uid_t uid) {
        unsigned n = 0;

        for (Connection *c = s->connections; c; c = c->next)
                n += c->peer.uid == uid;
        return s->n_connections >= s->limits.connections || n >= s->limits.connections_per_uid;
}

static int connection_watch(Connection *c, sd_event *event) {
        int r;

        r = sd_event_add_io(event, &c->io, c->stream.fd, EPOLLIN, on_io, c);
        if (r < 0)
                return r;
        r = sd_event_add_time(event, &c->timer, CLOCK_MONOTONIC, UINT64_MAX, USEC_PER_SEC, on_timeout, c);
        if (r < 0)
                return r;
        r = sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
        if (r < 0)
                return r;
        r = sd_event_add_defer(event, &c->resume, on_resume, c);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(c->resume, SD_EVENT_OFF);
}

int varlink_server_adopt_connection(VarlinkServer *s, int fd) {
        _cleanup_(connection_unrefp) Connection *c = calloc(1, sizeof(*c));
        int r;

        if (!c) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        c->n_ref = 1;
        r = varlink_stream_open(&c->stream, fd);
        if (r < 0)
                return r;
        c->stream.message_size = s->limits.message_size;
        c->stream.depth = s->limits.depth;
        c->stream.fds = s->limits.fds;

        r = connection_identify(c);
        if (r < 0)
                return r;
        if (server_is_full(s, c->peer.uid))
                return -EMFILE;
        r = connection_watch(c, s->event);
        if (r < 0)
                return r;

        c->server = s;
        c->next = s->connections;
        s->connections = TAKE_PTR(c);
        s->n_connections++;
        return 0;
}

unsigned varlink_server_n_connections(VarlinkServer *s) {
        return s->n_connections;
}

/* ---- listening ---- */

static void enable_listeners(VarlinkServer *s, int enabled) {
        for (Listener *l = s->listeners; l; l = l->next)
                (void) sd_event_source_set_enabled(l->source, enabled);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        enable_listeners(userdata, SD_EVENT_ON);
        return 0;
}

static int on_listen(sd_event_source *source, int listen_fd, uint32_t revents, void *userdata) {
        Listener *l = userdata;
        VarlinkServer *s = l->server;
        int fd;

        fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
                /* One who comes when it is full, or who is gone already, is closed and that is all. */
                (void) varlink_server_adopt_connection(s, fd);
                return 0;
        }

        switch (errno) {
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
                /* The pending connection stays and would wake us again at once. */
                if (sd_event_source_set_time(s->retry, now_usec() + RETRY_USEC) >= 0 &&
                        sd_event_source_set_enabled(s->retry, SD_EVENT_ONESHOT) >= 0)
                        enable_listeners(s, SD_EVENT_OFF);
                return 0;
        default:
                /* accept(2) passes errors of the connection on: try the next one. */
                return 0;
        }
}

int varlink_server_listen_fd(VarlinkServer *s, int fd) {
        _cleanup_close_ int owned = fd;
        _cleanup_free_ Listener *l = NULL;
        VarlinkStream probe;
        int r;

        /* For its side effect on the descriptor only: accept4() must not block, either. */
        r = varlink_stream_open(&probe, TAKE_FD(owned));
        if (r < 0)
                return r;
        owned = TAKE_FD(probe.fd);

        l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;
        l->server = s;
        r = sd_event_add_io(s->event, &l->source, owned, EPOLLIN, on_listen, l);
        if (r < 0)
                return r;
        r = sd_event_source_set_io_fd_own(l->source, 1);
        if (r < 0) {
                sd_event_source_disable_unref(l->source);
                return r;
        }
        TAKE_FD(owned);
        l->next = s->listeners;
        s->listeners = TAKE_PTR(l);
        return 0;
}

/* ---- the server ---- */

static ServerInterface *interface_free(ServerInterface *i) {
        if (!i)
                return NULL;
        (void) varlink_interface_free(i->idl);
        return mfree(i);
}
DEFINE_CLEANUP(ServerInterface, interface_free)

const ServerInterface *server_find_interface(VarlinkServer *s, const char *name, size_t length) {
        for (ServerInterface *i = s->interfaces; i; i = i->next)
                if (strlen(i->idl->name) == length && memcmp(i->idl->name, name, length) == 0)
                        return i;
        return NULL;
}

int varlink_server_add_interface(VarlinkServer *s, const char *text, const VarlinkMethod *methods, void *userdata) {
        _cleanup_(interface_freep) ServerInterface *i = NULL;
        ServerInterface **end;
        int r;

        i = calloc(1, sizeof(*i));
        if (!i)
                return -ENOMEM;
        r = varlink_interface_parse(text, &i->idl, NULL);
        if (r < 0)
                return r == -EBADMSG ? -EINVAL : r;
        for (const VarlinkMethod *m = methods; m->name; m++)
                if (!varlink_interface_find(i->idl, VARLINK_SYMBOL_METHOD, m->name))
                        return -EINVAL;
        if (server_find_interface(s, i->idl->name, strlen(i->idl->name)))
                return -EEXIST;

        i->text = text;
        i->methods = methods;
        i->userdata = userdata;
        for (end = &s->interfaces; *end; end = &(*end)->next)
                ;
        *end = TAKE_PTR(i);
        return 0;
}

static int replace(char **field, const char *value) {
        char *copy = strdup(value);
        if (!copy)
                return -ENOMEM;
        free(*field);
        *field = copy;
        return 0;
}

int varlink_server_set_info(VarlinkServer *s, const char *vendor, const char *product, const char *version, const char *url) {
        int r;

        r = replace(&s->vendor, vendor);
        if (r >= 0)
                r = replace(&s->product, product);
        if (r >= 0)
                r = replace(&s->version, version);
        if (r >= 0)
                r = replace(&s->url, url);
        return r;
}

void varlink_server_set_limits(VarlinkServer *s, const VarlinkLimits *limits) {
        if (limits->message_size > 0)
                s->limits.message_size = limits->message_size;
        if (limits->depth > 0)
                s->limits.depth = limits->depth;
        if (limits->fds > 0)
                s->limits.fds = limits->fds;
        if (limits->write_queue > 0)
                s->limits.write_queue = limits->write_queue;
        if (limits->connections > 0)
                s->limits.connections = limits->connections;
        if (limits->connections_per_uid > 0)
                s->limits.connections_per_uid = limits->connections_per_uid;
        if (limits->timeout_usec > 0)
                s->limits.timeout_usec = limits->timeout_usec;
}

void varlink_server_set_access_group(VarlinkServer *s, gid_t gid) {
        s->access_group = gid;
}

void varlink_server_set_authorize(VarlinkServer *s, VarlinkAuthorize authorize, void *userdata) {
        s->authorize = authorize;
        s->authorize_userdata = userdata;
}

/* json-c seeds its hash tables and reads its locale at first use, and sd-event makes its timer at the first timer: all of that happens here, before
 * a sandbox may forbid it. */
static int warm_up(VarlinkServer *s) {
        static const char text[] = "{\"a\":0.5}";
        _cleanup_json_ json_object *value = NULL;
        int r;

        r = varlink_json_parse(text, strlen(text), 2, &value);
        if (r < 0)
                return r;
        if (!json_object_to_json_string(value))
                return -ENOMEM;

        r = sd_event_add_time(s->event, &s->retry, CLOCK_MONOTONIC, UINT64_MAX, 0, on_retry, s);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(s->retry, SD_EVENT_OFF);
}

int varlink_server_new(VarlinkServer **ret, sd_event *event) {
        _cleanup_(varlink_server_freep) VarlinkServer *s = NULL;
        int r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->event = sd_event_ref(event);
        s->limits = limits_default;
        s->uid = geteuid();
        s->access_group = (gid_t) -1;
        r = warm_up(s);
        if (r < 0)
                return r;
        r = varlink_server_set_info(s, "", "", "", "");
        if (r < 0)
                return r;
        r = varlink_server_add_interface(s, varlink_text_org_varlink_service, service_methods, s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

VarlinkServer *varlink_server_free(VarlinkServer *s) {
        if (!s)
                return NULL;
        while (s->connections)
                connection_close(s->connections);
        while (s->listeners) {
                Listener *next = s->listeners->next;
                sd_event_source_disable_unref(s->listeners->source);
                free(s->listeners);
                s->listeners = next;
        }
        while (s->interfaces) {
                ServerInterface *next = s->interfaces->next;
                (void) interface_free(s->interfaces);
                s->interfaces = next;
        }
        sd_event_source_disable_unref(s->retry);
        sd_event_unref(s->event);
        free(s->vendor);
        free(s->product);
        free(s->version);
        free(s->url);
        return mfree(s);
}
