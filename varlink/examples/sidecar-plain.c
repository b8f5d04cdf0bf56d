/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* sidecar-plain MACHINE|SOCKET: a sidecar of a machine without any Varlink library, which is little: a JSON object and a NUL each
 * way (cc sidecar-plain.c -ljson-c). It follows what happens to the machine and its balloon until the machine ends. */

#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Both ways as a stream of messages; the buffer grows with the longest. */
typedef struct Connection {
        FILE *in, *out;
        char *message;
        size_t size;
} Connection;

static bool connection_open(Connection *c, const char *machine) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd, n;

        n = snprintf(address.sun_path, sizeof(address.sun_path), machine[0] == '/' ? "%s" : "/run/vmm/%s/control", machine);
        if (n < 0 || (size_t) n >= sizeof(address.sun_path))
                return false;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return false;
        c->in = fdopen(fd, "r");
        c->out = fdopen(dup(fd), "w");
        return c->in && c->out;
}

static void connection_close(Connection *c) {
        if (c->in)
                (void) fclose(c->in);
        if (c->out)
                (void) fclose(c->out);
        free(c->message);
}

static bool send_call(Connection *c, const char *call) {
        return fwrite(call, strlen(call) + 1, 1, c->out) == 1 && fflush(c->out) == 0;
}

static const char *string_of(json_object *object, const char *field) {
        json_object *v = json_object_object_get(object, field);
        return v ? json_object_get_string(v) : "-";
}

static long long number_of(json_object *object, const char *field) {
        return (long long) json_object_get_int64(json_object_object_get(object, field));
}

/* The next reply, the caller's to put, and its parameters, borrowed; NULL at the end or where it is an error, which is printed. */
static json_object *receive(Connection *c, json_object **ret_parameters) {
        json_object *reply, *error;

        if (getdelim(&c->message, &c->size, 0, c->in) < 0)
                return NULL;
        reply = json_tokener_parse(c->message);
        if (json_object_object_get_ex(reply, "error", &error)) {
                (void) fprintf(stderr, "%s: %s\n", json_object_get_string(error),
                        json_object_to_json_string(json_object_object_get(reply, "parameters")));
                (void) json_object_put(reply);
                return NULL;
        }
        *ret_parameters = json_object_object_get(reply, "parameters");
        return reply;
}

static void print_event(json_object *event) {
        json_object *balloon = json_object_object_get(event, "balloon");
        const char *type = string_of(event, "type");

        if (number_of(event, "missed") > 0)
                (void) printf("missed %lld events\n", number_of(event, "missed"));
        if (strcmp(type, "present") == 0)
                (void) printf("present: %s\n", string_of(json_object_object_get(event, "present"), "state"));
        else if (strcmp(type, "machineState") == 0)
                (void) printf("now %s: %s\n", string_of(event, "state"), string_of(event, "reason"));
        else
                (void) printf("%s: %s %lld of %lld\n", type, string_of(balloon, "device"), number_of(balloon, "actual"),
                        number_of(balloon, "target"));
        (void) fflush(stdout);
}

/* Calls on one connection are answered in order, so both may be sent at once. */
static bool follow(Connection *c) {
        json_object *reply, *parameters;
        bool continues = true;

        if (!send_call(c, "{\"method\":\"io.vmmd.Machine.Describe\"}") ||
                !send_call(c, "{\"method\":\"io.vmmd.Machine.SubscribeEvents\",\"more\":true,"
                              "\"parameters\":{\"filter\":[\"machineState\",\"balloonTarget\",\"balloonActual\"]}}"))
                return false;
        reply = receive(c, &parameters);
        if (!reply)
                return false;
        (void) printf("%s is %s and has %lld MiB\n", string_of(parameters, "name"), string_of(parameters, "state"),
                number_of(parameters, "memory") >> 20);
        (void) json_object_put(reply);

        while (continues) {
                reply = receive(c, &parameters);
                if (!reply)
                        return false;
                print_event(parameters);
                /* The last one says nothing of others. */
                continues = json_object_get_boolean(json_object_object_get(reply, "continues"));
                (void) json_object_put(reply);
        }
        return true;
}

int main(int argc, char **argv) {
        Connection c = {};
        bool good;

        if (argc != 2) {
                (void) fprintf(stderr, "usage: %s MACHINE|SOCKET\n", argv[0]);
                return EXIT_FAILURE;
        }
        good = connection_open(&c, argv[1]);
        if (!good)
                perror(argv[1]);
        good = good && follow(&c);
        connection_close(&c);
        return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
