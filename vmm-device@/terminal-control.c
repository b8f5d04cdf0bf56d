/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <json-c/json.h>

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
