/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "e820.h"
#include "skip.h"
#include "vcpu-state.h"
#include "x86-kernels.h"

static void make_memory(GuestMemory *memory, uint64_t low, uint64_t high) {
        *memory = (GuestMemory) {};
        assert_int_equal(guest_memory_add(memory, guest_memory_create_fd(low, 0), 0, 0, low, 0), 0);
        if (high > 0)
                assert_int_equal(guest_memory_add(memory, guest_memory_create_fd(high, 0), 0, X86_HIGH_RAM_START, high, 0), 0);
}

/* Boots `kernel` in 64 MiB; the message of a refusal goes to *ret_message. */
static int boot(const void *kernel, size_t size, int initrd_fd, const char *command_line, X86BootEntry *ret, char **ret_message) {
        _cleanup_close_ int fd = make_file(kernel, size);
        GuestMemory memory;
        X86BootInput input = {
                .kernel_fd = fd, .kernel_name = "k", .initrd_fd = initrd_fd, .initrd_name = "i", .command_line = command_line,
        };
        int r;

        make_memory(&memory, MIB(64), 0);
        r = x86_load_boot(&memory, &input, ret, ret_message);
        guest_memory_done(&memory);
        return r;
}

static void expect_refusal(const void *kernel, size_t size, int initrd_fd, const char *command_line, int error, const char *text) {
        _cleanup_free_ char *message = NULL;
        X86BootEntry entry = { .rip = 0xABCD };

        assert_int_equal(boot(kernel, size, initrd_fd, command_line, &entry, &message), error);
        assert_non_null(message);
        assert_string_equal(message, text);
        /* Output parameters are untouched on failure. */
        assert_int_equal(entry.rip, 0xABCD);
}

/* One field of an image is replaced. */
typedef struct Patch {
        size_t offset;
        uint64_t value;
        size_t width;
        int error;
        const char *text;
} Patch;

static void expect_refusals(void (*make)(uint8_t *), size_t size, const Patch *patches, size_t n) {
        for (size_t i = 0; i < n; i++) {
                uint8_t image[FAKE_BZIMAGE_SIZE];

                make(image);
                memcpy(image + patches[i].offset, &patches[i].value, patches[i].width);
                expect_refusal(image, size, -EBADF, "", patches[i].error, patches[i].text);
        }
}

static void refuses_what_is_no_kernel(void **state) {
        static const char script[1024] = "#!/bin/sh\n";

        expect_refusal("", 0, -EBADF, "", -ENOEXEC, "k: truncated: 0 bytes long, expected a bzImage or an ELF vmlinux.");
        expect_refusal(script, 100, -EBADF, "", -ENOEXEC, "k: truncated: 100 bytes long, expected a bzImage or an ELF vmlinux.");
        expect_refusal(script, sizeof(script), -EBADF, "", -ENOEXEC,
                "k: begins with 23 21 2f 62, and has 00 00 at offset 0x1fe: neither an ELF vmlinux (7f 45 4c 46) nor a bzImage (55 aa).");
}

static void refuses_a_kernel_that_is_no_regular_file(void **state) {
        _cleanup_close_ int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *message = NULL;
        X86BootInput input = { .kernel_fd = fd, .initrd_fd = -EBADF };
        X86BootEntry entry;
        GuestMemory memory;

        make_memory(&memory, MIB(64), 0);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, &message), -EINVAL);
        assert_string_equal(message, "kernel: file type is 020000, expected a regular file.");
        guest_memory_done(&memory);
}

