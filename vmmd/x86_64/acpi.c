/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "acpi.h"
#include "dsdt.hex" /* static AML from dsdt.asl, made by iasl */
#include "layout.h"

/* Structures of ACPI 6.4, with its names where it has any. */

typedef struct __attribute__((packed)) TableHeader {
        char signature[4];
        uint32_t length;
        uint8_t revision;
        uint8_t checksum;
        char oem_id[6];
        char oem_table_id[8];
        uint32_t oem_revision;
        char creator_id[4];
        uint32_t creator_revision;
} TableHeader;

/* 5.2.3.2 */
typedef struct __attribute__((packed)) GenericAddress {
        uint8_t address_space_id;
        uint8_t register_bit_width;
        uint8_t register_bit_offset;
        uint8_t access_size;
        uint64_t address;
} GenericAddress;
#define SYSTEM_IO 1

/* 5.2.5.3 */
typedef struct __attribute__((packed)) Rsdp {
        char signature[8];
        uint8_t checksum;
        char oem_id[6];
        uint8_t revision;
        uint32_t rsdt_address;
        uint32_t length;
        uint64_t xsdt_address;
        uint8_t extended_checksum;
        uint8_t reserved[3];
} Rsdp;
#define RSDP_V1_LENGTH 20

/* 5.2.9 */
typedef struct __attribute__((packed)) Fadt {
        TableHeader header;
        uint32_t firmware_ctrl;
        uint32_t dsdt;
        uint8_t reserved1;
        uint8_t preferred_pm_profile;
        uint16_t sci_int;
        uint32_t smi_cmd;
        uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
        uint32_t pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk, pm2_cnt_blk, pm_tmr_blk, gpe0_blk, gpe1_blk;
        uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_blk_len, gpe1_blk_len, gpe1_base, cst_cnt;
        uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
        uint8_t duty_offset, duty_width, day_alrm, mon_alrm, century;
        uint16_t iapc_boot_arch;
        uint8_t reserved2;
        uint32_t flags;
        GenericAddress reset_reg;
        uint8_t reset_value;
        uint16_t arm_boot_arch;
        uint8_t fadt_minor_version;
        uint64_t x_firmware_ctrl, x_dsdt;
        GenericAddress x_pm1a_evt_blk, x_pm1b_evt_blk, x_pm1a_cnt_blk, x_pm1b_cnt_blk, x_pm2_cnt_blk, x_pm_tmr_blk, x_gpe0_blk,
                x_gpe1_blk, sleep_control_reg, sleep_status_reg;
        uint64_t hypervisor_vendor_identity;
} Fadt;
_Static_assert(sizeof(Fadt) == 276, "ACPI 6.4, table 5.9");

#define FADT_REVISION 6
#define FADT_MINOR_VERSION 4
#define PM_PROFILE_ENTERPRISE_SERVER 4
#define P_LVL2_LAT_NONE 101   /* "> 100: no C2 state" */
#define P_LVL3_LAT_NONE 1001  /* "> 1000: no C3 state" */
#define BOOT_ARCH_VGA_NOT_PRESENT (1u << 2)
#define BOOT_ARCH_NO_ASPM (1u << 4)
#define FADT_WBINVD (1u << 0)
#define FADT_PROC_C1 (1u << 2)
#define FADT_FIX_RTC (1u << 6) /* "RTC wake status is not supported in fixed register space" */
#define FADT_RESET_REG_SUP (1u << 10)
#define FADT_HEADLESS (1u << 12)
#define CMOS_CENTURY 0x32

/* 5.2.10 */
typedef struct __attribute__((packed)) Facs {
        char signature[4];
        uint32_t length, hardware_signature, firmware_waking_vector, global_lock, flags;
        uint64_t x_firmware_waking_vector;
        uint8_t version;
        uint8_t reserved1[3];
        uint32_t ospm_flags;
        uint8_t reserved2[24];
} Facs;
_Static_assert(sizeof(Facs) == 64, "ACPI 6.4, table 5.13");

/* 5.2.12 */
typedef struct __attribute__((packed)) Madt {
        TableHeader header;
        uint32_t local_apic_address;
        uint32_t flags;
} Madt;
#define MADT_PCAT_COMPAT 1 /* two 8259s besides the APICs */

