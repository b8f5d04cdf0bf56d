/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* bench-net SOCKET PID SECONDS LISTEN HOST HOST-MAC GUEST GUEST-MAC: what packets cost with the vhost-user back-end at SOCKET, whose process is PID.
 *
 * The guest, this program's driver, is GUEST, and exchanges UDP datagrams with a socket of the host's that is bound to LISTEN and that the guest knows as
 * HOST. Only so many are under way at once that none has to be dropped; what is lost all the same is counted. Each size in each
 * direction: without any offload of segments, since not every back-end has them, but with a large MTU. One JSON object a line. */

#include <arpa/inet.h>
#include <linux/udp.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <netinet/ether.h>
#include <netinet/ip.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "mac-address.h"
#include "parse.h"
#include "peer.h"

#define RX 0
#define TX 1
#define HOST_PORT 7777
#define GUEST_PORT 7778
#define HEADERS (sizeof(struct virtio_net_hdr_v1) + ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))
#define ETH_HLEN 14
#define RX_SIZE KIB(4) /* of a merged buffer: what Linux' driver gives for large packets */
#define TX_SLOTS 64U
#define TX_SIZE KIB(64)
#define BATCH 64U
/* Under way at once: packets, and bytes, which is what fits a socket of our own, or one that somebody has left as it is. */
#define WINDOW_PACKETS 192U
#define WINDOW_HOST MIB(3)
#define WINDOW_GUEST KIB(144)
#define LOST_NSEC (200 * UINT64_C(1000000))

#define RX_BUFFER(i) (MIB(8) + (i) * RX_SIZE)
#define TX_BUFFER(i) (FE_BUFFERS + (i) * TX_SIZE)
static_assert(TX_BUFFER(TX_SLOTS) <= RX_BUFFER(0) && RX_BUFFER(PEER_NUM) <= FE_RAM_SIZE, "buffers lie in each other");

typedef struct Bench {
        FrontEnd f;
        int socket;
        struct sockaddr_in guest; /* as the host sees it */
        uint32_t host_address, guest_address;
        uint8_t host_mac[MAC_ADDRESS_SIZE], guest_mac[MAC_ADDRESS_SIZE];
        unsigned idle[TX_SLOTS], n_idle;
        uint64_t nsec;
} Bench;

static _noreturn_ void fail(const char *what) {
        (void) fprintf(stderr, "%s\n", what);
        exit(EXIT_FAILURE);
}

static uint16_t ip_checksum(const void *data, size_t size) {
        uint32_t sum = 0;
        uint16_t word;

        for (size_t i = 0; i < size; i += 2) {
                memcpy(&word, (const uint8_t *) data + i, 2);
                sum += word;
        }
        while (sum >> 16)
                sum = (sum & 0xffff) + (sum >> 16);
        return (uint16_t) ~sum;
}

/* A datagram in a transmit slot. Its checksum is left out, as UDP allows. */
static void fill_slot(Bench *b, unsigned i, size_t payload) {
        uint8_t *p = b->f.ram + TX_BUFFER(i);
        struct iphdr ip = {
                .version = 4,
                .ihl = 5,
                .tot_len = htons((uint16_t) (sizeof(struct iphdr) + sizeof(struct udphdr) + payload)),
                .ttl = 64,
                .protocol = IPPROTO_UDP,
                .saddr = b->guest_address,
                .daddr = b->host_address,
        };
        struct udphdr udp = { .source = htons(GUEST_PORT), .dest = htons(HOST_PORT), .len = htons((uint16_t) (sizeof(struct udphdr) + payload)) };

        ip.check = ip_checksum(&ip, sizeof(ip));
        memset(p, 0, sizeof(struct virtio_net_hdr_v1));
        p += sizeof(struct virtio_net_hdr_v1);
        memcpy(p, b->host_mac, sizeof(b->host_mac));
        memcpy(p + 6, b->guest_mac, sizeof(b->guest_mac));
        memcpy(p + 12, (uint8_t[]) { 0x08, 0x00 }, 2);
        memcpy(p + ETH_HLEN, &ip, sizeof(ip));
        memcpy(p + ETH_HLEN + sizeof(ip), &udp, sizeof(udp));
        memset(p + ETH_HLEN + sizeof(ip) + sizeof(udp), (int) i, payload);
        fe_desc(&b->f, TX, (uint16_t) i, FE_ADDRESS(TX_BUFFER(i)), (uint32_t) (HEADERS + payload), 0, 0);
}

static void offer_buffer(Bench *b, uint16_t i) {
        fe_desc(&b->f, RX, i, FE_ADDRESS(RX_BUFFER(i)), RX_SIZE, VRING_DESC_F_WRITE, 0);
        fe_offer(&b->f, RX, i);
}

