/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The synchronous bus protocol: each side against a hand-made hostile peer, then both against each other. */

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "bus-client.h"
#include "bus-server.h"
#include "log.h"

#define N_REGISTERS 64

static const BusSpace test_space = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = N_REGISTERS };

/* A server's process: registers that remember what was written; register 63 kills it. Writing register 61 pulses. */
typedef struct Registers {
        uint8_t bytes[N_REGISTERS];
        BusServer *server;
} Registers;

static uint64_t registers_access(void *userdata, uint64_t offset, unsigned size, bool is_write, uint64_t value) {
        Registers *r = userdata;

        assert(range_within(offset, size, N_REGISTERS));
        if (offset == 63)
                _exit(7);
        if (offset == 61 && is_write)
                bus_server_interrupt(r->server, 0);
        if (is_write) {
                memcpy(r->bytes + offset, &value, size);
                return 0;
        }
        value = 0;
        memcpy(&value, r->bytes + offset, size);
        return value;
}

static void registers_reset(void *userdata) {
        Registers *r = userdata;
        memset(r->bytes, 0x5a, sizeof(r->bytes));
}

static size_t registers_save(void *userdata, void *state, size_t size) {
        Registers *r = userdata;
        assert(size >= sizeof(r->bytes));
        memcpy(state, r->bytes, sizeof(r->bytes));
        return sizeof(r->bytes);
}

static int registers_load(void *userdata, const void *state, size_t size) {
        Registers *r = userdata;
        if (size != sizeof(r->bytes))
                return -EBADMSG;
        memcpy(r->bytes, state, size);
        return 0;
}

static const BusDevice registers_device = {
        .n_registers = N_REGISTERS,
        .n_irqs = 1,
        .access = registers_access,
        .reset = registers_reset,
        .save = registers_save,
        .load = registers_load,
};

/* Starts a server on its end of a socket pair, in a process of its own; returns the client's end. */
static int spawn_server(pid_t *ret_pid) {
        int pair[2];
        pid_t pid;

        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), errno);
        pid = fork();
        assert_return_code(pid, errno);
        if (pid == 0) {
                Registers registers = {};
                sd_event *event = NULL;

                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) close(pair[0]);
                if (sd_event_new(&event) < 0 || bus_server_new(event, &registers_device, &registers, &registers.server) < 0 ||
                    bus_server_adopt(registers.server, pair[1]) < 0)
                        _exit(1);
                (void) sd_event_loop(event);
                _exit(0);
        }
        (void) close(pair[1]);
        *ret_pid = pid;
        return pair[0];
}

static void reap(pid_t pid) {
        int status;

        (void) kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
}

typedef struct Fixture {
        BusClient *client;
        int irq_fd;
        pid_t pid;
} Fixture;

static void client_up(Fixture *f) {
        f->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        assert_return_code(f->irq_fd, errno);
        assert_int_equal(bus_client_new(4, &test_space, &f->irq_fd, 1, &f->client), 0);
}

static void connect_server(Fixture *f) {
        assert_int_equal(bus_client_connect(f->client, spawn_server(&f->pid)), 0);
        assert_int_equal(bus_client_wait(f->client, 60 * USEC_PER_SEC, NULL), 0);
        assert_true(bus_client_is_connected(f->client));
}

static void fixture_up(Fixture *f) {
        client_up(f);
        connect_server(f);
}

static void fixture_down(Fixture *f) {
        f->client = bus_client_free(f->client);
        f->irq_fd = safe_close(f->irq_fd);
        if (f->pid > 0)
                reap(f->pid);
}

static uint32_t read32(BusClient *c, unsigned slot, uint64_t offset) {
        uint32_t v = 0;
        assert_int_equal(bus_client_access(c, slot, offset, false, &v, 4), 0);
        return v;
}

static void write32(BusClient *c, unsigned slot, uint64_t offset, uint32_t v) {
        assert_int_equal(bus_client_access(c, slot, offset, true, &v, 4), 0);
}

/* The server, hand-made clients. */

static BusHello good_hello(void) {
        return (BusHello) {
                .magic = BUS_MAGIC, .version = BUS_VERSION, .size = sizeof(BusHello), .n_slots = 4, .n_irqs = 1,
                .space_kind = BUS_SPACE_PIO, .space_base = 0x3f8, .space_length = N_REGISTERS,
        };
}

