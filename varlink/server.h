/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A Varlink server (varlink.org) on sd-event and json-c. It never blocks: sockets are non-blocking, everything that a peer can
 * make us keep is bounded, and whoever breaks the protocol loses his connection and nothing else happens.
 *
 * A method's callback gets parameters that were checked against the interface text. It answers at once, or keeps a reference to the
 * call and answers later; calls of one connection are answered strictly in order, so the next one waits. Replies are checked
 * against the text, too.
 *
 * File descriptors travel as systemd's Varlink does it: SCM_RIGHTS with the message, and the JSON carries the index.
 *
 * After varlink_server_new() it needs these system calls beyond memory allocation, so that a sandbox can be closed
 * before the first client comes: accept4, recvmsg, sendmsg, getsockopt, fcntl, epoll_ctl, timerfd_settime, close. */

#include <json-c/json.h>
#include <systemd/sd-event.h>

#include "util.h"

typedef struct VarlinkServer VarlinkServer;
typedef struct VarlinkCall VarlinkCall;

/* Returns 0 or positive where the call is answered or will be. A negative errno answers it, unless it was answered before:
 * -EACCES and -EPERM by org.varlink.service.PermissionDenied, others by io.systemd.System with the errno. `parameters` is always an
 * object, valid while the call is. */
typedef int (*VarlinkCallback)(VarlinkCall *call, json_object *parameters, void *userdata);

typedef enum VarlinkMethodFlags {
        VARLINK_METHOD_PRIVILEGED = 1 << 0,    /* only for peers that varlink_call_is_privileged() accepts; else PermissionDenied */
        VARLINK_METHOD_REQUIRES_MORE = 1 << 1, /* ExpectedMore for a call without "more" */
        VARLINK_METHOD_UPGRADES = 1 << 2,      /* "upgrade" is needed; see varlink_call_reply_upgrade() */
} VarlinkMethodFlags;

typedef struct VarlinkMethod {
        const char *name; /* without the interface: "Describe" */
        VarlinkCallback callback;
        VarlinkMethodFlags flags;
        unsigned right;   /* what the peer needs, for VarlinkAuthorize; 0 is nothing */
} VarlinkMethod;

typedef struct VarlinkLimits {
        size_t message_size;          /* bytes of one message, either direction; 1 MiB */
        size_t call_size;             /* the same for calls only, where they are to be smaller */
        unsigned depth;               /* nesting of one message; 32 */
        unsigned fds;                 /* descriptors with one message; 16 */
        size_t write_queue;           /* bytes queued for a peer that does not read; 2 MiB */
        unsigned connections;         /* 4096 */
        unsigned connections_per_uid; /* 2048; users that our user namespace does not map count as one, and of those the idle without rights make room */
        unsigned strangers;           /* connections of such users who were not found to have a right. Where it is given they are also served last, after all
                                         else that the loop has to do; where not, they are like others */
        uint64_t timeout_usec;        /* for the rest of a message, either direction; 30 s */
        uint64_t stall_usec;          /* the same for a subscriber of a stream (stream.h) that reads nothing at all; 1 h */
} VarlinkLimits;

int varlink_server_new(VarlinkServer **ret, sd_event *event);
/* Drops every connection. Calls that others still hold stay valid; answering them does nothing. */
VarlinkServer *varlink_server_free(VarlinkServer *s);
DEFINE_CLEANUP(VarlinkServer, varlink_server_free)

/* What org.varlink.service.GetInfo says. */
int varlink_server_set_info(VarlinkServer *s, const char *vendor, const char *product, const char *version, const char *url);
/* A field that is 0 keeps its default. */
void varlink_server_set_limits(VarlinkServer *s, const VarlinkLimits *limits);
/* Members of this group are privileged, as root and our own user are. (gid_t) -1 is none, the default. */
void varlink_server_set_access_group(VarlinkServer *s, gid_t gid);
/* Decides about methods with a `right`, after their parameters were checked and before their callback runs: returns > 0 (allowed), 0 (denied), a
 * negative errno, or -EINPROGRESS, where it has kept a reference and will either call varlink_call_admit() or answer the call
 * with an error. It may have answered by itself, too. Until then no later call of the same connection is made. What it set by
 * varlink_call_on_close() is gone when the callback runs. Without one, any right is varlink_call_is_privileged(). */
