/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <systemd/sd-id128.h>

#include "client.h"
#include "control-describe.h"
#include "events.h"
#include "json-util.h"
#include "message.h"
#include "stream.h"

/* As the text says. */
#define INTERVAL_MIN 100000
/* How many events a subscriber who comes back finds. Those of statistics are none of them: they are for one subscriber, and the next ones tell more. */
#define SAVED_DEPTH_MAX 32
#define N_REMEMBERED VARLINK_STREAM_BACKLOG_DEFAULT

/* In the order of the text's EventType. */
typedef enum EventType {
        EVENT_PRESENT,
        EVENT_MACHINE_STATE,
        EVENT_GUEST_READY,
        EVENT_GUEST_STATUS,
        EVENT_PANIC,
        EVENT_DEVICE_STATE,
        EVENT_DEVICE_FAILED,
        EVENT_DEVICE_RESTARTED,
        EVENT_DEVICE_ATTACHED,
        EVENT_DEVICE_DETACHED,
        EVENT_BALLOON_TARGET,
        EVENT_BALLOON_ACTUAL,
        EVENT_BALLOON_DEFLATED_ON_OOM,
        EVENT_WORKING_SET,
        EVENT_STATISTICS,
        _EVENT_TYPE_MAX,
} EventType;

static const char *const event_names[_EVENT_TYPE_MAX] = {
        [EVENT_PRESENT] = "present",
        [EVENT_MACHINE_STATE] = "machineState",
        [EVENT_GUEST_READY] = "guestReady",
        [EVENT_GUEST_STATUS] = "guestStatus",
        [EVENT_PANIC] = "panic",
        [EVENT_DEVICE_STATE] = "deviceState",
        [EVENT_DEVICE_FAILED] = "deviceFailed",
        [EVENT_DEVICE_RESTARTED] = "deviceRestarted",
        [EVENT_DEVICE_ATTACHED] = "deviceAttached",
        [EVENT_DEVICE_DETACHED] = "deviceDetached",
        [EVENT_BALLOON_TARGET] = "balloonTarget",
        [EVENT_BALLOON_ACTUAL] = "balloonActual",
        [EVENT_BALLOON_DEFLATED_ON_OOM] = "balloonDeflatedOnOom",
        [EVENT_WORKING_SET] = "workingSet",
        [EVENT_STATISTICS] = "statistics",
};

/* A subscriber who wants statistics. */
typedef struct Interval {
        struct Interval *next;
        Events *events;
        VarlinkSubscriber *subscriber;
        sd_event_source *timer;
        uint64_t usec;
        uint64_t waiting; /* for which devices' statistics, by number */
} Interval;

/* The statistics of one balloon. */
typedef struct Source {
        Events *events;
        MachineDevice *device;
        VarlinkClient *client; /* kept while somebody has an interval */
        bool asked;
} Source;

struct Events {
        Machine *machine;
        char run[SD_ID128_STRING_MAX]; /* the machine's, over all its processes */
        VarlinkStream *stream;
        Interval *intervals;
        Source sources[MACHINE_DEVICES_MAX];
};

/* --- events --- */

static int event_new(EventType type, json_object **ret) {
        _cleanup_json_ json_object *event = json_object_new_object();
        int r;

        if (!event)
                return -ENOMEM;
        r = json_add_string(event, "type", event_names[type]);
        if (r >= 0)
                r = json_add_integer(event, "time", (int64_t) now_realtime_usec());
        if (r < 0)
                return r;
        *ret = TAKE_PTR(event);
        return 0;
}

/* What nobody wants is only counted. Takes the event over. A reply that could not be made or is not as the text has it is one that subscribers
 * missed; there is nobody else to tell. */
static void publish(Events *e, EventType type, const char *key, int error, json_object *event) {
        _cleanup_json_ json_object *owned = event;

        (void) varlink_stream_publish(e->stream, type, key, error >= 0 ? owned : NULL);
}

static bool is_wanted(Events *e, EventType type) {
        if (varlink_stream_wants(e->stream, type))
                return true;
        (void) varlink_stream_publish(e->stream, type, NULL, NULL);
        return false;
}

