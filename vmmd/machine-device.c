/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <limits.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>

#include "catalog-ids.h"
#include "hotplug.h"
#include "log.h"
#include "machine-device-internal.h"
#include "machine-internal.h"
#include "pmem.h"
#include "unit-name.h"

/* Between two attempts to connect to the successor; and how long it may be before its socket is there. */
#define BUS_RETRY_USEC (100 * USEC_PER_MSEC)
#define BUS_SOCKET_USEC (10 * USEC_PER_SEC)

#define SLOT_NAME_MAX 16

static const char *const state_names[] = {
        [DEVICE_CONNECTING] = "connecting", [DEVICE_READY] = "ready", [DEVICE_ACTIVE] = "active", [DEVICE_FAILED] = "failed",
};

const char *machine_device_state_to_string(DeviceState state) {
        return state_names[state];
}

/* --- what went wrong --- */

void machine_device_tell(MachineDevice *d, MachineDeviceChange change, const char *reason) {
        const MachineObserver *o = d->machine->observer;

        if (o)
                o->device_changed(d, change, reason, o->userdata);
}

static void note_error(MachineDevice *d, const char *error) {
        (void) set_message(&d->last_error, 0, "%s", error);
        d->last_error_usec = now_realtime_usec();
}

static void on_link_broken(const char *reason, void *userdata) {
        MachineDevice *d = userdata;

        if (!reason)
                return;
        note_error(d, reason);
        machine_device_tell(d, DEVICE_CHANGE_FAILED, reason);
}

/* How often the session was made anew. */
static unsigned n_sessions(MachineDevice *d) {
        return d->frontend ? vhost_frontend_reconnects(d->frontend) : d->reconnects;
}

/* A successor that took its session up from the service manager is seen by nothing but its process. And one that comes where the device had failed for good
 * shows that the device's unit was started again: it is tried once. */
static void on_link_present(pid_t pid, void *userdata) {
        static const char reason[] = "its helper went away, and its successor took over";
        MachineDevice *d = userdata;
        pid_t before = d->helper_pid;

        d->helper_pid = pid;
        if (d->failure_reported) {
                if (pid != before)
                        machine_device_heal(d);
                return;
        }
        if (before == 0 || pid == before || d->lost)
                return;
        d->resumed++;
        note_error(d, reason);
        log_id(LOG_WARNING, MESSAGE_DEVICE_LOST, "The helper of device '%s' went away.", d->definition->name);
        machine_device_tell(d, DEVICE_CHANGE_FAILED, reason);
        log_id(LOG_INFO, MESSAGE_DEVICE_RESTARTED, "The helper of device '%s' is back, and took up where its predecessor was.", d->definition->name);
        machine_device_tell(d, DEVICE_CHANGE_RESTARTED, NULL);
}

static void on_link_strange(void *userdata) {
        MachineDevice *d = userdata;

        if (d->attached && d->failure_reported)
                hotplug_restore(d->machine->hotplug, d);
}

static void on_link_balloon(const char *type, json_object *working_set, void *userdata) {
        MachineDevice *d = userdata;
        const MachineObserver *o = d->machine->observer;

        if (o)
                o->balloon_changed(d, type, working_set, o->userdata);
}

/* By which name unit and sockets of the device are found. */
static const char *unit_part(const MachineDevice *d, char slot[static SLOT_NAME_MAX]) {
        if (!d->attached)
                return d->definition->name;
        (void) snprintf(slot, SLOT_NAME_MAX, "slot%u", d->slot);
        return slot;
}

static void on_link_guest(bool ready, const char *status, void *userdata) {
        MachineDevice *d = userdata;

        machine_guest_says(d->machine, ready, status);
}

static char *device_path(const MachineDevice *d, const char *suffix) {
        char slot[SLOT_NAME_MAX], *path;

        if (asprintf(&path, "%s/%s/%s.%s", d->machine->runtime_directory, d->machine->definition->name, unit_part(d, slot), suffix) < 0)
                return NULL;
        return path;
}

/* --- vhost-user devices --- */

