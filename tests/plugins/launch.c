/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Runs a plugin without systemd, vmmd and sandbox: vmmd's side of the protocol in this process, the plugin as a child.
 *
 *     plugin-launch [--vcpus=N] PROGRAM [ARGUMENT…]
 *
 * Its exit status is the plugin's; 77 without /dev/kvm. */

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "parse.h"
#include "plugin-kvm.h"
#include "plugin.h"

typedef struct Machine {
        sd_event *event;
        Kvm kvm;
        VcpuSet vcpus;
        Plugin *plugin;
        int status; /* of the plugin */
} Machine;

static void check(int r, const char *message, const char *what) {
        if (r < 0) {
                (void) fprintf(stderr, "%s: %s\n", what, message ?: strerror(-r));
                exit(EXIT_FAILURE);
        }
}

static void on_started(void *userdata) {
        Machine *m = userdata;

        check(vcpu_set_start(&m->vcpus), NULL, "vcpu_set_start");
        vcpu_set_resume(&m->vcpus, false);
}

/* Its process is waited for, too, and says the rest. */
static void on_ended(const char *reason, void *userdata) {
        (void) fprintf(stderr, "launch: %s\n", reason);
}

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
        Machine *m = userdata;

        if (event != VCPU_EVENT_ENTERED) {
                (void) fprintf(stderr, "launch: vCPU %u ends (%d) %s\n", vcpu->index, event, vcpu->error ?: "");
                plugin_ask_to_exit(m->plugin);
        }
}

static void on_paused(void *userdata) {
}

static int on_child(sd_event_source *s, const siginfo_t *si, void *userdata) {
        Machine *m = userdata;

        m->status = si->si_code == CLD_EXITED ? si->si_status : 128 + si->si_status;
        return sd_event_exit(m->event, 0);
}

static pid_t start(char **argv, int socket) {
        pid_t pid = fork();

        if (pid == 0) {
                char text[16];
                sigset_t none;

                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) sigemptyset(&none);
                (void) sigprocmask(SIG_SETMASK, &none, NULL);
                (void) signal(SIGPIPE, SIG_DFL);
                (void) snprintf(text, sizeof(text), "%d", socket);
                (void) setenv("CROSVM_SOCKET", text, 1);
                (void) execv(argv[0], argv);
                check(-errno, NULL, argv[0]);
        }
        return pid;
}

int main(int argc, char **argv) {
        static const struct option options[] = { { "vcpus", required_argument, NULL, 'v' }, {} };
        Machine m = { .status = EXIT_FAILURE };
        const VcpuSetHandlers vcpu_handlers = { .event = on_vcpu_event, .paused = on_paused, .userdata = &m };
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended, .userdata = &m };
        sd_event_source *source = NULL;
        char *message = NULL;
        uint64_t n_vcpus = 1;
        int pair[2], c;
        sigset_t child;
        pid_t pid;

        while ((c = getopt_long(argc, argv, "+", options, NULL)) >= 0)
                if (c != 'v' || parse_unsigned(optarg, &n_vcpus) < 0)
                        return EXIT_FAILURE;
        if (optind >= argc)
                return EXIT_FAILURE;
        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        (void) signal(SIGPIPE, SIG_IGN);
        (void) sigemptyset(&child);
        (void) sigaddset(&child, SIGCHLD);
        (void) sigprocmask(SIG_BLOCK, &child, NULL);
        check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0 ? -errno : 0, NULL, "socketpair");
        check(kvm_init(&m.kvm, &message), message, "KVM");
        check(plugin_kvm_create_platform(&m.kvm, &message), message, "KVM");
        check(sd_event_new(&m.event), NULL, "sd_event_new");
        check(plugin_new(m.event, &m.kvm, &m.vcpus, (unsigned) n_vcpus, &vcpu_handlers, NULL, &handlers, &m.plugin, &message), message,
                "plugin");
        pid = start(argv + optind, pair[1]);
        (void) close(pair[1]);
        check(plugin_add_connection(m.plugin, pair[0]), NULL, "connection");
        check(sd_event_add_child(m.event, &source, pid, WEXITED, on_child, &m), NULL, "sd_event_add_child");
        check(sd_event_loop(m.event), NULL, "sd_event_loop");
        plugin_abort(m.plugin);
        vcpu_set_done(&m.vcpus);
        (void) sd_event_source_disable_unref(source);
        (void) plugin_free(m.plugin);
        kvm_done(&m.kvm);
        (void) sd_event_unref(m.event);
        return m.status;
}
