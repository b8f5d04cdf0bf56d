/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The vsock device, by the real helper: the test is the guest with its driver on one side, and a program of the host's on the other. */

#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "front-end.h"

enum { RX, TX, EVENT, N_QUEUES };

#define NUM 128
#define HEADER ((uint32_t) sizeof(struct virtio_vsock_hdr))
#define RX_SIZE 4096U
#define TX_SIZE (KIB(64) + HEADER)
#define RX_SLOT(i) (FE_BUFFERS + (uint64_t) (i) * RX_SIZE)
#define TX_SLOT(i) (MIB(5) + (uint64_t) (i) * KIB(66))
#define EVENT_SLOT(i) (MIB(15) + (uint64_t) (i) * 64)
#define CID 5
#define HOST 2
/* What a Linux guest announces. */
#define GUEST_WINDOW KIB(256)
#define NOTIFY_PORT 8660

#define SHUT_RECEIVE VIRTIO_VSOCK_SHUTDOWN_RCV
#define SHUT_SEND VIRTIO_VSOCK_SHUTDOWN_SEND
#define SHUT_BOTH (SHUT_RECEIVE | SHUT_SEND)

static char directory[] = "/tmp/vmm-test-vsock-XXXXXX";
static char vsock_path[64], messages_path[80], varlink_path[64], vsock_argument[80], varlink_argument[80];
static const char *const arguments[] = { "vsock", "--cid=5", vsock_argument, varlink_argument, NULL };
static FrontEnd *f;
static bool giving; /* buffers that were used are given again */
static unsigned tx_next;
static uint16_t talking; /* what type of connections is meant */

/* The guest */

typedef struct Packet {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port, length;
        uint16_t type, op;
        uint32_t flags, buf_alloc, fwd_cnt;
        const uint8_t *data;
} Packet;

static void give_buffers(unsigned n, uint32_t size) {
        for (unsigned i = 0; i < n; i++) {
                fe_desc(f, RX, (uint16_t) i, FE_ADDRESS(RX_SLOT(i)), size, VRING_DESC_F_WRITE, 0);
                fe_offer(f, RX, (uint16_t) i);
        }
        fe_kick(f, RX);
}

static void give_events(void) {
        for (unsigned i = 0; i < 8; i++) {
                fe_desc(f, EVENT, (uint16_t) i, FE_ADDRESS(EVENT_SLOT(i)), 4, VRING_DESC_F_WRITE, 0);
                fe_offer(f, EVENT, (uint16_t) i);
        }
        fe_kick(f, EVENT);
}

static void begin(FrontEnd *g) {
        f = g;
        talking = VIRTIO_VSOCK_TYPE_STREAM;
        tx_next = 0;
        giving = true;
        fe_start(f, arguments, N_QUEUES, NUM);
}

static void begin_with_buffers(FrontEnd *g) {
        begin(g);
        give_buffers(NUM, RX_SIZE);
        give_events();
}

static Packet packet(uint16_t op, uint32_t guest_port, uint32_t host_port) {
        return (Packet) {
                .src_cid = CID, .dst_cid = HOST, .src_port = guest_port, .dst_port = host_port,
                .type = talking, .op = op, .buf_alloc = GUEST_WINDOW,
        };
}

/* Without waiting for it to be taken. */
static void offer_packet(const Packet *p) {
        uint8_t *slot = f->ram + TX_SLOT(tx_next);
        struct virtio_vsock_hdr h = {
                .src_cid = p->src_cid, .dst_cid = p->dst_cid, .src_port = p->src_port, .dst_port = p->dst_port, .len = p->length,
                .type = p->type, .op = p->op, .flags = p->flags, .buf_alloc = p->buf_alloc, .fwd_cnt = p->fwd_cnt,
        };

        memcpy(slot, &h, sizeof(h));
        if (p->data)
                memcpy(slot + HEADER, p->data, p->length);
        fe_desc(f, TX, (uint16_t) tx_next, FE_ADDRESS(TX_SLOT(tx_next)), HEADER + p->length, 0, 0);
        fe_offer(f, TX, (uint16_t) tx_next);
        tx_next = (tx_next + 1) % NUM;
}

static void send_packet(Packet p) {
        offer_packet(&p);
        fe_kick(f, TX);
        (void) fe_wait(f, TX);
}

static void guest_says(uint16_t op, uint32_t guest_port, uint32_t host_port) {
        send_packet(packet(op, guest_port, host_port));
}

static void guest_shuts_down(uint32_t guest_port, uint32_t host_port, uint32_t flags) {
        Packet p = packet(VIRTIO_VSOCK_OP_SHUTDOWN, guest_port, host_port);

        p.flags = flags;
        send_packet(p);
}

static void guest_sends(uint32_t guest_port, uint32_t host_port, const void *data, uint32_t length) {
        Packet p = packet(VIRTIO_VSOCK_OP_RW, guest_port, host_port);

        p.data = data;
        p.length = length;
        send_packet(p);
}

/* The next packet for the guest. Its data are valid until so many more have come as there are buffers. */
static bool guest_hears(int timeout_ms, Packet *ret) {
        struct vring_used_elem e;
        struct virtio_vsock_hdr h;

        if (!fe_used(f, RX, timeout_ms, &e))
                return false;
        assert_true(e.id < NUM && e.len >= HEADER);
        memcpy(&h, f->ram + RX_SLOT(e.id), sizeof(h));
        assert_int_equal(e.len, HEADER + h.len);
        *ret = (Packet) {
                .src_cid = h.src_cid, .dst_cid = h.dst_cid, .src_port = h.src_port, .dst_port = h.dst_port, .length = h.len,
                .type = h.type, .op = h.op, .flags = h.flags, .buf_alloc = h.buf_alloc, .fwd_cnt = h.fwd_cnt,
                .data = f->ram + RX_SLOT(e.id) + HEADER,
        };
        if (giving) {
                fe_offer(f, RX, (uint16_t) e.id);
                fe_kick(f, RX);
        }
        return true;
}

static Packet guest_hears_of(uint16_t op, uint32_t guest_port, uint32_t host_port) {
        Packet p;

        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, op);
        assert_int_equal(p.dst_cid, CID);
        assert_int_equal(p.dst_port, guest_port);
        assert_int_equal(p.src_port, host_port);
        assert_int_equal(p.type, talking);
        return p;
}

static void guest_hears_nothing(void) {
        Packet p;

        /* Whatever was to come has come with the answer to this. */
        guest_says(VIRTIO_VSOCK_OP_RW, 1, 999999);
        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
        assert_int_equal(p.src_port, 999999);
}

/* The host */

static struct sockaddr_un address_of(const char *path) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };

        (void) snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
        return a;
}

static int listen_at(const char *path, int type) {
        struct sockaddr_un a = address_of(path);
        int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

        (void) unlink(path);
        assert_return_code(bind(fd, (struct sockaddr *) &a, sizeof(a)), errno);
        assert_return_code(listen(fd, 2048), errno);
        return fd;
}

static int serve_as(uint32_t port, int type) {
        char path[96];

        (void) snprintf(path, sizeof(path), "%s_%u", vsock_path, port);
        return listen_at(path, type);
}

static int serve_port(uint32_t port) {
        return serve_as(port, SOCK_STREAM);
}

static int serve_messages(uint32_t port) {
        return serve_as(port, SOCK_SEQPACKET);
}

static bool wait_readable(int fd, int timeout_ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        return poll(&p, 1, timeout_ms) == 1;
}

static int host_accepts(int listener) {
        assert_true(wait_readable(listener, 60000));
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        assert_return_code(fd, errno);
        return fd;
}

static void host_reads(int fd, const void *data, size_t length) {
        _cleanup_free_ uint8_t *buffer = malloc(length);
        size_t have = 0;

        while (have < length) {
                assert_true(wait_readable(fd, 60000));
                ssize_t n = read(fd, buffer + have, length - have);
                assert_true(n > 0);
                have += (size_t) n;
        }
        assert_memory_equal(buffer, data, length);
}

static void host_reads_end(int fd) {
        char c;

        assert_true(wait_readable(fd, 60000));
        assert_true(read(fd, &c, 1) <= 0);
}

static int host_connects(void) {
        bool messages = talking == VIRTIO_VSOCK_TYPE_SEQPACKET;
        struct sockaddr_un a = address_of(messages ? messages_path : vsock_path);
        int fd = socket(AF_UNIX, (messages ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0);

        assert_return_code(connect(fd, (struct sockaddr *) &a, sizeof(a)), errno);
        return fd;
}

static void host_writes(int fd, const void *data, size_t length) {
        assert_int_equal(send(fd, data, length, MSG_NOSIGNAL), length);
}

#define host_says(fd, text) host_writes(fd, text, strlen(text))

static const char *describe(void) {
        return fe_call(varlink_path, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF);
}

/* Connections of both */

/* The guest connects to a port that somebody serves. */
static int guest_connects(int listener, uint32_t guest_port, uint32_t host_port) {
        guest_says(VIRTIO_VSOCK_OP_REQUEST, guest_port, host_port);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, guest_port, host_port);
        return host_accepts(listener);
}

