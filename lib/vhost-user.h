/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The messages of the vhost-user protocol, and how they travel: for the front-end in vmmd and the back-end in every helper.
 *
 * Names and layouts are the specification's (docs/interop/vhost-user in QEMU's tree, "Vhost-user Protocol"). Nothing here keeps
 * state of a session; whoever receives a message still has to judge what is in it. */

#include <linux/vhost_types.h>

#include "guest-memory.h"
#include "util.h"

#define VHOST_USER_VERSION 0x1U
#define VHOST_USER_FLAG_VERSION_MASK 0x3U
#define VHOST_USER_FLAG_REPLY (1U << 2)
#define VHOST_USER_FLAG_NEED_REPLY (1U << 3)

/* The feature bit (among the virtio features) that says protocol features can be negotiated. */
#define VHOST_USER_F_PROTOCOL_FEATURES 30

#define VHOST_USER_PROTOCOL_F_MQ 0
#define VHOST_USER_PROTOCOL_F_LOG_SHMFD 1
#define VHOST_USER_PROTOCOL_F_RARP 2
#define VHOST_USER_PROTOCOL_F_REPLY_ACK 3
#define VHOST_USER_PROTOCOL_F_MTU 4
#define VHOST_USER_PROTOCOL_F_BACKEND_REQ 5
#define VHOST_USER_PROTOCOL_F_CROSS_ENDIAN 6
#define VHOST_USER_PROTOCOL_F_CRYPTO_SESSION 7
#define VHOST_USER_PROTOCOL_F_PAGEFAULT 8
#define VHOST_USER_PROTOCOL_F_CONFIG 9
#define VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD 10
#define VHOST_USER_PROTOCOL_F_HOST_NOTIFIER 11
#define VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD 12
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE 13
#define VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS 14
#define VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS 15
#define VHOST_USER_PROTOCOL_F_STATUS 16
#define VHOST_USER_PROTOCOL_F_XEN_MMAP 17
#define VHOST_USER_PROTOCOL_F_SHARED_OBJECT 18
#define VHOST_USER_PROTOCOL_F_DEVICE_STATE 19
/* Not the specification's: PAGEFAULT for a back-end without privilege, which may not make a userfaultfd that sees faults of the kernel. POSTCOPY_ADVISE
 * brings it two descriptors: /dev/userfaultfd to make one of, and a socket on which nothing is ever said. Whoever serves its faults has the other end; when
 * that closes the back-end's process ends at once, wherever it waits, rather than to find zeroes. Each SET_MEM_TABLE after LISTEN is as that of PAGEFAULT. A
 * back-end that offers this does not offer that. */
#define VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT 63

