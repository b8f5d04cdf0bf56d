/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "bus-client.h"
#include "catalog-ids.h"
#include "log.h"
#include "machine-device.h"
#include "unit-name.h"
#include "virtio-pci.h"

/* How long a vCPU waits at a register whose helper is still starting, or starting again. */
#define BUS_GRACE_USEC (120 * USEC_PER_SEC)
/* Between two attempts to connect to the successor. */
#define BUS_RETRY_USEC (100 * USEC_PER_MSEC)

struct MachineDevice {
        Machine *machine;
        const DeviceDefinition *definition;
        char *path; /* of the socket that vmmd connects to */

        /* vhost-user */
        VhostFrontend *frontend;
        VirtioPci *virtio;

        /* bus */
        BusClient *bus;
        int irq_fd;
        sd_event_source *bus_source, *bus_retry;
        uint64_t bus_grace_ends_usec; /* 0 while it was not served yet */
        char *bus_error;
        bool bus_failed;

        bool failure_reported;
        unsigned reconnects_logged, reconnects;
};

static char *device_path(const MachineDevice *d, const char *suffix) {
        char *path;

        if (asprintf(&path, "%s/%s/%s.%s", d->machine->runtime_directory, d->machine->definition->name,
                    d->definition->name, suffix) < 0)
                return NULL;
        return path;
}

/* --- vhost-user devices --- */

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
}

static int vhost_device_new(MachineDevice *d, char **ret_message) {
        const VhostFrontendHandlers handlers = {
                .state_changed = on_state_changed, .config_changed = on_config_changed, .broken = on_broken, .userdata = d,
        };
        const DeviceType *type = d->definition->type;
        int r;

        r = vhost_frontend_new(d->definition->name, d->path, type->virtio_id,
                device_definition_queues(d->definition), &d->machine->memory, &handlers, &d->frontend);
        if (r >= 0)
                r = virtio_pci_new(type->virtio_id, type->pci_class, d->frontend, &d->machine->kvm, &d->virtio);
        if (r < 0)
                return set_message(ret_message, r, "Cannot make device '%s': %s.", d->definition->name, strerror(-r));
        r = pci_bus_add(&d->machine->pci, virtio_pci_device(d->virtio), -1);
        if (r < 0)
                return set_message(ret_message, r, "There is no PCI slot left for device '%s'.", d->definition->name);
        return 0;
}

/* --- bus devices --- */

static void bus_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        MachineDevice *d = userdata;

        (void) bus_client_access(d->bus, vcpu, offset, is_write, data, size);
}

static int serial_index(const DeviceDefinition *definition) {
        const char *port = device_definition_string(definition, "port", "com1");

        return startswith(port, "com") && port[3] >= '1' && port[3] <= '4' && port[4] == 0 ? port[3] - '1' : -EINVAL;
}

static int bus_device_new(MachineDevice *d, char **ret_message) {
        BusSpace space = {};
        unsigned gsi;
        bool is_pio;
        int r;

        r = serial_index(d->definition);
        if (r >= 0)
                r = arch_serial_port((unsigned) r, &is_pio, &space.base, &space.length, &gsi);
        if (r < 0)
                return set_message(ret_message, r, "This architecture has no port '%s' for device '%s'.",
                        device_definition_string(d->definition, "port", "com1"), d->definition->name);
        space.kind = is_pio ? BUS_SPACE_PIO : BUS_SPACE_MMIO;

        d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (d->irq_fd < 0)
                return -errno;
        r = kvm_irqfd(&d->machine->kvm, d->irq_fd, gsi, -1, true);
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

/* The connection ended. Its successor cannot be reached at once: what is connected to the socket while the helper's unit ends is flushed by
 * systemd (FlushPending=). So this is tried for as long as vCPUs wait. */
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
        bool was_connected = bus_client_is_connected(d->bus);
        int r;

        r = bus_client_process(d->bus, &message);
        if (r > 0)
                machine_request(d->machine, MACHINE_REQUEST_DEVICES);
        if (r >= 0)
                return 0;

        d->bus_source = sd_event_source_disable_unref(d->bus_source);
        if (was_connected) {
                d->reconnects++;
                d->bus_grace_ends_usec = now_usec() + BUS_GRACE_USEC;
                machine_request(d->machine, MACHINE_REQUEST_DEVICES);
        } else if (r != -ECONNRESET || now_usec() >= d->bus_grace_ends_usec) {
                /* It never served us: its unit's journal has the reason. */
                bus_fail(d, message ?: strerror(-r));
                return 0;
        }
        (void) bus_lost(d);
        return 0;
}

static int bus_connect(MachineDevice *d) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = bus_client_connect_path(d->bus, d->path);
        if (r >= 0)
                r = sd_event_add_io(d->machine->event, &d->bus_source, bus_client_fd(d->bus), EPOLLIN, on_bus_event, d);
        if (r < 0) {
                (void) set_message(&message, 0, "cannot connect to its socket %s: %s", d->path, strerror(-r));
                bus_fail(d, message ?: strerror(-r));
        }
        return r;
}

/* --- all devices --- */

