/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The host's side of a device that test-hostile.c torments: the resources it opens, and something for a guest to receive. */

#include "util.h"

typedef struct HostKind HostKind;

typedef struct Host {
        const HostKind *kind;
        char directory[40];
        char varlink[64];
        char arguments[3][96]; /* for the helper; empty where there are fewer */
        int fd;                /* a socket on the tap, a client of console or guest, a connection to the balloon's control socket; */
        int second_fd;         /* a client of the console's second port, a listening socket */
} Host;

/* Makes the resources of a device of that type. Returns false, with a reason on standard output, where this machine does not let us. */
bool host_open(Host *h, const char *type);
/* Gives the guest something that fits any queue of the device whose requests wait for the host. May be called again and again. */
void host_stimulate(Host *h, unsigned queue);
void host_close(Host *h);
