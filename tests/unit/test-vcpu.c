/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vCPU threads on the real /dev/kvm, with guests of a few instructions in real mode. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "x86_64/vcpu-save.h"

#define MEMORY 0x10000
#define CODE 0x1000
#define COUNTERS 0x8000
#define PORT 0x500
#define MMIO 0x20000
#define VCPUS_MAX 4

/* "out" and "in" of each width, a string, and an MMIO access through ds = 0x2000. */
__asm__(".pushsection .rodata\n.code16\n"
        "guest_io: mov $0x500, %dx\n mov $0x44332211, %eax\n out %al, %dx\n out %ax, %dx\n out %eax, %dx\n"
        "in %dx, %al\n mov %al, 0x9000\n"
        "mov $0x3000, %si\n mov $5, %cx\n cld\n rep outsb\n"
        "mov $0x2000, %ax\n mov %ax, %ds\n mov $0x5566, %ax\n mov %ax, 0x10\n mov 0x20, %bl\n"
        "mov $0, %ax\n mov %ax, %ds\n mov %bl, 0x9001\n"
        "mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "guest_io_end:\n"
        /* Counts in cx, and in memory at [bx]; tells the port. */
        "guest_count: mov $0x500, %dx\n 1: inc %ecx\n mov %ecx, (%bx)\n mov %ecx, %eax\n out %eax, %dx\n jmp 1b\n"
        "guest_count_end:\n"
        /* Counts, and halts between the exits with the answer of an "in" in its hands. */
        "guest_echo: mov $0x500, %dx\n 1: in %dx, %eax\n out %eax, %dx\n jmp 1b\n"
        "guest_echo_end:\n"
        ".code32\nguest_fault: ud2\n 1: jmp 1b\n"
        "guest_fault_end:\n"
        ".code64\n.popsection\n");
extern const uint8_t guest_io[], guest_io_end[], guest_count[], guest_count_end[], guest_echo[], guest_echo_end[],
        guest_fault[], guest_fault_end[];

typedef struct Vm {
        Kvm kvm;
        IoSpace pio, mmio;
        GuestMemory memory;
        Arch *arch;
        VcpuSet vcpus;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        unsigned n_paused, events[VCPU_EVENT_ERROR + 1];
        char log[256]; /* of accesses */
        atomic_bool done;
        _Atomic uint32_t last, next;
        atomic_uint n_wrong;
} Vm;

static void on_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
        Vm *vm = userdata;

        (void) pthread_mutex_lock(&vm->lock);
        vm->events[event]++;
        (void) pthread_cond_broadcast(&vm->changed);
        (void) pthread_mutex_unlock(&vm->lock);
}

static void on_paused(void *userdata) {
        Vm *vm = userdata;

        (void) pthread_mutex_lock(&vm->lock);
        vm->n_paused++;
        (void) pthread_cond_broadcast(&vm->changed);
        (void) pthread_mutex_unlock(&vm->lock);
}

static void wait_for(Vm *vm, const unsigned *counter, unsigned value) {
        struct timespec until;

        (void) clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += 60;
        (void) pthread_mutex_lock(&vm->lock);
        while (*counter < value)
                assert_int_equal(pthread_cond_clockwait(&vm->changed, &vm->lock, CLOCK_MONOTONIC, &until), 0);
        (void) pthread_mutex_unlock(&vm->lock);
}

static void on_arch_event(ArchEvent event, void *userdata) {
}

