/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-device TYPE [--option=value …]: the helper of one device.
 *
 * Its life in stages: options; the device's own descriptors (class->open); sockets; the seccomp policy, after which nothing can be opened
 * any more; READY=1; the event loop. One front-end at a time: the next one waits in the socket's backlog. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-id128.h>

#include "bus-server.h"
#include "config.h"
#include "control.h"
#include "frame.h"
#include "log.h"
#include "options.h"
#include "sandbox.h"
#include "sockets.h"

static const DeviceClass *const device_classes[] = {
        &block_device,
        &console_device,
        &rng_device,
        &serial_device,
};

typedef struct Arguments {
        const DeviceClass *class;
        const DeviceType *type;
        DeviceOptions *options;
        const char *socket_path, *varlink_path;
        int fd;
        bool sandbox;
} Arguments;

typedef struct Helper {
        sd_event *event;
        Device *device;
        Sockets sockets;
        sd_event_source *accept_source;
        BusServer *bus;
        Control *control;
} Helper;

static void print_help(const DeviceType *type) {
        printf("vmm-device TYPE [OPTION...]\n\n"
               "Serves one device of a virtual machine, on vhost-user or on vmmd's bus protocol.\n\n"
               "     --fd=N                socket of the front-end, connected or listening\n"
               "     --socket-path=PATH    socket to listen on for front-ends\n"
               "     --varlink-path=PATH   socket to listen on for the control interface\n"
               "     --print-capabilities  say as JSON what the device can do, and exit\n"
               "     --no-sandbox          do not load the seccomp policy (for debuggers)\n"
               "  -h --help                show this help; after a TYPE also its options\n"
               "     --version             show the version\n\nTypes:");
        for (size_t i = 0; i < ELEMENTSOF(device_classes); i++)
                printf(" %s", device_classes[i]->name);
        printf("\n");
        if (!type)
                return;
        printf("\nOptions of %s:\n", type->name);
        for (const DeviceOption *option = type->options; option->name; option++) {
                _cleanup_free_ char *name = device_option_argument_name(option->name);
                if (!option->for_vmmd && name)
                        printf("     --%s=%s  %s\n", name, option->kind == DEVICE_OPTION_BOOLEAN ? "yes|no" : "VALUE",
                                option->description);
        }
}

/* "Backend program conventions": @VHostUserBackendCapabilities of vhost-user.json. */
static void print_capabilities(const DeviceClass *class) {
        static const struct { const char *name, *schema; } types[] = {
                { "block", "block" }, { "console", "serial" }, { "rng", "rng" },
        };
        const char *schema = class ? class->name : "";

        for (size_t i = 0; class && i < ELEMENTSOF(types); i++)
                if (streq(types[i].name, class->name))
                        schema = types[i].schema;
        printf("{\n  \"type\": \"%s\",\n  \"features\": []\n}\n", schema);
}

static int find_class(const char *name, Arguments *a) {
        for (size_t i = 0; i < ELEMENTSOF(device_classes); i++)
                if (streq(device_classes[i]->name, name)) {
                        a->class = device_classes[i];
                        a->type = device_type_find(name);
                        return a->type ? 0 : -EINVAL;
                }
        return -EINVAL;
}

static int parse_fd(const char *value, int *ret) {
        char *end;
        long fd;

        errno = 0;
        fd = strtol(value, &end, 10);
        if (errno != 0 || end == value || *end != 0 || fd < 0 || fd > 1 << 20 || fcntl((int) fd, F_GETFD) < 0)
                return log_error_errno(-EINVAL, "'--fd=%s': not an open file descriptor", value);
        *ret = (int) fd;
        return 0;
}

