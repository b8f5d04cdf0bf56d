/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "vhost-device-state.h"
#include "vhost-frontend.h"
#include "vhost-inflight.h"
#include "vhost-postcopy.h"
#include "vhost-rings.h"
#include "vhost-session.h"

/* Virtio features that would need something of this transport that it does not do: packed rings (in-flight log and ring base differ), IOMMU,
 * SR-IOV, notification data, ring reset. */
#define FEATURES_WITHHELD                                                                                      \
        (VHOST_BIT(VHOST_USER_F_PROTOCOL_FEATURES) | VHOST_BIT(VIRTIO_F_RING_PACKED) |                         \
                VHOST_BIT(VIRTIO_F_ACCESS_PLATFORM) | VHOST_BIT(VIRTIO_F_SR_IOV) |                             \
                VHOST_BIT(38) /* NOTIFICATION_DATA */ | VHOST_BIT(40) /* RING_RESET */)

/* A helper that does not answer within this time counts as gone. Starting one may take systemd's own time-out; stopping a ring only
 * what is under way in it. */
#define REQUEST_TIMEOUT_USEC (60 * USEC_PER_SEC)
#define START_TIMEOUT_USEC (120 * USEC_PER_SEC)
#define STOP_TIMEOUT_USEC (20 * USEC_PER_SEC)

/* A successor may itself die at once, or systemd may flush the socket's queue on its way: for so long a broken attempt is
 * made again. A socket that is gone for good (the start limit was reached) refuses within that time, too. */
#define RECONNECT_USEC (10 * USEC_PER_SEC)
#define RETRY_USEC (200 * USEC_PER_MSEC)
/* A session shorter than this is not followed by another at once: who accepts and hangs up in turns is not to keep us busy. */
#define SHORT_SESSION_USEC USEC_PER_SEC

struct VhostFrontend {
        char *name;
        char *path;
        uint16_t virtio_id;
        const GuestMemory *memory;
        VhostFrontendHandlers handlers;

        /* Held across a request and its reply, so never taken on the event loop's thread while a helper might be asked something: that thread
         * looks at the atomic fields, and at the session's sockets while the state is ready, as nobody else closes them then. */
        pthread_mutex_t lock;
        pthread_cond_t changed;
        _Atomic int state; /* VhostFrontendState; written with the lock held */
        char *error;
        atomic_uint reconnects;
        uint64_t ready_usec; /* when the session began */

        pthread_t thread; /* connects; the session, and what is activated, are its own while the state is connecting */
        bool has_thread;
        atomic_bool closing;

        VhostSession session;
        pthread_mutex_t fd_lock; /* makes and closes session.fd, so that an abort shuts down this socket and no other */

        uint64_t offered; /* what the driver may choose from */
        bool active;
        bool suspended; /* the helper has none of what is activated; changed while the state is not connecting */
        bool torn; /* suspended, but not by the helper's word: it had failed, or went away over it, and requests may have been under way */
        bool held; /* guest memory is not all there: nor gets it of what will be, where it cannot do with that */
        RestoreMemory *pages; /* what is missing, page by page; NULL where it has to be waited for. Until it is held no more */
        int pages_device;
        bool touched; /* a driver has written to its configuration space since its last reset */
        VhostActivation activation;

        bool config_is_ours; /* the helper has nothing to say about it */
        atomic_bool lost; /* a predecessor had requests under way of which its successor cannot know: the guest is still to be told */
        atomic_bool config_stale;
        atomic_bool config_news; /* a new session found another content: the guest is still to be told */
        atomic_uint config_generation;
        uint32_t config_wanted, config_size;
        uint8_t config[VHOST_USER_CONFIG_MAX];

        VhostQueue queues[VHOST_FRONTEND_QUEUES_MAX];
        unsigned n_queues;

        sd_event_source *session_source, *backend_source;
        sd_event_source *error_sources[VHOST_FRONTEND_QUEUES_MAX];
        VhostUserReceiver receiver;
};

/* With the lock held. */
static void take_config(VhostFrontend *f, const uint8_t config[static VHOST_USER_CONFIG_MAX], uint32_t size) {
        if (size == f->config_size && memcmp(config, f->config, VHOST_USER_CONFIG_MAX) == 0)
                return;
        f->config_size = size;
        memcpy(f->config, config, VHOST_USER_CONFIG_MAX);
        f->config_generation++;
}

