/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* plugin-program WHAT: a plugin for tests, which does as it should, or not. What it has to say it says on standard error. */

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/kvm.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "crosvm.h"
#include "util.h"

#define CODE 0x1000
#define MEMORY 0x20000
#define PORT 0x500

__asm__(".pushsection .rodata\n.code16\n"
        /* Reads two numbers, writes their sum; then it is done. */
        "code_add: mov $0x500, %dx\n in %dx, %al\n mov %al, %cl\n in %dx, %al\n add %cl, %al\n out %al, %dx\n 1: hlt\n jmp 1b\n"
        "code_add_end:\n"
        "code_idle: 1: jmp 1b\n"
        "code_idle_end:\n"
        /* Writes on and on to a port whose writes are only told. */
        "code_tell: mov $0x600, %dx\n 1: out %al, %dx\n jmp 1b\n"
        "code_tell_end:\n"
        ".code32\ncode_fault: ud2\n 1: jmp 1b\n"
        "code_fault_end:\n"
        ".code64\n.popsection\n");
extern const uint8_t code_add[], code_add_end[], code_idle[], code_idle_end[], code_tell[], code_tell_end[], code_fault[], code_fault_end[];

static struct crosvm *machine;
static struct crosvm_vcpu *vcpu;
static int memory_fd;

static void must(int r, const char *what) {
        if (r >= 0)
                return;
        (void) fprintf(stderr, "plugin-program: %s: %s\n", what, strerror(-r));
        _exit(99);
}

static void say(const char *what) {
        (void) fprintf(stderr, "plugin-program: %s\n", what);
}

static int make_memory(bool seal) {
        int fd = memfd_create("plugin", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        must(fd < 0 || ftruncate(fd, MEMORY) < 0 || (seal && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) ? -errno : 0, "memfd");
        return fd;
}

/* Where no exception has a handler, each is the last. */
static void enter_protected_mode(struct kvm_sregs *sregs) {
        struct kvm_segment segment = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };

        sregs->cs = segment;
        segment.selector = 16;
        segment.type = 3;
        sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = segment;
        sregs->idt = (struct kvm_dtable) {};
        sregs->cr0 |= 1;
}

/* A machine with one vCPU that runs the code as soon as it is resumed. */
static void set_up(const uint8_t *code, const uint8_t *end) {
        struct crosvm_vcpu_event event;
        static struct crosvm_memory *memory; /* as long as the process */
        struct kvm_sregs sregs;
        struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = 0x8000 };
        uint8_t *bytes;

        must(crosvm_connect(&machine), "crosvm_connect");
        memory_fd = make_memory(true);
        bytes = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        must(bytes == MAP_FAILED ? -errno : 0, "mmap");
        memcpy(bytes + CODE, code, (size_t) (end - code));
        must(crosvm_create_memory(machine, memory_fd, 0, MEMORY, 0, false, false, &memory), "crosvm_create_memory");
        must(crosvm_reserve_range(machine, CROSVM_ADDRESS_SPACE_IOPORT, PORT, 1), "crosvm_reserve_range");
        must(crosvm_get_vcpu(machine, 0, &vcpu), "crosvm_get_vcpu");
        must(crosvm_start(machine), "crosvm_start");
        must(crosvm_vcpu_wait(vcpu, &event), "the first crosvm_vcpu_wait");
        must(crosvm_vcpu_get_sregs(vcpu, &sregs), "crosvm_vcpu_get_sregs");
        sregs.cs.base = sregs.cs.selector = 0;
        if (code == code_fault)
                enter_protected_mode(&sregs);
        must(crosvm_vcpu_set_sregs(vcpu, &sregs), "crosvm_vcpu_set_sregs");
        must(crosvm_vcpu_set_regs(vcpu, &regs), "crosvm_vcpu_set_regs");
}
#define SET_UP(name) set_up(code_##name, code_##name##_end)

static void resume(void) {
        must(crosvm_vcpu_resume(vcpu), "crosvm_vcpu_resume");
}

static void expect_access(struct crosvm_vcpu_event *event, bool is_write) {
        must(crosvm_vcpu_wait(vcpu, event), "crosvm_vcpu_wait");
        must(event->kind == CROSVM_VCPU_EVENT_KIND_IO_ACCESS && event->io_access.is_write == is_write ? 0 : -EPROTO, "the access");
}

static void answer(uint8_t value) {
        struct crosvm_vcpu_event event;

        expect_access(&event, false);
        event.io_access.data[0] = value;
        resume();
}

