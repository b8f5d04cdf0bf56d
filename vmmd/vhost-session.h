/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* One connection to a vhost-user back-end: requests, their replies, and the negotiation it begins with. What the back-end sends is
 * judged here. Every request ends within the session's time-out, however slowly its reply drips.
 *
 * Errors: -EREMOTEIO where the back-end refused the request, the session being as good as before; -ECONNREFUSED where it is a helper of ours that refuses to be one
 * at all (VHOST_USER_REFUSAL); this and any other means that it is over: its socket is
 * shut down then, so that whoever watches it sees its end. One thread at a time. */

#include "util.h"
#include "vhost-user.h"

#define VHOST_BIT(n) (UINT64_C(1) << (n))

typedef struct RestorePeer RestorePeer;

typedef struct VhostSession {
        int fd;         /* does not block */
        int backend_fd; /* our end of the back-end's own channel */
        uint64_t features;          /* what the back-end offers */
        uint64_t protocol_features; /* negotiated */
        uint64_t timeout_usec;
        RestorePeer *peer; /* vhost-postcopy.h; NULL where all of guest memory is there, or the back-end has none */
} VhostSession;

static inline bool vhost_session_has(const VhostSession *s, unsigned protocol_feature) {
        return s->protocol_features & VHOST_BIT(protocol_feature);
}

/* Sends a request that has no reply; with `confirm`, and where negotiated, waits for the back-end's word. Fills in msg->header. */
int vhost_session_tell(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, const int *fds, size_t n_fds,
        bool confirm);
int vhost_session_tell_u64(VhostSession *s, uint32_t request, uint64_t value);
/* Sends a request that has a reply, which replaces *msg. *ret_fd is the one descriptor that came with it, or -EBADF; NULL closes it. */
int vhost_session_ask(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, int *ret_fd);
/* The same with descriptors, which stay the caller's. */
int vhost_session_ask_passing(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, const int *fds, size_t n_fds, int *ret_fd);
/* A request or reply was lost, or never meant: nothing more is asked on this connection. Returns `error`. */
int vhost_session_over(VhostSession *s, int error);
int vhost_session_ask_u64(VhostSession *s, uint32_t request, uint64_t *ret);

/* The beginning of a session: features, protocol features, queue count, the back-end's own channel. *ret_message says what is
 * wrong where errno cannot. */
int vhost_session_negotiate(VhostSession *s, unsigned n_queues, char **ret_message);

/* Bytes of configuration space that a device of this kind has. */
uint32_t vhost_config_size(uint16_t virtio_id);
/* Configuration space, its first `size` bytes: `data` has room for VHOST_USER_CONFIG_MAX. *ret_size 0 where it has none. */
int vhost_session_get_config(VhostSession *s, uint32_t size, void *data, uint32_t *ret_size);
int vhost_session_set_config(VhostSession *s, uint32_t offset, const void *data, uint32_t size);
