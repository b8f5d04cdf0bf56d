/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The control queue (virtio 1.2 §5.1.6.5). What we do not know, or was not negotiated, or has the wrong length is answered with an error, as the
 * specification has it; a request without room for its answer breaks the device. */

#include <linux/virtio_config.h>

#include "net.h"

#define COMMANDS_MAX 16U

static bool take(IovCursor *c, void *data, size_t size) {
        return iov_cursor_read(c, data, size) == size;
}

/* §5.1.6.5.1 */
static bool receive_mode(Net *n, uint8_t command, IovCursor *c) {
        NetState *s = n->state;
        bool *const modes[] = {
                [VIRTIO_NET_CTRL_RX_PROMISC] = &s->promiscuous, [VIRTIO_NET_CTRL_RX_ALLMULTI] = &s->all_multicast,
                [VIRTIO_NET_CTRL_RX_ALLUNI] = &s->all_unicast,  [VIRTIO_NET_CTRL_RX_NOMULTI] = &s->no_multicast,
                [VIRTIO_NET_CTRL_RX_NOUNI] = &s->no_unicast,    [VIRTIO_NET_CTRL_RX_NOBCAST] = &s->no_broadcast,
        };
        uint8_t on;

        if (!net_has(n, VIRTIO_NET_F_CTRL_RX) || command >= ELEMENTSOF(modes) ||
                (command > VIRTIO_NET_CTRL_RX_ALLMULTI && !net_has(n, VIRTIO_NET_F_CTRL_RX_EXTRA)))
                return false;
        if (!take(c, &on, sizeof(on)) || c->left > 0)
                return false;
        *modes[command] = on != 0;
        s->filtering = true;
        net_tap_apply_filter(n);
        return true;
}

/* One of the two tables: a number, and so many addresses. */
static bool take_addresses(NetState *s, IovCursor *c) {
        uint32_t entries;

        if (!take(c, &entries, sizeof(entries)) || c->left / MAC_ADDRESS_SIZE < entries)
                return false;
        for (uint32_t i = 0; i < entries; i++) {
                if (s->n_addresses == NET_ADDRESSES_MAX) {
                        s->too_many = true;
                        (void) iov_cursor_skip(c, (uint64_t) (entries - i) * MAC_ADDRESS_SIZE);
                        return true;
                }
                (void) take(c, s->addresses[s->n_addresses++], MAC_ADDRESS_SIZE);
        }
        return true;
}

/* §5.1.6.5.2 */
static bool set_addresses(Net *n, IovCursor *c) {
        NetState changed = *n->state;

        changed.n_addresses = 0;
        changed.too_many = false;
        if (!net_has(n, VIRTIO_NET_F_CTRL_RX) || !take_addresses(&changed, c) || !take_addresses(&changed, c) || c->left > 0)
                return false;
        changed.filtering = true;
        *n->state = changed;
        net_tap_apply_filter(n);
        return true;
}

static bool set_mac(Net *n, IovCursor *c) {
        uint8_t mac[MAC_ADDRESS_SIZE];

        if (!net_has(n, VIRTIO_NET_F_CTRL_MAC_ADDR) || !take(c, mac, sizeof(mac)) || c->left > 0 || mac[0] & 1)
                return false;
        memcpy(n->state->mac, mac, sizeof(mac));
        net_tap_apply_mac(n);
        net_tap_apply_filter(n);
        return true;
}

/* §5.1.6.5.5 */
static bool set_pairs(Net *n, uint8_t command, IovCursor *c) {
        uint16_t pairs;

        if (!net_has(n, VIRTIO_NET_F_MQ) || command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !take(c, &pairs, sizeof(pairs)) ||
                c->left > 0 || pairs < VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN || pairs > n->n_pairs)
                return false;
        n->state->pairs = pairs;
        return true; /* applied when the queue is drained */
}

