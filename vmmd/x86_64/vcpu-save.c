/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "cpu-check.h"
#include "vcpu-save.h"

#define SECTION "x86-vcpu"
#define VERSION 2
#define MSRS_MAX 1024
#define MTRRS_MAX 28
#define XSAVE_MAX KIB(64)
#define CPUID_MAX 256
#define NESTED_MAX KIB(64)

#define LEAF_KVM_TIMING 0x40000010 /* EAX: frequency of the TSC in kHz */
#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b

/* What one pair of calls reads and writes, in the order of the state. */
typedef struct VcpuPart {
        const char *name;
        unsigned long get, set;
        size_t offset, size; /* in VcpuState */
} VcpuPart;

typedef struct VcpuState {
        struct kvm_mp_state mp_state;
        struct kvm_regs regs;
        struct kvm_sregs sregs;
        struct kvm_xcrs xcrs;
        struct kvm_debugregs debugregs;
        struct kvm_lapic_state lapic;
        struct kvm_vcpu_events events;
} VcpuState;

typedef enum VcpuPartIndex { PART_MP_STATE, PART_REGS, PART_SREGS, PART_XCRS, PART_DEBUGREGS, PART_LAPIC, PART_EVENTS } VcpuPartIndex;

#define PART(call, member) \
        { "KVM_SET_" #call, KVM_GET_##call, KVM_SET_##call, offsetof(VcpuState, member), sizeof(((VcpuState *) NULL)->member) }

static const VcpuPart parts[] = {
        /* The first: asking for it lets KVM take a pending INIT or SIPI into account. */
        [PART_MP_STATE] = PART(MP_STATE, mp_state),
        [PART_REGS] = PART(REGS, regs),
        [PART_SREGS] = PART(SREGS, sregs),
        [PART_XCRS] = PART(XCRS, xcrs),
        [PART_DEBUGREGS] = PART(DEBUGREGS, debugregs),
        [PART_LAPIC] = PART(LAPIC, lapic),
        [PART_EVENTS] = PART(VCPU_EVENTS, events),
};

/* KVM_CAP_XSAVE2 says how large; the plain structure is 4 KiB. */
static size_t xsave_size(const Vcpu *vcpu) {
        int size = kvm_check_extension(vcpu->set->kvm, KVM_CAP_XSAVE2);

        return size > (int) sizeof(struct kvm_xsave) ? (size_t) size : sizeof(struct kvm_xsave);
}

static int get_xsave(const Vcpu *vcpu, void *data) {
        bool large = xsave_size(vcpu) > sizeof(struct kvm_xsave);

        return ioctl(vcpu->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, data) < 0 ? -errno : 0;
}

/* KVM has these, but not in its list: default type, eight variable ranges, and the fixed ones (Intel SDM 3, 12.11). */
static unsigned list_mtrrs(uint32_t ret[static MTRRS_MAX]) {
        static const uint32_t fixed[] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
        unsigned n = 0;

        ret[n++] = 0x2ff;
        for (uint32_t index = 0x200; index < 0x210; index++)
                ret[n++] = index;
        for (size_t i = 0; i < ELEMENTSOF(fixed); i++)
                ret[n++] = fixed[i];
        return n;
}

/* One call for all; it ends before the first that this vCPU has not. */
static void get_mtrrs(const Vcpu *vcpu, struct kvm_msrs *msrs) {
        uint8_t space[sizeof(struct kvm_msrs) + MTRRS_MAX * sizeof(struct kvm_msr_entry)] __attribute__((aligned(8))) = {};
        struct kvm_msrs *mtrrs = (struct kvm_msrs *) space;
        uint32_t indices[MTRRS_MAX];
        int n;

        mtrrs->nmsrs = list_mtrrs(indices);
        for (unsigned i = 0; i < mtrrs->nmsrs; i++)
                mtrrs->entries[i].index = indices[i];
        n = ioctl(vcpu->fd, KVM_GET_MSRS, mtrrs);
        for (int i = 0; i < n && msrs->nmsrs < MSRS_MAX; i++)
                msrs->entries[msrs->nmsrs++] = mtrrs->entries[i];
}

static struct kvm_msrs *allocate_msrs(size_t n) {
        return calloc(1, sizeof(struct kvm_msrs) + n * sizeof(struct kvm_msr_entry));
}

/* As many as can be in a call, since the guest stands still meanwhile: one ends before the first that cannot be read. The list is of what some vCPU may have, and this
 * one's CPUID may leave some out. */
static int read_msrs(const Vcpu *vcpu, const struct kvm_msr_list *list, struct kvm_msrs *ret) {
        _cleanup_free_ struct kvm_msrs *some = allocate_msrs(list->nmsrs);

        if (!some)
                return -ENOMEM;
        for (uint32_t at = 0; at < list->nmsrs; at++) {
                int n;

                memset(some->entries, 0, list->nmsrs * sizeof(some->entries[0]));
                for (uint32_t i = at; i < list->nmsrs; i++)
                        some->entries[i - at].index = list->indices[i];
                some->nmsrs = list->nmsrs - at;
                n = ioctl(vcpu->fd, KVM_GET_MSRS, some);
                if (n <= 0)
                        continue;
                memcpy(&ret->entries[ret->nmsrs], some->entries, (size_t) n * sizeof(some->entries[0]));
                ret->nmsrs += (uint32_t) n;
                at += (uint32_t) n;
        }
        return 0;
}

/* Everything that KVM lists for saving, as far as it can be read, and the MTRRs. */
static int get_msrs(const Vcpu *vcpu, struct kvm_msrs **ret) {
        _cleanup_free_ struct kvm_msr_list *list = calloc(1, sizeof(*list) + MSRS_MAX * sizeof(list->indices[0]));
        _cleanup_free_ struct kvm_msrs *msrs = allocate_msrs(MSRS_MAX);
        int r;

        if (!list || !msrs)
                return -ENOMEM;
        list->nmsrs = MSRS_MAX;
        if (ioctl(vcpu->set->kvm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
                return -errno;
        r = read_msrs(vcpu, list, msrs);
        if (r < 0)
                return r;
        get_mtrrs(vcpu, msrs);
        *ret = TAKE_PTR(msrs);
        return 0;
}

/* What the guest was told that its processor is: another version of this program might tell it otherwise. */
static int get_cpuid(const Vcpu *vcpu, struct kvm_cpuid2 **ret) {
        _cleanup_free_ struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_MAX * sizeof(cpuid->entries[0]));

        if (!cpuid)
                return -ENOMEM;
        cpuid->nent = CPUID_MAX;
        if (ioctl(vcpu->fd, KVM_GET_CPUID2, cpuid) < 0)
                return -errno;
        *ret = TAKE_PTR(cpuid);
        return 0;
}

/* Of a guest that is a host itself; *ret_size 0 where KVM has none to give. */
static int get_nested(const Vcpu *vcpu, struct kvm_nested_state **ret, size_t *ret_size) {
        int most = kvm_check_extension(vcpu->set->kvm, KVM_CAP_NESTED_STATE);
        _cleanup_free_ struct kvm_nested_state *nested = NULL;

        *ret_size = 0;
        if (most < (int) sizeof(struct kvm_nested_state))
                return 0;
        nested = calloc(1, (size_t) most);
        if (!nested)
                return -ENOMEM;
        nested->size = (uint32_t) most;
        if (ioctl(vcpu->fd, KVM_GET_NESTED_STATE, nested) < 0)
                return errno == EINVAL ? 0 : -errno; /* EINVAL: this processor's KVM has none after all */
        *ret_size = MIN(nested->size, (uint32_t) most);
        *ret = TAKE_PTR(nested);
        return 0;
}

static struct kvm_device_attr tsc_offset_attribute(uint64_t *offset) {
        return (struct kvm_device_attr) {
                .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uint64_t) (uintptr_t) offset,
        };
}

/* What the guest's TSC is ahead of the host's; false before Linux 5.16. */
static bool get_tsc_offset(const Vcpu *vcpu, uint64_t *ret) {
        uint64_t offset = 0;
        struct kvm_device_attr attribute = tsc_offset_attribute(&offset);

        if (ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attribute) < 0)
                return false;
        *ret = offset;
        return true;
}

