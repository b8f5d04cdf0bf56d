/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <json-c/json.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "foreign.h"
#include "json-util.h"
#include "notify.h"

/* How long a program may take from a front-end's first message to its own, where nothing else was said: it may have to derive a key first. */
#define ANSWER_TIMEOUT_USEC (60 * USEC_PER_SEC)
/* Nothing tells that a socket which is there is listened on now. */
#define LISTEN_RETRY_USEC (10 * USEC_PER_MSEC)
/* How long it may take to end, once it was asked to. */
#define STOP_TIMEOUT_USEC (10 * USEC_PER_SEC)
/* Between its last word and its end, where it ends. */
#define DYING_USEC USEC_PER_SEC
#define EXIT_NOT_RUN 203 /* as systemd has it */

Foreign *foreign_of(Device *d) {
        return device_data(d);
}

/* --- the command line --- */

int foreign_add(Foreign *f, const char *format, ...) {
        char **grown = reallocarray(f->arguments, f->n_arguments + 2, sizeof(char *));
        va_list ap;
        int r;

        if (!grown)
                return log_oom();
        f->arguments = grown;
        va_start(ap, format);
        r = vasprintf(&grown[f->n_arguments], format, ap);
        va_end(ap);
        if (r < 0) {
                grown[f->n_arguments] = NULL;
                return log_oom();
        }
        grown[++f->n_arguments] = NULL;
        return 0;
}

int foreign_keep(Foreign *f, int fd) {
        int *grown = reallocarray(f->kept, f->n_kept + 1, sizeof(int));

        if (!grown) {
                (void) safe_close(fd);
                return log_oom();
        }
        f->kept = grown;
        f->kept[f->n_kept++] = fd;
        return fd;
}

int foreign_file(Foreign *f, const char *name, int fd) {
        int r = 0;

        if (!f->files)
                r = foreign_files_new(&f->files);
        if (r < 0) {
                (void) safe_close(fd);
                return log_error_errno(r, "Cannot have the kernel ask us for the program's files: %m");
        }
        r = foreign_files_add(f->files, name, fd);
        return r < 0 ? log_oom() : 0;
}

/* In a directory of its own: nobody else may connect to it. */
static int make_path(Foreign *f) {
        char directory[] = "/tmp/vmm-device-XXXXXX";

        if (!mkdtemp(directory))
                return log_error_errno(errno, "Cannot make a directory for the program's socket: %m");
        f->directory = strdup(directory);
        if (!f->directory || asprintf(&f->socket_path, "%s/socket", directory) < 0) {
                f->socket_path = NULL;
                return log_oom();
        }
        return 0;
}

/* Its path is short: of our own making. */
static void program_address(const Foreign *f, struct sockaddr_un *ret) {
        *ret = (struct sockaddr_un) { .sun_family = AF_UNIX };
        (void) snprintf(ret->sun_path, sizeof(ret->sun_path), "%s", f->socket_path ?: "");
}

static int make_listening(Foreign *f) {
        struct sockaddr_un address;
        int fd, r;

        r = make_path(f);
        if (r < 0)
                return r;
        fd = foreign_keep(f, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        program_address(f, &address);
        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, 1) < 0)
                return log_error_errno(errno, "Cannot make the program's socket: %m");
        return fd;
}

/* The number is taken by something until the connection is there. */
static int make_connected(Foreign *f) {
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

        if (fd < 0)
                return log_error_errno(errno, "Cannot open /dev/null: %m");
        f->connected_fd = foreign_keep(f, fd);
        return f->connected_fd;
}

int foreign_socket(Foreign *f, ForeignSocket kind) {
        assert(f->socket == FOREIGN_SOCKET_NONE);
        f->socket = kind;
        switch (kind) {
        case FOREIGN_SOCKET_LISTENING:
                return make_listening(f);
        case FOREIGN_SOCKET_CONNECTED:
                return make_connected(f);
        case FOREIGN_SOCKET_PATH:
                return make_path(f);
        default:
                assert(false);
                return -EINVAL;
        }
}

/* --- the program's process --- */

/* Between fork and exec: nothing here allocates, and whatever goes wrong is said on standard error, which is the journal. */
static int take_connection(const Foreign *f, int from) {
        int fd = -EBADF;
        size_t n_fds = 1;
        char byte;
        ssize_t n;

        n = recv_with_fds(from, &byte, sizeof(byte), &fd, &n_fds, 0);
        if (n <= 0 || n_fds != 1)
                return -ENOTCONN; /* our parent ended before there was a front-end */
        return dup2(fd, f->connected_fd) < 0 ? -errno : 0;
}

