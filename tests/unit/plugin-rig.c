/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "plugin-kvm.h"
#include "plugin-rig.h"

static void on_started(void *userdata) {
        PluginRig *rig = userdata;

        rig->has_vcpus = true;
        assert_int_equal(vcpu_set_start(&rig->vcpus), 0);
        vcpu_set_resume(&rig->vcpus, false);
}

static void on_ended(const char *reason, void *userdata) {
        PluginRig *rig = userdata;

        (void) pthread_mutex_lock(&rig->lock);
        assert_null(rig->ended); /* once */
        rig->ended = strdup(reason);
        (void) pthread_cond_broadcast(&rig->changed);
        (void) pthread_mutex_unlock(&rig->lock);
}

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
        PluginRig *rig = userdata;

        (void) pthread_mutex_lock(&rig->lock);
        rig->n_faults += event != VCPU_EVENT_ENTERED;
        (void) pthread_mutex_unlock(&rig->lock);
}

static void on_paused(void *userdata) {
}

static int on_stop(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        return sd_event_exit(sd_event_source_get_event(s), 0);
}

static void *loop_thread(void *userdata) {
        PluginRig *rig = userdata;

        (void) sd_event_loop(rig->event);
        return NULL;
}

void rig_begin(PluginRig *rig, unsigned n_vcpus, const PluginNetwork *network) {
        const VcpuSetHandlers vcpu_handlers = { .event = on_vcpu_event, .paused = on_paused, .userdata = rig };
        const PluginHandlers handlers = { .started = on_started, .ended = on_ended, .userdata = rig };
        _cleanup_free_ char *message = NULL;
        int pair[2];

        *rig = (PluginRig) {};
        (void) pthread_mutex_init(&rig->lock, NULL);
        (void) pthread_cond_init(&rig->changed, NULL);
        assert_true(sd_event_new(&rig->event) >= 0);
        rig->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        assert_true(sd_event_add_io(rig->event, &rig->stop_source, rig->stop_fd, EPOLLIN, on_stop, NULL) >= 0);
        if (kvm_init(&rig->kvm, &message) < 0 || plugin_kvm_create_platform(&rig->kvm, &message) < 0)
                fail_msg("%s", message);
        if (plugin_new(rig->event, &rig->kvm, &rig->vcpus, n_vcpus, &vcpu_handlers, network, &handlers, &rig->plugin, &message) < 0)
                fail_msg("%s", message);
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(plugin_add_connection(rig->plugin, pair[0]), 0);
        rig->fd = pair[1];
        assert_int_equal(pthread_create(&rig->loop, NULL, loop_thread, rig), 0);
}

void rig_connect(PluginRig *rig) {
        char text[16];

        (void) snprintf(text, sizeof(text), "%d", TAKE_FD(rig->fd));
        assert_int_equal(setenv("CROSVM_SOCKET", text, 1), 0);
        assert_int_equal(crosvm_connect(&rig->crosvm), 0);
}

void rig_end(PluginRig *rig) {
        uint64_t one = 1;

        plugin_abort(rig->plugin);
        if (rig->has_vcpus)
                vcpu_set_done(&rig->vcpus);
        assert_int_equal(write(rig->stop_fd, &one, sizeof(one)), sizeof(one));
        assert_int_equal(pthread_join(rig->loop, NULL), 0);
        if (rig->crosvm) {
                assert_int_equal(crosvm_destroy_connection(&rig->crosvm), 0);
                assert_null(rig->crosvm);
        }
        (void) plugin_free(rig->plugin);
        kvm_done(&rig->kvm);
        (void) sd_event_source_disable_unref(rig->stop_source);
        (void) sd_event_unref(rig->event);
        (void) safe_close(rig->stop_fd);
        (void) safe_close(rig->fd);
        if (rig->bytes)
                assert_int_equal(munmap(rig->bytes, RIG_MEMORY), 0);
        free(rig->memory);
        free(rig->ended);
}

int rig_memfd(uint64_t size) {
        int fd = memfd_create("plugin", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, (off_t) size), 0);
        assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
        return fd;
}

void rig_add_memory(PluginRig *rig, const uint8_t *code, const uint8_t *code_end, bool dirty_log) {
        int fd = rig_memfd(RIG_MEMORY);

        rig->bytes = mmap(NULL, RIG_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(rig->bytes, MAP_FAILED);
        memcpy(rig->bytes + RIG_CODE, code, (size_t) (code_end - code));
        assert_int_equal(crosvm_create_memory(rig->crosvm, fd, 0, RIG_MEMORY, 0, false, dirty_log, &rig->memory), 0);
        (void) close(fd);
}

void rig_set_up_vcpu(struct crosvm_vcpu *vcpu, uint16_t bx) {
        struct crosvm_vcpu_event event;
        struct kvm_sregs sregs;
        struct kvm_regs regs = { .rip = RIG_CODE, .rflags = 2, .rsp = 0x8000, .rbx = bx };

        assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
        assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_INIT);
        assert_int_equal(crosvm_vcpu_get_sregs(vcpu, &sregs), 0);
        sregs.cs.base = sregs.cs.selector = 0;
        assert_int_equal(crosvm_vcpu_set_sregs(vcpu, &sregs), 0);
        assert_int_equal(crosvm_vcpu_set_regs(vcpu, &regs), 0);
        /* The others of a machine wait for an INIT from the first, else. */
        assert_int_equal(crosvm_vcpu_set_mp_state(vcpu, &(struct kvm_mp_state) { .mp_state = KVM_MP_STATE_RUNNABLE }), 0);
}

const char *rig_wait_for_end(PluginRig *rig) {
        struct timespec until;
        int r = 0;

        (void) clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 60;
        (void) pthread_mutex_lock(&rig->lock);
        while (!rig->ended && r == 0)
                r = pthread_cond_timedwait(&rig->changed, &rig->lock, &until);
        (void) pthread_mutex_unlock(&rig->lock);
        assert_int_equal(r, 0);
        return rig->ended;
}