static int save_more(const Vcpu *vcpu, StateWriter *w) {
        _cleanup_free_ struct kvm_nested_state *nested = NULL;
        _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
        uint64_t offset = 0;
        bool has_offset = get_tsc_offset(vcpu, &offset);
        size_t nested_size;
        int r;

        r = get_cpuid(vcpu, &cpuid);
        if (r >= 0)
                r = get_nested(vcpu, &nested, &nested_size);
        if (r < 0)
                return r;
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): errno is not 0 where get_cpuid() returns -errno */
        state_put_blob(w, cpuid->entries, cpuid->nent * sizeof(cpuid->entries[0]));
        state_put_blob(w, nested, nested_size);
        state_put_u8(w, has_offset);
        state_put_u64(w, offset);
        return 0;
}

int x86_vcpu_save(const Vcpu *vcpu, StateWriter *w) {
        _cleanup_free_ struct kvm_msrs *msrs = NULL;
        _cleanup_free_ void *xsave = NULL;
        VcpuState state;
        int r, end;

        for (size_t i = 0; i < ELEMENTSOF(parts); i++)
                if (ioctl(vcpu->fd, parts[i].get, (uint8_t *) &state + parts[i].offset) < 0)
                        return -errno;
        xsave = calloc(1, xsave_size(vcpu));
        if (!xsave)
                return -ENOMEM;
        r = get_xsave(vcpu, xsave);
        if (r >= 0)
                r = get_msrs(vcpu, &msrs);
        if (r < 0)
                return r;

        state_begin(w, SECTION, vcpu->index, VERSION);
        for (size_t i = 0; i < ELEMENTSOF(parts); i++)
                state_put_blob(w, (uint8_t *) &state + parts[i].offset, parts[i].size);
        state_put_blob(w, xsave, xsave_size(vcpu));
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): errno is not 0 where get_msrs() returns -errno */
        state_put_blob(w, msrs->entries, msrs->nmsrs * sizeof(msrs->entries[0]));
        r = save_more(vcpu, w);
        end = state_end(w);
        return r < 0 ? r : end;
}

