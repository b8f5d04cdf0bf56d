/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-crash-report MACHINE stop|start|restarted
 *
 * Says in the journal what became of a machine whose vmmd could not say so itself, since it was killed. An end that vmmd chose is there already. The second argument
 * is what its definition has follow (onFailure), and how:
 *
 *   stop       run in a unit of its own when vmmd's has failed (OnFailure=): the machine stays down
 *   start      it is started from here. Service managers before systemd 254 stop the sockets of a machine, which belong to it, before they start it again, and by
 *              them what they were about to start: there this is run when vmmd has ended (ExecStopPost=), where it sees whether that was wanted. Later ones do
 *              not start one directly that hung: for that, OnFailure=. One that did not stop in time stays down
 *   restarted  run before vmmd starts (ExecStartPre=): where systemd starts it again directly, nothing that belongs to the machine is stopped, and no OnFailure= run
 *
 * ExecStopPost= is only where it has to be: with that, a start that fails ends by way of a unit that is stopping, which stops its sockets, and these cancel the start
 * instead of failing it. */

#include <stdio.h>
#include <systemd/sd-bus.h>

#include "catalog-ids.h"
#include "log.h"
#include "unit-name.h"

#define MANAGER "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"

/* What systemd.exec(5) calls $SERVICE_RESULT and $MONITOR_SERVICE_RESULT, in words. */
static const char *describe_result(const char *result) {
        static const struct {
                const char *result, *text;
        } texts[] = {
                { "watchdog", "it hung, and its watchdog ended it" },
                { "timeout", "it did not do in time what the service manager waits for" },
                { "oom-kill", "the host ran out of memory" },
                { "core-dump", "it crashed" },
                { "signal", "it was killed" },
        };

        for (size_t i = 0; i < ELEMENTSOF(texts); i++)
                if (streq(result, texts[i].result))
                        return texts[i].text;
        return NULL;
}

static void tell(const char *machine, const char *why, const char *status, const char *what_follows) {
        _cleanup_free_ char *field = NULL;

        if (asprintf(&field, "VMM_MACHINE=%s", machine) >= 0)
                log_add_field(field);
        else
                field = NULL;
        log_id(LOG_CRIT, MESSAGE_SUPERVISOR_CRASHED, "The vmmd of machine '%s' is gone: %s (%s). Its guest's memory is lost; %s.", machine, why,
                status ?: "?", what_follows);
}

static int get_unit(sd_bus *bus, const char *unit, sd_bus_message **ret_answer, const char **ret_path) {
        int r;

        r = sd_bus_call_method(bus, MANAGER, "GetUnit", NULL, ret_answer, "s", unit);
        return r < 0 ? r : sd_bus_message_read(*ret_answer, "o", ret_path);
}

static int get_time(sd_bus *bus, const char *path, const char *interface, const char *name, uint64_t *ret) {
        return sd_bus_get_property_trivial(bus, "org.freedesktop.systemd1", path, interface, name, NULL, 't', ret);
}

/* Whether somebody wanted it to end: then its unit ceased to be active before its process ended, not after that. The unit's job would not tell: the sockets, which stop
 * with the machine however it ends, have it stopped, too; and with OnFailure= there is none any more. */
static int was_being_stopped(const char *machine, bool *ret) {
        static const char unit_interface[] = "org.freedesktop.systemd1.Unit", service_interface[] = "org.freedesktop.systemd1.Service";
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *answer = NULL;
        _cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *unit = machine_unit_name(machine, "service");
        uint64_t began, left, ended;
        const char *path;
        int r;

        r = unit ? sd_bus_open_system(&bus) : -ENOMEM;
        if (r >= 0)
                r = get_unit(bus, unit, &answer, &path);
        if (r >= 0)
                r = get_time(bus, path, unit_interface, "InactiveExitTimestampMonotonic", &began);
        if (r >= 0)
                r = get_time(bus, path, unit_interface, "ActiveExitTimestampMonotonic", &left);
        if (r >= 0)
                r = get_time(bus, path, service_interface, "ExecMainExitTimestampMonotonic", &ended);
        if (r >= 0)
                *ret = began < left && left < ended; /* else it left that state some earlier time */
        return r;
}

/* In the place of the jobs that stop its sockets, and by them itself. */
static void start_again(const char *machine) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *unit = machine_unit_name(machine, "service");
        int r;

        r = unit ? sd_bus_open_system(&bus) : -ENOMEM;
        if (r >= 0)
                r = sd_bus_call_method(bus, MANAGER, "StartUnit", &error, NULL, "ss", unit, "replace");
        if (r < 0)
                log_error("Machine '%s' cannot be started again: %s", machine, error.message ?: strerror(-r));
}

/* The service manager keeps no account of how the predecessor ended, but in the unit's log. Nothing is said where this is no restart. */
static int tell_restarted(const char *machine) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *answer = NULL;
        _cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *unit = machine_unit_name(machine, "service");
        uint32_t n_restarts = 0;
        const char *path;
        int r;

        r = unit ? sd_bus_open_system(&bus) : -ENOMEM;
        if (r >= 0)
                r = get_unit(bus, unit, &answer, &path);
        if (r >= 0)
                r = sd_bus_get_property_trivial(bus, "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service", "NRestarts", NULL, 'u', &n_restarts);
        if (r < 0)
                return log_error_errno(r, "Cannot ask the service manager how often vmmd was started: %m");
        if (n_restarts > 0)
                tell(machine, "it was killed, or hung", "the log of its unit has more", "it boots again");
        return 0;
}

/* One that was just being stopped stays down, or comes by the job that was to start it again: whoever asked for it is not to be overruled. One that hangs, or uses up the
 * host's memory, is stopped by the service manager itself. */
static void tell_and_act(const char *machine, const char *result, const char *why, const char *status, bool start) {
        bool stopped = false;
        int r = 0;

        if (streq(result, "signal") || streq(result, "core-dump"))
                r = was_being_stopped(machine, &stopped);
        if (r < 0)
                (void) log_warning_errno(r, "Cannot ask the service manager whether machine '%s' was being stopped: %m", machine);
        tell(machine, why, status, stopped ? "it was being stopped" : start ? "it boots again" : "the machine stays down");
        if (start && !stopped)
                start_again(machine);
}

int main(int argc, char *argv[]) {
        const char *result = getenv("MONITOR_SERVICE_RESULT"), *status = getenv("MONITOR_EXIT_STATUS"), *why;

        log_open("vmm-crash-report");
        if (argc != 3 || !(streq(argv[2], "stop") || streq(argv[2], "start") || streq(argv[2], "restarted"))) {
                log_error("Expected a machine's name, and stop, start or restarted.");
                return EXIT_FAILURE;
        }
        if (streq(argv[2], "restarted"))
                return tell_restarted(argv[1]) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        if (!result) {
                result = getenv("SERVICE_RESULT");
                status = getenv("EXIT_STATUS");
        }
        why = result ? describe_result(result) : NULL;
        if (why)
                tell_and_act(argv[1], result, why, status, streq(argv[2], "start") && !streq(result, "timeout"));
        return EXIT_SUCCESS;
}
