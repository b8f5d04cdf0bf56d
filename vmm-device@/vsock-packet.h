/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A packet of virtio vsock (virtio 1.2 §5.10.6) as it lies in a descriptor chain. What it says is the guest's word, but for its length, which
 * was checked. */

#include <linux/virtio_vsock.h>

#include "virtqueue.h"

/* §5.10.3; Linux knows the latter only. A driver that takes neither has streams all the same. */
#define VIRTIO_VSOCK_F_STREAM 0
#ifndef VIRTIO_VSOCK_F_SEQPACKET
#define VIRTIO_VSOCK_F_SEQPACKET 1
#endif

typedef struct VsockPacket {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port;
        uint32_t length; /* of the payload */
        uint16_t type;
        uint16_t operation;
        uint32_t flags;
        uint32_t buf_alloc, fwd_cnt;
        IovCursor payload; /* `length` bytes */
} VsockPacket;

#define VSOCK_HEADER_SIZE ((uint32_t) sizeof(struct virtio_vsock_hdr))

/* Takes the packet that a driver made available. -EBADMSG where it is none, with *ret_rule saying which rule was broken. */
int vsock_packet_parse(const VirtqueueChain *chain, VsockPacket *ret, const char **ret_rule);

/* Writes the header of the packet to the beginning of a driver's buffers, which have room for it. */
void vsock_packet_write(const VsockPacket *packet, IovCursor buffers);
