/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* From the guest: what each packet means (virtio 1.2 §5.10.6). Nothing is waited for: what a socket cannot take is kept within the window that
 * the guest was told, and what goes beyond that ends the connection. */

#include "vsock.h"

/* Packets before others of the event loop have their turn. */
#define TURN_MAX 128U

static void refuse(Vsock *v, const VsockPacket *p) {
        if (p->operation != VIRTIO_VSOCK_OP_RST)
                vsock_refuse(v, p->dst_cid, p->src_port, p->dst_port, p->type);
}

/* The rules were broken within one connection: only that one suffers. */
static void violated(VsockConnection *c, const char *rule) {
        Vsock *v = c->vsock;

        v->n_violations++;
        if (log_ratelimit(&v->complaints, NULL))
                log_warning("Connection of the guest's port %u with the host's port %u reset: %s.", c->guest_port, c->host_port, rule);
        vsock_connection_reset(c);
}

/* ---- one operation each ---- */

static void on_request(Vsock *v, const VsockPacket *p) {
        bool notify = v->notify && p->dst_port == VSOCK_NOTIFY_PORT;
        VsockConnection *c = NULL;
        int fd = -EBADF;

        if (!notify)
                fd = vsock_socket_connect(v, p->dst_port, p->type);
        if (notify || fd >= 0)
                c = vsock_connection_new(v, true, p->type, fd);
        if (c && (notify ? vsock_notice_new(c) : vsock_socket_watch(c)) < 0)
                c = vsock_connection_free(c);
        if (!c) {
                log_debug("The guest's connection to port %u was refused.", p->dst_port);
                refuse(v, p);
                return;
        }
        v->n_by_guest++;
        vsock_connection_name(c, p->src_port, p->dst_port);
        vsock_connection_take_credit(c, p->buf_alloc, p->fwd_cnt);
        c->say = VSOCK_SAY_RESPONSE;
        vsock_connection_work(c);
}

static void on_response(VsockConnection *c) {
        if (c->state != VSOCK_REQUESTING || c->say & VSOCK_SAY_REQUEST)
                violated(c, "a response that nobody had asked for");
        else
                vsock_socket_accepted(c);
}

static void on_shutdown(VsockConnection *c, uint32_t flags) {
        const uint32_t both = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

        c->guest_shutdown |= flags & both;
        if (c->notice && c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) {
                vsock_notice_end(c);
                c->guest_shutdown = both; /* there is no answer to wait for */
        }
        if (c->guest_shutdown != both) {
                vsock_socket_shut_down(c);
                return;
        }
        /* "…the peer […] replies with VIRTIO_VSOCK_OP_RST": its ports are free again, whatever the socket does with the rest. */
        vsock_refuse(c->vsock, VSOCK_CID_HOST, c->guest_port, c->host_port, c->type);
        vsock_connection_drain(c);
}

static bool is_end(const VsockConnection *c, const VsockPacket *p) {
        return c->type == VIRTIO_VSOCK_TYPE_SEQPACKET && p->flags & VIRTIO_VSOCK_SEQ_EOM;
}

/* Its end would never come: there is no credit for it. */
static bool is_too_long(const VsockConnection *c, const VsockPacket *p) {
        return c->type == VIRTIO_VSOCK_TYPE_SEQPACKET && !is_end(c, p) && !c->notice && p->length >= c->buf_alloc - c->partial;
}

static void on_data(VsockConnection *c, VsockPacket *p) {
        if (c->state != VSOCK_ESTABLISHED && c->state != VSOCK_LEAVING) {
                violated(c, "data before the connection was made");
                return;
        }
        if (c->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) {
                violated(c, "data after the end");
                return;
        }
        if (p->length > c->buf_alloc - (c->received - c->forwarded)) {
                violated(c, "more data than there was credit for");
                return;
        }
        if (is_too_long(c, p)) {
                violated(c, "a message longer than it may be");
                return;
        }
        c->received += p->length;
        c->vsock->bytes_received += p->length;
        if (c->notice)
                vsock_notice_take(c, &p->payload, is_end(c, p));
        else if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET)
                (void) vsock_message_write(c, &p->payload, is_end(c, p));
        else
                (void) vsock_socket_write(c, &p->payload);
}

static void on_credit_request(VsockConnection *c) {
        c->say |= VSOCK_SAY_CREDIT;
        vsock_connection_work(c);
}

/* ---- all packets ---- */

static void take_for(VsockConnection *c, VsockPacket *p) {
        if (c->type != p->type) {
                violated(c, "a packet of another type");
                return;
        }
        vsock_connection_take_credit(c, p->buf_alloc, p->fwd_cnt);
        switch (p->operation) {

        case VIRTIO_VSOCK_OP_RESPONSE:
                on_response(c);
                break;

        case VIRTIO_VSOCK_OP_RST:
                if (c->notice)
                        vsock_notice_end(c);
                (void) vsock_connection_free(c);
                break;

        case VIRTIO_VSOCK_OP_SHUTDOWN:
                on_shutdown(c, p->flags);
                break;

        case VIRTIO_VSOCK_OP_RW:
                on_data(c, p);
                break;

        case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
                break;

        case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
                on_credit_request(c);
                break;

        default: /* also a request for ports that are in use */
                violated(c, "an operation that makes no sense now");
                break;
        }
}

static bool is_known_type(const Vsock *v, uint16_t type) {
        return type == VIRTIO_VSOCK_TYPE_STREAM || (type == VIRTIO_VSOCK_TYPE_SEQPACKET && v->messages);
}

void vsock_take_packet(Vsock *v, VsockPacket *p) {
        VsockConnection *c;

        v->packets_received++;
        /* §5.10.6.4: only what is addressed correctly. Who says to be somebody else gets no answer, since there is nobody to give it to. */
        if (p->src_cid != v->cid)
                return;
        if (p->dst_cid != VSOCK_CID_HOST || !is_known_type(v, p->type)) {
                refuse(v, p);
                return;
        }
        c = vsock_connection_find(v, p->src_port, p->dst_port);
        if (c)
                take_for(c, p);
        else if (p->operation == VIRTIO_VSOCK_OP_REQUEST)
                on_request(v, p);
        else
                refuse(v, p);
}

int vsock_from_guest(Vsock *v) {
        Virtqueue *q = device_queue(v->device, VSOCK_QUEUE_TRANSMIT);
        unsigned n = 0;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (n < TURN_MAX && v->n_resets < VSOCK_RESETS_FULL && (r = virtqueue_pop(q, &v->chain)) > 0) {
                        const char *rule = NULL;
                        VsockPacket packet;

                        r = vsock_packet_parse(&v->chain, &packet, &rule);
                        if (r < 0) {
                                device_broken(v->device, "%s", rule);
                                break;
                        }
                        vsock_take_packet(v, &packet);
                        virtqueue_push(q, &v->chain, 0);
                        n++;
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                vsock_to_guest(v);
                if (v->n_resets >= VSOCK_RESETS_FULL) {
                        /* The guest gives no buffers for what it ought to know: it waits as we do. */
                        v->transmit_waits = true;
                        return 0;
                }
                if (n >= TURN_MAX)
                        return 1;
        } while (virtqueue_want_kicks(q));
        return 0;
}