typedef int (*VarlinkAuthorize)(VarlinkCall *call, unsigned right, void *userdata);
void varlink_server_set_authorize(VarlinkServer *s, VarlinkAuthorize authorize, void *userdata);
/* Runs the method's callback after all. 0 also where the client has gone meanwhile. */
int varlink_call_admit(VarlinkCall *call);
/* Rights that were found out for good, remembered for the connection: a mask of the authorizer's own making, 0 at first. */
unsigned varlink_call_granted(VarlinkCall *call);
void varlink_call_grant(VarlinkCall *call, unsigned rights);
/* The connection, borrowed: to pass it to somebody who can tell who is at its other end. -ENOTCONN where it is gone. */
int varlink_call_peer_fd(VarlinkCall *call);
/* org.varlink.service.PermissionDenied, with a field "reason" beyond the specification's. */
int varlink_call_error_denied(VarlinkCall *call, const char *format, ...) _printf_(2, 3);

/* `text` must outlive the server (interfaces.h has ours); `methods` too, and ends with an entry whose name is NULL. A method of the
 * text that is not in the table answers MethodNotImplemented. -EINVAL where the text is wrong or lacks a method of the table,
 * -EEXIST where the interface is there already. */
int varlink_server_add_interface(VarlinkServer *s, const char *text, const VarlinkMethod *methods, void *userdata);

/* Both take ownership of the fd, also on error, and make it non-blocking. */
int varlink_server_listen_fd(VarlinkServer *s, int fd);
int varlink_server_adopt_connection(VarlinkServer *s, int fd);
unsigned varlink_server_n_connections(VarlinkServer *s);

/* A call. Where the last reference goes before an answer, the client is told ECANCELED. */
VarlinkCall *varlink_call_ref(VarlinkCall *call);
VarlinkCall *varlink_call_unref(VarlinkCall *call);
DEFINE_CLEANUP(VarlinkCall, varlink_call_unref)

const char *varlink_call_method(VarlinkCall *call); /* full name: "io.vmmd.Machine.Describe" */
json_object *varlink_call_parameters(VarlinkCall *call);
bool varlink_call_wants_more(VarlinkCall *call);
bool varlink_call_is_oneway(VarlinkCall *call);

/* The peer, as it was when it connected (SO_PEERCRED, SO_PEERGROUPS). */
uid_t varlink_call_peer_uid(VarlinkCall *call);
gid_t varlink_call_peer_gid(VarlinkCall *call);
pid_t varlink_call_peer_pid(VarlinkCall *call);
bool varlink_call_peer_in_group(VarlinkCall *call, gid_t gid);
/* > 0 where the peer may change things by the server's own rule (varlink_server_set_access_group()), whatever the authorizer says; 0 where
 * not, or a negative errno. */
int varlink_call_is_privileged(VarlinkCall *call);

/* Answers. `parameters` may be NULL (none) and stays the caller's. A call takes one final answer, a second one is -EALREADY; for a
 * oneway call they succeed and send nothing; -ENOTCONN where the client is gone. An answer that does not match the interface text
 * is our own mistake: it is not sent, the client is told EPROTO and which field, and -EPROTO returned. */
int varlink_call_reply(VarlinkCall *call, json_object *parameters);
/* One of several replies, for a call with "more" (-EOPNOTSUPP otherwise). -ENOBUFS where the peer does not read and its queue is full:
 * nothing is queued then, and the caller decides whether to drop or to end. */
int varlink_call_reply_continues(VarlinkCall *call, json_object *parameters);
int varlink_call_error(VarlinkCall *call, const char *error_id, json_object *parameters);
/* The standard errors. */
int varlink_call_error_errno(VarlinkCall *call, int error);
int varlink_call_error_invalid_parameter(VarlinkCall *call, const char *name);

bool varlink_call_wants_upgrade(VarlinkCall *call);
/* Answers a call with "upgrade" and gives the connection up: once the reply is written, `upgraded` gets the socket, which is its from then on,
 * non-blocking, and what the client has sent already behind the call (`data` is valid during that call only). Where the client goes away before, what
 * varlink_call_on_close() set is called instead. The call's method
 * needs VARLINK_METHOD_UPGRADES; a call without "upgrade" is answered by it with org.varlink.service.ExpectedUpgrade. */
typedef void (*VarlinkUpgraded)(int fd, const void *data, size_t size, void *userdata);
int varlink_call_reply_upgrade(VarlinkCall *call, json_object *parameters, VarlinkUpgraded upgraded, void *userdata);

/* Attaches a descriptor to the next answer: takes ownership on success, returns its index. */
int varlink_call_push_fd(VarlinkCall *call, int fd);
/* A descriptor that came with the call, now the caller's; -ENXIO where there is none of that index (any more). Those not taken are closed at
 * the call's first answer. */
int varlink_call_take_fd(VarlinkCall *call, int64_t index);

/* Called once where the client goes away before the final answer, for whoever holds the call. */
typedef void (*VarlinkClosed)(VarlinkCall *call, void *userdata);
void varlink_call_on_close(VarlinkCall *call, VarlinkClosed closed, void *userdata);
