/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ACPI and SMBIOS as a guest would find them: from the entry point on, by address and length, with every checksum. */

#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "acpi.h"
#include "layout.h"
#include "skip.h"
#include "smbios.h"

static void make_memory(GuestMemory *memory, uint64_t size) {
        *memory = (GuestMemory) {};
        assert_int_equal(guest_memory_add(memory, guest_memory_create_fd(size, 0), 0, 0, size, 0), 0);
}

static uint8_t sum(const uint8_t *p, size_t size) {
        uint8_t s = 0;

        for (size_t i = 0; i < size; i++)
                s += p[i];
        return s;
}

/* The table at an address that another table gave; checks length and checksum (the FACS has none). */
static const uint8_t *table_at(const GuestMemory *memory, uint64_t address, uint32_t *ret_length) {
        const uint8_t *p;

        assert_in_range(address, X86_ACPI_ADDRESS, X86_ACPI_PARAMETERS_ADDRESS - 36);
        p = guest_memory_at(memory, address, 36);
        *ret_length = load_le32(p + 4);
        assert_in_range(*ret_length, 36, X86_ACPI_PARAMETERS_ADDRESS - address);
        if (memcmp(p, "FACS", 4) != 0)
                assert_int_equal(sum(p, *ret_length), 0);
        return p;
}

/* By the XSDT, or, for what the FADT knows, by it. */
static const uint8_t *find_table(const GuestMemory *memory, uint64_t rsdp_address, const char *signature, uint32_t *ret_length) {
        const uint8_t *rsdp = guest_memory_at(memory, rsdp_address, 36), *xsdt, *fadt;
        uint32_t length;

        assert_memory_equal(rsdp, "RSD PTR ", 8);
        assert_int_equal(sum(rsdp, 20), 0);
        assert_int_equal(sum(rsdp, 36), 0);
        assert_int_equal(rsdp[15], 2);
        xsdt = table_at(memory, load_le64(rsdp + 24), &length);
        assert_memory_equal(xsdt, "XSDT", 4);
        for (uint32_t i = 36; i + 8 <= length; i += 8) {
                const uint8_t *t = table_at(memory, load_le64(xsdt + i), ret_length);
                if (memcmp(t, signature, 4) == 0)
                        return t;
        }
        fadt = find_table(memory, rsdp_address, "FACP", ret_length);
        return table_at(memory, memcmp(signature, "FACS", 4) == 0 ? load_le32(fadt + 36) : load_le64(fadt + 140), ret_length);
}

static void refuses_tables_that_do_not_fit(void **state) {
        X86AcpiInput acpi = { .n_vcpus = 100000 };
        _cleanup_free_ char *message = NULL, *large = malloc(X86_SMBIOS_SIZE);
        const char *strings[] = { large, NULL };
        X86SmbiosInput smbios = { .machine_name = "demo", .n_vcpus = 1, .oem_strings = strings };
        GuestMemory memory;
        uint64_t rsdp = 77;

        assert_non_null(large);
        memset(large, 'x', X86_SMBIOS_SIZE - 1);
        large[X86_SMBIOS_SIZE - 1] = 0;
        make_memory(&memory, MIB(2));
        assert_int_equal(x86_acpi_write(&memory, &acpi, &rsdp, &message), -E2BIG);
        assert_string_equal(message, "The ACPI tables of a machine with 100000 vCPUs do not fit into 65280 bytes.");
        assert_int_equal(rsdp, 77);
        assert_int_equal(x86_smbios_write(&memory, &smbios, &message), -E2BIG);
        assert_string_equal(message, "The SMBIOS strings (credentials among them) do not fit into the 65504 bytes that there are.");
        strings[0] = "";
        assert_int_equal(x86_smbios_write(&memory, &smbios, &message), -EINVAL);
        assert_string_equal(message, "SMBIOS string 1 is empty, which SMBIOS cannot express.");
        guest_memory_done(&memory);

        make_memory(&memory, 0xE0000);
        acpi.n_vcpus = 1;
        strings[0] = "a";
        assert_int_equal(x86_acpi_write(&memory, &acpi, &rsdp, NULL), -ENOMEM);
        assert_int_equal(x86_smbios_write(&memory, &smbios, NULL), -ENOMEM);
        guest_memory_done(&memory);
}

static void lists_every_vcpu_once(void **state) {
        static const unsigned counts[] = { 1, 2, 4, 255, 256, 1024 };

        for (size_t k = 0; k < ELEMENTSOF(counts); k++) {
                X86AcpiInput input = { .n_vcpus = counts[k] };
                unsigned n = 0, n_x2 = 0;
                const uint8_t *madt;
                GuestMemory memory;
                uint32_t length;
                uint64_t rsdp;

                make_memory(&memory, MIB(2));
                assert_int_equal(x86_acpi_write(&memory, &input, &rsdp, NULL), 0);
                madt = find_table(&memory, rsdp, "APIC", &length);
                for (uint32_t i = 44; i < length; i += madt[i + 1]) {
                        assert_in_range(madt[i + 1], 6, length - i);
                        if (madt[i] == 0)
                                assert_int_equal(madt[i + 3], n++);
                        else if (madt[i] == 9) {
                                assert_int_equal(load_le32(madt + i + 4), n++);
                                n_x2++;
                        }
                }
                assert_int_equal(n, counts[k]);
                assert_int_equal(n_x2, counts[k] > 255 ? counts[k] - 255 : 0);
                guest_memory_done(&memory);
        }
}

