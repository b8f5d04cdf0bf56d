/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Memory that comes from a file when it is touched. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "restore-memory.h"
#include "userfault.h"

#define SIZE MIB(8)
#define PAGE KIB(4)
#define N_PAGES (SIZE / PAGE)
#define HIGH GIB(4)

typedef struct Rig {
        GuestMemory memory;
        int file, fd, done_fd;
        int error;
        SnapshotMemory *source; /* of `file` */
        bool compressed;
        RestoreMemory *restore;
} Rig;

/* What a page begins with; every third is a hole. */
static uint64_t word_of(uint64_t page) {
        return page % 3 == 2 ? 0 : page * 0x10001 + 7;
}

static int open_uffd(void) {
        _cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        int fd = userfault_new(device);

        return fd < 0 && device >= 0 ? userfault_new(-EBADF) : fd;
}

static void on_done(int error, void *userdata) {
        Rig *rig = userdata;

        rig->error = error;
        assert_int_equal(eventfd_write(rig->done_fd, 1), 0);
}

static void wait_until_done(Rig *rig) {
        uint64_t count;

        assert_int_equal(read(rig->done_fd, &count, sizeof(count)), sizeof(count));
}

/* Two regions of one file, as a machine of more than 3 GiB has. */
static void rig_make(Rig *rig) {
        *rig = (Rig) { .done_fd = eventfd(0, EFD_CLOEXEC) };
        rig->file = memfd_create("file", MFD_CLOEXEC);
        assert_true(rig->file >= 0);
        assert_int_equal(ftruncate(rig->file, SIZE), 0);
        for (uint64_t i = 0; i < N_PAGES; i++) {
                uint64_t word = word_of(i);

                if (word != 0)
                        assert_int_equal(pwrite(rig->file, &word, sizeof(word), (off_t) (i * PAGE)), sizeof(word));
        }
        rig->fd = guest_memory_create_fd(SIZE, 0);
        assert_true(rig->fd >= 0);
        assert_int_equal(guest_memory_add(&rig->memory, fcntl(rig->fd, F_DUPFD_CLOEXEC, 3), 0, 0, SIZE / 2, 0), 0);
        assert_int_equal(guest_memory_add(&rig->memory, fcntl(rig->fd, F_DUPFD_CLOEXEC, 3), SIZE / 2, HIGH, SIZE / 2, 0), 0);
}

/* The same in a file that is compressed. */
static void rig_compress(Rig *rig) {
        SnapshotMemoryWriter *w;
        int file = memfd_create("compressed", MFD_CLOEXEC);
        uint8_t page[PAGE];

        assert_true(file >= 0);
        assert_int_equal(snapshot_memory_writer_new(file, SIZE, true, &w), 0);
        for (uint64_t i = 0; i < N_PAGES; i++) {
                assert_int_equal(pread_full(rig->file, page, sizeof(page), i * PAGE), 0);
                if (word_of(i) != 0 || i % 2)
                        assert_int_equal(snapshot_memory_write(w, page, sizeof(page), i * PAGE), 0);
        }
        assert_int_equal(snapshot_memory_writer_finish(w), 0);
        assert_true(snapshot_memory_stored(w) < snapshot_memory_bytes(w) / 10);
        (void) snapshot_memory_writer_free(w);
        (void) close(rig->file);
        rig->file = file;
        rig->compressed = true;
}

static void rig_open(Rig *rig) {
        _cleanup_free_ char *message = NULL;

        if (snapshot_memory_open(rig->file, SIZE, rig->compressed, &rig->source, &message) < 0)
                fail_msg("%s", message);
}

static void rig_begin(Rig *rig) {
        int uffd = open_uffd();

        assert_true(uffd >= 0);
        rig_open(rig);
        assert_int_equal(restore_memory_new(uffd, &rig->memory, rig->source, on_done, rig, &rig->restore), 0);
}

static void rig_done(Rig *rig) {
        rig->restore = restore_memory_free(rig->restore);
        rig->source = snapshot_memory_free(rig->source);
        guest_memory_done(&rig->memory);
        (void) close(rig->file);
        (void) close(rig->fd);
        (void) close(rig->done_fd);
}

