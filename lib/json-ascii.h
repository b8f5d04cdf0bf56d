/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Text for json-c. Its strict parser of version 0.18 takes every byte of UTF-8 in a string for a control character (char is signed), and refuses it. Escaped,
 * a character is understood by all versions, and means the same (RFC 8259 §7). */

#include "util.h"

/* How many bytes the UTF-8 sequence at `s` has (RFC 3629 §4: no surrogates, nothing overlong, nothing beyond U+10FFFF); 0 where it is none. */
size_t utf8_sequence(const char *s, size_t size);

/* The text with all but ASCII as \uXXXX, NUL-terminated beyond *ret_size. -EBADMSG where it is not UTF-8, or no JSON for what
 * stands behind a backslash. For a text that needs none of this, *ret is NULL. */
int json_ascii(const char *text, size_t size, char **ret, size_t *ret_size);
