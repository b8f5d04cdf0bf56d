/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "bus-server.h"
#include "log.h"
#include "passed.h"

/* A guest that uses its registers makes accesses in bursts, a few microseconds apart. */
#define SPIN_MAX_NSEC 50000
/* How long to wait for the thread before it is kicked once more. */
#define STOP_RETRY_NSEC (10L * 1000 * 1000)

typedef enum Wanted { WANTED_PARK, WANTED_SERVE, WANTED_EXIT } Wanted;

#define KEPT_VERSION 1
#define KEPT_PREFIX "session-" /* as session-keep.h has it */
#define KEPT_NAME KEPT_PREFIX "state"
#define KEPT_CONNECTION KEPT_PREFIX "connection"
#define KEPT_MEMORY KEPT_PREFIX "memory-0"
#define KEPT_IRQ KEPT_PREFIX "call-%u"
#define KEPT_STATE_MAX 1024

/* The device's state and the access that led to it, which is answered and not done again. */
typedef struct KeptRecord {
        uint64_t answer;
        uint32_t slot, sequence, has_access;
        uint32_t size;
        uint8_t bytes[KEPT_STATE_MAX];
} KeptRecord;

/* In the unit's descriptor store; nobody else has it. */
typedef struct KeptBus {
        uint32_t version;
        uint32_t which; /* record that holds; the other one is being written */
        uint32_t busy;  /* the client has not been greeted yet */
        uint32_t padding;
        BusHello hello;
        KeptRecord records[2];
} KeptBus;

/* In BusMemory.state: written by us, but the client can change it at any time. */
typedef struct SavedState {
        uint32_t size; /* 0 while it is being written, and in a fresh memory */
        uint32_t reserved;
        uint8_t bytes[BUS_STATE_SIZE - 8];
} SavedState;
_Static_assert(sizeof(SavedState) == BUS_STATE_SIZE, "the state's page");

struct BusServer {
        sd_event *event; /* borrowed */
        const BusDevice *device;
        void *userdata;
        void (*on_connection)(void *userdata, bool connected);
        void *on_connection_userdata;

        int listen_fd, newcomer_fd, fd; /* the newcomer has not greeted yet, the other one is served */
        sd_event_source *listen_source, *newcomer_source, *source;

        pthread_t thread;
        bool thread_made;
        pthread_mutex_t lock; /* guards the changes of `wanted`, `begun` and `serving` */
        pthread_cond_t changed;
        int wanted; /* Wanted; read by the thread without the lock, too */
        bool begun, serving;

        /* The session: changed only while the thread is parked. */
        BusMemory *memory;
        unsigned n_slots;
        uint32_t seen; /* the doorbell's value up to which everything was served */
        Spin spin;
        LogRateLimit nonsense; /* the thread's */

        PassedFds *passed; /* NULL where nothing is kept */
        KeptBus *kept;
        pthread_mutex_t change_lock; /* the device's state changes, and is saved */

        pthread_mutex_t irq_lock;
        int irq_fds[BUS_IRQS_MAX];
        unsigned n_irqs;
};

static Wanted wanted(BusServer *s) {
        return (Wanted) __atomic_load_n(&s->wanted, __ATOMIC_ACQUIRE);
}

/* The last access that was done; `change` has none. */
typedef struct Done {
        uint32_t slot, sequence;
        uint64_t answer;
} Done;

/* With the change's lock held. */
static void save(BusServer *s, const Done *done) {
        SavedState *state = (SavedState *) s->memory->state;
        size_t size;

        if (s->device->save) {
                __atomic_store_n(&state->size, 0, __ATOMIC_RELEASE);
                size = s->device->save(s->userdata, state->bytes, sizeof(state->bytes));
                __atomic_store_n(&state->size, (uint32_t) size, __ATOMIC_RELEASE);
        }
        if (s->kept) {
                KeptRecord *before = &s->kept->records[s->kept->which & 1], *record = &s->kept->records[~s->kept->which & 1];

                if (done) {
                        record->slot = done->slot;
                        record->sequence = done->sequence;
                        record->answer = done->answer;
                        record->has_access = true;
                } else {
                        record->slot = before->slot;
                        record->sequence = before->sequence;
                        record->answer = before->answer;
                        record->has_access = before->has_access;
                }
                record->size = s->device->save ? (uint32_t) s->device->save(s->userdata, record->bytes, sizeof(record->bytes)) : 0;
                __atomic_store_n(&s->kept->which, ~s->kept->which & 1, __ATOMIC_RELEASE);
        }
}

