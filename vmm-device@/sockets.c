/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "sockets.h"

static bool endswith(const char *s, const char *suffix) {
        size_t l = strlen(s), k = strlen(suffix);

        return l >= k && streq(s + l - k, suffix);
}

/* /run/vmm/MACHINE/NAME.vhost-user says which device of which machine this is. */
static int learn_names(Sockets *s, const char *path) {
        const char *rest = startswith(path, "/run/vmm/"), *slash = rest ? strchr(rest, '/') : NULL;
        const char *dot = slash ? strrchr(slash, '.') : NULL;

        if (!slash || !dot || strchr(slash + 1, '/') || s->machine)
                return 0;
        s->machine = strndup(rest, (size_t) (slash - rest));
        s->name = strndup(slash + 1, (size_t) (dot - slash - 1));
        return s->machine && s->name ? 0 : -ENOMEM;
}

/* Takes one passed descriptor where it is a socket of ours: 1 then. */
static int take_listening(Sockets *s, int fd) {
        struct sockaddr_un address = {};
        socklen_t length = sizeof(address) - 1; /* the path stays terminated */
        int *slot, r;

        if (getsockname(fd, (struct sockaddr *) &address, &length) < 0 || address.sun_family != AF_UNIX)
                return 0;
        if (endswith(address.sun_path, ".varlink"))
                slot = &s->varlink;
        else if (endswith(address.sun_path, ".vsock"))
                slot = &s->vsock;
        else if (endswith(address.sun_path, ".vsock" VSOCK_MESSAGES_SUFFIX))
                slot = &s->vsock_messages;
        else if (endswith(address.sun_path, ".vhost-user") || endswith(address.sun_path, ".bus") || endswith(address.sun_path, ".plugin"))
                slot = &s->transport;
        else
                return 0;
        if (*slot >= 0)
                return -EEXIST;
        r = learn_names(s, address.sun_path);
        if (r < 0)
                return r;
        *slot = fd;
        return 1;
}

int sockets_from_manager(Sockets *s, PassedFds *passed) {
        for (size_t i = 0; i < passed->n; i++) {
                PassedFd *p = &passed->fds[i];
                int r;

                if (sd_is_socket(p->fd, AF_UNIX, 0, 1) <= 0)
                        continue;
                r = take_listening(s, p->fd);
                if (r < 0)
                        return r;
                if (r > 0)
                        p->fd = -EBADF;
        }
        return 0;
}

int sockets_take_fd(Sockets *s, int fd) {
        int listening;
        socklen_t length = sizeof(listening);

        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0)
                return -errno;
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
                return -errno;
        *(listening ? &s->transport : &s->connection) = fd;
        return 0;
}

/* Removes a socket that nobody listens on. */
static int remove_stale(const char *path) {
        _cleanup_close_ int fd = -EBADF;
        struct stat st;

        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISSOCK(st.st_mode))
                return -EEXIST;
        fd = connect_unix(path);
        if (fd >= 0)
                return -EADDRINUSE;
        return unlink(path) < 0 ? -errno : 0;
}

static int listen_as(const char *path, int type) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        strcpy(address.sun_path, path);
        r = remove_stale(path);
        if (r < 0)
                return r;

        fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        if (bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        if (listen(fd, SOMAXCONN) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int socket_listen(const char *path) {
        return listen_as(path, SOCK_STREAM);
}

int socket_listen_packets(const char *path) {
        return listen_as(path, SOCK_SEQPACKET);
}

void sockets_done(Sockets *s) {
        s->transport = safe_close(s->transport);
        s->connection = safe_close(s->connection);
        s->varlink = safe_close(s->varlink);
        s->vsock = safe_close(s->vsock);
        s->vsock_messages = safe_close(s->vsock_messages);
        s->machine = mfree(s->machine);
        s->name = mfree(s->name);
}
