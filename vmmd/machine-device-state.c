/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The devices of a machine, written and read: what they are, their registers, and, for the successor of this process, their sessions. */

#include <fcntl.h>
#include <stdio.h>

#include "attach-definition.h"
#include "json-util.h"
#include "machine-device-internal.h"

#define NAME_MAX_BYTES 256
#define TEXT_MAX KIB(64)
#define SLOT_NONE UINT32_MAX

/* --- which devices there are --- */

typedef struct Entry {
        char *name;
        unsigned number;
        uint32_t pci_slot; /* SLOT_NONE: it is no PCI device */
        char *attached;    /* of a device that was attached: its definition, in JSON */
        unsigned unit_slot;
} Entry;

static void entry_done(Entry *e) {
        e->name = mfree(e->name);
        e->attached = mfree(e->attached);
}

static uint32_t pci_slot(const MachineDevice *d) {
        return d->virtio ? virtio_pci_device(d->virtio)->slot : SLOT_NONE;
}

static const char *attached_text(const MachineDevice *d) {
        json_object *json = d->attached ? attach_definition_json(d->attached, d->definition->name) : NULL;

        return json ? json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN) : NULL;
}

static int save_list(Machine *m, StateWriter *w) {
        state_begin(w, "devices", 0, 1);
        state_put_u32(w, (uint32_t) m->n_devices);
        for (size_t i = 0; i < m->n_devices; i++) {
                const MachineDevice *d = m->devices[i];

                state_put_string(w, d->definition->name);
                state_put_u32(w, d->number);
                state_put_u32(w, pci_slot(d));
                state_put_string(w, attached_text(d));
                state_put_u32(w, d->slot);
        }
        return state_end(w);
}

static Entry get_entry(StateReader *r) {
        Entry e = { .name = state_get_string(r, NAME_MAX_BYTES) };

        e.number = state_get_u32(r);
        e.pci_slot = state_get_u32(r);
        e.attached = state_get_string(r, TEXT_MAX);
        e.unit_slot = state_get_u32(r);
        return e;
}

/* Calls `take` for each device of the list. */
static int read_list(Machine *m, StateReader *r, int (*take)(Machine *m, const Entry *e, char **ret_message), char **ret_message) {
        Entry entries[MACHINE_DEVICES_MAX] = {};
        uint32_t n;
        int k;

        k = state_enter(r, "devices", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "The state has no list of devices.");
        n = state_get_u32(r);
        for (uint32_t i = 0; i < n && i < ELEMENTSOF(entries); i++)
                entries[i] = get_entry(r);
        k = n > ELEMENTSOF(entries) ? set_message(ret_message, -EBADMSG, "The state has %u devices.", n) : state_leave(r, ret_message);
        for (uint32_t i = 0; i < n && k >= 0; i++)
                k = entries[i].name ? take(m, &entries[i], ret_message) :
                                      set_message(ret_message, -EBADMSG, "The state has a device without a name.");
        for (size_t i = 0; i < ELEMENTSOF(entries); i++)
                entry_done(&entries[i]);
        return k < 0 ? k : (int) n;
}

static int check_entry(Machine *m, const Entry *e, char **ret_message) {
        const MachineDevice *d = machine_device_find(m, e->name);

        if (!d)
                return set_message(ret_message, -EBADMSG, "The state has a device '%s', which this machine has not.", e->name);
        if (pci_slot(d) != e->pci_slot)
                return set_message(ret_message, -EBADMSG, "The state has device '%s' in another PCI slot than this machine.", e->name);
        return 0;
}

static int check_list(Machine *m, StateReader *r, char **ret_message) {
        int n = read_list(m, r, check_entry, ret_message);

        if (n >= 0 && (size_t) n != m->n_devices)
                return set_message(ret_message, -EBADMSG, "The state has %i devices, this machine %zu.", n, m->n_devices);
        return MIN(n, 0);
}

/* --- registers --- */

