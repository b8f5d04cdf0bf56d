/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "pmem.h"

#define PLACE_ALIGNMENT GIB(1)
/* Below it is what is neither RAM nor free. */
#define PLACE_MIN GIB(4)
/* Linux takes memory in such pieces ("subsections"). */
#define SIZE_ALIGNMENT MIB(2)
#define LOCK_WAIT_USEC (3 * USEC_PER_SEC)
#define LOCK_LOOK_USEC (10 * USEC_PER_MSEC)

typedef struct PmemRegion {
        const DeviceDefinition *device;
        uint64_t address, size;
        int fd;        /* holds the lock */
        void *mapping; /* of one that is only read; the others are in device_memory */
} PmemRegion;

struct Pmem {
        PmemRegion regions[MACHINE_PMEM_MAX];
        size_t n_regions;
        GuestMemory device_memory;
};

static const char pmem_type[] = "pmem";

int pmem_place(uint64_t end, uint64_t size, uint64_t limit, uint64_t *ret) {
        uint64_t address;

        if (end > UINT64_MAX - PLACE_ALIGNMENT)
                return -ERANGE;
        address = MAX(ALIGN_UP(end, PLACE_ALIGNMENT), PLACE_MIN);
        if (address > limit || size > limit - address)
                return -ERANGE;
        *ret = address;
        return 0;
}

static uint64_t memory_end(const GuestMemory *memory) {
        const GuestRegion *last = &memory->regions[memory->n_regions - 1]; /* they are sorted */

        return last->guest_address + last->size;
}

/* The descriptor that was passed for the device, or its file; the caller's to close. */
static int open_file(const DeviceDefinition *device, const MachineFiles *files, bool read_only) {
        const char *path = device_definition_string(device, "path", "");
        _cleanup_free_ char *name = NULL;
        int fd;

        if (asprintf(&name, "%s.path", device->name) < 0) {
                name = NULL;
                return -ENOMEM;
        }
        fd = machine_file(files, name);
        if (fd >= 0) {
                fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
                return fd < 0 ? -errno : fd;
        }
        fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY);
        return fd < 0 ? -errno : fd;
}

static int measure(int fd, uint64_t *ret) {
        struct stat st;
        off_t size;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return -EINVAL;
        size = S_ISREG(st.st_mode) ? st.st_size : lseek(fd, 0, SEEK_END);
        if (size < 0)
                return -errno;
        *ret = (uint64_t) size;
        return 0;
}

/* Of two machines with the same file only one gets so far. The helpers' locks are of another kind, and keep disks and persistent memory apart. A
 * predecessor's lock may last a moment longer than he: helpers have copies of his descriptor. */
