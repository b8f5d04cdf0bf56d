/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* bench-block SOCKET PID MIB [SECONDS [WORKLOAD]]: what disk requests cost with the vhost-user back-end at SOCKET, whose process is PID and whose disk has so many MiB. 4 KiB
 * at random places, one at a time (the driver waits for its signal) and 32 at a time, 128 KiB in sequence, reads and writes. Prints one
 * JSON object a line. tests/bench/devices compares ours with others by it.
 *
 * Without arguments: our own helper ($VMM_DEVICE) with a small image in $TMPDIR or /var/tmp, in the page cache. */

#include <linux/virtio_blk.h>
#include <stdio.h>
#include <unistd.h>

#include "parse.h"
#include "peer.h"

#define DEPTH_MAX 32U
#define SLOT_SIZE KIB(128)
#define SLOT_DATA(i) (FE_BUFFERS + (i) * SLOT_SIZE)
#define SLOT_HEADER(i) (MIB(2) + (i) * 128)

typedef struct Workload {
        const char *name;
        uint32_t type;
        uint32_t size;
        unsigned depth;
        bool random;
} Workload;

static const Workload workloads[] = {
        { "random-read-4k", VIRTIO_BLK_T_IN, KIB(4), 1, true },
        { "random-read-4k", VIRTIO_BLK_T_IN, KIB(4), 32, true },
        { "random-write-4k", VIRTIO_BLK_T_OUT, KIB(4), 1, true },
        { "random-write-4k", VIRTIO_BLK_T_OUT, KIB(4), 32, true },
        { "sequential-read-128k", VIRTIO_BLK_T_IN, KIB(128), 8, false },
        { "sequential-write-128k", VIRTIO_BLK_T_OUT, KIB(128), 8, false },
};

/* The same places for everybody. */
static uint64_t next_random(uint64_t *state) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return *state;
}

/* As Linux's driver has it: header, data and status in an indirect table. */
static void offer(FrontEnd *f, unsigned i, const Workload *w, uint64_t offset) {
        struct virtio_blk_outhdr header = { .type = w->type, .sector = offset / 512 };
        const struct vring_desc table[] = {
                { FE_ADDRESS(SLOT_HEADER(i)), sizeof(header), VRING_DESC_F_NEXT, 1 },
                { FE_ADDRESS(SLOT_DATA(i)), w->size, VRING_DESC_F_NEXT | (w->type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0), 2 },
                { FE_ADDRESS(SLOT_HEADER(i) + 16), 1, VRING_DESC_F_WRITE, 0 },
        };

        memcpy(f->ram + SLOT_HEADER(i), &header, sizeof(header));
        f->ram[SLOT_HEADER(i) + 16] = 0xff;
        memcpy(f->ram + SLOT_HEADER(i) + 32, table, sizeof(table));
        fe_desc(f, 0, (uint16_t) i, FE_ADDRESS(SLOT_HEADER(i) + 32), sizeof(table), VRING_DESC_F_INDIRECT, 0);
        fe_offer(f, 0, (uint16_t) i);
}

static uint64_t place(const Workload *w, uint64_t size, uint64_t begun, uint64_t *random) {
        return (w->random ? next_random(random) : begun) % (size / w->size) * w->size;
}

static void run(FrontEnd *f, const Workload *w, uint64_t size, uint64_t nsec) {
        uint64_t begin = peer_now_nsec(), cpu = peer_cpu_nsec(f), now, begun = 0, done = 0, random = UINT64_C(0x9e3779b97f4a7c15);
        unsigned idle[DEPTH_MAX], n_idle = w->depth;

        for (unsigned i = 0; i < w->depth; i++)
                idle[i] = i;
        for (;;) {
                uint16_t before = f->queues[0].avail_idx;
                unsigned n;

                now = peer_now_nsec();
                if (now - begin >= nsec && done == begun)
                        break;
                while (n_idle > 0 && now - begin < nsec)
                        offer(f, idle[--n_idle], w, place(w, size, begun++, &random));
                if (f->queues[0].avail_idx != before)
                        peer_kick(f, 0, before);
                n = peer_used(f, 0, 10000);
                if (n == 0) {
                        (void) fprintf(stderr, "The back-end has not answered for ten seconds.\n");
                        exit(EXIT_FAILURE);
                }
                for (; n > 0; n--) {
                        unsigned i = peer_take(f, 0).id;

                        if (f->ram[SLOT_HEADER(i) + 16] != VIRTIO_BLK_S_OK) {
                                (void) fprintf(stderr, "A request failed.\n");
                                exit(EXIT_FAILURE);
                        }
                        idle[n_idle++] = i;
                        done++;
                }
        }
        cpu = peer_cpu_nsec(f) - cpu;
        printf("{\"benchmark\":\"%s\",\"depth\":%u,\"requests\":%llu,\"perSecond\":%llu,\"cpuNsEach\":%llu}\n", w->name, w->depth,
                (unsigned long long) done, (unsigned long long) ((unsigned __int128) done * 1000000000U / (now - begin)),
                (unsigned long long) (cpu / done));
        (void) fflush(stdout);
}

static int alone(void) {
        const char *directory = getenv("TMPDIR");
        _cleanup_free_ char *path = NULL, *argument = NULL, *data = calloc(1, MIB(64));
        _cleanup_close_ int fd = -EBADF;
        FrontEnd f;

        if (!data || asprintf(&path, "%s/vmm-bench-XXXXXX", directory ?: "/var/tmp") < 0 || (fd = mkstemp(path)) < 0 ||
                write_full(fd, data, MIB(64)) < 0 || asprintf(&argument, "--path=%s", path) < 0)
                return EXIT_FAILURE;
        fe_start(&f, (const char *[]) { "block", argument, NULL }, 1, PEER_NUM);
        for (size_t i = 0; i < ELEMENTSOF(workloads); i++)
                run(&f, &workloads[i], MIB(64), 500 * UINT64_C(1000000));
        fe_end(&f);
        (void) unlink(path);
        return EXIT_SUCCESS;
}

int main(int argc, char *argv[]) {
        uint64_t size, pid, seconds = 2;
        FrontEnd f;

        if (argc == 1)
                return alone();
        if (argc < 4 || parse_unsigned(argv[2], &pid) < 0 || parse_unsigned(argv[3], &size) < 0 || size == 0 ||
                (argc > 4 && parse_unsigned(argv[4], &seconds) < 0)) {
                (void) fprintf(stderr, "usage: bench-block [SOCKET PID MIB [SECONDS [WORKLOAD]]]\n");
                return EXIT_FAILURE;
        }
        peer_connect(&f, argv[1], (pid_t) pid, UINT64_C(1) << VIRTIO_BLK_F_FLUSH, 1);
        for (size_t i = 0; i < ELEMENTSOF(workloads); i++)
                if (argc < 6 || streq(workloads[i].name, argv[5]))
                        run(&f, &workloads[i], MIB(size), seconds * UINT64_C(1000000000));
        fe_disconnect(&f);
        return EXIT_SUCCESS;
}
