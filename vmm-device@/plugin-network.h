/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The network of a plugin: a tap of the host's, and what is known of the host's end of it. */

#include "device.h"
#include "plugin-link.h"

typedef struct PluginTap {
        int tap;   /* -EBADF: it has none */
        int route; /* a netlink socket of the tap's network; -EBADF where that is not known */
} PluginTap;

#define PLUGIN_TAP_NONE ((PluginTap) { .tap = -EBADF, .route = -EBADF })

/* Takes what the option `interface` names, if it is there. For open() only. Says what is wrong. */
int plugin_network_open(PluginTap *n, Device *d);
void plugin_network_close(PluginTap *n);
/* Fills in what the packet has of it, as it is now. An address that the interface has not is 0. */
int plugin_network_describe(const PluginTap *n, PluginLinkPacket *packet);
