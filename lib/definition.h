/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A machine's definition: vmm.machine(5). JSON with comments, found as NAME.json in /etc/vmm, /run/vmm/machines,
 * /usr/lib/vmm/machines (the first that exists wins), with NAME.json.d/ drop-ins of all three merged over it in the order of their
 * file names. A definition is taken whole or refused whole. */

#include <json-c/json.h>

#include "device-type.h"
#include "util.h"

#define MACHINE_NAME_MAX 48
#define DEVICE_NAME_MAX 32
#define MACHINE_DEVICES_MAX 64
#define MACHINE_VCPUS_MAX 1024
/* With two pieces of RAM they are as many regions of memory as a helper can be told of. */
#define MACHINE_PMEM_MAX 6
/* Spare devices, for what is attached to the running machine: named "slot0" and on, which no device of the definition can be. */
#define MACHINE_HOTPLUG_SLOTS_MAX 16
#define MACHINE_HOTPLUG_SLOTS_DEFAULT 4
#define MACHINE_SLOT_PREFIX "slot"
/* Slots 1 to 30 of PCI bus 0; 0 is the host bridge, 31 is vmmd's own. */
#define MACHINE_PCI_DEVICES_MAX 30
/* Two pipes each, whose ends a plugin gets with one message: 253 descriptors are what fits (SCM_MAX_FD). */
#define MACHINE_PLUGIN_VCPUS_MAX 126
#define MACHINE_MEMORY_MIN MIB(16)
#define MACHINE_MEMORY_MAX (GIB(1024) * 16)
#define MACHINE_STOP_TIMEOUT_MAX (UINT64_C(24) * 3600 * USEC_PER_SEC)
/* By which name the overlay of the device tree is passed, beside files of devices: no device's can have it. */
#define MACHINE_OVERLAY_FILE ".deviceTreeOverlay"
/* The kernel's COMMAND_LINE_SIZE of x86 and arm64, without the NUL. */
#define MACHINE_COMMAND_LINE_MAX 2047
/* All SMBIOS type 11 strings together, with their NULs; and how many (SMBIOS 3.x §7.12: the count is a byte). */
#define MACHINE_SMBIOS_BYTES_MAX ((size_t) KIB(48))
#define MACHINE_SMBIOS_STRINGS_MAX 255

typedef enum OnReboot { ON_REBOOT_RESET, ON_REBOOT_STOP } OnReboot;
typedef enum OnPanic { ON_PANIC_STOP, ON_PANIC_RESET, ON_PANIC_PAUSE } OnPanic;
/* When vmm@ counts as started: when the guest runs, or when it says that it is ready. */
typedef enum ReadyWhen { READY_WHEN_STARTED, READY_WHEN_GUEST } ReadyWhen;
typedef enum OnDeviceFailure { ON_DEVICE_FAILURE_CONTINUE, ON_DEVICE_FAILURE_STOP } OnDeviceFailure;
typedef enum OnFailure { ON_FAILURE_STOP, ON_FAILURE_RESTART } OnFailure;

typedef struct DeviceDefinition {
        char *name;             /* its key under "devices" */
        const DeviceType *type;
        json_object *options;   /* checked and normalized: sizes and times are integers; holds a reference */
} DeviceDefinition;

typedef struct MachineDefinition {
        char *name;
        uint64_t memory;         /* bytes; default 256 MiB. 0 with a plugin, which has memory of its own */
        uint64_t huge_page_size; /* bytes; 0 is normal pages */
        bool prefault;
        unsigned vcpus;          /* default 1 */
        unsigned hotplug_slots;  /* how many devices can be attached while it runs; default 4 */
        char *kernel;            /* absolute path; required, but with a plugin NULL */
        char *initrd;            /* absolute path or NULL */
        char *device_tree_overlay; /* absolute path or NULL; of 64-bit Arm */
        char *command_line;      /* never NULL; as in the definition, see machine_definition_command_line() */
        OnReboot on_reboot;      /* default reset */
        OnPanic on_panic;        /* default stop */
        OnDeviceFailure on_device_failure; /* default continue */
        OnFailure on_failure; /* of vmmd itself; default stop */
        ReadyWhen ready_when;    /* default started */
        bool guest_notifies;     /* the guest is told to tell its vsock device when it is ready */
        uint64_t stop_timeout_usec; /* from the power button to the end; default 90 s, with a plugin 1 s */
        char *owner;             /* user that may change the running machine, or NULL */
        char *access_group;      /* group that may change the running machine, or NULL */
        char *read_group;        /* group that may look at it, or NULL for vmm-read */
        char **smbios_strings;   /* SMBIOS type 11, NULL-terminated; NULL where none. "credentials" become such strings too */
        DeviceDefinition *devices; /* in the order of the definition, which is also the PCI order */
        size_t n_devices;
        const DeviceDefinition *plugin; /* NULL, or all of the machine's hardware: then it is also its only device */
        json_object *json;       /* the merged definition this was made from; holds a reference */
} MachineDefinition;

