/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Storage of io.systemd.MachineInstance: disks that are attached to the running machine, by descriptors that come with the calls. Methods, but for
 * their userdata. */

#include "machine.h"
#include "server.h"

int storage_add(VarlinkCall *call, json_object *parameters, Machine *m);
int storage_remove(VarlinkCall *call, json_object *parameters, Machine *m);
/* The same disk with other contents: the guest lets go of it and finds it anew. */
int storage_replace(VarlinkCall *call, json_object *parameters, Machine *m);
