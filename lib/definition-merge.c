/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "definition-internal.h"

void definition_sources_done(DefinitionSources *sources) {
        for (size_t i = 0; i < sources->n; i++)
                json_source_done(&sources->sources[i]);
        free(sources->sources);
        *sources = (DefinitionSources) {};
}

static int syntax_error(const char *file, JsonSourceError *wrong, DefinitionError *ret) {
        DefinitionError error = {
                .file = strdup(file), .line = wrong->line, .pointer = strdup(""), .found = wrong->found,
                .expected = strdup(wrong->expected),
        };

        if (!error.file || !error.pointer || !error.expected) {
                definition_error_done(&error);
                return -ENOMEM;
        }
        definition_error_done(ret);
        *ret = error;
        return -EBADMSG;
}

int definition_sources_add(DefinitionSources *sources, const char *text, size_t size, const char *file,
        DefinitionError *ret_error) {
        JsonSourceError wrong = {};
        JsonSource *grown;
        int r;

        grown = reallocarray(sources->sources, sources->n + 1, sizeof(JsonSource));
        if (!grown)
                return -ENOMEM;
        sources->sources = grown;

        r = json_source_parse(text, size, file, &grown[sources->n], &wrong);
        if (r == -EBADMSG)
                return syntax_error(file, &wrong, ret_error);
        if (r < 0)
                return r;
        sources->n++;

        if (!json_object_is_type(grown[sources->n - 1].root, json_type_object)) {
                DefinitionSources only = { .sources = &grown[sources->n - 1], .n = 1 };
                DefinitionCheck c = { .sources = &only, .error = ret_error };
                return definition_refuse(&c, "", "an object");
        }
        return 0;
}

/* RFC 7396 §2, MergePatch. The depth is bounded by the parser's. */
static int merge(json_object *target, json_object *patch) {
        int r;

        json_object_object_foreach(patch, key, value) {
                json_object *present = NULL;

                if (!value) {
                        json_object_object_del(target, key);
                        continue;
                }
                if (!json_object_is_type(value, json_type_object)) {
                        if (json_object_object_add(target, key, json_object_get(value)) < 0) {
                                json_object_put(value);
                                return -ENOMEM;
                        }
                        continue;
                }
                (void) json_object_object_get_ex(target, key, &present);
                if (!json_object_is_type(present, json_type_object)) {
                        present = json_object_new_object();
                        if (!present)
                                return -ENOMEM;
                        if (json_object_object_add(target, key, present) < 0) {
                                json_object_put(present);
                                return -ENOMEM;
                        }
                }
                r = merge(present, value);
                if (r < 0)
                        return r;
        }
        return 0;
}

int definition_sources_merge(const DefinitionSources *sources, json_object **ret) {
        json_object *merged = json_object_new_object();
        int r;

        if (!merged)
                return -ENOMEM;
        for (size_t i = 0; i < sources->n; i++) {
                r = merge(merged, sources->sources[i].root);
                if (r < 0) {
                        json_object_put(merged);
                        return r;
                }
        }
        *ret = merged;
        return 0;
}
