/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "manager.h"

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);    \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

/* ---- the store, with the lock held ---- */

static void store_remove(Manager *m, const char *name, bool prefix) {
        size_t k = 0;

        for (size_t i = 0; i < m->n_stored; i++)
                if (prefix ? startswith(m->store[i].name, name) != NULL : streq(m->store[i].name, name))
                        (void) close(m->store[i].fd);
                else
                        m->store[k++] = m->store[i];
        m->n_stored = k;
}

static void store_add(Manager *m, const char *name, int fd) {
        for (size_t i = 0; i < m->n_stored; i++)
                if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, m->store[i].fd, fd) == 0) {
                        (void) close(fd);
                        return;
                }
        must(m->n_stored < MANAGER_STORE_MAX);
        (void) snprintf(m->store[m->n_stored].name, sizeof(m->store[0].name), "%s", name);
        m->store[m->n_stored++].fd = fd;
}

static void take_message(Manager *m, char *text, const int *fds, size_t n_fds) {
        bool store = false, remove = false;
        const char *name = "stored", *value;
        char *save = NULL;

        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                store = store || streq(line, "FDSTORE=1");
                remove = remove || streq(line, "FDSTOREREMOVE=1");
                m->n_ready += streq(line, "READY=1");
                m->n_fed += streq(line, "WATCHDOG=1");
                if ((value = startswith(line, "FDNAME=")))
                        name = value;
        }
        if (remove)
                store_remove(m, name, false);
        for (size_t i = 0; i < n_fds; i++)
                if (store && !remove)
                        store_add(m, name, fds[i]);
                else
                        (void) close(fds[i]);
        (void) pthread_cond_broadcast(&m->changed);
}

static void *manage(void *userdata) {
        Manager *m = userdata;

        for (;;) {
                char text[512] = {};
                int fds[8];
                size_t n_fds = ELEMENTSOF(fds);

                if (recv_with_fds(m->notify, text, sizeof(text) - 1, fds, &n_fds, 0) <= 0 || streq(text, "END"))
                        return NULL;
                (void) pthread_mutex_lock(&m->lock);
                take_message(m, text, fds, n_fds);
                (void) pthread_mutex_unlock(&m->lock);
        }
}

static void tell(Manager *m, const char *text, int fd) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        must(s >= 0);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->notify_path);
        must(connect(s, (struct sockaddr *) &address, sizeof(address)) == 0);
        must(send_with_fds(s, text, strlen(text), &fd, fd >= 0) > 0);
}

/* Everything that was sent before has been taken. */
static void synchronize(Manager *m) {
        int p[2];
        char byte;

        must(pipe2(p, O_CLOEXEC) == 0);
        tell(m, "BARRIER=1", p[1]);
        (void) close(p[1]);
        must(read(p[0], &byte, 1) == 0);
        (void) close(p[0]);
}

/* ---- the unit ---- */

static int listen_at(char *path, size_t size, const char *directory, const char *name) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        (void) snprintf(path, size, "%s/dev.%s", directory, name);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        must(fd >= 0 && bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(fd, 16) == 0);
        return fd;
}

