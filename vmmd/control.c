/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "client.h"
#include "config.h"
#include "control.h"
#include "interfaces.h"
#include "json-util.h"
#include "machine-device.h"

#define INTERFACE "io.vmmd.Machine"

/* --- describing --- */

static const char *device_state_to_string(DeviceState state) {
        static const char *const names[] = {
                [DEVICE_CONNECTING] = "connecting", [DEVICE_READY] = "ready", [DEVICE_ACTIVE] = "active",
                [DEVICE_FAILED] = "failed",
        };

        return names[state];
}

static int describe_device(MachineDevice *d, json_object **ret) {
        const DeviceDefinition *definition = machine_device_definition(d);
        _cleanup_free_ char *unit = machine_device_unit(d), *pci = machine_device_pci_address(d),
                            *error = machine_device_error(d);
        _cleanup_json_ json_object *object = json_object_new_object();
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
                r = json_add_string(object, "state", device_state_to_string(machine_device_state(d)));
        if (r >= 0)
                r = json_add_string(object, "pciAddress", pci);
        if (r >= 0)
                r = json_add_integer(object, "reconnects", machine_device_reconnects(d));
        if (r >= 0)
                r = json_add_string(object, "error", error);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}

static int describe_devices(Machine *m, json_object *into) {
        _cleanup_json_ json_object *devices = json_object_new_array();
        int r = devices ? 0 : -ENOMEM;

        for (size_t i = 0; i < m->n_devices && r >= 0; i++) {
                json_object *device = NULL;

                r = describe_device(machine_device_by_index(m, i), &device);
                if (r >= 0)
                        r = json_append(devices, device);
        }
        return r < 0 ? r : json_add(into, "devices", TAKE_PTR(devices));
}

static int describe_machine(Machine *m, json_object *into) {
        const struct {
                const char *key;
                uint64_t value;
        } numbers[] = {
                { "since", m->state_since_usec },
                { "vcpus", m->definition->vcpus },
                { "memory", m->definition->memory },
                { "pid", (uint64_t) getpid() },
                { "resets", m->resets },
                { "exits", vcpu_set_exits(&m->vcpus) },
                { "firstEntry", atomic_load(&m->first_entry_usec) },
        };
        int r;

        r = json_add_string(into, "name", m->definition->name);
        if (r >= 0)
                r = json_add_string(into, "state", machine_state_to_string(m->state));
        for (size_t i = 0; i < ELEMENTSOF(numbers) && r >= 0; i++)
                r = json_add_integer(into, numbers[i].key, (int64_t) MIN(numbers[i].value, (uint64_t) INT64_MAX));
        if (r >= 0)
                r = json_add_string(into, "version", PROJECT_VERSION);
        if (r >= 0)
                r = json_add_string(into, "commandLine", m->command_line);
        if (r >= 0)
                r = json_add_string(into, "lastProblem", m->last_problem);
        return r;
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r;

        if (!reply)
                return -ENOMEM;
        r = describe_machine(userdata, reply);
        if (r >= 0)
                r = describe_devices(userdata, reply);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

/* --- changing --- */

static int wrong_state(VarlinkCall *call, Machine *m) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "state", machine_state_to_string(m->state)) < 0)
                return -ENOMEM;
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
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "device", device) < 0 ||
                json_add_string(parameters, "reason", reason) < 0)
                return -ENOMEM;
        return varlink_call_error(call, INTERFACE ".DeviceFailed", parameters);
}

static int relay_fd(Relay *relay, json_object *reply) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
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
        TAKE_FD(fd);
        r = json_add_integer(parameters, "fileDescriptorIndex", r);
        return r < 0 ? r : varlink_call_reply(relay->call, parameters);
}

static void on_relay_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues,
        void *userdata) {
        _cleanup_(relay_freep) Relay *relay = userdata;
        int r;

        if (varlink_error_is(error_id, "io.vmmd.Device.NotSupported"))
                r = varlink_call_error(relay->call, INTERFACE ".NotSupported", NULL);
        else if (error < 0)
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
        _cleanup_json_ json_object *error = NULL;
        json_object *device;

        if (json_object_object_get_ex(parameters, "device", &device) && device) {
                *ret = machine_device_find(m, json_object_get_string(device));
                if (*ret)
                        return 1;
                error = json_object_new_object();
                if (!error || json_add(error, "device", json_object_get(device)) < 0)
                        return -ENOMEM;
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
        _cleanup_json_ json_object *size = json_object_new_object();
        json_object *columns, *rows;
        MachineDevice *d = NULL;
        int r;

        r = find_console(call, userdata, parameters, &d);
        if (r <= 0)
                return r;
        if (!size)
                return -ENOMEM;
        (void) json_object_object_get_ex(parameters, "columns", &columns);
        (void) json_object_object_get_ex(parameters, "rows", &rows);
        if (json_add(size, "columns", json_object_get(columns)) < 0 || json_add(size, "rows", json_object_get(rows)) < 0)
                return -ENOMEM;
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
