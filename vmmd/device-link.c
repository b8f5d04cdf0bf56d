/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "client.h"
#include "device-link.h"
#include "idl.h"
#include "interfaces.h"
#include "json-util.h"

/* A connection that breaks is made again, ever more patiently: its helper may be starting again, or have run out of something. */
#define RETRY_FIRST_USEC (100 * USEC_PER_MSEC)
#define RETRY_LAST_USEC (60 * USEC_PER_SEC)

typedef struct Subscription {
        DeviceLink *link;
        VarlinkClient *client;
        const char *method;
        void (*news)(DeviceLink *l, json_object *reply);
        bool wanted; /* the session lasts, and the helper did not say that it has no such method */
        sd_event_source *retry;
        uint64_t retry_usec;
} Subscription;

struct DeviceLink {
        sd_event *event;
        char *path;
        DeviceLinkKind kind;
        DeviceLinkHandlers handlers;
        VarlinkInterface *balloon_idl; /* what a balloon says is passed on, so it is checked as a whole */

        bool in_session;
        unsigned session;
        Subscription device_subscription, kind_subscription;

        pid_t pid;
        char *broken;
        json_object *balloon;
        bool has_target;
        int64_t target;
        VarlinkClient *target_client; /* sets the target again */
};

/* --- what is said --- */

static void on_device_news(DeviceLink *l, json_object *reply) {
        const char *state = json_get_string(reply, "state", ""), *reason = json_get_string(reply, "reason", NULL);
        bool was_broken = l->broken, broken = streq(state, "broken");
        int64_t pid = json_get_integer(reply, "pid", 0);

        if (l->pid == 0 && pid > 0 && pid <= INT32_MAX) {
                l->pid = (pid_t) pid;
                l->handlers.present(l->pid, l->handlers.userdata);
        }
        free(l->broken);
        l->broken = broken ? strdup(reason ?: "it does not say why") : NULL;
        if (broken != was_broken)
                l->handlers.broken(l->broken, l->handlers.userdata);
}

static void on_target_set(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        DeviceLink *l = userdata;

        /* Where that went wrong, the helper tells of its next change, and the machine's clients see what it has. */
        l->target_client = varlink_client_unref(l->target_client);
}

/* The helper came back with another target than it had. */
static void set_target_again(DeviceLink *l) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        l->target_client = varlink_client_unref(l->target_client);
        r = parameters ? json_add_integer(parameters, "target", l->target) : -ENOMEM;
        if (r >= 0)
                r = varlink_client_connect(l->path, &l->target_client);
        if (r >= 0)
                r = varlink_client_attach_event(l->target_client, l->event);
        if (r >= 0)
                r = varlink_client_call_async(l->target_client, "io.vmmd.Balloon.SetTarget", parameters, 0, on_target_set, l);
        if (r < 0)
                l->target_client = varlink_client_unref(l->target_client);
}

static void take_balloon(DeviceLink *l, json_object *balloon) {
        json_object *before = l->balloon;

        l->balloon = json_object_get(balloon);
        (void) json_object_put(before);
}

/* A helper begins to tell: what its predecessor did not say is news. */
static void on_balloon_present(DeviceLink *l, json_object *balloon) {
        int64_t target = json_get_integer(balloon, "target", 0), actual = json_get_integer(balloon, "actual", 0);
        int64_t old_target = json_get_integer(l->balloon, "target", 0), old_actual = json_get_integer(l->balloon, "actual", 0);

        take_balloon(l, balloon);
        if (l->has_target && target != l->target)
                set_target_again(l); /* which will be news */
        else {
                l->has_target = true;
                l->target = target;
                if (target != old_target)
                        l->handlers.balloon("target", NULL, l->handlers.userdata);
        }
        if (actual != old_actual)
                l->handlers.balloon("actual", NULL, l->handlers.userdata);
}

static void on_balloon_news(DeviceLink *l, json_object *reply) {
        json_object *balloon = json_get(reply, "balloon", json_type_object);
        const char *type = json_get_string(reply, "type", "");
        const VarlinkSymbol *symbol = varlink_interface_find(l->balloon_idl, VARLINK_SYMBOL_METHOD, "Subscribe");

        if (!symbol || varlink_type_check(l->balloon_idl, &symbol->output, reply, NULL) < 0)
                return;
        if (streq(type, "present")) {
                on_balloon_present(l, balloon);
                return;
        }
        take_balloon(l, balloon);
        l->has_target = true;
        l->target = json_get_integer(balloon, "target", 0);
        l->handlers.balloon(type, json_get(reply, "workingSet", json_type_array), l->handlers.userdata);
}

static void on_vsock_news(DeviceLink *l, json_object *reply) {
        json_object *guest = json_get(reply, "guest", json_type_object);

        l->handlers.guest(json_get_boolean(guest, "ready", false), json_get_string(guest, "status", NULL), l->handlers.userdata);
}

