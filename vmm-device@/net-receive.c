/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* From the tap to the guest (virtio 1.2 §5.1.6.3, §5.1.6.4).
 *
 * How long a packet is shows when it has been read, and what did not fit is lost. So a read is given buffers of the guest's, and behind them memory of
 * our own for the largest packet there can be. Most packets end within the guest's buffers; of one that does not, the end is
 * copied to further buffers, and while such packets come, more of the guest's buffers are put first. Buffers that were not
 * needed are kept for the next packet. */

#include <limits.h>
#include <sys/uio.h>

#include "net.h"

/* Without large packets a read is given this much of the guest's buffers; as many small packets as this end the time of the large ones. */
#define SMALL_WINDOW 2048U
#define SMALL_RUN 64U
#define CHAIN_IOV_MAX 256U

enum {
        DELIVERED, /* or dropped: there may be another */
        TAP_EMPTY,
        STARVED,
        THROTTLED,
};

static NetHeld *held_at(NetPair *p, unsigned i) {
        return &p->held[(p->first + i) % NET_HELD_MAX];
}

/* Takes one more buffer of the guest's. Returns 1, 0 where there is none, or what breaks the device. */
static int hold(NetPair *p, Virtqueue *q) {
        NetHeld *h = held_at(p, p->n_held);
        struct iovec iov[CHAIN_IOV_MAX];
        int r;

        r = virtqueue_pop(q, &h->chain);
        if (r <= 0)
                return r;
        p->n_held++; /* also if it is refused now: what was taken must be known */
        if (h->chain.n_readable > 0 || h->chain.writable.left < p->net->header_size) {
                device_broken(p->net->device, "a receive buffer is not for writing, or does not even hold a packet's header");
                return -EBADMSG;
        }
        h->room = (size_t) iov_cursor_map(&h->chain.writable, NET_READ_MAX, iov, CHAIN_IOV_MAX, &h->n_iov);
        return 1;
}

/* Buffers for one read: the guest's, as many as make up the window, then our own. *ret_room is what the guest's hold. */
static int prepare(NetPair *p, Virtqueue *q, struct iovec *iov, int *ret_n, unsigned *ret_held, size_t *ret_room) {
        size_t window = p->large ? NET_READ_MAX : SMALL_WINDOW, room = 0, n = 0;
        unsigned held = 0;
        int r;

        do {
                NetHeld *h;
                size_t k;

                if (held == p->n_held) {
                        r = p->n_held < NET_HELD_MAX ? hold(p, q) : 0;
                        if (r < 0)
                                return r;
                        if (r == 0)
                                break;
                }
                h = held_at(p, held);
                if (n + h->n_iov + 1 > IOV_MAX)
                        break;
                room += (size_t) iov_cursor_map(&h->chain.writable, h->room, iov + n, h->n_iov, &k);
                n += k;
                held++;
        } while (p->net->mergeable && room < window);

        iov[n++] = (struct iovec) { .iov_base = p->spill, .iov_len = NET_READ_MAX };
        *ret_n = (int) n;
        *ret_held = held;
        *ret_room = room;
        return held > 0;
}

/* The first bytes are in place; puts those of the spill into further buffers. Returns 1 when all are, 0 where the guest has to give more, or
 * -E2BIG where they never will be. */
static int place_spill(NetPair *p, Virtqueue *q) {
        size_t total = p->parked;
        int r;

        while (p->parked_filled < total) {
                NetHeld *h;
                IovCursor to;
                size_t part;

                if (!p->net->mergeable)
                        return -E2BIG;
                if (p->parked_held == p->n_held) {
                        /* All that the guest could ever give are here. */
                        if (p->n_held >= MIN(NET_HELD_MAX, (unsigned) virtqueue_num(q)))
                                return -E2BIG;
                        r = hold(p, q);
                        if (r <= 0)
                                return r;
                }
                h = held_at(p, p->parked_held++);
                to = h->chain.writable;
                part = MIN(h->room, total - p->parked_filled);
                (void) iov_cursor_write(&to, p->spill + p->parked_spill, part);
                p->parked_spill += part;
                p->parked_filled += part;
        }
        return 1;
}

/* Whether the driver understands a packet with such a header. The kernel asks the tap what to hand over; but what waited there was meant for whoever
 * was the driver before. */
static bool driver_takes(const Net *n, NetHeld *h) {
        uint64_t features = net_guest_features(n);
        struct virtio_net_hdr header = {};
        IovCursor c = h->chain.writable;
        unsigned bit;

        (void) iov_cursor_read(&c, &header, sizeof(header));
        if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && !(features & NET_FEATURE(VIRTIO_NET_F_GUEST_CSUM)))
                return false;
        switch (header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
        case VIRTIO_NET_HDR_GSO_NONE:
                return true;
        case VIRTIO_NET_HDR_GSO_TCPV4:
                bit = VIRTIO_NET_F_GUEST_TSO4;
                break;
        case VIRTIO_NET_HDR_GSO_TCPV6:
                bit = VIRTIO_NET_F_GUEST_TSO6;
                break;
        case VIRTIO_NET_HDR_GSO_UDP:
                bit = VIRTIO_NET_F_GUEST_UFO;
                break;
        case NET_GSO_UDP_L4:
                bit = NET_F_GUEST_USO4; /* USO6 comes with it */
                break;
        default:
                return false;
        }
        return features & NET_FEATURE(bit) &&
                (!(header.gso_type & VIRTIO_NET_HDR_GSO_ECN) || features & NET_FEATURE(VIRTIO_NET_F_GUEST_ECN));
}

