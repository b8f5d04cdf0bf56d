/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>
#include <stdio.h>

#include "bus.h"
#include "definition.h"

#define MANAGER "org.freedesktop.systemd1"
#define MANAGER_PATH "/org/freedesktop/systemd1"
#define MANAGER_INTERFACE "org.freedesktop.systemd1.Manager"
/* All generators run, and all units are read. */
#define RELOAD_TIMEOUT_USEC (180 * USEC_PER_SEC)

void strings_free(char ***strings) {
        for (char **s = *strings; s && *s; s++)
                free(*s);
        free(*strings);
        *strings = NULL;
}

static void error_free(sd_bus_error *e) {
        sd_bus_error_free(e);
}
#define _cleanup_error_ _cleanup_(error_free)

static void message_unrefp(sd_bus_message **m) {
        *m = sd_bus_message_unref(*m);
}
#define _cleanup_message_ _cleanup_(message_unrefp)

static int say(char **ret_problem, int r, const sd_bus_error *e) {
        return set_message(ret_problem, r, "%s", e->message ?: strerror(-r));
}

static int open_private(sd_bus **ret) {
        sd_bus *bus = NULL;
        int r;

        r = sd_bus_new(&bus);
        if (r >= 0)
                r = sd_bus_set_address(bus, "unix:path=/run/systemd/private");
        if (r >= 0)
                r = sd_bus_start(bus);
        if (r < 0) {
                sd_bus_unref(bus);
                return r;
        }
        *ret = bus;
        return 0;
}

int bus_open(const Options *o, sd_bus **ret) {
        sd_bus *bus = NULL;
        int r;

        r = sd_bus_open_system(&bus);
        if (r < 0 && geteuid() == 0 && open_private(&bus) >= 0)
                r = 0;
        if (r < 0)
                return r;
        (void) sd_bus_set_allow_interactive_authorization(bus, !o->no_ask_password && isatty(STDIN_FILENO) > 0);
        *ret = bus;
        return 0;
}

/* ---- properties ---- */

typedef struct Property {
        const char *name;
        char type; /* of D-Bus */
        size_t offset;
} Property;

static const Property properties[] = {
        { "LoadState", 's', offsetof(UnitState, load_state) },
        { "ActiveState", 's', offsetof(UnitState, active_state) },
        { "SubState", 's', offsetof(UnitState, sub_state) },
        { "Result", 's', offsetof(UnitState, result) },
        { "StatusText", 's', offsetof(UnitState, status_text) },
        { "ExecMainCode", 'i', offsetof(UnitState, exec_main_code) },
        { "ExecMainStatus", 'i', offsetof(UnitState, exec_main_status) },
        { "MainPID", 'u', offsetof(UnitState, main_pid) },
        { "NRestarts", 'u', offsetof(UnitState, n_restarts) },
        { "ActiveEnterTimestamp", 't', offsetof(UnitState, active_enter) },
        { "ActiveExitTimestamp", 't', offsetof(UnitState, active_exit) },
        { "InactiveEnterTimestamp", 't', offsetof(UnitState, inactive_enter) },
        { "MemoryCurrent", 't', offsetof(UnitState, memory_current) },
};

void unit_state_done(UnitState *s) {
        free(s->load_state);
        free(s->active_state);
        free(s->sub_state);
        free(s->result);
        free(s->status_text);
        *s = (UnitState) {};
}

/* The message stands before the value of one property: takes it where we know it, skips it else. */
static int read_property(sd_bus_message *m, const char *name, UnitState *s) {
        for (size_t i = 0; i < ELEMENTSOF(properties); i++) {
                char type[2] = { properties[i].type, 0 };
                void *field = (uint8_t *) s + properties[i].offset;
                const char *text;
                int r;

                if (!streq(properties[i].name, name))
                        continue;
                r = sd_bus_message_enter_container(m, 'v', type);
                if (r == -ENXIO)
                        break;
                if (r < 0)
                        return r;
                if (properties[i].type == 's') {
                        r = sd_bus_message_read_basic(m, 's', &text);
                        if (r < 0)
                                return r;
                        free(*(char **) field);
                        *(char **) field = strdup(text);
                        if (!*(char **) field)
                                return -ENOMEM;
                } else {
                        r = sd_bus_message_read_basic(m, properties[i].type, field);
                        if (r < 0)
                                return r;
                }
                return sd_bus_message_exit_container(m);
        }
        return sd_bus_message_skip(m, "v");
}

static int read_properties(sd_bus_message *m, UnitState *s) {
        const char *name;
        int r;

        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0) {
                r = sd_bus_message_enter_container(m, 'e', "sv");
                if (r <= 0)
                        break;
                r = sd_bus_message_read_basic(m, 's', &name);
                if (r >= 0)
                        r = read_property(m, name, s);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        return r;
}

