/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "machine.h"
#include "output.h"
#include "unit-name.h"
#include "view.h"

void machine_view_done(MachineView *v) {
        free(v->name);
        free(v->unit);
        (void) machine_definition_free(v->definition);
        free(v->definition_problem);
        unit_state_done(&v->unit_state);
        json_putp(&v->description);
        *v = (MachineView) {};
}

static int get_definition(const Options *o, MachineView *v) {
        _cleanup_(definition_error_done) DefinitionError e = {};
        int r;

        r = definition_load(o->root, v->name, &v->definition, &e);
        v->defined = r != -ENOENT;
        if (r >= 0 || r == -ENOENT)
                return 0;
        v->definition_problem = r == -EBADMSG ? definition_error_to_string(&e) : strdup(strerror(-r));
        return v->definition_problem ? 0 : -ENOMEM;
}

int machine_view_get(const Options *o, sd_bus *bus, const char *name, MachineView *ret) {
        _cleanup_(machine_view_done) MachineView v = {};
        int r;

        v.name = strdup(name);
        v.unit = machine_unit_name(name, "service");
        if (!v.name || !v.unit)
                return -ENOMEM;
        r = get_definition(o, &v);
        if (r < 0)
                return r;
        v.has_unit_state = bus && unit_state_get(bus, v.unit, &v.unit_state) >= 0;
        /* Nobody is waited for where systemd knows that nobody is there: the socket would even start nothing, but take its time. */
        if (!v.has_unit_state || !streq(v.unit_state.active_state, "inactive"))
                v.description = machine_describe(o, name);
        *ret = v;
        v = (MachineView) {};
        return 0;
}

bool machine_view_is_running(const MachineView *v) {
        return v->description ||
                (v->has_unit_state && !streq(v->unit_state.active_state, "inactive") &&
                        !streq(v->unit_state.active_state, "failed"));
}

const char *machine_view_state(const MachineView *v) {
        static const struct {
                const char *unit, *machine;
        } states[] = {
                { "active", "running" },     { "activating", "starting" }, { "deactivating", "stopping" },
                { "reloading", "running" },  { "failed", "failed" },
        };

        if (v->description)
                return json_get_string(v->description, "state", "running");
        for (size_t i = 0; v->has_unit_state && i < ELEMENTSOF(states); i++)
                if (streq(v->unit_state.active_state, states[i].unit))
                        return states[i].machine;
        return v->definition_problem ? "invalid" : "stopped";
}

uint64_t machine_view_since(const MachineView *v) {
        if (v->description)
                return (uint64_t) json_get_integer(v->description, "since", 0);
        if (!v->has_unit_state)
                return 0;
        return machine_view_is_running(v) ? v->unit_state.active_enter : v->unit_state.inactive_enter;
}

uint64_t machine_view_memory(const MachineView *v) {
        if (v->description)
                return (uint64_t) json_get_integer(v->description, "memory", 0);
        return v->definition ? v->definition->memory : 0;
}

uint64_t machine_view_vcpus(const MachineView *v) {
        if (v->description)
                return (uint64_t) json_get_integer(v->description, "vcpus", 0);
        return v->definition ? v->definition->vcpus : 0;
}

size_t machine_view_n_devices(const MachineView *v) {
        json_object *devices = json_get(v->description, "devices", json_type_array);

        if (devices)
                return json_object_array_length(devices);
        return v->definition ? v->definition->n_devices : 0;
}

int machine_view_to_json(const MachineView *v, json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object();
        uint64_t since = machine_view_since(v);
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", v->name);
        if (r >= 0)
                r = json_add_string(o, "state", machine_view_state(v));
        if (r >= 0)
                r = json_add_string(o, "unit", v->unit);
        if (r >= 0 && since > 0)
                r = json_add_integer(o, "since", (int64_t) since);
        if (r >= 0 && machine_view_vcpus(v) > 0)
                r = json_add_integer(o, "vcpus", (int64_t) machine_view_vcpus(v));
        if (r >= 0 && machine_view_memory(v) > 0)
                r = json_add_integer(o, "memory", (int64_t) machine_view_memory(v));
        if (r >= 0)
                r = json_add_boolean(o, "defined", v->defined);
        if (r >= 0)
                r = json_add_string(o, "definitionProblem", v->definition_problem);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(o);
        return 0;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Takes `name` over, also on error; what is there already is not added. */
static int add_name(char ***names, size_t *n, char *name) {
        char **grown;

        if (!name)
                return -ENOMEM;
        for (size_t i = 0; i < *n; i++)
                if (streq((*names)[i], name)) {
                        free(name);
                        return 0;
                }
        grown = reallocarray(*names, *n + 2, sizeof(*grown));
        if (!grown) {
                free(name);
                return -ENOMEM;
        }
        *names = grown;
        grown[(*n)++] = name;
        grown[*n] = NULL;
        return 0;
}

int machine_names(const Options *o, sd_bus *bus, char ***ret) {
        _cleanup_strings_ char **names = NULL, **units = NULL;
        size_t n = 0;
        int r;

        r = definition_list(o->root, &names);
        if (r < 0)
                return r;
        while (names[n])
                n++;
        /* Another system's units are not in our systemd. */
        if (bus && !o->root && units_list(bus, "vmm@*.service", NULL, &units) >= 0)
                for (char **unit = units; *unit; unit++) {
                        const char *instance = *unit + strlen("vmm@");

                        r = add_name(&names, &n, strndup(instance, strlen(instance) - strlen(".service")));
                        if (r < 0)
                                return r;
                }
        qsort(names, n, sizeof(*names), compare_names);
        *ret = TAKE_PTR(names);
        return 0;
}
