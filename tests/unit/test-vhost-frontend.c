/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The front-end against back-ends that lie, hang and die. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "vhost-inflight.h"
#include "vhost-user.h"
#include "virtio-rig.h"
#include "virtqueue.h"

#define COMMON(field) (RIG_COMMON + VIRTIO_PCI_COMMON_##field)
/* Of a helper that does not answer at all, a request is given up after a minute, or two. */
#define HELPER_PATIENCE_USEC (45 * USEC_PER_SEC)
#define FEATURES (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES)

typedef enum Lie {
        HONEST,
        HANG_UP,     /* closes the connection */
        SILENT,      /* never answers */
        HALF,        /* half of a reply, then nothing */
        DRIP,        /* a byte now and then */
        OTHER_TYPE,  /* a reply to another request */
        NO_REPLY_FLAG,
        OTHER_SIZE,  /* a payload of 4 bytes */
        HUGE_SIZE,   /* a header that announces 4 GiB */
        WITH_FDS,    /* descriptors nobody asked for */
        REFUSAL,     /* "no" */
        CANNOT,      /* "not at all, for this reason" */
        VALUE,       /* another number */
} Lie;

typedef struct Backend {
        Rig *rig;
        int listen_fd;
        pthread_t thread;
        atomic_bool end;
        int end_fd;

        _Atomic uint32_t lie_request;
        Lie lie;
        unsigned lie_times; /* sessions that lie, then honest ones */
        uint64_t value;
        _Atomic uint32_t hang_up_at; /* ends the session, once */

        /* What was seen. */
        atomic_uint n_sessions, n_kicks;
        atomic_int inflight_sets, base, n_enabled, n_stopped;
        ino_t inflight_inode[8];
        int kick_fd, call_fd, backend_fd;
        int inflight_fd;
        atomic_uint config_byte;
        atomic_uint driver_byte; /* what a driver has written to its configuration space since its last reset */
} Backend;

static void remember_fds(Backend *b, const VhostUserMsg *msg, int *fds, size_t n_fds) {
        struct stat st;

        if (n_fds == 0)
                return;
        switch (msg->header.request) {
        case VHOST_USER_SET_VRING_KICK:
                (void) safe_close(b->kick_fd);
                b->kick_fd = TAKE_FD(fds[0]);
                break;
        case VHOST_USER_SET_VRING_CALL:
                (void) safe_close(b->call_fd);
                b->call_fd = TAKE_FD(fds[0]);
                break;
        case VHOST_USER_SET_BACKEND_REQ_FD:
                (void) safe_close(b->backend_fd);
                b->backend_fd = TAKE_FD(fds[0]);
                break;
        case VHOST_USER_SET_INFLIGHT_FD:
                assert_int_equal(fstat(fds[0], &st), 0);
                b->inflight_inode[b->inflight_sets % 8] = st.st_ino;
                b->inflight_sets++;
                break;
        }
        for (size_t i = 0; i < n_fds; i++)
                (void) safe_close(fds[i]);
}

/* An honest answer to the request in `msg`, in place. False where it has none. */
static bool answer(Backend *b, VhostUserMsg *msg, int *ret_fd) {
        uint32_t size = sizeof(uint64_t);

        *ret_fd = -EBADF;
        switch (msg->header.request) {
        case VHOST_USER_GET_FEATURES:
                msg->payload.u64 = FEATURES;
                break;
        case VHOST_USER_GET_PROTOCOL_FEATURES:
                msg->payload.u64 = UINT64_MAX;
                break;
        case VHOST_USER_GET_QUEUE_NUM:
                msg->payload.u64 = 1;
                break;
        case VHOST_USER_GET_CONFIG:
                memset(msg->payload.config.region, (int) b->config_byte, msg->payload.config.size);
                size = msg->header.size;
                break;
        case VHOST_USER_GET_INFLIGHT_FD:
                msg->payload.inflight.mmap_size = 4096;
                *ret_fd = memfd_create("inflight", MFD_CLOEXEC);
                size = msg->header.size;
                break;
        case VHOST_USER_GET_VRING_BASE:
                b->n_stopped++;
                size = sizeof(struct vhost_vring_state);
                break;
        case VHOST_USER_SET_VRING_BASE:
                b->base = (int) msg->payload.state.num;
                break;
        case VHOST_USER_SET_VRING_ENABLE:
                b->n_enabled += msg->payload.state.num == 1;
                break;
        case VHOST_USER_SET_CONFIG:
                b->driver_byte = msg->payload.config.region[0];
                break;
        case VHOST_USER_SET_STATUS:
                if (msg->payload.u64 == 0)
                        b->driver_byte = 0;
                break;
        }
        if (!vhost_user_request_has_reply(msg->header.request)) {
                if (!(msg->header.flags & VHOST_USER_FLAG_NEED_REPLY))
                        return false;
                msg->payload.u64 = 0;
                size = sizeof(uint64_t);
        }
        msg->header.flags = VHOST_USER_FLAG_REPLY | VHOST_USER_VERSION;
        msg->header.size = size;
        return true;
}

/* Waits until the front-end hangs up, or the test ends. */
static void wait_for_end(Backend *b, int fd) {
        struct pollfd p[2] = { { .fd = fd, .events = POLLRDHUP }, { .fd = b->end_fd, .events = POLLIN } };

        (void) poll(p, 2, 60000);
}

static void drip(Backend *b, int fd, const VhostUserMsg *msg) {
        struct pollfd p[2] = { { .fd = fd, .events = POLLRDHUP }, { .fd = b->end_fd, .events = POLLIN } };

        for (size_t i = 0; i < sizeof(VhostUserHeader) + msg->header.size - 1; i++) {
                if (poll(p, 2, 200) != 0 || send(fd, (const uint8_t *) msg + i, 1, MSG_NOSIGNAL) < 0)
                        break;
        }
}

