/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Pages that the guest hands over, by number (inflate, deflate: §5.5.6) or as buffers (reporting: §5.5.6.7).
 *
 * They are freed as holes in the file behind guest memory, one call for a run of adjacent pages. A page that is no guest memory is passed over:
 * who lies about his pages harms nobody but himself. */

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "balloon.h"

#define BATCH 1024
/* Linux sends 256 at once. */
#define LIST_MAX KIB(64)
#define BITS 64

/* ---- freeing ---- */

static void release(Balloon *b, const void *p, uint64_t length) {
        int r = guest_memory_release(device_memory(b->device), p, length);

        if (r < 0 && log_ratelimit(&b->complaints, NULL))
                (void) log_warning_errno(r, "Cannot give guest memory back to the host: %m");
}

/* The region that holds this address, and where in it. */
static const GuestRegion *find_region(Balloon *b, uint64_t address, size_t *ret_index) {
        const GuestMemory *memory = device_memory(b->device);

        for (size_t i = 0; i < memory->n_regions; i++)
                if (address >= memory->regions[i].guest_address && address - memory->regions[i].guest_address < memory->regions[i].size) {
                        *ret_index = i;
                        return &memory->regions[i];
                }
        return NULL;
}

/* Where huge page `index` begins in the region's mapping, NULL where the region has not got the whole of it. */
static uint8_t *huge_page(const GuestRegion *region, uint64_t page_size, uint64_t index) {
        uint64_t begin = ALIGN_DOWN(region->fd_offset, page_size) + index * page_size;

        if (begin < region->fd_offset || !range_within(begin - region->fd_offset, page_size, region->size))
                return NULL;
        return region->host + (begin - region->fd_offset);
}

/* One page of a region with huge pages: the last one to arrive takes the whole with it. */
static void inflate_part(Balloon *b, const GuestRegion *region, BalloonHugeRegion *huge, uint64_t at) {
        uint64_t page = at >> VIRTIO_BALLOON_PFN_SHIFT, bit = UINT64_C(1) << (page % BITS);
        uint64_t index = (at + region->fd_offset % huge->page_size) / huge->page_size;
        uint8_t *p;

        if (!huge->in_balloon || huge->in_balloon[page / BITS] & bit)
                return;
        huge->in_balloon[page / BITS] |= bit;
        huge->count[index]++;
        if (huge->count[index] < huge->page_size / BALLOON_PAGE_SIZE)
                return;
        p = huge_page(region, huge->page_size, index);
        if (p)
                release(b, p, huge->page_size);
}

static void deflate_part(const GuestRegion *region, BalloonHugeRegion *huge, uint64_t at) {
        uint64_t page = at >> VIRTIO_BALLOON_PFN_SHIFT, bit = UINT64_C(1) << (page % BITS);

        if (!huge->in_balloon || !(huge->in_balloon[page / BITS] & bit))
                return;
        huge->in_balloon[page / BITS] &= ~bit;
        huge->count[(at + region->fd_offset % huge->page_size) / huge->page_size]--;
}

/* Frees `n` adjacent pages; those that are not there are counted. */
static void inflate_run(Balloon *b, uint32_t first, uint32_t n) {
        while (n > 0) {
                uint64_t address = (uint64_t) first << VIRTIO_BALLOON_PFN_SHIFT, at, pages;
                const GuestRegion *region;
                size_t index;

                region = find_region(b, address, &index);
                at = region ? address - region->guest_address : 0;
                /* Whole pages only. */
                pages = region ? MIN((uint64_t) n, (region->size - at) >> VIRTIO_BALLOON_PFN_SHIFT) : 0;
                if (pages == 0) {
                        b->kept->refused++;
                        pages = 1;
                } else if (b->huge[index].page_size == 0) {
                        release(b, region->host + at, pages << VIRTIO_BALLOON_PFN_SHIFT);
                        b->kept->inflated += pages;
                } else {
                        for (uint64_t i = 0; i < pages; i++)
                                inflate_part(b, region, &b->huge[index], at + (i << VIRTIO_BALLOON_PFN_SHIFT));
                        b->kept->inflated += pages;
                }
                first += (uint32_t) pages;
                n -= (uint32_t) pages;
        }
}

static int compare(const void *x, const void *y) {
        uint32_t a = *(const uint32_t *) x, b = *(const uint32_t *) y;

        return a < b ? -1 : a > b;
}

static void inflate_batch(Balloon *b, uint32_t *pages, size_t n) {
        qsort(pages, n, sizeof(*pages), compare);
        for (size_t i = 0, end; i < n; i = end) {
                for (end = i + 1; end < n && pages[end] - pages[end - 1] <= 1; end++)
                        ;
                inflate_run(b, pages[i], pages[end - 1] - pages[i] + 1);
        }
}

static void deflate_batch(Balloon *b, uint32_t *pages, size_t n) {
        b->kept->deflated += n;
        for (size_t i = 0; i < n; i++) {
                uint64_t address = (uint64_t) pages[i] << VIRTIO_BALLOON_PFN_SHIFT;
                const GuestRegion *region;
                size_t index;

                region = find_region(b, address, &index);
                if (region && b->huge[index].page_size > 0)
                        deflate_part(region, &b->huge[index], address - region->guest_address);
        }
}

/* ---- lists of page numbers ---- */

