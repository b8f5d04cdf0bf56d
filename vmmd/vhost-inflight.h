/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What is under way in a device's queues though its rings are stopped, as the in-flight log has it: chains that a helper which died had taken, and that its successor had not come to. A
 * session carries the log itself on; into a snapshot go the heads of the chains. */

#include "vhost-rings.h"

/* What `a`'s log has of its queues, which are stopped; *ret is without anything where there is no log. */
int vhost_in_flight_read(const VhostActivation *a, VhostInFlight *ret);
/* Whether there can be such chains in `a`'s queues. */
bool vhost_in_flight_fits(const VhostActivation *a, const VhostInFlight *f);
/* Puts `f` into `a`'s log, which nobody has used yet. */
int vhost_in_flight_write(const GuestMemory *memory, const VhostActivation *a, const VhostInFlight *f);

bool vhost_in_flight_any(const VhostInFlight *f);
int vhost_in_flight_copy(const VhostInFlight *f, VhostInFlight *ret);
void vhost_in_flight_done(VhostInFlight *f);
