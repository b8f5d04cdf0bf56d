/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What server.c (listening and connections), call.c (one call) and service.c (org.varlink.service) share. */

#include <sys/socket.h>

#include "idl.h"
#include "json-util.h"
#include "message.h"
#include "server.h"

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
        VarlinkStream stream;
        sd_event_source *io, *timer;
        sd_event_source *resume; /* runs once where there is something to do without the socket having anything new */
        struct ucred peer;
        gid_t *groups;
        size_t n_groups;
        VarlinkCall *current; /* being answered; its owner is whoever holds a reference */
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
        json_object *parameters;
        bool more, oneway;
        bool answered;
        int *fds;
        size_t n_fds;
        VarlinkClosed closed;
        void *closed_userdata;
};

Connection *connection_ref(Connection *c);
Connection *connection_unref(Connection *c);
DEFINE_CLEANUP(Connection, connection_unref)
/* Closes and forgets; whoever waits on its call is told. */
void connection_close(Connection *c);
/* Something was queued, or the current call is done: look at the connection again, from the event loop. */
void connection_kick(Connection *c);

const ServerInterface *server_find_interface(VarlinkServer *s, const char *name, size_t length);

/* Takes the message over, also on error. -EBADMSG where it is no valid call. */
int call_new(Connection *c, VarlinkMessage *message, VarlinkCall **ret);
/* Finds the method, checks, and calls back. Negative only where the connection is to be closed. */
int call_dispatch(VarlinkCall *call);
/* The connection is gone. */
void call_abandon(VarlinkCall *call);

extern const VarlinkMethod service_methods[];
