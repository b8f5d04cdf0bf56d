/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A peer's bytes, in pieces as a socket might give them, to a stream and on to a server's dispatch. */

#include <fcntl.h>
#include <sys/socket.h>

#include "interfaces.h"
#include "json-util.h"
#include "message.h"
#include "server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        return varlink_call_reply(call, parameters);
}

static const VarlinkMethod methods[] = { { "Describe", describe, 0 }, { "SetConsoleSize", describe, 0 }, {} };

/* The first byte says how large the pieces are. */
static void feed_stream(const uint8_t *data, size_t size, size_t piece) {
        VarlinkStream s;

        if (varlink_stream_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
                return;
        s.message_size = KIB(4);
        for (size_t i = 0; i < size; i += piece) {
                VarlinkMessage m = {};

                if (varlink_stream_feed(&s, data + i, MIN(piece, size - i), NULL, 0) < 0)
                        break;
                while (varlink_stream_next(&s, &m) > 0) {
                        if (varlink_stream_queue(&s, m.json, NULL, 0) < 0)
                                abort(); /* what was taken can be sent: our form is never longer … */
                        varlink_message_done(&m);
                }
        }
        varlink_stream_done(&s);
}

static void feed_server(const uint8_t *data, size_t size) {
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        _cleanup_close_ int peer = -EBADF;
        sd_event *event = NULL;
        int fds[2];

        if (sd_event_new(&event) < 0)
                return;
        if (varlink_server_new(&server, event) >= 0 &&
                varlink_server_add_interface(server, varlink_text_io_vmmd_Machine, methods, NULL) >= 0 &&
                socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) >= 0) {
                peer = fds[0];
                if (varlink_server_adopt_connection(server, fds[1]) >= 0 && size <= KIB(64) &&
                        send_with_fds(peer, data, size, NULL, 0) == (ssize_t) size)
                        for (unsigned i = 0; i < 64 && sd_event_run(event, 0) > 0; i++)
                                ;
        }
        server = varlink_server_free(server);
        sd_event_unref(event);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size < 2)
                return 0;
        feed_stream(data + 1, size - 1, (size_t) data[0] + 1);
        feed_server(data + 1, size - 1);
        return 0;
}
