/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "client.h"
#include "control-relay.h"
#include "json-util.h"

#define INTERFACE "io.vmmd.Machine"
#define BALLOON_INTERFACE "io.vmmd.Balloon"
#define SERVICE "org.varlink.service"

struct Relay {
        VarlinkCall *call;
        VarlinkClient *client;
        MachineDevice *device;
        RelayAnswer answer;
};

static Relay *relay_free(Relay *relay) {
        if (!relay)
                return NULL;
        if (relay->call)
                varlink_call_on_close(relay->call, NULL, NULL);
        (void) varlink_client_unref(relay->client);
        (void) varlink_call_unref(relay->call);
        (void) machine_device_unref(relay->device);
        return mfree(relay);
}
DEFINE_CLEANUP(Relay, relay_free)

VarlinkCall *relay_client_call(Relay *relay) {
        return relay->call;
}

MachineDevice *relay_device(Relay *relay) {
        return relay->device;
}

int relay_take_fd(Relay *relay, json_object *index) {
        return index ? varlink_client_take_fd(relay->client, json_object_get_int64(index)) : -EPROTO;
}

int relay_device_failed(VarlinkCall *call, const char *device, const char *reason) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "device", device) < 0 ||
                json_add_string(parameters, "reason", reason) < 0)
                return -ENOMEM;
        return varlink_call_error(call, INTERFACE ".DeviceFailed", parameters);
}

/* --- errors --- */

/* The same error of our interface. */
static int balloon_error(Relay *relay, const char *name, json_object *parameters) {
        _cleanup_free_ char *error = NULL;

        if (asprintf(&error, INTERFACE ".%s", name) < 0) {
                error = NULL;
                return -ENOMEM;
        }
        return varlink_call_error(relay->call, error, parameters);
}

static bool is_unknown_there(const char *error_id) {
        return varlink_error_is(error_id, SERVICE ".MethodNotFound") || varlink_error_is(error_id, SERVICE ".InterfaceNotFound") ||
                varlink_error_is(error_id, SERVICE ".MethodNotImplemented") ||
                varlink_error_is(error_id, "io.vmmd.Device.NotSupported");
}

static int answer_error(Relay *relay, int error, const char *error_id, json_object *parameters) {
        const char *device = machine_device_definition(relay->device)->name;
        const char *name = error_id ? startswith(error_id, BALLOON_INTERFACE ".") : NULL;

        if (name)
                return balloon_error(relay, name, parameters);
        if (is_unknown_there(error_id))
                return varlink_call_error(relay->call, INTERFACE ".NotSupported", NULL);
        if (varlink_error_is(error_id, SERVICE ".InvalidParameter"))
                return varlink_call_error_invalid_parameter(relay->call, json_get_string(parameters, "parameter", ""));
        if (varlink_error_is(error_id, "io.vmmd.Device.NoSuchPort"))
                return varlink_call_error(relay->call, INTERFACE ".NoSuchPort", parameters);
        if (varlink_error_is(error_id, "io.vmmd.Input.UnknownKey"))
                return varlink_call_error(relay->call, INTERFACE ".UnknownKey", parameters);
        if (varlink_error_is(error_id, "io.vmmd.Input.NoDriver"))
                return relay_device_failed(relay->call, device, "the guest has no driver for it at present");
        if (varlink_error_is(error_id, "io.vmmd.Input.Busy"))
                return relay_device_failed(relay->call, device, "the guest does not take its events, or too many keys are held already");
        if (varlink_error_is(error_id, "io.vmmd.Device.Unavailable"))
                return relay_device_failed(relay->call, device, json_get_string(parameters, "reason", error_id));
        if (varlink_error_is(error_id, "io.systemd.System")) {
                int64_t number = json_get_integer(parameters, "errno", 0);

                if (number > 0 && number < 4096)
                        return relay_device_failed(relay->call, device, strerror((int) number));
        }
        return relay_device_failed(relay->call, device, error_id ?: strerror(-error));
}

/* --- calls --- */

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        _cleanup_(relay_freep) Relay *relay = userdata;
        int r;

        if (error < 0)
                r = answer_error(relay, error, error_id, reply);
        else if (relay->answer)
                r = relay->answer(relay, reply);
        else
                r = varlink_call_reply(relay->call, NULL);
        /* Refused where it was answered, or the client is gone. */
        if (r < 0)
                (void) varlink_call_error_errno(relay->call, r);
}

static void on_client_gone(VarlinkCall *call, void *userdata) {
        (void) relay_free(userdata);
}

int relay_call(VarlinkCall *call, MachineDevice *d, sd_event *event, const RelayRequest *request) {
        _cleanup_(relay_freep) Relay *relay = calloc(1, sizeof(Relay));
        _cleanup_free_ char *path = machine_device_varlink_path(d);
        int r;

        if (!relay || !path)
                return -ENOMEM;
        relay->device = machine_device_ref(d);
        relay->answer = request->answer;
        r = varlink_client_connect(path, &relay->client);
        if (r < 0)
                return relay_device_failed(call, machine_device_definition(d)->name, strerror(-r));
        /* Nobody waits for the answer: neither do we. */
        if (varlink_call_is_oneway(call))
                return varlink_client_send_oneway(relay->client, request->method, request->parameters);
        if (request->forever)
                varlink_client_set_timeout(relay->client, UINT64_MAX);
        r = varlink_client_attach_event(relay->client, event);
        if (r >= 0)
                r = varlink_client_call_async(relay->client, request->method, request->parameters, 0, on_reply, relay);
        if (r < 0)
                return r;
        relay->call = varlink_call_ref(call);
        varlink_call_on_close(call, on_client_gone, relay);
        TAKE_PTR(relay);
        return 0;
}

int relay_parameters(json_object *parameters, json_object **ret) {
        _cleanup_json_ json_object *object = json_object_new_object();

        if (!object)
                return -ENOMEM;
        json_object_object_foreach(parameters, key, value) {
                int r;

                if (!value || streq(key, "device") || streq(key, "allowInteractiveAuthentication"))
                        continue;
                r = json_add(object, key, json_object_get(value));
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(object);
        return 0;
}

int relay_pass_on(VarlinkCall *call, MachineDevice *d, sd_event *event, json_object *parameters, RelayRequest request) {
        _cleanup_json_ json_object *passed = NULL;
        int r;

        r = relay_parameters(parameters, &passed);
        if (r < 0)
                return r;
        request.parameters = passed;
        return relay_call(call, d, event, &request);
}

int relay_find_device(VarlinkCall *call, Machine *m, json_object *parameters, const char *type, const char *none, MachineDevice **ret) {
        _cleanup_json_ json_object *error = NULL;
        const char *name = json_get_string(parameters, "device", NULL);

        if (name) {
                *ret = machine_device_find(m, name);
                if (*ret)
                        return 1;
                error = json_object_new_object();
                if (!error || json_add_string(error, "device", name) < 0)
                        return -ENOMEM;
                return varlink_call_error(call, INTERFACE ".NoSuchDevice", error);
        }
        for (size_t i = 0; i < m->n_devices; i++) {
                *ret = machine_device_by_index(m, i);
                if (streq(machine_device_definition(*ret)->type->name, type))
                        return 1;
        }
        return varlink_call_error(call, none, NULL);
}
