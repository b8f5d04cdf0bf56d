/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "sandbox.h"

const SandboxPolicy *sandbox_policy_find(const SandboxPolicy *policies, const char *name) {
        for (const SandboxPolicy *policy = policies; policy->name; policy++)
                if (streq(policy->name, name))
                        return policy;
        return NULL;
}

int sandbox_load(const SandboxPolicy *policy) {
        struct sock_fprog program = {
                .len = policy->n_instructions,
                .filter = (struct sock_filter *) policy->filter, /* the kernel only reads it */
        };
        long r;

        /* Without this an unprivileged process may not load a filter (seccomp(2)). */
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
        if (r > 0)
                return -EBUSY; /* the id of a thread that could not be brought along */
        return r < 0 ? -errno : 0;
}
