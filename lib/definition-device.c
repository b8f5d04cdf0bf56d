/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The "devices" of a definition, checked against the table of device types. */

#include <stdio.h>

#include "definition-internal.h"
#include "unit-name.h"

/* The names in a table of options, with "type" before them; NULL-terminated, only the array is the caller's. */
static const char **option_names(const DeviceType *type) {
        const char **names;
        size_t n = 0, i = 0;

        for (const DeviceOption *option = type->options; option->name; option++)
                n++;
        names = calloc(n + 2, sizeof(char *));
        if (!names)
                return NULL;
        names[i++] = "type";
        for (const DeviceOption *option = type->options; option->name; option++)
                names[i++] = option->name;
        return names;
}

static int take_unsigned_of(const DefinitionCheck *c, const DeviceOption *option, const char *pointer, json_object *v,
        json_object **ret) {
        uint64_t value;
        int r;

        r = definition_take_unsigned(c, pointer, v, option->minimum, option->maximum, &value);
        if (r < 0)
                return r;
        for (size_t i = 0; option->values; i++) {
                char text[24];

                if (!option->values[i])
                        return definition_refuse(c, pointer, "%s or %s", option->values[0], option->values[i - 1]);
                (void) snprintf(text, sizeof(text), "%llu", (unsigned long long) value);
                if (streq(text, option->values[i]))
                        break;
        }
        *ret = json_object_new_uint64(value);
        return *ret ? 0 : -ENOMEM;
}

