/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Names of a keyboard's keys: those of linux/input-event-codes.h without KEY_, in small letters, and a few short ones for what is long. */

#include "util.h"

/* One more than the highest code that has a name. */
#define KEY_CODE_END 249

/* The code of "leftctrl", "ctrl", or a number as it is; 0 where there is no such key. */
unsigned key_code(const char *name);
/* NULL where the code has no name. */
const char *key_name(unsigned code);
