/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-generator NORMAL-DIR [EARLY-DIR LATE-DIR]
 *
 * Run by systemd at boot and at every daemon-reload (systemd.generator(7)). Each machine definition becomes drop-ins of vmm@NAME.service and
 * .socket and of each device's vmm-device@….service and .socket. The templates do not start without them (vmm-refuse): what has no good definition has no
 * drop-in that would let it start. One wrong definition touches nothing else, and the generator does not fail for it.
 *
 * All text of a machine is made before the first byte of it is written. $VMM_ROOT is a prefix for what is read (tests). */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "catalog-ids.h"
#include "config.h"
#include "definition.h"
#include "foreign-unit.h"
#include "mac-address.h"
#include "snapshot.h"
#include "unit-name.h"

/* From the end of vmmd's own patience with the guest to systemd's with vmmd. */
#define STOP_MARGIN_USEC (15 * USEC_PER_SEC)

/* One file to write: directory/name below the normal directory. */
typedef struct Output {
        char *directory;
        const char *name;
        char *text;
        size_t size;
        mode_t mode;
} Output;

typedef struct Outputs {
        Output *outputs;
        size_t n;
        bool out_of_memory;
} Outputs;

static const char *normal_dir;

/* The journal's native protocol, by one datagram: at boot the journal is not up yet, then the kernel's log takes it. */
static bool log_to_journal(const char *machine, const char *text) {
        struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket" };
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        _cleanup_free_ char *message = NULL;
        ssize_t n;
        int r;

        if (fd < 0)
                return false;
        r = asprintf(&message, "MESSAGE=%s\nPRIORITY=3\nSYSLOG_IDENTIFIER=vmm-generator\nMESSAGE_ID=" MESSAGE_DEFINITION_REFUSED "\nVMM_MACHINE=%s\n",
                text, machine);
        if (r < 0) {
                message = NULL;
                return false;
        }
        n = sendto(fd, message, (size_t) r, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *) &address, sizeof(address));
        return n == r;
}

/* A generator's standard error leads nowhere, except by hand and in tests. */
static void complain(const char *machine, const char *text) {
        (void) fprintf(stderr, "vmm-generator: %s\n", text);
        if (getenv("VMM_ROOT") || log_to_journal(machine, text))
                return;

        _cleanup_close_ int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);
        if (fd >= 0)
                (void) dprintf(fd, "<3>vmm-generator[%i]: %s\n", getpid(), text);
}

static void outputs_done(Outputs *outputs) {
        for (size_t i = 0; i < outputs->n; i++) {
                free(outputs->outputs[i].directory);
                free(outputs->outputs[i].text);
        }
        free(outputs->outputs);
}

/* Begins one more output; the stream's text becomes its content when the stream is closed. Takes ownership of directory, also on error. */
static FILE *outputs_open(Outputs *outputs, char *directory, const char *name, mode_t mode) {
        Output *grown;
        FILE *f;

        grown = directory ? reallocarray(outputs->outputs, outputs->n + 1, sizeof(Output)) : NULL;
        if (!grown) {
                free(directory);
                return NULL;
        }
        outputs->outputs = grown;
        grown[outputs->n] = (Output) { .directory = directory, .name = name, .mode = mode };
        f = open_memstream(&grown[outputs->n].text, &grown[outputs->n].size);
        if (!f)
                free(directory);
        return f;
}

/* One stream at a time: its variables are in the array, which the next outputs_open() may move. */
static int outputs_close(Outputs *outputs, FILE *f) {
        bool bad = ferror(f) || outputs->out_of_memory;

        bad = fclose(f) != 0 || bad;
        outputs->n++;
        return bad ? -ENOMEM : 0;
}

static char *drop_in_directory(char *unit) {
        char *directory;
        int r;

        if (!unit)
                return NULL;
        r = asprintf(&directory, "%s.d", unit);
        free(unit);
        return r < 0 ? NULL : directory;
}

