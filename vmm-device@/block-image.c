/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "block-image.h"
#include "log.h"
#include "snapshot.h"
#include "watchdog.h"

#define SECTOR 512U
#define DIRECT_ALIGNMENT_MAX 4096U
#define LOCK_WAIT_USEC (4 * USEC_PER_SEC)
#define LOCK_LOOK_USEC (10 * USEC_PER_MSEC)
/* So often the watchdog hears from who waits for a disk. */
#define RING_LOOK_NSEC (250 * (long long) USEC_PER_MSEC * NSEC_PER_USEC)

/* An open file description lock goes with the description, so it also holds where the service manager opened the file, and ends when the
 * last copy is closed. Readers share, a writer is alone.
 *
 * A helper that was killed leaves its ring to the kernel, which finishes what is in it and only then lets go of the file. So the lock is
 * waited for; and once it is ours, no write of our predecessor can come late. */
static int lock_image(int fd, bool read_only, const char *path) {
        struct flock lock = { .l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };
        uint64_t end = now_usec() + LOCK_WAIT_USEC;

        while (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
                if (errno != EAGAIN && errno != EACCES && errno != EINTR)
                        return log_error_errno(errno, "Cannot lock %s: %m", path);
                if (now_usec() >= end)
                        return log_error_errno(EBUSY, "%s is in use by another process; it was not opened for %s.", path,
                                read_only ? "reading" : "writing");
                (void) usleep(LOCK_LOOK_USEC);
        }
        return 0;
}

/* The mode of a descriptor that others opened has to fit. */
static int check_access_mode(int fd, bool read_only, const char *path) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0)
                return log_error_errno(errno, "Cannot ask for the access mode of %s: %m", path);
        if ((flags & O_ACCMODE) == O_WRONLY || (!read_only && (flags & O_ACCMODE) != O_RDWR))
                return log_error_errno(EBADF, "%s was not opened for %s.", path, read_only ? "reading" : "reading and writing");
        return 0;
}

static int device_geometry(BlockImage *image, const char *path) {
        unsigned physical = 0;
        int logical = 0;

        if (ioctl(image->fd, BLKGETSIZE64, &image->size) < 0 || ioctl(image->fd, BLKSSZGET, &logical) < 0 ||
                ioctl(image->fd, BLKPBSZGET, &physical) < 0)
                return log_error_errno(errno, "Cannot ask for the size of %s: %m", path);
        image->logical_block = (uint32_t) logical;
        image->physical_block = physical;
        return 0;
}

static int learn_geometry(BlockImage *image, const char *path) {
        struct stat st;
        int r = 0;

        if (fstat(image->fd, &st) < 0)
                return log_error_errno(errno, "Cannot ask for the size of %s: %m", path);
        image->is_device = S_ISBLK(st.st_mode);
        if (image->is_device)
                r = device_geometry(image, path);
        else if (S_ISREG(st.st_mode)) {
                image->size = (uint64_t) st.st_size;
                image->logical_block = SECTOR;
                image->physical_block = (uint64_t) st.st_blksize >= SECTOR && (uint64_t) st.st_blksize <= 65536 ? (uint32_t) st.st_blksize : 4096;
        } else
                return log_error_errno(EINVAL, "%s is neither a regular file nor a block device.", path);
        if (r < 0)
                return r;

        return image->size > 0 ? 0 : log_error_errno(EINVAL, "%s is empty.", path);
}

/* What O_DIRECT demands differs between file systems and kernels; reading tells. */
static int find_alignment(BlockImage *image, const char *path) {
        _cleanup_free_ void *buffer = NULL;

        if (posix_memalign(&buffer, DIRECT_ALIGNMENT_MAX, DIRECT_ALIGNMENT_MAX) != 0)
                return log_oom();
        for (uint32_t alignment = SECTOR; alignment <= DIRECT_ALIGNMENT_MAX; alignment *= 2)
                if (pread(image->fd, buffer, alignment, 0) >= 0) {
                        image->alignment = alignment;
                        return 0;
                }
        return log_error_errno(errno, "Cannot read %s with O_DIRECT: %m", path);
}

static int set_direct(BlockImage *image, const char *path) {
        int flags = fcntl(image->fd, F_GETFL), r;

        if (flags < 0 || fcntl(image->fd, F_SETFL, flags | O_DIRECT) < 0)
                return log_error_errno(errno, "%s cannot be used with O_DIRECT (option \"direct\"): %m", path);
        image->direct = true;
        r = find_alignment(image, path);
        if (r < 0)
                return r;
        image->logical_block = MAX(image->logical_block, image->alignment);
        return 0;
}