/* The host connects to a port of the guest's. */
static int host_connects_to(uint32_t guest_port, uint32_t *ret_host_port) {
        int fd = host_connects();
        char text[64];
        Packet p;

        (void) snprintf(text, sizeof(text), "CONNECT %u\n", guest_port);
        host_says(fd, text);
        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_REQUEST);
        assert_int_equal(p.dst_port, guest_port);
        guest_says(VIRTIO_VSOCK_OP_RESPONSE, guest_port, p.src_port);
        (void) snprintf(text, sizeof(text), "OK %u\n", p.src_port);
        host_reads(fd, text, strlen(text));
        *ret_host_port = p.src_port;
        return fd;
}

static void make_names(void) {
        assert_non_null(mkdtemp(directory));
        (void) snprintf(vsock_path, sizeof(vsock_path), "%s/demo.vsock", directory);
        (void) snprintf(messages_path, sizeof(messages_path), "%s-seqpacket", vsock_path);
        (void) snprintf(varlink_path, sizeof(varlink_path), "%s/demo.varlink", directory);
        (void) snprintf(vsock_argument, sizeof(vsock_argument), "--vsock-path=%s", vsock_path);
        (void) snprintf(varlink_argument, sizeof(varlink_argument), "--varlink-path=%s", varlink_path);
}

/* Refusals */

static void refuses_what_is_no_packet(void **state) {
        FrontEnd g;

        begin_with_buffers(&g);
        fe_desc(f, TX, 0, FE_ADDRESS(TX_SLOT(0)), HEADER - 1, 0, 0);
        fe_offer(f, TX, 0);
        fe_kick(f, TX);
        fe_expect_broken(f, TX);
        fe_end(f);
}

static void refuses_a_packet_shorter_than_it_says(void **state) {
        Packet p = packet(VIRTIO_VSOCK_OP_RW, 1, 2);
        FrontEnd g;

        begin_with_buffers(&g);
        p.length = 100;
        offer_packet(&p);
        f->queues[TX].desc[0].len = HEADER + 99;
        fe_kick(f, TX);
        fe_expect_broken(f, TX);
        fe_end(f);
}

static void refuses_a_packet_that_is_to_be_written(void **state) {
        Packet p = packet(VIRTIO_VSOCK_OP_RW, 1, 2);
        FrontEnd g;

        begin_with_buffers(&g);
        offer_packet(&p);
        f->queues[TX].desc[0].flags = VRING_DESC_F_NEXT;
        f->queues[TX].desc[0].next = 77;
        fe_desc(f, TX, 77, FE_ADDRESS(TX_SLOT(77)), 100, VRING_DESC_F_WRITE, 0);
        fe_kick(f, TX);
        fe_expect_broken(f, TX);
        fe_end(f);
}

static void refuses_buffers_without_room_for_a_packet(void **state) {
        FrontEnd g;

        begin(&g);
        give_buffers(1, HEADER);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1, 2);
        fe_expect_broken(f, RX);
        fe_end(f);
}

static void a_broken_device_begins_anew_after_a_reset(void **state) {
        uint32_t port;
        FrontEnd g;
        int fd;

        begin(&g);
        give_buffers(1, HEADER);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1, 2);
        fe_expect_broken(f, RX);
        fe_set_u64(f, VHOST_USER_SET_STATUS, 0);
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_start_queue(f, i, NUM);
        tx_next = 0;
        give_buffers(NUM, RX_SIZE);
        fd = host_connects_to(22, &port);
        (void) close(fd);
        fe_end(f);
}

static void refuses_connections_to_nobody(void **state) {
        Packet p, elsewhere = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 1);
        FrontEnd g;

        begin_with_buffers(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 1);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 1);
        /* Other guests are not to be reached: the answer comes in their name. */
        elsewhere.dst_cid = 77;
        send_packet(elsewhere);
        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
        assert_int_equal(p.src_cid, 77);
        elsewhere = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 1);
        elsewhere.type = 9;
        send_packet(elsewhere);
        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
        assert_int_equal(p.type, 9);
        /* Whatever is said of a connection that is none, but for its end. */
        for (unsigned op = VIRTIO_VSOCK_OP_RESPONSE; op <= VIRTIO_VSOCK_OP_CREDIT_REQUEST; op++) {
                guest_says((uint16_t) op, 1001, op);
                if (op != VIRTIO_VSOCK_OP_RST)
                        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1001, op);
        }
        guest_hears_nothing();
        fe_end(f);
}

static void ignores_who_says_to_be_somebody_else(void **state) {
        Packet p = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        _cleanup_close_ int listener = -EBADF;
        FrontEnd g;

        listener = serve_port(7);
        begin_with_buffers(&g);
        p.src_cid = CID + 1;
        send_packet(p);
        guest_hears_nothing();
        assert_false(wait_readable(listener, 0));
        fe_end(f);
}

static void are_no_greetings(const char *const *texts, size_t n) {
        for (size_t i = 0; i < n; i++) {
                _cleanup_close_ int fd = host_connects();
                host_says(fd, texts[i]);
                host_reads_end(fd);
        }
}

static void refuses_wrong_greetings(void **state) {
        static const char *const wrong[] = {
                "\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "CONNECT -1\n", "connect 22\n", "CONNECT 22 \n", "CONNECT 4294967295\n",
                "CONNECT 99999999999999999999\n", "HELLO 22\n", "CONNECT 00000000000000000000000000000022\n", " CONNECT 22\n",
        };
        FrontEnd g;

        begin_with_buffers(&g);
        are_no_greetings(wrong, ELEMENTSOF(wrong));
        _cleanup_close_ int fd = host_connects();
        host_writes(fd, "CONNECT 2\0\n", 11);
        host_reads_end(fd);
        guest_hears_nothing();
        fe_end(f);
}

static void a_connection_ends_with_too_much_data(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_port(7), a = -EBADF, b = -EBADF;
        uint32_t sent = 0;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        a = guest_connects(listener, 1000, 7);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1001, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1001, 7);
        b = host_accepts(listener);
        /* Nobody reads; the window is what the socket takes, and what was announced. */
        while (!guest_hears(0, &p)) {
                guest_sends(1001, 7, data, sizeof(data));
                sent += (uint32_t) sizeof(data);
                assert_true(sent < MIB(8));
        }
        while (p.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE) {
                guest_sends(1001, 7, data, sizeof(data));
                if (!guest_hears(100, &p))
                        p.op = VIRTIO_VSOCK_OP_CREDIT_UPDATE;
        }
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
        /* The other one is as good as before. */
        guest_sends(1000, 7, "hello", 5);
        host_reads(a, "hello", 5);
        fe_end(f);
}

static void what_makes_no_sense_ends_its_connection_only(void **state) {
        _cleanup_close_ int listener = serve_port(7), other = -EBADF;
        static const uint16_t wrong[] = { VIRTIO_VSOCK_OP_INVALID, VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE, 8, 999, 65535 };
        FrontEnd g;

        begin_with_buffers(&g);
        other = guest_connects(listener, 500, 7);
        for (unsigned i = 0; i < ELEMENTSOF(wrong); i++) {
                _cleanup_close_ int fd = guest_connects(listener, 1000, 7);
                guest_says(wrong[i], 1000, 7);
                (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
                host_reads_end(fd);
        }
        _cleanup_close_ _unused_ int fd = guest_connects(listener, 1000, 7); /* open until the test's end */
        guest_shuts_down(1000, 7, SHUT_SEND);
        guest_sends(1000, 7, "more", 4);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        guest_sends(500, 7, "hello", 5);
        host_reads(other, "hello", 5);
        fe_end(f);
}

/* Credit */

static void the_guest_is_sent_what_it_has_room_for(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        Packet p = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 7), update = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        uint32_t got = 0;
        FrontEnd g;

        for (size_t i = 0; i < sizeof(data); i++)
                data[i] = (uint8_t) (i * 13 + i / 256);
        begin_with_buffers(&g);
        p.buf_alloc = update.buf_alloc = 10000;
        send_packet(p);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        fd = host_accepts(listener);
        host_writes(fd, data, sizeof(data));
        while (got < sizeof(data)) {
                assert_true(guest_hears(10000, &p));
                if (p.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
                        assert_true(got + 1024 > update.fwd_cnt + 10000);
                        update.fwd_cnt = got;
                        send_packet(update);
                        continue;
                }
                assert_int_equal(p.op, VIRTIO_VSOCK_OP_RW);
                assert_memory_equal(p.data, data + got, p.length);
                got += p.length;
                assert_true(got <= update.fwd_cnt + 10000);
        }
        fe_end(f);
}

