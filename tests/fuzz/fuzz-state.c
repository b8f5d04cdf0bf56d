/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Bytes to the state reader: as they are, and behind a header that is right, so that the sections are reached. */

#include "state.h"

#define HEADER_SIZE 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const uint8_t *data, size_t size) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_free_ char *message = NULL;
        char name[2] = {}, blob[4];
        size_t length;

        if (state_reader_new(data, size, &r, &message) < 0) {
                if (!message)
                        abort();
                return;
        }
        for (unsigned i = 1; i < 8; i++) {
                name[0] = (char) i;
                if (state_enter(r, name, i & 1, UINT32_MAX) < 0)
                        continue;
                (void) state_get_u8(r);
                (void) state_get_blob_view(r, 16, &length);
                state_get_blob(r, blob, sizeof(blob));
                (void) state_get_u64(r);
                (void) state_leave(r, &message);
        }
        (void) state_reader_finish(r, &message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        uint8_t *whole;

        read_all(data, size);
        if (size < 1)
                return 0;

        whole = malloc(HEADER_SIZE + size);
        if (!whole)
                return 0;
        memcpy(whole, "VMMSTATE", 8);
        store_le32(whole + 8, 1);
        store_le32(whole + 12, data[0] % 8);
        store_le64(whole + 16, HEADER_SIZE + size - 1);
        memcpy(whole + HEADER_SIZE, data + 1, size - 1);
        read_all(whole, HEADER_SIZE + size - 1);
        free(whole);
        return 0;
}
