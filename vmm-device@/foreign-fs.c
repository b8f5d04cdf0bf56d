/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A shared directory (virtio 1.2 §5.11): virtiofsd, the one in Rust. The unit is its sandbox, so it makes none, and has one user: whoever acts in
 * the guest acts as that one, whose files are root's to the guest. */

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "foreign.h"

#define PROGRAM "/usr/libexec/virtiofsd"
#define QUEUES 2 /* one with priority, one for requests */

static int add_users(Foreign *f) {
        int r = 0;

        /* All of the guest's users are one of the host's; this one of the host's is the guest's root; the others stay who they are. */
        for (unsigned i = 0; i < 2 && r >= 0; i++) {
                unsigned id = i == 0 ? geteuid() : getegid();
                const char *what = i == 0 ? "uid" : "gid";

                r = foreign_add(f, "--translate-%s=squash-guest:0:%u:4294967295", what, id);
                if (r >= 0)
                        r = foreign_add(f, "--translate-%s=host:%u:0:1", what, id);
        }
        return r;
}

/* It looks there how many descriptors it may ask for, and does not run without an answer; what is not a process's is not in the unit's /proc. */
static int add_limit(Foreign *f) {
        struct rlimit limit;
        int fd, r;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return log_error_errno(errno, "Cannot find out how many descriptors there may be: %m");
        fd = memfd_create("nr_open", MFD_CLOEXEC);
        if (fd < 0 || dprintf(fd, "%llu\n", (unsigned long long) limit.rlim_max) < 0 || lseek(fd, 0, SEEK_SET) < 0) {
                (void) safe_close(fd);
                return log_error_errno(errno, "Cannot make a file: %m");
        }
        r = foreign_file(f, "/proc/sys/fs/nr_open", fd);
        return r < 0 ? r : foreign_add(f, "--rlimit-nofile=%llu", (unsigned long long) limit.rlim_max);
}

/* A descriptor that can be passed on by way of the kernel, which one of O_PATH cannot. */
static int open_directory(Device *d) {
        _cleanup_close_ int fd = device_open_path(d, "path", O_RDONLY | O_DIRECTORY);
        int flags, again;

        if (fd < 0)
                return fd;
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || !(flags & O_PATH))
                return flags < 0 ? -errno : TAKE_FD(fd);
        again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return again < 0 ? -errno : again;
}

/* It takes a path, of which it asks the kernel for its canonical form first: so there is a directory, and when it opens that it gets the shared one, which is
 * at no path here. From then on it knows its files by it. */
static int add_directory(Foreign *f) {
        char *place;
        int fd, r;

        fd = open_directory(f->device);
        if (fd < 0)
                return log_error_errno(fd, "Cannot open the directory %s: %m", device_option(f->device, "path") ?: "");
        if (asprintf(&place, "%s/shared", f->directory) < 0) {
                (void) safe_close(fd);
                return log_oom();
        }
        f->data = place;
        r = foreign_file(f, place, fd);
        if (r < 0)
                return r;
        if (mkdir(place, 0700) < 0)
                return log_error_errno(errno, "Cannot make the directory %s: %m", place);
        return foreign_add(f, "--shared-dir=%s", place);
}

static int fs_prepare(Foreign *f) {
        Device *d = f->device;
        int listening, r;

        listening = foreign_socket(f, FOREIGN_SOCKET_LISTENING);
        if (listening < 0)
                return listening;

        r = foreign_add(f, PROGRAM);
        if (r >= 0)
                r = foreign_add(f, "--fd=%d", listening);
        if (r >= 0)
                r = add_directory(f);
        if (r >= 0)
                r = foreign_add(f, "--tag=%s", device_option(d, "tag"));
        if (r >= 0)
                r = foreign_add(f, "--cache=%s", device_option(d, "cache") ?: "auto");
        if (r >= 0)
                r = foreign_add(f, "--sandbox=none");
        if (r >= 0)
                r = add_limit(f);
        if (r >= 0 && device_option_boolean(d, "readOnly", false))
                r = foreign_add(f, "--readonly");
        if (r >= 0 && device_option_boolean(d, "xattr", false))
                r = foreign_add(f, "--xattr");
        return r < 0 ? r : add_users(f);
}

static void fs_close(Foreign *f) {
        if (f->data)
                (void) rmdir(f->data);
        free(f->data);
}

static const ForeignClass fs_foreign = {
        .package = "virtiofsd, from Debian 13 on (that of Debian 12's qemu-system-common is another program, which does not run without privileges)",
        .one_session = true,
        .prepare = fs_prepare,
        .close = fs_close,
};

const DeviceClass fs_device = {
        .name = "fs",
        .virtio_id = 26,
        .queues_max = QUEUES,
        .policy = "foreign",
        .open = foreign_open,
        .close = foreign_close,
        .describe = foreign_describe,
        .foreign = &fs_foreign,
};
