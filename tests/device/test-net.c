/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The network device, by the real helper, on real taps in a network namespace of the test's own. The host's side is a packet socket on the tap, which
 * takes and gives packets larger than the MTU, too (PACKET_VNET_HDR). */

#include <setjmp.h>
#include <stdarg.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "front-end.h"

#define NUM 256
#define HEADER sizeof(struct virtio_net_hdr_v1)
#define MAC "52:54:00:12:34:56"
#define WITH_MAC "--mac=52:54:00:12:34:56" /* MAC, in one piece */
#define BIT(n) (UINT64_C(1) << (n))
#define RX 0
#define TX 1
#define CONTROL 2

static const uint8_t guest_mac[] = { 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 }, host_mac[] = { 0x02, 0, 0, 0, 0, 1 };

static const char *const plain[] = { "net", "--interface=plain", WITH_MAC, NULL };
static int host = -EBADF; /* the packet socket on the tap of a test */
static pid_t current;     /* its helper, which holds the tap */

/* The host */

static int interface_ioctl(unsigned long request, struct ifreq *r) {
        _cleanup_close_ int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        return ioctl(s, request, r);
}

static struct ifreq request_for(const char *name) {
        struct ifreq r = {};

        (void) snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
        return r;
}

static void bring_up(const char *name, bool up) {
        struct ifreq r = request_for(name);
        char path[80];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
                assert_int_equal(write(fd, "1", 1), 1); /* nothing is sent but what a test sends */
                (void) close(fd);
        }
        r.ifr_flags = up ? IFF_UP : 0;
        assert_int_equal(interface_ioctl(SIOCSIFFLAGS, &r), 0);
}

static void make_tap(const char *name, int flags) {
        _cleanup_close_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        struct ifreq r = request_for(name);

        assert_return_code(fd, errno);
        r.ifr_flags = (short) (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags);
        assert_int_equal(ioctl(fd, TUNSETIFF, &r), 0);
        assert_int_equal(ioctl(fd, TUNSETPERSIST, 1UL), 0);
        bring_up(name, true);
}

