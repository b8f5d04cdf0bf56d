/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "catalog-ids.h"
#include "config.h"
#include "hotplug.h"
#include "json-util.h"
#include "log.h"
#include "machine-device.h"
#include "machine-internal.h"
#include "reload.h"

#define INTERFACE "io.vmmd.Machine"

/* How long the new program may take to say what it takes; and the last vCPU, which may wait for a helper, to park. */
#define ANSWER_USEC (10 * USEC_PER_SEC)
#define PAUSE_USEC (10 * USEC_PER_SEC)
/* How long the successor may take before the guest runs, in seconds. */
#define TAKE_OVER_SEC 10
#define ANSWER_SIZE_MAX 4096

struct Reload {
        Machine *machine;
        ReloadConfig config;

        /* while one is under way */
        VarlinkCall *call;
        int new_fd;
        pid_t child;
        int answer_fd; /* what the child says; from then on the child itself, until it has ended */
        char answer[ANSWER_SIZE_MAX];
        size_t answer_size;
        sd_event_source *answer_source, *timer, *turn;
        ReloadKeeper *keeper;
        bool notified; /* the service manager was told that it is under way */
        uint64_t paused_usec;
};

int reload_new(Machine *m, const ReloadConfig *config, Reload **ret) {
        Reload *r = calloc(1, sizeof(Reload));

        if (!r)
                return -ENOMEM;
        *r = (Reload) { .machine = m, .config = *config, .new_fd = -EBADF, .answer_fd = -EBADF };
        m->reload = r;
        *ret = r;
        return 0;
}

static void end_child(Reload *r) {
        r->answer_source = sd_event_source_disable_unref(r->answer_source);
        r->answer_fd = safe_close(r->answer_fd);
        if (r->child > 0) {
                (void) kill(r->child, SIGKILL);
                (void) waitpid(r->child, NULL, 0);
        }
        r->child = 0;
}

/* It is not under way any more. */
static void settle(Reload *r) {
        end_child(r);
        r->timer = sd_event_source_disable_unref(r->timer);
        r->turn = sd_event_source_disable_unref(r->turn);
        r->new_fd = safe_close(r->new_fd);
        r->keeper = reload_keeper_free(r->keeper);
        r->call = varlink_call_unref(r->call);
        if (r->notified)
                (void) sd_notify(false, "READY=1");
        r->notified = false;
}

Reload *reload_free(Reload *r) {
        if (!r)
                return NULL;
        if (r->machine->reload == r)
                r->machine->reload = NULL;
        settle(r);
        return mfree(r);
}

static void fail(Reload *r, const char *reason) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        _cleanup_(varlink_call_unrefp) VarlinkCall *call = TAKE_PTR(r->call);

        log_id(LOG_WARNING, MESSAGE_RELOAD_FAILED, "The program was not replaced: %s", reason);
        settle(r);
        if (!parameters || json_add_string(parameters, "reason", reason) < 0)
                (void) varlink_call_error_errno(call, -ENOMEM);
        else
                (void) varlink_call_error(call, INTERFACE ".ReloadFailed", parameters);
}

/* --- what is in the way --- */

static bool is_right_state(const Machine *m) {
        return !m->ended && m->started && m->stopping == STOPPING_NOT && (m->state == MACHINE_RUNNING || m->state == MACHINE_PAUSED);
}

/* NULL: nothing is. The caller frees it. */
static char *obstacle(Machine *m) {
        char *text;

        if (m->plugin)
                return strdup("The machine's hardware is a plugin's, and would not know another vmmd.");
        if (m->snapshot)
                return strdup("A snapshot is just being taken.");
        if (m->restore)
                return strdup("The machine goes on from a snapshot, of which not all is there yet.");
        text = hotplug_obstacle(m->hotplug);
        return text ?: machine_devices_obstacle(m);
}

/* --- the new program is asked --- */

