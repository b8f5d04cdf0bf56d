/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Bytes as text: Base64 (RFC 4648, 4). */

#include "util.h"

/* NULL when out of memory; the caller frees it. */
char *base64_encode(const void *data, size_t size);
/* -EINVAL where a character is none of Base64's; what is behind the padding is not looked at. The caller frees *ret, which has a NUL behind the bytes. */
int base64_decode(const char *text, void **ret, size_t *ret_size);
