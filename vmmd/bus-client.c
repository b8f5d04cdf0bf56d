/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "bus-client.h"

/* A round trip between two processors takes one or two microseconds; two sleeps and wake-ups take more than this. */
#define SPIN_MAX_NSEC 30000

/* The state of the link, in the low bits of a futex word that changes with every event; vCPUs wait on it. */
typedef enum LinkState {
        LINK_DOWN = 0, /* accesses fail */
        LINK_WAIT = 1, /* accesses wait for a new connection until wait_until_usec */
        LINK_UP = 2,
} LinkState;
#define LINK_STATE(word) ((LinkState) ((word) &3u))

/* What only the vCPU of the slot touches; a cache line of its own. */
typedef struct SlotPrivate {
        _Alignas(64) uint32_t sequence;
        Spin spin;
} SlotPrivate;

struct BusClient {
        unsigned n_slots;
        BusSpace space;
        uint64_t n_registers;
        int memory_fd;
        BusMemory *memory;
        SlotPrivate *slots;
        int fds[1 + BUS_IRQS_MAX]; /* what the greeting carries: the memory, then the interrupt lines (borrowed) */
        size_t n_fds;

        uint32_t link;
        uint64_t wait_until_usec;
        bool served; /* by whom it is connected to; whatever became of the link since */

        pthread_mutex_t lock; /* for `fd`, which a vCPU shuts down when the helper hangs, */
        int fd;
        const char *gave_up;  /* and says here why */
};

int bus_client_new(unsigned n_slots, const BusSpace *space, const int *irq_fds, size_t n_irq_fds, BusClient **ret) {
        _cleanup_(bus_client_freep) BusClient *c = NULL;
        int r;

        if (n_slots == 0 || n_slots > BUS_SLOTS_MAX || n_irq_fds > BUS_IRQS_MAX || space->kind >= _BUS_SPACE_MAX ||
            space->length == 0 || space->length > UINT64_MAX - space->base)
                return -EINVAL;

        c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->fd = c->memory_fd = -EBADF;
        c->n_slots = n_slots;
        c->space = *space;
        (void) pthread_mutex_init(&c->lock, NULL);

        c->slots = aligned_alloc(_Alignof(SlotPrivate), n_slots * sizeof(SlotPrivate));
        if (!c->slots)
                return -ENOMEM;
        memset(c->slots, 0, n_slots * sizeof(SlotPrivate));
        for (unsigned i = 0; i < n_slots; i++)
                spin_init(&c->slots[i].spin, SPIN_MAX_NSEC);

        c->memory_fd = bus_memory_create(n_slots);
        if (c->memory_fd < 0)
                return c->memory_fd;
        r = bus_memory_map(c->memory_fd, n_slots, &c->memory);
        if (r < 0)
                return r;

        c->fds[c->n_fds++] = c->memory_fd;
        for (size_t i = 0; i < n_irq_fds; i++)
                c->fds[c->n_fds++] = irq_fds[i];

        *ret = TAKE_PTR(c);
        return 0;
}

BusClient *bus_client_free(BusClient *c) {
        if (!c)
                return NULL;

        (void) safe_close(c->fd);
        (void) safe_close(c->memory_fd);
        (void) bus_memory_unmap(c->memory, c->n_slots);
        (void) pthread_mutex_destroy(&c->lock);
        free(c->slots);
        free(c);
        return NULL;
}

int bus_client_connect(BusClient *c, int fd) {
        _cleanup_close_ int owned = fd;
        BusHello hello = {
                .magic = BUS_MAGIC,
                .version = BUS_VERSION,
                .size = sizeof(hello),
                .n_slots = c->n_slots,
                .n_irqs = (uint32_t) (c->n_fds - 1),
                .space_kind = c->space.kind,
                .space_base = c->space.base,
                .space_length = c->space.length,
        };
        ssize_t n;

        if (c->fd >= 0)
                return -EISCONN;

        n = send_with_fds(owned, &hello, sizeof(hello), c->fds, c->n_fds);
        if (n < 0)
                return (int) n;
        if (n != sizeof(hello)) /* 40 bytes on a fresh socket: nothing honest takes less */
                return -EPROTO;

        (void) pthread_mutex_lock(&c->lock);
        c->fd = TAKE_FD(owned);
        c->gave_up = NULL;
        c->served = false;
        (void) pthread_mutex_unlock(&c->lock);
        return 0;
}

int bus_client_connect_path(BusClient *c, const char *path) {
        int fd;

        if (c->fd >= 0)
                return -EISCONN;
        fd = connect_unix(path);
        if (fd < 0)
                return fd;
        return bus_client_connect(c, fd);
}

int bus_client_fd(const BusClient *c) {
        return c->fd;
}

