/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Attaching and detaching devices: the words of clients, checked and handed on to hotplug.c. */

#include "attach-definition.h"
#include "control-describe.h"
#include "control-methods.h"
#include "control-relay.h"
#include "hotplug.h"
#include "json-util.h"

#define INTERFACE "io.vmmd.Machine"

/* As the text says. */
#define DETACH_TIMEOUT_USEC (30 * USEC_PER_SEC)

static int error_with(VarlinkCall *call, const char *error_id, const char *key, const char *value) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        r = parameters ? json_add_string(parameters, key, value) : -ENOMEM;
        return r < 0 ? r : varlink_call_error(call, error_id, parameters);
}

/* --- descriptors that came with the call --- */

static int take_descriptor(VarlinkCall *call, json_object *entry, SlotDescriptor *ret) {
        ret->option = json_dup_string(entry, "option");
        if (!ret->option)
                return -ENOMEM;
        ret->fd = varlink_call_take_fd(call, json_get_integer(entry, "index", -1));
        return ret->fd < 0 ? -ENXIO : 0;
}

/* -ENXIO where there is none of an index, or one is named twice. */
static int take_descriptors(VarlinkCall *call, json_object *list, SlotDescriptor **ret, size_t *ret_n) {
        size_t n = list ? json_object_array_length(list) : 0, i = 0;
        SlotDescriptor *descriptors = calloc(MAX(n, (size_t) 1), sizeof(SlotDescriptor));
        int r = descriptors ? 0 : -ENOMEM;

        for (; i < n && r >= 0; i++) {
                descriptors[i].fd = -EBADF;
                r = take_descriptor(call, json_object_array_get_idx(list, i), &descriptors[i]);
        }
        if (r < 0) {
                if (descriptors)
                        (void) slot_descriptors_free(descriptors, i);
                return r;
        }
        *ret = descriptors;
        *ret_n = n;
        return 0;
}

/* --- attaching --- */

static int answer_attached(VarlinkCall *call, MachineDevice *d) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        json_object *device = NULL;
        int r;

        r = reply ? describe_device(d, &device) : -ENOMEM;
        if (r >= 0)
                r = json_add(reply, "device", device);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static int answer_attach_error(VarlinkCall *call, Machine *m, const char *name, int error, const char *message) {
        switch (error) {
        case -EBUSY:
                return control_wrong_state(call, m);
        case -EEXIST:
                return error_with(call, INTERFACE ".DeviceExists", "device", name);
        case -ENOSPC:
                return varlink_call_error(call, INTERFACE ".NoFreeSlot", NULL);
        case -EOPNOTSUPP:
                return varlink_call_error(call, INTERFACE ".NotSupported", NULL);
        case -EINVAL:
                return error_with(call, INTERFACE ".WrongDefinition", "message", message);
        case -ENOMEM:
                return error;
        default:
                return relay_device_failed(call, name, message ?: strerror(-error));
        }
}

/* One who waits; the machine is that of the call's server. */
typedef struct Pending {
        VarlinkCall *call;
        Machine *machine;
        char *name;
        uint64_t timeout_usec;
} Pending;

static Pending *pending_free(Pending *p) {
        if (!p)
                return NULL;
        (void) varlink_call_unref(p->call);
        free(p->name);
        return mfree(p);
}
DEFINE_CLEANUP(Pending, pending_free)

static int pending_new(VarlinkCall *call, Machine *m, const char *name, uint64_t timeout_usec, Pending **ret) {
        _cleanup_(pending_freep) Pending *p = calloc(1, sizeof(Pending));

        if (!p)
                return -ENOMEM;
        p->call = varlink_call_ref(call);
        p->machine = m;
        p->timeout_usec = timeout_usec;
        p->name = strdup(name);
        if (!p->name)
                return -ENOMEM;
        *ret = TAKE_PTR(p);
        return 0;
}

static void on_attached(MachineDevice *d, int error, const char *message, void *userdata) {
        _cleanup_(pending_freep) Pending *p = userdata;
        int r;

        r = error < 0 ? answer_attach_error(p->call, p->machine, p->name, error, message) : answer_attached(p->call, d);
        /* Refused where it was answered, or the client is gone. */
        if (r < 0)
                (void) varlink_call_error_errno(p->call, r);
}