static void open_host(const char *name, bool with_header) {
        struct ifreq r = request_for(name);
        struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
        int size = (int) MIB(16);

        host = safe_close(host);
        host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
        assert_return_code(host, errno);
        assert_int_equal(interface_ioctl(SIOCGIFINDEX, &r), 0);
        address.sll_ifindex = r.ifr_ifindex;
        assert_int_equal(bind(host, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(setsockopt(host, SOL_PACKET, PACKET_VNET_HDR, &(int) { with_header }, sizeof(int)), 0);
        (void) setsockopt(host, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
        (void) setsockopt(host, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
        (void) setsockopt(host, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &(int) { 1 }, sizeof(int));
}

/* The next packet that came in through the tap; 0 where none comes in time. */
static size_t host_receives(uint8_t *buffer, size_t size, int timeout_ms) {
        struct pollfd p = { .fd = host, .events = POLLIN };
        ssize_t n;

        if (poll(&p, 1, timeout_ms) != 1)
                return 0;
        n = recv(host, buffer, size, 0);
        assert_true(n > 0);
        return (size_t) n;
}

/* An Ethernet frame whose bytes all depend on `seed`. */
static size_t make_packet(uint8_t *p, size_t length, unsigned seed) {
        memcpy(p, guest_mac, 6);
        memcpy(p + 6, host_mac, 6);
        p[12] = 0x88;
        p[13] = 0xb5; /* an EtherType for experiments */
        for (size_t i = 14; i < length; i++)
                p[i] = (uint8_t) (seed * 7 + i + i / 251);
        return length;
}

static void host_sends(size_t length, unsigned seed) {
        uint8_t packet[2048];

        assert_int_equal(send(host, packet, make_packet(packet, length, seed), 0), length);
}

/* A tap has a carrier as long as somebody has it open; the kernel takes notice a moment later, lets packets through, and says so. */
static int watch_links(void) {
        struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
        int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

        assert_return_code(fd, errno);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        return fd;
}

static void wait_for_link(int fd, const char *name) {
        struct ifreq r = request_for(name);
        char buffer[KIB(16)];

        assert_int_equal(interface_ioctl(SIOCGIFFLAGS, &r), 0);
        if (r.ifr_flags & IFF_RUNNING) {
                /* Nobody has noticed that it had none in between. The answer to this waits for whoever is at it. */
                struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
                r.ifr_data = (void *) &info;
                assert_int_equal(interface_ioctl(SIOCETHTOOL, &r), 0);
                return;
        }
        assert_int_equal(interface_ioctl(SIOCGIFINDEX, &r), 0);
        for (;;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t n;

                assert_int_equal(poll(&p, 1, 60000), 1);
                n = recv(fd, buffer, sizeof(buffer), 0);
                assert_true(n > 0);
                for (struct nlmsghdr *m = (void *) buffer; NLMSG_OK(m, n); m = NLMSG_NEXT(m, n)) {
                        struct ifinfomsg *info = NLMSG_DATA(m);
                        if (m->nlmsg_type == RTM_NEWLINK && info->ifi_index == r.ifr_ifindex && info->ifi_flags & IFF_RUNNING)
                                return;
                }
        }
}

static void delete_interface(const char *name) {
        struct ifreq r = request_for(name);
        struct {
                struct nlmsghdr header;
                struct ifinfomsg info;
        } message = {
                .header = { .nlmsg_len = sizeof(message), .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST },
        };
        _cleanup_close_ int fd = watch_links();

        assert_int_equal(interface_ioctl(SIOCGIFINDEX, &r), 0);
        message.info.ifi_index = r.ifr_ifindex;
        assert_int_equal(send(fd, &message, sizeof(message), 0), sizeof(message));
}

/* The guest */

/* The helper, when its tap works. */
static void spawn(FrontEnd *f, const char *const *arguments) {
        _cleanup_close_ int links = watch_links();

        fe_spawn(f, arguments);
        current = f->pid;
        (void) fe_get_u64(f, VHOST_USER_GET_FEATURES); /* it answers when it has opened the tap */
        wait_for_link(links, startswith(arguments[1], "--interface="));
}

static void start(FrontEnd *f, const char *const *arguments, unsigned n_queues, uint64_t without) {
        spawn(f, arguments);
        fe_negotiate(f, without);
        fe_set_mem_table(f);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(f, i, NUM);
}

static uint8_t *slot(FrontEnd *f, unsigned queue, unsigned i, size_t size) {
        return f->ram + FE_BUFFERS + queue * MIB(1) + i * size;
}

static uint64_t address_of(FrontEnd *f, const uint8_t *p) {
        return FE_ADDRESS((uint64_t) (p - f->ram));
}

static void offer_buffers(FrontEnd *f, unsigned queue, unsigned first, unsigned n, uint32_t size) {
        for (unsigned i = first; i < first + n; i++) {
                memset(slot(f, queue, i, size), 0xee, size);
                fe_desc(f, queue, (uint16_t) i, address_of(f, slot(f, queue, i, size)), size, VRING_DESC_F_WRITE, 0);
                fe_offer(f, queue, (uint16_t) i);
        }
        fe_kick(f, queue);
}

/* Puts a packet, as it is behind its header, into descriptors 2i and 2i + 1 of a transmit queue. */
static void offer_packet(FrontEnd *f, unsigned queue, unsigned i, const struct virtio_net_hdr_v1 *header, const uint8_t *packet,
        uint32_t length) {
        uint8_t *h = f->ram + MIB(2) + i * 64, *data = slot(f, queue, i, length > 2048 ? KIB(68) : 2048);
        uint16_t d = (uint16_t) (2 * i);

        memcpy(h, header, HEADER);
        memcpy(data, packet, length);
        fe_desc(f, queue, d, address_of(f, h), HEADER, length > 0 ? VRING_DESC_F_NEXT : 0, (uint16_t) (d + 1));
        fe_desc(f, queue, (uint16_t) (d + 1), address_of(f, data), length, 0, 0);
        fe_offer(f, queue, d);
}

static void guest_sends(FrontEnd *f, unsigned queue, size_t length, unsigned seed) {
        uint8_t packet[2048];

        offer_packet(f, queue, 0, &(struct virtio_net_hdr_v1) {}, packet, (uint32_t) make_packet(packet, length, seed));
        fe_kick(f, queue);
        assert_int_equal(fe_wait(f, queue).id, 0);
}

/* Takes the next packet out of buffers of `size`; checks the header, returns its length without it. */
static size_t guest_receives(FrontEnd *f, unsigned queue, uint32_t size, uint8_t *packet, struct virtio_net_hdr_v1 *ret_header,
        unsigned *ret_buffers) {
        struct virtio_net_hdr_v1 header;
        size_t length = 0;
        unsigned n = 0;

        do {
                struct vring_used_elem e = fe_wait(f, queue);
                const uint8_t *data = slot(f, queue, e.id, size);
                size_t skip = n == 0 ? HEADER : 0;

                assert_true(e.len > skip && e.len <= size);
                if (n++ == 0)
                        memcpy(&header, data, HEADER);
                memcpy(packet + length, data + skip, e.len - skip);
                length += e.len - skip;
                for (size_t i = e.len; i < size; i++)
                        assert_int_equal(data[i], 0xee); /* nothing is written that is not said to be */
        } while (n < header.num_buffers);
        if (ret_header)
                *ret_header = header;
        if (ret_buffers)
                *ret_buffers = n;
        return length;
}

static void expect_received(FrontEnd *f, unsigned queue, uint32_t size, size_t length, unsigned seed) {
        uint8_t packet[KIB(70)], expected[2048];

        assert_int_equal(guest_receives(f, queue, size, packet, NULL, NULL), length);
        (void) make_packet(expected, length, seed);
        assert_memory_equal(packet, expected, length);
}

static void expect_sent(size_t length, unsigned seed) {
        uint8_t packet[4096], expected[2048];

        assert_int_equal(host_receives(packet, sizeof(packet), 60000), length);
        (void) make_packet(expected, length, seed);
        assert_memory_equal(packet, expected, length);
}

/* The answer to a command on the control queue. */
static uint8_t command_of(FrontEnd *f, unsigned queue, uint8_t class, uint8_t command, const void *data, uint32_t size) {
        uint8_t *p = f->ram + MIB(3);

        p[0] = class;
        p[1] = command;
        if (size > 0)
                memcpy(p + 2, data, size);
        p[KIB(32)] = 0xee;
        fe_desc(f, queue, 0, address_of(f, p), 2 + size, VRING_DESC_F_NEXT, 1);
        fe_desc(f, queue, 1, address_of(f, p + KIB(32)), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, queue, 0);
        fe_kick(f, queue);
        assert_int_equal(fe_wait(f, queue).len, 1);
        return p[KIB(32)];
}

static uint8_t command(FrontEnd *f, uint8_t class, uint8_t number, const void *data, uint32_t size) {
        return command_of(f, CONTROL, class, number, data, size);
}

static struct virtio_net_config config_of(FrontEnd *f) {
        VhostUserMsg msg = { .payload.config = { .offset = 0, .size = 12 } };
        struct virtio_net_config config = {};

        fe_send(f, VHOST_USER_GET_CONFIG, &msg.payload, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + 12, NULL, 0);
        assert_int_equal(vhost_user_recv(f->fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.payload.config.size, 12);
        memcpy(&config, msg.payload.config.region, 12);
        return config;
}

/* Waits until the device runs: it has to, to answer. For the host, the tap can do what the driver chose from then on. */
static void settle(FrontEnd *f, unsigned control) {
        assert_int_equal(command_of(f, control, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, config_of(f).mac, 6), VIRTIO_NET_OK);
}

/* Refusals of the program */

static void refuses_to_start(const char *a, const char *b, const char *says) {
        const char *arguments[] = { "net", a, b, NULL };
        char text[4096];

        assert_int_equal(fe_spawn_failing(arguments, text, sizeof(text)), 1);
        if (!strstr(text, says))
                fail_msg("'%s' is not in: %s", says, text);
}

static void refuses_options_that_make_no_sense(void **state) {
        refuses_to_start(NULL, NULL, "needs --interface=");
        refuses_to_start("--interface=missing", NULL, "There is no network interface 'missing'");
        refuses_to_start("--interface=missing", NULL, "ip tuntap add dev missing mode tap");
        refuses_to_start("--interface=lo", NULL, "'lo' is neither a tap nor a macvtap");
        refuses_to_start("--interface=../../x", NULL, "--interface=");
        refuses_to_start("--interface=sixteenletters00", NULL, "--interface=");
        refuses_to_start("--interface=plain", "--queue-pairs=2", "'plain' is not made for several queues");
        refuses_to_start("--interface=plain", "--queue-pairs=17", "--queue-pairs=17");
        refuses_to_start("--interface=plain", "--mtu=67", "--mtu=67");
        refuses_to_start("--interface=plain", "--mac=01:00:5e:00:00:01", "--mac=01");
        refuses_to_start("--interface=plain", "--mac=52:54:00:12:34", "--mac=52");
        refuses_to_start("--interface=plain", "--mac=52:54:00:12:34:56:78", "--mac=52");
        refuses_to_start("--interface=plain", "--mac=00:00:00:00:00:00", "--mac=00");
        refuses_to_start("--interface=plain", "--receive-limit=1", "--receive-limit=1");
}

static void refuses_an_interface_that_is_in_use(void **state) {
        const char *const many[] = { "net", "--interface=many", "--queue-pairs=2", NULL };
        FrontEnd f;

        start(&f, plain, 3, 0);
        refuses_to_start("--interface=plain", NULL, "'plain' is in use by another");
        fe_end(&f);
        start(&f, many, 3, 0);
        refuses_to_start("--interface=many", "--queue-pairs=2", "'many' is in use by another");
        fe_end(&f);
}

/* Refusals of what a driver does */

static void a_receive_buffer_without_room_for_a_header_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, 1, HEADER - 1);
        fe_expect_broken(&f, RX);
        fe_end(&f);
}

static void a_receive_buffer_that_is_not_for_writing_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        fe_desc(&f, RX, 0, FE_ADDRESS(FE_BUFFERS), 2048, 0, 0);
        fe_offer(&f, RX, 0);
        fe_kick(&f, RX);
        fe_expect_broken(&f, RX);
        fe_end(&f);
}

static void a_receive_buffer_outside_memory_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        fe_desc(&f, RX, 0, FE_ADDRESS(FE_RAM_SIZE - 100), 2048, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, RX, 0);
        fe_kick(&f, RX);
        fe_expect_broken(&f, RX);
        fe_end(&f);
}

static void a_packet_without_a_header_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        fe_desc(&f, TX, 0, FE_ADDRESS(FE_BUFFERS), HEADER - 1, 0, 0);
        fe_offer(&f, TX, 0);
        fe_kick(&f, TX);
        fe_expect_broken(&f, TX);
        fe_end(&f);
}

