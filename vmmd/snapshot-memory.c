/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "snapshot-memory.h"
#include "snapshot.h"

#if HAVE_ZSTD
#include <zstd.h>
#endif

#define MAGIC "VMMMEMZ\n"
#define VERSION 1
#define HEAD_SIZE 64U
#define ENTRY_SIZE 16U
/* More than any frame of a chunk: what does not get smaller gets longer by some bytes. */
#define FRAME_MAX (SNAPSHOT_CHUNK + KIB(1))
/* The machine stands still meanwhile, so it is the fastest of the ordinary ones. */
#define LEVEL 1

static uint64_t count_chunks(uint64_t size) {
        return ALIGN_UP(size, SNAPSHOT_CHUNK) / SNAPSHOT_CHUNK;
}

/* Those of a chunk that the memory has at all. */
static uint16_t pages_of(uint64_t size, uint64_t chunk) {
        uint64_t left = ALIGN_UP(size - chunk * SNAPSHOT_CHUNK, SNAPSHOT_PAGE) / SNAPSHOT_PAGE;

        return left >= SNAPSHOT_CHUNK_PAGES ? UINT16_MAX : (uint16_t) ((1U << left) - 1);
}

/* --- zstd, or none --- */

#if HAVE_ZSTD
bool snapshot_memory_can_compress(void) {
        return true;
}

static int new_compressor(void **ret) {
        ZSTD_CCtx *c = ZSTD_createCCtx();

        if (!c)
                return -ENOMEM;
        if (ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, LEVEL)) || ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1))) {
                (void) ZSTD_freeCCtx(c);
                return -ENOMEM;
        }
        *ret = c;
        return 0;
}

static void free_compressor(void *c) {
        (void) ZSTD_freeCCtx(c);
}

static int compress(void *c, uint8_t *to, size_t room, const uint8_t *from, size_t size, size_t *ret) {
        size_t n = ZSTD_compress2(c, to, room, from, size);

        if (ZSTD_isError(n))
                return -EIO;
        *ret = n;
        return 0;
}

static int new_decompressor(void **ret) {
        ZSTD_DCtx *c = ZSTD_createDCtx();

        if (!c)
                return -ENOMEM;
        *ret = c;
        return 0;
}

static void free_decompressor(void *c) {
        (void) ZSTD_freeDCtx(c);
}

static bool decompress(void *c, uint8_t *to, size_t size, const uint8_t *from, size_t length) {
        size_t n = ZSTD_decompressDCtx(c, to, size, from, length);

        return !ZSTD_isError(n) && n == size;
}
#else
bool snapshot_memory_can_compress(void) {
        return false;
}

static int new_compressor(void **ret) {
        return -EOPNOTSUPP;
}

static void free_compressor(void *c) {
}

static int compress(void *c, uint8_t *to, size_t room, const uint8_t *from, size_t size, size_t *ret) {
        return -EOPNOTSUPP;
}

static int new_decompressor(void **ret) {
        return -EOPNOTSUPP;
}

static void free_decompressor(void *c) {
}

static bool decompress(void *c, uint8_t *to, size_t size, const uint8_t *from, size_t length) {
        return false;
}
#endif

/* --- writing --- */

struct SnapshotMemoryWriter {
        int fd;
        uint64_t size, end, bytes, stored;

        void *compressor; /* NULL: plain; and so are the others */
        uint8_t *index, *frame;
        uint64_t position;
        uint64_t chunk;       /* that is being collected */
        uint16_t chunk_pages; /* what there is of it in `pages`, side by side */
        uint8_t *pages;
};

