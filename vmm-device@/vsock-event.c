/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The event queue (virtio 1.2 §5.10.6.7): after a death of the helper the guest is told that its connections are gone, since whoever kept them is.
 *
 * What a driver does then is to reset every connection that it has at that moment, which is one of its own choice: also those that were made after it had
 * been told. So nobody is connected until it is done with that, which it says by making the event's buffer available again. What was
 * told outlives this process: a successor that finds it waits for the same. */

#include "vsock.h"

/* Who came first is first. */
static void say_to_all(Vsock *v) {
        VsockConnection *c = v->connections;

        while (c && c->next)
                c = c->next;
        for (; c; c = c->previous) {
                if (c->state == VSOCK_REQUESTING && c->say & VSOCK_SAY_REQUEST)
                        vsock_connection_set_deadline(c, now_usec() + VSOCK_TIMEOUT_USEC);
                vsock_connection_work(c);
        }
}

static void settle(Vsock *v) {
        v->settling = v->guest->reset_told = false;
        say_to_all(v);
        vsock_listen_update(v);
}

static void begin(Vsock *v) {
        v->settling = true;
        v->settling_until_usec = now_usec() + (device_queue(v->device, VSOCK_QUEUE_EVENT) ? VSOCK_TIMEOUT_USEC : VSOCK_EVENT_QUEUE_USEC);
        vsock_arm(v, v->settling_until_usec);
        vsock_listen_update(v);
}

void vsock_event_start(Vsock *v, bool predecessor) {
        if (!v->met_guest) {
                v->announce_reset = predecessor && !v->guest->reset_told;
                v->guest->reset_told = predecessor && v->guest->reset_told;
                v->settling = predecessor;
        }
        if (v->settling)
                begin(v); /* it can do nothing while it is paused */
}

void vsock_event_forget(Vsock *v) {
        v->announce_reset = false;
        settle(v);
}

uint64_t vsock_event_expire(Vsock *v, uint64_t now) {
        if (!v->settling || !device_is_running(v->device))
                return UINT64_MAX;
        if (now < v->settling_until_usec)
                return v->settling_until_usec;
        if (!device_queue(v->device, VSOCK_QUEUE_EVENT))
                log_info("There is no queue by which the guest could be told that its connections are gone: new ones are made all the same.");
        else
                log_warning(v->announce_reset ?
                        "The guest has no buffer to be told in that its connections are gone: new ones are made all the same." :
                        "The guest was told that its connections are gone, and does not say that it has heard: new ones are made all the same.");
        settle(v);
        vsock_to_guest(v);
        return UINT64_MAX;
}

/* 1 where it has been told, 0 where it gives no buffer for that. */
static int tell(Vsock *v, Virtqueue *q) {
        static const uint32_t transport_reset = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET;
        int r;

        do {
                r = virtqueue_pop(q, &v->event_chain);
                if (r < 0)
                        return r;
        } while (r == 0 && virtqueue_want_kicks(q));
        if (r == 0)
                return 0;
        virtqueue_suppress_kicks(q);
        if (!v->settling) {
                /* So late that others have come meanwhile, whom it will take along. */
                vsock_drop_all(v);
                begin(v);
        }
        v->announce_reset = false;
        v->guest->reset_offered = virtqueue_offered(q);
        virtqueue_push(q, &v->event_chain,
                (uint32_t) iov_cursor_write(&v->event_chain.writable, &transport_reset, sizeof(transport_reset)));
        virtqueue_notify(q);
        v->guest->reset_told = true;
        return 1;
}

int vsock_event_process(Vsock *v) {
        Virtqueue *q = device_queue(v->device, VSOCK_QUEUE_EVENT);
        int r;

        if (!q)
                return 0;
        if (v->announce_reset) {
                r = tell(v, q);
                if (r <= 0)
                        return r;
        }
        if (v->guest->reset_told && virtqueue_want_kicks_beyond(q, v->guest->reset_offered)) {
                virtqueue_suppress_kicks(q);
                settle(v);
                vsock_to_guest(v);
        }
        return 0;
}