static int greet(int socket, const BusHello *hello, size_t size, const int *fds, size_t n_fds, char **ret_message) {
        BusReply reply;
        ssize_t n;

        assert_int_equal(send_with_fds(socket, hello, size, fds, n_fds), (ssize_t) size);
        do
                n = recv(socket, &reply, sizeof(reply), MSG_WAITALL);
        while (n < 0 && errno == EINTR);
        if (n <= 0)
                return -ECONNRESET;
        return bus_reply_check(&reply, (size_t) n, ret_message);
}

static void assert_refused(const BusHello *hello, size_t size, const int *fds, size_t n_fds, int error, const char *words) {
        _cleanup_free_ char *message = NULL;
        pid_t pid;
        int socket = spawn_server(&pid);
        char byte;

        assert_int_equal(greet(socket, hello, size, fds, n_fds, &message), error);
        assert_non_null(message);
        if (!strstr(message, words))
                fail_msg("'%s' lacks '%s'", message, words);
        assert_int_equal(recv(socket, &byte, 1, 0), 0); /* and is hung up on */
        (void) close(socket);
        reap(pid);
}

static void server_refuses_wrong_greetings(void **state) {
        BusHello h;
        int fds[3] = { bus_memory_create(4), eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC) };

        h = good_hello(), h.magic = 1;
        assert_refused(&h, sizeof(h), fds, 2, -EBADMSG, "not a greeting");
        h = good_hello(), h.version = 2;
        assert_refused(&h, sizeof(h), fds, 2, -EPROTONOSUPPORT, "version 2");
        h = good_hello();
        assert_refused(&h, 7, fds, 2, -EBADMSG, "not a greeting");
        h = good_hello(), h.n_slots = 0;
        assert_refused(&h, sizeof(h), fds, 2, -E2BIG, "0 slots");
        h = good_hello(), h.n_slots = UINT32_MAX;
        assert_refused(&h, sizeof(h), fds, 2, -E2BIG, "slots");
        h = good_hello(), h.n_irqs = UINT32_MAX;
        assert_refused(&h, sizeof(h), fds, 2, -E2BIG, "interrupt lines");
        h = good_hello();
        assert_refused(&h, sizeof(h), fds, 1, -EBADMSG, "file descriptors");
        assert_refused(&h, sizeof(h), fds, 3, -EBADMSG, "file descriptors");
        h = good_hello(), h.n_irqs = 2;
        assert_refused(&h, sizeof(h), fds, 3, -EINVAL, "this device has 1");
        h = good_hello(), h.space_kind = 99;
        assert_refused(&h, sizeof(h), fds, 2, -EBADMSG, "kind 99");
        h = good_hello(), h.space_base = UINT64_MAX - 2;
        assert_refused(&h, sizeof(h), fds, 2, -EBADMSG, "wraps");
        h = good_hello(), h.space_length = N_REGISTERS - 1;
        assert_refused(&h, sizeof(h), fds, 2, -EINVAL, "63 bytes");
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);
}

static void server_refuses_memory_that_could_shrink(void **state) {
        BusHello h = good_hello();
        int fds[2] = { memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), eventfd(0, EFD_CLOEXEC) };

        assert_return_code(ftruncate(fds[0], (off_t) bus_memory_size(4)), errno);
        assert_refused(&h, sizeof(h), fds, 2, -EPERM, "sealed");
        (void) close(fds[0]);

        fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
        assert_refused(&h, sizeof(h), fds, 2, -EPERM, "sealed");
        (void) close(fds[0]);

        fds[0] = bus_memory_create(4);
        h.n_slots = 1000;
        assert_refused(&h, sizeof(h), fds, 2, -ERANGE, "mapped");
        (void) close(fds[0]);
        (void) close(fds[1]);
}

/* A client by hand whose memory the test writes as it likes. */
typedef struct RawClient {
        int socket, fds[2];
        BusMemory *memory;
        pid_t pid;
} RawClient;

