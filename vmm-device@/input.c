/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* virtio input (virtio 1.2 §5.8): a keyboard whose keys are pressed over the control interface, or an input device of the host's.
 *
 * Queue 0 has buffers for events, queue 1 is what the driver says of lights. Events wait in a ring of ours while the guest has no buffers; nothing is
 * put there while it has no driver. */

#include <fcntl.h>
#include <stdio.h>

#include <json-c/json.h>

#include "input.h"
#include "interfaces.h"
#include "key-name.h"

enum { QUEUE_EVENTS = 0, QUEUE_STATUS = 1, N_QUEUES = 2 };

/* Chains of one process() call; then others of the event loop have their turn. */
#define CHAINS_AT_ONCE 64
#define KEPT "input-state"

static void set_bit(uint8_t *bitmap, unsigned bit) {
        bitmap[bit / 8] |= (uint8_t) (1u << bit % 8);
}

static void clear_bit(uint8_t *bitmap, unsigned bit) {
        bitmap[bit / 8] &= (uint8_t) ~(1u << bit % 8);
}

static bool get_bit(const uint8_t *bitmap, unsigned bit) {
        return bitmap[bit / 8] & 1u << bit % 8;
}

bool input_has(const Input *in, unsigned type, unsigned code) {
        return type < EV_CNT && code < INPUT_BITMAP_SIZE * 8 && get_bit(in->is.bits[type], code);
}

/* --- events --- */

unsigned input_room(const Input *in) {
        return INPUT_PENDING_MAX - in->n_pending - MIN(in->reserved, INPUT_PENDING_MAX - in->n_pending);
}

static bool has_events(void *userdata) {
        const Input *in = userdata;

        return in->n_pending > 0;
}

static uint32_t write_event(VirtqueueChain *chain, void *userdata) {
        Input *in = userdata;
        size_t n = iov_cursor_write(&chain->writable, &in->pending[in->first], sizeof(in->pending[0]));

        in->first = (in->first + 1) % INPUT_PENDING_MAX;
        in->n_pending--;
        return (uint32_t) n;
}

/* Fills the guest's buffers as long as there are both. 1 where there is more to do. */
static int deliver(Input *in) {
        static const VirtqueueServer server = { .wanted = has_events, .serve = write_event, .max = CHAINS_AT_ONCE };
        Virtqueue *q = device_queue(in->device, QUEUE_EVENTS);
        int r;

        if (!q)
                return 0;
        r = virtqueue_serve(q, &in->chain, &server, in);
        if (r == 0)
                input_evdev_resume(in);
        return r;
}

/* From an event of the device's own, so what is wrong with the queue must be said here. */
static void deliver_now(Input *in) {
        Virtqueue *q = device_queue(in->device, QUEUE_EVENTS);
        int r;

        if (!device_is_running(in->device)) /* the process() after the next start() does it */
                return;
        r = deliver(in);
        if (r == -EBADMSG)
                device_broken(in->device, "event queue: %s", (q ? virtqueue_error(q) : NULL) ?: "broken");
        else if (r < 0)
                (void) log_warning_errno(r, "Cannot hand events to the guest: %m");
}

static void put(Input *in, struct virtio_input_event event) {
        assert(in->n_pending < INPUT_PENDING_MAX);
        in->pending[(in->first + in->n_pending++) % INPUT_PENDING_MAX] = event;
        in->n_events++;
        if (event.type == EV_KEY && event.code < KEY_CNT && event.value == 0)
                clear_bit(in->kept->pressed, event.code);
        else if (event.type == EV_KEY && event.code < KEY_CNT)
                set_bit(in->kept->pressed, event.code);
}

void input_report(Input *in, const struct virtio_input_event *events, unsigned n) {
        if (!in->has_driver)
                return;
        for (unsigned i = 0; i < n; i++)
                put(in, events[i]);
        deliver_now(in);
}

void input_release_all(Input *in) {
        unsigned n = 0;

        if (!in->has_driver)
                return;
        for (unsigned code = 0; code < KEY_CNT && in->n_pending < INPUT_PENDING_MAX - 1; code++)
                if (get_bit(in->kept->pressed, code)) {
                        put(in, (struct virtio_input_event) { .type = EV_KEY, .code = (uint16_t) code });
                        n++;
                }
        if (n == 0)
                return;
        put(in, (struct virtio_input_event) { .type = EV_SYN, .code = SYN_REPORT });
        deliver_now(in);
}

/* --- the driver's word on lights and sounds --- */

static void take_status(Input *in, const struct virtio_input_event *event) {
        if ((event->type != EV_LED && event->type != EV_SND) || !input_has(in, event->type, event->code)) {
                in->n_dropped++;
                return;
        }
        in->n_status++;
        if (event->type == EV_LED && event->code < 8) {
                if (event->value)
                        set_bit(&in->kept->leds, event->code);
                else
                        clear_bit(&in->kept->leds, event->code);
        }
        input_evdev_status(in, event);
}

