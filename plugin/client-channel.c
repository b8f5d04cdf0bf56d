/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A vCPU's channel, which is a pair of pipes or a ring: requests out, responses in. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin-client.h"

/* Registers of every kind fit. */
#define REQUEST_SIZE 4096
#define LENGTH_MAX 5 /* of a varint of 32 bits */

void plugin_vcpu_init(struct crosvm_vcpu *v, int write_fd, int read_fd) {
        *v = (struct crosvm_vcpu) { .read_fd = read_fd, .write_fd = write_fd };
}

void plugin_vcpu_done(struct crosvm_vcpu *v) {
        (void) close(v->read_fd);
        (void) close(v->write_fd);
        free(v->buffer);
        free(v->data);
}

void plugin_vcpu_use_ring(struct crosvm_vcpu *v, RingMemory *memory) {
        ring_init(&v->ring, memory, RING_PLUGIN, v->read_fd, v->write_fd, NULL);
        v->has_ring = true;
}

/* --- out --- */

/* One write: what is behind the pipe takes one read for one request. */
static int write_request(int fd, const uint8_t *data, size_t size) {
        ssize_t n;

        do
                n = write(fd, data, size);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : (size_t) n == size ? 0 : -EIO;
}

int plugin_vcpu_send(struct crosvm_vcpu *v, const VcpuRequest *request) {
        uint8_t small[REQUEST_SIZE], *data = small;
        size_t size = vcpu_request__get_packed_size(request);
        int r;

        if (size > CHANNEL_MESSAGE_MAX)
                return -E2BIG;
        if (size > sizeof(small)) {
                data = malloc(size);
                if (!data)
                        return -ENOMEM;
        }
        (void) vcpu_request__pack(request, data);
        r = v->has_ring ? ring_send(&v->ring, RING_MESSAGE, data, size) : write_request(v->write_fd, data, size);
        if (data != small)
                free(data);
        return r;
}

/* --- in --- */

/* The length in front of a message: > 0 is how many bytes it takes; 0: there are too few yet. */
static int read_length(const uint8_t *data, size_t size, size_t *ret) {
        uint64_t value = 0;

        for (size_t i = 0; i < size && i < LENGTH_MAX; i++) {
                value |= (uint64_t) (data[i] & 0x7f) << (7 * i);
                if (data[i] & 0x80)
                        continue;
                if (value > CHANNEL_MESSAGE_MAX)
                        return -EPROTO;
                *ret = (size_t) value;
                return (int) i + 1;
        }
        return size < LENGTH_MAX ? 0 : -EPROTO;
}

/* Has one more message in the buffer, of which read() may bring several or a part, and says where. */
static int read_response(struct crosvm_vcpu *v, const uint8_t **ret, size_t *ret_size) {
        for (;;) {
                size_t have = v->end - v->start, size = 0;
                int prefix = read_length(v->buffer + v->start, have, &size);
                ssize_t n;

                if (prefix < 0)
                        return prefix;
                if (prefix > 0 && have >= (size_t) prefix + size) {
                        *ret = v->buffer + v->start + prefix;
                        *ret_size = size;
                        v->start += (size_t) prefix + size;
                        return 0;
                }
                memmove(v->buffer, v->buffer + v->start, have);
                v->start = 0;
                v->end = have;
                n = read(v->read_fd, v->buffer + have, CHANNEL_MESSAGE_MAX + LENGTH_MAX - have);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : -EPIPE;
                v->end += (size_t) n;
        }
}

static int receive(struct crosvm_vcpu *v, const uint8_t **ret, size_t *ret_size) {
        uint8_t kind = RING_MESSAGE;
        int r;

        if (!v->buffer) {
                v->buffer = malloc(CHANNEL_MESSAGE_MAX + LENGTH_MAX);
                if (!v->buffer)
                        return -ENOMEM;
        }
        if (!v->has_ring)
                return read_response(v, ret, ret_size);
        r = ring_receive(&v->ring, &kind, v->buffer, CHANNEL_MESSAGE_MAX, ret_size);
        *ret = v->buffer;
        return r == -EBADMSG || (r >= 0 && kind != RING_MESSAGE) ? -EPROTO : r;
}

int plugin_vcpu_receive(struct crosvm_vcpu *v, VcpuResponse **ret) {
        VcpuResponse *response = NULL;
        const uint8_t *data = NULL;
        size_t size = 0;
        int r;

        r = receive(v, &data, &size);
        if (r < 0)
                return r;
        response = vcpu_response__unpack(NULL, size, data);
        if (!response)
                return -EPROTO;
        r = response->error;
        if (r != 0) {
                vcpu_response__free_unpacked(response, NULL);
                return r == INT32_MIN ? -EPROTO : r > 0 ? -r : r;
        }
        *ret = response;
        return 0;
}

int plugin_vcpu_ask(struct crosvm_vcpu *v, const VcpuRequest *request, VcpuResponse__MessageCase expected, VcpuResponse **ret) {
        VcpuResponse *response = NULL;
        int r;

        r = plugin_vcpu_send(v, request);
        if (r >= 0)
                r = plugin_vcpu_receive(v, &response);
        if (!response)
                return r;
        if (response->message_case != expected) {
                vcpu_response__free_unpacked(response, NULL);
                return -EPROTO;
        }
        *ret = response;
        return 0;
}
