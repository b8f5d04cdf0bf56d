/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The balloon policy's decisions, one by one and in simulated worlds, and its settings. */

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "policy.h"
#include "settings.h"

#define SEC USEC_PER_SEC
#define MEMORY MIB(1000) /* so that a percent is 10 MiB: keep 150, hysteresis 30, step 100, maximum 750 */

typedef struct World {
        Policy policy;
        PolicyBalloon balloon;
        PolicyDecision last;
        uint64_t now;
} World;

static PolicySettings default_settings(void) {
        _cleanup_free_ char *message = NULL;
        Settings s;

        settings_init(&s);
        assert_int_equal(settings_finish(&s, &message), 0);
        return s.policy;
}

/* A guest with a driver, at rest. */
static World new_world(uint64_t base) {
        PolicySettings settings = default_settings();
        World w = { .now = 1000 * SEC, .balloon = { .target = base, .actual = base, .driver = true, .deflates_on_oom = true } };

        policy_init(&w.policy, &settings, MEMORY, base, w.now);
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        return w;
}

static uint64_t decide(World *w) {
        w->last = policy_decide(&w->policy, w->now);
        w->balloon.target = w->last.target;
        return w->last.target / MIB(1);
}

static void wait(World *w, uint64_t seconds) {
        w->now += seconds * SEC;
}

static void tell_available(World *w, uint64_t mib) {
        PolicyStatistics s = { .available = MIB(mib), .free = POLICY_UNKNOWN, .swap_in = POLICY_UNKNOWN,
                .major_faults = POLICY_UNKNOWN, .oom_kills = POLICY_UNKNOWN };

        policy_tell_statistics(&w->policy, &s, w->now);
}

static void tell_actual(World *w, uint64_t mib) {
        w->balloon.actual = MIB(mib);
        policy_tell_balloon(&w->policy, &w->balloon, w->now);
}

/* The guest did as it was told. */
static void follow(World *w) {
        tell_actual(w, w->balloon.target / MIB(1));
}

static void tell_pressure(World *w) {
        policy_tell_pressure(&w->policy, w->now);
}

static void tell_oom(World *w) {
        w->balloon.oom_deflations++;
        policy_tell_balloon(&w->policy, &w->balloon, w->now);
}

/* Six seconds later: pressure, new statistics, a decision. */
static uint64_t round_of_pressure(World *w, uint64_t available) {
        wait(w, 6);
        tell_pressure(w);
        tell_available(w, available);
        return decide(w);
}

/* ---- what it does not do ---- */

static void takes_nothing_without_pressure(void **state) {
        World w = new_world(0);

        for (unsigned i = 0; i < 1000; i++) {
                tell_available(&w, 900);
                assert_int_equal(decide(&w), 0);
                assert_int_equal(w.last.regime, POLICY_STEADY);
                assert_false(w.last.target_changed);
                wait(&w, 5);
        }
        assert_true(w.last.next_usec == UINT64_MAX);
}

static void takes_nothing_without_statistics(void **state) {
        World w = new_world(0);

        tell_pressure(&w);
        assert_int_equal(decide(&w), 0);
        assert_int_equal(w.last.regime, POLICY_STEADY);
}

static void takes_nothing_on_stale_statistics(void **state) {
        World w = new_world(0);

        tell_available(&w, 900);
        wait(&w, 16);
        tell_pressure(&w);
        assert_int_equal(decide(&w), 0);

        /* and those that were old when they came */
        PolicyStatistics s = { .age_usec = 60 * SEC, .available = MIB(900), .free = POLICY_UNKNOWN };
        policy_tell_statistics(&w.policy, &s, w.now);
        assert_int_equal(decide(&w), 0);
        s.age_usec = UINT64_MAX;
        policy_tell_statistics(&w.policy, &s, w.now);
        assert_int_equal(decide(&w), 0);
}

static void takes_nothing_without_a_driver(void **state) {
        World w = new_world(0);

        tell_available(&w, 900);
        w.balloon.driver = false;
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        tell_pressure(&w);
        assert_int_equal(decide(&w), 0);
        assert_int_equal(w.last.regime, POLICY_WAITING);
        assert_true(w.last.next_usec == UINT64_MAX);
}

static void takes_nothing_that_the_guest_shall_keep(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 150), 0);
        assert_int_equal(round_of_pressure(&w, 180), 0);
        assert_int_equal(w.last.regime, POLICY_STEADY);
        assert_int_equal(round_of_pressure(&w, 190), 3); /* a third of 10 */
        assert_int_equal(w.last.regime, POLICY_TAKING);
}

static void takes_nothing_where_even_free_memory_is_unknown(void **state) {
        World w = new_world(0);
        PolicyStatistics s = { .available = POLICY_UNKNOWN, .free = POLICY_UNKNOWN, .swap_in = POLICY_UNKNOWN,
                .major_faults = POLICY_UNKNOWN, .oom_kills = POLICY_UNKNOWN };

        policy_tell_statistics(&w.policy, &s, w.now);
        tell_pressure(&w);
        assert_int_equal(decide(&w), 0);
        /* free memory will do */
        wait(&w, 1);
        s.free = MIB(900);
        policy_tell_statistics(&w.policy, &s, w.now);
        assert_int_equal(decide(&w), 100);
}