static void vm_new(Vm *vm, unsigned n_vcpus, const uint8_t *code, const uint8_t *code_end) {
        const VcpuSetHandlers handlers = { .event = on_event, .paused = on_paused, .userdata = vm };
        const ArchConfig config = { .machine_name = "test", .n_vcpus = n_vcpus, .event = on_arch_event, .userdata = vm };

        *vm = (Vm) { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
        assert_int_equal(kvm_init(&vm->kvm, NULL), 0);
        assert_int_equal(io_space_init(&vm->pio), 0);
        assert_int_equal(io_space_init(&vm->mmio), 0);
        assert_int_equal(guest_memory_add(&vm->memory, guest_memory_create_fd(MEMORY, 0), 0, 0, MEMORY, 0), 0);
        assert_int_equal(kvm_set_memory(&vm->kvm, 0, 0, MEMORY, vm->memory.regions[0].host, false), 0);
        assert_int_equal(arch_new(&vm->kvm, &vm->pio, &vm->mmio, &vm->memory, &config, &vm->arch, NULL), 0);
        assert_int_equal(vcpu_set_init(&vm->vcpus, &vm->kvm, n_vcpus, &vm->pio, &vm->mmio, &handlers, NULL), 0);
        assert_int_equal(arch_setup_vcpus(vm->arch, &vm->vcpus, NULL), 0);
        memcpy(guest_memory_at(&vm->memory, CODE, (uint64_t) (code_end - code)), code, (size_t) (code_end - code));
        memcpy(guest_memory_at(&vm->memory, 0x3000, 5), "hello", 5);
}

/* All vCPUs at CODE, the n-th with its own counter. */
static void vm_boot(Vm *vm) {
        for (unsigned i = 0; i < vm->vcpus.n_vcpus; i++) {
                struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
                struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rbx = COUNTERS + 64 * i, .rsp = 0x7000 };
                struct kvm_sregs sregs;
                int fd = vm->vcpus.vcpus[i].fd;

                assert_int_equal(ioctl(fd, KVM_GET_SREGS, &sregs), 0);
                sregs.cs.base = 0;
                sregs.cs.selector = 0;
                assert_int_equal(ioctl(fd, KVM_SET_SREGS, &sregs), 0);
                assert_int_equal(ioctl(fd, KVM_SET_REGS, &regs), 0);
                assert_int_equal(ioctl(fd, KVM_SET_MP_STATE, &runnable), 0);
        }
}

static void vm_start(Vm *vm) {
        assert_int_equal(vcpu_set_start(&vm->vcpus), 0);
        vcpu_set_resume(&vm->vcpus, false);
}

static void vm_free(Vm *vm) {
        vcpu_set_done(&vm->vcpus);
        (void) arch_free(vm->arch);
        kvm_done(&vm->kvm);
        io_space_done(&vm->pio);
        io_space_done(&vm->mmio);
        guest_memory_done(&vm->memory);
}

static uint32_t counter(Vm *vm, unsigned i) {
        return __atomic_load_n((uint32_t *) guest_memory_at(&vm->memory, COUNTERS + 64 * i, 4), __ATOMIC_RELAXED);
}

static void pause_and_wait(Vm *vm) {
        unsigned before = vm->n_paused;

        vcpu_set_pause(&vm->vcpus);
        wait_for(vm, &vm->n_paused, before + 1);
        assert_true(vcpu_set_is_paused(&vm->vcpus));
}

/* --- exits --- */

static void log_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Vm *vm = userdata;
        uint64_t value = 0;
        char *end = vm->log + strlen(vm->log);

        (void) pthread_mutex_lock(&vm->lock);
        if (offset == 1)
                vm->done = true;
        if (!is_write)
                memset(data, 0x77, size);
        memcpy(&value, data, size);
        (void) snprintf(end, sizeof(vm->log) - (size_t) (end - vm->log), "%s%llx/%u@%llx ", is_write ? "" : "r",
                (unsigned long long) value, size, (unsigned long long) offset);
        (void) pthread_cond_broadcast(&vm->changed);
        (void) pthread_mutex_unlock(&vm->lock);
}

