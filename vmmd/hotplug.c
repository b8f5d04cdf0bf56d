/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "attach-definition.h"
#include "hotplug.h"
#include "json-util.h"
#include "log.h"
#include "machine-device-internal.h"
#include "machine-internal.h"

typedef enum PlugState {
        PLUG_QUEUED,      /* a unit is just being freed */
        PLUG_CONFIGURING, /* the unit is told what it is */
        PLUG_CONNECTING,  /* the session is made */
        PLUG_PRESENT,     /* the guest was told, or has had it from the beginning */
        PLUG_STUB,        /* taken away by force; the guest is still to eject what is left */
        PLUG_DRAINING,    /* not to be seen by the guest; vCPUs come out of it */
        PLUG_GONE,        /* but its unit may not be free yet */
} PlugState;

/* One who waits for a device to be gone. */
typedef struct Waiter {
        struct Waiter *next;
        struct Plug *plug;
        sd_event_source *timer;
        HotplugDone done;
        void *userdata;
} Waiter;

/* A device that is attached, or a device of the definition that is to go. */
typedef struct Plug {
        struct Plug *next;
        Hotplug *hotplug;
        PlugState state;
        MachineDevice *device; /* NULL while configuring */
        char *name;

        bool has_slot; /* a spare unit's */
        unsigned slot;
        SlotClient *client;
        bool descriptors_known; /* not where another vmmd attached it, of a version that does not hand them over */
        bool releasing; /* the unit is being freed */
        bool restoring; /* its unit, which was lost, is told again what it is */

        /* coming */
        MachineDefinition *definition;
        SlotDescriptor *descriptors; /* kept as long as the device is there: its unit may lose them */
        size_t n_descriptors;
        HotplugDone done;
        void *userdata;
        uint64_t timeout_usec;
        sd_event_source *timer;

        /* going */
        Waiter *waiters;
        bool asked;       /* the guest is */
        bool force;       /* wanted; done as soon as no helper is made to do anything */
        const char *gone; /* why it went, for who waited for it to come */
} Plug;

struct Hotplug {
        Machine *machine;
        Plug *plugs;
        bool failed[MACHINE_HOTPLUG_SLOTS_MAX]; /* units that did not answer last time: others are tried first */
        unsigned next_slot; /* they take turns: the one that was freed last may still be ending, which would have to be waited for */
};

SlotDescriptor *slot_descriptors_free(SlotDescriptor *descriptors, size_t n) {
        for (size_t i = 0; i < n; i++) {
                free(descriptors[i].option);
                (void) safe_close(descriptors[i].fd);
        }
        free(descriptors);
        return NULL;
}

/* --- who waits --- */

static Waiter *waiter_free(Waiter *w) {
        (void) sd_event_source_disable_unref(w->timer);
        return mfree(w);
}

static void waiter_done(Waiter *w, int error) {
        Plug *p = w->plug;

        for (Waiter **i = &p->waiters; *i; i = &(*i)->next)
                if (*i == w) {
                        *i = w->next;
                        break;
                }
        w->done(p->device, error, NULL, w->userdata);
        (void) waiter_free(w);
}

static void tell_waiters(Plug *p, int error) {
        while (p->waiters)
                waiter_done(p->waiters, error);
}

static void tell_attached(Plug *p, int error, const char *message) {
        HotplugDone done = p->done;

        p->done = NULL;
        p->timer = sd_event_source_disable_unref(p->timer);
        if (done)
                done(p->device, error, message, p->userdata);
}

/* --- plugs --- */

static Plug *plug_free(Plug *p) {
        if (!p)
                return NULL;
        for (Plug **i = &p->hotplug->plugs; *i; i = &(*i)->next)
                if (*i == p) {
                        *i = p->next;
                        break;
                }
        (void) slot_client_free(p->client);
        p->descriptors = slot_descriptors_free(p->descriptors, p->n_descriptors);
        (void) sd_event_source_disable_unref(p->timer);
        while (p->waiters) {
                Waiter *w = p->waiters;

                p->waiters = w->next;
                (void) waiter_free(w);
        }
        (void) machine_device_unref(p->device);
        (void) machine_definition_free(p->definition);
        free(p->name);
        return mfree(p);
}
DEFINE_CLEANUP(Plug, plug_free)

