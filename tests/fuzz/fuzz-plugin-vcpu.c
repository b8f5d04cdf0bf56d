/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A plugin that says what the fuzzer likes to a vCPU that waits for it, by its pipe or by its ring, of which it writes the counts, too. The first byte
 * of an input says by which and what the vCPU has stopped for; by pipe, a record is a message's size and the message. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>

#include "fuzz-plugin.h"
#include "log.h"
#include "plugin-internal.h"

#define MESSAGES_MAX 48 /* of which all answers fit into a pipe */
#define PORT 0x500

int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...) {
        va_list ap;
        void *p;

        va_start(ap, request);
        p = va_arg(ap, void *);
        va_end(ap);
        if (request == KVM_GET_SUPPORTED_HV_CPUID)
                ((struct kvm_cpuid2 *) p)->nent = 3;
        return 0;
}

static void on_started(void *userdata) {
}

static void on_ended(const char *reason, void *userdata) {
}

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
}

static void on_paused(void *userdata) {
}

static void say_by_pipe(PluginVcpu *v, const uint8_t *data, size_t size) {
        int pipe_fds[2];

        /* One write is one read. */
        if (pipe2(pipe_fds, O_CLOEXEC | O_DIRECT | O_NONBLOCK) < 0 || fcntl(pipe_fds[0], F_SETFL, O_DIRECT) < 0 ||
            dup3(pipe_fds[0], v->read_fd, O_CLOEXEC) < 0)
                abort();
        for (unsigned i = 0; i < MESSAGES_MAX && size > 0; i++) {
                size_t length = MIN((size_t) data[0], size - 1);

                (void) !write(pipe_fds[1], data + 1, length);
                data += 1 + length;
                size -= 1 + length;
        }
        (void) close(pipe_fds[0]);
        (void) close(pipe_fds[1]);
}

static void say_by_ring(Plugin *plugin, const uint8_t *data, size_t size) {
        const MainRequest__GetRings get = { .version = 1 };
        RingMemory *memory;
        int fd;

        plugin->vcpus_taken = true;
        fd = plugin_rings_create(plugin, &get);
        if (fd < 0)
                abort();
        (void) close(fd);
        memory = &plugin->rings[0];
        if (size >= 8) {
                memory->of[RING_PLUGIN].written.value = load_le32(data);
                memory->of[RING_MACHINE].read.value = load_le32(data + 4);
                memcpy(memory->bytes[RING_PLUGIN], data + 8, MIN(size - 8, (size_t) RING_SIZE));
        }
        /* Whoever sleeps finds out that nobody is there. */
        (void) dup3(plugin->dead_read, plugin->channels[0].read_fd, O_CLOEXEC);
        (void) dup3(plugin->dead_write, plugin->channels[0].write_fd, O_CLOEXEC);
}

static void stop_for(struct kvm_run *run, uint8_t what) {
        if (what & 2) {
                run->exit_reason = KVM_EXIT_HYPERV;
                run->hyperv.type = what & 4 ? KVM_EXIT_HYPERV_HCALL : KVM_EXIT_HYPERV_SYNIC;
        } else {
                run->exit_reason = KVM_EXIT_IO;
                run->io.port = PORT;
                run->io.direction = what & 4 ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
                run->io.size = 4;
                run->io.count = 2;
                run->io.data_offset = 2048;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static uint8_t page[8192] __attribute__((aligned(4096)));
        const VcpuSetHandlers vcpu_handlers = { .event = on_vcpu_event, .paused = on_paused };
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended };
        const PluginHint hint = { .address = PORT, .is_pio = true, .details = { { .send_sregs = true, .send_debugregs = true } }, .n_details = 1 };
        _cleanup_free_ char *message = NULL;
        Kvm kvm = { .kvm_fd = -EBADF, .vm_fd = -EBADF };
        VcpuSet set = { .kvm = &kvm };
        Vcpu vcpu = { .set = &set, .fd = -EBADF, .run = (struct kvm_run *) (void *) page };
        sd_event *event = NULL;
        Plugin *plugin = NULL;

        if (size == 0)
                return 0;
        (void) signal(SIGPIPE, SIG_IGN);
        (void) pthread_mutex_init(&set.lock, NULL);
        memset(page, 0, sizeof(page));
        if (sd_event_new(&event) < 0 || plugin_new(event, &kvm, &set, 1, &vcpu_handlers, NULL, &handlers, &plugin, &message) < 0 ||
            plugin_ranges_reserve(&plugin->ranges, true, PORT, 1, false) < 0)
                abort();
        plugin_ranges_set_hint(&plugin->ranges, &hint);
        stop_for(vcpu.run, data[0]);
        if (data[0] & 1)
                say_by_ring(plugin, data + 1, size - 1);
        else
                say_by_pipe(&plugin->channels[0], data + 1, size - 1);
        (void) plugin_vcpu_exited(&vcpu, plugin);
        (void) plugin_free(plugin);
        (void) sd_event_unref(event);
        (void) pthread_mutex_destroy(&set.lock);
        return 0;
}

