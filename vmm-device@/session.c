/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The back-end of vhost-user: one function a request ("Front-end message types"). A request that makes no sense ends the session, as
 * the specification allows; the helper waits for the next one. */

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <sys/epoll.h>

#include "postcopy.h"
#include "session-keep.h"

#define PROTOCOL_FEATURES                                                                                      \
        (UINT64_C(1) << VHOST_USER_PROTOCOL_F_MQ | UINT64_C(1) << VHOST_USER_PROTOCOL_F_REPLY_ACK |            \
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_BACKEND_REQ | UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD | \
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_RESET_DEVICE | UINT64_C(1) << VHOST_USER_PROTOCOL_F_STATUS |         \
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS |     \
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_DEVICE_STATE)

/* CONFIG only where there is configuration space: front-ends take the bit for "has some". */
uint64_t session_protocol_features(const Device *d) {
        return PROTOCOL_FEATURES | (d->class->config_size > 0 ? UINT64_C(1) << VHOST_USER_PROTOCOL_F_CONFIG : 0) |
                (d->class->needs_all_memory ? 0 : UINT64_C(1) << VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT);
}

static bool has_protocol_feature(const Session *s, unsigned bit) {
        return s->protocol_features & (UINT64_C(1) << bit);
}

static int reply(Session *s, VhostUserMsg *msg, uint32_t size, const int *fds, size_t n_fds) {
        msg->header.flags = VHOST_USER_FLAG_REPLY;
        msg->header.size = size;
        return vhost_user_send(s->fd, msg, fds, n_fds);
}

static int reply_u64(Session *s, VhostUserMsg *msg, uint64_t value) {
        msg->payload.u64 = value;
        return reply(s, msg, sizeof(uint64_t), NULL, 0);
}

static int find_ring(Session *s, uint32_t index, Ring **ret) {
        if (index >= s->device->n_queues)
                return -EINVAL;
        *ret = &s->rings[index];
        return 0;
}

static int handle_set_features(Session *s, uint64_t features) {
        if (features & ~device_offered_features(s->device))
                return -EINVAL;
        if (features == s->features)
                return 0;
        rings_withdraw_all(s);
        s->features = features;
        return 0;
}

static int handle_set_protocol_features(Session *s, uint64_t features) {
        if (features & ~session_protocol_features(s->device))
                return -EINVAL;
        s->protocol_features = features;
        return 0;
}

/* While memory may be missing the front-end is told where each region is, and says that it has taken note. */
static int tell_mapping(Session *s, const VhostUserMsg *request) {
        VhostUserMsg msg = *request;
        int r;

        r = postcopy_map(s, &msg);
        return r < 0 ? r : reply(s, &msg, request->header.size, NULL, 0);
}

static int take_note(Session *s, const VhostUserMsg *msg) {
        if (msg->payload.memory.nregions != 0)
                return -EPROTO;
        s->postcopy.unanswered = false;
        rings_update_later(s);
        return 0;
}

static int handle_set_mem_table(Session *s, const VhostUserMsg *msg, int *fds) {
        int r = 0;

        if (s->postcopy.unanswered)
                return take_note(s, msg);
        /* "NEED_REPLY_MASK is not set in this case": there is a reply. */
        if (s->postcopy.listening && msg->header.flags & VHOST_USER_FLAG_NEED_REPLY)
                return -EPROTO;
        /* Nothing may point into the old mappings when they go. */
        rings_withdraw_all(s);
        for (unsigned i = 0; i < s->device->n_queues; i++)
                s->rings[i].may_wait = false;
        guest_memory_done(&s->memory);
        for (uint32_t i = 0; i < msg->payload.memory.nregions; i++) {
                VhostUserMemoryRegion region = msg->payload.memory.regions[i];

                r = guest_memory_add(&s->memory, TAKE_FD(fds[i]), region.mmap_offset, region.guest_phys_addr,
                        region.memory_size, region.userspace_addr);
                if (r < 0) {
                        guest_memory_done(&s->memory); /* all of it, or nothing */
                        break;
                }
                r = 0;
        }
        session_keep_memory(s);
        return r >= 0 && s->postcopy.listening ? tell_mapping(s, msg) : r;
}

