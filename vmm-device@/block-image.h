/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What is behind a disk: a raw file or a block device on the host, locked against being used twice. */

#include "device.h"

typedef struct BlockImage {
        int fd;
        bool read_only;
        bool direct;             /* O_DIRECT: buffers, offsets and lengths are multiples of `alignment` */
        uint32_t alignment;
        uint64_t size;           /* bytes, a multiple of logical_block */
        uint32_t logical_block;  /* what the guest is told, in bytes */
        uint32_t physical_block;
} BlockImage;
#define BLOCK_IMAGE_NULL { .fd = -EBADF }

/* Opens and locks what the device's options name. Says what is wrong. */
int block_image_open(Device *d, BlockImage *ret);
void block_image_done(BlockImage *image);
