/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The PC's serial port: a 16550A (uart.h) on the bus protocol. Output goes to the journal, line by line, or to a file; clients may
 * attach as to a console.
 *
 * Two threads meet here. The bus thread runs the UART and puts what the guest sends into `output`; the event loop takes it from there,
 * a few milliseconds later and thus many bytes at once. While `output` is full the transmitter says that it is busy, as a
 * slow line would; drivers wait for that only for so long.
 *
 * How much was put there, and how much of the clients' input is in the UART, is part of its state, which is saved with each access: so a successor
 * goes on in both streams where the last access or change left them.
 *
 * The interrupt line is ISA's, edge-triggered: one pulse whenever the UART's line rises. That is what a KVM irqfd without resampling
 * makes of a write, and 8250 drivers read IIR until nothing is pending. */

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <json-c/json.h>

#include "bus-server.h"
#include "device.h"
#include "line-log.h"
#include "log.h"
#include "terminal-control.h"
#include "terminal.h"
#include "uart.h"

#define OUTPUT_MAX KIB(64)
#define HISTORY_SIZE KIB(64)
#define OUTPUT_DELAY_USEC (2 * USEC_PER_MSEC)
/* An unfinished line is logged when nothing came for this long: a prompt. */
#define LINE_DELAY_USEC USEC_PER_SEC
/* Below journald's own limit (RateLimitBurst= 10000 in 30 s), so that what is lost is counted here. */
#define LINES_BURST 3000
#define LINES_INTERVAL_USEC (10 * USEC_PER_SEC)

typedef struct SavedSerial {
        uint8_t uart[UART_STATE_SIZE];
        uint64_t terminal; /* terminal_id() of the one that these are about */
        uint64_t output_end, input_taken;
} SavedSerial;

typedef struct Serial {
        Device *device;
        Terminal *terminal;
        LineLog line_log;
        LogRateLimit line_limit;
        bool to_journal;
        sd_event_source *wake_source, *output_timer, *line_timer;

        pthread_mutex_t lock; /* guards all below */
        Uart uart;
        uint8_t *output;      /* a ring of OUTPUT_MAX bytes, which outlives us */
        uint64_t output_end;  /* the terminal has what comes before terminal_output_bytes() */
        uint64_t output_begin;
        uint64_t input_taken; /* by the UART */
        bool held_up;  /* the guest was told to wait for room in `output` */
        bool told;     /* the event loop knows that there is output */
        int wake_fd;   /* eventfd: output has come, or the receiver has room */
} Serial;

/* In the bus thread, under the lock. */

static void wake(Serial *s) {
        static const uint64_t one = 1;
        (void) !write(s->wake_fd, &one, sizeof(one));
}

static size_t n_output(const Serial *s) {
        return (size_t) (s->output_end - s->output_begin);
}

static void uart_send(void *userdata, uint8_t byte) {
        Serial *s = userdata;

        if (n_output(s) < OUTPUT_MAX)
                s->output[s->output_end++ % OUTPUT_MAX] = byte;
        if (!s->told) {
                s->told = true;
                wake(s);
        }
}

static bool uart_can_send(void *userdata) {
        Serial *s = userdata;

        if (n_output(s) >= OUTPUT_MAX)
                s->held_up = true;
        return n_output(s) < OUTPUT_MAX;
}

static void uart_interrupt(void *userdata) {
        Serial *s = userdata;
        BusServer *bus = device_bus(s->device);

        if (bus)
                bus_server_interrupt(bus, 0);
}

static void uart_can_receive(void *userdata) {
        wake(userdata);
}

static uint64_t serial_access(void *userdata, uint64_t offset, unsigned size, bool is_write, uint64_t value) {
        Serial *s = device_data(userdata);
        uint64_t answer = 0;

        (void) pthread_mutex_lock(&s->lock);
        /* An access wider than the card becomes several on the ISA bus, of one byte each. */
        for (unsigned i = 0; i < size; i++)
                if (is_write)
                        uart_write(&s->uart, (unsigned) offset + i, (uint8_t) (value >> (i * 8)));
                else
                        answer |= (uint64_t) uart_read(&s->uart, (unsigned) offset + i) << (i * 8);
        (void) pthread_mutex_unlock(&s->lock);
        return answer;
}

static void serial_reset(void *userdata) {
        Serial *s = device_data(userdata);

        (void) pthread_mutex_lock(&s->lock);
        uart_reset(&s->uart);
        wake(s); /* for input that waits */
        (void) pthread_mutex_unlock(&s->lock);
}

static size_t serial_save(void *userdata, void *state, size_t size) {
        Serial *s = device_data(userdata);

        SavedSerial saved = { .terminal = terminal_id(s->terminal) };

        (void) pthread_mutex_lock(&s->lock);
        uart_save(&s->uart, saved.uart);
        saved.output_end = s->output_end;
        saved.input_taken = s->input_taken;
        (void) pthread_mutex_unlock(&s->lock);
        memcpy(state, &saved, sizeof(saved));
        return sizeof(saved);
}

