/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* sandboxed PROGRAM ARGUMENT…: runs the program much as units/vmm-device@.service has a helper run: in namespaces of its own, without a right, without
 * the calls that its SystemCallFilter= takes away. What it cannot have without a service manager, other users and roots, it has not. */

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "util.h"

/* Of @privileged, @resources, and what @system-service has not; RestrictNamespaces=, KeyringMode=. */
static const char *const refused[] = {
        "acct", "add_key", "bpf", "capset", "chown", "chroot", "clock_adjtime", "clock_settime", "delete_module", "fanotify_init", "fchown", "fchownat",
        "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "ioprio_set", "kexec_load", "keyctl", "lchown", "mbind",
        "migrate_pages", "mount", "move_mount", "move_pages", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root",
        "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "sched_setaffinity", "sched_setattr", "sched_setparam",
        "sched_setscheduler", "set_mempolicy", "setdomainname", "setgid", "setgroups", "sethostname", "setns", "setpriority", "setregid", "setresgid",
        "setresuid", "setreuid", "setrlimit", "setuid", "swapoff", "swapon", "umount2", "unshare", "userfaultfd", "vhangup",
};

static int filter_calls(void) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        int r = filter ? 0 : -ENOMEM;

        for (size_t i = 0; i < ELEMENTSOF(refused) && r >= 0; i++) {
                int number = seccomp_syscall_resolve_name(refused[i]);

                if (number >= 0) /* not every architecture has each */
                        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);
        }
        /* RestrictAddressFamilies=AF_UNIX, MemoryDenyWriteExecute=yes */
        if (r >= 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_NE, AF_UNIX));
        if (r >= 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(mmap), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_WRITE | PROT_EXEC, PROT_WRITE | PROT_EXEC));
        if (r >= 0)
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, PROT_EXEC));
        if (r >= 0)
                r = seccomp_load(filter);
        if (filter)
                seccomp_release(filter);
        return r;
}

static int write_text(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd < 0 ? -errno : write_full(fd, text, strlen(text));
}

/* As PrivateUsers= does it: only oneself is somebody. */
static int enter_namespaces(void) {
        char users[64], groups[64];
        int r;

        (void) snprintf(users, sizeof(users), "%u %u 1", (unsigned) geteuid(), (unsigned) geteuid());
        (void) snprintf(groups, sizeof(groups), "%u %u 1", (unsigned) getegid(), (unsigned) getegid());
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) < 0)
                return -errno;
        r = write_text("/proc/self/setgroups", "deny");
        if (r >= 0)
                r = write_text("/proc/self/uid_map", users);
        return r < 0 ? r : write_text("/proc/self/gid_map", groups);
}

static int drop_capabilities(void) {
        struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct none[2] = {};

        for (int i = 0; i <= CAP_LAST_CAP; i++)
                if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno != EINVAL)
                        return -errno;
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capset, &header, none) < 0)
                return -errno;
        return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int main(int argc, char *argv[]) {
        int r;

        if (argc < 2)
                return EXIT_FAILURE;
        r = enter_namespaces();
        if (r < 0) {
                /* A container may not allow it: that is for the caller to tell. */
                (void) fprintf(stderr, "sandboxed: no namespaces here: %s\n", strerror(-r));
                return 77;
        }
        r = drop_capabilities();
        if (r >= 0)
                r = filter_calls();
        if (r >= 0) {
                (void) execv(argv[1], argv + 1);
                r = -errno;
        }
        (void) fprintf(stderr, "sandboxed: %s: %s\n", argv[1], strerror(-r));
        return EXIT_FAILURE;
}
