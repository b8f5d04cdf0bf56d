/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/socket.h>

#include "varlink-rig.h"

void rig_open(Rig *rig, const char *text, const VarlinkMethod *methods, void *userdata) {
        *rig = (Rig) { .peer = VARLINK_CHANNEL_NULL };
        assert_true(sd_event_new(&rig->event) >= 0);
        assert_int_equal(varlink_server_new(&rig->server, rig->event), 0);
        assert_int_equal(varlink_server_set_info(rig->server, "a vendor", "a product", "1.0", "https://example.org/"), 0);
        assert_int_equal(varlink_server_add_interface(rig->server, text, methods, userdata), 0);
        assert_int_equal(rig_attach(rig, &rig->peer), 0);
}

void rig_close(Rig *rig) {
        rig->server = varlink_server_free(rig->server);
        varlink_channel_done(&rig->peer);
        rig->event = sd_event_unref(rig->event);
}

void rig_pump(Rig *rig) {
        for (unsigned idle = 0; idle < 2;) {
                int r = sd_event_run(rig->event, 0);
                assert_true(r >= 0);
                idle = r == 0 ? idle + 1 : 0;
        }
}

int rig_attach(Rig *rig, VarlinkChannel *peer) {
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(varlink_channel_open(peer, fds[0]), 0);
        return varlink_server_adopt_connection(rig->server, fds[1]);
}

void rig_send_bytes(VarlinkChannel *peer, const void *bytes, size_t size) {
        assert_int_equal(send_with_fds(peer->fd, bytes, size, NULL, 0), size);
}

void rig_send(VarlinkChannel *peer, const char *text) {
        rig_send_bytes(peer, text, strlen(text) + 1);
}

char *rig_receive(Rig *rig, VarlinkChannel *peer) {
        VarlinkMessage m = {};
        char *copy;
        int r;

        rig_pump(rig);
        while ((r = varlink_channel_next(peer, &m)) == 0) {
                r = varlink_channel_read(peer);
                if (r == -EAGAIN)
                        return NULL;
                if (r == 0 || r == -ECONNRESET)
                        return strdup("closed");
                assert_true(r > 0);
                rig_pump(rig);
        }
        assert_int_equal(r, 1);
        copy = strdup(json_object_to_json_string_ext(m.json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
        varlink_message_done(&m);
        return copy;
}
