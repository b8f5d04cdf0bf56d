/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "e820.h"
#include "layout.h"

uint64_t x86_low_ram_end(const GuestMemory *memory) {
        void *p;

        return guest_memory_span(memory, 0, X86_LOW_RAM_END, &p);
}

int x86_e820_build(const GuestMemory *memory, X86E820Entry ret[static X86_E820_MAX]) {
        uint64_t low_end = x86_low_ram_end(memory);
        int n = 0;

        if (low_end < MIB(2))
                return -EINVAL;

        ret[n++] = (X86E820Entry) { 0, X86_LOW_MEMORY_END, X86_E820_RAM };
        /* Firmware tables, and what a PC keeps for its video memory and ROMs. */
        ret[n++] = (X86E820Entry) {
                X86_LOW_MEMORY_END, X86_HIGH_MEMORY_START - X86_LOW_MEMORY_END, X86_E820_RESERVED,
        };
        ret[n++] = (X86E820Entry) { X86_HIGH_MEMORY_START, low_end - X86_HIGH_MEMORY_START, X86_E820_RAM };
        /* Linux uses ECAM only where it lies in reserved memory. */
        ret[n++] = (X86E820Entry) { X86_PCI_ECAM_BASE, X86_PCI_ECAM_SIZE, X86_E820_RESERVED };
        ret[n++] = (X86E820Entry) { X86_KVM_IDENTITY_MAP, X86_KVM_RESERVED_SIZE, X86_E820_RESERVED };

        for (size_t i = 1; i < memory->n_regions; i++) {
                const GuestRegion *r = memory->regions + i;

                if (r->guest_address < X86_HIGH_RAM_START)
                        return -EINVAL;
                ret[n++] = (X86E820Entry) { r->guest_address, r->size, X86_E820_RAM };
        }
        return n;
}
