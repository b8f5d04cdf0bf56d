/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "passed.h"
#include "session-keep.h"

/* Another layout, or another meaning of a field: then what a predecessor of another version left is not taken up. */
#define KEPT_VERSION 1
#define KEPT_NAME SESSION_KEEP_PREFIX "state"

typedef struct KeptRing {
        struct vhost_vring_addr address;
        uint16_t num, base;
        uint8_t have_address, may_wait, enabled;
        uint8_t served; /* where it is now, the used ring says */
        uint8_t has_kick, has_call, has_error;
        uint8_t padding;
} KeptRing;

typedef struct KeptRegion {
        uint64_t guest_address, size, user_address, fd_offset;
        uint64_t index; /* of the descriptor: regions may share a file, which the service manager keeps once */
} KeptRegion;

typedef struct KeptSession {
        uint32_t version;
        uint32_t n_queues;
        uint32_t busy; /* the mark */
        uint32_t n_regions;
        uint64_t features, protocol_features;
        uint8_t status, has_backend, has_inflight;
        uint8_t padding[5];
        uint64_t inflight_size, inflight_offset;
        uint16_t inflight_queues, inflight_queue_size;
        uint32_t config_size;
        uint8_t config[VHOST_USER_CONFIG_MAX]; /* as the front-end knows it */
        KeptRegion regions[GUEST_MEMORY_REGIONS_MAX];
        KeptRing rings[];
} KeptSession;

struct SessionKeep {
        KeptSession *kept;
        size_t size;
};

static const struct {
        const char *name;
        bool indexed;
} descriptors[_SESSION_FD_MAX] = {
        [SESSION_FD_CONNECTION] = { SESSION_KEEP_PREFIX "connection", false },
        [SESSION_FD_BACKEND] = { SESSION_KEEP_PREFIX "back-end", false },
        [SESSION_FD_INFLIGHT] = { SESSION_KEEP_PREFIX "in-flight", false },
        [SESSION_FD_MEMORY] = { SESSION_KEEP_PREFIX "memory", true },
        [SESSION_FD_KICK] = { SESSION_KEEP_PREFIX "kick", true },
        [SESSION_FD_CALL] = { SESSION_KEEP_PREFIX "call", true },
        [SESSION_FD_ERROR] = { SESSION_KEEP_PREFIX "error", true },
};

static char *descriptor_name(SessionFd which, unsigned index) {
        char *name;

        if (!descriptors[which].indexed)
                return strdup(descriptors[which].name);
        return asprintf(&name, "%s-%u", descriptors[which].name, index) < 0 ? NULL : name;
}

static size_t kept_size(const Device *d) {
        return sizeof(KeptSession) + d->n_queues * sizeof(KeptRing);
}

static void set_busy(KeptSession *k, bool busy) {
        __atomic_store_n(&k->busy, busy, __ATOMIC_SEQ_CST);
}

/* ---- writing ---- */

/* Nothing is kept any more. */
static void keep_nothing(Session *s) {
        int r;

        session_keep_touch(s);
        r = passed_fds_forget_prefix(s->device->passed, SESSION_KEEP_PREFIX);
        if (r < 0)
                (void) log_warning_errno(r, "Cannot tell the service manager to forget the session: %m");
        (void) munmap(s->keep->kept, s->keep->size);
        s->keep = mfree(s->keep);
}

/* A session that cannot be kept goes on all the same: its end is a reconnection, as without a service manager. */
static void give_up(Session *s, int error) {
        (void) log_warning_errno(error, "Cannot have the service manager keep the session; it would not outlive this process: %m");
        keep_nothing(s);
}

