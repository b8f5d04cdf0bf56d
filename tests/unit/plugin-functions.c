/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* plugin-functions: a plugin that calls each function of the library, and has each error that the header tells of, in whatever sandbox it is
 * started, with as many vCPUs as its machine has. It ends with 0 where all was as the header says, none of the functions below was
 * forgotten, and none of the errors. Said is what KVM has no Hyper-V for, and with the argument "table", of each how often it was called, and its errors. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include "crosvm.h"
#include "util.h"

#define PORT 0x500
#define QUIT 0x501
#define TOLD 0x600
#define KICK 0x700
#define MMIO 0x30000
#define ROM 0x40000
#define MEMORY 0x20000
#define VCPUS_MAX 16

/* Where the code of each page lies in the guest, and what it does; when it is done it says so at QUIT. */
enum { ACCESS = 0x1000, IRQ = 0x2000, KICKS = 0x3000, SPIN = 0x4000, DIRTY = 0x5000, SYNIC = 0x6000, HYPERCALL = 0x7000, STACK = 0x9000 };

#define END "mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
__asm__(".pushsection .rodata\n.code16\n"
        "f_access: mov $0x500, %dx\n in %dx, %al\n inc %al\n out %al, %dx\n mov $0x600, %dx\n out %al, %dx\n"
        "mov $0x3000, %ax\n mov %ax, %ds\n mov 0x10, %bl\n mov %bl, 0x20\n mov $0x4000, %ax\n mov %ax, %ds\n mov %bl, 0x30\n mov 0x40, %al\n"
        "xor %bx, %bx\n mov %bx, %ds\n" END "f_access_end:\n"
        "f_irq: cli\n mov $0x11, %al\n out %al, $0x20\n mov $8, %al\n out %al, $0x21\n mov $4, %al\n out %al, $0x21\n"
        "mov $1, %al\n out %al, $0x21\n xor %al, %al\n out %al, $0x21\n movw $0x2080, 0x2c\n movw $0, 0x2e\n sti\n" END
        ".org f_irq + 0x80\n mov $0x500, %dx\n out %al, %dx\n mov $0x20, %al\n out %al, $0x20\n iret\n"
        "f_irq_end:\n"
        "f_kicks: mov $0x700, %dx\n mov $7, %al\n out %al, %dx\n mov $9, %al\n out %al, %dx\n mov $0x709, %ax\n out %ax, %dx\n" END "f_kicks_end:\n"
        "f_spin: 1: jmp 1b\nf_spin_end:\n"
        "f_dirty: movb $1, 0xa000\n movb $1, 0xc000\n" END "f_dirty_end:\n"
        /* HV_X64_MSR_SCONTROL */
        "f_synic: mov $0x40000080, %ecx\n mov $1, %eax\n xor %edx, %edx\n wrmsr\n" END "f_synic_end:\n"
        /* HV_X64_MSR_GUEST_OS_ID, then HVCALL_SIGNAL_EVENT with its input in registers; what comes of it goes to PORT. */
        ".code32\nf_hypercall: mov $0x40000000, %ecx\n mov $1, %eax\n xor %edx, %edx\n wrmsr\n"
        "xor %edx, %edx\n mov $0x1005d, %eax\n mov $2, %ebx\n mov $3, %ecx\n mov $4, %edi\n mov $5, %esi\n vmcall\n mov $0x500, %edx\n out %al, %dx\n"
        "mov $0x501, %edx\n out %al, %dx\n 1: hlt\n jmp 1b\nf_hypercall_end:\n"
        ".code64\n.popsection\n");
#define DECLARE(name) extern const uint8_t f_##name[], f_##name##_end[]
DECLARE(access);
DECLARE(irq);
DECLARE(kicks);
DECLARE(spin);
DECLARE(dirty);
DECLARE(synic);
DECLARE(hypercall);

/* --- the table --- */

typedef struct Function {
        const char *name;
        int errors[8]; /* that it has to have had */
        _Atomic unsigned calls;
        _Atomic bool seen[256]; /* by errno */
} Function;

