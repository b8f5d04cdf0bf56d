/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* ACPI's fixed hardware (ACPI 6.4, 4.8.3): the PM1a status, enable and control registers with the power and the sleep button, the SCI, S5; and
 * the reset register at 0xCF9. */

#include "state.h"
#include "util.h"

typedef struct AcpiPmCallbacks {
        /* The SCI's level changed. Called with every change, never twice with the same level. */
        void (*set_sci)(bool level, void *userdata);
        /* The guest entered S5. */
        void (*power_off)(void *userdata);
        /* The guest wrote the reset register. */
        void (*reset)(void *userdata);
} AcpiPmCallbacks;

typedef struct AcpiPm {
        const AcpiPmCallbacks *callbacks;
        void *userdata;
        uint16_t status, enable, control;
        uint8_t reset_register;
        bool sci;
} AcpiPm;

void acpi_pm_init(AcpiPm *pm, const AcpiPmCallbacks *callbacks, void *userdata);
/* Back to power-on; lowers the SCI. */
void acpi_pm_reset(AcpiPm *pm);

/* The two register blocks: offsets from X86_PORT_PM1_EVENT and X86_PORT_PM1_CONTROL. Size 1, 2 or 4. */
void acpi_pm_event_read(AcpiPm *pm, uint64_t offset, void *data, size_t size);
void acpi_pm_event_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size);
void acpi_pm_control_read(AcpiPm *pm, uint64_t offset, void *data, size_t size);
void acpi_pm_control_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size);
/* The byte at X86_PORT_RESET. */
void acpi_pm_reset_read(AcpiPm *pm, uint64_t offset, void *data, size_t size);
void acpi_pm_reset_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size);

/* What a person does to the front panel. A guest that has not enabled the button's event keeps it pending. */
void acpi_pm_press_power_button(AcpiPm *pm);
void acpi_pm_press_sleep_button(AcpiPm *pm);
/* Whether a pressed power button would be noticed: the guest has enabled its event. */
bool acpi_pm_power_button_enabled(const AcpiPm *pm);

int acpi_pm_save(const AcpiPm *pm, StateWriter *w);
int acpi_pm_load(AcpiPm *pm, StateReader *r, char **ret_message);
