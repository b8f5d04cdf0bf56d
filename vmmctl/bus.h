/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* systemd's service manager over D-Bus: units, their properties, jobs. */

#include <systemd/sd-bus.h>

#include "vmmctl.h"

/* The system bus; for root the manager's own socket where there is no bus. NULL in *ret is never returned with success. */
int bus_open(const Options *o, sd_bus **ret);

typedef struct UnitState {
        char *load_state, *active_state, *sub_state;
        char *result;      /* "success", "exit-code", "signal", … */
        char *status_text; /* what the service last said of itself */
        int32_t exec_main_code, exec_main_status; /* as in siginfo_t: CLD_EXITED and the exit code, … */
        uint32_t main_pid;
        uint32_t n_restarts;
        uint64_t active_enter, active_exit, inactive_enter; /* realtime; 0 where never */
        uint64_t memory_current;                            /* UINT64_MAX where unknown */
} UnitState;
int unit_state_get(sd_bus *bus, const char *unit, UnitState *ret);
void unit_state_done(UnitState *s);
/* Why it is not running, in words; NULL where nothing went wrong (or out of memory). The caller frees it. */
char *unit_state_problem(const UnitState *s);

/* Names of the loaded units that match, NULL-terminated; the caller frees each and the array. `active_state` may be NULL. */
int units_list(sd_bus *bus, const char *pattern, const char *active_state, char ***ret);
void strings_free(char ***strings);
#define _cleanup_strings_ _cleanup_(strings_free)

int manager_reload(sd_bus *bus, char **ret_problem);
/* Sends a signal to the main process of a service. */
int unit_kill(sd_bus *bus, const char *unit, int signal, char **ret_problem);

typedef struct Job {
        char *unit;
        char *path;    /* NULL where the job could not even be queued */
        char *result;  /* "done", "failed", "dependency", …; NULL while it runs */
        char *problem; /* why it could not be queued */
} Job;
typedef struct Jobs {
        sd_bus *bus;
        sd_bus_slot *slot;
        Job *jobs;
        size_t n;
} Jobs;
/* Queues one job a unit: "StartUnit" or "StopUnit". Takes the bus reference over. Check each job's problem. */
int jobs_begin(sd_bus *bus, const char *method, char *const *units, size_t n, Jobs *ret);
/* Adds those that stop a unit whose name matches, whoever queued them: what one job takes along has jobs of its own, which end later. */
int jobs_add_stops(Jobs *jobs, const char *pattern);
/* Waits until all are done; -ETIMEDOUT where `until` (CLOCK_MONOTONIC; UINT64_MAX is for ever) came first. */
int jobs_wait(Jobs *jobs, uint64_t until);
void jobs_done(Jobs *jobs);
