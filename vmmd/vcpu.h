/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* vCPU threads: each runs its vCPU and carries its exits to the I/O spaces. A thread is *parked* (outside KVM_RUN, its
 * registers fully in KVM) at first, whenever a pause is asked for, and after an exit that ends its run (reset, shutdown). Pausing is
 * asynchronous: the last thread to park calls back, so that nobody waits for a vCPU that itself waits for a helper. */

#include <pthread.h>
#include <stdatomic.h>

#include "io-space.h"
#include "kvm.h"

typedef struct VcpuSet VcpuSet;

/* Why a vCPU's run ended by itself. */
typedef enum VcpuEvent {
        VCPU_EVENT_ENTERED,      /* about to enter the guest for the first time since the start */
        VCPU_EVENT_TRIPLE_FAULT, /* KVM_EXIT_SHUTDOWN */
        VCPU_EVENT_RESET,        /* KVM_EXIT_SYSTEM_EVENT: the guest asks for a reset */
        VCPU_EVENT_SHUTDOWN,     /* … for power-off */
        VCPU_EVENT_CRASH,        /* … or says that it crashed */
        VCPU_EVENT_ERROR,        /* KVM cannot run it; vcpu_error() says why */
} VcpuEvent;

typedef struct Vcpu {
        VcpuSet *set;
        unsigned index;
        int fd;
        struct kvm_run *run;
        pthread_t thread;
        bool has_thread;
        bool prepared; /* of its own thread only */
        bool parked; /* under the set's lock */
        bool halted; /* parked by its own exit; vcpu_set_resume() clears it only with the machine's reset */
        char *error;
        _Atomic uint64_t exits; /* exits to this process */
} Vcpu;

typedef struct VcpuSetHandlers {
        /* On a vCPU's thread. After any event but ENTERED the vCPU parks. */
        void (*event)(Vcpu *vcpu, VcpuEvent event, void *userdata);
        /* On the thread of the last vCPU to park after vcpu_set_pause(). */
        void (*paused)(void *userdata);
        /* For machines whose hardware is a plugin's; else NULL. On the vCPU's thread: before it runs for the first time (false: it never does); after an
         * exit (false: nobody took it); after vcpu_kick(), before it runs on. */
        bool (*prepare)(Vcpu *vcpu, void *userdata);
        bool (*exited)(Vcpu *vcpu, void *userdata);
        void (*interrupted)(Vcpu *vcpu, void *userdata);
        void *userdata;
} VcpuSetHandlers;

struct VcpuSet {
        Kvm *kvm;
        IoSpace *pio; /* NULL where the architecture has no ports */
        IoSpace *mmio;
        VcpuSetHandlers handlers;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool pause;  /* asked for */
        bool pause_reported;
        bool finish; /* threads end */
        atomic_bool entered;
        Vcpu *vcpus;
        unsigned n_vcpus;
        unsigned n_parked;
};

/* Creates the vCPUs, without threads. vcpu_set_done() is to be called also after a failure. */
int vcpu_set_init(VcpuSet *set, Kvm *kvm, unsigned n_vcpus, IoSpace *pio, IoSpace *mmio,
        const VcpuSetHandlers *handlers, char **ret_message);
/* Starts the threads, parked. They block all signals but the one that kicks them. */
int vcpu_set_start(VcpuSet *set);
/* Asks every vCPU to park; handlers.paused is called when all are, once per call (at once, on the caller's thread, where all are already). */
void vcpu_set_pause(VcpuSet *set);
/* Lets the parked vCPUs run. With `revive`, also those that an exit of their own parked (their registers were loaded anew). */
void vcpu_set_resume(VcpuSet *set, bool revive);
bool vcpu_set_is_paused(VcpuSet *set);
/* Makes the vCPU leave the guest, and its thread a system call that it waits in. Any thread. */
void vcpu_kick(Vcpu *vcpu);
/* The vCPU runs no more, as after an exit that ends its run. On its own thread. */
void vcpu_halt(Vcpu *vcpu);
/* Ends and joins the threads and releases everything. Must not be called from a vCPU's thread. */
void vcpu_set_done(VcpuSet *set);

/* Exits of all vCPUs to this process since they were created. */
uint64_t vcpu_set_exits(const VcpuSet *set);
