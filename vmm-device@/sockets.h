/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The sockets of a helper: from the service manager, from the command line, or made here. */

#include "passed.h"
#include "util.h"

typedef struct Sockets {
        int transport;     /* listening socket for front-ends: vhost-user, or the bus */
        int connection;    /* an already connected front-end instead (--fd) */
        int varlink;       /* listening socket of the control interface */
        int vsock, vsock_messages; /* listening sockets for a vsock device's clients: of streams, and of messages */
        char *machine, *name; /* from /run/vmm/MACHINE/NAME.*, or NULL */
} Sockets;
#define SOCKETS_NULL { .transport = -EBADF, .connection = -EBADF, .varlink = -EBADF, .vsock = -EBADF, .vsock_messages = -EBADF }
/* What the path of a vsock device's socket for clients of messages has behind the other's. */
#define VSOCK_MESSAGES_SUFFIX "-seqpacket"

/* Takes the listening sockets that the service manager passed, told apart by the endings of their paths: .vhost-user, .bus, .varlink,
 * .vsock, .vsock-seqpacket. */
int sockets_from_manager(Sockets *s, PassedFds *passed);
/* A descriptor from the command line: connected or listening. */
int sockets_take_fd(Sockets *s, int fd);
/* Makes a listening socket, in place of one that nobody serves any more. -EADDRINUSE where somebody does. */
int socket_listen(const char *path);
/* The same with packets instead of a stream. */
int socket_listen_packets(const char *path);
void sockets_done(Sockets *s);
