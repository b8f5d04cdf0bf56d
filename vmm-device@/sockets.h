/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The sockets of a helper: from the service manager, from the command line, or made here. */

#include "util.h"

typedef struct Sockets {
        int transport;     /* listening socket for front-ends: vhost-user, or the bus */
        int connection;    /* an already connected front-end instead (--fd) */
        int varlink;       /* listening socket of the control interface */
        char *machine, *name; /* from /run/vmm/MACHINE/NAME.*, or NULL */
} Sockets;
#define SOCKETS_NULL { .transport = -EBADF, .connection = -EBADF, .varlink = -EBADF }

/* Takes the listening sockets that the service manager passed, told apart by the endings of their paths: .vhost-user, .bus, .varlink. */
int sockets_from_manager(Sockets *s);
/* A descriptor from the command line: connected or listening. */
int sockets_take_fd(Sockets *s, int fd);
/* Makes a listening socket, in place of one that nobody serves any more. -EADDRINUSE where somebody does. */
int socket_listen(const char *path);
void sockets_done(Sockets *s);