int machine_devices_new(Machine *m, char **ret_message) {
        m->devices = calloc(MAX(m->definition->n_devices, (size_t) 1), sizeof(MachineDevice));
        if (!m->devices)
                return -ENOMEM;

        for (size_t i = 0; i < m->definition->n_devices; i++) {
                MachineDevice *d = &m->devices[i];
                bool is_bus;
                int r;

                *d = (MachineDevice) { .machine = m, .definition = &m->definition->devices[i], .irq_fd = -EBADF };
                m->n_devices = i + 1;
                is_bus = d->definition->type->transport == DEVICE_TRANSPORT_BUS;
                d->path = device_path(d, is_bus ? "bus" : "vhost-user");
                if (!d->path)
                        return -ENOMEM;
                r = is_bus ? bus_device_new(d, ret_message) : vhost_device_new(d, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

int machine_devices_connect(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = &m->devices[i];
                int r = 0;

                if (d->bus) {
                        bus_client_disconnected(d->bus, BUS_GRACE_USEC); /* vCPUs wait for the first connection, too */
                        (void) bus_connect(d);
                } else
                        r = vhost_frontend_start(d->frontend);
                if (r < 0)
                        return r;
        }
        return 0;
}

void machine_devices_abort(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++) {
                if (m->devices[i].frontend)
                        vhost_frontend_abort(m->devices[i].frontend);
                if (m->devices[i].bus)
                        bus_client_disconnected(m->devices[i].bus, 0);
        }
}

MachineDevice *machine_devices_free(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = &m->devices[i];

                d->bus_source = sd_event_source_disable_unref(d->bus_source);
                d->bus_retry = sd_event_source_disable_unref(d->bus_retry);
                (void) bus_client_free(d->bus);
                d->irq_fd = safe_close(d->irq_fd);
                (void) virtio_pci_free(d->virtio);
                (void) vhost_frontend_free(d->frontend);
                free(d->path);
                free(d->bus_error);
        }
        m->n_devices = 0;
        return mfree(m->devices);
}

void machine_devices_reset(Machine *m) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (m->devices[i].virtio)
                        virtio_pci_reset(m->devices[i].virtio);
                else if (!m->devices[i].bus_failed)
                        (void) bus_client_reset(m->devices[i].bus);
}

int machine_devices_save(Machine *m, StateWriter *w) {
        int r = 0;

        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                if (m->devices[i].virtio) {
                        r = pci_device_save(virtio_pci_device(m->devices[i].virtio), w);
                        if (r >= 0)
                                r = virtio_pci_save(m->devices[i].virtio, w);
                }
        return r;
}

int machine_devices_load(Machine *m, StateReader *reader, char **ret_message) {
        int r = 0;

        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                if (m->devices[i].virtio) {
                        r = pci_device_load(virtio_pci_device(m->devices[i].virtio), reader, ret_message);
                        if (r >= 0)
                                r = virtio_pci_load(m->devices[i].virtio, reader, ret_message);
                }
        return r;
}

size_t machine_devices_update(Machine *m, MachineDevice **ret_failed) {
        size_t connecting = 0;

        *ret_failed = NULL;
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = &m->devices[i];
                DeviceState state = machine_device_state(d);
                unsigned reconnects = machine_device_reconnects(d);

                if (d->frontend && (state == DEVICE_READY || state == DEVICE_ACTIVE))
                        (void) vhost_frontend_attach(d->frontend, m->event);
                if (state == DEVICE_CONNECTING)
                        connecting++;
                if (reconnects > d->reconnects_logged) {
                        d->reconnects_logged = reconnects;
                        log_id(LOG_WARNING, MESSAGE_DEVICE_LOST,
                                "The helper of device '%s' went away; waiting for its successor.", d->definition->name);
                }
                if (state == DEVICE_FAILED && !d->failure_reported && !*ret_failed) {
                        d->failure_reported = true;
                        if (d->virtio)
                                virtio_pci_needs_reset(d->virtio);
                        *ret_failed = d;
                }
        }
        return connecting;
}

MachineDevice *machine_device_find(Machine *m, const char *name) {
        for (size_t i = 0; i < m->n_devices; i++)
                if (streq(m->devices[i].definition->name, name))
                        return &m->devices[i];
        return NULL;
}

MachineDevice *machine_device_by_index(Machine *m, size_t index) {
        return index < m->n_devices ? &m->devices[index] : NULL;
}

const DeviceDefinition *machine_device_definition(const MachineDevice *d) {
        return d->definition;
}

DeviceState machine_device_state(MachineDevice *d) {
        if (d->bus)
                return d->bus_failed ? DEVICE_FAILED : bus_client_is_connected(d->bus) ? DEVICE_ACTIVE : DEVICE_CONNECTING;

        switch (vhost_frontend_state(d->frontend)) {
        case VHOST_FRONTEND_READY:
                return virtio_pci_is_active(d->virtio) ? DEVICE_ACTIVE : DEVICE_READY;
        case VHOST_FRONTEND_FAILED:
                return DEVICE_FAILED;
        default:
                return DEVICE_CONNECTING;
        }
}

char *machine_device_error(MachineDevice *d) {
        if (d->bus)
                return d->bus_error ? strdup(d->bus_error) : NULL;
        return vhost_frontend_error(d->frontend);
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
        return device_unit_name(d->machine->definition->name, d->definition->name, "service");
}

unsigned machine_device_reconnects(MachineDevice *d) {
        return d->frontend ? vhost_frontend_reconnects(d->frontend) : d->reconnects;
}