static int lock(int fd, bool read_only) {
        uint64_t end = now_usec() + LOCK_WAIT_USEC;

        while (flock(fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0) {
                if (errno != EINTR && (errno != EWOULDBLOCK || now_usec() >= end))
                        return -errno;
                (void) usleep(LOCK_LOOK_USEC);
        }
        return 0;
}

static int map_read_only(PmemRegion *region) {
        void *p = mmap(NULL, region->size, PROT_READ, MAP_SHARED, region->fd, 0);

        if (p == MAP_FAILED)
                return -errno;
        region->mapping = p;
        return 0;
}

static int map_region(Pmem *p, PmemRegion *region, bool read_only, void **ret) {
        int fd, r;

        if (read_only) {
                r = map_read_only(region);
                *ret = region->mapping;
                return r;
        }
        fd = fcntl(region->fd, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
                return -errno;
        r = guest_memory_add(&p->device_memory, fd, 0, region->address, region->size, 0);
        *ret = guest_memory_at(&p->device_memory, region->address, region->size);
        return r;
}

static int add_region(Pmem *p, Kvm *kvm, const DeviceDefinition *device, const MachineFiles *files, uint32_t slot, uint64_t end,
        char **ret_message) {
        bool read_only = device_definition_boolean(device, "readOnly", false);
        const char *path = device_definition_string(device, "path", "");
        PmemRegion *region = &p->regions[p->n_regions];
        void *host = NULL;
        int r;

        *region = (PmemRegion) { .device = device, .fd = open_file(device, files, read_only) };
        if (region->fd < 0)
                return set_message(ret_message, region->fd, "Cannot open %s for device '%s': %s.", path, device->name, strerror(-region->fd));
        p->n_regions++;
        r = measure(region->fd, &region->size);
        if (r < 0)
                return set_message(ret_message, r, "Cannot take %s for the memory of device '%s': %s.", path, device->name, strerror(-r));
        if (region->size == 0 || region->size % SIZE_ALIGNMENT != 0)
                return set_message(ret_message, -EINVAL, "The size of %s, %" PRIu64 " bytes, is not a multiple of 2 MiB, as device '%s' needs it.",
                        path, region->size, device->name);
        r = lock(region->fd, read_only);
        if (r < 0)
                return set_message(ret_message, r, "Cannot lock %s for device '%s': %s.", path, device->name,
                        r == -EWOULDBLOCK ? "another machine has it as its memory" : strerror(-r));
        r = pmem_place(end, region->size, arch_address_limit(), &region->address);
        if (r < 0)
                return set_message(ret_message, r, "The processor has no addresses for the %" PRIu64 " MiB of device '%s'.",
                        region->size >> 20, device->name);

        r = map_region(p, region, read_only, &host);
        if (r < 0)
                return set_message(ret_message, r, "Cannot map %s for device '%s': %s.", path, device->name, strerror(-r));
        r = kvm_set_memory(kvm, slot, region->address, region->size, host, read_only);
        if (r < 0)
                return set_message(ret_message, r, "KVM refuses the memory of device '%s': %s.", device->name, strerror(-r));
        return 0;
}

/* Devices see the RAM through a mapping of its own, since addresses of regions are those of one structure. */
static int add_ram(Pmem *p, const GuestMemory *ram) {
        for (size_t i = 0; i < ram->n_regions; i++) {
                const GuestRegion *region = &ram->regions[i];
                int fd = fcntl(region->fd, F_DUPFD_CLOEXEC, 3), r;

                if (fd < 0)
                        return -errno;
                r = guest_memory_add(&p->device_memory, fd, region->fd_offset, region->guest_address, region->size, 0);
                if (r < 0)
                        return r;
        }
        return 0;
}

int pmem_new(Kvm *kvm, const MachineDefinition *definition, const GuestMemory *ram, const MachineFiles *files, Pmem **ret,
        char **ret_message) {
        _cleanup_(pmem_freep) Pmem *p = NULL;
        uint64_t end = memory_end(ram);
        int r;

        for (size_t i = 0; i < definition->n_devices; i++) {
                const DeviceDefinition *device = &definition->devices[i];

                if (!streq(device->type->name, pmem_type))
                        continue;
                if (!p) {
                        p = calloc(1, sizeof(Pmem));
                        if (!p)
                                return -ENOMEM;
                        r = add_ram(p, ram);
                        if (r < 0)
                                return set_message(ret_message, r, "Cannot map the guest's memory for its devices: %s.", strerror(-r));
                }
                assert(p->n_regions < MACHINE_PMEM_MAX); /* that was checked with the definition */
                r = add_region(p, kvm, device, files, (uint32_t) (ram->n_regions + p->n_regions), end, ret_message);
                if (r < 0)
                        return r;
                end = p->regions[p->n_regions - 1].address + p->regions[p->n_regions - 1].size;
        }
        *ret = TAKE_PTR(p);
        return 0;
}

Pmem *pmem_free(Pmem *p) {
        if (!p)
                return NULL;
        for (size_t i = 0; i < p->n_regions; i++) {
                if (p->regions[i].mapping)
                        (void) munmap(p->regions[i].mapping, p->regions[i].size);
                (void) safe_close(p->regions[i].fd);
        }
        guest_memory_done(&p->device_memory);
        return mfree(p);
}

bool pmem_config(const Pmem *p, const char *device, struct virtio_pmem_config *ret) {
        for (size_t i = 0; p && i < p->n_regions; i++)
                if (streq(p->regions[i].device->name, device)) {
                        *ret = (struct virtio_pmem_config) { .start = p->regions[i].address, .size = p->regions[i].size };
                        return true;
                }
        return false;
}

const GuestMemory *pmem_device_memory(const Pmem *p) {
        return p ? &p->device_memory : NULL;
}