/* Positions in the streams of this very terminal: else there is nothing to go on with. */
static void load_positions(Serial *s, const SavedSerial *saved) {
        if (saved->terminal != terminal_id(s->terminal) || saved->output_end < s->output_begin ||
                saved->output_end - s->output_begin > OUTPUT_MAX)
                return;
        s->output_end = saved->output_end;
        s->told = s->output_end != s->output_begin;
        if (terminal_rewind_input(s->terminal, saved->input_taken) >= 0)
                s->input_taken = saved->input_taken;
        wake(s);
}

static int serial_load(void *userdata, const void *state, size_t size) {
        Serial *s = device_data(userdata);
        int r;

        SavedSerial saved = {};

        /* Without positions, as of one that knew of none. */
        if (size != sizeof(saved) && size != sizeof(saved.uart))
                return -EBADMSG;
        memcpy(&saved, state, size);
        (void) pthread_mutex_lock(&s->lock);
        r = uart_load(&s->uart, saved.uart, sizeof(saved.uart));
        if (r >= 0)
                load_positions(s, &saved);
        (void) pthread_mutex_unlock(&s->lock);
        return r;
}

/* In the event loop. */

static void begin_change(Serial *s) {
        BusServer *bus = device_bus(s->device);

        if (bus)
                bus_server_begin_change(bus);
}

static void end_change(Serial *s) {
        BusServer *bus = device_bus(s->device);

        if (bus)
                bus_server_end_change(bus);
}

static void log_line(void *userdata, const char *line) {
        Serial *s = userdata;
        unsigned suppressed = 0;

        if (!log_ratelimit(&s->line_limit, &suppressed))
                return;
        if (suppressed > 0)
                log_warning("%u lines of the serial port are missing here: the guest writes too many.", suppressed);
        log_info("%s", line);
}

static int on_output_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Serial *s = userdata;
        uint8_t buffer[4096];
        size_t n, at;
        bool more;

        (void) pthread_mutex_lock(&s->lock);
        at = s->output_begin % OUTPUT_MAX;
        n = MIN(MIN(n_output(s), sizeof(buffer)), OUTPUT_MAX - at);
        memcpy(buffer, s->output + at, n);
        (void) pthread_mutex_unlock(&s->lock);

        if (s->to_journal)
                line_log_write(&s->line_log, buffer, n);
        terminal_output(s->terminal, buffer, n);

        begin_change(s);
        (void) pthread_mutex_lock(&s->lock);
        s->output_begin += n;
        s->told = n_output(s) > 0;
        if (s->held_up && n_output(s) < OUTPUT_MAX / 2) {
                s->held_up = false;
                uart_sent(&s->uart);
        }
        more = s->told;
        (void) pthread_mutex_unlock(&s->lock);
        end_change(s);
        if (s->line_log.length > 0) {
                (void) sd_event_source_set_time_relative(s->line_timer, LINE_DELAY_USEC);
                (void) sd_event_source_set_enabled(s->line_timer, SD_EVENT_ONESHOT);
        }
        if (more) {
                /* One piece at a time: others of the loop have their turn in between. */
                (void) sd_event_source_set_time(s->output_timer, 0);
                (void) sd_event_source_set_enabled(s->output_timer, SD_EVENT_ONESHOT);
        }
        return 0;
}

static int on_line_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Serial *s = userdata;
        line_log_flush(&s->line_log);
        return 0;
}

static void receive(void *userdata) {
        Serial *s = userdata;
        uint8_t buffer[UART_FIFO_SIZE];
        size_t n, taken;

        begin_change(s);
        (void) pthread_mutex_lock(&s->lock);
        do {
                /* What the UART has no room for stays where it is: the room is known beforehand. */
                size_t room = uart_receive_room(&s->uart);

                n = terminal_take_input(s->terminal, buffer, MIN(room, sizeof(buffer)));
                taken = uart_receive(&s->uart, buffer, n);
                s->input_taken += n;
        } while (n > 0 && taken == n);
        (void) pthread_mutex_unlock(&s->lock);
        end_change(s);
}

static int on_wake(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Serial *s = userdata;
        uint64_t count;
        bool told;

        (void) !read(fd, &count, sizeof(count));
        (void) pthread_mutex_lock(&s->lock);
        told = s->told;
        (void) pthread_mutex_unlock(&s->lock);
        if (told) {
                int enabled = SD_EVENT_OFF;

                (void) sd_event_source_get_enabled(s->output_timer, &enabled);
                if (enabled == SD_EVENT_OFF) {
                        (void) sd_event_source_set_time_relative(s->output_timer, OUTPUT_DELAY_USEC);
                        (void) sd_event_source_set_enabled(s->output_timer, SD_EVENT_ONESHOT);
                }
        }
        receive(s);
        return 0;
}

/* Set-up. */

