/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* virtio console (virtio 1.2 §5.3): what the device, its ports and its control queues share. */

#include <linux/virtio_console.h>

#include "device.h"
#include "device-type.h"
#include "log.h"
#include "terminal.h"

/* Port 0 and the named ones: each has two queues, and there are two for control. */
#define CONSOLE_PORTS_MAX (DEVICE_PORTS_MAX + 1)
#define CONSOLE_QUEUES_MAX (2 * CONSOLE_PORTS_MAX + 2)

enum {
        CONSOLE_QUEUE_RECEIVE = 0,  /* of port 0; "receive" is the guest's point of view */
        CONSOLE_QUEUE_TRANSMIT = 1,
        CONSOLE_QUEUE_CONTROL_RECEIVE = 2,
        CONSOLE_QUEUE_CONTROL_TRANSMIT = 3,
};

/* What the driver is still to be told of a port, one bit a message, told in this order. */
typedef enum ConsoleOwed {
        CONSOLE_OWES_ADD = 1 << 0,
        CONSOLE_OWES_CONSOLE = 1 << 1,
        CONSOLE_OWES_NAME = 1 << 2,
        CONSOLE_OWES_RESIZE = 1 << 3,
        CONSOLE_OWES_OPEN = 1 << 4,
} ConsoleOwed;

/* Where in a terminal's stream a chain begins that was taken: who dies before the driver was shown it has done something of it, and who comes after that knows how
 * much. Each process() shows what it took when it ends, and takes no more than CONSOLE_CHAINS_AT_ONCE. */
#define CONSOLE_CHAINS_AT_ONCE 64
#define CONSOLE_MARKS (2 * CONSOLE_CHAINS_AT_ONCE)
typedef struct ConsoleMark {
        uint64_t position;
        uint32_t used; /* the chain's index in the used ring, and CONSOLE_MARK_VALID */
        uint32_t padding;
} ConsoleMark;
#define CONSOLE_MARK_VALID UINT32_C(0x10000)

typedef struct ConsoleMarks {
        ConsoleMark received[CONSOLE_MARKS], transmitted[CONSOLE_MARKS];
} ConsoleMarks;

/* What the driver said and is owed, in the unit's descriptor store: it does not say it again to a successor. */
typedef struct ConsoleKept {
        uint16_t columns, rows; /* 0: nobody has said */
        struct {
                uint8_t owed;   /* ConsoleOwed */
                bool is_open;   /* the guest has it open: only then data may be sent */
        } ports[CONSOLE_PORTS_MAX];
} ConsoleKept;

typedef struct Console Console;

typedef struct ConsolePort {
        Console *console;
        const char *name; /* NULL for port 0, which is the console; of the options */
        Terminal *terminal;
        bool has_looked_back; /* at what a predecessor had begun to hand to the guest */
} ConsolePort;

struct Console {
        Device *device;
        ConsolePort ports[CONSOLE_PORTS_MAX];
        unsigned n_ports;
        struct virtio_console_config config;
        ConsoleKept *kept;
        ConsoleMarks *marks; /* of each port */
        VirtqueueChain chain;
        LogRateLimit too_long, nonsense;
};

/* Whether driver and device agreed on more than one port. */
bool console_is_multiport(const Console *c);
/* Hands a port's waiting input to the guest as far as there are buffers. From an event of the device's own. */
void console_port_deliver(ConsolePort *port);

/* console-messages.c: the control queues. Like process(). */
int console_send_messages(Console *c);
int console_take_messages(Console *c);
/* From an event of the device's own: the driver is told more about a port. */
void console_owe(Console *c, unsigned port, uint8_t what);
