/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* virtio console (virtio 1.2 §5.3): one port, without VIRTIO_CONSOLE_F_MULTIPORT, on a terminal (terminal.h). Queue 0 is what the guest receives, queue 1 what it
 * transmits. */

#include <fcntl.h>
#include <linux/virtio_console.h>

#include <json-c/json.h>

#include "device.h"
#include "log.h"
#include "terminal-control.h"
#include "terminal.h"

enum { QUEUE_RECEIVE = 0, QUEUE_TRANSMIT = 1, N_QUEUES = 2 };

#define HISTORY_DEFAULT KIB(256)
#define HISTORY_MAX MIB(16)
/* Chains of one process() call; then others of the event loop have their turn. */
#define CHAINS_AT_ONCE 64
#define CHAIN_MAX MIB(1)

typedef struct Console {
        Device *device;
        Terminal *terminal;
        struct virtio_console_config config;
        VirtqueueChain chain;
        LogRateLimit too_long;
} Console;

/* Fills the guest's buffers as long as there are both, input and buffers. 1 where there is more to do. */
static int receive(Device *d) {
        Console *c = device_data(d);
        Virtqueue *q = device_queue(d, QUEUE_RECEIVE);
        unsigned chains = 0;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q); /* buffers are wanted only where input waits for them */
                while (terminal_input_available(c->terminal) > 0 && chains < CHAINS_AT_ONCE && (r = virtqueue_pop(q, &c->chain)) > 0) {
                        uint32_t written = 0;
                        uint8_t buffer[512];
                        size_t n;

                        while ((n = terminal_take_input(c->terminal, buffer, MIN(sizeof(buffer), c->chain.writable.left))) > 0)
                                written += (uint32_t) iov_cursor_write(&c->chain.writable, buffer, n);
                        virtqueue_push(q, &c->chain, written);
                        chains++;
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (chains >= CHAINS_AT_ONCE) {
                        (void) virtqueue_want_kicks(q); /* on_input() does not call again */
                        return 1;
                }
        } while (terminal_input_available(c->terminal) > 0 && virtqueue_want_kicks(q));
        return 0;
}

/* There is input. From a client's event, not from a kick, so what is wrong with the queue must be said here. */
static void on_input(void *userdata) {
        Console *c = userdata;
        Virtqueue *q = device_queue(c->device, QUEUE_RECEIVE);
        int r;

        if (!device_is_running(c->device)) /* the process() after the next start() takes it */
                return;
        r = receive(c->device);
        if (r == -EBADMSG)
                device_broken(c->device, "receive queue: %s", virtqueue_error(q) ?: "broken");
        else if (r < 0)
                (void) log_warning_errno(r, "Cannot hand input to the guest: %m");
}

/* Everything is taken from a chain but no more than this is looked at: its buffers may overlap, and so hold more than the guest has
 * memory. */
static void transmit_chain(Console *c) {
        uint64_t seen = 0;
        uint8_t buffer[4096];
        size_t n;

        while (seen < CHAIN_MAX && (n = iov_cursor_read(&c->chain.readable, buffer, sizeof(buffer))) > 0) {
                terminal_output(c->terminal, buffer, n);
                seen += n;
        }
        if (c->chain.readable.left > 0 && log_ratelimit(&c->too_long, NULL))
                log_warning("The guest wrote %llu bytes at once; dropping what is beyond %llu.",
                        (unsigned long long) (seen + c->chain.readable.left), (unsigned long long) CHAIN_MAX);
}

static int transmit(Device *d) {
        Console *c = device_data(d);
        Virtqueue *q = device_queue(d, QUEUE_TRANSMIT);
        unsigned chains = 0;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (chains < CHAINS_AT_ONCE && (r = virtqueue_pop(q, &c->chain)) > 0) {
                        transmit_chain(c);
                        virtqueue_push(q, &c->chain, 0);
                        chains++;
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (chains >= CHAINS_AT_ONCE)
                        return 1;
        } while (virtqueue_want_kicks(q));
        return 0;
}

static int console_process(Device *d, unsigned index) {
        return index == QUEUE_TRANSMIT ? transmit(d) : receive(d);
}

