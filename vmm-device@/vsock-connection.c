/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Connections: which there are, how they end, and the credit of each direction (virtio 1.2 §5.10.6.3). */

#include "vsock.h"

static unsigned hash_of(uint32_t guest_port, uint32_t host_port) {
        uint64_t h = ((uint64_t) guest_port << 32 | host_port) * UINT64_C(0x9E3779B97F4A7C15);

        return (unsigned) (h >> 54) % VSOCK_HASH_SIZE;
}

VsockConnection *vsock_connection_find(Vsock *v, uint32_t guest_port, uint32_t host_port) {
        for (VsockConnection *c = v->hash[hash_of(guest_port, host_port)]; c; c = c->hash_next)
                if (c->guest_port == guest_port && c->host_port == host_port)
                        return c;
        return NULL;
}

void vsock_connection_name(VsockConnection *c, uint32_t guest_port, uint32_t host_port) {
        VsockConnection **slot = &c->vsock->hash[hash_of(guest_port, host_port)];

        c->guest_port = guest_port;
        c->host_port = host_port;
        c->hash_next = *slot;
        *slot = c;
        c->hashed = true;
}

static void forget_name(VsockConnection *c) {
        VsockConnection **p = &c->vsock->hash[hash_of(c->guest_port, c->host_port)];

        if (!c->hashed)
                return;
        while (*p != c)
                p = &(*p)->hash_next;
        *p = c->hash_next;
        c->hashed = false;
}

/* Whatever of a connection can be wanted by the guest is found from here; it does not matter whether it really is. */
void vsock_connection_work(VsockConnection *c) {
        Vsock *v = c->vsock;

        if (c->working || !c->hashed)
                return;
        c->working = true;
        c->work_next = NULL;
        c->work_previous = v->work_last;
        *(v->work_last ? &v->work_last->work_next : &v->work_first) = c;
        v->work_last = c;
}

void vsock_connection_rest(VsockConnection *c) {
        Vsock *v = c->vsock;

        if (!c->working)
                return;
        *(c->work_previous ? &c->work_previous->work_next : &v->work_first) = c->work_next;
        *(c->work_next ? &c->work_next->work_previous : &v->work_last) = c->work_previous;
        c->working = false;
}

VsockConnection *vsock_connection_new(Vsock *v, bool by_guest, uint16_t type, int fd) {
        unsigned *count = by_guest ? &v->n_guest : &v->n_host;
        VsockConnection *c = NULL;

        if (*count < (by_guest ? VSOCK_GUEST_CONNECTIONS_MAX : VSOCK_HOST_CONNECTIONS_MAX))
                c = calloc(1, sizeof(VsockConnection));
        if (!c) {
                (void) safe_close(fd);
                return NULL;
        }
        *c = (VsockConnection) {
                .vsock = v,
                .state = by_guest ? VSOCK_ESTABLISHED : VSOCK_GREETING,
                .by_guest = by_guest,
                .type = type,
                .fd = fd,
                .window_large = v->n_large < VSOCK_LARGE_WINDOWS_MAX,
                .window = 2,
                .next = v->connections,
        };
        c->buf_alloc = c->window_large ? VSOCK_WINDOW_LARGE : VSOCK_WINDOW_SMALL;
        if (type == VIRTIO_VSOCK_TYPE_SEQPACKET && fd >= 0)
                c->buf_alloc = vsock_message_window(fd, MIN(c->buf_alloc, VSOCK_WINDOW_MESSAGES));
        if (v->connections)
                v->connections->previous = c;
        v->connections = c;
        *count += 1;
        v->n_large += c->window_large;
        return c;
}

VsockConnection *vsock_connection_free(VsockConnection *c) {
        Vsock *v;

        if (!c)
                return NULL;
        v = c->vsock;
        vsock_connection_rest(c);
        vsock_message_drop(c);
        forget_name(c);
        *(c->previous ? &c->previous->next : &v->connections) = c->next;
        if (c->next)
                c->next->previous = c->previous;
        *(c->by_guest ? &v->n_guest : &v->n_host) -= 1;
        v->n_large -= c->window_large;
        (void) sd_event_source_disable_unref(c->source);
        (void) safe_close(c->fd);
        free(c->backlog);
        free(c->notice);
        free(c);
        vsock_listen_update(v);
        return NULL;
}

void vsock_refuse(Vsock *v, uint64_t host_cid, uint32_t guest_port, uint32_t host_port, uint16_t type) {
        assert(v->n_resets < VSOCK_RESETS_MAX);
        v->resets[(v->first_reset + v->n_resets++) % VSOCK_RESETS_MAX] =
                (VsockReset) { .host_cid = host_cid, .guest_port = guest_port, .host_port = host_port, .type = type };
}

/* Whether the guest knows of it. */
static bool is_known_to_guest(const VsockConnection *c) {
        return c->hashed && !(c->say & VSOCK_SAY_REQUEST);
}

void vsock_connection_reset(VsockConnection *c) {
        if (is_known_to_guest(c))
                vsock_refuse(c->vsock, VSOCK_CID_HOST, c->guest_port, c->host_port, c->type);
        (void) vsock_connection_free(c);
}

void vsock_connection_drain(VsockConnection *c) {
        /* A message whose end is missing is none. */
        if (c->fd < 0 || c->backlog_used == c->partial || c->host_deaf) {
                (void) vsock_connection_free(c);
                return;
        }
        vsock_connection_rest(c);
        vsock_message_drop(c);
        forget_name(c);
        c->state = VSOCK_DRAINING;
        c->say = 0;
        vsock_connection_set_deadline(c, 0);
}

