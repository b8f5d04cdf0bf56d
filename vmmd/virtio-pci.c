/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "virtio-pci.h"

/* BAR 0. Each part begins on a page of its own, so that it could be mapped by itself. */
#define BAR_INDEX 0
#define COMMON_OFFSET 0x0000
#define ISR_OFFSET 0x1000
#define DEVICE_OFFSET 0x2000
#define NOTIFY_OFFSET 0x3000
#define MSIX_TABLE_OFFSET 0x4000
#define MSIX_PBA_OFFSET 0x5000
#define BAR_SIZE 0x8000
#define PART_SIZE 0x1000

#define NOTIFY_MULTIPLIER 4

#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_DEVICE_BASE 0x1040 /* 4.1.2.1 */

#define QUEUE_SIZE_MAX 256
#define ISR_CONFIG 2

#define STATUS_NEEDS_RESET VIRTIO_CONFIG_S_NEEDS_RESET

/* struct virtio_pci_cfg_cap gives a window on the BAR through configuration space (4.1.4.9). */
#define PCI_CFG_DATA_OFFSET 16

struct VirtioPci {
        PciDevice pci;
        Kvm *kvm;
        VhostFrontend *frontend;
        Msix *msix;
        unsigned pci_cfg_capability;
        void (*changed)(void *userdata);
        void *changed_userdata;

        pthread_mutex_t lock; /* the registers */
        uint32_t device_feature_select, driver_feature_select;
        uint64_t driver_features;
        uint16_t queue_select;
        uint8_t generation_base; /* what the configuration's generation adds to */
        uint16_t queue_vector[VHOST_FRONTEND_QUEUES_MAX];
        /* The event loop's thread sees these, too, which must not wait for the lock: its holder may wait for the helper. */
        _Atomic uint8_t status;
        _Atomic uint8_t isr;
        uint16_t config_vector; /* read atomically */
        int config_fd; /* eventfd behind the configuration vector */
        uint64_t notify_base; /* where the ioeventfds are; 0 where nowhere */
};

/* --- interrupts --- */

/* A vector that cannot be had reads back as NO_VECTOR (4.1.5.1.2.2). */
static void set_vector(VirtioPci *v, uint16_t *slot, uint16_t vector, int fd) {
        uint16_t now = VIRTIO_MSI_NO_VECTOR;

        if (*slot != VIRTIO_MSI_NO_VECTOR)
                msix_unbind(v->msix, *slot, fd);
        if (vector != VIRTIO_MSI_NO_VECTOR && msix_bind(v->msix, vector, fd) >= 0)
                now = vector;
        __atomic_store_n(slot, now, __ATOMIC_RELEASE);
}

static void signal_config_change(VirtioPci *v) {
        v->isr |= ISR_CONFIG;
        if (__atomic_load_n(&v->config_vector, __ATOMIC_ACQUIRE) != VIRTIO_MSI_NO_VECTOR)
                (void) eventfd_write(v->config_fd, 1);
}

void virtio_pci_config_changed(VirtioPci *v) {
        if (v->status & VIRTIO_CONFIG_S_DRIVER_OK)
                signal_config_change(v);
}

void virtio_pci_needs_reset(VirtioPci *v) {
        uint8_t status = v->status;

        /* Not where the driver has reset the device meanwhile. */
        do
                if (!(status & VIRTIO_CONFIG_S_DRIVER_OK))
                        return;
        while (!atomic_compare_exchange_weak(&v->status, &status, status | STATUS_NEEDS_RESET));
        signal_config_change(v);
}

static void tell_changed(VirtioPci *v) {
        if (v->changed)
                v->changed(v->changed_userdata);
}

bool virtio_pci_is_active(VirtioPci *v) {
        return v->status & VIRTIO_CONFIG_S_DRIVER_OK;
}

/* --- status --- */

/* With the lock held. */
static void reset_registers(VirtioPci *v) {
        uint64_t count;

        vhost_frontend_deactivate(v->frontend);
        for (unsigned i = 0; i < vhost_frontend_n_queues(v->frontend); i++) {
                VhostQueue *q = vhost_frontend_queue(v->frontend, i);

                set_vector(v, &v->queue_vector[i], VIRTIO_MSI_NO_VECTOR, q->call_fd);
                q->enabled = false;
                q->size = QUEUE_SIZE_MAX;
                q->descriptors = q->driver = q->device = 0;
        }
        set_vector(v, &v->config_vector, VIRTIO_MSI_NO_VECTOR, v->config_fd);
        v->device_feature_select = v->driver_feature_select = 0;
        v->driver_features = 0;
        v->queue_select = 0;
        v->isr = 0;
        (void) !read(v->config_fd, &count, sizeof(count));
        if (atomic_exchange(&v->status, 0) & VIRTIO_CONFIG_S_DRIVER_OK)
                tell_changed(v);
}