static Function functions[] = {
        { "connect", { ENOTCONN, EINVAL } },
        { "new_connection", { EINVAL } },
        { "destroy_connection" },
        { "get_shutdown_eventfd" },
        { "check_extension" },
        { "enable_capability", { EINVAL } },
        { "get_supported_cpuid", { E2BIG } },
        { "get_emulated_cpuid", { E2BIG } },
        { "get_hyperv_cpuid" },
        { "get_msr_index_list", { E2BIG } },
        { "net_get_config" },
        { "reserve_range", { EPERM, ENOENT, EINVAL } },
        { "reserve_async_write_range", { EPERM, ENOENT } },
        { "set_hypercall_hint", { EINVAL } },
        { "set_irq" },
        { "set_irq_routing", { EINVAL } },
        { "create_irq_event" },
        { "destroy_irq_event" },
        { "irq_event_get_fd" },
        { "irq_event_get_resample_fd" },
        { "create_io_event", { EINVAL, EEXIST } },
        { "destroy_io_event" },
        { "io_event_fd" },
        { "create_memory", { EBADF, EPERM, EINVAL, EOVERFLOW, EEXIST } },
        { "destroy_memory" },
        { "memory_get_dirty_log", { ENOENT } },
        { "get_pic_state" },
        { "set_pic_state" },
        { "get_ioapic_state" },
        { "set_ioapic_state" },
        { "get_pit_state" },
        { "set_pit_state" },
        { "get_clock" },
        { "set_clock" },
        { "set_identity_map_addr" },
        { "pause_vcpus" },
        { "start", { EINVAL } },
        { "get_vcpu", { ENOENT } },
        { "vcpu_wait" },
        { "vcpu_resume" },
        { "vcpu_get_regs", { EPROTO } },
        { "vcpu_set_regs" },
        { "vcpu_get_sregs", { EPROTO } },
        { "vcpu_set_sregs" },
        { "vcpu_get_debugregs", { EPROTO } },
        { "vcpu_set_debugregs" },
        { "vcpu_get_fpu", { EPROTO } },
        { "vcpu_set_fpu", { EPROTO } },
        { "vcpu_get_xcrs", { EPROTO } },
        { "vcpu_set_xcrs" },
        { "vcpu_get_lapic_state", { EPROTO } },
        { "vcpu_set_lapic_state" },
        { "vcpu_get_mp_state", { EPROTO } },
        { "vcpu_set_mp_state" },
        { "vcpu_get_vcpu_events", { EPROTO } },
        { "vcpu_set_vcpu_events" },
        { "vcpu_get_msrs", { EPROTO, E2BIG } },
        { "vcpu_set_msrs", { EPROTO, E2BIG } },
        { "vcpu_set_cpuid", { EPROTO, E2BIG } },
        { "vcpu_enable_capability", { EPROTO, EINVAL } },
};

static _noreturn_ void fail_at(int line, const char *format, ...) _printf_(2, 3);
static void fail_at(int line, const char *format, ...) {
        va_list list;

        va_start(list, format);
        (void) fprintf(stderr, "plugin-functions: line %d: ", line);
        (void) vfprintf(stderr, format, list);
        (void) fputc('\n', stderr);
        va_end(list);
        _exit(1);
}

static int note(const char *name, int r, int line) {
        for (size_t i = 0; i < ELEMENTSOF(functions); i++)
                if (streq(functions[i].name, name)) {
                        functions[i].calls++;
                        if (r < 0 && r > -256)
                                functions[i].seen[-r] = true;
                        return r;
                }
        fail_at(line, "crosvm_%s() is not in the table", name);
}

static void expect_at(int r, int expected, const char *name, int line) {
        if (expected <= 0 ? r != expected : r < 0)
                fail_at(line, "crosvm_%s() returned %d, expected %d", name, r, expected);
}
#define CALL(name, ...) note(#name, crosvm_##name(__VA_ARGS__), __LINE__)
#define EXPECT(expected, name, ...) expect_at(CALL(name, __VA_ARGS__), expected, #name, __LINE__)
#define OK(name, ...) EXPECT(0, name, __VA_ARGS__)
/* A descriptor. */
#define FD(name, ...) ({ int _fd = CALL(name, __VA_ARGS__); expect_at(_fd, 1, #name, __LINE__); _fd; })
#define CHECK(condition) do { if (!(condition)) fail_at(__LINE__, "%s does not hold", #condition); } while (0)

/* --- the machine --- */

static struct crosvm *machine;
static struct crosvm_memory *memory;
static uint8_t *bytes;
static unsigned n_vcpus;
static struct crosvm_vcpu *vcpus[VCPUS_MAX];
static pthread_barrier_t barrier;
static struct kvm_cpuid_entry2 cpuid[512];
static uint32_t n_cpuid;

static int make_memfd(uint64_t size, bool seal) {
        int fd = memfd_create("functions", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        CHECK(fd >= 0 && ftruncate(fd, (off_t) size) >= 0 && (!seal || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) >= 0));
        return fd;
}

static void load(unsigned address, const uint8_t *code, const uint8_t *end) {
        memcpy(bytes + address, code, (size_t) (end - code));
}

