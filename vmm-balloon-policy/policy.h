/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* How large a guest's balloon should be: a decision made of what was told, and of nothing else. No I/O, no clock (every function takes
 * the time), no logging, no allocation.
 *
 * In the order in which they count:
 *   - the guest ran out of memory: it gets memory back at once, and nothing is taken from it for a while (the longer, the more often our taking led
 *     to that);
 *   - the guest is short (less available than it shall keep, or it swaps): it gets back what it lacks;
 *   - the host had no pressure for a while: what was taken goes back, step by step. Where that brings the pressure back, the next
 *     attempt is made later;
 *   - the host is under pressure: a share of what the guest has idle is taken, at most a step at a time, and not again before the
 *     guest has followed and said what it has now.
 *
 * Every machine has a policy of its own, and they know nothing of each other: as each takes a share of what its guest has idle, an
 * idle guest gives much and a busy one nothing.
 *
 * The guest's statistics are what the guest likes to say. Who says too little keeps its own memory; who says too
 * much loses it. Neither gets more than its machine has. */

#include "util.h"

/* Bytes, or a part of the machine's memory. */
typedef struct PolicyAmount {
        uint64_t value;
        bool percent;
} PolicyAmount;

typedef struct PolicySettings {
        PolicyAmount keep;       /* what the guest shall always have available */
        PolicyAmount maximum;    /* of the balloon; what is given back may come from a larger one */
        PolicyAmount hysteresis; /* what it must have available beyond that, before anything is taken */
        PolicyAmount step;       /* most that is taken, or given back to a guest that is not short, at once */
        uint64_t share;          /* of what is idle, in percent: taken at once */
        uint64_t settle_usec;    /* least time between two changes, but for a guest in need */
        uint64_t pressure_usec;  /* how long a sign of pressure on the host is valid */
        uint64_t calm_usec;      /* no pressure for that long: memory goes back */
        uint64_t backoff_usec;   /* nothing is taken for that long after the guest ran out of memory */
        uint64_t stale_usec;     /* statistics older than this say nothing */
        uint64_t swap_in_rate;   /* bytes a second: a guest that swaps in as much is short; 0 is never */
        uint64_t major_fault_rate; /* a second, the same */
} PolicySettings;

/* Bounds of what grows by doubling. */
#define POLICY_CALM_FACTOR_MAX 16
#define POLICY_BACKOFF_FACTOR_MAX 32

typedef enum PolicyRegime {
        POLICY_WAITING,     /* no driver in the guest, or nobody to ask */
        POLICY_STEADY,
        POLICY_TAKING,      /* pressure on the host, and the guest has idle memory */
        POLICY_RETURNING,   /* the host is calm */
        POLICY_RELIEVING,   /* the guest is short */
        POLICY_BACKING_OFF, /* the guest ran out of memory lately */
} PolicyRegime;

const char *policy_regime_name(PolicyRegime regime);

#define POLICY_UNKNOWN UINT64_MAX

/* What a guest said; each may be POLICY_UNKNOWN. The counters count from some beginning on. */
typedef struct PolicyStatistics {
        uint64_t age_usec;
        uint64_t available, free; /* bytes */
        uint64_t swap_in;         /* bytes */
        uint64_t major_faults, oom_kills;
} PolicyStatistics;

typedef struct PolicyBalloon {
        uint64_t target, actual;
        uint64_t oom_deflations; /* a counter */
        bool driver;
        bool deflates_on_oom; /* the driver would rather deflate than let a process be killed */
} PolicyBalloon;

/* Treat as opaque; plain so that it needs no allocation. */
typedef struct Policy {
        PolicySettings settings;
        uint64_t memory;
        uint64_t base; /* where memory goes back to */
        PolicyBalloon balloon;
        PolicyRegime regime;

        /* the latest statistics */
        bool sampled;
        uint64_t sample_usec;      /* when the guest made them */
        uint64_t sample_actual;    /* the balloon then */
        uint64_t sample_available; /* POLICY_UNKNOWN where not even free memory was told */
        PolicyStatistics sample;
        uint64_t swap_in_rate, major_fault_rate;

        uint64_t actual_usec;  /* when the balloon last changed in size */
        uint64_t changed_usec; /* when we last changed the target */
        uint64_t hold_usec;    /* nothing is taken before */

        bool pressure;
        uint64_t pressure_until_usec;
        uint64_t calm_since_usec;
        uint64_t calm_usec; /* how long it must be calm by now */
        bool returned;      /* since the last pressure */
        uint64_t returned_usec;

        bool out_of_memory; /* not answered yet */
        uint64_t oom_usec;  /* the latest; 0 is never */
        uint64_t backoff_usec, backoff_until_usec;
        bool taken; /* since the last time it ran out of memory */

        bool begin_anew; /* the guest was reset */
} Policy;

typedef struct PolicyDecision {
        PolicyRegime regime;
        bool regime_changed;
        uint64_t target;    /* what the balloon shall be; the policy takes it for done */
        bool target_changed;
        uint64_t next_usec; /* ask again then, if nothing was told before; UINT64_MAX is never */
} PolicyDecision;

/* `memory` is the machine's, in bytes; `base` the balloon's target when nobody is in need. */
void policy_init(Policy *p, const PolicySettings *settings, uint64_t memory, uint64_t base, uint64_t now);

/* The balloon's present state. A counter of OOM deflations that has grown counts as policy_out_of_memory(). */
void policy_tell_balloon(Policy *p, const PolicyBalloon *balloon, uint64_t now);
/* Somebody else set this target: it is what memory goes back to from now on. */
void policy_tell_base(Policy *p, uint64_t base);
void policy_tell_statistics(Policy *p, const PolicyStatistics *statistics, uint64_t now);
/* A sign of memory pressure on the host. */
void policy_tell_pressure(Policy *p, uint64_t now);
/* The guest begins anew, and what it told is void. */
void policy_tell_reset(Policy *p, uint64_t now);
/* There is nobody to ask: what was told about balloon and guest is void. */
void policy_tell_lost(Policy *p);

PolicyDecision policy_decide(Policy *p, uint64_t now);

uint64_t policy_amount(PolicyAmount amount, uint64_t memory);
