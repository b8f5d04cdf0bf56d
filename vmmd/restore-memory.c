/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "log.h"
#include "restore-memory.h"
#include "userfault.h"

#define PAGE SNAPSHOT_PAGE
#define CHUNK SNAPSHOT_CHUNK
#define MESSAGES_AT_ONCE 32
#define PEERS_AT_ONCE 16

/* Where a piece of the memory is mapped in another process. */
typedef struct PeerRegion {
        uint64_t base, size;
        uint64_t offset; /* in the memory */
} PeerRegion;

struct RestorePeer {
        RestoreMemory *memory;
        int uffd, leash;
        PeerRegion regions[GUEST_MEMORY_REGIONS_MAX];
        size_t n_regions;
        RestorePeer *next;
};

/* Who waits for a page. */
typedef struct Waiter {
        int uffd;
        uint64_t address; /* in the process whose `uffd` is */
        uint64_t offset;  /* in the memory */
} Waiter;

struct RestoreMemory {
        int uffd;
        int stop_fd, begin_fd, finished_fd; /* eventfds */
        const GuestMemory *memory;
        const SnapshotMemory *file;
        void (*done)(int error, void *userdata);
        void *userdata;
        size_t n_registered;
        uint64_t begin_usec;
        RestoreMemoryStatistics statistics;      /* of who answers */
        RestoreMemoryStatistics statistics_told; /* when all was there */
        char *message;

        RestorePeer *peers; /* with `turn` held, as the next one */
        RestorePeer *ending; /* that were told to end, and may not have ended yet */
        int peers_fd;       /* an epoll instance of theirs */
        bool failed;        /* with `turn` held: none is added any more */

