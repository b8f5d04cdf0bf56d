/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A back-end's own state, fetched from it and given to another of its kind ("Migrating back-end state"). Its rings are stopped. What comes is the back-end's: of
 * any length up to a limit, and anything may be in it. */

#include "vhost-session.h"

#define VHOST_DEVICE_STATE_MAX MIB(16)

/* -EOPNOTSUPP where the back-end cannot do it, -EREMOTEIO where it refuses. */
int vhost_device_state_save(VhostSession *s, void **ret, size_t *ret_size);
int vhost_device_state_load(VhostSession *s, const void *data, size_t size);
