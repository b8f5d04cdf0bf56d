/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sys/socket.h>

#include "json-ascii.h"
#include "json-util.h"
#include "message.h"

/* One read: little where little comes, so that a thousand idle connections cost little, and more where a read was full. */
#define READ_SIZE_MIN KIB(4)
#define READ_SIZE_MAX KIB(64)
/* The kernel's SCM_MAX_FD: with room for all, nothing is dropped behind our back. */
#define SCM_FDS_MAX 253

struct VarlinkOutput {
        VarlinkOutput *next;
        VarlinkBuffer *buffer;
        size_t offset;
        int *fds;
        size_t n_fds;
};

static void close_fds(const int *fds, size_t n) {
        for (size_t i = 0; i < n; i++)
                (void) safe_close(fds[i]);
}

static VarlinkOutput *output_free(VarlinkOutput *o) {
        if (!o)
                return NULL;
        close_fds(o->fds, o->n_fds);
        free(o->fds);
        (void) varlink_buffer_unref(o->buffer);
        return mfree(o);
}
DEFINE_CLEANUP(VarlinkOutput, output_free)

VarlinkBuffer *varlink_buffer_new(size_t size) {
        VarlinkBuffer *b = malloc(sizeof(*b) + size);

        if (b)
                *b = (VarlinkBuffer) { .n_ref = 1, .size = size };
        return b;
}

VarlinkBuffer *varlink_buffer_ref(VarlinkBuffer *b) {
        b->n_ref++;
        return b;
}

VarlinkBuffer *varlink_buffer_unref(VarlinkBuffer *b) {
        return !b || --b->n_ref > 0 ? NULL : mfree(b);
}

int varlink_buffer_new_json(json_object *json, VarlinkBuffer **ret) {
        const char *text;
        VarlinkBuffer *b;
        size_t size;

        text = json_object_to_json_string_length(json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &size);
        b = text ? varlink_buffer_new(size + 1) : NULL;
        if (!b)
                return -ENOMEM;
        memcpy(b->data, text, size + 1);
        *ret = b;
        return 0;
}

void varlink_message_done(VarlinkMessage *m) {
        json_putp(&m->json);
        close_fds(m->fds, m->n_fds);
        m->fds = mfree(m->fds);
        m->n_fds = 0;
}

int varlink_message_take_fd(VarlinkMessage *m, int64_t index) {
        if (index < 0 || (uint64_t) index >= m->n_fds || m->fds[index] < 0)
                return -ENXIO;
        return TAKE_FD(m->fds[index]);
}

