/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Device's methods for devices with a terminal. */

#include "server.h"
#include "terminal.h"

/* OpenConsole: attaches a client and answers with its end. */
int terminal_reply_open(Terminal *t, VarlinkCall *call);
