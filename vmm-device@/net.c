/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Network device (virtio 1.2 §5.1) on a tap or macvtap of the host: what it offers, its life, its configuration space.
 *
 * Queues are receive and transmit of each pair in turn, then the control queue; without VIRTIO_NET_F_MQ the control queue is the third. */

#include <linux/if_tun.h>
#include <linux/virtio_config.h>
#include <json-c/json.h>

#include "net.h"

/* The specification's structure goes on with what we have not. */
#define CONFIG_SIZE (offsetof(struct virtio_net_config, mtu) + sizeof(uint16_t))

/* No filter by VLAN: what a driver need not filter itself it would only think was filtered (§5.1.6.5.3 calls it best effort), and a tap has none. */
static uint64_t offered_features(const Net *n) {
        uint64_t features = NET_FEATURE(VIRTIO_NET_F_MAC) | NET_FEATURE(VIRTIO_NET_F_MRG_RXBUF) | NET_FEATURE(VIRTIO_NET_F_STATUS) |
                NET_FEATURE(VIRTIO_NET_F_CTRL_VQ) | NET_FEATURE(VIRTIO_NET_F_CTRL_RX) | NET_FEATURE(VIRTIO_NET_F_CTRL_RX_EXTRA) |
                NET_FEATURE(VIRTIO_NET_F_CTRL_MAC_ADDR);
        const unsigned to_guest = n->tap_offloads;

        if (n->mtu > 0)
                features |= NET_FEATURE(VIRTIO_NET_F_MTU);
        if (n->n_pairs > 1)
                features |= NET_FEATURE(VIRTIO_NET_F_MQ);
        if (to_guest & TUN_F_CSUM)
                features |= NET_FEATURE(VIRTIO_NET_F_CSUM) | NET_FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
                        NET_FEATURE(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
        if (to_guest & TUN_F_TSO4)
                features |= NET_FEATURE(VIRTIO_NET_F_GUEST_TSO4) | NET_FEATURE(VIRTIO_NET_F_HOST_TSO4);
        if (to_guest & TUN_F_TSO6)
                features |= NET_FEATURE(VIRTIO_NET_F_GUEST_TSO6) | NET_FEATURE(VIRTIO_NET_F_HOST_TSO6);
        if (to_guest & TUN_F_TSO_ECN)
                features |= NET_FEATURE(VIRTIO_NET_F_GUEST_ECN) | NET_FEATURE(VIRTIO_NET_F_HOST_ECN);
        if (to_guest & TUN_F_UFO)
                features |= NET_FEATURE(VIRTIO_NET_F_GUEST_UFO) | NET_FEATURE(VIRTIO_NET_F_HOST_UFO);
        if ((to_guest & 0x60U) == 0x60U) /* TUN_F_USO4, TUN_F_USO6 */
                features |= NET_FEATURE(NET_F_GUEST_USO4) | NET_FEATURE(NET_F_GUEST_USO6) | NET_FEATURE(NET_F_HOST_USO);
        return features;
}

static int open_state(Net *n) {
        void *p;
        int r;

        r = device_keep(n->device, "state", sizeof(NetState), &p);
        if (r < 0)
                return log_error_errno(r, "Cannot keep the device's state: %m");
        n->state = p;
        /* A predecessor of another version kept something else. */
        if (r == 0 || n->state->size != sizeof(NetState) || n->state->n_addresses > NET_ADDRESSES_MAX)
                net_control_reset(n);
        return 0;
}

static int net_open(Device *d) {
        Net *n = calloc(1, sizeof(Net));
        int r;

        if (!n)
                return log_oom();
        n->device = d;
        n->header_size = TAP_HEADER_SIZE;
        n->link_fd = -EBADF;
        n->complaints = (LogRateLimit) { .interval_usec = 30 * USEC_PER_SEC, .burst = 5 };
        for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
                n->pairs[i].net = n;
                n->pairs[i].index = i;
                n->pairs[i].fd = -EBADF;
        }
        device_set_data(d, n);
        n->n_pairs = (unsigned) device_option_unsigned(d, "queuePairs", 1);
        n->mtu = (uint16_t) device_option_unsigned(d, "mtu", 0);

        r = net_tap_open(n);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < n->n_pairs; i++) {
                n->pairs[i].spill = malloc(NET_READ_MAX);
                if (!n->pairs[i].spill)
                        return log_oom();
        }
        r = net_rate_open(n);
        if (r < 0)
                return r;
        r = open_state(n);
        if (r < 0)
                return r;
        device_set_n_queues(d, 2 * n->n_pairs + 1);
        device_set_features(d, offered_features(n));
        return 0;
}

static void net_close(Device *d) {
        Net *n = device_data(d);

        if (!n)
                return;
        net_link_close(n);
        net_tap_close(n);
        (void) sd_event_source_disable_unref(n->timer);
        for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
                NetPair *p = &n->pairs[i];

                for (unsigned k = 0; k < NET_HELD_MAX; k++)
                        virtqueue_chain_done(&p->held[k].chain);
                virtqueue_chain_done(&p->sending);
                free(p->spill);
        }
        virtqueue_chain_done(&n->control_chain);
        free(n->interface);
        free(n);
}

static unsigned control_queue(const Net *n) {
        return net_has(n, VIRTIO_NET_F_MQ) ? 2 * n->n_pairs : 2;
}

/* By the control queue where the driver talks to us on it. Some front-ends keep it to themselves (QEMU), and enable the rings of the pairs. */
static unsigned wanted_pairs(const Net *n) {
        unsigned served = 0;

        if (!net_has(n, VIRTIO_NET_F_MQ))
                return 1;
        if (device_queue(n->device, control_queue(n)))
                return n->state->pairs;
        while (served < n->n_pairs && device_queue(n->device, 2 * served) && device_queue(n->device, 2 * served + 1))
                served++;
        return MAX(served, 1U);
}