/* Returns 0 to go on, 1 where the process is done. */
static int parse_argument(Arguments *a, const char *argument) {
        _cleanup_free_ char *message = NULL;
        const char *value;
        int r;

        if (streq(argument, "-h") || streq(argument, "--help")) {
                print_help(a->type);
                return 1;
        }
        if (streq(argument, "--version")) {
                printf("vmm-device %s\n", PROJECT_VERSION);
                return 1;
        }
        if (streq(argument, "--print-capabilities")) {
                print_capabilities(a->class);
                return 1;
        }
        if (streq(argument, "--no-sandbox"))
                a->sandbox = false;
        else if ((value = startswith(argument, "--socket-path=")))
                a->socket_path = value;
        else if ((value = startswith(argument, "--varlink-path=")))
                a->varlink_path = value;
        else if ((value = startswith(argument, "--fd=")))
                return parse_fd(value, &a->fd);
        else {
                r = device_options_add(a->options, argument, &message);
                if (r < 0)
                        return log_error_errno(r, "%s", message ? message : "Out of memory.");
        }
        return 0;
}

static int parse_arguments(Arguments *a, int argc, char **argv) {
        bool typed = argc > 1 && argv[1][0] != '-';
        int r;

        if (typed && find_class(argv[1], a) < 0)
                return log_error_errno(-EINVAL, "'%s' is not a type of device. --help lists them.", argv[1]);
        if (typed) {
                r = device_options_new(a->type, &a->options);
                if (r < 0)
                        return log_oom();
        }
        for (int i = typed ? 2 : 1; i < argc; i++) {
                if (!typed && !startswith(argv[i], "-h") && !streq(argv[i], "--help") && !streq(argv[i], "--version") &&
                        !streq(argv[i], "--print-capabilities"))
                        break;
                r = parse_argument(a, argv[i]);
                if (r != 0)
                        return r;
        }
        if (!typed)
                return log_error_errno(-EINVAL, "The type of device comes first. --help lists them.");
        if (a->fd >= 0 && a->socket_path)
                return log_error_errno(-EINVAL, "--fd and --socket-path are incompatible.");
        return 0;
}

