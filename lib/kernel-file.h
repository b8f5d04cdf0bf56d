/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A kernel, an initrd or what else a guest begins with as a file, on its way into guest memory. */

#include "guest-memory.h"
#include "util.h"

typedef struct KernelFile {
        int fd;
        const char *name; /* for messages */
        uint64_t size;
} KernelFile;

/* Looks at the file, which has to be a regular one. */
int kernel_file_open(int fd, const char *name, KernelFile *ret, char **ret_message);
/* Reads [offset, offset + length) of the file to a guest address. */
int kernel_file_load(const KernelFile *file, const GuestMemory *memory, uint64_t address, uint64_t offset, uint64_t length,
        char **ret_message);
