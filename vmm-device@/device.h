/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The seam between the frame of a helper and a virtio device.
 *
 * A device is one const DeviceClass in one file. The frame owns the session with the front-end, the rings, the event loop and the
 * sandbox; the device sees descriptor chains as cursors (virtqueue.h), never addresses, and one Device handle. All of its functions run in the frame's
 * one event-loop thread.
 *
 * States: *suspended* is the first one and where stop() leads. start() is called when the front-end has enabled the rings; after
 * stop() returns, nothing of the device touches guest memory any more and no request is half done. */

#include <systemd/sd-event.h>

#include "state.h"
#include "util.h"
#include "virtqueue.h"

typedef struct Device Device;
typedef struct DeviceClass DeviceClass;
typedef struct json_object json_object;
typedef struct VarlinkCall VarlinkCall;
struct VarlinkMethod;

/* A method of io.vmmd.Device that only some types of device have. The table ends with an entry whose method is NULL. */
typedef struct DeviceControl {
        const char *method; /* without the interface: "OpenConsole" */
        /* Like a VarlinkCallback (varlink/server.h). */
        int (*call)(Device *d, VarlinkCall *call, json_object *parameters);
        bool privileged;    /* only for root, our own user and the access group */
} DeviceControl;

struct DeviceClass {
        const char *name;      /* the type's name, as in device-type.h */
        uint16_t virtio_id;    /* virtio 1.2 §5 */
        uint64_t features;     /* the most this device can offer; open() may take some away (device_set_features()) */
        unsigned queues_max;
        size_t config_size;    /* bytes of device-specific configuration space, at most 256 */
        const char *policy;    /* name of its seccomp policy under policy/ */
        bool needs_all_memory; /* it is not to be started while guest memory is still to come */

        /* Opens host resources named by the options (`--name=value`, already split; see device_option()). Before the seccomp policy is loaded. Says
         * what is wrong by log_error_errno(). */
        int (*open)(Device *d);
        /* Serves a listening socket of the device's own, /run/vmm/MACHINE/NAME.vsock, and owns it from then on, also on error. Before the seccomp policy is loaded.
         * Not called where there is none; NULL where the device has no use for one. */
        int (*listen)(Device *d, int fd);
        /* The rings are ready: features are negotiated, memory is mapped. */
        int (*start)(Device *d);
        /* Finish or cancel every request and return only then. */
        void (*stop)(Device *d);
        /* The driver has reset the device, after stop(): what it told us holds no more. Not called where the front-end only pauses the device or
         * hangs up. NULL where nothing is kept. */
        void (*reset)(Device *d);
        /* The guest kicked queue `index` (or it has just been enabled). Drain it. -EBADMSG breaks the device
         * (the frame reports NEEDS_RESET, with virtqueue_error() as reason unless device_broken() gave one); other negative
         * errnos end the helper. A positive value: it stopped early to let others have their turn, and is called again soon. */
        int (*process)(Device *d, unsigned index);
        /* Device configuration space, at most config_size bytes; offset and length are already checked. config_write
         * may be NULL (read-only configuration). */
        void (*config_read)(Device *d, uint32_t offset, void *data, uint32_t length);
        int (*config_write)(Device *d, uint32_t offset, const void *data, uint32_t length);
        /* What the guest knows of the device, or has told it, that another helper of that kind would not know: for a snapshot, and after stop(). Whole sections.
         * load() is called before the first start(): what it reads is somebody's, thus hostile, and it says what does not fit. NULL where there is nothing. */
        int (*save)(Device *d, StateWriter *w);
        int (*load)(Device *d, StateReader *r, char **ret_message);
        /* Releases what open() took. Works after a failed open(), too. */
        void (*close)(Device *d);

        /* Control plane: adds what io.vmmd.Device.Describe shows; and the Varlink methods beyond the frame's own, NULL where none. */
        void (*describe)(Device *d, json_object *into);
        const DeviceControl *control;
        /* Adds to what GetCounters shows: integers that only grow. */
        void (*counters)(Device *d, json_object *into);
        /* An interface of its own, NULL where none: its text (varlink/interfaces.h) and methods, whose userdata is the Device. */
        const char *interface;
        const struct VarlinkMethod *methods;

