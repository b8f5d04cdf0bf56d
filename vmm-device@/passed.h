/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Descriptors that somebody else opened for the helper, by name: the option they stand for, or what a predecessor kept. They come from the service
 * manager, or with the configuration of a slot. And the way back: what the service manager keeps for a successor. */

#include "util.h"

typedef struct PassedFd {
        char *name;
        int fd;
} PassedFd;

typedef struct PassedFds {
        PassedFd *fds;
        size_t n;
        bool managed;  /* by the service manager, sockets or others: the helper was not started by hand */
        bool complete; /* nothing else is to be had: no path is opened */
        char **kept;   /* names of what was put into the store or came out of it; NULL-terminated, or NULL */
} PassedFds;

/* Everything that the service manager passed. Once, before the first use. */
int passed_fds_from_manager(PassedFds *p);
/* Takes ownership of `fd`, also on error. */
int passed_fds_add(PassedFds *p, const char *name, int fd);
/* The first of that name, the caller's from then on; -ENOENT where there is none. */
int passed_fds_take(PassedFds *p, const char *name);
/* How many there are of that name. */
size_t passed_fds_count(const PassedFds *p, const char *name);
/* Closes what nobody took. */
void passed_fds_done(PassedFds *p);

/* Has the service manager keep a copy of `fd` under that name, over our death; 0 also where there is no service manager. */
int passed_fds_keep(PassedFds *p, const char *name, int fd);
/* Whether it may have something of that name: from us, or from before. */
bool passed_fds_is_kept(const PassedFds *p, const char *name);
/* It keeps nothing of that name any more. */
int passed_fds_forget(PassedFds *p, const char *name);
/* Nor of any name that begins so; what of these was passed and nobody took is closed. */
int passed_fds_forget_prefix(PassedFds *p, const char *prefix);
/* Only the last. */
void passed_fds_close_prefix(PassedFds *p, const char *prefix);
/* It keeps nothing at all of ours any more. */
int passed_fds_forget_all(PassedFds *p);
