/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "definition.h"
#include "machine.h"

/* For what is shown beside other things: one machine that hangs does not make `vmmctl list` hang. */
#define DESCRIBE_TIMEOUT_USEC (3 * USEC_PER_SEC)

int machine_connect(const Options *o, const char *name, VarlinkClient **ret, char **ret_problem) {
        _cleanup_free_ char *path = NULL;
        int r;

        if (!machine_name_is_valid(name))
                return set_message(ret_problem, -EINVAL, "this is no name of a machine");
        if (asprintf(&path, "%s/%s/control", o->runtime_directory, name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        r = varlink_client_connect(path, ret);
        if (r == -ENOENT || r == -ECONNREFUSED)
                return set_message(ret_problem, r, "the machine does not run");
        if (r < 0)
                return set_message(ret_problem, r, "cannot connect to %s: %s", path, strerror(-r));
        return 0;
}

/* An error of the machine, in words. */
static int translate_error(const char *error_id, json_object *p, char **ret_problem) {
        if (varlink_error_is(error_id, "io.vmmd.Machine.NoSuchDevice"))
                return set_message(ret_problem, -ENODEV, "there is no device '%s'", json_get_string(p, "device", "?"));
        if (varlink_error_is(error_id, "io.vmmd.Machine.NoConsole"))
                return set_message(ret_problem, -ENODEV, "the machine has no console");
        if (varlink_error_is(error_id, "io.vmmd.Machine.NotSupported"))
                return set_message(ret_problem, -EOPNOTSUPP, "it cannot do that");
        if (varlink_error_is(error_id, "io.vmmd.Machine.WrongState"))
                return set_message(ret_problem, -EBUSY, "it cannot do that while it is %s", json_get_string(p, "state", "as it is"));
        if (varlink_error_is(error_id, "io.vmmd.Machine.DeviceFailed"))
                return set_message(ret_problem, -EIO, "the device '%s' failed: %s", json_get_string(p, "device", "?"),
                        json_get_string(p, "reason", "no reason given"));
        if (varlink_error_is(error_id, "org.varlink.service.PermissionDenied"))
                return set_message(ret_problem, -EACCES, "permission denied");
        if (varlink_error_is(error_id, "io.systemd.System"))
                return set_message(ret_problem, -EIO, "%s", strerror((int) json_get_integer(p, "errno", EIO)));
        return set_message(ret_problem, -EIO, "%s %s", error_id, json_object_to_json_string_ext(p, JSON_C_TO_STRING_PLAIN));
}

int machine_call(VarlinkClient *client, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem) {
        _cleanup_free_ char *full = NULL, *error_id = NULL;
        _cleanup_json_ json_object *reply = NULL;
        int r;

        if (asprintf(&full, "io.vmmd.Machine.%s", method) < 0) {
                full = NULL;
                return -ENOMEM;
        }
        r = varlink_client_call(client, full, parameters, &reply, &error_id);
        if (r == -EREMOTEIO)
                return translate_error(error_id, reply, ret_problem);
        if (r == -ECONNRESET || r == -EPIPE)
                return set_message(ret_problem, r, "the machine ended, or dropped the connection");
        if (r < 0)
                return set_message(ret_problem, r, "the machine does not answer: %s", strerror(-r));
        if (ret_reply)
                *ret_reply = TAKE_PTR(reply);
        return 0;
}

int machine_call_by_name(const Options *o, const char *name, const char *method, json_object **ret_reply, char **ret_problem) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        int r;

        r = machine_connect(o, name, &client, ret_problem);
        return r < 0 ? r : machine_call(client, method, NULL, ret_reply, ret_problem);
}

json_object *machine_describe(const Options *o, const char *name) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        json_object *reply = NULL;

        if (machine_connect(o, name, &client, NULL) < 0)
                return NULL;
        varlink_client_set_timeout(client, DESCRIBE_TIMEOUT_USEC);
        return machine_call(client, "Describe", NULL, &reply, NULL) < 0 ? NULL : reply;
}
