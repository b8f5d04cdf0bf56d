/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The small words every file uses: ownership made visible, bounds made easy. Nothing here allocates or logs. */

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _unused_ __attribute__((unused))
#define _noreturn_ __attribute__((noreturn))

#define ELEMENTSOF(x) (sizeof(x) / sizeof((x)[0]))
/* Names that differ with each use, so that these macros nest. */
#define CONCATENATE_(a, b) a##b
#define CONCATENATE(a, b) CONCATENATE_(a, b)
#define MIN(a, b) COMPARE_(a, b, <, CONCATENATE(_a_, __COUNTER__), CONCATENATE(_b_, __COUNTER__))
#define MAX(a, b) COMPARE_(a, b, >, CONCATENATE(_a_, __COUNTER__), CONCATENATE(_b_, __COUNTER__))
#define COMPARE_(a, b, op, ta, tb)                                                                             \
        ({                                                                                                     \
                __typeof__(a) ta = (a);                                                                        \
                __typeof__(b) tb = (b);                                                                        \
                ta op tb ? ta : tb;                                                                            \
        })
#define ALIGN_UP(x, a) (((x) + ((a) - 1)) & ~((__typeof__(x))(a) - 1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a) - 1))

/* Times are CLOCK_MONOTONIC or intervals, always in microseconds, as in sd-event. */
#define USEC_PER_SEC UINT64_C(1000000)
#define USEC_PER_MSEC UINT64_C(1000)
#define NSEC_PER_USEC UINT64_C(1000)
#define NSEC_PER_SEC UINT64_C(1000000000)

#define KIB(n) ((uint64_t) (n) << 10)
#define MIB(n) ((uint64_t) (n) << 20)
#define GIB(n) ((uint64_t) (n) << 30)

/* Hands ownership on: the variable is left empty, so that its cleanup does nothing. */
#define TAKE_PTR(p)                                                                                            \
        ({                                                                                                     \
                __typeof__(p) *_take_p = &(p);                                                                 \
                __typeof__(p) _take_v = *_take_p;                                                              \
                *_take_p = NULL;                                                                               \
                _take_v;                                                                                       \
        })
#define TAKE_FD(fd)                                                                                            \
        ({                                                                                                     \
                int *_take_fd = &(fd);                                                                         \
                int _take_v = *_take_fd;                                                                       \
                *_take_fd = -EBADF;                                                                            \
                _take_v;                                                                                       \
        })

static inline bool streq(const char *a, const char *b) {
        return strcmp(a, b) == 0;
}

/* Like streq(), where NULL equals only NULL. */
static inline bool streq_ptr(const char *a, const char *b) {
        return a && b ? streq(a, b) : a == b;
}

/* Returns what follows `prefix` in `s`, or NULL where `s` does not begin with it. */
static inline const char *startswith(const char *s, const char *prefix) {
        size_t l = strlen(prefix);
        return strncmp(s, prefix, l) == 0 ? s + l : NULL;
}

/* Closes without touching errno; negative fds are fine. Returns -EBADF, to be stored where the fd stood. */
static inline int safe_close(int fd) {
        if (fd >= 0) {
                int saved = errno;
                (void) close(fd);
                errno = saved;
        }
        return -EBADF;
}

static inline void closep(int *fd) {
        *fd = safe_close(*fd);
}

static inline void freep(void *p) {
        free(*(void **) p);
        *(void **) p = NULL;
}

static inline void *mfree(void *p) {
        free(p);
        return NULL;
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)

/* Defines a cleanup function `FUNCp` for a destructor of the form `T *func(T *)`. */
#define DEFINE_CLEANUP(type, func)                                                                             \
        _unused_ static inline void func##p(type **p) {                                                        \
                if (*p)                                                                                        \
                        *p = func(*p);                                                                         \
        }

/* Little-endian fields on wires and in guest memory: loads and stores without alignment or aliasing trouble.
 * Both architectures we run on are little-endian; the build refuses others (lib/util.c). */
#define DEFINE_UNALIGNED(bits)                                                                                 \
        static inline uint##bits##_t load_le##bits(const void *p) {                                            \
                uint##bits##_t v;                                                                              \
                memcpy(&v, p, sizeof(v));                                                                      \
                return v;                                                                                      \
        }                                                                                                      \
        static inline void store_le##bits(void *p, uint##bits##_t v) {                                         \
                memcpy(p, &v, sizeof(v));                                                                      \
        }
DEFINE_UNALIGNED(16)
DEFINE_UNALIGNED(32)
DEFINE_UNALIGNED(64)
#undef DEFINE_UNALIGNED

/* Whether [offset, offset + length) lies within [0, size), without overflow. */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t size) {
        return offset <= size && length <= size - offset;
}

/* CLOCK_MONOTONIC now, in microseconds. */
uint64_t now_usec(void);

/* Sets *ret_message to the formatted text (owned by the caller) and returns `error` (a negative errno).
 * `ret_message` may be NULL. An out-of-memory condition leaves *ret_message NULL and returns -ENOMEM. The way
 * library functions say what was wrong with somebody's input: the caller decides where it is printed. */
int set_message(char **ret_message, int error, const char *format, ...) _printf_(3, 4);

/* Somebody's text, in place: what steers a terminal, or would be a line of its own, another assignment to the service manager among them, becomes '?'. Returns
 * its argument, which may be NULL. */
char *make_one_line(char *text);

/* For what follows "STATUS=" to the service manager, which takes a backslash for the escape of what comes next and drops it: names of units have some. A copy
 * in which each is two, the caller's; NULL where there is no memory for it, or no text. For who cannot use notify_status(). */
char *escape_status(const char *text);

/* Reads or writes exactly `length` bytes, across short transfers and EINTR. Returns 0, a negative errno, or
 * -EPIPE / -ENODATA where the other side ended first (write / read). Blocking fds only. */
int read_full(int fd, void *buffer, size_t length);
int write_full(int fd, const void *buffer, size_t length);
/* The same at an offset of a seekable file; the file position stays. -ENODATA at end of file. */
int pread_full(int fd, void *buffer, size_t length, uint64_t offset);

/* Reads a whole file of at most `max` bytes; the result is NUL-terminated beyond *ret_size. `fd` stays open.
 * -EFBIG where there is more. */
int read_whole_fd(int fd, size_t max, char **ret, size_t *ret_size);

/* Sends / receives one buffer with up to `*n_fds` descriptors on an AF_UNIX stream socket. recv sets O_CLOEXEC, closes
 * what does not fit, and returns the byte count (0: end of stream) or a negative errno. */
ssize_t send_with_fds(int socket, const void *buffer, size_t length, const int *fds, size_t n_fds);
ssize_t recv_with_fds(int socket, void *buffer, size_t length, int *fds, size_t *n_fds, int flags);

/* Creates a memfd of `size` bytes, for sharing: sealed against growing, shrinking and more seals, so that nobody's mapping can end in SIGBUS.
 * `flags` are added to memfd_create()'s. Returns the fd or a negative errno. */
int memfd_create_sealed(const char *name, uint64_t size, unsigned flags);

/* Connects an AF_UNIX stream socket to `path`. Returns the fd (close-on-exec, blocking) or a negative errno;
 * -ENAMETOOLONG where the path does not fit a socket address. */
int connect_unix(const char *path);
