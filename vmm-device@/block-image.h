/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What is behind a disk: a raw file or a block device on the host, locked against being used twice. */

#include <liburing.h>

#include "device.h"

typedef struct BlockImage {
        int fd;
        bool read_only;
        bool is_device;          /* a block device of the host's, not a file */
        bool direct;             /* O_DIRECT: buffers, offsets and lengths are multiples of `alignment` */
        uint32_t alignment;
        uint64_t size;           /* bytes, a multiple of logical_block */
        uint32_t logical_block;  /* what the guest is told, in bytes */
        uint32_t physical_block;
} BlockImage;
#define BLOCK_IMAGE_NULL { .fd = -EBADF }

/* Opens and locks what the device's options name. Says what is wrong. */
int block_image_open(Device *d, BlockImage *ret);
/* How large it is now, rounded down to whole blocks. */
int block_image_measure(const BlockImage *image, uint64_t *ret);
/* Gives a file another size; not for block devices. */
int block_image_truncate(BlockImage *image, uint64_t size);
/* For a snapshot: which file it is, and whether this is still it, unwritten since. */
int block_image_save(const BlockImage *image, StateWriter *w);
int block_image_load(const BlockImage *image, StateReader *r, char **ret_message);
/* Submits what is ready and waits until something is complete, as long as the disk takes: it is slow, and we do not hang. */
int block_ring_wait(struct io_uring *ring);
void block_image_done(BlockImage *image);