static volatile uint64_t *page_at(const Rig *rig, uint64_t page) {
        const GuestRegion *region = &rig->memory.regions[page >= N_PAGES / 2];

        return (volatile uint64_t *) (region->host + (page * PAGE - region->fd_offset));
}

/* How many pages the memory has by now. */
static uint64_t pages_there(const Rig *rig) {
        uint64_t n = 0, offset = 0;

        for (;;) {
                off_t data = lseek(rig->fd, (off_t) offset, SEEK_DATA), hole;

                if (data < 0)
                        return n;
                hole = lseek(rig->fd, data, SEEK_HOLE);
                assert_true(hole > data);
                n += (uint64_t) (hole - data) / PAGE;
                offset = (uint64_t) hole;
        }
}

/* Of files: plain, and compressed where this build can. */
static unsigned n_kinds(void) {
        return snapshot_memory_can_compress() ? 2 : 1;
}

static void a_page_comes_when_it_is_touched_and_no_other(void **state) {
        static const uint64_t pages[] = { 0, 7, 2, N_PAGES / 2 - 1, N_PAGES / 2, N_PAGES - 1, N_PAGES - 2 };
        RestoreMemoryStatistics statistics;
        Rig rig;

        for (unsigned compressed = 0; compressed < n_kinds(); compressed++) {
                rig_make(&rig);
                if (compressed)
                        rig_compress(&rig);
                rig_begin(&rig);
                assert_int_equal(pages_there(&rig), 0);
                for (size_t i = 0; i < ELEMENTSOF(pages); i++) {
                        assert_int_equal(*page_at(&rig, pages[i]), word_of(pages[i]));
                        assert_int_equal(pages_there(&rig), i + 1);
                }
                restore_memory_begin(rig.restore);
                wait_until_done(&rig);
                assert_int_equal(rig.error, 0);
                restore_memory_statistics(rig.restore, &statistics);
                assert_int_equal(statistics.faults, ELEMENTSOF(pages));
                rig_done(&rig);
        }
}

static void all_of_them_come_and_holes_stay_holes(void **state) {
        uint64_t n = 0;
        Rig rig;

        for (uint64_t i = 0; i < N_PAGES; i++)
                n += word_of(i) != 0;
        for (unsigned compressed = 0; compressed < n_kinds(); compressed++) {
                rig_make(&rig);
                if (compressed)
                        rig_compress(&rig);
                rig_begin(&rig);
                restore_memory_begin(rig.restore);
                wait_until_done(&rig);
                assert_int_equal(rig.error, 0);
                assert_int_equal(pages_there(&rig), n);
                for (uint64_t i = 0; i < N_PAGES; i++)
                        assert_int_equal(*page_at(&rig, i), word_of(i));
                rig_done(&rig);
        }
}

/* A byte of a frame: who waits for the page is told nothing, and who started it which piece it was. */
static void a_chunk_that_is_damaged_is_named(void **state) {
        uint8_t frames[64];
        off_t end;
        Rig rig;

        if (!snapshot_memory_can_compress())
                skip();
        rig_make(&rig);
        rig_compress(&rig);
        end = lseek(rig.file, 0, SEEK_END);
        assert_int_equal(pread(rig.file, frames, sizeof(frames), end - 64), 64);
        frames[40] ^= 0x10;
        assert_int_equal(pwrite(rig.file, frames, sizeof(frames), end - 64), 64);
        rig_begin(&rig);
        restore_memory_begin(rig.restore);
        wait_until_done(&rig);
        assert_int_equal(rig.error, -EBADMSG);
        assert_non_null(restore_memory_message(rig.restore));
        if (!strstr(restore_memory_message(rig.restore), "Chunk 127 of the file 'memory', the 64 KiB of the guest's memory at 0x7f0000, is damaged"))
                fail_msg("%s", restore_memory_message(rig.restore));
        rig_done(&rig);
}

typedef struct Writer {
        Rig *rig;
        pthread_t thread;
        unsigned index;
} Writer;

/* Writes to every page, in an order of its own. */
static void *writer_thread(void *userdata) {
        Writer *w = userdata;

        for (uint64_t i = 0; i < N_PAGES; i++) {
                uint64_t page = (i * 577 + w->index * 101) % N_PAGES;

                page_at(w->rig, page)[1 + w->index] = page + 1;
        }
        return NULL;
}

