/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "hostile-host.h"

#define TAP "hostile"
#define IMAGE_SIZE MIB(8)

struct HostKind {
        const char *type;
        bool (*open)(Host *h);
        void (*stimulate)(Host *h, unsigned queue);
};

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);    \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

static _printf_(3, 4) void add_argument(Host *h, unsigned i, const char *format, ...) {
        va_list ap;
        int n;

        va_start(ap, format);
        n = vsnprintf(h->arguments[i], sizeof(h->arguments[i]), format, ap);
        va_end(ap);
        must(n > 0 && (size_t) n < sizeof(h->arguments[i]));
}

/* Control socket */

static void add_varlink(Host *h) {
        (void) snprintf(h->varlink, sizeof(h->varlink), "%s/varlink", h->directory);
        add_argument(h, 1, "--varlink-path=%s", h->varlink);
}

/* Makes a call on a connection of its own, whose answer is the caller's business. */
static int call(Host *h, const char *text) {
        int fd = -EBADF;

        for (unsigned i = 0; i < 6000 && fd < 0; i++) {
                fd = connect_unix(h->varlink);
                if (fd < 0)
                        (void) usleep(10000);
        }
        must(fd >= 0 && text);
        must(write(fd, text, strlen(text) + 1) == (ssize_t) strlen(text) + 1);
        return fd;
}

/* Disk */

static bool open_image(Host *h) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "%s/image", h->directory);
        fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        must(fd >= 0 && ftruncate(fd, IMAGE_SIZE) == 0);
        (void) close(fd);
        add_argument(h, 0, "--path=%s", path);
        return true;
}

/* Console */

static bool open_console(Host *h) {
        add_varlink(h);
        return true;
}

static int attach(Host *h, unsigned queue) {
        _cleanup_close_ int socket = call(h, queue < 4 ? "{\"method\":\"io.vmmd.Device.OpenConsole\"}" :
                "{\"method\":\"io.vmmd.Device.OpenConsole\",\"parameters\":{\"port\":\"a\"}}");
        size_t n_fds = 1;
        char reply[4096];
        int fd = -EBADF;

        must(recv_with_fds(socket, reply, sizeof(reply), &fd, &n_fds, 0) > 0);
        must(n_fds == 1);
        return fd;
}