static void lies_about_credit_lead_to_nothing(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        Packet p = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 7), lie = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        static const uint32_t forwarded[] = { 1, 5001, 0x7fffffff, 0x80000000, 0xffffffff };
        uint32_t got = 0;
        FrontEnd g;

        begin_with_buffers(&g);
        p.buf_alloc = lie.buf_alloc = 5000;
        p.fwd_cnt = 12345; /* of nothing */
        send_packet(p);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        fd = host_accepts(listener);
        host_writes(fd, data, sizeof(data));
        while (guest_hears(10000, &p) && p.op == VIRTIO_VSOCK_OP_RW)
                got += p.length;
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
        assert_true(got <= 5000);
        /* It has read more than it was sent; nothing of that, it has said before; it has no room at all. It is not asked again either. */
        for (size_t i = 1; i < ELEMENTSOF(forwarded); i++) {
                lie.fwd_cnt = forwarded[i];
                send_packet(lie);
        }
        lie.fwd_cnt = 0;
        send_packet(lie);
        lie.buf_alloc = 0;
        send_packet(lie);
        guest_hears_nothing();
        /* As much room as can be said: everything comes. */
        lie.buf_alloc = UINT32_MAX;
        send_packet(lie);
        while (got < sizeof(data)) {
                assert_true(guest_hears(10000, &p));
                assert_int_equal(p.op, VIRTIO_VSOCK_OP_RW);
                got += p.length;
        }
        fe_end(f);
}

static void credit_is_told_when_asked_for(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_sends(1000, 7, "12345", 5);
        guest_says(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1000, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        assert_int_equal(p.fwd_cnt, 5);
        assert_true(p.buf_alloc >= KIB(32));
        fe_end(f);
}

/* What connections are for */

static void both_sides_talk(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_sends(1000, 7, "question", 8);
        host_reads(fd, "question", 8);
        host_says(fd, "answer");
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
        assert_int_equal(p.length, 6);
        assert_memory_equal(p.data, "answer", 6);
        assert_int_equal(p.fwd_cnt, 8);
        assert_non_null(strstr(describe(), "\"guestConnections\":1"));
        fe_end(f);
}

static void packets_in_pieces_are_packets(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        Packet p = packet(VIRTIO_VSOCK_OP_RW, 1000, 7);
        struct vring_used_elem e;
        FrontEnd g;

        begin(&g);
        /* Headers and payloads in buffers of their own, cut where it hurts. */
        for (uint16_t i = 0; i < 8; i++) {
                uint64_t at = FE_ADDRESS(RX_SLOT(i));
                fe_desc(f, RX, (uint16_t) (3 * i), at, 20, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, (uint16_t) (3 * i + 1));
                fe_desc(f, RX, (uint16_t) (3 * i + 1), at + 20, 30, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, (uint16_t) (3 * i + 2));
                fe_desc(f, RX, (uint16_t) (3 * i + 2), at + 50, 14, VRING_DESC_F_WRITE, 0);
                fe_offer(f, RX, (uint16_t) (3 * i));
        }
        fe_kick(f, RX);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        assert_int_equal(fe_wait(f, RX).len, HEADER);
        fd = host_accepts(listener);
        p.data = (const uint8_t *) "0123456789";
        p.length = 10;
        offer_packet(&p);
        tx_next = 10;
        f->queues[TX].desc[1] = (struct vring_desc) { FE_ADDRESS(TX_SLOT(1)), 30, VRING_DESC_F_NEXT, 2 };
        fe_desc(f, TX, 2, FE_ADDRESS(TX_SLOT(1)) + 30, 17, VRING_DESC_F_NEXT, 3);
        fe_desc(f, TX, 3, FE_ADDRESS(TX_SLOT(1)) + 47, 7, 0, 0);
        fe_kick(f, TX);
        (void) fe_wait(f, TX);
        host_reads(fd, "0123456789", 10);
        /* Each buffer has room for twenty bytes. */
        host_says(fd, "abcdefghijklmnopqrstuvwxyz");
        e = fe_wait(f, RX);
        assert_int_equal(e.len, HEADER + 20);
        assert_memory_equal(f->ram + RX_SLOT(e.id / 3) + HEADER, "abcdefghijklmnopqrst", 20);
        e = fe_wait(f, RX);
        assert_int_equal(e.len, HEADER + 6);
        assert_memory_equal(f->ram + RX_SLOT(e.id / 3) + HEADER, "uvwxyz", 6);
        fe_end(f);
}

static void a_client_of_the_host_connects(void **state) {
        _cleanup_close_ int fd = -EBADF, other = -EBADF;
        uint32_t port, other_port;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = host_connects_to(22, &port);
        other = host_connects_to(22, &other_port);
        assert_int_not_equal(port, other_port);
        host_says(other, "to the other");
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 22, other_port);
        assert_memory_equal(p.data, "to the other", 12);
        guest_sends(22, port, "SSH-2.0", 7);
        host_reads(fd, "SSH-2.0", 7);
        fe_end(f);
}

static void a_greeting_may_come_in_pieces_and_with_more_behind_it(void **state) {
        _cleanup_close_ int fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = host_connects();
        for (const char *c = "CONNECT 4294967294"; *c; c++) {
                host_writes(fd, c, 1);
                (void) describe(); /* the helper has seen it */
        }
        host_says(fd, "\nand more");
        assert_true(guest_hears(10000, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_REQUEST);
        assert_int_equal(p.dst_port, 4294967294);
        guest_says(VIRTIO_VSOCK_OP_RESPONSE, p.dst_port, p.src_port);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, p.dst_port, p.src_port);
        assert_int_equal(p.length, 8);
        assert_memory_equal(p.data, "and more", 8);
        fe_end(f);
}

static void a_client_whom_the_guest_refuses_is_let_go(void **state) {
        _cleanup_close_ int fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = host_connects();
        host_says(fd, "CONNECT 23\n");
        assert_true(guest_hears(10000, &p));
        guest_says(VIRTIO_VSOCK_OP_RST, 23, p.src_port);
        host_reads_end(fd);
        guest_hears_nothing();
        fe_end(f);
}

static void a_client_who_gives_up_is_reported(void **state) {
        FrontEnd g;
        Packet p;
        int fd;

        begin_with_buffers(&g);
        fd = host_connects();
        host_says(fd, "CONNECT 23\n");
        assert_true(guest_hears(10000, &p));
        (void) close(fd);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 23, p.src_port);
        fe_end(f);
}

/* Ends */

static void each_direction_ends_by_itself(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_sends(1000, 7, "last words", 10);
        guest_shuts_down(1000, 7, SHUT_SEND);
        host_reads(fd, "last words", 10);
        host_reads_end(fd);
        host_says(fd, "still here");
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
        assert_memory_equal(p.data, "still here", 10);
        (void) close(TAKE_FD(fd));
        p = guest_hears_of(VIRTIO_VSOCK_OP_SHUTDOWN, 1000, 7);
        assert_int_equal(p.flags, SHUT_BOTH);
        guest_says(VIRTIO_VSOCK_OP_RST, 1000, 7);

        fd = guest_connects(listener, 1000, 7);
        host_says(fd, "mine");
        assert_return_code(shutdown(fd, SHUT_WR), errno);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
        assert_int_equal(p.length, 4);
        p = guest_hears_of(VIRTIO_VSOCK_OP_SHUTDOWN, 1000, 7);
        assert_int_equal(p.flags, SHUT_SEND);
        guest_sends(1000, 7, "yours", 5);
        host_reads(fd, "yours", 5);
        guest_shuts_down(1000, 7, SHUT_BOTH);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        host_reads_end(fd);
        guest_hears_nothing();
        fe_end(f);
}

static void a_guest_that_does_not_receive_stops_the_host(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_shuts_down(1000, 7, SHUT_RECEIVE);
        assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
        assert_int_equal(errno, EPIPE);
        guest_sends(1000, 7, "but sends", 9);
        host_reads(fd, "but sends", 9);
        fe_end(f);
}

static void a_host_that_does_not_read_stops_the_guest(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        assert_return_code(shutdown(fd, SHUT_RD), errno);
        guest_sends(1000, 7, "unheard", 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_SHUTDOWN, 1000, 7);
        assert_int_equal(p.flags, SHUT_RECEIVE);
        host_says(fd, "but says");
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
        assert_int_equal(p.length, 8);
        assert_int_equal(p.fwd_cnt, 7);
        fe_end(f);
}