/* False where the session is over. */
static bool lie(Backend *b, int fd, VhostUserMsg *msg) {
        int fds[3] = { fd, fd, fd };
        size_t n_fds = 0;

        switch (b->lie) {
        case HONEST:
                break;
        case HANG_UP:
                return false;
        case SILENT:
                wait_for_end(b, fd);
                return false;
        case HALF:
                (void) send(fd, msg, 7, MSG_NOSIGNAL);
                wait_for_end(b, fd);
                return false;
        case DRIP:
                drip(b, fd, msg);
                return false;
        case OTHER_TYPE:
                msg->header.request++;
                break;
        case NO_REPLY_FLAG:
                msg->header.flags &= ~VHOST_USER_FLAG_REPLY;
                break;
        case OTHER_SIZE:
                msg->header.size = 4;
                break;
        case HUGE_SIZE:
                msg->header.size = UINT32_MAX;
                (void) send(fd, msg, sizeof(VhostUserHeader), MSG_NOSIGNAL);
                wait_for_end(b, fd);
                return false;
        case WITH_FDS:
                n_fds = 3;
                break;
        case REFUSAL:
                msg->header.size = vhost_user_request_has_reply(msg->header.request) ? 0 : 8;
                msg->payload.u64 = 1;
                break;
        case CANNOT:
                msg->header.request = VHOST_USER_REFUSAL;
                msg->header.size = 17;
                memcpy(msg->payload.refusal, "somebody\033has it.", 17);
                break;
        case VALUE:
                if (msg->header.request == VHOST_USER_GET_CONFIG)
                        msg->payload.config.size = (uint32_t) b->value;
                else if (msg->header.request == VHOST_USER_GET_INFLIGHT_FD)
                        msg->payload.inflight = (VhostUserInflight) { b->value, b->value, UINT16_MAX, UINT16_MAX };
                else
                        msg->payload.u64 = b->value;
                break;
        }
        return vhost_user_send(fd, msg, fds, n_fds) >= 0;
}

static void serve(Backend *b, int fd) {
        bool lies = b->n_sessions <= b->lie_times;

        for (;;) {
                struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = b->end_fd, .events = POLLIN } };
                int fds[VHOST_USER_FDS_MAX], extra;
                size_t n_fds = ELEMENTSOF(fds);
                bool lie_now, has_answer;
                VhostUserMsg msg;

                if (poll(p, 2, 60000) <= 0 || p[1].revents || vhost_user_recv(fd, &msg, fds, &n_fds) < 0)
                        return;
                if (b->hang_up_at != 0 && b->hang_up_at == msg.header.request) {
                        b->hang_up_at = 0;
                        for (size_t i = 0; i < n_fds; i++)
                                (void) safe_close(fds[i]);
                        return;
                }
                lie_now = lies && msg.header.request == b->lie_request && (msg.header.request != VHOST_USER_SET_STATUS || msg.payload.u64 != 0);
                remember_fds(b, &msg, fds, n_fds);
                has_answer = answer(b, &msg, &extra);
                if (lie_now && (has_answer || b->lie == HANG_UP)) {
                        (void) safe_close(extra);
                        if (!lie(b, fd, &msg))
                                return;
                } else if (has_answer) {
                        int r = vhost_user_send(fd, &msg, &extra, extra >= 0);

                        (void) safe_close(extra);
                        if (r < 0)
                                return;
                }
        }
}

static void *backend_thread(void *userdata) {
        Backend *b = userdata;

        while (!b->end) {
                struct pollfd p[2] = { { .fd = b->listen_fd, .events = POLLIN }, { .fd = b->end_fd, .events = POLLIN } };
                int fd;

                if (poll(p, 2, -1) < 0 || p[1].revents)
                        break;
                fd = accept4(b->listen_fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd < 0)
                        break;
                b->n_sessions++;
                serve(b, fd);
                (void) close(fd);
        }
        return NULL;
}

static void backend_start(Backend *b, Rig *rig, uint32_t request, Lie how, unsigned times, uint64_t value) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        *b = (Backend) { .rig = rig, .lie_request = request, .lie = how, .lie_times = times, .value = value,
                         .kick_fd = -EBADF, .call_fd = -EBADF, .backend_fd = -EBADF, .config_byte = 0x11, .base = -1 };
        strcpy(address.sun_path, rig->path);
        (void) unlink(rig->path);
        b->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(b->listen_fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(b->listen_fd, 4), 0);
        b->end_fd = eventfd(0, EFD_CLOEXEC);
        assert_int_equal(pthread_create(&b->thread, NULL, backend_thread, b), 0);
}

static void backend_end(Backend *b) {
        b->end = true;
        (void) eventfd_write(b->end_fd, 1);
        assert_int_equal(pthread_join(b->thread, NULL), 0);
        (void) close(b->listen_fd);
        (void) close(b->end_fd);
        (void) safe_close(b->kick_fd);
        (void) safe_close(b->call_fd);
        (void) safe_close(b->backend_fd);
}