static bool is_signalled(int fd) {
        return poll(&(struct pollfd) { .fd = fd, .events = POLLIN }, 1, 0) == 1;
}

static uint64_t take_signal(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        uint64_t count = 0;

        CHECK(poll(&p, 1, 60000) == 1);
        CHECK(read(fd, &count, sizeof(count)) == sizeof(count));
        return count;
}

static void signal_event(int fd) {
        uint64_t one = 1;

        CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

static bool has(uint32_t extension) {
        bool yes = false;

        OK(check_extension, machine, extension, &yes);
        return yes;
}

/* --- before the start --- */

static void connections(void) {
        struct crosvm_vcpu *none = NULL;
        struct crosvm *other = NULL;
        const char *number = getenv("CROSVM_SOCKET");
        char text[16];

        CHECK(number && strlen(number) < sizeof(text));
        (void) strcpy(text, number);
        CHECK(unsetenv("CROSVM_SOCKET") == 0);
        EXPECT(-ENOTCONN, connect, &machine);
        CHECK(setenv("CROSVM_SOCKET", "none", 1) == 0);
        EXPECT(-EINVAL, connect, &machine);
        CHECK(setenv("CROSVM_SOCKET", text, 1) == 0);
        OK(connect, &machine);
        OK(new_connection, machine, &other);
        OK(reserve_range, other, CROSVM_ADDRESS_SPACE_IOPORT, 1, 1);
        EXPECT(-EPERM, reserve_range, machine, CROSVM_ADDRESS_SPACE_IOPORT, 1, 1);
        OK(destroy_connection, &other);
        CHECK(!other);
        while (n_vcpus < VCPUS_MAX - 1 && CALL(get_vcpu, machine, n_vcpus, &vcpus[n_vcpus]) == 0)
                n_vcpus++;
        EXPECT(-ENOENT, get_vcpu, machine, n_vcpus, &none);
        CHECK(!is_signalled(FD(get_shutdown_eventfd, machine)));
}

static void capabilities(void) {
        uint32_t msrs[4096], n = 0, again = 0;
        struct crosvm_net_config config;
        int r;

        CHECK(has(KVM_CAP_IRQCHIP) && !has(0x7fffffff));
        EXPECT(-EINVAL, enable_capability, machine, KVM_CAP_X2APIC_API, 0, (uint64_t[4]) {});
        EXPECT(-E2BIG, get_supported_cpuid, machine, 1, cpuid, &n);
        OK(get_supported_cpuid, machine, n, cpuid, &n_cpuid);
        CHECK(n_cpuid == n && cpuid[0].function == 0);
        EXPECT(-E2BIG, get_emulated_cpuid, machine, 0, cpuid + n, &again);
        OK(get_emulated_cpuid, machine, (uint32_t) ELEMENTSOF(cpuid) - n, cpuid + n, &again);
        EXPECT(-E2BIG, get_msr_index_list, machine, 1, msrs, &n);
        OK(get_msr_index_list, machine, ELEMENTSOF(msrs), msrs, &again);
        CHECK(again == n);
        r = CALL(net_get_config, machine, &config);
        CHECK(r == 0 || r == -ENODATA);
}

static void memories(void) {
        int fd = make_memfd(MEMORY, true), unsealed = make_memfd(0x1000, false);
        static struct crosvm_memory *rom; /* the machine's from now on */
        struct crosvm_memory *other = NULL;

        EXPECT(-EBADF, create_memory, machine, -1, 0, 0x1000, 0, false, false, &other);
        EXPECT(-EPERM, create_memory, machine, unsealed, 0, 0x1000, 0, false, false, &other);
        EXPECT(-EINVAL, create_memory, machine, fd, 0x10, 0x1000, 0, false, false, &other);
        EXPECT(-EINVAL, create_memory, machine, fd, MEMORY, 0x1000, 0, false, false, &other);
        EXPECT(-EOVERFLOW, create_memory, machine, fd, UINT64_MAX - 0xfff, 0x1000, 0, false, false, &other);
        OK(create_memory, machine, fd, 0, MEMORY, 0, false, true, &memory);
        EXPECT(-EEXIST, create_memory, machine, fd, 0, 0x1000, 0x1000, false, false, &other);
        CHECK(!other);
        OK(create_memory, machine, fd, 0, 0x1000, 0x100000, false, false, &other);
        EXPECT(-ENOENT, memory_get_dirty_log, machine, other, (uint8_t[64]) {});
        OK(destroy_memory, machine, &other);
        CHECK(!other);
        bytes = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(bytes != MAP_FAILED);
        (void) close(fd);
        (void) close(unsealed);
        fd = make_memfd(0x1000, true);
        CHECK(pwrite(fd, "\x5a", 1, 0x40) == 1);
        OK(create_memory, machine, fd, 0, 0x1000, ROM, true, false, &rom);
        (void) close(fd);
        load(ACCESS, f_access, f_access_end);
        load(IRQ, f_irq, f_irq_end);
        load(KICKS, f_kicks, f_kicks_end);
        load(SPIN, f_spin, f_spin_end);
        load(DIRTY, f_dirty, f_dirty_end);
        load(SYNIC, f_synic, f_synic_end);
        load(HYPERCALL, f_hypercall, f_hypercall_end);
}

static void ranges(void) {
        for (uint32_t space = CROSVM_ADDRESS_SPACE_IOPORT; space <= CROSVM_ADDRESS_SPACE_MMIO; space++) {
                OK(reserve_range, machine, space, 0x50000, 0x10);
                EXPECT(-EPERM, reserve_range, machine, space, 0x4ffff, 2);
                EXPECT(-EPERM, reserve_async_write_range, machine, space, 0x5000f, 1);
                EXPECT(-ENOENT, reserve_async_write_range, machine, space, 0x50001, 0);
                OK(reserve_range, machine, space, 0x50000, 0);
                EXPECT(-ENOENT, reserve_range, machine, space, 0x50000, 0);
        }
        EXPECT(-EINVAL, reserve_range, machine, 7, 0, 1);
        OK(reserve_range, machine, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 2);
        OK(reserve_async_write_range, machine, CROSVM_ADDRESS_SPACE_IOPORT, TOLD, 1);
        OK(reserve_range, machine, CROSVM_ADDRESS_SPACE_MMIO, MMIO, 0x1000);
        OK(reserve_range, machine, CROSVM_ADDRESS_SPACE_MMIO, ROM, 0x1000);
}

static void platform(void) {
        struct kvm_ioapic_state ioapic;
        struct kvm_clock_data clock;
        struct kvm_pic_state pic;
        struct kvm_pit_state2 pit;

        for (unsigned primary = 0; primary < 2; primary++) {
                OK(get_pic_state, machine, primary, &pic);
                pic.imr = 0x5a;
                OK(set_pic_state, machine, primary, &pic);
                OK(get_pic_state, machine, primary, &pic);
                CHECK(pic.imr == 0x5a);
        }
        OK(get_ioapic_state, machine, &ioapic);
        ioapic.redirtbl[5].fields.vector = 0x77;
        OK(set_ioapic_state, machine, &ioapic);
        OK(get_ioapic_state, machine, &ioapic);
        CHECK(ioapic.redirtbl[5].fields.vector == 0x77);
        OK(get_pit_state, machine, &pit);
        pit.channels[2].mode = 3;
        OK(set_pit_state, machine, &pit);
        OK(get_pit_state, machine, &pit);
        CHECK(pit.channels[2].mode == 3);
        OK(get_clock, machine, &clock);
        clock = (struct kvm_clock_data) { .clock = UINT64_C(7200) * 1000000000 };
        OK(set_clock, machine, &clock);
        OK(get_clock, machine, &clock);
        CHECK(clock.clock >= UINT64_C(7200) * 1000000000);
        OK(set_identity_map_addr, machine, 0xfffbc000);
}

/* What a vCPU is asked before it has been waited for. */
static void too_early(struct crosvm_vcpu *v) {
        union {
                struct kvm_regs regs;
                struct kvm_sregs sregs;
                struct kvm_debugregs debugregs;
                struct kvm_fpu fpu;
                struct kvm_xcrs xcrs;
                struct kvm_lapic_state lapic;
                struct kvm_mp_state mp;
                struct kvm_vcpu_events events;
        } s = {};
        struct kvm_msr_entry msr = { .index = 0x174 };
        uint32_t n;

        EXPECT(-EPROTO, vcpu_get_regs, v, &s.regs);
        EXPECT(-EPROTO, vcpu_get_sregs, v, &s.sregs);
        EXPECT(-EPROTO, vcpu_get_debugregs, v, &s.debugregs);
        EXPECT(-EPROTO, vcpu_get_fpu, v, &s.fpu);
        EXPECT(-EPROTO, vcpu_set_fpu, v, &s.fpu);
        EXPECT(-EPROTO, vcpu_get_xcrs, v, &s.xcrs);
        EXPECT(-EPROTO, vcpu_get_lapic_state, v, &s.lapic);
        EXPECT(-EPROTO, vcpu_get_mp_state, v, &s.mp);
        EXPECT(-EPROTO, vcpu_get_vcpu_events, v, &s.events);
        EXPECT(-EPROTO, vcpu_get_msrs, v, 1, &msr, &n);
        EXPECT(-EPROTO, vcpu_set_msrs, v, 1, &msr);
        EXPECT(-EPROTO, vcpu_set_cpuid, v, n_cpuid, cpuid);
        EXPECT(-EPROTO, vcpu_enable_capability, v, KVM_CAP_HYPERV_SYNIC2, 0, (uint64_t[4]) {});
}

/* --- each vCPU, on a thread of its own --- */

static void real_mode(struct crosvm_vcpu *v, unsigned address) {
        struct kvm_regs regs = { .rip = address, .rflags = 2, .rsp = STACK };
        struct kvm_sregs sregs;

        OK(vcpu_get_sregs, v, &sregs);
        sregs.cs.base = sregs.cs.selector = 0;
        OK(vcpu_set_sregs, v, &sregs);
        OK(vcpu_set_regs, v, &regs);
}

static void go(struct crosvm_vcpu *v, unsigned address) {
        OK(vcpu_set_regs, v, &(struct kvm_regs) { .rip = address, .rflags = 2, .rsp = STACK });
        OK(vcpu_resume, v);
}

static struct crosvm_vcpu_event wait_for_access(struct crosvm_vcpu *v, uint32_t space, uint64_t address, bool is_write, int line) {
        struct crosvm_vcpu_event e;

        OK(vcpu_wait, v, &e);
        if (e.kind != CROSVM_VCPU_EVENT_KIND_IO_ACCESS || e.io_access.address_space != space || e.io_access.address != address ||
            e.io_access.is_write != is_write)
                fail_at(line, "event %u at %llx instead of an access of %llx", e.kind, (unsigned long long) e.io_access.address, (unsigned long long) address);
        return e;
}
#define ACCESS_OF(v, space, address, is_write) wait_for_access(v, CROSVM_ADDRESS_SPACE_##space, address, is_write, __LINE__)

static void state(struct crosvm_vcpu *v) {
        struct kvm_msr_entry msrs[2] = { { .index = 0x174, .data = 0x77 }, { .index = 0xdead0000 } };
        static const struct kvm_msr_entry many[4097];
        static const struct kvm_cpuid_entry2 entries[513];
        struct kvm_debugregs debugregs;
        struct kvm_vcpu_events events;
        struct kvm_lapic_state lapic;
        struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };
        struct kvm_xcrs xcrs;
        struct kvm_fpu fpu;
        uint32_t n;

        OK(vcpu_set_mp_state, v, &mp); /* all but the first wait for an INIT, else */
        OK(vcpu_get_mp_state, v, &mp);
        CHECK(mp.mp_state == KVM_MP_STATE_RUNNABLE);
        OK(vcpu_get_fpu, v, &fpu);
        fpu.fcw = 0x27f;
        OK(vcpu_set_fpu, v, &fpu);
        OK(vcpu_get_fpu, v, &fpu);
        CHECK(fpu.fcw == 0x27f);
        OK(vcpu_get_xcrs, v, &xcrs);
        if (xcrs.nr_xcrs > 0) {
                xcrs.xcrs[0].value = 3; /* the FPU and SSE */
                OK(vcpu_set_xcrs, v, &xcrs);
                OK(vcpu_get_xcrs, v, &xcrs);
                CHECK(xcrs.xcrs[0].value == 3);
        } else
                OK(vcpu_set_xcrs, v, &xcrs);
        OK(vcpu_get_lapic_state, v, &lapic);
        lapic.regs[0x80] = 0x30;
        OK(vcpu_set_lapic_state, v, &lapic);
        OK(vcpu_get_lapic_state, v, &lapic);
        CHECK((uint8_t) lapic.regs[0x80] == 0x30);
        lapic.regs[0x80] = 0;
        OK(vcpu_set_lapic_state, v, &lapic);
        OK(vcpu_get_debugregs, v, &debugregs);
        debugregs.db[2] = 0x4321;
        OK(vcpu_set_debugregs, v, &debugregs);
        OK(vcpu_get_debugregs, v, &debugregs);
        CHECK(debugregs.db[2] == 0x4321);
        OK(vcpu_get_vcpu_events, v, &events);
        events.nmi.masked = 1;
        OK(vcpu_set_vcpu_events, v, &events);
        OK(vcpu_get_vcpu_events, v, &events);
        CHECK(events.nmi.masked);
        events.nmi.masked = 0;
        OK(vcpu_set_vcpu_events, v, &events);
        OK(vcpu_set_msrs, v, 1, msrs);
        msrs[0].data = 0;
        OK(vcpu_get_msrs, v, 2, msrs, &n);
        CHECK(n == 1 && msrs[0].data == 0x77);
        EXPECT(-E2BIG, vcpu_set_msrs, v, ELEMENTSOF(many), many);
        EXPECT(-E2BIG, vcpu_get_msrs, v, ELEMENTSOF(many), (struct kvm_msr_entry *) many, &n);
        EXPECT(-E2BIG, vcpu_set_cpuid, v, ELEMENTSOF(entries), entries);
        EXPECT(-EINVAL, vcpu_enable_capability, v, KVM_CAP_IRQCHIP, 0, (uint64_t[4]) {});
        EXPECT(-EINVAL, vcpu_enable_capability, v, KVM_CAP_HYPERV_SYNIC, 0, (uint64_t[4]) { 1 });
}

