/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Helpers at work on memory that is not there yet, by the real programs with their seccomp policies: every page that they miss is asked for, also where it
 * is the kernel that misses it for them; what makes no sense is refused; and whoever is left alone in it ends without having written a byte. */

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../unit/skip.h"
#include "front-end.h"
#include "manager.h"
#include "userfault.h"

#define PAGE KIB(4)
#define N_PAGES (FE_RAM_SIZE / PAGE)
#define IMAGE_SIZE MIB(1)
#define UNTOUCHED 0xcc
#define FEATURE (UINT64_C(1) << VHOST_USER_PROTOCOL_F_VMM_PAGEFAULT)

static char image[] = "/var/tmp/vmm-test-postcopy-XXXXXX"; /* O_DIRECT may not work on a tmpfs */
static char path_argument[64];
static int image_fd = -EBADF;
static const char *const rng[] = { "rng", NULL };

/* --- who has the pages --- */

typedef struct Pager {
        FrontEnd *f;
        uint8_t *source;
        int device, uffd, leash, stop_fd;
        uint64_t base; /* where the helper has its memory */
        pthread_t thread;
        bool serving;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool there[N_PAGES], asked[N_PAGES], withheld[N_PAGES];
} Pager;

/* With the lock held. */
static void put(Pager *p, uint64_t page) {
        if (p->there[page])
                return;
        assert_int_equal(pwrite(p->f->ram_fd, p->source + page * PAGE, PAGE, (off_t) (page * PAGE)), PAGE);
        p->there[page] = true;
}

static void answer(Pager *p, uint64_t address) {
        uint64_t page = (address - p->base) / PAGE;

        assert_true(address >= p->base && page < N_PAGES);
        (void) pthread_mutex_lock(&p->lock);
        p->asked[page] = true;
        (void) pthread_cond_broadcast(&p->changed);
        if (!p->withheld[page]) {
                put(p, page);
                assert_int_equal(userfault_wake(p->uffd, ALIGN_DOWN(address, PAGE), PAGE), 0);
        }
        (void) pthread_mutex_unlock(&p->lock);
}

static void *pager_thread(void *userdata) {
        Pager *p = userdata;

        for (;;) {
                struct pollfd polled[] = { { .fd = p->stop_fd, .events = POLLIN }, { .fd = p->uffd, .events = POLLIN } };
                struct uffd_msg msg;

                assert_true(poll(polled, 2, -1) > 0);
                if (polled[0].revents)
                        return NULL;
                if (read(p->uffd, &msg, sizeof(msg)) == sizeof(msg)) {
                        assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
                        answer(p, msg.arg.pagefault.address);
                }
        }
}

/* The driver looks at what is there, and puts it there first. */
static void look(Pager *p, const void *at, size_t length) {
        uint64_t offset = (uint64_t) ((const uint8_t *) at - p->f->ram);

        (void) pthread_mutex_lock(&p->lock);
        for (uint64_t page = offset / PAGE; page <= (offset + length - 1) / PAGE; page++)
                put(p, page);
        (void) pthread_mutex_unlock(&p->lock);
}

static void withhold(Pager *p, uint64_t offset) {
        p->withheld[offset / PAGE] = true;
}

/* Waits until the helper has asked for that page. */
static void expect_asked(Pager *p, uint64_t offset) {
        struct timespec until;

        (void) clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += fe_patience / 1000;
        (void) pthread_mutex_lock(&p->lock);
        while (!p->asked[offset / PAGE])
                assert_int_equal(pthread_cond_timedwait(&p->changed, &p->lock, &until), 0);
        (void) pthread_mutex_unlock(&p->lock);
}

static bool was_asked(Pager *p, uint64_t offset) {
        bool asked;

        (void) pthread_mutex_lock(&p->lock);
        asked = p->asked[offset / PAGE];
        (void) pthread_mutex_unlock(&p->lock);
        return asked;
}