/* What the guest has sent when it closes arrives, however late the host reads; its ports are free at once. */
static void nothing_is_lost_at_the_guests_end(void **state) {
        static uint8_t data[KIB(32)];
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF, again = -EBADF;
        const unsigned n = 14; /* more than the socket holds, within the window */
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        for (unsigned i = 0; i < n; i++) {
                memset(data, (int) i, sizeof(data));
                guest_sends(1000, 7, data, sizeof(data));
        }
        guest_shuts_down(1000, 7, SHUT_BOTH);
        do
                assert_true(guest_hears(10000, &p));
        while (p.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
        again = guest_connects(listener, 1000, 7);
        for (unsigned i = 0; i < n; i++) {
                memset(data, (int) i, sizeof(data));
                host_reads(fd, data, sizeof(data));
        }
        host_reads_end(fd);
        fe_end(f);
}

static void the_guests_reset_ends_the_hosts_socket(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_says(VIRTIO_VSOCK_OP_RST, 1000, 7);
        host_reads_end(fd);
        guest_hears_nothing();
        fe_end(f);
}

/* Who does not say what he wants, does not answer, or does not acknowledge, in time. */
static void patience_ends(void **state) {
        _cleanup_close_ int listener = serve_port(7), silent = -EBADF, unanswered = -EBADF;
        uint32_t port;
        FrontEnd g;
        Packet p;
        int fd;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        (void) close(fd);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_SHUTDOWN, 1000, 7);
        silent = host_connects();
        unanswered = host_connects();
        host_says(unanswered, "CONNECT 80\n");
        assert_true(guest_hears(10000, &p));
        port = p.src_port;
        for (unsigned i = 0; i < 2; i++) {
                assert_true(guest_hears(20000, &p));
                assert_int_equal(p.op, VIRTIO_VSOCK_OP_RST);
                assert_true((p.dst_port == 1000 && p.src_port == 7) || (p.dst_port == 80 && p.src_port == port));
        }
        host_reads_end(silent);
        host_reads_end(unanswered);
        assert_non_null(strstr(describe(), "\"guestConnections\":0,\"hostConnections\":0"));
        fe_end(f);
}

/* Limits */

#define GUEST_MAX 768U
#define HOST_MAX 256U

static void connections_are_limited(void **state) {
        _cleanup_close_ int listener = serve_port(7), one_more = -EBADF;
        int guests[GUEST_MAX], hosts[HOST_MAX];
        uint32_t port, ports[HOST_MAX];
        FrontEnd g;

        begin_with_buffers(&g);
        for (unsigned i = 0; i < GUEST_MAX; i++)
                guests[i] = guest_connects(listener, 1000 + i, 7);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1, 7);
        /* The host has its own. Who is too many waits for his turn. */
        for (unsigned i = 0; i < HOST_MAX; i++)
                hosts[i] = host_connects_to(22, &ports[i]);
        one_more = host_connects();
        host_says(one_more, "CONNECT 23\n");
        guest_hears_nothing();
        guest_says(VIRTIO_VSOCK_OP_RST, 22, ports[5]);
        {
                Packet p;
                assert_true(guest_hears(10000, &p));
                assert_int_equal(p.op, VIRTIO_VSOCK_OP_REQUEST);
                assert_int_equal(p.dst_port, 23);
                port = p.src_port;
        }
        guest_says(VIRTIO_VSOCK_OP_RESPONSE, 23, port);
        guest_sends(1000 + GUEST_MAX - 1, 7, "last", 4);
        host_reads(guests[GUEST_MAX - 1], "last", 4);
        for (unsigned i = 0; i < GUEST_MAX; i++)
                (void) close(guests[i]);
        for (unsigned i = 0; i < HOST_MAX; i++)
                (void) close(hosts[i]);
        fe_end(f);
}

/* A guest that gives no buffers for answers is not listened to any longer, and forgets nothing. */
static void refusals_wait_for_buffers(void **state) {
        struct vring_used_elem e;
        unsigned taken = 0;
        FrontEnd g;
        Packet p;

        begin(&g);
        giving = false;
        for (unsigned round = 0; round < 8; round++)
                for (unsigned i = 0; i < NUM; i++) {
                        p = packet(VIRTIO_VSOCK_OP_RW, 1 + taken, 7);
                        offer_packet(&p);
                        fe_kick(f, TX);
                        if (!fe_used(f, TX, 300, &e))
                                goto stopped;
                        taken++;
                }
stopped:
        assert_in_range(taken, 128, 400);
        for (unsigned i = 0; i <= taken; i++) {
                if (i % NUM == 0)
                        give_buffers(NUM, RX_SIZE);
                (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1 + i, 7);
        }
        (void) fe_wait(f, TX);
        fe_end(f);
}

/* Life */

static void a_pause_loses_nothing(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        uint32_t base[N_QUEUES];
        FrontEnd g;
        Packet p;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        for (unsigned i = 0; i < N_QUEUES; i++)
                base[i] = fe_stop_queue(f, i);
        host_says(fd, "meanwhile");
        (void) describe();
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_send_queue(f, i, (uint16_t) base[i]);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
        assert_memory_equal(p.data, "meanwhile", 9);
        guest_sends(1000, 7, "as before", 9);
        host_reads(fd, "as before", 9);
        assert_false(fe_used(f, EVENT, 0, &(struct vring_used_elem) {}));
        fe_end(f);
}

static void a_reset_of_the_driver_ends_all_connections(void **state) {
        _cleanup_close_ int listener = serve_port(7), fd = -EBADF;
        FrontEnd g;

        begin_with_buffers(&g);
        fd = guest_connects(listener, 1000, 7);
        fe_set_u64(f, VHOST_USER_SET_STATUS, 0);
        host_reads_end(fd);
        (void) close(TAKE_FD(fd));
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_start_queue(f, i, NUM);
        tx_next = 0;
        give_buffers(NUM, RX_SIZE);
        give_events();
        fd = guest_connects(listener, 1000, 7);
        assert_false(fe_used(f, EVENT, 0, &(struct vring_used_elem) {}));
        fe_end(f);
}

/* A helper's successor */

static const char *const passed_socket[] = { "vsock", "--cid=5", varlink_argument, NULL };
/* What a helper keeps for its successor is as large as this, or it is taken for an older version's. */
#define KEPT_SIZE 1032

static void spawn_with(FrontEnd *g, int socket, int kept) {
        fe_spawn_passing_many(g, passed_socket, kept >= 0 ? "vsock:guest" : "vsock", (int[]) { socket, kept }, kept >= 0 ? 2 : 1);
}

/* How many queues the front-end hands over. */
static unsigned n_given = N_QUEUES;

static void begin_first(FrontEnd *first, int socket, int kept) {
        f = first;
        tx_next = 0;
        giving = true;
        spawn_with(f, socket, kept);
        fe_negotiate(f, 0);
        fe_set_mem_table(f);
        for (unsigned i = 0; i < n_given; i++)
                fe_start_queue(f, i, NUM);
        give_buffers(NUM, RX_SIZE);
}

static void die(FrontEnd *g) {
        assert_return_code(kill(g->pid, SIGKILL), errno);
        assert_int_equal(waitpid(g->pid, NULL, 0), g->pid);
}

/* The same guest memory and rings, another process. */
static void succeed(FrontEnd *first, FrontEnd *second, int socket, int kept) {
        spawn_with(second, socket, kept);
        (void) munmap(second->ram, FE_RAM_SIZE);
        (void) close(second->ram_fd);
        second->ram_fd = first->ram_fd;
        second->ram = first->ram;
        for (unsigned i = 0; i < FE_QUEUES_MAX; i++) {
                (void) safe_close(first->queues[i].kick);
                (void) safe_close(first->queues[i].call);
                (void) safe_close(first->queues[i].err);
                second->queues[i] = first->queues[i];
                second->queues[i].kick = second->queues[i].call = second->queues[i].err = -EBADF;
        }
        (void) close(first->fd);
        (void) close(first->backend_fd);
        f = second;
        fe_negotiate(f, 0);
        fe_set_mem_table(f);
        /* Nothing was in flight but the buffers that it held ready, which the used ring does not know of. */
        for (unsigned i = 0; i < n_given; i++)
                fe_send_queue(f, i, __atomic_load_n(&f->queues[i].used->idx, __ATOMIC_ACQUIRE));
}

