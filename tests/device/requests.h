/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a well-formed request looks like to each device, as data: the hostile driver (test-hostile.c) spoils it in every way it knows, and the fuzzer
 * (tests/fuzz/fuzz-device.c) begins its search with it. A new device is one entry in requests.c. */

#include "util.h"

#define REQUEST_BUFFERS_MAX 6

typedef struct RequestBuffer {
        uint32_t length; /* 0 ends the list */
        bool writable;
        const void *data; /* of a readable one; its length is that of the buffer */
} RequestBuffer;

typedef struct Request Request;
struct Request {
        const char *name;
        unsigned queue;
        RequestBuffer buffers[REQUEST_BUFFERS_MAX];
        const Request *before; /* what the driver has to say first, on another queue; or NULL */
        bool waits;   /* it lies in its queue until the host has something for it */
        bool answers; /* the last byte that is written says how it went, 0 for well */
};

typedef struct RequestDevice {
        const char *name; /* the type's, or one of our own for a type with other options */
        const char *type;
        const char *options[6]; /* of the helper, beside the host's resources; NULL at the end */
        unsigned n_queues;
        const Request *requests; /* ends with one without a name */
} RequestDevice;

/* Ends with an entry without a name. */
extern const RequestDevice request_devices[];
const RequestDevice *request_device_find(const char *name);

unsigned request_n_buffers(const Request *r);
bool request_has(const Request *r, bool writable);
