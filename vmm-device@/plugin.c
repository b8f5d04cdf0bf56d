/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The parent of a plugin: a program that supplies all of a machine's hardware. It gets the main socket that vmmd sends (plugin-link.h), which it
 * finds as crosvm's plugins do, and nothing else of ours; how it ends is told to vmmd. */

#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "foreign.h"
#include "plugin-link.h"
#include "plugin-network.h"

typedef struct PluginParent {
        int link; /* vmmd, or -EBADF */
        sd_event_source *link_source;
        bool given; /* the program has its socket */
        PluginTap network;
} PluginParent;

static PluginParent *parent_of(Foreign *f) {
        return f->data;
}

static int plugin_prepare(Foreign *f) {
        const char *path = device_option(f->device, "path");
        const char *const *arguments;
        PluginParent *p;
        size_t n;
        int fd, r;

        p = calloc(1, sizeof(PluginParent));
        if (!p)
                return log_oom();
        *p = (PluginParent) { .link = -EBADF, .network = PLUGIN_TAP_NONE };
        f->data = p;
        r = plugin_network_open(&p->network, f->device);
        if (r >= 0)
                r = foreign_add(f, "%s", path);
        arguments = device_option_list(f->device, "arguments", &n);
        for (size_t i = 0; i < n && r >= 0; i++)
                r = foreign_add(f, "%s", arguments[i]);
        if (r < 0)
                return r;
        fd = foreign_socket(f, FOREIGN_SOCKET_CONNECTED);
        if (fd < 0)
                return fd;
        return asprintf(&f->variable, "CROSVM_SOCKET=%d", fd) < 0 ? log_oom() : 0;
}

static void drop_link(PluginParent *p) {
        p->link_source = sd_event_source_disable_unref(p->link_source);
        p->link = safe_close(p->link);
}

/* Never waits for vmmd: a few bytes fit always. */
static int tell(const PluginParent *p, const PluginLinkPacket *packet) {
        return send(p->link, packet, sizeof(*packet), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* vmmd's first packet: the child becomes the program with what comes along. */
static int take_start(Foreign *f) {
        PluginParent *p = parent_of(f);
        _cleanup_close_ int fd = -EBADF;
        PluginLinkPacket packet;
        size_t n_fds = 1;
        ssize_t n;

        n = recv_with_fds(p->link, &packet, sizeof(packet), &fd, &n_fds, MSG_DONTWAIT);
        if (n < 0)
                return (int) n;
        if (n == 0)
                return -ECONNRESET;
        if (p->given || n != sizeof(packet) || packet.kind != PLUGIN_LINK_START || n_fds != 1)
                return -EBADMSG;
        n = send_with_fds(f->connection_to, "", 1, &fd, 1);
        if (n < 0)
                return (int) n;
        f->connection_to = safe_close(f->connection_to);
        p->given = true;
        return tell(p, &(PluginLinkPacket) { .kind = PLUGIN_LINK_RUNS, .pid = (int32_t) f->pid });
}

/* It sees the end of its machine itself, and has its grace. */
static int on_link(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Foreign *f = userdata;
        int r;

        r = take_start(f);
        if (r >= 0 || r == -EAGAIN)
                return 0;
        if (r != -ECONNRESET && r != -EPIPE)
                (void) log_error_errno(r, "Cannot go on with vmmd: %m");
        f->front_end_left = true;
        drop_link(parent_of(f));
        device_changed(f->device);
        return foreign_end_soon(f);
}

/* vmmd needs to know it before the plugin asks. The tap is the plugin's, and vmmd's to hand over. */
static int tell_ready(const PluginParent *p) {
        PluginLinkPacket packet = { .kind = PLUGIN_LINK_READY };
        ssize_t n;
        int r;

        if (p->network.tap < 0)
                return tell(p, &packet);
        r = plugin_network_describe(&p->network, &packet);
        if (r < 0)
                return r;
        n = send_with_fds(p->link, &packet, sizeof(packet), &p->network.tap, 1);
        return n < 0 ? (int) n : 0;
}

static int plugin_connect(Foreign *f, int connection) {
        PluginParent *p = parent_of(f);
        int r;

        p->link = connection;
        r = tell_ready(p);
        if (r >= 0)
                r = sd_event_add_io(device_event(f->device), &p->link_source, connection, EPOLLIN, on_link, f);
        if (r < 0)
                p->link = safe_close(p->link);
        return r;
}

/* However it ended, that is vmmd's to judge; for the unit it failed where it was not asked to end and says so, or was not heard any more. */
static bool plugin_ended(Foreign *f, const siginfo_t *how) {
        PluginParent *p = parent_of(f);
        bool left = f->front_end_left;
        int r = 0;

        if (p->link >= 0)
                r = tell(p, &(PluginLinkPacket) { .kind = PLUGIN_LINK_ENDED, .code = how->si_code, .status = how->si_status });
        if (r < 0)
                (void) log_warning_errno(r, "Cannot tell vmmd that the plugin has ended: %m");
        drop_link(p);
        return left || (how->si_code == CLD_EXITED && how->si_status == 0);
}

static void plugin_close(Foreign *f) {
        PluginParent *p = parent_of(f);

        if (p) {
                drop_link(p);
                plugin_network_close(&p->network);
        }
        free(p);
        f->data = NULL;
}

static const ForeignClass plugin_foreign = {
        .prepare = plugin_prepare,
        .connect = plugin_connect,
        .ended = plugin_ended,
        .close = plugin_close,
        .grace_usec = PLUGIN_LINK_GRACE_USEC,
};

const DeviceClass plugin_device = {
        .name = "plugin",
        .policy = "foreign",
        .open = foreign_open,
        .close = foreign_close,
        .describe = foreign_describe,
        .foreign = &plugin_foreign,
};
