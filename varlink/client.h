/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A Varlink client: one connection, calls in order. Used blocking (vmmctl), or on an event loop that it never blocks
 * (vmmd towards its helpers). One client is either or the other: after varlink_client_attach_event() the blocking call is -EBUSY. */

#include <json-c/json.h>
#include <systemd/sd-event.h>

#include "util.h"

#define VARLINK_CLIENT_TIMEOUT_DEFAULT (45 * USEC_PER_SEC)

typedef struct VarlinkClient VarlinkClient;

/* Never blocks: -EAGAIN where the server's backlog is full, else what connect(2) says. */
int varlink_client_connect(const char *path, VarlinkClient **ret);
/* Waits for a place in the backlog, that long at most: for who has nothing else to do. */
int varlink_client_connect_within(const char *path, uint64_t usec, VarlinkClient **ret);
/* Takes ownership of the connected socket, also on error. */
int varlink_client_new_fd(int fd, VarlinkClient **ret);
VarlinkClient *varlink_client_ref(VarlinkClient *c);
/* With the last reference the connection closes; callbacks of calls without a reply are not called then. */
VarlinkClient *varlink_client_unref(VarlinkClient *c);
DEFINE_CLEANUP(VarlinkClient, varlink_client_unref)

/* How long a call may take, for calls made afterwards; UINT64_MAX is for ever. */
void varlink_client_set_timeout(VarlinkClient *c, uint64_t usec);

/* Attaches a descriptor to the next call: takes ownership on success, returns its index. */
int varlink_client_push_fd(VarlinkClient *c, int fd);
/* A descriptor of the latest reply, now the caller's; -ENXIO where there is none of that index (any more). Those not taken are closed at
 * the next reply (or, asynchronously, after the callback). */
int varlink_client_take_fd(VarlinkClient *c, int64_t index);

/* Blocking call. `parameters` may be NULL and stays the caller's. Returns 0 and *ret_reply (an object, the caller's), or
 * -EREMOTEIO with *ret_error_id (the caller's) and *ret_reply (the error's parameters) where the server answered by an error;
 * -ETIMEDOUT, -ECONNRESET, -EPROTO and the like where there is no answer: the connection is dead after these. `ret_reply` and
 * `ret_error_id` may be NULL. */
int varlink_client_call(VarlinkClient *c, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_error_id);
/* A blocking call with several replies ("more"): sent by the first, each reply is fetched by the second, which returns what
 * varlink_client_call() does. While *ret_continues is true there is another one, and other calls are -EBUSY; the time-out holds for the first
 * one only. Whoever has enough drops the client. */
int varlink_client_call_more(VarlinkClient *c, const char *method, json_object *parameters);
int varlink_client_receive(VarlinkClient *c, json_object **ret_reply, char **ret_error_id, bool *ret_continues);
/* A blocking call with "upgrade". On success the connection is the caller's and speaks whatever the method says: *ret_fd, non-blocking, and
 * what came behind the reply already, in *ret_data (NULL where there is nothing, else the caller's to free). The client is dead then. After
 * -EREMOTEIO it goes on as before. */
int varlink_client_call_upgrade(VarlinkClient *c, const char *method, json_object *parameters, json_object **ret_reply, char **ret_error_id,
        int *ret_fd, char **ret_data, size_t *ret_size);
/* Sends and expects no answer. */
int varlink_client_send_oneway(VarlinkClient *c, const char *method, json_object *parameters);

/* The asynchronous half. */
int varlink_client_attach_event(VarlinkClient *c, sd_event *event);
/* Called once for every reply. `error` is 0 for a reply, -EREMOTEIO where the server answered by `error_id`, or another
 * negative errno where no reply will come: then the connection is dead and each outstanding call is told in order. `reply` is borrowed; NULL
 * only without an answer. `continues` says that more replies follow (calls with VARLINK_CLIENT_MORE). */
typedef void (*VarlinkReply)(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues,
        void *userdata);
typedef enum VarlinkClientFlags {
        VARLINK_CLIENT_MORE = 1 << 0, /* several replies; the time-out holds for the first one only */
} VarlinkClientFlags;
/* Queues the call; pipelines after those before it. Needs attach_event(). */
int varlink_client_call_async(VarlinkClient *c, const char *method, json_object *parameters, VarlinkClientFlags flags,
        VarlinkReply callback, void *userdata);

/* Whether an error reply is that one; both may be NULL. A short word for reading replies. */
static inline bool varlink_error_is(const char *error_id, const char *expected) {
        return error_id && streq(error_id, expected);
}
