/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The host's side: AF_UNIX sockets, as Firecracker and Cloud Hypervisor have them. A client of the host's connects to our socket, says "CONNECT PORT\n", and
 * reads "OK PORT\n" when the guest has accepted; a connection of the guest's to port P goes to the socket whose path is ours
 * with "_P" behind it. For messages there is a socket of its own, where both lines are messages; a guest's connection of either type finds a socket of that type, or
 * nobody. Sockets are watched edge-triggered: what one can do is remembered, so that waiting for the guest costs no system call. */

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "parse.h"
#include "vsock.h"

/* "CONNECT 4294967295\n" is 19 bytes long. */
#define GREETING_MAX 32U
#define ACCEPT_TURN_MAX 16U

static void set_hung_up(VsockConnection *c) {
        c->host_hung_up = true;
        if (c->host_ended || c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV)
                vsock_connection_shut_down(c, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
}

/* ---- clients of the host's ---- */

/* Ports that the host's ends of connections have; none is used twice. */
static uint32_t next_port(Vsock *v, uint32_t guest_port) {
        do
                v->last_port = v->last_port >= UINT32_MAX - 1 ? UINT32_C(1) << 30 : v->last_port + 1;
        while (vsock_connection_find(v, guest_port, v->last_port));
        return v->last_port;
}

/* "CONNECT PORT\n" */
static int parse_greeting(char *text, uint32_t *ret) {
        const char *number;
        uint64_t port;

        text[strlen(text) - 1] = 0;
        number = startswith(text, "CONNECT ");
        if (!number || parse_unsigned(number, &port) < 0 || port >= UINT32_MAX) /* that is VMADDR_PORT_ANY */
                return -EINVAL;
        *ret = (uint32_t) port;
        return 0;
}

/* Takes the first line and no byte more: what follows is the guest's. 1 where it is complete, 0 where not yet. */
static int take_greeting(VsockConnection *c, uint32_t *ret_port) {
        char buffer[GREETING_MAX + 1] = {};
        struct iovec iov = { .iov_base = buffer, .iov_len = GREETING_MAX };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        const char *end;
        ssize_t n;

        n = recvmsg(c->fd, &message, MSG_PEEK | MSG_DONTWAIT);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0)
                return -ENODATA;
        end = memchr(buffer, '\n', (size_t) n);
        if (!end)
                return n < (ssize_t) GREETING_MAX && !c->host_hung_up ? 0 : -EINVAL;
        iov.iov_len = (size_t) (end - buffer) + 1;
        n = recvmsg(c->fd, &message, MSG_DONTWAIT);
        if (n != (ssize_t) iov.iov_len)
                return -EINVAL;
        buffer[n] = 0;
        if (strlen(buffer) != (size_t) n)
                return -EINVAL;
        return parse_greeting(buffer, ret_port) < 0 ? -EINVAL : 1;
}

/* A message by itself. */
static int take_greeting_message(VsockConnection *c, uint32_t *ret_port) {
        char buffer[GREETING_MAX + 1] = {};
        struct iovec iov = { .iov_base = buffer, .iov_len = GREETING_MAX };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        n = recvmsg(c->fd, &message, MSG_DONTWAIT);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0 || message.msg_flags & MSG_TRUNC || strlen(buffer) != (size_t) n || buffer[n - 1] != '\n')
                return -EINVAL;
        return parse_greeting(buffer, ret_port) < 0 ? -EINVAL : 1;
}

static void on_greeting(VsockConnection *c) {
        Vsock *v = c->vsock;
        uint32_t port = 0;
        int r;

        r = c->type == VIRTIO_VSOCK_TYPE_STREAM ? take_greeting(c, &port) : take_greeting_message(c, &port);
        if (r < 0)
                (void) vsock_connection_free(c);
        if (r <= 0)
                return;
        vsock_connection_name(c, port, next_port(v, port));
        c->state = VSOCK_REQUESTING;
        c->say = VSOCK_SAY_REQUEST;
        c->readable = true; /* more may be there already */
        vsock_connection_set_deadline(c, now_usec() + VSOCK_TIMEOUT_USEC);
        vsock_connection_work(c);
}

