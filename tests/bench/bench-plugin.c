/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What it costs a guest that its hardware is a plugin: port writes of a real-mode guest, answered by a plugin in a process of its own, through
 * the ring, through the pipes of crosvm's protocol, and through sockets in their place; and beside it the same guest and vCPU thread with
 * nothing but the exit, which is the limit; by one vCPU, and by four at once, for which a machine may have too few processors. All in one run, in turns, the
 * median of several. Prints one JSON object a line; skipped without /dev/kvm.
 * Where the machine has other work, chrt -f 10 in front of it measures this and not that. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "crosvm.h"
#include "plugin-internal.h"

#define PORT 0x500
#define CODE 0x1000
#define MEMORY 0x10000
#define WARM_UP 1000
#define ROUNDS 10000
#define TURNS 15
#define VCPUS_MAX 4

typedef enum Way { WAY_EXIT, WAY_RING, WAY_PIPE, WAY_SOCKET, _WAY_MAX } Way;
static const char *const names[_WAY_MAX] = { "in-process exit", "ring", "pipe", "socket" };

/* out al, dx; jmp to it */
static const uint8_t guest[] = { 0xee, 0xeb, 0xfd };

static uint64_t now_nsec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

static _noreturn_ void give_up(const char *what, int error) {
        (void) fprintf(stderr, "%s: %s\n", what, strerror(-error));
        exit(EXIT_FAILURE);
}

static void check(int r, const char *what) {
        if (r < 0)
                give_up(what, r);
}

/* --- the plugin, a process of its own: tells how long a round takes, in nanoseconds --- */

static void set_up(struct crosvm *c) {
        int fd = memfd_create("bench-plugin", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct crosvm_memory *memory;
        uint8_t *bytes;

        if (fd < 0 || ftruncate(fd, MEMORY) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
                give_up("memfd", -errno);
        bytes = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (bytes == MAP_FAILED)
                give_up("mmap", -errno);
        memcpy(bytes + CODE, guest, sizeof(guest));
        check(crosvm_create_memory(c, fd, 0, MEMORY, 0, false, false, &memory), "crosvm_create_memory");
        check(crosvm_reserve_range(c, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 1), "crosvm_reserve_range");
        check(crosvm_start(c), "crosvm_start");
}

static void set_up_vcpu(struct crosvm_vcpu *vcpu) {
        const struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rdx = PORT };
        struct crosvm_vcpu_event event;
        struct kvm_sregs sregs;

        check(crosvm_vcpu_wait(vcpu, &event), "crosvm_vcpu_wait");
        check(crosvm_vcpu_get_sregs(vcpu, &sregs), "crosvm_vcpu_get_sregs");
        sregs.cs.base = sregs.cs.selector = 0;
        check(crosvm_vcpu_set_sregs(vcpu, &sregs), "crosvm_vcpu_set_sregs");
        check(crosvm_vcpu_set_regs(vcpu, &regs), "crosvm_vcpu_set_regs");
        check(crosvm_vcpu_set_mp_state(vcpu, &(struct kvm_mp_state) { .mp_state = KVM_MP_STATE_RUNNABLE }), "crosvm_vcpu_set_mp_state");
        check(crosvm_vcpu_resume(vcpu), "crosvm_vcpu_resume");
}

typedef struct Worker {
        struct crosvm_vcpu *vcpu;
        pthread_t thread;
        uint64_t begin, end;
} Worker;

static void *work(void *userdata) {
        Worker *w = userdata;

        set_up_vcpu(w->vcpu);
        for (unsigned i = 0; i < WARM_UP + ROUNDS; i++) {
                struct crosvm_vcpu_event event;

                if (i == WARM_UP)
                        w->begin = now_nsec();
                check(crosvm_vcpu_wait(w->vcpu, &event), "crosvm_vcpu_wait");
                if (event.kind != CROSVM_VCPU_EVENT_KIND_IO_ACCESS)
                        give_up("event", -EPROTO);
                if (i < WARM_UP + ROUNDS - 1) /* after the last one it rests */
                        check(crosvm_vcpu_resume(w->vcpu), "crosvm_vcpu_resume");
        }
        w->end = now_nsec();
        return NULL;
}

static _noreturn_ void be_the_plugin(Way way, unsigned n_vcpus, int socket, int result) {
        Worker workers[VCPUS_MAX] = {};
        struct crosvm *c = NULL;
        uint64_t begin = UINT64_MAX, end = 0;
        char text[16];

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void) snprintf(text, sizeof(text), "%d", socket);
        if (setenv("CROSVM_SOCKET", text, 1) < 0 || setenv("CROSVM_PLUGIN_TRANSPORT", way == WAY_RING ? "ring" : "pipe", 1) < 0)
                give_up("setenv", -errno);
        check(crosvm_connect(&c), "crosvm_connect");
        set_up(c);
        for (unsigned i = 0; i < n_vcpus; i++) {
                check(crosvm_get_vcpu(c, i, &workers[i].vcpu), "crosvm_get_vcpu");
                check(-pthread_create(&workers[i].thread, NULL, work, &workers[i]), "pthread_create");
        }
        for (unsigned i = 0; i < n_vcpus; i++) {
                check(-pthread_join(workers[i].thread, NULL), "pthread_join");
                begin = MIN(begin, workers[i].begin);
                end = MAX(end, workers[i].end);
        }
        end -= begin;
        exit(write(result, &end, sizeof(end)) == sizeof(end) ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* --- the machine --- */

typedef struct Machine {
        Kvm kvm;
        VcpuSet vcpus;
        sd_event *event;
        Plugin *plugin;
        int done_fd;
        struct {
                unsigned n;
                uint64_t begin, end;
        } exits[VCPUS_MAX];    /* each its vCPU's thread's */
} Machine;

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
}

static void on_paused(void *userdata) {
}

static void on_started(void *userdata) {
        Machine *m = userdata;

        check(vcpu_set_start(&m->vcpus), "vcpu_set_start");
        vcpu_set_resume(&m->vcpus, false);
}

/* It has done its rounds, and left. */
static void on_ended(const char *reason, void *userdata) {
        Machine *m = userdata;

        (void) sd_event_exit(m->event, 0);
}

/* Sockets where pipes were, in both directions. */
static void use_sockets(PluginVcpu *v) {
        int in[2], out[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, in) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, out) < 0 ||
            dup3(in[0], v->read_fd, O_CLOEXEC) < 0 || dup3(in[1], v->their_write, O_CLOEXEC) < 0 || dup3(out[0], v->write_fd, O_CLOEXEC) < 0 ||
            dup3(out[1], v->their_read, O_CLOEXEC) < 0)
                give_up("sockets", -errno);
        for (unsigned i = 0; i < 2; i++) {
                (void) safe_close(in[i]);
                (void) safe_close(out[i]);
        }
}