static unsigned open_fds(void) {
        unsigned n = 0;

        for (int fd = 0; fd < 256; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

/* --- lies at the beginning: the device fails, with a reason --- */

static void fails_with_a_reason(void **state) {
        static const struct {
                uint32_t request;
                Lie lie;
                uint64_t value;
                const char *reason;
        } cases[] = {
                { VHOST_USER_GET_FEATURES, HANG_UP, 0, "closed the connection" },
                { VHOST_USER_SET_OWNER, HANG_UP, 0, "closed the connection" },
                { VHOST_USER_GET_CONFIG, HANG_UP, 0, "closed the connection" },
                { VHOST_USER_GET_FEATURES, OTHER_TYPE, 0, "as specified" },
                { VHOST_USER_GET_FEATURES, NO_REPLY_FLAG, 0, "as specified" },
                { VHOST_USER_GET_FEATURES, OTHER_SIZE, 0, "as specified" },
                { VHOST_USER_GET_FEATURES, HUGE_SIZE, 0, "as specified" },
                { VHOST_USER_GET_FEATURES, REFUSAL, 0, "as specified" },
                { VHOST_USER_GET_FEATURES, VALUE, 0, "lack VIRTIO_F_VERSION_1" },
                { VHOST_USER_GET_FEATURES, VALUE, UINT64_C(1) << 32, "lack VIRTIO_F_VERSION_1" },
                { VHOST_USER_GET_FEATURES, CANNOT, 0, "somebody?has it" },
                { VHOST_USER_GET_PROTOCOL_FEATURES, OTHER_SIZE, 0, "as specified" },
                { VHOST_USER_GET_QUEUE_NUM, VALUE, 0, "0 queues" },
                { VHOST_USER_SET_BACKEND_REQ_FD, REFUSAL, 0, "refused" },
                { VHOST_USER_SET_BACKEND_REQ_FD, OTHER_SIZE, 0, "as specified" },
                { VHOST_USER_GET_CONFIG, REFUSAL, 0, "refused" },
                { VHOST_USER_GET_CONFIG, VALUE, 0, "refused" },
                { VHOST_USER_GET_CONFIG, VALUE, 4, "as specified" },
                { VHOST_USER_GET_CONFIG, VALUE, 257, "as specified" },
                { VHOST_USER_GET_CONFIG, VALUE, UINT32_MAX, "as specified" },
                { VHOST_USER_GET_CONFIG, OTHER_SIZE, 0, "as specified" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                unsigned fds = open_fds();
                char *error;
                Backend b;
                Rig rig;

                rig_new(&rig, VIRTIO_ID_BLOCK, 1);
                backend_start(&b, &rig, cases[i].request, cases[i].lie, 100, cases[i].value);
                rig_start(&rig);
                assert_int_equal(vhost_frontend_wait(rig.frontend), -ENOLINK);
                rig_expect_state(&rig, VHOST_FRONTEND_FAILED);
                error = vhost_frontend_error(rig.frontend);
                assert_non_null(error);
                if (!strstr(error, cases[i].reason))
                        fail_msg("case %zu: '%s' does not say '%s'", i, error, cases[i].reason);
                free(error);
                /* Its registers read as those of no device that a driver would take, and nothing hangs. */
                assert_int_equal(rig_offered_features(&rig), 0);
                rig_reset(&rig);
                rig_free(&rig);
                backend_end(&b);
                assert_int_equal(open_fds(), fds);
        }
}

static void no_socket_is_a_failure_at_once(void **state) {
        char *error;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_start(&rig);
        assert_int_equal(vhost_frontend_wait(rig.frontend), -ENOLINK);
        error = vhost_frontend_error(rig.frontend);
        assert_non_null(strstr(error, "No such file"));
        free(error);
        rig_free(&rig);
}

static void harmless_lies_are_survived(void **state) {
        static const struct {
                uint32_t request;
                Lie lie;
                uint64_t value;
        } cases[] = {
                { VHOST_USER_GET_FEATURES, WITH_FDS, 0 },          { VHOST_USER_GET_CONFIG, WITH_FDS, 0 },
                { VHOST_USER_SET_MEM_TABLE, WITH_FDS, 0 },         { VHOST_USER_GET_VRING_BASE, WITH_FDS, 0 },
                { VHOST_USER_GET_INFLIGHT_FD, WITH_FDS, 0 },       { VHOST_USER_GET_QUEUE_NUM, VALUE, UINT64_MAX },
                { VHOST_USER_GET_PROTOCOL_FEATURES, VALUE, 0 },    { VHOST_USER_GET_FEATURES, VALUE, UINT64_MAX },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                unsigned fds = open_fds();
                Backend b;
                Rig rig;

                rig_new(&rig, VIRTIO_ID_BLOCK, 1);
                backend_start(&b, &rig, cases[i].request, cases[i].lie, 100, cases[i].value);
                rig_start(&rig);
                assert_int_equal(rig_drive(&rig), 15);
                rig_reset(&rig);
                assert_int_equal(rig_drive(&rig), 15);
                assert_int_equal(vhost_frontend_state(rig.frontend), VHOST_FRONTEND_READY);
                rig_free(&rig);
                backend_end(&b);
                assert_int_equal(open_fds(), fds);
        }
}

/* --- lies once a driver is there: the session is dropped and made anew, and the driver sees nothing --- */

static void a_session_that_breaks_at_driver_ok_is_made_anew(void **state) {
        static const struct {
                uint32_t request;
                Lie lie;
        } cases[] = {
                { VHOST_USER_SET_FEATURES, HANG_UP },      { VHOST_USER_SET_MEM_TABLE, HANG_UP },
                { VHOST_USER_SET_MEM_TABLE, OTHER_TYPE },  { VHOST_USER_GET_INFLIGHT_FD, HANG_UP },
                { VHOST_USER_GET_INFLIGHT_FD, OTHER_TYPE }, { VHOST_USER_SET_INFLIGHT_FD, HANG_UP },
                { VHOST_USER_SET_VRING_ADDR, OTHER_SIZE }, { VHOST_USER_SET_VRING_KICK, HANG_UP },
                { VHOST_USER_SET_VRING_ENABLE, HUGE_SIZE }, { VHOST_USER_SET_STATUS, HANG_UP },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                unsigned fds = open_fds();
                Backend b;
                Rig rig;

                rig_new(&rig, VIRTIO_ID_BLOCK, 1);
                backend_start(&b, &rig, cases[i].request, cases[i].lie, 1, 0);
                rig_start(&rig);
                assert_int_equal(rig_drive(&rig), 15);
                for (unsigned k = 0; (vhost_frontend_reconnects(rig.frontend) < 1 || b.n_enabled == 0 ||
                                             vhost_frontend_state(rig.frontend) != VHOST_FRONTEND_READY) &&
                             k < 60000;
                     k++)
                        (void) usleep(1000);
                assert_int_equal(vhost_frontend_reconnects(rig.frontend), 1);
                assert_true(b.n_enabled >= 1);
                assert_int_equal(rig_read(&rig, COMMON(STATUS), 1), 15);
                rig_reset(&rig);
                assert_true(b.n_stopped >= 1);
                assert_int_equal(rig_drive(&rig), 15);
                rig_free(&rig);
                backend_end(&b);
                assert_int_equal(open_fds(), fds);
        }
}

static void a_refusal_asks_the_driver_for_a_reset(void **state) {
        static const uint32_t requests[] = { VHOST_USER_SET_MEM_TABLE, VHOST_USER_SET_VRING_ADDR, VHOST_USER_SET_VRING_ENABLE };

        for (size_t i = 0; i < ELEMENTSOF(requests); i++) {
                Backend b;
                Rig rig;

                rig_new(&rig, VIRTIO_ID_BLOCK, 1);
                backend_start(&b, &rig, requests[i], REFUSAL, 1, 0);
                rig_start(&rig);
                assert_int_equal(rig_drive(&rig), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
                assert_int_equal(vhost_frontend_state(rig.frontend), VHOST_FRONTEND_READY);
                assert_int_equal(vhost_frontend_reconnects(rig.frontend), 0);
                b.lie_request = VHOST_USER_NONE;
                assert_int_equal(rig_drive(&rig), 15);
                rig_free(&rig);
                backend_end(&b);
        }
}

static void the_successor_gets_the_log_and_the_place_in_the_ring(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_GET_VRING_BASE, HANG_UP, 1, 0);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(b.base, 0);
        assert_int_equal(b.inflight_sets, 1);

        /* Two requests answered, a third under way, when it goes. */
        for (unsigned i = 0; i < 3; i++)
                rig_submit(&rig, 0, (uint16_t) i, 0x100000, 64);
        rig.queues[0].used->idx = 2;
        (void) eventfd_read(vhost_frontend_queue(rig.frontend, 0)->kick_fd, &(eventfd_t) { 0 });
        b.end = true;
        (void) eventfd_write(b.end_fd, 1);
        assert_int_equal(pthread_join(b.thread, NULL), 0);
        (void) eventfd_read(b.end_fd, &(eventfd_t) { 0 });
        b.end = false;
        assert_int_equal(pthread_create(&b.thread, NULL, backend_thread, &b), 0);

        for (unsigned i = 0; b.n_enabled < 2 && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_int_equal(b.base, 2);
        assert_int_equal(b.inflight_sets, 2);
        assert_int_equal(b.inflight_inode[0], b.inflight_inode[1]);
        /* It is told to look, as its predecessor may have read the kick. */
        assert_int_equal(poll(&(struct pollfd) { .fd = b.kick_fd, .events = POLLIN }, 1, 60000), 1);

        /* A new activation begins with a new log, at the ring's beginning. */
        rig_reset(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(b.base, 0);
        assert_int_equal(b.inflight_sets, 3);
        rig_free(&rig);
        backend_end(&b);
}

/* It hangs up, and its successor is there. */
static void replace_backend(Backend *b) {
        b->end = true;
        (void) eventfd_write(b->end_fd, 1);
        assert_int_equal(pthread_join(b->thread, NULL), 0);
        (void) eventfd_read(b->end_fd, &(eventfd_t) { 0 });
        b->end = false;
        assert_int_equal(pthread_create(&b->thread, NULL, backend_thread, b), 0);
}

static void without_a_log_requests_under_way_are_lost_and_said_to_be(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_GET_PROTOCOL_FEATURES, VALUE, 99, ~(UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD));
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(b.inflight_sets, 0);

        /* All that was asked for is answered: the successor goes on. */
        for (unsigned i = 0; i < 3; i++)
                rig_submit(&rig, 0, (uint16_t) i, 0x100000, 64);
        rig.queues[0].used->idx = 3;
        replace_backend(&b);
        for (unsigned i = 0; b.n_enabled < 2 && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_int_equal(b.base, 3);
        assert_int_equal(rig.n_lost, 0);

        /* One is not: its successor gets no ring, and the machine is told. */
        rig_submit(&rig, 0, 3, 0x100000, 64);
        replace_backend(&b);
        for (unsigned i = 0; rig.n_lost < 1 && i < 60000; i++)
                (void) usleep(1000);
        assert_int_equal(rig.n_lost, 1);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_int_equal(b.n_enabled, 2);

        /* Once the driver has begun anew it is as it was. */
        rig_reset(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(b.n_enabled, 3);
        assert_int_equal(b.base, 0);
        rig_free(&rig);
        backend_end(&b);
}

static void packets_are_taken_up_without_a_log(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_NET, 1);
        backend_start(&b, &rig, VHOST_USER_GET_PROTOCOL_FEATURES, VALUE, 99, ~(UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD));
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        for (unsigned i = 0; i < 3; i++)
                rig_submit(&rig, 0, (uint16_t) i, 0x100000, 64);
        rig.queues[0].used->idx = 1;
        replace_backend(&b);
        for (unsigned i = 0; b.n_enabled < 2 && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_int_equal(b.base, 1);
        assert_int_equal(rig.n_lost, 0);
        rig_free(&rig);
        backend_end(&b);
}

static void a_helper_that_comes_back_as_another_device_fails(void **state) {
        Backend b;
        char *error;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        /* The first session says more than the later ones. */
        backend_start(&b, &rig, VHOST_USER_GET_FEATURES, VALUE, 1, FEATURES | 1 << 5);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        b.end = true;
        (void) eventfd_write(b.end_fd, 1);
        assert_int_equal(pthread_join(b.thread, NULL), 0);
        (void) eventfd_read(b.end_fd, &(eventfd_t) { 0 });
        b.end = false;
        assert_int_equal(pthread_create(&b.thread, NULL, backend_thread, &b), 0);
        rig_expect_state(&rig, VHOST_FRONTEND_FAILED);
        error = vhost_frontend_error(rig.frontend);
        assert_non_null(strstr(error, "0x20"));
        free(error);
        rig_free(&rig);
        backend_end(&b);
}

static void *drive_thread(void *userdata) {
        Rig *rig = userdata;

        if (rig_negotiate(rig, 0) & VIRTIO_CONFIG_S_FEATURES_OK) {
                rig_set_queue(rig, 0);
                rig_write(rig, COMMON(STATUS), 15, 1);
        }
        return NULL;
}

static void who_accepts_and_hangs_up_in_turns_does_not_keep_us_busy(void **state) {
        uint64_t begin = now_usec();
        pthread_t vcpu;
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_SET_FEATURES, HANG_UP, 1000, 0);
        rig_start(&rig);
        assert_int_equal(pthread_create(&vcpu, NULL, drive_thread, &rig), 0);
        for (unsigned i = 0; b.n_sessions < 5 && i < 60000; i++)
                (void) usleep(1000);
        assert_true(b.n_sessions >= 5);
        assert_true(now_usec() - begin >= 3 * 200 * USEC_PER_MSEC);
        vhost_frontend_abort(rig.frontend);
        assert_int_equal(pthread_join(vcpu, NULL), 0);
        rig_free(&rig);
        backend_end(&b);
}

/* --- helpers that never answer: whoever must not wait does not --- */

static void an_abort_ends_every_wait_at_once(void **state) {
        static const struct {
                uint32_t request;
                Lie lie;
        } cases[] = {
                { VHOST_USER_GET_FEATURES, SILENT }, { VHOST_USER_GET_FEATURES, HALF }, { VHOST_USER_GET_CONFIG, DRIP },
                { VHOST_USER_SET_MEM_TABLE, SILENT }, { VHOST_USER_SET_MEM_TABLE, DRIP }, { VHOST_USER_GET_INFLIGHT_FD, HALF },
                { VHOST_USER_SET_VRING_ENABLE, SILENT },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                unsigned fds = open_fds();
                uint64_t begin;
                pthread_t vcpu;
                char *error;
                Backend b;
                Rig rig;

                rig_new(&rig, VIRTIO_ID_BLOCK, 1);
                backend_start(&b, &rig, cases[i].request, cases[i].lie, 100, 0);
                rig_start(&rig);
                assert_int_equal(pthread_create(&vcpu, NULL, drive_thread, &rig), 0);
                (void) usleep(100000);
                /* What the event loop's thread asks, it is told at once. */
                begin = now_usec();
                (void) vhost_frontend_state(rig.frontend);
                (void) vhost_frontend_reconnects(rig.frontend);
                (void) virtio_pci_is_active(rig.virtio);
                virtio_pci_config_changed(rig.virtio);
                virtio_pci_needs_reset(rig.virtio);
                assert_true(now_usec() - begin < HELPER_PATIENCE_USEC);
                vhost_frontend_abort(rig.frontend);
                assert_int_equal(pthread_join(vcpu, NULL), 0);
                assert_true(now_usec() - begin < HELPER_PATIENCE_USEC);
                error = vhost_frontend_error(rig.frontend);
                free(error);
                rig_free(&rig);
                assert_true(now_usec() - begin < HELPER_PATIENCE_USEC);
                backend_end(&b);
                assert_int_equal(open_fds(), fds);
        }
}

static void a_full_queue_of_the_socket_blocks_nobody(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd, waiting[4];
        uint64_t begin;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        strcpy(address.sun_path, rig.path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 0), 0);
        for (size_t i = 0; i < ELEMENTSOF(waiting); i++) {
                waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                (void) connect(waiting[i], (struct sockaddr *) &address, sizeof(address));
        }
        rig_start(&rig);
        (void) usleep(300000);
        assert_int_equal(vhost_frontend_state(rig.frontend), VHOST_FRONTEND_CONNECTING);
        begin = now_usec();
        rig_free(&rig);
        assert_true(now_usec() - begin < HELPER_PATIENCE_USEC);
        for (size_t i = 0; i < ELEMENTSOF(waiting); i++)
                (void) close(waiting[i]);
        (void) close(fd);
}

/* --- configuration --- */

static void tell_config_changed(Backend *b, uint32_t request) {
        VhostUserMsg msg = { .header = { .request = request, .flags = VHOST_USER_FLAG_NEED_REPLY } };

        assert_int_equal(vhost_user_send(b->backend_fd, &msg, NULL, 0), 0);
        assert_int_equal(vhost_user_recv(b->backend_fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.payload.u64, request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG ? 0 : 1);
}

static void a_change_of_configuration_reaches_the_driver(void **state) {
        uint32_t generation;
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, 0, HONEST, 0, 0);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x11111111);
        generation = rig_read(&rig, COMMON(CFGGENERATION), 1);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        (void) usleep(50000); /* the loop watches the channel now */

        /* Told, but not changed: the generation stays. */
        tell_config_changed(&b, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        assert_int_equal(rig.n_config, 1);
        assert_int_equal(rig_read(&rig, RIG_ISR, 1), 2);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x11111111);
        assert_int_equal(rig_read(&rig, COMMON(CFGGENERATION), 1), generation);

        b.config_byte = 0x22;
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x11111111);
        tell_config_changed(&b, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x22222222);
        assert_int_equal(rig_read(&rig, COMMON(CFGGENERATION), 1), (generation + 1) & 0xFF);

        tell_config_changed(&b, VHOST_USER_BACKEND_VRING_ERR); /* not one of ours */
        assert_int_equal(rig.n_config, 2);
        /* Nonsense on that channel ends it, and nothing else. */
        assert_int_equal(write(b.backend_fd, "nonsense, nonsense, nonsense", 28), 28);
        (void) usleep(50000);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x22222222);
        assert_int_equal(vhost_frontend_state(rig.frontend), VHOST_FRONTEND_READY);
        rig_free(&rig);
        backend_end(&b);
}

/* The helper is not asked for what is ours to know, and cannot change it; nor can the driver. */
static void expect_forgotten(Backend *b) {
        for (unsigned i = 0; b->driver_byte != 0 && i < 60000; i++)
                (void) usleep(1000);
        assert_int_equal(b->driver_byte, 0);
}

/* A balloon's poison, say, is written before DRIVER_OK. It goes with the driver, also where that never got so far, and also where the helper was away meanwhile. */
static void what_a_driver_has_written_is_there_until_its_reset(void **state) {
        uint32_t status;
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, 0, HONEST, 0, 0);
        rig_start(&rig);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        for (unsigned i = 0; i < 2; i++) {
                status = rig_negotiate(&rig, 0);
                rig_write(&rig, RIG_DEVICE, 0x5a, 1);
                assert_int_equal(b.driver_byte, 0x5a);
                rig_set_queue(&rig, 0);
                rig_write(&rig, COMMON(STATUS), status | VIRTIO_CONFIG_S_DRIVER_OK, 1);
                assert_int_equal(rig_read(&rig, COMMON(STATUS), 1), 15);
                assert_int_equal(b.driver_byte, 0x5a);
                rig_reset(&rig);
                expect_forgotten(&b);
        }
        rig_write(&rig, RIG_DEVICE, 0x5a, 1);
        rig_reset(&rig);
        expect_forgotten(&b);

        b.driver_byte = 0x5a; /* of before, kept by the helper's unit */
        replace_backend(&b);
        expect_forgotten(&b);
        rig_free(&rig);
        backend_end(&b);
}

