/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* status: everything that is known of a machine, running or not. */

#include <inttypes.h>

#include "balloon.h"
#include "output.h"
#include "unit-name.h"
#include "view.h"

/* What is shown of a device: from the running machine where it runs, from the definition where not; and its unit. */
typedef struct DeviceView {
        const char *name, *type, *state, *address, *error;
        uint64_t error_time; /* CLOCK_REALTIME; 0 where unknown */
        int64_t pid, reconnects;
        char *unit;
        bool has_unit_state;
        UnitState unit_state;
        char *problem;
} DeviceView;

static void device_view_done(DeviceView *d) {
        free(d->unit);
        free(d->problem);
        unit_state_done(&d->unit_state);
}

static int device_view_get(sd_bus *bus, const MachineView *v, size_t index, DeviceView *ret) {
        json_object *devices = json_get(v->description, "devices", json_type_array);
        DeviceView d = {};

        if (devices) {
                json_object *o = json_object_array_get_idx(devices, index);
                d.name = json_get_string(o, "name", "?");
                d.type = json_get_string(o, "type", "?");
                d.state = json_get_string(o, "state", "?");
                d.address = json_get_string(o, "pciAddress", NULL);
                d.error = json_get_string(o, "error", NULL);
                d.error_time = (uint64_t) json_get_integer(o, "errorTime", 0);
                d.pid = json_get_integer(o, "pid", 0);
                d.reconnects = json_get_integer(o, "reconnects", 0);
        } else {
                d.name = v->definition->devices[index].name;
                d.type = v->definition->devices[index].type->name;
        }
        d.unit = device_unit_name(v->name, d.name, "service");
        if (!d.unit)
                return -ENOMEM;
        d.has_unit_state = bus && unit_state_get(bus, d.unit, &d.unit_state) >= 0;
        if (d.has_unit_state) {
                d.problem = unit_state_problem(&d.unit_state);
                /* The machine may not know, or may not have been asked. */
                if (d.pid == 0)
                        d.pid = d.unit_state.main_pid;
        }
        *ret = d;
        return 0;
}

/* ---- JSON ---- */

static int unit_to_json(const UnitState *s, json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object();
        _cleanup_free_ char *problem = unit_state_problem(s);
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "loadState", s->load_state);
        if (r >= 0)
                r = json_add_string(o, "activeState", s->active_state);
        if (r >= 0)
                r = json_add_string(o, "subState", s->sub_state);
        if (r >= 0)
                r = json_add_string(o, "result", s->result);
        if (r >= 0)
                r = json_add_integer(o, "exitStatus", s->exec_main_status);
        if (r >= 0)
                r = json_add_string(o, "statusText", *s->status_text ? s->status_text : NULL);
        if (r >= 0)
                r = json_add_integer(o, "mainPid", s->main_pid);
        if (r >= 0)
                r = json_add_integer(o, "restarts", s->n_restarts);
        if (r >= 0)
                r = json_add_string(o, "problem", problem);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(o);
        return 0;
}

static int add_unit_state(json_object *into, const UnitState *s) {
        json_object *json;
        int r;

        r = unit_to_json(s, &json);
        return r < 0 ? r : json_add(into, "unitState", json);
}

static int device_to_json(const DeviceView *d, json_object *array) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", d->name);
        if (r >= 0)
                r = json_add_string(o, "type", d->type);
        if (r >= 0)
                r = json_add_string(o, "state", d->state);
        if (r >= 0)
                r = json_add_string(o, "pciAddress", d->address);
        if (r >= 0 && d->pid > 0)
                r = json_add_integer(o, "pid", d->pid);
        if (r >= 0 && d->state)
                r = json_add_integer(o, "reconnects", d->reconnects);
        if (r >= 0)
                r = json_add_string(o, "error", d->error);
        if (r >= 0 && d->error_time > 0)
                r = json_add_integer(o, "errorTime", (int64_t) d->error_time);
        if (r >= 0)
                r = json_add_string(o, "unit", d->unit);
        if (r >= 0 && d->has_unit_state)
                r = add_unit_state(o, &d->unit_state);
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

static int devices_to_json(sd_bus *bus, const MachineView *v, json_object *into) {
        json_object *array = json_object_new_array();
        int r;

        r = json_add(into, "devices", array);
        for (size_t i = 0; r >= 0 && i < machine_view_n_devices(v); i++) {
                _cleanup_(device_view_done) DeviceView d = {};

                r = device_view_get(bus, v, i, &d);
                if (r >= 0)
                        r = device_to_json(&d, array);
        }
        return r;
}

