/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* start and stop: jobs of systemd for vmm@NAME.service, and why they failed. */

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "bus.h"
#include "definition.h"
#include "machine.h"
#include "output.h"
#include "unit-name.h"

static const char *const definition_directories[] = { "/etc/vmm", "/run/vmm/machines", "/usr/lib/vmm/machines" };

/* One command over several machines. `names` and `units` have the same order. */
typedef struct Work {
        const Options *options;
        char **names, **units;
        size_t n;
        Outcomes outcomes;
        Jobs jobs;
} Work;

static void work_done(Work *w) {
        jobs_done(&w->jobs);
        for (size_t i = 0; i < w->n; i++)
                free(w->units[i]);
        free(w->units);
        free(w->names);
        json_putp(&w->outcomes.array);
}

/* `names` may be fewer than were asked for: those that are refused beforehand are never part of it. */
static int work_begin(Work *w, const Options *o, size_t room) {
        *w = (Work) { .options = o };
        w->names = calloc(room, sizeof(char *));
        w->units = calloc(room, sizeof(char *));
        if (!w->names || !w->units)
                return -ENOMEM;
        return outcomes_begin(&w->outcomes, o);
}

static int work_add(Work *w, char *name) {
        /* The same machine twice would be one job, of which one end is told. */
        for (size_t i = 0; i < w->n; i++)
                if (streq(w->names[i], name))
                        return 0;
        w->units[w->n] = machine_unit_name(name, "service");
        if (!w->units[w->n])
                return -ENOMEM;
        w->names[w->n++] = name;
        return 0;
}

/* ---- is a definition newer than the units? ---- */

static bool timespec_newer(const struct timespec *a, const struct timespec *b) {
        return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec >= b->tv_nsec;
}

/* Whether `path` changed at or after `when`, itself or what it links to. What is not there did not change. */
static bool changed_since(const char *path, const struct timespec *when) {
        struct stat st;

        if (lstat(path, &st) < 0)
                return false;
        if (timespec_newer(&st.st_mtim, when) || timespec_newer(&st.st_ctim, when))
                return true;
        return S_ISLNK(st.st_mode) && stat(path, &st) >= 0 && timespec_newer(&st.st_mtim, when);
}

/* A file that was removed is seen by its directory. */
static bool directories_changed_since(const char *name, const struct timespec *when) {
        for (size_t i = 0; i < ELEMENTSOF(definition_directories); i++) {
                _cleanup_free_ char *path = NULL;

                if (asprintf(&path, "%s/%s.json.d", definition_directories[i], name) < 0) {
                        path = NULL;
                        return true;
                }
                if (changed_since(path, when) || changed_since(definition_directories[i], when))
                        return true;
        }
        return false;
}

static bool needs_reload(const char *unit, const char *name) {
        _cleanup_free_ char *drop_in = NULL;
        _cleanup_strings_ char **files = NULL;
        struct stat st;

        if (asprintf(&drop_in, "/run/systemd/generator/%s.d/50-vmm.conf", unit) < 0) {
                drop_in = NULL;
                return true;
        }
        if (stat(drop_in, &st) < 0 || definition_files(NULL, name, &files) < 0)
                return true;
        for (char **file = files; *file; file++)
                if (changed_since(*file, &st.st_mtim))
                        return true;
        return directories_changed_since(name, &st.st_mtim);
}

/* ---- start ---- */

/* Whether it can be started at all. What is wrong with a definition is better said here than looked for in the journal. */
static int check_definition(Work *w, char *name) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError e = {};
        _cleanup_free_ char *text = NULL;
        int r;

        if (!machine_name_is_valid(name)) {
                outcomes_add(&w->outcomes, name, STATUS_UNKNOWN_MACHINE, "this is no name of a machine");
                return 0;
        }
        r = definition_load(NULL, name, &d, &e);
        if (r == -ENOENT) {
                outcomes_add(&w->outcomes, name, STATUS_UNKNOWN_MACHINE,
                        "there is no definition of it in /etc/vmm, /run/vmm/machines or /usr/lib/vmm/machines, or the first is empty");
                return 0;
        }
        if (r == -EBADMSG) {
                text = definition_error_to_string(&e);
                outcomes_add(&w->outcomes, name, STATUS_FAILED, text ?: "its definition is wrong");
                return 0;
        }
        /* Who may not read it may perhaps start it nevertheless. */
        if (r < 0 && r != -EACCES && r != -EPERM) {
                outcomes_add(&w->outcomes, name, STATUS_FAILED, strerror(-r));
                return 0;
        }
        r = work_add(w, name);
        return r < 0 ? r : 1;
}

