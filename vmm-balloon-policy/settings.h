/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What vmm-balloon-policy can be told: by options, --like-this=VALUE, or by variables of the environment, $VMM_BALLOON_LIKE_THIS=VALUE,
 * which is what the unit's configuration files set. An option counts more than a variable. */

#include "policy.h"

typedef struct Settings {
        PolicySettings policy;
        const char *device;    /* NULL is the machine's first balloon */
        const char *socket;    /* NULL is the machine's control socket */
        const char *pressure;  /* file to watch; NULL where it was not said */
        const char *pressure_stall; /* "some" or "full" */
        uint64_t pressure_threshold_usec, pressure_window_usec;
        uint64_t statistics_interval_usec;
        const char *at_exit; /* "restore" or "keep" */
} Settings;

void settings_init(Settings *s);
/* Takes all of $VMM_BALLOON_*. Strings stay borrowed. -EINVAL with *ret_message, which names variable, value and what was expected. */
int settings_from_environment(Settings *s, char **environment, char **ret_message);
/* Takes one argument, "--name=value". -ENOENT where it is no setting, else as above. */
int settings_add(Settings *s, const char *argument, char **ret_message);
/* What no single setting can be blamed for; and what follows from others. Call when all are there. */
int settings_finish(Settings *s, char **ret_message);

void settings_print_help(void);
