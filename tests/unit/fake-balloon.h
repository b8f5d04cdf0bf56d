/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The Varlink side of a balloon's helper, with the test as its guest: a process that does what it is told. */

#include "util.h"

typedef struct FakeBalloon {
        pid_t pid;
        int socket;
} FakeBalloon;

/* Listens at `path`. */
void fake_balloon_start(FakeBalloon *f, const char *path);
void fake_balloon_end(FakeBalloon *f);
/* "actual BYTES", "many COUNT" (pages more, one by one), "oom", "ws", "hold" (statistics are not answered until "release"), "forget" (the target is 0, and nobody is told);
 * waits until it is done. */
void fake_balloon_tell(FakeBalloon *f, const char *what);
/* Waits for a line that it says by itself: "left" where a client that waited for a target went away; or answers "count", how often statistics were
 * asked for. */
void fake_balloon_expect(FakeBalloon *f, const char *line);
unsigned fake_balloon_count(FakeBalloon *f);