/* What a predecessor had done when it died. */
static bool was_done(BusServer *s, unsigned slot, uint32_t sequence, uint64_t *ret_answer) {
        const KeptRecord *record = s->kept ? &s->kept->records[s->kept->which & 1] : NULL;

        if (!record || !record->has_access || record->slot != slot || record->sequence != sequence)
                return false;
        *ret_answer = record->answer;
        return true;
}

static uint64_t refuse(BusServer *s, const BusSlot *request) {
        if (log_ratelimit(&s->nonsense, NULL))
                log_warning("The client asks for operation %u of %u bytes at offset %llu, which makes no sense here.",
                        request->operation, request->size, (unsigned long long) request->offset);
        return UINT64_MAX;
}

static uint64_t execute(BusServer *s, const BusSlot *request, uint32_t slot, uint32_t sequence) {
        uint64_t answer = 0;

        (void) pthread_mutex_lock(&s->change_lock);
        if (request->operation == BUS_OPERATION_RESET)
                s->device->reset(s->userdata);
        else if (request->operation > BUS_OPERATION_WRITE || !bus_access_size_is_valid(request->size))
                answer = refuse(s, request);
        else if (!range_within(request->offset, request->size, s->device->n_registers))
                /* The space may be larger than our registers: nobody answers there. */
                answer = bus_access_mask(request->size);
        else
                answer = s->device->access(s->userdata, request->offset, request->size, request->operation == BUS_OPERATION_WRITE,
                                 request->value & bus_access_mask(request->size)) &
                        bus_access_mask(request->size);
        save(s, &(const Done) { .slot = slot, .sequence = sequence, .answer = answer });
        (void) pthread_mutex_unlock(&s->change_lock);
        return answer;
}

void bus_server_begin_change(BusServer *s) {
        (void) pthread_mutex_lock(&s->change_lock);
}

void bus_server_end_change(BusServer *s) {
        if (s->memory)
                save(s, NULL);
        (void) pthread_mutex_unlock(&s->change_lock);
}

/* Answers the slot where it holds a request, once. */
static void serve_slot(BusServer *s, unsigned index) {
        BusSlot *slot = &s->memory->slots[index];
        uint32_t word = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE), done;
        BusSlot request;
        uint64_t answer;

        if (BUS_SLOT_STATE(word) != BUS_SLOT_REQUEST && BUS_SLOT_STATE(word) != BUS_SLOT_SLEEPING)
                return;

        /* The client can write here at any time: what is checked is what is used. */
        request = (BusSlot) {
                .operation = __atomic_load_n(&slot->operation, __ATOMIC_RELAXED),
                .size = __atomic_load_n(&slot->size, __ATOMIC_RELAXED),
                .offset = __atomic_load_n(&slot->offset, __ATOMIC_RELAXED),
                .value = __atomic_load_n(&slot->value, __ATOMIC_RELAXED),
        };
        if (!was_done(s, index, BUS_SLOT_SEQUENCE(word), &answer))
                answer = execute(s, &request, index, BUS_SLOT_SEQUENCE(word));

        __atomic_store_n(&slot->answer, answer, __ATOMIC_RELAXED);
        done = BUS_SLOT_WORD(BUS_SLOT_SEQUENCE(word), BUS_SLOT_DONE);
        /* Twice at most: the client goes from REQUEST to SLEEPING once. Any other change abandons the request. */
        for (unsigned i = 0; i < 2; i++) {
                uint32_t expected = word;

                if (__atomic_compare_exchange_n(&slot->state, &expected, done, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
                        if (BUS_SLOT_STATE(word) == BUS_SLOT_SLEEPING)
                                futex_wake(&slot->state, 1, true);
                        return;
                }
                if (expected != BUS_SLOT_WORD(BUS_SLOT_SEQUENCE(word), BUS_SLOT_SLEEPING) &&
                    expected != BUS_SLOT_WORD(BUS_SLOT_SEQUENCE(word), BUS_SLOT_REQUEST))
                        return;
                word = expected;
        }
}