static void refuses_each_broken_bzimage(void **state) {
        static const Patch patches[] = {
                { 0x202, 0x41414141, 4, -ENOEXEC,
                        "k: found 41 41 41 41 at offset 0x202, expected \"HdrS\": no Linux bzImage of boot protocol 2.00 or newer." },
                { 0x206, 0x020B, 2, -ENOEXEC,
                        "k: boot protocol at offset 0x206 is 2.11, expected 2.12 or newer (Linux 3.8)." },
                { 0x201, 0x40, 1, -ENOEXEC,
                        "k: the setup header ends at offset 0x242, expected 0x264 or more in boot protocol 2.15." },
                { 0x211, 0x00, 1, -ENOEXEC,
                        "k: loadflags at offset 0x211 are 0x00: a zImage, expected a bzImage (LOADED_HIGH)." },
                { 0x236, 0x0000, 2, -ENOEXEC,
                        "k: xloadflags at offset 0x236 are 0x0000: a 32-bit kernel, expected a 64-bit one (XLF_KERNEL_64)." },
                { 0x230, 0x201000, 4, -ENOEXEC,
                        "k: kernel_alignment at offset 0x230 is 0x201000, expected a power of two from 0x1000 to 0x40000000." },
                { 0x230, 0, 4, -ENOEXEC,
                        "k: kernel_alignment at offset 0x230 is 0x0, expected a power of two from 0x1000 to 0x40000000." },
                { 0x1F4, 0x20, 4, -ENOEXEC,
                        "k: syssize at offset 0x1f4 gives a kernel of 512 bytes, expected more than 512." },
                { 0x1F4, 0x101, 4, -ENOEXEC,
                        "k: truncated: 5120 bytes long, expected 1024 of setup and 4112 of kernel." },
                { 0x1F4, UINT32_MAX, 4, -ENOEXEC,
                        "k: truncated: 5120 bytes long, expected 1024 of setup and 68719476720 of kernel." },
                { 0x1F1, 200, 1, -ENOEXEC,
                        "k: truncated: 5120 bytes long, expected 102912 of setup and 4096 of kernel." },
                { 0x260, 0x04000000, 4, -ENOMEM,
                        "k: needs 67108864 bytes from 0x200000 on to start, but the guest's low memory ends at 0x4000000." },
                { 0x260, UINT32_MAX, 4, -ENOMEM,
                        "k: needs 4294967295 bytes from 0x200000 on to start, but the guest's low memory ends at 0x4000000." },
        };

        expect_refusals(make_bzimage, FAKE_BZIMAGE_SIZE, patches, ELEMENTSOF(patches));
}

static void refuses_a_bzimage_without_its_end(void **state) {
        uint8_t image[FAKE_BZIMAGE_SIZE];

        make_bzimage(image);
        image[0x1F1] = 0; /* four sectors: the kernel begins later, and is too short then */
        expect_refusal(image, sizeof(image), -EBADF, "", -ENOEXEC,
                "k: truncated: 5120 bytes long, expected 2560 of setup and 4096 of kernel.");
        make_bzimage(image);
        expect_refusal(image, 600, -EBADF, "", -ENOEXEC, "k: truncated: 600 bytes long, expected 1024 of setup and 4096 of kernel.");
        expect_refusal(image, sizeof(image) - 16, -EBADF, "", -ENOEXEC,
                "k: truncated: 5104 bytes long, expected 1024 of setup and 4096 of kernel.");
}

static void refuses_a_fixed_kernel_that_does_not_fit_where_it_must_lie(void **state) {
        uint8_t image[FAKE_BZIMAGE_SIZE];

        make_bzimage(image);
        image[0x234] = 0;
        store_le64(image + 0x258, 0x3C00000);
        expect_refusal(image, sizeof(image), -EBADF, "", -ENOMEM,
                "k: cannot be relocated and needs 8388608 bytes at 0x3c00000, but the guest's low memory is 0x100000 to 0x4000000.");
        store_le64(image + 0x258, 0x7000);
        expect_refusal(image, sizeof(image), -EBADF, "", -ENOMEM,
                "k: cannot be relocated and needs 8388608 bytes at 0x7000, but the guest's low memory is 0x100000 to 0x4000000.");
        store_le64(image + 0x258, UINT64_MAX - 0xFFFF);
        expect_refusal(image, sizeof(image), -EBADF, "", -ENOMEM,
                "k: cannot be relocated and needs 8388608 bytes at 0xffffffffffff0000, but the guest's low memory is 0x100000 to 0x4000000.");
}

