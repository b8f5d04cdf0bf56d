/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Prints the JSON Schema of a machine's definition. What it says about devices is the table of lib/device-type.c, so it cannot
 * lag behind; what it says about the machine stands here. A schema cannot say everything that lib/definition-parse.c checks. */

#include <stdio.h>

#include "definition.h"

static json_object *add_object(json_object *parent, const char *key) {
        json_object *o = json_object_new_object();

        (void) json_object_object_add(parent, key, o);
        return o;
}

static void add_string(json_object *o, const char *key, const char *value) {
        (void) json_object_object_add(o, key, json_object_new_string(value));
}

static void add_number(json_object *o, const char *key, uint64_t value) {
        (void) json_object_object_add(o, key, json_object_new_uint64(value));
}

/* One property with its type and description; more is added by the caller. */
static json_object *property(json_object *properties, const char *key, const char *type, const char *description) {
        json_object *o = add_object(properties, key);

        if (type)
                add_string(o, "type", type);
        add_string(o, "description", description);
        return o;
}

static json_object *add_enum(json_object *o, const char *const *values, bool numbers) {
        json_object *array = json_object_new_array();

        for (; *values; values++)
                (void) json_object_array_add(array,
                        numbers ? json_object_new_int64(strtoll(*values, NULL, 10)) : json_object_new_string(*values));
        (void) json_object_object_add(o, "enum", array);
        return o;
}

static void add_default(json_object *o, const char *json) {
        (void) json_object_object_add(o, "default", json_tokener_parse(json));
}

/* A size or a time: a number, or a string of the pattern. */
static json_object *number_or_string(json_object *properties, const char *key, const char *description, uint64_t minimum,
        uint64_t maximum, const char *pattern) {
        json_object *o = property(properties, key, NULL, description), *any = json_object_new_array(),
                    *number = json_object_new_object(), *string = json_object_new_object();

        add_string(number, "type", "integer");
        add_number(number, "minimum", minimum);
        add_number(number, "maximum", maximum);
        add_string(string, "type", "string");
        add_string(string, "pattern", pattern);
        (void) json_object_array_add(any, number);
        (void) json_object_array_add(any, string);
        (void) json_object_object_add(o, "anyOf", any);
        return o;
}

#define SIZE_PATTERN "^[0-9]+[KMGT]?$"
#define TIME_PATTERN "^ *([0-9]+ *[a-z]* *)+$"
#define PATH_PATTERN "^(/[^/]+)+$"
#define NAME_PATTERN "^[A-Za-z0-9][A-Za-z0-9._-]*$"

static void add_path(json_object *properties, const char *key, const char *description) {
        add_string(property(properties, key, "string", description), "pattern", PATH_PATTERN);
}

static json_object *add_account(json_object *properties, const char *key, const char *description) {
        json_object *o = property(properties, key, "string", description);

        add_string(o, "pattern", "^[A-Za-z_][A-Za-z0-9_-]{0,30}$");
        return o;
}

static void add_option(json_object *properties, const DeviceOption *option) {
        json_object *o;

        switch (option->kind) {
        case DEVICE_OPTION_BOOLEAN:
                (void) property(properties, option->name, "boolean", option->description);
                break;
        case DEVICE_OPTION_UNSIGNED:
                o = property(properties, option->name, "integer", option->description);
                add_number(o, "minimum", option->minimum);
                add_number(o, "maximum", option->maximum);
                if (option->values)
                        (void) add_enum(o, option->values, true);
                break;
        case DEVICE_OPTION_SIZE:
                (void) number_or_string(properties, option->name, option->description, option->minimum, option->maximum, SIZE_PATTERN);
                break;
        case DEVICE_OPTION_STRING:
        case DEVICE_OPTION_INTERFACE:
                o = property(properties, option->name, "string", option->description);
                add_number(o, "maxLength", option->maximum);
                if (option->pattern)
                        add_string(o, "pattern", option->pattern);
                break;
        case DEVICE_OPTION_ENUM:
                (void) add_enum(property(properties, option->name, "string", option->description), option->values, false);
                break;
        case DEVICE_OPTION_PATH:
        case DEVICE_OPTION_DIRECTORY:
                add_path(properties, option->name, option->description);
                break;
        case DEVICE_OPTION_STRINGS:
        case DEVICE_OPTION_PATHS:
                o = property(properties, option->name, "array", option->description);
                add_number(o, "minItems", 1);
                add_number(o, "maxItems", option->elements_max ?: DEVICE_OPTION_LIST_MAX);
                o = add_object(o, "items");
                add_string(o, "type", "string");
                if (option->kind == DEVICE_OPTION_STRINGS)
                        add_number(o, "maxLength", option->maximum);
                if (option->kind == DEVICE_OPTION_PATHS || option->pattern)
                        add_string(o, "pattern", option->kind == DEVICE_OPTION_PATHS ? PATH_PATTERN : option->pattern);
                break;
        default:
                assert(false);
        }
}

