/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "base64.h"
#include "control-describe.h"
#include "control-methods.h"
#include "control-relay.h"
#include "interfaces.h"
#include "json-util.h"
#include "log.h"
#include "reload.h"
#include "stream.h"

#define INTERFACE "io.vmmd.Machine"

/* --- looking --- */

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = NULL;
        Control *c = userdata;
        int r;

        r = describe_machine(c->machine, &reply);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static int on_subscribe_events(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;

        return events_subscribe(c->events, call, parameters);
}

/* --- changing --- */

int control_wrong_state(VarlinkCall *call, Machine *m) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "state", machine_state_to_string(m->state)) < 0)
                return -ENOMEM;
        return varlink_call_error(call, INTERFACE ".WrongState", parameters);
}

static int answer(VarlinkCall *call, Machine *m, int r) {
        if (r == -EBUSY)
                return control_wrong_state(call, m);
        if (r == -EOPNOTSUPP)
                return varlink_call_error(call, INTERFACE ".NotSupported", NULL);
        return r < 0 ? r : varlink_call_reply(call, NULL);
}

#define DEFINE_ACTION(name)                                                                                    \
        static int on_##name(VarlinkCall *call, json_object *parameters, void *userdata) {                     \
                Control *c = userdata;                                                                         \
                                                                                                               \
                return answer(call, c->machine, machine_##name(c->machine));                                   \
        }
DEFINE_ACTION(power_button)
DEFINE_ACTION(sleep_button)
DEFINE_ACTION(power_off)
DEFINE_ACTION(reboot)
DEFINE_ACTION(terminate)
DEFINE_ACTION(reset)

/* The call waits until the machine has got there, or to somewhere else. */
static void on_done(Machine *m, int error, void *userdata) {
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = userdata;

        (void) answer(call, m, error < 0 ? -EBUSY : 0);
}

static int wait_for(VarlinkCall *call, Machine *m, int r) {
        if (r < 0)
                return answer(call, m, r);
        (void) varlink_call_ref(call);
        return 0;
}

static int on_pause(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        bool devices = json_get_boolean(parameters, "devices", false);

        return wait_for(call, c->machine, machine_pause(c->machine, devices, on_done, call));
}

static int on_resume(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;

        return wait_for(call, c->machine, machine_resume(c->machine, on_done, call));
}

static int on_reload(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;

        return c->machine->reload ? reload_begin(c->machine->reload, call) : varlink_call_error(call, INTERFACE ".NotSupported", NULL);
}

