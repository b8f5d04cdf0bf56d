/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a plugin asks for on its main sockets. */

#include <fcntl.h>
#include <sys/socket.h>

#include "plugin-internal.h"

static void give(PluginReplyFds *fds, int fd, bool close_when_sent) {
        fds->close[fds->n] = close_when_sent;
        fds->fds[fds->n++] = fd;
}

void plugin_response_done(PluginResponse *response) {
        for (size_t i = 0; i < response->fds.n; i++)
                if (response->fds.close[i])
                        (void) safe_close(response->fds.fds[i]);
        free(response->cpuid_entries);
        free(response->cpuid_pointers);
        free(response->msrs);
        free(response->bitmap);
}

/* --- connections and vCPUs --- */

static int new_connection(Plugin *plugin, PluginResponse *response) {
        int pair[2], r;

        if (plugin->started)
                return -EINVAL;
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        r = plugin_add_connection(plugin, pair[0]);
        if (r < 0) {
                (void) safe_close(pair[1]);
                return r;
        }
        give(&response->fds, pair[1], true);
        return 0;
}

/* Once: afterwards only the plugin has its ends of the pipes, and so their end is seen. */
static int get_vcpus(Plugin *plugin, PluginResponse *response) {
        if (plugin->vcpus_taken)
                return -EBUSY;
        plugin->vcpus_taken = true;
        for (unsigned i = 0; i < plugin->n_vcpus; i++) {
                give(&response->fds, TAKE_FD(plugin->channels[i].their_write), true);
                give(&response->fds, TAKE_FD(plugin->channels[i].their_read), true);
        }
        return 0;
}

static int get_rings(Plugin *plugin, const MainRequest__GetRings *get, PluginResponse *response) {
        int fd = plugin_rings_create(plugin, get);

        if (fd < 0)
                return fd;
        give(&response->fds, fd, true);
        return 0;
}

static int start(Plugin *plugin) {
        const VcpuSetHandlers handlers = {
                .event = plugin_on_vcpu_event, .paused = plugin_on_vcpus_paused, .prepare = plugin_vcpu_prepare,
                .exited = plugin_vcpu_exited, .interrupted = plugin_vcpu_interrupted, .userdata = plugin,
        };
        _cleanup_free_ char *message = NULL;
        int r;

        if (plugin->started || plugin->ended)
                return -EINVAL;
        plugin->started = plugin->has_vcpus = true;
        r = vcpu_set_init(plugin->vcpus, plugin->kvm, plugin->n_vcpus, NULL, NULL, &handlers, &message);
        if (r < 0) {
                vcpu_set_done(plugin->vcpus);
                plugin->has_vcpus = false;
                plugin_end(plugin, "%s", message ?: strerror(-r));
        } else
                plugin->handlers.started(plugin->handlers.userdata);
        return r;
}

static void pause_vcpus(Plugin *plugin, uint64_t mask, uint64_t user) {
        for (unsigned i = 0; plugin->has_vcpus && i < plugin->vcpus->n_vcpus && i < 64; i++) {
                PluginVcpu *v = &plugin->channels[i];

                if (!(mask & UINT64_C(1) << i))
                        continue;
                (void) pthread_mutex_lock(&v->lock);
                v->pause_asked = true;
                v->pause_user = user;
                (void) pthread_mutex_unlock(&v->lock);
                vcpu_kick(&plugin->vcpus->vcpus[i]);
        }
}

/* --- what KVM can do --- */

int plugin_cpuid_to_wire(const PluginCpuid *from, size_t n, CpuidEntry **ret_entries, CpuidEntry ***ret_pointers) {
        _cleanup_free_ CpuidEntry *entries = calloc(n + 1, sizeof(CpuidEntry));
        _cleanup_free_ CpuidEntry **pointers = calloc(n + 1, sizeof(CpuidEntry *));

        if (!entries || !pointers)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                entries[i] = (CpuidEntry) CPUID_ENTRY__INIT;
                entries[i].function = from[i].function;
                entries[i].has_index = from[i].has_index;
                entries[i].index = from[i].index;
                entries[i].eax = from[i].eax;
                entries[i].ebx = from[i].ebx;
                entries[i].ecx = from[i].ecx;
                entries[i].edx = from[i].edx;
                pointers[i] = &entries[i];
        }
        *ret_entries = TAKE_PTR(entries);
        *ret_pointers = TAKE_PTR(pointers);
        return 0;
}

static int get_cpuid(Plugin *plugin, PluginCpuidList list, PluginResponse *response) {
        PluginCpuid entries[PLUGIN_CPUID_MAX];
        size_t n = 0;
        int r;

        response->cpuid = (MainResponse__Cpuid) MAIN_RESPONSE__CPUID__INIT;
        response->message.get_supported_cpuid = &response->cpuid; /* the emulated ones are in the same place */
        r = plugin_kvm_get_cpuid(plugin->kvm, NULL, list, entries, &n);
        if (r >= 0)
                r = plugin_cpuid_to_wire(entries, n, &response->cpuid_entries, &response->cpuid_pointers);
        if (r < 0)
                return r;
        response->cpuid.n_entries = n;
        response->cpuid.entries = response->cpuid_pointers;
        return 0;
}