static FILE *open_drop_in(Outputs *outputs, char *unit) {
        FILE *f = outputs_open(outputs, drop_in_directory(unit), "50-vmm.conf", 0644);

        if (f)
                (void) fputs("# Written by vmm-generator, from the machine's definition.\n", f);
        return f;
}

/* A name that is plain by construction. Takes ownership of it; NULL, which is out of memory, shows in outputs_close(). */
static void put_name(Outputs *outputs, FILE *f, const char *key, char *name) {
        if (name)
                (void) fprintf(f, "%s=%s\n", key, name);
        else
                outputs->out_of_memory = true;
        free(name);
}

/* Requests of vmm-open are words of their own: "NAME=MODE:PATH". */
static int put_open(FILE *f, const char *name, const char *mode, const char *path) {
        _cleanup_free_ char *word = NULL;

        if (asprintf(&word, "%s=%s:%s", name, mode, path) < 0) {
                word = NULL;
                return -ENOMEM;
        }
        (void) fputc(' ', f);
        put_word(f, word, true);
        return 0;
}

static void put_mounts(FILE *f, const char *path) {
        if (startswith(path, "/dev/"))
                return;
        (void) fputs("RequiresMountsFor=", f);
        put_word(f, path, false);
        (void) fputc('\n', f);
}

/* A device's sockets are there before its machine starts; its service starts by them, but stops after its guest. */
static void put_needs(Outputs *outputs, FILE *f, const MachineDefinition *d, const char *device) {
        put_name(outputs, f, "Requires", device_unit_name(d->name, device, "socket"));
        put_name(outputs, f, "After", device_unit_name(d->name, device, "socket"));
        put_name(outputs, f, "After", device_unit_name(d->name, device, "service"));
}

static void slot_name(unsigned slot, char ret[DEVICE_NAME_MAX]) {
        (void) snprintf(ret, DEVICE_NAME_MAX, MACHINE_SLOT_PREFIX "%u", slot);
}

static const char *path_mode(const DeviceDefinition *device, const DeviceOption *option) {
        bool directory = option->kind == DEVICE_OPTION_DIRECTORY;

        if (option->access == DEVICE_PATH_APPEND_LOG)
                return "append";
        if (option->access == DEVICE_PATH_READ || device_definition_boolean(device, "readOnly", false))
                return directory ? "tree-ro" : "ro";
        return directory ? "tree" : "rw";
}

static bool is_device_node(const char *path) {
        struct stat st;

        /* At boot what is below /dev may not be there yet. */
        return startswith(path, "/dev/") || (stat(path, &st) >= 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)));
}

/* Lets a unit open a path. */
static void put_device_allow(FILE *f, const char *path, const char *mode) {
        if (!is_device_node(path))
                return;
        (void) fputs("DeviceAllow=", f);
        put_word(f, path, false);
        (void) fputs(streq(mode, "ro") ? " r\n" : " rw\n", f);
}

/* Calls `put` for each file of a device that vmmd has open, too. */
static int for_each_file_of_vmmd(FILE *f, const MachineDefinition *d,
        int (*put)(FILE *f, const DeviceDefinition *device, const DeviceOption *option, const char *path)) {
        int r = 0;

        for (size_t i = 0; i < d->n_devices; i++)
                for (const DeviceOption *o = d->devices[i].type->options; o->name && r >= 0; o++) {
                        const char *path = o->vmmd_opens ? device_definition_string(&d->devices[i], o->name, NULL) : NULL;

                        if (path)
                                r = put(f, &d->devices[i], o, path);
                }
        return r;
}

static int put_mounts_for_vmmd(FILE *f, const DeviceDefinition *device, const DeviceOption *option, const char *path) {
        put_mounts(f, path);
        return 0;
}

