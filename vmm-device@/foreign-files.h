/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Files for a program that only takes paths, which are not to be in its sandbox and which its user may not open.
 *
 * Where the program opens a path below FOREIGN_FILES, the kernel asks us instead (seccomp_unotify(2)), and it gets the descriptor that stands for the
 * path, the same open file each time, as with QEMU's /dev/fdset. All its other opens go their way. It guards nothing: what the program may do is
 * its sandbox's business. */

#include <systemd/sd-event.h>

#include "util.h"

#define FOREIGN_FILES "/vmm/"

typedef struct ForeignFiles ForeignFiles;

int foreign_files_new(ForeignFiles **ret);
/* Closes what was added. */
ForeignFiles *foreign_files_free(ForeignFiles *files);
DEFINE_CLEANUP(ForeignFiles, foreign_files_free)

/* FOREIGN_FILES `name` is `fd` from now on; a name that begins with a slash is the whole path. Takes ownership, also on error. */
int foreign_files_add(ForeignFiles *files, const char *name, int fd);
/* The descriptor, borrowed; -ENOENT where there is none of that name. */
int foreign_files_get(const ForeignFiles *files, const char *name);

/* In the child, before it becomes the program: its opens are ours to answer from now on. Async-signal-safe. Returns a negative errno, which is
 * also the parent's then. */
int foreign_files_enter(ForeignFiles *files);
/* In the parent, at once after the fork: takes over. */
int foreign_files_serve(ForeignFiles *files, sd_event *event);
