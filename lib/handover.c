/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "handover.h"

#define FD_NONE UINT32_MAX

void handover_done(Handover *h) {
        h->fds = mfree(h->fds);
        h->n_fds = 0;
}

static bool remember(Handover *h, int fd) {
        int *grown;

        for (size_t i = 0; i < h->n_fds; i++)
                if (h->fds[i] == fd)
                        return true;
        grown = realloc(h->fds, (h->n_fds + 1) * sizeof(int));
        if (!grown) {
                h->error = -ENOMEM;
                return false;
        }
        h->fds = grown;
        h->fds[h->n_fds++] = fd;
        return true;
}

void handover_put_fd(Handover *h, int fd) {
        state_put_u32(h->writer, fd < 0 ? FD_NONE : (uint32_t) fd);
        if (fd >= 0)
                (void) remember(h, fd);
}

int handover_get_fd(Handover *h) {
        uint32_t number = state_get_u32(h->reader);
        int fd;

        if (number == FD_NONE || h->error < 0)
                return -EBADF;
        if (number <= STDERR_FILENO || number > INT32_MAX) {
                h->error = -EBADMSG;
                return -EBADF;
        }
        fd = fcntl((int) number, F_DUPFD_CLOEXEC, 3);
        if (fd < 0) {
                h->error = -errno;
                return -EBADF;
        }
        if (remember(h, (int) number))
                return fd;
        return safe_close(fd);
}

int handover_end(Handover *h) {
        int error = h->error;

        h->error = 0;
        return error;
}

int handover_keep(const Handover *h, bool keep) {
        for (size_t i = 0; i < h->n_fds; i++)
                if (fcntl(h->fds[i], F_SETFD, keep ? 0 : FD_CLOEXEC) < 0)
                        return -errno;
        return 0;
}

void handover_commit(Handover *h) {
        for (size_t i = 0; i < h->n_fds; i++)
                (void) safe_close(h->fds[i]);
        handover_done(h);
}