void virtio_pci_reset(VirtioPci *v) {
        (void) pthread_mutex_lock(&v->lock);
        reset_registers(v);
        (void) pthread_mutex_unlock(&v->lock);
}

static void write_status(VirtioPci *v, uint8_t status) {
        /* "The driver MUST NOT clear a device status bit" (2.1.1) but by a reset: what is under way is not taken back. */
        uint8_t added = status & (uint8_t) ~v->status & (uint8_t) ~STATUS_NEEDS_RESET;

        if (status == 0) {
                reset_registers(v);
                return;
        }
        /* FEATURES_OK stays clear where the driver accepted what was not offered, or not VERSION_1 (2.2.2, 3.1.1). */
        if (added & VIRTIO_CONFIG_S_FEATURES_OK &&
                (v->driver_features & ~vhost_frontend_features(v->frontend) ||
                        !(v->driver_features & (UINT64_C(1) << VIRTIO_F_VERSION_1))))
                added &= (uint8_t) ~VIRTIO_CONFIG_S_FEATURES_OK;
        v->status |= added;

        if (added & VIRTIO_CONFIG_S_DRIVER_OK) {
                if (!(v->status & VIRTIO_CONFIG_S_FEATURES_OK) ||
                        vhost_frontend_activate(v->frontend, v->driver_features) < 0) {
                        v->status |= STATUS_NEEDS_RESET;
                        signal_config_change(v);
                }
                tell_changed(v);
        }
}

/* --- common configuration (4.1.4.3) --- */

static uint32_t read_common(VirtioPci *v, unsigned offset) {
        VhostQueue *q = vhost_frontend_queue(v->frontend, v->queue_select);
        uint64_t features;

        switch (offset) {
        case VIRTIO_PCI_COMMON_DFSELECT:
                return v->device_feature_select;
        case VIRTIO_PCI_COMMON_DF:
                features = vhost_frontend_features(v->frontend);
                return v->device_feature_select < 2 ? (uint32_t) (features >> (32 * v->device_feature_select)) : 0;
        case VIRTIO_PCI_COMMON_GFSELECT:
                return v->driver_feature_select;
        case VIRTIO_PCI_COMMON_GF:
                return v->driver_feature_select < 2 ? (uint32_t) (v->driver_features >> (32 * v->driver_feature_select)) : 0;
        case VIRTIO_PCI_COMMON_MSIX:
                return v->config_vector;
        case VIRTIO_PCI_COMMON_NUMQ:
                return vhost_frontend_n_queues(v->frontend);
        case VIRTIO_PCI_COMMON_STATUS:
                return v->status;
        case VIRTIO_PCI_COMMON_CFGGENERATION:
                return (uint8_t) (v->generation_base + vhost_frontend_config_generation(v->frontend));
        case VIRTIO_PCI_COMMON_Q_SELECT:
                return v->queue_select;
        }
        if (!q)
                return 0; /* queue_size 0: "the queue is unavailable" */
        switch (offset) {
        case VIRTIO_PCI_COMMON_Q_SIZE:
                return q->size;
        case VIRTIO_PCI_COMMON_Q_MSIX:
                return v->queue_vector[v->queue_select];
        case VIRTIO_PCI_COMMON_Q_ENABLE:
                return q->enabled;
        case VIRTIO_PCI_COMMON_Q_NOFF:
                return v->queue_select;
        case VIRTIO_PCI_COMMON_Q_DESCLO:
                return (uint32_t) q->descriptors;
        case VIRTIO_PCI_COMMON_Q_DESCHI:
                return (uint32_t) (q->descriptors >> 32);
        case VIRTIO_PCI_COMMON_Q_AVAILLO:
                return (uint32_t) q->driver;
        case VIRTIO_PCI_COMMON_Q_AVAILHI:
                return (uint32_t) (q->driver >> 32);
        case VIRTIO_PCI_COMMON_Q_USEDLO:
                return (uint32_t) q->device;
        case VIRTIO_PCI_COMMON_Q_USEDHI:
                return (uint32_t) (q->device >> 32);
        default:
                return 0;
        }
}

