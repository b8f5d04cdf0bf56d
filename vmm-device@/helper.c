/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "config.h"
#include "event-loop.h"
#include "foreign.h"
#include "helper.h"
#include "sandbox.h"
#include "session-keep.h"

/* Of those who wait in a socket's queue; whoever comes after them starts another helper. */
#define REFUSED_MAX 64

/* Beside the one for streams. */
static int listen_for_messages(const char *vsock_path, Sockets *s) {
        _cleanup_free_ char *path = NULL;
        int r;

        if (asprintf(&path, "%s" VSOCK_MESSAGES_SUFFIX, vsock_path) < 0) {
                path = NULL;
                return log_oom();
        }
        r = socket_listen_packets(path);
        if (r < 0)
                return log_error_errno(r, "Cannot listen on %s: %m", path);
        (void) safe_close(s->vsock_messages);
        s->vsock_messages = r;
        return 0;
}

static int open_sockets(const Arguments *a, PassedFds *passed, Sockets *s) {
        int r;

        r = sockets_from_manager(s, passed);
        if (r < 0)
                return log_error_errno(r, "Cannot take the sockets of the service manager: %m");
        if (a->fd >= 0) {
                r = sockets_take_fd(s, a->fd);
                if (r < 0)
                        return log_error_errno(r, "--fd=%d is not a socket: %m", a->fd);
        }
        if (a->socket_path) {
                r = a->type == &plugin_type ? socket_listen_packets(a->socket_path) : socket_listen(a->socket_path);
                if (r < 0)
                        return log_error_errno(r, "Cannot listen on %s: %m", a->socket_path);
                (void) safe_close(s->transport);
                s->transport = r;
        }
        if (a->varlink_path) {
                r = socket_listen(a->varlink_path);
                if (r < 0)
                        return log_error_errno(r, "Cannot listen on %s: %m", a->varlink_path);
                (void) safe_close(s->varlink);
                s->varlink = r;
        }
        if (a->vsock_path) {
                r = socket_listen(a->vsock_path);
                if (r < 0)
                        return log_error_errno(r, "Cannot listen on %s: %m", a->vsock_path);
                (void) safe_close(s->vsock);
                s->vsock = r;
                r = listen_for_messages(a->vsock_path, s);
                if (r < 0)
                        return r;
        }
        if (s->transport < 0 && s->connection < 0)
                return log_error_errno(-EINVAL, "There is no socket to serve: none passed, no --fd and no --socket-path.");
        return 0;
}

/* Whoever reaches the control socket may use it: its mode and its directory let in root and the machine's own vmmd, which asks its own clients
 * for their rights. */
static int authorize(VarlinkCall *call, unsigned right, void *userdata) {
        return 1;
}

static int make_server(Helper *h) {
        int r;

        r = varlink_server_new(&h->server, h->event);
        if (r >= 0)
                r = varlink_server_set_info(h->server, "vmmd", "vmm-device", PROJECT_VERSION, "");
        if (r < 0)
                return log_error_errno(r, "Cannot make the control interface: %m");
        varlink_server_set_authorize(h->server, authorize, h);
        return 0;
}

int helper_begin(Helper *h, const Arguments *a) {
        int r;

        h->sandbox = a->sandbox;
        r = event_loop_new("vmm-device", NULL, NULL, &h->event);
        if (r < 0)
                return log_error_errno(r, "Cannot make the event loop: %m");
        r = passed_fds_from_manager(&h->passed);
        return r < 0 ? log_error_errno(r, "Cannot take what the service manager has for us: %m") : 0;
}

/* Whose messages these are. The unit says so, too, but what a dying process says may reach the journal when its unit cannot be told any more. A slot is to learn
 * which device it is. */