static int plug_new(Hotplug *h, const char *name, Plug **ret) {
        Plug *p = calloc(1, sizeof(Plug));

        if (!p)
                return -ENOMEM;
        p->hotplug = h;
        p->name = strdup(name);
        if (!p->name) {
                free(p);
                return -ENOMEM;
        }
        p->next = h->plugs;
        h->plugs = p;
        *ret = p;
        return 0;
}

static Plug *find_plug(Hotplug *h, const MachineDevice *d) {
        for (Plug *p = h->plugs; p; p = p->next)
                if (p->device == d)
                        return p;
        return NULL;
}

/* Of a device that is on its way, but for those that are gone but for their units. */
static bool name_is_taken(Hotplug *h, const char *name) {
        for (Plug *p = h->plugs; p; p = p->next)
                if (p->state <= PLUG_PRESENT && streq(p->name, name))
                        return true;
        return machine_device_find(h->machine, name);
}

static char *slot_path(const Plug *p) {
        const Machine *m = p->hotplug->machine;
        char *path;

        return asprintf(&path, "%s/%s/" MACHINE_SLOT_PREFIX "%u.varlink", m->runtime_directory, m->definition->name, p->slot) < 0 ?
                NULL : path;
}

/* The last of a plug. */
static void plug_done(Plug *p) {
        p->state = PLUG_GONE;
        if (p->releasing)
                return;
        tell_attached(p, -ECANCELED, p->gone);
        tell_waiters(p, 0);
        (void) plug_free(p);
}

/* --- the unit is free again --- */

static void released(int error, const char *message, void *userdata) {
        Plug *p = userdata;

        if (error < 0) {
                log_warning("The spare unit of device '%s' was not freed: %s. That is tried again when it is needed.", p->name, message);
                p->hotplug->failed[p->slot] = true;
        }
        p->client = slot_client_free(p->client);
        p->releasing = p->has_slot = false;
        machine_request(p->hotplug->machine, MACHINE_REQUEST_HOTPLUG); /* for who is queued */
        if (p->state == PLUG_GONE)
                plug_done(p);
        else
                tell_waiters(p, 0); /* by force: what is left is the guest's matter */
}

static void release_slot(Plug *p) {
        _cleanup_free_ char *path = NULL;
        int r;

        if (!p->has_slot || p->releasing)
                return;
        p->client = slot_client_free(p->client);
        p->restoring = false;
        /* A disk's lock goes with its description: the last copy is to be the helper's. */
        p->descriptors = slot_descriptors_free(p->descriptors, p->n_descriptors);
        p->n_descriptors = 0;
        path = slot_path(p);
        r = path ? slot_release(p->hotplug->machine->event, path, released, p, &p->client) : -ENOMEM;
        if (r < 0) {
                log_warning("The spare unit of device '%s' cannot be freed: %s.", p->name, strerror(-r));
                p->hotplug->failed[p->slot] = true;
                p->has_slot = false;
                machine_request(p->hotplug->machine, MACHINE_REQUEST_HOTPLUG);
                return;
        }
        p->releasing = true;
}

/* --- going --- */

/* It is not among the machine's devices any more. */
static void take_off_list(Plug *p, const char *reason) {
        MachineDevice *d = p->device;

        machine_device_abort(d);
        if (d->link)
                device_link_end(d->link);
        machine_device_remove(d);
        log_info("Device '%s' was detached: %s", p->name, reason);
        machine_device_tell(d, DEVICE_CHANGE_DETACHED, reason);
        (void) machine_device_unref(d); /* the list's; ours stays */
        p->gone = reason;
        machine_request(p->hotplug->machine, MACHINE_REQUEST_DEVICES); /* readiness may not wait for it any more */
}

