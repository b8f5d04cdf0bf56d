/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include "history.h"
#include "log.h"
#include "passed.h"
#include "terminal.h"

#define CLIENTS_MAX 32
#define INPUT_MAX 4096
/* Somebody who writes as fast as the guest reads does not keep the event loop for himself. */
#define PTY_READS_PER_TURN 16
/* How far a client may lag behind at least, however short the history is that the definition asks for. */
#define RING_MIN KIB(64)
/* Input is there for a while after it was taken: terminal_rewind_input(). */
#define INPUT_RING ((size_t) 2 * INPUT_MAX)
#define KEPT_VERSION 1

/* A position in a stream, moved on by a system call. The kernel writes how far it went into this memory before the process can be ended: so a successor knows
 * it, whenever that was. There are two of each, and what begins is written beside what holds. */
typedef struct KeptPosition {
        uint64_t begin;
        struct mmsghdr message; /* of it, msg_len counts */
} KeptPosition;

typedef struct KeptStream {
        KeptPosition at[2];
        uint32_t which, padding;
} KeptStream;

typedef struct KeptClient {
        uint8_t used, input_ended, padding[6];
        KeptStream sent;     /* in the ring: up to here it was sent */
        uint64_t may_lose;   /* of the history it is shown first: bytes that may be overwritten before it reads them */
} KeptClient;

/* What outlives the process, in the unit's descriptor store. Nobody else has it. */
typedef struct KeptTerminal {
        uint32_t version, ring_size;
        uint64_t id;         /* when it began: positions of another one mean nothing here */
        uint64_t end;        /* of what the guest wrote */
        KeptStream input;    /* where it ends */
        uint64_t taken;      /* up to here by the guest */
        uint64_t pty_position;
        KeptClient clients[CLIENTS_MAX];
        uint8_t input_ring[INPUT_RING];
        uint8_t ring[];
} KeptTerminal;

typedef struct Client {
        struct Client *next;
        Terminal *terminal;
        KeptClient *kept;
        int fd;
        sd_event_source *source;
        bool wants_out;      /* its socket was full */
} Client;

typedef struct Pty {
        int fd, inotify_fd;
        sd_event_source *source, *inotify_source;
        char *path;
        bool open;          /* somebody has the other side open */
        bool unread;        /* there may be input that we had no room for */
} Pty;

struct Terminal {
        sd_event *event; /* borrowed */
        size_t history_size;
        History ring;
        void (*input)(void *userdata);
        void *userdata;

        Client *clients;
        unsigned n_clients;
        Pty pty;
        int log_fd;

        KeptTerminal *kept;
        size_t kept_size;
        bool mapped;
        PassedFds *passed; /* NULL: the memory is ours alone */
        char *name;

        LogRateLimit dropped, lost, log_failed;
};

/* ---- what is kept ---- */

static uint64_t stream_position(const KeptStream *s) {
        const KeptPosition *p = &s->at[s->which];

        return p->begin + p->message.msg_len;
}

static void stream_set(KeptStream *s, uint64_t position) {
        uint32_t other = s->which ? 0 : 1;

        s->at[other] = (KeptPosition) { .begin = position };
        __atomic_store_n(&s->which, other, __ATOMIC_RELEASE);
}

/* sendmsg() or recvmsg(), of which a successor knows how far it came. Returns like these. */
static ssize_t stream_move(KeptStream *s, int fd, void *data, size_t length, bool out) {
        struct iovec iov = { .iov_base = data, .iov_len = length };
        struct mmsghdr *message;
        int r;

        stream_set(s, stream_position(s));
        message = &s->at[s->which].message;
        message->msg_hdr = (struct msghdr) { .msg_iov = &iov, .msg_iovlen = 1 };
        r = out ? sendmmsg(fd, message, 1, MSG_DONTWAIT | MSG_NOSIGNAL) : recvmmsg(fd, message, 1, MSG_DONTWAIT, NULL);
        /* Somebody who wrote, and left without reading what was sent to him: this call says that first, and once, where recvmsg() begins with what he wrote. */
        if (r < 0 && !out && errno == ECONNRESET)
                r = recvmmsg(fd, message, 1, MSG_DONTWAIT, NULL);
        return r < 0 ? -1 : (ssize_t) message->msg_len;
}

