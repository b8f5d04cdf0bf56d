/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A plugin that is a whole PC, to the point where a stock Linux boots on it: memory, a serial port, a clock, power and reset, and a disk that
 * is virtio without PCI. KVM has the interrupt controllers and the timer. What the chips do is taken from this project's devices; how they come to the guest,
 * through crosvm_plugin(3), is what this shows. The guest's console is standard input and output.
 *
 *     plugin-linux --kernel=FILE --initrd=FILE --disk=FILE [--command-line=TEXT] [--memory=MIB]
 *
 * One thread waits for the vCPU, the main one for everything else. */

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>

#include "acpi-pm.h"
#include "boot.h"
#include "cmos.h"
#include "cpuid.h"
#include "layout.h"
#include "linux-acpi.h"
#include "linux-block.h"
#include "parse.h"
#include "uart.h"
#include "vcpu-state.h"

#define CPUID_MAX 512

typedef struct Machine {
        struct crosvm *crosvm;       /* the main thread's */
        struct crosvm *vcpu_crosvm;  /* the vCPU thread's */
        struct crosvm_vcpu *vcpu;
        struct crosvm_memory *ram;
        struct crosvm_irq *uart_irq;
        GuestMemory memory;
        X86BootEntry entry;
        pthread_mutex_t lock; /* for the devices */
        Uart uart;
        Cmos cmos;
        AcpiPm pm;
        LinuxBlock block;
        int wake_fd;          /* the serial port has room again, or the machine has ended */
        bool input_ended;
        bool ended, failed;   /* under the lock */
} Machine;

static void check(int r, const char *what) {
        if (r < 0) {
                (void) fprintf(stderr, "%s: %s\n", what, strerror(-r));
                exit(EXIT_FAILURE);
        }
}

static void signal_fd(int fd) {
        static const uint64_t one = 1;

        (void) !write(fd, &one, sizeof(one));
}

static void end(Machine *m, const char *error) {
        if (error)
                (void) fprintf(stderr, "%s\n", error);
        m->failed = error != NULL;
        m->ended = true;
        signal_fd(m->wake_fd);
}

/* --- devices --- */

static void uart_out(void *userdata, uint8_t byte) {
        (void) !write(STDOUT_FILENO, &byte, 1);
}

static bool uart_can_send(void *userdata) {
        return true;
}

static void uart_interrupt(void *userdata) {
        Machine *m = userdata;

        signal_fd(crosvm_irq_event_get_fd(m->uart_irq));
}

static void uart_has_room(void *userdata) {
        Machine *m = userdata;

        signal_fd(m->wake_fd);
}

/* By the line itself, to show that, too: it is rare. On the vCPU's thread. */
static void set_sci(bool level, void *userdata) {
        Machine *m = userdata;

        (void) crosvm_set_irq(m->vcpu_crosvm, X86_IRQ_SCI, level);
}

static void power_off(void *userdata) {
        end(userdata, NULL);
}

static void make_devices(Machine *m, int disk_fd) {
        static const AcpiPmCallbacks pm_callbacks = { .set_sci = set_sci, .power_off = power_off, .reset = power_off };

        m->uart = (Uart) { .send = uart_out, .can_send = uart_can_send, .interrupt = uart_interrupt, .can_receive = uart_has_room, .userdata = m };
        uart_reset(&m->uart);
        cmos_init(&m->cmos);
        acpi_pm_init(&m->pm, &pm_callbacks, m);
        check(crosvm_reserve_range(m->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, X86_PORT_COM1, X86_PORT_COM_SIZE), "serial port");
        check(crosvm_reserve_range(m->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, X86_PORT_CMOS, X86_PORT_CMOS_SIZE), "clock");
        check(crosvm_reserve_range(m->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, X86_PORT_PM1_EVENT, X86_PORT_PM1_EVENT_SIZE), "power events");
        check(crosvm_reserve_range(m->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, X86_PORT_PM1_CONTROL, X86_PORT_PM1_CONTROL_SIZE), "power");
        check(crosvm_reserve_range(m->crosvm, CROSVM_ADDRESS_SPACE_IOPORT, X86_PORT_RESET, 1), "reset");
        check(crosvm_create_irq_event(m->crosvm, X86_IRQ_COM1, &m->uart_irq), "serial port's interrupt");
        check(linux_block_init(&m->block, m->crosvm, &m->memory, disk_fd), "disk");
}

