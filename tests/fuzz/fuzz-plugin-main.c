/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A plugin that says what the fuzzer likes on its main socket, to vmmd's side of the protocol, which has a KVM that says yes to everything. A record
 * is: which descriptor comes along, the packet's size (16 bits), the packet. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fuzz-plugin.h"
#include "guest-memory.h"
#include "plugin-internal.h"

#define RECORD_HEADER 3

int __wrap_ioctl(int fd, unsigned long request, ...);

static int memory_fd = -EBADF, event_fd = -EBADF;

/* No vCPU comes of it: their threads are another target's. */
int __wrap_ioctl(int fd, unsigned long request, ...) {
        if (request == KVM_CREATE_VCPU) {
                errno = EMFILE;
                return -1;
        }
        return 0;
}

static void on_started(void *userdata) {
}

static void on_ended(const char *reason, void *userdata) {
        bool *ended = userdata;

        *ended = true;
}

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
}

static void on_paused(void *userdata) {
}

/* Returns how many bytes of the input were used. */
static size_t send_record(int fd, const uint8_t *data, size_t size) {
        const int fds[] = { memory_fd, event_fd };
        size_t length;

        if (size < RECORD_HEADER)
                return 0;
        length = MIN((size_t) load_le16(data + 1), size - RECORD_HEADER);
        (void) send_with_fds(fd, data + RECORD_HEADER, length, fds + data[0] % 2, data[0] & 2 ? 1 : 0);
        return RECORD_HEADER + length;
}

static void take_answers(int fd) {
        static uint8_t sink[PLUGIN_MESSAGE_MAX];
        int fds[253];
        size_t n_fds;

        do {
                n_fds = ELEMENTSOF(fds);
                if (recv_with_fds(fd, sink, sizeof(sink), fds, &n_fds, MSG_DONTWAIT) <= 0)
                        return;
                for (size_t i = 0; i < n_fds; i++)
                        (void) close(fds[i]);
        } while (n_fds < ELEMENTSOF(fds));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        bool ended = false;
        const VcpuSetHandlers vcpu_handlers = { .event = on_vcpu_event, .paused = on_paused };
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended, .userdata = &ended };
        const PluginNetwork network = { .tap_fd = STDERR_FILENO };
        _cleanup_free_ char *message = NULL;
        Kvm kvm = { .kvm_fd = -EBADF, .vm_fd = -EBADF, .vcpu_mmap_size = 4096, .ioeventfd_any_length = true };
        VcpuSet vcpus = {};
        sd_event *event = NULL;
        Plugin *plugin = NULL;
        int pair[2];

        if (memory_fd < 0) {
                memory_fd = guest_memory_create_fd(65536, 0);
                event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        }
        if (sd_event_new(&event) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
            plugin_new(event, &kvm, &vcpus, 2, &vcpu_handlers, &network, &handlers, &plugin, &message) < 0 ||
            plugin_add_connection(plugin, pair[0]) < 0)
                abort();
        for (size_t used; !ended && (used = send_record(pair[1], data, size)) > 0; data += used, size -= used) {
                for (int i = 0; i < 4 && sd_event_run(event, 0) > 0; i++)
                        ;
                take_answers(pair[1]);
        }
        (void) close(pair[1]);
        for (int i = 0; i < 4 && !ended; i++)
                (void) sd_event_run(event, 0);
        plugin_abort(plugin);
        vcpu_set_done(&vcpus);
        (void) plugin_free(plugin);
        (void) sd_event_unref(event);
        return 0;
}

/* --- seeds --- */

static size_t put_record(uint8_t *buffer, size_t size, uint8_t fd, const MainRequest *request) {
        size_t n = main_request__get_packed_size(request);

        if (RECORD_HEADER + n > size)
                return 0;
        buffer[0] = fd;
        store_le16(buffer + 1, (uint16_t) n);
        return RECORD_HEADER + main_request__pack(request, buffer + RECORD_HEADER);
}

static size_t seed_objects(uint8_t *buffer, size_t size) {
        MainRequest__Create__IoEvent io = MAIN_REQUEST__CREATE__IO_EVENT__INIT;
        MainRequest__Create__Memory memory = MAIN_REQUEST__CREATE__MEMORY__INIT;
        MainRequest__Create__IrqEvent irq = MAIN_REQUEST__CREATE__IRQ_EVENT__INIT;
        MainRequest__Create create = MAIN_REQUEST__CREATE__INIT;
        MainRequest__MemoryDirtyLog log = MAIN_REQUEST__MEMORY_DIRTY_LOG__INIT;
        MainRequest__Destroy destroy = MAIN_REQUEST__DESTROY__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        size_t at = 0;

        request.message_case = MAIN_REQUEST__MESSAGE_CREATE;
        request.create = &create;
        create.id = 1;
        create.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_IO_EVENT;
        create.io_event = &io;
        io.address = 0x500;
        io.length = 2;
        io.datamatch = 7;
        at += put_record(buffer + at, size - at, 0, &request);
        create.id = 2;
        create.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_MEMORY;
        create.memory = &memory;
        memory.length = 8192;
        memory.dirty_log = true;
        at += put_record(buffer + at, size - at, 2, &request);
        create.id = 3;
        create.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_IRQ_EVENT;
        create.irq_event = &irq;
        irq.irq_id = 4;
        irq.resample = true;
        at += put_record(buffer + at, size - at, 0, &request);
        request.message_case = MAIN_REQUEST__MESSAGE_DIRTY_LOG;
        request.dirty_log = &log;
        log.id = 2;
        at += put_record(buffer + at, size - at, 0, &request);
        request.message_case = MAIN_REQUEST__MESSAGE_DESTROY;
        request.destroy = &destroy;
        destroy.id = 2;
        return at + put_record(buffer + at, size - at, 0, &request);
}

