/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/pci.h>
#include <poll.h>
#include <sys/eventfd.h>

#include "pci.h"

/* Fds bound to one vector: virtqueues may share one, and the configuration change may use it, too. */
typedef struct Binding {
        unsigned vector;
        int fd;
        bool attached; /* an irqfd exists */
} Binding;

typedef struct Entry {
        uint32_t address_low, address_high, data, control;
} Entry;

struct Msix {
        PciDevice *device;
        pthread_mutex_t lock;
        unsigned capability; /* offset in configuration space */
        unsigned n_vectors;
        Entry entries[MSIX_VECTORS_MAX];
        int gsis[MSIX_VECTORS_MAX]; /* allocated with the first use; -1 until then */
        Binding *bindings;
        size_t n_bindings;
        uint16_t control; /* as last seen */
        bool held;
};

int msix_new(PciDevice *device, unsigned n_vectors, unsigned bar, uint32_t table_offset, uint32_t pba_offset,
        Msix **ret) {
        _cleanup_(msix_freep) Msix *msix = NULL;
        uint8_t body[10];
        int offset;

        if (n_vectors == 0 || n_vectors > MSIX_VECTORS_MAX)
                return -EINVAL;
        msix = calloc(1, sizeof(Msix));
        if (!msix)
                return -ENOMEM;
        msix->device = device;
        msix->n_vectors = n_vectors;
        (void) pthread_mutex_init(&msix->lock, NULL);
        for (unsigned i = 0; i < MSIX_VECTORS_MAX; i++) {
                msix->gsis[i] = -1;
                msix->entries[i].control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
        }

        store_le16(body, (uint16_t) (n_vectors - 1));
        store_le32(body + 2, table_offset | bar);
        store_le32(body + 6, pba_offset | bar);
        offset = pci_device_add_capability(device, PCI_CAP_ID_MSIX, body, sizeof(body));
        if (offset < 0)
                return offset;
        msix->capability = (unsigned) offset;
        store_le16(device->writable + offset + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);

        device->msix = msix;
        *ret = TAKE_PTR(msix);
        return 0;
}

Msix *msix_free(Msix *msix) {
        if (!msix)
                return NULL;
        /* Not left to the descriptors' end: a helper may still hold them. */
        for (size_t i = 0; i < msix->n_bindings; i++)
                if (msix->bindings[i].attached)
                        (void) kvm_irqfd(msix->device->bus->kvm, msix->bindings[i].fd, (unsigned) msix->gsis[msix->bindings[i].vector],
                                -1, false);
        for (unsigned i = 0; i < msix->n_vectors; i++)
                if (msix->gsis[i] >= 0 && msix->device->bus)
                        kvm_route_msi_free(msix->device->bus->kvm, (unsigned) msix->gsis[i]);
        free(msix->bindings);
        (void) pthread_mutex_destroy(&msix->lock);
        return mfree(msix);
}

unsigned msix_n_vectors(const Msix *msix) {
        return msix->n_vectors;
}

