/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* metrics: the numbers of running machines, as io.systemd.Metrics has them. */

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>

#include "definition.h"
#include "machine.h"
#include "output.h"
#include "view.h"

typedef struct Metrics {
        const Options *options;
        const char *machine;       /* that is being asked */
        json_object *samples;      /* array: what List() said, with the field "machine" */
        json_object *descriptions; /* object: by name, what Describe() said */
} Metrics;

static void metrics_done(Metrics *m) {
        json_putp(&m->samples);
        json_putp(&m->descriptions);
}

static int add_sample(json_object *reply, void *userdata) {
        _cleanup_json_ json_object *copy = NULL;
        Metrics *m = userdata;
        int r;

        if (json_object_deep_copy(reply, &copy, NULL) < 0)
                return -ENOMEM;
        r = json_add_string(copy, "machine", m->machine);
        return r < 0 ? r : json_append(m->samples, TAKE_PTR(copy));
}

static int add_description(json_object *reply, void *userdata) {
        const char *name = json_get_string(reply, "name", NULL);
        Metrics *m = userdata;

        return name ? json_add(m->descriptions, name, json_object_get(reply)) : -EPROTO;
}

static int ask(Metrics *m, const char *method, MachineReply callback, char **ret_problem) {
        VarlinkClient *client;
        int r;

        r = machine_connect(m->options, m->machine, &client, ret_problem);
        return r < 0 ? r : machine_stream(m->options, client, method, NULL, STREAM_MORE, callback, m, ret_problem);
}

static int collect(Metrics *m, char *const *names, size_t n, bool all) {
        int status = STATUS_OK;

        for (size_t i = 0; names && i < n; i++) {
                _cleanup_free_ char *problem = NULL;
                int r;

                m->machine = names[i];
                r = ask(m, "io.systemd.Metrics.List", add_sample, &problem);
                if (r >= 0 && option_given(m->options, OPTION_PROMETHEUS) && json_object_object_length(m->descriptions) == 0)
                        r = ask(m, "io.systemd.Metrics.Describe", add_description, &problem);
                /* A machine that ended while we looked is no news where nobody asked for it. */
                if (all && (r == -ENOENT || r == -ECONNREFUSED || r == -ESRCH))
                        continue;
                r = machine_conclude(names[i], r, problem);
                status = status == STATUS_OK ? r : status;
        }
        return status;
}

/* ---- for people ---- */

/* "counter=readBytes", or "-". */
static char *fields_text(json_object *sample) {
        json_object *fields = json_get(sample, "fields", json_type_object);
        char *text = NULL;

        if (fields) {
                json_object_object_foreach(fields, key, value) {
                        char *longer;

                        if (asprintf(&longer, "%s%s%s=%s", text ?: "", text ? "," : "", key, json_object_get_string(value) ?: "null") < 0)
                                break;
                        free(text);
                        text = longer;
                }
        }
        return text;
}

static void add_sample_row(Table *t, json_object *sample, bool with_machine) {
        _cleanup_free_ char *fields = fields_text(sample);
        json_object *value = json_object_object_get(sample, "value");

        if (with_machine)
                table_add(t, COLOR_NONE, "%s", json_get_string(sample, "machine", "?"));
        table_add(t, COLOR_NONE, "%s", json_get_string(sample, "name", "?"));
        table_add(t, COLOR_NONE, "%s", json_get_string(sample, "object", "-"));
        table_add(t, COLOR_NONE, "%s", fields ?: "-");
        table_add(t, COLOR_NONE, "%s", json_object_get_string(value) ?: "-");
}

static int print_for_people(const Metrics *m, bool with_machine) {
        static const char *const headings[] = { "MACHINE", "NAME", "OBJECT", "FIELDS", "VALUE" };
        _cleanup_(table_done) Table t = { .n_columns = ELEMENTSOF(headings) - !with_machine };

        for (size_t i = !with_machine; !m->options->quiet && i < ELEMENTSOF(headings); i++)
                table_add(&t, COLOR_BOLD, "%s", headings[i]);
        for (size_t i = 0; i < json_object_array_length(m->samples); i++)
                add_sample_row(&t, json_object_array_get_idx(m->samples, i), with_machine);
        return table_print(&t, "");
}

/* ---- for Prometheus ---- */

/* "vmmd_machine_vcpu_exits" of "io.vmmd.Machine.VcpuExits": what a name of Prometheus may consist of. */
static void print_name(const char *name) {
        const char *c = startswith(name, "io.");
        bool after_lower = false;

        for (c = c ?: name; *c; c++) {
                if (isupper((unsigned char) *c) && after_lower)
                        (void) putchar('_');
                after_lower = islower((unsigned char) *c) || isdigit((unsigned char) *c);
                (void) putchar(isalnum((unsigned char) *c) ? tolower((unsigned char) *c) : '_');
        }
}

/* With the suffix that is customary for what it is. */
static void print_family(const char *name, const char *type) {
        print_name(name);
        if (streq(type, "counter"))
                (void) fputs("_total", stdout);
        else if (streq(type, "string"))
                (void) fputs("_info", stdout);
}

