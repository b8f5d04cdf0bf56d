/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is wrong with a definition, and where: the place is found again in the texts when (and only when) there is something to say. */

#include <stdarg.h>
#include <stdio.h>

#include "definition-internal.h"

void definition_error_done(DefinitionError *error) {
        free(error->file);
        free(error->pointer);
        free(error->found);
        free(error->expected);
        *error = (DefinitionError) {};
}

char *definition_error_to_string(const DefinitionError *error) {
        _cleanup_free_ char *where = NULL;
        char *text;
        int r;

        if (error->line > 0)
                r = asprintf(&where, "%s:%u", error->file ? error->file : "?", error->line);
        else
                r = asprintf(&where, "%s", error->file ? error->file : "?");
        if (r < 0) {
                where = NULL;
                return NULL;
        }
        r = asprintf(&text, "%s: %s%sfound %s, expected %s", where, error->pointer ? error->pointer : "",
                error->pointer && *error->pointer ? ": " : "", error->found ? error->found : "nothing",
                error->expected ? error->expected : "something else");
        if (r < 0)
                return NULL;
        /* Keys are somebody's, and this is for a terminal or a log. */
        for (char *p = text; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        *p = '?';
        return text;
}

/* The last text that says something about the pointer is the one that had the say. */
static const JsonSource *locate(const DefinitionSources *sources, const char *pointer, JsonPlace *ret) {
        for (size_t i = sources->n; i > 0; i--)
                if (json_source_locate(&sources->sources[i - 1], pointer, ret) >= 0)
                        return &sources->sources[i - 1];
        return NULL;
}

/* Takes ownership of found and expected, also on error; found NULL means what stands there. */
static int refuse_take(const DefinitionCheck *c, const char *pointer, char *found, char *expected) {
        DefinitionError error = { .pointer = strdup(pointer), .found = found, .expected = expected };
        const JsonSource *source;
        JsonPlace place = {};

        source = locate(c->sources, pointer, &place);
        if (source) {
                error.file = strdup(source->file);
                error.line = place.line;
                if (!error.found)
                        error.found = json_source_excerpt(source, &place);
        } else if (c->sources->n > 0)
                error.file = strdup(c->sources->sources[0].file);
        if (!error.found && !source)
                error.found = strdup("nothing");

        if (!error.file || !error.pointer || !error.found || !error.expected) {
                definition_error_done(&error);
                return -ENOMEM;
        }
        definition_error_done(c->error);
        *c->error = error;
        return -EBADMSG;
}

int definition_refuse(const DefinitionCheck *c, const char *pointer, const char *expected, ...) {
        va_list ap;
        char *text;
        int r;

        va_start(ap, expected);
        r = vasprintf(&text, expected, ap);
        va_end(ap);
        return r < 0 ? -ENOMEM : refuse_take(c, pointer, NULL, text);
}

int definition_refuse_found(const DefinitionCheck *c, const char *pointer, const char *found, const char *expected, ...) {
        char *text, *copy;
        va_list ap;
        int r;

        va_start(ap, expected);
        r = vasprintf(&text, expected, ap);
        va_end(ap);
        if (r < 0)
                return -ENOMEM;
        copy = strdup(found);
        if (!copy) {
                free(text);
                return -ENOMEM;
        }
        return refuse_take(c, pointer, copy, text);
}

int definition_refuse_missing(const DefinitionCheck *c, const char *pointer, const char *key, const char *expected) {
        _cleanup_free_ char *child = json_pointer_join(pointer, key);
        const JsonSource *source;
        JsonPlace place;

        if (!child)
                return -ENOMEM;
        /* A null that took it away is the best place to show; else the object that should have it. */
        source = locate(c->sources, child, &place);
        if (source && source->text[place.begin] == 'n')
                return definition_refuse(c, child, "%s", expected);
        return definition_refuse_found(c, pointer, "nothing", "the key \"%s\": %s", key, expected);
}

/* Levenshtein's distance, ignoring case, of two short words; SIZE_MAX for long ones. */
static size_t distance(const char *a, const char *b) {
        size_t row[41], la = strlen(a), lb = strlen(b);

        if (la >= ELEMENTSOF(row) || lb >= ELEMENTSOF(row))
                return SIZE_MAX;
        for (size_t j = 0; j <= lb; j++)
                row[j] = j;
        for (size_t i = 1; i <= la; i++) {
                size_t diagonal = row[0];

                row[0] = i;
                for (size_t j = 1; j <= lb; j++) {
                        bool same = (a[i - 1] | 0x20) == (b[j - 1] | 0x20);
                        size_t best = MIN(row[j], row[j - 1]) + 1;

                        best = MIN(best, diagonal + (same ? 0 : 1));
                        diagonal = row[j];
                        row[j] = best;
                }
        }
        return row[lb];
}

int definition_refuse_key(const DefinitionCheck *c, const char *pointer, const char *key, const char *const *known,
        const char *what) {
        _cleanup_free_ char *child = json_pointer_join(pointer, key), *all = NULL;
        const char *closest = NULL;
        size_t least = strlen(key) / 3 + 2, length = 1;

        if (!child)
                return -ENOMEM;
        for (size_t i = 0; known[i]; i++) {
                size_t d = distance(key, known[i]);

                if (d < least) {
                        least = d;
                        closest = known[i];
                }
                length += strlen(known[i]) + 2;
        }
        if (closest)
                return definition_refuse_found(c, child, "an unknown key", "a key of %s; did you mean \"%s\"?", what, closest);

        all = calloc(length, 1);
        if (!all)
                return -ENOMEM;
        for (size_t i = 0; known[i]; i++) {
                if (i > 0)
                        strcat(all, ", ");
                strcat(all, known[i]);
        }
        return definition_refuse_found(c, child, "an unknown key", "a key of %s (%s)", what, all);
}