uint64_t bus_client_n_registers(const BusClient *c) {
        return c->n_registers;
}

bool bus_client_is_connected(const BusClient *c) {
        return LINK_STATE(__atomic_load_n(&c->link, __ATOMIC_ACQUIRE)) == LINK_UP;
}

bool bus_client_is_served(const BusClient *c) {
        return c->served;
}

/* Moves the link to `state` and makes everybody who waits look at it: on the link itself, and on a slot. Whoever sets SLEEPING after this
 * sees the new link before waiting (both sides: store, then load of the other's word, sequentially consistent). */
static void set_link(BusClient *c, LinkState state) {
        uint32_t word = __atomic_load_n(&c->link, __ATOMIC_RELAXED), next;

        do
                next = ((word | 3u) + 1) | (uint32_t) state;
        while (!__atomic_compare_exchange_n(&c->link, &word, next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));

        futex_wake(&c->link, INT32_MAX, false);
        for (unsigned i = 0; i < c->n_slots; i++) {
                uint32_t *state_word = &c->memory->slots[i].state;
                uint32_t seen = __atomic_load_n(state_word, __ATOMIC_SEQ_CST);

                if (BUS_SLOT_STATE(seen) != BUS_SLOT_SLEEPING)
                        continue;
                (void) __atomic_compare_exchange_n(state_word, &seen, BUS_SLOT_WORD(BUS_SLOT_SEQUENCE(seen), BUS_SLOT_REQUEST), false,
                        __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
                futex_wake(state_word, INT32_MAX, true);
        }
}

int bus_client_hand_over(BusClient *c, uint32_t instance, Handover *h) {
        state_begin(h->writer, "bus-session", instance, 1);
        state_put_u8(h->writer, (uint8_t) LINK_STATE(c->link));
        state_put_u64(h->writer, c->n_registers);
        handover_put_fd(h, c->fd);
        handover_put_fd(h, c->memory_fd);
        state_put_u32(h->writer, c->n_slots);
        for (unsigned i = 0; i < c->n_slots; i++)
                state_put_u32(h->writer, c->slots[i].sequence);
        return state_end(h->writer);
}

static int take_memory(BusClient *c, int fd) {
        _cleanup_close_ int owned = fd;
        BusMemory *memory;
        int r;

        r = bus_memory_map(fd, c->n_slots, &memory);
        if (r < 0)
                return r;
        (void) bus_memory_unmap(c->memory, c->n_slots);
        (void) safe_close(c->memory_fd);
        c->memory = memory;
        c->memory_fd = c->fds[0] = TAKE_FD(owned);
        return 0;
}

int bus_client_take_over(BusClient *c, uint32_t instance, Handover *h, char **ret_message) {
        _cleanup_close_ int fd = -EBADF, memory = -EBADF;
        uint64_t n_registers;
        LinkState link;
        uint32_t n;
        int r;

        r = state_enter(h->reader, "bus-session", instance, 1);
        if (r < 0)
                return set_message(ret_message, r, "The state has no session of bus device %u.", instance);
        link = (LinkState) state_get_u8(h->reader);
        n_registers = state_get_u64(h->reader);
        fd = handover_get_fd(h);
        memory = handover_get_fd(h);
        n = state_get_u32(h->reader);
        if (n != c->n_slots)
                return set_message(ret_message, -EBADMSG, "Bus device %u has %u slots, in the state %u.", instance, c->n_slots, n);
        for (unsigned i = 0; i < n; i++)
                c->slots[i].sequence = state_get_u32(h->reader);
        r = state_leave(h->reader, ret_message);
        if (r >= 0)
                r = handover_end(h);
        if (r >= 0 && ((link != LINK_UP && link != LINK_DOWN) || (link == LINK_UP) != (fd >= 0) || memory < 0))
                r = set_message(ret_message, -EBADMSG, "The state's session of bus device %u is not whole.", instance);
        if (r >= 0)
                r = take_memory(c, TAKE_FD(memory));
        if (r < 0)
                return r;
        c->n_registers = MIN(n_registers, c->space.length);
        c->fd = TAKE_FD(fd);
        c->served = link == LINK_UP;
        set_link(c, link);
        return 0;
}

int bus_client_process(BusClient *c, char **ret_message) {
        BusReply reply = {};
        ssize_t n;
        int r;

        if (c->fd < 0)
                return -ENOTCONN;

        /* Written by the helper in one piece; a reply in several is not worth the state to put it together. No descriptors are expected: what comes is closed. */
        n = recv_with_fds(c->fd, &reply, sizeof(reply), NULL, NULL, MSG_DONTWAIT);
        if (n == -EAGAIN)
                return 0;
        if (n == -ECONNRESET || n == 0) {
                const char *why;

                (void) pthread_mutex_lock(&c->lock);
                why = c->gave_up;
                (void) pthread_mutex_unlock(&c->lock);
                if (why)
                        return set_message(ret_message, -EPROTO, "%s", why);
                return set_message(ret_message, -ECONNRESET, "the helper closed the connection");
        }
        if (n < 0)
                return (int) n;
        if (bus_client_is_connected(c))
                return set_message(ret_message, -EPROTO, "the helper wrote to a socket that should be silent");

        r = bus_reply_check(&reply, (size_t) n, ret_message);
        if (r < 0)
                return r;

        c->n_registers = MIN((uint64_t) reply.n_registers, c->space.length);
        c->served = true;
        set_link(c, LINK_UP);
        return 1;
}

int bus_client_wait(BusClient *c, uint64_t timeout_usec, char **ret_message) {
        uint64_t until = now_usec() + timeout_usec;

        for (;;) {
                struct pollfd p = { .fd = c->fd, .events = POLLIN };
                uint64_t now = now_usec();
                int r;

                r = bus_client_process(c, ret_message);
                if (r != 0)
                        return MIN(r, 0);
                if (now >= until)
                        return set_message(ret_message, -ETIMEDOUT, "no answer to the greeting");
                r = poll(&p, 1, (int) MIN((until - now) / USEC_PER_MSEC + 1, (uint64_t) 60000));
                if (r < 0 && errno != EINTR)
                        return -errno;
        }
}

void bus_client_disconnected(BusClient *c, uint64_t grace_usec) {
        (void) pthread_mutex_lock(&c->lock);
        c->fd = safe_close(c->fd);
        (void) pthread_mutex_unlock(&c->lock);
        c->served = false;

        __atomic_store_n(&c->wait_until_usec, now_usec() + grace_usec, __ATOMIC_RELEASE);
        set_link(c, grace_usec > 0 ? LINK_WAIT : LINK_DOWN);
}

/* Nothing more is asked of the helper, and the event loop finds the socket at its end. */
static void give_up(BusClient *c, uint32_t link, LinkState then, const char *why) {
        /* For now: the event loop will say for how long. */
        if (then == LINK_WAIT)
                __atomic_store_n(&c->wait_until_usec, now_usec() + BUS_SUCCESSOR_TIMEOUT_USEC, __ATOMIC_RELEASE);
        (void) __atomic_compare_exchange_n(&c->link, &link, (link & ~3u) | (uint32_t) then, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);

        (void) pthread_mutex_lock(&c->lock);
        if (c->fd >= 0) {
                c->gave_up = why;
                (void) shutdown(c->fd, SHUT_RDWR);
        }
        (void) pthread_mutex_unlock(&c->lock);
}

static void ring(BusMemory *m, unsigned slot) {
        (void) __atomic_fetch_or(&m->pending[slot / 64], UINT64_C(1) << (slot % 64), __ATOMIC_RELEASE);
        (void) __atomic_fetch_add(&m->doorbell, 1, __ATOMIC_SEQ_CST);
        /* The first who sees the server asleep wakes it; the others need not. */
        if (__atomic_load_n(&m->sleeping, __ATOMIC_SEQ_CST) != 0 && __atomic_exchange_n(&m->sleeping, 0, __ATOMIC_SEQ_CST) != 0)
                futex_wake(&m->doorbell, 1, true);
}

typedef struct Look {
        const uint32_t *state, *link;
        uint32_t done, link_word;
} Look;

static bool look(void *userdata) {
        const Look *l = userdata;

        return __atomic_load_n(l->state, __ATOMIC_ACQUIRE) == l->done || __atomic_load_n(l->link, __ATOMIC_RELAXED) != l->link_word;
}

/* Waits for the answer to the request with this sequence number. 0; -EAGAIN where the link changed; -ETIMEDOUT. */
static int wait_for_answer(BusClient *c, unsigned slot, uint32_t sequence, uint32_t link) {
        uint32_t *state = &c->memory->slots[slot].state;
        uint32_t request = BUS_SLOT_WORD(sequence, BUS_SLOT_REQUEST), sleeping = BUS_SLOT_WORD(sequence, BUS_SLOT_SLEEPING),
                 done = BUS_SLOT_WORD(sequence, BUS_SLOT_DONE);
        Look l = { .state = state, .link = &c->link, .done = done, .link_word = link };
        uint64_t until = 0, now;

        (void) spin_until(&c->slots[slot].spin, look, &l);
        for (;;) {
                uint32_t expected = request;

                if (__atomic_load_n(state, __ATOMIC_ACQUIRE) == done)
                        return 0;
                (void) __atomic_compare_exchange_n(state, &expected, sleeping, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
                if (__atomic_load_n(&c->link, __ATOMIC_SEQ_CST) != link)
                        return -EAGAIN;

                now = now_usec();
                if (until == 0)
                        until = now + BUS_ACCESS_TIMEOUT_USEC;
                if (now >= until)
                        return -ETIMEDOUT;
                /* Whatever the helper wrote into the word: the wait ends by a wake, by a value that is not
                 * `sleeping`, or in time; and the deadline bounds the loop. */
                if (expected != request && expected != sleeping && expected != done) {
                        give_up(c, link, LINK_DOWN, "the helper wrote nonsense into the shared memory");
                        return -EAGAIN;
                }
                (void) futex_wait(state, sleeping, until - now, true);
        }
}

static int transact(BusClient *c, unsigned slot, uint32_t link, const BusSlot *request, uint64_t *ret_answer) {
        BusSlot *s = &c->memory->slots[slot];
        uint32_t sequence = ++c->slots[slot].sequence & (UINT32_MAX >> 2);
        int r;

        s->operation = request->operation;
        s->size = request->size;
        s->offset = request->offset;
        s->value = request->value;
        __atomic_store_n(&s->state, BUS_SLOT_WORD(sequence, BUS_SLOT_REQUEST), __ATOMIC_RELEASE);
        ring(c->memory, slot);

        r = wait_for_answer(c, slot, sequence, link);
        if (r < 0 &&
            __atomic_exchange_n(&s->state, BUS_SLOT_WORD(sequence, BUS_SLOT_IDLE), __ATOMIC_ACQUIRE) != BUS_SLOT_WORD(sequence, BUS_SLOT_DONE))
                return r;
        *ret_answer = __atomic_load_n(&s->answer, __ATOMIC_RELAXED);
        return 0;
}

static int transact_until_answered(BusClient *c, unsigned slot, const BusSlot *request, uint64_t *ret_answer) {
        for (;;) {
                uint32_t link = __atomic_load_n(&c->link, __ATOMIC_ACQUIRE);
                uint64_t until, now;
                int r;

                switch (LINK_STATE(link)) {
                case LINK_UP:
                        r = transact(c, slot, link, request, ret_answer);
                        /* It hangs, or is dead and its successor late: the service manager sees to both. The access is made again then, since a driver that lost one
                         * (what pends, that it wants interrupts) may wait for ever. */
                        if (r == -ETIMEDOUT)
                                give_up(c, link, LINK_WAIT, "the helper does not answer");
                        else if (r != -EAGAIN)
                                return r;
                        break;
                case LINK_WAIT:
                        until = __atomic_load_n(&c->wait_until_usec, __ATOMIC_ACQUIRE);
                        now = now_usec();
                        if (now >= until)
                                return -ETIMEDOUT;
                        (void) futex_wait(&c->link, link, until - now, false);
                        break;
                default:
                        return -ENOTCONN;
                }
        }
}

int bus_client_access(BusClient *c, unsigned slot, uint64_t offset, bool is_write, void *data, size_t size) {
        BusSlot request = { .operation = is_write ? BUS_OPERATION_WRITE : BUS_OPERATION_READ, .size = (uint8_t) size, .offset = offset };
        uint64_t answer;
        int r = -EINVAL;

        assert(data);

        if (slot < c->n_slots && bus_access_size_is_valid(size) && range_within(offset, size, c->space.length)) {
                if (is_write)
                        memcpy(&request.value, data, size);
                r = transact_until_answered(c, slot, &request, &answer) < 0 ? -EIO : 0;
        }
        if (is_write)
                return r;
        if (r < 0)
                memset(data, 0xff, size);
        else
                memcpy(data, &answer, size); /* little-endian: the low bytes */
        return r;
}

int bus_client_reset(BusClient *c) {
        BusSlot request = { .operation = BUS_OPERATION_RESET };
        uint32_t link = __atomic_load_n(&c->link, __ATOMIC_ACQUIRE);
        uint64_t answer;
        int r = -ENOTCONN;

        if (LINK_STATE(link) == LINK_UP)
                r = transact(c, 0, link, &request, &answer);
        if (r == -ETIMEDOUT)
                give_up(c, link, LINK_WAIT, "the helper does not answer");
        if (r < 0)
                /* Not waited for, since the thread that resets is the one that connects: the next helper finds no state, and starts afresh. */
                memset(c->memory->state, 0, sizeof(c->memory->state));
        return 0;
}

void bus_client_get_state(const BusClient *c, uint8_t ret[static BUS_STATE_SIZE]) {
        memcpy(ret, c->memory->state, BUS_STATE_SIZE);
}

void bus_client_set_state(BusClient *c, const uint8_t state[static BUS_STATE_SIZE]) {
        memcpy(c->memory->state, state, BUS_STATE_SIZE);
}
