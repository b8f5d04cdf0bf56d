/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>

#include "arguments.h"
#include "config.h"
#include "convention.h"
#include "log.h"

/* Types that another project's program serves, where this option has another than its first value. */
static const struct {
        const char *type, *option;
        const DeviceClass *class;
} foreign_classes[] = {
        { "block", "format", &storage_device },
        { "net", "backend", &passt_device },
};

static const DeviceClass *const device_classes[] = {
        &balloon_device,
        &block_device,
        &console_device,
        &fs_device,
        &input_device,
        &net_device,
        &plugin_device,
        &pmem_device,
        &rng_device,
        &serial_device,
        &vhost_user_device,
        &vsock_device,
};

static void print_help(const DeviceType *type) {
        printf("vmm-device TYPE [OPTION...]\n"
               "vmm-device slot [OPTION...]\n\n"
               "Serves one device of a virtual machine, on vhost-user or on vmmd's bus protocol. A slot is told on its control socket which one.\n\n"
               "     --fd=N                socket of the front-end, connected or listening\n"
               "     --socket-path=PATH    socket to listen on for front-ends\n"
               "     --varlink-path=PATH   socket to listen on for the control interface\n"
               "     --vsock-path=PATH     socket to listen on for a vsock device's clients\n"
               "     --print-capabilities  say as JSON what the device can do, and exit\n"
               "     --no-sandbox          do not load the seccomp policy (for debuggers)\n"
               "  -h --help                show this help; after a TYPE also its options\n"
               "     --version             show the version\n\nTypes:");
        for (size_t i = 0; i < ELEMENTSOF(device_classes); i++)
                printf(" %s", device_classes[i]->name);
        printf("\n");
        if (!type)
                return;
        printf("\nOptions of %s:\n", type->name);
        for (const DeviceOption *option = type->options; option->name; option++) {
                _cleanup_free_ char *name = device_option_argument_name(option->name);
                if (!option->for_vmmd && name)
                        printf("     --%s=%s  %s\n", name, option->kind == DEVICE_OPTION_BOOLEAN ? "yes|no" : "VALUE",
                                option->description);
        }
}

const DeviceClass *device_class_for(const DeviceClass *class, const DeviceOptions *options) {
        for (size_t i = 0; i < ELEMENTSOF(foreign_classes); i++) {
                const char *value = device_options_get(options, foreign_classes[i].option);

                if (streq(foreign_classes[i].type, class->name) && value &&
                        !streq(value, device_type_find_option(device_type_find(class->name), foreign_classes[i].option)->values[0]))
                        return foreign_classes[i].class;
        }
        return class;
}

const DeviceClass *device_class_find(const char *name) {
        for (size_t i = 0; i < ELEMENTSOF(device_classes); i++)
                if (streq(device_classes[i]->name, name))
                        return device_classes[i];
        return NULL;
}

static int find_class(const char *name, Arguments *a) {
        a->class = device_class_find(name);
        a->type = streq(name, plugin_type.name) ? &plugin_type : device_type_find(name);
        return a->class && a->type ? 0 : -EINVAL;
}

/* "Other options and arguments should be ignored". */
static int print_capabilities(const Arguments *a) {
        int r;

        if (!a->class)
                return log_error_errno(-EINVAL, "--print-capabilities is asked of a type of device, which comes first. --help lists them.");
        r = convention_print_capabilities(a->class);
        return r < 0 ? log_error_errno(r, "A %s device is no vhost-user back-end.", a->class->name) : r;
}

static int parse_fd(const char *value, int *ret) {
        char *end;
        long fd;

        errno = 0;
        fd = strtol(value, &end, 10);
        if (errno != 0 || end == value || *end != 0 || fd < 0 || fd > 1 << 20 || fcntl((int) fd, F_GETFD) < 0)
                return log_error_errno(-EINVAL, "'--fd=%s': not an open file descriptor", value);
        *ret = (int) fd;
        return 0;
}

/* Returns 0 to go on, 1 where the process is done. */
static int parse_argument(Arguments *a, const char *argument) {
        _cleanup_free_ char *message = NULL, *translated = NULL;
        const char *value;
        int r;

        if (streq(argument, "-h") || streq(argument, "--help")) {
                print_help(a->type);
                return 1;
        }
        if (streq(argument, "--version")) {
                printf("vmm-device %s\n", PROJECT_VERSION);
                return 1;
        }
        if (streq(argument, "--no-sandbox"))
                a->sandbox = false;
        else if ((value = startswith(argument, "--socket-path=")))
                a->socket_path = value;
        else if ((value = startswith(argument, "--varlink-path=")))
                a->varlink_path = value;
        else if ((value = startswith(argument, "--vsock-path=")))
                a->vsock_path = value;
        else if ((value = startswith(argument, "--fd=")))
                return parse_fd(value, &a->fd);
        else if (a->slot)
                return log_error_errno(-EINVAL, "'%s': a slot is told its device's options on its control socket.", argument);
        else {
                r = convention_translate(a->class, argument, &translated);
                if (r >= 0)
                        r = device_options_add(a->options, translated ? translated : argument, &message);
                if (r < 0)
                        return log_error_errno(r, "%s", message ? message : "Out of memory.");
        }
        return 0;
}

int arguments_parse(Arguments *a, int argc, char **argv) {
        _cleanup_free_ char *message = NULL;
        const char *type = convention_type_of_program(argv[0]);
        int first = type ? 1 : 2, r;

        if (!type && argc > 1 && argv[1][0] != '-')
                type = argv[1];
        a->slot = type && streq(type, "slot");
        if (type && !a->slot && find_class(type, a) < 0)
                return log_error_errno(-EINVAL, "'%s' is not a type of device. --help lists them.", type);
        if (convention_wants_capabilities(argc, argv))
                return print_capabilities(a);
        if (type && !a->slot) {
                r = device_options_new(a->type, &a->options);
                if (r < 0)
                        return log_oom();
        }
        for (int i = type ? first : 1; i < argc; i++) {
                if (!type && !startswith(argv[i], "-h") && !streq(argv[i], "--help") && !streq(argv[i], "--version"))
                        break;
                r = parse_argument(a, argv[i]);
                if (r != 0)
                        return r;
        }
        if (!type)
                return log_error_errno(-EINVAL, "The type of device comes first. --help lists them.");
        r = a->slot ? 0 : device_options_check(a->options, &message);
        if (r < 0)
                return log_error_errno(r, "%s.", message ? message : "Out of memory");
        if (!a->slot)
                a->class = device_class_for(a->class, a->options);
        if (a->fd >= 0 && a->socket_path)
                return log_error_errno(-EINVAL, "--fd and --socket-path are incompatible.");
        return 0;
}

void arguments_done(Arguments *a) {
        a->options = device_options_free(a->options);
}