/* Any thread. */
static void on_state_changed(void *userdata) {
        MachineDevice *d = userdata;

        machine_request(d->machine, MACHINE_REQUEST_DEVICES);
}

static void on_config_changed(void *userdata) {
        MachineDevice *d = userdata;

        virtio_pci_config_changed(d->virtio);
}

static void on_broken(void *userdata) {
        MachineDevice *d = userdata;

        log_id(LOG_WARNING, MESSAGE_DEVICE_BROKEN,
                "Device '%s': the guest's driver broke the rules of virtio; it has to reset the device.",
                d->definition->name);
        virtio_pci_needs_reset(d->virtio);
        /* A helper that says what it is doing says why, too. */
        if (machine_device_pid(d) == 0)
                on_link_broken("the guest's driver broke the rules of virtio", d);
}

static void on_lost(void *userdata) {
        MachineDevice *d = userdata;

        log_id(LOG_WARNING, MESSAGE_DEVICE_BROKEN,
                "Device '%s': its program died with requests under way and keeps no log of them; the guest's driver has to reset the device.",
                d->definition->name);
        virtio_pci_needs_reset(d->virtio);
        on_link_broken("its program died with requests under way", d);
}

/* The memory that its helper is given: all that a guest's buffers may lie in. */
static const GuestMemory *device_memory(const Machine *m) {
        return pmem_device_memory(m->pmem) ?: &m->memory;
}

static int vhost_device_new(MachineDevice *d, char **ret_message) {
        const VhostFrontendHandlers handlers = {
                .state_changed = on_state_changed, .config_changed = on_config_changed, .broken = on_broken, .lost = on_lost, .userdata = d,
        };
        uint16_t virtio_id = device_definition_virtio_id(d->definition);
        uint64_t config_size = device_definition_unsigned(d->definition, "configSize", UINT32_MAX);
        struct virtio_pmem_config pmem;
        int r;

        r = vhost_frontend_new(d->definition->name, d->path, virtio_id,
                device_definition_queues(d->definition), device_memory(d->machine), &handlers, &d->frontend);
        if (r >= 0 && pmem_config(d->machine->pmem, d->definition->name, &pmem))
                vhost_frontend_set_config(d->frontend, &pmem, sizeof(pmem));
        if (r >= 0 && config_size != UINT32_MAX)
                vhost_frontend_set_config_size(d->frontend, (uint32_t) config_size);
        if (r >= 0)
                r = virtio_pci_new(virtio_id, d->definition->type->pci_class, d->frontend, &d->machine->kvm, &d->virtio);
        if (r < 0)
                return set_message(ret_message, r, "Cannot make device '%s': %s.", d->definition->name, strerror(-r));
        virtio_pci_watch(d->virtio, on_state_changed, d);
        if (d->machine->restore)
                vhost_frontend_hold(d->frontend); /* there are holes in the memory yet */
        return 0;
}

/* Any thread: nobody is inside the device's registers any more, nor comes in. */
static void on_idle(void *userdata) {
        MachineDevice *d = userdata;
        Machine *m = d->machine;

        atomic_store(&d->idle, true); /* after which it may be gone */
        machine_request(m, MACHINE_REQUEST_HOTPLUG);
}

int machine_device_plug(MachineDevice *d, int slot, char **ret_message) {
        PciDevice *pci = virtio_pci_device(d->virtio);
        int r;

        /* What pmem gives the guest is not its registers only. */
        pci->removable = arch_has_pci_hotplug() && d->definition->type->virtio_id != VIRTIO_ID_PMEM;
        io_users_init(&pci->users, on_idle, d);
        r = pci_bus_add(&d->machine->pci, pci, slot);
        if (r < 0)
                return set_message(ret_message, r, "There is no PCI slot left for device '%s'.", d->definition->name);
        return 0;
}

/* --- bus devices --- */

static void bus_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        MachineDevice *d = userdata;

        (void) bus_client_access(d->bus, vcpu, offset, is_write, data, size);
}

