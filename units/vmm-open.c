/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-open NAME=MODE:PATH … NAME=tap:QUEUES:INTERFACE … NAME=frames:INTERFACE … NAME=restore:PATH
 *
 * Runs as root before a unit's main process (ExecStartPre=+), opens files and leaves them in the unit's file descriptor store under NAME. So
 * the main process, a dynamic user without a view of the file system, gets exactly these files and finds them by name in $LISTEN_FDNAMES.
 *
 * MODE is ro, rw (both: the file must exist), append (created where missing, 0640), or wake: PATH is a socket, and nothing is stored; it is connected to
 * and let go, so that the unit behind it starts now, beside ours, and not when our main process gets to it.
 *
 * With tree (read-only: tree-ro) PATH is a directory. The descriptor is in a copy of the mounts below it, attached nowhere (open_tree(2)): from it
 * nothing above the directory can be reached, and what is read-only is so for the kernel. NAME-mounts, beside it, keeps them.
 *
 * With tap, so many queues of a tap or macvtap interface of the host are opened, each a descriptor of that name. Where somebody has it open nothing is
 * stored: it is the manager, for our main process that died and comes again, and so the interface never loses its carrier; or it is
 * somebody else, and our main process sees that it got nothing. With frames there is one queue, without the header that virtio has before each packet.
 *
 * With restore, PATH is a link to the snapshot that the machine is to go on from, or nothing is there: then it boots. The snapshot's files become NAME-state and NAME-memory, and with
 * them comes /dev/userfaultfd, where there is one, as NAME-userfaultfd. The link is taken away: whatever comes of this start, the next one boots.
 *
 * The notification protocol is spoken by hand: libsystemd would be most of this program's start time, which every start of a
 * machine pays several times. */

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "parse.h"
#include "tap.h"
#include "util.h"

#define FILES_MAX 80
/* How long an interface that is being made may take to be there. A unit's attempts are numbered: together they have some seconds. */
#define INTERFACE_TIMEOUT_USEC (1500 * USEC_PER_MSEC)

typedef struct Request {
        char *name;
        const char *path;
        int flags; /* of open(); WAKE and the others below are none of them */
        int fds[TAP_QUEUES_MAX];
        unsigned n_fds;
        int link_fd; /* says what becomes of an interface; -EBADF for others */
        int mounts_fd; /* what a directory is in; -EBADF for others */
} Request;

#define WAKE (-1)
#define TAP (-2)
#define TREE (-3)
#define TREE_READ_ONLY (-4)
#define RESTORE (-5)
#define FRAMES (-6)

/* What a snapshot is made of, in the order of Request.fds. */
static const char *const restore_parts[] = { "state", "memory", "userfaultfd" };

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
        _cleanup_free_ char *text = NULL, *escaped = NULL, *status = NULL;
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
        escaped = escape_status(text);
        if (escaped && asprintf(&status, "STATUS=%s", escaped) >= 0 && notify_socket >= 0)
                (void) notify(-EBADF, status);
        return EXIT_FAILURE;
}

/* QUEUES:INTERFACE; */
static bool parse_tap(char *value, Request *request) {
        char *colon = strchr(value, ':');
        uint64_t n;

        if (!colon)
                return false;
        *colon = 0;
        if (parse_unsigned(value, &n) < 0 || n < 1 || n > TAP_QUEUES_MAX || !tap_name_is_valid(colon + 1))
                return false;
        request->path = colon + 1;
        request->n_fds = (unsigned) n;
        return true;
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
                { "tap:", TAP },
                { "frames:", FRAMES },
                { "tree:", TREE },
                { "tree-ro:", TREE_READ_ONLY },
                { "restore:", RESTORE },
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
                if (!path)
                        continue;
                *ret = (Request) { .name = argument, .path = path, .flags = modes[i].flags, .link_fd = -EBADF, .mounts_fd = -EBADF };
                if (ret->flags == TAP)
                        return parse_tap(mode + strlen(modes[i].name), ret);
                return ret->flags == FRAMES ? tap_name_is_valid(path) : *path == '/';
        }
        return false;
}

