/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A terminal that answers as an input device does, for the helper that this is loaded into (LD_PRELOAD): a mouse with one key and a light, of which
 * somebody at the terminal's other side sends the events. */

#include <dlfcn.h>
#include <errno.h>
#include <linux/input.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>


static void set_bit(unsigned char *bitmap, unsigned bit) {
        bitmap[bit / 8] |= (unsigned char) (1u << bit % 8);
}

static int answer_bits(unsigned type, unsigned char *bitmap, size_t size) {
        static const struct { unsigned type, code; } has[] = {
                { EV_KEY, BTN_LEFT }, { EV_KEY, KEY_POWER }, { EV_REL, REL_X }, { EV_ABS, ABS_Y }, { EV_LED, LED_CAPSL },
        };

        /* As the kernel has it: no codes of EV_REP and of what there is not. */
        if (type == EV_REP || type > EV_FF) {
                errno = EINVAL;
                return -1;
        }
        memset(bitmap, 0, size);
        if (type == 0)
                set_bit(bitmap, EV_REP);
        for (size_t i = 0; i < sizeof(has) / sizeof(has[0]); i++)
                if (type == 0)
                        set_bit(bitmap, has[i].type);
                else if (has[i].type == type)
                        set_bit(bitmap, has[i].code);
        return 0;
}

static int answer(unsigned long request, void *argument) {
        const struct input_absinfo axis = { .minimum = -5, .maximum = 32767, .fuzz = 1, .flat = 2, .resolution = 3 };
        const struct input_id id = { .bustype = BUS_USB, .vendor = 0x1234, .product = 0x5678, .version = 9 };
        size_t size = _IOC_SIZE(request);

        if (request == EVIOCGID)
                memcpy(argument, &id, sizeof(id));
        else if (_IOC_NR(request) == _IOC_NR(EVIOCGNAME(0)))
                strncpy(argument, "a mouse", size);
        else if (_IOC_NR(request) == _IOC_NR(EVIOCGUNIQ(0))) {
                errno = ENOENT;
                return -1;
        } else if (_IOC_NR(request) == _IOC_NR(EVIOCGPROP(0))) {
                memset(argument, 0, size);
                set_bit(argument, INPUT_PROP_POINTER);
        } else if (_IOC_NR(request) == _IOC_NR(EVIOCGABS(ABS_Y)))
                memcpy(argument, &axis, sizeof(axis));
        else if (_IOC_NR(request) >= _IOC_NR(EVIOCGBIT(0, 0)) && _IOC_NR(request) < _IOC_NR(EVIOCGBIT(EV_CNT, 0)))
                return answer_bits(_IOC_NR(request) - _IOC_NR(EVIOCGBIT(0, 0)), argument, size);
        else if (request != EVIOCGRAB) {
                errno = ENOTTY;
                return -1;
        }
        return 0;
}

typedef int (*Ioctl)(int fd, unsigned long request, ...);
typedef ssize_t (*Read)(int fd, void *buffer, size_t size);

static Ioctl real_ioctl;
static Read real_read;
static int device = -1; /* the terminal, once it is taken over */

__attribute__((constructor)) static void find_real(void) {
        real_ioctl = (Ioctl) dlsym(RTLD_NEXT, "ioctl");
        real_read = (Read) dlsym(RTLD_NEXT, "read");
}

int ioctl(int fd, unsigned long request, ...) {
        void *argument;
        va_list ap;

        va_start(ap, request);
        argument = va_arg(ap, void *);
        va_end(ap);
        if (_IOC_TYPE(request) != 'E')
                return real_ioctl(fd, request, argument);
        if (request == EVIOCGRAB)
                device = fd;
        return answer(request, argument);
}

/* A terminal has bytes, where an input device has whole events. */
ssize_t read(int fd, void *buf, size_t nbytes) {
        static char rest[sizeof(struct input_event)];
        static size_t n_rest;
        size_t have = n_rest;
        ssize_t n;

        if (fd != device || nbytes <= sizeof(rest))
                return real_read(fd, buf, nbytes);
        n = real_read(fd, (char *) buf + have, nbytes - have);
        if (n <= 0)
                return n;
        memcpy(buf, rest, have);
        have += (size_t) n;
        n_rest = have % sizeof(rest);
        have -= n_rest;
        memcpy(rest, (char *) buf + have, n_rest);
        if (have == 0)
                errno = EAGAIN;
        return have > 0 ? (ssize_t) have : -1;
}
