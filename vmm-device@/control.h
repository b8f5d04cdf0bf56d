/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The device on the helper's Varlink server: io.vmmd.Device, and what its type has beyond it. */

#include "bus-server.h"
#include "frame.h"
#include "server.h"

typedef struct Control Control;

/* Adds its interfaces to the server, which makes no more calls by the time the control is freed: no event loop runs between that and the server's own
 * end. `bus` is NULL for a virtio device. */
int control_new(Device *d, BusServer *bus, VarlinkServer *server, Control **ret);
Control *control_free(Control *c);
DEFINE_CLEANUP(Control, control_free)