/* As in msix.c: KVM would leave the count of what came before standing, to be seen once more the next time. */
int machine_device_connect_irq(MachineDevice *d, bool connect) {
        uint64_t count;
        bool came;
        int r;

        if (d->irq_connected == connect)
                return 0;
        came = connect && read(d->irq_fd, &count, sizeof(count)) == sizeof(count);
        r = kvm_irqfd(&d->machine->kvm, d->irq_fd, d->irq_gsi, -1, connect);
        if (came)
                (void) eventfd_write(d->irq_fd, 1);
        if (r >= 0)
                d->irq_connected = connect;
        return r;
}

static int serial_index(const DeviceDefinition *definition) {
        const char *port = device_definition_string(definition, "port", "com1");

        return startswith(port, "com") && port[3] >= '1' && port[3] <= '4' && port[4] == 0 ? port[3] - '1' : -EINVAL;
}

static int bus_device_new(MachineDevice *d, char **ret_message) {
        BusSpace space = {};
        bool is_pio;
        int r;

        r = serial_index(d->definition);
        if (r >= 0)
                r = arch_serial_port((unsigned) r, &is_pio, &space.base, &space.length, &d->irq_gsi);
        if (r < 0)
                return set_message(ret_message, r, "This architecture has no port '%s' for device '%s'.",
                        device_definition_string(d->definition, "port", "com1"), d->definition->name);
        space.kind = is_pio ? BUS_SPACE_PIO : BUS_SPACE_MMIO;

        d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (d->irq_fd < 0)
                return -errno;
        r = machine_device_connect_irq(d, !d->machine->interrupts_held);
        if (r >= 0)
                r = bus_client_new(d->machine->definition->vcpus, &space, &d->irq_fd, 1, &d->bus);
        if (r >= 0)
                r = io_space_add(is_pio ? &d->machine->pio : &d->machine->mmio, space.base, space.length, bus_access, d);
        if (r < 0)
                return set_message(ret_message, r, "Cannot make device '%s': %s.", d->definition->name, strerror(-r));
        return 0;
}

static void bus_fail(MachineDevice *d, const char *why) {
        d->bus_source = sd_event_source_disable_unref(d->bus_source);
        bus_client_disconnected(d->bus, 0);
        d->bus_failed = true;
        (void) set_message(&d->bus_error, 0, "%s", why);
        machine_request(d->machine, MACHINE_REQUEST_DEVICES);
}

static int bus_connect(MachineDevice *d);

static int on_bus_retry(sd_event_source *s, uint64_t usec, void *userdata) {
        MachineDevice *d = userdata;

        d->bus_retry = sd_event_source_disable_unref(d->bus_retry);
        (void) bus_connect(d);
        return 0;
}

/* The socket of a unit that is started again comes back soon; that of one that failed does not. */
static bool bus_may_come(const MachineDevice *d, int error) {
        return (error == -ENOENT || error == -ECONNREFUSED || error == -EACCES || error == -EAGAIN) && now_usec() < d->bus_patience_ends_usec;
}

/* The connection ended. Who connects while the helper is away waits in its socket's queue for the successor; but the socket itself may go and come back, where its
 * unit is started again or reached its limit, and a successor may hang up in its turn. So this is tried for as long as vCPUs wait, and not at once. */
static int bus_lost(MachineDevice *d) {
        uint64_t now = now_usec();
        int r;

        bus_client_disconnected(d->bus, d->bus_grace_ends_usec - now);
        r = sd_event_add_time_relative(d->machine->event, &d->bus_retry, CLOCK_MONOTONIC, BUS_RETRY_USEC, 0, on_bus_retry, d);
        if (r < 0)
                bus_fail(d, strerror(-r));
        return r;
}

static int on_bus_event(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        MachineDevice *d = userdata;
        _cleanup_free_ char *message = NULL;
        bool was_served = bus_client_is_served(d->bus); /* also by one that a vCPU has given up since, which hung */
        int r;

        r = bus_client_process(d->bus, &message);
        if (r > 0)
                machine_request(d->machine, MACHINE_REQUEST_DEVICES);
        if (r >= 0)
                return 0;

        d->bus_source = sd_event_source_disable_unref(d->bus_source);
        if (was_served) {
                d->reconnects++;
                d->bus_grace_ends_usec = now_usec() + BUS_SUCCESSOR_TIMEOUT_USEC;
                d->bus_patience_ends_usec = now_usec() + BUS_SOCKET_USEC;
                machine_request(d->machine, MACHINE_REQUEST_DEVICES);
        } else if (now_usec() >= d->bus_grace_ends_usec) {
                /* It never served us: its unit's journal has the reason. A successor that takes long to start, on a host with much to do, has the time that vCPUs have. */
                bus_fail(d, message ?: strerror(-r));
                return 0;
        }
        (void) bus_lost(d);
        return 0;
}

