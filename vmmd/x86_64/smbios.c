/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "config.h"
#include "layout.h"
#include "machine-uuid.h"
#include "smbios.h"

/* DSP0134 5.2.2: the 64-bit entry point; it is searched for on 16-byte boundaries. */
typedef struct __attribute__((packed)) SmbiosEntryPoint {
        char anchor[5];
        uint8_t checksum;
        uint8_t length;
        uint8_t major, minor, docrev;
        uint8_t revision;
        uint8_t reserved;
        uint32_t maximum_size;
        uint64_t address;
} SmbiosEntryPoint;
_Static_assert(sizeof(SmbiosEntryPoint) == 24, "DSP0134 5.2.2");

#define TABLE_OFFSET 32
#define TABLE_SIZE_MAX (X86_SMBIOS_SIZE - TABLE_OFFSET)

/* The last handles are reserved (DSP0134 6.1.2). */
#define STRUCTURE_STRINGS_MAX 255

typedef struct TableBuilder {
        uint8_t *data; /* TABLE_SIZE_MAX bytes */
        size_t size;
        uint16_t next_handle;
        bool full;
} TableBuilder;

static void append(TableBuilder *b, const void *data, size_t size) {
        if (b->full || size > TABLE_SIZE_MAX - b->size) {
                b->full = true;
                return;
        }
        if (size > 0)
                memcpy(b->data + b->size, data, size);
        b->size += size;
}

/* One structure: its formatted area behind the header, then its strings, which the formatted area refers to by number
 * (from 1 on). */
static void append_structure(TableBuilder *b, uint8_t type, const uint8_t *formatted, size_t size, const char *const *strings,
        size_t n_strings) {
        uint8_t header[4] = { type, (uint8_t) (sizeof(header) + size) };

        store_le16(header + 2, b->next_handle++);
        append(b, header, sizeof(header));
        append(b, formatted, size);
        for (size_t i = 0; i < n_strings; i++)
                append(b, strings[i], strlen(strings[i]) + 1);
        /* "the string set … terminated by an additional null", two where there is no string. */
        append(b, "\0", n_strings == 0 ? 2 : 1);
}

/* DSP0134 7.1: vendor, version, date; everything else "not supported", but a virtual machine. */
static void append_bios(TableBuilder *b) {
        static const char *const strings[] = { "vmmd", PROJECT_VERSION, "01/01/2026" };
        uint8_t formatted[0x1A - 4] = {};

        formatted[0x04 - 4] = 1;
        formatted[0x05 - 4] = 2;
        formatted[0x08 - 4] = 3;
        store_le64(formatted + 0x0A - 4, 1u << 3);  /* "BIOS characteristics are not supported" */
        formatted[0x13 - 4] = 1u << 4;              /* "SMBIOS table describes a virtual machine" */
        formatted[0x14 - 4] = formatted[0x15 - 4] = 0xFF; /* no release numbers: */
        formatted[0x16 - 4] = formatted[0x17 - 4] = 0xFF; /* of firmware and embedded controller */
        append_structure(b, 0, formatted, sizeof(formatted), strings, ELEMENTSOF(strings));
}

/* DSP0134 7.2. */
static void append_system(TableBuilder *b, const X86SmbiosInput *input) {
        const char *strings[] = { "vmmd", "Virtual Machine", PROJECT_VERSION, input->machine_name };
        uint8_t formatted[0x1B - 4] = {}, *uuid = formatted + 0x08 - 4;

        formatted[0x04 - 4] = 1;
        formatted[0x05 - 4] = 2;
        formatted[0x06 - 4] = 3;
        formatted[0x07 - 4] = 4;
        /* 7.2.1: the first three fields are little-endian, against RFC 4122. */
        for (size_t i = 0; i < 16; i++)
                uuid[i] = input->uuid[i < 4 ? 3 - i : i < 6 ? 9 - i : i < 8 ? 13 - i : i];
        formatted[0x18 - 4] = 0x06; /* wake-up type: power switch */
        append_structure(b, 1, formatted, sizeof(formatted), strings, ELEMENTSOF(strings));
}

/* DSP0134 7.12; as many structures as it takes. */
static int append_oem_strings(TableBuilder *b, const char *const *strings, char **ret_message) {
        size_t n = 0, done;

        for (; strings && strings[n]; n++)
                if (strings[n][0] == 0)
                        return set_message(ret_message, -EINVAL, "SMBIOS string %zu is empty, which SMBIOS cannot express.", n + 1);

        for (done = 0; done < n;) {
                uint8_t count = (uint8_t) MIN(n - done, (size_t) STRUCTURE_STRINGS_MAX);

                append_structure(b, 11, &count, sizeof(count), strings + done, count);
                done += count;
        }
        return 0;
}

int x86_smbios_write(const GuestMemory *memory, const X86SmbiosInput *input, char **ret_message) {
        _cleanup_free_ uint8_t *table = calloc(1, TABLE_SIZE_MAX);
        TableBuilder b = { .data = table };
        static const uint8_t boot_status[0x0B - 4] = {}; /* DSP0134 7.33: no errors detected */
        SmbiosEntryPoint entry = {
                .anchor = { '_', 'S', 'M', '3', '_' },
                .length = sizeof(entry),
                .major = 3, .minor = 2, .revision = 1,
                .address = X86_SMBIOS_ADDRESS + TABLE_OFFSET,
        };
        uint8_t *place, sum = 0;
        int r;

        if (!table)
                return -ENOMEM;
        append_bios(&b);
        append_system(&b, input);
        r = append_oem_strings(&b, input->oem_strings, ret_message);
        if (r < 0)
                return r;
        append_structure(&b, 32, boot_status, sizeof(boot_status), NULL, 0);
        append_structure(&b, 127, NULL, 0, NULL, 0);
        if (b.full)
                return set_message(ret_message, -E2BIG,
                        "The SMBIOS strings (credentials among them) do not fit into the %llu bytes that there are.",
                        (unsigned long long) TABLE_SIZE_MAX);

        place = guest_memory_at(memory, X86_SMBIOS_ADDRESS, X86_SMBIOS_SIZE);
        if (!place)
                return -ENOMEM;
        entry.maximum_size = (uint32_t) b.size;
        for (size_t i = 0; i < sizeof(entry); i++)
                sum += ((const uint8_t *) &entry)[i];
        entry.checksum = (uint8_t) -sum;

        memset(place, 0, X86_SMBIOS_SIZE);
        memcpy(place, &entry, sizeof(entry));
        memcpy(place + TABLE_OFFSET, table, b.size);
        return 0;
}

void x86_smbios_uuid(const char *machine_name, uint8_t ret[static 16]) {
        sd_id128_t id = machine_uuid(machine_name);

        memcpy(ret, id.bytes, 16);
}