static void serve_pending(BusServer *s) {
        for (unsigned w = 0; w * 64 < s->n_slots; w++) {
                uint64_t bits;

                if (__atomic_load_n(&s->memory->pending[w], __ATOMIC_RELAXED) == 0)
                        continue;
                bits = __atomic_exchange_n(&s->memory->pending[w], 0, __ATOMIC_ACQUIRE);
                for (; bits != 0; bits &= bits - 1) {
                        unsigned index = w * 64 + (unsigned) __builtin_ctzll(bits);

                        if (index < s->n_slots)
                                serve_slot(s, index);
                }
        }
}

static bool something_to_do(void *userdata) {
        BusServer *s = userdata;

        return __atomic_load_n(&s->memory->doorbell, __ATOMIC_ACQUIRE) != s->seen || wanted(s) != WANTED_SERVE;
}

static void serve_session(BusServer *s) {
        /* What the one before us left unanswered has no bit in `pending` any more. */
        s->seen = __atomic_load_n(&s->memory->doorbell, __ATOMIC_ACQUIRE);
        for (unsigned i = 0; i < s->n_slots; i++) {
                serve_slot(s, i);
                futex_wake(&s->memory->slots[i].state, 1, true); /* where it died between an answer and this */
        }

        while (wanted(s) == WANTED_SERVE) {
                uint32_t doorbell;

                if (!spin_until(&s->spin, something_to_do, s)) {
                        __atomic_store_n(&s->memory->sleeping, 1, __ATOMIC_SEQ_CST);
                        if (__atomic_load_n(&s->memory->doorbell, __ATOMIC_SEQ_CST) == s->seen && wanted(s) == WANTED_SERVE)
                                (void) futex_wait(&s->memory->doorbell, s->seen, UINT64_MAX, true);
                        __atomic_store_n(&s->memory->sleeping, 0, __ATOMIC_RELAXED);
                }

                doorbell = __atomic_load_n(&s->memory->doorbell, __ATOMIC_ACQUIRE);
                serve_pending(s);
                s->seen = doorbell;
        }
}

static void *bus_thread(void *userdata) {
        BusServer *s = userdata;

        (void) pthread_mutex_lock(&s->lock);
        for (;;) {
                s->serving = false;
                s->begun = true;
                (void) pthread_cond_broadcast(&s->changed);
                while (s->wanted == WANTED_PARK)
                        (void) pthread_cond_wait(&s->changed, &s->lock);
                if (s->wanted == WANTED_EXIT)
                        break;

                s->serving = true;
                (void) pthread_mutex_unlock(&s->lock);
                serve_session(s);
                (void) pthread_mutex_lock(&s->lock);
        }
        (void) pthread_mutex_unlock(&s->lock);
        return NULL;
}

/* Tells the thread what to do, and waits until it has left the session. */
static void order(BusServer *s, Wanted what) {
        (void) pthread_mutex_lock(&s->lock);
        __atomic_store_n(&s->wanted, what, __ATOMIC_RELEASE);
        (void) pthread_cond_broadcast(&s->changed);
        while (what != WANTED_SERVE && s->serving) {
                struct timespec until;

                /* Again and again: the client could put the doorbell back at the one moment that matters. */
                (void) __atomic_fetch_add(&s->memory->doorbell, 1, __ATOMIC_SEQ_CST);
                futex_wake(&s->memory->doorbell, INT32_MAX, true);

                (void) clock_gettime(CLOCK_REALTIME, &until);
                until.tv_nsec += STOP_RETRY_NSEC;
                if (until.tv_nsec >= (long) NSEC_PER_SEC) {
                        until.tv_nsec -= (long) NSEC_PER_SEC;
                        until.tv_sec++;
                }
                (void) pthread_cond_timedwait(&s->changed, &s->lock, &until);
        }
        (void) pthread_mutex_unlock(&s->lock);
}

