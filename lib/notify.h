/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What `systemctl status` shows of a service. Nothing where there is no service manager. */

#include "util.h"

/* `also` is what else it is told by the same message: lines that end in newlines, or "". The text is one line: see make_one_line(), so that nothing in it is taken
 * for a further assignment. It comes through whatever backslashes it has; where there is no memory for it, the rest is told. */
void notify_status(const char *also, const char *format, ...) _printf_(2, 3);
