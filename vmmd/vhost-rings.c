/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/eventfd.h>

#include "vhost-inflight.h"
#include "vhost-postcopy.h"
#include "vhost-rings.h"

typedef struct RingPointers {
        struct vring_desc *descriptors;
        struct vring_avail *driver;
        struct vring_used *device;
} RingPointers;

/* Sizes and alignments are those of virtio 1.2, 2.7. */
static int find_ring(const GuestMemory *memory, const VhostQueue *q, RingPointers *ret) {
        uint64_t n = q->size;
        RingPointers p = {
                .descriptors = guest_memory_at(memory, q->descriptors, n * sizeof(struct vring_desc)),
                .driver = guest_memory_at(memory, q->driver, 6 + n * 2),
                .device = guest_memory_at(memory, q->device, 6 + n * sizeof(struct vring_used_elem)),
        };

        if (!p.descriptors || !p.driver || !p.device || q->descriptors % 16 != 0 || q->driver % 2 != 0 || q->device % 4 != 0)
                return -EINVAL;
        *ret = p;
        return 0;
}

int vhost_rings_check(const GuestMemory *memory, const VhostActivation *a) {
        RingPointers p;
        int r = 0;

        for (unsigned i = 0; i < a->n_queues && r >= 0; i++)
                if (a->queues[i].enabled)
                        r = find_ring(memory, &a->queues[i], &p);
        return r;
}

bool vhost_rings_are_under_way(const GuestMemory *memory, const VhostActivation *a) {
        for (unsigned i = 0; i < a->n_queues; i++) {
                RingPointers p;

                /* A driver that made such a ring unreachable gets it back as broken as that. */
                if (a->queues[i].enabled && (find_ring(memory, &a->queues[i], &p) < 0 ||
                                                    __atomic_load_n(&p.driver->idx, __ATOMIC_ACQUIRE) !=
                                                            __atomic_load_n(&p.device->idx, __ATOMIC_ACQUIRE)))
                        return true;
        }
        return false;
}

static int give_memory(VhostSession *s, const GuestMemory *memory) {
        int fds[VHOST_USER_MEMORY_REGIONS_MAX];
        size_t n = memory->n_regions;
        VhostUserMemory table = { .nregions = (uint32_t) n };
        VhostUserMsg msg = {};
        uint32_t size;

        if (n > ELEMENTSOF(fds))
                return -E2BIG;
        for (size_t i = 0; i < n; i++) {
                const GuestRegion *region = &memory->regions[i];

                table.regions[i] = (VhostUserMemoryRegion) {
                        .guest_phys_addr = region->guest_address,
                        .memory_size = region->size,
                        .userspace_addr = region->user_address,
                        .mmap_offset = region->fd_offset,
                };
                fds[i] = region->fd;
        }
        msg.payload.memory = table;
        size = (uint32_t) (offsetof(VhostUserMemory, regions) + n * sizeof(VhostUserMemoryRegion));
        if (s->peer)
                return vhost_postcopy_give_memory(s, memory, &msg, size, fds, n);
        return vhost_session_tell(s, &msg, VHOST_USER_SET_MEM_TABLE, size, fds, n, true);
}

static uint16_t largest_queue(const VhostActivation *a) {
        uint16_t size = 0;

        for (unsigned i = 0; i < a->n_queues; i++)
                size = MAX(size, a->queues[i].enabled ? a->queues[i].size : (uint16_t) 0);
        return size;
}

static int get_inflight(VhostSession *s, uint16_t size, VhostActivation *a) {
        VhostUserMsg msg = {};
        int r, fd;

        msg.payload.inflight = (VhostUserInflight) { .num_queues = (uint16_t) a->n_queues, .queue_size = size };
        r = vhost_session_ask(s, &msg, VHOST_USER_GET_INFLIGHT_FD, sizeof(VhostUserInflight), &fd);
        if (r < 0)
                return r;
        if (fd < 0 || msg.header.size < sizeof(VhostUserInflight)) {
                (void) safe_close(fd);
                return -EREMOTEIO;
        }
        a->inflight_fd = fd;
        a->inflight = msg.payload.inflight;
        return 0;
}

static int make_inflight(VhostSession *s, const GuestMemory *memory, uint16_t size, VhostActivation *a) {
        int r;

        r = get_inflight(s, size, a);
        if (r >= 0)
                r = vhost_in_flight_write(memory, a, &a->in_flight);
        if (r >= 0)
                vhost_in_flight_done(&a->in_flight); /* from here on the log knows */
        else
                a->inflight_fd = safe_close(a->inflight_fd);
        return r;
}

static int give_inflight(VhostSession *s, const GuestMemory *memory, VhostActivation *a) {
        VhostUserMsg msg = {};
        uint16_t size = largest_queue(a);
        int r = 0;

        /* A driver may say DRIVER_OK without any queue; a log of nothing is an error to back-ends. */
        if (!vhost_session_has(s, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) || size == 0)
                return 0;
        if (a->inflight_fd < 0)
                r = make_inflight(s, memory, size, a);
        if (r < 0)
                return r;
        msg.payload.inflight = a->inflight;
        return vhost_session_tell(s, &msg, VHOST_USER_SET_INFLIGHT_FD, sizeof(VhostUserInflight), &a->inflight_fd, 1, true);
}

