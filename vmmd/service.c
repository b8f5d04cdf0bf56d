/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* io.systemd.service. Its Reload is of configuration, of which there is none to read again: that method has no implementation, and the server says so. To put another
 * program under the guest is io.vmmd.Machine's. */

#include "control-methods.h"
#include "interfaces.h"
#include "json-util.h"
#include "log.h"

static int on_ping(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, NULL);
}

static int on_set_log_level(VarlinkCall *call, json_object *parameters, void *userdata) {
        int64_t level = json_get_integer(parameters, "level", -1);

        if (level < LOG_EMERG || level > LOG_DEBUG)
                return varlink_call_error_invalid_parameter(call, "level");
        log_set_max_level((int) level);
        return varlink_call_reply(call, NULL);
}

int service_add(VarlinkServer *server, Control *c) {
        static const VarlinkMethod methods[] = {
                { "Ping", on_ping },
                { "SetLogLevel", on_set_log_level, .right = ACCESS_CHANGE },
                {},
        };

        return varlink_server_add_interface(server, varlink_text_io_systemd_service, methods, c);
}
