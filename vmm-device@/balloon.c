/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Memory balloon (virtio 1.2 §5.5): the guest hands pages over, and the host gets them back. This file: configuration space, which queue is
 * which, and the device's life; the rest is in balloon-*.c. */

#include <linux/virtio_config.h>

#include "balloon.h"
#include "interfaces.h"

/* With crosvm's field behind the specification's (§5.5.4). */
typedef struct BalloonConfig {
        struct virtio_balloon_config standard;
        uint8_t ws_num_bins;
        uint8_t reserved[3];
} BalloonConfig;

/* What has to be negotiated for a queue to exist. */
static const uint64_t queue_features[BALLOON_QUEUES] = {
        [BALLOON_STATISTICS] = UINT64_C(1) << VIRTIO_BALLOON_F_STATS_VQ,
        [BALLOON_FREE_PAGE] = UINT64_C(1) << VIRTIO_BALLOON_F_FREE_PAGE_HINT,
        [BALLOON_REPORTING] = UINT64_C(1) << VIRTIO_BALLOON_F_REPORTING,
        [BALLOON_WORKING_SET_DATA] = UINT64_C(1) << VIRTIO_BALLOON_F_WS_REPORTING,
        [BALLOON_WORKING_SET_OPERATION] = UINT64_C(1) << VIRTIO_BALLOON_F_WS_REPORTING,
};

/* ---- which queue is which ---- */

static bool queue_exists(Balloon *b, BalloonQueue which) {
        return (device_features(b->device) & queue_features[which]) == queue_features[which];
}

static unsigned count_queues(Balloon *b, BalloonQueue before) {
        unsigned n = 0;

        for (BalloonQueue which = 0; which < before; which++)
                n += queue_exists(b, which);
        return n;
}

/* §5.5.2 gives each queue a number of its own, whether or not those before it exist. Linux, with whom everybody else has to get along, counts
 * only the queues whose features were negotiated (vp_find_vqs()). So that is how they are counted here, unless a number
 * shows that the driver goes by the letter. Both agree about the first two; which are the others is known for sure once
 * all of them are there, and not asked before. */
static void find_numbering(Balloon *b) {
        unsigned n = count_queues(b, BALLOON_QUEUES);

        b->by_letter = false;
        for (unsigned i = n; i < BALLOON_QUEUES; i++)
                if (device_queue(b->device, i))
                        b->by_letter = true;
        b->all_queues = device_n_queues(b->device) >= n;
}

static unsigned queue_number(Balloon *b, BalloonQueue which) {
        return b->by_letter ? which : count_queues(b, which);
}

Virtqueue *balloon_queue(Balloon *b, BalloonQueue which) {
        if (!queue_exists(b, which) || (which > BALLOON_DEFLATE && !b->all_queues))
                return NULL;
        return device_queue(b->device, queue_number(b, which));
}

bool balloon_has_driver(Balloon *b) {
        return device_is_running(b->device) && balloon_queue(b, BALLOON_INFLATE) && balloon_queue(b, BALLOON_DEFLATE);
}

bool balloon_has(Balloon *b, unsigned feature) {
        return balloon_has_driver(b) && device_features(b->device) & (UINT64_C(1) << feature);
}

