/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Persistent memory (virtio 1.2 §5.19). The file is the guest's memory, by vmmd's doing; what comes here is the guest's wish to have it on the disk.
 *
 * One fdatasync() at a time, in an io_uring, so that nothing else waits for it. Requests that come meanwhile may concern what was written after it
 * began: together they wait for the next one. */

#include <liburing.h>
#include <linux/virtio_pmem.h>
#include <sys/epoll.h>

#include <json-c/json.h>

#include "block-image.h"
#include "device.h"
#include "log.h"

#define QUEUE 0
/* More than these stay in the queue until there is room. */
#define REQUESTS_MAX 64

#define RESULT_OK 0
#define RESULT_FAILED 1

typedef struct Request {
        VirtqueueChain chain;
        bool flushes; /* part of the fdatasync() that is under way */
} Request;

typedef struct Pmem {
        Device *device;
        BlockImage image;
        struct io_uring ring;
        bool ring_made;
        sd_event_source *ring_source, *again_source;

        Request requests[REQUESTS_MAX]; /* the first n_taken are used */
        unsigned n_taken;
        bool flushing;
        uint64_t n_flushes, n_requests;
        LogRateLimit failed, nonsense;
} Pmem;

static void answer(Pmem *p, Request *request, uint32_t result) {
        const struct virtio_pmem_resp response = { .ret = result };
        size_t n = iov_cursor_write(&request->chain.writable, &response, sizeof(response));

        virtqueue_push(device_queue(p->device, QUEUE), &request->chain, (uint32_t) n);
}

/* Begins an fdatasync() for all that are waiting. */
static int begin_flush(Pmem *p) {
        struct io_uring_sqe *sqe;
        int r;

        if (p->flushing || p->n_taken == 0)
                return 0;
        sqe = io_uring_get_sqe(&p->ring);
        assert(sqe); /* there is one at a time */
        io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        do
                r = io_uring_submit(&p->ring);
        while (r == -EINTR || r == -EAGAIN);
        if (r < 0)
                return log_error_errno(r, "Cannot submit to io_uring: %m");
        for (unsigned i = 0; i < p->n_taken; i++)
                p->requests[i].flushes = true;
        p->flushing = true;
        p->n_flushes++;
        return 0;
}

/* Answers those it was for, and moves the others up; chains keep their memory. */
static void end_flush(Pmem *p, int result) {
        unsigned kept = 0;

        if (result < 0 && log_ratelimit(&p->failed, NULL))
                (void) log_error_errno(result, "Cannot write the guest's memory to the disk: %m");
        p->flushing = false;
        for (unsigned i = 0; i < p->n_taken; i++) {
                Request *request = &p->requests[i];

                if (request->flushes) {
                        answer(p, request, result < 0 ? RESULT_FAILED : RESULT_OK);
                        request->flushes = false;
                } else {
                        Request moved = p->requests[kept];

                        p->requests[kept] = *request;
                        *request = moved;
                        kept++;
                }
        }
        p->n_taken = kept;
        virtqueue_notify(device_queue(p->device, QUEUE));
}

/* Takes what is complete, where something is. */
static void reap(Pmem *p) {
        struct io_uring_cqe *cqe;

        while (io_uring_peek_cqe(&p->ring, &cqe) == 0) {
                int result = cqe->res;

                io_uring_cqe_seen(&p->ring, cqe);
                end_flush(p, result);
        }
}

/* One that asks for something else, or for nothing, is answered at once. */
static void take_request(Pmem *p, Request *request) {
        struct virtio_pmem_req wish = { .type = UINT32_MAX };
        size_t n = iov_cursor_read(&request->chain.readable, &wish, sizeof(wish));

        p->n_requests++;
        if (n < sizeof(wish) || wish.type != VIRTIO_PMEM_REQ_TYPE_FLUSH) {
                if (log_ratelimit(&p->nonsense, NULL))
                        log_warning("The guest asked for something of type %u, which is no flush.", wish.type);
                answer(p, request, RESULT_FAILED);
        } else if (p->image.read_only)
                answer(p, request, RESULT_OK);
        else {
                request->flushes = false;
                p->n_taken++;
        }
}

static int take_requests(Pmem *p) {
        Virtqueue *q = device_queue(p->device, QUEUE);
        unsigned n = 0;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (p->n_taken < REQUESTS_MAX && n++ < REQUESTS_MAX &&
                        (r = virtqueue_pop(q, &p->requests[p->n_taken].chain)) > 0)
                        take_request(p, &p->requests[p->n_taken]);
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (p->n_taken == REQUESTS_MAX)
                        return 0; /* the end of a flush goes on */
                if (n >= REQUESTS_MAX)
                        return 1;
        } while (virtqueue_want_kicks(q));
        return 0;
}

