/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* verify: is a definition right, without starting anything. */

#include "definition.h"
#include "output.h"

static int load(const Options *o, const char *what, MachineDefinition **ret, DefinitionError *ret_error) {
        size_t n = strlen(what);

        /* A machine's name has no slash, and a file in the current directory is most likely called so. */
        if (strchr(what, '/') || (n > 5 && streq(what + n - 5, ".json")))
                return definition_load_file(what, NULL, ret, ret_error);
        return definition_load(o->root, what, ret, ret_error);
}

static int error_to_json(const DefinitionError *e, json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "file", e->file);
        if (r >= 0 && e->line > 0)
                r = json_add_integer(o, "line", e->line);
        if (r >= 0)
                r = json_add_string(o, "pointer", e->pointer);
        if (r >= 0)
                r = json_add_string(o, "found", e->found);
        if (r >= 0)
                r = json_add_string(o, "expected", e->expected);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(o);
        return 0;
}

static int add_result(json_object *array, const char *what, const char *problem, const DefinitionError *e) {
        _cleanup_json_ json_object *o = json_object_new_object();
        json_object *error;
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", what);
        if (r >= 0)
                r = json_add_boolean(o, "valid", !problem);
        if (r >= 0)
                r = json_add_string(o, "problem", problem);
        if (r >= 0 && e) {
                r = error_to_json(e, &error);
                if (r >= 0)
                        r = json_add(o, "error", error);
        }
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

/* Returns the exit code for this one, or a negative errno where that could not even be said. */
static int verify_one(const Options *o, const char *what, json_object *array) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError e = {};
        _cleanup_free_ char *text = NULL;
        const char *problem = NULL;
        int r, status;

        r = load(o, what, &d, &e);
        if (r == -EBADMSG) {
                text = definition_error_to_string(&e);
                if (!text)
                        return -ENOMEM;
                problem = text;
        } else if (r < 0)
                problem = r == -ENOENT ? "there is no such definition" : strerror(-r);

        status = r == -ENOENT ? STATUS_UNKNOWN_MACHINE : r < 0 ? STATUS_FAILED : STATUS_OK;
        if (array)
                r = add_result(array, what, problem, r == -EBADMSG ? &e : NULL);
        else if (r == -EBADMSG)
                /* As a compiler says it, so that editors find the place. */
                r = fprintf(stderr, "%s\n", problem);
        else if (r < 0)
                complain("%s: %s", what, problem);
        else if (!o->quiet)
                r = printf("%s: OK\n", what);
        return r < 0 && (array || !problem) ? r : status;
}

int command_verify(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *array = NULL;
        int status = STATUS_OK;

        if (o->json != JSON_OFF) {
                array = json_object_new_array();
                if (!array)
                        return STATUS_FAILED;
        }
        for (size_t i = 0; i < n; i++) {
                int r = verify_one(o, arguments[i], array);
                if (r < 0) {
                        complain("%s: %s", arguments[i], strerror(-r));
                        r = STATUS_FAILED;
                }
                status = status == STATUS_OK ? r : status;
        }
        if (array && print_json(o, array) < 0)
                return STATUS_FAILED;
        return status;
}
