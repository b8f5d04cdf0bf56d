/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What control.c puts together: the methods of io.vmmd.Machine by subject, and the other interfaces on the same socket. The userdata
 * of each method is the Control. */

#include "access.h"
#include "control.h"
#include "events.h"
#include "machine-instance.h"

struct Control {
        Machine *machine;
        VarlinkServer *server;
        Events *events;
        Instance *instance;
        MachineObserver observer;
};

/* io.vmmd.Machine.WrongState. */
int control_wrong_state(VarlinkCall *call, Machine *m);

/* control-console.c */
int control_open_console(VarlinkCall *call, json_object *parameters, void *userdata);
int control_attach_console(VarlinkCall *call, json_object *parameters, void *userdata);
int control_set_console_size(VarlinkCall *call, json_object *parameters, void *userdata);

/* control-hotplug.c */
int control_attach_device(VarlinkCall *call, json_object *parameters, void *userdata);
int control_detach_device(VarlinkCall *call, json_object *parameters, void *userdata);

/* control-snapshot.c */
int control_take_snapshot(VarlinkCall *call, json_object *parameters, void *userdata);

/* control-input.c */
int control_send_keys(VarlinkCall *call, json_object *parameters, void *userdata);
int control_send_input(VarlinkCall *call, json_object *parameters, void *userdata);

/* control-balloon.c */
int control_describe_balloon(VarlinkCall *call, json_object *parameters, void *userdata);
int control_set_balloon_target(VarlinkCall *call, json_object *parameters, void *userdata);
int control_get_balloon_statistics(VarlinkCall *call, json_object *parameters, void *userdata);
int control_get_working_set(VarlinkCall *call, json_object *parameters, void *userdata);
int control_configure_working_set(VarlinkCall *call, json_object *parameters, void *userdata);
int control_hint_free_pages(VarlinkCall *call, json_object *parameters, void *userdata);

/* service.c, metrics.c: `c` must outlive the server. */
int service_add(VarlinkServer *server, Control *c);
int metrics_add(VarlinkServer *server, Control *c);
