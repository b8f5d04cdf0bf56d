/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A plugin's library and vmmd's side of its protocol, on the real /dev/kvm: every function, with guests of a few instructions. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "plugin-rig.h"

#define PORT 0x500
#define QUIT 0x501
#define MMIO 0x30000

__asm__(".pushsection .rodata\n.code16\n"
        /* Reads two numbers, writes their sum; then it is done. */
        "plugin_add: mov $0x500, %dx\n in %dx, %al\n mov %al, %cl\n in %dx, %al\n add %cl, %al\n out %al, %dx\n"
        "mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "plugin_add_end:\n"
        /* Strings both ways, and MMIO through ds = 0x3000. */
        "plugin_widths: mov $0x500, %dx\n mov $0x44332211, %eax\n out %ax, %dx\n in %dx, %eax\n mov %eax, 0x9000\n"
        "mov $0x9010, %di\n mov $5, %cx\n cld\n xor %ax, %ax\n mov %ax, %es\n rep insb\n"
        "mov $0x3000, %ax\n mov %ax, %ds\n mov $0x5566, %ax\n mov %ax, 0x10\n mov 0x20, %bl\n"
        "xor %ax, %ax\n mov %ax, %ds\n mov %bl, 0x9001+0x1f\n"
        "mov $0x502, %dx\n in %dx, %al\n mov %al, 0x9021\n"
        "mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "plugin_widths_end:\n"
        /* Tells three numbers without waiting, then one that is waited for. */
        "plugin_tell: mov $0x600, %dx\n mov $1, %al\n out %al, %dx\n mov $2, %al\n out %al, %dx\n mov $3, %al\n out %al, %dx\n"
        "in %dx, %al\n mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "plugin_tell_end:\n"
        /* Writes to two pages, then says so; again. */
        "plugin_dirty: mov $0x500, %dx\n 1: movb $1, 0x3000\n movb $1, 0x5000\n out %al, %dx\n movb $1, 0x6000\n out %al, %dx\n jmp 1b\n"
        "plugin_dirty_end:\n"
        /* Writes 7 and 9 to a port that has an event, then is done. */
        "plugin_kick: mov $0x700, %dx\n mov $7, %al\n out %al, %dx\n mov $9, %al\n out %al, %dx\n"
        "mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "plugin_kick_end:\n"
        /* Sets the interrupt controller up, vectors from 8 on, and says of each interrupt 3 that it came. */
        "plugin_irq: cli\n mov $0x11, %al\n out %al, $0x20\n mov $8, %al\n out %al, $0x21\n mov $4, %al\n out %al, $0x21\n"
        "mov $1, %al\n out %al, $0x21\n xor %al, %al\n out %al, $0x21\n"
        "movw $0x1080, 0x2c\n movw $0, 0x2e\n sti\n mov $0x501, %dx\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        ".org plugin_irq + 0x80\n mov $0x500, %dx\n out %al, %dx\n mov $0x20, %al\n out %al, $0x20\n iret\n"
        "plugin_irq_end:\n"
        "plugin_say: mov $0x500, %dx\n 1: out %al, %dx\n jmp 1b\n"
        "plugin_say_end:\n"
        /* One write to two pages of the plugin's; then it says so for ever. */
        "plugin_cross: mov $0x3000, %ax\n mov %ax, %ds\n mov $0x44332211, %eax\n mov %eax, 0xffe\n mov $0x500, %dx\n 1: out %al, %dx\n jmp 1b\n"
        "plugin_cross_end:\n"
        "plugin_spin: 1: jmp 1b\n"
        "plugin_spin_end:\n"
        ".code64\n.popsection\n");
#define DECLARE(name) extern const uint8_t plugin_##name[], plugin_##name##_end[]
DECLARE(add);
DECLARE(widths);
DECLARE(tell);
DECLARE(dirty);
DECLARE(kick);
DECLARE(irq);
DECLARE(say);
DECLARE(cross);
DECLARE(spin);

/* A machine with one vCPU that is set up and running this code. */
static struct crosvm_vcpu *run_guest(PluginRig *rig, const uint8_t *code, const uint8_t *end, bool dirty_log) {
        struct crosvm_vcpu *vcpu = NULL;

        rig_connect(rig);
        rig_add_memory(rig, code, end, dirty_log);
        assert_int_equal(crosvm_reserve_range(rig->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 2), 0);
        assert_int_equal(crosvm_get_vcpu(rig->crosvm, 0, &vcpu), 0);
        assert_int_equal(crosvm_start(rig->crosvm), 0);
        rig_set_up_vcpu(vcpu, 0);
        return vcpu;
}

static void expect_access(struct crosvm_vcpu *vcpu, struct crosvm_vcpu_event *event, uint32_t space, uint64_t address, bool is_write,
        uint32_t length) {
        assert_int_equal(crosvm_vcpu_wait(vcpu, event), 0);
        assert_int_equal(event->kind, CROSVM_VCPU_EVENT_KIND_IO_ACCESS);
        assert_int_equal(event->io_access.address_space, space);
        assert_int_equal(event->io_access.address, address);
        assert_int_equal(event->io_access.is_write, is_write);
        assert_int_equal(event->io_access.length, length);
}

static void expect_port(struct crosvm_vcpu *vcpu, struct crosvm_vcpu_event *event, uint64_t port, bool is_write) {
        expect_access(vcpu, event, CROSVM_ADDRESS_SPACE_IOPORT, port, is_write, 1);
}

static bool is_signalled(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        return poll(&p, 1, 0) == 1;
}

static void expect_signal(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        uint64_t count;

        assert_int_equal(poll(&p, 1, 60000), 1);
        assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
}

/* --- what is refused --- */

static void connects_only_where_a_socket_is(void **state) {
        struct crosvm *c = NULL;

        assert_int_equal(unsetenv("CROSVM_SOCKET"), 0);
        assert_int_equal(crosvm_connect(&c), -ENOTCONN);
        assert_int_equal(setenv("CROSVM_SOCKET", "four", 1), 0);
        assert_int_equal(crosvm_connect(&c), -EINVAL);
        assert_int_equal(setenv("CROSVM_SOCKET", "-4", 1), 0);
        assert_int_equal(crosvm_connect(&c), -EINVAL);
        assert_null(c);
}

