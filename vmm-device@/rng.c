/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Entropy device (virtio 1.2 §5.4): whatever the driver makes writable is filled with the host's random numbers. */

#include <json-c/json.h>
#include <sys/random.h>

#include "device.h"
#include "log.h"

/* What one request can get, so that a guest cannot keep the loop busy by a request of gigabytes: a driver takes a short
 * answer for what it is (§5.4.6.1). */
#define REQUEST_MAX KIB(64)
/* Requests served in a row before the loop looks at something else. */
#define TURN_MAX 16

typedef struct Rng {
        VirtqueueChain chain;
        uint64_t n_bytes;
} Rng;

static int rng_open(Device *d) {
        Rng *rng = calloc(1, sizeof(Rng));

        if (!rng)
                return log_oom();
        device_set_data(d, rng);
        return 0;
}

static void rng_close(Device *d) {
        Rng *rng = device_data(d);

        if (!rng)
                return;
        virtqueue_chain_done(&rng->chain);
        free(rng);
}

static int rng_start(Device *d) {
        return 0;
}

static void rng_stop(Device *d) {
}

/* Fills the chain; returns how many bytes, or a negative errno. */
static int64_t fill(IovCursor *cursor) {
        uint8_t buffer[4096];
        int64_t done = 0;

        while (done < (int64_t) REQUEST_MAX && cursor->left > 0) {
                ssize_t n = getrandom(buffer, MIN((uint64_t) sizeof(buffer), cursor->left), 0);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                done += (int64_t) iov_cursor_write(cursor, buffer, (size_t) n);
        }
        return done;
}

static int rng_process(Device *d, unsigned index) {
        Virtqueue *q = device_queue(d, index);
        Rng *rng = device_data(d);
        unsigned served = 0;
        int r;

        do {
                virtqueue_suppress_kicks(q);
                while (served < TURN_MAX && (r = virtqueue_pop(q, &rng->chain)) > 0) {
                        int64_t n = fill(&rng->chain.writable);
                        if (n < 0)
                                return (int) n;
                        virtqueue_push(q, &rng->chain, (uint32_t) n);
                        rng->n_bytes += (uint64_t) n;
                        served++;
                }
                virtqueue_notify(q);
                if (served >= TURN_MAX)
                        return 1;
                if (r < 0)
                        return r;
        } while (virtqueue_want_kicks(q));
        return 0;
}

static void rng_describe(Device *d, json_object *into) {
        const Rng *rng = device_data(d);

        json_object_object_add(into, "bytes", json_object_new_uint64(rng->n_bytes));
}

static void rng_counters(Device *d, json_object *into) {
        const Rng *rng = device_data(d);

        json_object_object_add(into, "readBytes", json_object_new_uint64(rng->n_bytes));
}

const DeviceClass rng_device = {
        .name = "rng",
        .virtio_id = 4,
        .queues_max = 1,
        .policy = "rng",
        .open = rng_open,
        .close = rng_close,
        .start = rng_start,
        .stop = rng_stop,
        .process = rng_process,
        .describe = rng_describe,
        .counters = rng_counters,
};