int balloon_drain(Balloon *b, Virtqueue *q, int (*take)(Balloon *b, VirtqueueChain *chain)) {
        unsigned served = 0;
        int r = 0, written;

        do {
                virtqueue_suppress_kicks(q);
                while (served < BALLOON_TURN_MAX && (r = virtqueue_pop(q, &b->chain)) > 0) {
                        served += 1 + (unsigned) (b->chain.readable.left / BALLOON_TURN_BYTES);
                        written = take(b, &b->chain);
                        virtqueue_push(q, &b->chain, written < 0 ? 0 : (uint32_t) written);
                        if (written < 0) {
                                r = written;
                                break;
                        }
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (served >= BALLOON_TURN_MAX)
                        return 1;
        } while (virtqueue_want_kicks(q));
        return 0;
}

static int process(Balloon *b, BalloonQueue which, Virtqueue *q) {
        switch (which) {
        case BALLOON_INFLATE:
                return balloon_drain(b, q, balloon_inflate);
        case BALLOON_DEFLATE:
                return balloon_drain(b, q, balloon_deflate);
        case BALLOON_STATISTICS:
                return balloon_statistics_process(b, q);
        case BALLOON_FREE_PAGE:
                return balloon_hinting_process(b, q);
        case BALLOON_REPORTING:
                return balloon_drain(b, q, balloon_report);
        case BALLOON_WORKING_SET_DATA:
                return balloon_working_set_process_data(b, q);
        case BALLOON_WORKING_SET_OPERATION:
                return balloon_working_set_process_operation(b, q);
        case BALLOON_QUEUES:
                break;
        }
        return 0;
}

static int balloon_process(Device *d, unsigned index) {
        Balloon *b = device_data(d);

        for (BalloonQueue which = 0; which < BALLOON_QUEUES; which++) {
                Virtqueue *q = balloon_queue(b, which);
                if (q && q == device_queue(d, index))
                        return process(b, which, q);
        }
        return 0; /* it exists for nobody, or not yet */
}

/* ---- configuration space, §5.5.4 ---- */

static void balloon_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        Balloon *b = device_data(d);
        BalloonConfig config = {
                .standard = {
                        .num_pages = b->kept->target,
                        .actual = b->kept->actual,
                        .free_page_hint_cmd_id = b->hinting.id,
                        .poison_val = b->kept->poison,
                },
                .ws_num_bins = (uint8_t) b->working_set.n_buckets,
        };

        memcpy(data, (const uint8_t *) &config + offset, length);
        if (offset == offsetof(struct virtio_balloon_config, num_pages) && length >= sizeof(uint32_t))
                b->seen_target = b->kept->target;
}

/* "If VIRTIO_BALLOON_F_DEFLATE_ON_OOM has been negotiated, the driver MAY use pages from the balloon when num_pages is less than or equal to
 * the actual number […] if this is required for system stability" (§5.5.6.1). A target that was raised while the guest was still giving
 * way to an earlier one, which it has not looked at yet, makes no such case. */