static void says_where_the_registers_are(void **state) {
        X86AcpiInput input = { .n_vcpus = 1, .com_mask = 0x5, .mmio64_base = GIB(64), .mmio64_size = GIB(32) };
        const uint8_t *fadt, *mcfg, *facs, *dsdt, *parameters;
        static const uint8_t region[] = { 'P', 'R', 'M', 'S', 0x00, 0x0C };
        static const uint8_t hotplug_region[] = { 'H', 'P', 'R', 'G', 0x01, 0x0B };
        const uint8_t *found;
        GuestMemory memory;
        uint32_t length;
        uint64_t rsdp;

        make_memory(&memory, MIB(2));
        assert_int_equal(x86_acpi_write(&memory, &input, &rsdp, NULL), 0);
        fadt = find_table(&memory, rsdp, "FACP", &length);
        assert_int_equal(length, 276);
        assert_int_equal(fadt[8], 6);
        assert_int_equal(load_le16(fadt + 46), X86_IRQ_SCI);
        assert_int_equal(load_le32(fadt + 56), X86_PORT_PM1_EVENT);
        assert_int_equal(load_le32(fadt + 64), X86_PORT_PM1_CONTROL);
        assert_int_equal(load_le64(fadt + 152), X86_PORT_PM1_EVENT);
        assert_int_equal(load_le64(fadt + 176), X86_PORT_PM1_CONTROL);
        assert_int_equal(load_le32(fadt + 80), X86_PORT_GPE0);
        assert_int_equal(fadt[92], X86_PORT_GPE0_SIZE);
        assert_int_equal(load_le64(fadt + 224), X86_PORT_GPE0);
        assert_int_equal(load_le64(fadt + 120), X86_PORT_RESET);
        assert_int_equal(fadt[128], X86_RESET_VALUE);
        /* Both buttons are fixed hardware; the machine is not hardware-reduced. */
        assert_int_equal(load_le32(fadt + 112) & (1u << 4 | 1u << 5 | 1u << 20), 0);
        mcfg = find_table(&memory, rsdp, "MCFG", &length);
        assert_int_equal(length, 60);
        assert_int_equal(load_le64(mcfg + 44), X86_PCI_ECAM_BASE);
        assert_int_equal(mcfg[55], X86_PCI_BUSES - 1);
        assert_int_equal(X86_PCI_ECAM_SIZE, (uint64_t) X86_PCI_BUSES << 20);
        facs = find_table(&memory, rsdp, "FACS", &length);
        assert_int_equal(length, 64);
        assert_int_equal((facs - (const uint8_t *) guest_memory_at(&memory, 0, 1)) % 64, 0);

        /* dsdt.asl has addresses of layout.h as numbers. */
        dsdt = find_table(&memory, rsdp, "DSDT", &length);
        found = memmem(dsdt, length, region, sizeof(region));
        assert_non_null(found);
        assert_int_equal(load_le32(found + sizeof(region)), X86_ACPI_PARAMETERS_ADDRESS);
        found = memmem(dsdt, length, hotplug_region, sizeof(hotplug_region));
        assert_non_null(found);
        assert_int_equal(load_le16(found + sizeof(hotplug_region)), X86_PORT_HOTPLUG);
        assert_int_equal(found[sizeof(hotplug_region) + 3], X86_PORT_HOTPLUG_SIZE);
        parameters = guest_memory_at(&memory, X86_ACPI_PARAMETERS_ADDRESS, 24);
        assert_int_equal(load_le32(parameters), 5);
        assert_int_equal(load_le64(parameters + 8), GIB(64));
        assert_int_equal(load_le64(parameters + 16), GIB(32));
        guest_memory_done(&memory);
}

