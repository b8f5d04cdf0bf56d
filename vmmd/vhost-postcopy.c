/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/socket.h>

#include "vhost-postcopy.h"

bool vhost_postcopy_can(const VhostSession *s) {
        return vhost_session_has(s, VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT);
}

/* *ret_leash is our end of what ends the back-end's process; *ret_uffd -EBADF where it says no. */
static int advise(VhostSession *s, int device, int *ret_uffd, int *ret_leash) {
        _cleanup_close_ int ours = -EBADF, theirs = -EBADF;
        VhostUserMsg msg = {};
        int pair[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
                return vhost_session_over(s, -errno);
        ours = pair[0];
        theirs = pair[1];
        r = vhost_session_ask_passing(s, &msg, VHOST_USER_POSTCOPY_ADVISE, 0, (const int[]) { device, theirs }, 2, ret_uffd);
        if (r < 0)
                return r;
        *ret_leash = TAKE_FD(ours);
        return 0;
}

int vhost_postcopy_begin(VhostSession *s, RestoreMemory *pages, int device) {
        VhostUserMsg msg = {};
        int uffd = -EBADF, leash = -EBADF, r;

        r = advise(s, device, &uffd, &leash);
        if (r < 0)
                return r;
        if (uffd < 0) {
                (void) safe_close(leash);
                s->protocol_features &= ~VHOST_BIT(VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT);
                return -EREMOTEIO;
        }
        r = restore_peer_new(pages, uffd, leash, &s->peer);
        if (r >= 0)
                r = vhost_session_tell(s, &msg, VHOST_USER_POSTCOPY_LISTEN, 0, NULL, 0, true);
        if (r < 0) {
                /* It has begun, which has no way back but its end. */
                vhost_postcopy_drop(s);
                return vhost_session_over(s, r == -EREMOTEIO ? -EPROTO : r);
        }
        return 0;
}

int vhost_postcopy_give_memory(VhostSession *s, const GuestMemory *memory, VhostUserMsg *msg, uint32_t size, const int *fds, size_t n_fds) {
        uint64_t bases[VHOST_USER_MEMORY_REGIONS_MAX];
        int r;

        r = vhost_session_ask_passing(s, msg, VHOST_USER_SET_MEM_TABLE, size, fds, n_fds, NULL);
        if (r < 0)
                return r;
        if (msg->header.size != size || msg->payload.memory.nregions != n_fds)
                return vhost_session_over(s, -EPROTO);
        for (size_t i = 0; i < n_fds; i++)
                bases[i] = msg->payload.memory.regions[i].userspace_addr;
        restore_peer_map(s->peer, memory, bases);
        /* "only upon reception of this message may the guest start accessing the memory" */
        msg->payload.u64 = 0;
        return vhost_session_tell(s, msg, VHOST_USER_SET_MEM_TABLE, sizeof(uint64_t), NULL, 0, false);
}

int vhost_postcopy_end(VhostSession *s) {
        uint64_t answer = 0;
        int r;

        r = vhost_session_ask_u64(s, VHOST_USER_POSTCOPY_END, &answer);
        if (r >= 0 && answer != 0)
                r = vhost_session_over(s, -EPROTO);
        vhost_postcopy_drop(s);
        return r;
}

void vhost_postcopy_drop(VhostSession *s) {
        s->peer = restore_peer_free(s->peer);
}