static int put_allow_for_vmmd(FILE *f, const DeviceDefinition *device, const DeviceOption *option, const char *path) {
        put_device_allow(f, path, path_mode(device, option));
        return 0;
}

static int put_open_for_vmmd(FILE *f, const DeviceDefinition *device, const DeviceOption *option, const char *path) {
        _cleanup_free_ char *name = NULL;

        if (asprintf(&name, "%s.%s", device->name, option->name) < 0) {
                name = NULL;
                return -ENOMEM;
        }
        return put_open(f, name, path_mode(device, option), path);
}

/* The snapshot that vmmctl has left for this start, if any. */
static int put_open_restore(FILE *f, const MachineDefinition *d) {
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, SNAPSHOT_RESTORE_DIRECTORY "/%s", d->name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        return put_open(f, "restore", "restore", path);
}

/* Since systemd 254 a service can be started again without what belongs to it being stopped first; others would complain of the setting, and not get to
 * starting it at all. There is no asking for its version here; that one brought a unit with it. */
static bool manager_restarts_directly(void) {
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, "%s/usr/lib/systemd/system/soft-reboot.target", getenv("VMM_ROOT") ?: "") < 0) {
                path = NULL;
                return false;
        }
        return access(path, F_OK) >= 0;
}

/* What follows where vmmd itself does not live to decide. */
static void put_on_failure(FILE *f, const MachineDefinition *d, bool restart, bool direct) {
        if (direct)
                (void) fprintf(f, "ExecStartPre=-+" LIBEXECDIR "/vmm-crash-report %s restarted\nRestart=on-abnormal\nRestartMode=direct\nRestartSec=100ms\n", d->name);
        else if (restart)
                (void) fprintf(f, "ExecStopPost=-+" LIBEXECDIR "/vmm-crash-report %s start\n", d->name);
}

static int machine_service(Outputs *outputs, const MachineDefinition *d) {
        bool restart = d->on_failure == ON_FAILURE_RESTART, direct = restart && manager_restarts_directly();
        FILE *f = open_drop_in(outputs, machine_unit_name(d->name, "service"));
        int r;

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Virtual Machine %s\n", d->name);
        put_name(outputs, f, "Requires", machine_unit_name(d->name, "socket"));
        put_name(outputs, f, "After", machine_unit_name(d->name, "socket"));
        if (!restart || direct)
                (void) fprintf(f, "OnFailure=vmm-crash-%s@%s.service\n", restart ? "restart" : "report", d->name);
        if (d->kernel)
                put_mounts(f, d->kernel);
        if (d->initrd)
                put_mounts(f, d->initrd);
        if (d->device_tree_overlay)
                put_mounts(f, d->device_tree_overlay);
        (void) for_each_file_of_vmmd(f, d, put_mounts_for_vmmd);
        for (size_t i = 0; i < d->n_devices; i++)
                put_needs(outputs, f, d, d->devices[i].name);
        for (unsigned i = 0; i < d->hotplug_slots; i++) {
                char slot[DEVICE_NAME_MAX];

                slot_name(i, slot);
                put_needs(outputs, f, d, slot);
        }

        (void) fputs("\n[Service]\n", f);
        put_name(outputs, f, "Slice", machine_slice_name(d->name));
        put_name(outputs, f, "User", unit_user_name(d->name, NULL));
        /* In the user namespace of PrivateUsers= only vmmd's own group can be told from others, and it cannot look up names: so it is in
         * the group whose members it obeys. */
        if (d->access_group)
                (void) fprintf(f, "Group=%s\n", d->access_group);
        /* Read by the manager as root: the definition may hold secrets, which a property (StandardInputData=) would show to everybody. */
        (void) fprintf(f, "StandardInput=file:%s/vmm@%s.service.d/definition.json\n", normal_dir, d->name);
        (void) for_each_file_of_vmmd(f, d, put_allow_for_vmmd);
        (void) fputs("ExecStartPre=\nExecStartPre=+" LIBEXECDIR "/vmm-open", f);
        r = d->kernel ? put_open(f, "kernel", "ro", d->kernel) : 0;
        if (r >= 0 && d->initrd)
                r = put_open(f, "initrd", "ro", d->initrd);
        if (r >= 0 && d->device_tree_overlay)
                r = put_open(f, MACHINE_OVERLAY_FILE, "ro", d->device_tree_overlay);
        if (r >= 0)
                r = for_each_file_of_vmmd(f, d, put_open_for_vmmd);
        if (r >= 0 && d->kernel)
                r = put_open_restore(f, d);
        for (size_t i = 0; i < d->n_devices && r >= 0; i++) {
                _cleanup_free_ char *path = NULL;

                if (asprintf(&path, "/run/vmm/%s/%s.varlink", d->name, d->devices[i].name) < 0) {
                        path = NULL;
                        r = -ENOMEM;
                } else
                        r = put_open(f, d->devices[i].name, "wake", path);
        }
        (void) fprintf(f, "\nTimeoutStopSec=%" PRIu64 "us\n", d->stop_timeout_usec + STOP_MARGIN_USEC);
        put_on_failure(f, d, restart, direct);
        (void) fprintf(f, "LogExtraFields=VMM_MACHINE=%s\n", d->name);
        return MIN(r, outputs_close(outputs, f));
}