/* §5.1.6.5.6 */
static bool set_offloads(Net *n, uint8_t command, IovCursor *c) {
        uint64_t offloads;

        if (!net_has(n, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET ||
                !take(c, &offloads, sizeof(offloads)) || c->left > 0 || offloads & ~n->features)
                return false;
        n->state->offloads = offloads;
        n->state->offloads_set = true;
        net_tap_apply_offloads(n);
        return true;
}

static bool obey(Net *n, const struct virtio_net_ctrl_hdr *header, IovCursor *c) {
        switch (header->class) {
        case VIRTIO_NET_CTRL_RX:
                return receive_mode(n, header->cmd, c);
        case VIRTIO_NET_CTRL_MAC:
                if (header->cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
                        return set_addresses(n, c);
                return header->cmd == VIRTIO_NET_CTRL_MAC_ADDR_SET && set_mac(n, c);
        case VIRTIO_NET_CTRL_MQ:
                return set_pairs(n, header->cmd, c);
        case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
                return set_offloads(n, header->cmd, c);
        default:
                return false;
        }
}

static int answer(Net *n) {
        IovCursor c = n->control_chain.readable, status = n->control_chain.writable;
        struct virtio_net_ctrl_hdr header;
        uint8_t ack;

        if (!take(&c, &header, sizeof(header)) || status.left == 0) {
                device_broken(n->device, "a request on the control queue has no header, or no room for the answer");
                return -EBADMSG;
        }
        ack = obey(n, &header, &c) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
        (void) iov_cursor_write(&status, &ack, sizeof(ack));
        n->n_commands++;
        return 0;
}

int net_control(Net *n, unsigned index) {
        Virtqueue *q = device_queue(n->device, index);
        unsigned done = 0;
        int r;

        do {
                virtqueue_suppress_kicks(q);
                while (done < COMMANDS_MAX && (r = virtqueue_pop(q, &n->control_chain)) > 0) {
                        r = answer(n);
                        if (r < 0)
                                return r;
                        virtqueue_push(q, &n->control_chain, sizeof(uint8_t));
                        done++;
                }
                if (done > 0) {
                        int k = net_apply_pairs(n); /* before the driver knows that it was done */
                        if (k < 0)
                                return k;
                }
                virtqueue_notify(q);
                if (done >= COMMANDS_MAX)
                        return 1;
                if (r < 0)
                        return r;
        } while (virtqueue_want_kicks(q));
        return 0;
}

void net_control_reset(Net *n) {
        *n->state = (NetState) { .size = sizeof(NetState), .pairs = 1 };
        memcpy(n->state->mac, n->mac, MAC_ADDRESS_SIZE);
        net_tap_apply_mac(n);
}

/* ---- for a snapshot ---- */

#define STATE_VERSION 1

static bool *const *modes_of(NetState *s, bool *modes[static 9]) {
        bool *const all[] = {
                &s->filtering,    &s->promiscuous,  &s->all_multicast, &s->all_unicast, &s->no_multicast,
                &s->no_unicast,   &s->no_broadcast, &s->offloads_set,  &s->too_many,
        };

        memcpy(modes, all, sizeof(all));
        return modes;
}

int net_control_save(const Net *n, StateWriter *w) {
        NetState s = *n->state;
        bool *modes[9];

        state_begin(w, "net", 0, STATE_VERSION);
        state_put_u16(w, s.pairs);
        state_put_blob(w, s.mac, sizeof(s.mac));
        (void) modes_of(&s, modes);
        for (size_t i = 0; i < ELEMENTSOF(modes); i++)
                state_put_u8(w, *modes[i]);
        state_put_u64(w, s.offloads);
        state_put_blob(w, s.addresses, s.n_addresses * sizeof(s.addresses[0]));
        return state_end(w);
}

int net_control_load(Net *n, StateReader *r, char **ret_message) {
        NetState s = { .size = sizeof(NetState) };
        const void *addresses;
        bool *modes[9];
        size_t size;
        int k;

        k = state_enter(r, "net", 0, STATE_VERSION);
        if (k < 0)
                return set_message(ret_message, k, "it is no state of a network device, or a newer version's");
        s.pairs = state_get_u16(r);
        state_get_blob(r, s.mac, sizeof(s.mac));
        (void) modes_of(&s, modes);
        for (size_t i = 0; i < ELEMENTSOF(modes); i++)
                *modes[i] = state_get_u8(r) != 0;
        s.offloads = state_get_u64(r);
        addresses = state_get_blob_view(r, sizeof(s.addresses), &size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        if (s.pairs < VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN || s.pairs > n->n_pairs || s.mac[0] & 1 || size % MAC_ADDRESS_SIZE != 0)
                return set_message(ret_message, -EBADMSG, "it is none that a network device of %u pairs of queues can be in", n->n_pairs);
        memcpy(s.addresses, addresses, size);
        s.n_addresses = (uint16_t) (size / MAC_ADDRESS_SIZE);
        *n->state = s;
        net_tap_apply_mac(n); /* the rest when it starts */
        return 0;
}
