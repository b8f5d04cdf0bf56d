/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "catalog-ids.h"
#include "json-util.h"
#include "log.h"
#include "machine-internal.h"
#include "machine-plugin.h"
#include "plugin-kvm.h"
#include "plugin-link.h"
#include "plugin.h"
#include "unit-name.h"

struct MachinePlugin {
        Machine *machine;
        Plugin *plugin;
        int link; /* the plugin's parent */
        sd_event_source *link_source, *grace_timer;
        int its_socket; /* the plugin's end of its main socket, until its parent has it */
        int tap;       /* the plugin's network, or -EBADF */
        pid_t pid;     /* 0: not told yet, or it has ended */
        bool started;  /* it let the machine go */
        bool failed;
        char *left;    /* it hung up, and this is what that was; what it ends with is awaited */
};

/* --- its end --- */

/* A plugin that is still there is told by machine_finish(), and has until its parent's patience ends. */
static void end(MachinePlugin *p, MachineResult result, const char *reason) {
        Machine *m = p->machine;

        p->grace_timer = sd_event_source_disable_unref(p->grace_timer);
        if (m->ended)
                return;
        machine_catch_up(m);
        if (result != MACHINE_RESULT_SUCCESS) {
                p->failed = true;
                machine_problem(m, MESSAGE_PLUGIN_FAILED, "%s", reason);
        }
        machine_finish(m, result, reason);
}

static void describe_end(const PluginLinkPacket *how, char **ret) {
        if (how->code == CLD_EXITED && how->status == PLUGIN_LINK_STATUS_NOT_RUN)
                (void) set_message(ret, 0, "The plugin could not be run; the log of its unit says why.");
        else if (how->code == CLD_EXITED)
                (void) set_message(ret, 0, "The plugin ended with status %" PRIi32 ".", how->status);
        else
                (void) set_message(ret, 0, "The plugin was ended by signal %s.", sigabbrev_np(how->status) ?: "?");
}

/* Status 0 is how a plugin says that the machine is done. */
static void on_plugin_ended(MachinePlugin *p, const PluginLinkPacket *how) {
        bool good = how->code == CLD_EXITED && how->status == 0;
        _cleanup_free_ char *text = NULL;

        p->pid = 0;
        if (good && p->started)
                end(p, MACHINE_RESULT_SUCCESS, "The plugin has ended, and the machine with it.");
        else if (good)
                end(p, MACHINE_RESULT_PLUGIN, "The plugin ended before it let the machine start.");
        else {
                describe_end(how, &text);
                end(p, MACHINE_RESULT_PLUGIN, text ?: "The plugin failed.");
        }
}

/* Its parent has all that the plugin may ask for: what is not there by now is not going to be. Its main socket goes to the parent, which makes it
 * the program's. */
static int on_ready(MachinePlugin *p, const PluginLinkPacket *packet, int *tap) {
        const PluginLinkPacket start = { .kind = PLUGIN_LINK_START };
        PluginNetwork network = { .host_ip = packet->host_ip, .netmask = packet->netmask };
        ssize_t n;

        if (p->its_socket < 0)
                return -EBADMSG;
        if (*tap >= 0) {
                p->tap = TAKE_FD(*tap);
                network.tap_fd = p->tap;
                memcpy(network.host_mac, packet->host_mac, sizeof(network.host_mac));
                plugin_set_network(p->plugin, &network);
        }
        n = send_with_fds(p->link, &start, sizeof(start), &p->its_socket, 1);
        p->its_socket = safe_close(p->its_socket);
        return n < 0 ? (int) n : 0;
}

static int on_link(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        _cleanup_close_ int passed = -EBADF;
        MachinePlugin *p = userdata;
        PluginLinkPacket packet;
        size_t n_fds = 1;
        ssize_t n;

        n = recv_with_fds(fd, &packet, sizeof(packet), &passed, &n_fds, MSG_DONTWAIT);
        if (n == -EAGAIN || n == -EINTR)
                return 0;
        if (n == sizeof(packet) && packet.kind == PLUGIN_LINK_RUNS)
                p->pid = packet.pid;
        else if (n != sizeof(packet) || packet.kind != PLUGIN_LINK_READY || on_ready(p, &packet, &passed) < 0) {
                p->link_source = sd_event_source_disable_unref(p->link_source);
                if (n == sizeof(packet) && packet.kind == PLUGIN_LINK_ENDED)
                        on_plugin_ended(p, &packet);
                else {
                        p->pid = 0;
                        end(p, MACHINE_RESULT_PLUGIN, "The plugin's unit has ended without a word; its log says why.");
                }
        }
        return 0;
}

/* It hung up and goes on. */
static int on_grace_over(sd_event_source *s, uint64_t usec, void *userdata) {
        MachinePlugin *p = userdata;

        end(p, MACHINE_RESULT_PLUGIN, p->left ?: "The plugin hung up.");
        return 0;
}

/* --- what the plugin does --- */