static int machine_definition(Outputs *outputs, const MachineDefinition *d) {
        FILE *f = outputs_open(outputs, drop_in_directory(machine_unit_name(d->name, "service")), "definition.json", 0600);

        if (!f)
                return -ENOMEM;
        (void) fputs(json_object_to_json_string_ext(d->json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE), f);
        (void) fputc('\n', f);
        return outputs_close(outputs, f);
}

static int machine_socket(Outputs *outputs, const MachineDefinition *d) {
        FILE *f = open_drop_in(outputs, machine_unit_name(d->name, "socket"));

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Control Socket of Virtual Machine %s\n", d->name);
        /* So it stops after them, and can remove their directory. */
        for (size_t i = 0; i < d->n_devices; i++)
                put_name(outputs, f, "Before", device_unit_name(d->name, d->devices[i].name, "socket"));
        for (unsigned i = 0; i < d->hotplug_slots; i++) {
                char slot[DEVICE_NAME_MAX];

                slot_name(i, slot);
                put_name(outputs, f, "Before", device_unit_name(d->name, slot, "socket"));
        }
        (void) fputs("\n[Socket]\n", f);
        put_name(outputs, f, "Slice", machine_slice_name(d->name));
        return outputs_close(outputs, f);
}

static int machine_slice(Outputs *outputs, const MachineDefinition *d) {
        FILE *f = open_drop_in(outputs, machine_slice_name(d->name));

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Virtual Machine %s and its Devices\nStopWhenUnneeded=yes\n", d->name);
        return outputs_close(outputs, f);
}

/* Device units come and go with their machine; also when vmmd ends by itself. */
static void put_belongs_to(Outputs *outputs, FILE *f, const MachineDefinition *d) {
        put_name(outputs, f, "PartOf", machine_unit_name(d->name, "service"));
        put_name(outputs, f, "StopPropagatedFrom", machine_unit_name(d->name, "service"));
}

static void put_device_description(FILE *f, const MachineDefinition *d, const DeviceDefinition *device, const char *prefix) {
        (void) fprintf(f, "[Unit]\nDescription=%s%s '%s' of Machine %s\n", prefix, device->type->description, device->name, d->name);
}

/* [Socket] of a device, whose [Unit] is there. */
static int finish_socket(Outputs *outputs, FILE *f, const MachineDefinition *d, DeviceTransport transport) {
        (void) fputs("\n[Socket]\n", f);
        put_name(outputs, f, "Slice", machine_slice_name(d->name));
        if (transport == DEVICE_TRANSPORT_PLUGIN)
                (void) fputs("ListenSequentialPacket=/run/vmm/%I.plugin\n", f);
        else
                (void) fprintf(f, "ListenStream=/run/vmm/%%I.%s\n", transport == DEVICE_TRANSPORT_BUS ? "bus" : "vhost-user");
        return outputs_close(outputs, f);
}