/* Its own processor, and with it Hyper-V's where KVM has that. */
static void processor(struct crosvm_vcpu *v, bool hyperv) {
        static __thread struct kvm_cpuid_entry2 all[ELEMENTSOF(cpuid) * 2];
        uint32_t n = 0;
        int r;

        memcpy(all, cpuid, n_cpuid * sizeof(cpuid[0]));
        if (hyperv) {
                EXPECT(-E2BIG, get_hyperv_cpuid, v, 0, all + n_cpuid, &n);
                OK(get_hyperv_cpuid, v, ELEMENTSOF(cpuid), all + n_cpuid, &n);
                CHECK(n > 0 && all[n_cpuid].function == 0x40000000);
                /* In the place of KVM's own, which begin at the same number. */
                for (uint32_t i = 0; i < n_cpuid; i++)
                        if (all[i].function >= 0x40000000 && all[i].function < 0x40000100)
                                all[i].function += 0x100;
        } else {
                r = CALL(get_hyperv_cpuid, v, ELEMENTSOF(cpuid), all + n_cpuid, &n);
                CHECK(r < 0);
                n = 0;
        }
        OK(vcpu_set_cpuid, v, n_cpuid + n, all);
        if (hyperv)
                OK(vcpu_enable_capability, v, KVM_CAP_HYPERV_SYNIC2, 0, (uint64_t[4]) {});
}