        /* A device of registers instead of queues (virtio_id 0): served on the `.bus` socket by bus-server.h, which
         * uses this, open, close, describe and control, and none of the other functions. NULL for a virtio device.
         * The frame passes the Device as bus_server_new()'s userdata. */
        const struct BusDevice *bus;

        /* A device that another project's program is, our child (foreign.h), which uses this one and the functions that a device of registers has. */
        const struct ForeignClass *foreign;
};

/* For the device. */
void *device_data(Device *d);                    /* what device_set_data() stored */
void device_set_data(Device *d, void *data);
sd_event *device_event(Device *d);               /* for the device's own sources (timers, pty, io_uring's eventfd) */
const char *device_option(Device *d, const char *name); /* "path" of --path=VALUE, or NULL */
bool device_option_boolean(Device *d, const char *name, bool otherwise);
uint64_t device_option_unsigned(Device *d, const char *name, uint64_t otherwise);
/* The values of a list, in their order; none is NULL and *ret_n 0. */
const char *const *device_option_list(Device *d, const char *name, size_t *ret_n);
/* Opens the file that an option names: the descriptor of that name which the service manager holds for us, where there is one (its access mode
 * is what the unit says, `flags` do not change it), else the option's value. Returns the fd, -ENOENT where neither
 * is there, or a negative errno. For open() only, since it precedes the sandbox. */
int device_open_path(Device *d, const char *name, int flags);
/* The same for the element `i` of a list of paths (DEVICE_OPTION_PATHS). */
int device_open_path_of(Device *d, const char *name, size_t i, int flags);
/* The descriptors that were passed to the helper for an option, at most `max` of them, the caller's from then on; returns how many. For open() only. */
unsigned device_take_passed(Device *d, const char *name, int *ret_fds, unsigned max);
/* Whether the helper runs in a unit, where what it needs was opened before it started. */
bool device_is_managed(Device *d);
/* A few bytes that outlive this process, shared memory in the unit's descriptor store under `name`: 1 where they are a predecessor's, 0
 * where they are new (zeroes), or a negative errno. Without a service manager they are ordinary memory. They are never unmapped. For open() only. */
int device_keep(Device *d, const char *name, size_t size, void **ret);
/* The descriptors themselves (passed.h), for what keeps more than one. For open() only, but that they may be kept and forgotten later on. */
struct PassedFds *device_passed(Device *d);
/* The frame adds VIRTIO_F_VERSION_1, the ring features and VHOST_USER_F_PROTOCOL_FEATURES by itself. */
void device_set_features(Device *d, uint64_t features);
uint64_t device_features(Device *d);             /* negotiated, once started */
unsigned device_n_queues(Device *d);             /* queues the front-end has enabled, once started */
void device_set_n_queues(Device *d, unsigned n); /* in open(): how many this instance offers */
Virtqueue *device_queue(Device *d, unsigned index); /* NULL where not enabled */
/* Whether it is started and not broken: else an event of the device's own must leave its queues alone. */
bool device_is_running(Device *d);
/* Guest memory, for a device whose business it is; NULL while the front-end has given none. */
const GuestMemory *device_memory(Device *d);
/* Tells the front-end that the configuration space changed (vhost-user BACKEND_CONFIG_CHANGE_MSG). */
void device_config_changed(Device *d);
/* The guest broke the rules: no further request is taken until the driver resets the device. */
void device_broken(Device *d, const char *format, ...) _printf_(2, 3);
/* The bus server of a register device, for bus_server_interrupt(). There from the first access on; NULL again in close(). */
struct BusServer *device_bus(Device *d);

extern const DeviceClass balloon_device;
extern const DeviceClass block_device;
extern const DeviceClass console_device;
extern const DeviceClass fs_device;
extern const DeviceClass input_device;
extern const DeviceClass net_device;
extern const DeviceClass passt_device;
extern const DeviceClass plugin_device;
extern const DeviceClass pmem_device;
extern const DeviceClass rng_device;
extern const DeviceClass serial_device;
extern const DeviceClass storage_device;
extern const DeviceClass vhost_user_device;
extern const DeviceClass vsock_device;
