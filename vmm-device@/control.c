/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The control plane of a helper: io.vmmd.Device. What only some types can do comes from their own tables. */

#include <json-c/json.h>

#include "config.h"
#include "control.h"
#include "interfaces.h"
#include "json-util.h"
#include "relay.h"
#include "stream.h"

#define OWN_METHODS_MAX 8
/* There is one kind of event: another state. */
#define KIND_STATE 0

struct Control {
        Device *device;
        BusServer *bus;
        VarlinkStream *states;
        sd_event_source *look;
        char *told; /* the last event, to see whether there is another */
        VarlinkMethod methods[OWN_METHODS_MAX + 10]; /* the frame's, the device's own, the ones it lacks, the end */
};

static const char *control_state(const Control *c) {
        const Session *s = c->device->session;

        if (c->bus)
                return bus_server_is_connected(c->bus) ? "running" : "suspended";
        if (c->device->relay)
                return relay_is_running(c->device->relay) ? "running" : "suspended";
        if (!s)
                return "suspended";
        return s->broken ? "broken" : s->started ? "running" : "suspended";
}

static bool control_connected(const Control *c) {
        return c->bus ? bus_server_is_connected(c->bus) : c->device->session || c->device->relay;
}

static json_object *string_or_null(const char *s) {
        return s ? json_object_new_string(s) : NULL;
}

static int method_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        Device *d = c->device;
        json_object *reply = json_object_new_object(), *details;
        int r;

        if (!reply)
                return -ENOMEM;
        json_object_object_add(reply, "machine", string_or_null(d->machine));
        json_object_object_add(reply, "device", string_or_null(d->name));
        json_object_object_add(reply, "type", json_object_new_string(d->class->name));
        json_object_object_add(reply, "state", json_object_new_string(control_state(c)));
        json_object_object_add(reply, "connected", json_object_new_boolean(control_connected(c)));
        json_object_object_add(reply, "queues", json_object_new_int64(c->bus ? 0 : d->n_queues));
        json_object_object_add(reply, "pid", json_object_new_int64(getpid()));
        json_object_object_add(reply, "version", json_object_new_string(PROJECT_VERSION));
        if (d->class->describe) {
                details = json_object_new_object();
                if (details)
                        d->class->describe(d, details);
                json_object_object_add(reply, "details", details);
        }
        r = varlink_call_reply(call, reply);
        json_object_put(reply);
        return r;
}

/* ---- Subscribe ---- */

static json_object *state_json(const Control *c) {
        const Session *s = c->device->session;
        const char *reason = s && s->broken ? s->reason ?: "(out of memory)" : NULL;
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o || json_add_string(o, "state", control_state(c)) < 0 || json_add_integer(o, "pid", getpid()) < 0 ||
                json_add_string(o, "reason", reason) < 0)
                return NULL;
        return TAKE_PTR(o);
}

/* Tells the subscribers where the state is another than the last one told. */
static void tell_state(Control *c) {
        _cleanup_json_ json_object *o = state_json(c);
        const char *text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN) : NULL;

        if (!text || streq_ptr(text, c->told))
                return;
        free(c->told);
        c->told = strdup(text);
        (void) varlink_stream_publish(c->states, KIND_STATE, "", o);
}

static int on_look(sd_event_source *source, void *userdata) {
        tell_state(userdata);
        return 0;
}

static void on_changed(void *userdata) {
        Control *c = userdata;

        (void) sd_event_source_set_enabled(c->look, SD_EVENT_ONESHOT);
}

static void on_bus_connection(void *userdata, bool connected) {
        on_changed(userdata);
}

static int method_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        _cleanup_json_ json_object *first = state_json(c);

        /* A change that the others are still to hear of is this one's present state, and no event to him. */
        tell_state(c);
        return first ? varlink_stream_add(c->states, call, first, UINT64_C(1) << KIND_STATE, NULL, NULL, NULL) : -ENOMEM;
}

/* ---- SetLogLevel and GetCounters ---- */

static int method_set_log_level(VarlinkCall *call, json_object *parameters, void *userdata) {
        const char *level = json_get_string(parameters, "level", "");

        /* io.vmmd.Device spells out what syslog abbreviates. */
        log_set_max_level(log_level_from_string(streq(level, "error") ? "err" : level));
        log_info("The log level is %s now.", level);
        return varlink_call_reply(call, NULL);
}