static void take_sent(Bench *b) {
        for (unsigned n = peer_used_now(&b->f, TX); n > 0; n--)
                b->idle[b->n_idle++] = peer_take(&b->f, TX).id;
}

/* Gives the host's socket what there is of our datagrams: how many. */
static uint64_t host_takes(Bench *b) {
        struct mmsghdr messages[BATCH] = {};
        int n;

        for (unsigned i = 0; i < BATCH; i++)
                messages[i].msg_hdr = (struct msghdr) { .msg_name = &b->guest, .msg_namelen = sizeof(b->guest) };
        n = recvmmsg(b->socket, messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
        return n < 0 ? 0 : (uint64_t) n;
}

static unsigned window(uint64_t bytes, size_t payload) {
        return (unsigned) MIN(bytes / (payload + 512), (uint64_t) WINDOW_PACKETS);
}

static void report(const char *name, size_t payload, uint64_t packets, uint64_t lost, uint64_t nsec, uint64_t cpu) {
        if (packets == 0)
                fail("Not one packet has arrived.");
        printf("{\"benchmark\":\"%s\",\"bytes\":%zu,\"packets\":%llu,\"lost\":%llu,\"perSecond\":%llu,\"mbitPerSecond\":%llu,\"cpuNsEach\":%llu}\n",
                name, payload, (unsigned long long) packets, (unsigned long long) lost,
                (unsigned long long) ((unsigned __int128) packets * 1000000000U / nsec),
                (unsigned long long) ((unsigned __int128) packets * payload * 8000 / nsec), (unsigned long long) (cpu / packets));
        (void) fflush(stdout);
}

/* The guest sends. The driver does what Linux' does: fills the ring, takes back what was sent when it needs it. */
static void to_host(Bench *b, size_t payload) {
        FrontEnd *f = &b->f;
        unsigned most = window(WINDOW_HOST, payload);
        uint64_t begin, now, last, cpu, sent = 0, arrived = 0, lost = 0;

        for (unsigned i = 0; i < TX_SLOTS; i++)
                fill_slot(b, i, payload);
        begin = last = peer_now_nsec();
        cpu = peer_cpu_nsec(f);
        while ((now = peer_now_nsec()) - begin < b->nsec) {
                uint16_t before = f->queues[TX].avail_idx;
                uint64_t n;

                take_sent(b);
                while (b->n_idle > 0 && sent - arrived - lost < most) {
                        fe_offer(f, TX, (uint16_t) b->idle[--b->n_idle]);
                        sent++;
                }
                if (f->queues[TX].avail_idx != before)
                        peer_kick(f, TX, before);
                n = host_takes(b);
                arrived += n;
                if (n > 0)
                        last = now;
                else if (now - last > LOST_NSEC) {
                        lost += sent - arrived - lost;
                        last = now;
                } else if (b->n_idle == 0)
                        (void) peer_used(f, TX, 20); /* what was sent has arrived before we were told that it was sent */
                else
                        (void) poll(&(struct pollfd) { .fd = b->socket, .events = POLLIN }, 1, 20);
        }
        report("guest to host", payload, arrived, lost, now - begin, peer_cpu_nsec(f) - cpu);
        while (b->n_idle < TX_SLOTS) {
                (void) peer_used(f, TX, 100);
                take_sent(b);
        }
        (void) usleep(100000);
        while (host_takes(b) > 0)
                ;
}

/* Takes what has come in; returns how many datagrams. */
static uint64_t guest_takes(Bench *b, unsigned n, size_t payload) {
        FrontEnd *f = &b->f;
        uint16_t before = f->queues[RX].avail_idx;
        uint64_t packets = 0;

        while (n > 0) {
                struct vring_used_elem e = peer_take(f, RX);
                const struct virtio_net_hdr_v1 *h = (const void *) (f->ram + RX_BUFFER(e.id));
                unsigned more = MAX((unsigned) h->num_buffers, 1U) - 1;
                uint64_t length = e.len;

                offer_buffer(b, (uint16_t) e.id);
                n--;
                for (; more > 0; more--, n--) {
                        if (n == 0 && (n = peer_used(f, RX, 1000)) == 0)
                                fail("Half a packet has come.");
                        e = peer_take(f, RX);
                        length += e.len;
                        offer_buffer(b, (uint16_t) e.id);
                }
                packets += length == HEADERS + payload;
        }
        if (f->queues[RX].avail_idx != before)
                peer_kick(f, RX, before);
        return packets;
}

static void to_guest(Bench *b, size_t payload) {
        static uint8_t data[KIB(64)];
        struct iovec iov = { .iov_base = data, .iov_len = payload };
        struct mmsghdr messages[BATCH] = {};
        unsigned most = window(WINDOW_GUEST, payload);
        uint64_t begin, now, last, cpu, sent = 0, arrived = 0, lost = 0;

        for (unsigned i = 0; i < BATCH; i++)
                messages[i].msg_hdr =
                        (struct msghdr) { .msg_name = &b->guest, .msg_namelen = sizeof(b->guest), .msg_iov = &iov, .msg_iovlen = 1 };
        begin = last = peer_now_nsec();
        cpu = peer_cpu_nsec(&b->f);
        while ((now = peer_now_nsec()) - begin < b->nsec) {
                uint64_t room = most - (sent - arrived - lost), n;

                if (room > 0) {
                        int r = sendmmsg(b->socket, messages, (unsigned) MIN(room, (uint64_t) BATCH), MSG_DONTWAIT);
                        if (r < 0 && errno != EAGAIN && errno != ENOBUFS)
                                fail("The host cannot send to the guest.");
                        sent += r > 0 ? (uint64_t) r : 0;
                }
                n = guest_takes(b, sent - arrived - lost < most ? peer_used_now(&b->f, RX) : peer_used(&b->f, RX, 20), payload);
                arrived += n;
                if (n > 0)
                        last = now;
                else if (now - last > LOST_NSEC) {
                        lost += sent - arrived - lost;
                        last = now;
                }
        }
        report("host to guest", payload, arrived, lost, now - begin, peer_cpu_nsec(&b->f) - cpu);
        while (peer_used(&b->f, RX, 100) > 0)
                (void) guest_takes(b, peer_used_now(&b->f, RX), payload);
}

/* The guest speaks first: so everybody knows where it is. */
static void introduce(Bench *b) {
        for (unsigned i = 0; i < 50; i++) {
                uint16_t before = b->f.queues[TX].avail_idx;

                take_sent(b);
                fill_slot(b, b->idle[--b->n_idle], 64);
                fe_offer(&b->f, TX, (uint16_t) b->idle[b->n_idle]);
                peer_kick(&b->f, TX, before);
                (void) poll(&(struct pollfd) { .fd = b->socket, .events = POLLIN }, 1, 100);
                if (host_takes(b) > 0)
                        return;
        }
        fail("Nothing arrives from the guest.");
}

static void open_socket(Bench *b, const char *address) {
        struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(HOST_PORT) };

        b->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (b->socket < 0 || inet_pton(AF_INET, address, &sa.sin_addr) != 1 || bind(b->socket, (struct sockaddr *) &sa, sizeof(sa)) < 0)
                fail("Cannot open the host's socket.");
        (void) setsockopt(b->socket, SOL_SOCKET, SO_RCVBUFFORCE, &(int) { 1 << 22 }, sizeof(int));
        (void) setsockopt(b->socket, SOL_SOCKET, SO_SNDBUFFORCE, &(int) { 1 << 22 }, sizeof(int));
}

