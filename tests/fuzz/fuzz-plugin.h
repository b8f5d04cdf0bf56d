/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Good inputs to begin with, see fuzz-main.c. */
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size);
