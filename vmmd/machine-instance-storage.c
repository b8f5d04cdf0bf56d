/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>

#include "attach-definition.h"
#include "hotplug.h"
#include "json-util.h"
#include "machine-device-internal.h"
#include "machine-instance-storage.h"

#define INTERFACE "io.systemd.MachineInstance"

/* The interface has no time of its own. */
#define TIMEOUT_USEC (30 * USEC_PER_SEC)

/* One call that waits for the guest or a helper. */
typedef struct Storage {
        VarlinkCall *call;
        Machine *machine;
        char *name;
        json_object *device; /* as in a definition */
        int fd;              /* until it is attached */
} Storage;

static Storage *storage_free(Storage *s) {
        if (!s)
                return NULL;
        (void) varlink_call_unref(s->call);
        (void) json_object_put(s->device);
        (void) safe_close(s->fd);
        free(s->name);
        return mfree(s);
}
DEFINE_CLEANUP(Storage, storage_free)

static int storage_new(VarlinkCall *call, Machine *m, const char *name, Storage **ret) {
        _cleanup_(storage_freep) Storage *s = calloc(1, sizeof(Storage));

        if (!s)
                return -ENOMEM;
        s->call = varlink_call_ref(call);
        s->machine = m;
        s->fd = -EBADF;
        s->name = strdup(name);
        if (!s->name)
                return -ENOMEM;
        *ret = TAKE_PTR(s);
        return 0;
}

static int answer(VarlinkCall *call, int error) {
        switch (error) {
        case 0:
                return varlink_call_reply(call, NULL);
        case -EEXIST:
                return varlink_call_error(call, INTERFACE ".StorageExists", NULL);
        case -EINVAL:
                return varlink_call_error(call, INTERFACE ".ConfigNotSupported", NULL);
        case -EOPNOTSUPP:
                return varlink_call_error(call, INTERFACE ".StorageImmutable", NULL);
        default:
                return error;
        }
}

static void on_done(MachineDevice *d, int error, const char *message, void *userdata) {
        _cleanup_(storage_freep) Storage *s = userdata;
        int r;

        r = answer(s->call, error);
        if (r < 0)
                (void) varlink_call_error_errno(s->call, r);
}

/* --- what "config" says --- */

typedef struct Config {
        const char *format;
        bool read_only, read_write;
} Config;

/* Words with commas between them. -EBADMSG where one is none, -EOPNOTSUPP where it is one that we do not have. */
static int take_word(const char *word, size_t length, Config *config) {
        static const char *const formats[] = { "raw", "qcow2", "vmdk", "vhdx" };
        static const char *const others[] = { "virtio-scsi", "nvme", "scsi-cd" };
        char text[16];

        if (length >= sizeof(text))
                return -EBADMSG;
        memcpy(text, word, length);
        text[length] = 0;
        if (streq(text, "ro"))
                config->read_only = true;
        else if (streq(text, "rw"))
                config->read_write = true;
        else if (!streq(text, "virtio-blk")) {
                for (size_t i = 0; i < ELEMENTSOF(formats); i++)
                        if (streq(text, formats[i])) {
                                if (config->format)
                                        return -EBADMSG;
                                config->format = formats[i];
                                return 0;
                        }
                for (size_t i = 0; i < ELEMENTSOF(others); i++)
                        if (streq(text, others[i]))
                                return -EOPNOTSUPP;
                return -EBADMSG;
        }
        return 0;
}

static int take_config(const char *text, Config *ret) {
        int r = 0;

        *ret = (Config) {};
        while (text && r >= 0) {
                size_t length = strcspn(text, ",");

                r = take_word(text, length, ret);
                text = text[length] == ',' ? text + length + 1 : NULL;
        }
        return r < 0 ? r : ret->read_only && ret->read_write ? -EBADMSG : 0;
}

/* Without a word about it, the disk is as writable as its descriptor. */
static int take_mode(int fd, Config *config) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0)
                return -errno;
        if ((flags & O_ACCMODE) == O_WRONLY || (config->read_write && (flags & O_ACCMODE) != O_RDWR))
                return -EBADMSG;
        if ((flags & O_ACCMODE) == O_RDONLY)
                config->read_only = true;
        return 0;
}

