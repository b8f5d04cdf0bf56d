/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Consoles: vmmd brings client and helper together, and is not between them afterwards. */

#include <sys/socket.h>

#include "client.h"
#include "control-methods.h"
#include "control-relay.h"
#include "json-util.h"

#define INTERFACE "io.vmmd.Machine"

/* The console that is meant: the one named, or the first. > 0 where there is one; else the call was answered. */
static int find_console(VarlinkCall *call, Machine *m, json_object *parameters, MachineDevice **ret) {
        return relay_find_device(call, m, parameters, "console", INTERFACE ".NoConsole", ret);
}

/* --- OpenConsole: the helper's descriptor is handed on --- */

static int answer_with_fd(Relay *relay, json_object *reply) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!parameters)
                return -ENOMEM;
        fd = relay_take_fd(relay, json_get(reply, "fileDescriptorIndex", json_type_int));
        if (fd < 0)
                return fd;
        r = varlink_call_push_fd(relay_client_call(relay), fd);
        if (r < 0)
                return r;
        TAKE_FD(fd);
        r = json_add_integer(parameters, "fileDescriptorIndex", r);
        return r < 0 ? r : varlink_call_reply(relay_client_call(relay), parameters);
}

/* What of the client's parameters is for the helper. */
static int port_parameters(json_object *parameters, json_object **ret) {
        _cleanup_json_ json_object *port = json_object_new_object();
        int r;

        if (!port)
                return -ENOMEM;
        r = json_add_string(port, "port", json_get_string(parameters, "port", NULL));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(port);
        return 0;
}

int control_open_console(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *port = NULL;
        Control *c = userdata;
        MachineDevice *d;
        int r;

        r = find_console(call, c->machine, parameters, &d);
        if (r <= 0)
                return r;
        r = port_parameters(parameters, &port);
        if (r < 0)
                return r;
        return relay_call(call, d, c->machine->event,
                &(RelayRequest) { .method = "io.vmmd.Device.OpenConsole", .parameters = port, .answer = answer_with_fd });
}

/* --- AttachConsole: the client's own connection is handed on --- */

typedef struct Attachment {
        VarlinkClient *client; /* to the helper */
        json_object *port;     /* parameters that name it */
        int fd;                /* the console's, until the client's earliest input is through */
        char *input;
        size_t size;
} Attachment;

static Attachment *attachment_free(Attachment *a) {
        if (!a)
                return NULL;
        (void) varlink_client_unref(a->client);
        (void) safe_close(a->fd);
        (void) json_object_put(a->port);
        free(a->input);
        return mfree(a);
}
DEFINE_CLEANUP(Attachment, attachment_free)

static void on_attached(VarlinkClient *client, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        /* Where the helper refused, the client sees its connection end. */
        (void) attachment_free(userdata);
}

static int attach_fd(Attachment *a) {
        int r;

        r = varlink_client_push_fd(a->client, a->fd);
        if (r < 0)
                return r;
        TAKE_FD(a->fd);
        r = json_add_integer(a->port, "fileDescriptorIndex", r);
        return r < 0 ? r : varlink_client_call_async(a->client, "io.vmmd.Device.AttachConsole", a->port, 0, on_attached, a);
}

/* What the client sent behind its call was read with the call; it goes to the console by a door of its own, before the rest. */
static void on_opened(VarlinkClient *client, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        _cleanup_(attachment_freep) Attachment *a = userdata;
        json_object *index = json_get(reply, "fileDescriptorIndex", json_type_int);
        _cleanup_close_ int console = -EBADF;

        if (error < 0 || !index)
                return;
        console = varlink_client_take_fd(client, json_object_get_int64(index));
        if (console < 0 || send(console, a->input, a->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                return;
        if (attach_fd(a) >= 0)
                TAKE_PTR(a);
}

static void on_upgraded(int fd, const void *data, size_t size, void *userdata) {
        _cleanup_(attachment_freep) Attachment *a = userdata;
        int r;

        a->fd = fd;
        if (size == 0)
                r = attach_fd(a);
        else {
                a->input = malloc(size);
                if (!a->input)
                        return;
                memcpy(a->input, data, size);
                a->size = size;
                r = varlink_client_call_async(a->client, "io.vmmd.Device.OpenConsole", a->port, 0, on_opened, a);
        }
        if (r >= 0)
                TAKE_PTR(a);
}

static void on_client_gone(VarlinkCall *call, void *userdata) {
        (void) attachment_free(userdata);
}

int control_attach_console(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_(attachment_freep) Attachment *a = NULL;
        _cleanup_free_ char *path = NULL;
        Control *c = userdata;
        MachineDevice *d;
        int r;

        r = find_console(call, c->machine, parameters, &d);
        if (r <= 0)
                return r;
        /* Once the protocol has changed, no error can be told. */
        if (!streq(machine_device_definition(d)->type->name, "console") &&
                !streq(machine_device_definition(d)->type->name, "serial"))
                return varlink_call_error(call, INTERFACE ".NotSupported", NULL);
        a = calloc(1, sizeof(Attachment));
        path = machine_device_varlink_path(d);
        if (!a || !path)
                return -ENOMEM;
        a->fd = -EBADF;
        r = port_parameters(parameters, &a->port);
        if (r < 0)
                return r;
        r = varlink_client_connect(path, &a->client);
        if (r < 0)
                return relay_device_failed(call, machine_device_definition(d)->name, strerror(-r));
        r = varlink_client_attach_event(a->client, c->machine->event);
        if (r < 0)
                return r;
        varlink_call_on_close(call, on_client_gone, a);
        r = varlink_call_reply_upgrade(call, NULL, on_upgraded, a);
        if (r < 0) {
                varlink_call_on_close(call, NULL, NULL);
                return r;
        }
        TAKE_PTR(a);
        return 0;
}

/* --- its size --- */

int control_set_console_size(VarlinkCall *call, json_object *parameters, void *userdata) {
        Control *c = userdata;
        MachineDevice *d;
        int r;

        r = find_console(call, c->machine, parameters, &d);
        if (r <= 0)
                return r;
        return relay_pass_on(call, d, c->machine->event, parameters, (RelayRequest) { .method = "io.vmmd.Device.SetConsoleSize" });
}
