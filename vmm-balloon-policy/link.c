/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>

#include "client.h"
#include "json-util.h"
#include "link.h"
#include "log.h"

/* Not sooner: where vmmd has died, systemd is about to stop its socket and us, and a connection would start the machine again. */
#define RETRY_USEC (500 * USEC_PER_MSEC)
#define RETRY_MAX_USEC (10 * USEC_PER_SEC)
#define CALL_TIMEOUT_USEC (20 * USEC_PER_SEC)

/* Targets that we set and whose events have not come yet. */
#define OWN_MAX 8

struct Link {
        sd_event *event;
        const char *socket, *device_wanted;
        uint64_t statistics_interval_usec;
        LinkCallback callback;
        void *userdata;

        VarlinkClient *commands, *events;
        sd_event_source *retry;
        uint64_t retry_usec;
        char *device;
        bool connected, ended;
        uint64_t memory, vmmd;

        bool setting, wanted_valid;
        uint64_t target, wanted; /* under way; to come after it */
        uint64_t own[OWN_MAX];
        size_t n_own;
        LogRateLimit trouble;
};

static void tell(Link *l, const LinkEvent *e) {
        l->callback(e, l->userdata);
}

static void disconnect(Link *l) {
        l->commands = varlink_client_unref(l->commands);
        l->events = varlink_client_unref(l->events);
        l->setting = l->wanted_valid = false;
        l->n_own = 0;
        l->connected = false;
}

static void end(Link *l, int error) {
        disconnect(l);
        if (l->ended)
                return;
        l->ended = true;
        (void) sd_event_source_set_enabled(l->retry, SD_EVENT_OFF);
        tell(l, &(LinkEvent) { .type = LINK_ENDED, .error = error });
}

/* The connection is no good; later it may be. */
static void lose(Link *l, int error, const char *what) {
        bool was_connected = l->connected;
        int r;

        disconnect(l);
        if (was_connected)
                log_info("%s: %s. Connecting again.", what, strerrordesc_np(abs(error)) ?: "unknown error");
        else
                log_debug("%s: %s. Trying again.", what, strerrordesc_np(abs(error)) ?: "unknown error");
        r = sd_event_source_set_time_relative(l->retry, l->retry_usec);
        if (r >= 0)
                r = sd_event_source_set_enabled(l->retry, SD_EVENT_ONESHOT);
        l->retry_usec = MIN(2 * l->retry_usec, RETRY_MAX_USEC);
        if (was_connected)
                tell(l, &(LinkEvent) { .type = LINK_LOST });
        if (r < 0) {
                (void) log_error_errno(r, "Cannot arm a timer: %m");
                end(l, r);
        }
}

/* An error that no second try makes good, or the end of a connection. */
static void fail(Link *l, int error, const char *error_id, json_object *reply, const char *what) {
        if (error == -EREMOTEIO && varlink_error_is(error_id, "org.varlink.service.PermissionDenied")) {
                const char *reason = json_get_string(reply, "reason", NULL);

                log_error("%s was refused%s%s. Members of the group vmm-balloon may.", what, reason ? ": " : "", reason ?: "");
                end(l, -EACCES);
        } else if (error == -EREMOTEIO && error_id &&
                (startswith(error_id, "org.varlink.service.") || streq(error_id, "io.vmmd.Machine.NoBalloon") ||
                        streq(error_id, "io.vmmd.Machine.NoSuchDevice"))) {
                log_error("%s was refused: %s", what, error_id);
                end(l, -ENOTSUP);
        } else {
                if (error == -EREMOTEIO)
                        log_warning("%s was refused: %s", what, error_id ?: "?");
                lose(l, error, what);
        }
}

/* Whatever is no number that can be is no number. */
static uint64_t number(json_object *from, const char *key) {
        int64_t v = json_get_integer(from, key, -1);
        return v < 0 ? POLICY_UNKNOWN : (uint64_t) v;
}

static uint64_t number_or_zero(json_object *from, const char *key) {
        uint64_t v = number(from, key);
        return v == POLICY_UNKNOWN ? 0 : v;
}

static bool has_feature(json_object *balloon, const char *name) {
        json_object *features = json_get(balloon, "features", json_type_array);

        for (size_t i = 0, n = features ? json_object_array_length(features) : 0; i < n && i < 64; i++) {
                json_object *f = json_object_array_get_idx(features, i);
                if (json_object_is_type(f, json_type_string) && streq(json_object_get_string(f), name))
                        return true;
        }
        return false;
}