/* A guest that says it has more than there is. */
static void believes_nobody_to_have_more_than_there_is(void **state) {
        World w = new_world(0);
        uint64_t target = 0;

        for (unsigned i = 0; i < 100; i++) {
                target = round_of_pressure(&w, UINT32_MAX);
                follow(&w);
        }
        /* It keeps 150, and of the rest what is too little to be taken. */
        assert_in_range(target, 700, 750);

        World x = new_world(0);
        PolicyStatistics s = { .available = UINT64_MAX - 1, .free = UINT64_MAX - 1, .swap_in = UINT64_MAX - 1,
                .major_faults = UINT64_MAX - 1, .oom_kills = UINT64_MAX - 1 };
        x.balloon.actual = UINT64_MAX;
        x.balloon.target = UINT64_MAX;
        policy_tell_balloon(&x.policy, &x.balloon, x.now);
        policy_tell_statistics(&x.policy, &s, x.now);
        tell_pressure(&x);
        assert_in_range(decide(&x), 0, 1000);
}

/* ---- taking ---- */

static void takes_a_share_of_what_is_idle(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 280), 33); /* of 100 */
        follow(&w);
        assert_int_equal(round_of_pressure(&w, 247), 55); /* 22 of 67 more */
}

static void takes_a_step_at_most(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 950), 100);
        follow(&w);
        assert_int_equal(round_of_pressure(&w, 850), 200);
}

static void takes_no_more_than_the_maximum(void **state) {
        World w = new_world(0);

        for (unsigned i = 0; i < 20; i++) {
                assert_in_range(round_of_pressure(&w, 900), 0, 750);
                follow(&w);
        }
        /* There are 250 left, and 180 of them are the guest's. */
        assert_in_range(w.balloon.target / MIB(1), 700, 750);
        assert_int_equal(round_of_pressure(&w, 100), w.balloon.actual / MIB(1) - 80);
}

static void takes_again_only_when_the_guest_has_said_what_it_has_now(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 900), 100);
        /* no new statistics */
        wait(&w, 6);
        tell_pressure(&w);
        assert_int_equal(decide(&w), 100);
        /* the balloon has moved since */
        wait(&w, 1);
        follow(&w);
        assert_int_equal(decide(&w), 100);
        wait(&w, 1);
        tell_available(&w, 800);
        assert_int_equal(decide(&w), 200);
}

static void takes_again_only_after_a_while(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 900), 100);
        wait(&w, 1);
        follow(&w);
        wait(&w, 1);
        tell_available(&w, 800);
        assert_int_equal(decide(&w), 100);
        assert_int_equal(w.last.regime, POLICY_TAKING);
        assert_int_equal(w.last.next_usec, w.now + 2 * SEC); /* pressure ends before */
        tell_pressure(&w);
        assert_int_equal(decide(&w), 100);
        assert_int_equal(w.last.next_usec, w.now + 3 * SEC);
        wait(&w, 3);
        assert_int_equal(decide(&w), 200);
}

static void asks_for_no_more_of_a_guest_that_does_not_follow(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 900), 100);
        for (unsigned i = 0; i < 50; i++)
                assert_int_equal(round_of_pressure(&w, 900), 100);
}

static void stops_taking_when_the_pressure_ends(void **state) {
        World w = new_world(0);

        assert_int_equal(round_of_pressure(&w, 900), 100);
        follow(&w);
        assert_int_equal(w.last.next_usec, w.now + 4 * SEC);
        wait(&w, 4);
        assert_int_equal(decide(&w), 100);
        assert_int_equal(w.last.regime, POLICY_STEADY);
        assert_true(w.last.regime_changed);
        wait(&w, 2);
        tell_available(&w, 900);
        assert_int_equal(decide(&w), 100);
        assert_false(w.last.regime_changed);
}

/* ---- giving back ---- */

static void gives_back_when_the_host_is_calm(void **state) {
        World w = new_world(0);
        unsigned n = 0;

        for (unsigned i = 0; i < 5; i++) {
                (void) round_of_pressure(&w, 900 - w.balloon.actual / MIB(1));
                follow(&w);
        }
        assert_int_equal(w.balloon.target / MIB(1), 500);
        wait(&w, 59);
        assert_int_equal(decide(&w), 500);
        assert_int_equal(w.last.next_usec, w.now + 1 * SEC);
        /* Nothing is told from here on: its own deadlines do. */
        while (w.balloon.target > 0) {
                assert_true(w.last.next_usec > w.now && w.last.next_usec <= w.now + 60 * SEC);
                w.now = w.last.next_usec;
                uint64_t before = w.balloon.target / MIB(1), after = decide(&w);
                assert_in_range(before - after, 0, 100);
                n++;
        }
        assert_in_range(n, 5, 11);
        assert_int_equal(decide(&w), 0);
        assert_int_equal(w.last.regime, POLICY_STEADY);
}