static int open_programs(Reload *r) {
        struct stat st;

        r->new_fd = open(r->config.executable, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (r->new_fd < 0)
                return -errno;
        if (fstat(r->new_fd, &st) < 0)
                return -errno;
        return S_ISREG(st.st_mode) ? 0 : -ENOEXEC;
}

static int make_question(int *ret) {
        _cleanup_close_ int fd = memfd_create("vmmd-sections", MFD_CLOEXEC);
        _cleanup_free_ char *text = NULL;
        int r;

        if (fd < 0)
                return -errno;
        r = reload_sections_text(&text);
        if (r >= 0)
                r = write_full(fd, text, strlen(text));
        if (r < 0)
                return r;
        if (lseek(fd, 0, SEEK_SET) < 0)
                return -errno;
        *ret = TAKE_FD(fd);
        return 0;
}

/* The child has what it asks by as standard input, and nothing else of ours. Its path is that of the descriptor, so that what answers is what is executed. */
static int spawn(Reload *r, int question_fd, int answer_fd) {
        char path[64], *arguments[] = { (char *) "vmmd", (char *) "--accepts-state", NULL };
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        sigset_t none;
        int error;

        (void) snprintf(path, sizeof(path), "/proc/self/fd/%i", r->new_fd);
        (void) sigemptyset(&none);
        error = posix_spawn_file_actions_init(&actions);
        if (error != 0)
                return -error;
        error = posix_spawnattr_init(&attributes);
        if (error == 0)
                error = posix_spawnattr_setsigmask(&attributes, &none);
        if (error == 0)
                error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
        if (error == 0)
                error = posix_spawn_file_actions_adddup2(&actions, question_fd, STDIN_FILENO);
        if (error == 0)
                error = posix_spawn_file_actions_adddup2(&actions, answer_fd, STDOUT_FILENO);
        if (error == 0)
                error = posix_spawn_file_actions_adddup2(&actions, answer_fd, STDERR_FILENO);
        if (error == 0)
                error = posix_spawn(&r->child, path, &actions, &attributes, arguments, environ);
        (void) posix_spawn_file_actions_destroy(&actions);
        (void) posix_spawnattr_destroy(&attributes);
        if (error != 0)
                r->child = 0;
        return -error;
}

static void pause_guest(Reload *r);

static void answered(Reload *r) {
        _cleanup_free_ char *message = NULL;
        pid_t child = r->child;
        int status = 0;

        r->child = 0;
        if (waitpid(child, &status, 0) < 0)
                status = -1;
        end_child(r);
        r->timer = sd_event_source_disable_unref(r->timer);
        while (r->answer_size > 0 && (unsigned char) r->answer[r->answer_size - 1] <= ' ')
                r->answer_size--;
        r->answer[r->answer_size] = 0;
        if (status == 0 && streq(r->answer, RELOAD_ACCEPTED)) {
                pause_guest(r);
                return;
        }
        (void) set_message(&message, 0, "The program that is installed now cannot take over: %s.",
                status == 0 ? "it is no vmmd that could be asked" : r->answer_size > 0 ? r->answer : "it failed without a reason");
        fail(r, message ?: "The program that is installed now cannot take over.");
}

static int on_ended(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        answered(userdata);
        return 0;
}

/* It has nothing more to say. That it ends is not for us to wait for: one that goes on has as long as one that says nothing. */
static void await_end(Reload *r) {
        _cleanup_free_ char *reason = NULL;
        int k;

        r->answer_source = sd_event_source_disable_unref(r->answer_source);
        r->answer_fd = safe_close(r->answer_fd);
        r->answer_fd = pidfd_open(r->child, 0);
        k = r->answer_fd < 0 ? -errno : sd_event_add_io(r->machine->event, &r->answer_source, r->answer_fd, EPOLLIN, on_ended, r);
        if (k >= 0)
                return;
        (void) set_message(&reason, 0, "The program that is installed now cannot be waited for: %s.", strerror(-k));
        fail(r, reason ?: strerror(-k));
}

static int on_answer(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Reload *r = userdata;
        ssize_t n = read(fd, r->answer + r->answer_size, sizeof(r->answer) - 1 - r->answer_size);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n > 0 && r->answer_size + (size_t) n < sizeof(r->answer) - 1) {
                r->answer_size += (size_t) n;
                return 0;
        }
        if (n > 0)
                fail(r, "The program that is installed now is no vmmd: it says more than one would.");
        else
                await_end(r);
        return 0;
}

static int on_no_answer(sd_event_source *s, uint64_t usec, void *userdata) {
        fail(userdata, "The program that is installed now does not say whether it can take over.");
        return 0;
}

