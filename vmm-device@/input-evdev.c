/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An input device of the host's (linux/input.h), passed on. */

#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "input.h"

#define READ_MAX 64

/* A string that the kernel may not have: then it is empty. */
static void get_string(int fd, unsigned long request, char *ret, size_t size) {
        if (ioctl(fd, request, ret) < 0)
                ret[0] = 0;
        ret[size - 1] = 0;
}

/* The codes of each type that it has. Not EV_REP: the host's kernel repeats keys, and the guest's is not to do it once more. */
static int learn_codes(Input *in, int fd) {
        static const unsigned types[] = { EV_KEY, EV_REL, EV_ABS, EV_MSC, EV_SW, EV_LED, EV_SND };
        uint8_t has[EV_CNT / 8] = {};
        InputCapabilities *is = &in->is;

        if (ioctl(fd, EVIOCGBIT(0, sizeof(has)), has) < 0)
                return -errno;
        for (size_t i = 0; i < ELEMENTSOF(types); i++)
                if (has[types[i] / 8] & 1u << types[i] % 8 && ioctl(fd, EVIOCGBIT(types[i], INPUT_BITMAP_SIZE), is->bits[types[i]]) < 0)
                        return -errno;
        return 0;
}

static int learn(Input *in, int fd) {
        InputCapabilities *is = &in->is;
        int r;
        struct input_id id;

        if (ioctl(fd, EVIOCGID, &id) < 0)
                return -errno;
        is->ids = (struct virtio_input_devids) {
                .bustype = id.bustype, .vendor = id.vendor, .product = id.product, .version = id.version,
        };
        get_string(fd, EVIOCGNAME(sizeof(is->name)), is->name, sizeof(is->name));
        get_string(fd, EVIOCGUNIQ(sizeof(is->serial)), is->serial, sizeof(is->serial));
        if (ioctl(fd, EVIOCGPROP(sizeof(is->properties)), is->properties) < 0)
                return -errno;
        r = learn_codes(in, fd);
        if (r < 0)
                return r;
        for (unsigned axis = 0; axis < ABS_CNT; axis++) {
                struct input_absinfo info;

                if (!input_has(in, EV_ABS, axis))
                        continue;
                if (ioctl(fd, EVIOCGABS(axis), &info) < 0)
                        return -errno;
                is->axes[axis] = (struct virtio_input_absinfo) {
                        .min = (uint32_t) info.minimum, .max = (uint32_t) info.maximum, .fuzz = (uint32_t) info.fuzz,
                        .flat = (uint32_t) info.flat, .res = (uint32_t) info.resolution,
                };
        }
        return 0;
}

/* Whatever the kernel dropped is not known: no key stays pressed, and the rest of that report is worth nothing. */
static void take_event(Input *in, const struct input_event *e) {
        const struct virtio_input_event event = { .type = e->type, .code = e->code, .value = (uint32_t) e->value };

        if (e->type == EV_SYN && e->code == SYN_DROPPED) {
                in->resynchronizing = true;
                in->n_dropped++;
                input_release_all(in);
        } else if (e->type == EV_SYN && e->code == SYN_REPORT && in->resynchronizing)
                in->resynchronizing = false;
        else if (!in->resynchronizing && (e->type == EV_SYN ? e->code == SYN_REPORT : input_has(in, e->type, e->code)))
                input_report(in, &event, 1);
}

static int on_evdev(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        struct input_event events[READ_MAX];
        Input *in = userdata;
        ssize_t n;

        /* All keys that it has may have to be let go of. */
        if (input_room(in) < READ_MAX + KEY_CNT / 2)
                return sd_event_source_set_io_events(source, 0); /* the kernel keeps them, and says where it could not */
        n = read(fd, events, sizeof(events));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0)
                return log_error_errno(n < 0 ? errno : ENODEV, "The host's input device has gone: %m");
        for (size_t i = 0; i < (size_t) n / sizeof(events[0]); i++)
                take_event(in, &events[i]);
        return 0;
}

int input_evdev_open(Input *in, int fd) {
        struct stat st;
        int r;

        in->evdev_fd = fd;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISCHR(st.st_mode))
                return -ENOTTY;
        r = learn(in, fd);
        if (r < 0)
                return r;
        if (ioctl(fd, EVIOCGRAB, 1UL) < 0)
                return -errno;
        r = sd_event_add_io(device_event(in->device), &in->evdev_source, fd, EPOLLIN, on_evdev, in);
        /* The helper ends with its device: its unit tells. */
        return r < 0 ? r : sd_event_source_set_exit_on_failure(in->evdev_source, true);
}

void input_evdev_resume(Input *in) {
        if (in->evdev_source)
                (void) sd_event_source_set_io_events(in->evdev_source, EPOLLIN);
}

void input_evdev_status(Input *in, const struct virtio_input_event *event) {
        const struct input_event out[] = {
                { .type = event->type, .code = event->code, .value = (int32_t) event->value },
                { .type = EV_SYN, .code = SYN_REPORT },
        };

        if (in->evdev_fd >= 0 && write(in->evdev_fd, out, sizeof(out)) < 0)
                in->n_dropped++;
}

void input_evdev_close(Input *in) {
        in->evdev_source = sd_event_source_disable_unref(in->evdev_source);
        in->evdev_fd = safe_close(in->evdev_fd);
}
