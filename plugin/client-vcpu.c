/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A vCPU: waiting for its events, resuming it, and its state in between. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "plugin-client.h"

/* --- events --- */

static int keep_data(struct crosvm_vcpu *v, const void *data, size_t size) {
        uint8_t *copy = realloc(v->data, size > 0 ? size : 1);

        if (!copy)
                return -ENOMEM;
        v->data = copy;
        v->data_size = size;
        if (size > 0)
                memcpy(copy, data, size);
        return 0;
}

/* What a hint brought along, or nothing. What was set before that, of a vCPU that did not stand still, waits for it to be resumed, as in crosvm. */
static void keep_registers(RegisterCache *cache, void *registers, size_t size, const ProtobufCBinaryData *from) {
        cache->known = from && from->len == size;
        if (!cache->known)
                return;
        cache->pending = false;
        memcpy(registers, from->data, size);
}

static void keep_all_registers(struct crosvm_vcpu *v, const VcpuResponse__Wait__Io *io) {
        keep_registers(&v->regs, &v->regs.regs, sizeof(v->regs.regs), io ? &io->regs : NULL);
        keep_registers(&v->sregs, &v->sregs.sregs, sizeof(v->sregs.sregs), io ? &io->sregs : NULL);
        keep_registers(&v->debugregs, &v->debugregs.debugregs, sizeof(v->debugregs.debugregs), io ? &io->debugregs : NULL);
}

static int take_access(struct crosvm_vcpu *v, const VcpuResponse__Wait__Io *io, struct crosvm_vcpu_event *ret) {
        int r;

        r = keep_data(v, io->data.data, io->data.len);
        if (r < 0)
                return r;
        keep_all_registers(v, io);
        *ret = (struct crosvm_vcpu_event) {
                .kind = CROSVM_VCPU_EVENT_KIND_IO_ACCESS,
                .io_access = {
                        .address_space = (uint32_t) io->space,
                        .address = io->address,
                        .data = v->data,
                        .length = (uint32_t) io->data.len,
                        .is_write = io->is_write,
                        .no_resume = io->no_resume,
                },
        };
        return 0;
}

static int take_event(struct crosvm_vcpu *v, const VcpuResponse__Wait *wait, struct crosvm_vcpu_event *ret) {
        static const uint64_t nothing = 0;
        int r;

        if (wait->exit_case == VCPU_RESPONSE__WAIT__EXIT_IO)
                return take_access(v, wait->io, ret);
        r = keep_data(v, &nothing, wait->exit_case == VCPU_RESPONSE__WAIT__EXIT_HYPERV_CALL ? sizeof(nothing) : 0);
        if (r < 0)
                return r;
        keep_all_registers(v, NULL);
        switch (wait->exit_case) {
        case VCPU_RESPONSE__WAIT__EXIT_INIT:
                *ret = (struct crosvm_vcpu_event) { .kind = CROSVM_VCPU_EVENT_KIND_INIT };
                return 0;
        case VCPU_RESPONSE__WAIT__EXIT_USER:
                *ret = (struct crosvm_vcpu_event) { .kind = CROSVM_VCPU_EVENT_KIND_PAUSED,
                                                    .user = (void *) (uintptr_t) wait->user->user }; /* NOLINT(performance-no-int-to-ptr) */
                return 0;
        case VCPU_RESPONSE__WAIT__EXIT_HYPERV_CALL:
                *ret = (struct crosvm_vcpu_event) {
                        .kind = CROSVM_VCPU_EVENT_KIND_HYPERV_HCALL,
                        .hyperv_call = { .input = wait->hyperv_call->input, .result = (uint64_t *) (void *) v->data,
                                         .params = { wait->hyperv_call->params0, wait->hyperv_call->params1 } },
                };
                return 0;
        case VCPU_RESPONSE__WAIT__EXIT_HYPERV_SYNIC:
                *ret = (struct crosvm_vcpu_event) {
                        .kind = CROSVM_VCPU_EVENT_KIND_HYPERV_SYNIC,
                        .hyperv_synic = { .msr = wait->hyperv_synic->msr, .control = wait->hyperv_synic->control,
                                          .evt_page = wait->hyperv_synic->evt_page, .msg_page = wait->hyperv_synic->msg_page },
                };
                return 0;
        default:
                return -EPROTO;
        }
}

