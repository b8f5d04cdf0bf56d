/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The wire form: a header, then sections, all little-endian and without padding:
 *
 *     magic "VMMSTATE", u32 format, u32 number of sections, u64 size of everything
 *     per section: char name[32] (NUL-padded), u32 instance, u32 version, u64 size of the payload, payload
 *
 * The reader sorts an index of the sections once; so it finds one fast, and sees two of the same name and instance. */

#include "state.h"

#define STATE_MAGIC "VMMSTATE"
#define STATE_HEADER_SIZE 24
#define SECTION_HEADER_SIZE 48
#define STRING_NONE UINT32_MAX /* instead of a length */
#define SECTION_NAME_SIZE (STATE_NAME_MAX + 1)

struct StateWriter {
        uint8_t *data;
        size_t size, allocated;
        size_t section;  /* offset of the open section's header; 0: none is open */
        uint32_t n_sections;
        int error;       /* first error since state_begin() */
        int whole_error; /* first error at all */
};

/* Appends zeroed room, or returns NULL and remembers why. */
static uint8_t *writer_extend(StateWriter *w, size_t length) {
        uint8_t *p;

        if (w->error < 0)
                return NULL;
        if (length > SIZE_MAX / 2 - w->size) {
                w->error = -E2BIG;
                return NULL;
        }
        if (w->size + length > w->allocated) {
                size_t want = MAX(w->allocated * 2, w->size + length);
                uint8_t *grown = realloc(w->data, want);
                if (!grown) {
                        w->error = -ENOMEM;
                        return NULL;
                }
                w->data = grown;
                w->allocated = want;
        }

        p = w->data + w->size;
        memset(p, 0, length);
        w->size += length;
        return p;
}

int state_writer_new(StateWriter **ret) {
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        uint8_t *p;

        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        p = writer_extend(w, STATE_HEADER_SIZE);
        if (!p)
                return w->error;

        memcpy(p, STATE_MAGIC, 8);
        store_le32(p + 8, STATE_FORMAT);
        *ret = TAKE_PTR(w);
        return 0;
}

StateWriter *state_writer_free(StateWriter *w) {
        if (!w)
                return NULL;
        free(w->data);
        return mfree(w);
}

void state_begin(StateWriter *w, const char *name, uint32_t instance, uint32_t version) {
        uint8_t *p;

        w->error = 0;
        if (w->section != 0 || version == 0 || name[0] == 0 || strlen(name) > STATE_NAME_MAX) {
                w->error = -EINVAL;
                return;
        }

        w->section = w->size;
        p = writer_extend(w, SECTION_HEADER_SIZE);
        if (!p)
                return;
        memcpy(p, name, strlen(name));
        store_le32(p + 32, instance);
        store_le32(p + 36, version);
}

/* Room for a field; fields belong to a section. */
static uint8_t *writer_field(StateWriter *w, size_t length) {
        if (w->section == 0 && w->error == 0)
                w->error = -EINVAL;
        return writer_extend(w, length);
}

void state_put_u8(StateWriter *w, uint8_t v) {
        uint8_t *p = writer_field(w, sizeof(v));
        if (p)
                *p = v;
}

void state_put_u16(StateWriter *w, uint16_t v) {
        uint8_t *p = writer_field(w, sizeof(v));
        if (p)
                store_le16(p, v);
}

void state_put_u32(StateWriter *w, uint32_t v) {
        uint8_t *p = writer_field(w, sizeof(v));
        if (p)
                store_le32(p, v);
}

void state_put_u64(StateWriter *w, uint64_t v) {
        uint8_t *p = writer_field(w, sizeof(v));
        if (p)
                store_le64(p, v);
}

void state_put_blob(StateWriter *w, const void *data, size_t size) {
        uint8_t *p;

        if (size >= STRING_NONE) {
                if (w->error == 0)
                        w->error = -E2BIG;
                return;
        }
        state_put_u32(w, (uint32_t) size);
        p = writer_field(w, size);
        if (p && size > 0)
                memcpy(p, data, size);
}

void state_put_string(StateWriter *w, const char *s) {
        if (s)
                state_put_blob(w, s, strlen(s));
        else
                state_put_u32(w, STRING_NONE);
}

int state_end(StateWriter *w) {
        int error = w->error;

        if (error == 0 && w->section == 0)
                error = -EINVAL;
        if (error == 0) {
                store_le64(w->data + w->section + 40, w->size - w->section - SECTION_HEADER_SIZE);
                w->n_sections++;
        } else if (w->section != 0)
                w->size = w->section; /* what is left is whole sections */

        if (w->whole_error == 0)
                w->whole_error = error;
        w->section = 0;
        w->error = 0;
        return error;
}