/* What a state holds beyond the parts above; a state of version 1 has the first two only. */
typedef struct VcpuMore {
        const void *xsave, *msrs, *cpuid, *nested;
        size_t xsave_size, msrs_size, cpuid_size, nested_size;
        bool has_tsc_offset;
        uint64_t tsc_offset;
} VcpuMore;

static int set_cpuid(const Vcpu *vcpu, const VcpuMore *more) {
        _cleanup_free_ struct kvm_cpuid2 *now = NULL, *wanted = NULL;
        int r;

        if (more->cpuid_size == 0)
                return 0;
        r = get_cpuid(vcpu, &now);
        if (r < 0)
                return r;
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): as above */
        if (now->nent * sizeof(now->entries[0]) == more->cpuid_size && memcmp(now->entries, more->cpuid, more->cpuid_size) == 0)
                return 0;
        wanted = calloc(1, sizeof(*wanted) + more->cpuid_size);
        if (!wanted)
                return -ENOMEM;
        wanted->nent = (uint32_t) (more->cpuid_size / sizeof(wanted->entries[0]));
        memcpy(wanted->entries, more->cpuid, more->cpuid_size);
        return ioctl(vcpu->fd, KVM_SET_CPUID2, wanted) < 0 ? -errno : 0;
}

/* Where there is only the header, that is KVM's word for none; a KVM that knows no such state need not be told. */
static int set_nested(const Vcpu *vcpu, const VcpuMore *more, const char **ret_step) {
        _cleanup_free_ struct kvm_nested_state *nested = NULL;

        *ret_step = "KVM_SET_NESTED_STATE";
        if (more->nested_size == 0 || (more->nested_size <= sizeof(*nested) && kvm_check_extension(vcpu->set->kvm, KVM_CAP_NESTED_STATE) <= 0))
                return 0;
        nested = calloc(1, more->nested_size);
        if (!nested)
                return -ENOMEM;
        memcpy(nested, more->nested, more->nested_size);
        nested->size = (uint32_t) more->nested_size;
        return ioctl(vcpu->fd, KVM_SET_NESTED_STATE, nested) < 0 ? -errno : 0;
}