#define EHDR(field) offsetof(Elf64_Ehdr, field)
#define PHDR(i, field) (sizeof(Elf64_Ehdr) + (i) * sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, field))

static void refuses_each_broken_elf_header(void **state) {
        static const Patch patches[] = {
                { EI_CLASS, ELFCLASS32, 1, -ENOEXEC, "k: ELF class is 1, expected 2: a 64-bit kernel." },
                { EI_DATA, ELFDATA2MSB, 1, -ENOEXEC, "k: ELF byte order is 2, expected 1: little-endian." },
                { EHDR(e_machine), EM_AARCH64, 2, -ENOEXEC, "k: ELF machine is 183, expected 62: x86-64." },
                { EHDR(e_type), ET_DYN, 2, -ENOEXEC, "k: ELF type is 3, expected 2: an executable, as vmlinux is." },
                { EHDR(e_phentsize), 32, 2, -ENOEXEC, "k: ELF program headers have 32 bytes each, expected 56." },
                { EHDR(e_phnum), 0, 2, -ENOEXEC, "k: has 0 ELF program headers, expected 1 to 128." },
                { EHDR(e_phnum), 0xFFFF, 2, -ENOEXEC, "k: has 65535 ELF program headers, expected 1 to 128." },
                { EHDR(e_phoff), 4000, 8, -ENOEXEC,
                        "k: truncated: 4096 bytes long, its 3 ELF program headers begin at 0xfa0." },
                { EHDR(e_phoff), UINT64_MAX, 8, -ENOEXEC,
                        "k: truncated: 4096 bytes long, its 3 ELF program headers begin at 0xffffffffffffffff." },
        };
        uint8_t image[FAKE_ELF_SIZE];

        make_elf(image);
        expect_refusal(image, 63, -EBADF, "", -ENOEXEC, "k: truncated: 63 bytes long, an ELF header has 64.");
        expect_refusals(make_elf, FAKE_ELF_SIZE, patches, ELEMENTSOF(patches));
}

static void refuses_each_broken_elf_segment(void **state) {
        static const Patch patches[] = {
                { PHDR(0, p_filesz), 1025, 8, -ENOEXEC, "k: ELF segment 0 has 1025 bytes in the file, but only 1024 in memory." },
                { PHDR(1, p_offset), 3585, 8, -ENOEXEC, "k: truncated: 4096 bytes long, ELF segment 1 has 512 bytes at 0xe01." },
                { PHDR(1, p_offset), UINT64_MAX, 8, -ENOEXEC,
                        "k: truncated: 4096 bytes long, ELF segment 1 has 512 bytes at 0xffffffffffffffff." },
                { PHDR(0, p_paddr), 0x7000, 8, -ENOEXEC,
                        "k: ELF segment 0 is to lie at 0x7000, expected 0x100000 or above: below are the boot structures." },
                { PHDR(1, p_memsz), 0x2E00001, 8, -ENOMEM,
                        "k: ELF segment 1 needs 48234497 bytes at 0x1200000, but the guest's low memory ends at 0x4000000." },
                { PHDR(1, p_memsz), UINT64_MAX, 8, -ENOMEM,
                        "k: ELF segment 1 needs 18446744073709551615 bytes at 0x1200000, but the guest's low memory ends at 0x4000000." },
                { PHDR(1, p_paddr), 0xFEE00000, 8, -ENOMEM,
                        "k: ELF segment 1 needs 65536 bytes at 0xfee00000, but the guest's low memory ends at 0x4000000." },
                { PHDR(1, p_paddr), 0x10003FF, 8, -ENOEXEC, "k: ELF segments 0 and 1 overlap at 0x10003ff." },
                { PHDR(1, p_paddr), 0xFFFC00, 8, -ENOEXEC, "k: ELF segments 0 and 1 overlap at 0x1000000." },
                { EHDR(e_phoff), 3072, 8, -ENOEXEC, "k: none of its 3 ELF segments is to be loaded." },
        };

        expect_refusals(make_elf, FAKE_ELF_SIZE, patches, ELEMENTSOF(patches));
}

