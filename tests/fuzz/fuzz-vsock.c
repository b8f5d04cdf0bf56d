/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Packets of a guest, one after the other, to the vsock device without its rings; in between the host's program accepts, reads, writes and hangs up. The
 * input is a list of packets in short: what is rarely interesting of a header (that the ports and counters are among a few) is taken as given. */

#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "frame.h"
#include "options.h"
#include "passed.h"
#include "sockets.h"
#include "vsock.h"

#define PORT 7
#define PORT_OF_MESSAGES 9
#define HOSTS 4
#define BYTES_PER_STEP 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);      \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

static Device *device;
static sd_event *event;
static int listener = -EBADF, listener_for_messages = -EBADF, hosts[HOSTS] = { -EBADF, -EBADF, -EBADF, -EBADF };
static char directory[] = "/tmp/fuzz-vsock-XXXXXX", path[64], path_for_messages[80], port_path[80], port_path_of_messages[80];

static void clean_up(void) {
        (void) unlink(path);
        (void) unlink(path_for_messages);
        (void) unlink(port_path);
        (void) unlink(port_path_of_messages);
        (void) rmdir(directory);
}

static void open_device(void) {
        static PassedFds passed;
        DeviceOptions *options;

        must(mkdtemp(directory));
        (void) snprintf(path, sizeof(path), "%s/sock", directory);
        (void) snprintf(path_for_messages, sizeof(path_for_messages), "%s" VSOCK_MESSAGES_SUFFIX, path);
        (void) snprintf(port_path, sizeof(port_path), "%s_%d", path, PORT);
        (void) snprintf(port_path_of_messages, sizeof(port_path_of_messages), "%s_%d", path, PORT_OF_MESSAGES);
        must(atexit(clean_up) == 0);
        log_set_max_level(LOG_CRIT);
        must(sd_event_new(&event) >= 0);
        must(device_options_new(device_type_find("vsock"), &options) >= 0);
        must(device_new(&vsock_device, device_type_find("vsock"), event, options, &passed, &device) >= 0);
        must(vsock_device.listen(device, socket_listen(path)) >= 0);
        must(vsock_device.listen(device, socket_listen_packets(path_for_messages)) >= 0);
        listener = socket_listen(port_path);
        listener_for_messages = socket_listen_packets(port_path_of_messages);
        must(listener >= 0 && listener_for_messages >= 0);
        ((Vsock *) device_data(device))->messages = true; /* as negotiated */
}

static void run(void) {
        for (unsigned i = 0; i < 16 && sd_event_run(event, 0) > 0; i++)
                ;
}

static int connect_for_messages(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

        must(fd >= 0);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path_for_messages);
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                fd = safe_close(fd);
        return fd;
}

/* The guest has room: the host's next message is taken, in lieu of a guest's buffers dropped. */
static void take_messages(Vsock *v) {
        for (VsockConnection *c = v->connections, *next; c; c = next) {
                next = c->next;
                if (c->type != VIRTIO_VSOCK_TYPE_SEQPACKET || c->state != VSOCK_ESTABLISHED || !c->readable || c->fd < 0)
                        continue;
                if (vsock_message_may_be_taken(c))
                        vsock_message_take(c);
                must(!v->message.connection || v->message.length <= VSOCK_MESSAGE_MAX);
                v->message.connection = NULL;
        }
}

/* The host's part of a step. */
static void act(unsigned what, unsigned which) {
        static const char text[300] = "CONNECT 5\nand more";
        char sink[4096];
        int *host = &hosts[which % HOSTS];

        switch (what % 8) {

        case 0:
                if (*host < 0)
                        *host = accept4(which & 4 ? listener_for_messages : listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                break;

        case 1:
                if (*host < 0)
                        *host = which & 4 ? connect_for_messages() : connect_unix(path);
                break;

        case 2:
                (void) send(*host, text, which, MSG_NOSIGNAL | MSG_DONTWAIT);
                break;

        case 3:
                while (recv(*host, sink, sizeof(sink), MSG_DONTWAIT) > 0)
                        ;
                break;

        case 4:
                (void) shutdown(*host, which % 2 ? SHUT_WR : SHUT_RD);
                break;

        case 5:
                *host = safe_close(*host);
                break;

        case 6:
                run();
                take_messages(device_data(device));
                break;

        default:
                return;
        }
        run();
}

/* Byte by byte: operation, ports, flags and addresses, length (2), credit (2). */
static void guest_sends(Vsock *v, const uint8_t *step) {
        static uint8_t packet[sizeof(struct virtio_vsock_hdr) + 65535];
        struct virtio_vsock_hdr *h = (void *) packet;
        uint16_t length = load_le16(step + 4), credit = load_le16(step + 6);
        static const uint32_t ports[] = { PORT, VSOCK_NOTIFY_PORT, PORT_OF_MESSAGES, (UINT32_C(1) << 30) + 1 };
        struct iovec iov[] = { { packet, sizeof(*h) }, { packet + sizeof(*h), length } };
        VirtqueueChain chain = { .readable = iov_cursor(iov, length > 0 ? 2 : 1), .n_readable = length > 0 ? 2 : 1 };
        const char *rule = NULL;
        VsockPacket parsed;

        *h = (struct virtio_vsock_hdr) {
                .src_cid = step[3] & 0x80 ? 4 : 3,
                .dst_cid = step[3] & 0x40 ? 4 : 2,
                .src_port = step[1] & 3 ? 1000 + (step[1] & 3) : 5,
                .dst_port = step[1] & 0x10 ? v->last_port : ports[(step[1] >> 2) & 3],
                .len = step[3] & 0x20 ? UINT32_C(65536) * length : length,
                .type = step[3] & 0x10 ? 2 : 1,
                .op = step[0],
                .flags = step[2],
                .buf_alloc = step[3] & 8 ? UINT32_MAX : credit,
                .fwd_cnt = step[3] & 4 ? UINT32_MAX - credit : credit,
        };
        if (vsock_packet_parse(&chain, &parsed, &rule) >= 0)
                vsock_take_packet(v, &parsed);
        else
                must(rule);
        /* Nobody takes the answers. */
        if (v->n_resets >= VSOCK_RESETS_FULL)
                v->n_resets = 0;
}

static void check(const Vsock *v) {
        unsigned n_guest = 0, n_host = 0;

        for (const VsockConnection *c = v->connections; c; c = c->next) {
                *(c->by_guest ? &n_guest : &n_host) += 1;
                must(c->backlog_used <= c->buf_alloc && c->partial <= c->backlog_used);
                must(c->buf_alloc % 8 == 0 && (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET || c->partial == 0));
                must(c->notice || c->fd < 0 || c->host_deaf || c->received - c->forwarded == c->backlog_used);
                must(!c->hashed || vsock_connection_find(device_data(device), c->guest_port, c->host_port));
        }
        must(n_guest == v->n_guest && n_host == v->n_host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        Vsock *v;

        if (!device)
                open_device();
        v = device_data(device);
        for (; size >= BYTES_PER_STEP; data += BYTES_PER_STEP, size -= BYTES_PER_STEP) {
                if (data[0] >= 0x80)
                        act(data[0], data[1]);
                else
                        guest_sends(v, data);
                check(v);
        }
        for (unsigned i = 0; i < HOSTS; i++)
                hosts[i] = safe_close(hosts[i]);
        run();
        vsock_device.reset(device);
        while (v->connections)
                (void) vsock_connection_free(v->connections);
        for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0 ||
                (fd = accept4(listener_for_messages, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0;)
                (void) close(fd);
        return 0;
}