static int note_names(const Sockets *s, bool is_slot) {
        _cleanup_free_ char *machine = NULL, *device = NULL;

        if (!s->machine)
                return 0;
        if (asprintf(&machine, "VMM_MACHINE=%s", s->machine) < 0) {
                machine = NULL;
                return log_oom();
        }
        log_add_field(machine);
        if (is_slot)
                return 0;
        if (asprintf(&device, "VMM_DEVICE=%s", s->name) < 0) {
                device = NULL;
                return log_oom();
        }
        log_add_field(device);
        return 0;
}

int helper_take_sockets(Helper *h, const Arguments *a) {
        int r;

        r = open_sockets(a, &h->passed, &h->sockets);
        if (r >= 0)
                r = note_names(&h->sockets, a->slot);
        if (r < 0)
                return r;
        return h->sockets.varlink >= 0 ? make_server(h) : 0;
}

static int begin_session(Helper *h, int connection) {
        return h->device->class->foreign ? foreign_connect(h->device, connection) : session_new(h->device, connection);
}

static int on_front_end(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Helper *h = userdata;
        int connection, r;

        connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (connection < 0)
                return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR ? 0 :
                        log_error_errno(errno, "Cannot accept a front-end: %m");
        /* One at a time: the device is one. */
        r = sd_event_source_set_enabled(h->accept_source, SD_EVENT_OFF);
        if (r < 0) {
                (void) safe_close(connection);
                return r;
        }
        r = begin_session(h, connection);
        if (r < 0)
                return log_error_errno(r, "Cannot serve a front-end: %m");
        log_info("A front-end has connected.");
        return 0;
}

static void on_session_ended(Device *d) {
        Helper *h = d->owner;

        if (h->accept_source)
                (void) sd_event_source_set_enabled(h->accept_source, SD_EVENT_ON);
        else
                (void) sd_event_exit(h->event, 0); /* there will be no other */
}

/* What a predecessor was about is older than whoever waits in the socket. */
static int resume_session(Helper *h) {
        int r;

        if (h->device->class->foreign)
                return 0;
        r = session_keep_resume(h->device);
        if (r <= 0)
                return r;
        return h->accept_source ? sd_event_source_set_enabled(h->accept_source, SD_EVENT_OFF) : 0;
}

