/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a plugin makes under a number, and destroys by it: I/O events, memory, interrupts. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin-client.h"

#define PAGE_MASK UINT64_C(0xfff)

struct crosvm_io {
        uint32_t id;
        int fd;
};

struct crosvm_memory {
        uint32_t id;
        uint64_t length;
};

struct crosvm_irq {
        uint32_t id;
        int fds[2]; /* trigger, resample */
};

/* Asks for the object that `create` describes; its number is chosen here. */
static int create(struct crosvm *c, MainRequest__Create *object, int send_fd, int *ret_fds, size_t n_fds, uint32_t *ret_id) {
        MainRequest request = MAIN_REQUEST__INIT;
        MainResponse *response = NULL;
        int r;

        object->id = atomic_fetch_add(&c->shared->next_id, 1);
        request.message_case = MAIN_REQUEST__MESSAGE_CREATE;
        request.create = object;
        r = plugin_ask(c, &request, send_fd, MAIN_RESPONSE__MESSAGE_CREATE, &response, ret_fds, &n_fds);
        if (r < 0)
                return r;
        main_response__free_unpacked(response, NULL);
        *ret_id = object->id;
        return 0;
}

static int destroy(struct crosvm *c, uint32_t id) {
        MainRequest__Destroy object = MAIN_REQUEST__DESTROY__INIT;
        MainRequest request = MAIN_REQUEST__INIT;

        object.id = id;
        request.message_case = MAIN_REQUEST__MESSAGE_DESTROY;
        request.destroy = &object;
        return plugin_tell(c, &request, MAIN_RESPONSE__MESSAGE_DESTROY);
}

/* --- I/O events --- */

static int read_datamatch(const uint8_t *data, uint32_t length, uint64_t *ret) {
        *ret = 0;
        if (length != 0 && length != 1 && length != 2 && length != 4 && length != 8)
                return -EINVAL;
        memcpy(ret, data ?: (const uint8_t *) ret, length); /* little endian, as the guest */
        return 0;
}

int crosvm_create_io_event(struct crosvm *c, uint32_t space, uint64_t address, uint32_t length, const uint8_t *datamatch,
        struct crosvm_io **ret) {
        MainRequest__Create__IoEvent event = MAIN_REQUEST__CREATE__IO_EVENT__INIT;
        MainRequest__Create object = MAIN_REQUEST__CREATE__INIT;
        struct crosvm_io *io;
        int r;

        if (space != CROSVM_ADDRESS_SPACE_IOPORT && space != CROSVM_ADDRESS_SPACE_MMIO)
                return -EINVAL;
        r = read_datamatch(datamatch, length, &event.datamatch);
        if (r < 0)
                return r;
        event.space = (AddressSpace) space;
        event.address = address;
        event.length = datamatch ? length : 0;
        object.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_IO_EVENT;
        object.io_event = &event;
        io = malloc(sizeof(struct crosvm_io));
        if (!io)
                return -ENOMEM;
        r = create(c, &object, -1, &io->fd, 1, &io->id);
        if (r < 0) {
                free(io);
                return r;
        }
        *ret = io;
        return 0;
}

int crosvm_destroy_io_event(struct crosvm *c, struct crosvm_io **io) {
        int r;

        r = destroy(c, (*io)->id);
        if (r < 0)
                return r;
        (void) close((*io)->fd);
        free(*io);
        *io = NULL;
        return 0;
}

int crosvm_io_event_fd(struct crosvm_io *io) {
        return io->fd;
}

/* --- memory --- */

int crosvm_create_memory(struct crosvm *c, int fd, uint64_t offset, uint64_t length, uint64_t start, bool read_only, bool dirty_log,
        struct crosvm_memory **ret) {
        MainRequest__Create__Memory description = MAIN_REQUEST__CREATE__MEMORY__INIT;
        MainRequest__Create object = MAIN_REQUEST__CREATE__INIT;
        struct crosvm_memory *memory;
        int r;

        if (offset & PAGE_MASK || length & PAGE_MASK)
                return -EINVAL;
        description.offset = offset;
        description.start = start;
        description.length = length;
        description.read_only = read_only;
        description.dirty_log = dirty_log;
        object.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_MEMORY;
        object.memory = &description;
        memory = malloc(sizeof(struct crosvm_memory));
        if (!memory)
                return -ENOMEM;
        r = create(c, &object, fd, NULL, 0, &memory->id);
        if (r < 0) {
                free(memory);
                return r;
        }
        memory->length = length;
        *ret = memory;
        return 0;
}

int crosvm_destroy_memory(struct crosvm *c, struct crosvm_memory **memory) {
        int r;

        r = destroy(c, (*memory)->id);
        if (r < 0)
                return r;
        free(*memory);
        *memory = NULL;
        return 0;
}

/* Whole bytes, not the words of KVM_GET_DIRTY_LOG: that is what plugins make room for. */
static size_t dirty_log_size(uint64_t length) {
        uint64_t pages = length / (PAGE_MASK + 1);

        return (size_t) ((pages + 7) / 8);
}

int crosvm_memory_get_dirty_log(struct crosvm *c, struct crosvm_memory *memory, uint8_t *ret) {
        MainRequest__MemoryDirtyLog log = MAIN_REQUEST__MEMORY_DIRTY_LOG__INIT;
        MainRequest request = MAIN_REQUEST__INIT;
        MainResponse *response = NULL;
        int r;

        log.id = memory->id;
        request.message_case = MAIN_REQUEST__MESSAGE_DIRTY_LOG;
        request.dirty_log = &log;
        r = plugin_ask(c, &request, -1, MAIN_RESPONSE__MESSAGE_DIRTY_LOG, &response, NULL, NULL);
        if (r < 0)
                return r;
        r = response->dirty_log->bitmap.len == dirty_log_size(memory->length) ? 0 : -EPROTO;
        if (r >= 0)
                memcpy(ret, response->dirty_log->bitmap.data, response->dirty_log->bitmap.len);
        main_response__free_unpacked(response, NULL);
        return r;
}

/* --- interrupts --- */

int crosvm_create_irq_event(struct crosvm *c, uint32_t irq_id, struct crosvm_irq **ret) {
        MainRequest__Create__IrqEvent event = MAIN_REQUEST__CREATE__IRQ_EVENT__INIT;
        MainRequest__Create object = MAIN_REQUEST__CREATE__INIT;
        struct crosvm_irq *irq;
        int r;

        event.irq_id = irq_id;
        event.resample = true;
        object.constructor_case = MAIN_REQUEST__CREATE__CONSTRUCTOR_IRQ_EVENT;
        object.irq_event = &event;
        irq = malloc(sizeof(struct crosvm_irq));
        if (!irq)
                return -ENOMEM;
        r = create(c, &object, -1, irq->fds, 2, &irq->id);
        if (r < 0) {
                free(irq);
                return r;
        }
        *ret = irq;
        return 0;
}

int crosvm_destroy_irq_event(struct crosvm *c, struct crosvm_irq **irq) {
        int r;

        r = destroy(c, (*irq)->id);
        if (r < 0)
                return r;
        (void) close((*irq)->fds[0]);
        (void) close((*irq)->fds[1]);
        free(*irq);
        *irq = NULL;
        return 0;
}

int crosvm_irq_event_get_fd(const struct crosvm_irq *irq) {
        return irq->fds[0];
}

int crosvm_irq_event_get_resample_fd(const struct crosvm_irq *irq) {
        return irq->fds[1];
}
