/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* virtio input (virtio 1.2 §5.8): what the device, a device of the host's that it passes on, and its interface share. */

#include <linux/input.h>
#include <linux/virtio_input.h>

#include "device.h"
#include "log.h"
#include "server.h"

#define INPUT_BITMAP_SIZE 128 /* of configuration space; the largest bitmap of Linux, that of keys, has 96 bytes */
#define INPUT_PENDING_MAX 1024
#define INPUT_PRESSES_MAX 16

/* What the guest is told that the device is. */
typedef struct InputCapabilities {
        char name[128], serial[128];
        struct virtio_input_devids ids;
        uint8_t properties[INPUT_BITMAP_SIZE];
        uint8_t bits[EV_CNT][INPUT_BITMAP_SIZE]; /* the codes of each type; a type without any is none of the device's */
        struct virtio_input_absinfo axes[ABS_CNT];
} InputCapabilities;

/* What the driver said and was told, in the unit's descriptor store. */
typedef struct InputKept {
        uint8_t select, subsel;
        uint8_t leds;
        uint8_t pressed[INPUT_BITMAP_SIZE];
} InputKept;

typedef struct Input Input;
typedef struct InputPress InputPress;

struct Input {
        Device *device;
        InputCapabilities is;
        InputKept *kept;
        VirtqueueChain chain;

        bool has_driver; /* since it was started, and until it is reset: also while the machine is paused */

        /* On their way to the guest, a ring. */
        struct virtio_input_event pending[INPUT_PENDING_MAX];
        unsigned first, n_pending;
        unsigned reserved; /* for the releases of what is pressed: no event takes their room */

        int evdev_fd;      /* negative where there is none */
        sd_event_source *evdev_source;
        sd_event_source *successor_source; /* until keys of a predecessor are let go of */
        bool resynchronizing; /* the host's device lost events */

        InputPress *presses;
        unsigned n_presses;
        uint64_t n_events, n_status, n_dropped;
};

bool input_has(const Input *in, unsigned type, unsigned code);
/* How many more events there is room for. */
unsigned input_room(const Input *in);
/* Puts events in the way to the guest. Of as many as there is room for. */
void input_report(Input *in, const struct virtio_input_event *events, unsigned n);
/* Lets go of every key that the guest believes to be pressed. */
void input_release_all(Input *in);

/* input-evdev.c: takes the device over, so that nobody else on the host gets its events. Before the sandbox. */
int input_evdev_open(Input *in, int fd);
/* There is room again. */
void input_evdev_resume(Input *in);
/* What the guest's driver says of lights and sounds. */
void input_evdev_status(Input *in, const struct virtio_input_event *event);
void input_evdev_close(Input *in);

/* input-control.c: the interface io.vmmd.Input. */
extern const VarlinkMethod input_methods[];
/* The driver has gone, and nobody's keys need to be released; their callers are answered. */
void input_forget_presses(Input *in);