/* Returns which buffer it came in. */
static uint16_t guest_is_told_of_the_reset(void) {
        struct vring_used_elem e = fe_wait(f, EVENT);
        uint32_t event;

        assert_int_equal(e.len, 4);
        memcpy(&event, f->ram + EVENT_SLOT(e.id), sizeof(event));
        assert_int_equal(event, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
        return (uint16_t) e.id;
}

static void guest_is_told_nothing(void) {
        assert_false(fe_used(f, EVENT, 0, &(struct vring_used_elem) {}));
}

/* As a driver does it that has reset its connections: after that, and with a signal only where one is asked for. */
static void guest_gives_the_event_back(uint16_t head) {
        FrontEndQueue *q = &f->queues[EVENT];

        (void) describe(); /* it has done what there was to do */
        assert_int_equal(*(const uint16_t *) (const void *) &q->used->ring[q->num], q->avail_idx);
        fe_offer(f, EVENT, head);
        fe_kick(f, EVENT);
}

static uint32_t guest_is_asked_for(uint32_t guest_port, int timeout_ms) {
        Packet p;

        assert_true(guest_hears(timeout_ms, &p));
        assert_int_equal(p.op, VIRTIO_VSOCK_OP_REQUEST);
        assert_int_equal(p.dst_port, guest_port);
        return p.src_port;
}

static void guest_accepts(int client, uint32_t guest_port, uint32_t host_port) {
        char text[64];

        guest_says(VIRTIO_VSOCK_OP_RESPONSE, guest_port, host_port);
        (void) snprintf(text, sizeof(text), "OK %u\n", host_port);
        host_reads(client, text, strlen(text));
}

/* The listening socket is the service manager's: a client that comes while there is no helper waits in it for the next one. The guest is told that its connections
 * are gone, which makes it reset all that it has by then: who comes is served after that. */
static void a_successor_keeps_the_socket_and_tells_the_guest(void **state) {
        _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), listener = serve_port(7), fd = -EBADF, client = -EBADF, late = -EBADF;
        FrontEnd first, second;
        uint16_t event;

        begin_first(&first, socket, -EBADF);
        give_events();
        fd = guest_connects(listener, 1000, 7);
        die(&first);
        host_reads_end(fd);
        client = host_connects();
        host_says(client, "CONNECT 22\n");

        succeed(&first, &second, socket, -EBADF);
        event = guest_is_told_of_the_reset();
        late = host_connects();
        host_says(late, "CONNECT 23\n");
        /* The old connection is unknown; of the new ones it does not hear. */
        guest_says(VIRTIO_VSOCK_OP_RW, 1000, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        assert_non_null(strstr(describe(), "\"hostConnections\":"));
        guest_hears_nothing();

        guest_gives_the_event_back(event);
        guest_accepts(client, 22, guest_is_asked_for(22, 60000));
        guest_accepts(late, 23, guest_is_asked_for(23, 60000));
        guest_is_told_nothing();
        fe_end(f);
}

/* What it asks for before it has heard of the reset is not connected yet, and so not reset. */
static void the_guests_own_requests_are_answered_after_its_reset(void **state) {
        _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), listener = serve_port(7), fd = -EBADF;
        FrontEnd first, second;
        uint16_t event;

        begin_first(&first, socket, -EBADF);
        give_events();
        fd = guest_connects(listener, 1000, 7);
        die(&first);
        (void) close(TAKE_FD(fd));
        succeed(&first, &second, socket, -EBADF);
        event = guest_is_told_of_the_reset();
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1001, 7);
        fd = host_accepts(listener);
        host_says(fd, "hello");
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1002, NOTIFY_PORT);
        guest_hears_nothing();
        guest_gives_the_event_back(event);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1001, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1002, NOTIFY_PORT);
        assert_int_equal(guest_hears_of(VIRTIO_VSOCK_OP_RW, 1001, 7).length, 5);
        guest_sends(1001, 7, "hello", 5);
        host_reads(fd, "hello", 5);
        fe_end(f);
}

/* Two events at once could not be told from one that was heard. */
static void a_second_successor_waits_for_what_the_first_one_told(void **state) {
        _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), client = -EBADF, kept = memfd_create("kept", MFD_CLOEXEC);
        FrontEnd first, second, third, fourth;
        uint16_t event;

        assert_return_code(ftruncate(kept, KEPT_SIZE), errno);
        begin_first(&first, socket, kept);
        give_events();
        guest_hears_nothing();
        die(&first);
        succeed(&first, &second, socket, kept);
        event = guest_is_told_of_the_reset();
        /* It has remembered it when it answers. */
        (void) describe();
        die(&second);

        succeed(&second, &third, socket, kept);
        client = host_connects();
        host_says(client, "CONNECT 22\n");
        guest_hears_nothing();
        guest_is_told_nothing();
        guest_gives_the_event_back(event);
        guest_accepts(client, 22, guest_is_asked_for(22, 60000));
        guest_is_told_nothing();

        /* That is over: the next one tells it again. */
        die(&third);
        succeed(&third, &fourth, socket, kept);
        guest_gives_the_event_back(guest_is_told_of_the_reset());
        fe_end(f);
}

/* A driver of a guest's that begins anew has no connections, and nothing to settle. */
static void a_reset_of_the_driver_settles_everything(void **state) {
        _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), client = -EBADF;
        FrontEnd first, second;

        begin_first(&first, socket, -EBADF);
        guest_hears_nothing();
        die(&first);
        succeed(&first, &second, socket, -EBADF);
        client = host_connects();
        host_says(client, "CONNECT 22\n");
        guest_hears_nothing();
        fe_set_u64(f, VHOST_USER_SET_STATUS, 0);
        (void) fe_get_u64(f, VHOST_USER_GET_STATUS); /* the rings are out of use */
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_start_queue(f, i, NUM);
        tx_next = 0;
        give_buffers(NUM, RX_SIZE);
        guest_accepts(client, 22, guest_is_asked_for(22, 5000));
        give_events();
        guest_hears_nothing();
        guest_is_told_nothing();
        fe_end(f);
}

/* One that gives no buffers to be told in, and one that never says that it has heard. */
static void nobody_waits_for_ever_for_a_driver(void **state) {
        for (unsigned with_events = 0; with_events < 2; with_events++) {
                _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), client = -EBADF;
                FrontEnd first, second;
                uint64_t begun;

                begin_first(&first, socket, -EBADF);
                if (with_events)
                        give_events();
                guest_hears_nothing();
                die(&first);
                begun = now_usec();
                succeed(&first, &second, socket, -EBADF);
                client = host_connects();
                host_says(client, "CONNECT 22\n");
                if (with_events)
                        (void) guest_is_told_of_the_reset();
                guest_accepts(client, 22, guest_is_asked_for(22, 100000));
                assert_in_range(now_usec() - begun, 9 * USEC_PER_SEC, 100 * USEC_PER_SEC);
                if (!with_events) {
                        /* So late that it takes along who came meanwhile. */
                        give_events();
                        guest_gives_the_event_back(guest_is_told_of_the_reset());
                        host_reads_end(client);
                }
                fe_end(f);
        }
}

/* As QEMU, which has the queue of events for itself: nothing can be told, and nobody says that he has heard. */
static void a_front_end_may_keep_the_events_to_itself(void **state) {
        _cleanup_close_ int socket = listen_at(vsock_path, SOCK_STREAM), client = -EBADF;
        FrontEnd first, second;
        uint64_t begun;

        n_given = EVENT;
        begin_first(&first, socket, -EBADF);
        guest_hears_nothing();
        die(&first);
        begun = now_usec();
        succeed(&first, &second, socket, -EBADF);
        n_given = N_QUEUES;
        client = host_connects();
        host_says(client, "CONNECT 22\n");
        guest_accepts(client, 22, guest_is_asked_for(22, 100000));
        assert_true(now_usec() - begun < 9 * USEC_PER_SEC);
        fe_end(f);
}

/* Much data */

#define BULK MIB(64)
#define PATTERN 1048573U /* a prime: what is lost, doubled or out of order shows */
static uint8_t pattern[PATTERN + KIB(64)];

static void make_pattern(void) {
        uint64_t x = 88172645463325252U;

        for (size_t i = 0; i < PATTERN; i++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                pattern[i] = (uint8_t) (x >> 32);
        }
        memcpy(pattern + PATTERN, pattern, sizeof(pattern) - PATTERN);
}

typedef struct Bulk {
        int fd;
        uint64_t received;
        bool good;
} Bulk;