int session_keep_begin(Session *s) {
        Device *d = s->device;
        _cleanup_close_ int fd = -EBADF;
        size_t size = kept_size(d);
        KeptSession *k;
        int r;

        if (!d->keeps_sessions || !d->passed->managed || !getenv("NOTIFY_SOCKET"))
                return 0;
        fd = memfd_create_sealed(KEPT_NAME, size, 0);
        if (fd < 0)
                return fd;
        k = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (k == MAP_FAILED)
                return -errno;
        s->keep = calloc(1, sizeof(SessionKeep));
        if (!s->keep) {
                (void) munmap(k, size);
                return -ENOMEM;
        }
        *s->keep = (SessionKeep) { .kept = k, .size = size };
        *k = (KeptSession) { .version = KEPT_VERSION, .n_queues = d->n_queues, .busy = true };
        /* Of two of a name nobody could tell which is meant. */
        r = passed_fds_forget_prefix(d->passed, SESSION_KEEP_PREFIX);
        if (r >= 0)
                r = passed_fds_keep(d->passed, KEPT_NAME, fd);
        if (r < 0)
                give_up(s, r);
        session_keep_fd(s, SESSION_FD_CONNECTION, 0, s->fd);
        return 0;
}

void session_keep_touch(Session *s) {
        if (s->keep)
                set_busy(s->keep->kept, true);
}

static bool keep_one(Session *s, SessionFd which, unsigned index, int fd) {
        _cleanup_free_ char *name = descriptor_name(which, index);
        PassedFds *passed = s->device->passed;
        int r = name ? 0 : -ENOMEM;

        /* Two messages: in one, removing would win. */
        if (r >= 0 && passed_fds_is_kept(passed, name))
                r = passed_fds_forget(passed, name);
        if (r >= 0 && fd >= 0)
                r = passed_fds_keep(passed, name, fd);
        if (r < 0)
                give_up(s, r);
        return r >= 0;
}

void session_keep_fd(Session *s, SessionFd which, unsigned index, int fd) {
        if (!s->keep)
                return;
        session_keep_touch(s);
        (void) keep_one(s, which, index, fd);
}

void session_keep_inflight(Session *s, const VhostUserInflight *inflight, int fd) {
        KeptSession *k;

        session_keep_fd(s, SESSION_FD_INFLIGHT, 0, fd);
        if (!s->keep)
                return;
        k = s->keep->kept;
        k->inflight_size = inflight->mmap_size;
        k->inflight_offset = inflight->mmap_offset;
        k->inflight_queues = inflight->num_queues;
        k->inflight_queue_size = inflight->queue_size;
}

