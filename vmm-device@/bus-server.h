/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The helper's side of the bus protocol (lib/bus-protocol.h).
 *
 * One thread, made by bus_server_new(), does the accesses; it looks for requests for a bounded time and then sleeps. The socket
 * and everything else is the event loop's. One client at a time: a second one is refused while the first lives. */

#include <systemd/sd-event.h>

#include "bus-protocol.h"

struct PassedFds;
typedef struct BusServer BusServer;
typedef struct BusDevice BusDevice;

/* What a register device is. All functions get the `userdata` of bus_server_new(). */
struct BusDevice {
        uint64_t n_registers; /* the client must forward at least these */
        unsigned n_irqs;      /* and wire this many interrupt lines */

        /* In the bus thread. One access of 1, 2, 4 or 8 bytes; [offset, offset + size) lies within n_registers.
         * Returns what is read (ignored for a write). Must not block. */
        uint64_t (*access)(void *userdata, uint64_t offset, unsigned size, bool is_write, uint64_t value);
        /* In the bus thread: back to the state at power-on. */
        void (*reset)(void *userdata);

        /* What the device needs to go on after a restart of this process. save() is called after each access and each change (in that thread) and returns
         * how many bytes it wrote (at most `size`); load() in the event loop's thread, with no access running, for a client that comes with such
         * a state: its bytes are the client's, thus hostile. -EBADMSG leaves the device as after a reset. Both may be NULL. */
        size_t (*save)(void *userdata, void *state, size_t size);
        int (*load)(void *userdata, const void *state, size_t size);
};

/* Makes the thread; it exists from here on, so that a sandbox needs no right to make one (load its policy for all
 * threads). `device` and `userdata` outlive the server. */
int bus_server_new(sd_event *event, const BusDevice *device, void *userdata, BusServer **ret);
BusServer *bus_server_free(BusServer *s);
DEFINE_CLEANUP(BusServer, bus_server_free)

/* The service manager keeps the client's connection, memory and interrupt lines, and a memfd with the device's state and which access was the last one done:
 * a successor answers what its predecessor did without doing it again, does what it did not, and the client notices nothing. A connection that was not yet
 * greeted, or anything that does not fit, is closed: the client connects again. 1 where a predecessor's client was taken up. Before bus_server_listen(). */
int bus_server_keep(BusServer *s, struct PassedFds *passed);

/* Around a change of the device's state that is no access, in the event loop's thread: it is saved at the end. */
void bus_server_begin_change(BusServer *s);
void bus_server_end_change(BusServer *s);

/* Both take ownership of the fd, also on error. */
int bus_server_listen(BusServer *s, int fd);
int bus_server_adopt(BusServer *s, int fd);

/* Who comes and goes, in the event loop's thread. */
void bus_server_on_connection(BusServer *s, void (*callback)(void *userdata, bool connected), void *userdata);
bool bus_server_is_connected(BusServer *s);

/* Pulses interrupt line `index`; nothing where no client is connected. From any thread. */
void bus_server_interrupt(BusServer *s, unsigned index);
