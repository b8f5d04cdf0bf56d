/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "client.h"
#include "config.h"
#include "control.h"
#include "interfaces.h"
#include "log.h"
#include "machine-device.h"

#define INTERFACE "io.vmmd.Machine"

/* --- small words over json-c: a failed allocation shows as -ENOMEM once, at the end --- */

static void put(json_object *object, const char *key, json_object *value) {
        (void) json_object_object_add(object, key, value);
}

static void put_string(json_object *object, const char *key, const char *value) {
        put(object, key, value ? json_object_new_string(value) : NULL);
}

static void put_int(json_object *object, const char *key, uint64_t value) {
        put(object, key, json_object_new_int64((int64_t) MIN(value, (uint64_t) INT64_MAX)));
}

static void json_object_putp(json_object **object) {
        (void) json_object_put(*object);
}

/* --- describing --- */

static const char *device_state_to_string(DeviceState state) {
        static const char *const names[] = {
                [DEVICE_CONNECTING] = "connecting", [DEVICE_READY] = "ready", [DEVICE_ACTIVE] = "active",
                [DEVICE_FAILED] = "failed",
        };

        return names[state];
}

static json_object *describe_device(MachineDevice *d) {
        const DeviceDefinition *definition = machine_device_definition(d);
        _cleanup_free_ char *unit = machine_device_unit(d), *pci = machine_device_pci_address(d),
                            *error = machine_device_error(d);
        json_object *object = json_object_new_object();

        if (!object)
                return NULL;
        put_string(object, "name", definition->name);
        put_string(object, "type", definition->type->name);
        put_string(object, "unit", unit ?: "");
        put_string(object, "transport", definition->type->transport == DEVICE_TRANSPORT_BUS ? "bus" : "vhostUser");
        put_string(object, "state", device_state_to_string(machine_device_state(d)));
        put_string(object, "pciAddress", pci);
        put_int(object, "reconnects", machine_device_reconnects(d));
        put_string(object, "error", error);
        return object;
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Machine *m = userdata;
        _cleanup_(json_object_putp) json_object *reply = json_object_new_object();
        json_object *devices = json_object_new_array();

        if (!reply || !devices) {
                (void) json_object_put(devices);
                return -ENOMEM;
        }
        put(reply, "devices", devices);
        put_string(reply, "name", m->definition->name);
        put_string(reply, "state", machine_state_to_string(m->state));
        put_int(reply, "since", m->state_since_usec);
        put_int(reply, "vcpus", m->definition->vcpus);
        put_int(reply, "memory", m->definition->memory);
        put_int(reply, "pid", (uint64_t) getpid());
        put_string(reply, "version", PROJECT_VERSION);
        put_int(reply, "resets", m->resets);
        put_int(reply, "exits", vcpu_set_exits(&m->vcpus));
        put_int(reply, "firstEntry", atomic_load(&m->first_entry_usec));
        put_string(reply, "commandLine", m->command_line);
        put_string(reply, "lastProblem", m->last_problem);
        for (size_t i = 0; i < m->n_devices; i++)
                (void) json_object_array_add(devices, describe_device(machine_device_by_index(m, i)));
        return varlink_call_reply(call, reply);
}

/* --- changing --- */

static int wrong_state(VarlinkCall *call, Machine *m) {
        _cleanup_(json_object_putp) json_object *parameters = json_object_new_object();

        if (!parameters)
                return -ENOMEM;
        put_string(parameters, "state", machine_state_to_string(m->state));
        return varlink_call_error(call, INTERFACE ".WrongState", parameters);
}

static int answer(VarlinkCall *call, Machine *m, int r) {
        if (r == -EBUSY)
                return wrong_state(call, m);
        return r < 0 ? r : varlink_call_reply(call, NULL);
}

#define DEFINE_ACTION(name, function)                                                                          \
        static int on_##name(VarlinkCall *call, json_object *parameters, void *userdata) {                     \
                Machine *m = userdata;                                                                         \
                                                                                                               \
                return answer(call, m, function(m));                                                           \
        }
DEFINE_ACTION(power_button, machine_power_button)
DEFINE_ACTION(power_off, machine_power_off)
DEFINE_ACTION(terminate, machine_terminate)
DEFINE_ACTION(reset, machine_reset)
DEFINE_ACTION(pause, machine_pause)
DEFINE_ACTION(resume, machine_resume)

/* --- what a helper answers: the call is passed on, and the loop goes on meanwhile --- */

typedef struct Relay {
        VarlinkCall *call;
        VarlinkClient *client;
        char *device;
        bool wants_fd;
} Relay;

static Relay *relay_free(Relay *relay) {
        if (!relay)
                return NULL;
        (void) varlink_call_unref(relay->call);
        (void) varlink_client_unref(relay->client);
        free(relay->device);
        return mfree(relay);
}
DEFINE_CLEANUP(Relay, relay_free)

static int device_failed(VarlinkCall *call, const char *device, const char *reason) {
        _cleanup_(json_object_putp) json_object *parameters = json_object_new_object();

        if (!parameters)
                return -ENOMEM;
        put_string(parameters, "device", device);
        put_string(parameters, "reason", reason);
        return varlink_call_error(call, INTERFACE ".DeviceFailed", parameters);
}

