/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The machine's Varlink interfaces: io.vmmd.Machine, and what systemd's tools ask of any machine and service. */

#include "machine.h"
#include "server.h"

typedef struct Control Control;

/* Adds them to the server and begins to observe the machine. The machine must outlive it, and it the server. */
int control_new(VarlinkServer *server, Machine *m, Control **ret);
/* The events as they were told, for the successor of this process. The caller frees the text. */
int control_save_events(Control *c, char **ret);
/* The predecessor's, which subscribers go on from. NULL, or one that is wrong: of what was before `sequence`, its last number, nothing is known. */
int control_load_events(Control *c, const char *text, uint64_t sequence);
uint64_t control_event_sequence(Control *c);
Control *control_free(Control *c);
DEFINE_CLEANUP(Control, control_free)
