/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Statistics of the guest's memory, §5.5.6.3. The queue works the other way round: the guest gives a buffer, and when it gets that back it
 * fills another. So what lies in the queue before anybody asked is as old as can be, and is given back unread; the one after it
 * is the answer, and is held until somebody asks again. */

#include <stdio.h>

#include "balloon.h"

/* Entries of one buffer that are looked at; Linux sends up to 16. */
#define ENTRIES_MAX 256

/* By tag; numbers that <linux/virtio_balloon.h> of older systems lacks stand here as numbers. */
static const char *const names[] = {
        [VIRTIO_BALLOON_S_SWAP_IN] = "swapIn",
        [VIRTIO_BALLOON_S_SWAP_OUT] = "swapOut",
        [VIRTIO_BALLOON_S_MAJFLT] = "majorFaults",
        [VIRTIO_BALLOON_S_MINFLT] = "minorFaults",
        [VIRTIO_BALLOON_S_MEMFREE] = "freeMemory",
        [VIRTIO_BALLOON_S_MEMTOT] = "totalMemory",
        [VIRTIO_BALLOON_S_AVAIL] = "availableMemory",
        [VIRTIO_BALLOON_S_CACHES] = "diskCaches",
        [VIRTIO_BALLOON_S_HTLB_PGALLOC] = "hugetlbAllocations",
        [VIRTIO_BALLOON_S_HTLB_PGFAIL] = "hugetlbFailures",
        [10] = "oomKills",
        [11] = "allocationStalls",
        [12] = "asyncScans",
        [13] = "directScans",
        [14] = "asyncReclaims",
        [15] = "directReclaims",
        /* crosvm's tags, where there is room. */
        [16] = "sharedMemory",
        [17] = "unevictableMemory",
};
#define SLOT_SHARED 16U
#define SLOTS ((unsigned) ELEMENTSOF(names))
#define TAG_SHARED 65534U

/* ---- what the guest says ---- */

static void take_entry(BalloonStatistics *s, uint16_t tag, uint64_t value) {
        int64_t v = (int64_t) MIN(value, (uint64_t) INT64_MAX);
        unsigned slot = tag >= TAG_SHARED ? tag - TAG_SHARED + SLOT_SHARED : tag < SLOT_SHARED ? tag : SLOTS;

        if (slot < SLOTS) {
                s->values[slot] = v;
                s->known |= UINT64_C(1) << slot;
                return;
        }
        for (unsigned i = 0; i < s->n_other; i++)
                if (s->other[i].tag == tag) {
                        s->other[i].value = v;
                        return;
                }
        if (s->n_other < ELEMENTSOF(s->other)) {
                s->other[s->n_other].tag = tag;
                s->other[s->n_other++].value = v;
        }
}

/* "the device MUST ignore entries with tag values that it does not recognize", "MUST accept entries in any order". An entry that is cut off is
 * none. */
static void take_statistics(BalloonStatistics *s, IovCursor from) {
        struct virtio_balloon_stat entry;

        s->known = 0;
        s->n_other = 0;
        for (unsigned i = 0; i < ENTRIES_MAX && iov_cursor_read(&from, &entry, sizeof(entry)) == sizeof(entry); i++)
                take_entry(s, load_le16(&entry.tag), load_le64(&entry.val));
        s->usec = now_usec();
}

/* ---- answers ---- */

static json_object *other_json(const BalloonStatistics *s) {
        json_object *o = json_object_new_object();
        char tag[8];

        for (unsigned i = 0; o && i < s->n_other; i++) {
                (void) snprintf(tag, sizeof(tag), "%u", s->other[i].tag);
                (void) json_object_object_add(o, tag, json_object_new_int64(s->other[i].value));
        }
        return o;
}

static json_object *statistics_json(const BalloonStatistics *s) {
        json_object *o = json_object_new_object();

        if (!o)
                return NULL;
        (void) json_object_object_add(o, "age", json_object_new_int64((int64_t) (now_usec() - s->usec)));
        for (unsigned i = 0; i < SLOTS; i++)
                if (s->known & (UINT64_C(1) << i))
                        (void) json_object_object_add(o, names[i], json_object_new_int64(s->values[i]));
        if (s->n_other > 0)
                (void) json_object_object_add(o, "other", other_json(s));
        return o;
}

