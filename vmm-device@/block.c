/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Block device (virtio 1.2 §5.2) on io_uring.
 *
 * A request is a chain: header, data, status byte. It takes one or several steps, each one operation of the ring: a read or write goes on where it
 * was cut short, a discard has a step for each of its ranges. Operations are collected while a queue is drained and submitted at
 * once; what the page cache can answer is complete when the submission returns, and is given back with the same
 * notification. At most REQUESTS_MAX requests are in progress; a queue waits when there are no more.
 *
 * A write to the page cache is the exception: io_uring gives it to a worker thread, since most file systems may have to wait there, and the way to that and
 * back costs ten times what the write does. It is done at once, and while writes turn out to wait, by the ring. */

#include <json-c/json.h>
#include <liburing.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "block-control.h"
#include "block-image.h"
#include "log.h"

#define SECTOR_SHIFT 9
#define REQUESTS_MAX 256
#define QUEUES_MAX 16
#define SEG_MAX 126 /* with header and status a queue of 128 without indirect descriptors holds it */
#define RANGES_MAX 16
#define RANGE_SECTORS_MAX (1U << 22)
#define BOUNCE_MAX KIB(128)
#define ZEROES_SIZE MIB(1)
/* Requests served before the loop looks at something else. */
#define TURN_MAX 1024
/* Bytes written at once before the guest is told, and before the loop looks at something else. */
#define WRITTEN_TELL KIB(256)
#define WRITTEN_MAX MIB(4)
/* A write that took so long had to wait (for dirty pages to be written back, or a journal; not only for its turn of the processor), and so long the
 * ring has them all. */
#define SLOW_USEC (20 * USEC_PER_MSEC)
#define SLOW_TIME_USEC USEC_PER_SEC

typedef struct Request {
        struct Request *next; /* in the list of free ones */
        VirtqueueChain chain;
        unsigned queue;
        uint32_t type;       /* VIRTIO_BLK_T_* */
        IovCursor data;      /* what is left to transfer, */
        uint64_t offset;     /* and where in the image it goes to or comes from */
        IovCursor status;
        uint32_t written;    /* for the used ring */
        struct iovec *iov;   /* of the operation in progress */
        size_t iov_allocated;
        uint8_t *bounce;     /* aligned, for O_DIRECT with buffers that are not */
        bool bouncing;
        struct virtio_blk_discard_write_zeroes ranges[RANGES_MAX];
        unsigned n_ranges, at_range;
        uint64_t zeroes_left; /* of the range in progress, where zeroes are written by hand */
        bool syncing;        /* last step in write-through mode */
} Request;

typedef struct Block {
        Device *device;
        BlockImage image;
        char serial[VIRTIO_BLK_ID_BYTES + 1];
        bool discard;
        bool write_through; /* CONFIG_WCE, or a driver that cannot flush (§5.2.6.2) */
        uint8_t wce;
        uint8_t *kept_write_through; /* the reverse of that, which outlives us: the driver does not say it again */

        struct io_uring ring;
        bool ring_made;
        unsigned unsubmitted;
        sd_event_source *ring_source, *again_source;
        uint8_t *zeroes;

        Request *free;
        unsigned n_requests; /* allocated */
        unsigned n_active;
        bool waiting[QUEUES_MAX]; /* has chains that were not taken */
        bool dirty[QUEUES_MAX];   /* has chains that were pushed and not shown */
        bool stopping;
        uint64_t slow_until_usec; /* writes go through the ring till then */
        uint64_t written_now, told; /* bytes in this turn, and those of them that the guest knows about */

        uint64_t n_reads, n_writes, n_flushes, n_errors, bytes_read, bytes_written;
} Block;

/* Requests */

static Request *request_get(Block *b) {
        Request *request = b->free;

        if (request)
                b->free = request->next;
        else if (b->n_requests < REQUESTS_MAX) {
                request = calloc(1, sizeof(Request));
                if (request)
                        b->n_requests++;
        }
        return request;
}

