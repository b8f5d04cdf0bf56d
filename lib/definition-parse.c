/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The merged object becomes a MachineDefinition, or is refused. One function per key; the table below has them all. */

#include <inttypes.h>
#include <stdio.h>

#include "definition-internal.h"
#include "vsock-notify-port.h"

typedef int (*TakeKey)(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d);

static int take_copy(const char *text, char **ret) {
        char *copy = strdup(text);

        if (!copy)
                return -ENOMEM;
        *ret = copy;
        return 0;
}

/* What an editor looks for; any string will do. */
static int take_schema(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        const char *ignored;

        return definition_take_string(c, pointer, v, 4096, &ignored);
}

static int take_memory(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return definition_take_size(c, pointer, v, MACHINE_MEMORY_MIN, MACHINE_MEMORY_MAX, &d->memory);
}

static int take_huge_pages(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        const char *text = json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";

        if (json_object_is_type(v, json_type_boolean) && !json_object_get_boolean(v))
                d->huge_page_size = 0;
        else if (streq(text, "2M"))
                d->huge_page_size = MIB(2);
        else if (streq(text, "1G"))
                d->huge_page_size = GIB(1);
        else
                return definition_refuse(c, pointer, "false, \"2M\" or \"1G\"");
        return 0;
}

static int take_prefault(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return definition_take_boolean(c, pointer, v, &d->prefault);
}

/* One that leaves `unsigned` no doubt. */
static int take_number(const DefinitionCheck *c, const char *pointer, json_object *v, unsigned min, unsigned max, unsigned *ret) {
        uint64_t number;
        int r;

        r = definition_take_unsigned(c, pointer, v, min, max, &number);
        if (r < 0)
                return r;
        *ret = (unsigned) number;
        return 0;
}

static int take_vcpus(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return take_number(c, pointer, v, 1, MACHINE_VCPUS_MAX, &d->vcpus);
}

static int take_hotplug_slots(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return take_number(c, pointer, v, 0, MACHINE_HOTPLUG_SLOTS_MAX, &d->hotplug_slots);
}

static int take_kernel(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        const char *path;
        int r;

        r = definition_take_path(c, pointer, v, &path);
        return r < 0 ? r : take_copy(path, &d->kernel);
}

static int take_initrd(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        const char *path;
        int r;

        r = definition_take_path(c, pointer, v, &path);
        return r < 0 ? r : take_copy(path, &d->initrd);
}

/* Where guests are told by ACPI there is nothing to lay it over. */
static int take_device_tree_overlay(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
#if defined(__aarch64__)
        const char *path;
        int r;

        r = definition_take_path(c, pointer, v, &path);
        return r < 0 ? r : take_copy(path, &d->device_tree_overlay);
#else
        return definition_refuse(c, pointer, "no such key on this architecture, whose guests have no device tree");
#endif
}

