/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a guest begins with, put into its memory: kernel, device tree, initrd. (Linux, Documentation/arch/arm64/booting.rst.) */

#include "guest-memory.h"
#include "util.h"

typedef struct Arm64BootInput {
        int kernel_fd;
        const char *kernel_name; /* for messages */
        int initrd_fd;           /* negative: none */
        const char *initrd_name;
} Arm64BootInput;

typedef struct Arm64BootEntry {
        uint64_t pc;
        uint64_t kernel_address, kernel_size; /* with the room it wants behind its file */
        uint64_t fdt_address;                 /* ARM64_FDT_MAX bytes are free there */
        uint64_t initrd_address, initrd_size;
} Arm64BootEntry;

/* A kernel is an Image, the same compressed by gzip, or an ELF file. Everything wrong with it is named in the message. */
int arm64_load_boot(const GuestMemory *memory, const Arm64BootInput *input, Arm64BootEntry *ret, char **ret_message);

/* Puts the device tree, which was made with what arm64_load_boot() has returned, where it said. */
int arm64_write_fdt(const GuestMemory *memory, const Arm64BootEntry *entry, const void *fdt, size_t size, char **ret_message);
