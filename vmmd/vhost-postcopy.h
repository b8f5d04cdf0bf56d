/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A back-end that works on guest memory of which not all is there yet ("Migration", POSTCOPY_ADVISE, _LISTEN, _END): what it misses it asks for by a
 * userfaultfd of its own, and restore-memory.h answers. Between beginning and end the back-end has it to thank for every page, so its process ends with
 * whoever answers, and before anybody else would: see VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT. */

#include "restore-memory.h"
#include "vhost-session.h"

/* Whether it says that it can. */
bool vhost_postcopy_can(const VhostSession *s);
/* From here on memory is given by vhost_postcopy_give_memory(). `device` is of /dev/userfaultfd. The session's peer is set. -EREMOTEIO where it cannot after
 * all, the session being as good as before; it is not asked again. */
int vhost_postcopy_begin(VhostSession *s, RestoreMemory *pages, int device);
/* SET_MEM_TABLE, as it goes between beginning and end: *msg is without its header. */
int vhost_postcopy_give_memory(VhostSession *s, const GuestMemory *memory, VhostUserMsg *msg, uint32_t size, const int *fds, size_t n_fds);
/* All is there, or nothing of it is needed: the back-end asks for nothing any more. It touches no memory meanwhile, or all of it is there. */
int vhost_postcopy_end(VhostSession *s);
/* The session has ended, or is ended: so is its back-end, where it has not let go of all memory itself. */
void vhost_postcopy_drop(VhostSession *s);
