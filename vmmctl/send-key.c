/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* send-key: presses keys, or keys together, one after the other. */

#include "key-name.h"
#include "machine.h"
#include "output.h"

/* As the helper has it where it is not told. */
#define HOLD_DEFAULT_USEC (50 * USEC_PER_MSEC)

/* "ctrl+alt+del": the names, in order; the caller's. NULL where one is empty or none of a key, which is complained of. */
static json_object *parse_chord(const char *chord) {
        _cleanup_json_ json_object *keys = json_object_new_array();

        if (!keys) {
                complain("Out of memory.");
                return NULL;
        }
        for (const char *p = chord;; p++) {
                size_t length = strcspn(p, "+");
                _cleanup_free_ char *name = strndup(p, length);

                if (!name || (key_code(name) != 0 && json_append(keys, json_object_new_string(name)) < 0)) {
                        complain("Out of memory.");
                        return NULL;
                }
                if (key_code(name) == 0) {
                        complain("'%s' is no key: names are those of linux/input-event-codes.h without KEY_, in small letters.", name);
                        return NULL;
                }
                p += length;
                if (*p == 0)
                        return TAKE_PTR(keys);
        }
}

static int press(const Options *o, VarlinkClient *client, json_object *keys_owned, char **ret_problem) {
        _cleanup_json_ json_object *keys = keys_owned, *parameters = json_object_new_object();
        uint64_t hold = o->given & OPTION_HOLD ? o->hold_usec : HOLD_DEFAULT_USEC;

        if (!parameters || json_add(parameters, "keys", TAKE_PTR(keys)) < 0 || json_add_string(parameters, "device", o->device) < 0 ||
                json_add_integer(parameters, "hold", (int64_t) hold) < 0)
                return -ENOMEM;
        varlink_client_set_timeout(client, VARLINK_CLIENT_TIMEOUT_DEFAULT + hold);
        return machine_call(o, client, "SendKeys", parameters, NULL, ret_problem);
}

int command_send_key(const Options *o, char **arguments, size_t n) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        _cleanup_json_ json_object *chords = json_object_new_array();
        _cleanup_free_ char *problem = NULL;
        int r;

        /* All are understood before the first is pressed. */
        for (size_t i = 1; i < n; i++) {
                json_object *keys = parse_chord(arguments[i]);

                if (!keys)
                        return STATUS_USAGE;
                if (json_append(chords, keys) < 0) {
                        complain("Out of memory.");
                        return STATUS_FAILED;
                }
        }
        r = machine_connect(o, arguments[0], &client, &problem);
        for (size_t i = 0; r >= 0 && i < json_object_array_length(chords); i++)
                r = press(o, client, json_object_get(json_object_array_get_idx(chords, i)), &problem);
        return machine_conclude(arguments[0], r, problem);
}
