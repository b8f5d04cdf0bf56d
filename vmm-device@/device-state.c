/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The device's state on its way to or from the front-end ("Migrating back-end state"): what the guest has told the device and would not tell its like in another machine.
 *
 * It goes by a pair of sockets of ours, of which the front-end gets one, in place of the descriptor that comes with its message: that one is as blocking as whoever has it at the moment likes, and
 * of a pipe reading can wait, whatever is said, for somebody who holds it up half-way through a write. At a socket nobody has anything to say but who holds it.
 *
 * It is a state (state.h) that begins with the device's type; what follows is the device's own, by its class's save() and load(). It is small, and collected
 * whole: written while the front-end reads, and read while that writes, in the event loop. The front-end is told by CHECK_DEVICE_STATE how it went. */

#include <sys/epoll.h>
#include <sys/socket.h>

#include "frame.h"
#include "state.h"

#define STATE_MAX MIB(1)
#define SECTION "device"
#define SECTION_VERSION 1
#define TYPE_MAX 64

struct DeviceTransfer {
        Session *session;
        int fd;
        sd_event_source *source;
        bool load;
        int error;          /* the first thing that went wrong */
        StateWriter *writer;
        uint8_t *buffer;    /* what is loaded */
        size_t size, done;
};

static void finish(DeviceTransfer *t) {
        t->source = sd_event_source_disable_unref(t->source);
        t->fd = safe_close(t->fd);
}

static void fail(DeviceTransfer *t, int error, const char *message) {
        (void) log_warning_errno(error, "Cannot %s the device's state: %s", t->load ? "load" : "save", message ?: strerror(-error));
        t->error = error;
        finish(t);
}

/* --- saving --- */

static int collect(Device *d, StateWriter **ret) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        int r;

        r = state_writer_new(&w);
        if (r < 0)
                return r;
        state_begin(w, SECTION, 0, SECTION_VERSION);
        state_put_blob(w, d->class->name, strlen(d->class->name));
        r = state_end(w);
        if (r >= 0 && d->class->save)
                r = d->class->save(d, w);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(w);
        return 0;
}

static int begin_save(DeviceTransfer *t) {
        const void *data;
        int r;

        r = collect(t->session->device, &t->writer);
        if (r >= 0)
                r = state_writer_finish(t->writer, &data, &t->size);
        /* Rather none than one that nobody loads. */
        return r < 0 ? r : t->size < STATE_MAX ? 0 : -E2BIG;
}

