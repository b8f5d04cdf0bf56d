/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The interface io.vmmd.Input: keys that are pressed for a while, and events as they come. */

#include "input.h"
#include "json-util.h"
#include "key-name.h"

#define KEYS_MAX 8
#define EVENTS_MAX 256
#define HOLD_DEFAULT_USEC (50 * USEC_PER_MSEC)
#define HOLD_MAX_USEC (60 * USEC_PER_SEC)
#define INTERFACE "io.vmmd.Input"

/* Keys that are held. The guest is owed their release, whatever becomes of who wanted them pressed. */
struct InputPress {
        InputPress *next;
        Input *input;
        VarlinkCall *call;
        sd_event_source *timer;
        uint16_t keys[KEYS_MAX];
        unsigned n_keys;
};

static InputPress *press_free(InputPress *p) {
        if (!p)
                return NULL;
        (void) sd_event_source_disable_unref(p->timer);
        (void) varlink_call_unref(p->call);
        return mfree(p);
}
DEFINE_CLEANUP(InputPress, press_free)

static void press_unlink(InputPress *p) {
        Input *in = p->input;

        for (InputPress **q = &in->presses; *q; q = &(*q)->next)
                if (*q == p) {
                        *q = p->next;
                        in->n_presses--;
                        in->reserved -= p->n_keys + 1;
                        return;
                }
}

/* Reports all of the keys, in their order or the opposite one. */
static void report_keys(const InputPress *p, bool pressed) {
        struct virtio_input_event events[KEYS_MAX + 1];

        for (unsigned i = 0; i < p->n_keys; i++)
                events[i] = (struct virtio_input_event) {
                        .type = EV_KEY, .code = p->keys[pressed ? i : p->n_keys - 1 - i], .value = pressed,
                };
        events[p->n_keys] = (struct virtio_input_event) { .type = EV_SYN, .code = SYN_REPORT };
        input_report(p->input, events, p->n_keys + 1);
}

static int on_release(sd_event_source *source, uint64_t usec, void *userdata) {
        _cleanup_(press_freep) InputPress *p = userdata;

        press_unlink(p);
        report_keys(p, false);
        (void) varlink_call_reply(p->call, NULL); /* where somebody is still there */
        return 0;
}

void input_forget_presses(Input *in) {
        while (in->presses) {
                _cleanup_(press_freep) InputPress *p = in->presses;

                press_unlink(p);
                (void) varlink_call_error(p->call, INTERFACE ".NoDriver", NULL);
        }
}

/* --- PressKeys --- */

/* > 0 where all keys are the device's, else the call was answered. */
static int take_keys(Input *in, VarlinkCall *call, json_object *keys, InputPress *p) {
        size_t n = json_object_array_length(keys);

        if (n < 1 || n > KEYS_MAX)
                return varlink_call_error_invalid_parameter(call, "keys");
        for (size_t i = 0; i < n; i++) {
                const char *name = json_object_get_string(json_object_array_get_idx(keys, i));
                unsigned code = key_code(name);

                if (code == 0 || !input_has(in, EV_KEY, code)) {
                        _cleanup_json_ json_object *error = json_object_new_object();

                        if (!error || json_add_string(error, "key", name) < 0)
                                return -ENOMEM;
                        return varlink_call_error(call, INTERFACE ".UnknownKey", error);
                }
                p->keys[p->n_keys++] = (uint16_t) code;
        }
        return 1;
}

static int press_keys(VarlinkCall *call, json_object *parameters, void *userdata) {
        Input *in = device_data(userdata);
        _cleanup_(press_freep) InputPress *p = calloc(1, sizeof(InputPress));
        int64_t hold = json_get_integer(parameters, "hold", HOLD_DEFAULT_USEC);
        int r;

        if (!p)
                return -ENOMEM;
        if (hold < 0 || hold > (int64_t) HOLD_MAX_USEC)
                return varlink_call_error_invalid_parameter(call, "hold");
        r = take_keys(in, call, json_object_object_get(parameters, "keys"), p);
        if (r <= 0)
                return r;
        if (!in->has_driver)
                return varlink_call_error(call, INTERFACE ".NoDriver", NULL);
        /* For the press and for the release. */
        if (in->n_presses >= INPUT_PRESSES_MAX || input_room(in) < 2 * (p->n_keys + 1))
                return varlink_call_error(call, INTERFACE ".Busy", NULL);
        r = sd_event_add_time_relative(device_event(in->device), &p->timer, CLOCK_MONOTONIC, (uint64_t) hold, 1, on_release, p);
        if (r < 0)
                return r;
        p->input = in;
        p->call = varlink_call_ref(call);
        p->next = in->presses;
        in->presses = p;
        in->n_presses++;
        in->reserved += p->n_keys + 1;
        report_keys(p, true);
        TAKE_PTR(p);
        return 0;
}

/* --- SendEvents --- */

static bool take_event(const Input *in, json_object *o, struct virtio_input_event *ret) {
        int64_t type = json_get_integer(o, "type", -1), code = json_get_integer(o, "code", -1), value = json_get_integer(o, "value", 0);

        if (type < 0 || type >= EV_CNT || code < 0 || code > UINT16_MAX || value < INT32_MIN || value > INT32_MAX)
                return false;
        switch (type) {
        case EV_SYN:
                if (code != SYN_REPORT || value != 0)
                        return false;
                break;
        case EV_KEY:
                if (value < 0 || value > 2)
                        return false;
                /* fall through */
        case EV_REL:
        case EV_ABS:
        case EV_MSC:
        case EV_SW:
                if (!input_has(in, (unsigned) type, (unsigned) code))
                        return false;
                break;
        default:
                return false;
        }
        *ret = (struct virtio_input_event) { .type = (uint16_t) type, .code = (uint16_t) code, .value = (uint32_t) (int32_t) value };
        return true;
}

static int send_events(VarlinkCall *call, json_object *parameters, void *userdata) {
        Input *in = device_data(userdata);
        json_object *array = json_object_object_get(parameters, "events");
        struct virtio_input_event events[EVENTS_MAX + 1];
        size_t n = json_object_array_length(array);

        if (n < 1 || n > EVENTS_MAX)
                return varlink_call_error_invalid_parameter(call, "events");
        for (size_t i = 0; i < n; i++)
                if (!take_event(in, json_object_array_get_idx(array, i), &events[i]))
                        return varlink_call_error_invalid_parameter(call, "events");
        if (events[n - 1].type != EV_SYN)
                events[n++] = (struct virtio_input_event) { .type = EV_SYN, .code = SYN_REPORT };
        if (!in->has_driver)
                return varlink_call_error(call, INTERFACE ".NoDriver", NULL);
        if (input_room(in) < n)
                return varlink_call_error(call, INTERFACE ".Busy", NULL);
        input_report(in, events, (unsigned) n);
        return varlink_call_reply(call, NULL);
}

const VarlinkMethod input_methods[] = {
        { .name = "PressKeys", .callback = press_keys },
        { .name = "SendEvents", .callback = send_events },
        {},
};
