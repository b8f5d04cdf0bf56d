/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include "history.h"
#include "log.h"
#include "terminal.h"

#define CLIENTS_MAX 32
#define INPUT_MAX 4096
/* Somebody who writes as fast as the guest reads does not keep the event loop for himself. */
#define PTY_READS_PER_TURN 16
/* How far a client may lag behind at least, however short the history is that the definition asks for. */
#define RING_MIN KIB(64)

typedef struct Client {
        struct Client *next;
        Terminal *terminal;
        int fd;
        sd_event_source *source;
        uint64_t position;   /* in the ring: up to here it was sent */
        uint64_t may_lose;   /* of the history it is shown first: bytes that may be overwritten before it reads them */
        bool wants_out;      /* its socket was full */
        bool input_ended;
} Client;

typedef struct Pty {
        int fd, inotify_fd;
        sd_event_source *source, *inotify_source;
        char *path;
        bool open;          /* somebody has the other side open */
        bool unread;        /* there may be input that we had no room for */
        uint64_t position;
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

        uint8_t pending[INPUT_MAX];
        size_t n_pending;

        LogRateLimit dropped, lost, log_failed;
};

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
        (void) client_free(c);
}

static size_t input_room(const Terminal *t) {
        return INPUT_MAX - t->n_pending;
}

static void client_watch(Client *c) {
        uint32_t events = (c->wants_out ? EPOLLOUT : 0) | (!c->input_ended && input_room(c->terminal) > 0 ? EPOLLIN : 0);

        (void) sd_event_source_set_io_events(c->source, events);
}

/* Sends what the client has not seen, as far as its socket takes it. A negative errno: it is gone. */
static int client_flush(Client *c) {
        Terminal *t = c->terminal;
        const void *data;
        size_t n;

        c->wants_out = false;
        while ((n = history_span(&t->ring, c->position, &data)) > 0) {
                ssize_t sent = send(c->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);

                if (sent < 0 && errno == EINTR)
                        continue;
                if (sent < 0 && errno == EAGAIN) {
                        c->wants_out = true;
                        return 0;
                }
                if (sent < 0)
                        return -errno;
                c->position += (uint64_t) sent;
        }
        c->may_lose = 0;
        return 0;
}

/* Takes what a client typed. 0; 1 at the end of its input; or a negative errno. */
static int read_input(Terminal *t, int fd) {
        ssize_t n;

        if (input_room(t) == 0)
                return 0;
        n = read(fd, t->pending + t->n_pending, input_room(t));
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0)
                return 1;
        t->n_pending += (size_t) n;
        return 0;
}

static void watch_clients(Terminal *t) {
        for (Client *c = t->clients; c; c = c->next)
                client_watch(c);
}

static void tell_input(Terminal *t, size_t before) {
        if (t->n_pending == before)
                return;
        t->input(t->userdata);
        if (input_room(t) == 0)
                watch_clients(t);
}

