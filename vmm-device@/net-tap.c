/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The tap behind the device. In a unit its descriptors come from the service manager, which keeps them over our death: the interface never loses its
 * carrier, and packets wait in its queue. The ioctls here need no privilege for whoever holds the descriptor. */

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "net.h"

/* <linux/if_tun.h> of Linux 6.2 */
#define TAP_F_USO4 0x20U
#define TAP_F_USO6 0x40U

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata);
static int on_again(sd_event_source *source, void *userdata);

/* Queues of an earlier, larger configuration: the kernel spreads packets over all that are attached, also those that nobody reads. */
static void let_go_of_others(Net *n) {
        struct ifreq request = { .ifr_flags = IFF_DETACH_QUEUE };
        int fd;

        while (device_take_passed(n->device, "interface", &fd, 1) > 0) {
                if (ioctl(fd, TUNSETQUEUE, &request) < 0 && errno != EINVAL)
                        (void) log_warning_errno(errno, "Cannot take a queue that is not used off the interface: %m");
                (void) safe_close(fd);
        }
}

static int find_tap(Net *n, bool *ret_here) {
        const char *name = device_option(n->device, "interface");
        _cleanup_free_ char *message = NULL;
        int fds[NET_PAIRS_MAX] = {}, r;

        r = (int) device_take_passed(n->device, "interface", fds, n->n_pairs);
        if (r == 0) {
                if (!name)
                        return log_error_errno(-EINVAL, "A network device needs --interface=NAME.");
                if (device_is_managed(n->device))
                        /* Where vmm-open was before us. */
                        return log_error_errno(-EBUSY, "The network interface '%s' is in use by another machine or program.", name);
                r = tap_open(name, n->n_pairs, fds, &message);
                if (r < 0)
                        return log_error_errno(r, "%s", message ? message : strerrordesc_np(-r));
                r = (int) n->n_pairs;
                *ret_here = true;
        } else
                let_go_of_others(n);
        if ((unsigned) r < n->n_pairs)
                log_warning("The interface was opened with %d queues only; when the machine starts the next time, it has %u.", r,
                        n->n_pairs);
        n->n_pairs = (unsigned) r;
        for (int i = 0; i < r; i++)
                n->pairs[i].fd = fds[i];
        return 0;
}

/* What the descriptor is, and not what somebody calls it. */
static int ask_tap(Net *n) {
        struct ifreq request = {};

        if (ioctl(n->pairs[0].fd, TUNGETIFF, &request) < 0)
                return log_error_errno(errno, "What was handed over as 'interface' is no tap: %m");
        if (!(request.ifr_flags & IFF_VNET_HDR) || !(request.ifr_flags & IFF_TAP))
                return log_error_errno(-EINVAL, "The interface '%.*s' was not opened for packets with virtio-net's header.", IFNAMSIZ,
                        request.ifr_name);
        n->interface = strndup(request.ifr_name, IFNAMSIZ);
        if (!n->interface)
                return log_oom();
        n->macvtap = tap_is_macvtap(n->pairs[0].fd);
        return 0;
}

static void probe_offloads(Net *n) {
        static const unsigned each[] = { TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN, TUN_F_UFO, TAP_F_USO4 | TAP_F_USO6 };
        int fd = n->pairs[0].fd;

        if (!device_option_boolean(n->device, "offload", true) || ioctl(fd, TUNSETOFFLOAD, (unsigned long) TUN_F_CSUM) < 0)
                return;
        n->tap_offloads = TUN_F_CSUM;
        for (size_t i = 0; i < ELEMENTSOF(each); i++)
                if (ioctl(fd, TUNSETOFFLOAD, (unsigned long) (TUN_F_CSUM | each[i])) >= 0)
                        n->tap_offloads |= each[i];
        (void) ioctl(fd, TUNSETOFFLOAD, 0UL);
}

