/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A definition as somebody might write it. What is taken must be taken again, with the same meaning, in the form the generator hands on to vmmd; what is
 * refused must say so in words. The input is split at a NUL byte: what follows it is merged as a drop-in would be. */

#include "definition-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool condition) {
        if (!condition)
                abort();
}

static void check_taken(const MachineDefinition *d) {
        _cleanup_(machine_definition_freep) MachineDefinition *again = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        const char *text = json_object_to_json_string_ext(d->json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        _cleanup_free_ char *line = NULL, *line_again = NULL;

        must(definition_parse(text, strlen(text), "again", d->name, &again, &error) == 0);
        must(again->memory == d->memory && again->vcpus == d->vcpus && again->n_devices == d->n_devices);
        must(machine_definition_command_line(d, &line) == 0 && machine_definition_command_line(again, &line_again) == 0);
        must(streq(line, line_again));

        for (size_t i = 0; i < d->n_devices; i++) {
                _cleanup_(string_array_freep) char **a = NULL, **b = NULL;

                must(device_definition_queues(&d->devices[i]) <= d->devices[i].type->queues_max);
                must(device_definition_arguments(&d->devices[i], &a) == 0);
                must(device_definition_arguments(&again->devices[i], &b) == 0);
                for (size_t j = 0; a[j] || b[j]; j++)
                        must(streq_ptr(a[j], b[j]));
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_sources_done) DefinitionSources sources = {};
        _cleanup_(definition_error_done) DefinitionError error = {};
        const uint8_t *split = memchr(data, 0, size);
        size_t first = split ? (size_t) (split - data) : size;
        int r;

        r = definition_sources_add(&sources, (const char *) data, first, "first", &error);
        if (r >= 0 && split)
                r = definition_sources_add(&sources, (const char *) split + 1, size - first - 1, "second", &error);
        if (r >= 0)
                r = definition_from_sources(&sources, "fuzz", &d, &error);
        if (r >= 0) {
                check_taken(d);
                return 0;
        }

        _cleanup_free_ char *text = definition_error_to_string(&error);
        must(r == -EBADMSG && text && error.file && error.pointer && error.found && error.expected);
        return 0;
}
