/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "i8042.h"

#define OFFSET_DATA 0
#define OFFSET_COMMAND 4

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM 0x04 /* the self-test has passed */
#define STATUS_UNLOCKED 0x10

#define COMMAND_READ_CONTROL 0x20
#define COMMAND_WRITE_CONTROL 0x60
#define COMMAND_TEST_AUX 0xA9
#define COMMAND_SELF_TEST 0xAA
#define COMMAND_TEST_KEYBOARD 0xAB
#define COMMAND_READ_OUTPUT_PORT 0xD0
#define COMMAND_WRITE_OUTPUT_PORT 0xD1
#define COMMAND_WRITE_AUX 0xD4
#define COMMAND_PULSE 0xF0 /* to 0xFF: a zero bit pulses that line of the output port */

#define OUTPUT_PORT_NO_RESET 0x01
#define OUTPUT_PORT_A20 0x02

void i8042_init(I8042 *dev, void (*reset_machine)(void *userdata), void *userdata) {
        *dev = (I8042) { .reset_machine = reset_machine, .userdata = userdata };
}

void i8042_reset(I8042 *dev) {
        i8042_init(dev, dev->reset_machine, dev->userdata);
}

static void answer(I8042 *dev, uint8_t byte) {
        dev->output = byte;
        dev->output_full = true;
}

static void write_output_port(I8042 *dev, uint8_t value) {
        if (!(value & OUTPUT_PORT_NO_RESET) && dev->reset_machine)
                dev->reset_machine(dev->userdata);
}

static void write_command(I8042 *dev, uint8_t command) {
        dev->command = 0;
        switch (command) {
        case COMMAND_READ_CONTROL:
                answer(dev, dev->control);
                break;
        case COMMAND_WRITE_CONTROL:
        case COMMAND_WRITE_OUTPUT_PORT:
        case COMMAND_WRITE_AUX:
                dev->command = command;
                break;
        case COMMAND_TEST_AUX:
        case COMMAND_TEST_KEYBOARD:
                answer(dev, 0x00); /* no fault */
                break;
        case COMMAND_SELF_TEST:
                answer(dev, 0x55); /* passed */
                break;
        case COMMAND_READ_OUTPUT_PORT:
                answer(dev, OUTPUT_PORT_NO_RESET | OUTPUT_PORT_A20);
                break;
        default:
                if (command >= COMMAND_PULSE)
                        write_output_port(dev, command);
        }
}

static void write_data(I8042 *dev, uint8_t value) {
        uint8_t command = dev->command;

        dev->command = 0;
        if (command == COMMAND_WRITE_CONTROL)
                dev->control = value;
        else if (command == COMMAND_WRITE_OUTPUT_PORT)
                write_output_port(dev, value);
        /* Anything else is for a keyboard or a mouse, which are not there and do not answer. */
}

void i8042_read(I8042 *dev, uint64_t offset, void *data, size_t size) {
        uint8_t *byte = data;

        memset(data, 0xFF, size);
        if (size == 0)
                return;
        if (offset == OFFSET_DATA) {
                *byte = dev->output;
                dev->output_full = false;
        } else if (offset == OFFSET_COMMAND)
                *byte = STATUS_SYSTEM | STATUS_UNLOCKED | (dev->output_full ? STATUS_OUTPUT_FULL : 0);
}

void i8042_write(I8042 *dev, uint64_t offset, const void *data, size_t size) {
        if (size == 0)
                return;
        if (offset == OFFSET_DATA)
                write_data(dev, *(const uint8_t *) data);
        else if (offset == OFFSET_COMMAND)
                write_command(dev, *(const uint8_t *) data);
}

int i8042_save(const I8042 *dev, StateWriter *w) {
        state_begin(w, "i8042", 0, 1);
        state_put_u8(w, dev->command);
        state_put_u8(w, dev->control);
        state_put_u8(w, dev->output);
        state_put_u8(w, dev->output_full);
        return state_end(w);
}

int i8042_load(I8042 *dev, StateReader *reader, char **ret_message) {
        I8042 loaded = *dev;
        int r;

        r = state_enter(reader, "i8042", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "State has no section i8042.0 that this version understands.");
        loaded.command = state_get_u8(reader);
        loaded.control = state_get_u8(reader);
        loaded.output = state_get_u8(reader);
        loaded.output_full = state_get_u8(reader) != 0;
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;

        *dev = loaded;
        return 0;
}