static int have_device(void) {
        int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), uffd = fd >= 0 ? userfault_new(fd) : -EBADF;

        (void) safe_close(uffd);
        return uffd >= 0 ? fd : -EBADF;
}

/* Sends POSTCOPY_ADVISE with `device` and an end of a pair of sockets; *ret_leash is the other one. The userfaultfd, or -EBADF. */
static int advise(FrontEnd *f, int device, int *ret_leash) {
        int pair[2], fd = -EBADF;
        size_t n = 1;
        VhostUserMsg msg;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        fe_send(f, VHOST_USER_POSTCOPY_ADVISE, NULL, 0, (const int[]) { device, pair[1] }, 2);
        (void) close(pair[1]);
        *ret_leash = pair[0];
        assert_int_equal(vhost_user_recv(f->fd, &msg, &fd, &n), 0);
        assert_int_equal(msg.header.request, VHOST_USER_POSTCOPY_ADVISE);
        assert_int_equal(msg.header.size, 0);
        return n > 0 ? fd : -EBADF;
}

static uint64_t listen_to(FrontEnd *f) {
        return fe_acknowledged(f, VHOST_USER_POSTCOPY_LISTEN, NULL, 0, NULL, 0);
}

static const VhostUserMemory whole_memory = { .nregions = 1, .regions = { { FE_GUEST_BASE, FE_RAM_SIZE, FE_USER_BASE, 0 } } };

/* The helper's answer is where it has it. */
static uint64_t give_memory(FrontEnd *f) {
        VhostUserMsg msg;

        fe_send(f, VHOST_USER_SET_MEM_TABLE, &whole_memory, offsetof(VhostUserMemory, regions[1]), &f->ram_fd, 1);
        assert_int_equal(vhost_user_recv(f->fd, &msg, NULL, NULL), 0);
        assert_int_equal(msg.header.request, VHOST_USER_SET_MEM_TABLE);
        assert_int_equal(msg.header.size, offsetof(VhostUserMemory, regions[1]));
        assert_int_equal(msg.payload.memory.nregions, 1);
        assert_int_equal(msg.payload.memory.regions[0].guest_phys_addr, FE_GUEST_BASE);
        return msg.payload.memory.regions[0].userspace_addr;
}

static void acknowledge_memory(FrontEnd *f) {
        fe_set_u64(f, VHOST_USER_SET_MEM_TABLE, 0);
}

