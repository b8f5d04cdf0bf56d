/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The smallest plugin: a guest of a few instructions reads two numbers from a port, adds them, and writes the sum to it. Succeeds where
 * that is right. Needs crosvm_plugin(3) and nothing else:
 *
 *     cc -D_GNU_SOURCE adder.c $(pkg-config --cflags --libs crosvm_plugin) -o adder */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <crosvm.h>

#define PORT 0x10
#define CODE 0x1000
#define MEMORY 0x4000
#define A 39
#define B 3

/* in al, PORT; mov cl, al; in al, PORT; add al, cl; out PORT, al; hlt */
static const uint8_t guest[] = { 0xe4, PORT, 0x88, 0xc1, 0xe4, PORT, 0x00, 0xc8, 0xe6, PORT, 0xf4 };

static void check(int r, const char *what) {
        if (r < 0) {
                (void) fprintf(stderr, "%s: %s\n", what, strerror(-r));
                exit(EXIT_FAILURE);
        }
}

static struct crosvm_memory *make_memory(struct crosvm *crosvm) {
        int fd = memfd_create("adder", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct crosvm_memory *memory;

        if (fd < 0 || ftruncate(fd, MEMORY) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
            pwrite(fd, guest, sizeof(guest), CODE) != sizeof(guest)) {
                perror("memory");
                exit(EXIT_FAILURE);
        }
        check(crosvm_create_memory(crosvm, fd, 0, MEMORY, 0, false, false, &memory), "crosvm_create_memory");
        (void) close(fd);
        return memory;
}

/* Real mode, at the code. */
static void set_up(struct crosvm_vcpu *vcpu) {
        const struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
        struct kvm_sregs sregs;

        check(crosvm_vcpu_get_sregs(vcpu, &sregs), "crosvm_vcpu_get_sregs");
        sregs.cs.base = sregs.cs.selector = 0;
        check(crosvm_vcpu_set_sregs(vcpu, &sregs), "crosvm_vcpu_set_sregs");
        check(crosvm_vcpu_set_regs(vcpu, &regs), "crosvm_vcpu_set_regs");
}

int main(void) {
        const uint8_t numbers[] = { A, B };
        struct crosvm_memory *memory;
        struct crosvm *crosvm = NULL;
        struct crosvm_vcpu *vcpu;
        size_t given = 0;
        int result = -1;

        check(crosvm_connect(&crosvm), "crosvm_connect");
        memory = make_memory(crosvm);
        check(crosvm_reserve_range(crosvm, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 1), "crosvm_reserve_range");
        check(crosvm_get_vcpu(crosvm, 0, &vcpu), "crosvm_get_vcpu");
        check(crosvm_start(crosvm), "crosvm_start");

        while (result < 0) {
                struct crosvm_vcpu_event event;

                check(crosvm_vcpu_wait(vcpu, &event), "crosvm_vcpu_wait");
                if (event.kind == CROSVM_VCPU_EVENT_KIND_INIT)
                        set_up(vcpu);
                else if (event.kind != CROSVM_VCPU_EVENT_KIND_IO_ACCESS)
                        result = EXIT_FAILURE;
                else if (event.io_access.is_write) {
                        (void) printf("%d + %d = %d\n", A, B, *event.io_access.data);
                        result = *event.io_access.data == A + B ? EXIT_SUCCESS : EXIT_FAILURE;
                } else if (given < sizeof(numbers))
                        *event.io_access.data = numbers[given++];
                if (result < 0)
                        check(crosvm_vcpu_resume(vcpu), "crosvm_vcpu_resume");
        }
        check(crosvm_destroy_memory(crosvm, &memory), "crosvm_destroy_memory");
        check(crosvm_destroy_connection(&crosvm), "crosvm_destroy_connection");
        return result;
}
