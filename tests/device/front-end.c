/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "front-end.h"

#define ARGUMENTS_MAX 40
#define PASSED_MAX 8U

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);    \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

int fe_patience = 60000;

/* As a service manager passes them: the first descriptors behind the standard ones, with their names in the environment. */
static void pass(const char *names, const int *fds, size_t n) {
        char pid[32], count[32];
        int safe[PASSED_MAX];

        must(n <= PASSED_MAX);
        for (size_t i = 0; i < n; i++) {
                safe[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 20); /* out of the way of each other */
                must(safe[i] >= 0);
        }
        for (size_t i = 0; i < n; i++)
                must(dup2(safe[i], 3 + (int) i) == 3 + (int) i);
        (void) snprintf(pid, sizeof(pid), "%d", (int) getpid());
        (void) snprintf(count, sizeof(count), "%zu", n);
        must(setenv("LISTEN_PID", pid, 1) == 0 && setenv("LISTEN_FDS", count, 1) == 0 && setenv("LISTEN_FDNAMES", names, 1) == 0);
}

static _noreturn_ void execute(const char *const *arguments, int fd) {
        const char *program = getenv("VMM_DEVICE"), *argv[ARGUMENTS_MAX];
        char text[32];
        size_t n = 0;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        must(program);
        argv[n++] = program;
        for (; *arguments && n < ARGUMENTS_MAX - 2; arguments++)
                argv[n++] = *arguments;
        if (fd >= 0) {
                (void) snprintf(text, sizeof(text), "--fd=%d", fd);
                argv[n++] = text;
                must(fcntl(fd, F_SETFD, 0) == 0);
        }
        argv[n] = NULL;
        (void) execv(program, (char *const *) argv);
        _exit(127);
}

void fe_spawn(FrontEnd *f, const char *const *arguments) {
        fe_spawn_passing(f, arguments, NULL, -EBADF);
}

static void make_memory(FrontEnd *f) {
        f->ram_fd = guest_memory_create_fd(FE_RAM_SIZE, 0);
        must(f->ram_fd >= 0);
        f->ram = mmap(NULL, FE_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->ram_fd, 0);
        must(f->ram != MAP_FAILED);
        for (unsigned i = 0; i < FE_QUEUES_MAX; i++)
                f->queues[i].kick = f->queues[i].call = f->queues[i].err = -EBADF;
}

void fe_connect(FrontEnd *f, const char *path, pid_t pid) {
        *f = (FrontEnd) { .pid = pid, .ram_fd = -EBADF, .backend_fd = -EBADF, .fd = connect_unix(path) };
        must(f->fd >= 0);
        make_memory(f);
}

void fe_spawn_passing(FrontEnd *f, const char *const *arguments, const char *name, int passed) {
        fe_spawn_passing_many(f, arguments, name, &passed, passed >= 0);
}

void fe_spawn_passing_many(FrontEnd *f, const char *const *arguments, const char *names, const int *passed, size_t n_passed) {
        int pair[2];

        *f = (FrontEnd) { .ram_fd = -EBADF, .backend_fd = -EBADF };
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        f->pid = fork();
        must(f->pid >= 0);
        if (f->pid == 0) {
                int fd = fcntl(pair[1], F_DUPFD_CLOEXEC, 3 + (int) PASSED_MAX);
                must(fd >= 0);
                if (n_passed > 0)
                        pass(names, passed, n_passed);
                execute(arguments, fd);
        }
        (void) close(pair[1]);
        f->fd = pair[0];
        make_memory(f);
}

int fe_spawn_failing(const char *const *arguments, char *text, size_t size) {
        size_t have = 0;
        int p[2], status;
        ssize_t n;
        pid_t pid;

        must(pipe2(p, O_CLOEXEC) == 0);
        pid = fork();
        must(pid >= 0);
        if (pid == 0) {
                must(dup2(p[1], STDERR_FILENO) >= 0);
                execute(arguments, -EBADF);
        }
        (void) close(p[1]);
        while (have + 1 < size && (n = read(p[0], text + have, size - have - 1)) > 0)
                have += (size_t) n;
        text[have] = 0;
        (void) close(p[0]);
        must(waitpid(pid, &status, 0) == pid);
        must(WIFEXITED(status));
        return WEXITSTATUS(status);
}