static int choose_block_size(Device *d, BlockImage *image, const char *path) {
        uint32_t wanted = (uint32_t) device_option_unsigned(d, "blockSize", image->logical_block);

        if (image->direct && wanted < image->alignment)
                return log_error_errno(EINVAL, "%s needs blocks of %u bytes with O_DIRECT, not of %u.", path, image->alignment, wanted);
        image->logical_block = wanted;
        image->physical_block = MAX(image->physical_block, wanted);
        return 0;
}

/* The disk consists of whole blocks. */
static int cut_tail(BlockImage *image, const char *path) {
        uint64_t size = ALIGN_DOWN(image->size, (uint64_t) image->logical_block);

        if (size == 0)
                return log_error_errno(EINVAL, "%s has %llu bytes, less than one block of %u.", path,
                        (unsigned long long) image->size, image->logical_block);
        if (size != image->size)
                log_warning("The size of %s is not a multiple of %u bytes: its last %u bytes are out of the guest's reach.", path,
                        image->logical_block, (unsigned) (image->size - size));
        image->size = size;
        return 0;
}

int block_image_open(Device *d, BlockImage *ret) {
        const char *path = device_option(d, "path");
        BlockImage image = BLOCK_IMAGE_NULL;
        int r;

        image.read_only = device_option_boolean(d, "readOnly", false);
        image.fd = device_open_path(d, "path", image.read_only ? O_RDONLY : O_RDWR);
        path = path ?: "The disk image";
        if (image.fd == -ENOENT && !device_option(d, "path"))
                return log_error_errno(EINVAL, "The device needs --path=.");
        if (image.fd < 0)
                return log_error_errno(image.fd, "Cannot open %s: %m", path);

        r = check_access_mode(image.fd, image.read_only, path);
        if (r >= 0)
                r = lock_image(image.fd, image.read_only, path);
        if (r >= 0)
                r = learn_geometry(&image, path);
        if (r >= 0 && device_option_boolean(d, "direct", false))
                r = set_direct(&image, path);
        if (r >= 0)
                r = choose_block_size(d, &image, path);
        if (r >= 0)
                r = cut_tail(&image, path);
        if (r < 0) {
                block_image_done(&image);
                return r;
        }
        *ret = image;
        return 0;
}

int block_image_measure(const BlockImage *image, uint64_t *ret) {
        /* For a block device, too, where the ioctl is not open to us in the sandbox. */
        off_t end = lseek(image->fd, 0, SEEK_END);

        if (end < 0)
                return -errno;
        *ret = ALIGN_DOWN((uint64_t) end, (uint64_t) image->logical_block);
        return 0;
}

int block_image_truncate(BlockImage *image, uint64_t size) {
        return ftruncate(image->fd, (off_t) size) < 0 ? -errno : 0;
}

/* A block device tells its size by ioctl(2), which the sandbox need not have for that: it was asked when it was opened, and whenever it was resized. */
static int look(const BlockImage *image, SnapshotDisk *ret) {
        struct stat st;

        if (!image->is_device)
                return snapshot_disk_look(image->fd, ret);
        if (fstat(image->fd, &st) < 0)
                return -errno;
        *ret = (SnapshotDisk) { .size = image->size, .inode = st.st_ino, .is_device = true };
        return 0;
}

int block_image_save(const BlockImage *image, StateWriter *w) {
        SnapshotDisk disk;
        int r;

        r = look(image, &disk);
        if (r < 0)
                return r;
        snapshot_disk_save(&disk, w);
        return state_end(w);
}

int block_image_load(const BlockImage *image, StateReader *r, char **ret_message) {
        SnapshotDisk then, now;
        int k;

        k = snapshot_disk_load(r, &then, ret_message);
        if (k < 0)
                return k == -ENOENT ? set_message(ret_message, k, "it does not say of which disk it is") : k;
        k = look(image, &now);
        return k < 0 ? k : snapshot_disk_compare(&then, &now, "The disk", ret_message);
}

int block_ring_wait(struct io_uring *ring) {
        struct __kernel_timespec patience = { .tv_nsec = RING_LOOK_NSEC };
        struct io_uring_cqe *cqe;
        int r;

        do {
                r = io_uring_submit_and_wait_timeout(ring, &cqe, 1, &patience, NULL);
                watchdog_feed();
        } while (r == -ETIME || r == -EINTR || r == -EAGAIN);
        return MIN(r, 0);
}

void block_image_done(BlockImage *image) {
        image->fd = safe_close(image->fd);
}
