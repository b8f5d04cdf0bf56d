/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the machine's definition says about a peer. */

#include "peer.h"

/* Rights by name, as in io.vmmd.Authorization. */
typedef enum Right { RIGHT_READ, RIGHT_BALLOON, RIGHT_CHANGE, _RIGHT_MAX } Right;

#define READ_GROUP_DEFAULT "vmm-read"
#define BALLOON_GROUP "vmm-balloon"

typedef struct Question {
        Right right;
        const char *machine;
        const char *method;
        const char *owner;        /* or NULL */
        const char *access_group; /* or NULL */
        const char *read_group;   /* never NULL */
        bool interactive;
} Question;

const char *right_to_string(Right right);
/* -EINVAL where it is none. */
int right_from_string(const char *s);

/* Returns 1 where the definition allows it, with what it is allowed for, 0 where it does not, with why: "user 'bob' is not root, is not the owner
 * 'alice', and is not in group 'operators'". Or a negative errno. */
int decide(const Peer *peer, const Question *question, char **ret_reason);

/* What would have to be done for a yes, as a sentence: group to join, or key to set. */
int decide_hint(const Question *question, char **ret);