/* Takes all memory away that is there, and has the helper ask for it. */
static void pager_begin(Pager *p, FrontEnd *f) {
        *p = (Pager) { .f = f, .source = malloc(FE_RAM_SIZE), .device = have_device(), .stop_fd = eventfd(0, EFD_CLOEXEC),
                       .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
        assert_non_null(p->source);
        memcpy(p->source, f->ram, FE_RAM_SIZE);
        assert_int_equal(fallocate(f->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, FE_RAM_SIZE), 0);
        p->uffd = advise(f, p->device, &p->leash);
        assert_true(p->uffd >= 0);
        assert_int_equal(listen_to(f), 0);
        p->base = give_memory(f);
        assert_int_equal(pthread_create(&p->thread, NULL, pager_thread, p), 0);
        p->serving = true;
        acknowledge_memory(f);
}

static void pager_stop(Pager *p) {
        if (!p->serving)
                return;
        assert_int_equal(eventfd_write(p->stop_fd, 1), 0);
        assert_int_equal(pthread_join(p->thread, NULL), 0);
        p->serving = false;
}

/* What is left is put there, and the helper told. */
static void pager_end(Pager *p) {
        (void) pthread_mutex_lock(&p->lock);
        for (uint64_t i = 0; i < N_PAGES; i++)
                put(p, i);
        (void) pthread_mutex_unlock(&p->lock);
        assert_int_equal(fe_get_u64(p->f, VHOST_USER_POSTCOPY_END), 0);
}

static void pager_free(Pager *p) {
        pager_stop(p);
        (void) safe_close(p->uffd);
        (void) safe_close(p->leash);
        (void) safe_close(p->device);
        (void) close(p->stop_fd);
        free(p->source);
}

static uint64_t offset_in(const Pager *p, const void *at) {
        return (uint64_t) ((const uint8_t *) at - p->f->ram);
}

static struct vring_used_elem wait_used(Pager *p, unsigned queue) {
        FrontEndQueue *q = &p->f->queues[queue];

        look(p, q->avail, PAGE);
        look(p, q->used, PAGE);
        return fe_wait(p->f, queue);
}

static void spawn(FrontEnd *f, const char *const *arguments) {
        fe_spawn(f, arguments);
        fe_negotiate(f, 0);
        assert_true(f->protocol_features & FEATURE);
}

/* Ended by a signal, or where that is 0 by itself and well. */
static void expect_end(FrontEnd *f, int number) {
        int status;

        assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
        if (number == 0 ? !WIFEXITED(status) || WEXITSTATUS(status) != 0 : !WIFSIGNALED(status) || WTERMSIG(status) != number)
                fail_msg("it ended with status %#x", (unsigned) status);
        fe_disconnect(f);
}

/* --- the disk --- */

static void clear_image(void) {
        static uint8_t data[IMAGE_SIZE];

        memset(data, UNTOUCHED, sizeof(data));
        assert_int_equal(pwrite(image_fd, data, sizeof(data), 0), sizeof(data));
}

static bool image_is_untouched(void) {
        static uint8_t data[IMAGE_SIZE];

        assert_int_equal(pread(image_fd, data, sizeof(data), 0), sizeof(data));
        for (size_t i = 0; i < sizeof(data); i++)
                if (data[i] != UNTOUCHED)
                        return false;
        return true;
}

#define HEADER (FE_BUFFERS - KIB(64))
#define STATUS (FE_BUFFERS - KIB(32))

/* Header, data and status in pages of their own; `i` is the request's number. */
static void offer_disk(FrontEnd *f, uint16_t i, uint32_t type, uint64_t sector, uint64_t data, uint32_t length) {
        struct virtio_blk_outhdr header = { .type = type, .sector = sector };

        memcpy(f->ram + HEADER + i * 64, &header, sizeof(header));
        f->ram[STATUS + i] = 0xee;
        fe_desc(f, 0, (uint16_t) (3 * i), FE_ADDRESS(HEADER + i * 64), sizeof(header), VRING_DESC_F_NEXT, (uint16_t) (3 * i + 1));
        fe_desc(f, 0, (uint16_t) (3 * i + 1), FE_ADDRESS(data), length, (uint16_t) (VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0)),
                (uint16_t) (3 * i + 2));
        fe_desc(f, 0, (uint16_t) (3 * i + 2), FE_ADDRESS(STATUS + i), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, (uint16_t) (3 * i));
}

static void fill(uint8_t *at, size_t length, uint8_t seed) {
        for (size_t i = 0; i < length; i++)
                at[i] = (uint8_t) (seed + i / 512 + i % 251);
}

static void disk_up(FrontEnd *f, const char *option) {
        clear_image();
        spawn(f, (const char *const[]) { "block", path_argument, option, NULL });
        fe_lay_out_queue(f, 0, 64);
}