/* One region more ("memory hot-plug"). The rings are taken up again on what there is then. QEMU before 8.0 says it once for each pair of a
 * network's queues, so what is there already takes the place of itself, and what is not there is as good as removed. */
static int handle_add_mem_reg(Session *s, VhostUserMemoryRegion region, int *fds) {
        int r;

        if (!has_protocol_feature(s, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) || s->postcopy.listening)
                return -EPROTO;
        rings_withdraw_all(s);
        (void) guest_memory_remove(&s->memory, region.guest_phys_addr, region.memory_size, region.userspace_addr);
        r = guest_memory_add(&s->memory, TAKE_FD(fds[0]), region.mmap_offset, region.guest_phys_addr, region.memory_size,
                region.userspace_addr);
        session_keep_memory(s);
        return r;
}

static int handle_rem_mem_reg(Session *s, VhostUserMemoryRegion region) {
        int r;

        if (!has_protocol_feature(s, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) || s->postcopy.listening)
                return -EPROTO;
        rings_withdraw_all(s);
        /* A region that changes is removed and added: until then its rings wait. */
        for (unsigned i = 0; i < s->device->n_queues; i++)
                s->rings[i].may_wait = true;
        r = guest_memory_remove(&s->memory, region.guest_phys_addr, region.memory_size, region.userspace_addr);
        session_keep_memory(s);
        return r == -ENOENT ? 0 : r;
}

static int handle_set_vring_num(Session *s, struct vhost_vring_state state) {
        Ring *ring;
        int r;

        r = find_ring(s, state.index, &ring);
        if (r < 0)
                return r;
        if (state.num == 0 || state.num > VIRTQUEUE_NUM_MAX || (state.num & (state.num - 1)) != 0)
                return -EINVAL;
        if (ring->num == state.num)
                return 0;
        ring_withdraw(s, state.index);
        ring->num = (uint16_t) state.num;
        rings_update_later(s);
        return 0;
}

static int handle_set_vring_addr(Session *s, struct vhost_vring_addr address) {
        Ring *ring;
        int r;

        r = find_ring(s, address.index, &ring);
        if (r < 0)
                return r;
        /* "must support changing some configuration aspects on the fly": an unchanged ring is not disturbed. */
        if (ring->have_address && memcmp(&ring->address, &address, sizeof(address)) == 0)
                return 0;
        ring_withdraw(s, address.index);
        ring->address = address;
        ring->have_address = true;
        ring->may_wait = false;
        rings_update_later(s);
        return 0;
}

static int handle_set_vring_base(Session *s, struct vhost_vring_state state) {
        Ring *ring;
        int r;

        r = find_ring(s, state.index, &ring);
        if (r < 0)
                return r;
        if (state.num > UINT16_MAX)
                return -EINVAL;
        ring_withdraw(s, state.index);
        ring->base = (uint16_t) state.num;
        rings_update_later(s);
        return 0;
}

/* Stops the ring: what was taken is finished, and the front-end has to send a new kick descriptor. */
static int handle_get_vring_base(Session *s, VhostUserMsg *msg) {
        uint32_t index = msg->payload.state.index;
        Ring *ring;
        int r;

        r = find_ring(s, index, &ring);
        if (r < 0)
                return r;
        ring_withdraw(s, index);
        ring->kick_fd = safe_close(ring->kick_fd);
        session_keep_fd(s, SESSION_FD_KICK, index, -EBADF);
        rings_heal_when_stopped(s);
        msg->payload.state.num = ring->base;
        return reply(s, msg, sizeof(msg->payload.state), NULL, 0);
}