static void write_meanwhile(bool compressed) {
        Writer writers[3];
        Rig rig;

        rig_make(&rig);
        if (compressed)
                rig_compress(&rig);
        rig_begin(&rig);
        for (unsigned i = 0; i < ELEMENTSOF(writers); i++) {
                writers[i] = (Writer) { .rig = &rig, .index = i };
                assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_thread, &writers[i]), 0);
        }
        restore_memory_begin(rig.restore);
        for (unsigned i = 0; i < ELEMENTSOF(writers); i++)
                assert_int_equal(pthread_join(writers[i].thread, NULL), 0);
        wait_until_done(&rig);
        assert_int_equal(rig.error, 0);
        for (uint64_t i = 0; i < N_PAGES; i++) {
                assert_int_equal(*page_at(&rig, i), word_of(i));
                for (unsigned k = 0; k < ELEMENTSOF(writers); k++)
                        assert_int_equal(page_at(&rig, i)[1 + k], i + 1);
        }
        rig_done(&rig);
}

static void what_the_guest_wrote_meanwhile_stands(void **state) {
        for (unsigned compressed = 0; compressed < n_kinds(); compressed++)
                write_meanwhile(compressed);
}

/* A process with a userfaultfd of its own looks at everything, in an order of its own, when it is told to; and ends well where it was as it should be. */
static _noreturn_ void be_peer(const Rig *rig, int socket, unsigned index) {
        _cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        int uffd = userfault_new(device);
        uint8_t byte = 0;

        for (size_t i = 0; i < rig->memory.n_regions; i++)
                if (uffd < 0 || userfault_register(uffd, rig->memory.regions[i].host, rig->memory.regions[i].size) < 0)
                        _exit(2);
        if (send_with_fds(socket, &byte, 1, &uffd, 1) != 1 || read(socket, &byte, 1) != 1)
                _exit(3);
        for (uint64_t i = 0; i < N_PAGES; i++) {
                uint64_t page = (i * 577 + index * 11) % N_PAGES;

                if (*page_at(rig, page) != word_of(page))
                        _exit(4);
        }
        _exit(0);
}

typedef struct Peer {
        pid_t pid;
        int socket;
        RestorePeer *peer;
} Peer;

static void peer_new(Peer *p, Rig *rig, unsigned index) {
        uint64_t bases[] = { (uint64_t) (uintptr_t) rig->memory.regions[0].host, (uint64_t) (uintptr_t) rig->memory.regions[1].host };
        int pair[2], leash[2], uffd = -EBADF;
        size_t n = 1;
        uint8_t byte;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, leash), 0);
        p->pid = fork();
        assert_true(p->pid >= 0);
        if (p->pid == 0)
                be_peer(rig, pair[1], index);
        (void) close(pair[1]);
        (void) close(leash[1]);
        p->socket = pair[0];
        assert_int_equal(recv_with_fds(p->socket, &byte, 1, &uffd, &n, 0), 1);
        assert_true(n == 1 && uffd >= 0);
        assert_int_equal(restore_peer_new(rig->restore, uffd, leash[0], &p->peer), 0);
        restore_peer_map(p->peer, &rig->memory, bases);
}

/* All of them for each of the same pages, and none sees a hole: not even where it is one that stays, nor after all was read. */
static void other_processes_wait_for_the_same_pages(void **state) {
        Peer peers[4];
        int status;
        Rig rig;

        for (unsigned after = 0; after < 2; after++) {
                rig_make(&rig);
                rig_begin(&rig);
                for (unsigned i = 0; i < ELEMENTSOF(peers); i++)
                        peer_new(&peers[i], &rig, i);
                if (after) {
                        restore_memory_begin(rig.restore);
                        wait_until_done(&rig);
                }
                for (unsigned i = 0; i < ELEMENTSOF(peers); i++)
                        assert_int_equal(write(peers[i].socket, "", 1), 1);
                restore_memory_begin(rig.restore);
                for (uint64_t i = 0; i < N_PAGES; i++)
                        assert_int_equal(*page_at(&rig, i), word_of(i));
                for (unsigned i = 0; i < ELEMENTSOF(peers); i++) {
                        assert_int_equal(waitpid(peers[i].pid, &status, 0), peers[i].pid);
                        assert_int_equal(status, 0);
                }
                if (!after)
                        wait_until_done(&rig);
                assert_int_equal(rig.error, 0);
                for (unsigned i = 0; i < ELEMENTSOF(peers); i++) {
                        (void) restore_peer_free(peers[i].peer);
                        (void) close(peers[i].socket);
                }
                rig_done(&rig);
        }
}

