/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* For programs that supply all the hardware of a virtual machine: crosvm's plugin API 0.22, source and binary compatible, with vmmd behind it.
 * crosvm_plugin(3) is the manual.
 *
 * A plugin connects, makes memory, I/O events and interrupts, reserves the addresses it wants to answer, sets the vCPUs up, and calls
 * crosvm_start(). Each vCPU has a thread of the plugin's that waits for its events and resumes it. Unless it says otherwise, a function
 * returns 0 or, where it gives one, a descriptor; an error is a negative errno.
 *
 * A struct crosvm is for one thread at a time, and so is each struct crosvm_vcpu. */

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include <linux/kvm.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface (semver.org), not of what is behind it. */
#define CROSVM_API_MAJOR 0
#define CROSVM_API_MINOR 22
#define CROSVM_API_PATCH 0

enum crosvm_address_space {
        CROSVM_ADDRESS_SPACE_IOPORT = 0,
        CROSVM_ADDRESS_SPACE_MMIO,
};

struct crosvm;        /* a connection to the process that runs the machine */
struct crosvm_io;     /* an eventfd that the guest's writes signal */
struct crosvm_memory; /* memory of the guest */
struct crosvm_irq;    /* an eventfd that interrupts the guest */
struct crosvm_vcpu;   /* belongs to the connection; the same for all connections of a plugin */

/* --- connections --- */

/* Takes the socket whose number is in $CROSVM_SOCKET. -ENOTCONN where that is not set, -EINVAL where it is no number, -EPROTO where who is
 * behind it does not speak the protocol. */
int crosvm_connect(struct crosvm **);

/* One more connection, for another thread. Before crosvm_start(). */
int crosvm_new_connection(struct crosvm *, struct crosvm **);

/* Ends the connection; the objects that it made stay. The last one's end frees the vCPUs' handles. */
int crosvm_destroy_connection(struct crosvm **);

/* An eventfd, the caller's to close, that is signalled once when the plugin is to exit. */
int crosvm_get_shutdown_eventfd(struct crosvm *);

/* --- what KVM can do --- */

/* Whether the machine's KVM has the KVM_CAP_…. */
int crosvm_check_extension(struct crosvm *, uint32_t extension, bool *ret);

/* There is none that could be enabled: -EINVAL. */
int crosvm_enable_capability(struct crosvm *, uint32_t capability, uint32_t flags, uint64_t args[4]);

/* KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID, KVM_GET_SUPPORTED_HV_CPUID, KVM_GET_MSR_INDEX_LIST. *ret_count is how many there are; -E2BIG where
 * there is no room for them, and then none is written. */
int crosvm_get_supported_cpuid(struct crosvm *, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count);
int crosvm_get_emulated_cpuid(struct crosvm *, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count);
int crosvm_get_hyperv_cpuid(struct crosvm_vcpu *, uint32_t n_entries, struct kvm_cpuid_entry2 *entries,
        uint32_t *ret_count);
int crosvm_get_msr_index_list(struct crosvm *, uint32_t n_entries, uint32_t *indices, uint32_t *ret_count);

/* --- network --- */

struct crosvm_net_config {
        int tap_fd;                  /* the caller's to close */
        uint32_t host_ip;            /* of the tap, in network order */
        uint32_t netmask;            /* in network order */
        uint8_t host_mac_address[6]; /* of the tap */
        uint8_t _padding[2];
};

#ifdef static_assert
static_assert(sizeof(struct crosvm_net_config) == 20, "struct crosvm_net_config");
#endif

/* -ENODATA where the plugin was given no tap. */
int crosvm_net_get_config(struct crosvm *, struct crosvm_net_config *);

/* --- addresses that the plugin answers --- */

/* An access to one of these stops the vCPU until it is resumed. A length of 0 ends the reservation that begins at `start`: -ENOENT where there is
 * none. -EPERM where it would overlap another one. */
int crosvm_reserve_range(struct crosvm *, uint32_t space, uint64_t start, uint64_t length);

/* Writes are told (no_resume), and the vCPU goes on meanwhile; reads find nothing. The rest as above. */
int crosvm_reserve_async_write_range(struct crosvm *, uint32_t space, uint64_t start, uint64_t length);

struct crosvm_hint_detail {
        bool match_rax, match_rbx, match_rcx, match_rdx; /* which of these registers have to have the value below */
        uint8_t _reserved[4];
        uint64_t rax, rbx, rcx, rdx;
        bool send_sregs;     /* then, what comes with the event */
        bool send_debugregs;
        uint8_t _reserved2[6];
};

#ifdef static_assert
static_assert(sizeof(struct crosvm_hint_detail) == 48, "struct crosvm_hint_detail");
#endif

#define CROSVM_MAX_HINT_COUNT 1
#define CROSVM_MAX_HINT_DETAIL_COUNT 32
#define CROSVM_HINT_ON_WRITE 0x1

