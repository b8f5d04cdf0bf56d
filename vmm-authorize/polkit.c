/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdio.h>
#include <systemd/sd-bus.h>

#include "polkit.h"

#define SERVICE "org.freedesktop.PolicyKit1"
#define PATH "/org/freedesktop/PolicyKit1/Authority"
#define INTERFACE "org.freedesktop.PolicyKit1.Authority"

/* What sd-bus itself says. */
#define LOCAL "org.freedesktop.DBus.Local"
#define LOCAL_PATH "/org/freedesktop/DBus/Local"

#define BUS_CLOSED "the system bus closed the connection"

/* CheckAuthorizationFlags. */
#define ALLOW_USER_INTERACTION 1U

/* The bus allows 128 outstanding replies to one client. People type slower than polkit thinks, and one user has one pair of hands. */
static const struct {
        unsigned total, per_user;
        uint64_t timeout_usec;
} limits[2] = {
        [false] = { .total = 64, .per_user = 16, .timeout_usec = 25 * USEC_PER_SEC },
        [true] = { .total = 48, .per_user = 4, .timeout_usec = 300 * USEC_PER_SEC },
};

/* Dialogs about one machine for one user, under way or waiting. Its vmmd has room for 16 and cannot tell users apart: one alone must not fill it. */
#define DIALOGS_MAX 8

struct PolkitCheck {
        PolkitCheck *next;
        Polkit *polkit;
        const Peer *peer;
        const Question *question;
        PolkitCallback callback;
        void *userdata;
        sd_bus_slot *slot; /* where it is under way */
        char *cancellation_id;
};

struct Polkit {
        sd_event *event;
        sd_bus *bus;
        bool ready; /* the bus has greeted us */
        bool lost;  /* and has gone, with what was under way */
        PolkitCheck *waiting; /* oldest first */
        PolkitCheck *running;
        sd_event_source *turn; /* starts what may start */
        uint64_t last_id;
};

static void unlink_check(PolkitCheck **list, const PolkitCheck *check) {
        for (; *list; list = &(*list)->next)
                if (*list == check) {
                        *list = check->next;
                        break;
                }
}

static PolkitCheck *check_free(PolkitCheck *check) {
        unlink_check(&check->polkit->waiting, check);
        unlink_check(&check->polkit->running, check);
        sd_bus_slot_unref(check->slot);
        free(check->cancellation_id);
        return mfree(check);
}

/* Something has ended or come: on the next turn of the loop it is seen who may go. */
static void schedule(Polkit *p) {
        if (p->waiting || p->lost)
                (void) sd_event_source_set_enabled(p->turn, SD_EVENT_ONESHOT);
}

static void finish(PolkitCheck *check, PolkitAnswer answer, const char *error) {
        Polkit *p = check->polkit;

        check->callback(answer, error, check->userdata);
        (void) check_free(check);
        schedule(p);
}

/* --- the bus --- */

static void close_bus(Polkit *p) {
        if (p->bus)
                (void) sd_bus_detach_event(p->bus);
        p->bus = sd_bus_close_unref(p->bus);
        p->ready = p->lost = false;
}

static int on_connected(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        Polkit *p = userdata;

        p->ready = true;
        schedule(p);
        return 0;
}

static int on_disconnected(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        Polkit *p = userdata;

        p->lost = true;
        schedule(p);
        return 0;
}

static int start_bus(Polkit *p) {
        const char *address = secure_getenv("DBUS_SYSTEM_BUS_ADDRESS") ?: "unix:path=/run/dbus/system_bus_socket";
        int r;

        r = sd_bus_set_address(p->bus, address);
        if (r >= 0)
                r = sd_bus_set_bus_client(p->bus, true);
        /* Until the bus has greeted us, sending a descriptor would wait for that. */
        if (r >= 0)
                r = sd_bus_set_connected_signal(p->bus, true);
        if (r >= 0)
                r = sd_bus_match_signal(p->bus, NULL, LOCAL, LOCAL_PATH, LOCAL, "Connected", on_connected, p);
        if (r >= 0)
                r = sd_bus_match_signal(p->bus, NULL, LOCAL, LOCAL_PATH, LOCAL, "Disconnected", on_disconnected, p);
        if (r >= 0)
                r = sd_bus_start(p->bus);
        return r < 0 ? r : sd_bus_attach_event(p->bus, p->event, SD_EVENT_PRIORITY_NORMAL);
}

