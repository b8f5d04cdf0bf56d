/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A running machine's control socket, RUNTIME_DIRECTORY/NAME/control. */

#include "client.h"
#include "json-util.h"
#include "vmmctl.h"

/* All that fail set *ret_problem, a sentence for people that the caller frees; it may be NULL where nobody wants to know. Methods are
 * those of io.vmmd.Machine where the name has no dot. */

/* -ENOENT or -ECONNREFUSED where the machine does not run. */
int machine_connect(const Options *o, const char *name, VarlinkClient **ret, char **ret_problem);
/* Returns 0 and *ret_reply (which may be NULL). Where asking the user would help, he is asked. */
int machine_call(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem);
/* The same with descriptors, which stay the caller's. */
int machine_call_passing(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, const int *fds, size_t n_fds,
        json_object **ret_reply, char **ret_problem);
/* After it the connection is whatever the method says: see varlink_client_call_upgrade(). The client is of no use then. */
int machine_call_upgrade(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, int *ret_fd, char **ret_data,
        size_t *ret_size, char **ret_problem);
/* Connects and calls, for one call. */
int machine_call_by_name(const Options *o, const char *name, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_problem);
/* What Describe says, or NULL where nobody answers soon. The user is not asked. */
json_object *machine_describe(const Options *o, const char *name);

/* A call that may take long, or has several replies. `reply` is borrowed; > 0 is enough, 0 goes on, a negative errno ends with that. */
typedef int (*MachineReply)(json_object *reply, void *userdata);
typedef enum StreamFlags {
        STREAM_MORE = 1 << 0,      /* several replies */
        STREAM_INTERRUPT = 1 << 1, /* Ctrl-C is -EINTR rather than the end of the process */
} StreamFlags;
/* Returns 0 after the last reply, > 0 where `callback` or the reader of our output had enough, or a negative errno: -ETIMEDOUT where the client's
 * time-out was over before the first reply. Takes the client over, which is of no use afterwards. */
int machine_stream(const Options *o, VarlinkClient *client, const char *method, json_object *parameters, StreamFlags flags,
        MachineReply callback, void *userdata, char **ret_problem);

/* A Varlink error in words; returns a negative errno for it. error.c */
int error_translate(const char *error_id, json_object *parameters, char **ret_problem);

/* The exit code for what the functions above return. */
static inline int machine_exit_code(int r) {
        if (r == -ESRCH)
                return STATUS_UNKNOWN_MACHINE;
        return r >= 0 ? STATUS_OK : r == -ENOENT || r == -ECONNREFUSED ? STATUS_NOT_RUNNING : STATUS_FAILED;
}
/* For commands that name one machine: says what went wrong, if anything did. Returns the exit code. */
int machine_conclude(const char *name, int r, const char *problem);

/* polkit's agent for this terminal: pkttyagent(1), where there is a terminal, and that program. agent.c */
typedef struct Agent {
        pid_t pid;
} Agent;
/* Whether the user may be asked at all. */
bool agent_may_ask(const Options *o);
/* Returns when it is ready, or where there is none. */
void agent_start(Agent *a);
void agent_stop(Agent *a);