static int make_thread(BusServer *s) {
        sigset_t all, old;
        int r;

        /* Signals are the event loop's. */
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        r = pthread_create(&s->thread, NULL, bus_thread, s);
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r != 0)
                return -r;
        s->thread_made = true;

        /* What the C library does when a thread begins (rseq, set_robust_list) is over before a sandbox can be in its way. */
        (void) pthread_mutex_lock(&s->lock);
        while (!s->begun)
                (void) pthread_cond_wait(&s->changed, &s->lock);
        (void) pthread_mutex_unlock(&s->lock);
        return 0;
}

int bus_server_new(sd_event *event, const BusDevice *device, void *userdata, BusServer **ret) {
        _cleanup_(bus_server_freep) BusServer *s = NULL;
        int r;

        assert(device->n_irqs <= BUS_IRQS_MAX);
        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->event = event;
        s->device = device;
        s->userdata = userdata;
        s->listen_fd = s->newcomer_fd = s->fd = -EBADF;
        s->wanted = WANTED_PARK;
        s->nonsense = (LogRateLimit) { .interval_usec = 10 * USEC_PER_SEC, .burst = 3 };
        (void) pthread_mutex_init(&s->lock, NULL);
        (void) pthread_mutex_init(&s->irq_lock, NULL);
        (void) pthread_mutex_init(&s->change_lock, NULL);
        (void) pthread_cond_init(&s->changed, NULL);
        spin_init(&s->spin, SPIN_MAX_NSEC);

        r = make_thread(s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

static void drop_irqs(BusServer *s) {
        (void) pthread_mutex_lock(&s->irq_lock);
        for (unsigned i = 0; i < s->n_irqs; i++)
                s->irq_fds[i] = safe_close(s->irq_fds[i]);
        s->n_irqs = 0;
        (void) pthread_mutex_unlock(&s->irq_lock);
}

/* ---- across our death ---- */

static void forget(BusServer *s) {
        int r;

        if (!s->passed)
                return;
        if (s->kept) {
                __atomic_store_n(&s->kept->busy, true, __ATOMIC_SEQ_CST);
                (void) munmap(s->kept, sizeof(KeptBus));
                s->kept = NULL;
        }
        r = passed_fds_forget_prefix(s->passed, KEPT_PREFIX);
        if (r < 0)
                (void) log_warning_errno(r, "Cannot tell the service manager to forget the client: %m");
}

static int keep_fds(BusServer *s, int connection, const int *fds, size_t n_fds) {
        int r;

        r = passed_fds_keep(s->passed, KEPT_CONNECTION, connection);
        if (r >= 0)
                r = passed_fds_keep(s->passed, KEPT_MEMORY, fds[0]);
        for (size_t i = 1; i < n_fds && r >= 0; i++) {
                char name[32];

                (void) snprintf(name, sizeof(name), KEPT_IRQ, (unsigned) (i - 1));
                r = passed_fds_keep(s->passed, name, fds[i]);
        }
        return r;
}

static int map_kept(BusServer *s, int fd) {
        KeptBus *k = mmap(NULL, sizeof(KeptBus), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

        if (k == MAP_FAILED)
                return -errno;
        s->kept = k;
        return 0;
}

/* A client that cannot be kept is served all the same. */
static void keep_client(BusServer *s, const BusHello *hello, int connection, const int *fds, size_t n_fds) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!s->passed)
                return;
        fd = memfd_create_sealed(KEPT_NAME, sizeof(KeptBus), 0);
        r = fd < 0 ? fd : map_kept(s, fd);
        if (r >= 0) {
                s->kept->version = KEPT_VERSION;
                s->kept->busy = true;
                s->kept->hello = *hello;
                r = passed_fds_keep(s->passed, KEPT_NAME, fd);
        }
        if (r >= 0)
                r = keep_fds(s, connection, fds, n_fds);
        if (r < 0) {
                (void) log_warning_errno(r, "Cannot have the service manager keep the client; it would not outlive this process: %m");
                forget(s);
        }
}

static void disconnect(BusServer *s) {
        if (s->fd < 0)
                return;

        order(s, WANTED_PARK);
        s->memory = bus_memory_unmap(s->memory, s->n_slots);
        drop_irqs(s);
        /* The service manager's copy of it lives a little longer than ours. */
        (void) shutdown(s->fd, SHUT_RDWR);
        forget(s);
        s->source = sd_event_source_disable_unref(s->source);
        s->fd = safe_close(s->fd);
        if (s->on_connection)
                s->on_connection(s->on_connection_userdata, false);
}

static void drop_newcomer(BusServer *s) {
        s->newcomer_source = sd_event_source_disable_unref(s->newcomer_source);
        s->newcomer_fd = safe_close(s->newcomer_fd);
}

BusServer *bus_server_free(BusServer *s) {
        if (!s)
                return NULL;

        s->on_connection = NULL;
        drop_newcomer(s);
        disconnect(s);
        s->listen_source = sd_event_source_disable_unref(s->listen_source);
        s->listen_fd = safe_close(s->listen_fd);
        if (s->thread_made) {
                order(s, WANTED_EXIT);
                (void) pthread_join(s->thread, NULL);
        }
        (void) pthread_mutex_destroy(&s->lock);
        (void) pthread_mutex_destroy(&s->irq_lock);
        (void) pthread_mutex_destroy(&s->change_lock);
        (void) pthread_cond_destroy(&s->changed);
        free(s);
        return NULL;
}

static void load(BusServer *s, const void *bytes, size_t size) {
        int r;

        r = s->device->load(s->userdata, bytes, size);
        if (r < 0) {
                log_warning_errno(r, "The saved state is of no use (%m); the device starts afresh.");
                s->device->reset(s->userdata);
        }
}

/* The device starts as the client's memory says it was, or fresh. The thread is parked. */
static void restore(BusServer *s) {
        const SavedState *state = (const SavedState *) s->memory->state;
        uint8_t bytes[sizeof(state->bytes)];
        uint32_t size = __atomic_load_n(&state->size, __ATOMIC_ACQUIRE);

        s->device->reset(s->userdata);
        if (size == 0 || !s->device->load)
                return;
        if (size > sizeof(bytes)) {
                log_warning("The saved state claims to have %u bytes; the device starts afresh.", size);
                return;
        }
        memcpy(bytes, state->bytes, size);
        load(s, bytes, size);
}

/* As our own memory says it was: that is newer than the client's, and to be trusted. */
static void resume(BusServer *s) {
        const KeptRecord *record = &s->kept->records[s->kept->which & 1];

        s->device->reset(s->userdata);
        if (record->size > 0 && record->size <= sizeof(record->bytes) && s->device->load)
                load(s, record->bytes, record->size);
}

/* Checks a greeting, and what came with it: fds[0] is the memory, which is mapped, then the interrupt lines. */
static int check_hello(BusServer *s, const BusHello *hello, size_t size, const int *fds, size_t n_fds, BusMemory **ret, char **ret_message) {
        int r;

        r = bus_hello_check(hello, size, n_fds, ret_message);
        if (r < 0)
                return r;
        if (hello->n_irqs != s->device->n_irqs)
                return set_message(ret_message, -EINVAL, "%u interrupt lines, this device has %u", hello->n_irqs, s->device->n_irqs);
        if (hello->space_length < s->device->n_registers)
                return set_message(ret_message, -EINVAL, "%llu bytes of registers, this device has %llu",
                        (unsigned long long) hello->space_length, (unsigned long long) s->device->n_registers);

        for (size_t i = 1; i < n_fds; i++) {
                /* A full counter, or something that is no eventfd at all, must not stop the bus thread. */
                int flags = fcntl(fds[i], F_GETFL);
                if (flags < 0 || fcntl(fds[i], F_SETFL, flags | O_NONBLOCK) < 0)
                        return set_message(ret_message, -errno, "interrupt line %zu cannot be used", i - 1);
        }

        r = bus_memory_map(fds[0], hello->n_slots, ret);
        if (r == -EPERM)
                return set_message(ret_message, r, "the memory is not a memfd sealed against shrinking");
        if (r < 0)
                return set_message(ret_message, r, "the memory cannot be mapped: %s", strerror(-r));
        return 0;
}

static void send_reply(BusServer *s, int fd, int error, const char *text) {
        BusReply reply;

        bus_reply_init(&reply, error, (uint32_t) s->device->n_registers, text);
        (void) send_with_fds(fd, &reply, sizeof(reply), NULL, 0);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        BusServer *s = userdata;
        uint8_t byte;
        ssize_t n;

        n = recv(fd, &byte, sizeof(byte), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n > 0)
                log_warning("The client wrote to a socket that should be silent; disconnecting it.");
        disconnect(s);
        return 0;
}

/* Whether somebody is connected who still lives: his end of file may be waiting behind the event of a newcomer. */
static bool is_taken(BusServer *s) {
        uint8_t byte;

        return s->fd >= 0 && recv(s->fd, &byte, sizeof(byte), MSG_DONTWAIT | MSG_PEEK) != 0;
}

/* The newcomer is the client now. Takes the memory and the interrupt lines. */
static int begin_session(BusServer *s, const BusHello *hello, BusMemory *memory, int *fds, size_t n_fds) {
        int r;

        bool resumes = s->kept && s->fd < 0;

        disconnect(s);
        s->newcomer_source = sd_event_source_disable_unref(s->newcomer_source); /* one source a descriptor */
        r = sd_event_add_io(s->event, &s->source, s->newcomer_fd, EPOLLIN, on_io, s);
        if (r < 0)
                return r;
        s->fd = TAKE_FD(s->newcomer_fd);
        if (!resumes)
                keep_client(s, hello, s->fd, fds, n_fds);
        s->memory = memory;
        s->n_slots = hello->n_slots;

        (void) pthread_mutex_lock(&s->irq_lock);
        for (size_t i = 1; i < n_fds; i++)
                s->irq_fds[s->n_irqs++] = TAKE_FD(fds[i]);
        (void) pthread_mutex_unlock(&s->irq_lock);

        if (resumes) {
                resume(s);
                save(s, NULL); /* where it died over that: if the client has to connect again, it is the client's copy that counts */
        } else {
                restore(s);
                send_reply(s, s->fd, 0, NULL);
                if (s->kept)
                        save(s, NULL);
        }
        if (s->kept)
                __atomic_store_n(&s->kept->busy, false, __ATOMIC_SEQ_CST);
        order(s, WANTED_SERVE);
        if (s->on_connection)
                s->on_connection(s->on_connection_userdata, true);
        return 0;
}

static int greeted(BusServer *s, const BusHello *hello, size_t size, int *fds, size_t n_fds, char **ret_message) {
        BusMemory *memory = NULL;
        int r;

        if (is_taken(s))
                return set_message(ret_message, -EBUSY, "somebody else is connected");
        r = check_hello(s, hello, size, fds, n_fds, &memory, ret_message);
        if (r < 0)
                return r;
        r = begin_session(s, hello, memory, fds, n_fds);
        if (r < 0)
                (void) bus_memory_unmap(memory, hello->n_slots);
        return r;
}

static int on_newcomer(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        _cleanup_free_ char *message = NULL;
        BusServer *s = userdata;
        int fds[1 + BUS_IRQS_MAX];
        size_t n_fds = ELEMENTSOF(fds);
        BusHello hello;
        ssize_t n;
        int r;

        /* One greeting is one sendmsg() of 40 bytes, which a stream socket delivers in one piece; whoever sends less is refused. */
        n = recv_with_fds(fd, &hello, sizeof(hello), fds, &n_fds, MSG_DONTWAIT);
        if (n == -EAGAIN)
                return 0;
        if (n <= 0) {
                drop_newcomer(s);
                return 0;
        }

        r = greeted(s, &hello, (size_t) n, fds, n_fds, &message);
        for (size_t i = 0; i < n_fds; i++)
                fds[i] = safe_close(fds[i]);
        if (r < 0) {
                (void) log_warning_errno(r, "Refused a connection to the bus: %s.", message ?: strerror(-r));
                send_reply(s, fd, r, message);
                drop_newcomer(s);
        }
        return 0;
}

/* -ENOENT where there is none, -EINPROGRESS where it was not greeted yet. */
static int open_kept(BusServer *s) {
        _cleanup_close_ int fd = passed_fds_take(s->passed, KEPT_NAME);
        struct stat st;
        int r;

        if (fd < 0)
                return fd;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size != sizeof(KeptBus))
                return -ESTALE;
        r = map_kept(s, fd);
        if (r < 0)
                return r;
        return s->kept->version != KEPT_VERSION ? -ESTALE : s->kept->busy ? -EINPROGRESS : 0;
}