typedef struct __attribute__((packed)) MadtLocalApic {
        uint8_t type, length, acpi_processor_uid, apic_id;
        uint32_t flags;
} MadtLocalApic;

typedef struct __attribute__((packed)) MadtIoApic {
        uint8_t type, length, io_apic_id, reserved;
        uint32_t address, global_system_interrupt_base;
} MadtIoApic;

typedef struct __attribute__((packed)) MadtInterruptOverride {
        uint8_t type, length, bus, source;
        uint32_t global_system_interrupt;
        uint16_t flags;
} MadtInterruptOverride;

typedef struct __attribute__((packed)) MadtLocalApicNmi {
        uint8_t type, length, acpi_processor_uid;
        uint16_t flags;
        uint8_t lint;
} MadtLocalApicNmi;

typedef struct __attribute__((packed)) MadtLocalX2Apic {
        uint8_t type, length;
        uint16_t reserved;
        uint32_t x2apic_id, flags, acpi_processor_uid;
} MadtLocalX2Apic;

typedef struct __attribute__((packed)) MadtLocalX2ApicNmi {
        uint8_t type, length;
        uint16_t flags;
        uint32_t acpi_processor_uid;
        uint8_t lint;
        uint8_t reserved[3];
} MadtLocalX2ApicNmi;

#define MADT_APIC_ENABLED 1
#define MADT_ACTIVE_HIGH_LEVEL 0x000D /* table 5.26: polarity 01, trigger mode 11 */
#define MADT_ALL_PROCESSORS 0xFF
#define MADT_ALL_X2_PROCESSORS 0xFFFFFFFF
#define XAPIC_ID_MAX 254 /* 255 is the broadcast */

/* PCI Firmware Specification 3.3, 4.1.2 */
typedef struct __attribute__((packed)) Mcfg {
        TableHeader header;
        uint64_t reserved;
        uint64_t base_address;
        uint16_t pci_segment;
        uint8_t start_bus, end_bus;
        uint32_t reserved2;
} Mcfg;

/* What dsdt.asl calls PRMS. */
typedef struct __attribute__((packed)) DsdtParameters {
        uint32_t com_mask;
        uint32_t reserved;
        uint64_t mmio64_base, mmio64_size;
} DsdtParameters;
_Static_assert(sizeof(DsdtParameters) <= X86_ACPI_PARAMETERS_SIZE, "ACPI area");

#define TABLES_SIZE (X86_ACPI_PARAMETERS_ADDRESS - X86_ACPI_ADDRESS)

/* The tables grow in a buffer of our own; the guest's memory sees them when they are whole. */
typedef struct TableWriter {
        uint8_t *data; /* TABLES_SIZE bytes, for X86_ACPI_ADDRESS */
        size_t size;
        bool full;
} TableWriter;

/* Appends; returns the guest address. Beyond the end nothing is written, and `full` stays set. */
static uint64_t append(TableWriter *w, const void *data, size_t size) {
        uint64_t address = X86_ACPI_ADDRESS + w->size;

        if (w->full || size > TABLES_SIZE - w->size) {
                w->full = true;
                return 0;
        }
        memcpy(w->data + w->size, data, size);
        w->size += size;
        return address;
}

static void align(TableWriter *w, size_t alignment) {
        static const uint8_t zeroes[64] = {};

        (void) append(w, zeroes, ALIGN_UP(w->size, alignment) - w->size);
}

static uint8_t checksum(const uint8_t *data, size_t size) {
        uint8_t sum = 0;

        for (size_t i = 0; i < size; i++)
                sum += data[i];
        return (uint8_t) -sum;
}

/* Length and checksum of the table that began at `address` and has just ended. */
static void finish_table(TableWriter *w, uint64_t address) {
        uint8_t *p;

        if (w->full)
                return;
        p = w->data + (address - X86_ACPI_ADDRESS);
        store_le32(p + offsetof(TableHeader, length), (uint32_t) (w->size - (address - X86_ACPI_ADDRESS)));
        p[offsetof(TableHeader, checksum)] = 0;
        p[offsetof(TableHeader, checksum)] = checksum(p, w->size - (address - X86_ACPI_ADDRESS));
}

