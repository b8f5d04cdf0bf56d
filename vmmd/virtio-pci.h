/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The virtio transport over PCI, modern only (virtio 1.2, 4.1): registers of a device whose queues a helper serves. On the data path nothing
 * comes here: a kick is an ioeventfd, an interrupt an irqfd. */

#include "handover.h"
#include "pci.h"
#include "vhost-frontend.h"

typedef struct VirtioPci VirtioPci;

/* `class_code` is the 24-bit PCI class. Takes no ownership of the front-end, which must outlive it. */
int virtio_pci_new(uint16_t virtio_id, uint32_t class_code, VhostFrontend *frontend, Kvm *kvm, VirtioPci **ret);
VirtioPci *virtio_pci_free(VirtioPci *v);
DEFINE_CLEANUP(VirtioPci, virtio_pci_free)

PciDevice *virtio_pci_device(VirtioPci *v);
/* Who is told, on any thread, when a driver took the device into use or gave it up. Before the guest runs. */
void virtio_pci_watch(VirtioPci *v, void (*changed)(void *userdata), void *userdata);

/* The helper changed the configuration space / gave up on the driver: tells the guest. Any thread. */
void virtio_pci_config_changed(VirtioPci *v);
void virtio_pci_needs_reset(VirtioPci *v);
/* Whether the driver has the device in use (DRIVER_OK). */
bool virtio_pci_is_active(VirtioPci *v);

/* As after power-on; the helper has let go of the rings when this returns. The machine resets the PCI side itself (pci_bus_reset()). */
void virtio_pci_reset(VirtioPci *v);

/* While held, no interrupt reaches the guest; none is lost (msix_hold()). */
void virtio_pci_hold_interrupts(VirtioPci *v, bool hold);
/* What the successor of this process needs beside the state: before that is loaded. */
void virtio_pci_hand_over(VirtioPci *v, Handover *h);
int virtio_pci_take_over(VirtioPci *v, Handover *h);

/* The registers; the rings' positions are the helper's state. */
int virtio_pci_save(VirtioPci *v, StateWriter *w);
int virtio_pci_load(VirtioPci *v, StateReader *r, char **ret_message);
