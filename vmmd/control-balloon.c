/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The balloon's methods of io.vmmd.Machine, most of which its helper answers. */

#include "control-describe.h"
#include "control-methods.h"
#include "control-relay.h"
#include "json-util.h"

#define INTERFACE "io.vmmd.Machine"

/* > 0 where there is one; else the call was answered. */
static int find_balloon(VarlinkCall *call, Machine *m, json_object *parameters, MachineDevice **ret) {
        int r;

        r = relay_find_device(call, m, parameters, "balloon", INTERFACE ".NoBalloon", ret);
        if (r > 0 && !machine_device_is_balloon(*ret))
                return varlink_call_error(call, INTERFACE ".NotSupported", NULL);
        return r;
}

/* Passes the reply on; the balloon in it gets its name, and is the newest that is known. */
static int answer_with_balloon(Relay *relay, json_object *reply) {
        MachineDevice *d = relay_device(relay);
        json_object *balloon = json_get(reply, "balloon", json_type_object);
        _cleanup_json_ json_object *answer = NULL;
        int r;

        r = relay_parameters(reply, &answer);
        if (r >= 0 && balloon) {
                json_object *named = NULL;

                machine_device_set_balloon(d, balloon);
                r = describe_balloon_of(d, balloon, &named);
                if (r >= 0)
                        r = json_add(answer, "balloon", named);
        }
        return r < 0 ? r : varlink_call_reply(relay_client_call(relay), answer);
}

static int pass_on(VarlinkCall *call, json_object *parameters, Control *c, RelayRequest request) {
        MachineDevice *d;
        int r;

        r = find_balloon(call, c->machine, parameters, &d);
        return r <= 0 ? r : relay_pass_on(call, d, c->machine->event, parameters, request);
}

int control_describe_balloon(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        json_object *balloon = NULL;
        Control *c = userdata;
        MachineDevice *d;
        int r;

        r = find_balloon(call, c->machine, parameters, &d);
        if (r <= 0)
                return r;
        r = reply ? describe_balloon(d, &balloon) : -ENOMEM;
        if (r >= 0)
                r = json_add(reply, "balloon", balloon);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

int control_set_balloon_target(VarlinkCall *call, json_object *parameters, void *userdata) {
        int64_t target = json_get_integer(parameters, "target", -1);
        Control *c = userdata;

        if (target < 0 || (uint64_t) target > c->machine->definition->memory)
                return varlink_call_error_invalid_parameter(call, "target");
        return pass_on(call, parameters, c,
                (RelayRequest) { .method = "io.vmmd.Balloon.SetTarget", .answer = answer_with_balloon,
                                 .forever = json_get_boolean(parameters, "wait", false) });
}

int control_get_balloon_statistics(VarlinkCall *call, json_object *parameters, void *userdata) {
        if (json_get_integer(parameters, "maximumAge", 0) < 0)
                return varlink_call_error_invalid_parameter(call, "maximumAge");
        return pass_on(call, parameters, userdata,
                (RelayRequest) { .method = "io.vmmd.Balloon.GetStatistics", .answer = answer_with_balloon });
}

int control_get_working_set(VarlinkCall *call, json_object *parameters, void *userdata) {
        return pass_on(call, parameters, userdata,
                (RelayRequest) { .method = "io.vmmd.Balloon.GetWorkingSet", .answer = answer_with_balloon });
}

int control_configure_working_set(VarlinkCall *call, json_object *parameters, void *userdata) {
        return pass_on(call, parameters, userdata, (RelayRequest) { .method = "io.vmmd.Balloon.ConfigureWorkingSet" });
}

int control_hint_free_pages(VarlinkCall *call, json_object *parameters, void *userdata) {
        return pass_on(call, parameters, userdata,
                (RelayRequest) { .method = "io.vmmd.Balloon.HintFreePages", .answer = answer_with_balloon, .forever = true });
}
