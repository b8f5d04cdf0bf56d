/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A plugin's connections, and its life. */

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "log.h"
#include "plugin-internal.h"

void plugin_end(Plugin *plugin, const char *format, ...) {
        char *reason = NULL;
        va_list list;

        if (plugin->ended)
                return;
        plugin->ended = true;
        va_start(list, format);
        if (vasprintf(&reason, format, list) < 0)
                reason = NULL;
        va_end(list);
        plugin->handlers.ended(reason ?: "Out of memory.", plugin->handlers.userdata);
        free(reason);
}

void plugin_leave(Plugin *plugin, const char *reason) {
        if (!plugin->handlers.left)
                return plugin_end(plugin, "%s", reason);
        if (plugin->ended)
                return;
        plugin->ended = true;
        plugin->handlers.left(reason, plugin->handlers.userdata);
}

/* --- packets --- */

/* Returns its size, 0 where the connection ended; *ret_fd is the one descriptor that came along, or -EBADF. */
static ssize_t receive_packet(int fd, uint8_t *buffer, int *ret_fd) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(PLUGIN_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = buffer, .iov_len = PLUGIN_MESSAGE_MAX };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        int fds[PLUGIN_FDS_MAX];
        size_t n_fds = 0;
        ssize_t n;

        *ret_fd = -EBADF;
        n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0)
                return -errno;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h))
                if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
                        n_fds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                        memcpy(fds, CMSG_DATA(h), n_fds * sizeof(int));
                }
        for (size_t i = 1; i < n_fds; i++)
                (void) close(fds[i]);
        if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
                if (n_fds > 0)
                        (void) close(fds[0]);
                return -EMSGSIZE;
        }
        if (n_fds > 0)
                *ret_fd = fds[0];
        return n;
}

static int send_packet(int fd, const uint8_t *data, size_t size, const PluginReplyFds *fds) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(PLUGIN_FDS_MAX * sizeof(int))];
        } control = {};
        struct iovec iov = { .iov_base = (void *) data, .iov_len = size };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (fds->n > 0) {
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(fds->n * sizeof(int));
                control.header = (struct cmsghdr) { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                                    .cmsg_len = CMSG_LEN(fds->n * sizeof(int)) };
                memcpy(CMSG_DATA(&control.header), fds->fds, fds->n * sizeof(int));
        }
        return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static int send_response(Plugin *plugin, int fd, const PluginResponse *response) {
        size_t size = main_response__get_packed_size(&response->message);

        if (size > PLUGIN_MESSAGE_MAX)
                return -EMSGSIZE;
        (void) main_response__pack(&response->message, plugin->buffer);
        return send_packet(fd, plugin->buffer, size, &response->fds);
}

/* --- connections --- */

static PluginConnection *connection_free(PluginConnection *c) {
        (void) sd_event_source_disable_unref(c->source);
        (void) safe_close(c->fd);
        return mfree(c);
}

static void drop_connection(PluginConnection *c) {
        Plugin *plugin = c->plugin;

        for (size_t i = 0; i < plugin->n_connections; i++)
                if (plugin->connections[i] == c) {
                        plugin->connections[i] = plugin->connections[--plugin->n_connections];
                        break;
                }
        (void) connection_free(c);
}

static int serve_request(PluginConnection *c) {
        _cleanup_(plugin_response_done) PluginResponse response = { .message = MAIN_RESPONSE__INIT };
        Plugin *plugin = c->plugin;
        _cleanup_close_ int fd = -EBADF;
        MainRequest *request;
        ssize_t n;
        int r;

        n = receive_packet(c->fd, plugin->buffer, &fd);
        if (n <= 0)
                return n < 0 ? (int) n : -ECONNRESET;
        request = main_request__unpack(NULL, (size_t) n, plugin->buffer);
        if (!request)
                return -EBADMSG;
        r = plugin_handle_request(plugin, request, fd, &response);
        main_request__free_unpacked(request, NULL);
        response.message.error = r < 0 ? -r : 0;
        return send_response(plugin, c->fd, &response);
}

static const char *describe(int error) {
        switch (error) {
        case -ECONNRESET:
        case -EPIPE:
                return "it closed its connection";
        case -EBADMSG:
                return "it sent what is no request of the plugin protocol";
        case -EMSGSIZE:
                return "it sent a request that is too large, or asked for an answer that would be";
        case -EAGAIN:
                return "it does not read its answers";
        default:
                return strerror(-error);
        }
}