static void on_started(void *userdata) {
        MachinePlugin *p = userdata;
        Machine *m = p->machine;
        int r;

        m->has_vcpus = true;
        r = vcpu_set_start(&m->vcpus);
        if (r < 0) {
                end(p, MACHINE_RESULT_ERROR, "The vCPUs cannot be started.");
                return;
        }
        p->started = true;
        /* People may have paused the machine, or be ending it. */
        if (m->goal == GOAL_NONE && m->state == MACHINE_STARTING)
                vcpu_set_resume(&m->vcpus, false);
}

static void on_ended(const char *reason, void *userdata) {
        end(userdata, MACHINE_RESULT_PLUGIN, reason);
}

/* Whether it is done, its exit status tells, which may be under way still. */
static void on_left(const char *reason, void *userdata) {
        MachinePlugin *p = userdata;

        p->left = strdup(reason);
        machine_plugin_ask_to_exit(p);
        if (sd_event_add_time_relative(p->machine->event, &p->grace_timer, CLOCK_MONOTONIC, PLUGIN_LINK_GRACE_USEC, 0, on_grace_over, p) < 0)
                (void) on_grace_over(NULL, 0, p);
}

/* --- making --- */

/* Does not wait: a unit's socket is there before its machine starts, and nobody else connects to it. */
static int connect_link(const Machine *m, char **ret_message) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        int n;

        n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s/%s.plugin", m->runtime_directory, m->definition->name,
                m->definition->plugin->name);
        if (n < 0 || (size_t) n >= sizeof(address.sun_path))
                return set_message(ret_message, -ENAMETOOLONG, "The path of the plugin's socket is too long.");
        if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return set_message(ret_message, -errno, "Cannot connect to the plugin's socket %s: %s.", address.sun_path, strerror(errno));
        return TAKE_FD(fd);
}

static int make_main_socket(MachinePlugin *p) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        p->its_socket = pair[1];
        return plugin_add_connection(p->plugin, pair[0]);
}

int machine_plugin_new(Machine *m, char **ret_message) {
        const VcpuSetHandlers vcpu_handlers = { .event = machine_on_vcpu_event, .paused = machine_on_paused, .userdata = m };
        MachinePlugin *p = calloc(1, sizeof(MachinePlugin));
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended, .left = on_left, .userdata = p };
        int r;

        if (!p)
                return -ENOMEM;
        *p = (MachinePlugin) { .machine = m, .link = -EBADF, .its_socket = -EBADF, .tap = -EBADF };
        m->plugin = p;
        r = plugin_kvm_create_platform(&m->kvm, ret_message);
        if (r >= 0)
                r = plugin_new(m->event, &m->kvm, &m->vcpus, m->definition->vcpus, &vcpu_handlers, NULL, &handlers, &p->plugin, ret_message);
        if (r < 0)
                return r;
        p->link = connect_link(m, ret_message);
        if (p->link < 0)
                return p->link;
        r = make_main_socket(p);
        if (r < 0)
                return set_message(ret_message, r, "Cannot make the plugin's socket: %s.", strerror(-r));
        return sd_event_add_io(m->event, &p->link_source, p->link, EPOLLIN, on_link, p);
}

MachinePlugin *machine_plugin_free(MachinePlugin *p) {
        if (!p)
                return NULL;
        (void) sd_event_source_disable_unref(p->grace_timer);
        (void) sd_event_source_disable_unref(p->link_source);
        (void) plugin_free(p->plugin);
        (void) safe_close(p->link);
        (void) safe_close(p->its_socket);
        (void) safe_close(p->tap);
        free(p->left);
        return mfree(p);
}

void machine_plugin_abort(MachinePlugin *p) {
        if (p && p->plugin)
                plugin_abort(p->plugin);
}

void machine_plugin_ask_to_exit(MachinePlugin *p) {
        plugin_ask_to_exit(p->plugin);
}

/* --- describing --- */

static const char *state_of(const MachinePlugin *p) {
        return p->failed ? "failed" : p->started ? "active" : p->pid > 0 ? "ready" : "connecting";
}

int machine_plugin_describe(const Machine *m, json_object **ret) {
        _cleanup_free_ char *unit = device_unit_name(m->definition->name, m->definition->plugin->name, "service");
        _cleanup_json_ json_object *object = json_object_new_object();
        const MachinePlugin *p = m->plugin;
        int r;

        if (!object || !unit)
                return -ENOMEM;
        r = json_add_string(object, "name", m->definition->plugin->name);
        if (r >= 0)
                r = json_add_string(object, "type", plugin_type.name);
        if (r >= 0)
                r = json_add_string(object, "unit", unit);
        if (r >= 0)
                r = json_add_string(object, "transport", "plugin");
        if (r >= 0)
                r = json_add_string(object, "state", state_of(p));
        if (r >= 0)
                r = json_add_boolean(object, "attached", false);
        if (r >= 0)
                r = json_add_boolean(object, "leaving", false);
        if (r >= 0 && p->pid > 0)
                r = json_add_integer(object, "pid", p->pid);
        if (r >= 0)
                r = json_add_integer(object, "reconnects", 0);
        if (r >= 0 && p->failed)
                r = json_add_string(object, "error", m->last_problem);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(object);
        return 0;
}
