/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "line-log.h"

/* Length of the terminal sequence (ECMA-48) at the start of `s`, whose first byte is ESC; to the end where it is cut off. */
static size_t escape_length(const char *s, size_t length) {
        size_t i = 2;

        if (length < 2)
                return length;
        switch (s[1]) {
        case '[': /* CSI: parameters and intermediates, then one final byte */
                while (i < length && s[i] >= 0x20 && s[i] <= 0x3f)
                        i++;
                return MIN(i + 1, length);
        case ']': /* OSC and DCS, up to BEL or ST */
        case 'P':
                for (; i < length; i++) {
                        if (s[i] == '\a')
                                return i + 1;
                        if (s[i] == '\033')
                                return MIN(i + 2, length);
                }
                return length;
        case '(': /* a character set */
        case ')':
                return MIN((size_t) 3, length);
        default:
                return 2;
        }
}

/* Length of the UTF-8 sequence at the start of `s`, 0 where it is none or no printable character (RFC 3629; C1 controls are left out). */
static size_t utf8_length(const char *s, size_t length) {
        const uint8_t *p = (const uint8_t *) s;
        size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
        uint32_t c;

        if (p[0] < 0xc2 || p[0] > 0xf4 || length < n)
                return 0;
        c = p[0] & (0xff >> (n + 1));
        for (size_t i = 1; i < n; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
                c = c << 6 | (p[i] & 0x3f);
        }
        if (c < 0xa0 || (n == 3 && c < 0x800) || (n == 4 && c < 0x10000) || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
                return 0;
        return n;
}

char *line_log_printable(const char *data, size_t length) {
        char *text = malloc(length * 4 + 1); /* \xNN for each */
        size_t at = 0;

        if (!text)
                return NULL;
        for (size_t i = 0; i < length;) {
                uint8_t byte = (uint8_t) data[i];
                size_t n = 1;

                if (byte == '\033')
                        n = escape_length(data + i, length - i);
                else if ((byte >= ' ' && byte < 0x7f) || byte == '\t')
                        text[at++] = (char) byte;
                else if ((n = utf8_length(data + i, length - i)) > 0) {
                        memcpy(text + at, data + i, n);
                        at += n;
                } else {
                        n = 1;
                        if (byte != '\r') /* half of a line's end, or a progress bar */
                                at += (size_t) sprintf(text + at, "\\x%02x", byte);
                }
                i += n;
        }
        text[at] = 0;
        return text;
}

void line_log_flush(LineLog *l) {
        _cleanup_free_ char *text = NULL;

        if (l->length == 0)
                return;
        text = line_log_printable(l->line, l->length);
        l->length = 0;
        if (text && text[0])
                l->emit(l->userdata, text);
}

void line_log_write(LineLog *l, const void *data, size_t length) {
        const char *p = data;

        while (length > 0) {
                const char *end = memchr(p, '\n', length);
                size_t whole = end ? (size_t) (end - p) : length, n = MIN(whole, LINE_LOG_MAX - l->length);

                memcpy(l->line + l->length, p, n);
                l->length += n;
                p += n;
                length -= n;
                if (end && n == whole) {
                        line_log_flush(l);
                        p++;
                        length--;
                } else if (l->length == LINE_LOG_MAX)
                        line_log_flush(l);
        }
}
