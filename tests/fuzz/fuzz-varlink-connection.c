/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A connection from end to end, over a socket pair: the input is what a peer does, step by step, and what the server's owner does
 * meanwhile. The peer must get valid messages only, and of events each one or the news that he missed it. */

#include <sys/socket.h>

#include "json-util.h"
#include "message.h"
#include "server.h"
#include "stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] =
        "interface a.b\n"
        "type T (n: ?int, t: ?[]T, m: [string]string)\n"
        "method E(v: ?T, s: ?string, e: ?(x, y)) -> (v: ?T, s: ?string, e: ?(x, y))\n"
        "method L() -> ()\n"
        "method S() -> (value: ?int, sequence: int, missed: int)\n"
        "method G() -> ()\n"
        "method U() -> ()\n"
        "method F(i: int) -> ()\n";

typedef struct World {
        sd_event *event;
        VarlinkServer *server;
        VarlinkStream *stream;
        VarlinkCall *later; /* kept for a while */
        VarlinkCall *asked; /* by the authorizer */
        uint64_t published; /* since the peer subscribed */
        bool subscribed, upgraded;
} World;

static int echo(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, parameters);
}

static int later(VarlinkCall *call, json_object *parameters, void *userdata) {
        World *w = userdata;

        (void) varlink_call_unref(w->later);
        w->later = varlink_call_ref(call);
        return 0;
}

static void on_gone(VarlinkSubscriber *subscriber, void *userdata) {
        ((World *) userdata)->subscribed = false;
}

static int subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        World *w = userdata;
        int r;

        /* At the end, when what comes before it in the connection is given up */
        if (!w->stream)
                return -ENODEV;
        r = varlink_stream_add(w->stream, call, NULL, UINT64_MAX, on_gone, w, NULL);
        if (r >= 0) {
                w->subscribed = true;
                w->published = 0;
        }
        return r;
}

static void on_upgraded(int fd, const void *data, size_t size, void *userdata) {
        ((World *) userdata)->upgraded = true;
        (void) safe_close(fd);
}

static int upgrade(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply_upgrade(call, NULL, on_upgraded, userdata);
}

static int take(VarlinkCall *call, json_object *parameters, void *userdata) {
        int fd = varlink_call_take_fd(call, json_get_integer(parameters, "i", -1));

        if (fd < 0)
                return varlink_call_error_invalid_parameter(call, "i");
        (void) safe_close(fd);
        return varlink_call_reply(call, NULL);
}

static int authorize(VarlinkCall *call, unsigned right, void *userdata) {
        World *w = userdata;

        (void) varlink_call_unref(w->asked);
        w->asked = varlink_call_ref(call);
        return -EINPROGRESS;
}

static const VarlinkMethod methods[] = {
        { "E", echo, 0, 0 },
        { "L", later, 0, 0 },
        { "S", subscribe, VARLINK_METHOD_REQUIRES_MORE, 0 },
        { "G", echo, 0, 1 },
        { "U", upgrade, VARLINK_METHOD_UPGRADES, 0 },
        { "F", take, 0, 0 },
        {},
};

static int world_open(World *w) {
        int r;

        r = sd_event_new(&w->event);
        if (r >= 0)
                r = varlink_server_new(&w->server, w->event);
        if (r >= 0)
                r = varlink_server_add_interface(w->server, text, methods, w);
        if (r >= 0)
                varlink_server_set_authorize(w->server, authorize, w);
        return r;
}

static void pump(World *w) {
        for (unsigned i = 0, idle = 0; i < 256 && idle < 2; i++)
                idle = sd_event_run(w->event, 0) > 0 ? 0 : idle + 1;
}

