/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <arpa/inet.h>

#include "device-type.h"
#include "mac-address.h"
#include "parse.h"
#include "tap.h"

static bool string_is_not_empty(const char *s) {
        return *s != 0;
}

static const DeviceOption balloon_options[] = {
        { "initial", DEVICE_OPTION_SIZE, .maximum = (UINT64_C(1) << 44) - KIB(4), /* pages have numbers of 32 bits */
          .description = "how large it is at first (default 0)" },
        { "deflateOnOom", DEVICE_OPTION_BOOLEAN,
          .description = "the guest may take pages back rather than kill a process for want of memory (default true)" },
        { "freePageReporting", DEVICE_OPTION_BOOLEAN,
          .description = "the guest gives back by itself what it does not use (default true)" },
        { "freePageHinting", DEVICE_OPTION_BOOLEAN,
          .description = "the guest can be asked for its free pages; not safe while its memory is scarce (default false)" },
        { "workingSet", DEVICE_OPTION_BOOLEAN,
          .description = "the guest can report the age of its memory, as ChromeOS' kernels do (default false)" },
        { "workingSetBuckets", DEVICE_OPTION_UNSIGNED, .minimum = 2, .maximum = 16,
          .description = "how many classes of age it reports (default 4)" },
        {},
};

/* As credentials are named in a directory, without what means something to a unit. */
static bool credential_is_valid(const char *name) {
        return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(name) && name[0] != 0 &&
                !strchr(".-", name[0]);
}

/* Addresses, not names: nothing in the unit could look one up, and its network is opened for this address only. */
static bool server_is_valid(const char *server) {
        const char *path = startswith(server, "unix:"), *colon = strrchr(server, ':');
        bool brackets = server[0] == '[';
        struct in6_addr address;
        char host[64];
        uint64_t port;
        size_t length;

        if (path)
                return path_is_normalized(path);
        if (!colon || parse_unsigned(colon + 1, &port) < 0 || port < 1 || port > 65535)
                return false;
        length = (size_t) (colon - server);
        if (brackets && (length < 3 || colon[-1] != ']'))
                return false;
        length -= brackets ? 2 : 0;
        if (length >= sizeof(host))
                return false;
        memcpy(host, server + brackets, length);
        host[length] = 0;
        return inet_pton(brackets ? AF_INET6 : AF_INET, host, &address) == 1;
}

#define IMAGES "format=raw|qcow2|vmdk|vhdx|luks" /* what is a file or device of this host */

static const DeviceOption block_options[] = {
        { "format", DEVICE_OPTION_ENUM, .values = (const char *const[]) { "raw", "qcow2", "vmdk", "vhdx", "luks", "nbd", NULL }, .not_attached = "nbd",
          .description = "of the image; all but raw are served by qemu-storage-daemon (default raw)" },
        { "path", DEVICE_OPTION_PATH, .access = DEVICE_PATH_WRITE, .only_where = IMAGES, .required_where = IMAGES,
          .description = "image file or block device" },
        { "backing", DEVICE_OPTION_PATHS, .access = DEVICE_PATH_READ, .only_where = "format=qcow2",
          .description = "what is below the image: its backing file, that one's, and so on" },
        { "keyFile", DEVICE_OPTION_PATH, .access = DEVICE_PATH_READ, .only_where = "format=luks",
          .description = "file with the passphrase, all of it" },
        { "keyCredential", DEVICE_OPTION_STRING, .maximum = 255, .not_attached = "*", .is_valid = credential_is_valid, .pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]*$",
          .expected = "the name of a credential", .only_where = "format=luks",
          .description = "the host's credential with the passphrase, as systemd-creds(1) encrypts it" },
        { "server", DEVICE_OPTION_STRING, .maximum = 107, .is_valid = server_is_valid, .only_where = "format=nbd", .required_where = "format=nbd",
          .pattern = "^(unix:/.+|[0-9.]+:[0-9]+|\\[[0-9A-Fa-f:.]+\\]:[0-9]+)$",
          .expected = "unix:PATH, ADDRESS:PORT or [ADDRESS]:PORT", .description = "NBD server: unix:PATH, ADDRESS:PORT or [ADDRESS]:PORT" },
        { "export", DEVICE_OPTION_STRING, .maximum = 255, .only_where = "format=nbd", .description = "name of the disk at its NBD server" },
        { "readOnly", DEVICE_OPTION_BOOLEAN, .description = "refuse writes; the guest sees a read-only disk" },
        { "serial", DEVICE_OPTION_STRING, .maximum = 20, .only_where = "format=raw", /* virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID */
          .description = "serial number that the guest sees" },
        { "queues", DEVICE_OPTION_UNSIGNED, .minimum = 1, .maximum = 16, .description = "request queues" },
        { "direct", DEVICE_OPTION_BOOLEAN, .only_where = IMAGES, .description = "bypass the host's page cache (O_DIRECT)" },
        { "root", DEVICE_OPTION_BOOLEAN, .for_vmmd = true, .description = "the guest's root file system is on this disk" },
        { "blockSize", DEVICE_OPTION_UNSIGNED, .minimum = 512, .maximum = 4096,
          .values = (const char *const[]) { "512", "4096", NULL }, .description = "logical block size in bytes" },
        { "discard", DEVICE_OPTION_BOOLEAN, .description = "offer discard and write zeroes with unmap" },
        {},
};

