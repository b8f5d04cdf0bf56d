/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A device that is another project's program: virtiofsd, qemu-storage-daemon, passt, or any that speaks vhost-user.
 *
 * We stay its parent, and the unit's main process: we hold the sockets, serve the control interface, start the program and end with it. It has a
 * socket of its own, to which the front-end's messages are passed on (relay.h): so it is the same to it how its front-end was found, and whoever
 * looks at the device sees the same as with ours. It is started once: a new program is a new process of ours. */

#include <signal.h>

#include "device-type.h"
#include "foreign-files.h"
#include "relay.h"

typedef struct Foreign Foreign;

/* How the program is given its socket. */
typedef enum ForeignSocket {
        FOREIGN_SOCKET_NONE,
        FOREIGN_SOCKET_LISTENING, /* a descriptor that listens */
        FOREIGN_SOCKET_CONNECTED, /* a descriptor that is connected; the program starts with its front-end and ends with it */
        FOREIGN_SOCKET_PATH,      /* where it shall listen */
} ForeignSocket;

typedef struct ForeignClass {
        const char *package; /* Debian's, where the program is; NULL where we cannot know */
        bool one_session;    /* it ends when its front-end leaves */
        /* Makes the command line and opens what goes with it. Says what is wrong. */
        int (*prepare)(Foreign *f);
        /* The program runs; still before the seccomp policy. NULL where there is nothing to do. */
        int (*started)(Foreign *f);
        /* For a program that does not speak vhost-user, else NULL: takes its front-end's connection; told how the program has ended, and says whether that
         * is as it should be. A program that is not there is told to its front-end then, too. */
        int (*connect)(Foreign *f, int connection);
        bool (*ended)(Foreign *f, const siginfo_t *how);
        uint64_t grace_usec; /* how long it may take to end, once it was asked to; 0 is the usual */
        void (*describe)(Foreign *f, json_object *into);
        /* Also after a prepare() that failed. */
        void (*close)(Foreign *f);
} ForeignClass;

struct Foreign {
        Device *device;
        const ForeignClass *class;
        void *data;          /* the class's */
        RelayAddition addition;
        uint64_t answer_timeout_usec;

        char **arguments;    /* NULL-terminated; the program's path first */
        char *variable;      /* "NAME=VALUE" for its environment, or NULL */
        size_t n_arguments;
        int *kept;           /* descriptors that the program inherits, under their numbers here; ours to close */
        size_t n_kept;
        ForeignFiles *files; /* NULL where it has none */

        ForeignSocket socket;
        char *directory, *socket_path; /* where it listens */
        int connected_fd;    /* the number that its connection will have */
        int connection_to;   /* by which the child gets the connection, once there is one */

        pid_t pid;           /* 0 where there is none (any more) */
        int pidfd;
        sd_event_source *exit_source;
        int waiting;         /* front-end that waits for the program to listen */
        sd_event_source *connect_source, *answer_source;
        bool front_end_left;
};

/* Of a device whose DeviceClass has `foreign`. */
int foreign_open(Device *d);
void foreign_close(Device *d);
void foreign_describe(Device *d, json_object *into);
/* Takes a front-end's connection, also on error. */
int foreign_connect(Device *d, int connection);
Foreign *foreign_of(Device *d);
/* The front-end has left, and the program is to end by itself within its grace, and is made to then. */
int foreign_end_soon(Foreign *f);

/* For prepare(). */
int foreign_add(Foreign *f, const char *format, ...) _printf_(2, 3);
/* The program inherits the descriptor under the same number. Takes ownership, also on error; returns the number. */
int foreign_keep(Foreign *f, int fd);
/* The program may open FOREIGN_FILES `name`. Takes ownership, also on error. */
int foreign_file(Foreign *f, const char *name, int fd);
/* Its socket: the number of the descriptor, or for a path 0; f->socket_path says which. Once. */
int foreign_socket(Foreign *f, ForeignSocket kind);