static int open_file(Request *request) {
        struct stat st;
        int fd;

        /* O_NONBLOCK: nothing that waits for another side may hold up the start; it means nothing to what we accept. */
        fd = open(request->path, request->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
        if (fd < 0)
                return fail("Cannot open %s (%s) for %s: %m", request->path, request->name,
                        request->flags & O_APPEND ? "appending" : request->flags & O_RDWR ? "reading and writing" : "reading");
        request->fds[request->n_fds++] = fd;
        if (fstat(fd, &st) < 0)
                return fail("Cannot look at %s (%s): %m", request->path, request->name);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode))
                return fail("%s (%s) is neither a file nor a device node.", request->path, request->name);
        if (S_ISREG(st.st_mode))
                (void) fcntl(fd, F_SETFL, request->flags & O_APPEND);
        return EXIT_SUCCESS;
}

/* The C library of Debian 12 knows open_tree() and mount_setattr(). */
static int open_directory(Request *request) {
        struct mount_attr attributes = { .attr_set = MOUNT_ATTR_RDONLY };
        int fd;

        fd = open_tree(AT_FDCWD, request->path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
        if (fd < 0)
                return fail("Cannot open the directory %s (%s): %m", request->path, request->name);
        request->mounts_fd = fd;
        if (faccessat(fd, ".", F_OK, 0) < 0)
                return fail("%s (%s) is not a directory: %m", request->path, request->name);
        if (request->flags == TREE_READ_ONLY && mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof(attributes)) < 0)
                return fail("Cannot make %s (%s) read-only: %m", request->path, request->name);
        /* The mounts last as long as that descriptor; this one can be used like any other. */
        fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return fail("Cannot open the directory %s (%s): %m", request->path, request->name);
        request->fds[request->n_fds++] = fd;
        return EXIT_SUCCESS;
}

/* The unit's network is an empty one; interfaces are where the manager is. */
static void enter_host_network(void) {
        _cleanup_close_ int fd = open("/proc/1/ns/net", O_RDONLY | O_CLOEXEC | O_NOCTTY);

        if (fd >= 0)
                (void) setns(fd, CLONE_NEWNET); /* where it does not work we have not left it */
}

/* At boot whoever makes the interfaces may be at it still: the kernel says when there is a new one. */
static int open_tap(Request *request) {
        struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
        _cleanup_close_ int links = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
        uint64_t end = now_usec() + INTERFACE_TIMEOUT_USEC;
        char buffer[KIB(8)];

        if (links >= 0)
                (void) bind(links, (struct sockaddr *) &address, sizeof(address));
        for (;;) {
                struct pollfd p = { .fd = links, .events = POLLIN };
                _cleanup_free_ char *message = NULL;
                uint64_t now;
                int r;

                r = request->flags == FRAMES ? tap_open_frames(request->path, request->fds, &message) :
                        tap_open(request->path, request->n_fds, request->fds, &message);
                if (r >= 0) {
                        if (request->flags == FRAMES)
                                request->n_fds = 1;
                        request->link_fd = TAKE_FD(links);
                        return EXIT_SUCCESS;
                }
                if (r == -EBUSY) {
                        request->n_fds = 0;
                        return EXIT_SUCCESS;
                }
                now = now_usec();
                if (r != -ENODEV || links < 0 || now >= end || poll(&p, 1, (int) ((end - now) / USEC_PER_MSEC) + 1) < 0)
                        return fail("%s", message ? message : strerrordesc_np(-r));
                if (p.revents)
                        (void) !recv(links, buffer, sizeof(buffer), MSG_DONTWAIT);
        }
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

static int open_snapshot_file(const Request *request, int directory, const char *name) {
        struct stat st;
        int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);

        if (fd < 0)
                return fail("Cannot open the file '%s' of the snapshot at %s: %m", name, request->path);
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
                (void) safe_close(fd);
                return fail("The file '%s' of the snapshot at %s is no regular file.", name, request->path);
        }
        return fd;
}

