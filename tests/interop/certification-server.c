/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* certification-server PATH COMMAND [ARGUMENT…]: serves org.varlink.certification at the socket PATH while COMMAND runs, with our Varlink
 * server: what a client of another implementation says to it is understood as it was meant, and the other way round. */

#include <stdio.h>
#include <sys/random.h>

#include "json-util.h"
#include "serve.h"

extern const char varlink_text_org_varlink_certification[];

#define MORE_REPLIES 10
/* More clients at the same time do not matter; who never says End is forgotten for a later one. */
#define CLIENTS_MAX 16

#define STRUCT "\"bool\":false,\"int\":2,\"float\":3.141592653589793,\"string\":\"a lot of string\""
#define MAP "{\"foo\":\"Foo\",\"bar\":\"Bar\"}"
#define SET "{\"one\":{},\"two\":{},\"three\":{}}"
#define REPLY(n) "\"Reply number " n "\""

/* What each call is answered; what the next one has to say besides the client's identity. */
typedef struct Step {
        const char *method, *answer;
} Step;
static const Step steps[] = {
        { "Start", "{}" },
        { "Test01", "{\"bool\":true}" },
        { "Test02", "{\"int\":1}" },
        { "Test03", "{\"float\":1.0}" },
        { "Test04", "{\"string\":\"ping\"}" },
        { "Test05", "{" STRUCT "}" },
        { "Test06", "{\"struct\":{" STRUCT "}}" },
        { "Test07", "{\"map\":" MAP "}" },
        { "Test08", "{\"set\":" SET "}" },
        { "Test09", "{\"mytype\":{\"object\":{\"method\":\"org.varlink.certification.Test09\",\"parameters\":{\"map\":" MAP "}},"
                    "\"enum\":\"two\",\"struct\":{\"first\":1,\"second\":\"2\"},\"array\":[\"one\",\"two\",\"three\"],"
                    "\"dictionary\":" MAP ",\"stringset\":" SET ",\"nullable\":null,\"nullable_array_struct\":null,"
                    "\"interface\":{\"foo\":[null,{\"foo\":\"foo\",\"bar\":\"bar\"},null,{\"one\":\"foo\",\"two\":\"bar\"}],"
                    "\"anon\":{\"foo\":true,\"bar\":false}}}}" },
        { "Test10", "{\"last_more_replies\":[" REPLY("1") "," REPLY("2") "," REPLY("3") "," REPLY("4") "," REPLY("5") "," REPLY("6") ","
                    REPLY("7") "," REPLY("8") "," REPLY("9") "," REPLY("10") "]}" },
        { "Test11", "{}" },
        { "End", "{\"all_ok\":true}" },
};

typedef struct Client {
        char id[33];
        size_t step; /* the one whose turn it is */
} Client;

static Client clients[CLIENTS_MAX];
static size_t next_client;

static Client *find_client(const char *id) {
        for (size_t i = 0; i < CLIENTS_MAX; i++)
                if (clients[i].step > 0 && streq(clients[i].id, id))
                        return &clients[i];
        return NULL;
}

static bool same(json_object *a, json_object *b);

/* Each member of one is in the other; a member that is null need not be there. */
static bool covers(json_object *a, json_object *b) {
        json_object_object_foreach(a, key, value)
                if (!same(value, json_object_object_get(b, key)))
                        return false;
        return true;
}

static bool same(json_object *a, json_object *b) {
        enum json_type ta = json_object_get_type(a), tb = json_object_get_type(b);

        /* JSON knows one kind of number only. */
        if ((ta == json_type_int || ta == json_type_double) && (tb == json_type_int || tb == json_type_double))
                return json_object_get_double(a) == json_object_get_double(b);
        if (ta != tb)
                return false;
        if (ta == json_type_object)
                return covers(a, b) && covers(b, a);
        if (ta != json_type_array)
                return json_object_equal(a, b);
        if (json_object_array_length(a) != json_object_array_length(b))
                return false;
        for (size_t i = 0; i < json_object_array_length(a); i++)
                if (!same(json_object_array_get_idx(a, i), json_object_array_get_idx(b, i)))
                        return false;
        return true;
}

static int start(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        Client *client = &clients[next_client++ % CLIENTS_MAX];
        uint8_t random[16];
        int r;

        if (getrandom(random, sizeof(random), 0) != sizeof(random))
                return -EIO;
        for (size_t i = 0; i < sizeof(random); i++)
                (void) sprintf(client->id + 2 * i, "%02x", random[i]);
        client->step = 1;
        r = json_add_string(reply, "client_id", client->id);
        return r < 0 ? r : varlink_call_reply(call, reply);
}