/* With the lock held and the session ready. */
static void refresh_config(VhostFrontend *f) {
        uint8_t config[VHOST_USER_CONFIG_MAX] = {};
        uint32_t size;

        /* First, so that a change announced meanwhile is not lost. */
        f->config_stale = false;
        if (vhost_session_get_config(&f->session, f->config_wanted, config, &size) >= 0)
                take_config(f, config, size);
        else
                f->config_stale = true;
}

/* --- connecting --- */

static void close_session(VhostFrontend *f) {
        vhost_postcopy_drop(&f->session);
        (void) pthread_mutex_lock(&f->fd_lock);
        f->session.fd = safe_close(f->session.fd);
        (void) pthread_mutex_unlock(&f->fd_lock);
        f->session.backend_fd = safe_close(f->session.backend_fd);
}

/* Waits a little; false where it is all over. */
static bool retry_later(VhostFrontend *f) {
        struct timespec until;
        uint64_t nsec;

        (void) clock_gettime(CLOCK_MONOTONIC, &until);
        nsec = (uint64_t) until.tv_nsec + RETRY_USEC * NSEC_PER_USEC;
        until.tv_sec += (time_t) (nsec / NSEC_PER_SEC);
        until.tv_nsec = (long) (nsec % NSEC_PER_SEC);

        (void) pthread_mutex_lock(&f->lock);
        while (!f->closing && pthread_cond_clockwait(&f->changed, &f->lock, CLOCK_MONOTONIC, &until) == 0)
                ;
        (void) pthread_mutex_unlock(&f->lock);
        return !f->closing;
}

/* Does not wait where the socket's queue is full, as connect() would. */
static int open_socket(VhostFrontend *f) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (strlen(f->path) >= sizeof(address.sun_path))
                return -ENAMETOOLONG;
        strcpy(address.sun_path, f->path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;

        (void) pthread_mutex_lock(&f->fd_lock);
        r = f->closing ? -ECANCELED : 0;
        if (r >= 0)
                f->session.fd = TAKE_FD(fd);
        (void) pthread_mutex_unlock(&f->fd_lock);
        return r;
}

static void forget_activation(VhostFrontend *f) {
        f->active = f->suspended = f->torn = false;
        f->activation.has_bases = false;
        f->activation.inflight_fd = safe_close(f->activation.inflight_fd);
        vhost_in_flight_done(&f->activation.in_flight);
}

/* Devices whose requests end in any order, or must not be begun twice: without a log nobody can tell which of them were under way. Others
 * take up their rings where the used ring ends. */
static bool needs_log(uint16_t virtio_id) {
        return virtio_id == VIRTIO_ID_BLOCK || virtio_id == VIRTIO_ID_SCSI || virtio_id == VIRTIO_ID_FS || virtio_id == VIRTIO_ID_9P ||
                virtio_id == VIRTIO_ID_CRYPTO || virtio_id == VIRTIO_ID_GPU;
}

/* Whether what is activated has to wait for guest memory, the session being ready: 1 where it has to, 0 where all is there or the helper takes part in what
 * is missing from now on; a negative errno where the session has ended over it. */
static int has_to_wait(VhostFrontend *f) {
        int r;

        if (!f->held || f->session.peer)
                return 0;
        if (!f->pages || !vhost_postcopy_can(&f->session))
                return 1;
        r = vhost_postcopy_begin(&f->session, f->pages, f->pages_device);
        return r == -EREMOTEIO ? 1 : r;
}

static int give(VhostFrontend *f, bool resume) {
        assert(!f->held || f->session.peer);
        return vhost_rings_give(&f->session, f->memory, &f->activation, resume);
}

/* The successor gets what its predecessor had, where it can know what that is. Else it gets nothing before the driver has reset the device. */
static int take_over(VhostFrontend *f) {
        if (!vhost_session_has(&f->session, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) && needs_log(f->virtio_id) &&
                vhost_rings_are_under_way(f->memory, &f->activation)) {
                forget_activation(f);
                f->lost = true;
                return 0;
        }
        return give(f, true);
}

/* The same where all of guest memory may not be there. */
static int take_over_or_wait(VhostFrontend *f) {
        int r;

        r = has_to_wait(f);
        f->suspended = r > 0;
        return r == 0 ? take_over(f) : MIN(r, 0);
}

/* A helper may not know of the last reset: that was while its process was away, which keeps what the driver before this one has said. It is told at once, since a driver writes to configuration
 * space before it says DRIVER_OK. */
