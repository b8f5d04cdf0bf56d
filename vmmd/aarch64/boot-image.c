/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An Image, plain or compressed by gzip. */

#include <zlib.h>

#include "boot-kernel.h"
#include "layout.h"

#define IMAGE_BASE_ALIGNMENT 0x200000ULL
#define IMAGE_FLAG_BIG_ENDIAN 1
#define IMAGE_OLD_TEXT_OFFSET 0x80000ULL
#define INPUT_SIZE KIB(64)
/* zlib: a window of 32 KiB, and gzip's frame only. */
#define GZIP_WINDOW (15 + 16)

bool arm64_image_is(const uint8_t *head, size_t size) {
        return size >= IMAGE_HEAD_SIZE && memcmp(head + 56, "ARM\x64", 4) == 0;
}

/* `length` is what the kernel has, decompressed. */
static int place(const KernelFile *file, const uint8_t head[static IMAGE_HEAD_SIZE], uint64_t length, const GuestMemory *memory,
        Arm64BootEntry *ret, char **ret_message) {
        uint64_t text_offset = load_le64(head + 8), image_size = load_le64(head + 16), flags = load_le64(head + 24);

        if (flags & IMAGE_FLAG_BIG_ENDIAN)
                return set_message(ret_message, -ENOEXEC, "%s: is a big-endian kernel, expected a little-endian one.", file->name);
        /* "Prior to v3.17 … where image_size is zero, text_offset can be assumed to be 0x80000." */
        if (image_size == 0)
                text_offset = IMAGE_OLD_TEXT_OFFSET;
        if (text_offset >= IMAGE_BASE_ALIGNMENT)
                return set_message(ret_message, -ENOEXEC, "%s: text_offset is 0x%llx, expected less than 2 MiB.", file->name,
                        (unsigned long long) text_offset);
        image_size = MAX(image_size, length);
        if (image_size > INT64_MAX || !guest_memory_at(memory, ARM64_RAM_BASE + text_offset, image_size))
                return set_message(ret_message, -ENOMEM, "%s: needs %llu bytes, more than the guest's memory has.", file->name,
                        (unsigned long long) image_size);
        ret->kernel_address = ret->pc = ARM64_RAM_BASE + text_offset;
        ret->kernel_size = image_size;
        return 0;
}

int arm64_image_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message) {
        uint8_t head[IMAGE_HEAD_SIZE];
        int r;

        r = pread_full(file->fd, head, sizeof(head), 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot be read: %s", file->name, strerror(-r));
        r = place(file, head, file->size, memory, ret, ret_message);
        return r < 0 ? r : kernel_file_load(file, memory, ret->kernel_address, 0, file->size, ret_message);
}

/* --- gzip --- */

typedef struct Inflater {
        const KernelFile *file;
        z_stream stream;
        uint64_t position;
        uint8_t input[INPUT_SIZE];
        bool ended;
} Inflater;

static int refill(Inflater *f, char **ret_message) {
        uint64_t n = MIN(f->file->size - f->position, (uint64_t) sizeof(f->input));
        int r;

        if (n == 0)
                return set_message(ret_message, -ENOEXEC, "%s: truncated: its gzip stream does not end.", f->file->name);
        r = pread_full(f->file->fd, f->input, n, f->position);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot be read: %s", f->file->name, strerror(-r));
        f->position += n;
        f->stream.next_in = f->input;
        f->stream.avail_in = (uInt) n;
        return 0;
}

/* Fills `data`; *ret_size is how much of it there was. */
static int inflate_some(Inflater *f, uint8_t *data, uint64_t size, uint64_t *ret_size, char **ret_message) {
        uint64_t done = 0;
        int r;

        while (done < size && !f->ended) {
                uInt chunk = (uInt) MIN(size - done, (uint64_t) INT32_MAX);

                if (f->stream.avail_in == 0) {
                        r = refill(f, ret_message);
                        if (r < 0)
                                return r;
                }
                f->stream.next_out = data + done;
                f->stream.avail_out = chunk;
                r = inflate(&f->stream, Z_NO_FLUSH);
                if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
                        return set_message(ret_message, -ENOEXEC, "%s: its gzip stream is broken: %s.", f->file->name,
                                f->stream.msg ?: zError(r));
                done += chunk - f->stream.avail_out;
                f->ended = r == Z_STREAM_END;
        }
        *ret_size = done;
        return 0;
}

/* Where it goes stands in its first bytes; how long it is, only at its end. */
static int inflate_image(Inflater *f, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message) {
        uint8_t head[IMAGE_HEAD_SIZE] = {}, *p, one;
        uint64_t room, n = 0, more = 0;
        void *span;
        int r;

        r = inflate_some(f, head, sizeof(head), &n, ret_message);
        if (r < 0)
                return r;
        if (!arm64_image_is(head, n))
                return set_message(ret_message, -ENOEXEC,
                        "%s: is compressed by gzip, but what is inside has no \"ARM\\x64\" at offset 56: no arm64 Image.", f->file->name);
        r = place(f->file, head, sizeof(head), memory, ret, ret_message);
        if (r < 0)
                return r;
        room = guest_memory_span(memory, ret->kernel_address, UINT64_MAX - ret->kernel_address, &span);
        p = span;
        memcpy(p, head, sizeof(head));
        r = inflate_some(f, p + sizeof(head), room - sizeof(head), &n, ret_message);
        /* A stream that ends with the memory's last byte says so only when it is asked again. */
        if (r >= 0 && !f->ended)
                r = inflate_some(f, &one, sizeof(one), &more, ret_message);
        if (r < 0)
                return r;
        if (more > 0)
                return set_message(ret_message, -ENOMEM, "%s: decompressed it needs more than the %llu bytes of the guest's memory.",
                        f->file->name, (unsigned long long) room);
        return place(f->file, head, sizeof(head) + n, memory, ret, ret_message);
}

int arm64_gzip_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message) {
        _cleanup_free_ Inflater *f = calloc(1, sizeof(Inflater));
        int r;

        if (!f)
                return -ENOMEM;
        f->file = file;
        if (inflateInit2(&f->stream, GZIP_WINDOW) != Z_OK)
                return -ENOMEM;
        r = inflate_image(f, memory, ret, ret_message);
        (void) inflateEnd(&f->stream);
        return r;
}
