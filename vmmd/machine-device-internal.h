/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a device is made of, for those that make devices (machine-device.c) and those that bring and take them while the machine runs (hotplug.c). */

#include "bus-client.h"
#include "device-link.h"
#include "machine-device.h"
#include "virtio-pci.h"

struct MachineDevice {
        unsigned n_ref;
        Machine *machine;
        const DeviceDefinition *definition;
        MachineDefinition *attached; /* what holds the definition of a device that was attached; NULL for one of the machine's definition */
        unsigned slot;   /* of an attached device: which spare unit serves it */
        unsigned number; /* less than MACHINE_DEVICES_MAX, and of no other device that is there */
        char *path; /* of the socket that vmmd connects to */

        /* vhost-user */
        VhostFrontend *frontend;
        VirtioPci *virtio;
        atomic_bool idle; /* off the bus, and no vCPU inside */

        /* bus */
        BusClient *bus;
        int irq_fd;
        unsigned irq_gsi;
        bool irq_connected;
        sd_event_source *bus_source, *bus_retry;
        uint64_t bus_grace_ends_usec; /* 0 while it was not served yet */
        uint64_t bus_patience_ends_usec; /* until then a socket that is not there may come */
        char *bus_error;
        bool bus_failed;

        DeviceLink *link;
        DeviceState state_told;
        bool lost;    /* that its helper went away was told, but not yet that it is back */
        pid_t helper_pid; /* of the one that was told of last; 0 where that has gone since */
        unsigned resumed; /* how often a helper took up its predecessor's session by itself */
        bool failure_reported; /* and nothing came of it since */
        bool failed; /* that it failed for good was told, but not yet that it is back */
        unsigned reconnects_told, reconnects;
        char *last_error;
        uint64_t last_error_usec;
};

/* A device that is not in the machine's list, with one reference; `attached` (which it takes over, also on error) is NULL for one of the machine's definition. Nothing is
 * connected yet. */
int machine_device_new(Machine *m, const DeviceDefinition *definition, MachineDefinition *attached, unsigned slot, MachineDevice **ret,
        char **ret_message);
/* Puts it into the list, which takes over the reference / out of it, which gives it back. Not while helpers are made to do something. */
int machine_device_add(MachineDevice *d);
void machine_device_remove(MachineDevice *d);
/* Puts its PCI function into that slot; -1 is the first that is free. */
int machine_device_plug(MachineDevice *d, int slot, char **ret_message);
/* Lets the bus device's signals through, or not for now. */
int machine_device_connect_irq(MachineDevice *d, bool connect);
/* Watches the bus device's connection. */
int machine_device_watch_bus(MachineDevice *d);
/* Ends its sessions, for good. Does not wait. */
void machine_device_abort(MachineDevice *d);
/* Frees what a guest could see of it, and its session. No vCPU is at it any more. Only what was said of it stays for those who hold references. */
void machine_device_release(MachineDevice *d);
/* Makes the session of a device that had failed anew. */
void machine_device_heal(MachineDevice *d);
/* Notices when sockets of devices that failed come back. */
void machine_devices_watch_sockets(Machine *m);
/* Tells observers. */
void machine_device_tell(MachineDevice *d, MachineDeviceChange change, const char *reason);
