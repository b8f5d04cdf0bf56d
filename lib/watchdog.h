/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The service manager's watchdog (WatchdogSec=), which is served from the event loop: a loop that hangs is ended by SIGABRT, and the service starts again as
 * after a crash. */

#include <systemd/sd-event.h>

/* Serves it, where there is one. From now on a SIGABRT that somebody sends is told in the journal before it ends the process; one's own abort() is
 * not. To be called before any sandbox; `program` is for the journal, as are the fields of log_add_field(), also those that come later. */
int watchdog_begin(sd_event *event, const char *program);

/* For work on the loop that takes long for a good reason, in between. */
void watchdog_feed(void);