static int handle_set_vring_kick(Session *s, uint64_t payload, int *fds) {
        uint32_t index = payload & VHOST_USER_VRING_INDEX_MASK;
        Ring *ring;
        int r;

        r = find_ring(s, index, &ring);
        if (r < 0)
                return r;
        /* "polling should be used instead": no device of ours does that. */
        if (payload & VHOST_USER_VRING_NOFD)
                return -EOPNOTSUPP;
        ring_withdraw(s, index);
        (void) safe_close(ring->kick_fd);
        ring->kick_fd = TAKE_FD(fds[0]);
        session_keep_fd(s, SESSION_FD_KICK, index, ring->kick_fd);
        rings_update_later(s);
        return 0;
}

/* The descriptor by which we signal: ours must never block on it. */
static int take_signal_fd(int *which, uint64_t payload, int *fds) {
        int flags;

        *which = safe_close(*which);
        if (payload & VHOST_USER_VRING_NOFD)
                return 0;
        flags = fcntl(fds[0], F_GETFL);
        if (flags < 0 || fcntl(fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        *which = TAKE_FD(fds[0]);
        return 0;
}

static int handle_set_vring_call(Session *s, uint64_t payload, int *fds) {
        Ring *ring;
        int r;

        r = find_ring(s, payload & VHOST_USER_VRING_INDEX_MASK, &ring);
        if (r < 0)
                return r;
        r = take_signal_fd(&ring->call_fd, payload, fds);
        if (ring->queue)
                virtqueue_set_call_fd(ring->queue, ring->call_fd);
        session_keep_fd(s, SESSION_FD_CALL, payload & VHOST_USER_VRING_INDEX_MASK, ring->call_fd);
        return r;
}

static int handle_set_vring_err(Session *s, uint64_t payload, int *fds) {
        Ring *ring;
        int r;

        r = find_ring(s, payload & VHOST_USER_VRING_INDEX_MASK, &ring);
        if (r < 0)
                return r;
        r = take_signal_fd(&ring->err_fd, payload, fds);
        session_keep_fd(s, SESSION_FD_ERROR, payload & VHOST_USER_VRING_INDEX_MASK, ring->err_fd);
        return r;
}

static int handle_set_vring_enable(Session *s, struct vhost_vring_state state) {
        Ring *ring;
        int r;

        r = find_ring(s, state.index, &ring);
        if (r < 0)
                return r;
        if (state.num > 1)
                return -EINVAL;
        if (state.num == 0)
                ring_withdraw(s, state.index);
        ring->enabled = state.num;
        rings_update_later(s);
        return 0;
}

static int handle_set_backend_req_fd(Session *s, int *fds) {
        int flags = fcntl(fds[0], F_GETFL);

        if (!has_protocol_feature(s, VHOST_USER_PROTOCOL_F_BACKEND_REQ))
                return -EPROTO;
        if (flags < 0 || fcntl(fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;
        (void) safe_close(s->backend_fd);
        s->backend_fd = TAKE_FD(fds[0]);
        session_keep_fd(s, SESSION_FD_BACKEND, 0, s->backend_fd);
        return 0;
}

/* Configuration space reads as zeroes behind its end, because a front-end may know a longer structure than we do. */
static int handle_get_config(Session *s, VhostUserMsg *msg) {
        uint32_t offset = msg->payload.config.offset, size = msg->payload.config.size;
        uint8_t data[VHOST_USER_CONFIG_MAX] = {};
        size_t known = s->device->class->config_size;

        if (!range_within(offset, size, VHOST_USER_CONFIG_MAX)) {
                /* "uses zero length of payload to indicate an error" */
                msg->payload.config.size = 0;
                return reply(s, msg, VHOST_USER_CONFIG_HEADER_SIZE, NULL, 0);
        }
        if (offset < known)
                s->device->class->config_read(s->device, offset, data, (uint32_t) MIN((size_t) size, known - offset));
        memcpy(msg->payload.config.region, data, size);
        return reply(s, msg, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + size, NULL, 0);
}

static int handle_set_config(Session *s, const VhostUserMsg *msg) {
        uint32_t offset = msg->payload.config.offset, size = msg->payload.config.size;
        uint8_t data[VHOST_USER_CONFIG_MAX];

        if (!s->device->class->config_write || msg->payload.config.flags != VHOST_USER_CONFIG_WRITABLE)
                return -EOPNOTSUPP;
        if (!range_within(offset, size, s->device->class->config_size))
                return -EINVAL;
        memcpy(data, msg->payload.config.region, size);
        return s->device->class->config_write(s->device, offset, data, size);
}

static int handle_get_inflight_fd(Session *s, VhostUserMsg *msg) {
        VhostUserInflight *inflight = &msg->payload.inflight;
        _cleanup_close_ int fd = -EBADF;
        uint64_t size;

        if (inflight->num_queues > s->device->n_queues)
                return -EINVAL;
        fd = inflight_create(inflight->num_queues, inflight->queue_size, &size);
        if (fd < 0)
                return fd;
        inflight->mmap_size = size;
        inflight->mmap_offset = 0;
        return reply(s, msg, msg->header.size, &fd, 1);
}

/* In place of the front-end's descriptor it gets one of ours. An error ends the transfer, not the session. */
static int handle_set_device_state_fd(Session *s, VhostUserMsg *msg) {
        _cleanup_close_ int fd = -EBADF;
        int r = device_transfer_begin(s, msg->payload.transfer.direction, msg->payload.transfer.phase, &fd);

        if (r < 0)
                return reply_u64(s, msg, VHOST_USER_TRANSFER_NOFD | 1);
        msg->payload.u64 = 0;
        return reply(s, msg, sizeof(uint64_t), &fd, 1);
}

static int handle_check_device_state(Session *s, VhostUserMsg *msg) {
        return reply_u64(s, msg, device_transfer_check(s) < 0 ? 1 : 0);
}

/* Who asks is told by the descriptor whether it is so. */
static int handle_postcopy_advise(Session *s, VhostUserMsg *msg, int *fds) {
        int fd = -EBADF, r;

        if (!has_protocol_feature(s, VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT) || s->postcopy.uffd >= 0)
                return -EPROTO;
        r = postcopy_advise(s, fds, &fd);
        return reply(s, msg, 0, &fd, r >= 0);
}

static int handle_postcopy_end(Session *s, VhostUserMsg *msg) {
        int r;

        r = postcopy_end(s);
        return r < 0 ? r : reply_u64(s, msg, 0);
}

static int handle_set_inflight_fd(Session *s, VhostUserInflight inflight, int *fds) {
        int r;

        rings_withdraw_all(s);
        r = inflight_open(&s->inflight, fds[0], inflight.mmap_size, inflight.mmap_offset, inflight.num_queues,
                inflight.queue_size);
        if (r >= 0)
                session_keep_inflight(s, &inflight, fds[0]);
        return r;
}

static int handle_set_status(Session *s, uint64_t status) {
        if (status > UINT8_MAX)
                return -EINVAL;
        /* virtio 1.2 §2.1.2: writing 0 resets the device. */
        if (status == 0)
                rings_reset(s);
        s->status = (uint8_t) (status & ~(uint64_t) VIRTIO_CONFIG_S_NEEDS_RESET);
        return 0;
}

static int handle_reset_device(Session *s) {
        rings_reset(s);
        s->status = 0;
        return 0;
}

static int handle_reset_owner(Session *s) {
        /* "use it to disable all rings" */
        rings_withdraw_all(s);
        for (unsigned i = 0; i < s->device->n_queues; i++)
                s->rings[i].enabled = false;
        return 0;
}

/* Requests that have a reply of their own. */
static int handle_query(Session *s, VhostUserMsg *msg, int *fds) {
        switch (msg->header.request) {

        case VHOST_USER_GET_FEATURES:
                return reply_u64(s, msg, device_offered_features(s->device));

        case VHOST_USER_GET_PROTOCOL_FEATURES:
                return reply_u64(s, msg, session_protocol_features(s->device));

        case VHOST_USER_GET_QUEUE_NUM:
                return reply_u64(s, msg, s->device->n_queues);

        case VHOST_USER_GET_STATUS:
                return reply_u64(s, msg, s->status | (s->broken ? VIRTIO_CONFIG_S_NEEDS_RESET : 0));

        case VHOST_USER_GET_MAX_MEM_SLOTS:
                return reply_u64(s, msg, GUEST_MEMORY_REGIONS_MAX);

        case VHOST_USER_GET_VRING_BASE:
                return handle_get_vring_base(s, msg);

        case VHOST_USER_GET_CONFIG:
                return handle_get_config(s, msg);

        case VHOST_USER_GET_INFLIGHT_FD:
                return handle_get_inflight_fd(s, msg);

        case VHOST_USER_SET_DEVICE_STATE_FD:
                return handle_set_device_state_fd(s, msg);

        case VHOST_USER_CHECK_DEVICE_STATE:
                return handle_check_device_state(s, msg);

        case VHOST_USER_POSTCOPY_ADVISE:
                return handle_postcopy_advise(s, msg, fds);

        case VHOST_USER_POSTCOPY_END:
                return handle_postcopy_end(s, msg);
        }
        return -EOPNOTSUPP;
}

static int handle_command(Session *s, const VhostUserMsg *msg, int *fds) {
        switch (msg->header.request) {

        case VHOST_USER_SET_OWNER:
                return 0;

        case VHOST_USER_RESET_OWNER:
                return handle_reset_owner(s);

        case VHOST_USER_SET_FEATURES:
                return handle_set_features(s, msg->payload.u64);

        case VHOST_USER_SET_PROTOCOL_FEATURES:
                return handle_set_protocol_features(s, msg->payload.u64);

        case VHOST_USER_SET_MEM_TABLE:
                return handle_set_mem_table(s, msg, fds);

        case VHOST_USER_ADD_MEM_REG:
                return handle_add_mem_reg(s, msg->payload.mem_reg.region, fds);

        case VHOST_USER_REM_MEM_REG:
                return handle_rem_mem_reg(s, msg->payload.mem_reg.region);

        case VHOST_USER_SET_VRING_NUM:
                return handle_set_vring_num(s, msg->payload.state);

        case VHOST_USER_SET_VRING_ADDR:
                return handle_set_vring_addr(s, msg->payload.addr);

        case VHOST_USER_SET_VRING_BASE:
                return handle_set_vring_base(s, msg->payload.state);

        case VHOST_USER_SET_VRING_KICK:
                return handle_set_vring_kick(s, msg->payload.u64, fds);

        case VHOST_USER_SET_VRING_CALL:
                return handle_set_vring_call(s, msg->payload.u64, fds);

        case VHOST_USER_SET_VRING_ERR:
                return handle_set_vring_err(s, msg->payload.u64, fds);

        case VHOST_USER_SET_VRING_ENABLE:
                return handle_set_vring_enable(s, msg->payload.state);

        case VHOST_USER_SET_BACKEND_REQ_FD:
                return handle_set_backend_req_fd(s, fds);

        case VHOST_USER_SET_CONFIG:
                return handle_set_config(s, msg);

        case VHOST_USER_SET_INFLIGHT_FD:
                return handle_set_inflight_fd(s, msg->payload.inflight, fds);

        case VHOST_USER_POSTCOPY_LISTEN:
                return postcopy_listen(s);

        case VHOST_USER_SET_STATUS:
                return handle_set_status(s, msg->payload.u64);

        case VHOST_USER_RESET_DEVICE:
                return handle_reset_device(s);
        }
        return -EOPNOTSUPP;
}

/* Handles one whole request. A negative result ends the session. */
static int handle_request(Session *s) {
        VhostUserMsg msg = s->receiver.msg;
        uint32_t request = msg.header.request;
        bool acknowledge = has_protocol_feature(s, VHOST_USER_PROTOCOL_F_REPLY_ACK) &&
                (msg.header.flags & VHOST_USER_FLAG_NEED_REPLY);
        int r;

        r = vhost_user_check_request(&msg, s->receiver.n_fds);
        if (r >= 0)
                r = vhost_user_request_has_reply(request) ? handle_query(s, &msg, s->receiver.fds) : handle_command(s, &msg, s->receiver.fds);
        if (r < 0 && log_ratelimit(&s->complaints, NULL))
                (void) log_warning_errno(r, "The front-end's %s (%u) was refused: %m", vhost_user_request_name(request), request);
        if (acknowledge && !vhost_user_request_has_reply(request))
                return reply_u64(s, &msg, r < 0); /* who asked for the result decides himself */
        return r;
}

static int on_message(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Session *s = userdata;
        int r;

        session_keep_touch(s);
        r = vhost_user_receiver_step(&s->receiver, fd);
        if (r > 0) {
                r = rings_take_up(s);
                if (r >= 0)
                        r = handle_request(s);
                vhost_user_receiver_done(&s->receiver);
        }
        if (r == -ENODATA) {
                log_info("The front-end has disconnected.");
                session_end(s);
        } else if (r < 0) {
                (void) log_warning_errno(r, "The session with the front-end ends: %m");
                session_end(s);
        } else
                session_keep_settle(s);
        return 0;
}

int session_make(Device *d, int fd, Session **ret) {
        Session *s;
        int r, flags;

        s = calloc(1, sizeof(Session));
        if (!s) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        *s = (Session) {
                .device = d,
                .fd = fd,
                .backend_fd = -EBADF,
                .postcopy = { .uffd = -EBADF, .leash = -EBADF },
                .complaints = { .interval_usec = 30 * USEC_PER_SEC, .burst = 5 },
        };
        d->session = s;
        device_changed(d);

        flags = fcntl(fd, F_GETFL);
        r = flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
        if (r >= 0)
                r = rings_new(s);
        if (r >= 0)
                r = sd_event_add_io(d->event, &s->source, fd, EPOLLIN, on_message, s);
        if (r < 0)
                (void) session_free(s);
        else
                *ret = s;
        return r;
}

int session_new(Device *d, int fd) {
        Session *s;
        int r;

        r = session_make(d, fd, &s);
        if (r < 0)
                return r;
        r = session_keep_begin(s);
        if (r < 0)
                (void) session_free(s);
        return r;
}

Session *session_free(Session *s) {
        if (!s)
                return NULL;
        session_keep_touch(s);
        rings_withdraw_all(s);
        s->source = sd_event_source_disable_unref(s->source);
        session_keep_end(s);
        vhost_user_receiver_done(&s->receiver);
        rings_free(s);
        s->transfer = device_transfer_free(s->transfer);
        inflight_done(&s->inflight);
        guest_memory_done(&s->memory);
        postcopy_done(&s->postcopy);
        s->backend_fd = safe_close(s->backend_fd);
        s->fd = safe_close(s->fd);
        free(s->reason);
        s->device->session = NULL;
        device_changed(s->device);
        return mfree(s);
}

void session_end(Session *s) {
        Device *d = s->device;

        (void) session_free(s);
        if (d->session_ended)
                d->session_ended(d);
}

void session_send_config_change(Session *s) {
        VhostUserMsg msg = { .header.request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG };
        int r;

        if (s->backend_fd < 0 || !has_protocol_feature(s, VHOST_USER_PROTOCOL_F_CONFIG))
                return;
        r = vhost_user_send(s->backend_fd, &msg, NULL, 0);
        /* A full socket holds such a message that is still to be read, and the reading that follows it sees this change too. */
        if (r < 0 && r != -EAGAIN && log_ratelimit(&s->complaints, NULL))
                (void) log_warning_errno(r, "Cannot tell the front-end that the configuration has changed: %m");
        session_keep_config(s);
}