static bool is_within(uint64_t port, uint64_t base, uint64_t size) {
        return port >= base && port - base < size;
}

static void access_uart(Uart *uart, unsigned offset, uint8_t *data, size_t size, bool is_write) {
        for (size_t i = 0; i < size; i++) /* a string is for one register */
                if (is_write)
                        uart_write(uart, offset, data[i]);
                else
                        data[i] = uart_read(uart, offset);
}

static void access_port(Machine *m, uint64_t port, uint8_t *data, size_t size, bool is_write) {
        if (is_within(port, X86_PORT_COM1, X86_PORT_COM_SIZE))
                access_uart(&m->uart, (unsigned) (port - X86_PORT_COM1), data, size, is_write);
        else if (is_within(port, X86_PORT_CMOS, X86_PORT_CMOS_SIZE))
                is_write ? cmos_write(&m->cmos, port - X86_PORT_CMOS, data, size) : cmos_read(&m->cmos, port - X86_PORT_CMOS, data, size);
        else if (is_within(port, X86_PORT_PM1_EVENT, X86_PORT_PM1_EVENT_SIZE))
                is_write ? acpi_pm_event_write(&m->pm, port - X86_PORT_PM1_EVENT, data, size) :
                        acpi_pm_event_read(&m->pm, port - X86_PORT_PM1_EVENT, data, size);
        else if (is_within(port, X86_PORT_PM1_CONTROL, X86_PORT_PM1_CONTROL_SIZE))
                is_write ? acpi_pm_control_write(&m->pm, port - X86_PORT_PM1_CONTROL, data, size) :
                        acpi_pm_control_read(&m->pm, port - X86_PORT_PM1_CONTROL, data, size);
        else if (port == X86_PORT_RESET)
                is_write ? acpi_pm_reset_write(&m->pm, 0, data, size) : acpi_pm_reset_read(&m->pm, 0, data, size);
}

/* --- the vCPU --- */

/* What KVM supports, with this machine's only processor in it. */
static int set_cpuid(const Machine *m) {
        _cleanup_free_ struct kvm_cpuid2 *supported = calloc(1, sizeof(struct kvm_cpuid2) + CPUID_MAX * sizeof(struct kvm_cpuid_entry2));
        _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
        X86CpuidInput input = { .n_vcpus = 1 };
        int r;

        if (!supported)
                return -ENOMEM;
        r = crosvm_get_supported_cpuid(m->vcpu_crosvm, CPUID_MAX, supported->entries, &supported->nent);
        if (r >= 0)
                r = crosvm_check_extension(m->vcpu_crosvm, KVM_CAP_TSC_DEADLINE_TIMER, &input.tsc_deadline);
        if (r >= 0)
                r = x86_cpuid_build(supported, &input, &cpuid);
        return r < 0 ? r : crosvm_vcpu_set_cpuid(m->vcpu, cpuid->nent, cpuid->entries);
}

static int set_up_vcpu(const Machine *m) {
        struct kvm_lapic_state lapic;
        struct kvm_sregs sregs;
        struct kvm_regs regs;
        X86Msrs msrs;
        int r;

        x86_boot_sregs(&m->entry, &sregs);
        x86_boot_regs(&m->entry, &regs);
        x86_boot_msrs(&msrs);
        r = set_cpuid(m);
        if (r >= 0)
                r = crosvm_vcpu_set_msrs(m->vcpu, msrs.nmsrs, msrs.entries);
        if (r >= 0)
                r = crosvm_vcpu_get_lapic_state(m->vcpu, &lapic);
        if (r < 0)
                return r;
        x86_boot_lapic(true, &lapic);
        r = crosvm_vcpu_set_lapic_state(m->vcpu, &lapic);
        if (r >= 0)
                r = crosvm_vcpu_set_sregs(m->vcpu, &sregs);
        return r < 0 ? r : crosvm_vcpu_set_regs(m->vcpu, &regs);
}