static int forget_last_driver(VhostFrontend *f) {
        int r;

        if (f->active || f->touched || !vhost_session_has(&f->session, VHOST_USER_PROTOCOL_F_STATUS))
                return 0;
        r = vhost_session_tell_u64(&f->session, VHOST_USER_SET_STATUS, 0);
        return r == -EREMOTEIO ? 0 : r; /* that it has nothing to forget */
}

/* One attempt at a whole session. */
static int connect_session(VhostFrontend *f, char **ret_message) {
        uint8_t config[VHOST_USER_CONFIG_MAX] = {};
        unsigned generation = f->config_generation;
        uint32_t config_size = 0;
        int r;

        f->session = (VhostSession) { .fd = -EBADF, .backend_fd = -EBADF, .timeout_usec = START_TIMEOUT_USEC };
        r = open_socket(f);
        if (r < 0)
                return set_message(ret_message, r, "cannot connect to its socket %s: %s", f->path, strerror(-r));
        r = vhost_session_negotiate(&f->session, f->n_queues, ret_message);
        f->session.timeout_usec = REQUEST_TIMEOUT_USEC;
        f->config_stale = false;
        if (r >= 0)
                r = forget_last_driver(f);
        if (r >= 0 && !f->config_is_ours)
                r = vhost_session_get_config(&f->session, f->config_wanted, config, &config_size);
        if (r < 0)
                return r;
        (void) pthread_mutex_lock(&f->lock);
        f->offered = f->session.features & ~FEATURES_WITHHELD;
        if (!f->config_is_ours)
                take_config(f, config, config_size);
        (void) pthread_mutex_unlock(&f->lock);

        /* Across a reconnect the driver's choice stands: a back-end that cannot do it any more is another device. */
        if (f->active && f->activation.features & ~f->session.features)
                return set_message(ret_message, -EPROTONOSUPPORT, "it came back without features that the guest uses: %#llx",
                        (unsigned long long) (f->activation.features & ~f->session.features));
        f->activation.has_bases = false; /* where the predecessor was; its successor finds out by the log */
        if (f->active && !f->suspended)
                r = take_over_or_wait(f);
        f->config_news = f->active && f->config_generation != generation;
        return r;
}

/* Whether another attempt may go better. */
static bool is_passing(int error) {
        return error == -ENODATA || error == -ECONNRESET || error == -EPIPE || error == -ECONNREFUSED || error == -ENOENT ||
                error == -EAGAIN || error == -EACCES /* a socket that was just made gets its group a moment later */;
}

static int connect_with_patience(VhostFrontend *f, char **ret_message) {
        uint64_t until = now_usec() + RECONNECT_USEC;
        bool again = f->reconnects > 0;
        int r = -ECANCELED;

        if (again && now_usec() - f->ready_usec < SHORT_SESSION_USEC && !retry_later(f))
                return r;
        for (;;) {
                r = connect_session(f, ret_message);
                if (r >= 0)
                        return 0;
                close_session(f);
                /* A queue that is full empties; everything else is no matter of time for a helper that never served. */
                if ((!again && r != -EAGAIN) || !is_passing(r) || now_usec() >= until || !retry_later(f))
                        return r;
                *ret_message = mfree(*ret_message);
        }
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
        r = connect_with_patience(f, &message);

        (void) pthread_mutex_lock(&f->lock);
        if (r < 0) {
                (void) set_message(&f->error, 0, "%s", message ?: describe_session_error(r));
                f->state = VHOST_FRONTEND_FAILED;
        } else {
                f->ready_usec = now_usec();
                f->state = VHOST_FRONTEND_READY;
        }
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
                (void) pthread_cond_broadcast(&f->changed);
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
        f->config_wanted = vhost_config_size(virtio_id);
        f->memory = memory;
        f->handlers = *handlers;
        f->session = (VhostSession) { .fd = -EBADF, .backend_fd = -EBADF };
        f->activation.inflight_fd = -EBADF;
        (void) pthread_mutex_init(&f->lock, NULL);
        (void) pthread_mutex_init(&f->fd_lock, NULL);
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
        f->closing = true;
        /* Who holds the lock may be waiting for the helper's answer; this ends that wait, so it comes before taking it. */
        (void) pthread_mutex_lock(&f->fd_lock);
        if (f->session.fd >= 0)
                (void) shutdown(f->session.fd, SHUT_RDWR);
        (void) pthread_mutex_unlock(&f->fd_lock);
        (void) pthread_mutex_lock(&f->lock);
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
}

