/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The Device handle: what a device file sees of its frame. */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "frame.h"
#include "options.h"
#include "passed.h"
#include "session-keep.h"

/* What the frame can do for every device. */
#define FRAME_FEATURES                                                                                         \
        (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC |                      \
                UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES)

int device_new(const DeviceClass *class, const DeviceType *type, sd_event *event, DeviceOptions *options, PassedFds *passed, Device **ret) {
        Device *d = calloc(1, sizeof(Device));
        int r;

        if (!d)
                return -ENOMEM;
        *d = (Device) {
                .class = class,
                .type = type,
                .event = event,
                .options = options,
                .passed = passed,
                .features = class->features,
                .n_queues = class->queues_max,
        };
        r = class->open(d);
        if (r < 0) {
                (void) device_free(d);
                return r;
        }
        *ret = d;
        return 0;
}

Device *device_free(Device *d) {
        if (!d)
                return NULL;
        (void) session_free(d->session);
        d->class->close(d);
        free(d->machine);
        free(d->name);
        return mfree(d);
}

void *device_data(Device *d) {
        return d->data;
}

void device_set_data(Device *d, void *data) {
        d->data = data;
}

sd_event *device_event(Device *d) {
        return d->event;
}

const char *device_option(Device *d, const char *name) {
        return device_options_get(d->options, name);
}

bool device_option_boolean(Device *d, const char *name, bool otherwise) {
        return device_options_boolean(d->options, name, otherwise);
}

uint64_t device_option_unsigned(Device *d, const char *name, uint64_t otherwise) {
        return device_options_number(d->options, name, otherwise);
}

const char *const *device_option_list(Device *d, const char *name, size_t *ret_n) {
        return device_options_list(d->options, name, ret_n);
}

/* The descriptor that was passed under `name`, or else `path`. */
static int open_passed(Device *d, const char *name, const char *path, int flags) {
        int fd = passed_fds_take(d->passed, name);

        if (fd >= 0)
                return fd;
        if (!path || d->passed->complete)
                return -ENOENT;
        fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0640);
        return fd < 0 ? -errno : fd;
}

int device_open_path(Device *d, const char *name, int flags) {
        return open_passed(d, name, device_option(d, name), flags);
}

int device_open_path_of(Device *d, const char *name, size_t i, int flags) {
        _cleanup_free_ char *descriptor = NULL;
        const char *const *paths;
        size_t n;

        paths = device_option_list(d, name, &n);
        if (asprintf(&descriptor, "%s-%zu", name, i) < 0) {
                descriptor = NULL;
                return -ENOMEM;
        }
        return open_passed(d, descriptor, i < n ? paths[i] : NULL, flags);
}

unsigned device_take_passed(Device *d, const char *name, int *ret_fds, unsigned max) {
        unsigned n = 0;

        while (n < max) {
                int fd = passed_fds_take(d->passed, name);

                if (fd < 0)
                        break;
                ret_fds[n++] = fd;
        }
        return n;
}

struct PassedFds *device_passed(Device *d) {
        return d->passed;
}

bool device_is_managed(Device *d) {
        return d->passed->managed;
}

/* A predecessor's descriptor, or a new one that a successor will find. */
static int open_kept(Device *d, const char *name, size_t size, bool *ret_found) {
        _cleanup_close_ int fd = passed_fds_take(d->passed, name);
        struct stat st;
        int r;

        if (fd >= 0) {
                if (fstat(fd, &st) < 0)
                        return -errno;
                *ret_found = (uint64_t) st.st_size == size;
                if (*ret_found)
                        return TAKE_FD(fd);
                /* An older version's: nobody needs it any more. */
                (void) passed_fds_forget(d->passed, name);
                fd = safe_close(fd);
        }
        fd = memfd_create_sealed(name, size, 0);
        if (fd < 0)
                return fd;
        r = passed_fds_keep(d->passed, name, fd);
        if (r < 0)
                (void) log_warning_errno(r, "Cannot have the service manager keep the device's state: %m");
        *ret_found = false;
        return TAKE_FD(fd);
}

int device_keep(Device *d, const char *name, size_t size, void **ret) {
        _cleanup_close_ int fd = -EBADF;
        bool found = false;
        void *p;

        fd = open_kept(d, name, size, &found);
        if (fd < 0)
                return fd;
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        *ret = p;
        return found;
}

void device_set_features(Device *d, uint64_t features) {
        d->features = features;
}

uint64_t device_offered_features(const Device *d) {
        return d->features | FRAME_FEATURES;
}

uint64_t device_features(Device *d) {
        return d->session ? d->session->features : 0;
}

void device_set_n_queues(Device *d, unsigned n) {
        assert(n > 0 && n <= d->class->queues_max);
        d->n_queues = n;
}

unsigned device_n_queues(Device *d) {
        unsigned n = 0;

        if (!d->session)
                return d->n_queues;
        for (unsigned i = 0; i < d->n_queues; i++)
                n += ring_is_served(&d->session->rings[i]);
        return n;
}

Virtqueue *device_queue(Device *d, unsigned index) {
        return d->session && index < d->n_queues ? d->session->rings[index].queue : NULL;
}

bool device_is_running(Device *d) {
        return d->session && d->session->started && !d->session->broken;
}

const GuestMemory *device_memory(Device *d) {
        return d->session && d->session->memory.n_regions > 0 ? &d->session->memory : NULL;
}

void device_changed(Device *d) {
        if (d->changed)
                d->changed(d->changed_userdata);
}

void device_config_changed(Device *d) {
        if (d->session)
                session_send_config_change(d->session);
}

struct BusServer *device_bus(Device *d) {
        return d->bus;
}

/* virtio 1.2 §2.1.1: DEVICE_NEEDS_RESET is in the status, and a configuration change tells the driver to look. */
void session_break(Session *s, const char *reason) {
        unsigned suppressed;

        if (s->broken)
                return;
        session_keep_touch(s); /* a successor has no need of a broken session */
        s->broken = true;
        s->reason = strdup(reason);
        if (log_ratelimit(&s->complaints, &suppressed))
                log_warning("The guest broke the rules of its device: %s. Nothing more is done for it until its driver resets it.",
                        reason);
        for (unsigned i = 0; i < s->device->n_queues; i++)
                if (s->rings[i].err_fd >= 0) {
                        ssize_t n = write(s->rings[i].err_fd, &(const uint64_t) { 1 }, sizeof(uint64_t));
                        (void) n;
                }
        session_send_config_change(s);
        rings_update_later(s);
        device_changed(s->device);
}

void session_mend(Session *s) {
        s->broken = false;
        s->reason = mfree(s->reason);
        device_changed(s->device);
}

void device_broken(Device *d, const char *format, ...) {
        _cleanup_free_ char *reason = NULL;
        va_list ap;
        int r;

        if (!d->session)
                return;
        va_start(ap, format);
        r = vasprintf(&reason, format, ap);
        va_end(ap);
        session_break(d->session, r < 0 ? "(out of memory)" : reason);
        if (r < 0)
                reason = NULL;
}
