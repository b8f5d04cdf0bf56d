/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A service manager for one helper, for tests: its listening sockets, its descriptor store, its restarts. What it does with descriptors
 * is what systemd does: names, removal before storing, no descriptor twice, everything handed back in an order that means nothing. Everything here
 * asserts on failure. */

#include <pthread.h>
#include <sys/types.h>

#include "util.h"

#define MANAGER_STORE_MAX 512
#define MANAGER_ARGUMENTS_MAX 16

typedef struct Stored {
        char name[64];
        int fd;
} Stored;

typedef struct Manager {
        const char *arguments[MANAGER_ARGUMENTS_MAX];
        const char *watchdog_usec; /* WatchdogSec=, which is not enforced; NULL: none */
        char directory[32], transport_path[64], varlink_path[64], notify_path[64];
        int transport, varlink, notify;
        pid_t pid;
        pthread_t thread, killer;
        bool killing;
        unsigned n_kills;        /* of manager_kill_at_random() */
        uint64_t kill_interval_usec;

        pthread_mutex_t lock; /* for all below */
        pthread_cond_t changed;
        Stored store[MANAGER_STORE_MAX];
        size_t n_stored;
        unsigned n_ready, n_fed; /* messages that it is ready, and for the watchdog */
        bool killer_may_end;
} Manager;

/* Makes the sockets, dev.TRANSPORT and dev.varlink, for "$VMM_DEVICE arguments…". */
void manager_prepare(Manager *m, const char *transport, const char *const *arguments);
/* Keeps a descriptor, as what is opened before the helper starts. Takes it over. */
void manager_give(Manager *m, const char *name, int fd);
/* Prepares and starts. */
void manager_up(Manager *m, const char *transport, const char *const *arguments);
/* Stops the helper, which has to end well, and forgets everything. */
void manager_down(Manager *m);

/* SIGKILL, and nothing after it; then, once what the dead one sent has been taken, its successor. */
void manager_kill(Manager *m);
void manager_start(Manager *m);
/* The same for a thread that traces it, and does not wait for it: it asks to be traced and stops, before it becomes the helper. */
pid_t manager_start_traced(Manager *m);
/* Starts one that has to end by itself; its exit status. */
int manager_start_failing(Manager *m);
static inline void manager_restart(Manager *m) {
        manager_kill(m);
        manager_start(m);
}
/* The same from a thread, again and again after a random time of at most twice the interval, `n` times; manager_wait_for_kills() waits for its end. */
void manager_kill_at_random(Manager *m, unsigned n, uint64_t interval_usec);
/* Whether it goes on. */
bool manager_is_killing(Manager *m);
void manager_wait_for_kills(Manager *m);

/* How many descriptors are kept whose names begin so. */
size_t manager_count(Manager *m, const char *prefix);
/* Whether its watchdog hears from it `n` times more, within 20 s. */
bool manager_is_fed(Manager *m, unsigned n);
/* A copy of the descriptor of that name, the caller's; asserts that there is one. */
int manager_peek(Manager *m, const char *name);
/* It is lost. */
void manager_drop(Manager *m, const char *prefix);