static int method_get_counters(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object(), *counters = json_object_new_object();

        if (!reply || !counters)
                return -ENOMEM;
        if (c->device->class->counters)
                c->device->class->counters(c->device, counters);
        if (json_add(reply, "counters", TAKE_PTR(counters)) < 0)
                return -ENOMEM;
        return varlink_call_reply(call, reply);
}

/* ---- the device's own methods ---- */

/* A method of the device's own table; found by the call's name, since the callback is one for all. */
static int method_of_device(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        const char *dot = strrchr(varlink_call_method(call), '.');

        for (const DeviceControl *control = c->device->class->control; dot && control->method; control++)
                if (streq(control->method, dot + 1))
                        return control->call(c->device, call, parameters);
        return -EOPNOTSUPP;
}

/* The methods that only other types have. */
static int method_not_supported(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_error(call, "io.vmmd.Device.NotSupported", NULL);
}

static const DeviceControl *find_control(const DeviceClass *class, const char *method) {
        for (const DeviceControl *control = class->control; control && control->method; control++)
                if (streq(control->method, method))
                        return control;
        return NULL;
}

static void fill_methods(Control *c) {
        static const VarlinkMethod always[] = {
                { .name = "Describe", .callback = method_describe },
                { .name = "Subscribe", .callback = method_subscribe, .flags = VARLINK_METHOD_REQUIRES_MORE },
                { .name = "SetLogLevel", .callback = method_set_log_level },
                { .name = "GetCounters", .callback = method_get_counters },
        };
        static const char *const optional[] = { "OpenConsole", "AttachConsole", "SetConsoleSize", "Resize" };
        size_t n = ELEMENTSOF(always), own = 0;

        memcpy(c->methods, always, sizeof(always));
        for (const DeviceControl *control = c->device->class->control; control && control->method && own < OWN_METHODS_MAX; control++, own++)
                c->methods[n++] = (VarlinkMethod) {
                        .name = control->method,
                        .callback = method_of_device,
                        .flags = control->privileged ? VARLINK_METHOD_PRIVILEGED : 0,
                };
        for (size_t i = 0; i < ELEMENTSOF(optional); i++)
                if (!find_control(c->device->class, optional[i]))
                        c->methods[n++] = (VarlinkMethod) { .name = optional[i], .callback = method_not_supported };
        assert(n < ELEMENTSOF(c->methods));
}

static int watch_state(Control *c) {
        Device *d = c->device;
        int r;

        r = varlink_stream_new(&c->states, VARLINK_STREAM_BACKLOG_DEFAULT);
        if (r >= 0)
                r = sd_event_add_defer(d->event, &c->look, on_look, c);
        /* When all that is under way is done: what lasts no longer than a turn of the loop is no news. */
        if (r >= 0)
                r = sd_event_source_set_priority(c->look, SD_EVENT_PRIORITY_NORMAL + 20);
        if (r < 0)
                return r;
        d->changed = on_changed;
        d->changed_userdata = c;
        if (c->bus)
                bus_server_on_connection(c->bus, on_bus_connection, c);
        return 0;
}

static int add_interfaces(Control *c, VarlinkServer *server) {
        const DeviceClass *class = c->device->class;
        int r;

        r = varlink_server_add_interface(server, varlink_text_io_vmmd_Device, c->methods, c);
        if (r >= 0 && class->interface)
                r = varlink_server_add_interface(server, class->interface, class->methods, c->device);
        return r;
}

int control_new(Device *d, BusServer *bus, VarlinkServer *server, Control **ret) {
        _cleanup_(control_freep) Control *c = NULL;
        int r;

        c = calloc(1, sizeof(Control));
        if (!c)
                return -ENOMEM;
        c->device = d;
        c->bus = bus;
        fill_methods(c);

        r = watch_state(c);
        if (r >= 0)
                r = add_interfaces(c, server);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

Control *control_free(Control *c) {
        if (!c)
                return NULL;
        c->device->changed = NULL;
        if (c->bus)
                bus_server_on_connection(c->bus, NULL, NULL);
        (void) varlink_stream_free(c->states);
        (void) sd_event_source_disable_unref(c->look);
        free(c->told);
        return mfree(c);
}
