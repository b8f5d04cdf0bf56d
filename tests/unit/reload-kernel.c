/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A guest that notices when something is lost: timer interrupts of which each arms the next, requests to a virtio device of which each waits for the last one's
 * interrupt, registers of a helper, two clocks that must agree. Freestanding, without stack protector and vector registers; entered in 64-bit mode with the first
 * 4 GiB mapped one to one. */

#include "reload-kernel.h"

#define LAPIC 0xFEE00000ULL
#define VECTOR_TIMER 0x40
#define VECTOR_QUEUE 0x41
#define QUEUE_SIZE 8

/* Of functions that an interrupt's handler calls. */
#define FOR_HANDLERS __attribute__((no_caller_saved_registers))

typedef struct Gate {
        uint16_t low, selector, flags, middle;
        uint32_t high, zero;
} Gate;

typedef struct Clock {
        uint32_t version, pad;
        uint64_t tsc, nsec;
        uint32_t multiplier;
        int8_t shift;
        uint8_t flags, pad2[2];
} Clock;

typedef struct Descriptor {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
} Descriptor;

static volatile Report *const report = (volatile Report *) REPORT_ADDRESS;
static Gate idt[256] __attribute__((aligned(16)));
static volatile Clock clock __attribute__((aligned(64)));
static volatile Descriptor descriptors[QUEUE_SIZE] __attribute__((aligned(4096)));
static volatile uint16_t available[3 + QUEUE_SIZE] __attribute__((aligned(4096)));
static volatile uint16_t used[3 + 4 * QUEUE_SIZE] __attribute__((aligned(4096)));
static uint8_t buffer[64];
static volatile uint32_t *notify;
static uint64_t last_tick;

static void out8(uint16_t port, uint8_t v) {
        __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static uint8_t in8(uint16_t port) {
        uint8_t v;

        __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
        return v;
}

static void out32(uint16_t port, uint32_t v) {
        __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static uint32_t in32(uint16_t port) {
        uint32_t v;

        __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
        return v;
}

FOR_HANDLERS static uint64_t tsc(void) {
        uint32_t low, high;

        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        return (uint64_t) high << 32 | low;
}

static void write_msr(uint32_t msr, uint64_t v) {
        __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t) v), "d"((uint32_t) (v >> 32)));
}

FOR_HANDLERS static volatile uint32_t *lapic(unsigned offset) {
        return (volatile uint32_t *) (LAPIC + offset);
}

/* --- time --- */

static uint64_t scale(uint64_t cycles) {
        uint64_t low, high;

        cycles = clock.shift >= 0 ? cycles << clock.shift : cycles >> -clock.shift;
        __asm__("mulq %3" : "=a"(low), "=d"(high) : "a"(cycles), "r"((uint64_t) clock.multiplier) : "cc");
        return high << 32 | low >> 32;
}

static uint64_t clock_nsec(uint64_t *ret_tsc) {
        uint32_t version;
        uint64_t v;

        do {
                version = clock.version;
                *ret_tsc = tsc();
                v = clock.nsec + scale(*ret_tsc - clock.tsc);
        } while (version & 1 || version != clock.version);
        return v;
}

static void look_at_clocks(void) {
        static uint64_t last_tsc, last_nsec;
        uint64_t now, nsec = 0, passed, by_tsc;

        if (report->has_clock)
                nsec = clock_nsec(&now);
        else
                now = tsc();
        if (now < last_tsc)
                report->tsc_back++;
        if (report->has_clock && last_tsc != 0) {
                passed = nsec - last_nsec;
                by_tsc = scale(now - last_tsc);
                if (nsec < last_nsec)
                        report->clock_back++;
                /* A millisecond, where what is looked for is as long as the pause. */
                else if (passed > by_tsc + 1000000 || by_tsc > passed + 1000000)
                        report->clock_jumped++;
        }
        last_tsc = now;
        last_nsec = nsec;
}

FOR_HANDLERS static void arm_timer(void) {
        *lapic(0x380) = 100000; /* of the bus clock, 1 GHz in KVM, divided by 16 below: 1.6 ms */
}

__attribute__((interrupt)) static void on_timer(void *frame) {
        uint64_t now = tsc();

        if (last_tick != 0 && now - last_tick > report->longest_tick)
                report->longest_tick = now - last_tick;
        last_tick = now;
        report->ticks++;
        arm_timer();
        *lapic(0xB0) = 0;
}

__attribute__((interrupt)) static void on_queue(void *frame) {
        report->interrupts++;
        *lapic(0xB0) = 0;
}

__attribute__((interrupt)) static void on_other(void *frame) {
        report->wrong_interrupts++;
        *lapic(0xB0) = 0;
}

static void set_gate(unsigned vector, void (*handler)(void *frame)) {
        uint64_t address = (uint64_t) handler;

        idt[vector] = (Gate) { .low = (uint16_t) address, .selector = 0x10, .flags = 0x8E00, .middle = (uint16_t) (address >> 16),
                               .high = (uint32_t) (address >> 32) };
}