static void raw_up(RawClient *c) {
        BusHello h = good_hello();

        c->fds[0] = bus_memory_create(4);
        c->fds[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        assert_int_equal(bus_memory_map(c->fds[0], 4, &c->memory), 0);
        c->socket = spawn_server(&c->pid);
        assert_int_equal(greet(c->socket, &h, sizeof(h), c->fds, 2, NULL), 0);
}

static void raw_down(RawClient *c) {
        c->memory = bus_memory_unmap(c->memory, 4);
        (void) close(c->socket);
        (void) close(c->fds[0]);
        (void) close(c->fds[1]);
        reap(c->pid);
}

static void raw_ring(RawClient *c, uint64_t bits) {
        (void) __atomic_fetch_or(&c->memory->pending[0], bits, __ATOMIC_SEQ_CST);
        (void) __atomic_fetch_add(&c->memory->doorbell, 1, __ATOMIC_SEQ_CST);
        futex_wake(&c->memory->doorbell, 1, true);
}

static uint64_t raw_access(RawClient *c, unsigned slot, uint32_t sequence, BusSlot request) {
        BusSlot *s = &c->memory->slots[slot];

        s->operation = request.operation;
        s->size = request.size;
        s->offset = request.offset;
        s->value = request.value;
        s->answer = 0x1234;
        __atomic_store_n(&s->state, BUS_SLOT_WORD(sequence, BUS_SLOT_REQUEST), __ATOMIC_SEQ_CST);
        raw_ring(c, UINT64_C(1) << slot);
        for (unsigned i = 0; i < 60000 && __atomic_load_n(&s->state, __ATOMIC_SEQ_CST) != BUS_SLOT_WORD(sequence, BUS_SLOT_DONE); i++)
                (void) usleep(1000);
        assert_int_equal(s->state, BUS_SLOT_WORD(sequence, BUS_SLOT_DONE));
        return s->answer;
}

static void server_bounds_hostile_slots(void **state) {
        RawClient c;

        raw_up(&c);
        assert_int_equal(raw_access(&c, 0, 1, (BusSlot) { .size = 3 }), UINT64_MAX);
        assert_int_equal(raw_access(&c, 0, 2, (BusSlot) { .size = 0 }), UINT64_MAX);
        assert_int_equal(raw_access(&c, 0, 3, (BusSlot) { .size = 255, .operation = 1 }), UINT64_MAX);
        assert_int_equal(raw_access(&c, 0, 4, (BusSlot) { .size = 4, .operation = 77 }), UINT64_MAX);
        assert_int_equal(raw_access(&c, 0, 5, (BusSlot) { .size = 4, .offset = N_REGISTERS - 3 }), UINT32_MAX);
        assert_int_equal(raw_access(&c, 0, 6, (BusSlot) { .size = 8, .offset = UINT64_MAX - 3 }), UINT64_MAX);
        assert_int_equal(raw_access(&c, 0, 7, (BusSlot) { .size = 1, .offset = UINT64_MAX, .operation = 1 }), 0xff);
        /* Bits beyond the slots, and slots in no sensible state, are nobody's. */
        c.memory->slots[1].state = BUS_SLOT_WORD(9, BUS_SLOT_DONE);
        c.memory->slots[2].state = BUS_SLOT_WORD(9, BUS_SLOT_IDLE);
        for (unsigned i = 0; i < ELEMENTSOF(c.memory->pending); i++)
                c.memory->pending[i] = UINT64_MAX;
        raw_ring(&c, UINT64_MAX);
        assert_int_equal(raw_access(&c, 3, UINT32_MAX >> 2, (BusSlot) { .size = 4, .offset = 4 }), 0x5a5a5a5a);
        assert_int_equal(c.memory->slots[1].state, BUS_SLOT_WORD(9, BUS_SLOT_DONE));
        assert_int_equal(c.memory->slots[2].state, BUS_SLOT_WORD(9, BUS_SLOT_IDLE));
        raw_down(&c);
}

static void server_ignores_a_saved_state_that_lies(void **state) {
        RawClient c;
        BusHello h = good_hello();

        raw_up(&c);
        for (unsigned i = 0; i < 2; i++) {
                uint32_t size = i == 0 ? UINT32_MAX : 3;

                reap(c.pid);
                (void) close(c.socket);
                memcpy(c.memory->state, &size, sizeof(size));
                c.socket = spawn_server(&c.pid);
                assert_int_equal(greet(c.socket, &h, sizeof(h), c.fds, 2, NULL), 0);
                assert_int_equal(raw_access(&c, 0, 1 + i, (BusSlot) { .size = 1 }), 0x5a);
        }
        raw_down(&c);
}

static void server_hangs_up_on_chatter(void **state) {
        RawClient c;
        char byte = 0;

        raw_up(&c);
        assert_int_equal(write(c.socket, "x", 1), 1);
        assert_int_equal(recv(c.socket, &byte, 1, 0), 0);
        raw_down(&c);
}

/* The client, hand-made servers. */

typedef struct RawServer {
        int socket, fds[1 + BUS_IRQS_MAX];
        BusMemory *memory;
} RawServer;

/* Greets from the client and takes what came with it. */
static void raw_server_up(RawServer *s, BusClient *client) {
        size_t n_fds = ELEMENTSOF(s->fds);
        BusHello hello;
        int pair[2];

        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), errno);
        assert_int_equal(bus_client_connect(client, pair[0]), 0);
        s->socket = pair[1];
        assert_int_equal(recv_with_fds(s->socket, &hello, sizeof(hello), s->fds, &n_fds, 0), sizeof(hello));
        assert_int_equal(bus_hello_check(&hello, sizeof(hello), n_fds, NULL), 0);
        assert_int_equal(bus_memory_map(s->fds[0], 4, &s->memory), 0);
        for (size_t i = 0; i < n_fds; i++)
                s->fds[i] = safe_close(s->fds[i]);
}

