/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-authorize, which tells vmmd what a client may do: vmm-authorize(8). */

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "config.h"
#include "log.h"
#include "service.h"

#define IDLE_USEC (30 * USEC_PER_SEC)

static const char *arg_socket_path = NULL;

static int help(void) {
        (void) printf("vmm-authorize [OPTIONS…]\n\n"
                      "Tells a machine's vmmd what a client of its control socket may do. Started by\n"
                      "vmm-authorize.socket; ends when nobody has asked for half a minute.\n\n"
                      "  -h --help              Show this help\n"
                      "     --version           Show the version\n"
                      "     --socket-path=PATH  Listen there, and stay; by hand only\n");
        return 0;
}

/* Returns 1 where there is something to do, 0 where not, negative where the command line is wrong. */
static int parse_arguments(int argc, char **argv) {
        enum { ARG_VERSION = 0x100, ARG_SOCKET_PATH };
        static const struct option options[] = {
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, ARG_VERSION },
                { "socket-path", required_argument, NULL, ARG_SOCKET_PATH },
                {},
        };
        int c;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        return help();
                case ARG_VERSION:
                        (void) printf("vmm-authorize %s\n", PROJECT_VERSION);
                        return 0;
                case ARG_SOCKET_PATH:
                        arg_socket_path = optarg;
                        break;
                default:
                        return -EINVAL;
                }
        if (optind != argc) {
                log_error("Expected no arguments; see --help.");
                return -EINVAL;
        }
        return 1;
}

static int listen_path(Service *s, const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;

        if (strlen(path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        memcpy(address.sun_path, path, strlen(path));
        (void) unlink(path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, SOMAXCONN) < 0)
                return -errno;
        return service_listen(s, TAKE_FD(fd));
}

static int listen_all(Service *s) {
        int n = 0, r;

        if (arg_socket_path)
                return listen_path(s, arg_socket_path);
        n = sd_listen_fds(true);
        if (n == 0)
                return -ENOTCONN;
        for (int i = 0; i < n; i++) {
                r = service_listen(s, SD_LISTEN_FDS_START + i);
                if (r < 0)
                        return r;
        }
        return MIN(n, 0);
}

static int run(void) {
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;
        _cleanup_(service_freep) Service *service = NULL;
        int r;

        r = sd_event_default(&event);
        if (r >= 0)
                r = service_new(&service, event, arg_socket_path ? UINT64_MAX : IDLE_USEC);
        if (r < 0)
                return log_error_errno(r, "Cannot begin: %m");
        r = listen_all(service);
        if (r == -ENOTCONN) {
                log_error("Got no socket from systemd; by hand, use --socket-path=.");
                return r;
        }
        if (r < 0)
                return log_error_errno(r, "Cannot listen: %m");
        (void) sd_notify(false, "READY=1");
        r = sd_event_loop(event);
        return r < 0 ? log_error_errno(r, "The event loop failed: %m") : 0;
}

int main(int argc, char **argv) {
        int r;

        log_open("vmm-authorize");
        r = parse_arguments(argc, argv);
        if (r > 0) {
                (void) signal(SIGPIPE, SIG_IGN);
                r = run();
        }
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
