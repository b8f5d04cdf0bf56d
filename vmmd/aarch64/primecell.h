/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What PrimeCell peripherals have in common: registers at multiples of 4, and identification registers at the end of their page, one byte in each. Linux's AMBA
 * bus finds its drivers by them. */

#include "util.h"

#define PRIMECELL_ID 0xFE0U
#define PRIMECELL_ID_WORDS 8

static inline uint32_t primecell_id(uint16_t part, uint64_t offset) {
        const uint8_t id[PRIMECELL_ID_WORDS] = {
                (uint8_t) part, (uint8_t) (part >> 8 | 0x10 /* ARM */), 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1,
        };

        return id[(offset - PRIMECELL_ID) / 4];
}

/* False where it is not one that a register could answer, whose bits are in the first `width` bytes: then a read is zero. */
static inline bool primecell_is_register(uint64_t offset, void *data, size_t size, size_t width, bool is_write) {
        if (size >= width && size <= 4 && offset % 4 == 0 && offset <= 0xFFC)
                return true;
        if (!is_write)
                memset(data, 0, size);
        return false;
}