static bool is_vsock(const DeviceDefinition *device) {
        return streq(device->type->name, "vsock");
}

/* Where clients of the host's come to be connected with the guest. Who may change the machine may speak to what runs in it. */
static void put_vsock_socket(FILE *f, const MachineDefinition *d) {
        (void) fputs("\n[Socket]\nListenStream=/run/vmm/%I.vsock\nListenSequentialPacket=/run/vmm/%I.vsock-seqpacket\n", f);
        if (d->access_group)
                (void) fprintf(f, "SocketGroup=%s\n", d->access_group);
}

/* The guest's connections go to sockets beside that one, which anybody may serve who lets this group in. */
static void put_vsock_service(FILE *f, const MachineDefinition *d) {
        (void) fprintf(f, "Group=vmm-vsock\nBindReadOnlyPaths=/run/vmm/%s\n", d->name);
}

static int device_socket(Outputs *outputs, const MachineDefinition *d, const DeviceDefinition *device) {
        FILE *f = open_drop_in(outputs, device_unit_name(d->name, device->name, "socket"));

        if (!f)
                return -ENOMEM;
        put_device_description(f, d, device, "Sockets of ");
        put_belongs_to(outputs, f, d);
        if (is_vsock(device))
                put_vsock_socket(f, d);
        return finish_socket(outputs, f, d, device->type->transport);
}

/* A tap is opened for the helper, as many queues as it has pairs; for a plugin as it expects one. The device nodes are the kernel's own ways to get at one. */
static int put_interface(FILE *f, const DeviceDefinition *device, const DeviceOption *option) {
        const char *name = device_definition_string(device, option->name, "");
        char mode[16];

        if (device->type == &plugin_type)
                (void) snprintf(mode, sizeof(mode), "frames");
        else
                (void) snprintf(mode, sizeof(mode), "tap:%u", (unsigned) device_definition_unsigned(device, "queuePairs", 1));
        (void) fputs("ExecStartPre=+" LIBEXECDIR "/vmm-open", f);
        return put_open(f, option->name, mode, name);
}

static const DeviceOption *find_interface(const DeviceDefinition *device) {
        for (const DeviceOption *o = device->type->options; o->name; o++)
                if (o->kind == DEVICE_OPTION_INTERFACE && device_definition_string(device, o->name, NULL))
                        return o;
        return NULL;
}

/* The Ethernet address that it has where the definition gives none, and the interface has none to give: the helper cannot know what host this is. */
static void put_default_mac(FILE *f, const MachineDefinition *d, const char *device) {
        uint8_t mac[MAC_ADDRESS_SIZE];
        char text[MAC_ADDRESS_TEXT_MAX];

        mac_address_derive(d->name, device, mac);
        mac_address_format(mac, text);
        (void) fprintf(f, "Environment=VMM_DEFAULT_MAC=%s\n", text);
}

static int put_network(FILE *f, const MachineDefinition *d, const DeviceDefinition *device, const DeviceOption *option) {
        int r;

        if (device != d->plugin)
                put_default_mac(f, d, device->name);
        (void) fputs("DeviceAllow=/dev/net/tun rw\nDeviceAllow=char-macvtap rw\n", f);
        r = put_interface(f, device, option);
        (void) fputc('\n', f);
        return r;
}

/* Device nodes may be opened. */
static void put_device_nodes(FILE *f, const DeviceDefinition *device) {
        const char *path;

        for (const DeviceOption *o = device->type->options; o->name; o++)
                for (size_t i = 0; (path = device_definition_path(device, o, i)); i++)
                        put_device_allow(f, path, path_mode(device, o));
}

