/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Asks polkit (org.freedesktop.PolicyKit1.Authority, polkit(8)), over the system bus, without waiting. So many questions are under way at once,
 * and so many of one user; the rest wait for their turn. */

#include <systemd/sd-event.h>

#include "decide.h"

typedef struct Polkit Polkit;
typedef struct PolkitCheck PolkitCheck;

typedef enum PolkitAnswer {
        POLKIT_YES,
        POLKIT_NO,
        POLKIT_CHALLENGE, /* it could ask the user, if it were allowed to */
        POLKIT_DISMISSED, /* the user was asked, and did not answer */
        POLKIT_ABSENT,    /* there is no polkit, or no system bus */
        POLKIT_FAILED,
} PolkitAnswer;

/* Called once; the check is gone with its return. `error` is what went wrong with POLKIT_ABSENT and POLKIT_FAILED, else NULL. */
typedef void (*PolkitCallback)(PolkitAnswer answer, const char *error, void *userdata);

int polkit_new(Polkit **ret, sd_event *event);
/* Callbacks of checks that are under way are not called. */
Polkit *polkit_free(Polkit *p);
DEFINE_CLEANUP(Polkit, polkit_free)

/* `peer` and `question` must outlive the check. The callback is not called from here. -EUSERS where the user has as many dialogs about that machine
 * as he may. */
int polkit_check(Polkit *p, const Peer *peer, const Question *question, PolkitCallback callback, void *userdata, PolkitCheck **ret);
/* Nobody waits for the answer any more: a dialog that is open is closed. */
PolkitCheck *polkit_check_cancel(PolkitCheck *check);
