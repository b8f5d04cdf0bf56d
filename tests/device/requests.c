/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_balloon.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_console.h>
#include <linux/virtio_input.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pmem.h>
#include <linux/virtio_vsock.h>

#include "front-end.h"
#include "requests.h"

#define READS(data) { sizeof(data), false, &(data) }
#define WRITES(n) { (n), true, NULL }

/* Entropy: a buffer. */

static const Request rng_requests[] = {
        { "random numbers", 0, { WRITES(64) } },
        {},
};

/* Disk: header, data, status. */

static const struct virtio_blk_outhdr blk_in = { VIRTIO_BLK_T_IN, 0, 8 }, blk_out = { VIRTIO_BLK_T_OUT, 0, 16 },
                                      blk_flush = { VIRTIO_BLK_T_FLUSH, 0, 0 }, blk_id = { VIRTIO_BLK_T_GET_ID, 0, 0 },
                                      blk_discard = { VIRTIO_BLK_T_DISCARD, 0, 0 },
                                      blk_zeroes = { VIRTIO_BLK_T_WRITE_ZEROES, 0, 0 };
static const struct virtio_blk_discard_write_zeroes blk_ranges[] = { { 64, 8, 0 }, { 128, 16, 0 } };
static const uint8_t blk_data[4096] = { 0xd1, 0x5c };

static const Request block_requests[] = {
        { "a read", 0, { READS(blk_in), WRITES(4096), WRITES(1) }, .answers = true },
        { "a read on another queue", 1, { READS(blk_in), WRITES(512), WRITES(513) }, .answers = true },
        { "a write", 0, { READS(blk_out), READS(blk_data), WRITES(1) }, .answers = true },
        { "a flush", 0, { READS(blk_flush), WRITES(1) }, .answers = true },
        { "an identification", 0, { READS(blk_id), WRITES(20), WRITES(1) }, .answers = true },
        { "a discard", 0, { READS(blk_discard), READS(blk_ranges), WRITES(1) }, .answers = true },
        { "zeroes", 1, { READS(blk_zeroes), READS(blk_ranges), WRITES(1) }, .answers = true },
        {},
};

/* Console */

static const uint8_t console_text[] = "what a guest says\r\n";

static const Request console_requests[] = {
        { "output", 1, { READS(console_text) } },
        { "output in pieces", 1, { READS(console_text), READS(console_text), READS(console_text) } },
        { "room for input", 0, { WRITES(64) }, .waits = true },
        {},
};

/* The same with a named port: control messages, and a pair of queues more. */

static const struct virtio_console_control console_ready = { 0, VIRTIO_CONSOLE_DEVICE_READY, 1 },
                                           console_port_ready = { 1, VIRTIO_CONSOLE_PORT_READY, 1 },
                                           console_open_first = { 0, VIRTIO_CONSOLE_PORT_OPEN, 1 },
                                           console_open_second = { 1, VIRTIO_CONSOLE_PORT_OPEN, 1 };

static const Request console_ports_requests[] = {
        { "a driver that is ready", 3, { READS(console_ready) } },
        { "a port that is ready", 3, { READS(console_port_ready) } },
        { "a port that is opened", 3, { READS(console_open_first) } },
        { "a named port that is opened", 3, { READS(console_open_second) } },
        { "room for a message", 2, { WRITES(64) }, .before = &console_ports_requests[0], .waits = true },
        { "output of the first port", 1, { READS(console_text) } },
        { "output of a named port", 5, { READS(console_text) } },
        { "room for input of the first port", 0, { WRITES(64) }, .before = &console_ports_requests[2], .waits = true },
        { "room for input of a named port", 4, { WRITES(64) }, .before = &console_ports_requests[3], .waits = true },
        {},
};

/* Persistent memory: flushes. Of four bytes each; the answer's first is as good as the last. */

static const struct virtio_pmem_req pmem_flush = { VIRTIO_PMEM_REQ_TYPE_FLUSH };

static const Request pmem_requests[] = {
        { "a flush", 0, { READS(pmem_flush), WRITES(4) }, .answers = true },
        {},
};

/* Balloon: lists of pages, statistics, command numbers with pages, pages, reports, operations. */

#define PAGE_NUMBER(offset) ((uint32_t) (FE_ADDRESS(offset) >> VIRTIO_BALLOON_PFN_SHIFT))
static const uint32_t balloon_pages[] = { PAGE_NUMBER(MIB(11)), PAGE_NUMBER(MIB(11)) + 1, PAGE_NUMBER(MIB(12)), PAGE_NUMBER(MIB(11)) + 2 };
static const struct virtio_balloon_stat balloon_statistics[] = { { VIRTIO_BALLOON_S_MEMFREE, 1 << 20 }, { VIRTIO_BALLOON_S_MEMTOT, 1 << 24 } };
static const uint32_t balloon_command = 2;
static const uint8_t balloon_working_set[2 * 32] = { 1 };

static const Request balloon_requests[] = {
        { "inflation", 0, { READS(balloon_pages) } },
        { "deflation", 1, { READS(balloon_pages) } },
        { "statistics", 2, { READS(balloon_statistics) }, .waits = true },
        { "a hint's number", 3, { READS(balloon_command) } },
        { "a hint's pages", 3, { WRITES(8192), WRITES(4096) } },
        { "a report of free pages", 4, { WRITES(4096), WRITES(16384), WRITES(100) } },
        { "a report of the working set", 5, { READS(balloon_working_set) } },
        { "room for an operation", 6, { WRITES(64) }, .waits = true },
        {},
};

