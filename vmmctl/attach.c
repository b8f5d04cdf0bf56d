/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Devices of a running machine: attach, detach. What a device is made of is opened here, as the user who calls, and handed over: so nobody gets at a file through
 * a machine that is not his already. */

#include <fcntl.h>
#include <sys/stat.h>

#include "device-type.h"
#include "mac-address.h"
#include "machine.h"
#include "output.h"
#include "parse.h"
#include "tap.h"

/* How long the guest may take by default. */
#define GUEST_TIMEOUT_USEC (30 * USEC_PER_SEC)
/* What vmmd and the helper need beside the guest. */
#define OWN_TIMEOUT_USEC (30 * USEC_PER_SEC)
/* As many as one message carries (varlink/server.h). */
#define FDS_MAX 16

typedef struct Attachment {
        const char *machine, *name;
        const DeviceType *type;
        json_object *definition, *descriptors;
        int fds[FDS_MAX];
        size_t n_fds;
} Attachment;

static void attachment_done(Attachment *a) {
        json_putp(&a->definition);
        json_putp(&a->descriptors);
        for (size_t i = 0; i < a->n_fds; i++)
                (void) safe_close(a->fds[i]);
}

/* ---- from words to a definition ---- */

static int find_type(const char *name, const DeviceType **ret) {
        _cleanup_free_ char *known = NULL;

        *ret = device_type_find(name);
        if (*ret && (*ret)->attachable)
                return 0;
        for (const DeviceType *t = device_types; t->name; t++) {
                _cleanup_free_ char *shorter = known;

                if (t->attachable && asprintf(&known, "%s%s%s", shorter ?: "", shorter ? ", " : "", t->name) < 0) {
                        known = NULL;
                        return -ENOMEM;
                }
                if (known == shorter)
                        shorter = NULL;
        }
        complain("'%s' is no type of device that can be attached: %s.", name, known ?: "");
        return -EINVAL;
}

/* As in the definition, or as the helper's command line has it. */
static const DeviceOption *find_option(const DeviceType *type, const char *name, size_t length) {
        for (const DeviceOption *o = type->options; o->name; o++) {
                _cleanup_free_ char *kebab = device_option_argument_name(o->name);

                if ((strlen(o->name) == length && memcmp(o->name, name, length) == 0) ||
                        (kebab && strlen(kebab) == length && memcmp(kebab, name, length) == 0))
                        return o;
        }
        return NULL;
}

/* Relative to where the user is. A log may be yet to be made. */
static int absolute_path(const DeviceOption *option, const char *value, char **ret) {
        _cleanup_free_ char *directory = NULL, *real = NULL;
        const char *slash = strrchr(value, '/');

        *ret = realpath(value, NULL);
        if (*ret)
                return 0;
        if (errno != ENOENT || option->access != DEVICE_PATH_APPEND_LOG || (slash && !slash[1]))
                return -errno;
        directory = slash ? strndup(value, slash == value ? 1 : (size_t) (slash - value)) : strdup(".");
        if (!directory)
                return -ENOMEM;
        real = realpath(directory, NULL);
        if (!real)
                return -errno;
        return asprintf(ret, "%s/%s", streq(real, "/") ? "" : real, slash ? slash + 1 : value) < 0 ? -ENOMEM : 0;
}

static int parse_yes_no(const char *s, bool *ret) {
        *ret = streq(s, "yes") || streq(s, "true") || streq(s, "on") || streq(s, "1");
        return *ret || streq(s, "no") || streq(s, "false") || streq(s, "off") || streq(s, "0") ? 0 : -EINVAL;
}

/* The value as the definition has it; what else is wrong with it vmmd says, in the words of vmm.machine(5). */
static int make_value(const DeviceOption *option, const char *text, json_object **ret) {
        _cleanup_free_ char *path = NULL;
        uint64_t number;
        bool truth;
        int r;

        switch (option->kind) {
        case DEVICE_OPTION_BOOLEAN:
                if (parse_yes_no(text, &truth) < 0) {
                        complain("%s=%s: expected yes or no.", option->name, text);
                        return -EINVAL;
                }
                *ret = json_object_new_boolean(truth);
                break;
        case DEVICE_OPTION_UNSIGNED:
                if (parse_unsigned(text, &number) < 0 || number > INT64_MAX) {
                        complain("%s=%s: expected a number.", option->name, text);
                        return -EINVAL;
                }
                *ret = json_object_new_int64((int64_t) number);
                break;
        case DEVICE_OPTION_PATH:
        case DEVICE_OPTION_PATHS:
        case DEVICE_OPTION_DIRECTORY:
                r = absolute_path(option, text, &path);
                if (r < 0) {
                        complain("%s=%s: %s", option->name, text, strerror(-r));
                        return r;
                }
                *ret = json_object_new_string(path);
                break;
        default:
                *ret = json_object_new_string(text);
        }
        return *ret ? 0 : -ENOMEM;
}

