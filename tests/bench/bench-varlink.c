/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Varlink: calls per second on one connection, beside varlink-go's server in the same run and by the same client where that is
 * installed; and how long an event takes from the publisher to its subscribers, when there are few, many, and one that does not
 * read. Server and client are two processes, each with one thread. One JSON object a figure. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "json-util.h"
#include "stream.h"

#define ROUNDS 5
#define ROUND_USEC (400 * USEC_PER_MSEC)
#define PIPELINE 64
#define SUBSCRIBERS_MAX 1000

static const char text[] =
        "interface io.vmmd.bench\n"
        "method Subscribe() -> (published: ?int, name: ?string, actual: ?int, sequence: int, missed: int)\n";
static const char call_info[] = "{\"method\":\"org.varlink.service.GetInfo\",\"parameters\":{}}";
static const char call_subscribe[] = "{\"method\":\"io.vmmd.bench.Subscribe\",\"more\":true}";

static uint64_t now_nsec(void) {
        struct timespec t;
        (void) clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * NSEC_PER_SEC + (uint64_t) t.tv_nsec;
}

static int compare(const void *a, const void *b) {
        const uint64_t *x = a, *y = b;
        return (*x > *y) - (*x < *y);
}

static void report(const char *name, const char *unit, uint64_t *samples, size_t n) {
        qsort(samples, n, sizeof(*samples), compare);
        (void) printf("{\"benchmark\":\"%s\",\"unit\":\"%s\",\"rounds\":%zu,\"min\":%llu,\"median\":%llu,\"p99\":%llu,\"max\":%llu}\n", name, unit, n,
                (unsigned long long) samples[0], (unsigned long long) samples[n / 2], (unsigned long long) samples[n * 99 / 100],
                (unsigned long long) samples[n - 1]);
        (void) fflush(stdout);
}

/* ---- the server's process ---- */

typedef struct Publisher {
        VarlinkStream *stream;
        int trigger; /* a byte is one event, its end is the end */
        int64_t actual;
} Publisher;

static int on_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Publisher *p = userdata;
        return varlink_stream_add(p->stream, call, NULL, UINT64_MAX, NULL, NULL, NULL);
}

static int on_trigger(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        _cleanup_json_ json_object *event = json_object_new_object();
        Publisher *p = userdata;
        char byte;
        int r;

        if (read(fd, &byte, 1) != 1)
                return sd_event_exit(sd_event_source_get_event(source), 0);
        /* The clock runs from here: the event is made, checked, written and sent in that time. */
        r = json_add_integer(event, "published", (int64_t) now_nsec());
        if (r >= 0)
                r = json_add_string(event, "name", "balloon");
        if (r >= 0)
                r = json_add_integer(event, "actual", p->actual++);
        return r < 0 ? r : varlink_stream_publish(p->stream, 0, "balloon", event);
}

static int serve(int listen_fd, int trigger) {
        static const VarlinkMethod methods[] = { { "Subscribe", on_subscribe, VARLINK_METHOD_REQUIRES_MORE, 0 }, {} };
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        Publisher p = { .trigger = trigger };
        sd_event *event = NULL;
        int r;

        r = sd_event_new(&event);
        if (r >= 0)
                r = varlink_server_new(&server, event);
        if (r >= 0)
                r = varlink_server_set_info(server, "Varlink", "Benchmark", "1", "https://varlink.org/");
        if (r >= 0)
                r = varlink_stream_new(&p.stream, 0);
        if (r >= 0)
                r = varlink_server_add_interface(server, text, methods, &p);
        if (r >= 0)
                r = varlink_server_listen_fd(server, listen_fd);
        if (r >= 0)
                r = sd_event_add_io(event, NULL, trigger, EPOLLIN, on_trigger, &p);
        if (r >= 0)
                r = sd_event_loop(event);
        p.stream = varlink_stream_free(p.stream);
        return r;
}

typedef struct Server {
        pid_t pid;
        int trigger;
        struct sockaddr_un address;
        socklen_t address_size;
} Server;

static int server_start(Server *s) {
        int fd, trigger[2];

        s->address = (struct sockaddr_un) { .sun_family = AF_UNIX };
        s->address_size = sizeof(s->address);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        /* An address of the kernel's choice. */
        if (fd < 0 || bind(fd, (struct sockaddr *) &s->address, sizeof(sa_family_t)) < 0 || listen(fd, 4096) < 0 ||
                getsockname(fd, (struct sockaddr *) &s->address, &s->address_size) < 0 || pipe2(trigger, O_CLOEXEC) < 0)
                return -errno;
        s->pid = fork();
        if (s->pid < 0)
                return -errno;
        if (s->pid == 0) {
                (void) safe_close(trigger[1]);
                _exit(serve(fd, trigger[0]) < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
        }
        (void) safe_close(fd);
        (void) safe_close(trigger[0]);
        s->trigger = trigger[1];
        return 0;
}

static void server_stop(Server *s) {
        (void) safe_close(s->trigger);
        (void) waitpid(s->pid, NULL, 0);
}

static int server_connect(const Server *s) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0 || connect(fd, (const struct sockaddr *) &s->address, s->address_size) < 0)
                return -errno;
        return fd;
}

