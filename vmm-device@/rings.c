/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Rings between the front-end's words and the device ("Ring states").
 *
 * A ring is served once its size, addresses and kick descriptor are known, and it is enabled. Serving does not wait for the first
 * kick: looking at a ring is harmless, and after a reconnection nobody may have a reason to kick. The device is one
 * state machine for all its rings: to take one away it is suspended as a whole, and goes on with the others afterwards. */

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/epoll.h>

#include "session-keep.h"

static int on_update(sd_event_source *source, void *userdata);

int rings_new(Session *s) {
        int r;

        s->rings = calloc(s->device->n_queues, sizeof(Ring));
        if (!s->rings)
                return -ENOMEM;
        for (unsigned i = 0; i < s->device->n_queues; i++)
                s->rings[i] = (Ring) { .session = s, .kick_fd = -EBADF, .call_fd = -EBADF, .err_fd = -EBADF };

        r = sd_event_add_defer(s->device->event, &s->update_source, on_update, s);
        if (r < 0)
                return r;
        r = sd_event_source_set_exit_on_failure(s->update_source, true);
        if (r < 0)
                return r;
        /* After the socket: a burst of messages is one change. */
        r = sd_event_source_set_priority(s->update_source, SD_EVENT_PRIORITY_NORMAL + 10);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(s->update_source, SD_EVENT_OFF);
}

void rings_free(Session *s) {
        for (unsigned i = 0; s->rings && i < s->device->n_queues; i++) {
                Ring *ring = &s->rings[i];

                ring->kick_fd = safe_close(ring->kick_fd);
                ring->call_fd = safe_close(ring->call_fd);
                ring->err_fd = safe_close(ring->err_fd);
        }
        s->rings = mfree(s->rings);
        s->update_source = sd_event_source_disable_unref(s->update_source);
}

bool ring_is_served(const Ring *ring) {
        return ring->queue;
}

static bool ring_is_complete(const Session *s, const Ring *ring) {
        /* "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state." */
        bool enabled = ring->enabled || !(s->features & (UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES));

        return enabled && ring->num > 0 && ring->have_address && ring->kick_fd >= 0 && s->memory.n_regions > 0 && !s->postcopy.unanswered;
}

void rings_suspend(Session *s) {
        if (!s->started)
                return;
        s->device->class->stop(s->device);
        s->started = false;
        device_changed(s->device);
}

/* Takes the ring out of service; the device is suspended. */
static void ring_detach(Ring *ring) {
        if (!ring->queue)
                return;
        ring->base = virtqueue_base(ring->queue);
        ring->kick_source = sd_event_source_disable_unref(ring->kick_source);
        ring->again_source = sd_event_source_disable_unref(ring->again_source);
        ring->queue = virtqueue_free(ring->queue);
}

void ring_withdraw(Session *s, unsigned index) {
        if (!ring_is_served(&s->rings[index]))
                return;
        rings_suspend(s);
        ring_detach(&s->rings[index]);
        rings_update_later(s);
}

void rings_withdraw_all(Session *s) {
        rings_suspend(s);
        for (unsigned i = 0; s->rings && i < s->device->n_queues; i++)
                ring_detach(&s->rings[i]);
        rings_update_later(s);
}

void rings_reset(Session *s) {
        rings_withdraw_all(s);
        for (unsigned i = 0; i < s->device->n_queues; i++) {
                Ring *ring = &s->rings[i];

                if (ring->kick_fd >= 0)
                        session_keep_fd(s, SESSION_FD_KICK, i, -EBADF);
                ring->kick_fd = safe_close(ring->kick_fd);
                *ring = (Ring) { .session = s, .kick_fd = -EBADF, .call_fd = ring->call_fd, .err_fd = ring->err_fd };
        }
        inflight_clear(&s->inflight);
        session_mend(s);
        if (s->device->class->reset)
                s->device->class->reset(s->device);
}

void rings_heal_when_stopped(Session *s) {
        if (!s->broken)
                return;
        for (unsigned i = 0; i < s->device->n_queues; i++)
                if (ring_is_served(&s->rings[i]))
                        return;
        /* What broke it may have been taken, and must not be taken again. */
        inflight_clear(&s->inflight);
        session_mend(s);
}

void rings_update_later(Session *s) {
        if (s->update_source)
                (void) sd_event_source_set_enabled(s->update_source, SD_EVENT_ONESHOT);
}

static int on_again(sd_event_source *source, void *userdata);

/* Lets the device drain a queue. A negative result ends the helper. */
static int ring_process(Session *s, Ring *ring) {
        unsigned index = (unsigned) (ring - s->rings);
        int r;

        if (s->broken || !s->started)
                return 0;
        r = s->device->class->process(s->device, index);
        if (r == -EBADMSG) {
                const char *error = virtqueue_error(ring->queue);
                session_break(s, error ? error : "a request makes no sense");
                return 0;
        }
        if (r < 0)
                return log_error_errno(r, "Cannot go on serving queue %u: %m", index);
        if (r > 0 && !ring->again_source) {
                r = sd_event_add_defer(s->device->event, &ring->again_source, on_again, ring);
                if (r < 0)
                        return r;
                (void) sd_event_source_set_priority(ring->again_source, SD_EVENT_PRIORITY_NORMAL + 5);
                return sd_event_source_set_exit_on_failure(ring->again_source, true);
        }
        if (r > 0)
                return sd_event_source_set_enabled(ring->again_source, SD_EVENT_ONESHOT);
        return 0;
}