static int take_command_line(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        const char *line;
        int r;

        r = definition_take_string(c, pointer, v, MACHINE_COMMAND_LINE_MAX, &line);
        if (r < 0)
                return r;
        for (const char *p = line; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return definition_refuse(c, pointer, "a command line without control characters");
        d->command_line = mfree(d->command_line);
        return take_copy(line, &d->command_line);
}

static int take_on_reboot(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        static const char *const values[] = { [ON_REBOOT_RESET] = "reset", [ON_REBOOT_STOP] = "stop", NULL };
        size_t index;
        int r;

        r = definition_take_enum(c, pointer, v, values, &index);
        if (r >= 0)
                d->on_reboot = (OnReboot) index;
        return r;
}

static int take_on_panic(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        static const char *const values[] = {
                [ON_PANIC_STOP] = "stop", [ON_PANIC_RESET] = "reset", [ON_PANIC_PAUSE] = "pause", NULL,
        };
        size_t index;
        int r;

        r = definition_take_enum(c, pointer, v, values, &index);
        if (r >= 0)
                d->on_panic = (OnPanic) index;
        return r;
}

static int take_on_device_failure(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        static const char *const values[] = {
                [ON_DEVICE_FAILURE_CONTINUE] = "continue", [ON_DEVICE_FAILURE_STOP] = "stop", NULL,
        };
        size_t index;
        int r;

        r = definition_take_enum(c, pointer, v, values, &index);
        if (r >= 0)
                d->on_device_failure = (OnDeviceFailure) index;
        return r;
}

static int take_on_failure(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        static const char *const values[] = { [ON_FAILURE_STOP] = "stop", [ON_FAILURE_RESTART] = "restart", NULL };
        size_t index;
        int r;

        r = definition_take_enum(c, pointer, v, values, &index);
        if (r >= 0)
                d->on_failure = (OnFailure) index;
        return r;
}

static int take_ready_when(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        static const char *const values[] = { [READY_WHEN_STARTED] = "started", [READY_WHEN_GUEST] = "guest", NULL };
        size_t index;
        int r;

        r = definition_take_enum(c, pointer, v, values, &index);
        if (r >= 0)
                d->ready_when = (ReadyWhen) index;
        return r;
}

static int take_stop_timeout(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return definition_take_time(c, pointer, v, MACHINE_STOP_TIMEOUT_MAX, &d->stop_timeout_usec);
}

/* What useradd(8) takes as a name, within the 31 bytes of a utmp field, as systemd does. Whether there is such a user or group
 * is for those to say who run while the machine does. */
static int take_account(const DefinitionCheck *c, const char *pointer, json_object *v, const char *expected, char **ret) {
        const char *name;
        int r;

        r = definition_take_string(c, pointer, v, 31, &name);
        if (r < 0)
                return r;
        if (*name == 0 || (*name >= '0' && *name <= '9') || *name == '-')
                return definition_refuse(c, pointer, "%s", expected);
        for (const char *p = name; *p; p++)
                if (!(*p >= 'a' && *p <= 'z') && !(*p >= 'A' && *p <= 'Z') && !(*p >= '0' && *p <= '9') && *p != '_' && *p != '-')
                        return definition_refuse(c, pointer, "%s", expected);
        return take_copy(name, ret);
}

static int take_owner(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return take_account(c, pointer, v, "the name of a user", &d->owner);
}

static int take_access_group(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return take_account(c, pointer, v, "the name of a group", &d->access_group);
}

static int take_read_group(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        return take_account(c, pointer, v, "the name of a group", &d->read_group);
}

/* Takes ownership of text, also on error. */
static int add_smbios_string(const DefinitionCheck *c, const char *pointer, MachineDefinition *d, char *text) {
        size_t n = 0, bytes = strlen(text) + 1;
        char **grown;

        for (; d->smbios_strings && d->smbios_strings[n]; n++)
                bytes += strlen(d->smbios_strings[n]) + 1;
        if (n >= MACHINE_SMBIOS_STRINGS_MAX || bytes > MACHINE_SMBIOS_BYTES_MAX) {
                free(text);
                return definition_refuse(c, pointer, "no more than %d credentials and SMBIOS strings of %zu bytes in all",
                        MACHINE_SMBIOS_STRINGS_MAX, MACHINE_SMBIOS_BYTES_MAX);
        }
        grown = reallocarray(d->smbios_strings, n + 2, sizeof(char *));
        if (!grown) {
                free(text);
                return -ENOMEM;
        }
        d->smbios_strings = grown;
        grown[n] = text;
        grown[n + 1] = NULL;
        return 0;
}

static int take_smbios_strings(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        if (!json_object_is_type(v, json_type_array))
                return definition_refuse(c, pointer, "an array of strings");
        for (size_t i = 0; i < json_object_array_length(v); i++) {
                _cleanup_free_ char *child = NULL;
                const char *text;
                char *copy;
                int r;

                if (asprintf(&child, "%s/%zu", pointer, i) < 0) {
                        child = NULL;
                        return -ENOMEM;
                }
                r = definition_take_string(c, child, json_object_array_get_idx(v, i), MACHINE_SMBIOS_BYTES_MAX, &text);
                if (r < 0)
                        return r;
                /* SMBIOS 3.x §6.1.3: an empty string is how a structure ends. */
                if (*text == 0)
                        return definition_refuse(c, child, "a string that is not empty");
                copy = strdup(text);
                if (!copy)
                        return -ENOMEM;
                r = add_smbios_string(c, child, d, copy);
                if (r < 0)
                        return r;
        }
        return 0;
}

static bool is_base64(const char *s) {
        size_t length = strlen(s), digits = length;

        while (digits > 0 && length - digits < 2 && s[digits - 1] == '=')
                digits--;
        if (length % 4 != 0)
                return false;
        for (size_t i = 0; i < digits; i++)
                if (!(s[i] >= 'a' && s[i] <= 'z') && !(s[i] >= 'A' && s[i] <= 'Z') && !(s[i] >= '0' && s[i] <= '9') &&
                        s[i] != '+' && s[i] != '/')
                        return false;
        return true;
}

/* A file name (systemd.exec(5), "Credentials"), without what ends it in a type 11 string. */
static bool credential_name_is_valid(const char *name) {
        if (*name == 0 || strlen(name) > 255 || streq(name, ".") || streq(name, ".."))
                return false;
        for (const char *p = name; *p; p++)
                if ((unsigned char) *p <= 0x20 || (unsigned char) *p >= 0x7f || strchr("/:=", *p))
                        return false;
        return true;
}

/* {"base64": "…"} */
static int take_binary_credential(const DefinitionCheck *c, const char *pointer, const char *name, json_object *v, char **ret) {
        static const char *const known[] = { "base64", NULL };
        _cleanup_free_ char *child = json_pointer_join(pointer, "base64");
        const char *text = NULL;
        int r;

        if (!child)
                return -ENOMEM;
        json_object_object_foreach(v, key, value) {
                if (!streq(key, "base64"))
                        return definition_refuse_key(c, pointer, key, known, "a binary credential");
                r = definition_take_string(c, child, value, MACHINE_SMBIOS_BYTES_MAX, &text);
                if (r < 0)
                        return r;
                if (!is_base64(text))
                        return definition_refuse(c, child, "Base64 (RFC 4648 §4) with its padding");
        }
        if (!text)
                return definition_refuse_missing(c, pointer, "base64", "the credential's bytes in Base64");
        return asprintf(ret, "io.systemd.credential.binary:%s=%s", name, text) < 0 ? -ENOMEM : 0;
}

static int take_credentials(const DefinitionCheck *c, const char *pointer, json_object *v, MachineDefinition *d) {
        int r;

        if (!json_object_is_type(v, json_type_object))
                return definition_refuse(c, pointer, "an object with one member for each credential");
        json_object_object_foreach(v, name, value) {
                _cleanup_free_ char *child = json_pointer_join(pointer, name);
                char *text = NULL;

                if (!child)
                        return -ENOMEM;
                if (!credential_name_is_valid(name))
                        return definition_refuse_found(c, child, "a credential with that name",
                                "a name that can be a file's, without colon and equals sign");
                if (json_object_is_type(value, json_type_object))
                        r = take_binary_credential(c, child, name, value, &text);
                else if (json_object_is_type(value, json_type_string))
                        r = asprintf(&text, "io.systemd.credential:%s=%s", name, json_object_get_string(value)) < 0 ? -ENOMEM : 0;
                else
                        r = definition_refuse(c, child, "a string, or an object with the key \"base64\"");
                if (r < 0)
                        return r;
                r = add_smbios_string(c, child, d, text);
                if (r < 0)
                        return r;
        }
        return 0;
}

static const struct {
        const char *name;
        TakeKey take;
} machine_keys[] = {
        { "$schema", take_schema },
        { "accessGroup", take_access_group },
        { "commandLine", take_command_line },
        { "credentials", take_credentials },
        { "deviceTreeOverlay", take_device_tree_overlay },
        { "devices", definition_take_devices },
        { "hotplugSlots", take_hotplug_slots },
        { "hugePages", take_huge_pages },
        { "initrd", take_initrd },
        { "kernel", take_kernel },
        { "memory", take_memory },
        { "onDeviceFailure", take_on_device_failure },
        { "onFailure", take_on_failure },
        { "onPanic", take_on_panic },
        { "onReboot", take_on_reboot },
        { "owner", take_owner },
        { "plugin", definition_take_plugin },
        { "prefault", take_prefault },
        { "readGroup", take_read_group },
        { "readyWhen", take_ready_when },
        { "smbiosStrings", take_smbios_strings },
        { "stopTimeout", take_stop_timeout },
        { "vcpus", take_vcpus },
};

static int take_key(const DefinitionCheck *c, const char *key, json_object *v, MachineDefinition *d) {
        const char *names[ELEMENTSOF(machine_keys)];
        _cleanup_free_ char *pointer = json_pointer_join("", key);

        if (!pointer)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(machine_keys); i++)
                if (streq(machine_keys[i].name, key))
                        return machine_keys[i].take(c, pointer, v, d);

        /* "$schema" is nothing to suggest. */
        for (size_t i = 1; i < ELEMENTSOF(machine_keys); i++)
                names[i - 1] = machine_keys[i].name;
        names[ELEMENTSOF(machine_keys) - 1] = NULL;
        return definition_refuse_key(c, "", key, names, "a machine");
}