static int ask(Reload *r) {
        _cleanup_close_ int question = -EBADF, theirs = -EBADF;
        sd_event *event = r->machine->event;
        int p[2], k;

        k = make_question(&question);
        if (k < 0)
                return k;
        if (pipe2(p, O_CLOEXEC | O_NONBLOCK) < 0)
                return -errno;
        r->answer_fd = p[0];
        theirs = p[1];
        r->answer_size = 0;
        k = spawn(r, question, theirs);
        if (k >= 0)
                k = sd_event_add_io(event, &r->answer_source, r->answer_fd, EPOLLIN, on_answer, r);
        if (k >= 0)
                k = sd_event_add_time_relative(event, &r->timer, CLOCK_MONOTONIC, ANSWER_USEC, 0, on_no_answer, r);
        return k;
}

static int wrong_state(VarlinkCall *call, const Machine *m) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "state", machine_state_to_string(m->state)) < 0)
                return -ENOMEM;
        return varlink_call_error(call, INTERFACE ".WrongState", parameters);
}

bool reload_is_under_way(const Reload *r) {
        return r && r->call;
}

int reload_begin(Reload *r, VarlinkCall *call) {
        _cleanup_free_ char *reason = NULL;
        int k;

        if (r->call || !is_right_state(r->machine))
                return wrong_state(call, r->machine);
        r->call = varlink_call_ref(call);
        reason = obstacle(r->machine);
        if (!reason && r->machine->goal != GOAL_NONE)
                reason = strdup("The machine is just pausing or resuming.");
        if (!reason) {
                k = open_programs(r);
                if (k < 0)
                        (void) set_message(&reason, 0, "%s cannot be executed: %s.", r->config.executable, strerror(-k));
        }
        if (!reason) {
                k = ask(r);
                if (k < 0)
                        (void) set_message(&reason, 0, "%s cannot be asked: %s.", r->config.executable, strerror(-k));
        }
        if (reason)
                fail(r, reason);
        return 0;
}

/* --- the guest pauses --- */

/* As if nothing had been. */
static void run_on(Reload *r) {
        Machine *m = r->machine;

        m->goal = GOAL_NONE;
        m->done = NULL;
        machine_hold_interrupts(m, false);
        /* Also one that was asked to power off meanwhile: it is to see that. */
        if (m->state != MACHINE_PAUSED)
                vcpu_set_resume(&m->vcpus, false);
}

static int on_not_paused(sd_event_source *s, uint64_t usec, void *userdata) {
        Reload *r = userdata;

        run_on(r);
        fail(r, "A vCPU waits for a helper, and did not pause in time.");
        return 0;
}

/* Another goal came: reset, or the end. */
static void on_goal(Machine *m, int error, void *userdata) {
        machine_hold_interrupts(m, false);
        fail(userdata, "The machine was reset, or ended, meanwhile.");
}

static void pause_guest(Reload *r) {
        _cleanup_free_ char *reason = NULL;
        Machine *m = r->machine;
        int k;

        if (!is_right_state(m) || m->goal != GOAL_NONE)
                reason = strdup("The machine is just doing something else.");
        else
                reason = obstacle(m);
        if (reason) {
                fail(r, reason);
                return;
        }
        if (m->ready_sent) {
                (void) sd_notifyf(false, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, now_usec());
                r->notified = true;
        }
        k = sd_event_add_time_relative(m->event, &r->timer, CLOCK_MONOTONIC, PAUSE_USEC, 0, on_not_paused, r);
        if (k < 0) {
                fail(r, strerror(-k));
                return;
        }
        k = reload_keeper_new(&r->keeper);
        if (k < 0)
                (void) log_debug_errno(k, "Nobody can keep what this program leaves, and it is taken apart while the guest stands still: %m");
        machine_set_goal(m, GOAL_RELOAD, on_goal, r);
        r->paused_usec = now_usec();
        vcpu_set_pause(&m->vcpus);
}

/* --- what the successor is given --- */

static int put_memory(const Machine *m, Handover *h) {
        state_begin(h->writer, "guest-memory", 0, 1);
        state_put_u32(h->writer, (uint32_t) m->memory.n_regions);
        for (size_t i = 0; i < m->memory.n_regions; i++) {
                const GuestRegion *region = &m->memory.regions[i];

                handover_put_fd(h, region->fd);
                state_put_u64(h->writer, region->fd_offset);
                state_put_u64(h->writer, region->guest_address);
                state_put_u64(h->writer, region->size);
        }
        return state_end(h->writer);
}

