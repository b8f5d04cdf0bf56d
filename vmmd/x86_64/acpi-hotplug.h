/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* How a guest learns that a PCI function came into a slot, or is to leave it: GPE 1 of the block GPE0 (ACPI 6.4, 4.8.4.1), and three registers that
 * the method _E01 of dsdt.asl reads. Bit n of each stands for slot n of bus 0:
 *
 *   0  up     a function has come; write 1 to clear
 *   4  down   the function is asked to go; write 1 to clear
 *   8  eject  write 1: the guest has let go of it. Reads as 0 */

#include "state.h"
#include "util.h"

/* The slots that a guest can be told of: neither the host bridge nor vmmd's own device. dsdt.asl has a device for each. */
#define ACPI_HOTPLUG_SLOTS 0x7FFFFFFEU

typedef struct AcpiHotplugCallbacks {
        /* The SCI's level changed, as far as it is ours. Never twice with the same level. */
        void (*set_sci)(bool level, void *userdata);
} AcpiHotplugCallbacks;

typedef struct AcpiHotplug {
        const AcpiHotplugCallbacks *callbacks;
        void *userdata;
        uint8_t status, enable;
        uint32_t up, down;
        bool sci;
} AcpiHotplug;

void acpi_hotplug_init(AcpiHotplug *h, const AcpiHotplugCallbacks *callbacks, void *userdata);
/* Back to power-on: a guest that boots finds what is there by itself. */
void acpi_hotplug_reset(AcpiHotplug *h);

/* Status and enable byte of GPE0. */
void acpi_hotplug_gpe_read(AcpiHotplug *h, uint64_t offset, void *data, size_t size);
void acpi_hotplug_gpe_write(AcpiHotplug *h, uint64_t offset, const void *data, size_t size);
/* The registers. A write returns the slots that the guest ejects. */
void acpi_hotplug_read(AcpiHotplug *h, uint64_t offset, void *data, size_t size);
uint32_t acpi_hotplug_write(AcpiHotplug *h, uint64_t offset, const void *data, size_t size);

/* A function has come into the slot; it is asked to leave it, or not any more; it is gone. */
void acpi_hotplug_plugged(AcpiHotplug *h, unsigned slot);
void acpi_hotplug_ask(AcpiHotplug *h, unsigned slot, bool wanted);
void acpi_hotplug_gone(AcpiHotplug *h, unsigned slot);

int acpi_hotplug_save(const AcpiHotplug *h, StateWriter *w);
int acpi_hotplug_load(AcpiHotplug *h, StateReader *r, char **ret_message);