static int open_bus(Polkit *p) {
        int r;

        r = sd_bus_new(&p->bus);
        if (r >= 0)
                r = start_bus(p);
        if (r < 0)
                close_bus(p);
        return r;
}

/* What was asked is lost; those who wait are asked for on another connection, but where the bus did not even let us in. */
static void lose_bus(Polkit *p) {
        bool was_ready = p->ready;

        close_bus(p);
        while (p->running)
                finish(p->running, POLKIT_FAILED, BUS_CLOSED);
        while (!was_ready && p->waiting)
                finish(p->waiting, POLKIT_ABSENT, BUS_CLOSED);
}

/* "unix-process" of polkit's Subject. With the pidfd polkit 124 and later need nothing else to know the process; earlier ones tell it from
 * others of the same PID by its start time. */
static int append_subject(sd_bus_message *m, const Peer *peer) {
        int r;

        r = sd_bus_message_open_container(m, 'r', "sa{sv}");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", "unix-process");
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'a', "{sv}");
        if (r >= 0 && peer->pidfd >= 0)
                r = sd_bus_message_append(m, "{sv}", "pidfd", "h", peer->pidfd);
        if (r >= 0)
                r = sd_bus_message_append(m, "{sv}{sv}{sv}", "pid", "u", (uint32_t) peer->pid, "start-time", "t", peer->start_time, "uid",
                        "i", (int32_t) peer->uid);
        if (r >= 0)
                r = sd_bus_message_close_container(m);
        return r < 0 ? r : sd_bus_message_close_container(m);
}

static int make_call(PolkitCheck *check, sd_bus_message **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        const Question *q = check->question;
        _cleanup_free_ char *action = NULL;
        int r;

        if (asprintf(&action, "io.vmmd.machine.%s", right_to_string(q->right)) < 0) {
                action = NULL;
                return -ENOMEM;
        }
        r = sd_bus_message_new_method_call(check->polkit->bus, &m, SERVICE, PATH, INTERFACE, "CheckAuthorization");
        if (r >= 0)
                r = append_subject(m, check->peer);
        if (r >= 0)
                r = sd_bus_message_append(m, "s", action);
        if (r >= 0)
                r = sd_bus_message_append(m, "a{ss}", 2, "machine", q->machine, "method", q->method);
        if (r >= 0)
                r = sd_bus_message_append(m, "us", q->interactive ? ALLOW_USER_INTERACTION : 0U, check->cancellation_id ?: "");
        if (r < 0)
                return r;
        *ret = TAKE_PTR(m);
        return 0;
}

/* Whether the error says that there is nobody to ask. */
static bool means_absent(const sd_bus_error *error) {
        return sd_bus_error_has_names(error, SD_BUS_ERROR_SERVICE_UNKNOWN, SD_BUS_ERROR_NAME_HAS_NO_OWNER,
                "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitMasked") > 0;
}

static int read_answer(sd_bus_message *m, PolkitAnswer *ret) {
        int authorized, challenge, r;
        const char *key, *value;

        r = sd_bus_message_enter_container(m, 'r', "bba{ss}");
        if (r >= 0)
                r = sd_bus_message_read(m, "bb", &authorized, &challenge);
        if (r >= 0)
                r = sd_bus_message_enter_container(m, 'a', "{ss}");
        if (r < 0)
                return r;
        *ret = authorized ? POLKIT_YES : challenge ? POLKIT_CHALLENGE : POLKIT_NO;
        while ((r = sd_bus_message_read(m, "{ss}", &key, &value)) > 0)
                if (!authorized && streq(key, "polkit.dismissed"))
                        *ret = POLKIT_DISMISSED;
        return r;
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        PolkitCheck *check = userdata;
        const sd_bus_error *error = sd_bus_message_get_error(m);
        PolkitAnswer answer;
        int r;

        if (error)
                finish(check, means_absent(error) ? POLKIT_ABSENT : POLKIT_FAILED, error->message ?: error->name);
        else {
                r = read_answer(m, &answer);
                if (r < 0)
                        finish(check, POLKIT_FAILED, strerrordesc_np(-r));
                else
                        finish(check, answer, NULL);
        }
        return 0;
}

