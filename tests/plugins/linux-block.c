/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <stdio.h>
#include <sys/stat.h>

#include "linux-block.h"

#define MAGIC 0x74726976 /* "virt" */
#define VERSION 2
#define VENDOR 0x554D4551 /* what drivers know */
#define QUEUE_NUM_MAX 128
#define SECTOR 512
#define FEATURES (1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_BLK_F_FLUSH | 1ULL << VIRTIO_BLK_F_SEG_MAX)

int linux_block_init(LinuxBlock *b, struct crosvm *crosvm, const GuestMemory *memory, int file_fd) {
        static const uint8_t queue[4] = { 0 };
        struct stat st;
        int r;

        *b = (LinuxBlock) { .memory = memory, .file_fd = file_fd };
        if (fstat(file_fd, &st) < 0)
                return -errno;
        b->sectors = (uint64_t) st.st_size / SECTOR;
        r = crosvm_reserve_range(crosvm, CROSVM_ADDRESS_SPACE_MMIO, LINUX_BLOCK_ADDRESS, LINUX_BLOCK_SIZE);
        if (r >= 0)
                r = crosvm_create_io_event(crosvm, CROSVM_ADDRESS_SPACE_MMIO, LINUX_BLOCK_ADDRESS + VIRTIO_MMIO_QUEUE_NOTIFY,
                        sizeof(queue), queue, &b->notify);
        return r < 0 ? r : crosvm_create_irq_event(crosvm, LINUX_BLOCK_IRQ, &b->irq);
}

/* --- requests --- */

static bool transfer(const LinuxBlock *b, IovCursor *cursor, uint64_t offset, bool is_write) {
        if (offset / SECTOR > b->sectors || cursor->left > (b->sectors - offset / SECTOR) * SECTOR)
                return false;
        while (cursor->left > 0) {
                struct iovec iov[64];
                size_t n_iov;
                ssize_t n;

                (void) iov_cursor_map(cursor, cursor->left, iov, ELEMENTSOF(iov), &n_iov);
                n = is_write ? pwritev(b->file_fd, iov, (int) n_iov, (off_t) offset) : preadv(b->file_fd, iov, (int) n_iov, (off_t) offset);
                if (n <= 0)
                        return false;
                (void) iov_cursor_skip(cursor, (uint64_t) n);
                offset += (uint64_t) n;
        }
        return true;
}

static uint8_t serve(const LinuxBlock *b, IovCursor *readable, IovCursor *writable) {
        struct virtio_blk_outhdr header;
        uint64_t offset;

        if (iov_cursor_read(readable, &header, sizeof(header)) != sizeof(header))
                return VIRTIO_BLK_S_IOERR;
        if (__builtin_mul_overflow((uint64_t) header.sector, (uint64_t) SECTOR, &offset))
                return VIRTIO_BLK_S_IOERR;
        switch (header.type) {
        case VIRTIO_BLK_T_IN:
                return transfer(b, writable, offset, false) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
        case VIRTIO_BLK_T_OUT:
                return transfer(b, readable, offset, true) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
        case VIRTIO_BLK_T_FLUSH:
                return fdatasync(b->file_fd) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
        case VIRTIO_BLK_T_GET_ID:
                (void) iov_cursor_write(writable, "plugin", sizeof("plugin"));
                return VIRTIO_BLK_S_OK;
        default:
                return VIRTIO_BLK_S_UNSUPP;
        }
}

static void serve_chain(LinuxBlock *b) {
        IovCursor status = b->chain.writable, data;
        uint64_t size = status.left > 0 ? status.left - 1 : 0;
        uint8_t answer;

        data = iov_cursor_take(&status, size);
        answer = serve(b, &b->chain.readable, &data);
        (void) iov_cursor_write(&status, &answer, sizeof(answer));
        virtqueue_push(b->queue, &b->chain, (uint32_t) (size - data.left + 1));
}

/* Whoever takes the interrupt looks here first. */
static void notify(LinuxBlock *b) {
        b->interrupt_status |= VIRTIO_MMIO_INT_VRING;
        virtqueue_notify(b->queue);
}

void linux_block_notified(LinuxBlock *b) {
        int r;

        if (!b->queue)
                return;
        do {
                virtqueue_suppress_kicks(b->queue);
                while ((r = virtqueue_pop(b->queue, &b->chain)) > 0)
                        serve_chain(b);
                if (r < 0)
                        b->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                notify(b);
        } while (r >= 0 && virtqueue_want_kicks(b->queue));
}

void linux_block_resampled(LinuxBlock *b) {
        static const uint64_t one = 1;

        if (b->interrupt_status != 0)
                (void) !write(crosvm_irq_event_get_fd(b->irq), &one, sizeof(one));
}

/* --- registers --- */

static void reset(LinuxBlock *b) {
        b->queue = virtqueue_free(b->queue);
        b->status = b->interrupt_status = b->queue_num = 0;
        b->driver_features = 0;
        memset(b->rings, 0, sizeof(b->rings));
}

