/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.systemd.MachineInstance: what systemd's own tools ask of any virtual machine. */

#include "machine-device.h"
#include "server.h"

typedef struct Instance Instance;

/* Adds the interface to the server, which must not outlive it. */
int instance_new(VarlinkServer *server, Machine *m, Instance **ret);
Instance *instance_free(Instance *i);
DEFINE_CLEANUP(Instance, instance_free)

/* The MachineObserver's part. */
void instance_state(Instance *i, const char *reason);
void instance_power_button(Instance *i);
void instance_panic(Instance *i, const char *reason);
void instance_balloon(Instance *i);
void instance_ended(Instance *i, const char *reason);
