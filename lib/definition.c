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

char **string_array_free(char **array) {
        for (char **s = array; s && *s; s++)
                free(*s);
        free(array);
        return NULL;
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
        free(definition->command_line);
        free(definition->access_group);
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

unsigned device_definition_queues(const DeviceDefinition *device) {
        return (unsigned) device_definition_unsigned(device, "queues", device->type->queues_default);
}

static int option_argument(const DeviceDefinition *device, const DeviceOption *option, char **ret) {
        _cleanup_free_ char *name = device_option_argument_name(option->name);
        int r;

        if (!name)
                return -ENOMEM;
        switch (option->kind) {
        case DEVICE_OPTION_BOOLEAN:
                r = asprintf(ret, "--%s=%s", name, device_definition_boolean(device, option->name, false) ? "yes" : "no");
                break;
        case DEVICE_OPTION_UNSIGNED:
        case DEVICE_OPTION_SIZE:
                r = asprintf(ret, "--%s=%" PRIu64, name, device_definition_unsigned(device, option->name, 0));
                break;
        default:
                r = asprintf(ret, "--%s=%s", name, device_definition_string(device, option->name, ""));
        }
        return r < 0 ? -ENOMEM : 0;
}

int device_definition_arguments(const DeviceDefinition *device, char ***ret) {
        _cleanup_(string_array_freep) char **arguments = NULL;
        size_t n = 0, room = 2;
        int r;

        for (const DeviceOption *option = device->type->options; option->name; option++)
                room++;
        arguments = calloc(room, sizeof(char *));
        if (!arguments)
                return -ENOMEM;
        arguments[n] = strdup(device->type->name);
        if (!arguments[n++])
                return -ENOMEM;
        for (const DeviceOption *option = device->type->options; option->name; option++) {
                if (option->for_vmmd || !option_value(device, option->name))
                        continue;
                r = option_argument(device, option, &arguments[n]);
                if (r < 0) {
                        arguments[n] = NULL;
                        return r;
                }
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

int machine_definition_command_line(const MachineDefinition *definition, char **ret) {
        bool own_console = command_line_has(definition->command_line, "console=");
        bool own_root = command_line_has(definition->command_line, "root=");
        _cleanup_free_ char *line = NULL;
        unsigned disks = 0, consoles = 0;
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
