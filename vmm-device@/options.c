/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "options.h"
#include "parse.h"

typedef struct OptionValues {
        char **values; /* more than one only for a list */
        size_t n;
} OptionValues;

struct DeviceOptions {
        const DeviceType *type;
        size_t n;
        OptionValues *options; /* by index in type->options */
};

static size_t count_options(const DeviceType *type) {
        size_t n = 0;

        while (type->options[n].name)
                n++;
        return n;
}

int device_options_new(const DeviceType *type, DeviceOptions **ret) {
        DeviceOptions *options = calloc(1, sizeof(DeviceOptions));

        if (!options)
                return -ENOMEM;
        options->type = type;
        options->n = count_options(type);
        options->options = calloc(options->n + 1, sizeof(OptionValues));
        if (!options->options) {
                free(options);
                return -ENOMEM;
        }
        *ret = options;
        return 0;
}

DeviceOptions *device_options_free(DeviceOptions *options) {
        if (!options)
                return NULL;
        for (size_t i = 0; i < options->n; i++) {
                for (size_t j = 0; j < options->options[i].n; j++)
                        free(options->options[i].values[j]);
                free(options->options[i].values);
        }
        free(options->options);
        return mfree(options);
}

static int parse_boolean(const char *s, bool *ret) {
        if (streq(s, "yes") || streq(s, "true") || streq(s, "1"))
                *ret = true;
        else if (streq(s, "no") || streq(s, "false") || streq(s, "0"))
                *ret = false;
        else
                return -EINVAL;
        return 0;
}

static bool is_one_of(const char *value, const char *const *values) {
        for (; *values; values++)
                if (streq(*values, value))
                        return true;
        return false;
}

static bool value_is_valid(const DeviceOption *option, const char *value) {
        uint64_t number;
        bool b;

        switch (option->kind) {

        case DEVICE_OPTION_BOOLEAN:
                return parse_boolean(value, &b) >= 0;

        case DEVICE_OPTION_UNSIGNED:
        case DEVICE_OPTION_SIZE:
                return (option->kind == DEVICE_OPTION_SIZE ? parse_size : parse_unsigned)(value, &number) >= 0 &&
                        number >= option->minimum && (option->maximum == 0 || number <= option->maximum) &&
                        (!option->values || is_one_of(value, option->values));

        case DEVICE_OPTION_STRING:
        case DEVICE_OPTION_STRINGS:
        case DEVICE_OPTION_INTERFACE:
                return (option->maximum == 0 || strlen(value) <= option->maximum) && (!option->is_valid || option->is_valid(value));

        case DEVICE_OPTION_ENUM:
                return is_one_of(value, option->values);

        case DEVICE_OPTION_PATH:
        case DEVICE_OPTION_PATHS:
        case DEVICE_OPTION_DIRECTORY:
                return *value != 0;
        }
        return false;
}

/* Whether `argument` is --NAME=… for the option; *ret_value is what follows. */
static int argument_matches(const DeviceOption *option, const char *argument, const char **ret_value) {
        _cleanup_free_ char *name = device_option_argument_name(option->name);
        const char *rest;

        if (!name)
                return -ENOMEM;
        rest = startswith(argument, "--");
        rest = rest ? startswith(rest, name) : NULL;
        if (!rest || *rest != '=')
                return 0;
        *ret_value = rest + 1;
        return 1;
}

/* A list gets one more; of other options the last value counts. */
static int add_value(const DeviceOption *option, OptionValues *values, const char *value, char **ret_message) {
        char **grown, *copy;

        if (device_option_is_list(option) && values->n >= DEVICE_OPTION_LIST_MAX)
                return set_message(ret_message, -E2BIG, "\"%s\" has more than %d values", option->name, DEVICE_OPTION_LIST_MAX);
        copy = strdup(value);
        if (!copy)
                return -ENOMEM;
        if (values->n > 0 && !device_option_is_list(option)) {
                free(values->values[0]);
                values->values[0] = copy;
                return 0;
        }
        grown = reallocarray(values->values, values->n + 1, sizeof(char *));
        if (!grown) {
                free(copy);
                return -ENOMEM;
        }
        grown[values->n++] = copy;
        values->values = grown;
        return 0;
}

int device_options_add(DeviceOptions *options, const char *argument, char **ret_message) {
        for (size_t i = 0; i < options->n; i++) {
                const DeviceOption *option = &options->type->options[i];
                const char *value;
                int r;

                r = argument_matches(option, argument, &value);
                if (r < 0)
                        return r;
                if (r == 0)
                        continue;
                if (option->for_vmmd)
                        break;
                if (!value_is_valid(option, value))
                        return set_message(ret_message, -EINVAL, "'%s': not a value for \"%s\" (%s)", argument, option->name,
                                option->description);
                return add_value(option, &options->options[i], value, ret_message);
        }
        return set_message(ret_message, -EINVAL, "'%s': not an option of a %s device", argument, options->type->name);
}

const char *const *device_options_list(const DeviceOptions *options, const char *name, size_t *ret_n) {
        for (size_t i = 0; i < options->n; i++)
                if (streq(options->type->options[i].name, name)) {
                        *ret_n = options->options[i].n;
                        return (const char *const *) options->options[i].values;
                }
        *ret_n = 0;
        return NULL;
}

const char *device_options_get(const DeviceOptions *options, const char *name) {
        size_t n;
        const char *const *values = device_options_list(options, name, &n);

        return n > 0 ? values[0] : NULL;
}

int device_options_check(const DeviceOptions *options, char **ret_message) {
        for (const DeviceOption *option = options->type->options; option->name; option++) {
                bool given = device_options_get(options, option->name);
                const char *condition = given ? option->only_where : option->required_where, *value;
                _cleanup_free_ char *name = NULL;

                if (!condition)
                        continue;
                value = device_options_get(options, device_condition_option(options->type, condition)->name);
                if (device_condition_holds(options->type, condition, value) == given)
                        continue;
                name = device_option_argument_name(option->name);
                return set_message(ret_message, -EINVAL, "A %s device %s --%s= %s %s", options->type->name,
                        given ? "takes" : "needs", name ?: "?", given ? "only where" : "where", condition);
        }
        return 0;
}

uint64_t device_options_number(const DeviceOptions *options, const char *name, uint64_t otherwise) {
        const char *value = device_options_get(options, name);
        uint64_t number;

        return value && parse_size(value, &number) >= 0 ? number : otherwise;
}

bool device_options_boolean(const DeviceOptions *options, const char *name, bool otherwise) {
        const char *value = device_options_get(options, name);
        bool b;

        return value && parse_boolean(value, &b) >= 0 ? b : otherwise;
}