void fe_end(FrontEnd *f) {
        int status;

        f->fd = safe_close(f->fd);
        must(waitpid(f->pid, &status, 0) == f->pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                fprintf(stderr, "# the helper ended with status 0x%x\n", (unsigned) status);
                abort();
        }
        fe_disconnect(f);
}

void fe_disconnect(FrontEnd *f) {
        f->fd = safe_close(f->fd);
        for (unsigned i = 0; i < FE_QUEUES_MAX; i++) {
                (void) safe_close(f->queues[i].kick);
                (void) safe_close(f->queues[i].call);
                (void) safe_close(f->queues[i].err);
        }
        (void) munmap(f->ram, FE_RAM_SIZE);
        f->ram_fd = safe_close(f->ram_fd);
        f->backend_fd = safe_close(f->backend_fd);
}

bool fe_alive(FrontEnd *f) {
        return waitpid(f->pid, NULL, WNOHANG) == 0;
}

static void send_flags(FrontEnd *f, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
        size_t n_fds) {
        VhostUserMsg msg = { .header = { .request = request, .flags = flags, .size = size } };

        must(size <= sizeof(msg.payload));
        if (size > 0)
                memcpy(&msg.payload, payload, size);
        must(vhost_user_send(f->fd, &msg, fds, n_fds) == 0);
}

void fe_send(FrontEnd *f, uint32_t request, const void *payload, uint32_t size, const int *fds, size_t n_fds) {
        send_flags(f, request, 0, payload, size, fds, n_fds);
}

static VhostUserMsg receive(FrontEnd *f, uint32_t request) {
        struct pollfd p = { .fd = f->fd, .events = POLLIN };
        VhostUserMsg msg;

        must(poll(&p, 1, fe_patience) == 1);
        must(vhost_user_recv(f->fd, &msg, NULL, NULL) == 0);
        must(msg.header.request == request && (msg.header.flags & VHOST_USER_FLAG_REPLY));
        return msg;
}

uint64_t fe_get_u64(FrontEnd *f, uint32_t request) {
        fe_send(f, request, NULL, 0, NULL, 0);
        VhostUserMsg msg = receive(f, request);
        must(msg.header.size == sizeof(uint64_t));
        return msg.payload.u64;
}

void fe_set_u64(FrontEnd *f, uint32_t request, uint64_t value) {
        fe_send(f, request, &value, sizeof(value), NULL, 0);
}

void fe_set_state(FrontEnd *f, uint32_t request, uint32_t index, uint32_t num) {
        struct vhost_vring_state state = { .index = index, .num = num };

        fe_send(f, request, &state, sizeof(state), NULL, 0);
}

uint64_t fe_acknowledged(FrontEnd *f, uint32_t request, const void *payload, uint32_t size, const int *fds, size_t n_fds) {
        send_flags(f, request, VHOST_USER_FLAG_NEED_REPLY, payload, size, fds, n_fds);
        return receive(f, request).payload.u64;
}

void fe_get_config(FrontEnd *f, void *ret, uint32_t size) {
        VhostUserMsg msg = { .payload.config.size = size };

        fe_send(f, VHOST_USER_GET_CONFIG, &msg.payload, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0);
        msg = receive(f, VHOST_USER_GET_CONFIG);
        must(msg.payload.config.size == size);
        memcpy(ret, msg.payload.config.region, size);
}

uint64_t fe_set_config(FrontEnd *f, uint32_t offset, const void *data, uint32_t size) {
        VhostUserConfig config = { .offset = offset, .size = size, .flags = VHOST_USER_CONFIG_WRITABLE };

        memcpy(config.region, data, size);
        return fe_acknowledged(f, VHOST_USER_SET_CONFIG, &config, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0);
}

