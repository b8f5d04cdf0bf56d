/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "device-type.h"

static const DeviceOption block_options[] = {
        { "path", DEVICE_OPTION_PATH, .required = true, .access = DEVICE_PATH_WRITE,
          .description = "raw image file or block device" },
        { "readOnly", DEVICE_OPTION_BOOLEAN, .description = "refuse writes; the guest sees a read-only disk" },
        { "serial", DEVICE_OPTION_STRING, .maximum = 20, /* virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID */
          .description = "serial number that the guest sees" },
        { "queues", DEVICE_OPTION_UNSIGNED, .minimum = 1, .maximum = 16, .description = "request queues" },
        { "direct", DEVICE_OPTION_BOOLEAN, .description = "bypass the host's page cache (O_DIRECT)" },
        { "root", DEVICE_OPTION_BOOLEAN, .for_vmmd = true, .description = "the guest's root file system is on this disk" },
        { "blockSize", DEVICE_OPTION_UNSIGNED, .minimum = 512, .maximum = 4096,
          .values = (const char *const[]) { "512", "4096", NULL }, .description = "logical block size in bytes" },
        { "discard", DEVICE_OPTION_BOOLEAN, .description = "offer discard and write zeroes with unmap" },
        {},
};

static const DeviceOption console_options[] = {
        { "log", DEVICE_OPTION_PATH, .access = DEVICE_PATH_APPEND_LOG, .description = "file to which the output is appended" },
        { "history", DEVICE_OPTION_SIZE, .minimum = 0, .maximum = MIB(16),
          .description = "recent output that a client which attaches late still sees (default 256K)" },
        {},
};

static const DeviceOption rng_options[] = {
        {},
};

static const DeviceOption serial_options[] = {
        { "port", DEVICE_OPTION_ENUM, .values = (const char *const[]) { "com1", "com2", "com3", "com4", NULL },
          .description = "which of the PC's serial ports (default com1)" },
        { "output", DEVICE_OPTION_ENUM, .values = (const char *const[]) { "journal", "file", "none", NULL },
          .description = "where the output goes (default journal)" },
        { "path", DEVICE_OPTION_PATH, .access = DEVICE_PATH_APPEND_LOG, .description = "the file, where output is \"file\"" },
        { "console", DEVICE_OPTION_BOOLEAN, .for_vmmd = true,
          .description = "the guest's kernel uses it as early console (default true)" },
        {},
};

const DeviceType device_types[] = {
        {
                .name = "block",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 2,
                .pci_class = 0x018000, /* mass storage, other */
                .queues_default = 1,
                .queues_max = 16,
                .options = block_options,
                .description = "Disk",
        },
        {
                .name = "console",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 3,
                .pci_class = 0x078000, /* communication controller, other */
                .queues_default = 2,
                .queues_max = 2,
                .options = console_options,
                .description = "Console",
        },
        {
                .name = "rng",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 4,
                .pci_class = 0x00ff00, /* no class of its own: unclassified, as other VMMs have it */
                .queues_default = 1,
                .queues_max = 1,
                .options = rng_options,
                .description = "Entropy source",
        },
        {
                .name = "serial",
                .transport = DEVICE_TRANSPORT_BUS,
                .options = serial_options,
                .description = "Serial port",
        },
        {},
};

const DeviceType *device_type_find(const char *name) {
        for (const DeviceType *type = device_types; type->name; type++)
                if (streq(type->name, name))
                        return type;
        return NULL;
}

const DeviceOption *device_type_find_option(const DeviceType *type, const char *name) {
        for (const DeviceOption *option = type->options; option->name; option++)
                if (streq(option->name, name))
                        return option;
        return NULL;
}

char *device_option_argument_name(const char *name) {
        char *kebab = malloc(strlen(name) * 2 + 1), *p = kebab;

        if (!kebab)
                return NULL;
        for (; *name; name++)
                if (*name >= 'A' && *name <= 'Z') {
                        *p++ = '-';
                        *p++ = (char) (*name | 0x20);
                } else
                        *p++ = *name;
        *p = 0;
        return kebab;
}