static void refuses_each_broken_elf_entry(void **state) {
        static const Patch patches[] = {
                { FAKE_NOTE_OFFSET + 36, 0x1000400, 4, -ENOEXEC, "k: its PVH entry 0x1000400 lies in none of its ELF segments." },
                { FAKE_NOTE_OFFSET + 36, 0x1200200, 4, -ENOEXEC, "k: its PVH entry 0x1200200 lies in none of its ELF segments." },
                { FAKE_NOTE_OFFSET + 24, 5, 4, -ENOEXEC,
                        "k: the PVH note (XEN_ELFNOTE_PHYS32_ENTRY) has 5 bytes, expected 4 or 8." },
                { FAKE_NOTE_OFFSET + 24, 9, 4, -ENOEXEC,
                        "k: the ELF note at 0x14 of the notes has a name of 4 and a content of 9 bytes, more than there are." },
                { FAKE_NOTE_OFFSET, UINT32_MAX, 4, -ENOEXEC,
                        "k: the ELF note at 0x0 of the notes has a name of 4294967295 and a content of 4 bytes, more than there are." },
                { PHDR(2, p_filesz), 41, 8, -ENOEXEC,
                        "k: the ELF note at 0x14 of the notes has a name of 4 and a content of 8 bytes, more than there are." },
                { PHDR(2, p_filesz), 21, 8, -ENOEXEC, "k: an ELF note begins 1 bytes before the end of the notes." },
                { PHDR(2, p_filesz), 0x100001, 8, -ENOEXEC,
                        "k: ELF segment 2 has notes of 1048577 bytes at 0x200, expected them within the file and at most 1048576." },
                { PHDR(2, p_offset), 4090, 8, -ENOEXEC,
                        "k: ELF segment 2 has notes of 44 bytes at 0xffa, expected them within the file and at most 1048576." },
        };
        uint8_t image[FAKE_ELF_SIZE];

        expect_refusals(make_elf, FAKE_ELF_SIZE, patches, ELEMENTSOF(patches));

        make_elf(image);
        store_le32(image + FAKE_NOTE_OFFSET + 28, 19); /* not the PVH note any more */
        store_le64(image + EHDR(e_entry), 0x100);
        expect_refusal(image, sizeof(image), -EBADF, "", -ENOEXEC, "k: its ELF entry 0x100 lies in none of its ELF segments.");
}

static void refuses_an_initrd_that_does_not_fit(void **state) {
        _cleanup_close_ int empty = make_file("", 0), large = make_file("", 0), pipe_end = open("/dev/zero", O_RDONLY | O_CLOEXEC);
        uint8_t image[FAKE_BZIMAGE_SIZE];

        make_bzimage(image);
        assert_int_equal(ftruncate(large, (off_t) MIB(41)), 0);
        expect_refusal(image, sizeof(image), empty, "", -EINVAL, "i: is empty.");
        expect_refusal(image, sizeof(image), pipe_end, "", -EINVAL, "i: file type is 020000, expected a regular file.");
        expect_refusal(image, sizeof(image), large, "", -EINVAL,
                "i: 42991616 bytes long, but only 41943040 are free between the kernel (up to 0x1800000) and 0x4000000.");
        /* The kernel says that it cannot see so high. */
        store_le32(image + 0x22C, 0x17FFFFF);
        expect_refusal(image, sizeof(image), large, "", -EINVAL,
                "i: 42991616 bytes long, but only 0 are free between the kernel (up to 0x1800000) and 0x1800000.");
}

static void refuses_a_command_line_that_is_too_long(void **state) {
        uint8_t image[FAKE_BZIMAGE_SIZE];
        char text[257] = {};

        memset(text, 'a', 256);
        make_bzimage(image);
        expect_refusal(image, sizeof(image), -EBADF, text, -EINVAL, "The kernel's command line has 256 bytes, k takes at most 255.");
}

