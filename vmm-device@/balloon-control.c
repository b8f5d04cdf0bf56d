/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The interface io.vmmd.Balloon: the target and who waits for it, and the events. */

#include "balloon.h"
#include "json-util.h"

/* A balloon that fills tells its size hundreds of times a second. Subscribers get the first change at once, then one in so many, and the last. */
#define ACTUAL_PAUSE_USEC (20 * USEC_PER_MSEC)

static const char *const event_names[BALLOON_EVENTS] = {
        [BALLOON_EVENT_TARGET] = "target",
        [BALLOON_EVENT_ACTUAL] = "actual",
        [BALLOON_EVENT_DEFLATED_ON_OOM] = "deflatedOnOom",
        [BALLOON_EVENT_DRIVER] = "driver",
        [BALLOON_EVENT_WORKING_SET] = "workingSet",
};

static const struct {
        unsigned bit;
        const char *name;
} features[] = {
        { VIRTIO_BALLOON_F_MUST_TELL_HOST, "mustTellHost" },
        { VIRTIO_BALLOON_F_STATS_VQ, "statistics" },
        { VIRTIO_BALLOON_F_DEFLATE_ON_OOM, "deflateOnOom" },
        { VIRTIO_BALLOON_F_FREE_PAGE_HINT, "freePageHinting" },
        { VIRTIO_BALLOON_F_REPORTING, "freePageReporting" },
        { VIRTIO_BALLOON_F_PAGE_POISON, "pagePoison" },
        { VIRTIO_BALLOON_F_WS_REPORTING, "workingSet" },
};

/* ---- the state as JSON ---- */

static json_object *features_json(Balloon *b) {
        json_object *array = json_object_new_array();

        for (size_t i = 0; array && i < ELEMENTSOF(features); i++)
                if (b->driver && device_features(b->device) & (UINT64_C(1) << features[i].bit))
                        (void) json_append(array, json_object_new_string(features[i].name));
        return array;
}

json_object *balloon_state(Balloon *b) {
        _cleanup_json_ json_object *o = json_object_new_object();
        const BalloonKept *k = b->kept;

        if (!o || json_add_integer(o, "target", (int64_t) (k->target * BALLOON_PAGE_SIZE)) < 0 ||
                json_add_integer(o, "actual", (int64_t) (k->actual * BALLOON_PAGE_SIZE)) < 0 ||
                json_add_boolean(o, "driver", b->driver) < 0 || json_add(o, "features", features_json(b)) < 0 ||
                json_add_integer(o, "oomDeflations", (int64_t) k->oom_deflations) < 0 ||
                json_add_integer(o, "reported", (int64_t) (k->reported + k->hinted)) < 0)
                return NULL;
        return TAKE_PTR(o);
}

int balloon_add_state(Balloon *b, json_object *into) {
        return json_add(into, "balloon", balloon_state(b));
}

/* A reply that is nothing but the state; NULL where out of memory. */
static json_object *state_reply(Balloon *b) {
        _cleanup_json_ json_object *o = json_object_new_object();

        return o && balloon_add_state(b, o) >= 0 ? TAKE_PTR(o) : NULL;
}

static int reply_state(Balloon *b, VarlinkCall *call) {
        _cleanup_json_ json_object *reply = state_reply(b);

        return reply ? varlink_call_reply(call, reply) : -ENOMEM;
}

/* ---- events ---- */

static json_object *event_json(Balloon *b, const char *type, json_object *working_set) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        r = o ? json_add_string(o, "type", type) : -ENOMEM;
        if (r >= 0)
                r = balloon_add_state(b, o);
        if (r >= 0 && working_set)
                r = json_add(o, "workingSet", json_object_get(working_set));
        return r < 0 ? NULL : TAKE_PTR(o);
}

void balloon_publish(Balloon *b, BalloonEvent event, json_object *working_set_owned) {
        _cleanup_json_ json_object *working_set = working_set_owned, *o = NULL;

        if (varlink_stream_wants(b->events, event))
                o = event_json(b, event_names[event], working_set);
        /* Every event tells the whole state, so that a later one of its kind makes it needless. Without an object (out of memory, or nobody wants
         * it) it is still counted. */
        if (o || !varlink_stream_wants(b->events, event))
                (void) varlink_stream_publish(b->events, event, "", o);
        b->kept->sequence = varlink_stream_sequence(b->events);
}

static void publish_actual(Balloon *b) {
        b->told_actual = b->kept->actual;
        balloon_publish(b, BALLOON_EVENT_ACTUAL, NULL);
        balloon_set_timer(b->pause, ACTUAL_PAUSE_USEC);
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Balloon *b = userdata;

        if (b->told_actual != b->kept->actual)
                publish_actual(b);
        return 0;
}

void balloon_actual_changed(Balloon *b) {
        bool there = b->kept->actual == b->kept->target;
        int enabled = SD_EVENT_OFF;

        if (there && waiters_any(&b->target_waiters)) {
                _cleanup_json_ json_object *reply = state_reply(b);
                waiters_reply(&b->target_waiters, reply);
        }
        (void) sd_event_source_get_enabled(b->pause, &enabled);
        if (there || enabled == SD_EVENT_OFF)
                publish_actual(b);
}

