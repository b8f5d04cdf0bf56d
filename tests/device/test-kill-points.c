/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A disk's helper that is killed at one point after the other: before and after each of its system calls, and some instructions further on, while vmmd's
 * front-end, a driver and its requests have it go through all that there is in a session. Its successor, and whoever comes after that one
 * when it is killed in its turn, must go on so that each request is done, once, and well.
 *
 *     test-kill-points [POINTS [FIRST]]     at so many points of all there are, evenly; 0: at each */

#include <fcntl.h>
#include <limits.h>
#include <linux/virtio_blk.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "manager.h"
#include "virtio-rig.h"

#define POINTS 60
#define N_SLOTS 5 /* three descriptors each */
#define DATA KIB(8)
#define BUFFERS MIB(1)
#define DISK_SIZE MIB(1)
#define PATIENCE_MSEC 60000
#define NEVER UINT_MAX

/* When whoever lives is killed: at which stop of the first one, counted once its session stands, and of the second one, counted from its beginning; and how many
 * instructions later. */
typedef struct Plan {
        unsigned first, second, steps;
} Plan;

typedef struct Run {
        Plan plan;
        Manager manager;
        Rig rig;
        pthread_t tracer;
        _Atomic pid_t pid;
        atomic_bool armed, ending, ended;
        unsigned n_stops[2], n_deaths;
        uint32_t round[N_SLOTS];
        int disk;
} Run;

static Run run;

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        (void) fprintf(stderr, "# %s:%d: %s (errno %d), killed at %u, %u, +%u; %u deaths so far\n", __FILE__, __LINE__, #condition, errno,  \
                                run.plan.first, run.plan.second, run.plan.steps, run.n_deaths);                \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

/* ---- who kills ---- */

/* Lets it go on until it stops. False where it has ended, which is only for the end. */
static bool go_on(pid_t pid, int request, int *signal) {
        int status;

        must(ptrace(request, pid, NULL, (void *) (intptr_t) *signal) == 0);
        *signal = 0;
        must(waitpid(pid, &status, 0) == pid);
        if (WIFSTOPPED(status)) {
                /* Signals are passed on. */
                if (WSTOPSIG(status) != (SIGTRAP | 0x80) && WSTOPSIG(status) != SIGTRAP)
                        *signal = WSTOPSIG(status);
                return true;
        }
        must(run.ending && (WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGTERM));
        return false;
}

/* One life. False where it ended well. */
static bool live(unsigned life) {
        unsigned limit = life == 0 ? run.plan.first : life == 1 ? run.plan.second : NEVER, n = 0;
        pid_t pid = manager_start_traced(&run.manager);
        int status, signal = 0;

        must(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        must(ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *) (PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC)) == 0);
        must(go_on(pid, PTRACE_CONT, &signal)); /* it has become the helper */
        run.pid = pid;
        while (n < limit) {
                if (!go_on(pid, life < 2 ? PTRACE_SYSCALL : PTRACE_CONT, &signal))
                        return false;
                if (signal == 0 && (life > 0 || run.armed))
                        n++;
                if (life < 2)
                        run.n_stops[life] = n;
        }
        for (unsigned i = 0; i < run.plan.steps; i++)
                if (!go_on(pid, PTRACE_SINGLESTEP, &signal))
                        return false;
        run.pid = 0;
        must(kill(pid, SIGKILL) == 0);
        must(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
        run.n_deaths++;
        return true;
}

static void *trace(void *userdata) {
        for (unsigned life = 0; live(life); life++)
                ;
        run.ended = true;
        return NULL;
}

/* ---- the guest ---- */

static uint8_t *memory_at(uint64_t address) {
        uint8_t *p = guest_memory_at(&run.rig.memory, address, DATA);

        must(p);
        return p;
}

static uint32_t pattern(unsigned slot, uint32_t i) {
        return (slot << 28) ^ (run.round[slot] * 2654435761U) ^ i;
}