static void raw_server_answer(RawServer *s, int error, const char *text) {
        BusReply reply;

        bus_reply_init(&reply, error, N_REGISTERS, text);
        assert_int_equal(write(s->socket, &reply, sizeof(reply)), sizeof(reply));
}

static void raw_server_down(RawServer *s) {
        s->socket = safe_close(s->socket);
        s->memory = bus_memory_unmap(s->memory, 4);
}

static void client_refuses_nonsense_in_place_of_an_answer(void **state) {
        Fixture f = {};
        RawServer s;
        BusReply reply;

        client_up(&f);
        for (unsigned i = 0; i < 5; i++) {
                _cleanup_free_ char *message = NULL;
                size_t size = sizeof(reply);
                int expected = -EBADMSG;

                bus_reply_init(&reply, 0, 8, NULL);
                raw_server_up(&s, f.client);
                switch (i) {
                case 0:
                        reply.magic = 0;
                        break;
                case 1:
                        size = 11;
                        break;
                case 2:
                        memset(reply.text, 'A', sizeof(reply.text));
                        break;
                case 3:
                        bus_reply_init(&reply, -EBUSY, 8, "no\033[2Jroom");
                        expected = -EBUSY;
                        break;
                case 4:
                        reply.error = UINT32_MAX;
                        break;
                }
                assert_int_equal(write(s.socket, &reply, size), (ssize_t) size);
                assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, &message), expected);
                assert_non_null(message);
                assert_null(strchr(message, '\033'));
                assert_false(bus_client_is_connected(f.client));
                bus_client_disconnected(f.client, 0);
                raw_server_down(&s);
        }
        fixture_down(&f);
}

static void client_refuses_accesses_outside_the_space(void **state) {
        Fixture f = {};
        uint64_t v;

        fixture_up(&f);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 4, 0, false, &v, 1), -EINVAL);
        assert_int_equal(v, 0xff);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 0, N_REGISTERS, false, &v, 1), -EINVAL);
        assert_int_equal(bus_client_access(f.client, 0, UINT64_MAX, false, &v, 8), -EINVAL);
        assert_int_equal(bus_client_access(f.client, 0, N_REGISTERS - 3, false, &v, 4), -EINVAL);
        assert_int_equal(bus_client_access(f.client, 0, 0, false, &v, 3), -EINVAL);
        fixture_down(&f);
}

static void client_gives_up_on_a_helper_that_scribbles(void **state) {
        Fixture f = {};
        RawServer s;
        uint32_t v = 0;
        pid_t pid;

        client_up(&f);
        raw_server_up(&s, f.client);
        raw_server_answer(&s, 0, NULL);
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), 0);
        pid = fork();
        assert_return_code(pid, errno);
        if (pid == 0) {
                (void) alarm(20);
                for (uint32_t i = 0;; i++) {
                        __atomic_store_n(&s.memory->slots[0].state, i * 2654435761u & ~3u, __ATOMIC_SEQ_CST);
                        s.memory->sleeping = i;
                        futex_wake(&s.memory->slots[0].state, 1, true);
                }
        }
        assert_int_equal(bus_client_access(f.client, 0, 0, false, &v, 4), -EIO);
        assert_int_equal(v, UINT32_MAX);
        assert_int_equal(bus_client_process(f.client, NULL), -EPROTO); /* the event loop hears of it */
        bus_client_disconnected(f.client, 0);
        reap(pid);
        raw_server_down(&s);
        fixture_down(&f);
}

