/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An ELF vmlinux: its loadable segments go to their physical addresses; it is entered by its PVH note (Xen's pvh.pandoc: 32-bit
 * protected mode) or, without one, by its 64-bit entry with a zero page of ours. */

#include <elf.h>

#include "boot-kernel.h"
#include "e820.h"
#include "layout.h"

#define PROGRAM_HEADERS_MAX 128
#define NOTES_SIZE_MAX MIB(1)
#define XEN_ELFNOTE_PHYS32_ENTRY 18

/* Linux' own COMMAND_LINE_SIZE on x86, without the NUL: an ELF file has no field for it. */
#define ELF_COMMAND_LINE_MAX 2047

static int read_ehdr(const KernelFile *file, Elf64_Ehdr *ret, char **ret_message) {
        int r;

        if (file->size < sizeof(*ret))
                return set_message(ret_message, -ENOEXEC, "%s: truncated: %llu bytes long, an ELF header has %zu.", file->name,
                        (unsigned long long) file->size, sizeof(*ret));
        r = pread_full(file->fd, ret, sizeof(*ret), 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot read its ELF header: %s", file->name, strerror(-r));

        if (ret->e_ident[EI_CLASS] != ELFCLASS64)
                return set_message(ret_message, -ENOEXEC, "%s: ELF class is %u, expected %u: a 64-bit kernel.", file->name,
                        ret->e_ident[EI_CLASS], ELFCLASS64);
        if (ret->e_ident[EI_DATA] != ELFDATA2LSB)
                return set_message(ret_message, -ENOEXEC, "%s: ELF byte order is %u, expected %u: little-endian.", file->name,
                        ret->e_ident[EI_DATA], ELFDATA2LSB);
        if (ret->e_machine != EM_X86_64)
                return set_message(ret_message, -ENOEXEC, "%s: ELF machine is %u, expected %u: x86-64.", file->name,
                        ret->e_machine, EM_X86_64);
        if (ret->e_type != ET_EXEC)
                return set_message(ret_message, -ENOEXEC, "%s: ELF type is %u, expected %u: an executable, as vmlinux is.",
                        file->name, ret->e_type, ET_EXEC);
        if (ret->e_phentsize != sizeof(Elf64_Phdr))
                return set_message(ret_message, -ENOEXEC, "%s: ELF program headers have %u bytes each, expected %zu.",
                        file->name, ret->e_phentsize, sizeof(Elf64_Phdr));
        if (ret->e_phnum == 0 || ret->e_phnum > PROGRAM_HEADERS_MAX)
                return set_message(ret_message, -ENOEXEC, "%s: has %u ELF program headers, expected 1 to %u.", file->name,
                        ret->e_phnum, PROGRAM_HEADERS_MAX);
        if (!range_within(ret->e_phoff, (uint64_t) ret->e_phnum * sizeof(Elf64_Phdr), file->size))
                return set_message(ret_message, -ENOEXEC,
                        "%s: truncated: %llu bytes long, its %u ELF program headers begin at 0x%llx.", file->name,
                        (unsigned long long) file->size, ret->e_phnum, (unsigned long long) ret->e_phoff);
        return 0;
}

static bool segment_is_loaded(const Elf64_Phdr *p) {
        return p->p_type == PT_LOAD && p->p_memsz > 0;
}

static int check_segment(const KernelFile *file, const Elf64_Phdr *headers, unsigned i, uint64_t ram_end, char **ret_message) {
        const Elf64_Phdr *p = headers + i;

        if (p->p_filesz > p->p_memsz)
                return set_message(ret_message, -ENOEXEC, "%s: ELF segment %u has %llu bytes in the file, but only %llu in memory.",
                        file->name, i, (unsigned long long) p->p_filesz, (unsigned long long) p->p_memsz);
        if (!range_within(p->p_offset, p->p_filesz, file->size))
                return set_message(ret_message, -ENOEXEC,
                        "%s: truncated: %llu bytes long, ELF segment %u has %llu bytes at 0x%llx.", file->name,
                        (unsigned long long) file->size, i, (unsigned long long) p->p_filesz,
                        (unsigned long long) p->p_offset);
        if (p->p_paddr < X86_HIGH_MEMORY_START)
                return set_message(ret_message, -ENOEXEC,
                        "%s: ELF segment %u is to lie at 0x%llx, expected 0x%llx or above: below are the boot structures.",
                        file->name, i, (unsigned long long) p->p_paddr, X86_HIGH_MEMORY_START);
        if (!range_within(p->p_paddr, p->p_memsz, ram_end))
                return set_message(ret_message, -ENOMEM,
                        "%s: ELF segment %u needs %llu bytes at 0x%llx, but the guest's low memory ends at 0x%llx.", file->name,
                        i, (unsigned long long) p->p_memsz, (unsigned long long) p->p_paddr, (unsigned long long) ram_end);

        for (unsigned j = 0; j < i; j++)
                if (segment_is_loaded(headers + j) && headers[j].p_paddr < p->p_paddr + p->p_memsz &&
                        p->p_paddr < headers[j].p_paddr + headers[j].p_memsz)
                        return set_message(ret_message, -ENOEXEC, "%s: ELF segments %u and %u overlap at 0x%llx.", file->name, j,
                                i, (unsigned long long) MAX(p->p_paddr, headers[j].p_paddr));
        return 0;
}

/* Checks all segments before the first is loaded; *ret_start and *ret_end enclose them. */
static int check_segments(const KernelFile *file, const Elf64_Phdr *headers, unsigned n, uint64_t ram_end, uint64_t *ret_start,
        uint64_t *ret_end, char **ret_message) {
        uint64_t start = UINT64_MAX, end = 0;
        int r;

        for (unsigned i = 0; i < n; i++) {
                if (!segment_is_loaded(headers + i))
                        continue;
                r = check_segment(file, headers, i, ram_end, ret_message);
                if (r < 0)
                        return r;
                start = MIN(start, headers[i].p_paddr);
                end = MAX(end, headers[i].p_paddr + headers[i].p_memsz);
        }
        if (end == 0)
                return set_message(ret_message, -ENOEXEC, "%s: none of its %u ELF segments is to be loaded.", file->name, n);
        *ret_start = start;
        *ret_end = end;
        return 0;
}

static int load_segments(const KernelFile *file, const Elf64_Phdr *headers, unsigned n, const GuestMemory *memory,
        char **ret_message) {
        for (unsigned i = 0; i < n; i++) {
                const Elf64_Phdr *p = headers + i;
                uint64_t rest = p->p_memsz - p->p_filesz;
                int r;

                if (!segment_is_loaded(p))
                        continue;
                if (p->p_filesz > 0) {
                        r = kernel_file_load(file, memory, p->p_paddr, p->p_offset, p->p_filesz, ret_message);
                        if (r < 0)
                                return r;
                }
                /* After a reset the memory is not zero any more. */
                if (rest > 0) {
                        void *bss = guest_memory_at(memory, p->p_paddr + p->p_filesz, rest);
                        if (!bss)
                                return -ENOMEM;
                        memset(bss, 0, rest);
                }
        }
        return 0;
}

static bool entry_is_loaded(const Elf64_Phdr *headers, unsigned n, uint64_t entry) {
        for (unsigned i = 0; i < n; i++)
                if (segment_is_loaded(headers + i) && entry >= headers[i].p_paddr &&
                        entry - headers[i].p_paddr < headers[i].p_filesz)
                        return true;
        return false;
}

/* Looks through one note segment. Returns 1 with the entry, 0 where the note is not there. */
static int find_pvh_note(const KernelFile *file, const uint8_t *notes, uint64_t size, uint64_t align, uint64_t *ret,
        char **ret_message) {
        uint64_t position = 0;

        /* The ELF specification's 8 for 64-bit files is rare; everything else packs to 4 (elf(5), Notes). */
        align = align == 8 ? 8 : 4;
        while (position < size) {
                uint64_t name, description, next;
                Elf64_Nhdr note;

                if (size - position < sizeof(note))
                        return set_message(ret_message, -ENOEXEC, "%s: an ELF note begins %llu bytes before the end of the notes.",
                                file->name, (unsigned long long) (size - position));
                memcpy(&note, notes + position, sizeof(note));
                name = position + sizeof(note);
                description = ALIGN_UP(name + note.n_namesz, align);
                next = ALIGN_UP(description + note.n_descsz, align);
                if (description > size || note.n_descsz > size - description)
                        return set_message(ret_message, -ENOEXEC,
                                "%s: the ELF note at 0x%llx of the notes has a name of %u and a content of %u bytes, more than there are.",
                                file->name, (unsigned long long) position, note.n_namesz, note.n_descsz);

                if (note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == sizeof("Xen") &&
                        memcmp(notes + name, "Xen", sizeof("Xen")) == 0) {
                        if (note.n_descsz != 4 && note.n_descsz != 8)
                                return set_message(ret_message, -ENOEXEC,
                                        "%s: the PVH note (XEN_ELFNOTE_PHYS32_ENTRY) has %u bytes, expected 4 or 8.", file->name,
                                        note.n_descsz);
                        *ret = note.n_descsz == 8 ? load_le64(notes + description) : load_le32(notes + description);
                        return 1;
                }
                position = next;
        }
        return 0;
}

static int find_pvh_entry(const KernelFile *file, const Elf64_Phdr *headers, unsigned n, uint64_t *ret, char **ret_message) {
        for (unsigned i = 0; i < n; i++) {
                const Elf64_Phdr *p = headers + i;
                _cleanup_free_ uint8_t *notes = NULL;
                int r;

                if (p->p_type != PT_NOTE || p->p_filesz == 0)
                        continue;
                if (p->p_filesz > NOTES_SIZE_MAX || !range_within(p->p_offset, p->p_filesz, file->size))
                        return set_message(ret_message, -ENOEXEC,
                                "%s: ELF segment %u has notes of %llu bytes at 0x%llx, expected them within the file and at most %llu.",
                                file->name, i, (unsigned long long) p->p_filesz, (unsigned long long) p->p_offset,
                                (unsigned long long) NOTES_SIZE_MAX);
                notes = malloc(p->p_filesz);
                if (!notes)
                        return -ENOMEM;
                r = pread_full(file->fd, notes, p->p_filesz, p->p_offset);
                if (r < 0)
                        return set_message(ret_message, r, "%s: cannot read its ELF notes: %s", file->name, strerror(-r));
                r = find_pvh_note(file, notes, p->p_filesz, p->p_align, ret, ret_message);
                if (r != 0)
                        return r;
        }
        return 0;
}

/* What a bzImage says of itself and an ELF file does not (boot.rst, "64-bit Boot Protocol": the header is then ours to write). */
static struct setup_header elf_setup_header(void) {
        return (struct setup_header) {
                .boot_flag = 0xAA55,
                .header = 0x53726448, /* "HdrS" */
                .version = 0x020C,
                .loadflags = LOADED_HIGH,
                .kernel_alignment = 0x1000000,
                .xloadflags = XLF_KERNEL_64,
        };
}

int elf_load(const KernelFile *file, const GuestMemory *memory, LoadedKernel *ret, char **ret_message) {
        _cleanup_free_ Elf64_Phdr *headers = NULL;
        uint64_t start = 0, end = 0, entry = 0;
        Elf64_Ehdr ehdr;
        int r, pvh;

        r = read_ehdr(file, &ehdr, ret_message);
        if (r < 0)
                return r;
        headers = calloc(ehdr.e_phnum, sizeof(Elf64_Phdr));
        if (!headers)
                return -ENOMEM;
        r = pread_full(file->fd, headers, ehdr.e_phnum * sizeof(Elf64_Phdr), ehdr.e_phoff);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot read its ELF program headers: %s", file->name, strerror(-r));

        r = check_segments(file, headers, ehdr.e_phnum, x86_low_ram_end(memory), &start, &end, ret_message);
        if (r < 0)
                return r;
        pvh = find_pvh_entry(file, headers, ehdr.e_phnum, &entry, ret_message);
        if (pvh < 0)
                return pvh;
        if (pvh == 0)
                entry = ehdr.e_entry;
        if (!entry_is_loaded(headers, ehdr.e_phnum, entry))
                return set_message(ret_message, -ENOEXEC, "%s: its %s entry 0x%llx lies in none of its ELF segments.", file->name,
                        pvh > 0 ? "PVH" : "ELF", (unsigned long long) entry);
        r = load_segments(file, headers, ehdr.e_phnum, memory, ret_message);
        if (r < 0)
                return r;

        *ret = (LoadedKernel) {
                .kind = pvh > 0 ? X86_ENTRY_PVH : X86_ENTRY_LONG_MODE,
                .entry = entry,
                .address = start,
                .size = end - start,
                .command_line_max = ELF_COMMAND_LINE_MAX,
                .initrd_address_max = X86_LOW_RAM_END - 1,
                .header = elf_setup_header(),
        };
        return 0;
}