int snapshot_memory_writer_new(int fd, uint64_t size, bool compressed, SnapshotMemoryWriter **ret) {
        _cleanup_(snapshot_memory_writer_freep) SnapshotMemoryWriter *w = calloc(1, sizeof(SnapshotMemoryWriter));
        int r;

        if (!w)
                return -ENOMEM;
        *w = (SnapshotMemoryWriter) { .fd = fd, .size = size };
        if (!compressed) {
                if (ftruncate(fd, (off_t) size) < 0)
                        return -errno;
                *ret = TAKE_PTR(w);
                return 0;
        }
        r = new_compressor(&w->compressor);
        if (r < 0)
                return r;
        w->index = calloc(count_chunks(size), ENTRY_SIZE);
        w->pages = malloc(SNAPSHOT_CHUNK);
        w->frame = malloc(FRAME_MAX);
        if (!w->index || !w->pages || !w->frame)
                return -ENOMEM;
        w->position = HEAD_SIZE + count_chunks(size) * ENTRY_SIZE;
        *ret = TAKE_PTR(w);
        return 0;
}

SnapshotMemoryWriter *snapshot_memory_writer_free(SnapshotMemoryWriter *w) {
        if (!w)
                return NULL;
        free_compressor(w->compressor);
        free(w->index);
        free(w->pages);
        free(w->frame);
        return mfree(w);
}

static bool is_zero(const uint8_t *page, size_t size) {
        return *page == 0 && memcmp(page, page + 1, size - 1) == 0;
}

static int write_at(int fd, const uint8_t *data, size_t size, uint64_t offset) {
        while (size > 0) {
                ssize_t n = pwrite(fd, data, size, (off_t) offset);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                data += n;
                size -= (size_t) n;
                offset += (uint64_t) n;
        }
        return 0;
}

/* The pages that are not zeroes, each run of them by one call. */
static int write_plain(SnapshotMemoryWriter *w, const uint8_t *data, size_t length, uint64_t offset) {
        size_t begin = 0, end = 0;
        int r = 0;

        while (end < length && r >= 0) {
                for (begin = end; begin < length && is_zero(data + begin, MIN(SNAPSHOT_PAGE, length - begin));)
                        begin += SNAPSHOT_PAGE;
                for (end = begin; end < length && !is_zero(data + end, MIN(SNAPSHOT_PAGE, length - end));)
                        end += SNAPSHOT_PAGE;
                begin = MIN(begin, length);
                end = MIN(end, length);
                r = write_at(w->fd, data + begin, end - begin, offset + begin);
                w->bytes += end - begin;
                w->stored += end - begin;
        }
        return r;
}

/* What there is of the chunk that came last. */
static int write_chunk(SnapshotMemoryWriter *w) {
        size_t n = (size_t) __builtin_popcount(w->chunk_pages) * SNAPSHOT_PAGE, size;
        uint8_t *entry = w->index + w->chunk * ENTRY_SIZE;
        int r;

        if (n == 0)
                return 0;
        if (load_le64(entry) != 0)
                return -EINVAL;
        r = compress(w->compressor, w->frame, FRAME_MAX, w->pages, n, &size);
        if (r >= 0)
                r = write_at(w->fd, w->frame, size, w->position);
        if (r < 0)
                return r;
        store_le64(entry, w->position);
        store_le32(entry + 8, (uint32_t) size);
        store_le16(entry + 12, w->chunk_pages);
        w->position += size;
        w->bytes += n;
        w->stored += size;
        w->chunk_pages = 0;
        return 0;
}

/* Others may have the memory, too: what is kept is what was looked at. */
static void add_page(SnapshotMemoryWriter *w, const uint8_t *data, size_t length, unsigned page) {
        uint8_t *to = w->pages + (size_t) __builtin_popcount(w->chunk_pages) * SNAPSHOT_PAGE;

        memcpy(to, data, length);
        memset(to + length, 0, SNAPSHOT_PAGE - length);
        if (!is_zero(to, SNAPSHOT_PAGE))
                w->chunk_pages |= (uint16_t) (1U << page);
}

static int write_compressed(SnapshotMemoryWriter *w, const uint8_t *data, size_t length, uint64_t offset) {
        int r = 0;

        for (size_t done = 0, n; done < length && r >= 0; done += n, offset += n) {
                n = MIN((size_t) SNAPSHOT_PAGE, length - done);
                if (offset / SNAPSHOT_CHUNK != w->chunk)
                        r = write_chunk(w);
                w->chunk = offset / SNAPSHOT_CHUNK;
                if (r >= 0)
                        add_page(w, data + done, n, (unsigned) (offset / SNAPSHOT_PAGE % SNAPSHOT_CHUNK_PAGES));
        }
        return r;
}

