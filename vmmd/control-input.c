/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Keys and other input: what clients want pressed is the device's helper's to do. */

#include "control-methods.h"
#include "control-relay.h"

#define INTERFACE "io.vmmd.Machine"

static int pass_on(VarlinkCall *call, json_object *parameters, Control *c, const char *method) {
        MachineDevice *d;
        int r;

        r = relay_find_device(call, c->machine, parameters, "input", INTERFACE ".NoInput", &d);
        if (r <= 0)
                return r;
        /* Keys are held for as long as the client says. */
        return relay_pass_on(call, d, c->machine->event, parameters, (RelayRequest) { .method = method, .forever = true });
}

int control_send_keys(VarlinkCall *call, json_object *parameters, void *userdata) {
        return pass_on(call, parameters, userdata, "io.vmmd.Input.PressKeys");
}

int control_send_input(VarlinkCall *call, json_object *parameters, void *userdata) {
        return pass_on(call, parameters, userdata, "io.vmmd.Input.SendEvents");
}