/* The guest makes /dev/virtio-ports/NAME of it. */
static bool port_name_is_valid(const char *name) {
        return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(name) && name[0] != 0 &&
                !strchr("._-", name[0]);
}

static const DeviceOption console_options[] = {
        { "log", DEVICE_OPTION_PATH, .access = DEVICE_PATH_APPEND_LOG, .description = "file to which the output is appended" },
        { "history", DEVICE_OPTION_SIZE, .minimum = 0, .maximum = MIB(16),
          .description = "recent output that a client which attaches late still sees (default 256K)" },
        { "ports", DEVICE_OPTION_STRINGS, .maximum = 64, .elements_max = DEVICE_PORTS_MAX,
          .is_valid = port_name_is_valid, .pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$",
          .expected = "a name of letters, digits, dots, dashes and underscores, beginning with a letter or digit",
          .description = "names of further ports, /dev/virtio-ports/NAME in the guest" },
        {},
};

/* A user of the host's, as systemd.exec(5) takes it. */
static bool user_is_valid(const char *name) {
        return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == strlen(name) && name[0] != 0 &&
                !strchr("0123456789-", name[0]);
}
#define USER_PATTERN "^[A-Za-z_][A-Za-z0-9_-]*$"

static const DeviceOption fs_options[] = {
        { "path", DEVICE_OPTION_DIRECTORY, .required = true, .access = DEVICE_PATH_WRITE, .description = "directory of the host's that is shared" },
        { "tag", DEVICE_OPTION_STRING, .required = true, .maximum = 36, /* virtio 1.2 §5.11.4 */
          .is_valid = string_is_not_empty, .pattern = "^.", .expected = "a name",
          .description = "name by which the guest mounts it" },
        { "readOnly", DEVICE_OPTION_BOOLEAN, .description = "the guest can change nothing" },
        { "cache", DEVICE_OPTION_ENUM, .values = (const char *const[]) { "auto", "always", "never", "metadata", NULL },
          .description = "what the guest may remember (default auto)" },
        { "xattr", DEVICE_OPTION_BOOLEAN, .description = "extended attributes (default false)" },
        { "user", DEVICE_OPTION_STRING, .maximum = 31, .not_attached = "*", .is_valid = user_is_valid, .pattern = USER_PATTERN, .expected = "the name of a user",
          .for_vmmd = true, .description = "user of the host's as whom everybody in the guest acts (default: one of its own)" },
        {},
};

/* The words of passt(1), for one port or several: "8080", "2222:22", "127.0.0.1/8000-8010:80-90". */
static bool ports_are_valid(const char *ports) {
        return strspn(ports, "0123456789abcdefABCDEF.:/%~,-") == strlen(ports) && ports[0] != 0 && ports[0] != '-';
}
#define PORTS_PATTERN "^[0-9a-fA-F.:/%~,][0-9a-fA-F.:/%~,-]*$"

static const DeviceOption input_options[] = {
        { "path", DEVICE_OPTION_PATH, .access = DEVICE_PATH_WRITE,
          .description = "input device of the host that the guest has to itself, /dev/input/event…; without it, a keyboard of no keys but those sent" },
        { "powerKey", DEVICE_OPTION_BOOLEAN, .for_vmmd = true,
          .description = "its power key is the machine's power button" },
        {},
};

