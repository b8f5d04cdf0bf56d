/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Working set reports: how much of the guest's memory was used how long ago. Not in the virtio specification; this is what crosvm and the kernels
 * of ChromeOS speak. The guest puts empty buffers into one queue, which we fill with operations, and its reports into another, when asked
 * to and by itself when its memory gets scarce. */

#include "balloon.h"

#define OPERATION_REQUEST 1
#define OPERATION_CONFIG 2
#define BUCKETS_DEFAULT 4

/* One entry of a report. */
typedef struct ReportEntry {
        uint16_t tag, node_id;
        uint8_t reserved[4];
        uint64_t idle_age_ms;
        uint64_t file_bytes, anonymous_bytes;
} ReportEntry;

/* ---- reports ---- */

static json_object *bytes_json(uint64_t bytes) {
        return json_object_new_int64((int64_t) MIN(bytes, (uint64_t) INT64_MAX));
}

static json_object *bucket_json(const ReportEntry *entry) {
        json_object *o = json_object_new_object();

        if (!o)
                return NULL;
        /* The last one has no end. */
        if (entry->idle_age_ms <= INT64_MAX)
                (void) json_object_object_add(o, "age", json_object_new_int64((int64_t) entry->idle_age_ms));
        (void) json_object_object_add(o, "fileBytes", bytes_json(entry->file_bytes));
        (void) json_object_object_add(o, "anonymousBytes", bytes_json(entry->anonymous_bytes));
        return o;
}

/* NULL where there is not even one bucket, or no memory. */
static json_object *report_json(IovCursor from) {
        json_object *array = json_object_new_array();
        ReportEntry entry;

        for (unsigned i = 0; array && i < BALLOON_BUCKETS_MAX && iov_cursor_read(&from, &entry, sizeof(entry)) == sizeof(entry); i++)
                (void) json_object_array_add(array, bucket_json(&entry));
        if (array && json_object_array_length(array) == 0) {
                (void) json_object_put(array);
                return NULL;
        }
        return array;
}

static int take_report(Balloon *b, VirtqueueChain *chain) {
        json_object *report = report_json(chain->readable), *reply;

        if (!report)
                return 0;
        b->kept->working_sets++;
        reply = waiters_any(&b->working_set.waiters) && !b->working_set.unsent_request ? json_object_new_object() : NULL;
        if (reply) {
                (void) json_object_object_add(reply, "workingSet", json_object_get(report));
                (void) balloon_add_state(b, reply);
                (void) sd_event_source_set_enabled(b->working_set.timer, SD_EVENT_OFF);
                waiters_reply(&b->working_set.waiters, reply);
                (void) json_object_put(reply);
        }
        balloon_publish(b, BALLOON_EVENT_WORKING_SET, report);
        return 0;
}

int balloon_working_set_process_data(Balloon *b, Virtqueue *q) {
        return balloon_drain(b, q, take_report);
}

/* ---- operations ---- */

static uint32_t write_configuration(const BalloonKept *k, IovCursor *into) {
        uint16_t operation = OPERATION_CONFIG;
        size_t n;

        n = iov_cursor_write(into, &operation, sizeof(operation));
        n += iov_cursor_write(into, k->intervals, k->n_intervals * sizeof(k->intervals[0]));
        n += iov_cursor_write(into, &k->refresh_threshold, sizeof(k->refresh_threshold));
        n += iov_cursor_write(into, &k->report_threshold, sizeof(k->report_threshold));
        return n == sizeof(operation) + (k->n_intervals + 2) * sizeof(uint32_t) ? (uint32_t) n : 0;
}

static uint32_t write_request(IovCursor *into) {
        uint16_t operation = OPERATION_REQUEST;

        return iov_cursor_write(into, &operation, sizeof(operation)) == sizeof(operation) ? sizeof(operation) : 0;
}

/* One operation into one buffer; returns its length, 0 where the buffer is too small. */
static uint32_t write_operation(Balloon *b, IovCursor *into) {
        BalloonWorkingSet *w = &b->working_set;
        uint32_t n;

        if (!w->unsent_configuration) {
                n = write_request(into);
                w->unsent_request = w->unsent_request && n == 0;
                return n;
        }
        n = write_configuration(b->kept, into);
        if (n > 0) {
                w->unsent_configuration = false;
                (void) sd_event_source_set_enabled(w->configure_timer, SD_EVENT_OFF);
                waiters_reply(&w->configure_waiters, NULL);
        }
        return n;
}

int balloon_working_set_process_operation(Balloon *b, Virtqueue *q) {
        BalloonWorkingSet *w = &b->working_set;
        uint32_t n;
        int r = 0;

        do {
                /* Buffers wait in the queue until there is something to say. */
                while ((w->unsent_configuration || w->unsent_request) && (r = virtqueue_pop(q, &w->chain)) > 0) {
                        n = write_operation(b, &w->chain.writable);
                        virtqueue_push(q, &w->chain, n);
                        virtqueue_notify(q);
                        if (n == 0) {
                                device_broken(b->device, "a buffer for working set operations is too small");
                                return 0;
                        }
                }
                if (r < 0)
                        return r;
        } while (virtqueue_want_kicks(q) && (w->unsent_configuration || w->unsent_request));
        return 0;
}

