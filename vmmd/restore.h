/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A machine that goes on where a snapshot (lib/snapshot.h) was taken, instead of booting.
 *
 * Everything is checked before a vCPU runs: the files and what they are of by restore_new(), before there is a machine; the processor when there are vCPUs; the
 * devices' features and their own state when all helpers have answered. Then the vCPUs run at once, and memory comes as they touch it (restore-memory.h). Helpers map the same
 * memory and would see holes in it: those that can ask for what they miss (vhost-postcopy.h) get their queues at once, the others when all of it is there. */

#include "machine.h"

typedef struct Restore Restore;

/* What a snapshot is made of. */
typedef struct RestoreFiles {
        int state_fd, memory_fd;
        int userfaultfd_fd; /* of /dev/userfaultfd; where it is negative one is made by the system call, if that is allowed, or memory is read beforehand */
} RestoreFiles;
#define RESTORE_FILES_NULL { .state_fd = -EBADF, .memory_fd = -EBADF, .userfaultfd_fd = -EBADF }

/* Takes a descriptor over that has one of the names that vmm-open gives; false where it has not. The service manager is told to forget it: a machine is restored once. */
bool restore_files_take(RestoreFiles *files, const char *name, int fd);
/* By hand: opens a snapshot's directory. */
int restore_files_open(RestoreFiles *files, const char *directory, char **ret_message);

/* Reads the state and checks it against the definition; the message says what does not fit. Takes the descriptors over, also on error. *ret is NULL where there are none. */
int restore_new(RestoreFiles *files, const MachineDefinition *d, Restore **ret, char **ret_message);
/* No vCPU may be waiting for its memory, and no device use it. */
Restore *restore_free(Restore *r);
DEFINE_CLEANUP(Restore, restore_free)

/* The machine's devices are made, and not connected yet. */
int restore_devices(Machine *m, char **ret_message);
/* The vCPUs are there. Instead of loading a kernel. */
int restore_memory(Machine *m, char **ret_message);
/* Whether the helpers are to be given their state: once, when all have answered. */
bool restore_wants_helpers(const Machine *m);
/* Does that. On a thread of its own; waits for the helpers. */
void restore_helpers(Machine *m);
/* They have it: loads everything else, and lets the vCPUs run. Ends the machine where that fails. */
void restore_run(Machine *m);
/* The helpers that can go on have their queues: says which have to wait. On the thread that gave them those. */
void restore_devices_resumed(Machine *m);
/* Memory may be there by now, and no other work be under way. */
void restore_update(Machine *m);
/* It is: no helper asks for any more, and those that have waited go on. On a thread of its own; waits for the helpers. */
void restore_release(Machine *m);
/* They have: the machine is restored. */
void restore_released(Machine *m);
/* The machine is reset: nothing of the snapshot is needed any more. All vCPUs are parked, and no device has a driver. */
void restore_cancel(Machine *m);
