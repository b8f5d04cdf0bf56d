/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A device of the machine as vmmd sees it: one of the definition's entries or one that was attached since, and the session with its helper. Devices come
 * and go; whoever keeps one beyond the present turn of the loop keeps a reference. */

#include "handover.h"
#include "machine.h"

typedef enum DeviceState { DEVICE_CONNECTING, DEVICE_READY, DEVICE_ACTIVE, DEVICE_FAILED } DeviceState;

/* Fills m->devices from the definition: registers, PCI functions, sessions; nothing is connected yet. */
int machine_devices_new(Machine *m, char **ret_message);
/* Connects to the helpers' sockets, which starts their units. Does not wait. */
int machine_devices_connect(Machine *m);
/* Ends all waiting for helpers, for good: whatever a vCPU still asks of a device is answered as if it were not there. */
void machine_devices_abort(Machine *m);
void machine_devices_free(Machine *m);
/* Whether a driver is at work in each device that needs one and is not given up, by what observers were told. */
bool machine_devices_are_active(Machine *m);
/* The helpers let go of the guest's memory, and take it up where they were. All vCPUs parked. Wait for the helpers, as the next one does. */
void machine_devices_suspend(Machine *m);
void machine_devices_resume(Machine *m);
/* All of guest memory is there, or no device has a driver. Waits for the helpers of devices that have one. */
void machine_devices_release(Machine *m);
/* As after power-on. All vCPUs parked. Waits for the helpers: not to be called on the loop's thread while it has better to do. */
void machine_devices_reset(Machine *m);
void machine_devices_hold_interrupts(Machine *m, bool hold);
/* Why they cannot be handed over just now; the caller frees it. NULL where they can. */
char *machine_devices_obstacle(Machine *m);
/* Sessions, descriptors, and what was told of them, for the successor of this process; he has machine_devices_take_over() instead of machine_devices_new(), and
 * is connected then. */
int machine_devices_hand_over(Machine *m, Handover *h);
int machine_devices_take_over(Machine *m, Handover *h, char **ret_message);
int machine_devices_save(Machine *m, StateWriter *w);
int machine_devices_load(Machine *m, StateReader *r, char **ret_message);

/* Takes up what changed in the sessions: attaches them to the loop, logs failures. Returns how many are still
 * connecting; *ret_failed is a device that failed and was not reported before, or NULL. */
size_t machine_devices_update(Machine *m, MachineDevice **ret_failed);

MachineDevice *machine_device_ref(MachineDevice *d);
MachineDevice *machine_device_unref(MachineDevice *d);
DEFINE_CLEANUP(MachineDevice, machine_device_unref)

MachineDevice *machine_device_find(Machine *m, const char *name);
/* By its place among those that are there now. */
MachineDevice *machine_device_by_index(Machine *m, size_t index);
const DeviceDefinition *machine_device_definition(const MachineDevice *d);
Machine *machine_device_machine(const MachineDevice *d);
DeviceState machine_device_state(MachineDevice *d);
/* The state that observers were told of last. */
DeviceState machine_device_told_state(const MachineDevice *d);
const char *machine_device_state_to_string(DeviceState state);
/* Why it failed for good, or NULL; the caller frees it. */
char *machine_device_error(MachineDevice *d);
/* The last thing that went wrong with it, and when (CLOCK_REALTIME); NULL where nothing did. */
const char *machine_device_last_error(const MachineDevice *d, uint64_t *ret_usec);
/* Its helper's process; 0 where that is not known. */
pid_t machine_device_pid(const MachineDevice *d);
/* What its helper said last of the balloon that it is (device-link.h). */
bool machine_device_is_balloon(const MachineDevice *d);
json_object *machine_device_balloon(const MachineDevice *d);
void machine_device_set_balloon(MachineDevice *d, json_object *balloon);
/* Less than MACHINE_DEVICES_MAX; its own for as long as it is there. */
unsigned machine_device_number(const MachineDevice *d);
/* Whether it came while the machine ran. */
bool machine_device_is_attached(const MachineDevice *d);
/* "0000:00:03.0", or NULL; the caller frees it. */
char *machine_device_pci_address(const MachineDevice *d);
/* Path of the helper's Varlink socket and name of its unit; the caller frees it. */
char *machine_device_varlink_path(const MachineDevice *d);
char *machine_device_unit(const MachineDevice *d);
unsigned machine_device_reconnects(MachineDevice *d);