static void make_kvm(Machine *m) {
        _cleanup_free_ char *message = NULL;

        if (kvm_init(&m->kvm, &message) < 0 || plugin_kvm_create_platform(&m->kvm, &message) < 0) {
                (void) fprintf(stderr, "%s\n", message);
                exit(EXIT_FAILURE);
        }
}

static uint64_t run_plugin(Way way, unsigned n_vcpus) {
        Machine m = {};
        const VcpuSetHandlers vcpu_handlers = { .event = on_vcpu_event, .paused = on_paused, .userdata = &m };
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended, .userdata = &m };
        _cleanup_free_ char *message = NULL;
        int pair[2], result[2];
        uint64_t nsec = 0;
        pid_t pid;

        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0 || pipe(result) < 0)
                give_up("descriptors", -errno);
        pid = fork();
        if (pid == 0) {
                (void) close(pair[0]);
                be_the_plugin(way, n_vcpus, pair[1], result[1]);
        }
        (void) close(pair[1]);
        (void) close(result[1]);
        make_kvm(&m);
        check(sd_event_new(&m.event), "sd_event_new");
        check(plugin_new(m.event, &m.kvm, &m.vcpus, n_vcpus, &vcpu_handlers, NULL, &handlers, &m.plugin, &message), "plugin_new");
        for (unsigned i = 0; way == WAY_SOCKET && i < n_vcpus; i++)
                use_sockets(&m.plugin->channels[i]);
        check(plugin_add_connection(m.plugin, pair[0]), "plugin_add_connection");
        check(sd_event_loop(m.event), "sd_event_loop");
        if (read(result[0], &nsec, sizeof(nsec)) != sizeof(nsec))
                give_up("the plugin has no result", -EIO);
        (void) close(result[0]);
        (void) waitpid(pid, NULL, 0);
        plugin_abort(m.plugin);
        vcpu_set_done(&m.vcpus);
        (void) plugin_free(m.plugin);
        kvm_done(&m.kvm);
        (void) sd_event_unref(m.event);
        return nsec;
}

/* --- the limit --- */