void vhost_frontend_set_config_size(VhostFrontend *f, uint32_t size) {
        f->config_wanted = MIN(size, VHOST_USER_CONFIG_MAX);
}

VhostFrontend *vhost_frontend_free(VhostFrontend *f) {
        if (!f)
                return NULL;
        vhost_frontend_abort(f);
        if (f->has_thread)
                (void) pthread_join(f->thread, NULL);
        detach(f);
        close_session(f);
        forget_activation(f);
        for (unsigned i = 0; i < ELEMENTSOF(f->queues); i++) {
                f->queues[i].kick_fd = safe_close(f->queues[i].kick_fd);
                f->queues[i].call_fd = safe_close(f->queues[i].call_fd);
                f->queues[i].error_fd = safe_close(f->queues[i].error_fd);
        }
        free(f->name);
        free(f->path);
        free(f->error);
        (void) pthread_mutex_destroy(&f->lock);
        (void) pthread_mutex_destroy(&f->fd_lock);
        (void) pthread_cond_destroy(&f->changed);
        return mfree(f);
}

void vhost_frontend_set_config(VhostFrontend *f, const void *data, uint32_t size) {
        assert(size <= VHOST_USER_CONFIG_MAX);
        memcpy(f->config, data, size);
        f->config_size = size;
        f->config_is_ours = true;
}

int vhost_frontend_start(VhostFrontend *f) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = begin_connecting(f);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