static void set_half(uint64_t *field, unsigned half, uint32_t value) {
        *field = half == 0 ? (*field & ~UINT64_C(0xffffffff)) | value : (*field & UINT64_C(0xffffffff)) | (uint64_t) value << 32;
}

/* Of a split ring: a power of two (2.7). */
static bool is_queue_size(uint32_t value) {
        return value > 0 && value <= QUEUE_SIZE_MAX && (value & (value - 1)) == 0;
}

static void write_queue(VirtioPci *v, unsigned offset, uint32_t value) {
        VhostQueue *q = vhost_frontend_queue(v->frontend, v->queue_select);

        if (!q)
                return;
        if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
                set_vector(v, &v->queue_vector[v->queue_select], (uint16_t) value, q->call_fd);
                return;
        }
        /* A queue in use does not change under the helper, and none joins those it was given. */
        if (q->enabled || v->status & VIRTIO_CONFIG_S_DRIVER_OK)
                return;
        switch (offset) {
        case VIRTIO_PCI_COMMON_Q_SIZE:
                if (is_queue_size(value))
                        q->size = (uint16_t) value;
                break;
        case VIRTIO_PCI_COMMON_Q_ENABLE:
                q->enabled = value == 1;
                break;
        case VIRTIO_PCI_COMMON_Q_DESCLO:
        case VIRTIO_PCI_COMMON_Q_DESCHI:
                set_half(&q->descriptors, offset == VIRTIO_PCI_COMMON_Q_DESCHI, value);
                break;
        case VIRTIO_PCI_COMMON_Q_AVAILLO:
        case VIRTIO_PCI_COMMON_Q_AVAILHI:
                set_half(&q->driver, offset == VIRTIO_PCI_COMMON_Q_AVAILHI, value);
                break;
        case VIRTIO_PCI_COMMON_Q_USEDLO:
        case VIRTIO_PCI_COMMON_Q_USEDHI:
                set_half(&q->device, offset == VIRTIO_PCI_COMMON_Q_USEDHI, value);
                break;
        }
}

static void write_common(VirtioPci *v, unsigned offset, uint32_t value) {
        switch (offset) {
        case VIRTIO_PCI_COMMON_DFSELECT:
                v->device_feature_select = value;
                break;
        case VIRTIO_PCI_COMMON_GFSELECT:
                v->driver_feature_select = value;
                break;
        case VIRTIO_PCI_COMMON_GF:
                /* Not after FEATURES_OK (3.1.1, step 5). */
                if (v->driver_feature_select < 2 && !(v->status & VIRTIO_CONFIG_S_FEATURES_OK))
                        set_half(&v->driver_features, v->driver_feature_select, value);
                break;
        case VIRTIO_PCI_COMMON_MSIX:
                set_vector(v, &v->config_vector, (uint16_t) value, v->config_fd);
                break;
        case VIRTIO_PCI_COMMON_STATUS:
                write_status(v, (uint8_t) value);
                break;
        case VIRTIO_PCI_COMMON_Q_SELECT:
                v->queue_select = (uint16_t) value;
                break;
        default:
                write_queue(v, offset, value);
        }
}

/* Width of the register at `offset`, 0 where none begins there. */
static unsigned common_width(unsigned offset) {
        switch (offset) {
        case VIRTIO_PCI_COMMON_STATUS:
        case VIRTIO_PCI_COMMON_CFGGENERATION:
                return 1;
        case VIRTIO_PCI_COMMON_MSIX:
        case VIRTIO_PCI_COMMON_NUMQ:
        case VIRTIO_PCI_COMMON_Q_SELECT:
        case VIRTIO_PCI_COMMON_Q_SIZE:
        case VIRTIO_PCI_COMMON_Q_MSIX:
        case VIRTIO_PCI_COMMON_Q_ENABLE:
        case VIRTIO_PCI_COMMON_Q_NOFF:
                return 2;
        default:
                return offset % 4 == 0 && offset <= VIRTIO_PCI_COMMON_Q_USEDHI ? 4 : 0;
        }
}

static void common_access(VirtioPci *v, unsigned offset, void *data, unsigned size, bool is_write) {
        uint32_t value = 0;

        /* "the driver MUST use the width of the field"; 64-bit fields as two of 32 bits (4.1.3.1) */
        if (size > 4 || common_width(offset) != size) {
                if (!is_write)
                        memset(data, 0, size);
                return;
        }
        if (is_write) {
                memcpy(&value, data, size);
                write_common(v, offset, value);
        } else {
                value = read_common(v, offset);
                memcpy(data, &value, size);
        }
}