void device_link_set_balloon(DeviceLink *l, json_object *balloon) {
        const VarlinkSymbol *symbol =
                l->balloon_idl ? varlink_interface_find(l->balloon_idl, VARLINK_SYMBOL_TYPE, "BalloonState") : NULL;

        if (!symbol || !balloon || varlink_type_check(l->balloon_idl, &symbol->type, balloon, NULL) < 0)
                return;
        take_balloon(l, balloon);
        l->has_target = true;
        l->target = json_get_integer(balloon, "target", 0);
}

/* --- the connections --- */

static void unsubscribe(Subscription *s) {
        s->client = varlink_client_unref(s->client);
        s->retry = sd_event_source_disable_unref(s->retry);
}

static bool is_unknown_method(const char *error_id) {
        return varlink_error_is(error_id, "org.varlink.service.MethodNotFound") ||
                varlink_error_is(error_id, "org.varlink.service.MethodNotImplemented") ||
                varlink_error_is(error_id, "org.varlink.service.InterfaceNotFound");
}

static void subscribe(Subscription *s);

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        subscribe(userdata);
        return 0;
}

static void retry_later(Subscription *s) {
        unsubscribe(s);
        if (!s->wanted)
                return;
        s->retry_usec = s->retry_usec == 0 ? RETRY_FIRST_USEC : MIN(s->retry_usec * 2, RETRY_LAST_USEC);
        (void) sd_event_add_time_relative(s->link->event, &s->retry, CLOCK_MONOTONIC, s->retry_usec, 0, on_retry, s);
}

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Subscription *s = userdata;

        if (error >= 0 && continues) {
                s->retry_usec = 0;
                s->news(s->link, reply);
        }
        if (continues)
                return;
        if (error >= 0)
                s->news(s->link, reply);
        if (s == &s->link->device_subscription)
                s->link->pid = 0;
        if (is_unknown_method(error_id))
                s->wanted = false;
        retry_later(s);
        if (is_unknown_method(error_id) && s == &s->link->device_subscription)
                s->link->handlers.strange(s->link->handlers.userdata);
}

static void subscribe(Subscription *s) {
        int r;

        unsubscribe(s);
        r = varlink_client_connect(s->link->path, &s->client);
        if (r >= 0)
                r = varlink_client_attach_event(s->client, s->link->event);
        if (r >= 0)
                r = varlink_client_call_async(s->client, s->method, NULL, VARLINK_CLIENT_MORE, on_reply, s);
        /* No helper of ours has no such socket. */
        if (r == -ENOENT || r == -ECONNREFUSED)
                s->wanted = false;
        if (r < 0)
                retry_later(s);
}

static void begin(Subscription *s) {
        s->wanted = true;
        s->retry_usec = 0;
        subscribe(s);
}

void device_link_begin(DeviceLink *l, unsigned session) {
        if (l->in_session && l->session == session)
                return;
        l->in_session = true;
        l->session = session;
        begin(&l->device_subscription);
        if (l->kind != DEVICE_LINK_PLAIN)
                begin(&l->kind_subscription);
}

void device_link_end(DeviceLink *l) {
        l->in_session = false;
        l->pid = 0;
        l->broken = mfree(l->broken);
        l->device_subscription.wanted = l->kind_subscription.wanted = false;
        unsubscribe(&l->device_subscription);
        unsubscribe(&l->kind_subscription);
        l->target_client = varlink_client_unref(l->target_client);
}

/* --- making and freeing --- */

int device_link_new(sd_event *event, const char *path, DeviceLinkKind kind, const DeviceLinkHandlers *handlers, DeviceLink **ret) {
        _cleanup_(device_link_freep) DeviceLink *l = calloc(1, sizeof(DeviceLink));
        int r;

        if (!l)
                return -ENOMEM;
        l->event = sd_event_ref(event);
        l->kind = kind;
        l->handlers = *handlers;
        l->device_subscription = (Subscription) { .link = l, .method = "io.vmmd.Device.Subscribe", .news = on_device_news };
        l->kind_subscription = kind == DEVICE_LINK_VSOCK ?
                (Subscription) { .link = l, .method = "io.vmmd.Vsock.Subscribe", .news = on_vsock_news } :
                (Subscription) { .link = l, .method = "io.vmmd.Balloon.Subscribe", .news = on_balloon_news };
        l->path = strdup(path);
        if (!l->path)
                return -ENOMEM;
        if (kind == DEVICE_LINK_BALLOON) {
                r = varlink_interface_parse(varlink_text_io_vmmd_Balloon, &l->balloon_idl, NULL);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(l);
        return 0;
}

DeviceLink *device_link_free(DeviceLink *l) {
        if (!l)
                return NULL;
        device_link_end(l);
        (void) varlink_interface_free(l->balloon_idl);
        (void) json_object_put(l->balloon);
        sd_event_unref(l->event);
        free(l->path);
        return mfree(l);
}

pid_t device_link_pid(const DeviceLink *l) {
        return l->pid;
}

const char *device_link_broken(const DeviceLink *l) {
        return l->broken;
}

json_object *device_link_balloon(const DeviceLink *l) {
        return l->balloon;
}
