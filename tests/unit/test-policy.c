/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What libraries do behind a helper's back must be in every policy, or a helper dies of it at the worst moment. */

#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "sandbox.h"
#include "util.h"

/* Runs `act` under each policy; it has to end in that way. */
static void under_each_policy(void (*act)(void), int expected_signal) {
        for (const SandboxPolicy *policy = sandbox_policies; policy->name; policy++) {
                int status;
                pid_t pid = fork();

                assert_return_code(pid, errno);
                if (pid == 0) {
                        if (sandbox_load(policy) < 0)
                                _exit(2);
                        act();
                        _exit(0);
                }
                assert_int_equal(waitpid(pid, &status, 0), pid);
                if (expected_signal == 0 ? status != 0 : !WIFSIGNALED(status) || WTERMSIG(status) != expected_signal)
                        fail_msg("%s: ended with status 0x%x", policy->name, (unsigned) status);
        }
}

static void ask_for_the_pid_of_a_parent(void) {
        (void) getppid(); /* something harmless that no helper needs */
}

static void ends_what_is_not_named(void **state) {
        under_each_policy(ask_for_the_pid_of_a_parent, SIGSYS);
}

static void aborts_as_an_abort(void **state) {
        under_each_policy(abort, SIGABRT);
}

static int compare_bytes(const void *a, const void *b) {
        return *(const char *) a - *(const char *) b;
}

static void sort(void) {
        char *p = calloc(1, KIB(64));

        if (!p)
                _exit(3);
        qsort(p, KIB(64), 1, compare_bytes);
        free(p);
}

static void sorts_many(void **state) {
        under_each_policy(sort, 0);
}

static void allocate(void) {
        char *p = malloc(MIB(8)), *grown = p ? realloc(p, MIB(32)) : NULL;

        if (!grown)
                _exit(3);
        free(grown);
}

static void allocates_much(void **state) {
        under_each_policy(allocate, 0);
}

/* What libsystemd does with a message that is too large for a datagram, but for the sending. */
static void make_a_memfd(void) {
        struct iovec iov = { .iov_base = (char[]) { "x" }, .iov_len = 1 };
        _cleanup_close_ int fd = memfd_create_sealed("x", 0, 0);
        char name[16];

        if (fd < 0 || prctl(PR_GET_NAME, name) < 0 || (writev(fd, &iov, 1) < 0 && errno != EPERM))
                _exit(3);
}

static void sends_long_journal_messages(void **state) {
        under_each_policy(make_a_memfd, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(ends_what_is_not_named),
                cmocka_unit_test(aborts_as_an_abort),
                cmocka_unit_test(sorts_many),
                cmocka_unit_test(allocates_much),
                cmocka_unit_test(sends_long_journal_messages),
        };

        /* An emulated user space has no filters. */
        if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &(uint32_t) { SECCOMP_RET_KILL_PROCESS }) < 0 && errno == ENOSYS) {
                puts("1..0 # SKIP for want of seccomp(2)");
                return 0;
        }
        return cmocka_run_group_tests(tests, NULL, NULL);
}