static int serve_virtio(Helper *h) {
        int flags, r;

        if (h->sockets.connection >= 0)
                return begin_session(h, TAKE_FD(h->sockets.connection));

        /* A front-end that gave up between poll and accept must not block us. */
        flags = fcntl(h->sockets.transport, F_GETFL);
        if (flags < 0 || fcntl(h->sockets.transport, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        r = sd_event_add_io(h->event, &h->accept_source, h->sockets.transport, EPOLLIN, on_front_end, h);
        if (r < 0)
                return r;
        (void) sd_event_source_set_description(h->accept_source, "front-ends");
        /* A callback's error is for good. */
        r = sd_event_source_set_exit_on_failure(h->accept_source, true);
        h->device->keeps_sessions = true;
        return r < 0 ? r : resume_session(h);
}

static int serve_bus(Helper *h) {
        int r;

        r = bus_server_new(h->event, h->device->class->bus, h->device, &h->bus);
        if (r < 0)
                return r;
        h->device->bus = h->bus;
        if (h->sockets.connection >= 0)
                return bus_server_adopt(h->bus, TAKE_FD(h->sockets.connection));
        r = bus_server_keep(h->bus, &h->passed);
        if (r < 0)
                return r;
        return bus_server_listen(h->bus, TAKE_FD(h->sockets.transport));
}

int helper_listen(Helper *h) {
        int r = 0;

        if (h->sockets.varlink >= 0)
                r = varlink_server_listen_fd(h->server, TAKE_FD(h->sockets.varlink));
        return r < 0 ? log_error_errno(r, "Cannot serve the control socket: %m") : 0;
}

static int serve_control(Helper *h) {
        int r;

        r = control_new(h->device, h->bus, h->server, &h->control);
        return r < 0 ? log_error_errno(r, "Cannot serve the control interface: %m") : helper_listen(h);
}

int helper_open(Helper *h, const DeviceClass *class, const DeviceType *type, DeviceOptions *options) {
        int r;

        r = device_new(class, type, h->event, options, &h->passed, &h->device);
        if (r < 0)
                return r;
        h->device->owner = h;
        h->device->session_ended = on_session_ended;
        return 0;
}

static bool has_predecessor(const PassedFds *p) {
        for (size_t i = 0; i < p->n; i++)
                if (startswith(p->fds[i].name, SESSION_KEEP_PREFIX))
                        return true;
        return false;
}

static void refuse_one(int fd, const char *why) {
        VhostUserMsg msg = { .header = { .request = VHOST_USER_REFUSAL } };

        msg.header.size = (uint32_t) MIN(strlen(why), sizeof(msg.payload.refusal));
        memcpy(msg.payload.refusal, why, msg.header.size);
        (void) vhost_user_send(fd, &msg, NULL, 0);
}

/* Those who are there; `why` is NULL where it cannot be told. */
static void refuse_all(int listening, const char *why) {
        int flags = listening >= 0 ? fcntl(listening, F_GETFL) : -1;

        if (flags < 0 || fcntl(listening, F_SETFL, flags | O_NONBLOCK) < 0)
                return;
        for (unsigned i = 0; i < REFUSED_MAX; i++) {
                _cleanup_close_ int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

                if (fd < 0)
                        return;
                if (why)
                        refuse_one(fd, why);
        }
}

int helper_refuse(Helper *h, const Arguments *a, const char *why) {
        int r;

        /* Who served one goes on with it: what fails now may be a matter of time, such as a lock that his predecessor has not let go of. */
        if (!h->passed.managed || has_predecessor(&h->passed))
                return 0;
        r = open_sockets(a, &h->passed, &h->sockets);
        if (r < 0)
                return r;
        refuse_all(h->sockets.transport, a->class->bus ? NULL : why);
        refuse_all(h->sockets.varlink, NULL);
        return 1;
}

static int serve_clients(Helper *h, int *listening) {
        return *listening >= 0 && h->device->class->listen ? h->device->class->listen(h->device, TAKE_FD(*listening)) : 0;
}

int helper_serve(Helper *h) {
        int r;

        h->device->machine = TAKE_PTR(h->sockets.machine);
        h->device->name = TAKE_PTR(h->sockets.name);
        r = h->device->class->bus ? serve_bus(h) : serve_virtio(h);
        if (r < 0)
                return log_error_errno(r, "Cannot serve the front-end's socket: %m");
        r = serve_clients(h, &h->sockets.vsock);
        if (r >= 0)
                r = serve_clients(h, &h->sockets.vsock_messages);
        if (r < 0)
                return log_error_errno(r, "Cannot serve the clients' socket: %m");
        return h->server ? serve_control(h) : 0;
}

int helper_enter_sandbox(const Helper *h, const char *name) {
        const SandboxPolicy *policy = sandbox_policy_find(sandbox_policies, name);
        int r;

        if (!h->sandbox) {
                log_warning("Running without a seccomp policy, as asked.");
                return 0;
        }
        if (!policy)
                return log_error_errno(-ENOENT, "There is no seccomp policy '%s'.", name);
        r = sandbox_load(policy);
        return r < 0 ? log_error_errno(r, "Cannot load the seccomp policy '%s': %m", policy->name) : 0;
}

void helper_done(Helper *h) {
        h->control = control_free(h->control);
        h->server = varlink_server_free(h->server);
        h->accept_source = sd_event_source_disable_unref(h->accept_source);
        if (h->device)
                h->device->session_ended = NULL;
        h->bus = bus_server_free(h->bus);
        if (h->device)
                h->device->bus = NULL; /* what the device still has to say at its end interrupts nobody */
        h->device = device_free(h->device);
        sockets_done(&h->sockets);
        passed_fds_done(&h->passed);
        h->event = sd_event_unref(h->event);
}