void vsock_socket_accepted(VsockConnection *c) {
        char text[32];
        struct iovec iov = { .iov_base = text };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

        iov.iov_len = (size_t) snprintf(text, sizeof(text), "OK %u\n", c->host_port);
        c->state = VSOCK_ESTABLISHED;
        c->vsock->n_by_host++;
        vsock_connection_set_deadline(c, 0);
        /* The first bytes that it is sent fit. */
        if (sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t) iov.iov_len)
                vsock_connection_reset(c);
        else
                vsock_connection_work(c);
}

static void accept_one(const VsockListener *l, Vsock *v, int fd) {
        VsockConnection *c;

        if (l->type == VIRTIO_VSOCK_TYPE_SEQPACKET && v->met_guest && !v->messages) {
                (void) close(fd); /* the guest's driver knows none */
                return;
        }
        c = vsock_connection_new(v, false, l->type, fd);
        if (!c)
                return;
        vsock_connection_set_deadline(c, now_usec() + VSOCK_TIMEOUT_USEC);
        if (vsock_socket_watch(c) < 0)
                (void) vsock_connection_free(c);
}

static int on_client(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Vsock *v = userdata;

        for (unsigned i = 0; i < ACCEPT_TURN_MAX && v->n_host < VSOCK_HOST_CONNECTIONS_MAX; i++) {
                int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

                if (connection < 0) {
                        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED && log_ratelimit(&v->complaints, NULL))
                                (void) log_warning_errno(errno, "Cannot accept a client: %m");
                        break;
                }
                for (unsigned k = 0; k < v->n_listeners; k++)
                        if (v->listeners[k].source == source)
                                accept_one(&v->listeners[k], v, connection);
        }
        vsock_listen_update(v);
        return 0;
}

void vsock_listen_update(Vsock *v) {
        bool wanted = v->n_host < VSOCK_HOST_CONNECTIONS_MAX && v->n_resets < VSOCK_RESETS_FULL && !v->settling;

        for (unsigned i = 0; i < v->n_listeners; i++) {
                sd_event_source *source = v->listeners[i].source;
                int enabled = SD_EVENT_OFF;

                if (source && sd_event_source_get_enabled(source, &enabled) >= 0 && (enabled == SD_EVENT_ON) != wanted)
                        (void) sd_event_source_set_enabled(source, wanted ? SD_EVENT_ON : SD_EVENT_OFF);
        }
}

/* The guest's connections go to where the streams' path says. */
static int learn_path(Vsock *v, int fd) {
        struct sockaddr_un address = {};
        socklen_t length = sizeof(address) - 1; /* the path stays terminated */

        if (getsockname(fd, (struct sockaddr *) &address, &length) < 0)
                return -errno;
        free(v->path);
        v->path = strdup(address.sun_path);
        return v->path ? 0 : -ENOMEM;
}

/* Takes ownership of the listening socket, also on error. */
int vsock_listen(Device *d, int fd) {
        socklen_t length = sizeof(int);
        Vsock *v = device_data(d);
        VsockListener *l = &v->listeners[v->n_listeners];
        int flags, type, r;

        if (v->n_listeners >= ELEMENTSOF(v->listeners)) {
                (void) close(fd);
                return -E2BIG;
        }
        v->n_listeners++;
        *l = (VsockListener) { .fd = fd };
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
                return -errno;
        l->type = type == SOCK_SEQPACKET ? VIRTIO_VSOCK_TYPE_SEQPACKET : VIRTIO_VSOCK_TYPE_STREAM;
        /* A client that gave up between poll and accept must not block us. */
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        r = l->type == VIRTIO_VSOCK_TYPE_STREAM ? learn_path(v, fd) : 0;
        if (r >= 0)
                r = sd_event_add_io(device_event(d), &l->source, fd, EPOLLIN, on_client, v);
        return r < 0 ? r : sd_event_source_set_description(l->source, "vsock clients");
}

