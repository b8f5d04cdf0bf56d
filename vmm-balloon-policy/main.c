/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-balloon-policy [--option=value …] MACHINE
 *
 * Host pressure and the guest's statistics in, balloon targets out: policy.c decides, this is what it is told by and what does as it
 * says. Its life in stages: options; pressure file and what an earlier process left; the seccomp policy; READY=1 once the machine's
 * events are subscribed to; the event loop; and at the end the balloon as it was found. */

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <systemd/sd-daemon.h>

#include "config.h"
#include "event-loop.h"
#include "link.h"
#include "log.h"
#include "pressure.h"
#include "sandbox.h"
#include "settings.h"

/* EX_CONFIG: a second start would fail the same way; the unit does not try one. */
#define STATUS_CONFIGURATION 78

#define RESTORE_TIMEOUT_USEC (5 * USEC_PER_SEC)
#define RESEND_USEC (5 * USEC_PER_SEC)

#define PRESSURE_PATH "/proc/pressure/memory"

/* In the unit's descriptor store: what the balloon's target was before we touched it, should this process die. */
typedef struct Found {
        uint64_t base;
        uint64_t vmmd; /* whose balloon it is; 0 is nobody's */
} Found;

typedef struct Sidecar {
        Settings settings;
        const char *machine;
        char *socket;
        bool sandbox;

        sd_event *event;
        sd_event_source *timer;
        Pressure *pressure;
        Link *link;
        Found *found;
        int pressure_fd, found_fd;

        bool begun; /* policy is one */
        Policy policy;
        uint64_t resend_usec; /* the target was not set; UINT64_MAX is never */
        bool ready, stopping;
        char *status;
        int result;
} Sidecar;

static void print_help(void) {
        printf("vmm-balloon-policy [OPTION...] MACHINE\n\n"
               "Takes memory that a guest has idle while the host is short of it, and gives it back.\n\n");
        settings_print_help();
        printf("     --no-sandbox                       do not load the seccomp policy (for debuggers)\n"
               "  -h --help                             show this help\n"
               "     --version                          show the version\n\n"
               "--some-option=VALUE may also be given as $VMM_BALLOON_SOME_OPTION=VALUE. See vmm-balloon-policy(8).\n");
}

/* Returns 0 to go on, 1 where the process is done. */
static int parse_argument(Sidecar *s, const char *argument) {
        _cleanup_free_ char *message = NULL;
        int r;

        if (streq(argument, "-h") || streq(argument, "--help")) {
                print_help();
                return 1;
        }
        if (streq(argument, "--version")) {
                printf("vmm-balloon-policy %s\n", PROJECT_VERSION);
                return 1;
        }
        if (streq(argument, "--no-sandbox")) {
                s->sandbox = false;
                return 0;
        }
        if (argument[0] != '-') {
                if (s->machine)
                        return log_error_errno(-EINVAL, "'%s': expected one machine only", argument);
                s->machine = argument;
                return 0;
        }
        r = settings_add(&s->settings, argument, &message);
        if (r == -ENOENT)
                return log_error_errno(-EINVAL, "'%s': there is no such option; --help lists them", argument);
        return r < 0 ? log_error_errno(r, "%s", message ?: "Out of memory.") : 0;
}

static int parse_arguments(Sidecar *s, int argc, char **argv) {
        _cleanup_free_ char *message = NULL;
        int r;

        settings_init(&s->settings);
        /* Of --help nothing in the environment keeps anybody. */
        for (int i = 1; i < argc; i++) {
                r = parse_argument(s, argv[i]);
                if (r != 0)
                        return r;
        }
        settings_init(&s->settings);
        r = settings_from_environment(&s->settings, environ, &message);
        for (int i = 1; i < argc && r >= 0; i++)
                if (settings_add(&s->settings, argv[i], &message) == -EINVAL)
                        r = -EINVAL;
        if (r >= 0)
                r = settings_finish(&s->settings, &message);
        if (r < 0)
                return log_error_errno(r, "%s", message ?: "Out of memory.");
        if (!s->machine || strchr(s->machine, '/') || s->machine[0] == 0 || s->machine[0] == '.')
                return log_error_errno(-EINVAL, "'%s': expected the name of a machine", s->machine ?: "");
        if (!s->settings.socket && asprintf(&s->socket, "/run/vmm/%s/control", s->machine) < 0) {
                s->socket = NULL;
                return log_oom();
        }
        return 0;
}

/* ---- what an earlier process of the unit, or vmm-open, left in its descriptor store ---- */

