/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "cpuid.h"

/* Leaves and bits: Intel SDM vol. 2, CPUID; AMD64 APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst. */
#define LEAF_VENDOR 0x0
#define LEAF_FEATURES 0x1
#define LEAF_CACHES 0x4
#define LEAF_TOPOLOGY 0xB
#define LEAF_TOPOLOGY_V2 0x1F
#define LEAF_KVM 0x40000000
#define LEAF_KVM_TIMING 0x40000010
#define LEAF_AMD_FEATURES 0x80000001
#define LEAF_AMD_SIZES 0x80000008
#define LEAF_AMD_CACHES 0x8000001D
#define LEAF_AMD_TOPOLOGY 0x8000001E
#define LEAF_AMD_TOPOLOGY_V2 0x80000026

#define F1_ECX_X2APIC (1u << 21)
#define F1_ECX_TSC_DEADLINE (1u << 24)
#define F1_ECX_HYPERVISOR (1u << 31)
#define F1_EDX_HTT (1u << 28)
#define AMD_ECX_CMP_LEGACY (1u << 1)
#define APIC_BUS_KHZ 1000000 /* KVM's LAPIC timer counts nanoseconds */

#define TOPOLOGY_SMT 1
#define TOPOLOGY_CORE 2

/* Three subleaves for each of the two topology leaves, and the timing leaf. */
#define EXTRA_ENTRIES 7

static bool has_index(uint32_t function) {
        return function == LEAF_CACHES || function == LEAF_TOPOLOGY || function == LEAF_TOPOLOGY_V2 || function == LEAF_AMD_CACHES ||
                function == LEAF_AMD_TOPOLOGY_V2;
}

