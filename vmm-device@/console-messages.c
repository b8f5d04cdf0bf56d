/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The control queues of a console with several ports (virtio 1.2 §5.3.6.2).
 *
 * There is no queue of messages: what the driver is still to be told of each port is a set of flags, so a driver that asks again and again
 * and never gives a buffer costs nothing. A flag is cleared when its message has been given to the driver; a helper that dies in between
 * has its successor tell it twice, which drivers take. */

#include "console.h"

#define MESSAGES_AT_ONCE 64

static void complain_of(Console *c, const struct virtio_console_control *m) {
        if (log_ratelimit(&c->nonsense, NULL))
                log_warning("The guest's driver sent a control message that makes no sense: event %u for port %u, value %u.",
                        m->event, m->id, m->value);
}

/* --- to the driver --- */

/* The first port that the driver is owed something about, and its first message. */
static bool find_owed(Console *c, unsigned *ret_port, ConsoleOwed *ret_what) {
        for (unsigned i = 0; i < c->n_ports; i++) {
                uint8_t owed = c->kept->ports[i].owed;

                if (owed == 0)
                        continue;
                *ret_port = i;
                *ret_what = (ConsoleOwed) (owed & -owed);
                return true;
        }
        return false;
}

static void write_message(Console *c, unsigned port, ConsoleOwed what, IovCursor *to) {
        struct virtio_console_control m = { .id = port, .value = 1 };
        /* The specification's order. Linux had it the other way round until 6.15 and the stable kernels of its time. */
        const struct { uint16_t columns, rows; } size = { c->config.cols, c->config.rows };
        const void *more = NULL;
        size_t n_more = 0;

        switch (what) {
        case CONSOLE_OWES_ADD:
                m.event = VIRTIO_CONSOLE_PORT_ADD;
                break;
        case CONSOLE_OWES_CONSOLE:
                m.event = VIRTIO_CONSOLE_CONSOLE_PORT;
                break;
        case CONSOLE_OWES_NAME:
                m.event = VIRTIO_CONSOLE_PORT_NAME;
                more = c->ports[port].name;
                n_more = strlen(c->ports[port].name);
                break;
        case CONSOLE_OWES_RESIZE:
                m.event = VIRTIO_CONSOLE_RESIZE;
                more = &size;
                n_more = sizeof(size);
                break;
        case CONSOLE_OWES_OPEN:
                m.event = VIRTIO_CONSOLE_PORT_OPEN;
                break;
        }
        if (to->left < sizeof(m) + n_more) {
                if (log_ratelimit(&c->nonsense, NULL))
                        log_warning("The guest's driver has a buffer of %llu bytes for a control message of %zu.",
                                (unsigned long long) to->left, sizeof(m) + n_more);
                return;
        }
        (void) iov_cursor_write(to, &m, sizeof(m));
        if (more)
                (void) iov_cursor_write(to, more, n_more);
}

int console_send_messages(Console *c) {
        Virtqueue *q = device_queue(c->device, CONSOLE_QUEUE_CONTROL_RECEIVE);
        unsigned port, n = 0;
        ConsoleOwed what;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (find_owed(c, &port, &what) && n < MESSAGES_AT_ONCE && (r = virtqueue_pop(q, &c->chain)) > 0) {
                        uint64_t room = c->chain.writable.left;

                        write_message(c, port, what, &c->chain.writable);
                        virtqueue_push(q, &c->chain, (uint32_t) (room - c->chain.writable.left));
                        c->kept->ports[port].owed &= (uint8_t) ~what;
                        n++;
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                if (n >= MESSAGES_AT_ONCE) {
                        (void) virtqueue_want_kicks(q);
                        return 1;
                }
        } while (find_owed(c, &port, &what) && virtqueue_want_kicks(q));
        return 0;
}

static int send_now(Console *c) {
        Virtqueue *q = device_queue(c->device, CONSOLE_QUEUE_CONTROL_RECEIVE);
        int r;

        if (!device_is_running(c->device) || !console_is_multiport(c))
                return 0;
        r = console_send_messages(c);
        if (r == -EBADMSG)
                device_broken(c->device, "control receive queue: %s", (q ? virtqueue_error(q) : NULL) ?: "broken");
        else if (r < 0)
                (void) log_warning_errno(r, "Cannot send the guest's driver a message: %m");
        return r;
}

void console_owe(Console *c, unsigned port, uint8_t what) {
        c->kept->ports[port].owed |= what;
        (void) send_now(c);
}

/* --- from the driver --- */

/* It begins anew, whatever was before. */
static void driver_is_ready(Console *c, bool well) {
        if (!well)
                log_warning("The guest's driver says that it cannot use the console's ports.");
        for (unsigned i = 0; i < c->n_ports; i++) {
                c->kept->ports[i].owed = well ? CONSOLE_OWES_ADD : 0;
                c->kept->ports[i].is_open = false;
        }
}

static void port_is_ready(Console *c, unsigned port, bool well) {
        const char *name = c->ports[port].name;

        if (!well) {
                log_warning("The guest's driver says that it cannot use port %u (%s).", port, name ?: "the console");
                return;
        }
        /* Our side is always open: what the guest writes goes into the history, whoever is there. */
        c->kept->ports[port].owed |= CONSOLE_OWES_OPEN | (name ? CONSOLE_OWES_NAME : CONSOLE_OWES_CONSOLE | CONSOLE_OWES_RESIZE);
}

static void take_message(Console *c, const struct virtio_console_control *m) {
        if (m->event == VIRTIO_CONSOLE_DEVICE_READY) {
                driver_is_ready(c, m->value == 1);
                return;
        }
        if (m->id >= c->n_ports) {
                complain_of(c, m);
                return;
        }
        switch (m->event) {
        case VIRTIO_CONSOLE_PORT_READY:
                port_is_ready(c, m->id, m->value == 1);
                break;
        case VIRTIO_CONSOLE_PORT_OPEN:
                c->kept->ports[m->id].is_open = m->value != 0;
                if (m->value != 0)
                        console_port_deliver(&c->ports[m->id]);
                break;
        default:
                complain_of(c, m);
        }
}

int console_take_messages(Console *c) {
        Virtqueue *q = device_queue(c->device, CONSOLE_QUEUE_CONTROL_TRANSMIT);
        unsigned n = 0;
        int r = 0;

        if (!q)
                return 0;
        do {
                virtqueue_suppress_kicks(q);
                while (n < MESSAGES_AT_ONCE && device_is_running(c->device) && (r = virtqueue_pop(q, &c->chain)) > 0) {
                        struct virtio_console_control m = {};
                        size_t size = iov_cursor_read(&c->chain.readable, &m, sizeof(m));

                        virtqueue_push(q, &c->chain, 0);
                        n++;
                        if (size == sizeof(m))
                                take_message(c, &m);
                        else
                                complain_of(c, &m);
                }
                virtqueue_notify(q);
                if (r < 0)
                        return r;
                r = send_now(c);
                if (r < 0)
                        return r == -EBADMSG ? 0 : r; /* that was said */
                if (n >= MESSAGES_AT_ONCE)
                        return 1;
        } while (device_is_running(c->device) && virtqueue_want_kicks(q));
        return 0;
}
