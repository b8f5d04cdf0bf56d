/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An event is checked and serialized once. Who is not behind gets the same bytes as all others, in the publisher's own turn; for
 * the others a reference waits in a short queue, and is sent from the event loop when their socket has room. */

#include <stdio.h>

#include "server-internal.h"
#include "stream.h"

#define KINDS 64U
/* The queue of a subscriber that is never behind stays this long. */
#define QUEUE_SMALL 4U

static const char tail_continues[] = "},\"continues\":true}", tail_final[] = "}}";

typedef struct Event {
        unsigned n_ref, kind;
        uint64_t sequence;
        char *key;
        VarlinkBuffer *whole; /* the reply for who missed nothing; it ends in "0", which counts the missed, and `tail` */
        const char *tail;
        json_object *parameters; /* only until all subscribers are through with checking it, and as long as it is kept for others */
        const VarlinkSymbol *checked;
        int check;
} Event;

typedef struct Waiting {
        Event *event;
        bool superseded; /* a later one in the queue tells more */
} Waiting;

struct VarlinkSubscriber {
        VarlinkStream *stream;
        VarlinkSubscriber *next, **link; /* what points here */
        VarlinkCall *call;
        uint64_t kinds;
        VarlinkSubscriberGone gone;
        void *userdata;
        Waiting *queue;
        size_t n_queue, n_allocated;
        uint64_t missed; /* since the last reply */
};

struct VarlinkStream {
        size_t backlog;
        uint64_t sequence;
        VarlinkSubscriber *subscribers, **tail;
        size_t n_subscribers;
        size_t n_wanting[KINDS];
        /* For who comes back. */
        Event **memory;
        size_t n_memory, memory_max;
        uint64_t remembered_kinds, forgotten;
};

/* ---- events ---- */

static Event *event_unref(Event *e) {
        if (!e || --e->n_ref > 0)
                return NULL;
        json_putp(&e->parameters);
        (void) varlink_buffer_unref(e->whole);
        free(e->key);
        return mfree(e);
}
DEFINE_CLEANUP(Event, event_unref)

/* The event's members and the stream's two, "missed" last. The values are shared, not copied. */
static int add_numbers(json_object *event, uint64_t sequence, json_object **ret) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        int r;

        if (!parameters)
                return -ENOMEM;
        if (event) {
                json_object_object_foreach(event, key, value) {
                        if (streq(key, "sequence") || streq(key, "missed"))
                                continue;
                        if (json_object_object_add(parameters, key, json_object_get(value)) < 0) {
                                (void) json_object_put(value);
                                return -ENOMEM;
                        }
                }
        }
        r = json_add_integer(parameters, "sequence", (int64_t) sequence);
        if (r >= 0)
                r = json_add_integer(parameters, "missed", 0);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(parameters);
        return 0;
}

static int serialize(json_object *parameters, bool final, VarlinkBuffer **ret) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        int r;

        r = reply ? json_add(reply, "parameters", json_object_get(parameters)) : -ENOMEM;
        if (r >= 0 && !final)
                r = json_add_boolean(reply, "continues", true);
        return r < 0 ? r : varlink_buffer_new_json(reply, ret);
}

static int event_new(unsigned kind, const char *key, json_object *parameters, uint64_t sequence, bool final, Event **ret) {
        _cleanup_(event_unrefp) Event *e = calloc(1, sizeof(*e));
        int r;

        if (!e)
                return -ENOMEM;
        e->n_ref = 1;
        e->kind = kind;
        e->sequence = sequence;
        e->tail = final ? tail_final : tail_continues;
        if (key) {
                e->key = strdup(key);
                if (!e->key)
                        return -ENOMEM;
        }
        r = add_numbers(parameters, sequence, &e->parameters);
        if (r >= 0)
                r = serialize(e->parameters, final, &e->whole);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(e);
        return 0;
}

/* Whether it is what that call's method may reply. Subscribers mostly call the same method, so this is looked up once an event. */
static int event_check(Event *e, VarlinkCall *call) {
        if (e->checked != call->symbol || !e->checked) {
                e->check = call_check_output(call, e->parameters);
                e->checked = call->symbol;
        }
        return e->check;
}

/* The same reply with another count of missed events. */
static int event_tell_missed(const Event *e, uint64_t missed, VarlinkBuffer **ret) {
        size_t head = e->whole->size - 1 - strlen(e->tail) - 1; /* without the NUL, the tail and the "0" */
        char number[32];
        size_t digits = (size_t) snprintf(number, sizeof(number), "%llu", (unsigned long long) missed);
        VarlinkBuffer *b = varlink_buffer_new(head + digits + strlen(e->tail) + 1);

        if (!b)
                return -ENOMEM;
        memcpy(b->data, e->whole->data, head);
        memcpy(b->data + head, number, digits);
        memcpy(b->data + head + digits, e->tail, strlen(e->tail) + 1);
        *ret = b;
        return 0;
}