/* A macvtap passes on what is addressed to itself: it and the guest have one address. */
static int choose_mac(Net *n) {
        const char *given = device_option(n->device, "mac"), *otherwise = getenv("VMM_DEFAULT_MAC");
        struct ifreq request = {};

        if (given)
                return mac_address_parse(given, n->mac);
        if (!n->macvtap && otherwise)
                return mac_address_parse(otherwise, n->mac);
        if (!n->macvtap) {
                mac_address_derive("", n->interface, n->mac); /* by hand */
                return 0;
        }
        if (ioctl(n->pairs[0].fd, SIOCGIFHWADDR, &request) < 0)
                return -errno;
        memcpy(n->mac, request.ifr_hwaddr.sa_data, MAC_ADDRESS_SIZE);
        return 0;
}

static int make_sources(NetPair *p) {
        sd_event *event = device_event(p->net->device);
        int r;

        r = sd_event_add_io(event, &p->io, p->fd, EPOLLIN | EPOLLET, on_io, p);
        if (r >= 0)
                r = sd_event_source_set_enabled(p->io, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(p->io, true);
        if (r >= 0)
                r = sd_event_add_defer(event, &p->again, on_again, p);
        if (r >= 0)
                r = sd_event_source_set_enabled(p->again, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_source_set_priority(p->again, SD_EVENT_PRIORITY_NORMAL + 5);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(p->again, true);
        return r < 0 ? log_error_errno(r, "Cannot watch the tap: %m") : 0;
}

int net_tap_open(Net *n) {
        bool here = false;
        int r;

        r = find_tap(n, &here);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < n->n_pairs; i++) {
                net_tap_attach(&n->pairs[i], true); /* a predecessor may have left them otherwise */
                r = make_sources(&n->pairs[i]);
                if (r < 0)
                        return r;
        }
        r = ask_tap(n);
        if (r < 0)
                return r;
        probe_offloads(n);
        r = choose_mac(n);
        if (r < 0)
                return log_error_errno(r, "Cannot choose an Ethernet address: %m");
        return net_link_open(n, here);
}

void net_tap_close(Net *n) {
        for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
                NetPair *p = &n->pairs[i];

                (void) sd_event_source_disable_unref(p->io);
                (void) sd_event_source_disable_unref(p->again);
                p->fd = safe_close(p->fd);
        }
}

static void complain(Net *n, const char *what) {
        if (errno != EBADFD && log_ratelimit(&n->complaints, NULL))
                (void) log_warning_errno(errno, "Cannot set %s of the interface '%s': %m", what, n->interface);
}

void net_tap_apply_header(Net *n) {
        int size = (int) n->header_size;

        for (unsigned i = 0; i < n->n_pairs; i++)
                if (ioctl(n->pairs[i].fd, TUNSETVNETHDRSZ, &size) < 0)
                        complain(n, "the header size");
}

static unsigned wanted_offloads(const Net *n) {
        static const struct {
                unsigned bit, flag;
        } table[] = {
                { VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4 }, { VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6 },
                { VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN }, { VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO },
                { NET_F_GUEST_USO4, TAP_F_USO4 }, { NET_F_GUEST_USO6, TAP_F_USO6 },
        };
        uint64_t wanted = net_guest_features(n);
        unsigned flags = TUN_F_CSUM;

        if (!(wanted & NET_FEATURE(VIRTIO_NET_F_GUEST_CSUM)))
                return 0; /* all the others build on it (§5.1.3.1) */
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (wanted & NET_FEATURE(table[i].bit))
                        flags |= table[i].flag;
        /* The kernel takes these together, or not at all; */
        if ((flags & (TAP_F_USO4 | TAP_F_USO6)) != (TAP_F_USO4 | TAP_F_USO6))
                flags &= ~(TAP_F_USO4 | TAP_F_USO6);
        /* and this one only with what it modifies. */
        if (!(flags & (TUN_F_TSO4 | TUN_F_TSO6)))
                flags &= ~(unsigned) TUN_F_TSO_ECN;
        return flags;
}

void net_tap_apply_offloads(Net *n) {
        unsigned long flags = wanted_offloads(n);

        /* A tap has these once, a macvtap too: any queue that is attached will do. */
        if (ioctl(n->pairs[0].fd, TUNSETOFFLOAD, flags) < 0)
                complain(n, "offloads");
}

/* Keeps away what the driver does not want to see, before anybody has copied it. It is no more than a favour (§5.1.6.5.1): where the
 * kernel's filter cannot say it, everything passes. */
