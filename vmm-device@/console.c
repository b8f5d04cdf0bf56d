/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* virtio console (virtio 1.2 §5.3): the console, which is port 0, and where the definition has some, named ports beside it. Each is a
 * terminal (terminal.h) with two queues: in the first the guest receives, in the second it transmits. */

#include <fcntl.h>
#include <stdio.h>

#include <json-c/json.h>

#include "console.h"
#include "server.h"
#include "terminal-control.h"

#define HISTORY_DEFAULT KIB(256)
#define HISTORY_MAX MIB(16)
/* Chains of one process() call; then others of the event loop have their turn. */
#define CHAINS_AT_ONCE CONSOLE_CHAINS_AT_ONCE
#define CHAIN_MAX MIB(1)
#define KEPT "console-state"
#define KEPT_MARKS "console-marks"

bool console_is_multiport(const Console *c) {
        return device_features(c->device) & (UINT64_C(1) << VIRTIO_CONSOLE_F_MULTIPORT);
}

/* §5.3.2: those for control come after port 0's. */
static unsigned receive_queue_of(const ConsolePort *port) {
        unsigned i = (unsigned) (port - port->console->ports);

        return i == 0 ? CONSOLE_QUEUE_RECEIVE : 2 * i + 2;
}

/* What the guest gets while it has not opened a port it throws away. */
static bool may_receive(const ConsolePort *port) {
        const Console *c = port->console;

        return !console_is_multiport(c) || c->kept->ports[port - c->ports].is_open;
}

/* ---- across our death ---- */

static ConsoleMark *mark_of(ConsoleMark *marks, uint16_t used) {
        return &marks[used % CONSOLE_MARKS];
}

static bool is_marked(ConsoleMark *marks, uint16_t used) {
        return mark_of(marks, used)->used == (used | CONSOLE_MARK_VALID);
}

static void set_mark(ConsoleMark *marks, uint16_t used, uint64_t position) {
        ConsoleMark *mark = mark_of(marks, used);

        mark->position = position;
        __atomic_store_n(&mark->used, used | CONSOLE_MARK_VALID, __ATOMIC_RELEASE);
}

/* What a predecessor took from the terminal for a chain that the driver never saw goes into the chain that it sees instead. */
static void look_back(ConsolePort *port, Virtqueue *q, ConsoleMark *marks) {
        uint16_t used = virtqueue_next_used(q);

        if (port->has_looked_back)
                return;
        port->has_looked_back = true;
        if (virtqueue_resumes(q) && is_marked(marks, used))
                (void) terminal_rewind_input(port->terminal, mark_of(marks, used)->position);
}

/* How much of the chain a predecessor has put out already. */
static uint64_t already_transmitted(ConsolePort *port, Virtqueue *q, ConsoleMark *marks) {
        uint16_t used = virtqueue_next_used(q), next = (uint16_t) (used + 1);
        uint64_t end = terminal_output_bytes(port->terminal), begin;

        if (!virtqueue_taken_again(q, &port->console->chain) || !is_marked(marks, used)) {
                set_mark(marks, used, end);
                return 0;
        }
        begin = mark_of(marks, used)->position;
        if (is_marked(marks, next))
                end = MIN(end, mark_of(marks, next)->position);
        return end > begin ? end - begin : 0;
}

static bool has_input(void *userdata) {
        ConsolePort *port = userdata;

        return terminal_input_available(port->terminal) > 0;
}

static uint32_t receive_chain(VirtqueueChain *chain, void *userdata) {
        ConsolePort *port = userdata;
        Console *c = port->console;
        uint32_t written = 0;
        uint8_t buffer[512];
        size_t n;

        set_mark(c->marks[port - c->ports].received, virtqueue_next_used(device_queue(c->device, receive_queue_of(port))),
                terminal_input_bytes(port->terminal));
        while ((n = terminal_take_input(port->terminal, buffer, MIN(sizeof(buffer), chain->writable.left))) > 0)
                written += (uint32_t) iov_cursor_write(&chain->writable, buffer, n);
        return written;
}

/* Fills the guest's buffers as long as there are both, input and buffers. 1 where there is more to do. */
static int receive(ConsolePort *port) {
        static const VirtqueueServer server = { .wanted = has_input, .serve = receive_chain, .max = CHAINS_AT_ONCE };
        Console *c = port->console;
        Virtqueue *q = device_queue(c->device, receive_queue_of(port));

        if (!q)
                return 0;
        if (may_receive(port)) {
                look_back(port, q, c->marks[port - c->ports].received);
                return virtqueue_serve(q, &c->chain, &server, port);
        }
        virtqueue_suppress_kicks(q);
        return 0;
}

