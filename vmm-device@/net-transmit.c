/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* From the guest to the tap (virtio 1.2 §5.1.6.2). The header is copied and checked against what was negotiated; the packet goes from the guest's
 * buffers to the kernel, which checks it once more. */

#include <limits.h>
#include <sys/uio.h>

#include "net.h"

/* Whether a packet with this header is one that the driver may send. */
static bool header_is_good(const Net *n, const struct virtio_net_hdr_v1 *h, uint64_t length) {
        uint8_t type = h->gso_type & (uint8_t) ~VIRTIO_NET_HDR_GSO_ECN;
        bool feature = false;

        if (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
                if (!net_has(n, VIRTIO_NET_F_CSUM) || (uint64_t) h->csum_start + h->csum_offset + 2 > length)
                        return false;
        if (h->gso_type == VIRTIO_NET_HDR_GSO_NONE)
                return true;
        /* "If VIRTIO_NET_HDR_F_NEEDS_CSUM is not set, gso_type must be NONE"; and pieces have a size. */
        if (!(h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || h->gso_size == 0)
                return false;
        if (h->gso_type & VIRTIO_NET_HDR_GSO_ECN &&
                (!net_has(n, VIRTIO_NET_F_HOST_ECN) || (type != VIRTIO_NET_HDR_GSO_TCPV4 && type != VIRTIO_NET_HDR_GSO_TCPV6)))
                return false;
        switch (type) {
        case VIRTIO_NET_HDR_GSO_TCPV4:
                feature = net_has(n, VIRTIO_NET_F_HOST_TSO4);
                break;
        case VIRTIO_NET_HDR_GSO_TCPV6:
                feature = net_has(n, VIRTIO_NET_F_HOST_TSO6);
                break;
        case VIRTIO_NET_HDR_GSO_UDP:
                feature = net_has(n, VIRTIO_NET_F_HOST_UFO);
                break;
        case NET_GSO_UDP_L4:
                feature = net_has(n, NET_F_HOST_USO);
                break;
        default:
                break;
        }
        return feature;
}

/* Returns 0 where the packet is dealt with, one way or the other; -EAGAIN where the tap is full; -EBADMSG where it is not even a packet. */
static int send_packet(NetPair *p) {
        Net *n = p->net;
        struct virtio_net_hdr_v1 header = {};
        struct iovec iov[IOV_MAX];
        IovCursor c = p->sending.readable;
        uint64_t length;
        size_t n_iov;
        ssize_t r;

        if (iov_cursor_read(&c, &header, n->header_size) < n->header_size) {
                device_broken(n->device, "a packet to be sent does not even hold its header");
                return -EBADMSG;
        }
        length = c.left;
        header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM; /* "The device MUST ignore flag bits that it does not recognize." */
        header.num_buffers = 0;
        iov[0] = (struct iovec) { .iov_base = &header, .iov_len = n->header_size };
        if (length < NET_ETHERNET_HEADER || length > NET_PACKET_MAX || !header_is_good(n, &header, length) ||
                iov_cursor_map(&c, length, iov + 1, IOV_MAX - 1, &n_iov) < length) {
                n->n_transmit_dropped++;
                return 0;
        }
        do
                r = writev(p->fd, iov, (int) n_iov + 1);
        while (r < 0 && errno == EINTR);
        if (r < 0 && errno == EAGAIN)
                return -EAGAIN;
        if (r < 0) {
                if (errno == EBADFD)
                        net_tap_gone(n);
                n->n_transmit_dropped++;
                return 0;
        }
        n->n_sent++;
        n->bytes_sent += length;
        net_bucket_take(&n->transmit_bucket, length);
        return 0;
}

/* Returns 1 where a packet was taken, 0 where there is none or it has to wait. */
static int transmit_one(NetPair *p, Virtqueue *q) {
        uint64_t usec;
        int r;

        if (!net_bucket_open(&p->net->transmit_bucket, &usec)) {
                p->transmit_throttled = true;
                return net_throttle(p->net, usec);
        }
        r = virtqueue_pop(q, &p->sending);
        if (r <= 0)
                return r;
        r = send_packet(p);
        if (r == -EAGAIN) {
                virtqueue_unpop(q, &p->sending);
                p->blocked = true;
                return net_tap_update(p);
        }
        if (r < 0)
                return r;
        virtqueue_push(q, &p->sending, 0);
        return 1;
}

int net_transmit(NetPair *p) {
        Virtqueue *q = device_queue(p->net->device, NET_TRANSMIT_QUEUE(p));
        unsigned done = 0;
        int r;

        if (!q || !p->active || p->blocked || p->transmit_throttled)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (done < NET_TURN_MAX && (r = transmit_one(p, q)) > 0)
                        if (++done % NET_BATCH_MAX == 0)
                                virtqueue_notify(q);
                virtqueue_notify(q);
                if (done >= NET_TURN_MAX)
                        return 1;
                if (r < 0)
                        return r;
                if (p->blocked || p->transmit_throttled)
                        return net_tap_update(p);
        } while (virtqueue_want_kicks(q));
        return p->interest & EPOLLOUT ? net_tap_update(p) : 0;
}

int net_transmit_later(NetPair *p) {
        Device *d = p->net->device;
        int r;

        p->transmit_throttled = false;
        if (!device_is_running(d) || !p->active)
                return 0;
        r = net_transmit(p);
        if (r == -EBADMSG) {
                const char *error = virtqueue_error(device_queue(d, NET_TRANSMIT_QUEUE(p)));
                device_broken(d, "%s", error ? error : "a packet to be sent makes no sense");
                return 0;
        }
        if (r <= 0)
                return r;
        p->transmit_more = true;
        return sd_event_source_set_enabled(p->again, SD_EVENT_ONESHOT);
}
