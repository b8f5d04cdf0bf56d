/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The descriptor store of one unit as a service manager has it (sd_notify(3), FDSTORE=1), for tests that are one. Everything here ends the process on
 * failure. */

#include "util.h"

#define FD_STORE_MAX 128U

typedef struct FdStore {
        struct {
                char name[64];
                int fd;
        } entries[FD_STORE_MAX];
        size_t n;
        unsigned n_ready; /* how often somebody was */
} FdStore;

/* The socket at which a unit's programs say what they have to say. */
int fd_store_listen(const char *path);
/* Takes a message over, its descriptors included. What is no descriptor for the store is closed: that is a barrier's answer. */
void fd_store_take(FdStore *s, char *text, const int *fds, size_t n_fds);
/* Takes the next one; false where there is none. `flags` as for recvmsg(). */
bool fd_store_receive(FdStore *s, int socket, int flags);
/* Takes the descriptor over. */
void fd_store_add(FdStore *s, const char *name, int fd);
void fd_store_remove(FdStore *s, const char *name);
void fd_store_clear(FdStore *s);
/* In a child: becomes "$VMM_DEVICE slot" with these two sockets and all that is stored. */
_noreturn_ void fd_store_execute_slot(const FdStore *s, const int sockets[static 2], const char *notify_path);
