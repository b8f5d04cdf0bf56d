/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <string.h>

#include "machine-uuid.h"

/* FNV-1a with 128 bits. Not a cryptographic hash: it only has to tell apart the names an administrator chooses. */
static unsigned __int128 hash_name(const char *name) {
        const unsigned __int128 prime = ((unsigned __int128) 0x1000000 << 64) | 0x13B;
        unsigned __int128 h = ((unsigned __int128) 0x6C62272E07BB0142 << 64) | 0x62B821756295C58D;

        for (; *name; name++)
                h = (h ^ (uint8_t) *name) * prime;
        return h;
}

sd_id128_t machine_uuid(const char *machine_name) {
        unsigned __int128 h = hash_name(machine_name);
        sd_id128_t name_id, id;

        memcpy(name_id.bytes, &h, sizeof(name_id.bytes));
        if (sd_id128_get_machine_app_specific(name_id, &id) < 0) {
                id = name_id;
                id.bytes[6] = (id.bytes[6] & 0x0F) | 0x80; /* RFC 9562: version 8, made as we like */
                id.bytes[8] = (id.bytes[8] & 0x3F) | 0x80;
        }
        return id;
}