int crosvm_vcpu_wait(struct crosvm_vcpu *v, struct crosvm_vcpu_event *ret) {
        VcpuRequest__Empty empty = VCPU_REQUEST__EMPTY__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        VcpuResponse *response = NULL;
        int r;

        if (!v->waited) {
                request.message_case = VCPU_REQUEST__MESSAGE_WAIT;
                request.wait = &empty;
                r = plugin_vcpu_send(v, &request);
                if (r < 0)
                        return r;
                v->waited = true;
        }
        r = plugin_vcpu_receive(v, &response);
        if (r < 0)
                return r;
        r = response->message_case == VCPU_RESPONSE__MESSAGE_WAIT ? take_event(v, response->wait, ret) : -EPROTO;
        vcpu_response__free_unpacked(response, NULL);
        return r;
}

static void give_registers(RegisterCache *cache, const void *registers, size_t size, ProtobufCBinaryData *to) {
        if (cache->pending)
                *to = (ProtobufCBinaryData) { .len = size, .data = (uint8_t *) registers };
        cache->pending = cache->known = false;
}

int crosvm_vcpu_resume(struct crosvm_vcpu *v) {
        VcpuRequest__Resume resume = VCPU_REQUEST__RESUME__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        int r;

        resume.data = (ProtobufCBinaryData) { .len = v->data_size, .data = v->data };
        give_registers(&v->regs, &v->regs.regs, sizeof(v->regs.regs), &resume.regs);
        give_registers(&v->sregs, &v->sregs.sregs, sizeof(v->sregs.sregs), &resume.sregs);
        give_registers(&v->debugregs, &v->debugregs.debugregs, sizeof(v->debugregs.debugregs), &resume.debugregs);
        request.message_case = VCPU_REQUEST__MESSAGE_RESUME;
        request.resume = &resume;
        r = plugin_vcpu_send(v, &request);
        v->data_size = 0;
        return r;
}

/* --- state --- */

static int set_state(struct crosvm_vcpu *v, VcpuRequest__StateSet set, const void *data, size_t size) {
        VcpuRequest__SetState state = VCPU_REQUEST__SET_STATE__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        VcpuResponse *response = NULL;
        int r;

        state.set = set;
        state.state = (ProtobufCBinaryData) { .len = size, .data = (uint8_t *) data };
        request.message_case = VCPU_REQUEST__MESSAGE_SET_STATE;
        request.set_state = &state;
        r = plugin_vcpu_ask(v, &request, VCPU_RESPONSE__MESSAGE_SET_STATE, &response);
        if (r >= 0)
                vcpu_response__free_unpacked(response, NULL);
        return r;
}

static int get_state(struct crosvm_vcpu *v, VcpuRequest__StateSet set, void *ret, size_t size) {
        VcpuRequest__GetState get = VCPU_REQUEST__GET_STATE__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        VcpuResponse *response = NULL;
        int r;

        get.set = set;
        request.message_case = VCPU_REQUEST__MESSAGE_GET_STATE;
        request.get_state = &get;
        r = plugin_vcpu_ask(v, &request, VCPU_RESPONSE__MESSAGE_GET_STATE, &response);
        if (!response)
                return r;
        r = response->get_state->state.len == size ? 0 : -EPROTO;
        if (r >= 0)
                memcpy(ret, response->get_state->state.data, size);
        vcpu_response__free_unpacked(response, NULL);
        return r;
}

/* What is still to be set is set first, so that KVM has its say on it. */
static int get_cached(struct crosvm_vcpu *v, RegisterCache *cache, const void *registers, VcpuRequest__StateSet set, void *ret,
        size_t size) {
        int r;

        if (cache->pending) {
                cache->pending = false;
                r = set_state(v, set, registers, size);
                if (r < 0)
                        return r;
        }
        if (!cache->known)
                return get_state(v, set, ret, size);
        memcpy(ret, registers, size);
        return 0;
}

