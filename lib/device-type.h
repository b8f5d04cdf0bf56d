/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The table of device types: what a machine definition may say about each, and what the rest of the suite must know of it
 * without knowing the device. The generator, the schema test, vmmd's front-end and the manual all read this one
 * table; a new device type is one entry here and one file under vmm-device@/. */

#include "util.h"

/* How vmmd talks to the helper (ARCHITECTURE.md, "Four planes"). */
typedef enum DeviceTransport {
        DEVICE_TRANSPORT_VHOST_USER, /* queues: socket /run/vmm/MACHINE/DEVICE.vhost-user */
        DEVICE_TRANSPORT_BUS,        /* registers: synchronous bus protocol on /run/vmm/MACHINE/DEVICE.bus */
} DeviceTransport;

typedef enum DeviceOptionKind {
        DEVICE_OPTION_BOOLEAN,
        DEVICE_OPTION_UNSIGNED, /* integer within [minimum, maximum]; where `values` is set, one of these */
        DEVICE_OPTION_SIZE,     /* bytes: integer, or string with K, M, G, T suffix (base 1024) */
        DEVICE_OPTION_STRING,   /* at most `maximum` bytes */
        DEVICE_OPTION_ENUM,     /* one of `values` */
        DEVICE_OPTION_PATH,     /* absolute and normalized; a hole in the helper's sandbox, see `access` */
} DeviceOptionKind;

typedef enum DevicePathAccess {
        DEVICE_PATH_READ,       /* existing file or device node, read-only */
        DEVICE_PATH_WRITE,      /* existing file or device node, read-write unless the device's `readOnly` is true */
        DEVICE_PATH_APPEND_LOG, /* file that the helper appends to; created by the unit where missing */
} DevicePathAccess;

typedef struct DeviceOption {
        const char *name; /* camelCase, as in the definition; the helper's command line has --kebab-case=VALUE */
        DeviceOptionKind kind;
        bool required;
        uint64_t minimum, maximum;
        const char *const *values; /* NULL-terminated, for DEVICE_OPTION_ENUM and DEVICE_OPTION_UNSIGNED */
        DevicePathAccess access;   /* for DEVICE_OPTION_PATH */
        const char *description;   /* one line, for --help and the schema */
        bool for_vmmd;             /* read by vmmd (e.g. `root`), not passed to the helper */
} DeviceOption;

typedef struct DeviceType {
        const char *name;          /* the definition's "type" */
        DeviceTransport transport;
        uint16_t virtio_id;        /* virtio 1.2 §5; 0 for a bus device */
        uint32_t pci_class;        /* class code, subclass and interface, e.g. 0x018000 */
        unsigned queues_default;   /* virtqueues without any option; */
        unsigned queues_max;       /* and the most any option can lead to */
        const DeviceOption *options; /* ends with an entry whose name is NULL */
        const char *description;   /* a noun, as in "Disk 'root' of machine demo" */
} DeviceType;

/* Every type, ordered by name; the array ends with an entry whose name is NULL. */
extern const DeviceType device_types[];

const DeviceType *device_type_find(const char *name);
const DeviceOption *device_type_find_option(const DeviceType *type, const char *name);
/* "read-only" for "readOnly": as which option the helper gets it. The caller frees it; NULL when out of memory. */
char *device_option_argument_name(const char *name);
