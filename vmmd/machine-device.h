/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A device of the machine as vmmd sees it: one of the definition's entries, and the session with its helper. */

#include "machine.h"

typedef enum DeviceState { DEVICE_CONNECTING, DEVICE_READY, DEVICE_ACTIVE, DEVICE_FAILED } DeviceState;

/* Fills m->devices from the definition: registers, PCI functions, sessions; nothing is connected yet. */
int machine_devices_new(Machine *m, char **ret_message);
/* Connects to the helpers' sockets, which starts their units. Does not wait. */
int machine_devices_connect(Machine *m);
/* Ends all waiting for helpers, for good: whatever a vCPU still asks of a device is answered as if it were not there. */
void machine_devices_abort(Machine *m);
MachineDevice *machine_devices_free(Machine *m);
/* As after power-on. All vCPUs parked. Waits for the helpers: not to be called on the loop's thread while it has better to do. */
void machine_devices_reset(Machine *m);
int machine_devices_save(Machine *m, StateWriter *w);
int machine_devices_load(Machine *m, StateReader *r, char **ret_message);

/* Takes up what changed in the sessions: attaches them to the loop, logs failures. Returns how many are still
 * connecting; *ret_failed is a device that failed and was not reported before, or NULL. */
size_t machine_devices_update(Machine *m, MachineDevice **ret_failed);

MachineDevice *machine_device_find(Machine *m, const char *name);
MachineDevice *machine_device_by_index(Machine *m, size_t index);
const DeviceDefinition *machine_device_definition(const MachineDevice *d);
DeviceState machine_device_state(MachineDevice *d);
/* Why it failed, or NULL; the caller frees it. */
char *machine_device_error(MachineDevice *d);
/* "0000:00:03.0", or NULL; the caller frees it. */
char *machine_device_pci_address(const MachineDevice *d);
/* Path of the helper's Varlink socket and name of its unit; the caller frees it. */
char *machine_device_varlink_path(const MachineDevice *d);
char *machine_device_unit(const MachineDevice *d);
unsigned machine_device_reconnects(MachineDevice *d);
