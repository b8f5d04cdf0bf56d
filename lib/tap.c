/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tap.h"

#define TAP_FLAGS (IFF_TAP | IFF_NO_PI)

/* dev_valid_name() of the kernel; and what a shell or a unit file would mistake is no name of ours. */
bool tap_name_is_valid(const char *name) {
        size_t n = 0;

        for (; name[n]; n++)
                if (name[n] <= ' ' || name[n] >= 0x7f || name[n] == '/' || name[n] == ':' || name[n] == '%')
                        return false;
        return n > 0 && n < IFNAMSIZ && !streq(name, ".") && !streq(name, "..");
}

static struct ifreq request_for(const char *name) {
        struct ifreq request = {};

        memcpy(request.ifr_name, name, strlen(name));
        return request;
}

static int find_index(int s, const char *name, unsigned *ret, char **ret_message) {
        struct ifreq request = request_for(name);

        if (ioctl(s, SIOCGIFINDEX, &request) >= 0) {
                *ret = (unsigned) request.ifr_ifindex;
                return 0;
        }
        if (errno != ENODEV)
                return -errno;
        return set_message(ret_message, -ENODEV, "There is no network interface '%s'. It has to be there before the machine: a tap made "
                "by systemd-networkd (a .netdev file with Kind=tap; /usr/share/doc/vmmd/examples has a set), or by 'ip tuntap add dev %s mode tap'.",
                name, name);
}

/* ethtool's questions need no rights. */
static int ask_driver(int s, const char *name, bool *ret_tap, bool *ret_macvtap) {
        struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
        struct ifreq request = request_for(name);

        request.ifr_data = (void *) &info;
        if (ioctl(s, SIOCETHTOOL, &request) < 0)
                return errno == EOPNOTSUPP ? 0 : -errno;
        info.driver[sizeof(info.driver) - 1] = 0;
        info.bus_info[sizeof(info.bus_info) - 1] = 0;
        *ret_tap = streq(info.driver, "tun") && streq(info.bus_info, "tap");
        *ret_macvtap = streq(info.driver, "macvlan");
        return 0;
}

/* A tap has a carrier as long as somebody has it open; with several queues the kernel would let us in beside him. */
static bool has_carrier(int s, const char *name) {
        struct ethtool_value link = { .cmd = ETHTOOL_GLINK };
        struct ifreq request = request_for(name);

        request.ifr_data = (void *) &link;
        return ioctl(s, SIOCETHTOOL, &request) >= 0 && link.data != 0;
}

static int in_use(const char *name, char **ret_message) {
        return set_message(ret_message, -EBUSY, "The network interface '%s' is in use by another machine or program.", name);
}

/* How the queues of an interface are opened. */
typedef struct Opening {
        const char *name;
        unsigned index;
        bool macvtap, header;
        unsigned n;
} Opening;

static short flags_of(const Opening *o, bool multi_queue) {
        return (short) (TAP_FLAGS | (o->header ? IFF_VNET_HDR : 0) | (multi_queue ? IFF_MULTI_QUEUE : 0));
}

static int attach_queue(const Opening *o, int *ret, char **ret_message) {
        const char *name = o->name;
        unsigned n = o->n;
        struct ifreq request = request_for(name);
        _cleanup_close_ int fd = -EBADF;

        fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd < 0)
                return set_message(ret_message, -errno, "Cannot open /dev/net/tun: %s", strerrordesc_np(errno));
        request.ifr_flags = flags_of(o, n > 1);
        if (ioctl(fd, TUNSETIFF, &request) < 0) {
                /* One queue of an interface that could have several is fine, too. */
                if (errno == EINVAL && n == 1) {
                        request = request_for(name);
                        request.ifr_flags = flags_of(o, true);
                        errno = ioctl(fd, TUNSETIFF, &request) < 0 ? errno : 0;
                }
                if (errno == EBUSY)
                        return in_use(name, ret_message);
                if (errno == EINVAL)
                        return set_message(ret_message, -EINVAL, "The tap '%s' is not made for several queues: "
                                "MultiQueue=yes in its .netdev file, or 'ip tuntap add dev %s mode tap multi_queue'.", name, name);
                if (errno == E2BIG)
                        return set_message(ret_message, -E2BIG, "The tap '%s' has no room for %u queues.", name, n);
                if (errno != 0)
                        return set_message(ret_message, -errno, "Cannot open the tap '%s': %s", name, strerrordesc_np(errno));
        }
        *ret = TAKE_FD(fd);
        return 0;
}