static int send_operations(Balloon *b) {
        Virtqueue *q = balloon_queue(b, BALLOON_WORKING_SET_OPERATION);
        int r;

        if (!q)
                return 0; /* the queue comes with the next start */
        r = balloon_working_set_process_operation(b, q);
        if (r == -EBADMSG) {
                device_broken(b->device, "working set queue: %s", virtqueue_error(q) ?: "broken");
                r = 0;
        }
        return r;
}

/* The next driver is told anew. */
void balloon_working_set_forget(Balloon *b) {
        b->working_set.unsent_configuration = b->kept->n_intervals > 0;
        b->working_set.unsent_request = waiters_any(&b->working_set.waiters);
}

/* ---- methods ---- */

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Balloon *b = userdata;

        b->working_set.unsent_request = false;
        balloon_all_timed_out(&b->working_set.waiters);
        return 0;
}

/* The configuration stays to be told when the guest comes to it. */
static int on_configure_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Balloon *b = userdata;

        balloon_all_timed_out(&b->working_set.configure_waiters);
        return 0;
}

int balloon_method_get_working_set(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        BalloonWorkingSet *w = &b->working_set;
        bool first = !waiters_any(&w->waiters);
        int r;

        if (!balloon_has(b, VIRTIO_BALLOON_F_WS_REPORTING))
                return balloon_error_cannot(call, "workingSet");
        r = waiters_add(&w->waiters, call);
        if (r < 0 || !first)
                return r;
        w->unsent_request = true;
        balloon_set_timer(w->timer, BALLOON_TIMEOUT_USEC);
        return send_operations(b);
}

/* A number of milliseconds as the guest takes it. */
static bool is_milliseconds(int64_t v) {
        return v >= 0 && v <= UINT32_MAX;
}

/* As many as the guest's driver was promised when it came, ascending. */
static int parse_intervals(json_object *array, unsigned n_buckets, uint32_t *ret) {
        if (json_object_array_length(array) != n_buckets - 1)
                return -EINVAL;
        for (size_t i = 0; i < n_buckets - 1; i++) {
                int64_t v = json_object_get_int64(json_object_array_get_idx(array, i));

                if (!is_milliseconds(v) || (i > 0 && v <= ret[i - 1]))
                        return -EINVAL;
                ret[i] = (uint32_t) v;
        }
        return 0;
}

int balloon_method_configure_working_set(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        BalloonWorkingSet *w = &b->working_set;
        int64_t refresh = json_object_get_int64(json_object_object_get(parameters, "refreshThreshold"));
        int64_t report = json_object_get_int64(json_object_object_get(parameters, "reportThreshold"));
        uint32_t intervals[BALLOON_BUCKETS_MAX - 1] = {};
        int r;

        if (parse_intervals(json_object_object_get(parameters, "intervals"), w->n_buckets, intervals) < 0)
                return varlink_call_error_invalid_parameter(call, "intervals");
        if (!is_milliseconds(refresh))
                return varlink_call_error_invalid_parameter(call, "refreshThreshold");
        if (!is_milliseconds(report))
                return varlink_call_error_invalid_parameter(call, "reportThreshold");
        if (!balloon_has(b, VIRTIO_BALLOON_F_WS_REPORTING))
                return balloon_error_cannot(call, "workingSet");

        r = waiters_add(&w->configure_waiters, call);
        if (r < 0)
                return r;
        memcpy(b->kept->intervals, intervals, sizeof(intervals));
        b->kept->n_intervals = w->n_buckets - 1;
        b->kept->refresh_threshold = (uint32_t) refresh;
        b->kept->report_threshold = (uint32_t) report;
        w->unsent_configuration = true;
        balloon_set_timer(w->configure_timer, BALLOON_TIMEOUT_USEC);
        return send_operations(b);
}

int balloon_working_set_init(Balloon *b) {
        BalloonWorkingSet *w = &b->working_set;
        int r;

        w->n_buckets = (unsigned) device_option_unsigned(b->device, "workingSetBuckets", BUCKETS_DEFAULT);
        if (b->kept->n_intervals != w->n_buckets - 1)
                b->kept->n_intervals = 0; /* of another definition */
        r = balloon_add_timer(b, &w->timer, on_timer);
        return r < 0 ? r : balloon_add_timer(b, &w->configure_timer, on_configure_timer);
}

void balloon_working_set_done(Balloon *b) {
        BalloonWorkingSet *w = &b->working_set;

        (void) sd_event_source_disable_unref(w->timer);
        (void) sd_event_source_disable_unref(w->configure_timer);
        waiters_done(&w->waiters);
        waiters_done(&w->configure_waiters);
        virtqueue_chain_done(&w->chain);
}
