/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Everything that knows an architecture, behind one interface: interrupt controllers, firmware tables, boot, registers of
 * vCPUs, and the few devices that every machine of that architecture has. Implemented by x86_64/arch.c and aarch64/arch.c. */

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
        ARCH_EVENT_PANIC,     /* the guest's kernel panicked; it may reset the machine next */
} ArchEvent;

typedef struct ArchConfig {
        const char *machine_name;
        unsigned n_vcpus;
        const char *const *smbios_strings; /* type 11, NULL-terminated, or NULL; what can be told of them where there is no SMBIOS */
        unsigned serial_ports;             /* bit n: there is a serial port n */
        /* Called on a vCPU's thread. */
        void (*event)(ArchEvent event, void *userdata);
        /* The guest has let go of the PCI functions in these slots (bit n: slot n). On a vCPU's thread; for the guest they are gone when it returns. NULL:
         * nothing comes or goes. */
        void (*eject)(uint32_t slots, void *userdata);
        void *userdata;
} ArchConfig;

typedef struct ArchBoot {
        int kernel_fd;
        const char *kernel_name;
        int initrd_fd; /* negative: none */
        const char *initrd_name;
        const char *command_line;
        int overlay_fd; /* what the user adds to the device tree; negative: nothing. Only where guests have one */
        const char *overlay_name;
} ArchBoot;

typedef struct ArchMemoryRange {
        uint64_t guest_address;
        uint64_t size;
} ArchMemoryRange;
#define ARCH_MEMORY_RANGES_MAX 2

/* Where `memory` bytes of RAM lie: fills `ret` and returns the number of ranges. */
size_t arch_memory_layout(uint64_t memory, ArchMemoryRange ret[static ARCH_MEMORY_RANGES_MAX]);

/* The first guest-physical address that the processor does not have. */
uint64_t arch_address_limit(void);

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

/* Once, after the vCPUs were created, and before they run and before an interrupt is bound to an eventfd: CPUID and everything else that is fixed for
 * their life; keeps the state at power-on, to which arch_reset() goes back. */
int arch_setup_vcpus(Arch *arch, VcpuSet *vcpus, char **ret_message);

/* The state at power-on, for all vCPUs, interrupt controllers and platform devices. All vCPUs must be parked. */
int arch_reset(Arch *arch, char **ret_message);

/* Loads kernel, initrd and tables into guest memory and makes the first vCPU ready to enter it. After arch_setup_vcpus() or
 * arch_reset(). */
int arch_boot(Arch *arch, const ArchBoot *boot, char **ret_message);

/* The device tree that the guest began with, which the caller frees; without the seeds of random numbers in it. -EOPNOTSUPP where guests have none. */
int arch_device_tree(const Arch *arch, void **ret, size_t *ret_size);
bool arch_has_device_tree(void);

typedef enum ArchButton { ARCH_BUTTON_POWER, ARCH_BUTTON_SLEEP } ArchButton;
void arch_press_button(Arch *arch, ArchButton button);

typedef enum ArchPciNotification {
        ARCH_PCI_PLUGGED,   /* a function has come into the slot */
        ARCH_PCI_ASK_TO_GO, /* the guest is to eject it */
        ARCH_PCI_LET_STAY,  /* it is not any more: where it has not seen it yet, it will not */
        ARCH_PCI_GONE,      /* the slot is empty: what it was not told of that, it need not be told any more */
} ArchPciNotification;
/* Whether there is a way to tell the guest of functions that come and go. */
bool arch_has_pci_hotplug(void);
/* Does not wait for the guest. */
void arch_pci_notify(Arch *arch, unsigned slot, ArchPciNotification notification);

/* Raises a non-maskable interrupt on a vCPU. -EOPNOTSUPP where the architecture has none. */
int arch_inject_nmi(Arch *arch, Vcpu *vcpu);

/* Everything that would be lost with this process: vCPUs, interrupt controllers, timers, platform devices. All vCPUs parked. */
int arch_save(Arch *arch, StateWriter *w);
/* Whether the guest's clocks have gone on since a state was saved that is loaded next, as for a program that takes over from another on the same host; else, as at
 * first, they go on from where they were. */
void arch_set_time_goes_on(Arch *arch, bool goes_on);
int arch_load(Arch *arch, StateReader *r, char **ret_message);

/* The processor as the guest sees it, for a snapshot; *ret_model is its name, the caller frees it. Loading is for vCPUs that have not run: it refuses where this host's processor lacks
 * what the guest has seen, and else has the guest see what it saw before. */
int arch_cpu_save(const VcpuSet *vcpus, StateWriter *w, char **ret_model);
int arch_cpu_load(const VcpuSet *vcpus, StateReader *r, char **ret_message);