static int become_program(const Foreign *f, pid_t parent, int null_fd, int from) {
        static const int ours[] = { SIGTERM, SIGINT, SIGCHLD, SIGPIPE };
        /* What the service manager told us is not for it. */
        const char *const environment[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8", f->variable, NULL };
        sigset_t none;
        int r;

        /* A group of its own: what it starts itself ends with it. */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent || setpgid(0, 0) < 0)
                return -ESRCH;
        (void) safe_close(f->connection_to); /* so that it closes with our parent's */
        (void) sigemptyset(&none);
        for (size_t i = 0; i < ELEMENTSOF(ours); i++)
                (void) signal(ours[i], SIG_DFL);
        if (sigprocmask(SIG_SETMASK, &none, NULL) < 0 || dup2(null_fd, STDIN_FILENO) < 0)
                return -errno;
        /* It has what is its own and nothing else, whatever we were started with. */
        if (close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
                return -errno;
        r = f->files ? foreign_files_enter(f->files) : 0;
        if (r >= 0 && from >= 0)
                r = take_connection(f, from);
        if (r < 0)
                return r;
        for (size_t i = 0; i < f->n_kept; i++)
                if (fcntl(f->kept[i], F_SETFD, 0) < 0)
                        return -errno;
        (void) execve(f->arguments[0], f->arguments, (char *const *) environment);
        return -errno;
}

static _noreturn_ void run_child(const Foreign *f, pid_t parent, int null_fd, int from) {
        int r = become_program(f, parent, null_fd, from);

        if (r != -ENOTCONN && r != -ESRCH)
                (void) dprintf(STDERR_FILENO, "<3>Cannot run %s: %s\n", f->arguments[0], strerrordesc_np(-r));
        _exit(EXIT_NOT_RUN);
}

static int on_exited(sd_event_source *source, int fd, uint32_t revents, void *userdata);

static int start_program(Foreign *f) {
        _cleanup_close_ int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC), from = -EBADF;
        pid_t parent = getpid();
        int pair[2], r;

        if (null_fd < 0)
                return log_error_errno(errno, "Cannot open /dev/null: %m");
        if (f->socket == FOREIGN_SOCKET_CONNECTED) {
                if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                        return log_error_errno(errno, "Cannot make a socket pair: %m");
                f->connection_to = pair[0];
                from = pair[1];
        }
        f->pid = fork();
        if (f->pid < 0) {
                f->pid = 0;
                return log_error_errno(errno, "Cannot fork: %m");
        }
        if (f->pid == 0)
                run_child(f, parent, null_fd, from);
        f->pidfd = (int) syscall(SYS_pidfd_open, f->pid, 0);
        if (f->pidfd < 0)
                return log_error_errno(errno, "Cannot watch %s: %m", f->arguments[0]);
        r = sd_event_add_io(device_event(f->device), &f->exit_source, f->pidfd, EPOLLIN, on_exited, f);
        if (r < 0)
                return log_error_errno(r, "Cannot watch %s: %m", f->arguments[0]);
        if (f->files) {
                r = foreign_files_serve(f->files, device_event(f->device));
                if (r < 0)
                        return log_error_errno(r, "Cannot have the kernel ask us for the files of %s: %m", f->arguments[0]);
        }
        /* Only the program's own ends count from now on: where it closes one, whoever is at the other sees it. */
        for (size_t i = 0; i < f->n_kept; i++)
                f->kept[i] = safe_close(f->kept[i]);
        f->n_kept = 0;
        return 0;
}

static int check_program(const Foreign *f) {
        const char *program = f->arguments[0];

        if (access(program, X_OK) >= 0 || f->class->connect)
                return 0;
        if (errno == ENOENT && f->class->package)
                return log_error_errno(-ENOENT, "There is no %s, which Debian has in the package %s.", program, f->class->package);
        return log_error_errno(errno, "Cannot run %s: %m", program);
}

int foreign_open(Device *d) {
        Foreign *f = calloc(1, sizeof(Foreign));
        int r;

        if (!f)
                return log_oom();
        *f = (Foreign) {
                .device = d,
                .class = d->class->foreign,
                .answer_timeout_usec = ANSWER_TIMEOUT_USEC,
                .connected_fd = -EBADF,
                .connection_to = -EBADF,
                .pidfd = -EBADF,
                .waiting = -EBADF,
        };
        device_set_data(d, f);
        r = f->class->prepare(f);
        if (r >= 0)
                r = check_program(f);
        if (r >= 0)
                r = start_program(f);
        if (r >= 0 && f->class->started)
                r = f->class->started(f);
        return r;
}