/* The host: sends the pattern and checks what it gets, both at once. */
static void *bulk_host(void *userdata) {
        Bulk *b = userdata;
        uint64_t sent = 0;
        uint8_t buffer[KIB(64)];

        b->good = true;
        while (sent < BULK || b->received < BULK) {
                struct pollfd p = { .fd = b->fd, .events = POLLIN | (sent < BULK ? POLLOUT : 0) };

                if (poll(&p, 1, 60000) != 1)
                        break;
                if (p.revents & POLLOUT) {
                        ssize_t n = send(b->fd, pattern + sent % PATTERN, MIN(KIB(64), BULK - sent), MSG_DONTWAIT | MSG_NOSIGNAL);
                        sent += n > 0 ? (uint64_t) n : 0;
                }
                if (p.revents & POLLIN) {
                        ssize_t n = recv(b->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
                        if (n == 0)
                                break;
                        if (n < 0)
                                continue;
                        b->good = b->good && memcmp(buffer, pattern + b->received % PATTERN, (size_t) n) == 0;
                        b->received += (uint64_t) n;
                }
        }
        return NULL;
}

typedef struct BulkGuest {
        uint32_t sent, received, told, host_window, host_forwarded;
        unsigned under_way; /* packets in the transmit queue */
} BulkGuest;

static void bulk_guest_sends(BulkGuest *b) {
        struct vring_used_elem e;
        bool kick = false;

        while (b->under_way > 0 && fe_used(f, TX, 0, &e))
                b->under_way--;
        while (b->sent < BULK && b->under_way < NUM / 2 && b->host_window - (b->sent - b->host_forwarded) >= KIB(16)) {
                Packet p = packet(VIRTIO_VSOCK_OP_RW, 1000, 7);

                p.fwd_cnt = b->told = b->received;
                p.length = (uint32_t) MIN(MIN(KIB(64), BULK - b->sent), (uint64_t) (b->host_window - (b->sent - b->host_forwarded)));
                p.data = pattern + b->sent % PATTERN;
                offer_packet(&p);
                b->sent += p.length;
                b->under_way++;
                kick = true;
        }
        if (b->received - b->told >= GUEST_WINDOW / 2 && b->under_way < NUM / 2) {
                Packet p = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);

                p.fwd_cnt = b->told = b->received;
                offer_packet(&p);
                b->under_way++;
                kick = true;
        }
        if (kick)
                fe_kick(f, TX);
}

static void much_goes_both_ways(void **state) {
        _cleanup_close_ int listener = serve_port(7);
        BulkGuest b = {};
        pthread_t thread;
        Bulk host = {};
        uint64_t begun;
        FrontEnd g;
        Packet p;

        make_pattern();
        begin_with_buffers(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        b.host_window = p.buf_alloc;
        host.fd = host_accepts(listener);
        begun = now_usec();
        assert_int_equal(pthread_create(&thread, NULL, bulk_host, &host), 0);
        while (b.sent < BULK || b.received < BULK || b.sent != b.host_forwarded) {
                bulk_guest_sends(&b);
                if (!guest_hears(b.sent == BULK && b.received == BULK ? 1000 : 10000, &p)) {
                        /* The last of it may not have been worth an update. */
                        assert_true(b.sent == BULK && b.received == BULK);
                        guest_says(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1000, 7);
                        continue;
                }
                assert_int_equal(p.dst_port, 1000);
                b.host_forwarded = p.fwd_cnt;
                if (p.op != VIRTIO_VSOCK_OP_RW) {
                        assert_int_equal(p.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE || p.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1);
                        continue;
                }
                assert_memory_equal(p.data, pattern + b.received % PATTERN, p.length);
                b.received += p.length;
                assert_true(b.received - b.told <= GUEST_WINDOW);
        }
        assert_int_equal(pthread_join(thread, NULL), 0);
        print_message("# 64 MiB each way in %llu ms\n", (unsigned long long) ((now_usec() - begun) / 1000));
        assert_true(host.good);
        assert_int_equal(host.received, BULK);
        assert_int_equal(b.received, BULK);
        (void) close(host.fd);
        fe_end(f);
}

/* Notifications */

static const char *describe_guest(void) {
        return fe_call(varlink_path, "{\"method\":\"io.vmmd.Vsock.Describe\"}", -EBADF);
}

static void expect_guest(const char *text) {
        const char *reply = describe_guest();

        if (!strstr(reply, text))
                print_message("# %s\n", reply);
        assert_non_null(strstr(reply, text));
}

/* As sd_notify(3) does it: a connection a message. */
static void guest_notifies(const char *text) {
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 2000, NOTIFY_PORT);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 2000, NOTIFY_PORT);
        guest_sends(2000, NOTIFY_PORT, text, (uint32_t) strlen(text));
        guest_shuts_down(2000, NOTIFY_PORT, SHUT_BOTH);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 2000, NOTIFY_PORT);
}

static void notifications_are_hostile(void **state) {
        _cleanup_free_ char *text = malloc(KIB(16));
        FrontEnd g;

        begin_with_buffers(&g);
        guest_notifies("READY=0");
        guest_notifies("READY=11");
        guest_notifies("XREADY=1\n READY=1");
        guest_notifies("");
        guest_notifies("\n\n\n");
        guest_notifies("FDSTORE=1\nMAINPID=1\nWATCHDOG=1");
        expect_guest("\"guest\":{\"ready\":false}");
        guest_notifies("STATUS=a\tb\x1b[31m\xff\xc2\x9b\xc3\xa4\x7f!");
        expect_guest("\"status\":\"a?b?[31m??\xc3\xa4?!\"");
        /* Longer than any line that we know, and longer than any text that is kept. */
        memset(text, 'x', KIB(16) - 1);
        text[KIB(16) - 1] = 0;
        memcpy(text, "STATUS=", 7);
        memcpy(text + KIB(8), "\nREADY=1\n", 9);
        guest_notifies(text);
        expect_guest("\"ready\":true,\"status\":\"a?b?");
        memset(text, 'y', 400);
        memcpy(text, "STATUS=", 7);
        text[400] = 0;
        guest_notifies(text);
        memset(text, 'y', 255);
        memcpy(text + 255, "\"", 2);
        expect_guest(text);
        fe_end(f);
}

static void the_guest_tells_what_it_does(void **state) {
        FrontEnd g;

        begin_with_buffers(&g);
        expect_guest("\"guest\":{\"ready\":false},\"cid\":5,\"notifyPort\":8660");
        guest_notifies("X_SYSTEMD_HOSTNAME=guest\nX_SYSTEMD_MACHINE_ID=0123456789abcdef0123456789abcdef\n");
        guest_notifies("X_SYSTEMD_UNIT_ACTIVE=ssh-access.target");
        guest_notifies("STATUS=Startup finished.\nREADY=1");
        expect_guest("\"ready\":true,\"status\":\"Startup finished.\",\"hostname\":\"guest\","
                     "\"machineId\":\"0123456789abcdef0123456789abcdef\",\"unit\":\"ssh-access.target\"");
        guest_notifies("X_SYSTEMD_SHUTDOWN=poweroff");
        expect_guest("\"ready\":false");
        guest_notifies("READY=1");
        fe_set_u64(f, VHOST_USER_SET_STATUS, 0);
        (void) fe_get_u64(f, VHOST_USER_GET_STATUS);
        expect_guest("\"guest\":{\"ready\":false}");
        fe_end(f);
}

static void subscribers_are_told(void **state) {
        static const char call[] = "{\"method\":\"io.vmmd.Vsock.Subscribe\",\"more\":true}";
        _cleanup_close_ int fd = -EBADF;
        char text[8192] = {};
        size_t have = 0;
        FrontEnd g;

        begin_with_buffers(&g);
        (void) describe();
        fd = connect_unix(varlink_path);
        host_writes(fd, call, sizeof(call));
        for (unsigned i = 0; i < 50; i++)
                guest_notifies(i % 2 ? "STATUS=one" : "STATUS=other");
        guest_notifies("STATUS=last\nREADY=1");
        /* A guest's flood is a trickle here, and what it said last is in it. */
        while (!strstr(text, "last")) {
                assert_true(wait_readable(fd, 60000) && have < sizeof(text) - 1);
                ssize_t n = read(fd, text + have, sizeof(text) - 1 - have);
                assert_true(n > 0);
                for (ssize_t i = 0; i < n; i++)
                        if (text[have + (size_t) i] == 0)
                                text[have + (size_t) i] = '\n';
                have += (size_t) n;
        }
        assert_non_null(strstr(text, "\"ready\":true,\"status\":\"last\""));
        fe_end(f);
}

static void what_a_guest_says_is_not_told_twice(void **state) {
        static const char call[] = "{\"method\":\"io.vmmd.Vsock.Subscribe\",\"more\":true}";
        _cleanup_close_ int fd = -EBADF;
        char text[1024] = {};
        FrontEnd g;

        begin_with_buffers(&g);
        (void) describe();
        fd = connect_unix(varlink_path);
        guest_notifies("STATUS=one"); /* told at once, */
        guest_notifies("STATUS=other"); /* and this after a pause */
        host_writes(fd, call, sizeof(call));
        assert_true(wait_readable(fd, 60000));
        assert_true(read(fd, text, sizeof(text) - 1) > 0);
        assert_non_null(strstr(text, "\"status\":\"other\""));
        assert_false(wait_readable(fd, 300));
        fe_end(f);
}

static void no_port_of_notifications_without_it(void **state) {
        static const char *const without[] = { "vsock", "--cid=5", "--notify=no", varlink_argument, NULL };
        FrontEnd g;

        f = &g;
        tx_next = 0;
        giving = true;
        fe_start(f, without, N_QUEUES, NUM);
        give_buffers(NUM, RX_SIZE);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 2000, NOTIFY_PORT);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 2000, NOTIFY_PORT);
        assert_null(strstr(describe_guest(), "notifyPort"));
        fe_end(f);
}