static void refuses_memory_that_could_go_away(void **state) {
        struct crosvm_memory *memory = NULL, *other = NULL;
        _cleanup_close_ int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), sealed = rig_memfd(0x3000);
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(ftruncate(unsealed, 0x3000), 0);
        assert_int_equal(crosvm_create_memory(rig.crosvm, -1, 0, 0x1000, 0, false, false, &memory), -EBADF);
        assert_int_equal(crosvm_create_memory(rig.crosvm, unsealed, 0, 0x1000, 0, false, false, &memory), -EPERM);
        assert_int_equal(crosvm_create_memory(rig.crosvm, STDIN_FILENO, 0, 0x1000, 0, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0x800, 0x1000, 0, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0, 0x800, 0, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0, 0, 0, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0, 0x1000, 0x10, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0x1000, 0x3000, 0, false, false, &memory), -EINVAL);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, UINT64_MAX - 0xfff, 0x1000, 0, false, false, &memory), -EOVERFLOW);
        assert_null(memory);

        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0x1000, 0x2000, 0x10000, true, false, &memory), 0);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0, 0x1000, 0x11000, false, false, &other), -EEXIST);
        assert_int_equal(crosvm_destroy_memory(rig.crosvm, &memory), 0);
        assert_null(memory);
        assert_int_equal(crosvm_create_memory(rig.crosvm, sealed, 0, 0x1000, 0x11000, false, false, &other), 0);
        assert_int_equal(crosvm_destroy_memory(rig.crosvm, &other), 0);
        rig_end(&rig);
}

static void refuses_addresses_that_are_taken(void **state) {
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        for (uint32_t space = CROSVM_ADDRESS_SPACE_IOPORT; space <= CROSVM_ADDRESS_SPACE_MMIO; space++) {
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x100, 0x10), 0);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x100, 0x10), -EPERM);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0xff, 2), -EPERM);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x10f, 1), -EPERM);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x80, 0x1000), -EPERM);
                assert_int_equal(crosvm_reserve_async_write_range(rig.crosvm, space, 0x108, 1), -EPERM);
                assert_int_equal(crosvm_reserve_async_write_range(rig.crosvm, space, 0x110, 1), 0);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, UINT64_MAX, 2), -EINVAL);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, UINT64_MAX, 1), 0);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x101, 0), -ENOENT);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x100, 0), 0);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x100, 0), -ENOENT);
                assert_int_equal(crosvm_reserve_range(rig.crosvm, space, 0x80, 0x90), 0);
        }
        assert_int_equal(crosvm_reserve_range(rig.crosvm, 2, 0x1000, 0x10), -EINVAL);
        rig_end(&rig);
}

static void refuses_events_and_hints_that_make_no_sense(void **state) {
        struct crosvm_hint_detail details[CROSVM_MAX_HINT_DETAIL_COUNT + 1] = {};
        struct crosvm_hint hint = { .address = PORT, .details = details };
        struct crosvm_io *io = NULL;
        uint8_t data[8] = {};
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x700, 3, data, &io), -EINVAL);
        assert_int_equal(crosvm_create_io_event(rig.crosvm, 9, 0x700, 1, data, &io), -EINVAL);
        assert_null(io);
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 2, &hint), -EINVAL);
        hint.hint_version = 1;
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), -EINVAL);
        hint.hint_version = 0;
        hint.address = 0;
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), -EINVAL);
        hint.address = PORT;
        hint.address_flags = 2;
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), -EINVAL);
        hint.address_flags = CROSVM_HINT_ON_WRITE;
        hint.details_count = CROSVM_MAX_HINT_DETAIL_COUNT + 1;
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), -EINVAL);
        hint.details_count = CROSVM_MAX_HINT_DETAIL_COUNT;
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), 0);
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 0, NULL), 0);
        assert_int_equal(crosvm_enable_capability(rig.crosvm, KVM_CAP_X2APIC_API, 0, (uint64_t[4]) {}), -EINVAL);
        rig_end(&rig);
}

static void expect_answer(const PluginRig *rig, const void *request, size_t size, const void *answer, size_t answer_size) {
        uint8_t buffer[64];

        assert_int_equal(send(rig->fd, request, size, MSG_NOSIGNAL), size);
        assert_int_equal(recv(rig->fd, buffer, sizeof(buffer), 0), answer_size); /* descriptors that come along are nobody's */
        assert_memory_equal(buffer, answer, answer_size);
}
#define EXPECT_ANSWER(rig, request, answer) expect_answer(rig, request, sizeof(request) - 1, answer, sizeof(answer) - 1)

/* What the library never asks for. In the answers a sint32 is twice the errno. */
static void answers_what_makes_no_sense_by_an_error(void **state) {
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        EXPECT_ANSWER(&rig, "\x12\x02\x08\x07", "\x08\x04\x1a\x00"); /* destroys 7, which is not there: ENOENT */
        EXPECT_ANSWER(&rig, "\x0a\x0b\x08\x07\x12\x07\x10\x80\x0e\x18\x01\x20\x09", "\x12\x00"); /* now it is an I/O event */
        EXPECT_ANSWER(&rig, "\x0a\x0b\x08\x07\x12\x07\x10\x80\x0e\x18\x01\x20\x0a", "\x08\x22\x12\x00"); /* another 7: EEXIST */
        EXPECT_ANSWER(&rig, "\xaa\x06\x02\x08\x07", "\x08\x04\xaa\x06\x00"); /* the dirty log of that: ENOENT */
        EXPECT_ANSWER(&rig, "\x12\x02\x08\x07", "\x1a\x00");
        EXPECT_ANSWER(&rig, "\x12\x02\x08\x07", "\x08\x04\x1a\x00");
        EXPECT_ANSWER(&rig, "\x0a\x04\x08\x08\x1a\x00", "\x08\x12\x12\x00"); /* memory without a descriptor: EBADF */
        EXPECT_ANSWER(&rig, "\x0a\x02\x08\x09", "\x08\x32\x12\x00"); /* an object of no kind: ENOTTY */
        EXPECT_ANSWER(&rig, "\x92\x03\x00", "\x08\x32"); /* a request that does not exist */
        EXPECT_ANSWER(&rig, "\x6a\x02\x08\x05", "\x08\x2c\x72\x00"); /* a state that does not exist: EINVAL */
        EXPECT_ANSWER(&rig, "\x52\x04\x08\x02\x18\x01", "\x08\x2c\x5a\x00"); /* a space that does not exist */
        assert_null(rig.ended);
        rig_end(&rig);
}

static size_t count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        size_t n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n;
}

static void keeps_no_descriptor_that_it_did_not_ask_for(void **state) {
        int fds[100];
        size_t before;
        PluginRig rig;
        char buffer[64];

        rig_begin(&rig, 1, NULL);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                fds[i] = rig.fd;
        EXPECT_ANSWER(&rig, "\x2a\x00", "\x32\x02\x08\x01"); /* check_extension: 0, interrupt controllers, is there */
        before = count_fds();
        for (unsigned i = 0; i < 100; i++) {
                assert_true(send_with_fds(rig.fd, "\x2a", 2, fds, ELEMENTSOF(fds)) > 0);
                assert_true(recv(rig.fd, buffer, sizeof(buffer), 0) > 0);
        }
        EXPECT_ANSWER(&rig, "\x2a\x00", "\x32\x02\x08\x01");
        assert_int_equal(count_fds(), before);
        rig_end(&rig);
}