static void put_files(const Reload *r, Handover *h) {
        const MachineFiles *files = &r->machine->files;

        handover_put_fd(h, files->kernel_fd);
        handover_put_fd(h, files->initrd_fd);
        state_put_u32(h->writer, (uint32_t) files->n_others);
        for (size_t i = 0; i < files->n_others; i++) {
                state_put_string(h->writer, files->others[i].name);
                handover_put_fd(h, files->others[i].fd);
        }
        state_put_u32(h->writer, (uint32_t) r->config.n_listen_fds);
        for (size_t i = 0; i < r->config.n_listen_fds; i++)
                handover_put_fd(h, r->config.listen_fds[i]);
}

static int put_process(const Reload *r, Handover *h) {
        _cleanup_free_ char *events = NULL;
        StateWriter *w = h->writer;
        int k;

        k = control_save_events(r->config.control, &events);
        if (k < 0)
                return k;
        state_begin(w, "reload", 0, 2);
        state_put_string(w, PROJECT_VERSION);
        state_put_string(w, r->config.executable);
        state_put_string(w, r->config.definition_text);
        put_files(r, h);
        handover_put_fd(h, varlink_call_is_oneway(r->call) ? -EBADF : varlink_call_peer_fd(r->call));
        /* Not for any use: KVM takes its time to take a virtual machine apart, which execve() would wait for while the guest stands still. */
        handover_put_fd(h, r->machine->kvm.vm_fd);
        reload_keeper_put(r->keeper, h);
        state_put_string(w, events);
        state_put_u64(w, control_event_sequence(r->config.control));
        state_put_u32(w, (uint32_t) log_get_max_level());
        state_put_u64(w, r->paused_usec);
        return state_end(w);
}

static int write_state(const Reload *r, Handover *h) {
        int k;

        k = put_process(r, h);
        if (k >= 0)
                k = put_memory(r->machine, h);
        if (k >= 0)
                k = machine_hand_over(r->machine, h);
        if (k >= 0)
                k = machine_save(r->machine, h->writer);
        return k < 0 ? k : handover_end(h);
}

static int seal(const void *data, size_t size, int *ret) {
        _cleanup_close_ int fd = memfd_create("vmmd-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        int r;

        if (fd < 0)
                return -errno;
        r = write_full(fd, data, size);
        if (r < 0)
                return r;
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
                return -errno;
        *ret = TAKE_FD(fd);
        return 0;
}

/* Every section is one that the new program was asked about. */
static int check_own(const void *data, size_t size, char **ret_message) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        int r;

        r = state_reader_new(data, size, &reader, ret_message);
        return r < 0 ? r : reload_sections_verify(reader, ret_message);
}

static int make_state(const Reload *r, Handover *h, int *ret, char **ret_message) {
        const void *data;
        size_t size;
        int k;

        k = write_state(r, h);
        if (k >= 0)
                k = state_writer_finish(h->writer, &data, &size);
        if (k < 0)
                return set_message(ret_message, k, "The machine's state cannot be written: %s.", strerror(-k));
        k = check_own(data, size, ret_message);
        return k < 0 ? k : seal(data, size, ret);
}

/* --- the step --- */

/* Returns only where it fails. */
static int execute(int program_fd, int state_fd, int previous_fd, const char *name, const char *runtime_directory, const char *failure) {
        _cleanup_free_ char *state = NULL, *previous = NULL, *directory = NULL, *why = NULL;
        char *arguments[7] = { (char *) "vmmd" };
        size_t n = 1;

        if (asprintf(&state, "--resume-fd=%i", state_fd) < 0 || asprintf(&directory, "--runtime-directory=%s", runtime_directory) < 0)
                return -ENOMEM;
        if (previous_fd >= 0 && asprintf(&previous, "--previous-fd=%i", previous_fd) < 0)
                return -ENOMEM;
        if (failure && asprintf(&why, "--resume-failure=%s", failure) < 0)
                return -ENOMEM;
        arguments[n++] = state;
        arguments[n++] = directory;
        if (previous)
                arguments[n++] = previous;
        if (why)
                arguments[n++] = why;
        arguments[n] = (char *) name;
        (void) fexecve(program_fd, arguments, environ);
        return -errno;
}

