/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An ELF file: vmlinux, whose segments say where they lie in the kernel's own addresses and not in RAM, or a program that was linked for the RAM's. */

#include <elf.h>

#include "boot-kernel.h"
#include "layout.h"

#define PROGRAM_HEADERS_MAX 128
#define KERNEL_ALIGNMENT 0x200000ULL

typedef struct Elf {
        const KernelFile *file;
        Elf64_Ehdr ehdr;
        Elf64_Phdr headers[PROGRAM_HEADERS_MAX];
        uint64_t start, end; /* what its segments enclose, in their own addresses */
        uint64_t shift;      /* from their own to the guest's */
} Elf;

static int check_ehdr(const Elf *e, char **ret_message) {
        const Elf64_Ehdr *h = &e->ehdr;
        const char *name = e->file->name;

        if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB)
                return set_message(ret_message, -ENOEXEC, "%s: ELF class is %u and byte order %u, expected %u and %u: 64-bit, little-endian.",
                        name, h->e_ident[EI_CLASS], h->e_ident[EI_DATA], ELFCLASS64, ELFDATA2LSB);
        if (h->e_machine != EM_AARCH64)
                return set_message(ret_message, -ENOEXEC, "%s: ELF machine is %u, expected %u: 64-bit Arm.", name, h->e_machine, EM_AARCH64);
        if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phnum == 0 || h->e_phnum > PROGRAM_HEADERS_MAX)
                return set_message(ret_message, -ENOEXEC, "%s: has %u ELF program headers of %u bytes, expected 1 to %u of %zu.", name, h->e_phnum,
                        h->e_phentsize, PROGRAM_HEADERS_MAX, sizeof(Elf64_Phdr));
        if (!range_within(h->e_phoff, (uint64_t) h->e_phnum * sizeof(Elf64_Phdr), e->file->size))
                return set_message(ret_message, -ENOEXEC, "%s: truncated: %llu bytes long, its %u ELF program headers begin at 0x%llx.", name,
                        (unsigned long long) e->file->size, h->e_phnum, (unsigned long long) h->e_phoff);
        return 0;
}

static int read_headers(Elf *e, char **ret_message) {
        const KernelFile *file = e->file;
        int r;

        if (file->size < sizeof(e->ehdr))
                return set_message(ret_message, -ENOEXEC, "%s: truncated: %llu bytes long, an ELF header has %zu.", file->name,
                        (unsigned long long) file->size, sizeof(e->ehdr));
        r = pread_full(file->fd, &e->ehdr, sizeof(e->ehdr), 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot read its ELF header: %s", file->name, strerror(-r));
        r = check_ehdr(e, ret_message);
        if (r < 0)
                return r;
        r = pread_full(file->fd, e->headers, e->ehdr.e_phnum * sizeof(Elf64_Phdr), e->ehdr.e_phoff);
        return r < 0 ? set_message(ret_message, r, "%s: cannot read its ELF program headers: %s", file->name, strerror(-r)) : 0;
}

static bool is_loaded(const Elf64_Phdr *p) {
        return p->p_type == PT_LOAD && p->p_memsz > 0;
}

static int check_segments(Elf *e, char **ret_message) {
        const char *name = e->file->name;

        e->start = UINT64_MAX;
        for (unsigned i = 0; i < e->ehdr.e_phnum; i++) {
                const Elf64_Phdr *p = &e->headers[i];

                if (!is_loaded(p))
                        continue;
                if (p->p_filesz > p->p_memsz || p->p_memsz > INT64_MAX || p->p_paddr > UINT64_MAX - p->p_memsz)
                        return set_message(ret_message, -ENOEXEC, "%s: ELF segment %u has %llu bytes in the file and %llu in memory at 0x%llx.",
                                name, i, (unsigned long long) p->p_filesz, (unsigned long long) p->p_memsz, (unsigned long long) p->p_paddr);
                if (!range_within(p->p_offset, p->p_filesz, e->file->size))
                        return set_message(ret_message, -ENOEXEC, "%s: truncated: %llu bytes long, ELF segment %u has %llu bytes at 0x%llx.",
                                name, (unsigned long long) e->file->size, i, (unsigned long long) p->p_filesz, (unsigned long long) p->p_offset);
                e->start = MIN(e->start, p->p_paddr);
                e->end = MAX(e->end, p->p_paddr + p->p_memsz);
        }
        return e->end == 0 ? set_message(ret_message, -ENOEXEC, "%s: none of its ELF segments is to be loaded.", name) : 0;
}

static int load_segment(const Elf *e, const Elf64_Phdr *p, const GuestMemory *memory, char **ret_message) {
        uint64_t address = p->p_paddr + e->shift, rest = p->p_memsz - p->p_filesz;
        int r = 0;

        if (p->p_filesz > 0)
                r = kernel_file_load(e->file, memory, address, p->p_offset, p->p_filesz, ret_message);
        /* After a reset the memory may not be zero any more. All of it was found to be RAM. */
        if (r >= 0 && rest > 0)
                memset(guest_memory_at(memory, address + p->p_filesz, rest), 0, rest);
        return r;
}

/* The entry is an address as the kernel sees it: that of the segment it lies in, moved like that. */
static int find_entry(const Elf *e, uint64_t *ret, char **ret_message) {
        for (unsigned i = 0; i < e->ehdr.e_phnum; i++) {
                const Elf64_Phdr *p = &e->headers[i];

                if (is_loaded(p) && e->ehdr.e_entry >= p->p_vaddr && e->ehdr.e_entry - p->p_vaddr < p->p_filesz) {
                        *ret = e->ehdr.e_entry - p->p_vaddr + p->p_paddr + e->shift;
                        return 0;
                }
        }
        return set_message(ret_message, -ENOEXEC, "%s: its ELF entry, 0x%llx, lies in none of its segments.", e->file->name,
                (unsigned long long) e->ehdr.e_entry);
}

static int load(Elf *e, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message) {
        int r;

        r = read_headers(e, ret_message);
        if (r >= 0)
                r = check_segments(e, ret_message);
        if (r < 0)
                return r;
        /* Linux' own are virtual addresses; it begins at a boundary of 2 MiB. */
        if (!guest_memory_at(memory, e->start, e->end - e->start))
                e->shift = ARM64_RAM_BASE + e->start % KERNEL_ALIGNMENT - e->start;
        if (!guest_memory_at(memory, e->start + e->shift, e->end - e->start))
                return set_message(ret_message, -ENOMEM, "%s: needs %llu bytes at 0x%llx, more than the guest's memory has.", e->file->name,
                        (unsigned long long) (e->end - e->start), (unsigned long long) (e->start + e->shift));
        for (unsigned i = 0; i < e->ehdr.e_phnum && r >= 0; i++)
                if (is_loaded(&e->headers[i]))
                        r = load_segment(e, &e->headers[i], memory, ret_message);
        if (r < 0)
                return r;
        ret->kernel_address = e->start + e->shift;
        ret->kernel_size = e->end - e->start;
        return find_entry(e, &ret->pc, ret_message);
}

int arm64_elf_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message) {
        _cleanup_free_ Elf *e = calloc(1, sizeof(Elf));

        if (!e)
                return -ENOMEM;
        e->file = file;
        return load(e, memory, ret, ret_message);
}
