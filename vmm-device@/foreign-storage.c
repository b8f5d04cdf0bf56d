/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Disk images that are more than a row of blocks, and disks of other machines (NBD): qemu-storage-daemon. It opens its images below FOREIGN_FILES, so it has no other file, and
 * whichever an image names beside itself is one that the definition names, too. What changes while it runs goes by its monitor. */

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "block-control.h"
#include "foreign-image.h"
#include "foreign-qmp.h"
#include "foreign.h"
#include "interfaces.h"
#include "json-util.h"

#define PROGRAM "/usr/bin/qemu-storage-daemon"
#define QUEUES_MAX 16
#define NAME_MAX_BYTES 255
/* Names of its block nodes: the disk itself, and the key that it is encrypted with. */
#define NODE "disk"
#define KEY "key"

typedef struct Storage {
        Qmp *qmp;
        int monitor; /* until there is a client of it */
} Storage;

static Storage *storage_of(Foreign *f) {
        return f->data;
}

static const char *format_of(Foreign *f) {
        return device_option(f->device, "format") ?: "raw";
}

/* --- the command line --- */

/* `options` is what --blockdev and --export take as JSON; takes the reference over. */
static int add_json(Foreign *f, const char *argument, json_object *options, int error) {
        _cleanup_json_ json_object *owned = options;

        if (error < 0)
                return log_oom();
        return foreign_add(f, "--%s=%s", argument, json_object_to_json_string_ext(owned, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* The node of one file, by which its image gets at it. */
static json_object *file_node(Foreign *f, const char *name, bool read_only) {
        _cleanup_json_ json_object *node = json_object_new_object(), *cache = json_object_new_object();
        bool direct = device_option_boolean(f->device, "direct", false);
        _cleanup_free_ char *path = NULL;
        struct stat st;
        int fd = foreign_files_get(f->files, name);

        if (asprintf(&path, FOREIGN_FILES "%s", name) < 0) {
                path = NULL;
                return NULL;
        }
        if (!node || fstat(fd, &st) < 0)
                return NULL;
        if (json_add_string(node, "driver", S_ISBLK(st.st_mode) ? "host_device" : "file") < 0 || json_add_string(node, "filename", path) < 0 ||
                json_add_boolean(node, "read-only", read_only) < 0 || json_add_boolean(node, "auto-read-only", false) < 0 ||
                json_add_string(node, "discard", device_option_boolean(f->device, "discard", true) ? "unmap" : "ignore") < 0 ||
                !cache || json_add_boolean(cache, "direct", direct) < 0 || json_add(node, "cache", TAKE_PTR(cache)) < 0)
                return NULL;
        return TAKE_PTR(node);
}

/* An image on `file` (taken over); `backing` is the name of the node below it, or NULL. */
static int add_image_node(Foreign *f, const char *name, const char *format, json_object *file, const char *backing, bool read_only) {
        json_object *node = json_object_new_object();
        int r = node ? 0 : -ENOMEM;

        r = MIN(r, json_add(node, "file", file));
        if (r >= 0)
                r = json_add_string(node, "driver", format);
        if (r >= 0)
                r = json_add_string(node, "node-name", name);
        if (r >= 0)
                r = json_add_boolean(node, "read-only", read_only);
        if (r >= 0)
                r = json_add_string(node, "discard", device_option_boolean(f->device, "discard", true) ? "unmap" : "ignore");
        if (r >= 0 && streq(format, "luks"))
                r = json_add_string(node, "key-secret", KEY);
        /* Null: what the image itself names is never opened. */
        if (r >= 0 && streq(format, "qcow2"))
                r = backing ? json_add_string(node, "backing", backing) : json_object_object_add(node, "backing", NULL);
        return add_json(f, "blockdev", node, r);
}

/* --- images and what is below them --- */

static int read_header(Foreign *f, const char *name, const char *path, const char *format, ImageHeader *header) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = image_header_read(foreign_files_get(f->files, name), format, header, &message);
        return r < 0 ? log_error_errno(r, "Cannot use %s as a disk: %s.", path, message ?: "out of memory") : 0;
}

static int backing_format(const char *path, const ImageHeader *header, const char **ret) {
        static const char *const known[] = { "raw", "qcow2", "vmdk", "vhdx" };

        if (!header->backing_format)
                return log_error_errno(-EINVAL, "%s does not say of which format its backing file is (qemu-img rebase -u -F has it say so).", path);
        for (size_t i = 0; i < ELEMENTSOF(known); i++)
                if (streq(header->backing_format, known[i])) {
                        *ret = known[i];
                        return 0;
                }
        return log_error_errno(-EINVAL, "The backing file of %s is of format \"%s\", which is not possible here.", path, header->backing_format);
}

/* The image number `i` of the chain, where 0 is the disk itself, and first all those below it. An image names its backing file by a path of
 * the host that made it; what counts is that there is one where the definition has one. */
static int add_chain(Foreign *f, size_t i, const char *path, const char *format, const char *const *backing, size_t n_backing) {
        _cleanup_(image_header_done) ImageHeader header = {};
        char file[32] = "path", node[32] = NODE, below[32];
        bool read_only = i > 0 || device_option_boolean(f->device, "readOnly", false);
        json_object *below_file;
        const char *next = "raw";
        int r;

        if (i > 0) {
                (void) snprintf(file, sizeof(file), "backing-%zu", i - 1);
                (void) snprintf(node, sizeof(node), NODE "-%zu", i);
        }
        (void) snprintf(below, sizeof(below), NODE "-%zu", i + 1);
        r = read_header(f, file, path, format, &header);
        if (r < 0)
                return r;
        if (header.backing && i == n_backing)
                return log_error_errno(-EINVAL, "%s has a backing file, \"%s\", which \"backing\" does not name.", path, header.backing);
        if (!header.backing && i < n_backing)
                return log_error_errno(-EINVAL, "%s has no backing file, but \"backing\" names %s.", path, backing[i]);
        if (header.backing) {
                r = backing_format(path, &header, &next);
                if (r >= 0)
                        r = add_chain(f, i + 1, backing[i], next, backing, n_backing);
                if (r < 0)
                        return r;
        }
        below_file = file_node(f, file, read_only);
        return add_image_node(f, node, format, below_file, header.backing ? below : NULL, read_only);
}

static int open_file(Foreign *f, const char *name, const char *path, int fd) {
        if (fd < 0)
                return log_error_errno(fd, "Cannot open %s: %m", path);
        return foreign_file(f, name, fd);
}

static int add_images(Foreign *f) {
        Device *d = f->device;
        const char *path = device_option(d, "path");
        const char *const *backing;
        size_t n;
        int r;

        backing = device_option_list(d, "backing", &n);
        r = open_file(f, "path", path, device_open_path(d, "path", device_option_boolean(d, "readOnly", false) ? O_RDONLY : O_RDWR));
        for (size_t i = 0; i < n && r >= 0; i++) {
                char name[32];

                (void) snprintf(name, sizeof(name), "backing-%zu", i);
                r = open_file(f, name, backing[i], device_open_path_of(d, "backing", i, O_RDONLY));
        }
        return r < 0 ? r : add_chain(f, 0, path, format_of(f), backing, n);
}

/* --- LUKS --- */

static int open_credential(const char *name) {
        const char *directory = getenv("CREDENTIALS_DIRECTORY");
        _cleanup_free_ char *path = NULL;
        int fd;

        if (!directory)
                return -ENOENT;
        if (asprintf(&path, "%s/%s", directory, name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        fd = open(path, O_RDONLY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

static int add_key(Foreign *f) {
        const char *file = device_option(f->device, "keyFile"), *credential = device_option(f->device, "keyCredential");
        int fd, r;

        if (!file == !credential)
                return log_error_errno(-EINVAL, "A disk of format luks has one of \"keyFile\" and \"keyCredential\".");
        fd = file ? device_open_path(f->device, "keyFile", O_RDONLY) : open_credential(credential);
        if (fd < 0)
                return log_error_errno(fd, "Cannot open the key, %s %s: %m", file ? "file" : "credential", file ?: credential);
        r = foreign_file(f, KEY, fd);
        return r < 0 ? r : foreign_add(f, "--object=secret,id=" KEY ",file=" FOREIGN_FILES KEY);
}

/* --- NBD --- */

static int add_server(json_object *node, const char *address) {
        _cleanup_json_ json_object *server = json_object_new_object();
        const char *path = startswith(address, "unix:"), *colon = strrchr(address, ':');
        _cleanup_free_ char *host = NULL;
        int r;

        if (!path) {
                /* "[ADDRESS]:PORT" or "ADDRESS:PORT": the type's table has seen to it. */
                bool brackets = address[0] == '[';

                if (!colon || colon - address < (brackets ? 3 : 1))
                        return -EINVAL;
                host = strndup(address + brackets, (size_t) (colon - address) - (brackets ? 2U : 0U));
                if (!host)
                        return -ENOMEM;
        }
        r = json_add_string(server, "type", path ? "unix" : "inet");
        if (r >= 0)
                r = path ? json_add_string(server, "path", path) : json_add_string(server, "host", host);
        if (r >= 0 && !path)
                r = json_add_string(server, "port", colon + 1);
        return r < 0 ? r : json_add(node, "server", TAKE_PTR(server));
}

static int add_nbd(Foreign *f) {
        json_object *node = json_object_new_object();
        const char *export = device_option(f->device, "export");
        int r = node ? 0 : -ENOMEM;

        if (r >= 0)
                r = add_server(node, device_option(f->device, "server") ?: "");
        if (r >= 0)
                r = json_add_string(node, "driver", "nbd");
        if (r >= 0)
                r = json_add_string(node, "node-name", NODE);
        if (r >= 0)
                r = json_add_string(node, "export", export);
        if (r >= 0)
                r = json_add_boolean(node, "read-only", device_option_boolean(f->device, "readOnly", false));
        /* The server may come again: requests wait so long, as they would on another machine's disk. */
        if (r >= 0)
                r = json_add_integer(node, "reconnect-delay", 60);
        return add_json(f, "blockdev", node, r);
}

/* --- all of it --- */

static int add_export(Foreign *f, int listening) {
        Device *d = f->device;
        unsigned queues = (unsigned) device_option_unsigned(d, "queues", 1);
        json_object *export = json_object_new_object(), *address = json_object_new_object();
        char number[16];
        int r = export && address ? 0 : -ENOMEM;

        (void) snprintf(number, sizeof(number), "%d", listening);
        if (r >= 0)
                r = json_add_string(address, "type", "fd");
        if (r >= 0)
                r = json_add_string(address, "str", number);
        if (r >= 0)
                r = json_add(export, "addr", TAKE_PTR(address));
        (void) json_object_put(address);
        if (r >= 0)
                r = json_add_string(export, "type", "vhost-user-blk");
        if (r >= 0)
                r = json_add_string(export, "id", "export");
        if (r >= 0)
                r = json_add_string(export, "node-name", NODE);
        if (r >= 0)
                r = json_add_boolean(export, "writable", !device_option_boolean(d, "readOnly", false));
        if (r >= 0)
                r = json_add_integer(export, "num-queues", queues);
        if (r >= 0)
                r = json_add_integer(export, "logical-block-size", (int64_t) device_option_unsigned(d, "blockSize", 512));
        device_set_n_queues(d, queues);
        return add_json(f, "export", export, r);
}

static int add_monitor(Foreign *f) {
        int pair[2], theirs, r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return log_error_errno(errno, "Cannot make a socket pair: %m");
        storage_of(f)->monitor = pair[0];
        theirs = foreign_keep(f, pair[1]);
        if (theirs < 0)
                return theirs;
        r = foreign_add(f, "--chardev=socket,id=monitor,fd=%d", theirs);
        return r < 0 ? r : foreign_add(f, "--monitor=chardev=monitor");
}

static int storage_prepare(Foreign *f) {
        Storage *s = calloc(1, sizeof(Storage));
        bool is_nbd = streq(format_of(f), "nbd");
        int listening, r;

        if (!s)
                return log_oom();
        s->monitor = -EBADF;
        f->data = s;
        listening = foreign_socket(f, FOREIGN_SOCKET_LISTENING);
        if (listening < 0)
                return listening;
        r = foreign_add(f, PROGRAM);
        if (r >= 0)
                r = add_monitor(f);
        if (r >= 0 && streq(format_of(f), "luks"))
                r = add_key(f);
        if (r >= 0)
                r = is_nbd ? add_nbd(f) : add_images(f);
        return r < 0 ? r : add_export(f, listening);
}

static int storage_started(Foreign *f) {
        Storage *s = storage_of(f);
        int r;

        r = qmp_new(device_event(f->device), TAKE_FD(s->monitor), &s->qmp);
        return r < 0 ? log_error_errno(r, "Cannot talk to %s: %m", PROGRAM) : 0;
}

static void storage_describe(Foreign *f, json_object *into) {
        (void) json_add_string(into, "format", format_of(f));
        (void) json_add_boolean(into, "readOnly", device_option_boolean(f->device, "readOnly", false));
}

static void storage_close(Foreign *f) {
        Storage *s = storage_of(f);

        if (!s)
                return;
        (void) qmp_free(s->qmp);
        (void) safe_close(s->monitor);
        free(s);
}

/* --- what its monitor does --- */

/* A call that is answered when the monitor has. */
typedef struct Pending {
        VarlinkCall *call;
        Foreign *foreign;
        uint64_t size;
} Pending;

static void pending_free(Pending *p) {
        (void) varlink_call_unref(p->call);
        free(p);
}

/* `arguments` are taken over. */
static int ask(Foreign *f, VarlinkCall *call, uint64_t size, const char *command, json_object *arguments, QmpAnswer answer) {
        Pending *p = calloc(1, sizeof(Pending));
        int r;

        if (!p) {
                (void) json_object_put(arguments);
                return -ENOMEM;
        }
        *p = (Pending) { .call = varlink_call_ref(call), .foreign = f, .size = size };
        r = qmp_call(storage_of(f)->qmp, command, arguments, answer, p);
        if (r < 0)
                pending_free(p);
        return r;
}

/* What query-named-block-nodes says of the disk's image; borrowed. */
static json_object *find_image(json_object *nodes) {
        for (size_t i = 0; json_object_is_type(nodes, json_type_array) && i < json_object_array_length(nodes); i++) {
                json_object *node = json_object_array_get_idx(nodes, i);

                if (streq(json_get_string(node, "node-name", ""), NODE))
                        return json_get(node, "image", json_type_object);
        }
        return NULL;
}

static int ask_for_nodes(Foreign *f, VarlinkCall *call, QmpAnswer answer) {
        json_object *arguments = json_object_new_object();
        int r;

        r = arguments ? json_add_boolean(arguments, "flat", true) : -ENOMEM;
        if (r < 0) {
                (void) json_object_put(arguments);
                return r;
        }
        return ask(f, call, 0, "query-named-block-nodes", arguments, answer);
}

static void on_size(const char *error, json_object *result, void *userdata) {
        Pending *p = userdata;
        int64_t size = json_get_integer(find_image(result), "virtual-size", -1);

        if (error || size < 0)
                (void) block_reply_unavailable(p->call, "the size of the disk cannot be found out: %s", error ?: "the program does not say");
        else
                (void) block_reply_size(p->call, (uint64_t) size);
        pending_free(p);
}

/* Before QEMU 8.1 it does not tell its front-end, and says what the size was at first. */
static void tell_size(Foreign *f, uint64_t size) {
        store_le64(f->addition.config, size / 512); /* virtio 1.2 §5.2.4: in these units, and at the beginning */
        f->addition.config_size = sizeof(uint64_t);
        if (f->device->relay)
                relay_config_changed(f->device->relay);
}

static void on_resized(const char *error, json_object *result, void *userdata) {
        Pending *p = userdata;

        if (error)
                (void) block_reply_unavailable(p->call, "the image cannot be given %llu bytes: %s", (unsigned long long) p->size, error);
        else {
                log_info("The disk has %llu bytes now.", (unsigned long long) p->size);
                tell_size(p->foreign, p->size);
                (void) block_reply_size(p->call, p->size);
        }
        pending_free(p);
}

static int on_resize(Device *d, VarlinkCall *call, json_object *parameters) {
        Foreign *f = foreign_of(d);
        json_object *wanted = json_get(parameters, "size", json_type_int), *arguments;
        int64_t size = json_object_get_int64(wanted);
        int r;

        if (!wanted)
                return ask_for_nodes(f, call, on_size);
        if (size <= 0 || (uint64_t) size % device_option_unsigned(d, "blockSize", 512) != 0)
                return varlink_call_error_invalid_parameter(call, "size");
        if (device_option_boolean(d, "readOnly", false))
                return block_reply_unavailable(call, "the disk is read-only");
        arguments = json_object_new_object();
        r = arguments ? json_add_string(arguments, "node-name", NODE) : -ENOMEM;
        if (r >= 0)
                r = json_add_integer(arguments, "size", size);
        if (r < 0) {
                (void) json_object_put(arguments);
                return r;
        }
        return ask(f, call, (uint64_t) size, "block_resize", arguments, on_resized);
}

static int reply_failed(VarlinkCall *call, const char *reason) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "reason", reason) < 0)
                return varlink_call_error_errno(call, -ENOMEM);
        return varlink_call_error(call, "io.vmmd.Image.Failed", parameters);
}

static json_object *snapshots_json(json_object *image) {
        _cleanup_json_ json_object *to = json_object_new_array();
        json_object *from = json_get(image, "snapshots", json_type_array);

        if (!to)
                return NULL;
        for (size_t i = 0; from && i < json_object_array_length(from); i++) {
                json_object *s = json_object_array_get_idx(from, i), *o = json_object_new_object();

                if (json_append(to, o) < 0 || json_add_string(o, "id", json_get_string(s, "id", "")) < 0 ||
                        json_add_string(o, "name", json_get_string(s, "name", "")) < 0 ||
                        json_add_integer(o, "time", json_get_integer(s, "date-sec", 0)) < 0)
                        return NULL;
        }
        return TAKE_PTR(to);
}

static void on_described(const char *error, json_object *result, void *userdata) {
        Pending *p = userdata;
        json_object *image = find_image(result);
        _cleanup_json_ json_object *reply = json_object_new_object();
        int64_t occupied = json_get_integer(image, "actual-size", -1);

        if (error || !image)
                (void) reply_failed(p->call, error ?: "it does not say");
        else if (!reply || json_add_string(reply, "format", format_of(p->foreign)) < 0 ||
                json_add_integer(reply, "size", json_get_integer(image, "virtual-size", 0)) < 0 ||
                (occupied >= 0 && json_add_integer(reply, "occupied", occupied) < 0) ||
                json_add(reply, "snapshots", snapshots_json(image)) < 0)
                (void) varlink_call_error_errno(p->call, -ENOMEM);
        else
                (void) varlink_call_reply(p->call, reply);
        pending_free(p);
}

static int method_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        return ask_for_nodes(foreign_of(userdata), call, on_described);
}

static void on_done(const char *error, json_object *result, void *userdata) {
        Pending *p = userdata;

        if (error)
                (void) reply_failed(p->call, error);
        else
                (void) varlink_call_reply(p->call, NULL);
        pending_free(p);
}

static int snapshot(VarlinkCall *call, json_object *parameters, Foreign *f, const char *command) {
        const char *name = json_get_string(parameters, "name", "");
        json_object *arguments;
        int r;

        if (!*name || strlen(name) > NAME_MAX_BYTES)
                return varlink_call_error_invalid_parameter(call, "name");
        for (const char *p = name; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return varlink_call_error_invalid_parameter(call, "name");
        arguments = json_object_new_object();
        r = arguments ? json_add_string(arguments, "device", NODE) : -ENOMEM;
        if (r >= 0)
                r = json_add_string(arguments, "name", name);
        if (r < 0) {
                (void) json_object_put(arguments);
                return r;
        }
        return ask(f, call, 0, command, arguments, on_done);
}

static int method_create_snapshot(VarlinkCall *call, json_object *parameters, void *userdata) {
        return snapshot(call, parameters, foreign_of(userdata), "blockdev-snapshot-internal-sync");
}

static int method_delete_snapshot(VarlinkCall *call, json_object *parameters, void *userdata) {
        return snapshot(call, parameters, foreign_of(userdata), "blockdev-snapshot-delete-internal-sync");
}

static const DeviceControl storage_control[] = {
        { .method = "Resize", .call = on_resize, .privileged = true },
        {},
};

static const VarlinkMethod storage_methods[] = {
        { .name = "Describe", .callback = method_describe },
        { .name = "CreateSnapshot", .callback = method_create_snapshot, .flags = VARLINK_METHOD_PRIVILEGED },
        { .name = "DeleteSnapshot", .callback = method_delete_snapshot, .flags = VARLINK_METHOD_PRIVILEGED },
        {},
};

static const ForeignClass storage_foreign = {
        .package = "qemu-system-common (Debian 12) or qemu-utils (from Debian 13 on)",
        .prepare = storage_prepare,
        .started = storage_started,
        .describe = storage_describe,
        .close = storage_close,
};

const DeviceClass storage_device = {
        .name = "block",
        .virtio_id = 2,
        .queues_max = QUEUES_MAX,
        .policy = "foreign",
        .open = foreign_open,
        .close = foreign_close,
        .describe = foreign_describe,
        .control = storage_control,
        .interface = varlink_text_io_vmmd_Image,
        .methods = storage_methods,
        .foreign = &storage_foreign,
};
