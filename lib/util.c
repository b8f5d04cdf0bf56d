/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <endian.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "util.h"

#if __BYTE_ORDER != __LITTLE_ENDIAN
#error "load_le*/store_le* and the virtio structures assume a little-endian host"
#endif

uint64_t now_usec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / NSEC_PER_USEC;
}

char *make_one_line(char *text) {
        for (char *p = text; p && *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        *p = '?';
        return text;
}

char *escape_status(const char *text) {
        char *copy = text ? malloc(2 * strlen(text) + 1) : NULL, *p = copy;

        if (!copy)
                return NULL;
        for (; *text; text++) {
                if (*text == '\\')
                        *p++ = '\\';
                *p++ = *text;
        }
        *p = 0;
        return copy;
}

int set_message(char **ret_message, int error, const char *format, ...) {
        va_list ap;
        char *text;
        int r;

        if (!ret_message)
                return error;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0)
                return -ENOMEM;

        free(*ret_message);
        *ret_message = text;
        return error;
}

int read_full(int fd, void *buffer, size_t length) {
        uint8_t *p = buffer;

        while (length > 0) {
                ssize_t n = read(fd, p, length);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -ENODATA;
                p += n;
                length -= (size_t) n;
        }
        return 0;
}

int write_full(int fd, const void *buffer, size_t length) {
        const uint8_t *p = buffer;

        while (length > 0) {
                ssize_t n = write(fd, p, length);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EPIPE;
                p += n;
                length -= (size_t) n;
        }
        return 0;
}

int pread_full(int fd, void *buffer, size_t length, uint64_t offset) {
        uint8_t *p = buffer;

        while (length > 0) {
                ssize_t n = pread(fd, p, length, (off_t) offset);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -ENODATA;
                p += n;
                offset += (uint64_t) n;
                length -= (size_t) n;
        }
        return 0;
}

int read_whole_fd(int fd, size_t max, char **ret, size_t *ret_size) {
        _cleanup_free_ char *buffer = NULL;
        size_t size = 0, allocated = 0;

        for (;;) {
                if (size + 1 >= allocated) {
                        allocated = allocated == 0 ? 4096 : allocated * 2;
                        char *grown = realloc(buffer, allocated);
                        if (!grown)
                                return -ENOMEM;
                        buffer = grown;
                }

                ssize_t n = read(fd, buffer + size, allocated - size - 1);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                size += (size_t) n;
                if (size > max)
                        return -EFBIG;
        }

        buffer[size] = 0;
        *ret = TAKE_PTR(buffer);
        if (ret_size)
                *ret_size = size;
        return 0;
}

/* As many descriptors as one SCM_RIGHTS message can carry (SCM_MAX_FD of the kernel). */
#define FDS_MAX 253

ssize_t send_with_fds(int socket, const void *buffer, size_t length, const int *fds, size_t n_fds) {
        union {
                struct cmsghdr header;
                uint8_t space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
        } control = {};
        struct iovec iov = { .iov_base = (void *) buffer, .iov_len = length };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (n_fds > FDS_MAX)
                return -E2BIG;
        if (n_fds > 0) {
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                struct cmsghdr *c = CMSG_FIRSTHDR(&message);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
        }

        do
                n = sendmsg(socket, &message, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
}

ssize_t recv_with_fds(int socket, void *buffer, size_t length, int *fds, size_t *n_fds, int flags) {
        union {
                struct cmsghdr header;
                uint8_t space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
        } control;
        struct iovec iov = { .iov_base = buffer, .iov_len = length };
        struct msghdr message = {
                .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
        };
        size_t room = n_fds ? *n_fds : 0, taken = 0;
        ssize_t n;

        do
                n = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;

        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < count; i++) {
                        int fd;
                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                        if (taken < room)
                                fds[taken++] = fd;
                        else
                                (void) safe_close(fd);
                }
        }
        if (n_fds)
                *n_fds = taken;
        return n;
}

int memfd_create_sealed(const char *name, uint64_t size, unsigned flags) {
        _cleanup_close_ int fd = memfd_create(name, flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd < 0)
                return -errno;
        if (ftruncate(fd, (off_t) size) < 0)
                return -errno;
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int connect_unix(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;

        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        strcpy(address.sun_path, path);

        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}