static int take_list(Balloon *b, VirtqueueChain *chain, void (*take)(Balloon *b, uint32_t *pages, size_t n)) {
        uint32_t pages[BATCH];
        size_t n;

        if (chain->readable.left > LIST_MAX * sizeof(uint32_t)) {
                device_broken(b->device, "a list of pages for the balloon has more than %llu entries", (unsigned long long) LIST_MAX);
                return -EBADMSG;
        }
        while ((n = iov_cursor_read(&chain->readable, pages, sizeof(pages)) / sizeof(pages[0])) > 0)
                take(b, pages, n);
        return 0;
}

int balloon_inflate(Balloon *b, VirtqueueChain *chain) {
        return take_list(b, chain, inflate_batch);
}

int balloon_deflate(Balloon *b, VirtqueueChain *chain) {
        return take_list(b, chain, deflate_batch);
}

/* ---- buffers ---- */

static uint64_t release_buffer(Balloon *b, const struct iovec *buffer) {
        const GuestMemory *memory = device_memory(b->device);
        uint8_t *begin = buffer->iov_base;

        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *region = &memory->regions[i];
                uint64_t page = b->huge[i].page_size > 0 ? b->huge[i].page_size : BALLOON_PAGE_SIZE, from, to;

                if (begin < region->host || begin >= region->host + region->size)
                        continue;
                /* Offsets in the file: its pages are what can be freed. */
                from = ALIGN_UP(region->fd_offset + (uint64_t) (begin - region->host), page);
                to = ALIGN_DOWN(region->fd_offset + (uint64_t) (begin - region->host) + buffer->iov_len, page);
                if (from >= to)
                        return 0;
                release(b, region->host + (from - region->fd_offset), to - from);
                return to - from;
        }
        return 0;
}

uint64_t balloon_release_buffers(Balloon *b, VirtqueueChain *chain) {
        struct iovec buffers[32];
        uint64_t freed = 0, bytes;
        size_t n;

        while ((bytes = iov_cursor_map(&chain->writable, chain->writable.left, buffers, ELEMENTSOF(buffers), &n)) > 0) {
                for (size_t i = 0; i < n; i++)
                        freed += release_buffer(b, &buffers[i]);
                (void) iov_cursor_skip(&chain->writable, bytes);
        }
        return freed;
}

/* "the device MUST NOT modify the content of a reported page to a value other than poison_val" (§5.5.6.7.2), where the driver has one. A hole
 * reads as zeroes, so with another one nothing can be freed. */
int balloon_report(Balloon *b, VirtqueueChain *chain) {
        if (device_features(b->device) & (UINT64_C(1) << VIRTIO_BALLOON_F_PAGE_POISON) && b->kept->poison != 0)
                return 0;
        b->kept->reported += balloon_release_buffers(b, chain);
        return 0;
}

/* ---- what the memory is like ---- */

static void forget_huge(BalloonHugeRegion *huge) {
        free(huge->in_balloon);
        free(huge->count);
        *huge = (BalloonHugeRegion) {};
}

void balloon_pages_done(Balloon *b) {
        for (size_t i = 0; i < ELEMENTSOF(b->huge); i++)
                forget_huge(&b->huge[i]);
}

static int keep_account(BalloonHugeRegion *huge, const GuestRegion *region) {
        huge->n_pages = region->size >> VIRTIO_BALLOON_PFN_SHIFT;
        huge->in_balloon = calloc(huge->n_pages / BITS + 1, sizeof(uint64_t));
        huge->count = calloc(region->size / huge->page_size + 2, sizeof(uint32_t));
        return huge->in_balloon && huge->count ? 0 : -ENOMEM;
}

static int look_at_region(Balloon *b, size_t index, const GuestRegion *region, bool known) {
        BalloonHugeRegion *huge = &b->huge[index];
        struct statfs fs;
        uint64_t page_size;

        if (fstatfs(region->fd, &fs) < 0)
                return -errno;
        page_size = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t) fs.f_bsize : 0;
        if (known && page_size == huge->page_size && (page_size == 0 || huge->n_pages == region->size >> VIRTIO_BALLOON_PFN_SHIFT))
                return 0;
        forget_huge(huge);
        huge->page_size = page_size;
        /* Without this the driver uses a page again before we know, and it would be taken from him with its huge page. */
        if (page_size == 0 || !(device_features(b->device) & (UINT64_C(1) << VIRTIO_BALLOON_F_MUST_TELL_HOST)))
                return 0;
        return keep_account(huge, region);
}

int balloon_look_at_memory(Balloon *b) {
        const GuestMemory *memory = device_memory(b->device);
        BalloonKept *kept = b->kept;
        struct stat st;
        bool known;
        int r = 0;

        if (fstat(memory->regions[0].fd, &st) < 0)
                return -errno;
        known = kept->memory_device == st.st_dev && kept->memory_inode == st.st_ino;
        for (size_t i = 0; i < memory->n_regions && r >= 0; i++)
                r = look_at_region(b, i, &memory->regions[i], known);
        if (r < 0 || known)
                return r;
        if (b->restored) {
                b->restored = false;
                kept->memory_device = st.st_dev;
                kept->memory_inode = st.st_ino;
                return 0;
        }

        /* What was said about another guest's memory, by a driver that is no more. */
        kept->memory_device = st.st_dev;
        kept->memory_inode = st.st_ino;
        if (kept->actual != 0) {
                kept->actual = 0;
                balloon_actual_changed(b);
        }
        return 0;
}
