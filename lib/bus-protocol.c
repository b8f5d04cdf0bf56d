/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "bus-protocol.h"

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

size_t bus_memory_size(unsigned n_slots) {
        return ALIGN_UP(sizeof(BusMemory) + (size_t) n_slots * sizeof(BusSlot), (size_t) 4096);
}

int bus_memory_create(unsigned n_slots) {
        if (n_slots == 0 || n_slots > BUS_SLOTS_MAX)
                return -EINVAL;
        return memfd_create_sealed("vmm-bus", bus_memory_size(n_slots), 0);
}

int bus_memory_map(int fd, unsigned n_slots, BusMemory **ret) {
        struct stat st;
        void *p;
        int seals;

        if (n_slots == 0 || n_slots > BUS_SLOTS_MAX)
                return -EINVAL;

        seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
                return -EPERM;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size < 0 || (uint64_t) st.st_size < bus_memory_size(n_slots))
                return -ERANGE;

        /* Populated: the first access of a vCPU should not pay for the page. */
        p = mmap(NULL, bus_memory_size(n_slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        *ret = p;
        return 0;
}

BusMemory *bus_memory_unmap(BusMemory *memory, unsigned n_slots) {
        if (memory)
                (void) munmap(memory, bus_memory_size(n_slots));
        return NULL;
}

int bus_hello_check(const BusHello *hello, size_t size, size_t n_fds, char **ret_message) {
        if (size < sizeof(*hello) || hello->magic != BUS_MAGIC)
                return set_message(ret_message, -EBADMSG, "not a greeting of the bus protocol");
        if (hello->version != BUS_VERSION)
                return set_message(ret_message, -EPROTONOSUPPORT, "version %u of the bus protocol is not known here, %u is",
                        hello->version, BUS_VERSION);
        if (hello->size != sizeof(*hello) || size != sizeof(*hello))
                return set_message(ret_message, -EBADMSG, "greeting of %zu bytes, expected %zu", size, sizeof(*hello));
        if (hello->n_slots == 0 || hello->n_slots > BUS_SLOTS_MAX)
                return set_message(ret_message, -E2BIG, "%u slots, expected 1 to %u", hello->n_slots, BUS_SLOTS_MAX);
        if (hello->n_irqs > BUS_IRQS_MAX)
                return set_message(ret_message, -E2BIG, "%u interrupt lines, expected at most %u", hello->n_irqs, BUS_IRQS_MAX);
        if (n_fds != 1 + (size_t) hello->n_irqs)
                return set_message(ret_message, -EBADMSG, "%zu file descriptors, expected %u", n_fds, 1 + hello->n_irqs);
        if (hello->space_kind >= _BUS_SPACE_MAX)
                return set_message(ret_message, -EBADMSG, "unknown kind %u of register space", hello->space_kind);
        if (hello->space_length == 0 || hello->space_length > UINT64_MAX - hello->space_base)
                return set_message(ret_message, -EBADMSG, "the register space is empty or wraps around");
        return 0;
}

int bus_reply_check(const BusReply *reply, size_t size, char **ret_message) {
        if (size != sizeof(*reply) || reply->magic != BUS_MAGIC || reply->size != sizeof(*reply))
                return set_message(ret_message, -EBADMSG, "the answer is not one of the bus protocol");
        if (memchr(reply->text, 0, sizeof(reply->text)) == NULL)
                return set_message(ret_message, -EBADMSG, "the answer's text does not end");
        if (reply->error != 0) {
                /* The number is somebody else's: not every value can be an errno. */
                int error = reply->error < 4096 ? -(int) reply->error : -EBADMSG;
                _cleanup_free_ char *text = strdup(reply->text);

                if (!text)
                        return -ENOMEM;
                for (char *p = text; *p; p++)
                        if ((unsigned char) *p < ' ' || *p == 0x7f)
                                *p = '?';
                return set_message(ret_message, error, "refused: %s", text[0] ? text : "no reason given");
        }
        if (reply->version != BUS_VERSION)
                return set_message(ret_message, -EPROTONOSUPPORT, "the answer has version %u", reply->version);
        return 0;
}

void bus_reply_init(BusReply *reply, int error, uint32_t n_registers, const char *text) {
        *reply = (BusReply) {
                .magic = BUS_MAGIC,
                .version = BUS_VERSION,
                .size = sizeof(*reply),
                .error = (uint32_t) abs(error),
                .n_registers = n_registers,
        };
        if (text)
                memcpy(reply->text, text, MIN(strlen(text), sizeof(reply->text) - 1));
}

bool bus_access_size_is_valid(uint64_t size) {
        return size == 1 || size == 2 || size == 4 || size == 8;
}

uint64_t bus_access_mask(uint64_t size) {
        return size >= 8 ? UINT64_MAX : (UINT64_C(1) << (size * 8)) - 1;
}

int bus_futex_wait(const uint32_t *word, uint32_t expected, uint64_t timeout_usec, bool shared) {
        struct timespec timeout = {
                .tv_sec = (time_t) (timeout_usec / USEC_PER_SEC),
                .tv_nsec = (long) (timeout_usec % USEC_PER_SEC * NSEC_PER_USEC),
        };

        if (syscall(SYS_futex, word, FUTEX_WAIT | (shared ? 0 : FUTEX_PRIVATE_FLAG), expected,
                    timeout_usec == UINT64_MAX ? NULL : &timeout, NULL, 0) < 0)
                return -errno;
        return 0;
}

void bus_futex_wake(const uint32_t *word, int n, bool shared) {
        (void) syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), n, NULL, NULL, 0);
}

static uint64_t now_nsec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

void bus_spin_init(BusSpin *spin, uint64_t maximum_nsec) {
        cpu_set_t set;

        *spin = (BusSpin) {};
        if (sched_getaffinity(0, sizeof(set), &set) >= 0 && CPU_COUNT(&set) < 2)
                return;
        spin->maximum_nsec = maximum_nsec;
        spin->minimum_nsec = maximum_nsec / 64;
        spin->limit_nsec = maximum_nsec;
}

bool bus_spin_until(BusSpin *spin, bool (*condition)(void *userdata), void *userdata) {
        uint64_t begin, now, limit;

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
                                spin->limit_nsec = MIN(MAX(spin->limit_nsec + spin->limit_nsec / 4, (now - begin) * 2), spin->maximum_nsec);
                                return true;
                        }
                }
        while ((now = now_nsec()) - begin < limit);

        spin->limit_nsec = MAX(spin->limit_nsec / 2, spin->minimum_nsec);
        return false;
}
