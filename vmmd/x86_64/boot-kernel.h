/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Between boot.c and the two kinds of kernel: a kernel file is loaded to its place, and described for the rest. */

#include <asm/bootparam.h>

#include "boot.h"
#include "kernel-file.h"

typedef struct LoadedKernel {
        X86EntryKind kind;
        uint64_t entry;
        uint64_t address, size;         /* what it takes from here on, with the room it wants to decompress in */
        uint64_t command_line_max;      /* bytes, without the final NUL */
        uint64_t initrd_address_max;    /* of the initrd's last byte */
        struct setup_header header;     /* of boot_params; not for PVH */
} LoadedKernel;

/* The beginning of the file as bzimage_load() needs it; a shorter file has zeroes there. */
#define KERNEL_HEAD_SIZE 1024

int bzimage_load(const KernelFile *file, const uint8_t head[static KERNEL_HEAD_SIZE], const GuestMemory *memory,
        LoadedKernel *ret, char **ret_message);
int elf_load(const KernelFile *file, const GuestMemory *memory, LoadedKernel *ret, char **ret_message);