static void configuration_of_our_own_is_nobody_elses(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_PMEM, 1);
        vhost_frontend_set_config(rig.frontend, "abcdefgh12345678", 16);
        backend_start(&b, &rig, VHOST_USER_GET_CONFIG, SILENT, 100, 0);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x64636261);
        assert_int_equal(rig_read(&rig, RIG_DEVICE + 12, 4), 0x38373635);
        assert_int_equal(vhost_frontend_config_write(rig.frontend, 0, "x", 1), -EINVAL);
        assert_int_equal(rig_read(&rig, RIG_DEVICE, 4), 0x64636261);
        rig_free(&rig);
        backend_end(&b);
}

/* --- suspended for a while --- */

static void a_suspended_ring_goes_on_where_it_was(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        /* vhost_vring_state: index 0, and 7 entries taken. */
        backend_start(&b, &rig, VHOST_USER_GET_VRING_BASE, VALUE, 100, UINT64_C(7) << 32);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(b.base, 0);
        vhost_frontend_suspend(rig.frontend);
        vhost_frontend_suspend(rig.frontend);
        assert_int_equal(b.n_stopped, 1);
        vhost_frontend_resume(rig.frontend);
        for (unsigned i = 0; b.base != 7 && i < 60000; i++)
                (void) usleep(1000);
        assert_int_equal(b.base, 7);
        assert_int_equal(rig_read(&rig, COMMON(STATUS), 1), 15);
        vhost_frontend_resume(rig.frontend); /* which changes nothing */
        rig_reset(&rig);
        assert_int_equal(b.n_stopped, 2);
        rig_free(&rig);
        backend_end(&b);
}