/* §5.1.6.4: num_buffers, and flags that only a driver with GUEST_CSUM understands. The tap wrote the rest. */
static void finish_header(const Net *n, const NetHeld *h, uint16_t n_buffers) {
        IovCursor c = h->chain.writable;

        if (!net_has(n, VIRTIO_NET_F_GUEST_CSUM))
                (void) iov_cursor_write(&c, &(const uint8_t) { 0 }, 1);
        if (n->header_size < sizeof(struct virtio_net_hdr_mrg_rxbuf))
                return;
        c = h->chain.writable;
        (void) iov_cursor_skip(&c, offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers));
        (void) iov_cursor_write(&c, &n_buffers, sizeof(n_buffers));
}

static void deliver(NetPair *p, Virtqueue *q) {
        Net *n = p->net;
        size_t left = p->parked;
        unsigned count = p->parked_held;

        finish_header(n, held_at(p, 0), (uint16_t) count);
        for (unsigned i = 0; i < count; i++) {
                NetHeld *h = held_at(p, i);
                size_t part = MIN(h->room, left);

                virtqueue_push(q, &h->chain, (uint32_t) part);
                left -= part;
        }
        p->first = (p->first + count) % NET_HELD_MAX;
        p->n_held -= count;
        n->n_received++;
        n->bytes_received += p->parked - n->header_size;
        net_bucket_take(&n->receive_bucket, p->parked - n->header_size);
        p->parked = 0;
}

static void drop(NetPair *p) {
        p->net->n_receive_dropped++;
        p->parked = 0;
}

/* How much of the guest's buffers the next read is given follows what came. */
static void learn(NetPair *p, size_t length, size_t room) {
        if (length > room || length > SMALL_WINDOW) {
                p->large = true;
                p->n_small = 0;
        } else if (p->large && ++p->n_small >= SMALL_RUN)
                p->large = false;
}

static int read_packet(NetPair *p, Virtqueue *q) {
        struct iovec iov[IOV_MAX];
        unsigned held;
        size_t room;
        ssize_t n;
        int n_iov, r;

        r = prepare(p, q, iov, &n_iov, &held, &room);
        if (r <= 0)
                return r < 0 ? r : STARVED;
        do
                n = readv(p->fd, iov, n_iov);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EAGAIN)
                return TAP_EMPTY;
        if (n < (ssize_t) p->net->header_size) {
                if (n < 0 && errno == EBADFD)
                        net_tap_gone(p->net);
                drop(p);
                /* It was the packet's fault, and it is gone; or the tap's, which will say when it is better. */
                return n >= 0 || errno == EFAULT || errno == EINVAL ? DELIVERED : TAP_EMPTY;
        }
        if (!driver_takes(p->net, held_at(p, 0))) {
                drop(p);
                return DELIVERED;
        }
        p->parked = (size_t) n;
        p->parked_held = held;
        p->parked_filled = MIN(room, (size_t) n);
        p->parked_spill = 0;
        /* Not all the buffers that were ready may be needed. */
        while (p->parked_held > 1 && room - held_at(p, p->parked_held - 1)->room >= (size_t) n)
                room -= held_at(p, --p->parked_held)->room;
        learn(p, (size_t) n, p->parked_filled);
        return DELIVERED;
}

static int receive_one(NetPair *p, Virtqueue *q) {
        uint64_t usec;
        int r;

        if (p->parked == 0) {
                if (!net_bucket_open(&p->net->receive_bucket, &usec)) {
                        p->receive_throttled = true;
                        r = net_throttle(p->net, usec);
                        return r < 0 ? r : THROTTLED;
                }
                r = read_packet(p, q);
                if (r != DELIVERED || p->parked == 0)
                        return r;
        }
        r = place_spill(p, q);
        if (r == -E2BIG)
                drop(p);
        else if (r < 0)
                return r;
        else if (r == 0)
                return STARVED;
        else
                deliver(p, q);
        return DELIVERED;
}

int net_receive(NetPair *p) {
        Net *n = p->net;
        Virtqueue *q = device_queue(n->device, NET_RECEIVE_QUEUE(p));
        unsigned done = 0;
        int r;

        if (!q || !p->active || n->gone || p->receive_throttled)
                return 0;
        p->starved = false;
        virtqueue_suppress_kicks(q);
        for (;;) {
                r = receive_one(p, q);
                if (r < 0)
                        return r;
                if (r == STARVED) {
                        virtqueue_notify(q);
                        if (virtqueue_want_kicks(q)) {
                                virtqueue_suppress_kicks(q);
                                continue;
                        }
                        n->n_starved++;
                        p->starved = true;
                        break;
                }
                if (r != DELIVERED)
                        break;
                if (++done % NET_BATCH_MAX == 0)
                        virtqueue_notify(q);
                if (done >= NET_TURN_MAX)
                        break;
        }
        virtqueue_notify(q);
        r = net_tap_update(p);
        return r < 0 ? r : done >= NET_TURN_MAX && !p->starved;
}

int net_receive_later(NetPair *p) {
        Device *d = p->net->device;
        int r;

        p->receive_throttled = false;
        if (!device_is_running(d) || !p->active)
                return 0;
        r = net_receive(p);
        if (r == -EBADMSG) {
                const char *error = virtqueue_error(device_queue(d, NET_RECEIVE_QUEUE(p)));
                device_broken(d, "%s", error ? error : "a receive buffer makes no sense");
                return 0;
        }
        if (r <= 0)
                return r;
        p->receive_more = true;
        return sd_event_source_set_enabled(p->again, SD_EVENT_ONESHOT);
}

void net_receive_stop(NetPair *p) {
        Virtqueue *q = device_queue(p->net->device, NET_RECEIVE_QUEUE(p));

        if (p->parked > 0)
                drop(p);
        while (p->n_held > 0)
                virtqueue_unpop(q, &held_at(p, --p->n_held)->chain);
        p->starved = p->receive_throttled = p->large = false;
}
