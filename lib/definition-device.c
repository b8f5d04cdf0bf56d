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
        if (type != &plugin_type)
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
        if (option->is_valid && !option->is_valid(text))
                return definition_refuse(c, pointer, "%s", option->expected);
        *ret = json_object_new_string(text);
        return *ret ? 0 : -ENOMEM;
}

static int take_option(const DefinitionCheck *c, const DeviceOption *option, const char *pointer, json_object *v, json_object **ret);

/* An array: each element is taken like a single option. */
static int take_list_of(const DefinitionCheck *c, const DeviceOption *option, const char *pointer, json_object *v,
        json_object **ret) {
        DeviceOption element = *option;
        json_object *list;
        size_t n;

        element.kind = option->kind == DEVICE_OPTION_PATHS ? DEVICE_OPTION_PATH : DEVICE_OPTION_STRING;
        n = json_object_is_type(v, json_type_array) ? json_object_array_length(v) : 0;
        if (n < 1 || n > (option->elements_max ?: DEVICE_OPTION_LIST_MAX))
                return definition_refuse(c, pointer, "an array of 1 to %u strings", option->elements_max ?: DEVICE_OPTION_LIST_MAX);
        list = json_object_new_array();
        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *child = NULL;
                json_object *taken = NULL;
                int r;

                if (asprintf(&child, "%s/%zu", pointer, i) < 0) {
                        child = NULL;
                        r = -ENOMEM;
                } else
                        r = take_option(c, &element, child, json_object_array_get_idx(v, i), &taken);
                if (r >= 0 && json_object_array_add(list, taken) < 0) {
                        json_object_put(taken);
                        r = -ENOMEM;
                }
                if (r < 0) {
                        json_object_put(list);
                        return r;
                }
        }
        *ret = list;
        return 0;
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
        case DEVICE_OPTION_INTERFACE:
                return take_string_of(c, option, pointer, v, ret);
        case DEVICE_OPTION_ENUM:
                r = definition_take_enum(c, pointer, v, option->values, &index);
                if (r >= 0)
                        *ret = json_object_new_string(option->values[index]);
                break;
        case DEVICE_OPTION_PATH:
        case DEVICE_OPTION_DIRECTORY:
                r = definition_take_path(c, pointer, v, &text);
                if (r >= 0)
                        *ret = json_object_new_string(text);
                break;
        case DEVICE_OPTION_STRINGS:
        case DEVICE_OPTION_PATHS:
                return take_list_of(c, option, pointer, v, ret);
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

/* "\"format\": \"qcow2\" or \"luks\"", of "format=qcow2|luks"; the caller frees it. */
static char *condition_text(const DeviceType *type, const char *condition) {
        const char *quote = device_condition_option(type, condition)->kind == DEVICE_OPTION_BOOLEAN ? "" : "\"";
        const char *p = strchr(condition, '=');
        char *text = NULL;
        size_t size;
        FILE *f;

        f = open_memstream(&text, &size);
        if (!f)
                return NULL;
        (void) fprintf(f, "\"%.*s\": ", (int) (p - condition), condition);
        for (p++;;) {
                size_t length = strcspn(p, "|");

                (void) fprintf(f, "%s%.*s%s", quote, (int) length, p, quote);
                p += length;
                if (!*p)
                        break;
                (void) fputs(strchr(++p, '|') ? ", " : " or ", f);
        }
        if (fclose(f) != 0) {
                free(text);
                return NULL;
        }
        return text;
}

/* What options have to do with each other; the table says it. */
static int check_conditions(const DefinitionCheck *c, const char *pointer, const DeviceDefinition *device) {
        for (const DeviceOption *option = device->type->options; option->name; option++) {
                bool given = json_object_object_get_ex(device->options, option->name, NULL);
                const char *condition = given ? option->only_where : option->required_where;
                _cleanup_free_ char *text = NULL, *child = NULL;
                bool holds;

                if (!condition)
                        continue;
                holds = device_condition_holds(device->type, condition,
                        device_definition_string(device, device_condition_option(device->type, condition)->name, NULL));
                if (holds == given)
                        continue;
                text = condition_text(device->type, condition);
                child = json_pointer_join(pointer, option->name);
                if (!text || !child)
                        return -ENOMEM;
                if (given)
                        return definition_refuse(c, child, "no \"%s\", or %s beside it", option->name, text);
                return definition_refuse_missing(c, pointer, option->name, option->description);
        }
        return 0;
}

