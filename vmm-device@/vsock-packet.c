/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "vsock-packet.h"

_Static_assert(sizeof(struct virtio_vsock_hdr) == 44, "virtio 1.2 §5.10.6");

int vsock_packet_parse(const VirtqueueChain *chain, VsockPacket *ret, const char **ret_rule) {
        IovCursor readable = chain->readable;
        struct virtio_vsock_hdr h;
        uint32_t length;

        if (chain->n_writable > 0) {
                *ret_rule = "a packet of the guest's has a writable buffer";
                return -EBADMSG;
        }
        if (iov_cursor_read(&readable, &h, sizeof(h)) < sizeof(h)) {
                *ret_rule = "a packet is shorter than its header";
                return -EBADMSG;
        }
        length = load_le32(&h.len);
        if (length > readable.left) {
                *ret_rule = "a packet is shorter than its header says";
                return -EBADMSG;
        }
        *ret = (VsockPacket) {
                .src_cid = load_le64(&h.src_cid),
                .dst_cid = load_le64(&h.dst_cid),
                .src_port = load_le32(&h.src_port),
                .dst_port = load_le32(&h.dst_port),
                .length = length,
                .type = load_le16(&h.type),
                .operation = load_le16(&h.op),
                .flags = load_le32(&h.flags),
                .buf_alloc = load_le32(&h.buf_alloc),
                .fwd_cnt = load_le32(&h.fwd_cnt),
                .payload = iov_cursor_take(&readable, length),
        };
        return 0;
}

void vsock_packet_write(const VsockPacket *packet, IovCursor buffers) {
        struct virtio_vsock_hdr h = {};

        store_le64(&h.src_cid, packet->src_cid);
        store_le64(&h.dst_cid, packet->dst_cid);
        store_le32(&h.src_port, packet->src_port);
        store_le32(&h.dst_port, packet->dst_port);
        store_le32(&h.len, packet->length);
        store_le16(&h.type, packet->type);
        store_le16(&h.op, packet->operation);
        store_le32(&h.flags, packet->flags);
        store_le32(&h.buf_alloc, packet->buf_alloc);
        store_le32(&h.fwd_cnt, packet->fwd_cnt);
        (void) iov_cursor_write(&buffers, &h, sizeof(h));
}