/* What only the running machine knows. */
static int description_to_json(const MachineView *v, json_object *into) {
        json_object *balloons = json_get(v->description, "balloons", json_type_array);
        int r;

        if (!v->description)
                return 0;
        r = json_add_integer(into, "pid", json_get_integer(v->description, "pid", 0));
        if (r >= 0)
                r = json_add_boolean(into, "guestReady", json_get_boolean(v->description, "guestReady", false));
        if (r >= 0)
                r = json_add_string(into, "guestStatus", json_get_string(v->description, "guestStatus", NULL));
        if (r >= 0)
                r = json_add_integer(into, "resets", json_get_integer(v->description, "resets", 0));
        if (r >= 0)
                r = json_add_string(into, "lastProblem", json_get_string(v->description, "lastProblem", NULL));
        if (r >= 0 && balloons)
                r = json_add(into, "balloons", json_object_get(balloons));
        return r;
}

static int status_to_json(sd_bus *bus, const MachineView *v, json_object *array) {
        _cleanup_json_ json_object *o = NULL;
        int r;

        r = machine_view_to_json(v, &o);
        if (r >= 0)
                r = description_to_json(v, o);
        if (r >= 0 && v->has_unit_state)
                r = add_unit_state(o, &v->unit_state);
        if (r >= 0)
                r = devices_to_json(bus, v, o);
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

/* ---- text ---- */

static void print_line(const char *label, const char *format, ...) _printf_(2, 3);
static void print_line(const char *label, const char *format, ...) {
        va_list ap;

        (void) printf("%11s: ", label);
        va_start(ap, format);
        (void) vprintf(format, ap);
        va_end(ap);
        (void) putchar('\n');
}

static void print_head(const MachineView *v) {
        const char *state = machine_view_state(v);
        _cleanup_free_ char *since = NULL, *ago = NULL;
        uint64_t when = machine_view_since(v);

        if (when > 0) {
                since = format_time(when);
                ago = format_ago(when);
        }
        (void) printf("%s%s%s %s - %s%s%s", color(color_of_state(state)), machine_view_is_running(v) ? "●" : "○", color_end(),
                v->name, color(color_of_state(state)), state, color_end());
        if (since && ago)
                (void) printf(" since %s; %s ago", since, ago);
        if (v->description && !json_get_boolean(v->description, "guestReady", true))
                (void) printf("; guest not ready yet");
        (void) putchar('\n');
}

static void print_unit(const MachineView *v) {
        const UnitState *s = &v->unit_state;

        if (v->has_unit_state)
                print_line("Unit", "%s (%s, %s)", v->unit, s->active_state, s->sub_state);
        else
                print_line("Unit", "%s", v->unit);
        if (v->description)
                print_line("PID", "%" PRId64, json_get_integer(v->description, "pid", 0));
        else if (v->has_unit_state && s->main_pid > 0)
                print_line("PID", "%" PRIu32, s->main_pid);
}

/* What went wrong, from whoever knows. */
static void print_problems(const MachineView *v) {
        const UnitState *s = &v->unit_state;
        _cleanup_free_ char *problem = v->has_unit_state ? unit_state_problem(s) : NULL;
        _cleanup_free_ char *last = json_dup_string(v->description, "lastProblem");

        if (v->has_unit_state && *s->status_text)
                print_line("Status", "\"%s\"", s->status_text);
        if (v->definition_problem)
                print_line("Definition", "%s%s%s", color(COLOR_RED), v->definition_problem, color_end());
        if (problem)
                print_line("Result", "%s%s%s", color(COLOR_RED), problem, color_end());
        if (last)
                print_line("Problem", "%s%s%s", color(COLOR_RED), make_printable(last), color_end());
        if (v->has_unit_state && s->n_restarts > 0)
                print_line("Restarts", "%" PRIu32, s->n_restarts);
        if (v->description && json_get_integer(v->description, "resets", 0) > 0)
                print_line("Resets", "%" PRId64, json_get_integer(v->description, "resets", 0));
}

static void print_resources(sd_bus *bus, const MachineView *v) {
        _cleanup_free_ char *memory = NULL, *used = NULL, *slice = machine_slice_name(v->name);
        _cleanup_(unit_state_done) UnitState s = {};

        if (machine_view_vcpus(v) == 0)
                return;
        memory = format_bytes(machine_view_memory(v));
        if (bus && slice && machine_view_is_running(v) && unit_state_get(bus, slice, &s) >= 0 &&
                s.memory_current != UINT64_MAX)
                used = format_bytes(s.memory_current);
        print_line("vCPUs", "%" PRIu64, machine_view_vcpus(v));
        print_line("Memory", "%s%s%s%s", memory ?: "?", used ? " (in use with its devices: " : "", used ?: "", used ? ")" : "");
}

static void print_balloons(const MachineView *v) {
        json_object *balloons = json_get(v->description, "balloons", json_type_array);

        for (size_t i = 0; balloons && i < json_object_array_length(balloons); i++) {
                json_object *balloon = json_object_array_get_idx(balloons, i);
                _cleanup_free_ char *summary = balloon_summary(balloon);
                int64_t deflations = json_get_integer(balloon, "oomDeflations", 0);

                if (deflations > 0)
                        print_line("Balloon", "%s: %s; deflated %" PRId64 " times for want of memory",
                                json_get_string(balloon, "device", "?"), summary ?: "?", deflations);
                else
                        print_line("Balloon", "%s: %s", json_get_string(balloon, "device", "?"), summary ?: "?");
        }
}

/* Where it failed, its last words say more than systemd's. */
static void add_device_problem(Table *t, const DeviceView *d) {
        const char *said = d->problem && *d->unit_state.status_text ? d->unit_state.status_text : NULL;
        _cleanup_free_ char *ago = d->error && d->error_time > 0 ? format_ago(d->error_time) : NULL;

        table_add(t, COLOR_RED, "%s%s%s%s", d->error ?: said ?: d->problem ?: "", ago ? " (" : "", ago ?: "", ago ? " ago)" : "");
}

static void add_device_row(Table *t, const DeviceView *d) {
        table_add(t, COLOR_NONE, "%s", d->name);
        table_add(t, COLOR_NONE, "%s", d->type);
        table_add(t, d->state ? color_of_state(d->state) : COLOR_NONE, "%s", d->state ?: "-");
        table_add(t, COLOR_NONE, "%s", d->address ?: "-");
        if (d->has_unit_state)
                table_add(t, color_of_state(d->unit_state.active_state), "%s (%s)", d->unit, d->unit_state.active_state);
        else
                table_add(t, COLOR_NONE, "%s", d->unit);
        if (d->pid > 0)
                table_add(t, COLOR_NONE, "%" PRId64, d->pid);
        else
                table_add(t, COLOR_NONE, "-");
        add_device_problem(t, d);
}

static int print_devices(sd_bus *bus, const MachineView *v) {
        _cleanup_(table_done) Table t = { .n_columns = 7 };
        size_t n = machine_view_n_devices(v);
        int r;

        for (size_t i = 0; i < n; i++) {
                _cleanup_(device_view_done) DeviceView d = {};

                r = device_view_get(bus, v, i, &d);
                if (r < 0)
                        return r;
                add_device_row(&t, &d);
        }
        if (n == 0)
                print_line("Devices", "none");
        else
                print_line("Devices", "%zu", n);
        return n == 0 ? 0 : table_print(&t, "             ");
}

static int print_status(sd_bus *bus, const MachineView *v) {
        print_head(v);
        print_unit(v);
        print_problems(v);
        print_resources(bus, v);
        print_balloons(v);
        return print_devices(bus, v);
}

/* ---- the command ---- */

static int status_of_one(const Options *o, sd_bus *bus, const char *name, json_object *array, bool asked, int *status) {
        _cleanup_(machine_view_done) MachineView v = {};
        int r;

        if (!machine_name_is_valid(name)) {
                complain("%s: this is no name of a machine", name);
                *status = STATUS_UNKNOWN_MACHINE;
                return 0;
        }
        r = machine_view_get(o, bus, name, &v);
        if (r < 0)
                return r;
        if (!v.defined && !machine_view_is_running(&v) && !streq(machine_view_state(&v), "failed")) {
                /* Else it is a unit that somebody only asked about, or that is left over from a machine that is gone. */
                if (asked) {
                        complain("%s: there is no such machine", name);
                        *status = STATUS_UNKNOWN_MACHINE;
                }
                return 0;
        }
        if (!machine_view_is_running(&v) && *status == STATUS_OK)
                *status = STATUS_NOT_RUNNING;
        if (array)
                return status_to_json(bus, &v, array);
        r = print_status(bus, &v);
        if (r >= 0)
                (void) putchar('\n');
        return r;
}

static int status_of_all(const Options *o, sd_bus *bus, char **names, size_t n, bool asked, int *status) {
        _cleanup_json_ json_object *array = o->json == JSON_OFF ? NULL : json_object_new_array();
        int r;

        if (o->json != JSON_OFF && !array)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                r = status_of_one(o, bus, names[i], array, asked, status);
                if (r < 0)
                        return r;
        }
        return array ? print_json(o, array) : 0;
}

int command_status(const Options *o, char **arguments, size_t n) {
        _cleanup_strings_ char **all = NULL;
        sd_bus *bus = NULL;
        int status = STATUS_OK, r = 0;

        if (!o->root)
                (void) bus_open(o, &bus);
        if (n > 0)
                r = status_of_all(o, bus, arguments, n, true, &status);
        else {
                r = machine_names(o, bus, &all);
                for (n = 0; r >= 0 && all[n]; n++)
                        ;
                if (r >= 0)
                        r = status_of_all(o, bus, all, n, false, &status);
                /* Nobody asked for one that does not run. */
                status = STATUS_OK;
        }
        sd_bus_flush_close_unref(bus);
        if (r < 0)
                complain("Cannot tell the status: %s", strerror(-r));
        return r < 0 ? STATUS_FAILED : status;
}
