/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vsock-pipe connect PORT | listen PORT: one vsock connection, to the host or from it, between standard input and output.
 * vsock-pipe ask PORT | echo PORT: one of messages. Sends some and expects them again, or sends what comes.
 * For guests whose tools know no such sockets, among them that of tests/interop/qemu; linked statically, as nothing else is there. */

#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) {
        perror(what);
        return -1;
}

static int open_connection(int listens, int type, unsigned port) {
        struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = listens ? VMADDR_CID_ANY : VMADDR_CID_HOST, .svm_port = port };
        int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);

        if (fd < 0)
                return fail("socket");
        if (!listens)
                return connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0 ? fail("connect") : fd;
        if (bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, 1) < 0)
                return fail("listen");
        (void) fputs("listening\n", stderr);
        fd = accept(fd, NULL, NULL);
        return fd < 0 ? fail("accept") : fd;
}

/* Returns 1 to go on, 0 at the end, or -1. */
static int copy_some(int from, int to) {
        char buffer[65536];
        ssize_t n = read(from, buffer, sizeof(buffer)), k;

        if (n <= 0)
                return (int) n;
        for (ssize_t done = 0; done < n; done += k) {
                k = write(to, buffer + done, (size_t) (n - done));
                if (k < 0)
                        return -1;
        }
        return 1;
}

/* Both ways, until the other side has no more. */
static int copy(int fd) {
        struct pollfd p[] = { { .fd = fd, .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };
        int r = 1;

        while (r > 0) {
                if (poll(p, 2, -1) < 0)
                        return fail("poll");
                if (p[1].revents && copy_some(STDIN_FILENO, fd) <= 0) {
                        p[1].fd = -1;
                        (void) shutdown(fd, SHUT_WR);
                }
                if (p[0].revents)
                        r = copy_some(fd, STDOUT_FILENO);
        }
        return r < 0 ? fail("read") : 0;
}

/* ---- messages ---- */

#define MESSAGE_MAX 200000

static char message[MESSAGE_MAX + 1];

/* Each byte of one says which one it is. */
static int ask(int fd) {
        static const size_t sizes[] = { 1, 100, 4052, 4053, 65536, 65537, MESSAGE_MAX, 3 };
        const size_t n = sizeof(sizes) / sizeof(sizes[0]);

        for (size_t i = 0; i < n; i++) {
                memset(message, 'a' + (int) i, sizes[i]);
                if (send(fd, message, sizes[i], MSG_EOR) != (ssize_t) sizes[i])
                        return fail("send");
        }
        for (size_t i = 0; i < n; i++) {
                ssize_t k = recv(fd, message, sizeof(message), MSG_WAITALL);

                if (k != (ssize_t) sizes[i] || message[0] != 'a' + (int) i || message[k - 1] != 'a' + (int) i) {
                        (void) printf("%zd bytes instead of %zu\n", k, sizes[i]);
                        return -1;
                }
                (void) printf("%zd\n", k);
        }
        return 0;
}

static int echo(int fd) {
        ssize_t n;

        while ((n = recv(fd, message, sizeof(message), 0)) > 0)
                if (send(fd, message, (size_t) n, 0) != n)
                        return fail("send");
        return n < 0 ? fail("recv") : 0;
}

int main(int argc, char **argv) {
        static const struct {
                const char *name;
                int listens, type;
                int (*run)(int fd);
        } commands[] = {
                { "connect", 0, SOCK_STREAM, copy },
                { "listen", 1, SOCK_STREAM, copy },
                { "ask", 0, SOCK_SEQPACKET, ask },
                { "echo", 1, SOCK_SEQPACKET, echo },
        };
        char *end = NULL;
        unsigned long port = argc == 3 ? strtoul(argv[2], &end, 10) : 0;
        int fd;

        for (size_t i = 0; port > 0 && port <= UINT32_MAX && !*end && i < sizeof(commands) / sizeof(commands[0]); i++)
                if (strcmp(argv[1], commands[i].name) == 0) {
                        fd = open_connection(commands[i].listens, commands[i].type, (unsigned) port);
                        return fd >= 0 && commands[i].run(fd) >= 0 ? EXIT_SUCCESS : EXIT_FAILURE;
                }
        (void) fputs("vsock-pipe connect|listen|ask|echo PORT\n", stderr);
        return EXIT_FAILURE;
}
