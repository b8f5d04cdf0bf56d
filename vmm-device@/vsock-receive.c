/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* To the guest. Connections with something for it take turns. One read from a socket fills as many of the guest's buffers as it has bytes for: each
 * becomes a packet, and the guest is told of all of them at once. */

#include <sys/socket.h>

#include "vsock.h"

/* Packets before others of the event loop have their turn, */
#define TURN_MAX 256U
/* and before the guest is told of them. */
#define BATCH_MAX 32U
/* Less than this is not worth a packet while more is under way. */
#define CREDIT_LITTLE 1024U

enum { DONE, STARVED };

static VirtqueueChain *held_at(Vsock *v, unsigned i) {
        return &v->held[(v->first_held + i) % VSOCK_HELD_MAX];
}

/* Takes buffers of the guest's until `wanted` are at hand. Returns how many are, or what breaks the device. */
static int hold(Vsock *v, Virtqueue *q, unsigned wanted) {
        while (v->n_held < wanted) {
                VirtqueueChain *chain = held_at(v, v->n_held);
                int r;

                r = virtqueue_pop(q, chain);
                if (r < 0)
                        return r;
                if (r == 0)
                        break;
                v->n_held++; /* also if it is refused now: what was taken must be known */
                if (chain->n_readable > 0 || chain->writable.left <= VSOCK_HEADER_SIZE) {
                        device_broken(v->device, "a receive buffer is not for writing, or has no room for a packet");
                        return -EBADMSG;
                }
        }
        return (int) v->n_held;
}

static void push(Vsock *v, Virtqueue *q, const VsockPacket *packet) {
        VirtqueueChain *chain = held_at(v, 0);

        vsock_packet_write(packet, chain->writable);
        virtqueue_push(q, chain, VSOCK_HEADER_SIZE + packet->length);
        v->first_held = (v->first_held + 1) % VSOCK_HELD_MAX;
        v->n_held--;
        v->packets_sent++;
}

static VsockPacket packet_of(VsockConnection *c, uint16_t operation) {
        c->told_forwarded = c->forwarded;
        c->say &= ~(unsigned) VSOCK_SAY_CREDIT; /* every packet does */
        return (VsockPacket) {
                .src_cid = VSOCK_CID_HOST,
                .dst_cid = c->vsock->cid,
                .src_port = c->host_port,
                .dst_port = c->guest_port,
                .type = c->type,
                .operation = operation,
                .buf_alloc = c->buf_alloc,
                .fwd_cnt = c->forwarded,
        };
}

static void push_reset(Vsock *v, Virtqueue *q) {
        const VsockReset *reset = &v->resets[v->first_reset];
        const VsockPacket packet = {
                .src_cid = reset->host_cid,
                .dst_cid = v->cid,
                .src_port = reset->host_port,
                .dst_port = reset->guest_port,
                .type = reset->type,
                .operation = VIRTIO_VSOCK_OP_RST,
        };

        v->first_reset = (v->first_reset + 1) % VSOCK_RESETS_MAX;
        v->n_resets--;
        push(v, q, &packet);
        v->n_refused++;
}

/* The next thing to say that is no data; false where there is none. */
static bool push_word(VsockConnection *c, Virtqueue *q) {
        static const struct {
                unsigned say;
                uint16_t operation;
        } words[] = {
                { VSOCK_SAY_REQUEST, VIRTIO_VSOCK_OP_REQUEST },
                { VSOCK_SAY_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE },
                { VSOCK_SAY_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE },
                { VSOCK_ASK_CREDIT, VIRTIO_VSOCK_OP_CREDIT_REQUEST },
                { VSOCK_SAY_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN },
        };

        for (size_t i = 0; i < ELEMENTSOF(words); i++)
                if (c->say & words[i].say) {
                        VsockPacket packet = packet_of(c, words[i].operation);

                        c->say &= ~words[i].say;
                        if (words[i].say == VSOCK_SAY_SHUTDOWN)
                                packet.flags = c->our_shutdown;
                        push(c->vsock, q, &packet);
                        return true;
                }
        return false;
}

/* Whether there may be data for the guest, and it may have them. */
static bool may_read(VsockConnection *c) {
        uint32_t credit = vsock_connection_credit(c);

        if (c->state != VSOCK_ESTABLISHED || !c->readable || c->fd < 0)
                return false;
        if (c->type == VIRTIO_VSOCK_TYPE_SEQPACKET ? vsock_message_may_be_taken(c) :
                credit >= CREDIT_LITTLE || (credit > 0 && c->sent == c->peer_forwarded))
                return true;
        if (!c->asked_credit) {
                c->asked_credit = true;
                c->asked_at = credit;
                c->say |= VSOCK_ASK_CREDIT;
        }
        return false;
}

/* Cuts what was read into packets, one for each buffer. */
static void push_data(VsockConnection *c, Virtqueue *q, uint32_t n) {
        Vsock *v = c->vsock;

        c->sent += n;
        v->bytes_sent += n;
        while (n > 0) {
                VsockPacket packet = packet_of(c, VIRTIO_VSOCK_OP_RW);

                packet.length = (uint32_t) MIN((uint64_t) n, held_at(v, 0)->writable.left - VSOCK_HEADER_SIZE);
                push(v, q, &packet);
                n -= packet.length;
        }
}

