/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What benchmarks of devices share: a driver as a guest has one, in front of anybody's vhost-user back-end, and the processor time that back-end takes. */

#include "../device/front-end.h"

#define PEER_NUM 256 /* the size of queues that vmmd offers */

/* Connects to the back-end at `path`, whose process is `pid`, and starts its first queues. Takes those of `features` it offers, besides those of the
 * rings; with an in-flight log where it can have one, as under vmmd. */
void peer_connect(FrontEnd *f, const char *path, pid_t pid, uint64_t features, unsigned n_queues);

/* Nanoseconds that the process and all of its threads have run, kernel workers for it included. */
uint64_t peer_cpu_nsec(const FrontEnd *f);
uint64_t peer_now_nsec(void);

/* Kicks where the back-end has asked for it, after entries were offered behind `before`. */
void peer_kick(FrontEnd *f, unsigned queue, uint16_t before);
/* How many entries are used and not taken; where there are none, asks for a signal and waits for it. */
unsigned peer_used(FrontEnd *f, unsigned queue, int timeout_ms);
/* The same without waiting or asking. */
unsigned peer_used_now(FrontEnd *f, unsigned queue);
struct vring_used_elem peer_take(FrontEnd *f, unsigned queue);
