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
#include "handover.h"
#include "restore-memory.h"
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
        /* A back-end that keeps no log of its requests died while there were some: the rings wait for the driver to reset the device. On the event loop's
         * thread. */
        void (*lost)(void *userdata);
        void *userdata;
} VhostFrontendHandlers;

/* `name` is for messages; `path` the back-end's socket; `memory` must outlive the front-end. */
int vhost_frontend_new(const char *name, const char *path, uint16_t virtio_id, unsigned n_queues,
        const GuestMemory *memory, const VhostFrontendHandlers *handlers, VhostFrontend **ret);
/* Before it is started: how many bytes of configuration space to ask for, where that is not what the specification says for its kind. */
void vhost_frontend_set_config_size(VhostFrontend *f, uint32_t size);
VhostFrontend *vhost_frontend_free(VhostFrontend *f);
DEFINE_CLEANUP(VhostFrontend, vhost_frontend_free)

/* Ends the session for good and wakes everybody who waits for it. Any thread; does not wait for the helper. */
void vhost_frontend_abort(VhostFrontend *f);

/* Configuration space that is ours to know: the helper is not asked for any. Before it is started. */
void vhost_frontend_set_config(VhostFrontend *f, const void *data, uint32_t size);

/* Begins to connect; from now on state_changed is called. */
int vhost_frontend_start(VhostFrontend *f);
/* The session, for the successor of this process, who goes on with it instead of starting one: the helper does not notice. Not while one is being made (-EBUSY).
 * `instance` is the device's number. */
int vhost_frontend_hand_over(VhostFrontend *f, uint32_t instance, Handover *h);
int vhost_frontend_take_over(VhostFrontend *f, uint32_t instance, Handover *h, char **ret_message);
/* One that failed is tried again, the rings being what they were. On the loop's thread; does nothing in any other state. */
int vhost_frontend_retry(VhostFrontend *f);
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

/* The machine is paused with its devices: the helper finishes what it has begun, lets go of every ring, and when this returns touches guest memory no
 * more, until it is given the rings again as they were. A successor of a helper that dies meanwhile waits, too, as does one that had failed and comes back. Both wait for
 * the helper. */
void vhost_frontend_suspend(VhostFrontend *f);
void vhost_frontend_resume(VhostFrontend *f);

/* Chains that a helper which died had taken, and that its successor had not come to: of each queue, their heads in the order in which they were taken. */
typedef struct VhostInFlight {
        uint16_t *heads[VHOST_FRONTEND_QUEUES_MAX];
        uint16_t n[VHOST_FRONTEND_QUEUES_MAX];
} VhostInFlight;

/* What of a device goes into a snapshot beside its registers. */
typedef struct VhostSnapshot {
        bool active;       /* a driver was at work in it */
        uint64_t features; /* that it had chosen; else 0 */
        unsigned n_queues;
        uint16_t bases[VHOST_FRONTEND_QUEUES_MAX];
        VhostInFlight in_flight;
        void *state;       /* of the helper */
        size_t state_size;
} VhostSnapshot;
void vhost_snapshot_done(VhostSnapshot *s);
/* Of a device that was suspended. Waits for the helper. -EOPNOTSUPP where it keeps its state to itself; the message says what went wrong. */
int vhost_frontend_save(VhostFrontend *f, VhostSnapshot *ret, char **ret_message);
/* Whether that could be asked for: does not wait, so the session has to be ready. */
bool vhost_frontend_can_save(VhostFrontend *f);
/* Gives the helper its state. The driver is as at power-on yet. Waits for the helper; where anything does not fit, the message says what. */
int vhost_frontend_restore(VhostFrontend *f, const VhostSnapshot *from, char **ret_message);
/* The registers are those of the snapshot by now: the device is active again, and suspended; it is resumed like any such. -EINVAL where a queue does not lie in guest memory as it
 * should. Does not wait. */
int vhost_frontend_restored(VhostFrontend *f, const VhostSnapshot *from);
/* Guest memory is not all there yet: whatever driver comes, the device is suspended from the beginning, also where it is resumed, until it is released. */
void vhost_frontend_hold(VhostFrontend *f);
/* What is missing comes from `pages`: a helper that can have it one by one (vhost-postcopy.h) is held no longer. `device` is of /dev/userfaultfd; both stay
 * the caller's, and are used until the device is released, or freed. */
void vhost_frontend_serve_pages(VhostFrontend *f, RestoreMemory *pages, int device);
/* Whether what a driver has set up waits for memory. */
bool vhost_frontend_is_held(VhostFrontend *f);
/* Memory is all there, or no driver is at work. What is suspended stays that until it is resumed. Waits for the helper, where a driver is at work. */
void vhost_frontend_release(VhostFrontend *f);
