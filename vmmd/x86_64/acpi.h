/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The ACPI tables (ACPI 6.4): RSDP, XSDT, FADT, MADT, MCFG, FACS, and the DSDT that iasl made of dsdt.asl. What the
 * DSDT has to know of a machine it reads from a few words of guest memory that are written here, too. */

#include "guest-memory.h"
#include "util.h"

typedef struct X86AcpiInput {
        unsigned n_vcpus;
        uint8_t com_mask;      /* bit n: there is a COM(n + 1) */
        uint64_t mmio64_base;  /* window for 64-bit BARs; size 0: none */
        uint64_t mmio64_size;
} X86AcpiInput;

/* Writes all tables at X86_ACPI_ADDRESS; *ret_rsdp is for X86BootInput. -E2BIG where they do not fit (more than some 3000 vCPUs), -ENOMEM
 * where that is not RAM. */
int x86_acpi_write(const GuestMemory *memory, const X86AcpiInput *input, uint64_t *ret_rsdp, char **ret_message);
