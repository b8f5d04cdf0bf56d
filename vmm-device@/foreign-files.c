/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "foreign-files.h"
#include "log.h"

/* Longer ones are not ours. */
#define PATH_LENGTH_MAX 256

typedef struct NamedFile {
        char *name;
        int fd;
} NamedFile;

struct ForeignFiles {
        NamedFile *files;
        size_t n;
        int pair[2]; /* the child sends the listener from [1] to [0] */
        int listener;
        sd_event_source *source;
        struct seccomp_notif *request; /* as large as the kernel makes it */
        size_t request_size;
        struct seccomp_notif_resp *response;
        size_t response_size;
};

int foreign_files_new(ForeignFiles **ret) {
        _cleanup_(foreign_files_freep) ForeignFiles *files = calloc(1, sizeof(ForeignFiles));
        struct seccomp_notif_sizes sizes;

        if (!files)
                return -ENOMEM;
        files->listener = files->pair[0] = files->pair[1] = -EBADF;
        if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0)
                return -errno;
        files->request_size = MAX((size_t) sizes.seccomp_notif, sizeof(struct seccomp_notif));
        files->response_size = MAX((size_t) sizes.seccomp_notif_resp, sizeof(struct seccomp_notif_resp));
        files->request = malloc(files->request_size);
        files->response = malloc(files->response_size);
        if (!files->request || !files->response)
                return -ENOMEM;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, files->pair) < 0)
                return -errno;
        *ret = TAKE_PTR(files);
        return 0;
}

ForeignFiles *foreign_files_free(ForeignFiles *files) {
        if (!files)
                return NULL;
        files->source = sd_event_source_disable_unref(files->source);
        for (size_t i = 0; i < files->n; i++) {
                (void) safe_close(files->files[i].fd);
                free(files->files[i].name);
        }
        free(files->files);
        (void) safe_close(files->listener);
        (void) safe_close(files->pair[0]);
        (void) safe_close(files->pair[1]);
        free(files->request);
        free(files->response);
        return mfree(files);
}

int foreign_files_add(ForeignFiles *files, const char *name, int fd) {
        NamedFile *grown = reallocarray(files->files, files->n + 1, sizeof(NamedFile));
        char *copy = strdup(name);

        if (grown)
                files->files = grown;
        if (!grown || !copy) {
                free(copy);
                (void) safe_close(fd);
                return -ENOMEM;
        }
        files->files[files->n++] = (NamedFile) { .name = copy, .fd = fd };
        return 0;
}

int foreign_files_get(const ForeignFiles *files, const char *name) {
        for (size_t i = 0; i < files->n; i++)
                if (streq(files->files[i].name, name))
                        return files->files[i].fd;
        return -ENOENT;
}

/* --- the child --- */

int foreign_files_enter(ForeignFiles *files) {
        /* The C library opens by openat() only. Other architectures' calls are not the program's: its unit has SystemCallArchitectures=native. */
        struct sock_filter filter[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
                /* What is opened below a directory that it has open already is none of ours, and may be its daily work. An int: the low half. */
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) AT_FDCWD, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = { .len = ELEMENTSOF(filter), .filter = filter };
        long fd;
        int error = 0;

        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                error = errno;
        fd = error == 0 ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) : -1;
        if (fd < 0 && error == 0)
                error = errno;
        if (send_with_fds(files->pair[1], &error, sizeof(error), (int[]) { (int) fd }, fd >= 0) < 0)
                return -errno;
        (void) close((int) fd);
        return -error;
}

/* --- the parent --- */

/* The path that the program means to open; it is read once. */
static bool read_path(const ForeignFiles *files, char path[static PATH_LENGTH_MAX]) {
        struct iovec to = { .iov_base = path, .iov_len = PATH_LENGTH_MAX },
                     from = { .iov_base = (void *) (uintptr_t) files->request->data.args[1], .iov_len = PATH_LENGTH_MAX };
        ssize_t n;

        n = process_vm_readv((pid_t) files->request->pid, &to, 1, &from, 1, 0);
        return n > 0 && memchr(path, 0, (size_t) n);
}

/* Access as the program asks for it: what it gets has all that it asked for. */
static int check_access(int fd, uint64_t wanted) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0)
                return -errno;
        if ((flags & O_ACCMODE) != O_RDWR && (flags & O_ACCMODE) != (int) (wanted & O_ACCMODE))
                return -EACCES;
        /* Of an open file as it is, this alone can still be changed. */
        if (((uint64_t) flags ^ wanted) & O_DIRECT && fcntl(fd, F_SETFL, flags ^ O_DIRECT) < 0)
                return -errno;
        return 0;
}

/* Returns 1 where the call is answered already. */
static int give_file(ForeignFiles *files, const char *name) {
        uint64_t flags = files->request->data.args[2];
        int fd, r;

        fd = foreign_files_get(files, name);
        r = fd < 0 ? fd : check_access(fd, flags);
        if (r < 0)
                return r;
        struct seccomp_notif_addfd add = {
                .id = files->request->id,
                .flags = SECCOMP_ADDFD_FLAG_SEND,
                .srcfd = (uint32_t) fd,
                .newfd_flags = (uint32_t) (flags & O_CLOEXEC),
        };
        return ioctl(files->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 ? -errno : 1;
}

static int on_open(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        ForeignFiles *files = userdata;
        char path[PATH_LENGTH_MAX];
        const char *name = NULL;
        int r = 0;

        /* Everybody who could ask has ended. */
        if (!(revents & EPOLLIN)) {
                files->source = sd_event_source_disable_unref(files->source);
                return 0;
        }
        memset(files->request, 0, files->request_size);
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, files->request) < 0) {
                /* Gone again: killed while it asked. */
                if (errno != ENOENT && errno != EINTR)
                        log_warning("Cannot take what the program wants to open: %m");
                return 0;
        }
        if (read_path(files, path) && ioctl(fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &files->request->id) >= 0)
                name = startswith(path, FOREIGN_FILES) ?: foreign_files_get(files, path) >= 0 ? path : NULL;
        if (name)
                r = give_file(files, name);
        if (r > 0)
                return 0;
        if (r < 0)
                log_debug_errno(r, "The program does not get %s: %m", path);

        memset(files->response, 0, files->response_size);
        files->response->id = files->request->id;
        files->response->error = r;
        files->response->flags = name ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, files->response) < 0 && errno != ENOENT)
                log_warning("Cannot answer what the program wants to open: %m");
        return 0;
}

int foreign_files_serve(ForeignFiles *files, sd_event *event) {
        size_t n_fds = 1;
        int error = 0;
        ssize_t n;

        files->pair[1] = safe_close(files->pair[1]);
        n = recv_with_fds(files->pair[0], &error, sizeof(error), &files->listener, &n_fds, 0);
        files->pair[0] = safe_close(files->pair[0]);
        if (n < 0)
                return (int) n;
        if (n != sizeof(error))
                return -EPIPE; /* it ended before it could say anything */
        if (error != 0 || n_fds == 0)
                return error > 0 ? -error : -EPROTO;
        return sd_event_add_io(event, &files->source, files->listener, EPOLLIN, on_open, files);
}
