/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Page faults that somebody else answers, by userfaultfd(2): of pages that a shared file, mapped here, does not have yet.
 *
 * A descriptor made here sees faults of the kernel, too, as those of KVM, of read(2) and of io_uring: it comes from /dev/userfaultfd, since the system call
 * gives such only to root. It belongs to the process that made it, whoever reads it: mappings of others are no business of its. As long as anybody holds it
 * nobody who waits goes on without an answer. */

#include "util.h"

/* Makes one of a descriptor of /dev/userfaultfd, or where that is negative by the system call. It does not block, and is closed on exec. A negative errno
 * where it cannot be had. */
int userfault_new(int device);
/* Whole pages of a mapping of this process: whoever touches one that is not there waits from now on. */
int userfault_register(int fd, const void *start, uint64_t length);
/* Nobody waits there any more; who does finds what there is. */
void userfault_unregister(int fd, const void *start, uint64_t length);
/* Has who waits there look again. The address is one of the process that made the descriptor. -ENOTTY where it is no userfaultfd at all. */
int userfault_wake(int fd, uint64_t address, uint64_t length);
