/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The guest's cable: plugged in while the host's interface is up and has a carrier (virtio 1.2 §5.1.4.2, VIRTIO_NET_S_LINK_UP).
 *
 * The tap's descriptor does not tell. The kernel tells listeners of a netlink socket, which belongs to the network it was made in: in a unit it comes from vmm-open,
 * which is in the host's, and is kept with the tap. Hearing and asking take no rights, and changing anything takes some that we have not. Where nobody
 * has given us one (a tap that came alone), the link counts as up until the interface is deleted. */

#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "net.h"

#define LINK_UP 0x10000U /* IFF_LOWER_UP, which <net/if.h> and <linux/if.h> disagree about */
#define MESSAGES_MAX 64U /* before others have their turn */

/* The answer is a message like those that come by themselves. */
static int ask(Net *n) {
        return tap_ask_link(n->link_fd, n->interface, n->interface_index);
}

static bool is_ours(const Net *n, const struct ifinfomsg *info, int length) {
        for (const struct rtattr *a = IFLA_RTA(info); RTA_OK(a, length); a = RTA_NEXT(a, length))
                if (a->rta_type == IFLA_IFNAME && n->interface_index == 0)
                        return strnlen(RTA_DATA(a), RTA_PAYLOAD(a)) < RTA_PAYLOAD(a) && streq(RTA_DATA(a), n->interface);
        return info->ifi_index == n->interface_index;
}

static void set_link(Net *n, bool up) {
        if (n->link_down == !up)
                return;
        n->link_down = !up;
        log_info("The interface '%s' is %s.", n->interface, up ? "up: the guest has a link" : "down: the guest has no link");
        device_config_changed(n->device);
}

static void take_message(Net *n, const struct nlmsghdr *m) {
        const struct ifinfomsg *info = NLMSG_DATA(m);

        if ((m->nlmsg_type != RTM_NEWLINK && m->nlmsg_type != RTM_DELLINK) || m->nlmsg_len < NLMSG_LENGTH(sizeof(*info)) ||
                info->ifi_family != AF_UNSPEC || !is_ours(n, info, (int) IFLA_PAYLOAD(m)))
                return;
        if (m->nlmsg_type == RTM_DELLINK) {
                net_tap_gone(n);
                return;
        }
        n->interface_index = info->ifi_index;
        set_link(n, info->ifi_flags & LINK_UP);
}

/* Takes what there is; returns whether there may be more. */
static int take_messages(Net *n) {
        _Alignas(struct nlmsghdr) char buffer[KIB(16)];

        for (unsigned i = 0; i < MESSAGES_MAX; i++) {
                struct sockaddr_nl from = {};
                struct iovec iov = { .iov_base = buffer, .iov_len = sizeof(buffer) };
                struct msghdr message = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };
                ssize_t length = recvmsg(n->link_fd, &message, MSG_DONTWAIT);

                if (length < 0 && errno == ENOBUFS) {
                        /* More happened than we were quick to hear of. */
                        (void) ask(n);
                        continue;
                }
                if (length < 0)
                        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
                if (from.nl_pid != 0)
                        continue; /* not from the kernel */
                for (const struct nlmsghdr *m = (const void *) buffer; length > 0 && NLMSG_OK(m, (size_t) length); m = NLMSG_NEXT(m, length))
                        take_message(n, m);
        }
        return 0;
}

static int on_link(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        return take_messages(userdata);
}

/* By hand: the interface is where we are. */
static int listen_here(void) {
        struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
        _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int net_link_open(Net *n, bool here) {
        int r = 0;

        if (here)
                n->link_fd = listen_here();
        else if (device_take_passed(n->device, TAP_LINK_NAME, &n->link_fd, 1) == 0)
                return 0;
        if (n->link_fd < 0)
                return log_error_errno(n->link_fd, "Cannot listen to what becomes of the network interface: %m");
        r = ask(n);
        if (r >= 0)
                r = sd_event_add_io(device_event(n->device), &n->link_source, n->link_fd, EPOLLIN, on_link, n);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(n->link_source, true);
        return r < 0 ? log_error_errno(r, "Cannot watch the network interface: %m") : take_messages(n);
}

void net_link_close(Net *n) {
        n->link_source = sd_event_source_disable_unref(n->link_source);
        n->link_fd = safe_close(n->link_fd);
}
