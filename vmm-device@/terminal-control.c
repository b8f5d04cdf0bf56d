/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include <json-c/json.h>

#include "json-util.h"
#include "terminal-control.h"

int terminal_reply_open(Terminal *t, VarlinkCall *call) {
        _cleanup_close_ int fd = -EBADF;
        json_object *reply;
        int index, r;

        fd = terminal_attach(t);
        if (fd < 0)
                return fd;
        index = varlink_call_push_fd(call, fd);
        if (index < 0)
                return index;
        TAKE_FD(fd);

        reply = json_object_new_object();
        if (!reply)
                return -ENOMEM;
        (void) json_object_object_add(reply, "fileDescriptorIndex", json_object_new_int(index));
        r = varlink_call_reply(call, reply);
        json_object_put(reply);
        return r;
}

int terminal_reply_attach(Terminal *t, VarlinkCall *call, json_object *parameters) {
        int fd, r;

        fd = varlink_call_take_fd(call, json_object_get_int64(json_object_object_get(parameters, "fileDescriptorIndex")));
        if (fd < 0)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");
        r = terminal_adopt(t, fd);
        if (r == -ENOTSOCK || r == -EPROTOTYPE)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");
        return r < 0 ? r : varlink_call_reply(call, NULL);
}

int terminal_reply_no_port(VarlinkCall *call, json_object *parameters) {
        _cleanup_json_ json_object *error = json_object_new_object();

        if (!error || json_add(error, "port", json_object_get(json_object_object_get(parameters, "port"))) < 0)
                return -ENOMEM;
        return varlink_call_error(call, "io.vmmd.Device.NoSuchPort", error);
}

static void count(json_object *into, const char *port, const char *what, uint64_t value) {
        _cleanup_free_ char *name = NULL;

        if (asprintf(&name, "%s%s%s", port ?: "", port ? "." : "", what) < 0) {
                name = NULL;
                return;
        }
        (void) json_object_object_add(into, name, json_object_new_uint64(value));
}

void terminal_count(const Terminal *t, const char *port, json_object *into) {
        count(into, port, "outputBytes", terminal_output_bytes(t));
        count(into, port, "inputBytes", terminal_input_bytes(t));
}
