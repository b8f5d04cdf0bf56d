/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Where there are no plugins: their protocol has the registers of x86. */

#include "machine-plugin.h"

int machine_plugin_new(Machine *m, char **ret_message) {
        return set_message(ret_message, -EOPNOTSUPP, "The machine has a plugin, and those are for x86-64 only.");
}

MachinePlugin *machine_plugin_free(MachinePlugin *p) {
        return NULL;
}

void machine_plugin_abort(MachinePlugin *p) {
}

void machine_plugin_ask_to_exit(MachinePlugin *p) {
}

int machine_plugin_describe(const Machine *m, json_object **ret) {
        return -EOPNOTSUPP;
}
