/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Everything of a machine but its RAM, written and read. */

#include <inttypes.h>

#include "hotplug.h"
#include "machine-device.h"
#include "machine-internal.h"
#include "pmem.h"

#define TEXT_MAX KIB(64)

void machine_hold_interrupts(Machine *m, bool hold) {
        if (m->interrupts_held == hold)
                return;
        m->interrupts_held = hold;
        machine_devices_hold_interrupts(m, hold);
}

/* --- what the guest has of it --- */

/* Persistent memory is as large as its file: a guest would not like to find it elsewhere. */
static int save_pmem(Machine *m, StateWriter *w) {
        int r = 0;

        for (size_t i = 0; i < m->definition->n_devices && r >= 0; i++) {
                struct virtio_pmem_config config;

                if (!pmem_config(m->pmem, m->definition->devices[i].name, &config))
                        continue;
                state_begin(w, "pmem", (uint32_t) i, 1);
                state_put_u64(w, config.start);
                state_put_u64(w, config.size);
                r = state_end(w);
        }
        return r;
}

static int check_pmem(Machine *m, StateReader *reader, char **ret_message) {
        for (size_t i = 0; i < m->definition->n_devices; i++) {
                const char *name = m->definition->devices[i].name;
                struct virtio_pmem_config config;
                uint64_t start, size;
                int r;

                if (!pmem_config(m->pmem, name, &config))
                        continue;
                r = state_enter(reader, "pmem", (uint32_t) i, 1);
                if (r < 0)
                        return set_message(ret_message, r, "The state has nothing of the persistent memory '%s'.", name);
                start = state_get_u64(reader);
                size = state_get_u64(reader);
                r = state_leave(reader, ret_message);
                if (r < 0)
                        return r;
                if (start != config.start || size != config.size)
                        return set_message(ret_message, -EBADMSG, "The persistent memory '%s' has changed its size: %" PRIu64 " bytes, in the state %" PRIu64 ".",
                                name, (uint64_t) config.size, size);
        }
        return 0;
}

int machine_save(Machine *m, StateWriter *w) {
        int r;

        bool held = m->interrupts_held;

        if (m->plugin)
                return -EOPNOTSUPP; /* nearly all of it is in another program */
        machine_hold_interrupts(m, true);
        state_begin(w, "machine", 0, 2);
        state_put_u64(w, m->definition->memory);
        state_put_u32(w, m->definition->vcpus);
        state_put_u32(w, m->resets);
        state_put_u8(w, m->guest_ready);
        state_put_u8(w, m->guest_says_ready);
        state_put_string(w, m->guest_status);
        r = state_end(w);
        if (r >= 0)
                r = save_pmem(m, w);
        if (r >= 0)
                r = arch_save(m->arch, w);
        if (r >= 0)
                r = pci_device_save(&m->pvpanic.pci, w);
        if (r >= 0)
                r = pci_bus_save(&m->pci, w);
        if (r >= 0)
                r = machine_devices_save(m, w);
        machine_hold_interrupts(m, held);
        return r;
}

int machine_load(Machine *m, StateReader *reader, char **ret_message) {
        uint64_t memory;
        unsigned version;
        uint32_t vcpus;
        int r;

        r = state_enter(reader, "machine", 0, 2);
        if (r < 0)
                return set_message(ret_message, r, "This is no state of a machine.");
        version = (unsigned) r;
        memory = state_get_u64(reader);
        vcpus = state_get_u32(reader);
        m->resets = state_get_u32(reader);
        if (version >= 2) {
                m->guest_ready = state_get_u8(reader) != 0;
                m->guest_says_ready = state_get_u8(reader) != 0;
                free(m->guest_status);
                m->guest_status = make_one_line(state_get_string(reader, TEXT_MAX));
        }
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        if (memory != m->definition->memory || vcpus != m->definition->vcpus)
                return set_message(ret_message, -EBADMSG,
                        "The state is of a machine with %u vCPUs and %" PRIu64 " bytes of memory, not %u and %" PRIu64 ".",
                        vcpus, memory, m->definition->vcpus, m->definition->memory);
        r = check_pmem(m, reader, ret_message);
        if (r >= 0)
                r = arch_load(m->arch, reader, ret_message);
        if (r >= 0)
                r = pci_device_load(&m->pvpanic.pci, reader, ret_message);
        if (r >= 0 && version >= 2)
                r = pci_bus_load(&m->pci, reader, ret_message);
        return r < 0 ? r : machine_devices_load(m, reader, ret_message);
}

/* --- what the process has of it --- */

int machine_hand_over(Machine *m, Handover *h) {
        StateWriter *w = h->writer;
        int r;

        state_begin(w, "machine-process", 0, 1);
        state_put_u8(w, m->state == MACHINE_PAUSED);
        state_put_u64(w, m->state_since_usec);
        state_put_u8(w, m->pause_devices);
        state_put_u8(w, m->devices_suspended);
        state_put_u8(w, m->ready_sent);
        state_put_string(w, m->last_problem);
        state_put_u64(w, atomic_load(&m->first_entry_usec));
        state_put_u64(w, vcpu_set_exits(&m->vcpus));
        r = state_end(w);
        if (r >= 0)
                r = hotplug_hand_over(m->hotplug, h);
        return r < 0 ? r : machine_devices_hand_over(m, h);
}

static int take_over_process(Machine *m, StateReader *reader, char **ret_message) {
        int r;

        r = state_enter(reader, "machine-process", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "The state has nothing of the process that ran the machine.");
        m->state = state_get_u8(reader) != 0 ? MACHINE_PAUSED : MACHINE_RUNNING;
        m->state_since_usec = state_get_u64(reader);
        m->pause_devices = state_get_u8(reader) != 0;
        m->devices_suspended = state_get_u8(reader) != 0;
        m->ready_sent = state_get_u8(reader) != 0;
        free(m->last_problem);
        m->last_problem = state_get_string(reader, TEXT_MAX);
        atomic_store(&m->first_entry_usec, state_get_u64(reader));
        atomic_store(&m->vcpus.vcpus[0].exits, state_get_u64(reader));
        m->started = true;
        atomic_store(&m->vcpus.entered, true);
        return state_leave(reader, ret_message);
}

int machine_take_over(Machine *m, Handover *h, char **ret_message) {
        int r;

        r = hotplug_take_over(m->hotplug, h, ret_message);
        if (r >= 0)
                r = take_over_process(m, h->reader, ret_message);
        if (r < 0)
                return r;
        arch_set_time_goes_on(m->arch, true);
        r = machine_load(m, h->reader, ret_message);
        arch_set_time_goes_on(m->arch, false);
        return r < 0 ? r : state_reader_finish(h->reader, ret_message);
}

int machine_go_on(Machine *m) {
        int r;

        r = vcpu_set_start(&m->vcpus);
        if (r < 0)
                return r;
        machine_hold_interrupts(m, false);
        if (m->state == MACHINE_RUNNING)
                vcpu_set_resume(&m->vcpus, false);
        else
                vcpu_set_pause(&m->vcpus); /* for who resumes before the last one is parked */
        machine_request(m, MACHINE_REQUEST_DEVICES);
        return 0;
}