/* A vCPU in a thread: one access, and how it ended. */
typedef struct Access {
        BusClient *client;
        unsigned slot;
        uint64_t offset;
        uint32_t value;
        int result;
        pthread_t thread;
} Access;

static void *access_thread(void *userdata) {
        Access *a = userdata;
        a->result = bus_client_access(a->client, a->slot, a->offset, false, &a->value, 4);
        return NULL;
}

static void client_counts_a_hanging_helper_as_dead(void **state) {
        _cleanup_free_ char *message = NULL;
        Fixture f = {};
        struct pollfd p;
        uint64_t begin;

        fixture_up(&f);
        write32(f.client, 1, 4, 0x12345678);
        assert_return_code(kill(f.pid, SIGSTOP), errno);
        /* It may work on for a moment, where processors are busy. */
        assert_int_equal(waitpid(f.pid, NULL, WUNTRACED), f.pid);
        begin = now_usec();

        Access a = { .client = f.client, .slot = 2, .offset = 4 };
        assert_int_equal(pthread_create(&a.thread, NULL, access_thread, &a), 0);
        p = (struct pollfd) { .fd = bus_client_fd(f.client), .events = POLLIN };
        assert_int_equal(poll(&p, 1, 4 * (int) (BUS_ACCESS_TIMEOUT_USEC / USEC_PER_MSEC)), 1);
        assert_in_range(now_usec() - begin, BUS_ACCESS_TIMEOUT_USEC, BUS_ACCESS_TIMEOUT_USEC * 12);
        assert_int_equal(bus_client_process(f.client, &message), -EPROTO);
        assert_string_equal(message, "the helper does not answer");
        /* One that hangs is one that was there: its successor is waited for, as after a death, also by who found out. */
        assert_false(bus_client_is_connected(f.client));
        assert_true(bus_client_is_served(f.client));
        bus_client_disconnected(f.client, 10 * USEC_PER_SEC);
        assert_false(bus_client_is_served(f.client));

        reap(f.pid);
        connect_server(&f);
        assert_int_equal(pthread_join(a.thread, NULL), 0);
        assert_int_equal(a.result, 0);
        assert_int_equal(a.value, 0x12345678);
        fixture_down(&f);
}

/* How long a vCPU waits still once its helper has died. */
static uint64_t time_to_wake(void) {
        Fixture f = {};
        RawServer s;
        uint64_t begin, taken;

        client_up(&f);
        raw_server_up(&s, f.client);
        raw_server_answer(&s, 0, NULL);
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), 0);

        Access a = { .client = f.client, .slot = 2 };
        assert_int_equal(pthread_create(&a.thread, NULL, access_thread, &a), 0);
        while (BUS_SLOT_STATE(__atomic_load_n(&s.memory->slots[2].state, __ATOMIC_SEQ_CST)) != BUS_SLOT_SLEEPING)
                (void) usleep(1000);

        begin = now_usec();
        raw_server_down(&s);
        assert_int_equal(bus_client_process(f.client, NULL), -ECONNRESET);
        bus_client_disconnected(f.client, 0);
        assert_int_equal(pthread_join(a.thread, NULL), 0);
        taken = now_usec() - begin;
        assert_int_equal(a.result, -EIO);
        assert_int_equal(a.value, UINT32_MAX);
        fixture_down(&f);
        return taken;
}

/* A host that stands still for a while does not do so each time. */
#define ATTEMPTS 5

static void client_wakes_a_vcpu_whose_helper_dies(void **state) {
        uint64_t least = UINT64_MAX;

        for (unsigned i = 0; i < ATTEMPTS && least >= BUS_ACCESS_TIMEOUT_USEC / 2; i++)
                least = MIN(least, time_to_wake());
        assert_true(least < BUS_ACCESS_TIMEOUT_USEC / 2);
}