void net_tap_apply_filter(Net *n) {
        const NetState *s = n->state;
        struct {
                uint16_t flags, count; /* struct tun_filter, */
                uint8_t addresses[NET_ADDRESSES_MAX + 2][MAC_ADDRESS_SIZE]; /* and its array without a size */
        } filter = {};
        uint16_t count = 0;

        if (n->macvtap)
                return; /* has a filter of its own, by its address */
        if (s->filtering && !s->promiscuous && !s->all_unicast && !s->too_many) {
                if (!s->no_unicast)
                        memcpy(filter.addresses[count++], s->mac, MAC_ADDRESS_SIZE);
                if (!s->no_broadcast)
                        memset(filter.addresses[count++], 0xff, MAC_ADDRESS_SIZE);
                /* Stations come first: of these the kernel takes a few, of groups any number. */
                for (unsigned group = 0; group < 2; group++)
                        for (uint16_t i = 0; i < s->n_addresses; i++)
                                if ((s->addresses[i][0] & 1) == group && !(group ? s->no_multicast : s->no_unicast))
                                        memcpy(filter.addresses[count++], s->addresses[i], MAC_ADDRESS_SIZE);
                if (s->all_multicast && !s->no_multicast)
                        filter.flags = TUN_FLT_ALLMULTI;
                filter.count = count;
        }
        if (ioctl(n->pairs[0].fd, TUNSETTXFILTER, &filter) < 0)
                complain(n, "the filter");
}

void net_tap_apply_mac(Net *n) {
        struct ifreq request = { .ifr_hwaddr.sa_family = 1 /* ARPHRD_ETHER */ };

        if (!n->macvtap)
                return;
        memcpy(request.ifr_hwaddr.sa_data, n->state->mac, MAC_ADDRESS_SIZE);
        if (ioctl(n->pairs[0].fd, SIOCSIFHWADDR, &request) < 0)
                complain(n, "the address");
}

void net_tap_attach(NetPair *p, bool attach) {
        struct ifreq request = { .ifr_flags = attach ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };

        p->attached = attach;
        /* EINVAL: it is so already, or has one queue only. */
        if (ioctl(p->fd, TUNSETQUEUE, &request) < 0 && errno != EINVAL)
                complain(p->net, "the queues");
}

int net_tap_update(NetPair *p) {
        uint32_t interest = 0;
        int r;

        if (p->active && !p->net->gone && !p->net->stopping) {
                if (!p->starved && !p->receive_throttled)
                        interest |= EPOLLIN;
                if (p->blocked)
                        interest |= EPOLLOUT;
        }
        if (interest == p->interest)
                return 0;
        /* Edge-triggered: a packet that comes while we read is an event still to come, and what we left is looked at by ourselves. */
        r = interest == 0 ? 0 : sd_event_source_set_io_events(p->io, interest | EPOLLET);
        if (r >= 0)
                r = sd_event_source_set_enabled(p->io, interest == 0 ? SD_EVENT_OFF : SD_EVENT_ON);
        if (r >= 0)
                p->interest = interest;
        return r;
}

void net_tap_gone(Net *n) {
        if (n->gone)
                return;
        n->gone = true;
        log_error("The interface '%s' has been deleted; the guest has no link any more. When it is there again, restart this unit.",
                n->interface);
        for (unsigned i = 0; i < n->n_pairs; i++)
                (void) net_tap_update(&n->pairs[i]);
        device_config_changed(n->device);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        NetPair *p = userdata;
        int r = 0;

        if (p->blocked && revents & (EPOLLOUT | EPOLLERR)) {
                p->blocked = false;
                r = net_transmit_later(p);
        }
        if (r >= 0 && revents & (EPOLLIN | EPOLLERR | EPOLLHUP))
                r = net_receive_later(p);
        return r;
}

static int on_again(sd_event_source *source, void *userdata) {
        NetPair *p = userdata;
        bool receive = p->receive_more;
        int r = 0;

        p->receive_more = false;
        if (p->transmit_more) {
                p->transmit_more = false;
                r = net_transmit_later(p);
        }
        return r >= 0 && receive ? net_receive_later(p) : r;
}