static PolicyBalloon parse_balloon(const Link *l, json_object *balloon) {
        PolicyBalloon b = {
                .target = number_or_zero(balloon, "target"),
                .actual = number_or_zero(balloon, "actual"),
                .oom_deflations = number_or_zero(balloon, "oomDeflations"),
                .driver = json_get_boolean(balloon, "driver", false),
                .deflates_on_oom = has_feature(balloon, "deflateOnOom"),
        };

        /* What was said before our latest target arrived. */
        if (l->setting)
                b.target = l->wanted_valid ? l->wanted : l->target;
        return b;
}

/* The balloon that we mind, of a list; NULL where there is none. */
static json_object *find_balloon(const Link *l, json_object *from, const char *wanted) {
        json_object *balloons = json_get(from, "balloons", json_type_array);

        for (size_t i = 0, n = balloons ? json_object_array_length(balloons) : 0; i < n; i++) {
                json_object *b = json_object_array_get_idx(balloons, i);
                const char *name = json_get_string(b, "device", NULL);
                if (name && (!wanted || streq(name, wanted)))
                        return b;
        }
        return NULL;
}

static void remember_own(Link *l, uint64_t target) {
        if (l->n_own == OWN_MAX)
                memmove(l->own, l->own + 1, --l->n_own * sizeof(l->own[0]));
        l->own[l->n_own++] = target;
}

/* Whether we set that target; events of earlier ones will not come any more. */
static bool forget_own(Link *l, uint64_t target) {
        for (size_t i = 0; i < l->n_own; i++)
                if (l->own[i] == target) {
                        l->n_own -= i + 1;
                        memmove(l->own, l->own + i + 1, l->n_own * sizeof(l->own[0]));
                        return true;
                }
        return false;
}

static void on_balloon(Link *l, json_object *event, bool target) {
        json_object *balloon = json_get(event, "balloon", json_type_object);
        LinkEvent e = { .type = LINK_BALLOON };

        if (!balloon || !streq(json_get_string(balloon, "device", ""), l->device))
                return;
        e.balloon = parse_balloon(l, balloon);
        if (target && !forget_own(l, number_or_zero(balloon, "target"))) {
                e.type = LINK_BASE;
                e.balloon.target = number_or_zero(balloon, "target");
        }
        tell(l, &e);
}

static void on_statistics(Link *l, json_object *event) {
        json_object *s = json_get(event, "statistics", json_type_object);
        LinkEvent e = { .type = LINK_STATISTICS };

        if (!s || !streq(json_get_string(event, "device", ""), l->device))
                return;
        e.statistics = (PolicyStatistics) {
                .age_usec = number_or_zero(s, "age"),
                .available = number(s, "availableMemory"),
                .free = number(s, "freeMemory"),
                .swap_in = number(s, "swapIn"),
                .major_faults = number(s, "majorFaults"),
                .oom_kills = number(s, "oomKills"),
        };
        tell(l, &e);
}

static void on_first_reply(Link *l, json_object *reply) {
        json_object *present = json_get(reply, "present", json_type_object), *balloon = find_balloon(l, present, l->device);
        LinkEvent e = { .type = LINK_CONNECTED, .memory = l->memory, .vmmd = l->vmmd };

        if (!balloon) {
                lose(l, -EPROTO, "The machine's present state is without its balloon");
                return;
        }
        l->connected = true;
        l->retry_usec = RETRY_USEC;
        e.balloon = parse_balloon(l, balloon);
        tell(l, &e);
}

static void on_event(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Link *l = userdata;
        const char *type = json_get_string(reply, "type", "");

        if (error < 0) {
                fail(l, error, error_id, reply, "Subscribing to the machine's events");
                return;
        }
        if (!continues) {
                log_info("The machine ends.");
                end(l, 0);
                return;
        }
        if (json_get_integer(reply, "missed", 0) > 0)
                log_debug("Missed %" PRIi64 " events.", json_get_integer(reply, "missed", 0));
        if (!l->connected)
                on_first_reply(l, reply);
        else if (streq(type, "balloonTarget"))
                on_balloon(l, reply, true);
        else if (streq(type, "balloonActual") || streq(type, "balloonDeflatedOnOom"))
                on_balloon(l, reply, false);
        else if (streq(type, "statistics"))
                on_statistics(l, reply);
        else if (streq(type, "machineState") && streq(json_get_string(reply, "state", ""), "resetting"))
                tell(l, &(LinkEvent) { .type = LINK_RESET });
}

static int make_filter(json_object *parameters) {
        static const char *const types[] = {
                "machineState", "balloonTarget", "balloonActual", "balloonDeflatedOnOom", "statistics",
        };
        _cleanup_json_ json_object *filter = json_object_new_array();
        int r;

        if (!filter)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(types); i++) {
                r = json_append(filter, json_object_new_string(types[i]));
                if (r < 0)
                        return r;
        }
        return json_add(parameters, "filter", TAKE_PTR(filter));
}

