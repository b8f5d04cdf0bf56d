/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "policy.h"

/* Targets are whole multiples of this: what a guest's driver moves at once. */
#define GRANULE MIB(1)

/* Counters are believed to move by so much between two statistics. */
#define DELTA_MAX GIB(1024)
#define RATE_INTERVAL_MIN (100 * USEC_PER_MSEC)

/* So many settle times after a guest was short nothing is taken from it. */
#define HOLD_FACTOR 3

/* A guest that runs out of memory within so many back-offs after the last time does so because of us. */
#define BACKOFF_MEMORY 8

/* The settings, for this machine. */
typedef struct Limits {
        uint64_t keep, maximum, hysteresis, step;
} Limits;

const char *policy_regime_name(PolicyRegime regime) {
        static const char *const names[] = {
                [POLICY_WAITING] = "waiting",     [POLICY_STEADY] = "steady",       [POLICY_TAKING] = "taking",
                [POLICY_RETURNING] = "returning", [POLICY_RELIEVING] = "relieving", [POLICY_BACKING_OFF] = "backing off",
        };
        return names[regime];
}

static uint64_t add(uint64_t a, uint64_t b) {
        return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t subtract(uint64_t a, uint64_t b) {
        return a > b ? a - b : 0;
}

static uint64_t percent_of(uint64_t percent, uint64_t amount) {
        return amount / 100 * percent + amount % 100 * percent / 100;
}

uint64_t policy_amount(PolicyAmount amount, uint64_t memory) {
        return amount.percent ? percent_of(MIN(amount.value, UINT64_C(100)), memory) : MIN(amount.value, memory);
}

static Limits limits_of(const Policy *p) {
        const PolicySettings *s = &p->settings;
        Limits l = {
                .keep = policy_amount(s->keep, p->memory),
                .maximum = policy_amount(s->maximum, p->memory),
                .hysteresis = policy_amount(s->hysteresis, p->memory),
                .step = policy_amount(s->step, p->memory),
        };

        /* Whatever the guest says, it keeps what it shall keep. */
        l.maximum = ALIGN_DOWN(MIN(l.maximum, subtract(p->memory, l.keep)), GRANULE);
        l.step = MAX(l.step, GRANULE);
        return l;
}

void policy_init(Policy *p, const PolicySettings *settings, uint64_t memory, uint64_t base, uint64_t now) {
        *p = (Policy) {
                .settings = *settings,
                .memory = memory,
                .base = MIN(base, memory),
                .balloon.target = MIN(base, memory),
                .calm_since_usec = now,
                .calm_usec = settings->calm_usec,
                .backoff_usec = settings->backoff_usec,
        };
}

static void tell_out_of_memory(Policy *p, uint64_t now) {
        bool again = p->oom_usec != 0 && now - p->oom_usec < BACKOFF_MEMORY * p->backoff_usec;

        /* What counts is that our taking led to it; one shortage may be told many times. */
        if (p->taken)
                p->backoff_usec = again ? MIN(2 * p->backoff_usec, POLICY_BACKOFF_FACTOR_MAX * p->settings.backoff_usec) :
                        p->settings.backoff_usec;
        p->taken = false;
        p->out_of_memory = true;
        p->oom_usec = now;
        p->backoff_until_usec = add(now, p->backoff_usec);
}

void policy_tell_balloon(Policy *p, const PolicyBalloon *balloon, uint64_t now) {
        PolicyBalloon b = *balloon;

        b.target = MIN(b.target, p->memory);
        b.actual = MIN(b.actual, p->memory);
        if (!b.driver)
                p->sampled = false;
        else if (p->balloon.driver && b.oom_deflations > p->balloon.oom_deflations)
                tell_out_of_memory(p, now);
        if (b.actual != p->balloon.actual || b.driver != p->balloon.driver)
                p->actual_usec = now;
        p->balloon = b;
}

void policy_tell_base(Policy *p, uint64_t base) {
        p->base = MIN(base, p->memory);
}

/* How far a counter moved. One that went back has begun anew. */
static uint64_t growth(uint64_t before, uint64_t after) {
        return before == POLICY_UNKNOWN || after == POLICY_UNKNOWN || after <= before ? 0 : MIN(after - before, DELTA_MAX);
}

static uint64_t rate(uint64_t before, uint64_t after, uint64_t interval_usec) {
        return growth(before, after) * USEC_PER_SEC / MAX(interval_usec, RATE_INTERVAL_MIN);
}

void policy_tell_statistics(Policy *p, const PolicyStatistics *statistics, uint64_t now) {
        uint64_t made = subtract(now, statistics->age_usec), had = subtract(p->memory, p->balloon.actual), available, interval;

        /* Nothing new. */
        if (statistics->age_usec > p->settings.stale_usec || (p->sampled && made <= p->sample_usec))
                return;

        p->swap_in_rate = p->major_fault_rate = 0;
        if (p->sampled) {
                interval = made - p->sample_usec;
                p->swap_in_rate = rate(p->sample.swap_in, statistics->swap_in, interval);
                p->major_fault_rate = rate(p->sample.major_faults, statistics->major_faults, interval);
                /* A driver that does not deflate lets processes be killed. */
                if (!p->balloon.deflates_on_oom && p->balloon.actual > 0 &&
                        growth(p->sample.oom_kills, statistics->oom_kills) > 0)
                        tell_out_of_memory(p, now);
        }
        /* Older drivers know free memory only, which is never more. */
        available = statistics->available != POLICY_UNKNOWN ? statistics->available : statistics->free;
        p->sample_available = available == POLICY_UNKNOWN ? available : MIN(available, had);
        p->sample = *statistics;
        p->sample_usec = made;
        p->sample_actual = p->balloon.actual;
        p->sampled = true;
}

void policy_tell_pressure(Policy *p, uint64_t now) {
        if (p->returned)
                p->calm_usec = now - p->returned_usec < p->calm_usec ?
                        MIN(2 * p->calm_usec, POLICY_CALM_FACTOR_MAX * p->settings.calm_usec) :
                        p->settings.calm_usec;
        p->returned = false;
        p->pressure = true;
        p->pressure_until_usec = add(now, p->settings.pressure_usec);
        p->calm_since_usec = now;
}

void policy_tell_reset(Policy *p, uint64_t now) {
        p->sampled = false;
        p->out_of_memory = false;
        p->begin_anew = true;
        p->balloon.actual = 0;
        p->balloon.driver = false;
        p->actual_usec = now;
}

void policy_tell_lost(Policy *p) {
        p->sampled = false;
        p->out_of_memory = false;
        p->balloon.driver = false;
}

static bool sample_is_fresh(const Policy *p, uint64_t now) {
        return p->sampled && now - p->sample_usec <= p->settings.stale_usec;
}

/* Only ever downwards: whoever needs memory gets it now. */
static bool relieve_out_of_memory(Policy *p, const Limits *l, uint64_t *target) {
        uint64_t have = MIN(p->balloon.target, p->balloon.actual);

        if (!p->out_of_memory)
                return false;
        p->out_of_memory = false;
        /* It still takes back what it was given the last time. */
        if (p->balloon.actual > p->balloon.target)
                return true;
        *target = ALIGN_DOWN(subtract(have, MAX(l->keep + l->hysteresis, l->step)), GRANULE);
        return true;
}

/* Reckoned from the balloon as it was when the guest said what it has, so that the same statistics lead to the same target. */
static bool relieve_short(Policy *p, const Limits *l, uint64_t now, uint64_t *target) {
        const PolicySettings *s = &p->settings;
        uint64_t lacks = 0;

        if (!sample_is_fresh(p, now) || (p->balloon.actual == 0 && p->balloon.target == 0))
                return false;
        if (p->sample_available < l->keep)
                lacks = l->keep + l->hysteresis - p->sample_available;
        if ((s->swap_in_rate > 0 && p->swap_in_rate >= s->swap_in_rate) ||
                (s->major_fault_rate > 0 && p->major_fault_rate >= s->major_fault_rate))
                lacks = MAX(lacks, l->step);
        if (lacks == 0)
                return false;
        *target = MIN(p->balloon.target, ALIGN_DOWN(subtract(p->sample_actual, lacks), GRANULE));
        p->hold_usec = add(now, HOLD_FACTOR * s->settle_usec);
        return true;
}

static bool settled(const Policy *p, uint64_t now) {
        return p->changed_usec == 0 || now - p->changed_usec >= p->settings.settle_usec;
}

static bool give_back(Policy *p, const Limits *l, uint64_t now, uint64_t *target) {
        if (p->pressure || now - p->calm_since_usec < p->calm_usec || p->balloon.target <= p->base)
                return false;
        if (settled(p, now)) {
                *target = MAX(p->base, ALIGN_DOWN(subtract(p->balloon.target, l->step), GRANULE));
                p->returned = true;
                p->returned_usec = now;
        }
        return true;
}

static bool take(Policy *p, const Limits *l, uint64_t now, uint64_t *target) {
        uint64_t idle, wanted;

        if (!p->pressure || !sample_is_fresh(p, now) || p->sample_available == POLICY_UNKNOWN || p->balloon.target >= l->maximum)
                return false;
        idle = subtract(p->sample_available, l->keep + l->hysteresis);
        if (idle < GRANULE)
                return false;
        /* Statistics from before the balloon's last movement count some memory twice. */
        if (!settled(p, now) || p->sample_usec < p->actual_usec)
                return true;
        wanted = add(p->sample_actual, MIN(percent_of(p->settings.share, idle), l->step));
        wanted = MIN(ALIGN_DOWN(wanted, GRANULE), l->maximum);
        if (wanted > p->balloon.target) {
                *target = wanted;
                p->taken = true;
        }
        return true;
}

static PolicyRegime judge(Policy *p, uint64_t now, uint64_t *target) {
        Limits l = limits_of(p);

        if (p->begin_anew) {
                /* It boots with the memory that it was given at first. */
                p->begin_anew = false;
                *target = p->base;
                return POLICY_WAITING;
        }
        if (!p->balloon.driver)
                return POLICY_WAITING;
        if (relieve_out_of_memory(p, &l, target))
                return POLICY_BACKING_OFF;
        if (relieve_short(p, &l, now, target))
                return POLICY_RELIEVING;
        if (give_back(p, &l, now, target))
                return POLICY_RETURNING;
        if (now < p->backoff_until_usec)
                return POLICY_BACKING_OFF;
        if (now >= p->hold_usec && take(p, &l, now, target))
                return POLICY_TAKING;
        return POLICY_STEADY;
}

static void until(uint64_t *next, uint64_t usec, uint64_t now) {
        if (usec > now)
                *next = MIN(*next, usec);
}

/* When the decision may be another one without anything being told. */
static uint64_t next_decision(const Policy *p, PolicyRegime regime, uint64_t now) {
        uint64_t next = UINT64_MAX;

        if (regime == POLICY_WAITING)
                return next;
        if (p->pressure)
                until(&next, p->pressure_until_usec, now);
        until(&next, p->backoff_until_usec, now);
        if (p->pressure)
                until(&next, p->hold_usec, now);
        if (regime == POLICY_TAKING || regime == POLICY_RETURNING)
                until(&next, add(p->changed_usec, p->settings.settle_usec), now);
        if (p->balloon.target > p->base)
                until(&next, add(p->calm_since_usec, p->calm_usec), now);
        /* A guest that was short and falls silent is not short for ever. */
        if (regime == POLICY_RELIEVING)
                until(&next, add(p->sample_usec, p->settings.stale_usec + 1), now);
        return next;
}

PolicyDecision policy_decide(Policy *p, uint64_t now) {
        PolicyDecision d = { .target = p->balloon.target };

        if (p->pressure && now >= p->pressure_until_usec)
                p->pressure = false;
        d.regime = judge(p, now, &d.target);
        d.regime_changed = d.regime != p->regime;
        d.target_changed = d.target != p->balloon.target;
        p->regime = d.regime;
        if (d.target_changed) {
                p->balloon.target = d.target;
                p->changed_usec = now;
        }
        d.next_usec = next_decision(p, d.regime, now);
        return d;
}