/* only_where and required_where: IF the other option has such a value THEN this one may not be, or has to be, there. */
static void add_condition(json_object *all, const DeviceType *type, const DeviceOption *option, const char *condition, bool required) {
        const DeviceOption *other = device_condition_option(type, condition);
        json_object *rule = json_object_new_object(), *test = add_object(rule, "if"),
                    *values = json_object_new_array(), *names = json_object_new_array(), *keys = json_object_new_array(), *then;
        char *words = strdup(strchr(condition, '=') + 1), *state = NULL;
        bool absent = device_condition_holds(type, condition, NULL);

        for (char *word = strtok_r(words, "|", &state); word; word = strtok_r(NULL, "|", &state))
                (void) json_object_array_add(values,
                        other->kind == DEVICE_OPTION_BOOLEAN ? json_object_new_boolean(streq(word, "true")) : json_object_new_string(word));
        (void) json_object_object_add(add_object(add_object(test, "properties"), other->name), "enum", values);
        (void) json_object_array_add(names, json_object_new_string(other->name));
        if (absent) /* `properties` says nothing of what is absent, which is then a match */
                json_object_put(names);
        else
                (void) json_object_object_add(test, "required", names);

        then = add_object(rule, required ? "then" : "else");
        (void) json_object_array_add(keys, json_object_new_string(option->name));
        if (!required)
                then = add_object(then, "not");
        (void) json_object_object_add(then, "required", keys);
        (void) json_object_array_add(all, rule);
        free(words);
}

static void add_conditions(json_object *schema, const DeviceType *type) {
        json_object *all = json_object_new_array();

        for (const DeviceOption *option = type->options; option->name; option++) {
                if (option->only_where)
                        add_condition(all, type, option, option->only_where, false);
                if (option->required_where)
                        add_condition(all, type, option, option->required_where, true);
        }
        if (json_object_array_length(all) > 0)
                (void) json_object_object_add(schema, "allOf", all);
        else
                json_object_put(all);
}

static void require(json_object *schema, json_object *names) {
        (void) json_object_object_add(schema, "required", names);
        (void) json_object_object_add(schema, "additionalProperties", json_object_new_boolean(false));
}

static json_object *device_schema(const DeviceType *type) {
        json_object *schema = json_object_new_object(), *properties, *required = json_object_new_array();

        add_string(schema, "type", "object");
        add_string(schema, "description", type->description);
        properties = add_object(schema, "properties");
        if (type != &plugin_type) {
                add_string(add_object(properties, "type"), "const", type->name);
                (void) json_object_array_add(required, json_object_new_string("type"));
        }
        for (const DeviceOption *option = type->options; option->name; option++) {
                add_option(properties, option);
                if (option->required)
                        (void) json_object_array_add(required, json_object_new_string(option->name));
        }
        require(schema, required);
        add_conditions(schema, type);
        return schema;
}

static void add_devices(json_object *properties) {
        json_object *o = property(properties, "devices", "object", "Devices by name; their order is that on the PCI bus"),
                    *names = add_object(o, "propertyNames"), *any = json_object_new_array();

        add_string(names, "pattern", NAME_PATTERN);
        add_number(names, "maxLength", DEVICE_NAME_MAX);
        add_number(o, "maxProperties", MACHINE_DEVICES_MAX);
        for (const DeviceType *type = device_types; type->name; type++)
                (void) json_object_array_add(any, device_schema(type));
        (void) json_object_object_add(add_object(o, "additionalProperties"), "oneOf", any);
}

static void add_credentials(json_object *properties) {
        json_object *o = property(properties, "credentials", "object", "systemd credentials for the guest, by name"),
                    *any = json_object_new_array(), *string = json_object_new_object(), *binary = json_object_new_object(),
                    *base64, *required = json_object_new_array();

        add_string(add_object(o, "propertyNames"), "pattern", "^[!-.0-9;<>-~]+$");
        add_string(string, "type", "string");
        add_string(binary, "type", "object");
        base64 = add_object(add_object(binary, "properties"), "base64");
        add_string(base64, "type", "string");
        add_string(base64, "pattern", "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$");
        (void) json_object_array_add(required, json_object_new_string("base64"));
        require(binary, required);
        (void) json_object_array_add(any, string);
        (void) json_object_array_add(any, binary);
        (void) json_object_object_add(add_object(o, "additionalProperties"), "oneOf", any);
}

