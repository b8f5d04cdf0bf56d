/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands in for libFuzzer where a target is built without it. With files as arguments it runs each once (a corpus, or a crash to
 * look at). Without, it makes up VMM_FUZZ_INPUTS= inputs from a fixed seed, the same on every machine: no search, but enough that the
 * targets do not rot, and that the sanitizers see them. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "parse.h"
#include "util.h"

#define INPUT_MAX 512
#define INPUTS_DEFAULT 5000U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* A target may have good inputs to begin with (fuzz-device.h): each is run, and then with some bytes changed. */
size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size);
__attribute__((weak)) size_t fuzz_seed(unsigned n, uint8_t *buffer, size_t size) {
        return 0;
}

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

/* Runs all seeds; returns how many there are. */
static unsigned run_seeds(void) {
        uint8_t data[INPUT_MAX];
        unsigned n = 0;
        size_t size;

        for (; (size = fuzz_seed(n, data, sizeof(data))) > 0; n++)
                (void) LLVMFuzzerTestOneInput(data, size);
        return n;
}

static void run_changed_seed(unsigned n_seeds) {
        uint8_t data[INPUT_MAX];
        size_t size = fuzz_seed((unsigned) (next_random() >> 32) % n_seeds, data, sizeof(data));

        for (uint64_t changes = 1 + next_random() % 4; changes > 0; changes--)
                data[(next_random() >> 16) % size] = (uint8_t) (next_random() >> 40);
        (void) LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv) {
        const char *text = getenv("VMM_FUZZ_INPUTS");
        uint64_t n_inputs = INPUTS_DEFAULT;
        unsigned n_seeds;

        for (int i = 1; i < argc; i++) {
                int r = run_file(argv[i]);
                if (r < 0) {
                        (void) fprintf(stderr, "%s: %s\n", argv[i], strerror(-r));
                        return EXIT_FAILURE;
                }
        }
        if (argc > 1)
                return EXIT_SUCCESS;

        if (text && parse_unsigned(text, &n_inputs) < 0) {
                (void) fprintf(stderr, "VMM_FUZZ_INPUTS=%s: expected a number\n", text);
                return EXIT_FAILURE;
        }

        n_seeds = run_seeds();
        for (uint64_t n = 0; n < n_inputs; n++) {
                uint8_t data[INPUT_MAX];
                size_t size = next_random() % (INPUT_MAX + 1);

                if (n_seeds > 0 && n % 8 != 0) {
                        run_changed_seed(n_seeds);
                        continue;
                }
                /* Half of the inputs are made of small numbers, which counts and lengths like better. */
                uint8_t mask = (n + n / 8) % 2 ? 0xFF : 0x07;

                for (size_t i = 0; i < size; i++)
                        data[i] = (uint8_t) (next_random() >> 32) & mask;
                (void) LLVMFuzzerTestOneInput(data, size);
        }
        (void) printf("%llu inputs\n", (unsigned long long) n_inputs);
        return EXIT_SUCCESS;
}
