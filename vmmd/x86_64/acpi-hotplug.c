/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "acpi-hotplug.h"
#include "layout.h"

/* The event whose method is _E01. */
#define GPE_HOTPLUG (1u << 1)

#define REGISTER_UP 0
#define REGISTER_DOWN 4
#define REGISTER_EJECT 8

static void update_sci(AcpiHotplug *h) {
        bool level = h->status & h->enable;

        if (level == h->sci)
                return;
        h->sci = level;
        if (h->callbacks->set_sci)
                h->callbacks->set_sci(level, h->userdata);
}

void acpi_hotplug_init(AcpiHotplug *h, const AcpiHotplugCallbacks *callbacks, void *userdata) {
        *h = (AcpiHotplug) { .callbacks = callbacks, .userdata = userdata };
}

void acpi_hotplug_reset(AcpiHotplug *h) {
        h->status = h->enable = 0;
        h->up = h->down = 0;
        update_sci(h);
}

/* --- GPE0: a status and an enable byte --- */

void acpi_hotplug_gpe_read(AcpiHotplug *h, uint64_t offset, void *data, size_t size) {
        const uint8_t registers[X86_PORT_GPE0_SIZE] = { h->status, h->enable };
        uint8_t *bytes = data;

        for (size_t i = 0; i < size; i++)
                bytes[i] = offset + i < sizeof(registers) ? registers[offset + i] : 0xFF;
}

void acpi_hotplug_gpe_write(AcpiHotplug *h, uint64_t offset, const void *data, size_t size) {
        const uint8_t *bytes = data;

        for (size_t i = 0; i < size; i++)
                if (offset + i == 0)
                        h->status &= (uint8_t) ~bytes[i];
                else if (offset + i == 1)
                        h->enable = bytes[i] & GPE_HOTPLUG;
        update_sci(h);
}

/* --- what it is about --- */

/* Other widths are none of dsdt.asl's. */
static bool is_access(uint64_t offset, size_t size) {
        return size == sizeof(uint32_t) && offset % sizeof(uint32_t) == 0 && offset < X86_PORT_HOTPLUG_SIZE;
}

void acpi_hotplug_read(AcpiHotplug *h, uint64_t offset, void *data, size_t size) {
        if (is_access(offset, size))
                store_le32(data, offset == REGISTER_UP ? h->up : offset == REGISTER_DOWN ? h->down : 0);
}

uint32_t acpi_hotplug_write(AcpiHotplug *h, uint64_t offset, const void *data, size_t size) {
        uint32_t value;

        if (!is_access(offset, size))
                return 0;
        value = load_le32(data);
        if (offset == REGISTER_UP)
                h->up &= ~value;
        else if (offset == REGISTER_DOWN)
                h->down &= ~value;
        return offset == REGISTER_EJECT ? value & ACPI_HOTPLUG_SLOTS : 0;
}

static void raise(AcpiHotplug *h) {
        h->status |= GPE_HOTPLUG;
        update_sci(h);
}

void acpi_hotplug_plugged(AcpiHotplug *h, unsigned slot) {
        h->up |= (UINT32_C(1) << slot) & ACPI_HOTPLUG_SLOTS;
        raise(h);
}

void acpi_hotplug_ask(AcpiHotplug *h, unsigned slot, bool wanted) {
        uint32_t bit = (UINT32_C(1) << slot) & ACPI_HOTPLUG_SLOTS;

        if (!wanted) {
                h->down &= ~bit;
                return;
        }
        h->down |= bit;
        raise(h);
}

void acpi_hotplug_gone(AcpiHotplug *h, unsigned slot) {
        h->up &= ~(UINT32_C(1) << slot);
        h->down &= ~(UINT32_C(1) << slot);
}

/* --- state --- */

int acpi_hotplug_save(const AcpiHotplug *h, StateWriter *w) {
        state_begin(w, "acpi-hotplug", 0, 1);
        state_put_u8(w, h->status);
        state_put_u8(w, h->enable);
        state_put_u32(w, h->up);
        state_put_u32(w, h->down);
        return state_end(w);
}

int acpi_hotplug_load(AcpiHotplug *h, StateReader *reader, char **ret_message) {
        AcpiHotplug loaded = *h;
        int r;

        r = state_enter(reader, "acpi-hotplug", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "State has no section acpi-hotplug.0 that this version understands.");
        loaded.status = state_get_u8(reader) & GPE_HOTPLUG;
        loaded.enable = state_get_u8(reader) & GPE_HOTPLUG;
        loaded.up = state_get_u32(reader) & ACPI_HOTPLUG_SLOTS;
        loaded.down = state_get_u32(reader) & ACPI_HOTPLUG_SLOTS;
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;

        *h = loaded;
        update_sci(h);
        return 0;
}
