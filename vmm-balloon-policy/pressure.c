/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "pressure.h"

struct Pressure {
        int fd;
        bool stream; /* a FIFO or socket */
        sd_event_source *source;
        PressureCallback callback;
        void *userdata;
};

/* Returns 0, or why there will be nothing more. */
static int drain(int fd) {
        char buffer[4096];

        /* A flood waits for the next turn of the loop. */
        for (unsigned i = 0; i < 16; i++) {
                ssize_t n = read(fd, buffer, sizeof(buffer));

                if (n == 0)
                        return -EPIPE;
                if (n < 0)
                        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        }
        return 0;
}

static int on_pressure(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Pressure *p = userdata;
        int r = 0;

        if (p->stream) {
                if (revents & EPOLLIN)
                        p->callback(0, p->userdata);
                r = drain(fd);
        } else {
                if (revents & EPOLLPRI)
                        p->callback(0, p->userdata);
                /* A trigger ends with its cgroup. */
                if (revents & EPOLLERR)
                        r = -ENODEV;
        }
        if (r < 0) {
                (void) sd_event_source_set_enabled(p->source, SD_EVENT_OFF);
                p->callback(r, p->userdata);
        }
        return 0;
}

static int set_trigger(int fd, const void *trigger, size_t size) {
        ssize_t n;

        do
                n = write(fd, trigger, size);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
}

int pressure_new_fd(sd_event *event, int fd, const void *trigger, size_t size, PressureCallback callback, void *userdata, Pressure **ret) {
        _cleanup_(pressure_freep) Pressure *p = calloc(1, sizeof(*p));
        struct stat st;
        int flags, r;

        if (!p) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        *p = (Pressure) { .fd = fd, .callback = callback, .userdata = userdata };
        if (fstat(fd, &st) < 0)
                return -errno;
        p->stream = S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode);
        if (!p->stream && !S_ISREG(st.st_mode))
                return -ENODEV;
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        if (size > 0 && !S_ISFIFO(st.st_mode)) {
                r = set_trigger(fd, trigger, size);
                if (r < 0)
                        return r;
        }
        r = sd_event_add_io(event, &p->source, fd, p->stream ? EPOLLIN : EPOLLPRI, on_pressure, p);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(p);
        return 0;
}

int pressure_open(const char *path) {
        struct stat st;
        int fd;

        if (stat(path, &st) < 0)
                return -errno;
        if (S_ISSOCK(st.st_mode))
                return connect_unix(path);
        if (!S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode))
                return -ENODEV;
        /* A FIFO that is open for writing, too, does not end when its last writer goes. */
        fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        return fd < 0 ? -errno : fd;
}

Pressure *pressure_free(Pressure *p) {
        if (!p)
                return NULL;
        (void) sd_event_source_disable_unref(p->source);
        (void) safe_close(p->fd);
        return mfree(p);
}

static int digit(char c) {
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        const char *p = c ? strchr(digits, c) : NULL;

        return p ? (int) (p - digits) : -EINVAL;
}

/* RFC 4648, section 4, with its padding. */
static int decode(const char *text, void **ret, size_t *ret_size) {
        size_t length = strlen(text), n = 0;
        _cleanup_free_ uint8_t *data = malloc(length / 4 * 3 + 1);

        if (!data)
                return -ENOMEM;
        if (length % 4 != 0)
                return -EINVAL;
        for (size_t i = 0; i < length; i += 4) {
                unsigned padding = i + 4 == length ? (text[i + 3] == '=') + (text[i + 2] == '=' && text[i + 3] == '=') : 0;
                uint32_t v = 0;

                for (size_t k = 0; k < 4; k++) {
                        int d = k >= 4 - padding ? 0 : digit(text[i + k]);
                        if (d < 0)
                                return d;
                        v = v << 6 | (uint32_t) d;
                }
                for (unsigned k = 0; k < 3 - padding; k++)
                        data[n++] = (uint8_t) (v >> (16 - 8 * k));
        }
        *ret = TAKE_PTR(data);
        *ret_size = n;
        return 0;
}

int pressure_from_environment(const char **ret_path, void **ret_trigger, size_t *ret_size) {
        const char *path = getenv("MEMORY_PRESSURE_WATCH"), *text = getenv("MEMORY_PRESSURE_WRITE");
        void *trigger = NULL;
        size_t size = 0;
        int r;

        /* /dev/null is how the convention says "do not watch". */
        if (!path || *path == 0)
                return 0;
        r = decode(text ?: "", &trigger, &size);
        if (r < 0)
                return r;
        *ret_path = path;
        *ret_trigger = trigger;
        *ret_size = size;
        return 1;
}