static void a_suspended_helper_takes_nothing_and_then_everything(void **state) {
        struct vring_used_elem used;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        for (uint16_t i = 0; i < 40; i++) {
                uint16_t descriptor = i % RIG_QUEUE_SIZE;

                vhost_frontend_suspend(rig.frontend);
                rig_submit(&rig, 0, descriptor, 0x200000, 64);
                assert_false(rig_used(&rig, 0, 20, &used));
                vhost_frontend_resume(rig.frontend);
                assert_true(rig_used(&rig, 0, 60000, &used));
                assert_int_equal(used.id, descriptor);
                assert_int_equal(used.len, 64);
        }
        /* Nothing came twice. */
        assert_false(rig_used(&rig, 0, 50, &used));
        rig_free(&rig);
}

static void a_successor_of_a_suspended_helper_waits_too(void **state) {
        struct vring_used_elem used;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        rig_submit(&rig, 0, 0, 0x200000, 64);
        assert_true(rig_used(&rig, 0, 60000, &used));
        vhost_frontend_suspend(rig.frontend);
        rig_kill(&rig);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        for (unsigned i = 0; vhost_frontend_reconnects(rig.frontend) < 1 && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        rig_submit(&rig, 0, 1, 0x200000, 64);
        assert_false(rig_used(&rig, 0, 100, &used));
        vhost_frontend_resume(rig.frontend);
        assert_true(rig_used(&rig, 0, 60000, &used));
        assert_int_equal(used.id, 1);
        assert_false(rig_used(&rig, 0, 50, &used));

        /* A driver's reset ends it all the same. */
        vhost_frontend_suspend(rig.frontend);
        rig_reset(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        rig_submit(&rig, 0, 0, 0x200000, 64);
        assert_true(rig_used(&rig, 0, 60000, &used));
        rig_free(&rig);
}

/* The first session says more than the second, at which the device fails; the third one is as good as the first. */
static void let_it_fail(Rig *rig, Backend *b) {
        replace_backend(b);
        rig_expect_state(rig, VHOST_FRONTEND_FAILED);
        assert_int_equal(b->n_enabled, 1);
}

static void bring_it_back(Rig *rig, Backend *b) {
        b->lie_times = 3;
        assert_int_equal(vhost_frontend_retry(rig->frontend), 0);
        rig_expect_state(rig, VHOST_FRONTEND_READY);
}

static void one_that_failed_and_comes_back_while_all_are_suspended_waits_with_them(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_GET_FEATURES, VALUE, 1, FEATURES | 1 << 5);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        let_it_fail(&rig, &b);
        vhost_frontend_suspend(rig.frontend);
        bring_it_back(&rig, &b);
        /* An answer by which all that came before it is known to have been taken. */
        rig_read(&rig, RIG_DEVICE, 1);
        assert_int_equal(b.n_enabled, 1);
        vhost_frontend_resume(rig.frontend);
        assert_int_equal(b.n_enabled, 2);
        rig_free(&rig);
        backend_end(&b);
}

static void one_that_failed_while_it_was_suspended_gets_its_rings_when_it_comes_back(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_GET_FEATURES, VALUE, 1, FEATURES | 1 << 5);
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        vhost_frontend_suspend(rig.frontend);
        assert_int_equal(b.n_stopped, 1);
        let_it_fail(&rig, &b);
        vhost_frontend_resume(rig.frontend);
        bring_it_back(&rig, &b);
        assert_int_equal(b.n_enabled, 2);
        rig_free(&rig);
        backend_end(&b);
}

