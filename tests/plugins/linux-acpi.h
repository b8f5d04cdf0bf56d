/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The ACPI tables of a machine with one processor: the least that a stock kernel needs to find linux.asl's devices and to power off. */

#include "guest-memory.h"

/* Writes them at X86_ACPI_ADDRESS. Returns the RSDP's address, or 0 where that is not memory. */
uint64_t linux_acpi_write(const GuestMemory *memory);