static void begin_interrupts(void) {
        struct {
                uint16_t limit;
                uint64_t base;
        } __attribute__((packed)) where = { sizeof(idt) - 1, (uint64_t) idt };

        /* The gates' selector is that of the boot protocol's code segment. */
        for (unsigned i = 32; i < 256; i++)
                set_gate(i, on_other);
        set_gate(VECTOR_TIMER, on_timer);
        set_gate(VECTOR_QUEUE, on_queue);
        __asm__ volatile("lidt %0" : : "m"(where));
        out8(0x21, 0xff);
        out8(0xa1, 0xff);
        *lapic(0xF0) = 0x1FF;
        *lapic(0x3E0) = 3;
        *lapic(0x320) = VECTOR_TIMER;
}

static void begin_clock(void) {
        uint32_t eax = 0x40000001, ebx, ecx = 0, edx;

        __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        report->has_clock = eax >> 3 & 1;
        if (report->has_clock)
                write_msr(0x4b564d01, (uint64_t) &clock | 1);
}

/* --- virtio-rng --- */

static uint32_t pci_read(unsigned slot, unsigned offset) {
        out32(0xcf8, 0x80000000u | slot << 11 | offset);
        return in32(0xcfc);
}

static void pci_write(unsigned slot, unsigned offset, uint32_t v) {
        out32(0xcf8, 0x80000000u | slot << 11 | offset);
        out32(0xcfc, v);
}

static void set_up_queue(unsigned slot, volatile uint8_t *bar) {
        volatile uint32_t *message = (volatile uint32_t *) (bar + 0x4000);
        unsigned capability = pci_read(slot, 0x34) & 0xff;

        while ((pci_read(slot, capability) & 0xff) != 0x11)
                capability = pci_read(slot, capability) >> 8 & 0xff;
        message[0] = LAPIC;
        message[1] = 0;
        message[2] = VECTOR_QUEUE;
        message[3] = 0;
        pci_write(slot, capability, 0x80000000u);

        bar[0x14] = 1;
        bar[0x14] = 3;
        *(volatile uint32_t *) (bar + 8) = 1;
        *(volatile uint32_t *) (bar + 0xc) = 1; /* VERSION_1 */
        bar[0x14] = 11;
        *(volatile uint16_t *) (bar + 0x16) = 0;
        *(volatile uint16_t *) (bar + 0x18) = QUEUE_SIZE;
        *(volatile uint16_t *) (bar + 0x1a) = 0;
        *(volatile uint32_t *) (bar + 0x20) = (uint32_t) (uint64_t) descriptors;
        *(volatile uint32_t *) (bar + 0x28) = (uint32_t) (uint64_t) available;
        *(volatile uint32_t *) (bar + 0x30) = (uint32_t) (uint64_t) used;
        *(volatile uint16_t *) (bar + 0x1c) = 1;
        bar[0x14] = 15;
        notify = (volatile uint32_t *) (bar + 0x3000);
        report->has_rng = 1;
}

static void find_rng(void) {
        for (unsigned slot = 1; slot < 31; slot++)
                if (pci_read(slot, 0) == 0x10441af4) {
                        pci_write(slot, 4, 6);
                        set_up_queue(slot, (volatile uint8_t *) (uint64_t) (pci_read(slot, 0x10) & ~0xfu));
                        return;
                }
}

/* One request, and sleep until it is done and an interrupt has come: one that is lost is the last. (One too many is allowed, as a helper that takes rings
 * up again sends one to be sure.) */
static void request(void) {
        uint64_t before;

        descriptors[0] = (Descriptor) { .address = (uint64_t) buffer, .length = sizeof(buffer), .flags = 2 };
        available[2 + available[1] % QUEUE_SIZE] = 0;
        /* From here on: a helper that takes rings up again sees the request without being told, and its interrupt is then the only one. */
        __asm__ volatile("cli" : : : "memory");
        before = report->interrupts;
        available[1]++;
        __asm__ volatile("mfence" : : : "memory");
        report->requests++;
        *(volatile uint16_t *) notify = 0;
        while (used[1] != available[1] || report->interrupts == before)
                __asm__ volatile("sti; hlt; cli" : : : "memory");
        __asm__ volatile("sti" : : : "memory");
        report->replies++;
}

static void look_at_serial_port(void) {
        uint8_t v = (uint8_t) report->loops;

        out8(0x3ff, v);
        if (in8(0x3ff) != v)
                report->wrong_registers++;
        report->registers++;
}

__attribute__((noreturn, used)) void kernel_main(void) {
        begin_clock();
        find_rng();
        out8(0x3ff, 0x5a);
        report->has_serial = in8(0x3ff) == 0x5a;
        begin_interrupts();
        arm_timer();
        report->magic = REPORT_MAGIC;
        __asm__ volatile("sti");
        for (;;) {
                look_at_clocks();
                if (report->has_rng)
                        request();
                if (report->has_serial)
                        look_at_serial_port();
                report->loops++;
        }
}

__asm__(".globl _start\n_start: lea stack_end(%rip), %rsp\n xor %ebp, %ebp\n call kernel_main\n"
        ".bss\n.balign 16\n.skip 16384\nstack_end:\n.text\n");
