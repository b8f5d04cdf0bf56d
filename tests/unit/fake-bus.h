/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A system bus with a polkit on it, both made up, in the test's own process and on its event loop. It says what the test tells it to, and remembers
 * what it was asked. $DBUS_SYSTEM_BUS_ADDRESS leads to it. */

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "util.h"

typedef enum FakePolkit {
        FAKE_YES,
        FAKE_NO,
        FAKE_CHALLENGE,
        FAKE_DISMISSED,
        FAKE_HOLD,    /* answers when the test says so */
        FAKE_ABSENT,  /* there is no such service */
        FAKE_MASKED,
        FAKE_ERROR,
        FAKE_GARBAGE, /* not what polkit's interface says */
        FAKE_HANG_UP, /* the bus goes away */
} FakePolkit;

typedef struct FakeBus {
        sd_event *event;
        char *directory, *path;
        int listen_fd;
        sd_event_source *accept;
        sd_bus *connections[16];
        size_t n_connections;

        bool refuses_clients;
        FakePolkit polkit;
        sd_bus_message *held[256];
        size_t n_held;

        /* What it was asked. */
        size_t n_asked, n_cancelled;
        char action[64], machine[64], method[64], cancellation_id[64], cancelled_id[64];
        uint32_t flags, pid;
        uint64_t start_time;
        int32_t uid;
        bool has_pidfd;
} FakeBus;

void fake_bus_open(FakeBus *f, sd_event *event);
void fake_bus_close(FakeBus *f);
/* Answers the oldest question that is held. */
void fake_bus_release(FakeBus *f, FakePolkit answer);