/* One request of vmm-open: NAME, or NAME-i for an element of a list. */
static int put_open_path(FILE *f, const DeviceDefinition *device, const DeviceOption *option, size_t i, const char *path) {
        _cleanup_free_ char *name = NULL;

        if (!device_option_is_list(option))
                return put_open(f, option->name, path_mode(device, option), path);
        if (asprintf(&name, "%s-%zu", option->name, i) < 0) {
                name = NULL;
                return -ENOMEM;
        }
        return put_open(f, name, path_mode(device, option), path);
}

/* The files a device names: they are mounted first, may be opened, and are. */
static int put_device_paths(FILE *f, const DeviceDefinition *device) {
        const char *path;
        bool first = true;
        int r = 0;

        put_device_nodes(f, device);
        for (const DeviceOption *o = device->type->options; o->name; o++)
                for (size_t i = 0; !o->bound && (path = device_definition_path(device, o, i)) && r >= 0; i++) {
                        if (first)
                                (void) fputs("ExecStartPre=+" LIBEXECDIR "/vmm-open", f);
                        first = false;
                        r = put_open_path(f, device, o, i, path);
                }
        if (!first)
                (void) fputc('\n', f);
        return r;
}

/* Calls `put` for the source of each of a plugin's mounts. */
static int for_each_mount(FILE *f, const DeviceDefinition *plugin, void (*put)(FILE *f, const char *source, bool writable)) {
        static const char *const options[] = { "readOnlyPaths", "readWritePaths" };
        const char *mount;

        for (size_t writable = 0; writable < ELEMENTSOF(options); writable++)
                for (size_t i = 0; (mount = device_definition_list(plugin, options[writable], i)); i++) {
                        _cleanup_free_ char *source = strndup(mount, strcspn(mount, ":"));

                        if (!source)
                                return -ENOMEM;
                        put(f, source, writable);
                }
        return 0;
}

static void put_mount_needed(FILE *f, const char *source, bool writable) {
        put_mounts(f, source);
}

static void put_mount_allowed(FILE *f, const char *source, bool writable) {
        put_device_allow(f, source, writable ? "rw" : "ro");
}

static int device_service(Outputs *outputs, const MachineDefinition *d, const DeviceDefinition *device) {
        _cleanup_(string_array_freep) char **arguments = NULL;
        const DeviceOption *interface = find_interface(device);
        FILE *f;
        int r;

        r = device_definition_arguments(device, &arguments);
        if (r < 0)
                return r;
        f = open_drop_in(outputs, device_unit_name(d->name, device->name, "service"));
        if (!f)
                return -ENOMEM;
        put_device_description(f, d, device, "");
        put_belongs_to(outputs, f, d);
        for (const DeviceOption *o = device->type->options; o->name; o++)
                for (size_t i = 0; device_definition_path(device, o, i); i++)
                        put_mounts(f, device_definition_path(device, o, i));
        if (device == d->plugin)
                r = for_each_mount(f, device, put_mount_needed);

        if (interface)
                /* Waiting for an interface that never comes takes longer than the usual interval allows for: there would be no end of it. And
                 * DeviceAllow= knows char-macvtap only once the module is there, which the interface may be the first to bring. */
                (void) fputs("Wants=modprobe@macvtap.service\nAfter=network.target modprobe@macvtap.service\nStartLimitIntervalSec=1min\n", f);

        (void) fputs("\n[Service]\n", f);
        put_name(outputs, f, "Slice", machine_slice_name(d->name));
        put_name(outputs, f, "User", unit_user_name(d->name, device->name));
        if (is_vsock(device))
                put_vsock_service(f, d);
        if (device_definition_is_foreign(device))
                r = MIN(r, put_foreign_service(f, device));
        if (device_definition_is_foreign(device) && device->type->queues_in_pairs)
                put_default_mac(f, d, device->name);
        (void) fputs("ExecStartPre=\n", f);
        if (device == d->plugin && r >= 0)
                r = for_each_mount(f, device, put_mount_allowed);
        if (r >= 0)
                r = put_device_paths(f, device);
        if (interface && r >= 0)
                r = put_network(f, d, device, interface);
        (void) fputs("ExecStart=\nExecStart=" LIBEXECDIR "/vmm-device", f);
        for (char **a = arguments; *a; a++) {
                (void) fputc(' ', f);
                put_word(f, *a, true);
        }
        /* Not in the template: what has no definition is not to be tried again. */
        /* A plugin's machine ends with it: there is nothing that another could go on with. Others start again at once, for a guest waits: the manager's timers are exact to a
         * quarter of a second, so that any other time would be that. The start limit ends it where it does not help. */
        (void) fprintf(f, "\nRestart=%s\nRestartSec=0\nLogExtraFields=VMM_MACHINE=%s VMM_DEVICE=%s\n",
                device == d->plugin ? "no" : "on-failure", d->name, device->name);
        return MIN(r, outputs_close(outputs, f));
}

