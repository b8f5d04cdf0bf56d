/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The machine's power button as the power key of an input device: for guests that have no ACPI. */

#include "machine.h"

/* > 0 where the key of the device marked "powerKey" is being pressed, 0 where the machine has none, or a negative errno, of which has been told. What becomes
 * of it afterwards is logged. */
int power_key_press(Machine *m);
void power_key_done(Machine *m);