int machine_device_watch_bus(MachineDevice *d) {
        return sd_event_add_io(d->machine->event, &d->bus_source, bus_client_fd(d->bus), EPOLLIN, on_bus_event, d);
}

static int bus_connect(MachineDevice *d) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = bus_client_connect_path(d->bus, d->path);
        if (bus_may_come(d, r))
                return bus_lost(d);
        if (r >= 0)
                r = machine_device_watch_bus(d);
        if (r < 0) {
                (void) set_message(&message, 0, "cannot connect to its socket %s: %s", d->path, strerror(-r));
                bus_fail(d, message ?: strerror(-r));
        }
        return r;
}

/* --- devices that failed --- */

/* Its socket or its helper is there again, which may have been started for it: the session is made anew. What the guest had set up was kept: to it the failure
 * was a pause. */
void machine_device_heal(MachineDevice *d) {
        int r = 0;

        if (!d->failure_reported || d->machine->ended)
                return;
        log_debug("Device '%s' may be there again.", d->definition->name);
        if (d->frontend) {
                r = vhost_frontend_retry(d->frontend);
                d->reconnects_told = n_sessions(d);
        } else {
                d->bus_failed = false;
                d->bus_error = mfree(d->bus_error);
                d->bus_grace_ends_usec = d->bus_patience_ends_usec = now_usec() + BUS_SOCKET_USEC;
                bus_client_disconnected(d->bus, BUS_SOCKET_USEC);
                (void) bus_connect(d);
        }
        if (r < 0)
                (void) log_warning_errno(r, "Cannot connect to device '%s' again: %m", d->definition->name);
        d->failure_reported = false;
        machine_request(d->machine, MACHINE_REQUEST_DEVICES);
}

/* Of an attached device, whose unit is a spare one again, either of its sockets may be the last that comes. */
static bool is_socket_of(const MachineDevice *d, const char *file) {
        const char *name = strrchr(d->path, '/') + 1, *dot = strrchr(name, '.');

        return d->attached ? strncmp(file, name, (size_t) (dot + 1 - name)) == 0 : streq(file, name);
}

/* Something came into the directory of the sockets, or was given its group. */
static int on_socket(sd_event_source *s, const struct inotify_event *event, void *userdata) {
        Machine *m = userdata;

        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = m->devices[i];

                /* Where events were lost it may have been any. */
                if (!(event->mask & IN_Q_OVERFLOW) && (event->len == 0 || !is_socket_of(d, event->name)))
                        continue;
                if (d->attached)
                        hotplug_restore(m->hotplug, d);
                else
                        machine_device_heal(d);
        }
        return 0;
}

/* A unit that reached its start limit took its sockets with it: they come back when somebody starts it. */
void machine_devices_watch_sockets(Machine *m) {
        _cleanup_free_ char *directory = NULL;
        int r;

        if (m->n_devices == 0 && m->definition->hotplug_slots == 0)
                return;
        r = asprintf(&directory, "%s/%s", m->runtime_directory, m->definition->name);
        if (r < 0)
                directory = NULL;
        r = directory ? sd_event_add_inotify(m->event, &m->sockets_source, directory, IN_CREATE | IN_MOVED_TO | IN_ATTRIB | IN_ONLYDIR, on_socket, m) : -ENOMEM;
        if (r < 0)
                (void) log_warning_errno(r, "Cannot watch for sockets of devices; those that fail stay away: %m");
}

/* --- all devices --- */

