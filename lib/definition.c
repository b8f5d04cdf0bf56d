/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdio.h>

#include "definition.h"

static bool name_is_valid(const char *name, size_t maximum) {
        size_t length = strlen(name);

        if (length == 0 || length > maximum || strchr("._-", name[0]))
                return false;
        for (const char *p = name; *p; p++)
                if (!(*p >= 'a' && *p <= 'z') && !(*p >= 'A' && *p <= 'Z') && !(*p >= '0' && *p <= '9') && !strchr("._-", *p))
                        return false;
        return true;
}

bool machine_name_is_valid(const char *name) {
        return name_is_valid(name, MACHINE_NAME_MAX);
}

bool device_name_is_valid(const char *name) {
        return name_is_valid(name, DEVICE_NAME_MAX);
}

bool device_name_is_slot(const char *name) {
        const char *digits = startswith(name, MACHINE_SLOT_PREFIX);

        return digits && *digits && digits[strspn(digits, "0123456789")] == 0;
}

char **string_array_free(char **array) {
        for (char **s = array; s && *s; s++)
                free(*s);
        free(array);
        return NULL;
}

int string_array_add(char ***array, size_t *n, char *s) {
        char **grown = s ? reallocarray(*array, *n + 2, sizeof(char *)) : NULL;

        if (!grown) {
                free(s);
                return -ENOMEM;
        }
        *array = grown;
        grown[(*n)++] = s;
        grown[*n] = NULL;
        return 0;
}

MachineDefinition *machine_definition_free(MachineDefinition *definition) {
        if (!definition)
                return NULL;
        for (size_t i = 0; i < definition->n_devices; i++) {
                free(definition->devices[i].name);
                json_object_put(definition->devices[i].options);
        }
        free(definition->devices);
        free(definition->name);
        free(definition->kernel);
        free(definition->initrd);
        free(definition->device_tree_overlay);
        free(definition->command_line);
        free(definition->owner);
        free(definition->access_group);
        free(definition->read_group);
        string_array_free(definition->smbios_strings);
        json_object_put(definition->json);
        return mfree(definition);
}

static json_object *option_value(const DeviceDefinition *device, const char *option) {
        json_object *v = NULL;

        (void) json_object_object_get_ex(device->options, option, &v);
        return v;
}

bool device_definition_boolean(const DeviceDefinition *device, const char *option, bool otherwise) {
        json_object *v = option_value(device, option);

        return v ? json_object_get_boolean(v) : otherwise;
}

uint64_t device_definition_unsigned(const DeviceDefinition *device, const char *option, uint64_t otherwise) {
        json_object *v = option_value(device, option);

        return v ? json_object_get_uint64(v) : otherwise;
}

const char *device_definition_string(const DeviceDefinition *device, const char *option, const char *otherwise) {
        json_object *v = option_value(device, option);

        return v ? json_object_get_string(v) : otherwise;
}

const char *device_definition_list(const DeviceDefinition *device, const char *option, size_t i) {
        json_object *v = option_value(device, option);

        return v && i < json_object_array_length(v) ? json_object_get_string(json_object_array_get_idx(v, i)) : NULL;
}

const char *device_definition_path(const DeviceDefinition *device, const DeviceOption *option, size_t i) {
        switch (option->kind) {
        case DEVICE_OPTION_PATH:
        case DEVICE_OPTION_DIRECTORY:
                return i == 0 ? device_definition_string(device, option->name, NULL) : NULL;
        case DEVICE_OPTION_PATHS:
                return device_definition_list(device, option->name, i);
        default:
                return NULL;
        }
}

uint16_t device_definition_virtio_id(const DeviceDefinition *device) {
        return (uint16_t) device_definition_unsigned(device, "virtioId", device->type->virtio_id);
}

bool device_definition_is_foreign(const DeviceDefinition *device) {
        const char *type = device->type->name;

        return streq(type, "fs") || streq(type, "vhost-user") || device->type == &plugin_type ||
                (streq(type, "block") && !streq(device_definition_string(device, "format", "raw"), "raw")) ||
                (streq(type, "net") && !streq(device_definition_string(device, "backend", "tap"), "tap"));
}

unsigned device_definition_queues(const DeviceDefinition *device) {
        if (streq(device->type->name, "net") && device_definition_is_foreign(device))
                return 2; /* passt knows no control queue */
        if (device->type->queues_in_pairs)
                return 2 * (unsigned) device_definition_unsigned(device, "queuePairs", 1) + 1;
        if (device->type->queues_by_port && device_definition_list(device, "ports", 0)) {
                unsigned n = 0;

                while (device_definition_list(device, "ports", n))
                        n++;
                return 2 * (n + 1) + 2;
        }
        return (unsigned) device_definition_unsigned(device, "queues", device->type->queues_default);
}