static void refuses_memory_that_is_too_small(void **state) {
        _cleanup_free_ char *message = NULL;
        uint8_t image[FAKE_BZIMAGE_SIZE];
        X86BootInput input = { .initrd_fd = -EBADF, .kernel_name = "k" };
        GuestMemory memory;
        X86BootEntry entry;

        make_bzimage(image);
        input.kernel_fd = make_file(image, sizeof(image));
        make_memory(&memory, MIB(1), 0);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, &message), -ENOMEM);
        assert_string_equal(message, "The guest's memory begins with 1048576 bytes, expected 2 MiB or more.");
        guest_memory_done(&memory);

        make_memory(&memory, MIB(8), 0);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, &message), -ENOMEM);
        assert_string_equal(message, "k: needs 8388608 bytes from 0x200000 on to start, but the guest's low memory ends at 0x800000.");
        guest_memory_done(&memory);
        (void) safe_close(input.kernel_fd);
}

static void loads_a_bzimage_with_everything(void **state) {
        _cleanup_close_ int kernel = -EBADF, initrd = make_file("initrd contents", 15);
        X86BootInput input = { .initrd_fd = initrd, .command_line = "console=ttyS0", .rsdp_address = X86_ACPI_ADDRESS };
        const struct boot_params *params;
        uint8_t image[FAKE_BZIMAGE_SIZE];
        X86BootEntry entry;
        GuestMemory memory;

        make_bzimage(image);
        input.kernel_fd = kernel = make_file(image, sizeof(image));
        make_memory(&memory, MIB(64), MIB(16));
        assert_int_equal(x86_load_boot(&memory, &input, &entry, NULL), 0);

        assert_int_equal(entry.kind, X86_ENTRY_LONG_MODE);
        assert_int_equal(entry.rip, 0x1000200);
        assert_int_equal(entry.rsi, X86_BOOT_PARAMS_ADDRESS);
        assert_int_equal(entry.cr3, X86_PML4_ADDRESS);
        assert_memory_equal(guest_memory_at(&memory, 0x1000000, FAKE_PAYLOAD_SIZE), image + FAKE_SETUP_SIZE, FAKE_PAYLOAD_SIZE);
        assert_int_equal(entry.initrd_address, MIB(64) - 4096);
        assert_memory_equal(guest_memory_at(&memory, entry.initrd_address, 15), "initrd contents", 15);
        assert_string_equal(guest_memory_at(&memory, X86_COMMAND_LINE_ADDRESS, 14), "console=ttyS0");

        params = guest_memory_at(&memory, X86_BOOT_PARAMS_ADDRESS, sizeof(*params));
        assert_int_equal(params->sentinel, 0);
        assert_int_equal(params->acpi_rsdp_addr, X86_ACPI_ADDRESS);
        assert_int_equal(params->hdr.type_of_loader, 0xFF);
        assert_int_equal(params->hdr.code32_start, 0x1000000);
        assert_int_equal(params->hdr.ramdisk_image, entry.initrd_address);
        assert_int_equal(params->hdr.ramdisk_size, 15);
        assert_int_equal(params->hdr.cmd_line_ptr, X86_COMMAND_LINE_ADDRESS);
        assert_int_equal(params->hdr.setup_data, 0);
        assert_int_equal(params->e820_entries, 6);
        assert_int_equal(params->e820_table[2].addr, MIB(1));
        assert_int_equal(params->e820_table[2].size, MIB(63));
        assert_int_equal(params->e820_table[5].addr, X86_HIGH_RAM_START);
        assert_int_equal(params->e820_table[5].size, MIB(16));
        guest_memory_done(&memory);
}

static void loads_a_bzimage_lower_where_its_own_place_is_no_ram(void **state) {
        _cleanup_close_ int kernel = -EBADF;
        X86BootInput input = { .initrd_fd = -EBADF };
        uint8_t image[FAKE_BZIMAGE_SIZE];
        X86BootEntry entry;
        GuestMemory memory;

        make_bzimage(image);
        input.kernel_fd = kernel = make_file(image, sizeof(image));
        make_memory(&memory, MIB(16), 0);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, NULL), 0);
        assert_int_equal(entry.kernel_address, 0x200000);
        assert_int_equal(entry.rip, 0x200200);
        assert_int_equal(entry.initrd_size, 0);
        guest_memory_done(&memory);
}

