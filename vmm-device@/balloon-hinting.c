/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Free page hinting, §5.5.6.5: asked by a new command number, the guest sends that number, then its free pages as buffers, then
 * VIRTIO_BALLOON_CMD_ID_STOP. Pages that come under another number are not looked at.
 *
 * "The driver MAY release hinted pages for use by the guest including when the device has not yet used the descriptor", and what it has written
 * there since is not ours to take; Linux does so when its memory gets scarce in the middle of a round. Nobody on this side can see
 * that, so the feature is offered only where the definition asks for it, and the manual says for what. */

#include "balloon.h"

#define ID_FIRST (VIRTIO_BALLOON_CMD_ID_DONE + 1)
/* A guest that has ever more pages has long told us the same ones again. */
#define ROUND_MAX_USEC (60 * USEC_PER_SEC)

static void set_id(Balloon *b, uint32_t id) {
        b->hinting.id = id;
        device_config_changed(b->device);
}

/* "The device MUST report a value of VIRTIO_BALLOON_CMD_ID_DONE when it no longer has need for the previously hinted pages." */
static void end_round(Balloon *b) {
        b->hinting.active = false;
        (void) sd_event_source_set_enabled(b->hinting.timer, SD_EVENT_OFF);
        if (b->hinting.id != VIRTIO_BALLOON_CMD_ID_DONE)
                set_id(b, VIRTIO_BALLOON_CMD_ID_DONE);
}

static void round_complete(Balloon *b) {
        json_object *reply = json_object_new_object();

        end_round(b);
        if (reply)
                (void) json_object_object_add(reply, "freed", json_object_new_int64((int64_t) b->hinting.freed));
        waiters_reply(&b->hinting.waiters, reply);
        (void) json_object_put(reply);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Balloon *b = userdata;

        end_round(b);
        balloon_all_timed_out(&b->hinting.waiters);
        return 0;
}

/* The guest goes on: it gets its time anew, but not for ever. */
static void prolong(BalloonHinting *h) {
        uint64_t now = now_usec();

        balloon_set_timer(h->timer, MIN(BALLOON_TIMEOUT_USEC, h->until > now ? h->until - now : 0));
}

static int take(Balloon *b, VirtqueueChain *chain) {
        BalloonHinting *h = &b->hinting;
        uint32_t id;

        if (chain->readable.left > 0) {
                if (iov_cursor_read(&chain->readable, &id, sizeof(id)) != sizeof(id)) {
                        device_broken(b->device, "a command number of free page hinting is too short");
                        return -EBADMSG;
                }
                if (id == VIRTIO_BALLOON_CMD_ID_STOP && h->active)
                        round_complete(b);
                else
                        h->active = id == h->id && id >= ID_FIRST;
        }
        if (h->active) {
                uint64_t freed = balloon_release_buffers(b, chain);

                h->freed += freed;
                b->kept->hinted += freed;
                prolong(h);
        }
        return 0;
}

int balloon_hinting_process(Balloon *b, Virtqueue *q) {
        return balloon_drain(b, q, take);
}

/* What the guest sends from here on, the next driver perhaps, belongs to no round. */
void balloon_hinting_stop(Balloon *b) {
        b->hinting.active = false;
}

int balloon_method_hint_free_pages(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        BalloonHinting *h = &b->hinting;
        bool first = !waiters_any(&h->waiters);
        int r;

        if (!balloon_has(b, VIRTIO_BALLOON_F_FREE_PAGE_HINT))
                return balloon_error_cannot(call, "freePageHinting");
        r = waiters_add(&h->waiters, call);
        if (r < 0 || !first)
                return r;

        /* "The device MUST NOT reuse a command ID until it has received an output buffer containing VIRTIO_BALLOON_CMD_ID_STOP": each is used once. */
        b->kept->hint_id = b->kept->hint_id < ID_FIRST || b->kept->hint_id == UINT32_MAX ? ID_FIRST : b->kept->hint_id + 1;
        h->active = false;
        h->freed = 0;
        h->until = now_usec() + ROUND_MAX_USEC;
        prolong(h);
        set_id(b, b->kept->hint_id);
        return 0;
}

int balloon_hinting_init(Balloon *b) {
        return balloon_add_timer(b, &b->hinting.timer, on_timer);
}

void balloon_hinting_done(Balloon *b) {
        (void) sd_event_source_disable_unref(b->hinting.timer);
        waiters_done(&b->hinting.waiters);
}