static void take_off_bus(Plug *p) {
        PciDevice *pci = virtio_pci_device(p->device->virtio);
        Machine *m = p->hotplug->machine;

        arch_pci_notify(m->arch, pci->slot, ARCH_PCI_GONE);
        pci_bus_remove(&m->pci, pci);
        p->state = PLUG_DRAINING;
        io_users_put(&pci->users);
}

static void leave(Plug *p, const char *reason) {
        take_off_list(p, reason);
        take_off_bus(p);
}

static void pull_out(Plug *p) {
        PciDevice *pci = virtio_pci_device(p->device->virtio);

        take_off_list(p, "It was taken away by force.");
        /* First that there is nothing: a driver that is told to go sees by this that it need not wait for its requests. */
        pci_device_hide(pci);
        arch_pci_notify(p->hotplug->machine->arch, pci->slot, ARCH_PCI_ASK_TO_GO);
        p->state = PLUG_STUB;
        tell_attached(p, -ECANCELED, p->gone);
        release_slot(p);
        if (!p->releasing)
                tell_waiters(p, 0);
}

static void drained(Plug *p) {
        machine_device_release(p->device);
        release_slot(p);
        plug_done(p);
}

/* --- coming --- */

/* It does not come after all; the guest has not seen it. */
static void give_up(Plug *p, int error, const char *message) {
        if (p->device) {
                machine_device_abort(p->device);
                machine_device_release(p->device);
        }
        tell_attached(p, error, message);
        if (p->state > PLUG_CONFIGURING)
                release_slot(p);
        plug_done(p);
}

static int on_attach_timeout(sd_event_source *s, uint64_t usec, void *userdata) {
        tell_attached(userdata, 0, NULL);
        return 0;
}

static int plug_in(Plug *p, char **ret_message) {
        Machine *m = p->hotplug->machine;
        MachineDevice *d = p->device;
        int r;

        r = machine_device_plug(d, -1, ret_message);
        if (r < 0)
                return r;
        r = machine_device_add(d);
        if (r < 0) {
                pci_bus_remove(&m->pci, virtio_pci_device(d->virtio));
                return r;
        }
        (void) machine_device_ref(d);
        p->state = PLUG_PRESENT;
        d->state_told = DEVICE_READY; /* by this */
        machine_device_tell(d, DEVICE_CHANGE_ATTACHED, NULL);
        arch_pci_notify(m->arch, virtio_pci_device(d->virtio)->slot, ARCH_PCI_PLUGGED);
        machine_request(m, MACHINE_REQUEST_DEVICES);
        log_info("Device '%s' was attached: %s in PCI slot %u.", p->name, d->definition->type->name,
                virtio_pci_device(d->virtio)->slot);
        return 0;
}

static void guest_told(Plug *p) {
        int r = 0;

        if (p->timeout_usec == 0)
                tell_attached(p, 0, NULL);
        else if (p->timeout_usec != HOTPLUG_NO_TIMEOUT)
                r = sd_event_add_time_relative(p->hotplug->machine->event, &p->timer, CLOCK_MONOTONIC, p->timeout_usec, 0, on_attach_timeout, p);
        if (r < 0)
                tell_attached(p, r, strerror(-r));
}

static void connected(Plug *p) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = plug_in(p, &message);
        if (r < 0)
                give_up(p, r, message ?: strerror(-r));
        else
                guest_told(p);
}

static int begin_session(Plug *p, char **ret_message) {
        Machine *m = p->hotplug->machine;
        const DeviceDefinition *definition = machine_definition_device(p->definition, p->name);
        int r;

        r = machine_device_new(m, definition, TAKE_PTR(p->definition), p->slot, &p->device, ret_message);
        return r < 0 ? r : vhost_frontend_start(p->device->frontend);
}