static void try_disk(const char *option) {
        static uint8_t is[KIB(64)], should[KIB(64)];
        FrontEnd f;
        Pager p;

        disk_up(&f, option);
        fill(should, sizeof(should), 7);
        memcpy(f.ram + FE_BUFFERS, should, sizeof(should));
        offer_disk(&f, 0, VIRTIO_BLK_T_OUT, 0, FE_BUFFERS, sizeof(should));
        pager_begin(&p, &f);
        fe_send_queue(&f, 0, 0);
        expect_asked(&p, offset_in(&p, f.queues[0].avail));
        expect_asked(&p, offset_in(&p, f.queues[0].desc));
        assert_int_equal(wait_used(&p, 0).id, 0);
        for (uint64_t at = 0; at < sizeof(should); at += PAGE)
                assert_true(was_asked(&p, FE_BUFFERS + at));
        assert_true(was_asked(&p, HEADER) && was_asked(&p, STATUS));
        assert_false(was_asked(&p, FE_BUFFERS + sizeof(should)));
        assert_int_equal(f.ram[STATUS], VIRTIO_BLK_S_OK);
        assert_int_equal(pread(image_fd, is, sizeof(is), 0), sizeof(is));
        assert_memory_equal(is, should, sizeof(is));

        /* The other way; what was in the pages comes first. */
        look(&p, f.queues[0].desc, PAGE);
        offer_disk(&f, 1, VIRTIO_BLK_T_IN, 0, FE_BUFFERS + MIB(1), sizeof(should));
        fe_kick(&f, 0);
        assert_int_equal(wait_used(&p, 0).id, 3);
        assert_int_equal(f.ram[STATUS + 1], VIRTIO_BLK_S_OK);
        assert_true(was_asked(&p, FE_BUFFERS + MIB(1)));
        assert_memory_equal(f.ram + FE_BUFFERS + MIB(1), should, sizeof(should));

        pager_end(&p);
        pager_stop(&p);
        fill(f.ram + FE_BUFFERS + MIB(2), KIB(4), 99);
        offer_disk(&f, 2, VIRTIO_BLK_T_OUT, 256, FE_BUFFERS + MIB(2), KIB(4));
        fe_kick(&f, 0);
        assert_int_equal(fe_wait(&f, 0).id, 6);
        assert_int_equal(pread(image_fd, is, KIB(4), 256 * 512), KIB(4));
        assert_memory_equal(is, f.ram + FE_BUFFERS + MIB(2), KIB(4));
        p.leash = safe_close(p.leash); /* which ends nobody any more */
        assert_int_equal(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM), 1);
        fe_end(&f);
        pager_free(&p);
}

static void a_disk_by_io_uring(void **state) {
        try_disk("--direct=yes");
}

static void a_disk_by_the_page_cache(void **state) {
        try_disk("--direct=no");
}

/* --- others --- */

static void random_numbers(void **state) {
        static const uint8_t zeroes[64];
        FrontEnd f;
        Pager p;

        spawn(&f, rng);
        fe_lay_out_queue(&f, 0, 8);
        memset(f.ram + FE_BUFFERS, 0xaa, PAGE);
        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS + 64), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 0);
        pager_begin(&p, &f);
        fe_send_queue(&f, 0, 0);
        assert_int_equal(wait_used(&p, 0).len, 64);
        assert_true(was_asked(&p, FE_BUFFERS));
        assert_int_equal(f.ram[FE_BUFFERS + 63], 0xaa);
        assert_int_equal(f.ram[FE_BUFFERS + 128], 0xaa);
        assert_memory_not_equal(f.ram + FE_BUFFERS + 64, zeroes, 64);
        pager_end(&p);
        fe_end(&f);
        pager_free(&p);
}

static void a_console(void **state) {
        char path[] = "/tmp/test-postcopy-XXXXXX", option[64], text[64] = "";
        int fd = mkostemp(path, O_CLOEXEC);
        FrontEnd f;
        Pager p;

        assert_return_code(fd, errno);
        (void) snprintf(option, sizeof(option), "--log=%s", path);
        spawn(&f, (const char *const[]) { "console", option, NULL });
        fe_lay_out_queue(&f, 0, 8);
        fe_lay_out_queue(&f, 1, 8);
        memcpy(f.ram + FE_BUFFERS, "from afar\n", 10);
        fe_desc(&f, 1, 0, FE_ADDRESS(FE_BUFFERS), 10, 0, 0);
        fe_offer(&f, 1, 0);
        pager_begin(&p, &f);
        fe_send_queue(&f, 0, 0);
        fe_send_queue(&f, 1, 0);
        assert_int_equal(wait_used(&p, 1).id, 0);
        assert_true(was_asked(&p, FE_BUFFERS));
        pager_end(&p);
        fe_end(&f);
        pager_free(&p);
        assert_true(pread(fd, text, sizeof(text) - 1, 0) >= 10);
        if (!strstr(text, "from afar"))
                fail_msg("'%s'", text);
        (void) unlink(path);
        (void) close(fd);
}