/* ---- calls per second ---- */

/* Reads replies (whatever they say) until `n` are there. */
static int read_replies(int fd, unsigned n) {
        char buffer[65536];

        while (n > 0) {
                ssize_t got = read(fd, buffer, sizeof(buffer));
                if (got <= 0)
                        return -ECONNRESET;
                for (ssize_t i = 0; i < got; i++)
                        n -= buffer[i] == 0;
        }
        return 0;
}

/* Calls for a while, `depth` at a time. Returns calls per second. */
static int64_t measure_calls(int fd, unsigned depth) {
        char calls[PIPELINE * sizeof(call_info)];
        uint64_t begin = now_usec(), end, n = 0;
        int r;

        for (unsigned i = 0; i < depth; i++)
                memcpy(calls + i * sizeof(call_info), call_info, sizeof(call_info));
        do {
                r = write_full(fd, calls, depth * sizeof(call_info));
                if (r >= 0)
                        r = read_replies(fd, depth);
                if (r < 0)
                        return r;
                n += depth;
                end = now_usec();
        } while (end - begin < ROUND_USEC);
        return (int64_t) (n * USEC_PER_SEC / (end - begin));
}

/* varlink-go's own test server, where there is one; -ENOENT where not. */
static int start_go(char *directory, pid_t *ret_pid) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char argument[sizeof("unix:") + sizeof(address.sun_path)];
        pid_t pid;

        if (!mkdtemp(directory))
                return -errno;
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", directory);
        (void) snprintf(argument, sizeof(argument), "unix:%s", address.sun_path);
        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) execlp("varlink-go-certification", "varlink-go-certification", "-varlink", argument, NULL);
                _exit(127);
        }
        *ret_pid = pid;
        for (uint64_t end = now_usec() + 5 * USEC_PER_SEC; now_usec() < end;) {
                int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

                if (fd < 0)
                        return -errno;
                if (connect(fd, (struct sockaddr *) &address, sizeof(address)) >= 0)
                        return fd;
                (void) safe_close(fd);
                if (waitpid(pid, NULL, WNOHANG) == pid) {
                        *ret_pid = 0;
                        return -ENOENT;
                }
                (void) usleep(10000);
        }
        return -ETIMEDOUT;
}

static int bench_calls(void) {
        static const unsigned depths[] = { 1, PIPELINE };
        static const char *const names[] = { "Varlink calls", "Varlink calls, 64 at a time" },
                                 *const peers[] = { "varlink-go's calls", "varlink-go's calls, 64 at a time" };
        uint64_t ours[ELEMENTSOF(depths)][ROUNDS], theirs[ELEMENTSOF(depths)][ROUNDS], ratios[ROUNDS];
        char directory[] = "/tmp/vmm-bench.XXXXXX", path[64];
        int fd, go, r = 0;
        pid_t pid = 0;
        Server s;

        r = server_start(&s);
        if (r < 0)
                return r;
        fd = server_connect(&s);
        go = start_go(directory, &pid);
        /* In turns, so that whatever else the machine does hits both. */
        for (unsigned round = 0; round < ROUNDS && r >= 0; round++)
                for (size_t i = 0; i < ELEMENTSOF(depths) && r >= 0; i++) {
                        int64_t n = measure_calls(fd, depths[i]), m = go >= 0 ? measure_calls(go, depths[i]) : 0;

                        ours[i][round] = (uint64_t) n;
                        theirs[i][round] = (uint64_t) m;
                        r = n < 0 ? (int) n : m < 0 ? (int) m : 0;
                }
        for (size_t i = 0; i < ELEMENTSOF(depths) && r >= 0; i++) {
                for (unsigned round = 0; round < ROUNDS && go >= 0; round++)
                        ratios[round] = ours[i][round] * 100 / theirs[i][round];
                report(names[i], "calls/s", ours[i], ROUNDS);
                if (go < 0)
                        continue;
                report(peers[i], "calls/s", theirs[i], ROUNDS);
                report(i == 0 ? "Varlink calls to varlink-go's" : "Varlink calls to varlink-go's, 64 at a time", "percent", ratios, ROUNDS);
        }
        (void) safe_close(fd);
        (void) safe_close(go);
        server_stop(&s);
        if (pid > 0) {
                (void) kill(pid, SIGKILL);
                (void) waitpid(pid, NULL, 0);
        }
        (void) snprintf(path, sizeof(path), "%s/socket", directory);
        (void) unlink(path);
        (void) rmdir(directory);
        return r;
}

/* ---- events ---- */

typedef struct Reader {
        int fd;
        size_t size;
        char buffer[512]; /* one event that is not whole yet */
} Reader;

