/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The options of a device on the helper's command line, checked against the type's table (lib/device-type.h). */

#include "device-type.h"
#include "util.h"

typedef struct DeviceOptions DeviceOptions;

int device_options_new(const DeviceType *type, DeviceOptions **ret);
DeviceOptions *device_options_free(DeviceOptions *options);
DEFINE_CLEANUP(DeviceOptions, device_options_free)

/* Takes one argument, "--kebab-case=VALUE". -EINVAL with *ret_message where it is not an option of the type or its value is wrong. */
int device_options_add(DeviceOptions *options, const char *argument, char **ret_message);

/* By name as in the table (camelCase); NULL where it was not given. */
const char *device_options_get(const DeviceOptions *options, const char *name);
/* Each value of a list, in the order of the command line. */
const char *const *device_options_list(const DeviceOptions *options, const char *name, size_t *ret_n);
/* What the options have to do with each other (only_where, required_where), once all are there. -EINVAL with *ret_message where that is wrong. */
int device_options_check(const DeviceOptions *options, char **ret_message);
/* The number an unsigned or size option stands for; the text has been checked. */
uint64_t device_options_number(const DeviceOptions *options, const char *name, uint64_t otherwise);
bool device_options_boolean(const DeviceOptions *options, const char *name, bool otherwise);