/* One that dies while it is being stopped, with a request under way, and keeps no log of them. */
static void what_is_lost_while_it_is_being_suspended_is_told_when_it_is_resumed(void **state) {
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_BLOCK, 1);
        backend_start(&b, &rig, VHOST_USER_GET_PROTOCOL_FEATURES, VALUE, 99, ~(UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD));
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        rig_submit(&rig, 0, 0, 0x100000, 64);
        b.hang_up_at = VHOST_USER_GET_VRING_BASE;
        vhost_frontend_suspend(rig.frontend);
        for (unsigned i = 0; vhost_frontend_reconnects(rig.frontend) < 1 && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_int_equal(rig.n_lost, 0);
        vhost_frontend_resume(rig.frontend);
        for (unsigned i = 0; rig.n_lost < 1 && i < 60000; i++)
                (void) usleep(1000);
        assert_int_equal(rig.n_lost, 1);
        assert_int_equal(b.n_enabled, 1);
        rig_free(&rig);
        backend_end(&b);
}

/* --- snapshots --- */

static void replace_helper(Rig *rig) {
        unsigned before = vhost_frontend_reconnects(rig->frontend);

        rig_kill(rig);
        rig_spawn(rig, (const char *const[]) { "rng", NULL });
        for (unsigned i = 0; vhost_frontend_reconnects(rig->frontend) == before && i < 60000; i++)
                (void) usleep(1000);
        rig_expect_state(rig, VHOST_FRONTEND_READY);
}