int snapshot_memory_write(SnapshotMemoryWriter *w, const uint8_t *data, size_t length, uint64_t offset) {
        if (offset % SNAPSHOT_PAGE != 0 || offset < w->end || offset > w->size || length > w->size - offset)
                return -EINVAL;
        w->end = offset + length;
        return w->compressor ? write_compressed(w, data, length, offset) : write_plain(w, data, length, offset);
}

int snapshot_memory_writer_finish(SnapshotMemoryWriter *w) {
        size_t index_size = count_chunks(w->size) * ENTRY_SIZE;
        uint8_t head[HEAD_SIZE] = MAGIC;
        int r;

        if (!w->compressor)
                return 0;
        r = write_chunk(w);
        if (r < 0)
                return r;
        store_le32(head + 8, VERSION);
        store_le32(head + 12, SNAPSHOT_CHUNK);
        store_le64(head + 16, w->size);
        store_le64(head + 24, snapshot_checksum(w->index, index_size));
        r = write_at(w->fd, w->index, index_size, HEAD_SIZE);
        w->stored += HEAD_SIZE + index_size;
        return r < 0 ? r : write_at(w->fd, head, sizeof(head), 0);
}

uint64_t snapshot_memory_bytes(const SnapshotMemoryWriter *w) {
        return w->bytes;
}

uint64_t snapshot_memory_stored(const SnapshotMemoryWriter *w) {
        return w->stored;
}

/* --- reading --- */

struct SnapshotMemory {
        int fd;
        uint64_t size, n_chunks;
        uint16_t *pages; /* of each chunk */
        uint8_t *index;  /* NULL: plain */
};

uint64_t snapshot_memory_n_chunks(const SnapshotMemory *m) {
        return m->n_chunks;
}

uint16_t snapshot_memory_pages(const SnapshotMemory *m, uint64_t chunk) {
        return chunk < m->n_chunks ? m->pages[chunk] : 0;
}

SnapshotMemory *snapshot_memory_free(SnapshotMemory *m) {
        if (!m)
                return NULL;
        free(m->pages);
        free(m->index);
        return mfree(m);
}

static void note_data(SnapshotMemory *m, uint64_t begin, uint64_t end) {
        for (uint64_t page = begin / SNAPSHOT_PAGE; page < ALIGN_UP(end, SNAPSHOT_PAGE) / SNAPSHOT_PAGE; page++)
                m->pages[page / SNAPSHOT_CHUNK_PAGES] |= (uint16_t) (1U << page % SNAPSHOT_CHUNK_PAGES);
}

/* Where there are holes. A file system without any has data everywhere. */
static int look_plain(SnapshotMemory *m, uint64_t file_size, char **ret_message) {
        uint64_t offset = 0;

        if (file_size != m->size)
                return set_message(ret_message, -EBADMSG, "The file 'memory' has %" PRIu64 " bytes, and should have %" PRIu64 ".", file_size, m->size);
        while (offset < m->size) {
                off_t data = lseek(m->fd, (off_t) offset, SEEK_DATA), hole;

                if (data < 0 && errno == ENXIO)
                        return 0;
                hole = data < 0 ? -1 : lseek(m->fd, data, SEEK_HOLE);
                if (hole < 0)
                        return set_message(ret_message, -errno, "Cannot look for holes in the file 'memory': %s.", strerror(errno));
                /* Somebody else has the file, too. */
                if (hole <= data)
                        return set_message(ret_message, -EBADMSG, "The file 'memory' changes while it is looked at.");
                if ((uint64_t) data >= m->size)
                        return 0;
                note_data(m, (uint64_t) data, MIN((uint64_t) hole, m->size));
                offset = (uint64_t) hole;
        }
        return 0;
}

