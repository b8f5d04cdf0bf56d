/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* SMBIOS 3.2 tables (DMTF DSP0134) with a 64-bit entry point at X86_SMBIOS_ADDRESS: what the guest's dmidecode and systemd see of the machine. */

#include "guest-memory.h"
#include "util.h"

typedef struct X86SmbiosInput {
        const char *machine_name;
        uint8_t uuid[16];            /* as RFC 4122 prints it; see x86_smbios_uuid() */
        unsigned n_vcpus;
        const char *const *oem_strings; /* type 11, NULL-terminated, or NULL: systemd reads io.systemd.credential:… there */
} X86SmbiosInput;

/* -EINVAL: an empty string (it would end its structure). -E2BIG: more than X86_SMBIOS_SIZE holds. -ENOMEM: no RAM there. */
int x86_smbios_write(const GuestMemory *memory, const X86SmbiosInput *input, char **ret_message);

/* An identity for the machine: the same for the same name on the same host (on a host without machine-id: of the name alone). */
void x86_smbios_uuid(const char *machine_name, uint8_t ret[static 16]);