static int leave(const Reload *r, Handover *h, char **ret_message) {
        _cleanup_close_ int state_fd = -EBADF, previous_fd = -EBADF;
        int k;

        previous_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        if (previous_fd < 0)
                return set_message(ret_message, -errno, "The program that runs cannot be kept: %s.", strerror(errno));
        k = make_state(r, h, &state_fd, ret_message);
        if (k < 0)
                return k;
        if (fcntl(state_fd, F_SETFD, 0) < 0 || fcntl(previous_fd, F_SETFD, 0) < 0)
                return -errno;
        k = handover_keep(h, true);
        if (k >= 0)
                k = execute(r->new_fd, state_fd, previous_fd, r->machine->definition->name, r->config.runtime_directory, NULL);
        (void) handover_keep(h, false);
        return set_message(ret_message, k, "%s cannot be executed: %s.", r->config.executable, strerror(-k));
}

static void go(Reload *r) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(handover_done) Handover h = {};
        _cleanup_free_ char *reason = NULL;
        int k = 0;

        /* The successor would know nothing of a timer that runs for the guest's end. */
        reason = is_right_state(r->machine) ? obstacle(r->machine) : strdup("The machine was asked to power off meanwhile.");
        if (!reason && is_right_state(r->machine)) {
                machine_hold_interrupts(r->machine, true);
                k = state_writer_new(&w);
                h.writer = w;
                if (k >= 0)
                        k = leave(r, &h, &reason);
        }
        run_on(r);
        fail(r, reason ?: strerror(-k));
}

static int on_turn(sd_event_source *s, void *userdata) {
        Reload *r = userdata;
        Machine *m = r->machine;

        r->turn = sd_event_source_disable_unref(r->turn);
        if (m->goal != GOAL_RELOAD || m->ended)
                return 0;
        /* A vCPU's last word is to be heard first: a reset, or the end. */
        if (atomic_load(&m->requests) != 0)
                reload_paused(r);
        else
                go(r);
        return 0;
}

/* On a turn of its own: whoever says that the vCPUs are parked may have more to say. */
void reload_paused(Reload *r) {
        int k = 0;

        if (!r->turn)
                k = sd_event_add_defer(r->machine->event, &r->turn, on_turn, r);
        if (k >= 0)
                return;
        run_on(r);
        fail(r, strerror(-k));
}

/* --- the successor --- */

void reload_give_way(int state_fd, int previous_fd, const char *failure, const char *name, const char *runtime_directory, const char *reason) {
        int r;

        (void) alarm(0); /* execve() would leave it to the other */
        /* Its own successor failed already: there is nobody else. */
        if (previous_fd < 0 || failure) {
                log_error("The machine cannot be taken up again: %s", reason);
                return;
        }
        log_error("The machine cannot be taken over, and goes back to the program before: %s", reason);
        /* It has no use for the descriptor of itself: each attempt would leave one. */
        (void) fcntl(previous_fd, F_SETFD, FD_CLOEXEC);
        r = execute(previous_fd, state_fd, -EBADF, name, runtime_directory, reason);
        log_error("The program before cannot be executed: %s", strerror(-r));
}

/* What a handler of signals may do is little: all that it needs is made before. */
static struct {
        char state[32], *directory;
        const char *name;
        int previous_fd;
} guard = { .previous_fd = -EBADF };

static const int guarded[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM };

static void on_trouble(int signal) {
        const char *why = signal == SIGALRM ? "--resume-failure=The program did not take the machine over in time." :
                signal == SIGABRT           ? "--resume-failure=The program aborted while it took the machine over." :
                                              "--resume-failure=The program crashed while it took the machine over.";
        const char *arguments[] = { "vmmd", guard.state, guard.directory, why, guard.name, NULL };

        (void) alarm(0);
        (void) fcntl(guard.previous_fd, F_SETFD, FD_CLOEXEC);
        (void) fexecve(guard.previous_fd, (char **) arguments, environ);
        _exit(MACHINE_RESULT_ERROR);
}

/* The signal is not blocked meanwhile: the program that it gives way to would have it so from the beginning. */
static void handle_trouble(void) {
        const struct sigaction action = { .sa_handler = on_trouble, .sa_flags = SA_NODEFER | SA_ONSTACK };

        for (size_t i = 0; i < ELEMENTSOF(guarded); i++)
                (void) sigaction(guarded[i], &action, NULL);
}