static int on_get_device_tree(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        _cleanup_free_ char *text = NULL;
        _cleanup_free_ void *tree = NULL;
        Control *c = userdata;
        size_t size = 0;
        int r;

        r = c->machine->arch ? arch_device_tree(c->machine->arch, &tree, &size) : -EOPNOTSUPP;
        if (r < 0)
                return answer(call, c->machine, r);
        text = base64_encode(tree, size);
        if (!reply || !text)
                return -ENOMEM;
        r = json_add_string(reply, "deviceTree", text);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static int on_inject_nmi(VarlinkCall *call, json_object *parameters, void *userdata) {
        json_object *vcpu = json_get(parameters, "vcpu", json_type_int);
        Control *c = userdata;
        int r;

        if (vcpu && json_object_get_int64(vcpu) < 0)
                return varlink_call_error_invalid_parameter(call, "vcpu");
        r = machine_inject_nmi(c->machine, vcpu ? json_object_get_int64(vcpu) : -1);
        if (r == -ERANGE)
                return varlink_call_error_invalid_parameter(call, "vcpu");
        return answer(call, c->machine, r);
}

/* --- what helpers do --- */

/* > 0 where the device that the parameter names is there; else the call was answered. */
static int find_device(VarlinkCall *call, Control *c, json_object *parameters, MachineDevice **ret) {
        return relay_find_device(call, c->machine, parameters, "", INTERFACE ".NotSupported", ret);
}

static int answer_with_size(Relay *relay, json_object *reply) {
        return varlink_call_reply(relay_client_call(relay), reply);
}

static int on_resize_disk(VarlinkCall *call, json_object *parameters, void *userdata) {
        json_object *size = json_get(parameters, "size", json_type_int);
        Control *c = userdata;
        MachineDevice *d;
        int r;

        if (size && (json_object_get_int64(size) < 0 || json_object_get_int64(size) % 512 != 0))
                return varlink_call_error_invalid_parameter(call, "size");
        r = find_device(call, c, parameters, &d);
        if (r <= 0)
                return r;
        return relay_pass_on(call, d, c->machine->event, parameters,
                (RelayRequest) { .method = "io.vmmd.Device.Resize", .answer = answer_with_size });
}

static int log_level(const char *name) {
        static const struct {
                const char *name;
                int level;
        } levels[] = {
                { "error", LOG_ERR }, { "warning", LOG_WARNING }, { "notice", LOG_NOTICE }, { "info", LOG_INFO },
                { "debug", LOG_DEBUG },
        };

        for (size_t i = 0; i < ELEMENTSOF(levels); i++)
                if (streq(levels[i].name, name))
                        return levels[i].level;
        return -EINVAL;
}

static int on_set_log_level(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        MachineDevice *d;
        int r;

        if (!json_get_string(parameters, "device", NULL)) {
                r = log_level(json_get_string(parameters, "level", ""));
                if (r < 0)
                        return r;
                log_set_max_level(r);
                return varlink_call_reply(call, NULL);
        }
        r = find_device(call, c, parameters, &d);
        if (r <= 0)
                return r;
        return relay_pass_on(call, d, c->machine->event, parameters, (RelayRequest) { .method = "io.vmmd.Device.SetLogLevel" });
}

/* --- what happens, told on --- */

static void on_state_changed(const char *reason, void *userdata) {
        Control *c = userdata;

        events_state(c->events, reason);
        instance_state(c->instance, reason);
}

static void on_guest_ready(void *userdata) {
        Control *c = userdata;

        events_guest_ready(c->events);
}

static void on_guest_status(const char *status, void *userdata) {
        Control *c = userdata;

        events_guest_status(c->events, status);
}

static void on_panicked(const char *reason, void *userdata) {
        Control *c = userdata;

        events_panic(c->events, reason);
        instance_panic(c->instance, reason);
}

static void on_power_button_pressed(void *userdata) {
        Control *c = userdata;

        instance_power_button(c->instance);
}

static void on_ended(const char *reason, void *userdata) {
        Control *c = userdata;

        events_ended(c->events, reason);
        instance_ended(c->instance, reason);
}

static void on_device_changed(MachineDevice *d, MachineDeviceChange change, const char *reason, void *userdata) {
        Control *c = userdata;

        events_device(c->events, d, change, reason);
}

static void on_balloon_changed(MachineDevice *d, const char *type, json_object *working_set, void *userdata) {
        Control *c = userdata;

        events_balloon(c->events, d, type, working_set);
        if (streq(type, "actual"))
                instance_balloon(c->instance);
}

/* --- all of it --- */

/* Everybody may connect, many times, and what is kept for each before it is known who may do what is memory, and descriptors, of the process that runs the
 * machine. The largest of our calls, that to attach a device, is some kilobytes long and has a descriptor for each pair of queues of a network or each image of a disk:
 * so many that 4096 connections, of whose calls each has all of them, stay below the process' limit. Those who were not found to have a right are served after the
 * machine and all others, and each round of them is as long as they are many. */
#define CALL_SIZE_MAX KIB(16)
#define CALL_FDS_MAX 12
#define STRANGERS_MAX 256

static const VarlinkMethod methods[] = {
        { "Describe", on_describe, .right = ACCESS_READ },
        { "SubscribeEvents", on_subscribe_events, VARLINK_METHOD_REQUIRES_MORE, .right = ACCESS_READ },
        { "PowerButton", on_power_button, .right = ACCESS_CHANGE },
        { "SleepButton", on_sleep_button, .right = ACCESS_CHANGE },
        { "PowerOff", on_power_off, .right = ACCESS_CHANGE },
        { "Reboot", on_reboot, .right = ACCESS_CHANGE },
        { "Terminate", on_terminate, .right = ACCESS_CHANGE },
        { "Reset", on_reset, .right = ACCESS_CHANGE },
        { "Pause", on_pause, .right = ACCESS_CHANGE },
        { "Resume", on_resume, .right = ACCESS_CHANGE },
        { "Reload", on_reload, .right = ACCESS_CHANGE },
        { "GetDeviceTree", on_get_device_tree, .right = ACCESS_READ },
        { "InjectNmi", on_inject_nmi, .right = ACCESS_CHANGE },
        { "AttachDevice", control_attach_device, .right = ACCESS_CHANGE },
        { "DetachDevice", control_detach_device, .right = ACCESS_CHANGE },
        { "TakeSnapshot", control_take_snapshot, .right = ACCESS_CHANGE },
        { "ResizeDisk", on_resize_disk, .right = ACCESS_CHANGE },
        { "OpenConsole", control_open_console, .right = ACCESS_CHANGE },
        { "AttachConsole", control_attach_console, VARLINK_METHOD_UPGRADES, .right = ACCESS_CHANGE },
        { "SetConsoleSize", control_set_console_size, .right = ACCESS_CHANGE },
        { "SendKeys", control_send_keys, .right = ACCESS_CHANGE },
        { "SendInput", control_send_input, .right = ACCESS_CHANGE },
        { "SetLogLevel", on_set_log_level, .right = ACCESS_CHANGE },
        { "DescribeBalloon", control_describe_balloon, .right = ACCESS_READ },
        { "SetBalloonTarget", control_set_balloon_target, .right = ACCESS_BALLOON },
        { "GetBalloonStatistics", control_get_balloon_statistics, .right = ACCESS_READ },
        { "GetWorkingSet", control_get_working_set, .right = ACCESS_READ },
        { "ConfigureWorkingSet", control_configure_working_set, .right = ACCESS_BALLOON },
        { "HintFreePages", control_hint_free_pages, .right = ACCESS_BALLOON },
        {},
};

static int add_interfaces(Control *c) {
        int r;

        r = varlink_server_add_interface(c->server, varlink_text_io_vmmd_Machine, methods, c);
        if (r >= 0)
                r = instance_new(c->server, c->machine, &c->instance);
        if (r >= 0)
                r = metrics_add(c->server, c);
        return r < 0 ? r : service_add(c->server, c);
}

int control_new(VarlinkServer *server, Machine *m, Control **ret) {
        static const VarlinkLimits limits = { .call_size = CALL_SIZE_MAX, .fds = CALL_FDS_MAX, .strangers = STRANGERS_MAX };
        _cleanup_(control_freep) Control *c = calloc(1, sizeof(Control));
        int r;

        if (!c)
                return -ENOMEM;
        c->machine = m;
        c->server = server;
        varlink_server_set_limits(server, &limits);
        c->observer = (MachineObserver) {
                .state_changed = on_state_changed,
                .guest_ready = on_guest_ready,
                .guest_status = on_guest_status,
                .panicked = on_panicked,
                .power_button = on_power_button_pressed,
                .ended = on_ended,
                .device_changed = on_device_changed,
                .balloon_changed = on_balloon_changed,
                .userdata = c,
        };
        r = events_new(m, &c->events);
        if (r >= 0)
                r = add_interfaces(c);
        if (r < 0)
                return r;
        m->observer = &c->observer;
        *ret = TAKE_PTR(c);
        return 0;
}

int control_save_events(Control *c, char **ret) {
        return events_save(c->events, ret);
}

int control_load_events(Control *c, const char *text, uint64_t sequence) {
        int r = text ? events_load(c->events, text) : 0;

        if (!text || r < 0)
                varlink_stream_forget(events_stream(c->events), sequence);
        return r;
}

uint64_t control_event_sequence(Control *c) {
        return varlink_stream_sequence(events_stream(c->events));
}

Control *control_free(Control *c) {
        if (!c)
                return NULL;
        if (c->machine->observer == &c->observer)
                c->machine->observer = NULL;
        (void) instance_free(c->instance);
        (void) events_free(c->events);
        return mfree(c);
}