static int reload_if_needed(Work *w) {
        _cleanup_free_ char *problem = NULL;
        bool reload = false;
        int r;

        for (size_t i = 0; i < w->n; i++)
                reload = reload || needs_reload(w->units[i], w->names[i]);
        if (!reload)
                return 0;
        r = manager_reload(w->jobs.bus, &problem);
        if (r < 0)
                complain("Cannot reload the units: %s", problem ?: strerror(-r));
        return r;
}

/* Adds "  UNIT: why" to *text where that unit did not end well. */
static int add_unit_problem(sd_bus *bus, const char *unit, char **text) {
        _cleanup_(unit_state_done) UnitState s = {};
        _cleanup_free_ char *problem = NULL;
        const char *said;
        char *longer;

        if (!unit)
                return -ENOMEM;
        if (unit_state_get(bus, unit, &s) < 0)
                return 0;
        problem = unit_state_problem(&s);
        if (!problem)
                return 0;
        said = s.status_text && *s.status_text ? s.status_text : NULL;
        if (asprintf(&longer, "%s\n  %s: %s%s%s%s", *text ?: "", unit, said ?: problem, said ? " (" : "", said ? problem : "",
                    said ? ")" : "") < 0)
                return -ENOMEM;
        free(*text);
        *text = longer;
        return 0;
}

/* What went wrong with a machine's devices, a line each; NULL where nothing is known. */
static char *device_problems(sd_bus *bus, const char *name) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError e = {};
        _cleanup_free_ char *text = NULL;
        int r;

        r = definition_load(NULL, name, &d, &e);
        for (size_t i = 0; r >= 0 && i < d->n_devices; i++) {
                _cleanup_free_ char *service = device_unit_name(name, d->devices[i].name, "service"),
                                    *socket = device_unit_name(name, d->devices[i].name, "socket");

                r = add_unit_problem(bus, service, &text);
                if (r >= 0)
                        r = add_unit_problem(bus, socket, &text);
        }
        return TAKE_PTR(text);
}

/* What the units of a machine's devices are called. */
static char *devices_pattern(const char *name) {
        _cleanup_free_ char *escaped = unit_name_escape(name);
        char *pattern;

        if (!escaped)
                return NULL;
        /* A backslash would stand for what follows it. */
        for (char *c = escaped; *c; c++)
                if (*c == '\\')
                        *c = '?';
        return asprintf(&pattern, "vmm-device@%s-*", escaped) < 0 ? NULL : pattern;
}

/* Puts together why a unit is not running: the job's result, the unit's, what the service said last, and where to read on. */
static char *explain(sd_bus *bus, const char *name, const Job *job) {
        _cleanup_(unit_state_done) UnitState s = {};
        _cleanup_free_ char *problem = NULL, *devices = NULL, *pattern = devices_pattern(name);
        const char *why;
        char *text;
        int r;

        if (!pattern)
                return NULL;
        if (unit_state_get(bus, job->unit, &s) >= 0)
                problem = unit_state_problem(&s);
        devices = device_problems(bus, name);
        why = streq_ptr(job->result, "dependency") ? "something it needs failed" : "its unit failed";
        r = asprintf(&text, "%s%s%s%s\n  See journalctl -b -e -u '%s' -u '%s'", problem ?: why,
                s.status_text && *s.status_text ? ": " : "", s.status_text ?: "", devices ?: "", job->unit, pattern);
        return r < 0 ? NULL : text;
}

static int report_start(Work *w) {
        for (size_t i = 0; i < w->n; i++) {
                const Job *job = &w->jobs.jobs[i];
                _cleanup_free_ char *text = NULL;

                if (job->path && streq_ptr(job->result, "done")) {
                        outcomes_add(&w->outcomes, w->names[i], STATUS_OK, NULL);
                        continue;
                }
                if (job->path)
                        text = explain(w->jobs.bus, w->names[i], job);
                outcomes_add(&w->outcomes, w->names[i], STATUS_FAILED, text ?: job->problem ?: "it failed");
        }
        return 0;
}

/* Replaces w->jobs.bus by the jobs that go on with it. */
static int queue_jobs(Work *w, const char *method) {
        return jobs_begin(w->jobs.bus, method, w->units, w->n, &w->jobs);
}

static int start_machines(Work *w) {
        int r;

        if (w->n == 0)
                return 0;
        r = bus_open(w->options, &w->jobs.bus);
        if (r < 0) {
                complain("Cannot reach systemd: %s", strerror(-r));
                return r;
        }
        r = reload_if_needed(w);
        if (r < 0)
                return r;
        r = queue_jobs(w, "StartUnit");
        if (r >= 0)
                r = jobs_wait(&w->jobs, UINT64_MAX);
        if (r < 0) {
                complain("Cannot start: %s", strerror(-r));
                return r;
        }
        return report_start(w);
}

