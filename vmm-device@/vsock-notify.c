/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the guest's service manager says of itself (sd_notify(3), systemd(1) "System credentials": vmm.notify_socket), on a port of the host's that is ours. It comes
 * a connection a message, in lines of "KEY=VALUE". Anybody in the guest can say it, as often as he likes, and he may say anything: lines are cut, what is
 * no text is made text, and subscribers are told ten times a second at most. */

#include "interfaces.h"
#include "json-ascii.h"
#include "json-util.h"
#include "server.h"
#include "vsock.h"

#define PAUSE_USEC (100 * USEC_PER_MSEC)
/* A longer line is none of those that we know. */
#define LINE_MAX_BYTES 512U

struct VsockNotice {
        char line[LINE_MAX_BYTES];
        size_t used;
        bool too_long;
};

/* ---- telling it on ---- */

static int add_text(json_object *into, const char *key, const char *text) {
        return *text ? json_add_string(into, key, text) : 0;
}

static json_object *guest_json(const Vsock *v) {
        _cleanup_json_ json_object *reply = json_object_new_object(), *guest = json_object_new_object();
        const VsockGuest *g = v->guest;

        if (!reply || !guest || json_add_boolean(guest, "ready", g->ready) < 0 || add_text(guest, "status", g->status) < 0 ||
                add_text(guest, "hostname", g->hostname) < 0 || add_text(guest, "machineId", g->machine_id) < 0 ||
                add_text(guest, "unit", g->unit) < 0 || json_add(reply, "guest", TAKE_PTR(guest)) < 0)
                return NULL;
        return TAKE_PTR(reply);
}

static void publish(Vsock *v) {
        _cleanup_json_ json_object *o = guest_json(v);

        v->publish_wanted = false;
        (void) varlink_stream_publish(v->events, 0, "", o);
        (void) sd_event_source_set_time_relative(v->publish_timer, PAUSE_USEC);
        (void) sd_event_source_set_enabled(v->publish_timer, SD_EVENT_ONESHOT);
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Vsock *v = userdata;

        if (v->publish_wanted)
                publish(v);
        return 0;
}

/* The first change at once, then one in so many. */
static void changed(Vsock *v) {
        int enabled = SD_EVENT_OFF;

        v->publish_wanted = true;
        (void) sd_event_source_get_enabled(v->publish_timer, &enabled);
        if (enabled == SD_EVENT_OFF)
                publish(v);
}

/* ---- what is said ---- */

/* Text for people: UTF-8 without control characters, cut where it is too long. */
static void set_text(char into[static VSOCK_TEXT_MAX], const char *text) {
        size_t size = strlen(text), used = 0;

        for (size_t i = 0; i < size;) {
                size_t n = utf8_sequence(text + i, size - i);
                /* U+0080 to U+009F are control characters, too. */
                bool bad = n == 0 || (unsigned char) text[i] < 0x20 || text[i] == 0x7f ||
                        (n == 2 && (unsigned char) text[i] == 0xc2 && (unsigned char) text[i + 1] < 0xa0);

                n = MAX(n, (size_t) 1);
                if (used + n >= VSOCK_TEXT_MAX)
                        break;
                if (bad)
                        into[used++] = '?';
                else {
                        memcpy(into + used, text + i, n);
                        used += n;
                }
                i += n;
        }
        into[used] = 0;
}

static void take_line(Vsock *v, const char *line) {
        VsockGuest *g = v->guest;
        const struct {
                const char *key;
                char *text;
        } texts[] = {
                { "STATUS=", g->status },
                { "X_SYSTEMD_HOSTNAME=", g->hostname },
                { "X_SYSTEMD_MACHINE_ID=", g->machine_id },
                { "X_SYSTEMD_UNIT_ACTIVE=", g->unit },
        };

        if (streq(line, "READY=1"))
                g->ready = true;
        else if (streq(line, "STOPPING=1") || startswith(line, "X_SYSTEMD_SHUTDOWN="))
                g->ready = false;
        else {
                size_t i = 0;

                while (i < ELEMENTSOF(texts) && !startswith(line, texts[i].key))
                        i++;
                if (i == ELEMENTSOF(texts))
                        return;
                set_text(texts[i].text, startswith(line, texts[i].key));
        }
        v->n_notices++;
        changed(v);
}

static void end_line(VsockConnection *c) {
        struct VsockNotice *n = c->notice;

        n->line[n->used] = 0;
        if (!n->too_long)
                take_line(c->vsock, n->line);
        n->used = 0;
        n->too_long = false;
}

int vsock_notice_new(VsockConnection *c) {
        c->notice = calloc(1, sizeof(struct VsockNotice));
        return c->notice ? 0 : -ENOMEM;
}

