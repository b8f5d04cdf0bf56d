/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* virtio vsock (virtio 1.2 §5.10) on AF_UNIX: sockets between guest and host that need no network, and no vhost-vsock of the host's kernel. */

#include "interfaces.h"
#include "vsock.h"

static int on_again(sd_event_source *source, void *userdata) {
        Vsock *v = userdata;
        Virtqueue *q = device_queue(v->device, VSOCK_QUEUE_TRANSMIT);
        int r;

        if (!device_is_running(v->device))
                return 0;
        r = vsock_from_guest(v);
        if (r == -EBADMSG) {
                device_broken(v->device, "%s", virtqueue_error(q) ?: "a packet makes no sense");
                return 0;
        }
        if (r < 0)
                return r;
        vsock_to_guest(v);
        return r > 0 ? sd_event_source_set_enabled(v->again, SD_EVENT_ONESHOT) : 0;
}

static int make_again(Vsock *v) {
        int r;

        r = sd_event_add_defer(device_event(v->device), &v->again, on_again, v);
        if (r >= 0)
                r = sd_event_source_set_priority(v->again, SD_EVENT_PRIORITY_NORMAL + 5);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(v->again, true);
        return r < 0 ? r : sd_event_source_set_enabled(v->again, SD_EVENT_OFF);
}

static int vsock_open(Device *d) {
        Vsock *v = calloc(1, sizeof(Vsock));
        int r;

        if (!v)
                return log_oom();
        v->device = d;
        v->cid = device_option_unsigned(d, "cid", 3);
        v->notify = device_option_boolean(d, "notify", true);
        v->complaints = (LogRateLimit) { .interval_usec = 30 * USEC_PER_SEC, .burst = 5 };
        device_set_data(d, v);

        r = vsock_connections_open(v);
        if (r >= 0)
                r = make_again(v);
        if (r >= 0)
                r = vsock_notify_open(v);
        return r < 0 ? log_error_errno(r, "Cannot make the device: %m") : 0;
}

static void vsock_close(Device *d) {
        Vsock *v = device_data(d);

        if (!v)
                return;
        vsock_connections_close(v);
        vsock_sockets_close(v);
        vsock_notify_close(v);
        (void) sd_event_source_disable_unref(v->again);
        for (unsigned i = 0; i < VSOCK_HELD_MAX; i++)
                virtqueue_chain_done(&v->held[i]);
        virtqueue_chain_done(&v->chain);
        virtqueue_chain_done(&v->event_chain);
        free(v->message.data);
        free(v);
        device_set_data(d, NULL);
}

/* Queues may come into service one by one. */
static int vsock_start(Device *d) {
        Virtqueue *receive = device_queue(d, VSOCK_QUEUE_RECEIVE), *transmit = device_queue(d, VSOCK_QUEUE_TRANSMIT);
        bool used = (receive && virtqueue_base(receive) != 0) || (transmit && virtqueue_base(transmit) != 0);
        Vsock *v = device_data(d);

        if (!receive && !transmit)
                return 0;
        v->messages = device_features(d) & (UINT64_C(1) << VIRTIO_VSOCK_F_SEQPACKET);
        if (v->met_guest && receive && transmit && !used) {
                vsock_drop_all(v); /* another guest, or the same one from its beginning: it knows of none */
                vsock_event_forget(v);
        }
        vsock_event_start(v, used); /* a predecessor's connections died with it */
        v->met_guest = true;
        return 0;
}

static void vsock_stop(Device *d) {
        Vsock *v = device_data(d);

        vsock_receive_stop(v);
        (void) sd_event_source_set_enabled(v->again, SD_EVENT_OFF);
}

static void vsock_reset(Device *d) {
        Vsock *v = device_data(d);

        vsock_drop_all(v);
        v->transmit_waits = false;
        vsock_event_forget(v);
        vsock_notify_reset(v);
}

static int vsock_process(Device *d, unsigned index) {
        Vsock *v = device_data(d);

        switch (index) {

        case VSOCK_QUEUE_RECEIVE:
                vsock_to_guest(v);
                return 0;

        case VSOCK_QUEUE_TRANSMIT:
                return vsock_from_guest(v);

        default:
                return vsock_event_process(v);
        }
}

/* §5.10.4 */
static void vsock_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        const Vsock *v = device_data(d);
        struct virtio_vsock_config config;

        store_le64(&config.guest_cid, v->cid);
        memcpy(data, (const uint8_t *) &config + offset, length);
}

static void vsock_describe(Device *d, json_object *into) {
        const Vsock *v = device_data(d);

        json_object_object_add(into, "cid", json_object_new_int64((int64_t) v->cid));
        json_object_object_add(into, "path", v->path ? json_object_new_string(v->path) : NULL);
        json_object_object_add(into, "guestConnections", json_object_new_int64(v->n_guest));
        json_object_object_add(into, "hostConnections", json_object_new_int64(v->n_host));
}

static void vsock_counters(Device *d, json_object *into) {
        const Vsock *v = device_data(d);
        const struct {
                const char *name;
                uint64_t value;
        } counters[] = {
                { "guestConnections", v->n_by_guest }, { "hostConnections", v->n_by_host }, { "resets", v->n_refused },
                { "violations", v->n_violations }, { "receivedBytes", v->bytes_sent }, { "receivedPackets", v->packets_sent },
                { "sentBytes", v->bytes_received }, { "sentPackets", v->packets_received }, { "backlogBytes", v->n_backlogged },
                { "notifications", v->n_notices },
        };

        for (size_t i = 0; i < ELEMENTSOF(counters); i++)
                json_object_object_add(into, counters[i].name, json_object_new_uint64(counters[i].value));
}

/* No connection outlives the machine that it was made in: the guest is told so, as after the death of a helper. */
static int vsock_save(Device *d, StateWriter *w) {
        return vsock_notify_save(device_data(d), w);
}

static int vsock_load(Device *d, StateReader *r, char **ret_message) {
        Vsock *v = device_data(d);

        vsock_drop_all(v);
        vsock_event_forget(v);
        v->met_guest = false;
        return vsock_notify_load(v, r, ret_message);
}

const DeviceClass vsock_device = {
        .name = "vsock",
        .virtio_id = 19,
        .features = UINT64_C(1) << VIRTIO_VSOCK_F_STREAM | UINT64_C(1) << VIRTIO_VSOCK_F_SEQPACKET,
        .queues_max = VSOCK_QUEUES,
        .config_size = sizeof(struct virtio_vsock_config),
        .policy = "vsock",
        .open = vsock_open,
        .close = vsock_close,
        .listen = vsock_listen,
        .start = vsock_start,
        .stop = vsock_stop,
        .reset = vsock_reset,
        .process = vsock_process,
        .config_read = vsock_config_read,
        .save = vsock_save,
        .load = vsock_load,
        .describe = vsock_describe,
        .counters = vsock_counters,
        .interface = varlink_text_io_vmmd_Vsock,
        .methods = vsock_methods,
};