void vsock_sockets_close(Vsock *v) {
        for (unsigned i = 0; i < v->n_listeners; i++) {
                v->listeners[i].source = sd_event_source_disable_unref(v->listeners[i].source);
                v->listeners[i].fd = safe_close(v->listeners[i].fd);
        }
        v->n_listeners = 0;
        v->path = mfree(v->path);
}

/* ---- sockets of the host's ---- */

int vsock_socket_connect(Vsock *v, uint32_t port, uint16_t type) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;
        int n;

        if (!v->path)
                return -ENOENT;
        n = snprintf(address.sun_path, sizeof(address.sun_path), "%s_%u", v->path, port);
        if (n < 0 || (size_t) n >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        fd = socket(AF_UNIX, (type == VIRTIO_VSOCK_TYPE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        /* There is no waiting: where the backlog is full, this is EAGAIN. */
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

static int on_socket(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        VsockConnection *c = userdata;
        Vsock *v = c->vsock;

        if (c->state == VSOCK_DRAINING) {
                if (revents & (EPOLLHUP | EPOLLERR))
                        (void) vsock_connection_free(c);
                else
                        (void) vsock_socket_flush(c);
                return 0;
        }
        if (revents & (EPOLLRDHUP | EPOLLHUP))
                c->host_ending = true;
        if (revents & EPOLLHUP)
                set_hung_up(c);
        if (c->state == VSOCK_GREETING)
                on_greeting(c);
        else if (c->state == VSOCK_REQUESTING && c->host_hung_up)
                vsock_connection_reset(c);
        else if (c->state != VSOCK_LEAVING) {
                if (revents & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) && !c->host_ended &&
                        !(c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV)) {
                        c->readable = true;
                        vsock_connection_work(c);
                }
                if (revents & EPOLLOUT && c->backlog_used > 0)
                        (void) vsock_socket_flush(c);
        }
        vsock_to_guest(v);
        return 0;
}

int vsock_socket_watch(VsockConnection *c) {
        return sd_event_add_io(device_event(c->vsock->device), &c->source, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, on_socket, c);
}

/* ---- what the guest sends ---- */

/* Nobody reads any more: the guest may stop sending. */
static void set_deaf(VsockConnection *c) {
        c->host_deaf = true;
        vsock_connection_forwarded(c, c->backlog_used);
        c->backlog_used = c->partial = 0;
        vsock_connection_shut_down(c, VIRTIO_VSOCK_SHUTDOWN_RCV);
}

/* The two pieces of the backlog's ring, of what is in it or of what is free. */
static int ring_pieces(const VsockConnection *c, uint32_t at, uint32_t length, struct iovec ret[static 2]) {
        uint32_t first = MIN(length, c->buf_alloc - at);

        ret[0] = (struct iovec) { .iov_base = c->backlog + at, .iov_len = first };
        ret[1] = (struct iovec) { .iov_base = c->backlog, .iov_len = length - first };
        return length > first ? 2 : 1;
}

bool vsock_socket_keep(VsockConnection *c, IovCursor *payload) {
        uint32_t length = (uint32_t) payload->left;
        struct iovec pieces[2];
        int n;

        if (!c->backlog && c->type == VIRTIO_VSOCK_TYPE_SEQPACKET)
                c->backlog = calloc(1, c->buf_alloc + c->buf_alloc / 8); /* with a bit for each byte: vsock-message.c */
        else if (!c->backlog)
                c->backlog = malloc(c->buf_alloc);
        if (!c->backlog) {
                vsock_connection_reset(c);
                return false;
        }
        if (c->backlog_used == 0)
                c->backlog_at = 0;
        n = ring_pieces(c, (c->backlog_at + c->backlog_used) % c->buf_alloc, length, pieces);
        for (int i = 0; i < n; i++)
                (void) iov_cursor_read(payload, pieces[i].iov_base, pieces[i].iov_len);
        c->backlog_used += length;
        c->vsock->n_backlogged += length;
        return true;
}

/* How much the socket took; 0 where it can take nothing now, a negative errno where it never will again. */
static ssize_t socket_send(const VsockConnection *c, struct iovec *iov, size_t n) {
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = n };
        ssize_t sent;

        do
                sent = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (sent < 0 && errno == EINTR);
        if (sent < 0)
                return errno == EAGAIN ? 0 : -errno;
        return sent;
}

bool vsock_socket_write(VsockConnection *c, IovCursor *payload) {
        struct iovec iov[VSOCK_IOV_MAX];
        size_t n_iov;

        while (payload->left > 0 && c->backlog_used == 0 && !c->host_deaf && c->fd >= 0) {
                ssize_t n;

                (void) iov_cursor_map(payload, payload->left, iov, VSOCK_IOV_MAX, &n_iov);
                n = socket_send(c, iov, n_iov);
                if (n < 0)
                        set_deaf(c);
                if (n <= 0)
                        break;
                (void) iov_cursor_skip(payload, (uint64_t) n);
                vsock_connection_forwarded(c, (uint32_t) n);
        }
        if (payload->left == 0)
                return true;
        if (c->fd >= 0 && !c->host_deaf)
                return vsock_socket_keep(c, payload);
        vsock_connection_forwarded(c, (uint32_t) payload->left);
        return true;
}

bool vsock_socket_write_whole(VsockConnection *c, IovCursor *payload) {
        uint32_t length = (uint32_t) payload->left;
        struct iovec iov[VSOCK_IOV_MAX];
        size_t n_iov;
        ssize_t n;

        /* One that lies in too many pieces is put together first. */
        if (iov_cursor_map(payload, length, iov, VSOCK_IOV_MAX, &n_iov) < length)
                return false;
        n = socket_send(c, iov, n_iov);
        if (n == 0)
                return false;
        if (n < 0)
                set_deaf(c);
        vsock_connection_forwarded(c, length);
        return true;
}

/* What the socket may be given next. */
static uint32_t first_piece(VsockConnection *c) {
        return c->type == VIRTIO_VSOCK_TYPE_STREAM ? c->backlog_used : vsock_message_first(c);
}

bool vsock_socket_flush(VsockConnection *c) {
        uint32_t length;

        while ((length = first_piece(c)) > 0) {
                struct iovec pieces[2];
                int n_pieces = ring_pieces(c, c->backlog_at, length, pieces);
                ssize_t n = socket_send(c, pieces, (size_t) n_pieces);

                if (n < 0) {
                        if (c->state != VSOCK_DRAINING) {
                                set_deaf(c);
                                return true;
                        }
                        (void) vsock_connection_free(c);
                        return false;
                }
                if (n == 0)
                        return true;
                if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET)
                        vsock_message_sent(c);
                c->backlog_at = (c->backlog_at + (uint32_t) n) % c->buf_alloc;
                c->backlog_used -= (uint32_t) n;
                vsock_connection_forwarded(c, (uint32_t) n);
        }
        if (c->state == VSOCK_DRAINING) {
                (void) vsock_connection_free(c);
                return false;
        }
        vsock_socket_shut_down(c);
        return true;
}

void vsock_socket_shut_down(VsockConnection *c) {
        if (c->fd < 0)
                return;
        if (c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND && c->backlog_used == c->partial)
                (void) shutdown(c->fd, SHUT_WR);
        if (c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) {
                c->readable = false;
                vsock_message_drop(c);
                (void) shutdown(c->fd, SHUT_RD);
        }
}