static TableHeader table_header(const char *signature, uint8_t revision) {
        TableHeader h = { .revision = revision, .oem_revision = 1, .creator_revision = 1 };

        memcpy(h.signature, signature, 4);
        memcpy(h.oem_id, "VMMD  ", 6);
        memcpy(h.oem_table_id, "VMMD", 4);
        memcpy(h.oem_table_id + 4, signature, 4);
        memcpy(h.creator_id, "VMMD", 4);
        return h;
}

static GenericAddress io_register(uint64_t port, uint8_t bits, uint8_t access_size) {
        return (GenericAddress) { SYSTEM_IO, bits, 0, access_size, port };
}

static uint64_t append_facs(TableWriter *w) {
        Facs facs = { .signature = { 'F', 'A', 'C', 'S' }, .length = sizeof(facs), .version = 2 };

        align(w, 64);
        return append(w, &facs, sizeof(facs));
}

static uint64_t append_dsdt(TableWriter *w) {
        align(w, 16);
        return append(w, dsdt_aml_code, sizeof(dsdt_aml_code));
}

static uint64_t append_fadt(TableWriter *w, uint64_t facs, uint64_t dsdt) {
        Fadt fadt = {
                .header = table_header("FACP", FADT_REVISION),
                .firmware_ctrl = (uint32_t) facs,
                .dsdt = (uint32_t) dsdt,
                .x_dsdt = dsdt,
                .preferred_pm_profile = PM_PROFILE_ENTERPRISE_SERVER,
                .sci_int = X86_IRQ_SCI,
                .pm1a_evt_blk = X86_PORT_PM1_EVENT,
                .pm1_evt_len = X86_PORT_PM1_EVENT_SIZE,
                .pm1a_cnt_blk = X86_PORT_PM1_CONTROL,
                .pm1_cnt_len = X86_PORT_PM1_CONTROL_SIZE,
                .x_pm1a_evt_blk = io_register(X86_PORT_PM1_EVENT, 32, 2),
                .x_pm1a_cnt_blk = io_register(X86_PORT_PM1_CONTROL, 16, 2),
                .gpe0_blk = X86_PORT_GPE0,
                .gpe0_blk_len = X86_PORT_GPE0_SIZE,
                .x_gpe0_blk = io_register(X86_PORT_GPE0, 8 * X86_PORT_GPE0_SIZE, 1),
                .p_lvl2_lat = P_LVL2_LAT_NONE,
                .p_lvl3_lat = P_LVL3_LAT_NONE,
                .century = CMOS_CENTURY,
                /* Neither keyboard controller nor ISA devices that a user would see; MSI and the CMOS clock are not
                 * denied. Both buttons are fixed hardware: the flags PWR_BUTTON and SLP_BUTTON would say the opposite. */
                .iapc_boot_arch = BOOT_ARCH_VGA_NOT_PRESENT | BOOT_ARCH_NO_ASPM,
                .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_FIX_RTC | FADT_RESET_REG_SUP | FADT_HEADLESS,
                .reset_reg = io_register(X86_PORT_RESET, 8, 1),
                .reset_value = X86_RESET_VALUE,
                .fadt_minor_version = FADT_MINOR_VERSION,
                .hypervisor_vendor_identity = 0x00000000646D6D76, /* "vmmd" */
        };
        uint64_t address;

        align(w, 16);
        address = append(w, &fadt, sizeof(fadt));
        finish_table(w, address);
        return address;
}

static void append_processor(TableWriter *w, unsigned i) {
        if (i <= XAPIC_ID_MAX) {
                MadtLocalApic apic = { 0, sizeof(apic), (uint8_t) i, (uint8_t) i, MADT_APIC_ENABLED };
                (void) append(w, &apic, sizeof(apic));
        } else {
                MadtLocalX2Apic apic = { 9, sizeof(apic), 0, i, MADT_APIC_ENABLED, i };
                (void) append(w, &apic, sizeof(apic));
        }
}