static void configured(int error, const char *message, void *userdata) {
        _cleanup_free_ char *text = NULL;
        Plug *p = userdata;
        int r = error;

        p->client = slot_client_free(p->client);
        p->hotplug->failed[p->slot] = error < 0 && error != -EINVAL && error != -EIO;
        if (r < 0) {
                /* What did not answer may be anything by now; who answered has kept nothing. */
                give_up(p, r == -EINVAL ? -EINVAL : -EIO, message);
                return;
        }
        p->state = PLUG_CONNECTING;
        r = begin_session(p, &text);
        if (r < 0)
                give_up(p, -EIO, text ?: strerror(-r));
}

static bool slot_is_taken(const Hotplug *h, unsigned slot) {
        for (const Plug *p = h->plugs; p; p = p->next)
                if (p->has_slot && p->slot == slot)
                        return true;
        return false;
}

static int find_slot(const Hotplug *h, unsigned *ret) {
        unsigned n = h->machine->definition->hotplug_slots;

        for (unsigned pass = 0; pass < 2; pass++)
                for (unsigned i = 0; i < n; i++) {
                        unsigned slot = (h->next_slot + i) % n;

                        if (h->failed[slot] == (pass > 0) && !slot_is_taken(h, slot)) {
                                *ret = slot;
                                return 0;
                        }
                }
        return -ENOSPC;
}

/* Whether one will be free soon, by itself. */
static bool slot_is_coming(const Hotplug *h) {
        for (const Plug *p = h->plugs; p; p = p->next)
                if (p->has_slot && (p->state == PLUG_DRAINING || p->releasing))
                        return true;
        return false;
}

static bool takes_devices(const Machine *m) {
        return !m->ended && (m->state == MACHINE_RUNNING || m->state == MACHINE_PAUSED);
}

static int begin_in_slot(Plug *p, json_object *parameters) {
        _cleanup_free_ char *path = slot_path(p);

        if (!path)
                return -ENOMEM;
        return slot_configure(p->hotplug->machine->event, path, parameters, p->descriptors, p->n_descriptors, configured, p, &p->client);
}

static int begin_attach(Hotplug *h, Plug *p) {
        _cleanup_json_ json_object *parameters = NULL;
        int r;

        p->state = PLUG_CONFIGURING;
        r = attach_slot_parameters(h->machine->definition->name, machine_definition_device(p->definition, p->name), p->descriptors,
                p->n_descriptors, &parameters);
        if (r < 0)
                return r;
        /* A unit that cannot even be reached is not the only one. */
        for (unsigned i = 0;; i++) {
                p->has_slot = false;
                r = find_slot(h, &p->slot);
                if (r < 0 && slot_is_coming(h)) {
                        p->state = PLUG_QUEUED;
                        return 0;
                }
                if (r < 0)
                        return r;
                p->has_slot = true;
                h->next_slot = p->slot + 1;
                r = begin_in_slot(p, parameters);
                if (r >= 0 || i + 1 >= h->machine->definition->hotplug_slots)
                        return r;
                h->failed[p->slot] = true;
        }
}

int hotplug_attach(Hotplug *h, MachineDefinition *definition, const char *name, SlotDescriptor *descriptors, size_t n_descriptors,
        uint64_t timeout_usec, HotplugDone done, void *userdata) {
        _cleanup_(plug_freep) Plug *p = NULL;
        int r = 0;

        if (!arch_has_pci_hotplug())
                r = -EOPNOTSUPP;
        else if (!takes_devices(h->machine))
                r = -EBUSY;
        else if (name_is_taken(h, name))
                r = -EEXIST;
        if (r >= 0)
                r = plug_new(h, name, &p);
        if (r < 0) {
                (void) machine_definition_free(definition);
                (void) slot_descriptors_free(descriptors, n_descriptors);
                return r;
        }
        p->definition = definition;
        p->descriptors = descriptors;
        p->n_descriptors = n_descriptors;
        p->descriptors_known = true;
        p->timeout_usec = timeout_usec;
        r = begin_attach(h, p);
        if (r < 0)
                return r;
        p->done = done;
        p->userdata = userdata;
        TAKE_PTR(p);
        return 0;
}

/* --- a unit that was lost --- */