static int open_snapshot(Request *request) {
        _cleanup_close_ int directory = open(request->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (directory < 0 && errno == ENOENT)
                return EXIT_SUCCESS;
        if (directory < 0)
                (void) fail("Cannot open the snapshot at %s: %m", request->path);
        if (unlink(request->path) < 0)
                return fail("Cannot take the link %s away: %m", request->path);
        if (directory < 0)
                return EXIT_FAILURE;
        for (; request->n_fds < 2; request->n_fds++) {
                request->fds[request->n_fds] = open_snapshot_file(request, directory, restore_parts[request->n_fds]);
                if (request->fds[request->n_fds] < 0)
                        return EXIT_FAILURE;
        }
        /* Where there is none memory is read before the guest runs. */
        request->fds[2] = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC | O_NOCTTY);
        if (request->fds[2] >= 0)
                request->n_fds = 3;
        return EXIT_SUCCESS;
}

static int open_request(Request *request) {
        switch (request->flags) {
        case WAKE:
                return EXIT_SUCCESS;
        case TAP:
        case FRAMES:
                enter_host_network();
                return open_tap(request);
        case TREE:
        case TREE_READ_ONLY:
                return open_directory(request);
        case RESTORE:
                return open_snapshot(request);
        default:
                return open_file(request);
        }
}

/* An earlier start's descriptor of that name goes first: the file may have been replaced since. */
static int store(const char *name, const int *fds, unsigned n_fds) {
        char text[300];
        int r;

        (void) snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
        r = notify(-EBADF, text);
        if (r < 0)
                return r;
        /* FDPOLL=0: a device node that reports a hang-up is still what the unit was promised. */
        (void) snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
        for (unsigned i = 0; i < n_fds && r >= 0; i++)
                r = notify(fds[i], text);
        return r;
}

/* What an earlier start did not take is not for this one. */
static int store_snapshot(const Request *request) {
        char name[300];
        int r = 0;

        for (unsigned i = 0; i < ELEMENTSOF(restore_parts) && r >= 0; i++) {
                (void) snprintf(name, sizeof(name), "%.200s-%s", request->name, restore_parts[i]);
                r = store(name, &request->fds[i], i < request->n_fds ? 1 : 0);
        }
        return r;
}

static int store_request(const Request *request) {
        int r = 0;

        if (request->flags == RESTORE)
                return store_snapshot(request);
        if (request->n_fds > 0)
                r = store(request->name, request->fds, request->n_fds);
        if (r >= 0 && request->link_fd >= 0)
                r = store(TAP_LINK_NAME, &request->link_fd, 1);
        if (r >= 0 && request->mounts_fd >= 0) {
                char name[300];

                (void) snprintf(name, sizeof(name), "%.250s-mounts", request->name);
                r = store(name, &request->mounts_fd, 1);
        }
        return r;
}

int main(int argc, char *argv[]) {
        Request requests[FILES_MAX];
        int n = argc - 1, r;

        if (n < 1 || n > FILES_MAX) {
                (void) fprintf(stderr, "usage: vmm-open NAME=ro|rw|append|tree|tree-ro|wake|restore:PATH|tap:QUEUES:INTERFACE|frames:INTERFACE …   (at most %d)\n", FILES_MAX);
                return EXIT_FAILURE;
        }
        r = notify_open();
        if (r < 0)
                return fail("vmm-open is for ExecStartPre= of a unit: $NOTIFY_SOCKET is not set to a socket.");

        for (int i = 0; i < n; i++) {
                if (!parse_request(argv[i + 1], &requests[i]))
                        return fail("Expected NAME=ro|rw|append|tree|tree-ro|wake|restore:PATH, NAME=tap:QUEUES:INTERFACE or NAME=frames:INTERFACE, not \"%s\".", argv[i + 1]);
                r = open_request(&requests[i]);
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
