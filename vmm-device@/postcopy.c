/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>

#include "postcopy.h"
#include "session-keep.h"
#include "userfault.h"

/* Without the leash there would be waiting that nothing ends. */
static int put_on_leash(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || signal(SIGIO, SIG_DFL) == SIG_ERR || fcntl(fd, F_SETOWN, getpid()) < 0 || fcntl(fd, F_SETFL, flags | O_ASYNC | O_NONBLOCK) < 0)
                return -errno;
        /* What came before we listened for it. */
        return poll(&p, 1, 0) != 0 ? -ECONNRESET : 0;
}

int postcopy_advise(Session *s, int *fds, int *ret) {
        Postcopy *p = &s->postcopy;
        _cleanup_close_ int uffd = -EBADF;
        int r;

        uffd = userfault_new(fds[0]);
        if (uffd < 0)
                return log_warning_errno(uffd, "Cannot make a userfaultfd; this device waits until all of the guest's memory is there: %m");
        r = put_on_leash(fds[1]);
        if (r < 0)
                return log_warning_errno(r, "Cannot watch who has the guest's memory come: %m");
        p->leash = TAKE_FD(fds[1]);
        p->uffd = TAKE_FD(uffd);
        *ret = p->uffd;
        return 0;
}

int postcopy_listen(Session *s) {
        if (s->postcopy.uffd < 0 || s->postcopy.listening)
                return -EPROTO;
        rings_withdraw_all(s);
        guest_memory_done(&s->memory);
        session_keep_memory(s);
        s->postcopy.listening = true;
        return 0;
}

/* The pages of a file of a file system are there already; of a memfd they are when somebody has put them. */
static bool is_memfd(int fd) {
        return fcntl(fd, F_GET_SEALS) >= 0;
}

static int watch(const Postcopy *p, const GuestRegion *region) {
        uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);

        if (!is_memfd(region->fd))
                return 0;
        /* Who makes one huge page of many fills up what is not there yet, with zeroes, which would stand. */
        (void) madvise(region->mapping, region->mapping_size, MADV_NOHUGEPAGE);
        return userfault_register(p->uffd, region->mapping, ALIGN_UP(region->mapping_size, page));
}

static const GuestRegion *find_region(const GuestMemory *memory, const VhostUserMemoryRegion *told) {
        for (size_t i = 0; i < memory->n_regions; i++)
                if (memory->regions[i].guest_address == told->guest_phys_addr)
                        return &memory->regions[i];
        return NULL;
}

int postcopy_map(Session *s, VhostUserMsg *msg) {
        int r = 0;

        for (size_t i = 0; i < s->memory.n_regions && r >= 0; i++)
                r = watch(&s->postcopy, &s->memory.regions[i]);
        for (uint32_t i = 0; i < msg->payload.memory.nregions && r >= 0; i++) {
                VhostUserMemoryRegion told = msg->payload.memory.regions[i];
                const GuestRegion *region = find_region(&s->memory, &told);

                assert(region);
                told.userspace_addr = (uint64_t) (uintptr_t) region->host;
                msg->payload.memory.regions[i] = told;
        }
        if (r >= 0)
                s->postcopy.unanswered = true;
        return r;
}

int postcopy_end(Session *s) {
        Postcopy *p = &s->postcopy;
        uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);
        bool listening = p->listening;

        if (p->uffd < 0)
                return -EPROTO;
        for (size_t i = 0; i < s->memory.n_regions && listening; i++) {
                const GuestRegion *region = &s->memory.regions[i];

                if (is_memfd(region->fd))
                        userfault_unregister(p->uffd, region->mapping, ALIGN_UP(region->mapping_size, page));
        }
        postcopy_done(p);
        /* Huge pages are welcome again. */
        return listening ? guest_memory_map_again(&s->memory) : 0;
}

void postcopy_done(Postcopy *p) {
        p->leash = safe_close(p->leash);
        p->uffd = safe_close(p->uffd);
        p->listening = p->unanswered = false;
}