static uint64_t input_end(const Terminal *t) {
        return stream_position(&t->kept->input);
}

static size_t n_pending(const Terminal *t) {
        return (size_t) (input_end(t) - t->kept->taken);
}

static char *client_name(const Terminal *t, const KeptClient *k) {
        char *name;

        return asprintf(&name, "%s-client-%u", t->name, (unsigned) (k - t->kept->clients)) < 0 ? NULL : name;
}

static Client *client_free(Client *c) {
        if (!c)
                return NULL;
        (void) sd_event_source_disable_unref(c->source);
        (void) safe_close(c->fd);
        free(c);
        return NULL;
}
DEFINE_CLEANUP(Client, client_free)

static void client_drop(Client *c) {
        Terminal *t = c->terminal;

        for (Client **p = &t->clients; *p; p = &(*p)->next)
                if (*p == c) {
                        *p = c->next;
                        t->n_clients--;
                        break;
                }
        c->kept->used = false;
        if (t->passed) {
                _cleanup_free_ char *name = client_name(t, c->kept);

                /* The service manager's copy of it lives a little longer than ours. */
                (void) shutdown(c->fd, SHUT_RDWR);
                if (name)
                        (void) passed_fds_forget(t->passed, name);
        }
        (void) client_free(c);
}

/* What was rewound may be more than is taken from clients. */
static size_t input_room(const Terminal *t) {
        return INPUT_MAX - MIN(n_pending(t), (size_t) INPUT_MAX);
}

static void client_watch(Client *c) {
        uint32_t events = (c->wants_out ? EPOLLOUT : 0) | (!c->kept->input_ended && input_room(c->terminal) > 0 ? EPOLLIN : 0);

        (void) sd_event_source_set_io_events(c->source, events);
}

/* Sends what the client has not seen, as far as its socket takes it. A negative errno: it is gone. */
static int client_flush(Client *c) {
        Terminal *t = c->terminal;
        const void *data;
        size_t n;

        c->wants_out = false;
        while ((n = history_span(&t->ring, stream_position(&c->kept->sent), &data)) > 0) {
                ssize_t sent = stream_move(&c->kept->sent, c->fd, (void *) data, n, true);

                if (sent < 0 && errno == EINTR)
                        continue;
                if (sent < 0 && errno == EAGAIN) {
                        c->wants_out = true;
                        return 0;
                }
                if (sent < 0)
                        return -errno;
        }
        c->kept->may_lose = 0;
        return 0;
}

/* Takes what a client typed. 0; 1 at the end of its input; or a negative errno. */
static int read_input(Terminal *t, int fd, bool is_socket) {
        size_t at = input_end(t) % INPUT_RING, room = MIN(input_room(t), INPUT_RING - at);
        uint8_t *to = t->kept->input_ring + at;
        ssize_t n;

        if (room == 0)
                return 0;
        n = is_socket ? stream_move(&t->kept->input, fd, to, room, false) : read(fd, to, room);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0)
                return 1;
        if (!is_socket)
                stream_set(&t->kept->input, input_end(t) + (uint64_t) n);
        return 0;
}

static void watch_clients(Terminal *t) {
        for (Client *c = t->clients; c; c = c->next)
                client_watch(c);
}

static void tell_input(Terminal *t, size_t before) {
        if (n_pending(t) == before)
                return;
        t->input(t->userdata);
        if (input_room(t) == 0)
                watch_clients(t);
}

static int on_client(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Client *c = userdata;
        Terminal *t = c->terminal;
        size_t before = n_pending(t);
        int r = 0;

        if (revents & EPOLLIN)
                r = read_input(t, fd, true);
        if (r > 0)
                c->kept->input_ended = true; /* it may still want to see the output */
        if (r >= 0 && (revents & EPOLLOUT))
                r = client_flush(c);
        /* EPOLLHUP: both directions ended. What it wrote last may still be unread. */
        if (r < 0 || (revents & EPOLLERR) || ((revents & EPOLLHUP) && (c->kept->input_ended || !(revents & EPOLLIN))))
                client_drop(c);
        else
                client_watch(c);
        tell_input(t, before);
        return 0;
}