static bool same_file(int a, int b) {
        struct stat x, y;

        return fstat(a, &x) >= 0 && fstat(b, &y) >= 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

void session_keep_memory(Session *s) {
        const GuestMemory *memory = &s->memory;
        KeptSession *k;

        if (!s->keep)
                return;
        session_keep_touch(s);
        k = s->keep->kept;
        for (unsigned i = 0; i < k->n_regions; i++)
                if (k->regions[i].index == i && !keep_one(s, SESSION_FD_MEMORY, i, -EBADF))
                        return;
        for (unsigned i = 0; i < memory->n_regions; i++) {
                const GuestRegion *region = &memory->regions[i];
                unsigned index = 0;

                while (index < i && !same_file(memory->regions[index].fd, region->fd))
                        index++;
                if (index == i && !keep_one(s, SESSION_FD_MEMORY, i, region->fd))
                        return;
                k->regions[i] = (KeptRegion) { .guest_address = region->guest_address, .size = region->size,
                                               .user_address = region->user_address, .fd_offset = region->fd_offset, .index = index };
                k->n_regions = i + 1;
        }
        k->n_regions = (uint32_t) memory->n_regions;
}

static uint32_t read_config(Device *d, uint8_t config[static VHOST_USER_CONFIG_MAX]) {
        uint32_t size = (uint32_t) MIN(d->class->config_size, (size_t) VHOST_USER_CONFIG_MAX);

        if (size > 0)
                d->class->config_read(d, 0, config, size);
        return size;
}

void session_keep_config(Session *s) {
        KeptSession *k = s->keep ? s->keep->kept : NULL;

        if (k && k->busy == 0)
                k->config_size = read_config(s->device, k->config);
}

static KeptRing keep_ring(const Ring *ring) {
        return (KeptRing) {
                .address = ring->address,
                .num = ring->num,
                .base = ring->base,
                .have_address = ring->have_address,
                .may_wait = ring->may_wait,
                .enabled = ring->enabled,
                .served = ring_is_served(ring),
                .has_kick = ring->kick_fd >= 0,
                .has_call = ring->call_fd >= 0,
                .has_error = ring->err_fd >= 0,
        };
}

/* What is under way in it would be known. */
static bool is_logged(const Session *s, unsigned index) {
        return !ring_is_served(&s->rings[index]) ||
                (inflight_region(&s->inflight, index) && s->rings[index].num <= s->inflight.queue_size);
}

void session_keep_settle(Session *s) {
        KeptSession *k = s->keep ? s->keep->kept : NULL;
        int pending = SD_EVENT_OFF;

        /* A successor that took up a session whose memory is not all there would find zeroes in it. */
        if (!k || s->broken || s->receiver.received > 0 || s->postcopy.listening)
                return;
        (void) sd_event_source_get_enabled(s->update_source, &pending);
        if (pending != SD_EVENT_OFF)
                return; /* rings_update_later() comes first */
        for (unsigned i = 0; i < s->device->n_queues; i++) {
                if (!is_logged(s, i))
                        return;
                k->rings[i] = keep_ring(&s->rings[i]);
        }
        k->features = s->features;
        k->protocol_features = s->protocol_features;
        k->status = s->status;
        k->has_backend = s->backend_fd >= 0;
        k->has_inflight = s->inflight.mapping != NULL;
        k->config_size = read_config(s->device, k->config);
        set_busy(k, false);
}

void session_keep_end(Session *s) {
        /* The service manager's copy of the connection lives a little longer than ours. */
        (void) shutdown(s->fd, SHUT_RDWR);
        if (s->backend_fd >= 0)
                (void) shutdown(s->backend_fd, SHUT_RDWR);
        if (s->keep)
                keep_nothing(s);
}

/* ---- taking up ---- */

static int take_descriptor(Device *d, SessionFd which, unsigned index, int *ret) {
        _cleanup_free_ char *name = descriptor_name(which, index);
        int fd;

        if (!name)
                return -ENOMEM;
        fd = passed_fds_take(d->passed, name);
        if (fd < 0)
                return fd;
        *ret = fd;
        return 0;
}

/* -ENOENT where there is none, -ESTALE where it is of another version or has the mark. */
static int open_kept(Device *d, SessionKeep *ret) {
        _cleanup_close_ int fd = passed_fds_take(d->passed, KEPT_NAME);
        size_t size = kept_size(d);
        struct stat st;
        KeptSession *k;

        if (fd < 0)
                return fd;
        if (fstat(fd, &st) < 0)
                return -errno;
        if ((uint64_t) st.st_size != size)
                return -ESTALE;
        k = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (k == MAP_FAILED)
                return -errno;
        *ret = (SessionKeep) { .kept = k, .size = size };
        if (k->version != KEPT_VERSION || k->n_queues != d->n_queues || k->n_regions > GUEST_MEMORY_REGIONS_MAX)
                return -ESTALE;
        return k->busy ? -EINPROGRESS : 0;
}

static int resume_memory(Session *s, const KeptSession *k) {
        int fds[GUEST_MEMORY_REGIONS_MAX], r = 0;

        for (unsigned i = 0; i < k->n_regions && r >= 0; i++) {
                const KeptRegion *region = &k->regions[i];

                fds[i] = -EBADF;
                if (region->index == i)
                        r = take_descriptor(s->device, SESSION_FD_MEMORY, i, &fds[i]);
                else if (region->index < i) {
                        fds[i] = fcntl(fds[region->index], F_DUPFD_CLOEXEC, 3);
                        r = fds[i] < 0 ? -errno : 0;
                } else
                        r = -EBADMSG;
                if (r >= 0) /* which takes it, but keeps it open as long as the session has this memory */
                        r = guest_memory_add(&s->memory, fds[i], region->fd_offset, region->guest_address, region->size,
                                region->user_address);
        }
        return r;
}

static int resume_inflight(Session *s, const KeptSession *k) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!k->has_inflight)
                return 0;
        r = take_descriptor(s->device, SESSION_FD_INFLIGHT, 0, &fd);
        return r < 0 ? r : inflight_open(&s->inflight, fd, k->inflight_size, k->inflight_offset, k->inflight_queues, k->inflight_queue_size);
}