static int take_string_of(const DefinitionCheck *c, const DeviceOption *option, const char *pointer, json_object *v,
        json_object **ret) {
        const char *text;
        int r;

        r = definition_take_string(c, pointer, v, option->maximum, &text);
        if (r < 0)
                return r;
        for (const char *p = text; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return definition_refuse(c, pointer, "a string without control characters");
        *ret = json_object_new_string(text);
        return *ret ? 0 : -ENOMEM;
}

/* Checks one option's value; *ret is its normalized form. */
static int take_option(const DefinitionCheck *c, const DeviceOption *option, const char *pointer, json_object *v,
        json_object **ret) {
        const char *text = NULL;
        uint64_t number = 0;
        size_t index = 0;
        bool truth = false;
        int r;

        switch (option->kind) {
        case DEVICE_OPTION_BOOLEAN:
                r = definition_take_boolean(c, pointer, v, &truth);
                if (r >= 0)
                        *ret = json_object_new_boolean(truth);
                break;
        case DEVICE_OPTION_UNSIGNED:
                return take_unsigned_of(c, option, pointer, v, ret);
        case DEVICE_OPTION_SIZE:
                r = definition_take_size(c, pointer, v, option->minimum, option->maximum, &number);
                if (r >= 0)
                        *ret = json_object_new_uint64(number);
                break;
        case DEVICE_OPTION_STRING:
                return take_string_of(c, option, pointer, v, ret);
        case DEVICE_OPTION_ENUM:
                r = definition_take_enum(c, pointer, v, option->values, &index);
                if (r >= 0)
                        *ret = json_object_new_string(option->values[index]);
                break;
        case DEVICE_OPTION_PATH:
                r = definition_take_path(c, pointer, v, &text);
                if (r >= 0)
                        *ret = json_object_new_string(text);
                break;
        default:
                assert(false);
                return -EINVAL;
        }
        if (r < 0)
                return r;
        return *ret ? 0 : -ENOMEM;
}

static int take_type(const DefinitionCheck *c, const char *pointer, json_object *v, const DeviceType **ret) {
        const char *names[16];
        _cleanup_free_ char *child = json_pointer_join(pointer, "type");
        const DeviceType *type = NULL;
        json_object *name = NULL;
        size_t n = 0, index;

        if (!child)
                return -ENOMEM;
        for (; device_types[n].name; n++) {
                assert(n < ELEMENTSOF(names) - 1);
                names[n] = device_types[n].name;
        }
        names[n] = NULL;

        if (!json_object_object_get_ex(v, "type", &name))
                return definition_refuse_missing(c, pointer, "type", "a device type");
        if (json_object_is_type(name, json_type_string))
                type = device_type_find(json_object_get_string(name));
        if (!type)
                return definition_take_enum(c, child, name, names, &index);
        *ret = type;
        return 0;
}

static int take_options(const DefinitionCheck *c, const char *pointer, json_object *v, DeviceDefinition *device) {
        int r;

        device->options = json_object_new_object();
        if (!device->options)
                return -ENOMEM;

        json_object_object_foreach(v, key, value) {
                _cleanup_free_ char *child = json_pointer_join(pointer, key);
                const DeviceOption *option = device_type_find_option(device->type, key);
                json_object *normalized = NULL;

                if (!child)
                        return -ENOMEM;
                if (streq(key, "type"))
                        continue;
                if (!option) {
                        _cleanup_free_ const char **names = option_names(device->type);
                        _cleanup_free_ char *what = NULL;
                        if (!names || asprintf(&what, "a device of type %s", device->type->name) < 0) {
                                what = NULL;
                                return -ENOMEM;
                        }
                        return definition_refuse_key(c, pointer, key, names, what);
                }
                r = take_option(c, option, child, value, &normalized);
                if (r < 0)
                        return r;
                if (json_object_object_add(device->options, key, normalized) < 0) {
                        json_object_put(normalized);
                        return -ENOMEM;
                }
        }

        for (const DeviceOption *option = device->type->options; option->name; option++)
                if (option->required && !json_object_object_get_ex(device->options, option->name, NULL))
                        return definition_refuse_missing(c, pointer, option->name, option->description);
        return 0;
}

/* vmm-device@…, with ".d" behind it, is a directory's name in the end. */
static int check_unit_name(const DefinitionCheck *c, const char *pointer, const char *machine, const char *device) {
        _cleanup_free_ char *unit = device_unit_name(machine, device, "service.d");

        if (!unit)
                return -ENOMEM;
        if (strlen(unit) > UNIT_NAME_LENGTH_MAX)
                return definition_refuse_found(c, pointer, "a name that is too long with that of the machine",
                        "a shorter name, or one with fewer dashes: the name of its unit would have %zu bytes, and %d are possible",
                        strlen(unit), UNIT_NAME_LENGTH_MAX);
        return 0;
}

static int take_device(const DefinitionCheck *c, const char *pointer, const char *name, json_object *v,
        const char *machine, DeviceDefinition *device) {
        int r;

        device->name = strdup(name);
        if (!device->name)
                return -ENOMEM;
        if (!device_name_is_valid(name))
                return definition_refuse_found(c, pointer, "a device with that name",
                        "a name of at most %d letters, digits, dots, dashes and underscores, beginning with a letter or digit",
                        DEVICE_NAME_MAX);
        r = check_unit_name(c, pointer, machine, name);
        if (r < 0)
                return r;
        if (!json_object_is_type(v, json_type_object))
                return definition_refuse(c, pointer, "an object with the key \"type\" and the device's options");
        r = take_type(c, pointer, v, &device->type);
        if (r < 0)
                return r;
        return take_options(c, pointer, v, device);
}

int definition_take_devices(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        size_t n;
        int r;

        if (!json_object_is_type(v, json_type_object))
                return definition_refuse(c, pointer, "an object with one member for each device");
        n = (size_t) json_object_object_length(v);
        if (n > MACHINE_DEVICES_MAX) {
                char found[40];
                (void) snprintf(found, sizeof(found), "%zu devices", n);
                return definition_refuse_found(c, pointer, found, "at most %d", MACHINE_DEVICES_MAX);
        }
        d->devices = calloc(MAX(n, (size_t) 1), sizeof(DeviceDefinition));
        if (!d->devices)
                return -ENOMEM;
        json_object_object_foreach(v, key, value) {
                _cleanup_free_ char *child = json_pointer_join(pointer, key);
                if (!child)
                        return -ENOMEM;
                /* Counted first: what is half made is freed, too. */
                r = take_device(c, child, key, value, d->name, &d->devices[d->n_devices++]);
                if (r < 0)
                        return r;
        }
        return 0;
}

static char *option_pointer(const DeviceDefinition *device, const char *option) {
        _cleanup_free_ char *pointer = json_pointer_join("/devices", device->name);

        return pointer ? json_pointer_join(pointer, option) : NULL;
}

static bool is_serial(const DeviceDefinition *device) {
        return streq(device->type->name, "serial");
}

static int check_serial(const DefinitionCheck *c, const MachineDefinition *d, size_t index) {
        const DeviceDefinition *device = &d->devices[index];
        const char *port = device_definition_string(device, "port", "com1");
        _cleanup_free_ char *pointer = json_pointer_join("/devices", device->name), *child = NULL;
        const char *output = device_definition_string(device, "output", "journal");
        const char *path = device_definition_string(device, "path", NULL);

        if (!pointer)
                return -ENOMEM;
        if (streq(output, "file") && !path)
                return definition_refuse_missing(c, pointer, "path", "the file, where \"output\" is \"file\"");
        if (!streq(output, "file") && path) {
                child = option_pointer(device, "path");
                if (!child)
                        return -ENOMEM;
                return definition_refuse(c, child, "no path, or \"output\": \"file\" beside it");
        }
        for (size_t i = 0; i < index; i++)
                if (is_serial(&d->devices[i]) && streq(device_definition_string(&d->devices[i], "port", "com1"), port)) {
                        _cleanup_free_ char *found = NULL;
                        bool named = device_definition_string(device, "port", NULL) != NULL;

                        child = option_pointer(device, "port");
                        if (!child || asprintf(&found, "port \"%s\"", port) < 0) {
                                found = NULL;
                                return -ENOMEM;
                        }
                        return definition_refuse_found(c, named ? child : pointer, found, "a port that \"%s\" does not have already",
                                d->devices[i].name);
                }
        return 0;
}

static int check_root(const DefinitionCheck *c, const MachineDefinition *d, size_t index) {
        _cleanup_free_ char *pointer = NULL;

        if (!device_definition_boolean(&d->devices[index], "root", false))
                return 0;
        for (size_t i = 0; i < index; i++)
                if (device_definition_boolean(&d->devices[i], "root", false)) {
                        pointer = option_pointer(&d->devices[index], "root");
                        if (!pointer)
                                return -ENOMEM;
                        return definition_refuse(c, pointer, "only one root disk, and \"%s\" is one already", d->devices[i].name);
                }
        return 0;
}

/* Two devices may share a file only where both just read it. */
static int check_paths(const DefinitionCheck *c, const MachineDefinition *d, size_t index) {
        const DeviceDefinition *device = &d->devices[index];

        for (const DeviceOption *a = device->type->options; a->name; a++) {
                const char *path = a->kind == DEVICE_OPTION_PATH ? device_definition_string(device, a->name, NULL) : NULL;
                bool reads = a->access == DEVICE_PATH_READ || device_definition_boolean(device, "readOnly", false);

                for (size_t i = 0; path && i < index; i++)
                        for (const DeviceOption *b = d->devices[i].type->options; b->name; b++) {
                                const char *other = b->kind == DEVICE_OPTION_PATH ?
                                        device_definition_string(&d->devices[i], b->name, NULL) : NULL;
                                _cleanup_free_ char *pointer = NULL;

                                if (!other || !streq(path, other))
                                        continue;
                                if (reads && (b->access == DEVICE_PATH_READ ||
                                        device_definition_boolean(&d->devices[i], "readOnly", false)))
                                        continue;
                                pointer = option_pointer(device, a->name);
                                if (!pointer)
                                        return -ENOMEM;
                                return definition_refuse(c, pointer, "a file of its own: \"%s\" uses this one, too, and one of them writes",
                                        d->devices[i].name);
                        }
        }
        return 0;
}

int definition_check_devices(const DefinitionCheck *c, const MachineDefinition *d) {
        size_t n_pci = 0;
        int r;

        for (size_t i = 0; i < d->n_devices; i++) {
                if (d->devices[i].type->transport == DEVICE_TRANSPORT_VHOST_USER)
                        n_pci++;
                r = check_root(c, d, i);
                if (r < 0)
                        return r;
                r = check_paths(c, d, i);
                if (r < 0)
                        return r;
                if (is_serial(&d->devices[i])) {
                        r = check_serial(c, d, i);
                        if (r < 0)
                                return r;
                }
        }
        if (n_pci > MACHINE_PCI_DEVICES_MAX) {
                char found[40];
                (void) snprintf(found, sizeof(found), "%zu PCI devices", n_pci);
                return definition_refuse_found(c, "/devices", found, "at most %d, the slots of the PCI bus",
                        MACHINE_PCI_DEVICES_MAX);
        }
        return 0;
}
