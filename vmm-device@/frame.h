/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside the frame of a helper: what main.c, frame.c, session.c, rings.c and control.c share. Device files see device.h only. */

#include "device.h"
#include "device-type.h"
#include "guest-memory.h"
#include "inflight.h"
#include "log.h"
#include "vhost-user.h"

typedef struct Session Session;

/* One virtqueue, from the front-end's first word about it. */
typedef struct Ring {
        Session *session;
        uint16_t num;                /* 0: not told yet */
        uint16_t base;
        bool have_address;
        struct vhost_vring_addr address;
        int kick_fd, call_fd, err_fd;
        bool enabled;
        Virtqueue *queue;            /* only while the ring is served */
        sd_event_source *kick_source;
        sd_event_source *again_source; /* the device stopped early and wants to go on */
} Ring;

struct Device {
        const DeviceClass *class;
        const DeviceType *type;
        sd_event *event;
        void *data;
        struct DeviceOptions *options;
        uint64_t features; /* offered */
        unsigned n_queues; /* offered */
        Session *session;  /* NULL where no front-end is connected */
        char *machine, *name; /* from the sockets' paths; NULL where those do not say */
        struct BusServer *bus; /* of a register device */
        void (*session_ended)(Device *d);
        void *owner;
};

/* What lives as long as a connection of a front-end. */
struct Session {
        Device *device;
        int fd;
        sd_event_source *source;
        VhostUserReceiver receiver;
        uint64_t features, protocol_features; /* negotiated */
        GuestMemory memory;
        Inflight inflight;
        Ring *rings; /* device->n_queues */
        int backend_fd;
        uint8_t status;
        bool broken;
        bool started; /* class->start() was called */
        sd_event_source *update_source;
        LogRateLimit complaints;
};

/* frame.c: the Device handle */
int device_new(const DeviceClass *class, const DeviceType *type, sd_event *event, struct DeviceOptions *options, Device **ret);
Device *device_free(Device *d); /* closes the device, ends its session */
DEFINE_CLEANUP(Device, device_free)
uint64_t device_offered_features(const Device *d);
/* Reports NEEDS_RESET; see device_broken(). */
void session_break(Session *s, const char *reason);

/* session.c: takes ownership of `fd`, also on error. */
int session_new(Device *d, int fd);
Session *session_free(Session *s);
/* Frees the session and tells the device's owner, who waits for the next one. */
void session_end(Session *s);
void session_send_config_change(Session *s);

/* rings.c: from what the front-end said to rings that are served. */
int rings_new(Session *s);
void rings_free(Session *s);
bool ring_is_served(const Ring *ring);
/* Stops the device: no request is in progress and guest memory is not touched. Its rings can be taken away then. */
void rings_suspend(Session *s);
/* Suspends and takes one ring out of service; its base is kept in ring->base. */
void ring_withdraw(Session *s, unsigned index);
void rings_withdraw_all(Session *s);
/* Back to the state before the front-end's first word about rings; eventfds for interrupts and errors stay. */
void rings_reset(Session *s);
/* A front-end without SET_STATUS and RESET_DEVICE passes on a driver's reset by stopping all rings: a broken device begins anew then. */
void rings_heal_when_stopped(Session *s);
/* Brings into service what is complete, once the messages that have arrived are handled. */
void rings_update_later(Session *s);
