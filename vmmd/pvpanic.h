/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The pvpanic PCI device (QEMU's docs/specs/pvpanic): one byte by which the guest's kernel says that it panicked. */

#include "pci.h"

typedef enum PvpanicEvent {
        PVPANIC_PANICKED = 1 << 0,
        PVPANIC_CRASH_LOADED = 1 << 1, /* it panicked, and a crash kernel takes over: let it run */
        PVPANIC_SHUTDOWN = 1 << 2,
} PvpanicEvent;

typedef struct Pvpanic {
        PciDevice pci;
        void (*event)(unsigned vcpu, unsigned events, void *userdata); /* on the vCPU's thread */
        void *userdata;
} Pvpanic;

void pvpanic_init(Pvpanic *p, void (*event)(unsigned vcpu, unsigned events, void *userdata), void *userdata);
