/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Network device in user mode: passt, whose packets are the host's own sockets. It has neither a configuration space nor an address for the guest; both
 * are added on the way. */

#include <linux/virtio_net.h>

#include "foreign.h"
#include "mac-address.h"

#define PROGRAM "/usr/bin/passt"
#define QUEUES 2 /* one pair; passt knows no control queue */

static int add_configuration(Foreign *f) {
        struct virtio_net_config config = { .status = VIRTIO_NET_S_LINK_UP, .max_virtqueue_pairs = 1 };
        const char *mac = device_option(f->device, "mac") ?: getenv("VMM_DEFAULT_MAC");
        uint64_t mtu = device_option_unsigned(f->device, "mtu", 0);

        if (mac && mac_address_parse(mac, config.mac) < 0)
                return log_error_errno(-EINVAL, "'%s' is not an Ethernet address.", mac);
        if (mac)
                f->addition.features |= UINT64_C(1) << VIRTIO_NET_F_MAC;
        if (mtu > 0) {
                f->addition.features |= UINT64_C(1) << VIRTIO_NET_F_MTU;
                config.mtu = (uint16_t) mtu;
        }
        f->addition.config_size = offsetof(struct virtio_net_config, speed);
        memcpy(f->addition.config, &config, f->addition.config_size);
        return 0;
}

static int add_ports(Foreign *f, const char *option, const char *argument) {
        const char *const *ports;
        size_t n;
        int r = 0;

        ports = device_option_list(f->device, option, &n);
        for (size_t i = 0; i < n && r >= 0; i++)
                r = foreign_add(f, "--%s=%s", argument, ports[i]);
        return r;
}

static int passt_prepare(Foreign *f) {
        uint64_t mtu = device_option_unsigned(f->device, "mtu", 0);
        int connected, r;

        connected = foreign_socket(f, FOREIGN_SOCKET_CONNECTED);
        if (connected < 0)
                return connected;
        r = foreign_add(f, PROGRAM);
        if (r >= 0)
                r = foreign_add(f, "--foreground");
        if (r >= 0)
                r = foreign_add(f, "--quiet");
        if (r >= 0)
                r = foreign_add(f, "--vhost-user");
        if (r >= 0)
                r = foreign_add(f, "--fd=%d", connected);
        if (r >= 0 && mtu > 0)
                r = foreign_add(f, "--mtu=%u", (unsigned) mtu);
        if (r >= 0)
                r = add_ports(f, "tcpPorts", "tcp-ports");
        if (r >= 0)
                r = add_ports(f, "udpPorts", "udp-ports");
        return r < 0 ? r : add_configuration(f);
}

static void passt_close(Foreign *f) {
}

static const ForeignClass passt_foreign = {
        .package = "passt, which knows vhost-user from Debian 13 on",
        .one_session = true,
        .prepare = passt_prepare,
        .close = passt_close,
};

const DeviceClass passt_device = {
        .name = "net",
        .virtio_id = 1,
        .queues_max = QUEUES,
        .policy = "foreign",
        .open = foreign_open,
        .close = foreign_close,
        .describe = foreign_describe,
        .foreign = &passt_foreign,
};