int state_writer_finish(StateWriter *w, const void **ret, size_t *ret_size) {
        if (w->section != 0)
                return -EINVAL;
        if (w->whole_error < 0)
                return w->whole_error;

        store_le32(w->data + 12, w->n_sections);
        store_le64(w->data + 16, w->size);
        *ret = w->data;
        *ret_size = w->size;
        return 0;
}

typedef struct Section {
        char name[SECTION_NAME_SIZE];
        uint32_t instance, version;
        const uint8_t *payload;
        size_t size;
        bool taken;
} Section;

struct StateReader {
        Section *sections; /* sorted by name and instance */
        size_t n_sections;
        Section *current;  /* NULL: none is entered */
        size_t position;
        int error;
};

static int section_compare(const void *a, const void *b) {
        const Section *x = a, *y = b;
        int r = strcmp(x->name, y->name);

        return r != 0 ? r : (x->instance > y->instance) - (x->instance < y->instance);
}

/* Reads one section's header and bounds at *position, and moves on behind its payload. */
static int reader_index_section(const uint8_t *data, size_t size, size_t *position, Section *ret, char **ret_message) {
        const uint8_t *p = data + *position;
        uint64_t payload;

        if (size - *position < SECTION_HEADER_SIZE)
                return set_message(ret_message, -EBADMSG, "State ends within the header of a section, at offset %zu.", *position);
        memcpy(ret->name, p, SECTION_NAME_SIZE);
        if (ret->name[0] == 0 || ret->name[SECTION_NAME_SIZE - 1] != 0)
                return set_message(ret_message, -EBADMSG, "State has a section without a proper name at offset %zu.", *position);

        ret->instance = load_le32(p + 32);
        ret->version = load_le32(p + 36);
        payload = load_le64(p + 40);
        *position += SECTION_HEADER_SIZE;
        if (ret->version == 0)
                return set_message(ret_message, -EBADMSG, "State section %s.%u has version 0.", ret->name, ret->instance);
        if (payload > size - *position)
                return set_message(ret_message, -EBADMSG,
                        "State section %s.%u claims %llu bytes, expected at most the %zu that follow.", ret->name,
                        ret->instance, (unsigned long long) payload, size - *position);

        ret->payload = data + *position;
        ret->size = (size_t) payload;
        *position += (size_t) payload;
        return 0;
}

static int reader_index(StateReader *r, const uint8_t *data, size_t size, uint32_t n, char **ret_message) {
        size_t position = STATE_HEADER_SIZE;

        /* Every section has at least its header; so the number is bounded by the size before anything is allocated. */
        if (n > (size - STATE_HEADER_SIZE) / SECTION_HEADER_SIZE)
                return set_message(ret_message, -EBADMSG, "State claims %u sections, more than its %zu bytes can hold.", n, size);
        r->sections = calloc(MAX(n, 1u), sizeof(Section));
        if (!r->sections)
                return -ENOMEM;

        for (; r->n_sections < n; r->n_sections++) {
                int error = reader_index_section(data, size, &position, r->sections + r->n_sections, ret_message);
                if (error < 0)
                        return error;
        }
        if (position != size)
                return set_message(ret_message, -EBADMSG, "State has %zu bytes behind its last section.", size - position);

        qsort(r->sections, n, sizeof(Section), section_compare);
        for (uint32_t i = 1; i < n; i++)
                if (section_compare(r->sections + i - 1, r->sections + i) == 0)
                        return set_message(ret_message, -EBADMSG, "State has two sections %s.%u.", r->sections[i].name,
                                r->sections[i].instance);
        return 0;
}

int state_reader_new(const void *data, size_t size, StateReader **ret, char **ret_message) {
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        const uint8_t *p = data;
        int error;

        if (size < STATE_HEADER_SIZE)
                return set_message(ret_message, -EBADMSG, "State has %zu bytes, expected at least the %u of its header.", size,
                        STATE_HEADER_SIZE);
        if (memcmp(p, STATE_MAGIC, 8) != 0)
                return set_message(ret_message, -EBADMSG, "State does not begin with \"" STATE_MAGIC "\".");
        if (load_le32(p + 8) != STATE_FORMAT)
                return set_message(ret_message, -EPROTONOSUPPORT, "State has format %u, expected %u.", load_le32(p + 8),
                        STATE_FORMAT);
        if (load_le64(p + 16) != size)
                return set_message(ret_message, -EBADMSG, "State claims a size of %llu bytes, but has %zu.",
                        (unsigned long long) load_le64(p + 16), size);

        r = calloc(1, sizeof(*r));
        if (!r)
                return -ENOMEM;
        error = reader_index(r, p, size, load_le32(p + 12), ret_message);
        if (error < 0)
                return error;
        *ret = TAKE_PTR(r);
        return 0;
}

