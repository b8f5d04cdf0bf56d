/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "base64.h"

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t size) {
        char *text = malloc((size + 2) / 3 * 4 + 1), *p = text;
        const uint8_t *bytes = data;

        for (size_t i = 0; text && i < size; i += 3) {
                size_t n = MIN(size - i, (size_t) 3);
                uint32_t bits = (uint32_t) bytes[i] << 16 | (n > 1 ? (uint32_t) bytes[i + 1] << 8 : 0) | (n > 2 ? bytes[i + 2] : 0);

                for (size_t k = 0; k < 4; k++)
                        *p++ = k <= n ? digits[bits >> (18 - 6 * k) & 0x3f] : '=';
        }
        if (text)
                *p = 0;
        return text;
}

static int value_of(char c) {
        const char *p = c ? strchr(digits, c) : NULL;

        return p ? (int) (p - digits) : -EINVAL;
}

int base64_decode(const char *text, void **ret, size_t *ret_size) {
        _cleanup_free_ uint8_t *data = malloc(strlen(text) / 4 * 3 + 4);
        uint32_t bits = 0;
        unsigned n_bits = 0;
        size_t n = 0;

        if (!data)
                return -ENOMEM;
        for (; *text && *text != '='; text++) {
                int v = value_of(*text);

                if (v < 0)
                        return v;
                bits = bits << 6 | (uint32_t) v;
                n_bits += 6;
                if (n_bits >= 8) {
                        n_bits -= 8;
                        data[n++] = (uint8_t) (bits >> n_bits);
                }
        }
        data[n] = 0;
        *ret = TAKE_PTR(data);
        *ret_size = n;
        return 0;
}
