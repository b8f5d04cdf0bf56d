/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands in for libFuzzer where a target is built without it. With files as arguments it runs each once (a corpus, or a crash to
 * look at). Without, it makes up inputs from a fixed seed for some seconds: no search, but enough that the targets do not rot, and that
 * the sanitizers see them. */

#include <fcntl.h>
#include <stdio.h>

#include "util.h"

#define INPUT_MAX 512
#define RUN_USEC (2 * USEC_PER_SEC)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t seed = 0x9E3779B97F4A7C15;

/* xorshift64*, Vigna: An experimental exploration of Marsaglia's xorshift generators. */
static uint64_t next_random(void) {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        return seed * 0x2545F4914F6CDD1D;
}

static int run_file(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        _cleanup_free_ char *data = NULL;
        size_t size;
        int r;

        if (fd < 0)
                return -errno;
        r = read_whole_fd(fd, MIB(16), &data, &size);
        if (r < 0)
                return r;
        (void) LLVMFuzzerTestOneInput((const uint8_t *) data, size);
        return 0;
}

int main(int argc, char **argv) {
        uint64_t end = now_usec() + RUN_USEC, n = 0;

        for (int i = 1; i < argc; i++) {
                int r = run_file(argv[i]);
                if (r < 0) {
                        (void) fprintf(stderr, "%s: %s\n", argv[i], strerror(-r));
                        return EXIT_FAILURE;
                }
        }
        if (argc > 1)
                return EXIT_SUCCESS;

        for (; now_usec() < end; n++) {
                uint8_t data[INPUT_MAX];
                size_t size = next_random() % (INPUT_MAX + 1);
                /* Half of the inputs are made of small numbers, which counts and lengths like better. */
                uint8_t mask = n % 2 ? 0xFF : 0x07;

                for (size_t i = 0; i < size; i++)
                        data[i] = (uint8_t) (next_random() >> 32) & mask;
                (void) LLVMFuzzerTestOneInput(data, size);
        }
        (void) printf("%llu inputs\n", (unsigned long long) n);
        return EXIT_SUCCESS;
}