static void accesses(struct crosvm_vcpu *v, uint8_t number) {
        struct crosvm_vcpu_event e;

        go(v, ACCESS);
        e = ACCESS_OF(v, IOPORT, PORT, false);
        CHECK(e.io_access.length == 1);
        e.io_access.data[0] = number;
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, IOPORT, PORT, true);
        CHECK(e.io_access.data[0] == (uint8_t) (number + 1));
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, IOPORT, TOLD, true);
        CHECK(e.io_access.no_resume);
        e = ACCESS_OF(v, MMIO, MMIO + 0x10, false);
        e.io_access.data[0] = 0x99;
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, MMIO, MMIO + 0x20, true);
        CHECK(e.io_access.data[0] == 0x99);
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, MMIO, ROM + 0x30, true); /* memory that is read-only */
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, IOPORT, QUIT, true);
        CHECK(e.io_access.data[0] == 0x5a); /* and its reads are the memory's */
}

static void hyperv_events(struct crosvm_vcpu *v) {
        struct kvm_segment segment = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
        struct crosvm_vcpu_event e;
        struct kvm_sregs before, sregs;

        go(v, SYNIC);
        OK(vcpu_wait, v, &e);
        CHECK(e.kind == CROSVM_VCPU_EVENT_KIND_HYPERV_SYNIC && e.hyperv_synic.msr == 0x40000080 && e.hyperv_synic.control == 1);
        OK(vcpu_resume, v);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        OK(vcpu_get_sregs, v, &before);
        sregs = before;
        sregs.cs = segment;
        segment.selector = 16;
        segment.type = 3;
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
        sregs.cr0 |= 1;
        OK(vcpu_set_sregs, v, &sregs);
        go(v, HYPERCALL);
        OK(vcpu_wait, v, &e);
        CHECK(e.kind == CROSVM_VCPU_EVENT_KIND_HYPERV_HCALL && (e.hyperv_call.input & 0xffff) == 0x5d);
        CHECK(e.hyperv_call.params[0] == ((UINT64_C(2) << 32) | 3) && e.hyperv_call.params[1] == ((UINT64_C(4) << 32) | 5));
        *e.hyperv_call.result = 0x1234;
        OK(vcpu_resume, v);
        e = ACCESS_OF(v, IOPORT, PORT, true);
        CHECK(e.io_access.data[0] == 0x34);
        OK(vcpu_resume, v);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        OK(vcpu_set_sregs, v, &before);
}