/* Within quotes of a label, or of a HELP line, where only `quoted` makes a difference. */
static void print_escaped(const char *text, bool quoted) {
        for (; *text; text++)
                if (*text == '\n')
                        (void) fputs("\\n", stdout);
                else if (*text == '\\' || (quoted && *text == '"'))
                        (void) printf("\\%c", *text);
                else
                        (void) putchar(*text);
}

static void print_label(const char *separator, const char *name, const char *value) {
        (void) fputs(separator, stdout);
        print_name(name);
        (void) fputs("=\"", stdout);
        print_escaped(value, true);
        (void) putchar('"');
}

static void print_sample(json_object *sample, const char *type) {
        json_object *fields = json_get(sample, "fields", json_type_object), *value = json_object_object_get(sample, "value");
        const char *object = json_get_string(sample, "object", NULL);
        bool is_number = json_object_is_type(value, json_type_int) || json_object_is_type(value, json_type_double);

        print_family(json_get_string(sample, "name", "?"), type);
        print_label("{", "machine", json_get_string(sample, "machine", "?"));
        if (object)
                print_label(",", "object", object);
        if (fields) {
                json_object_object_foreach(fields, key, field) {
                        print_label(",", key, json_object_get_string(field) ?: "");
                }
        }
        if (!is_number && !json_object_is_type(value, json_type_boolean))
                print_label(",", "value", json_object_get_string(value) ?: "");
        /* A text is a label of something that is 1, as such exporters do it. */
        (void) printf("} %s\n", is_number ? json_object_get_string(value) :
                        json_object_is_type(value, json_type_boolean) && !json_object_get_boolean(value) ? "0" : "1");
}

static const char *family_type(const Metrics *m, json_object *sample) {
        json_object *description = json_get(m->descriptions, json_get_string(sample, "name", "?"), json_type_object);

        if (json_get(sample, "value", json_type_string))
                return "string";
        return json_get_string(description, "type", "gauge");
}

/* All samples of a name have to stand together, whichever machine they are of. */
static void print_for_prometheus(const Metrics *m) {
        size_t n = json_object_array_length(m->samples);

        for (size_t i = 0; i < n; i++) {
                json_object *first = json_object_array_get_idx(m->samples, i);
                const char *name = json_get_string(first, "name", "?"), *type = family_type(m, first), *help;
                bool done = false;

                for (size_t j = 0; j < i && !done; j++)
                        done = streq(json_get_string(json_object_array_get_idx(m->samples, j), "name", "?"), name);
                if (done)
                        continue;
                help = json_get_string(json_get(m->descriptions, name, json_type_object), "description", NULL);
                if (help) {
                        (void) fputs("# HELP ", stdout);
                        print_family(name, type);
                        (void) putchar(' ');
                        print_escaped(help, false);
                        (void) putchar('\n');
                }
                (void) fputs("# TYPE ", stdout);
                print_family(name, type);
                (void) printf(" %s\n", streq(type, "counter") ? "counter" : "gauge");
                for (size_t j = i; j < n; j++) {
                        json_object *sample = json_object_array_get_idx(m->samples, j);

                        if (streq(json_get_string(sample, "name", "?"), name))
                                print_sample(sample, type);
                }
        }
}

/* ---- the command ---- */

static int is_machine(const struct dirent *entry) {
        return machine_name_is_valid(entry->d_name);
}

/* Who has a control socket: without systemd's help, so that machines started by hand are found, too. Returns how many. */
static int running_machines(const Options *o, char ***ret) {
        _cleanup_strings_ char **names = NULL;
        struct dirent **entries = NULL;
        int n, used = 0;

        n = scandir(o->runtime_directory, &entries, is_machine, alphasort);
        if (n < 0 && errno != ENOENT)
                return -errno;
        names = calloc((size_t) MAX(n, 0) + 1, sizeof(char *));
        for (int i = 0; i < n; i++) {
                _cleanup_free_ char *socket = NULL;

                if (asprintf(&socket, "%s/%s/control", o->runtime_directory, entries[i]->d_name) < 0)
                        socket = NULL;
                else if (names && access(socket, F_OK) >= 0 && (names[used] = strdup(entries[i]->d_name)))
                        used++;
                free(entries[i]);
        }
        free(entries);
        if (!names)
                return -ENOMEM;
        *ret = TAKE_PTR(names);
        return used;
}

int command_metrics(const Options *o, char **arguments, size_t n) {
        _cleanup_(metrics_done) Metrics m = { .options = o, .samples = json_object_new_array(),
                .descriptions = json_object_new_object() };
        _cleanup_strings_ char **all = NULL;
        int r = 0, status;

        if (!m.samples || !m.descriptions)
                r = -ENOMEM;
        if (r >= 0 && n == 0)
                r = running_machines(o, &all);
        else if (r >= 0)
                r = (int) n;
        if (r < 0) {
                complain("Cannot list the machines: %s", strerror(-r));
                return STATUS_FAILED;
        }
        status = collect(&m, n == 0 ? all : arguments, (size_t) r, n == 0);
        if (option_given(o, OPTION_PROMETHEUS))
                print_for_prometheus(&m);
        else if (o->json != JSON_OFF)
                r = print_json(o, m.samples);
        else if (json_object_array_length(m.samples) > 0)
                r = print_for_people(&m, n != 1);
        return r < 0 ? STATUS_FAILED : status;
}