static DeviceLinkKind link_kind(const MachineDevice *d) {
        if (machine_device_is_balloon(d))
                return DEVICE_LINK_BALLOON;
        /* Only where the guest was told to speak to it. */
        return d->machine->definition->guest_notifies && streq(d->definition->type->name, "vsock") ? DEVICE_LINK_VSOCK : DEVICE_LINK_PLAIN;
}

static int device_make(MachineDevice *d, char **ret_message) {
        const DeviceLinkHandlers handlers = {
                .present = on_link_present, .strange = on_link_strange, .broken = on_link_broken, .balloon = on_link_balloon, .guest = on_link_guest, .userdata = d,
        };
        _cleanup_free_ char *path = machine_device_varlink_path(d);
        bool is_bus = d->definition->type->transport == DEVICE_TRANSPORT_BUS;
        int r;

        d->path = device_path(d, is_bus ? "bus" : "vhost-user");
        if (!d->path || !path)
                return -ENOMEM;
        r = device_link_new(d->machine->event, path, link_kind(d), &handlers, &d->link);
        if (r < 0)
                return r;
        return is_bus ? bus_device_new(d, ret_message) : vhost_device_new(d, ret_message);
}

int machine_device_new(Machine *m, const DeviceDefinition *definition, MachineDefinition *attached, unsigned slot, MachineDevice **ret,
        char **ret_message) {
        _cleanup_(machine_device_unrefp) MachineDevice *d = calloc(1, sizeof(MachineDevice));
        int r;

        if (!d) {
                (void) machine_definition_free(attached);
                return -ENOMEM;
        }
        *d = (MachineDevice) { .n_ref = 1, .machine = m, .definition = definition, .attached = attached, .slot = slot, .irq_fd = -EBADF };
        r = device_make(d, ret_message);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(d);
        return 0;
}

static unsigned free_number(const Machine *m) {
        unsigned number = 0;

        for (size_t i = 0; i < m->n_devices;)
                if (m->devices[i]->number == number) {
                        number++;
                        i = 0;
                } else
                        i++;
        return number;
}

int machine_device_add(MachineDevice *d) {
        Machine *m = d->machine;

        if (m->n_devices >= ELEMENTSOF(m->devices))
                return -ENOSPC;
        d->number = free_number(m);
        m->devices[m->n_devices++] = d;
        return 0;
}

void machine_device_remove(MachineDevice *d) {
        Machine *m = d->machine;
        size_t i = 0;

        while (i < m->n_devices && m->devices[i] != d)
                i++;
        assert(i < m->n_devices);
        memmove(&m->devices[i], &m->devices[i + 1], (m->n_devices - i - 1) * sizeof(MachineDevice *));
        m->n_devices--;
}

int machine_devices_new(Machine *m, char **ret_message) {
        for (size_t i = 0; i < m->definition->n_devices; i++) {
                _cleanup_(machine_device_unrefp) MachineDevice *d = NULL;
                int r;

                r = machine_device_new(m, &m->definition->devices[i], NULL, 0, &d, ret_message);
                if (r >= 0 && d->virtio)
                        r = machine_device_plug(d, -1, ret_message);
                if (r >= 0)
                        r = machine_device_add(d);
                if (r < 0)
                        return r;
                TAKE_PTR(d);
        }
        return 0;
}

int machine_devices_connect(Machine *m) {
        machine_devices_watch_sockets(m);
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = m->devices[i];
                int r = 0;

                if (d->bus) {
                        bus_client_disconnected(d->bus, BUS_SUCCESSOR_TIMEOUT_USEC); /* vCPUs wait for the first connection, too */
                        (void) bus_connect(d);
                } else
                        r = vhost_frontend_start(d->frontend);
                if (r < 0)
                        return r;
        }
        return 0;
}

void machine_device_abort(MachineDevice *d) {
        if (d->frontend)
                vhost_frontend_abort(d->frontend);
        if (d->bus)
                bus_client_disconnected(d->bus, 0);
}

void machine_devices_abort(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                machine_device_abort(m->devices[i]);
}