/* The host sends nothing on its own. */
static void without_ipv6(void) {
        int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);

        if (fd < 0)
                return;
        assert_int_equal(write(fd, "1", 1), 1);
        (void) close(fd);
}

static int make_tap(const char *name) {
        _cleanup_close_ int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC), s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = __builtin_bswap16(ETH_P_ALL) };
        struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
        _cleanup_close_ int host = -EBADF;

        (void) snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
        if (tun < 0 || ioctl(tun, TUNSETIFF, &r) < 0 || ioctl(tun, TUNSETPERSIST, 1UL) < 0)
                return -errno;
        r.ifr_flags = IFF_UP;
        if (ioctl(s, SIOCSIFFLAGS, &r) < 0 || ioctl(s, SIOCGIFINDEX, &r) < 0)
                return -errno;
        host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, address.sll_protocol);
        address.sll_ifindex = r.ifr_ifindex;
        if (host < 0 || bind(host, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(host);
}

#define FRAME 1000
#define TYPE 0x1234

static void make_frame(uint8_t frame[static FRAME], uint8_t seed) {
        fill(frame, FRAME, seed);
        memset(frame, 0xff, 6);
        memcpy(frame + 6, "\x52\x54\x00\x12\x34\x56\x12\x34", 8);
}

/* The host's own packets are no concern of ours. */
static void expect_frame(int host, const uint8_t frame[static FRAME]) {
        for (;;) {
                struct pollfd polled = { .fd = host, .events = POLLIN };
                uint8_t is[2048];
                ssize_t n;

                assert_int_equal(poll(&polled, 1, fe_patience), 1);
                n = read(host, is, sizeof(is));
                if (n < 14 || is[12] != TYPE >> 8 || is[13] != (TYPE & 0xff))
                        continue;
                assert_int_equal(n, FRAME);
                assert_memory_equal(is, frame, FRAME);
                return;
        }
}

static void a_network(void **state) {
        const size_t header = sizeof(struct virtio_net_hdr_v1);
        uint8_t frame[FRAME];
        FrontEnd f;
        Pager p;
        int host;

        if (unshare(CLONE_NEWNET) < 0)
                skip_for_want_of("a network of its own");
        without_ipv6();
        host = make_tap("postcopy");
        if (host < 0)
                skip_for_want_of("a tap");
        spawn(&f, (const char *const[]) { "net", "--interface=postcopy", "--mac=52:54:00:12:34:56", NULL });
        fe_lay_out_queue(&f, 0, 8);
        fe_lay_out_queue(&f, 1, 8);
        make_frame(frame, 3);
        memset(f.ram + FE_BUFFERS, 0, header);
        memcpy(f.ram + FE_BUFFERS + header, frame, FRAME);
        fe_desc(&f, 1, 0, FE_ADDRESS(FE_BUFFERS), (uint32_t) header + FRAME, 0, 0);
        fe_offer(&f, 1, 0);
        /* Small ones: a packet takes several, so that it needs pages of many. */
        for (uint16_t i = 0; i < 8; i++) {
                fe_desc(&f, 0, i, FE_ADDRESS(FE_BUFFERS + MIB(1) + i * PAGE), 256, VRING_DESC_F_WRITE, 0);
                fe_offer(&f, 0, i);
        }
        pager_begin(&p, &f);
        fe_send_queue(&f, 0, 0);
        fe_send_queue(&f, 1, 0);
        assert_int_equal(wait_used(&p, 1).id, 0);
        assert_true(was_asked(&p, FE_BUFFERS));
        expect_frame(host, frame);
        make_frame(frame, 5);
        assert_int_equal(write(host, frame, FRAME), FRAME);
        assert_int_equal(wait_used(&p, 0).id, 0);
        assert_true(was_asked(&p, FE_BUFFERS + MIB(1)));
        assert_memory_equal(f.ram + FE_BUFFERS + MIB(1) + header, frame, 256 - header);
        pager_end(&p);
        fe_end(&f);
        pager_free(&p);
        (void) close(host);
}

/* A balloon takes pages away, which then would come back. */
static void a_balloon_does_not_take_part(void **state) {
        FrontEnd f;

        fe_spawn(&f, (const char *const[]) { "balloon", NULL });
        fe_negotiate(&f, 0);
        assert_false(f.protocol_features & FEATURE);
        fe_end(&f);
}

/* --- what makes no sense --- */

static void refuses_what_comes_in_the_wrong_order(void **state) {
        const VhostUserMemRegMsg one = { .region = whole_memory.regions[0] };
        int device = have_device(), leash, uffd;
        FrontEnd f;

        spawn(&f, rng);
        assert_int_not_equal(listen_to(&f), 0);
        uffd = advise(&f, device, &leash);
        assert_true(uffd >= 0);
        assert_int_equal(listen_to(&f), 0);
        assert_int_not_equal(listen_to(&f), 0);
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_SET_MEM_TABLE, &whole_memory, offsetof(VhostUserMemory, regions[1]), &f.ram_fd, 1), 0);
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_ADD_MEM_REG, &one, sizeof(one), &f.ram_fd, 1), 0);
        assert_int_not_equal(fe_acknowledged(&f, VHOST_USER_REM_MEM_REG, &one, sizeof(one), NULL, 0), 0);
        (void) give_memory(&f);
        /* Instead of taking note of it. */
        fe_send(&f, VHOST_USER_SET_MEM_TABLE, &whole_memory, offsetof(VhostUserMemory, regions[1]), &f.ram_fd, 1);
        fe_expect_hang_up(&f);
        fe_end(&f);
        (void) close(leash);
        (void) close(uffd);
        (void) close(device);
}