static int check_entry(SnapshotMemory *m, uint64_t chunk, uint64_t begin, uint64_t file_size) {
        const uint8_t *entry = m->index + chunk * ENTRY_SIZE;
        uint64_t offset = load_le64(entry);
        uint32_t length = load_le32(entry + 8);
        uint16_t pages = load_le16(entry + 12);

        if (load_le16(entry + 14) != 0 || (pages & ~pages_of(m->size, chunk)) != 0)
                return -EBADMSG;
        if (pages == 0)
                return offset == 0 && length == 0 ? 0 : -EBADMSG;
        if (length == 0 || length > FRAME_MAX || offset < begin || offset > file_size || length > file_size - offset)
                return -EBADMSG;
        m->pages[chunk] = pages;
        return 0;
}

static int look_compressed(SnapshotMemory *m, uint64_t file_size, char **ret_message) {
        size_t index_size = m->n_chunks * ENTRY_SIZE;
        uint64_t begin = HEAD_SIZE + index_size;
        uint8_t head[HEAD_SIZE];
        int r;

        if (!snapshot_memory_can_compress())
                return set_message(ret_message, -EOPNOTSUPP, "The file 'memory' is compressed by zstd, and this vmmd was built without it.");
        if (file_size < begin)
                return set_message(ret_message, -EBADMSG, "The file 'memory' has %" PRIu64 " bytes: it is cut off.", file_size);
        r = pread_full(m->fd, head, sizeof(head), 0);
        if (r < 0)
                return set_message(ret_message, r, "Cannot read the file 'memory': %s.", strerror(-r));
        if (memcmp(head, MAGIC, 8) != 0)
                return set_message(ret_message, -EBADMSG, "The file 'memory' is none of compressed memory.");
        if (load_le32(head + 8) != VERSION || load_le32(head + 12) != SNAPSHOT_CHUNK)
                return set_message(ret_message, -EPROTONOSUPPORT, "The file 'memory' has version %u in chunks of %u bytes; this vmmd reads version %u in chunks of %u.",
                        load_le32(head + 8), load_le32(head + 12), VERSION, (unsigned) SNAPSHOT_CHUNK);
        if (load_le64(head + 16) != m->size)
                return set_message(ret_message, -EBADMSG, "The file 'memory' is of %" PRIu64 " bytes of memory, and should be of %" PRIu64 ".",
                        load_le64(head + 16), m->size);
        m->index = malloc(index_size);
        if (!m->index)
                return -ENOMEM;
        r = pread_full(m->fd, m->index, index_size, HEAD_SIZE);
        if (r < 0)
                return set_message(ret_message, r, "Cannot read the file 'memory': %s.", strerror(-r));
        if (load_le64(head + 24) != snapshot_checksum(m->index, index_size))
                return set_message(ret_message, -EBADMSG, "The index of the file 'memory' is damaged: its checksum is wrong.");
        for (uint64_t i = 0; i < m->n_chunks; i++)
                if (check_entry(m, i, begin, file_size) < 0)
                        return set_message(ret_message, -EBADMSG, "The file 'memory' is damaged or cut off: chunk %" PRIu64 " is not within it.", i);
        return 0;
}

int snapshot_memory_open(int fd, uint64_t size, bool compressed, SnapshotMemory **ret, char **ret_message) {
        _cleanup_(snapshot_memory_freep) SnapshotMemory *m = NULL;
        struct stat st;
        int r;

        if (fstat(fd, &st) < 0)
                return set_message(ret_message, -errno, "Cannot look at the file 'memory': %s.", strerror(errno));
        if (!S_ISREG(st.st_mode) || size == 0)
                return set_message(ret_message, -EBADMSG, "The file 'memory' is no regular file.");
        m = calloc(1, sizeof(SnapshotMemory));
        if (!m)
                return -ENOMEM;
        *m = (SnapshotMemory) { .fd = fd, .size = size, .n_chunks = count_chunks(size) };
        m->pages = calloc(m->n_chunks, sizeof(*m->pages));
        if (!m->pages)
                return -ENOMEM;
        r = compressed ? look_compressed(m, (uint64_t) st.st_size, ret_message) : look_plain(m, (uint64_t) st.st_size, ret_message);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(m);
        return 0;
}

