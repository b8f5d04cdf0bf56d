/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a plugin asks of the machine as a whole. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin-client.h"

/* --- what KVM can do --- */

int crosvm_check_extension(struct crosvm *c, uint32_t extension, bool *ret) {
        MainRequest__CheckExtension check = MAIN_REQUEST__CHECK_EXTENSION__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        MainResponse *response = NULL;
        int r;

        check.extension = extension;
        request.message_case = MAIN_REQUEST__MESSAGE_CHECK_EXTENSION;
        request.check_extension = &check;
        r = plugin_ask(c, &request, -1, MAIN_RESPONSE__MESSAGE_CHECK_EXTENSION, &response, NULL, NULL);
        if (r < 0)
                return r;
        *ret = response->check_extension->has_extension;
        main_response__free_unpacked(response, NULL);
        return 0;
}

int crosvm_enable_capability(struct crosvm *c, uint32_t capability, uint32_t flags, uint64_t args[4]) {
        return -EINVAL;
}

int plugin_take_cpuid(CpuidEntry *const *from, size_t n, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count) {
        *ret_count = (uint32_t) n;
        if (n > n_entries)
                return -E2BIG;
        for (size_t i = 0; i < n; i++)
                entries[i] = (struct kvm_cpuid_entry2) {
                        .function = from[i]->function,
                        .index = from[i]->index,
                        .flags = from[i]->has_index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                        .eax = from[i]->eax,
                        .ebx = from[i]->ebx,
                        .ecx = from[i]->ecx,
                        .edx = from[i]->edx,
                };
        return 0;
}

static int get_cpuid(struct crosvm *c, bool supported, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count) {
        MainResponse *response = NULL;
        int r;

        *ret_count = 0;
        r = plugin_ask_empty(c, supported ? MAIN_REQUEST__MESSAGE_GET_SUPPORTED_CPUID : MAIN_REQUEST__MESSAGE_GET_EMULATED_CPUID,
                supported ? MAIN_RESPONSE__MESSAGE_GET_SUPPORTED_CPUID : MAIN_RESPONSE__MESSAGE_GET_EMULATED_CPUID, &response, NULL,
                NULL);
        if (r < 0)
                return r;
        r = plugin_take_cpuid(response->get_supported_cpuid->entries, response->get_supported_cpuid->n_entries, n_entries, entries,
                ret_count);
        main_response__free_unpacked(response, NULL);
        return r;
}

int crosvm_get_supported_cpuid(struct crosvm *c, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count) {
        return get_cpuid(c, true, n_entries, entries, ret_count);
}

int crosvm_get_emulated_cpuid(struct crosvm *c, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count) {
        return get_cpuid(c, false, n_entries, entries, ret_count);
}

int crosvm_get_msr_index_list(struct crosvm *c, uint32_t n_entries, uint32_t *indices, uint32_t *ret_count) {
        MainResponse *response = NULL;
        size_t n;
        int r;

        *ret_count = 0;
        r = plugin_ask_empty(c, MAIN_REQUEST__MESSAGE_GET_MSR_INDEX_LIST, MAIN_RESPONSE__MESSAGE_GET_MSR_INDEX_LIST, &response, NULL, NULL);
        if (r < 0)
                return r;
        n = response->get_msr_index_list->n_indices;
        *ret_count = (uint32_t) n;
        r = n > n_entries ? -E2BIG : 0;
        if (r >= 0 && n > 0)
                memcpy(indices, response->get_msr_index_list->indices, n * sizeof(uint32_t));
        main_response__free_unpacked(response, NULL);
        return r;
}

/* --- network --- */

int crosvm_net_get_config(struct crosvm *c, struct crosvm_net_config *ret) {
        const MainResponse__GetNetConfig *config;
        MainResponse *response = NULL;
        size_t n = 1;
        int fd, r;

        r = plugin_ask_empty(c, MAIN_REQUEST__MESSAGE_GET_NET_CONFIG, MAIN_RESPONSE__MESSAGE_GET_NET_CONFIG, &response, &fd, &n);
        if (r < 0)
                return r;
        config = response->get_net_config;
        r = config->host_mac_address.len == sizeof(ret->host_mac_address) ? 0 : -EPROTO;
        if (r >= 0) {
                *ret = (struct crosvm_net_config) { .tap_fd = fd, .host_ip = config->host_ipv4_address, .netmask = config->netmask };
                memcpy(ret->host_mac_address, config->host_mac_address.data, sizeof(ret->host_mac_address));
        } else
                (void) close(fd);
        main_response__free_unpacked(response, NULL);
        return r;
}

/* --- addresses --- */

static bool is_space(uint32_t space) {
        return space == CROSVM_ADDRESS_SPACE_IOPORT || space == CROSVM_ADDRESS_SPACE_MMIO;
}

