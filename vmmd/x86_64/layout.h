/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Where everything lies in a PC of ours: guest-physical addresses, ports, interrupt lines. */

/* ── RAM: [0, 3 GiB) and from 4 GiB; the gap holds what is not RAM ── */
#define X86_LOW_RAM_END 0xC0000000ULL
#define X86_HIGH_RAM_START 0x100000000ULL

#define X86_PCI_MMIO_BASE 0xC0000000ULL /* 32-bit BARs, 512 MiB */
#define X86_PCI_MMIO_SIZE 0x20000000ULL
/* One bus, 1 MiB: a kernel probes each slot of every bus that it is told of, which for 256 of them is 17000 exits, nearly
 * all that its boot takes. The room for the others stays free. dsdt.asl says the same numbers. */
#define X86_PCI_ECAM_BASE 0xE0000000ULL
#define X86_PCI_ECAM_SIZE 0x100000ULL
#define X86_PCI_BUSES 1
#define X86_IOAPIC_BASE 0xFEC00000ULL
#define X86_LAPIC_BASE 0xFEE00000ULL
#define X86_KVM_IDENTITY_MAP 0xFFFBB000ULL /* KVM_SET_IDENTITY_MAP_ADDR: one page */
#define X86_KVM_TSS 0xFFFBC000ULL          /* KVM_SET_TSS_ADDR: three pages */
#define X86_KVM_RESERVED_SIZE 0x5000ULL    /* both, and a page to spare, from X86_KVM_IDENTITY_MAP on */

/* ── the first MiB, as vmmd leaves it at the kernel's entry ── */
#define X86_GDT_ADDRESS 0x500ULL
#define X86_PVH_START_INFO_ADDRESS 0x6000ULL /* hvm_start_info, its module list and memory map: one page */
#define X86_BOOT_PARAMS_ADDRESS 0x7000ULL    /* the "zero page" */
#define X86_BOOT_STACK_ADDRESS 0x8FF0ULL     /* grows down; the kernel sets its own at once */
#define X86_PML4_ADDRESS 0x9000ULL
#define X86_PDPT_ADDRESS 0xA000ULL
#define X86_PD_ADDRESS 0xB000ULL             /* four pages: 4 GiB in pages of 2 MiB */
#define X86_COMMAND_LINE_ADDRESS 0x20000ULL
#define X86_COMMAND_LINE_MAX 0x10000ULL      /* with the final NUL */
#define X86_LOW_MEMORY_END 0x9FC00ULL        /* E820: usable below, reserved from here to 1 MiB */
#define X86_ACPI_ADDRESS 0xE0000ULL          /* RSDP first, tables behind it; the BIOS area that ACPI searches */
#define X86_ACPI_SIZE 0x10000ULL
#define X86_ACPI_PARAMETERS_ADDRESS 0xEFF00ULL /* the words that dsdt.asl reads, at the end of the ACPI area */
#define X86_ACPI_PARAMETERS_SIZE 0x100ULL
#define X86_SMBIOS_ADDRESS 0xF0000ULL        /* entry point first, structures behind it */
#define X86_SMBIOS_SIZE 0x10000ULL
#define X86_HIGH_MEMORY_START 0x100000ULL    /* kernels and initrds lie here and above */

/* ── ports ── */
#define X86_PORT_CMOS 0x70 /* index, data */
#define X86_PORT_CMOS_SIZE 2
#define X86_PORT_I8042_DATA 0x60
#define X86_PORT_I8042_COMMAND 0x64
#define X86_PORT_PM1_EVENT 0x600 /* status (16 bits), enable (16 bits) */
#define X86_PORT_PM1_EVENT_SIZE 4
#define X86_PORT_PM1_CONTROL 0x604
#define X86_PORT_PM1_CONTROL_SIZE 2
#define X86_PORT_GPE0 0x620 /* status, enable */
#define X86_PORT_GPE0_SIZE 2
#define X86_PORT_HOTPLUG 0x630 /* up, down, eject: 32 bits each, 32-bit accesses only */
#define X86_PORT_HOTPLUG_SIZE 12
#define X86_PORT_PCI_ADDRESS 0xCF8 /* 32-bit accesses only; a byte at 0xCF9 is the reset register */
#define X86_PORT_PCI_DATA 0xCFC    /* four bytes */
#define X86_PORT_RESET 0xCF9
#define X86_RESET_VALUE 0x06
#define X86_PORT_COM_SIZE 8
#define X86_PORT_COM1 0x3F8
#define X86_PORT_COM2 0x2F8
#define X86_PORT_COM3 0x3E8
#define X86_PORT_COM4 0x2E8
#define X86_N_COM 4
/* 0x61 (speaker, refresh bit, output of PIT channel 2) is not here: KVM's own PIT answers it when it is made with
 * KVM_PIT_SPEAKER_DUMMY, and only it knows the counter. Ports that nothing answers read as all ones. */

/* ── interrupt lines (GSIs): identical to the IOAPIC's pins, but for GSI 0, the timer, which is pin 2 (the MADT says so) ── */
#define X86_IRQ_COM1 4 /* and COM3 */
#define X86_IRQ_COM2 3 /* and COM4 */
#define X86_IRQ_RTC 8
#define X86_IRQ_SCI 9 /* level, active high: what KVM's IOAPIC knows of polarity is that a raised line is asserted */
#define X86_N_GSI 24

#define X86_IOAPIC_ID 0
