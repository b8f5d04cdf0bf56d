/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/major.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "attach-definition.h"
#include "json-util.h"
#include "mac-address.h"
#include "machine-device-internal.h"

/* Of /dev/net/tun (Documentation/admin-guide/devices.txt of Linux). */
#define TUN_MINOR_NUMBER 200

const DeviceDefinition *machine_definition_device(const MachineDefinition *definition, const char *name) {
        for (size_t i = 0; i < definition->n_devices; i++)
                if (streq(definition->devices[i].name, name))
                        return &definition->devices[i];
        return NULL;
}

json_object *attach_definition_json(const MachineDefinition *definition, const char *name) {
        return json_get(json_get(definition->json, "devices", json_type_object), name, json_type_object);
}

/* --- checking --- */

static int add_present(const Machine *m, json_object *devices) {
        for (size_t i = 0; i < m->n_devices; i++) {
                const MachineDevice *d = m->devices[i];
                json_object *json = attach_definition_json(d->attached ?: m->definition, d->definition->name);
                int r;

                r = json ? json_add(devices, d->definition->name, json_object_get(json)) : -ENOENT;
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Beside the others, so that the definition's rules about several devices hold for it, too. */
static int make_json(const Machine *m, const char *name, json_object *device, json_object **ret) {
        _cleanup_json_ json_object *json = json_object_new_object(), *devices = json_object_new_object();
        int r;

        if (!json || !devices)
                return -ENOMEM;
        r = add_present(m, devices);
        if (r >= 0)
                r = json_add(devices, name, json_object_get(device));
        if (r >= 0)
                r = json_add(json, "devices", TAKE_PTR(devices));
        if (r >= 0)
                r = json_add_string(json, "kernel", m->definition->kernel);
        if (r >= 0)
                r = json_add_integer(json, "hotplugSlots", 0);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(json);
        return 0;
}

static int refuse(const DefinitionError *error, char **ret_message) {
        /* Where in the text is no use: nobody wrote it. */
        return set_message(ret_message, -EINVAL, "%s: found %s, expected %s", error->pointer ?: "", error->found ?: "nothing",
                error->expected ?: "something else");
}

static int check_device(const DeviceDefinition *device, char **ret_message) {
        if (!device->type->attachable)
                return set_message(ret_message, -EINVAL, "a device of type %s cannot be attached to a running machine", device->type->name);
        for (const DeviceOption *o = device->type->options; o->name; o++) {
                const char *value = o->not_attached ? device_definition_string(device, o->name, NULL) : NULL;

                if (value && !device_option_is_attachable(o, value))
                        return set_message(ret_message, -EINVAL, "\"%s\": \"%s\" takes a unit of its own: such a device cannot be attached to a running machine",
                                o->name, value);
        }
        if (device_definition_boolean(device, "root", false))
                return set_message(ret_message, -EINVAL, "a running machine has its root file system already: \"root\" means nothing here");
        return 0;
}

int attach_definition_new(Machine *m, const char *name, json_object *device, MachineDefinition **ret, char **ret_message) {
        _cleanup_(machine_definition_freep) MachineDefinition *definition = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        _cleanup_json_ json_object *json = NULL;
        const char *text;
        int r;

        r = make_json(m, name, device, &json);
        if (r < 0)
                return r;
        text = json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        if (!text)
                return -ENOMEM;
        r = definition_parse(text, strlen(text), "", m->definition->name, &definition, &error);
        if (r == -EBADMSG)
                return refuse(&error, ret_message);
        if (r < 0)
                return r;
        r = check_device(machine_definition_device(definition, name), ret_message);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(definition);
        return 0;
}

/* --- descriptors --- */

static bool is_of(const SlotDescriptor *descriptor, const DeviceOption *option, size_t i) {
        char name[64];

        if (option->kind != DEVICE_OPTION_PATHS)
                return streq(descriptor->option, option->name);
        (void) snprintf(name, sizeof(name), "%s-%zu", option->name, i);
        return streq(descriptor->option, name);
}

static size_t count_of(const SlotDescriptor *descriptors, size_t n, const DeviceOption *option, size_t i) {
        size_t count = 0;

        for (size_t k = 0; k < n; k++)
                if (is_of(&descriptors[k], option, i))
                        count++;
        return count;
}

/* How many descriptors the device has use for; those that lack are told. */
static int count_expected(const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, size_t *ret, char **ret_message) {
        size_t expected = 0;

        for (const DeviceOption *o = device->type->options; o->name; o++) {
                size_t queues = 0;

                if (o->kind == DEVICE_OPTION_INTERFACE && device_definition_string(device, o->name, NULL))
                        queues = (size_t) device_definition_unsigned(device, "queuePairs", 1);
                if (queues > 0 && count_of(descriptors, n, o, 0) != queues)
                        return set_message(ret_message, -EINVAL, "option \"%s\" needs %zu descriptors, one for each pair of queues, and has %zu",
                                o->name, queues, count_of(descriptors, n, o, 0));
                expected += queues;
                for (size_t i = 0; device_definition_path(device, o, i); i++, expected++)
                        if (count_of(descriptors, n, o, i) != 1)
                                return set_message(ret_message, -EINVAL, "option \"%s\" needs a descriptor: vmmd opens no files", o->name);
        }
        *ret = expected;
        return 0;
}

int attach_check_descriptors(const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, char **ret_message) {
        size_t expected = 0;
        int r;

        r = count_expected(device, descriptors, n, &expected, ret_message);
        if (r < 0)
                return r;
        if (n != expected)
                return set_message(ret_message, -EINVAL, "%zu descriptors came for a device that has use for %zu", n, expected);
        return 0;
}

/* --- the helper's words --- */

static const char *value_of(const DeviceDefinition *device, const DeviceOption *option, size_t i) {
        if (device_option_is_list(option))
                return device_definition_list(device, option->name, i);
        return i == 0 ? device_definition_string(device, option->name, NULL) : NULL;
}

static int add_values(const DeviceDefinition *device, const DeviceOption *option, json_object *options) {
        _cleanup_json_ json_object *values = NULL;
        const char *value;
        int r;

        if (option->for_vmmd || !value_of(device, option, 0))
                return 0;
        values = json_object_new_array();
        if (!values)
                return -ENOMEM;
        for (size_t i = 0; (value = value_of(device, option, i)); i++) {
                r = json_append(values, json_object_new_string(value));
                if (r < 0)
                        return r;
        }
        return json_add(options, option->name, TAKE_PTR(values));
}

static bool is_tap(int fd) {
        struct stat st;

        return fstat(fd, &st) >= 0 && S_ISCHR(st.st_mode) && major(st.st_rdev) == MISC_MAJOR && minor(st.st_rdev) == TUN_MINOR_NUMBER;
}

/* The address that a tap's guest has where it is not given one depends on the host, which a helper cannot tell from another. (A macvtap has its own.) */
static int add_mac(const char *machine, const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, json_object *options) {
        _cleanup_json_ json_object *values = NULL;
        const DeviceOption *mac = device_type_find_option(device->type, "mac");
        char text[MAC_ADDRESS_TEXT_MAX];
        uint8_t address[MAC_ADDRESS_SIZE];
        int r;

        if (!mac || value_of(device, mac, 0) || n == 0 || !is_tap(descriptors[0].fd))
                return 0;
        mac_address_derive(machine, device->name, address);
        mac_address_format(address, text);
        values = json_object_new_array();
        r = values ? json_append(values, json_object_new_string(text)) : -ENOMEM;
        return r < 0 ? r : json_add(options, "mac", TAKE_PTR(values));
}

int attach_slot_parameters(const char *machine, const DeviceDefinition *device, const SlotDescriptor *descriptors, size_t n, json_object **ret) {
        _cleanup_json_ json_object *parameters = json_object_new_object(), *options = json_object_new_object();
        int r = parameters && options ? 0 : -ENOMEM;

        for (const DeviceOption *o = device->type->options; o->name && r >= 0; o++)
                r = add_values(device, o, options);
        if (r >= 0)
                r = add_mac(machine, device, descriptors, n, options);
        if (r >= 0)
                r = json_add_string(parameters, "type", device->type->name);
        if (r >= 0)
                r = json_add_string(parameters, "name", device->name);
        if (r >= 0)
                r = json_add(parameters, "options", TAKE_PTR(options));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(parameters);
        return 0;
}