static int console_start(Device *d) {
        return 0; /* process() is called for each queue that comes into service */
}

static void console_stop(Device *d) {
        /* No request outlives process(). */
}

static void console_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        Console *c = device_data(d);
        memcpy(data, (const uint8_t *) &c->config + offset, length);
}

static int console_open(Device *d) {
        uint64_t history = device_option_unsigned(d, "history", HISTORY_DEFAULT);
        Console *c;
        int fd, r;

        if (history > HISTORY_MAX)
                return log_error_errno(-ERANGE, "Option --history=%llu is more than %llu.", (unsigned long long) history,
                        (unsigned long long) HISTORY_MAX);

        c = calloc(1, sizeof(*c));
        if (!c)
                return log_oom();
        c->device = d;
        device_set_data(d, c);
        device_set_n_queues(d, N_QUEUES);
        c->config.cols = 80;
        c->config.rows = 25;
        c->too_long = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };

        r = terminal_new(device_event(d), history, on_input, c, &c->terminal);
        if (r < 0)
                return log_error_errno(r, "Cannot make the console's terminal: %m");
        r = terminal_make_pty(c->terminal);
        if (r < 0)
                return log_error_errno(r, "Cannot make a pseudo terminal: %m");

        fd = device_open_path(d, "log", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd == -ENOENT && !device_option(d, "log"))
                return 0;
        if (fd < 0)
                return log_error_errno(fd, "Cannot open the log (--log=%s): %m", device_option(d, "log") ?: "");
        r = terminal_set_log(c->terminal, fd);
        if (r < 0)
                return log_error_errno(r, "Cannot use the log (--log=%s): %m", device_option(d, "log") ?: "");
        return 0;
}

static void console_close(Device *d) {
        Console *c = device_data(d);

        if (!c)
                return;
        (void) terminal_free(c->terminal);
        virtqueue_chain_done(&c->chain);
        free(c);
        device_set_data(d, NULL);
}

static void console_describe(Device *d, json_object *into) {
        Console *c = device_data(d);

        if (terminal_pty_path(c->terminal))
                (void) json_object_object_add(into, "pty", json_object_new_string(terminal_pty_path(c->terminal)));
        (void) json_object_object_add(into, "clients", json_object_new_int((int) terminal_n_clients(c->terminal)));
        (void) json_object_object_add(into, "columns", json_object_new_int(c->config.cols));
        (void) json_object_object_add(into, "rows", json_object_new_int(c->config.rows));
}

static int console_open_console(Device *d, VarlinkCall *call, json_object *parameters) {
        Console *c = device_data(d);
        return terminal_reply_open(c->terminal, call);
}

/* A parameter of 1 to 65535, or -EINVAL. */
static int get_extent(json_object *parameters, const char *name) {
        int64_t v = json_object_get_int64(json_object_object_get(parameters, name));
        return v >= 1 && v <= UINT16_MAX ? (int) v : -EINVAL;
}

static int console_set_size(Device *d, VarlinkCall *call, json_object *parameters) {
        Console *c = device_data(d);
        int columns = get_extent(parameters, "columns"), rows = get_extent(parameters, "rows");

        if (columns < 0)
                return varlink_call_error_invalid_parameter(call, "columns");
        if (rows < 0)
                return varlink_call_error_invalid_parameter(call, "rows");

        if (c->config.cols != columns || c->config.rows != rows) {
                c->config.cols = (uint16_t) columns;
                c->config.rows = (uint16_t) rows;
                device_config_changed(d);
        }
        return varlink_call_reply(call, NULL);
}

static const DeviceControl console_control[] = {
        { "OpenConsole", console_open_console, .privileged = true },
        { "SetConsoleSize", console_set_size, .privileged = true },
        {},
};

const DeviceClass console_device = {
        .name = "console",
        .virtio_id = 3,
        .features = UINT64_C(1) << VIRTIO_CONSOLE_F_SIZE,
        .queues_max = N_QUEUES,
        .config_size = sizeof(struct virtio_console_config),
        .policy = "console",
        .open = console_open,
        .start = console_start,
        .stop = console_stop,
        .process = console_process,
        .config_read = console_config_read,
        .close = console_close,
        .describe = console_describe,
        .control = console_control,
};
