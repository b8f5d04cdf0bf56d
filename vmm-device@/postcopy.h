/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A session on guest memory of which not all is there yet: "Migration", POSTCOPY_ADVISE, _LISTEN and _END, as VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT has them.
 *
 * Between LISTEN and END whoever in this process, or in the kernel for it, touches a page that is missing waits until the front-end has put it there. We
 * hold the userfaultfd ourselves, so nobody who waits ever goes on with zeroes. Where nobody is there any more who could put it, this process ends: by SIGIO
 * when the leash's other end closes. That is no handler, since the thread that could run one may wait in the kernel, where only what is fatal reaches it;
 * nor a thread of its own, which would need more system calls than all that is here.
 *
 * A successor is told nothing of it: the session is not kept meanwhile (session-keep.h), and the front-end begins anew. */

#include "frame.h"

/* POSTCOPY_ADVISE: takes the two descriptors. *ret is the userfaultfd, which stays ours; a negative errno where none can be made. */
int postcopy_advise(Session *s, int *fds, int *ret);
/* POSTCOPY_LISTEN: rings and memory are forgotten, and what memory comes is watched. */
int postcopy_listen(Session *s);
/* The session's memory is another one, and nobody has touched it yet: watches it, and makes of the message what the front-end is told, which is where it is. */
int postcopy_map(Session *s, VhostUserMsg *msg);
/* POSTCOPY_END: all of it is there, or nobody looks. */
int postcopy_end(Session *s);
/* The session ends; its memory is not mapped any more. */
void postcopy_done(Postcopy *p);