/* It is not to be had by asking: what is left is SIGKILL. */
static int hang(void) {
        (void) signal(SIGTERM, SIG_IGN);
        while (pause() < 0)
                ;
        return 0;
}

static int wait_for_shutdown(void) {
        int fd = crosvm_get_shutdown_eventfd(machine);
        struct pollfd p = { .fd = fd, .events = POLLIN };

        must(fd, "crosvm_get_shutdown_eventfd");
        must(poll(&p, 1, -1) == 1 ? 0 : -errno, "poll");
        say("was told to exit");
        return 0;
}

static int main_socket(void) {
        const char *number = getenv("CROSVM_SOCKET");

        must(number ? 0 : -ENOTCONN, "$CROSVM_SOCKET");
        return (int) strtol(number, NULL, 10);
}

/* Calls it with each descriptor and what that is. */
static void for_each_fd(void (*what)(int fd, const char *target)) {
        DIR *directory = opendir("/proc/self/fd");
        struct dirent *entry;

        must(directory ? 0 : -errno, "/proc/self/fd");
        while ((entry = readdir(directory))) {
                char target[256];
                int fd = (int) strtol(entry->d_name, NULL, 10);
                ssize_t n = readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);

                if (n < 0 || fd == dirfd(directory))
                        continue;
                target[n] = 0;
                what(fd, target);
        }
        (void) closedir(directory);
}

static void show_fd(int fd, const char *target) {
        (void) fprintf(stderr, "plugin-program: %d is %s\n", fd, target);
}

static void close_pipe(int fd, const char *target) {
        if (fd > STDERR_FILENO && startswith(target, "pipe:"))
                (void) close(fd);
}

static void wake_pipe(int fd, const char *target) {
        if (fd > STDERR_FILENO && startswith(target, "pipe:"))
                (void) !write(fd, "", 1);
}

/* --- what it can do --- */

static int add(void) {
        struct crosvm_vcpu_event event;

        SET_UP(add);
        resume();
        answer(40);
        answer(2);
        expect_access(&event, true);
        (void) fprintf(stderr, "plugin-program: the sum is %u\n", event.io_access.data[0]);
        return event.io_access.data[0] == 42 ? 0 : 1;
}

static int run_until_told(void) {
        SET_UP(idle);
        resume();
        return wait_for_shutdown();
}

static int run_and_hang(void) {
        SET_UP(idle);
        resume();
        return hang();
}

/* A vCPU waits for it, for ever. */
static int leave_unanswered(void) {
        struct crosvm_vcpu_event event;

        SET_UP(add);
        resume();
        expect_access(&event, false);
        return hang();
}

static int connect_and_hang(void) {
        must(crosvm_connect(&machine), "crosvm_connect");
        return hang();
}

static int fail_after_start(void) {
        SET_UP(idle);
        resume();
        return 3;
}

static int die(void) {
        SET_UP(idle);
        resume();
        (void) raise(SIGKILL);
        return 0;
}

static int close_pipes(void) {
        struct crosvm_vcpu_event event;

        SET_UP(add);
        resume();
        expect_access(&event, false);
        for_each_fd(close_pipe);
        return hang();
}

static int close_socket(void) {
        SET_UP(idle);
        resume();
        (void) close(main_socket());
        return hang();
}

static int spoil_socket(void) {
        SET_UP(idle);
        resume();
        must(send(main_socket(), "\xff\xff\xff\xff", 4, 0) < 0 ? -errno : 0, "send");
        return hang();
}

/* One packet, and the descriptors of its answer. */
static size_t ask(const uint8_t *request, size_t size, int fds[static 8]) {
        uint8_t answer[256];
        size_t n_fds = 8;
        ssize_t n;

        must(send(main_socket(), request, size, MSG_NOSIGNAL) < 0 ? -errno : 0, "send");
        n = recv_with_fds(main_socket(), answer, sizeof(answer), fds, &n_fds, 0);
        must(n <= 0 ? -EPIPE : 0, "recv");
        return n_fds;
}

/* By hand, as with a library of its own: our own asks for a ring at once. */
static int spoil_pipes(void) {
        static const uint8_t get_vcpus[] = { 0x8a, 0x01, 0x00 }, start[] = { 0x92, 0x01, 0x00 };
        int fds[8];

        must(ask(get_vcpus, sizeof(get_vcpus), fds) == 2 ? 0 : -EPROTO, "the vCPU's pipes");
        (void) ask(start, sizeof(start), (int[8]) {});
        must(write(fds[0], "\xff\xff\xff\xff", 4) < 0 ? -errno : 0, "write");
        return hang();
}

