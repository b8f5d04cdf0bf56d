/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The KVM virtual machine: memory slots, event descriptors, and the interrupt routing table. Architecture-neutral; what
 * differs between architectures is under x86_64/ and aarch64/. Functions return 0 or a negative errno. */

#include <pthread.h>

#include "util.h"

/* As many GSIs as the routing table may hold: the interrupt controller's own pins and one per MSI-X vector. */
#define KVM_GSI_MAX 4096

typedef struct GsiRoute GsiRoute;

typedef struct Kvm {
        int kvm_fd;
        int vm_fd;
        size_t vcpu_mmap_size; /* bytes of struct kvm_run and what follows it */
        bool ioeventfd_any_length; /* KVM_CAP_IOEVENTFD_NO_LENGTH */
        bool msi_device_ids; /* messages say whose they are: an ITS wants to know, and where there is none KVM refuses it */
        pthread_mutex_t routing_lock;
        GsiRoute *routes;      /* KVM_GSI_MAX entries */
        unsigned first_msi_gsi; /* below it are the interrupt controller's pins */
} Kvm;

typedef enum KvmIoSpace { KVM_SPACE_MMIO, KVM_SPACE_PIO } KvmIoSpace;

/* Opens /dev/kvm, checks the API version and what this program cannot do without, and creates the VM. On failure *ret_message says what is
 * missing and kvm_done() must still be called. */
int kvm_init(Kvm *kvm, char **ret_message);
void kvm_done(Kvm *kvm);

/* KVM_CHECK_EXTENSION on the VM: 0 where absent, else its positive value. */
int kvm_check_extension(const Kvm *kvm, unsigned capability);

/* Maps `size` bytes at `host` as guest-physical memory; size 0 removes the slot. */
int kvm_set_memory(Kvm *kvm, uint32_t slot, uint64_t guest_address, uint64_t size, void *host, bool read_only);

/* Attaches (or detaches) an eventfd that a guest's write to the address signals, without an exit to user space. Any
 * width counts where KVM can do that, else 2 bytes. */
int kvm_ioeventfd(Kvm *kvm, KvmIoSpace space, uint64_t address, int fd, bool attach);

/* Attaches (or detaches) an eventfd whose signal raises `gsi`. An eventfd signalled already raises it at once.
 * `resample_fd` is -1, or for a level-triggered line the eventfd that KVM signals at end of interrupt. */
int kvm_irqfd(Kvm *kvm, int fd, unsigned gsi, int resample_fd, bool attach);

/* Sets the level of an interrupt controller's line. */
int kvm_irq_line(Kvm *kvm, unsigned gsi, bool level);

/* Adds a fixed route of the interrupt controller; only before the first kvm_route_commit(). */
void kvm_route_irqchip(Kvm *kvm, unsigned gsi, unsigned chip, unsigned pin);
/* Says that GSIs from `gsi` on are free for MSI. */
void kvm_route_set_first_msi(Kvm *kvm, unsigned gsi);
/* Reserves a GSI for an MSI-X vector. Returns it, or -ENOSPC. */
int kvm_route_msi_alloc(Kvm *kvm);
void kvm_route_msi_free(Kvm *kvm, unsigned gsi);
/* Sets (or, with `valid` false, clears) the message of an MSI GSI and makes the table current. `device_id` is the sender's PCI requester id. */
int kvm_route_msi_set(Kvm *kvm, unsigned gsi, bool valid, uint64_t address, uint32_t data, uint32_t device_id);
int kvm_route_commit(Kvm *kvm);