static void who_has_no_userfaultfd_is_no_peer(void **state) {
        RestorePeer *peer;
        Rig rig;

        rig_make(&rig);
        rig_begin(&rig);
        assert_int_equal(restore_peer_new(rig.restore, eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC), &peer), -ENOTTY);
        rig_done(&rig);
}

static void it_can_be_ended_anywhere(void **state) {
        Rig rig;

        for (unsigned i = 0; i < 20; i++) {
                rig_make(&rig);
                rig_begin(&rig);
                if (i % 2)
                        restore_memory_begin(rig.restore);
                assert_int_equal(*page_at(&rig, i), word_of(i));
                rig.restore = restore_memory_free(rig.restore);
                *page_at(&rig, 2) = 5; /* a hole again, and nobody to ask */
                rig_done(&rig);
        }
}

static void a_file_that_ends_early_is_an_error(void **state) {
        Rig rig;

        rig_make(&rig);
        rig_begin(&rig);
        assert_int_equal(ftruncate(rig.file, SIZE / 2 + 100), 0);
        restore_memory_begin(rig.restore);
        wait_until_done(&rig);
        assert_int_equal(rig.error, -ENODATA);
        rig_done(&rig);
}

static void *touch_last(void *userdata) {
        return (void *) (uintptr_t) (*page_at(userdata, N_PAGES - 2) + 1);
}

/* Where it cannot come nobody waits for it: that could be ended by nothing. */
static void a_page_that_cannot_come_is_not_waited_for(void **state) {
        pthread_t thread;
        void *result;
        Rig rig;

        rig_make(&rig);
        rig_begin(&rig);
        assert_int_equal(ftruncate(rig.file, SIZE - 2 * PAGE + 100), 0);
        assert_int_equal(pthread_create(&thread, NULL, touch_last, &rig), 0);
        wait_until_done(&rig);
        assert_int_equal(rig.error, -ENODATA);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_int_equal((uintptr_t) result, 1);
        rig_done(&rig);
}

static void count_progress(void *userdata) {
        ++*(unsigned *) userdata;
}

static void it_can_be_read_at_once(void **state) {
        _cleanup_free_ char *message = NULL;
        unsigned progress = 0;
        Rig rig;

        rig_make(&rig);
        rig_open(&rig);
        assert_int_equal(restore_memory_read(&rig.memory, rig.source, count_progress, &progress, &message), 0);
        assert_true(progress > 0);
        for (uint64_t i = 0; i < N_PAGES; i++)
                assert_int_equal(*page_at(&rig, i), word_of(i));
        assert_int_equal(ftruncate(rig.file, SIZE / 2 + 100), 0);
        assert_int_equal(restore_memory_read(&rig.memory, rig.source, NULL, NULL, &message), -ENODATA);
        assert_non_null(strstr(message, "memory"));
        rig_done(&rig);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_page_comes_when_it_is_touched_and_no_other),
                cmocka_unit_test(all_of_them_come_and_holes_stay_holes),
                cmocka_unit_test(a_chunk_that_is_damaged_is_named),
                cmocka_unit_test(what_the_guest_wrote_meanwhile_stands),
                cmocka_unit_test(other_processes_wait_for_the_same_pages),
                cmocka_unit_test(who_has_no_userfaultfd_is_no_peer),
                cmocka_unit_test(it_can_be_ended_anywhere),
                cmocka_unit_test(a_file_that_ends_early_is_an_error),
                cmocka_unit_test(a_page_that_cannot_come_is_not_waited_for),
                cmocka_unit_test(it_can_be_read_at_once),
        };
        int uffd = open_uffd();

        if (uffd < 0)
                return 77;
        (void) close(uffd);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