#define DEFINE_CACHED(name, member, type, set)                                                                 \
        int crosvm_vcpu_get_##name(struct crosvm_vcpu *v, struct type *ret) {                                  \
                return get_cached(v, &v->member, &v->member.member, VCPU_REQUEST__STATE_SET__##set, ret, sizeof(*ret)); \
        }                                                                                                      \
        int crosvm_vcpu_set_##name(struct crosvm_vcpu *v, const struct type *registers) {                      \
                v->member.member = *registers;                                                                 \
                v->member.known = false;                                                                       \
                v->member.pending = true;                                                                      \
                return 0;                                                                                      \
        }
DEFINE_CACHED(regs, regs, kvm_regs, REGS)
DEFINE_CACHED(sregs, sregs, kvm_sregs, SREGS)
DEFINE_CACHED(debugregs, debugregs, kvm_debugregs, DEBUGREGS)

#define DEFINE_STATE(name, type, set)                                                                          \
        int crosvm_vcpu_get_##name(struct crosvm_vcpu *v, struct type *ret) {                                  \
                return get_state(v, VCPU_REQUEST__STATE_SET__##set, ret, sizeof(*ret));                        \
        }                                                                                                      \
        int crosvm_vcpu_set_##name(struct crosvm_vcpu *v, const struct type *state) {                          \
                return set_state(v, VCPU_REQUEST__STATE_SET__##set, state, sizeof(*state));                    \
        }
DEFINE_STATE(fpu, kvm_fpu, FPU)
DEFINE_STATE(xcrs, kvm_xcrs, XCREGS)
DEFINE_STATE(lapic_state, kvm_lapic_state, LAPIC)
DEFINE_STATE(mp_state, kvm_mp_state, MP)
DEFINE_STATE(vcpu_events, kvm_vcpu_events, EVENTS)

/* --- MSRs, CPUID, capabilities --- */

int crosvm_vcpu_get_msrs(struct crosvm_vcpu *v, uint32_t n, struct kvm_msr_entry *entries, uint32_t *ret_count) {
        VcpuRequest__GetMsrs get = VCPU_REQUEST__GET_MSRS__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        VcpuResponse *response = NULL;
        uint32_t *indices;
        size_t found;
        int r;

        *ret_count = 0;
        indices = calloc(n > 0 ? n : 1, sizeof(uint32_t));
        if (!indices)
                return -ENOMEM;
        for (uint32_t i = 0; i < n; i++)
                indices[i] = entries[i].index;
        get.n_entry_indices = n;
        get.entry_indices = indices;
        request.message_case = VCPU_REQUEST__MESSAGE_GET_MSRS;
        request.get_msrs = &get;
        r = plugin_vcpu_ask(v, &request, VCPU_RESPONSE__MESSAGE_GET_MSRS, &response);
        free(indices);
        if (!response)
                return r;
        found = response->get_msrs->n_entry_data;
        *ret_count = (uint32_t) found;
        r = found > n ? -E2BIG : 0;
        for (size_t i = 0; i < found && r >= 0; i++)
                entries[i].data = response->get_msrs->entry_data[i];
        vcpu_response__free_unpacked(response, NULL);
        return r;
}

static int tell(struct crosvm_vcpu *v, const VcpuRequest *request, VcpuResponse__MessageCase expected) {
        VcpuResponse *response = NULL;
        int r;

        r = plugin_vcpu_ask(v, request, expected, &response);
        if (r >= 0)
                vcpu_response__free_unpacked(response, NULL);
        return r;
}

/* Makes a message of each entry, and an array of pointers to them in front, in one piece of memory that the caller frees. */
static void *make_list(size_t n, size_t size, void (*fill)(void *message, const void *entry), const void *entries, size_t entry_size) {
        void **pointers = calloc(n + 1, sizeof(void *) + size);
        uint8_t *messages = (uint8_t *) (pointers + n + 1);

        for (size_t i = 0; i < n && pointers; i++) {
                pointers[i] = messages + i * size;
                fill(pointers[i], (const uint8_t *) entries + i * entry_size);
        }
        return pointers;
}

