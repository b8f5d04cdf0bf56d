/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "layout.h"
#include "vcpu-state.h"

/* Intel SDM vol. 3, 2.5 and 2.2.1. */
#define CR0_PE (1ULL << 0)
#define CR0_ET (1ULL << 4)
#define CR0_NW (1ULL << 29)
#define CR0_CD (1ULL << 30)
#define CR0_PG (1ULL << 31)
#define CR4_PAE (1ULL << 5)
#define EFER_LME (1ULL << 8)
#define EFER_LMA (1ULL << 10)
#define APIC_BASE_BSP (1ULL << 8)
#define APIC_BASE_ENABLE (1ULL << 11)
#define RFLAGS_FIXED (1ULL << 1)

/* Selectors of the GDT that boot.c writes. */
#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TSS 0x20

/* Intel SDM vol. 3, tables 3-1 and 3-2. */
#define TYPE_CODE 11 /* execute, read, accessed */
#define TYPE_DATA 3  /* read, write, accessed */
#define TYPE_LDT 2
#define TYPE_TSS_BUSY 11

#define LAPIC_LVT0 0x350
#define LAPIC_LVT1 0x360
#define LVT_MODE_MASK 0x700u
#define LVT_MODE_NMI 0x400u
#define LVT_MODE_EXTINT 0x700u
#define LVT_MASKED 0x10000u

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool long_mode) {
        return (struct kvm_segment) {
                .base = 0, .limit = UINT32_MAX, .selector = selector, .type = type, .present = 1,
                .s = 1, .g = 1, .l = long_mode, .db = !long_mode,
        };
}

static struct kvm_segment real_mode_segment(uint16_t selector, uint64_t base, uint8_t type) {
        return (struct kvm_segment) { .base = base, .limit = 0xFFFF, .selector = selector, .type = type, .present = 1, .s = 1 };
}

static struct kvm_segment system_segment(uint16_t selector, uint32_t limit, uint8_t type) {
        return (struct kvm_segment) { .limit = limit, .selector = selector, .type = type, .present = 1 };
}

void x86_boot_sregs(const X86BootEntry *entry, struct kvm_sregs *ret) {
        bool long_mode = entry->kind == X86_ENTRY_LONG_MODE;
        struct kvm_segment data = flat_segment(SELECTOR_DATA, TYPE_DATA, false);

        *ret = (struct kvm_sregs) {
                .cs = flat_segment(SELECTOR_CODE, TYPE_CODE, long_mode),
                .ds = data, .es = data, .fs = data, .gs = data, .ss = data,
                .tr = system_segment(SELECTOR_TSS, 0x67, TYPE_TSS_BUSY),
                .ldt = { .type = TYPE_LDT, .unusable = 1 },
                .gdt = { .base = entry->gdt_address, .limit = entry->gdt_limit },
                .cr0 = CR0_PE | CR0_ET,
                .apic_base = X86_LAPIC_BASE | APIC_BASE_ENABLE | APIC_BASE_BSP,
        };
        if (long_mode) {
                ret->cr0 |= CR0_PG;
                ret->cr3 = entry->cr3;
                ret->cr4 = CR4_PAE;
                ret->efer = EFER_LME | EFER_LMA;
        }
}

void x86_boot_regs(const X86BootEntry *entry, struct kvm_regs *ret) {
        *ret = (struct kvm_regs) {
                .rip = entry->rip, .rsp = entry->rsp, .rsi = entry->rsi, .rbx = entry->rbx, .rflags = RFLAGS_FIXED,
        };
}

void x86_reset_sregs(bool bsp, struct kvm_sregs *ret) {
        struct kvm_segment data = real_mode_segment(0, 0, TYPE_DATA);

        *ret = (struct kvm_sregs) {
                .cs = real_mode_segment(0xF000, 0xFFFF0000, TYPE_CODE),
                .ds = data, .es = data, .fs = data, .gs = data, .ss = data,
                .tr = system_segment(0, 0xFFFF, TYPE_TSS_BUSY),
                .ldt = system_segment(0, 0xFFFF, TYPE_LDT),
                .gdt = { .limit = 0xFFFF },
                .idt = { .limit = 0xFFFF },
                .cr0 = CR0_CD | CR0_NW | CR0_ET,
                .apic_base = X86_LAPIC_BASE | APIC_BASE_ENABLE | (bsp ? APIC_BASE_BSP : 0),
        };
}

void x86_reset_regs(struct kvm_regs *ret) {
        *ret = (struct kvm_regs) { .rip = 0xFFF0, .rflags = RFLAGS_FIXED };
}

void x86_boot_msrs(X86Msrs *ret) {
        static const struct kvm_msr_entry entries[] = {
                { .index = 0x174, .data = 0 },      /* SYSENTER_CS, ESP, EIP */
                { .index = 0x175, .data = 0 },
                { .index = 0x176, .data = 0 },
                { .index = 0xC0000081, .data = 0 }, /* STAR, LSTAR, CSTAR, SYSCALL_MASK, KERNEL_GS_BASE */
                { .index = 0xC0000082, .data = 0 },
                { .index = 0xC0000083, .data = 0 },
                { .index = 0xC0000084, .data = 0 },
                { .index = 0xC0000102, .data = 0 },
                { .index = 0x1A0, .data = 1 },      /* MISC_ENABLE: fast strings */
                { .index = 0x2FF, .data = 0x806 },  /* MTRRdefType: MTRRs on, write-back where none says otherwise */
        };

        _Static_assert(ELEMENTSOF(entries) <= X86_BOOT_MSRS_MAX, "the array has room for all");
        _Static_assert(offsetof(X86Msrs, entries) == offsetof(struct kvm_msrs, entries), "KVM's struct kvm_msrs");
        *ret = (X86Msrs) { .nmsrs = ELEMENTSOF(entries) };
        memcpy(ret->entries, entries, sizeof(entries));
}

static void set_lvt(struct kvm_lapic_state *lapic, size_t offset, uint32_t mode) {
        uint32_t lvt = load_le32(lapic->regs + offset);

        store_le32(lapic->regs + offset, (lvt & ~(LVT_MODE_MASK | LVT_MASKED)) | mode);
}

void x86_boot_lapic(bool bsp, struct kvm_lapic_state *lapic) {
        if (bsp)
                set_lvt(lapic, LAPIC_LVT0, LVT_MODE_EXTINT);
        set_lvt(lapic, LAPIC_LVT1, LVT_MODE_NMI);
}
