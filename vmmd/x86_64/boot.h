/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Puts a Linux kernel, its initrd, its command line and the structures it expects into guest memory, and says in which state
 * the first vCPU is to start. Everything in the two files is hostile: each field is read once, checked, and only then used.
 *
 * Kernels: a bzImage of boot protocol 2.12 or newer with a 64-bit entry (Documentation/arch/x86/boot.rst), or an ELF vmlinux
 * for x86-64, by its PVH note where it has one (Xen's pvh.pandoc), else by its own 64-bit entry.
 *
 * The tables of acpi.h and smbios.h are separate; all these functions may be called again on a running guest's memory: that
 * is a reset. */

#include "guest-memory.h"
#include "util.h"

typedef struct X86BootInput {
        int kernel_fd;
        const char *kernel_name;  /* what messages call it: its path; NULL is "kernel" */
        int initrd_fd;            /* negative: none */
        const char *initrd_name;  /* NULL is "initrd" */
        const char *command_line; /* NULL is empty */
        uint64_t rsdp_address;    /* 0: the kernel finds it by itself or not at all */
} X86BootInput;

typedef enum X86EntryKind {
        X86_ENTRY_LONG_MODE, /* 64-bit, paging on by cr3, rsi = boot_params */
        X86_ENTRY_PVH,       /* 32-bit protected mode, paging off, rbx = hvm_start_info */
} X86EntryKind;

/* The state of the first vCPU at the kernel's first instruction; vcpu-state.h turns it into KVM's structures. */
typedef struct X86BootEntry {
        X86EntryKind kind;
        uint64_t rip, rsp, rsi, rbx;
        uint64_t cr3; /* 0 for PVH */
        uint64_t gdt_address;
        uint16_t gdt_limit;
        uint64_t kernel_address, kernel_size; /* where it went (for the log) */
        uint64_t initrd_address, initrd_size; /* size 0: none */
} X86BootEntry;

/* Errors: -ENOEXEC where the kernel is not one that we can boot, -EINVAL where initrd or command line do not fit it, -ENOMEM
 * where the guest's RAM is too small, or what reading the files gave; *ret_message says which file, what was found and what was
 * expected. */
int x86_load_boot(const GuestMemory *memory, const X86BootInput *input, X86BootEntry *ret, char **ret_message);

/* The kind of a kernel by its first bytes, for messages and tests: "bzImage", "ELF" or NULL. */
const char *x86_kernel_format(const uint8_t *head, size_t size);