const struct kvm_cpuid_entry2 *x86_cpuid_find(const struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index) {
        for (uint32_t i = 0; i < cpuid->nent; i++) {
                const struct kvm_cpuid_entry2 *e = cpuid->entries + i;

                if (e->function == function && (e->index == index || !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
                        return e;
        }
        return NULL;
}

static bool is_amd(const struct kvm_cpuid2 *cpuid) {
        const struct kvm_cpuid_entry2 *e = x86_cpuid_find(cpuid, LEAF_VENDOR, 0);
        char vendor[12];

        if (!e)
                return false;
        store_le32(vendor, e->ebx);
        store_le32(vendor + 4, e->edx);
        store_le32(vendor + 8, e->ecx);
        return memcmp(vendor, "AuthenticAMD", 12) == 0 || memcmp(vendor, "HygonGenuine", 12) == 0;
}

/* Bits of the APIC id that number the cores. */
static uint32_t core_bits(unsigned n_vcpus) {
        return n_vcpus <= 1 ? 0 : 32 - (uint32_t) __builtin_clz(n_vcpus - 1);
}

static void set_bits(uint32_t *reg, unsigned low, unsigned width, uint32_t value) {
        uint32_t max = width == 32 ? UINT32_MAX : (1u << width) - 1;

        *reg = (*reg & ~(max << low)) | MIN(value, max) << low;
}

static void adjust_features(struct kvm_cpuid_entry2 *e, const X86CpuidInput *input) {
        e->ebx = (e->ebx & 0xFFFF) | (input->vcpu_index & 0xFF) << 24;
        set_bits(&e->ebx, 16, 8, input->n_vcpus);
        e->ecx |= F1_ECX_HYPERVISOR | F1_ECX_X2APIC;
        e->ecx &= ~F1_ECX_TSC_DEADLINE;
        if (input->tsc_deadline)
                e->ecx |= F1_ECX_TSC_DEADLINE;
        e->edx &= ~F1_EDX_HTT;
        if (input->n_vcpus > 1)
                e->edx |= F1_EDX_HTT;
}

/* Leaf 4 counts ids, in powers of two: the last level is shared by the package, the others are a core's own. */
static void adjust_intel_cache(struct kvm_cpuid_entry2 *e, const X86CpuidInput *input) {
        uint32_t ids = (1u << core_bits(input->n_vcpus)) - 1;

        if ((e->eax & 0x1F) == 0)
                return;
        set_bits(&e->eax, 26, 6, ids);
        set_bits(&e->eax, 14, 12, (e->eax >> 5 & 7) >= 3 ? ids : 0);
}

static void adjust_amd(struct kvm_cpuid_entry2 *e, const X86CpuidInput *input) {
        switch (e->function) {
        case LEAF_AMD_FEATURES:
                e->ecx &= ~AMD_ECX_CMP_LEGACY;
                if (input->n_vcpus > 1)
                        e->ecx |= AMD_ECX_CMP_LEGACY;
                break;
        case LEAF_AMD_SIZES:
                set_bits(&e->ecx, 0, 8, input->n_vcpus - 1);          /* NC */
                set_bits(&e->ecx, 12, 4, core_bits(input->n_vcpus));  /* ApicIdSize */
                break;
        case LEAF_AMD_CACHES:
                if ((e->eax & 0x1F) != 0)
                        set_bits(&e->eax, 14, 12, (e->eax >> 5 & 7) >= 3 ? input->n_vcpus - 1 : 0);
                break;
        case LEAF_AMD_TOPOLOGY:
                e->eax = input->vcpu_index;
                e->ebx = input->vcpu_index & 0xFF; /* one thread per core */
                e->ecx = 0;                        /* one node, number 0 */
                e->edx = 0;
                break;
        }
}

/* Entries that say how the host's cores hang together are made anew. */
static bool is_replaced(const struct kvm_cpuid_entry2 *e) {
        return e->function == LEAF_TOPOLOGY || e->function == LEAF_TOPOLOGY_V2 || e->function == LEAF_AMD_TOPOLOGY_V2 ||
                e->function == LEAF_KVM_TIMING;
}

static void add_entry(struct kvm_cpuid2 *cpuid, struct kvm_cpuid_entry2 entry) {
        if (has_index(entry.function))
                entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        cpuid->entries[cpuid->nent++] = entry;
}

static void add_topology(struct kvm_cpuid2 *cpuid, uint32_t leaf, const X86CpuidInput *input) {
        add_entry(cpuid, (struct kvm_cpuid_entry2) {
                .function = leaf, .index = 0, .eax = 0, .ebx = 1, .ecx = TOPOLOGY_SMT << 8, .edx = input->vcpu_index });
        add_entry(cpuid, (struct kvm_cpuid_entry2) {
                .function = leaf, .index = 1, .eax = core_bits(input->n_vcpus), .ebx = input->n_vcpus,
                .ecx = TOPOLOGY_CORE << 8 | 1, .edx = input->vcpu_index });
        add_entry(cpuid, (struct kvm_cpuid_entry2) {
                .function = leaf, .index = 2, .ecx = 2, .edx = input->vcpu_index });
}

static void adjust_entry(struct kvm_cpuid_entry2 *e, const X86CpuidInput *input, bool amd) {
        if (e->function == LEAF_FEATURES)
                adjust_features(e, input);
        else if (e->function == LEAF_CACHES && !amd)
                adjust_intel_cache(e, input);
        else if (e->function == LEAF_KVM && input->tsc_khz > 0)
                e->eax = MAX(e->eax, (uint32_t) LEAF_KVM_TIMING);
        else if (amd)
                adjust_amd(e, input);
}

int x86_cpuid_build(const struct kvm_cpuid2 *supported, const X86CpuidInput *input, struct kvm_cpuid2 **ret) {
        _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
        const struct kvm_cpuid_entry2 *vendor = x86_cpuid_find(supported, LEAF_VENDOR, 0);
        uint32_t max_leaf = vendor ? vendor->eax : 0;
        bool amd = is_amd(supported);

        if (input->n_vcpus == 0 || input->vcpu_index >= input->n_vcpus)
                return -EINVAL;
        cpuid = calloc(1, sizeof(*cpuid) + ((size_t) supported->nent + EXTRA_ENTRIES) * sizeof(cpuid->entries[0]));
        if (!cpuid)
                return -ENOMEM;

        for (uint32_t i = 0; i < supported->nent; i++) {
                struct kvm_cpuid_entry2 e = supported->entries[i];

                if (is_replaced(&e))
                        continue;
                adjust_entry(&e, input, amd);
                cpuid->entries[cpuid->nent++] = e;
        }
        if (max_leaf >= LEAF_TOPOLOGY)
                add_topology(cpuid, LEAF_TOPOLOGY, input);
        if (max_leaf >= LEAF_TOPOLOGY_V2 && !amd)
                add_topology(cpuid, LEAF_TOPOLOGY_V2, input);
        /* Where KVM says nothing of itself the guest would not look for its timing leaf, either. */
        if (input->tsc_khz > 0 && x86_cpuid_find(cpuid, LEAF_KVM, 0))
                add_entry(cpuid, (struct kvm_cpuid_entry2) {
                        .function = LEAF_KVM_TIMING, .eax = input->tsc_khz, .ebx = APIC_BUS_KHZ });

        *ret = TAKE_PTR(cpuid);
        return 0;
}
