/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <sys/socket.h>

#include "vhost-session.h"

/* What this front-end uses. Everything else that a back-end may offer stays off. */
#define PROTOCOL_FEATURES                                                                                      \
        (VHOST_BIT(VHOST_USER_PROTOCOL_F_MQ) | VHOST_BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) |                    \
                VHOST_BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | VHOST_BIT(VHOST_USER_PROTOCOL_F_CONFIG) |       \
                VHOST_BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) | VHOST_BIT(VHOST_USER_PROTOCOL_F_STATUS) |     \
                VHOST_BIT(VHOST_USER_PROTOCOL_F_DEVICE_STATE) | VHOST_BIT(VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT))

/* A request and a reply that were lost, or never meant, would answer the next request: nothing more is asked on this connection. */
int vhost_session_over(VhostSession *s, int error) {
        (void) shutdown(s->fd, SHUT_RDWR);
        return error;
}

static int send_request(VhostSession *s, const VhostUserMsg *msg, const int *fds, size_t n_fds) {
        int r = vhost_user_send(s->fd, msg, fds, n_fds);

        /* A socket's buffer holds hundreds of our messages: one that is full belongs to a back-end that does not read. */
        return r == -EAGAIN ? -ETIMEDOUT : r;
}

static int receive_reply(VhostSession *s, uint32_t request, VhostUserMsg *reply, int *ret_fd) {
        uint64_t until = now_usec() + s->timeout_usec;
        VhostUserReceiver receiver = {};
        int r;

        while ((r = vhost_user_receiver_step(&receiver, s->fd)) == 0) {
                struct pollfd p = { .fd = s->fd, .events = POLLIN };
                uint64_t now = now_usec();

                if (now >= until) {
                        r = -ETIMEDOUT;
                        break;
                }
                (void) poll(&p, 1, (int) ((until - now) / USEC_PER_MSEC + 1)); /* whatever it says, the receiver sees */
        }
        if (r > 0 && receiver.msg.header.request == VHOST_USER_REFUSAL) {
                *reply = receiver.msg;
                r = -ECONNREFUSED;
        } else if (r > 0 && (receiver.msg.header.request != request || !(receiver.msg.header.flags & VHOST_USER_FLAG_REPLY)))
                r = -EPROTO;
        if (r > 0) {
                *reply = receiver.msg;
                if (ret_fd)
                        *ret_fd = receiver.n_fds > 0 ? TAKE_FD(receiver.fds[0]) : -EBADF;
        }
        vhost_user_receiver_done(&receiver);
        return MIN(r, 0);
}

int vhost_session_tell(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, const int *fds, size_t n_fds,
        bool confirm) {
        VhostUserMsg reply;
        int r;

        confirm = confirm && vhost_session_has(s, VHOST_USER_PROTOCOL_F_REPLY_ACK);
        msg->header = (VhostUserHeader) { .request = request, .size = size,
                                          .flags = confirm ? VHOST_USER_FLAG_NEED_REPLY : 0 };
        r = send_request(s, msg, fds, n_fds);
        if (r >= 0 && confirm) {
                r = receive_reply(s, request, &reply, NULL);
                if (r >= 0 && reply.header.size != sizeof(uint64_t))
                        r = -EPROTO;
        }
        if (r < 0)
                return vhost_session_over(s, r);
        return confirm && reply.payload.u64 != 0 ? -EREMOTEIO : 0;
}

int vhost_session_tell_u64(VhostSession *s, uint32_t request, uint64_t value) {
        VhostUserMsg msg = { .payload.u64 = value };

        return vhost_session_tell(s, &msg, request, sizeof(uint64_t), NULL, 0, false);
}

int vhost_session_ask_passing(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, const int *fds, size_t n_fds, int *ret_fd) {
        int r;

        msg->header = (VhostUserHeader) { .request = request, .size = size };
        r = send_request(s, msg, fds, n_fds);
        if (r >= 0)
                r = receive_reply(s, request, msg, ret_fd);
        return r < 0 ? vhost_session_over(s, r) : 0;
}

int vhost_session_ask(VhostSession *s, VhostUserMsg *msg, uint32_t request, uint32_t size, int *ret_fd) {
        return vhost_session_ask_passing(s, msg, request, size, NULL, 0, ret_fd);
}

int vhost_session_ask_u64(VhostSession *s, uint32_t request, uint64_t *ret) {
        VhostUserMsg msg = {};
        int r;

        r = vhost_session_ask(s, &msg, request, 0, NULL);
        if (r < 0)
                return r;
        if (msg.header.size != sizeof(uint64_t))
                return vhost_session_over(s, -EPROTO);
        *ret = msg.payload.u64;
        return 0;
}

/* --- negotiation --- */

static int open_backend_channel(VhostSession *s) {
        _cleanup_close_ int theirs = -EBADF;
        VhostUserMsg msg = {};
        int pair[2];

        if (!vhost_session_has(s, VHOST_USER_PROTOCOL_F_BACKEND_REQ))
                return 0;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        s->backend_fd = pair[0];
        theirs = pair[1];
        if (fcntl(s->backend_fd, F_SETFL, O_NONBLOCK) < 0)
                return -errno;
        return vhost_session_tell(s, &msg, VHOST_USER_SET_BACKEND_REQ_FD, 0, &theirs, 1, true);
}

