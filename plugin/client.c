/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Connections: a packet out, a packet back, and the descriptors that come with it. */

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plugin-client.h"

/* More than any request but a large routing table or MSR list takes. */
#define REQUEST_SIZE 4096
/* Of the rings' memory. */
#define RINGS_VERSION 1

static void close_all(const int *fds, size_t n) {
        for (size_t i = 0; i < n; i++)
                (void) close(fds[i]);
}

/* --- packets --- */

static int send_packet(int fd, void *data, size_t size, int send_fd) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(sizeof(int))];
        } control = {};
        struct iovec iov = { .iov_base = data, .iov_len = size };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (send_fd >= 0) {
                message.msg_control = &control;
                message.msg_controllen = sizeof(control);
                control.header = (struct cmsghdr) { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                                    .cmsg_len = CMSG_LEN(sizeof(int)) };
                memcpy(CMSG_DATA(&control.header), &send_fd, sizeof(int));
        }
        do
                n = sendmsg(fd, &message, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
}

static int send_request(int fd, const MainRequest *request, int send_fd) {
        uint8_t small[REQUEST_SIZE], *data = small;
        size_t size = main_request__get_packed_size(request);
        int r;

        if (size > CHANNEL_MESSAGE_MAX)
                return -E2BIG;
        if (size > sizeof(small)) {
                data = malloc(size);
                if (!data)
                        return -ENOMEM;
        }
        (void) main_request__pack(request, data);
        r = send_packet(fd, data, size, send_fd);
        if (data != small)
                free(data);
        return r;
}

/* Returns the packet's size; all its descriptors are the caller's. */
static ssize_t receive_packet(struct crosvm *c, int fds[static CHANNEL_FDS_MAX], size_t *ret_n_fds) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(CHANNEL_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = c->buffer, .iov_len = CHANNEL_MESSAGE_MAX };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        size_t n_fds = 0;
        ssize_t n;

        do
                n = recvmsg(c->fd, &message, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h))
                if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
                        n_fds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                        memcpy(fds, CMSG_DATA(h), n_fds * sizeof(int));
                }
        if (n == 0 || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
                close_all(fds, n_fds);
                return n == 0 ? -ECONNRESET : -EPROTO;
        }
        *ret_n_fds = n_fds;
        return n;
}

/* `error` of an answer, which is positive in crosvm and said to be negative in its protocol. */
static int answered_error(int32_t error) {
        return error == INT32_MIN ? -EPROTO : error > 0 ? -error : error;
}

int plugin_ask(struct crosvm *c, const MainRequest *request, int send_fd, MainResponse__MessageCase expected, MainResponse **ret, int *ret_fds,
        size_t *n_fds) {
        size_t wanted = n_fds ? *n_fds : 0, n = 0;
        MainResponse *response = NULL;
        int fds[CHANNEL_FDS_MAX] = {}, r;
        ssize_t size;

        r = send_request(c->fd, request, send_fd);
        if (r < 0)
                return r;
        size = receive_packet(c, fds, &n);
        if (size < 0)
                return (int) size;
        response = main_response__unpack(NULL, (size_t) size, c->buffer);
        r = !response ? -EPROTO : response->error != 0 ? answered_error(response->error) :
                response->message_case != expected || n < wanted ? -EPROTO : 0;
        if (r < 0)
                wanted = 0;
        close_all(fds + wanted, n - wanted);
        if (r < 0) {
                if (response)
                        main_response__free_unpacked(response, NULL);
                return r;
        }
        if (wanted > 0)
                memcpy(ret_fds, fds, wanted * sizeof(int));
        *ret = response;
        return 0;
}

int plugin_ask_empty(struct crosvm *c, MainRequest__MessageCase what, MainResponse__MessageCase expected, MainResponse **ret, int *ret_fds,
        size_t *n_fds) {
        MainRequest__Empty empty = MAIN_REQUEST__EMPTY__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        request.message_case = what;
        request.start = &empty;
        return plugin_ask(c, &request, -1, expected, ret, ret_fds, n_fds);
}

int plugin_tell(struct crosvm *c, const MainRequest *request, MainResponse__MessageCase expected) {
        MainResponse *response = NULL;
        int r;

        r = plugin_ask(c, request, -1, expected, &response, NULL, NULL);
        if (r >= 0)
                main_response__free_unpacked(response, NULL);
        return r;
}

/* --- connections --- */

static PluginShared *shared_unref(PluginShared *shared) {
        if (!shared || atomic_fetch_sub(&shared->references, 1) > 1)
                return NULL;
        for (uint32_t i = 0; i < shared->n_vcpus; i++)
                plugin_vcpu_done(&shared->vcpus[i]);
        ring_memory_unmap(shared->rings, shared->n_vcpus);
        free(shared->vcpus);
        free(shared);
        return NULL;
}

static struct crosvm *connection_free(struct crosvm *c) {
        if (!c)
                return NULL;
        if (c->fd >= 0)
                (void) close(c->fd);
        (void) shared_unref(c->shared);
        free(c->buffer);
        free(c);
        return NULL;
}

/* Takes the descriptor, also on error; and a reference of what is shared. */
static struct crosvm *connection_new(int fd, PluginShared *shared) {
        struct crosvm *c = calloc(1, sizeof(struct crosvm));

