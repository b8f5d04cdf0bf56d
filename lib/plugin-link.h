/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Between vmmd and the helper that is a plugin's parent, on /run/vmm/MACHINE/plugin.plugin (SOCK_SEQPACKET): one packet is one of these, as the
 * host has it in memory. What the plugin itself says goes by its main socket, of which the helper knows nothing but that it passes it on.
 *
 * vmmd connects, and the helper says PLUGIN_LINK_READY: what the plugin may ask vmmd for is there from then on. vmmd sends PLUGIN_LINK_START with the plugin's
 * end of the main socket. The helper says PLUGIN_LINK_RUNS, and in the end PLUGIN_LINK_ENDED; where it hangs up without that, it has ended itself. Where vmmd hangs up, the plugin has PLUGIN_LINK_GRACE_USEC to end. */

#include "util.h"

#define PLUGIN_LINK_GRACE_USEC USEC_PER_SEC

typedef enum PluginLinkKind {
        PLUGIN_LINK_START = 1, /* with one descriptor */
        PLUGIN_LINK_RUNS,      /* pid */
        PLUGIN_LINK_ENDED,     /* code, status */
        PLUGIN_LINK_READY,     /* where the plugin has a network, its tap, host_ip, netmask and host_mac */
} PluginLinkKind;

typedef struct PluginLinkPacket {
        uint32_t kind;
        int32_t pid;
        int32_t code, status; /* as si_code and si_status, sigaction(2) */
        uint32_t host_ip, netmask; /* in network order */
        uint8_t host_mac[6], padding[2];
} PluginLinkPacket;

/* What the helper's child exits with where it could not become the program, as systemd has it. */
#define PLUGIN_LINK_STATUS_NOT_RUN 203