static int state_event(Events *e, const char *reason, json_object **ret) {
        _cleanup_json_ json_object *event = NULL;
        int r;

        r = event_new(EVENT_MACHINE_STATE, &event);
        if (r >= 0)
                r = json_add_string(event, "state", machine_state_to_string(e->machine->state));
        if (r >= 0)
                r = json_add_string(event, "reason", reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(event);
        return 0;
}

void events_state(Events *e, const char *reason) {
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, EVENT_MACHINE_STATE))
                return;
        r = state_event(e, reason, &event);
        publish(e, EVENT_MACHINE_STATE, "", r, event);
}

void events_ended(Events *e, const char *reason) {
        _cleanup_json_ json_object *event = NULL;

        if (state_event(e, reason, &event) >= 0)
                (void) varlink_stream_close(e->stream, event);
}

void events_guest_ready(Events *e) {
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, EVENT_GUEST_READY))
                return;
        r = event_new(EVENT_GUEST_READY, &event);
        if (r >= 0)
                r = json_add_string(event, "reason",
                        e->machine->definition->guest_notifies ? "The guest's service manager says so." : "All drivers are at work.");
        publish(e, EVENT_GUEST_READY, "", r, event);
}

void events_guest_status(Events *e, const char *status) {
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, EVENT_GUEST_STATUS))
                return;
        r = event_new(EVENT_GUEST_STATUS, &event);
        if (r >= 0)
                r = json_add_string(event, "reason", status);
        publish(e, EVENT_GUEST_STATUS, "", r, event);
}

void events_panic(Events *e, const char *reason) {
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, EVENT_PANIC))
                return;
        r = event_new(EVENT_PANIC, &event);
        if (r >= 0)
                r = json_add_string(event, "reason", reason);
        publish(e, EVENT_PANIC, NULL, r, event);
}

static void device_event(Events *e, EventType type, const char *key, MachineDevice *d, const char *reason) {
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, type))
                return;
        r = event_new(type, &event);
        if (r >= 0)
                r = json_add_string(event, "device", machine_device_definition(d)->name);
        if (r >= 0)
                r = json_add_string(event, "deviceState", machine_device_state_to_string(machine_device_told_state(d)));
        if (r >= 0)
                r = json_add_string(event, "reason", reason);
        publish(e, type, key, r, event);
}

/* Nobody waits for its statistics any more. */
static void source_end(Events *e, const MachineDevice *d);

void events_device(Events *e, MachineDevice *d, MachineDeviceChange change, const char *reason) {
        switch (change) {
        case DEVICE_CHANGE_STATE:
                device_event(e, EVENT_DEVICE_STATE, machine_device_definition(d)->name, d, NULL);
                break;
        case DEVICE_CHANGE_FAILED:
                device_event(e, EVENT_DEVICE_FAILED, NULL, d, reason);
                break;
        case DEVICE_CHANGE_RESTARTED:
                device_event(e, EVENT_DEVICE_RESTARTED, NULL, d, NULL);
                break;
        case DEVICE_CHANGE_ATTACHED:
                device_event(e, EVENT_DEVICE_ATTACHED, NULL, d, NULL);
                break;
        case DEVICE_CHANGE_DETACHED:
                source_end(e, d);
                device_event(e, EVENT_DEVICE_DETACHED, NULL, d, reason);
                break;
        }
}

static void balloon_event(Events *e, EventType type, const char *key, MachineDevice *d) {
        json_object *event = NULL, *balloon = NULL;
        int r;

        if (!is_wanted(e, type))
                return;
        r = event_new(type, &event);
        if (r >= 0)
                r = describe_balloon(d, &balloon);
        if (r >= 0)
                r = json_add(event, "balloon", balloon);
        publish(e, type, key, r, event);
}

static void working_set_event(Events *e, MachineDevice *d, json_object *working_set) {
        const char *name = machine_device_definition(d)->name;
        json_object *event = NULL;
        int r;

        if (!is_wanted(e, EVENT_WORKING_SET))
                return;
        r = event_new(EVENT_WORKING_SET, &event);
        if (r >= 0)
                r = json_add_string(event, "device", name);
        if (r >= 0)
                r = json_add(event, "workingSet", json_object_get(working_set));
        publish(e, EVENT_WORKING_SET, name, r, event);
}

void events_balloon(Events *e, MachineDevice *d, const char *type, json_object *working_set) {
        const char *name = machine_device_definition(d)->name;

        if (streq(type, "target"))
                balloon_event(e, EVENT_BALLOON_TARGET, name, d);
        else if (streq(type, "actual"))
                balloon_event(e, EVENT_BALLOON_ACTUAL, name, d);
        else if (streq(type, "deflatedOnOom"))
                balloon_event(e, EVENT_BALLOON_DEFLATED_ON_OOM, NULL, d);
        else if (streq(type, "workingSet") && working_set)
                working_set_event(e, d, working_set);
}

