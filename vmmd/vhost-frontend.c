/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "vhost-frontend.h"
#include "vhost-user.h"

#define BIT64(n) (UINT64_C(1) << (n))

/* What this front-end uses. Everything else that a back-end may offer stays off. */
#define PROTOCOL_FEATURES                                                                                      \
        (BIT64(VHOST_USER_PROTOCOL_F_MQ) | BIT64(VHOST_USER_PROTOCOL_F_REPLY_ACK) |                            \
                BIT64(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | BIT64(VHOST_USER_PROTOCOL_F_CONFIG) |               \
                BIT64(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) | BIT64(VHOST_USER_PROTOCOL_F_STATUS))

/* Virtio features that would need something of this transport that it does not do: packed rings (in-flight log and ring base differ), IOMMU, SR-IOV,
 * notification data, ring reset. */
#define FEATURES_WITHHELD                                                                                      \
        (BIT64(VHOST_USER_F_PROTOCOL_FEATURES) | BIT64(VIRTIO_F_RING_PACKED) | BIT64(VIRTIO_F_ACCESS_PLATFORM) |      \
                BIT64(VIRTIO_F_SR_IOV) | BIT64(38) /* NOTIFICATION_DATA */ | BIT64(40) /* RING_RESET */)

/* A helper that does not answer within this time counts as gone. Starting one may take systemd's own time-out. */
#define REQUEST_TIMEOUT_SEC 60
#define START_TIMEOUT_SEC 120

struct VhostFrontend {
        char *name;
        char *path;
        uint16_t virtio_id;
        const GuestMemory *memory;
        VhostFrontendHandlers handlers;

        pthread_mutex_t lock; /* everything below; held across a request and its reply */
        pthread_cond_t changed;
        VhostFrontendState state;
        char *error;
        unsigned reconnects;

        pthread_t thread; /* connects */
        bool has_thread;
        atomic_bool closing;

        int fd;         /* the session */
        int backend_fd; /* our end of the back-end's own channel */
        uint64_t backend_features;
        uint64_t protocol_features;
        uint64_t features; /* acknowledged by the driver, while active */
        bool active;
        bool config_stale;
        uint32_t config_size;
        uint8_t config[VHOST_USER_CONFIG_MAX];
        int inflight_fd;
        VhostUserInflight inflight;

        VhostQueue queues[VHOST_FRONTEND_QUEUES_MAX];
        unsigned n_queues;

        sd_event_source *session_source, *backend_source;
        sd_event_source *error_sources[VHOST_FRONTEND_QUEUES_MAX];
        VhostUserReceiver receiver;
};

static bool has_protocol(const VhostFrontend *f, unsigned bit) {
        return f->protocol_features & BIT64(bit);
}

/* Bytes of configuration space by device type: back-ends refuse to be asked for more than they have. (virtio 1.2, 5) */
static uint32_t config_size_of(uint16_t virtio_id) {
        switch (virtio_id) {
        case VIRTIO_ID_NET:
                return 12;
        case VIRTIO_ID_BLOCK:
                return 60;
        case VIRTIO_ID_CONSOLE:
                return 12;
        case VIRTIO_ID_RNG:
                return 0;
        case VIRTIO_ID_BALLOON:
                return 16;
        case VIRTIO_ID_VSOCK:
                return 8;
        case VIRTIO_ID_FS:
                return 44;
        case VIRTIO_ID_PMEM:
                return 16;
        case VIRTIO_ID_INPUT:
                return 136;
        default:
                return VHOST_USER_CONFIG_MAX;
        }
}

/* --- requests; with the lock held or on the connecting thread before the session is published --- */

static int receive_reply(VhostFrontend *f, uint32_t request, VhostUserMsg *reply, int *ret_fd) {
        int fds[VHOST_USER_FDS_MAX], r;
        size_t n_fds = ELEMENTSOF(fds);

        r = vhost_user_recv(f->fd, reply, fds, &n_fds);
        if (r < 0)
                return r == -EAGAIN ? -ETIMEDOUT : r;
        if (ret_fd)
                *ret_fd = n_fds > 0 ? fds[0] : -EBADF;
        for (size_t i = ret_fd ? 1 : 0; i < n_fds; i++)
                (void) safe_close(fds[i]);
        if (reply->header.request != request || !(reply->header.flags & VHOST_USER_FLAG_REPLY)) {
                if (ret_fd)
                        *ret_fd = safe_close(*ret_fd);
                return -EPROTO;
        }
        return 0;
}

/* Sends a request that has no reply; with `confirm`, and where negotiated, waits for the back-end's word. */
static int tell(VhostFrontend *f, VhostUserMsg *msg, uint32_t request, uint32_t size, const int *fds, size_t n_fds,
        bool confirm) {
        VhostUserMsg reply;
        int r;

        confirm = confirm && has_protocol(f, VHOST_USER_PROTOCOL_F_REPLY_ACK);
        msg->header = (VhostUserHeader) { .request = request, .size = size,
                                          .flags = confirm ? VHOST_USER_FLAG_NEED_REPLY : 0 };
        r = vhost_user_send(f->fd, msg, fds, n_fds);
        if (r < 0 || !confirm)
                return r;
        r = receive_reply(f, request, &reply, NULL);
        if (r < 0)
                return r;
        return reply.payload.u64 == 0 ? 0 : -EREMOTEIO;
}

static int tell_u64(VhostFrontend *f, uint32_t request, uint64_t value) {
        VhostUserMsg msg = { .payload.u64 = value };

        return tell(f, &msg, request, sizeof(uint64_t), NULL, 0, false);
}

static int ask(VhostFrontend *f, VhostUserMsg *msg, uint32_t request, uint32_t size, int *ret_fd) {
        int r;

        msg->header = (VhostUserHeader) { .request = request, .size = size };
        r = vhost_user_send(f->fd, msg, NULL, 0);
        return r < 0 ? r : receive_reply(f, request, msg, ret_fd);
}

static int ask_u64(VhostFrontend *f, uint32_t request, uint64_t *ret) {
        VhostUserMsg msg = {};
        int r;

        r = ask(f, &msg, request, 0, NULL);
        if (r < 0)
                return r;
        if (msg.header.size != sizeof(uint64_t))
                return -EPROTO;
        *ret = msg.payload.u64;
        return 0;
}

static int fetch_config(VhostFrontend *f) {
        uint32_t size = config_size_of(f->virtio_id);
        VhostUserMsg msg = { .payload.config = { .size = size } };
        int r;

        if (size == 0 || !has_protocol(f, VHOST_USER_PROTOCOL_F_CONFIG))
                return 0;
        r = ask(f, &msg, VHOST_USER_GET_CONFIG, VHOST_USER_CONFIG_HEADER_SIZE + size, NULL);
        if (r < 0)
                return r;
        /* "uses zero length of payload to indicate an error" */
        if (msg.header.size < VHOST_USER_CONFIG_HEADER_SIZE || msg.payload.config.size > VHOST_USER_CONFIG_MAX ||
                msg.header.size != VHOST_USER_CONFIG_HEADER_SIZE + msg.payload.config.size)
                return -EREMOTEIO;
        f->config_size = msg.payload.config.size;
        memcpy(f->config, msg.payload.config.region, f->config_size);
        f->config_stale = false;
        return 0;
}

/* --- a session's beginning --- */

static int open_backend_channel(VhostFrontend *f) {
        _cleanup_close_ int theirs = -EBADF;
        VhostUserMsg msg = {};
        int pair[2], r;

        if (!has_protocol(f, VHOST_USER_PROTOCOL_F_BACKEND_REQ))
                return 0;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        f->backend_fd = pair[0];
        theirs = pair[1];
        r = fcntl(f->backend_fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
        if (r < 0)
                return r;
        return tell(f, &msg, VHOST_USER_SET_BACKEND_REQ_FD, 0, &theirs, 1, true);
}

static int negotiate(VhostFrontend *f, char **ret_message) {
        uint64_t features, offered, queues;
        VhostUserMsg msg = {};
        int r;

        r = tell(f, &msg, VHOST_USER_SET_OWNER, 0, NULL, 0, false);
        if (r < 0)
                return r;
        r = ask_u64(f, VHOST_USER_GET_FEATURES, &features);
        if (r < 0)
                return r;
        if (!(features & BIT64(VHOST_USER_F_PROTOCOL_FEATURES)) || !(features & BIT64(VIRTIO_F_VERSION_1)))
                return set_message(ret_message, -EPROTONOSUPPORT,
                        "its features %#llx lack VIRTIO_F_VERSION_1 or VHOST_USER_F_PROTOCOL_FEATURES",
                        (unsigned long long) features);
        /* Across a reconnect the driver's choice stands: a back-end that cannot do it any more is another device. */
        if (f->active && (f->features & ~features))
                return set_message(ret_message, -EPROTONOSUPPORT,
                        "it came back without features that the guest uses: %#llx",
                        (unsigned long long) (f->features & ~features));
        f->backend_features = features;

        r = ask_u64(f, VHOST_USER_GET_PROTOCOL_FEATURES, &offered);
        if (r < 0)
                return r;
        f->protocol_features = offered & PROTOCOL_FEATURES;
        r = tell_u64(f, VHOST_USER_SET_PROTOCOL_FEATURES, f->protocol_features);
        if (r < 0)
                return r;

        if (has_protocol(f, VHOST_USER_PROTOCOL_F_MQ)) {
                r = ask_u64(f, VHOST_USER_GET_QUEUE_NUM, &queues);
                if (r < 0)
                        return r;
                if (queues < f->n_queues)
                        return set_message(ret_message, -EPROTONOSUPPORT,
                                "it has %llu queues, the machine's definition asks for %u", (unsigned long long) queues,
                                f->n_queues);
        }
        r = open_backend_channel(f);
        return r < 0 ? r : fetch_config(f);
}

static void close_session(VhostFrontend *f) {
        f->fd = safe_close(f->fd);
        f->backend_fd = safe_close(f->backend_fd);
}

static int set_timeout(int fd, unsigned seconds) {
        struct timeval tv = { .tv_sec = seconds };

        if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
                setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
                return -errno;
        return 0;
}

static int give_rings(VhostFrontend *f, bool resume);

/* One attempt at a whole session. On the connecting thread, without the lock: nobody else uses the session before it is published. */
static int connect_session(VhostFrontend *f, char **ret_message) {
        int r;

        f->fd = connect_unix(f->path);
        if (f->fd < 0)
                return set_message(ret_message, f->fd, "cannot connect to its socket %s: %s", f->path, strerror(-f->fd));
        if (f->closing)
                return -ECANCELED;
        r = set_timeout(f->fd, START_TIMEOUT_SEC);
        if (r < 0)
                return r;
        r = negotiate(f, ret_message);
        if (r >= 0)
                r = set_timeout(f->fd, REQUEST_TIMEOUT_SEC);
        if (r >= 0 && f->active)
                r = give_rings(f, true);
        return r;
}

static const char *describe_session_error(int error) {
        switch (error) {
        case -ENODATA:
        case -ECONNRESET:
        case -EPIPE:
                return "it closed the connection before it was ready (its unit's journal says why)";
        case -ETIMEDOUT:
                return "it did not answer in time";
        case -EPROTO:
        case -EMSGSIZE:
                return "it does not speak vhost-user as specified";
        case -EREMOTEIO:
                return "it refused a request";
        default:
                return strerror(-error);
        }
}

static void *connecting_thread(void *argument) {
        VhostFrontend *f = argument;
        _cleanup_free_ char *message = NULL;
        int r;

        (void) pthread_setname_np(pthread_self(), "vhost-connect");
        r = connect_session(f, &message);

        (void) pthread_mutex_lock(&f->lock);
        if (r < 0) {
                close_session(f);
                f->state = VHOST_FRONTEND_FAILED;
                (void) set_message(&f->error, 0, "%s", message ?: describe_session_error(r));
        } else
                f->state = VHOST_FRONTEND_READY;
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);

        f->handlers.state_changed(f->handlers.userdata);
        return NULL;
}

/* With the lock held, in the event loop's thread, with no connecting thread at work. */
static int begin_connecting(VhostFrontend *f) {
        int r;

        if (f->has_thread) {
                (void) pthread_join(f->thread, NULL);
                f->has_thread = false;
        }
        f->state = VHOST_FRONTEND_CONNECTING;
        r = -pthread_create(&f->thread, NULL, connecting_thread, f);
        if (r < 0) {
                f->state = VHOST_FRONTEND_FAILED;
                return r;
        }
        f->has_thread = true;
        return 0;
}

/* --- making and freeing --- */

int vhost_frontend_new(const char *name, const char *path, uint16_t virtio_id, unsigned n_queues,
        const GuestMemory *memory, const VhostFrontendHandlers *handlers, VhostFrontend **ret) {
        _cleanup_(vhost_frontend_freep) VhostFrontend *f = NULL;

        if (n_queues > VHOST_FRONTEND_QUEUES_MAX)
                return -E2BIG;
        f = calloc(1, sizeof(VhostFrontend));
        if (!f)
                return -ENOMEM;
        f->virtio_id = virtio_id;
        f->memory = memory;
        f->handlers = *handlers;
        f->fd = f->backend_fd = f->inflight_fd = -EBADF;
        (void) pthread_mutex_init(&f->lock, NULL);
        (void) pthread_cond_init(&f->changed, NULL);
        for (unsigned i = 0; i < ELEMENTSOF(f->queues); i++)
                f->queues[i] = (VhostQueue) { .kick_fd = -EBADF, .call_fd = -EBADF, .error_fd = -EBADF };

        f->name = strdup(name);
        f->path = strdup(path);
        if (!f->name || !f->path)
                return -ENOMEM;
        for (unsigned i = 0; i < n_queues; i++) {
                VhostQueue *q = &f->queues[i];

                q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                q->error_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                if (q->kick_fd < 0 || q->call_fd < 0 || q->error_fd < 0)
                        return -errno;
        }
        f->n_queues = n_queues;
        *ret = TAKE_PTR(f);
        return 0;
}

static void detach(VhostFrontend *f) {
        f->session_source = sd_event_source_disable_unref(f->session_source);
        f->backend_source = sd_event_source_disable_unref(f->backend_source);
        for (unsigned i = 0; i < ELEMENTSOF(f->error_sources); i++)
                f->error_sources[i] = sd_event_source_disable_unref(f->error_sources[i]);
        vhost_user_receiver_done(&f->receiver);
}

void vhost_frontend_abort(VhostFrontend *f) {
        int fd;

        f->closing = true;
        /* Without the lock: whoever holds it may be waiting for the helper's answer. Sockets are closed only by the loop's thread and
         * by a connecting thread that failed; at worst this shuts down nothing. */
        fd = __atomic_load_n(&f->fd, __ATOMIC_ACQUIRE);
        if (fd >= 0)
                (void) shutdown(fd, SHUT_RDWR);
        (void) pthread_mutex_lock(&f->lock);
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
}

VhostFrontend *vhost_frontend_free(VhostFrontend *f) {
        if (!f)
                return NULL;
        vhost_frontend_abort(f);
        if (f->has_thread)
                (void) pthread_join(f->thread, NULL);
        detach(f);
        close_session(f);
        f->inflight_fd = safe_close(f->inflight_fd);
        for (unsigned i = 0; i < ELEMENTSOF(f->queues); i++) {
                f->queues[i].kick_fd = safe_close(f->queues[i].kick_fd);
                f->queues[i].call_fd = safe_close(f->queues[i].call_fd);
                f->queues[i].error_fd = safe_close(f->queues[i].error_fd);
        }
        free(f->name);
        free(f->path);
        free(f->error);
        (void) pthread_mutex_destroy(&f->lock);
        (void) pthread_cond_destroy(&f->changed);
        return mfree(f);
}

int vhost_frontend_start(VhostFrontend *f) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = begin_connecting(f);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* --- the event loop's part --- */

static int on_session_event(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        VhostFrontend *f = userdata;
        int r = 0;

        if (!(revents & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
                return 0;

        detach(f);
        (void) pthread_mutex_lock(&f->lock);
        if (f->state == VHOST_FRONTEND_READY && !f->closing) {
                close_session(f);
                f->reconnects++;
                r = begin_connecting(f);
        }
        (void) pthread_mutex_unlock(&f->lock);
        f->handlers.state_changed(f->handlers.userdata);
        return r < 0 ? 0 : r;
}

static void handle_backend_message(VhostFrontend *f) {
        const VhostUserMsg *msg = &f->receiver.msg;
        VhostUserMsg reply = { .header = { .request = msg->header.request, .flags = VHOST_USER_FLAG_REPLY,
                                           .size = sizeof(uint64_t) } };

        if (msg->header.request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG) {
                (void) pthread_mutex_lock(&f->lock);
                f->config_stale = true;
                (void) pthread_mutex_unlock(&f->lock);
                f->handlers.config_changed(f->handlers.userdata);
        } else
                reply.payload.u64 = 1;
        if (msg->header.flags & VHOST_USER_FLAG_NEED_REPLY)
                (void) vhost_user_send(f->backend_fd, &reply, NULL, 0);
}

static int on_backend_event(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        VhostFrontend *f = userdata;
        int r;

        r = vhost_user_receiver_step(&f->receiver, fd);
        if (r > 0)
                handle_backend_message(f);
        if (r != 0)
                vhost_user_receiver_done(&f->receiver);
        if (r < 0 && r != -EAGAIN) /* the session's own socket tells of the helper's end */
                f->backend_source = sd_event_source_disable_unref(f->backend_source);
        return 0;
}

static int on_ring_error(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        VhostFrontend *f = userdata;
        uint64_t count;

        if (read(fd, &count, sizeof(count)) == sizeof(count))
                f->handlers.broken(f->handlers.userdata);
        return 0;
}

int vhost_frontend_attach(VhostFrontend *f, sd_event *event) {
        int r;

        if (f->session_source)
                return 0;
        (void) pthread_mutex_lock(&f->lock);
        r = f->state == VHOST_FRONTEND_READY ?
                sd_event_add_io(event, &f->session_source, f->fd, EPOLLRDHUP, on_session_event, f) : 0;
        if (r >= 0 && f->backend_fd >= 0)
                r = sd_event_add_io(event, &f->backend_source, f->backend_fd, EPOLLIN, on_backend_event, f);
        for (unsigned i = 0; i < f->n_queues && r >= 0; i++)
                r = sd_event_add_io(event, &f->error_sources[i], f->queues[i].error_fd, EPOLLIN, on_ring_error, f);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* --- what the transport asks --- */

VhostFrontendState vhost_frontend_state(VhostFrontend *f) {
        VhostFrontendState state;

        (void) pthread_mutex_lock(&f->lock);
        state = f->state;
        (void) pthread_mutex_unlock(&f->lock);
        return state;
}

char *vhost_frontend_error(VhostFrontend *f) {
        char *copy;

        (void) pthread_mutex_lock(&f->lock);
        copy = f->error ? strdup(f->error) : NULL;
        (void) pthread_mutex_unlock(&f->lock);
        return copy;
}

unsigned vhost_frontend_reconnects(VhostFrontend *f) {
        unsigned n;

        (void) pthread_mutex_lock(&f->lock);
        n = f->reconnects;
        (void) pthread_mutex_unlock(&f->lock);
        return n;
}

/* With the lock held. */
static int wait_ready(VhostFrontend *f) {
        while (f->state == VHOST_FRONTEND_CONNECTING && !f->closing)
                (void) pthread_cond_wait(&f->changed, &f->lock);
        return f->state == VHOST_FRONTEND_READY && !f->closing ? 0 : -ENOLINK;
}

int vhost_frontend_wait(VhostFrontend *f) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = wait_ready(f);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

uint64_t vhost_frontend_features(VhostFrontend *f) {
        uint64_t features;

        (void) pthread_mutex_lock(&f->lock);
        features = f->backend_features & ~FEATURES_WITHHELD;
        (void) pthread_mutex_unlock(&f->lock);
        return features;
}

unsigned vhost_frontend_n_queues(const VhostFrontend *f) {
        return f->n_queues;
}

VhostQueue *vhost_frontend_queue(VhostFrontend *f, unsigned index) {
        return index < f->n_queues ? &f->queues[index] : NULL;
}

void vhost_frontend_config_read(VhostFrontend *f, uint32_t offset, void *data, uint32_t size) {
        memset(data, 0, size);
        (void) pthread_mutex_lock(&f->lock);
        if (f->config_stale && wait_ready(f) >= 0)
                (void) fetch_config(f);
        if (offset < f->config_size)
                memcpy(data, f->config + offset, MIN(size, f->config_size - offset));
        (void) pthread_mutex_unlock(&f->lock);
}

int vhost_frontend_config_write(VhostFrontend *f, uint32_t offset, const void *data, uint32_t size) {
        VhostUserMsg msg = { .payload.config = { .offset = offset, .size = size,
                                                 .flags = VHOST_USER_CONFIG_WRITABLE } };
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = wait_ready(f);
        if (r >= 0 && (!has_protocol(f, VHOST_USER_PROTOCOL_F_CONFIG) || !range_within(offset, size, f->config_size)))
                r = -EINVAL;
        if (r >= 0) {
                memcpy(msg.payload.config.region, data, size);
                r = tell(f, &msg, VHOST_USER_SET_CONFIG, VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0, true);
        }
        if (r >= 0)
                f->config_stale = true;
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* --- rings --- */

static int give_memory(VhostFrontend *f) {
        VhostUserMemory table = {};
        VhostUserMsg msg = {};
        int fds[VHOST_USER_MEMORY_REGIONS_MAX];
        size_t n = f->memory->n_regions;

        table.nregions = (uint32_t) n;
        for (size_t i = 0; i < n; i++) {
                const GuestRegion *region = &f->memory->regions[i];

                table.regions[i] = (VhostUserMemoryRegion) {
                        .guest_phys_addr = region->guest_address,
                        .memory_size = region->size,
                        .userspace_addr = region->user_address,
                        .mmap_offset = region->fd_offset,
                };
                fds[i] = region->fd;
        }
        msg.payload.memory = table;
        return tell(f, &msg, VHOST_USER_SET_MEM_TABLE,
                (uint32_t) (offsetof(VhostUserMemory, regions) + n * sizeof(VhostUserMemoryRegion)), fds, n, true);
}

/* The log of requests under way outlives the back-end: it is asked for once an activation and handed to each session after that. */
static int give_inflight(VhostFrontend *f) {
        uint16_t size = 0;
        VhostUserMsg msg = {};
        int r;

        if (!has_protocol(f, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
                return 0;
        if (f->inflight_fd < 0) {
                for (unsigned i = 0; i < f->n_queues; i++)
                        size = MAX(size, f->queues[i].enabled ? f->queues[i].size : 0);
                msg.payload.inflight = (VhostUserInflight) { .num_queues = (uint16_t) f->n_queues, .queue_size = size };
                r = ask(f, &msg, VHOST_USER_GET_INFLIGHT_FD, sizeof(VhostUserInflight), &f->inflight_fd);
                if (r < 0)
                        return r;
                if (f->inflight_fd < 0)
                        return -EPROTO;
                f->inflight = msg.payload.inflight;
        }
        msg = (VhostUserMsg) { .payload.inflight = f->inflight };
        return tell(f, &msg, VHOST_USER_SET_INFLIGHT_FD, sizeof(VhostUserInflight), &f->inflight_fd, 1, true);
}

static int give_fd(VhostFrontend *f, uint32_t request, unsigned index, int fd) {
        VhostUserMsg msg = { .payload.u64 = index };

        return tell(f, &msg, request, sizeof(uint64_t), &fd, 1, false);
}

static int give_ring(VhostFrontend *f, unsigned index, bool resume) {
        const VhostQueue *q = &f->queues[index];
        uint64_t n = q->size;
        const struct vring_desc *descriptors = guest_memory_at(f->memory, q->descriptors, n * sizeof(struct vring_desc));
        const struct vring_avail *driver = guest_memory_at(f->memory, q->driver, 6 + n * 2);
        const struct vring_used *device = guest_memory_at(f->memory, q->device, 6 + n * sizeof(struct vring_used_elem));
        VhostUserMsg msg = {};
        int r;

        if (!descriptors || !driver || !device)
                return -EINVAL;

        msg.payload.state = (struct vhost_vring_state) { .index = index, .num = (unsigned) n };
        r = tell(f, &msg, VHOST_USER_SET_VRING_NUM, sizeof(struct vhost_vring_state), NULL, 0, false);
        if (r < 0)
                return r;

        /* A back-end that died could not say where it was. What it had finished is in the used ring; the in-flight log has the rest. */
        msg.payload.state = (struct vhost_vring_state) {
                .index = index,
                .num = resume ? __atomic_load_n(&device->idx, __ATOMIC_ACQUIRE) : 0,
        };
        r = tell(f, &msg, VHOST_USER_SET_VRING_BASE, sizeof(struct vhost_vring_state), NULL, 0, false);
        if (r < 0)
                return r;

        msg.payload.addr = (struct vhost_vring_addr) {
                .index = index,
                .desc_user_addr = (uint64_t) (uintptr_t) descriptors,
                .avail_user_addr = (uint64_t) (uintptr_t) driver,
                .used_user_addr = (uint64_t) (uintptr_t) device,
        };
        r = tell(f, &msg, VHOST_USER_SET_VRING_ADDR, sizeof(struct vhost_vring_addr), NULL, 0, true);
        if (r < 0)
                return r;

        r = give_fd(f, VHOST_USER_SET_VRING_ERR, index, q->error_fd);
        if (r >= 0)
                r = give_fd(f, VHOST_USER_SET_VRING_CALL, index, q->call_fd);
        if (r >= 0)
                r = give_fd(f, VHOST_USER_SET_VRING_KICK, index, q->kick_fd);
        return r;
}

static int give_rings(VhostFrontend *f, bool resume) {
        VhostUserMsg msg = {};
        int r;

        r = tell_u64(f, VHOST_USER_SET_FEATURES, f->features | BIT64(VHOST_USER_F_PROTOCOL_FEATURES));
        if (r >= 0)
                r = give_memory(f);
        if (r >= 0)
                r = give_inflight(f);
        for (unsigned i = 0; i < f->n_queues && r >= 0; i++)
                if (f->queues[i].enabled)
                        r = give_ring(f, i, resume);
        for (unsigned i = 0; i < f->n_queues && r >= 0; i++)
                if (f->queues[i].enabled) {
                        msg.payload.state = (struct vhost_vring_state) { .index = i, .num = 1 };
                        r = tell(f, &msg, VHOST_USER_SET_VRING_ENABLE, sizeof(struct vhost_vring_state), NULL, 0, true);
                }
        if (r >= 0 && has_protocol(f, VHOST_USER_PROTOCOL_F_STATUS))
                r = tell_u64(f, VHOST_USER_SET_STATUS,
                        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                                VIRTIO_CONFIG_S_DRIVER_OK);
        /* Kicks that came while no session was there may have been read by a back-end that then died: have it look. */
        for (unsigned i = 0; i < f->n_queues && r >= 0 && resume; i++)
                if (f->queues[i].enabled)
                        (void) eventfd_write(f->queues[i].kick_fd, 1);
        return r;
}

/* Whether the helper is gone or beside itself, rather than the driver's rings wrong. */
static bool is_connection_error(int error) {
        return error == -ENODATA || error == -ECONNRESET || error == -EPIPE;
}

int vhost_frontend_activate(VhostFrontend *f, uint64_t features) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = wait_ready(f);
        if (r >= 0) {
                f->features = features;
                f->active = true;
                f->inflight_fd = safe_close(f->inflight_fd);
                r = give_rings(f, false);
                /* The hang-up starts a new session, which brings the rings over. */
                if (is_connection_error(r))
                        r = 0;
                if (r < 0)
                        f->active = false;
        }
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

void vhost_frontend_deactivate(VhostFrontend *f) {
        (void) pthread_mutex_lock(&f->lock);
        if (f->active && wait_ready(f) >= 0) {
                for (unsigned i = 0; i < f->n_queues; i++) {
                        VhostUserMsg msg = { .payload.state = { .index = i } };

                        if (f->queues[i].enabled &&
                                ask(f, &msg, VHOST_USER_GET_VRING_BASE, sizeof(struct vhost_vring_state), NULL) < 0)
                                break;
                }
                if (has_protocol(f, VHOST_USER_PROTOCOL_F_STATUS))
                        (void) tell_u64(f, VHOST_USER_SET_STATUS, 0);
        }
        f->active = false;
        f->inflight_fd = safe_close(f->inflight_fd);
        for (unsigned i = 0; i < f->n_queues; i++) {
                uint64_t count;

                f->queues[i].enabled = false;
                /* Signals of the old rings mean nothing to the next driver. */
                (void) !read(f->queues[i].kick_fd, &count, sizeof(count));
                (void) !read(f->queues[i].call_fd, &count, sizeof(count));
        }
        (void) pthread_mutex_unlock(&f->lock);
}
