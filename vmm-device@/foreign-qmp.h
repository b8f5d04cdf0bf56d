/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A client of QMP, the monitor of QEMU's programs: one command after another, each answered by a callback. */

#include <json-c/json.h>
#include <systemd/sd-event.h>

#include "util.h"

typedef struct Qmp Qmp;

/* Exactly once for each command: `error` is NULL where it went well, `result` what it returned, valid during the call. */
typedef void (*QmpAnswer)(const char *error, json_object *result, void *userdata);

/* Takes ownership of the socket, also on error. */
int qmp_new(sd_event *event, int fd, Qmp **ret);
/* Answers what is not answered yet with an error. */
Qmp *qmp_free(Qmp *q);
DEFINE_CLEANUP(Qmp, qmp_free)
/* `arguments` may be NULL; takes the reference over, also on error. On error nothing is called. */
int qmp_call(Qmp *q, const char *command, json_object *arguments, QmpAnswer answer, void *userdata);
