/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* How a session with a front-end outlives its helper, without the front-end's noticing.
 *
 * The unit's descriptor store has the connection and everything that came over it (memory, eventfds, in-flight log, the back-end's channel), each
 * under a name of its own that begins with SESSION_KEEP_PREFIX, and a memfd with what was said. A successor takes all of it up before it
 * accepts anybody, and looks at each ring once: a kick may have been read by the process that died.
 *
 * The memfd has a mark. It is set before anything is read from the connection, and taken away when the request is answered, its descriptors
 * are on their way to the service manager, and the rings are as it said. Who finds it set, or anything else that does not fit, closes
 * the connection and forgets everything: the front-end connects again and says it all anew. The same where there is no
 * in-flight log for each ring that is served: what was under way would not be known. So nothing is kept but what can be gone on with.
 *
 * The data path knows nothing of this: no descriptor and no byte is kept there. */

#include "frame.h"

#define SESSION_KEEP_PREFIX "session-"

typedef enum SessionFd {
        SESSION_FD_CONNECTION,
        SESSION_FD_BACKEND,
        SESSION_FD_INFLIGHT,
        SESSION_FD_MEMORY, /* these and the following have an index */
        SESSION_FD_KICK,
        SESSION_FD_CALL,
        SESSION_FD_ERROR,
        _SESSION_FD_MAX,
} SessionFd;

/* A session begins. Without a service manager nothing is kept, and all of the others do nothing. */
int session_keep_begin(Session *s);
/* Sets the mark. */
void session_keep_touch(Session *s);
/* Takes the mark away, where everything that was begun is done. */
void session_keep_settle(Session *s);
/* This is that descriptor from now on; a negative one: there is none any more. */
void session_keep_fd(Session *s, SessionFd which, unsigned index, int fd);
void session_keep_inflight(Session *s, const VhostUserInflight *inflight, int fd);
/* The session's memory is another one. */
void session_keep_memory(Session *s);
/* The front-end was told that configuration space has changed. */
void session_keep_config(Session *s);
/* Nothing is kept any more; the connection ends. */
void session_keep_end(Session *s);

/* Takes up what a predecessor left. 1: the device has a session. 0: there was nothing of use, and nothing is left of it. */
int session_keep_resume(Device *d);