static void starts_once_and_has_no_more_connections_then(void **state) {
        struct crosvm *other = NULL, *late = NULL;
        struct crosvm_vcpu *vcpu = NULL;
        PluginRig rig;

        rig_begin(&rig, 2, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_new_connection(rig.crosvm, &other), 0);
        assert_int_equal(crosvm_reserve_range(other, CROSVM_ADDRESS_SPACE_IOPORT, 1, 1), 0);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 1, 1), -EPERM);
        assert_int_equal(crosvm_get_vcpu(other, 1, &vcpu), 0);
        assert_int_equal(crosvm_get_vcpu(other, 2, &vcpu), -ENOENT);
        assert_int_equal(crosvm_start(other), 0);
        assert_int_equal(crosvm_start(rig.crosvm), -EINVAL);
        assert_int_equal(crosvm_new_connection(rig.crosvm, &late), -EINVAL);
        assert_null(late);
        assert_int_equal(crosvm_destroy_connection(&other), 0);
        assert_null(rig.ended);
        rig_end(&rig);
}

static void answers_nothing_else_before_the_first_wait(void **state) {
        struct crosvm_vcpu *vcpu = NULL;
        struct kvm_regs regs;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_get_vcpu(rig.crosvm, 0, &vcpu), 0);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), -EPROTO);
        rig_set_up_vcpu(vcpu, 0);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        assert_int_equal(regs.rip, RIG_CODE);
        rig_end(&rig);
}

static void has_so_many_connections(void **state) {
        struct crosvm *others[64] = {};
        size_t n = 0;
        PluginRig rig;
        int r;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        do
                r = crosvm_new_connection(rig.crosvm, &others[n++]);
        while (r >= 0 && n < ELEMENTSOF(others));
        assert_int_equal(r, -EMFILE);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(crosvm_destroy_connection(&others[i]), 0);
        assert_null(rig.ended);
        rig_end(&rig);
}

/* --- what KVM can do --- */

static void says_what_kvm_can_do(void **state) {
        struct kvm_cpuid_entry2 entries[512];
        uint32_t msrs[4096], n = 0, again = 0;
        bool has = false;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_check_extension(rig.crosvm, KVM_CAP_IRQCHIP, &has), 0);
        assert_true(has);
        assert_int_equal(crosvm_check_extension(rig.crosvm, 0x7fffffff, &has), 0);
        assert_false(has);

        assert_int_equal(crosvm_get_supported_cpuid(rig.crosvm, 0, entries, &n), -E2BIG);
        assert_in_range(n, 10, 512);
        assert_int_equal(crosvm_get_supported_cpuid(rig.crosvm, n, entries, &again), 0);
        assert_int_equal(again, n);
        assert_int_equal(entries[0].function, 0);
        assert_int_not_equal(entries[0].ebx, 0);
        assert_int_equal(crosvm_get_emulated_cpuid(rig.crosvm, 512, entries, &n), 0);
        assert_in_range(n, 1, 512);

        assert_int_equal(crosvm_get_msr_index_list(rig.crosvm, 1, msrs, &n), -E2BIG);
        assert_in_range(n, 10, 4096);
        assert_int_equal(crosvm_get_msr_index_list(rig.crosvm, n, msrs, &again), 0);
        assert_int_equal(again, n);
        rig_end(&rig);
}

static void hands_out_the_network(void **state) {
        const PluginNetwork network = { .tap_fd = STDERR_FILENO, .host_ip = 0x055c7364, .netmask = 0xfcffffff,
                                        .host_mac = { 0xde, 0x21, 0xe8, 0x47, 0x6b, 0x6a } };
        struct crosvm_net_config config;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_net_get_config(rig.crosvm, &config), -ENODATA);
        rig_end(&rig);

        rig_begin(&rig, 1, &network);
        rig_connect(&rig);
        assert_int_equal(crosvm_net_get_config(rig.crosvm, &config), 0);
        assert_int_equal(config.host_ip, network.host_ip);
        assert_int_equal(config.netmask, network.netmask);
        assert_memory_equal(config.host_mac_address, network.host_mac, 6);
        assert_int_equal(fcntl(config.tap_fd, F_GETFD), FD_CLOEXEC);
        assert_int_equal(close(config.tap_fd), 0);
        rig_end(&rig);
}

static void keeps_the_state_of_the_platform(void **state) {
        struct kvm_ioapic_state ioapic;
        struct kvm_clock_data clock;
        struct kvm_pic_state pic;
        struct kvm_pit_state2 pit;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        for (unsigned primary = 0; primary < 2; primary++) {
                assert_int_equal(crosvm_get_pic_state(rig.crosvm, primary, &pic), 0);
                pic.imr = primary ? 0x5a : 0xa5;
                assert_int_equal(crosvm_set_pic_state(rig.crosvm, primary, &pic), 0);
        }
        assert_int_equal(crosvm_get_pic_state(rig.crosvm, true, &pic), 0);
        assert_int_equal(pic.imr, 0x5a);
        assert_int_equal(crosvm_get_pic_state(rig.crosvm, false, &pic), 0);
        assert_int_equal(pic.imr, 0xa5);
        assert_int_equal(crosvm_get_ioapic_state(rig.crosvm, &ioapic), 0);
        ioapic.redirtbl[5].fields.vector = 0x77;
        assert_int_equal(crosvm_set_ioapic_state(rig.crosvm, &ioapic), 0);
        ioapic.redirtbl[5].fields.vector = 0;
        assert_int_equal(crosvm_get_ioapic_state(rig.crosvm, &ioapic), 0);
        assert_int_equal(ioapic.redirtbl[5].fields.vector, 0x77);
        assert_int_equal(crosvm_get_pit_state(rig.crosvm, &pit), 0);
        pit.channels[0].count = 500;
        pit.channels[0].mode = 2;
        assert_int_equal(crosvm_set_pit_state(rig.crosvm, &pit), 0);
        pit.channels[0].mode = 0;
        assert_int_equal(crosvm_get_pit_state(rig.crosvm, &pit), 0);
        assert_int_equal(pit.channels[0].mode, 2);
        assert_int_equal(crosvm_get_clock(rig.crosvm, &clock), 0);
        clock = (struct kvm_clock_data) { .clock = UINT64_C(3600) * 1000000000 };
        assert_int_equal(crosvm_set_clock(rig.crosvm, &clock), 0);
        assert_int_equal(crosvm_get_clock(rig.crosvm, &clock), 0);
        assert_true(clock.clock >= UINT64_C(3600) * 1000000000);
        assert_int_equal(crosvm_set_identity_map_addr(rig.crosvm, 0xfffbc000), 0);
        rig_end(&rig);
}

/* --- guests --- */

typedef struct Adder {
        struct crosvm_vcpu *vcpu;
        uint8_t a, b, sum;
} Adder;

