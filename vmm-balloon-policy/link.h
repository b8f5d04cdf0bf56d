/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The machine, by its public interface, io.vmmd.Machine: one connection for its events, another for setting the balloon's target. Where
 * they are lost they are made again, at growing intervals, until the machine says that it ends. */

#include <systemd/sd-event.h>

#include "policy.h"

typedef struct Link Link;

typedef enum LinkEventType {
        LINK_CONNECTED,  /* memory, vmmd, balloon */
        LINK_LOST,
        LINK_BALLOON,    /* balloon */
        LINK_BASE,       /* balloon: somebody else set its target */
        LINK_STATISTICS, /* statistics */
        LINK_RESET,      /* the guest begins anew */
        LINK_TARGET_SET, /* what link_set_target() was told last is done */
        LINK_ENDED,      /* for good: error is 0 where the machine ends, else why we cannot go on (said already) */
} LinkEventType;

typedef struct LinkEvent {
        LinkEventType type;
        uint64_t memory;
        uint64_t vmmd; /* vmmd's process: a number that changes when it is another one */
        PolicyBalloon balloon;
        PolicyStatistics statistics;
        int error;
} LinkEvent;

typedef void (*LinkCallback)(const LinkEvent *event, void *userdata);

/* `device` NULL is the machine's first balloon. The strings stay borrowed. Connects from the event loop. */
int link_new(sd_event *event, const char *socket, const char *device, uint64_t statistics_interval_usec, LinkCallback callback, void *userdata,
        Link **ret);
Link *link_free(Link *l);
DEFINE_CLEANUP(Link, link_free)

/* One call at a time: while one is under way the latest target waits. Given up with the connection. */
void link_set_target(Link *l, uint64_t target);
bool link_is_connected(const Link *l);