static int take_up_client(BusServer *s, int *fds, size_t n_fds) {
        const BusHello hello = s->kept->hello;
        _cleanup_free_ char *message = NULL;
        BusMemory *memory = NULL;
        int r;

        fds[0] = passed_fds_take(s->passed, KEPT_MEMORY);
        for (size_t i = 1; i < n_fds; i++) {
                char name[32];

                (void) snprintf(name, sizeof(name), KEPT_IRQ, (unsigned) (i - 1));
                fds[i] = passed_fds_take(s->passed, name);
        }
        for (size_t i = 0; i < n_fds; i++)
                if (fds[i] < 0)
                        return fds[i];
        r = check_hello(s, &hello, sizeof(hello), fds, n_fds, &memory, &message);
        if (r < 0)
                return r;
        r = begin_session(s, &hello, memory, fds, n_fds);
        if (r < 0)
                (void) bus_memory_unmap(memory, hello.n_slots);
        return r;
}

int bus_server_keep(BusServer *s, PassedFds *passed) {
        int fds[1 + BUS_IRQS_MAX], r;
        size_t n_fds = 1 + s->device->n_irqs;

        if (!passed->managed || !getenv("NOTIFY_SOCKET"))
                return 0;
        s->passed = passed;
        for (size_t i = 0; i < n_fds; i++)
                fds[i] = -EBADF;
        r = open_kept(s);
        s->newcomer_fd = passed_fds_take(passed, KEPT_CONNECTION);
        if (r >= 0 && s->newcomer_fd < 0)
                r = s->newcomer_fd;
        if (r >= 0)
                r = take_up_client(s, fds, n_fds);
        for (size_t i = 0; i < n_fds; i++)
                (void) safe_close(fds[i]);
        if (r >= 0) {
                passed_fds_close_prefix(passed, KEPT_PREFIX);
                log_info("Going on with the client of the last helper.");
                return 1;
        }
        if (r == -EINPROGRESS)
                log_info("The last helper died while its client was connecting, which does so again.");
        else if (r != -ENOENT)
                (void) log_warning_errno(r, "What the last helper left of its client does not fit; it connects again: %m");
        if (s->newcomer_fd >= 0)
                (void) shutdown(s->newcomer_fd, SHUT_RDWR);
        s->newcomer_fd = safe_close(s->newcomer_fd);
        forget(s);
        return 0;
}

