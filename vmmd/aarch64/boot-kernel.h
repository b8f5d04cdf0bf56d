/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Between boot.c and the kinds of kernel. */

#include "boot.h"
#include "kernel-file.h"

/* Of an Image; booting.rst, "Call the kernel image". */
#define IMAGE_HEAD_SIZE 64
/* Whether it begins like one. */
bool arm64_image_is(const uint8_t *head, size_t size);

/* Each fills in pc, kernel_address and kernel_size. */
int arm64_image_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message);
int arm64_gzip_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message);
int arm64_elf_load(const KernelFile *file, const GuestMemory *memory, Arm64BootEntry *ret, char **ret_message);
