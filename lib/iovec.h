/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A cursor over a list of buffers: what a device sees of a descriptor chain. It never leaves the buffers: each function
 * does as much as is left and says how much that was. Copy a cursor to keep a position; it owns nothing. */

#include <sys/uio.h>

#include "util.h"

typedef struct IovCursor {
        const struct iovec *iov; /* the first buffer that is not used up */
        size_t offset;           /* how much of it is */
        uint64_t left;           /* bytes from here to the end, never more than the buffers hold */
} IovCursor;

/* A cursor over all of `n` buffers. */
IovCursor iov_cursor(const struct iovec *iov, size_t n);

/* Copies out of the buffers, into them, or passes over them; returns the number of bytes. */
size_t iov_cursor_read(IovCursor *cursor, void *buffer, size_t length);
size_t iov_cursor_write(IovCursor *cursor, const void *buffer, size_t length);
uint64_t iov_cursor_skip(IovCursor *cursor, uint64_t length);

/* Cuts the next `length` bytes off as a cursor of their own (fewer where fewer are left) and passes over them. */
IovCursor iov_cursor_take(IovCursor *cursor, uint64_t length);

/* Describes the next bytes, at most `length`, by at most `max` buffers, without moving. *ret_n is how many buffers were
 * used; returns the bytes they hold. For readv() and its kin. */
uint64_t iov_cursor_map(const IovCursor *cursor, uint64_t length, struct iovec *ret, size_t max, size_t *ret_n);