/* Where the rings lie in this process, as the queue wants to know it. */
static uint64_t here(const LinuxBlock *b, uint64_t address) {
        return (uintptr_t) guest_memory_at(b->memory, address, 1);
}

static void make_queue_ready(LinuxBlock *b, bool ready) {
        const VirtqueueSetup setup = {
                .num = (uint16_t) MIN(b->queue_num, (uint32_t) UINT16_MAX), .desc_user_addr = here(b, b->rings[0]), .avail_user_addr = here(b, b->rings[1]),
                .used_user_addr = here(b, b->rings[2]),
        };

        b->queue = virtqueue_free(b->queue);
        if (!ready)
                return;
        if (virtqueue_new(b->memory, &setup, &b->queue) < 0) {
                b->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                return;
        }
        virtqueue_set_call_fd(b->queue, crosvm_irq_event_get_fd(b->irq));
}

static void set_half(uint64_t *value, bool high, uint32_t half) {
        *value = high ? (*value & UINT32_MAX) | (uint64_t) half << 32 : (*value & ~(uint64_t) UINT32_MAX) | half;
}

static void write_register(LinuxBlock *b, uint64_t offset, uint32_t value) {
        switch (offset) {
        case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
                b->device_features_select = value;
                break;
        case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
                b->driver_features_select = value;
                break;
        case VIRTIO_MMIO_DRIVER_FEATURES:
                set_half(&b->driver_features, b->driver_features_select == 1, value);
                break;
        case VIRTIO_MMIO_QUEUE_NUM:
                b->queue_num = value;
                break;
        case VIRTIO_MMIO_QUEUE_READY:
                make_queue_ready(b, value & 1);
                break;
        case VIRTIO_MMIO_INTERRUPT_ACK:
                b->interrupt_status &= ~value;
                break;
        case VIRTIO_MMIO_STATUS:
                if (value == 0)
                        reset(b);
                else /* "the device MUST NOT accept FEATURES_OK" for what was not offered */
                        b->status = b->driver_features & ~FEATURES ? value & ~(uint32_t) VIRTIO_CONFIG_S_FEATURES_OK : value;
                break;
        case VIRTIO_MMIO_QUEUE_DESC_LOW:
        case VIRTIO_MMIO_QUEUE_DESC_HIGH:
                set_half(&b->rings[0], offset == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
                break;
        case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
        case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
                set_half(&b->rings[1], offset == VIRTIO_MMIO_QUEUE_AVAIL_HIGH, value);
                break;
        case VIRTIO_MMIO_QUEUE_USED_LOW:
        case VIRTIO_MMIO_QUEUE_USED_HIGH:
                set_half(&b->rings[2], offset == VIRTIO_MMIO_QUEUE_USED_HIGH, value);
                break;
        default: /* one queue: there is nothing to select; and what is reserved */
                break;
        }
}

static uint32_t read_register(const LinuxBlock *b, uint64_t offset) {
        switch (offset) {
        case VIRTIO_MMIO_MAGIC_VALUE:
                return MAGIC;
        case VIRTIO_MMIO_VERSION:
                return VERSION;
        case VIRTIO_MMIO_VENDOR_ID:
                return VENDOR;
        case VIRTIO_MMIO_DEVICE_ID:
                return VIRTIO_ID_BLOCK;
        case VIRTIO_MMIO_DEVICE_FEATURES:
                return b->device_features_select < 2 ? (uint32_t) (FEATURES >> 32 * b->device_features_select) : 0;
        case VIRTIO_MMIO_QUEUE_NUM_MAX:
                return QUEUE_NUM_MAX;
        case VIRTIO_MMIO_QUEUE_READY:
                return b->queue != NULL;
        case VIRTIO_MMIO_INTERRUPT_STATUS:
                return b->interrupt_status;
        case VIRTIO_MMIO_STATUS:
                return b->status;
        case VIRTIO_MMIO_SHM_LEN_LOW:
        case VIRTIO_MMIO_SHM_LEN_HIGH:
                return UINT32_MAX; /* there is none */
        default:
                return 0;
        }
}

void linux_block_access(LinuxBlock *b, uint64_t offset, uint8_t *data, size_t size, bool is_write) {
        const struct virtio_blk_config config = { .capacity = b->sectors, .seg_max = QUEUE_NUM_MAX - 2 }; /* else a request is a page */

        if (offset >= VIRTIO_MMIO_CONFIG) {
                offset -= VIRTIO_MMIO_CONFIG;
                if (!is_write && offset < sizeof(config) && size <= sizeof(config) - offset)
                        memcpy(data, (const uint8_t *) &config + offset, size);
        } else if (size == sizeof(uint32_t)) { /* 4.2.2.2: 32 bits wide, aligned */
                if (is_write)
                        write_register(b, offset, load_le32(data));
                else
                        store_le32(data, read_register(b, offset));
        }
}