static bool has_credential(const MachineDefinition *d, const char *name) {
        for (char **s = d->smbios_strings; s && *s; s++) {
                const char *rest = startswith(*s, "io.systemd.credential:") ?: startswith(*s, "io.systemd.credential.binary:");

                rest = rest ? startswith(rest, name) : NULL;
                if (rest && *rest == '=')
                        return true;
        }
        return false;
}

/* A vsock device hears what the guest's service manager says, which has to be told where to say it; unless somebody else is to hear it. */
static int add_notify_socket(const DefinitionCheck *c, MachineDefinition *d) {
        static const char name[] = "vmm.notify_socket";
        const DeviceDefinition *device = NULL;
        _cleanup_free_ char *pointer = NULL;
        char *text;

        for (size_t i = 0; i < d->n_devices; i++)
                if (streq(d->devices[i].type->name, "vsock") && device_definition_boolean(&d->devices[i], "notify", true))
                        device = &d->devices[i];
        d->guest_notifies = device && !has_credential(d, name);
        if (d->ready_when == READY_WHEN_GUEST && !d->guest_notifies)
                return definition_refuse(c, "/readyWhen", "\"started\", or a vsock device by which the guest can say that it is ready");
        if (!d->guest_notifies)
                return 0;
        pointer = json_pointer_join("/devices", device->name);
        if (!pointer || asprintf(&text, "io.systemd.credential:%s=vsock-stream:2:%u", name, VSOCK_NOTIFY_PORT) < 0)
                return -ENOMEM;
        return add_smbios_string(c, pointer, d, text);
}

