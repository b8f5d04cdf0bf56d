/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "userfault.h"

/* Of /dev/userfaultfd, in Linux since 6.1 (the header is older in some distributions). */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

int userfault_new(int device) {
        struct uffdio_api api = { .api = UFFD_API };
        _cleanup_close_ int fd = -EBADF;

        if (device >= 0)
                fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        else
                fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int userfault_register(int fd, const void *start, uint64_t length) {
        struct uffdio_register reg = { .range = { .start = (uint64_t) (uintptr_t) start, .len = length }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        const uint64_t needed = UINT64_C(1) << _UFFDIO_COPY | UINT64_C(1) << _UFFDIO_ZEROPAGE | UINT64_C(1) << _UFFDIO_WAKE;

        if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
                return -errno;
        return (reg.ioctls & needed) == needed ? 0 : -EOPNOTSUPP;
}

void userfault_unregister(int fd, const void *start, uint64_t length) {
        struct uffdio_range range = { .start = (uint64_t) (uintptr_t) start, .len = length };

        (void) ioctl(fd, UFFDIO_UNREGISTER, &range);
}

int userfault_wake(int fd, uint64_t address, uint64_t length) {
        struct uffdio_range range = { .start = address, .len = length };

        return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}
