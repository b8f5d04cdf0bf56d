/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>

#include "event-loop.h"
#include "watchdog.h"

static int on_first_timer(sd_event_source *s, uint64_t usec, void *userdata) {
        return 0;
}

/* The first timer that an event loop arms makes libsystemd look for the host's boot id in a file (it spreads wake-ups by it). Have it do so
 * while files can be opened. */
static int arm_first_timer(sd_event *event) {
        _cleanup_(sd_event_source_unrefp) sd_event_source *source = NULL;
        int r;

        /* Exact to the microsecond: 0 would be a quarter of a second, which everybody who waits for us would wait. */
        r = sd_event_add_time_relative(event, &source, CLOCK_MONOTONIC, 0, 1, on_first_timer, NULL);
        return r < 0 ? r : sd_event_run(event, UINT64_MAX);
}

int event_loop_new(const char *program, sd_event_signal_handler_t on_stop, void *userdata, sd_event **ret) {
        static const int stop_signals[] = { SIGTERM, SIGINT };
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;
        sigset_t signals;
        int r;

        /* Whoever is at the other end of what we write to may be gone. */
        if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
                return -errno;
        (void) sigemptyset(&signals);
        for (size_t i = 0; i < ELEMENTSOF(stop_signals); i++)
                (void) sigaddset(&signals, stop_signals[i]);
        if (sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
                return -errno;
        /* Not this thread's default one: which thread that is, libsystemd asks the kernel at each turn. */
        r = sd_event_new(&event);
        if (r >= 0)
                r = arm_first_timer(event);
        for (size_t i = 0; i < ELEMENTSOF(stop_signals) && r >= 0; i++)
                r = sd_event_add_signal(event, NULL, stop_signals[i], on_stop, userdata);
        if (r >= 0)
                r = watchdog_begin(event, program);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(event);
        return 0;
}
