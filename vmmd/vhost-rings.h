/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What one driver has set up, from DRIVER_OK to its reset, and how a session gets it: features, memory, in-flight log, rings. */

#include "vhost-frontend.h"
#include "vhost-session.h"

typedef struct VhostActivation {
        uint64_t features; /* acknowledged by the driver */
        VhostQueue queues[VHOST_FRONTEND_QUEUES_MAX]; /* as they were at DRIVER_OK; the eventfds are the front-end's */
        unsigned n_queues;
        /* The log of requests under way outlives the back-end: asked for with the first session, handed to each after that. */
        int inflight_fd;
        VhostUserInflight inflight;
} VhostActivation;

/* -EINVAL where a ring does not lie in guest memory as virtio demands. */
int vhost_rings_check(const GuestMemory *memory, const VhostActivation *a);
/* Gives it all, the rings being checked; with `resume` to a back-end whose predecessor ended in the middle. */
int vhost_rings_give(VhostSession *s, const GuestMemory *memory, VhostActivation *a, bool resume);
/* Stops every ring; when this returns 0 the back-end touches none of them any more. */
int vhost_rings_take(VhostSession *s, const VhostActivation *a);
