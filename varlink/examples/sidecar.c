/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* sidecar MACHINE|SOCKET: a sidecar of a machine by sd-varlink of libsystemd 257 or later (cc sidecar.c -lsystemd). It follows what
 * happens to the machine and its balloon until the machine ends. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-event.h>
#include <systemd/sd-json.h>
#include <systemd/sd-varlink.h>

static const char *string_of(sd_json_variant *object, const char *field) {
        sd_json_variant *v = sd_json_variant_by_key(object, field);
        return v && sd_json_variant_is_string(v) ? sd_json_variant_string(v) : "-";
}

static unsigned long long number_of(sd_json_variant *object, const char *field) {
        sd_json_variant *v = sd_json_variant_by_key(object, field);
        return v ? sd_json_variant_unsigned(v) : 0;
}

static int describe(const char *address) {
        sd_varlink *link = NULL;
        sd_json_variant *reply = NULL;
        const char *error_id = NULL;
        int r;

        r = sd_varlink_connect_address(&link, address);
        if (r >= 0)
                /* The reply and the error's name belong to the link. */
                r = sd_varlink_call(link, "io.vmmd.Machine.Describe", NULL, &reply, &error_id);
        if (r >= 0 && error_id) {
                (void) fprintf(stderr, "%s\n", error_id);
                r = -EREMOTEIO;
        }
        if (r >= 0)
                (void) printf("%s is %s and has %llu MiB\n", string_of(reply, "name"), string_of(reply, "state"),
                        number_of(reply, "memory") >> 20);
        sd_varlink_unref(link);
        return r;
}

static void print_event(sd_json_variant *event) {
        sd_json_variant *balloon = sd_json_variant_by_key(event, "balloon");
        const char *type = string_of(event, "type");

        if (number_of(event, "missed") > 0)
                (void) printf("missed %llu events\n", number_of(event, "missed"));
        if (strcmp(type, "present") == 0)
                (void) printf("present: %s\n", string_of(sd_json_variant_by_key(event, "present"), "state"));
        else if (strcmp(type, "machineState") == 0)
                (void) printf("now %s: %s\n", string_of(event, "state"), string_of(event, "reason"));
        else
                (void) printf("%s: %s %llu of %llu\n", type, string_of(balloon, "device"), number_of(balloon, "actual"),
                        number_of(balloon, "target"));
        (void) fflush(stdout);
}

/* Called for each reply, and once more, by a local error, where the connection breaks. */
static int on_reply(sd_varlink *link, sd_json_variant *parameters, const char *error_id, sd_varlink_reply_flags_t flags, void *userdata) {
        sd_event *event = sd_varlink_get_event(link);

        if (error_id) {
                (void) fprintf(stderr, "%s\n", error_id);
                return sd_event_exit(event, EXIT_FAILURE);
        }
        print_event(parameters);
        return flags & SD_VARLINK_REPLY_CONTINUES ? 0 : sd_event_exit(event, EXIT_SUCCESS);
}

static int follow(const char *address, sd_event *event) {
        sd_json_variant *parameters = NULL;
        sd_varlink *link = NULL;
        int r;

        r = sd_json_parse("{\"filter\":[\"machineState\",\"balloonTarget\",\"balloonActual\"]}", 0, &parameters, NULL, NULL);
        if (r >= 0)
                r = sd_varlink_connect_address(&link, address);
        if (r >= 0)
                /* What happens next may be long in coming. */
                r = sd_varlink_set_relative_timeout(link, UINT64_MAX);
        if (r >= 0)
                r = sd_varlink_attach_event(link, event, 0);
        if (r >= 0)
                r = sd_varlink_bind_reply(link, on_reply);
        if (r >= 0)
                r = sd_varlink_observe(link, "io.vmmd.Machine.SubscribeEvents", parameters);
        if (r >= 0)
                r = sd_event_loop(event);
        sd_varlink_unref(link);
        sd_json_variant_unref(parameters);
        return r;
}

int main(int argc, char **argv) {
        sd_event *event = NULL;
        char *address;
        int r;

        if (argc != 2) {
                (void) fprintf(stderr, "usage: %s MACHINE|SOCKET\n", argv[0]);
                return EXIT_FAILURE;
        }
        r = argv[1][0] == '/' ? asprintf(&address, "%s", argv[1]) : asprintf(&address, "/run/vmm/%s/control", argv[1]);
        if (r < 0)
                return EXIT_FAILURE;
        r = describe(address);
        if (r >= 0)
                r = sd_event_default(&event);
        if (r >= 0)
                r = follow(address, event);
        sd_event_unref(event);
        free(address);
        if (r < 0)
                (void) fprintf(stderr, "%s: %s\n", argv[1], strerror(-r));
        return r < 0 ? EXIT_FAILURE : r;
}
