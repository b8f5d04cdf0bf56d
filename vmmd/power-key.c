/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "client.h"
#include "json-util.h"
#include "log.h"
#include "machine-device.h"
#include "power-key.h"

static MachineDevice *find_device(Machine *m) {
        MachineDevice *d;

        for (size_t i = 0; (d = machine_device_by_index(m, i)); i++)
                if (device_definition_boolean(machine_device_definition(d), "powerKey", false))
                        return d;
        return NULL;
}

static void complain(const char *device, const char *why) {
        log_warning("Cannot press the power key of device '%s': %s.", device, why);
}

static void on_pressed(VarlinkClient *client, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Machine *m = userdata;
        MachineDevice *d = find_device(m);

        if (error >= 0 || !d)
                return;
        complain(machine_device_definition(d)->name,
                varlink_error_is(error_id, "io.vmmd.Input.NoDriver") ? "the guest has no driver for it" : error_id ?: strerror(-error));
}

static int begin(Machine *m, MachineDevice *d) {
        _cleanup_json_ json_object *parameters = json_object_new_object(), *keys = json_object_new_array();
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        _cleanup_free_ char *path = machine_device_varlink_path(d);
        int r;

        if (!parameters || !keys || !path)
                return -ENOMEM;
        r = json_append(keys, json_object_new_string("power"));
        if (r >= 0)
                r = json_add(parameters, "keys", TAKE_PTR(keys));
        if (r >= 0)
                r = varlink_client_connect(path, &client);
        if (r >= 0)
                r = varlink_client_attach_event(client, m->event);
        if (r >= 0)
                r = varlink_client_call_async(client, "io.vmmd.Input.PressKeys", parameters, 0, on_pressed, m);
        if (r < 0)
                return r;
        /* An earlier press has been sent, and goes on without anybody who waits for it. */
        (void) varlink_client_unref(m->power_key);
        m->power_key = TAKE_PTR(client);
        return 0;
}

int power_key_press(Machine *m) {
        MachineDevice *d = find_device(m);
        int r;

        if (!d)
                return 0;
        r = begin(m, d);
        if (r < 0)
                complain(machine_device_definition(d)->name, strerror(-r));
        return r < 0 ? r : 1;
}

void power_key_done(Machine *m) {
        m->power_key = varlink_client_unref(m->power_key);
}
