/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Calls that a helper answers. The client's call waits, nobody else does: each has a connection of its own to the helper. A client that
 * leaves takes that connection with it, by which the helper knows. */

#include "machine-device.h"
#include "server.h"

typedef struct Relay Relay;

/* Answers the client's call with what the helper replied; NULL passes an empty reply on. */
typedef int (*RelayAnswer)(Relay *relay, json_object *reply);

typedef struct RelayRequest {
        const char *method;      /* the helper's, in full */
        json_object *parameters; /* the caller's; NULL is none */
        RelayAnswer answer;
        bool forever;            /* the helper may take as long as it likes */
} RelayRequest;

/* Passes a call on. The helper's errors become io.vmmd.Machine's: those of io.vmmd.Balloon by their names. */
int relay_call(VarlinkCall *call, MachineDevice *d, sd_event *event, const RelayRequest *request);
/* The same with the client's own parameters, which take the place of the request's. */
int relay_pass_on(VarlinkCall *call, MachineDevice *d, sd_event *event, json_object *parameters, RelayRequest request);
/* The client's parameters as a helper gets them: without those that are for vmmd. */
int relay_parameters(json_object *parameters, json_object **ret);
/* For a RelayAnswer. */
VarlinkCall *relay_client_call(Relay *relay);
MachineDevice *relay_device(Relay *relay);
int relay_take_fd(Relay *relay, json_object *index);

/* io.vmmd.Machine.DeviceFailed. */
int relay_device_failed(VarlinkCall *call, const char *device, const char *reason);
/* The device that the parameter "device" names, or else the first of that type; > 0 where there is one, else the call was answered, with `none` where
 * the machine has none of the type. */
int relay_find_device(VarlinkCall *call, Machine *m, json_object *parameters, const char *type, const char *none, MachineDevice **ret);