static void restored(int error, const char *message, void *userdata) {
        Plug *p = userdata;

        p->client = slot_client_free(p->client);
        p->restoring = false;
        if (error < 0)
                log_warning("The unit of device '%s' cannot be made that device again: %s.", p->name, message);
        else
                machine_device_heal(p->device);
}

bool hotplug_can_restore(Hotplug *h, const MachineDevice *d) {
        const Plug *p = find_plug(h, d);

        return p && p->state == PLUG_PRESENT && p->has_slot && !p->force && p->descriptors_known;
}

void hotplug_restore(Hotplug *h, MachineDevice *d) {
        _cleanup_json_ json_object *parameters = NULL;
        _cleanup_free_ char *path = NULL;
        Plug *p = find_plug(h, d);
        int r;

        if (!hotplug_can_restore(h, d) || p->restoring || h->machine->ended)
                return;
        path = slot_path(p);
        r = path ? attach_slot_parameters(h->machine->definition->name, d->definition, p->descriptors, p->n_descriptors, &parameters) : -ENOMEM;
        if (r >= 0)
                r = slot_configure_again(h->machine->event, path, parameters, p->descriptors, p->n_descriptors, restored, p, &p->client);
        /* Where there is no socket its unit has given up; that comes back when somebody starts it. */
        if (r < 0)
                log_debug("The unit of device '%s' is not there: %s.", p->name, strerror(-r));
        p->restoring = r >= 0;
}

/* --- asking the guest --- */

static void withdraw(Plug *p) {
        p->asked = false;
        arch_pci_notify(p->hotplug->machine->arch, virtio_pci_device(p->device->virtio)->slot, ARCH_PCI_LET_STAY);
        /* One of the definition's is as if nothing had been. */
        if (!p->has_slot)
                (void) plug_free(p);
}

static int on_detach_timeout(sd_event_source *s, uint64_t usec, void *userdata) {
        Waiter *w = userdata;
        Plug *p = w->plug;

        waiter_done(w, -ETIMEDOUT);
        if (!p->waiters && p->state == PLUG_PRESENT && p->asked) {
                log_warning("The guest has not let go of device '%s' in time; it stays.", p->name);
                withdraw(p);
        }
        return 0;
}

static int add_waiter(Plug *p, uint64_t timeout_usec, HotplugDone done, void *userdata) {
        Waiter *w = calloc(1, sizeof(Waiter)), **last = &p->waiters;
        int r = 0;

        if (!w)
                return -ENOMEM;
        *w = (Waiter) { .plug = p, .done = done, .userdata = userdata };
        if (timeout_usec != HOTPLUG_NO_TIMEOUT)
                r = sd_event_add_time_relative(p->hotplug->machine->event, &w->timer, CLOCK_MONOTONIC, timeout_usec, 0, on_detach_timeout, w);
        if (r < 0) {
                (void) waiter_free(w);
                return r;
        }
        while (*last)
                last = &(*last)->next;
        *last = w;
        return 0;
}

int hotplug_detach(Hotplug *h, MachineDevice *d, uint64_t timeout_usec, bool force, HotplugDone done, void *userdata) {
        Plug *p = find_plug(h, d), *made = NULL;
        Machine *m = h->machine;
        int r;

        if (!d->virtio || !virtio_pci_device(d->virtio)->removable)
                return -EOPNOTSUPP;
        if (m->ended || m->state == MACHINE_RESETTING || m->state == MACHINE_STARTING || (!force && m->state != MACHINE_RUNNING))
                return -EBUSY;
        if (!p) {
                r = plug_new(h, d->definition->name, &made);
                if (r < 0)
                        return r;
                p = made;
                p->state = PLUG_PRESENT;
                p->device = machine_device_ref(d);
        }
        /* What is taken away by force goes at once, but for a helper that does not say that it is free. */
        r = add_waiter(p, force ? HOTPLUG_NO_TIMEOUT : timeout_usec, done, userdata);
        if (r < 0) {
                (void) plug_free(made);
                return r;
        }
        if (force) {
                p->force = true;
                machine_request(m, MACHINE_REQUEST_HOTPLUG);
        } else {
                p->asked = true;
                arch_pci_notify(m->arch, virtio_pci_device(d->virtio)->slot, ARCH_PCI_ASK_TO_GO);
        }
        return 0;
}

