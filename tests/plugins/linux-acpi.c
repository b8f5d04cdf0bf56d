/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "layout.h"
#include "linux-acpi.h"
#include "linux.hex" /* static AML from linux.asl, made by iasl */

/* ACPI 6.4, chapter 5.2. */
#define HEADER 36
#define RSDP_SIZE 36
#define RSDP_V1_SIZE 20
#define FACS_SIZE 64
#define FADT_SIZE 276
#define FADT_FLAGS (1u << 0 | 1u << 2 | 1u << 6 | 1u << 10) /* WBINVD, C1, no RTC wake, reset register */
#define FADT_BOOT_ARCH (1u << 2 | 1u << 4)                  /* no VGA, no ASPM */
#define SYSTEM_IO 1

typedef struct Writer {
        uint8_t *at; /* of guest memory */
        uint64_t address;
} Writer;

static uint8_t checksum(const uint8_t *p, size_t size) {
        uint8_t sum = 0;

        for (size_t i = 0; i < size; i++)
                sum += p[i];
        return (uint8_t) -sum;
}

/* Makes room for a structure, zeroed. */
static uint8_t *begin(Writer *w, size_t size, uint64_t *ret_address) {
        uint8_t *p = w->at;

        memset(p, 0, size);
        *ret_address = w->address;
        w->at += ALIGN_UP(size, (size_t) 64);
        w->address += ALIGN_UP(size, (size_t) 64);
        return p;
}

static void finish(uint8_t *table, const char *signature, uint8_t revision, uint32_t size) {
        memcpy(table, signature, 4);
        store_le32(table + 4, size);
        table[8] = revision;
        memcpy(table + 10, "PLUGINLINUX   ", 14);
        store_le32(table + 24, 1);
        memcpy(table + 28, "VMMD", 4);
        table[9] = checksum(table, size);
}

static void io_register(uint8_t *p, uint16_t port, uint8_t bits, uint8_t access_size) {
        p[0] = SYSTEM_IO;
        p[1] = bits;
        p[3] = access_size;
        store_le64(p + 4, port);
}

static uint64_t write_facs(Writer *w) {
        uint64_t address;
        uint8_t *p = begin(w, FACS_SIZE, &address);

        memcpy(p, "FACS", 4);
        store_le32(p + 4, FACS_SIZE);
        p[32] = 2;
        return address;
}

static uint64_t write_dsdt(Writer *w) {
        uint64_t address;

        memcpy(begin(w, sizeof(linux_aml_code), &address), linux_aml_code, sizeof(linux_aml_code));
        return address;
}

/* Offsets are those of table 5.9. */
static uint64_t write_fadt(Writer *w, uint64_t facs, uint64_t dsdt) {
        uint64_t address;
        uint8_t *p = begin(w, FADT_SIZE, &address);

        store_le32(p + 36, (uint32_t) facs);
        store_le32(p + 40, (uint32_t) dsdt);
        p[46] = X86_IRQ_SCI;
        store_le32(p + 56, X86_PORT_PM1_EVENT);
        store_le32(p + 64, X86_PORT_PM1_CONTROL);
        p[88] = X86_PORT_PM1_EVENT_SIZE;
        p[89] = X86_PORT_PM1_CONTROL_SIZE;
        p[96] = 101; /* no C2 */
        p[98] = 0xE9; /* 1001: no C3 */
        p[99] = 0x03;
        p[108] = 0x32; /* the century in the clock */
        p[109] = FADT_BOOT_ARCH;
        store_le32(p + 112, FADT_FLAGS);
        io_register(p + 116, X86_PORT_RESET, 8, 1);
        p[128] = X86_RESET_VALUE;
        p[131] = 4;
        store_le64(p + 140, dsdt);
        io_register(p + 148, X86_PORT_PM1_EVENT, 32, 2);
        io_register(p + 172, X86_PORT_PM1_CONTROL, 16, 2);
        finish(p, "FACP", 6, FADT_SIZE);
        return address;
}

static uint64_t write_madt(Writer *w) {
        static const uint8_t entries[] = {
                0, 8, 0, 0, 1, 0, 0, 0,                                  /* the processor */
                1, 12, X86_IOAPIC_ID, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0,   /* the IOAPIC */
                2, 10, 0, 0, 2, 0, 0, 0, 0, 0,                           /* the timer's line is pin 2 */
                2, 10, 0, X86_IRQ_SCI, X86_IRQ_SCI, 0, 0, 0, 0x0D, 0,    /* the SCI is level-triggered, active high; */
                2, 10, 0, X86_IRQ_COM1, X86_IRQ_COM1, 0, 0, 0, 0x0D, 0,  /* so is the serial port */
                4, 6, 0xFF, 0, 0, 1,                                     /* LINT1 is NMI */
        };
        uint64_t address;
        uint8_t *p = begin(w, HEADER + 8 + sizeof(entries), &address);

        store_le32(p + HEADER, (uint32_t) X86_LAPIC_BASE);
        store_le32(p + HEADER + 4, 1); /* two 8259s besides */
        memcpy(p + HEADER + 8, entries, sizeof(entries));
        finish(p, "APIC", 5, HEADER + 8 + sizeof(entries));
        return address;
}

static uint64_t write_xsdt(Writer *w, uint64_t fadt, uint64_t madt) {
        uint64_t address;
        uint8_t *p = begin(w, HEADER + 16, &address);

        store_le64(p + HEADER, fadt);
        store_le64(p + HEADER + 8, madt);
        finish(p, "XSDT", 1, HEADER + 16);
        return address;
}

uint64_t linux_acpi_write(const GuestMemory *memory) {
        uint8_t *p = guest_memory_at(memory, X86_ACPI_ADDRESS, X86_ACPI_SIZE);
        Writer w = { .at = p, .address = X86_ACPI_ADDRESS };
        uint64_t rsdp, facs, dsdt, fadt, madt, xsdt;

        if (!p)
                return 0;
        p = begin(&w, RSDP_SIZE, &rsdp);
        facs = write_facs(&w);
        dsdt = write_dsdt(&w);
        fadt = write_fadt(&w, facs, dsdt);
        madt = write_madt(&w);
        xsdt = write_xsdt(&w, fadt, madt);
        memcpy(p, "RSD PTR ", 8);
        memcpy(p + 9, "PLUGIN", 6);
        p[15] = 2;
        store_le32(p + 20, RSDP_SIZE);
        store_le64(p + 24, xsdt);
        p[8] = checksum(p, RSDP_V1_SIZE);
        p[32] = checksum(p, RSDP_SIZE);
        return rsdp;
}