/* --- seeds --- */

typedef struct Request {
        VcpuRequest message;
        VcpuRequest__Empty empty;
        VcpuRequest__Resume resume;
        VcpuRequest__GetState get;
        VcpuRequest__SetState set;
        VcpuRequest__GetMsrs msrs;
        VcpuRequest__EnableCapability capability;
        uint32_t indices[2];
        uint8_t bytes[8];
} Request;

/* Each kind of request, as far as it has its own code. */
static bool make_request(Request *r, unsigned n) {
        *r = (Request) { .message = VCPU_REQUEST__INIT, .empty = VCPU_REQUEST__EMPTY__INIT, .resume = VCPU_REQUEST__RESUME__INIT,
                         .get = VCPU_REQUEST__GET_STATE__INIT, .set = VCPU_REQUEST__SET_STATE__INIT, .msrs = VCPU_REQUEST__GET_MSRS__INIT,
                         .capability = VCPU_REQUEST__ENABLE_CAPABILITY__INIT, .indices = { 0x174, 0x175 } };
        switch (n) {
        case 0:
                r->message.message_case = VCPU_REQUEST__MESSAGE_GET_STATE;
                r->message.get_state = &r->get;
                r->get.set = VCPU_REQUEST__STATE_SET__LAPIC;
                return true;
        case 1:
                r->message.message_case = VCPU_REQUEST__MESSAGE_SET_STATE;
                r->message.set_state = &r->set;
                r->set.set = VCPU_REQUEST__STATE_SET__MP;
                r->set.state = (ProtobufCBinaryData) { .len = 4, .data = r->bytes };
                return true;
        case 2:
                r->message.message_case = VCPU_REQUEST__MESSAGE_GET_MSRS;
                r->message.get_msrs = &r->msrs;
                r->msrs.n_entry_indices = 2;
                r->msrs.entry_indices = r->indices;
                return true;
        case 3:
                r->message.message_case = VCPU_REQUEST__MESSAGE_GET_HYPERV_CPUID;
                r->message.get_hyperv_cpuid = &r->empty;
                return true;
        case 4:
                r->message.message_case = VCPU_REQUEST__MESSAGE_ENABLE_CAPABILITY;
                r->message.enable_capability = &r->capability;
                return true;
        case 5:
                r->message.message_case = VCPU_REQUEST__MESSAGE_RESUME;
                r->message.resume = &r->resume;
                r->resume.data = (ProtobufCBinaryData) { .len = 8, .data = r->bytes };
                return true;
        default:
                return false;
        }
}

/* All requests, by pipe and by ring, for each kind of exit. */
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        size_t at = 1;
        Request r;

        if (n >= 8)
                return 0;
        buffer[0] = (uint8_t) n;
        if (n & 1)
                at += 8;
        for (unsigned i = 0; make_request(&r, i); i++) {
                size_t length = vcpu_request__get_packed_size(&r.message), header = n & 1 ? 4 : 1;

                if (at + header + length > size)
                        return 0;
                if (n & 1)
                        store_le32(buffer + at, (uint32_t) length);
                else
                        buffer[at] = (uint8_t) length;
                at += header + vcpu_request__pack(&r.message, buffer + at + header);
        }
        if (n & 1) {
                store_le32(buffer + 1, (uint32_t) (at - 9));
                store_le32(buffer + 5, 0);
        }
        return at;
}
