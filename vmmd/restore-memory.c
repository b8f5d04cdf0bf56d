/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "restore-memory.h"

#define PAGE SNAPSHOT_PAGE
#define CHUNK SNAPSHOT_CHUNK
#define MESSAGES_AT_ONCE 32

/* Of /dev/userfaultfd, in Linux since 6.1 (the header is older in some distributions). */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

struct RestoreMemory {
        int uffd;
        int stop_fd, begin_fd, finished_fd; /* eventfds */
        const GuestMemory *memory;
        const SnapshotMemory *file;
        void (*done)(int error, void *userdata);
        void *userdata;
        size_t n_registered;
        uint64_t begin_usec;
        RestoreMemoryStatistics statistics;
        char *message;

        /* Who answers. */
        pthread_t thread;
        bool has_thread, begun;
        SnapshotMemoryBuffer buffer;

        /* Who reads in turn. */
        pthread_t reader;
        bool has_reader;
        atomic_bool reader_stop;
        SnapshotMemoryBuffer reader_buffer;
        uint64_t reader_bytes;
        int reader_error;
        char *reader_message;

        atomic_bool *taken;   /* chunks that one of them fetches, or has fetched, as a whole */
        pthread_mutex_t turn; /* held while somebody is answered */
};

int restore_userfaultfd(int device) {
        int fd;

        if (device >= 0)
                fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        else
                fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        return fd < 0 ? -errno : fd;
}

/* --- a chunk --- */

/* Where that offset of the memory is mapped. */
static const GuestRegion *region_of(const GuestMemory *memory, uint64_t offset) {
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *region = &memory->regions[i];

                if (offset >= region->fd_offset && offset - region->fd_offset < region->size)
                        return region;
        }
        return NULL;
}

/* Calls `put` for each run of pages that lies together in this process. */
static int each_run(const GuestMemory *memory, const uint8_t *data, uint64_t chunk, uint16_t pages, int (*put)(uint8_t *to, const uint8_t *from, size_t length, void *userdata),
        void *userdata) {
        int r = 0;

        for (unsigned i = 0, n; i < SNAPSHOT_CHUNK_PAGES && r >= 0; i += n) {
                uint64_t offset = chunk * CHUNK + i * PAGE;
                const GuestRegion *region;

                n = 1;
                if (!(pages & 1U << i))
                        continue;
                region = region_of(memory, offset);
                if (!region)
                        continue;
                while (i + n < SNAPSHOT_CHUNK_PAGES && (pages & 1U << (i + n)) && region_of(memory, offset + n * PAGE) == region)
                        n++;
                r = put(region->host + (offset - region->fd_offset), data + i * PAGE, n * PAGE, userdata);
        }
        return r;
}

/* --- all at once --- */

static int copy_run(uint8_t *to, const uint8_t *from, size_t length, void *userdata) {
        memcpy(to, from, length);
        return 0;
}

static void tell_progress(uint64_t *told, void (*progress)(void *userdata), void *userdata) {
        if (!progress || now_usec() - *told < USEC_PER_SEC)
                return;
        *told = now_usec();
        progress(userdata);
}

int restore_memory_read(const GuestMemory *memory, const SnapshotMemory *file, void (*progress)(void *userdata), void *userdata, char **ret_message) {
        _cleanup_(snapshot_memory_buffer_done) SnapshotMemoryBuffer buffer = {};
        uint64_t told = 0; /* who waits hears of the first piece at once */
        int r;

        r = snapshot_memory_buffer_init(file, &buffer);
        for (uint64_t i = 0; i < snapshot_memory_n_chunks(file) && r >= 0; i++) {
                uint16_t pages = snapshot_memory_pages(file, i);

                if (pages == 0)
                        continue;
                r = snapshot_memory_read(file, &buffer, i, pages, ret_message);
                if (r >= 0)
                        r = each_run(memory, buffer.chunk, i, pages, copy_run, NULL);
                tell_progress(&told, progress, userdata);
        }
        return r < 0 ? r : 0;
}

/* --- on demand --- */