static int on_again(sd_event_source *source, void *userdata) {
        Ring *ring = userdata;

        return ring_process(ring->session, ring);
}

static int on_kick(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Ring *ring = userdata;

        /* Edge-triggered: each write to the eventfd is an event of its own, so its counter need not be read. */
        return ring_process(ring->session, ring);
}

/* After a restart the last signal may not have been sent, and the driver waits for it. One too many does no harm. */
static void signal_once(const Ring *ring) {
        if (ring->call_fd >= 0 && virtqueue_base(ring->queue) != 0) {
                ssize_t n = write(ring->call_fd, &(const uint64_t) { 1 }, sizeof(uint64_t));
                (void) n;
        }
}

/* A driver may make a queue larger than the device offers, and its front-end let it do so: SeaBIOS 1.16.3 does, under QEMU, which then has a log for what
 * is offered. */
static QueueRegionSplit *find_log(Session *s, const Ring *ring) {
        unsigned index = (unsigned) (ring - s->rings);

        if (!s->inflight.mapping || ring->num <= s->inflight.queue_size)
                return inflight_region(&s->inflight, index);
        if (log_ratelimit(&s->complaints, NULL))
                log_warning("The front-end's in-flight log is for queues of %u, and queue %u has %u: what is in flight would be lost with us.",
                        s->inflight.queue_size, index, ring->num);
        return NULL;
}

/* Where a predecessor was when it died, as far as the log does not know better: behind what it gave back. */
static void find_base(Session *s, Ring *ring) {
        const struct vring_used *used = guest_memory_at_user(&s->memory, ring->address.used_user_addr, sizeof(struct vring_used));

        if (ring->resumed && used && (uintptr_t) used % 4 == 0)
                ring->base = __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE);
        ring->resumed = false;
}

static int ring_attach(Session *s, Ring *ring) {
        unsigned index = (unsigned) (ring - s->rings);
        VirtqueueSetup setup = {
                .num = ring->num,
                .desc_user_addr = ring->address.desc_user_addr,
                .avail_user_addr = ring->address.avail_user_addr,
                .used_user_addr = ring->address.used_user_addr,
                .event_idx = s->features & (UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX),
                .indirect = s->features & (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC),
                .log = find_log(s, ring),
                .log_num = s->inflight.queue_size,
        };
        int r;

        find_base(s, ring);
        setup.base = ring->base;
        r = virtqueue_new(&s->memory, &setup, &ring->queue);
        if (r == -EFAULT && ring->may_wait)
                return 0;
        if (r == -EFAULT || r == -EINVAL) {
                session_break(s, "a queue does not lie in guest memory, or not aligned");
                return 0;
        }
        if (r == -EBADMSG)
                return log_error_errno(r, "The in-flight log of queue %u is not one of version %u.", index, QUEUE_REGION_VERSION);
        if (r < 0)
                return log_error_errno(r, "Cannot serve queue %u: %m", index);
        virtqueue_set_call_fd(ring->queue, ring->call_fd);

        r = sd_event_add_io(s->device->event, &ring->kick_source, ring->kick_fd, EPOLLIN | EPOLLET, on_kick, ring);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(ring->kick_source, true);
        if (r < 0) {
                ring_detach(ring);
                return log_error_errno(r, "Cannot watch the kick descriptor of queue %u: %m", index);
        }
        signal_once(ring);
        return 1;
}

static int start_and_process(Session *s) {
        int r;

        r = s->device->class->start(s->device);
        if (r < 0)
                return log_error_errno(r, "Cannot start the device: %m");
        s->started = true;
        device_changed(s->device);
        session_keep_settle(s); /* from here on, what is under way is in the log */
        for (unsigned i = 0; i < s->device->n_queues; i++)
                if (ring_is_served(&s->rings[i])) {
                        r = ring_process(s, &s->rings[i]);
                        if (r < 0)
                                return r;
                }
        return 0;
}

/* > 0 where a ring is served by now. */
static int attach_complete(Session *s) {
        bool any = false;
        int r;

        for (unsigned i = 0; !s->broken && i < s->device->n_queues; i++) {
                Ring *ring = &s->rings[i];

                if (!ring_is_served(ring) && ring_is_complete(s, ring)) {
                        /* A device learns of its queues when it starts. */
                        rings_suspend(s);
                        r = ring_attach(s, ring);
                        if (r < 0)
                                return r;
                }
                any = any || ring_is_served(ring);
        }
        return any;
}

static int serve_attached(Session *s, bool any) {
        if (s->broken) {
                rings_suspend(s);
                return 0;
        }
        if (any && !s->started)
                return start_and_process(s);
        session_keep_settle(s);
        return 0;
}

static int on_update(sd_event_source *source, void *userdata) {
        Session *s = userdata;
        int r;

        r = attach_complete(s);
        if (r < 0) {
                session_end(s);
                return 0;
        }
        return serve_attached(s, r > 0);
}

int rings_take_up(Session *s) {
        bool any = false;
        int r;

        for (unsigned i = 0; i < s->device->n_queues; i++)
                any = any || s->rings[i].resumed;
        if (!any)
                return 0;
        r = attach_complete(s);
        return r < 0 ? r : serve_attached(s, r > 0);
}
