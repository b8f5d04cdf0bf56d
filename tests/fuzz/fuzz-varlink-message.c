/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A peer's bytes, in pieces and with descriptors as a socket might give them, to a channel: messages come out whole, and what came out
 * can be sent. */

#include <fcntl.h>

#include "message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is sent is what was received: our form of it is valid, and says the same. */
static void check_again(VarlinkChannel *s, json_object *json) {
        _cleanup_(varlink_buffer_unrefp) VarlinkBuffer *buffer = NULL;
        json_object *again = NULL;

        if (varlink_channel_queue(s, json, NULL, 0) < 0 || varlink_buffer_new_json(json, &buffer) < 0 || buffer->data[buffer->size - 1] != 0 ||
                varlink_json_parse(buffer->data, buffer->size - 1, s->depth, &again) < 0)
                abort();
        if (!json_object_equal(json, again))
                abort();
        (void) json_object_put(again);
}

/* The first byte says how large the pieces are, and how many descriptors come with each. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        VarlinkChannel s;
        size_t piece, n_fds;

        if (size < 2 || varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
                return 0;
        s.message_size = KIB(4);
        s.depth = 8;
        s.fds = 2;
        piece = data[0] % 64 + 1U;
        n_fds = data[0] / 64;
        for (size_t i = 1; i < size; i += piece) {
                VarlinkMessage m = {};
                int fds[3];

                for (size_t k = 0; k < n_fds; k++)
                        fds[k] = fcntl(s.fd, F_DUPFD_CLOEXEC, 3);
                if (varlink_channel_feed(&s, data + i, MIN(piece, size - i), fds, n_fds) < 0)
                        break;
                while (varlink_channel_next(&s, &m) > 0) {
                        if (m.n_fds > s.fds)
                                abort();
                        check_again(&s, m.json);
                        varlink_message_done(&m);
                }
        }
        varlink_channel_done(&s);
        return 0;
}
