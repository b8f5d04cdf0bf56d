/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a plugin's requests come down to in KVM: its structures as bytes, and what lib and kvm.h have no other use for. Return 0 or a negative
 * errno. A size that is not the structure's is -EINVAL. */

#include "kvm.h"
#include "vcpu.h"

/* Bytes of the largest structure. */
#define PLUGIN_STATE_MAX 2048
#define PLUGIN_CPUID_MAX 512
#define PLUGIN_MSRS_MAX 4096

typedef struct PluginCpuid {
        uint32_t function, index, eax, ebx, ecx, edx;
        bool has_index;
} PluginCpuid;

typedef struct PluginRoute {
        uint32_t gsi;
        bool is_msi;
        uint32_t chip, pin;
        uint64_t address;
        uint32_t data;
} PluginRoute;

typedef enum PluginCpuidList { PLUGIN_CPUID_SUPPORTED, PLUGIN_CPUID_EMULATED, PLUGIN_CPUID_HYPERV } PluginCpuidList;

/* The interrupt controllers and the timer: a machine with a plugin has nothing else. Before any vCPU. */
int plugin_kvm_create_platform(Kvm *kvm, char **ret_message);

/* `set` is of the protocol's StateSet. */
int plugin_kvm_get_machine_state(Kvm *kvm, unsigned set, uint8_t ret[static PLUGIN_STATE_MAX], size_t *ret_size);
int plugin_kvm_set_machine_state(Kvm *kvm, unsigned set, const uint8_t *state, size_t size);
int plugin_kvm_get_vcpu_state(const Vcpu *vcpu, unsigned set, uint8_t ret[static PLUGIN_STATE_MAX], size_t *ret_size);
int plugin_kvm_set_vcpu_state(const Vcpu *vcpu, unsigned set, const uint8_t *state, size_t size);
/* Which of them are the general registers, the special ones, and the debug registers. */
enum { PLUGIN_STATE_REGS = 0, PLUGIN_STATE_SREGS = 1, PLUGIN_STATE_DEBUGREGS = 3 };
/* Of general registers: rax, rbx, rcx, rdx. */
void plugin_kvm_hint_registers(const uint8_t *regs, uint64_t ret[static 4]);

int plugin_kvm_get_cpuid(const Kvm *kvm, const Vcpu *vcpu, PluginCpuidList list, PluginCpuid ret[static PLUGIN_CPUID_MAX], size_t *ret_n);
int plugin_kvm_set_cpuid(const Vcpu *vcpu, const PluginCpuid *entries, size_t n);
int plugin_kvm_get_msr_list(const Kvm *kvm, uint32_t ret[static PLUGIN_MSRS_MAX], size_t *ret_n);
/* *ret_n is how many could be read, in order. */
int plugin_kvm_get_msrs(const Vcpu *vcpu, const uint32_t *indices, size_t n, uint64_t *ret, size_t *ret_n);
/* KVM stops at the first that it does not take; plugins of crosvm's are not told, and count on that. */
int plugin_kvm_set_msrs(const Vcpu *vcpu, const uint32_t *indices, const uint64_t *values, size_t n);
int plugin_kvm_enable_vcpu_capability(const Vcpu *vcpu, uint32_t capability);

/* length 0 is any; else 1, 2, 4 or 8 bytes that have to be `datamatch`. */
int plugin_kvm_ioeventfd(Kvm *kvm, KvmIoSpace space, uint64_t address, unsigned length, uint64_t datamatch, int fd, bool attach);
int plugin_kvm_set_routes(Kvm *kvm, const PluginRoute *routes, size_t n);
/* Size 0 takes the slot away. */
int plugin_kvm_set_memory(Kvm *kvm, uint32_t slot, uint64_t guest_address, uint64_t size, void *host, bool read_only, bool dirty_log);
unsigned plugin_kvm_memory_slots(const Kvm *kvm);
/* `ret` has whole words of 64 bits. */
int plugin_kvm_get_dirty_log(Kvm *kvm, uint32_t slot, uint64_t *ret);
int plugin_kvm_set_identity_map(Kvm *kvm, uint64_t address);

/* An exit that a plugin is asked about. */
typedef enum PluginExitKind { PLUGIN_EXIT_NONE, PLUGIN_EXIT_ACCESS, PLUGIN_EXIT_HYPERV_CALL, PLUGIN_EXIT_HYPERV_SYNIC } PluginExitKind;

typedef struct PluginExit {
        PluginExitKind kind;
        bool is_pio, is_write;
        uint64_t address;
        uint8_t *data; /* of KVM's own: what is read goes there */
        size_t size;
        uint64_t input, params[2], *result; /* a hypercall */
        uint32_t msr;                       /* the synthetic interrupt controller */
        uint64_t control, event_page, message_page;
} PluginExit;

/* What the vCPU stopped for. */
void plugin_kvm_exit(const Vcpu *vcpu, PluginExit *ret);
