/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdio.h>

#include "mac-address.h"
#include "machine-uuid.h"

static int hex_digit(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
                return (c | 0x20) - 'a' + 10;
        return -EINVAL;
}

int mac_address_parse(const char *s, uint8_t ret[MAC_ADDRESS_SIZE]) {
        uint8_t address[MAC_ADDRESS_SIZE], any = 0;

        for (size_t i = 0; i < MAC_ADDRESS_SIZE; i++, s += 3) {
                int high = hex_digit(s[0]), low = high < 0 ? high : hex_digit(s[1]);

                if (low < 0 || s[2] != (i + 1 < MAC_ADDRESS_SIZE ? ':' : 0))
                        return -EINVAL;
                address[i] = (uint8_t) (high << 4 | low);
                any |= address[i];
        }
        if (any == 0 || address[0] & 1)
                return -EINVAL;
        memcpy(ret, address, sizeof(address));
        return 0;
}

bool mac_address_is_valid(const char *s) {
        uint8_t address[MAC_ADDRESS_SIZE];

        return mac_address_parse(s, address) >= 0;
}

void mac_address_format(const uint8_t address[MAC_ADDRESS_SIZE], char ret[MAC_ADDRESS_TEXT_MAX]) {
        (void) snprintf(ret, MAC_ADDRESS_TEXT_MAX, "%02x:%02x:%02x:%02x:%02x:%02x", address[0], address[1], address[2], address[3],
                address[4], address[5]);
}

/* FNV-1a, and a stir so that each bit of the result depends on all of the input. It tells apart; it hides nothing, and the UUID is no secret. */
void mac_address_derive(const char *machine, const char *device, uint8_t ret[MAC_ADDRESS_SIZE]) {
        sd_id128_t id = machine_uuid(machine);
        uint64_t h = UINT64_C(0xcbf29ce484222325);

        for (size_t i = 0; i < sizeof(id.bytes); i++)
                h = (h ^ id.bytes[i]) * UINT64_C(0x100000001b3);
        for (; *device; device++)
                h = (h ^ (uint8_t) *device) * UINT64_C(0x100000001b3);
        h = (h ^ (h >> 33)) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 33;
        memcpy(ret, &h, MAC_ADDRESS_SIZE);
        ret[0] = (uint8_t) ((ret[0] & 0xfc) | 0x02); /* administered locally, one station */
}
