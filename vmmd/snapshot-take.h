/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Taking a snapshot (lib/snapshot.h) of the running machine: it is paused with its devices, what only this process and the helpers know is written to one file and the guest's memory to
 * another, and then it goes on. The writing is work of the machine's like what helpers are made to do (machine-run.c): the loop goes on meanwhile, and whoever wants the
 * machine to do something else ends it. */

#include <json-c/json.h>

#include "machine.h"

typedef struct MachineSnapshot MachineSnapshot;

/* How it went: the meta data, which stays the snapshot's, or a negative errno and what is to be said of it. -ECANCELED: something else was wanted of the machine. */
typedef void (*MachineSnapshotDone)(Machine *m, int error, const char *message, json_object *meta, void *userdata);

/* The files are taken over, also on error; they are empty. Without `resume` the machine stays paused behind a snapshot, as it does in any case where it was before. `done` is called once,
 * never before this returns, and not at all where it fails: -EBUSY in a state in which that cannot be, -EOPNOTSUPP and a message where a device keeps its
 * state to itself. */
int machine_snapshot(Machine *m, int state_fd, int memory_fd, bool compress, bool resume, MachineSnapshotDone done, void *userdata, char **ret_message);
/* Ends the writing soon. Any time. */
void machine_snapshot_cancel(Machine *m);
/* The machine ends: nobody is told. Not while it is written. */
MachineSnapshot *machine_snapshot_free(MachineSnapshot *s);

/* For machine-run.c: the work itself, on its thread; and after that. */
void machine_snapshot_write(Machine *m);
void machine_snapshot_written(Machine *m);
