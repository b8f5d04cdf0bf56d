/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the unit of a device needs beyond the others' where another project's program is the device. */

#include <stdio.h>

#include "definition.h"

/* A word of a unit file (systemd.syntax(7), "Quoting"): in double quotes; specifiers are doubled; and `$` where the line is a command. */
void put_word(FILE *f, const char *word, bool command);

/* Lines of [Service], after all that may say something else. Returns 0 or -ENOMEM. */
int put_foreign_service(FILE *f, const DeviceDefinition *device);
