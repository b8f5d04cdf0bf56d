/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The event loop of a service that closes its sandbox later on: what libsystemd reads from files is read when this returns. */

#include <systemd/sd-event.h>

#include "util.h"

/* The thread's default loop. SIGPIPE is ignored from now on; SIGTERM and SIGINT are blocked and lead to `on_stop`, where that is NULL to the loop's
 * orderly end. The service manager's watchdog is served where it has one (watchdog.h). */
int event_loop_new(const char *program, sd_event_signal_handler_t on_stop, void *userdata, sd_event **ret);
