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
        DEVICE_TRANSPORT_PLUGIN,     /* all of a machine's hardware: plugin-link.h on /run/vmm/MACHINE/plugin.plugin */
} DeviceTransport;

typedef enum DeviceOptionKind {
        DEVICE_OPTION_BOOLEAN,
        DEVICE_OPTION_UNSIGNED, /* integer within [minimum, maximum]; where `values` is set, one of these */
        DEVICE_OPTION_SIZE,     /* bytes: integer, or string with K, M, G, T suffix (base 1024) */
        DEVICE_OPTION_STRING,   /* at most `maximum` bytes */
        DEVICE_OPTION_ENUM,     /* one of `values` */
        DEVICE_OPTION_PATH,     /* absolute and normalized; a hole in the helper's sandbox, see `access` */
        DEVICE_OPTION_DIRECTORY, /* the same of a directory */
        DEVICE_OPTION_INTERFACE, /* name of a tap or macvtap, which the unit opens for the helper, one queue for each queue pair */
        DEVICE_OPTION_STRINGS,  /* array of one to DEVICE_OPTION_LIST_MAX strings, each as for DEVICE_OPTION_STRING; to the helper --NAME=VALUE each */
        DEVICE_OPTION_PATHS,    /* array of paths, each as for DEVICE_OPTION_PATH; opened for the helper as NAME-0, NAME-1, … */
} DeviceOptionKind;

#define DEVICE_OPTION_LIST_MAX 32

typedef enum DevicePathAccess {
        DEVICE_PATH_READ,       /* existing file, device node or directory, read-only */
        DEVICE_PATH_WRITE,      /* existing file, device node or directory, read-write unless the device's `readOnly` is true */
        DEVICE_PATH_APPEND_LOG, /* file that the helper appends to; created by the unit where missing */
} DevicePathAccess;

typedef struct DeviceOption {
        const char *name; /* camelCase, as in the definition; the helper's command line has --kebab-case=VALUE */
        DeviceOptionKind kind;
        bool required;
        uint64_t minimum, maximum;
        const char *const *values; /* NULL-terminated, for DEVICE_OPTION_ENUM and DEVICE_OPTION_UNSIGNED */
        DevicePathAccess access;   /* for DEVICE_OPTION_PATH */
        bool (*is_valid)(const char *value); /* for strings that have to look like something: NULL, or */
        const char *pattern;       /* the same as a regular expression, for the schema; */
        const char *expected;      /* and in words, for people */
        const char *description;   /* one line, for --help and the schema */
        bool for_vmmd;             /* read by vmmd (e.g. `root`), or by whoever makes the unit (`user`), and not passed to the helper */
        const char *not_attached;  /* values that a device which is attached to a running machine cannot have, "a|b", or "*" for any: they take a unit of its own */
        bool bound;                /* paths that are to be seen in the helper's sandbox, and not opened for it */
        bool vmmd_opens;           /* a path that is opened for vmmd, too, as "DEVICE.OPTION" */
        /* Where the option is allowed, and where it has to be given; NULL is everywhere, and nowhere. "format=qcow2|luks": another option of the type, an
         * enum whose first value stands for an absent one, or a boolean ("true", "false", which is what an absent one is), has one of the values. */
        const char *only_where, *required_where;
        unsigned elements_max;     /* of a list, where that is less than DEVICE_OPTION_LIST_MAX */
} DeviceOption;

typedef struct DeviceType {
        const char *name;          /* the definition's "type" */
        DeviceTransport transport;
        uint16_t virtio_id;        /* virtio 1.2 §5; 0 for a bus device */
        uint32_t pci_class;        /* class code, subclass and interface, e.g. 0x018000 */
        unsigned queues_default;   /* virtqueues without any option; */
        unsigned queues_max;       /* and the most any option can lead to */
        bool queues_in_pairs;      /* the option queuePairs leads to two for each, and one more for control */
        bool queues_by_port;       /* each name in the option ports leads to two, and one or more to two for control */
        bool attachable;           /* to a running machine, by the helper of a spare slot (io.vmmd.Slot) */
        const DeviceOption *options; /* ends with an entry whose name is NULL */
        const char *description;   /* a noun, as in "Disk 'root' of machine demo" */
} DeviceType;

/* Named ports of a console: with its own two queues and two for control they make 64. */
#define DEVICE_PORTS_MAX 30

/* Every type, ordered by name; the array ends with an entry whose name is NULL. */
extern const DeviceType device_types[];

/* The plugin of a machine, the definition's key "plugin". It is none of device_types: it stands for all devices at once. */
extern const DeviceType plugin_type;

const DeviceType *device_type_find(const char *name);
/* Whether the option is an array in the definition, and may be several times on the helper's command line. */
bool device_option_is_list(const DeviceOption *option);
/* Whether `condition` (of only_where or required_where) holds where the option that it names has `value` (NULL: is absent). */
bool device_condition_holds(const DeviceType *type, const char *condition, const char *value);
/* Whether a device that is attached to a running machine may have that. */
bool device_option_is_attachable(const DeviceOption *option, const char *value);
/* The option that a condition is about; never NULL. */
const DeviceOption *device_condition_option(const DeviceType *type, const char *condition);
const DeviceOption *device_type_find_option(const DeviceType *type, const char *name);
/* "read-only" for "readOnly": as which option the helper gets it. The caller frees it; NULL when out of memory. */
char *device_option_argument_name(const char *name);
