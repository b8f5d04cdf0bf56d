/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* KVM's GICv3 and its ITS: made, initialized, saved and loaded (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst and -its.rst; Arm IHI 0069). */

#include "kvm.h"
#include "state.h"

typedef struct Gic {
        int fd;
        int its_fd;
        const uint64_t *mpidrs; /* of each vCPU, set before gic_init() */
        unsigned n_vcpus;
} Gic;

/* Before any vCPU is there. gic_done() must be called also after a failure. */
int gic_new(Kvm *kvm, Gic *gic, char **ret_message);
void gic_done(Gic *gic);
/* When all are, and have been initialized. Interrupts can be bound to eventfds from then on. */
int gic_init(Kvm *kvm, Gic *gic, char **ret_message);

/* All vCPUs parked. The controllers' tables that a guest keeps in its memory are brought up to date there. */
int gic_save(const Gic *gic, StateWriter *w);
/* The guest's memory has to be what it was then, or empty where the state is that of power-on. */
int gic_load(const Gic *gic, StateReader *reader, char **ret_message);