/* What the peer got: each a message as any client of ours would take it. Counts events and what was missed of them. */
static bool hear(VarlinkChannel *peer, uint64_t *told) {
        VarlinkMessage m = {};
        int r;

        do {
                r = varlink_channel_read(peer);
                while (varlink_channel_next(peer, &m) > 0) {
                        json_object *parameters = json_get(m.json, "parameters", json_type_object);

                        if (!parameters && !json_get(m.json, "error", json_type_string))
                                abort();
                        if (json_get(parameters, "value", json_type_int))
                                *told += 1 + (uint64_t) json_get_integer(parameters, "missed", 0);
                        varlink_message_done(&m);
                }
                if (varlink_channel_is_partial(peer) && r > 0)
                        continue;
        } while (r > 0);
        return r == -EAGAIN;
}

static void publish(World *w, unsigned n) {
        for (unsigned i = 0; i < n; i++) {
                _cleanup_json_ json_object *event = json_object_new_object();

                if (json_add_integer(event, "value", i) < 0 || varlink_stream_publish(w->stream, i % 64, i % 3 ? "k" : NULL, event) < 0)
                        abort();
                w->published++;
        }
}

/* Says the next `n` bytes, with so many descriptors. Returns how many bytes that were. */
static size_t say(int fd, const uint8_t *data, size_t size, size_t n, size_t n_fds) {
        int fds[17];

        n = MIN(n, size);
        for (size_t i = 0; i < n_fds; i++)
                fds[i] = STDERR_FILENO;
        if (n > 0)
                (void) send_with_fds(fd, data, n, fds, n_fds);
        return n;
}

static void step(World *w, VarlinkChannel *peer, uint8_t op, uint8_t argument) {
        switch (op % 8) {
        case 1:
                pump(w);
                break;
        case 2:
                if (w->subscribed)
                        publish(w, argument);
                break;
        case 3:
                if (w->later)
                        (void) (argument % 2 ? varlink_call_reply(w->later, NULL) : varlink_call_error_errno(w->later, -EIO));
                w->later = varlink_call_unref(w->later);
                break;
        case 4:
                if (w->asked)
                        (void) (argument % 2 ? varlink_call_admit(w->asked) : varlink_call_error_denied(w->asked, "%u", argument));
                w->asked = varlink_call_unref(w->asked);
                break;
        case 5:
                (void) shutdown(peer->fd, SHUT_WR);
                break;
        case 6:
                if (argument % 2)
                        (void) varlink_stream_close(w->stream, NULL);
                break;
        default:
                break;
        }
}

/* Each step is a byte that says what is done, and one that says how much of it. */
static void play(World *w, VarlinkChannel *peer, const uint8_t *data, size_t size) {
        uint64_t told = 0;

        for (size_t i = 0; i + 2 <= size;) {
                uint8_t op = data[i], argument = data[i + 1];

                i += 2;
                if (op % 8 == 0)
                        i += say(peer->fd, data + i, size - i, argument, op / 8 % 16 == 0 ? op / 128 * 17 : op / 8 % 16 % 3);
                else if (op % 8 == 7)
                        (void) hear(peer, &told);
                else
                        step(w, peer, op, argument);
        }
        pump(w);
        for (unsigned i = 0; i < 256 && hear(peer, &told); i++) {
                uint64_t before = told;
                pump(w);
                if (!hear(peer, &told) || told == before)
                        break;
        }
        /* Who subscribed last and is still there knows of every event; who subscribed before was told of those then. */
        if (w->subscribed && told < w->published)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static World world;
        VarlinkChannel peer;
        World *w = &world;
        int fds[2], buffer = 1;

        if (!w->event && world_open(w) < 0)
                abort();
        if (size > KIB(16) || varlink_stream_new(&w->stream, 4) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
                return 0;
        w->subscribed = w->upgraded = false;
        /* Little room, so that being behind is soon. */
        (void) setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
        if (varlink_channel_open(&peer, fds[0]) >= 0 && varlink_server_adopt_connection(w->server, fds[1]) >= 0) {
                play(w, &peer, data, size);
                varlink_channel_done(&peer);
        }
        w->stream = varlink_stream_free(w->stream);
        w->later = varlink_call_unref(w->later);
        w->asked = varlink_call_unref(w->asked);
        pump(w);
        if (varlink_server_n_connections(w->server) > 0)
                abort();
        return 0;
}