static void gives_back_to_what_it_found(void **state) {
        World w = new_world(MIB(250));

        assert_int_equal(round_of_pressure(&w, 700), 350);
        follow(&w);
        for (unsigned i = 0; i < 40; i++) {
                wait(&w, 10);
                (void) decide(&w);
        }
        assert_int_equal(w.balloon.target / MIB(1), 250);

        /* somebody else has another idea of it */
        policy_tell_base(&w.policy, MIB(100));
        for (unsigned i = 0; i < 10; i++) {
                wait(&w, 10);
                (void) decide(&w);
        }
        assert_int_equal(w.balloon.target / MIB(1), 100);
}

static void waits_longer_where_giving_back_brought_pressure(void **state) {
        World w = new_world(0);
        uint64_t waited[8];

        for (unsigned i = 0; i < ELEMENTSOF(waited); i++) {
                assert_in_range(round_of_pressure(&w, 900), 1, 750);
                follow(&w);
                uint64_t target = w.balloon.target, begin = w.now;
                while (w.balloon.target == target) {
                        assert_true(w.last.next_usec < UINT64_MAX);
                        w.now = w.last.next_usec;
                        (void) decide(&w);
                }
                follow(&w);
                waited[i] = (w.now - begin) / SEC;
        }
        static const uint64_t expected[] = { 60, 120, 240, 480, 960, 960, 960, 960 };
        for (unsigned i = 0; i < ELEMENTSOF(expected); i++)
                assert_int_equal(waited[i], expected[i]);

        /* and forgets it */
        for (unsigned i = 0; i < 1000; i++) {
                wait(&w, 10);
                (void) decide(&w);
        }
        assert_int_equal(w.balloon.target, 0);
        (void) round_of_pressure(&w, 900);
        wait(&w, 59);
        assert_int_equal(decide(&w), 100);
        wait(&w, 1);
        assert_int_equal(decide(&w), 0);
}

static void pressure_ends_giving_back_at_once(void **state) {
        World w = new_world(0);

        for (unsigned i = 0; i < 5; i++) {
                (void) round_of_pressure(&w, 900 - w.balloon.actual / MIB(1));
                follow(&w);
        }
        wait(&w, 60);
        assert_int_equal(decide(&w), 400);
        assert_int_equal(w.last.regime, POLICY_RETURNING);
        wait(&w, 6);
        tell_pressure(&w);
        assert_int_equal(decide(&w), 400);
        assert_int_not_equal(w.last.regime, POLICY_RETURNING);
}

/* ---- a guest in need ---- */

static World squeezed_world(void) {
        World w = new_world(0);

        for (unsigned i = 0; i < 5; i++) {
                (void) round_of_pressure(&w, 900 - w.balloon.actual / MIB(1));
                follow(&w);
        }
        assert_int_equal(w.balloon.actual / MIB(1), 500);
        wait(&w, 1);
        return w;
}

static void a_guest_that_is_short_gets_what_it_lacks(void **state) {
        World w = squeezed_world();

        tell_available(&w, 149);
        assert_int_equal(decide(&w), 500 - 31);
        assert_int_equal(w.last.regime, POLICY_RELIEVING);
        /* The same statistics are no reason for more, new ones are. */
        assert_int_equal(decide(&w), 469);
        wait(&w, 1);
        tell_available(&w, 20);
        assert_int_equal(decide(&w), 500 - 160);
        follow(&w);
        wait(&w, 1);
        tell_available(&w, 180);
        assert_int_equal(decide(&w), 340);
        assert_int_not_equal(w.last.regime, POLICY_RELIEVING);
}

static void a_guest_that_is_short_gets_it_under_pressure_too(void **state) {
        World w = squeezed_world();

        tell_pressure(&w);
        tell_available(&w, 100);
        assert_int_equal(decide(&w), 420);
        assert_int_equal(w.last.regime, POLICY_RELIEVING);
}

static void a_guest_that_is_short_gets_more_than_it_had(void **state) {
        World w = new_world(MIB(300));

        tell_available(&w, 50);
        assert_int_equal(decide(&w), 170);
        follow(&w);
        wait(&w, 1);
        tell_available(&w, 0);
        assert_int_equal(decide(&w), 0);
        follow(&w);
        wait(&w, 1);
        tell_available(&w, 0);
        assert_int_equal(decide(&w), 0);
        assert_int_equal(w.last.regime, POLICY_STEADY);
}

static void a_guest_that_was_short_is_left_alone_for_a_while(void **state) {
        World w = squeezed_world();

        tell_available(&w, 100);
        assert_int_equal(decide(&w), 420);
        follow(&w);
        wait(&w, 6);
        tell_pressure(&w);
        tell_available(&w, 500);
        assert_int_equal(decide(&w), 420);
        assert_int_equal(w.last.regime, POLICY_STEADY);
        wait(&w, 9);
        tell_pressure(&w);
        tell_available(&w, 500);
        assert_int_equal(decide(&w), 520);
}

