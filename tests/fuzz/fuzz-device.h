/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The language of fuzz-device's inputs: which device, what is negotiated, then operations until the end. Numbers are little-endian. What has no
 * bytes left reads as zero, so every input means something. */

#include <stddef.h>
#include <stdint.h>

/* The first byte, modulo their number, is the index in request_devices[]; the second: */
enum {
        FUZZ_WITHOUT_INDIRECT = 1,
        FUZZ_WITHOUT_EVENT_IDX = 2,
        FUZZ_WITH_LOG = 4,   /* in-flight log */
        FUZZ_WITH_MASK = 8,  /* eight bytes follow: features not to take */
};

typedef enum FuzzOperation {
        FUZZ_REQUEST,       /* u8 which: lays a well-formed one out in descriptors 0 …, offers it, no kick */
        FUZZ_KICK,          /* u8 queue */
        FUZZ_WRITE_RING,    /* u8 queue, u16 offset, u8 length, bytes */
        FUZZ_WRITE_BUFFER,  /* u8 which, u16 offset, u8 length, bytes */
        FUZZ_DESCRIPTOR,    /* u8 queue, u8 index, u8 flags, u8 next, u8 buffer, u16 offset, u32 length */
        FUZZ_OFFER,         /* u8 queue, u8 head */
        FUZZ_INDEX,         /* u8 queue, u16 available index */
        FUZZ_HOST,          /* u8 queue, u8 length, bytes: the host has something for the guest */
        FUZZ_READ_CONFIG,   /* u8 offset, u8 size */
        FUZZ_WRITE_CONFIG,  /* u8 offset, u8 size, bytes */
        FUZZ_RESET,         /* all queues anew */
        FUZZ_ADDRESS,       /* u8 queue, u8 part, u64 address */
        FUZZ_SIZE,          /* u8 queue, u16 size */
        FUZZ_BASE,          /* u8 queue, u16 base */
        FUZZ_STOP,          /* u8 queue: stops it, and starts it where it was */
        FUZZ_ENABLE,        /* u8 queue, u8 whether */
        FUZZ_OPERATIONS,
} FuzzOperation;

/* A good input, for the beginning of a search: returns its size, 0 where there are no more than `n`. */
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size);