/* --- a chunk --- */

int snapshot_memory_buffer_init(const SnapshotMemory *m, SnapshotMemoryBuffer *b) {
        int r = 0;

        *b = (SnapshotMemoryBuffer) { .chunk = aligned_alloc(SNAPSHOT_PAGE, SNAPSHOT_CHUNK), .held = UINT64_MAX };
        if (b->chunk && m->index) {
                b->packed = malloc(FRAME_MAX);
                b->pages = malloc(SNAPSHOT_CHUNK);
                r = new_decompressor(&b->context);
        }
        if (r >= 0 && (!b->chunk || (m->index && (!b->packed || !b->pages))))
                r = -ENOMEM;
        if (r < 0)
                snapshot_memory_buffer_done(b);
        return r;
}

void snapshot_memory_buffer_done(SnapshotMemoryBuffer *b) {
        free(b->chunk);
        free(b->packed);
        free(b->pages);
        free_decompressor(b->context);
        *b = (SnapshotMemoryBuffer) {};
}

static int read_frame(const SnapshotMemory *m, SnapshotMemoryBuffer *b, uint64_t chunk) {
        const uint8_t *entry = m->index + chunk * ENTRY_SIZE;
        size_t length = load_le32(entry + 8), n = 0, size;
        uint16_t pages = m->pages[chunk];
        int r;

        /* Whoever waits for one page of it gets the others next. */
        if (b->held == chunk)
                return 0;
        b->held = UINT64_MAX;
        r = pread_full(m->fd, b->packed, length, load_le64(entry));
        if (r < 0)
                return r;
        size = (size_t) __builtin_popcount(pages) * SNAPSHOT_PAGE;
        if (!decompress(b->context, b->pages, size, b->packed, length))
                return -EBADMSG;
        for (unsigned i = 0; i < SNAPSHOT_CHUNK_PAGES; i++)
                if (pages & 1U << i)
                        memcpy(b->chunk + i * SNAPSHOT_PAGE, b->pages + n++ * SNAPSHOT_PAGE, SNAPSHOT_PAGE);
        b->held = chunk;
        return 0;
}

static int read_pages(const SnapshotMemory *m, SnapshotMemoryBuffer *b, uint64_t chunk, uint16_t pages) {
        int r = 0;

        for (unsigned i = 0, n; i < SNAPSHOT_CHUNK_PAGES && r >= 0; i += n) {
                uint64_t offset = chunk * SNAPSHOT_CHUNK + i * SNAPSHOT_PAGE;

                for (n = 0; i + n < SNAPSHOT_CHUNK_PAGES && (pages & 1U << (i + n)); n++)
                        ;
                if (n > 0)
                        r = pread_full(m->fd, b->chunk + i * SNAPSHOT_PAGE, MIN(n * SNAPSHOT_PAGE, m->size - offset), offset);
                else
                        n = 1;
        }
        return r;
}

int snapshot_memory_read(const SnapshotMemory *m, SnapshotMemoryBuffer *b, uint64_t chunk, uint16_t pages, char **ret_message) {
        int r;

        if (chunk >= m->n_chunks || (pages & ~m->pages[chunk]) != 0)
                return -EINVAL;
        r = m->index ? read_frame(m, b, chunk) : read_pages(m, b, chunk, pages);
        if (r == -EBADMSG)
                return set_message(ret_message, r, "Chunk %" PRIu64 " of the file 'memory', the %u KiB of the guest's memory at 0x%" PRIx64 ", is damaged.", chunk,
                        (unsigned) (SNAPSHOT_CHUNK / KIB(1)), chunk * SNAPSHOT_CHUNK);
        if (r < 0)
                return set_message(ret_message, r, "Cannot read chunk %" PRIu64 " of the file 'memory': %s.", chunk, strerror(-r));
        return 0;
}
