/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>

#include "disk-load.h"

#define SLOT_SIZE KIB(64) /* of the disk, each request's own */
#define DATA_SIZE KIB(8)

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "# %s:%d: %s\n", __FILE__, __LINE__, #condition);                      \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

static uint8_t *header_of(FrontEnd *f, unsigned i) {
        return f->ram + FE_BUFFERS - KIB(128) + i * 64;
}

static uint32_t *data_of(FrontEnd *f, unsigned i) {
        return (void *) (f->ram + FE_BUFFERS + i * DATA_SIZE);
}

static uint32_t pattern(unsigned i, uint32_t round, uint32_t word) {
        return (i << 27) ^ (round * 2654435761U) ^ word;
}

static void offer(DiskLoad *l, FrontEnd *f, unsigned i) {
        uint64_t header = FE_ADDRESS((uint64_t) (header_of(f, i) - f->ram));
        DiskRequest *r = &l->requests[i];
        uint16_t d = (uint16_t) (3 * i);

        *(struct virtio_blk_outhdr *) (void *) header_of(f, i) = (struct virtio_blk_outhdr) {
                .type = r->reading ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
                .sector = r->sector,
        };
        header_of(f, i)[32] = 0xee;
        for (uint32_t w = 0; w < DATA_SIZE / 4; w++)
                data_of(f, i)[w] = r->reading ? 0 : pattern(i, r->round, w);
        fe_desc(f, 0, d, header, sizeof(struct virtio_blk_outhdr), VRING_DESC_F_NEXT, (uint16_t) (d + 1));
        fe_desc(f, 0, (uint16_t) (d + 1), FE_ADDRESS((uint64_t) ((uint8_t *) data_of(f, i) - f->ram)), DATA_SIZE,
                VRING_DESC_F_NEXT | (r->reading ? VRING_DESC_F_WRITE : 0), (uint16_t) (d + 2));
        fe_desc(f, 0, (uint16_t) (d + 2), header + 32, 1, VRING_DESC_F_WRITE, 0);
        r->under_way = true;
        l->n_under_way++;
        fe_offer(f, 0, d);
}

/* What was written is read, and then something else is written somewhere else. */
static void next(DiskLoad *l, FrontEnd *f, unsigned i) {
        DiskRequest *r = &l->requests[i];

        if (r->n_done > 0 && !r->reading)
                r->reading = true;
        else {
                r->reading = false;
                r->round++;
                r->sector = (uint32_t) ((i * SLOT_SIZE + (unsigned) rand_r(&l->seed) % (SLOT_SIZE / DATA_SIZE) * DATA_SIZE) / 512);
        }
        offer(l, f, i);
}

static void check(DiskLoad *l, FrontEnd *f, unsigned i) {
        DiskRequest *r = &l->requests[i];

        must(r->under_way);
        r->under_way = false;
        r->n_done++;
        l->n_done++;
        l->n_under_way--;
        must(header_of(f, i)[32] == VIRTIO_BLK_S_OK);
        for (uint32_t w = 0; r->reading && w < DATA_SIZE / 4; w++)
                must(data_of(f, i)[w] == pattern(i, r->round, w));
}

void disk_load_begin(DiskLoad *l, FrontEnd *f) {
        for (unsigned i = 0; i < DISK_LOAD_DEPTH; i++)
                if (!l->requests[i].under_way)
                        next(l, f, i);
        fe_kick(f, 0);
}

bool disk_load_step(DiskLoad *l, FrontEnd *f, bool more, int timeout_ms) {
        struct vring_used_elem e;

        if (!fe_used(f, 0, timeout_ms, &e))
                return false;
        must(e.id % 3 == 0 && e.id / 3 < DISK_LOAD_DEPTH);
        check(l, f, e.id / 3);
        if (more) {
                next(l, f, e.id / 3);
                fe_kick(f, 0);
        }
        return true;
}

void disk_load_finish(DiskLoad *l, FrontEnd *f) {
        while (l->n_under_way > 0)
                must(disk_load_step(l, f, false, 2 * fe_patience));
        must(!disk_load_step(l, f, false, 20));
}

unsigned disk_load_least(const DiskLoad *l) {
        unsigned least = UINT32_MAX;

        for (unsigned i = 0; i < DISK_LOAD_DEPTH; i++)
                least = MIN(least, l->requests[i].n_done);
        return least;
}