/* Returns whether the machine goes on. */
static bool take_access(Machine *m, const struct crosvm_vcpu_event *event) {
        bool goes_on;

        (void) pthread_mutex_lock(&m->lock);
        if (event->io_access.address_space == CROSVM_ADDRESS_SPACE_IOPORT)
                access_port(m, event->io_access.address, event->io_access.data, event->io_access.length, event->io_access.is_write);
        else
                linux_block_access(&m->block, event->io_access.address - LINUX_BLOCK_ADDRESS, event->io_access.data,
                        event->io_access.length, event->io_access.is_write);
        goes_on = !m->ended;
        (void) pthread_mutex_unlock(&m->lock);
        return goes_on;
}

static void *run_vcpu(void *userdata) {
        struct crosvm_vcpu_event event;
        bool goes_on = true;
        Machine *m = userdata;
        int r = 0;

        while (goes_on && r >= 0) {
                r = crosvm_vcpu_wait(m->vcpu, &event);
                if (r >= 0 && event.kind == CROSVM_VCPU_EVENT_KIND_INIT)
                        r = set_up_vcpu(m);
                else if (r >= 0 && event.kind == CROSVM_VCPU_EVENT_KIND_IO_ACCESS)
                        goes_on = take_access(m, &event);
                if (r >= 0 && goes_on)
                        r = crosvm_vcpu_resume(m->vcpu);
        }
        if (r < 0) {
                (void) pthread_mutex_lock(&m->lock);
                end(m, strerror(-r));
                (void) pthread_mutex_unlock(&m->lock);
        }
        return NULL;
}

/* --- everything else --- */

static void drain(int fd) {
        uint64_t count;

        (void) !read(fd, &count, sizeof(count));
}

/* With the lock held, as all of these. */
static void read_input(Machine *m) {
        uint8_t bytes[UART_FIFO_SIZE];
        ssize_t n;

        n = read(STDIN_FILENO, bytes, uart_receive_room(&m->uart));
        if (n <= 0)
                m->input_ended = true;
        else
                (void) uart_receive(&m->uart, bytes, (size_t) n);
}

/* The line is low again. It is level-triggered where an ISA card's is not: an edge that came while the guest has the pin masked, as Linux has it when it
 * looks for what kind of port this is, would never be acknowledged, and be the last. */
static void uart_resampled(const Machine *m) {
        if (m->uart.interrupting)
                signal_fd(crosvm_irq_event_get_fd(m->uart_irq));
}

static int serve(Machine *m) {
        enum { SHUTDOWN, WAKE, INPUT, NOTIFY, UART, BLOCK, _N };
        struct pollfd fds[_N] = {
                [SHUTDOWN] = { .fd = crosvm_get_shutdown_eventfd(m->crosvm), .events = POLLIN },
                [WAKE] = { .fd = m->wake_fd, .events = POLLIN },
                [INPUT] = { .events = POLLIN },
                [NOTIFY] = { .fd = crosvm_io_event_fd(m->block.notify), .events = POLLIN },
                [UART] = { .fd = crosvm_irq_event_get_resample_fd(m->uart_irq), .events = POLLIN },
                [BLOCK] = { .fd = crosvm_irq_event_get_resample_fd(m->block.irq), .events = POLLIN },
        };
        bool ended = false;

        while (!ended) {
                (void) pthread_mutex_lock(&m->lock);
                fds[INPUT].fd = m->input_ended || uart_receive_room(&m->uart) == 0 ? -1 : STDIN_FILENO;
                (void) pthread_mutex_unlock(&m->lock);
                if (poll(fds, _N, -1) < 0 && errno != EINTR)
                        return -errno;

                (void) pthread_mutex_lock(&m->lock);
                for (size_t i = WAKE; i < _N; i++)
                        if (i != INPUT && fds[i].revents)
                                drain(fds[i].fd);
                if (fds[INPUT].revents)
                        read_input(m);
                if (fds[NOTIFY].revents)
                        linux_block_notified(&m->block);
                if (fds[UART].revents)
                        uart_resampled(m);
                if (fds[BLOCK].revents)
                        linux_block_resampled(&m->block);
                ended = m->ended || fds[SHUTDOWN].revents;
                (void) pthread_mutex_unlock(&m->lock);
        }
        return m->failed ? -EIO : 0;
}