static bool on_exit_alone(Vcpu *vcpu, void *userdata) {
        Machine *m = userdata;
        PluginExit e;

        plugin_kvm_exit(vcpu, &e);
        m->exits[vcpu->index].n++;
        if (m->exits[vcpu->index].n == WARM_UP)
                m->exits[vcpu->index].begin = now_nsec();
        if (m->exits[vcpu->index].n == WARM_UP + ROUNDS) {
                static const uint64_t one = 1;

                m->exits[vcpu->index].end = now_nsec();
                (void) !write(m->done_fd, &one, sizeof(one));
                vcpu_halt(vcpu);
        }
        return e.kind == PLUGIN_EXIT_ACCESS;
}

static bool prepare_alone(Vcpu *vcpu, void *userdata) {
        const struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
        struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rdx = PORT };
        uint8_t bytes[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
        struct kvm_sregs *sregs = (struct kvm_sregs *) (void *) bytes;
        size_t size;

        check(plugin_kvm_get_vcpu_state(vcpu, PLUGIN_STATE_SREGS, bytes, &size), "sregs");
        sregs->cs.base = sregs->cs.selector = 0;
        check(plugin_kvm_set_vcpu_state(vcpu, PLUGIN_STATE_SREGS, bytes, size), "sregs");
        check(plugin_kvm_set_vcpu_state(vcpu, PLUGIN_STATE_REGS, (const uint8_t *) &regs, sizeof(regs)), "regs");
        check(plugin_kvm_set_vcpu_state(vcpu, VCPU_REQUEST__STATE_SET__MP, (const uint8_t *) &runnable, sizeof(runnable)), "mp state");
        return true;
}

static void interrupted_alone(Vcpu *vcpu, void *userdata) {
}

static uint64_t run_alone(unsigned n_vcpus) {
        Machine m = { .done_fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE) };
        const VcpuSetHandlers handlers = { .event = on_vcpu_event, .paused = on_paused, .prepare = prepare_alone, .exited = on_exit_alone,
                                           .interrupted = interrupted_alone, .userdata = &m };
        _cleanup_free_ char *message = NULL;
        uint64_t count, begin = UINT64_MAX, end = 0;
        uint8_t *bytes;

        make_kvm(&m);
        bytes = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (bytes == MAP_FAILED || m.done_fd < 0)
                give_up("memory", -errno);
        memcpy(bytes + CODE, guest, sizeof(guest));
        check(plugin_kvm_set_memory(&m.kvm, 0, 0, MEMORY, bytes, false, false), "plugin_kvm_set_memory");
        check(vcpu_set_init(&m.vcpus, &m.kvm, n_vcpus, NULL, NULL, &handlers, &message), "vcpu_set_init");
        on_started(&m);
        for (unsigned i = 0; i < n_vcpus; i++)
                if (read(m.done_fd, &count, sizeof(count)) != sizeof(count))
                        give_up("read", -errno);
        vcpu_set_done(&m.vcpus);
        kvm_done(&m.kvm);
        (void) munmap(bytes, MEMORY);
        (void) safe_close(m.done_fd);
        for (unsigned i = 0; i < n_vcpus; i++) {
                begin = MIN(begin, m.exits[i].begin);
                end = MAX(end, m.exits[i].end);
        }
        return end - begin;
}

/* --- all of them --- */

static int compare(const void *a, const void *b) {
        const uint64_t *x = a, *y = b;

        return *x < *y ? -1 : *x > *y;
}

/* `ns` is what an exit takes of the time that all vCPUs have together. */
static void measure(unsigned n_vcpus) {
        uint64_t nsec[_WAY_MAX][TURNS];
        const size_t middle = TURNS / 2;
        const double all = (double) ROUNDS * n_vcpus;

        for (unsigned turn = 0; turn < TURNS; turn++)
                for (Way way = 0; way < _WAY_MAX; way++)
                        nsec[way][turn] = way == WAY_EXIT ? run_alone(n_vcpus) : run_plugin(way, n_vcpus);
        for (Way way = 0; way < _WAY_MAX; way++) {
                double each, above;

                qsort(nsec[way], TURNS, sizeof(uint64_t), compare);
                each = (double) nsec[way][middle] / all;
                above = each - (double) nsec[WAY_EXIT][middle] / all;
                printf("{\"benchmark\":\"plugin-port\",\"way\":\"%s\",\"vcpus\":%u,\"rounds\":%.0f,\"per_second\":%.0f,\"ns\":%.0f,\"ns_above_exit\":%.0f}\n",
                        names[way], n_vcpus, all, 1e9 / each, each, above);
        }
        (void) fflush(stdout); /* or each child to come says it again */
}

int main(void) {
        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        (void) signal(SIGPIPE, SIG_IGN);
        measure(1);
        measure(VCPUS_MAX);
        return EXIT_SUCCESS;
}