void machine_device_release(MachineDevice *d) {
        d->bus_source = sd_event_source_disable_unref(d->bus_source);
        d->bus_retry = sd_event_source_disable_unref(d->bus_retry);
        d->bus = bus_client_free(d->bus);
        d->irq_fd = safe_close(d->irq_fd);
        d->virtio = virtio_pci_free(d->virtio);
        d->frontend = vhost_frontend_free(d->frontend);
        if (d->link)
                device_link_end(d->link);
}

MachineDevice *machine_device_ref(MachineDevice *d) {
        d->n_ref++;
        return d;
}

MachineDevice *machine_device_unref(MachineDevice *d) {
        if (!d || --d->n_ref > 0)
                return NULL;
        machine_device_release(d);
        (void) device_link_free(d->link);
        (void) machine_definition_free(d->attached);
        free(d->path);
        free(d->bus_error);
        free(d->last_error);
        return mfree(d);
}

void machine_devices_free(Machine *m) {
        m->sockets_source = sd_event_source_disable_unref(m->sockets_source);
        for (size_t i = 0; i < m->n_devices; i++)
                (void) machine_device_unref(m->devices[i]);
        m->n_devices = 0;
}

void machine_devices_reset(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->virtio)
                        virtio_pci_reset(m->devices[i]->virtio);
                else /* also of one that failed: when it comes back it is to find nothing of the guest before */
                        (void) bus_client_reset(m->devices[i]->bus);
}

void machine_devices_suspend(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->frontend)
                        vhost_frontend_suspend(m->devices[i]->frontend);
}

void machine_devices_resume(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->frontend)
                        vhost_frontend_resume(m->devices[i]->frontend);
}

void machine_devices_release(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->frontend)
                        vhost_frontend_release(m->devices[i]->frontend);
}

bool machine_devices_are_active(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i]->frontend && m->devices[i]->state_told < DEVICE_ACTIVE)
                        return false;
        return true;
}

static void helper_lost(MachineDevice *d, unsigned reconnects) {
        static const char reason[] = "its helper went away";

        d->reconnects_told = reconnects;
        d->helper_pid = 0;
        device_link_end(d->link);
        note_error(d, reason);
        log_id(LOG_WARNING, MESSAGE_DEVICE_LOST, "The helper of device '%s' went away; waiting for its successor.",
                d->definition->name);
        d->state_told = DEVICE_CONNECTING;
        d->lost = true;
        machine_device_tell(d, DEVICE_CHANGE_FAILED, reason);
        if (d->attached)
                hotplug_restore(d->machine->hotplug, d); /* its unit may have been stopped, which is a spare one then */
}

/* Where its socket stays, it is the next helper's connection that tells of it; or that there is one which is to be told what it is. */
static void wait_for_another_helper(MachineDevice *d) {
        if (d->machine->started && (!d->attached || hotplug_can_restore(d->machine->hotplug, d)))
                device_link_begin(d->link, UINT_MAX);
}

/* What a device has set up is kept, for it may come back. One that another vmmd attached cannot: its unit forgot which device it was, and we do not know what it had. */
static void device_failed(MachineDevice *d) {
        _cleanup_free_ char *error = machine_device_error(d);

        d->failure_reported = d->failed = d->lost = true;
        device_link_end(d->link);
        if (d->virtio && d->attached && !hotplug_can_restore(d->machine->hotplug, d))
                virtio_pci_needs_reset(d->virtio);
        wait_for_another_helper(d);
        note_error(d, error ?: "unknown reason");
        machine_device_tell(d, DEVICE_CHANGE_FAILED, d->last_error);
}

/* Takes up what changed in one session, and tells it. */
static void device_update(MachineDevice *d, DeviceState state) {
        unsigned reconnects = n_sessions(d);

        if (reconnects > d->reconnects_told)
                helper_lost(d, reconnects);
        if (state == DEVICE_READY || state == DEVICE_ACTIVE) {
                if (d->frontend)
                        (void) vhost_frontend_attach(d->frontend, d->machine->event);
                device_link_begin(d->link, reconnects);
                if (d->lost) {
                        bool had_failed = d->failed;

                        d->lost = d->failed = false;
                        d->state_told = state;
                        log_id(LOG_INFO, MESSAGE_DEVICE_RESTARTED, "The helper of device '%s' is back.", d->definition->name);
                        machine_device_tell(d, DEVICE_CHANGE_RESTARTED, NULL);
                        if (had_failed)
                                machine_device_healed(d->machine);
                }
        }
        if (state == DEVICE_FAILED && !d->failure_reported) {
                d->state_told = state;
                device_failed(d);
        } else if (state == DEVICE_FAILED)
                wait_for_another_helper(d); /* this process may have taken it over as such */
        if (state != d->state_told) {
                d->state_told = state;
                machine_device_tell(d, DEVICE_CHANGE_STATE, NULL);
        }
}

