/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a program leaves to its successor, as whatever it may be: the list of sections, the state's own section, and sessions. The first byte chooses. */

#include <sys/mman.h>

#include "bus-client.h"
#include "reload.h"
#include "vhost-frontend.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size);

static void check_text(const uint8_t *data, size_t size) {
        _cleanup_free_ char *text = calloc(1, size + 1), *message = NULL;

        if (!text)
                return;
        memcpy(text, data, size); /* not strndup(): for a strict sanitizer the whole of what it is given has to be a string */
        if (reload_sections_check(text, &message) < 0 && !message)
                abort();
}

static void open_inheritance(const uint8_t *data, size_t size) {
        _cleanup_(inheritance_freep) Inheritance *i = NULL;
        _cleanup_close_ int fd = memfd_create("fuzz", MFD_CLOEXEC);
        _cleanup_free_ char *message = NULL;

        if (fd < 0 || write_full(fd, data, size) < 0)
                return;
        if (inheritance_open(fd, -EBADF, NULL, &i, &message) < 0)
                return;
        for (size_t k = 0; k < i->n_files; k++)
                (void) safe_close(i->files[k].fd);
        for (size_t k = 0; k < i->n_listen_fds; k++)
                (void) safe_close(i->listen_fds[k]);
        (void) safe_close(i->kernel_fd);
        (void) safe_close(i->initrd_fd);
}

static void nothing(void *userdata) {
}

static void take_over_sessions(const uint8_t *data, size_t size) {
        const VhostFrontendHandlers handlers = { .state_changed = nothing, .config_changed = nothing, .broken = nothing, .lost = nothing };
        const BusSpace space = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = 8 };
        _cleanup_(vhost_frontend_freep) VhostFrontend *f = NULL;
        _cleanup_(state_reader_freep) StateReader *r = NULL;
        _cleanup_(bus_client_freep) BusClient *c = NULL;
        _cleanup_(handover_done) Handover h = {};
        GuestMemory memory = {};

        if (state_reader_new(data, size, &r, NULL) < 0)
                return;
        h.reader = r;
        if (vhost_frontend_new("fuzz", "/nonexistent", 4, 1, &memory, &handlers, &f) >= 0)
                (void) vhost_frontend_take_over(f, 0, &h, NULL);
        (void) handover_end(&h);
        if (state_enter(r, "none", 0, 1) >= 0)
                abort();
        if (bus_client_new(1, &space, NULL, 0, &c) >= 0)
                (void) bus_client_take_over(c, 0, &h, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size < 1)
                return 0;
        switch (data[0] % 3) {
        case 0:
                check_text(data + 1, size - 1);
                break;
        case 1:
                open_inheritance(data + 1, size - 1);
                break;
        default:
                take_over_sessions(data + 1, size - 1);
                break;
        }
        return 0;
}

/* --- what a search begins with --- */

static void put_reload(StateWriter *w, Handover *h) {
        state_begin(w, "reload", 0, 1);
        state_put_string(w, "0");
        state_put_string(w, "/vmmd");
        state_put_string(w, "{}");
        handover_put_fd(h, STDERR_FILENO);
        handover_put_fd(h, -EBADF);
        state_put_u32(w, 1);
        state_put_string(w, "a.path");
        handover_put_fd(h, 3);
        state_put_u32(w, 1);
        handover_put_fd(h, 3);
        handover_put_fd(h, 3);
        state_put_u64(w, 1);
        state_put_u32(w, 6);
        state_put_u64(w, 1);
        (void) state_end(w);
}

static void put_bus_session(Handover *h) {
        const BusSpace space = { .kind = BUS_SPACE_PIO, .base = 0x3f8, .length = 8 };
        _cleanup_(bus_client_freep) BusClient *c = NULL;

        if (bus_client_new(1, &space, NULL, 0, &c) >= 0)
                (void) bus_client_hand_over(c, 0, h);
}

/* As vhost-frontend.c writes it, of one queue. */
static void put_vhost_session(StateWriter *w, Handover *h) {
        static const uint8_t config[256] = {};

        state_begin(w, "vhost-session", 0, 1);
        state_put_u8(w, VHOST_FRONTEND_READY);
        state_put_string(w, NULL);
        state_put_u32(w, 0);
        handover_put_fd(h, 3);
        handover_put_fd(h, -EBADF);
        for (unsigned i = 0; i < 3; i++)
                state_put_u64(w, 1);
        for (unsigned i = 0; i < 5; i++)
                state_put_u8(w, 0);
        state_put_u32(w, 8);
        state_put_blob(w, config, sizeof(config));
        state_put_u32(w, 1);
        for (unsigned i = 0; i < 3; i++)
                handover_put_fd(h, 3);
        state_put_u64(w, 1);
        state_put_u8(w, 0);
        state_put_u8(w, 1);
        state_put_u16(w, 256);
        for (unsigned i = 0; i < 3; i++)
                state_put_u64(w, 4096);
        state_put_u16(w, 0);
        handover_put_fd(h, -EBADF);
        state_put_u64(w, 0);
        state_put_u64(w, 0);
        state_put_u16(w, 0);
        state_put_u16(w, 0);
        (void) state_end(w);
}

size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        static const char text[] = "format 1\nmachine 2\nx86-vcpu 2\n";
        _cleanup_(state_writer_freep) StateWriter *w = NULL;
        _cleanup_(handover_done) Handover h = {};
        const void *data = text;
        size_t length = sizeof(text) - 1;

        if (n > 3 || state_writer_new(&w) < 0)
                return 0;
        h.writer = w;
        if (n == 1)
                put_reload(w, &h);
        else if (n == 2)
                put_bus_session(&h);
        else if (n == 3)
                put_vhost_session(w, &h);
        if ((n > 0 && state_writer_finish(w, &data, &length) < 0) || length + 1 > size)
                return 0;
        buffer[0] = (uint8_t) MIN(n, 2U);
        memcpy(buffer + 1, data, length);
        return length + 1;
}
