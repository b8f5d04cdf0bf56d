/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-device TYPE|slot [--option=value …]: the helper of one device.
 *
 * Its life in stages (helper.h): options; the device's own descriptors (class->open); sockets; the seccomp policy, after which nothing can be
 * opened any more; READY=1; the event loop. One front-end at a time: the next one waits in the socket's backlog. A slot's helper has its sockets
 * first, and is told by them which device it is (slot.h). */

#include <systemd/sd-daemon.h>

#include "slot.h"

static int run_device(const Arguments *a, Helper *h) {
        _cleanup_free_ char *why = NULL;
        int r;

        log_copy_errors(&why);
        r = helper_open(h, a->class, a->type, a->options);
        log_copy_errors(NULL);
        if (r < 0)
                return helper_refuse(h, a, why ?: strerrordesc_np(-r)) > 0 ? HELPER_STATUS_REFUSED : r;
        r = helper_take_sockets(h, a);
        if (r >= 0)
                r = helper_serve(h);
        if (r >= 0)
                r = helper_enter_sandbox(h, a->class->policy);
        if (r >= 0)
                (void) sd_notifyf(false, "READY=1\nSTATUS=Serving a %s device", a->class->name);
        return r;
}

static int run_slot(const Arguments *a, Helper *h, Slot **ret) {
        int r;

        r = helper_take_sockets(h, a);
        if (r >= 0)
                r = slot_new(h, ret);
        return r < 0 ? r : slot_begin(*ret);
}

static int run(const Arguments *a, Helper *h, Slot **ret_slot) {
        int r;

        r = helper_begin(h, a);
        if (r >= 0)
                r = a->slot ? run_slot(a, h, ret_slot) : run_device(a, h);
        if (r != 0)
                return a->slot ? MIN(r, 0) : r;
        r = sd_event_loop(h->event);
        (void) sd_notify(false, "STOPPING=1");
        return r;
}

int main(int argc, char **argv) {
        Arguments a = ARGUMENTS_NULL;
        Helper h = HELPER_NULL;
        Slot *slot = NULL;
        int r;

        log_open("vmm-device");
        r = arguments_parse(&a, argc, argv);
        r = r == 0 ? run(&a, &h, &slot) : MIN(r, 0);
        slot_end(slot);
        helper_done(&h);
        (void) slot_free(slot);
        arguments_done(&a);
        return r < 0 ? EXIT_FAILURE : r;
}
