/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* io.systemd.Metrics: numbers for graphs. Those of devices are asked of their helpers, all at once; a helper that does not answer in time
 * is left out. */

#include "client.h"
#include "control-methods.h"
#include "interfaces.h"
#include "json-util.h"

#define PREFIX "io.vmmd.Machine."
#define HELPER_TIMEOUT_USEC (5 * USEC_PER_SEC)

/* One who asked for all numbers. */
typedef struct Listing {
        Control *control;
        VarlinkCall *call;
        size_t n_clients, n_waiting;
        struct {
                struct Listing *listing;
                MachineDevice *device;
                VarlinkClient *client;
        } helpers[MACHINE_DEVICES_MAX];
} Listing;

static Listing *listing_free(Listing *l) {
        if (!l)
                return NULL;
        for (size_t i = 0; i < l->n_clients; i++) {
                (void) varlink_client_unref(l->helpers[i].client);
                (void) machine_device_unref(l->helpers[i].device);
        }
        if (l->call)
                varlink_call_on_close(l->call, NULL, NULL);
        (void) varlink_call_unref(l->call);
        return mfree(l);
}
DEFINE_CLEANUP(Listing, listing_free)

/* Takes `value` and `fields` over; `object` and `fields` may be NULL. */
static int metric_new(const char *name, json_object *value, const char *object, json_object *fields, json_object **ret) {
        _cleanup_json_ json_object *owned = fields, *metric = json_object_new_object();
        int r;

        if (!metric) {
                (void) json_object_put(value);
                return -ENOMEM;
        }
        r = json_add_string(metric, "name", name);
        if (r >= 0)
                r = json_add(metric, "value", value);
        else
                (void) json_object_put(value);
        if (r >= 0)
                r = json_add_string(metric, "object", object);
        if (r >= 0 && owned)
                r = json_add(metric, "fields", TAKE_PTR(owned));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(metric);
        return 0;
}

static int tell(Listing *l, const char *name, json_object *value, const char *object, json_object *fields) {
        _cleanup_json_ json_object *metric = NULL;
        int r;

        r = metric_new(name, value, object, fields, &metric);
        return r < 0 ? r : varlink_call_reply_continues(l->call, metric);
}

static int tell_number(Listing *l, const char *name, uint64_t value, const char *object) {
        return tell(l, name, json_object_new_int64((int64_t) MIN(value, (uint64_t) INT64_MAX)), object, NULL);
}

static int tell_machine(Listing *l) {
        Machine *m = l->control->machine;
        int r;

        r = tell(l, PREFIX "State", json_object_new_string(machine_state_to_string(m->state)), NULL, NULL);
        if (r >= 0)
                r = tell_number(l, PREFIX "MemoryBytes", m->definition->memory, NULL);
        if (r >= 0)
                r = tell_number(l, PREFIX "Vcpus", m->definition->vcpus, NULL);
        if (r >= 0)
                r = tell_number(l, PREFIX "VcpuExits", vcpu_set_exits(&m->vcpus), NULL);
        return r < 0 ? r : tell_number(l, PREFIX "Resets", m->resets, NULL);
}

static int tell_balloon(Listing *l, const char *name, json_object *balloon) {
        static const struct {
                const char *name, *key;
        } numbers[] = {
                { PREFIX "BalloonTargetBytes", "target" },
                { PREFIX "BalloonActualBytes", "actual" },
                { PREFIX "BalloonOomDeflations", "oomDeflations" },
                { PREFIX "BalloonReportedBytes", "reported" },
        };
        int r = 0;

        for (size_t i = 0; balloon && i < ELEMENTSOF(numbers) && r >= 0; i++)
                r = tell(l, numbers[i].name, json_object_new_int64(json_get_integer(balloon, numbers[i].key, 0)), name, NULL);
        return r;
}

static int tell_device(Listing *l, MachineDevice *d) {
        const char *name = machine_device_definition(d)->name;
        int r;

        r = tell_number(l, PREFIX "DeviceReconnects", machine_device_reconnects(d), name);
        if (r >= 0 && machine_device_is_balloon(d))
                r = tell_balloon(l, name, machine_device_balloon(d));
        return r;
}