struct crosvm_hint {
        uint32_t hint_version;  /* 0 */
        uint32_t _reserved;     /* 0 */
        uint32_t address_space; /* enum crosvm_address_space */
        uint16_t address_flags; /* 0: on reads; CROSVM_HINT_ON_WRITE: on writes */
        uint16_t details_count;
        uint64_t address;       /* not 0 */
        union {
                struct crosvm_hint_detail *details;
                uint64_t _reserved2; /* a pointer has 64 bits in any case */
        };
};

#ifdef static_assert
static_assert(sizeof(struct crosvm_hint) == 32, "struct crosvm_hint");
#endif

/* At that address the plugin is going to look at the registers: they come along with the event, and by the first detail that matches, the special
 * and debug registers, too. Replaces the hint before; n_hints 0 ends it. -EINVAL where a hint is not as said above. */
int crosvm_set_hypercall_hint(struct crosvm *, uint32_t n_hints, const struct crosvm_hint *hints);

/* --- interrupts --- */

/* KVM_IRQ_LINE. */
int crosvm_set_irq(struct crosvm *, uint32_t irq_id, bool active);

enum crosvm_irq_route_kind {
        CROSVM_IRQ_ROUTE_IRQCHIP = 0,
        CROSVM_IRQ_ROUTE_MSI,
};

struct crosvm_irq_route {
        uint32_t irq_id;
        uint32_t kind; /* enum crosvm_irq_route_kind */
        union {
                struct {
                        uint32_t irqchip; /* KVM_IRQCHIP_… */
                        uint32_t pin;
                } irqchip;
                struct {
                        uint64_t address;
                        uint32_t data;
                        uint8_t _reserved[4];
                } msi;
                uint8_t _reserved[16];
        };
};

#ifdef static_assert
static_assert(sizeof(struct crosvm_irq_route) == 24, "struct crosvm_irq_route");
#endif

/* These are all routes from now on; NULL and 0: none. -EINVAL where a kind is none of the above. */
int crosvm_set_irq_routing(struct crosvm *, uint32_t n, const struct crosvm_irq_route *from);

/* An eventfd that interrupts the guest, and one that tells that it is done with it (KVM_IRQFD_FLAG_RESAMPLE). Both are the handle's. */
int crosvm_create_irq_event(struct crosvm *, uint32_t irq_id, struct crosvm_irq **);
int crosvm_destroy_irq_event(struct crosvm *, struct crosvm_irq **);
int crosvm_irq_event_get_fd(const struct crosvm_irq *);
int crosvm_irq_event_get_resample_fd(const struct crosvm_irq *);

/* --- I/O events --- */

/* An eventfd, the handle's, that a write signals. A datamatch of `length` bytes (1, 2, 4 or 8) is the value that has to be written; NULL, or 0 bytes, is
 * any write. */
int crosvm_create_io_event(struct crosvm *, uint32_t space, uint64_t address, uint32_t length, const uint8_t *datamatch,
        struct crosvm_io **);
int crosvm_destroy_io_event(struct crosvm *, struct crosvm_io **);
int crosvm_io_event_fd(struct crosvm_io *);

/* --- memory --- */

/* Memory of the guest from `start` on is that of the memfd from `offset` on. -EPERM where the memfd is not sealed against shrinking, -EINVAL where
 * offset or length are no multiples of a page or the memfd ends before, -EBADF without a descriptor. Where it is read-only, writes are accesses of the
 * MMIO space. */
int crosvm_create_memory(struct crosvm *, int fd, uint64_t offset, uint64_t length, uint64_t start, bool read_only,
        bool dirty_log, struct crosvm_memory **);
int crosvm_destroy_memory(struct crosvm *, struct crosvm_memory **);

/* The pages written since the last call: a bit a page, in as many bytes as that takes. The memory has to be made with dirty_log. */
int crosvm_memory_get_dirty_log(struct crosvm *, struct crosvm_memory *, uint8_t *ret);

/* --- the machine's state: as KVM gives and takes it --- */

int crosvm_get_pic_state(struct crosvm *, bool primary, struct kvm_pic_state *ret);
int crosvm_set_pic_state(struct crosvm *, bool primary, const struct kvm_pic_state *state);
int crosvm_get_ioapic_state(struct crosvm *, struct kvm_ioapic_state *ret);
int crosvm_set_ioapic_state(struct crosvm *, const struct kvm_ioapic_state *state);
int crosvm_get_pit_state(struct crosvm *, struct kvm_pit_state2 *ret);
int crosvm_set_pit_state(struct crosvm *, const struct kvm_pit_state2 *state);
int crosvm_get_clock(struct crosvm *, struct kvm_clock_data *ret);
int crosvm_set_clock(struct crosvm *, const struct kvm_clock_data *state);
int crosvm_set_identity_map_addr(struct crosvm *, uint32_t address);

/* Each vCPU of the mask stops with a CROSVM_VCPU_EVENT_KIND_PAUSED that carries `user`. Of several requests before that, the last one counts. */
int crosvm_pause_vcpus(struct crosvm *, uint64_t mask, void *user);

/* The guest runs. Once: -EINVAL after that. */
int crosvm_start(struct crosvm *);