int command_start(const Options *o, char **arguments, size_t n) {
        _cleanup_(work_done) Work w = {};
        int r;

        r = work_begin(&w, o, n);
        for (size_t i = 0; r >= 0 && i < n; i++)
                r = check_definition(&w, arguments[i]);
        if (r >= 0)
                r = start_machines(&w);
        if (r < 0)
                w.outcomes.status = STATUS_FAILED;
        return outcomes_end(&w.outcomes);
}

/* ---- stop ---- */

/* Ends whatever still runs, as if its power were cut. systemd's job then sees the unit end. */
static void cut_power(Work *w) {
        for (size_t i = 0; i < w->n; i++) {
                _cleanup_free_ char *problem = NULL;
                int r;

                if (!w->jobs.jobs[i].path || w->jobs.jobs[i].result)
                        continue;
                r = machine_call_by_name(w->options, w->names[i], "Terminate", NULL, NULL, NULL);
                /* It may be gone before it has answered. Where it does not answer or refuses us, systemd may still do it. */
                if (r >= 0 || r == -ECONNRESET || r == -EPIPE || r == -ENOENT || r == -ECONNREFUSED)
                        continue;
                r = unit_kill(w->jobs.bus, w->units[i], SIGKILL, &problem);
                if (r < 0)
                        complain("%s: cannot be ended by force: %s", w->names[i], problem ?: strerror(-r));
        }
}

/* Stopping what does not exist would succeed silently: the template makes a unit of every name. */
static int check_known(Work *w, char *name) {
        _cleanup_(unit_state_done) UnitState s = {};
        _cleanup_free_ char *unit = NULL;
        _cleanup_strings_ char **files = NULL;
        int r;

        if (!machine_name_is_valid(name)) {
                outcomes_add(&w->outcomes, name, STATUS_UNKNOWN_MACHINE, "this is no name of a machine");
                return 0;
        }
        unit = machine_unit_name(name, "service");
        if (!unit)
                return -ENOMEM;
        r = unit_state_get(w->jobs.bus, unit, &s);
        if (r < 0) {
                outcomes_add(&w->outcomes, name, STATUS_FAILED, strerror(-r));
                return 0;
        }
        if (streq(s.active_state, "inactive") && definition_files(NULL, name, &files) == -ENOENT) {
                outcomes_add(&w->outcomes, name, STATUS_UNKNOWN_MACHINE, "there is no such machine");
                return 0;
        }
        return work_add(w, name);
}

/* Devices end after their machine; until then they may hold what whoever stops it wants, an image above all. */
static int wait_for_devices(Work *w) {
        int r = 0;

        for (size_t i = 0; i < w->n && r >= 0; i++) {
                _cleanup_free_ char *pattern = devices_pattern(w->names[i]);

                r = pattern ? jobs_add_stops(&w->jobs, pattern) : -ENOMEM;
        }
        return r < 0 ? r : jobs_wait(&w->jobs, UINT64_MAX);
}

static int stop_machines(Work *w) {
        const Options *o = w->options;
        uint64_t until = o->timeout_usec == UINT64_MAX ? UINT64_MAX : now_usec() + o->timeout_usec;
        int r;

        if (w->n == 0)
                return 0;
        r = queue_jobs(w, "StopUnit");
        if (r >= 0) {
                r = jobs_wait(&w->jobs, option_given(o, OPTION_FORCE) ? 0 : until);
                if (r == -ETIMEDOUT) {
                        cut_power(w);
                        r = jobs_wait(&w->jobs, UINT64_MAX);
                }
        }
        if (r >= 0)
                r = wait_for_devices(w);
        if (r < 0) {
                complain("Cannot stop: %s", strerror(-r));
                return r;
        }
        for (size_t i = 0; i < w->n; i++) {
                const Job *job = &w->jobs.jobs[i];
                bool done = job->path && streq_ptr(job->result, "done");

                outcomes_add(&w->outcomes, w->names[i], done ? STATUS_OK : STATUS_FAILED,
                        done ? NULL : job->problem ?: job->result ?: "it failed");
        }
        return 0;
}

int command_stop(const Options *o, char **arguments, size_t n) {
        _cleanup_(work_done) Work w = {};
        int r;

        r = work_begin(&w, o, n);
        if (r >= 0) {
                r = bus_open(o, &w.jobs.bus);
                if (r < 0)
                        complain("Cannot reach systemd: %s", strerror(-r));
        }
        for (size_t i = 0; r >= 0 && i < n; i++)
                r = check_known(&w, arguments[i]);
        if (r >= 0)
                r = stop_machines(&w);
        if (r < 0)
                w.outcomes.status = STATUS_FAILED;
        return outcomes_end(&w.outcomes);
}
