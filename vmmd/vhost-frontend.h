/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The vhost-user front-end: one for every type of device. It holds the session with a helper (or any other back-end) and carries
 * what the virtio transport learns from the guest's driver to it. The data path is not here: kicks and interrupts are eventfds
 * that guest and helper share.
 *
 * Connecting and negotiating takes as long as the helper needs to start; a thread of its own does it, so that the vCPUs run
 * meanwhile. Who needs the device waits in vhost_frontend_wait(). A session that breaks is made anew in the same way, with the
 * in-flight log, and the guest sees only a pause.
 *
 * What vCPUs ask may wait for the helper: registers of a device that is not there yet do. What the event loop's thread asks never
 * does; those functions say so. */

#include <systemd/sd-event.h>

#include "guest-memory.h"
#include "util.h"

#define VHOST_FRONTEND_QUEUES_MAX 64

typedef struct VhostFrontend VhostFrontend;

typedef enum VhostFrontendState {
        VHOST_FRONTEND_IDLE,       /* not started */
        VHOST_FRONTEND_CONNECTING, /* the helper starts, or restarts */
        VHOST_FRONTEND_READY,
        VHOST_FRONTEND_FAILED,     /* for good; vhost_frontend_error() says why */
} VhostFrontendState;

/* One virtqueue as the driver set it up, and its eventfds, which exist as long as the front-end does. */
typedef struct VhostQueue {
        bool enabled;
        uint16_t size;
        uint64_t descriptors, driver, device; /* guest-physical (virtio 1.2, 2.7: descriptor table, available, used ring) */
        int kick_fd;
        int call_fd;
        int error_fd;
} VhostQueue;

typedef struct VhostFrontendHandlers {
        /* The state changed. On any thread. */
        void (*state_changed)(void *userdata);
        /* The helper says that configuration space changed. On the event loop's thread. */
        void (*config_changed)(void *userdata);
        /* The device gave up on what the driver did (DEVICE_NEEDS_RESET). On the event loop's thread. */
        void (*broken)(void *userdata);
        void *userdata;
} VhostFrontendHandlers;

/* `name` is for messages; `path` the back-end's socket; `memory` must outlive the front-end. */
int vhost_frontend_new(const char *name, const char *path, uint16_t virtio_id, unsigned n_queues,
        const GuestMemory *memory, const VhostFrontendHandlers *handlers, VhostFrontend **ret);
VhostFrontend *vhost_frontend_free(VhostFrontend *f);
DEFINE_CLEANUP(VhostFrontend, vhost_frontend_free)

/* Ends the session for good and wakes everybody who waits for it. Any thread; does not wait for the helper. */
void vhost_frontend_abort(VhostFrontend *f);

/* Begins to connect; from now on state_changed is called. */
int vhost_frontend_start(VhostFrontend *f);
/* Watches the session in the event loop: a hang-up starts a new session, messages of the helper are taken. To be called on the loop's thread
 * whenever the state became ready. */
int vhost_frontend_attach(VhostFrontend *f, sd_event *event);

/* Does not wait. */
VhostFrontendState vhost_frontend_state(VhostFrontend *f);
/* Why it failed last; the caller frees it. NULL where it did not. */
char *vhost_frontend_error(VhostFrontend *f);
/* How often a session was made anew. Does not wait. */
unsigned vhost_frontend_reconnects(VhostFrontend *f);

/* Waits until the session is ready: 0, or -ENOLINK where the device failed. */
int vhost_frontend_wait(VhostFrontend *f);

/* Virtio features that the device can have under this transport. */
uint64_t vhost_frontend_features(VhostFrontend *f);
unsigned vhost_frontend_n_queues(const VhostFrontend *f);
VhostQueue *vhost_frontend_queue(VhostFrontend *f, unsigned index);

/* Device configuration space; beyond its end there are zeroes. Reads come from a copy that is refreshed after a change; each
 * refreshment that finds another content counts the generation up (virtio 1.2, 2.5.1). */
void vhost_frontend_config_read(VhostFrontend *f, uint32_t offset, void *data, uint32_t size);
unsigned vhost_frontend_config_generation(VhostFrontend *f);
int vhost_frontend_config_write(VhostFrontend *f, uint32_t offset, const void *data, uint32_t size);

/* The driver said DRIVER_OK: gives the helper memory, features and the queues enabled now. -EINVAL where a queue does not lie in guest
 * memory as it should; -EPROTONOSUPPORT where the features are not the device's; -ENOLINK where the helper is gone for good. */
int vhost_frontend_activate(VhostFrontend *f, uint64_t features);
/* The driver reset the device: the helper has let go of every ring when this returns. */
void vhost_frontend_deactivate(VhostFrontend *f);
