/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What CPUID tells one vCPU: what the host's KVM supports, with the topology, the APIC id and the clocks of this machine. One
 * package of N cores, without SMT; the APIC id is the index of the vCPU. A pure function. */

#include <linux/kvm.h>

#include "util.h"

typedef struct X86CpuidInput {
        unsigned vcpu_index;
        unsigned n_vcpus;
        uint32_t tsc_khz;      /* KVM_GET_TSC_KHZ; 0: unknown, and no leaf will say one */
        bool tsc_deadline;     /* KVM_CAP_TSC_DEADLINE_TIMER */
} X86CpuidInput;

/* `supported` is from KVM_GET_SUPPORTED_CPUID. *ret is for KVM_SET_CPUID2; the caller frees it. -ENOMEM or -EINVAL. */
int x86_cpuid_build(const struct kvm_cpuid2 *supported, const X86CpuidInput *input, struct kvm_cpuid2 **ret);

/* The entry for a leaf (index 0 where it has none), or NULL. */
const struct kvm_cpuid_entry2 *x86_cpuid_find(const struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index);
