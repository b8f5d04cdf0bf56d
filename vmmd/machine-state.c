/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Everything of a machine but its RAM, written and read. */

#include <inttypes.h>

#include "machine-device.h"

int machine_save(Machine *m, StateWriter *w) {
        int r;

        state_begin(w, "machine", 0, 1);
        state_put_u64(w, m->definition->memory);
        state_put_u32(w, m->definition->vcpus);
        state_put_u32(w, m->resets);
        r = state_end(w);
        if (r >= 0)
                r = arch_save(m->arch, w);
        if (r >= 0)
                r = pci_device_save(&m->pvpanic.pci, w);
        return r < 0 ? r : machine_devices_save(m, w);
}

int machine_load(Machine *m, StateReader *reader, char **ret_message) {
        uint64_t memory;
        uint32_t vcpus;
        int r;

        r = state_enter(reader, "machine", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "This is no state of a machine.");
        memory = state_get_u64(reader);
        vcpus = state_get_u32(reader);
        m->resets = state_get_u32(reader);
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        if (memory != m->definition->memory || vcpus != m->definition->vcpus)
                return set_message(ret_message, -EBADMSG,
                        "The state is of a machine with %u vCPUs and %" PRIu64 " bytes of memory, not %u and %" PRIu64 ".",
                        vcpus, memory, m->definition->vcpus, m->definition->memory);
        r = arch_load(m->arch, reader, ret_message);
        if (r >= 0)
                r = pci_device_load(&m->pvpanic.pci, reader, ret_message);
        return r < 0 ? r : machine_devices_load(m, reader, ret_message);
}