static int slot_socket(Outputs *outputs, const MachineDefinition *d, const char *slot) {
        FILE *f = open_drop_in(outputs, device_unit_name(d->name, slot, "socket"));

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Sockets of Spare Device '%s' of Machine %s\n", slot, d->name);
        put_belongs_to(outputs, f, d);
        return finish_socket(outputs, f, d, DEVICE_TRANSPORT_VHOST_USER);
}

/* A helper that is told by io.vmmd.Slot which device it is, and gets what that opens from there: so there is nothing to open, and no device node. */
static int slot_service(Outputs *outputs, const MachineDefinition *d, const char *slot) {
        FILE *f = open_drop_in(outputs, device_unit_name(d->name, slot, "service"));

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Spare Device '%s' of Machine %s\n", slot, d->name);
        put_belongs_to(outputs, f, d);
        /* Each device that is attached is a start. The usual limit would take the sixth within ten seconds for a failure. */
        (void) fputs("StartLimitIntervalSec=1min\nStartLimitBurst=400\n\n[Service]\n", f);
        put_name(outputs, f, "Slice", machine_slice_name(d->name));
        put_name(outputs, f, "User", unit_user_name(d->name, slot));
        put_default_mac(f, d, slot);
        (void) fprintf(f, "ExecStartPre=\nExecStart=\nExecStart=" LIBEXECDIR "/vmm-device slot\n"
                /* A successor of one that has been told to be another project's program (SLOT_STATUS_AGAIN). */
                "SuccessExitStatus=133\nRestartForceExitStatus=133\nRestart=on-failure\nRestartSec=0\n"
                /* What such a program may need: put_fs() has the reasons. */
                "KillMode=mixed\nSystemCallFilter=@chown\nLimitNOFILE=1048576\n"
                "LogExtraFields=VMM_MACHINE=%s\n", d->name);
        return outputs_close(outputs, f);
}

static int make_slots(Outputs *outputs, const MachineDefinition *d) {
        int r = 0;

        for (unsigned i = 0; i < d->hotplug_slots && r >= 0; i++) {
                char slot[DEVICE_NAME_MAX];

                slot_name(i, slot);
                r = slot_socket(outputs, d, slot);
                if (r >= 0)
                        r = slot_service(outputs, d, slot);
        }
        return r;
}

static int make_machine(Outputs *outputs, const MachineDefinition *d) {
        int r;

        r = machine_service(outputs, d);
        if (r >= 0)
                r = machine_definition(outputs, d);
        if (r >= 0)
                r = machine_socket(outputs, d);
        if (r >= 0)
                r = machine_slice(outputs, d);
        for (size_t i = 0; i < d->n_devices && r >= 0; i++) {
                r = device_socket(outputs, d, &d->devices[i]);
                if (r >= 0)
                        r = device_service(outputs, d, &d->devices[i]);
        }
        return r < 0 ? r : make_slots(outputs, d);
}