static int wake(RestoreMemory *r, uint64_t address) {
        struct uffdio_range range = { .start = address, .len = PAGE };

        return ioctl(r->uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

/* Where nothing is yet; a page that somebody else was faster with stands. Who waits for one that was put there is woken by that. */
static int put_run(uint8_t *to, const uint8_t *from, size_t length, void *userdata) {
        RestoreMemory *r = userdata;
        uint64_t at = 0;

        while (at < length) {
                struct uffdio_copy copy = { .dst = (uint64_t) (uintptr_t) to + at, .src = (uint64_t) (uintptr_t) from + at, .len = length - at };

                if (ioctl(r->uffd, UFFDIO_COPY, &copy) >= 0)
                        break;
                if (copy.copy > 0)
                        at += (uint64_t) copy.copy;
                else if (copy.copy == -EEXIST)
                        at += PAGE;
                else if (copy.copy != -EAGAIN && copy.copy != 0)
                        return (int) copy.copy;
                else if (errno != EAGAIN)
                        return -errno;
        }
        return 0;
}

static int fetch(RestoreMemory *r, SnapshotMemoryBuffer *b, uint64_t chunk, uint16_t pages, uint64_t *bytes, char **ret_message) {
        int k;

        k = snapshot_memory_read(r->file, b, chunk, pages, ret_message);
        if (k < 0)
                return k;
        *bytes += (uint64_t) __builtin_popcount(pages) * PAGE;
        return each_run(r->memory, b->chunk, chunk, pages, put_run, r);
}

/* --- what is waited for --- */

static int put_zeroes(RestoreMemory *r, uint64_t address) {
        struct uffdio_zeropage zero = { .range = { .start = address, .len = PAGE } };

        if (ioctl(r->uffd, UFFDIO_ZEROPAGE, &zero) >= 0)
                return 0;
        return zero.zeropage == -EEXIST || zero.zeropage == -EAGAIN ? wake(r, address) : -errno;
}

/* The offset of an address of ours in the memory; UINT64_MAX where it is none. */
static uint64_t offset_of(const RestoreMemory *r, uint64_t address) {
        for (size_t i = 0; i < r->memory->n_regions; i++) {
                const GuestRegion *region = &r->memory->regions[i];
                uint64_t host = (uint64_t) (uintptr_t) region->host;

                if (address >= host && address - host < region->size)
                        return address - host + region->fd_offset;
        }
        return UINT64_MAX;
}

/* One page: who waits is to wait no longer than that takes. */
static int serve(RestoreMemory *r, uint64_t address) {
        uint64_t offset = offset_of(r, address), chunk = offset / CHUNK;
        uint16_t page;
        int k;

        address = ALIGN_DOWN(address, PAGE);
        if (offset == UINT64_MAX)
                return wake(r, address);
        r->statistics.faults++;
        page = (uint16_t) (1U << offset % CHUNK / PAGE);
        if (!(snapshot_memory_pages(r->file, chunk) & page))
                return put_zeroes(r, address);
        k = fetch(r, &r->buffer, chunk, page, &r->statistics.bytes, &r->message);
        /* Where it was there already nobody has been woken. */
        return k < 0 ? k : wake(r, address);
}

/* Who touches a page is likely to touch the next ones, too. */
static int serve_neighbours(RestoreMemory *r, uint64_t address) {
        uint64_t offset = offset_of(r, address), chunk = offset / CHUNK;
        uint16_t others;

        if (offset == UINT64_MAX)
                return 0;
        others = (uint16_t) (snapshot_memory_pages(r->file, chunk) & ~(1U << offset % CHUNK / PAGE));
        if (others == 0 || atomic_exchange(&r->taken[chunk], true))
                return 0;
        return fetch(r, &r->buffer, chunk, others, &r->statistics.bytes, &r->message);
}

static bool somebody_waits(const RestoreMemory *r) {
        struct pollfd p = { .fd = r->uffd, .events = POLLIN };

        return poll(&p, 1, 0) > 0;
}

static int serve_all(RestoreMemory *r) {
        struct uffd_msg messages[MESSAGES_AT_ONCE];
        size_t n_messages;
        ssize_t n;
        int k = 0;

        n = read(r->uffd, messages, sizeof(messages));
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        n_messages = (size_t) n / sizeof(messages[0]);
        for (size_t i = 0; i < n_messages && k >= 0; i++)
                if (messages[i].event == UFFD_EVENT_PAGEFAULT)
                        k = serve(r, messages[i].arg.pagefault.address);
        /* Before it has begun whoever touches memory wants that page. */
        for (size_t i = 0; i < n_messages && k >= 0 && r->begun && !somebody_waits(r); i++)
                if (messages[i].event == UFFD_EVENT_PAGEFAULT)
                        k = serve_neighbours(r, messages[i].arg.pagefault.address);
        return k;
}

/* --- and the others --- */

static int read_in_turn(RestoreMemory *r) {
        int k = 0;

        for (uint64_t i = 0; i < snapshot_memory_n_chunks(r->file) && k >= 0; i++) {
                uint16_t pages = snapshot_memory_pages(r->file, i);

                if (pages == 0 || atomic_exchange(&r->taken[i], true))
                        continue;
                (void) pthread_mutex_lock(&r->turn);
                (void) pthread_mutex_unlock(&r->turn);
                if (r->reader_stop)
                        return -ECANCELED;
                k = fetch(r, &r->reader_buffer, i, pages, &r->reader_bytes, &r->reader_message);
        }
        return k;
}

static void *reader_thread(void *userdata) {
        RestoreMemory *r = userdata;

        (void) pthread_setname_np(pthread_self(), "restore-reader");
        r->reader_error = read_in_turn(r);
        (void) eventfd_write(r->finished_fd, 1);
        return NULL;
}

static int begin_reading(RestoreMemory *r) {
        int k;

        r->begun = true;
        k = -pthread_create(&r->reader, NULL, reader_thread, r);
        r->has_reader = k >= 0;
        return k;
}

static void end_reading(RestoreMemory *r) {
        if (!r->has_reader)
                return;
        r->reader_stop = true;
        (void) pthread_join(r->reader, NULL);
        r->has_reader = false;
        r->statistics.bytes += r->reader_bytes;
        if (!r->message)
                r->message = TAKE_PTR(r->reader_message);
}

static void unregister(RestoreMemory *r) {
        for (size_t i = 0; i < r->n_registered; i++) {
                const GuestRegion *region = &r->memory->regions[i];
                struct uffdio_range range = { .start = (uint64_t) (uintptr_t) region->host, .len = region->size };

                (void) ioctl(r->uffd, UFFDIO_UNREGISTER, &range);
                (void) madvise(region->host, region->size, MADV_HUGEPAGE); /* as it was made */
        }
        r->n_registered = 0;
}

/* 0 where all is there, -ECANCELED where it is to end before. */
static int run(RestoreMemory *r) {
        for (;;) {
                struct pollfd p[] = {
                        { .fd = r->stop_fd, .events = POLLIN },
                        { .fd = r->uffd, .events = POLLIN },
                        { .fd = r->begun ? -1 : r->begin_fd, .events = POLLIN },
                        { .fd = r->finished_fd, .events = POLLIN },
                };
                int k;

                k = poll(p, ELEMENTSOF(p), -1);
                if (k < 0 && errno != EINTR)
                        return -errno;
                if (k < 0)
                        continue;
                if (p[0].revents)
                        return -ECANCELED;
                if (p[1].revents) {
                        (void) pthread_mutex_lock(&r->turn);
                        k = serve_all(r);
                        (void) pthread_mutex_unlock(&r->turn);
                } else if (p[2].revents)
                        k = begin_reading(r);
                else if (p[3].revents)
                        return r->reader_error;
                if (k < 0)
                        return k;
        }
}

static void *restore_thread(void *userdata) {
        RestoreMemory *r = userdata;
        int k;

        (void) pthread_setname_np(pthread_self(), "restore");
        k = run(r);
        end_reading(r);
        if (k == -ECANCELED)
                return NULL;
        r->statistics.usec = now_usec() - r->begin_usec;
        /* Holes are the kernel's again; who has asked for one meanwhile is woken. Where it has failed, that is after those who must not see zeroes were told to stop. */
        if (k >= 0)
                unregister(r);
        r->done(k, r->userdata);
        if (k < 0)
                unregister(r);
        return NULL;
}

/* --- making and freeing --- */

static int register_range(RestoreMemory *r, uint64_t address, uint64_t length) {
        struct uffdio_register reg = { .range = { .start = address, .len = length }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        const uint64_t needed = UINT64_C(1) << _UFFDIO_COPY | UINT64_C(1) << _UFFDIO_ZEROPAGE | UINT64_C(1) << _UFFDIO_WAKE;

        if (ioctl(r->uffd, UFFDIO_REGISTER, &reg) < 0)
                return -errno;
        return (reg.ioctls & needed) == needed ? 0 : -EOPNOTSUPP;
}

static int shake_hands(RestoreMemory *r) {
        struct uffdio_api api = { .api = UFFD_API };
        int k = 0;

        if (ioctl(r->uffd, UFFDIO_API, &api) < 0)
                return -errno;
        for (size_t i = 0; i < r->memory->n_regions && k >= 0; i++) {
                const GuestRegion *region = &r->memory->regions[i];

                /* Who makes one huge page of many fills up what is not there yet, with zeroes, which would stand. */
                (void) madvise(region->host, region->size, MADV_NOHUGEPAGE);
                k = register_range(r, (uint64_t) (uintptr_t) region->host, region->size);
                r->n_registered++;
        }
        return k;
}

static int prepare(RestoreMemory *r) {
        int k;

        r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r->begin_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r->finished_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (r->stop_fd < 0 || r->begin_fd < 0 || r->finished_fd < 0)
                return -errno;
        r->taken = calloc(snapshot_memory_n_chunks(r->file), sizeof(*r->taken));
        if (!r->taken)
                return -ENOMEM;
        k = snapshot_memory_buffer_init(r->file, &r->buffer);
        if (k >= 0)
                k = snapshot_memory_buffer_init(r->file, &r->reader_buffer);
        return k < 0 ? k : shake_hands(r);
}

int restore_memory_new(int uffd, const GuestMemory *memory, const SnapshotMemory *file, void (*done)(int error, void *userdata), void *userdata, RestoreMemory **ret) {
        _cleanup_(restore_memory_freep) RestoreMemory *r = calloc(1, sizeof(RestoreMemory));
        int k;

        if (!r) {
                (void) safe_close(uffd);
                return -ENOMEM;
        }
        *r = (RestoreMemory) {
                .uffd = uffd, .stop_fd = -EBADF, .begin_fd = -EBADF, .finished_fd = -EBADF, .memory = memory, .file = file, .done = done, .userdata = userdata,
                .begin_usec = now_usec(), .turn = PTHREAD_MUTEX_INITIALIZER,
        };
        k = prepare(r);
        if (k >= 0)
                k = -pthread_create(&r->thread, NULL, restore_thread, r);
        if (k < 0)
                return k;
        r->has_thread = true;
        *ret = TAKE_PTR(r);
        return 0;
}

void restore_memory_begin(RestoreMemory *r) {
        (void) eventfd_write(r->begin_fd, 1);
}

RestoreMemory *restore_memory_free(RestoreMemory *r) {
        if (!r)
                return NULL;
        if (r->has_thread) {
                r->reader_stop = true;
                (void) eventfd_write(r->stop_fd, 1);
                (void) pthread_join(r->thread, NULL);
        }
        unregister(r);
        (void) safe_close(r->uffd);
        (void) safe_close(r->stop_fd);
        (void) safe_close(r->begin_fd);
        (void) safe_close(r->finished_fd);
        snapshot_memory_buffer_done(&r->buffer);
        snapshot_memory_buffer_done(&r->reader_buffer);
        free(r->taken);
        free(r->message);
        free(r->reader_message);
        return mfree(r);
}

const char *restore_memory_message(const RestoreMemory *r) {
        return r->message;
}

void restore_memory_statistics(const RestoreMemory *r, RestoreMemoryStatistics *ret) {
        *ret = r->statistics;
}
