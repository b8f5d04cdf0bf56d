/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The ring of a vCPU: as a pair of pipes between two threads, and of a plugin that writes nonsense into it, on the real /dev/kvm. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "plugin-client.h"
#include "plugin-rig.h"
#include "util.h"

/* --- by itself --- */

typedef struct Pair {
        RingMemory *memory;
        Ring a, b;
        int to_a[2], to_b[2];
        _Atomic bool stop;
} Pair;

static void pair_begin(Pair *p) {
        int fd = memfd_create_sealed("ring", ring_memory_size(1), 0);

        *p = (Pair) {};
        assert_int_equal(ring_memory_map(fd, 1, &p->memory), 0);
        (void) close(fd);
        assert_int_equal(pipe2(p->to_a, O_CLOEXEC), 0);
        assert_int_equal(pipe2(p->to_b, O_CLOEXEC), 0);
        ring_init(&p->a, p->memory, RING_PLUGIN, p->to_a[0], p->to_b[1], NULL);
        ring_init(&p->b, p->memory, RING_MACHINE, p->to_b[0], p->to_a[1], &p->stop);
}

static void pair_end(Pair *p) {
        for (unsigned i = 0; i < 2; i++) {
                (void) safe_close(p->to_a[i]);
                (void) safe_close(p->to_b[i]);
        }
        ring_memory_unmap(p->memory, 1);
}

static void maps_only_what_cannot_shrink(void **state) {
        _cleanup_close_ int unsealed = memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        _cleanup_close_ int sealed = memfd_create_sealed("ring", ring_memory_size(1), 0);
        RingMemory *memory = NULL;

        assert_int_equal(ftruncate(unsealed, (off_t) ring_memory_size(1)), 0);
        assert_int_equal(ring_memory_map(unsealed, 1, &memory), -EPERM);
        assert_int_equal(ring_memory_map(sealed, 2, &memory), -ERANGE);
        assert_int_equal(ring_memory_map(sealed, 0, &memory), -ERANGE);
        assert_int_equal(ring_memory_map(STDIN_FILENO, 1, &memory), -EPERM);
        assert_null(memory);
}

#define LARGE (3 * RING_SIZE + 777)

static void fill(uint8_t *data, size_t size, unsigned seed) {
        for (size_t i = 0; i < size; i++)
                data[i] = (uint8_t) (seed + i * 7 + i / 251);
}

/* Sends back what it gets, with another kind; longer and longer ones. */
static void *echo(void *userdata) {
        _cleanup_free_ uint8_t *buffer = malloc(LARGE);
        Pair *p = userdata;
        uint8_t kind = 0;
        size_t size = 0;

        assert_non_null(buffer);
        while (ring_receive(&p->b, &kind, buffer, LARGE, &size) == 0)
                assert_int_equal(ring_send(&p->b, (uint8_t) (kind + 1), buffer, size), 0);
        return NULL;
}

static void carries_messages_of_all_sizes(void **state) {
        static const size_t sizes[] = { 0, 1, 4, 63, 4096, RING_SIZE - 5, RING_SIZE - 4, RING_SIZE - 3, RING_SIZE, RING_SIZE + 1 };
        _cleanup_free_ uint8_t *sent = malloc(LARGE), *got = malloc(LARGE);
        pthread_t thread;
        uint8_t kind = 0;
        size_t size = 0;
        Pair p;

        pair_begin(&p);
        assert_int_equal(pthread_create(&thread, NULL, echo, &p), 0);
        for (unsigned i = 0; i < 300; i++) {
                size_t wanted = sizes[i % ELEMENTSOF(sizes)];

                if (i % 50 == 49)
                        (void) usleep(5000); /* long enough for the other to sleep in its pipe */
                fill(sent, wanted, i);
                assert_int_equal(ring_send(&p.a, (uint8_t) i, sent, wanted), 0);
                assert_int_equal(ring_receive(&p.a, &kind, got, LARGE, &size), 0);
                assert_int_equal(size, wanted);
                assert_int_equal(kind, (uint8_t) (i + 1));
                assert_memory_equal(got, sent, size);
        }
        assert_int_equal(ring_send(&p.a, 0, sent, (size_t) 1 << 24), -EMSGSIZE);
        p.to_b[1] = safe_close(p.to_b[1]); /* the other's end */
        p.a.write_fd = -EBADF;
        assert_int_equal(pthread_join(thread, NULL), 0);
        pair_end(&p);
}

