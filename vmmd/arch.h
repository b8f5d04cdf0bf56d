/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Everything that knows an architecture, behind one interface: interrupt controllers, firmware tables, boot, registers of
 * vCPUs, and the few devices that every machine of that architecture has. Implemented by x86_64/arch.c (and aarch64/arch.c). */

#include <systemd/sd-event.h>

#include "guest-memory.h"
#include "io-space.h"
#include "kvm.h"
#include "pci.h"
#include "state.h"
#include "vcpu.h"

typedef struct Arch Arch;

typedef enum ArchEvent {
        ARCH_EVENT_POWER_OFF, /* the guest switched the machine off */
        ARCH_EVENT_RESET,     /* the guest resets the machine */
} ArchEvent;

typedef struct ArchConfig {
        const char *machine_name;
        unsigned n_vcpus;
        const char *const *smbios_strings; /* type 11, NULL-terminated, or NULL */
        unsigned serial_ports;             /* bit n: there is a serial port n */
        /* Called on a vCPU's thread. */
        void (*event)(ArchEvent event, void *userdata);
        void *userdata;
} ArchConfig;

typedef struct ArchBoot {
        int kernel_fd;
        const char *kernel_name;
        int initrd_fd; /* negative: none */
        const char *initrd_name;
        const char *command_line;
} ArchBoot;

typedef struct ArchMemoryRange {
        uint64_t guest_address;
        uint64_t size;
} ArchMemoryRange;
#define ARCH_MEMORY_RANGES_MAX 2

/* Where `memory` bytes of RAM lie: fills `ret` and returns the number of ranges. */
size_t arch_memory_layout(uint64_t memory, ArchMemoryRange ret[static ARCH_MEMORY_RANGES_MAX]);

/* Window for BARs of 32 bits. */
void arch_pci_window(uint64_t *ret_base, uint64_t *ret_size);

/* Where a serial port is: a base in the port space (`*ret_is_pio`) or in memory, and its GSI. -ENOENT where there is no such. */
int arch_serial_port(unsigned index, bool *ret_is_pio, uint64_t *ret_base, uint64_t *ret_size, unsigned *ret_gsi);

/* Creates interrupt controllers and platform devices; before any vCPU. The spaces, memory and KVM must outlive it. */
int arch_new(Kvm *kvm, IoSpace *pio, IoSpace *mmio, const GuestMemory *memory, const ArchConfig *config, Arch **ret,
        char **ret_message);
Arch *arch_free(Arch *arch);
DEFINE_CLEANUP(Arch, arch_free)

/* Takes up what the platform devices need of the event loop: the clock's alarm. */
int arch_attach_event(Arch *arch, sd_event *event);

/* Registers PCI's configuration mechanisms. */
int arch_attach_pci(Arch *arch, PciBus *bus);

/* Once, after the vCPUs were created and before they run: CPUID and everything else that is fixed for their life; keeps the state at
 * power-on, to which arch_reset() goes back. */
int arch_setup_vcpus(Arch *arch, VcpuSet *vcpus, char **ret_message);

/* The state at power-on, for all vCPUs, interrupt controllers and platform devices. All vCPUs must be parked. */
int arch_reset(Arch *arch, char **ret_message);

/* Loads kernel, initrd and tables into guest memory and makes the first vCPU ready to enter it. After arch_setup_vcpus() or
 * arch_reset(). */
int arch_boot(Arch *arch, const ArchBoot *boot, char **ret_message);

typedef enum ArchButton { ARCH_BUTTON_POWER, ARCH_BUTTON_SLEEP } ArchButton;
void arch_press_button(Arch *arch, ArchButton button);

/* Raises a non-maskable interrupt on a vCPU. */
int arch_inject_nmi(Arch *arch, Vcpu *vcpu);

/* Everything that would be lost with this process: vCPUs, interrupt controllers, timers, platform devices. All vCPUs parked. */
int arch_save(Arch *arch, StateWriter *w);
int arch_load(Arch *arch, StateReader *r, char **ret_message);