static void offer(unsigned slot, uint32_t type) {
        RigQueue *q = &run.rig.queues[0];
        uint64_t data = BUFFERS + slot * MIB(1) / 8, header = data + DATA, status = header + 64;
        uint16_t d = (uint16_t) (3 * slot), next = (uint16_t) (d + 1), index = q->available->idx;
        struct virtio_blk_outhdr h = { .type = type, .sector = slot * DATA / 512 };

        memcpy(memory_at(header), &h, sizeof(h));
        *memory_at(status) = 0xee;
        q->descriptors[d] = (struct vring_desc) { .addr = header, .len = sizeof(h), .flags = VRING_DESC_F_NEXT };
        if (type != VIRTIO_BLK_T_FLUSH) {
                uint32_t *words = (uint32_t *) (void *) memory_at(data);

                if (type == VIRTIO_BLK_T_OUT)
                        run.round[slot]++;
                for (uint32_t i = 0; i < DATA / 4; i++)
                        words[i] = type == VIRTIO_BLK_T_OUT ? pattern(slot, i) : 0;
                q->descriptors[d].next = next;
                q->descriptors[next] = (struct vring_desc) { .addr = data, .len = DATA, .next = (uint16_t) (d + 2),
                                                             .flags = VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0) };
        } else
                q->descriptors[d].next = (uint16_t) (d + 2);
        q->descriptors[d + 2] = (struct vring_desc) { .addr = status, .len = 1, .flags = VRING_DESC_F_WRITE };
        q->available->ring[index % RIG_QUEUE_SIZE] = d;
        __atomic_store_n(&q->available->idx, (uint16_t) (index + 1), __ATOMIC_RELEASE);
}

static void kick(void) {
        rig_write(&run.rig, RIG_NOTIFY, 0, 2);
}

/* Each of them is done, and nothing else. */
static void collect(unsigned n, uint32_t type) {
        unsigned seen = 0;

        for (unsigned i = 0; i < n; i++) {
                struct vring_used_elem e;
                uint64_t data;
                unsigned slot;

                must(rig_used(&run.rig, 0, PATIENCE_MSEC, &e));
                slot = e.id / 3;
                must(e.id % 3 == 0 && slot < n && !(seen & (1U << slot)));
                seen |= 1U << slot;
                data = BUFFERS + slot * MIB(1) / 8;
                must(*memory_at(data + DATA + 64) == VIRTIO_BLK_S_OK);
                for (uint32_t w = 0; type == VIRTIO_BLK_T_IN && w < DATA / 4; w++)
                        must(((uint32_t *) (void *) memory_at(data))[w] == pattern(slot, w));
        }
        must(run.rig.queues[0].available->idx == run.rig.queues[0].used_seen);
        must(__atomic_load_n(&run.rig.queues[0].used->idx, __ATOMIC_ACQUIRE) == run.rig.queues[0].used_seen);
}

static void requests(unsigned n, uint32_t type) {
        for (unsigned i = 0; i < n; i++)
                offer(i, type);
        kick();
        collect(n, type);
}

static void work(void) {
        for (unsigned i = 0; i < 2; i++) {
                requests(N_SLOTS, VIRTIO_BLK_T_OUT);
                requests(N_SLOTS, VIRTIO_BLK_T_IN);
        }
        requests(1, VIRTIO_BLK_T_FLUSH);
}

