/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "kvm.h"

struct GsiRoute {
        enum { ROUTE_FREE, ROUTE_RESERVED, ROUTE_IRQCHIP, ROUTE_MSI } kind;
        struct kvm_irq_routing_entry entry;
        struct kvm_irq_routing_entry second; /* x86: a pin of PIC and IOAPIC shares one GSI */
        bool has_second;
};

int kvm_check_extension(const Kvm *kvm, unsigned capability) {
        int r = ioctl(kvm->vm_fd >= 0 ? kvm->vm_fd : kvm->kvm_fd, KVM_CHECK_EXTENSION, (unsigned long) capability);

        return r < 0 ? 0 : r;
}

static int check_required(const Kvm *kvm, char **ret_message) {
        static const struct {
                unsigned capability;
                const char *name;
        } required[] = {
                { KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP" },
                { KVM_CAP_IRQFD, "KVM_CAP_IRQFD" },
                { KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD" },
                { KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING" },
                { KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI" },
                { KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT" },
        };

        for (size_t i = 0; i < ELEMENTSOF(required); i++)
                if (kvm_check_extension(kvm, required[i].capability) <= 0)
                        return set_message(ret_message, -EOPNOTSUPP, "/dev/kvm lacks %s, which vmmd needs.",
                                required[i].name);
        return 0;
}

int kvm_init(Kvm *kvm, char **ret_message) {
        int version, size, r;

        *kvm = (Kvm) { .kvm_fd = -EBADF, .vm_fd = -EBADF };
        (void) pthread_mutex_init(&kvm->routing_lock, NULL);

        kvm->routes = calloc(KVM_GSI_MAX, sizeof(GsiRoute));
        if (!kvm->routes)
                return -ENOMEM;

        kvm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (kvm->kvm_fd < 0) {
                r = -errno;
                return set_message(ret_message, r, "Cannot open /dev/kvm: %s. %s", strerror(-r),
                        r == -ENOENT ? "Is the kvm_intel or kvm_amd module loaded, and virtualization enabled in the firmware?"
                                     : "Is this user in the group kvm?");
        }

        version = ioctl(kvm->kvm_fd, KVM_GET_API_VERSION, 0);
        if (version != KVM_API_VERSION)
                return set_message(ret_message, -EOPNOTSUPP, "/dev/kvm has API version %i, expected %i.", version,
                        KVM_API_VERSION);

        do
                kvm->vm_fd = ioctl(kvm->kvm_fd, KVM_CREATE_VM, 0UL);
        while (kvm->vm_fd < 0 && errno == EINTR);
        if (kvm->vm_fd < 0)
                return set_message(ret_message, -errno, "Cannot create a virtual machine: %s.", strerror(errno));

        r = check_required(kvm, ret_message);
        if (r < 0)
                return r;

        size = ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
        if (size < (int) sizeof(struct kvm_run))
                return set_message(ret_message, -EOPNOTSUPP, "/dev/kvm reports a vCPU area of %i bytes.", size);
        kvm->vcpu_mmap_size = (size_t) size;
        kvm->ioeventfd_any_length = kvm_check_extension(kvm, KVM_CAP_IOEVENTFD_NO_LENGTH) > 0;
        return 0;
}

void kvm_done(Kvm *kvm) {
        kvm->vm_fd = safe_close(kvm->vm_fd);
        kvm->kvm_fd = safe_close(kvm->kvm_fd);
        kvm->routes = mfree(kvm->routes);
}

int kvm_set_memory(Kvm *kvm, uint32_t slot, uint64_t guest_address, uint64_t size, void *host, bool read_only) {
        struct kvm_userspace_memory_region region = {
                .slot = slot,
                .flags = read_only ? KVM_MEM_READONLY : 0,
                .guest_phys_addr = guest_address,
                .memory_size = size,
                .userspace_addr = (uint64_t) (uintptr_t) host,
        };

        return ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

int kvm_ioeventfd(Kvm *kvm, KvmIoSpace space, uint64_t address, int fd, bool attach) {
        struct kvm_ioeventfd event = {
                .addr = address,
                .len = kvm->ioeventfd_any_length ? 0 : 2,
                .fd = fd,
                .flags = (space == KVM_SPACE_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                        (attach ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
        };

        return ioctl(kvm->vm_fd, KVM_IOEVENTFD, &event) < 0 ? -errno : 0;
}

int kvm_irqfd(Kvm *kvm, int fd, unsigned gsi, int resample_fd, bool attach) {
        struct kvm_irqfd irqfd = {
                .fd = (uint32_t) fd,
                .gsi = gsi,
                .flags = attach ? (resample_fd >= 0 ? KVM_IRQFD_FLAG_RESAMPLE : 0) : KVM_IRQFD_FLAG_DEASSIGN,
                .resamplefd = resample_fd >= 0 ? (uint32_t) resample_fd : 0,
        };

        return ioctl(kvm->vm_fd, KVM_IRQFD, &irqfd) < 0 ? -errno : 0;
}

int kvm_irq_line(Kvm *kvm, unsigned gsi, bool level) {
        struct kvm_irq_level line = { .irq = gsi, .level = level };

        return ioctl(kvm->vm_fd, KVM_IRQ_LINE, &line) < 0 ? -errno : 0;
}

void kvm_route_irqchip(Kvm *kvm, unsigned gsi, unsigned chip, unsigned pin) {
        struct kvm_irq_routing_entry entry = {
                .gsi = gsi,
                .type = KVM_IRQ_ROUTING_IRQCHIP,
                .u.irqchip = { .irqchip = chip, .pin = pin },
        };
        GsiRoute *route = &kvm->routes[gsi];

        assert(gsi < KVM_GSI_MAX);
        if (route->kind == ROUTE_IRQCHIP) {
                route->second = entry;
                route->has_second = true;
        } else
                *route = (GsiRoute) { .kind = ROUTE_IRQCHIP, .entry = entry };
}

void kvm_route_set_first_msi(Kvm *kvm, unsigned gsi) {
        kvm->first_msi_gsi = gsi;
}

int kvm_route_msi_alloc(Kvm *kvm) {
        int gsi = -ENOSPC;

        (void) pthread_mutex_lock(&kvm->routing_lock);
        for (unsigned i = kvm->first_msi_gsi; i < KVM_GSI_MAX; i++)
                if (kvm->routes[i].kind == ROUTE_FREE) {
                        kvm->routes[i].kind = ROUTE_RESERVED;
                        gsi = (int) i;
                        break;
                }
        (void) pthread_mutex_unlock(&kvm->routing_lock);
        return gsi;
}

void kvm_route_msi_free(Kvm *kvm, unsigned gsi) {
        (void) pthread_mutex_lock(&kvm->routing_lock);
        kvm->routes[gsi] = (GsiRoute) { .kind = ROUTE_FREE };
        (void) pthread_mutex_unlock(&kvm->routing_lock);
}

static bool is_routed(const GsiRoute *route) {
        return route->kind == ROUTE_IRQCHIP || route->kind == ROUTE_MSI;
}

/* With the lock held. The kernel takes the table as a whole only. */
static int commit(Kvm *kvm) {
        _cleanup_free_ struct kvm_irq_routing *table = NULL;
        size_t n = 0;

        for (unsigned i = 0; i < KVM_GSI_MAX; i++)
                if (is_routed(&kvm->routes[i]))
                        n += kvm->routes[i].has_second ? 2 : 1;
        table = calloc(1, sizeof(*table) + n * sizeof(table->entries[0]));
        if (!table)
                return -ENOMEM;

        n = 0;
        for (unsigned i = 0; i < KVM_GSI_MAX; i++) {
                const GsiRoute *route = &kvm->routes[i];

                if (!is_routed(route))
                        continue;
                table->entries[n++] = route->entry;
                if (route->has_second)
                        table->entries[n++] = route->second;
        }
        table->nr = (uint32_t) n;
        return ioctl(kvm->vm_fd, KVM_SET_GSI_ROUTING, table) < 0 ? -errno : 0;
}

int kvm_route_msi_set(Kvm *kvm, unsigned gsi, bool valid, uint64_t address, uint32_t data, uint32_t device_id) {
        GsiRoute *route = &kvm->routes[gsi], before;
        struct kvm_irq_routing_entry entry;
        int r = 0;

        memset(&entry, 0, sizeof(entry)); /* with its padding, as it is compared below */
        entry.gsi = gsi;
        entry.type = KVM_IRQ_ROUTING_MSI;
        entry.u.msi.address_lo = (uint32_t) address;
        entry.u.msi.address_hi = (uint32_t) (address >> 32);
        entry.u.msi.data = data;
        if (kvm->msi_device_ids) {
                entry.flags = KVM_MSI_VALID_DEVID;
                entry.u.msi.devid = device_id;
        }

        (void) pthread_mutex_lock(&kvm->routing_lock);
        before = *route;
        if (!valid) {
                if (route->kind == ROUTE_MSI) {
                        route->kind = ROUTE_RESERVED;
                        r = commit(kvm);
                }
        /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): made from zeroes; to commit once too often does no harm */
        } else if (route->kind != ROUTE_MSI || memcmp(&route->entry, &entry, sizeof(entry)) != 0) {
                *route = (GsiRoute) { .kind = ROUTE_MSI, .entry = entry };
                r = commit(kvm);
                /* KVM refuses some messages that a guest may write (reserved bits of the address). Kept, such a one would have
                 * every later table refused, of all devices. */
                if (r < 0)
                        *route = before;
        }
        (void) pthread_mutex_unlock(&kvm->routing_lock);
        return r;
}

int kvm_route_commit(Kvm *kvm) {
        int r;

        (void) pthread_mutex_lock(&kvm->routing_lock);
        r = commit(kvm);
        (void) pthread_mutex_unlock(&kvm->routing_lock);
        return r;
}
