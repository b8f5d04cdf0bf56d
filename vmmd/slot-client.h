/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* One call to a spare unit's helper (io.vmmd.Slot), on the event loop: it becomes a device, or is free again. The unit starts by the connection. A helper that
 * is just ending takes nothing; then its successor is asked. A slot that still has a device of an earlier time (vmmd itself died) is freed
 * first. */

#include <json-c/json.h>
#include <systemd/sd-event.h>

#include "util.h"

typedef struct SlotClient SlotClient;

typedef struct SlotDescriptor {
        char *option;
        int fd;
} SlotDescriptor;

/* Called once, unless the client is freed before; it may be freed from within. `error` is 0; -EINVAL where the helper found the configuration wrong, -EIO where it
 * could not open the device, or another errno where it did not answer. `message` is for people, NULL where there is no error. */
typedef void (*SlotDone)(int error, const char *message, void *userdata);

/* `path` is the slot's Varlink socket, `parameters` are Configure's but for the descriptors, which stay the caller's and must outlive the client. */
int slot_configure(sd_event *event, const char *path, json_object *parameters, const SlotDescriptor *descriptors, size_t n_descriptors,
        SlotDone done, void *userdata, SlotClient **ret);
/* The same for a unit that was that device, and may be yet: then it stays it, and that is no error. */
int slot_configure_again(sd_event *event, const char *path, json_object *parameters, const SlotDescriptor *descriptors, size_t n_descriptors,
        SlotDone done, void *userdata, SlotClient **ret);
int slot_release(sd_event *event, const char *path, SlotDone done, void *userdata, SlotClient **ret);
SlotClient *slot_client_free(SlotClient *s);
DEFINE_CLEANUP(SlotClient, slot_client_free)
