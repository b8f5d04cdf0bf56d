/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Live upgrade: the program that is installed now takes the place of this one in the same process, and the guest goes on.
 *
 * First, while the guest runs, the new program says whether it takes this one's state (--accepts-state). Then the vCPUs pause; state and the numbers of all
 * descriptors that are kept go to a sealed memfd; execve(). Helpers are not told: their rings, sessions and eventfds are kept. The new program
 * makes the machine around the same memory, loads, and lets it run. Where it cannot do that, it executes the old one again, of which it was
 * given a descriptor, and that one takes the same state up and tells why.
 *
 * The connection that asked is kept and gets its answer; others of the control interface close, and clients connect again. Events' numbers go on. */

#include "control.h"
#include "handover.h"
#include "reload-keeper.h"

typedef struct Reload Reload;

/* What the successor is given beside the machine. Everything is borrowed. */
typedef struct ReloadConfig {
        const char *executable;        /* where this program was installed when it began */
        const char *runtime_directory;
        const char *definition_text;
        const int *listen_fds;         /* control sockets */
        size_t n_listen_fds;
        Control *control;
} ReloadConfig;

int reload_new(Machine *m, const ReloadConfig *config, Reload **ret);
Reload *reload_free(Reload *r);
DEFINE_CLEANUP(Reload, reload_free)

/* Answers the call by an error, or has the successor answer it. */
int reload_begin(Reload *r, VarlinkCall *call);
/* Somebody asked for it, and waits. `r` may be NULL. */
bool reload_is_under_way(const Reload *r);
/* The vCPUs are parked. */
void reload_paused(Reload *r);

/* --- which states a program takes --- */

/* What a program says that takes them. */
#define RELOAD_ACCEPTED "accepted"
/* The text that one program asks the other by: a line "format N", then a line "SECTION VERSION" for each. */
int reload_sections_text(char **ret);
/* Whether this program takes a state of these. -EPROTONOSUPPORT with a message that names what it does not; -EBADMSG where the text is none. */
int reload_sections_check(const char *text, char **ret_message);
/* The same of one; a snapshot has these, too. */
int reload_section_check(const char *name, uint64_t version, char **ret_message);
/* Whether each section of the state is in this program's own table. */
int reload_sections_verify(const StateReader *reader, char **ret_message);

/* --- the successor --- */

/* What the predecessor left. */
typedef struct Inheritance {
        Handover handover;
        StateReader *reader;
        char *data;
        size_t size;
        int state_fd, previous_fd; /* not ours to close before the machine runs */
        const char *failure;       /* we are the predecessor itself, since its successor failed by this; else NULL */

        char *version; /* of the predecessor */
        char *executable;
        char *definition_text;
        struct MachineFile files[MACHINE_DEVICES_MAX];
        size_t n_files;
        int kernel_fd, initrd_fd;
        int listen_fds[4];
        size_t n_listen_fds;
        int caller_fd; /* waits for an answer; negative: nobody */
        ReloadKeeper *keeper;
        char *events; /* that were told; NULL: it did not keep them */
        uint64_t sequence;
        uint64_t paused_usec; /* CLOCK_MONOTONIC: since when the vCPUs stand still */
} Inheritance;

/* Takes up a state; -EBADMSG and others with a message. `previous_fd` is the program to go back to, or negative. */
int inheritance_open(int state_fd, int previous_fd, const char *failure, Inheritance **ret, char **ret_message);
Inheritance *inheritance_free(Inheritance *i);
DEFINE_CLEANUP(Inheritance, inheritance_free)
/* This program cannot go on: the previous one does. Returns only where that is not possible either. */
void reload_give_way(int state_fd, int previous_fd, const char *failure, const char *name, const char *runtime_directory, const char *reason);
/* Until inheritance_commit(), a crash of this program, or that it takes too long, has it give way, too. The strings must stay. */
void reload_guard(int state_fd, int previous_fd, const char *failure, const char *name, const char *runtime_directory);
/* There is no way back any more: the machine runs, and who waits is told. */
int inheritance_commit(Inheritance *i, Machine *m, VarlinkServer *server, Control *control);