static uint32_t read_status(VirtqueueChain *chain, void *userdata) {
        struct virtio_input_event event = {};
        Input *in = userdata;

        if (iov_cursor_read(&chain->readable, &event, sizeof(event)) == sizeof(event))
                take_status(in, &event);
        else
                in->n_dropped++;
        return 0;
}

static int take_statuses(Input *in) {
        static const VirtqueueServer server = { .serve = read_status, .max = CHAINS_AT_ONCE };
        Virtqueue *q = device_queue(in->device, QUEUE_STATUS);

        return q ? virtqueue_serve(q, &in->chain, &server, in) : 0;
}

static int input_process(Device *d, unsigned index) {
        Input *in = device_data(d);

        return index == QUEUE_EVENTS ? deliver(in) : take_statuses(in);
}

/* --- configuration space (§5.8.5) --- */

static uint8_t bitmap_size(const uint8_t *bitmap) {
        uint8_t n = INPUT_BITMAP_SIZE;

        while (n > 0 && bitmap[n - 1] == 0)
                n--;
        return n;
}

/* "size … is zero if there is no such data". */
static void answer(const Input *in, struct virtio_input_config *c) {
        const InputCapabilities *is = &in->is;

        switch (c->select) {
        case VIRTIO_INPUT_CFG_ID_NAME:
        case VIRTIO_INPUT_CFG_ID_SERIAL: {
                const char *text = c->select == VIRTIO_INPUT_CFG_ID_NAME ? is->name : is->serial;

                if (c->subsel != 0)
                        break;
                c->size = (uint8_t) strlen(text);
                memcpy(c->u.string, text, c->size);
                break;
        }
        case VIRTIO_INPUT_CFG_ID_DEVIDS:
                if (c->subsel != 0)
                        break;
                c->size = sizeof(is->ids);
                c->u.ids = is->ids;
                break;
        case VIRTIO_INPUT_CFG_PROP_BITS:
                if (c->subsel != 0)
                        break;
                c->size = bitmap_size(is->properties);
                memcpy(c->u.bitmap, is->properties, c->size);
                break;
        case VIRTIO_INPUT_CFG_EV_BITS:
                if (c->subsel == EV_SYN || c->subsel >= EV_CNT)
                        break;
                c->size = bitmap_size(is->bits[c->subsel]);
                memcpy(c->u.bitmap, is->bits[c->subsel], c->size);
                break;
        case VIRTIO_INPUT_CFG_ABS_INFO:
                if (!input_has(in, EV_ABS, c->subsel))
                        break;
                c->size = sizeof(is->axes[0]);
                c->u.abs = is->axes[c->subsel];
                break;
        }
}

static void input_config_read(Device *d, uint32_t offset, void *data, uint32_t length) {
        const Input *in = device_data(d);
        struct virtio_input_config c = { .select = in->kept->select, .subsel = in->kept->subsel };

        answer(in, &c);
        memcpy(data, (const uint8_t *) &c + offset, length);
}

_Static_assert(offsetof(struct virtio_input_config, select) == 0 && offsetof(struct virtio_input_config, subsel) == 1,
        "these two can be written");

/* The driver chooses what it wants to read. There are front-ends that write all of it at once, QEMU's among them: what is the device's own is
 * passed over. */
static int input_config_write(Device *d, uint32_t offset, const void *data, uint32_t length) {
        Input *in = device_data(d);
        const uint8_t *bytes = data;

        if (offset >= 2)
                return -EINVAL;
        for (uint32_t i = 0; i < length && offset + i < 2; i++)
                *(offset + i == 0 ? &in->kept->select : &in->kept->subsel) = bytes[i];
        return 0;
}

/* --- life cycle --- */

static int input_start(Device *d) {
        Input *in = device_data(d);

        in->has_driver = true;
        return 0; /* process() is called for each queue that comes into service */
}

static void input_stop(Device *d) {
        /* No request outlives process(). */
}

/* The next driver knows of nothing. */
static void input_reset(Device *d) {
        Input *in = device_data(d);

        in->has_driver = false;
        input_forget_presses(in);
        memset(in->kept, 0, sizeof(*in->kept));
        in->n_pending = 0;
        input_evdev_resume(in);
}

static void be_a_keyboard(Input *in) {
        InputCapabilities *is = &in->is;

        (void) snprintf(is->name, sizeof(is->name), "vmmd keyboard");
        is->ids = (struct virtio_input_devids) { .bustype = BUS_VIRTUAL, .version = 1 };
        for (unsigned code = 1; code < KEY_CODE_END; code++)
                if (key_name(code))
                        set_bit(is->bits[EV_KEY], code);
        /* No EV_REP: whoever holds a key down says himself whether it repeats. */
        for (unsigned led = LED_NUML; led <= LED_SCROLLL; led++)
                set_bit(is->bits[EV_LED], led);
}