int machine_devices_save(Machine *m, StateWriter *w) {
        int r;

        r = save_list(m, w);
        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                if (m->devices[i]->virtio) {
                        r = pci_device_save(virtio_pci_device(m->devices[i]->virtio), w);
                        if (r >= 0)
                                r = virtio_pci_save(m->devices[i]->virtio, w);
                }
        return r;
}

int machine_devices_load(Machine *m, StateReader *reader, char **ret_message) {
        int r;

        r = check_list(m, reader, ret_message);
        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                if (m->devices[i]->virtio) {
                        r = pci_device_load(virtio_pci_device(m->devices[i]->virtio), reader, ret_message);
                        if (r >= 0)
                                r = virtio_pci_load(m->devices[i]->virtio, reader, ret_message);
                }
        return r;
}

void machine_devices_hold_interrupts(Machine *m, bool hold) {
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = m->devices[i];

                if (d->virtio)
                        virtio_pci_hold_interrupts(d->virtio, hold);
                else
                        (void) machine_device_connect_irq(d, !hold);
        }
}

/* --- sessions --- */

char *machine_devices_obstacle(Machine *m) {
        char *text;

        for (size_t i = 0; i < m->n_devices; i++)
                if (machine_device_state(m->devices[i]) == DEVICE_CONNECTING)
                        return asprintf(&text, "The helper of device '%s' is just starting.", m->devices[i]->definition->name) < 0 ? NULL : text;
        return NULL;
}

static int hand_over_device(MachineDevice *d, Handover *h) {
        json_object *balloon = machine_device_balloon(d);
        StateWriter *w = h->writer;
        int r;

        state_begin(w, "device", d->number, 1);
        state_put_u8(w, (uint8_t) d->state_told);
        state_put_u8(w, d->lost);
        state_put_u8(w, d->failure_reported);
        state_put_u32(w, d->reconnects);
        state_put_u32(w, d->reconnects_told);
        state_put_u32(w, d->resumed);
        state_put_u32(w, (uint32_t) d->helper_pid);
        state_put_string(w, d->last_error);
        state_put_u64(w, d->last_error_usec);
        state_put_string(w, balloon ? json_object_to_json_string_ext(balloon, JSON_C_TO_STRING_PLAIN) : NULL);
        state_put_u8(w, d->bus_failed);
        state_put_string(w, d->bus_error);
        handover_put_fd(h, d->irq_fd);
        r = state_end(w);
        if (r < 0)
                return r;
        if (d->bus)
                return bus_client_hand_over(d->bus, d->number, h);
        virtio_pci_hand_over(d->virtio, h);
        return vhost_frontend_hand_over(d->frontend, d->number, h);
}

int machine_devices_hand_over(Machine *m, Handover *h) {
        int r = 0;

        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                r = hand_over_device(m->devices[i], h);
        return r;
}

/* What was told of it, so that it is not told again; the line of a bus device. */
static int take_over_device(MachineDevice *d, Handover *h, char **ret_message) {
        _cleanup_free_ char *balloon = NULL;
        _cleanup_json_ json_object *json = NULL;
        StateReader *reader = h->reader;
        _cleanup_close_ int irq_fd = -EBADF;
        int r;

        r = state_enter(reader, "device", d->number, 1);
        if (r < 0)
                return set_message(ret_message, r, "The state has nothing of device '%s'.", d->definition->name);
        d->state_told = (DeviceState) state_get_u8(reader);
        d->lost = state_get_u8(reader) != 0;
        d->failed = d->failure_reported = state_get_u8(reader) != 0;
        d->reconnects = state_get_u32(reader);
        d->reconnects_told = state_get_u32(reader);
        d->resumed = state_get_u32(reader);
        d->helper_pid = (pid_t) state_get_u32(reader);
        d->last_error = state_get_string(reader, TEXT_MAX);
        d->last_error_usec = state_get_u64(reader);
        balloon = state_get_string(reader, TEXT_MAX);
        d->bus_failed = state_get_u8(reader) != 0;
        d->bus_error = state_get_string(reader, TEXT_MAX);
        irq_fd = handover_get_fd(h);
        r = state_leave(reader, ret_message);
        if (r >= 0)
                r = handover_end(h);
        if (r >= 0 && (d->state_told > DEVICE_FAILED || (d->bus && irq_fd < 0)))
                r = set_message(ret_message, -EBADMSG, "The state of device '%s' is not whole.", d->definition->name);
        if (r < 0)
                return r;
        json = balloon ? json_tokener_parse(balloon) : NULL;
        if (json)
                machine_device_set_balloon(d, json);
        /* In place of the one that was made here, which the bus client knows by its number. */
        return d->bus && dup3(irq_fd, d->irq_fd, O_CLOEXEC) < 0 ? -errno : 0;
}

