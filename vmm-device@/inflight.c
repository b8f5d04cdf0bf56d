/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/mman.h>
#include <sys/stat.h>

#include "inflight.h"

int inflight_create(uint16_t num_queues, uint16_t queue_size, uint64_t *ret_size) {
        uint64_t size = num_queues * queue_region_size(queue_size);
        int fd;

        if (num_queues == 0 || queue_size == 0 || queue_size > VIRTQUEUE_NUM_MAX)
                return -EINVAL;
        fd = memfd_create_sealed("vmm-inflight", size, 0);
        if (fd >= 0)
                *ret_size = size;
        return fd;
}

int inflight_open(Inflight *inflight, int fd, uint64_t size, uint64_t offset, uint16_t num_queues, uint16_t queue_size) {
        struct stat st;
        void *p;

        if (num_queues == 0 || queue_size == 0 || queue_size > VIRTQUEUE_NUM_MAX ||
                size < num_queues * queue_region_size(queue_size) || size > INT64_MAX || offset > INT64_MAX)
                return -EINVAL;
        if (fstat(fd, &st) < 0)
                return -errno;
        /* A mapping beyond the end of its file would end in SIGBUS. */
        if (!S_ISREG(st.st_mode) || !range_within(offset, size, (uint64_t) st.st_size))
                return -EINVAL;

        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t) offset);
        if (p == MAP_FAILED)
                return -errno;
        inflight_done(inflight);
        *inflight = (Inflight) { .mapping = p, .size = size, .num_queues = num_queues, .queue_size = queue_size };
        return 0;
}

void inflight_done(Inflight *inflight) {
        if (inflight->mapping)
                (void) munmap(inflight->mapping, inflight->size);
        *inflight = (Inflight) {};
}

QueueRegionSplit *inflight_region(const Inflight *inflight, unsigned index) {
        if (!inflight->mapping || index >= inflight->num_queues)
                return NULL;
        return (QueueRegionSplit *) (void *) (inflight->mapping + index * queue_region_size(inflight->queue_size));
}

void inflight_clear(Inflight *inflight) {
        if (inflight->mapping)
                memset(inflight->mapping, 0, inflight->num_queues * queue_region_size(inflight->queue_size));
}
