/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The host's side of a guest's console: whoever is attached sees what the guest wrote recently and then what it writes, and can type.
 *
 * The guest is never held up: its output goes into a ring, and each client is a position in that ring. A client that is
 * overtaken by the guest is dropped; a pseudo terminal, which cannot be dropped, loses the bytes instead. Input waits, bounded, until the
 * guest takes it; meanwhile no client is read. All in the event loop's thread. */

#include <systemd/sd-event.h>

#include "util.h"

typedef struct Terminal Terminal;
struct PassedFds;

/* `history`: how many bytes a client that attaches sees of the past. `input` is called when there are new bytes for
 * terminal_take_input(). */
int terminal_new(sd_event *event, size_t history, void (*input)(void *userdata), void *userdata, Terminal **ret);
Terminal *terminal_free(Terminal *t);
DEFINE_CLEANUP(Terminal, terminal_free)

/* Right after terminal_new(), and before the sandbox: whatever a predecessor had under this name is taken up, its clients, its pseudo terminal and what they have typed
 * included, and ours is kept for a successor. 1 where there was a predecessor. Without a service manager that does nothing. */
int terminal_keep(Terminal *t, struct PassedFds *passed, const char *name);
/* Another one where positions mean something else. */
uint64_t terminal_id(const Terminal *t);

/* Everything is appended to this file, too. Takes ownership. Refuses what is neither a regular file nor a character device (-EINVAL): a
 * pipe would hold us up. */
int terminal_set_log(Terminal *t, int fd);

/* Makes a pseudo terminal, in raw mode, that is always attached. Before the sandbox. */
int terminal_make_pty(Terminal *t);
/* Path of its other side, or NULL. */
const char *terminal_pty_path(const Terminal *t);

/* Attaches a client. Returns its end of the connection (a stream socket), to be handed over, or a negative errno; -EUSERS where there are
 * too many. */
int terminal_attach(Terminal *t);
/* The same with a connection that the client brings: takes ownership, also on error. -ENOTSOCK, -EPROTOTYPE where it is no stream socket. */
int terminal_adopt(Terminal *t, int fd);
unsigned terminal_n_clients(const Terminal *t);

/* Bytes that the guest wrote, and that it took. */
uint64_t terminal_output_bytes(const Terminal *t);
uint64_t terminal_input_bytes(const Terminal *t);

/* What the guest wrote. Never blocks. */
void terminal_output(Terminal *t, const void *data, size_t length);

/* Takes input for the guest; 0 where there is none. */
size_t terminal_take_input(Terminal *t, void *data, size_t length);
size_t terminal_input_available(const Terminal *t);
/* The guest has taken input up to `position` (terminal_input_bytes()), and no more: what its device took since is there again. -ERANGE where that is too long ago. */
int terminal_rewind_input(Terminal *t, uint64_t position);