/* ---- subscribers ---- */

static void count_kinds(VarlinkSubscriber *u, size_t by) {
        for (unsigned kind = 0; kind < KINDS; kind++)
                if (u->kinds & (UINT64_C(1) << kind))
                        u->stream->n_wanting[kind] += by;
}

static void subscriber_link(VarlinkStream *s, VarlinkSubscriber *u) {
        u->stream = s;
        u->link = s->tail;
        *s->tail = u;
        s->tail = &u->next;
        s->n_subscribers++;
        count_kinds(u, 1);
}

static void subscriber_unlink(VarlinkSubscriber *u) {
        VarlinkStream *s = u->stream;

        if (!s)
                return;
        count_kinds(u, SIZE_MAX);
        s->n_subscribers--;
        *u->link = u->next;
        if (u->next)
                u->next->link = u->link;
        else
                s->tail = u->link;
        u->stream = NULL;
}

static VarlinkSubscriber *subscriber_free(VarlinkSubscriber *u) {
        if (!u)
                return NULL;
        subscriber_unlink(u);
        for (size_t i = 0; i < u->n_queue; i++)
                (void) event_unref(u->queue[i].event);
        free(u->queue);
        if (u->call) {
                varlink_call_on_close(u->call, NULL, NULL);
                call_on_drained(u->call, NULL, NULL);
        }
        (void) varlink_call_unref(u->call);
        return mfree(u);
}
DEFINE_CLEANUP(VarlinkSubscriber, subscriber_free)

/* Its connection, or its stream, has ended. */
static void subscriber_end(VarlinkSubscriber *u) {
        subscriber_unlink(u);
        if (u->gone)
                u->gone(u, u->userdata);
        (void) subscriber_free(u);
}

static void on_closed(VarlinkCall *call, void *userdata) {
        subscriber_end(userdata);
}

static void queue_remove(VarlinkSubscriber *u, size_t i) {
        (void) event_unref(u->queue[i].event);
        u->n_queue--;
        memmove(u->queue + i, u->queue + i + 1, (u->n_queue - i) * sizeof(*u->queue));
}

static bool same_state(const Event *a, const Event *b) {
        return a->kind == b->kind && a->key && b->key && streq(a->key, b->key);
}

/* Makes room where the queue is as long as it may be: what is superseded goes first, then the oldest. */
static void queue_make_room(VarlinkSubscriber *u) {
        size_t i;

        if (u->n_queue < u->stream->backlog)
                return;
        for (i = 0; i < u->n_queue && !u->queue[i].superseded; i++)
                ;
        queue_remove(u, i < u->n_queue ? i : 0);
        u->missed++;
}

static int queue_reserve(VarlinkSubscriber *u) {
        size_t n = u->n_allocated > 0 ? u->n_allocated * 2 : QUEUE_SMALL;
        Waiting *grown;

        if (u->n_queue < u->n_allocated)
                return 0;
        grown = realloc(u->queue, n * sizeof(*grown));
        if (!grown)
                return -ENOMEM;
        u->queue = grown;
        u->n_allocated = n;
        return 0;
}

/* Never fails: an event that there is no memory for is one that was missed. */
static void queue_append(VarlinkSubscriber *u, Event *e) {
        for (size_t i = u->n_queue; e->key && i-- > 0;)
                if (same_state(u->queue[i].event, e)) {
                        /* Those before it are marked already. */
                        u->queue[i].superseded = true;
                        break;
                }
        queue_make_room(u);
        if (queue_reserve(u) < 0) {
                u->missed++;
                return;
        }
        e->n_ref++;
        u->queue[u->n_queue++] = (Waiting) { .event = e };
}

static int send_event(VarlinkSubscriber *u, Event *e, bool final) {
        _cleanup_(varlink_buffer_unrefp) VarlinkBuffer *own = NULL;
        int r;

        if (u->missed > 0) {
                r = event_tell_missed(e, u->missed, &own);
                if (r < 0)
                        return r;
        }
        r = call_send_buffer(u->call, own ?: e->whole, final);
        if (r >= 0)
                u->missed = 0;
        return r;
}