/* Takes the descriptors over, also on error. */
static int attach(VarlinkCall *call, Machine *m, json_object *parameters, SlotDescriptor *descriptors, size_t n, uint64_t timeout_usec) {
        _cleanup_(machine_definition_freep) MachineDefinition *definition = NULL;
        _cleanup_(pending_freep) Pending *p = NULL;
        _cleanup_free_ char *message = NULL;
        const char *name = json_get_string(parameters, "name", "");
        int r;

        if (m->plugin)
                r = -EOPNOTSUPP; /* there is no bus of ours */
        else if (machine_device_find(m, name))
                r = -EEXIST;
        else
                r = attach_definition_new(m, name, json_get(parameters, "definition", json_type_object), &definition, &message);
        if (r >= 0)
                r = attach_check_descriptors(machine_definition_device(definition, name), descriptors, n, &message);
        if (r >= 0)
                r = pending_new(call, m, name, timeout_usec, &p);
        if (r < 0)
                (void) slot_descriptors_free(descriptors, n);
        else
                r = hotplug_attach(m->hotplug, TAKE_PTR(definition), name, descriptors, n, timeout_usec, on_attached, p);
        if (r < 0)
                return answer_attach_error(call, m, name, r, message);
        TAKE_PTR(p);
        return 0;
}

/* > 0 where it was given; 0 where not, < 0 where it is none. */
static int take_timeout(json_object *parameters, uint64_t *ret) {
        json_object *v = json_get(parameters, "timeout", json_type_int);

        if (!v)
                return 0;
        if (json_object_get_int64(v) <= 0 || json_object_get_int64(v) > INT64_MAX / 4)
                return -ERANGE;
        *ret = (uint64_t) json_object_get_int64(v);
        return 1;
}

int control_attach_device(VarlinkCall *call, json_object *parameters, void *userdata) {
        json_object *list = json_get(parameters, "fileDescriptors", json_type_array);
        Control *c = userdata;
        SlotDescriptor *descriptors;
        uint64_t timeout_usec = 0;
        size_t n;
        int r;

        if (take_timeout(parameters, &timeout_usec) < 0)
                return varlink_call_error_invalid_parameter(call, "timeout");
        if (!device_name_is_valid(json_get_string(parameters, "name", "")))
                return varlink_call_error_invalid_parameter(call, "name");
        r = take_descriptors(call, list, &descriptors, &n);
        if (r == -ENXIO)
                return varlink_call_error_invalid_parameter(call, "fileDescriptors");
        return r < 0 ? r : attach(call, c->machine, parameters, descriptors, n, timeout_usec);
}

/* --- detaching --- */

static int answer_detach_error(VarlinkCall *call, Machine *m, const char *name, uint64_t timeout_usec, int error) {
        _cleanup_json_ json_object *parameters = NULL;
        int r;

        switch (error) {
        case -EBUSY:
        case -ECANCELED:
                return control_wrong_state(call, m);
        case -EOPNOTSUPP:
                return error_with(call, INTERFACE ".NotDetachable", "device", name);
        case -ETIMEDOUT:
                parameters = json_object_new_object();
                r = parameters ? json_add_string(parameters, "device", name) : -ENOMEM;
                if (r >= 0)
                        r = json_add_integer(parameters, "timeout", (int64_t) timeout_usec);
                return r < 0 ? r : varlink_call_error(call, INTERFACE ".DetachTimedOut", parameters);
        default:
                return error;
        }
}

static void on_detached(MachineDevice *d, int error, const char *message, void *userdata) {
        _cleanup_(pending_freep) Pending *p = userdata;
        int r;

        r = error < 0 ? answer_detach_error(p->call, p->machine, p->name, p->timeout_usec, error) : varlink_call_reply(p->call, NULL);
        if (r < 0)
                (void) varlink_call_error_errno(p->call, r);
}

int control_detach_device(VarlinkCall *call, json_object *parameters, void *userdata) {
        const char *name = json_get_string(parameters, "name", "");
        _cleanup_(pending_freep) Pending *p = NULL;
        uint64_t timeout_usec = DETACH_TIMEOUT_USEC;
        Control *c = userdata;
        MachineDevice *d;
        int r;

        if (take_timeout(parameters, &timeout_usec) < 0)
                return varlink_call_error_invalid_parameter(call, "timeout");
        d = machine_device_find(c->machine, name);
        if (!d)
                return error_with(call, INTERFACE ".NoSuchDevice", "device", name);
        r = pending_new(call, c->machine, name, timeout_usec, &p);
        if (r < 0)
                return r;
        r = hotplug_detach(c->machine->hotplug, d, timeout_usec, json_get_boolean(parameters, "force", false), on_detached, p);
        if (r < 0)
                return answer_detach_error(call, c->machine, name, timeout_usec, r);
        TAKE_PTR(p);
        return 0;
}