static int add_option(Attachment *a, const char *word) {
        const char *value = strchr(word, '=');
        const DeviceOption *option = value ? find_option(a->type, word, (size_t) (value - word)) : NULL;
        json_object *v = NULL, *list;
        bool given;
        int r;

        if (!option) {
                complain(value ? "'%s': a %s device has no such option." : "'%s': expected OPTION=VALUE of a %s device.", word, a->type->name);
                return -EINVAL;
        }
        given = json_object_object_get_ex(a->definition, option->name, &list);
        if (given && !device_option_is_list(option)) {
                complain("'%s': this option was given already.", word);
                return -EINVAL;
        }
        r = make_value(option, value + 1, &v);
        if (r < 0)
                return r;
        if (!device_option_is_list(option))
                return json_add(a->definition, option->name, v);
        if (!given) {
                list = json_object_new_array();
                r = json_add(a->definition, option->name, list);
        }
        if (r < 0) {
                json_object_put(v);
                return r;
        }
        return json_append(list, v);
}

static int make_definition(Attachment *a, char **words, size_t n) {
        int r;

        a->definition = json_object_new_object();
        a->descriptors = json_object_new_array();
        if (!a->definition || !a->descriptors)
                return -ENOMEM;
        r = json_add_string(a->definition, "type", a->type->name);
        for (size_t i = 0; i < n && r >= 0; i++)
                r = add_option(a, words[i]);
        return r;
}

/* ---- what it is made of ---- */

static int add_fd(Attachment *a, const char *option, int fd) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (a->n_fds >= FDS_MAX) {
                (void) safe_close(fd);
                complain("No more than %d files can be handed over.", FDS_MAX);
                return -E2BIG;
        }
        a->fds[a->n_fds++] = fd;
        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "option", option);
        if (r >= 0)
                r = json_add_integer(o, "index", (int64_t) a->n_fds - 1);
        return r < 0 ? r : json_append(a->descriptors, TAKE_PTR(o));
}

static int open_flags(const Attachment *a, const DeviceOption *option) {
        if (option->kind == DEVICE_OPTION_DIRECTORY)
                return O_RDONLY | O_DIRECTORY;
        if (option->access == DEVICE_PATH_APPEND_LOG)
                return O_WRONLY | O_APPEND | O_CREAT;
        return option->access == DEVICE_PATH_READ || json_get_boolean(a->definition, "readOnly", false) ? O_RDONLY : O_RDWR;
}

static int open_path(Attachment *a, const DeviceOption *option, const char *name, json_object *value) {
        const char *path = json_object_get_string(value);
        int fd = open(path, open_flags(a, option) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);

        if (fd < 0) {
                int r = -errno;

                complain("Cannot open %s: %m", path);
                return r;
        }
        return add_fd(a, name, fd);
}

static int open_list(Attachment *a, const DeviceOption *option, json_object *list) {
        int r = 0;

        for (size_t i = 0; i < json_object_array_length(list) && r >= 0; i++) {
                _cleanup_free_ char *name = NULL;

                if (asprintf(&name, "%s-%zu", option->name, i) < 0) {
                        name = NULL;
                        return -ENOMEM;
                }
                r = open_path(a, option, name, json_object_array_get_idx(list, i));
        }
        return r;
}

/* The address that a device of this name has in this machine, as it would have from the definition. A macvtap has one of its own. */
static int add_address(Attachment *a, int tap) {
        char text[MAC_ADDRESS_TEXT_MAX];
        uint8_t mac[MAC_ADDRESS_SIZE];

        if (json_object_object_get_ex(a->definition, "mac", NULL) || tap_is_macvtap(tap))
                return 0;
        mac_address_derive(a->machine, a->name, mac);
        mac_address_format(mac, text);
        return json_add_string(a->definition, "mac", text);
}

static int open_interface(Attachment *a, const DeviceOption *option, json_object *value) {
        int64_t queues = json_get_integer(a->definition, "queuePairs", 1);
        _cleanup_free_ char *message = NULL;
        int fds[FDS_MAX], r = 0;

        if (queues < 1 || queues > FDS_MAX) {
                complain("queuePairs=%lld: expected 1 to %d.", (long long) queues, FDS_MAX);
                return -EINVAL;
        }
        if (!tap_name_is_valid(json_object_get_string(value))) {
                complain("%s=%s: this cannot be the name of an interface.", option->name, json_object_get_string(value));
                return -EINVAL;
        }
        r = tap_open(json_object_get_string(value), (unsigned) queues, fds, &message);
        if (r < 0) {
                complain("%s", message ?: strerror(-r));
                return r;
        }
        for (int64_t i = 0; i < queues; i++)
                if (r >= 0)
                        r = add_fd(a, option->name, fds[i]);
                else
                        (void) safe_close(fds[i]);
        return r < 0 ? r : add_address(a, fds[0]);
}