static void request_put(Block *b, Request *request) {
        request->next = b->free;
        b->free = request;
}

static void request_finish(Block *b, Request *request, uint8_t status) {
        Virtqueue *q = device_queue(b->device, request->queue);

        (void) iov_cursor_write(&request->status, &status, sizeof(status));
        virtqueue_push(q, &request->chain, request->written);
        b->dirty[request->queue] = true;
        b->n_active--;
        if (status != VIRTIO_BLK_S_OK)
                b->n_errors++;
        request->bounce = mfree(request->bounce);
        request_put(b, request);
}

/* One operation of the ring. There is always room: a request has one operation at a time, and the ring has REQUESTS_MAX. */
static struct io_uring_sqe *request_operation(Block *b, Request *request) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);

        assert(sqe);
        b->unsubmitted++;
        return sqe;
}

static void operation_ready(struct io_uring_sqe *sqe, Request *request) {
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data(sqe, request);
}

/* Transfers */

static bool buffers_are_aligned(const Block *b, const struct iovec *iov, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (((uintptr_t) iov[i].iov_base | iov[i].iov_len) & (b->image.alignment - 1))
                        return false;
        return true;
}

/* Describes what is left by request->iov; *ret_n buffers. */
static int map_data(Request *request, size_t *ret_n) {
        size_t n = MIN(request->chain.n_readable + request->chain.n_writable, (size_t) IOV_MAX);

        if (n > request->iov_allocated) {
                struct iovec *grown = reallocarray(request->iov, n, sizeof(struct iovec));
                if (!grown)
                        return -ENOMEM;
                request->iov = grown;
                request->iov_allocated = n;
        }
        (void) iov_cursor_map(&request->data, request->data.left, request->iov, n, ret_n);
        return 0;
}

/* Points the operation at an aligned buffer of our own. */
static int map_bounce(Block *b, Request *request, bool is_write) {
        size_t length = (size_t) MIN(request->data.left, BOUNCE_MAX);
        IovCursor source = request->data;

        if (!request->bounce && posix_memalign((void **) &request->bounce, 4096, BOUNCE_MAX) != 0)
                return -ENOMEM;
        if (is_write)
                (void) iov_cursor_read(&source, request->bounce, length);
        request->iov[0] = (struct iovec) { .iov_base = request->bounce, .iov_len = length };
        request->bouncing = true;
        return 0;
}

static int submit_transfer(Block *b, Request *request) {
        bool is_write = request->type == VIRTIO_BLK_T_OUT;
        struct io_uring_sqe *sqe;
        size_t n;
        int r;

        r = map_data(request, &n);
        if (r < 0)
                return r;
        request->bouncing = false;
        if (b->image.direct && !buffers_are_aligned(b, request->iov, n)) {
                r = map_bounce(b, request, is_write);
                if (r < 0)
                        return r;
                n = 1;
        }

        sqe = request_operation(b, request);
        if (is_write)
                io_uring_prep_writev2(sqe, 0, request->iov, (unsigned) n, request->offset, b->write_through ? RWF_DSYNC : 0);
        else
                io_uring_prep_readv(sqe, 0, request->iov, (unsigned) n, request->offset);
        operation_ready(sqe, request);
        return 0;
}

static bool may_write_now(const Block *b) {
        return !b->image.direct && !b->image.is_device && !b->write_through && (b->slow_until_usec == 0 || b->slow_until_usec <= now_usec());
}

/* Into the page cache, without the ring. Returns 0 where all is written, -EAGAIN where the ring has to do the rest, or what went wrong. */
static int write_now(Block *b, Request *request) {
        while (request->data.left > 0) {
                uint64_t begin;
                ssize_t written;
                size_t n;
                int r;

                if (!may_write_now(b))
                        return -EAGAIN;
                r = map_data(request, &n);
                if (r < 0)
                        return r;
                begin = now_usec();
                written = pwritev(b->image.fd, request->iov, (int) n, (off_t) request->offset);
                if (written <= 0)
                        return written < 0 ? (errno == EINTR ? -EAGAIN : -errno) : -EIO;
                if (now_usec() - begin >= SLOW_USEC)
                        b->slow_until_usec = now_usec() + SLOW_TIME_USEC;
                (void) iov_cursor_skip(&request->data, (uint64_t) written);
                request->offset += (uint64_t) written;
                b->written_now += (uint64_t) written;
        }
        return 0;
}

