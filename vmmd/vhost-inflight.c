/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The log is a file of the helper's, who may make it shorter while we look: so it is read and written, and never mapped. */

#include <linux/virtio_ring.h>

#include "vhost-inflight.h"
#include "virtqueue.h"

void vhost_in_flight_done(VhostInFlight *f) {
        for (size_t i = 0; i < ELEMENTSOF(f->heads); i++)
                free(f->heads[i]);
        *f = (VhostInFlight) {};
}

bool vhost_in_flight_any(const VhostInFlight *f) {
        for (size_t i = 0; i < ELEMENTSOF(f->n); i++)
                if (f->n[i] > 0)
                        return true;
        return false;
}

int vhost_in_flight_copy(const VhostInFlight *f, VhostInFlight *ret) {
        VhostInFlight copy = {};

        for (size_t i = 0; i < ELEMENTSOF(f->n); i++) {
                if (f->n[i] == 0)
                        continue;
                copy.heads[i] = calloc(f->n[i], sizeof(uint16_t));
                if (!copy.heads[i]) {
                        vhost_in_flight_done(&copy);
                        return -ENOMEM;
                }
                memcpy(copy.heads[i], f->heads[i], f->n[i] * sizeof(uint16_t));
                copy.n[i] = f->n[i];
        }
        *ret = copy;
        return 0;
}

/* Where the queue's region is in the file; false where the log has none for it. */
static bool find_region(const VhostActivation *a, unsigned index, uint64_t *ret_offset) {
        uint64_t size = queue_region_size(a->inflight.queue_size);

        if (a->inflight_fd < 0 || index >= a->inflight.num_queues || a->queues[index].size > a->inflight.queue_size ||
                a->inflight.mmap_offset > INT64_MAX / 2 || !range_within(index * size, size, a->inflight.mmap_size))
                return false;
        *ret_offset = a->inflight.mmap_offset + index * size;
        return true;
}

static int read_queue(const VhostActivation *a, unsigned index, VhostInFlight *ret) {
        uint16_t size = a->queues[index].size;
        _cleanup_free_ QueueRegionSplit *region = NULL;
        uint64_t offset;
        int n;

        if (!a->queues[index].enabled || !find_region(a, index, &offset))
                return 0;
        region = malloc(queue_region_size(size));
        if (!region)
                return -ENOMEM;
        n = pread_full(a->inflight_fd, region, queue_region_size(size), offset);
        if (n < 0)
                return n;
        /* Of nothing yet: the ring was never served. */
        if (region->version == 0)
                return 0;
        n = queue_region_in_flight(region, size, &ret->heads[index]);
        if (n < 0)
                return n;
        if (n == 0)
                ret->heads[index] = mfree(ret->heads[index]);
        ret->n[index] = (uint16_t) n;
        return 0;
}

int vhost_in_flight_read(const VhostActivation *a, VhostInFlight *ret) {
        VhostInFlight f = {};
        int r = 0;

        for (unsigned i = 0; i < a->n_queues && r >= 0; i++)
                r = read_queue(a, i, &f);
        if (r < 0) {
                vhost_in_flight_done(&f);
                return r;
        }
        *ret = f;
        return 0;
}

bool vhost_in_flight_fits(const VhostActivation *a, const VhostInFlight *f) {
        for (unsigned i = 0; i < ELEMENTSOF(f->n); i++) {
                if (f->n[i] == 0)
                        continue;
                if (i >= a->n_queues || !a->queues[i].enabled || f->n[i] > a->queues[i].size)
                        return false;
                for (size_t k = 0; k < f->n[i]; k++)
                        if (f->heads[i][k] >= a->queues[i].size)
                                return false;
        }
        return true;
}

static int write_queue(const GuestMemory *memory, const VhostActivation *a, unsigned index, const uint16_t *heads, size_t n) {
        const VhostQueue *q = &a->queues[index];
        const struct vring_used *used = guest_memory_at(memory, q->device, sizeof(struct vring_used));
        _cleanup_free_ QueueRegionSplit *region = NULL;
        uint64_t offset;
        ssize_t written;
        int r;

        if (!used || !find_region(a, index, &offset))
                return -EREMOTEIO;
        region = calloc(1, queue_region_size(q->size));
        if (!region)
                return -ENOMEM;
        r = queue_region_fill(region, q->size, __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE), heads, n);
        if (r < 0)
                return r;
        written = pwrite(a->inflight_fd, region, queue_region_size(q->size), (off_t) offset);
        return written < 0 ? -errno : (uint64_t) written == queue_region_size(q->size) ? 0 : -EIO;
}

int vhost_in_flight_write(const GuestMemory *memory, const VhostActivation *a, const VhostInFlight *f) {
        int r = 0;

        for (unsigned i = 0; i < a->n_queues && r >= 0; i++)
                if (f->n[i] > 0)
                        r = write_queue(memory, a, i, f->heads[i], f->n[i]);
        return r;
}