/* A macvtap's queues are the openings of its character device. */
static int open_macvtap_queue(const Opening *o, bool first, int *ret, char **ret_message) {
        struct ifreq request = { .ifr_flags = flags_of(o, true) };
        const char *name = o->name;
        _cleanup_close_ int fd = -EBADF;
        char path[32];

        (void) snprintf(path, sizeof(path), "/dev/tap%u", o->index);
        fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd < 0) /* Its node is made a moment after the interface: as if that were not there yet. */
                return set_message(ret_message, errno == ENOENT ? -ENODEV : -errno, "Cannot open %s of the macvtap '%s': %s", path, name, strerrordesc_np(errno));
        /* It lets everybody in. Who was first keeps this lock for as long as his descriptor lives, wherever that goes. */
        if (first && flock(fd, LOCK_EX | LOCK_NB) < 0)
                return errno == EWOULDBLOCK ? in_use(name, ret_message) : -errno;
        if (ioctl(fd, TUNSETIFF, &request) < 0)
                return set_message(ret_message, -errno, "Cannot set the macvtap '%s' up: %s", name, strerrordesc_np(errno));
        *ret = TAKE_FD(fd);
        return 0;
}

static int open_queue(const Opening *o, unsigned i, int *ret, char **ret_message) {
        _cleanup_close_ int fd = -EBADF;
        int size = TAP_HEADER_SIZE, r;

        r = o->macvtap ? open_macvtap_queue(o, i == 0, &fd, ret_message) : attach_queue(o, &fd, ret_message);
        if (r < 0)
                return r;
        if ((o->header && ioctl(fd, TUNSETVNETHDRSZ, &size) < 0) || ioctl(fd, TUNSETOFFLOAD, 0UL) < 0)
                return set_message(ret_message, -errno, "Cannot set the interface '%s' up: %s", o->name, strerrordesc_np(errno));
        *ret = TAKE_FD(fd);
        return 0;
}

static int open_queues(Opening *o, int *ret_fds, char **ret_message) {
        _cleanup_close_ int s = -EBADF;
        int fds[TAP_QUEUES_MAX] = {}, r;
        bool tap = false;

        assert(o->n > 0 && o->n <= TAP_QUEUES_MAX);
        if (!tap_name_is_valid(o->name))
                return set_message(ret_message, -EINVAL, "'%s' cannot be the name of a network interface.", o->name);
        s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (s < 0)
                return -errno;
        r = find_index(s, o->name, &o->index, ret_message);
        if (r < 0)
                return r;
        r = ask_driver(s, o->name, &tap, &o->macvtap);
        if (r < 0)
                return r;
        if (!tap && !o->macvtap)
                return set_message(ret_message, -EOPNOTSUPP, "The network interface '%s' is neither a tap nor a macvtap.", o->name);
        if (tap && has_carrier(s, o->name))
                return in_use(o->name, ret_message);

        for (unsigned i = 0; i < o->n; i++) {
                r = open_queue(o, i, &fds[i], ret_message);
                if (r < 0) {
                        while (i-- > 0)
                                (void) safe_close(fds[i]);
                        return r;
                }
        }
        memcpy(ret_fds, fds, o->n * sizeof(int));
        return 0;
}

int tap_open(const char *name, unsigned n, int *ret_fds, char **ret_message) {
        return open_queues(&(Opening) { .name = name, .header = true, .n = n }, ret_fds, ret_message);
}

int tap_open_frames(const char *name, int *ret_fd, char **ret_message) {
        return open_queues(&(Opening) { .name = name, .n = 1 }, ret_fd, ret_message);
}

bool tap_is_macvtap(int fd) {
        /* Only a tap has this one. */
        return ioctl(fd, TUNGETFILTER, &(struct sock_fprog) {}) < 0 && errno == EINVAL;
}

int tap_ask_link(int link_fd, const char *name, int index) {
        struct {
                struct nlmsghdr header;
                struct ifinfomsg info;
                struct rtattr attribute;
                char name[IFNAMSIZ];
        } request = {
                .header = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
                .info.ifi_index = index,
                .attribute = { .rta_len = RTA_LENGTH(IFNAMSIZ), .rta_type = IFLA_IFNAME },
        };

        memcpy(request.name, name, strnlen(name, IFNAMSIZ - 1));
        if (index > 0)
                request.header.nlmsg_len = NLMSG_LENGTH(sizeof(request.info));
        return send(link_fd, &request, request.header.nlmsg_len, MSG_DONTWAIT) < 0 ? -errno : 0;
}