static uint64_t append_madt(TableWriter *w, unsigned n_vcpus) {
        const Madt madt = { table_header("APIC", 5), X86_LAPIC_BASE, MADT_PCAT_COMPAT };
        const MadtIoApic io_apic = { 1, sizeof(io_apic), X86_IOAPIC_ID, 0, X86_IOAPIC_BASE, 0 };
        /* The timer's line goes to pin 2, as on every PC. */
        const MadtInterruptOverride timer = { 2, sizeof(timer), 0, 0, 2, 0 };
        const MadtInterruptOverride sci = { 2, sizeof(sci), 0, X86_IRQ_SCI, X86_IRQ_SCI, MADT_ACTIVE_HIGH_LEVEL };
        const MadtLocalApicNmi nmi = { 4, sizeof(nmi), MADT_ALL_PROCESSORS, 0, 1 };
        const MadtLocalX2ApicNmi x2_nmi = { 0xA, sizeof(x2_nmi), 0, MADT_ALL_X2_PROCESSORS, 1, {} };
        uint64_t address;

        align(w, 16);
        address = append(w, &madt, sizeof(madt));
        for (unsigned i = 0; i < n_vcpus && !w->full; i++)
                append_processor(w, i);
        (void) append(w, &io_apic, sizeof(io_apic));
        (void) append(w, &timer, sizeof(timer));
        (void) append(w, &sci, sizeof(sci));
        (void) append(w, &nmi, sizeof(nmi));
        if (n_vcpus > XAPIC_ID_MAX + 1)
                (void) append(w, &x2_nmi, sizeof(x2_nmi));
        finish_table(w, address);
        return address;
}

static uint64_t append_mcfg(TableWriter *w) {
        const Mcfg mcfg = {
                .header = table_header("MCFG", 1), .base_address = X86_PCI_ECAM_BASE, .end_bus = X86_PCI_BUSES - 1,
        };
        uint64_t address;

        align(w, 16);
        address = append(w, &mcfg, sizeof(mcfg));
        finish_table(w, address);
        return address;
}

static uint64_t append_xsdt(TableWriter *w, const uint64_t *tables, size_t n) {
        const TableHeader header = table_header("XSDT", 1);
        uint64_t address;

        align(w, 16);
        address = append(w, &header, sizeof(header));
        (void) append(w, tables, n * sizeof(uint64_t));
        finish_table(w, address);
        return address;
}

static void write_rsdp(uint8_t *place, uint64_t xsdt) {
        Rsdp rsdp = {
                .signature = { 'R', 'S', 'D', ' ', 'P', 'T', 'R', ' ' },
                .oem_id = { 'V', 'M', 'M', 'D', ' ', ' ' },
                .revision = 2,
                .length = sizeof(rsdp),
                .xsdt_address = xsdt,
        };

        rsdp.checksum = checksum((const uint8_t *) &rsdp, RSDP_V1_LENGTH);
        rsdp.extended_checksum = checksum((const uint8_t *) &rsdp, sizeof(rsdp));
        memcpy(place, &rsdp, sizeof(rsdp));
}

int x86_acpi_write(const GuestMemory *memory, const X86AcpiInput *input, uint64_t *ret_rsdp, char **ret_message) {
        _cleanup_free_ uint8_t *data = calloc(1, TABLES_SIZE);
        const DsdtParameters parameters = {
                .com_mask = input->com_mask, .mmio64_base = input->mmio64_base, .mmio64_size = input->mmio64_size,
        };
        TableWriter w = { .data = data };
        uint64_t tables[3], facs, dsdt, xsdt;
        uint8_t *place;

        if (!data)
                return -ENOMEM;
        (void) append(&w, &(Rsdp) {}, sizeof(Rsdp)); /* written last */
        facs = append_facs(&w);
        dsdt = append_dsdt(&w);
        tables[0] = append_fadt(&w, facs, dsdt);
        tables[1] = append_madt(&w, input->n_vcpus);
        tables[2] = append_mcfg(&w);
        xsdt = append_xsdt(&w, tables, ELEMENTSOF(tables));
        if (w.full)
                return set_message(ret_message, -E2BIG, "The ACPI tables of a machine with %u vCPUs do not fit into %llu bytes.",
                        input->n_vcpus, (unsigned long long) TABLES_SIZE);
        write_rsdp(data, xsdt);

        place = guest_memory_at(memory, X86_ACPI_ADDRESS, X86_ACPI_SIZE);
        if (!place)
                return -ENOMEM;
        memset(place, 0, X86_ACPI_SIZE);
        memcpy(place, data, w.size);
        memcpy(place + TABLES_SIZE, &parameters, sizeof(parameters));
        *ret_rsdp = X86_ACPI_ADDRESS;
        return 0;
}
