/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Kernel files to the loader. The first byte chooses between the input as it is, a whole bzImage and a whole vmlinux; to those the
 * rest is applied as patches: where (16 bits), how many bytes (8 bits, 1 to 8), and the bytes. */

#include "../unit/x86-kernels.h"

#define PATCH_HEADER 3

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void patch(uint8_t *image, size_t image_size, const uint8_t *data, size_t size) {
        while (size > PATCH_HEADER) {
                size_t offset = load_le16(data) % image_size, width = (size_t) data[2] % 8 + 1;

                data += PATCH_HEADER;
                size -= PATCH_HEADER;
                width = MIN(width, size);
                width = MIN(width, image_size - offset);
                memcpy(image + offset, data, width);
                data += width;
                size -= width;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static GuestMemory memory;
        uint8_t image[FAKE_BZIMAGE_SIZE];
        const uint8_t *contents = image;
        size_t contents_size;
        _cleanup_free_ char *message = NULL;
        X86BootInput input = { .initrd_fd = -EBADF, .command_line = "quiet" };
        X86BootEntry entry;

        if (size < 1)
                return 0;
        if (memory.n_regions == 0 &&
                guest_memory_add(&memory, guest_memory_create_fd(MIB(64), 0), 0, 0, MIB(64), 0) < 0)
                abort();

        switch (data[0] % 3) {
        case 0:
                make_bzimage(image);
                contents_size = FAKE_BZIMAGE_SIZE;
                patch(image, contents_size, data + 1, size - 1);
                break;
        case 1:
                make_elf(image);
                contents_size = FAKE_ELF_SIZE;
                patch(image, contents_size, data + 1, size - 1);
                break;
        default:
                contents = data + 1;
                contents_size = size - 1;
        }

        input.kernel_fd = make_file(contents, contents_size);
        if (input.kernel_fd < 0)
                abort();
        if (x86_load_boot(&memory, &input, &entry, &message) >= 0) {
                /* What is entered is RAM above the boot structures. */
                if (entry.rip < X86_HIGH_MEMORY_START || !guest_memory_at(&memory, entry.rip, 1))
                        abort();
        } else if (!message)
                abort(); /* no refusal without a reason */
        (void) safe_close(input.kernel_fd);
        return 0;
}