/* Nobody is there who could answer. Who waits for the target goes on waiting: the next driver will get there. */
static void driver_gone(Balloon *b) {
        balloon_all_cannot(&b->statistics.waiters, "statistics");
        balloon_all_cannot(&b->working_set.waiters, "workingSet");
        balloon_all_cannot(&b->working_set.configure_waiters, "workingSet");
        balloon_all_cannot(&b->hinting.waiters, "freePageHinting");
        b->hinting.id = VIRTIO_BALLOON_CMD_ID_DONE;
        (void) sd_event_source_set_enabled(b->hinting.timer, SD_EVENT_OFF);
}

static int on_look(sd_event_source *source, void *userdata) {
        Balloon *b = userdata;
        bool driver = balloon_has_driver(b);

        if (driver == b->driver)
                return 0;
        b->driver = driver;
        if (!driver)
                driver_gone(b);
        balloon_publish(b, BALLOON_EVENT_DRIVER, NULL);
        return 0;
}

void balloon_look_later(Balloon *b) {
        if (b->look)
                (void) sd_event_source_set_enabled(b->look, SD_EVENT_ONESHOT);
}

/* ---- errors ---- */

static json_object *one_member(const char *name, json_object *value) {
        json_object *o = json_object_new_object();

        (void) json_object_object_add(o, name, value);
        return o;
}

int balloon_error_cannot(VarlinkCall *call, const char *feature) {
        _cleanup_json_ json_object *parameters = one_member("feature", json_object_new_string(feature));

        return varlink_call_error(call, "io.vmmd.Balloon.GuestCannot", parameters);
}

void balloon_all_cannot(Waiters *waiters, const char *feature) {
        _cleanup_json_ json_object *parameters = one_member("feature", json_object_new_string(feature));

        waiters_error(waiters, "io.vmmd.Balloon.GuestCannot", parameters);
}

void balloon_all_timed_out(Waiters *waiters) {
        _cleanup_json_ json_object *parameters = one_member("timeout", json_object_new_int64((int64_t) BALLOON_TIMEOUT_USEC));

        waiters_error(waiters, "io.vmmd.Balloon.GuestDoesNotAnswer", parameters);
}

/* ---- methods ---- */

static int method_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        return reply_state(device_data(userdata), call);
}

static int method_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        _cleanup_json_ json_object *first = event_json(b, "present", NULL);

        /* A size that the others are still to hear of is part of this one's present state, and no event to him. */
        if (b->told_actual != b->kept->actual)
                publish_actual(b);
        return first ? varlink_stream_add(b->events, call, first, (UINT64_C(1) << BALLOON_EVENTS) - 1, NULL, NULL, NULL) : -ENOMEM;
}

static int method_set_target(VarlinkCall *call, json_object *parameters, void *userdata) {
        Balloon *b = device_data(userdata);
        int64_t bytes = json_object_get_int64(json_object_object_get(parameters, "target"));
        bool wait = json_get_boolean(parameters, "wait", false);
        uint32_t pages = (uint32_t) (bytes >> VIRTIO_BALLOON_PFN_SHIFT);

        if (bytes < 0 || bytes >> VIRTIO_BALLOON_PFN_SHIFT > BALLOON_PAGES_MAX)
                return varlink_call_error_invalid_parameter(call, "target");
        if (pages != b->kept->target) {
                b->kept->target = pages;
                if (waiters_any(&b->target_waiters)) {
                        _cleanup_json_ json_object *later = one_member("target",
                                json_object_new_int64((int64_t) (pages * BALLOON_PAGE_SIZE)));
                        waiters_error(&b->target_waiters, "io.vmmd.Balloon.TargetSuperseded", later);
                }
                balloon_publish(b, BALLOON_EVENT_TARGET, NULL);
        }
        /* Also where it is the same: a guest that took pages back for want of memory hands them over again only when told. */
        device_config_changed(b->device);
        if (wait && b->kept->actual != b->kept->target)
                return waiters_add(&b->target_waiters, call);
        return reply_state(b, call);
}

const VarlinkMethod balloon_methods[] = {
        { .name = "Describe", .callback = method_describe },
        { .name = "Subscribe", .callback = method_subscribe, .flags = VARLINK_METHOD_REQUIRES_MORE },
        { .name = "SetTarget", .callback = method_set_target },
        { .name = "GetStatistics", .callback = balloon_method_get_statistics },
        { .name = "GetWorkingSet", .callback = balloon_method_get_working_set },
        { .name = "ConfigureWorkingSet", .callback = balloon_method_configure_working_set },
        { .name = "HintFreePages", .callback = balloon_method_hint_free_pages },
        {},
};

int balloon_control_init(Balloon *b) {
        int r;

        r = varlink_stream_new(&b->events, VARLINK_STREAM_BACKLOG_DEFAULT);
        if (r < 0)
                return r;
        varlink_stream_set_sequence(b->events, b->kept->sequence);
        r = balloon_add_timer(b, &b->pause, on_pause_over);
        if (r >= 0)
                r = sd_event_add_defer(device_event(b->device), &b->look, on_look, b);
        /* After the rings: a driver whose rings come one by one is one. */
        if (r >= 0)
                r = sd_event_source_set_priority(b->look, SD_EVENT_PRIORITY_NORMAL + 20);
        return r < 0 ? r : sd_event_source_set_enabled(b->look, SD_EVENT_OFF);
}

void balloon_control_done(Balloon *b) {
        (void) sd_event_source_disable_unref(b->look);
        (void) sd_event_source_disable_unref(b->pause);
        waiters_done(&b->target_waiters);
        (void) varlink_stream_free(b->events);
}