static void tell_counters(World *w, uint64_t swap_in, uint64_t major_faults, uint64_t oom_kills) {
        PolicyStatistics s = { .available = MIB(200), .free = MIB(100), .swap_in = swap_in, .major_faults = major_faults,
                .oom_kills = oom_kills };

        policy_tell_statistics(&w->policy, &s, w->now);
}

static void a_guest_that_swaps_is_short(void **state) {
        World w = squeezed_world();

        tell_counters(&w, GIB(5), 0, 0); /* whatever was before */
        assert_int_equal(decide(&w), 500);
        wait(&w, 5);
        tell_counters(&w, GIB(5) + MIB(4), 0, 0);
        assert_int_equal(decide(&w), 500);
        wait(&w, 5);
        tell_counters(&w, GIB(5) + MIB(9), 0, 0);
        assert_int_equal(decide(&w), 400);
        /* a counter that begins anew says nothing */
        follow(&w);
        wait(&w, 5);
        tell_counters(&w, 0, 0, 0);
        assert_int_equal(decide(&w), 400);
        wait(&w, 5);
        tell_counters(&w, UINT64_MAX, 0, 0);
        assert_int_equal(decide(&w), 400);
        wait(&w, 5);
        tell_counters(&w, UINT64_MAX - 1, 0, 0);
        assert_int_equal(decide(&w), 400);
}

static void a_guest_with_many_major_faults_is_short(void **state) {
        World w = squeezed_world();

        tell_counters(&w, 0, 0, 0);
        wait(&w, 5);
        tell_counters(&w, 0, 4999, 0);
        assert_int_equal(decide(&w), 500);
        wait(&w, 5);
        tell_counters(&w, 0, 9999, 0);
        assert_int_equal(decide(&w), 400);
}

static void a_guest_that_falls_silent_is_short_no_longer(void **state) {
        World w = squeezed_world();

        tell_available(&w, 100);
        assert_int_equal(decide(&w), 420);
        for (unsigned i = 0; i < 5 && w.last.regime == POLICY_RELIEVING; i++) {
                assert_true(w.last.next_usec < UINT64_MAX);
                w.now = w.last.next_usec;
                (void) decide(&w);
        }
        assert_int_not_equal(w.last.regime, POLICY_RELIEVING);
        assert_int_equal(w.balloon.target / MIB(1), 420);
}

/* ---- a guest that ran out of memory ---- */

static void out_of_memory_gives_back_at_once(void **state) {
        World w = squeezed_world();

        tell_pressure(&w);
        tell_available(&w, 600);
        w.balloon.actual = MIB(480);
        tell_oom(&w);
        assert_int_equal(decide(&w), 300); /* 180 less than it had left */
        assert_int_equal(w.last.regime, POLICY_BACKING_OFF);
}

static void one_shortage_told_many_times_is_one(void **state) {
        World w = squeezed_world();

        tell_oom(&w);
        assert_int_equal(decide(&w), 320);
        for (unsigned i = 0; i < 100; i++) {
                w.balloon.actual -= MIB(1);
                w.now += SEC / 10;
                tell_oom(&w);
                assert_int_equal(decide(&w), 320);
        }
        /* it was not enough */
        follow(&w);
        tell_oom(&w);
        assert_int_equal(decide(&w), 140);
        follow(&w);
        tell_oom(&w);
        assert_int_equal(decide(&w), 0);
        follow(&w);
        tell_oom(&w);
        assert_int_equal(decide(&w), 0);
}

static void nothing_is_taken_after_out_of_memory_for_a_while(void **state) {
        World w = squeezed_world();
        uint64_t target, begin = w.now;

        tell_oom(&w);
        target = decide(&w);
        follow(&w);
        while (w.now + 6 * SEC < begin + 60 * SEC) {
                assert_int_equal(round_of_pressure(&w, 600), target);
                assert_int_equal(w.last.regime, POLICY_BACKING_OFF);
        }
        wait(&w, 6);
        assert_true(round_of_pressure(&w, 600) > target);
}

static void backs_off_longer_each_time_and_forgets(void **state) {
        World w = squeezed_world();
        static const uint64_t expected[] = { 60, 120, 240, 480, 960, 1920, 1920, 1920 };

        for (unsigned i = 0; i < ELEMENTSOF(expected); i++) {
                uint64_t begin = w.now, before;

                tell_oom(&w);
                before = decide(&w);
                follow(&w);
                while (round_of_pressure(&w, 600) <= before)
                        assert_true(w.now < begin + 2000 * SEC);
                follow(&w);
                assert_in_range((w.now - begin) / SEC, expected[i], expected[i] + 12);
        }
        wait(&w, 9 * 1920);
        tell_oom(&w);
        assert_int_equal(w.policy.backoff_usec, 60 * SEC);
}

/* Without deflation by itself, killed processes are what there is to see; with it, they have other reasons. */
static void killed_processes_count_where_the_driver_does_not_deflate(void **state) {
        World w = squeezed_world();

        tell_counters(&w, 0, 0, 3);
        wait(&w, 5);
        tell_counters(&w, 0, 0, 4);
        assert_int_equal(decide(&w), 500);
        w.balloon.deflates_on_oom = false;
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        wait(&w, 5);
        tell_counters(&w, 0, 0, 5);
        assert_int_equal(decide(&w), 320);
        assert_int_equal(w.last.regime, POLICY_BACKING_OFF);
}

