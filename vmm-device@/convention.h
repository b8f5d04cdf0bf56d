/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What management software expects of any vhost-user back-end's program ("Back-end program conventions" of the vhost-user specification,
 * vhost-user.json of QEMU). */

#include "device.h"

/* "vmm-device-TYPE" starts the helper of that type: the convention has a program for each. NULL for other names. */
const char *convention_type_of_program(const char *argv0);
/* --print-capabilities: "Other options and arguments should be ignored". */
bool convention_wants_capabilities(int argc, char **argv);
/* Returns 1, or -EOPNOTSUPP for a device that is no vhost-user back-end. */
int convention_print_capabilities(const DeviceClass *class);
/* The options that the convention names, in our words: *ret is owned by the caller. Returns 1, 0 where it is none of these, or -ENOMEM. */
int convention_translate(const DeviceClass *class, const char *argument, char **ret);
