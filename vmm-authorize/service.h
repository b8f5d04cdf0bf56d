/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Authorization: takes questions, decides or has polkit decide, and answers. */

#include <systemd/sd-event.h>

#include "server.h"

typedef struct Service Service;

/* Ends the event loop when nobody has asked for `idle_usec` (UINT64_MAX is never) and nobody is connected. */
int service_new(Service **ret, sd_event *event, uint64_t idle_usec);
Service *service_free(Service *s);
DEFINE_CLEANUP(Service, service_free)

/* Takes ownership of the listening socket, also on error. */
int service_listen(Service *s, int fd);