static void ports_and_memory_reach_their_handlers(void **state) {
        Vm vm;

        vm_new(&vm, 1, guest_io, guest_io_end);
        assert_int_equal(io_space_add(&vm.pio, PORT, 8, log_access, &vm), 0);
        assert_int_equal(io_space_add(&vm.mmio, MMIO, 0x100, log_access, &vm), 0);
        vm_boot(&vm);
        vm_start(&vm);
        for (unsigned i = 0; !vm.done && i < 60000; i++)
                (void) usleep(1000);
        pause_and_wait(&vm);
        assert_string_equal(vm.log,
                "11/1@0 2211/2@0 44332211/4@0 r77/1@0 68/1@0 65/1@0 6c/1@0 6c/1@0 6f/1@0 5566/2@10 r77/1@20 0/1@1 ");
        assert_int_equal(*(uint8_t *) guest_memory_at(&vm.memory, 0x9000, 1), 0x77);
        assert_int_equal(*(uint8_t *) guest_memory_at(&vm.memory, 0x9001, 1), 0x77);
        assert_int_equal(vm.events[VCPU_EVENT_ENTERED], 1);
        assert_true(vcpu_set_exits(&vm.vcpus) >= 8);
        vm_free(&vm);
}

/* Protected mode without an IDT. */
static void vm_boot_without_idt(Vm *vm) {
        const struct kvm_segment code = { .limit = 0xFFFFFFFF, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
        const struct kvm_segment data = { .limit = 0xFFFFFFFF, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
        struct kvm_sregs sregs;

        vm_boot(vm);
        assert_int_equal(ioctl(vm->vcpus.vcpus[0].fd, KVM_GET_SREGS, &sregs), 0);
        sregs.cs = code;
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
        sregs.cr0 |= 1;
        sregs.idt = (struct kvm_dtable) {};
        assert_int_equal(ioctl(vm->vcpus.vcpus[0].fd, KVM_SET_SREGS, &sregs), 0);
}

static void a_triple_fault_parks_the_vcpu_and_is_told_once(void **state) {
        Vm vm;

        vm_new(&vm, 1, guest_fault, guest_fault_end);
        vm_boot_without_idt(&vm);
        vm_start(&vm);
        wait_for(&vm, &vm.events[VCPU_EVENT_TRIPLE_FAULT], 1);
        (void) usleep(20000);
        assert_int_equal(vm.events[VCPU_EVENT_TRIPLE_FAULT], 1);
        pause_and_wait(&vm);
        /* It stays where it is until its registers are new. */
        vcpu_set_resume(&vm.vcpus, false);
        (void) usleep(20000);
        assert_int_equal(vm.events[VCPU_EVENT_TRIPLE_FAULT], 1);
        pause_and_wait(&vm);
        assert_int_equal(arch_reset(vm.arch, NULL), 0);
        vm_boot_without_idt(&vm);
        vcpu_set_resume(&vm.vcpus, true);
        wait_for(&vm, &vm.events[VCPU_EVENT_TRIPLE_FAULT], 2);
        vm_free(&vm);
}

/* --- pausing --- */

static void take_count(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Vm *vm = userdata;

        if (is_write && vcpu == 0)
                vm->last = load_le32(data);
}

static void four_vcpus_pause_and_resume_under_load(void **state) {
        Vm vm;

        vm_new(&vm, 4, guest_count, guest_count_end);
        assert_int_equal(io_space_add(&vm.pio, PORT, 4, take_count, &vm), 0);
        vm_boot(&vm);
        vm_start(&vm);
        for (unsigned i = 0; i < 400; i++) {
                uint32_t before[4];

                /* Sometimes long enough for the guests to be deep in it, sometimes not at all. */
                if (i % 4 != 0)
                        (void) usleep(i % 7 * 100);
                pause_and_wait(&vm);
                for (unsigned k = 0; k < 4; k++)
                        before[k] = counter(&vm, k);
                if (i % 16 == 0)
                        (void) usleep(1000);
                for (unsigned k = 0; k < 4; k++)
                        assert_int_equal(counter(&vm, k), before[k]);
                vcpu_set_resume(&vm.vcpus, false);
        }
        for (unsigned i = 0; i < 60000 && (counter(&vm, 0) == 0 || counter(&vm, 1) == 0 || counter(&vm, 2) == 0 || counter(&vm, 3) == 0); i++)
                (void) usleep(1000);
        for (unsigned k = 0; k < 4; k++)
                assert_true(counter(&vm, k) > 0);
        /* Pausing what is paused is answered, too, at once. */
        pause_and_wait(&vm);
        pause_and_wait(&vm);
        vm_free(&vm);
}

/* Hands out 1, 2, 3 … and looks whether they come back in order. */
static void echo(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Vm *vm = userdata;

        if (!is_write)
                store_le32(data, ++vm->next);
        else if (load_le32(data) != vm->next)
                vm->n_wrong++;
        else
                vm->last = vm->next;
}

static void a_pause_between_an_exit_and_its_completion_loses_nothing(void **state) {
        Vm vm;

        vm_new(&vm, 1, guest_echo, guest_echo_end);
        assert_int_equal(io_space_add(&vm.pio, PORT, 4, echo, &vm), 0);
        vm_boot(&vm);
        vm_start(&vm);
        for (unsigned i = 0; i < 300; i++) {
                struct kvm_regs regs;

                pause_and_wait(&vm);
                /* What the last "in" gave is in the register by now. */
                assert_int_equal(ioctl(vm.vcpus.vcpus[0].fd, KVM_GET_REGS, &regs), 0);
                if (vm.next > 0)
                        assert_int_equal((uint32_t) regs.rax, vm.next);
                vcpu_set_resume(&vm.vcpus, false);
                (void) usleep(i % 5 * 50);
        }
        /* On a busy host it may be paused each time before it has got anywhere. */
        for (unsigned i = 0; i < 60000 && vm.last == 0; i++)
                (void) usleep(1000);
        pause_and_wait(&vm);
        assert_int_equal(vm.n_wrong, 0);
        assert_true(vm.last > 0);
        vm_free(&vm);
}

/* --- state --- */

static void save(Vm *vm, StateWriter **ret, const void **ret_data, size_t *ret_size) {
        assert_int_equal(state_writer_new(ret), 0);
        assert_int_equal(arch_save(vm->arch, *ret), 0);
        assert_int_equal(state_writer_finish(*ret, ret_data, ret_size), 0);
}

static void expect_counting(Vm *vm, unsigned i, uint32_t from) {
        uint32_t now = from;

        for (unsigned k = 0; now <= from + 10 && k < 60000; k++) {
                (void) usleep(1000);
                now = counter(vm, i);
        }
        assert_true(now > from + 10);
}

static void counting_goes_on_from_a_state(void **state) {
        _cleanup_(state_reader_freep) StateReader *r = NULL, *again = NULL;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_free_ char *message = NULL;
        struct kvm_regs regs;
        uint32_t saved[2];
        const void *data;
        size_t size;
        Vm vm, fresh;

        vm_new(&vm, 2, guest_count, guest_count_end);
        assert_int_equal(io_space_add(&vm.pio, PORT, 4, take_count, &vm), 0);
        vm_boot(&vm);
        vm_start(&vm);
        for (unsigned i = 0; i < 60000 && (counter(&vm, 0) < 100 || counter(&vm, 1) < 100); i++)
                (void) usleep(1000);
        pause_and_wait(&vm);
        save(&vm, &w, &data, &size);
        for (unsigned i = 0; i < 2; i++) {
                assert_int_equal(ioctl(vm.vcpus.vcpus[i].fd, KVM_GET_REGS, &regs), 0);
                saved[i] = (uint32_t) regs.rcx;
                assert_true(saved[i] >= 100);
        }

        /* A fresh machine goes on where the first one stood. */
        vm_new(&fresh, 2, guest_count, guest_count_end);
        assert_int_equal(io_space_add(&fresh.pio, PORT, 4, take_count, &fresh), 0);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        if (arch_load(fresh.arch, r, &message) < 0)
                fail_msg("%s", message);
        vm_start(&fresh);
        for (unsigned i = 0; i < 2; i++)
                expect_counting(&fresh, i, saved[i]);
        vm_free(&fresh);

        /* The same machine goes on, is put back, and goes on from there again. */
        vcpu_set_resume(&vm.vcpus, false);
        expect_counting(&vm, 0, saved[0] + 100);
        pause_and_wait(&vm);
        assert_int_equal(state_reader_new(data, size, &again, NULL), 0);
        assert_int_equal(arch_load(vm.arch, again, &message), 0);
        assert_int_equal(ioctl(vm.vcpus.vcpus[0].fd, KVM_GET_REGS, &regs), 0);
        assert_int_equal((uint32_t) regs.rcx, saved[0]);
        vcpu_set_resume(&vm.vcpus, false);
        expect_counting(&vm, 1, saved[1]);
        vm_free(&vm);
}

static uint64_t get_msr(Vm *vm, uint32_t index) {
        uint8_t space[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] __attribute__((aligned(8))) = {};
        struct kvm_msrs *msrs = (struct kvm_msrs *) space;

        msrs->nmsrs = 1;
        msrs->entries[0].index = index;
        assert_int_equal(ioctl(vm->vcpus.vcpus[0].fd, KVM_GET_MSRS, msrs), 1);
        return msrs->entries[0].data;
}

static void set_msr(Vm *vm, uint32_t index, uint64_t value) {
        uint8_t space[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] __attribute__((aligned(8))) = {};
        struct kvm_msrs *msrs = (struct kvm_msrs *) space;

        msrs->nmsrs = 1;
        msrs->entries[0] = (struct kvm_msr_entry) { .index = index, .data = value };
        assert_int_equal(ioctl(vm->vcpus.vcpus[0].fd, KVM_SET_MSRS, msrs), 1);
}

static void memory_types_are_kept_and_reset(void **state) {
        static const struct {
                uint32_t index;
                uint64_t value, at_power_on;
        } mtrrs[] = {
                { 0x2ff, 0xc06, 0x806 }, { 0x20e, 0xc0000000, 0 }, { 0x20f, 0xffc0000800, 0 }, { 0x250, 0x0606060606060606, 0 }, { 0x26f, 0x0505050505050505, 0 },
        };
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_free_ char *message = NULL;
        const void *data;
        size_t size;
        Vm vm, fresh;

        vm_new(&vm, 1, guest_count, guest_count_end);
        for (size_t i = 0; i < ELEMENTSOF(mtrrs); i++)
                set_msr(&vm, mtrrs[i].index, mtrrs[i].value);
        save(&vm, &w, &data, &size);
        vm_new(&fresh, 1, guest_count, guest_count_end);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        if (arch_load(fresh.arch, r, &message) < 0)
                fail_msg("%s", message);
        for (size_t i = 0; i < ELEMENTSOF(mtrrs); i++)
                assert_int_equal(get_msr(&fresh, mtrrs[i].index), mtrrs[i].value);
        assert_int_equal(arch_reset(fresh.arch, &message), 0);
        for (size_t i = 0; i < ELEMENTSOF(mtrrs); i++)
                assert_int_equal(get_msr(&fresh, mtrrs[i].index), mtrrs[i].at_power_on);
        vm_free(&fresh);
        vm_free(&vm);
}

static void read_vcpu(Vm *vm, const void *data, size_t size, uint64_t tsc_ago) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;

        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        if (x86_vcpu_load(&vm->vcpus.vcpus[0], X86_LOAD_RESTORE, tsc_ago, r, &message) < 0)
                fail_msg("%s", message);
}

/* As with a guest whose counter is scaled: what it is ahead of a host's says nothing elsewhere. */
static void a_counter_goes_on_from_where_it_was_also_by_a_wrong_offset(void **state) {
        static const uint64_t ago[] = { 0, UINT64_C(1) << 45, -(UINT64_C(1) << 45) };

        for (size_t i = 0; i < ELEMENTSOF(ago); i++) {
                _cleanup_(state_writer_freep) StateWriter *w = NULL;
                uint64_t then, now, second;
                const void *data;
                size_t size;
                Vm vm, fresh;

                vm_new(&vm, 1, guest_count, guest_count_end);
                set_msr(&vm, 0x10, UINT64_C(1) << 50);
                then = get_msr(&vm, 0x10);
                save(&vm, &w, &data, &size);
                vm_new(&fresh, 1, guest_count, guest_count_end);
                read_vcpu(&fresh, data, size, ago[i]);
                now = get_msr(&fresh, 0x10);
                second = (uint64_t) ioctl(fresh.vcpus.vcpus[0].fd, KVM_GET_TSC_KHZ, 0) * 1000;
                if (now - then + second > second * 30)
                        fail_msg("%zu: from %#llx to %#llx", i, (unsigned long long) then, (unsigned long long) now);
                vm_free(&fresh);
                vm_free(&vm);
        }
}

/* The CPUID's section, of a processor that is so many times as fast. */
static void refuses_another_frequency_where_the_processor_cannot_scale(void **state) {
        for (unsigned factor = 1; factor <= 2; factor++) {
                _cleanup_(state_writer_freep) StateWriter *w = NULL, *other = NULL;
                _cleanup_(state_reader_freep) StateReader *r = NULL, *reader = NULL;
                _cleanup_free_ char *message = NULL, *model = NULL;
                const void *data, *entries;
                size_t size, length;
                uint32_t khz;
                Vm vm;
                int k;

                vm_new(&vm, 1, guest_count, guest_count_end);
                assert_int_equal(state_writer_new(&w), 0);
                assert_int_equal(arch_cpu_save(&vm.vcpus, w, &model), 0);
                assert_int_equal(state_writer_finish(w, &data, &size), 0);
                assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
                assert_int_equal(state_enter(r, "x86-cpuid", 0, 1), 1);
                khz = state_get_u32(r);
                entries = state_get_blob_view(r, MIB(1), &length);
                assert_int_equal(state_writer_new(&other), 0);
                state_begin(other, "x86-cpuid", 0, 1);
                state_put_u32(other, khz * factor);
                state_put_blob(other, entries, length);
                assert_int_equal(state_end(other), 0);
                assert_int_equal(state_leave(r, NULL), 0);
                assert_int_equal(state_writer_finish(other, &data, &size), 0);
                assert_int_equal(state_reader_new(data, size, &reader, NULL), 0);
                k = arch_cpu_load(&vm.vcpus, reader, &message);
                if (factor == 1)
                        assert_int_equal(k, 0);
                else if (kvm_check_extension(&vm.kvm, KVM_CAP_TSC_CONTROL) <= 0 && (k != -EXDEV || !strstr(message, "cannot be scaled")))
                        fail_msg("%i: %s", k, message ?: "no message");
                vm_free(&vm);
        }
}

/* The vCPU's section as version 1 had it, or as another. */
static void rewrite(const void *data, size_t size, uint32_t version, StateWriter **ret) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        uint32_t instance, found;
        const char *name;

        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_int_equal(state_writer_new(ret), 0);
        for (size_t i = 0; state_reader_section(r, i, &name, &instance, &found); i++) {
                bool is_vcpu = streq(name, "x86-vcpu");
                size_t length;

                if (streq(name, "x86-clock"))
                        continue; /* of a later version, too */
                assert_true(state_enter(r, name, instance, found) > 0);
                state_begin(*ret, name, instance, is_vcpu ? version : found);
                for (unsigned k = 0; k < 9 && is_vcpu; k++) {
                        const void *blob = state_get_blob_view(r, MIB(1), &length);

                        state_put_blob(*ret, blob, length);
                }
                for (unsigned k = 0; k < 4 && streq(name, "x86-irqchip"); k++) {
                        const void *blob = state_get_blob_view(r, MIB(1), &length);

                        state_put_blob(*ret, blob, length);
                }
                for (unsigned k = 0; k < 3 && streq(name, "acpi-pm"); k++)
                        state_put_u16(*ret, state_get_u16(r));
                if (streq(name, "acpi-pm"))
                        state_put_u8(*ret, state_get_u8(r));
                assert_int_equal(state_end(*ret), 0);
                (void) state_leave(r, NULL);
        }
}