/* --- its end --- */

/* To the log, and to who asks the service manager. */
static void say_how_it_ended(const Foreign *f, const siginfo_t *how) {
        _cleanup_free_ char *text = NULL;
        int r;

        if (how->si_code != CLD_EXITED)
                r = asprintf(&text, "%s was ended by signal %s.", f->arguments[0], sigabbrev_np(how->si_status) ?: "?");
        else if (how->si_status == EXIT_NOT_RUN)
                r = asprintf(&text, "%s could not be run; the log says why.", f->arguments[0]);
        else
                r = asprintf(&text, "%s ended with status %d.", f->arguments[0], how->si_status);
        if (r < 0)
                text = NULL;
        log_error("%s", text ?: "The program has ended.");
        if (text)
                notify_status("", "%s", text);
}

static uint64_t grace(const Foreign *f) {
        return f->class->grace_usec ?: STOP_TIMEOUT_USEC;
}

static void drop_front_end(Foreign *f) {
        f->answer_source = sd_event_source_disable_unref(f->answer_source);
        f->connect_source = sd_event_source_disable_unref(f->connect_source);
        f->waiting = safe_close(f->waiting);
        f->device->relay = relay_free(f->device->relay);
}

/* Ours and its: a program may end when its front-end has left; one that ends while it is needed has failed, whatever it says of itself. */
static int on_exited(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Foreign *f = userdata;
        siginfo_t how = {};
        bool wanted;

        if (waitid(P_PID, (id_t) f->pid, &how, WEXITED | WNOHANG) < 0 || how.si_pid == 0)
                return 0;
        f->exit_source = sd_event_source_disable_unref(f->exit_source);
        (void) kill(-f->pid, SIGKILL);
        f->pid = 0;
        wanted = f->class->ended ? f->class->ended(f, &how) : f->front_end_left && how.si_code == CLD_EXITED && how.si_status == 0;
        if (!wanted)
                say_how_it_ended(f, &how);
        drop_front_end(f);
        return sd_event_exit(device_event(f->device), wanted ? 0 : -ECHILD);
}

static int fail(Foreign *f, const char *what) {
        log_error("%s %s.", f->arguments[0], what);
        drop_front_end(f);
        return sd_event_exit(device_event(f->device), -ETIMEDOUT);
}

/* It is given time to write what it still has. */
static void stop_program(Foreign *f) {
        struct pollfd p = { .fd = f->pidfd, .events = POLLIN };
        siginfo_t how;

        if (f->pid == 0)
                return;
        f->connection_to = safe_close(f->connection_to);
        (void) kill(f->pid, SIGTERM);
        if (f->pidfd >= 0 && poll(&p, 1, (int) (grace(f) / USEC_PER_MSEC)) <= 0)
                log_warning("%s does not end when it is asked to.", f->arguments[0]);
        (void) kill(-f->pid, SIGKILL);
        (void) kill(f->pid, SIGKILL); /* where it was killed before it had a group */
        (void) waitid(P_PID, (id_t) f->pid, &how, WEXITED);
        f->pid = 0;
}

void foreign_close(Device *d) {
        Foreign *f = foreign_of(d);

        if (!f)
                return;
        drop_front_end(f);
        f->exit_source = sd_event_source_disable_unref(f->exit_source);
        stop_program(f);
        f->class->close(f);
        (void) foreign_files_free(f->files);
        for (size_t i = 0; i < f->n_kept; i++)
                (void) safe_close(f->kept[i]);
        free(f->kept);
        for (size_t i = 0; i < f->n_arguments; i++)
                free(f->arguments[i]);
        free(f->arguments);
        free(f->variable);
        (void) safe_close(f->pidfd);
        (void) safe_close(f->connection_to);
        if (f->socket_path)
                (void) unlink(f->socket_path);
        if (f->directory)
                (void) rmdir(f->directory);
        free(f->socket_path);
        free(f->directory);
        free(f);
}

/* --- its front-end --- */

static void on_answered(void *userdata) {
        Foreign *f = userdata;

        f->answer_source = sd_event_source_disable_unref(f->answer_source);
}

static void on_changed(void *userdata) {
        Foreign *f = userdata;

        device_changed(f->device);
}

static int on_no_answer(sd_event_source *source, uint64_t usec, void *userdata) {
        return fail(userdata, "does not answer its front-end");
}

/* It serves on, whatever it had against that front-end. */
static int on_lives(sd_event_source *source, uint64_t usec, void *userdata) {
        Foreign *f = userdata;

        f->answer_source = sd_event_source_disable_unref(f->answer_source);
        f->device->session_ended(f->device);
        return 0;
}

