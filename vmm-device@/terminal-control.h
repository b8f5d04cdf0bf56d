/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Device's methods for devices with a terminal. */

#include "server.h"
#include "terminal.h"

/* OpenConsole: attaches a client and answers with its end. */
int terminal_reply_open(Terminal *t, VarlinkCall *call);
/* AttachConsole: attaches the connection that came with the call. */
int terminal_reply_attach(Terminal *t, VarlinkCall *call, json_object *parameters);
/* The answer to both where the parameter "port" names none of the device's. */
int terminal_reply_no_port(VarlinkCall *call, json_object *parameters);
/* GetCounters; with a prefix for those of a port that has a name. */
void terminal_count(const Terminal *t, const char *port, json_object *into);
