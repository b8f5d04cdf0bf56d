/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Seeds: each device's requests, alone, spoilt in the ways that test-hostile has by hand, and one behind the other with a reset between. */

#include "fuzz-device.h"
#include "requests.h"

typedef struct Seed {
        uint8_t *p;
        size_t n, max;
} Seed;

static void put(Seed *s, const uint8_t *bytes, size_t n) {
        if (s->n + n > s->max)
                return;
        memcpy(s->p + s->n, bytes, n);
        s->n += n;
}
#define PUT(s, ...) put(s, (const uint8_t[]) { __VA_ARGS__ }, sizeof((const uint8_t[]) { __VA_ARGS__ }))

/* The kick, what the host has for who waits, and another kick. */
static void serve(Seed *s, const Request *r) {
        uint8_t queue = (uint8_t) r->queue;

        PUT(s, FUZZ_KICK, queue);
        if (r->waits)
                PUT(s, FUZZ_HOST, queue, 8, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h');
        PUT(s, FUZZ_KICK, queue);
}

typedef enum Variant {
        GOOD,
        PLAIN,
        LOGGED,
        LOOPS,
        TOO_LONG,
        EMPTY,
        OUTSIDE,
        OTHER_DIRECTION,
        HEAD_OUTSIDE,
        CHANGED_CONTENT,
        RINGS_ELSEWHERE,
        STOPPED,
        VARIANTS,
} Variant;

static void spoil(Seed *s, const Request *r, Variant variant) {
        uint8_t queue = (uint8_t) r->queue, last = (uint8_t) (request_n_buffers(r) - 1);

        switch (variant) {
        case LOOPS:
                PUT(s, FUZZ_WRITE_RING, queue, (uint8_t) (16 * last + 12), 0, 4, 1, 0, 0, 0);
                break;
        case TOO_LONG:
                PUT(s, FUZZ_WRITE_RING, queue, (uint8_t) (16 * last + 8), 0, 4, 0xff, 0xff, 0xff, 0xff);
                break;
        case EMPTY:
                PUT(s, FUZZ_WRITE_RING, queue, 8, 0, 4, 0, 0, 0, 0);
                break;
        case OUTSIDE:
                PUT(s, FUZZ_WRITE_RING, queue, 4, 0, 4, 0xff, 0xff, 0xff, 0xff);
                break;
        case OTHER_DIRECTION:
                PUT(s, FUZZ_WRITE_RING, queue, (uint8_t) (16 * last + 12), 0, 1, 2);
                break;
        case HEAD_OUTSIDE:
                PUT(s, FUZZ_OFFER, queue, 0xff);
                break;
        case CHANGED_CONTENT:
                PUT(s, FUZZ_WRITE_BUFFER, 0, 0, 0, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
                break;
        case RINGS_ELSEWHERE:
                PUT(s, FUZZ_ADDRESS, queue, 2, 0, 0, 2, 0, 0, 0x7f, 0, 0);
                break;
        case STOPPED:
                PUT(s, FUZZ_STOP, queue);
                break;
        default:
                break;
        }
}

/* One request in one variant. */
static void make_request(Seed *s, uint8_t device, uint8_t index, const Request *r, Variant variant) {
        PUT(s, device, variant == PLAIN ? FUZZ_WITHOUT_INDIRECT | FUZZ_WITHOUT_EVENT_IDX : variant == LOGGED ? FUZZ_WITH_LOG : 0);
        if (r->before)
                PUT(s, FUZZ_REQUEST, (uint8_t) (r->before - (r - index)), FUZZ_KICK, (uint8_t) r->before->queue);
        PUT(s, FUZZ_REQUEST, index);
        spoil(s, r, variant);
        serve(s, r);
        PUT(s, FUZZ_READ_CONFIG, 0, 60, FUZZ_WRITE_CONFIG, 4, 4, 1, 2, 3, 4, FUZZ_RESET, FUZZ_REQUEST, index);
        serve(s, r);
}

/* All of them. */
static void make_life(Seed *s, uint8_t device, const Request *requests) {
        PUT(s, device, FUZZ_WITH_LOG);
        for (uint8_t i = 0; requests[i].name; i++) {
                PUT(s, FUZZ_REQUEST, i);
                serve(s, &requests[i]);
        }
        PUT(s, FUZZ_RESET);
        for (uint8_t i = 0; requests[i].name; i++) {
                PUT(s, FUZZ_REQUEST, i);
                serve(s, &requests[i]);
        }
}

size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        Seed s = { .p = buffer, .max = size };

        for (unsigned device = 0; request_devices[device].name; device++) {
                const Request *requests = request_devices[device].requests;

                for (unsigned i = 0; requests[i].name; i++)
                        for (unsigned variant = 0; variant < VARIANTS; variant++)
                                if (n-- == 0) {
                                        make_request(&s, (uint8_t) device, (uint8_t) i, &requests[i], (Variant) variant);
                                        return s.n;
                                }
                if (n-- == 0) {
                        make_life(&s, (uint8_t) device, requests);
                        return s.n;
                }
        }
        return 0;
}
