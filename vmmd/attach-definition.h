/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What somebody wants to attach: checked as if it stood in the machine's definition beside the devices that are there, and put into words for the
 * helper of a spare unit. */

#include "machine.h"
#include "slot-client.h"

/* The device of that name; NULL where there is none. */
const DeviceDefinition *machine_definition_device(const MachineDefinition *definition, const char *name);

/* A definition that has the device, and those that are there. -EINVAL with a message where it is wrong. */
int attach_definition_new(Machine *m, const char *name, json_object *device, MachineDefinition **ret, char **ret_message);
/* Whether there is a descriptor for each path and interface of the device, and none else. -EINVAL with a message where not. */
int attach_check_descriptors(const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, char **ret_message);
/* The same JSON that the device was made from; borrowed. NULL where there is no such device. */
json_object *attach_definition_json(const MachineDefinition *definition, const char *name);

/* The parameters of io.vmmd.Slot.Configure, but for the descriptors. */
int attach_slot_parameters(const char *machine, const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, json_object **ret);