/* It was told long before, and has had its time. */
static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Foreign *f = userdata;

        log_warning("%s does not end without its front-end, and is killed.", f->arguments[0]);
        return kill(-f->pid, SIGKILL) < 0 && kill(f->pid, SIGKILL) < 0 ? -errno : 0;
}

static int on_no_end(sd_event_source *source, uint64_t usec, void *userdata) {
        return fail(userdata, "has no front-end any more and does not end");
}

static void on_relay_ended(RelayEnd end, void *userdata) {
        Foreign *f = userdata;
        Device *d = f->device;

        f->front_end_left = end == RELAY_FRONT_END_LEFT;
        if (!f->front_end_left)
                log_warning("%s closed the connection.", f->arguments[0]);
        drop_front_end(f);
        device_changed(d);
        /* The next front-end is the next program's, which is the next process of ours: this one ends when the program has. And one that
         * hangs up is most often dying. */
        if (f->class->one_session)
                (void) sd_event_add_time_relative(device_event(d), &f->answer_source, CLOCK_MONOTONIC, STOP_TIMEOUT_USEC, 0, on_no_end, f);
        else if (!f->front_end_left)
                (void) sd_event_add_time_relative(device_event(d), &f->answer_source, CLOCK_MONOTONIC, DYING_USEC, 0, on_lives, f);
        else
                d->session_ended(d);
}

int foreign_end_soon(Foreign *f) {
        f->answer_source = sd_event_source_disable_unref(f->answer_source);
        return sd_event_add_time_relative(device_event(f->device), &f->answer_source, CLOCK_MONOTONIC, grace(f), 0, on_grace_over, f);
}

static int begin_relay(Foreign *f, int front_end, int back_end) {
        const RelayHandlers handlers = { .answered = on_answered, .changed = on_changed, .ended = on_relay_ended, .userdata = f };
        int r;

        r = relay_new(device_event(f->device), front_end, back_end, &f->addition, &handlers, &f->device->relay);
        if (r < 0)
                return r;
        device_changed(f->device);
        return 0;
}

/* Does not wait where nobody accepts. */
static int connect_to_program(const Foreign *f) {
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct sockaddr_un address;

        program_address(f, &address);
        if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

/* Connects, or tries again a little later where the program does not listen yet. The time-out for its answer goes on. */
static int try_to_connect(Foreign *f);

static int on_connect_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        Foreign *f = userdata;
        int r;

        r = try_to_connect(f);
        return r < 0 ? sd_event_exit(device_event(f->device), r) : 0;
}

static int try_to_connect(Foreign *f) {
        int fd;

        f->connect_source = sd_event_source_disable_unref(f->connect_source);
        fd = connect_to_program(f);
        if (fd >= 0)
                return begin_relay(f, TAKE_FD(f->waiting), fd);
        if (fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN)
                return log_error_errno(fd, "Cannot connect to the socket of %s: %m", f->arguments[0]);
        return sd_event_add_time_relative(device_event(f->device), &f->connect_source, CLOCK_MONOTONIC, LISTEN_RETRY_USEC, 0, on_connect_retry, f);
}

/* The child becomes the program with it. */
static int give_connection(Foreign *f) {
        _cleanup_close_ int theirs = -EBADF, ours = -EBADF;
        int pair[2];
        ssize_t n;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        ours = pair[0];
        theirs = pair[1];
        n = send_with_fds(f->connection_to, "", 1, &theirs, 1);
        if (n < 0)
                return (int) n;
        f->connection_to = safe_close(f->connection_to);
        return begin_relay(f, TAKE_FD(f->waiting), TAKE_FD(ours));
}

int foreign_connect(Device *d, int connection) {
        Foreign *f = foreign_of(d);
        int r;

        f->front_end_left = false;
        if (f->class->connect)
                return f->class->connect(f, connection);
        f->waiting = connection;
        r = sd_event_add_time_relative(d->event, &f->answer_source, CLOCK_MONOTONIC, f->answer_timeout_usec, 0, on_no_answer, f);
        if (r < 0)
                return r;
        return f->socket == FOREIGN_SOCKET_CONNECTED ? give_connection(f) : try_to_connect(f);
}

void foreign_describe(Device *d, json_object *into) {
        Foreign *f = foreign_of(d);

        (void) json_add_string(into, "program", f->arguments[0]);
        (void) json_add_integer(into, "programPid", f->pid);
        if (f->class->describe)
                f->class->describe(f, into);
}
