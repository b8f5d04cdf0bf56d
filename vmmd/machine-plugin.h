/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A machine whose hardware is a plugin's: instead of memory, platform and devices it has a connection to the plugin (plugin.h), and one to the
 * plugin's parent, its unit vmm-device@, which tells how the plugin ends (plugin-link.h). The plugin's end is the machine's. All on the loop's thread. */

#include "machine.h"

typedef struct MachinePlugin MachinePlugin;

/* Makes KVM's part of the platform and sends the plugin its main socket, which starts it. m->kvm is there. -EOPNOTSUPP where this program has no
 * plugins. */
int machine_plugin_new(Machine *m, char **ret_message);
/* The vCPUs' threads must have been ended: machine_plugin_abort(), vcpu_set_done(). Takes NULL, returns NULL. */
MachinePlugin *machine_plugin_free(MachinePlugin *p);
/* No vCPU waits for the plugin any more. Takes NULL. */
void machine_plugin_abort(MachinePlugin *p);
/* Asks it to end, which it may take its time for. */
void machine_plugin_ask_to_exit(MachinePlugin *p);

/* The plugin as a device of io.vmmd.Machine: a new object. */
int machine_plugin_describe(const Machine *m, json_object **ret);
