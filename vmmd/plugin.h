/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A plugin process: it supplies all the hardware of a machine, by crosvm's plugin protocol (plugin/plugin.proto). Main sockets are served by the
 * event loop; each vCPU's pipes by its own thread. What a plugin says is checked here: it can break its own machine and nothing else.
 *
 * The vCPUs are made when the plugin says that the machine may start, since some of what it sets has to be there before. */

#include <systemd/sd-event.h>

#include "kvm.h"
#include "vcpu.h"

typedef struct Plugin Plugin;

/* What a plugin gets as its network: an open tap, and what is known of its interface on the host. */
typedef struct PluginNetwork {
        int tap_fd;                /* stays the caller's */
        uint32_t host_ip, netmask; /* in network order */
        uint8_t host_mac[6];
} PluginNetwork;

typedef struct PluginHandlers {
        /* The plugin asks for the machine to start: the vCPUs are there and may be let go. On the loop's thread. */
        void (*started)(void *userdata);
        /* The plugin is done with the machine, or the machine with it: `reason` says why, as one sentence. Once, on the loop's thread. */
        void (*ended)(const char *reason, void *userdata);
        /* In its place where the plugin hung up, which is also how one ends that is done; NULL: that is all the same. */
        void (*left)(const char *reason, void *userdata);
        void *userdata;
} PluginHandlers;

/* `kvm` has its platform (plugin_kvm_create_platform()) and no vCPU yet; `vcpus` is made when the plugin asks for the
 * start, and tells what happens to `vcpu_handlers`. `network` is copied, or NULL. */
int plugin_new(sd_event *event, Kvm *kvm, VcpuSet *vcpus, unsigned n_vcpus, const VcpuSetHandlers *vcpu_handlers,
        const PluginNetwork *network, const PluginHandlers *handlers, Plugin **ret, char **ret_message);
/* The vCPUs' threads must have been ended: plugin_abort(), vcpu_set_done(). */
Plugin *plugin_free(Plugin *plugin);
DEFINE_CLEANUP(Plugin, plugin_free)

/* The plugin's network, in the place of plugin_new()'s, before it has a connection by which it could ask. */
void plugin_set_network(Plugin *plugin, const PluginNetwork *network);
/* Serves one more main socket (SOCK_SEQPACKET); takes it over, also on error. */
int plugin_add_connection(Plugin *plugin, int fd);
/* Tells the plugin that it is to exit, by its shutdown eventfd. It may take its time. */
void plugin_ask_to_exit(Plugin *plugin);
/* No vCPU waits for the plugin any more, now or later: their threads can be ended. */
void plugin_abort(Plugin *plugin);