static int give_fd(VhostSession *s, uint32_t request, unsigned index, int fd) {
        VhostUserMsg msg = { .payload.u64 = index };

        return vhost_session_tell(s, &msg, request, sizeof(uint64_t), &fd, 1, false);
}

static int set_state(VhostSession *s, uint32_t request, unsigned index, unsigned num, bool confirm) {
        VhostUserMsg msg = { .payload.state = { .index = index, .num = num } };

        return vhost_session_tell(s, &msg, request, sizeof(struct vhost_vring_state), NULL, 0, confirm);
}

static int give_ring(VhostSession *s, const GuestMemory *memory, const VhostActivation *a, unsigned index, bool resume) {
        const VhostQueue *q = &a->queues[index];
        VhostUserMsg msg = {};
        uint16_t base = 0;
        RingPointers p;
        int r;

        r = find_ring(memory, q, &p);
        if (r < 0)
                return r;
        /* A back-end that died could not say where it was. What it had finished is in the used ring; the in-flight log has the rest. */
        if (resume)
                base = a->has_bases ? a->bases[index] : __atomic_load_n(&p.device->idx, __ATOMIC_ACQUIRE);
        r = set_state(s, VHOST_USER_SET_VRING_NUM, index, q->size, false);
        if (r >= 0)
                r = set_state(s, VHOST_USER_SET_VRING_BASE, index, base, false);
        if (r < 0)
                return r;

        msg.payload.addr = (struct vhost_vring_addr) {
                .index = index,
                .desc_user_addr = (uint64_t) (uintptr_t) p.descriptors,
                .avail_user_addr = (uint64_t) (uintptr_t) p.driver,
                .used_user_addr = (uint64_t) (uintptr_t) p.device,
        };
        r = vhost_session_tell(s, &msg, VHOST_USER_SET_VRING_ADDR, sizeof(struct vhost_vring_addr), NULL, 0, true);
        if (r >= 0)
                r = give_fd(s, VHOST_USER_SET_VRING_ERR, index, q->error_fd);
        if (r >= 0)
                r = give_fd(s, VHOST_USER_SET_VRING_CALL, index, q->call_fd);
        if (r >= 0)
                r = give_fd(s, VHOST_USER_SET_VRING_KICK, index, q->kick_fd);
        return r;
}

int vhost_rings_give(VhostSession *s, const GuestMemory *memory, VhostActivation *a, bool resume) {
        int r;

        r = vhost_session_tell_u64(s, VHOST_USER_SET_FEATURES, a->features | VHOST_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
        if (r >= 0)
                r = give_memory(s, memory);
        if (r >= 0)
                r = give_inflight(s, memory, a);
        for (unsigned i = 0; i < a->n_queues && r >= 0; i++)
                if (a->queues[i].enabled)
                        r = give_ring(s, memory, a, i, resume);
        for (unsigned i = 0; i < a->n_queues && r >= 0; i++)
                if (a->queues[i].enabled)
                        r = set_state(s, VHOST_USER_SET_VRING_ENABLE, i, 1, true);
        if (r >= 0 && vhost_session_has(s, VHOST_USER_PROTOCOL_F_STATUS))
                r = vhost_session_tell_u64(s, VHOST_USER_SET_STATUS,
                        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                                VIRTIO_CONFIG_S_DRIVER_OK);
        /* Kicks that came while no session was there may have been read by a back-end that then died: have it look. */
        for (unsigned i = 0; i < a->n_queues && r >= 0 && resume; i++)
                if (a->queues[i].enabled)
                        (void) eventfd_write(a->queues[i].kick_fd, 1);
        return r;
}

/* Stops the rings; *bases, where wanted, has where each was. */
static int stop_rings(VhostSession *s, const VhostActivation *a, uint16_t *bases) {
        int r = 0;

        for (unsigned i = 0; i < a->n_queues && r >= 0; i++) {
                VhostUserMsg msg = { .payload.state = { .index = i } };

                if (!a->queues[i].enabled)
                        continue;
                r = vhost_session_ask(s, &msg, VHOST_USER_GET_VRING_BASE, sizeof(struct vhost_vring_state), NULL);
                if (r >= 0 && bases)
                        bases[i] = (uint16_t) msg.payload.state.num;
                /* So that it stays stopped where the next driver has no use for it. */
                if (r >= 0)
                        r = set_state(s, VHOST_USER_SET_VRING_ENABLE, i, 0, false);
        }
        return r;
}

int vhost_rings_take(VhostSession *s, const VhostActivation *a) {
        int r;

        r = stop_rings(s, a, NULL);
        if (r >= 0 && vhost_session_has(s, VHOST_USER_PROTOCOL_F_STATUS))
                r = vhost_session_tell_u64(s, VHOST_USER_SET_STATUS, 0);
        return r;
}

int vhost_rings_suspend(VhostSession *s, VhostActivation *a) {
        int r;

        r = stop_rings(s, a, a->bases);
        a->has_bases = r >= 0;
        return r;
}
