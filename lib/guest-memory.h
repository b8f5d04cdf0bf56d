/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Guest-physical memory as this process sees it: a few regions, each a shared mapping of (part of) a file.
 *
 * guest_memory_at() is the one place where a guest's address becomes a pointer. Everything behind it is shared with a
 * running, hostile guest: read a value once into a local, then check and use the local. */

#include "util.h"

/* More than one vhost-user SET_MEM_TABLE can carry (eight): regions can be added one by one, as a front-end does that plugs memory. */
#define GUEST_MEMORY_REGIONS_MAX 32

typedef struct GuestRegion {
        uint64_t guest_address; /* guest-physical start */
        uint64_t size;          /* bytes */
        uint64_t user_address;  /* where the front-end has it mapped; the address space of vhost-user ring addresses */
        uint64_t fd_offset;     /* offset of the region within `fd` */
        int fd;                 /* owned */
        uint8_t *host;          /* start of the region in this process */
        void *mapping;          /* what munmap() takes; differs from `host` where fd_offset is not page-aligned */
        uint64_t mapping_size;
} GuestRegion;

typedef struct GuestMemory {
        GuestRegion regions[GUEST_MEMORY_REGIONS_MAX]; /* sorted by guest_address, not overlapping */
        size_t n_regions;
} GuestMemory;

/* Maps a region and adds it. Takes ownership of `fd`, also on error. `user_address` 0 means "the address at which
 * it is mapped here". Errors: -E2BIG too many regions, -EINVAL empty, wrapping or overlapping, -ERANGE the file is
 * shorter than offset + size, or mmap()'s. */
int guest_memory_add(GuestMemory *memory, int fd, uint64_t fd_offset, uint64_t guest_address, uint64_t size,
        uint64_t user_address);

/* Unmaps and closes the region with just this place and size. -ENOENT where there is nothing at all, -EINVAL where there is something else. */
int guest_memory_remove(GuestMemory *memory, uint64_t guest_address, uint64_t size, uint64_t user_address);

/* Unmaps and closes everything; the structure can be used again. */
void guest_memory_done(GuestMemory *memory);

/* Maps all of it once more where it is: what was said of the mappings by madvise(2) and the like is forgotten. On error some of it may not be mapped, and is
 * not to be touched any more. */
int guest_memory_map_again(const GuestMemory *memory);

/* The whole of [address, address + length) as one pointer, or NULL where any part of it lies outside guest memory or
 * it crosses from one region to the next. length 0 is NULL. */
void *guest_memory_at(const GuestMemory *memory, uint64_t address, uint64_t length);

/* The same for an address in the front-end's address space (vhost-user ring addresses are such). */
void *guest_memory_at_user(const GuestMemory *memory, uint64_t user_address, uint64_t length);

/* The length of the contiguous memory at `address`, at most `length`; *ret is its start. 0 where nothing is there.
 * For buffers that may legally cross a region boundary: call again for the rest. */
uint64_t guest_memory_span(const GuestMemory *memory, uint64_t address, uint64_t length, void **ret);

/* Copies `length` bytes at `offset` of the file into guest memory, within one region, without going through this process's mapping
 * where the region's file allows: no page is zeroed first and none faults in. -EFAULT where that is not guest memory, -ENODATA where the file
 * ends before. Not for two threads at once on the same region. */
int guest_memory_read_file(const GuestMemory *memory, uint64_t address, uint64_t length, int fd, uint64_t offset);

/* Gives the memory behind [p, p + length), which lies within one region, back to the host: a hole is punched into the region's file, and whoever
 * looks there again finds zeroes. Whole pages of the file only are worth it. */
int guest_memory_release(const GuestMemory *memory, const void *p, uint64_t length);

/* Bytes of all regions. */
uint64_t guest_memory_size(const GuestMemory *memory);

/* Creates the file behind a guest's RAM: a memfd of `size` bytes, sealed against growing, shrinking and more seals.
 * `huge_page_size` is 0 for normal pages, or 2 MiB / 1 GiB (hugetlbfs; -ENOMEM where the host has none reserved).
 * Returns the fd or a negative errno. */
int guest_memory_create_fd(uint64_t size, uint64_t huge_page_size);