StateReader *state_reader_free(StateReader *r) {
        if (!r)
                return NULL;
        free(r->sections);
        return mfree(r);
}

int state_enter(StateReader *r, const char *name, uint32_t instance, uint32_t max_version) {
        Section key = { .instance = instance }, *found;

        if (r->current || strlen(name) > STATE_NAME_MAX)
                return -EINVAL;
        memcpy(key.name, name, strlen(name));
        found = bsearch(&key, r->sections, r->n_sections, sizeof(Section), section_compare);
        if (!found)
                return -ENOENT;
        if (found->version > max_version || found->version > INT32_MAX)
                return -EPROTONOSUPPORT;

        found->taken = true;
        r->current = found;
        r->position = 0;
        r->error = 0;
        return (int) found->version;
}

/* The next `length` bytes of the section, or NULL from the first read beyond its end on. */
static const uint8_t *reader_field(StateReader *r, size_t length) {
        const uint8_t *p;

        if (r->error < 0)
                return NULL;
        if (!r->current || length > r->current->size - r->position) {
                r->error = -EBADMSG;
                return NULL;
        }
        p = r->current->payload + r->position;
        r->position += length;
        return p;
}

uint8_t state_get_u8(StateReader *r) {
        const uint8_t *p = reader_field(r, sizeof(uint8_t));
        return p ? *p : 0;
}

uint16_t state_get_u16(StateReader *r) {
        const uint8_t *p = reader_field(r, sizeof(uint16_t));
        return p ? load_le16(p) : 0;
}

uint32_t state_get_u32(StateReader *r) {
        const uint8_t *p = reader_field(r, sizeof(uint32_t));
        return p ? load_le32(p) : 0;
}

uint64_t state_get_u64(StateReader *r) {
        const uint8_t *p = reader_field(r, sizeof(uint64_t));
        return p ? load_le64(p) : 0;
}

const void *state_get_blob_view(StateReader *r, size_t max, size_t *ret_size) {
        uint32_t size = state_get_u32(r);
        const uint8_t *p;

        if (r->error == 0 && size > max)
                r->error = -EBADMSG;
        p = reader_field(r, size);
        *ret_size = p ? size : 0;
        return p;
}

char *state_get_string(StateReader *r, size_t max) {
        uint32_t size = state_get_u32(r);
        const uint8_t *p;
        char *s = NULL;

        if (size == STRING_NONE)
                return NULL;
        if (r->error == 0 && size > max)
                r->error = -EBADMSG;
        p = reader_field(r, size);
        if (p && !memchr(p, 0, size))
                s = strndup((const char *) p, size);
        if (!s && r->error == 0)
                r->error = p && !memchr(p, 0, size) ? -ENOMEM : -EBADMSG;
        return s;
}

void state_get_blob(StateReader *r, void *data, size_t size) {
        size_t found;
        const void *p = state_get_blob_view(r, size, &found);

        if (p && found == size) {
                if (size > 0)
                        memcpy(data, p, size);
                return;
        }
        if (r->error == 0)
                r->error = -EBADMSG;
        if (size > 0)
                memset(data, 0, size);
}

int state_leave(StateReader *r, char **ret_message) {
        const Section *s = TAKE_PTR(r->current);
        int error = r->error;

        r->error = 0;
        if (!s)
                return -EINVAL;
        if (error < 0)
                return set_message(ret_message, error,
                        "State section %s.%u (version %u, %zu bytes) does not hold the fields that were expected, from offset %zu on.",
                        s->name, s->instance, s->version, s->size, r->position);
        if (r->position != s->size)
                return set_message(ret_message, -EBADMSG,
                        "State section %s.%u (version %u) has %zu bytes, expected %zu.", s->name, s->instance, s->version,
                        s->size, r->position);
        return 0;
}

bool state_reader_section(const StateReader *r, size_t index, const char **ret_name, uint32_t *ret_instance, uint32_t *ret_version) {
        if (index >= r->n_sections)
                return false;
        *ret_name = r->sections[index].name;
        *ret_instance = r->sections[index].instance;
        *ret_version = r->sections[index].version;
        return true;
}

int state_reader_finish(StateReader *r, char **ret_message) {
        if (r->current)
                return -EINVAL;
        for (size_t i = 0; i < r->n_sections; i++)
                if (!r->sections[i].taken)
                        return set_message(ret_message, -EBADMSG, "State section %s.%u belongs to nothing here.",
                                r->sections[i].name, r->sections[i].instance);
        return 0;
}