static int get_msr_list(Plugin *plugin, PluginResponse *response) {
        size_t n;
        int r;

        response->msr_list = (MainResponse__MsrList) MAIN_RESPONSE__MSR_LIST__INIT;
        response->message.get_msr_index_list = &response->msr_list;
        response->msrs = calloc(PLUGIN_MSRS_MAX, sizeof(uint32_t));
        if (!response->msrs)
                return -ENOMEM;
        r = plugin_kvm_get_msr_list(plugin->kvm, response->msrs, &n);
        if (r < 0)
                return r;
        response->msr_list.n_indices = n;
        response->msr_list.indices = response->msrs;
        return 0;
}

static int check_extension(Plugin *plugin, const MainRequest__CheckExtension *check, PluginResponse *response) {
        response->check_extension = (MainResponse__CheckExtension) MAIN_RESPONSE__CHECK_EXTENSION__INIT;
        response->check_extension.has_extension = kvm_check_extension(plugin->kvm, check->extension) > 0;
        response->message.check_extension = &response->check_extension;
        return 0;
}

static int get_net_config(Plugin *plugin, PluginResponse *response) {
        response->net_config = (MainResponse__GetNetConfig) MAIN_RESPONSE__GET_NET_CONFIG__INIT;
        response->message.get_net_config = &response->net_config;
        if (plugin->network.tap_fd < 0)
                return -ENODATA;
        memcpy(response->mac, plugin->network.host_mac, sizeof(response->mac));
        response->net_config.host_mac_address = (ProtobufCBinaryData) { .len = sizeof(response->mac), .data = response->mac };
        response->net_config.host_ipv4_address = plugin->network.host_ip;
        response->net_config.netmask = plugin->network.netmask;
        give(&response->fds, plugin->network.tap_fd, false);
        return 0;
}

/* --- addresses --- */

static int reserve_range(Plugin *plugin, const MainRequest__ReserveRange *range) {
        if (range->space != ADDRESS_SPACE__IOPORT && range->space != ADDRESS_SPACE__MMIO)
                return -EINVAL;
        if (range->length == 0)
                return plugin_ranges_release(&plugin->ranges, range->space == ADDRESS_SPACE__IOPORT, range->start);
        return plugin_ranges_reserve(&plugin->ranges, range->space == ADDRESS_SPACE__IOPORT, range->start, range->length,
                range->async_write);
}

static int set_call_hint(Plugin *plugin, const MainRequest__SetCallHint *from) {
        PluginHint hint = { .address = from->address, .is_pio = from->space == ADDRESS_SPACE__IOPORT, .on_write = from->on_write };

        if ((from->space != ADDRESS_SPACE__IOPORT && from->space != ADDRESS_SPACE__MMIO) || from->n_hints > PLUGIN_HINTS_MAX)
                return -EINVAL;
        for (size_t i = 0; i < from->n_hints; i++) {
                const MainRequest__SetCallHint__RegHint *h = from->hints[i];

                hint.details[i] = (PluginHintDetail) {
                        .match = { h->match_rax, h->match_rbx, h->match_rcx, h->match_rdx },
                        .value = { h->rax, h->rbx, h->rcx, h->rdx },
                        .send_sregs = h->send_sregs,
                        .send_debugregs = h->send_debugregs,
                };
        }
        hint.n_details = from->n_hints;
        plugin_ranges_set_hint(&plugin->ranges, &hint);
        return 0;
}

/* --- interrupts --- */

static int set_irq_routing(Plugin *plugin, const MainRequest__SetIrqRouting *from) {
        _cleanup_free_ PluginRoute *routes = NULL;

        if (from->n_routes > KVM_GSI_MAX)
                return -E2BIG;
        routes = calloc(from->n_routes + 1, sizeof(PluginRoute));
        if (!routes)
                return -ENOMEM;
        for (size_t i = 0; i < from->n_routes; i++) {
                const MainRequest__SetIrqRouting__Route *route = from->routes[i];

                routes[i].gsi = route->irq_id;
                if (route->route_case == MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_IRQCHIP) {
                        routes[i].chip = route->irqchip->irqchip;
                        routes[i].pin = route->irqchip->pin;
                } else if (route->route_case == MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_MSI) {
                        routes[i].is_msi = true;
                        routes[i].address = route->msi->address;
                        routes[i].data = route->msi->data;
                } else
                        return -EINVAL;
        }
        return plugin_kvm_set_routes(plugin->kvm, routes, from->n_routes);
}

/* --- state --- */

static int get_state(Plugin *plugin, const MainRequest__GetState *get, PluginResponse *response) {
        size_t size;
        int r;

        response->state = (MainResponse__GetState) MAIN_RESPONSE__GET_STATE__INIT;
        response->message.get_state = &response->state;
        r = plugin_kvm_get_machine_state(plugin->kvm, (unsigned) get->set, response->state_bytes, &size);
        if (r >= 0)
                response->state.state = (ProtobufCBinaryData) { .len = size, .data = response->state_bytes };
        return r;
}