/* Messages */

static void begin_messages(FrontEnd *g) {
        begin_with_buffers(g);
        talking = VIRTIO_VSOCK_TYPE_SEQPACKET;
}

static void guest_sends_part(const void *data, uint32_t length, uint32_t flags) {
        Packet p = packet(VIRTIO_VSOCK_OP_RW, 1000, 7);

        p.data = data;
        p.length = length;
        p.flags = flags;
        send_packet(p);
}

static void guest_sends_message(const void *data, uint32_t length) {
        guest_sends_part(data, length, VIRTIO_VSOCK_SEQ_EOM);
}

static void host_reads_message(int fd, const void *data, size_t length) {
        static uint8_t buffer[KIB(512)];
        ssize_t n;

        assert_true(wait_readable(fd, 60000));
        n = recv(fd, buffer, sizeof(buffer), 0);
        assert_int_equal(n, length);
        assert_memory_equal(buffer, data, length);
}

/* All packets of it; asked for credit meanwhile, the guest says what it has read: all before this. */
static void guest_hears_message(const void *data, uint32_t length, uint32_t port) {
        uint32_t got = 0;
        Packet p;

        do {
                p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, port);
                assert_true(p.length > 0 && got + p.length <= length);
                assert_memory_equal(p.data, (const uint8_t *) data + got, p.length);
                got += p.length;
                assert_int_equal(p.flags, got == length ? VIRTIO_VSOCK_SEQ_EOM : 0);
        } while (got < length);
}

static void fill(uint8_t *data, size_t size) {
        for (size_t i = 0; i < size; i++)
                data[i] = (uint8_t) (i * 13 + i / 256);
}

static void refuses_messages_of_a_driver_that_knows_none(void **state) {
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        FrontEnd g;

        f = &g;
        tx_next = 0;
        giving = true;
        fe_spawn(f, arguments);
        fe_negotiate(f, UINT64_C(1) << VIRTIO_VSOCK_F_SEQPACKET);
        fe_set_mem_table(f);
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_start_queue(f, i, NUM);
        give_buffers(NUM, RX_SIZE);
        talking = VIRTIO_VSOCK_TYPE_SEQPACKET;
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        assert_false(wait_readable(listener, 0));
        fd = host_connects();
        host_reads_end(fd);
        fe_end(f);
}

static void refuses_connections_of_the_other_type(void **state) {
        _cleanup_close_ int streams = serve_port(7), messages = serve_messages(8), fd = -EBADF;
        FrontEnd g;

        begin_messages(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        assert_false(wait_readable(streams, 0));
        fd = guest_connects(messages, 1000, 8);
        talking = VIRTIO_VSOCK_TYPE_STREAM;
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1001, 8);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1001, 8);
        /* One connection has one type. */
        guest_sends(1000, 8, "x", 1);
        talking = VIRTIO_VSOCK_TYPE_SEQPACKET;
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 8);
        host_reads_end(fd);
        fe_end(f);
}

static void refuses_wrong_greetings_in_messages(void **state) {
        static const char *const wrong[] = { "CONNECT 22", "CONNECT 22\nand more", "CONNECT 22 \n", "HELLO 22\n", "CONNECT 00000000000000000000000000000022\n" };
        FrontEnd g;

        begin_messages(&g);
        are_no_greetings(wrong, ELEMENTSOF(wrong));
        _cleanup_close_ int fd = host_connects();
        host_writes(fd, "", 0);
        host_reads_end(fd);
        talking = VIRTIO_VSOCK_TYPE_STREAM;
        guest_hears_nothing();
        fe_end(f);
}

/* Its end could never come. */
static void a_message_longer_than_the_window_ends_its_connection(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        uint32_t window, sent = 0;
        FrontEnd g;
        Packet p;

        begin_messages(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        window = p.buf_alloc;
        assert_true(window >= KIB(128) && window <= KIB(256));
        fd = host_accepts(listener);
        while (sent < window) {
                uint32_t n = MIN((uint32_t) sizeof(data), window - sent);

                guest_sends_part(data, n, 0);
                sent += n;
        }
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        host_reads_end(fd);
        fe_end(f);
}

static void a_message_longer_than_the_guest_takes_ends_its_connection(void **state) {
        static uint8_t data[KIB(200)];
        Packet p, answer;
        int fds[2];
        FrontEnd g;

        begin_messages(&g);
        for (unsigned i = 0; i < ELEMENTSOF(fds); i++) {
                fds[i] = host_connects();
                host_says(fds[i], "CONNECT 1000\n");
                assert_true(guest_hears(10000, &p));
                answer = packet(VIRTIO_VSOCK_OP_RESPONSE, 1000, p.src_port);
                answer.buf_alloc = KIB(100);
                send_packet(answer);
                host_writes(fds[i], data, i == 0 ? KIB(100) : KIB(100) + 1);
                if (i == 0)
                        guest_hears_message(data, KIB(100), p.src_port);
                else
                        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, p.src_port);
        }
        for (unsigned i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);
        fe_end(f);
}

static void messages_of_the_guest_keep_their_bounds(void **state) {
        static uint8_t data[KIB(128)];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        FrontEnd g;

        fill(data, sizeof(data));
        begin_messages(&g);
        fd = guest_connects(listener, 1000, 7);
        guest_sends_message("one", 3);
        guest_sends_part("t", 1, 0);
        guest_sends_part("w", 1, 0);
        /* A record's end is one of a message; AF_UNIX knows no other. */
        guest_sends_part("o", 1, VIRTIO_VSOCK_SEQ_EOM | VIRTIO_VSOCK_SEQ_EOR);
        /* Nobody is told of an empty one, which would be the end; and an end may come by itself. */
        guest_sends_message(NULL, 0);
        guest_sends_part(data, KIB(64), 0);
        guest_sends_part(data + KIB(64), KIB(64), 0);
        guest_sends_message(NULL, 0);
        host_reads_message(fd, "one", 3);
        host_reads_message(fd, "two", 3);
        host_reads_message(fd, data, sizeof(data));
        guest_sends_part("half of one", 11, 0);
        guest_shuts_down(1000, 7, SHUT_SEND);
        host_reads_end(fd);
        fe_end(f);
}

static void messages_of_the_host_keep_their_bounds(void **state) {
        static uint8_t data[KIB(128)];
        _cleanup_close_ int fd = -EBADF;
        uint32_t port;
        FrontEnd g;
        Packet p;

        fill(data, sizeof(data));
        begin_messages(&g);
        fd = host_connects_to(1000, &port);
        host_says(fd, "one");
        host_writes(fd, "", 0);
        host_says(fd, "two");
        host_writes(fd, data, sizeof(data));
        guest_hears_message("one", 3, port);
        guest_hears_message("two", 3, port);
        guest_hears_message(data, sizeof(data), port);
        /* Empty ones are no end, also where one comes behind them. */
        host_writes(fd, "", 0);
        host_says(fd, "three");
        host_writes(fd, "", 0);
        (void) shutdown(fd, SHUT_WR);
        guest_hears_message("three", 5, port);
        p = guest_hears_of(VIRTIO_VSOCK_OP_SHUTDOWN, 1000, port);
        assert_int_equal(p.flags, SHUT_SEND);
        p = packet(VIRTIO_VSOCK_OP_RW, 1000, port);
        p.data = (const uint8_t *) "answer";
        p.length = 6;
        p.flags = VIRTIO_VSOCK_SEQ_EOM;
        send_packet(p);
        host_reads_message(fd, "answer", 6);
        fe_end(f);
}

/* It comes as a whole or not at all; and the guest is asked once. */
static void a_message_waits_for_room_in_the_guest(void **state) {
        static uint8_t data[800];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        Packet p = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 7), update = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        FrontEnd g;

        fill(data, sizeof(data));
        begin_messages(&g);
        p = packet(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        update = packet(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        p.buf_alloc = update.buf_alloc = 1000;
        send_packet(p);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        fd = host_accepts(listener);
        host_writes(fd, data, 700);
        host_writes(fd, data, 800);
        guest_hears_message(data, 700, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1000, 7);
        send_packet(update); /* nothing was read */
        update.fwd_cnt = 100; /* not enough */
        send_packet(update);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1000, 7);
        update.fwd_cnt = 700;
        send_packet(update);
        guest_hears_message(data, 800, 7);
        fe_end(f);
}

