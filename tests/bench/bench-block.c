/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a request costs on the way through the real block helper: 4 KiB reads from the host's page cache, one at a time (the driver
 * waits for its signal) and 32 at a time. Prints one JSON object a line.
 * $VMM_DEVICE is the helper program; its image is in $TMPDIR or /var/tmp. */

#include <linux/virtio_blk.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "../device/front-end.h"

#define IMAGE_SIZE MIB(64)
#define NUM 128
#define ROUNDS 20000U


static void prepare(FrontEnd *f, unsigned i, uint64_t sector) {
        struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN, .sector = sector };
        uint64_t at = FE_BUFFERS - KIB(128) + i * 64;
        uint16_t d = (uint16_t) (3 * i);

        memcpy(f->ram + at, &header, sizeof(header));
        fe_desc(f, 0, d, FE_ADDRESS(at), sizeof(header), VRING_DESC_F_NEXT, (uint16_t) (d + 1));
        fe_desc(f, 0, (uint16_t) (d + 1), FE_ADDRESS(FE_BUFFERS + i * KIB(64)), 4096, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, (uint16_t) (d + 2));
        fe_desc(f, 0, (uint16_t) (d + 2), FE_ADDRESS(at + 32), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, d);
}

/* Waits like a driver: for one signal, then takes everything. Returns how many. */
static unsigned take_all(FrontEnd *f) {
        FrontEndQueue *q = &f->queues[0];
        unsigned n = 0;

        q->avail->ring[q->num] = q->used_idx;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->used_idx)
                (void) fe_eventfd(q->call, 10000);
        for (; __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) != q->used_idx; q->used_idx++)
                n++;
        return n;
}

static void bench(FrontEnd *f, unsigned depth) {
        uint64_t begin, end;
        unsigned free_slots[32], n_free = depth, done = 0, begun = 0;
        uint16_t before;

        for (unsigned i = 0; i < depth; i++)
                free_slots[i] = i;
        begin = now_usec();
        while (done < ROUNDS) {
                unsigned n;

                while (n_free > 0 && begun < ROUNDS)
                        prepare(f, free_slots[--n_free], (uint64_t) (begun++ * 8) % (IMAGE_SIZE / 512));
                fe_kick(f, 0);
                before = f->queues[0].used_idx;
                n = take_all(f);
                for (unsigned i = 0; i < n; i++)
                        free_slots[n_free++] = f->queues[0].used->ring[(uint16_t) (before + i) % NUM].id / 3;
                done += n;
        }
        end = now_usec();
        printf("{\"benchmark\":\"block-read-4k\",\"depth\":%u,\"rounds\":%u,\"perSecond\":%llu,\"nsEach\":%llu}\n", depth, ROUNDS,
                (unsigned long long) (ROUNDS * USEC_PER_SEC / (end - begin)), (unsigned long long) ((end - begin) * 1000 / ROUNDS));
}

int main(void) {
        const char *directory = getenv("TMPDIR");
        _cleanup_free_ char *path = NULL, *argument = NULL, *data = calloc(1, IMAGE_SIZE);
        _cleanup_close_ int fd = -EBADF;
        FrontEnd f;

        if (!data || asprintf(&path, "%s/vmm-bench-XXXXXX", directory ?: "/var/tmp") < 0 || (fd = mkstemp(path)) < 0 ||
                write_full(fd, data, IMAGE_SIZE) < 0 || asprintf(&argument, "--path=%s", path) < 0)
                return EXIT_FAILURE;
        fe_start(&f, (const char *[]) { "block", argument, NULL }, 1, NUM);
        bench(&f, 1);
        bench(&f, 32);
        fe_end(&f);
        (void) unlink(path);
        return EXIT_SUCCESS;
}