/* The counter is a helper's, and begins anew with it. */
static void a_counter_of_oom_that_is_there_already_means_nothing(void **state) {
        World w = new_world(0);

        w.balloon = (PolicyBalloon) { .target = MIB(500), .actual = MIB(500), .oom_deflations = 7, .driver = true };
        w.policy.balloon.driver = false;
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        assert_int_equal(decide(&w), 500);
        w.balloon.oom_deflations = 2;
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        assert_int_equal(decide(&w), 500);
        assert_int_not_equal(w.last.regime, POLICY_BACKING_OFF);
        tell_oom(&w);
        assert_true(decide(&w) < 500);
}

/* ---- resets, lost connections ---- */

static void a_guest_that_begins_anew_gets_what_was_found(void **state) {
        World w = squeezed_world();

        policy_tell_reset(&w.policy, w.now);
        assert_int_equal(decide(&w), 0);
        assert_int_equal(w.last.regime, POLICY_WAITING);
        /* while it boots there is no driver */
        w.balloon.driver = false;
        tell_actual(&w, 0);
        assert_int_equal(round_of_pressure(&w, 900), 0);
        /* and its counters start from nothing */
        w.balloon.driver = true;
        w.balloon.oom_deflations = 0;
        tell_actual(&w, 0);
        wait(&w, 1);
        assert_int_equal(round_of_pressure(&w, 900), 100);
}

static void decides_nothing_while_there_is_nobody_to_ask(void **state) {
        World w = squeezed_world();

        policy_tell_lost(&w.policy);
        assert_int_equal(round_of_pressure(&w, 900), 500);
        assert_int_equal(w.last.regime, POLICY_WAITING);
        wait(&w, 600);
        assert_int_equal(decide(&w), 500);
        /* back again: what was taken is known to be that */
        policy_tell_balloon(&w.policy, &w.balloon, w.now);
        assert_int_equal(decide(&w), 400);
        assert_int_equal(w.last.regime, POLICY_RETURNING);
}

/* ---- simulated worlds ---- */

typedef struct Guest {
        World w;
        uint64_t used, cache; /* MiB that cannot be had, and that can */
        uint64_t moved;       /* MiB of changes of the target, both ways */
        unsigned turns;       /* changes of direction */
        int direction;
        unsigned ooms;
        uint64_t least_available;
} Guest;

typedef struct Host {
        Guest guests[2];
        uint64_t capacity; /* MiB for both */
        unsigned pressed;  /* seconds with pressure */
        uint64_t random;
} Host;

static uint64_t held(const Guest *g) {
        return MIN(g->used + g->cache, 1000 - g->w.balloon.actual / MIB(1));
}

/* One second of a guest: its driver moves 40 MiB; its page cache grows by 5 into what is free. */
static void guest_second(Guest *g) {
        uint64_t actual = g->w.balloon.actual / MIB(1), target = g->w.balloon.target / MIB(1), had;

        if (actual > target)
                actual -= MIN(actual - target, UINT64_C(40));
        else
                actual += MIN(target - actual, UINT64_C(40));
        if (g->used + actual > 1000) {
                /* It takes back what it needs, and says so. */
                actual = 1000 - MIN(g->used, UINT64_C(1000));
                g->ooms++;
                g->w.balloon.oom_deflations++;
        }
        had = 1000 - actual - MIN(g->used, 1000 - actual);
        g->cache = MIN(g->cache + 5, had);
        if (MIB(actual) != g->w.balloon.actual || g->w.policy.balloon.oom_deflations != g->w.balloon.oom_deflations)
                tell_actual(&g->w, actual);
        g->least_available = MIN(g->least_available, had);
}

static void policy_second(Guest *g, uint64_t now, unsigned second, bool pressure) {
        uint64_t before = g->w.balloon.target;
        int direction;

        g->w.now = now;
        if (pressure)
                tell_pressure(&g->w);
        if (second % 5 == 0)
                tell_available(&g->w, 1000 - g->w.balloon.actual / MIB(1) - MIN(g->used, 1000 - g->w.balloon.actual / MIB(1)));
        (void) decide(&g->w);
        if (g->w.balloon.target == before)
                return;
        direction = g->w.balloon.target > before ? 1 : -1;
        g->moved += (direction > 0 ? g->w.balloon.target - before : before - g->w.balloon.target) / MIB(1);
        g->turns += g->direction != 0 && direction != g->direction;
        g->direction = direction;
}

/* Pressure is reported once in two seconds while there is some; reclaim of the host costs the guests no memory here. */
static void host_seconds(Host *h, unsigned seconds) {
        for (unsigned i = 0; i < seconds; i++) {
                bool pressure = held(&h->guests[0]) + held(&h->guests[1]) > h->capacity;
                uint64_t now = h->guests[0].w.now + SEC;

                h->pressed += pressure;
                for (size_t k = 0; k < 2; k++) {
                        h->guests[k].w.now = now;
                        guest_second(&h->guests[k]);
                        policy_second(&h->guests[k], now, i, pressure && i % 2 == 0);
                }
        }
}

