/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/socket.h>

#include "peer.h"

/* From Linux 6.5 on; the headers may be older than the kernel. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define STAT_SIZE_MAX KIB(4)

void peer_done(Peer *peer) {
        free(peer->groups);
        free(peer->name);
        (void) safe_close(peer->pidfd);
        *peer = (Peer) { .uid = (uid_t) -1, .gid = (gid_t) -1, .pidfd = -EBADF };
}

static int read_option_int(int fd, int option) {
        socklen_t size = sizeof(int);
        int value;

        if (getsockopt(fd, SOL_SOCKET, option, &value, &size) < 0)
                return -errno;
        return value;
}

/* SO_PEERCRED answers for any socket: of one that is not connected, with nobody. */
static int read_credentials(int fd, Peer *peer) {
        struct ucred credentials;
        socklen_t size = sizeof(credentials);
        int r;

        r = read_option_int(fd, SO_DOMAIN);
        if (r < 0)
                return r;
        if (r != AF_UNIX || read_option_int(fd, SO_TYPE) != SOCK_STREAM)
                return -EPROTOTYPE;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
                return -errno;
        if (size != sizeof(credentials) || credentials.uid == (uid_t) -1 || credentials.gid == (gid_t) -1)
                return -ENOTCONN;
        peer->uid = credentials.uid;
        peer->gid = credentials.gid;
        peer->pid = credentials.pid;
        return 0;
}

static int read_groups(int fd, Peer *peer) {
        socklen_t size = 16 * sizeof(gid_t);

        for (;;) {
                gid_t *groups = malloc(MAX(size, (socklen_t) sizeof(gid_t)));

                if (!groups)
                        return -ENOMEM;
                free(peer->groups);
                peer->groups = groups;
                /* A buffer that is too small is told the right size, which does not change: 65536 groups at most. */
                if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) >= 0)
                        break;
                if (errno != ERANGE)
                        return -errno;
        }
        peer->n_groups = size / sizeof(gid_t);
        return 0;
}

/* Field 22 of proc_pid_stat(5). Field 2, the name in parentheses, may hold anything: what follows its last one is plain. */
static int read_start_time(pid_t pid, uint64_t *ret) {
        _cleanup_free_ char *path = NULL, *text = NULL;
        _cleanup_close_ int fd = -EBADF;
        const char *p;
        char *end;
        size_t size;
        int r;

        if (asprintf(&path, "/proc/%i/stat", pid) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        r = read_whole_fd(fd, STAT_SIZE_MAX, &text, &size);
        if (r < 0)
                return r;
        p = strrchr(text, ')');
        for (unsigned field = 2; p && field < 22; field++)
                p = strchr(p + 1, ' ');
        if (!p || p[1] < '0' || p[1] > '9')
                return -EBADMSG;
        errno = 0;
        *ret = strtoull(p + 1, &end, 10);
        return errno != 0 || *end != ' ' ? -EBADMSG : 0;
}

static bool has_ended(int pidfd) {
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return poll(&p, 1, 0) != 0;
}

/* What tells the process from others. Its absence is no error: it may have ended, and its connection live on. */
static int read_process(int fd, Peer *peer) {
        int r;

        if (peer->pid <= 0) {
                peer->pid = 0;
                return 0;
        }
        r = read_option_int(fd, SO_PEERPIDFD);
        /* Where the kernel could tell and does not, the process is gone, and its PID may be another's by now: whose start time is not asked for. */
        if (r < 0 && r != -ENOPROTOOPT)
                return 0;
        if (r >= 0)
                peer->pidfd = r;
        r = read_start_time(peer->pid, &peer->start_time);
        /* In this order: what lives now had that PID when it was looked up. */
        if (peer->pidfd >= 0 && has_ended(peer->pidfd))
                peer->start_time = 0;
        return r == -ENOMEM ? r : 0;
}

static int read_name(Peer *peer) {
        struct passwd *user = getpwuid(peer->uid);
        int r;

        r = user ? asprintf(&peer->name, "user '%s'", user->pw_name) : asprintf(&peer->name, "user %u", peer->uid);
        if (r < 0) {
                peer->name = NULL;
                return -ENOMEM;
        }
        return 0;
}

int peer_read(int fd, Peer *ret) {
        Peer peer = { .uid = (uid_t) -1, .gid = (gid_t) -1, .pidfd = -EBADF };
        int r;

        r = read_credentials(fd, &peer);
        if (r >= 0)
                r = read_groups(fd, &peer);
        if (r >= 0)
                r = read_process(fd, &peer);
        if (r >= 0)
                r = read_name(&peer);
        if (r < 0) {
                peer_done(&peer);
                return r;
        }
        *ret = peer;
        return 0;
}

bool peer_in_group(const Peer *peer, gid_t gid) {
        if (peer->gid == gid)
                return true;
        for (size_t i = 0; i < peer->n_groups; i++)
                if (peer->groups[i] == gid)
                        return true;
        return false;
}
