/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Numbers, sizes and times as people write them: in definitions, on command lines. The whole text has to be one; -EINVAL where it
 * is none, -ERANGE where it does not fit 64 bits. */

#include "util.h"

/* "123": digits. */
int parse_unsigned(const char *s, uint64_t *ret);
/* "256M": digits and at most one of K, M, G, T, base 1024. */
int parse_size(const char *s, uint64_t *ret);
/* "1min 30s", "90", "500ms": integers with units, seconds without one, added up (systemd.time(7), without fractions). Microseconds. */
int parse_time(const char *s, uint64_t *ret);

/* The shortest way to write a size so that parse_size() takes it; the buffer takes the largest. */
#define SIZE_TEXT_MAX 24
void size_to_text(uint64_t size, char ret[SIZE_TEXT_MAX]);

/* Whether a path is absolute, without empty, "." and ".." components and without a slash at its end. */
bool path_is_normalized(const char *path);