/* Describes what is behind the headers of the first buffers, at most `credit` bytes in all. */
static size_t map_buffers(Vsock *v, unsigned n, uint32_t credit, struct iovec *iov) {
        size_t n_iov = 0;
        uint64_t room = 0;

        for (unsigned i = 0; i < n && room < credit && n_iov < VSOCK_IOV_MAX; i++) {
                IovCursor payload = held_at(v, i)->writable;
                uint64_t length;
                size_t k;

                (void) iov_cursor_skip(&payload, VSOCK_HEADER_SIZE);
                length = MIN(payload.left, credit - room);
                room += iov_cursor_map(&payload, length, iov + n_iov, VSOCK_IOV_MAX - n_iov, &k);
                n_iov += k;
        }
        return n_iov;
}

static int send_data(VsockConnection *c, Virtqueue *q) {
        struct iovec iov[VSOCK_IOV_MAX];
        struct msghdr message = { .msg_iov = iov };
        Vsock *v = c->vsock;
        unsigned before;
        ssize_t n;
        int r;

        r = hold(v, q, c->window);
        if (r < 0)
                return r;
        if (r == 0)
                return STARVED;
        message.msg_iovlen = map_buffers(v, MIN(c->window, v->n_held), vsock_connection_credit(c), iov);
        do
                n = recvmsg(c->fd, &message, MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EAGAIN)
                c->readable = false;
        else if (n < 0)
                vsock_connection_reset(c);
        else if (n == 0)
                vsock_connection_host_ended(c);
        else {
                before = v->n_held;
                push_data(c, q, (uint32_t) n);
                /* The next read is prepared for about as much, */
                before -= v->n_held;
                c->window = MIN(before >= c->window ? 4 * c->window : before + 1, VSOCK_HELD_MAX);
        }
        return DONE;
}

/* The rest of the message that is on its way. */
static int send_message(Vsock *v, Virtqueue *q) {
        VsockMessage *m = &v->message;
        int r;

        while (m->at < m->length) {
                VsockPacket packet;
                IovCursor room;

                r = hold(v, q, 1);
                if (r <= 0)
                        return r < 0 ? r : STARVED;
                packet = packet_of(m->connection, VIRTIO_VSOCK_OP_RW);
                room = held_at(v, 0)->writable;
                (void) iov_cursor_skip(&room, VSOCK_HEADER_SIZE);
                packet.length = (uint32_t) MIN((uint64_t) (m->length - m->at), room.left);
                (void) iov_cursor_write(&room, m->data + m->at, packet.length);
                m->at += packet.length;
                packet.flags = m->at == m->length ? VIRTIO_VSOCK_SEQ_EOM : 0;
                push(v, q, &packet);
        }
        m->connection = NULL;
        return DONE;
}

/* One step for the connection whose turn it is. */
static int serve(VsockConnection *c, Virtqueue *q) {
        Vsock *v = c->vsock;
        int r;

        vsock_connection_rest(c);
        if (v->settling && c->say & (VSOCK_SAY_REQUEST | VSOCK_SAY_RESPONSE))
                return DONE; /* it will be found when that is over */
        /* It goes to the end of the line; whatever turns up meanwhile finds it there. */
        vsock_connection_work(c);
        if (may_read(c) && c->say == 0) {
                if (c->type == VIRTIO_VSOCK_TYPE_STREAM)
                        return send_data(c, q);
                vsock_message_take(c);
                return DONE;
        }
        if (c->say == 0) {
                vsock_connection_rest(c);
                return DONE;
        }
        r = hold(v, q, 1);
        if (r < 0)
                return r;
        if (r == 0)
                return STARVED;
        (void) push_word(c, q);
        return DONE;
}

static int step(Vsock *v, Virtqueue *q) {
        int r;

        if (v->n_resets == 0)
                return v->message.connection ? send_message(v, q) : serve(v->work_first, q);
        r = hold(v, q, 1);
        if (r <= 0)
                return r < 0 ? r : STARVED;
        push_reset(v, q);
        return DONE;
}

static int send_all(Vsock *v, Virtqueue *q) {
        uint64_t begin = v->packets_sent, told = begin;
        unsigned steps = 0;
        int r;

        virtqueue_suppress_kicks(q);
        while (v->n_resets > 0 || v->message.connection || v->work_first) {
                r = step(v, q);
                if (r < 0)
                        return r;
                if (r == STARVED) {
                        virtqueue_notify(q);
                        if (!virtqueue_want_kicks(q))
                                break;
                        virtqueue_suppress_kicks(q);
                }
                if (v->packets_sent - told >= BATCH_MAX) {
                        virtqueue_notify(q);
                        told = v->packets_sent;
                }
                if (v->packets_sent - begin >= TURN_MAX || ++steps >= TURN_MAX) {
                        (void) sd_event_source_set_enabled(v->again, SD_EVENT_ONESHOT);
                        break;
                }
        }
        virtqueue_notify(q);
        return 0;
}

void vsock_to_guest(Vsock *v) {
        Virtqueue *q = device_queue(v->device, VSOCK_QUEUE_RECEIVE);
        int r;

        if (!q || !device_is_running(v->device))
                return;
        r = send_all(v, q);
        if (r < 0) {
                device_broken(v->device, "%s", virtqueue_error(q) ?: "a receive buffer makes no sense");
                return;
        }
        if (v->n_resets >= VSOCK_RESETS_FULL)
                return;
        vsock_listen_update(v);
        if (v->transmit_waits) {
                v->transmit_waits = false;
                (void) sd_event_source_set_enabled(v->again, SD_EVENT_ONESHOT);
        }
}

void vsock_receive_stop(Vsock *v) {
        Virtqueue *q = device_queue(v->device, VSOCK_QUEUE_RECEIVE);

        while (v->n_held > 0)
                virtqueue_unpop(q, held_at(v, --v->n_held));
}
