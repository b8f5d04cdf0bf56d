/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "pvpanic.h"

#define PVPANIC_EVENTS (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED)

static void pvpanic_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Pvpanic *p = userdata;

        if (offset != 0)
                return;
        if (is_write)
                p->event(vcpu, *(const uint8_t *) data & PVPANIC_EVENTS, p->userdata);
        else {
                memset(data, 0, size);
                *(uint8_t *) data = PVPANIC_EVENTS; /* what we know of */
        }
}

void pvpanic_init(Pvpanic *p, void (*event)(unsigned vcpu, unsigned events, void *userdata), void *userdata) {
        static const PciIdentity identity = {
                .vendor = 0x1b36, .device = 0x0011, .subsystem_vendor = 0x1af4, .subsystem_device = 0x1100,
                .revision = 1, .class_code = 0x088000, /* system peripheral */
        };

        *p = (Pvpanic) { .event = event, .userdata = userdata };
        pci_device_init(&p->pci, &identity, NULL);
        pci_device_set_bar(&p->pci, 0, 4096, pvpanic_access, p);
}
