/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vcpu-save.h"

#define SECTION "x86-vcpu"
#define MSRS_MAX 1024
#define XSAVE_MAX KIB(64)

#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b

/* KVM_CAP_XSAVE2 says how large; the plain structure is 4 KiB. */
static size_t xsave_size(const Vcpu *vcpu) {
        int size = kvm_check_extension(vcpu->set->kvm, KVM_CAP_XSAVE2);

        return size > (int) sizeof(struct kvm_xsave) ? (size_t) size : sizeof(struct kvm_xsave);
}

static int get_xsave(const Vcpu *vcpu, void *data) {
        bool large = xsave_size(vcpu) > sizeof(struct kvm_xsave);

        return ioctl(vcpu->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, data) < 0 ? -errno : 0;
}

/* Everything that KVM lists for saving, as far as it can be read. */
static int get_msrs(const Vcpu *vcpu, struct kvm_msrs **ret) {
        _cleanup_free_ struct kvm_msr_list *list = NULL;
        _cleanup_free_ struct kvm_msrs *msrs = NULL;
        struct kvm_msrs *one;
        uint8_t space[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] __attribute__((aligned(8)));

        list = calloc(1, sizeof(*list) + MSRS_MAX * sizeof(list->indices[0]));
        msrs = calloc(1, sizeof(*msrs) + MSRS_MAX * sizeof(msrs->entries[0]));
        if (!list || !msrs)
                return -ENOMEM;
        list->nmsrs = MSRS_MAX;
        if (ioctl(vcpu->set->kvm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
                return -errno;

        one = (struct kvm_msrs *) space;
        for (uint32_t i = 0; i < list->nmsrs; i++) {
                memset(space, 0, sizeof(space));
                one->nmsrs = 1;
                one->entries[0].index = list->indices[i];
                /* The list is of what some vCPU may have; this one's CPUID may leave some out. */
                if (ioctl(vcpu->fd, KVM_GET_MSRS, one) == 1)
                        msrs->entries[msrs->nmsrs++] = one->entries[0];
        }
        *ret = TAKE_PTR(msrs);
        return 0;
}

int x86_vcpu_save(const Vcpu *vcpu, StateWriter *w) {
        _cleanup_free_ struct kvm_msrs *msrs = NULL;
        _cleanup_free_ void *xsave = NULL;
        struct kvm_regs regs;
        struct kvm_sregs sregs;
        struct kvm_xcrs xcrs;
        struct kvm_debugregs debugregs;
        struct kvm_lapic_state lapic;
        struct kvm_mp_state mp_state;
        struct kvm_vcpu_events events;
        int r;

        /* MP_STATE first: asking for it lets KVM take a pending INIT or SIPI into account. */
        if (ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp_state) < 0 || ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 ||
                ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0 || ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs) < 0 ||
                ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debugregs) < 0 || ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic) < 0 ||
                ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
                return -errno;
        xsave = calloc(1, xsave_size(vcpu));
        if (!xsave)
                return -ENOMEM;
        r = get_xsave(vcpu, xsave);
        if (r >= 0)
                r = get_msrs(vcpu, &msrs);
        if (r < 0)
                return r;

        state_begin(w, SECTION, vcpu->index, 1);
        state_put_blob(w, &mp_state, sizeof(mp_state));
        state_put_blob(w, &regs, sizeof(regs));
        state_put_blob(w, &sregs, sizeof(sregs));
        state_put_blob(w, &xcrs, sizeof(xcrs));
        state_put_blob(w, &debugregs, sizeof(debugregs));
        state_put_blob(w, &lapic, sizeof(lapic));
        state_put_blob(w, &events, sizeof(events));
        state_put_blob(w, xsave, xsave_size(vcpu));
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): errno is not 0 where get_msrs() returns -errno */
        state_put_blob(w, msrs->entries, msrs->nmsrs * sizeof(msrs->entries[0]));
        return state_end(w);
}

static int set_msrs(const Vcpu *vcpu, const struct kvm_msr_entry *entries, size_t n, bool with_clock) {
        uint8_t space[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] __attribute__((aligned(8)));
        struct kvm_msrs *one = (struct kvm_msrs *) space;

        for (size_t i = 0; i < n; i++) {
                if (!with_clock && (entries[i].index == MSR_TSC || entries[i].index == MSR_TSC_ADJUST))
                        continue;
                memset(space, 0, sizeof(space));
                one->nmsrs = 1;
                memcpy(&one->entries[0], &entries[i], sizeof(entries[0]));
                /* Some that can be read take no write of the same value, or none at all (feature MSRs): not an error. */
                if (ioctl(vcpu->fd, KVM_SET_MSRS, one) < 0)
                        return -errno;
        }
        return 0;
}

int x86_vcpu_load(const Vcpu *vcpu, bool with_clock, StateReader *r, char **ret_message) {
        struct kvm_regs regs;
        struct kvm_sregs sregs;
        struct kvm_xcrs xcrs;
        struct kvm_debugregs debugregs;
        struct kvm_lapic_state lapic;
        struct kvm_mp_state mp_state;
        struct kvm_vcpu_events events;
        const void *xsave, *msrs;
        size_t size, msrs_size;
        const char *step = NULL;
        int k;

        k = state_enter(r, SECTION, vcpu->index, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of vCPU %u.", vcpu->index);
        state_get_blob(r, &mp_state, sizeof(mp_state));
        state_get_blob(r, &regs, sizeof(regs));
        state_get_blob(r, &sregs, sizeof(sregs));
        state_get_blob(r, &xcrs, sizeof(xcrs));
        state_get_blob(r, &debugregs, sizeof(debugregs));
        state_get_blob(r, &lapic, sizeof(lapic));
        state_get_blob(r, &events, sizeof(events));
        xsave = state_get_blob_view(r, XSAVE_MAX, &size);
        msrs = state_get_blob_view(r, MSRS_MAX * sizeof(struct kvm_msr_entry), &msrs_size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        if (size != xsave_size(vcpu) || msrs_size % sizeof(struct kvm_msr_entry) != 0)
                return set_message(ret_message, -EBADMSG,
                        "The state of vCPU %u has %zu bytes of extended registers, this host %zu.", vcpu->index, size,
                        xsave_size(vcpu));

        /* The order matters: APIC_BASE (in sregs) gives the LAPIC its mode; the LAPIC must be there before its deadline MSR;
         * events come last, as setting registers drops pending exceptions. */
        if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
                step = "KVM_SET_SREGS";
        else if (ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) < 0)
                step = "KVM_SET_XCRS";
        else if (ioctl(vcpu->fd, KVM_SET_XSAVE, xsave) < 0)
                step = "KVM_SET_XSAVE";
        else if (ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic) < 0)
                step = "KVM_SET_LAPIC";
        else if ((errno = -set_msrs(vcpu, msrs, msrs_size / sizeof(struct kvm_msr_entry), with_clock)) != 0)
                step = "KVM_SET_MSRS";
        else if (ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0)
                step = "KVM_SET_REGS";
        else if (ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debugregs) < 0)
                step = "KVM_SET_DEBUGREGS";
        else if (ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp_state) < 0)
                step = "KVM_SET_MP_STATE";
        else if (ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
                step = "KVM_SET_VCPU_EVENTS";
        if (step)
                return set_message(ret_message, -errno, "%s of vCPU %u failed: %s.", step, vcpu->index, strerror(errno));
        return 0;
}
