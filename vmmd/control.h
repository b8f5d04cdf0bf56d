/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Machine: the machine's Varlink interface. */

#include "machine.h"
#include "server.h"

/* Adds the interface to the server; `m` must outlive it. */
int control_add(VarlinkServer *server, Machine *m);
