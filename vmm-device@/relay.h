/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Between a front-end and a program that is the device in our place: whole vhost-user messages are passed on, both ways, with their descriptors. Rings and
 * guest memory are not here. What the program lacks and a front-end wants is added on the way: features that concern nobody but the front-end
 * and the driver, and a configuration space to go with them. */

#include "frame.h"

/* What is added to what the program offers. The configuration space begins with so many bytes of ours; behind them is the program's, or nothing where it
 * has none. */
typedef struct RelayAddition {
        uint64_t features;
        uint8_t config[VHOST_USER_CONFIG_MAX];
        uint32_t config_size;
} RelayAddition;

typedef enum RelayEnd {
        RELAY_FRONT_END_LEFT,
        RELAY_BACK_END_LEFT, /* also where it does not speak as specified */
} RelayEnd;

typedef struct RelayHandlers {
        /* The program said its first word. */
        void (*answered)(void *userdata);
        /* Another of relay_is_running(). */
        void (*changed)(void *userdata);
        /* Called once, from the event loop; frees the relay. */
        void (*ended)(RelayEnd end, void *userdata);
        void *userdata;
} RelayHandlers;

typedef struct Relay Relay;

/* Takes ownership of both sockets, also on error. `addition` must outlive the relay. */
int relay_new(sd_event *event, int front_end, int back_end, const RelayAddition *addition, const RelayHandlers *handlers, Relay **ret);
Relay *relay_free(Relay *r);
DEFINE_CLEANUP(Relay, relay_free)
/* Whether the front-end has given rings that were not stopped since. */
bool relay_is_running(const Relay *r);
/* Tells the front-end that the configuration space is another now. */
void relay_config_changed(Relay *r);