static int open_sockets(const Arguments *a, Sockets *s) {
        int r;

        r = sockets_from_manager(s);
        if (r < 0)
                return log_error_errno(r, "Cannot take the sockets of the service manager: %m");
        if (a->fd >= 0) {
                r = sockets_take_fd(s, a->fd);
                if (r < 0)
                        return log_error_errno(r, "--fd=%d is not a socket: %m", a->fd);
        }
        if (a->socket_path) {
                r = socket_listen(a->socket_path);
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
        if (s->transport < 0 && s->connection < 0)
                return log_error_errno(-EINVAL, "There is no socket to serve: none passed, no --fd and no --socket-path.");
        return 0;
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
        r = session_new(h->device, connection);
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

static int serve_virtio(Helper *h) {
        int flags, r;

        if (h->sockets.connection >= 0)
                return session_new(h->device, TAKE_FD(h->sockets.connection));

        /* A front-end that gave up between poll and accept must not block us. */
        flags = fcntl(h->sockets.transport, F_GETFL);
        if (flags < 0 || fcntl(h->sockets.transport, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        r = sd_event_add_io(h->event, &h->accept_source, h->sockets.transport, EPOLLIN, on_front_end, h);
        if (r < 0)
                return r;
        (void) sd_event_source_set_description(h->accept_source, "front-ends");
        /* A callback's error is for good. */
        return sd_event_source_set_exit_on_failure(h->accept_source, true);
}

static int serve_bus(Helper *h) {
        int r;

        r = bus_server_new(h->event, h->device->class->bus, h->device, &h->bus);
        if (r < 0)
                return r;
        h->device->bus = h->bus;
        if (h->sockets.connection >= 0)
                return bus_server_adopt(h->bus, TAKE_FD(h->sockets.connection));
        return bus_server_listen(h->bus, TAKE_FD(h->sockets.transport));
}

static int serve(Helper *h) {
        int r;

        r = h->device->class->bus ? serve_bus(h) : serve_virtio(h);
        if (r < 0)
                return log_error_errno(r, "Cannot serve the front-end's socket: %m");
        if (h->sockets.varlink >= 0) {
                r = control_new(h->device, h->bus, TAKE_FD(h->sockets.varlink), &h->control);
                if (r < 0)
                        return log_error_errno(r, "Cannot serve the control interface: %m");
        }
        return 0;
}

/* Stage 4: what the process may still do is what its policy names. */
static int enter_sandbox(const Arguments *a) {
        const SandboxPolicy *policy = sandbox_policy_find(sandbox_policies, a->class->policy);
        sd_id128_t id;
        int r;

        /* sd-event spreads its timers by the boot id, which it reads from a file when the first one is armed; libsystemd remembers it. */
        (void) sd_id128_get_boot(&id);

        if (!a->sandbox) {
                log_warning("Running without a seccomp policy, as asked.");
                return 0;
        }
        if (!policy)
                return log_error_errno(-ENOENT, "There is no seccomp policy '%s'.", a->class->policy);
        r = sandbox_load(policy);
        return r < 0 ? log_error_errno(r, "Cannot load the seccomp policy '%s': %m", policy->name) : 0;
}

static int on_first_timer(sd_event_source *s, uint64_t usec, void *userdata) {
        return 0;
}

/* The first timer that an event loop arms makes libsystemd read the host's boot id from a file (it spreads wake-ups by it). Have it do so
 * while files can be opened. */
static int arm_first_timer(sd_event *event) {
        _cleanup_(sd_event_source_unrefp) sd_event_source *source = NULL;
        int r;

        r = sd_event_add_time_relative(event, &source, CLOCK_MONOTONIC, 0, 0, on_first_timer, NULL);
        return r < 0 ? r : sd_event_run(event, UINT64_MAX);
}

static int make_event_loop(Helper *h) {
        sigset_t signals;
        int r;

        /* A front-end may hand us anything to signal it by, also a pipe that nobody reads. */
        if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
                return -errno;
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        if (sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
                return -errno;
        r = sd_event_default(&h->event);
        if (r < 0)
                return r;
        r = sd_event_add_signal(h->event, NULL, SIGTERM, NULL, NULL);
        if (r < 0)
                return r;
        r = sd_event_add_signal(h->event, NULL, SIGINT, NULL, NULL);
        if (r < 0)
                return r;
        r = arm_first_timer(h->event);
        if (r < 0)
                return r;
        return sd_event_set_watchdog(h->event, true);
}

static int run(const Arguments *a, Helper *h) {
        int r;

        r = make_event_loop(h);
        if (r < 0)
                return log_error_errno(r, "Cannot make the event loop: %m");
        r = device_new(a->class, a->type, h->event, a->options, &h->device);
        if (r < 0)
                return r;
        h->device->owner = h;
        h->device->session_ended = on_session_ended;
        r = open_sockets(a, &h->sockets);
        if (r < 0)
                return r;
        h->device->machine = TAKE_PTR(h->sockets.machine);
        h->device->name = TAKE_PTR(h->sockets.name);
        r = serve(h);
        if (r < 0)
                return r;
        r = enter_sandbox(a);
        if (r < 0)
                return r;

        (void) sd_notifyf(false, "READY=1\nSTATUS=Serving a %s device", a->class->name);
        r = sd_event_loop(h->event);
        (void) sd_notify(false, "STOPPING=1");
        return r;
}

int main(int argc, char **argv) {
        Helper h = { .sockets = SOCKETS_NULL };
        Arguments a = { .fd = -EBADF, .sandbox = true };
        int r;

        log_open("vmm-device");
        r = parse_arguments(&a, argc, argv);
        if (r == 0)
                r = run(&a, &h);

        (void) control_free(h.control);
        (void) sd_event_source_disable_unref(h.accept_source);
        if (h.device)
                h.device->session_ended = NULL;
        (void) bus_server_free(h.bus);
        if (h.device)
                h.device->bus = NULL; /* what the device still has to say at its end interrupts nobody */
        (void) device_free(h.device);
        sockets_done(&h.sockets);
        (void) sd_event_unref(h.event);
        (void) device_options_free(a.options);
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
