/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Limits of bytes a second, one for each direction of the device: token buckets that may go into debt by one packet. */

#include "net.h"

/* So much time's worth may pass at once, and never less than a few large packets. */
#define BURST_USEC (20 * USEC_PER_MSEC)
#define BURST_MIN KIB(128)

static int64_t burst(const NetBucket *b) {
        return (int64_t) MAX(b->rate / (USEC_PER_SEC / BURST_USEC), BURST_MIN);
}

void net_bucket_init(NetBucket *b, uint64_t rate) {
        *b = (NetBucket) { .rate = rate, .filled_usec = now_usec() };
        b->tokens = burst(b);
}

bool net_bucket_open(NetBucket *b, uint64_t *ret_usec) {
        unsigned __int128 earned;
        uint64_t now;

        if (b->rate == 0)
                return true;
        now = now_usec();
        earned = (unsigned __int128) (now - b->filled_usec) * b->rate / USEC_PER_SEC;
        b->tokens += (int64_t) MIN(earned, (unsigned __int128) (burst(b) - b->tokens));
        b->filled_usec = now;
        if (b->tokens > 0)
                return true;
        *ret_usec = (uint64_t) (1 - b->tokens) * USEC_PER_SEC / b->rate + 1;
        return false;
}

void net_bucket_take(NetBucket *b, size_t length) {
        if (b->rate > 0)
                b->tokens -= (int64_t) length;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Net *n = userdata;

        n->timer_usec = 0;
        for (unsigned i = 0; i < n->n_pairs; i++) {
                NetPair *p = &n->pairs[i];
                int r;

                if (!p->active)
                        continue;
                r = p->receive_throttled ? net_receive_later(p) : 0;
                if (r >= 0 && p->transmit_throttled)
                        r = net_transmit_later(p);
                if (r < 0)
                        return r;
        }
        return 0;
}

int net_throttle(Net *n, uint64_t usec) {
        uint64_t at = now_usec() + usec;
        int r;

        if (n->timer_usec != 0 && n->timer_usec <= at)
                return 0;
        n->timer_usec = at;
        r = sd_event_source_set_time(n->timer, at);
        return r < 0 ? r : sd_event_source_set_enabled(n->timer, SD_EVENT_ONESHOT);
}

int net_rate_open(Net *n) {
        int r;

        net_bucket_init(&n->receive_bucket, device_option_unsigned(n->device, "receiveLimit", 0));
        net_bucket_init(&n->transmit_bucket, device_option_unsigned(n->device, "transmitLimit", 0));
        if (n->receive_bucket.rate == 0 && n->transmit_bucket.rate == 0)
                return 0;
        /* An accuracy of zero would be one of 250 ms. */
        r = sd_event_add_time(device_event(n->device), &n->timer, CLOCK_MONOTONIC, 0, 1, on_timer, n);
        if (r >= 0)
                r = sd_event_source_set_enabled(n->timer, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_source_set_exit_on_failure(n->timer, true);
        return r < 0 ? log_error_errno(r, "Cannot make a timer: %m") : 0;
}