int vhost_frontend_retry(VhostFrontend *f) {
        int r = 0;

        (void) pthread_mutex_lock(&f->lock);
        if (f->state == VHOST_FRONTEND_FAILED && !f->closing) {
                f->error = mfree(f->error);
                f->reconnects++;
                r = begin_connecting(f);
        }
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* --- handing over --- */

static void put_ring(StateWriter *w, const VhostQueue *q) {
        state_put_u8(w, q->enabled);
        state_put_u16(w, q->size);
        state_put_u64(w, q->descriptors);
        state_put_u64(w, q->driver);
        state_put_u64(w, q->device);
}

static void put_activation(VhostFrontend *f, Handover *h) {
        const VhostActivation *a = &f->activation;

        state_put_u64(h->writer, a->features);
        state_put_u8(h->writer, a->has_bases);
        for (unsigned i = 0; i < f->n_queues; i++) {
                put_ring(h->writer, &a->queues[i]);
                state_put_u16(h->writer, a->bases[i]);
        }
        handover_put_fd(h, a->inflight_fd);
        state_put_u64(h->writer, a->inflight.mmap_size);
        state_put_u64(h->writer, a->inflight.mmap_offset);
        state_put_u16(h->writer, a->inflight.num_queues);
        state_put_u16(h->writer, a->inflight.queue_size);
}

static void put_session(VhostFrontend *f, Handover *h) {
        state_put_u8(h->writer, (uint8_t) f->state);
        state_put_string(h->writer, f->error);
        state_put_u32(h->writer, f->reconnects);
        handover_put_fd(h, f->session.fd);
        handover_put_fd(h, f->session.backend_fd);
        state_put_u64(h->writer, f->session.features);
        state_put_u64(h->writer, f->session.protocol_features);
        state_put_u64(h->writer, f->offered);
        state_put_u8(h->writer, f->active);
        state_put_u8(h->writer, f->suspended);
        state_put_u8(h->writer, f->lost);
        state_put_u8(h->writer, f->config_stale);
        state_put_u8(h->writer, f->config_news);
        state_put_u32(h->writer, f->config_size);
        state_put_blob(h->writer, f->config, sizeof(f->config));
}

/* Taken from a helper that is just saying something, the rest would come to the successor as a message. */
static bool is_between_messages(const VhostFrontend *f) {
        return f->receiver.received == 0;
}

int vhost_frontend_hand_over(VhostFrontend *f, uint32_t instance, Handover *h) {
        int r = 0;

        /* Held by nobody who waits for the helper: all vCPUs are parked, and nobody connects. */
        (void) pthread_mutex_lock(&f->lock);
        if ((f->state != VHOST_FRONTEND_READY && f->state != VHOST_FRONTEND_FAILED) || !is_between_messages(f) ||
                vhost_in_flight_any(&f->activation.in_flight) /* it was restored, and is still paused */)
                r = -EBUSY;
        else {
                state_begin(h->writer, "vhost-session", instance, 1);
                put_session(f, h);
                state_put_u32(h->writer, f->n_queues);
                for (unsigned i = 0; i < f->n_queues; i++) {
                        handover_put_fd(h, f->queues[i].kick_fd);
                        handover_put_fd(h, f->queues[i].call_fd);
                        handover_put_fd(h, f->queues[i].error_fd);
                }
                put_activation(f, h);
                r = state_end(h->writer);
        }
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

static void get_session(VhostFrontend *f, Handover *h) {
        StateReader *r = h->reader;

        f->state = state_get_u8(r);
        free(f->error);
        f->error = state_get_string(r, KIB(4));
        f->reconnects = state_get_u32(r);
        f->session.fd = handover_get_fd(h);
        f->session.backend_fd = handover_get_fd(h);
        f->session.features = state_get_u64(r);
        f->session.protocol_features = state_get_u64(r);
        f->session.timeout_usec = REQUEST_TIMEOUT_USEC;
        f->offered = state_get_u64(r);
        f->active = state_get_u8(r) != 0;
        f->suspended = state_get_u8(r) != 0;
        f->lost = state_get_u8(r) != 0;
        f->config_stale = state_get_u8(r) != 0;
        f->config_news = state_get_u8(r) != 0;
        f->config_size = state_get_u32(r);
        state_get_blob(r, f->config, sizeof(f->config));
        f->ready_usec = now_usec();
        f->touched = true; /* that is not known: one reset too many does no harm */
}

static void replace_fd(int *fd, int by) {
        (void) safe_close(*fd);
        *fd = by;
}

static void get_activation(VhostFrontend *f, Handover *h) {
        VhostActivation *a = &f->activation;
        StateReader *r = h->reader;

        a->features = state_get_u64(r);
        a->has_bases = state_get_u8(r) != 0;
        a->n_queues = f->n_queues;
        for (unsigned i = 0; i < f->n_queues; i++) {
                a->queues[i] = f->queues[i]; /* the eventfds */
                a->queues[i].enabled = state_get_u8(r) != 0;
                a->queues[i].size = state_get_u16(r);
                a->queues[i].descriptors = state_get_u64(r);
                a->queues[i].driver = state_get_u64(r);
                a->queues[i].device = state_get_u64(r);
                a->bases[i] = state_get_u16(r);
        }
        a->inflight_fd = handover_get_fd(h);
        a->inflight.mmap_size = state_get_u64(r);
        a->inflight.mmap_offset = state_get_u64(r);
        a->inflight.num_queues = state_get_u16(r);
        a->inflight.queue_size = state_get_u16(r);
}

static bool is_complete(const VhostFrontend *f) {
        if ((f->state != VHOST_FRONTEND_READY && f->state != VHOST_FRONTEND_FAILED) || f->config_size > VHOST_USER_CONFIG_MAX ||
                (f->state == VHOST_FRONTEND_READY && f->session.fd < 0))
                return false;
        for (unsigned i = 0; i < f->n_queues; i++)
                if (f->queues[i].kick_fd < 0 || f->queues[i].call_fd < 0 || f->queues[i].error_fd < 0)
                        return false;
        return true;
}

int vhost_frontend_take_over(VhostFrontend *f, uint32_t instance, Handover *h, char **ret_message) {
        uint32_t n;
        int r;

        r = state_enter(h->reader, "vhost-session", instance, 1);
        if (r < 0)
                return set_message(ret_message, r, "The state has no session of device '%s'.", f->name);
        get_session(f, h);
        n = state_get_u32(h->reader);
        if (n != f->n_queues)
                return set_message(ret_message, -EBADMSG, "Device '%s' has %u queues, in the state %u.", f->name, f->n_queues, n);
        for (unsigned i = 0; i < n; i++) {
                replace_fd(&f->queues[i].kick_fd, handover_get_fd(h));
                replace_fd(&f->queues[i].call_fd, handover_get_fd(h));
                replace_fd(&f->queues[i].error_fd, handover_get_fd(h));
        }
        get_activation(f, h);
        r = state_leave(h->reader, ret_message);
        if (r >= 0)
                r = handover_end(h);
        if (r >= 0 && !is_complete(f))
                r = set_message(ret_message, -EBADMSG, "The state's session of device '%s' is not whole.", f->name);
        return r;
}

/* --- the event loop's part --- */

static int on_session_event(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        VhostFrontend *f = userdata;
        int r = 0;

        if (!(revents & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
                return 0;

        detach(f);
        /* Held, if at all, by a request on a connection that has ended, and so ends itself. */
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

        if (msg->header.request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG && !f->config_is_ours) {
                f->config_stale = true;
                f->handlers.config_changed(f->handlers.userdata);
        } else
                reply.payload.u64 = 1;
        if (msg->header.flags & VHOST_USER_FLAG_NEED_REPLY)
                (void) vhost_user_send(f->session.backend_fd, &reply, NULL, 0);
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

static int watch_session(VhostFrontend *f, sd_event *event) {
        int r;

        r = sd_event_add_io(event, &f->session_source, f->session.fd, EPOLLRDHUP, on_session_event, f);
        if (r >= 0 && f->session.backend_fd >= 0)
                r = sd_event_add_io(event, &f->backend_source, f->session.backend_fd, EPOLLIN, on_backend_event, f);
        for (unsigned i = 0; i < f->n_queues && r >= 0; i++)
                r = sd_event_add_io(event, &f->error_sources[i], f->queues[i].error_fd, EPOLLIN, on_ring_error, f);
        return r;
}

int vhost_frontend_attach(VhostFrontend *f, sd_event *event) {
        int r = 0;

        if (f->state != VHOST_FRONTEND_READY)
                return 0;
        if (!f->session_source)
                r = watch_session(f, event);
        if (r >= 0 && atomic_exchange(&f->config_news, false))
                f->handlers.config_changed(f->handlers.userdata);
        if (r >= 0 && atomic_exchange(&f->lost, false) && f->handlers.lost)
                f->handlers.lost(f->handlers.userdata);
        return r;
}

/* --- what the transport asks --- */

VhostFrontendState vhost_frontend_state(VhostFrontend *f) {
        return (VhostFrontendState) f->state;
}

char *vhost_frontend_error(VhostFrontend *f) {
        char *copy;

        (void) pthread_mutex_lock(&f->lock);
        copy = f->error ? strdup(f->error) : NULL;
        (void) pthread_mutex_unlock(&f->lock);
        return copy;
}

unsigned vhost_frontend_reconnects(VhostFrontend *f) {
        return f->reconnects;
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
        features = f->offered;
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
                refresh_config(f);
        if (offset < f->config_size)
                memcpy(data, f->config + offset, MIN(size, f->config_size - offset));
        (void) pthread_mutex_unlock(&f->lock);
}

unsigned vhost_frontend_config_generation(VhostFrontend *f) {
        return f->config_generation;
}

int vhost_frontend_config_write(VhostFrontend *f, uint32_t offset, const void *data, uint32_t size) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = wait_ready(f);
        if (r >= 0 && (f->config_is_ours || !range_within(offset, size, f->config_size)))
                r = -EINVAL;
        if (r >= 0)
                r = vhost_session_set_config(&f->session, offset, data, size);
        if (r >= 0)
                f->config_stale = f->touched = true;
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* --- rings --- */

/* With the lock held and the session ready: no driver is at work any more, so that the helper looks for nothing in guest memory. */
static int let_go(VhostFrontend *f) {
        int r;

        r = vhost_rings_take(&f->session, &f->activation);
        if (f->session.peer)
                r = vhost_postcopy_end(&f->session);
        return r;
}

/* With the lock held and the session ready. */
static int activate(VhostFrontend *f, uint64_t features) {
        VhostActivation *a = &f->activation;
        int r;

        if (features & ~f->offered)
                return -EPROTONOSUPPORT;
        forget_activation(f);
        a->features = features;
        a->n_queues = f->n_queues;
        memcpy(a->queues, f->queues, sizeof(a->queues));
        r = vhost_rings_check(f->memory, a);
        if (r < 0)
                return r;

        f->active = true;
        r = has_to_wait(f);
        f->suspended = r > 0;
        if (r == 0)
                r = give(f, false);
        if (r == -EREMOTEIO) {
                (void) let_go(f);
                forget_activation(f);
                return r;
        }
        /* A session that ended is followed by a new one, which takes the rings over. */
        return 0;
}

int vhost_frontend_activate(VhostFrontend *f, uint64_t features) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = wait_ready(f);
        if (r >= 0)
                r = activate(f, features);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

void vhost_frontend_deactivate(VhostFrontend *f) {
        uint64_t count;

        (void) pthread_mutex_lock(&f->lock);
        if (f->active && wait_ready(f) >= 0) {
                f->session.timeout_usec = STOP_TIMEOUT_USEC;
                (void) let_go(f);
                f->session.timeout_usec = REQUEST_TIMEOUT_USEC;
        } else if (f->touched && wait_ready(f) >= 0) {
                f->touched = false;
                (void) forget_last_driver(f);
        }
        f->touched = false;
        if (f->state != VHOST_FRONTEND_CONNECTING)
                forget_activation(f);
        /* Signals of the old rings mean nothing to the next driver. */
        for (unsigned i = 0; i < f->n_queues; i++) {
                (void) !read(f->queues[i].kick_fd, &count, sizeof(count));
                (void) !read(f->queues[i].call_fd, &count, sizeof(count));
                (void) !read(f->queues[i].error_fd, &count, sizeof(count));
        }
        (void) pthread_mutex_unlock(&f->lock);
}

void vhost_frontend_suspend(VhostFrontend *f) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        if (f->active && !f->suspended) {
                r = wait_ready(f);
                /* Also one that failed: when it is there again it is to wait like the others. */
                f->suspended = true;
                if (r >= 0) {
                        f->session.timeout_usec = STOP_TIMEOUT_USEC;
                        r = vhost_rings_suspend(&f->session, &f->activation);
                        f->session.timeout_usec = REQUEST_TIMEOUT_USEC;
                }
                f->torn = r < 0;
        }
        (void) pthread_mutex_unlock(&f->lock);
}

/* With the lock held, of what is active and suspended. */
static void resume(VhostFrontend *f) {
        int r;

        r = wait_ready(f);
        if (r >= 0)
                r = has_to_wait(f);
        if (r > 0)
                return;
        /* One that failed gets them when it is there again. */
        f->suspended = false;
        /* A session that ended is followed by a new one, which takes the rings over. */
        if (r >= 0 && f->torn)
                (void) take_over(f);
        else if (r >= 0)
                (void) give(f, true);
        f->torn = f->activation.has_bases = false;
}

void vhost_frontend_resume(VhostFrontend *f) {
        bool lost = false;

        (void) pthread_mutex_lock(&f->lock);
        if (f->active && f->suspended) {
                resume(f);
                lost = f->lost;
        }
        (void) pthread_mutex_unlock(&f->lock);
        if (lost)
                f->handlers.state_changed(f->handlers.userdata);
}

/* --- snapshots --- */

bool vhost_frontend_can_save(VhostFrontend *f) {
        /* Without the lock, whose holder may be waiting for the helper: the protocol's features are those of the session as long as the loop has it ready. */
        return f->state == VHOST_FRONTEND_READY && vhost_session_has(&f->session, VHOST_USER_PROTOCOL_F_DEVICE_STATE);
}

void vhost_snapshot_done(VhostSnapshot *s) {
        s->state = mfree(s->state);
        vhost_in_flight_done(&s->in_flight);
}

/* With the lock held. Of what is restored itself, and was never given to its helper, the log is not made yet. */
static int save_in_flight(VhostFrontend *f, VhostInFlight *ret) {
        const VhostActivation *a = &f->activation;

        return a->inflight_fd >= 0 ? vhost_in_flight_read(a, ret) : vhost_in_flight_copy(&a->in_flight, ret);
}

/* With the lock held. */
static int save(VhostFrontend *f, VhostSnapshot *ret, char **ret_message) {
        const VhostActivation *a = &f->activation;
        VhostSnapshot s = { .active = f->active, .n_queues = f->n_queues };
        int r;

        r = wait_ready(f);
        if (r < 0)
                return set_message(ret_message, r, "its helper is not there");
        /* A successor of the helper that was suspended does not know where its rings were; the used rings do, but not what was under way. */
        if (f->active && (!f->suspended || !a->has_bases))
                return set_message(ret_message, -EAGAIN, "its helper went away while it was being stopped");
        r = vhost_device_state_save(&f->session, &s.state, &s.state_size);
        if (r < 0)
                return set_message(ret_message, r, "its helper does not give its state: %s",
                        r == -EREMOTEIO ? "its journal says why" : r == -EOPNOTSUPP ? "it is of a kind that cannot" : strerror(-r));
        if (f->active) {
                s.features = a->features;
                memcpy(s.bases, a->bases, sizeof(s.bases));
                r = save_in_flight(f, &s.in_flight);
        }
        if (r < 0) {
                vhost_snapshot_done(&s);
                return set_message(ret_message, r, "its in-flight log cannot be read: %s", strerror(-r));
        }
        *ret = s;
        return 0;
}

int vhost_frontend_save(VhostFrontend *f, VhostSnapshot *ret, char **ret_message) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = save(f, ret, ret_message);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* With the lock held. */
static int restore(VhostFrontend *f, const VhostSnapshot *from, char **ret_message) {
        int r;

        r = wait_ready(f);
        if (r < 0)
                return set_message(ret_message, r, "its helper is not there");
        if (from->n_queues != f->n_queues)
                return set_message(ret_message, -EXDEV, "it had %u queues, and has %u", from->n_queues, f->n_queues);
        if (from->features & ~f->offered)
                return set_message(ret_message, -EXDEV, "the guest uses features that it does not have here: %#llx",
                        (unsigned long long) (from->features & ~f->offered));
        /* What the state means may depend on them. */
        if (from->active)
                r = vhost_session_tell_u64(&f->session, VHOST_USER_SET_FEATURES, from->features | VHOST_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
        if (r >= 0)
                r = vhost_device_state_load(&f->session, from->state, from->state_size);
        if (r < 0)
                return set_message(ret_message, r, "its helper does not take its state: %s",
                        r == -EREMOTEIO ? "its journal says why" : r == -EOPNOTSUPP ? "it is of a kind that cannot" : strerror(-r));
        /* Part of it shows there. */
        if (!f->config_is_ours)
                refresh_config(f);
        return 0;
}

int vhost_frontend_restore(VhostFrontend *f, const VhostSnapshot *from, char **ret_message) {
        int r;

        (void) pthread_mutex_lock(&f->lock);
        r = restore(f, from, ret_message);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

/* With the lock held. */
static int take_up(VhostFrontend *f, const VhostSnapshot *from) {
        VhostActivation *a = &f->activation;
        int r;

        forget_activation(f);
        a->features = from->features;
        a->n_queues = f->n_queues;
        memcpy(a->queues, f->queues, sizeof(a->queues));
        memcpy(a->bases, from->bases, sizeof(a->bases));
        r = vhost_rings_check(f->memory, a);
        if (r >= 0 && !vhost_in_flight_fits(a, &from->in_flight))
                r = -EINVAL;
        if (r >= 0 && vhost_in_flight_any(&from->in_flight) && !vhost_session_has(&f->session, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD))
                r = -EOPNOTSUPP;
        if (r >= 0)
                r = vhost_in_flight_copy(&from->in_flight, &a->in_flight);
        if (r >= 0)
                f->active = f->suspended = a->has_bases = true;
        return r;
}

int vhost_frontend_restored(VhostFrontend *f, const VhostSnapshot *from) {
        int r = 0;

        (void) pthread_mutex_lock(&f->lock);
        f->held = true;
        if (from->active)
                r = take_up(f, from);
        (void) pthread_mutex_unlock(&f->lock);
        return r;
}

void vhost_frontend_hold(VhostFrontend *f) {
        (void) pthread_mutex_lock(&f->lock);
        f->held = true;
        (void) pthread_mutex_unlock(&f->lock);
}

void vhost_frontend_serve_pages(VhostFrontend *f, RestoreMemory *pages, int device) {
        (void) pthread_mutex_lock(&f->lock);
        f->pages = pages;
        f->pages_device = device;
        (void) pthread_mutex_unlock(&f->lock);
}

bool vhost_frontend_is_held(VhostFrontend *f) {
        bool held;

        (void) pthread_mutex_lock(&f->lock);
        held = f->active && f->suspended && f->held;
        (void) pthread_mutex_unlock(&f->lock);
        return held;
}

void vhost_frontend_release(VhostFrontend *f) {
        (void) pthread_mutex_lock(&f->lock);
        /* Who connects looks at the pages for what is active alone. */
        if (f->active && wait_ready(f) >= 0 && f->session.peer)
                (void) vhost_postcopy_end(&f->session);
        else if (f->state == VHOST_FRONTEND_READY)
                vhost_postcopy_drop(&f->session); /* where all is being ended */
        f->held = false;
        f->pages = NULL;
        (void) pthread_mutex_unlock(&f->lock);
}
