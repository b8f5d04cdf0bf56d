/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What server.c (listening and connections), call.c (one call) and service.c (org.varlink.service) share. */

#include <sys/socket.h>

#include "idl.h"
#include "json-util.h"
#include "message.h"
#include "server.h"

/* How every user and group looks that our user namespace does not map (user_namespaces(7)): no identity to grant anything to. */
#define OVERFLOW_ID 65534

typedef struct ServerInterface ServerInterface;
typedef struct Connection Connection;
typedef struct Listener Listener;

struct ServerInterface {
        ServerInterface *next;
        VarlinkInterface *idl;
        const char *text;
        const VarlinkMethod *methods;
        void *userdata;
};

struct Listener {
        Listener *next;
        VarlinkServer *server;
        sd_event_source *source; /* owns the fd */
        bool crowded; /* strangers came in numbers in its last turn */
};

struct VarlinkServer {
        sd_event *event;
        char *vendor, *product, *version, *url;
        ServerInterface *interfaces; /* in the order they were added; the first is org.varlink.service */
        Listener *listeners;
        sd_event_source *retry; /* turns the listeners on again after accept4() ran out of something */
        Connection *connections;
        unsigned n_connections;
        VarlinkLimits limits;
        uid_t uid; /* our own */
        gid_t access_group;
        VarlinkAuthorize authorize;
        void *authorize_userdata;
};

/* Lives as long as it is connected or a call refers to it; `server` is NULL once it is closed. */
struct Connection {
        unsigned n_ref;
        VarlinkServer *server;
        Connection *next;
        VarlinkChannel channel;
        sd_event_source *io, *timer;
        sd_event_source *resume; /* runs once where there is something to do without the socket having anything new; or NULL */
        struct ucred peer;
        gid_t *groups;
        size_t n_groups;
        VarlinkCall *current; /* being answered; its owner is whoever holds a reference */
        unsigned granted;     /* rights, as the authorizer counts them */
        VarlinkCall *upgrading; /* its answer is queued; behind it the connection is given away */
        VarlinkUpgraded upgraded;
        void *upgraded_userdata;
        bool ended;           /* the peer sends no more */
        uint64_t input_since, output_since; /* since when a message is half received / nothing could be sent; 0 where not */
};

struct VarlinkCall {
        unsigned n_ref;
        Connection *connection;
        VarlinkMessage message;
        char *method;                    /* the full name */
        const ServerInterface *interface; /* NULL where it is unknown; only valid while the connection's server is */
        const VarlinkSymbol *symbol;
        const VarlinkMethod *implementation; /* of the interface */
        json_object *parameters;
        bool more, oneway, upgrade;
        bool authorizing; /* the authorizer will say; the callback has not run */
        bool answered;
        int *fds;
        size_t n_fds;
        VarlinkClosed closed;
        void *closed_userdata;
        void (*drained)(VarlinkCall *call, void *userdata);
        void *drained_userdata;
};

Connection *connection_ref(Connection *c);
Connection *connection_unref(Connection *c);
DEFINE_CLEANUP(Connection, connection_unref)
/* Where it is known what its peer may do, or not yet: who is served when. */
int connection_set_priority(Connection *c);
/* Closes and forgets; whoever waits on its call is told. */
void connection_close(Connection *c);
/* Has the event loop look at the connection again when its turn comes. */
int connection_schedule(Connection *c);
/* The same, where something was queued or the current call is done; closes it where that cannot be. */
void connection_kick(Connection *c);

const ServerInterface *server_find_interface(VarlinkServer *s, const char *name, size_t length);

/* Takes the message over, also on error. -EBADMSG where it is no valid call. */
int call_new(Connection *c, VarlinkMessage *message, VarlinkCall **ret);
/* Finds the method, checks, and calls back. Negative only where the connection is to be closed. */
int call_dispatch(VarlinkCall *call);
/* The connection is gone. */
void call_abandon(VarlinkCall *call);

/* Whether that may be a reply of the call's method; -EPROTO where not. */
int call_check_output(VarlinkCall *call, json_object *parameters);
/* A whole reply, made and checked already, sent at once as far as the socket takes it. Calls nobody back and closes nothing (that is left to
 * the event loop), so that the caller may go on with his list of calls. */
int call_send_buffer(VarlinkCall *call, VarlinkBuffer *buffer, bool final);
/* Whether something is queued for the peer. */
bool call_is_behind(VarlinkCall *call);
/* From the event loop whenever the call is the current one and nothing is queued for its peer. A connection with such a call may be
 * behind for long (`stall_usec`): whoever sets this bounds what is kept for it. */
void call_on_drained(VarlinkCall *call, void (*drained)(VarlinkCall *call, void *userdata), void *userdata);

extern const VarlinkMethod service_methods[];