static int take_stored(Sidecar *s) {
        char **names = NULL;
        int n;

        n = sd_listen_fds_with_names(1, &names);
        if (n < 0)
                return log_error_errno(n, "Cannot take the descriptors of the service manager: %m");
        for (int i = 0; i < n; i++) {
                int fd = SD_LISTEN_FDS_START + i, *slot = NULL;

                if (names && streq(names[i], "pressure"))
                        slot = &s->pressure_fd;
                else if (names && streq(names[i], "found"))
                        slot = &s->found_fd;
                if (slot && *slot < 0)
                        *slot = fd;
                else
                        (void) safe_close(fd);
                if (names)
                        free(names[i]);
        }
        free(names);
        return 0;
}

static Found *map_found(int fd) {
        void *p = mmap(NULL, sizeof(Found), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        return p == MAP_FAILED ? NULL : p;
}

/* Without a store to keep it in, it is just memory. */
static int open_found(Sidecar *s) {
        bool stored = s->found_fd >= 0;

        if (!stored)
                s->found_fd = memfd_create_sealed("vmm-balloon-policy", sizeof(Found), 0);
        if (s->found_fd < 0)
                return log_error_errno(s->found_fd, "Cannot create a memfd: %m");
        s->found = map_found(s->found_fd);
        if (!s->found)
                return log_error_errno(errno, "Cannot map a memfd: %m");
        if (!stored)
                (void) sd_pid_notify_with_fds(0, false, "FDSTORE=1\nFDNAME=found", &s->found_fd, 1);
        return 0;
}

/* ---- status, and what the policy decides ---- */

static uint64_t mebibytes(uint64_t bytes) {
        return bytes / MIB(1);
}

static void show_status(Sidecar *s) {
        const PolicyBalloon *b = &s->policy.balloon;
        char *status = NULL;
        int r;

        if (!link_is_connected(s->link))
                r = asprintf(&status, "Connecting to the machine");
        else
                r = asprintf(&status, "%s: the balloon has %" PRIu64 " MiB of %" PRIu64 " MiB", policy_regime_name(s->policy.regime),
                        mebibytes(b->actual), mebibytes(b->target));
        if (r < 0)
                return;
        status[0] = status[0] >= 'a' && status[0] <= 'z' ? status[0] - 'a' + 'A' : status[0];
        if (!s->status || !streq(s->status, status))
                (void) sd_notifyf(false, "STATUS=%s", status);
        free(s->status);
        s->status = status;
}

static void log_decision(const Sidecar *s, const PolicyDecision *d, uint64_t before) {
        const Policy *p = &s->policy;
        uint64_t available = p->sampled ? p->sample_available : POLICY_UNKNOWN;

        if (d->regime_changed)
                log_info("Now %s: host %s, guest has %" PRIi64 " MiB available, balloon has %" PRIu64 " MiB.", policy_regime_name(d->regime),
                        p->pressure ? "under pressure" : "calm",
                        available == POLICY_UNKNOWN ? INT64_C(-1) : (int64_t) mebibytes(available), mebibytes(p->balloon.actual));
        if (d->target_changed)
                log_debug("Target from %" PRIu64 " to %" PRIu64 " MiB while %s.", mebibytes(before), mebibytes(d->target),
                        policy_regime_name(d->regime));
}

static void decide(Sidecar *s) {
        uint64_t now = now_usec(), before, next;
        PolicyDecision d;
        int r;

        if (!s->begun || s->stopping || !link_is_connected(s->link))
                return;
        before = s->policy.balloon.target;
        d = policy_decide(&s->policy, now);
        log_decision(s, &d, before);
        if (d.target_changed || now >= s->resend_usec) {
                s->resend_usec = UINT64_MAX;
                link_set_target(s->link, d.target);
        }
        show_status(s);

        next = MIN(d.next_usec, s->resend_usec);
        if (next == UINT64_MAX)
                r = sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
        else {
                r = sd_event_source_set_time(s->timer, next);
                if (r >= 0)
                        r = sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
        }
        if (r < 0)
                (void) sd_event_exit(s->event, log_error_errno(r, "Cannot arm a timer: %m"));
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        decide(userdata);
        return 0;
}

static void on_pressure(int error, void *userdata) {
        Sidecar *s = userdata;

        if (error < 0) {
                s->result = log_error_errno(error, "The pressure file ended: %m");
                (void) sd_event_exit(s->event, 0);
                return;
        }
        if (!s->begun)
                return;
        policy_tell_pressure(&s->policy, now_usec());
        decide(s);
}

static void on_connected(Sidecar *s, const LinkEvent *e) {
        uint64_t now = now_usec();

        /* Another vmmd has another balloon. The same one, after this process or the connection was lost: what we took is still ours. */
        if (s->found->vmmd == 0 || s->found->vmmd != e->vmmd)
                *s->found = (Found) { .base = e->balloon.target, .vmmd = e->vmmd };
        if (!s->begun)
                policy_init(&s->policy, &s->settings.policy, e->memory, s->found->base, now);
        s->begun = true;
        s->policy.memory = e->memory;
        policy_tell_base(&s->policy, s->found->base);
        policy_tell_balloon(&s->policy, &e->balloon, now);
        if (policy_amount(s->settings.policy.keep, e->memory) >= e->memory)
                log_warning("The machine has %" PRIu64 " MiB, and shall keep all of it available: nothing will be taken.", mebibytes(e->memory));
        /* Whoever waited for the second looks at the first. */
        show_status(s);
        if (!s->ready)
                (void) sd_notify(false, "READY=1");
        s->ready = true;
        log_info("Minding a machine of %" PRIu64 " MiB; its balloon has %" PRIu64 " MiB of %" PRIu64 " MiB.", mebibytes(e->memory),
                mebibytes(e->balloon.actual), mebibytes(e->balloon.target));
}

static void on_ended(Sidecar *s, int error) {
        s->result = error;
        (void) sd_event_exit(s->event, 0);
}

static void on_target_set(Sidecar *s, int error) {
        if (s->stopping)
                (void) sd_event_exit(s->event, 0);
        else if (error < 0)
                s->resend_usec = now_usec() + RESEND_USEC;
}

/* No event says that a driver has come, and one whose balloon stays as it is makes none. But who sends statistics is there. */
static void tell_of_driver(Sidecar *s) {
        PolicyBalloon b = s->policy.balloon;

        if (b.driver)
                return;
        b.driver = true;
        policy_tell_balloon(&s->policy, &b, now_usec());
}

static void on_link(const LinkEvent *e, void *userdata) {
        Sidecar *s = userdata;

        switch (e->type) {
        case LINK_CONNECTED:
                on_connected(s, e);
                break;
        case LINK_LOST:
                policy_tell_lost(&s->policy);
                s->resend_usec = UINT64_MAX;
                show_status(s);
                /* Whoever restores it, it is not us any more. */
                if (s->stopping)
                        (void) sd_event_exit(s->event, 0);
                return;
        case LINK_BASE:
                log_info("Somebody else set the balloon's target to %" PRIu64 " MiB: that is where memory goes back to.",
                        mebibytes(e->balloon.target));
                s->found->base = e->balloon.target;
                policy_tell_base(&s->policy, e->balloon.target);
                policy_tell_balloon(&s->policy, &e->balloon, now_usec());
                break;
        case LINK_BALLOON:
                policy_tell_balloon(&s->policy, &e->balloon, now_usec());
                break;
        case LINK_STATISTICS:
                tell_of_driver(s);
                policy_tell_statistics(&s->policy, &e->statistics, now_usec());
                break;
        case LINK_RESET:
                log_info("The guest begins anew.");
                policy_tell_reset(&s->policy, now_usec());
                break;
        case LINK_TARGET_SET:
                on_target_set(s, e->error);
                break;
        case LINK_ENDED:
                on_ended(s, e->error);
                return;
        }
        decide(s);
}

/* ---- the end ---- */

static int on_restore_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        log_warning("The machine does not answer: the balloon's target is left as it is.");
        return sd_event_exit(sd_event_source_get_event(source), 0);
}