static int make_device(const char *name, const Config *config, json_object **ret) {
        _cleanup_json_ json_object *device = json_object_new_object();
        _cleanup_free_ char *path = NULL;
        int r;

        /* A name for messages: what it is of is known to whoever passed it. */
        if (asprintf(&path, "/passed/%s", name) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        r = device ? json_add_string(device, "type", "block") : -ENOMEM;
        if (r >= 0)
                r = json_add_string(device, "path", path);
        if (r >= 0 && config->format && !streq(config->format, "raw"))
                r = json_add_string(device, "format", config->format);
        if (r >= 0 && config->read_only)
                r = json_add_boolean(device, "readOnly", true);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(device);
        return 0;
}

/* --- methods --- */

/* Takes `s` over, also on error. */
static int attach(Storage *s) {
        _cleanup_(storage_freep) Storage *owned = s;
        _cleanup_(machine_definition_freep) MachineDefinition *definition = NULL;
        SlotDescriptor *descriptor;
        int r;

        r = machine_device_find(s->machine, s->name) ? -EEXIST :
                attach_definition_new(s->machine, s->name, s->device, &definition, NULL);
        if (r < 0)
                return r;
        descriptor = calloc(1, sizeof(SlotDescriptor));
        if (!descriptor)
                return -ENOMEM;
        descriptor->fd = TAKE_FD(s->fd);
        descriptor->option = strdup("path");
        if (!descriptor->option) {
                (void) slot_descriptors_free(descriptor, 1);
                return -ENOMEM;
        }
        r = hotplug_attach(s->machine->hotplug, TAKE_PTR(definition), s->name, descriptor, 1, TIMEOUT_USEC, on_done, s);
        if (r >= 0)
                TAKE_PTR(owned);
        return r;
}

int storage_add(VarlinkCall *call, json_object *parameters, Machine *m) {
        const char *name = json_get_string(parameters, "name", "");
        _cleanup_(storage_freep) Storage *s = NULL;
        Config config;
        int r;

        r = storage_new(call, m, name, &s);
        if (r < 0)
                return r;
        s->fd = varlink_call_take_fd(call, json_get_integer(parameters, "fileDescriptorIndex", -1));
        if (s->fd < 0)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");
        if (!device_name_is_valid(name))
                return varlink_call_error_invalid_parameter(call, "name");
        r = take_config(json_get_string(parameters, "config", NULL), &config);
        if (r >= 0)
                r = take_mode(s->fd, &config);
        if (r == -EBADMSG)
                return varlink_call_error(call, INTERFACE ".BadConfig", NULL);
        if (r == -EOPNOTSUPP)
                return varlink_call_error(call, INTERFACE ".ConfigNotSupported", NULL);
        if (r >= 0)
                r = make_device(name, &config, &s->device);
        if (r < 0)
                return r;
        r = attach(TAKE_PTR(s));
        return r < 0 ? answer(call, r) : 0;
}

/* The disk that is meant; > 0 where it can be changed, else the call was answered. */
static int find_storage(VarlinkCall *call, Machine *m, const char *name, MachineDevice **ret) {
        *ret = machine_device_find(m, name);
        if (!*ret || !streq((*ret)->definition->type->name, "block"))
                return varlink_call_error(call, INTERFACE ".NoSuchStorage", NULL);
        /* What the definition says is the definition's; io.vmmd.Machine.DetachDevice is for who knows what he does. */
        if (!machine_device_is_attached(*ret))
                return varlink_call_error(call, INTERFACE ".StorageImmutable", NULL);
        return 1;
}

static int detach(Storage *s, MachineDevice *d, HotplugDone done) {
        _cleanup_(storage_freep) Storage *owned = s;
        VarlinkCall *call = s->call;
        int r;

        r = hotplug_detach(s->machine->hotplug, d, TIMEOUT_USEC, false, done, s);
        if (r < 0)
                return answer(call, r);
        TAKE_PTR(owned);
        return 0;
}

int storage_remove(VarlinkCall *call, json_object *parameters, Machine *m) {
        const char *name = json_get_string(parameters, "name", "");
        _cleanup_(storage_freep) Storage *s = NULL;
        MachineDevice *d;
        int r;

        r = find_storage(call, m, name, &d);
        if (r <= 0)
                return r;
        r = storage_new(call, m, name, &s);
        return r < 0 ? r : detach(TAKE_PTR(s), d, on_done);
}

/* The old one is gone: now the new one. */
static void on_removed(MachineDevice *d, int error, const char *message, void *userdata) {
        _cleanup_(storage_freep) Storage *s = userdata;
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = varlink_call_ref(s->call);
        int r = error;

        if (r >= 0)
                r = attach(TAKE_PTR(s));
        if (r < 0)
                r = answer(call, r);
        if (r < 0)
                (void) varlink_call_error_errno(call, r);
}

/* What is read-only stays so; what is written needs a descriptor that can be. */
static bool fits(int fd, json_object *device) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY)
                return false;
        return (flags & O_ACCMODE) == O_RDWR || json_get_boolean(device, "readOnly", false);
}

int storage_replace(VarlinkCall *call, json_object *parameters, Machine *m) {
        const char *name = json_get_string(parameters, "name", "");
        _cleanup_(storage_freep) Storage *s = NULL;
        MachineDevice *d;
        int r;

        r = storage_new(call, m, name, &s);
        if (r < 0)
                return r;
        s->fd = varlink_call_take_fd(call, json_get_integer(parameters, "fileDescriptorIndex", -1));
        if (s->fd < 0)
                return varlink_call_error_invalid_parameter(call, "fileDescriptorIndex");
        r = find_storage(call, m, name, &d);
        if (r <= 0)
                return r;
        s->device = json_object_get(attach_definition_json(d->attached, name));
        if (!fits(s->fd, s->device))
                return varlink_call_error(call, INTERFACE ".BadConfig", NULL);
        return detach(TAKE_PTR(s), d, on_removed);
}
