/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "boot.h"
#include "boot-kernel.h"
#include "e820.h"
#include "layout.h"

#define PAGE_SIZE 4096

/* hvm_start_info and its parts, as Xen's public/arch-x86/hvm/start_info.h lays them out (version 1). */
#define XEN_HVM_START_MAGIC_VALUE 0x336ec578
#define XEN_HVM_START_INFO_VERSION 1

typedef struct hvm_start_info {
        uint32_t magic;
        uint32_t version;
        uint32_t flags;
        uint32_t nr_modules;
        uint64_t modlist_paddr;
        uint64_t cmdline_paddr;
        uint64_t rsdp_paddr;
        uint64_t memmap_paddr;
        uint32_t memmap_entries;
        uint32_t reserved;
} hvm_start_info;

typedef struct hvm_modlist_entry {
        uint64_t paddr;
        uint64_t size;
        uint64_t cmdline_paddr;
        uint64_t reserved;
} hvm_modlist_entry;

typedef struct hvm_memmap_table_entry {
        uint64_t addr;
        uint64_t size;
        uint32_t type;
        uint32_t reserved;
} hvm_memmap_table_entry;

typedef struct PvhPage {
        hvm_start_info info;
        hvm_modlist_entry module;
        hvm_memmap_table_entry memmap[X86_E820_MAX];
} PvhPage;
_Static_assert(sizeof(PvhPage) <= X86_BOOT_PARAMS_ADDRESS - X86_PVH_START_INFO_ADDRESS, "fits before boot_params");
_Static_assert(X86_E820_MAX <= E820_MAX_ENTRIES_ZEROPAGE, "fits into boot_params");
_Static_assert(sizeof(struct boot_params) == PAGE_SIZE, "boot.rst: the zero page");

const char *x86_kernel_format(const uint8_t *head, size_t size) {
        if (size >= 4 && memcmp(head, "\177ELF", 4) == 0)
                return "ELF";
        if (size >= 0x206 && load_le16(head + 0x1FE) == 0xAA55 && memcmp(head + 0x202, "HdrS", 4) == 0)
                return "bzImage";
        return NULL;
}

static int refuse_unknown_kernel(const KernelFile *file, const uint8_t *head, char **ret_message) {
        if (file->size < 0x206)
                return set_message(ret_message, -ENOEXEC,
                        "%s: truncated: %llu bytes long, expected a bzImage or an ELF vmlinux.", file->name,
                        (unsigned long long) file->size);
        if (load_le16(head + 0x1FE) == 0xAA55)
                return set_message(ret_message, -ENOEXEC,
                        "%s: found %02x %02x %02x %02x at offset 0x202, expected \"HdrS\": no Linux bzImage of boot protocol 2.00 or newer.",
                        file->name, head[0x202], head[0x203], head[0x204], head[0x205]);
        return set_message(ret_message, -ENOEXEC,
                "%s: begins with %02x %02x %02x %02x, and has %02x %02x at offset 0x1fe: neither an ELF vmlinux (7f 45 4c 46) nor a bzImage (55 aa).",
                file->name, head[0], head[1], head[2], head[3], head[0x1FE], head[0x1FF]);
}

