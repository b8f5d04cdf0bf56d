/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Registers of a vCPU, as KVM's structures. Pure functions: the caller does the ioctls. Every structure is written whole, from
 * nothing, so that the same calls serve the first boot and a reset in place. */

#include <linux/kvm.h>

#include "boot.h"

/* KVM_SET_SREGS and KVM_SET_REGS of the first vCPU, about to execute the kernel's first instruction. */
void x86_boot_sregs(const X86BootEntry *entry, struct kvm_sregs *ret);
void x86_boot_regs(const X86BootEntry *entry, struct kvm_regs *ret);

/* The same for any vCPU as it is after RESET (Intel SDM vol. 3, 10.1.1): for the other vCPUs, which wait for INIT and SIPI
 * (KVM_MP_STATE_UNINITIALIZED), when a machine is reset in place. `bsp` goes into APIC_BASE. */
void x86_reset_sregs(bool bsp, struct kvm_sregs *ret);
void x86_reset_regs(struct kvm_regs *ret);

/* KVM_SET_MSRS, which takes this as its struct kvm_msrs. The TSC is not among them: on creation all begin at 0 together, and
 * setting one after another makes KVM guess. */
#define X86_BOOT_MSRS_MAX 16
typedef struct X86Msrs {
        uint32_t nmsrs, pad;
        struct kvm_msr_entry entries[X86_BOOT_MSRS_MAX];
} X86Msrs;
void x86_boot_msrs(X86Msrs *ret);

/* KVM_SET_LAPIC after KVM_GET_LAPIC: LINT0 takes the PIC (ExtINT, first vCPU only), LINT1 is NMI, as a PC's firmware leaves them. */
void x86_boot_lapic(bool bsp, struct kvm_lapic_state *lapic);
