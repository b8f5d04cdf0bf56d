/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "spin.h"

#define USEC_PER_SEC UINT64_C(1000000)
#define NSEC_PER_USEC UINT64_C(1000)
#define NSEC_PER_SEC UINT64_C(1000000000)

/* Between two looks at the clock. */
#define SPINS_PER_CLOCK 16
/* One look in vain in so many is a long one. */
#define SPIN_RETRY 32

static inline void cpu_relax(void) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield" ::: "memory");
#endif
}

int futex_wait(const uint32_t *word, uint32_t expected, uint64_t timeout_usec, bool shared) {
        struct timespec timeout = {
                .tv_sec = (time_t) (timeout_usec / USEC_PER_SEC),
                .tv_nsec = (long) (timeout_usec % USEC_PER_SEC * NSEC_PER_USEC),
        };

        if (syscall(SYS_futex, word, FUTEX_WAIT | (shared ? 0 : FUTEX_PRIVATE_FLAG), expected,
                    timeout_usec == UINT64_MAX ? NULL : &timeout, NULL, 0) < 0)
                return -errno;
        return 0;
}

void futex_wake(const uint32_t *word, int n, bool shared) {
        (void) syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), n, NULL, NULL, 0);
}

static uint64_t now_nsec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

void spin_init(Spin *spin, uint64_t maximum_nsec) {
        cpu_set_t set;

        *spin = (Spin) {};
        if (sched_getaffinity(0, sizeof(set), &set) >= 0 && CPU_COUNT(&set) < 2)
                return;
        spin->maximum_nsec = maximum_nsec;
        spin->minimum_nsec = maximum_nsec / 64;
        spin->limit_nsec = maximum_nsec;
}

bool spin_until(Spin *spin, bool (*condition)(void *userdata), void *userdata) {
        uint64_t begin, now, limit, grown;

        if (condition(userdata))
                return true;
        if (spin->limit_nsec == 0)
                return false;

        /* Two sides that both gave up looking would never find out that it pays off again: now and then one tries. */
        limit = ++spin->misses % SPIN_RETRY == 0 ? spin->maximum_nsec : spin->limit_nsec;
        begin = now = now_nsec();
        do
                for (unsigned i = 0; i < SPINS_PER_CLOCK; i++) {
                        cpu_relax();
                        if (condition(userdata)) {
                                spin->misses = 0;
                                grown = spin->limit_nsec + spin->limit_nsec / 4;
                                if (grown < (now - begin) * 2)
                                        grown = (now - begin) * 2;
                                spin->limit_nsec = grown < spin->maximum_nsec ? grown : spin->maximum_nsec;
                                return true;
                        }
                }
        while ((now = now_nsec()) - begin < limit);

        spin->limit_nsec = spin->limit_nsec / 2 > spin->minimum_nsec ? spin->limit_nsec / 2 : spin->minimum_nsec;
        return false;
}