static void another_helper_goes_on_where_the_snapshot_was_taken(void **state) {
        struct vring_used_elem used;
        VhostSnapshot snapshot;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        for (uint16_t i = 0; i < 5; i++) {
                rig_submit(&rig, 0, i, 0x200000, 64);
                assert_true(rig_used(&rig, 0, 60000, &used));
        }
        vhost_frontend_suspend(rig.frontend);
        rig_submit(&rig, 0, 5, 0x200000, 64);
        assert_true(vhost_frontend_can_save(rig.frontend));
        assert_int_equal(vhost_frontend_save(rig.frontend, &snapshot, NULL), 0);
        assert_true(snapshot.active);
        assert_int_equal(snapshot.bases[0], 5);
        assert_true(snapshot.state_size > 0);

        replace_helper(&rig);
        assert_int_equal(vhost_frontend_restore(rig.frontend, &snapshot, NULL), 0);
        assert_int_equal(vhost_frontend_restored(rig.frontend, &snapshot), 0);
        assert_false(rig_used(&rig, 0, 100, &used));
        vhost_frontend_release(rig.frontend);
        vhost_frontend_resume(rig.frontend);
        assert_true(rig_used(&rig, 0, 60000, &used));
        assert_int_equal(used.id, 5);
        assert_false(rig_used(&rig, 0, 50, &used));
        free(snapshot.state);
        rig_free(&rig);
}

/* A helper died with chains that its successor had not come to when it was suspended: only the log has them. */
static void what_a_dead_helper_had_taken_is_in_the_snapshot(void **state) {
        VhostActivation a = { .n_queues = 1, .inflight_fd = memfd_create("log", MFD_CLOEXEC), .queues[0] = { .enabled = true, .size = 8 } };
        _cleanup_(vhost_snapshot_done) VhostSnapshot snapshot = {};
        _cleanup_free_ QueueRegionSplit *log = calloc(1, 4096);
        struct vring_used_elem used;
        Rig rig;

        assert_non_null(log);
        assert_int_equal(queue_region_fill(log, 8, 3, (const uint16_t[]) { 7, 2 }, 2), 0);
        assert_int_equal(pwrite(a.inflight_fd, log, 4096, 0), 4096);
        a.inflight = (VhostUserInflight) { .mmap_size = 4096, .num_queues = 1, .queue_size = 8 };
        assert_int_equal(vhost_in_flight_read(&a, &snapshot.in_flight), 0);
        assert_int_equal(snapshot.in_flight.n[0], 2);
        assert_int_equal(snapshot.in_flight.heads[0][0], 7);
        assert_int_equal(snapshot.in_flight.heads[0][1], 2);
        /* A helper that makes its log shorter harms itself. */
        assert_int_equal(ftruncate(a.inflight_fd, 32), 0);
        assert_true(vhost_in_flight_read(&a, &(VhostInFlight) {}) < 0);
        (void) close(a.inflight_fd);
        vhost_snapshot_done(&snapshot);

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        rig_submit(&rig, 0, 0, 0x200000, 64);
        assert_true(rig_used(&rig, 0, 60000, &used));
        vhost_frontend_suspend(rig.frontend);
        for (uint16_t i = 1; i < 4; i++)
                rig_submit(&rig, 0, i, 0x200000, 64);
        assert_int_equal(vhost_frontend_save(rig.frontend, &snapshot, NULL), 0);
        assert_int_equal(snapshot.in_flight.n[0], 0);
        /* As if two of them had been taken, the second one first. */
        snapshot.bases[0] = 3;
        snapshot.in_flight.n[0] = 2;
        snapshot.in_flight.heads[0] = calloc(2, sizeof(uint16_t));
        assert_non_null(snapshot.in_flight.heads[0]);
        snapshot.in_flight.heads[0][0] = 2;
        snapshot.in_flight.heads[0][1] = RIG_QUEUE_SIZE;
        replace_helper(&rig);
        assert_int_equal(vhost_frontend_restore(rig.frontend, &snapshot, NULL), 0);
        assert_int_equal(vhost_frontend_restored(rig.frontend, &snapshot), -EINVAL); /* no such chain */
        snapshot.in_flight.heads[0][1] = 1;
        assert_int_equal(vhost_frontend_restored(rig.frontend, &snapshot), 0);
        vhost_frontend_release(rig.frontend);
        vhost_frontend_resume(rig.frontend);
        for (unsigned i = 0; i < 3; i++) {
                static const uint32_t order[] = { 2, 1, 3 };

                assert_true(rig_used(&rig, 0, 60000, &used));
                assert_int_equal(used.id, order[i]);
        }
        assert_false(rig_used(&rig, 0, 50, &used));
        rig_free(&rig);
}