/* What our library has mapped of the vCPU's ring. */
static int spoil_ring(void) {
        struct crosvm_vcpu_event event;
        FILE *maps;
        char line[512];

        SET_UP(add);
        resume();
        expect_access(&event, false);
        maps = fopen("/proc/self/maps", "re");
        must(maps ? 0 : -errno, "/proc/self/maps");
        while (fgets(line, sizeof(line), maps)) {
                unsigned long from, to;
                char *end;

                /* FROM-TO rw-s … */
                if (!strstr(line, "memfd:") || strstr(line, "memfd:plugin ("))
                        continue;
                from = strtoul(line, &end, 16);
                to = strtoul(end + 1, &end, 16);
                must(startswith(end, " rw") && to > from ? 0 : -EBADE, "the ring's memory");
                memset((void *) from, 0xff, to - from);
                say("spoilt the ring");
        }
        (void) fclose(maps);
        for_each_fd(wake_pipe); /* vmmd is to look */
        return hang();
}

/* As fast as it can, and reads no answer. */
static int flood(void) {
        static const uint8_t request[] = { 0x32, 0x00 }; /* get_supported_cpuid {} */

        SET_UP(idle);
        resume();
        while (send(main_socket(), request, sizeof(request), MSG_NOSIGNAL) > 0)
                ;
        return hang();
}

/* The same, and reads them. */
static int ask_on(void) {
        struct kvm_cpuid_entry2 entries[256];
        uint32_t n;

        SET_UP(idle);
        resume();
        say("asks on");
        while (crosvm_get_supported_cpuid(machine, ELEMENTSOF(entries), entries, &n) >= 0)
                ;
        return hang();
}

/* Its memory cannot be made smaller under the machine; and a hole in it is empty memory. */
static int shrink(void) {
        struct crosvm_memory *memory;
        int loose;

        SET_UP(idle);
        resume();
        loose = make_memory(false);
        must(crosvm_create_memory(machine, loose, 0, 0x1000, 0x100000, false, false, &memory) == -EPERM ? 0 : -EBADE, "unsealed memory");
        must(ftruncate(memory_fd, 0) < 0 && errno == EPERM ? 0 : -EBADE, "sealed memory");
        must(fallocate(memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, MEMORY) < 0 ? -errno : 0, "fallocate");
        say("shrank");
        return wait_for_shutdown();
}

/* Nothing of it is memory of the guest's, however much of it there is. */
static int wrong_fds(void) {
        static struct crosvm_memory *memory; /* as long as the process */
        int pair[2], pipes[2], writable, fds[10];
        char path[32];

        SET_UP(idle);
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || pipe2(pipes, O_CLOEXEC) < 0 ? -errno : 0, "pairs");
        writable = make_memory(true);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", writable);
        fds[0] = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        fds[1] = open("/", O_PATH | O_CLOEXEC);
        fds[2] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        fds[3] = open("/dev/zero", O_RDWR | O_CLOEXEC);
        fds[4] = open(path, O_RDONLY | O_CLOEXEC); /* sealed, and not to be written through this */
        fds[5] = epoll_create1(EPOLL_CLOEXEC);
        fds[6] = eventfd(0, EFD_CLOEXEC);
        fds[7] = pair[0];
        fds[8] = pipes[0];
        fds[9] = main_socket(); /* which then holds itself */
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                must(fds[i] < 0 ? -errno : 0, "a descriptor");
                must(crosvm_create_memory(machine, fds[i], 0, 0x1000, 0x100000, false, false, &memory) < 0 ? 0 : -EBADE, "memory of what is none");
        }
        must(crosvm_create_memory(machine, writable, 0, 0x1000, 0x100000, false, false, &memory), "memory after that");
        resume();
        say("has tried all");
        return wait_for_shutdown();
}

