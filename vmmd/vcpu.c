/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "vcpu.h"

/* Not one that systemd or machined sends to a machine's leader (SIGRTMIN+3 and +4 are). */
#define SIGNAL_KICK SIGRTMIN

static void on_kick(int signal) {
        /* Its only purpose is to make KVM_RUN return. */
}

void vcpu_kick(Vcpu *vcpu) {
        /* immediate_exit closes the window between the thread's look at `pause` and KVM_RUN (KVM API, 4.10). */
        __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELEASE);
        if (vcpu->has_thread)
                (void) pthread_kill(vcpu->thread, SIGNAL_KICK);
}

static int create_vcpu(VcpuSet *set, unsigned index, char **ret_message) {
        Vcpu *vcpu = &set->vcpus[index];
        void *p;

        vcpu->fd = ioctl(set->kvm->vm_fd, KVM_CREATE_VCPU, (unsigned long) index);
        if (vcpu->fd < 0)
                return set_message(ret_message, -errno, "Cannot create vCPU %u: %s.", index, strerror(errno));

        p = mmap(NULL, set->kvm->vcpu_mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
        if (p == MAP_FAILED)
                return set_message(ret_message, -errno, "Cannot map vCPU %u: %s.", index, strerror(errno));
        vcpu->run = p;
        return 0;
}

int vcpu_set_init(VcpuSet *set, Kvm *kvm, unsigned n_vcpus, IoSpace *pio, IoSpace *mmio,
        const VcpuSetHandlers *handlers, char **ret_message) {
        int most, r;

        *set = (VcpuSet) { .kvm = kvm, .pio = pio, .mmio = mmio, .handlers = *handlers, .pause = true,
                           .pause_reported = true };
        (void) pthread_mutex_init(&set->lock, NULL);
        (void) pthread_cond_init(&set->changed, NULL);

        most = kvm_check_extension(kvm, KVM_CAP_MAX_VCPUS);
        if (most <= 0)
                most = kvm_check_extension(kvm, KVM_CAP_NR_VCPUS);
        if (most > 0 && n_vcpus > (unsigned) most)
                return set_message(ret_message, -ERANGE, "The definition asks for %u vCPUs; this host's KVM allows %i.",
                        n_vcpus, most);

        set->vcpus = calloc(n_vcpus, sizeof(Vcpu));
        if (!set->vcpus)
                return -ENOMEM;
        for (unsigned i = 0; i < n_vcpus; i++)
                set->vcpus[i] = (Vcpu) { .set = set, .index = i, .fd = -EBADF };
        set->n_vcpus = n_vcpus;

        for (unsigned i = 0; i < n_vcpus; i++) {
                r = create_vcpu(set, i, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* A string instruction is one exit with `count` accesses to one port. */
static void handle_pio(Vcpu *vcpu) {
        struct kvm_run *run = vcpu->run;
        uint8_t *data = (uint8_t *) run + run->io.data_offset;

        for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
                io_space_access(vcpu->set->pio, vcpu->index, run->io.port, data, run->io.size,
                        run->io.direction == KVM_EXIT_IO_OUT);
}

static VcpuEvent system_event(const struct kvm_run *run) {
        switch (run->system_event.type) {
        case KVM_SYSTEM_EVENT_SHUTDOWN:
                return VCPU_EVENT_SHUTDOWN;
        case KVM_SYSTEM_EVENT_RESET:
                return VCPU_EVENT_RESET;
        default:
                return VCPU_EVENT_CRASH;
        }
}

static void describe_error(Vcpu *vcpu, int error) {
        const struct kvm_run *run = vcpu->run;
        char *text = NULL;

        if (error < 0)
                (void) set_message(&text, 0, "KVM_RUN of vCPU %u failed: %s", vcpu->index, strerror(-error));
        else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
                (void) set_message(&text, 0, "KVM reports an internal error on vCPU %u: suberror %u", vcpu->index,
                        run->internal.suberror);
        else if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
                (void) set_message(&text, 0, "KVM cannot enter vCPU %u: hardware reason %#llx", vcpu->index,
                        (unsigned long long) run->fail_entry.hardware_entry_failure_reason);
        else
                (void) set_message(&text, 0, "KVM reports an exit on vCPU %u that is not known here: reason %u",
                        vcpu->index, run->exit_reason);
        free(vcpu->error);
        vcpu->error = text;
}

void vcpu_halt(Vcpu *vcpu) {
        (void) pthread_mutex_lock(&vcpu->set->lock);
        vcpu->halted = true;
        (void) pthread_mutex_unlock(&vcpu->set->lock);
}

static void halt(Vcpu *vcpu, VcpuEvent event) {
        vcpu_halt(vcpu);
        vcpu->set->handlers.event(vcpu, event, vcpu->set->handlers.userdata);
}

/* `error` is what KVM_RUN returned, if negative. */
static void handle_exit(Vcpu *vcpu, int error) {
        struct kvm_run *run = vcpu->run;

        if (error == -EINTR || error == -EAGAIN)
                return;
        atomic_fetch_add_explicit(&vcpu->exits, 1, memory_order_relaxed);
        if (error < 0) {
                describe_error(vcpu, error);
                halt(vcpu, VCPU_EVENT_ERROR);
                return;
        }
        if (vcpu->set->handlers.exited && vcpu->set->handlers.exited(vcpu, vcpu->set->handlers.userdata))
                return;

        switch (run->exit_reason) {
        case KVM_EXIT_IO:
                handle_pio(vcpu);
                break;
        case KVM_EXIT_MMIO:
                io_space_access(vcpu->set->mmio, vcpu->index, run->mmio.phys_addr, run->mmio.data, run->mmio.len,
                        run->mmio.is_write);
                break;
        case KVM_EXIT_INTR:
        case KVM_EXIT_IRQ_WINDOW_OPEN:
                break;
        case KVM_EXIT_SHUTDOWN:
                halt(vcpu, VCPU_EVENT_TRIPLE_FAULT);
                break;
        case KVM_EXIT_SYSTEM_EVENT:
                halt(vcpu, system_event(run));
                break;
        default:
                describe_error(vcpu, 0);
                halt(vcpu, VCPU_EVENT_ERROR);
        }
}

/* An exit for I/O is finished by the next KVM_RUN only; with immediate_exit set that is all it does. Without this, registers read
 * while the vCPU is parked would lack the result of its last instruction (KVM API, 5, "struct kvm_run"). An access of more than eight
 * bytes is several exits in a row; one vCPU's instruction has few, so the bound is never met. immediate_exit stays set: it may be somebody's
 * vcpu_kick() by now, which the first KVM_RUN that may enter the guest then sees to. */
static void complete_io(Vcpu *vcpu) {
        for (unsigned i = 0; i < 16; i++) {
                __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELEASE);
                if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
                        break;
                handle_exit(vcpu, 0);
        }
}

/* Waits, parked, until the vCPU may run. Returns false where the thread is to end. */
static bool wait_for_permission(Vcpu *vcpu) {
        VcpuSet *set = vcpu->set;
        bool run;

        (void) pthread_mutex_lock(&set->lock);
        if (!set->finish && (set->pause || vcpu->halted)) {
                bool report;

                (void) pthread_mutex_unlock(&set->lock);
                complete_io(vcpu);
                (void) pthread_mutex_lock(&set->lock);

                vcpu->parked = true;
                set->n_parked++;
                report = set->pause && set->n_parked == set->n_vcpus && !set->pause_reported;
                if (report) {
                        set->pause_reported = true;
                        (void) pthread_mutex_unlock(&set->lock);
                        set->handlers.paused(set->handlers.userdata);
                        (void) pthread_mutex_lock(&set->lock);
                }
                while (!set->finish && (set->pause || vcpu->halted))
                        (void) pthread_cond_wait(&set->changed, &set->lock);
                vcpu->parked = false;
                set->n_parked--;
        }
        run = !set->finish;
        (void) pthread_mutex_unlock(&set->lock);
        return run;
}

/* Returns false where it is not to run. */
static bool prepare(Vcpu *vcpu) {
        const VcpuSetHandlers *handlers = &vcpu->set->handlers;

        if (vcpu->prepared)
                return true;
        vcpu->prepared = !handlers->prepare || handlers->prepare(vcpu, handlers->userdata);
        if (!vcpu->prepared)
                vcpu_halt(vcpu);
        return vcpu->prepared;
}

static void *vcpu_thread(void *argument) {
        Vcpu *vcpu = argument;
        VcpuSet *set = vcpu->set;
        char name[16];

        (void) snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
        (void) pthread_setname_np(pthread_self(), name);

        while (wait_for_permission(vcpu)) {
                if (!prepare(vcpu))
                        continue;
                if (!atomic_exchange(&set->entered, true))
                        set->handlers.event(vcpu, VCPU_EVENT_ENTERED, set->handlers.userdata);

                for (;;) {
                        int error = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;

                        handle_exit(vcpu, error);
                        if (error == -EINTR) {
                                __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELEASE);
                                if (set->handlers.interrupted)
                                        set->handlers.interrupted(vcpu, set->handlers.userdata);
                        }
                        /* Plain reads: a stale value costs one more entry, which the kick's signal ends. */
                        if (__atomic_load_n(&set->pause, __ATOMIC_ACQUIRE) ||
                                __atomic_load_n(&set->finish, __ATOMIC_ACQUIRE) ||
                                __atomic_load_n(&vcpu->halted, __ATOMIC_ACQUIRE))
                                break;
                }
        }
        return NULL;
}

int vcpu_set_start(VcpuSet *set) {
        struct sigaction action = { .sa_handler = on_kick };
        sigset_t blocked, saved;
        int r = 0;

        (void) sigaction(SIGNAL_KICK, &action, NULL);
        (void) sigfillset(&blocked);
        (void) sigdelset(&blocked, SIGNAL_KICK);
        (void) pthread_sigmask(SIG_SETMASK, &blocked, &saved);
        for (unsigned i = 0; i < set->n_vcpus && r == 0; i++) {
                r = -pthread_create(&set->vcpus[i].thread, NULL, vcpu_thread, &set->vcpus[i]);
                set->vcpus[i].has_thread = r == 0;
        }
        (void) pthread_sigmask(SIG_SETMASK, &saved, NULL);
        return r;
}

void vcpu_set_pause(VcpuSet *set) {
        bool report;

        (void) pthread_mutex_lock(&set->lock);
        __atomic_store_n(&set->pause, true, __ATOMIC_RELEASE);
        set->pause_reported = false;
        report = set->n_parked == set->n_vcpus;
        if (report)
                set->pause_reported = true;
        for (unsigned i = 0; i < set->n_vcpus; i++)
                if (!set->vcpus[i].parked)
                        vcpu_kick(&set->vcpus[i]);
        (void) pthread_mutex_unlock(&set->lock);
        if (report)
                set->handlers.paused(set->handlers.userdata);
}

void vcpu_set_resume(VcpuSet *set, bool revive) {
        (void) pthread_mutex_lock(&set->lock);
        __atomic_store_n(&set->pause, false, __ATOMIC_RELEASE);
        /* immediate_exit is the vCPU's own to clear: one that is just parking would enter the guest instead. */
        for (unsigned i = 0; i < set->n_vcpus && revive; i++)
                set->vcpus[i].halted = false;
        (void) pthread_cond_broadcast(&set->changed);
        (void) pthread_mutex_unlock(&set->lock);
}

bool vcpu_set_is_paused(VcpuSet *set) {
        bool paused;

        (void) pthread_mutex_lock(&set->lock);
        paused = set->pause && set->n_parked == set->n_vcpus;
        (void) pthread_mutex_unlock(&set->lock);
        return paused;
}

void vcpu_set_done(VcpuSet *set) {
        (void) pthread_mutex_lock(&set->lock);
        __atomic_store_n(&set->finish, true, __ATOMIC_RELEASE);
        for (unsigned i = 0; i < set->n_vcpus; i++)
                if (set->vcpus[i].run)
                        vcpu_kick(&set->vcpus[i]);
        (void) pthread_cond_broadcast(&set->changed);
        (void) pthread_mutex_unlock(&set->lock);

        for (unsigned i = 0; i < set->n_vcpus; i++) {
                Vcpu *vcpu = &set->vcpus[i];

                if (vcpu->has_thread)
                        (void) pthread_join(vcpu->thread, NULL);
                if (vcpu->run)
                        (void) munmap(vcpu->run, set->kvm->vcpu_mmap_size);
                vcpu->fd = safe_close(vcpu->fd);
                vcpu->error = mfree(vcpu->error);
        }
        set->vcpus = mfree(set->vcpus);
        set->n_vcpus = 0;
}

uint64_t vcpu_set_exits(const VcpuSet *set) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < set->n_vcpus; i++)
                sum += atomic_load_explicit(&set->vcpus[i].exits, memory_order_relaxed);
        return sum;
}
