/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A machine that answers what the fuzzer likes to libcrosvm_plugin. A record is: whom it is for (the main socket, the vCPU's pipe or ring) and
 * which descriptors come along, its size, its bytes. All answers are there before the questions; what is asked then is one function after the other. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fuzz-plugin.h"
#include "plugin-client.h"
#include "util.h"

#define RECORD_HEADER 2
enum { FOR_VCPU = 1, WITH_TWO = 2, WITH_MEMORY = 4 };

/* The count of what the machine has written, and that. */
static void write_ring(int memory_fd, const uint8_t *data, size_t length) {
        if (length < sizeof(uint32_t))
                return;
        (void) !pwrite(memory_fd, data, sizeof(uint32_t), offsetof(RingMemory, of[RING_MACHINE].written.value));
        (void) !pwrite(memory_fd, data + sizeof(uint32_t), length - sizeof(uint32_t), offsetof(RingMemory, bytes[RING_MACHINE]));
}

/* fds: what the plugin writes to, reads from. */
static size_t play_record(int socket, int vcpu_fd, const int *fds, int memory_fd, const uint8_t *data, size_t size) {
        size_t length;

        if (size < RECORD_HEADER)
                return 0;
        length = MIN((size_t) data[1], size - RECORD_HEADER);
        if (data[0] & FOR_VCPU && data[0] & WITH_MEMORY)
                write_ring(memory_fd, data + RECORD_HEADER, length);
        else if (data[0] & FOR_VCPU)
                (void) !write(vcpu_fd, data + RECORD_HEADER, length);
        else
                (void) send_with_fds(socket, data + RECORD_HEADER, length, data[0] & WITH_MEMORY ? &memory_fd : fds,
                        data[0] & WITH_MEMORY ? 1 : data[0] & WITH_TWO ? 2 : 0);
        return RECORD_HEADER + length;
}

static void ask_vcpu(struct crosvm_vcpu *vcpu) {
        struct kvm_cpuid_entry2 cpuid[4];
        struct kvm_msr_entry msrs[4] = {};
        struct crosvm_vcpu_event event;
        struct kvm_lapic_state lapic;
        struct kvm_regs regs;
        uint32_t n;

        if (crosvm_vcpu_wait(vcpu, &event) == 0 && event.kind == CROSVM_VCPU_EVENT_KIND_IO_ACCESS && event.io_access.length > 0)
                event.io_access.data[event.io_access.length - 1] ^= 1;
        (void) crosvm_vcpu_get_regs(vcpu, &regs);
        (void) crosvm_vcpu_resume(vcpu);
        if (crosvm_vcpu_wait(vcpu, &event) == 0 && event.kind == CROSVM_VCPU_EVENT_KIND_HYPERV_HCALL)
                *event.hyperv_call.result = 1;
        (void) crosvm_vcpu_get_lapic_state(vcpu, &lapic);
        (void) crosvm_vcpu_get_msrs(vcpu, ELEMENTSOF(msrs), msrs, &n);
        (void) crosvm_get_hyperv_cpuid(vcpu, ELEMENTSOF(cpuid), cpuid, &n);
        (void) crosvm_vcpu_set_msrs(vcpu, ELEMENTSOF(msrs), msrs);
        (void) crosvm_vcpu_resume(vcpu);
}

static void ask_machine(struct crosvm *crosvm, int memory_fd) {
        struct kvm_cpuid_entry2 cpuid[4];
        struct crosvm_net_config config;
        struct crosvm_memory *memory;
        struct kvm_ioapic_state ioapic;
        struct crosvm_irq *irq;
        struct crosvm *other;
        uint32_t msrs[4], n;
        uint8_t log[2];
        bool has;
        int fd;

        (void) crosvm_get_supported_cpuid(crosvm, ELEMENTSOF(cpuid), cpuid, &n);
        (void) crosvm_get_msr_index_list(crosvm, ELEMENTSOF(msrs), msrs, &n);
        (void) crosvm_check_extension(crosvm, 1, &has);
        (void) crosvm_get_ioapic_state(crosvm, &ioapic);
        if (crosvm_net_get_config(crosvm, &config) == 0)
                (void) close(config.tap_fd);
        fd = crosvm_get_shutdown_eventfd(crosvm);
        if (fd >= 0)
                (void) close(fd);
        if (crosvm_create_memory(crosvm, memory_fd, 0, 65536, 0, false, true, &memory) == 0) {
                (void) crosvm_memory_get_dirty_log(crosvm, memory, log);
                if (crosvm_destroy_memory(crosvm, &memory) < 0)
                        free(memory);
        }
        if (crosvm_create_irq_event(crosvm, 3, &irq) == 0 && crosvm_destroy_irq_event(crosvm, &irq) < 0) {
                (void) close(crosvm_irq_event_get_fd(irq));
                (void) close(crosvm_irq_event_get_resample_fd(irq));
                free(irq);
        }
        if (crosvm_new_connection(crosvm, &other) == 0)
                (void) crosvm_destroy_connection(&other);
        (void) crosvm_start(crosvm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        int main_pair[2], in[2], out[2], fds[2], memory_fd;
        struct crosvm_vcpu *vcpu = NULL;
        struct crosvm *crosvm = NULL;
        char text[16];

        (void) signal(SIGPIPE, SIG_IGN);
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, main_pair) < 0 || pipe2(in, O_CLOEXEC | O_NONBLOCK) < 0 ||
            pipe2(out, O_CLOEXEC | O_NONBLOCK) < 0)
                abort();
        memory_fd = memfd_create_sealed("fuzz", ring_memory_size(1), 0);
        if (memory_fd < 0)
                abort();
        fds[0] = in[1];
        fds[1] = out[0];
        for (size_t used; (used = play_record(main_pair[1], out[1], fds, memory_fd, data, size)) > 0; data += used, size -= used)
                ;
        (void) close(out[1]);
        (void) close(out[0]);
        (void) close(in[1]);
        (void) snprintf(text, sizeof(text), "%d", main_pair[0]);
        if (setenv("CROSVM_SOCKET", text, 1) < 0)
                abort();
        if (crosvm_connect(&crosvm) == 0) {
                if (crosvm_get_vcpu(crosvm, 0, &vcpu) == 0)
                        ask_vcpu(vcpu);
                ask_machine(crosvm, memory_fd);
                (void) crosvm_destroy_connection(&crosvm);
        }
        (void) close(main_pair[1]);
        (void) close(in[0]);
        (void) close(memory_fd);
        return 0;
}