static const DeviceOption net_options[] = {
        { "backend", DEVICE_OPTION_ENUM, .values = (const char *const[]) { "tap", "passt", NULL }, .not_attached = "passt",
          .description = "an interface of the host's, or passt's user mode (default tap)" },
        { "tcpPorts", DEVICE_OPTION_STRINGS, .maximum = 200, .is_valid = ports_are_valid, .pattern = PORTS_PATTERN,
          .expected = "ports as in passt(1)", .only_where = "backend=passt", .description = "TCP ports of the host that lead to the guest" },
        { "udpPorts", DEVICE_OPTION_STRINGS, .maximum = 200, .is_valid = ports_are_valid, .pattern = PORTS_PATTERN,
          .expected = "ports as in passt(1)", .only_where = "backend=passt", .description = "UDP ports of the host that lead to the guest" },
        { "interface", DEVICE_OPTION_INTERFACE, .only_where = "backend=tap", .required_where = "backend=tap", .maximum = 15,
          .is_valid = tap_name_is_valid, .pattern = "^[!-$&-.0-9;-~]+$", .expected = "the name of a network interface",
          .description = "tap or macvtap interface of the host" },
        { "mac", DEVICE_OPTION_STRING, .maximum = 17,
          .is_valid = mac_address_is_valid, .pattern = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
          .expected = "the Ethernet address of a station, as in \"52:54:00:12:34:56\"",
          .description = "the guest's Ethernet address (default: made of machine, device and host)" },
        { "mtu", DEVICE_OPTION_UNSIGNED, .minimum = 68, .maximum = 65535, .description = "MTU that the guest is told" },
        { "queuePairs", DEVICE_OPTION_UNSIGNED, .only_where = "backend=tap", .minimum = 1, .maximum = TAP_QUEUES_MAX,
          .description = "pairs of queues, as many as the interface has to have (default 1)" },
        { "offload", DEVICE_OPTION_BOOLEAN, .only_where = "backend=tap", .description = "offer checksum and segmentation offloads (default true)" },
        { "receiveLimit", DEVICE_OPTION_SIZE, .only_where = "backend=tap", .minimum = KIB(1), .maximum = UINT64_C(1) << 40,
          .description = "bytes a second that the guest may receive" },
        { "transmitLimit", DEVICE_OPTION_SIZE, .only_where = "backend=tap", .minimum = KIB(1), .maximum = UINT64_C(1) << 40,
          .description = "bytes a second that the guest may send" },
        {},
};