/* What the guest was told of its frequency: a vCPU that was restored on a host of another, and is now taken over, has to be told again. */
static int set_tsc_khz(const Vcpu *vcpu, const VcpuMore *more) {
        int now = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
        struct kvm_cpuid_entry2 e;

        for (size_t at = 0; now > 0 && at < more->cpuid_size; at += sizeof(e)) {
                memcpy(&e, (const uint8_t *) more->cpuid + at, sizeof(e));
                if (e.function != LEAF_KVM_TIMING || e.eax == 0 || x86_cpu_tsc_fits(e.eax, (uint32_t) now))
                        continue;
                return ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long) e.eax) < 0 ? -errno : 0;
        }
        return 0;
}

/* Whether the guest's TSC is where the state has it, or nearly. */
static bool tsc_is_right(const Vcpu *vcpu, const VcpuMore *more) {
        uint8_t space[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] __attribute__((aligned(8))) = {};
        int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
        struct kvm_msrs *now = (struct kvm_msrs *) space;
        struct kvm_msr_entry then;

        now->nmsrs = 1;
        now->entries[0].index = MSR_TSC;
        if (ioctl(vcpu->fd, KVM_GET_MSRS, now) != 1)
                return true;
        for (size_t at = 0; at < more->msrs_size; at += sizeof(then)) {
                memcpy(&then, (const uint8_t *) more->msrs + at, sizeof(then));
                if (then.index == MSR_TSC)
                        return khz <= 0 || now->entries[0].data - then.data + (uint64_t) khz * 1000 < (uint64_t) khz * 2000;
        }
        return true;
}

/* Whether it was set. All vCPUs keep what they are apart, which writing their TSCs one after the other would not. Where the guest's counts at another rate than the
 * host's, or did, what they are apart is no measure for elsewhere. */
static bool set_tsc_offset(const Vcpu *vcpu, const VcpuMore *more, X86Load mode, uint64_t tsc_ago) {
        uint64_t offset = more->tsc_offset - (mode == X86_LOAD_RESTORE ? tsc_ago : 0);
        struct kvm_device_attr attribute = tsc_offset_attribute(&offset);

        return mode != X86_LOAD_RESET && more->has_tsc_offset && ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attribute) >= 0 &&
                (mode != X86_LOAD_RESTORE || tsc_is_right(vcpu, more));
}

/* `entries` lie in a state as they come, on no boundary. */
static int set_msrs(const Vcpu *vcpu, const uint8_t *entries, size_t n, bool with_tsc, bool with_tsc_adjust) {
        _cleanup_free_ struct kvm_msrs *rest = allocate_msrs(n);
        struct kvm_msr_entry e;

        if (!rest)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                memcpy(&e, entries + i * sizeof(e), sizeof(e));
                if ((e.index == MSR_TSC && !with_tsc) || (e.index == MSR_TSC_ADJUST && !with_tsc_adjust))
                        continue;
                rest->entries[rest->nmsrs++] = (struct kvm_msr_entry) { .index = e.index, .data = e.data };
        }
        while (rest->nmsrs > 0) {
                int done = ioctl(vcpu->fd, KVM_SET_MSRS, rest);
                uint32_t gone;

                if (done < 0)
                        return -errno;
                /* It ended before the first that is not taken: some that can be read take no write of the same value, or none at all (feature MSRs). No error. */
                gone = MIN((uint32_t) done + 1, rest->nmsrs);
                rest->nmsrs -= gone;
                memmove(rest->entries, rest->entries + gone, rest->nmsrs * sizeof(rest->entries[0]));
        }
        return 0;
}

/* 0, or -errno with the name of the call that failed. */
static int set_part(const Vcpu *vcpu, VcpuPartIndex index, const VcpuState *state, const char **ret_step) {
        const VcpuPart *part = &parts[index];

        if (ioctl(vcpu->fd, part->set, (const uint8_t *) state + part->offset) >= 0)
                return 0;
        *ret_step = part->name;
        return -errno;
}

/* The order matters: APIC_BASE (in sregs) gives the LAPIC its mode; the LAPIC and the TSC must be there before the deadline MSR; one that goes on in VMX operation does so behind
 * the MSRs, among which are those that say what it may do there, and which cannot be changed any more from then on; events come last, as setting registers drops pending exceptions. */