static int set_default(char **field, const char *value) {
        if (!*field)
                *field = strdup(value);
        return *field ? 0 : -ENOMEM;
}

int unit_state_get(sd_bus *bus, const char *unit, UnitState *ret) {
        _cleanup_(unit_state_done) UnitState s = { .memory_current = UINT64_MAX };
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_message_ sd_bus_message *m = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = sd_bus_path_encode(MANAGER_PATH "/unit", unit, &path);
        if (r < 0)
                return r;
        /* Of all of its interfaces at once */
        r = sd_bus_call_method(bus, MANAGER, path, "org.freedesktop.DBus.Properties", "GetAll", &error, &m, "s", "");
        if (r >= 0)
                r = read_properties(m, &s);
        if (r >= 0)
                r = set_default(&s.load_state, "not-found");
        if (r >= 0)
                r = set_default(&s.active_state, "inactive");
        if (r >= 0)
                r = set_default(&s.sub_state, "dead");
        if (r >= 0)
                r = set_default(&s.result, "success");
        if (r >= 0)
                r = set_default(&s.status_text, "");
        if (r < 0)
                return r;
        *ret = s;
        s = (UnitState) {};
        return 0;
}

/* vmmd(8), "Exit status" */
static const char *exit_status_meaning(int status) {
        static const struct {
                int status;
                const char *meaning;
        } meanings[] = {
                { 32, "the guest asked for a reboot, and its definition says to stop then" },
                { 33, "the machine crashed" },
                { 34, "the guest's kernel panicked" },
                { 35, "the definition, the kernel or the initrd is wrong" },
                { 36, "a device failed, and the definition says to stop then" },
                { 37, "the plugin that is its hardware failed" },
        };

        for (size_t i = 0; i < ELEMENTSOF(meanings); i++)
                if (meanings[i].status == status)
                        return meanings[i].meaning;
        return NULL;
}

static char *print(const char *format, ...) _printf_(1, 2);
static char *print(const char *format, ...) {
        char *text;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        return r < 0 ? NULL : text;
}

char *unit_state_problem(const UnitState *s) {
        const char *meaning;

        if (streq(s->load_state, "masked"))
                return print("its unit is masked");
        /* The unit takes this one for a success, but it is not what a stopped machine looks like. */
        if (streq(s->result, "success") && s->exec_main_code == CLD_EXITED && s->exec_main_status == 32)
                return strdup(exit_status_meaning(32));
        if (streq(s->result, "success"))
                return NULL;
        if (streq(s->result, "exit-code") && s->exec_main_code == CLD_EXITED && s->exec_main_status != 0) {
                meaning = exit_status_meaning(s->exec_main_status);
                return meaning ? print("%s (exit status %i)", meaning, s->exec_main_status) :
                                 print("exit status %i", s->exec_main_status);
        }
        if (streq(s->result, "exit-code"))
                return print("a program of its unit failed before it could start");
        if (streq(s->result, "signal") || streq(s->result, "core-dump"))
                return print("killed by signal %i (%s)", s->exec_main_status, sigabbrev_np(s->exec_main_status) ?: "?");
        if (streq(s->result, "timeout"))
                return print("it did not start or stop in time");
        if (streq(s->result, "start-limit-hit"))
                return print("it was started too often within a short time");
        if (streq(s->result, "oom-kill"))
                return print("killed: out of memory");
        return print("%s", s->result);
}

/* ---- lists ---- */

int units_list(sd_bus *bus, const char *pattern, const char *active_state, char ***ret) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_message_ sd_bus_message *m = NULL;
        _cleanup_strings_ char **names = calloc(1, sizeof(*names));
        const char *name;
        size_t n = 0;
        int r;

        if (!names)
                return -ENOMEM;
        r = active_state ? sd_bus_call_method(bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "ListUnitsByPatterns", &error,
                                   &m, "asas", 1, active_state, 1, pattern) :
                           sd_bus_call_method(bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "ListUnitsByPatterns", &error,
                                   &m, "asas", 0, 1, pattern);
        if (r < 0)
                return r;
        r = sd_bus_message_enter_container(m, 'a', "(ssssssouso)");
        while (r >= 0) {
                r = sd_bus_message_read(m, "(ssssssouso)", &name, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
                if (r <= 0)
                        break;
                r = string_array_add(&names, &n, strdup(name));
        }
        if (r < 0)
                return r;
        *ret = TAKE_PTR(names);
        return 0;
}

/* ---- actions ---- */

int manager_reload(sd_bus *bus, char **ret_problem) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_message_ sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(bus, &m, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "Reload");
        if (r >= 0)
                r = sd_bus_call(bus, m, RELOAD_TIMEOUT_USEC, &error, NULL);
        return r < 0 ? say(ret_problem, r, &error) : 0;
}

