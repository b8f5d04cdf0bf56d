/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What one driver has set up, from DRIVER_OK to its reset, and how a session gets it: features, memory, in-flight log, rings. */

#include "vhost-frontend.h"
#include "vhost-session.h"

typedef struct VhostActivation {
        uint64_t features; /* acknowledged by the driver */
        VhostQueue queues[VHOST_FRONTEND_QUEUES_MAX]; /* as they were at DRIVER_OK; the eventfds are the front-end's */
        unsigned n_queues;
        /* Where the back-end was in each queue when it let go of them for a while. */
        uint16_t bases[VHOST_FRONTEND_QUEUES_MAX];
        bool has_bases;
        /* The log of requests under way outlives the back-end: asked for with the first session, handed to each after that. */
        int inflight_fd;
        VhostUserInflight inflight;
        VhostInFlight in_flight; /* what a new log is to begin with: after a snapshot */
} VhostActivation;

/* -EINVAL where a ring does not lie in guest memory as virtio demands. */
int vhost_rings_check(const GuestMemory *memory, const VhostActivation *a);
/* Whether the driver has made anything available that is not used yet. */
bool vhost_rings_are_under_way(const GuestMemory *memory, const VhostActivation *a);
/* Gives it all, the rings being checked; with `resume` to a back-end that let go of them for a while, or whose predecessor ended in the
 * middle. */
int vhost_rings_give(VhostSession *s, const GuestMemory *memory, VhostActivation *a, bool resume);
/* Stops every ring; when this returns 0 the back-end touches none of them any more. */
int vhost_rings_take(VhostSession *s, const VhostActivation *a);
/* The same for a while: the back-end keeps what it knows of the driver, and *a says where it was. */
int vhost_rings_suspend(VhostSession *s, VhostActivation *a);
