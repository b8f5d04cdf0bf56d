/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The host's memory pressure, told by the kernel when there is some; nothing is polled.
 *
 * /proc/pressure/memory, or a cgroup's memory.pressure: a trigger is written into it, and it becomes readable "with priority" when the trigger fires
 * (Documentation/accounting/psi.rst). Or, as systemd's convention for $MEMORY_PRESSURE_WATCH has it, a FIFO or socket: what
 * can be read there means pressure, and is thrown away. */

#include <systemd/sd-event.h>

#include "util.h"

typedef struct Pressure Pressure;

/* `error` is 0 for a sign of pressure; negative where none will come any more. */
typedef void (*PressureCallback)(int error, void *userdata);

/* What the open file gets to read: for a PSI file the trigger, with its NUL. Takes ownership of fd, also on error. */
int pressure_new_fd(sd_event *event, int fd, const void *trigger, size_t size, PressureCallback callback, void *userdata, Pressure **ret);
/* Opens a path: a PSI file, a FIFO, or a socket. */
int pressure_open(const char *path);
Pressure *pressure_free(Pressure *p);
DEFINE_CLEANUP(Pressure, pressure_free)

/* $MEMORY_PRESSURE_WATCH and $MEMORY_PRESSURE_WRITE: returns 0 where there is nothing to watch, -EINVAL where the latter is no Base64. The
 * trigger is the caller's. */
int pressure_from_environment(const char **ret_path, void **ret_trigger, size_t *ret_size);
