/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "vhost-device-state.h"

#define PIECE KIB(64)

/* *ret_fd is our end of the pipe, or the one that the back-end likes better. */
static int begin(VhostSession *s, uint32_t direction, int *ret_fd) {
        bool save = direction == VHOST_USER_TRANSFER_DIRECTION_SAVE;
        VhostUserMsg msg = { .payload.transfer = { .direction = direction, .phase = VHOST_USER_TRANSFER_PHASE_STOPPED } };
        _cleanup_close_ int ours = -EBADF, theirs = -EBADF, other = -EBADF;
        int pair[2], r;

        if (!vhost_session_has(s, VHOST_USER_PROTOCOL_F_DEVICE_STATE))
                return -EOPNOTSUPP;
        if (pipe2(pair, O_CLOEXEC) < 0)
                return -errno;
        ours = pair[save ? 0 : 1];
        theirs = pair[save ? 1 : 0];
        r = vhost_session_ask_passing(s, &msg, VHOST_USER_SET_DEVICE_STATE_FD, sizeof(VhostUserTransfer), &theirs, 1, &other);
        if (r < 0)
                return r;
        if (msg.header.size != sizeof(uint64_t))
                return vhost_session_over(s, -EPROTO);
        if (msg.payload.u64 & VHOST_USER_TRANSFER_ERROR_MASK)
                return -EREMOTEIO;
        if (!(msg.payload.u64 & VHOST_USER_TRANSFER_NOFD)) {
                if (other < 0)
                        return vhost_session_over(s, -EPROTO);
                (void) safe_close(ours);
                ours = TAKE_FD(other);
        }
        if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
                return -errno;
        *ret_fd = TAKE_FD(ours);
        return 0;
}

static int wait_for(int fd, short events, uint64_t until) {
        struct pollfd p = { .fd = fd, .events = events };
        uint64_t now = now_usec();
        int r;

        if (now >= until)
                return -ETIMEDOUT;
        r = poll(&p, 1, (int) ((until - now) / USEC_PER_MSEC + 1));
        return r < 0 && errno != EINTR ? -errno : 0;
}

/* Our end of our own pipe is nobody else's. Of another descriptor a back-end may change the flags, for which sockets do not care, as which ours has them. */
static ssize_t receive(int fd, void *data, size_t size) {
        ssize_t n = recv(fd, data, size, MSG_DONTWAIT);

        return n < 0 && errno == ENOTSOCK ? read(fd, data, size) : n;
}

static ssize_t give(int fd, const void *data, size_t size) {
        ssize_t n = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

        return n < 0 && errno == ENOTSOCK ? write(fd, data, size) : n;
}

static int read_all(int fd, uint64_t until, void **ret, size_t *ret_size) {
        _cleanup_free_ uint8_t *data = NULL;
        size_t size = 0, room = 0;

        for (;;) {
                ssize_t n;

                if (size == room) {
                        uint8_t *more = room < VHOST_DEVICE_STATE_MAX ? realloc(data, room + PIECE) : NULL;

                        if (!more)
                                return room < VHOST_DEVICE_STATE_MAX ? -ENOMEM : -E2BIG;
                        data = more;
                        room += PIECE;
                }
                n = receive(fd, data + size, room - size);
                if (n == 0)
                        break;
                if (n > 0)
                        size += (size_t) n;
                else if (errno == EAGAIN) {
                        int r = wait_for(fd, POLLIN, until);

                        if (r < 0)
                                return r;
                } else if (errno != EINTR)
                        return -errno;
        }
        *ret = TAKE_PTR(data);
        *ret_size = size;
        return 0;
}

static int write_all(int fd, uint64_t until, const uint8_t *data, size_t size) {
        while (size > 0) {
                ssize_t n = give(fd, data, size);

                if (n > 0) {
                        data += n;
                        size -= (size_t) n;
                } else if (errno == EAGAIN) {
                        int r = wait_for(fd, POLLOUT, until);

                        if (r < 0)
                                return r;
                } else if (errno != EINTR)
                        return -errno;
        }
        return 0;
}

static int check(VhostSession *s) {
        uint64_t answer;
        int r;

        r = vhost_session_ask_u64(s, VHOST_USER_CHECK_DEVICE_STATE, &answer);
        return r < 0 ? r : answer != 0 ? -EREMOTEIO : 0;
}

int vhost_device_state_save(VhostSession *s, void **ret, size_t *ret_size) {
        uint64_t until = now_usec() + s->timeout_usec;
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ void *data = NULL;
        size_t size = 0;
        int r;

        r = begin(s, VHOST_USER_TRANSFER_DIRECTION_SAVE, &fd);
        if (r >= 0)
                r = read_all(fd, until, &data, &size);
        if (r >= 0)
                r = check(s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(data);
        *ret_size = size;
        return 0;
}

int vhost_device_state_load(VhostSession *s, const void *data, size_t size) {
        uint64_t until = now_usec() + s->timeout_usec;
        _cleanup_close_ int fd = -EBADF;
        int r, k;

        r = begin(s, VHOST_USER_TRANSFER_DIRECTION_LOAD, &fd);
        if (r < 0)
                return r;
        r = write_all(fd, until, data, size);
        fd = safe_close(fd); /* where it ends */
        /* A back-end that stopped reading says why by its answer. */
        k = check(s);
        return r == -EPIPE || r == -ECONNRESET || r >= 0 ? k : r;
}