/* Takes note of `n` bytes transferred. */
static void advance_transfer(Request *request, uint64_t n) {
        if (request->bouncing && request->type == VIRTIO_BLK_T_IN)
                (void) iov_cursor_write(&request->data, request->bounce, (size_t) n);
        else
                (void) iov_cursor_skip(&request->data, n);
        request->offset += n;
}

/* Discard and write zeroes */

static int fallocate_mode(const Request *request) {
        const struct virtio_blk_discard_write_zeroes *range = &request->ranges[request->at_range];

        /* Without the unmap bit the blocks must stay allocated (§5.2.6.2). */
        if (request->type == VIRTIO_BLK_T_WRITE_ZEROES && !(range->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP))
                return FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
        return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
}

static void submit_range(Block *b, Request *request) {
        const struct virtio_blk_discard_write_zeroes *range = &request->ranges[request->at_range];
        struct io_uring_sqe *sqe = request_operation(b, request);

        io_uring_prep_fallocate(sqe, 0, fallocate_mode(request), (off_t) (range->sector << SECTOR_SHIFT),
                (off_t) ((uint64_t) range->num_sectors << SECTOR_SHIFT));
        operation_ready(sqe, request);
}

/* By hand, where the file system or device cannot do it. */
static void submit_zeroes(Block *b, Request *request) {
        struct io_uring_sqe *sqe = request_operation(b, request);

        io_uring_prep_write(sqe, 0, b->zeroes, (unsigned) MIN(request->zeroes_left, ZEROES_SIZE), request->offset);
        operation_ready(sqe, request);
}

static void submit_sync(Block *b, Request *request) {
        struct io_uring_sqe *sqe = request_operation(b, request);

        io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
        operation_ready(sqe, request);
}

static void range_done(Block *b, Request *request) {
        request->zeroes_left = 0;
        if (++request->at_range < request->n_ranges)
                submit_range(b, request);
        else if (b->write_through) {
                request->syncing = true;
                submit_sync(b, request);
        } else
                request_finish(b, request, VIRTIO_BLK_S_OK);
}

static bool cannot_fallocate(int result) {
        return result == -EOPNOTSUPP || result == -EINVAL || result == -ENOSYS;
}

