/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/pci_regs.h>

#include "pci.h"

/* The host bridge: only there so that bus 0 has one, as guests expect. */
#define HOST_BRIDGE_VENDOR 0x1b36
#define HOST_BRIDGE_DEVICE 0x0008

void pci_device_init(PciDevice *device, const PciIdentity *identity, const PciDeviceOps *ops) {
        uint8_t *c = device->config;

        *device = (PciDevice) { .ops = ops, .capability_end = PCI_STD_HEADER_SIZEOF };
        io_users_init(&device->users, NULL, NULL);
        store_le16(c + PCI_VENDOR_ID, identity->vendor);
        store_le16(c + PCI_DEVICE_ID, identity->device);
        store_le32(c + PCI_CLASS_REVISION, identity->class_code << 8 | identity->revision);
        store_le16(c + PCI_SUBSYSTEM_VENDOR_ID, identity->subsystem_vendor);
        store_le16(c + PCI_SUBSYSTEM_ID, identity->subsystem_device);

        store_le16(device->writable + PCI_COMMAND,
                PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE | PCI_COMMAND_SERR |
                        PCI_COMMAND_PARITY);
        device->writable[PCI_CACHE_LINE_SIZE] = 0xff;
        device->writable[PCI_LATENCY_TIMER] = 0xff;
        device->writable[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_device_set_bar(PciDevice *device, unsigned bar, uint64_t size, IoHandler handler, void *userdata) {
        assert(bar < PCI_BARS && size >= 4096 && (size & (size - 1)) == 0 && size <= UINT32_MAX);
        device->bars[bar] = (PciBar) { .size = size, .handler = handler, .userdata = userdata };
        store_le32(device->writable + PCI_BASE_ADDRESS_0 + (size_t) 4 * bar, (uint32_t) ~(size - 1));
}

int pci_device_add_capability(PciDevice *device, uint8_t id, const void *body, size_t size) {
        unsigned offset = device->capability_end, end = ALIGN_UP(offset + 2 + (unsigned) size, 4u);
        uint8_t *c = device->config;

        if (end > PCI_CONFIG_SIZE)
                return -ENOSPC;

        c[offset] = id;
        c[offset + 1] = 0;
        memcpy(c + offset + 2, body, size);
        if (device->capability_last != 0)
                c[device->capability_last + 1] = (uint8_t) offset;
        else {
                c[PCI_CAPABILITY_LIST] = (uint8_t) offset;
                store_le16(c + PCI_STATUS, load_le16(c + PCI_STATUS) | PCI_STATUS_CAP_LIST);
        }
        device->capability_last = (uint8_t) offset;
        device->capability_end = (uint8_t) MIN(end, 255u);
        return (int) offset;
}

void pci_bus_init(PciBus *bus, Kvm *kvm, IoSpace *mmio, uint64_t window, uint64_t window_size) {
        static const PciIdentity identity = {
                .vendor = HOST_BRIDGE_VENDOR, .device = HOST_BRIDGE_DEVICE, .class_code = 0x060000, /* host bridge */
        };

        *bus = (PciBus) { .kvm = kvm, .mmio = mmio, .window = window, .window_end = window + window_size };
        (void) pthread_mutex_init(&bus->lock, NULL);
        pci_device_init(&bus->host_bridge, &identity, NULL);
        (void) pci_bus_add(bus, &bus->host_bridge, 0);
}

/* The first BAR at hand that was assigned something of [address, address + size), or NULL. */
static const PciBar *find_assigned(const PciBus *bus, const PciDevice *added, uint64_t address, uint64_t size) {
        for (unsigned slot = 0; slot <= PCI_SLOTS; slot++) {
                const PciDevice *device = slot < PCI_SLOTS ? bus->devices[slot] : added;

                for (unsigned i = 0; device && i < PCI_BARS; i++) {
                        const PciBar *bar = &device->bars[i];

                        if (bar->size > 0 && bar->assigned != 0 && bar->assigned < address + size && address < bar->assigned + bar->size)
                                return bar;
                }
        }
        return NULL;
}

/* The lowest place in the window that no other BAR was given. Each step passes one that is there. */
static int assign_bar(const PciBus *bus, const PciDevice *device, PciBar *bar) {
        uint64_t address = ALIGN_UP(bus->window, bar->size);
        const PciBar *other;

        while (range_within(address, bar->size, bus->window_end)) {
                other = find_assigned(bus, device, address, bar->size);
                if (!other) {
                        bar->assigned = address;
                        return 0;
                }
                address = ALIGN_UP(other->assigned + other->size, bar->size);
        }
        return -ENOSPC;
}

static int assign_bars(const PciBus *bus, PciDevice *device) {
        int r = 0;

        for (unsigned i = 0; i < PCI_BARS; i++)
                device->bars[i].assigned = 0;
        for (unsigned i = 0; i < PCI_BARS && r >= 0; i++) {
                if (device->bars[i].size == 0)
                        continue;
                r = assign_bar(bus, device, &device->bars[i]);
                if (r >= 0)
                        store_le32(device->config + PCI_BASE_ADDRESS_0 + (size_t) 4 * i, (uint32_t) device->bars[i].assigned);
        }
        return r;
}

/* With the bus lock held. */
static int bus_add(PciBus *bus, PciDevice *device, int slot) {
        int r;

        if (slot < 0)
                for (slot = 1; slot < PCI_SLOTS && bus->devices[slot]; slot++)
                        ;
        if (slot >= PCI_SLOTS)
                return -ENOSPC;
        if (bus->devices[slot])
                return -EEXIST;

        r = assign_bars(bus, device);
        if (r < 0)
                return r;
        device->bus = bus;
        device->slot = (unsigned) slot;
        bus->devices[slot] = device;
        return slot;
}

int pci_bus_add(PciBus *bus, PciDevice *device, int slot) {
        int r;

        (void) pthread_mutex_lock(&bus->lock);
        r = bus_add(bus, device, slot);
        (void) pthread_mutex_unlock(&bus->lock);
        return r;
}

static void map_bar(PciDevice *device, unsigned index, bool map, uint64_t address) {
        PciBar *bar = &device->bars[index];

        if (bar->mapped && (!map || address != bar->address)) {
                if (device->ops && device->ops->bar_mapped)
                        device->ops->bar_mapped(device, index, bar->address, false);
                (void) io_space_remove(device->bus->mmio, bar->address);
                bar->mapped = false;
        }
        if (map && !bar->mapped) {
                /* Where a guest maps a BAR over something else, the something else wins. */
                if (io_space_add_counted(device->bus->mmio, address, bar->size, bar->handler, bar->userdata, &device->users) < 0)
                        return;
                bar->address = address;
                bar->mapped = true;
                if (device->ops && device->ops->bar_mapped)
                        device->ops->bar_mapped(device, index, address, true);
        }
}

static void update_mappings(PciDevice *device) {
        bool decode = load_le16(device->config + PCI_COMMAND) & PCI_COMMAND_MEMORY;

        for (unsigned i = 0; i < PCI_BARS; i++) {
                uint64_t address = load_le32(device->config + PCI_BASE_ADDRESS_0 + (size_t) 4 * i) & PCI_BASE_ADDRESS_MEM_MASK;

                if (device->bars[i].size > 0)
                        /* All ones in the size bits is a guest sizing the BAR, 0 one that was never set. */
                        map_bar(device, i,
                                decode && address != 0 && (uint32_t) address != (uint32_t) ~(device->bars[i].size - 1),
                                address);
        }
}

/* All devices': where two BARs were set to one place, the second appears when the first has moved away. */
static void update_all_mappings(PciBus *bus) {
        for (unsigned i = 0; i < PCI_SLOTS; i++)
                if (bus->devices[i] && !bus->devices[i]->hidden)
                        update_mappings(bus->devices[i]);
}

static void unmap_bars(PciDevice *device) {
        for (unsigned i = 0; i < PCI_BARS; i++)
                if (device->bars[i].size > 0)
                        map_bar(device, i, false, 0);
}

bool pci_bus_eject(PciBus *bus, unsigned slot) {
        PciDevice *device;
        bool ejected;

        (void) pthread_mutex_lock(&bus->lock);
        device = slot < PCI_SLOTS ? bus->devices[slot] : NULL;
        ejected = device && device->removable;
        if (ejected) {
                unmap_bars(device);
                device->hidden = device->ejected = true;
                update_all_mappings(bus);
        }
        (void) pthread_mutex_unlock(&bus->lock);
        return ejected;
}

void pci_device_hide(PciDevice *device) {
        (void) pthread_mutex_lock(&device->bus->lock);
        device->hidden = true;
        (void) pthread_mutex_unlock(&device->bus->lock);
}

bool pci_device_is_ejected(PciDevice *device) {
        bool ejected;

        (void) pthread_mutex_lock(&device->bus->lock);
        ejected = device->ejected;
        (void) pthread_mutex_unlock(&device->bus->lock);
        return ejected;
}

void pci_bus_remove(PciBus *bus, PciDevice *device) {
        (void) pthread_mutex_lock(&bus->lock);
        unmap_bars(device);
        bus->devices[device->slot] = NULL;
        update_all_mappings(bus);
        (void) pthread_mutex_unlock(&bus->lock);
}

/* --- configuration space --- */

/* With the bus lock held. */
static PciDevice *find_device(const PciBus *bus, unsigned slot) {
        PciDevice *device = slot < PCI_SLOTS ? bus->devices[slot] : NULL;

        return device && !device->hidden ? device : NULL;
}

/* An access that goes on to a BAR, and so may wait for a helper. */
typedef struct Window {
        PciDevice *device; /* NULL where it does not */
        IoHandler handler;
        void *userdata;
        uint64_t offset;
        unsigned length;
} Window;

/* With the bus lock held. */
static Window find_window(PciDevice *device, unsigned offset) {
        Window w = {};
        unsigned bar;

        if (!device || !device->ops || !device->ops->window || !device->ops->window(device, offset, &bar, &w.offset, &w.length))
                return w;
        w.device = device;
        w.handler = device->bars[bar].handler;
        w.userdata = device->bars[bar].userdata;
        io_users_get(&device->users);
        return w;
}

/* With the bus lock held. */
static void config_access(PciBus *bus, unsigned slot, unsigned offset, void *data, unsigned size, bool is_write) {
        PciDevice *device = find_device(bus, slot);
        const uint8_t *from = data;

        if (!device || offset + size > PCI_CONFIG_SIZE) {
                /* Beyond 256 bytes lies the extended space: there, zero is "no extended capability". */
                if (!is_write && device)
                        memset(data, 0, size);
                return;
        }
        if (!is_write) {
                memcpy(data, device->config + offset, size);
                return;
        }

        for (unsigned i = 0; i < size; i++) {
                uint8_t mask = device->writable[offset + i];

                device->config[offset + i] = (device->config[offset + i] & ~mask) | (from[i] & mask);
        }
        if (offset < PCI_BASE_ADDRESS_0 + 4 * PCI_BARS && offset + size > PCI_COMMAND)
                update_all_mappings(bus);
        if (device->msix)
                msix_control_written(device->msix);
}

/* What the window was before the access is what counts: its own bytes are not those that move it. */
static void locked_access(PciBus *bus, unsigned slot, unsigned offset, void *data, unsigned size, bool is_write) {
        uint8_t bytes[4] = {};
        Window w;

        (void) pthread_mutex_lock(&bus->lock);
        w = find_window(find_device(bus, slot), offset);
        if (!w.device || is_write)
                config_access(bus, slot, offset, data, size, is_write);
        if (w.device)
                memcpy(bytes, w.device->config + offset, w.length);
        (void) pthread_mutex_unlock(&bus->lock);
        if (!w.device)
                return;

        w.handler(w.userdata, 0, w.offset, bytes, w.length, is_write);
        io_users_put(&w.device->users);
        if (!is_write)
                memcpy(data, bytes, MIN(size, (unsigned) sizeof(bytes)));
}

void pci_ecam_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        PciBus *bus = userdata;
        unsigned number = (unsigned) (offset >> 20), slot = (offset >> 15) & 31, function = (offset >> 12) & 7;

        if (number != 0 || function != 0 || size > 4)
                return;
        locked_access(bus, slot, offset & 0xfff, data, size, is_write);
}

/* Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): 0xCF8 is an address register of 32 bits, 0xCFC a window on the dword. */
void pci_port_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        PciBus *bus = userdata;
        uint32_t address;

        if (size > 4 || (offset < 4 && offset + size > 4))
                return;
        (void) pthread_mutex_lock(&bus->lock);
        address = bus->config_address;
        /* Other widths at 0xCF8 are not the address register. */
        if (offset == 0 && size == 4 && is_write)
                bus->config_address = load_le32(data) & 0x80fffffc;
        else if (offset == 0 && size == 4)
                store_le32(data, address);
        (void) pthread_mutex_unlock(&bus->lock);

        if (offset >= 4 && address & 0x80000000 && ((address >> 16) & 0xff) == 0 && ((address >> 8) & 7) == 0)
                locked_access(bus, (address >> 11) & 31, (address & 0xfc) + (unsigned) (offset - 4), data, size, is_write);
}