/* Input: room for events, and lights. */

static const struct virtio_input_event input_light = { 0x11 /* EV_LED */, 1 /* LED_CAPSL */, 1 };

static const Request input_requests[] = {
        { "a light", 1, { READS(input_light) } },
        { "a light in two pieces", 1, { { 4, false, &input_light }, { 4, false, &input_light.value } } },
        { "room for an event", 0, { WRITES(8) }, .waits = true },
        { "more room than an event needs", 0, { WRITES(8), WRITES(64) }, .waits = true },
        {},
};

/* Network: packets behind a header, and commands. */

static const struct virtio_net_hdr_v1 net_header = { .num_buffers = 0 };
static const struct virtio_net_hdr_v1 net_header_csum = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
static const uint8_t net_packet[128] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x88, 0xb5, 1, 2, 3 };
static const uint8_t net_promiscuous[] = { VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1 };
static const uint8_t net_table[] = { VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, 1, 0, 0, 0, 0x52, 0x54, 0, 1, 2, 3,
                                     1, 0, 0, 0, 1, 0, 0x5e, 1, 2, 3 };
static const uint8_t net_mac[] = { VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 0x52, 0x54, 0, 0x12, 0x34, 0x56 };
static const uint8_t net_offloads_header[] = { VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET };
static const uint8_t net_offloads[8] = { 0 };

static const Request net_requests[] = {
        { "a packet", 1, { READS(net_header), READS(net_packet) } },
        { "a packet with a checksum to be made", 1, { READS(net_header_csum), READS(net_packet), READS(net_packet) } },
        { "room for a packet", 0, { WRITES(12), WRITES(2048) }, .waits = true },
        { "a mode of reception", 2, { READS(net_promiscuous), WRITES(1) }, .answers = true },
        { "a table of addresses", 2, { READS(net_table), WRITES(1) }, .answers = true },
        { "an address", 2, { READS(net_mac), WRITES(1) }, .answers = true },
        { "offloads", 2, { READS(net_offloads_header), READS(net_offloads), WRITES(1) }, .answers = true },
        {},
};

/* Sockets: packets. There is somebody at port 1234 of the host, and nobody at 1235. The queue of events is used after a restart only. */

#define VSOCK_HEADER(host_port, size, operation) { .src_cid = 3, .dst_cid = 2, .src_port = 7, .dst_port = (host_port), .len = (size),   \
                .type = VIRTIO_VSOCK_TYPE_STREAM, .op = VIRTIO_VSOCK_OP_##operation, .buf_alloc = 65536 }
static const struct virtio_vsock_hdr vsock_request = VSOCK_HEADER(1234, 0, REQUEST), vsock_to_nobody = VSOCK_HEADER(1235, 0, REQUEST),
                                     vsock_data = VSOCK_HEADER(1234, 128, RW), vsock_shutdown = VSOCK_HEADER(1234, 0, SHUTDOWN),
                                     vsock_credit = VSOCK_HEADER(1234, 0, CREDIT_REQUEST);
static const uint8_t vsock_payload[128] = "what a guest's program says";

static const Request vsock_requests[] = {
        { "a connection to nobody", 1, { READS(vsock_to_nobody) } },
        { "a connection", 1, { READS(vsock_request) } },
        { "data", 1, { READS(vsock_data), READS(vsock_payload) } },
        { "a question for credit", 1, { READS(vsock_credit) } },
        { "an end", 1, { READS(vsock_shutdown) } },
        { "room for a refusal", 0, { WRITES(44), WRITES(64) }, .before = &vsock_requests[0], .waits = true },
        { "room for data", 0, { WRITES(4096) }, .before = &vsock_requests[1], .waits = true },
        {},
};

const RequestDevice request_devices[] = {
        { "balloon", "balloon", { "--free-page-hinting=yes", "--working-set=yes" }, 7, balloon_requests },
        { "block", "block", { "--queues=2" }, 2, block_requests },
        { "console", "console", { "--history=65536" }, 2, console_requests },
        { "console-ports", "console", { "--history=65536", "--ports=a" }, 6, console_ports_requests },
        { "input", "input", {}, 2, input_requests },
        { "net", "net", { "--mac=52:54:00:12:34:56" }, 3, net_requests },
        { "pmem", "pmem", {}, 1, pmem_requests },
        { "rng", "rng", {}, 1, rng_requests },
        { "vsock", "vsock", {}, 3, vsock_requests },
        {},
};

const RequestDevice *request_device_find(const char *name) {
        for (const RequestDevice *d = request_devices; d->name; d++)
                if (streq(d->name, name))
                        return d;
        return NULL;
}

unsigned request_n_buffers(const Request *r) {
        unsigned n = 0;

        while (n < REQUEST_BUFFERS_MAX && r->buffers[n].length > 0)
                n++;
        return n;
}

bool request_has(const Request *r, bool writable) {
        for (unsigned i = 0; i < request_n_buffers(r); i++)
                if (r->buffers[i].writable == writable)
                        return true;
        return false;
}