static int take_over_session(MachineDevice *d, Handover *h, char **ret_message) {
        int r;

        if (d->virtio) {
                virtio_pci_hold_interrupts(d->virtio, true);
                r = virtio_pci_take_over(d->virtio, h);
                return r < 0 ? r : vhost_frontend_take_over(d->frontend, d->number, h, ret_message);
        }
        r = bus_client_take_over(d->bus, d->number, h, ret_message);
        if (r < 0 || d->bus_failed)
                return r;
        return machine_device_watch_bus(d);
}

static int make_device(Machine *m, const Entry *e, MachineDevice **ret, char **ret_message) {
        const DeviceDefinition *definition = machine_definition_device(m->definition, e->name);
        _cleanup_json_ json_object *json = NULL;
        MachineDefinition *attached = NULL;
        int r;

        if (e->attached) {
                json = json_tokener_parse(e->attached);
                if (!json)
                        return set_message(ret_message, -EBADMSG, "The state's definition of device '%s' is no JSON.", e->name);
                r = attach_definition_new(m, e->name, json, &attached, ret_message);
                if (r < 0)
                        return r;
                definition = machine_definition_device(attached, e->name);
        }
        if (!definition) {
                (void) machine_definition_free(attached);
                return set_message(ret_message, -EBADMSG, "The state has a device '%s', which the definition has not.", e->name);
        }
        return machine_device_new(m, definition, attached, e->unit_slot, ret, ret_message);
}

static bool is_sound(const Machine *m, const Entry *e) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->number == e->number || streq(m->devices[i]->definition->name, e->name))
                        return false;
        return e->number < MACHINE_DEVICES_MAX && e->unit_slot < MACHINE_HOTPLUG_SLOTS_MAX;
}

static int take_over(Machine *m, const Entry *e, char **ret_message) {
        _cleanup_(machine_device_unrefp) MachineDevice *d = NULL;
        int r;

        if (!is_sound(m, e))
                return set_message(ret_message, -EBADMSG, "The state has device '%s' as what another is.", e->name);
        r = make_device(m, e, &d, ret_message);
        if (r < 0)
                return r;
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): make_device() has set it where it does not fail */
        if ((e->pci_slot == SLOT_NONE) != !d->virtio || (d->virtio && e->pci_slot >= PCI_SLOTS))
                return set_message(ret_message, -EBADMSG, "The state has device '%s' as one of another kind.", e->name);
        if (d->virtio)
                r = machine_device_plug(d, (int) e->pci_slot, ret_message);
        if (r >= 0)
                r = machine_device_add(d);
        if (r < 0)
                return r;
        d->number = e->number;
        r = take_over_device(d, m->files.handover, ret_message);
        if (r >= 0)
                r = take_over_session(d, m->files.handover, ret_message);
        TAKE_PTR(d);
        return r;
}

int machine_devices_take_over(Machine *m, Handover *h, char **ret_message) {
        int r;

        r = read_list(m, h->reader, take_over, ret_message);
        if (r >= 0)
                machine_devices_watch_sockets(m);
        return MIN(r, 0);
}