static int on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        PluginConnection *c = userdata;
        Plugin *plugin = c->plugin;
        bool is_last = plugin->n_connections == 1, left;
        int r;

        r = serve_request(c);
        if (r >= 0 || (r == -EAGAIN && !(revents & EPOLLIN)))
                return 0;
        drop_connection(c);
        /* A connection that ends is the plugin's business, its last one the machine's end; nonsense on any of them, too. */
        left = r == -ECONNRESET || r == -EPIPE;
        if (left && is_last)
                plugin_leave(plugin, "The plugin is of no use any more: it closed its connection.");
        else if (!left)
                plugin_end(plugin, "The plugin is of no use any more: %s.", describe(r));
        return 0;
}

int plugin_add_connection(Plugin *plugin, int fd) {
        PluginConnection *c = NULL;
        int size = (int) PLUGIN_MESSAGE_MAX, r;

        /* Large answers are one packet. */
        (void) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        r = plugin->n_connections < PLUGIN_CONNECTIONS_MAX ? 0 : -EMFILE;
        if (r >= 0) {
                c = calloc(1, sizeof(PluginConnection));
                r = c ? 0 : -ENOMEM;
        }
        if (r < 0) {
                (void) safe_close(fd);
                return r;
        }
        *c = (PluginConnection) { .plugin = plugin, .fd = fd };
        r = sd_event_add_io(plugin->event, &c->source, fd, EPOLLIN, on_request, c);
        if (r < 0) {
                (void) connection_free(c);
                return r;
        }
        plugin->connections[plugin->n_connections++] = c;
        return 0;
}

/* --- life --- */

/* A vCPU's thread has something to say. */
static int on_wake(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Plugin *plugin = userdata;
        _cleanup_free_ char *error = NULL;
        uint64_t count;
        bool left;

        (void) !read(fd, &count, sizeof(count));
        (void) pthread_mutex_lock(&plugin->lock);
        error = TAKE_PTR(plugin->channel_error);
        left = plugin->channel_left;
        (void) pthread_mutex_unlock(&plugin->lock);
        if (error && left)
                plugin_leave(plugin, error);
        else if (error)
                plugin_end(plugin, "%s", error);
        return 0;
}

/* Two descriptors that end each read and write at once. */
static int make_dead_ends(Plugin *plugin) {
        int a[2], b[2];

        if (pipe2(a, O_CLOEXEC) < 0)
                return -errno;
        (void) close(a[1]);
        plugin->dead_read = a[0];
        if (pipe2(b, O_CLOEXEC) < 0)
                return -errno;
        (void) close(b[0]);
        plugin->dead_write = b[1];
        return 0;
}

static int make_parts(Plugin *plugin) {
        int r;

        plugin->shutdown_fd = eventfd(0, EFD_CLOEXEC); /* plugins read it to wait */
        plugin->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (plugin->shutdown_fd < 0 || plugin->wake_fd < 0)
                return -errno;
        plugin->n_slots = plugin_kvm_memory_slots(plugin->kvm);
        plugin->slots = calloc(plugin->n_slots, 1);
        plugin->buffer = malloc(PLUGIN_MESSAGE_MAX);
        plugin->channels = calloc(plugin->n_vcpus, sizeof(PluginVcpu));
        if (!plugin->slots || !plugin->buffer || !plugin->channels)
                return -ENOMEM;
        for (unsigned i = 0; i < plugin->n_vcpus; i++)
                plugin->channels[i] = (PluginVcpu) { .read_fd = -EBADF, .write_fd = -EBADF, .their_read = -EBADF, .their_write = -EBADF };
        r = make_dead_ends(plugin);
        for (unsigned i = 0; i < plugin->n_vcpus && r >= 0; i++)
                r = plugin_channel_init(&plugin->channels[i], plugin);
        if (r >= 0)
                r = sd_event_add_io(plugin->event, &plugin->wake_source, plugin->wake_fd, EPOLLIN, on_wake, plugin);
        return r;
}