static void *adder_thread(void *userdata) {
        struct crosvm_vcpu_event event;
        Adder *adder = userdata;

        rig_set_up_vcpu(adder->vcpu, 0);
        assert_int_equal(crosvm_vcpu_resume(adder->vcpu), 0);
        expect_port(adder->vcpu, &event, PORT, false);
        *event.io_access.data = adder->a;
        assert_int_equal(crosvm_vcpu_resume(adder->vcpu), 0);
        expect_port(adder->vcpu, &event, PORT, false);
        *event.io_access.data = adder->b;
        assert_int_equal(crosvm_vcpu_resume(adder->vcpu), 0);
        expect_port(adder->vcpu, &event, PORT, true);
        adder->sum = *event.io_access.data;
        assert_int_equal(crosvm_vcpu_resume(adder->vcpu), 0);
        expect_port(adder->vcpu, &event, QUIT, true);
        return NULL;
}

static void add_on(unsigned n) {
        pthread_t threads[4];
        Adder adders[4];
        PluginRig rig;

        rig_begin(&rig, n, NULL);
        rig_connect(&rig);
        rig_add_memory(&rig, plugin_add, plugin_add_end, false);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 2), 0);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        for (unsigned i = 0; i < n; i++) {
                adders[i] = (Adder) { .a = (uint8_t) (3 * i + 1), .b = (uint8_t) (50 * i) };
                assert_int_equal(crosvm_get_vcpu(rig.crosvm, i, &adders[i].vcpu), 0);
                assert_int_equal(pthread_create(&threads[i], NULL, adder_thread, &adders[i]), 0);
        }
        for (unsigned i = 0; i < n; i++) {
                assert_int_equal(pthread_join(threads[i], NULL), 0);
                assert_int_equal(adders[i].sum, (uint8_t) (adders[i].a + adders[i].b));
        }
        rig_end(&rig);
}

static void adds_two_numbers_through_ports(void **state) {
        add_on(1);
}

static void adds_on_four_vcpus_at_once(void **state) {
        add_on(4);
}

static void sees_accesses_of_every_width(void **state) {
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        uint32_t got = 0;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_widths, plugin_widths_end, false);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_MMIO, MMIO, 0x1000), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_IOPORT, PORT, true, 2);
        assert_memory_equal(event.io_access.data, "\x11\x22", 2);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_IOPORT, PORT, false, 4);
        memcpy(event.io_access.data, "wxyz", 4);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        /* KVM gives a string as one exit or as several. */
        while (got < 5) {
                assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
                assert_int_equal(event.io_access.address, PORT);
                assert_false(event.io_access.is_write);
                assert_in_range(event.io_access.length, 1, 5 - got);
                memcpy(event.io_access.data, &"hello"[got], event.io_access.length);
                got += event.io_access.length;
                assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        }
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_MMIO, MMIO + 0x10, true, 2);
        assert_memory_equal(event.io_access.data, "\x66\x55", 2);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_MMIO, MMIO + 0x20, false, 1);
        *event.io_access.data = 0x99;
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, QUIT, true);
        assert_memory_equal(rig.bytes + 0x9000, "wxyz", 4);
        assert_memory_equal(rig.bytes + 0x9010, "hello", 5);
        assert_int_equal(rig.bytes[0x9020], 0x99);
        assert_int_equal(rig.bytes[0x9021], 0); /* nobody is there */
        rig_end(&rig);
}

static void tells_of_writes_without_stopping(void **state) {
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_tell, plugin_tell_end, false);
        assert_int_equal(crosvm_reserve_async_write_range(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x600, 1), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        for (uint8_t i = 1; i <= 3; i++) {
                expect_port(vcpu, &event, 0x600, true);
                assert_int_equal(event.io_access.no_resume, 1);
                assert_int_equal(*event.io_access.data, i);
        }
        expect_port(vcpu, &event, QUIT, true);
        assert_int_equal(event.io_access.no_resume, 0);
        assert_int_equal(*event.io_access.data, 0); /* the read found nobody */
        rig_end(&rig);
}

static void pauses_a_vcpu_that_runs(void **state) {
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        int marks[2];
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_spin, plugin_spin_end, false);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        for (unsigned i = 0; i < 20; i++) {
                assert_int_equal(crosvm_pause_vcpus(rig.crosvm, 1, &marks[i % 2]), 0);
                assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
                assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_PAUSED);
                assert_ptr_equal(event.user, &marks[i % 2]);
                assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        }
        /* A vCPU that is not there is nobody's. */
        assert_int_equal(crosvm_pause_vcpus(rig.crosvm, 2, NULL), 0);
        rig_end(&rig);
}

/* People pause the machine while the plugin answers the first half of an access; the plugin has its own wish while it answers the second, when
 * the vCPU is just parking. */
static void pauses_a_vcpu_that_is_paused_already(void **state) {
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        PluginRig rig;
        int mark;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_cross, plugin_cross_end, false);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_MMIO, MMIO, 0x2000), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_MMIO, MMIO + 0xffe, true, 2);
        vcpu_set_pause(&rig.vcpus);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_access(vcpu, &event, CROSVM_ADDRESS_SPACE_MMIO, MMIO + 0x1000, true, 2);
        assert_int_equal(crosvm_pause_vcpus(rig.crosvm, 1, &mark), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        vcpu_set_resume(&rig.vcpus, false);
        assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
        assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_PAUSED);
        assert_ptr_equal(event.user, &mark);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        rig_end(&rig);
}

static void pauses_those_that_are_named(void **state) {
        struct crosvm_vcpu *vcpus[4];
        struct crosvm_vcpu_event event;
        int mark;
        PluginRig rig;

        rig_begin(&rig, 4, NULL);
        rig_connect(&rig);
        rig_add_memory(&rig, plugin_spin, plugin_spin_end, false);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        for (unsigned i = 0; i < 4; i++) {
                assert_int_equal(crosvm_get_vcpu(rig.crosvm, i, &vcpus[i]), 0);
                rig_set_up_vcpu(vcpus[i], 0);
                assert_int_equal(crosvm_vcpu_resume(vcpus[i]), 0);
        }
        /* The first event of each that was not named is of the second request. */
        assert_int_equal(crosvm_pause_vcpus(rig.crosvm, 0xa, &mark), 0);
        for (unsigned i = 1; i < 4; i += 2) {
                assert_int_equal(crosvm_vcpu_wait(vcpus[i], &event), 0);
                assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_PAUSED);
                assert_ptr_equal(event.user, &mark);
        }
        assert_int_equal(crosvm_pause_vcpus(rig.crosvm, 0x5, NULL), 0);
        for (unsigned i = 0; i < 4; i += 2) {
                assert_int_equal(crosvm_vcpu_wait(vcpus[i], &event), 0);
                assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_PAUSED);
                assert_null(event.user);
        }
        rig_end(&rig);
}

