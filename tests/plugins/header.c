/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What programs that were built for crosvm take for granted of the header: its version, where each member lies, the numbers of the constants, what each
 * function takes. Not from our header, but as crosvm's has it. */

#include <assert.h>
#include <stddef.h>

#include <crosvm.h>

#define LIES(type, member, offset, size)                                                                       \
        _Static_assert(offsetof(struct type, member) == (offset) && sizeof(((struct type *) NULL)->member) == (size), #type "." #member)

LIES(crosvm_net_config, tap_fd, 0, 4);
LIES(crosvm_net_config, host_ip, 4, 4);
LIES(crosvm_net_config, netmask, 8, 4);
LIES(crosvm_net_config, host_mac_address, 12, 6);

LIES(crosvm_irq_route, irq_id, 0, 4);
LIES(crosvm_irq_route, kind, 4, 4);
LIES(crosvm_irq_route, irqchip.irqchip, 8, 4);
LIES(crosvm_irq_route, irqchip.pin, 12, 4);
LIES(crosvm_irq_route, msi.address, 8, 8);
LIES(crosvm_irq_route, msi.data, 16, 4);

LIES(crosvm_hint_detail, match_rax, 0, 1);
LIES(crosvm_hint_detail, match_rbx, 1, 1);
LIES(crosvm_hint_detail, match_rcx, 2, 1);
LIES(crosvm_hint_detail, match_rdx, 3, 1);
LIES(crosvm_hint_detail, rax, 8, 8);
LIES(crosvm_hint_detail, rdx, 32, 8);
LIES(crosvm_hint_detail, send_sregs, 40, 1);
LIES(crosvm_hint_detail, send_debugregs, 41, 1);

LIES(crosvm_hint, hint_version, 0, 4);
LIES(crosvm_hint, address_space, 8, 4);
LIES(crosvm_hint, address_flags, 12, 2);
LIES(crosvm_hint, details_count, 14, 2);
LIES(crosvm_hint, address, 16, 8);
LIES(crosvm_hint, details, 24, 8); /* NOLINT(bugprone-sizeof-expression): a pointer it is */

LIES(crosvm_vcpu_event, kind, 0, 4);
LIES(crosvm_vcpu_event, io_access.address_space, 8, 4);
LIES(crosvm_vcpu_event, io_access.address, 16, 8);
LIES(crosvm_vcpu_event, io_access.data, 24, 8);
LIES(crosvm_vcpu_event, io_access.length, 32, 4);
LIES(crosvm_vcpu_event, io_access.is_write, 36, 1);
LIES(crosvm_vcpu_event, io_access.no_resume, 37, 1);
LIES(crosvm_vcpu_event, user, 8, 8);
LIES(crosvm_vcpu_event, hyperv_call.input, 8, 8);
LIES(crosvm_vcpu_event, hyperv_call.result, 16, 8);
LIES(crosvm_vcpu_event, hyperv_call.params, 24, 16);
LIES(crosvm_vcpu_event, hyperv_synic.msr, 8, 4);
LIES(crosvm_vcpu_event, hyperv_synic.control, 16, 8);
LIES(crosvm_vcpu_event, hyperv_synic.evt_page, 24, 8);
LIES(crosvm_vcpu_event, hyperv_synic.msg_page, 32, 8);

_Static_assert(sizeof(struct crosvm_net_config) == 20 && sizeof(struct crosvm_irq_route) == 24 && sizeof(struct crosvm_hint_detail) == 48 &&
               sizeof(struct crosvm_hint) == 32 && sizeof(struct crosvm_vcpu_event) == 72, "whole");
_Static_assert(CROSVM_ADDRESS_SPACE_IOPORT == 0 && CROSVM_ADDRESS_SPACE_MMIO == 1 && CROSVM_IRQ_ROUTE_IRQCHIP == 0 && CROSVM_IRQ_ROUTE_MSI == 1,
        "spaces and routes");
_Static_assert(CROSVM_VCPU_EVENT_KIND_INIT == 0 && CROSVM_VCPU_EVENT_KIND_IO_ACCESS == 1 && CROSVM_VCPU_EVENT_KIND_PAUSED == 2 &&
               CROSVM_VCPU_EVENT_KIND_HYPERV_HCALL == 3 && CROSVM_VCPU_EVENT_KIND_HYPERV_SYNIC == 4, "events");
_Static_assert(CROSVM_MAX_HINT_COUNT == 1 && CROSVM_MAX_HINT_DETAIL_COUNT == 32, "hints");
_Static_assert(CROSVM_HINT_ON_WRITE == 1, "what a hint is for");
/* NOLINTNEXTLINE(misc-redundant-expression): two of them are the same number */
_Static_assert(CROSVM_API_MAJOR == 0 && CROSVM_API_MINOR == 22 && CROSVM_API_PATCH == 0, "the version");

#define SIGNATURE(name, ...) _Static_assert(__builtin_types_compatible_p(__typeof__(crosvm_##name), int(__VA_ARGS__)), #name)

SIGNATURE(connect, struct crosvm **);
SIGNATURE(new_connection, struct crosvm *, struct crosvm **);
SIGNATURE(destroy_connection, struct crosvm **);
SIGNATURE(get_shutdown_eventfd, struct crosvm *);
SIGNATURE(check_extension, struct crosvm *, uint32_t, bool *);
SIGNATURE(enable_capability, struct crosvm *, uint32_t, uint32_t, uint64_t[4]);
SIGNATURE(get_supported_cpuid, struct crosvm *, uint32_t, struct kvm_cpuid_entry2 *, uint32_t *);
SIGNATURE(get_emulated_cpuid, struct crosvm *, uint32_t, struct kvm_cpuid_entry2 *, uint32_t *);
SIGNATURE(get_hyperv_cpuid, struct crosvm_vcpu *, uint32_t, struct kvm_cpuid_entry2 *, uint32_t *);
SIGNATURE(get_msr_index_list, struct crosvm *, uint32_t, uint32_t *, uint32_t *);
SIGNATURE(net_get_config, struct crosvm *, struct crosvm_net_config *);
SIGNATURE(reserve_range, struct crosvm *, uint32_t, uint64_t, uint64_t);
SIGNATURE(reserve_async_write_range, struct crosvm *, uint32_t, uint64_t, uint64_t);
SIGNATURE(set_irq, struct crosvm *, uint32_t, bool);
SIGNATURE(set_irq_routing, struct crosvm *, uint32_t, const struct crosvm_irq_route *);
SIGNATURE(set_hypercall_hint, struct crosvm *, uint32_t, const struct crosvm_hint *);
SIGNATURE(get_pic_state, struct crosvm *, bool, struct kvm_pic_state *);
SIGNATURE(set_pic_state, struct crosvm *, bool, const struct kvm_pic_state *);
SIGNATURE(get_ioapic_state, struct crosvm *, struct kvm_ioapic_state *);
SIGNATURE(set_ioapic_state, struct crosvm *, const struct kvm_ioapic_state *);
SIGNATURE(get_pit_state, struct crosvm *, struct kvm_pit_state2 *);
SIGNATURE(set_pit_state, struct crosvm *, const struct kvm_pit_state2 *);
SIGNATURE(get_clock, struct crosvm *, struct kvm_clock_data *);
SIGNATURE(set_clock, struct crosvm *, const struct kvm_clock_data *);
SIGNATURE(set_identity_map_addr, struct crosvm *, uint32_t);
SIGNATURE(pause_vcpus, struct crosvm *, uint64_t, void *);
SIGNATURE(start, struct crosvm *);
SIGNATURE(create_io_event, struct crosvm *, uint32_t, uint64_t, uint32_t, const uint8_t *, struct crosvm_io **);
SIGNATURE(destroy_io_event, struct crosvm *, struct crosvm_io **);
SIGNATURE(io_event_fd, struct crosvm_io *);
SIGNATURE(create_memory, struct crosvm *, int, uint64_t, uint64_t, uint64_t, bool, bool, struct crosvm_memory **);
SIGNATURE(destroy_memory, struct crosvm *, struct crosvm_memory **);
SIGNATURE(memory_get_dirty_log, struct crosvm *, struct crosvm_memory *, uint8_t *);
SIGNATURE(create_irq_event, struct crosvm *, uint32_t, struct crosvm_irq **);
SIGNATURE(destroy_irq_event, struct crosvm *, struct crosvm_irq **);
SIGNATURE(irq_event_get_fd, const struct crosvm_irq *);
SIGNATURE(irq_event_get_resample_fd, const struct crosvm_irq *);
SIGNATURE(get_vcpu, struct crosvm *, uint32_t, struct crosvm_vcpu **);
SIGNATURE(vcpu_wait, struct crosvm_vcpu *, struct crosvm_vcpu_event *);
SIGNATURE(vcpu_resume, struct crosvm_vcpu *);
SIGNATURE(vcpu_get_regs, struct crosvm_vcpu *, struct kvm_regs *);
SIGNATURE(vcpu_set_regs, struct crosvm_vcpu *, const struct kvm_regs *);
SIGNATURE(vcpu_get_sregs, struct crosvm_vcpu *, struct kvm_sregs *);
SIGNATURE(vcpu_set_sregs, struct crosvm_vcpu *, const struct kvm_sregs *);
SIGNATURE(vcpu_get_fpu, struct crosvm_vcpu *, struct kvm_fpu *);
SIGNATURE(vcpu_set_fpu, struct crosvm_vcpu *, const struct kvm_fpu *);
SIGNATURE(vcpu_get_debugregs, struct crosvm_vcpu *, struct kvm_debugregs *);
SIGNATURE(vcpu_set_debugregs, struct crosvm_vcpu *, const struct kvm_debugregs *);
SIGNATURE(vcpu_get_xcrs, struct crosvm_vcpu *, struct kvm_xcrs *);
SIGNATURE(vcpu_set_xcrs, struct crosvm_vcpu *, const struct kvm_xcrs *);
SIGNATURE(vcpu_get_msrs, struct crosvm_vcpu *, uint32_t, struct kvm_msr_entry *, uint32_t *);
SIGNATURE(vcpu_set_msrs, struct crosvm_vcpu *, uint32_t, const struct kvm_msr_entry *);
SIGNATURE(vcpu_set_cpuid, struct crosvm_vcpu *, uint32_t, const struct kvm_cpuid_entry2 *);
SIGNATURE(vcpu_enable_capability, struct crosvm_vcpu *, uint32_t, uint32_t, uint64_t[4]);
SIGNATURE(vcpu_get_lapic_state, struct crosvm_vcpu *, struct kvm_lapic_state *);
SIGNATURE(vcpu_set_lapic_state, struct crosvm_vcpu *, const struct kvm_lapic_state *);
SIGNATURE(vcpu_get_mp_state, struct crosvm_vcpu *, struct kvm_mp_state *);
SIGNATURE(vcpu_set_mp_state, struct crosvm_vcpu *, const struct kvm_mp_state *);
SIGNATURE(vcpu_get_vcpu_events, struct crosvm_vcpu *, struct kvm_vcpu_events *);
SIGNATURE(vcpu_set_vcpu_events, struct crosvm_vcpu *, const struct kvm_vcpu_events *);
