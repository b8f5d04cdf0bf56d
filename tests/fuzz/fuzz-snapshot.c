/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Bytes as a snapshot's file `state`, as its meta data, and as compressed memory: also with a head whose checksum is right, so that what follows is reached. What was taken is looked at as
 * vmmd and vmmctl do, against a machine that might fit. And as memory that is compressed, and has to come back the same. */

#include <sys/mman.h>

#include "json-util.h"
#include "snapshot-memory.h"
#include "snapshot.h"

#define META "\"format\":1,\"architecture\":\"x86_64\",\"machine\":\"m\",\"memory\":67108864,\"vcpus\":1,"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static MachineDefinition *definition;

static void must(bool condition) {
        if (!condition)
                abort();
}

static void make_definition(void) {
        static const char text[] = "{ \"memory\": \"64M\", \"kernel\": \"/k\", \"devices\": { \"a\": { \"type\": \"rng\" }, \"b\": { \"type\": \"console\" } } }";
        DefinitionError e = {};

        if (!definition)
                must(definition_parse(text, strlen(text), "fuzz", "m", &definition, &e) >= 0);
}

static void look_at_meta(const char *text, size_t size) {
        _cleanup_json_ json_object *meta = NULL;
        _cleanup_free_ char *message = NULL, *misfit = NULL;
        int r;

        r = snapshot_meta_parse(text, size, &meta, &message);
        must((r >= 0) == (meta != NULL) && (r >= 0 || r == -ENOMEM || message));
        if (r < 0)
                return;
        for (size_t i = 0; i < snapshot_meta_n_devices(meta); i++) {
                SnapshotDevice d;

                snapshot_meta_device(meta, i, &d);
                must(d.name && d.type && d.queues <= 1024);
        }
        for (size_t i = 0; i < snapshot_meta_n_disks(meta); i++) {
                SnapshotDisk d;

                snapshot_meta_disk(meta, i, &d);
                must(d.device && d.mtime_nsec < NSEC_PER_SEC);
        }
        r = snapshot_check_definition(meta, definition, &misfit);
        must(r >= 0 || r == -ENOMEM || misfit);
}

static void look_at_state(const void *buffer, size_t buffer_size) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        _cleanup_free_ char *message = NULL;
        const void *data;
        SnapshotDisk disk;
        size_t size;

        if (snapshot_parse_state(buffer, buffer_size, &data, &size, &message) < 0) {
                must(message);
                return;
        }
        must((const uint8_t *) data + size == (const uint8_t *) buffer + buffer_size);
        if (state_reader_new(data, size, &reader, NULL) >= 0)
                (void) snapshot_disk_load(reader, &disk, NULL);
}

/* With the head that belongs to it. */
static void look_at_state_with_head(const uint8_t *data, size_t size) {
        _cleanup_close_ int fd = memfd_create("state", MFD_CLOEXEC);
        _cleanup_free_ void *buffer = NULL;
        const void *payload;
        size_t payload_size;

        must(fd >= 0 && snapshot_write_state(fd, data, size) >= 0);
        must(snapshot_read_state(fd, &buffer, &payload, &payload_size, NULL) >= 0);
        must(payload_size == size && (size == 0 || memcmp(payload, data, size) == 0));
        look_at_state((const uint8_t *) payload - 32, size + 32);
}

/* --- memory --- */

#define MEMORY_SIZE (KIB(256) - SNAPSHOT_PAGE) /* the last chunk is none of a whole */
#define MEMORY_CHUNKS 4U
#define MEMORY_HEAD 64U
#define MEMORY_INDEX (16U * MEMORY_CHUNKS)

/* Each chunk that there is said to be; whatever is in it stays within the buffer. NULL: it is hostile. */
static void read_memory(int fd, const uint8_t *expected) {
        _cleanup_(snapshot_memory_buffer_done) SnapshotMemoryBuffer buffer = {};
        _cleanup_(snapshot_memory_freep) SnapshotMemory *memory = NULL;
        _cleanup_free_ char *message = NULL;
        static const uint8_t zeroes[SNAPSHOT_PAGE];
        int r;

        r = snapshot_memory_open(fd, MEMORY_SIZE, true, &memory, &message);
        must(r >= 0 || r == -ENOMEM || message);
        if (r < 0) {
                must(!expected);
                return;
        }
        must(snapshot_memory_buffer_init(memory, &buffer) >= 0);
        for (uint64_t i = 0; i < snapshot_memory_n_chunks(memory); i++) {
                uint16_t pages = snapshot_memory_pages(memory, i);

                r = snapshot_memory_read(memory, &buffer, i, pages, NULL);
                must(r >= 0 || !expected);
                for (unsigned page = 0; expected && page < SNAPSHOT_CHUNK_PAGES && i * SNAPSHOT_CHUNK + page * SNAPSHOT_PAGE < MEMORY_SIZE; page++)
                        must(memcmp(expected + i * SNAPSHOT_CHUNK + page * SNAPSHOT_PAGE,
                                     pages & 1U << page ? buffer.chunk + page * SNAPSHOT_PAGE : zeroes, SNAPSHOT_PAGE) == 0);
        }
}

/* As it is, and with the head and the index' checksum that belong to it. */
static void look_at_memory(const uint8_t *data, size_t size) {
        _cleanup_close_ int fd = memfd_create("memory", MFD_CLOEXEC);
        uint8_t head[MEMORY_HEAD] = "VMMMEMZ\n";

        must(fd >= 0 && write_full(fd, data, size) >= 0);
        read_memory(fd, NULL);
        if (size < MEMORY_INDEX)
                return;
        store_le32(head + 8, 1);
        store_le32(head + 12, SNAPSHOT_CHUNK);
        store_le64(head + 16, MEMORY_SIZE);
        store_le64(head + 24, snapshot_checksum(data, MEMORY_INDEX));
        must(lseek(fd, 0, SEEK_SET) == 0 && write_full(fd, head, sizeof(head)) >= 0 && write_full(fd, data, size) >= 0);
        read_memory(fd, NULL);
}

/* The bytes here and there in it. */
static void keep_memory(const uint8_t *data, size_t size) {
        _cleanup_(snapshot_memory_writer_freep) SnapshotMemoryWriter *w = NULL;
        _cleanup_close_ int fd = memfd_create("memory", MFD_CLOEXEC);
        static uint8_t memory[MEMORY_SIZE];
        uint64_t at = 0;

        memset(memory, 0, sizeof(memory));
        for (size_t i = 0; i < size && at < MEMORY_SIZE; i += 8, at += SNAPSHOT_PAGE * (1U + data[i] % 24U) + data[i])
                memcpy(memory + at, data + i, MIN(MIN((size_t) 8, size - i), (size_t) (MEMORY_SIZE - at)));
        must(fd >= 0 && snapshot_memory_writer_new(fd, MEMORY_SIZE, true, &w) >= 0);
        must(snapshot_memory_write(w, memory, MEMORY_SIZE, 0) >= 0 && snapshot_memory_writer_finish(w) >= 0);
        read_memory(fd, memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *text;

        make_definition();
        look_at_meta((const char *) data, size);
        look_at_state(data, size);
        look_at_state_with_head(data, size);
        if (snapshot_memory_can_compress()) {
                look_at_memory(data, size);
                keep_memory(data, size);
        }

        text = malloc(size + sizeof(META) + 2);
        if (!text)
                return 0;
        text[0] = '{';
        memcpy(text + 1, META, sizeof(META) - 1);
        memcpy(text + sizeof(META), data, size);
        look_at_meta(text, sizeof(META) + size);
        free(text);
        return 0;
}