static int tell_counters(Listing *l, const char *device, json_object *counters) {
        int r = 0;

        json_object_object_foreach(counters, key, value) {
                json_object *fields;

                if (!json_object_is_type(value, json_type_int))
                        continue;
                fields = json_object_new_object();
                if (!fields)
                        return -ENOMEM;
                r = json_add_string(fields, "counter", key);
                if (r < 0) {
                        (void) json_object_put(fields);
                        return r;
                }
                r = tell(l, PREFIX "DeviceCounter", json_object_get(value), device, fields);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The last reply is one of them, too. */
static int tell_last(Listing *l) {
        _cleanup_json_ json_object *metric = NULL;
        int r;

        r = metric_new(PREFIX "Subscribers", json_object_new_int64((int64_t) events_n_subscribers(l->control->events)), NULL, NULL,
                &metric);
        return r < 0 ? r : varlink_call_reply(l->call, metric);
}

/* Ends the list where it is complete, or `error` prevents that. Frees it. */
static void finish(Listing *l, int error) {
        if (error >= 0)
                error = tell_last(l);
        if (error < 0)
                (void) varlink_call_error_errno(l->call, error);
        (void) listing_free(l);
}

static void on_counters(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Listing **listing = userdata;
        Listing *l = *listing;
        int r = 0;

        l->n_waiting--;
        for (size_t i = 0; i < l->n_clients; i++)
                if (&l->helpers[i].listing == listing && error >= 0) {
                        json_object *counters = json_get(reply, "counters", json_type_object);

                        if (counters)
                                r = tell_counters(l, machine_device_definition(l->helpers[i].device)->name, counters);
                }
        if (r < 0 || l->n_waiting == 0)
                finish(l, r);
}

/* Where that cannot be asked, its counters are missing, and nothing else. */
static void ask_helper(Listing *l, MachineDevice *d) {
        _cleanup_free_ char *path = machine_device_varlink_path(d);
        DeviceState state = machine_device_state(d);
        VarlinkClient *client = NULL;
        size_t i = l->n_clients;
        int r;

        if (!path || state == DEVICE_CONNECTING || state == DEVICE_FAILED)
                return;
        r = varlink_client_connect(path, &client);
        if (r >= 0) {
                varlink_client_set_timeout(client, HELPER_TIMEOUT_USEC);
                r = varlink_client_attach_event(client, l->control->machine->event);
        }
        if (r >= 0)
                r = varlink_client_call_async(client, "io.vmmd.Device.GetCounters", NULL, 0, on_counters, &l->helpers[i].listing);
        if (r < 0) {
                (void) varlink_client_unref(client);
                return;
        }
        l->helpers[i].listing = l;
        l->helpers[i].device = machine_device_ref(d);
        l->helpers[i].client = client;
        l->n_clients++;
        l->n_waiting++;
}

static void on_client_gone(VarlinkCall *call, void *userdata) {
        (void) listing_free(userdata);
}

static int on_list(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_(listing_freep) Listing *l = calloc(1, sizeof(Listing));
        Control *c = userdata;
        int r;

        if (!l)
                return -ENOMEM;
        l->control = c;
        l->call = varlink_call_ref(call);
        r = tell_machine(l);
        for (size_t i = 0; i < c->machine->n_devices && r >= 0; i++)
                r = tell_device(l, machine_device_by_index(c->machine, i));
        if (r < 0)
                return r;
        for (size_t i = 0; i < c->machine->n_devices; i++)
                ask_helper(l, machine_device_by_index(c->machine, i));
        if (l->n_waiting == 0)
                return tell_last(l);
        varlink_call_on_close(call, on_client_gone, l);
        TAKE_PTR(l);
        return 0;
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        static const struct {
                const char *name, *type, *description;
        } families[] = {
                { PREFIX "State", "string", "What the machine is doing" },
                { PREFIX "MemoryBytes", "gauge", "Memory of the machine" },
                { PREFIX "Vcpus", "gauge", "Virtual CPUs" },
                { PREFIX "VcpuExits", "counter", "Exits of virtual CPUs that vmmd had to handle" },
                { PREFIX "Resets", "counter", "Resets in place since the process started" },
                { PREFIX "DeviceReconnects", "counter", "How often a device's helper went away and a successor took over" },
                { PREFIX "BalloonTargetBytes", "gauge", "How large a balloon shall be" },
                { PREFIX "BalloonActualBytes", "gauge", "How large a balloon is, says the guest" },
                { PREFIX "BalloonOomDeflations", "counter", "How often the guest took pages back for want of memory" },
                { PREFIX "BalloonReportedBytes", "counter", "Bytes that the guest reported free and the host took" },
                { PREFIX "DeviceCounter", "counter", "What a device has done; the field counter says what is counted" },
                { PREFIX "Subscribers", "gauge", "Subscribers to the machine's events" },
        };
        int r = 0;

        for (size_t i = 0; i < ELEMENTSOF(families) && r >= 0; i++) {
                _cleanup_json_ json_object *reply = json_object_new_object();

                r = reply ? json_add_string(reply, "name", families[i].name) : -ENOMEM;
                if (r >= 0)
                        r = json_add_string(reply, "description", families[i].description);
                if (r >= 0)
                        r = json_add_string(reply, "type", families[i].type);
                if (r < 0)
                        return r;
                r = i + 1 < ELEMENTSOF(families) ? varlink_call_reply_continues(call, reply) : varlink_call_reply(call, reply);
        }
        return r;
}

int metrics_add(VarlinkServer *server, Control *c) {
        static const VarlinkMethod methods[] = {
                { "List", on_list, VARLINK_METHOD_REQUIRES_MORE, .right = ACCESS_READ },
                { "Describe", on_describe, VARLINK_METHOD_REQUIRES_MORE, .right = ACCESS_READ },
                {},
        };

        return varlink_server_add_interface(server, varlink_text_io_systemd_Metrics, methods, c);
}
