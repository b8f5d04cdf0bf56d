/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "client.h"
#include "json-util.h"
#include "message.h"

/* A call that waits for its (next) reply. */
typedef struct Pending {
        struct Pending *next;
        VarlinkReply callback;
        void *userdata;
        uint64_t deadline; /* CLOCK_MONOTONIC; UINT64_MAX is none */
        bool more;
} Pending;

struct VarlinkClient {
        unsigned n_ref;
        VarlinkChannel channel;
        int dead; /* the errno that ended the connection, 0 while it lives */
        uint64_t timeout_usec;
        VarlinkMessage reply; /* the latest one, for its descriptors */
        int *fds;             /* for the next call */
        size_t n_fds;
        bool receiving;          /* between varlink_client_call_more() and the last reply */
        uint64_t receive_until;  /* when the next of these must be here */

        sd_event *event;
        sd_event_source *io, *timer;
        Pending *pending, **pending_tail;
};

static void drop_fds(VarlinkClient *c) {
        for (size_t i = 0; i < c->n_fds; i++)
                (void) safe_close(c->fds[i]);
        c->n_fds = 0;
}

static Pending *pop(VarlinkClient *c) {
        Pending *p = c->pending;

        if (p) {
                c->pending = p->next;
                if (!c->pending)
                        c->pending_tail = &c->pending;
        }
        return p;
}

int varlink_client_new_fd(int fd, VarlinkClient **ret) {
        VarlinkClient *c;
        int r;

        c = calloc(1, sizeof(*c));
        if (!c) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        c->n_ref = 1;
        c->timeout_usec = VARLINK_CLIENT_TIMEOUT_DEFAULT;
        c->pending_tail = &c->pending;
        r = varlink_channel_open(&c->channel, fd);
        if (r < 0) {
                (void) varlink_client_unref(c);
                return r;
        }
        *ret = c;
        return 0;
}

/* unix(7): the timeout for sending is also that for connecting, of a socket that blocks. */
static int limit_connecting(int fd, uint64_t usec) {
        struct timeval timeout = { .tv_sec = (time_t) (usec / USEC_PER_SEC), .tv_usec = (suseconds_t) (usec % USEC_PER_SEC) };

        return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0 ? -errno : 0;
}

static int connect_once(int fd, const struct sockaddr_un *address) {
        return connect(fd, (const struct sockaddr *) address, sizeof(*address)) < 0 ? -errno : 0;
}

/* Where there is a limit of time a signal ends the wait, be it only that the process was stopped for a while. */
static int connect_within(int fd, const struct sockaddr_un *address, uint64_t usec) {
        uint64_t now = now_usec(), until = now > UINT64_MAX - usec ? UINT64_MAX : now + usec;
        int r;

        do {
                r = limit_connecting(fd, until - now);
                if (r >= 0)
                        r = connect_once(fd, address);
                now = now_usec();
        } while (r == -EINTR && now < until);
        return r == -EINTR ? -EAGAIN : r;
}

int varlink_client_connect_within(const char *path, uint64_t usec, VarlinkClient **ret) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        memcpy(address.sun_path, path, strlen(path));

        /* Non-blocking from the start where it may not wait: connect(2) does while the server's backlog is full. */
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (usec == 0 ? SOCK_NONBLOCK : 0), 0);
        if (fd < 0)
                return -errno;
        r = usec == 0 ? connect_once(fd, &address) : connect_within(fd, &address, usec);
        return r < 0 ? r : varlink_client_new_fd(TAKE_FD(fd), ret);
}

int varlink_client_connect(const char *path, VarlinkClient **ret) {
        return varlink_client_connect_within(path, 0, ret);
}

VarlinkClient *varlink_client_ref(VarlinkClient *c) {
        c->n_ref++;
        return c;
}

/* Closes the connection; what waits for replies stays for the caller to tell. */
static void disconnect(VarlinkClient *c, int error) {
        if (c->dead == 0)
                c->dead = error;
        c->io = sd_event_source_disable_unref(c->io);
        c->timer = sd_event_source_disable_unref(c->timer);
        varlink_channel_done(&c->channel);
}