static void a_driver_that_comes_before_its_memory_waits(void **state) {
        struct vring_used_elem used;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        vhost_frontend_hold(rig.frontend);
        rig_start(&rig);
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(rig_drive(&rig), 15);
                rig_submit(&rig, 0, 1, 0x200000, 64);
                assert_false(rig_used(&rig, 0, 50, &used));
        }
        vhost_frontend_release(rig.frontend);
        vhost_frontend_resume(rig.frontend);
        assert_true(rig_used(&rig, 0, 60000, &used));
        assert_int_equal(used.id, 1);
        rig_free(&rig);
}

static void expect_refusal(Rig *rig, const VhostSnapshot *snapshot, int error, const char *word) {
        char *message = NULL;
        int r;

        r = vhost_frontend_restore(rig->frontend, snapshot, &message);
        if (r != error || !message || !strstr(message, word))
                fail_msg("%d, %s; expected %d, %s", r, message ?: "nothing", error, word);
        free(message);
}

static void what_does_not_fit_is_refused(void **state) {
        VhostSnapshot snapshot, other;
        Backend b;
        Rig rig;

        rig_new(&rig, VIRTIO_ID_RNG, 1);
        rig_spawn(&rig, (const char *const[]) { "rng", NULL });
        rig_start(&rig);
        assert_int_equal(rig_drive(&rig), 15);
        assert_int_equal(vhost_frontend_save(rig.frontend, &snapshot, NULL), -EAGAIN); /* it is at work */
        vhost_frontend_suspend(rig.frontend);
        assert_int_equal(vhost_frontend_save(rig.frontend, &snapshot, NULL), 0);
        other = snapshot;
        other.n_queues = 2;
        expect_refusal(&rig, &other, -EXDEV, "2 queues");
        other = snapshot;
        other.features |= UINT64_C(1) << 50;
        expect_refusal(&rig, &other, -EXDEV, "0x4000000000000");
        other = snapshot;
        other.state_size--;
        expect_refusal(&rig, &other, -EREMOTEIO, "journal");
        assert_int_equal(vhost_frontend_restore(rig.frontend, &snapshot, NULL), 0);
        rig_free(&rig);

        /* A back-end that has no way to tell. */
        rig_new(&rig, VIRTIO_ID_RNG, 1);
        backend_start(&b, &rig, VHOST_USER_GET_PROTOCOL_FEATURES, VALUE, 100, UINT64_C(1) << VHOST_USER_PROTOCOL_F_REPLY_ACK);
        rig_start(&rig);
        rig_expect_state(&rig, VHOST_FRONTEND_READY);
        assert_false(vhost_frontend_can_save(rig.frontend));
        other = snapshot;
        other.features = 0; /* it has others */
        expect_refusal(&rig, &other, -EOPNOTSUPP, "of a kind that cannot");
        free(snapshot.state);
        rig_free(&rig);
        backend_end(&b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(what_does_not_fit_is_refused),
                cmocka_unit_test(another_helper_goes_on_where_the_snapshot_was_taken),
                cmocka_unit_test(what_a_dead_helper_had_taken_is_in_the_snapshot),
                cmocka_unit_test(a_driver_that_comes_before_its_memory_waits),
                cmocka_unit_test(fails_with_a_reason),
                cmocka_unit_test(no_socket_is_a_failure_at_once),
                cmocka_unit_test(harmless_lies_are_survived),
                cmocka_unit_test(a_refusal_asks_the_driver_for_a_reset),
                cmocka_unit_test(without_a_log_requests_under_way_are_lost_and_said_to_be),
                cmocka_unit_test(packets_are_taken_up_without_a_log),
                cmocka_unit_test(a_helper_that_comes_back_as_another_device_fails),
                cmocka_unit_test(who_accepts_and_hangs_up_in_turns_does_not_keep_us_busy),
                cmocka_unit_test(an_abort_ends_every_wait_at_once),
                cmocka_unit_test(a_full_queue_of_the_socket_blocks_nobody),
                cmocka_unit_test(a_session_that_breaks_at_driver_ok_is_made_anew),
                cmocka_unit_test(the_successor_gets_the_log_and_the_place_in_the_ring),
                cmocka_unit_test(a_change_of_configuration_reaches_the_driver),
                cmocka_unit_test(what_a_driver_has_written_is_there_until_its_reset),
                cmocka_unit_test(configuration_of_our_own_is_nobody_elses),
                cmocka_unit_test(a_suspended_ring_goes_on_where_it_was),
                cmocka_unit_test(a_suspended_helper_takes_nothing_and_then_everything),
                cmocka_unit_test(a_successor_of_a_suspended_helper_waits_too),
                cmocka_unit_test(one_that_failed_and_comes_back_while_all_are_suspended_waits_with_them),
                cmocka_unit_test(one_that_failed_while_it_was_suspended_gets_its_rings_when_it_comes_back),
                cmocka_unit_test(what_is_lost_while_it_is_being_suspended_is_told_when_it_is_resumed),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
