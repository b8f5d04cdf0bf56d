/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Devices that come and go while the machine runs. On the loop's thread; nobody waits here for a helper or the guest.
 *
 * Coming: a spare unit is told which device it is (slot-client.h), the session with it is made, the PCI function is plugged in, and the guest told of it.
 * Going: the guest is asked to eject the function. It does so when its driver has let go; it may do so unasked. What it ejects is gone for it at
 * once; here it goes when no vCPU is inside it any more, and its unit is free when that has said so. By force, the helper is taken away at
 * once; a stub stays where the device was, so that its driver's last accesses end, until the guest ejects that.
 *
 * What the guest was asked for and did not do can be withdrawn; where it does it later, it is done all the same. A reset of the guest does what was asked. */

#include "handover.h"
#include "machine.h"
#include "slot-client.h"

typedef struct Hotplug Hotplug;

/* What became of it, told once. `error` is 0 (`device` is there; of one that was detached only what was known of it is left), or
 *  -EEXIST     there is a device of that name
 *  -ENOSPC     no spare unit, or no PCI slot, is free
 *  -EBUSY      not in the machine's present state
 *  -EINVAL     the helper finds the device wrong: `message`
 *  -EIO        the device cannot be had, or its helper failed: `message`
 *  -EOPNOTSUPP the device cannot be detached
 *  -ETIMEDOUT  the guest has not let go of it: it stays as it was
 *  -ECANCELED  the machine has ended, or the device went meanwhile */
typedef void (*HotplugDone)(MachineDevice *device, int error, const char *message, void *userdata);

/* For ever. */
#define HOTPLUG_NO_TIMEOUT UINT64_MAX

int hotplug_new(Machine *m, Hotplug **ret);
/* No vCPU runs any more. */
Hotplug *hotplug_free(Hotplug *h);

/* Attaches the device `name` of `definition`, which has been checked, as have the descriptors; takes both over, also on error. `timeout_usec` 0: done as
 * soon as the guest was told; else once its driver is at work, or, without error, when that time is over. An errno is returned instead of being told where it is clear at once. */
int hotplug_attach(Hotplug *h, MachineDefinition *definition, const char *name, SlotDescriptor *descriptors, size_t n_descriptors,
        uint64_t timeout_usec, HotplugDone done, void *userdata);
/* Detaches it. Done when its unit is free, too. */
int hotplug_detach(Hotplug *h, MachineDevice *d, uint64_t timeout_usec, bool force, HotplugDone done, void *userdata);
/* Whether the guest is asked to let go of it. */
bool hotplug_is_leaving(Hotplug *h, const MachineDevice *d);

/* Whether its unit, should it forget what it is (stopped, or given up and started anew), can be told again: it needs what was attached. */
bool hotplug_can_restore(Hotplug *h, const MachineDevice *d);
/* Tells it, where its socket is there. Nothing happens where it knows; in both cases a device that had failed is tried again. */
void hotplug_restore(Hotplug *h, MachineDevice *d);

/* Takes up what changed: sessions, ejections, helpers that have done what they were made to do. */
void hotplug_update(Hotplug *h);
/* Why the machine cannot be handed over to a successor of this process: what is just coming or going. The caller frees it; NULL: nothing is. */
char *hotplug_obstacle(const Hotplug *h);
/* What was attached: the descriptors, by which a unit that forgets what it is can be told again. */
int hotplug_hand_over(const Hotplug *h, Handover *to);
/* The successor: the devices that were attached are there already. An earlier version handed no descriptors over. */
int hotplug_take_over(Hotplug *h, Handover *from, char **ret_message);
/* The guest is gone, all vCPUs are parked, no helper is made to do anything. */
void hotplug_reset(Hotplug *h);
/* The machine has ended: whoever waits is told. */
void hotplug_cancel(Hotplug *h);

SlotDescriptor *slot_descriptors_free(SlotDescriptor *descriptors, size_t n);