static int resume_ring(Session *s, const KeptRing *k, unsigned index) {
        Ring *ring = &s->rings[index];
        int r = 0;

        ring->num = k->num;
        ring->base = k->base;
        ring->have_address = k->have_address;
        ring->address = k->address;
        ring->may_wait = k->may_wait;
        ring->enabled = k->enabled;
        ring->resumed = k->served;
        if (k->has_kick)
                r = take_descriptor(s->device, SESSION_FD_KICK, index, &ring->kick_fd);
        if (r >= 0 && k->has_call)
                r = take_descriptor(s->device, SESSION_FD_CALL, index, &ring->call_fd);
        if (r >= 0 && k->has_error)
                r = take_descriptor(s->device, SESSION_FD_ERROR, index, &ring->err_fd);
        return r;
}

static int resume(Session *s) {
        const KeptSession *k = s->keep->kept;
        Device *d = s->device;
        int r;

        assert(k);
        if (k->features & ~device_offered_features(d) || k->protocol_features & ~session_protocol_features(d))
                return -ESTALE;
        s->features = k->features;
        s->protocol_features = k->protocol_features;
        s->status = k->status;
        r = k->has_backend ? take_descriptor(d, SESSION_FD_BACKEND, 0, &s->backend_fd) : 0;
        if (r >= 0)
                r = resume_memory(s, k);
        if (r >= 0)
                r = resume_inflight(s, k);
        for (unsigned i = 0; i < d->n_queues && r >= 0; i++)
                r = resume_ring(s, &k->rings[i], i);
        return r;
}

/* What has changed in the host while nobody was there to see. */
static void compare_config(Session *s) {
        uint8_t config[VHOST_USER_CONFIG_MAX] = {};
        KeptSession *k = s->keep->kept;
        uint32_t size = read_config(s->device, config);

        if (size != k->config_size || memcmp(config, k->config, size) != 0)
                session_send_config_change(s);
}

/* Whoever is at the other end sees the end of it, although the service manager has a copy. */
static void close_connection(Device *d) {
        int fd;

        if (take_descriptor(d, SESSION_FD_CONNECTION, 0, &fd) >= 0) {
                (void) shutdown(fd, SHUT_RDWR);
                (void) safe_close(fd);
        }
        if (take_descriptor(d, SESSION_FD_BACKEND, 0, &fd) >= 0) {
                (void) shutdown(fd, SHUT_RDWR);
                (void) safe_close(fd);
        }
}

static int forget(Device *d, SessionKeep *keep, int why) {
        int r;

        if (why == -EINPROGRESS)
                log_info("The last helper died within a request of its front-end, which connects again.");
        else if (why != -ENOENT)
                (void) log_warning_errno(why, "What the last helper left of its session does not fit; the front-end connects again: %m");
        close_connection(d);
        r = passed_fds_forget_prefix(d->passed, SESSION_KEEP_PREFIX);
        if (keep->kept)
                (void) munmap(keep->kept, keep->size);
        return r;
}

int session_keep_resume(Device *d) {
        SessionKeep keep = {}, *owned = NULL;
        int fd = -EBADF, r;
        Session *s;

        r = open_kept(d, &keep);
        if (r >= 0)
                r = take_descriptor(d, SESSION_FD_CONNECTION, 0, &fd);
        if (r < 0)
                return forget(d, &keep, r);
        owned = malloc(sizeof(SessionKeep));
        if (!owned) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        *owned = keep;
        r = session_make(d, fd, &s);
        if (r < 0) {
                free(owned);
                return forget(d, &keep, r);
        }
        s->keep = owned;
        r = resume(s); /* changes nothing of what is kept: whoever comes after us may take it up as well */
        if (r < 0) {
                (void) log_warning_errno(r, "What the last helper left of its session does not fit; the front-end connects again: %m");
                (void) session_free(s);
                return 0;
        }
        /* Nothing of it is left over under another name. */
        passed_fds_close_prefix(d->passed, SESSION_KEEP_PREFIX);
        compare_config(s);
        rings_update_later(s);
        log_info("Going on with the session of the last helper.");
        return 1;
}