static uint64_t history_start(const Terminal *t) {
        uint64_t begin = history_begin(&t->ring);

        return t->ring.end - begin > t->history_size ? t->ring.end - t->history_size : begin;
}

static int client_new(Terminal *t, KeptClient *k, int fd, Client **ret) {
        _cleanup_(client_freep) Client *c = calloc(1, sizeof(*c));
        int r;

        if (!c) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        *c = (Client) { .fd = fd, .terminal = t, .kept = k };
        r = sd_event_add_io(t->event, &c->source, c->fd, 0, on_client, c);
        if (r < 0)
                return r;
        c->next = t->clients;
        t->clients = c;
        t->n_clients++;
        *ret = c;
        c = NULL;
        return 0;
}

int terminal_adopt(Terminal *t, int fd) {
        _cleanup_close_ int owned = fd;
        int type, flags, r;
        socklen_t length = sizeof(type);
        KeptClient *k = NULL;
        Client *c;

        if (t->n_clients >= CLIENTS_MAX)
                return -EUSERS;
        if (getsockopt(owned, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
                return -errno;
        if (type != SOCK_STREAM)
                return -EPROTOTYPE;
        flags = fcntl(owned, F_GETFL);
        if (flags < 0 || fcntl(owned, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;

        for (unsigned i = 0; i < CLIENTS_MAX; i++)
                if (!t->kept->clients[i].used) {
                        k = &t->kept->clients[i];
                        break;
                }
        assert(k);
        *k = (KeptClient) { .may_lose = t->ring.size };
        stream_set(&k->sent, history_start(t));
        r = client_new(t, k, TAKE_FD(owned), &c);
        if (r < 0)
                return r;
        if (t->passed) {
                _cleanup_free_ char *name = client_name(t, k);

                r = name ? passed_fds_keep(t->passed, name, c->fd) : -ENOMEM;
                if (r < 0)
                        (void) log_warning_errno(r, "Cannot have the service manager keep a client; it will not outlive this process: %m");
        }
        k->used = true;
        r = client_flush(c);
        if (r < 0) {
                client_drop(c);
                return r;
        }
        client_watch(c);
        return 0;
}

int terminal_attach(Terminal *t) {
        _cleanup_close_ int theirs = -EBADF;
        int pair[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        theirs = pair[1];
        r = terminal_adopt(t, pair[0]);
        return r < 0 ? r : TAKE_FD(theirs);
}

uint64_t terminal_output_bytes(const Terminal *t) {
        return t->ring.end;
}

uint64_t terminal_input_bytes(const Terminal *t) {
        return t->kept->taken;
}

unsigned terminal_n_clients(const Terminal *t) {
        return t->n_clients;
}

/* Pseudo terminal. Its main side cannot tell "nobody there" from "nobody reads", except by the hang-up that the last close leaves behind. So
 * nothing is written while it is hung up, an edge-triggered source does not report it again and again, and an inotify
 * watch tells when somebody opens the other side. */

static bool pty_is_hung_up(Pty *p) {
        struct pollfd poll_fd = { .fd = p->fd };

        return poll(&poll_fd, 1, 0) < 0 || (poll_fd.revents & POLLHUP);
}

static void pty_flush(Terminal *t) {
        Pty *p = &t->pty;
        const void *data;
        size_t n;

        while (p->open && (n = history_span(&t->ring, t->kept->pty_position, &data)) > 0) {
                ssize_t sent = write(p->fd, data, n);

                if (sent < 0 && errno == EINTR)
                        continue;
                if (sent <= 0) /* EAGAIN: an edge comes when there is room. EIO: a hang-up does. */
                        return;
                t->kept->pty_position += (uint64_t) sent;
        }
}

/* Its edge has passed: read on from the event loop, where others have their turn in between. */
static void pty_read_later(Terminal *t) {
        (void) sd_event_source_set_io_events(t->pty.source, EPOLLIN | EPOLLOUT | EPOLLET);
}

static void pty_read(Terminal *t) {
        size_t before;

        /* Edge-triggered: until there is nothing more, or no room, which terminal_take_input() makes. */
        for (unsigned i = 0; i < PTY_READS_PER_TURN; i++) {
                before = n_pending(t);
                t->pty.unread = input_room(t) == 0;
                if (t->pty.unread || read_input(t, t->pty.fd, false) != 0 || n_pending(t) == before)
                        return;
                tell_input(t, before);
        }
        pty_read_later(t);
}

static int on_pty(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Terminal *t = userdata;

        if (pty_is_hung_up(&t->pty))
                t->pty.open = false;
        pty_read(t);
        pty_flush(t);
        return 0;
}

static int on_pty_opened(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Terminal *t = userdata;
        uint8_t buffer[4096] __attribute__((aligned(__alignof__(struct inotify_event))));

        (void) !read(fd, buffer, sizeof(buffer));
        if (t->pty.open || pty_is_hung_up(&t->pty))
                return 0;
        t->pty.open = true;
        t->kept->pty_position = history_start(t);
        pty_flush(t);
        pty_read(t);
        return 0;
}

static int pty_watch(Pty *p) {
        p->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
        return p->inotify_fd < 0 || inotify_add_watch(p->inotify_fd, p->path, IN_OPEN) < 0 ? -errno : 0;
}

static int pty_find_path(Pty *p) {
        char path[64];

        if (ptsname_r(p->fd, path, sizeof(path)) != 0)
                return -errno;
        p->path = strdup(path);
        return p->path ? 0 : -ENOMEM;
}

static int pty_open(Pty *p) {
        _cleanup_close_ int other = -EBADF;
        struct termios termios;
        int r;

        p->fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        if (p->fd < 0)
                return -errno;
        if (grantpt(p->fd) < 0 || unlockpt(p->fd) < 0)
                return -errno;
        r = pty_find_path(p);
        if (r < 0)
                return r;

        /* The guest's terminal driver does echo, line editing and signals. The settings stay while the main side is open. Opening and closing
         * leaves the hang-up behind from which "nobody there" is known. */
        other = open(p->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (other < 0)
                return -errno;
        if (tcgetattr(other, &termios) < 0)
                return -errno;
        cfmakeraw(&termios);
        if (tcsetattr(other, TCSANOW, &termios) < 0)
                return -errno;

        return pty_watch(p);
}

static void pty_done(Pty *p);

/* A predecessor's, which whoever has the other side open still has. */
static int pty_take_up(Terminal *t, const char *name) {
        Pty *p = &t->pty;
        int r;

        p->fd = passed_fds_take(t->passed, name);
        if (p->fd < 0)
                return p->fd;
        r = pty_find_path(p);
        if (r >= 0)
                r = pty_watch(p);
        if (r < 0) {
                pty_done(p);
                return r;
        }
        p->open = !pty_is_hung_up(p);
        return 0;
}

static int pty_open_or_take_up(Terminal *t) {
        _cleanup_free_ char *name = NULL;
        int r;

        if (!t->passed)
                return pty_open(&t->pty);
        if (asprintf(&name, "%s-pty", t->name) < 0) {
                name = NULL;
                return -ENOMEM;
        }
        if (pty_take_up(t, name) >= 0)
                return 0;
        if (passed_fds_is_kept(t->passed, name))
                (void) passed_fds_forget(t->passed, name);
        r = pty_open(&t->pty);
        return r < 0 ? r : passed_fds_keep(t->passed, name, t->pty.fd);
}

int terminal_make_pty(Terminal *t) {
        int r;

        r = pty_open_or_take_up(t);
        if (r < 0)
                return r;
        r = sd_event_add_io(t->event, &t->pty.source, t->pty.fd, EPOLLIN | EPOLLOUT | EPOLLET, on_pty, t);
        if (r < 0)
                return r;
        return sd_event_add_io(t->event, &t->pty.inotify_source, t->pty.inotify_fd, EPOLLIN, on_pty_opened, t);
}

const char *terminal_pty_path(const Terminal *t) {
        return t->pty.path;
}

static void pty_done(Pty *p) {
        p->source = sd_event_source_disable_unref(p->source);
        p->inotify_source = sd_event_source_disable_unref(p->inotify_source);
        p->fd = safe_close(p->fd);
        p->inotify_fd = safe_close(p->inotify_fd);
        p->path = mfree(p->path);
}

/* What was there before is gone. */
static void begin_anew(Terminal *t) {
        size_t size = t->kept_size - sizeof(KeptTerminal);

        t->kept->version = KEPT_VERSION;
        t->kept->ring_size = (uint32_t) size;
        t->kept->id = now_usec();
        t->ring = (History) { .data = t->kept->ring, .size = size };
}

int terminal_new(sd_event *event, size_t history, void (*input)(void *userdata), void *userdata, Terminal **ret) {
        _cleanup_(terminal_freep) Terminal *t = NULL;

        t = calloc(1, sizeof(*t));
        if (!t)
                return -ENOMEM;
        t->event = event;
        t->history_size = history;
        t->input = input;
        t->userdata = userdata;
        t->log_fd = t->pty.fd = t->pty.inotify_fd = -EBADF;
        t->kept_size = sizeof(KeptTerminal) + MAX(history, (size_t) RING_MIN);
        t->dropped = t->lost = t->log_failed = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };
        t->kept = calloc(1, t->kept_size);
        if (!t->kept)
                return -ENOMEM;
        begin_anew(t);
        *ret = TAKE_PTR(t);
        return 0;
}

/* The service manager may have one whom a predecessor had not taken yet, or had dropped already, when it died. */
static void forget_client(Terminal *t, KeptClient *k, const char *name) {
        int fd = passed_fds_take(t->passed, name);

        k->used = false;
        if (fd >= 0)
                (void) shutdown(fd, SHUT_RDWR);
        (void) safe_close(fd);
        if (passed_fds_is_kept(t->passed, name))
                (void) passed_fds_forget(t->passed, name);
}

static void take_up_client(Terminal *t, KeptClient *k) {
        _cleanup_free_ char *name = client_name(t, k);
        Client *c;
        int fd;

        if (!name)
                return;
        fd = k->used ? passed_fds_take(t->passed, name) : -ENOENT;
        if (fd < 0 || client_new(t, k, fd, &c) < 0) {
                forget_client(t, k, name);
                return;
        }
        if (client_flush(c) < 0)
                client_drop(c);
        else
                client_watch(c);
}

/* 1: `fd` is what a predecessor left. */
static int map_kept(Terminal *t, int fd) {
        struct stat st;
        KeptTerminal *k;

        if (fstat(fd, &st) < 0)
                return -errno;
        if ((uint64_t) st.st_size != t->kept_size)
                return -ESTALE;
        k = mmap(NULL, t->kept_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (k == MAP_FAILED)
                return -errno;
        if (k->version != 0 && (k->version != KEPT_VERSION || k->ring_size != t->ring.size)) {
                (void) munmap(k, t->kept_size);
                return -ESTALE;
        }
        free(t->kept);
        t->kept = k;
        t->mapped = true;
        if (k->version == 0) {
                begin_anew(t);
                return 0;
        }
        t->ring.data = k->ring;
        t->ring.end = k->end;
        return 1;
}

int terminal_keep(Terminal *t, PassedFds *passed, const char *name) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!passed->managed || !getenv("NOTIFY_SOCKET"))
                return 0;
        t->name = strdup(name);
        if (!t->name)
                return -ENOMEM;
        t->passed = passed;
        fd = passed_fds_take(passed, name);
        r = fd >= 0 ? map_kept(t, fd) : fd;
        if (r >= 0) {
                for (unsigned i = 0; i < CLIENTS_MAX; i++)
                        take_up_client(t, &t->kept->clients[i]);
                return r;
        }
        /* There is none, or it is of another version or length. */
        r = passed_fds_forget_prefix(passed, name);
        if (r < 0)
                return r;
        (void) safe_close(fd);
        fd = memfd_create_sealed(name, t->kept_size, 0);
        if (fd < 0)
                return fd;
        r = map_kept(t, fd);
        return r < 0 ? r : passed_fds_keep(passed, name, fd);
}

uint64_t terminal_id(const Terminal *t) {
        return t->kept->id;
}

int terminal_rewind_input(Terminal *t, uint64_t position) {
        KeptTerminal *k = t->kept;

        if (position > input_end(t) || input_end(t) - position > INPUT_RING)
                return -ERANGE;
        k->taken = position;
        return 0;
}

Terminal *terminal_free(Terminal *t) {
        if (!t)
                return NULL;
        /* A successor goes on with them. */
        while (t->clients) {
                Client *c = t->clients;

                t->clients = c->next;
                (void) client_free(c);
        }
        pty_done(&t->pty);
        (void) safe_close(t->log_fd);
        if (t->mapped)
                (void) munmap(t->kept, t->kept_size);
        else
                free(t->kept);
        free(t->name);
        free(t);
        return NULL;
}

int terminal_set_log(Terminal *t, int fd) {
        _cleanup_close_ int owned = fd;
        struct stat st;

        if (fstat(owned, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode))
                return -EINVAL;
        t->log_fd = TAKE_FD(owned);
        return 0;
}

static void write_log(Terminal *t, const uint8_t *data, size_t length) {
        while (length > 0) {
                ssize_t n = write(t->log_fd, data, length);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0) {
                        if (log_ratelimit(&t->log_failed, NULL))
                                (void) log_warning_errno(errno, "%zu bytes of output are missing in the log: %m", length);
                        return;
                }
                data += n;
                length -= (size_t) n;
        }
}

/* `length` more bytes were written into the ring: who was overtaken? */
static void check_laggards(Terminal *t) {
        uint64_t begin = history_begin(&t->ring);

        for (Client *c = t->clients, *next; c; c = next) {
                next = c->next;
                uint64_t position = stream_position(&c->kept->sent);

                if (position >= begin)
                        continue;
                if (begin - position <= c->kept->may_lose) {
                        c->kept->may_lose -= begin - position;
                        stream_set(&c->kept->sent, begin);
                        continue;
                }
                if (log_ratelimit(&t->dropped, NULL))
                        log_warning("A console client does not read; dropping it.");
                client_drop(c);
        }

        if (t->pty.open && t->kept->pty_position < begin) {
                if (log_ratelimit(&t->lost, NULL))
                        log_warning("Nobody reads %s; %llu bytes are lost there.", t->pty.path,
                                (unsigned long long) (begin - t->kept->pty_position));
                t->kept->pty_position = begin;
        }
}

void terminal_output(Terminal *t, const void *data, size_t length) {
        const uint8_t *p = data;

        if (t->log_fd >= 0)
                write_log(t, p, length);

        /* In pieces of less than the ring: one large write must not overtake a client that does read. */
        while (length > 0) {
                size_t n = MIN(length, t->ring.size / 4);

                history_write(&t->ring, p, n);
                __atomic_store_n(&t->kept->end, t->ring.end, __ATOMIC_RELEASE);
                check_laggards(t);
                for (Client *c = t->clients, *next; c; c = next) {
                        next = c->next;
                        if (c->wants_out) /* its socket is full; an event comes */
                                continue;
                        if (client_flush(c) < 0)
                                client_drop(c);
                        else
                                client_watch(c);
                }
                pty_flush(t);
                p += n;
                length -= n;
        }
}

size_t terminal_take_input(Terminal *t, void *data, size_t length) {
        KeptTerminal *k = t->kept;
        size_t n = MIN(length, n_pending(t)), at = k->taken % INPUT_RING, first = MIN(n, INPUT_RING - at);
        bool was_full = input_room(t) == 0;

        memcpy(data, k->input_ring + at, first);
        memcpy((uint8_t *) data + first, k->input_ring, n - first);
        k->taken += n;
        if (n > 0 && was_full) {
                watch_clients(t);
                if (t->pty.unread && t->pty.source)
                        pty_read_later(t);
        }
        return n;
}

size_t terminal_input_available(const Terminal *t) {
        return n_pending(t);
}