static _noreturn_ void execute(Manager *m) {
        static int fds[MANAGER_STORE_MAX + 2];
        static char names[MANAGER_STORE_MAX * 64];
        char pid[16], n[16];
        const char *argv[MANAGER_ARGUMENTS_MAX + 2] = { "vmm-device" };
        size_t n_fds = 0;
        char *end = stpcpy(names, "dev.socket:dev.socket");

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        fds[n_fds++] = fcntl(m->transport, F_DUPFD_CLOEXEC, 3 * MANAGER_STORE_MAX);
        fds[n_fds++] = fcntl(m->varlink, F_DUPFD_CLOEXEC, 3 * MANAGER_STORE_MAX);
        for (size_t i = m->n_stored; i-- > 0;) {
                fds[n_fds++] = fcntl(m->store[i].fd, F_DUPFD_CLOEXEC, 3 * MANAGER_STORE_MAX);
                end = stpcpy(stpcpy(end, ":"), m->store[i].name);
        }
        for (size_t i = 0; i < n_fds; i++)
                if (fds[i] < 0 || dup2(fds[i], 3 + (int) i) < 0)
                        _exit(126);
        (void) snprintf(pid, sizeof(pid), "%d", (int) getpid());
        (void) snprintf(n, sizeof(n), "%zu", n_fds);
        (void) setenv("LISTEN_PID", pid, 1);
        (void) setenv("LISTEN_FDS", n, 1);
        (void) setenv("LISTEN_FDNAMES", names, 1);
        (void) setenv("NOTIFY_SOCKET", m->notify_path, 1);
        if (m->watchdog_usec) {
                (void) setenv("WATCHDOG_USEC", m->watchdog_usec, 1);
                (void) setenv("WATCHDOG_PID", pid, 1);
        }
        for (size_t i = 0; m->arguments[i]; i++)
                argv[i + 1] = m->arguments[i];
        (void) execv(getenv("VMM_DEVICE"), (char *const *) argv);
        _exit(127);
}

void manager_start(Manager *m) {
        unsigned before;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        before = m->n_ready;
        m->pid = fork();
        must(m->pid >= 0);
        if (m->pid == 0)
                execute(m);
        while (m->n_ready == before) {
                struct timespec until;

                (void) clock_gettime(CLOCK_REALTIME, &until);
                until.tv_sec += 60;
                must(pthread_cond_timedwait(&m->changed, &m->lock, &until) == 0);
        }
        (void) pthread_mutex_unlock(&m->lock);
}

pid_t manager_start_traced(Manager *m) {
        pid_t pid;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        pid = fork();
        must(pid >= 0);
        if (pid == 0) {
                if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
                        _exit(125);
                (void) raise(SIGSTOP);
                execute(m);
        }
        (void) pthread_mutex_unlock(&m->lock);
        return pid;
}

int manager_start_failing(Manager *m) {
        int status;
        pid_t pid;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        pid = fork();
        must(pid >= 0);
        if (pid == 0)
                execute(m);
        (void) pthread_mutex_unlock(&m->lock);
        must(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
        return WEXITSTATUS(status);
}

void manager_prepare(Manager *m, const char *transport, const char *const *arguments) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        *m = (Manager) { .directory = "/tmp/test-device-XXXXXX", .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
        for (size_t i = 0; arguments[i]; i++) {
                must(i + 1 < MANAGER_ARGUMENTS_MAX);
                m->arguments[i] = arguments[i];
        }
        must(mkdtemp(m->directory));
        m->transport = listen_at(m->transport_path, sizeof(m->transport_path), m->directory, transport);
        m->varlink = listen_at(m->varlink_path, sizeof(m->varlink_path), m->directory, "varlink");
        m->notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        (void) snprintf(m->notify_path, sizeof(m->notify_path), "%s/notify", m->directory);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->notify_path);
        must(bind(m->notify, (struct sockaddr *) &address, sizeof(address)) == 0);
        must(pthread_create(&m->thread, NULL, manage, m) == 0);
}

void manager_give(Manager *m, const char *name, int fd) {
        (void) pthread_mutex_lock(&m->lock);
        store_add(m, name, fd);
        (void) pthread_mutex_unlock(&m->lock);
}

void manager_up(Manager *m, const char *transport, const char *const *arguments) {
        manager_prepare(m, transport, arguments);
        manager_start(m);
}

void manager_kill(Manager *m) {
        int status;

        must(kill(m->pid, SIGKILL) == 0);
        must(waitpid(m->pid, &status, 0) == m->pid);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
                fprintf(stderr, "# the helper ended by itself, status 0x%x\n", (unsigned) status);
                abort();
        }
        m->pid = 0;
        synchronize(m);
}

