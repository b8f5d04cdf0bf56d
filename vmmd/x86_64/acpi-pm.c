/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "acpi-pm.h"
#include "layout.h"

/* ACPI 6.4, tables 4.11 (status), 4.12 (enable) and 4.13 (control). */
#define PM1_GBL (1u << 5)
#define PM1_PWRBTN (1u << 8)
#define PM1_SLPBTN (1u << 9)
#define PM1_RTC (1u << 10)
#define PM1_TMR (1u << 0)
#define PM1_WAK (1u << 15)
#define PM1_STATUS_MASK (PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_WAK)
#define PM1_ENABLE_MASK (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)
#define PM1_SCI_EN (1u << 0)
#define PM1_BM_RLD (1u << 1)
#define PM1_SLP_TYP_SHIFT 10
#define PM1_SLP_TYP_MASK (7u << PM1_SLP_TYP_SHIFT)
#define PM1_SLP_EN (1u << 13)
#define PM1_CONTROL_MASK (PM1_BM_RLD | PM1_SLP_TYP_MASK)

/* The value that \_S5 in dsdt.asl names: not 0, so that a stray write of zeroes turns nothing off. */
#define SLP_TYP_S5 5

/* The reset register of PC chipsets: bit 2 rising resets, bit 1 says how thoroughly. */
#define RESET_CPU (1u << 2)
#define RESET_MASK 0x0Eu

static void update_sci(AcpiPm *pm) {
        bool level = (pm->status & pm->enable & (PM1_GBL | PM1_PWRBTN | PM1_SLPBTN)) != 0;

        if (level == pm->sci)
                return;
        pm->sci = level;
        if (pm->callbacks->set_sci)
                pm->callbacks->set_sci(level, pm->userdata);
}

void acpi_pm_init(AcpiPm *pm, const AcpiPmCallbacks *callbacks, void *userdata) {
        *pm = (AcpiPm) { .callbacks = callbacks, .userdata = userdata };
}

void acpi_pm_reset(AcpiPm *pm) {
        pm->status = pm->enable = pm->control = 0;
        pm->reset_register = 0;
        update_sci(pm);
}

/* Reads from a register block whose bytes are `registers`; beyond it is nothing. */
static void read_bytes(const uint8_t *registers, size_t n_registers, uint64_t offset, uint8_t *data, size_t size) {
        for (size_t i = 0; i < size; i++)
                data[i] = offset < n_registers && i < n_registers - offset ? registers[offset + i] : 0xFF;
}

void acpi_pm_event_read(AcpiPm *pm, uint64_t offset, void *data, size_t size) {
        uint8_t registers[X86_PORT_PM1_EVENT_SIZE];

        store_le16(registers, pm->status);
        store_le16(registers + 2, pm->enable);
        read_bytes(registers, sizeof(registers), offset, data, size);
}

void acpi_pm_event_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size) {
        const uint8_t *bytes = data;

        for (size_t i = 0; i < size && offset < X86_PORT_PM1_EVENT_SIZE; i++, offset++) {
                unsigned shift = (offset & 1) * 8;
                uint16_t byte = (uint16_t) (bytes[i] << shift), mask = (uint16_t) (0xFF << shift);

                if (offset < 2)
                        /* "This bit is cleared by writing a 1." */
                        pm->status &= (uint16_t) ~byte;
                else
                        pm->enable = ((pm->enable & ~mask) | byte) & PM1_ENABLE_MASK;
        }
        update_sci(pm);
}

void acpi_pm_control_read(AcpiPm *pm, uint64_t offset, void *data, size_t size) {
        uint8_t registers[X86_PORT_PM1_CONTROL_SIZE];

        /* There is no other mode than ACPI's: no SMI command port, so SCI_EN is always set. */
        store_le16(registers, pm->control | PM1_SCI_EN);
        read_bytes(registers, sizeof(registers), offset, data, size);
}

void acpi_pm_control_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size) {
        const uint8_t *bytes = data;
        uint16_t value = pm->control;

        for (size_t i = 0; i < size && offset < X86_PORT_PM1_CONTROL_SIZE; i++, offset++) {
                unsigned shift = (unsigned) offset * 8;
                value = (uint16_t) ((value & ~(0xFF << shift)) | (bytes[i] << shift));
        }

        /* SLP_EN and GBL_RLS are write-only. */
        pm->control = value & PM1_CONTROL_MASK;
        if ((value & PM1_SLP_EN) && (value & PM1_SLP_TYP_MASK) >> PM1_SLP_TYP_SHIFT == SLP_TYP_S5 && pm->callbacks->power_off)
                pm->callbacks->power_off(pm->userdata);
}

void acpi_pm_reset_read(AcpiPm *pm, uint64_t offset, void *data, size_t size) {
        read_bytes(&pm->reset_register, 1, offset, data, size);
}

void acpi_pm_reset_write(AcpiPm *pm, uint64_t offset, const void *data, size_t size) {
        uint8_t old = pm->reset_register, value;

        if (offset != 0 || size == 0)
                return;
        value = *(const uint8_t *) data & RESET_MASK;
        pm->reset_register = value;
        if ((value & RESET_CPU) && !(old & RESET_CPU) && pm->callbacks->reset)
                pm->callbacks->reset(pm->userdata);
}

void acpi_pm_press_power_button(AcpiPm *pm) {
        pm->status |= PM1_PWRBTN;
        update_sci(pm);
}

void acpi_pm_press_sleep_button(AcpiPm *pm) {
        pm->status |= PM1_SLPBTN;
        update_sci(pm);
}

bool acpi_pm_power_button_enabled(const AcpiPm *pm) {
        return (pm->enable & PM1_PWRBTN) != 0;
}

int acpi_pm_save(const AcpiPm *pm, StateWriter *w) {
        state_begin(w, "acpi-pm", 0, 1);
        state_put_u16(w, pm->status);
        state_put_u16(w, pm->enable);
        state_put_u16(w, pm->control);
        state_put_u8(w, pm->reset_register);
        return state_end(w);
}

int acpi_pm_load(AcpiPm *pm, StateReader *reader, char **ret_message) {
        AcpiPm loaded = *pm;
        int r;

        r = state_enter(reader, "acpi-pm", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "State has no section acpi-pm.0 that this version understands.");
        loaded.status = state_get_u16(reader) & PM1_STATUS_MASK;
        loaded.enable = state_get_u16(reader) & PM1_ENABLE_MASK;
        loaded.control = state_get_u16(reader) & PM1_CONTROL_MASK;
        loaded.reset_register = state_get_u8(reader) & RESET_MASK;
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;

        *pm = loaded;
        update_sci(pm);
        return 0;
}