int varlink_channel_open(VarlinkChannel *s, int fd) {
        _cleanup_close_ int owned = fd;
        int flags;

        *s = (VarlinkChannel) VARLINK_CHANNEL_NULL;
        flags = fcntl(fd, F_GETFL);
        if (flags < 0)
                return -errno;
        if (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return -errno;

        s->fd = TAKE_FD(owned);
        s->message_size = s->in_size = VARLINK_MESSAGE_SIZE_DEFAULT;
        s->depth = VARLINK_DEPTH_DEFAULT;
        s->fds = VARLINK_FDS_DEFAULT;
        s->out_tail = &s->out;
        return 0;
}

void varlink_channel_done(VarlinkChannel *s) {
        s->fd = safe_close(s->fd);
        s->in = mfree(s->in);
        s->in_begin = s->in_end = s->in_scanned = s->in_allocated = 0;
        for (size_t i = 0; i < s->n_in_fds; i++)
                (void) safe_close(s->in_fds[i].fd);
        s->in_fds = mfree(s->in_fds);
        s->n_in_fds = 0;
        while (s->out) {
                VarlinkOutput *next = s->out->next;
                (void) output_free(s->out);
                s->out = next;
        }
        s->out_tail = &s->out;
        s->out_size = 0;
}

/* Makes room for `room` more bytes behind in_end. What was taken is moved out of the way first, so that the buffer is at most one
 * message and one read large. */
static int reserve(VarlinkChannel *s, size_t room) {
        char *grown;

        if (s->in_begin > 0) {
                memmove(s->in, s->in + s->in_begin, s->in_end - s->in_begin);
                s->in_end -= s->in_begin;
                s->in_scanned -= s->in_begin;
                s->in_begin = 0;
        }
        if (s->in_allocated - s->in_end >= room)
                return 0;

        grown = realloc(s->in, s->in_end + room);
        if (!grown)
                return -ENOMEM;
        s->in = grown;
        s->in_allocated = s->in_end + room;
        return 0;
}

/* Accounts for `size` bytes that now stand behind in_end, and for the descriptors that came with them. */
static int received(VarlinkChannel *s, size_t size, const int *fds, size_t n_fds) {
        s->in_end += size;
        if (n_fds > 0) {
                /* At most one message that was incomplete before and one that this read brought can have descriptors. */
                if (n_fds > s->fds || s->n_in_fds + n_fds > 2 * (size_t) s->fds) {
                        close_fds(fds, n_fds);
                        return -EBADMSG;
                }
                void *grown = realloc(s->in_fds, (s->n_in_fds + n_fds) * sizeof(*s->in_fds));
                if (!grown) {
                        close_fds(fds, n_fds);
                        return -ENOMEM;
                }
                s->in_fds = grown;
                for (size_t i = 0; i < n_fds; i++) {
                        s->in_fds[s->n_in_fds].fd = fds[i];
                        s->in_fds[s->n_in_fds++].last = s->in_taken + (s->in_end - s->in_begin) - 1;
                }
        }
        return 1;
}

/* Whether the message that is being received is larger than allowed already, without looking at its end. */
static bool is_too_large(VarlinkChannel *s) {
        char *nul = s->in_end > s->in_scanned ? memchr(s->in + s->in_scanned, 0, s->in_end - s->in_scanned) : NULL;

        s->in_scanned = nul ? (size_t) (nul - s->in) : s->in_end;
        return s->in_scanned - s->in_begin > MIN(s->in_size, s->message_size);
}

int varlink_channel_read(VarlinkChannel *s) {
        int fds[SCM_FDS_MAX], r;
        size_t n_fds = ELEMENTSOF(fds);
        ssize_t n;

        r = reserve(s, s->in_full ? READ_SIZE_MAX : READ_SIZE_MIN);
        if (r < 0)
                return r;
        n = recv_with_fds(s->fd, s->in + s->in_end, s->in_allocated - s->in_end, fds, &n_fds, MSG_DONTWAIT);
        if (n < 0)
                return (int) n;
        if (n == 0) {
                close_fds(fds, n_fds);
                return 0;
        }

        s->in_full = (size_t) n == s->in_allocated - s->in_end;
        r = received(s, (size_t) n, fds, n_fds);
        if (r < 0)
                return r;
        return is_too_large(s) ? -EMSGSIZE : 1;
}

int varlink_channel_feed(VarlinkChannel *s, const void *data, size_t size, const int *fds, size_t n_fds) {
        int r;

        r = size > 0 ? reserve(s, size) : -EINVAL;
        if (r < 0) {
                close_fds(fds, n_fds);
                return r;
        }
        memcpy(s->in + s->in_end, data, size);
        r = received(s, size, fds, n_fds);
        if (r < 0)
                return r;
        return is_too_large(s) ? -EMSGSIZE : 1;
}

/* Moves the descriptors that belong to the message whose NUL is at stream position `last` into *ret. */
static int take_fds(VarlinkChannel *s, uint64_t last, VarlinkMessage *ret) {
        size_t n = 0;
        int *fds;

        while (n < s->n_in_fds && s->in_fds[n].last <= last)
                n++;
        if (n == 0)
                return 0;
        if (n > s->fds)
                return -EBADMSG;

        fds = malloc(n * sizeof(*fds));
        if (!fds)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                fds[i] = s->in_fds[i].fd;
        s->n_in_fds -= n;
        memmove(s->in_fds, s->in_fds + n, s->n_in_fds * sizeof(*s->in_fds));
        ret->fds = fds;
        ret->n_fds = n;
        return 0;
}

int varlink_channel_next(VarlinkChannel *s, VarlinkMessage *ret) {
        _cleanup_(varlink_message_done) VarlinkMessage m = {};
        size_t size;
        int r;

        if (s->in_end == s->in_begin)
                return 0;
        if (is_too_large(s))
                return -EMSGSIZE;
        if (s->in_scanned == s->in_end)
                return 0;

        size = s->in_scanned - s->in_begin;
        r = take_fds(s, s->in_taken + size, &m);
        if (r < 0)
                return r;
        r = varlink_json_parse(s->in + s->in_begin, size, s->depth, &m.json);
        if (r < 0)
                return r;

        s->in_begin += size + 1;
        s->in_scanned = s->in_begin;
        s->in_taken += size + 1;
        if (s->in_begin == s->in_end) {
                s->in_begin = s->in_end = s->in_scanned = 0;
                /* One large message does not cost its memory for the rest of the connection. */
                if (s->in_allocated > READ_SIZE_MIN) {
                        s->in = mfree(s->in);
                        s->in_allocated = 0;
                }
        }
        *ret = m;
        m = (VarlinkMessage) {};
        return 1;
}

int varlink_channel_queue_buffer(VarlinkChannel *s, VarlinkBuffer *buffer, const int *fds, size_t n_fds) {
        _cleanup_(output_freep) VarlinkOutput *o = NULL;

        if (buffer->size - 1 > s->message_size)
                return -EMSGSIZE;
        o = calloc(1, sizeof(*o));
        if (!o)
                return -ENOMEM;
        if (n_fds > 0) {
                o->fds = malloc(n_fds * sizeof(int));
                if (!o->fds)
                        return -ENOMEM;
                memcpy(o->fds, fds, n_fds * sizeof(int));
                o->n_fds = n_fds;
        }
        o->buffer = varlink_buffer_ref(buffer);

        s->out_size += buffer->size;
        *s->out_tail = TAKE_PTR(o);
        s->out_tail = &(*s->out_tail)->next;
        return 0;
}

int varlink_channel_queue(VarlinkChannel *s, json_object *json, const int *fds, size_t n_fds) {
        _cleanup_(varlink_buffer_unrefp) VarlinkBuffer *buffer = NULL;
        int r;

        r = varlink_buffer_new_json(json, &buffer);
        return r < 0 ? r : varlink_channel_queue_buffer(s, buffer, fds, n_fds);
}

int varlink_channel_flush(VarlinkChannel *s) {
        while (s->out) {
                VarlinkOutput *o = s->out;
                ssize_t n;

                n = send_with_fds(s->fd, o->buffer->data + o->offset, o->buffer->size - o->offset, o->fds, o->n_fds);
                if (n < 0)
                        return (int) n;

                /* They went with the first byte. */
                close_fds(o->fds, o->n_fds);
                o->n_fds = 0;
                o->offset += (size_t) n;
                s->out_size -= (size_t) n;
                if (o->offset < o->buffer->size)
                        continue;
                s->out = o->next;
                if (!s->out)
                        s->out_tail = &s->out;
                (void) output_free(o);
        }
        return 0;
}

int varlink_channel_release(VarlinkChannel *s, char **ret_data, size_t *ret_size) {
        int fd = TAKE_FD(s->fd);

        *ret_size = s->in_end - s->in_begin;
        if (s->in_begin > 0 && *ret_size > 0)
                memmove(s->in, s->in + s->in_begin, *ret_size);
        *ret_data = *ret_size > 0 ? TAKE_PTR(s->in) : NULL;
        varlink_channel_done(s);
        return fd;
}

/* Whether a whole number below zero, whose sign is before `text`, is one that int64_t has: json-c takes any and makes it the nearest. (Those too
 * large for it are told from others by their type.) */
static bool is_above_minimum(const char *text, size_t size) {
        static const char minimum[] = "9223372036854775808";
        size_t n = 0;

        while (n < size && text[n] >= '0' && text[n] <= '9')
                n++;
        if (n < sizeof(minimum) - 1 || (n < size && (text[n] == '.' || text[n] == 'e' || text[n] == 'E')))
                return true;
        return n == sizeof(minimum) - 1 && memcmp(text, minimum, n) <= 0;
}

/* What json-c takes, strict or not, and JSON does not: strings in single quotes, and control characters inside of strings. And what it would spoil:
 * it cuts an object's key at an escaped NUL, so that two different keys became one; nobody needs those. */
static bool is_plain(const char *text, size_t size) {
        bool inside = false;

        for (size_t i = 0; i < size; i++) {
                unsigned char c = (unsigned char) text[i];

                if (c == '"')
                        inside = !inside;
                else if (inside ? c < 0x20 : c == '\'' || c >= 0x80 || (c == '-' && !is_above_minimum(text + i + 1, size - i - 1)))
                        return false;
                else if (inside && c == '\\') {
                        if (size - i >= 6 && memcmp(text + i + 1, "u0000", 5) == 0)
                                return false;
                        i++;
                }
        }
        return true;
}

/* json-c takes NaN and Infinity, and numbers beyond a double's range become infinite. The depth is bounded by the tokener. */
static bool is_finite_throughout(json_object *value) {
        switch (json_object_get_type(value)) {
        case json_type_double:
                return isfinite(json_object_get_double(value));
        case json_type_array:
                for (size_t i = 0; i < json_object_array_length(value); i++)
                        if (!is_finite_throughout(json_object_array_get_idx(value, i)))
                                return false;
                return true;
        case json_type_object: {
                json_object_object_foreach(value, key, member) {
                        (void) key;
                        if (!is_finite_throughout(member))
                                return false;
                }
                return true;
        }
        default:
                return true;
        }
}

int varlink_json_parse(const char *text, size_t size, unsigned depth, json_object **ret) {
        _cleanup_json_ json_object *value = NULL;
        _cleanup_free_ char *ascii = NULL;
        struct json_tokener *tokener;
        enum json_tokener_error error;
        size_t ascii_size;
        int r;

        if (size == 0 || size > INT_MAX / 4 || depth > INT_MAX || !is_plain(text, size))
                return -EBADMSG;
        r = json_ascii(text, size, &ascii, &ascii_size);
        if (r < 0)
                return r;

        tokener = json_tokener_new_ex((int) depth);
        if (!tokener)
                return -ENOMEM;
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
        value = json_tokener_parse_ex(tokener, ascii ?: text, (int) ascii_size);
        error = json_tokener_get_error(tokener);
        json_tokener_free(tokener);

        if (error != json_tokener_success || !json_object_is_type(value, json_type_object) ||
                !is_finite_throughout(value))
                return -EBADMSG;
        *ret = TAKE_PTR(value);
        return 0;
}
