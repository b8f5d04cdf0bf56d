/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Who is at the other end of a connection: what the kernel wrote down when it was made (unix(7), SO_PEERCRED, SO_PEERGROUPS,
 * SO_PEERPIDFD), which nobody can forge, and which changes neither with the process nor with the system's files of users and groups. */

#include "util.h"

typedef struct Peer {
        uid_t uid;
        gid_t gid;
        gid_t *groups; /* supplementary */
        size_t n_groups;
        pid_t pid;           /* 0 where it is in a PID namespace that we do not see into */
        int pidfd;           /* negative where the kernel does not hand them out (before Linux 6.5), or the process is gone */
        uint64_t start_time; /* of the process, in clock ticks since boot; 0 where it is gone. Tells it from a later one of the same PID */
        char *name;          /* for people: "user 'alice'", or "user 1000" where there is no such name */
} Peer;

/* -ENOTSOCK, -ENOTCONN and -EPROTOTYPE where `fd` is no connection to somebody. */
int peer_read(int fd, Peer *ret);
void peer_done(Peer *peer);

bool peer_in_group(const Peer *peer, gid_t gid);