void manager_down(Manager *m) {
        int status = 0;

        if (m->pid > 0) {
                must(kill(m->pid, SIGTERM) == 0);
                must(waitpid(m->pid, &status, 0) == m->pid);
                if (status != 0) {
                        fprintf(stderr, "# the helper ended with status 0x%x\n", (unsigned) status);
                        abort();
                }
        }
        tell(m, "END", -EBADF);
        must(pthread_join(m->thread, NULL) == 0);
        store_remove(m, "", true);
        (void) close(m->transport);
        (void) close(m->varlink);
        (void) close(m->notify);
        (void) unlink(m->transport_path);
        (void) unlink(m->varlink_path);
        (void) unlink(m->notify_path);
        must(rmdir(m->directory) == 0);
}

/* ---- at random ---- */

static void *kill_at_random(void *userdata) {
        Manager *m = userdata;
        unsigned seed = (unsigned) getpid();

        for (unsigned i = 0; i < m->n_kills; i++) {
                uint64_t usec = (uint64_t) rand_r(&seed) % (2 * m->kill_interval_usec);

                (void) usleep((useconds_t) usec);
                manager_restart(m);
        }
        /* PR_SET_PDEATHSIG is about the thread that forked: its end will be one death more, when somebody is there to see to it. */
        __atomic_store_n(&m->killing, false, __ATOMIC_RELEASE);
        (void) pthread_mutex_lock(&m->lock);
        while (!m->killer_may_end)
                (void) pthread_cond_wait(&m->changed, &m->lock);
        (void) pthread_mutex_unlock(&m->lock);
        return NULL;
}

void manager_kill_at_random(Manager *m, unsigned n, uint64_t interval_usec) {
        m->n_kills = n;
        m->kill_interval_usec = interval_usec;
        m->killing = true;
        m->killer_may_end = false;
        must(pthread_create(&m->killer, NULL, kill_at_random, m) == 0);
}

bool manager_is_killing(Manager *m) {
        return __atomic_load_n(&m->killing, __ATOMIC_ACQUIRE);
}

void manager_wait_for_kills(Manager *m) {
        int status;

        (void) pthread_mutex_lock(&m->lock);
        m->killer_may_end = true;
        (void) pthread_cond_broadcast(&m->changed);
        (void) pthread_mutex_unlock(&m->lock);
        must(pthread_join(m->killer, NULL) == 0);
        must(waitpid(m->pid, &status, 0) == m->pid && WIFSIGNALED(status));
        manager_start(m);
}

/* ---- looking ---- */

size_t manager_count(Manager *m, const char *prefix) {
        size_t n = 0;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        for (size_t i = 0; i < m->n_stored; i++)
                n += startswith(m->store[i].name, prefix) != NULL;
        (void) pthread_mutex_unlock(&m->lock);
        return n;
}

bool manager_is_fed(Manager *m, unsigned n) {
        struct timespec until;
        unsigned enough;
        int r = 0;

        synchronize(m);
        (void) clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 60;
        (void) pthread_mutex_lock(&m->lock);
        enough = m->n_fed + n;
        while (m->n_fed < enough && r == 0)
                r = pthread_cond_timedwait(&m->changed, &m->lock, &until);
        r = m->n_fed >= enough;
        (void) pthread_mutex_unlock(&m->lock);
        return r;
}

int manager_peek(Manager *m, const char *name) {
        int fd = -EBADF;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        for (size_t i = 0; i < m->n_stored; i++)
                if (streq(m->store[i].name, name))
                        fd = fcntl(m->store[i].fd, F_DUPFD_CLOEXEC, 3);
        (void) pthread_mutex_unlock(&m->lock);
        must(fd >= 0);
        return fd;
}

void manager_drop(Manager *m, const char *prefix) {
        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        store_remove(m, prefix, true);
        (void) pthread_mutex_unlock(&m->lock);
}