static size_t seed_routing(uint8_t *buffer, size_t size) {
        MainRequest__SetIrqRouting__Route__Irqchip chip = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__IRQCHIP__INIT;
        MainRequest__SetIrqRouting__Route__Msi msi = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__MSI__INIT;
        MainRequest__SetIrqRouting__Route routes[2] = { MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__INIT, MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__INIT };
        MainRequest__SetIrqRouting__Route *pointers[] = { &routes[0], &routes[1] };
        MainRequest__SetIrqRouting routing = MAIN_REQUEST__SET_IRQ_ROUTING__INIT;
        MainRequest__SetCallHint__RegHint detail = MAIN_REQUEST__SET_CALL_HINT__REG_HINT__INIT, *details[] = { &detail };
        MainRequest__SetCallHint hint = MAIN_REQUEST__SET_CALL_HINT__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        size_t at = 0;

        routes[0].route_case = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_IRQCHIP;
        routes[0].irqchip = &chip;
        routes[1].irq_id = 24;
        routes[1].route_case = MAIN_REQUEST__SET_IRQ_ROUTING__ROUTE__ROUTE_MSI;
        routes[1].msi = &msi;
        msi.address = 0xfee00000;
        routing.n_routes = 2;
        routing.routes = pointers;
        request.message_case = MAIN_REQUEST__MESSAGE_SET_IRQ_ROUTING;
        request.set_irq_routing = &routing;
        at += put_record(buffer + at, size - at, 0, &request);
        detail.match_rax = detail.send_sregs = true;
        hint.address = 0x500;
        hint.n_hints = 1;
        hint.hints = details;
        request.message_case = MAIN_REQUEST__MESSAGE_SET_CALL_HINT;
        request.set_call_hint = &hint;
        return at + put_record(buffer + at, size - at, 0, &request);
}

static size_t seed_start(uint8_t *buffer, size_t size) {
        static const MainRequest__MessageCase empties[] = {
                MAIN_REQUEST__MESSAGE_GET_VCPUS, MAIN_REQUEST__MESSAGE_NEW_CONNECTION, MAIN_REQUEST__MESSAGE_GET_SHUTDOWN_EVENTFD,
                MAIN_REQUEST__MESSAGE_GET_SUPPORTED_CPUID, MAIN_REQUEST__MESSAGE_GET_EMULATED_CPUID, MAIN_REQUEST__MESSAGE_GET_MSR_INDEX_LIST,
                MAIN_REQUEST__MESSAGE_GET_NET_CONFIG, MAIN_REQUEST__MESSAGE_START,
        };
        MainRequest__Empty empty = MAIN_REQUEST__EMPTY__INIT;
        MainRequest__GetRings rings = MAIN_REQUEST__GET_RINGS__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        size_t at = 0;

        for (size_t i = 0; i < ELEMENTSOF(empties); i++) {
                request.message_case = empties[i];
                request.start = &empty;
                at += put_record(buffer + at, size - at, 0, &request);
                if (i == 0) {
                        request.message_case = MAIN_REQUEST__MESSAGE_GET_RINGS;
                        request.get_rings = &rings;
                        rings.version = 1;
                        at += put_record(buffer + at, size - at, 0, &request);
                }
        }
        return at;
}

static size_t seed_states(uint8_t *buffer, size_t size) {
        MainRequest__ReserveRange range = MAIN_REQUEST__RESERVE_RANGE__INIT;
        MainRequest__PauseVcpus pause = MAIN_REQUEST__PAUSE_VCPUS__INIT;
        MainRequest__GetState get = MAIN_REQUEST__GET_STATE__INIT;
        MainRequest__SetState set = MAIN_REQUEST__SET_STATE__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        uint8_t clock[48] = {};
        size_t at = 0;

        range.start = 0x500;
        range.length = 8;
        request.message_case = MAIN_REQUEST__MESSAGE_RESERVE_RANGE;
        request.reserve_range = &range;
        at += put_record(buffer + at, size - at, 0, &request);
        get.set = MAIN_REQUEST__STATE_SET__IOAPIC;
        request.message_case = MAIN_REQUEST__MESSAGE_GET_STATE;
        request.get_state = &get;
        at += put_record(buffer + at, size - at, 0, &request);
        set.set = MAIN_REQUEST__STATE_SET__CLOCK;
        set.state = (ProtobufCBinaryData) { .len = sizeof(clock), .data = clock };
        request.message_case = MAIN_REQUEST__MESSAGE_SET_STATE;
        request.set_state = &set;
        at += put_record(buffer + at, size - at, 0, &request);
        pause.cpu_mask = 3;
        request.message_case = MAIN_REQUEST__MESSAGE_PAUSE_VCPUS;
        request.pause_vcpus = &pause;
        return at + put_record(buffer + at, size - at, 0, &request);
}

size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        static size_t (*const seeds[])(uint8_t *buffer, size_t size) = { seed_objects, seed_routing, seed_start, seed_states };

        return n < ELEMENTSOF(seeds) ? seeds[n](buffer, size) : 0;
}