static int get_dirty_log(Plugin *plugin, const MainRequest__MemoryDirtyLog *log, PluginResponse *response) {
        size_t size;
        int r;

        response->dirty_log = (MainResponse__MemoryDirtyLog) MAIN_RESPONSE__MEMORY_DIRTY_LOG__INIT;
        response->message.dirty_log = &response->dirty_log;
        r = plugin_object_dirty_log(plugin, log->id, &response->bitmap, &size);
        if (r >= 0)
                response->dirty_log.bitmap = (ProtobufCBinaryData) { .len = size, .data = (uint8_t *) response->bitmap };
        return r;
}

/* --- all of them --- */

/* The answer to a request is the member of the same name, one number further; only the dirty log and the rings have the same. */
static MainResponse__MessageCase answer_case(MainRequest__MessageCase request) {
        return request == MAIN_REQUEST__MESSAGE_DIRTY_LOG || request == MAIN_REQUEST__MESSAGE_GET_RINGS || request == MAIN_REQUEST__MESSAGE__NOT_SET ?
                (MainResponse__MessageCase) request : (MainResponse__MessageCase) (request + 1);
}

int plugin_handle_request(Plugin *plugin, const MainRequest *request, int fd, PluginResponse *response) {
        response->empty = (MainResponse__Empty) MAIN_RESPONSE__EMPTY__INIT;
        response->message.create = &response->empty; /* all without content are in the same place */
        response->message.message_case = answer_case(request->message_case);
        switch (request->message_case) {
        case MAIN_REQUEST__MESSAGE_CREATE:
                return plugin_object_create(plugin, request->create, fd, &response->fds);
        case MAIN_REQUEST__MESSAGE_DESTROY:
                return plugin_object_destroy(plugin, request->destroy->id);
        case MAIN_REQUEST__MESSAGE_NEW_CONNECTION:
                return new_connection(plugin, response);
        case MAIN_REQUEST__MESSAGE_GET_SHUTDOWN_EVENTFD:
                give(&response->fds, plugin->shutdown_fd, false);
                return 0;
        case MAIN_REQUEST__MESSAGE_CHECK_EXTENSION:
                return check_extension(plugin, request->check_extension, response);
        case MAIN_REQUEST__MESSAGE_GET_SUPPORTED_CPUID:
                return get_cpuid(plugin, PLUGIN_CPUID_SUPPORTED, response);
        case MAIN_REQUEST__MESSAGE_GET_EMULATED_CPUID:
                return get_cpuid(plugin, PLUGIN_CPUID_EMULATED, response);
        case MAIN_REQUEST__MESSAGE_GET_MSR_INDEX_LIST:
                return get_msr_list(plugin, response);
        case MAIN_REQUEST__MESSAGE_GET_NET_CONFIG:
                return get_net_config(plugin, response);
        case MAIN_REQUEST__MESSAGE_RESERVE_RANGE:
                return reserve_range(plugin, request->reserve_range);
        case MAIN_REQUEST__MESSAGE_SET_IRQ:
                return kvm_irq_line(plugin->kvm, request->set_irq->irq_id, request->set_irq->active);
        case MAIN_REQUEST__MESSAGE_SET_IRQ_ROUTING:
                return set_irq_routing(plugin, request->set_irq_routing);
        case MAIN_REQUEST__MESSAGE_GET_STATE:
                return get_state(plugin, request->get_state, response);
        case MAIN_REQUEST__MESSAGE_SET_STATE:
                return plugin_kvm_set_machine_state(plugin->kvm, (unsigned) request->set_state->set, request->set_state->state.data,
                        request->set_state->state.len);
        case MAIN_REQUEST__MESSAGE_SET_IDENTITY_MAP_ADDR:
                return plugin_kvm_set_identity_map(plugin->kvm, request->set_identity_map_addr->address);
        case MAIN_REQUEST__MESSAGE_PAUSE_VCPUS:
                pause_vcpus(plugin, request->pause_vcpus->cpu_mask, request->pause_vcpus->user);
                return 0;
        case MAIN_REQUEST__MESSAGE_GET_VCPUS:
                return get_vcpus(plugin, response);
        case MAIN_REQUEST__MESSAGE_GET_RINGS:
                return get_rings(plugin, request->get_rings, response);
        case MAIN_REQUEST__MESSAGE_START:
                return start(plugin);
        case MAIN_REQUEST__MESSAGE_SET_CALL_HINT:
                return set_call_hint(plugin, request->set_call_hint);
        case MAIN_REQUEST__MESSAGE_DIRTY_LOG:
                return get_dirty_log(plugin, request->dirty_log, response);
        default:
                response->message.message_case = MAIN_RESPONSE__MESSAGE__NOT_SET;
                return -ENOTTY;
        }
}