static const DeviceOption pmem_options[] = {
        { "path", DEVICE_OPTION_PATH, .required = true, .access = DEVICE_PATH_WRITE, .vmmd_opens = true,
          .description = "file or block device that is the memory; its size is a multiple of 2 MiB" },
        { "readOnly", DEVICE_OPTION_BOOLEAN, .description = "the guest cannot change it" },
        { "root", DEVICE_OPTION_BOOLEAN, .for_vmmd = true, .description = "the guest's root file system is in this memory" },
        { "dax", DEVICE_OPTION_BOOLEAN, .for_vmmd = true, .only_where = "root=true",
          .description = "the root file system is used in place, past the guest's page cache" },
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

static const DeviceOption vhost_user_options[] = {
        { "virtioId", DEVICE_OPTION_UNSIGNED, .required = true, .minimum = 1, .maximum = 63, .for_vmmd = true, /* virtio 1.2 §5 */
          .description = "what kind of device it is, virtio's number" },
        { "queues", DEVICE_OPTION_UNSIGNED, .minimum = 1, .maximum = 64, .description = "virtqueues (default 1)" },
        { "configSize", DEVICE_OPTION_UNSIGNED, .maximum = 256, .for_vmmd = true,
          .description = "bytes of its configuration space (default: as many as virtio says)" },
        { "command", DEVICE_OPTION_STRINGS, .required = true, .maximum = 4096, .is_valid = string_is_not_empty, .pattern = "^.",
          .expected = "a string that is not empty",
          .description = "program and arguments; {listen}, {fd} or {socket} in one of them stands for its socket" },
        { "readOnlyPaths", DEVICE_OPTION_PATHS, .access = DEVICE_PATH_READ, .for_vmmd = true, .bound = true,
          .description = "files, directories and device nodes that it may read" },
        { "readWritePaths", DEVICE_OPTION_PATHS, .access = DEVICE_PATH_WRITE, .for_vmmd = true, .bound = true,
          .description = "files, directories and device nodes that it may also write" },
        { "network", DEVICE_OPTION_BOOLEAN, .for_vmmd = true, .description = "it is in the host's network (default false)" },
        { "user", DEVICE_OPTION_STRING, .maximum = 31, .is_valid = user_is_valid, .pattern = USER_PATTERN, .expected = "the name of a user",
          .for_vmmd = true, .description = "user of the host's as whom it runs (default: one of its own)" },
        { "answerTimeout", DEVICE_OPTION_UNSIGNED, .minimum = 1, .maximum = 3600,
          .description = "seconds that it may take to answer its front-end (default 60)" },
        {},
};

static const DeviceOption vsock_options[] = {
        { "cid", DEVICE_OPTION_UNSIGNED, .minimum = 3, .maximum = UINT32_MAX - 1, /* below are the host's, and the last is "any" */
          .description = "context id by which the guest knows itself (default 3)" },
        { "notify", DEVICE_OPTION_BOOLEAN,
          .description = "the guest's service manager is asked to tell what it does (default true)" },
        {},
};

/* PATH, or SOURCE:DESTINATION, as a unit takes it. */
static bool mount_is_valid(const char *mount) {
        const char *colon = strchr(mount, ':');
        _cleanup_free_ char *source = colon ? strndup(mount, (size_t) (colon - mount)) : NULL;

        if (!colon)
                return path_is_normalized(mount);
        return source && path_is_normalized(source) && path_is_normalized(colon + 1) && !strchr(colon + 1, ':');
}
#define MOUNT_PATTERN "^(/[^/:]+)+(:(/[^/:]+)+)?$"
#define MOUNT_EXPECTED "an absolute path, or SOURCE:DESTINATION of two"

static const DeviceOption plugin_options[] = {
        { "path", DEVICE_OPTION_PATH, .required = true, .access = DEVICE_PATH_READ, .bound = true, .description = "the program" },
        { "arguments", DEVICE_OPTION_STRINGS, .maximum = 4096, .description = "its arguments" },
        { "readOnlyPaths", DEVICE_OPTION_STRINGS, .maximum = 4096, .for_vmmd = true, .is_valid = mount_is_valid, .pattern = MOUNT_PATTERN,
          .expected = MOUNT_EXPECTED, .description = "files, directories and device nodes that it may read" },
        { "readWritePaths", DEVICE_OPTION_STRINGS, .maximum = 4096, .for_vmmd = true, .is_valid = mount_is_valid, .pattern = MOUNT_PATTERN,
          .expected = MOUNT_EXPECTED, .description = "files, directories and device nodes that it may also write" },
        { "user", DEVICE_OPTION_STRING, .maximum = 31, .is_valid = user_is_valid, .pattern = USER_PATTERN, .expected = "the name of a user",
          .for_vmmd = true, .description = "user of the host's as whom it runs (default: one of its own)" },
        { "group", DEVICE_OPTION_STRING, .maximum = 31, .is_valid = user_is_valid, .pattern = USER_PATTERN, .expected = "the name of a group",
          .for_vmmd = true, .description = "group of the host's in which it runs (default: the user's)" },
        { "supplementaryGroups", DEVICE_OPTION_STRINGS, .maximum = 31, .is_valid = user_is_valid, .pattern = USER_PATTERN, .for_vmmd = true,
          .expected = "the name of a group", .description = "groups of the host's whose files it may use as well" },
        { "interface", DEVICE_OPTION_INTERFACE, .maximum = 15, .is_valid = tap_name_is_valid, .pattern = "^[!-$&-.0-9;-~]+$",
          .expected = "the name of a network interface", .description = "tap or macvtap interface of the host, which is its network" },
        {},
};

const DeviceType plugin_type = {
        .name = "plugin",
        .transport = DEVICE_TRANSPORT_PLUGIN,
        .options = plugin_options,
        .description = "Plugin",
};

const DeviceType device_types[] = {
        {
                .name = "balloon",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 5,
                .pci_class = 0x00ff00, /* unclassified, as other VMMs have it */
                .queues_default = 7,
                .queues_max = 7,
                .options = balloon_options,
                .description = "Memory balloon",
        },
        {
                .name = "block",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 2,
                .pci_class = 0x018000, /* mass storage, other */
                .queues_default = 1,
                .queues_max = 16,
                .attachable = true,
                .options = block_options,
                .description = "Disk",
        },
        {
                .name = "console",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 3,
                .pci_class = 0x078000, /* communication controller, other */
                .queues_default = 2,
                .queues_max = 2 * (DEVICE_PORTS_MAX + 1) + 2,
                .queues_by_port = true,
                .attachable = true,
                .options = console_options,
                .description = "Console",
        },
        {
                .name = "fs",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 26,
                .pci_class = 0x018000, /* mass storage, other */
                .queues_default = 2,
                .queues_max = 2,
                .attachable = true,
                .options = fs_options,
                .description = "Shared Directory",
        },
        {
                .name = "input",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 18,
                .pci_class = 0x098000, /* input device controller, other */
                .queues_default = 2,
                .queues_max = 2,
                .options = input_options,
                .description = "Input Device",
        },
        {
                .name = "net",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 1,
                .pci_class = 0x020000, /* Ethernet controller */
                .queues_default = 3,
                .queues_max = 2 * TAP_QUEUES_MAX + 1,
                .queues_in_pairs = true,
                .attachable = true,
                .options = net_options,
                .description = "Network Interface",
        },
        {
                .name = "pmem",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 27,
                .pci_class = 0x058000, /* memory controller, other */
                .queues_default = 1,
                .queues_max = 1,
                .options = pmem_options,
                .description = "Persistent Memory",
        },
        {
                .name = "rng",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 4,
                .pci_class = 0x00ff00, /* no class of its own: unclassified, as other VMMs have it */
                .queues_default = 1,
                .queues_max = 1,
                .attachable = true,
                .options = rng_options,
                .description = "Entropy source",
        },
        {
                .name = "serial",
                .transport = DEVICE_TRANSPORT_BUS,
                .options = serial_options,
                .description = "Serial port",
        },
        {
                .name = "vhost-user",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .pci_class = 0x00ff00, /* whatever it is */
                .queues_default = 1,
                .queues_max = 64,
                .options = vhost_user_options,
                .description = "Foreign Device",
        },
        {
                .name = "vsock",
                .transport = DEVICE_TRANSPORT_VHOST_USER,
                .virtio_id = 19,
                .pci_class = 0x078000, /* communication controller, other */
                .queues_default = 3,
                .queues_max = 3,
                .options = vsock_options,
                .description = "Socket Device",
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

bool device_option_is_list(const DeviceOption *option) {
        return option->kind == DEVICE_OPTION_STRINGS || option->kind == DEVICE_OPTION_PATHS;
}

const DeviceOption *device_condition_option(const DeviceType *type, const char *condition) {
        size_t length = strcspn(condition, "=");

        for (const DeviceOption *option = type->options; option->name; option++)
                if (strlen(option->name) == length && memcmp(option->name, condition, length) == 0)
                        return option;
        assert(false); /* our own tables; a test goes through them */
        return NULL;
}

/* Whether `value` is one of "a|b". */
static bool is_among(const char *value, const char *list) {
        for (const char *p = list;; p++) {
                size_t length = strcspn(p, "|");

                if (strlen(value) == length && memcmp(p, value, length) == 0)
                        return true;
                p += length;
                if (!*p)
                        return false;
        }
}

bool device_condition_holds(const DeviceType *type, const char *condition, const char *value) {
        const DeviceOption *option = device_condition_option(type, condition);
        const char *values = strchr(condition, '=');

        /* As in a definition, and as on a command line. */
        if (option->kind == DEVICE_OPTION_BOOLEAN)
                value = value && (streq(value, "true") || streq(value, "yes") || streq(value, "1")) ? "true" : "false";
        else if (!value)
                value = option->values[0];
        return values && is_among(value, values + 1);
}

bool device_option_is_attachable(const DeviceOption *option, const char *value) {
        return !option->not_attached || (!streq(option->not_attached, "*") && !is_among(value, option->not_attached));
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
