/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A snapshot's file `memory`: the guest's RAM in the order of its offsets, in chunks of which each can be had by itself. Pages of nothing but zeroes are not in it.
 *
 * There are two kinds. A plain one is as long as the memory, with holes where there is nothing. A compressed one is a head, an index with an entry for each chunk, and for each chunk with anything
 * in it a frame of zstd (RFC 8878) of those of its pages that are not zeroes, with a checksum of its own. All numbers are little-endian:
 *
 *   head, 64 bytes    magic "VMMMEMZ\n"; version, u32; size of a chunk, u32; size of the memory, u64; checksum of the index, u64 (as that of `state`); zeroes
 *   entry, 16 bytes   offset of the frame in the file, u64; its length, u32; a bit for each page that is in it, u16; zeroes, u16
 *
 * Whoever reads one trusts nothing in it: offsets, lengths and pages are checked when it is opened, and a frame when it is unpacked. */

#include "util.h"

#define SNAPSHOT_PAGE KIB(4)
#define SNAPSHOT_CHUNK KIB(64)
#define SNAPSHOT_CHUNK_PAGES 16U

/* Whether this program was built with it. */
bool snapshot_memory_can_compress(void);

/* --- writing --- */

typedef struct SnapshotMemoryWriter SnapshotMemoryWriter;

/* `fd` is an empty file, and stays the caller's. -EOPNOTSUPP where `compress` cannot be. */
int snapshot_memory_writer_new(int fd, uint64_t size, bool compress, SnapshotMemoryWriter **ret);
SnapshotMemoryWriter *snapshot_memory_writer_free(SnapshotMemoryWriter *w);
DEFINE_CLEANUP(SnapshotMemoryWriter, snapshot_memory_writer_free)
/* What is at `offset`, which is a multiple of a page's size, as is `length` but at the end of the memory; from the beginning to the end. What is never written is zeroes. */
int snapshot_memory_write(SnapshotMemoryWriter *w, const uint8_t *data, size_t length, uint64_t offset);
/* Behind everything. */
int snapshot_memory_writer_finish(SnapshotMemoryWriter *w);
/* Of pages that are not zeroes, and what they take in the file. */
uint64_t snapshot_memory_bytes(const SnapshotMemoryWriter *w);
uint64_t snapshot_memory_stored(const SnapshotMemoryWriter *w);

/* --- reading --- */

typedef struct SnapshotMemory SnapshotMemory;

/* Looks at the file, which stays the caller's: what is of the wrong size, or has an index that cannot be true, is refused by -EBADMSG, what this program cannot unpack by -EOPNOTSUPP. */
int snapshot_memory_open(int fd, uint64_t size, bool compressed, SnapshotMemory **ret, char **ret_message);
SnapshotMemory *snapshot_memory_free(SnapshotMemory *m);
DEFINE_CLEANUP(SnapshotMemory, snapshot_memory_free)
uint64_t snapshot_memory_n_chunks(const SnapshotMemory *m);
/* A bit for each page of the chunk that is not a hole. */
uint16_t snapshot_memory_pages(const SnapshotMemory *m, uint64_t chunk);

/* What one thread needs to read; several may at once. */
typedef struct SnapshotMemoryBuffer {
        uint8_t *chunk;  /* SNAPSHOT_CHUNK bytes: pages at their places */
        uint8_t *packed; /* the frame; NULL for plain files */
        uint8_t *pages;  /* unpacked, side by side; NULL for plain files */
        void *context;   /* of zstd */
        uint64_t held;   /* the chunk that `chunk` has all pages of; UINT64_MAX: none */
} SnapshotMemoryBuffer;
int snapshot_memory_buffer_init(const SnapshotMemory *m, SnapshotMemoryBuffer *b);
void snapshot_memory_buffer_done(SnapshotMemoryBuffer *b);

/* Reads those pages of a chunk, which has them, into b->chunk. The message names what is damaged. */
int snapshot_memory_read(const SnapshotMemory *m, SnapshotMemoryBuffer *b, uint64_t chunk, uint16_t pages, char **ret_message);
