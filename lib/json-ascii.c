/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "json-ascii.h"

size_t utf8_sequence(const char *s, size_t size) {
        const uint8_t *b = (const uint8_t *) s;
        size_t length = size == 0 ? 0 : b[0] < 0x80 ? 1 : b[0] < 0xc2 ? 0 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 0;

        if (length > size)
                return 0;
        for (size_t i = 1; i < length; i++)
                if ((b[i] & 0xc0) != 0x80)
                        return 0;
        if ((length == 3 && ((b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] > 0x9f))) ||
                (length == 4 && ((b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] > 0x8f))))
                return 0;
        return length;
}

/* RFC 8259 §7: beyond the basic plane as a surrogate pair. Returns how many bytes were written, at most 12. */
static size_t put_escaped(char *to, const char *s, size_t length) {
        const uint8_t *b = (const uint8_t *) s;
        uint32_t c = length == 2 ? b[0] & 0x1fU : length == 3 ? b[0] & 0x0fU : b[0] & 0x07U;

        for (size_t i = 1; i < length; i++)
                c = c << 6 | (b[i] & 0x3fU);
        if (c < 0x10000)
                return (size_t) sprintf(to, "\\u%04x", c);
        c -= 0x10000;
        return (size_t) sprintf(to, "\\u%04x\\u%04x", 0xd800 | c >> 10, 0xdc00 | (c & 0x3ff));
}

int json_ascii(const char *text, size_t size, char **ret, size_t *ret_size) {
        size_t at = 0, n = 0, length;
        bool escaped = false;
        char *buffer;

        while (at < size && (unsigned char) text[at] < 0x80)
                at++;
        if (at == size) {
                *ret = NULL;
                *ret_size = size;
                return 0;
        }
        if (size > (SIZE_MAX - 16) / 3)
                return -ENOMEM;
        /* Two bytes become six, and that is the worst; sprintf() ends with a NUL. */
        buffer = malloc(3 * size + 16);
        if (!buffer)
                return -ENOMEM;
        for (at = 0; at < size; at += length) {
                length = utf8_sequence(text + at, size - at);
                /* Behind a backslash, which has no business there, what we write would mean something else. */
                if (length == 0 || (length > 1 && escaped)) {
                        free(buffer);
                        return -EBADMSG;
                }
                escaped = !escaped && text[at] == '\\';
                if (length == 1)
                        buffer[n++] = text[at];
                else
                        n += put_escaped(buffer + n, text + at, length);
        }
        buffer[n] = 0;
        *ret = buffer;
        *ret_size = n;
        return 0;
}
