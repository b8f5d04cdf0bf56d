/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "guest-memory.h"

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
        return a < b + b_size && b < a + a_size;
}

int guest_memory_add(GuestMemory *memory, int fd_owned, uint64_t fd_offset, uint64_t guest_address, uint64_t size,
        uint64_t user_address) {
        _cleanup_close_ int fd = fd_owned;
        uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE), start, total;
        struct stat st;
        size_t at;
        void *p;

        if (size == 0 || guest_address + size < guest_address || fd_offset + size < fd_offset ||
                fd_offset + size > INT64_MAX || user_address + size < user_address)
                return -EINVAL;
        if (memory->n_regions >= GUEST_MEMORY_REGIONS_MAX)
                return -E2BIG;
        for (size_t i = 0; i < memory->n_regions; i++)
                if (overlaps(guest_address, size, memory->regions[i].guest_address, memory->regions[i].size))
                        return -EINVAL;

        if (fstat(fd, &st) < 0)
                return -errno;
        /* A mapping beyond the end of its file would answer a guest's access with SIGBUS. */
        if (S_ISREG(st.st_mode) && fd_offset + size > (uint64_t) st.st_size)
                return -ERANGE;

        /* hugetlbfs maps whole huge pages only. */
        if ((uint64_t) st.st_blksize > page && st.st_blksize % (long) page == 0)
                page = (uint64_t) st.st_blksize;
        start = ALIGN_DOWN(fd_offset, page);
        total = size + (fd_offset - start);
        p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t) start);
        if (p == MAP_FAILED)
                return -errno;

        for (at = memory->n_regions; at > 0 && memory->regions[at - 1].guest_address > guest_address; at--)
                memory->regions[at] = memory->regions[at - 1];
        memory->regions[at] = (GuestRegion) {
                .guest_address = guest_address,
                .size = size,
                .user_address = user_address,
                .fd_offset = fd_offset,
                .fd = TAKE_FD(fd),
                .host = (uint8_t *) p + (fd_offset - start),
                .mapping = p,
                .mapping_size = total,
        };
        if (user_address == 0)
                memory->regions[at].user_address = (uint64_t) (uintptr_t) memory->regions[at].host;
        memory->n_regions++;
        return 0;
}

int guest_memory_remove(GuestMemory *memory, uint64_t guest_address, uint64_t size, uint64_t user_address) {
        if (guest_address + size < guest_address)
                return -EINVAL;
        for (size_t i = 0; i < memory->n_regions; i++) {
                GuestRegion *r = &memory->regions[i];

                if (r->guest_address != guest_address || r->size != size || r->user_address != user_address)
                        continue;
                (void) munmap(r->mapping, r->mapping_size);
                r->fd = safe_close(r->fd);
                memmove(r, r + 1, (memory->n_regions - i - 1) * sizeof(*r));
                memory->n_regions--;
                return 0;
        }
        for (size_t i = 0; i < memory->n_regions; i++)
                if (overlaps(guest_address, size, memory->regions[i].guest_address, memory->regions[i].size))
                        return -EINVAL;
        return -ENOENT;
}

void guest_memory_done(GuestMemory *memory) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                (void) munmap(memory->regions[i].mapping, memory->regions[i].mapping_size);
                memory->regions[i].fd = safe_close(memory->regions[i].fd);
        }
        memory->n_regions = 0;
}

int guest_memory_map_again(const GuestMemory *memory) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *r = &memory->regions[i];
                uint64_t start = r->fd_offset - (uint64_t) (r->host - (uint8_t *) r->mapping);

                if (mmap(r->mapping, r->mapping_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, r->fd, (off_t) start) == MAP_FAILED)
                        return -errno;
        }
        return 0;
}

void *guest_memory_at(const GuestMemory *memory, uint64_t address, uint64_t length) {
        void *p;

        return length > 0 && guest_memory_span(memory, address, length, &p) == length ? p : NULL;
}

void *guest_memory_at_user(const GuestMemory *memory, uint64_t user_address, uint64_t length) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *r = &memory->regions[i];

                if (length > 0 && user_address >= r->user_address &&
                        range_within(user_address - r->user_address, length, r->size))
                        return r->host + (user_address - r->user_address);
        }
        return NULL;
}

uint64_t guest_memory_span(const GuestMemory *memory, uint64_t address, uint64_t length, void **ret) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *r = &memory->regions[i];

                if (address < r->guest_address || address - r->guest_address >= r->size)
                        continue;
                *ret = r->host + (address - r->guest_address);
                return MIN(length, r->size - (address - r->guest_address));
        }
        return 0;
}

/* Copies from file to file within the kernel; returns how much that did before it could or would not go on. */
static uint64_t send_into(const GuestRegion *region, uint64_t at, uint64_t length, int fd, uint64_t offset) {
        off_t from = (off_t) offset;
        uint64_t done = 0;

        /* The position of our own descriptor serves nothing else. hugetlbfs cannot be written to: then nothing is done. */
        if (lseek(region->fd, (off_t) (region->fd_offset + at), SEEK_SET) < 0)
                return 0;
        while (done < length) {
                ssize_t n = sendfile(region->fd, fd, &from, length - done);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        break;
                done += (uint64_t) n;
        }
        return done;
}

int guest_memory_read_file(const GuestMemory *memory, uint64_t address, uint64_t length, int fd, uint64_t offset) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *r = &memory->regions[i];
                uint64_t at = address - r->guest_address, done;

                if (address < r->guest_address || !range_within(at, length, r->size))
                        continue;
                done = send_into(r, at, length, fd, offset);
                return done < length ? pread_full(fd, r->host + at + done, length - done, offset + done) : 0;
        }
        return -EFAULT;
}

int guest_memory_release(const GuestMemory *memory, const void *p, uint64_t length) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *r = &memory->regions[i];
                uintptr_t at = (uintptr_t) p - (uintptr_t) r->host;

                if ((uintptr_t) p < (uintptr_t) r->host || !range_within(at, length, r->size))
                        continue;
                if (fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) (r->fd_offset + at), (off_t) length) < 0)
                        return -errno;
                return 0;
        }
        return -EFAULT;
}

uint64_t guest_memory_size(const GuestMemory *memory) {
        uint64_t sum = 0;

        for (size_t i = 0; i < memory->n_regions; i++)
                sum += memory->regions[i].size;
        return sum;
}

int guest_memory_create_fd(uint64_t size, uint64_t huge_page_size) {
        unsigned flags = 0;

        if (huge_page_size == MIB(2))
                flags |= MFD_HUGETLB | MFD_HUGE_2MB;
        else if (huge_page_size == GIB(1))
                flags |= MFD_HUGETLB | MFD_HUGE_1GB;
        else if (huge_page_size != 0)
                return -EINVAL;

        return memfd_create_sealed("vmm-guest-ram", size, flags);
}