VarlinkClient *varlink_client_unref(VarlinkClient *c) {
        Pending *p;

        if (!c || --c->n_ref > 0)
                return NULL;
        disconnect(c, -ECONNRESET);
        while ((p = pop(c)))
                free(p);
        sd_event_unref(c->event);
        varlink_message_done(&c->reply);
        drop_fds(c);
        free(c->fds);
        return mfree(c);
}

void varlink_client_set_timeout(VarlinkClient *c, uint64_t usec) {
        c->timeout_usec = usec;
}

int varlink_client_push_fd(VarlinkClient *c, int fd) {
        int *grown;

        if (c->n_fds >= VARLINK_FDS_DEFAULT)
                return -ENOBUFS;
        grown = realloc(c->fds, (c->n_fds + 1) * sizeof(int));
        if (!grown)
                return -ENOMEM;
        c->fds = grown;
        c->fds[c->n_fds] = fd;
        return (int) c->n_fds++;
}

int varlink_client_take_fd(VarlinkClient *c, int64_t index) {
        return varlink_message_take_fd(&c->reply, index);
}

static uint64_t deadline(VarlinkClient *c) {
        uint64_t now = now_usec();
        return c->timeout_usec > UINT64_MAX - now ? UINT64_MAX : now + c->timeout_usec;
}

/* Queues a call, with the descriptors that were pushed for it. */
static int queue_call(VarlinkClient *c, const char *method, json_object *parameters, const char *flag) {
        _cleanup_json_ json_object *call = json_object_new_object();
        int r;

        if (c->dead < 0)
                return c->dead;
        if (!call)
                return -ENOMEM;
        r = json_add_string(call, "method", method);
        if (r >= 0)
                r = json_add(call, "parameters", parameters ? json_object_get(parameters) : json_object_new_object());
        if (r >= 0 && flag)
                r = json_add_boolean(call, flag, true);
        if (r >= 0)
                r = varlink_channel_queue(&c->channel, call, c->fds, c->n_fds);
        if (r < 0)
                return r;
        c->n_fds = 0;
        return 0;
}

/* Takes apart a reply; what is returned is borrowed from it, but for an empty object that stands for absent parameters. */
static int parse_reply(json_object *json, const char **ret_error_id, json_object **ret_parameters, bool *ret_continues) {
        json_object *error = NULL, *parameters = NULL, *continues = NULL;

        (void) json_object_object_get_ex(json, "error", &error);
        (void) json_object_object_get_ex(json, "parameters", &parameters);
        (void) json_object_object_get_ex(json, "continues", &continues);
        if ((error && !json_object_is_type(error, json_type_string)) ||
                (parameters && !json_object_is_type(parameters, json_type_object)) ||
                (continues && !json_object_is_type(continues, json_type_boolean)))
                return -EPROTO;
        if (!parameters) {
                int r = json_add(json, "parameters", json_object_new_object());
                if (r < 0)
                        return r;
                parameters = json_object_object_get(json, "parameters");
        }
        *ret_error_id = error ? json_object_get_string(error) : NULL;
        *ret_parameters = parameters;
        *ret_continues = continues && json_object_get_boolean(continues);
        return 0;
}

/* ---- blocking ---- */

static int wait_for(VarlinkClient *c, short events, uint64_t until) {
        for (;;) {
                struct pollfd p = { .fd = c->channel.fd, .events = events };
                uint64_t now = now_usec();
                int timeout = -1, r;

                if (until != UINT64_MAX)
                        timeout = now >= until ? 0 : (int) MIN((until - now + 999) / USEC_PER_MSEC, UINT64_C(3600000));
                r = poll(&p, 1, timeout);
                if (r > 0)
                        return 0;
                if (r == 0 && now_usec() >= until)
                        return -ETIMEDOUT;
                if (r < 0 && errno != EINTR)
                        return -errno;
        }
}

static int flush_blocking(VarlinkClient *c, uint64_t until) {
        int r;

        for (;;) {
                r = varlink_channel_flush(&c->channel);
                if (r != -EAGAIN)
                        return r;
                r = wait_for(c, POLLOUT, until);
                if (r < 0)
                        return r;
        }
}