static void logs_the_pages_that_are_written(void **state) {
        struct crosvm_memory *unlogged = NULL;
        _cleanup_close_ int fd = rig_memfd(0x1000);
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        uint8_t log[RIG_MEMORY / 4096 / 8 + 1];
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_dirty, plugin_dirty_end, true);
        assert_int_equal(crosvm_create_memory(rig.crosvm, fd, 0, 0x1000, 0x100000, false, false, &unlogged), 0);
        assert_int_equal(crosvm_memory_get_dirty_log(rig.crosvm, unlogged, log), -ENOENT);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        memset(log, 0xee, sizeof(log));
        assert_int_equal(crosvm_memory_get_dirty_log(rig.crosvm, rig.memory, log), 0);
        assert_int_equal(log[0] & 0x68, 0x28);
        assert_int_equal(log[RIG_MEMORY / 4096 / 8], 0xee); /* no byte more than there are pages for */
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(crosvm_memory_get_dirty_log(rig.crosvm, rig.memory, log), 0);
        assert_int_equal(log[0] & 0x68, 0x40);
        assert_int_equal(crosvm_destroy_memory(rig.crosvm, &unlogged), 0);
        rig_end(&rig);
}

static void signals_writes_by_eventfd(void **state) {
        struct crosvm_io *any = NULL, *nine = NULL, *same = NULL;
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        uint64_t count;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_kick, plugin_kick_end, false);
        assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x700, 1, (const uint8_t *) "\x09", &nine), 0);
        assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x700, 1, (const uint8_t *) "\x09", &same), -EEXIST);
        assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_MMIO, 0x800, 0, NULL, &any), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, QUIT, true);
        expect_signal(crosvm_io_event_fd(nine));
        assert_false(is_signalled(crosvm_io_event_fd(any)));
        assert_int_equal(crosvm_destroy_io_event(rig.crosvm, &nine), 0);
        assert_int_equal(crosvm_destroy_io_event(rig.crosvm, &any), 0);
        assert_null(nine);

        /* Both writes, whatever they are. */
        assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x700, 4, NULL, &any), 0);
        assert_int_equal(crosvm_vcpu_set_regs(vcpu, &(struct kvm_regs) { .rip = RIG_CODE, .rflags = 2 }), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, QUIT, true);
        assert_int_equal(read(crosvm_io_event_fd(any), &count, sizeof(count)), sizeof(count));
        assert_int_equal(count, 2);
        assert_int_equal(crosvm_destroy_io_event(rig.crosvm, &any), 0);
        rig_end(&rig);
}

static void interrupts_and_hears_when_they_are_done(void **state) {
        struct crosvm_vcpu_event event;
        struct crosvm_irq *irq = NULL, *other = NULL;
        struct crosvm_vcpu *vcpu;
        uint64_t one = 1;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_irq, plugin_irq_end, false);
        assert_int_equal(crosvm_create_irq_event(rig.crosvm, 3, &irq), 0);
        assert_int_not_equal(crosvm_irq_event_get_fd(irq), crosvm_irq_event_get_resample_fd(irq));
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, QUIT, true); /* interrupts are on */
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(write(crosvm_irq_event_get_fd(irq), &one, sizeof(one)), sizeof(one));
                expect_port(vcpu, &event, PORT, true);
                assert_false(is_signalled(crosvm_irq_event_get_resample_fd(irq)));
                assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
                expect_signal(crosvm_irq_event_get_resample_fd(irq));
        }
        assert_int_equal(crosvm_destroy_irq_event(rig.crosvm, &irq), 0);
        assert_int_equal(crosvm_create_irq_event(rig.crosvm, 4, &other), 0);
        assert_int_equal(crosvm_destroy_irq_event(rig.crosvm, &other), 0);

        /* A line by hand, which is an edge to the PIC. */
        assert_int_equal(crosvm_set_irq(rig.crosvm, 3, true), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(crosvm_set_irq(rig.crosvm, 3, false), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        rig_end(&rig);
}

static void routes_interrupts_anew(void **state) {
        struct crosvm_irq_route routes[] = {
                { .irq_id = 3, .kind = CROSVM_IRQ_ROUTE_IRQCHIP, .irqchip = { .irqchip = KVM_IRQCHIP_PIC_MASTER, .pin = 5 } },
                { .irq_id = 24, .kind = CROSVM_IRQ_ROUTE_MSI, .msi = { .address = 0xfee00000, .data = 0x41 } },
        };
        struct kvm_pic_state pic;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, ELEMENTSOF(routes), routes), 0);
        assert_int_equal(crosvm_set_irq(rig.crosvm, 3, true), 0);
        assert_int_equal(crosvm_get_pic_state(rig.crosvm, true, &pic), 0);
        assert_int_equal(pic.irr & 0x28, 0x20);
        routes[1].kind = 2;
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, ELEMENTSOF(routes), routes), -EINVAL);
        routes[0].irqchip.pin = 99;
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, 1, routes), -EINVAL);
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, 0, NULL), 0);
        rig_end(&rig);
}

/* A route to the vCPU's own controller, whose request register shows what came. */
static void delivers_messages_to_a_vcpu(void **state) {
        const struct crosvm_irq_route route = { .irq_id = 24, .kind = CROSVM_IRQ_ROUTE_MSI, .msi = { .address = 0xfee00000, .data = 0x41 } };
        struct kvm_lapic_state lapic;
        struct crosvm_irq *irq = NULL;
        struct crosvm_vcpu *vcpu;
        uint64_t one = 1;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_spin, plugin_spin_end, false);
        assert_int_equal(crosvm_vcpu_get_lapic_state(vcpu, &lapic), 0);
        lapic.regs[0xf1] |= 1; /* enabled by software */
        assert_int_equal(crosvm_vcpu_set_lapic_state(vcpu, &lapic), 0);
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, 1, &route), 0);
        assert_int_equal(crosvm_set_irq(rig.crosvm, 24, true), 0);
        assert_int_equal(crosvm_vcpu_get_lapic_state(vcpu, &lapic), 0);
        assert_int_equal(lapic.regs[0x220] & 0x2, 0x2);

        /* And by an eventfd; 24 has another vector now. */
        assert_int_equal(crosvm_set_irq_routing(rig.crosvm, 1, &(struct crosvm_irq_route) {
                .irq_id = 24, .kind = CROSVM_IRQ_ROUTE_MSI, .msi = { .address = 0xfee00000, .data = 0x42 } }), 0);
        assert_int_equal(crosvm_create_irq_event(rig.crosvm, 24, &irq), 0);
        assert_int_equal(write(crosvm_irq_event_get_fd(irq), &one, sizeof(one)), sizeof(one));
        for (unsigned i = 0; i < 60000 && !(lapic.regs[0x220] & 0x4); i++) { /* a work queue of KVM's carries it */
                if (i > 0)
                        (void) usleep(1000);
                assert_int_equal(crosvm_vcpu_get_lapic_state(vcpu, &lapic), 0);
        }
        assert_int_equal(lapic.regs[0x220] & 0x6, 0x6);
        assert_int_equal(crosvm_destroy_irq_event(rig.crosvm, &irq), 0);
        rig_end(&rig);
}