bool hotplug_is_leaving(Hotplug *h, const MachineDevice *d) {
        const Plug *p = find_plug(h, d);

        return p && (p->asked || p->force);
}

/* --- what changed --- */

/* The guest ejects what it likes, asked or not. */
static int take_up_ejections(Hotplug *h) {
        for (size_t i = 0; i < h->machine->n_devices; i++) {
                MachineDevice *d = h->machine->devices[i];
                Plug *p = find_plug(h, d);
                int r;

                if (p || !d->virtio || !pci_device_is_ejected(virtio_pci_device(d->virtio)))
                        continue;
                r = plug_new(h, d->definition->name, &p);
                if (r < 0)
                        return r;
                p->state = PLUG_PRESENT;
                p->device = machine_device_ref(d);
        }
        return 0;
}

static void update_connecting(Plug *p) {
        _cleanup_free_ char *error = NULL;

        switch (vhost_frontend_state(p->device->frontend)) {
        case VHOST_FRONTEND_FAILED:
                error = vhost_frontend_error(p->device->frontend);
                give_up(p, -EIO, error ?: "unknown reason");
                break;
        case VHOST_FRONTEND_READY:
                connected(p);
                break;
        default:
                break;
        }
}

static void update_present(Plug *p) {
        _cleanup_free_ char *error = NULL;

        if (pci_device_is_ejected(virtio_pci_device(p->device->virtio))) {
                leave(p, p->asked ? "The guest let go of it, as asked." : "The guest let go of it by itself.");
                return;
        }
        if (p->force) {
                pull_out(p);
                return;
        }
        if (!p->done)
                return;
        switch (machine_device_told_state(p->device)) {
        case DEVICE_ACTIVE:
                tell_attached(p, 0, NULL);
                break;
        case DEVICE_FAILED:
                error = machine_device_error(p->device);
                tell_attached(p, -EIO, error ?: "unknown reason");
                break;
        default:
                break;
        }
}

static void update_queued(Plug *p) {
        int r;

        r = begin_attach(p->hotplug, p);
        if (r < 0) {
                p->has_slot = false; /* nobody was told anything */
                give_up(p, r, strerror(-r));
        }
}

static void plug_update(Plug *p) {
        switch (p->state) {
        case PLUG_QUEUED:
                update_queued(p);
                break;
        case PLUG_CONFIGURING:
        case PLUG_GONE:
                break;
        case PLUG_CONNECTING:
                update_connecting(p);
                break;
        case PLUG_PRESENT:
                update_present(p);
                break;
        case PLUG_STUB:
                if (pci_device_is_ejected(virtio_pci_device(p->device->virtio)))
                        take_off_bus(p);
                break;
        case PLUG_DRAINING:
                if (atomic_load(&p->device->idle))
                        drained(p);
                break;
        }
}

void hotplug_update(Hotplug *h) {
        Plug *next;

        /* While helpers are made to do something, that thread goes through the list of devices. It comes here when they have done it. */
        if (h->machine->work != WORK_NONE || h->machine->ended)
                return;
        if (take_up_ejections(h) < 0)
                log_warning("Out of memory; a device that the guest let go of stays for now.");
        for (Plug *p = h->plugs; p; p = next) {
                next = p->next; /* none frees another than itself */
                plug_update(p);
        }
}

void hotplug_reset(Hotplug *h) {
        Plug *next;

        hotplug_update(h);
        for (Plug *p = h->plugs; p; p = next) {
                next = p->next;
                if (p->state == PLUG_STUB)
                        take_off_bus(p);
                else if (p->state == PLUG_PRESENT && p->asked)
                        leave(p, "The guest was reset while it was to let go of it.");
        }
}