/* Not from a kick, so what is wrong with the queue must be said here. */
void console_port_deliver(ConsolePort *port) {
        Device *d = port->console->device;
        Virtqueue *q = device_queue(d, receive_queue_of(port));
        int r;

        if (!device_is_running(d)) /* the process() after the next start() takes it */
                return;
        r = receive(port);
        if (r == -EBADMSG)
                device_broken(d, "receive queue: %s", (q ? virtqueue_error(q) : NULL) ?: "broken");
        else if (r < 0)
                (void) log_warning_errno(r, "Cannot hand input to the guest: %m");
}

static void on_input(void *userdata) {
        console_port_deliver(userdata);
}

/* Everything is taken from a chain but no more than this is looked at: its buffers may overlap, and so hold more than the guest has
 * memory. */
static uint32_t transmit_chain(VirtqueueChain *chain, void *userdata) {
        ConsolePort *port = userdata;
        Console *c = port->console;
        uint64_t seen = 0, already;
        uint8_t buffer[4096];
        size_t n;

        already = already_transmitted(port, device_queue(c->device, receive_queue_of(port) + 1), c->marks[port - c->ports].transmitted);
        while (seen < already && (n = iov_cursor_read(&chain->readable, buffer, MIN(sizeof(buffer), already - seen))) > 0)
                seen += n;
        while (seen < CHAIN_MAX && (n = iov_cursor_read(&chain->readable, buffer, sizeof(buffer))) > 0) {
                terminal_output(port->terminal, buffer, n);
                seen += n;
        }
        if (chain->readable.left > 0 && log_ratelimit(&port->console->too_long, NULL))
                log_warning("The guest wrote %llu bytes at once; dropping what is beyond %llu.",
                        (unsigned long long) (seen + chain->readable.left), (unsigned long long) CHAIN_MAX);
        return 0;
}

static int transmit(ConsolePort *port) {
        static const VirtqueueServer server = { .serve = transmit_chain, .max = CHAINS_AT_ONCE };
        Console *c = port->console;
        Virtqueue *q = device_queue(c->device, receive_queue_of(port) + 1);

        return q ? virtqueue_serve(q, &c->chain, &server, port) : 0;
}