/* --- the start --- */

typedef struct Options {
        int kernel_fd, initrd_fd, disk_fd;
        const char *command_line;
        uint64_t memory_mib;
} Options;

static int open_file(const char *path, int flags) {
        int fd = open(path, flags | O_CLOEXEC);

        check(fd < 0 ? -errno : 0, path);
        return fd;
}

static void parse_options(int argc, char **argv, Options *ret) {
        static const struct option options[] = {
                { "kernel", required_argument, NULL, 'k' }, { "initrd", required_argument, NULL, 'i' },
                { "disk", required_argument, NULL, 'd' },   { "command-line", required_argument, NULL, 'c' },
                { "memory", required_argument, NULL, 'm' }, {},
        };
        int c;

        *ret = (Options) { .kernel_fd = -EBADF, .initrd_fd = -EBADF, .disk_fd = -EBADF, .memory_mib = 256,
                           .command_line = "console=ttyS0 reboot=t panic=-1" };
        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
                if (c == 'k')
                        ret->kernel_fd = open_file(optarg, O_RDONLY);
                else if (c == 'i')
                        ret->initrd_fd = open_file(optarg, O_RDONLY);
                else if (c == 'd')
                        ret->disk_fd = open_file(optarg, O_RDWR);
                else if (c == 'c')
                        ret->command_line = optarg;
                else if (c != 'm' || parse_unsigned(optarg, &ret->memory_mib) < 0 || ret->memory_mib < 64 || ret->memory_mib > 2048)
                        check(-EINVAL, "arguments");
        if (ret->kernel_fd < 0 || ret->initrd_fd < 0 || ret->disk_fd < 0 || optind < argc)
                check(-EINVAL, "expected --kernel=FILE --initrd=FILE --disk=FILE");
}

/* Memory, the kernel, and the tables in it. */
static void load(Machine *m, const Options *o) {
        const uint64_t size = MIB(o->memory_mib);
        int fd = guest_memory_create_fd(size, 0);
        _cleanup_free_ char *message = NULL;
        X86BootInput input = { .kernel_fd = o->kernel_fd, .initrd_fd = o->initrd_fd, .command_line = o->command_line };

        check(fd, "memory");
        check(crosvm_create_memory(m->crosvm, fd, 0, size, 0, false, false, &m->ram), "crosvm_create_memory");
        check(guest_memory_add(&m->memory, fd, 0, 0, size, 0), "memory");
        input.rsdp_address = linux_acpi_write(&m->memory);
        if (x86_load_boot(&m->memory, &input, &m->entry, &message) < 0) {
                (void) fprintf(stderr, "%s\n", message ?: "out of memory");
                exit(EXIT_FAILURE);
        }
}

int main(int argc, char **argv) {
        Machine m = { .wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
        pthread_t thread;
        Options options;

        parse_options(argc, argv, &options);
        (void) pthread_mutex_init(&m.lock, NULL);
        check(m.wake_fd < 0 ? -errno : 0, "eventfd");
        check(crosvm_connect(&m.crosvm), "crosvm_connect");
        check(crosvm_new_connection(m.crosvm, &m.vcpu_crosvm), "crosvm_new_connection");
        check(crosvm_get_vcpu(m.crosvm, 0, &m.vcpu), "crosvm_get_vcpu");
        load(&m, &options);
        make_devices(&m, options.disk_fd);
        check(crosvm_start(m.crosvm), "crosvm_start");
        check(-pthread_create(&thread, NULL, run_vcpu, &m), "pthread_create");
        check(serve(&m), "machine");
        return EXIT_SUCCESS;
}
