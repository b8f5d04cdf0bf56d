/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "bus-protocol.h"

size_t bus_memory_size(unsigned n_slots) {
        return ALIGN_UP(sizeof(BusMemory) + (size_t) n_slots * sizeof(BusSlot), (size_t) 4096);
}

int bus_memory_create(unsigned n_slots) {
        if (n_slots == 0 || n_slots > BUS_SLOTS_MAX)
                return -EINVAL;
        return memfd_create_sealed("vmm-bus", bus_memory_size(n_slots), 0);
}

int bus_memory_map(int fd, unsigned n_slots, BusMemory **ret) {
        struct stat st;
        void *p;
        int seals;

        if (n_slots == 0 || n_slots > BUS_SLOTS_MAX)
                return -EINVAL;

        seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
                return -EPERM;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size < 0 || (uint64_t) st.st_size < bus_memory_size(n_slots))
                return -ERANGE;

        /* Populated: the first access of a vCPU should not pay for the page. */
        p = mmap(NULL, bus_memory_size(n_slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        *ret = p;
        return 0;
}

BusMemory *bus_memory_unmap(BusMemory *memory, unsigned n_slots) {
        if (memory)
                (void) munmap(memory, bus_memory_size(n_slots));
        return NULL;
}

int bus_hello_check(const BusHello *hello, size_t size, size_t n_fds, char **ret_message) {
        if (size < sizeof(*hello) || hello->magic != BUS_MAGIC)
                return set_message(ret_message, -EBADMSG, "not a greeting of the bus protocol");
        if (hello->version != BUS_VERSION)
                return set_message(ret_message, -EPROTONOSUPPORT, "version %u of the bus protocol is not known here, %u is",
                        hello->version, BUS_VERSION);
        if (hello->size != sizeof(*hello) || size != sizeof(*hello))
                return set_message(ret_message, -EBADMSG, "greeting of %zu bytes, expected %zu", size, sizeof(*hello));
        if (hello->n_slots == 0 || hello->n_slots > BUS_SLOTS_MAX)
                return set_message(ret_message, -E2BIG, "%u slots, expected 1 to %u", hello->n_slots, BUS_SLOTS_MAX);
        if (hello->n_irqs > BUS_IRQS_MAX)
                return set_message(ret_message, -E2BIG, "%u interrupt lines, expected at most %u", hello->n_irqs, BUS_IRQS_MAX);
        if (n_fds != 1 + (size_t) hello->n_irqs)
                return set_message(ret_message, -EBADMSG, "%zu file descriptors, expected %u", n_fds, 1 + hello->n_irqs);
        if (hello->space_kind >= _BUS_SPACE_MAX)
                return set_message(ret_message, -EBADMSG, "unknown kind %u of register space", hello->space_kind);
        if (hello->space_length == 0 || hello->space_length > UINT64_MAX - hello->space_base)
                return set_message(ret_message, -EBADMSG, "the register space is empty or wraps around");
        return 0;
}

int bus_reply_check(const BusReply *reply, size_t size, char **ret_message) {
        if (size != sizeof(*reply) || reply->magic != BUS_MAGIC || reply->size != sizeof(*reply))
                return set_message(ret_message, -EBADMSG, "the answer is not one of the bus protocol");
        if (memchr(reply->text, 0, sizeof(reply->text)) == NULL)
                return set_message(ret_message, -EBADMSG, "the answer's text does not end");
        if (reply->error != 0) {
                /* The number is somebody else's: not every value can be an errno. */
                int error = reply->error < 4096 ? -(int) reply->error : -EBADMSG;
                _cleanup_free_ char *text = strdup(reply->text);

                if (!text)
                        return -ENOMEM;
                for (char *p = text; *p; p++)
                        if ((unsigned char) *p < ' ' || *p == 0x7f)
                                *p = '?';
                return set_message(ret_message, error, "refused: %s", text[0] ? text : "no reason given");
        }
        if (reply->version != BUS_VERSION)
                return set_message(ret_message, -EPROTONOSUPPORT, "the answer has version %u", reply->version);
        return 0;
}

void bus_reply_init(BusReply *reply, int error, uint32_t n_registers, const char *text) {
        *reply = (BusReply) {
                .magic = BUS_MAGIC,
                .version = BUS_VERSION,
                .size = sizeof(*reply),
                .error = (uint32_t) abs(error),
                .n_registers = n_registers,
        };
        if (text)
                memcpy(reply->text, text, MIN(strlen(text), sizeof(reply->text) - 1));
}

bool bus_access_size_is_valid(uint64_t size) {
        return size == 1 || size == 2 || size == 4 || size == 8;
}

uint64_t bus_access_mask(uint64_t size) {
        return size >= 8 ? UINT64_MAX : (UINT64_C(1) << (size * 8)) - 1;
}