static void a_command_without_room_for_the_answer_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        fe_desc(&f, CONTROL, 0, FE_ADDRESS(FE_BUFFERS), 64, 0, 0);
        fe_offer(&f, CONTROL, 0);
        fe_kick(&f, CONTROL);
        fe_expect_broken(&f, CONTROL);
        fe_end(&f);
}

static void a_loop_in_the_transmit_queue_breaks_the_device(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        fe_desc(&f, TX, 0, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_NEXT, 1);
        fe_desc(&f, TX, 1, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_NEXT, 0);
        fe_offer(&f, TX, 0);
        fe_kick(&f, TX);
        fe_expect_broken(&f, TX);
        fe_end(&f);
}

/* A header that makes no sense, or claims what was not negotiated, costs the packet and nothing else. */
static void drops_packets_whose_header_makes_no_sense(void **state) {
        static const struct virtio_net_hdr_v1 headers[] = {
                { .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 1448 },                                        /* without NEEDS_CSUM */
                { .flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .csum_start = 34, .csum_offset = 16 },            /* pieces of no size */
                { .flags = 1, .gso_type = 2, .gso_size = 1448, .csum_start = 34, .csum_offset = 16 },                 /* no such type */
                { .flags = 1, .gso_type = 0x7f, .gso_size = 1448, .csum_start = 34, .csum_offset = 16 },
                { .flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_UDP | VIRTIO_NET_HDR_GSO_ECN, .gso_size = 1448, .csum_start = 34, .csum_offset = 6 },
                { .flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_ECN, .gso_size = 1448, .csum_start = 34, .csum_offset = 16 },
                { .flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff },                                          /* beyond the end */
                { .flags = 1, .csum_start = 59, .csum_offset = 0 },
                { .flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 0xffff, .hdr_len = 0xffff, .csum_start = 34, .csum_offset = 16 },
        };
        uint8_t packet[2048];
        FrontEnd f;

        start(&f, plain, 3, 0);
        for (unsigned i = 0; i < ELEMENTSOF(headers); i++)
                offer_packet(&f, TX, i, &headers[i], packet, (uint32_t) make_packet(packet, 60, i));
        fe_kick(&f, TX);
        for (unsigned i = 0; i < ELEMENTSOF(headers); i++)
                assert_int_equal(fe_wait(&f, TX).id, 2 * i);
        guest_sends(&f, TX, 61, 99);
        expect_sent(61, 99);
        fe_end(&f);
}

static void drops_offloads_that_were_not_negotiated(void **state) {
        struct virtio_net_hdr_v1 tso = { .flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 20, .csum_start = 34, .csum_offset = 16 },
                                 checksum = { .flags = 1, .csum_start = 34, .csum_offset = 16 };
        uint8_t packet[2048];
        FrontEnd f;

        start(&f, plain, 3, BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4));
        offer_packet(&f, TX, 0, &tso, packet, (uint32_t) make_packet(packet, 200, 1));
        offer_packet(&f, TX, 1, &checksum, packet, (uint32_t) make_packet(packet, 200, 1));
        fe_kick(&f, TX);
        (void) fe_wait(&f, TX);
        (void) fe_wait(&f, TX);
        guest_sends(&f, TX, 61, 99);
        expect_sent(61, 99);
        fe_end(&f);
}

static void drops_packets_that_are_too_short_or_too_long(void **state) {
        struct virtio_net_hdr_v1 header = {};
        uint8_t packet[2048];
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_packet(&f, TX, 0, &header, packet, 0);
        offer_packet(&f, TX, 1, &header, packet, 13);
        fe_kick(&f, TX);
        assert_int_equal(fe_wait(&f, TX).id, 0);
        assert_int_equal(fe_wait(&f, TX).id, 2);

        fe_desc(&f, TX, 0, FE_ADDRESS(FE_BUFFERS), MIB(8), 0, 0);
        fe_offer(&f, TX, 0);
        fe_desc(&f, TX, 1, FE_ADDRESS(FE_BUFFERS), HEADER + 65555, 0, 0);
        fe_offer(&f, TX, 1);
        fe_kick(&f, TX);
        (void) fe_wait(&f, TX);
        (void) fe_wait(&f, TX);
        guest_sends(&f, TX, 61, 99);
        expect_sent(61, 99);
        fe_end(&f);
}

/* What works */

static void sends_packets_of_all_sizes(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        for (unsigned length = 14; length <= 1514; length += 50) {
                guest_sends(&f, TX, length, length);
                expect_sent(length, length);
        }
        fe_end(&f);
}

static void sends_what_lies_in_many_pieces(void **state) {
        uint8_t packet[64];
        FrontEnd f;

        start(&f, plain, 3, 0);
        memset(f.ram + FE_BUFFERS, 0, HEADER);
        memcpy(f.ram + FE_BUFFERS + HEADER, packet, make_packet(packet, 64, 5));
        for (unsigned i = 0; i < HEADER + 64; i++)
                fe_desc(&f, TX, (uint16_t) i, FE_ADDRESS(FE_BUFFERS + i), 1, i + 1U < HEADER + 64 ? VRING_DESC_F_NEXT : 0, (uint16_t) (i + 1));
        fe_offer(&f, TX, 0);
        fe_kick(&f, TX);
        (void) fe_wait(&f, TX);
        expect_sent(64, 5);
        fe_end(&f);
}

static void receives_packets_of_all_sizes(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, 64, 2048);
        for (unsigned length = 60, i = 0; length <= 1514; length += 50, i++) {
                host_sends(length, length);
                expect_received(&f, RX, 2048, length, length);
        }
        fe_end(&f);
}

static void receives_in_order_what_fills_the_queue_many_times(void **state) {
        unsigned sent = 0, received = 0;
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, NUM, 2048);
        while (received < 5000) {
                for (; sent < 5000 && sent < received + NUM / 2; sent++)
                        host_sends(60 + sent % 1400, sent);
                expect_received(&f, RX, 2048, 60 + received % 1400, received);
                offer_buffers(&f, RX, received % NUM, 1, 2048);
                received++;
        }
        fe_end(&f);
}

static void merges_small_buffers(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, NUM, 200);
        for (unsigned i = 0; i < 20; i++) {
                host_sends(1514 - i, i);
                expect_received(&f, RX, 200, 1514 - i, i);
        }
        fe_end(&f);
}

static void a_packet_that_does_not_fit_is_dropped_where_buffers_are_not_merged(void **state) {
        FrontEnd f;

        start(&f, plain, 3, BIT(VIRTIO_NET_F_MRG_RXBUF));
        offer_buffers(&f, RX, 0, 8, 512);
        host_sends(1000, 1);
        host_sends(512 - HEADER, 2);
        host_sends(513 - HEADER, 3);
        host_sends(512 - HEADER, 4);
        expect_received(&f, RX, 512, 512 - HEADER, 2);
        expect_received(&f, RX, 512, 512 - HEADER, 4);
        fe_end(&f);
}