/* --- the BAR --- */

static void device_config_access(VirtioPci *v, unsigned offset, void *data, unsigned size, bool is_write) {
        if (is_write)
                (void) vhost_frontend_config_write(v->frontend, offset, data, size);
        else
                vhost_frontend_config_read(v->frontend, offset, data, size);
}

static void isr_access(VirtioPci *v, unsigned offset, void *data, unsigned size, bool is_write) {
        if (is_write || offset != 0)
                return;
        memset(data, 0, size);
        *(uint8_t *) data = atomic_exchange(&v->isr, 0); /* reading acknowledges (4.1.4.5) */
}

/* Only where KVM has no ioeventfd for the access: a width it does not match. */
static void notify_access(VirtioPci *v, unsigned offset, bool is_write) {
        VhostQueue *q = vhost_frontend_queue(v->frontend, offset / NOTIFY_MULTIPLIER);

        if (is_write && q && q->enabled)
                (void) eventfd_write(q->kick_fd, 1);
}

static void bar_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        VirtioPci *v = userdata;
        unsigned part = (unsigned) (offset / PART_SIZE * PART_SIZE), within = (unsigned) (offset % PART_SIZE);

        if (within + size > PART_SIZE)
                return;
        switch (part) {
        case MSIX_TABLE_OFFSET:
                msix_table_access(v->msix, within, data, size, is_write);
                return;
        case MSIX_PBA_OFFSET:
                msix_pba_access(v->msix, within, data, size, is_write);
                return;
        case NOTIFY_OFFSET:
                notify_access(v, within, is_write);
                return;
        }

        /* The registers beyond the transport's own are the helper's: it may still be starting. Without the lock, so that a helper that
         * never comes does not hold up who only wants to tell the guest something. */
        (void) vhost_frontend_wait(v->frontend);
        (void) pthread_mutex_lock(&v->lock);
        if (part == COMMON_OFFSET)
                common_access(v, within, data, size, is_write);
        else if (part == ISR_OFFSET)
                isr_access(v, within, data, size, is_write);
        else if (part == DEVICE_OFFSET)
                device_config_access(v, within, data, size, is_write);
        (void) pthread_mutex_unlock(&v->lock);
}

static void bar_mapped(PciDevice *device, unsigned bar, uint64_t address, bool mapped) {
        VirtioPci *v = (VirtioPci *) device;

        for (unsigned i = 0; i < vhost_frontend_n_queues(v->frontend); i++)
                (void) kvm_ioeventfd(v->kvm, KVM_SPACE_MMIO, address + NOTIFY_OFFSET + (uint64_t) i * NOTIFY_MULTIPLIER,
                        vhost_frontend_queue(v->frontend, i)->kick_fd, mapped);
        v->notify_base = mapped ? address + NOTIFY_OFFSET : 0;
}

/* --- the window through configuration space (4.1.4.9) --- */

static bool pci_cfg_window(PciDevice *device, unsigned offset, unsigned *ret_bar, uint64_t *ret_offset, unsigned *ret_length) {
        const VirtioPci *v = (const VirtioPci *) device;
        const uint8_t *cap = v->pci.config + v->pci_cfg_capability;
        uint32_t at = load_le32(cap + offsetof(struct virtio_pci_cap, offset));
        uint32_t length = load_le32(cap + offsetof(struct virtio_pci_cap, length));

        if (offset != v->pci_cfg_capability + PCI_CFG_DATA_OFFSET ||
                cap[offsetof(struct virtio_pci_cap, bar)] != BAR_INDEX ||
                (length != 1 && length != 2 && length != 4) || at % length != 0 || !range_within(at, length, BAR_SIZE))
                return false;
        *ret_bar = BAR_INDEX;
        *ret_offset = at;
        *ret_length = length;
        return true;
}

/* --- making and freeing --- */

static int add_capability(VirtioPci *v, uint8_t type, uint32_t offset, uint32_t length, size_t extra, uint32_t extra_value) {
        uint8_t body[sizeof(struct virtio_pci_cap) - 2 + sizeof(uint32_t)] = {};

        body[0] = (uint8_t) (sizeof(struct virtio_pci_cap) + extra);
        body[1] = type;
        body[2] = BAR_INDEX;
        store_le32(body + offsetof(struct virtio_pci_cap, offset) - 2, offset);
        store_le32(body + offsetof(struct virtio_pci_cap, length) - 2, length);
        store_le32(body + sizeof(struct virtio_pci_cap) - 2, extra_value);
        return pci_device_add_capability(&v->pci, PCI_CAP_ID_VNDR, body, sizeof(struct virtio_pci_cap) - 2 + extra);
}

