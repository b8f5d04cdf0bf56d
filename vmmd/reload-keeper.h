/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a program that is replaced leaves behind is not taken apart while the guest stands still. execve() would wait for it: the memory map, in which KVM has its virtual
 * machine, the watches of directories, the virtual machine itself; of each the kernel takes leave slowly. So a child shares the map, and has all descriptors but
 * connections, until the successor lets the guest run; what is left then ends with it, beside the guest. It executes nothing, and ends with the other end of its pipe.
 *
 * Where there is none, all is the same but for the time. */

#include <systemd/sd-event.h>

#include "handover.h"

typedef struct ReloadKeeper ReloadKeeper;

/* --- the predecessor --- */

int reload_keeper_new(ReloadKeeper **ret);
/* NULL: says that there is none. */
void reload_keeper_put(const ReloadKeeper *k, Handover *h);

/* --- the successor --- */

/* NULL: there is none. */
int reload_keeper_get(Handover *h, ReloadKeeper **ret);
/* It may end, which the event loop hears of. Takes `k`. To be called when the originals are closed. */
void reload_keeper_dismiss(ReloadKeeper *k, sd_event *event);

/* --- both --- */

/* Whose child it is ends it; to others it is nothing but descriptors. */
ReloadKeeper *reload_keeper_free(ReloadKeeper *k);
DEFINE_CLEANUP(ReloadKeeper, reload_keeper_free)
