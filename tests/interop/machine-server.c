/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* machine-server PATH COMMAND [ARGUMENT…]: something that looks like a machine from outside, at the socket PATH while COMMAND runs. A
 * subscriber sees one short life: the balloon's target, the balloon, the end. */

#include <stdio.h>

#include "interfaces.h"
#include "json-util.h"
#include "serve.h"
#include "stream.h"

#define BALLOON(target, actual)                                                                                \
        "{\"device\":\"balloon\",\"target\":" target ",\"actual\":" actual ",\"driver\":true,\"features\":[\"statistics\",\"deflateOnOom\"]," \
        "\"oomDeflations\":0,\"reported\":0}"
#define SNAPSHOT "\"state\":\"running\",\"since\":1700000000000000,\"guestReady\":true,\"devices\":[],\"balloons\":[" BALLOON("0", "0") "]"

typedef struct Machine {
        VarlinkStream *stream;
        sd_event_source *life;
} Machine;

enum { MACHINE_STATE, BALLOON_TARGET, BALLOON_ACTUAL };

static int reply_text(VarlinkCall *call, const char *text) {
        _cleanup_json_ json_object *reply = json_tokener_parse(text);
        return reply ? varlink_call_reply(call, reply) : -ENOMEM;
}

static int on_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        return reply_text(call,
                "{\"name\":\"demo\",\"vcpus\":2,\"memory\":536870912,\"pid\":77,\"version\":\"1\",\"resets\":0,\"exits\":5,\"firstEntry\":7,"
                "\"commandLine\":\"quiet\",\"lastProblem\":null," SNAPSHOT "}");
}

static int publish(Machine *m, unsigned kind, const char *text) {
        _cleanup_json_ json_object *event = json_tokener_parse(text);
        return event ? varlink_stream_publish(m->stream, kind, NULL, event) : -ENOMEM;
}

static int on_life(sd_event_source *source, void *userdata) {
        _cleanup_json_ json_object *last =
                json_tokener_parse("{\"type\":\"machineState\",\"time\":1700000000000003,\"state\":\"stopping\",\"reason\":\"It was asked to.\"}");
        Machine *m = userdata;
        int r;

        r = publish(m, BALLOON_TARGET, "{\"type\":\"balloonTarget\",\"time\":1700000000000001,\"balloon\":" BALLOON("1048576", "0") "}");
        if (r >= 0)
                r = publish(m, BALLOON_ACTUAL, "{\"type\":\"balloonActual\",\"time\":1700000000000002,\"balloon\":" BALLOON("1048576", "1048576") "}");
        return r < 0 ? r : varlink_stream_close(m->stream, last);
}

static uint64_t wanted(json_object *filter) {
        uint64_t kinds = 0;

        if (!filter || json_object_array_length(filter) == 0)
                return UINT64_MAX;
        for (size_t i = 0; i < json_object_array_length(filter); i++) {
                const char *type = json_object_get_string(json_object_array_get_idx(filter, i));
                kinds |= streq(type, "machineState") ? 1 << MACHINE_STATE : streq(type, "balloonTarget") ? 1 << BALLOON_TARGET :
                        streq(type, "balloonActual") ? 1 << BALLOON_ACTUAL : 0;
        }
        return kinds;
}

static int on_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *first =
                json_tokener_parse("{\"type\":\"present\",\"time\":1700000000000000,\"present\":{" SNAPSHOT "}}");
        Machine *m = userdata;
        int r;

        r = varlink_stream_add(m->stream, call, first, wanted(json_get(parameters, "filter", json_type_array)), NULL, NULL, NULL);
        return r < 0 ? r : sd_event_source_set_enabled(m->life, SD_EVENT_ONESHOT);
}

static int on_set_balloon_target(VarlinkCall *call, json_object *parameters, void *userdata) {
        int64_t target = json_get_integer(parameters, "target", -1);
        char text[512];

        if (target < 0 || target > 536870912)
                return varlink_call_error_invalid_parameter(call, "target");
        (void) snprintf(text, sizeof(text), "{\"balloon\":{\"device\":\"balloon\",\"target\":%lld,\"actual\":0,\"driver\":true,\"features\":[],"
                "\"oomDeflations\":0,\"reported\":0}}", (long long) target);
        return reply_text(call, text);
}

static int on_power_off(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_error_denied(call, "%s", "Only on Sundays.");
}

static int on_reset(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_error(call, "io.systemd.InteractiveAuthenticationRequired", NULL);
}

static int on_terminate(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, NULL);
}

static const VarlinkMethod methods[] = {
        { "Describe", on_describe, 0, 0 },
        { "SubscribeEvents", on_subscribe, VARLINK_METHOD_REQUIRES_MORE, 0 },
        { "SetBalloonTarget", on_set_balloon_target, 0, 0 },
        { "PowerOff", on_power_off, 0, 0 },
        { "Reset", on_reset, 0, 0 },
        { "Terminate", on_terminate, 0, 0 },
        {},
};

int main(int argc, char **argv) {
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        Machine m = {};
        sd_event *event = NULL;
        int r;

        if (argc < 3) {
                (void) fprintf(stderr, "usage: machine-server PATH COMMAND [ARGUMENT...]\n");
                return EXIT_FAILURE;
        }
        r = sd_event_default(&event);
        if (r >= 0)
                r = sd_event_add_defer(event, &m.life, on_life, &m);
        if (r >= 0)
                r = sd_event_source_set_enabled(m.life, SD_EVENT_OFF);
        if (r >= 0)
                r = varlink_stream_new(&m.stream, 0);
        if (r >= 0)
                r = varlink_server_new(&server, event);
        if (r >= 0)
                r = varlink_server_set_info(server, "vmmd", "machine-server", "1", "https://example.org/");
        if (r >= 0)
                r = varlink_server_add_interface(server, varlink_text_io_vmmd_Machine, methods, &m);
        if (r < 0)
                (void) fprintf(stderr, "machine-server: %s\n", strerror(-r));
        else
                r = serve_while(server, event, argv[1], argv + 2);
        m.stream = varlink_stream_free(m.stream);
        server = varlink_server_free(server);
        sd_event_source_disable_unref(m.life);
        sd_event_unref(event);
        return r < 0 ? EXIT_FAILURE : r;
}