static int reserve(struct crosvm *c, uint32_t space, uint64_t start, uint64_t length, bool async_write) {
        MainRequest__ReserveRange range = MAIN_REQUEST__RESERVE_RANGE__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        if (!is_space(space))
                return -EINVAL;
        range.space = (AddressSpace) space;
        range.start = start;
        range.length = length;
        range.async_write = async_write;
        request.message_case = MAIN_REQUEST__MESSAGE_RESERVE_RANGE;
        request.reserve_range = &range;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_RESERVE_RANGE);
}

int crosvm_reserve_range(struct crosvm *c, uint32_t space, uint64_t start, uint64_t length) {
        return reserve(c, space, start, length, false);
}

int crosvm_reserve_async_write_range(struct crosvm *c, uint32_t space, uint64_t start, uint64_t length) {
        return reserve(c, space, start, length, true);
}

static bool hint_is_valid(const struct crosvm_hint *hint) {
        return hint->hint_version == 0 && hint->_reserved == 0 && hint->address != 0 && is_space(hint->address_space) &&
                (hint->address_flags == 0 || hint->address_flags == CROSVM_HINT_ON_WRITE) &&
                hint->details_count <= CROSVM_MAX_HINT_DETAIL_COUNT;
}

int crosvm_set_hypercall_hint(struct crosvm *c, uint32_t n_hints, const struct crosvm_hint *hints) {
        MainRequest__SetCallHint__RegHint details[CROSVM_MAX_HINT_DETAIL_COUNT], *pointers[CROSVM_MAX_HINT_DETAIL_COUNT];
        MainRequest__SetCallHint hint = MAIN_REQUEST__SET_CALL_HINT__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        if (n_hints > CROSVM_MAX_HINT_COUNT || (n_hints > 0 && !hint_is_valid(hints)))
                return -EINVAL;
        if (n_hints > 0) {
                for (size_t i = 0; i < hints->details_count; i++) {
                        const struct crosvm_hint_detail *from = &hints->details[i];
                        MainRequest__SetCallHint__RegHint *to = pointers[i] = &details[i];

                        *to = (MainRequest__SetCallHint__RegHint) MAIN_REQUEST__SET_CALL_HINT__REG_HINT__INIT;
                        to->match_rax = from->match_rax;
                        to->match_rbx = from->match_rbx;
                        to->match_rcx = from->match_rcx;
                        to->match_rdx = from->match_rdx;
                        to->rax = from->rax;
                        to->rbx = from->rbx;
                        to->rcx = from->rcx;
                        to->rdx = from->rdx;
                        to->send_sregs = from->send_sregs;
                        to->send_debugregs = from->send_debugregs;
                }
                hint.space = (AddressSpace) hints->address_space;
                hint.address = hints->address;
                hint.on_write = hints->address_flags == CROSVM_HINT_ON_WRITE;
                hint.n_hints = hints->details_count;
                hint.hints = pointers;
        }
        request.message_case = MAIN_REQUEST__MESSAGE_SET_CALL_HINT;
        request.set_call_hint = &hint;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_SET_CALL_HINT);
}

/* --- interrupts --- */

int crosvm_set_irq(struct crosvm *c, uint32_t irq_id, bool active) {
        MainRequest__SetIrq irq = MAIN_REQUEST__SET_IRQ__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        irq.irq_id = irq_id;
        irq.active = active;
        request.message_case = MAIN_REQUEST__MESSAGE_SET_IRQ;
        request.set_irq = &irq;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_SET_IRQ);
}

/* One route in all the structures that the protocol makes of it. */
typedef struct Route {
        MainRequest__SetIrqRouting__Route route;
        MainRequest__SetIrqRouting__Route__Irqchip irqchip;
        MainRequest__SetIrqRouting__Route__Msi msi;
} Route;

static int fill_route(const struct crosvm_irq_route *from, Route *to) {
        *to = (Route) {
                .route = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__INIT,
                .irqchip = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__IRQCHIP__INIT,
                .msi = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__MSI__INIT,
        };
        to->route.irq_id = from->irq_id;
        switch (from->kind) {
        case CROSVM_IRQ_ROUTE_IRQCHIP:
                to->irqchip.irqchip = from->irqchip.irqchip;
                to->irqchip.pin = from->irqchip.pin;
                to->route.route_case = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_IRQCHIP;
                to->route.irqchip = &to->irqchip;
                return 0;
        case CROSVM_IRQ_ROUTE_MSI:
                to->msi.address = from->msi.address;
                to->msi.data = from->msi.data;
                to->route.route_case = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_MSI;
                to->route.msi = &to->msi;
                return 0;
        default:
                return -EINVAL;
        }
}

