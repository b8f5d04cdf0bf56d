/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* io.vmmd.Machine.TakeSnapshot: the words of clients, handed on to snapshot-take.c. */

#include "control-methods.h"
#include "json-util.h"
#include "snapshot-take.h"

#define INTERFACE "io.vmmd.Machine"

static int answer_error(VarlinkCall *call, Machine *m, int error, const char *message) {
        _cleanup_json_ json_object *parameters = NULL;
        int r;

        if (error == -EBUSY || error == -ECANCELED)
                return control_wrong_state(call, m);
        if (error == -ENOMEM)
                return error;
        parameters = json_object_new_object();
        r = parameters ? json_add_string(parameters, "message", message ?: strerror(-error)) : -ENOMEM;
        return r < 0 ? r : varlink_call_error(call, INTERFACE ".SnapshotFailed", parameters);
}

static int answer(VarlinkCall *call, json_object *meta) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r;

        r = reply ? json_add(reply, "meta", json_object_get(meta)) : -ENOMEM;
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static void on_taken(Machine *m, int error, const char *message, json_object *meta, void *userdata) {
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = userdata;
        int r;

        r = error < 0 ? answer_error(call, m, error, message) : answer(call, meta);
        if (r < 0)
                (void) varlink_call_error_errno(call, r);
}

int control_take_snapshot(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_close_ int state = varlink_call_take_fd(call, json_get_integer(parameters, "state", -1));
        _cleanup_close_ int memory = varlink_call_take_fd(call, json_get_integer(parameters, "memory", -1));
        _cleanup_free_ char *message = NULL;
        Control *c = userdata;
        int r;

        if (state < 0)
                return varlink_call_error_invalid_parameter(call, "state");
        if (memory < 0)
                return varlink_call_error_invalid_parameter(call, "memory");
        r = machine_snapshot(c->machine, TAKE_FD(state), TAKE_FD(memory), json_get_boolean(parameters, "compress", false),
                json_get_boolean(parameters, "resume", true), on_taken, call, &message);
        if (r == -EINVAL)
                return varlink_call_error_invalid_parameter(call, "memory");
        if (r < 0)
                return answer_error(call, c->machine, r, message);
        (void) varlink_call_ref(call);
        return 0;
}