int main(int argc, char *argv[]) {
        static const size_t sizes[] = { 64, 1472, 65000 };
        uint64_t pid, seconds;
        Bench b = {};

        if (argc != 9 || parse_unsigned(argv[2], &pid) < 0 || parse_unsigned(argv[3], &seconds) < 0 ||
                inet_pton(AF_INET, argv[5], &b.host_address) != 1 || mac_address_parse(argv[6], b.host_mac) < 0 ||
                inet_pton(AF_INET, argv[7], &b.guest_address) != 1 || mac_address_parse(argv[8], b.guest_mac) < 0)
                fail("usage: bench-net SOCKET PID SECONDS LISTEN HOST HOST-MAC GUEST GUEST-MAC");
        b.nsec = seconds * UINT64_C(1000000000);
        open_socket(&b, argv[4]);
        peer_connect(&b.f, argv[1], (pid_t) pid,
                UINT64_C(1) << VIRTIO_NET_F_MRG_RXBUF | UINT64_C(1) << VIRTIO_NET_F_CSUM | UINT64_C(1) << VIRTIO_NET_F_GUEST_CSUM, 2);
        for (uint16_t i = 0; i < PEER_NUM; i++)
                offer_buffer(&b, i);
        fe_kick(&b.f, RX);
        for (unsigned i = 0; i < TX_SLOTS; i++)
                b.idle[b.n_idle++] = i;
        introduce(&b);
        for (size_t i = 0; i < ELEMENTSOF(sizes); i++)
                to_host(&b, sizes[i]);
        for (size_t i = 0; i < ELEMENTSOF(sizes); i++)
                to_guest(&b, sizes[i]);
        fe_disconnect(&b.f);
        return EXIT_SUCCESS;
}