static int load_kernel(const GuestMemory *memory, const X86BootInput *input, LoadedKernel *ret, char **ret_message) {
        KernelFile file;
        uint8_t head[KERNEL_HEAD_SIZE] = {};
        const char *format;
        int r;

        r = kernel_file_open(input->kernel_fd, input->kernel_name ?: "kernel", &file, ret_message);
        if (r < 0)
                return r;
        r = pread_full(file.fd, head, MIN(file.size, (uint64_t) sizeof(head)), 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot be read: %s", file.name, strerror(-r));

        format = x86_kernel_format(head, MIN(file.size, (uint64_t) sizeof(head)));
        if (!format)
                return refuse_unknown_kernel(&file, head, ret_message);
        if (streq(format, "ELF"))
                return elf_load(&file, memory, ret, ret_message);
        return bzimage_load(&file, head, memory, ret, ret_message);
}

/* As high as RAM and kernel allow, so that it is out of the way of a kernel that decompresses or moves itself. */
static int load_initrd(const GuestMemory *memory, const X86BootInput *input, const LoadedKernel *kernel, uint64_t *ret_address,
        uint64_t *ret_size, char **ret_message) {
        KernelFile file;
        uint64_t end = MIN(x86_low_ram_end(memory), kernel->initrd_address_max + 1), address;
        uint64_t kernel_end = ALIGN_UP(kernel->address + kernel->size, (uint64_t) PAGE_SIZE);
        int r;

        if (input->initrd_fd < 0) {
                *ret_address = *ret_size = 0;
                return 0;
        }
        r = kernel_file_open(input->initrd_fd, input->initrd_name ?: "initrd", &file, ret_message);
        if (r < 0)
                return r;
        if (file.size == 0)
                return set_message(ret_message, -EINVAL, "%s: is empty.", file.name);
        if (kernel_end >= end || file.size > end - kernel_end || file.size > UINT32_MAX)
                return set_message(ret_message, -EINVAL,
                        "%s: %llu bytes long, but only %llu are free between the kernel (up to 0x%llx) and 0x%llx.", file.name,
                        (unsigned long long) file.size, (unsigned long long) (kernel_end < end ? end - kernel_end : 0),
                        (unsigned long long) kernel_end, (unsigned long long) end);

        address = ALIGN_DOWN(end - file.size, (uint64_t) PAGE_SIZE);
        r = kernel_file_load(&file, memory, address, 0, file.size, ret_message);
        if (r < 0)
                return r;
        *ret_address = address;
        *ret_size = file.size;
        return 0;
}

static int write_command_line(const GuestMemory *memory, const X86BootInput *input, const LoadedKernel *kernel,
        char **ret_message) {
        const char *text = input->command_line ?: "";
        uint64_t max = MIN(kernel->command_line_max, X86_COMMAND_LINE_MAX - 1);
        size_t length = strlen(text);
        void *p;

        if (length > max)
                return set_message(ret_message, -EINVAL, "The kernel's command line has %zu bytes, %s takes at most %llu.", length,
                        input->kernel_name ?: "the kernel", (unsigned long long) max);
        p = guest_memory_at(memory, X86_COMMAND_LINE_ADDRESS, length + 1);
        if (!p)
                return -ENOMEM;
        memcpy(p, text, length + 1);
        return 0;
}

/* boot.rst, "Zero Page": everything that the protocol does not ask for stays zero, above all `sentinel`. */
static int write_boot_params(const GuestMemory *memory, const X86BootInput *input, const LoadedKernel *kernel,
        const X86E820Entry *map, int n_map, uint64_t initrd_address, uint64_t initrd_size) {
        struct boot_params *params = guest_memory_at(memory, X86_BOOT_PARAMS_ADDRESS, sizeof(*params));
        struct setup_header header = kernel->header;

        if (!params)
                return -ENOMEM;

        header.type_of_loader = 0xFF; /* none of the registered ones */
        header.loadflags &= (uint8_t) ~(CAN_USE_HEAP | KASLR_FLAG);
        header.vid_mode = 0xFFFF; /* "normal" */
        header.setup_data = 0;
        header.heap_end_ptr = 0;
        header.ramdisk_image = (uint32_t) initrd_address;
        header.ramdisk_size = (uint32_t) initrd_size;
        header.cmd_line_ptr = X86_COMMAND_LINE_ADDRESS;

        memset(params, 0, sizeof(*params));
        params->hdr = header;
        params->acpi_rsdp_addr = input->rsdp_address;
        for (int i = 0; i < n_map; i++)
                params->e820_table[i] = (struct boot_e820_entry) { map[i].address, map[i].size, map[i].type };
        params->e820_entries = (uint8_t) n_map;
        return 0;
}

static int write_pvh_start_info(const GuestMemory *memory, const X86BootInput *input, const X86E820Entry *map, int n_map,
        uint64_t initrd_address, uint64_t initrd_size) {
        PvhPage *page = guest_memory_at(memory, X86_PVH_START_INFO_ADDRESS, sizeof(*page));

        if (!page)
                return -ENOMEM;

        memset(page, 0, sizeof(*page));
        page->info = (hvm_start_info) {
                .magic = XEN_HVM_START_MAGIC_VALUE,
                .version = XEN_HVM_START_INFO_VERSION,
                .nr_modules = initrd_size > 0,
                .modlist_paddr = X86_PVH_START_INFO_ADDRESS + offsetof(PvhPage, module),
                .cmdline_paddr = X86_COMMAND_LINE_ADDRESS,
                .rsdp_paddr = input->rsdp_address,
                .memmap_paddr = X86_PVH_START_INFO_ADDRESS + offsetof(PvhPage, memmap),
                .memmap_entries = (uint32_t) n_map,
        };
        page->module = (hvm_modlist_entry) { .paddr = initrd_address, .size = initrd_size };
        for (int i = 0; i < n_map; i++)
                page->memmap[i] = (hvm_memmap_table_entry) { map[i].address, map[i].size, map[i].type, 0 };
        return 0;
}

/* boot.rst, "64-bit Boot Protocol": paging is on, and kernel, zero page, command line and initrd are mapped one to one. */
static int write_page_tables(const GuestMemory *memory) {
        uint64_t *pml4 = guest_memory_at(memory, X86_PML4_ADDRESS, PAGE_SIZE);
        uint64_t *pdpt = guest_memory_at(memory, X86_PDPT_ADDRESS, PAGE_SIZE);
        uint64_t *pd = guest_memory_at(memory, X86_PD_ADDRESS, UINT64_C(4) * PAGE_SIZE);
        const uint64_t table = 0x03 /* present, writable */, page = 0x83 /* and a page of 2 MiB */;

        if (!pml4 || !pdpt || !pd)
                return -ENOMEM;

        memset(pml4, 0, PAGE_SIZE);
        memset(pdpt, 0, PAGE_SIZE);
        pml4[0] = X86_PDPT_ADDRESS | table;
        for (uint64_t i = 0; i < 4; i++)
                pdpt[i] = (X86_PD_ADDRESS + i * PAGE_SIZE) | table;
        for (uint64_t i = 0; i < UINT64_C(4) * 512; i++)
                pd[i] = i * MIB(2) | page;
        return 0;
}

/* boot.rst asks for __BOOT_CS at 0x10 and __BOOT_DS at 0x18; a busy TSS stands behind them, since a vCPU cannot be without one. */
static int write_gdt(const GuestMemory *memory, X86EntryKind kind, X86BootEntry *entry) {
        const uint64_t descriptors[] = {
                0,
                0,
                kind == X86_ENTRY_LONG_MODE ? 0x00AF9B000000FFFF : 0x00CF9B000000FFFF,
                0x00CF93000000FFFF,
                0x00008B0000000067,
                0,
        };
        void *p = guest_memory_at(memory, X86_GDT_ADDRESS, sizeof(descriptors));

        if (!p)
                return -ENOMEM;
        memcpy(p, descriptors, sizeof(descriptors));
        entry->gdt_address = X86_GDT_ADDRESS;
        entry->gdt_limit = sizeof(descriptors) - 1;
        return 0;
}

int x86_load_boot(const GuestMemory *memory, const X86BootInput *input, X86BootEntry *ret, char **ret_message) {
        X86E820Entry map[X86_E820_MAX];
        X86BootEntry entry = {};
        LoadedKernel kernel;
        int r, n;

        n = x86_e820_build(memory, map);
        if (n < 0)
                return set_message(ret_message, -ENOMEM, "The guest's memory begins with %llu bytes, expected 2 MiB or more.",
                        (unsigned long long) x86_low_ram_end(memory));
        r = load_kernel(memory, input, &kernel, ret_message);
        if (r < 0)
                return r;
        r = load_initrd(memory, input, &kernel, &entry.initrd_address, &entry.initrd_size, ret_message);
        if (r < 0)
                return r;
        r = write_command_line(memory, input, &kernel, ret_message);
        if (r < 0)
                return r;
        r = write_gdt(memory, kernel.kind, &entry);
        if (r < 0)
                return r;

        entry.kind = kernel.kind;
        entry.rip = kernel.entry;
        entry.rsp = X86_BOOT_STACK_ADDRESS;
        entry.kernel_address = kernel.address;
        entry.kernel_size = kernel.size;
        if (kernel.kind == X86_ENTRY_PVH) {
                entry.rbx = X86_PVH_START_INFO_ADDRESS;
                r = write_pvh_start_info(memory, input, map, n, entry.initrd_address, entry.initrd_size);
        } else {
                entry.rsi = X86_BOOT_PARAMS_ADDRESS;
                entry.cr3 = X86_PML4_ADDRESS;
                r = write_page_tables(memory);
                if (r >= 0)
                        r = write_boot_params(memory, input, &kernel, map, n, entry.initrd_address, entry.initrd_size);
        }
        if (r < 0)
                return r;

        *ret = entry;
        return 0;
}
