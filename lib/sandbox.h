/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The second layer of the sandbox: a helper's own seccomp policy, loaded once its descriptors are open. The policies are texts
 * under policy/, compiled to BPF at build time, so that neither libseccomp nor a parser is in the process. */

#include <linux/filter.h>

#include "util.h"

typedef struct SandboxPolicy {
        const char *name;
        const struct sock_filter *filter;
        unsigned short n_instructions;
} SandboxPolicy;

/* Every compiled policy; the array ends with an entry whose name is NULL. Defined by the build (policy/). */
extern const SandboxPolicy sandbox_policies[];

const SandboxPolicy *sandbox_policy_find(const SandboxPolicy *policies, const char *name);

/* Gives up the way back to privileges (PR_SET_NO_NEW_PRIVS) and loads the filter for all threads. From here on a call that the policy
 * does not name ends the process. */
int sandbox_load(const SandboxPolicy *policy);
