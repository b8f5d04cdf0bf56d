/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A Varlink server on an event loop, and the other end of one connection, where a test sends and sees bytes. All in one thread, and
 * nothing waits: a step is over when the loop has nothing to do. */

#include <setjmp.h>
#include <stdarg.h>
#include <systemd/sd-event.h>

#include <cmocka.h>

#include "message.h"
#include "server.h"

typedef struct Rig {
        sd_event *event;
        VarlinkServer *server;
        VarlinkChannel peer;
} Rig;

void rig_open(Rig *rig, const char *text, const VarlinkMethod *methods, void *userdata);
void rig_close(Rig *rig);

/* Runs the loop until nothing is left to do. */
void rig_pump(Rig *rig);
/* One more connection: what the server says to it. `peer` is open in any case. */
int rig_attach(Rig *rig, VarlinkChannel *peer);

void rig_send_bytes(VarlinkChannel *peer, const void *bytes, size_t size);
void rig_send(VarlinkChannel *peer, const char *text);
/* The next message that the peer got, the caller's; NULL where there is none; "closed" where the server closed the connection. */
char *rig_receive(Rig *rig, VarlinkChannel *peer);

#define assert_next(rig, peer, expected)                                                                       \
        do {                                                                                                   \
                _cleanup_free_ char *_reply = rig_receive(rig, peer);                                          \
                assert_non_null(_reply);                                                                       \
                assert_string_equal(_reply, expected);                                                         \
        } while (false)
#define assert_nothing(rig, peer)                                                                              \
        do {                                                                                                   \
                _cleanup_free_ char *_reply = rig_receive(rig, peer);                                          \
                assert_null(_reply);                                                                           \
        } while (false)
