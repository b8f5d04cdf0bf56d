/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/stat.h>

#include "kernel-file.h"

int kernel_file_open(int fd, const char *name, KernelFile *ret, char **ret_message) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return set_message(ret_message, -errno, "%s: cannot be looked at: %s", name, strerror(errno));
        if (!S_ISREG(st.st_mode))
                return set_message(ret_message, -EINVAL, "%s: file type is 0%o, expected a regular file.", name, st.st_mode & S_IFMT);
        *ret = (KernelFile) { .fd = fd, .name = name, .size = (uint64_t) st.st_size };
        return 0;
}

int kernel_file_load(const KernelFile *file, const GuestMemory *memory, uint64_t address, uint64_t offset, uint64_t length,
        char **ret_message) {
        int r;

        if (!guest_memory_at(memory, address, length))
                return set_message(ret_message, -ENOMEM, "%s: needs %llu bytes at 0x%llx, which is not all RAM.", file->name,
                        (unsigned long long) length, (unsigned long long) address);
        r = guest_memory_read_file(memory, address, length, file->fd, offset);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot read %llu bytes at offset 0x%llx: %s", file->name,
                        (unsigned long long) length, (unsigned long long) offset,
                        r == -ENODATA ? "the file ended meanwhile" : strerror(-r));
        return 0;
}