/* --- the rest of the machine, by the first vCPU while the others stand --- */

static void hints(struct crosvm_vcpu *v) {
        struct crosvm_hint_detail detail = { .match_rdx = true, .rdx = QUIT, .send_sregs = true, .send_debugregs = true };
        struct crosvm_hint hint = { .address_space = CROSVM_ADDRESS_SPACE_IOPORT, .address = QUIT, .details = &detail, .details_count = 1,
                                    .address_flags = CROSVM_HINT_ON_WRITE };
        struct kvm_debugregs debugregs;
        struct kvm_sregs sregs;
        struct kvm_regs regs;

        EXPECT(-EINVAL, set_hypercall_hint, machine, 2, &hint);
        OK(set_hypercall_hint, machine, 1, &hint);
        go(v, DIRTY);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        OK(vcpu_get_regs, v, &regs);
        CHECK(regs.rdx == QUIT);
        OK(vcpu_get_sregs, v, &sregs);
        CHECK(sregs.cs.base == 0);
        OK(vcpu_get_debugregs, v, &debugregs);
        CHECK(debugregs.db[2] == 0x4321);
        OK(set_hypercall_hint, machine, 0, NULL);
}

static void dirty_log(struct crosvm_vcpu *v) {
        uint8_t log[MEMORY / 4096 / 8 + 1];

        OK(memory_get_dirty_log, machine, memory, log); /* what was before */
        go(v, DIRTY);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        log[sizeof(log) - 1] = 0xee;
        OK(memory_get_dirty_log, machine, memory, log);
        CHECK((log[1] & 0x1c) == 0x14); /* pages 0xa and 0xc, and not 0xb */
        CHECK(log[sizeof(log) - 1] == 0xee);
        OK(memory_get_dirty_log, machine, memory, log);
        CHECK((log[1] & 0x1c) == 0);
}