/* Who does not read for long is not a client any more. */
static void type_something(Host *h, unsigned queue) {
        int *fd = queue < 4 ? &h->fd : &h->second_fd;
        char output[4096];

        if (*fd < 0)
                *fd = attach(h, queue);
        while (recv(*fd, output, sizeof(output), MSG_DONTWAIT) > 0)
                ;
        if (send(*fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EPIPE) {
                (void) safe_close(*fd);
                *fd = attach(h, queue);
        }
}

/* Balloon */

static void ask_guest(Host *h, unsigned queue) {
        h->fd = safe_close(h->fd);
        h->fd = call(h, queue == 2 ? "{\"method\":\"io.vmmd.Balloon.GetStatistics\",\"parameters\":{\"maximumAge\":0}}" :
                                     "{\"method\":\"io.vmmd.Balloon.GetWorkingSet\"}");
}

/* Sockets: somebody listens at port 1234, and clients of the host want to talk to the guest. */

static bool open_sockets(Host *h) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        add_varlink(h);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s/vsock", h->directory);
        add_argument(h, 0, "--vsock-path=%s", address.sun_path);
        strcat(address.sun_path, "_1234");
        h->second_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        must(h->second_fd >= 0 && bind(h->second_fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(h->second_fd, 16) == 0);
        return true;
}

static void connect_to_guest(Host *h, unsigned queue) {
        char path[64];
        int fd;

        while ((fd = accept4(h->second_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
                (void) close(fd);
        (void) snprintf(path, sizeof(path), "%s/vsock", h->directory);
        h->fd = safe_close(h->fd);
        h->fd = connect_unix(path);
        must(h->fd >= 0);
        must(send(h->fd, "CONNECT 9\n", 10, MSG_NOSIGNAL | MSG_DONTWAIT) == 10 || errno == EPIPE || errno == EAGAIN);
}

/* Input */

static void press_a_key(Host *h, unsigned queue) {
        h->fd = safe_close(h->fd);
        h->fd = call(h, "{\"method\":\"io.vmmd.Input.SendEvents\",\"parameters\":{\"events\":[{\"type\":1,\"code\":30,\"value\":1},"
                        "{\"type\":0,\"code\":0,\"value\":0},{\"type\":1,\"code\":30,\"value\":0},{\"type\":0,\"code\":0,\"value\":0}]}}");
}

/* Network */

static struct ifreq request_for(const char *name) {
        struct ifreq r = {};

        (void) snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
        return r;
}

static void silence(const char *name) {
        char path[80];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0)
                must(write(fd, "1", 1) == 1);
        (void) safe_close(fd);
}

static bool open_tap(Host *h) {
        struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
        struct ifreq r = request_for(TAP);
        int fd = -EBADF;

        if (unshare(CLONE_NEWNET) < 0 || (fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) < 0) {
                printf("1..0 # SKIP a network namespace and /dev/net/tun need root: %s\n", strerror(errno));
                return false;
        }
        r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        must(ioctl(fd, TUNSETIFF, &r) == 0 && ioctl(fd, TUNSETPERSIST, 1UL) == 0);
        (void) close(fd);
        silence(TAP);

        h->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL));
        must(h->fd >= 0);
        r = request_for(TAP);
        r.ifr_flags = IFF_UP;
        must(ioctl(h->fd, SIOCSIFFLAGS, &r) == 0);
        must(ioctl(h->fd, SIOCGIFINDEX, &r) == 0);
        address.sll_ifindex = r.ifr_ifindex;
        must(bind(h->fd, (struct sockaddr *) &address, sizeof(address)) == 0);
        add_argument(h, 0, "--interface=%s", TAP);
        return true;
}

static void send_packet(Host *h, unsigned queue) {
        uint8_t packet[256] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5 };

        while (recv(h->fd, packet + 14, sizeof(packet) - 14, 0) > 0)
                ; /* what the guest has sent is of no interest */
        memset(packet, 0xff, 6);
        memcpy(packet + 6, "\2\0\0\0\0\1\x88\xb5", 8);
        (void) send(h->fd, packet, sizeof(packet), 0); /* not before the link is up */
}

static const HostKind kinds[] = {
        { "balloon", open_console, ask_guest },
        { "block", open_image, NULL },
        { "console", open_console, type_something },
        { "input", open_console, press_a_key },
        { "net", open_tap, send_packet },
        { "pmem", open_image, NULL },
        { "vsock", open_sockets, connect_to_guest },
};

bool host_open(Host *h, const char *type) {
        *h = (Host) { .fd = -EBADF, .second_fd = -EBADF, .directory = "/tmp/test-hostile-XXXXXX" };
        must(mkdtemp(h->directory));
        for (size_t i = 0; i < ELEMENTSOF(kinds); i++)
                if (streq(kinds[i].type, type))
                        h->kind = &kinds[i];
        if (!h->kind || h->kind->open(h))
                return true;
        host_close(h);
        return false;
}

void host_stimulate(Host *h, unsigned queue) {
        if (h->kind && h->kind->stimulate)
                h->kind->stimulate(h, queue);
}

void host_close(Host *h) {
        DIR *d = opendir(h->directory);

        h->fd = safe_close(h->fd);
        h->second_fd = safe_close(h->second_fd);
        for (struct dirent *e; d && (e = readdir(d));)
                (void) unlinkat(dirfd(d), e->d_name, 0);
        if (d)
                (void) closedir(d);
        (void) rmdir(h->directory);
}