static int set_all(const Vcpu *vcpu, const VcpuState *state, const VcpuMore *more, X86Load mode, uint64_t tsc_ago, const char **ret_step) {
        static const VcpuPartIndex last[] = { PART_REGS, PART_DEBUGREGS, PART_MP_STATE, PART_EVENTS };
        bool has_offset;
        int r = 0;

        /* A guest that is a host itself leaves that first: control registers of a processor that is reset are none of one in VMX operation. */
        if (mode == X86_LOAD_RESET)
                r = set_nested(vcpu, more, ret_step);
        else {
                *ret_step = "KVM_SET_CPUID2";
                r = set_cpuid(vcpu, more);
        }
        if (r >= 0)
                r = set_part(vcpu, PART_SREGS, state, ret_step);
        if (r >= 0)
                r = set_part(vcpu, PART_XCRS, state, ret_step);
        if (r < 0)
                return r;
        *ret_step = "KVM_SET_XSAVE";
        if (ioctl(vcpu->fd, KVM_SET_XSAVE, more->xsave) < 0)
                return -errno;
        r = set_part(vcpu, PART_LAPIC, state, ret_step);
        if (r < 0)
                return r;
        *ret_step = "KVM_SET_TSC_KHZ";
        r = mode == X86_LOAD_CONTINUE ? set_tsc_khz(vcpu, more) : 0;
        if (r < 0)
                return r;
        has_offset = set_tsc_offset(vcpu, more, mode, tsc_ago);
        *ret_step = "KVM_SET_MSRS";
        r = set_msrs(vcpu, more->msrs, more->msrs_size / sizeof(struct kvm_msr_entry), mode != X86_LOAD_RESET && !has_offset,
                mode != X86_LOAD_RESET);
        if (r >= 0 && mode != X86_LOAD_RESET)
                r = set_nested(vcpu, more, ret_step);
        for (size_t i = 0; i < ELEMENTSOF(last) && r >= 0; i++)
                r = set_part(vcpu, last[i], state, ret_step);
        return r;
}

static void read_more(StateReader *r, int version, VcpuMore *ret) {
        *ret = (VcpuMore) {};
        ret->xsave = state_get_blob_view(r, XSAVE_MAX, &ret->xsave_size);
        ret->msrs = state_get_blob_view(r, MSRS_MAX * sizeof(struct kvm_msr_entry), &ret->msrs_size);
        if (version < 2)
                return;
        ret->cpuid = state_get_blob_view(r, CPUID_MAX * sizeof(struct kvm_cpuid_entry2), &ret->cpuid_size);
        ret->nested = state_get_blob_view(r, NESTED_MAX, &ret->nested_size);
        ret->has_tsc_offset = state_get_u8(r) != 0;
        ret->tsc_offset = state_get_u64(r);
}

static int check_more(const Vcpu *vcpu, const VcpuMore *more, char **ret_message) {
        if (more->xsave_size != xsave_size(vcpu))
                return set_message(ret_message, -EBADMSG, "The state of vCPU %u has %zu bytes of extended registers, this host %zu.",
                        vcpu->index, more->xsave_size, xsave_size(vcpu));
        if (more->msrs_size % sizeof(struct kvm_msr_entry) != 0 || more->cpuid_size % sizeof(struct kvm_cpuid_entry2) != 0 ||
                (more->nested_size > 0 && more->nested_size < sizeof(struct kvm_nested_state)))
                return set_message(ret_message, -EBADMSG, "The state of vCPU %u has a list that does not end where an entry does.", vcpu->index);
        return 0;
}

int x86_vcpu_load(const Vcpu *vcpu, X86Load mode, uint64_t tsc_ago, StateReader *r, char **ret_message) {
        const char *step = "";
        VcpuState state;
        VcpuMore more;
        int k;

        k = state_enter(r, SECTION, vcpu->index, VERSION);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of vCPU %u.", vcpu->index);
        for (size_t i = 0; i < ELEMENTSOF(parts); i++)
                state_get_blob(r, (uint8_t *) &state + parts[i].offset, parts[i].size);
        read_more(r, k, &more);
        k = state_leave(r, ret_message);
        if (k >= 0)
                k = check_more(vcpu, &more, ret_message);
        if (k < 0)
                return k;

        k = set_all(vcpu, &state, &more, mode, tsc_ago, &step);
        if (k < 0)
                return set_message(ret_message, k, "%s of vCPU %u failed: %s.", step, vcpu->index, strerror(-k));
        return 0;
}