/* Reads one subscriber's events; returns how many it got, and puts each one's way in nanoseconds into `samples`. */
static int read_events(Reader *r, uint64_t *samples, size_t room) {
        ssize_t n = recv(r->fd, r->buffer + r->size, sizeof(r->buffer) - r->size - 1, MSG_DONTWAIT);
        uint64_t now = now_nsec();
        int events = 0;
        char *begin = r->buffer, *end;

        if (n <= 0)
                return n < 0 && errno == EAGAIN ? 0 : -ECONNRESET;
        r->size += (size_t) n;
        while ((end = memchr(begin, 0, r->size - (size_t) (begin - r->buffer)))) {
                const char *published = strstr(begin, "\"published\":");

                if (published && (size_t) events < room)
                        samples[events++] = now - strtoull(published + strlen("\"published\":"), NULL, 10);
                begin = end + 1;
        }
        r->size -= (size_t) (begin - r->buffer);
        memmove(r->buffer, begin, r->size);
        return events;
}

static int subscribe(const Server *s, Reader *r, int epoll_fd) {
        struct epoll_event e = { .events = EPOLLIN, .data.ptr = r };

        r->fd = server_connect(s);
        if (r->fd < 0)
                return r->fd;
        if (write_full(r->fd, call_subscribe, sizeof(call_subscribe)) < 0 || read_replies(r->fd, 1) < 0)
                return -ECONNRESET;
        return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, r->fd, &e) < 0 ? -errno : 0;
}

/* One event, until all have it. Returns the time of the last one, or a negative errno. */
static int64_t measure_event(int trigger, int epoll_fd, size_t n, uint64_t *samples) {
        uint64_t last = 0;

        if (write(trigger, "", 1) != 1)
                return -errno;
        for (size_t done = 0; done < n;) {
                struct epoll_event events[256];
                int k = epoll_wait(epoll_fd, events, ELEMENTSOF(events), 10000);

                if (k <= 0)
                        return k < 0 ? -errno : -ETIMEDOUT;
                for (int i = 0; i < k; i++) {
                        int got = read_events(events[i].data.ptr, samples + done, n - done);
                        if (got < 0)
                                return got;
                        for (int j = 0; j < got; j++)
                                last = MAX(last, samples[done + (size_t) j]);
                        done += (size_t) got;
                }
        }
        return (int64_t) last;
}

static int bench_events(size_t n, size_t events, bool stalled) {
        _cleanup_free_ Reader *readers = calloc(n, sizeof(*readers));
        _cleanup_free_ uint64_t *samples = calloc(n * events, sizeof(*samples)), *lasts = calloc(events, sizeof(*lasts));
        _cleanup_close_ int epoll_fd = epoll_create1(EPOLL_CLOEXEC), deaf = -EBADF;
        const char *beside = stalled ? " and one that stalls" : "", *plural = n == 1 ? "" : "s";
        char name[128];
        Server s;
        int r;

        if (!readers || !samples || !lasts || epoll_fd < 0)
                return -ENOMEM;
        r = server_start(&s);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                readers[i].fd = -EBADF;
        for (size_t i = 0; i < n && r >= 0; i++) {
                r = subscribe(&s, &readers[i], epoll_fd);
                if (r >= 0 && stalled && i == n / 2) {
                        deaf = server_connect(&s);
                        r = deaf < 0 ? deaf : write_full(deaf, call_subscribe, sizeof(call_subscribe));
                }
        }
        /* The first ones fill the stalled one's socket, and the caches. */
        for (size_t i = 0; i < (stalled ? 400 : 20) && r >= 0; i++)
                r = (int) MIN(measure_event(s.trigger, epoll_fd, n, samples), (int64_t) 0);
        for (size_t i = 0; i < events && r >= 0; i++) {
                int64_t last = measure_event(s.trigger, epoll_fd, n, samples + i * n);
                r = last < 0 ? (int) last : 0;
                lasts[i] = (uint64_t) last;
        }
        if (r >= 0) {
                (void) snprintf(name, sizeof(name), "event to %zu subscriber%s%s", n, plural, beside);
                report(name, "ns", samples, n * events);
                (void) snprintf(name, sizeof(name), "event to the last of %zu subscriber%s%s", n, plural, beside);
                if (n > 1)
                        report(name, "ns", lasts, events);
        }
        for (size_t i = 0; i < n; i++)
                (void) safe_close(readers[i].fd);
        server_stop(&s);
        return r;
}

int main(void) {
        struct rlimit limit;
        int r;

        if (getrlimit(RLIMIT_NOFILE, &limit) >= 0) {
                limit.rlim_cur = limit.rlim_max;
                (void) setrlimit(RLIMIT_NOFILE, &limit);
        }
        r = bench_calls();
        if (r >= 0)
                r = bench_events(1, 5000, false);
        if (r >= 0)
                r = bench_events(100, 1000, false);
        if (r >= 0)
                r = bench_events(SUBSCRIBERS_MAX, 300, false);
        if (r >= 0)
                r = bench_events(SUBSCRIBERS_MAX, 300, true);
        if (r < 0)
                (void) fprintf(stderr, "bench-varlink: %s\n", strerror(-r));
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