        if (!c) {
                (void) close(fd);
                return NULL;
        }
        c->fd = fd;
        c->shared = shared;
        atomic_fetch_add(&shared->references, 1);
        c->buffer = malloc(CHANNEL_MESSAGE_MAX);
        return c->buffer ? c : connection_free(c);
}

/* Where the vCPUs are spoken to. How many there are is in how many descriptors come. */
static int get_vcpus(struct crosvm *c) {
        MainRequest__Empty empty = MAIN_REQUEST__EMPTY__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        MainResponse *response = NULL;
        int fds[CHANNEL_FDS_MAX] = {}, r;
        ssize_t size;
        size_t n = 0;

        request.message_case = MAIN_REQUEST__MESSAGE_GET_VCPUS;
        request.get_vcpus = &empty;
        r = send_request(c->fd, &request, -1);
        if (r < 0)
                return r;
        size = receive_packet(c, fds, &n);
        if (size < 0)
                return (int) size;
        response = main_response__unpack(NULL, (size_t) size, c->buffer);
        r = !response ? -EPROTO : response->error != 0 ? answered_error(response->error) : n == 0 || n % 2 != 0 ? -EPROTO : 0;
        if (response)
                main_response__free_unpacked(response, NULL);
        if (r >= 0) {
                c->shared->vcpus = calloc(n / 2, sizeof(struct crosvm_vcpu));
                r = c->shared->vcpus ? 0 : -ENOMEM;
        }
        if (r < 0) {
                close_all(fds, n);
                return r;
        }
        c->shared->n_vcpus = (uint32_t) (n / 2);
        for (size_t i = 0; i < n / 2; i++)
                plugin_vcpu_init(&c->shared->vcpus[i], fds[2 * i], fds[2 * i + 1]);
        return 0;
}

/* Rings instead of the pipes, where who is behind the socket has them: crosvm has not. */
static int get_rings(struct crosvm *c) {
        MainRequest__GetRings get = MAIN_REQUEST__GET_RINGS__INIT;
        const char *transport = getenv("CROSVM_PLUGIN_TRANSPORT");
        MainRequest request = MAIN_REQUEST__INIT;
        PluginShared *shared = c->shared;
        MainResponse *response = NULL;
        size_t n = 1;
        int fd, r;

        if (transport && strcmp(transport, "pipe") == 0)
                return 0;
        get.version = RINGS_VERSION;
        request.message_case = MAIN_REQUEST__MESSAGE_GET_RINGS;
        request.get_rings = &get;
        if (plugin_ask(c, &request, -1, MAIN_RESPONSE__MESSAGE_GET_RINGS, &response, &fd, &n) < 0)
                return 0;
        main_response__free_unpacked(response, NULL);
        /* There is no way back to the pipes any more. */
        r = ring_memory_map(fd, shared->n_vcpus, &shared->rings);
        (void) close(fd);
        for (uint32_t i = 0; i < shared->n_vcpus && r >= 0; i++)
                plugin_vcpu_use_ring(&shared->vcpus[i], &shared->rings[i]);
        return r;
}

static int parse_fd(const char *text, int *ret) {
        char *end;
        long value;

        errno = 0;
        value = strtol(text, &end, 10);
        if (errno != 0 || end == text || *end != 0 || value < 0 || value > INT_MAX)
                return -EINVAL;
        *ret = (int) value;
        return 0;
}

int crosvm_connect(struct crosvm **ret) {
        const char *text = getenv("CROSVM_SOCKET");
        PluginShared *shared;
        struct crosvm *c;
        int fd, r;

        if (!text)
                return -ENOTCONN;
        r = parse_fd(text, &fd);
        if (r < 0)
                return r;
        shared = calloc(1, sizeof(PluginShared));
        if (!shared)
                return -ENOMEM;
        atomic_init(&shared->references, 1);
        c = connection_new(fd, shared);
        (void) shared_unref(shared);
        if (!c)
                return -ENOMEM;
        r = get_vcpus(c);
        if (r >= 0)
                r = get_rings(c);
        if (r < 0) {
                (void) connection_free(c);
                return r;
        }
        *ret = c;
        return 0;
}

int crosvm_new_connection(struct crosvm *c, struct crosvm **ret) {
        MainResponse *response = NULL;
        struct crosvm *made;
        size_t n = 1;
        int fd, r;

        r = plugin_ask_empty(c, MAIN_REQUEST__MESSAGE_NEW_CONNECTION, MAIN_RESPONSE__MESSAGE_NEW_CONNECTION, &response, &fd, &n);
        if (r < 0)
                return r;
        main_response__free_unpacked(response, NULL);
        made = connection_new(fd, c->shared);
        if (!made)
                return -ENOMEM;
        *ret = made;
        return 0;
}

int crosvm_destroy_connection(struct crosvm **c) {
        *c = connection_free(*c);
        return 0;
}

int crosvm_get_shutdown_eventfd(struct crosvm *c) {
        MainResponse *response = NULL;
        size_t n = 1;
        int fd, r;

        r = plugin_ask_empty(c, MAIN_REQUEST__MESSAGE_GET_SHUTDOWN_EVENTFD, MAIN_RESPONSE__MESSAGE_GET_SHUTDOWN_EVENTFD, &response, &fd, &n);
        if (r < 0)
                return r;
        main_response__free_unpacked(response, NULL);
        return fd;
}
