/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* events: what a machine does, a line for each thing that happens. */

#include <inttypes.h>
#include <time.h>

#include "balloon.h"
#include "machine.h"
#include "output.h"

/* The interface's least one. */
#define STATISTICS_INTERVAL_MIN (100 * USEC_PER_MSEC)

typedef struct Watch {
        const Options *options;
        const char *machine;
        /* What we had, to go on from where the connection ends without a last word. */
        char *run;
        int64_t sequence;
        bool returning; /* we had something, and wait for the first reply of another connection */
} Watch;

static const char *const event_types[] = {
        "machineState", "guestReady", "guestStatus", "panic", "deviceState", "deviceFailed", "deviceRestarted", "deviceAttached", "deviceDetached",
        "balloonTarget", "balloonActual", "balloonDeflatedOnOom", "workingSet", "statistics",
};

/* ---- one event in words ---- */

static void print_time(int64_t realtime_usec) {
        time_t seconds = (time_t) (realtime_usec / (int64_t) USEC_PER_SEC);
        char text[64];
        struct tm tm;

        if (!localtime_r(&seconds, &tm) || strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) == 0)
                (void) printf("@%" PRId64 "us", realtime_usec);
        else
                (void) printf("%s.%03" PRId64, text, realtime_usec % (int64_t) USEC_PER_SEC / (int64_t) USEC_PER_MSEC);
}

static void print_balloon(json_object *balloon) {
        _cleanup_free_ char *summary = balloon_summary(balloon);

        (void) printf("%s: %s", json_get_string(balloon, "device", "?"), summary ?: "?");
}

/* ", 1 active, 2 failed": how many devices are in which state. */
static void print_device_states(json_object *devices) {
        static const char *const states[] = { "connecting", "ready", "active", "failed" };
        size_t n = devices ? json_object_array_length(devices) : 0;

        for (size_t s = 0; s < ELEMENTSOF(states); s++) {
                size_t count = 0;

                for (size_t i = 0; i < n; i++)
                        if (streq(json_get_string(json_object_array_get_idx(devices, i), "state", ""), states[s]))
                                count++;
                if (count > 0)
                        (void) printf(", %zu %s %s", count, count == 1 ? "device" : "devices", states[s]);
        }
}

static void print_present(json_object *event) {
        json_object *present = json_get(event, "present", json_type_object),
                    *balloons = json_get(present, "balloons", json_type_array);
        _cleanup_free_ char *since = format_time((uint64_t) json_get_integer(present, "since", 0));

        (void) printf("%s since %s", json_get_string(present, "state", "?"), since ?: "?");
        if (json_get_boolean(present, "guestReady", false))
                (void) printf(", guest ready");
        print_device_states(json_get(present, "devices", json_type_array));
        for (size_t i = 0; balloons && i < json_object_array_length(balloons); i++) {
                (void) printf(", ");
                print_balloon(json_object_array_get_idx(balloons, i));
        }
}

static void print_working_set(json_object *event) {
        json_object *buckets = json_get(event, "workingSet", json_type_array);

        (void) printf("%s:", json_get_string(event, "device", "?"));
        for (size_t i = 0; buckets && i < json_object_array_length(buckets); i++) {
                json_object *bucket = json_object_array_get_idx(buckets, i);
                int64_t bytes = 0, files = json_get_integer(bucket, "fileBytes", 0),
                        anonymous = json_get_integer(bucket, "anonymousBytes", 0), age = json_get_integer(bucket, "age", -1);
                _cleanup_free_ char *text = NULL;

                if (files < 0 || anonymous < 0 || __builtin_add_overflow(files, anonymous, &bytes))
                        bytes = INT64_MAX;
                text = format_bytes((uint64_t) bytes);
                if (age < 0)
                        (void) printf(" older %s", text ?: "?");
                else
                        (void) printf(" %" PRId64 " ms %s,", age, text ?: "?");
        }
}

static void print_statistics(json_object *event) {
        static const struct {
                const char *key, *words;
        } shown[] = {
                { "totalMemory", "total" }, { "availableMemory", "available" }, { "freeMemory", "free" }, { "diskCaches", "caches" },
        };
        json_object *statistics = json_get(event, "statistics", json_type_object);
        const char *separator = ": ";

        (void) printf("%s", json_get_string(event, "device", "?"));
        for (size_t i = 0; i < ELEMENTSOF(shown); i++) {
                int64_t value = json_get_integer(statistics, shown[i].key, -1);
                _cleanup_free_ char *text = value < 0 ? NULL : format_bytes((uint64_t) value);

                if (!text)
                        continue;
                (void) printf("%s%s %s", separator, shown[i].words, text);
                separator = ", ";
        }
}

/* "root: failed (it went away)", "paused", whichever fields there are. */
static void print_states(json_object *event) {
        const char *device = json_get_string(event, "device", NULL),
                   *state = json_get_string(event, device ? "deviceState" : "state", NULL);
        _cleanup_free_ char *reason = json_dup_string(event, "reason");

        (void) printf("%s%s%s", device ?: "", device && (state || reason) ? ": " : "", state ?: "");
        if (reason)
                (void) printf(state ? " (%s)" : "%s", make_printable(reason));
}

static void print_guest_ready(json_object *event) {
        _cleanup_free_ char *reason = json_dup_string(event, "reason");

        (void) printf("%s", reason ? make_printable(reason) : "all drivers of the guest are at work");
}

