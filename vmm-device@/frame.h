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
typedef struct SessionKeep SessionKeep;
typedef struct DeviceTransfer DeviceTransfer;

/* One virtqueue, from the front-end's first word about it. */
typedef struct Ring {
        Session *session;
        uint16_t num;                /* 0: not told yet */
        uint16_t base;
        bool have_address;
        bool may_wait; /* for memory that was taken away and is to come again */
        bool resumed;  /* a predecessor served it: where it is now, the used ring says */
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
        struct PassedFds *passed;
        uint64_t features; /* offered */
        unsigned n_queues; /* offered */
        Session *session;  /* NULL where no front-end is connected */
        char *machine, *name; /* from the sockets' paths; NULL where those do not say */
        struct BusServer *bus; /* of a register device */
        struct Relay *relay;   /* of a foreign one: its front-end's connection, NULL where there is none */
        bool keeps_sessions;   /* there is a socket by which the next front-end comes, and so a successor of ours can be had */
        void (*session_ended)(Device *d);
        void *owner;
        void (*changed)(void *userdata); /* its state may be another now */
        void *changed_userdata;
};

/* postcopy.h */
typedef struct Postcopy {
        int uffd, leash; /* -EBADF where it was not advised of */
        bool listening;  /* memory may be missing */
        bool unanswered; /* the front-end was told where memory is, and has not taken note yet: nobody is to touch it */
} Postcopy;

/* What lives as long as a connection of a front-end. */
struct Session {
        Device *device;
        int fd;
        sd_event_source *source;
        VhostUserReceiver receiver;
        uint64_t features, protocol_features; /* negotiated */
        GuestMemory memory;
        Postcopy postcopy;
        Inflight inflight;
        Ring *rings; /* device->n_queues */
        int backend_fd;
        uint8_t status;
        bool broken;
        char *reason; /* why it is broken; NULL where out of memory */
        bool started; /* class->start() was called */
        sd_event_source *update_source;
        SessionKeep *keep; /* session-keep.h; NULL where nothing is kept */
        LogRateLimit complaints;
        DeviceTransfer *transfer; /* of the device's state; NULL where none is under way */
};

/* frame.c: the Device handle */
int device_new(const DeviceClass *class, const DeviceType *type, sd_event *event, struct DeviceOptions *options, struct PassedFds *passed,
        Device **ret);
Device *device_free(Device *d); /* closes the device, ends its session */
DEFINE_CLEANUP(Device, device_free)
uint64_t device_offered_features(const Device *d);
/* Whoever watches the device's state is to look at it again. */
void device_changed(Device *d);
/* The session begins anew after it was broken. */
void session_mend(Session *s);
/* Reports NEEDS_RESET; see device_broken(). */
void session_break(Session *s, const char *reason);

/* session.c: takes ownership of `fd`, also on error. */
int session_new(Device *d, int fd);
/* The same, for one that a predecessor began. */
int session_make(Device *d, int fd, Session **ret);
uint64_t session_protocol_features(const Device *d);
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
/* The rings that a predecessor served, where nobody has come to them yet: before the front-end says anything of them, which is of where they are now. */
int rings_take_up(Session *s);

/* device-state.c: begins to write the device's state, or to read it; *ret_fd, the caller's, is for the front-end. -EINVAL where the device is not suspended. */
int device_transfer_begin(Session *s, uint32_t direction, uint32_t phase, int *ret_fd);
/* How that went. It is over then, in any case. */
int device_transfer_check(Session *s);
DeviceTransfer *device_transfer_free(DeviceTransfer *t);