/* A message's beginning takes room that only its end gives back: the guest has to know of all there is. */
static void the_guest_is_told_of_room_for_the_rest_of_a_message(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        uint32_t window, before, sent = 0;
        FrontEnd g;
        Packet p;

        begin_messages(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        window = p.buf_alloc;
        fd = host_accepts(listener);
        before = window / 4; /* too little to tell of it */
        guest_sends_message(data, MIN(before, (uint32_t) sizeof(data)));
        before = MIN(before, (uint32_t) sizeof(data));
        host_reads_message(fd, data, before);
        while (sent < window - before) {
                uint32_t n = MIN((uint32_t) KIB(16), window - before - sent);

                guest_sends_part(data, n, 0);
                sent += n;
        }
        p = guest_hears_of(VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1000, 7);
        assert_int_equal(p.fwd_cnt, before);
        guest_sends_part(data, before - 1, 0);
        guest_sends_message("!", 1);
        assert_true(wait_readable(fd, 60000));
        assert_int_equal(recv(fd, data, sizeof(data), MSG_TRUNC), window);
        fe_end(f);
}

/* Many that the socket does not take: they come in their order, each as it was, after the guest's end, too. */
static void messages_are_kept_for_a_host_that_does_not_read(void **state) {
        static uint8_t data[3000];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF;
        uint32_t n_sent = 0, sent = 0, told = 0, window;
        FrontEnd g;
        Packet p;

        fill(data, sizeof(data));
        begin_messages(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        p = guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        window = p.buf_alloc;
        fd = host_accepts(listener);
        for (;;) {
                uint32_t length = 1 + n_sent * 37 % (uint32_t) sizeof(data);

                while (guest_hears(0, &p))
                        told = p.fwd_cnt;
                if (sent - told + length > window)
                        break;
                if (n_sent % 3 == 0 && length > 1) {
                        guest_sends_part(data, length / 2, 0);
                        guest_sends_message(data + length / 2, length - length / 2);
                } else
                        guest_sends_message(data, length);
                sent += length;
                n_sent++;
        }
        assert_true(sent > window);
        guest_shuts_down(1000, 7, SHUT_BOTH);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RST, 1000, 7);
        for (uint32_t i = 0; i < n_sent; i++)
                host_reads_message(fd, data, 1 + i * 37 % (uint32_t) sizeof(data));
        host_reads_end(fd);
        fe_end(f);
}

/* Whose rest waits for buffers when everything begins anew is forgotten. */
static void a_reset_forgets_a_message_that_is_under_way(void **state) {
        static uint8_t data[KIB(64)];
        _cleanup_close_ int listener = serve_messages(7), fd = -EBADF, next = -EBADF;
        FrontEnd g;
        Packet p;

        begin(&g);
        talking = VIRTIO_VSOCK_TYPE_SEQPACKET;
        giving = false;
        give_buffers(3, RX_SIZE);
        give_events();
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 1000, 7);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 1000, 7);
        fd = host_accepts(listener);
        host_writes(fd, data, sizeof(data));
        for (unsigned i = 0; i < 2; i++) {
                p = guest_hears_of(VIRTIO_VSOCK_OP_RW, 1000, 7);
                assert_int_equal(p.flags, 0);
        }
        fe_set_u64(f, VHOST_USER_SET_STATUS, 0);
        (void) fe_get_u64(f, VHOST_USER_GET_STATUS);
        for (unsigned i = 0; i < N_QUEUES; i++)
                fe_start_queue(f, i, NUM);
        tx_next = 0;
        giving = true;
        give_buffers(NUM, RX_SIZE);
        give_events();
        host_reads_end(fd);
        next = guest_connects(listener, 1000, 7);
        host_says(next, "hello");
        guest_hears_message("hello", 5, 7);
        fe_end(f);
}

static void notifications_may_be_messages(void **state) {
        FrontEnd g;

        begin_messages(&g);
        guest_says(VIRTIO_VSOCK_OP_REQUEST, 2000, NOTIFY_PORT);
        (void) guest_hears_of(VIRTIO_VSOCK_OP_RESPONSE, 2000, NOTIFY_PORT);
        for (unsigned i = 0; i < 2; i++) {
                const char *text = i == 0 ? "STATUS=Here" : "READY=1";
                Packet p = packet(VIRTIO_VSOCK_OP_RW, 2000, NOTIFY_PORT);

                p.data = (const uint8_t *) text;
                p.length = (uint32_t) strlen(text);
                p.flags = VIRTIO_VSOCK_SEQ_EOM;
                send_packet(p);
        }
        expect_guest("\"ready\":true,\"status\":\"Here\"");
        fe_end(f);
}

static void says_what_it_is(void **state) {
        uint64_t cid;
        FrontEnd g;

        begin(&g);
        fe_get_config(f, &cid, sizeof(cid));
        assert_int_equal(cid, CID);
        assert_int_equal(fe_get_u64(f, VHOST_USER_GET_QUEUE_NUM), N_QUEUES);
        assert_non_null(strstr(describe(), "\"type\":\"vsock\""));
        fe_end(f);
}

static int set_up(void **state) {
        make_names();
        return 0;
}

static int tear_down(void **state) {
        char command[128];

        (void) snprintf(command, sizeof(command), "rm -rf %s", directory);
        return system(command);
}

int main(void) {
        static const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_packet),
                cmocka_unit_test(refuses_a_packet_shorter_than_it_says),
                cmocka_unit_test(refuses_a_packet_that_is_to_be_written),
                cmocka_unit_test(refuses_buffers_without_room_for_a_packet),
                cmocka_unit_test(refuses_connections_to_nobody),
                cmocka_unit_test(ignores_who_says_to_be_somebody_else),
                cmocka_unit_test(refuses_wrong_greetings),
                cmocka_unit_test(a_connection_ends_with_too_much_data),
                cmocka_unit_test(what_makes_no_sense_ends_its_connection_only),
                cmocka_unit_test(lies_about_credit_lead_to_nothing),
                cmocka_unit_test(connections_are_limited),
                cmocka_unit_test(refusals_wait_for_buffers),
                cmocka_unit_test(patience_ends),
                cmocka_unit_test(notifications_are_hostile),
                cmocka_unit_test(no_port_of_notifications_without_it),
                cmocka_unit_test(refuses_messages_of_a_driver_that_knows_none),
                cmocka_unit_test(refuses_connections_of_the_other_type),
                cmocka_unit_test(refuses_wrong_greetings_in_messages),
                cmocka_unit_test(a_message_longer_than_the_window_ends_its_connection),
                cmocka_unit_test(a_message_longer_than_the_guest_takes_ends_its_connection),
                cmocka_unit_test(messages_of_the_guest_keep_their_bounds),
                cmocka_unit_test(messages_of_the_host_keep_their_bounds),
                cmocka_unit_test(a_message_waits_for_room_in_the_guest),
                cmocka_unit_test(the_guest_is_told_of_room_for_the_rest_of_a_message),
                cmocka_unit_test(messages_are_kept_for_a_host_that_does_not_read),
                cmocka_unit_test(a_reset_forgets_a_message_that_is_under_way),
                cmocka_unit_test(notifications_may_be_messages),
                cmocka_unit_test(says_what_it_is),
                cmocka_unit_test(a_broken_device_begins_anew_after_a_reset),
                cmocka_unit_test(the_guest_is_sent_what_it_has_room_for),
                cmocka_unit_test(credit_is_told_when_asked_for),
                cmocka_unit_test(both_sides_talk),
                cmocka_unit_test(packets_in_pieces_are_packets),
                cmocka_unit_test(a_client_of_the_host_connects),
                cmocka_unit_test(a_greeting_may_come_in_pieces_and_with_more_behind_it),
                cmocka_unit_test(a_client_whom_the_guest_refuses_is_let_go),
                cmocka_unit_test(a_client_who_gives_up_is_reported),
                cmocka_unit_test(each_direction_ends_by_itself),
                cmocka_unit_test(a_guest_that_does_not_receive_stops_the_host),
                cmocka_unit_test(a_host_that_does_not_read_stops_the_guest),
                cmocka_unit_test(nothing_is_lost_at_the_guests_end),
                cmocka_unit_test(the_guests_reset_ends_the_hosts_socket),
                cmocka_unit_test(a_pause_loses_nothing),
                cmocka_unit_test(a_reset_of_the_driver_ends_all_connections),
                cmocka_unit_test(nobody_waits_for_ever_for_a_driver),
                cmocka_unit_test(a_successor_keeps_the_socket_and_tells_the_guest),
                cmocka_unit_test(the_guests_own_requests_are_answered_after_its_reset),
                cmocka_unit_test(a_second_successor_waits_for_what_the_first_one_told),
                cmocka_unit_test(a_reset_of_the_driver_settles_everything),
                cmocka_unit_test(a_front_end_may_keep_the_events_to_itself),
                cmocka_unit_test(much_goes_both_ways),
                cmocka_unit_test(the_guest_tells_what_it_does),
                cmocka_unit_test(subscribers_are_told),
                cmocka_unit_test(what_a_guest_says_is_not_told_twice),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