static bool is_oom_deflation(Balloon *b, uint32_t actual) {
        uint32_t before = b->kept->actual;

        return actual < before && MIN(b->kept->target, b->seen_target) >= before && balloon_has(b, VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
}

static void set_actual(Balloon *b, uint32_t actual) {
        bool oom = is_oom_deflation(b, actual);

        if (actual == b->kept->actual)
                return;
        b->kept->actual = actual;
        if (oom) {
                b->kept->oom_deflations++;
                balloon_publish(b, BALLOON_EVENT_DEFLATED_ON_OOM, NULL);
        }
        balloon_actual_changed(b);
}

/* Copies what a write has of one field; true where the field is complete then. §5.5.6.1: a legacy driver may write byte by byte, the last one
 * last. */
static bool take_field(uint32_t *field, uint32_t at, uint32_t offset, const void *data, uint32_t length) {
        for (uint32_t i = 0; i < sizeof(*field); i++)
                if (at + i >= offset && at + i < offset + length)
                        ((uint8_t *) field)[i] = ((const uint8_t *) data)[at + i - offset];
        return offset < at + sizeof(*field) && offset + length >= at + sizeof(*field);
}

/* There are front-ends that write all of it at once: what is the device's own is passed over. */
static int balloon_config_write(Device *d, uint32_t offset, const void *data, uint32_t length) {
        Balloon *b = device_data(d);

        if (take_field(&b->written, offsetof(struct virtio_balloon_config, actual), offset, data, length))
                set_actual(b, b->written);
        (void) take_field(&b->kept->poison, offsetof(struct virtio_balloon_config, poison_val), offset, data, length);
        return 0;
}

/* ---- life ---- */

static int balloon_start(Device *d) {
        Balloon *b = device_data(d);
        int r;

        find_numbering(b);
        r = balloon_look_at_memory(b);
        if (r < 0)
                return r;
        balloon_look_later(b);
        return 0;
}

static void balloon_stop(Device *d) {
        Balloon *b = device_data(d);

        balloon_statistics_stop(b);
        balloon_hinting_stop(b);
        b->all_queues = false;
        balloon_look_later(b);
}

/* What the driver wrote holds no more, and all pages are the guest's again. The target stays: the next driver is to get there, too. */
static void balloon_reset(Device *d) {
        Balloon *b = device_data(d);

        b->kept->poison = 0;
        balloon_pages_done(b);
        b->seen_target = b->kept->target;
        balloon_statistics_forget(b);
        balloon_working_set_forget(b);
        if (b->kept->actual != 0) {
                b->kept->actual = 0;
                balloon_actual_changed(b);
        }
        balloon_look_later(b);
}

int balloon_add_timer(Balloon *b, sd_event_source **ret, sd_event_time_handler_t handler) {
        int r = sd_event_add_time(device_event(b->device), ret, CLOCK_MONOTONIC, 0, 1, handler, b);

        return r < 0 ? r : sd_event_source_set_enabled(*ret, SD_EVENT_OFF);
}

void balloon_set_timer(sd_event_source *timer, uint64_t usec) {
        (void) sd_event_source_set_time_relative(timer, usec);
        (void) sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

static uint64_t offered_features(Device *d) {
        uint64_t features = UINT64_C(1) << VIRTIO_BALLOON_F_STATS_VQ | UINT64_C(1) << VIRTIO_BALLOON_F_PAGE_POISON;

        /* A page is taken before the inflation is acknowledged and never later, so a driver that does not tell does no harm, but for huge pages: these
         * can be taken only when all that they hold is known to be in the balloon. */
        features |= UINT64_C(1) << VIRTIO_BALLOON_F_MUST_TELL_HOST;
        if (device_option_boolean(d, "deflateOnOom", true))
                features |= UINT64_C(1) << VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
        if (device_option_boolean(d, "freePageReporting", true))
                features |= UINT64_C(1) << VIRTIO_BALLOON_F_REPORTING;
        if (device_option_boolean(d, "freePageHinting", false))
                features |= UINT64_C(1) << VIRTIO_BALLOON_F_FREE_PAGE_HINT;
        if (device_option_boolean(d, "workingSet", false))
                features |= UINT64_C(1) << VIRTIO_BALLOON_F_WS_REPORTING;
        return features;
}

/* What a predecessor left, or the beginning. */
static void take_up_state(Balloon *b) {
        BalloonKept *kept = b->kept;
        uint64_t initial = device_option_unsigned(b->device, "initial", 0) >> VIRTIO_BALLOON_PFN_SHIFT;

        if (kept->version != BALLOON_KEPT_VERSION)
                *kept = (BalloonKept) { .version = BALLOON_KEPT_VERSION, .target = (uint32_t) initial };
        else
                log_info("Going on with a balloon of %llu bytes, target %llu.",
                        (unsigned long long) (kept->actual * BALLOON_PAGE_SIZE), (unsigned long long) (kept->target * BALLOON_PAGE_SIZE));
        b->seen_target = kept->target;
        b->told_actual = kept->actual;
        /* A round of hinting ended with the process that made it. */
        b->hinting.id = VIRTIO_BALLOON_CMD_ID_DONE;
}

static int balloon_open(Device *d) {
        Balloon *b = calloc(1, sizeof(Balloon));
        void *kept;
        int r;

        if (!b)
                return log_oom();
        b->device = d;
        b->complaints = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };
        device_set_data(d, b);
        device_set_features(d, offered_features(d));

        r = device_keep(d, "balloon-state", sizeof(BalloonKept), &kept);
        if (r < 0) {
                (void) log_warning_errno(r, "The balloon's state will not outlive this process: %m");
                kept = &b->own;
        }
        b->kept = kept;
        take_up_state(b);

        r = balloon_control_init(b);
        if (r >= 0)
                r = balloon_statistics_init(b);
        if (r >= 0)
                r = balloon_working_set_init(b);
        if (r >= 0)
                r = balloon_hinting_init(b);
        return r < 0 ? log_error_errno(r, "Cannot make the balloon: %m") : 0;
}

static void balloon_close(Device *d) {
        Balloon *b = device_data(d);

        if (!b)
                return;
        balloon_hinting_done(b);
        balloon_working_set_done(b);
        balloon_statistics_done(b);
        balloon_control_done(b);
        balloon_pages_done(b);
        virtqueue_chain_done(&b->chain);
        free(b);
        device_set_data(d, NULL);
}

static void balloon_describe(Device *d, json_object *into) {
        (void) balloon_add_state(device_data(d), into);
}

static void balloon_counters(Device *d, json_object *into) {
        const BalloonKept *k = ((Balloon *) device_data(d))->kept;

        (void) json_object_object_add(into, "inflatedBytes", json_object_new_uint64(k->inflated * BALLOON_PAGE_SIZE));
        (void) json_object_object_add(into, "deflatedBytes", json_object_new_uint64(k->deflated * BALLOON_PAGE_SIZE));
        (void) json_object_object_add(into, "refusedPages", json_object_new_uint64(k->refused));
        (void) json_object_object_add(into, "reportedBytes", json_object_new_uint64(k->reported));
        (void) json_object_object_add(into, "hintedBytes", json_object_new_uint64(k->hinted));
        (void) json_object_object_add(into, "oomDeflations", json_object_new_uint64(k->oom_deflations));
        (void) json_object_object_add(into, "statistics", json_object_new_uint64(k->statistics));
        (void) json_object_object_add(into, "workingSets", json_object_new_uint64(k->working_sets));
}

#define BALLOON_STATE_VERSION 1

static int balloon_save(Device *d, StateWriter *w) {
        const Balloon *b = device_data(d);
        const BalloonKept *k = b->kept;

        state_begin(w, "balloon", 0, BALLOON_STATE_VERSION);
        state_put_u32(w, k->target);
        state_put_u32(w, k->actual);
        state_put_u32(w, b->seen_target);
        state_put_u32(w, k->poison);
        state_put_u32(w, k->hint_id);
        state_put_u32(w, k->n_intervals);
        for (size_t i = 0; i < ELEMENTSOF(k->intervals); i++)
                state_put_u32(w, k->intervals[i]);
        state_put_u32(w, k->refresh_threshold);
        state_put_u32(w, k->report_threshold);
        return state_end(w);
}

static int balloon_load(Device *d, StateReader *reader, char **ret_message) {
        Balloon *b = device_data(d);
        BalloonKept kept = *b->kept;
        uint32_t seen_target;
        int r;

        r = state_enter(reader, "balloon", 0, BALLOON_STATE_VERSION);
        if (r < 0)
                return set_message(ret_message, r, "it is no state of a balloon, or a newer version's");
        kept.target = state_get_u32(reader);
        kept.actual = state_get_u32(reader);
        seen_target = state_get_u32(reader);
        kept.poison = state_get_u32(reader);
        kept.hint_id = state_get_u32(reader);
        kept.n_intervals = state_get_u32(reader);
        for (size_t i = 0; i < ELEMENTSOF(kept.intervals); i++)
                kept.intervals[i] = state_get_u32(reader);
        kept.refresh_threshold = state_get_u32(reader);
        kept.report_threshold = state_get_u32(reader);
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        if (kept.n_intervals > ELEMENTSOF(kept.intervals))
                return set_message(ret_message, -EBADMSG, "it has %u intervals for the working set", kept.n_intervals);
        *b->kept = kept;
        b->seen_target = seen_target;
        b->restored = true;
        balloon_actual_changed(b);
        return 0;
}

const DeviceClass balloon_device = {
        .name = "balloon",
        .virtio_id = 5,
        .queues_max = BALLOON_QUEUES,
        .config_size = sizeof(BalloonConfig),
        .policy = "balloon",
        .needs_all_memory = true, /* the pages that it gives back would be restored behind it */
        .open = balloon_open,
        .close = balloon_close,
        .start = balloon_start,
        .stop = balloon_stop,
        .reset = balloon_reset,
        .process = balloon_process,
        .config_read = balloon_config_read,
        .config_write = balloon_config_write,
        .save = balloon_save,
        .load = balloon_load,
        .describe = balloon_describe,
        .counters = balloon_counters,
        .interface = varlink_text_io_vmmd_Balloon,
        .methods = balloon_methods,
};