/* The argument number `i` of an option, as there are several of a list; *ret is NULL behind the last one. */
static int option_argument(const DeviceDefinition *device, const DeviceOption *option, size_t i, char **ret) {
        _cleanup_free_ char *name = NULL;
        const char *value;
        int r;

        *ret = NULL;
        value = device_option_is_list(option) ? device_definition_list(device, option->name, i) :
                i == 0 ? device_definition_string(device, option->name, NULL) : NULL;
        if (!value)
                return 0;
        name = device_option_argument_name(option->name);
        if (!name)
                return -ENOMEM;
        if (option->kind == DEVICE_OPTION_BOOLEAN)
                value = device_definition_boolean(device, option->name, false) ? "yes" : "no";
        r = asprintf(ret, "--%s=%s", name, value);
        if (r < 0) {
                *ret = NULL;
                return -ENOMEM;
        }
        return 0;
}

int device_definition_arguments(const DeviceDefinition *device, char ***ret) {
        _cleanup_(string_array_freep) char **arguments = NULL;
        size_t n = 0, room = 2;
        int r;

        for (const DeviceOption *option = device->type->options; option->name; option++)
                room += device_option_is_list(option) ? DEVICE_OPTION_LIST_MAX : 1;
        arguments = calloc(room, sizeof(char *));
        if (!arguments)
                return -ENOMEM;
        arguments[n] = strdup(device->type->name);
        if (!arguments[n++])
                return -ENOMEM;
        for (const DeviceOption *option = device->type->options; option->name; option++)
                for (size_t i = 0; !option->for_vmmd; i++) {
                        r = option_argument(device, option, i, &arguments[n]);
                        if (r < 0)
                                return r;
                        if (!arguments[n])
                                break;
                        n++;
                }
        *ret = TAKE_PTR(arguments);
        return 0;
}

/* Whether the command line has an argument that begins with `key` ("root="). */
static bool command_line_has(const char *line, const char *key) {
        for (const char *p = line; (p = strstr(p, key)); p++)
                if (p == line || p[-1] == ' ')
                        return true;
        return false;
}

/* The kernel's name of the nth virtio disk: vda … vdz, vdaa … */
static void disk_name(unsigned n, char buffer[4]) {
        char *p = buffer;

        if (n >= 26)
                *p++ = (char) ('a' + n / 26 - 1);
        *p++ = (char) ('a' + n % 26);
        *p = 0;
}

static void put_pmem_root(FILE *f, const MachineDefinition *definition, const DeviceDefinition *d, unsigned index) {
        if (!device_definition_boolean(d, "root", false))
                return;
        (void) fprintf(f, " root=/dev/pmem%u %s", index, device_definition_boolean(d, "readOnly", false) ? "ro" : "rw");
        if (device_definition_boolean(d, "dax", false) && !command_line_has(definition->command_line, "rootflags="))
                (void) fputs(" rootflags=dax", f);
}

int machine_definition_command_line(const MachineDefinition *definition, char **ret) {
        bool own_console = command_line_has(definition->command_line, "console=");
        bool own_root = command_line_has(definition->command_line, "root=");
        _cleanup_free_ char *line = NULL;
        unsigned disks = 0, consoles = 0, pmems = 0;
        size_t size;
        FILE *f;

        f = open_memstream(&line, &size);
        if (!f)
                return -ENOMEM;
        (void) fputs(definition->command_line, f);

        for (size_t i = 0; i < definition->n_devices && !own_console; i++) {
                const DeviceDefinition *d = &definition->devices[i];

                if (streq(d->type->name, "serial") && device_definition_boolean(d, "console", true))
                        (void) fprintf(f, " console=ttyS%c", device_definition_string(d, "port", "com1")[3] - 1);
        }
        for (size_t i = 0; i < definition->n_devices && !own_console; i++)
                if (streq(definition->devices[i].type->name, "console"))
                        (void) fprintf(f, " console=hvc%u", consoles++);
        for (size_t i = 0; i < definition->n_devices && !own_root; i++) {
                const DeviceDefinition *d = &definition->devices[i];
                char name[4];

                if (streq(d->type->name, "pmem")) {
                        put_pmem_root(f, definition, d, pmems++);
                        continue;
                }
                if (!streq(d->type->name, "block"))
                        continue;
                disk_name(disks++, name);
                if (device_definition_boolean(d, "root", false))
                        (void) fprintf(f, " root=/dev/vd%s %s", name,
                                device_definition_boolean(d, "readOnly", false) ? "ro" : "rw");
        }

        if (fclose(f) != 0)
                return -ENOMEM;
        /* Our first argument came with a blank, also where the user has none. */
        if (line[0] == ' ')
                memmove(line, line + 1, strlen(line));
        *ret = TAKE_PTR(line);
        return 0;
}