static int open_output(Serial *s) {
        const char *output = device_option(s->device, "output") ?: "journal";
        int fd, r;

        s->to_journal = streq(output, "journal");
        if (!streq(output, "file")) {
                if (!s->to_journal && !streq(output, "none"))
                        return log_error_errno(-EINVAL, "Option --output=%s is not one of journal, file, none.", output);
                return 0;
        }

        fd = device_open_path(s->device, "path", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return log_error_errno(fd, "Cannot open the file for the output (--path=%s): %m", device_option(s->device, "path") ?: "");
        r = terminal_set_log(s->terminal, fd);
        if (r < 0)
                return log_error_errno(r, "Cannot use the file for the output (--path=%s): %m", device_option(s->device, "path") ?: "");
        return 0;
}

static int add_timer(Serial *s, sd_event_source **ret, uint64_t accuracy, sd_event_time_handler_t handler) {
        int r = sd_event_add_time(device_event(s->device), ret, CLOCK_MONOTONIC, 0, accuracy, handler, s);

        return r < 0 ? r : sd_event_source_set_enabled(*ret, SD_EVENT_OFF);
}

static int add_sources(Serial *s) {
        int r;

        s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (s->wake_fd < 0)
                return -errno;
        r = sd_event_add_io(device_event(s->device), &s->wake_source, s->wake_fd, EPOLLIN, on_wake, s);
        if (r < 0)
                return r;
        r = add_timer(s, &s->output_timer, 1, on_output_timer);
        if (r < 0)
                return r;
        return add_timer(s, &s->line_timer, 0, on_line_timer);
}

static int serial_open(Device *d) {
        void *output;
        Serial *s;
        int r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return log_oom();
        s->device = d;
        s->wake_fd = -EBADF;
        (void) pthread_mutex_init(&s->lock, NULL);
        device_set_data(d, s);

        s->line_log = (LineLog) { .emit = log_line, .userdata = s };
        s->line_limit = (LogRateLimit) { .interval_usec = LINES_INTERVAL_USEC, .burst = LINES_BURST };
        s->uart = (Uart) {
                .send = uart_send,
                .can_send = uart_can_send,
                .interrupt = uart_interrupt,
                .can_receive = uart_can_receive,
                .userdata = s,
        };
        uart_reset(&s->uart);
        r = device_keep(d, "serial-output", OUTPUT_MAX, &output);
        if (r < 0)
                return log_error_errno(r, "Cannot make room for the port's output: %m");
        s->output = output;

        r = terminal_new(device_event(d), HISTORY_SIZE, receive, s, &s->terminal);
        if (r >= 0)
                r = terminal_keep(s->terminal, device_passed(d), "terminal");
        if (r < 0)
                return log_error_errno(r, "Cannot make the port's terminal: %m");
        s->output_begin = s->output_end = terminal_output_bytes(s->terminal);
        s->input_taken = terminal_input_bytes(s->terminal);
        r = open_output(s);
        if (r < 0)
                return r;
        r = add_sources(s);
        if (r < 0)
                return log_error_errno(r, "Cannot make the port's event sources: %m");
        return 0;
}

static void serial_close(Device *d) {
        Serial *s = device_data(d);

        if (!s)
                return;
        if (s->output_timer && s->terminal)
                while (n_output(s) > 0) /* the bus thread has ended */
                        (void) on_output_timer(NULL, 0, s);
        line_log_flush(&s->line_log);
        (void) sd_event_source_disable_unref(s->wake_source);
        (void) sd_event_source_disable_unref(s->output_timer);
        (void) sd_event_source_disable_unref(s->line_timer);
        (void) terminal_free(s->terminal);
        (void) safe_close(s->wake_fd);
        (void) pthread_mutex_destroy(&s->lock);
        free(s);
        device_set_data(d, NULL);
}

static void serial_describe(Device *d, json_object *into) {
        Serial *s = device_data(d);

        (void) json_object_object_add(into, "port", json_object_new_string(device_option(d, "port") ?: "com1"));
        (void) json_object_object_add(into, "output", json_object_new_string(device_option(d, "output") ?: "journal"));
        (void) json_object_object_add(into, "clients", json_object_new_int((int) terminal_n_clients(s->terminal)));
}

static int serial_open_console(Device *d, VarlinkCall *call, json_object *parameters) {
        Serial *s = device_data(d);
        return json_object_object_get(parameters, "port") ? terminal_reply_no_port(call, parameters) :
                terminal_reply_open(s->terminal, call);
}

static int serial_attach_console(Device *d, VarlinkCall *call, json_object *parameters) {
        Serial *s = device_data(d);
        return json_object_object_get(parameters, "port") ? terminal_reply_no_port(call, parameters) :
                terminal_reply_attach(s->terminal, call, parameters);
}

static void serial_counters(Device *d, json_object *into) {
        Serial *s = device_data(d);
        terminal_count(s->terminal, NULL, into);
}

static const DeviceControl serial_control[] = {
        { "OpenConsole", serial_open_console, .privileged = true },
        { "AttachConsole", serial_attach_console, .privileged = true },
        {},
};

static const BusDevice serial_bus = {
        .n_registers = UART_N_REGISTERS,
        .n_irqs = 1,
        .access = serial_access,
        .reset = serial_reset,
        .save = serial_save,
        .load = serial_load,
};

const DeviceClass serial_device = {
        .name = "serial",
        .policy = "serial",
        .open = serial_open,
        .close = serial_close,
        .describe = serial_describe,
        .control = serial_control,
        .counters = serial_counters,
        .bus = &serial_bus,
};
