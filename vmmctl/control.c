/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Commands that are one call to the running machine. */

#include "machine.h"
#include "output.h"
#include "parse.h"

#define SECTOR_SIZE UINT64_C(512)

static int call_each(const Options *o, char **names, size_t n, const char *method, json_object *parameters) {
        Outcomes outcomes;

        if (outcomes_begin(&outcomes, o) < 0)
                return STATUS_FAILED;
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *problem = NULL;
                int r;

                r = machine_call_by_name(o, names[i], method, parameters, NULL, &problem);
                outcomes_add(&outcomes, names[i], machine_exit_code(r), r < 0 ? problem ?: strerror(-r) : NULL);
        }
        return outcomes_end(&outcomes);
}

/* One machine, one answer that says nothing: `parameters` is taken over. */
static int call_one(const Options *o, char *name, const char *method, json_object *parameters) {
        _cleanup_json_ json_object *p = parameters;

        return call_each(o, &name, 1, method, p);
}

int command_reboot(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Reboot", NULL);
}

int command_reset(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Reset", NULL);
}

int command_pause(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *parameters = NULL;

        if (option_given(o, OPTION_FULL)) {
                parameters = json_object_new_object();
                if (!parameters || json_add_boolean(parameters, "devices", true) < 0) {
                        complain("Out of memory.");
                        return STATUS_FAILED;
                }
        }
        return call_each(o, arguments, n, "Pause", parameters);
}

/* What was paused is resumed, so that --full makes no difference. */
int command_resume(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Resume", NULL);
}

int command_reload(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Reload", NULL);
}

int command_power_button(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "PowerButton", NULL);
}

int command_sleep_button(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "SleepButton", NULL);
}

int command_nmi(const Options *o, char **arguments, size_t n) {
        json_object *parameters = json_object_new_object();
        uint64_t vcpu;

        if (parameters && n > 1) {
                if (parse_unsigned(arguments[1], &vcpu) < 0 || vcpu > INT32_MAX) {
                        complain("'%s' is no number of a vCPU.", arguments[1]);
                        (void) json_object_put(parameters);
                        return STATUS_USAGE;
                }
                if (json_add_integer(parameters, "vcpu", (int64_t) vcpu) < 0)
                        json_putp(&parameters);
        }
        if (!parameters) {
                complain("Out of memory.");
                return STATUS_FAILED;
        }
        return call_one(o, arguments[0], "InjectNmi", parameters);
}

int command_log_level(const Options *o, char **arguments, size_t n) {
        static const char *const levels[] = { "error", "warning", "notice", "info", "debug" };
        const char *level = arguments[n - 1];
        json_object *parameters;
        bool known = false;

        for (size_t i = 0; i < ELEMENTSOF(levels); i++)
                known = known || streq(levels[i], level);
        if (!known) {
                complain("'%s' is no log level: error, warning, notice, info, debug.", level);
                return STATUS_USAGE;
        }
        parameters = json_object_new_object();
        if (!parameters || json_add_string(parameters, "level", level) < 0 ||
                json_add_string(parameters, "device", n > 2 ? arguments[1] : NULL) < 0) {
                (void) json_object_put(parameters);
                complain("Out of memory.");
                return STATUS_FAILED;
        }
        return call_one(o, arguments[0], "SetLogLevel", parameters);
}

int command_describe(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *reply = NULL;
        _cleanup_free_ char *problem = NULL;
        int r;

        r = machine_call_by_name(o, arguments[0], "Describe", NULL, &reply, &problem);
        if (r < 0)
                return machine_conclude(arguments[0], r, problem);
        return print_json(o, reply) < 0 ? STATUS_FAILED : STATUS_OK;
}

/* ---- disks ---- */

static int resize_parameters(const char *device, const char *size, json_object **ret) {
        _cleanup_json_ json_object *p = json_object_new_object();
        uint64_t bytes = 0;
        int r;

        if (size && (parse_size(size, &bytes) < 0 || bytes > INT64_MAX)) {
                complain("'%s' is no size: bytes, or a number with K, M, G or T.", size);
                return -EINVAL;
        }
        if (bytes % SECTOR_SIZE != 0) {
                complain("'%s' is no size of a disk: those are whole sectors of 512 bytes.", size);
                return -EINVAL;
        }
        if (!p)
                return -ENOMEM;
        r = json_add_string(p, "device", device);
        if (r >= 0 && size)
                r = json_add_integer(p, "size", (int64_t) bytes);
        if (r >= 0)
                *ret = TAKE_PTR(p);
        return r;
}

int command_resize(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *parameters = NULL, *reply = NULL;
        _cleanup_free_ char *problem = NULL, *size = NULL;
        int r;

        r = resize_parameters(arguments[1], n > 2 ? arguments[2] : NULL, &parameters);
        if (r == -EINVAL)
                return STATUS_USAGE;
        if (r >= 0)
                r = machine_call_by_name(o, arguments[0], "ResizeDisk", parameters, &reply, &problem);
        if (r < 0)
                return machine_conclude(arguments[0], r, problem);
        if (o->json != JSON_OFF)
                return print_json(o, reply) < 0 ? STATUS_FAILED : STATUS_OK;
        size = format_bytes((uint64_t) json_get_integer(reply, "size", 0));
        if (!o->quiet)
                (void) printf("%s: the disk '%s' has %s now.\n", arguments[0], arguments[1], size ?: "?");
        return STATUS_OK;
}

/* As crosvm has it. */
int command_disk(const Options *o, char **arguments, size_t n) {
        if (streq(arguments[0], "resize"))
                return command_resize(o, arguments + 1, n - 1);
        complain("Usage: vmmctl disk resize NAME DISK [SIZE]");
        return STATUS_USAGE;
}
