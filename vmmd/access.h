/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Who may do what with the machine: the `right` of each VarlinkMethod is one of these, and the server asks here before it calls it.
 *
 * vmmd decides by itself about root, its own user, and its own group where the definition has an accessGroup (the generator makes
 * that its Group=). Everybody else looks the same to it, since it runs in a user namespace of its own: then it hands the connection
 * to vmm-authorize(8) and goes on; the call waits. A yes that holds for as long as the peer is connected is remembered. */

#include <systemd/sd-event.h>

#include "definition.h"
#include "server.h"

typedef enum AccessRight {
        ACCESS_READ = 1 << 0,    /* look at the machine */
        ACCESS_BALLOON = 1 << 1, /* change the size of its balloons */
        ACCESS_CHANGE = 1 << 2,  /* all else */
} AccessRight;

/* Where vmm-authorize listens. */
#define ACCESS_AUTHORIZE_PATH "/run/vmm-authorize/io.vmmd.Authorization"

typedef struct Access Access;

/* Becomes the server's authorizer. `definition` must outlive it, and it must outlive the server. `authorize_path` is NULL for
 * the usual place. */
int access_new(VarlinkServer *server, sd_event *event, const MachineDefinition *definition, const char *authorize_path, Access **ret);
Access *access_free(Access *a);
DEFINE_CLEANUP(Access, access_free)