int plugin_new(sd_event *event, Kvm *kvm, VcpuSet *vcpus, unsigned n_vcpus, const VcpuSetHandlers *vcpu_handlers,
        const PluginNetwork *network, const PluginHandlers *handlers, Plugin **ret, char **ret_message) {
        _cleanup_(plugin_freep) Plugin *plugin = NULL;
        int r;

        if (n_vcpus > PLUGIN_FDS_MAX / 2)
                return set_message(ret_message, -ERANGE, "A plugin can have %u vCPUs at most, not %u.", PLUGIN_FDS_MAX / 2, n_vcpus);
        plugin = calloc(1, sizeof(Plugin));
        if (!plugin)
                return -ENOMEM;
        *plugin = (Plugin) {
                .event = sd_event_ref(event), .kvm = kvm, .vcpus = vcpus, .vcpu_handlers = *vcpu_handlers, .handlers = *handlers,
                .network = network ? *network : (PluginNetwork) { .tap_fd = -EBADF }, .shutdown_fd = -EBADF, .wake_fd = -EBADF, .dead_read = -EBADF, .dead_write = -EBADF, .n_vcpus = n_vcpus,
        };
        (void) pthread_mutex_init(&plugin->lock, NULL);
        (void) pthread_cond_init(&plugin->changed, NULL);
        r = plugin_ranges_init(&plugin->ranges);
        if (r >= 0)
                r = make_parts(plugin);
        if (r < 0)
                return set_message(ret_message, r, "Cannot make what a plugin needs: %s.", strerror(-r));
        *ret = TAKE_PTR(plugin);
        return 0;
}

void plugin_set_network(Plugin *plugin, const PluginNetwork *network) {
        plugin->network = *network;
}

Plugin *plugin_free(Plugin *plugin) {
        if (!plugin)
                return NULL;
        while (plugin->n_connections > 0)
                drop_connection(plugin->connections[0]);
        plugin_objects_done(plugin);
        for (unsigned i = 0; plugin->channels && i < plugin->n_vcpus; i++)
                plugin_channel_done(&plugin->channels[i]);
        free(plugin->channels);
        plugin_rings_done(plugin);
        plugin_ranges_done(&plugin->ranges);
        (void) sd_event_source_disable_unref(plugin->wake_source);
        (void) safe_close(plugin->wake_fd);
        (void) safe_close(plugin->shutdown_fd);
        (void) safe_close(plugin->dead_read);
        (void) safe_close(plugin->dead_write);
        (void) pthread_mutex_destroy(&plugin->lock);
        (void) pthread_cond_destroy(&plugin->changed);
        free(plugin->channel_error);
        free(plugin->slots);
        free(plugin->buffer);
        (void) sd_event_unref(plugin->event);
        return mfree(plugin);
}

static void *write_event(void *userdata) {
        int fd = (int) (intptr_t) userdata;
        uint64_t one = 1;

        (void) !write(fd, &one, sizeof(one));
        (void) close(fd);
        return NULL;
}

/* The event is the plugin's, too, and writing waits where it has filled it: that is nothing for the loop's thread. */
void plugin_ask_to_exit(Plugin *plugin) {
        int fd = fcntl(plugin->shutdown_fd, F_DUPFD_CLOEXEC, 3);
        sigset_t all, old;
        pthread_t thread;

        if (fd < 0)
                return;
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        if (pthread_create(&thread, NULL, write_event, (void *) (intptr_t) fd) == 0) /* NOLINT(performance-no-int-to-ptr) */
                (void) pthread_detach(thread);
        else
                (void) close(fd);
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void plugin_abort(Plugin *plugin) {
        (void) pthread_mutex_lock(&plugin->lock);
        plugin->aborted = true;
        (void) pthread_cond_broadcast(&plugin->changed);
        (void) pthread_mutex_unlock(&plugin->lock);
        /* First the descriptors, then the signal: whoever is in the middle of a read or write is interrupted and finds the dead end when he tries
         * again; whoever comes later finds it at once. */
        for (unsigned i = 0; i < plugin->n_vcpus; i++) {
                (void) dup3(plugin->dead_read, plugin->channels[i].read_fd, O_CLOEXEC);
                (void) dup3(plugin->dead_write, plugin->channels[i].write_fd, O_CLOEXEC);
        }
        for (unsigned i = 0; plugin->has_vcpus && i < plugin->vcpus->n_vcpus; i++)
                vcpu_kick(&plugin->vcpus->vcpus[i]);
}