/* Without GUEST_CSUM the driver must not be shown any flag. */
static void fills_the_header_in(void **state) {
        struct virtio_net_hdr_v1 header;
        uint8_t packet[2048];
        unsigned n;
        FrontEnd f;

        start(&f, plain, 3, BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_GUEST_CSUM));
        offer_buffers(&f, RX, 0, 8, 2048);
        host_sends(600, 1);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, &header, &n), 600);
        assert_int_equal(header.num_buffers, 1);
        assert_int_equal(header.flags, 0);
        assert_int_equal(header.gso_type, VIRTIO_NET_HDR_GSO_NONE);
        fe_end(&f);
}

static void speaks_the_legacy_header(void **state) {
        uint8_t packet[2048], expected[2048];
        struct vring_used_elem e;
        FrontEnd f;

        start(&f, plain, 3, BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_F_VERSION_1));
        offer_buffers(&f, RX, 0, 8, 2048);
        host_sends(600, 1);
        e = fe_wait(&f, RX);
        assert_int_equal(e.len, 610);
        (void) make_packet(expected, 600, 1);
        assert_memory_equal(slot(&f, RX, 0, 2048) + 10, expected, 600);

        memset(f.ram + FE_BUFFERS, 0, 10);
        memcpy(f.ram + FE_BUFFERS + 10, packet, make_packet(packet, 64, 5));
        fe_desc(&f, TX, 0, FE_ADDRESS(FE_BUFFERS), 74, 0, 0);
        fe_offer(&f, TX, 0);
        fe_kick(&f, TX);
        (void) fe_wait(&f, TX);
        expect_sent(64, 5);
        fe_end(&f);
}

/* A TCP segment of 32000 bytes with what the kernel needs to cut it; returns its length. */
static size_t make_segment(uint8_t *p, struct virtio_net_hdr_v1 *header, size_t length) {
        struct iphdr ip = {
                .version = 4, .ihl = 5, .tot_len = htons((uint16_t) (length - 14)), .ttl = 64, .protocol = IPPROTO_TCP,
                .saddr = htonl(0x0a000001), .daddr = htonl(0x0a000002),
        };
        struct tcphdr tcp = { .source = htons(1), .dest = htons(2), .doff = 5, .ack = 1, .window = htons(1000) };
        uint32_t sum = 0;

        (void) make_packet(p, length, 3);
        p[12] = 0x08;
        p[13] = 0x00;
        for (size_t i = 0; i < sizeof(ip); i += 2)
                sum += load_le16((const uint8_t *) &ip + i);
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        ip.check = (uint16_t) ~sum;
        /* The checksum of the pseudo header, as the offload wants it. */
        sum = (ip.saddr & 0xffff) + (ip.saddr >> 16) + (ip.daddr & 0xffff) + (ip.daddr >> 16) + htons(IPPROTO_TCP) +
                htons((uint16_t) (length - 34));
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        tcp.check = (uint16_t) sum;
        memcpy(p + 14, &ip, sizeof(ip));
        memcpy(p + 34, &tcp, sizeof(tcp));
        *header = (struct virtio_net_hdr_v1) {
                .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .hdr_len = 54, .gso_size = 1448,
                .csum_start = 34, .csum_offset = 16,
        };
        return length;
}

static void sends_large_segments(void **state) {
        uint8_t packet[KIB(66)], seen[KIB(68)];
        struct virtio_net_hdr_v1 header;
        FrontEnd f;

        open_host("plain", true);
        start(&f, plain, 3, 0);
        assert_true(f.features & BIT(VIRTIO_NET_F_HOST_TSO4));
        offer_packet(&f, TX, 0, &header, packet, (uint32_t) make_segment(packet, &header, 65014));
        offer_packet(&f, TX, 0, &header, packet, (uint32_t) make_segment(packet, &header, 65014));
        fe_kick(&f, TX);
        (void) fe_wait(&f, TX);
        assert_int_equal(host_receives(seen, sizeof(seen), 60000), 10 + 65014);
        assert_int_equal(((struct virtio_net_hdr *) (void *) seen)->gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
        assert_memory_equal(seen + 10, packet, 65014);
        fe_end(&f);
}

static void host_sends_segment(const uint8_t *packet, size_t length, const struct virtio_net_hdr_v1 *header) {
        struct iovec iov[] = { { (void *) header, 10 }, { (void *) packet, length } };

        assert_int_equal(writev(host, iov, 2), (ssize_t) (10 + length));
}

static void receives_large_segments_over_many_buffers(void **state) {
        uint8_t packet[KIB(66)], seen[KIB(70)];
        struct virtio_net_hdr_v1 header, is;
        unsigned n;
        FrontEnd f;

        open_host("plain", true);
        start(&f, plain, 3, 0);
        settle(&f, CONTROL);
        offer_buffers(&f, RX, 0, NUM, 1536);
        /* The first of them is read before anybody knows that large ones come. */
        for (unsigned i = 0; i < 4; i++) {
                size_t length = make_segment(packet, &header, 65014 - i * 1000);

                host_sends_segment(packet, length, &header);
                assert_int_equal(guest_receives(&f, RX, 1536, seen, &is, &n), length);
                assert_int_equal(n, (length + HEADER + 1535) / 1536);
                assert_int_equal(is.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
                assert_int_equal(is.gso_size, 1448);
                assert_memory_equal(seen, packet, length);
        }
        fe_end(&f);
}

/* A driver without segmentation is given pieces, with checksums. */
static void has_the_host_cut_segments_for_a_driver_that_cannot(void **state) {
        uint8_t packet[KIB(66)], seen[KIB(70)];
        struct virtio_net_hdr_v1 header, is;
        size_t sum = 0;
        FrontEnd f;

        open_host("plain", true);
        start(&f, plain, 3, BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6));
        settle(&f, CONTROL);
        offer_buffers(&f, RX, 0, NUM, 2048);
        host_sends_segment(packet, make_segment(packet, &header, 54 + 14480), &header);
        for (unsigned i = 0; i < 10; i++) {
                assert_int_equal(guest_receives(&f, RX, 2048, seen, &is, NULL), 54 + 1448);
                assert_int_equal(is.flags, 0);
                assert_int_equal(is.gso_type, VIRTIO_NET_HDR_GSO_NONE);
                assert_memory_equal(seen + 54, packet + 54 + sum, 1448);
                sum += 1448;
        }
        fe_end(&f);
}

/* What waited in the tap for one driver is no packet for the next, who cannot take it. */
static void drops_segments_that_were_meant_for_an_earlier_driver(void **state) {
        const uint64_t offloads = BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6);
        struct virtio_net_hdr_v1 header;
        struct vring_used_elem e;
        uint8_t packet[KIB(66)];
        FrontEnd f;

        open_host("plain", true);
        start(&f, plain, 3, 0);
        settle(&f, CONTROL);
        host_sends_segment(packet, make_segment(packet, &header, 54 + 14480), &header);
        (void) make_segment(packet, &header, 100);
        header = (struct virtio_net_hdr_v1) { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
        host_sends_segment(packet, 100, &header);
        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
        fe_set_u64(&f, VHOST_USER_SET_FEATURES, f.features & ~offloads);
        for (unsigned i = 0; i < 3; i++)
                fe_start_queue(&f, i, NUM);
        offer_buffers(&f, RX, 0, NUM, 2048);
        settle(&f, CONTROL);
        open_host("plain", false);
        host_sends(100, 9);
        /* Not only the packet is in this buffer: what was dropped had been read into it. */
        e = fe_wait(&f, RX);
        assert_int_equal(e.len, HEADER + 100);
        (void) make_packet(packet, 100, 9);
        assert_memory_equal(slot(&f, RX, e.id, 2048) + HEADER, packet, 100);
        fe_end(&f);
}

static uint64_t cpu_usec(pid_t pid) {
        clockid_t clock;
        struct timespec t;

        assert_int_equal(clock_getcpuclockid(pid, &clock), 0);
        assert_int_equal(clock_gettime(clock, &t), 0);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / NSEC_PER_USEC;
}

static void waits_for_buffers_without_spinning(void **state) {
        uint64_t before;
        FrontEnd f;

        start(&f, plain, 3, 0);
        settle(&f, CONTROL);
        for (unsigned i = 0; i < 10; i++)
                host_sends(100 + i, i);
        settle(&f, CONTROL);
        before = cpu_usec(f.pid);
        for (unsigned i = 10; i < 200; i++)
                host_sends(100 + i, i);
        assert_int_equal(fe_eventfd(f.queues[RX].call, 300), 0);
        assert_true(cpu_usec(f.pid) - before < 50 * USEC_PER_MSEC);
        offer_buffers(&f, RX, 0, NUM, 2048);
        for (unsigned i = 0; i < 200; i++)
                expect_received(&f, RX, 2048, 100 + i, i);
        fe_end(&f);
}

/* Fewer buffers than a packet needs: the rest follows when there are more. */
static void a_packet_waits_for_the_buffers_it_lacks(void **state) {
        uint8_t packet[KIB(66)], seen[KIB(70)];
        struct virtio_net_hdr_v1 header;
        struct vring_used_elem e;
        FrontEnd f;

        open_host("plain", true);
        start(&f, plain, 3, 0);
        settle(&f, CONTROL);
        offer_buffers(&f, RX, 0, 3, 1536);
        host_sends_segment(packet, make_segment(packet, &header, 60014), &header);
        assert_false(fe_used(&f, RX, 100, &e));
        offer_buffers(&f, RX, 3, 10, 1536);
        assert_false(fe_used(&f, RX, 100, &e));
        offer_buffers(&f, RX, 13, 40, 1536);
        assert_int_equal(guest_receives(&f, RX, 1536, seen, NULL, NULL), 60014);
        assert_memory_equal(seen, packet, 60014);
        fe_end(&f);
}

static void drops_a_packet_that_the_whole_queue_cannot_hold(void **state) {
        uint8_t packet[KIB(66)], seen[KIB(70)];
        struct virtio_net_hdr_v1 header;
        FrontEnd f;

        open_host("plain", true);
        spawn(&f, plain);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, RX, 16);
        fe_start_queue(&f, TX, 16);
        fe_start_queue(&f, CONTROL, 16);
        settle(&f, CONTROL);
        offer_buffers(&f, RX, 0, 16, 1536);
        host_sends_segment(packet, make_segment(packet, &header, 60014), &header);
        host_sends_segment(packet, make_segment(packet, &header, 14 * 1536 - HEADER), &header);
        assert_int_equal(guest_receives(&f, RX, 1536, seen, NULL, NULL), 14 * 1536 - HEADER);
        fe_end(&f);
}