int unit_kill(sd_bus *bus, const char *unit, int signal, char **ret_problem) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = sd_bus_call_method(bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "KillUnit", &error, NULL, "ssi", unit, "main",
                (int32_t) signal);
        return r < 0 ? say(ret_problem, r, &error) : 0;
}

/* ---- jobs ---- */

static int on_job_removed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Jobs *jobs = userdata;
        const char *path, *result;

        if (sd_bus_message_read(m, "uoss", NULL, &path, NULL, &result) < 0)
                return 0;
        for (size_t i = 0; i < jobs->n; i++) {
                Job *job = &jobs->jobs[i];
                if (job->path && !job->result && streq(job->path, path))
                        job->result = strdup(result);
        }
        return 0;
}

static int queue_job(sd_bus *bus, const char *method, Job *job) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_message_ sd_bus_message *m = NULL;
        const char *path;
        int r;

        r = sd_bus_call_method(bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, method, &error, &m, "ss", job->unit, "replace");
        if (r >= 0)
                r = sd_bus_message_read(m, "o", &path);
        if (r < 0) {
                (void) say(&job->problem, r, &error);
                return job->problem ? 0 : -ENOMEM;
        }
        job->path = strdup(path);
        return job->path ? 0 : -ENOMEM;
}

int jobs_begin(sd_bus *bus, const char *method, char *const *units, size_t n, Jobs *ret) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        *ret = (Jobs) { .bus = bus };
        ret->jobs = calloc(n, sizeof(Job));
        if (!ret->jobs)
                return -ENOMEM;
        ret->n = n;
        /* Before the first job: none of their ends may be missed. */
        r = sd_bus_match_signal(bus, &ret->slot, NULL, MANAGER_PATH, MANAGER_INTERFACE, "JobRemoved", on_job_removed, ret);
        if (r >= 0)
                r = sd_bus_call_method(bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "Subscribe", &error, NULL, NULL);
        for (size_t i = 0; r >= 0 && i < n; i++) {
                ret->jobs[i].unit = strdup(units[i]);
                r = ret->jobs[i].unit ? queue_job(bus, method, &ret->jobs[i]) : -ENOMEM;
        }
        return r < 0 ? r : 0;
}

static int add_job(Jobs *jobs, const char *unit, const char *path) {
        Job *grown = reallocarray(jobs->jobs, jobs->n + 1, sizeof(Job));

        if (!grown)
                return -ENOMEM;
        jobs->jobs = grown;
        grown[jobs->n] = (Job) { .unit = strdup(unit), .path = strdup(path) };
        jobs->n++;
        return grown[jobs->n - 1].unit && grown[jobs->n - 1].path ? 0 : -ENOMEM;
}

int jobs_add_stops(Jobs *jobs, const char *pattern) {
        _cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_message_ sd_bus_message *m = NULL;
        const char *unit, *type, *path;
        int r;

        r = sd_bus_call_method(jobs->bus, MANAGER, MANAGER_PATH, MANAGER_INTERFACE, "ListUnitsByPatterns", &error, &m, "asas", 0, 1, pattern);
        if (r >= 0)
                r = sd_bus_message_enter_container(m, 'a', "(ssssssouso)");
        while (r >= 0) {
                r = sd_bus_message_read(m, "(ssssssouso)", &unit, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &type, &path);
                if (r <= 0)
                        break;
                if (streq(type, "stop"))
                        r = add_job(jobs, unit, path);
        }
        return r;
}

static bool jobs_pending(const Jobs *jobs) {
        for (size_t i = 0; i < jobs->n; i++)
                if (jobs->jobs[i].path && !jobs->jobs[i].result)
                        return true;
        return false;
}

int jobs_wait(Jobs *jobs, uint64_t until) {
        int r;

        while (jobs_pending(jobs)) {
                uint64_t now = now_usec();

                r = sd_bus_process(jobs->bus, NULL);
                if (r < 0)
                        return r;
                if (r > 0)
                        continue;
                if (now >= until)
                        return -ETIMEDOUT;
                r = sd_bus_wait(jobs->bus, until == UINT64_MAX ? UINT64_MAX : until - now);
                if (r < 0 && r != -EINTR)
                        return r;
        }
        return 0;
}

void jobs_done(Jobs *jobs) {
        for (size_t i = 0; i < jobs->n; i++) {
                free(jobs->jobs[i].unit);
                free(jobs->jobs[i].path);
                free(jobs->jobs[i].result);
                free(jobs->jobs[i].problem);
        }
        free(jobs->jobs);
        sd_bus_slot_unref(jobs->slot);
        sd_bus_flush_close_unref(jobs->bus);
        *jobs = (Jobs) {};
}