int crosvm_set_irq_routing(struct crosvm *c, uint32_t n, const struct crosvm_irq_route *from) {
        MainRequest__SetIrqRouting routing = MAIN_REQUEST__SET_IRQ_ROUTING__INIT;
        MainRequest__SetIrqRouting__Route **pointers = NULL;
        MainRequest request = MAIN_REQUEST__INIT;
        Route *routes = NULL;
        int r = 0;

        if (n > 0) {
                routes = calloc(n, sizeof(Route));
                pointers = calloc(n, sizeof(MainRequest__SetIrqRouting__Route *));
                r = routes && pointers ? 0 : -ENOMEM;
        }
        for (uint32_t i = 0; i < n && r >= 0; i++) {
                r = fill_route(&from[i], &routes[i]);
                pointers[i] = &routes[i].route;
        }
        if (r >= 0) {
                routing.n_routes = n;
                routing.routes = pointers;
                request.message_case = MAIN_REQUEST__MESSAGE_SET_IRQ_ROUTING;
                request.set_irq_routing = &routing;
                r = plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_SET_IRQ_ROUTING);
        }
        free(routes);
        free(pointers);
        return r;
}

/* --- state --- */

static int get_state(struct crosvm *c, MainRequest__StateSet set, void *ret, size_t size) {
        MainRequest__GetState get = MAIN_REQUEST__GET_STATE__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        MainResponse *response = NULL;
        int r;

        get.set = set;
        request.message_case = MAIN_REQUEST__MESSAGE_GET_STATE;
        request.get_state = &get;
        r = plugin_ask(c, &request, -1, MAIN_RESPONSE__MESSAGE_GET_STATE, &response, NULL, NULL);
        if (r < 0)
                return r;
        r = response->get_state->state.len == size ? 0 : -EPROTO;
        if (r >= 0)
                memcpy(ret, response->get_state->state.data, size);
        main_response__free_unpacked(response, NULL);
        return r;
}

static int set_state(struct crosvm *c, MainRequest__StateSet set, const void *data, size_t size) {
        MainRequest__SetState state = MAIN_REQUEST__SET_STATE__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        state.set = set;
        state.state = (ProtobufCBinaryData) { .len = size, .data = (uint8_t *) data };
        request.message_case = MAIN_REQUEST__MESSAGE_SET_STATE;
        request.set_state = &state;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_SET_STATE);
}

int crosvm_get_pic_state(struct crosvm *c, bool primary, struct kvm_pic_state *ret) {
        return get_state(c, primary ? MAIN_REQUEST__STATE_SET__PIC0 : MAIN_REQUEST__STATE_SET__PIC1, ret, sizeof(*ret));
}

int crosvm_set_pic_state(struct crosvm *c, bool primary, const struct kvm_pic_state *state) {
        return set_state(c, primary ? MAIN_REQUEST__STATE_SET__PIC0 : MAIN_REQUEST__STATE_SET__PIC1, state, sizeof(*state));
}

#define DEFINE_STATE(name, type, set)                                                                          \
        int crosvm_get_##name(struct crosvm *c, struct type *ret) {                                            \
                return get_state(c, MAIN_REQUEST__STATE_SET__##set, ret, sizeof(*ret));                        \
        }                                                                                                      \
        int crosvm_set_##name(struct crosvm *c, const struct type *state) {                                    \
                return set_state(c, MAIN_REQUEST__STATE_SET__##set, state, sizeof(*state));                    \
        }
DEFINE_STATE(ioapic_state, kvm_ioapic_state, IOAPIC)
DEFINE_STATE(pit_state, kvm_pit_state2, PIT)
DEFINE_STATE(clock, kvm_clock_data, CLOCK)

int crosvm_set_identity_map_addr(struct crosvm *c, uint32_t address) {
        MainRequest__SetIdentityMapAddr map = MAIN_REQUEST__SET_IDENTITY_MAP_ADDR__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        map.address = address;
        request.message_case = MAIN_REQUEST__MESSAGE_SET_IDENTITY_MAP_ADDR;
        request.set_identity_map_addr = &map;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_SET_IDENTITY_MAP_ADDR);
}

/* --- running --- */

int crosvm_pause_vcpus(struct crosvm *c, uint64_t mask, void *user) {
        MainRequest__PauseVcpus pause = MAIN_REQUEST__PAUSE_VCPUS__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        pause.cpu_mask = mask;
        pause.user = (uintptr_t) user;
        request.message_case = MAIN_REQUEST__MESSAGE_PAUSE_VCPUS;
        request.pause_vcpus = &pause;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_PAUSE_VCPUS);
}

int crosvm_start(struct crosvm *c) {
        MainResponse *response = NULL;
        int r;

        r = plugin_ask_empty(c, MAIN_REQUEST__MESSAGE_START, MAIN_RESPONSE__MESSAGE_START, &response, NULL, NULL);
        if (r >= 0)
                main_response__free_unpacked(response, NULL);
        return r;
}

int crosvm_get_vcpu(struct crosvm *c, uint32_t id, struct crosvm_vcpu **ret) {
        if (id >= c->shared->n_vcpus)
                return -ENOENT;
        *ret = &c->shared->vcpus[id];
        return 0;
}