void reload_guard(int state_fd, int previous_fd, const char *failure, const char *name, const char *runtime_directory) {
        static uint8_t stack[KIB(64)]; /* where it is the stack that is at its end */
        const stack_t other = { .ss_sp = stack, .ss_size = sizeof(stack) };

        if (previous_fd < 0 || failure || asprintf(&guard.directory, "--runtime-directory=%s", runtime_directory) < 0)
                return;
        (void) snprintf(guard.state, sizeof(guard.state), "--resume-fd=%i", state_fd);
        guard.name = name;
        guard.previous_fd = previous_fd;
        (void) sigaltstack(&other, NULL);
        handle_trouble();
        (void) alarm(TAKE_OVER_SEC);
}

/* Who has taken a signal for himself meanwhile, as the watchdog does, keeps it. */
static void end_guard(void) {
        const struct sigaction plain = { .sa_handler = SIG_DFL };

        if (guard.previous_fd < 0)
                return;
        (void) alarm(0);
        for (size_t i = 0; i < ELEMENTSOF(guarded); i++) {
                struct sigaction now;

                if (sigaction(guarded[i], NULL, &now) >= 0 && now.sa_handler == on_trouble)
                        (void) sigaction(guarded[i], &plain, NULL);
        }
        guard.directory = mfree(guard.directory);
        guard.previous_fd = -EBADF;
}

static void get_files(Inheritance *i) {
        Handover *h = &i->handover;
        uint32_t n;

        i->kernel_fd = handover_get_fd(h);
        i->initrd_fd = handover_get_fd(h);
        n = state_get_u32(h->reader);
        for (; i->n_files < n && i->n_files < ELEMENTSOF(i->files) && h->error == 0; i->n_files++) {
                i->files[i->n_files].name = state_get_string(h->reader, KIB(1));
                i->files[i->n_files].fd = handover_get_fd(h);
        }
        if (i->n_files < n && h->error == 0)
                h->error = -EBADMSG;
        n = state_get_u32(h->reader);
        for (; i->n_listen_fds < n && i->n_listen_fds < ELEMENTSOF(i->listen_fds) && h->error == 0; i->n_listen_fds++)
                i->listen_fds[i->n_listen_fds] = handover_get_fd(h);
        if (i->n_listen_fds < n && h->error == 0)
                h->error = -EBADMSG;
}

static bool is_whole(const Inheritance *i) {
        for (size_t k = 0; k < i->n_files; k++)
                if (!i->files[k].name || i->files[k].fd < 0)
                        return false;
        for (size_t k = 0; k < i->n_listen_fds; k++)
                if (i->listen_fds[k] < 0)
                        return false;
        return i->version && i->executable && i->definition_text;
}

static int get_process(Inheritance *i, char **ret_message) {
        StateReader *reader = i->reader;
        unsigned version;
        uint32_t level;
        int r;

        r = state_enter(reader, "reload", 0, 2);
        if (r < 0)
                return set_message(ret_message, r, "This is no state that a program left to its successor.");
        version = (unsigned) r;
        i->version = state_get_string(reader, 64);
        i->executable = state_get_string(reader, KIB(4));
        i->definition_text = state_get_string(reader, MIB(4));
        get_files(i);
        i->caller_fd = handover_get_fd(&i->handover);
        (void) safe_close(handover_get_fd(&i->handover)); /* the old virtual machine, which goes with the originals */
        if (version >= 2) {
                r = reload_keeper_get(&i->handover, &i->keeper);
                if (r < 0)
                        return r;
                i->events = state_get_string(reader, MIB(1));
        }
        i->sequence = state_get_u64(reader);
        level = state_get_u32(reader);
        i->paused_usec = state_get_u64(reader);
        r = state_leave(reader, ret_message);
        if (r >= 0)
                r = handover_end(&i->handover);
        if (r >= 0 && (!is_whole(i) || level > LOG_DEBUG))
                r = set_message(ret_message, -EBADMSG, "The state's section 'reload' is not whole.");
        if (r >= 0)
                log_set_max_level((int) level);
        return r;
}