/* Buffers that were taken and not used are the guest's again when the queue is stopped. */
static void a_stopped_queue_keeps_no_buffer(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, 8, 2048);
        host_sends(100, 1);
        expect_received(&f, RX, 2048, 100, 1);
        assert_int_equal(fe_stop_queue(&f, RX), 1);
        fe_send_queue(&f, RX, 1);
        host_sends(200, 2);
        expect_received(&f, RX, 2048, 200, 2);
        fe_end(&f);
}

/* One queue that is never empty does not keep the other waiting. */
static void a_flood_from_the_guest_lets_packets_to_it_through(void **state) {
        uint8_t packet[64];
        struct vring_used_elem e;
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, NUM, 2048);
        (void) make_packet(packet, 60, 1);
        for (unsigned i = 0; i < NUM / 2; i++)
                offer_packet(&f, TX, i, &(struct virtio_net_hdr_v1) {}, packet, 60);
        fe_kick(&f, TX);
        for (unsigned received = 0, i = 0; received < 20; i++) {
                if (i % 50 == 0)
                        host_sends(100, i / 50);
                e = fe_wait(&f, TX);
                fe_offer(&f, TX, (uint16_t) e.id);
                fe_kick(&f, TX);
                if (fe_used(&f, RX, 0, &e))
                        received++;
                assert_true(i < 100000);
        }
        fe_end(&f);
}

/* The control queue */

static void answers_commands_that_make_no_sense_with_an_error(void **state) {
        uint8_t data[1024] = {};
        FrontEnd f;

        start(&f, plain, 3, 0);
        assert_int_equal(command(&f, 99, 0, data, 1), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, 6, data, 1), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, data, 0), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, data, 2), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, data, 5), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, (uint8_t[]) { 1, 0, 0, 0, 0, 1 }, 6), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, (uint8_t[]) { 1, 0 }, 2), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, (uint8_t[]) { 2, 0 }, 2), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, (uint64_t[]) { UINT64_MAX }, 8), VIRTIO_NET_ERR);
        /* tables: more entries than bytes, a number that overflows, one table only */
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, (uint32_t[]) { 2, 0, 0 }, 12), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, (uint32_t[]) { UINT32_MAX, 0 }, 8), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, (uint32_t[]) { 0x2aaaaaab, 0 }, 8), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, data, 4), VIRTIO_NET_ERR);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, data, 9), VIRTIO_NET_ERR);
        assert_memory_equal(config_of(&f).mac, guest_mac, 6);
        fe_end(&f);
}

