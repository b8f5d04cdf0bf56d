/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* PCI bus 0 of a machine: configuration space by ECAM and by ports 0xCF8/0xCFC, memory BARs, capabilities, MSI-X. No bridges; function 0
 * only; a device's slot is its place in the definition. (PCI Local Bus 3.0; PCIe base specification, 7.2.2 for ECAM.)
 *
 * Devices come and go while vCPUs look at them. The bus lock is never held while anybody waits for a helper. A device is taken away in steps: first
 * nobody finds it any more (pci_bus_eject(), pci_bus_remove()); whoever is inside one of its BARs' handlers comes out; then its `users` are idle and
 * it may be freed. */

#include <pthread.h>

#include "io-space.h"
#include "kvm.h"
#include "state.h"

#define PCI_SLOTS 32
#define PCI_CONFIG_SIZE 256
#define PCI_BARS 6

typedef struct PciBus PciBus;
typedef struct PciDevice PciDevice;
typedef struct Msix Msix;

typedef struct PciBar {
        uint64_t size;    /* a power of two of at least 4096; 0 where there is no such BAR */
        uint64_t address; /* where it is mapped now; valid if mapped */
        bool mapped;
        IoHandler handler;
        void *userdata;
        uint64_t assigned; /* the address given at reset */
} PciBar;

typedef struct PciDeviceOps {
        /* The BAR was just mapped at `address` (or is about to be unmapped from it). */
        void (*bar_mapped)(PciDevice *device, unsigned bar, uint64_t address, bool mapped);
        /* Whether `offset` of the configuration space is a window on a BAR at present, and on what of it; may be NULL. With the bus locked. */
        bool (*window)(PciDevice *device, unsigned offset, unsigned *ret_bar, uint64_t *ret_offset, unsigned *ret_length);
} PciDeviceOps;

struct PciDevice {
        PciBus *bus;
        unsigned slot;
        uint8_t config[PCI_CONFIG_SIZE];
        uint8_t writable[PCI_CONFIG_SIZE]; /* bits a guest may set */
        PciBar bars[PCI_BARS];
        const PciDeviceOps *ops;
        Msix *msix; /* NULL where the device has none */
        IoUsers users;  /* of its BARs */
        bool removable; /* a guest may eject it */
        bool hidden;    /* configuration space is as if it were not there; its slot is still taken */
        bool ejected;   /* so that it can be taken off the bus */
        uint8_t capability_end; /* next free byte behind the capability list */
        uint8_t capability_last;
};

struct PciBus {
        pthread_mutex_t lock; /* configuration space of all devices, and config_address */
        IoSpace *mmio;
        Kvm *kvm;
        PciDevice *devices[PCI_SLOTS];
        PciDevice host_bridge;
        uint32_t config_address; /* port 0xCF8 */
        uint64_t window, window_end; /* the 32-bit memory window for BARs */
};

typedef struct PciIdentity {
        uint16_t vendor, device;
        uint16_t subsystem_vendor, subsystem_device;
        uint8_t revision;
        uint32_t class_code; /* 24 bits: class, subclass, interface */
} PciIdentity;

/* `window` is the 32-bit memory window that the firmware tables describe. */
void pci_bus_init(PciBus *bus, Kvm *kvm, IoSpace *mmio, uint64_t window, uint64_t window_size);

/* Fills in a device's header. Call before pci_bus_add(). */
void pci_device_init(PciDevice *device, const PciIdentity *identity, const PciDeviceOps *ops);
/* Declares a 32-bit memory BAR. */
void pci_device_set_bar(PciDevice *device, unsigned bar, uint64_t size, IoHandler handler, void *userdata);
/* Appends a capability: `body` is what follows the id and next bytes. Returns its offset, or -ENOSPC. */
int pci_device_add_capability(PciDevice *device, uint8_t id, const void *body, size_t size);
/* Puts the device in the slot, or in the first free one if negative, and gives its BARs addresses. Returns the slot, -ENOSPC or -EEXIST. */
int pci_bus_add(PciBus *bus, PciDevice *device, int slot);

/* The guest ejects what is in the slot: its BARs are unmapped and it is not to be seen any more, but keeps the slot. False where there is nothing
 * that could be ejected. Any thread. */
bool pci_bus_eject(PciBus *bus, unsigned slot);
/* As if it had been pulled out: configuration space reads as ones. What is mapped still answers, as a driver may wait for its answer. */
void pci_device_hide(PciDevice *device);
bool pci_device_is_ejected(PciDevice *device);
/* Takes it off the bus: slot and BAR windows are free. Whoever is inside a handler is there still: then io_users_put(&device->users), and wait. */
void pci_bus_remove(PciBus *bus, PciDevice *device);

/* Handlers for the I/O spaces; userdata is the PciBus. */
void pci_ecam_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write);
void pci_port_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write);

/* What power-on leaves: BARs at their first addresses, decoding off, MSI-X off. */
void pci_bus_reset(PciBus *bus);

/* The bus itself; its devices are saved and loaded one by one. */
int pci_bus_save(PciBus *bus, StateWriter *w);
int pci_bus_load(PciBus *bus, StateReader *r, char **ret_message);
int pci_device_save(const PciDevice *device, StateWriter *w);
int pci_device_load(PciDevice *device, StateReader *r, char **ret_message);

/* MSI-X (PCI Local Bus 3.0, 6.8.2). The table and the pending bits lie in a BAR of the device, whose handler passes accesses on. A
 * vector has one GSI; any number of eventfds can be bound to it. */
#define MSIX_VECTORS_MAX 128
#define MSIX_NO_VECTOR 0xffff

/* Adds the capability. The table is at table_offset of the BAR, the pending bits at pba_offset. */
int msix_new(PciDevice *device, unsigned n_vectors, unsigned bar, uint32_t table_offset, uint32_t pba_offset, Msix **ret);
Msix *msix_free(Msix *msix);
DEFINE_CLEANUP(Msix, msix_free)
unsigned msix_n_vectors(const Msix *msix);
void msix_table_access(Msix *msix, uint64_t offset, void *data, unsigned size, bool is_write);
void msix_pba_access(Msix *msix, uint64_t offset, void *data, unsigned size, bool is_write);
/* An eventfd (O_NONBLOCK) that raises the vector when signalled. The fd stays the caller's, and must be unbound before it is closed.
 * While the vector is masked its signals stay in the eventfd and show in the pending bits. */
int msix_bind(Msix *msix, unsigned vector, int fd);
void msix_unbind(Msix *msix, unsigned vector, int fd);
/* While held, no vector fires: what is signalled stays in the eventfds. What KVM has taken out of one has reached the interrupt controller when this returns. */
void msix_hold(Msix *msix, bool hold);
void msix_reset(Msix *msix);
/* The device's message control word changed. */
void msix_control_written(Msix *msix);
int msix_save(const Msix *msix, unsigned slot, StateWriter *w);
int msix_load(Msix *msix, unsigned slot, StateReader *r, char **ret_message);
