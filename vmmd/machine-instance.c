/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "access.h"
#include "control-describe.h"
#include "interfaces.h"
#include "json-util.h"
#include "machine-instance-storage.h"
#include "machine-instance.h"

#define INTERFACE "io.systemd.MachineInstance"

/* One who wants to know. */
typedef struct Watcher {
        struct Watcher *next;
        Instance *instance;
        VarlinkCall *call;
        json_object *filter; /* array of names; NULL is all */
} Watcher;

struct Instance {
        Machine *machine;
        Watcher *watchers;
        MachineState state; /* as it was told last */
};

/* --- events --- */

static Watcher *watcher_free(Watcher *w) {
        if (!w)
                return NULL;
        for (Watcher **p = &w->instance->watchers; *p; p = &(*p)->next)
                if (*p == w) {
                        *p = w->next;
                        break;
                }
        if (w->call)
                varlink_call_on_close(w->call, NULL, NULL);
        (void) varlink_call_unref(w->call);
        (void) json_object_put(w->filter);
        return mfree(w);
}
DEFINE_CLEANUP(Watcher, watcher_free)

static bool is_wanted(const Watcher *w, const char *event) {
        if (!w->filter || json_object_array_length(w->filter) == 0)
                return true;
        for (size_t i = 0; i < json_object_array_length(w->filter); i++)
                if (streq(json_object_get_string(json_object_array_get_idx(w->filter, i)), event))
                        return true;
        return false;
}

/* Takes `data` over, which may be NULL. */
static int event_new(const char *event, json_object *data, json_object **ret) {
        _cleanup_json_ json_object *owned = data, *reply = json_object_new_object();
        int r;

        r = reply ? json_add_string(reply, "event", event) : -ENOMEM;
        if (r >= 0 && owned)
                r = json_add(reply, "data", TAKE_PTR(owned));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(reply);
        return 0;
}

static json_object *reason_data(const char *reason) {
        json_object *data = reason ? json_object_new_object() : NULL;

        if (data)
                (void) json_add_string(data, "reason", reason);
        return data;
}

/* Of this interface's events none may be dropped silently: who does not read them is told that it is over. */
static void tell(Instance *i, const char *event, json_object *data, bool last) {
        _cleanup_json_ json_object *reply = NULL;
        Watcher *next;
        int r;

        r = event_new(event, data, &reply);
        for (Watcher *w = i->watchers; w; w = next) {
                int k = r;

                next = w->next;
                if (k >= 0 && last)
                        k = varlink_call_reply(w->call, reply);
                else if (k >= 0 && is_wanted(w, event))
                        k = varlink_call_reply_continues(w->call, reply);
                if (k < 0)
                        (void) varlink_call_error_errno(w->call, k);
                if (k < 0 || last)
                        (void) watcher_free(w);
        }
}

void instance_state(Instance *i, const char *reason) {
        MachineState before = i->state;

        i->state = i->machine->state;
        if (i->state == MACHINE_PAUSED)
                tell(i, "STOP", NULL, false);
        else if (i->state == MACHINE_RUNNING && before == MACHINE_PAUSED)
                tell(i, "RESUME", NULL, false);
        else if (i->state == MACHINE_RESETTING)
                tell(i, "RESET", reason_data(reason), false);
}

void instance_power_button(Instance *i) {
        tell(i, "POWERDOWN", NULL, false);
}

void instance_panic(Instance *i, const char *reason) {
        tell(i, "GUEST_PANICKED", reason_data(reason), false);
}

void instance_ended(Instance *i, const char *reason) {
        tell(i, "SHUTDOWN", reason_data(reason), true);
}

static int64_t actual_memory(const Instance *i) {
        return (int64_t) (i->machine->definition->memory - MIN(describe_balloons_actual(i->machine), i->machine->definition->memory));
}

void instance_balloon(Instance *i) {
        json_object *data = i->watchers ? json_object_new_object() : NULL;

        if (data)
                (void) json_add_integer(data, "actual", actual_memory(i));
        tell(i, "BALLOON_CHANGE", data, false);
}

static void on_watcher_gone(VarlinkCall *call, void *userdata) {
        (void) watcher_free(userdata);
}

static int on_subscribe_events(VarlinkCall *call, json_object *parameters, void *userdata) {
        Instance *i = userdata;
        _cleanup_json_ json_object *ready = NULL;
        _cleanup_(watcher_freep) Watcher *w = NULL;
        int r;

        if (i->machine->ended)
                return varlink_call_error(call, INTERFACE ".NotConnected", NULL);
        w = calloc(1, sizeof(Watcher));
        if (!w)
                return -ENOMEM;
        w->instance = i;
        w->filter = json_object_get(json_get(parameters, "filter", json_type_array));
        r = event_new("READY", NULL, &ready);
        if (r >= 0)
                r = varlink_call_reply_continues(call, ready);
        if (r < 0)
                return r;
        w->call = varlink_call_ref(call);
        varlink_call_on_close(call, on_watcher_gone, w);
        w->next = i->watchers;
        i->watchers = TAKE_PTR(w);
        return 0;
}