static void filters_what_the_driver_does_not_want(void **state) {
        static const uint8_t other[] = { 0x52, 0x54, 0, 0, 0, 9 }, group[] = { 0x01, 0x00, 0x5e, 0, 0, 5 };
        uint8_t packet[64], tables[4 + 4 + 6];
        FrontEnd f;

        start(&f, plain, 3, 0);
        offer_buffers(&f, RX, 0, 64, 2048);

        /* Before it says anything, everything passes. */
        (void) make_packet(packet, 60, 1);
        memcpy(packet, other, 6);
        assert_int_equal(send(host, packet, 60, 0), 60);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, NULL, NULL), 60);

        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, (uint8_t[]) { 0 }, 1), VIRTIO_NET_OK);
        assert_int_equal(send(host, packet, 60, 0), 60);
        memcpy(packet, group, 6);
        assert_int_equal(send(host, packet, 60, 0), 60);
        host_sends(70, 2);
        expect_received(&f, RX, 2048, 70, 2);

        /* One group, and no station beside its own. */
        memset(tables, 0, sizeof(tables));
        store_le32(tables + 4, 1);
        memcpy(tables + 8, group, 6);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, tables, sizeof(tables)), VIRTIO_NET_OK);
        assert_int_equal(send(host, packet, 60, 0), 60);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, NULL, NULL), 60);
        assert_memory_equal(packet, group, 6);
        memset(packet, 0xff, 6);
        assert_int_equal(send(host, packet, 60, 0), 60);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, NULL, NULL), 60);

        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, (uint8_t[]) { 1 }, 1), VIRTIO_NET_OK);
        memcpy(packet, other, 6);
        assert_int_equal(send(host, packet, 60, 0), 60);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, NULL, NULL), 60);

        /* A reset takes the wishes back. */
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, (uint8_t[]) { 0 }, 1), VIRTIO_NET_OK);
        fe_set_u64(&f, VHOST_USER_SET_STATUS, 0);
        fe_start_queue(&f, RX, NUM);
        fe_start_queue(&f, CONTROL, NUM);
        offer_buffers(&f, RX, 0, 64, 2048);
        settle(&f, CONTROL);
        assert_int_equal(send(host, packet, 60, 0), 60);
        assert_int_equal(guest_receives(&f, RX, 2048, packet, NULL, NULL), 60);
        fe_end(&f);
}

static void takes_addresses_and_offloads(void **state) {
        uint8_t many[4 + 100 * 6 + 4] = {};
        FrontEnd f;

        start(&f, plain, 3, 0);
        assert_memory_equal(config_of(&f).mac, guest_mac, 6);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, host_mac, 6), VIRTIO_NET_OK);
        assert_memory_equal(config_of(&f).mac, host_mac, 6);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, (uint64_t[]) { 0 }, 8), VIRTIO_NET_OK);
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, (uint64_t[]) { BIT(1) | BIT(7) }, 8), VIRTIO_NET_OK);
        /* More addresses than anybody keeps: everything passes. */
        store_le32(many, 100);
        for (unsigned i = 0; i < 100; i++)
                many[4 + 6 * i + 5] = (uint8_t) i;
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, many, sizeof(many)), VIRTIO_NET_OK);
        offer_buffers(&f, RX, 0, 8, 2048);
        host_sends(100, 1);
        expect_received(&f, RX, 2048, 100, 1);
        fe_end(&f);
}

/* Several queues */

static const char *const many[] = { "net", "--interface=many", "--queue-pairs=3", WITH_MAC, NULL };

static void serves_as_many_pairs_as_the_driver_asks_for(void **state) {
        unsigned per_queue[3] = {}, total = 0;
        struct vring_used_elem e;
        uint8_t packet[64];
        FrontEnd f;

        open_host("many", false);
        start(&f, many, 7, 0);
        assert_true(f.features & BIT(VIRTIO_NET_F_MQ));
        assert_int_equal(config_of(&f).max_virtqueue_pairs, 3);
        for (unsigned i = 0; i < 3; i++)
                offer_buffers(&f, 2 * i, 0, NUM, 2048);

        /* One at first, whatever queues there are. */
        settle(&f, 6);
        for (unsigned i = 0; i < 50; i++)
                host_sends(60 + i, i);
        for (unsigned i = 0; i < 50; i++)
                expect_received(&f, 0, 2048, 60 + i, i);

        assert_int_equal(command_of(&f, 6, VIRTIO_NET_CTRL_MQ, 0, (uint8_t[]) { 0, 0 }, 2), VIRTIO_NET_ERR);
        assert_int_equal(command_of(&f, 6, VIRTIO_NET_CTRL_MQ, 0, (uint8_t[]) { 4, 0 }, 2), VIRTIO_NET_ERR);
        assert_int_equal(command_of(&f, 6, VIRTIO_NET_CTRL_MQ, 0, (uint8_t[]) { 3, 0 }, 2), VIRTIO_NET_OK);
        for (unsigned i = 0; i < 3; i++) {
                guest_sends(&f, 2 * i + 1, 100 + i, i);
                expect_sent(100 + i, i);
        }

        /* Many flows: each queue has some of them. */
        for (unsigned i = 0; i < 100; i++) {
                (void) make_packet(packet, 60, i);
                packet[12] = 0x08;
                packet[13] = 0;
                memcpy(packet + 14, (uint8_t[]) { 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, (uint8_t) i }, 20);
                assert_int_equal(send(host, packet, 60, 0), 60);
        }
        while (total < 100) {
                for (unsigned q = 0; q < 3; q++)
                        while (fe_used(&f, 2 * q, 20, &e)) {
                                per_queue[q]++;
                                total++;
                        }
        }
        for (unsigned q = 0; q < 3; q++)
                assert_true(per_queue[q] > 0);

        /* And back to one. */
        assert_int_equal(command_of(&f, 6, VIRTIO_NET_CTRL_MQ, 0, (uint8_t[]) { 1, 0 }, 2), VIRTIO_NET_OK);
        for (unsigned i = 0; i < 20; i++)
                host_sends(60 + i, i);
        for (unsigned i = 0; i < 20; i++)
                expect_received(&f, 0, 2048, 60 + i, i);
        fe_end(&f);
}

/* QEMU keeps the control queue to itself. */
static void without_a_control_queue_the_enabled_rings_say_how_many(void **state) {
        FrontEnd f;

        open_host("many", false);
        start(&f, many, 4, 0);
        guest_sends(&f, 3, 100, 7);
        expect_sent(100, 7);
        fe_end(&f);
}

static void without_several_queues_the_third_is_for_control(void **state) {
        FrontEnd f;

        open_host("many", false);
        start(&f, many, 3, BIT(VIRTIO_NET_F_MQ));
        assert_int_equal(command(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, (uint8_t[]) { 1 }, 1), VIRTIO_NET_OK);
        fe_end(&f);
}

/* The rest of what is offered */

static void offers_what_it_was_told_to(void **state) {
        const char *const options[] = { "net", "--interface=plain", "--mtu=9000", "--offload=no", WITH_MAC, NULL };
        const uint64_t offloads = BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO4);
        FrontEnd f;

        start(&f, options, 3, 0);
        assert_true(f.features & BIT(VIRTIO_NET_F_MTU));
        assert_int_equal(config_of(&f).mtu, 9000);
        assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);
        assert_false(f.features & offloads);
        fe_end(&f);
        start(&f, plain, 3, 0);
        assert_false(f.features & (BIT(VIRTIO_NET_F_MTU) | BIT(VIRTIO_NET_F_MQ)));
        assert_int_equal(f.features & offloads, offloads);
        fe_end(&f);
}

static void has_the_same_address_each_time_where_none_is_given(void **state) {
        const char *const options[] = { "net", "--interface=plain", NULL };
        struct virtio_net_config first, second;
        FrontEnd f;

        start(&f, options, 3, 0);
        first = config_of(&f);
        fe_end(&f);
        start(&f, options, 3, 0);
        second = config_of(&f);
        fe_end(&f);
        assert_memory_equal(first.mac, second.mac, 6);
        assert_int_equal(first.mac[0] & 3, 2);
}