static void loads_an_elf_kernel_by_its_pvh_note(void **state) {
        _cleanup_close_ int kernel = -EBADF, initrd = make_file("initrd", 6);
        X86BootInput input = { .initrd_fd = initrd, .command_line = "quiet", .rsdp_address = X86_ACPI_ADDRESS };
        uint8_t image[FAKE_ELF_SIZE], *bss;
        const uint8_t *info;
        X86BootEntry entry;
        GuestMemory memory;
        uint64_t module, map;

        make_elf(image);
        input.kernel_fd = kernel = make_file(image, sizeof(image));
        make_memory(&memory, MIB(64), 0);
        /* As after a reset, where the last kernel's data are still there. */
        bss = guest_memory_at(&memory, 0x1200000, 0x10000);
        memset(bss, 0xEE, 0x10000);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, NULL), 0);

        assert_int_equal(entry.kind, X86_ENTRY_PVH);
        assert_int_equal(entry.rip, 0x1000040);
        assert_int_equal(entry.rbx, X86_PVH_START_INFO_ADDRESS);
        assert_int_equal(bss[0], 0xCC);
        assert_int_equal(bss[511], 0xCC);
        assert_int_equal(bss[512], 0);
        assert_int_equal(bss[0xFFFF], 0);

        info = guest_memory_at(&memory, X86_PVH_START_INFO_ADDRESS, 56);
        assert_int_equal(load_le32(info), 0x336ec578);
        assert_int_equal(load_le32(info + 4), 1);
        assert_int_equal(load_le32(info + 12), 1); /* modules */
        module = load_le64(info + 16);
        assert_string_equal(guest_memory_at(&memory, load_le64(info + 24), 6), "quiet");
        assert_int_equal(load_le64(info + 32), X86_ACPI_ADDRESS);
        map = load_le64(info + 40);
        assert_int_equal(load_le32(info + 48), 5);
        assert_int_equal(load_le64(guest_memory_at(&memory, module, 8)), entry.initrd_address);
        assert_int_equal(load_le64(guest_memory_at(&memory, module + 8, 8)), 6);
        assert_int_equal(load_le64(guest_memory_at(&memory, map + 8, 8)), X86_LOW_MEMORY_END);
        guest_memory_done(&memory);
}

static void loads_an_elf_kernel_by_its_own_entry(void **state) {
        uint8_t image[FAKE_ELF_SIZE];
        X86BootEntry entry;

        make_elf(image);
        store_le32(image + FAKE_NOTE_OFFSET + 28, 19);
        assert_int_equal(boot(image, sizeof(image), -EBADF, NULL, &entry, NULL), 0);
        assert_int_equal(entry.kind, X86_ENTRY_LONG_MODE);
        assert_int_equal(entry.rip, 0x1000010);
        assert_int_equal(entry.rsi, X86_BOOT_PARAMS_ADDRESS);
}

static void maps_the_first_four_gib_one_to_one(void **state) {
        _cleanup_close_ int kernel = -EBADF;
        X86BootInput input = { .initrd_fd = -EBADF };
        uint8_t image[FAKE_BZIMAGE_SIZE];
        const uint64_t *pd;
        X86BootEntry entry;
        GuestMemory memory;

        make_bzimage(image);
        input.kernel_fd = kernel = make_file(image, sizeof(image));
        make_memory(&memory, MIB(64), 0);
        assert_int_equal(x86_load_boot(&memory, &input, &entry, NULL), 0);
        assert_int_equal(load_le64(guest_memory_at(&memory, entry.cr3, 8)), X86_PDPT_ADDRESS | 3);
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(load_le64(guest_memory_at(&memory, X86_PDPT_ADDRESS + i * 8, 8)), (X86_PD_ADDRESS + i * 4096) | 3);
        pd = guest_memory_at(&memory, X86_PD_ADDRESS, 4 * 4096);
        for (uint64_t i = 0; i < 2048; i++)
                assert_int_equal(pd[i], i << 21 | 0x83);
        guest_memory_done(&memory);
}