static int receive_blocking(VarlinkClient *c, uint64_t until) {
        int r;

        varlink_message_done(&c->reply);
        for (;;) {
                r = varlink_channel_next(&c->channel, &c->reply);
                if (r != 0)
                        return r == -EBADMSG ? -EPROTO : r;
                r = varlink_channel_read(&c->channel);
                if (r == 0)
                        return -ECONNRESET;
                if (r == -EAGAIN)
                        r = wait_for(c, POLLIN, until);
                if (r < 0)
                        return r;
        }
}

/* Sends a call and waits until it is on its way. */
static int send_blocking(VarlinkClient *c, const char *method, json_object *parameters, const char *flag, uint64_t until) {
        int r;

        if (c->event || c->receiving)
                return -EBUSY;
        r = queue_call(c, method, parameters, flag);
        if (r < 0)
                return r;
        r = flush_blocking(c, until);
        if (r < 0)
                disconnect(c, r);
        return r;
}

/* Waits for a reply and hands its parts out. Returns 0, or -EREMOTEIO for an error of the server's; any other errno has ended the connection,
 * but for -ENOMEM. */
static int receive_reply(VarlinkClient *c, uint64_t until, json_object **ret_reply, char **ret_error_id, bool *ret_continues) {
        _cleanup_free_ char *copy = NULL;
        const char *error_id;
        json_object *reply;
        bool continues;
        int r;

        r = receive_blocking(c, until);
        if (r >= 0)
                r = parse_reply(c->reply.json, &error_id, &reply, &continues);
        if (r >= 0 && continues && (!ret_continues || error_id))
                r = -EPROTO;
        if (r < 0) {
                disconnect(c, r);
                return r;
        }

        if (error_id && ret_error_id) {
                copy = strdup(error_id);
                if (!copy)
                        return -ENOMEM;
                *ret_error_id = TAKE_PTR(copy);
        }
        if (ret_reply)
                *ret_reply = json_object_get(reply);
        if (ret_continues)
                *ret_continues = continues;
        return error_id ? -EREMOTEIO : 0;
}

int varlink_client_call(VarlinkClient *c, const char *method, json_object *parameters, json_object **ret_reply,
        char **ret_error_id) {
        uint64_t until = deadline(c);
        int r;

        r = send_blocking(c, method, parameters, NULL, until);
        return r < 0 ? r : receive_reply(c, until, ret_reply, ret_error_id, NULL);
}

int varlink_client_call_more(VarlinkClient *c, const char *method, json_object *parameters) {
        uint64_t until = deadline(c);
        int r;

        r = send_blocking(c, method, parameters, "more", until);
        if (r < 0)
                return r;
        c->receiving = true;
        c->receive_until = until;
        return 0;
}

int varlink_client_receive(VarlinkClient *c, json_object **ret_reply, char **ret_error_id, bool *ret_continues) {
        bool continues = false;
        int r;

        if (!c->receiving)
                return c->dead < 0 ? c->dead : -EINVAL;
        r = receive_reply(c, c->receive_until, ret_reply, ret_error_id, &continues);
        c->receiving = continues;
        c->receive_until = UINT64_MAX;
        if (ret_continues)
                *ret_continues = continues;
        return r;
}

int varlink_client_call_upgrade(VarlinkClient *c, const char *method, json_object *parameters, json_object **ret_reply, char **ret_error_id,
        int *ret_fd, char **ret_data, size_t *ret_size) {
        uint64_t until = deadline(c);
        int r;

        r = send_blocking(c, method, parameters, "upgrade", until);
        if (r < 0)
                return r;
        r = receive_reply(c, until, ret_reply, ret_error_id, NULL);
        if (r < 0)
                return r;
        *ret_fd = varlink_channel_release(&c->channel, ret_data, ret_size);
        disconnect(c, -ENOTCONN);
        return 0;
}

/* ---- on an event loop ---- */