static int add_capabilities(VirtioPci *v, unsigned n_queues) {
        int r;

        r = msix_new(&v->pci, MIN(n_queues + 1, (unsigned) MSIX_VECTORS_MAX), BAR_INDEX, MSIX_TABLE_OFFSET, MSIX_PBA_OFFSET,
                &v->msix);
        if (r < 0)
                return r;
        r = add_capability(v, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, sizeof(struct virtio_pci_common_cfg), 0, 0);
        if (r >= 0)
                r = add_capability(v, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 1, 0, 0);
        if (r >= 0)
                r = add_capability(v, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFFSET, PART_SIZE, 0, 0);
        if (r >= 0)
                r = add_capability(v, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, PART_SIZE, sizeof(uint32_t),
                        NOTIFY_MULTIPLIER);
        if (r >= 0)
                r = add_capability(v, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, sizeof(uint32_t), 0);
        if (r < 0)
                return r;
        v->pci_cfg_capability = (unsigned) r;
        v->pci.writable[r + offsetof(struct virtio_pci_cap, bar)] = 0xff;
        memset(v->pci.writable + r + offsetof(struct virtio_pci_cap, offset), 0xff, 8 + sizeof(uint32_t));
        return 0;
}

int virtio_pci_new(uint16_t virtio_id, uint32_t class_code, VhostFrontend *frontend, Kvm *kvm, VirtioPci **ret) {
        static const PciDeviceOps ops = {
                .bar_mapped = bar_mapped, .window = pci_cfg_window,
        };
        PciIdentity identity = {
                .vendor = VIRTIO_VENDOR,
                .device = (uint16_t) (VIRTIO_DEVICE_BASE + virtio_id),
                .subsystem_vendor = VIRTIO_VENDOR,
                .subsystem_device = 0x1100, /* at least 0x40, so that nobody takes it for a transitional device (4.1.2.1) */
                .revision = 1,
                .class_code = class_code,
        };
        _cleanup_(virtio_pci_freep) VirtioPci *v = NULL;
        int r;

        v = calloc(1, sizeof(VirtioPci));
        if (!v)
                return -ENOMEM;
        (void) pthread_mutex_init(&v->lock, NULL);
        v->config_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (v->config_fd < 0)
                return -errno;
        v->kvm = kvm;
        v->frontend = frontend;
        v->config_vector = VIRTIO_MSI_NO_VECTOR;
        for (unsigned i = 0; i < ELEMENTSOF(v->queue_vector); i++)
                v->queue_vector[i] = VIRTIO_MSI_NO_VECTOR;
        for (unsigned i = 0; i < vhost_frontend_n_queues(frontend); i++)
                vhost_frontend_queue(frontend, i)->size = QUEUE_SIZE_MAX;

        pci_device_init(&v->pci, &identity, &ops);
        pci_device_set_bar(&v->pci, BAR_INDEX, BAR_SIZE, bar_access, v);
        r = add_capabilities(v, vhost_frontend_n_queues(frontend));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(v);
        return 0;
}

VirtioPci *virtio_pci_free(VirtioPci *v) {
        if (!v)
                return NULL;
        (void) msix_free(v->msix);
        v->config_fd = safe_close(v->config_fd);
        (void) pthread_mutex_destroy(&v->lock);
        return mfree(v);
}

PciDevice *virtio_pci_device(VirtioPci *v) {
        return &v->pci;
}

void virtio_pci_watch(VirtioPci *v, void (*changed)(void *userdata), void *userdata) {
        v->changed = changed;
        v->changed_userdata = userdata;
}

/* --- state --- */

void virtio_pci_hold_interrupts(VirtioPci *v, bool hold) {
        msix_hold(v->msix, hold);
}

void virtio_pci_hand_over(VirtioPci *v, Handover *h) {
        state_begin(h->writer, "virtio-pci-fds", v->pci.slot, 1);
        handover_put_fd(h, v->config_fd);
        (void) state_end(h->writer);
}

int virtio_pci_take_over(VirtioPci *v, Handover *h) {
        int fd, r;

        r = state_enter(h->reader, "virtio-pci-fds", v->pci.slot, 1);
        if (r < 0)
                return r;
        fd = handover_get_fd(h);
        r = state_leave(h->reader, NULL);
        if (r >= 0)
                r = handover_end(h);
        if (r < 0 || fd < 0) {
                (void) safe_close(fd);
                return MIN(r, -EBADMSG);
        }
        (void) safe_close(v->config_fd);
        v->config_fd = fd;
        return 0;
}

