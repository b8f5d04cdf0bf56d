/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The memory map that a kernel is given at boot, in the one form from which boot_params' table and PVH's are written. */

#include "guest-memory.h"
#include "util.h"

typedef enum X86E820Type {
        X86_E820_RAM = 1,
        X86_E820_RESERVED = 2,
} X86E820Type;

typedef struct X86E820Entry {
        uint64_t address, size;
        X86E820Type type;
} X86E820Entry;

#define X86_E820_MAX (GUEST_MEMORY_REGIONS_MAX + 4)

/* Sorted, without overlap. Returns the number of entries, or -EINVAL where the memory has not the shape of a PC's: RAM from 0 to
 * at least 2 MiB, and nothing in the gap below 4 GiB. */
int x86_e820_build(const GuestMemory *memory, X86E820Entry ret[static X86_E820_MAX]);

/* The end of the RAM that begins at 0. */
uint64_t x86_low_ram_end(const GuestMemory *memory);