static void add_actions(json_object *properties) {
        static const char *const on_reboot[] = { "reset", "stop", NULL };
        static const char *const on_panic[] = { "stop", "reset", "pause", NULL };
        static const char *const on_device_failure[] = { "continue", "stop", NULL };
        static const char *const on_failure[] = { "stop", "restart", NULL };
        static const char *const ready_when[] = { "started", "guest", NULL };

        add_default(add_enum(property(properties, "onReboot", "string", "When the guest asks for a reboot"), on_reboot, false), "\"reset\"");
        add_default(add_enum(property(properties, "onPanic", "string", "When the guest's kernel panics"), on_panic, false), "\"stop\"");
        add_default(add_enum(property(properties, "onDeviceFailure", "string", "When a device is gone for good"), on_device_failure, false),
                "\"continue\"");
        add_default(add_enum(property(properties, "onFailure", "string", "When vmmd itself is killed, or hangs"), on_failure, false), "\"stop\"");
        add_default(add_enum(property(properties, "readyWhen", "string", "When the machine's unit counts as started"), ready_when, false),
                "\"started\"");
}

static void add_machine(json_object *properties) {
        json_object *o, *values;

        (void) property(properties, "$schema", "string", "Ignored; for editors");
        o = number_or_string(properties, "memory", "Guest memory in bytes, or with the suffix K, M, G or T", MACHINE_MEMORY_MIN,
                MACHINE_MEMORY_MAX, SIZE_PATTERN);
        add_default(o, "\"256M\"");
        values = json_object_new_array();
        (void) json_object_array_add(values, json_object_new_boolean(false));
        (void) json_object_array_add(values, json_object_new_string("2M"));
        (void) json_object_array_add(values, json_object_new_string("1G"));
        o = property(properties, "hugePages", NULL, "Size of the huge pages that the guest's memory is made of");
        (void) json_object_object_add(o, "enum", values);
        add_default(o, "false");
        add_default(property(properties, "prefault", "boolean", "Allocate all memory at the start"), "false");
        o = property(properties, "vcpus", "integer", "Virtual processors");
        add_number(o, "minimum", 1);
        add_number(o, "maximum", MACHINE_VCPUS_MAX);
        add_default(o, "1");
        o = property(properties, "hotplugSlots", "integer", "How many devices can be attached while the machine runs");
        add_number(o, "minimum", 0);
        add_number(o, "maximum", MACHINE_HOTPLUG_SLOTS_MAX);
        add_default(o, "4");
        add_path(properties, "kernel", "Kernel image: bzImage or ELF");
        add_path(properties, "initrd", "Initial RAM disk");
        add_path(properties, "deviceTreeOverlay", "Device tree overlay, as dtc compiles it (64-bit Arm)");
        o = property(properties, "commandLine", "string", "Kernel command line; the devices add their own arguments");
        add_number(o, "maxLength", MACHINE_COMMAND_LINE_MAX);
        add_actions(properties);
        o = number_or_string(properties, "stopTimeout", "From the power button to the end, in seconds or as in \"1min 30s\"", 0,
                MACHINE_STOP_TIMEOUT_MAX / USEC_PER_SEC, TIME_PATTERN);
        add_default(o, "\"90s\"");
        add_account(properties, "owner", "User that may change the running machine");
        add_account(properties, "accessGroup", "Group that may change the running machine");
        add_default(add_account(properties, "readGroup", "Group that may look at the running machine"), "\"vmm-read\"");
        add_credentials(properties);
        o = property(properties, "smbiosStrings", "array", "OEM strings, SMBIOS type 11");
        add_number(o, "maxItems", MACHINE_SMBIOS_STRINGS_MAX);
        o = add_object(o, "items");
        add_string(o, "type", "string");
        add_number(o, "minLength", 1);
        add_devices(properties);
        o = device_schema(&plugin_type);
        add_string(o, "description", "A program that supplies all of the machine's hardware, instead of kernel and devices");
        (void) json_object_object_add(properties, "plugin", o);
}

static json_object *names_of(const char *const *names) {
        json_object *array = json_object_new_array();

        for (; *names; names++)
                (void) json_object_array_add(array, json_object_new_string(*names));
        return array;
}

/* Either a kernel or a plugin, and little beside that. */
static void add_alternative(json_object *schema) {
        static const char *const beside[] = { "$schema", "accessGroup", "owner", "plugin", "readGroup", "stopTimeout", "vcpus", NULL };
        static const char *const plugin[] = { "plugin", NULL }, *const kernel[] = { "kernel", NULL };
        json_object *then;

        (void) json_object_object_add(add_object(schema, "if"), "required", names_of(plugin));
        then = add_object(schema, "then");
        (void) json_object_object_add(add_object(then, "propertyNames"), "enum", names_of(beside));
        add_number(add_object(add_object(then, "properties"), "vcpus"), "maximum", MACHINE_PLUGIN_VCPUS_MAX);
        (void) json_object_object_add(add_object(schema, "else"), "required", names_of(kernel));
}

int main(void) {
        json_object *schema = json_object_new_object();

        add_string(schema, "$schema", "https://json-schema.org/draft/2020-12/schema");
        add_string(schema, "title", "vmm.machine(5): a virtual machine of vmmd");
        add_string(schema, "type", "object");
        add_machine(add_object(schema, "properties"));
        require(schema, json_object_new_array());
        add_alternative(schema);
        (void) printf("%s\n", json_object_to_json_string_ext(schema, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(schema);
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