static int open_client(Link *l, VarlinkClient **ret) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = NULL;
        int r;

        r = varlink_client_connect(l->socket, &c);
        if (r < 0)
                return r;
        varlink_client_set_timeout(c, CALL_TIMEOUT_USEC);
        r = varlink_client_attach_event(c, l->event);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

static int subscribe(Link *l) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        if (!parameters)
                return -ENOMEM;
        r = make_filter(parameters);
        if (r >= 0)
                r = json_add_integer(parameters, "statisticsInterval", (int64_t) l->statistics_interval_usec);
        if (r >= 0)
                r = open_client(l, &l->events);
        if (r >= 0)
                r = varlink_client_call_async(l->events, "io.vmmd.Machine.SubscribeEvents", parameters, VARLINK_CLIENT_MORE, on_event, l);
        return r;
}

static void on_described(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Link *l = userdata;
        json_object *balloon;
        int r;

        if (error < 0) {
                fail(l, error, error_id, reply, "Asking for the machine's description");
                return;
        }
        balloon = find_balloon(l, reply, l->device_wanted);
        if (!balloon) {
                log_error("The machine has no balloon%s%s: expected a device of type balloon in its definition.",
                        l->device_wanted ? " " : "", l->device_wanted ?: "");
                end(l, -ENODEV);
                return;
        }
        l->memory = number_or_zero(reply, "memory");
        l->vmmd = number_or_zero(reply, "pid");
        free(l->device);
        l->device = strdup(json_get_string(balloon, "device", ""));
        r = l->device ? subscribe(l) : -ENOMEM;
        if (r < 0)
                lose(l, r, "The machine cannot be subscribed to");
}

static void send_target(Link *l, uint64_t target);

static void on_target_set(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Link *l = userdata;

        l->setting = false;
        if (error < 0 && (error != -EREMOTEIO || varlink_error_is(error_id, "org.varlink.service.PermissionDenied"))) {
                fail(l, error, error_id, reply, "Setting the balloon's target");
                return;
        }
        if (error < 0) {
                /* The balloon's helper may be on its way back. What the target is we are told with the next event. */
                (void) forget_own(l, l->target);
                if (log_ratelimit(&l->trouble, NULL))
                        log_warning("The balloon's target was not set: %s", error_id ?: "?");
        }
        if (l->wanted_valid) {
                l->wanted_valid = false;
                send_target(l, l->wanted);
                return;
        }
        tell(l, &(LinkEvent) { .type = LINK_TARGET_SET, .error = error });
}

static void send_target(Link *l, uint64_t target) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        r = parameters ? json_add_string(parameters, "device", l->device) : -ENOMEM;
        if (r >= 0)
                r = json_add_integer(parameters, "target", (int64_t) target);
        if (r >= 0)
                r = varlink_client_call_async(l->commands, "io.vmmd.Machine.SetBalloonTarget", parameters, 0, on_target_set, l);
        if (r < 0) {
                lose(l, r, "The balloon's target cannot be set");
                return;
        }
        l->setting = true;
        l->target = target;
        remember_own(l, target);
}

void link_set_target(Link *l, uint64_t target) {
        if (!l->connected)
                return;
        if (l->setting) {
                l->wanted = target;
                l->wanted_valid = true;
                return;
        }
        send_target(l, target);
}

bool link_is_connected(const Link *l) {
        return l->connected;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        Link *l = userdata;
        int r;

        r = open_client(l, &l->commands);
        if (r >= 0)
                r = varlink_client_call_async(l->commands, "io.vmmd.Machine.Describe", NULL, 0, on_described, l);
        if (r < 0)
                lose(l, r, "The machine cannot be reached");
        return 0;
}

int link_new(sd_event *event, const char *socket, const char *device, uint64_t statistics_interval_usec, LinkCallback callback, void *userdata,
        Link **ret) {
        _cleanup_(link_freep) Link *l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return -ENOMEM;
        *l = (Link) {
                .event = sd_event_ref(event),
                .socket = socket,
                .device_wanted = device,
                .statistics_interval_usec = statistics_interval_usec,
                .callback = callback,
                .userdata = userdata,
                .retry_usec = RETRY_USEC,
                .trouble = { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 },
        };
        r = sd_event_add_time_relative(event, &l->retry, CLOCK_MONOTONIC, 0, 10 * USEC_PER_MSEC, on_retry, l);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(l);
        return 0;
}

Link *link_free(Link *l) {
        if (!l)
                return NULL;
        disconnect(l);
        (void) sd_event_source_disable_unref(l->retry);
        (void) sd_event_unref(l->event);
        free(l->device);
        return mfree(l);
}
