/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Any vhost-user device: a program and its arguments, one of which says how it gets its socket. */

#include "foreign.h"

/* {listen} and {fd} become the number of a descriptor, {socket} a path. Anywhere in a word, once in all of them. */
static const struct {
        const char *word;
        ForeignSocket socket;
} places[] = {
        { "{listen}", FOREIGN_SOCKET_LISTENING },
        { "{fd}", FOREIGN_SOCKET_CONNECTED },
        { "{socket}", FOREIGN_SOCKET_PATH },
};

static int add_word(Foreign *f, const char *word) {
        for (size_t i = 0; i < ELEMENTSOF(places); i++) {
                const char *at = strstr(word, places[i].word), *rest;
                int fd, r;

                if (!at)
                        continue;
                if (f->socket != FOREIGN_SOCKET_NONE)
                        return log_error_errno(-EINVAL, "The command has more than one place for the socket: '%s' is another.", word);
                fd = foreign_socket(f, places[i].socket);
                if (fd < 0)
                        return fd;
                rest = at + strlen(places[i].word);
                r = places[i].socket == FOREIGN_SOCKET_PATH ? foreign_add(f, "%.*s%s%s", (int) (at - word), word, f->socket_path, rest) :
                        foreign_add(f, "%.*s%d%s", (int) (at - word), word, fd, rest);
                return r;
        }
        return foreign_add(f, "%s", word);
}

static int any_prepare(Foreign *f) {
        const char *const *command;
        size_t n;

        f->answer_timeout_usec = device_option_unsigned(f->device, "answerTimeout", 60) * USEC_PER_SEC;
        command = device_option_list(f->device, "command", &n);
        if (n == 0 || command[0][0] != '/')
                return log_error_errno(-EINVAL, "\"command\" has to begin with the absolute path of a program.");
        for (size_t i = 0; i < n; i++) {
                int r = add_word(f, command[i]);
                if (r < 0)
                        return r;
        }
        if (f->socket == FOREIGN_SOCKET_NONE)
                return log_error_errno(-EINVAL, "\"command\" has no place for the socket: one of {listen}, {fd} and {socket}.");
        device_set_n_queues(f->device, (unsigned) device_option_unsigned(f->device, "queues", 1));
        return 0;
}

static void any_close(Foreign *f) {
}

static const ForeignClass any_foreign = {
        .prepare = any_prepare,
        .close = any_close,
};

const DeviceClass vhost_user_device = {
        .name = "vhost-user",
        .queues_max = 64,
        .policy = "foreign",
        .open = foreign_open,
        .close = foreign_close,
        .describe = foreign_describe,
        .foreign = &any_foreign,
};
