/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside the network device: what net.c, net-tap.c, net-link.c, net-receive.c, net-transmit.c, net-control.c and net-rate.c share.
 *
 * A pair is a receive queue, a transmit queue, and one queue of the host's tap. Packets go straight between the tap and the guest's buffers, one system call
 * each; everything around them (notifications, looking for more) is done once for many. */

#include <linux/virtio_net.h>

#include "device.h"
#include "iovec.h"
#include "log.h"
#include "mac-address.h"
#include "tap.h"

#define NET_PAIRS_MAX TAP_QUEUES_MAX
/* The largest packet a driver may give or get (virtio 1.2 §5.1.6.2), a VLAN tag more than it says, and the header before it. */
#define NET_PACKET_MAX (65550U + 4U)
#define NET_READ_MAX (TAP_HEADER_SIZE + NET_PACKET_MAX)
#define NET_ETHERNET_HEADER 14U
/* Packets in one direction of one pair before others have their turn, */
#define NET_TURN_MAX 256U
/* and before the guest is told of them. */
#define NET_BATCH_MAX 64U
/* Buffers that may be merged for one packet: the largest packet fits buffers of 512 bytes. */
#define NET_HELD_MAX 129U
#define NET_ADDRESSES_MAX 64U

#define NET_FEATURE(bit) (UINT64_C(1) << (bit))
/* Newer than the headers that some distributions have (virtio 1.2 does not have them, 1.3 does). */
#define NET_F_GUEST_USO4 54
#define NET_F_GUEST_USO6 55
#define NET_F_HOST_USO 56
#define NET_GSO_UDP_L4 5

/* What the driver said on the control queue. It is in memory that outlives this process: nobody says it again to a successor. */
typedef struct NetState {
        uint32_t size;  /* of this structure, once it is filled in */
        uint16_t pairs; /* VIRTIO_NET_CTRL_MQ */
        uint8_t mac[MAC_ADDRESS_SIZE];
        bool filtering; /* the driver has said what it wants to receive */
        bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
        bool offloads_set;
        uint64_t offloads; /* VIRTIO_NET_CTRL_GUEST_OFFLOADS */
        uint16_t n_addresses;
        bool too_many; /* more than these */
        uint8_t addresses[NET_ADDRESSES_MAX][MAC_ADDRESS_SIZE];
} NetState;

/* Lets `rate` bytes a second through, and a short burst. */
typedef struct NetBucket {
        uint64_t rate; /* 0: no limit */
        int64_t tokens;
        uint64_t filled_usec;
} NetBucket;

/* A buffer of the guest's that is waiting for a packet. */
typedef struct NetHeld {
        VirtqueueChain chain;
        size_t room; /* bytes of it that we use */
        size_t n_iov;
} NetHeld;

typedef struct Net Net;

typedef struct NetPair {
        Net *net;
        unsigned index;
        int fd;
        bool active, attached;
        sd_event_source *io, *again;
        bool receive_more, transmit_more; /* what `again` is for */
        uint32_t interest; /* what `io` watches for */

        NetHeld held[NET_HELD_MAX]; /* a ring; the oldest is at `first` */
        unsigned first, n_held;
        bool large;           /* packets larger than one buffer have come lately */
        unsigned n_small;     /* since the last of them */
        bool starved;         /* the guest has to give buffers first */
        bool receive_throttled;
        uint8_t *spill;       /* the end of a packet for which fewer buffers were ready than it needs */
        size_t parked;        /* length of the packet that waits for more buffers, 0 for none; */
        unsigned parked_held; /* it fills so many of the held ones, */
        size_t parked_filled; /* with so many bytes, */
        size_t parked_spill;  /* and so many of the spill are copied */

        VirtqueueChain sending;
        bool blocked; /* the tap takes no more */
        bool transmit_throttled;
} NetPair;

struct Net {
        Device *device;
        char *interface;
        bool macvtap;
        unsigned n_pairs;
        NetPair pairs[NET_PAIRS_MAX];
        uint8_t mac[MAC_ADDRESS_SIZE];
        uint16_t mtu;
        unsigned tap_offloads; /* TUN_F_*: what the kernel's side is able to hand us */
        NetState *state;
        bool gone;             /* the interface has been deleted, */
        bool link_down;        /* or is down, or its carrier is */
        int link_fd;           /* netlink; -EBADF where nobody tells us */
        int interface_index;   /* where link_fd comes from; 0 until it has told */
        sd_event_source *link_source;

        uint64_t features;     /* negotiated, while running */
        size_t header_size;
        bool mergeable, stopping;
        VirtqueueChain control_chain;

        NetBucket receive_bucket, transmit_bucket;
        sd_event_source *timer;
        uint64_t timer_usec;   /* when it rings; 0: it does not */

        uint64_t n_received, n_sent, bytes_received, bytes_sent;
        uint64_t n_receive_dropped, n_transmit_dropped, n_starved, n_commands;
        LogRateLimit complaints;
};

#define NET_RECEIVE_QUEUE(p) (2 * (p)->index)
#define NET_TRANSMIT_QUEUE(p) (2 * (p)->index + 1)

static inline bool net_has(const Net *n, unsigned bit) {
        return n->features & NET_FEATURE(bit);
}

/* What the driver is prepared to receive: it may want less than it negotiated (VIRTIO_NET_CTRL_GUEST_OFFLOADS). */
static inline uint64_t net_guest_features(const Net *n) {
        return n->state->offloads_set ? n->features & n->state->offloads : n->features;
}

/* net-tap.c: the host's side */
int net_tap_open(Net *n);
void net_tap_close(Net *n);
/* All of what the driver has chosen, and says later on, as far as the tap has to know. */
void net_tap_apply_header(Net *n);
void net_tap_apply_offloads(Net *n);
void net_tap_apply_filter(Net *n);
void net_tap_apply_mac(Net *n);
/* A queue that nobody serves must not be given packets. */
void net_tap_attach(NetPair *p, bool attach);
/* Watches for what the pair waits for. */
int net_tap_update(NetPair *p);
/* The interface is no more: the guest sees its cable pulled. */
void net_tap_gone(Net *n);

/* net-link.c: whether the host's side is up; `here` where the interface is in our own network. After net_tap_open(). */
int net_link_open(Net *n, bool here);
void net_link_close(Net *n);

/* net-receive.c and net-transmit.c: moves packets until one side has no more, in the guest's kick. Returns 1 where it stopped early for the sake of
 * others, and negative errnos as a DeviceClass's process(). */
int net_receive(NetPair *p);
int net_transmit(NetPair *p);
/* The same for an event of our own: whatever comes of it is taken care of. */
int net_receive_later(NetPair *p);
int net_transmit_later(NetPair *p);
/* Gives untouched buffers back. */
void net_receive_stop(NetPair *p);

/* net-control.c */
int net_control(Net *n, unsigned index);
void net_control_reset(Net *n);
int net_control_save(const Net *n, StateWriter *w);
int net_control_load(Net *n, StateReader *r, char **ret_message);

/* net-rate.c */
void net_bucket_init(NetBucket *b, uint64_t rate);
/* Whether something may pass now. Else when it may, in microseconds from now. */
bool net_bucket_open(NetBucket *b, uint64_t *ret_usec);
void net_bucket_take(NetBucket *b, size_t length);
/* Calls the pairs that are throttled when that time has passed. */
int net_throttle(Net *n, uint64_t usec);
int net_rate_open(Net *n);

/* net.c */
/* The pairs that the driver uses now; watches these and no others. */
int net_apply_pairs(Net *n);