/* --- describing --- */

static int describe_memory(const Instance *i, json_object **ret) {
        _cleanup_json_ json_object *memory = json_object_new_object();
        int64_t configured = (int64_t) i->machine->definition->memory;
        int r;

        r = memory ? json_add_integer(memory, "configuredBytes", configured) : -ENOMEM;
        if (r >= 0)
                r = json_add_integer(memory, "targetBytes",
                        configured - (int64_t) MIN(describe_balloons_target(i->machine), i->machine->definition->memory));
        if (r >= 0)
                r = json_add_integer(memory, "actualBytes", actual_memory(i));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(memory);
        return 0;
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Instance *i = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object();
        MachineState state = i->machine->state;
        json_object *memory = NULL;
        int r;

        if (!reply)
                return -ENOMEM;
        r = json_add_boolean(reply, "running", state != MACHINE_PAUSED && state != MACHINE_PANICKED);
        if (r >= 0)
                r = json_add_string(reply, "status", machine_state_to_string(state));
        if (r >= 0)
                r = describe_memory(i, &memory);
        if (r >= 0)
                r = json_add(reply, "memory", memory);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

/* --- changing --- */

#define DEFINE_ACTION(name)                                                                                    \
        static int on_##name(VarlinkCall *call, json_object *parameters, void *userdata) {                     \
                Instance *i = userdata;                                                                        \
                int r = machine_##name(i->machine);                                                            \
                                                                                                               \
                if (r == -EOPNOTSUPP)                                                                          \
                        return varlink_call_error(call, INTERFACE ".NotSupported", NULL);                      \
                return r < 0 ? r : varlink_call_reply(call, NULL);                                             \
        }
DEFINE_ACTION(terminate)
DEFINE_ACTION(power_off)
DEFINE_ACTION(reboot)

/* The call waits for that. */
static void on_done(Machine *m, int error, void *userdata) {
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = userdata;

        if (error < 0)
                (void) varlink_call_error_errno(call, error);
        else
                (void) varlink_call_reply(call, NULL);
}

static int on_pause(VarlinkCall *call, json_object *parameters, void *userdata) {
        Instance *i = userdata;
        int r;

        r = machine_pause(i->machine, false, on_done, call);
        if (r >= 0)
                (void) varlink_call_ref(call);
        return r;
}

static int on_resume(VarlinkCall *call, json_object *parameters, void *userdata) {
        Instance *i = userdata;
        int r;

        r = machine_resume(i->machine, on_done, call);
        if (r >= 0)
                (void) varlink_call_ref(call);
        return r;
}

/* --- what cannot be done --- */

static int not_supported(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_error(call, INTERFACE ".NotSupported", NULL);
}

/* --- storage --- */

#define DEFINE_STORAGE(name)                                                                                   \
        static int on_##name(VarlinkCall *call, json_object *parameters, void *userdata) {                     \
                Instance *i = userdata;                                                                        \
                                                                                                               \
                return storage_##name(call, parameters, i->machine);                                           \
        }
DEFINE_STORAGE(add)
DEFINE_STORAGE(remove)
DEFINE_STORAGE(replace)

int instance_new(VarlinkServer *server, Machine *m, Instance **ret) {
        static const VarlinkMethod methods[] = {
                { "Describe", on_describe, .right = ACCESS_READ },
                { "SubscribeEvents", on_subscribe_events, VARLINK_METHOD_REQUIRES_MORE, .right = ACCESS_READ },
                { "Terminate", on_terminate, .right = ACCESS_CHANGE },
                { "PowerOff", on_power_off, .right = ACCESS_CHANGE },
                { "Reboot", on_reboot, .right = ACCESS_CHANGE },
                { "Pause", on_pause, .right = ACCESS_CHANGE },
                { "Resume", on_resume, .right = ACCESS_CHANGE },
                { "AddStorage", on_add, .right = ACCESS_CHANGE },
                { "RemoveStorage", on_remove, .right = ACCESS_CHANGE },
                { "ReplaceStorage", on_replace, .right = ACCESS_CHANGE },
                { "SetMemory", not_supported, .right = ACCESS_CHANGE },
                {},
        };
        _cleanup_(instance_freep) Instance *i = calloc(1, sizeof(Instance));
        int r;

        if (!i)
                return -ENOMEM;
        i->machine = m;
        i->state = m->state;
        r = varlink_server_add_interface(server, varlink_text_io_systemd_MachineInstance, methods, i);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(i);
        return 0;
}

Instance *instance_free(Instance *i) {
        if (!i)
                return NULL;
        while (i->watchers)
                (void) watcher_free(i->watchers);
        return mfree(i);
}