/* All but what vmmd itself does for the machine is the plugin's business. */
static int check_plugin_alone(const DefinitionCheck *c, const MachineDefinition *d) {
        static const char *const beside[] = { "$schema", "accessGroup", "owner", "plugin", "readGroup", "stopTimeout", "vcpus" };

        json_object_object_foreach(d->json, key, value) {
                _cleanup_free_ char *pointer = json_pointer_join("", key);
                bool fits = false;

                if (!pointer)
                        return -ENOMEM;
                for (size_t i = 0; i < ELEMENTSOF(beside) && !fits; i++)
                        fits = streq(key, beside[i]);
                if (!fits)
                        return definition_refuse(c, pointer, "no \"%s\" beside \"plugin\", which supplies all of the machine's hardware", key);
        }
        return 0;
}

static int check_plugin(const DefinitionCheck *c, MachineDefinition *d) {
        if (d->vcpus > MACHINE_PLUGIN_VCPUS_MAX)
                return definition_refuse(c, "/vcpus", "an integer from 1 to %d beside \"plugin\"", MACHINE_PLUGIN_VCPUS_MAX);
        d->memory = 0;
        d->hotplug_slots = 0;
        if (!json_object_object_get_ex(d->json, "stopTimeout", NULL))
                d->stop_timeout_usec = USEC_PER_SEC;
        return 0;
}

