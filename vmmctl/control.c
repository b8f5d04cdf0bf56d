/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Commands that are one call to the running machine. */

#include "machine.h"
#include "output.h"

static int exit_code(int r) {
        return r == -ENOENT || r == -ECONNREFUSED ? STATUS_NOT_RUNNING : STATUS_FAILED;
}

static int call_each(const Options *o, char **names, size_t n, const char *method) {
        Outcomes outcomes;

        if (outcomes_begin(&outcomes, o) < 0)
                return STATUS_FAILED;
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *problem = NULL;
                int r;

                r = machine_call_by_name(o, names[i], method, NULL, &problem);
                outcomes_add(&outcomes, names[i], r < 0 ? exit_code(r) : STATUS_OK, r < 0 ? problem ?: strerror(-r) : NULL);
        }
        return outcomes_end(&outcomes);
}

int command_reset(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Reset");
}

int command_pause(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Pause");
}

int command_resume(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "Resume");
}

int command_power_button(const Options *o, char **arguments, size_t n) {
        return call_each(o, arguments, n, "PowerButton");
}

int command_describe(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *reply = NULL;
        _cleanup_free_ char *problem = NULL;
        int r;

        r = machine_call_by_name(o, arguments[0], "Describe", &reply, &problem);
        if (r < 0) {
                complain("%s: %s", arguments[0], problem ?: strerror(-r));
                return exit_code(r);
        }
        return print_json(o, reply) < 0 ? STATUS_FAILED : STATUS_OK;
}
