/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What is known of one machine, from all sources: its definition, its unit, and the machine itself. Any of them may be missing. */

#include "bus.h"
#include "definition.h"
#include "json-util.h"

typedef struct MachineView {
        char *name;
        char *unit;
        MachineDefinition *definition;
        char *definition_problem; /* why there is none */
        bool defined;             /* there is a definition, right or wrong */
        bool has_unit_state;
        UnitState unit_state;
        json_object *description; /* of io.vmmd.Machine.Describe; NULL where nobody answered */
} MachineView;

/* `bus` may be NULL: then nothing is known of units. */
int machine_view_get(const Options *o, sd_bus *bus, const char *name, MachineView *ret);
void machine_view_done(MachineView *v);

/* One word: what the machine says of itself; else "stopped", "failed", "starting", …; "invalid" where it is stopped and its definition
 * is wrong. Valid while the view is. */
const char *machine_view_state(const MachineView *v);
bool machine_view_is_running(const MachineView *v);
/* Since when (CLOCK_REALTIME, microseconds); 0 where unknown. */
uint64_t machine_view_since(const MachineView *v);
uint64_t machine_view_memory(const MachineView *v); /* 0 where unknown */
uint64_t machine_view_vcpus(const MachineView *v);  /* 0 where unknown */
size_t machine_view_n_devices(const MachineView *v);
/* What all that is printed of a machine begins with; the caller adds the rest. */
int machine_view_to_json(const MachineView *v, json_object **ret);

/* Names of all machines that are defined or that systemd has a loaded unit of, sorted, NULL-terminated. */
int machine_names(const Options *o, sd_bus *bus, char ***ret);