/* Processes on one processor must not look for each other. */
static void works_on_one_processor(void **state) {
        cpu_set_t all, one;
        pthread_t thread;
        uint8_t kind = 0, byte = 0;
        size_t size = 0;
        Pair p;

        assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
        CPU_ZERO(&one);
        for (size_t i = 0; i < CPU_SETSIZE; i++)
                if (CPU_ISSET(i, &all)) {
                        CPU_SET(i, &one);
                        break;
                }
        if (sched_setaffinity(0, sizeof(one), &one) < 0)
                return; /* a sandbox that does not let it */
        pair_begin(&p);
        assert_int_equal(p.a.spin.limit_nsec, 0);
        assert_int_equal(pthread_create(&thread, NULL, echo, &p), 0);
        for (unsigned i = 0; i < 2000; i++) {
                assert_int_equal(ring_send(&p.a, 0, &byte, 1), 0);
                assert_int_equal(ring_receive(&p.a, &kind, &byte, 1, &size), 0);
        }
        p.to_b[1] = safe_close(p.to_b[1]);
        assert_int_equal(pthread_join(thread, NULL), 0);
        pair_end(&p);
        assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

static void ends_with_the_other_side(void **state) {
        uint8_t kind, buffer[16];
        size_t size;
        Pair p;

        pair_begin(&p);
        p.to_b[1] = safe_close(p.to_b[1]);
        assert_int_equal(ring_receive(&p.b, &kind, buffer, sizeof(buffer), &size), -EPIPE);
        p.stop = true;
        assert_int_equal(ring_receive(&p.b, &kind, buffer, sizeof(buffer), &size), -ECANCELED);
        assert_int_equal(ring_send(&p.b, 0, buffer, sizeof(buffer)), -ECANCELED);
        pair_end(&p);
}

static void refuses_counts_that_make_no_sense(void **state) {
        uint8_t kind, buffer[16] = {};
        size_t size;
        Pair p;

        pair_begin(&p);
        p.memory->of[RING_PLUGIN].written.value = RING_SIZE + 1;
        assert_int_equal(ring_receive(&p.b, &kind, buffer, sizeof(buffer), &size), -EBADMSG);
        p.memory->of[RING_MACHINE].read.value = 1; /* more than was written */
        assert_int_equal(ring_send(&p.b, 0, buffer, sizeof(buffer)), -EBADMSG);
        pair_end(&p);

        pair_begin(&p);
        assert_int_equal(ring_send(&p.a, 0, buffer, sizeof(buffer)), 0);
        assert_int_equal(ring_receive(&p.b, &kind, buffer, sizeof(buffer) - 1, &size), -EBADMSG);
        pair_end(&p);
}

/* --- a plugin's --- */

static void ends_the_machine_whose_ring_has_nonsense(void **state) {
        struct crosvm_vcpu *vcpu;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_get_vcpu(rig.crosvm, 0, &vcpu), 0);
        assert_true(vcpu->has_ring);
        vcpu->ring.memory->of[RING_PLUGIN].written.value = 0x12345678;
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin lets vCPU 0 down: it sent what is no request of the plugin protocol.");
        rig_end(&rig);

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_get_vcpu(rig.crosvm, 0, &vcpu), 0);
        assert_int_equal(ring_send(&vcpu->ring, 99, "", 0), 0);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin lets vCPU 0 down: it sent what is no request of the plugin protocol.");
        rig_end(&rig);
}

/* A packet out, by hand, and the descriptors that come back. */
static size_t exchange(int fd, const void *request, size_t size, int *fds, size_t n_fds) {
        uint8_t answer[64];

        assert_int_equal(send(fd, request, size, 0), size);
        assert_true(recv_with_fds(fd, answer, sizeof(answer), fds, &n_fds, 0) > 0);
        return n_fds;
}

