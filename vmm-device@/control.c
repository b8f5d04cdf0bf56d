/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The control plane of a helper: io.vmmd.Device. What only some types can do comes from their own tables. */

#include <json-c/json.h>

#include "config.h"
#include "control.h"
#include "interfaces.h"

#define CONTROL_METHODS_MAX 8

struct Control {
        VarlinkServer *server;
        Device *device;
        BusServer *bus;
        VarlinkMethod methods[CONTROL_METHODS_MAX + 2]; /* Describe, the device's own, the end */
};

static const char *control_state(const Control *c) {
        const Session *s = c->device->session;

        if (c->bus)
                return bus_server_is_connected(c->bus) ? "running" : "suspended";
        if (!s)
                return "suspended";
        return s->broken ? "broken" : s->started ? "running" : "suspended";
}

static bool control_connected(const Control *c) {
        return c->bus ? bus_server_is_connected(c->bus) : c->device->session != NULL;
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
        static const char *const optional[] = { "OpenConsole", "SetConsoleSize" };
        size_t n = 0;

        c->methods[n++] = (VarlinkMethod) { "Describe", method_describe, 0 };
        for (const DeviceControl *control = c->device->class->control; control && control->method && n <= CONTROL_METHODS_MAX;
                control++)
                c->methods[n++] = (VarlinkMethod) {
                        control->method, method_of_device, control->privileged ? VARLINK_METHOD_PRIVILEGED : 0,
                };
        for (size_t i = 0; i < ELEMENTSOF(optional) && n <= CONTROL_METHODS_MAX; i++)
                if (!find_control(c->device->class, optional[i]))
                        c->methods[n++] = (VarlinkMethod) { optional[i], method_not_supported, 0 };
}

/* Whoever reaches this socket may use it: its mode and its directory let in root and the machine's own vmmd, which asks its own clients
 * for their rights. */
static int authorize(VarlinkCall *call, void *userdata) {
        return 1;
}

int control_new(Device *d, BusServer *bus, int varlink_fd, Control **ret) {
        _cleanup_(control_freep) Control *c = NULL;
        int r;

        c = calloc(1, sizeof(Control));
        if (!c) {
                (void) safe_close(varlink_fd);
                return -ENOMEM;
        }
        c->device = d;
        c->bus = bus;
        fill_methods(c);

        r = varlink_server_new(&c->server, d->event);
        if (r >= 0)
                r = varlink_server_set_info(c->server, "vmmd", "vmm-device", PROJECT_VERSION, "");
        if (r >= 0)
                r = varlink_server_add_interface(c->server, varlink_text_io_vmmd_Device, c->methods, c);
        if (r >= 0)
                varlink_server_set_authorize(c->server, authorize, c);
        if (r < 0) {
                (void) safe_close(varlink_fd);
                return r;
        }
        r = varlink_server_listen_fd(c->server, varlink_fd);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

Control *control_free(Control *c) {
        if (!c)
                return NULL;
        (void) varlink_server_free(c->server);
        return mfree(c);
}