static void enters_long_mode_and_protected_mode(void **state) {
        X86BootEntry entry = { .kind = X86_ENTRY_LONG_MODE, .rip = 1, .rsi = 2, .cr3 = 0x9000, .gdt_address = 0x500, .gdt_limit = 47 };
        struct kvm_sregs sregs;
        struct kvm_regs regs;

        x86_boot_sregs(&entry, &sregs);
        x86_boot_regs(&entry, &regs);
        assert_true(sregs.cs.l && !sregs.cs.db && sregs.cs.selector == 0x10 && sregs.ds.selector == 0x18);
        assert_int_equal(sregs.cr0 & 0x80000001, 0x80000001);
        assert_int_equal(sregs.cr4 & 0x20, 0x20);
        assert_int_equal(sregs.efer, 0x500);
        assert_int_equal(sregs.cr3, 0x9000);
        assert_int_equal(sregs.apic_base, 0xFEE00900);
        assert_int_equal(regs.rflags, 2);
        assert_int_equal(regs.rsi, 2);

        entry.kind = X86_ENTRY_PVH;
        x86_boot_sregs(&entry, &sregs);
        assert_true(!sregs.cs.l && sregs.cs.db && sregs.cs.limit == UINT32_MAX);
        assert_int_equal(sregs.cr0 & 0x80000001, 1);
        assert_int_equal(sregs.cr4, 0);
        assert_int_equal(sregs.efer, 0);
}

static void load_stock_kernel(const char *name) {
        _cleanup_close_ int fd = open(name, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *message = NULL;
        X86BootInput input = { .kernel_fd = fd, .kernel_name = name, .initrd_fd = -EBADF };
        X86BootEntry entry;
        GuestMemory memory;

        make_memory(&memory, MIB(256), 0);
        if (x86_load_boot(&memory, &input, &entry, &message) < 0)
                fail_msg("%s", message);
        guest_memory_done(&memory);
}

/* Kernels that exist, where the lab has been used on this machine. */
static void loads_stock_kernels(void **state) {
        const char *cache = getenv("VMM_CACHE");
        char pattern[4096];
        glob_t found;

        (void) snprintf(pattern, sizeof(pattern), "%s/kernel-*/vmlinu[xz]", cache ? cache : "/var/cache/vmm-lab");
        if (glob(pattern, 0, NULL, &found) != 0)
                skip_for_want_of("kernels in the cache");
        for (size_t i = 0; i < found.gl_pathc; i++)
                if (!strstr(found.gl_pathv[i], "/kernel-arm64-"))
                        load_stock_kernel(found.gl_pathv[i]);
        globfree(&found);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_kernel),
                cmocka_unit_test(refuses_a_kernel_that_is_no_regular_file),
                cmocka_unit_test(refuses_each_broken_bzimage),
                cmocka_unit_test(refuses_a_bzimage_without_its_end),
                cmocka_unit_test(refuses_a_fixed_kernel_that_does_not_fit_where_it_must_lie),
                cmocka_unit_test(refuses_each_broken_elf_header),
                cmocka_unit_test(refuses_each_broken_elf_segment),
                cmocka_unit_test(refuses_each_broken_elf_entry),
                cmocka_unit_test(refuses_an_initrd_that_does_not_fit),
                cmocka_unit_test(refuses_a_command_line_that_is_too_long),
                cmocka_unit_test(refuses_memory_that_is_too_small),
                cmocka_unit_test(loads_a_bzimage_with_everything),
                cmocka_unit_test(loads_a_bzimage_lower_where_its_own_place_is_no_ram),
                cmocka_unit_test(loads_an_elf_kernel_by_its_pvh_note),
                cmocka_unit_test(loads_an_elf_kernel_by_its_own_entry),
                cmocka_unit_test(maps_the_first_four_gib_one_to_one),
                cmocka_unit_test(enters_long_mode_and_protected_mode),
                cmocka_unit_test(loads_stock_kernels),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
