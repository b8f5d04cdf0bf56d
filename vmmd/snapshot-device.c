/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "machine-device-internal.h"
#include "snapshot-device.h"
#include "vhost-device-state.h"
#include "vhost-inflight.h"

#define VHOST_SECTION SNAPSHOT_VHOST_SECTION
#define IN_FLIGHT_SECTION SNAPSHOT_IN_FLIGHT_SECTION
#define BUS_SECTION SNAPSHOT_BUS_SECTION
#define VERSION SNAPSHOT_DEVICE_VERSION

void saved_device_done(SavedDevice *s) {
        vhost_snapshot_done(&s->vhost);
}

static int write_in_flight(const VhostInFlight *f, unsigned index, StateWriter *w) {
        if (!vhost_in_flight_any(f))
                return 0;
        state_begin(w, IN_FLIGHT_SECTION, index, VERSION);
        for (unsigned i = 0; i < ELEMENTSOF(f->n); i++) {
                state_put_u16(w, f->n[i]);
                for (unsigned k = 0; k < f->n[i]; k++)
                        state_put_u16(w, f->heads[i][k]);
        }
        return state_end(w);
}

static int read_in_flight(StateReader *r, unsigned index, VhostInFlight *ret, char **ret_message) {
        int k;

        k = state_enter(r, IN_FLIGHT_SECTION, index, VERSION);
        if (k == -ENOENT)
                return 0;
        if (k < 0)
                return k;
        for (unsigned i = 0; i < ELEMENTSOF(ret->n); i++) {
                uint16_t n = state_get_u16(r);

                ret->heads[i] = n > 0 ? calloc(n, sizeof(uint16_t)) : NULL;
                if (n > 0 && !ret->heads[i])
                        return -ENOMEM;
                ret->n[i] = n;
                for (unsigned j = 0; j < n; j++)
                        ret->heads[i][j] = state_get_u16(r);
        }
        return state_leave(r, ret_message);
}

static int write_virtio(MachineDevice *d, unsigned index, StateWriter *w, void **ret_state, size_t *ret_size, char **ret_message) {
        _cleanup_(vhost_snapshot_done) VhostSnapshot s = {};
        _cleanup_free_ char *message = NULL;
        int r;

        r = vhost_frontend_save(d->frontend, &s, &message);
        if (r < 0)
                return set_message(ret_message, r, "Device '%s': %s.", d->definition->name, message ?: strerror(-r));
        state_begin(w, VHOST_SECTION, index, VERSION);
        state_put_u8(w, s.active);
        state_put_u64(w, s.features);
        state_put_u32(w, s.n_queues);
        for (unsigned i = 0; i < s.n_queues; i++)
                state_put_u16(w, s.bases[i]);
        state_put_blob(w, s.state, s.state_size);
        r = state_end(w);
        if (r >= 0)
                r = write_in_flight(&s.in_flight, index, w);
        if (r < 0)
                return r;
        *ret_state = TAKE_PTR(s.state);
        *ret_size = s.state_size;
        return 0;
}

int saved_device_write(MachineDevice *d, unsigned index, StateWriter *w, void **ret_state, size_t *ret_size, char **ret_message) {
        uint8_t state[BUS_STATE_SIZE];

        if (d->frontend)
                return write_virtio(d, index, w, ret_state, ret_size, ret_message);
        bus_client_get_state(d->bus, state);
        state_begin(w, BUS_SECTION, index, VERSION);
        state_put_blob(w, state, sizeof(state));
        *ret_state = NULL;
        *ret_size = 0;
        return state_end(w);
}

static int read_virtio(const MachineDevice *d, unsigned index, StateReader *r, VhostSnapshot *ret, char **ret_message) {
        VhostSnapshot s = {};
        const void *state;
        int k;

        k = state_enter(r, VHOST_SECTION, index, VERSION);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of device '%s'.", d->definition->name);
        s.active = state_get_u8(r);
        s.features = state_get_u64(r);
        s.n_queues = state_get_u32(r);
        if (s.n_queues > VHOST_FRONTEND_QUEUES_MAX)
                return set_message(ret_message, -EBADMSG, "Device '%s' has %u queues in the snapshot.", d->definition->name, s.n_queues);
        for (unsigned i = 0; i < s.n_queues; i++)
                s.bases[i] = state_get_u16(r);
        state = state_get_blob_view(r, VHOST_DEVICE_STATE_MAX, &s.state_size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        s.state = malloc(MAX(s.state_size, (size_t) 1));
        if (!s.state)
                return -ENOMEM;
        memcpy(s.state, state, s.state_size);
        k = read_in_flight(r, index, &s.in_flight, ret_message);
        if (k < 0) {
                vhost_snapshot_done(&s);
                return k;
        }
        *ret = s;
        return 0;
}

int saved_device_read(const MachineDevice *d, unsigned index, StateReader *r, SavedDevice *ret, char **ret_message) {
        int k;

        if (d->frontend)
                return read_virtio(d, index, r, &ret->vhost, ret_message);
        k = state_enter(r, BUS_SECTION, index, VERSION);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of device '%s'.", d->definition->name);
        state_get_blob(r, ret->bus_state, sizeof(ret->bus_state));
        return state_leave(r, ret_message);
}
