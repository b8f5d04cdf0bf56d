/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "cpu-check.h"

#define SECTION "x86-cpuid"
#define VERSION 1
#define ENTRIES_MAX 256U

static int get_cpuid(const Vcpu *vcpu, struct kvm_cpuid2 **ret) {
        struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES_MAX * sizeof(cpuid->entries[0]));

        if (!cpuid)
                return -ENOMEM;
        cpuid->nent = ENTRIES_MAX;
        if (ioctl(vcpu->fd, KVM_GET_CPUID2, cpuid) < 0) {
                int error = -errno;

                free(cpuid);
                return error < 0 ? error : -EIO;
        }
        *ret = cpuid;
        return 0;
}

/* 0 where KVM does not say. */
static uint32_t tsc_khz(const Vcpu *vcpu) {
        int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);

        return khz > 0 ? (uint32_t) khz : 0;
}

int arch_cpu_save(const VcpuSet *vcpus, StateWriter *w, char **ret_model) {
        int r = 0;

        for (unsigned i = 0; i < vcpus->n_vcpus && r >= 0; i++) {
                _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;

                r = get_cpuid(&vcpus->vcpus[i], &cpuid);
                if (r < 0)
                        return r;
                state_begin(w, SECTION, i, VERSION);
                state_put_u32(w, tsc_khz(&vcpus->vcpus[i]));
                state_put_blob(w, cpuid->entries, cpuid->nent * sizeof(cpuid->entries[0]));
                r = state_end(w);
                if (i == 0 && r >= 0) {
                        *ret_model = x86_cpu_model(cpuid->entries, cpuid->nent);
                        if (!*ret_model)
                                r = -ENOMEM;
                }
        }
        return r;
}

static int read_section(StateReader *r, unsigned index, uint32_t *ret_khz, struct kvm_cpuid2 **ret, char **ret_message) {
        struct kvm_cpuid2 *cpuid;
        const void *entries;
        size_t size;
        int k;

        k = state_enter(r, SECTION, index, VERSION);
        if (k < 0)
                return set_message(ret_message, k, "No usable CPUID of vCPU %u.", index);
        *ret_khz = state_get_u32(r);
        entries = state_get_blob_view(r, ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2), &size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        if (size == 0 || size % sizeof(struct kvm_cpuid_entry2) != 0)
                return set_message(ret_message, -EBADMSG, "The CPUID of vCPU %u has a wrong length.", index);
        cpuid = calloc(1, sizeof(*cpuid) + size);
        if (!cpuid)
                return -ENOMEM;
        cpuid->nent = (uint32_t) (size / sizeof(cpuid->entries[0]));
        memcpy(cpuid->entries, entries, size);
        *ret = cpuid;
        return 0;
}

static int load_vcpu(const Vcpu *vcpu, StateReader *r, char **ret_message) {
        _cleanup_free_ struct kvm_cpuid2 *then = NULL, *now = NULL;
        uint32_t khz = 0, khz_now = tsc_khz(vcpu);
        int k;

        k = read_section(r, vcpu->index, &khz, &then, ret_message);
        if (k >= 0)
                k = get_cpuid(vcpu, &now);
        if (k >= 0)
                /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): read_section() has set it where it does not fail */
                k = x86_cpu_check(then->entries, then->nent, now->entries, now->nent, ret_message);
        if (k < 0)
                return k;
        /* Without the processor's help KVM would take a faster one, too, and correct it at each entry: a clock that jumps. */
        if (!x86_cpu_tsc_fits(khz, khz_now) && (kvm_check_extension(vcpu->set->kvm, KVM_CAP_TSC_CONTROL) <= 0 ||
                                                       ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long) khz) < 0))
                return set_message(ret_message, -EXDEV,
                        "The snapshot is of a machine whose time stamp counter counts at %u kHz; this host's counts at %u, and cannot be scaled.", khz,
                        khz_now);
        if (ioctl(vcpu->fd, KVM_SET_CPUID2, then) < 0)
                return set_message(ret_message, -errno, "KVM refuses the CPUID of the snapshot's vCPU %u: %s.", vcpu->index, strerror(errno));
        return 0;
}

int arch_cpu_load(const VcpuSet *vcpus, StateReader *r, char **ret_message) {
        int k = 0;

        for (unsigned i = 0; i < vcpus->n_vcpus && k >= 0; i++)
                k = load_vcpu(&vcpus->vcpus[i], r, ret_message);
        return k;
}