static void fill_msr(void *message, const void *entry) {
        const struct kvm_msr_entry *from = entry;
        VcpuRequest__MsrEntry *to = message;

        *to = (VcpuRequest__MsrEntry) VCPU_REQUEST__MSR_ENTRY__INIT;
        to->index = from->index;
        to->data = from->data;
}

static void fill_cpuid(void *message, const void *entry) {
        const struct kvm_cpuid_entry2 *from = entry;
        CpuidEntry *to = message;

        *to = (CpuidEntry) CPUID_ENTRY__INIT;
        to->function = from->function;
        to->has_index = from->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        to->index = from->index;
        to->eax = from->eax;
        to->ebx = from->ebx;
        to->ecx = from->ecx;
        to->edx = from->edx;
}

int crosvm_vcpu_set_msrs(struct crosvm_vcpu *v, uint32_t n, const struct kvm_msr_entry *from) {
        VcpuRequest__SetMsrs set = VCPU_REQUEST__SET_MSRS__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        int r;

        set.n_entries = n;
        set.entries = make_list(n, sizeof(VcpuRequest__MsrEntry), fill_msr, from, sizeof(*from));
        if (!set.entries)
                return -ENOMEM;
        request.message_case = VCPU_REQUEST__MESSAGE_SET_MSRS;
        request.set_msrs = &set;
        r = tell(v, &request, VCPU_RESPONSE__MESSAGE_SET_MSRS);
        free(set.entries);
        return r;
}

int crosvm_vcpu_set_cpuid(struct crosvm_vcpu *v, uint32_t n, const struct kvm_cpuid_entry2 *from) {
        VcpuRequest__SetCpuid set = VCPU_REQUEST__SET_CPUID__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        int r;

        set.n_entries = n;
        set.entries = make_list(n, sizeof(CpuidEntry), fill_cpuid, from, sizeof(*from));
        if (!set.entries)
                return -ENOMEM;
        request.message_case = VCPU_REQUEST__MESSAGE_SET_CPUID;
        request.set_cpuid = &set;
        r = tell(v, &request, VCPU_RESPONSE__MESSAGE_SET_CPUID);
        free(set.entries);
        return r;
}

int crosvm_vcpu_enable_capability(struct crosvm_vcpu *v, uint32_t capability, uint32_t flags, uint64_t args[4]) {
        VcpuRequest__EnableCapability enable = VCPU_REQUEST__ENABLE_CAPABILITY__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;

        if (flags != 0 || args[0] != 0 || args[1] != 0 || args[2] != 0 || args[3] != 0)
                return -EINVAL;
        enable.capability = capability;
        request.message_case = VCPU_REQUEST__MESSAGE_ENABLE_CAPABILITY;
        request.enable_capability = &enable;
        return tell(v, &request, VCPU_RESPONSE__MESSAGE_ENABLE_CAPABILITY);
}

int crosvm_get_hyperv_cpuid(struct crosvm_vcpu *v, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count) {
        VcpuRequest__Empty empty = VCPU_REQUEST__EMPTY__INIT;
        VcpuRequest request = VCPU_REQUEST__INIT;
        VcpuResponse *response = NULL;
        int r;

        *ret_count = 0;
        request.message_case = VCPU_REQUEST__MESSAGE_GET_HYPERV_CPUID;
        request.get_hyperv_cpuid = &empty;
        r = plugin_vcpu_ask(v, &request, VCPU_RESPONSE__MESSAGE_GET_HYPERV_CPUID, &response);
        if (!response)
                return r;
        r = plugin_take_cpuid(response->get_hyperv_cpuid->entries, response->get_hyperv_cpuid->n_entries, n_entries, entries, ret_count);
        vcpu_response__free_unpacked(response, NULL);
        return r;
}