/* "Front-end message types" */
typedef enum VhostUserRequest {
        VHOST_USER_NONE = 0,
        VHOST_USER_GET_FEATURES = 1,
        VHOST_USER_SET_FEATURES = 2,
        VHOST_USER_SET_OWNER = 3,
        VHOST_USER_RESET_OWNER = 4,
        VHOST_USER_SET_MEM_TABLE = 5,
        VHOST_USER_SET_LOG_BASE = 6,
        VHOST_USER_SET_LOG_FD = 7,
        VHOST_USER_SET_VRING_NUM = 8,
        VHOST_USER_SET_VRING_ADDR = 9,
        VHOST_USER_SET_VRING_BASE = 10,
        VHOST_USER_GET_VRING_BASE = 11,
        VHOST_USER_SET_VRING_KICK = 12,
        VHOST_USER_SET_VRING_CALL = 13,
        VHOST_USER_SET_VRING_ERR = 14,
        VHOST_USER_GET_PROTOCOL_FEATURES = 15,
        VHOST_USER_SET_PROTOCOL_FEATURES = 16,
        VHOST_USER_GET_QUEUE_NUM = 17,
        VHOST_USER_SET_VRING_ENABLE = 18,
        VHOST_USER_SEND_RARP = 19,
        VHOST_USER_NET_SET_MTU = 20,
        VHOST_USER_SET_BACKEND_REQ_FD = 21,
        VHOST_USER_IOTLB_MSG = 22,
        VHOST_USER_SET_VRING_ENDIAN = 23,
        VHOST_USER_GET_CONFIG = 24,
        VHOST_USER_SET_CONFIG = 25,
        VHOST_USER_CREATE_CRYPTO_SESSION = 26,
        VHOST_USER_CLOSE_CRYPTO_SESSION = 27,
        VHOST_USER_POSTCOPY_ADVISE = 28,
        VHOST_USER_POSTCOPY_LISTEN = 29,
        VHOST_USER_POSTCOPY_END = 30,
        VHOST_USER_GET_INFLIGHT_FD = 31,
        VHOST_USER_SET_INFLIGHT_FD = 32,
        VHOST_USER_GPU_SET_SOCKET = 33,
        VHOST_USER_RESET_DEVICE = 34,
        VHOST_USER_VRING_KICK = 35,
        VHOST_USER_GET_MAX_MEM_SLOTS = 36,
        VHOST_USER_ADD_MEM_REG = 37,
        VHOST_USER_REM_MEM_REG = 38,
        VHOST_USER_SET_STATUS = 39,
        VHOST_USER_GET_STATUS = 40,
        VHOST_USER_GET_SHARED_OBJECT = 41,
        VHOST_USER_SET_DEVICE_STATE_FD = 42,
        VHOST_USER_CHECK_DEVICE_STATE = 43,
} VhostUserRequest;

/* "Back-end message types", on the channel of SET_BACKEND_REQ_FD */
typedef enum VhostUserBackendRequest {
        VHOST_USER_BACKEND_IOTLB_MSG = 1,
        VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
        VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3,
        VHOST_USER_BACKEND_VRING_CALL = 4,
        VHOST_USER_BACKEND_VRING_ERR = 5,
} VhostUserBackendRequest;

/* Not the specification's: a helper of ours that cannot be what it is to be says so to whoever waits for an answer, with the reason as text, and hangs up. */
#define VHOST_USER_REFUSAL UINT32_C(0x52454655)
#define VHOST_USER_REFUSAL_MAX 256U

#define VHOST_USER_MEMORY_REGIONS_MAX 8U /* of one SET_MEM_TABLE */
#define VHOST_USER_CONFIG_MAX 256U
#define VHOST_USER_FDS_MAX VHOST_USER_MEMORY_REGIONS_MAX

/* Of the u64 of SET_VRING_KICK, _CALL and _ERR */
#define VHOST_USER_VRING_INDEX_MASK 0xffU
#define VHOST_USER_VRING_NOFD (1U << 8)

/* Of VhostUserConfig.flags */
#define VHOST_USER_CONFIG_WRITABLE 0U
#define VHOST_USER_CONFIG_MIGRATION 1U

typedef struct VhostUserHeader {
        uint32_t request; /* VhostUserRequest or VhostUserBackendRequest */
        uint32_t flags;
        uint32_t size; /* of the payload */
} VhostUserHeader;

typedef struct VhostUserMemoryRegion {
        uint64_t guest_phys_addr;
        uint64_t memory_size;
        uint64_t userspace_addr;
        uint64_t mmap_offset;
} VhostUserMemoryRegion;

typedef struct VhostUserMemory {
        uint32_t nregions;
        uint32_t padding;
        VhostUserMemoryRegion regions[VHOST_USER_MEMORY_REGIONS_MAX];
} VhostUserMemory;

typedef struct VhostUserMemRegMsg {
        uint64_t padding;
        VhostUserMemoryRegion region;
} VhostUserMemRegMsg;

typedef struct VhostUserConfig {
        uint32_t offset;
        uint32_t size;
        uint32_t flags;
        uint8_t region[VHOST_USER_CONFIG_MAX];
} VhostUserConfig;
#define VHOST_USER_CONFIG_HEADER_SIZE offsetof(VhostUserConfig, region)