static bool is_live(const Msix *msix, unsigned vector) {
        return !msix->held && (msix->control & (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL)) == PCI_MSIX_FLAGS_ENABLE &&
                !(msix->entries[vector].control & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* What came while detached fires now. KVM would raise the interrupt, too, but leave the count standing, which would then show as
 * pending, and fire again, at the next masking: so it is taken out and signalled anew. */
static int attach(Kvm *kvm, int fd, unsigned gsi) {
        uint64_t count;
        bool came = read(fd, &count, sizeof(count)) == sizeof(count);
        int r;

        r = kvm_irqfd(kvm, fd, gsi, -1, true);
        if (came)
                (void) eventfd_write(fd, 1);
        return r;
}

/* Makes KVM's view follow the table: attached exactly while the vector can fire. An eventfd signalled while detached keeps its count
 * and fires on attachment, which is just what a pending bit does on unmasking. */
static void update_vector(Msix *msix, unsigned vector) {
        Kvm *kvm = msix->device->bus->kvm;
        const Entry *e = &msix->entries[vector];
        bool live = is_live(msix, vector);

        if (live && msix->gsis[vector] < 0)
                msix->gsis[vector] = kvm_route_msi_alloc(kvm);
        if (msix->gsis[vector] < 0)
                return;
        if (live)
                (void) kvm_route_msi_set(kvm, (unsigned) msix->gsis[vector], true,
                        (uint64_t) e->address_high << 32 | e->address_low, e->data, PCI_DEVFN(msix->device->slot, 0));
        for (size_t i = 0; i < msix->n_bindings; i++) {
                Binding *b = &msix->bindings[i];

                if (b->vector != vector || b->attached == live)
                        continue;
                if ((live ? attach(kvm, b->fd, (unsigned) msix->gsis[vector]) :
                            kvm_irqfd(kvm, b->fd, (unsigned) msix->gsis[vector], -1, false)) >= 0)
                        b->attached = live;
        }
}

static void update_all(Msix *msix) {
        for (unsigned i = 0; i < msix->n_vectors; i++)
                update_vector(msix, i);
}

void msix_control_written(Msix *msix) {
        uint16_t control = load_le16(msix->device->config + msix->capability + PCI_MSIX_FLAGS);

        (void) pthread_mutex_lock(&msix->lock);
        if (control != msix->control) {
                msix->control = control;
                update_all(msix);
        }
        (void) pthread_mutex_unlock(&msix->lock);
}

void msix_table_access(Msix *msix, uint64_t offset, void *data, unsigned size, bool is_write) {
        uint64_t end = (uint64_t) msix->n_vectors * PCI_MSIX_ENTRY_SIZE;
        uint8_t *table = (uint8_t *) msix->entries;
        unsigned vector = (unsigned) (offset / PCI_MSIX_ENTRY_SIZE);

        /* "Software must use aligned dword or qword accesses" (6.8.2). */
        if ((size != 4 && size != 8) || offset % size != 0 || !range_within(offset, size, end))
                return;

        (void) pthread_mutex_lock(&msix->lock);
        if (is_write) {
                memcpy(table + offset, data, size);
                /* The message itself is taken over when the vector is unmasked; a change while unmasked is taken at once. */
                msix->entries[vector].control &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
                update_vector(msix, vector);
        } else
                memcpy(data, table + offset, size);
        (void) pthread_mutex_unlock(&msix->lock);
}

void msix_pba_access(Msix *msix, uint64_t offset, void *data, unsigned size, bool is_write) {
        uint8_t bits[MSIX_VECTORS_MAX / 8] = {};

        if (is_write || !range_within(offset, size, sizeof(bits)))
                return;
        (void) pthread_mutex_lock(&msix->lock);
        for (size_t i = 0; i < msix->n_bindings; i++) {
                struct pollfd p = { .fd = msix->bindings[i].fd, .events = POLLIN };

                if (!msix->bindings[i].attached && poll(&p, 1, 0) > 0)
                        bits[msix->bindings[i].vector / 8] |= (uint8_t) (1u << (msix->bindings[i].vector % 8));
        }
        (void) pthread_mutex_unlock(&msix->lock);
        memcpy(data, bits + offset, size);
}

int msix_bind(Msix *msix, unsigned vector, int fd) {
        Binding *grown;

        if (vector >= msix->n_vectors)
                return -EINVAL;
        (void) pthread_mutex_lock(&msix->lock);
        grown = realloc(msix->bindings, (msix->n_bindings + 1) * sizeof(Binding));
        if (grown) {
                msix->bindings = grown;
                grown[msix->n_bindings++] = (Binding) { .vector = vector, .fd = fd };
                update_vector(msix, vector);
        }
        (void) pthread_mutex_unlock(&msix->lock);
        return grown ? 0 : -ENOMEM;
}

void msix_unbind(Msix *msix, unsigned vector, int fd) {
        (void) pthread_mutex_lock(&msix->lock);
        for (size_t i = 0; i < msix->n_bindings; i++) {
                Binding *b = &msix->bindings[i];

                if (b->vector != vector || b->fd != fd)
                        continue;
                if (b->attached)
                        (void) kvm_irqfd(msix->device->bus->kvm, fd, (unsigned) msix->gsis[vector], -1, false);
                *b = msix->bindings[--msix->n_bindings];
                break;
        }
        (void) pthread_mutex_unlock(&msix->lock);
}

/* KVM takes an irqfd away only after what it has begun for it. */
void msix_hold(Msix *msix, bool hold) {
        (void) pthread_mutex_lock(&msix->lock);
        if (msix->held != hold) {
                msix->held = hold;
                update_all(msix);
        }
        (void) pthread_mutex_unlock(&msix->lock);
}

void msix_reset(Msix *msix) {
        (void) pthread_mutex_lock(&msix->lock);
        msix->control = 0;
        memset(msix->entries, 0, sizeof(msix->entries));
        for (unsigned i = 0; i < MSIX_VECTORS_MAX; i++)
                msix->entries[i].control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
        update_all(msix);
        (void) pthread_mutex_unlock(&msix->lock);
}

int msix_save(const Msix *msix, unsigned slot, StateWriter *w) {
        state_begin(w, "msix", slot, 1);
        state_put_u32(w, msix->n_vectors);
        state_put_blob(w, msix->entries, msix->n_vectors * sizeof(Entry));
        return state_end(w);
}

int msix_load(Msix *msix, unsigned slot, StateReader *r, char **ret_message) {
        Entry entries[MSIX_VECTORS_MAX];
        uint32_t n;
        int k;

        k = state_enter(r, "msix", slot, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable MSI-X state of PCI slot %u.", slot);
        n = state_get_u32(r);
        if (n != msix->n_vectors)
                return set_message(ret_message, -EBADMSG, "PCI slot %u has %u MSI-X vectors, the state %u.", slot,
                        msix->n_vectors, n);
        state_get_blob(r, entries, n * sizeof(Entry));
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;

        (void) pthread_mutex_lock(&msix->lock);
        for (unsigned i = 0; i < n; i++) {
                msix->entries[i] = entries[i];
                msix->entries[i].control &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
        }
        msix->control = load_le16(msix->device->config + msix->capability + PCI_MSIX_FLAGS);
        update_all(msix);
        (void) pthread_mutex_unlock(&msix->lock);
        return 0;
}