static uint64_t time_of_a_failing_access(BusClient *client) {
        uint64_t begin = now_usec();
        uint32_t v = 0;

        assert_int_equal(bus_client_access(client, 0, 0, false, &v, 4), -EIO);
        return now_usec() - begin;
}

static void client_waits_for_a_successor_no_longer_than_told(void **state) {
        uint64_t least = UINT64_MAX, begin;
        Fixture f = {};

        fixture_up(&f);
        reap(f.pid);
        f.pid = 0;
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), -ECONNRESET);
        begin = now_usec();
        bus_client_disconnected(f.client, 3 * USEC_PER_SEC);
        (void) time_of_a_failing_access(f.client);
        assert_in_range(now_usec() - begin, 2 * USEC_PER_SEC, 60 * USEC_PER_SEC);
        for (unsigned i = 0; i < ATTEMPTS && least >= 2 * USEC_PER_SEC; i++)
                least = MIN(least, time_of_a_failing_access(f.client));
        assert_true(least < 2 * USEC_PER_SEC);
        fixture_down(&f);
}

static void an_unanswered_access_is_made_again_with_the_next_helper(void **state) {
        Fixture f = {};
        RawServer s;

        client_up(&f);
        raw_server_up(&s, f.client);
        raw_server_answer(&s, 0, NULL);
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), 0);

        Access a = { .client = f.client, .slot = 3, .offset = 8 };
        assert_int_equal(pthread_create(&a.thread, NULL, access_thread, &a), 0);
        while (BUS_SLOT_STATE(__atomic_load_n(&s.memory->slots[3].state, __ATOMIC_SEQ_CST)) != BUS_SLOT_SLEEPING)
                (void) usleep(1000);

        raw_server_down(&s);
        assert_int_equal(bus_client_process(f.client, NULL), -ECONNRESET);
        bus_client_disconnected(f.client, 30 * USEC_PER_SEC);
        connect_server(&f);
        assert_int_equal(pthread_join(a.thread, NULL), 0);
        assert_int_equal(a.result, 0);
        assert_int_equal(a.value, 0x5a5a5a5a);
        fixture_down(&f);
}

static void a_dead_helpers_successor_has_its_registers(void **state) {
        Fixture f = {};
        uint8_t v = 0;

        fixture_up(&f);
        write32(f.client, 0, 16, 0xcafe1234);
        for (unsigned i = 0; i < 3; i++) {
                bus_client_disconnected(f.client, 0);
                reap(f.pid);
                connect_server(&f);
                assert_int_equal(read32(f.client, 1, 16), 0xcafe1234);
        }
        assert_int_equal(bus_client_reset(f.client), 0);
        assert_int_equal(read32(f.client, 1, 16), 0x5a5a5a5a);
        assert_int_equal(bus_client_access(f.client, 0, 16, false, &v, 1), 0);
        assert_int_equal(v, 0x5a);
        fixture_down(&f);
}

static void a_reset_without_a_helper_is_done_by_the_next(void **state) {
        Fixture f = {};

        fixture_up(&f);
        write32(f.client, 0, 16, 0xcafe1234);
        reap(f.pid);
        assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), -ECONNRESET);
        bus_client_disconnected(f.client, 60 * USEC_PER_SEC);
        assert_int_equal(bus_client_reset(f.client), 0); /* at once */
        connect_server(&f);
        assert_int_equal(read32(f.client, 0, 16), 0x5a5a5a5a);
        fixture_down(&f);
}

static void reads_what_was_written_in_every_size(void **state) {
        Fixture f = {};
        uint64_t v = UINT64_C(0x1122334455667788);

        fixture_up(&f);
        assert_int_equal(bus_client_n_registers(f.client), N_REGISTERS);
        assert_int_equal(bus_client_access(f.client, 0, 8, true, &v, 8), 0);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 0, 9, false, &v, 1), 0);
        assert_int_equal(v, 0x77);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 1, 10, false, &v, 2), 0);
        assert_int_equal(v, 0x5566);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 2, 12, false, &v, 4), 0);
        assert_int_equal(v, 0x11223344);
        v = 0;
        assert_int_equal(bus_client_access(f.client, 3, 8, false, &v, 8), 0);
        assert_int_equal(v, UINT64_C(0x1122334455667788));
        fixture_down(&f);
}