void vsock_notice_take(VsockConnection *c, IovCursor *payload, bool end) {
        struct VsockNotice *n = c->notice;
        uint32_t length = (uint32_t) payload->left;
        char buffer[512];
        size_t k;

        while ((k = iov_cursor_read(payload, buffer, sizeof(buffer))) > 0)
                for (size_t i = 0; i < k; i++)
                        if (buffer[i] == '\n')
                                end_line(c);
                        else if (buffer[i] == 0 || n->used >= sizeof(n->line) - 1)
                                n->too_long = true;
                        else
                                n->line[n->used++] = buffer[i];
        if (end && n->used > 0)
                end_line(c);
        vsock_connection_forwarded(c, length);
}

/* The last line need not end in a newline. */
void vsock_notice_end(VsockConnection *c) {
        if (c->notice->used > 0)
                end_line(c);
}

void vsock_notify_reset(Vsock *v) {
        *v->guest = (VsockGuest) { .version = VSOCK_GUEST_VERSION };
        changed(v);
}

/* ---- for a snapshot ---- */

#define STATE_VERSION 1

int vsock_notify_save(const Vsock *v, StateWriter *w) {
        const VsockGuest *g = v->guest;
        const char *const texts[] = { g->status, g->hostname, g->machine_id, g->unit };

        state_begin(w, "vsock", 0, STATE_VERSION);
        state_put_u8(w, g->ready);
        for (size_t i = 0; i < ELEMENTSOF(texts); i++)
                state_put_blob(w, texts[i], strlen(texts[i]));
        state_put_u8(w, g->reset_told);
        state_put_u16(w, g->reset_offered);
        return state_end(w);
}

int vsock_notify_load(Vsock *v, StateReader *r, char **ret_message) {
        VsockGuest g = { .version = VSOCK_GUEST_VERSION };
        char *const texts[] = { g.status, g.hostname, g.machine_id, g.unit };
        int k;

        k = state_enter(r, "vsock", 0, STATE_VERSION);
        if (k < 0)
                return set_message(ret_message, k, "it is no state of a vsock device, or a newer version's");
        g.ready = state_get_u8(r) != 0;
        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                char text[VSOCK_TEXT_MAX] = {};
                size_t size = 0;
                const void *p = state_get_blob_view(r, VSOCK_TEXT_MAX - 1, &size);

                if (p)
                        memcpy(text, p, size);
                set_text(texts[i], text);
        }
        g.reset_told = state_get_u8(r) != 0;
        g.reset_offered = state_get_u16(r);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        *v->guest = g;
        changed(v);
        return 0;
}

/* ---- the interface ---- */

static int method_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Vsock *v = device_data(userdata);
        _cleanup_json_ json_object *reply = guest_json(v);

        if (!reply || json_add_integer(reply, "cid", (int64_t) v->cid) < 0 ||
                (v->notify && json_add_integer(reply, "notifyPort", VSOCK_NOTIFY_PORT) < 0))
                return -ENOMEM;
        return varlink_call_reply(call, reply);
}

static int method_subscribe(VarlinkCall *call, json_object *parameters, void *userdata) {
        Vsock *v = device_data(userdata);
        _cleanup_json_ json_object *first = guest_json(v);

        /* A change that the others are still to hear of is this one's present state, and no event to him. */
        if (v->publish_wanted)
                publish(v);
        return first ? varlink_stream_add(v->events, call, first, 1, NULL, NULL, NULL) : -ENOMEM;
}

const VarlinkMethod vsock_methods[] = {
        { "Describe", method_describe },
        { "Subscribe", method_subscribe, VARLINK_METHOD_REQUIRES_MORE },
        {},
};

int vsock_notify_open(Vsock *v) {
        void *kept;
        int r;

        r = device_keep(v->device, "guest", sizeof(VsockGuest), &kept);
        if (r < 0)
                return r;
        v->guest = kept;
        if (v->guest->version != VSOCK_GUEST_VERSION)
                *v->guest = (VsockGuest) { .version = VSOCK_GUEST_VERSION };
        r = varlink_stream_new(&v->events, VARLINK_STREAM_BACKLOG_DEFAULT);
        if (r >= 0)
                r = sd_event_add_time(device_event(v->device), &v->publish_timer, CLOCK_MONOTONIC, 0, 1, on_pause_over, v);
        return r < 0 ? r : sd_event_source_set_enabled(v->publish_timer, SD_EVENT_OFF);
}

void vsock_notify_close(Vsock *v) {
        (void) varlink_stream_free(v->events);
        v->publish_timer = sd_event_source_disable_unref(v->publish_timer);
}
