/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Kernels made up for tests: whole in form, with nothing in them that runs. For the tests and the fuzz target of vmmd/x86_64/boot.h. */

#include <asm/bootparam.h>
#include <elf.h>
#include <sys/mman.h>

#include "boot.h"
#include "layout.h"

#define FAKE_SETUP_SIZE 1024    /* boot sector and one sector of setup */
#define FAKE_PAYLOAD_SIZE 4096
#define FAKE_BZIMAGE_SIZE (FAKE_SETUP_SIZE + FAKE_PAYLOAD_SIZE)
#define FAKE_ELF_SIZE 4096
#define FAKE_NOTE_OFFSET 512
#define FAKE_ELF_HEADERS 3

/* A bzImage of protocol 2.15: preferred at 16 MiB, wants 8 MiB, command line of at most 255 bytes. */
static inline void make_bzimage(uint8_t image[static FAKE_BZIMAGE_SIZE]) {
        const struct setup_header header = {
                .setup_sects = 1, .syssize = FAKE_PAYLOAD_SIZE / 16, .boot_flag = 0xAA55,
                .jump = 0x66EB, /* the header ends at 0x268 */
                .header = 0x53726448, .version = 0x020F, .loadflags = LOADED_HIGH, .code32_start = 0x100000,
                .initrd_addr_max = 0x7FFFFFFF, .kernel_alignment = 0x200000, .relocatable_kernel = 1, .min_alignment = 21,
                .xloadflags = XLF_KERNEL_64, .cmdline_size = 255, .pref_address = 0x1000000, .init_size = 0x800000,
        };

        memset(image, 0, FAKE_BZIMAGE_SIZE);
        memset(image + FAKE_SETUP_SIZE, 0xCC, FAKE_PAYLOAD_SIZE);
        memcpy(image + 0x1F1, &header, sizeof(header));
}

/* A vmlinux: code at 16 MiB, data with bss at 18 MiB, and a PVH note with entry 16 MiB + 0x40. */
static inline void make_elf(uint8_t *image) {
        const Elf64_Ehdr ehdr = {
                .e_ident = { 0x7F, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
                .e_type = ET_EXEC, .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_entry = 0x1000010,
                .e_phoff = sizeof(Elf64_Ehdr), .e_ehsize = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr),
                .e_phnum = FAKE_ELF_HEADERS,
        };
        const Elf64_Phdr phdrs[FAKE_ELF_HEADERS] = {
                { .p_type = PT_LOAD, .p_offset = 1024, .p_paddr = 0x1000000, .p_filesz = 1024, .p_memsz = 1024 },
                { .p_type = PT_LOAD, .p_offset = 2048, .p_paddr = 0x1200000, .p_filesz = 512, .p_memsz = 0x10000 },
                { .p_type = PT_NOTE, .p_offset = FAKE_NOTE_OFFSET, .p_filesz = 44, .p_memsz = 44, .p_align = 4 },
        };
        const struct {
                Elf64_Nhdr other;
                char other_name[4];
                uint32_t other_content;
                Elf64_Nhdr pvh;
                char pvh_name[4];
                uint32_t pvh_entry[2];
        } notes = {
                { 4, 4, 1 }, "GNU", 7, { 4, 8, 18 }, "Xen", { 0x1000040, 0 },
        };

        assert(image);
        memset(image, 0, FAKE_ELF_SIZE);
        memset(image + 1024, 0xCC, 1536);
        memcpy(image, &ehdr, sizeof(ehdr));
        memcpy(image + sizeof(ehdr), phdrs, sizeof(phdrs));
        memcpy(image + FAKE_NOTE_OFFSET, &notes, sizeof(notes));
}

/* A file with this content; negative errno on failure. */
static inline int make_file(const void *data, size_t size) {
        int fd = memfd_create("kernel", MFD_CLOEXEC);

        if (fd >= 0 && size > 0 && write_full(fd, data, size) < 0)
                return safe_close(fd);
        return fd;
}