bool fe_config_changed(FrontEnd *f, int timeout_ms) {
        struct pollfd p = { .fd = f->backend_fd, .events = POLLIN };
        VhostUserMsg msg;

        if (poll(&p, 1, timeout_ms) != 1)
                return false;
        must(vhost_user_recv(f->backend_fd, &msg, NULL, NULL) == 0);
        must(msg.header.request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
        return true;
}

void fe_expect_hang_up(FrontEnd *f) {
        struct pollfd p = { .fd = f->fd, .events = POLLIN };
        VhostUserMsg msg;
        int r;

        must(poll(&p, 1, fe_patience) == 1);
        r = vhost_user_recv(f->fd, &msg, NULL, NULL);
        must(r == -ENODATA || r == -ECONNRESET);
}

void fe_negotiate(FrontEnd *f, uint64_t without) {
        fe_negotiate_some(f, without, UINT64_MAX);
}

void fe_negotiate_some(FrontEnd *f, uint64_t without, uint64_t protocol) {
        int pair[2];

        f->features = fe_get_u64(f, VHOST_USER_GET_FEATURES) & ~without;
        must(f->features & (UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES));
        f->protocol_features = fe_get_u64(f, VHOST_USER_GET_PROTOCOL_FEATURES) & protocol;
        fe_set_u64(f, VHOST_USER_SET_PROTOCOL_FEATURES, f->protocol_features);
        fe_send(f, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
        fe_set_u64(f, VHOST_USER_SET_FEATURES, f->features);

        if (!(f->protocol_features & (UINT64_C(1) << VHOST_USER_PROTOCOL_F_BACKEND_REQ)))
                return;
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        must(fe_acknowledged(f, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1) == 0);
        (void) close(pair[1]);
        f->backend_fd = pair[0];
}

void fe_share_inflight(FrontEnd *f, uint16_t n_queues, uint16_t num) {
        VhostUserMsg msg = { .payload.inflight = { .num_queues = n_queues, .queue_size = num } };
        int fds[VHOST_USER_FDS_MAX];
        size_t n_fds = ELEMENTSOF(fds);

        fe_send(f, VHOST_USER_GET_INFLIGHT_FD, &msg.payload, sizeof(msg.payload.inflight), NULL, 0);
        must(vhost_user_recv(f->fd, &msg, fds, &n_fds) == 0 && n_fds == 1);
        fe_send(f, VHOST_USER_SET_INFLIGHT_FD, &msg.payload, sizeof(msg.payload.inflight), fds, 1);
        (void) close(fds[0]);
}

void fe_set_mem_table(FrontEnd *f) {
        VhostUserMemory table = {
                .nregions = 1,
                .regions = { { FE_GUEST_BASE, FE_RAM_SIZE, FE_USER_BASE, 0 } },
        };

        must(fe_acknowledged(f, VHOST_USER_SET_MEM_TABLE, &table, offsetof(VhostUserMemory, regions[1]), &f->ram_fd, 1) == 0);
}

static uint64_t user_address(FrontEnd *f, const void *p) {
        return FE_USER_BASE + (uint64_t) ((const uint8_t *) p - f->ram);
}

static int new_eventfd(int *slot) {
        (void) safe_close(*slot);
        *slot = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        must(*slot >= 0);
        return *slot;
}

void fe_send_queue(FrontEnd *f, unsigned index, uint16_t base) {
        FrontEndQueue *q = &f->queues[index];
        struct vhost_vring_addr address = {
                .index = index,
                .desc_user_addr = user_address(f, q->desc),
                .avail_user_addr = user_address(f, q->avail),
                .used_user_addr = user_address(f, q->used),
        };
        uint64_t payload = index;

        fe_set_state(f, VHOST_USER_SET_VRING_NUM, index, q->num);
        fe_set_state(f, VHOST_USER_SET_VRING_BASE, index, base);
        fe_send(f, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0);
        fe_send(f, VHOST_USER_SET_VRING_ERR, &payload, sizeof(payload), (int[]) { new_eventfd(&q->err) }, 1);
        fe_send(f, VHOST_USER_SET_VRING_CALL, &payload, sizeof(payload), (int[]) { new_eventfd(&q->call) }, 1);
        fe_send(f, VHOST_USER_SET_VRING_KICK, &payload, sizeof(payload), (int[]) { new_eventfd(&q->kick) }, 1);
        fe_set_state(f, VHOST_USER_SET_VRING_ENABLE, index, 1);
}

void fe_lay_out_queue(FrontEnd *f, unsigned index, uint16_t num) {
        FrontEndQueue *q = &f->queues[index];
        uint8_t *base = f->ram + index * KIB(64);

        memset(base, 0, KIB(64));
        q->num = num;
        q->desc = (struct vring_desc *) (void *) base;
        q->avail = (struct vring_avail *) (void *) (base + KIB(32));
        q->used = (struct vring_used *) (void *) (base + KIB(40));
        q->avail_idx = q->used_idx = 0;
}

void fe_start_queue(FrontEnd *f, unsigned index, uint16_t num) {
        fe_lay_out_queue(f, index, num);
        fe_send_queue(f, index, 0);
}

uint32_t fe_stop_queue(FrontEnd *f, unsigned index) {
        fe_set_state(f, VHOST_USER_GET_VRING_BASE, index, 0);
        return receive(f, VHOST_USER_GET_VRING_BASE).payload.state.num;
}

void fe_start(FrontEnd *f, const char *const *arguments, unsigned n_queues, uint16_t num) {
        fe_spawn(f, arguments);
        fe_negotiate(f, 0);
        fe_set_mem_table(f);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(f, i, num);
}

void fe_desc(FrontEnd *f, unsigned queue, uint16_t i, uint64_t address, uint32_t length, uint16_t flags, uint16_t next) {
        f->queues[queue].desc[i] = (struct vring_desc) { .addr = address, .len = length, .flags = flags, .next = next };
}

void fe_offer(FrontEnd *f, unsigned queue, uint16_t head) {
        FrontEndQueue *q = &f->queues[queue];

        q->avail->ring[q->avail_idx % q->num] = head;
        __atomic_store_n(&q->avail->idx, ++q->avail_idx, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void fe_kick(FrontEnd *f, unsigned queue) {
        must(write(f->queues[queue].kick, &(const uint64_t) { 1 }, sizeof(uint64_t)) == sizeof(uint64_t));
}

uint64_t fe_eventfd(int fd, int timeout_ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        uint64_t count = 0;

        if (poll(&p, 1, timeout_ms) == 1)
                must(read(fd, &count, sizeof(count)) == sizeof(count));
        return count;
}

bool fe_used(FrontEnd *f, unsigned queue, int timeout_ms, struct vring_used_elem *ret) {
        FrontEndQueue *q = &f->queues[queue];
        uint64_t end = now_usec() + (uint64_t) timeout_ms * USEC_PER_MSEC;

        /* As a driver does it: ask for a signal for the next one, look, wait. */
        q->avail->ring[q->num] = q->used_idx;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        while (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->used_idx) {
                uint64_t now = now_usec();
                if (now >= end)
                        return false;
                (void) fe_eventfd(q->call, (int) MIN((end - now) / USEC_PER_MSEC + 1, UINT64_C(1000)));
        }
        *ret = q->used->ring[q->used_idx++ % q->num];
        return true;
}

struct vring_used_elem fe_wait(FrontEnd *f, unsigned queue) {
        struct vring_used_elem e = {};

        must(fe_used(f, queue, fe_patience, &e));
        return e;
}

const char *fe_call(const char *path, const char *text, int fd) {
        static char reply[8192];
        _cleanup_close_ int socket = -EBADF;
        size_t have = 0;

        for (unsigned i = 0; i < 6000 && socket < 0; i++) {
                socket = connect_unix(path);
                if (socket < 0)
                        (void) usleep(10000);
        }
        must(socket >= 0);
        must(send_with_fds(socket, text, strlen(text) + 1, &fd, fd >= 0 ? 1 : 0) == (ssize_t) strlen(text) + 1);
        do {
                struct pollfd p = { .fd = socket, .events = POLLIN };

                must(have < sizeof(reply) && poll(&p, 1, fe_patience) == 1);
                must(read(socket, reply + have, 1) == 1);
        } while (reply[have++] != 0);
        return reply;
}

void fe_expect_broken(FrontEnd *f, unsigned queue) {
        must(fe_eventfd(f->queues[queue].err, fe_patience) > 0);
        must(fe_get_u64(f, VHOST_USER_GET_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
        must(fe_alive(f));
}
