/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* As much of the keyboard controller as a kernel needs to reset the machine by it: command 0xFE at port 0x64. There is no
 * keyboard and no mouse behind it (the FADT says so, too), but its self-test passes and it never seems busy. */

#include "state.h"
#include "util.h"

typedef struct I8042 {
        void (*reset_machine)(void *userdata);
        void *userdata;
        uint8_t command;     /* that waits for a byte at port 0x60; 0: none */
        uint8_t control;     /* the controller's command byte */
        uint8_t output;      /* answer that waits to be read at port 0x60 */
        bool output_full;
} I8042;

void i8042_init(I8042 *dev, void (*reset_machine)(void *userdata), void *userdata);
void i8042_reset(I8042 *dev);
/* Offset from X86_PORT_I8042_DATA: 0 is data, 4 is command and status. Other offsets (0x61 is not ours) read as all ones. */
void i8042_read(I8042 *dev, uint64_t offset, void *data, size_t size);
void i8042_write(I8042 *dev, uint64_t offset, const void *data, size_t size);
int i8042_save(const I8042 *dev, StateWriter *w);
int i8042_load(I8042 *dev, StateReader *r, char **ret_message);