static int on_client(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Client *c = userdata;
        Terminal *t = c->terminal;
        size_t before = t->n_pending;
        int r = 0;

        if (revents & EPOLLIN)
                r = read_input(t, fd);
        if (r > 0)
                c->input_ended = true; /* it may still want to see the output */
        if (r >= 0 && (revents & EPOLLOUT))
                r = client_flush(c);
        /* EPOLLHUP: both directions ended. What it wrote last may still be unread. */
        if (r < 0 || (revents & EPOLLERR) || ((revents & EPOLLHUP) && (c->input_ended || !(revents & EPOLLIN))))
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

int terminal_attach(Terminal *t) {
        _cleanup_(client_freep) Client *c = NULL;
        _cleanup_close_ int theirs = -EBADF;
        int pair[2], r;

        if (t->n_clients >= CLIENTS_MAX)
                return -EUSERS;

        c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->fd = -EBADF;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        c->fd = pair[0];
        theirs = pair[1];
        if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0)
                return -errno;

        c->terminal = t;
        c->position = history_start(t);
        c->may_lose = t->ring.size;
        r = sd_event_add_io(t->event, &c->source, c->fd, 0, on_client, c);
        if (r < 0)
                return r;
        r = client_flush(c);
        if (r < 0)
                return r;
        client_watch(c);

        c->next = t->clients;
        t->clients = c;
        t->n_clients++;
        c = NULL;
        return TAKE_FD(theirs);
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

        while (p->open && (n = history_span(&t->ring, p->position, &data)) > 0) {
                ssize_t sent = write(p->fd, data, n);

                if (sent < 0 && errno == EINTR)
                        continue;
                if (sent <= 0) /* EAGAIN: an edge comes when there is room. EIO: a hang-up does. */
                        return;
                p->position += (uint64_t) sent;
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
                before = t->n_pending;
                t->pty.unread = input_room(t) == 0;
                if (t->pty.unread || read_input(t, t->pty.fd) != 0 || t->n_pending == before)
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
        t->pty.position = history_start(t);
        pty_flush(t);
        pty_read(t);
        return 0;
}

static int pty_open(Pty *p) {
        _cleanup_close_ int other = -EBADF;
        struct termios termios;
        char path[64];

        p->fd = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        if (p->fd < 0)
                return -errno;
        if (grantpt(p->fd) < 0 || unlockpt(p->fd) < 0)
                return -errno;
        if (ptsname_r(p->fd, path, sizeof(path)) != 0)
                return -errno;
        p->path = strdup(path);
        if (!p->path)
                return -ENOMEM;

        /* The guest's terminal driver does echo, line editing and signals. The settings stay while the main side is open. Opening and closing
         * leaves the hang-up behind from which "nobody there" is known. */
        other = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (other < 0)
                return -errno;
        if (tcgetattr(other, &termios) < 0)
                return -errno;
        cfmakeraw(&termios);
        if (tcsetattr(other, TCSANOW, &termios) < 0)
                return -errno;

        p->inotify_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
        if (p->inotify_fd < 0 || inotify_add_watch(p->inotify_fd, path, IN_OPEN) < 0)
                return -errno;
        return 0;
}

int terminal_make_pty(Terminal *t) {
        int r;

        r = pty_open(&t->pty);
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

int terminal_new(sd_event *event, size_t history, void (*input)(void *userdata), void *userdata, Terminal **ret) {
        _cleanup_(terminal_freep) Terminal *t = NULL;
        int r;

        t = calloc(1, sizeof(*t));
        if (!t)
                return -ENOMEM;
        t->event = event;
        t->history_size = history;
        t->input = input;
        t->userdata = userdata;
        t->log_fd = t->pty.fd = t->pty.inotify_fd = -EBADF;
        t->dropped = t->lost = t->log_failed = (LogRateLimit) { .interval_usec = 60 * USEC_PER_SEC, .burst = 3 };
        r = history_init(&t->ring, MAX(history, (size_t) RING_MIN));
        if (r < 0)
                return r;
        *ret = TAKE_PTR(t);
        return 0;
}

Terminal *terminal_free(Terminal *t) {
        if (!t)
                return NULL;
        while (t->clients)
                client_drop(t->clients);
        pty_done(&t->pty);
        (void) safe_close(t->log_fd);
        history_done(&t->ring);
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
                if (c->position >= begin)
                        continue;
                if (begin - c->position <= c->may_lose) {
                        c->may_lose -= begin - c->position;
                        c->position = begin;
                        continue;
                }
                if (log_ratelimit(&t->dropped, NULL))
                        log_warning("A console client does not read; dropping it.");
                client_drop(c);
        }

        if (t->pty.open && t->pty.position < begin) {
                if (log_ratelimit(&t->lost, NULL))
                        log_warning("Nobody reads %s; %llu bytes are lost there.", t->pty.path,
                                (unsigned long long) (begin - t->pty.position));
                t->pty.position = begin;
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
        size_t n = MIN(length, t->n_pending);
        bool was_full = input_room(t) == 0;

        memcpy(data, t->pending, n);
        memmove(t->pending, t->pending + n, t->n_pending - n);
        t->n_pending -= n;
        if (n > 0 && was_full) {
                watch_clients(t);
                if (t->pty.unread && t->pty.source)
                        pty_read_later(t);
        }
        return n;
}

size_t terminal_input_available(const Terminal *t) {
        return t->n_pending;
}
