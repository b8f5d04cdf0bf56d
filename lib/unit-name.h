/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Names of the units of a machine. The machine's own units are named by the raw name (vmm@NAME.service, %i); a device's instance is
 * the escaped MACHINE/DEVICE, so that %I is the path below /run/vmm. */

#include "util.h"

/* What systemd allows for a whole unit name (UNIT_NAME_MAX), and a file system for one component. */
#define UNIT_NAME_LENGTH_MAX 255

/* As systemd-escape(1) does it: '/' becomes '-'; everything but [A-Za-z0-9:_.] and a leading '.' become \xNN. The caller frees the result; NULL when
 * out of memory. */
char *unit_name_escape(const char *s);

/* "vmm-device@INSTANCE.SUFFIX" of a device; e.g. suffix "service". The caller frees it; NULL when out of memory. */
char *device_unit_name(const char *machine, const char *device, const char *suffix);

/* "vmm@NAME.SUFFIX" */
char *machine_unit_name(const char *machine, const char *suffix);

/* "vmm-ESCAPED.slice" */
char *machine_slice_name(const char *machine);

/* The dynamic user of a unit; device is NULL for vmmd. systemd's own default would be one user for all instances of a template. At most 31 bytes: what
 * is readable of the names, and a hash of them that makes it unique. */
char *unit_user_name(const char *machine, const char *device);
