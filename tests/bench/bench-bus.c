/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The round trip of a register access: through the bus protocol to a real serial helper, in a burst and to a helper that sleeps; and beside it
 * what the VM exit costs that precedes each, with nothing but the return to the guest in between (a real-mode guest that
 * reads a port for ever). Prints one JSON object a line. $VMM_DEVICE is the helper program. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "bus-client.h"

#define ROUNDS 50000
#define ROUNDS_ASLEEP 1000

static uint64_t now_nsec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

static int compare(const void *a, const void *b) {
        const uint64_t *x = a, *y = b;
        return *x < *y ? -1 : *x > *y;
}

static void report(const char *name, uint64_t *samples, size_t n) {
        qsort(samples, n, sizeof(*samples), compare);
        printf("{\"benchmark\":\"%s\",\"unit\":\"ns\",\"rounds\":%zu,\"min\":%llu,\"median\":%llu,\"p99\":%llu,\"max\":%llu}\n", name, n,
                (unsigned long long) samples[0], (unsigned long long) samples[n / 2], (unsigned long long) samples[n * 99 / 100],
                (unsigned long long) samples[n - 1]);
        (void) fflush(stdout);
}

static int bench_accesses(BusClient *c) {
        static uint64_t samples[ROUNDS];
        uint8_t v;

        for (unsigned i = 0; i < ROUNDS; i++) {
                uint64_t begin = now_nsec();

                if (bus_client_access(c, 0, 7, false, &v, 1) < 0)
                        return -EIO;
                samples[i] = now_nsec() - begin;
        }
        report("bus-round-trip", samples, ROUNDS);

        for (unsigned i = 0; i < ROUNDS_ASLEEP; i++) {
                uint64_t begin;

                (void) usleep(1000); /* longer than the helper looks */
                begin = now_nsec();
                if (bus_client_access(c, 0, 7, false, &v, 1) < 0)
                        return -EIO;
                samples[i] = now_nsec() - begin;
        }
        report("bus-round-trip-asleep", samples, ROUNDS_ASLEEP);
        return 0;
}

static int bench_bus(const char *helper) {
        static const BusSpace com1 = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = 8 };
        _cleanup_(bus_client_freep) BusClient *c = NULL;
        _cleanup_close_ int irq_fd = -EBADF;
        char directory[] = "/tmp/bench-bus-XXXXXX", path[64], argument[96];
        int r = -ENOENT;
        pid_t pid;

        if (!mkdtemp(directory))
                return -errno;
        (void) snprintf(path, sizeof(path), "%s/bus", directory);
        (void) snprintf(argument, sizeof(argument), "--socket-path=%s", path);
        irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r = bus_client_new(1, &com1, &irq_fd, 1, &c);
        if (r < 0)
                return r;

        pid = fork();
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) execl(helper, "vmm-device", "serial", argument, "--output=none", NULL);
                _exit(127);
        }
        r = -ENOENT;
        for (unsigned i = 0; i < 500 && (r == -ENOENT || r == -ECONNREFUSED); i++) {
                (void) usleep(10000);
                r = bus_client_connect_path(c, path);
        }
        if (r >= 0)
                r = bus_client_wait(c, 10 * USEC_PER_SEC, NULL);
        if (r >= 0)
                r = bench_accesses(c);

        (void) kill(pid, SIGTERM);
        (void) waitpid(pid, NULL, 0);
        (void) unlink(path);
        (void) rmdir(directory);
        return r;
}

/* in al, dx; jmp to it */
static const uint8_t guest[] = { 0xec, 0xeb, 0xfd };

static int bench_kvm(void) {
        static uint64_t samples[ROUNDS];
        _cleanup_close_ int kvm = -EBADF, vm = -EBADF, vcpu = -EBADF;
        struct kvm_userspace_memory_region region = { .guest_phys_addr = 0x1000, .memory_size = 0x1000 };
        struct kvm_regs regs = { .rip = 0x1000, .rdx = 0x3ff, .rflags = 2 };
        struct kvm_sregs sregs;
        struct kvm_run *run;
        uint8_t *memory;
        int size;

        kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (kvm < 0)
                return -errno;
        vm = ioctl(kvm, KVM_CREATE_VM, 0);
        if (vm < 0)
                return -errno;
        memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
                return -errno;
        memcpy(memory, guest, sizeof(guest));
        region.userspace_addr = (uintptr_t) memory;
        if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
                return -errno;
        vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
        size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
        if (vcpu < 0 || size < 0)
                return -errno;
        run = mmap(NULL, (size_t) size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
        if (run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
                return -errno;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
                return -errno;

        for (unsigned i = 0; i < ROUNDS; i++) {
                uint64_t begin = now_nsec();

                if (ioctl(vcpu, KVM_RUN, 0) < 0)
                        return -errno;
                if (run->exit_reason != KVM_EXIT_IO)
                        return -EIO;
                samples[i] = now_nsec() - begin;
        }
        report("kvm-pio-exit", samples, ROUNDS);
        return 0;
}

int main(void) {
        const char *helper = getenv("VMM_DEVICE");
        int r;

        if (!helper) {
                (void) fprintf(stderr, "VMM_DEVICE is not set.\n");
                return EXIT_FAILURE;
        }
        r = bench_bus(helper);
        if (r < 0) {
                (void) fprintf(stderr, "Bus: %s\n", strerror(-r));
                return EXIT_FAILURE;
        }
        r = bench_kvm();
        if (r < 0) /* no KVM here: the other figures stand for themselves */
                (void) fprintf(stderr, "KVM: %s\n", strerror(-r));
        return EXIT_SUCCESS;
}
