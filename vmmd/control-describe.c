/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "config.h"
#include "control-describe.h"
#include "hotplug.h"
#include "json-util.h"
#include "machine-plugin.h"

typedef struct Number {
        const char *key;
        uint64_t value;
} Number;

static int add_numbers(json_object *into, const Number *numbers, size_t n) {
        int r = 0;

        for (size_t i = 0; i < n && r >= 0; i++)
                r = json_add_integer(into, numbers[i].key, (int64_t) MIN(numbers[i].value, (uint64_t) INT64_MAX));
        return r;
}

/* --- devices --- */

static int add_error(json_object *into, MachineDevice *d) {
        uint64_t usec;
        const char *error = machine_device_last_error(d, &usec);
        int r;

        if (!error)
                return 0;
        r = json_add_string(into, "error", error);
        return r < 0 ? r : add_numbers(into, &(Number) { "errorTime", usec }, 1);
}

int describe_device(MachineDevice *d, json_object **ret) {
        const DeviceDefinition *definition = machine_device_definition(d);
        _cleanup_free_ char *unit = machine_device_unit(d), *pci = machine_device_pci_address(d);
        _cleanup_json_ json_object *object = json_object_new_object();
        pid_t pid = machine_device_pid(d);
        int r;

        if (!object || !unit)
                return -ENOMEM;
        r = json_add_string(object, "name", definition->name);
        if (r >= 0)
                r = json_add_string(object, "type", definition->type->name);
        if (r >= 0)
                r = json_add_string(object, "unit", unit);
        if (r >= 0)
                r = json_add_string(object, "transport",
                        definition->type->transport == DEVICE_TRANSPORT_BUS ? "bus" : "vhostUser");
        if (r >= 0)
                r = json_add_string(object, "state", machine_device_state_to_string(machine_device_told_state(d)));
        if (r >= 0)
                r = json_add_string(object, "pciAddress", pci);
        if (r >= 0)
                r = json_add_boolean(object, "attached", machine_device_is_attached(d));
        if (r >= 0)
                r = json_add_boolean(object, "leaving", hotplug_is_leaving(machine_device_machine(d)->hotplug, d));
        if (r >= 0 && pid > 0)
                r = json_add_integer(object, "pid", pid);
        if (r >= 0)
                r = json_add_integer(object, "reconnects", machine_device_reconnects(d));
        if (r >= 0)
                r = add_error(object, d);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}

static int add_devices(Machine *m, json_object *into) {
        _cleanup_json_ json_object *devices = json_object_new_array();
        int r = devices ? 0 : -ENOMEM;

        if (m->plugin && r >= 0) {
                json_object *plugin = NULL;

                r = machine_plugin_describe(m, &plugin);
                if (r >= 0)
                        r = json_append(devices, plugin);
        }
        for (size_t i = 0; i < m->n_devices && r >= 0; i++) {
                json_object *device = NULL;

                r = describe_device(machine_device_by_index(m, i), &device);
                if (r >= 0)
                        r = json_append(devices, device);
        }
        return r < 0 ? r : json_add(into, "devices", TAKE_PTR(devices));
}

/* --- balloons --- */

static int unknown_balloon(json_object *into) {
        static const Number numbers[] = { { "target", 0 }, { "actual", 0 }, { "oomDeflations", 0 }, { "reported", 0 } };
        int r;

        r = add_numbers(into, numbers, ELEMENTSOF(numbers));
        if (r >= 0)
                r = json_add_boolean(into, "driver", false);
        return r < 0 ? r : json_add(into, "features", json_object_new_array());
}

int describe_balloon_of(MachineDevice *d, json_object *balloon, json_object **ret) {
        _cleanup_json_ json_object *object = json_object_new_object();
        int r;

        if (!object)
                return -ENOMEM;
        r = json_add_string(object, "device", machine_device_definition(d)->name);
        if (r < 0)
                return r;
        if (balloon) {
                json_object_object_foreach(balloon, key, value) {
                        r = json_add(object, key, json_object_get(value));
                        if (r < 0)
                                return r;
                }
        } else {
                r = unknown_balloon(object);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(object);
        return 0;
}

int describe_balloon(MachineDevice *d, json_object **ret) {
        return describe_balloon_of(d, machine_device_balloon(d), ret);
}

static int add_balloons(Machine *m, json_object *into) {
        _cleanup_json_ json_object *balloons = json_object_new_array();
        int r = balloons ? 0 : -ENOMEM;

        for (size_t i = 0; i < m->n_devices && r >= 0; i++) {
                MachineDevice *d = machine_device_by_index(m, i);
                json_object *balloon = NULL;

                if (!machine_device_is_balloon(d))
                        continue;
                r = describe_balloon(d, &balloon);
                if (r >= 0)
                        r = json_append(balloons, balloon);
        }
        return r < 0 ? r : json_add(into, "balloons", TAKE_PTR(balloons));
}

static uint64_t sum_of_balloons(Machine *m, const char *key) {
        uint64_t sum = 0;

        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = machine_device_by_index(m, i);

                if (machine_device_is_balloon(d)) {
                        int64_t value = json_get_integer(machine_device_balloon(d), key, 0);

                        /* A guest may say anything. */
                        sum += value > 0 ? MIN((uint64_t) value, m->definition->memory) : 0;
                }
        }
        return sum;
}

uint64_t describe_balloons_actual(Machine *m) {
        return sum_of_balloons(m, "actual");
}

uint64_t describe_balloons_target(Machine *m) {
        return sum_of_balloons(m, "target");
}

/* --- the machine --- */

/* What Describe and a snapshot have in common. */
static int add_state(Machine *m, json_object *into) {
        int r;

        r = json_add_string(into, "state", machine_state_to_string(m->state));
        if (r >= 0)
                r = add_numbers(into, &(Number) { "since", m->state_since_usec }, 1);
        if (r >= 0)
                r = json_add_boolean(into, "guestReady", m->guest_ready);
        if (r >= 0)
                r = json_add_string(into, "guestStatus", m->guest_status);
        if (r >= 0)
                r = add_devices(m, into);
        return r < 0 ? r : add_balloons(m, into);
}

int describe_snapshot(Machine *m, json_object **ret) {
        _cleanup_json_ json_object *object = json_object_new_object();
        int r;

        r = object ? add_state(m, object) : -ENOMEM;
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}

int describe_machine(Machine *m, json_object **ret) {
        const Number numbers[] = {
                { "vcpus", m->definition->vcpus },
                { "memory", m->definition->memory },
                { "pid", (uint64_t) getpid() },
                { "resets", m->resets },
                { "exits", vcpu_set_exits(&m->vcpus) },
                { "firstEntry", atomic_load(&m->first_entry_usec) },
        };
        _cleanup_json_ json_object *object = json_object_new_object();
        int r;

        if (!object)
                return -ENOMEM;
        r = json_add_string(object, "name", m->definition->name);
        if (r >= 0)
                r = json_add_string(object, "version", PROJECT_VERSION);
        if (r >= 0)
                r = add_numbers(object, numbers, ELEMENTSOF(numbers));
        if (r >= 0)
                r = json_add_string(object, "commandLine", m->command_line);
        if (r >= 0)
                r = json_add_string(object, "lastProblem", m->last_problem);
        if (r >= 0)
                r = add_state(m, object);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}