static void range_advanced(Block *b, Request *request, int result) {
        const struct virtio_blk_discard_write_zeroes *range = &request->ranges[request->at_range];

        if (request->syncing)
                request_finish(b, request, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
        else if (request->zeroes_left > 0) {
                if (result <= 0) {
                        request_finish(b, request, VIRTIO_BLK_S_IOERR);
                        return;
                }
                request->zeroes_left -= (uint64_t) result;
                request->offset += (uint64_t) result;
                if (request->zeroes_left > 0)
                        submit_zeroes(b, request);
                else
                        range_done(b, request);
        } else if (cannot_fallocate(result) && request->type == VIRTIO_BLK_T_WRITE_ZEROES) {
                request->offset = (uint64_t) range->sector << SECTOR_SHIFT;
                request->zeroes_left = (uint64_t) range->num_sectors << SECTOR_SHIFT;
                submit_zeroes(b, request);
        } else if (result < 0 && !cannot_fallocate(result))
                request_finish(b, request, VIRTIO_BLK_S_IOERR);
        else
                range_done(b, request); /* a discard is advice */
}

/* §5.2.6.2 says which answer each mistake has. */
static uint8_t check_ranges(const Block *b, const Request *request) {
        uint32_t flags_known = request->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

        for (unsigned i = 0; i < request->n_ranges; i++) {
                const struct virtio_blk_discard_write_zeroes *range = &request->ranges[i];

                if (range->flags & ~flags_known)
                        return VIRTIO_BLK_S_UNSUPP;
                if (range->num_sectors == 0 || range->num_sectors > RANGE_SECTORS_MAX ||
                        !range_within(range->sector, range->num_sectors, b->image.size >> SECTOR_SHIFT))
                        return VIRTIO_BLK_S_IOERR;
        }
        return VIRTIO_BLK_S_OK;
}

static void begin_ranges(Block *b, Request *request) {
        uint64_t size = request->data.left;
        uint8_t status;

        if (request->type == VIRTIO_BLK_T_DISCARD && !b->discard) {
                request_finish(b, request, VIRTIO_BLK_S_UNSUPP);
                return;
        }
        if (b->image.read_only || size == 0 || size % sizeof(request->ranges[0]) != 0 || size > sizeof(request->ranges)) {
                request_finish(b, request, VIRTIO_BLK_S_IOERR);
                return;
        }
        request->n_ranges = (unsigned) (iov_cursor_read(&request->data, request->ranges, size) / sizeof(request->ranges[0]));
        request->at_range = 0;
        request->zeroes_left = 0;
        request->syncing = false;
        status = check_ranges(b, request);
        if (status != VIRTIO_BLK_S_OK)
                request_finish(b, request, status);
        else
                submit_range(b, request);
}

/* Beginning and continuing a request */

static void begin_transfer(Block *b, Request *request, uint64_t sector) {
        uint64_t length = request->data.left, sectors = b->image.size >> SECTOR_SHIFT;
        bool is_write = request->type == VIRTIO_BLK_T_OUT;
        int r;

        if (length == 0 || length % (1U << SECTOR_SHIFT) != 0 || !range_within(sector, length >> SECTOR_SHIFT, sectors) ||
                (is_write && b->image.read_only)) {
                request_finish(b, request, VIRTIO_BLK_S_IOERR);
                return;
        }
        request->offset = sector << SECTOR_SHIFT;
        *(is_write ? &b->n_writes : &b->n_reads) += 1;
        *(is_write ? &b->bytes_written : &b->bytes_read) += length;
        r = is_write ? write_now(b, request) : -EAGAIN;
        if (r == -EAGAIN)
                r = submit_transfer(b, request);
        else if (r == 0) {
                request_finish(b, request, VIRTIO_BLK_S_OK);
                return;
        }
        if (r < 0)
                request_finish(b, request, VIRTIO_BLK_S_IOERR);
}

static void answer_id(Block *b, Request *request, IovCursor *into) {
        /* "NUL padded, not necessarily terminated" */
        (void) iov_cursor_write(into, b->serial, VIRTIO_BLK_ID_BYTES);
        request_finish(b, request, VIRTIO_BLK_S_OK);
}

/* §5.2.6: header, data, status. Returns -EBADMSG where header or status byte is missing, so that nobody could be answered. */
static int request_begin(Block *b, Request *request) {
        struct virtio_blk_outhdr header;
        IovCursor readable = request->chain.readable, writable = request->chain.writable, input;

        if (iov_cursor_read(&readable, &header, sizeof(header)) != sizeof(header) || writable.left == 0)
                return -EBADMSG;
        input = iov_cursor_take(&writable, writable.left - 1);
        request->status = writable;
        request->type = header.type;
        request->written = (uint32_t) MIN(request->chain.writable.left, (uint64_t) UINT32_MAX);
        b->n_active++;

        switch (request->type) {

        case VIRTIO_BLK_T_IN:
                request->data = input;
                begin_transfer(b, request, header.sector);
                break;

        case VIRTIO_BLK_T_OUT:
                request->data = readable;
                begin_transfer(b, request, header.sector);
                break;

        case VIRTIO_BLK_T_FLUSH:
                b->n_flushes++;
                submit_sync(b, request);
                break;

        case VIRTIO_BLK_T_GET_ID:
                answer_id(b, request, &input);
                break;

        case VIRTIO_BLK_T_DISCARD:
        case VIRTIO_BLK_T_WRITE_ZEROES:
                request->data = readable;
                begin_ranges(b, request);
                break;

        default:
                request_finish(b, request, VIRTIO_BLK_S_UNSUPP);
        }
        return 0;
}

static void transfer_advanced(Block *b, Request *request, int result) {
        if (result == -EAGAIN || result == -EINTR)
                result = submit_transfer(b, request);
        else if (result > 0) {
                advance_transfer(request, (uint64_t) result);
                if (request->data.left == 0) {
                        request_finish(b, request, VIRTIO_BLK_S_OK);
                        return;
                }
                result = submit_transfer(b, request);
        } else if (result == 0)
                result = -EIO; /* the file has become shorter */
        if (result < 0)
                request_finish(b, request, VIRTIO_BLK_S_IOERR);
}

static void request_advanced(Block *b, Request *request, int result) {
        switch (request->type) {

        case VIRTIO_BLK_T_IN:
        case VIRTIO_BLK_T_OUT:
                transfer_advanced(b, request, result);
                break;

        case VIRTIO_BLK_T_FLUSH:
                request_finish(b, request, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
                break;

        default:
                range_advanced(b, request, result);
        }
}

/* Queues and the ring */

static int submit(Block *b, bool wait) {
        int r;

        if (b->unsubmitted == 0 && !wait)
                return 0;
        do
                r = wait ? block_ring_wait(&b->ring) : io_uring_submit(&b->ring);
        while (r == -EINTR || r == -EAGAIN);
        if (r < 0)
                return log_error_errno(r, "Cannot submit to io_uring: %m");
        b->unsubmitted = io_uring_sq_ready(&b->ring);
        return 0;
}

/* Takes what is complete; returns how many operations. */
static unsigned reap(Block *b) {
        struct io_uring_cqe *cqes[64];
        unsigned n, sum = 0;

        while ((n = io_uring_peek_batch_cqe(&b->ring, cqes, ELEMENTSOF(cqes))) > 0) {
                for (unsigned i = 0; i < n; i++)
                        request_advanced(b, io_uring_cqe_get_data(cqes[i]), cqes[i]->res);
                io_uring_cq_advance(&b->ring, n);
                sum += n;
        }
        return sum;
}

static void notify_queues(Block *b) {
        for (unsigned i = 0; i < QUEUES_MAX; i++)
                if (b->dirty[i]) {
                        b->dirty[i] = false;
                        virtqueue_notify(device_queue(b->device, i));
                }
}

/* Takes chains from a queue while there are requests for them. Returns 0 where nothing was to be done and a kick or a completion will
 * say when there is. */
static int drain(Block *b, unsigned index) {
        Virtqueue *q = device_queue(b->device, index);
        Request *request;
        int n = 0, r = 0;

        b->waiting[index] = false;
        if (!q)
                return 0;
        virtqueue_suppress_kicks(q);
        while ((request = request_get(b))) {
                r = virtqueue_pop(q, &request->chain);
                if (r <= 0) {
                        request_put(b, request);
                        break;
                }
                request->queue = index;
                n++;
                if (request_begin(b, request) < 0) {
                        request_put(b, request);
                        device_broken(b->device, "a disk request has no header or no status byte");
                        return n;
                }
                if (b->written_now - b->told >= WRITTEN_TELL) {
                        b->told = b->written_now;
                        notify_queues(b);
                }
                if (n >= REQUESTS_MAX || b->written_now >= WRITTEN_MAX)
                        break; /* answers without an operation do not use requests up */
        }
        if (r == -EBADMSG) {
                device_broken(b->device, "%s", virtqueue_error(q));
                return n;
        }
        if (r < 0)
                return r;
        b->waiting[index] = !request || n >= REQUESTS_MAX || b->written_now >= WRITTEN_MAX;
        if (!b->waiting[index] && virtqueue_want_kicks(q)) {
                /* It came while kicks were suppressed, so none comes for it: that counts, lest pump() end here. */
                b->waiting[index] = true;
                n++;
        }
        return n;
}

/* Goes on until nothing can be done at once, or others have to have their turn. */
static int pump(Block *b) {
        unsigned done = 0;

        b->written_now = b->told = 0;
        while (!b->stopping) {
                unsigned before = done;
                int r;

                for (unsigned i = 0; i < QUEUES_MAX; i++)
                        if (b->waiting[i]) {
                                r = drain(b, i);
                                if (r < 0)
                                        return r;
                                done += (unsigned) r;
                        }
                r = submit(b, false);
                if (r < 0)
                        return r;
                done += reap(b);
                notify_queues(b);
                if (done == before)
                        return 0;
                if (done >= TURN_MAX || b->written_now >= WRITTEN_MAX)
                        return sd_event_source_set_enabled(b->again_source, SD_EVENT_ONESHOT);
        }
        return 0;
}

static int on_ring(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        return pump(userdata);
}

static int on_again(sd_event_source *source, void *userdata) {
        return pump(userdata);
}

static int block_process(Device *d, unsigned index) {
        Block *b = device_data(d);

        b->waiting[index] = true;
        return pump(b);
}

/* Life cycle */

static int make_ring(Block *b) {
        struct io_uring_params params = { .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN };
        int r;

        r = io_uring_queue_init_params(REQUESTS_MAX, &b->ring, &params);
        if (r == -EINVAL) {
                /* a kernel before 6.0 */
                params = (struct io_uring_params) {};
                r = io_uring_queue_init_params(REQUESTS_MAX, &b->ring, &params);
        }
        if (r < 0)
                return log_error_errno(r, "Cannot set up io_uring: %m");
        b->ring_made = true;
        r = io_uring_register_files(&b->ring, &b->image.fd, 1);
        if (r < 0)
                return log_error_errno(r, "Cannot register the disk with io_uring: %m");
        return 0;
}

static int make_sources(Block *b) {
        sd_event *event = device_event(b->device);
        int r;

        r = sd_event_add_io(event, &b->ring_source, b->ring.ring_fd, EPOLLIN, on_ring, b);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(b->ring_source, true);
        if (r >= 0)
                r = sd_event_add_defer(event, &b->again_source, on_again, b);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(b->again_source, true);
        if (r >= 0)
                r = sd_event_source_set_priority(b->again_source, SD_EVENT_PRIORITY_NORMAL + 5);
        if (r >= 0)
                r = sd_event_source_set_enabled(b->again_source, SD_EVENT_OFF);
        return r < 0 ? log_error_errno(r, "Cannot watch io_uring: %m") : 0;
}

static uint64_t block_features(const Block *b, unsigned n_queues) {
        uint64_t features = UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX | UINT64_C(1) << VIRTIO_BLK_F_BLK_SIZE |
                UINT64_C(1) << VIRTIO_BLK_F_TOPOLOGY | UINT64_C(1) << VIRTIO_BLK_F_FLUSH |
                UINT64_C(1) << VIRTIO_BLK_F_CONFIG_WCE;

        if (n_queues > 1)
                features |= UINT64_C(1) << VIRTIO_BLK_F_MQ;
        if (b->image.read_only)
                return features | UINT64_C(1) << VIRTIO_BLK_F_RO;
        if (b->discard)
                features |= UINT64_C(1) << VIRTIO_BLK_F_DISCARD;
        return features | UINT64_C(1) << VIRTIO_BLK_F_WRITE_ZEROES;
}

static int block_open(Device *d) {
        unsigned n_queues = (unsigned) device_option_unsigned(d, "queues", 1);
        const char *serial = device_option(d, "serial");
        Block *b = calloc(1, sizeof(Block));
        void *kept;
        int r;

        if (!b)
                return log_oom();
        /* What is more than LimitFSIZE= allows is a request that fails, and not our end. */
        (void) signal(SIGXFSZ, SIG_IGN);
        b->device = d;
        b->image = (BlockImage) BLOCK_IMAGE_NULL;
        b->discard = device_option_boolean(d, "discard", true);
        if (serial)
                memcpy(b->serial, serial, MIN(strlen(serial), (size_t) VIRTIO_BLK_ID_BYTES));
        device_set_data(d, b);

        r = block_image_open(d, &b->image);
        if (r < 0)
                return r;
        r = device_keep(d, "block-state", sizeof(*b->kept_write_through), &kept);
        if (r < 0)
                return log_error_errno(r, "Cannot keep the state of the disk's cache: %m");
        b->kept_write_through = kept;
        b->wce = *b->kept_write_through == 0;
        b->zeroes = mmap(NULL, ZEROES_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (b->zeroes == MAP_FAILED) {
                b->zeroes = NULL;
                return log_oom();
        }
        r = make_ring(b);
        if (r < 0)
                return r;
        r = make_sources(b);
        if (r < 0)
                return r;
        device_set_n_queues(d, n_queues);
        device_set_features(d, block_features(b, n_queues));
        return 0;
}

static void block_close(Device *d) {
        Block *b = device_data(d);
        Request *next;

        if (!b)
                return;
        (void) sd_event_source_disable_unref(b->ring_source);
        (void) sd_event_source_disable_unref(b->again_source);
        if (b->ring_made)
                io_uring_queue_exit(&b->ring);
        for (Request *request = b->free; request; request = next) {
                next = request->next;
                virtqueue_chain_done(&request->chain);
                free(request->iov);
                free(request);
        }
        if (b->zeroes)
                (void) munmap(b->zeroes, ZEROES_SIZE);
        block_image_done(&b->image);
        free(b);
}

static void set_cache(Block *b, uint8_t wce) {
        b->wce = wce;
        *b->kept_write_through = wce == 0;
}

static void choose_cache_mode(Block *b) {
        uint64_t features = device_features(b->device);

        /* §5.2.6.2: a driver that cannot flush cannot make its writes durable, so each of them has to be. */
        b->write_through = !(features & UINT64_C(1) << VIRTIO_BLK_F_FLUSH) ||
                (features & UINT64_C(1) << VIRTIO_BLK_F_CONFIG_WCE && b->wce == 0);
}

static int block_start(Device *d) {
        Block *b = device_data(d);

        b->stopping = false;
        choose_cache_mode(b);
        return 0;
}

/* Every request that was taken is finished: the guest gets its answers, the log is empty. */
static void block_stop(Device *d) {
        Block *b = device_data(d);

        b->stopping = true;
        while (b->n_active > 0) {
                if (submit(b, true) < 0)
                        abort(); /* operations may still write to memory that is about to be unmapped */
                (void) reap(b);
        }
        notify_queues(b);
        memset(b->waiting, 0, sizeof(b->waiting));
        (void) sd_event_source_set_enabled(b->again_source, SD_EVENT_OFF);
}

/* Configuration space, §5.2.4 */

static unsigned exponent(uint32_t a, uint32_t b) {
        unsigned n = 0;

        for (; a > b; a /= 2)
                n++;
        return n;
}

static void block_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        const Block *b = device_data(d);
        uint32_t sectors_per_block = b->image.logical_block >> SECTOR_SHIFT;
        struct virtio_blk_config config = {
                .capacity = b->image.size >> SECTOR_SHIFT,
                .seg_max = SEG_MAX,
                .blk_size = b->image.logical_block,
                .physical_block_exp = (uint8_t) exponent(b->image.physical_block, b->image.logical_block),
                .min_io_size = (uint16_t) (b->image.physical_block / b->image.logical_block),
                .wce = b->wce,
                .num_queues = (uint16_t) device_option_unsigned(d, "queues", 1),
                .max_discard_sectors = RANGE_SECTORS_MAX,
                .max_discard_seg = RANGES_MAX,
                .discard_sector_alignment = sectors_per_block,
                .max_write_zeroes_sectors = RANGE_SECTORS_MAX,
                .max_write_zeroes_seg = RANGES_MAX,
                .write_zeroes_may_unmap = b->discard,
        };

        memcpy(data, (const uint8_t *) &config + offset, length);
}

static int block_config_write(Device *d, uint32_t offset, const void *data, uint32_t length) {
        Block *b = device_data(d);
        uint8_t wce = *(const uint8_t *) data;

        /* The one field that a driver may write (§5.2.4). */
        if (offset != offsetof(struct virtio_blk_config, wce) || length != sizeof(wce) || wce > 1)
                return -EINVAL;
        set_cache(b, wce);
        choose_cache_mode(b);
        return 0;
}

static void block_describe(Device *d, json_object *into) {
        const Block *b = device_data(d);
        const char *path = device_option(d, "path");

        json_object_object_add(into, "path", path ? json_object_new_string(path) : NULL);
        json_object_object_add(into, "bytes", json_object_new_uint64(b->image.size));
        json_object_object_add(into, "readOnly", json_object_new_boolean(b->image.read_only));
        json_object_object_add(into, "direct", json_object_new_boolean(b->image.direct));
        json_object_object_add(into, "reads", json_object_new_uint64(b->n_reads));
        json_object_object_add(into, "writes", json_object_new_uint64(b->n_writes));
        json_object_object_add(into, "flushes", json_object_new_uint64(b->n_flushes));
        json_object_object_add(into, "errors", json_object_new_uint64(b->n_errors));
        json_object_object_add(into, "bytesRead", json_object_new_uint64(b->bytes_read));
        json_object_object_add(into, "bytesWritten", json_object_new_uint64(b->bytes_written));
}

static void block_counters(Device *d, json_object *into) {
        const Block *b = device_data(d);

        json_object_object_add(into, "reads", json_object_new_uint64(b->n_reads));
        json_object_object_add(into, "writes", json_object_new_uint64(b->n_writes));
        json_object_object_add(into, "flushes", json_object_new_uint64(b->n_flushes));
        json_object_object_add(into, "errors", json_object_new_uint64(b->n_errors));
        json_object_object_add(into, "readBytes", json_object_new_uint64(b->bytes_read));
        json_object_object_add(into, "writtenBytes", json_object_new_uint64(b->bytes_written));
}

static int block_resize(Device *d, VarlinkCall *call, json_object *parameters) {
        Block *b = device_data(d);
        return block_reply_resize(d, &b->image, call, parameters);
}

static const DeviceControl block_control[] = {
        { "Resize", block_resize, .privileged = true },
        {},
};

#define BLOCK_STATE_VERSION 1

static int block_save(Device *d, StateWriter *w) {
        Block *b = device_data(d);
        int r;

        state_begin(w, "block", 0, BLOCK_STATE_VERSION);
        state_put_u8(w, b->wce);
        r = state_end(w);
        return r < 0 ? r : block_image_save(&b->image, w);
}

static int block_load(Device *d, StateReader *reader, char **ret_message) {
        Block *b = device_data(d);
        uint8_t wce;
        int r;

        r = state_enter(reader, "block", 0, BLOCK_STATE_VERSION);
        if (r < 0)
                return set_message(ret_message, r, "it is no state of a disk, or a newer version's");
        wce = state_get_u8(reader);
        r = state_leave(reader, ret_message);
        if (r >= 0 && wce > 1)
                r = set_message(ret_message, -EBADMSG, "its cache is in no mode that there is");
        if (r >= 0)
                r = block_image_load(&b->image, reader, ret_message);
        if (r >= 0)
                set_cache(b, wce);
        return r;
}

const DeviceClass block_device = {
        .name = "block",
        .virtio_id = 2,
        .queues_max = QUEUES_MAX,
        .config_size = sizeof(struct virtio_blk_config),
        .policy = "block",
        .open = block_open,
        .close = block_close,
        .start = block_start,
        .stop = block_stop,
        .process = block_process,
        .config_read = block_config_read,
        .config_write = block_config_write,
        .save = block_save,
        .load = block_load,
        .describe = block_describe,
        .control = block_control,
        .counters = block_counters,
};