static int console_process(Device *d, unsigned index) {
        Console *c = device_data(d);
        ConsolePort *port;

        /* A driver that knows of one port only has no business with the other queues. */
        if (index >= CONSOLE_QUEUE_CONTROL_RECEIVE && !console_is_multiport(c))
                return 0;
        if (index == CONSOLE_QUEUE_CONTROL_RECEIVE)
                return console_send_messages(c);
        if (index == CONSOLE_QUEUE_CONTROL_TRANSMIT)
                return console_take_messages(c);
        port = &c->ports[index < CONSOLE_QUEUE_CONTROL_RECEIVE ? 0 : (index - 2) / 2];
        return index % 2 == 0 ? receive(port) : transmit(port);
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

/* The next driver has told us nothing. */
static void console_reset(Device *d) {
        Console *c = device_data(d);

        memset(c->kept->ports, 0, sizeof(c->kept->ports));
        memset(c->marks, 0, c->n_ports * sizeof(ConsoleMarks));
}

static int open_port(Console *c, const char *name, size_t history) {
        ConsolePort *port = &c->ports[c->n_ports++];
        char kept[32];
        int r;

        *port = (ConsolePort) { .console = c, .name = name };
        r = terminal_new(device_event(c->device), history, on_input, port, &port->terminal);
        if (r >= 0) {
                (void) snprintf(kept, sizeof(kept), "terminal-%02u", c->n_ports - 1);
                r = terminal_keep(port->terminal, device_passed(c->device), kept);
        }
        if (r < 0)
                return log_error_errno(r, "Cannot make the terminal of port '%s': %m", name ?: "0");
        r = terminal_make_pty(port->terminal);
        return r < 0 ? log_error_errno(r, "Cannot make the pseudo terminal of port '%s': %m", name ?: "0") : 0;
}

static int open_ports(Console *c, size_t history) {
        const char *const *names;
        size_t n = 0;
        int r;

        r = open_port(c, NULL, history);
        names = device_option_list(c->device, "ports", &n);
        if (n >= CONSOLE_PORTS_MAX)
                return log_error_errno(-E2BIG, "There are %zu --ports=; at most %u are possible.", n, CONSOLE_PORTS_MAX - 1);
        for (size_t i = 0; i < n && r >= 0; i++) {
                for (size_t k = 0; k < i; k++)
                        if (streq(names[i], names[k]))
                                return log_error_errno(-EEXIST, "There is --ports=%s twice.", names[i]);
                r = open_port(c, names[i], history);
        }
        if (r < 0)
                return r;

        c->config.max_nr_ports = c->n_ports;
        device_set_n_queues(c->device, c->n_ports == 1 ? 2 : 2 * c->n_ports + 2);
        if (c->n_ports == 1)
                device_set_features(c->device, UINT64_C(1) << VIRTIO_CONSOLE_F_SIZE);
        return 0;
}

static int open_log(Console *c) {
        Device *d = c->device;
        int fd, r;

        fd = device_open_path(d, "log", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd == -ENOENT && !device_option(d, "log"))
                return 0;
        if (fd < 0)
                return log_error_errno(fd, "Cannot open the log (--log=%s): %m", device_option(d, "log") ?: "");
        r = terminal_set_log(c->ports[0].terminal, fd);
        return r < 0 ? log_error_errno(r, "Cannot use the log (--log=%s): %m", device_option(d, "log") ?: "") : 0;
}

static int console_open(Device *d) {
        uint64_t history = device_option_unsigned(d, "history", HISTORY_DEFAULT);
        void *kept;
        Console *c;
        int r;

        if (history > HISTORY_MAX)
                return log_error_errno(-ERANGE, "Option --history=%llu is more than %llu.", (unsigned long long) history,
                        (unsigned long long) HISTORY_MAX);

        c = calloc(1, sizeof(*c));
        if (!c)
                return log_oom();
        c->device = d;
        device_set_data(d, c);
        c->too_long = c->nonsense = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };

        r = device_keep(d, KEPT, sizeof(ConsoleKept), &kept);
        if (r < 0)
                return log_error_errno(r, "Cannot keep the console's state: %m");
        c->kept = kept;
        r = device_keep(d, KEPT_MARKS, CONSOLE_PORTS_MAX * sizeof(ConsoleMarks), &kept);
        if (r < 0)
                return log_error_errno(r, "Cannot keep the console's state: %m");
        c->marks = kept;
        c->config.cols = c->kept->columns ?: 80;
        c->config.rows = c->kept->rows ?: 25;

        r = open_ports(c, history);
        return r < 0 ? r : open_log(c);
}

static void console_close(Device *d) {
        Console *c = device_data(d);

        if (!c)
                return;
        for (unsigned i = 0; i < c->n_ports; i++)
                (void) terminal_free(c->ports[i].terminal);
        virtqueue_chain_done(&c->chain);
        free(c);
        device_set_data(d, NULL);
}

/* --- control --- */

static json_object *describe_port(const ConsolePort *port) {
        const Console *c = port->console;
        const char *pty = terminal_pty_path(port->terminal);
        json_object *o = json_object_new_object();

        (void) json_object_object_add(o, "name", json_object_new_string(port->name));
        if (pty)
                (void) json_object_object_add(o, "pty", json_object_new_string(pty));
        (void) json_object_object_add(o, "clients", json_object_new_int((int) terminal_n_clients(port->terminal)));
        (void) json_object_object_add(o, "open", json_object_new_boolean(c->kept->ports[port - c->ports].is_open));
        return o;
}

static void console_describe(Device *d, json_object *into) {
        Console *c = device_data(d);
        Terminal *terminal = c->ports[0].terminal;
        json_object *ports;

        if (terminal_pty_path(terminal))
                (void) json_object_object_add(into, "pty", json_object_new_string(terminal_pty_path(terminal)));
        (void) json_object_object_add(into, "clients", json_object_new_int((int) terminal_n_clients(terminal)));
        (void) json_object_object_add(into, "columns", json_object_new_int(c->config.cols));
        (void) json_object_object_add(into, "rows", json_object_new_int(c->config.rows));
        if (c->n_ports == 1)
                return;
        ports = json_object_new_array();
        for (unsigned i = 1; i < c->n_ports; i++)
                (void) json_object_array_add(ports, describe_port(&c->ports[i]));
        (void) json_object_object_add(into, "ports", ports);
}

/* The port that the call is about: the console where it names none. NULL: the call is to be refused. */
static ConsolePort *find_port(Console *c, json_object *parameters) {
        json_object *name = json_object_object_get(parameters, "port");

        if (!name)
                return &c->ports[0];
        for (unsigned i = 1; i < c->n_ports; i++)
                if (streq(c->ports[i].name, json_object_get_string(name)))
                        return &c->ports[i];
        return NULL;
}