static Host new_host(uint64_t capacity, uint64_t used_0, uint64_t used_1) {
        Host h = { .capacity = capacity };

        for (size_t k = 0; k < 2; k++) {
                h.guests[k].w = new_world(0);
                h.guests[k].least_available = UINT64_MAX;
        }
        h.guests[0].used = used_0;
        h.guests[1].used = used_1;
        return h;
}

static void begin_count(Host *h) {
        h->pressed = 0;
        for (size_t k = 0; k < 2; k++) {
                h->guests[k].moved = h->guests[k].turns = h->guests[k].ooms = 0;
                h->guests[k].least_available = UINT64_MAX;
        }
}

/* With memory enough nothing moves, for hours. */
static void simulated_plenty_is_left_alone(void **state) {
        Host h = new_host(2000, 200, 600);

        host_seconds(&h, 4 * 3600);
        assert_int_equal(h.pressed, 0);
        assert_int_equal(h.guests[0].moved + h.guests[1].moved, 0);
}

/* An idle guest gives, a busy one keeps; and it comes to rest. */
static void simulated_idle_gives_and_busy_keeps(void **state) {
        Host h = new_host(1400, 100, 750);

        host_seconds(&h, 600);
        assert_true(h.guests[0].w.balloon.actual > 8 * h.guests[1].w.balloon.actual);
        assert_int_equal(h.guests[0].ooms + h.guests[1].ooms, 0);
        assert_true(h.guests[0].least_available >= 150 && h.guests[1].least_available >= 150);

        /* Over hours: attempts to give back get rare, and pressure with them. */
        begin_count(&h);
        host_seconds(&h, 4 * 3600);
        assert_in_range(h.guests[0].turns, 0, 2 * 4 * 3600 / 960 + 2);
        assert_in_range(h.guests[1].turns, 0, 2 * 4 * 3600 / 960 + 2);
        assert_in_range(h.pressed, 0, 4 * 3600 / 20);
        assert_int_equal(h.guests[0].ooms + h.guests[1].ooms, 0);
}

/* Equal guests give equally. */
static void simulated_equals_give_equally(void **state) {
        Host h = new_host(1200, 200, 200);
        uint64_t a, b;

        host_seconds(&h, 900);
        a = h.guests[0].w.balloon.actual;
        b = h.guests[1].w.balloon.actual;
        assert_true(a > 0);
        assert_true(a == b);
}

/* The load changes sides: memory follows it, and nobody runs out of it. */
static void simulated_memory_follows_the_load(void **state) {
        Host h = new_host(1300, 100, 700);

        for (unsigned round = 0; round < 6; round++) {
                size_t idle = round % 2, busy = 1 - idle;

                /* Programs grow over a minute, not at once. */
                for (unsigned i = 0; i < 60; i++) {
                        h.guests[idle].used -= MIN(h.guests[idle].used - 100, UINT64_C(15));
                        h.guests[busy].used += MIN(700 - h.guests[busy].used, UINT64_C(12));
                        host_seconds(&h, 1);
                }
                host_seconds(&h, 300);
                assert_true(h.guests[busy].w.balloon.actual <= MIB(150));
                assert_true(h.guests[idle].w.balloon.actual >= MIB(300));
        }
        assert_int_equal(h.guests[0].ooms + h.guests[1].ooms, 0);
}

/* Both are busy and there is not enough: nobody is squeezed below what he keeps, and nothing swings. */
static void simulated_scarcity_for_all_does_not_swing(void **state) {
        Host h = new_host(1000, 700, 700);

        host_seconds(&h, 600);
        begin_count(&h);
        host_seconds(&h, 3600);
        assert_int_equal(h.guests[0].turns + h.guests[1].turns, 0);
        assert_int_equal(h.guests[0].ooms + h.guests[1].ooms, 0);
        assert_true(h.guests[0].least_available >= 150 && h.guests[1].least_available >= 150);
}

/* A guest whose memory is not what it says: it runs out of it ever more seldom. */
static void simulated_guest_that_misjudges_itself_is_left_in_peace(void **state) {
        World w = new_world(0);
        unsigned ooms = 0;

        for (unsigned second = 0; second < 4 * 3600; second++) {
                uint64_t actual = w.balloon.actual / MIB(1);

                w.now += SEC;
                actual = MIN(actual + 40, w.balloon.target / MIB(1));
                if (actual > 300) { /* what it has is in fact in use */
                        actual = 300;
                        ooms++;
                        w.balloon.oom_deflations++;
                }
                tell_actual(&w, actual);
                if (second % 2 == 0)
                        tell_pressure(&w);
                if (second % 5 == 0)
                        tell_available(&w, 1000 - actual);
                (void) decide(&w);
        }
        /* Taking up to there takes some 20 s: without back-off there were 700. */
        assert_in_range(ooms, 5, 20);
}