int inheritance_open(int state_fd, int previous_fd, const char *failure, Inheritance **ret, char **ret_message) {
        _cleanup_(inheritance_freep) Inheritance *i = calloc(1, sizeof(Inheritance));
        int r;

        if (!i)
                return -ENOMEM;
        *i = (Inheritance) { .state_fd = state_fd, .previous_fd = previous_fd, .failure = failure, .kernel_fd = -EBADF, .initrd_fd = -EBADF,
                             .caller_fd = -EBADF };
        if (lseek(state_fd, 0, SEEK_SET) < 0)
                return set_message(ret_message, -errno, "There is no state to take up: %s.", strerror(errno));
        r = read_whole_fd(state_fd, MIB(256), &i->data, &i->size);
        if (r < 0)
                return set_message(ret_message, r, "The state cannot be read: %s.", strerror(-r));
        r = state_reader_new(i->data, i->size, &i->reader, ret_message);
        if (r >= 0)
                r = reload_sections_verify(i->reader, ret_message);
        i->handover.reader = i->reader;
        if (r >= 0)
                r = get_process(i, ret_message);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(i);
        return 0;
}

Inheritance *inheritance_free(Inheritance *i) {
        if (!i)
                return NULL;
        handover_done(&i->handover);
        (void) state_reader_free(i->reader);
        free(i->data);
        free(i->version);
        free(i->executable);
        free(i->definition_text);
        free(i->events);
        for (size_t k = 0; k < i->n_files; k++)
                free((char *) i->files[k].name);
        (void) safe_close(i->caller_fd);
        (void) reload_keeper_free(i->keeper);
        return mfree(i);
}

/* The answer that the predecessor owes, in Varlink's words: no call of ours is behind it. */
static int make_answer(const Inheritance *i, uint64_t pause, json_object **ret) {
        _cleanup_json_ json_object *answer = json_object_new_object(), *parameters = json_object_new_object();
        int r = answer && parameters ? 0 : -ENOMEM;

        if (r >= 0 && i->failure) {
                r = json_add_string(answer, "error", INTERFACE ".ReloadFailed");
                if (r >= 0)
                        r = json_add_string(parameters, "reason", i->failure);
        } else if (r >= 0) {
                r = json_add_string(parameters, "version", PROJECT_VERSION);
                if (r >= 0)
                        r = json_add_string(parameters, "previousVersion", i->version);
                if (r >= 0)
                        r = json_add_integer(parameters, "pause", (int64_t) pause);
        }
        if (r >= 0)
                r = json_add(answer, "parameters", TAKE_PTR(parameters));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(answer);
        return 0;
}

static void answer_caller(Inheritance *i, uint64_t pause, VarlinkServer *server) {
        _cleanup_json_ json_object *answer = NULL;
        const char *text;
        size_t size;

        if (i->caller_fd < 0 || make_answer(i, pause, &answer) < 0)
                return;
        text = json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN);
        size = text ? strlen(text) + 1 : 0;
        /* A socket that has no room for so little belongs to somebody who does not read. */
        if (size > 0 && send(i->caller_fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t) size)
                (void) varlink_server_adopt_connection(server, TAKE_FD(i->caller_fd));
}

int inheritance_commit(Inheritance *i, Machine *m, VarlinkServer *server, Control *control) {
        uint64_t pause;
        int r;

        end_guard();
        r = machine_go_on(m);
        if (r < 0)
                return r;
        pause = now_usec() - i->paused_usec;
        r = control_load_events(control, i->events, i->sequence);
        if (r < 0)
                (void) log_warning_errno(r, "What was told of the machine so far cannot be taken over, and subscribers hear of a gap: %m");
        answer_caller(i, pause, server);
        handover_commit(&i->handover);
        reload_keeper_dismiss(TAKE_PTR(i->keeper), m->event);
        i->state_fd = safe_close(i->state_fd);
        i->previous_fd = safe_close(i->previous_fd);
        if (i->failure)
                log_id(LOG_WARNING, MESSAGE_RELOAD_FAILED, "The program was not replaced: %s", i->failure);
        else
                log_id(LOG_INFO, MESSAGE_RELOADED, "Version %s took over from version %s; the vCPUs stood still for %" PRIu64 ".%03" PRIu64 " ms.",
                        PROJECT_VERSION, i->version, pause / USEC_PER_MSEC, pause % USEC_PER_MSEC);
        if (m->ready_sent)
                (void) sd_notify(false, "READY=1");
        return 0;
}