static int console_open_console(Device *d, VarlinkCall *call, json_object *parameters) {
        ConsolePort *port = find_port(device_data(d), parameters);

        return port ? terminal_reply_open(port->terminal, call) : terminal_reply_no_port(call, parameters);
}

static int console_attach_console(Device *d, VarlinkCall *call, json_object *parameters) {
        ConsolePort *port = find_port(device_data(d), parameters);

        return port ? terminal_reply_attach(port->terminal, call, parameters) : terminal_reply_no_port(call, parameters);
}

static void console_counters(Device *d, json_object *into) {
        Console *c = device_data(d);

        for (unsigned i = 0; i < c->n_ports; i++)
                terminal_count(c->ports[i].terminal, c->ports[i].name, into);
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
                c->config.cols = c->kept->columns = (uint16_t) columns;
                c->config.rows = c->kept->rows = (uint16_t) rows;
                device_config_changed(d);
                /* A driver that knows of several ports looks for this instead, once it knows the port. */
                if (c->kept->ports[0].is_open)
                        console_owe(c, 0, CONSOLE_OWES_RESIZE);
        }
        return varlink_call_reply(call, NULL);
}

static const DeviceControl console_control[] = {
        { "OpenConsole", console_open_console, .privileged = true },
        { "AttachConsole", console_attach_console, .privileged = true },
        { "SetConsoleSize", console_set_size, .privileged = true },
        {},
};

#define CONSOLE_STATE_VERSION 1
#define CONSOLE_OWES_ALL \
        (CONSOLE_OWES_ADD | CONSOLE_OWES_CONSOLE | CONSOLE_OWES_NAME | CONSOLE_OWES_RESIZE | CONSOLE_OWES_OPEN)

static int console_save(Device *d, StateWriter *w) {
        const Console *c = device_data(d);

        state_begin(w, "console", 0, CONSOLE_STATE_VERSION);
        state_put_u16(w, c->config.cols);
        state_put_u16(w, c->config.rows);
        state_put_u32(w, c->n_ports);
        for (unsigned i = 0; i < c->n_ports; i++) {
                state_put_u8(w, c->kept->ports[i].owed);
                state_put_u8(w, c->kept->ports[i].is_open);
        }
        return state_end(w);
}

static int console_load(Device *d, StateReader *reader, char **ret_message) {
        Console *c = device_data(d);
        ConsoleKept kept = {};
        bool fits = true;
        uint32_t n;
        int r;

        r = state_enter(reader, "console", 0, CONSOLE_STATE_VERSION);
        if (r < 0)
                return set_message(ret_message, r, "it is no state of a console, or a newer version's");
        kept.columns = state_get_u16(reader);
        kept.rows = state_get_u16(reader);
        n = state_get_u32(reader);
        if (n != c->n_ports)
                return set_message(ret_message, -EBADMSG, "it has %u ports, and this console %u", n, c->n_ports);
        for (unsigned i = 0; i < n; i++) {
                kept.ports[i].owed = state_get_u8(reader);
                kept.ports[i].is_open = state_get_u8(reader);
                /* The console has no name, and the others are no console. */
                fits = fits && (kept.ports[i].owed & ~(i == 0 ? CONSOLE_OWES_ALL & ~CONSOLE_OWES_NAME : CONSOLE_OWES_ALL)) == 0;
        }
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        if (!fits || kept.columns == 0 || kept.rows == 0)
                return set_message(ret_message, -EBADMSG, "it is none that a console can be in");
        *c->kept = kept;
        c->config.cols = kept.columns;
        c->config.rows = kept.rows;
        return 0;
}

const DeviceClass console_device = {
        .name = "console",
        .virtio_id = 3,
        .features = UINT64_C(1) << VIRTIO_CONSOLE_F_SIZE | UINT64_C(1) << VIRTIO_CONSOLE_F_MULTIPORT,
        .queues_max = CONSOLE_QUEUES_MAX,
        .config_size = sizeof(struct virtio_console_config),
        .policy = "console",
        .open = console_open,
        .start = console_start,
        .stop = console_stop,
        .reset = console_reset,
        .process = console_process,
        .config_read = console_config_read,
        .save = console_save,
        .load = console_load,
        .close = console_close,
        .describe = console_describe,
        .control = console_control,
        .counters = console_counters,
};
