/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst): the protected-mode part is loaded, the setup code is
 * not run, and the kernel is entered 0x200 bytes behind its beginning. */

#include "boot-kernel.h"
#include "e820.h"
#include "layout.h"

#define SETUP_HEADER_OFFSET 0x1F1
#define SECTOR_SIZE 512
#define PROTOCOL_MIN 0x020C          /* the first with xloadflags, by which a 64-bit entry is known */
#define HEADER_END_MIN 0x264         /* up to and with init_size */
#define ENTRY_64_OFFSET 0x200
#define ALIGNMENT_MIN 0x1000
#define ALIGNMENT_MAX 0x40000000

/* Takes the setup header as far as the kernel says that it has one ("The real-mode kernel header", end of the header). */
static int read_setup_header(const KernelFile *file, const uint8_t *head, struct setup_header *ret, char **ret_message) {
        size_t end = 0x202 + (size_t) head[0x201];

        *ret = (struct setup_header) {};
        memcpy(ret, head + SETUP_HEADER_OFFSET, MIN(end - SETUP_HEADER_OFFSET, sizeof(*ret)));

        if (ret->version < PROTOCOL_MIN)
                return set_message(ret_message, -ENOEXEC,
                        "%s: boot protocol at offset 0x206 is %u.%02u, expected 2.12 or newer (Linux 3.8).", file->name,
                        ret->version >> 8, ret->version & 0xFF);
        if (end < HEADER_END_MIN)
                return set_message(ret_message, -ENOEXEC,
                        "%s: the setup header ends at offset 0x%zx, expected 0x%x or more in boot protocol %u.%02u.", file->name,
                        end, HEADER_END_MIN, ret->version >> 8, ret->version & 0xFF);
        if (!(ret->loadflags & LOADED_HIGH))
                return set_message(ret_message, -ENOEXEC,
                        "%s: loadflags at offset 0x211 are 0x%02x: a zImage, expected a bzImage (LOADED_HIGH).", file->name,
                        ret->loadflags);
        if (!(ret->xloadflags & XLF_KERNEL_64))
                return set_message(ret_message, -ENOEXEC,
                        "%s: xloadflags at offset 0x236 are 0x%04x: a 32-bit kernel, expected a 64-bit one (XLF_KERNEL_64).",
                        file->name, ret->xloadflags);
        if (ret->relocatable_kernel && (ret->kernel_alignment < ALIGNMENT_MIN || ret->kernel_alignment > ALIGNMENT_MAX ||
                                               (ret->kernel_alignment & (ret->kernel_alignment - 1)) != 0))
                return set_message(ret_message, -ENOEXEC,
                        "%s: kernel_alignment at offset 0x230 is 0x%x, expected a power of two from 0x%x to 0x%x.", file->name,
                        ret->kernel_alignment, ALIGNMENT_MIN, ALIGNMENT_MAX);
        return 0;
}

/* Which part of the file is the kernel proper. What follows it (a signature) is not loaded. */
static int find_payload(const KernelFile *file, const struct setup_header *header, uint64_t *ret_offset, uint64_t *ret_size,
        char **ret_message) {
        /* "If the setup_sects field contains 0, the real value is 4." */
        uint64_t sectors = header->setup_sects != 0 ? header->setup_sects : 4;
        uint64_t offset = (sectors + 1) * SECTOR_SIZE, size = (uint64_t) header->syssize * 16;

        if (size <= ENTRY_64_OFFSET)
                return set_message(ret_message, -ENOEXEC,
                        "%s: syssize at offset 0x1f4 gives a kernel of %llu bytes, expected more than %u.", file->name,
                        (unsigned long long) size, ENTRY_64_OFFSET);
        /* syssize counts in 16 bytes, rounded up. */
        if (offset >= file->size || size - 15 > file->size - offset)
                return set_message(ret_message, -ENOEXEC,
                        "%s: truncated: %llu bytes long, expected %llu of setup and %llu of kernel.", file->name,
                        (unsigned long long) file->size, (unsigned long long) offset, (unsigned long long) size);

        *ret_offset = offset;
        *ret_size = MIN(size, file->size - offset);
        return 0;
}

/* At its preferred address where that is free RAM, else, where it can be moved, as low as its alignment allows. */
static int choose_address(const KernelFile *file, const struct setup_header *header, uint64_t need, uint64_t ram_end,
        uint64_t *ret, char **ret_message) {
        uint64_t preferred = header->pref_address, address = preferred;

        if (address < X86_HIGH_MEMORY_START || !range_within(address, need, ram_end)) {
                if (!header->relocatable_kernel)
                        return set_message(ret_message, -ENOMEM,
                                "%s: cannot be relocated and needs %llu bytes at 0x%llx, but the guest's low memory is 0x%llx to 0x%llx.",
                                file->name, (unsigned long long) need, (unsigned long long) preferred, X86_HIGH_MEMORY_START,
                                (unsigned long long) ram_end);
                address = ALIGN_UP(X86_HIGH_MEMORY_START, (uint64_t) header->kernel_alignment);
        }
        if (!range_within(address, need, ram_end))
                return set_message(ret_message, -ENOMEM,
                        "%s: needs %llu bytes from 0x%llx on to start, but the guest's low memory ends at 0x%llx.", file->name,
                        (unsigned long long) need, (unsigned long long) address, (unsigned long long) ram_end);
        *ret = address;
        return 0;
}

int bzimage_load(const KernelFile *file, const uint8_t head[static KERNEL_HEAD_SIZE], const GuestMemory *memory,
        LoadedKernel *ret, char **ret_message) {
        uint64_t offset = 0, size = 0, need, address = 0;
        struct setup_header header;
        int r;

        r = read_setup_header(file, head, &header, ret_message);
        if (r < 0)
                return r;
        r = find_payload(file, &header, &offset, &size, ret_message);
        if (r < 0)
                return r;
        need = MAX((uint64_t) header.init_size, size);
        r = choose_address(file, &header, need, x86_low_ram_end(memory), &address, ret_message);
        if (r < 0)
                return r;
        r = kernel_file_load(file, memory, address, offset, size, ret_message);
        if (r < 0)
                return r;

        header.code32_start = (uint32_t) address;
        *ret = (LoadedKernel) {
                .kind = X86_ENTRY_LONG_MODE,
                .entry = address + ENTRY_64_OFFSET,
                .address = address,
                .size = need,
                .command_line_max = header.cmdline_size,
                .initrd_address_max = header.initrd_addr_max,
                .header = header,
        };
        return 0;
}