        /* Who answers. */
        pthread_t thread;
        bool has_thread, begun, complete;
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

static int put_zeroes(RestoreMemory *r, const uint8_t *page) {
        struct uffdio_zeropage zero = { .range = { .start = (uint64_t) (uintptr_t) page, .len = PAGE } };

        if (ioctl(r->uffd, UFFDIO_ZEROPAGE, &zero) >= 0 || zero.zeropage == -EEXIST || zero.zeropage == -EAGAIN)
                return 0;
        return -errno;
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

static uint64_t offset_of_peer(const RestorePeer *p, uint64_t address) {
        for (size_t i = 0; i < p->n_regions; i++)
                if (address >= p->regions[i].base && address - p->regions[i].base < p->regions[i].size)
                        return address - p->regions[i].base + p->regions[i].offset;
        return UINT64_MAX;
}

/* One page: who waits is to wait no longer than that takes. */
static int serve(RestoreMemory *r, const Waiter *w) {
        uint64_t chunk = w->offset / CHUNK;
        uint16_t page = (uint16_t) (1U << w->offset % CHUNK / PAGE);
        const GuestRegion *region = region_of(r->memory, w->offset);
        int k = 0;

        r->statistics.faults++;
        if (snapshot_memory_pages(r->file, chunk) & page)
                k = fetch(r, &r->buffer, chunk, page, &r->statistics.bytes, &r->message);
        else if (region)
                k = put_zeroes(r, region->host + (ALIGN_DOWN(w->offset, PAGE) - region->fd_offset));
        /* Where it was there already nobody has been woken; nor is who waits in another process by what is put in this one. */
        if (k >= 0)
                (void) userfault_wake(w->uffd, ALIGN_DOWN(w->address, PAGE), PAGE);
        return k;
}

/* Who touches a page is likely to touch the next ones, too. */
static int serve_neighbours(RestoreMemory *r, uint64_t offset) {
        uint64_t chunk = offset / CHUNK;
        uint16_t others;

        others = (uint16_t) (snapshot_memory_pages(r->file, chunk) & ~(1U << offset % CHUNK / PAGE));
        if (others == 0 || atomic_exchange(&r->taken[chunk], true))
                return 0;
        return fetch(r, &r->buffer, chunk, others, &r->statistics.bytes, &r->message);
}

static bool somebody_waits(const RestoreMemory *r) {
        struct pollfd p[] = { { .fd = r->uffd, .events = POLLIN }, { .fd = r->peers_fd, .events = POLLIN } };

        return poll(p, ELEMENTSOF(p), 0) > 0;
}

/* Questions of this process, or of `peer`. -EPROTO where a peer asks for what is not the guest's memory. */
static int serve_all(RestoreMemory *r, RestorePeer *peer) {
        int uffd = peer ? peer->uffd : r->uffd, k = 0;
        struct uffd_msg messages[MESSAGES_AT_ONCE];
        Waiter waiters[MESSAGES_AT_ONCE];
        size_t n_waiters = 0;
        ssize_t n;

        n = read(uffd, messages, sizeof(messages));
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        for (size_t i = 0; i < (size_t) n / sizeof(messages[0]) && k >= 0; i++) {
                Waiter w = { .uffd = uffd, .address = messages[i].arg.pagefault.address };

                if (messages[i].event != UFFD_EVENT_PAGEFAULT)
                        continue;
                w.offset = peer ? offset_of_peer(peer, w.address) : offset_of(r, w.address);
                if (w.offset == UINT64_MAX && peer)
                        return -EPROTO;
                if (w.offset == UINT64_MAX)
                        continue;
                k = serve(r, &w);
                waiters[n_waiters++] = w;
        }
        /* Before it has begun whoever touches memory wants that page. */
        for (size_t i = 0; i < n_waiters && k >= 0 && r->begun && !somebody_waits(r); i++)
                k = serve_neighbours(r, waiters[i].offset);
        return k;
}

/* --- others --- */

/* Tells that process to end, by hanging up on what does that to it. */
static void cut_off(RestorePeer *p) {
        (void) epoll_ctl(p->memory->peers_fd, EPOLL_CTL_DEL, p->uffd, NULL);
        (void) shutdown(p->leash, SHUT_WR);
}

/* Or has let go of its leash. */
static bool has_ended(const RestorePeer *p) {
        struct pollfd end = { .fd = p->leash };

        return poll(&end, 1, 0) > 0 && end.revents & (POLLHUP | POLLERR);
}

static void wait_for_end(const RestorePeer *p) {
        for (; p; p = p->next) {
                struct pollfd end = { .fd = p->leash };

                while (!(end.revents & (POLLHUP | POLLERR)))
                        (void) poll(&end, 1, -1);
        }
}

/* All of them, and waits until they have: the other end of a leash closes when the last of its threads has no memory any more. Without a limit, since going
 * on would give zeroes to somebody who may write them to a disk. */
static void cut_all_off(RestoreMemory *r) {
        (void) pthread_mutex_lock(&r->turn);
        r->failed = true;
        for (RestorePeer *p = r->peers; p; p = p->next)
                cut_off(p);
        wait_for_end(r->peers);
        wait_for_end(r->ending);
        (void) pthread_mutex_unlock(&r->turn);
}

/* With `turn` held. */
static int serve_peers(RestoreMemory *r) {
        struct epoll_event events[PEERS_AT_ONCE];
        int n, k = 0;

        n = epoll_wait(r->peers_fd, events, PEERS_AT_ONCE, 0);
        for (int i = 0; i < n && k >= 0; i++) {
                RestorePeer *p = events[i].data.ptr;

                /* One that would block us says that by an error. */
                k = events[i].events & ~(uint32_t) EPOLLIN ? -EPROTO : serve_all(r, p);
                if (k == -EPROTO) {
                        log_warning("A helper whose memory is still to come asks for what is none; it is ended.");
                        cut_off(p);
                        k = 0;
                }
        }
        return k;
}

static int add_peer(RestoreMemory *r, RestorePeer *p) {
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = p };
        int flags = fcntl(p->uffd, F_GETFL), k;

        if (r->failed)
                return -ESHUTDOWN;
        /* Somebody's descriptor: waking nobody at an address that anybody has shows what it is. */
        k = userfault_wake(p->uffd, (uint64_t) (uintptr_t) r->memory->regions[0].host, PAGE);
        if (k < 0)
                return k;
        if (flags < 0 || fcntl(p->uffd, F_SETFL, flags | O_NONBLOCK) < 0 || epoll_ctl(r->peers_fd, EPOLL_CTL_ADD, p->uffd, &event) < 0)
                return -errno;
        p->memory = r;
        p->next = r->peers;
        r->peers = p;
        return 0;
}

int restore_peer_new(RestoreMemory *r, int uffd, int leash, RestorePeer **ret) {
        _cleanup_(restore_peer_freep) RestorePeer *p = calloc(1, sizeof(RestorePeer));
        int k;

        if (!p) {
                (void) safe_close(uffd);
                (void) safe_close(leash);
                return -ENOMEM;
        }
        *p = (RestorePeer) { .uffd = uffd, .leash = leash };
        (void) pthread_mutex_lock(&r->turn);
        k = add_peer(r, p);
        (void) pthread_mutex_unlock(&r->turn);
        if (k < 0)
                return k;
        *ret = TAKE_PTR(p);
        return 0;
}

/* Of the guest's memory, that region; NULL where it is of something else, such as a file. */
static const GuestRegion *same_region(const RestoreMemory *r, const GuestRegion *region) {
        for (size_t i = 0; i < r->memory->n_regions; i++)
                if (r->memory->regions[i].guest_address == region->guest_address && r->memory->regions[i].size == region->size)
                        return &r->memory->regions[i];
        return NULL;
}

void restore_peer_map(RestorePeer *p, const GuestMemory *memory, const uint64_t *bases) {
        RestoreMemory *r = p->memory;

        (void) pthread_mutex_lock(&r->turn);
        p->n_regions = 0;
        for (size_t i = 0; i < memory->n_regions; i++) {
                const GuestRegion *region = same_region(r, &memory->regions[i]);

                if (region)
                        p->regions[p->n_regions++] = (PeerRegion) { .base = bases[i], .size = region->size, .offset = region->fd_offset };
        }
        (void) pthread_mutex_unlock(&r->turn);
}

static void close_peer(RestorePeer *p) {
        (void) safe_close(p->uffd);
        (void) safe_close(p->leash);
        free(p);
}

/* With `turn` held. */
static void forget_peer(RestoreMemory *r, RestorePeer *p) {
        for (RestorePeer **at = &r->peers; *at; at = &(*at)->next)
                if (*at == p) {
                        *at = p->next;
                        break;
                }
        if (has_ended(p)) {
                close_peer(p);
                return;
        }
        cut_off(p);
        p->next = r->ending;
        r->ending = p;
}

RestorePeer *restore_peer_free(RestorePeer *p) {
        RestoreMemory *r = p ? p->memory : NULL;

        if (r) {
                (void) pthread_mutex_lock(&r->turn);
                forget_peer(r, p);
                (void) pthread_mutex_unlock(&r->turn);
        } else if (p)
                close_peer(p);
        return NULL;
}

/* --- all pages in turn --- */

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

