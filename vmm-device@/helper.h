/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The stages of a helper's life, each once and in this order: its event loop and what it was handed; the device and its own descriptors; its
 * sockets, and that they are served; the sandbox, after which nothing can be opened any more. Each says what went wrong. */

#include "arguments.h"
#include "bus-server.h"
#include "control.h"
#include "frame.h"
#include "passed.h"
#include "sockets.h"

/* RestartPreventExitStatus= of the units. */
#define HELPER_STATUS_REFUSED 69

typedef struct Helper {
        bool sandbox;
        sd_event *event;
        PassedFds passed;
        Sockets sockets;
        VarlinkServer *server; /* NULL without a control socket */
        Device *device;
        sd_event_source *accept_source;
        BusServer *bus;
        Control *control;
} Helper;
#define HELPER_NULL { .sockets = SOCKETS_NULL }

int helper_begin(Helper *h, const Arguments *a);
int helper_take_sockets(Helper *h, const Arguments *a); /* may come before helper_open() */
/* `options` stay the caller's and have to live as long as the helper. */
int helper_open(Helper *h, const DeviceClass *class, const DeviceType *type, DeviceOptions *options);
/* Where that failed, and nobody was served before: tells whoever has connected why, so that he need not wait for somebody who can. Returns 1 where that was done: there is
 * no use in starting this helper again then, unless somebody asks for it. */
int helper_refuse(Helper *h, const Arguments *a, const char *why);
int helper_serve(Helper *h);
/* Serves the control socket; helper_serve() does it, too, where it was not done. */
int helper_listen(Helper *h);
/* The policy of that name. What was loaded before stays in force, too. */
int helper_enter_sandbox(const Helper *h, const char *name);
void helper_done(Helper *h);
