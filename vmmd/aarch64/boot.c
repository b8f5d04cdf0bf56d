/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "boot-kernel.h"
#include "layout.h"

static int load_kernel(const GuestMemory *memory, const Arm64BootInput *input, Arm64BootEntry *ret, char **ret_message) {
        KernelFile file;
        uint8_t head[IMAGE_HEAD_SIZE] = {};
        size_t n;
        int r;

        r = kernel_file_open(input->kernel_fd, input->kernel_name ?: "kernel", &file, ret_message);
        if (r < 0)
                return r;
        n = MIN(file.size, (uint64_t) sizeof(head));
        r = pread_full(file.fd, head, n, 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot be read: %s", file.name, strerror(-r));
        if (arm64_image_is(head, n))
                return arm64_image_load(&file, memory, ret, ret_message);
        if (n >= 2 && memcmp(head, "\x1f\x8b", 2) == 0)
                return arm64_gzip_load(&file, memory, ret, ret_message);
        if (n >= 4 && memcmp(head, "\177ELF", 4) == 0)
                return arm64_elf_load(&file, memory, ret, ret_message);
        if (n >= 8 && memcmp(head, "MZ", 2) == 0 && memcmp(head + 4, "zimg", 4) == 0)
                return set_message(ret_message, -ENOEXEC, "%s: is an EFI zboot image, which only firmware can start: expected the Image inside.",
                        file.name);
        return set_message(ret_message, -ENOEXEC,
                "%s: begins with %02x %02x %02x %02x, and has %02x %02x %02x %02x at offset 56: neither an arm64 Image (41 52 4d 64 there), nor gzip (1f 8b), nor ELF (7f 45 4c 46).",
                file.name, head[0], head[1], head[2], head[3], head[56], head[57], head[58], head[59]);
}

/* Behind kernel and device tree, so within the same 32 GiB as the kernel, as booting.rst asks. */
static int load_initrd(const GuestMemory *memory, const Arm64BootInput *input, Arm64BootEntry *entry, char **ret_message) {
        KernelFile file;
        uint64_t address = entry->fdt_address + ARM64_FDT_MAX;
        int r;

        if (input->initrd_fd < 0)
                return 0;
        r = kernel_file_open(input->initrd_fd, input->initrd_name ?: "initrd", &file, ret_message);
        if (r < 0)
                return r;
        if (file.size == 0)
                return set_message(ret_message, -EINVAL, "%s: is empty.", file.name);
        r = kernel_file_load(&file, memory, address, 0, file.size, ret_message);
        if (r < 0)
                return r;
        entry->initrd_address = address;
        entry->initrd_size = file.size;
        return 0;
}

int arm64_load_boot(const GuestMemory *memory, const Arm64BootInput *input, Arm64BootEntry *ret, char **ret_message) {
        Arm64BootEntry entry = {};
        int r;

        r = load_kernel(memory, input, &entry, ret_message);
        if (r < 0)
                return r;
        entry.fdt_address = ALIGN_UP(entry.kernel_address + entry.kernel_size, ARM64_FDT_MAX);
        if (!guest_memory_at(memory, entry.fdt_address, ARM64_FDT_MAX))
                return set_message(ret_message, -ENOMEM, "%s: behind its %llu bytes there is no memory left for the device tree.",
                        input->kernel_name ?: "kernel", (unsigned long long) entry.kernel_size);
        r = load_initrd(memory, input, &entry, ret_message);
        if (r < 0)
                return r;
        *ret = entry;
        return 0;
}

int arm64_write_fdt(const GuestMemory *memory, const Arm64BootEntry *entry, const void *fdt, size_t size, char **ret_message) {
        void *p = guest_memory_at(memory, entry->fdt_address, ARM64_FDT_MAX);

        if (!p || size > ARM64_FDT_MAX)
                return set_message(ret_message, -ENOMEM, "There is no room for a device tree of %zu bytes.", size);
        memcpy(p, fdt, size);
        return 0;
}