/* Writes to memory that is read-only are the plugin's. */
static void answers_writes_to_memory_that_is_read_only(void **state) {
        struct crosvm_memory *rom = NULL;
        _cleanup_close_ int fd = rig_memfd(0x1000);
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        PluginRig rig;

        assert_int_equal(pwrite(fd, "\x99", 1, 0x20), 1);
        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_widths, plugin_widths_end, false);
        assert_int_equal(crosvm_create_memory(rig.crosvm, fd, 0, 0x1000, MMIO, true, false, &rom), 0);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_MMIO, MMIO, 0x1000), 0);
        do { /* through the ports, to the write */
                assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
                assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
        } while (event.io_access.address_space == CROSVM_ADDRESS_SPACE_IOPORT && event.io_access.address == PORT);
        assert_int_equal(event.io_access.address_space, CROSVM_ADDRESS_SPACE_MMIO);
        assert_int_equal(event.io_access.address, MMIO + 0x10);
        assert_true(event.io_access.is_write);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, QUIT, true);
        assert_int_equal(rig.bytes[0x9020], 0x99); /* and reads are the memory's */
        assert_int_equal(crosvm_destroy_memory(rig.crosvm, &rom), 0);
        rig_end(&rig);
}

/* --- a vCPU's state --- */

static void keeps_the_state_of_a_vcpu(void **state) {
        struct kvm_lapic_state lapic;
        struct kvm_debugregs debugregs;
        struct kvm_vcpu_events events;
        struct kvm_mp_state mp;
        struct kvm_regs regs;
        struct kvm_xcrs xcrs;
        struct kvm_fpu fpu;
        struct crosvm_vcpu *vcpu;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_spin, plugin_spin_end, false);
        assert_int_equal(crosvm_vcpu_get_fpu(vcpu, &fpu), 0);
        fpu.fcw = 0x27f;
        assert_int_equal(crosvm_vcpu_set_fpu(vcpu, &fpu), 0);
        fpu.fcw = 0;
        assert_int_equal(crosvm_vcpu_get_fpu(vcpu, &fpu), 0);
        assert_int_equal(fpu.fcw, 0x27f);
        assert_int_equal(crosvm_vcpu_get_debugregs(vcpu, &debugregs), 0);
        debugregs.db[0] = 0x1234;
        assert_int_equal(crosvm_vcpu_set_debugregs(vcpu, &debugregs), 0);
        debugregs.db[0] = 0;
        assert_int_equal(crosvm_vcpu_get_debugregs(vcpu, &debugregs), 0);
        assert_int_equal(debugregs.db[0], 0x1234);
        assert_int_equal(crosvm_vcpu_get_xcrs(vcpu, &xcrs), 0);
        assert_int_equal(crosvm_vcpu_set_xcrs(vcpu, &xcrs), 0);
        assert_int_equal(crosvm_vcpu_get_lapic_state(vcpu, &lapic), 0);
        lapic.regs[0x80] = 0x30; /* task priority */
        assert_int_equal(crosvm_vcpu_set_lapic_state(vcpu, &lapic), 0);
        lapic.regs[0x80] = 0;
        assert_int_equal(crosvm_vcpu_get_lapic_state(vcpu, &lapic), 0);
        assert_int_equal((uint8_t) lapic.regs[0x80], 0x30);
        assert_int_equal(crosvm_vcpu_get_mp_state(vcpu, &mp), 0);
        assert_int_equal(mp.mp_state, KVM_MP_STATE_RUNNABLE);
        assert_int_equal(crosvm_vcpu_get_vcpu_events(vcpu, &events), 0);
        assert_int_equal(crosvm_vcpu_set_vcpu_events(vcpu, &events), 0);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        assert_int_equal(regs.rip, RIG_CODE);
        rig_end(&rig);
}

/* KVM takes less than 256 MSRs at once. */
static void takes_lists_that_are_as_long_as_they_may_be(void **state) {
        static struct kvm_msr_entry msrs[4097];
        static struct kvm_cpuid_entry2 entries[513];
        struct crosvm_vcpu *vcpu;
        PluginRig rig;
        uint32_t n = 0;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_spin, plugin_spin_end, false);
        for (size_t i = 0; i < ELEMENTSOF(msrs); i++)
                msrs[i] = (struct kvm_msr_entry) { .index = 0x174, .data = UINT64_MAX - i };
        assert_int_equal(crosvm_vcpu_set_msrs(vcpu, 255, msrs), 0);
        assert_int_equal(crosvm_vcpu_set_msrs(vcpu, 256, msrs), -E2BIG);
        assert_int_equal(crosvm_vcpu_get_msrs(vcpu, 255, msrs, &n), 0);
        assert_int_equal(n, 255);
        assert_int_equal(msrs[254].data, msrs[0].data);
        assert_int_equal(crosvm_vcpu_set_msrs(vcpu, 4097, msrs), -E2BIG);
        assert_int_equal(crosvm_vcpu_get_msrs(vcpu, 4097, msrs, &n), -E2BIG);
        assert_int_equal(n, 0);
        assert_int_equal(crosvm_vcpu_set_cpuid(vcpu, 513, entries), -E2BIG);
        rig_end(&rig);
}

static void sets_msrs_cpuid_and_capabilities(void **state) {
        struct kvm_msr_entry msrs[2] = { { .index = 0x174, .data = 0x77 }, { .index = 0x175, .data = 0x88 } };
        struct kvm_cpuid_entry2 entries[512];
        uint64_t arguments[4] = { 1 };
        struct crosvm_vcpu *vcpu;
        uint32_t n = 0;
        PluginRig rig;
        bool has;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_spin, plugin_spin_end, false);
        assert_int_equal(crosvm_get_supported_cpuid(rig.crosvm, ELEMENTSOF(entries), entries, &n), 0);
        assert_int_equal(crosvm_vcpu_set_cpuid(vcpu, n, entries), 0);
        assert_int_equal(crosvm_vcpu_set_msrs(vcpu, 2, msrs), 0);
        msrs[0].data = msrs[1].data = 0;
        assert_int_equal(crosvm_vcpu_get_msrs(vcpu, 2, msrs, &n), 0);
        assert_int_equal(n, 2);
        assert_int_equal(msrs[0].data, 0x77);
        assert_int_equal(msrs[1].data, 0x88);
        msrs[1].index = 0xdead0000;
        assert_int_equal(crosvm_vcpu_get_msrs(vcpu, 2, msrs, &n), 0);
        assert_int_equal(n, 1);

        assert_int_equal(crosvm_vcpu_enable_capability(vcpu, KVM_CAP_HYPERV_SYNIC, 0, arguments), -EINVAL);
        arguments[0] = 0;
        assert_int_equal(crosvm_vcpu_enable_capability(vcpu, KVM_CAP_HYPERV_SYNIC, 1, arguments), -EINVAL);
        assert_int_equal(crosvm_vcpu_enable_capability(vcpu, KVM_CAP_IRQCHIP, 0, arguments), -EINVAL);
        assert_int_equal(crosvm_check_extension(rig.crosvm, KVM_CAP_HYPERV_CPUID, &has), 0);
        if (has) {
                assert_int_equal(crosvm_get_hyperv_cpuid(vcpu, 0, entries, &n), -E2BIG);
                assert_int_equal(crosvm_get_hyperv_cpuid(vcpu, ELEMENTSOF(entries), entries, &n), 0);
                assert_int_equal(entries[0].function, 0x40000000);
        } else
                assert_int_equal(crosvm_get_hyperv_cpuid(vcpu, ELEMENTSOF(entries), entries, &n), -EINVAL);
        rig_end(&rig);
}