static int start(PolkitCheck *check) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        Polkit *p = check->polkit;
        int r;

        unlink_check(&p->waiting, check);
        check->next = p->running;
        p->running = check;
        if (check->question->interactive && asprintf(&check->cancellation_id, "vmm-%" PRIu64, ++p->last_id) < 0) {
                check->cancellation_id = NULL;
                return -ENOMEM;
        }
        r = make_call(check, &m);
        if (r < 0)
                return r;
        return sd_bus_call_async(p->bus, &check->slot, m, on_reply, check, limits[check->question->interactive].timeout_usec);
}

/* --- whose turn it is --- */

static bool may_start(const Polkit *p, const PolkitCheck *check) {
        bool interactive = check->question->interactive;
        unsigned total = 0, of_user = 0;

        for (const PolkitCheck *c = p->running; c; c = c->next)
                if (c->question->interactive == interactive) {
                        total++;
                        if (c->peer->uid == check->peer->uid)
                                of_user++;
                }
        return total < limits[interactive].total && of_user < limits[interactive].per_user;
}

/* One at a time, since a callback may cancel any. */
static int on_turn(sd_event_source *source, void *userdata) {
        PolkitCheck *check;
        Polkit *p = userdata;
        int r;

        if (p->lost)
                lose_bus(p);
        if (!p->bus && p->waiting) {
                r = open_bus(p);
                if (r < 0) {
                        finish(p->waiting, POLKIT_ABSENT, strerrordesc_np(-r));
                        return 0;
                }
        }
        if (!p->ready)
                return 0;
        for (check = p->waiting; check && !may_start(p, check); check = check->next)
                ;
        if (!check)
                return 0;
        r = start(check);
        if (r < 0)
                finish(check, POLKIT_FAILED, strerrordesc_np(-r));
        schedule(p);
        return 0;
}

static unsigned count_dialogs(const PolkitCheck *list, const Peer *peer, const Question *question) {
        unsigned n = 0;

        for (; list; list = list->next)
                n += list->question->interactive && list->peer->uid == peer->uid && streq(list->question->machine, question->machine);
        return n;
}

int polkit_check(Polkit *p, const Peer *peer, const Question *question, PolkitCallback callback, void *userdata, PolkitCheck **ret) {
        PolkitCheck *check, **end;

        if (question->interactive && count_dialogs(p->running, peer, question) + count_dialogs(p->waiting, peer, question) >= DIALOGS_MAX)
                return -EUSERS;
        check = calloc(1, sizeof(*check));
        if (!check)
                return -ENOMEM;
        *check = (PolkitCheck) { .polkit = p, .peer = peer, .question = question, .callback = callback, .userdata = userdata };
        for (end = &p->waiting; *end; end = &(*end)->next)
                ;
        *end = check;
        schedule(p);
        *ret = check;
        return 0;
}

PolkitCheck *polkit_check_cancel(PolkitCheck *check) {
        Polkit *p;

        if (!check)
                return NULL;
        p = check->polkit;
        if (check->slot && check->cancellation_id && p->bus)
                (void) sd_bus_call_method_async(p->bus, NULL, SERVICE, PATH, INTERFACE, "CancelCheckAuthorization", NULL, NULL, "s",
                        check->cancellation_id);
        (void) check_free(check);
        schedule(p);
        return NULL;
}

int polkit_new(Polkit **ret, sd_event *event) {
        Polkit *p;
        int r;

        p = calloc(1, sizeof(*p));
        if (!p)
                return -ENOMEM;
        p->event = sd_event_ref(event);
        r = sd_event_add_defer(event, &p->turn, on_turn, p);
        if (r >= 0)
                r = sd_event_source_set_enabled(p->turn, SD_EVENT_OFF);
        if (r < 0) {
                (void) polkit_free(p);
                return r;
        }
        *ret = p;
        return 0;
}

Polkit *polkit_free(Polkit *p) {
        if (!p)
                return NULL;
        while (p->waiting)
                (void) check_free(p->waiting);
        while (p->running)
                (void) check_free(p->running);
        sd_event_source_disable_unref(p->turn);
        close_bus(p);
        sd_event_unref(p->event);
        return mfree(p);
}