/* Sends one after the other while the socket takes them at once; or all that is there. */
static void queue_send(VarlinkSubscriber *u, bool all) {
        size_t i;

        if (u->n_queue == 0)
                return;
        for (i = 0; i < u->n_queue && (all || !call_is_behind(u->call)); i++) {
                if (send_event(u, u->queue[i].event, false) < 0)
                        u->missed++;
                (void) event_unref(u->queue[i].event);
        }
        u->n_queue -= i;
        memmove(u->queue, u->queue + i, u->n_queue * sizeof(*u->queue));
        if (u->n_queue == 0 && u->n_allocated > QUEUE_SMALL) {
                u->queue = mfree(u->queue);
                u->n_allocated = 0;
        }
}

static void on_drained(VarlinkCall *call, void *userdata) {
        queue_send(userdata, false);
}

static int deliver(VarlinkSubscriber *u, Event *e) {
        int r;

        r = event_check(e, u->call);
        if (r < 0)
                return r;
        /* The usual case touches no queue. */
        if (u->n_queue == 0 && !call_is_behind(u->call)) {
                if (send_event(u, e, false) < 0)
                        u->missed++;
                return 0;
        }
        queue_append(u, e);
        queue_send(u, false);
        return 0;
}

static int add(VarlinkStream *s, VarlinkCall *call, Event *first, uint64_t kinds, VarlinkSubscriberGone gone, void *userdata, VarlinkSubscriber **ret) {
        _cleanup_(subscriber_freep) VarlinkSubscriber *u = calloc(1, sizeof(*u));
        int r;

        if (!u)
                return -ENOMEM;
        r = event_check(first, call);
        if (r >= 0)
                /* Not by the queue, where the present state could be dropped before it was told. */
                r = call_send_buffer(call, first->whole, false);
        if (r < 0)
                return r;

        u->call = varlink_call_ref(call);
        u->kinds = kinds;
        u->gone = gone;
        u->userdata = userdata;
        varlink_call_on_close(call, on_closed, u);
        call_on_drained(call, on_drained, u);
        subscriber_link(s, u);
        *ret = TAKE_PTR(u);
        return 0;
}

int varlink_stream_add(VarlinkStream *s, VarlinkCall *call, json_object *first, uint64_t kinds, VarlinkSubscriberGone gone, void *userdata,
        VarlinkSubscriber **ret) {
        return varlink_stream_add_after(s, call, first, kinds, s->sequence, gone, userdata, ret);
}

int varlink_stream_add_after(VarlinkStream *s, VarlinkCall *call, json_object *first, uint64_t kinds, uint64_t after, VarlinkSubscriberGone gone,
        void *userdata, VarlinkSubscriber **ret) {
        uint64_t from = MIN(MAX(after, s->forgotten), s->sequence);
        _cleanup_(event_unrefp) Event *e = NULL;
        VarlinkBuffer *told = NULL;
        VarlinkSubscriber *u;
        int r;

        if (!call->more)
                return -EOPNOTSUPP;
        r = event_new(0, NULL, first, from, false, &e);
        if (r >= 0 && from > after) {
                r = event_tell_missed(e, from - after, &told);
                if (r >= 0) {
                        (void) varlink_buffer_unref(e->whole);
                        e->whole = told;
                }
        }
        if (r >= 0)
                r = add(s, call, e, kinds, gone, userdata, &u);
        if (r < 0)
                return r;
        for (size_t i = 0; i < s->n_memory; i++)
                if (s->memory[i]->sequence > from && kinds & (UINT64_C(1) << s->memory[i]->kind) && deliver(u, s->memory[i]) < 0)
                        u->missed++;
        if (ret)
                *ret = u;
        return 0;
}

/* ---- memory ---- */

int varlink_stream_remember(VarlinkStream *s, size_t n, uint64_t kinds) {
        Event **memory = calloc(n, sizeof(Event *));

        if (!memory)
                return -ENOMEM;
        varlink_stream_forget(s, s->sequence);
        free(s->memory);
        s->memory = memory;
        s->memory_max = n;
        s->remembered_kinds = kinds;
        return 0;
}

static bool is_remembered(const VarlinkStream *s, unsigned kind) {
        return s->memory_max > 0 && s->remembered_kinds & (UINT64_C(1) << kind);
}

static void remember(VarlinkStream *s, Event *e) {
        if (s->n_memory == s->memory_max) {
                s->forgotten = s->memory[0]->sequence;
                (void) event_unref(s->memory[0]);
                memmove(s->memory, s->memory + 1, --s->n_memory * sizeof(Event *)); /* NOLINT(bugprone-sizeof-expression) */
        }
        e->n_ref++;
        s->memory[s->n_memory++] = e;
}

/* Whoever is behind keeps the text only. */
static void no_more_checks(const VarlinkStream *s, Event *e) {
        if (!is_remembered(s, e->kind))
                json_putp(&e->parameters);
}

