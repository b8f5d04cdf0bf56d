/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "arguments.h"
#include "definition.h"
#include "json-util.h"
#include "slot-configuration.h"
#include "tap.h"

/* More than a Varlink message can be. */
#define TEXT_MAX MIB(2)

static bool is_handed_over(const DeviceOption *option) {
        return option->kind == DEVICE_OPTION_PATH || option->kind == DEVICE_OPTION_PATHS || option->kind == DEVICE_OPTION_DIRECTORY ||
                option->kind == DEVICE_OPTION_INTERFACE;
}

static int add_value(SlotConfiguration *c, const DeviceOption *option, json_object *v, char **ret_message) {
        _cleanup_free_ char *name = NULL, *argument = NULL;

        if (!json_object_is_type(v, json_type_string))
                return set_message(ret_message, -EINVAL, "The values of \"%s\" are not texts.", option->name);
        if (!device_option_is_attachable(option, json_object_get_string(v)))
                return set_message(ret_message, -EINVAL, "\"%s\" is for a device that has a unit of its own only.", option->name);
        name = device_option_argument_name(option->name);
        if (!name || asprintf(&argument, "--%s=%s", name, json_object_get_string(v)) < 0) {
                argument = NULL;
                return -ENOMEM;
        }
        return device_options_add(c->options, argument, ret_message);
}

static int add_option(SlotConfiguration *c, const char *name, json_object *values, char **ret_message) {
        const DeviceOption *option = device_type_find_option(c->type, name);
        size_t n = json_object_is_type(values, json_type_array) ? json_object_array_length(values) : 0;
        int r = 0;

        if (!option || option->for_vmmd)
                return set_message(ret_message, -EINVAL, "\"%.64s\" is not an option that a %s device's helper has.", name, c->type->name);
        if (n == 0 || (n > 1 && !device_option_is_list(option)))
                return set_message(ret_message, -EINVAL, "\"%s\" has %zu values.", option->name, n);
        for (size_t i = 0; i < n && r >= 0; i++)
                r = add_value(c, option, json_object_array_get_idx(values, i), ret_message);
        return r;
}

static int take_options(SlotConfiguration *c, json_object *options, char **ret_message) {
        int r;

        r = device_options_new(c->type, &c->options);
        if (r < 0)
                return r;
        if (!options)
                return set_message(ret_message, -EINVAL, "There are no options.");
        json_object_object_foreach(options, name, values) {
                r = add_option(c, name, values, ret_message);
                if (r < 0)
                        return r;
        }
        for (const DeviceOption *option = c->type->options; option->name; option++)
                if (option->required && !option->for_vmmd && !device_options_get(c->options, option->name))
                        return set_message(ret_message, -EINVAL, "\"%s\" is missing: %s.", option->name, option->description);
        return device_options_check(c->options, ret_message);
}

/* What the text for a successor is made of: nothing that was not checked. */
static int make_text(SlotConfiguration *c, json_object *options) {
        _cleanup_json_ json_object *o = json_object_new_object();
        const char *text;
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "type", c->type->name);
        if (r >= 0)
                r = json_add_string(o, "name", c->name);
        if (r >= 0)
                r = json_add(o, "options", json_object_get(options));
        if (r < 0)
                return r;
        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
        c->text = text ? strdup(text) : NULL;
        return c->text ? 0 : -ENOMEM;
}