static int open_host_device(Input *in, Device *d) {
        int fd, r;

        fd = device_open_path(d, "path", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd < 0)
                return log_error_errno(fd, "Cannot open %s: %m", device_option(d, "path") ?: "the input device");
        r = input_evdev_open(in, fd);
        return r < 0 ? log_error_errno(r, "Cannot take over %s: %m", device_option(d, "path") ?: "the input device") : 0;
}

/* What a predecessor had pressed when it ended nobody else lets go of. */
static int on_successor(sd_event_source *source, void *userdata) {
        Input *in = userdata;

        if (!in->has_driver)
                return 0;
        input_release_all(in);
        return sd_event_source_set_enabled(source, SD_EVENT_OFF);
}

static int input_open(Device *d) {
        Input *in = calloc(1, sizeof(*in));
        void *kept;
        int found, r;

        if (!in)
                return log_oom();
        in->device = d;
        in->evdev_fd = -EBADF;
        device_set_data(d, in);
        found = device_keep(d, KEPT, sizeof(InputKept), &kept);
        if (found < 0)
                return log_error_errno(found, "Cannot keep the device's state: %m");
        in->kept = kept;
        if (device_option(d, "path")) {
                r = open_host_device(in, d);
                if (r < 0)
                        return r;
        } else
                be_a_keyboard(in);
        if (!found)
                return 0;
        /* After each turn of the loop, until there is a driver. */
        r = sd_event_add_post(device_event(d), &in->successor_source, on_successor, in);
        return r < 0 ? log_error_errno(r, "Cannot watch for the driver: %m") : 0;
}

static void input_close(Device *d) {
        Input *in = device_data(d);

        if (!in)
                return;
        (void) sd_event_source_disable_unref(in->successor_source);
        input_forget_presses(in);
        input_evdev_close(in);
        virtqueue_chain_done(&in->chain);
        free(in);
        device_set_data(d, NULL);
}

static void input_describe(Device *d, json_object *into) {
        static const char *const leds[] = {
                [LED_NUML] = "numLock", [LED_CAPSL] = "capsLock", [LED_SCROLLL] = "scrollLock", [LED_COMPOSE] = "compose", [LED_KANA] = "kana",
        };
        const Input *in = device_data(d);
        json_object *lit = json_object_new_array();

        (void) json_object_object_add(into, "name", json_object_new_string(in->is.name));
        for (size_t i = 0; i < ELEMENTSOF(leds); i++)
                if (get_bit(&in->kept->leds, (unsigned) i))
                        (void) json_object_array_add(lit, json_object_new_string(leds[i]));
        (void) json_object_object_add(into, "leds", lit);
}

static void input_counters(Device *d, json_object *into) {
        const Input *in = device_data(d);

        (void) json_object_object_add(into, "events", json_object_new_uint64(in->n_events));
        (void) json_object_object_add(into, "statusEvents", json_object_new_uint64(in->n_status));
        (void) json_object_object_add(into, "droppedEvents", json_object_new_uint64(in->n_dropped));
}

#define INPUT_STATE_VERSION 1

/* What had not reached the guest yet does not: whoever pressed it is not there any more. */
static int input_save(Device *d, StateWriter *w) {
        const InputKept *kept = ((Input *) device_data(d))->kept;

        state_begin(w, "input", 0, INPUT_STATE_VERSION);
        state_put_u8(w, kept->select);
        state_put_u8(w, kept->subsel);
        state_put_u8(w, kept->leds);
        state_put_blob(w, kept->pressed, sizeof(kept->pressed));
        return state_end(w);
}

static int input_load(Device *d, StateReader *reader, char **ret_message) {
        Input *in = device_data(d);
        InputKept kept = {};
        int r;

        r = state_enter(reader, "input", 0, INPUT_STATE_VERSION);
        if (r < 0)
                return set_message(ret_message, r, "it is no state of an input device, or a newer version's");
        kept.select = state_get_u8(reader);
        kept.subsel = state_get_u8(reader);
        kept.leds = state_get_u8(reader);
        state_get_blob(reader, kept.pressed, sizeof(kept.pressed));
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        *in->kept = kept;
        in->n_pending = 0;
        return in->successor_source ? sd_event_source_set_enabled(in->successor_source, SD_EVENT_ON) :
                sd_event_add_post(device_event(d), &in->successor_source, on_successor, in);
}

const DeviceClass input_device = {
        .name = "input",
        .virtio_id = 18,
        .queues_max = N_QUEUES,
        .config_size = sizeof(struct virtio_input_config),
        .policy = "input",
        .open = input_open,
        .start = input_start,
        .stop = input_stop,
        .reset = input_reset,
        .process = input_process,
        .config_read = input_config_read,
        .config_write = input_config_write,
        .save = input_save,
        .load = input_load,
        .close = input_close,
        .describe = input_describe,
        .counters = input_counters,
        .interface = varlink_text_io_vmmd_Input,
        .methods = input_methods,
};
