/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The server and its connections: who may connect, when is read, when is written, when is enough.
 *
 * A connection's input is looked at only while no call of it waits for its answer and while its peer reads what we send; so neither
 * many pipelined calls nor a peer that does not read can make us keep more than one message and one full queue. */

#include <limits.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "interfaces.h"
#include "server-internal.h"

/* Calls of one connection handled in a row before others get their turn; and of one who is served last. */
#define CALLS_PER_TURN 16
#define CALLS_PER_TURN_OF_STRANGERS 1
/* Connections accepted in a row: a fourth of what the kernel keeps in a listening socket's queue. Whoever fills that keeps those behind him waiting for a few turns. */
#define ACCEPTS_PER_TURN 1024
/* A peer who calls and does not read is not listened to any more from here on. More may be queued only for who is allowed a stream of replies. */
#define UNREAD_MAX KIB(64)
/* More strangers than that in one turn are a crowd. */
#define STRANGERS_AT_ONCE 4
/* How long nobody is accepted after we ran out of descriptors or memory. */
#define RETRY_USEC (1 * USEC_PER_SEC)

static const VarlinkLimits limits_default = {
        .message_size = VARLINK_MESSAGE_SIZE_DEFAULT,
        .call_size = VARLINK_MESSAGE_SIZE_DEFAULT,
        .depth = VARLINK_DEPTH_DEFAULT,
        .fds = VARLINK_FDS_DEFAULT,
        .write_queue = MIB(2),
        .connections = 4096,
        .connections_per_uid = 2048,
        .timeout_usec = 30 * USEC_PER_SEC,
        .stall_usec = 3600 * USEC_PER_SEC,
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
        varlink_channel_done(&c->channel);
        free(c->groups);
        return mfree(c);
}

void connection_close(Connection *c) {
        VarlinkServer *s = c->server;
        VarlinkCall *call = c->current, *upgrading = c->upgrading;

        if (!s)
                return;
        for (Connection **i = &s->connections; *i; i = &(*i)->next)
                if (*i == c) {
                        *i = c->next;
                        break;
                }
        s->n_connections--;
        c->server = NULL;
        c->current = c->upgrading = NULL;
        /* The sources go before the fd that one of them watches. */
        c->io = sd_event_source_disable_unref(c->io);
        c->timer = sd_event_source_disable_unref(c->timer);
        c->resume = sd_event_source_disable_unref(c->resume);
        varlink_channel_done(&c->channel);
        if (call)
                call_abandon(call);
        if (upgrading)
                call_abandon(upgrading);
        (void) varlink_call_unref(upgrading);
        (void) connection_unref(c);
}

/* The answer is written: what follows is another protocol, and somebody else's. */
static void connection_upgrade(Connection *c) {
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = TAKE_PTR(c->upgrading);
        _cleanup_free_ char *data = NULL;
        size_t size;
        int fd;

        call->closed = NULL;
        c->io = sd_event_source_disable_unref(c->io);
        fd = varlink_channel_release(&c->channel, &data, &size);
        connection_close(c);
        c->upgraded(fd, data, size, c->upgraded_userdata);
}

/* Somebody whom our user namespace does not map, and of whom nothing is known that he may do. */
static bool is_stranger(const Connection *c) {
        return c->peer.uid == OVERFLOW_ID && c->granted == 0;
}

static bool is_served_last(const Connection *c) {
        return c->server->limits.strangers > 0 && is_stranger(c);
}

int connection_set_priority(Connection *c) {
        int64_t priority = is_served_last(c) ? SD_EVENT_PRIORITY_IDLE : SD_EVENT_PRIORITY_NORMAL;
        int r;

        r = sd_event_source_set_priority(c->io, priority);
        return r < 0 || !c->resume ? r : sd_event_source_set_priority(c->resume, priority);
}

static int on_resume(sd_event_source *source, void *userdata);

/* sd-event runs what waits longest first, and takes a deferred source to have waited since it was made. One that is kept and enabled again would never be
 * behind anybody: a connection with many calls had the loop to itself. */
int connection_schedule(Connection *c) {
        int r;

        if (c->resume && sd_event_source_get_enabled(c->resume, NULL) > 0)
                return 0;
        c->resume = sd_event_source_disable_unref(c->resume);
        r = sd_event_add_defer(c->server->event, &c->resume, on_resume, c);
        return r < 0 ? r : connection_set_priority(c);
}

void connection_kick(Connection *c) {
        if (c->server && connection_schedule(c) < 0)
                connection_close(c);
}