static int check_memory(const DefinitionCheck *c, const MachineDefinition *d) {
        if (d->memory % KIB(4) != 0)
                return definition_refuse(c, "/memory", "a multiple of 4K");
        if (d->huge_page_size != 0 && d->memory % d->huge_page_size != 0)
                return definition_refuse(c, json_object_object_get_ex(d->json, "memory", NULL) ? "/memory" : "/hugePages",
                        "memory (%" PRIu64 " MiB) that is a multiple of the page size \"%s\"", d->memory >> 20,
                        d->huge_page_size == GIB(1) ? "1G" : "2M");
        return 0;
}

static int check_command_line(const DefinitionCheck *c, const MachineDefinition *d) {
        _cleanup_free_ char *line = NULL;
        int r;

        r = machine_definition_command_line(d, &line);
        if (r < 0)
                return r;
        if (strlen(line) > MACHINE_COMMAND_LINE_MAX)
                return definition_refuse(c, "/commandLine", "a command line of at most %zu bytes, as the devices add %zu of %d",
                        MACHINE_COMMAND_LINE_MAX - (strlen(line) - strlen(d->command_line)),
                        strlen(line) - strlen(d->command_line), MACHINE_COMMAND_LINE_MAX);
        return 0;
}

static int take_keys(const DefinitionCheck *c, MachineDefinition *d) {
        json_object_object_foreach(d->json, key, value) {
                int r = take_key(c, key, value, d);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int take_with_plugin(const DefinitionCheck *c, MachineDefinition *d) {
        int r;

        r = check_plugin_alone(c, d);
        if (r >= 0)
                r = take_keys(c, d);
        return r < 0 ? r : check_plugin(c, d);
}

static int take_machine(const DefinitionCheck *c, MachineDefinition *d) {
        int r;

        r = take_keys(c, d);
        if (r < 0)
                return r;
        if (!d->kernel)
                return definition_refuse_missing(c, "", "kernel", "the absolute path of a kernel image");
        r = check_memory(c, d);
        if (r >= 0)
                r = definition_check_devices(c, d);
        if (r >= 0)
                r = add_notify_socket(c, d);
        return r < 0 ? r : check_command_line(c, d);
}

int definition_from_sources(const DefinitionSources *sources, const char *name, MachineDefinition **ret,
        DefinitionError *ret_error) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        DefinitionCheck c = { .sources = sources, .error = ret_error };
        int r;

        if (!machine_name_is_valid(name))
                return definition_refuse_found(&c, "", "a definition of a machine with another kind of name",
                        "a name of at most %d letters, digits, dots, dashes and underscores, beginning with a letter or digit",
                        MACHINE_NAME_MAX);
        d = calloc(1, sizeof(*d));
        if (!d)
                return -ENOMEM;
        d->memory = MIB(256);
        d->vcpus = 1;
        d->hotplug_slots = MACHINE_HOTPLUG_SLOTS_DEFAULT;
        d->stop_timeout_usec = 90 * USEC_PER_SEC;
        d->name = strdup(name);
        d->command_line = strdup("");
        if (!d->name || !d->command_line)
                return -ENOMEM;

        r = definition_sources_merge(sources, &d->json);
        if (r < 0)
                return r;
        if (json_object_object_get_ex(d->json, "plugin", NULL))
                r = take_with_plugin(&c, d);
        else
                r = take_machine(&c, d);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(d);
        return 0;
}