static int open_files(Attachment *a) {
        int r = 0;

        for (const DeviceOption *o = a->type->options; o->name && r >= 0; o++) {
                json_object *value;

                if (!json_object_object_get_ex(a->definition, o->name, &value))
                        continue;
                if (o->kind == DEVICE_OPTION_PATH || o->kind == DEVICE_OPTION_DIRECTORY)
                        r = open_path(a, o, o->name, value);
                else if (o->kind == DEVICE_OPTION_PATHS)
                        r = open_list(a, o, value);
                else if (o->kind == DEVICE_OPTION_INTERFACE)
                        r = open_interface(a, o, value);
        }
        return r;
}

/* ---- calls ---- */

static int call(const Options *o, const char *machine, const char *method, json_object *parameters, const Attachment *a, uint64_t timeout,
        json_object **ret_reply) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        _cleanup_free_ char *problem = NULL;
        int r;

        r = machine_connect(o, machine, &client, &problem);
        if (r >= 0) {
                varlink_client_set_timeout(client, timeout + OWN_TIMEOUT_USEC);
                r = machine_call_passing(o, client, method, parameters, a ? a->fds : NULL, a ? a->n_fds : 0, ret_reply, &problem);
        }
        return machine_conclude(machine, r, problem);
}

/* Zero is not to wait at all. */
static uint64_t guest_timeout(const Options *o) {
        return option_given(o, OPTION_TIMEOUT) ? MIN(o->timeout_usec, UINT64_C(24) * 3600 * USEC_PER_SEC) : GUEST_TIMEOUT_USEC;
}

static int attach_parameters(const Options *o, const Attachment *a, json_object **ret) {
        _cleanup_json_ json_object *p = json_object_new_object();
        int r;

        if (!p)
                return -ENOMEM;
        r = json_add_string(p, "name", a->name);
        if (r >= 0)
                r = json_add(p, "definition", json_object_get(a->definition));
        if (r >= 0)
                r = json_add(p, "fileDescriptors", json_object_get(a->descriptors));
        if (r >= 0 && guest_timeout(o) > 0)
                r = json_add_integer(p, "timeout", (int64_t) guest_timeout(o));
        if (r >= 0)
                *ret = TAKE_PTR(p);
        return r;
}

static void tell(const Attachment *a, json_object *device) {
        _cleanup_free_ char *state = make_printable(json_dup_string(device, "state"));
        _cleanup_free_ char *address = make_printable(json_dup_string(device, "pciAddress"));

        (void) printf("%s: the %s device '%s' is attached%s%s%s\n", a->machine, a->type->name, a->name, address ? " at " : "", address ?: "",
                streq_ptr(state, "active") ? ", and the guest uses it." : "; the guest's driver has not taken it yet.");
}

int command_attach(const Options *o, char **arguments, size_t n) {
        _cleanup_(attachment_done) Attachment a = { .machine = arguments[0], .name = arguments[1] };
        _cleanup_json_ json_object *parameters = NULL, *reply = NULL;
        int r, status;

        r = find_type(arguments[2], &a.type);
        if (r >= 0)
                r = make_definition(&a, arguments + 3, n - 3);
        if (r == -EINVAL)
                return STATUS_USAGE;
        if (r >= 0)
                r = open_files(&a);
        if (r >= 0)
                r = attach_parameters(o, &a, &parameters);
        if (r == -ENOMEM)
                complain("Out of memory.");
        if (r < 0)
                return r == -EINVAL ? STATUS_USAGE : STATUS_FAILED;

        status = call(o, a.machine, "AttachDevice", parameters, &a, guest_timeout(o), &reply);
        if (status != STATUS_OK)
                return status;
        if (o->json != JSON_OFF)
                return print_json(o, json_get(reply, "device", json_type_object)) < 0 ? STATUS_FAILED : STATUS_OK;
        if (!o->quiet)
                tell(&a, json_get(reply, "device", json_type_object));
        return STATUS_OK;
}

int command_detach(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r, status;

        r = parameters ? json_add_string(parameters, "name", arguments[1]) : -ENOMEM;
        if (r >= 0 && option_given(o, OPTION_TIMEOUT))
                r = json_add_integer(parameters, "timeout", (int64_t) guest_timeout(o));
        if (r >= 0 && option_given(o, OPTION_FORCE))
                r = json_add_boolean(parameters, "force", true);
        if (r < 0) {
                complain("Out of memory.");
                return STATUS_FAILED;
        }
        status = call(o, arguments[0], "DetachDevice", parameters, NULL, guest_timeout(o), NULL);
        if (status == STATUS_OK && !o->quiet && o->json == JSON_OFF)
                (void) printf("%s: the device '%s' is detached.\n", arguments[0], arguments[1]);
        return status;
}
