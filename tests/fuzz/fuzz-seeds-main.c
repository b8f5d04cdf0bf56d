/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* fuzz-device-corpus DIRECTORY: writes the seeds there, a file each, for libFuzzer. */

#include <fcntl.h>
#include <stdio.h>

#include "fuzz-device.h"
#include "util.h"

static int write_seed(const char *directory, unsigned i, const uint8_t *data, size_t size) {
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -EBADF;

        if (asprintf(&path, "%s/seed-%03u", directory, i) < 0) {
                path = NULL;
                return -ENOMEM;
        }
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        return fd < 0 ? -errno : write_full(fd, data, size);
}

int main(int argc, char **argv) {
        uint8_t data[4096];
        size_t size;

        if (argc != 2) {
                (void) fprintf(stderr, "%s DIRECTORY\n", argv[0]);
                return EXIT_FAILURE;
        }
        for (unsigned i = 0; (size = fuzz_seed(i, data, sizeof(data))) > 0; i++) {
                int r = write_seed(argv[1], i, data, size);
                if (r < 0) {
                        (void) fprintf(stderr, "%s: %s\n", argv[1], strerror(-r));
                        return EXIT_FAILURE;
                }
        }
        return EXIT_SUCCESS;
}