static void advise_twice(FrontEnd *f, int device) {
        int pair[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        fe_send(f, VHOST_USER_POSTCOPY_ADVISE, NULL, 0, (const int[]) { device, pair[1] }, 2);
        fe_expect_hang_up(f);
        (void) close(pair[0]);
        (void) close(pair[1]);
}

static void refuses_to_be_advised_twice_and_unasked(void **state) {
        int device = have_device(), leash, uffd;
        FrontEnd f;

        spawn(&f, rng);
        uffd = advise(&f, device, &leash);
        assert_true(uffd >= 0);
        advise_twice(&f, device);
        fe_end(&f);
        (void) close(uffd);
        (void) close(leash);

        fe_spawn(&f, rng);
        fe_negotiate_some(&f, 0, ~FEATURE);
        advise_twice(&f, device);
        fe_end(&f);

        spawn(&f, rng);
        fe_send(&f, VHOST_USER_POSTCOPY_END, NULL, 0, NULL, 0);
        fe_expect_hang_up(&f);
        fe_end(&f);
        (void) close(device);
}

static void says_no_where_it_cannot(void **state) {
        FrontEnd f;
        int leash;

        spawn(&f, rng);
        assert_int_equal(advise(&f, image_fd, &leash), -EBADF);
        (void) close(leash);
        assert_int_not_equal(listen_to(&f), 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        fe_end(&f);
}

/* Rings are there before: nothing is touched until the front-end knows where memory is. */
static void touches_nothing_before_the_front_end_knows(void **state) {
        struct uffd_msg msg;
        FrontEnd f;
        Pager p;

        spawn(&f, rng);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 0);
        fe_kick(&f, 0);
        assert_int_equal(fe_wait(&f, 0).len, 64);
        fe_desc(&f, 0, 1, FE_ADDRESS(FE_BUFFERS + PAGE), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 1);

        p = (Pager) { .f = &f, .source = malloc(FE_RAM_SIZE), .device = have_device(), .stop_fd = eventfd(0, EFD_CLOEXEC),
                      .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
        assert_non_null(p.source);
        p.uffd = advise(&f, p.device, &p.leash);
        assert_int_equal(listen_to(&f), 0);
        memcpy(p.source, f.ram, FE_RAM_SIZE);
        assert_int_equal(fallocate(f.ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, FE_RAM_SIZE), 0);
        fe_kick(&f, 0);
        p.base = give_memory(&f);
        fe_kick(&f, 0);
        for (unsigned i = 0; i < 3; i++)
                (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
        assert_int_equal(read(p.uffd, &msg, sizeof(msg)), -1);
        assert_int_equal(errno, EAGAIN);
        assert_int_equal(pthread_create(&p.thread, NULL, pager_thread, &p), 0);
        p.serving = true;
        acknowledge_memory(&f);
        assert_int_equal(wait_used(&p, 0).id, 1);
        pager_end(&p);
        pager_free(&p);

        /* And once more, from the beginning. */
        pager_begin(&p, &f);
        look(&p, f.queues[0].desc, PAGE);
        look(&p, f.queues[0].avail, PAGE);
        fe_desc(&f, 0, 2, FE_ADDRESS(FE_BUFFERS + 2 * PAGE), 64, VRING_DESC_F_WRITE, 0);
        fe_offer(&f, 0, 2);
        fe_kick(&f, 0);
        assert_int_equal(wait_used(&p, 0).id, 2);
        assert_true(was_asked(&p, FE_BUFFERS + 2 * PAGE));
        pager_end(&p);
        fe_end(&f);
        pager_free(&p);
}

/* --- left alone --- */

/* What the front-end's death is: its connection, its end of the leash and its copy of the descriptor go. */
static void leave(Pager *p) {
        pager_stop(p);
        p->f->fd = safe_close(p->f->fd);
        p->uffd = safe_close(p->uffd);
        p->leash = safe_close(p->leash);
}

static void leave_disk_alone(const char *option) {
        FrontEnd f;
        Pager p;

        disk_up(&f, option);
        fill(f.ram + FE_BUFFERS, KIB(64), 7);
        offer_disk(&f, 0, VIRTIO_BLK_T_OUT, 0, FE_BUFFERS, KIB(64));
        pager_begin(&p, &f);
        withhold(&p, FE_BUFFERS);
        fe_send_queue(&f, 0, 0);
        expect_asked(&p, FE_BUFFERS);
        leave(&p);
        expect_end(&f, SIGIO);
        assert_true(image_is_untouched());
        pager_free(&p);
}

static void a_disk_that_waits_in_the_kernel_ends(void **state) {
        for (unsigned i = 0; i < 10; i++) {
                leave_disk_alone("--direct=yes");
                leave_disk_alone("--direct=no");
        }
}

static void who_waits_in_its_own_code_ends(void **state) {
        FrontEnd f;
        Pager p;

        spawn(&f, rng);
        fe_lay_out_queue(&f, 0, 8);
        pager_begin(&p, &f);
        withhold(&p, offset_in(&p, f.queues[0].avail));
        fe_send_queue(&f, 0, 0);
        expect_asked(&p, offset_in(&p, f.queues[0].avail));
        leave(&p);
        expect_end(&f, SIGIO);
        pager_free(&p);
}

/* Only the connection: what is under way is finished, since pages still come. */
static void who_waits_for_nothing_ends_as_always(void **state) {
        FrontEnd f;
        Pager p;

        disk_up(&f, "--direct=yes");
        fill(f.ram + FE_BUFFERS, KIB(64), 7);
        offer_disk(&f, 0, VIRTIO_BLK_T_OUT, 0, FE_BUFFERS, KIB(64));
        pager_begin(&p, &f);
        fe_send_queue(&f, 0, 0);
        f.fd = safe_close(f.fd);
        expect_end(&f, 0);
        pager_free(&p);
}

static void a_word_on_the_leash_ends_it(void **state) {
        FrontEnd f;
        Pager p;

        spawn(&f, rng);
        pager_begin(&p, &f);
        assert_int_equal(send(p.leash, "", 1, MSG_NOSIGNAL), 1);
        expect_end(&f, SIGIO);
        pager_free(&p);
}

/* A successor would find zeroes: it hangs up. When all is there it goes on as always. */
static void no_successor_takes_it_up_meanwhile(void **state) {
        FrontEnd f;
        Manager m;
        Pager p;

        manager_up(&m, "vhost-user", rng);
        for (unsigned k = 0; k < 2; k++) {
                fe_connect(&f, m.transport_path, m.pid);
                fe_negotiate(&f, 0);
                fe_share_inflight(&f, 1, 8);
                fe_lay_out_queue(&f, 0, 8);
                pager_begin(&p, &f);
                fe_send_queue(&f, 0, 0);
                expect_asked(&p, offset_in(&p, f.queues[0].avail));
                (void) fe_get_u64(&f, VHOST_USER_GET_STATUS);
                if (k == 1) {
                        pager_end(&p);
                        /* Whoever answers this has done with the message before. */
                        fe_desc(&f, 0, 1, FE_ADDRESS(FE_BUFFERS + PAGE), 64, VRING_DESC_F_WRITE, 0);
                        fe_offer(&f, 0, 1);
                        fe_kick(&f, 0);
                        assert_int_equal(fe_wait(&f, 0).id, 1);
                }
                manager_restart(&m);
                if (k == 0)
                        fe_expect_hang_up(&f);
                else {
                        fe_desc(&f, 0, 0, FE_ADDRESS(FE_BUFFERS), 64, VRING_DESC_F_WRITE, 0);
                        fe_offer(&f, 0, 0);
                        fe_kick(&f, 0);
                        assert_int_equal(fe_wait(&f, 0).len, 64);
                }
                fe_disconnect(&f);
                pager_free(&p);
        }
        manager_down(&m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(a_disk_by_io_uring),
                cmocka_unit_test(a_disk_by_the_page_cache),
                cmocka_unit_test(random_numbers),
                cmocka_unit_test(a_console),
                cmocka_unit_test(a_balloon_does_not_take_part),
                cmocka_unit_test(refuses_what_comes_in_the_wrong_order),
                cmocka_unit_test(refuses_to_be_advised_twice_and_unasked),
                cmocka_unit_test(says_no_where_it_cannot),
                cmocka_unit_test(touches_nothing_before_the_front_end_knows),
                cmocka_unit_test(a_disk_that_waits_in_the_kernel_ends),
                cmocka_unit_test(who_waits_in_its_own_code_ends),
                cmocka_unit_test(who_waits_for_nothing_ends_as_always),
                cmocka_unit_test(a_word_on_the_leash_ends_it),
                cmocka_unit_test(no_successor_takes_it_up_meanwhile),
                cmocka_unit_test(a_network), /* the last: it leaves the host's network */
        };
        int device = have_device(), r;

        if (device < 0) {
                print_message("1..0 # SKIP there is no /dev/userfaultfd\n");
                return 77;
        }
        (void) close(device);
        image_fd = mkostemp(image, O_CLOEXEC);
        if (image_fd < 0)
                return EXIT_FAILURE;
        (void) snprintf(path_argument, sizeof(path_argument), "--path=%s", image);
        r = cmocka_run_group_tests(tests, NULL, NULL);
        (void) unlink(image);
        return r;
}
