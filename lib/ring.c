/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"

/* A round trip between two processors takes one or two microseconds; two sleeps and wake-ups take more than this. */
#define RING_SPIN_NSEC 30000
/* Then a futex is what wakes fastest; a guest that is idle for longer has time for a pipe. */
#define RING_NAP_USEC 2000

/* In a message's word: size below, kind above. */
#define KIND_SHIFT 24

/* How somebody sleeps, and what for. */
enum { SLEEPS_IN_FUTEX = 1, SLEEPS_IN_PIPE = 2, FOR_BYTES = 4, FOR_ROOM = 8 };

int ring_memory_map(int fd, unsigned n, RingMemory **ret) {
        struct stat st;
        void *p;
        int seals;

        seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
                return -EPERM;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (n == 0 || st.st_size < 0 || (uint64_t) st.st_size < ring_memory_size(n))
                return -ERANGE;
        p = mmap(NULL, ring_memory_size(n), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        *ret = p;
        return 0;
}

void ring_memory_unmap(RingMemory *memory, unsigned n) {
        if (memory)
                (void) munmap(memory, ring_memory_size(n));
}

void ring_init(Ring *ring, RingMemory *memory, RingSide side, int read_fd, int write_fd, const _Atomic bool *stop) {
        *ring = (Ring) { .memory = memory, .side = side, .read_fd = read_fd, .write_fd = write_fd, .stop = stop, .processor = UINT32_MAX };
        spin_init(&ring->spin, RING_SPIN_NSEC);
}

/* --- counts --- */

static inline RingSide other(const Ring *r) {
        return r->side == RING_PLUGIN ? RING_MACHINE : RING_PLUGIN;
}

static bool is_stopped(const Ring *r) {
        return r->stop && atomic_load_explicit(r->stop, memory_order_relaxed);
}

/* A count is stored with release, after the bytes that it stands for were written, or read; and loaded with acquire, before the others do anything with
 * those. So who sees that a byte is there sees the byte, and who sees that there is room overwrites nothing that is still to be read. */

/* How many bytes wait to be read. */
static int count_bytes(const Ring *r, uint32_t *ret) {
        uint32_t n = __atomic_load_n(&r->memory->of[other(r)].written.value, __ATOMIC_ACQUIRE) - r->read;

        if (n > RING_SIZE)
                return -EBADMSG;
        *ret = n;
        return 0;
}

/* How many bytes may be written. */
static int count_room(const Ring *r, uint32_t *ret) {
        uint32_t n = r->written - __atomic_load_n(&r->memory->of[r->side].read.value, __ATOMIC_ACQUIRE);

        if (n > RING_SIZE)
                return -EBADMSG;
        *ret = RING_SIZE - n;
        return 0;
}

/* --- sleeping and waking --- */

static int write_byte(int fd) {
        ssize_t n;

        do
                n = write(fd, "", 1);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
}

/* After a count of this side's was stored: whoever sleeps for that is woken. Here it is: store the count, fence, look whether somebody sleeps; and where
 * somebody is going to sleep: say so, fence, look at the count. Of two fences one is first, so one of both sees what the other has stored: nobody
 * sleeps for what is there already. Release and acquire would not do, as they let a load go ahead of an earlier store.
 *
 * Who is asleep is woken once: the exchange is won by one. The bell is read before one says that he sleeps, and rung after that was seen, so the
 * kernel finds it changed, or the sleeper. Looking costs nothing while nobody sleeps: all that is in that line stays as it is, and so in both caches. */
static int wake(Ring *r, unsigned what) {
        uint32_t *sleeping = &r->memory->sleepers[other(r)].sleeping, *bell = &r->memory->sleepers[other(r)].bell, seen;

        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        seen = __atomic_load_n(sleeping, __ATOMIC_RELAXED);
        if (!(seen & what) || !__atomic_compare_exchange_n(sleeping, &seen, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
                return 0;
        if (seen & SLEEPS_IN_PIPE)
                return write_byte(r->write_fd);
        (void) __atomic_fetch_add(bell, 1, __ATOMIC_SEQ_CST);
        futex_wake(bell, 1, true);
        return 0;
}

typedef struct Wait {
        const Ring *ring;
        unsigned what;
} Wait;

static bool is_over(void *userdata) {
        const Wait *w = userdata;
        uint32_t n = 0;
        int r;

        r = w->what == FOR_BYTES ? count_bytes(w->ring, &n) : count_room(w->ring, &n);
        return r < 0 || n > 0 || is_stopped(w->ring);
}

static void nap(Ring *r, Wait *w) {
        uint32_t *sleeping = &r->memory->sleepers[r->side].sleeping, *bell = &r->memory->sleepers[r->side].bell;
        uint32_t rung = __atomic_load_n(bell, __ATOMIC_ACQUIRE);

        __atomic_store_n(sleeping, SLEEPS_IN_FUTEX | w->what, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (!is_over(w))
                (void) futex_wait(bell, rung, RING_NAP_USEC, true);
        __atomic_store_n(sleeping, 0, __ATOMIC_SEQ_CST);
}

static int read_bytes(int fd) {
        uint8_t sink[64];
        ssize_t n;

        n = read(fd, sink, sizeof(sink));
        return n > 0 || (n < 0 && errno == EINTR) ? 0 : n == 0 ? -EPIPE : -errno;
}

/* Until the other side writes into the pipe, or closes it. */
static int sleep_in_pipe(Ring *r, Wait *w) {
        uint32_t *sleeping = &r->memory->sleepers[r->side].sleeping;
        int k = 0;

        while (!is_over(w) && k >= 0) {
                __atomic_store_n(sleeping, SLEEPS_IN_PIPE | w->what, __ATOMIC_SEQ_CST);
                __atomic_thread_fence(__ATOMIC_SEQ_CST);
                if (!is_over(w))
                        k = read_bytes(r->read_fd);
                /* A byte that comes after all wakes the next sleep too soon, and that looks again. */
                __atomic_store_n(sleeping, 0, __ATOMIC_SEQ_CST);
        }
        return k;
}

/* Says on which processor this is; whether the other side was last seen on the same one. Where both share one, looking only keeps
 * the other from running. */
static bool share_processor(Ring *r) {
        uint32_t here = (uint32_t) sched_getcpu(); /* no system call where there is rseq(2) or a vDSO */

        /* A hint: relaxed, and stored only where it is news, since the other side looks at that line with each message. */
        if (here != r->processor)
                __atomic_store_n(&r->memory->sleepers[r->side].processor, here, __ATOMIC_RELAXED);
        r->processor = here;
        return __atomic_load_n(&r->memory->sleepers[other(r)].processor, __ATOMIC_RELAXED) == here;
}

static int wait_for(Ring *r, unsigned what) {
        Wait w = { .ring = r, .what = what };
        bool shared = share_processor(r);
        int k;

        if (!shared && spin_until(&r->spin, is_over, &w))
                return is_stopped(r) ? -ECANCELED : 0;
        /* A futex wakes fastest from another processor; on the same one what counts is that its timer costs more than a pipe. */
        if (!shared)
                nap(r, &w);
        k = sleep_in_pipe(r, &w);
        if (k < 0)
                return k;
        (void) share_processor(r);
        return is_stopped(r) ? -ECANCELED : 0;
}

/* --- bytes --- */

static int publish(Ring *r) {
        __atomic_store_n(&r->memory->of[r->side].written.value, r->written, __ATOMIC_RELEASE);
        return wake(r, FOR_BYTES);
}

static int release(Ring *r) {
        __atomic_store_n(&r->memory->of[other(r)].read.value, r->read, __ATOMIC_RELEASE);
        return wake(r, FOR_ROOM);
}

/* At most as many as are behind each other in the buffer. */
static uint32_t piece(uint32_t position, size_t wanted, uint32_t available) {
        uint32_t n = RING_SIZE - position % RING_SIZE;

        if (n > available)
                n = available;
        return wanted < n ? (uint32_t) wanted : n;
}

static int put(Ring *r, const uint8_t *data, size_t size) {
        while (size > 0) {
                uint32_t n;
                int k = 0;

                if (r->room == 0)
                        k = count_room(r, &r->room);
                if (k >= 0 && r->room == 0) {
                        k = publish(r);
                        if (k >= 0)
                                k = wait_for(r, FOR_ROOM);
                }
                if (k < 0)
                        return k;
                n = piece(r->written, size, r->room);
                memcpy(r->memory->bytes[r->side] + r->written % RING_SIZE, data, n);
                r->written += n;
                r->room -= n;
                data += n;
                size -= n;
        }
        return 0;
}

static int get(Ring *r, uint8_t *data, size_t size) {
        while (size > 0) {
                uint32_t n;
                int k = 0;

                if (r->available == 0)
                        k = count_bytes(r, &r->available);
                if (k >= 0 && r->available == 0) {
                        k = release(r);
                        if (k >= 0)
                                k = wait_for(r, FOR_BYTES);
                }
                if (k < 0)
                        return k;
                n = piece(r->read, size, r->available);
                memcpy(data, r->memory->bytes[other(r)] + r->read % RING_SIZE, n);
                r->read += n;
                r->available -= n;
                data += n;
                size -= n;
        }
        return 0;
}

/* --- messages --- */

int ring_send(Ring *r, uint8_t kind, const void *data, size_t size) {
        uint32_t word = (uint32_t) size | (uint32_t) kind << KIND_SHIFT;
        int k;

        if (size >> KIND_SHIFT != 0)
                return -EMSGSIZE;
        if (is_stopped(r))
                return -ECANCELED;
        k = put(r, (const uint8_t *) &word, sizeof(word));
        if (k >= 0)
                k = put(r, data, size);
        return k < 0 ? k : publish(r);
}

int ring_receive(Ring *r, uint8_t *ret_kind, void *buffer, size_t room, size_t *ret_size) {
        uint32_t word = 0, size;
        int k;

        if (is_stopped(r))
                return -ECANCELED;
        k = get(r, (uint8_t *) &word, sizeof(word));
        size = word & ((UINT32_C(1) << KIND_SHIFT) - 1);
        if (k >= 0)
                k = size > room ? -EBADMSG : get(r, buffer, size);
        if (k >= 0)
                k = release(r);
        if (k < 0)
                return k;
        *ret_kind = (uint8_t) (word >> KIND_SHIFT);
        *ret_size = size;
        return 0;
}