json_object *varlink_stream_remembered(VarlinkStream *s, size_t i) {
        return i < s->n_memory ? s->memory[i]->parameters : NULL;
}

uint64_t varlink_stream_forgotten(VarlinkStream *s) {
        return s->forgotten;
}

void varlink_stream_forget(VarlinkStream *s, uint64_t forgotten) {
        for (size_t i = 0; i < s->n_memory; i++)
                (void) event_unref(s->memory[i]);
        s->n_memory = 0;
        s->forgotten = s->sequence = forgotten;
}

int varlink_stream_recall(VarlinkStream *s, unsigned kind, json_object *event) {
        int64_t sequence = json_get_integer(event, "sequence", -1);
        _cleanup_(event_unrefp) Event *e = NULL;
        int r;

        if (kind >= KINDS || sequence < 0 || (uint64_t) sequence <= s->sequence)
                return -EBADMSG;
        if (!is_remembered(s, kind))
                return 0;
        r = event_new(kind, NULL, event, (uint64_t) sequence, false, &e);
        if (r < 0)
                return r;
        remember(s, e);
        s->sequence = (uint64_t) sequence;
        return 0;
}

/* ---- the stream ---- */

int varlink_stream_publish(VarlinkStream *s, unsigned kind, const char *key, json_object *event) {
        _cleanup_(event_unrefp) Event *e = NULL;
        int r, result = 0;

        if (kind >= KINDS)
                return -EINVAL;
        s->sequence++;
        if (!varlink_stream_wants(s, kind))
                return 0;
        r = event_new(kind, key, event, s->sequence, false, &e);
        for (VarlinkSubscriber *u = s->subscribers; u; u = u->next) {
                if (!(u->kinds & (UINT64_C(1) << kind)))
                        continue;
                if (r < 0)
                        u->missed++;
                else {
                        int k = deliver(u, e);
                        if (k < 0)
                                result = k;
                }
        }
        if (r < 0) {
                /* Nobody can have it later. */
                if (is_remembered(s, kind))
                        varlink_stream_forget(s, s->sequence);
                return r;
        }
        if (is_remembered(s, kind))
                remember(s, e);
        no_more_checks(s, e);
        return result;
}

int varlink_subscriber_publish(VarlinkSubscriber *subscriber, unsigned kind, const char *key, json_object *event) {
        _cleanup_(event_unrefp) Event *e = NULL;
        int r;

        if (kind >= KINDS || !subscriber->stream)
                return -EINVAL;
        subscriber->stream->sequence++;
        if (!(subscriber->kinds & (UINT64_C(1) << kind)))
                return 0;
        r = event_new(kind, key, event, subscriber->stream->sequence, false, &e);
        if (r < 0) {
                subscriber->missed++;
                return r;
        }
        r = deliver(subscriber, e);
        json_putp(&e->parameters);
        return r;
}

int varlink_stream_close(VarlinkStream *s, json_object *last) {
        _cleanup_(event_unrefp) Event *e = NULL;
        int r, result = 0;

        r = event_new(0, NULL, last, ++s->sequence, true, &e);
        if (r < 0)
                return r;
        while (s->subscribers) {
                VarlinkSubscriber *u = s->subscribers;

                r = event_check(e, u->call);
                if (r >= 0) {
                        queue_send(u, true);
                        r = send_event(u, e, true);
                }
                if (r < 0)
                        result = r;
                subscriber_end(u);
        }
        return result;
}

int varlink_stream_new(VarlinkStream **ret, size_t backlog) {
        VarlinkStream *s = calloc(1, sizeof(*s));

        if (!s)
                return -ENOMEM;
        s->backlog = backlog > 0 ? backlog : VARLINK_STREAM_BACKLOG_DEFAULT;
        s->tail = &s->subscribers;
        *ret = s;
        return 0;
}

VarlinkStream *varlink_stream_free(VarlinkStream *s) {
        if (!s)
                return NULL;
        while (s->subscribers)
                (void) subscriber_free(s->subscribers);
        varlink_stream_forget(s, s->sequence);
        free(s->memory);
        return mfree(s);
}

size_t varlink_stream_n_subscribers(VarlinkStream *s) {
        return s->n_subscribers;
}

uint64_t varlink_stream_sequence(VarlinkStream *s) {
        return s->sequence;
}

void varlink_stream_set_sequence(VarlinkStream *s, uint64_t sequence) {
        s->sequence = sequence;
}

bool varlink_stream_wants(VarlinkStream *s, unsigned kind) {
        return kind < KINDS && (s->n_wanting[kind] > 0 || is_remembered(s, kind));
}