/* Registers set while a vCPU stands are its own when it goes on, or are asked for; and what a hint brought is not asked for again. */
static void defers_registers_and_sends_hinted_ones_along(void **state) {
        struct crosvm_hint_detail details[] = { { .match_rax = true, .rax = 0x99, .send_debugregs = true },
                                                { .match_rcx = true, .rcx = 0, .send_sregs = true } };
        struct crosvm_hint hint = { .address_space = CROSVM_ADDRESS_SPACE_IOPORT, .address = PORT, .details = details, .details_count = 2,
                                    .address_flags = CROSVM_HINT_ON_WRITE };
        struct crosvm_vcpu_event event;
        struct kvm_debugregs debugregs;
        struct kvm_sregs sregs;
        struct kvm_regs regs;
        struct crosvm_vcpu *vcpu;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        vcpu = run_guest(&rig, plugin_say, plugin_say_end, false);
        assert_int_equal(crosvm_set_hypercall_hint(rig.crosvm, 1, &hint), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        assert_int_equal(regs.rdx, PORT);
        assert_int_equal(crosvm_vcpu_get_sregs(vcpu, &sregs), 0);
        assert_int_equal(sregs.cs.base, 0);

        /* Set, and asked for: it is the vCPU's that is seen, with what KVM makes of it. */
        regs.rax = 0x42;
        regs.rflags = 0;
        assert_int_equal(crosvm_vcpu_set_regs(vcpu, &regs), 0);
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        assert_int_equal(regs.rax, 0x42);
        assert_int_equal(regs.rflags, 2);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(*event.io_access.data, 0x42);

        /* Set, and resumed with. */
        assert_int_equal(crosvm_vcpu_get_regs(vcpu, &regs), 0);
        regs.rax = 0x99;
        assert_int_equal(crosvm_vcpu_set_regs(vcpu, &regs), 0);
        assert_int_equal(crosvm_vcpu_get_debugregs(vcpu, &debugregs), 0);
        debugregs.db[1] = 0x4321;
        assert_int_equal(crosvm_vcpu_set_debugregs(vcpu, &debugregs), 0);
        assert_int_equal(crosvm_vcpu_set_sregs(vcpu, &sregs), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(*event.io_access.data, 0x99);
        memset(&debugregs, 0, sizeof(debugregs));
        assert_int_equal(crosvm_vcpu_get_debugregs(vcpu, &debugregs), 0);
        assert_int_equal(debugregs.db[1], 0x4321);
        rig_end(&rig);
}

/* Not what the manual says to do, but plugins of crosvm's may: they were not told. */
static void keeps_registers_that_are_set_too_early(void **state) {
        const struct kvm_regs regs = { .rip = RIG_CODE, .rflags = 2, .rax = 0x42 };
        struct crosvm_vcpu_event event;
        struct crosvm_vcpu *vcpu;
        struct kvm_sregs sregs;
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        rig_add_memory(&rig, plugin_say, plugin_say_end, false);
        assert_int_equal(crosvm_reserve_range(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 1), 0);
        assert_int_equal(crosvm_get_vcpu(rig.crosvm, 0, &vcpu), 0);
        assert_int_equal(crosvm_start(rig.crosvm), 0);
        assert_int_equal(crosvm_vcpu_set_regs(vcpu, &regs), 0);
        assert_int_equal(crosvm_vcpu_wait(vcpu, &event), 0);
        assert_int_equal(event.kind, CROSVM_VCPU_EVENT_KIND_INIT);
        assert_int_equal(crosvm_vcpu_get_sregs(vcpu, &sregs), 0);
        sregs.cs.base = sregs.cs.selector = 0;
        assert_int_equal(crosvm_vcpu_set_sregs(vcpu, &sregs), 0);
        assert_int_equal(crosvm_vcpu_resume(vcpu), 0);
        expect_port(vcpu, &event, PORT, true);
        assert_int_equal(*event.io_access.data, 0x42);
        rig_end(&rig);
}

/* --- the end --- */

static void asks_the_plugin_to_exit(void **state) {
        PluginRig rig;
        int fd;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        fd = crosvm_get_shutdown_eventfd(rig.crosvm);
        assert_true(fd >= 0);
        assert_false(is_signalled(fd));
        plugin_ask_to_exit(rig.plugin);
        expect_signal(fd);
        (void) close(fd);
        rig_end(&rig);
}

static void ends_the_machine_of_a_plugin_that_leaves(void **state) {
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        rig_connect(&rig);
        assert_int_equal(crosvm_destroy_connection(&rig.crosvm), 0);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin is of no use any more: it closed its connection.");
        rig_end(&rig);
}

static void ends_the_machine_of_a_plugin_that_talks_nonsense(void **state) {
        static const uint8_t garbage[] = { 0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3 };
        PluginRig rig;

        rig_begin(&rig, 1, NULL);
        assert_int_equal(send(rig.fd, garbage, sizeof(garbage), MSG_NOSIGNAL), sizeof(garbage));
        assert_string_equal(rig_wait_for_end(&rig),
                "The plugin is of no use any more: it sent what is no request of the plugin protocol.");
        rig_end(&rig);
}

static void ends_the_machine_of_a_plugin_that_does_not_read(void **state) {
        static const uint8_t get_cpuid[] = { 0x32, 0x00 }; /* the field get_supported_cpuid, empty */
        PluginRig rig;
        ssize_t n;

        rig_begin(&rig, 1, NULL);
        do
                n = send(rig.fd, get_cpuid, sizeof(get_cpuid), MSG_NOSIGNAL);
        while (n > 0);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin is of no use any more: it does not read its answers.");
        rig_end(&rig);
}

/* The pipes of vCPU 0, taken by hand: the first is where a plugin writes. */
static void take_pipes(PluginRig *rig, int ret[2]) {
        static const uint8_t get_vcpus[] = { 0x8a, 0x01, 0x00 }, start[] = { 0x92, 0x01, 0x00 };
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(2 * sizeof(int))];
        } control;
        char buffer[64];
        struct iovec iov = { .iov_base = buffer, .iov_len = sizeof(buffer) };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };

        assert_int_equal(send(rig->fd, get_vcpus, sizeof(get_vcpus), 0), sizeof(get_vcpus));
        assert_true(recvmsg(rig->fd, &message, MSG_CMSG_CLOEXEC) > 0);
        assert_int_equal(message.msg_controllen, CMSG_SPACE(2 * sizeof(int)));
        memcpy(ret, CMSG_DATA(&control.header), 2 * sizeof(int));
        assert_int_equal(send(rig->fd, start, sizeof(start), 0), sizeof(start));
        assert_true(recv(rig->fd, buffer, sizeof(buffer), 0) > 0);
}