static void limits_what_is_sent_and_received(void **state) {
        const char *const options[] = { "net", "--interface=plain", WITH_MAC, "--transmit-limit=1M", "--receive-limit=1M", NULL };
        uint8_t packet[2048];
        uint64_t begin;
        FrontEnd f;

        start(&f, options, 3, 0);
        (void) make_packet(packet, 1514, 1);
        begin = now_usec();
        for (unsigned i = 0; i < NUM / 2; i++)
                offer_packet(&f, TX, i, &(struct virtio_net_hdr_v1) {}, packet, 1514);
        fe_kick(&f, TX);
        for (unsigned i = 0; i < 400; i++) {
                struct vring_used_elem e = fe_wait(&f, TX);
                fe_offer(&f, TX, (uint16_t) e.id);
                fe_kick(&f, TX);
        }
        /* 600 KB, of which 128 KiB are free. */
        assert_in_range(now_usec() - begin, 350 * USEC_PER_MSEC, 60 * USEC_PER_SEC);

        offer_buffers(&f, RX, 0, NUM, 2048);
        begin = now_usec();
        for (unsigned i = 0; i < 250; i++)
                host_sends(1514, i);
        for (unsigned i = 0; i < 250; i++)
                expect_received(&f, RX, 2048, 1514, i);
        /* 378 KB */
        assert_in_range(now_usec() - begin, 180 * USEC_PER_MSEC, 60 * USEC_PER_SEC);
        fe_end(&f);
}

static void a_deleted_interface_takes_the_link_down(void **state) {
        const char *const options[] = { "net", "--interface=passing", NULL };
        struct vring_used_elem e;
        uint64_t before;
        struct pollfd p;
        FrontEnd f;

        make_tap("passing", 0);
        start(&f, options, 3, 0);
        offer_buffers(&f, RX, 0, 8, 2048);
        settle(&f, CONTROL);
        assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);
        delete_interface("passing");
        p = (struct pollfd) { .fd = f.backend_fd, .events = POLLIN };
        assert_int_equal(poll(&p, 1, 60000), 1);
        assert_int_equal(config_of(&f).status, 0);
        before = cpu_usec(f.pid);
        guest_sends(&f, TX, 100, 1);
        assert_false(fe_used(&f, RX, 200, &e));
        assert_true(cpu_usec(f.pid) - before < 50 * USEC_PER_MSEC);
        assert_true(fe_alive(&f));
        fe_end(&f);
}

/* Set down and up, as the host's administrator does. */
static void the_link_is_up_while_the_interface_is(void **state) {
        FrontEnd f;

        start(&f, plain, 3, 0);
        settle(&f, CONTROL);
        assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);
        for (unsigned i = 0; i < 2; i++) {
                bring_up("plain", false);
                assert_true(fe_config_changed(&f, 60000));
                assert_int_equal(config_of(&f).status, 0);
                guest_sends(&f, TX, 100, 1); /* into the void */
                bring_up("plain", true);
                assert_true(fe_config_changed(&f, 60000));
                assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);
        }
        open_host("plain", false);
        guest_sends(&f, TX, 100, 2);
        expect_sent(100, 2);
        fe_end(&f);
}

static void run(const char *command) {
        assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c): our own words */
}

/* Straight to an interface of the host's, beside what the host itself sends there. */
static void works_on_a_macvtap_too(void **state) {
        const char *const options[] = { "net", "--interface=vtap", NULL };
        uint64_t before;
        FrontEnd f;

        if (system("ip link add below type veth peer name beside 2>&1 && " /* NOLINT(cert-env33-c) */
                    "ip link add link below name vtap address " MAC " type macvtap mode vepa 2>&1") != 0) {
                print_message("# this kernel has no macvtap\n"); /* cmocka's skip() is a failure to those who read TAP */
                return;
        }
        for (size_t i = 0; i < 3; i++)
                bring_up(((const char *[]) { "below", "beside", "vtap" })[i], true);
        open_host("beside", false);
        start(&f, options, 3, 0);
        assert_memory_equal(config_of(&f).mac, guest_mac, 6);
        offer_buffers(&f, RX, 0, 16, 2048);
        settle(&f, CONTROL);
        for (unsigned i = 0; i < 10; i++) {
                guest_sends(&f, TX, 100 + i, i);
                expect_sent(100 + i, i);
                host_sends(200 + i, i);
                expect_received(&f, RX, 2048, 200 + i, i);
        }
        assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);

        /* What it stands on goes down, and comes again; */
        bring_up("beside", false);
        assert_true(fe_config_changed(&f, 60000));
        assert_int_equal(config_of(&f).status, 0);
        bring_up("beside", true);
        assert_true(fe_config_changed(&f, 60000));
        assert_int_equal(config_of(&f).status, VIRTIO_NET_S_LINK_UP);
        /* and then it is deleted, which its descriptor does not tell. */
        run("ip link delete vtap");
        do
                assert_true(fe_config_changed(&f, 60000));
        while (config_of(&f).status != 0);
        before = cpu_usec(f.pid);
        guest_sends(&f, TX, 100, 1);
        assert_int_equal(fe_eventfd(f.queues[RX].call, 200), 0);
        assert_true(cpu_usec(f.pid) - before < 50 * USEC_PER_MSEC);
        assert_true(fe_alive(&f));
        fe_end(&f);
        run("ip link delete below");
}

/* Opened by whoever started the helper, for more pairs than it is to have now. */
static void queues_that_are_not_used_any_more_get_no_packets(void **state) {
        const char *const options[] = { "net", "--interface=many", "--queue-pairs=1", WITH_MAC, NULL };
        _cleanup_close_ int links = watch_links();
        uint8_t packet[64];
        FrontEnd f;
        int fds[3];

        for (unsigned i = 0; i < 3; i++) {
                struct ifreq r = request_for("many");

                fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
                r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
                assert_int_equal(ioctl(fds[i], TUNSETIFF, &r), 0);
                assert_int_equal(ioctl(fds[i], TUNSETVNETHDRSZ, &(int) { HEADER }), 0);
        }
        open_host("many", false);
        fe_spawn_passing_many(&f, options, "interface:interface:interface", fds, 3);
        current = f.pid;
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        for (unsigned i = 0; i < 3; i++)
                fe_start_queue(&f, i, NUM);
        wait_for_link(links, "many");
        offer_buffers(&f, RX, 0, NUM, 2048);
        settle(&f, CONTROL);
        for (unsigned i = 0; i < 100; i++) {
                (void) make_packet(packet, 60, i);
                packet[12] = 0x08;
                packet[13] = 0;
                memcpy(packet + 14, (uint8_t[]) { 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, (uint8_t) i }, 20);
                assert_int_equal(send(host, packet, 60, 0), 60);
        }
        for (unsigned i = 0; i < 100; i++)
                (void) fe_wait(&f, RX);
        fe_end(&f);
        for (unsigned i = 0; i < 3; i++)
                (void) close(fds[i]);
}

