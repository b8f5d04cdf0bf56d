/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a device's helper says of itself, as it says it: subscriptions to io.vmmd.Device, for a balloon to io.vmmd.Balloon, and for a
 * vsock device to io.vmmd.Vsock, on connections of their own. They are made when a session with the helper begins, and again when they end: so they tell of a
 * helper that came back, also where that took its session up without vmmd, or where there is none any more. Nothing is asked twice. A helper that does not know these methods is a helper all the same. What it says is checked against the interface texts.
 *
 * The target of a balloon is vmmd's to remember: a helper that comes back with another is told again. */

#include <json-c/json.h>
#include <systemd/sd-event.h>

#include "util.h"

typedef struct DeviceLink DeviceLink;

typedef enum DeviceLinkKind { DEVICE_LINK_PLAIN, DEVICE_LINK_BALLOON, DEVICE_LINK_VSOCK } DeviceLinkKind;

typedef struct DeviceLinkHandlers {
        /* It said who it is, for the first time on a connection. */
        void (*present)(pid_t pid, void *userdata);
        /* It does not know what it is asked, as a spare unit's helper that is no device. */
        void (*strange)(void *userdata);
        /* It broke (`reason`), or is whole again (NULL). */
        void (*broken)(const char *reason, void *userdata);
        /* `type` is of io.vmmd.Balloon's EventType, but "present", for which there are a "target" and an "actual" where these changed;
         * `working_set` may be NULL. */
        void (*balloon)(const char *type, json_object *working_set, void *userdata);
        /* What the guest says of itself; `status` may be NULL, and is as it came from there. */
        void (*guest)(bool ready, const char *status, void *userdata);
        void *userdata;
} DeviceLinkHandlers;

/* `path` is the helper's Varlink socket. */
int device_link_new(sd_event *event, const char *path, DeviceLinkKind kind, const DeviceLinkHandlers *handlers, DeviceLink **ret);
DeviceLink *device_link_free(DeviceLink *l);
DEFINE_CLEANUP(DeviceLink, device_link_free)

/* The session of that number has begun / has ended. To be called as often as it is true. */
void device_link_begin(DeviceLink *l, unsigned session);
void device_link_end(DeviceLink *l);

/* 0 where it is not known. */
pid_t device_link_pid(const DeviceLink *l);
/* NULL where it is not broken, or not known to be. */
const char *device_link_broken(const DeviceLink *l);
/* io.vmmd.Balloon's BalloonState, borrowed: the last that is known, of an earlier helper, too. NULL where none ever said. */
json_object *device_link_balloon(const DeviceLink *l);
/* A reply had a newer one. Ignored where it is none. */
void device_link_set_balloon(DeviceLink *l, json_object *balloon);
