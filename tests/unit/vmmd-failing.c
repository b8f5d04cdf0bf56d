/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A vmmd that says that it takes a state, and then does not do so, in the way that VMMD_FAILS says: linked in place of arch_load() and reload_sections_check(). */

#include <signal.h>
#include <sys/stat.h>

#include "arch.h"
#include "reload.h"

int __wrap_arch_load(Arch *arch, StateReader *r, char **ret_message);
int __real_arch_load(Arch *arch, StateReader *r, char **ret_message);
int __wrap_reload_sections_check(const char *text, char **ret_message);
int __real_reload_sections_check(const char *text, char **ret_message);

static bool fails_by(const char *way) {
        const char *ways = getenv("VMMD_FAILS");

        return ways && streq(ways, way);
}

/* Where the machine is nearly whole, and all sessions are taken over. */
int __wrap_arch_load(Arch *arch, StateReader *r, char **ret_message) {
        int k = __real_arch_load(arch, r, ret_message);

        if (fails_by("crash"))
                (void) raise(SIGSEGV);
        if (fails_by("abort"))
                abort();
        if (fails_by("hang"))
                for (;;)
                        (void) pause();
        return k < 0 ? k : set_message(ret_message, -EBADMSG, "this program fails at the end");
}

int __wrap_reload_sections_check(const char *text, char **ret_message) {
        if (fails_by("crash when asked"))
                (void) raise(SIGSEGV);
        if (fails_by("hang without a word"))
                for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
                        (void) close(fd);
        if (fails_by("hang when asked") || fails_by("hang without a word"))
                for (;;)
                        (void) pause();
        /* What is asked is what would be executed: only it itself can see to it that it is not. */
        if (fails_by("cannot be executed") && chmod("/proc/self/exe", 0600) < 0)
                return -errno;
        return __real_reload_sections_check(text, ret_message);
}