                userfault_unregister(r->uffd, region->host, region->size);
                (void) madvise(region->host, region->size, MADV_HUGEPAGE); /* as it was made */
        }
        r->n_registered = 0;
}

/* Whoever looks for a page of zeroes still asks, here and in other processes, until this is freed. */
static void complete(RestoreMemory *r) {
        end_reading(r);
        r->complete = true;
        r->statistics.usec = now_usec() - r->begin_usec;
        r->statistics_told = r->statistics;
        r->done(0, r->userdata);
}

static int serve_here_and_there(RestoreMemory *r) {
        int k;

        (void) pthread_mutex_lock(&r->turn);
        k = serve_all(r, NULL);
        if (k >= 0)
                k = serve_peers(r);
        (void) pthread_mutex_unlock(&r->turn);
        return k;
}

/* -ECANCELED where it is to end. */
static int run(RestoreMemory *r) {
        for (;;) {
                struct pollfd p[] = {
                        { .fd = r->stop_fd, .events = POLLIN },
                        { .fd = r->uffd, .events = POLLIN },
                        { .fd = r->peers_fd, .events = POLLIN },
                        { .fd = r->begun ? -1 : r->begin_fd, .events = POLLIN },
                        { .fd = r->complete ? -1 : r->finished_fd, .events = POLLIN },
                };
                int k;

                k = poll(p, ELEMENTSOF(p), -1);
                if (k < 0 && errno != EINTR)
                        return -errno;
                if (k < 0)
                        continue;
                if (p[0].revents)
                        return -ECANCELED;
                if (p[1].revents || p[2].revents)
                        k = serve_here_and_there(r);
                else if (p[3].revents)
                        k = begin_reading(r);
                else if (r->reader_error < 0)
                        k = r->reader_error;
                else
                        complete(r);
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
        /* Holes are the kernel's again, and who has asked for one is woken, after those who must not see zeroes were told to stop. */
        cut_all_off(r);
        r->done(k, r->userdata);
        unregister(r);
        return NULL;
}

/* --- making and freeing --- */

static int register_all(RestoreMemory *r) {
        int k = 0;

        for (size_t i = 0; i < r->memory->n_regions && k >= 0; i++) {
                const GuestRegion *region = &r->memory->regions[i];

                /* Who makes one huge page of many fills up what is not there yet, with zeroes, which would stand. */
                (void) madvise(region->host, region->size, MADV_NOHUGEPAGE);
                k = userfault_register(r->uffd, region->host, region->size);
                r->n_registered++;
        }
        return k;
}

static int prepare(RestoreMemory *r) {
        int k;

        r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r->begin_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r->finished_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r->peers_fd = epoll_create1(EPOLL_CLOEXEC);
        if (r->stop_fd < 0 || r->begin_fd < 0 || r->finished_fd < 0 || r->peers_fd < 0)
                return -errno;
        r->taken = calloc(snapshot_memory_n_chunks(r->file), sizeof(*r->taken));
        if (!r->taken)
                return -ENOMEM;
        k = snapshot_memory_buffer_init(r->file, &r->buffer);
        if (k >= 0)
                k = snapshot_memory_buffer_init(r->file, &r->reader_buffer);
        return k < 0 ? k : register_all(r);
}

int restore_memory_new(int uffd, const GuestMemory *memory, const SnapshotMemory *file, void (*done)(int error, void *userdata), void *userdata, RestoreMemory **ret) {
        _cleanup_(restore_memory_freep) RestoreMemory *r = calloc(1, sizeof(RestoreMemory));
        int k;

        if (!r) {
                (void) safe_close(uffd);
                return -ENOMEM;
        }
        *r = (RestoreMemory) {
                .uffd = uffd, .stop_fd = -EBADF, .begin_fd = -EBADF, .finished_fd = -EBADF, .peers_fd = -EBADF,
                .memory = memory, .file = file, .done = done, .userdata = userdata, .begin_usec = now_usec(), .turn = PTHREAD_MUTEX_INITIALIZER,
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
        while (r->ending) {
                RestorePeer *p = r->ending;

                r->ending = p->next;
                close_peer(p);
        }
        (void) safe_close(r->uffd);
        (void) safe_close(r->stop_fd);
        (void) safe_close(r->begin_fd);
        (void) safe_close(r->finished_fd);
        (void) safe_close(r->peers_fd);
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
        *ret = r->statistics_told;
}
