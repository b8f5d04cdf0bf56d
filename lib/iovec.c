/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "iovec.h"

IovCursor iov_cursor(const struct iovec *iov, size_t n) {
        IovCursor cursor = { .iov = iov };

        for (size_t i = 0; i < n; i++)
                cursor.left += iov[i].iov_len;
        return cursor;
}

/* The bytes that can be had in one piece, at most `length`; 0 at the end. Steps over used-up and empty buffers. */
static size_t piece(IovCursor *cursor, uint64_t length, uint8_t **ret) {
        uint64_t n = MIN(length, cursor->left);

        if (n == 0)
                return 0;
        while (cursor->offset >= cursor->iov->iov_len) {
                cursor->iov++;
                cursor->offset = 0;
        }
        *ret = (uint8_t *) cursor->iov->iov_base + cursor->offset;
        return (size_t) MIN(n, (uint64_t) (cursor->iov->iov_len - cursor->offset));
}

static void advance(IovCursor *cursor, size_t n) {
        cursor->offset += n;
        cursor->left -= n;
}

size_t iov_cursor_read(IovCursor *cursor, void *buffer, size_t length) {
        size_t done = 0, n;
        uint8_t *p;

        for (; (n = piece(cursor, length - done, &p)) > 0; done += n) {
                memcpy((uint8_t *) buffer + done, p, n);
                advance(cursor, n);
        }
        return done;
}

size_t iov_cursor_write(IovCursor *cursor, const void *buffer, size_t length) {
        size_t done = 0, n;
        uint8_t *p;

        for (; (n = piece(cursor, length - done, &p)) > 0; done += n) {
                memcpy(p, (const uint8_t *) buffer + done, n);
                advance(cursor, n);
        }
        return done;
}

uint64_t iov_cursor_skip(IovCursor *cursor, uint64_t length) {
        uint64_t done = 0;
        size_t n;
        uint8_t *p;

        for (; (n = piece(cursor, length - done, &p)) > 0; done += n)
                advance(cursor, n);
        return done;
}

IovCursor iov_cursor_take(IovCursor *cursor, uint64_t length) {
        IovCursor taken = *cursor;

        taken.left = iov_cursor_skip(cursor, length);
        return taken;
}

uint64_t iov_cursor_map(const IovCursor *cursor, uint64_t length, struct iovec *ret, size_t max, size_t *ret_n) {
        IovCursor c = *cursor;
        uint64_t done = 0;
        size_t n, count = 0;
        uint8_t *p;

        for (; count < max && (n = piece(&c, length - done, &p)) > 0; done += n) {
                ret[count++] = (struct iovec) { .iov_base = p, .iov_len = n };
                advance(&c, n);
        }
        *ret_n = count;
        return done;
}