/* --- vCPUs --- */

enum crosvm_vcpu_event_kind {
        CROSVM_VCPU_EVENT_KIND_INIT = 0,     /* the first of all: it has not run yet */
        CROSVM_VCPU_EVENT_KIND_IO_ACCESS,    /* a reserved address was accessed */
        CROSVM_VCPU_EVENT_KIND_PAUSED,       /* crosvm_pause_vcpus() */
        CROSVM_VCPU_EVENT_KIND_HYPERV_HCALL, /* a hypercall of Hyper-V's */
        CROSVM_VCPU_EVENT_KIND_HYPERV_SYNIC, /* its synthetic interrupt controller was set up anew */
};

struct crosvm_vcpu_event {
        uint32_t kind;
        uint8_t _padding[4];
        union {
                struct {
                        uint32_t address_space; /* enum crosvm_address_space */
                        uint8_t _padding[4];
                        uint64_t address;
                        uint8_t *data;     /* what is written; or where to put what is read, until the vCPU is resumed */
                        uint32_t length;   /* bytes; string instructions make more than 8 */
                        uint8_t is_write;
                        uint8_t no_resume; /* the vCPU runs on: wait again, without resuming it */
                        uint8_t _reserved[2];
                } io_access;
                void *user;
                struct {
                        uint64_t input;
                        uint64_t *result; /* to be written before the vCPU is resumed */
                        uint64_t params[2];
                } hyperv_call;
                struct {
                        uint32_t msr;
                        uint32_t _reserved;
                        uint64_t control;
                        uint64_t evt_page;
                        uint64_t msg_page;
                } hyperv_synic;
                uint8_t _reserved[64];
        };
};

#ifdef static_assert
static_assert(sizeof(struct crosvm_vcpu_event) == 72, "struct crosvm_vcpu_event");
#endif

/* Counted from 0; -ENOENT behind the last. Not to be freed. */
int crosvm_get_vcpu(struct crosvm *, uint32_t id, struct crosvm_vcpu **);

/* Waits for the next event. From then until the vCPU is resumed it stands still, and its state may be read and written. */
int crosvm_vcpu_wait(struct crosvm_vcpu *, struct crosvm_vcpu_event *);
int crosvm_vcpu_resume(struct crosvm_vcpu *);

/* Registers, special and debug registers are set when the vCPU is resumed, or read. */
int crosvm_vcpu_get_regs(struct crosvm_vcpu *, struct kvm_regs *);
int crosvm_vcpu_set_regs(struct crosvm_vcpu *, const struct kvm_regs *);
int crosvm_vcpu_get_sregs(struct crosvm_vcpu *, struct kvm_sregs *);
int crosvm_vcpu_set_sregs(struct crosvm_vcpu *, const struct kvm_sregs *);
int crosvm_vcpu_get_debugregs(struct crosvm_vcpu *, struct kvm_debugregs *);
int crosvm_vcpu_set_debugregs(struct crosvm_vcpu *, const struct kvm_debugregs *);

int crosvm_vcpu_get_fpu(struct crosvm_vcpu *, struct kvm_fpu *);
int crosvm_vcpu_set_fpu(struct crosvm_vcpu *, const struct kvm_fpu *);
int crosvm_vcpu_get_xcrs(struct crosvm_vcpu *, struct kvm_xcrs *);
int crosvm_vcpu_set_xcrs(struct crosvm_vcpu *, const struct kvm_xcrs *);
int crosvm_vcpu_get_lapic_state(struct crosvm_vcpu *, struct kvm_lapic_state *ret);
int crosvm_vcpu_set_lapic_state(struct crosvm_vcpu *, const struct kvm_lapic_state *state);
int crosvm_vcpu_get_mp_state(struct crosvm_vcpu *, struct kvm_mp_state *ret);
int crosvm_vcpu_set_mp_state(struct crosvm_vcpu *, const struct kvm_mp_state *state);
int crosvm_vcpu_get_vcpu_events(struct crosvm_vcpu *, struct kvm_vcpu_events *);
int crosvm_vcpu_set_vcpu_events(struct crosvm_vcpu *, const struct kvm_vcpu_events *);

/* The MSRs that the entries' indices name; *ret_count is how many could be read. */
int crosvm_vcpu_get_msrs(struct crosvm_vcpu *, uint32_t n, struct kvm_msr_entry *entries, uint32_t *ret_count);
int crosvm_vcpu_set_msrs(struct crosvm_vcpu *, uint32_t n, const struct kvm_msr_entry *from);

/* KVM_SET_CPUID2. */
int crosvm_vcpu_set_cpuid(struct crosvm_vcpu *, uint32_t n, const struct kvm_cpuid_entry2 *from);

/* KVM_CAP_HYPERV_SYNIC or KVM_CAP_HYPERV_SYNIC2, without flags and arguments; -EINVAL for everything else. */
int crosvm_vcpu_enable_capability(struct crosvm_vcpu *, uint32_t capability, uint32_t flags, uint64_t args[4]);

#ifdef __cplusplus
}
#endif