static void io_events(struct crosvm_vcpu *v) {
        struct crosvm_io *nine = NULL, *wide = NULL, *any = NULL, *other = NULL;

        EXPECT(-EINVAL, create_io_event, machine, CROSVM_ADDRESS_SPACE_IOPORT, KICK, 3, (const uint8_t *) "\x09", &other);
        OK(create_io_event, machine, CROSVM_ADDRESS_SPACE_IOPORT, KICK, 1, (const uint8_t *) "\x09", &nine);
        EXPECT(-EEXIST, create_io_event, machine, CROSVM_ADDRESS_SPACE_IOPORT, KICK, 1, (const uint8_t *) "\x09", &other);
        OK(create_io_event, machine, CROSVM_ADDRESS_SPACE_IOPORT, KICK, 2, (const uint8_t *) "\x09\x07", &wide);
        go(v, KICKS);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        CHECK(take_signal(FD(io_event_fd, nine)) == 1 && take_signal(FD(io_event_fd, wide)) == 1);
        OK(destroy_io_event, machine, &nine);
        OK(destroy_io_event, machine, &wide);
        OK(create_io_event, machine, CROSVM_ADDRESS_SPACE_IOPORT, KICK, 0, NULL, &any);
        go(v, KICKS);
        (void) ACCESS_OF(v, IOPORT, QUIT, true);
        CHECK(take_signal(FD(io_event_fd, any)) == 3);
        OK(destroy_io_event, machine, &any);
}

static void interrupts(struct crosvm_vcpu *v) {
        struct crosvm_irq_route route = { .irq_id = 24, .kind = 9, .msi = { .address = 0xfee00000, .data = 0x41 } };
        struct crosvm_irq *irq = NULL, *message = NULL;
        struct kvm_lapic_state lapic;
        int fd, resample_fd;

        OK(create_irq_event, machine, 3, &irq);
        fd = FD(irq_event_get_fd, irq);
        resample_fd = FD(irq_event_get_resample_fd, irq);
        go(v, IRQ);
        (void) ACCESS_OF(v, IOPORT, QUIT, true); /* interrupts are on */
        OK(vcpu_resume, v);
        signal_event(fd);
        (void) ACCESS_OF(v, IOPORT, PORT, true);
        CHECK(!is_signalled(resample_fd));
        OK(vcpu_resume, v);
        CHECK(take_signal(resample_fd) == 1);
        OK(destroy_irq_event, machine, &irq);
        OK(set_irq, machine, 3, true); /* an edge */
        (void) ACCESS_OF(v, IOPORT, PORT, true);
        OK(set_irq, machine, 3, false);

        OK(vcpu_get_lapic_state, v, &lapic);
        lapic.regs[0xf1] |= 1;
        OK(vcpu_set_lapic_state, v, &lapic);
        EXPECT(-EINVAL, set_irq_routing, machine, 1, &route);
        route.kind = CROSVM_IRQ_ROUTE_MSI;
        OK(set_irq_routing, machine, 1, &route);
        OK(create_irq_event, machine, 24, &message);
        signal_event(FD(irq_event_get_fd, message));
        do /* a work queue of KVM's carries it */
                OK(vcpu_get_lapic_state, v, &lapic);
        while (!(lapic.regs[0x220] & 2));
        OK(destroy_irq_event, machine, &message);
        OK(set_irq_routing, machine, 0, NULL);
}