/* The guest gets back what it had: nobody minds it any more. */
static int on_stop_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Sidecar *s = userdata;
        int r;

        if (s->stopping || !s->begun || !link_is_connected(s->link) || streq(s->settings.at_exit, "keep") ||
                s->policy.balloon.target == s->policy.base)
                return sd_event_exit(s->event, 0);
        (void) sd_notifyf(false, "STOPPING=1\nSTATUS=Setting the balloon back to %" PRIu64 " MiB", mebibytes(s->policy.base));
        log_info("Setting the balloon back to %" PRIu64 " MiB.", mebibytes(s->policy.base));
        s->stopping = true;
        r = sd_event_add_time_relative(s->event, NULL, CLOCK_MONOTONIC, RESTORE_TIMEOUT_USEC, 0, on_restore_timeout, s);
        if (r < 0)
                return sd_event_exit(s->event, r);
        link_set_target(s->link, s->policy.base);
        return 0;
}

/* ---- the beginning ---- */

static int open_environment_pressure(Sidecar *s, const char **ret_path, void **ret_trigger, size_t *ret_size) {
        int r;

        r = pressure_from_environment(ret_path, ret_trigger, ret_size);
        if (r < 0)
                return log_error_errno(r, "$MEMORY_PRESSURE_WRITE: expected Base64");
        return r;
}