int net_apply_pairs(Net *n) {
        unsigned wanted = wanted_pairs(n);

        for (unsigned i = 0; i < n->n_pairs; i++) {
                NetPair *p = &n->pairs[i];
                bool active = i < wanted;
                int r;

                if (n->n_pairs > 1 && p->attached != active)
                        net_tap_attach(p, active);
                if (p->active == active)
                        continue;
                p->active = active;
                if (!active)
                        net_receive_stop(p);
                p->blocked = p->transmit_throttled = false;
                r = net_tap_update(p);
                if (r < 0)
                        return r;
                if (active) {
                        /* There may be something to do already, for which nobody will kick: once everybody has had his turn. */
                        p->receive_more = p->transmit_more = true;
                        r = sd_event_source_set_enabled(p->again, SD_EVENT_ONESHOT);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int net_start(Device *d) {
        Net *n = device_data(d);

        n->features = device_features(d);
        n->mergeable = net_has(n, VIRTIO_NET_F_MRG_RXBUF);
        /* §5.1.6.1: the legacy header lacks num_buffers where buffers are not merged. */
        n->header_size = n->mergeable || net_has(n, VIRTIO_F_VERSION_1) ? sizeof(struct virtio_net_hdr_v1) : sizeof(struct virtio_net_hdr);
        n->stopping = false;
        net_tap_apply_header(n);
        net_tap_apply_offloads(n);
        net_tap_apply_filter(n);
        return net_apply_pairs(n);
}

static void net_stop(Device *d) {
        Net *n = device_data(d);

        n->stopping = true;
        for (unsigned i = 0; i < n->n_pairs; i++) {
                NetPair *p = &n->pairs[i];

                net_receive_stop(p);
                p->active = p->blocked = p->transmit_throttled = p->receive_more = p->transmit_more = false;
                (void) net_tap_update(p);
                (void) sd_event_source_set_enabled(p->again, SD_EVENT_OFF);
        }
}

static void net_reset(Device *d) {
        net_control_reset(device_data(d));
}

static int net_process(Device *d, unsigned index) {
        Net *n = device_data(d);

        if (index == control_queue(n))
                return net_control(n, index);
        if (index >= 2 * n->n_pairs)
                return 0; /* where the control queue would be in another life */
        return index % 2 == 0 ? net_receive(&n->pairs[index / 2]) : net_transmit(&n->pairs[index / 2]);
}

/* §5.1.4 */
static void net_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        const Net *n = device_data(d);
        struct virtio_net_config config = {
                .status = n->gone || n->link_down ? 0 : VIRTIO_NET_S_LINK_UP,
                .max_virtqueue_pairs = (uint16_t) n->n_pairs,
                .mtu = n->mtu,
        };

        memcpy(config.mac, n->state->mac, MAC_ADDRESS_SIZE);
        memcpy(data, (const uint8_t *) &config + offset, length);
}

static void net_describe(Device *d, json_object *into) {
        const Net *n = device_data(d);
        char mac[MAC_ADDRESS_TEXT_MAX];
        unsigned active = 0;

        for (unsigned i = 0; i < n->n_pairs; i++)
                active += n->pairs[i].active;
        mac_address_format(n->state->mac, mac);
        json_object_object_add(into, "interface", json_object_new_string(n->interface));
        json_object_object_add(into, "kind", json_object_new_string(n->macvtap ? "macvtap" : "tap"));
        json_object_object_add(into, "mac", json_object_new_string(mac));
        json_object_object_add(into, "mtu", n->mtu > 0 ? json_object_new_int(n->mtu) : NULL);
        json_object_object_add(into, "link", json_object_new_boolean(!n->gone && !n->link_down));
        json_object_object_add(into, "queuePairs", json_object_new_int((int) n->n_pairs));
        json_object_object_add(into, "queuePairsActive", json_object_new_int((int) active));
}

static void net_counters(Device *d, json_object *into) {
        const Net *n = device_data(d);

        json_object_object_add(into, "receivedPackets", json_object_new_uint64(n->n_received));
        json_object_object_add(into, "receivedBytes", json_object_new_uint64(n->bytes_received));
        json_object_object_add(into, "receiveDropped", json_object_new_uint64(n->n_receive_dropped));
        json_object_object_add(into, "receiveStarved", json_object_new_uint64(n->n_starved));
        json_object_object_add(into, "sentPackets", json_object_new_uint64(n->n_sent));
        json_object_object_add(into, "sentBytes", json_object_new_uint64(n->bytes_sent));
        json_object_object_add(into, "sendDropped", json_object_new_uint64(n->n_transmit_dropped));
        json_object_object_add(into, "controlCommands", json_object_new_uint64(n->n_commands));
}

static int net_save(Device *d, StateWriter *w) {
        return net_control_save(device_data(d), w);
}

static int net_load(Device *d, StateReader *r, char **ret_message) {
        return net_control_load(device_data(d), r, ret_message);
}

const DeviceClass net_device = {
        .name = "net",
        .virtio_id = 1,
        .queues_max = 2 * NET_PAIRS_MAX + 1,
        .config_size = CONFIG_SIZE,
        .policy = "net",
        .open = net_open,
        .close = net_close,
        .start = net_start,
        .stop = net_stop,
        .reset = net_reset,
        .process = net_process,
        .config_read = net_config_read,
        .save = net_save,
        .load = net_load,
        .describe = net_describe,
        .counters = net_counters,
};
