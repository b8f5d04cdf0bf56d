/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A vCPU and its plugin, on the vCPU's thread: what it stopped for goes out, requests come in until it may go on. */

#include <fcntl.h>
#include <stdio.h>

#include "plugin-internal.h"

#define PIPE_SIZE 0x40000
#define LENGTH_MAX 5 /* of a varint of 32 bits */

/* --- the pipes --- */

int plugin_channel_init(PluginVcpu *v, Plugin *plugin) {
        int in[2], out[2];

        v->plugin = plugin;
        (void) pthread_mutex_init(&v->lock, NULL);
        v->buffer = malloc(PLUGIN_MESSAGE_MAX + LENGTH_MAX);
        if (!v->buffer)
                return -ENOMEM;
        if (pipe2(in, O_CLOEXEC) < 0)
                return -errno;
        v->read_fd = in[0];
        v->their_write = in[1];
        if (pipe2(out, O_CLOEXEC) < 0)
                return -errno;
        v->their_read = out[0];
        v->write_fd = out[1];
        /* Where the user may have no more pipe pages, a message takes more than one write: no matter. */
        (void) fcntl(v->read_fd, F_SETPIPE_SZ, PIPE_SIZE);
        (void) fcntl(v->write_fd, F_SETPIPE_SZ, PIPE_SIZE);
        return 0;
}

void plugin_channel_done(PluginVcpu *v) {
        (void) safe_close(v->read_fd);
        (void) safe_close(v->write_fd);
        (void) safe_close(v->their_read);
        (void) safe_close(v->their_write);
        if (v->plugin)
                (void) pthread_mutex_destroy(&v->lock);
        free(v->buffer);
}

static int send_response(PluginVcpu *v, const VcpuResponse *response) {
        size_t size = vcpu_response__get_packed_size(response), at = 0, rest = size;

        if (size > PLUGIN_MESSAGE_MAX)
                return -EMSGSIZE;
        if (v->has_ring) {
                (void) vcpu_response__pack(response, v->buffer);
                return ring_send(&v->ring, RING_MESSAGE, v->buffer, size);
        }
        do {
                v->buffer[at++] = (uint8_t) ((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0));
                rest >>= 7;
        } while (rest > 0);
        (void) vcpu_response__pack(response, v->buffer + at);
        return write_full(v->write_fd, v->buffer, at + size);
}

/* One read is one request, as it was one write. */
static int read_request(PluginVcpu *v, size_t *ret_size) {
        ssize_t n;

        do
                n = read(v->read_fd, v->buffer, PLUGIN_MESSAGE_MAX);
        while (n < 0 && errno == EINTR);
        if (n <= 0)
                return n < 0 ? -errno : -EPIPE;
        *ret_size = (size_t) n;
        return 0;
}

/* The caller frees it. */
static int receive_request(PluginVcpu *v, VcpuRequest **ret) {
        size_t size = 0;
        uint8_t kind = RING_MESSAGE;
        int r;

        r = v->has_ring ? ring_receive(&v->ring, &kind, v->buffer, PLUGIN_MESSAGE_MAX, &size) : read_request(v, &size);
        if (r < 0)
                return r;
        if (kind != RING_MESSAGE)
                return -EBADMSG;
        *ret = vcpu_request__unpack(NULL, size, v->buffer);
        return *ret ? 0 : -EBADMSG;
}

/* --- its end --- */

static const char *describe(int error) {
        switch (error) {
        case -EPIPE:
                return "it closed their pipe";
        case -EBADMSG:
                return "it sent what is no request of the plugin protocol";
        default:
                return strerror(-error);
        }
}

static void fail(PluginVcpu *v, const Vcpu *vcpu, int error) {
        Plugin *plugin = v->plugin;
        uint64_t one = 1;

        (void) pthread_mutex_lock(&plugin->lock);
        if (!plugin->aborted && !plugin->channel_error) {
                (void) set_message(&plugin->channel_error, 0, "The plugin lets vCPU %u down: %s.", vcpu->index, describe(error));
                plugin->channel_left = error == -EPIPE;
        }
        (void) pthread_mutex_unlock(&plugin->lock);
        (void) !write(plugin->wake_fd, &one, sizeof(one));
}

/* --- requests --- */

