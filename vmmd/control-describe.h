/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The machine, its devices and balloons as io.vmmd.Machine describes them. What is returned is the caller's. */

#include <json-c/json.h>

#include "machine-device.h"

/* Everything of the method Describe. */
int describe_machine(Machine *m, json_object **ret);
/* Of type Device. Its state is the one that subscribers to events were told of last, so that none of them is told of it again. */
int describe_device(MachineDevice *d, json_object **ret);
/* Of type Snapshot. */
int describe_snapshot(Machine *m, json_object **ret);
/* Of type BalloonState: the last that is known, or a balloon of which nothing is known yet. */
int describe_balloon(MachineDevice *d, json_object **ret);
/* The same for a BalloonState of io.vmmd.Balloon, which lacks the name. */
int describe_balloon_of(MachineDevice *d, json_object *balloon, json_object **ret);
/* Bytes of all balloons together. */
uint64_t describe_balloons_actual(Machine *m);
uint64_t describe_balloons_target(Machine *m);