static void device_reset(PciDevice *device) {
        unmap_bars(device);
        for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
                device->config[i] &= (uint8_t) ~device->writable[i];
        for (unsigned i = 0; i < PCI_BARS; i++)
                if (device->bars[i].size > 0)
                        store_le32(device->config + PCI_BASE_ADDRESS_0 + (size_t) 4 * i, (uint32_t) device->bars[i].assigned);
        if (device->msix)
                msix_reset(device->msix);
}

void pci_bus_reset(PciBus *bus) {
        (void) pthread_mutex_lock(&bus->lock);
        bus->config_address = 0;
        for (unsigned i = 0; i < PCI_SLOTS; i++)
                if (bus->devices[i])
                        device_reset(bus->devices[i]);
        (void) pthread_mutex_unlock(&bus->lock);
}

int pci_bus_save(PciBus *bus, StateWriter *w) {
        int r;

        state_begin(w, "pci-bus", 0, 1);
        state_put_u32(w, bus->config_address);
        r = state_end(w);
        return r < 0 ? r : pci_device_save(&bus->host_bridge, w);
}

int pci_bus_load(PciBus *bus, StateReader *r, char **ret_message) {
        uint32_t address;
        int k;

        k = state_enter(r, "pci-bus", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the PCI bus.");
        address = state_get_u32(r);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        bus->config_address = address & 0x80fffffc;
        return pci_device_load(&bus->host_bridge, r, ret_message);
}

int pci_device_save(const PciDevice *device, StateWriter *w) {
        int r;

        state_begin(w, "pci-device", device->slot, 1);
        state_put_blob(w, device->config, sizeof(device->config));
        r = state_end(w);
        if (r < 0 || !device->msix)
                return r;
        return msix_save(device->msix, device->slot, w);
}

int pci_device_load(PciDevice *device, StateReader *r, char **ret_message) {
        uint8_t config[PCI_CONFIG_SIZE];
        int k;

        k = state_enter(r, "pci-device", device->slot, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the PCI device in slot %u.", device->slot);
        state_get_blob(r, config, sizeof(config));
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;

        for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
                if ((config[i] ^ device->config[i]) & ~device->writable[i])
                        return set_message(ret_message, -EBADMSG,
                                "The state of PCI slot %u is of another device: byte %#x is %#x, expected %#x.",
                                device->slot, i, config[i], device->config[i]);
        memcpy(device->config, config, sizeof(config));
        update_mappings(device);
        return device->msix ? msix_load(device->msix, device->slot, r, ret_message) : 0;
}