int bus_server_adopt(BusServer *s, int fd) {
        _cleanup_close_ int owned = fd;
        int r;

        drop_newcomer(s); /* who connects and says nothing keeps nobody out */
        r = sd_event_add_io(s->event, &s->newcomer_source, owned, EPOLLIN, on_newcomer, s);
        if (r < 0)
                return r;
        s->newcomer_fd = TAKE_FD(owned);
        return 0;
}

static int on_listen(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        BusServer *s = userdata;
        int client, r;

        client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (client < 0)
                return 0;
        r = bus_server_adopt(s, client);
        if (r < 0)
                (void) log_warning_errno(r, "Cannot take a connection to the bus: %m");
        return 0;
}

int bus_server_listen(BusServer *s, int fd) {
        _cleanup_close_ int owned = fd;
        int flags, r;

        /* accept4() must not wait for a client that has gone again. */
        flags = fcntl(owned, F_GETFL);
        if (flags < 0 || fcntl(owned, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        r = sd_event_add_io(s->event, &s->listen_source, owned, EPOLLIN, on_listen, s);
        if (r < 0)
                return r;
        s->listen_fd = TAKE_FD(owned);
        return 0;
}

void bus_server_on_connection(BusServer *s, void (*callback)(void *userdata, bool connected), void *userdata) {
        s->on_connection = callback;
        s->on_connection_userdata = userdata;
}

bool bus_server_is_connected(BusServer *s) {
        return s->fd >= 0;
}

void bus_server_interrupt(BusServer *s, unsigned index) {
        static const uint64_t one = 1;

        (void) pthread_mutex_lock(&s->irq_lock);
        if (index < s->n_irqs)
                (void) !write(s->irq_fds[index], &one, sizeof(one));
        (void) pthread_mutex_unlock(&s->irq_lock);
}
