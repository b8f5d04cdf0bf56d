/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-open NAME=MODE:PATH …
 *
 * Runs as root before a unit's main process (ExecStartPre=+), opens files and leaves them in the unit's file descriptor store under NAME. So
 * the main process, a dynamic user without a view of the file system, gets exactly these files and finds them by name in $LISTEN_FDNAMES.
 *
 * MODE is ro, rw (both: the file must exist), append (created where missing, 0640), or wake: PATH is a socket, and nothing is stored; it is connected to
 * and let go, so that the unit behind it starts now, beside ours, and not when our main process gets to it.
 *
 * The notification protocol is spoken by hand: libsystemd would be most of this program's start time, which every start of a
 * machine pays several times. */

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "util.h"

#define FILES_MAX 80

typedef struct Request {
        char *name;
        const char *path;
        int flags; /* of open(); WAKE is none of them */
        int fd;
} Request;

#define WAKE (-1)

static int notify_socket = -EBADF;
static struct sockaddr_un notify_address = { .sun_family = AF_UNIX };
static socklen_t notify_address_size;

static int notify_open(void) {
        const char *path = getenv("NOTIFY_SOCKET");
        size_t length = path ? strlen(path) : 0;

        if (length < 2 || length >= sizeof(notify_address.sun_path) || (path[0] != '/' && path[0] != '@'))
                return -EINVAL;
        memcpy(notify_address.sun_path, path, length);
        if (path[0] == '@')
                notify_address.sun_path[0] = 0;
        notify_address_size = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + length);

        notify_socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        return notify_socket < 0 ? -errno : 0;
}

/* One datagram, with one descriptor where fd is none of -EBADF. */
static int notify(int fd, const char *text) {
        union {
                struct cmsghdr header;
                uint8_t space[CMSG_SPACE(sizeof(int))];
        } control = {};
        struct iovec iov = { .iov_base = (void *) text, .iov_len = strlen(text) };
        struct msghdr message = {
                .msg_name = &notify_address, .msg_namelen = notify_address_size, .msg_iov = &iov, .msg_iovlen = 1,
        };

        if (fd >= 0) {
                message.msg_control = &control;
                message.msg_controllen = sizeof(control.space);
                struct cmsghdr *c = CMSG_FIRSTHDR(&message);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(c), &fd, sizeof(int));
        }
        return sendmsg(notify_socket, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* sd_notify(3), "BARRIER=1": everything sent before has been taken when the manager closes the pipe. */
static int notify_barrier(void) {
        int fds[2], r;
        struct pollfd p;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        r = notify(fds[1], "BARRIER=1");
        (void) safe_close(fds[1]);
        p = (struct pollfd) { .fd = fds[0] };
        if (r >= 0) {
                do
                        r = poll(&p, 1, 30 * 1000);
                while (r < 0 && errno == EINTR);
                r = r < 0 ? -errno : r == 0 ? -ETIMEDOUT : 0;
        }
        (void) safe_close(fds[0]);
        return r;
}

static int fail(const char *format, ...) _printf_(1, 2);
static int fail(const char *format, ...) {
        _cleanup_free_ char *text = NULL, *status = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0) {
                text = NULL;
                return EXIT_FAILURE;
        }
        (void) fprintf(stderr, "<3>%s\n", text);
        if (asprintf(&status, "STATUS=%s", text) >= 0 && notify_socket >= 0)
                (void) notify(-EBADF, status);
        return EXIT_FAILURE;
}

/* NAME=MODE:PATH; the name as sd_notify(3) takes it for FDNAME=. */
static bool parse_request(char *argument, Request *ret) {
        static const struct {
                const char *name;
                int flags;
        } modes[] = {
                { "ro:", O_RDONLY },
                { "rw:", O_RDWR },
                { "append:", O_WRONLY | O_APPEND | O_CREAT },
                { "wake:", WAKE },
        };
        char *mode = strchr(argument, '=');

        if (!mode || mode == argument || mode - argument > 255)
                return false;
        *mode++ = 0;
        for (const char *p = argument; *p; p++)
                if (*p <= ' ' || *p >= 0x7f || *p == ':')
                        return false;
        for (size_t i = 0; i < ELEMENTSOF(modes); i++) {
                const char *path = startswith(mode, modes[i].name);
                if (path && *path == '/') {
                        *ret = (Request) { .name = argument, .path = path, .flags = modes[i].flags, .fd = -EBADF };
                        return true;
                }
        }
        return false;
}

static int open_request(Request *request) {
        struct stat st;

        /* O_NONBLOCK: nothing that waits for another side may hold up the start; it means nothing to what we accept. */
        request->fd = open(request->path, request->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
        if (request->fd < 0)
                return fail("Cannot open %s (%s) for %s: %m", request->path, request->name,
                        request->flags & O_APPEND ? "appending" : request->flags & O_RDWR ? "reading and writing" : "reading");
        if (fstat(request->fd, &st) < 0)
                return fail("Cannot look at %s (%s): %m", request->path, request->name);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode))
                return fail("%s (%s) is neither a file nor a device node.", request->path, request->name);
        if (S_ISREG(st.st_mode))
                (void) fcntl(request->fd, F_SETFL, request->flags & O_APPEND);
        return EXIT_SUCCESS;
}

/* Whether it worked is not our business: who needs the unit finds out. */
static void wake(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
                return;
        strcpy(address.sun_path, path);
        (void) connect(fd, (struct sockaddr *) &address, sizeof(address));
}

/* An earlier start's descriptor of that name goes first: the file may have been replaced since. */
static int store_request(const Request *request) {
        char text[300];
        int r;

        (void) snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", request->name);
        r = notify(-EBADF, text);
        if (r < 0)
                return r;
        /* FDPOLL=0: a device node that reports a hang-up is still what the unit was promised. */
        (void) snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", request->name);
        return notify(request->fd, text);
}

int main(int argc, char *argv[]) {
        Request requests[FILES_MAX];
        int n = argc - 1, r;

        if (n < 1 || n > FILES_MAX) {
                (void) fprintf(stderr, "usage: vmm-open NAME=ro|rw|append|wake:PATH …   (at most %d)\n", FILES_MAX);
                return EXIT_FAILURE;
        }
        r = notify_open();
        if (r < 0)
                return fail("vmm-open is for ExecStartPre= of a unit: $NOTIFY_SOCKET is not set to a socket.");

        for (int i = 0; i < n; i++) {
                if (!parse_request(argv[i + 1], &requests[i]))
                        return fail("Expected NAME=ro|rw|append|wake:PATH, not \"%s\".", argv[i + 1]);
                r = requests[i].flags == WAKE ? EXIT_SUCCESS : open_request(&requests[i]);
                if (r != EXIT_SUCCESS)
                        return r;
        }
        for (int i = 0; i < n; i++) {
                if (requests[i].flags == WAKE) {
                        wake(requests[i].path);
                        continue;
                }
                r = store_request(&requests[i]);
                if (r < 0)
                        return fail("Cannot store %s (%s): %s", requests[i].path, requests[i].name, strerrordesc_np(-r));
        }
        r = notify_barrier();
        if (r < 0)
                return fail("The service manager does not answer: %s", strerrordesc_np(-r));
        return EXIT_SUCCESS;
}
