/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The Device handle: what a device file sees of its frame. */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdarg.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

#include "frame.h"
#include "options.h"

/* What the frame can do for every device. */
#define FRAME_FEATURES                                                                                         \
        (UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC |                      \
                UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES)

int device_new(const DeviceClass *class, const DeviceType *type, sd_event *event, DeviceOptions *options, Device **ret) {
        Device *d = calloc(1, sizeof(Device));
        int r;

        if (!d)
                return -ENOMEM;
        *d = (Device) {
                .class = class,
                .type = type,
                .event = event,
                .options = options,
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

/* A descriptor of that name among those the service manager passed; -ENOENT where there is none. */
static int find_passed_fd(const char *name) {
        char **names = NULL;
        int n, fd = -ENOENT;

        n = sd_listen_fds_with_names(0, &names);
        for (int i = 0; i < n; i++) {
                if (streq(names[i], name) && fd == -ENOENT)
                        fd = SD_LISTEN_FDS_START + i;
                free(names[i]);
        }
        free(names);
        return n < 0 ? n : fd;
}

int device_open_path(Device *d, const char *name, int flags) {
        const char *path = device_option(d, name);
        int fd;

        fd = find_passed_fd(name);
        if (fd == -ENOENT) {
                if (!path)
                        return -ENOENT;
                fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0640);
                return fd < 0 ? -errno : fd;
        }
        if (fd < 0)
                return fd;
        /* Ours now: nobody asks for it twice. */
        return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : fd;
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
        s->broken = true;
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
