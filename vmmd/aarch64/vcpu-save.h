/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A vCPU's registers, all that KVM lists, as a section of a state. The vCPU must be parked. */

#include "device-tree.h"
#include "state.h"
#include "vcpu.h"

/* Of a register's own size. -ENOENT: KVM knows no such. */
int arm64_vcpu_get(const Vcpu *vcpu, uint64_t id, void *value);
int arm64_vcpu_set(const Vcpu *vcpu, uint64_t id, const void *value);
/* Its MPIDR_EL1: who it is among the others. */
int arm64_vcpu_mpidr(const Vcpu *vcpu, uint64_t *ret);
/* Its caches, as its own CLIDR_EL1 and CCSIDR_EL1 describe them. Returns how many. */
size_t arm64_vcpu_caches(const Vcpu *vcpu, Arm64Cache ret[static ARM64_CACHES_MAX]);

int arm64_vcpu_save(const Vcpu *vcpu, StateWriter *w);
/* With `advance`, the counters go on from where they were and so many ticks; NULL leaves them alone. */
int arm64_vcpu_load(const Vcpu *vcpu, const uint64_t *advance, StateReader *r, char **ret_message);