/* Lets `systemctl status` tell that the machine is known, and what keeps it from starting. */
static int make_refused(Outputs *outputs, const char *machine) {
        FILE *f = open_drop_in(outputs, machine_unit_name(machine, "service"));

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "[Unit]\nDescription=Virtual Machine %s (its definition is wrong)\n", machine);
        return outputs_close(outputs, f);
}

static int write_output(int dir, const Output *output) {
        _cleanup_close_ int subdir = -EBADF, fd = -EBADF;

        if (mkdirat(dir, output->directory, 0755) < 0 && errno != EEXIST)
                return -errno;
        subdir = openat(dir, output->directory, O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (subdir < 0)
                return -errno;
        /* O_EXCL: nothing is written twice. */
        fd = openat(subdir, output->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, output->mode);
        if (fd < 0)
                return -errno;
        return write_full(fd, output->text, output->size);
}

static void complain_about(const char *machine, const char *what, int error) {
        _cleanup_free_ char *text = NULL;

        if (asprintf(&text, "%s of machine '%s': %s", what, machine, strerrordesc_np(-error)) < 0)
                text = NULL;
        complain(machine, text ? text : "Out of memory.");
}

static void generate(int dir, const char *machine) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        _cleanup_(outputs_done) Outputs outputs = {};
        _cleanup_free_ char *text = NULL;
        int r;

        r = definition_load(getenv("VMM_ROOT"), machine, &d, &error);
        if (r == -ENOENT) /* gone since the directory was read */
                return;
        if (r == -EBADMSG) {
                text = definition_error_to_string(&error);
                complain(machine, text ? text : "Out of memory.");
        } else if (r < 0)
                complain_about(machine, "Cannot read the definition", r);

        r = r < 0 ? make_refused(&outputs, machine) : make_machine(&outputs, d);
        for (size_t i = 0; i < outputs.n && r >= 0; i++)
                r = write_output(dir, &outputs.outputs[i]);
        if (r < 0)
                complain_about(machine, "Cannot write the units", r);
}

static void complain_about_names(void) {
        _cleanup_(string_array_freep) char **files = NULL;

        if (definition_list_misnamed(getenv("VMM_ROOT"), &files) < 0)
                return;
        for (char **file = files; *file; file++) {
                _cleanup_free_ char *text = NULL;

                if (asprintf(&text, "%s: ignored, as its name cannot be that of a machine", *file) < 0)
                        text = NULL;
                /* A file's name is anything; this is a line. */
                for (char *p = text; p && *p; p++)
                        if ((unsigned char) *p < 0x20 || *p == 0x7f)
                                *p = '?';
                complain("", text ? text : "Out of memory.");
        }
}

int main(int argc, char *argv[]) {
        _cleanup_(string_array_freep) char **machines = NULL;
        _cleanup_close_ int dir = -EBADF;
        int r;

        if (argc != 2 && argc != 4) {
                (void) fprintf(stderr, "usage: vmm-generator NORMAL-DIR [EARLY-DIR LATE-DIR]\n");
                return EXIT_FAILURE;
        }
        (void) umask(0022);
        normal_dir = argv[1];
        dir = open(normal_dir, O_DIRECTORY | O_CLOEXEC);
        if (dir < 0) {
                (void) fprintf(stderr, "vmm-generator: Cannot open %s: %m\n", normal_dir);
                return EXIT_FAILURE;
        }

        complain_about_names();
        r = definition_list(getenv("VMM_ROOT"), &machines);
        if (r < 0) {
                complain_about("*", "Cannot list the definitions", r);
                return EXIT_SUCCESS;
        }
        for (char **machine = machines; *machine; machine++)
                generate(dir, *machine);
        return EXIT_SUCCESS;
}
