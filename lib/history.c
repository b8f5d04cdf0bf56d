/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "history.h"

int history_init(History *h, size_t size) {
        if (size == 0)
                return -EINVAL;
        *h = (History) { .data = malloc(size), .size = size };
        return h->data ? 0 : -ENOMEM;
}

void history_done(History *h) {
        free(h->data);
        *h = (History) {};
}

void history_write(History *h, const void *data, size_t length) {
        const uint8_t *p = data;

        /* What would be overwritten by the rest of the same write need not be copied. */
        if (length > h->size) {
                p += length - h->size;
                h->end += length - h->size;
                length = h->size;
        }

        while (length > 0) {
                size_t at = h->end % h->size, n = MIN(length, h->size - at);

                memcpy(h->data + at, p, n);
                p += n;
                h->end += n;
                length -= n;
        }
}

uint64_t history_begin(const History *h) {
        return h->end > h->size ? h->end - h->size : 0;
}

size_t history_span(const History *h, uint64_t position, const void **ret) {
        size_t at;

        if (position < history_begin(h) || position >= h->end)
                return 0;
        at = position % h->size;
        *ret = h->data + at;
        return MIN((size_t) (h->end - position), h->size - at);
}