/* What answers consist of, besides themselves. */
typedef struct Scratch {
        union {
                VcpuResponse__Empty empty;
                VcpuResponse__GetState state;
                VcpuResponse__GetMsrs msrs;
                VcpuResponse__Cpuid cpuid;
        };
        uint8_t bytes[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
        uint64_t *values;
        CpuidEntry *entries, **pointers;
} Scratch;

static void scratch_done(Scratch *s) {
        free(s->values);
        free(s->entries);
        free(s->pointers);
}

static int get_state(const Vcpu *vcpu, const VcpuRequest__GetState *get, VcpuResponse *response, Scratch *s) {
        size_t size;
        int r;

        s->state = (VcpuResponse__GetState) VCPU_RESPONSE__GET_STATE__INIT;
        response->get_state = &s->state;
        r = plugin_kvm_get_vcpu_state(vcpu, (unsigned) get->set, s->bytes, &size);
        if (r >= 0)
                s->state.state = (ProtobufCBinaryData) { .len = size, .data = s->bytes };
        return r;
}

static int get_msrs(const Vcpu *vcpu, const VcpuRequest__GetMsrs *get, VcpuResponse *response, Scratch *s) {
        size_t n = 0;
        int r;

        s->msrs = (VcpuResponse__GetMsrs) VCPU_RESPONSE__GET_MSRS__INIT;
        response->get_msrs = &s->msrs;
        if (get->n_entry_indices > PLUGIN_MSRS_MAX)
                return -E2BIG;
        s->values = calloc(get->n_entry_indices + 1, sizeof(uint64_t));
        if (!s->values)
                return -ENOMEM;
        r = plugin_kvm_get_msrs(vcpu, get->entry_indices, get->n_entry_indices, s->values, &n);
        s->msrs.n_entry_data = n;
        s->msrs.entry_data = s->values;
        return r;
}

static int set_msrs(const Vcpu *vcpu, const VcpuRequest__SetMsrs *set) {
        _cleanup_free_ uint32_t *indices = NULL;
        _cleanup_free_ uint64_t *values = NULL;

        if (set->n_entries > PLUGIN_MSRS_MAX)
                return -E2BIG;
        indices = calloc(set->n_entries + 1, sizeof(uint32_t));
        values = calloc(set->n_entries + 1, sizeof(uint64_t));
        if (!indices || !values)
                return -ENOMEM;
        for (size_t i = 0; i < set->n_entries; i++) {
                indices[i] = set->entries[i]->index;
                values[i] = set->entries[i]->data;
        }
        return plugin_kvm_set_msrs(vcpu, indices, values, set->n_entries);
}

static int set_cpuid(const Vcpu *vcpu, const VcpuRequest__SetCpuid *set) {
        _cleanup_free_ PluginCpuid *entries = NULL;

        if (set->n_entries > PLUGIN_CPUID_MAX)
                return -E2BIG;
        entries = calloc(set->n_entries + 1, sizeof(PluginCpuid));
        if (!entries)
                return -ENOMEM;
        for (size_t i = 0; i < set->n_entries; i++) {
                const CpuidEntry *e = set->entries[i];

                entries[i] = (PluginCpuid) { .function = e->function, .index = e->index, .eax = e->eax, .ebx = e->ebx, .ecx = e->ecx,
                                             .edx = e->edx, .has_index = e->has_index };
        }
        return plugin_kvm_set_cpuid(vcpu, entries, set->n_entries);
}

static int get_hyperv_cpuid(const Vcpu *vcpu, VcpuResponse *response, Scratch *s) {
        PluginCpuid entries[PLUGIN_CPUID_MAX];
        size_t n = 0;
        int r;

        s->cpuid = (VcpuResponse__Cpuid) VCPU_RESPONSE__CPUID__INIT;
        response->get_hyperv_cpuid = &s->cpuid;
        r = plugin_kvm_get_cpuid(vcpu->set->kvm, vcpu, PLUGIN_CPUID_HYPERV, entries, &n);
        if (r >= 0)
                r = plugin_cpuid_to_wire(entries, n, &s->entries, &s->pointers);
        if (r < 0)
                return r;
        s->cpuid.n_entries = n;
        s->cpuid.entries = s->pointers;
        return 0;
}

/* Everything but waiting and resuming. Returns what the response's error is. */
static int handle_request(const Vcpu *vcpu, const VcpuRequest *request, VcpuResponse *response, Scratch *s) {
        s->empty = (VcpuResponse__Empty) VCPU_RESPONSE__EMPTY__INIT;
        response->set_state = &s->empty; /* all without content are in the same place */
        switch (request->message_case) {
        case VCPU_REQUEST__MESSAGE_GET_STATE:
                response->message_case = VCPU_RESPONSE__MESSAGE_GET_STATE;
                return get_state(vcpu, request->get_state, response, s);
        case VCPU_REQUEST__MESSAGE_SET_STATE:
                response->message_case = VCPU_RESPONSE__MESSAGE_SET_STATE;
                return plugin_kvm_set_vcpu_state(vcpu, (unsigned) request->set_state->set, request->set_state->state.data,
                        request->set_state->state.len);
        case VCPU_REQUEST__MESSAGE_GET_MSRS:
                response->message_case = VCPU_RESPONSE__MESSAGE_GET_MSRS;
                return get_msrs(vcpu, request->get_msrs, response, s);
        case VCPU_REQUEST__MESSAGE_SET_MSRS:
                response->message_case = VCPU_RESPONSE__MESSAGE_SET_MSRS;
                return set_msrs(vcpu, request->set_msrs);
        case VCPU_REQUEST__MESSAGE_SET_CPUID:
                response->message_case = VCPU_RESPONSE__MESSAGE_SET_CPUID;
                return set_cpuid(vcpu, request->set_cpuid);
        case VCPU_REQUEST__MESSAGE_GET_HYPERV_CPUID:
                response->message_case = VCPU_RESPONSE__MESSAGE_GET_HYPERV_CPUID;
                return get_hyperv_cpuid(vcpu, response, s);
        case VCPU_REQUEST__MESSAGE_ENABLE_CAPABILITY:
                response->message_case = VCPU_RESPONSE__MESSAGE_ENABLE_CAPABILITY;
                return plugin_kvm_enable_vcpu_capability(vcpu, request->enable_capability->capability);
        default:
                response->message_case = VCPU_RESPONSE__MESSAGE__NOT_SET;
                return -ENOTTY;
        }
}

static int answer(PluginVcpu *v, const Vcpu *vcpu, const VcpuRequest *request) {
        _cleanup_(scratch_done) Scratch scratch = {};
        VcpuResponse response = VCPU_RESPONSE__INIT;

        response.error = -handle_request(vcpu, request, &response, &scratch);
        return send_response(v, &response);
}

static int answer_error(PluginVcpu *v, int error) {
        VcpuResponse response = VCPU_RESPONSE__INIT;

        response.error = -error;
        return send_response(v, &response);
}

static int set_registers(const Vcpu *vcpu, unsigned set, const ProtobufCBinaryData *state) {
        return state->len > 0 ? plugin_kvm_set_vcpu_state(vcpu, set, state->data, state->len) : 0;
}

static int take_registers(const Vcpu *vcpu, const VcpuRequest__Resume *resume) {
        int r;

        r = set_registers(vcpu, PLUGIN_STATE_REGS, &resume->regs);
        if (r >= 0)
                r = set_registers(vcpu, PLUGIN_STATE_SREGS, &resume->sregs);
        return r < 0 ? r : set_registers(vcpu, PLUGIN_STATE_DEBUGREGS, &resume->debugregs);
}

/* Serves the plugin until it resumes the vCPU; what it resumes it with goes to `data`. */
static int serve_until_resumed(PluginVcpu *v, const Vcpu *vcpu, void *data, size_t size) {
        for (;;) {
                VcpuRequest *request = NULL;
                bool resumed;
                int r;

                r = receive_request(v, &request);
                if (!request)
                        return r;
                resumed = request->message_case == VCPU_REQUEST__MESSAGE_RESUME;
                if (resumed) {
                        r = take_registers(vcpu, request->resume);
                        if (r >= 0 && size > 0 && request->resume->data.len > 0) /* else there are no bytes to point to */
                                memcpy(data, request->resume->data.data, MIN(size, request->resume->data.len));
                } else if (request->message_case == VCPU_REQUEST__MESSAGE_WAIT)
                        r = answer_error(v, -EPROTO);
                else
                        r = answer(v, vcpu, request);
                vcpu_request__free_unpacked(request, NULL);
                if (resumed || r < 0)
                        return r;
        }
}

/* Before its first wait a plugin may ask for nothing else. */
static int serve_first_wait(PluginVcpu *v) {
        VcpuResponse__Empty init = VCPU_RESPONSE__EMPTY__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        VcpuResponse response = VCPU_RESPONSE__INIT;
        int r;

        while (!v->waited) {
                VcpuRequest *request = NULL;

                r = receive_request(v, &request);
                if (!request)
                        return r;
                v->waited = request->message_case == VCPU_REQUEST__MESSAGE_WAIT;
                vcpu_request__free_unpacked(request, NULL);
                r = v->waited ? 0 : answer_error(v, -EPROTO);
                if (r < 0)
                        return r;
        }
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_INIT;
        wait.init = &init;
        response.message_case = VCPU_RESPONSE__MESSAGE_WAIT;
        response.wait = &wait;
        return send_response(v, &response);
}

static int tell(PluginVcpu *v, VcpuResponse__Wait *wait) {
        VcpuResponse response = VCPU_RESPONSE__INIT;

        response.message_case = VCPU_RESPONSE__MESSAGE_WAIT;
        response.wait = wait;
        return send_response(v, &response);
}

/* --- events --- */

static PluginVcpu *channel_of(Vcpu *vcpu, Plugin *plugin) {
        return &plugin->channels[vcpu->index];
}

/* Registers that a hint asks for. What cannot be read is not sent: the plugin asks for it then, and sees the error. */
typedef struct HintedRegisters {
        uint8_t regs[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
        uint8_t sregs[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
        uint8_t debugregs[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
} HintedRegisters;

static void send_along(const Vcpu *vcpu, unsigned set, uint8_t *scratch, ProtobufCBinaryData *ret) {
        size_t size;

        if (plugin_kvm_get_vcpu_state(vcpu, set, scratch, &size) >= 0)
                *ret = (ProtobufCBinaryData) { .len = size, .data = scratch };
}

static void add_hinted(Plugin *plugin, const Vcpu *vcpu, VcpuResponse__Wait__Io *io, HintedRegisters *h) {
        uint64_t registers[4];
        bool sregs, debugregs;

        send_along(vcpu, PLUGIN_STATE_REGS, h->regs, &io->regs);
        if (io->regs.len == 0)
                return;
        plugin_kvm_hint_registers(h->regs, registers);
        plugin_ranges_match_hint(&plugin->ranges, registers, &sregs, &debugregs);
        if (sregs)
                send_along(vcpu, PLUGIN_STATE_SREGS, h->sregs, &io->sregs);
        if (debugregs)
                send_along(vcpu, PLUGIN_STATE_DEBUGREGS, h->debugregs, &io->debugregs);
}

static int access_exit(PluginVcpu *v, Vcpu *vcpu, const PluginExit *e) {
        PluginAnswer who = plugin_ranges_find(&v->plugin->ranges, e->is_pio, e->address, e->is_write);
        VcpuResponse__Wait__Io io = VCPU_RESPONSE__WAIT__IO__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        HintedRegisters hinted;
        int r;

        if (!e->is_write)
                memset(e->data, 0, e->size); /* what nobody answers reads as zeroes */
        if (who == PLUGIN_ANSWER_NONE)
                return 0;
        io.space = e->is_pio ? ADDRESS_SPACE__IOPORT : ADDRESS_SPACE__MMIO;
        io.address = e->address;
        io.is_write = e->is_write;
        io.no_resume = who == PLUGIN_ANSWER_TELL;
        io.data = (ProtobufCBinaryData) { .len = e->size, .data = e->data };
        if (who == PLUGIN_ANSWER_HINT)
                add_hinted(v->plugin, vcpu, &io, &hinted);
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_IO;
        wait.io = &io;
        r = tell(v, &wait);
        if (r < 0 || who == PLUGIN_ANSWER_TELL)
                return r;
        return serve_until_resumed(v, vcpu, e->data, e->is_write ? 0 : e->size);
}

static int hyperv_call_exit(PluginVcpu *v, Vcpu *vcpu, const PluginExit *e) {
        VcpuResponse__Wait__HypervCall call = VCPU_RESPONSE__WAIT__HYPERV_CALL__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        int r;

        call.input = e->input;
        call.params0 = e->params[0];
        call.params1 = e->params[1];
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_HYPERV_CALL;
        wait.hyperv_call = &call;
        r = tell(v, &wait);
        return r < 0 ? r : serve_until_resumed(v, vcpu, e->result, sizeof(*e->result));
}

static int hyperv_synic_exit(PluginVcpu *v, Vcpu *vcpu, const PluginExit *e) {
        VcpuResponse__Wait__HypervSynic synic = VCPU_RESPONSE__WAIT__HYPERV_SYNIC__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        int r;

        synic.msr = e->msr;
        synic.control = e->control;
        synic.evt_page = e->event_page;
        synic.msg_page = e->message_page;
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_HYPERV_SYNIC;
        wait.hyperv_synic = &synic;
        r = tell(v, &wait);
        return r < 0 ? r : serve_until_resumed(v, vcpu, NULL, 0);
}

/* The channel is of no use any more: the vCPU stays where it is. */
static void stop_vcpu(PluginVcpu *v, Vcpu *vcpu, int error) {
        fail(v, vcpu, error);
        vcpu_halt(vcpu);
}

bool plugin_vcpu_exited(Vcpu *vcpu, void *userdata) {
        PluginVcpu *v = channel_of(vcpu, userdata);
        PluginExit e;
        int r;

        plugin_kvm_exit(vcpu, &e);
        switch (e.kind) {
        case PLUGIN_EXIT_ACCESS:
                r = access_exit(v, vcpu, &e);
                break;
        case PLUGIN_EXIT_HYPERV_CALL:
                r = hyperv_call_exit(v, vcpu, &e);
                break;
        case PLUGIN_EXIT_HYPERV_SYNIC:
                r = hyperv_synic_exit(v, vcpu, &e);
                break;
        default:
                return false;
        }
        if (r < 0)
                stop_vcpu(v, vcpu, r);
        return true;
}

void plugin_vcpu_interrupted(Vcpu *vcpu, void *userdata) {
        VcpuResponse__Wait__User user = VCPU_RESPONSE__WAIT__USER__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        PluginVcpu *v = channel_of(vcpu, userdata);
        bool asked;
        int r;

        (void) pthread_mutex_lock(&v->lock);
        asked = v->pause_asked;
        user.user = v->pause_user;
        v->pause_asked = false;
        (void) pthread_mutex_unlock(&v->lock);
        if (!asked)
                return;
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_USER;
        wait.user = &user;
        r = tell(v, &wait);
        if (r >= 0)
                r = serve_until_resumed(v, vcpu, NULL, 0);
        if (r < 0)
                stop_vcpu(v, vcpu, r);
}

/* No vCPU runs before all are set up. */
static bool wait_for_others(Plugin *plugin) {
        bool go;

        (void) pthread_mutex_lock(&plugin->lock);
        plugin->n_prepared++;
        (void) pthread_cond_broadcast(&plugin->changed);
        while (!plugin->aborted && plugin->n_prepared < plugin->n_vcpus)
                (void) pthread_cond_wait(&plugin->changed, &plugin->lock);
        go = !plugin->aborted;
        (void) pthread_mutex_unlock(&plugin->lock);
        return go;
}

bool plugin_vcpu_prepare(Vcpu *vcpu, void *userdata) {
        PluginVcpu *v = channel_of(vcpu, userdata);
        int r;

        r = serve_first_wait(v);
        if (r >= 0)
                r = serve_until_resumed(v, vcpu, NULL, 0);
        if (r < 0)
                fail(v, vcpu, r);
        return r >= 0 && wait_for_others(v->plugin);
}

/* --- what the machine wants to know --- */

void plugin_on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
        const Plugin *plugin = userdata;

        plugin->vcpu_handlers.event(vcpu, event, plugin->vcpu_handlers.userdata);
}

void plugin_on_vcpus_paused(void *userdata) {
        const Plugin *plugin = userdata;

        plugin->vcpu_handlers.paused(plugin->vcpu_handlers.userdata);
}