static void print_event(json_object *event) {
        const char *type = json_get_string(event, "type", "?");
        int64_t missed = json_get_integer(event, "missed", 0);
        json_object *balloon = json_get(event, "balloon", json_type_object);

        if (missed > 0)
                (void) printf("%23s  %" PRId64 " events were missed\n", "", missed);
        print_time(json_get_integer(event, "time", 0));
        (void) printf("  %-20s  ", type);
        if (streq(type, "present"))
                print_present(event);
        else if (streq(type, "workingSet"))
                print_working_set(event);
        else if (streq(type, "statistics"))
                print_statistics(event);
        else if (streq(type, "guestReady"))
                print_guest_ready(event);
        else if (balloon)
                print_balloon(balloon);
        else
                print_states(event);
        (void) putchar('\n');
}

/* ---- the command ---- */

/* What is null says nothing. */
static int print_event_json(const Options *o, json_object *event) {
        /* One object after another is one a line, unless somebody wants it otherwise. */
        Options mode = { .json = o->json == JSON_PRETTY ? JSON_PRETTY : JSON_SHORT };

        return print_json(&mode, event);
}

/* The first reply of a connection that takes another's place says nothing new, but where there is a gap. */
static int returned(Watch *w, json_object *reply, bool *ret_show) {
        const char *run = json_get_string(reply, "run", NULL);
        bool same = run && w->run && streq(run, w->run);
        char *copy = run ? strdup(run) : NULL;

        if (run && !copy)
                return -ENOMEM;
        *ret_show = !w->returning || !same || json_get_integer(reply, "missed", 0) > 0;
        if (w->returning && !same && w->options->json == JSON_OFF)
                (void) printf("%23s  the machine was started again, and what happened meanwhile is not known\n", "");
        free(w->run);
        w->run = copy;
        w->returning = false;
        return 0;
}

static int on_event(json_object *reply, void *userdata) {
        Watch *w = userdata;
        bool show = true;
        int r = 0;

        if (streq(json_get_string(reply, "type", ""), "present"))
                r = returned(w, reply, &show);
        if (r < 0)
                return r;
        w->sequence = json_get_integer(reply, "sequence", 0);
        if (!show)
                return 0;
        if (w->options->json != JSON_OFF)
                r = print_event_json(w->options, reply);
        else
                print_event(reply);
        if (fflush(stdout) != 0 && !output_is_gone())
                return -errno;
        if (r < 0)
                return r;
        return output_is_gone() || !option_given(w->options, OPTION_FOLLOW);
}

static int parse_filter(const char *text, json_object **ret) {
        _cleanup_json_ json_object *array = json_object_new_array();
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy, *word;
        int r;

        if (!array || !copy)
                return -ENOMEM;
        while ((word = strsep(&rest, ","))) {
                size_t i = 0;

                while (i < ELEMENTSOF(event_types) && !streq(event_types[i], word))
                        i++;
                if (i == ELEMENTSOF(event_types)) {
                        complain("--filter: there is no type of event '%s'; there are:", word);
                        for (i = 0; i < ELEMENTSOF(event_types); i++)
                                (void) fprintf(stderr, "  %s\n", event_types[i]);
                        return -EINVAL;
                }
                r = json_append(array, json_object_new_string(word));
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(array);
        return 0;
}

static int make_parameters(const Options *o, json_object **ret) {
        _cleanup_json_ json_object *p = json_object_new_object();
        json_object *filter = NULL;
        int r = 0;

        if (!p)
                return -ENOMEM;
        if (o->filter) {
                r = parse_filter(o->filter, &filter);
                if (r >= 0)
                        r = json_add(p, "filter", filter);
        }
        if (r >= 0 && option_given(o, OPTION_STATISTICS)) {
                if (o->statistics_usec < STATISTICS_INTERVAL_MIN || o->statistics_usec > INT64_MAX) {
                        complain("--statistics: at least 100ms.");
                        return -EINVAL;
                }
                r = json_add_integer(p, "statisticsInterval", (int64_t) o->statistics_usec);
        }
        if (r >= 0)
                *ret = TAKE_PTR(p);
        return r;
}

/* vmmd was upgraded, and its connections ended with it; or it died, which the next connection tells. */
static int go_on(Watch *w, json_object *parameters, VarlinkClient **ret, char **ret_problem) {
        json_object *after = json_object_new_object();
        int r;

        if (!after)
                return -ENOMEM;
        r = json_add_string(after, "run", w->run);
        if (r >= 0)
                r = json_add_integer(after, "sequence", w->sequence);
        if (r < 0) {
                (void) json_object_put(after);
                return r;
        }
        r = json_add(parameters, "after", after);
        if (r < 0)
                return r;
        w->returning = true;
        return machine_connect(w->options, w->machine, ret, ret_problem);
}

static int watch(Watch *w, json_object *parameters, char **ret_problem) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        int r;

        r = machine_connect(w->options, w->machine, &client, ret_problem);
        while (r >= 0) {
                r = machine_stream(w->options, TAKE_PTR(client), "SubscribeEvents", parameters, STREAM_MORE, on_event, w, ret_problem);
                if ((r != -ECONNRESET && r != -EPIPE) || !w->run || w->returning || !option_given(w->options, OPTION_FOLLOW))
                        break;
                *ret_problem = mfree(*ret_problem);
                r = go_on(w, parameters, &client, ret_problem);
        }
        return r;
}

int command_events(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *parameters = NULL;
        _cleanup_free_ char *problem = NULL;
        Watch w = { .options = o, .machine = arguments[0] };
        int r;

        r = make_parameters(o, &parameters);
        if (r == -EINVAL)
                return STATUS_USAGE;
        if (r >= 0)
                r = watch(&w, parameters, &problem);
        free(w.run);
        return machine_conclude(w.machine, r, problem);
}