/* The unit's, the one that was asked for, the one that the service manager names, or the whole system's. */
static int open_pressure(Sidecar *s) {
        const char *path = s->settings.pressure;
        _cleanup_free_ void *trigger = NULL;
        _cleanup_free_ char *text = NULL;
        size_t size = 0;
        int r;

        if (s->pressure_fd < 0 && !path) {
                r = open_environment_pressure(s, &path, &trigger, &size);
                if (r < 0)
                        return r;
        }
        path = path ?: PRESSURE_PATH;
        if (s->pressure_fd < 0 && streq(path, "/dev/null")) {
                log_warning("No memory pressure is watched: nothing will be taken.");
                return 0;
        }
        if (!trigger) {
                r = asprintf(&text, "%s %" PRIu64 " %" PRIu64, s->settings.pressure_stall, s->settings.pressure_threshold_usec,
                        s->settings.pressure_window_usec);
                if (r < 0) {
                        text = NULL;
                        return log_oom();
                }
                size = (size_t) r + 1;
        }
        if (s->pressure_fd < 0)
                s->pressure_fd = pressure_open(path);
        if (s->pressure_fd < 0)
                return log_error_errno(s->pressure_fd, "%s: %m; expected a file with pressure stall information (a kernel with psi=1), open to writing, "
                        "a FIFO or a socket", path);
        r = pressure_new_fd(s->event, TAKE_FD(s->pressure_fd), trigger ?: text, size, on_pressure, s, &s->pressure);
        return r < 0 ? log_error_errno(r, "%s: cannot be watched: %m%s%s", path, text ? ". The trigger was: " : "", text ?: "") : 0;
}

static int enter_sandbox(const Sidecar *s) {
        const SandboxPolicy *policy = sandbox_policy_find(sandbox_policies, "balloon-policy");
        int r;

        if (!s->sandbox) {
                log_warning("Running without a seccomp policy, as asked.");
                return 0;
        }
        if (!policy)
                return log_error_errno(-ENOENT, "There is no seccomp policy 'balloon-policy'.");
        r = sandbox_load(policy);
        return r < 0 ? log_error_errno(r, "Cannot load the seccomp policy: %m") : 0;
}

static int make_event_loop(Sidecar *s) {
        int r;

        r = event_loop_new("vmm-balloon-policy", on_stop_signal, s, &s->event);
        if (r >= 0)
                r = sd_event_add_time(s->event, &s->timer, CLOCK_MONOTONIC, UINT64_MAX, 50 * USEC_PER_MSEC, on_timer, s);
        if (r >= 0)
                r = sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
        return r;
}

static int run(Sidecar *s) {
        int r;

        r = take_stored(s);
        if (r < 0)
                return r;
        r = make_event_loop(s);
        if (r < 0)
                return log_error_errno(r, "Cannot make the event loop: %m");
        r = open_pressure(s);
        if (r < 0)
                return r;
        r = open_found(s);
        if (r < 0)
                return r;
        r = link_new(s->event, s->settings.socket ?: s->socket, s->settings.device, s->settings.statistics_interval_usec, on_link, s, &s->link);
        if (r < 0)
                return log_error_errno(r, "Cannot prepare the connection to the machine: %m");
        r = enter_sandbox(s);
        if (r < 0)
                return r;
        r = sd_event_loop(s->event);
        (void) sd_notify(false, "STOPPING=1");
        return r < 0 ? r : s->result;
}

int main(int argc, char **argv) {
        Sidecar s = { .sandbox = true, .pressure_fd = -EBADF, .found_fd = -EBADF, .resend_usec = UINT64_MAX };
        _cleanup_free_ char *field = NULL;
        bool configured = false;
        int r;

        log_open("vmm-balloon-policy");
        r = parse_arguments(&s, argc, argv);
        if (r == 0) {
                configured = true;
                if (asprintf(&field, "VMM_MACHINE=%s", s.machine) >= 0)
                        log_add_field(field);
                else
                        field = NULL;
                r = run(&s);
        }

        (void) link_free(s.link);
        (void) pressure_free(s.pressure);
        (void) sd_event_source_disable_unref(s.timer);
        (void) sd_event_unref(s.event);
        if (s.found)
                (void) munmap(s.found, sizeof(Found));
        (void) safe_close(s.found_fd);
        (void) safe_close(s.pressure_fd);
        free(s.socket);
        free(s.status);
        if (r >= 0)
                return EXIT_SUCCESS;
        return !configured || r == -EACCES || r == -ENODEV || r == -ENOTSUP ? STATUS_CONFIGURATION : EXIT_FAILURE;
}