/* What the call is, as the client should have said it, or did. */
static json_object *describe_call(const char *method, json_object *parameters, const char *flag) {
        json_object *o = json_object_new_object();

        if (json_add_string(o, "method", method) < 0 || json_add(o, "parameters", json_object_get(parameters)) < 0 ||
                (flag && json_add_boolean(o, flag, true) < 0)) {
                (void) json_object_put(o);
                return NULL;
        }
        return o;
}

static int refuse(VarlinkCall *call, json_object *expected, const char *flag) {
        _cleanup_json_ json_object *p = json_object_new_object();
        const char *sent = varlink_call_is_oneway(call) ? "oneway" : varlink_call_wants_more(call) ? "more" : NULL;
        int r;

        r = json_add(p, "wants", describe_call(varlink_call_method(call), expected, flag));
        if (r >= 0)
                r = json_add(p, "got", describe_call(varlink_call_method(call), varlink_call_parameters(call), sent));
        return r < 0 ? r : varlink_call_error(call, "org.varlink.certification.CertificationError", p);
}

static int reply_often(VarlinkCall *call) {
        int r = 0;

        for (unsigned i = 1; i <= MORE_REPLIES && r >= 0; i++) {
                _cleanup_json_ json_object *reply = json_object_new_object();
                char text[32];

                (void) snprintf(text, sizeof(text), "Reply number %u", i);
                r = json_add_string(reply, "string", text);
                if (r >= 0)
                        r = i < MORE_REPLIES ? varlink_call_reply_continues(call, reply) : varlink_call_reply(call, reply);
        }
        return r;
}

static int test(VarlinkCall *call, json_object *parameters, void *userdata) {
        const char *method = strrchr(varlink_call_method(call), '.') + 1;
        const char *flag = streq(method, "Test10") ? "more" : streq(method, "Test11") ? "oneway" : NULL;
        Client *client = find_client(json_get_string(parameters, "client_id", ""));
        _cleanup_json_ json_object *expected = NULL, *answer = NULL;

        if (!client || !streq(steps[client->step].method, method))
                return varlink_call_error(call, "org.varlink.certification.ClientIdError", NULL);
        expected = json_tokener_parse(steps[client->step - 1].answer);
        answer = json_tokener_parse(steps[client->step].answer);
        if (!expected || !answer || json_add_string(expected, "client_id", client->id) < 0)
                return -ENOMEM;
        if (!same(parameters, expected) || varlink_call_wants_more(call) != streq_ptr(flag, "more") ||
                varlink_call_is_oneway(call) != streq_ptr(flag, "oneway"))
                return refuse(call, expected, flag);

        client->step = client->step + 1 < ELEMENTSOF(steps) ? client->step + 1 : 0;
        if (streq(method, "Test10"))
                return reply_often(call);
        return varlink_call_reply(call, answer);
}

static const VarlinkMethod methods[] = {
        { "Start", start, 0, 0 },  { "Test01", test, 0, 0 }, { "Test02", test, 0, 0 }, { "Test03", test, 0, 0 },
        { "Test04", test, 0, 0 },  { "Test05", test, 0, 0 }, { "Test06", test, 0, 0 }, { "Test07", test, 0, 0 },
        { "Test08", test, 0, 0 },  { "Test09", test, 0, 0 }, { "Test10", test, 0, 0 }, { "Test11", test, 0, 0 },
        { "End", test, 0, 0 },     {},
};

int main(int argc, char **argv) {
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        sd_event *event = NULL;
        int r;

        if (argc < 3) {
                (void) fprintf(stderr, "usage: certification-server PATH COMMAND [ARGUMENT...]\n");
                return EXIT_FAILURE;
        }
        r = sd_event_default(&event);
        if (r >= 0)
                r = varlink_server_new(&server, event);
        if (r >= 0)
                r = varlink_server_set_info(server, "vmmd", "certification-server", "1", "https://varlink.org/");
        if (r >= 0)
                r = varlink_server_add_interface(server, varlink_text_org_varlink_certification, methods, NULL);
        if (r < 0)
                (void) fprintf(stderr, "certification-server: %s\n", strerror(-r));
        else
                r = serve_while(server, event, argv[1], argv + 2);
        server = varlink_server_free(server);
        sd_event_unref(event);
        return r < 0 ? EXIT_FAILURE : r;
}