static int client_arm(VarlinkClient *c) {
        uint64_t next = UINT64_MAX;
        int r;

        r = sd_event_source_set_io_events(c->io, EPOLLIN | (c->channel.out ? EPOLLOUT : 0));
        if (r < 0)
                return r;
        for (Pending *p = c->pending; p; p = p->next)
                next = MIN(next, p->deadline);
        if (next == UINT64_MAX)
                return sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
        r = sd_event_source_set_time(c->timer, next);
        return r < 0 ? r : sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

/* The connection is over: everybody who waits is told. The caller holds a reference. */
static void client_fail(VarlinkClient *c, int error) {
        Pending *p;

        disconnect(c, error);
        while ((p = pop(c))) {
                p->callback(c, error, NULL, NULL, false, p->userdata);
                free(p);
        }
}

static int handle_reply(VarlinkClient *c) {
        json_object *parameters;
        const char *error_id;
        bool continues;
        Pending *p = c->pending;
        int r;

        r = parse_reply(c->reply.json, &error_id, &parameters, &continues);
        if (r < 0)
                return r;
        /* A reply that nobody asked for, or more of them than asked for. */
        if (!p || (continues && (!p->more || error_id)))
                return -EPROTO;

        if (continues) {
                p->deadline = UINT64_MAX;
                p->callback(c, 0, NULL, parameters, true, p->userdata);
        } else {
                p = pop(c);
                p->callback(c, error_id ? -EREMOTEIO : 0, error_id, parameters, false, p->userdata);
                free(p);
        }
        return 0;
}

/* Handles what is here; stops where the callbacks gave the client up. */
static int client_process(VarlinkClient *c) {
        int r;

        while (c->dead == 0 && c->n_ref > 1) {
                r = varlink_channel_next(&c->channel, &c->reply);
                if (r <= 0)
                        return r == -EBADMSG ? -EPROTO : r;
                r = handle_reply(c);
                varlink_message_done(&c->reply);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int on_client_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = varlink_client_ref(userdata);
        bool ended = false;
        int r = 0;

        if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                r = varlink_channel_read(&c->channel);
                ended = r == 0;
                if (r == -EAGAIN)
                        r = 0;
        }
        if (r >= 0)
                r = client_process(c);
        if (r >= 0 && ended)
                r = -ECONNRESET;
        if (c->dead < 0 || c->n_ref == 1)
                return 0;
        if (r >= 0) {
                r = varlink_channel_flush(&c->channel);
                if (r == -EAGAIN)
                        r = 0;
        }
        if (r >= 0)
                r = client_arm(c);
        if (r < 0)
                client_fail(c, r);
        return 0;
}

static int on_client_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *c = varlink_client_ref(userdata);

        client_fail(c, -ETIMEDOUT);
        return 0;
}

int varlink_client_attach_event(VarlinkClient *c, sd_event *event) {
        int r;

        if (c->event)
                return -EBUSY;
        if (c->dead < 0)
                return c->dead;
        r = sd_event_add_io(event, &c->io, c->channel.fd, EPOLLIN, on_client_io, c);
        if (r >= 0)
                r = sd_event_add_time(event, &c->timer, CLOCK_MONOTONIC, UINT64_MAX, 0, on_client_timeout, c);
        if (r >= 0)
                r = sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
        if (r < 0) {
                c->io = sd_event_source_disable_unref(c->io);
                c->timer = sd_event_source_disable_unref(c->timer);
                return r;
        }
        c->event = sd_event_ref(event);
        /* Of a blocking call before. */
        varlink_message_done(&c->reply);
        return 0;
}

int varlink_client_call_async(VarlinkClient *c, const char *method, json_object *parameters, VarlinkClientFlags flags,
        VarlinkReply callback, void *userdata) {
        Pending *p;
        int r;

        if (!c->event)
                return -EINVAL;
        p = calloc(1, sizeof(*p));
        if (!p)
                return -ENOMEM;
        r = queue_call(c, method, parameters, flags & VARLINK_CLIENT_MORE ? "more" : NULL);
        if (r < 0) {
                free(p);
                return r;
        }
        p->callback = callback;
        p->userdata = userdata;
        p->more = flags & VARLINK_CLIENT_MORE;
        p->deadline = deadline(c);
        *c->pending_tail = p;
        c->pending_tail = &p->next;
        /* Where even this fails, the time-out cannot be armed: the event loop is beyond repair, and the caller's next step will say so. */
        (void) client_arm(c);
        return 0;
}

int varlink_client_send_oneway(VarlinkClient *c, const char *method, json_object *parameters) {
        int r;

        if (c->receiving)
                return -EBUSY;
        r = queue_call(c, method, parameters, "oneway");
        if (r < 0)
                return r;
        if (c->event)
                return client_arm(c);
        r = flush_blocking(c, deadline(c));
        if (r < 0)
                disconnect(c, r);
        return r;
}