/* One thing that is wrong, in a form fit for a person: "FILE:LINE: /devices/root/path: found 5, expected a string …". */
typedef struct DefinitionError {
        char *file;
        unsigned line;  /* 1-based; 0 where the error has no line (a missing file) */
        char *pointer;  /* RFC 6901 JSON pointer; "" is the whole document */
        char *found;    /* what stood there */
        char *expected; /* what was expected */
} DefinitionError;
void definition_error_done(DefinitionError *error);
/* The one-line form; the caller frees it. NULL when out of memory. */
char *definition_error_to_string(const DefinitionError *error);

/* Whether the name can name a machine / a device: [A-Za-z0-9] first, then also . _ - ; bounded as above. */
bool machine_name_is_valid(const char *name);
bool device_name_is_valid(const char *name);
/* Whether it is a slot's: "slot" and digits only. No device can have it. */
bool device_name_is_slot(const char *name);

/* Finds, merges, and checks the definition of `name`. `root` is a prefix for all paths that are searched (NULL or "" is none; for
 * tests and `vmmctl --root`). Returns 0, -ENOENT where no such definition exists, -EBADMSG with *ret_error filled where it is
 * wrong, or another negative errno. */
int definition_load(const char *root, const char *name, MachineDefinition **ret, DefinitionError *ret_error);

/* The same for one file, taken as it is, without drop-ins: `vmmctl verify FILE`. The machine's name is `name`, or the file name
 * without .json where that is NULL. */
int definition_load_file(const char *path, const char *name, MachineDefinition **ret, DefinitionError *ret_error);

/* The same for a text in memory (`file` is how errors call it): what the generator hands to vmmd on standard input. */
int definition_parse(const char *text, size_t size, const char *file, const char *name, MachineDefinition **ret,
        DefinitionError *ret_error);

/* Names of all definitions, sorted, NULL-terminated; the caller frees each and the array. */
int definition_list(const char *root, char ***ret);

/* Files in the same places that end in .json, but whose name cannot name a machine: somebody should be told. Format as above, whole paths. */
int definition_list_misnamed(const char *root, char ***ret);

/* Frees a NULL-terminated array and its strings. Takes NULL, returns NULL. */
char **string_array_free(char **array);
/* Appends the string to such an array, of `n` strings, which grows; NULL where it has none yet. Takes the string, also on error; a NULL is one that there was no
 * memory for: -ENOMEM, and the array is as it was. */
int string_array_add(char ***array, size_t *n, char *s);
DEFINE_CLEANUP(char *, string_array_free)

/* Every file that definition_load() reads for `name` (main file first, then drop-ins), NULL-terminated. For "is it newer than its units". */
int definition_files(const char *root, const char *name, char ***ret);

MachineDefinition *machine_definition_free(MachineDefinition *definition);
DEFINE_CLEANUP(MachineDefinition, machine_definition_free)

/* The whole kernel command line: the definition's own, then console=ttyS… of each serial port, console=hvc… of each console (the
 * last one becomes /dev/console) and root=/dev/vd… ro|rw of the disk marked `root`. Where the definition's own has a console= or a root=,
 * that one is the user's choice, and none of ours is added. At most MACHINE_COMMAND_LINE_MAX bytes, which was checked. The caller frees it. */
int machine_definition_command_line(const MachineDefinition *definition, char **ret);

/* Options of a device, already checked; the default where absent. */
bool device_definition_boolean(const DeviceDefinition *device, const char *option, bool otherwise);
uint64_t device_definition_unsigned(const DeviceDefinition *device, const char *option, uint64_t otherwise);
const char *device_definition_string(const DeviceDefinition *device, const char *option, const char *otherwise);
/* The element `i` of a list; NULL behind its end, and where it is absent. */
const char *device_definition_list(const DeviceDefinition *device, const char *option, size_t i);
/* The path number `i` of an option that is a path, a directory or a list of paths; NULL behind the last one, and for other options. */
const char *device_definition_path(const DeviceDefinition *device, const DeviceOption *option, size_t i);

/* Which kind of virtio device it is (virtio 1.2, 5); 0 for one of registers. */
uint16_t device_definition_virtio_id(const DeviceDefinition *device);
/* Whether another project's program is the device, as its helper's child. */
bool device_definition_is_foreign(const DeviceDefinition *device);

/* How many virtqueues vmmd gives the device (it must be known before the helper runs: the MSI-X table depends on it). */
unsigned device_definition_queues(const DeviceDefinition *device);

/* The helper's arguments: "TYPE", "--path=…", …, NULL-terminated; the caller frees each and the array. Booleans are yes/no. */
int device_definition_arguments(const DeviceDefinition *device, char ***ret);
