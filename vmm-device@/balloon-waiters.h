/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Calls that wait for something; whose client goes away leaves the list. */

#include "server.h"

typedef struct Waiter Waiter;

typedef struct Waiters {
        Waiter *first, *last;
} Waiters;

int waiters_add(Waiters *waiters, VarlinkCall *call);
/* The one that has waited longest, with a reference that is the caller's; NULL where there is none. */
VarlinkCall *waiters_take(Waiters *waiters);
static inline bool waiters_any(const Waiters *waiters) {
        return waiters->first;
}
/* Answers all of them by the same reply; `parameters` stays the caller's. */
void waiters_reply(Waiters *waiters, json_object *parameters);
/* Answers all of them by the same error. */
void waiters_error(Waiters *waiters, const char *error_id, json_object *parameters);
/* Lets go of them: they are told ECANCELED. */
void waiters_done(Waiters *waiters);