static int relay_fd(Relay *relay, json_object *reply) {
        _cleanup_(json_object_putp) json_object *parameters = json_object_new_object();
        _cleanup_close_ int fd = -EBADF;
        json_object *index;
        int r;

        if (!parameters)
                return -ENOMEM;
        if (!json_object_object_get_ex(reply, "fileDescriptorIndex", &index))
                return -EPROTO;
        fd = varlink_client_take_fd(relay->client, json_object_get_int64(index));
        if (fd < 0)
                return fd;
        r = varlink_call_push_fd(relay->call, fd);
        if (r < 0)
                return r;
        fd = -EBADF;
        put_int(parameters, "fileDescriptorIndex", (uint64_t) r);
        return varlink_call_reply(relay->call, parameters);
}

static void on_relay_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues,
        void *userdata) {
        _cleanup_(relay_freep) Relay *relay = userdata;
        int r;

        if (error < 0)
                r = device_failed(relay->call, relay->device, error_id ?: strerror(-error));
        else if (relay->wants_fd)
                r = relay_fd(relay, reply);
        else
                r = varlink_call_reply(relay->call, NULL);
        if (r < 0 && r != -ENOTCONN)
                (void) varlink_call_error_errno(relay->call, r);
}

static int relay_call(VarlinkCall *call, Machine *m, MachineDevice *d, const char *method, json_object *parameters, bool wants_fd) {
        _cleanup_(relay_freep) Relay *relay = calloc(1, sizeof(Relay));
        _cleanup_free_ char *path = machine_device_varlink_path(d);
        const char *name = machine_device_definition(d)->name;
        int r;

        if (!relay || !path)
                return -ENOMEM;
        relay->device = strdup(name);
        relay->call = varlink_call_ref(call);
        relay->wants_fd = wants_fd;
        r = varlink_client_connect(path, &relay->client);
        if (r < 0)
                return device_failed(call, name, strerror(-r));
        r = varlink_client_attach_event(relay->client, m->event);
        if (r >= 0)
                r = varlink_client_call_async(relay->client, method, parameters, 0, on_relay_reply, relay);
        if (r < 0)
                return r;
        TAKE_PTR(relay);
        return 0;
}

/* The console that is meant: the one named, or the first. */
static int find_console(VarlinkCall *call, Machine *m, json_object *parameters, MachineDevice **ret) {
        _cleanup_(json_object_putp) json_object *error = NULL;
        json_object *device;

        if (json_object_object_get_ex(parameters, "device", &device) && device) {
                *ret = machine_device_find(m, json_object_get_string(device));
                if (*ret)
                        return 1;
                error = json_object_new_object();
                if (!error)
                        return -ENOMEM;
                put(error, "device", json_object_get(device));
                return varlink_call_error(call, INTERFACE ".NoSuchDevice", error);
        }
        for (size_t i = 0; i < m->n_devices; i++) {
                *ret = machine_device_by_index(m, i);
                if (streq(machine_device_definition(*ret)->type->name, "console"))
                        return 1;
        }
        return varlink_call_error(call, INTERFACE ".NoConsole", NULL);
}

static int on_open_console(VarlinkCall *call, json_object *parameters, void *userdata) {
        MachineDevice *d;
        int r;

        r = find_console(call, userdata, parameters, &d);
        return r <= 0 ? r : relay_call(call, userdata, d, "io.vmmd.Device.OpenConsole", NULL, true);
}

static int on_set_console_size(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_(json_object_putp) json_object *size = json_object_new_object();
        json_object *columns, *rows;
        MachineDevice *d;
        int r;

        r = find_console(call, userdata, parameters, &d);
        if (r <= 0)
                return r;
        if (!size)
                return -ENOMEM;
        (void) json_object_object_get_ex(parameters, "columns", &columns);
        (void) json_object_object_get_ex(parameters, "rows", &rows);
        put(size, "columns", json_object_get(columns));
        put(size, "rows", json_object_get(rows));
        return relay_call(call, userdata, d, "io.vmmd.Device.SetConsoleSize", size, false);
}

int control_add(VarlinkServer *server, Machine *m) {
        static const VarlinkMethod methods[] = {
                { "Describe", on_describe },
                { "PowerButton", on_power_button, VARLINK_METHOD_PRIVILEGED },
                { "PowerOff", on_power_off, VARLINK_METHOD_PRIVILEGED },
                { "Terminate", on_terminate, VARLINK_METHOD_PRIVILEGED },
                { "Reset", on_reset, VARLINK_METHOD_PRIVILEGED },
                { "Pause", on_pause, VARLINK_METHOD_PRIVILEGED },
                { "Resume", on_resume, VARLINK_METHOD_PRIVILEGED },
                { "OpenConsole", on_open_console, VARLINK_METHOD_PRIVILEGED },
                { "SetConsoleSize", on_set_console_size, VARLINK_METHOD_PRIVILEGED },
                {},
        };

        return varlink_server_add_interface(server, varlink_text_io_vmmd_Machine, methods, m);
}
