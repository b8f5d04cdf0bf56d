/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The last bytes of an endless stream: a ring addressed by the position in the stream, so that any number of readers can each
 * keep a position of their own and nothing else. */

#include "util.h"

typedef struct History {
        uint8_t *data;
        size_t size;
        uint64_t end; /* how many bytes were ever written */
} History;

int history_init(History *h, size_t size);
void history_done(History *h);

void history_write(History *h, const void *data, size_t length);

/* Position of the oldest byte that is still there. */
uint64_t history_begin(const History *h);

/* Bytes at `position` that lie in one piece, and where. 0 where position is the end, or no longer (or not yet) there. */
size_t history_span(const History *h, uint64_t position, const void **ret);