/* What a machine has a session go through. */
static void use(void) {
        rig_start(&run.rig);
        rig_expect_state(&run.rig, VHOST_FRONTEND_READY);
        run.armed = true;
        must(rig_drive(&run.rig) & VIRTIO_CONFIG_S_DRIVER_OK);
        work();
        rig_write(&run.rig, RIG_DEVICE + offsetof(struct virtio_blk_config, wce), 0, 1);
        work();
        /* Offered while it is stopped, they are done when it goes on. */
        vhost_frontend_suspend(run.rig.frontend);
        for (unsigned i = 0; i < N_SLOTS; i++)
                offer(i, VIRTIO_BLK_T_IN);
        vhost_frontend_resume(run.rig.frontend);
        kick();
        collect(N_SLOTS, VIRTIO_BLK_T_IN);
        work();
        rig_reset(&run.rig);
        must(rig_drive(&run.rig) & VIRTIO_CONFIG_S_DRIVER_OK);
        work();
        /* What is under way when the driver resets the device is nobody's. */
        for (unsigned i = 0; i < N_SLOTS; i++)
                offer(i, VIRTIO_BLK_T_IN);
        kick();
        rig_reset(&run.rig);
        must(rig_drive(&run.rig) & VIRTIO_CONFIG_S_DRIVER_OK);
        work();
        must(run.rig.n_broken == 0 && run.rig.n_lost == 0);
}

/* ---- all of it ---- */

static void check_disk(void) {
        uint32_t words[DATA / 4];

        for (unsigned slot = 0; slot < N_SLOTS; slot++) {
                must(pread(run.disk, words, sizeof(words), (off_t) (slot * DATA)) == sizeof(words));
                for (uint32_t i = 0; i < DATA / 4; i++)
                        must(words[i] == pattern(slot, i));
        }
}

static void go(Plan plan) {
        char path[] = "/var/tmp/test-kill-points-XXXXXX", argument[64];

        run = (Run) { .plan = plan, .disk = mkostemp(path, O_CLOEXEC) };
        must(run.disk >= 0 && ftruncate(run.disk, DISK_SIZE) == 0);
        (void) snprintf(argument, sizeof(argument), "--path=%s", path);
        rig_new(&run.rig, VIRTIO_ID_BLOCK, 1);
        manager_prepare(&run.manager, "vhost-user", (const char *const[]) { "block", argument, NULL });
        must(symlink(run.manager.transport_path, run.rig.path) == 0);
        must(pthread_create(&run.tracer, NULL, trace, NULL) == 0);

        use();
        run.ending = true;
        while (!run.ended) {
                if (run.pid > 0)
                        (void) kill(run.pid, SIGTERM);
                (void) usleep(2000);
        }
        must(pthread_join(run.tracer, NULL) == 0);
        check_disk();
        rig_free(&run.rig);
        manager_down(&run.manager);
        (void) close(run.disk);
        (void) unlink(path);
}

static unsigned stride(unsigned n, unsigned points) {
        return points == 0 || points >= n ? 1 : n / points;
}

int main(int argc, char **argv) {
        unsigned points = argc > 1 ? (unsigned) strtoul(argv[1], NULL, 10) : POINTS, first = argc > 2 ? (unsigned) strtoul(argv[2], NULL, 10) : 1;
        unsigned n_first, n_second, deaths = 0, runs = 0;

        (void) setvbuf(stdout, NULL, _IOLBF, 0);
        go((Plan) { .first = NEVER });
        n_first = run.n_stops[0];
        go((Plan) { .first = n_first / 2, .second = NEVER });
        n_second = run.n_stops[1];
        must(n_first > 100 && n_second > 100);
        printf("1..2\n# %u stops in a session, %u of a successor\n", n_first, n_second);

        for (unsigned i = first; i <= n_first; i += stride(n_first, points), runs++, deaths += run.n_deaths)
                go((Plan) { .first = i, .second = NEVER, .steps = i % 3 == 0 ? i * 37 % 997 : 0 });
        printf("# %u sessions, %u deaths\nok 1 - one that is killed at any point loses and repeats nothing\n", runs, deaths);
        runs = deaths = 0;
        for (unsigned i = first; i <= n_second; i += stride(n_second, points), runs++, deaths += run.n_deaths)
                go((Plan) { .first = i * 7919 % n_first + 1, .second = i, .steps = i % 3 == 0 ? i * 37 % 997 : 0 });
        printf("# %u sessions, %u deaths\nok 2 - nor does a successor that is killed in its turn\n", runs, deaths);
        return EXIT_SUCCESS;
}