/* --- statistics --- */

static void close_sources(Events *e) {
        for (size_t i = 0; i < ELEMENTSOF(e->sources); i++) {
                e->sources[i].client = varlink_client_unref(e->sources[i].client);
                e->sources[i].asked = false;
        }
}

static int statistics_event(Source *s, json_object *statistics, json_object **ret) {
        _cleanup_json_ json_object *event = NULL;
        int r;

        r = event_new(EVENT_STATISTICS, &event);
        if (r >= 0)
                r = json_add_string(event, "device", machine_device_definition(s->device)->name);
        if (r >= 0)
                r = json_add(event, "statistics", json_object_get(statistics));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(event);
        return 0;
}

/* To all who wait for it; NULL where there is nothing to tell. */
static void publish_statistics(Source *s, json_object *statistics) {
        const char *name = machine_device_definition(s->device)->name;
        uint64_t bit = UINT64_C(1) << machine_device_number(s->device);
        _cleanup_json_ json_object *event = NULL;
        Interval *next;

        if (statistics && statistics_event(s, statistics, &event) < 0)
                event = NULL;
        for (Interval *i = s->events->intervals; i; i = next) {
                next = i->next; /* whoever turns out to be gone takes its own with it */
                if (!(i->waiting & bit))
                        continue;
                i->waiting &= ~bit;
                if (event)
                        (void) varlink_subscriber_publish(i->subscriber, EVENT_STATISTICS, name, event);
        }
}

static void on_statistics(VarlinkClient *client, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        Source *s = userdata;

        s->asked = false;
        /* Where it is only that the guest's driver is not there, the connection is as good as before. */
        if (error < 0 && error != -EREMOTEIO)
                s->client = varlink_client_unref(s->client);
        if (error >= 0)
                machine_device_set_balloon(s->device, json_get(reply, "balloon", json_type_object));
        publish_statistics(s, error >= 0 ? json_get(reply, "statistics", json_type_object) : NULL);
}

static int ask_for_statistics(Source *s, uint64_t maximum_age) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        _cleanup_free_ char *path = NULL;
        int r;

        if (s->asked)
                return 0;
        r = parameters ? json_add_integer(parameters, "maximumAge", (int64_t) maximum_age) : -ENOMEM;
        if (r >= 0 && !s->client) {
                path = machine_device_varlink_path(s->device);
                r = path ? varlink_client_connect(path, &s->client) : -ENOMEM;
                if (r >= 0)
                        r = varlink_client_attach_event(s->client, s->events->machine->event);
        }
        if (r >= 0)
                r = varlink_client_call_async(s->client, "io.vmmd.Balloon.GetStatistics", parameters, 0, on_statistics, s);
        if (r < 0) {
                s->client = varlink_client_unref(s->client);
                return r;
        }
        s->asked = true;
        return 0;
}

static void source_end(Events *e, const MachineDevice *d) {
        Source *s = &e->sources[machine_device_number(d)];

        s->client = varlink_client_unref(s->client);
        s->asked = false;
        s->device = NULL;
        for (Interval *i = e->intervals; i; i = i->next)
                i->waiting &= ~(UINT64_C(1) << machine_device_number(d));
}

static int interval_arm(Interval *i);

static int on_interval(sd_event_source *source, uint64_t usec, void *userdata) {
        Interval *i = userdata;
        Events *e = i->events;

        for (size_t k = 0; k < e->machine->n_devices; k++) {
                MachineDevice *d = machine_device_by_index(e->machine, k);
                Source *s = &e->sources[machine_device_number(d)];

                /* While its helper is not there, nobody starts it by asking. */
                if (!machine_device_is_balloon(d) || machine_device_state(d) < DEVICE_READY ||
                        machine_device_state(d) == DEVICE_FAILED)
                        continue;
                /* One answer may serve several whose intervals end about now. */
                s->device = d;
                if (ask_for_statistics(s, i->usec / 2) >= 0)
                        i->waiting |= UINT64_C(1) << machine_device_number(d);
        }
        return interval_arm(i);
}

