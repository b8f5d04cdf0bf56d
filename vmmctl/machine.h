/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A running machine's control socket, RUNTIME_DIRECTORY/NAME/control. */

#include "client.h"
#include "json-util.h"
#include "vmmctl.h"

/* *ret_problem says in words why not; the caller frees it. */
int machine_connect(const Options *o, const char *name, VarlinkClient **ret, char **ret_problem);
/* A method of io.vmmd.Machine. Returns 0 and *ret_reply (which may be NULL), or a negative errno and *ret_problem. */
int machine_call(VarlinkClient *client, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem);
/* Both, for one call. -ENOENT and -ECONNREFUSED where the machine does not run. */
int machine_call_by_name(const Options *o, const char *name, const char *method, json_object **ret_reply, char **ret_problem);
/* What Describe says, or NULL where nobody answers soon. */
json_object *machine_describe(const Options *o, const char *name);