static void a_pulse_reaches_the_interrupt_line(void **state) {
        Fixture f = {};
        uint64_t count;
        uint8_t v = 1;

        fixture_up(&f);
        assert_int_equal(bus_client_access(f.client, 0, 61, true, &v, 1), 0);
        assert_int_equal(read(f.irq_fd, &count, sizeof(count)), sizeof(count));
        assert_int_equal(count, 1);
        fixture_down(&f);
}

typedef struct Hammer {
        BusClient *client;
        unsigned slot;
        atomic_int *failures;
        pthread_t thread;
} Hammer;

#define HAMMER_ROUNDS 2000

static void *hammer_thread(void *userdata) {
        Hammer *h = userdata;

        for (uint32_t i = 0; i < HAMMER_ROUNDS; i++) {
                uint32_t v = i * 4 + h->slot;

                if (bus_client_access(h->client, h->slot, h->slot * 4, true, &v, 4) < 0 ||
                    bus_client_access(h->client, h->slot, h->slot * 4, false, &v, 4) < 0 || v != i * 4 + h->slot)
                        atomic_fetch_add(h->failures, 1);
                if (i % 64 == h->slot)
                        (void) usleep(100); /* lets the server fall asleep now and then */
        }
        return NULL;
}

static void four_vcpus_at_once_each_get_their_own_answers(void **state) {
        atomic_int failures = 0;
        Fixture f = {};
        Hammer h[4];

        fixture_up(&f);
        for (unsigned i = 0; i < 4; i++) {
                h[i] = (Hammer) { .client = f.client, .slot = i, .failures = &failures };
                assert_int_equal(pthread_create(&h[i].thread, NULL, hammer_thread, &h[i]), 0);
        }
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(pthread_join(h[i].thread, NULL), 0);
        assert_int_equal(failures, 0);
        fixture_down(&f);
}

static void four_vcpus_go_on_while_helpers_die_and_return(void **state) {
        atomic_int failures = 0;
        Fixture f = {};
        Hammer h[4];

        fixture_up(&f);
        for (unsigned i = 0; i < 4; i++) {
                h[i] = (Hammer) { .client = f.client, .slot = i, .failures = &failures };
                assert_int_equal(pthread_create(&h[i].thread, NULL, hammer_thread, &h[i]), 0);
        }
        for (unsigned i = 0; i < 5; i++) {
                (void) usleep(3000);
                reap(f.pid);
                assert_int_equal(bus_client_wait(f.client, 60 * USEC_PER_SEC, NULL), -ECONNRESET);
                bus_client_disconnected(f.client, 30 * USEC_PER_SEC);
                connect_server(&f);
        }
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(pthread_join(h[i].thread, NULL), 0);
        /* A kill between an access and the saving of the state may lose that one write; it must not lose more. */
        assert_in_range(failures, 0, 5 * 4);
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(server_refuses_wrong_greetings),
                cmocka_unit_test(server_refuses_memory_that_could_shrink),
                cmocka_unit_test(server_bounds_hostile_slots),
                cmocka_unit_test(server_ignores_a_saved_state_that_lies),
                cmocka_unit_test(server_hangs_up_on_chatter),
                cmocka_unit_test(client_refuses_nonsense_in_place_of_an_answer),
                cmocka_unit_test(client_refuses_accesses_outside_the_space),
                cmocka_unit_test(client_gives_up_on_a_helper_that_scribbles),
                cmocka_unit_test(client_counts_a_hanging_helper_as_dead),
                cmocka_unit_test(client_wakes_a_vcpu_whose_helper_dies),
                cmocka_unit_test(client_waits_for_a_successor_no_longer_than_told),
                cmocka_unit_test(an_unanswered_access_is_made_again_with_the_next_helper),
                cmocka_unit_test(a_dead_helpers_successor_has_its_registers),
                cmocka_unit_test(a_reset_without_a_helper_is_done_by_the_next),
                cmocka_unit_test(reads_what_was_written_in_every_size),
                cmocka_unit_test(a_pulse_reaches_the_interrupt_line),
                cmocka_unit_test(four_vcpus_at_once_each_get_their_own_answers),
                cmocka_unit_test(four_vcpus_go_on_while_helpers_die_and_return),
        };

        log_set_max_level(LOG_EMERG);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
