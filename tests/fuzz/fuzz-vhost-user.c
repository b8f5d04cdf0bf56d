/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A front-end that says what the fuzzer likes to the back-end of a helper, with descriptors of the kinds that it could have: the frame with the
 * entropy device behind it, in this process. A record is: request, flags, payload size, which descriptors, payload. */

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "frame.h"
#include "options.h"
#include "passed.h"

#define RECORD_HEADER 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int ram_fd = -EBADF, event_fd = -EBADF;

static size_t choose_fds(uint8_t which, int *fds) {
        size_t n = which % 4;

        for (size_t i = 0; i < n; i++)
                fds[i] = which & 4 ? ram_fd : event_fd;
        return n;
}

/* Returns how many bytes of the input were used. */
static size_t send_record(int fd, const uint8_t *data, size_t size) {
        VhostUserMsg msg = {};
        int fds[4];
        size_t n_fds, length;

        if (size < RECORD_HEADER)
                return 0;
        length = MIN((size_t) data[2], MIN(size - RECORD_HEADER, sizeof(msg.payload)));
        msg.header = (VhostUserHeader) {
                .request = data[0] % 44,
                .flags = VHOST_USER_VERSION | (data[1] & 8),
                .size = (uint32_t) length,
        };
        memcpy(&msg.payload, data + RECORD_HEADER, length);
        n_fds = choose_fds(data[3], fds);
        (void) send_with_fds(fd, &msg, sizeof(msg.header) + length, fds, n_fds);
        return RECORD_HEADER + length;
}

static void play(sd_event *event, Device *d, const uint8_t *data, size_t size) {
        uint8_t sink[4096];
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 || session_new(d, pair[1]) < 0)
                abort();
        for (size_t used; d->session && (used = send_record(pair[0], data, size)) > 0; data += used, size -= used) {
                for (int i = 0; i < 8 && sd_event_run(event, 0) > 0; i++)
                        ;
                while (read(pair[0], sink, sizeof(sink)) > 0)
                        ;
        }
        (void) close(pair[0]);
        for (int i = 0; i < 16 && d->session; i++)
                (void) sd_event_run(event, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const DeviceType *type = device_type_find("rng");
        DeviceOptions *options = NULL;
        PassedFds passed = {};
        sd_event *event = NULL;
        Device *d = NULL;
        uint8_t *ram;

        if (ram_fd < 0) {
                ram_fd = guest_memory_create_fd(65536, 0);
                event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                log_set_max_level(LOG_EMERG);
        }
        /* Rings and chains come from the same bytes. */
        ram = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
        if (ram == MAP_FAILED)
                abort();
        memcpy(ram, data, MIN(size, (size_t) 65536));
        (void) munmap(ram, 65536);

        if (sd_event_new(&event) < 0 || device_options_new(type, &options) < 0 ||
                device_new(&rng_device, type, event, options, &passed, &d) < 0)
                abort();
        play(event, d, data, size);
        (void) device_free(d);
        (void) device_options_free(options);
        (void) sd_event_unref(event);
        return 0;
}
