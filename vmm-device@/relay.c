/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "relay.h"

#define PROTOCOL_BIT(n) (UINT64_C(1) << (n))

typedef struct RelaySide {
        Relay *relay;
        int fd;
        sd_event_source *source;
        VhostUserReceiver receiver;
} RelaySide;

struct Relay {
        RelaySide front_end, back_end;
        const RelayAddition *addition;
        RelayHandlers handlers;
        bool answered;
        bool adds_config;  /* the program has no configuration space, and ours was offered in its place */
        uint64_t running;  /* rings, by their number */
        int notify_fd;     /* on which the program, and we, may say something unasked; -EBADF where the front-end wants none of it */
};

static int send_on(RelaySide *to, const VhostUserMsg *msg, const int *fds, size_t n_fds) {
        return vhost_user_send(to->fd, msg, fds, n_fds);
}

static void note_running(Relay *r, uint64_t running) {
        bool was = r->running != 0;

        r->running = running;
        if (was != (running != 0) && r->handlers.changed)
                r->handlers.changed(r->handlers.userdata);
}

static uint64_t ring_bit(uint32_t index) {
        return index < 64 ? UINT64_C(1) << index : 0;
}

/* GET_CONFIG in the program's place: what lies beyond the end is an error, which is a reply without payload. */
static int answer_config(Relay *r, const VhostUserMsg *request) {
        uint32_t offset = request->payload.config.offset, size = request->payload.config.size;
        VhostUserMsg reply = { .header = { .request = VHOST_USER_GET_CONFIG, .flags = VHOST_USER_FLAG_REPLY } };

        if (request->header.size >= VHOST_USER_CONFIG_HEADER_SIZE && range_within(offset, size, VHOST_USER_CONFIG_MAX)) {
                reply.header.size = (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size;
                reply.payload.config.offset = offset;
                reply.payload.config.size = size;
                /* Zeroes behind its end: front-ends ask for the whole structure of their day. */
                memcpy(reply.payload.config.region, r->addition->config + offset, size);
        }
        return send_on(&r->front_end, &reply, NULL, 0);
}

/* The program's configuration space, with ours at its beginning. */
static void cover_config(Relay *r, VhostUserMsg *reply) {
        uint32_t offset = reply->payload.config.offset, size = reply->payload.config.size;

        if (reply->header.size < VHOST_USER_CONFIG_HEADER_SIZE || !range_within(offset, size, VHOST_USER_CONFIG_MAX) ||
                reply->header.size - VHOST_USER_CONFIG_HEADER_SIZE < size || offset >= r->addition->config_size)
                return;
        memcpy(reply->payload.config.region, r->addition->config + offset, MIN(size, r->addition->config_size - offset));
}

void relay_config_changed(Relay *r) {
        const VhostUserHeader header = { .request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, .flags = VHOST_USER_VERSION };

        /* A front-end that does not read this is not waited for: it looks when it likes. */
        if (r->notify_fd >= 0)
                (void) send(r->notify_fd, &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int refuse(Relay *r, const VhostUserMsg *request) {
        VhostUserMsg reply = {
                .header = { .request = request->header.request, .flags = VHOST_USER_FLAG_REPLY, .size = sizeof(uint64_t) },
                .payload.u64 = 1,
        };

        return request->header.flags & VHOST_USER_FLAG_NEED_REPLY ? send_on(&r->front_end, &reply, NULL, 0) : 0;
}

/* The flags' low bits are the version, which is set again on sending. */
static void clean_flags(VhostUserMsg *msg) {
        msg->header.flags &= VHOST_USER_FLAG_REPLY | VHOST_USER_FLAG_NEED_REPLY;
}

static int on_request(Relay *r, VhostUserReceiver *in) {
        VhostUserMsg *msg = &in->msg;

        clean_flags(msg);
        switch (msg->header.request) {

        case VHOST_USER_SET_FEATURES:
                msg->payload.u64 &= ~r->addition->features;
                break;

        case VHOST_USER_SET_PROTOCOL_FEATURES:
                if (r->adds_config)
                        msg->payload.u64 &= ~PROTOCOL_BIT(VHOST_USER_PROTOCOL_F_CONFIG);
                break;

        case VHOST_USER_GET_CONFIG:
                if (r->adds_config)
                        return answer_config(r, msg);
                break;

        case VHOST_USER_SET_CONFIG:
                if (r->adds_config)
                        return refuse(r, msg);
                break;

        case VHOST_USER_SET_VRING_ENABLE:
                note_running(r, msg->payload.state.num ? r->running | ring_bit(msg->payload.state.index) :
                                        r->running & ~ring_bit(msg->payload.state.index));
                break;

        case VHOST_USER_SET_BACKEND_REQ_FD:
                (void) safe_close(r->notify_fd);
                r->notify_fd = in->n_fds > 0 ? fcntl(in->fds[0], F_DUPFD_CLOEXEC, 0) : -EBADF;
                break;

        case VHOST_USER_GET_VRING_BASE:
                note_running(r, r->running & ~ring_bit(msg->payload.state.index));
                break;

        default:
                break;
        }
        return send_on(&r->back_end, msg, in->fds, in->n_fds);
}

static int on_reply(Relay *r, VhostUserReceiver *in) {
        VhostUserMsg *msg = &in->msg;

        if (!r->answered) {
                r->answered = true;
                r->handlers.answered(r->handlers.userdata);
        }
        clean_flags(msg);
        if (msg->header.request == VHOST_USER_GET_FEATURES && msg->header.size == sizeof(uint64_t))
                msg->payload.u64 |= r->addition->features;
        if (msg->header.request == VHOST_USER_GET_PROTOCOL_FEATURES && msg->header.size == sizeof(uint64_t) &&
                r->addition->config_size > 0) {
                r->adds_config = !(msg->payload.u64 & PROTOCOL_BIT(VHOST_USER_PROTOCOL_F_CONFIG));
                msg->payload.u64 |= PROTOCOL_BIT(VHOST_USER_PROTOCOL_F_CONFIG);
        }
        if (msg->header.request == VHOST_USER_GET_CONFIG)
                cover_config(r, msg);
        return send_on(&r->front_end, msg, in->fds, in->n_fds);
}

/* Takes one message. What cannot be passed on ends the connection, of whichever side's making that is: nobody would know any more whose turn it is. */
static int on_message(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        RelaySide *side = userdata;
        Relay *r = side->relay;
        bool is_front_end = side == &r->front_end;
        int k;

        k = vhost_user_receiver_step(&side->receiver, fd);
        if (k > 0) {
                k = is_front_end ? on_request(r, &side->receiver) : on_reply(r, &side->receiver);
                vhost_user_receiver_done(&side->receiver);
                /* It failed at the other side. */
                if (k < 0)
                        is_front_end = !is_front_end;
        }
        if (k == 0 || k == -EINTR)
                return 0;
        if (k < 0) {
                log_debug_errno(k, "The %s's connection ended: %m", is_front_end ? "front-end" : "program");
                r->handlers.ended(is_front_end ? RELAY_FRONT_END_LEFT : RELAY_BACK_END_LEFT, r->handlers.userdata);
        }
        return 0;
}

static int watch(Relay *r, RelaySide *side, sd_event *event) {
        int flags = fcntl(side->fd, F_GETFL);

        if (flags < 0 || fcntl(side->fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        return sd_event_add_io(event, &side->source, side->fd, EPOLLIN, on_message, side);
}

int relay_new(sd_event *event, int front_end, int back_end, const RelayAddition *addition, const RelayHandlers *handlers, Relay **ret) {
        _cleanup_(relay_freep) Relay *r = calloc(1, sizeof(Relay));
        int k;

        if (!r) {
                (void) safe_close(front_end);
                (void) safe_close(back_end);
                return -ENOMEM;
        }
        r->front_end = (RelaySide) { .relay = r, .fd = front_end };
        r->back_end = (RelaySide) { .relay = r, .fd = back_end };
        r->notify_fd = -EBADF;
        r->addition = addition;
        r->handlers = *handlers;
        k = watch(r, &r->front_end, event);
        if (k >= 0)
                k = watch(r, &r->back_end, event);
        if (k < 0)
                return k;
        *ret = TAKE_PTR(r);
        return 0;
}

static void side_done(RelaySide *side) {
        side->source = sd_event_source_disable_unref(side->source);
        vhost_user_receiver_done(&side->receiver);
        side->fd = safe_close(side->fd);
}

Relay *relay_free(Relay *r) {
        if (!r)
                return NULL;
        side_done(&r->front_end);
        side_done(&r->back_end);
        (void) safe_close(r->notify_fd);
        return mfree(r);
}

bool relay_is_running(const Relay *r) {
        return r->running != 0;
}
