/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "foreign-qmp.h"
#include "json-util.h"
#include "log.h"

#define ANSWER_SIZE_MAX MIB(1)
#define COMMANDS_MAX 32

typedef struct Command {
        QmpAnswer answer;
        void *userdata;
} Command;

struct Qmp {
        int fd;
        sd_event_source *source;
        char *buffer;
        size_t size;
        Command commands[COMMANDS_MAX]; /* sent, in their order: so they are answered */
        size_t n_commands;
};

static void answer_first(Qmp *q, const char *error, json_object *result) {
        Command first = q->commands[0];

        q->n_commands--;
        memmove(q->commands, q->commands + 1, q->n_commands * sizeof(Command));
        if (first.answer)
                first.answer(error, result, first.userdata);
}

static void give_up(Qmp *q, const char *why) {
        q->source = sd_event_source_disable_unref(q->source);
        q->fd = safe_close(q->fd);
        while (q->n_commands > 0)
                answer_first(q, why, NULL);
}

/* The greeting and events are neither of the two. */
static void take_line(Qmp *q, const char *line) {
        _cleanup_json_ json_object *message = json_tokener_parse(line);
        json_object *error = json_get(message, "error", json_type_object), *result = NULL;

        if (q->n_commands > 0 && error)
                answer_first(q, json_get_string(error, "desc", "it does not say why"), NULL);
        else if (q->n_commands > 0 && message && json_object_object_get_ex(message, "return", &result))
                answer_first(q, NULL, result);
}

static void take_lines(Qmp *q) {
        char *end;

        while (q->size > 0 && (end = memchr(q->buffer, '\n', q->size))) {
                size_t length = (size_t) (end - q->buffer) + 1;

                *end = 0;
                take_line(q, q->buffer);
                if (q->fd < 0)
                        return;
                q->size -= length;
                memmove(q->buffer, q->buffer + length, q->size);
        }
}

static int on_input(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Qmp *q = userdata;
        ssize_t n;

        if (q->size == ANSWER_SIZE_MAX) {
                give_up(q, "its answer is too long");
                return 0;
        }
        n = read(fd, q->buffer + q->size, ANSWER_SIZE_MAX - q->size);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0) {
                give_up(q, "the program has closed its monitor");
                return 0;
        }
        q->size += (size_t) n;
        take_lines(q);
        return 0;
}

int qmp_new(sd_event *event, int fd, Qmp **ret) {
        _cleanup_(qmp_freep) Qmp *q = calloc(1, sizeof(Qmp));
        int flags = fcntl(fd, F_GETFL), r;

        if (!q) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        q->fd = fd;
        q->buffer = malloc(ANSWER_SIZE_MAX); /* what is never written to costs nothing */
        if (!q->buffer)
                return -ENOMEM;
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        r = sd_event_add_io(event, &q->source, fd, EPOLLIN, on_input, q);
        /* Needed before anything else is obeyed. */
        if (r >= 0)
                r = qmp_call(q, "qmp_capabilities", NULL, NULL, NULL);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(q);
        return 0;
}

Qmp *qmp_free(Qmp *q) {
        if (!q)
                return NULL;
        give_up(q, "the device is going away");
        free(q->buffer);
        return mfree(q);
}

int qmp_call(Qmp *q, const char *command, json_object *arguments, QmpAnswer answer, void *userdata) {
        _cleanup_json_ json_object *owned = arguments, *message = json_object_new_object();
        const char *text;
        size_t length;
        ssize_t n;

        if (!message || json_add_string(message, "execute", command) < 0)
                return -ENOMEM;
        if (owned && json_add(message, "arguments", TAKE_PTR(owned)) < 0)
                return -ENOMEM;
        if (q->fd < 0)
                return -ENOTCONN;
        if (q->n_commands == COMMANDS_MAX)
                return -EBUSY;
        text = json_object_to_json_string_length(message, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &length);
        /* Commands are short, and a socket's buffer is not. */
        n = send(q->fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
                return -errno;
        if ((size_t) n != length) {
                give_up(q, "the program does not read its monitor");
                return -EBUSY;
        }
        q->commands[q->n_commands++] = (Command) { .answer = answer, .userdata = userdata };
        return 0;
}
