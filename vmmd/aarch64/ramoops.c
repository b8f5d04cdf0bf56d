/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "layout.h"
#include "ramoops.h"

/* struct persistent_ram_buffer (Linux, fs/pstore/ram_core.c): its signature, where the next byte goes, and how many there are. The driver makes that 0 before it
 * writes a record, and more with each piece of it. */
#define SIZE_OFFSET 8

struct Ramoops {
        void (*panicked)(void *userdata);
        void *userdata;
        uint8_t data[ARM64_RAMOOPS_SIZE];
};

int ramoops_new(void (*panicked)(void *userdata), void *userdata, Ramoops **ret) {
        Ramoops *p = calloc(1, sizeof(Ramoops));

        if (!p)
                return -ENOMEM;
        p->panicked = panicked;
        p->userdata = userdata;
        *ret = p;
        return 0;
}

Ramoops *ramoops_free(Ramoops *p) {
        return mfree(p);
}

void ramoops_access(Ramoops *p, uint64_t offset, void *data, size_t size, bool is_write) {
        bool was_empty = load_le32(p->data + SIZE_OFFSET) == 0;

        if (offset >= sizeof(p->data) || size > sizeof(p->data) - offset) {
                if (!is_write)
                        memset(data, 0, size);
                return;
        }
        if (!is_write) {
                memcpy(data, p->data + offset, size);
                return;
        }
        memcpy(p->data + offset, data, size);
        if (was_empty && load_le32(p->data + SIZE_OFFSET) != 0)
                p->panicked(p->userdata);
}

int ramoops_save(const Ramoops *p, StateWriter *w) {
        state_begin(w, "arm64-ramoops", 0, 1);
        state_put_blob(w, p->data, sizeof(p->data));
        return state_end(w);
}

int ramoops_load(Ramoops *p, StateReader *r, char **ret_message) {
        uint8_t data[ARM64_RAMOOPS_SIZE];
        int k;

        k = state_enter(r, "arm64-ramoops", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the guest's last words.");
        state_get_blob(r, data, sizeof(data));
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        memcpy(p->data, data, sizeof(data));
        return 0;
}