/* What iasl says of a table that it takes apart. */
static void expect_clean_disassembly(const char *iasl, const char *directory, const char *signature) {
        char command[PATH_MAX * 3], line[1024], source[PATH_MAX];
        FILE *f;

        (void) snprintf(command, sizeof(command), "'%s' -d '%s/%s' 2>&1", iasl, directory, signature);
        f = popen(command, "r");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (strcasestr(line, "error") || strcasestr(line, "warning") || strcasestr(line, "invalid"))
                        fail_msg("%s: %s", signature, line);
        assert_int_equal(pclose(f), 0);

        /* It marks what it does not like in its output, too. */
        (void) snprintf(source, sizeof(source), "%s/%s.dsl", directory, signature);
        f = fopen(source, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (strstr(line, "*****") || strcasestr(line, "unknown") || strcasestr(line, "incorrect checksum"))
                        fail_msg("%s: %s", signature, line);
        (void) fclose(f);
}

static void emits_tables_that_iasl_takes(void **state) {
        static const char *const signatures[] = { "APIC", "FACP", "MCFG", "FACS", "DSDT" };
        const char *iasl = getenv("IASL"), *temporary = getenv("TMPDIR");
        char directory[PATH_MAX / 2], command[PATH_MAX];
        X86AcpiInput input = { .n_vcpus = 300 };
        GuestMemory memory;
        uint64_t rsdp;

        if (!iasl)
                skip_for_want_of("iasl");
        (void) snprintf(directory, sizeof(directory), "%s/test-x86-tables.XXXXXX", temporary ? temporary : "/tmp");
        assert_non_null(mkdtemp(directory));
        make_memory(&memory, MIB(2));
        assert_int_equal(x86_acpi_write(&memory, &input, &rsdp, NULL), 0);
        for (size_t i = 0; i < ELEMENTSOF(signatures); i++) {
                char path[PATH_MAX];
                uint32_t length;
                const uint8_t *table = find_table(&memory, rsdp, signatures[i], &length);
                _cleanup_close_ int fd = -EBADF;

                (void) snprintf(path, sizeof(path), "%s/%s", directory, signatures[i]);
                fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
                assert_true(fd >= 0);
                assert_int_equal(write_full(fd, table, length), 0);
                expect_clean_disassembly(iasl, directory, signatures[i]);
        }
        guest_memory_done(&memory);
        (void) snprintf(command, sizeof(command), "rm -r '%s'", directory);
        assert_int_equal(system(command), 0);
}

/* The nth structure of a type, or NULL; *ret_strings is where its strings begin. Walks as a kernel does. */
static const uint8_t *find_structure(const uint8_t *p, size_t size, uint8_t type, unsigned nth, const char **ret_strings) {
        for (const uint8_t *end = p + size; p < end;) {
                const uint8_t *strings = p + p[1], *next = strings;

                assert_in_range(p[1], 4, end - p);
                while (next[0] != 0 || next[1] != 0)
                        next++;
                if (p[0] == type && nth-- == 0) {
                        *ret_strings = (const char *) strings;
                        return p;
                }
                if (p[0] == 127)
                        assert_ptr_equal(next + 2, end);
                p = next + 2;
        }
        return NULL;
}

static void writes_smbios_with_all_strings(void **state) {
        static const uint8_t uuid_on_wire[] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
        const char *oem[302] = { "io.systemd.credential:a=b" }, *strings;
        X86SmbiosInput input = { .machine_name = "demo", .n_vcpus = 1, .oem_strings = oem };
        const uint8_t *entry, *table, *s;
        GuestMemory memory;
        uint32_t size;

        for (size_t i = 1; i < 301; i++)
                oem[i] = "s";
        for (uint8_t i = 0; i < 16; i++)
                input.uuid[i] = i;
        make_memory(&memory, MIB(2));
        assert_int_equal(x86_smbios_write(&memory, &input, NULL), 0);

        entry = guest_memory_at(&memory, X86_SMBIOS_ADDRESS, 24);
        assert_memory_equal(entry, "_SM3_", 5);
        assert_int_equal(sum(entry, entry[6]), 0);
        size = load_le32(entry + 12);
        table = guest_memory_at(&memory, load_le64(entry + 16), size);
        assert_non_null(table);

        s = find_structure(table, size, 1, 0, &strings);
        assert_non_null(s);
        assert_int_equal(s[1], 0x1B);
        assert_string_equal(strings, "vmmd");
        assert_memory_equal(s + 8, uuid_on_wire, 16);
        s = find_structure(table, size, 11, 0, &strings);
        assert_non_null(s);
        assert_int_equal(s[4], 255);
        assert_string_equal(strings, "io.systemd.credential:a=b");
        s = find_structure(table, size, 11, 1, &strings);
        assert_non_null(s);
        assert_int_equal(s[4], 301 - 255);
        assert_null(find_structure(table, size, 11, 2, &strings));
        assert_non_null(find_structure(table, size, 0, 0, &strings));
        assert_non_null(find_structure(table, size, 32, 0, &strings));
        assert_non_null(find_structure(table, size, 127, 0, &strings));
        guest_memory_done(&memory);
}

static void gives_each_name_its_own_uuid(void **state) {
        uint8_t a[16], b[16], c[16];

        x86_smbios_uuid("demo", a);
        x86_smbios_uuid("demo2", b);
        x86_smbios_uuid("demo", c);
        assert_memory_equal(a, c, 16);
        assert_memory_not_equal(a, b, 16);
        assert_int_equal(a[8] & 0xC0, 0x80);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_tables_that_do_not_fit),
                cmocka_unit_test(lists_every_vcpu_once),
                cmocka_unit_test(says_where_the_registers_are),
                cmocka_unit_test(emits_tables_that_iasl_takes),
                cmocka_unit_test(writes_smbios_with_all_strings),
                cmocka_unit_test(gives_each_name_its_own_uuid),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
