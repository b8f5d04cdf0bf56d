/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Connections of messages: SOCK_SEQPACKET in the guest and on the host (virtio 1.2 §5.10.6.5). AF_UNIX takes a message as a whole or not at all, and gives it
 * as a whole. So what the guest sends is kept until its end has come, and what the host sends is taken when the guest has room for all of it: one message of
 * the host's at a time, of the whole device, is on its way into the guest's buffers. An empty message is passed on by nobody: who reads it, on either
 * side, takes it for the end. The mark "end of record" has no meaning for AF_UNIX, which knows none. */

#include <sys/ioctl.h>
#include <sys/socket.h>

#include "vsock.h"

/* What the kernel says of a socket's buffer is more than what a message may be long. */
#define SOCKET_OVERHEAD 32U

/* How much of the guest's a socket of the host's takes at once. */
uint32_t vsock_message_window(int fd, uint32_t wanted) {
        socklen_t length = sizeof(int);
        int size = (int) wanted;

        (void) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) < 0 || size <= 0)
                return 0;
        return (uint32_t) MIN((int64_t) wanted, (int64_t) size - SOCKET_OVERHEAD) & ~UINT32_C(7);
}

/* ---- from the guest: a bit for each byte of the backlog says whether a message ends there ---- */

static uint8_t *ends(const VsockConnection *c) {
        return c->backlog + c->buf_alloc;
}

static void mark_end(VsockConnection *c) {
        uint32_t last = (c->backlog_at + c->backlog_used - 1) % c->buf_alloc;

        ends(c)[last / 8] |= (uint8_t) (1u << last % 8);
        c->partial = 0;
}

uint32_t vsock_message_first(VsockConnection *c) {
        uint32_t at = c->backlog_at, length = 0;

        if (c->backlog_used == c->partial)
                return 0;
        if (c->first_message > 0)
                return c->first_message;
        for (;;) {
                uint32_t bit = at % 8, in_byte = 8 - bit;
                uint32_t bits = ends(c)[at / 8] >> bit;

                if (bits != 0) {
                        c->first_message = length + (uint32_t) __builtin_ctz(bits) + 1;
                        return c->first_message;
                }
                length += in_byte;
                at = (at + in_byte) % c->buf_alloc;
                assert(length < c->backlog_used);
        }
}

void vsock_message_sent(VsockConnection *c) {
        uint32_t last = (c->backlog_at + c->first_message - 1) % c->buf_alloc;

        ends(c)[last / 8] &= (uint8_t) ~(1u << last % 8);
        c->first_message = 0;
}

bool vsock_message_write(VsockConnection *c, IovCursor *payload, bool end) {
        uint32_t length = (uint32_t) payload->left;

        if (c->fd < 0 || c->host_deaf) {
                vsock_connection_forwarded(c, length);
                return true;
        }
        if (length > 0 && end && c->backlog_used == 0) {
                if (vsock_socket_write_whole(c, payload))
                        return true;
        }
        if (length > 0 && !vsock_socket_keep(c, payload))
                return false;
        c->partial += length;
        if (!end || c->partial == 0) {
                vsock_connection_forwarded(c, 0); /* the guest goes on */
                return true;
        }
        mark_end(c);
        return vsock_socket_flush(c);
}

/* ---- to the guest ---- */

bool vsock_message_may_be_taken(const VsockConnection *c) {
        return vsock_connection_credit(c) >= MAX(c->next_message, UINT32_C(1)) || c->next_message > c->peer_buf_alloc;
}

/* -EAGAIN where there is nothing. */
static ssize_t receive(const VsockConnection *c, void *data, size_t size, int flags) {
        struct iovec iov = { .iov_base = data, .iov_len = size };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        do
                n = recvmsg(c->fd, &message, flags | MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
}

/* An empty message, or the end: where the other side has gone, and what is left are not just more of those, it is not over. */
static void on_nothing(VsockConnection *c) {
        int left = 0;

        if (!c->host_ending || (ioctl(c->fd, FIONREAD, &left) >= 0 && left > 0))
                return;
        vsock_connection_host_ended(c);
}

static void on_too_long(VsockConnection *c, size_t length) {
        if (log_ratelimit(&c->vsock->complaints, NULL))
                log_warning("Connection of the guest's port %u with the host's port %u reset: the host sent a message of %zu bytes, and the guest takes %u.",
                        c->guest_port, c->host_port, length, MIN(c->peer_buf_alloc, VSOCK_MESSAGE_MAX));
        vsock_connection_reset(c);
}

void vsock_message_take(VsockConnection *c) {
        Vsock *v = c->vsock;
        VsockMessage *m = &v->message;
        ssize_t n;

        n = receive(c, NULL, 0, MSG_PEEK | MSG_TRUNC);
        if (n == -EAGAIN) {
                c->readable = false;
                return;
        }
        if (n > MIN(c->peer_buf_alloc, VSOCK_MESSAGE_MAX)) {
                on_too_long(c, (size_t) n);
                return;
        }
        if (n > vsock_connection_credit(c)) {
                c->next_message = (uint32_t) n;
                return;
        }
        c->next_message = 0;
        if (!m->data)
                m->data = malloc(VSOCK_MESSAGE_MAX);
        if (n >= 0)
                n = m->data ? receive(c, m->data, VSOCK_MESSAGE_MAX, 0) : -ENOMEM;
        if (n < 0) {
                vsock_connection_reset(c);
                return;
        }
        if (n == 0) {
                on_nothing(c);
                return;
        }
        m->connection = c;
        m->at = 0;
        m->length = (uint32_t) n;
        c->sent += m->length;
        v->bytes_sent += m->length;
}

void vsock_message_drop(VsockConnection *c) {
        if (c->vsock->message.connection == c)
                c->vsock->message.connection = NULL;
}