/* Whatever comes: within bounds, deadlines ahead, and never more than the guest can spare. */
static void simulated_noise_stays_within_bounds(void **state) {
        World w = new_world(MIB(100));
        uint64_t seed = 88172645463325252;

        for (unsigned i = 0; i < 200000; i++) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                uint64_t a = seed >> 20;
                switch (seed % 12) {
                case 0 ... 2:
                        tell_available(&w, a % 1200);
                        break;
                case 3:
                        tell_pressure(&w);
                        break;
                case 4 ... 5:
                        tell_actual(&w, a % 3 ? w.balloon.target / MIB(1) : a % 1100);
                        break;
                case 6:
                        tell_oom(&w);
                        break;
                case 7:
                        tell_counters(&w, a, a >> 3, a >> 9);
                        break;
                case 8:
                        if (a % 100 == 0)
                                policy_tell_reset(&w.policy, w.now);
                        break;
                case 9:
                        w.balloon.driver = a % 10 != 0;
                        policy_tell_balloon(&w.policy, &w.balloon, w.now);
                        break;
                default:
                        w.now += a % (20 * SEC);
                }
                uint64_t before = w.balloon.target, after = MIB(decide(&w));
                assert_true(w.last.target <= MEMORY);
                assert_true(after <= before || after <= MIB(750) || after == MIB(100));
                assert_true(w.last.next_usec > w.now);
                assert_int_equal(w.last.target_changed, after != before);
        }
}

/* ---- settings ---- */

static void settings_refuse_with_reason(const char *argument, const char *expected) {
        _cleanup_free_ char *message = NULL;
        Settings s;

        settings_init(&s);
        assert_int_equal(settings_add(&s, argument, &message), -EINVAL);
        if (!message || !strstr(message, expected) || strncmp(message, argument, strcspn(argument, "=")) != 0)
                fail_msg("%s: %s", argument, message);
}

static void settings_that_are_wrong_are_refused_by_name(void **state) {
        static const char *const wrong[][2] = {
                { "--keep-available=", "expected a size" }, { "--keep-available=101%", "0% to 100%" }, { "--keep-available=-1", "expected" },
                { "--keep-available=1.5G", "expected" }, { "--keep-available=%", "expected" }, { "--keep-available=1000%", "expected" },
                { "--keep-available=5%%", "expected" }, { "--step=0", "expected" }, { "--step=0%", "1% to 100%" },
                { "--share=10M", "1% to 100%" }, { "--share=0%", "1% to 100%" }, { "--settle=10ms", "from 100ms to 86400s" },
                { "--calm=never", "expected a time" }, { "--calm", "expected a time" }, { "--swap-in-rate=1X", "expected a size" },
                { "--major-fault-rate=1M", "expected an integer" }, { "--major-fault-rate=4294967296", "to 4294967295" },
                { "--pressure-stall=most", "\"some\" or \"full\"" }, { "--pressure-window=100ms", "from 500ms to 10s" },
                { "--at-exit=explode", "\"restore\" or \"keep\"" }, { "--device=", "expected a text" },
        };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                settings_refuse_with_reason(wrong[i][0], wrong[i][1]);
}

static void settings_that_nobody_knows_are_none(void **state) {
        static const char *const unknown[] = { "--nothing=1", "--cal=1s", "--calmer=1s", "calm=1s", "-c", "--", "" };
        Settings s;

        settings_init(&s);
        for (size_t i = 0; i < ELEMENTSOF(unknown); i++)
                assert_int_equal(settings_add(&s, unknown[i], NULL), -ENOENT);
}

static void settings_that_contradict_each_other_are_refused(void **state) {
        Settings s;

        settings_init(&s);
        assert_int_equal(settings_add(&s, "--pressure-threshold=3s", NULL), 0);
        assert_int_equal(settings_finish(&s, NULL), -EINVAL);
        settings_init(&s);
        assert_int_equal(settings_add(&s, "--keep-available=97%", NULL), 0);
        assert_int_equal(settings_finish(&s, NULL), -EINVAL);
}

static void settings_of_the_environment_are_taken_or_refused(void **state) {
        static char *good[] = { (char *) "HOME=/", (char *) "VMM_BALLOON_KEEP_AVAILABLE=64M", (char *) "VMM_BALLOON_CALM=",
                (char *) "VMM_BALLOON_AT_EXIT=keep", NULL };
        static char *wrong[] = { (char *) "VMM_BALLOON_CALM=soon", NULL }, *unknown[] = { (char *) "VMM_BALLOON_CALMNESS=1s", NULL };
        _cleanup_free_ char *message = NULL, *other = NULL;
        Settings s;

        settings_init(&s);
        assert_int_equal(settings_from_environment(&s, good, NULL), 0);
        assert_int_equal(s.policy.keep.value, MIB(64));
        assert_false(s.policy.keep.percent);
        assert_int_equal(s.policy.calm_usec, 60 * SEC);
        assert_string_equal(s.at_exit, "keep");

        assert_int_equal(settings_from_environment(&s, wrong, &message), -EINVAL);
        assert_ptr_equal(strstr(message, "$VMM_BALLOON_CALM=soon: expected a time"), message);
        assert_int_equal(settings_from_environment(&s, unknown, &other), -EINVAL);
        assert_non_null(strstr(other, "VMM_BALLOON_CALMNESS"));
}

