/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "balloon-waiters.h"

struct Waiter {
        Waiter *next;
        Waiters *list;
        VarlinkCall *call;
};

/* Takes the waiter out of its list and frees it; its reference to the call goes to the caller. */
static VarlinkCall *unlink_waiter(Waiter *w) {
        Waiters *list = w->list;
        VarlinkCall *call = w->call;
        Waiter *before = NULL;

        for (Waiter *i = list->first; i && i != w; i = i->next)
                before = i;
        *(before ? &before->next : &list->first) = w->next;
        if (list->last == w)
                list->last = before;
        varlink_call_on_close(call, NULL, NULL);
        free(w);
        return call;
}

static void on_closed(VarlinkCall *call, void *userdata) {
        (void) varlink_call_unref(unlink_waiter(userdata));
}

int waiters_add(Waiters *waiters, VarlinkCall *call) {
        Waiter *w = calloc(1, sizeof(Waiter));

        if (!w)
                return -ENOMEM;
        *w = (Waiter) { .list = waiters, .call = varlink_call_ref(call) };
        *(waiters->last ? &waiters->last->next : &waiters->first) = w;
        waiters->last = w;
        varlink_call_on_close(call, on_closed, w);
        return 0;
}

VarlinkCall *waiters_take(Waiters *waiters) {
        return waiters->first ? unlink_waiter(waiters->first) : NULL;
}

/* Those who come while the answers are given are left for the next time. */
static Waiters detach(Waiters *waiters) {
        Waiters all = *waiters;

        *waiters = (Waiters) {};
        return all;
}

void waiters_reply(Waiters *waiters, json_object *parameters) {
        Waiters all = detach(waiters);

        for (Waiter *w = all.first; w; w = w->next)
                w->list = &all;
        for (VarlinkCall *call; (call = waiters_take(&all));) {
                (void) varlink_call_reply(call, parameters);
                (void) varlink_call_unref(call);
        }
}

void waiters_error(Waiters *waiters, const char *error_id, json_object *parameters) {
        Waiters all = detach(waiters);

        for (Waiter *w = all.first; w; w = w->next)
                w->list = &all;
        for (VarlinkCall *call; (call = waiters_take(&all));) {
                (void) varlink_call_error(call, error_id, parameters);
                (void) varlink_call_unref(call);
        }
}

void waiters_done(Waiters *waiters) {
        for (VarlinkCall *call; (call = waiters_take(waiters));)
                (void) varlink_call_unref(call);
}
