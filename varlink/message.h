/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Varlink's messages on a socket: a JSON object and one NUL byte each, descriptors beside them. A channel keeps what was received but is
 * not a whole message yet, and what is queued but could not be sent yet; both are bounded. It never blocks on a
 * non-blocking socket and knows nothing of calls and replies.
 *
 * Descriptors belong to the message that the last byte of the same recvmsg(2) belongs to: the kernel ends a read after
 * the buffer that carried them, and a sender gives each message that has some a sendmsg(2) of its own. */

#include <json-c/json.h>

#include "util.h"

#define VARLINK_MESSAGE_SIZE_DEFAULT MIB(1)
#define VARLINK_DEPTH_DEFAULT 32U
#define VARLINK_FDS_DEFAULT 16U

typedef struct VarlinkMessage {
        json_object *json; /* always an object */
        int *fds;
        size_t n_fds;
} VarlinkMessage;
void varlink_message_done(VarlinkMessage *m);
/* Hands one descriptor out; -ENXIO where there is none of that index (any more). */
int varlink_message_take_fd(VarlinkMessage *m, int64_t index);

/* A message ready to be sent, NUL and all; several channels may have the same one queued. */
typedef struct VarlinkBuffer {
        unsigned n_ref;
        size_t size;
        char data[];
} VarlinkBuffer;
/* The caller fills in `data`. */
VarlinkBuffer *varlink_buffer_new(size_t size);
VarlinkBuffer *varlink_buffer_ref(VarlinkBuffer *b);
VarlinkBuffer *varlink_buffer_unref(VarlinkBuffer *b);
DEFINE_CLEANUP(VarlinkBuffer, varlink_buffer_unref)
int varlink_buffer_new_json(json_object *json, VarlinkBuffer **ret);

typedef struct VarlinkOutput VarlinkOutput;

typedef struct VarlinkChannel {
        int fd;
        size_t message_size, in_size; /* the latter for what is received */
        unsigned depth;
        unsigned fds;

        char *in;
        size_t in_begin, in_end, in_allocated; /* [in_begin, in_end) is not taken yet */
        size_t in_scanned;                     /* [in_begin, in_scanned) holds no NUL */
        bool in_full;                          /* the latest read filled all there was, so there may be more */
        uint64_t in_taken;                     /* bytes of the stream before in_begin */
        struct {
                int fd;
                uint64_t last; /* stream position of the byte it belongs to */
        } *in_fds;
        size_t n_in_fds;

        VarlinkOutput *out, **out_tail;
        size_t out_size; /* bytes not sent yet */
} VarlinkChannel;

#define VARLINK_CHANNEL_NULL { .fd = -EBADF }

/* Takes ownership of the fd, also on error, and makes it non-blocking. The limits are then the defaults above. */
int varlink_channel_open(VarlinkChannel *s, int fd);
void varlink_channel_done(VarlinkChannel *s);

/* Reads once. Returns > 0 where something came, 0 at the end of the stream, -EAGAIN where nothing is there, -EMSGSIZE where a message is
 * too large, -EBADMSG where too many descriptors came, or another negative errno. */
int varlink_channel_read(VarlinkChannel *s);
/* The same for bytes from elsewhere: for tests. Takes ownership of the descriptors, also on error. */
int varlink_channel_feed(VarlinkChannel *s, const void *data, size_t size, const int *fds, size_t n_fds);
/* Takes the next whole message. Returns 1, 0 where there is none, -EBADMSG where it is no valid message. */
int varlink_channel_next(VarlinkChannel *s, VarlinkMessage *ret);
/* Whether the beginning of a message is there, but not its end. Only meaningful after next() returned 0. */
static inline bool varlink_channel_is_partial(const VarlinkChannel *s) {
        return s->in_end > s->in_begin;
}

/* Queues a message. The descriptors are taken over on success only. -EMSGSIZE where it is too large. */
int varlink_channel_queue(VarlinkChannel *s, json_object *json, const int *fds, size_t n_fds);
/* The same for what is serialized already; takes a reference of its own. */
int varlink_channel_queue_buffer(VarlinkChannel *s, VarlinkBuffer *buffer, const int *fds, size_t n_fds);
/* Sends what the socket takes: 0 where nothing is left, -EAGAIN where something is, or another negative errno. */
int varlink_channel_flush(VarlinkChannel *s);

/* Gives the socket away: *ret_data (NULL where there is nothing) is what was received already and not taken, the caller's to free. The
 * channel is done then. */
int varlink_channel_release(VarlinkChannel *s, char **ret_data, size_t *ret_size);

/* One message's text, without its NUL: a JSON object, strictly (no comments, no NaN, no NUL inside of strings, valid UTF-8). */
int varlink_json_parse(const char *text, size_t size, unsigned depth, json_object **ret);