/* The host's end is gone, and the guest knows all that came from it. It has to say that it has understood. */
static void leave(VsockConnection *c) {
        c->state = VSOCK_LEAVING;
        c->source = sd_event_source_disable_unref(c->source);
        c->fd = safe_close(c->fd);
        c->readable = false;
        c->backlog_used = c->partial = 0;
        vsock_connection_set_deadline(c, now_usec() + VSOCK_TIMEOUT_USEC);
}

void vsock_connection_shut_down(VsockConnection *c, uint32_t flags) {
        const uint32_t both = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

        if ((c->our_shutdown | flags) == c->our_shutdown)
                return;
        c->our_shutdown |= flags;
        c->say |= VSOCK_SAY_SHUTDOWN;
        if (c->our_shutdown == both)
                leave(c);
        vsock_connection_work(c);
}

void vsock_connection_host_ended(VsockConnection *c) {
        c->readable = false;
        c->host_ended = true;
        vsock_connection_shut_down(c,
                VIRTIO_VSOCK_SHUTDOWN_SEND | (c->host_hung_up ? (unsigned) VIRTIO_VSOCK_SHUTDOWN_RCV : 0));
}

/* ---- deadlines ---- */

void vsock_arm(Vsock *v, uint64_t usec) {
        if (v->timer_usec != 0 && v->timer_usec <= usec)
                return;
        v->timer_usec = usec;
        (void) sd_event_source_set_time(v->timer, usec);
        (void) sd_event_source_set_enabled(v->timer, SD_EVENT_ONESHOT);
}

void vsock_connection_set_deadline(VsockConnection *c, uint64_t usec) {
        c->deadline_usec = usec;
        if (usec != 0)
                vsock_arm(c->vsock, usec);
}

/* The timer goes off for the one whose time was over first; where that one has gone meanwhile, for nothing. */
static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Vsock *v = userdata;
        uint64_t now = now_usec(), first;
        VsockConnection *next;

        v->timer_usec = 0;
        first = vsock_event_expire(v, now);
        for (VsockConnection *c = v->connections; c; c = next) {
                next = c->next;
                /* The guest has not been asked yet where it is to settle first. */
                if (c->deadline_usec == 0 || (v->settling && c->say & VSOCK_SAY_REQUEST))
                        continue;
                if (c->deadline_usec <= now)
                        vsock_connection_reset(c);
                else
                        first = MIN(first, c->deadline_usec);
        }
        if (first != UINT64_MAX)
                vsock_arm(v, first);
        vsock_to_guest(v);
        return 0;
}

/* ---- credit ---- */

/* The guest's threads may say their counters in another order than they counted, and it may lie: what it can have forwarded lies between what it said
 * before and what it was sent, and everything else is passed over. */
void vsock_connection_take_credit(VsockConnection *c, uint32_t buf_alloc, uint32_t fwd_cnt) {
        if ((uint32_t) (fwd_cnt - c->peer_forwarded) <= (uint32_t) (c->sent - c->peer_forwarded))
                c->peer_forwarded = fwd_cnt;
        c->peer_buf_alloc = buf_alloc;
        /* One that has no more than before and says so is not asked again for that. */
        if (vsock_connection_credit(c) > c->asked_at)
                c->asked_credit = false;
        if (c->readable)
                vsock_connection_work(c);
}

uint32_t vsock_connection_credit(const VsockConnection *c) {
        uint32_t under_way = c->sent - c->peer_forwarded;

        return under_way < c->peer_buf_alloc ? c->peer_buf_alloc - under_way : 0;
}

/* A guest that has half of it left goes on sending: every packet in between would be one too many. A message that has come in part takes room until the
 * rest has come, for which the guest may need what it was not told of. */
static bool is_worth_telling(const VsockConnection *c) {
        uint32_t news = c->forwarded - c->told_forwarded;

        return news >= c->buf_alloc / 2 || (c->partial > 0 && news > 0 && (uint32_t) (c->received - c->told_forwarded) >= c->buf_alloc / 2);
}

void vsock_connection_forwarded(VsockConnection *c, uint32_t n) {
        c->forwarded += n;
        if (c->hashed && is_worth_telling(c)) {
                c->say |= VSOCK_SAY_CREDIT;
                vsock_connection_work(c);
        }
}

/* ---- all of them ---- */

void vsock_drop_all(Vsock *v) {
        VsockConnection *next;

        for (VsockConnection *c = v->connections; c; c = next) {
                next = c->next;
                if (is_known_to_guest(c))
                        (void) vsock_connection_free(c);
        }
        v->n_resets = 0;
}

int vsock_connections_open(Vsock *v) {
        int r;

        v->last_port = UINT32_C(1) << 30; /* what programs bind to is below */
        r = sd_event_add_time(device_event(v->device), &v->timer, CLOCK_MONOTONIC, 0, USEC_PER_MSEC, on_timer, v);
        return r < 0 ? r : sd_event_source_set_enabled(v->timer, SD_EVENT_OFF);
}

void vsock_connections_close(Vsock *v) {
        while (v->connections)
                (void) vsock_connection_free(v->connections);
        v->timer = sd_event_source_disable_unref(v->timer);
}
