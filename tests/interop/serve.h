/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A server that lives as long as a command that talks to it: nothing has to be waited for, and nothing is left behind. */

#include "server.h"

/* Serves `server` at the socket `path` until `command` (ends with NULL) has ended. Returns the program's exit status: the command's. Frees nothing. */
int serve_while(VarlinkServer *server, sd_event *event, const char *path, char **command);