int virtio_pci_save(VirtioPci *v, StateWriter *w) {
        int r;

        (void) pthread_mutex_lock(&v->lock);
        state_begin(w, "virtio-pci", v->pci.slot, 1);
        state_put_u32(w, v->device_feature_select);
        state_put_u32(w, v->driver_feature_select);
        state_put_u64(w, v->driver_features);
        state_put_u8(w, v->status);
        state_put_u8(w, v->isr);
        state_put_u8(w, (uint8_t) (v->generation_base + vhost_frontend_config_generation(v->frontend)));
        state_put_u16(w, v->queue_select);
        state_put_u16(w, v->config_vector);
        state_put_u32(w, vhost_frontend_n_queues(v->frontend));
        for (unsigned i = 0; i < vhost_frontend_n_queues(v->frontend); i++) {
                const VhostQueue *q = vhost_frontend_queue(v->frontend, i);

                state_put_u8(w, q->enabled);
                state_put_u16(w, q->size);
                state_put_u64(w, q->descriptors);
                state_put_u64(w, q->driver);
                state_put_u64(w, q->device);
                state_put_u16(w, v->queue_vector[i]);
        }
        r = state_end(w);
        (void) pthread_mutex_unlock(&v->lock);
        return r;
}

typedef struct SavedQueue {
        VhostQueue queue; /* without the eventfds */
        uint16_t vector;
} SavedQueue;

static int read_queues(VirtioPci *v, StateReader *r, SavedQueue *queues, unsigned n, char **ret_message) {
        for (unsigned i = 0; i < n; i++) {
                VhostQueue *q = &queues[i].queue;

                q->enabled = state_get_u8(r);
                q->size = state_get_u16(r);
                q->descriptors = state_get_u64(r);
                q->driver = state_get_u64(r);
                q->device = state_get_u64(r);
                queues[i].vector = state_get_u16(r);
                if (!is_queue_size(q->size))
                        return set_message(ret_message, -EBADMSG, "The state of PCI slot %u has a queue of size %u.",
                                v->pci.slot, q->size);
        }
        return state_leave(r, ret_message);
}

static int load_registers(VirtioPci *v, StateReader *r, char **ret_message) {
        unsigned n_queues = vhost_frontend_n_queues(v->frontend);
        SavedQueue queues[VHOST_FRONTEND_QUEUES_MAX] = {};
        uint32_t device_feature_select = state_get_u32(r), driver_feature_select = state_get_u32(r);
        uint64_t driver_features = state_get_u64(r);
        uint8_t status = state_get_u8(r), isr = state_get_u8(r), generation = state_get_u8(r);
        uint16_t queue_select = state_get_u16(r), config_vector = state_get_u16(r);
        uint32_t n = state_get_u32(r);
        int k;

        if (n != n_queues)
                return set_message(ret_message, -EBADMSG, "The device in slot %u has %u queues, the state %u.", v->pci.slot,
                        n_queues, n);
        k = read_queues(v, r, queues, n, ret_message);
        if (k < 0)
                return k;

        v->device_feature_select = device_feature_select;
        v->driver_feature_select = driver_feature_select;
        v->driver_features = driver_features;
        v->status = status;
        v->isr = isr;
        v->generation_base = (uint8_t) (generation - vhost_frontend_config_generation(v->frontend));
        v->queue_select = queue_select;
        set_vector(v, &v->config_vector, config_vector, v->config_fd);
        for (unsigned i = 0; i < n; i++) {
                VhostQueue *q = vhost_frontend_queue(v->frontend, i);

                q->enabled = queues[i].queue.enabled;
                q->size = queues[i].queue.size;
                q->descriptors = queues[i].queue.descriptors;
                q->driver = queues[i].queue.driver;
                q->device = queues[i].queue.device;
                set_vector(v, &v->queue_vector[i], queues[i].vector, q->call_fd);
        }
        return 0;
}

int virtio_pci_load(VirtioPci *v, StateReader *r, char **ret_message) {
        int k;

        k = state_enter(r, "virtio-pci", v->pci.slot, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable virtio state of PCI slot %u.", v->pci.slot);
        (void) pthread_mutex_lock(&v->lock);
        k = load_registers(v, r, ret_message);
        (void) pthread_mutex_unlock(&v->lock);
        return k;
}
