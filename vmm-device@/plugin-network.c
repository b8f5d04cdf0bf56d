/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* In a unit the tap comes from vmm-open, which is in the host's network, together with a socket of that network: that is whom to ask for the
 * interface's address, since ours is an empty network, and asking takes no rights. */

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "log.h"
#include "plugin-network.h"
#include "tap.h"

/* --- opening --- */

static int open_here(PluginTap *n, const char *name) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = tap_open_frames(name, &n->tap, &message);
        if (r < 0)
                return log_error_errno(r, "%s", message ? message : strerrordesc_np(-r));
        n->route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
        return n->route < 0 ? log_error_errno(errno, "Cannot ask for network interfaces: %m") : 0;
}

int plugin_network_open(PluginTap *n, Device *d) {
        const char *name = device_option(d, "interface");

        if (!name)
                return 0;
        if (device_take_passed(d, "interface", &n->tap, 1) == 0) {
                if (device_is_managed(d)) /* where vmm-open was before us */
                        return log_error_errno(-EBUSY, "The network interface '%s' is in use by another machine or program.", name);
                return open_here(n, name);
        }
        (void) device_take_passed(d, TAP_LINK_NAME, &n->route, 1);
        return 0;
}

void plugin_network_close(PluginTap *n) {
        n->tap = safe_close(n->tap);
        n->route = safe_close(n->route);
}

/* --- asking --- */

typedef struct Question {
        const char *name; /* of the interface */
        int index;        /* of it, once it is known */
        uint32_t address, netmask;
        bool found;
} Question;

static int ask_addresses(int route) {
        struct {
                struct nlmsghdr header;
                struct ifaddrmsg info;
        } request = {
                .header = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETADDR, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
                .info.ifa_family = AF_INET,
        };

        return send(route, &request, sizeof(request), MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* There may be messages about other interfaces: the socket listens to them. */
static void take_link(Question *q, const struct nlmsghdr *m) {
        const struct ifinfomsg *info = NLMSG_DATA(m);
        int length = (int) IFLA_PAYLOAD(m);

        for (const struct rtattr *a = IFLA_RTA(info); RTA_OK(a, length); a = RTA_NEXT(a, length))
                if (a->rta_type == IFLA_IFNAME && strnlen(RTA_DATA(a), RTA_PAYLOAD(a)) < RTA_PAYLOAD(a) && streq(RTA_DATA(a), q->name))
                        q->index = info->ifi_index;
}

/* The first one that is no alias, as SIOCGIFADDR has it. */
static void take_address(Question *q, const struct nlmsghdr *m) {
        const struct ifaddrmsg *info = NLMSG_DATA(m);
        int length = (int) IFA_PAYLOAD(m);

        if (q->found || info->ifa_family != AF_INET || info->ifa_index != (unsigned) q->index || (info->ifa_flags & IFA_F_SECONDARY) ||
            info->ifa_prefixlen > 32)
                return;
        for (const struct rtattr *a = IFA_RTA(info); RTA_OK(a, length); a = RTA_NEXT(a, length))
                if (a->rta_type == IFA_LOCAL && RTA_PAYLOAD(a) == sizeof(q->address)) {
                        memcpy(&q->address, RTA_DATA(a), sizeof(q->address));
                        q->netmask = info->ifa_prefixlen == 0 ? 0 : htonl(UINT32_MAX << (32 - info->ifa_prefixlen));
                        q->found = true;
                }
}

/* Returns whether that was the last one of an answer. */
static int take_message(Question *q, const struct nlmsghdr *m) {
        switch (m->nlmsg_type) {
        case NLMSG_DONE:
                return 1;
        case NLMSG_ERROR:
                if (m->nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr)))
                        return -EBADMSG;
                return ((const struct nlmsgerr *) NLMSG_DATA(m))->error;
        case RTM_NEWLINK:
                if (m->nlmsg_len >= NLMSG_LENGTH(sizeof(struct ifinfomsg)))
                        take_link(q, m);
                return 0;
        case RTM_NEWADDR:
                if (m->nlmsg_len >= NLMSG_LENGTH(sizeof(struct ifaddrmsg)))
                        take_address(q, m);
                return 0;
        default:
                return 0;
        }
}

/* Takes what there is: the kernel has answered when send() returns, and goes on with a list while it is read. */
static int take_answer(int route, Question *q) {
        _Alignas(struct nlmsghdr) char buffer[KIB(16)];
        int r = 0;

        for (;;) {
                struct sockaddr_nl from = {};
                struct iovec iov = { .iov_base = buffer, .iov_len = sizeof(buffer) };
                struct msghdr message = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };
                ssize_t length = recvmsg(route, &message, MSG_DONTWAIT);

                if (length < 0 && errno == EAGAIN)
                        return 0;
                if (length < 0 && (errno == EINTR || errno == ENOBUFS))
                        continue; /* what was lost are changes that nobody asked for */
                if (length < 0)
                        return -errno;
                if (from.nl_pid != 0)
                        continue; /* not from the kernel */
                for (const struct nlmsghdr *m = (const void *) buffer; length > 0 && NLMSG_OK(m, (size_t) length) && r == 0;
                     m = NLMSG_NEXT(m, length))
                        r = take_message(q, m);
                if (r != 0)
                        return MIN(r, 0);
        }
}

static int find_address(int route, Question *q) {
        int r;

        r = tap_ask_link(route, q->name, 0);
        if (r >= 0)
                r = take_answer(route, q);
        if (r < 0 || q->index == 0)
                return r;
        r = ask_addresses(route);
        return r < 0 ? r : take_answer(route, q);
}

int plugin_network_describe(const PluginTap *n, PluginLinkPacket *packet) {
        struct ifreq request = {};
        Question q = {};
        int r;

        if (ioctl(n->tap, TUNGETIFF, &request) < 0)
                return log_error_errno(errno, "What was handed over as 'interface' is no tap: %m");
        request.ifr_name[IFNAMSIZ - 1] = 0;
        q.name = request.ifr_name;
        r = n->route < 0 ? 0 : find_address(n->route, &q);
        if (r < 0)
                return log_error_errno(r, "Cannot ask for the address of the interface '%s': %m", q.name);
        packet->host_ip = q.address;
        packet->netmask = q.netmask;
        /* The name stays what it is: this one is asked of the descriptor. */
        if (ioctl(n->tap, SIOCGIFHWADDR, &request) < 0)
                return log_error_errno(errno, "Cannot ask for the hardware address of the interface '%s': %m", q.name);
        memcpy(packet->host_mac, request.ifr_hwaddr.sa_data, sizeof(packet->host_mac));
        return 0;
}