static json_object *reply_json(Balloon *b) {
        json_object *reply = json_object_new_object();

        if (!reply)
                return NULL;
        (void) json_object_object_add(reply, "statistics", statistics_json(&b->statistics));
        (void) balloon_add_state(b, reply);
        return reply;
}

static void answer(Balloon *b) {
        json_object *reply = reply_json(b);

        (void) sd_event_source_set_enabled(b->statistics.timer, SD_EVENT_OFF);
        waiters_reply(&b->statistics.waiters, reply);
        (void) json_object_put(reply);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Balloon *b = userdata;

        balloon_all_timed_out(&b->statistics.waiters);
        return 0;
}

/* ---- the queue ---- */

static void give_back(BalloonStatistics *s, Virtqueue *q) {
        virtqueue_push(q, &s->chain, 0);
        virtqueue_notify(q);
        s->held = false;
}

int balloon_statistics_process(Balloon *b, Virtqueue *q) {
        BalloonStatistics *s = &b->statistics;
        int r = 0;

        do {
                /* What nobody has asked for stays where it is. At most one buffer is there at a time if the guest keeps the rules; where it does not,
                 * the others stay, too. */
                while (!s->held && (s->asked || waiters_any(&s->waiters)) && (r = virtqueue_pop(q, &s->chain)) > 0) {
                        s->held = true;
                        if (!s->asked) {
                                give_back(s, q);
                                s->asked = true;
                                continue;
                        }
                        s->asked = false;
                        take_statistics(s, s->chain.readable);
                        b->kept->statistics++;
                        answer(b);
                }
                if (r < 0)
                        return r;
        } while (virtqueue_want_kicks(q) && !s->held && (s->asked || waiters_any(&s->waiters)));
        return 0;
}

/* The guest may go on without us: it gets its buffer back, and puts another there, which will be stale. */
void balloon_statistics_stop(Balloon *b) {
        BalloonStatistics *s = &b->statistics;
        Virtqueue *q = balloon_queue(b, BALLOON_STATISTICS);

        if (s->held && q)
                give_back(s, q);
        s->held = s->asked = false;
}

void balloon_statistics_forget(Balloon *b) {
        b->statistics.usec = 0;
}

/* Somebody waits: has the guest make new ones, unless it does so already. */
static int ask(Balloon *b) {
        BalloonStatistics *s = &b->statistics;
        Virtqueue *q = balloon_queue(b, BALLOON_STATISTICS);
        int r;

        if (!q)
                return 0; /* the queue comes with the next start */
        if (s->held) {
                give_back(s, q);
                s->asked = true;
        }
        r = balloon_statistics_process(b, q);
        if (r == -EBADMSG) {
                device_broken(b->device, "statistics queue: %s", virtqueue_error(q) ?: "broken");
                r = 0;
        }
        return r;
}

int balloon_method_get_statistics(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        BalloonStatistics *s = &b->statistics;
        int64_t maximum_age = json_object_get_int64(json_object_object_get(parameters, "maximumAge"));
        bool first = !waiters_any(&s->waiters);
        int r;

        if (maximum_age < 0)
                return varlink_call_error_invalid_parameter(call, "maximumAge");
        if (!balloon_has(b, VIRTIO_BALLOON_F_STATS_VQ))
                return balloon_error_cannot(call, "statistics");
        if (s->usec > 0 && now_usec() - s->usec <= (uint64_t) maximum_age) {
                json_object *reply = reply_json(b);
                r = varlink_call_reply(call, reply);
                (void) json_object_put(reply);
                return r;
        }
        r = waiters_add(&s->waiters, call);
        if (r < 0 || !first)
                return r;
        balloon_set_timer(s->timer, BALLOON_TIMEOUT_USEC);
        return ask(b);
}

int balloon_statistics_init(Balloon *b) {
        return balloon_add_timer(b, &b->statistics.timer, on_timer);
}

void balloon_statistics_done(Balloon *b) {
        (void) sd_event_source_disable_unref(b->statistics.timer);
        waiters_done(&b->statistics.waiters);
        virtqueue_chain_done(&b->statistics.chain);
}