typedef struct VhostUserInflight {
        uint64_t mmap_size;
        uint64_t mmap_offset;
        uint16_t num_queues;
        uint16_t queue_size;
} __attribute__((packed)) VhostUserInflight; /* 20 bytes on the wire; some front-ends send 24 */

/* "Device state transfer parameters" */
#define VHOST_USER_TRANSFER_DIRECTION_SAVE 0U
#define VHOST_USER_TRANSFER_DIRECTION_LOAD 1U
#define VHOST_USER_TRANSFER_PHASE_STOPPED 0U
typedef struct VhostUserTransfer {
        uint32_t direction;
        uint32_t phase;
} VhostUserTransfer;
/* Of the reply to SET_DEVICE_STATE_FD: an error, and that no descriptor comes back, so that the front-end's own is used. */
#define VHOST_USER_TRANSFER_ERROR_MASK 0xffU
#define VHOST_USER_TRANSFER_NOFD (1U << 8)

typedef union VhostUserPayload {
        uint64_t u64;
        struct vhost_vring_state state;
        struct vhost_vring_addr addr;
        VhostUserMemory memory;
        VhostUserMemRegMsg mem_reg;
        VhostUserConfig config;
        VhostUserInflight inflight;
        VhostUserTransfer transfer;
        char refusal[VHOST_USER_REFUSAL_MAX]; /* header.size bytes, without a NUL */
} __attribute__((packed)) VhostUserPayload;

typedef struct VhostUserMsg {
        VhostUserHeader header;
        VhostUserPayload payload;
} __attribute__((packed)) VhostUserMsg;

#define VHOST_USER_PAYLOAD_MAX sizeof(VhostUserPayload)

/* Sends the message (header.size bytes of payload; the version is added to header.flags) with `n_fds` descriptors, which stay
 * the caller's. On a socket that does not block, a peer that does not read gives -EAGAIN: end the session then. */
int vhost_user_send(int fd, const VhostUserMsg *msg, const int *fds, size_t n_fds);

/* Receives one whole message, blocking. *n_fds is the room in `fds` on the way in and their count on the way out; what does not
 * fit is closed. The payload behind header.size is zeroed. Returns 0, -ENODATA where the peer has closed between two
 * messages, -ECONNRESET within one, -EPROTO for a wrong version, -EMSGSIZE for a payload larger than any we know, or another
 * negative errno; on error no descriptor is left open. */
int vhost_user_recv(int fd, VhostUserMsg *ret, int *fds, size_t *n_fds);

/* The same in pieces, for an event loop: a peer that sends half a message blocks nobody. */
typedef struct VhostUserReceiver {
        VhostUserMsg msg;
        size_t received;
        int fds[VHOST_USER_FDS_MAX];
        size_t n_fds;
} VhostUserReceiver;
/* Takes what has arrived. Returns 1 where receiver->msg and ->fds are whole (the caller takes the fds with TAKE_FD() or leaves them to be
 * closed, and calls vhost_user_receiver_done() before the next), 0 where more has to come, errors as above. */
int vhost_user_receiver_step(VhostUserReceiver *receiver, int fd);
/* Closes what was not taken and makes the receiver empty. */
void vhost_user_receiver_done(VhostUserReceiver *receiver);

/* Whether a request of the front-end has the payload size and the number of fds that its type demands, and consistent lengths
 * inside. Returns 0, -EOPNOTSUPP for a request we do not know, -EBADMSG otherwise. */
int vhost_user_check_request(const VhostUserMsg *msg, size_t n_fds);

/* "SET_VRING_NUM" for VHOST_USER_SET_VRING_NUM; never NULL. */
const char *vhost_user_request_name(uint32_t request);
/* Whether the request has a reply of its own, so that NEED_REPLY changes nothing. */
bool vhost_user_request_has_reply(uint32_t request);