/* What crosvm's plugins can be given, and ours cannot: there is no unknown word about it, but a reason. */
static int refuse_of_crosvm(const DefinitionCheck *c, const char *pointer, const char *key) {
        static const struct {
                const char *key, *expected;
        } refused[] = {
                { "gidMap", "no such key: a plugin's groups have their own numbers, and are named in \"group\" and \"supplementaryGroups\"" },
                { "uidMap", "no such key: a plugin's user has its own number, and is named in \"user\"" },
                { "root", "no such key: a plugin's root directory is that of its unit, and \"readOnlyPaths\" and \"readWritePaths\" are in it" },
        };

        for (size_t i = 0; i < ELEMENTSOF(refused); i++)
                if (streq(key, refused[i].key))
                        return definition_refuse(c, pointer, "%s", refused[i].expected);
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
                if (streq(key, "type") && device->type != &plugin_type)
                        continue;
                if (!option) {
                        _cleanup_free_ const char **names = option_names(device->type);
                        _cleanup_free_ char *what = NULL;

                        r = device->type == &plugin_type ? refuse_of_crosvm(c, child, key) : 0;
                        if (r < 0)
                                return r;
                        if (!names || asprintf(&what, device->type == &plugin_type ? "a %s" : "a device of type %s", device->type->name) < 0) {
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
        return check_conditions(c, pointer, device);
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
        if (device_name_is_slot(name))
                return definition_refuse_found(c, pointer, "a device with that name",
                        "another name: \"" MACHINE_SLOT_PREFIX "\" and a number are those of the spare devices (\"hotplugSlots\")");
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

int definition_take_plugin(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        DeviceDefinition *device;
        int r;

        if (!json_object_is_type(v, json_type_object))
                return definition_refuse(c, pointer, "an object with the key \"path\" and the plugin's other options");
        device = calloc(1, sizeof(DeviceDefinition));
        if (!device)
                return -ENOMEM;
        d->devices = device;
        d->n_devices = 1;
        d->plugin = device;
        device->type = &plugin_type;
        device->name = strdup(plugin_type.name);
        if (!device->name)
                return -ENOMEM;
        r = check_unit_name(c, pointer, d->name, device->name);
        return r < 0 ? r : take_options(c, pointer, v, device);
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

static int check_ports(const DefinitionCheck *c, const DeviceDefinition *device) {
        const char *name;

        if (!device->type->queues_by_port)
                return 0;
        for (size_t i = 1; (name = device_definition_list(device, "ports", i)); i++)
                for (size_t k = 0; k < i; k++)
                        if (streq(name, device_definition_list(device, "ports", k))) {
                                _cleanup_free_ char *pointer = option_pointer(device, "ports");
                                _cleanup_free_ char *child = NULL;

                                if (!pointer || asprintf(&child, "%s/%zu", pointer, i) < 0) {
                                        child = NULL;
                                        return -ENOMEM;
                                }
                                return definition_refuse(c, child, "a name that no other port of \"%s\" has", device->name);
                        }
        return 0;
}

static int check_power_key(const DefinitionCheck *c, const MachineDefinition *d, size_t index) {
        const DeviceDefinition *device = &d->devices[index];
        _cleanup_free_ char *pointer = NULL;

        if (!device_definition_boolean(device, "powerKey", false))
                return 0;
        pointer = option_pointer(device, "powerKey");
        if (!pointer)
                return -ENOMEM;
        if (device_definition_string(device, "path", NULL))
                return definition_refuse(c, pointer, "no path beside it: only a keyboard of our own is sure to have a power key");
        for (size_t i = 0; i < index; i++)
                if (device_definition_boolean(&d->devices[i], "powerKey", false))
                        return definition_refuse(c, pointer, "only one power key, and \"%s\" has one already", d->devices[i].name);
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

/* Whether the device only reads the file. */
static bool just_reads(const DeviceDefinition *device, const DeviceOption *option) {
        return option->access == DEVICE_PATH_READ || device_definition_boolean(device, "readOnly", false);
}

/* A directory is made to be shared; and what a program sees is not what it uses. */
static bool is_shared(const DeviceOption *option) {
        return option->kind == DEVICE_OPTION_DIRECTORY || option->bound;
}

/* The same file twice in one device's list of paths is nobody's conflict. */
static int check_path(const DefinitionCheck *c, const MachineDefinition *d, size_t index, const DeviceOption *option, const char *path) {
        const DeviceDefinition *device = &d->devices[index];

        for (size_t i = 0; i < index; i++)
                for (const DeviceOption *other = d->devices[i].type->options; other->name; other++) {
                        const char *theirs;

                        for (size_t n = 0; !is_shared(other) && (theirs = device_definition_path(&d->devices[i], other, n)); n++) {
                                _cleanup_free_ char *pointer = NULL;

                                if (!streq(path, theirs) || (just_reads(device, option) && just_reads(&d->devices[i], other)))
                                        continue;
                                pointer = option_pointer(device, option->name);
                                if (!pointer)
                                        return -ENOMEM;
                                return definition_refuse(c, pointer, "a file of its own: \"%s\" uses this one, too, and one of them writes",
                                        d->devices[i].name);
                        }
                }
        return 0;
}

/* Two devices may share a file only where both just read it. */
static int check_paths(const DefinitionCheck *c, const MachineDefinition *d, size_t index) {
        const DeviceDefinition *device = &d->devices[index];

        for (const DeviceOption *option = device->type->options; option->name; option++) {
                const char *path;

                if (is_shared(option))
                        continue;
                for (size_t i = 0; (path = device_definition_path(device, option, i)); i++) {
                        int r = check_path(c, d, index, option, path);
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

/* Either a file or a credential; the table of options knows no "either". */
static int check_key(const DefinitionCheck *c, const DeviceDefinition *device) {
        const char *file = device_definition_string(device, "keyFile", NULL), *credential = device_definition_string(device, "keyCredential", NULL);
        _cleanup_free_ char *pointer = NULL, *child = NULL;

        if (!streq(device_definition_string(device, "format", "raw"), "luks") || !file != !credential)
                return 0;
        pointer = json_pointer_join("/devices", device->name);
        child = option_pointer(device, "keyCredential");
        if (!pointer || !child)
                return -ENOMEM;
        if (credential)
                return definition_refuse(c, child, "no \"keyCredential\" beside \"keyFile\"");
        return definition_refuse_missing(c, pointer, "keyFile", "the file with the passphrase; or the key \"keyCredential\"");
}

/* The program, by its path, and one word that says how it gets its socket. */
static int check_command(const DefinitionCheck *c, const DeviceDefinition *device) {
        const char *program = device_definition_list(device, "command", 0), *word;
        _cleanup_free_ char *pointer = NULL;
        unsigned places = 0;

        if (!streq(device->type->name, "vhost-user"))
                return 0;
        for (size_t i = 0; (word = device_definition_list(device, "command", i)); i++)
                places += strstr(word, "{listen}") || strstr(word, "{fd}") || strstr(word, "{socket}");
        if (program[0] == '/' && places == 1)
                return 0;
        pointer = option_pointer(device, "command");
        if (!pointer)
                return -ENOMEM;
        return definition_refuse(c, pointer, "the absolute path of a program and its arguments, one of them with {listen}, {fd} or {socket}");
}

int definition_check_devices(const DefinitionCheck *c, const MachineDefinition *d) {
        size_t n_pci = 0, n_pmem = 0, n_vsock = 0;
        int r;

        for (size_t i = 0; i < d->n_devices; i++) {
                if (d->devices[i].type->transport == DEVICE_TRANSPORT_VHOST_USER)
                        n_pci++;
                if (streq(d->devices[i].type->name, "pmem"))
                        n_pmem++;
                if (streq(d->devices[i].type->name, "vsock"))
                        n_vsock++;
                r = check_root(c, d, i);
                if (r < 0)
                        return r;
                r = check_paths(c, d, i);
                if (r >= 0)
                        r = check_ports(c, &d->devices[i]);
                if (r >= 0)
                        r = check_power_key(c, d, i);
                if (r >= 0)
                        r = check_key(c, &d->devices[i]);
                if (r >= 0)
                        r = check_command(c, &d->devices[i]);
                if (r < 0)
                        return r;
                if (is_serial(&d->devices[i])) {
                        r = check_serial(c, d, i);
                        if (r < 0)
                                return r;
                }
        }
        if (n_pmem > MACHINE_PMEM_MAX) {
                char found[40];
                (void) snprintf(found, sizeof(found), "%zu pmem devices", n_pmem);
                return definition_refuse_found(c, "/devices", found, "at most %d", MACHINE_PMEM_MAX);
        }
        if (n_vsock > 1) {
                char found[40];
                (void) snprintf(found, sizeof(found), "%zu vsock devices", n_vsock);
                return definition_refuse_found(c, "/devices", found, "at most one: guests know no more");
        }
        if (n_pci > MACHINE_PCI_DEVICES_MAX) {
                char found[40];
                (void) snprintf(found, sizeof(found), "%zu PCI devices", n_pci);
                return definition_refuse_found(c, "/devices", found, "at most %d, the slots of the PCI bus",
                        MACHINE_PCI_DEVICES_MAX);
        }
        return 0;
}