static int check_queue_count(VhostSession *s, unsigned n_queues, char **ret_message) {
        uint64_t queues;
        int r;

        if (!vhost_session_has(s, VHOST_USER_PROTOCOL_F_MQ))
                return 0;
        r = vhost_session_ask_u64(s, VHOST_USER_GET_QUEUE_NUM, &queues);
        if (r < 0)
                return r;
        if (queues < n_queues)
                return set_message(ret_message, -EPROTONOSUPPORT, "it has %llu queues, the machine's definition asks for %u",
                        (unsigned long long) queues, n_queues);
        return 0;
}

/* The first question, which a helper may answer by what keeps it from being one. */
static int ask_features(VhostSession *s, char **ret_message) {
        VhostUserMsg msg = {};
        int r;

        r = vhost_session_ask(s, &msg, VHOST_USER_GET_FEATURES, 0, NULL);
        if (r == -ECONNREFUSED) {
                _cleanup_free_ char *text = strndup(msg.payload.refusal, MIN(msg.header.size, sizeof(msg.payload.refusal)));
                size_t n = text ? strlen(text) : 0;

                if (n > 0 && text[n - 1] == '.')
                        text[n - 1] = 0; /* it becomes part of a sentence */
                return set_message(ret_message, r, "%s", text && text[0] ? make_one_line(text) : "it refuses");
        }
        if (r < 0)
                return r;
        if (msg.header.size != sizeof(uint64_t))
                return vhost_session_over(s, -EPROTO);
        s->features = msg.payload.u64;
        return 0;
}

int vhost_session_negotiate(VhostSession *s, unsigned n_queues, char **ret_message) {
        VhostUserMsg msg = {};
        uint64_t offered;
        int r;

        r = vhost_session_tell(s, &msg, VHOST_USER_SET_OWNER, 0, NULL, 0, false);
        if (r >= 0)
                r = ask_features(s, ret_message);
        if (r < 0)
                return r;
        if (!(s->features & VHOST_BIT(VHOST_USER_F_PROTOCOL_FEATURES)) || !(s->features & VHOST_BIT(VIRTIO_F_VERSION_1)))
                return set_message(ret_message, -EPROTONOSUPPORT,
                        "its features %#llx lack VIRTIO_F_VERSION_1 or VHOST_USER_F_PROTOCOL_FEATURES",
                        (unsigned long long) s->features);

        r = vhost_session_ask_u64(s, VHOST_USER_GET_PROTOCOL_FEATURES, &offered);
        if (r < 0)
                return r;
        s->protocol_features = offered & PROTOCOL_FEATURES;
        r = vhost_session_tell_u64(s, VHOST_USER_SET_PROTOCOL_FEATURES, s->protocol_features);
        if (r >= 0)
                r = check_queue_count(s, n_queues, ret_message);
        return r < 0 ? r : open_backend_channel(s);
}

/* --- configuration space --- */

/* Back-ends refuse to be asked for more than they have. (virtio 1.2, 5; of the newer fields those that Linux knows) */
uint32_t vhost_config_size(uint16_t virtio_id) {
        switch (virtio_id) {
        case VIRTIO_ID_RNG:
        case VIRTIO_ID_I2C_ADAPTER:
                return 0;
        case VIRTIO_ID_VSOCK:
                return 8;
        case VIRTIO_ID_NET:
        case VIRTIO_ID_CONSOLE:
        case VIRTIO_ID_SOUND:
                return 12;
        case VIRTIO_ID_GPU:
        case VIRTIO_ID_PMEM:
                return 16;
        case VIRTIO_ID_BALLOON:
                return 20; /* with what crosvm has behind the specification's fields */
        case VIRTIO_ID_SCSI:
                return 36;
        case VIRTIO_ID_FS:
                return 40;
        case VIRTIO_ID_BLOCK:
                return 60;
        case VIRTIO_ID_INPUT:
                return 136;
        default:
                return VHOST_USER_CONFIG_MAX;
        }
}

int vhost_session_get_config(VhostSession *s, uint32_t size, void *data, uint32_t *ret_size) {
        VhostUserMsg msg = { .payload.config = { .size = size } };
        int r;

        if (size == 0 || !vhost_session_has(s, VHOST_USER_PROTOCOL_F_CONFIG)) {
                *ret_size = 0;
                return 0;
        }
        r = vhost_session_ask(s, &msg, VHOST_USER_GET_CONFIG, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL);
        if (r < 0)
                return r;
        /* "uses zero length of payload to indicate an error" */
        if (msg.header.size == 0 || (msg.header.size >= VHOST_USER_CONFIG_HEADER_SIZE && msg.payload.config.size == 0))
                return -EREMOTEIO;
        if (msg.payload.config.size > size || msg.header.size != VHOST_USER_CONFIG_HEADER_SIZE + msg.payload.config.size)
                return vhost_session_over(s, -EPROTO);
        memcpy(data, msg.payload.config.region, msg.payload.config.size);
        *ret_size = msg.payload.config.size;
        return 0;
}

int vhost_session_set_config(VhostSession *s, uint32_t offset, const void *data, uint32_t size) {
        VhostUserMsg msg = { .payload.config = { .offset = offset, .size = size, .flags = VHOST_USER_CONFIG_WRITABLE } };

        memcpy(msg.payload.config.region, data, size);
        return vhost_session_tell(s, &msg, VHOST_USER_SET_CONFIG, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0,
                true);
}
