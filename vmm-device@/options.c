/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <ctype.h>

#include "options.h"

struct DeviceOptions {
        const DeviceType *type;
        size_t n;
        char **values; /* by index in type->options */
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
        options->values = calloc(options->n + 1, sizeof(char *));
        if (!options->values) {
                free(options);
                return -ENOMEM;
        }
        *ret = options;
        return 0;
}

DeviceOptions *device_options_free(DeviceOptions *options) {
        if (!options)
                return NULL;
        for (size_t i = 0; i < options->n; i++)
                free(options->values[i]);
        free(options->values);
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

/* Decimal digits, and for a size one of K, M, G, T behind them. */
static int parse_number(const char *s, bool suffix, uint64_t *ret) {
        static const char units[] = "KMGT";
        uint64_t v = 0;
        const char *unit;
        size_t i;

        for (i = 0; isdigit((unsigned char) s[i]); i++)
                if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t) (s[i] - '0'), &v))
                        return -ERANGE;
        if (i == 0)
                return -EINVAL;
        if (s[i] != 0) {
                unit = suffix ? strchr(units, s[i]) : NULL;
                if (!unit || s[i + 1] != 0)
                        return -EINVAL;
                if (__builtin_mul_overflow(v, UINT64_C(1024) << (10 * (unit - units)), &v))
                        return -ERANGE;
        }
        *ret = v;
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
                return parse_number(value, option->kind == DEVICE_OPTION_SIZE, &number) >= 0 &&
                        number >= option->minimum && (option->maximum == 0 || number <= option->maximum) &&
                        (!option->values || is_one_of(value, option->values));

        case DEVICE_OPTION_STRING:
                return option->maximum == 0 || strlen(value) <= option->maximum;

        case DEVICE_OPTION_ENUM:
                return is_one_of(value, option->values);

        case DEVICE_OPTION_PATH:
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

int device_options_add(DeviceOptions *options, const char *argument, char **ret_message) {
        for (size_t i = 0; i < options->n; i++) {
                const DeviceOption *option = &options->type->options[i];
                const char *value;
                char *copy;
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
                copy = strdup(value);
                if (!copy)
                        return -ENOMEM;
                free(options->values[i]);
                options->values[i] = copy;
                return 0;
        }
        return set_message(ret_message, -EINVAL, "'%s': not an option of a %s device", argument, options->type->name);
}

const char *device_options_get(const DeviceOptions *options, const char *name) {
        for (size_t i = 0; i < options->n; i++)
                if (streq(options->type->options[i].name, name))
                        return options->values[i];
        return NULL;
}

uint64_t device_options_number(const DeviceOptions *options, const char *name, uint64_t otherwise) {
        const char *value = device_options_get(options, name);
        uint64_t number;

        return value && parse_number(value, true, &number) >= 0 ? number : otherwise;
}

bool device_options_boolean(const DeviceOptions *options, const char *name, bool otherwise) {
        const char *value = device_options_get(options, name);
        bool b;

        return value && parse_boolean(value, &b) >= 0 ? b : otherwise;
}