/* Writes what there is room for. */
static void step_save(DeviceTransfer *t) {
        const void *data;
        ssize_t n;
        int r;

        r = state_writer_finish(t->writer, &data, &t->size);
        if (r < 0) {
                fail(t, r, NULL);
                return;
        }
        while (t->done < t->size) {
                n = send(t->fd, (const uint8_t *) data + t->done, t->size - t->done, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (n < 0 && errno == EAGAIN)
                        return;
                if (n < 0) {
                        fail(t, -errno, NULL);
                        return;
                }
                t->done += (size_t) n;
        }
        finish(t); /* the end of the file is how the front-end knows */
}

/* --- loading --- */

static int take_type(Device *d, StateReader *r, char **ret_message) {
        const char *type;
        size_t size;
        int k;

        k = state_enter(r, SECTION, 0, SECTION_VERSION);
        if (k < 0)
                return set_message(ret_message, k, "it is no state of a device of ours, or a newer version's");
        type = state_get_blob_view(r, TYPE_MAX, &size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        if (size != strlen(d->class->name) || memcmp(type, d->class->name, size) != 0)
                return set_message(ret_message, -EBADMSG, "it is of a %.*s device, and this is a %s", (int) size, type, d->class->name);
        return 0;
}

static int apply(Device *d, const void *data, size_t size, char **ret_message) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        int r;

        r = state_reader_new(data, size, &reader, ret_message);
        if (r >= 0)
                r = take_type(d, reader, ret_message);
        if (r >= 0 && d->class->load)
                r = d->class->load(d, reader, ret_message);
        return r < 0 ? r : state_reader_finish(reader, ret_message);
}

static void loaded(DeviceTransfer *t) {
        _cleanup_free_ char *message = NULL;
        int r;

        /* It was suspended when the front-end began. */
        if (t->session->started) {
                fail(t, -EBUSY, "it has been started meanwhile");
                return;
        }
        r = apply(t->session->device, t->buffer, t->done, &message);
        if (r < 0)
                fail(t, r, message);
        else
                finish(t);
}

/* Reads what is there; at its end the device has it. */
static void step_load(DeviceTransfer *t) {
        for (;;) {
                struct iovec iov = { .iov_base = t->buffer + t->done, .iov_len = t->size - t->done };
                struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
                ssize_t n;

                if (t->done == t->size) {
                        fail(t, -E2BIG, "it is too long");
                        return;
                }
                n = recvmsg(t->fd, &message, MSG_DONTWAIT);
                if (n < 0 && errno == EAGAIN)
                        return;
                if (n < 0) {
                        fail(t, -errno, NULL);
                        return;
                }
                if (n == 0) {
                        loaded(t);
                        return;
                }
                t->done += (size_t) n;
        }
}

static void step(DeviceTransfer *t) {
        if (t->load)
                step_load(t);
        else
                step_save(t);
}

static int on_socket(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        step(userdata);
        return 0;
}

/* --- for the session --- */

static int begin(DeviceTransfer *t, int *ret_fd) {
        _cleanup_close_ int theirs = -EBADF;
        int pair[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        t->fd = pair[0];
        theirs = pair[1];
        if (t->load) {
                t->size = STATE_MAX;
                t->buffer = malloc(STATE_MAX);
                r = t->buffer ? 0 : -ENOMEM;
        } else
                r = begin_save(t);
        if (r >= 0)
                r = sd_event_add_io(t->session->device->event, &t->source, t->fd, t->load ? EPOLLIN : EPOLLOUT, on_socket, t);
        if (r < 0)
                return r;
        *ret_fd = TAKE_FD(theirs);
        return 0;
}

int device_transfer_begin(Session *s, uint32_t direction, uint32_t phase, int *ret_fd) {
        DeviceTransfer *t;
        int r;

        /* "the device must be suspended": stopped() is the only phase there is. */
        if (phase != VHOST_USER_TRANSFER_PHASE_STOPPED || direction > VHOST_USER_TRANSFER_DIRECTION_LOAD || s->started)
                return -EINVAL;
        s->transfer = device_transfer_free(s->transfer);
        t = calloc(1, sizeof(DeviceTransfer));
        if (!t)
                return -ENOMEM;
        *t = (DeviceTransfer) { .session = s, .fd = -EBADF, .load = direction == VHOST_USER_TRANSFER_DIRECTION_LOAD };
        r = begin(t, ret_fd);
        if (r < 0) {
                (void) log_warning_errno(r, "Cannot %s the device's state: %m", t->load ? "load" : "save");
                (void) device_transfer_free(t);
                return r;
        }
        s->transfer = t;
        return 0;
}

int device_transfer_check(Session *s) {
        DeviceTransfer *t = s->transfer;
        int r;

        if (!t)
                return -EINVAL;
        /* "When the front-end has closed its end": what it wrote before it asked is there by now. */
        if (t->fd >= 0)
                step(t);
        r = t->error < 0 ? t->error : t->fd >= 0 ? -EAGAIN : 0;
        s->transfer = device_transfer_free(t);
        return r;
}

DeviceTransfer *device_transfer_free(DeviceTransfer *t) {
        if (!t)
                return NULL;
        finish(t);
        (void) state_writer_free(t->writer);
        free(t->buffer);
        return mfree(t);
}