void hotplug_cancel(Hotplug *h) {
        for (Plug *p = h->plugs; p; p = p->next) {
                tell_attached(p, -ECANCELED, "the machine ends");
                tell_waiters(p, -ECANCELED);
        }
}

/* --- handing over --- */

char *hotplug_obstacle(const Hotplug *h) {
        char *text;

        for (const Plug *p = h->plugs; p; p = p->next)
                if (p->state != PLUG_PRESENT || p->asked || p->force || p->done || p->waiters || p->releasing || p->restoring)
                        return asprintf(&text, "Device '%s' is just being %s.", p->name, p->state < PLUG_PRESENT || p->done || p->restoring ? "attached" : "detached") < 0 ?
                                NULL : text;
        return NULL;
}

#define FILES_SECTION "attached-files"
#define OPTION_MAX 256

int hotplug_hand_over(const Hotplug *h, Handover *to) {
        int r = 0;

        for (const Plug *p = h->plugs; p && r >= 0; p = p->next) {
                if (!p->has_slot || !p->device || !p->descriptors_known)
                        continue;
                state_begin(to->writer, FILES_SECTION, p->device->number, 1);
                state_put_u32(to->writer, (uint32_t) p->n_descriptors);
                for (size_t i = 0; i < p->n_descriptors; i++) {
                        state_put_string(to->writer, p->descriptors[i].option);
                        handover_put_fd(to, p->descriptors[i].fd);
                }
                r = state_end(to->writer);
        }
        return r;
}

/* Of as many as the device has: that is checked as it was when it was attached. */
static int take_descriptors(Plug *p, Handover *from, char **ret_message) {
        uint32_t n;
        int r;

        r = state_enter(from->reader, FILES_SECTION, p->device->number, 1);
        if (r == -ENOENT)
                return 0;
        if (r < 0)
                return set_message(ret_message, r, "The state's files of device '%s' are not to be read.", p->name);
        n = state_get_u32(from->reader);
        p->descriptors = n > 0 && n <= MACHINE_DEVICES_MAX ? calloc(n, sizeof(*p->descriptors)) : NULL;
        for (; p->descriptors && p->n_descriptors < n; p->n_descriptors++)
                p->descriptors[p->n_descriptors] = (SlotDescriptor) {
                        .option = state_get_string(from->reader, OPTION_MAX), .fd = handover_get_fd(from),
                };
        r = state_leave(from->reader, ret_message);
        if (r >= 0)
                r = handover_end(from);
        for (size_t i = 0; i < p->n_descriptors && r >= 0; i++)
                if (!p->descriptors[i].option || p->descriptors[i].fd < 0)
                        r = set_message(ret_message, -EBADMSG, "The state's files of device '%s' are not whole.", p->name);
        if (r >= 0)
                r = attach_check_descriptors(p->device->definition, p->descriptors, p->n_descriptors, ret_message);
        p->descriptors_known = r >= 0;
        return r;
}

int hotplug_take_over(Hotplug *h, Handover *from, char **ret_message) {
        for (size_t i = 0; i < h->machine->n_devices; i++) {
                MachineDevice *d = h->machine->devices[i];
                Plug *p;
                int r;

                if (!d->attached)
                        continue;
                r = plug_new(h, d->definition->name, &p);
                if (r < 0)
                        return r;
                p->state = PLUG_PRESENT;
                p->device = machine_device_ref(d);
                p->has_slot = true;
                p->slot = d->slot;
                r = take_descriptors(p, from, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* --- making and freeing --- */

int hotplug_new(Machine *m, Hotplug **ret) {
        Hotplug *h = calloc(1, sizeof(Hotplug));

        if (!h)
                return -ENOMEM;
        h->machine = m;
        *ret = h;
        return 0;
}

Hotplug *hotplug_free(Hotplug *h) {
        if (!h)
                return NULL;
        hotplug_cancel(h);
        while (h->plugs)
                (void) plug_free(h->plugs);
        return mfree(h);
}
