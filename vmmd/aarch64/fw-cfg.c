/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "base64.h"
#include "fw-cfg.h"

#define REG_DATA_SIZE 8 /* the data register; behind it the selector */
#define REG_SELECTOR 8

#define KEY_SIGNATURE 0x0000
#define KEY_ID 0x0001
#define KEY_DIRECTORY 0x0019
#define KEY_FILE_FIRST 0x0020

#define FILE_NAME_SIZE 56 /* with its NUL */
#define DIRECTORY_ENTRY_SIZE (4 + 2 + 2 + FILE_NAME_SIZE)
#define ID_TRADITIONAL 1 /* selector and data register, no DMA */

#define PREFIX "opt/io.systemd.credentials/"

typedef struct File {
        char name[FILE_NAME_SIZE];
        uint8_t *data;
        size_t size;
} File;

struct FwCfg {
        File *files;
        size_t n_files;
        uint8_t *directory;
        size_t directory_size;
        uint16_t key;
        uint64_t offset; /* of the next byte */
};

static void store_be32(uint8_t *p, uint32_t v) {
        store_le32(p, __builtin_bswap32(v));
}

static void store_be16(uint8_t *p, uint16_t v) {
        store_le16(p, __builtin_bswap16(v));
}

/* --- files --- */

static int add_file(FwCfg *f, const char *name, size_t name_length, const char *value, bool binary, char **ret_message) {
        File *grown, *file;
        int r = 0;

        if (name_length + strlen(PREFIX) >= FILE_NAME_SIZE)
                return set_message(ret_message, -ENAMETOOLONG,
                        "The credential '%.*s' cannot be given to the guest: on this architecture its name may have %zu characters.",
                        (int) name_length, name, FILE_NAME_SIZE - 1 - strlen(PREFIX));
        grown = reallocarray(f->files, f->n_files + 1, sizeof(File));
        if (!grown)
                return -ENOMEM;
        f->files = grown;
        file = &grown[f->n_files];
        *file = (File) { .size = strlen(value) };
        memcpy(file->name, PREFIX, strlen(PREFIX));
        memcpy(file->name + strlen(PREFIX), name, name_length);
        if (binary)
                r = base64_decode(value, (void **) &file->data, &file->size);
        else {
                file->data = (uint8_t *) strdup(value);
                r = file->data ? 0 : -ENOMEM;
        }
        f->n_files++;
        return r == -EINVAL ? set_message(ret_message, r, "The credential '%.*s' is no Base64.", (int) name_length, name) : r;
}

static int add_string(FwCfg *f, const char *string, char **ret_message) {
        const char *text = startswith(string, "io.systemd.credential:"), *binary = startswith(string, "io.systemd.credential.binary:");
        const char *name = text ?: binary, *equals = name ? strchr(name, '=') : NULL;

        if (!equals)
                return set_message(ret_message, -EOPNOTSUPP,
                        "The guest cannot be given \"%s\": this architecture has no SMBIOS, and strings other than credentials no place.", string);
        return add_file(f, name, (size_t) (equals - name), equals + 1, binary != NULL, ret_message);
}

static int make_directory(FwCfg *f) {
        f->directory_size = 4 + f->n_files * DIRECTORY_ENTRY_SIZE;
        f->directory = calloc(1, f->directory_size);
        if (!f->directory)
                return -ENOMEM;
        store_be32(f->directory, (uint32_t) f->n_files);
        for (size_t i = 0; i < f->n_files; i++) {
                uint8_t *entry = f->directory + 4 + i * DIRECTORY_ENTRY_SIZE;

                store_be32(entry, (uint32_t) f->files[i].size);
                store_be16(entry + 4, (uint16_t) (KEY_FILE_FIRST + i));
                memcpy(entry + 8, f->files[i].name, FILE_NAME_SIZE);
        }
        return 0;
}

int fw_cfg_new(const char *const *strings, FwCfg **ret, char **ret_message) {
        _cleanup_(fw_cfg_freep) FwCfg *f = calloc(1, sizeof(FwCfg));
        int r = 0;

        if (!f)
                return -ENOMEM;
        for (; strings && *strings && r >= 0; strings++)
                r = add_string(f, *strings, ret_message);
        if (r >= 0)
                r = make_directory(f);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(f);
        return 0;
}

FwCfg *fw_cfg_free(FwCfg *f) {
        if (!f)
                return NULL;
        for (size_t i = 0; i < f->n_files; i++)
                free(f->files[i].data);
        free(f->files);
        free(f->directory);
        return mfree(f);
}

void fw_cfg_reset(FwCfg *f) {
        f->key = 0;
        f->offset = 0;
}

/* --- registers --- */

static const uint8_t *selected(const FwCfg *f, uint64_t *ret_size) {
        static const uint8_t signature[] = { 'Q', 'E', 'M', 'U' }, id[] = { ID_TRADITIONAL, 0, 0, 0 };

        switch (f->key) {
        case KEY_SIGNATURE:
                *ret_size = sizeof(signature);
                return signature;
        case KEY_ID:
                *ret_size = sizeof(id);
                return id;
        case KEY_DIRECTORY:
                *ret_size = f->directory_size;
                return f->directory;
        default:
                if (f->key >= KEY_FILE_FIRST && f->key < KEY_FILE_FIRST + f->n_files) {
                        *ret_size = f->files[f->key - KEY_FILE_FIRST].size;
                        return f->files[f->key - KEY_FILE_FIRST].data;
                }
                *ret_size = 0;
                return NULL;
        }
}

void fw_cfg_access(FwCfg *f, uint64_t offset, void *data, size_t size, bool is_write) {
        const uint8_t *bytes;
        uint64_t end;

        if (is_write) {
                if (offset == REG_SELECTOR && size == 2) {
                        f->key = __builtin_bswap16(load_le16(data));
                        f->offset = 0;
                }
                return;
        }
        memset(data, 0, size);
        if (offset >= REG_DATA_SIZE)
                return;
        /* An access of several bytes is as many of one, the first at the lowest address. What is behind the end is zero. */
        bytes = selected(f, &end);
        for (uint8_t *p = data; size > 0; p++, size--)
                if (f->offset < end)
                        *p = bytes[f->offset++];
}

int fw_cfg_save(const FwCfg *f, StateWriter *w) {
        state_begin(w, "arm64-fw-cfg", 0, 1);
        state_put_u16(w, f->key);
        state_put_u64(w, f->offset);
        return state_end(w);
}

int fw_cfg_load(FwCfg *f, StateReader *r, char **ret_message) {
        uint16_t key;
        uint64_t offset;
        int k;

        k = state_enter(r, "arm64-fw-cfg", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the firmware's files.");
        key = state_get_u16(r);
        offset = state_get_u64(r);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        f->key = key;
        f->offset = offset;
        return 0;
}
