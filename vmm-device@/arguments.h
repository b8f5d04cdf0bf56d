/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The helper's command line, and the table of what it can be. */

#include "device.h"
#include "options.h"

typedef struct Arguments {
        bool slot;                /* no device yet: told by io.vmmd.Slot which one */
        const DeviceClass *class;
        const DeviceType *type;
        DeviceOptions *options;
        const char *socket_path, *varlink_path, *vsock_path;
        int fd;                   /* socket of a front-end */
        bool sandbox;
} Arguments;
#define ARGUMENTS_NULL { .fd = -EBADF, .sandbox = true }

/* Returns 0 to go on, 1 where the process is done (--help and its like), or a negative errno, which was said. */
int arguments_parse(Arguments *a, int argc, char **argv);
void arguments_done(Arguments *a);

/* NULL where there is no such type of device. */
const DeviceClass *device_class_find(const char *name);
/* The class that serves a device with these options: that of its type, or that of another project's program. */
const DeviceClass *device_class_for(const DeviceClass *class, const DeviceOptions *options);
