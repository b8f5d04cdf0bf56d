/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Between boot.c and the two kinds of kernel: a kernel file is loaded to its place, and described for the rest. */

#include <asm/bootparam.h>

#include "boot.h"

typedef struct KernelFile {
        int fd;
        const char *name;
        uint64_t size;
} KernelFile;

typedef struct LoadedKernel {
        X86EntryKind kind;
        uint64_t entry;
        uint64_t address, size;         /* what it takes from here on, with the room it wants to decompress in */
        uint64_t command_line_max;      /* bytes, without the final NUL */
        uint64_t initrd_address_max;    /* of the initrd's last byte */
        struct setup_header header;     /* of boot_params; not for PVH */
} LoadedKernel;

/* Reads [offset, offset + length) of the file to a guest address that the caller has found to be RAM. */
int kernel_file_load(const KernelFile *file, const GuestMemory *memory, uint64_t address, uint64_t offset, uint64_t length,
        char **ret_message);

/* The beginning of the file as bzimage_load() needs it; a shorter file has zeroes there. */
#define KERNEL_HEAD_SIZE 1024

int bzimage_load(const KernelFile *file, const uint8_t head[static KERNEL_HEAD_SIZE], const GuestMemory *memory,
        LoadedKernel *ret, char **ret_message);
int elf_load(const KernelFile *file, const GuestMemory *memory, LoadedKernel *ret, char **ret_message);