static int pmem_process(Device *d, unsigned index) {
        Pmem *p = device_data(d);
        int again, r;

        again = take_requests(p);
        r = begin_flush(p); /* also for those that came before one that broke the queue */
        return again < 0 ? again : r < 0 ? r : again;
}

/* There may be more than were taken. */
static int on_again(sd_event_source *source, void *userdata) {
        Pmem *p = userdata;
        int r;

        if (!device_is_running(p->device))
                return 0;
        r = pmem_process(p->device, QUEUE);
        if (r == -EBADMSG) {
                device_broken(p->device, "%s", virtqueue_error(device_queue(p->device, QUEUE)) ?: "broken");
                return 0;
        }
        return r > 0 ? sd_event_source_set_enabled(p->again_source, SD_EVENT_ONESHOT) : r;
}

static int on_ring(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Pmem *p = userdata;

        reap(p);
        return on_again(source, p);
}

static int pmem_start(Device *d) {
        return 0; /* process() is called for a queue that comes into service */
}

/* What was taken is answered. */
static void pmem_stop(Device *d) {
        Pmem *p = device_data(d);

        while (p->n_taken > 0) {
                int r = begin_flush(p);

                if (r >= 0)
                        r = block_ring_wait(&p->ring);
                if (r >= 0)
                        reap(p);
                else {
                        for (unsigned i = 0; i < p->n_taken; i++)
                                p->requests[i].flushes = true;
                        end_flush(p, r);
                }
        }
}

static int make_ring(Pmem *p) {
        int r;

        r = io_uring_queue_init(2, &p->ring, 0);
        if (r < 0)
                return log_error_errno(r, "Cannot set up io_uring: %m");
        p->ring_made = true;
        r = io_uring_register_files(&p->ring, &p->image.fd, 1);
        if (r < 0)
                return log_error_errno(r, "Cannot register the file with io_uring: %m");
        r = sd_event_add_io(device_event(p->device), &p->ring_source, p->ring.ring_fd, EPOLLIN, on_ring, p);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(p->ring_source, true);
        if (r >= 0)
                r = sd_event_add_defer(device_event(p->device), &p->again_source, on_again, p);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(p->again_source, true);
        if (r >= 0)
                r = sd_event_source_set_enabled(p->again_source, SD_EVENT_OFF);
        return r < 0 ? log_error_errno(r, "Cannot watch io_uring: %m") : 0;
}

static int pmem_open(Device *d) {
        Pmem *p = calloc(1, sizeof(Pmem));
        int r;

        if (!p)
                return log_oom();
        p->device = d;
        p->image = (BlockImage) BLOCK_IMAGE_NULL;
        p->failed = p->nonsense = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };
        device_set_data(d, p);
        r = block_image_open(d, &p->image);
        return r < 0 ? r : make_ring(p);
}

static void pmem_close(Device *d) {
        Pmem *p = device_data(d);

        if (!p)
                return;
        (void) sd_event_source_disable_unref(p->ring_source);
        (void) sd_event_source_disable_unref(p->again_source);
        if (p->ring_made)
                io_uring_queue_exit(&p->ring);
        for (unsigned i = 0; i < REQUESTS_MAX; i++)
                virtqueue_chain_done(&p->requests[i].chain);
        block_image_done(&p->image);
        free(p);
        device_set_data(d, NULL);
}

static void pmem_describe(Device *d, json_object *into) {
        const Pmem *p = device_data(d);

        (void) json_object_object_add(into, "size", json_object_new_uint64(p->image.size));
        (void) json_object_object_add(into, "readOnly", json_object_new_boolean(p->image.read_only));
}

static void pmem_counters(Device *d, json_object *into) {
        const Pmem *p = device_data(d);

        (void) json_object_object_add(into, "flushRequests", json_object_new_uint64(p->n_requests));
        (void) json_object_object_add(into, "flushes", json_object_new_uint64(p->n_flushes));
}

static int pmem_save(Device *d, StateWriter *w) {
        return block_image_save(&((Pmem *) device_data(d))->image, w);
}

static int pmem_load(Device *d, StateReader *r, char **ret_message) {
        return block_image_load(&((Pmem *) device_data(d))->image, r, ret_message);
}

/* Where the memory is, its configuration space says: that is vmmd's to know. */
const DeviceClass pmem_device = {
        .name = "pmem",
        .virtio_id = 27,
        .queues_max = 1,
        .policy = "pmem",
        .open = pmem_open,
        .close = pmem_close,
        .start = pmem_start,
        .stop = pmem_stop,
        .process = pmem_process,
        .save = pmem_save,
        .load = pmem_load,
        .describe = pmem_describe,
        .counters = pmem_counters,
};
