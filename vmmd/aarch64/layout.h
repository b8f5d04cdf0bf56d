/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Where everything lies in a 64-bit Arm machine of ours: guest-physical addresses and interrupt lines. RAM is one range, from 2 GiB on; what is
 * not RAM lies below, so that devices of 32 bits and any amount of RAM are in nobody's way. */

#define ARM64_GICD_BASE 0x08000000ULL /* distributor */
#define ARM64_GICD_SIZE 0x10000ULL
#define ARM64_ITS_BASE 0x08080000ULL /* interrupt translation service: messages of PCI devices */
#define ARM64_ITS_SIZE 0x20000ULL

#define ARM64_SERIAL_BASE 0x09000000ULL /* 16550s, a page each, registers one byte apart */
#define ARM64_SERIAL_STRIDE 0x1000ULL
#define ARM64_SERIAL_SIZE 8ULL
#define ARM64_N_SERIAL 4
#define ARM64_RTC_BASE 0x09010000ULL  /* PL031 */
#define ARM64_GPIO_BASE 0x09020000ULL /* PL061 */
#define ARM64_PRIMECELL_SIZE 0x1000ULL
#define ARM64_FW_CFG_BASE 0x09030000ULL
#define ARM64_FW_CFG_SIZE 0x10ULL
#define ARM64_RAMOOPS_BASE 0x09040000ULL /* the kernel's last words: one record, more than a kernel writes by default (kmsg_bytes) */
#define ARM64_RAMOOPS_SIZE 0x8000ULL

/* Redistributors, 128 KiB for each vCPU: as many as KVM may have. */
#define ARM64_GICR_BASE 0x10000000ULL
#define ARM64_GICR_STRIDE 0x20000ULL
#define ARM64_VCPUS_MAX 512

/* One bus, 1 MiB, as on x86-64: a kernel looks at each slot of every bus that it is told of. */
#define ARM64_PCI_ECAM_BASE 0x20000000ULL
#define ARM64_PCI_ECAM_SIZE 0x100000ULL
#define ARM64_PCI_MMIO_BASE 0x40000000ULL /* 32-bit BARs, 512 MiB */
#define ARM64_PCI_MMIO_SIZE 0x20000000ULL

#define ARM64_RAM_BASE 0x80000000ULL

/* Linux, Documentation/arch/arm64/booting.rst: the device tree is at most 2 MiB, and does not cross a boundary of 2 MiB. */
#define ARM64_FDT_MAX 0x200000ULL

/* ── shared peripheral interrupts, as the device tree counts them (INTID minus 32); their GSIs have the same numbers ── */
#define ARM64_SPI_SERIAL 0 /* and the next three */
#define ARM64_SPI_RTC 4
#define ARM64_SPI_GPIO 5
#define ARM64_N_SPI 32 /* MSIs have the GSIs above */
#define ARM64_INTID_SPI 32

/* ── private peripheral interrupts, as the device tree counts them (INTID minus 16): what KVM and the architecture's base recommend ── */
#define ARM64_PPI_TIMER_SECURE 13
#define ARM64_PPI_TIMER_PHYSICAL 14
#define ARM64_PPI_TIMER_VIRTUAL 11
#define ARM64_PPI_TIMER_HYPERVISOR 10
#define ARM64_PPI_PMU 7
#define ARM64_INTID_PPI 16

#define ARM64_GPIO_POWER_KEY 3 /* pins of the PL061 */
#define ARM64_GPIO_SLEEP_KEY 4