static int interval_arm(Interval *i) {
        int r;

        if (!i->timer)
                return sd_event_add_time_relative(i->events->machine->event, &i->timer, CLOCK_MONOTONIC, i->usec, i->usec / 20,
                        on_interval, i);
        r = sd_event_source_set_time_relative(i->timer, i->usec);
        return r < 0 ? r : sd_event_source_set_enabled(i->timer, SD_EVENT_ONESHOT);
}

static Interval *interval_free(Interval *i) {
        if (!i)
                return NULL;
        for (Interval **p = &i->events->intervals; *p; p = &(*p)->next)
                if (*p == i) {
                        *p = i->next;
                        break;
                }
        (void) sd_event_source_disable_unref(i->timer);
        return mfree(i);
}
DEFINE_CLEANUP(Interval, interval_free)

static void on_subscriber_gone(VarlinkSubscriber *subscriber, void *userdata) {
        Interval *i = userdata;
        Events *e = i->events;

        (void) interval_free(i);
        if (!e->intervals)
                close_sources(e);
}

static int interval_new(Events *e, uint64_t usec, Interval **ret) {
        Interval *i = calloc(1, sizeof(Interval));
        int r;

        if (!i)
                return -ENOMEM;
        *i = (Interval) { .events = e, .usec = usec };
        r = interval_arm(i);
        if (r < 0) {
                (void) interval_free(i);
                return r;
        }
        *ret = i;
        return 0;
}

/* --- subscribing --- */

/* The text's types only: the parameters were checked. */
static uint64_t filter_to_kinds(json_object *filter) {
        uint64_t kinds = 0;

        if (!filter || json_object_array_length(filter) == 0)
                return (UINT64_C(1) << _EVENT_TYPE_MAX) - 1;
        for (size_t i = 0; i < json_object_array_length(filter); i++)
                for (unsigned type = 0; type < _EVENT_TYPE_MAX; type++)
                        if (streq(json_object_get_string(json_object_array_get_idx(filter, i)), event_names[type]))
                                kinds |= UINT64_C(1) << type;
        return kinds;
}

static int present_event(Events *e, json_object **ret) {
        _cleanup_json_ json_object *event = NULL;
        json_object *snapshot = NULL;
        int r;

        r = event_new(EVENT_PRESENT, &event);
        if (r >= 0)
                r = json_add_string(event, "run", e->run);
        if (r >= 0)
                r = describe_snapshot(e->machine, &snapshot);
        if (r >= 0)
                r = json_add(event, "present", snapshot);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(event);
        return 0;
}

/* The machine has ended while the call was on its way. */
static int subscribe_to_the_end(Events *e, VarlinkCall *call) {
        _cleanup_json_ json_object *event = NULL;
        int r;

        r = state_event(e, "The machine has ended.", &event);
        if (r >= 0)
                r = json_add_integer(event, "sequence", (int64_t) varlink_stream_sequence(e->stream));
        if (r >= 0)
                r = json_add_integer(event, "missed", 0);
        return r < 0 ? r : varlink_call_reply(call, event);
}

/* Where nothing, or another run's number is given, all that is to come. */
static uint64_t where_to_go_on(Events *e, json_object *after) {
        int64_t sequence = json_get_integer(after, "sequence", -1);

        return sequence >= 0 && streq(json_get_string(after, "run", ""), e->run) ? (uint64_t) sequence : varlink_stream_sequence(e->stream);
}

int events_subscribe(Events *e, VarlinkCall *call, json_object *parameters) {
        json_object *wanted = json_get(parameters, "statisticsInterval", json_type_int);
        uint64_t kinds = filter_to_kinds(json_get(parameters, "filter", json_type_array));
        int64_t usec = wanted ? json_object_get_int64(wanted) : 0;
        _cleanup_(interval_freep) Interval *interval = NULL;
        _cleanup_json_ json_object *first = NULL;
        VarlinkSubscriber *subscriber;
        int r;

        if (wanted && (usec < INTERVAL_MIN || usec > INT64_MAX / 4))
                return varlink_call_error_invalid_parameter(call, "statisticsInterval");
        if (e->machine->ended)
                return subscribe_to_the_end(e, call);
        r = present_event(e, &first);
        if (r >= 0 && wanted && kinds & (UINT64_C(1) << EVENT_STATISTICS))
                r = interval_new(e, (uint64_t) usec, &interval);
        if (r >= 0)
                r = varlink_stream_add_after(e->stream, call, first, kinds, where_to_go_on(e, json_get(parameters, "after", json_type_object)),
                        interval ? on_subscriber_gone : NULL, interval, &subscriber);
        if (r < 0)
                return r;
        if (interval) {
                interval->subscriber = subscriber;
                interval->next = e->intervals;
                e->intervals = TAKE_PTR(interval);
        }
        return 0;
}