int slot_configuration_new(json_object *parameters, SlotConfiguration **ret, char **ret_message) {
        const char *type = json_get_string(parameters, "type", ""), *name = json_get_string(parameters, "name", "");
        json_object *options = json_get(parameters, "options", json_type_object);
        _cleanup_(slot_configuration_freep) SlotConfiguration *c = calloc(1, sizeof(*c));
        int r;

        if (!c)
                return -ENOMEM;
        c->type = device_type_find(type);
        c->class = device_class_find(type);
        if (!c->type || !c->class || !c->type->attachable)
                return set_message(ret_message, -EINVAL, "'%.64s' is not a type of device that can be attached.", type);
        if (!device_name_is_valid(name))
                return set_message(ret_message, -EINVAL, "'%.64s' cannot be a device's name.", name);
        c->name = strdup(name);
        if (!c->name)
                return -ENOMEM;
        r = take_options(c, options, ret_message);
        if (r < 0)
                return r == -ENOMEM ? r : -EINVAL;
        c->class = device_class_for(c->class, c->options);
        r = make_text(c, options);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

SlotConfiguration *slot_configuration_free(SlotConfiguration *c) {
        if (!c)
                return NULL;
        (void) device_options_free(c->options);
        free(c->name);
        free(c->text);
        return mfree(c);
}

/* ---- descriptors ---- */

static bool is_of_kind(const DeviceOption *option, int fd) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return false;
        switch (option->kind) {
        case DEVICE_OPTION_DIRECTORY:
                return S_ISDIR(st.st_mode);
        case DEVICE_OPTION_INTERFACE:
                return S_ISCHR(st.st_mode);
        default:
                return S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode);
        }
}

static int check_fd(const PassedFds *passed, const DeviceOption *option, const char *name, size_t *known, char **ret_message) {
        size_t n = 0, max = option->kind == DEVICE_OPTION_INTERFACE ? TAP_QUEUES_MAX : 1;

        for (size_t i = 0; i < passed->n; i++) {
                if (!streq(passed->fds[i].name, name))
                        continue;
                if (!is_of_kind(option, passed->fds[i].fd))
                        return set_message(ret_message, -EINVAL, "The descriptor of \"%s\" is not %s.", name,
                                option->kind == DEVICE_OPTION_DIRECTORY     ? "a directory"
                                        : option->kind == DEVICE_OPTION_INTERFACE ? "that of an interface"
                                                                                  : "that of a file or a device");
                n++;
        }
        if (n < 1 || n > max)
                return set_message(ret_message, -EINVAL, "\"%s\" has %zu descriptors, expected %s.", name, n,
                        max > 1 ? "one for each queue" : "one");
        *known += n;
        return 0;
}

int slot_configuration_check_fds(const SlotConfiguration *c, const PassedFds *passed, char **ret_message) {
        size_t known = 0, n;
        int r;

        for (const DeviceOption *option = c->type->options; option->name; option++) {
                if (!is_handed_over(option))
                        continue;
                (void) device_options_list(c->options, option->name, &n);
                for (size_t i = 0; i < n; i++) {
                        _cleanup_free_ char *element = NULL;

                        if (device_option_is_list(option) && asprintf(&element, "%s-%zu", option->name, i) < 0) {
                                element = NULL;
                                return -ENOMEM;
                        }
                        r = check_fd(passed, option, element ?: option->name, &known, ret_message);
                        if (r < 0)
                                return r;
                }
        }
        if (known != passed->n)
                return set_message(ret_message, -EINVAL, "There are descriptors of what is no option, or not given.");
        return 0;
}

/* ---- over our death ---- */

int slot_configuration_save(const SlotConfiguration *c) {
        size_t size = strlen(c->text);
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = memfd_create(SLOT_CONFIGURATION_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
                return -errno;
        r = write_full(fd, c->text, size);
        if (r < 0)
                return r;
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
                return -errno;
        return TAKE_FD(fd);
}

/* Nobody but a helper of the same unit wrote it; nevertheless it is taken for what it is, a text from outside. */
int slot_configuration_load(int fd, SlotConfiguration **ret, char **ret_message) {
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *text = NULL;
        struct stat st;
        ssize_t n;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size <= 0 || st.st_size > (off_t) TEXT_MAX)
                return -EBADMSG;
        text = malloc((size_t) st.st_size + 1);
        if (!text)
                return -ENOMEM;
        n = pread(fd, text, (size_t) st.st_size, 0);
        if (n != st.st_size)
                return n < 0 ? -errno : -EIO;
        text[n] = 0;
        o = json_tokener_parse(text);
        if (!o)
                return -EBADMSG;
        return slot_configuration_new(o, ret, ret_message);
}