static void a_vcpu_s_state_of_the_version_before_is_read_and_no_newer_one(void **state) {
        for (uint32_t version = 1; version <= 3; version += 2) {
                _cleanup_(state_writer_freep) StateWriter *w = NULL, *other = NULL;
                _cleanup_(state_reader_freep) StateReader *r = NULL;
                _cleanup_free_ char *message = NULL;
                const void *data;
                size_t size;
                Vm vm, fresh;

                vm_new(&vm, 1, guest_count, guest_count_end);
                save(&vm, &w, &data, &size);
                rewrite(data, size, version, &other);
                assert_int_equal(state_writer_finish(other, &data, &size), 0);
                assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
                vm_new(&fresh, 1, guest_count, guest_count_end);
                /* What comes behind the vCPU is not in this state: the first word of it is where that ends. */
                assert_true(arch_load(fresh.arch, r, &message) < 0);
                if ((version == 1) == !!strstr(message, "vCPU"))
                        fail_msg("version %u: %s", version, message);
                vm_free(&fresh);
                vm_free(&vm);
        }
}

static void refuses_a_state_of_fewer_vcpus(void **state) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_free_ char *message = NULL;
        const void *data;
        size_t size;
        Vm vm, other;

        vm_new(&vm, 1, guest_count, guest_count_end);
        save(&vm, &w, &data, &size);
        vm_new(&other, 2, guest_count, guest_count_end);
        assert_int_equal(state_reader_new(data, size, &r, NULL), 0);
        assert_true(arch_load(other.arch, r, &message) < 0);
        assert_non_null(strstr(message, "vCPU 1"));
        vm_free(&other);
        vm_free(&vm);
}