size_t events_n_subscribers(Events *e) {
        return varlink_stream_n_subscribers(e->stream);
}

int events_new(Machine *m, Events **ret) {
        _cleanup_(events_freep) Events *e = calloc(1, sizeof(Events));
        sd_id128_t run;
        int r;

        if (!e)
                return -ENOMEM;
        r = sd_id128_randomize(&run);
        if (r < 0)
                return r;
        (void) sd_id128_to_string(run, e->run);
        e->machine = m;
        for (size_t i = 0; i < ELEMENTSOF(e->sources); i++)
                e->sources[i].events = e;
        r = varlink_stream_new(&e->stream, VARLINK_STREAM_BACKLOG_DEFAULT);
        if (r >= 0)
                r = varlink_stream_remember(e->stream, N_REMEMBERED, ((UINT64_C(1) << _EVENT_TYPE_MAX) - 1) & ~(UINT64_C(1) << EVENT_STATISTICS));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(e);
        return 0;
}

/* --- over a change of processes --- */

static int add_remembered(Events *e, json_object *saved) {
        _cleanup_json_ json_object *events = json_object_new_array();
        json_object *event;
        int r = events ? 0 : -ENOMEM;

        for (size_t i = 0; r >= 0 && (event = varlink_stream_remembered(e->stream, i)); i++)
                r = json_append(events, json_object_get(event));
        return r < 0 ? r : json_add(saved, "events", TAKE_PTR(events));
}

int events_save(Events *e, char **ret) {
        _cleanup_json_ json_object *saved = json_object_new_object();
        const char *text = NULL;
        int r;

        r = saved ? json_add_string(saved, "run", e->run) : -ENOMEM;
        if (r >= 0)
                r = json_add_integer(saved, "forgotten", (int64_t) varlink_stream_forgotten(e->stream));
        if (r >= 0)
                r = json_add_integer(saved, "sequence", (int64_t) varlink_stream_sequence(e->stream));
        if (r >= 0)
                r = add_remembered(e, saved);
        if (r >= 0)
                text = json_object_to_json_string_ext(saved, JSON_C_TO_STRING_PLAIN);
        if (!text)
                return r < 0 ? r : -ENOMEM;
        *ret = strdup(text);
        return *ret ? 0 : -ENOMEM;
}

static int recall(Events *e, json_object *event) {
        const char *name = json_get_string(event, "type", "");

        for (unsigned type = 0; type < _EVENT_TYPE_MAX; type++)
                if (streq(name, event_names[type]))
                        return varlink_stream_recall(e->stream, type, event);
        return -EBADMSG;
}

int events_load(Events *e, const char *text) {
        _cleanup_json_ json_object *saved = NULL;
        json_object *events;
        int64_t forgotten, sequence;
        const char *run;
        int r;

        r = varlink_json_parse(text, strlen(text), SAVED_DEPTH_MAX, &saved);
        if (r < 0)
                return r;
        run = json_get_string(saved, "run", "");
        forgotten = json_get_integer(saved, "forgotten", -1);
        sequence = json_get_integer(saved, "sequence", -1);
        events = json_get(saved, "events", json_type_array);
        if (!events || forgotten < 0 || sequence < forgotten || strlen(run) != sizeof(e->run) - 1)
                return -EBADMSG;
        memcpy(e->run, run, sizeof(e->run));
        varlink_stream_forget(e->stream, (uint64_t) forgotten);
        for (size_t i = 0; i < json_object_array_length(events) && r >= 0; i++)
                r = recall(e, json_object_array_get_idx(events, i));
        /* What comes behind one that is not understood is not known either. */
        if (r < 0)
                varlink_stream_forget(e->stream, (uint64_t) sequence);
        else
                varlink_stream_set_sequence(e->stream, (uint64_t) sequence);
        return r;
}

VarlinkStream *events_stream(Events *e) {
        return e->stream;
}

Events *events_free(Events *e) {
        if (!e)
                return NULL;
        (void) varlink_stream_free(e->stream);
        while (e->intervals)
                (void) interval_free(e->intervals);
        close_sources(e);
        return mfree(e);
}