static void keeps_its_memory_from_shrinking(void **state) {
        static const uint8_t get_vcpus[] = { 0x8a, 0x01, 0x00 };
        static const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
        MainRequest__GetRings get = MAIN_REQUEST__GET_RINGS__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        uint8_t packet[16];
        PluginRig rig;
        int fds[8];
        size_t n;

        get.version = 1;
        request.message_case = MAIN_REQUEST__MESSAGE_GET_RINGS;
        request.get_rings = &get;
        rig_begin(&rig, 2, NULL);
        n = exchange(rig.fd, get_vcpus, sizeof(get_vcpus), fds, ELEMENTSOF(fds));
        assert_int_equal(n, 4);
        for (size_t i = 0; i < n; i++)
                (void) close(fds[i]);
        assert_int_equal(exchange(rig.fd, packet, main_request__pack(&request, packet), fds, ELEMENTSOF(fds)), 1);
        assert_int_equal(fcntl(fds[0], F_GET_SEALS) & seals, seals);
        assert_int_equal(ftruncate(fds[0], 0), -1);
        assert_int_equal(errno, EPERM);
        (void) close(fds[0]);
        rig_end(&rig);
}

/* It sends the beginning of a message, and nothing more. The machine ends all the same. */
static void leaves_a_plugin_whose_ring_hangs(void **state) {
        struct crosvm_vcpu *vcpu;
        struct kvm_regs regs;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_get_vcpu(rig.crosvm, 0, &vcpu), 0);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        rig_set_up_vcpu(vcpu, 0);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        for (unsigned i = 0; i < 100000 && vcpu->ring.memory->sleepers[RING_MACHINE].sleeping == 0; i++)
                (void) usleep(100);
        vcpu->ring.memory->bytes[RING_PLUGIN][vcpu->ring.written % RING_SIZE] = 200;
        __atomic_store_n(&vcpu->ring.memory->of[RING_PLUGIN].written.value, vcpu->ring.written + 1, __ATOMIC_RELEASE);
        rig_end(&rig);
}

static int ask_for_rings(struct crosvm *c, uint32_t version) {
        MainRequest__GetRings get = MAIN_REQUEST__GET_RINGS__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        uint8_t data[64];
        MainResponse *response;
        ssize_t n;
        int error;

        get.version = version;
        request.message_case = MAIN_REQUEST__MESSAGE_GET_RINGS;
        request.get_rings = &get;
        n = (ssize_t) main_request__pack(&request, data);
        assert_int_equal(send(c->fd, data, (size_t) n, 0), n);
        n = recv(c->fd, data, sizeof(data), 0);
        assert_true(n > 0);
        response = main_response__unpack(NULL, (size_t) n, data);
        assert_non_null(response);
        error = response->error;
        main_response__free_unpacked(response, NULL);
        return -error;
}

static void gives_rings_once_and_in_time(void **state) {
        struct crosvm by_hand;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        by_hand = (struct crosvm) { .fd = rig.fd };
        assert_int_equal(ask_for_rings(&by_hand, 1), -EINVAL); /* before the pipes */
        rig_connect(&rig);
        assert_int_equal(ask_for_rings(rig.crosvm, 1), -EBUSY);
        assert_int_equal(ask_for_rings(rig.crosvm, 2), -EPROTONOSUPPORT);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        assert_int_equal(ask_for_rings(rig.crosvm, 1), -EINVAL);
        rig_end(&rig);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(maps_only_what_cannot_shrink),
                cmocka_unit_test(refuses_counts_that_make_no_sense),
                cmocka_unit_test(ends_with_the_other_side),
                cmocka_unit_test(carries_messages_of_all_sizes),
                cmocka_unit_test(works_on_one_processor),
                cmocka_unit_test(gives_rings_once_and_in_time),
                cmocka_unit_test(ends_the_machine_whose_ring_has_nonsense),
                cmocka_unit_test(keeps_its_memory_from_shrinking),
                cmocka_unit_test(leaves_a_plugin_whose_ring_hangs),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        (void) signal(SIGPIPE, SIG_IGN);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