static void refuses_more_vcpus_than_the_host_allows(void **state) {
        const VcpuSetHandlers handlers = { .event = on_event, .paused = on_paused };
        _cleanup_free_ char *message = NULL;
        VcpuSet set;
        Kvm kvm;

        assert_int_equal(kvm_init(&kvm, NULL), 0);
        assert_int_equal(vcpu_set_init(&set, &kvm, 1000000, NULL, NULL, &handlers, &message), -ERANGE);
        assert_non_null(strstr(message, "1000000 vCPUs"));
        vcpu_set_done(&set);
        kvm_done(&kvm);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_more_vcpus_than_the_host_allows),
                cmocka_unit_test(refuses_a_state_of_fewer_vcpus),
                cmocka_unit_test(refuses_another_frequency_where_the_processor_cannot_scale),
                cmocka_unit_test(a_counter_goes_on_from_where_it_was_also_by_a_wrong_offset),
                cmocka_unit_test(memory_types_are_kept_and_reset),
                cmocka_unit_test(a_vcpu_s_state_of_the_version_before_is_read_and_no_newer_one),
                cmocka_unit_test(ports_and_memory_reach_their_handlers),
                cmocka_unit_test(a_triple_fault_parks_the_vcpu_and_is_told_once),
                cmocka_unit_test(four_vcpus_pause_and_resume_under_load),
                cmocka_unit_test(a_pause_between_an_exit_and_its_completion_loses_nothing),
                cmocka_unit_test(counting_goes_on_from_a_state),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