/* As many of each as it gets, and memory that would be larger than any. */
static int too_much(void) {
        static struct crosvm_irq_route routes[20000];
        int fd = memfd_create("vast", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct crosvm_memory *memory = NULL;
        struct crosvm *other = NULL;
        struct crosvm_irq *irq;
        struct crosvm_io *io;
        unsigned n;
        int r;

        SET_UP(idle);
        must(fd < 0 || ftruncate(fd, INT64_MAX & ~(off_t) 0xfff) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ? -errno : 0, "a vast memfd");
        for (unsigned dirty_log = 0; dirty_log < 2; dirty_log++) {
                must(crosvm_create_memory(machine, fd, 0, UINT64_C(1) << 62, 0x100000, false, dirty_log, &memory) < 0 ? 0 : -EBADE, "vast memory");
                must(crosvm_create_memory(machine, fd, 0, UINT64_C(1) << 45, 0x100000, false, dirty_log, &memory) < 0 ? 0 : -EBADE, "memory of 32 TiB");
        }
        must(crosvm_create_memory(machine, fd, 0, UINT64_C(1) << 34, 0x100000, false, true, &memory) == -E2BIG ? 0 : -EBADE, "a log that is never to be had");
        /* 2 GiB each, which take nothing as long as nobody is there. */
        for (n = 0, r = 0; r >= 0 && n < 100000; n++)
                r = crosvm_create_memory(machine, fd, 0, UINT64_C(1) << 31, (UINT64_C(1) << 31) * (n + 1), false, true, &memory);
        (void) fprintf(stderr, "plugin-program: %u memories, %s\n", n, strerrorname_np(-r));
        for (n = 0; (r = crosvm_create_irq_event(machine, 5, &irq)) >= 0 || r == -EBUSY; n++)
                if (n > 100000)
                        break;
        (void) fprintf(stderr, "plugin-program: %u interrupts, %s\n", n, strerrorname_np(-r));
        for (n = 0; crosvm_create_io_event(machine, CROSVM_ADDRESS_SPACE_MMIO, 0x10000000 + 8 * (uint64_t) n, 0, NULL, &io) >= 0 && n < 100000; n++)
                ;
        for (n = 0; crosvm_reserve_range(machine, CROSVM_ADDRESS_SPACE_MMIO, 0x20000000 + 2 * (uint64_t) n, 1) >= 0 && n < 1000000; n++)
                ;
        (void) fprintf(stderr, "plugin-program: %u ranges\n", n);
        must(n < 1000000 ? 0 : -EBADE, "ranges without end");
        for (n = 0; n < ELEMENTSOF(routes); n++)
                routes[n] = (struct crosvm_irq_route) { .irq_id = n, .kind = CROSVM_IRQ_ROUTE_MSI, .msi = { .address = 0xfee00000, .data = 0x41 } };
        must(crosvm_set_irq_routing(machine, ELEMENTSOF(routes), routes) == -E2BIG ? 0 : -EBADE, "routes without end");
        for (n = 0; crosvm_new_connection(machine, &other) >= 0 && n < 100000; n++)
                ;
        resume();
        say("has enough");
        return wait_for_shutdown();
}

/* What a vCPU writes is told, and nobody listens. */
static int never_read(void) {
        SET_UP(tell);
        must(crosvm_reserve_async_write_range(machine, CROSVM_ADDRESS_SPACE_IOPORT, 0x600, 1), "crosvm_reserve_async_write_range");
        resume();
        return hang();
}

/* A child that has all of it, is nobody's, and goes on for a while. */
static int leave_a_child(void) {
        SET_UP(idle);
        resume();
        if (fork() == 0) {
                (void) signal(SIGTERM, SIG_IGN);
                (void) setsid();
                (void) alarm(10);
                (void) close(STDOUT_FILENO);
                (void) close(STDERR_FILENO);
                return hang();
        }
        return 0;
}

/* Memory of huge pages of which there are none: it is there until somebody looks. */
static int no_pages(void) {
        int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
        struct crosvm_memory *memory = NULL;
        struct kvm_sregs sregs;

        SET_UP(idle);
        must(fd < 0 || ftruncate(fd, 0x200000) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ? -errno : 0, "a memfd of huge pages");
        must(crosvm_create_memory(machine, fd, 0, 0x200000, 0x200000, false, true, &memory), "crosvm_create_memory");
        must(crosvm_memory_get_dirty_log(machine, memory, (uint8_t[64]) {}), "crosvm_memory_get_dirty_log");
        must(crosvm_vcpu_get_sregs(vcpu, &sregs), "crosvm_vcpu_get_sregs");
        sregs.cs.base = 0x200000;
        must(crosvm_vcpu_set_sregs(vcpu, &sregs), "crosvm_vcpu_set_sregs");
        resume();
        return wait_for_shutdown();
}

static int fault(void) {
        SET_UP(fault);
        resume();
        return wait_for_shutdown();
}

static int show_fds(void) {
        (void) fprintf(stderr, "plugin-program: the socket is %d\n", main_socket());
        for_each_fd(show_fd);
        return 0;
}

static int see(void) {
        static const char *const paths[] = { "/etc/passwd", "/dev/kvm", "/run/vmm", "/readable/file", "/writable/file", "/grouped/file" };

        for (size_t i = 0; i < ELEMENTSOF(paths); i++) {
                int fd = open(paths[i], O_WRONLY | O_CLOEXEC | O_APPEND);

                (void) fprintf(stderr, "plugin-program: %s: %s %s\n", paths[i], access(paths[i], R_OK) >= 0 ? "read" : "-", fd >= 0 ? "write" : "-");
        }
        return 0;
}

/* An Ethernet frame as it is on the wire. */
typedef struct Datagram {
        struct ethhdr ethernet;
        struct iphdr ip;
        struct udphdr udp;
        uint8_t bytes[1500];
} __attribute__((packed)) Datagram;

/* Back to where it came from. */
static void turn_round(Datagram *d) {
        uint8_t mac[ETH_ALEN];
        uint32_t address = d->ip.saddr;
        uint16_t port = d->udp.source;

        memcpy(mac, d->ethernet.h_source, ETH_ALEN);
        memcpy(d->ethernet.h_source, d->ethernet.h_dest, ETH_ALEN);
        memcpy(d->ethernet.h_dest, mac, ETH_ALEN);
        d->ip.saddr = d->ip.daddr;
        d->ip.daddr = address;
        d->udp.source = d->udp.dest;
        d->udp.dest = port;
        d->udp.check = 0;
}

static bool is_echo(const Datagram *d, ssize_t n) {
        return n > (ssize_t) offsetof(Datagram, bytes) && d->ethernet.h_proto == htons(ETH_P_IP) && d->ip.ihl == 5 && d->ip.protocol == IPPROTO_UDP &&
                d->udp.dest == htons(7);
}

/* Says what its network is, and sends the first datagram for its echo port back where it came from. */
static int network(void) {
        char address[INET_ADDRSTRLEN], netmask[INET_ADDRSTRLEN];
        struct crosvm_net_config config;
        const uint8_t *mac = config.host_mac_address;
        Datagram d;
        struct pollfd p;
        ssize_t n;

        SET_UP(idle);
        must(crosvm_net_get_config(machine, &config), "crosvm_net_get_config");
        must(inet_ntop(AF_INET, &config.host_ip, address, sizeof(address)) && inet_ntop(AF_INET, &config.netmask, netmask, sizeof(netmask)) ? 0 : -errno,
                "inet_ntop");
        (void) fprintf(stderr, "plugin-program: the host is %s in %s, %02x:%02x:%02x:%02x:%02x:%02x\n", address, netmask, mac[0], mac[1], mac[2], mac[3],
                mac[4], mac[5]);
        resume();
        p = (struct pollfd) { .fd = config.tap_fd, .events = POLLIN };
        do {
                must(poll(&p, 1, 60000) == 1 ? 0 : -ETIMEDOUT, "a packet");
                n = read(config.tap_fd, &d, sizeof(d));
        } while (!is_echo(&d, n));
        turn_round(&d);
        must(write(config.tap_fd, &d, (size_t) n) == n ? 0 : -errno, "write");
        say("sent it back");
        return wait_for_shutdown();
}

static int no_network(void) {
        struct crosvm_net_config config;

        must(crosvm_connect(&machine), "crosvm_connect");
        return crosvm_net_get_config(machine, &config) == -ENODATA ? 4 : 1;
}

static int exit_early(void) {
        return 0;
}

int main(int argc, char *argv[]) {
        static const struct {
                const char *name;
                int (*run)(void);
        } modes[] = {
                { "add", add },
                { "run-until-told", run_until_told },
                { "run-and-hang", run_and_hang },
                { "leave-unanswered", leave_unanswered },
                { "connect-and-hang", connect_and_hang },
                { "fail", fail_after_start },
                { "die", die },
                { "close-pipes", close_pipes },
                { "close-socket", close_socket },
                { "spoil-pipes", spoil_pipes },
                { "spoil-ring", spoil_ring },
                { "spoil-socket", spoil_socket },
                { "flood", flood },
                { "ask-on", ask_on },
                { "shrink", shrink },
                { "wrong-fds", wrong_fds },
                { "too-much", too_much },
                { "never-read", never_read },
                { "leave-a-child", leave_a_child },
                { "no-pages", no_pages },
                { "fault", fault },
                { "show-fds", show_fds },
                { "see", see },
                { "network", network },
                { "no-network", no_network },
                { "exit-early", exit_early },
        };

        for (size_t i = 0; argc == 2 && i < ELEMENTSOF(modes); i++)
                if (streq(modes[i].name, argv[1]))
                        return modes[i].run();
        (void) fprintf(stderr, "plugin-program: what?\n");
        return 98;
}