static bool wants_input(Connection *c) {
        return !c->current && !c->upgrading && c->channel.out_size <= MIN(c->server->limits.write_queue, UNREAD_MAX);
}

static uint64_t connection_deadline(Connection *c) {
        const VarlinkLimits *limits = &c->server->limits;
        uint64_t deadline = UINT64_MAX;

        if (c->input_since > 0)
                deadline = c->input_since + limits->timeout_usec;
        if (c->output_since > 0)
                deadline = MIN(deadline, c->output_since +
                                (c->current && c->current->drained ? limits->stall_usec : limits->timeout_usec));
        return deadline;
}

/* Tells epoll and the timer what the connection waits for now. */
static int connection_arm(Connection *c) {
        uint64_t deadline;
        uint32_t events = 0;
        int r;

        if (wants_input(c) && !c->ended)
                events |= EPOLLIN;
        if (c->channel.out)
                events |= EPOLLOUT;
        r = sd_event_source_set_io_events(c->io, events);
        if (r >= 0)
                r = sd_event_source_set_enabled(c->io, SD_EVENT_ON);
        if (r < 0)
                return r;

        /* A message that has begun must end in time, however slowly its bytes trickle in; of an answer it is enough that some of it is read. */
        if (!(events & EPOLLIN) || !varlink_channel_is_partial(&c->channel))
                c->input_since = 0;
        else if (c->input_since == 0)
                c->input_since = now_usec();
        if (!c->channel.out)
                c->output_since = 0;
        else if (c->output_since == 0)
                c->output_since = now_usec();

        deadline = connection_deadline(c);
        if (deadline == UINT64_MAX)
                return sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
        /* Setting the time takes back a timer that is due already; whoever keeps us busy does not gain by that. */
        if (now_usec() >= deadline)
                return -ETIMEDOUT;
        r = sd_event_source_set_time(c->timer, deadline);
        return r < 0 ? r : sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

static int connection_flush(Connection *c) {
        size_t before = c->channel.out_size;
        int r;

        r = varlink_channel_flush(&c->channel);
        if (c->channel.out_size < before)
                c->output_since = 0;
        return r == -EAGAIN ? 0 : r;
}

/* Handles whole messages that are here already. Returns > 0 where there may be more of them, 0 where there are none or their turn
 * has not come, negative where the connection is to be closed. */
static int connection_process(Connection *c) {
        unsigned turns = is_served_last(c) ? CALLS_PER_TURN_OF_STRANGERS : CALLS_PER_TURN;
        int r;

        for (unsigned i = 0; i < turns; i++) {
                VarlinkMessage message = {};
                _cleanup_(varlink_call_unrefp) VarlinkCall *call = NULL;

                if (!wants_input(c))
                        return 0;
                r = varlink_channel_next(&c->channel, &message);
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
        else
                /* What came before the violation was right, and is answered, as far as that is possible at once. */
                (void) connection_flush(c);
        if (r >= 0 && !c->channel.out && c->current && c->current->drained) {
                c->current->drained(c->current, c->current->drained_userdata);
                if (!c->server)
                        return;
        }
        if (r >= 0 && !c->channel.out && c->upgrading) {
                connection_upgrade(c);
                return;
        }
        /* After the end of the peer's calls it waits for our answers at most. */
        if (r >= 0 && c->ended && more == 0 && !c->current && !c->channel.out)
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
                r = varlink_channel_read(&c->channel);
                if (r == 0)
                        c->ended = true;
                if (r == -EAGAIN)
                        r = 1;
        } else if (revents & (EPOLLHUP | EPOLLERR)) {
                /* Who wants no answer may leave before it is known whether his call may be made. What he sent behind it is looked at when it was. */
                if (c->current && c->current->oneway && sd_event_source_set_enabled(c->io, SD_EVENT_OFF) >= 0)
                        return 0;
                /* Nobody is there any more to read an answer, and we do not want to read (or there is nothing). */
                r = -ECONNRESET;
        }
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

        if (getsockopt(c->channel.fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &size) < 0)
                return -errno;

        size = 0;
        if (getsockopt(c->channel.fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) >= 0 || errno != ERANGE)
                return 0;
        c->groups = malloc(size);
        if (!c->groups)
                return -ENOMEM;
        if (getsockopt(c->channel.fd, SOL_SOCKET, SO_PEERGROUPS, c->groups, &size) < 0)
                return -errno;
        c->n_groups = size / sizeof(gid_t);
        return 0;
}

/* Whom our user namespace does not map is anybody: one of them must not keep the others out by mere presence. So the one who came first of
 * those that wait for nothing and were never found to have a right goes, for the latest. */
static bool evict_stranger(VarlinkServer *s) {
        Connection *oldest = NULL;

        for (Connection *c = s->connections; c; c = c->next)
                if (is_stranger(c) && !c->current && !c->upgrading)
                        oldest = c;
        if (oldest)
                connection_close(oldest);
        return oldest;
}

static bool server_is_full(VarlinkServer *s, uid_t uid) {
        unsigned n = 0, n_strangers = 0, strangers_max = s->limits.strangers ?: UINT_MAX;

        for (Connection *c = s->connections; c; c = c->next) {
                n += c->peer.uid == uid;
                n_strangers += is_stranger(c);
        }
        if (s->n_connections < s->limits.connections && n < s->limits.connections_per_uid &&
                (uid != OVERFLOW_ID || n_strangers < strangers_max))
                return false;
        return uid != OVERFLOW_ID || !evict_stranger(s);
}

static int connection_watch(Connection *c, sd_event *event) {
        int r;

        r = sd_event_add_io(event, &c->io, c->channel.fd, EPOLLIN, on_io, c);
        if (r < 0)
                return r;
        r = sd_event_add_time(event, &c->timer, CLOCK_MONOTONIC, UINT64_MAX, USEC_PER_SEC, on_timeout, c);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
}

int varlink_server_adopt_connection(VarlinkServer *s, int fd) {
        _cleanup_(connection_unrefp) Connection *c = calloc(1, sizeof(*c));
        int r;

        if (!c) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        c->n_ref = 1;
        r = varlink_channel_open(&c->channel, fd);
        if (r < 0)
                return r;
        c->channel.message_size = s->limits.message_size;
        c->channel.in_size = s->limits.call_size;
        c->channel.depth = s->limits.depth;
        c->channel.fds = s->limits.fds;

        r = connection_identify(c);
        if (r < 0)
                return r;
        if (server_is_full(s, c->peer.uid))
                return -EMFILE;
        r = connection_watch(c, s->event);
        if (r < 0)
                return r;

        c->server = s;
        (void) connection_set_priority(c);
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

/* While strangers come in numbers they do in turn with those who are served last, whom they would keep waiting for good; else whoever connects need not wait until
 * there is nothing else to do. */
static void listener_set_crowded(Listener *l, bool crowded) {
        if (l->crowded != crowded && sd_event_source_set_priority(l->source, crowded ? SD_EVENT_PRIORITY_IDLE : SD_EVENT_PRIORITY_NORMAL) >= 0)
                l->crowded = crowded;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        enable_listeners(userdata, SD_EVENT_ON);
        return 0;
}

/* More strangers at once than half of their places: of those whom they would put out nobody had looked at what they have to say. Behind them in the queue may be
 * somebody who is known, so that they cannot be left there. */
static bool is_crowding(VarlinkServer *s, int fd, unsigned *n_strangers) {
        struct ucred peer;
        socklen_t size = sizeof(peer);

        return s->limits.strangers > 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) >= 0 && peer.uid == OVERFLOW_ID &&
                ++*n_strangers > MAX(s->limits.strangers / 2, 1U);
}

static int on_listen(sd_event_source *source, int listen_fd, uint32_t revents, void *userdata) {
        Listener *l = userdata;
        VarlinkServer *s = l->server;
        unsigned n_strangers = 0;
        int fd = -EBADF, error;

        for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
                fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0)
                        break;
                /* One who comes when it is full, or who is gone already, is closed and that is all. */
                if (is_crowding(s, fd, &n_strangers))
                        (void) safe_close(fd);
                else
                        (void) varlink_server_adopt_connection(s, fd);
        }
        error = errno;
        listener_set_crowded(l, n_strangers > STRANGERS_AT_ONCE);
        if (fd >= 0)
                return 0;

        switch (error) {
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
        VarlinkChannel probe;
        int r;

        /* For its side effect on the descriptor only: accept4() must not block, either. */
        r = varlink_channel_open(&probe, TAKE_FD(owned));
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
        if (limits->call_size > 0)
                s->limits.call_size = limits->call_size;
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
        if (limits->strangers > 0)
                s->limits.strangers = limits->strangers;
        if (limits->timeout_usec > 0)
                s->limits.timeout_usec = limits->timeout_usec;
        if (limits->stall_usec > 0)
                s->limits.stall_usec = limits->stall_usec;
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