/* Killed under traffic, again and again. Packets may come twice, or be lost on the way to the guest; buffers may not, and nothing comes damaged. */
static void a_killed_helper_loses_no_buffer(void **state) {
        const uint64_t region = queue_region_size(NUM);
        VhostUserInflight inflight = { .num_queues = 3, .queue_size = NUM, .mmap_size = 3 * region };
        _cleanup_close_ int log = guest_memory_create_fd(ALIGN_UP(3 * region, UINT64_C(4096)), 0);
        uint8_t packet[2048], seen[4096];
        FrontEnd f;

        spawn(&f, plain);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &log, 1), 0);
        fe_start_queue(&f, RX, NUM);
        fe_start_queue(&f, TX, NUM);
        offer_buffers(&f, RX, 0, 100, 2048);

        for (unsigned round = 0; round < 10; round++) {
                bool used[100] = {}, arrived[100] = {};
                struct vring_used_elem e;
                unsigned n = 0;
                FrontEnd next;

                for (unsigned i = 0; i < 100; i++) {
                        host_sends(100 + i, i);
                        offer_packet(&f, TX, i, &(struct virtio_net_hdr_v1) {}, packet, (uint32_t) make_packet(packet, 100 + i, i));
                }
                fe_kick(&f, TX);
                usleep(round * 150);
                assert_int_equal(kill(f.pid, SIGKILL), 0);
                assert_int_equal(waitpid(f.pid, NULL, 0), f.pid);

                spawn(&next, plain);
                (void) munmap(next.ram, FE_RAM_SIZE);
                (void) close(next.ram_fd);
                next.ram_fd = f.ram_fd;
                next.ram = f.ram;
                (void) close(f.fd);
                (void) close(f.backend_fd);
                memcpy(next.queues, f.queues, sizeof(f.queues));
                f = next;
                fe_negotiate(&f, 0);
                fe_set_mem_table(&f);
                assert_int_equal(fe_acknowledged(&f, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &log, 1), 0);
                fe_send_queue(&f, RX, f.queues[RX].used->idx);
                fe_send_queue(&f, TX, f.queues[TX].used->idx);

                /* Every packet of the guest's is sent, */
                for (unsigned i = 0; i < 100; i++) {
                        uint32_t id = fe_wait(&f, TX).id / 2;
                        assert_true(id < 100 && !used[id]);
                        used[id] = true;
                }
                while (n < 100) {
                        size_t length = host_receives(seen, sizeof(seen), 60000);
                        assert_true(length >= 100 && length < 200);
                        (void) make_packet(packet, length, (unsigned) length - 100);
                        assert_memory_equal(seen, packet, length);
                        n += !arrived[length - 100];
                        arrived[length - 100] = true;
                }
                while (host_receives(seen, sizeof(seen), 0) > 0)
                        ;
                /* and what came to the guest is whole. */
                while (fe_used(&f, RX, 50, &e)) {
                        assert_true(e.id < 100 && e.len >= HEADER + 100 && e.len < HEADER + 200);
                        (void) make_packet(packet, e.len - HEADER, e.len - (unsigned) HEADER - 100);
                        assert_memory_equal(slot(&f, RX, e.id, 2048) + HEADER, packet, e.len - HEADER);
                        offer_buffers(&f, RX, e.id, 1, 2048);
                }
        }
        /* All buffers are still in use. Behind a packet there may be the end of a longer one, which a helper had read when it was killed and could not
         * give to the guest any more: what is behind the length is nobody's. */
        for (unsigned i = 0; i < 100; i++)
                host_sends(100, i);
        for (unsigned i = 0; i < 100; i++) {
                struct vring_used_elem e = fe_wait(&f, RX);

                assert_true(e.id < 100);
                assert_int_equal(e.len, HEADER + 100);
                (void) make_packet(packet, 100, i);
                assert_memory_equal(slot(&f, RX, e.id, 2048) + HEADER, packet, 100);
        }
        fe_end(&f);
}

/* Each test has fresh ears, and a tap that no failed one has left in use. */
static int listen_to_plain(void **state) {
        if (current > 0 && waitpid(current, NULL, WNOHANG) == 0) {
                (void) kill(current, SIGKILL);
                (void) waitpid(current, NULL, 0);
        }
        current = 0;
        open_host("plain", false);
        return 0;
}

static int make_network(void **state) {
        make_tap("plain", 0);
        make_tap("many", IFF_MULTI_QUEUE);
        return 0;
}

static int enter_namespace(void) {
        _cleanup_close_ int fd = -EBADF;

        if (unshare(CLONE_NEWNET) < 0)
                return -errno;
        fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        return fd < 0 ? -errno : 0;
}

int main(void) {
#define with_tap(test) cmocka_unit_test_setup(test, listen_to_plain)
        const struct CMUnitTest tests[] = {
                with_tap(refuses_options_that_make_no_sense),
                with_tap(refuses_an_interface_that_is_in_use),
                with_tap(a_receive_buffer_without_room_for_a_header_breaks_the_device),
                with_tap(a_receive_buffer_that_is_not_for_writing_breaks_the_device),
                with_tap(a_receive_buffer_outside_memory_breaks_the_device),
                with_tap(a_packet_without_a_header_breaks_the_device),
                with_tap(a_command_without_room_for_the_answer_breaks_the_device),
                with_tap(a_loop_in_the_transmit_queue_breaks_the_device),
                with_tap(drops_packets_whose_header_makes_no_sense),
                with_tap(drops_offloads_that_were_not_negotiated),
                with_tap(drops_packets_that_are_too_short_or_too_long),
                with_tap(sends_packets_of_all_sizes),
                with_tap(sends_what_lies_in_many_pieces),
                with_tap(receives_packets_of_all_sizes),
                with_tap(receives_in_order_what_fills_the_queue_many_times),
                with_tap(merges_small_buffers),
                with_tap(a_packet_that_does_not_fit_is_dropped_where_buffers_are_not_merged),
                with_tap(fills_the_header_in),
                with_tap(speaks_the_legacy_header),
                with_tap(sends_large_segments),
                with_tap(receives_large_segments_over_many_buffers),
                with_tap(has_the_host_cut_segments_for_a_driver_that_cannot),
                with_tap(drops_segments_that_were_meant_for_an_earlier_driver),
                with_tap(waits_for_buffers_without_spinning),
                with_tap(a_packet_waits_for_the_buffers_it_lacks),
                with_tap(drops_a_packet_that_the_whole_queue_cannot_hold),
                with_tap(a_stopped_queue_keeps_no_buffer),
                with_tap(a_flood_from_the_guest_lets_packets_to_it_through),
                with_tap(answers_commands_that_make_no_sense_with_an_error),
                with_tap(filters_what_the_driver_does_not_want),
                with_tap(takes_addresses_and_offloads),
                with_tap(serves_as_many_pairs_as_the_driver_asks_for),
                with_tap(without_a_control_queue_the_enabled_rings_say_how_many),
                with_tap(without_several_queues_the_third_is_for_control),
                with_tap(offers_what_it_was_told_to),
                with_tap(has_the_same_address_each_time_where_none_is_given),
                with_tap(limits_what_is_sent_and_received),
                with_tap(a_deleted_interface_takes_the_link_down),
                with_tap(the_link_is_up_while_the_interface_is),
                with_tap(works_on_a_macvtap_too),
                with_tap(queues_that_are_not_used_any_more_get_no_packets),
                with_tap(a_killed_helper_loses_no_buffer),
        };
        int r;

        r = enter_namespace();
        if (r < 0) {
                printf("1..0 # SKIP a network namespace and /dev/net/tun need root: %s\n", strerror(-r));
                return 0;
        }
        return cmocka_run_group_tests(tests, make_network, NULL);
}
