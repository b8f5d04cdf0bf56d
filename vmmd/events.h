/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Machine.SubscribeEvents: what happens to the machine, told to whoever wants to know. Nobody here waits for a subscriber, a helper or
 * the guest. Statistics come at each subscriber's own interval; of one balloon they are asked for once at a time, for all who wait. */

#include "machine-device.h"
#include "server.h"

typedef struct Events Events;

int events_new(Machine *m, Events **ret);
/* Borrowed. */
struct VarlinkStream *events_stream(Events *e);
Events *events_free(Events *e);
DEFINE_CLEANUP(Events, events_free)

/* What was told last, for the successor of this process: a subscriber who comes back there misses nothing. A JSON text; the caller frees it. */
int events_save(Events *e, char **ret);
/* -EBADMSG where it is none: then a subscriber who comes back is told of a gap. */
int events_load(Events *e, const char *text);

/* The method's callback, but for its userdata. */
int events_subscribe(Events *e, VarlinkCall *call, json_object *parameters);

/* The MachineObserver's part. */
void events_state(Events *e, const char *reason);
void events_guest_ready(Events *e);
/* NULL: it says nothing any more. */
void events_guest_status(Events *e, const char *status);
void events_panic(Events *e, const char *reason);
void events_ended(Events *e, const char *reason);
void events_device(Events *e, MachineDevice *d, MachineDeviceChange change, const char *reason);
void events_balloon(Events *e, MachineDevice *d, const char *type, json_object *working_set);

size_t events_n_subscribers(Events *e);
