/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "plugin-kvm.h"

/* --- structures --- */

typedef struct Structure {
        unsigned long get, set;
        size_t size;
} Structure;

#define STRUCTURE(call, type) { KVM_GET_##call, KVM_SET_##call, sizeof(struct type) }

/* As the protocol's VcpuRequest.StateSet counts them. */
static const Structure vcpu_structures[] = {
        STRUCTURE(REGS, kvm_regs),     STRUCTURE(SREGS, kvm_sregs),       STRUCTURE(FPU, kvm_fpu),
        STRUCTURE(DEBUGREGS, kvm_debugregs), STRUCTURE(LAPIC, kvm_lapic_state), STRUCTURE(MP_STATE, kvm_mp_state),
        STRUCTURE(XCRS, kvm_xcrs),     STRUCTURE(VCPU_EVENTS, kvm_vcpu_events),
};

/* As MainRequest.StateSet does, where they are not of the interrupt controller. */
enum { SET_PIC0, SET_PIC1, SET_IOAPIC, SET_PIT, SET_CLOCK };

static int get_irqchip(Kvm *kvm, unsigned set, uint8_t *ret, size_t *ret_size) {
        struct kvm_irqchip chip = { .chip_id = set };

        if (ioctl(kvm->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
                return -errno;
        *ret_size = set == SET_IOAPIC ? sizeof(chip.chip.ioapic) : sizeof(chip.chip.pic);
        memcpy(ret, &chip.chip, *ret_size);
        return 0;
}

static int set_irqchip(Kvm *kvm, unsigned set, const uint8_t *state, size_t size) {
        struct kvm_irqchip chip = { .chip_id = set };

        if (size != (set == SET_IOAPIC ? sizeof(chip.chip.ioapic) : sizeof(chip.chip.pic)))
                return -EINVAL;
        memcpy(&chip.chip, state, size);
        return ioctl(kvm->vm_fd, KVM_SET_IRQCHIP, &chip) < 0 ? -errno : 0;
}

static const Structure *machine_structure(unsigned set) {
        static const Structure pit = { KVM_GET_PIT2, KVM_SET_PIT2, sizeof(struct kvm_pit_state2) };
        static const Structure clock = STRUCTURE(CLOCK, kvm_clock_data);

        return set == SET_PIT ? &pit : set == SET_CLOCK ? &clock : NULL;
}

int plugin_kvm_get_machine_state(Kvm *kvm, unsigned set, uint8_t ret[static PLUGIN_STATE_MAX], size_t *ret_size) {
        const Structure *s = machine_structure(set);

        if (set <= SET_IOAPIC)
                return get_irqchip(kvm, set, ret, ret_size);
        if (!s)
                return -EINVAL;
        memset(ret, 0, s->size);
        if (ioctl(kvm->vm_fd, s->get, ret) < 0)
                return -errno;
        *ret_size = s->size;
        return 0;
}

int plugin_kvm_set_machine_state(Kvm *kvm, unsigned set, const uint8_t *state, size_t size) {
        const Structure *s = machine_structure(set);
        uint8_t copy[PLUGIN_STATE_MAX] __attribute__((aligned(8)));

        if (set <= SET_IOAPIC)
                return set_irqchip(kvm, set, state, size);
        if (!s || size != s->size)
                return -EINVAL;
        memcpy(copy, state, size);
        return ioctl(kvm->vm_fd, s->set, copy) < 0 ? -errno : 0;
}

int plugin_kvm_get_vcpu_state(const Vcpu *vcpu, unsigned set, uint8_t ret[static PLUGIN_STATE_MAX], size_t *ret_size) {
        if (set >= ELEMENTSOF(vcpu_structures))
                return -EINVAL;
        if (ioctl(vcpu->fd, vcpu_structures[set].get, ret) < 0)
                return -errno;
        *ret_size = vcpu_structures[set].size;
        return 0;
}

int plugin_kvm_set_vcpu_state(const Vcpu *vcpu, unsigned set, const uint8_t *state, size_t size) {
        uint8_t copy[PLUGIN_STATE_MAX] __attribute__((aligned(8)));

        if (set >= ELEMENTSOF(vcpu_structures) || size != vcpu_structures[set].size)
                return -EINVAL;
        memcpy(copy, state, size);
        return ioctl(vcpu->fd, vcpu_structures[set].set, copy) < 0 ? -errno : 0;
}

void plugin_kvm_hint_registers(const uint8_t *regs, uint64_t ret[static 4]) {
        struct kvm_regs r;

        memcpy(&r, regs, sizeof(r));
        ret[0] = r.rax;
        ret[1] = r.rbx;
        ret[2] = r.rcx;
        ret[3] = r.rdx;
}

/* --- CPUID and MSRs --- */

static struct kvm_cpuid2 *cpuid_new(size_t n) {
        struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + n * sizeof(cpuid->entries[0]));

        if (cpuid)
                cpuid->nent = (uint32_t) n;
        return cpuid;
}

int plugin_kvm_get_cpuid(const Kvm *kvm, const Vcpu *vcpu, PluginCpuidList list, PluginCpuid ret[static PLUGIN_CPUID_MAX], size_t *ret_n) {
        _cleanup_free_ struct kvm_cpuid2 *cpuid = cpuid_new(PLUGIN_CPUID_MAX);
        int r;

        if (!cpuid)
                return -ENOMEM;
        if (list == PLUGIN_CPUID_HYPERV)
                r = ioctl(vcpu->fd, KVM_GET_SUPPORTED_HV_CPUID, cpuid);
        else
                r = ioctl(kvm->kvm_fd, list == PLUGIN_CPUID_SUPPORTED ? KVM_GET_SUPPORTED_CPUID : KVM_GET_EMULATED_CPUID, cpuid);
        if (r < 0)
                return -errno;
        for (uint32_t i = 0; i < cpuid->nent; i++) {
                const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

                ret[i] = (PluginCpuid) { .function = e->function, .index = e->index, .eax = e->eax, .ebx = e->ebx, .ecx = e->ecx,
                                         .edx = e->edx, .has_index = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX };
        }
        *ret_n = cpuid->nent;
        return 0;
}

int plugin_kvm_set_cpuid(const Vcpu *vcpu, const PluginCpuid *entries, size_t n) {
        _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;

        if (n > PLUGIN_CPUID_MAX)
                return -E2BIG;
        cpuid = cpuid_new(n);
        if (!cpuid)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                cpuid->entries[i] = (struct kvm_cpuid_entry2) {
                        .function = entries[i].function,
                        .index = entries[i].has_index ? entries[i].index : 0,
                        .flags = entries[i].has_index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                        .eax = entries[i].eax,
                        .ebx = entries[i].ebx,
                        .ecx = entries[i].ecx,
                        .edx = entries[i].edx,
                };
        return ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0 ? -errno : 0;
}

int plugin_kvm_get_msr_list(const Kvm *kvm, uint32_t ret[static PLUGIN_MSRS_MAX], size_t *ret_n) {
        _cleanup_free_ struct kvm_msr_list *list = calloc(1, sizeof(*list) + PLUGIN_MSRS_MAX * sizeof(list->indices[0]));

        if (!list)
                return -ENOMEM;
        list->nmsrs = PLUGIN_MSRS_MAX;
        if (ioctl(kvm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
                return -errno;
        memcpy(ret, list->indices, list->nmsrs * sizeof(list->indices[0]));
        *ret_n = list->nmsrs;
        return 0;
}

static struct kvm_msrs *msrs_new(const uint32_t *indices, const uint64_t *values, size_t n) {
        struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + n * sizeof(msrs->entries[0]));

        for (size_t i = 0; msrs && i < n; i++)
                msrs->entries[i] = (struct kvm_msr_entry) { .index = indices[i], .data = values ? values[i] : 0 };
        if (msrs)
                msrs->nmsrs = (uint32_t) n;
        return msrs;
}

int plugin_kvm_get_msrs(const Vcpu *vcpu, const uint32_t *indices, size_t n, uint64_t *ret, size_t *ret_n) {
        _cleanup_free_ struct kvm_msrs *msrs = NULL;
        int found;

        if (n > PLUGIN_MSRS_MAX)
                return -E2BIG;
        msrs = msrs_new(indices, NULL, n);
        if (!msrs)
                return -ENOMEM;
        found = ioctl(vcpu->fd, KVM_GET_MSRS, msrs);
        if (found < 0)
                return -errno;
        for (int i = 0; i < found; i++)
                ret[i] = msrs->entries[i].data;
        *ret_n = (size_t) found;
        return 0;
}

int plugin_kvm_set_msrs(const Vcpu *vcpu, const uint32_t *indices, const uint64_t *values, size_t n) {
        _cleanup_free_ struct kvm_msrs *msrs = NULL;

        if (n > PLUGIN_MSRS_MAX)
                return -E2BIG;
        msrs = msrs_new(indices, values, n);
        if (!msrs)
                return -ENOMEM;
        return ioctl(vcpu->fd, KVM_SET_MSRS, msrs) < 0 ? -errno : 0;
}

int plugin_kvm_enable_vcpu_capability(const Vcpu *vcpu, uint32_t capability) {
        struct kvm_enable_cap cap = { .cap = capability };

        if (capability != KVM_CAP_HYPERV_SYNIC && capability != KVM_CAP_HYPERV_SYNIC2)
                return -EINVAL;
        return ioctl(vcpu->fd, KVM_ENABLE_CAP, &cap) < 0 ? -errno : 0;
}

/* --- the machine --- */

int plugin_kvm_create_platform(Kvm *kvm, char **ret_message) {
        struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
        const char *step = NULL;

        /* Where nothing is in the way: behind what plugins of crosvm's know as its place. */
        if (ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000UL) < 0)
                step = "KVM_SET_TSS_ADDR";
        else if (ioctl(kvm->vm_fd, KVM_CREATE_IRQCHIP, 0UL) < 0)
                step = "KVM_CREATE_IRQCHIP";
        else if (ioctl(kvm->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
                step = "KVM_CREATE_PIT2";
        return step ? set_message(ret_message, -errno, "%s failed: %s.", step, strerror(errno)) : 0;
}

int plugin_kvm_ioeventfd(Kvm *kvm, KvmIoSpace space, uint64_t address, unsigned length, uint64_t datamatch, int fd, bool attach) {
        struct kvm_ioeventfd event = {
                .addr = address,
                .len = length,
                .datamatch = datamatch,
                .fd = fd,
                .flags = (space == KVM_SPACE_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0) | (length > 0 ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
                        (attach ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
        };

        if (length != 0 && length != 1 && length != 2 && length != 4 && length != 8)
                return -EINVAL;
        return ioctl(kvm->vm_fd, KVM_IOEVENTFD, &event) < 0 ? -errno : 0;
}

int plugin_kvm_set_routes(Kvm *kvm, const PluginRoute *routes, size_t n) {
        _cleanup_free_ struct kvm_irq_routing *table = NULL;

        if (n > KVM_GSI_MAX)
                return -E2BIG;
        table = calloc(1, sizeof(*table) + n * sizeof(table->entries[0]));
        if (!table)
                return -ENOMEM;
        table->nr = (uint32_t) n;
        for (size_t i = 0; i < n; i++) {
                struct kvm_irq_routing_entry *e = &table->entries[i];

                e->gsi = routes[i].gsi;
                e->type = routes[i].is_msi ? KVM_IRQ_ROUTING_MSI : KVM_IRQ_ROUTING_IRQCHIP;
                if (routes[i].is_msi) {
                        e->u.msi.address_lo = (uint32_t) routes[i].address;
                        e->u.msi.address_hi = (uint32_t) (routes[i].address >> 32);
                        e->u.msi.data = routes[i].data;
                } else {
                        e->u.irqchip.irqchip = routes[i].chip;
                        e->u.irqchip.pin = routes[i].pin;
                }
        }
        return ioctl(kvm->vm_fd, KVM_SET_GSI_ROUTING, table) < 0 ? -errno : 0;
}

int plugin_kvm_set_memory(Kvm *kvm, uint32_t slot, uint64_t guest_address, uint64_t size, void *host, bool read_only, bool dirty_log) {
        struct kvm_userspace_memory_region region = {
                .slot = slot,
                .flags = (read_only ? KVM_MEM_READONLY : 0U) | (dirty_log ? KVM_MEM_LOG_DIRTY_PAGES : 0U),
                .guest_phys_addr = guest_address,
                .memory_size = size,
                .userspace_addr = (uintptr_t) host,
        };

        return ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

unsigned plugin_kvm_memory_slots(const Kvm *kvm) {
        int n = kvm_check_extension(kvm, KVM_CAP_NR_MEMSLOTS);

        return n > 0 ? (unsigned) n : 32;
}

int plugin_kvm_get_dirty_log(Kvm *kvm, uint32_t slot, uint64_t *ret) {
        struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = ret };

        return ioctl(kvm->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

int plugin_kvm_set_identity_map(Kvm *kvm, uint64_t address) {
        return ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &address) < 0 ? -errno : 0;
}

/* --- exits --- */

static void hyperv_exit(struct kvm_hyperv_exit *h, PluginExit *ret) {
        if (h->type == KVM_EXIT_HYPERV_HCALL) {
                ret->kind = PLUGIN_EXIT_HYPERV_CALL;
                ret->input = h->u.hcall.input;
                ret->params[0] = h->u.hcall.params[0];
                ret->params[1] = h->u.hcall.params[1];
                ret->result = (uint64_t *) &h->u.hcall.result;
        } else if (h->type == KVM_EXIT_HYPERV_SYNIC) {
                ret->kind = PLUGIN_EXIT_HYPERV_SYNIC;
                ret->msr = h->u.synic.msr;
                ret->control = h->u.synic.control;
                ret->event_page = h->u.synic.evt_page;
                ret->message_page = h->u.synic.msg_page;
        }
}

void plugin_kvm_exit(const Vcpu *vcpu, PluginExit *ret) {
        struct kvm_run *run = vcpu->run;

        *ret = (PluginExit) {};
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
                ret->kind = PLUGIN_EXIT_ACCESS;
                ret->is_pio = true;
                ret->is_write = run->io.direction == KVM_EXIT_IO_OUT;
                ret->address = run->io.port;
                ret->data = (uint8_t *) run + run->io.data_offset;
                /* A string instruction: all of it at once. */
                ret->size = (size_t) run->io.size * run->io.count;
                break;
        case KVM_EXIT_MMIO:
                ret->kind = PLUGIN_EXIT_ACCESS;
                ret->is_write = run->mmio.is_write;
                ret->address = run->mmio.phys_addr;
                ret->data = run->mmio.data;
                ret->size = run->mmio.len;
                break;
        case KVM_EXIT_HYPERV:
                hyperv_exit(&run->hyperv, ret);
                break;
        default:
                break;
        }
}