static void settings_are_taken(void **state) {
        static const char *const arguments[] = { "--keep-available=20%", "--maximum=2G", "--hysteresis=0", "--step=64M", "--share=50%",
                "--settle=1s", "--calm=2min", "--oom-backoff=30s", "--swap-in-rate=0", "--major-fault-rate=10",
                "--statistics-interval=500ms", "--pressure=/x", "--pressure-stall=full", "--pressure-threshold=1s",
                "--pressure-window=4s", "--device=balloon", "--socket=/y" };
        Settings s;

        settings_init(&s);
        for (size_t i = 0; i < ELEMENTSOF(arguments); i++)
                assert_int_equal(settings_add(&s, arguments[i], NULL), 0);
        assert_int_equal(settings_finish(&s, NULL), 0);
        assert_int_equal(policy_amount(s.policy.keep, MEMORY), MIB(200));
        assert_int_equal(policy_amount(s.policy.maximum, MEMORY), MEMORY);
        assert_int_equal(s.policy.share, 50);
        assert_int_equal(s.policy.pressure_usec, 8 * SEC);
        assert_int_equal(s.policy.stale_usec, 1500 * USEC_PER_MSEC);
        assert_string_equal(s.pressure_stall, "full");
        assert_string_equal(s.device, "balloon");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(takes_nothing_without_pressure),
                cmocka_unit_test(takes_nothing_without_statistics),
                cmocka_unit_test(takes_nothing_on_stale_statistics),
                cmocka_unit_test(takes_nothing_without_a_driver),
                cmocka_unit_test(takes_nothing_that_the_guest_shall_keep),
                cmocka_unit_test(takes_nothing_where_even_free_memory_is_unknown),
                cmocka_unit_test(believes_nobody_to_have_more_than_there_is),
                cmocka_unit_test(takes_a_share_of_what_is_idle),
                cmocka_unit_test(takes_a_step_at_most),
                cmocka_unit_test(takes_no_more_than_the_maximum),
                cmocka_unit_test(takes_again_only_when_the_guest_has_said_what_it_has_now),
                cmocka_unit_test(takes_again_only_after_a_while),
                cmocka_unit_test(asks_for_no_more_of_a_guest_that_does_not_follow),
                cmocka_unit_test(stops_taking_when_the_pressure_ends),
                cmocka_unit_test(gives_back_when_the_host_is_calm),
                cmocka_unit_test(gives_back_to_what_it_found),
                cmocka_unit_test(waits_longer_where_giving_back_brought_pressure),
                cmocka_unit_test(pressure_ends_giving_back_at_once),
                cmocka_unit_test(a_guest_that_is_short_gets_what_it_lacks),
                cmocka_unit_test(a_guest_that_is_short_gets_it_under_pressure_too),
                cmocka_unit_test(a_guest_that_is_short_gets_more_than_it_had),
                cmocka_unit_test(a_guest_that_was_short_is_left_alone_for_a_while),
                cmocka_unit_test(a_guest_that_swaps_is_short),
                cmocka_unit_test(a_guest_with_many_major_faults_is_short),
                cmocka_unit_test(a_guest_that_falls_silent_is_short_no_longer),
                cmocka_unit_test(out_of_memory_gives_back_at_once),
                cmocka_unit_test(one_shortage_told_many_times_is_one),
                cmocka_unit_test(nothing_is_taken_after_out_of_memory_for_a_while),
                cmocka_unit_test(backs_off_longer_each_time_and_forgets),
                cmocka_unit_test(killed_processes_count_where_the_driver_does_not_deflate),
                cmocka_unit_test(a_counter_of_oom_that_is_there_already_means_nothing),
                cmocka_unit_test(a_guest_that_begins_anew_gets_what_was_found),
                cmocka_unit_test(decides_nothing_while_there_is_nobody_to_ask),
                cmocka_unit_test(simulated_plenty_is_left_alone),
                cmocka_unit_test(simulated_idle_gives_and_busy_keeps),
                cmocka_unit_test(simulated_equals_give_equally),
                cmocka_unit_test(simulated_memory_follows_the_load),
                cmocka_unit_test(simulated_scarcity_for_all_does_not_swing),
                cmocka_unit_test(simulated_guest_that_misjudges_itself_is_left_in_peace),
                cmocka_unit_test(simulated_noise_stays_within_bounds),
                cmocka_unit_test(settings_that_are_wrong_are_refused_by_name),
                cmocka_unit_test(settings_that_nobody_knows_are_none),
                cmocka_unit_test(settings_that_contradict_each_other_are_refused),
                cmocka_unit_test(settings_of_the_environment_are_taken_or_refused),
                cmocka_unit_test(settings_are_taken),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
