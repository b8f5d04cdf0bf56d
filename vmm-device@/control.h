/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The helper's Varlink server: io.vmmd.Device. */

#include "bus-server.h"
#include "frame.h"
#include "server.h"

typedef struct Control Control;

/* Serves the control interface on a listening socket; takes ownership of it, also on error. `bus` is NULL for a virtio device. */
int control_new(Device *d, BusServer *bus, int varlink_fd, Control **ret);
Control *control_free(Control *c);
DEFINE_CLEANUP(Control, control_free)