size_t machine_devices_update(Machine *m, MachineDevice **ret_failed) {
        size_t connecting = 0;

        *ret_failed = NULL;
        for (size_t i = 0; i < m->n_devices && !*ret_failed; i++) {
                MachineDevice *d = m->devices[i];
                DeviceState state = machine_device_state(d);
                bool reported = d->failure_reported;

                if (state == DEVICE_CONNECTING)
                        connecting++;
                device_update(d, state);
                if (d->failure_reported && !reported)
                        *ret_failed = d;
        }
        return connecting;
}

MachineDevice *machine_device_find(Machine *m, const char *name) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (streq(m->devices[i]->definition->name, name))
                        return m->devices[i];
        return NULL;
}

MachineDevice *machine_device_by_index(Machine *m, size_t index) {
        return index < m->n_devices ? m->devices[index] : NULL;
}

const DeviceDefinition *machine_device_definition(const MachineDevice *d) {
        return d->definition;
}

Machine *machine_device_machine(const MachineDevice *d) {
        return d->machine;
}

DeviceState machine_device_state(MachineDevice *d) {
        if (d->bus)
                return d->bus_failed ? DEVICE_FAILED : bus_client_is_connected(d->bus) ? DEVICE_ACTIVE : DEVICE_CONNECTING;
        if (!d->frontend)
                return DEVICE_FAILED; /* it was detached */

        switch (vhost_frontend_state(d->frontend)) {
        case VHOST_FRONTEND_READY:
                return virtio_pci_is_active(d->virtio) ? DEVICE_ACTIVE : DEVICE_READY;
        case VHOST_FRONTEND_FAILED:
                return DEVICE_FAILED;
        default:
                return DEVICE_CONNECTING;
        }
}

DeviceState machine_device_told_state(const MachineDevice *d) {
        return d->state_told;
}

char *machine_device_error(MachineDevice *d) {
        if (d->frontend)
                return vhost_frontend_error(d->frontend);
        return d->bus_error ? strdup(d->bus_error) : NULL;
}

const char *machine_device_last_error(const MachineDevice *d, uint64_t *ret_usec) {
        *ret_usec = d->last_error_usec;
        return d->last_error;
}

pid_t machine_device_pid(const MachineDevice *d) {
        return device_link_pid(d->link);
}

bool machine_device_is_balloon(const MachineDevice *d) {
        return streq(d->definition->type->name, "balloon");
}

json_object *machine_device_balloon(const MachineDevice *d) {
        return device_link_balloon(d->link);
}

void machine_device_set_balloon(MachineDevice *d, json_object *balloon) {
        device_link_set_balloon(d->link, balloon);
}

unsigned machine_device_number(const MachineDevice *d) {
        return d->number;
}

bool machine_device_is_attached(const MachineDevice *d) {
        return d->attached;
}

char *machine_device_pci_address(const MachineDevice *d) {
        char *address;

        if (!d->virtio || asprintf(&address, "0000:00:%02x.0", virtio_pci_device(d->virtio)->slot) < 0)
                return NULL;
        return address;
}

char *machine_device_varlink_path(const MachineDevice *d) {
        return device_path(d, "varlink");
}

char *machine_device_unit(const MachineDevice *d) {
        char slot[SLOT_NAME_MAX];

        return device_unit_name(d->machine->definition->name, unit_part(d, slot), "service");
}

unsigned machine_device_reconnects(MachineDevice *d) {
        return d->reconnects_told + d->resumed;
}
