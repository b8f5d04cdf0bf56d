/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* list: every machine in one line. */

#include <inttypes.h>

#include "output.h"
#include "view.h"

static int add_to_json(const MachineView *v, json_object *array) {
        _cleanup_json_ json_object *o = NULL;
        int r;

        r = machine_view_to_json(v, &o);
        if (r >= 0)
                r = json_add_integer(o, "devices", (int64_t) machine_view_n_devices(v));
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

static void add_row(Table *t, const MachineView *v) {
        _cleanup_free_ char *memory = NULL, *ago = NULL;
        const char *state = machine_view_state(v);
        uint64_t since = machine_view_since(v);

        if (machine_view_memory(v) > 0)
                memory = format_bytes(machine_view_memory(v));
        if (since > 0 && machine_view_is_running(v))
                ago = format_ago(since);
        table_add(t, COLOR_NONE, "%s", v->name);
        table_add(t, color_of_state(state), "%s", state);
        if (machine_view_vcpus(v) > 0) {
                table_add(t, COLOR_NONE, "%" PRIu64, machine_view_vcpus(v));
                table_add(t, COLOR_NONE, "%s", memory ?: "-");
                table_add(t, COLOR_NONE, "%zu", machine_view_n_devices(v));
        } else
                for (unsigned i = 0; i < 3; i++)
                        table_add(t, COLOR_NONE, "-");
        table_add(t, COLOR_NONE, "%s", ago ?: "-");
}

static int list_machine(const Options *o, sd_bus *bus, const char *name, Table *t, json_object *array) {
        _cleanup_(machine_view_done) MachineView v = {};
        int r;

        r = machine_view_get(o, bus, name, &v);
        if (r < 0)
                return r;
        /* A unit that somebody only asked about, or that is left over from a machine that is gone. */
        if (!v.defined && !machine_view_is_running(&v) && !streq(machine_view_state(&v), "failed"))
                return 0;
        if (array)
                return add_to_json(&v, array);
        add_row(t, &v);
        return 0;
}

static int list_machines(const Options *o, sd_bus *bus) {
        _cleanup_strings_ char **names = NULL;
        _cleanup_json_ json_object *array = o->json == JSON_OFF ? NULL : json_object_new_array();
        _cleanup_(table_done) Table t = { .n_columns = 6 };
        int r;

        if (o->json != JSON_OFF && !array)
                return -ENOMEM;
        r = machine_names(o, bus, &names);
        if (r < 0)
                return r;
        if (!o->quiet) {
                static const char *const headings[] = { "NAME", "STATE", "VCPUS", "MEMORY", "DEVICES", "SINCE" };
                for (size_t i = 0; i < ELEMENTSOF(headings); i++)
                        table_add(&t, COLOR_BOLD, "%s", headings[i]);
        }
        for (char **name = names; *name; name++) {
                r = list_machine(o, bus, *name, &t, array);
                if (r < 0)
                        return r;
        }
        if (array)
                return print_json(o, array);
        if (!names[0]) {
                if (!o->quiet)
                        (void) puts("No machines.");
                return 0;
        }
        return table_print(&t, "");
}

int command_list(const Options *o, char **arguments, size_t n) {
        sd_bus *bus = NULL;
        int r;

        /* Without systemd there are definitions and machines started by hand. */
        if (!o->root)
                (void) bus_open(o, &bus);
        r = list_machines(o, bus);
        sd_bus_flush_close_unref(bus);
        if (r < 0)
                complain("Cannot list the machines: %s", strerror(-r));
        return r < 0 ? STATUS_FAILED : STATUS_OK;
}