/* --- seeds --- */

static size_t put(uint8_t *buffer, size_t size, uint8_t how, const uint8_t *data, size_t length) {
        if (RECORD_HEADER + length > size || length > UINT8_MAX)
                return 0;
        buffer[0] = how;
        buffer[1] = (uint8_t) length;
        memcpy(buffer + RECORD_HEADER, data, length);
        return RECORD_HEADER + length;
}

static size_t put_main(uint8_t *buffer, size_t size, uint8_t how, MainResponse__MessageCase what) {
        MainResponse__Empty empty = MAIN_RESPONSE__EMPTY__INIT;
        MainResponse response = MAIN_RESPONSE__INIT;
        uint8_t data[64];

        response.message_case = what;
        response.create = &empty;
        return put(buffer, size, how, data, main_response__pack(&response, data));
}

static size_t put_vcpu(uint8_t *buffer, size_t size, const VcpuResponse *response) {
        uint8_t data[128];

        data[0] = (uint8_t) vcpu_response__pack(response, data + 1);
        return put(buffer, size, FOR_VCPU, data, 1U + data[0]);
}

/* A connection by pipes, or by a ring in which nothing is, and a read of the guest's. */
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        VcpuResponse__Wait__Io io = VCPU_RESPONSE__WAIT__IO__INIT;
        VcpuResponse__Wait wait = VCPU_RESPONSE__WAIT__INIT;
        VcpuResponse response = VCPU_RESPONSE__INIT;
        uint8_t bytes[4] = { 1, 2, 3, 4 };
        uint8_t ring[128];
        size_t at, length;

        if (n >= 2)
                return 0;
        at = put_main(buffer, size, WITH_TWO, MAIN_RESPONSE__MESSAGE_GET_VCPUS);
        at += put_main(buffer + at, size - at, n == 1 ? WITH_MEMORY : 0, MAIN_RESPONSE__MESSAGE_GET_RINGS);
        io.data = (ProtobufCBinaryData) { .len = sizeof(bytes), .data = bytes };
        wait.exit_case = VCPU_RESPONSE__WAIT__EXIT_IO;
        wait.io = &io;
        response.message_case = VCPU_RESPONSE__MESSAGE_WAIT;
        response.wait = &wait;
        at += put_vcpu(buffer + at, size - at, &response);
        at += put_vcpu(buffer + at, size - at, &response);
        length = vcpu_response__pack(&response, ring + 8);
        store_le32(ring, (uint32_t) length + 4);
        store_le32(ring + 4, (uint32_t) length);
        at += put(buffer + at, size - at, FOR_VCPU | WITH_MEMORY, ring, 8 + length);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_GET_SUPPORTED_CPUID);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_GET_MSR_INDEX_LIST);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_CHECK_EXTENSION);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_GET_STATE);
        at += put_main(buffer + at, size - at, WITH_MEMORY, MAIN_RESPONSE__MESSAGE_GET_NET_CONFIG);
        at += put_main(buffer + at, size - at, WITH_MEMORY, MAIN_RESPONSE__MESSAGE_GET_SHUTDOWN_EVENTFD);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_CREATE);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_DIRTY_LOG);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_DESTROY);
        at += put_main(buffer + at, size - at, WITH_TWO, MAIN_RESPONSE__MESSAGE_CREATE);
        at += put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_DESTROY);
        at += put_main(buffer + at, size - at, WITH_MEMORY, MAIN_RESPONSE__MESSAGE_NEW_CONNECTION);
        return at + put_main(buffer + at, size - at, 0, MAIN_RESPONSE__MESSAGE_START);
}