static void ends_the_machine_where_a_pipe_is_closed(void **state) {
        PluginRig rig;
        int pipes[2];

        rig_begin(&rig, 1, NULL);
        take_pipes(&rig, pipes);
        (void) close(pipes[0]);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin lets vCPU 0 down: it closed their pipe.");
        (void) close(pipes[1]);
        rig_end(&rig);
}

static void ends_the_machine_where_a_pipe_carries_nonsense(void **state) {
        PluginRig rig;
        int pipes[2];

        rig_begin(&rig, 1, NULL);
        take_pipes(&rig, pipes);
        assert_int_equal(write(pipes[0], "\x0a\xff\xff\xff\xff\x0f", 6), 6);
        assert_string_equal(rig_wait_for_end(&rig), "The plugin lets vCPU 0 down: it sent what is no request of the plugin protocol.");
        (void) close(pipes[0]);
        (void) close(pipes[1]);
        rig_end(&rig);
}

static size_t count_maps(void) {
        FILE *f = fopen("/proc/self/maps", "re");
        char line[512];
        size_t n = 0;

        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                n += strstr(line, "/memfd:") || strstr(line, "anon_inode:kvm");
        (void) fclose(f);
        return n;
}

/* A plugin that leaves without having destroyed anything. */
static void leaves_nothing_behind(void **state) {
        size_t fds = count_fds(), maps = count_maps();

        for (unsigned i = 0; i < 3; i++) {
                struct crosvm *other = NULL;
                struct crosvm_irq *irq = NULL;
                struct crosvm_io *io = NULL;
                PluginRig rig;

                rig_begin(&rig, 2, NULL);
                rig_connect(&rig);
                rig_add_memory(&rig, plugin_spin, plugin_spin_end, true);
                for (unsigned j = 0; j < 5; j++) {
                        assert_int_equal(crosvm_new_connection(rig.crosvm, &other), 0);
                        assert_int_equal(crosvm_destroy_connection(&other), 0);
                }
                assert_int_equal(crosvm_create_irq_event(rig.crosvm, 3, &irq), 0);
                assert_int_equal(crosvm_create_io_event(rig.crosvm, CROSVM_ADDRESS_SPACE_IOPORT, 0x700, 0, NULL, &io), 0);
                assert_int_equal(crosvm_start(rig.crosvm), 0);
                assert_int_equal(close(crosvm_irq_event_get_fd(irq)), 0);
                assert_int_equal(close(crosvm_irq_event_get_resample_fd(irq)), 0);
                assert_int_equal(close(crosvm_io_event_fd(io)), 0);
                free(irq);
                free(io);
                rig_end(&rig);
        }
        assert_int_equal(count_fds(), fds);
        assert_int_equal(count_maps(), maps);
}

/* Nobody waits for one that says nothing: rig_end() has the vCPU's thread out of its read, and out of its write where the pipe is full. */
static void leaves_a_plugin_that_hangs(void **state) {
        static const uint8_t wait_request[] = { 0x0a, 0x00 };
        PluginRig rig;
        int pipes[2];

        rig_begin(&rig, 1, NULL);
        take_pipes(&rig, pipes);
        rig_end(&rig);
        (void) close(pipes[0]);
        (void) close(pipes[1]);

        /* Each further wait is answered by an error that nobody reads. */
        rig_begin(&rig, 1, NULL);
        take_pipes(&rig, pipes);
        assert_int_equal(fcntl(pipes[0], F_SETFL, O_NONBLOCK), 0);
        for (unsigned still = 0; still < 50;) {
                struct pollfd p = { .fd = pipes[0], .events = POLLOUT };

                if (write(pipes[0], wait_request, sizeof(wait_request)) > 0)
                        still = 0;
                else if (poll(&p, 1, 10) == 0)
                        still++;
        }
        assert_null(rig.ended);
        rig_end(&rig);
        (void) close(pipes[0]);
        (void) close(pipes[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(connects_only_where_a_socket_is),
                cmocka_unit_test(refuses_memory_that_could_go_away),
                cmocka_unit_test(refuses_addresses_that_are_taken),
                cmocka_unit_test(refuses_events_and_hints_that_make_no_sense),
                cmocka_unit_test(answers_what_makes_no_sense_by_an_error),
                cmocka_unit_test(keeps_no_descriptor_that_it_did_not_ask_for),
                cmocka_unit_test(starts_once_and_has_no_more_connections_then),
                cmocka_unit_test(answers_nothing_else_before_the_first_wait),
                cmocka_unit_test(has_so_many_connections),
                cmocka_unit_test(ends_the_machine_of_a_plugin_that_leaves),
                cmocka_unit_test(ends_the_machine_of_a_plugin_that_talks_nonsense),
                cmocka_unit_test(ends_the_machine_of_a_plugin_that_does_not_read),
                cmocka_unit_test(ends_the_machine_where_a_pipe_is_closed),
                cmocka_unit_test(ends_the_machine_where_a_pipe_carries_nonsense),
                cmocka_unit_test(leaves_a_plugin_that_hangs),
                cmocka_unit_test(leaves_nothing_behind),
                cmocka_unit_test(asks_the_plugin_to_exit),
                cmocka_unit_test(says_what_kvm_can_do),
                cmocka_unit_test(hands_out_the_network),
                cmocka_unit_test(keeps_the_state_of_the_platform),
                cmocka_unit_test(adds_two_numbers_through_ports),
                cmocka_unit_test(adds_on_four_vcpus_at_once),
                cmocka_unit_test(sees_accesses_of_every_width),
                cmocka_unit_test(tells_of_writes_without_stopping),
                cmocka_unit_test(pauses_a_vcpu_that_runs),
                cmocka_unit_test(pauses_a_vcpu_that_is_paused_already),
                cmocka_unit_test(pauses_those_that_are_named),
                cmocka_unit_test(logs_the_pages_that_are_written),
                cmocka_unit_test(signals_writes_by_eventfd),
                cmocka_unit_test(interrupts_and_hears_when_they_are_done),
                cmocka_unit_test(routes_interrupts_anew),
                cmocka_unit_test(delivers_messages_to_a_vcpu),
                cmocka_unit_test(answers_writes_to_memory_that_is_read_only),
                cmocka_unit_test(keeps_the_state_of_a_vcpu),
                cmocka_unit_test(takes_lists_that_are_as_long_as_they_may_be),
                cmocka_unit_test(sets_msrs_cpuid_and_capabilities),
                cmocka_unit_test(defers_registers_and_sends_hinted_ones_along),
                cmocka_unit_test(keeps_registers_that_are_set_too_early),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        (void) signal(SIGPIPE, SIG_IGN);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