/* --- all of it --- */

static void rest_of_the_machine(struct crosvm_vcpu *v) {
        struct crosvm *late = NULL;

        EXPECT(-EINVAL, start, machine);
        EXPECT(-EINVAL, new_connection, machine, &late);
        hints(v);
        dirty_log(v);
        io_events(v);
        interrupts(v);
}

static void *vcpu_thread(void *userdata) {
        unsigned number = (unsigned) (uintptr_t) userdata;
        struct crosvm_vcpu *v = vcpus[number];
        static bool hyperv;
        struct crosvm_vcpu_event e;

        too_early(v);
        OK(vcpu_wait, v, &e);
        CHECK(e.kind == CROSVM_VCPU_EVENT_KIND_INIT);
        if (number == 0) /* who has the connection */
                hyperv = has(KVM_CAP_HYPERV_CPUID) && has(KVM_CAP_HYPERV_SYNIC2);
        (void) pthread_barrier_wait(&barrier);
        processor(v, hyperv);
        state(v);
        real_mode(v, ACCESS);
        accesses(v, (uint8_t) (40 + number));
        if (hyperv)
                hyperv_events(v);
        else if (number == 0)
                (void) fprintf(stderr, "plugin-functions: this KVM has no Hyper-V's parts: no event of theirs\n");
        (void) pthread_barrier_wait(&barrier);
        if (number == 0)
                rest_of_the_machine(v);
        (void) pthread_barrier_wait(&barrier);
        go(v, SPIN);
        (void) pthread_barrier_wait(&barrier);
        if (number == 0)
                OK(pause_vcpus, machine, (UINT64_C(1) << n_vcpus) - 1, &barrier);
        OK(vcpu_wait, v, &e);
        CHECK(e.kind == CROSVM_VCPU_EVENT_KIND_PAUSED && e.user == &barrier);
        return NULL;
}

/* Each function with what it was seen to return; and none was forgotten. */
static int show(bool table) {
        int r = 0;

        for (const Function *f = functions; f < functions + ELEMENTSOF(functions); f++) {
                if (table || f->calls == 0)
                        (void) fprintf(stderr, "plugin-functions: crosvm_%s: %u", f->name, f->calls);
                for (int e = 1; table && e < (int) ELEMENTSOF(f->seen); e++)
                        if (f->seen[e])
                                (void) fprintf(stderr, " %s", strerrorname_np(e) ?: "?");
                if (table || f->calls == 0)
                        (void) fputc('\n', stderr);
                for (size_t k = 0; k < ELEMENTSOF(f->errors) && f->errors[k] > 0; k++)
                        if (!f->seen[f->errors[k]]) {
                                (void) fprintf(stderr, "plugin-functions: crosvm_%s: never %s\n", f->name, strerrorname_np(f->errors[k]));
                                r = 1;
                        }
                if (f->calls == 0)
                        r = 1;
        }
        (void) fprintf(stderr, "plugin-functions: %u vCPUs, %zu functions, %s\n", n_vcpus, ELEMENTSOF(functions), r == 0 ? "all as they should" : "not all");
        return r;
}

/* With --list: their names, which are to be those of the header. */
static int list(void) {
        for (size_t i = 0; i < ELEMENTSOF(functions); i++)
                printf("crosvm_%s\n", functions[i].name);
        return EXIT_SUCCESS;
}

int main(int argc, char *argv[]) {
        pthread_t threads[VCPUS_MAX];

        if (argc == 2 && streq(argv[1], "--list"))
                return list();
        connections();
        CHECK(pthread_barrier_init(&barrier, NULL, n_vcpus) == 0);
        capabilities();
        memories();
        ranges();
        platform();
        OK(start, machine);
        for (unsigned i = 0; i < n_vcpus; i++)
                CHECK(pthread_create(&threads[i], NULL, vcpu_thread, (void *) (uintptr_t) i) == 0); /* NOLINT(performance-no-int-to-ptr) */
        for (unsigned i = 0; i < n_vcpus; i++)
                CHECK(pthread_join(threads[i], NULL) == 0);
        OK(destroy_memory, machine, &memory);
        OK(destroy_connection, &machine);
        return show(argc == 2 && streq(argv[1], "table"));
}
