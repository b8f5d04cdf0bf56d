/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The form in which state outlives the process that held it: reset (the state at power-on is loaded again), live upgrade and
 * snapshots all use the same pair of functions per component, NAME_save(object, StateWriter) and
 * NAME_load(object, StateReader).
 *
 * A state is a sequence of sections; a section has a name, an instance, a version and a payload. A reader asks for its section by name and
 * instance and says which versions it takes; whatever it does not take is refused by name. Errors are sticky: a component
 * writes or reads all its fields, then looks at the result once. */

#include "util.h"

#define STATE_NAME_MAX 31
/* Of what a reader takes at all. */
#ifndef STATE_FORMAT
#define STATE_FORMAT 1U
#endif

typedef struct StateWriter StateWriter;
typedef struct StateReader StateReader;

int state_writer_new(StateWriter **ret);
StateWriter *state_writer_free(StateWriter *w);
DEFINE_CLEANUP(StateWriter, state_writer_free)
void state_begin(StateWriter *w, const char *name, uint32_t instance, uint32_t version);
void state_put_u8(StateWriter *w, uint8_t v);
void state_put_u16(StateWriter *w, uint16_t v);
void state_put_u32(StateWriter *w, uint32_t v);
void state_put_u64(StateWriter *w, uint64_t v);
/* A length (u32) and the bytes; read back with the same or a smaller maximum. */
void state_put_blob(StateWriter *w, const void *data, size_t size);
/* NULL is another string than the empty one. */
void state_put_string(StateWriter *w, const char *s);
/* Ends the section; 0 or the first error since state_begin(). */
int state_end(StateWriter *w);
/* The finished bytes, valid until the writer is freed. */
int state_writer_finish(StateWriter *w, const void **ret, size_t *ret_size);

/* Checks the header and every section's bounds. `data` must stay valid while the reader lives. -EBADMSG where it is no
 * state, -EPROTONOSUPPORT where its format version is unknown; *ret_message says what. */
int state_reader_new(const void *data, size_t size, StateReader **ret, char **ret_message);
StateReader *state_reader_free(StateReader *r);
DEFINE_CLEANUP(StateReader, state_reader_free)
/* Enters the section. Returns its version (1 … max_version), -ENOENT where there is none, -EPROTONOSUPPORT where it is newer. */
int state_enter(StateReader *r, const char *name, uint32_t instance, uint32_t max_version);
uint8_t state_get_u8(StateReader *r);
uint16_t state_get_u16(StateReader *r);
uint32_t state_get_u32(StateReader *r);
uint64_t state_get_u64(StateReader *r);
/* Copies exactly `size` bytes: a blob of another size is -EBADMSG. */
void state_get_blob(StateReader *r, void *data, size_t size);
/* A blob of any size up to `max`, pointing into the state's own bytes. */
const void *state_get_blob_view(StateReader *r, size_t max, size_t *ret_size);
/* The caller frees it; NULL where NULL was put, or where it is no string of at most `max` bytes, which state_leave() tells. */
char *state_get_string(StateReader *r, size_t max);
/* Leaves the section: 0, or -EBADMSG where a read went beyond it or something of it was left unread; the message names it. */
int state_leave(StateReader *r, char **ret_message);
/* The sections, in the order of their names and instances; false beyond the last. They need not be entered for this. */
bool state_reader_section(const StateReader *r, size_t index, const char **ret_name, uint32_t *ret_instance, uint32_t *ret_version);
/* At the end: 0, or -EBADMSG where a section was never entered; the message names it. */
int state_reader_finish(StateReader *r, char **ret_message);
