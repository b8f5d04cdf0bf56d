/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <poll.h>
#include <sys/socket.h>

#include "vhost-user.h"

/* What a request looks like on the wire ("Front-end message types"). */
typedef struct RequestShape {
        const char *name;
        uint32_t size_min, size_max;
        uint8_t fds_min, fds_max;
        bool reply;
} RequestShape;

#define U64 sizeof(uint64_t), sizeof(uint64_t)
#define STATE sizeof(struct vhost_vring_state), sizeof(struct vhost_vring_state)
#define ADDR sizeof(struct vhost_vring_addr), sizeof(struct vhost_vring_addr)
#define MEMORY offsetof(VhostUserMemory, regions), sizeof(VhostUserMemory)
#define MEM_REG sizeof(VhostUserMemRegMsg), sizeof(VhostUserMemRegMsg)
#define CONFIG VHOST_USER_CONFIG_HEADER_SIZE, sizeof(VhostUserConfig)
#define TRANSFER sizeof(VhostUserTransfer), sizeof(VhostUserTransfer)
#define INFLIGHT sizeof(VhostUserInflight), ALIGN_UP(sizeof(VhostUserInflight), 8)

static const RequestShape request_shapes[] = {
        [VHOST_USER_GET_FEATURES] = { "GET_FEATURES", 0, 0, 0, 0, true },
        [VHOST_USER_SET_FEATURES] = { "SET_FEATURES", U64, 0, 0, false },
        [VHOST_USER_SET_OWNER] = { "SET_OWNER", 0, 0, 0, 0, false },
        [VHOST_USER_RESET_OWNER] = { "RESET_OWNER", 0, 0, 0, 0, false },
        [VHOST_USER_SET_MEM_TABLE] = { "SET_MEM_TABLE", MEMORY, 0, VHOST_USER_FDS_MAX, false },
        [VHOST_USER_SET_VRING_NUM] = { "SET_VRING_NUM", STATE, 0, 0, false },
        [VHOST_USER_SET_VRING_ADDR] = { "SET_VRING_ADDR", ADDR, 0, 0, false },
        [VHOST_USER_SET_VRING_BASE] = { "SET_VRING_BASE", STATE, 0, 0, false },
        [VHOST_USER_GET_VRING_BASE] = { "GET_VRING_BASE", STATE, 0, 0, true },
        [VHOST_USER_SET_VRING_KICK] = { "SET_VRING_KICK", U64, 0, 1, false },
        [VHOST_USER_SET_VRING_CALL] = { "SET_VRING_CALL", U64, 0, 1, false },
        [VHOST_USER_SET_VRING_ERR] = { "SET_VRING_ERR", U64, 0, 1, false },
        [VHOST_USER_GET_PROTOCOL_FEATURES] = { "GET_PROTOCOL_FEATURES", 0, 0, 0, 0, true },
        [VHOST_USER_SET_PROTOCOL_FEATURES] = { "SET_PROTOCOL_FEATURES", U64, 0, 0, false },
        [VHOST_USER_GET_QUEUE_NUM] = { "GET_QUEUE_NUM", 0, 0, 0, 0, true },
        [VHOST_USER_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", STATE, 0, 0, false },
        [VHOST_USER_SET_BACKEND_REQ_FD] = { "SET_BACKEND_REQ_FD", 0, 0, 1, 1, false },
        [VHOST_USER_GET_CONFIG] = { "GET_CONFIG", CONFIG, 0, 0, true },
        [VHOST_USER_SET_CONFIG] = { "SET_CONFIG", CONFIG, 0, 0, false },
        /* What comes with it is VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT's. */
        [VHOST_USER_POSTCOPY_ADVISE] = { "POSTCOPY_ADVISE", 0, 0, 2, 2, true },
        [VHOST_USER_POSTCOPY_LISTEN] = { "POSTCOPY_LISTEN", 0, 0, 0, 0, false },
        [VHOST_USER_POSTCOPY_END] = { "POSTCOPY_END", 0, 0, 0, 0, true },
        [VHOST_USER_GET_INFLIGHT_FD] = { "GET_INFLIGHT_FD", INFLIGHT, 0, 0, true },
        [VHOST_USER_SET_INFLIGHT_FD] = { "SET_INFLIGHT_FD", INFLIGHT, 1, 1, false },
        [VHOST_USER_RESET_DEVICE] = { "RESET_DEVICE", 0, 0, 0, 0, false },
        [VHOST_USER_GET_MAX_MEM_SLOTS] = { "GET_MAX_MEM_SLOTS", 0, 0, 0, 0, true },
        [VHOST_USER_ADD_MEM_REG] = { "ADD_MEM_REG", MEM_REG, 1, 1, false },
        /* "the back-end MAY accept messages with one file descriptor" */
        [VHOST_USER_REM_MEM_REG] = { "REM_MEM_REG", MEM_REG, 0, 1, false },
        [VHOST_USER_SET_STATUS] = { "SET_STATUS", U64, 0, 0, false },
        [VHOST_USER_GET_STATUS] = { "GET_STATUS", 0, 0, 0, 0, true },
        [VHOST_USER_SET_DEVICE_STATE_FD] = { "SET_DEVICE_STATE_FD", TRANSFER, 1, 1, true },
        [VHOST_USER_CHECK_DEVICE_STATE] = { "CHECK_DEVICE_STATE", 0, 0, 0, 0, true },
};

static const RequestShape *request_shape(uint32_t request) {
        return request < ELEMENTSOF(request_shapes) && request_shapes[request].name ? &request_shapes[request] : NULL;
}

const char *vhost_user_request_name(uint32_t request) {
        const RequestShape *shape = request_shape(request);

        return shape ? shape->name : "unknown request";
}

bool vhost_user_request_has_reply(uint32_t request) {
        const RequestShape *shape = request_shape(request);

        return shape && shape->reply;
}

/* Lengths inside a payload that its outer size has to agree with. */
static bool inner_lengths_agree(const VhostUserMsg *msg, size_t n_fds) {
        const VhostUserPayload *p = &msg->payload;
        uint32_t size = msg->header.size;

        switch (msg->header.request) {

        case VHOST_USER_SET_MEM_TABLE:
                /* Some front-ends always send the whole array, so more than nregions is fine. */
                return p->memory.nregions <= VHOST_USER_MEMORY_REGIONS_MAX && p->memory.nregions == n_fds &&
                        size >= offsetof(VhostUserMemory, regions) + p->memory.nregions * sizeof(VhostUserMemoryRegion);

        case VHOST_USER_SET_VRING_KICK:
        case VHOST_USER_SET_VRING_CALL:
        case VHOST_USER_SET_VRING_ERR:
                return n_fds == ((p->u64 & VHOST_USER_VRING_NOFD) ? 0 : 1);

        case VHOST_USER_GET_CONFIG:
        case VHOST_USER_SET_CONFIG:
                return p->config.size <= VHOST_USER_CONFIG_MAX && size == VHOST_USER_CONFIG_HEADER_SIZE + p->config.size;
        }
        return true;
}

int vhost_user_check_request(const VhostUserMsg *msg, size_t n_fds) {
        const RequestShape *shape = request_shape(msg->header.request);

        if (!shape)
                return -EOPNOTSUPP;
        if (msg->header.size < shape->size_min || msg->header.size > shape->size_max || n_fds < shape->fds_min ||
                n_fds > shape->fds_max)
                return -EBADMSG;
        return inner_lengths_agree(msg, n_fds) ? 0 : -EBADMSG;
}

int vhost_user_send(int fd, const VhostUserMsg *msg, const int *fds, size_t n_fds) {
        size_t length = sizeof(VhostUserHeader) + msg->header.size, sent;
        VhostUserMsg m;
        ssize_t n;

        if (msg->header.size > VHOST_USER_PAYLOAD_MAX || n_fds > VHOST_USER_FDS_MAX)
                return -EMSGSIZE;
        memcpy(&m, msg, length);
        m.header.flags = (m.header.flags & ~VHOST_USER_FLAG_VERSION_MASK) | VHOST_USER_VERSION;

        n = send_with_fds(fd, &m, length, fds, n_fds);
        if (n < 0)
                return (int) n;
        for (sent = (size_t) n; sent < length; sent += (size_t) n) {
                n = send_with_fds(fd, (const uint8_t *) &m + sent, length - sent, NULL, 0);
                if (n < 0)
                        return (int) n;
        }
        return 0;
}

void vhost_user_receiver_done(VhostUserReceiver *receiver) {
        for (size_t i = 0; i < receiver->n_fds; i++)
                (void) safe_close(receiver->fds[i]);
        receiver->n_fds = 0;
        receiver->received = 0;
}

static int check_header(VhostUserHeader header) {
        if ((header.flags & VHOST_USER_FLAG_VERSION_MASK) != VHOST_USER_VERSION)
                return -EPROTO;
        return header.size > VHOST_USER_PAYLOAD_MAX ? -EMSGSIZE : 0;
}

/* One recvmsg() for the rest of the header or of the payload: never more, so that the descriptors of the next message
 * stay with it. Returns bytes, 0 where the peer has closed, or a negative errno. */
static ssize_t receive_piece(VhostUserReceiver *receiver, int fd) {
        size_t room = VHOST_USER_FDS_MAX - receiver->n_fds, want = sizeof(VhostUserHeader);
        ssize_t n;

        if (receiver->received >= sizeof(VhostUserHeader))
                want += receiver->msg.header.size;
        n = recv_with_fds(fd, (uint8_t *) &receiver->msg + receiver->received, want - receiver->received,
                receiver->fds + receiver->n_fds, &room, 0);
        if (n < 0)
                return n;
        receiver->n_fds += room;
        receiver->received += (size_t) n;
        return n;
}

int vhost_user_receiver_step(VhostUserReceiver *receiver, int fd) {
        for (;;) {
                if (receiver->received >= sizeof(VhostUserHeader)) {
                        int r = check_header(receiver->msg.header);
                        if (r < 0)
                                return r;
                        if (receiver->received == sizeof(VhostUserHeader) + receiver->msg.header.size)
                                break;
                }

                ssize_t n = receive_piece(receiver, fd);
                if (n == -EAGAIN)
                        return 0;
                if (n < 0)
                        return (int) n;
                if (n == 0)
                        return receiver->received == 0 ? -ENODATA : -ECONNRESET;
        }

        memset((uint8_t *) &receiver->msg + receiver->received, 0, sizeof(VhostUserMsg) - receiver->received);
        return 1;
}

int vhost_user_recv(int fd, VhostUserMsg *ret, int *fds, size_t *n_fds) {
        VhostUserReceiver receiver = {};
        size_t n = 0;
        int r;

        while ((r = vhost_user_receiver_step(&receiver, fd)) == 0)
                if (poll(&(struct pollfd) { .fd = fd, .events = POLLIN }, 1, -1) < 0 && errno != EINTR) {
                        r = -errno;
                        break;
                }
        if (r > 0) {
                *ret = receiver.msg;
                for (; n_fds && n < receiver.n_fds && n < *n_fds; n++)
                        fds[n] = TAKE_FD(receiver.fds[n]);
                if (n_fds)
                        *n_fds = n;
        }
        vhost_user_receiver_done(&receiver);
        return r < 0 ? r : 0;
}
