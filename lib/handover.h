/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a program leaves to the one that takes its place in the same process, beside its state: descriptors, by their numbers. Each is recorded where it is
 * written; all of them lose close-on-exec at once, just before execve().
 *
 * Whoever takes them up works with copies: until handover_commit() the originals are as they were, so that he can still give way to another. */

#include "state.h"

typedef struct Handover {
        StateWriter *writer; /* who goes: borrowed; else NULL */
        StateReader *reader; /* who comes: borrowed; else NULL */
        int *fds;            /* written, or read: the originals */
        size_t n_fds;
        int error;           /* the first, of either side, since the last handover_end() */
} Handover;

void handover_done(Handover *h);

/* Within a section of the writer or reader; a negative fd is none. */
void handover_put_fd(Handover *h, int fd);
/* A copy of it, close-on-exec, the caller's; -EBADF where none was put or it cannot be had. */
int handover_get_fd(Handover *h);
/* The first error of the descriptors since the last time; for the section's own there are state_end() and state_leave(). */
int handover_end(Handover *h);

/* Those that were written stay open over execve(), or do not after all. */
int handover_keep(const Handover *h, bool keep);
/* There is no way back: closes the originals. */
void handover_commit(Handover *h);
