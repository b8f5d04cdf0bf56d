/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a slot is told to be, checked: io.vmmd.Slot.Configure without its descriptors, and the same as a memfd that the service manager keeps. */

#include <json-c/json.h>

#include "device.h"
#include "options.h"
#include "passed.h"

/* Under which name it is kept; no option can be called so. */
#define SLOT_CONFIGURATION_NAME "slot-configuration"

typedef struct SlotConfiguration {
        const DeviceClass *class;
        const DeviceType *type;
        DeviceOptions *options;
        char *name;  /* of the device */
        char *text;  /* the JSON that it was made of */
} SlotConfiguration;

/* -EINVAL with *ret_message where it makes no sense. Fields that are of the wrong type count as missing. */
int slot_configuration_new(json_object *parameters, SlotConfiguration **ret, char **ret_message);
SlotConfiguration *slot_configuration_free(SlotConfiguration *c);
DEFINE_CLEANUP(SlotConfiguration, slot_configuration_free)

/* Whether there are the descriptors that the options need, and no others. -EINVAL with *ret_message where not. */
int slot_configuration_check_fds(const SlotConfiguration *c, const PassedFds *passed, char **ret_message);

/* Returns a sealed memfd. */
int slot_configuration_save(const SlotConfiguration *c);
int slot_configuration_load(int fd, SlotConfiguration **ret, char **ret_message);
