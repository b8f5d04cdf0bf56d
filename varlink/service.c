/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* org.varlink.service: what every server says of itself. */

#include "server-internal.h"

static int get_info(VarlinkCall *call, json_object *parameters, void *userdata) {
        VarlinkServer *s = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object();
        json_object *interfaces = json_object_new_array();
        int r;

        /* From here on the array belongs to the reply, or is gone. */
        r = reply ? json_add(reply, "interfaces", interfaces) : -ENOMEM;
        if (r < 0) {
                if (!reply)
                        (void) json_object_put(interfaces);
                return r;
        }
        r = json_add_string(reply, "vendor", s->vendor);
        if (r >= 0)
                r = json_add_string(reply, "product", s->product);
        if (r >= 0)
                r = json_add_string(reply, "version", s->version);
        if (r >= 0)
                r = json_add_string(reply, "url", s->url);
        for (ServerInterface *i = s->interfaces; r >= 0 && i; i = i->next)
                r = json_append(interfaces, json_object_new_string(i->idl->name));
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static int get_interface_description(VarlinkCall *call, json_object *parameters, void *userdata) {
        VarlinkServer *s = userdata;
        _cleanup_json_ json_object *reply = json_object_new_object();
        const char *name = json_get_string(parameters, "interface", "");
        const ServerInterface *i = server_find_interface(s, name, strlen(name));
        int r;

        if (!reply)
                return -ENOMEM;
        if (!i) {
                r = json_add_string(reply, "interface", name);
                return r < 0 ? r : varlink_call_error(call, "org.varlink.service.InterfaceNotFound", reply);
        }
        r = json_add_string(reply, "description", i->text);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

const VarlinkMethod service_methods[] = {
        { "GetInfo", get_info, 0 },
        { "GetInterfaceDescription", get_interface_description, 0 },
        {},
};
