/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A driver and a front-end that do what the fuzzer likes (fuzz-device.h), to each kind of device as it is: its class, the frame, its control socket, in
 * this process and without a sandbox. The host's side stands here: an image in memory, a socket in place of a tap, a client at the control
 * socket. A device is opened once and serves one input after the other, as it serves one front-end after the other.
 *
 * What is mapped of the guest's memory's pages beside its regions is poison to the address sanitizer. */

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "front-end.h"
#include "fuzz-device.h"
#include "helper.h"
#include "requests.h"

#if defined(__SANITIZE_ADDRESS__)
#define POISON
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON
#endif
#endif
#ifdef POISON
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void) (p), (void) (n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void) (p), (void) (n))
#endif

#define NUM 32
/* Offsets in RAM, as in test-hostile. */
#define FIRST_BEGIN 0x10040U
#define FIRST_END 0x7fffc0U
#define SECOND_BEGIN 0x900040U
#define SECOND_END 0xffefc0U
#define RINGS(queue) (0x20000U + (queue) * 0x10000U)
#define AVAIL 0x400U
#define USED 0x800U
#define RING_BYTES 0x1000U
#define BUFFER(i) (MIB(4) + (i) % 8U * KIB(64))
#define BUFFER_BYTES KIB(17)
#define PAGE KIB(4)
/* Turns of the event loop after each operation. */
#define TURNS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_ioctl(int fd, unsigned long request, ...);

typedef struct Subject {
        const RequestDevice *device;
        Arguments arguments;
        Helper helper;
        char directory[32];
        char *varlink, *socket, *vsock;
        int host; /* the other end of the tap; a client of the console; a call to the balloon */
        int listener; /* where the guest's connections arrive */
        char *listener_path;
        unsigned host_queue; /* whom the client of the console is of */
        unsigned n_queues;
        bool ready;
} Subject;

typedef struct Input {
        const uint8_t *data;
        size_t size;
} Input;

static int ram_fd = -EBADF, log_fd = -EBADF;
static uint8_t *ram;
static Subject subjects[16];

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);      \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

/* A tap, to the device: what it sets of it is right, whatever it is. */
int __wrap_ioctl(int fd, unsigned long request, ...) {
        va_list ap;
        void *p;

        va_start(ap, request);
        p = va_arg(ap, void *);
        va_end(ap);
        if (request == TUNGETIFF)
                *(struct ifreq *) p = (struct ifreq) { .ifr_name = "fuzz", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
        return 0;
}

/* ---- input ---- */

static uint64_t take(Input *in, size_t n) {
        uint64_t v = 0;

        for (size_t i = 0; i < n && in->size > 0; i++, in->data++, in->size--)
                v |= (uint64_t) *in->data << (8 * i);
        return v;
}

static const uint8_t *take_bytes(Input *in, size_t *n) {
        const uint8_t *p = in->data;

        *n = MIN(*n, in->size);
        in->data += *n;
        in->size -= *n;
        return p;
}

/* ---- the host ---- */

static void run(Subject *s) {
        for (unsigned i = 0; i < TURNS_MAX && sd_event_run(s->helper.event, 0) > 0; i++)
                ;
}

/* As vmm-open would have it. */
static void pass_resources(Subject *s) {
        const char *type = s->device->type;
        int fd = -EBADF, pair[2];

        if (streq(type, "block") || streq(type, "pmem")) {
                fd = memfd_create("fuzz-image", MFD_CLOEXEC);
                must(fd >= 0 && ftruncate(fd, MIB(1)) == 0);
                must(passed_fds_add(&s->helper.passed, "path", fd) >= 0);
        } else if (streq(type, "net")) {
                must(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
                must(passed_fds_add(&s->helper.passed, "interface", pair[0]) >= 0);
                s->host = pair[1];
        } else if (streq(type, "vsock")) {
                must(asprintf(&s->listener_path, "%s_1234", s->vsock) > 0);
                s->listener = socket_listen(s->listener_path);
                must(s->listener >= 0);
        }
}

static void open_subject(Subject *s) {
        char *message = NULL;

        memcpy(s->directory, "/tmp/fuzz-device-XXXXXX", sizeof("/tmp/fuzz-device-XXXXXX"));
        must(mkdtemp(s->directory));
        must(asprintf(&s->varlink, "%s/varlink", s->directory) > 0);
        must(asprintf(&s->socket, "%s/socket", s->directory) > 0);
        must(asprintf(&s->vsock, "%s/vsock", s->directory) > 0);
        s->host = s->listener = -EBADF;
        s->arguments = (Arguments) ARGUMENTS_NULL;
        s->arguments.class = device_class_find(s->device->type);
        s->arguments.type = device_type_find(s->device->type);
        s->arguments.socket_path = s->socket;
        s->arguments.varlink_path = s->varlink;
        s->arguments.vsock_path = streq(s->device->type, "vsock") ? s->vsock : NULL;
        must(s->arguments.class && s->arguments.type && device_options_new(s->arguments.type, &s->arguments.options) >= 0);
        for (unsigned i = 0; s->device->options[i]; i++)
                must(device_options_add(s->arguments.options, s->device->options[i], &message) >= 0);

        s->helper = (Helper) HELPER_NULL;
        must(sd_event_new(&s->helper.event) >= 0); /* as helper_begin(), but for the signals */
        pass_resources(s);
        must(helper_take_sockets(&s->helper, &s->arguments) >= 0);
        must(helper_open(&s->helper, s->arguments.class, s->arguments.type, s->arguments.options) >= 0);
        must(helper_serve(&s->helper) >= 0);
        s->n_queues = s->helper.device->n_queues;
        s->ready = true;
}

static int call(Subject *s, const char *text) {
        int fd = connect_unix(s->varlink);

        must(fd >= 0);
        must(write(fd, text, strlen(text) + 1) > 0);
        run(s);
        return fd;
}

static void attach(Subject *s, unsigned queue) {
        _cleanup_close_ int fd = call(s, queue < 4 ? "{\"method\":\"io.vmmd.Device.OpenConsole\"}" :
                "{\"method\":\"io.vmmd.Device.OpenConsole\",\"parameters\":{\"port\":\"a\"}}");
        size_t n_fds = 1;
        char reply[4096];

        s->host = safe_close(s->host);
        if (recv_with_fds(fd, reply, sizeof(reply), &s->host, &n_fds, MSG_DONTWAIT) <= 0 || n_fds != 1)
                s->host = -EBADF;
}

/* To the guest's program that has connected, where the queue is its; else as a client that wants to be connected. */
static void talk(Subject *s, unsigned queue, const uint8_t *data, size_t size) {
        static const char greeting[] = "CONNECT 9\n";
        uint8_t sink[4096];

        if (s->host_queue != queue || s->host < 0) {
                s->host = safe_close(s->host);
                if (queue == 0)
                        s->host = connect_unix(s->vsock);
                else
                        s->host = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
                s->host_queue = queue;
                if (s->host >= 0 && queue == 0)
                        (void) send(s->host, greeting, strlen(greeting), MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        if (s->host < 0)
                return;
        while (recv(s->host, sink, sizeof(sink), MSG_DONTWAIT) > 0)
                ;
        /* It may also hang up. */
        if (size == 0 || send(s->host, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                s->host = safe_close(s->host);
}

static void stimulate(Subject *s, unsigned queue, const uint8_t *data, size_t size) {
        const char *type = s->device->type;
        uint8_t packet[12 + 255] = {}, sink[4096];

        if (streq(type, "net")) {
                while (recv(s->host, sink, sizeof(sink), 0) >= 0)
                        ;
                memcpy(packet + 12, data, size);
                (void) send(s->host, packet, 12 + size, 0);
        } else if (streq(type, "console")) {
                if (s->host < 0 || s->host_queue != queue)
                        attach(s, queue);
                s->host_queue = queue;
                while (recv(s->host, sink, sizeof(sink), MSG_DONTWAIT) > 0)
                        ;
                if (send(s->host, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                        attach(s, queue);
        } else if (streq(type, "balloon")) {
                s->host = safe_close(s->host);
                s->host = call(s, queue == 2 ? "{\"method\":\"io.vmmd.Balloon.GetStatistics\",\"parameters\":{\"maximumAge\":0}}" :
                                  queue == 3 ? "{\"method\":\"io.vmmd.Balloon.HintFreePages\"}" :
                                               "{\"method\":\"io.vmmd.Balloon.GetWorkingSet\"}");
        } else if (streq(type, "input")) {
                s->host = safe_close(s->host);
                s->host = call(s, "{\"method\":\"io.vmmd.Input.SendEvents\",\"parameters\":{\"events\":"
                                  "[{\"type\":1,\"code\":30,\"value\":1},{\"type\":1,\"code\":30,\"value\":0}]}}");
        } else if (streq(type, "vsock"))
                talk(s, queue, data, size);
        run(s);
}

/* ---- the front-end ---- */

typedef struct Peer {
        Subject *subject;
        int fd;
        int kicks[FE_QUEUES_MAX], call;
        uint16_t avail_idx[FE_QUEUES_MAX];
        void *edges[8];
        size_t edge_sizes[8];
        unsigned n_edges;
} Peer;

/* The replies are nobody's business. */
static void drain(Peer *p) {
        uint8_t sink[4096];

        while (recv(p->fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
                ;
}

static void tell(Peer *p, uint32_t request, const void *payload, uint32_t size, const int *fds, size_t n_fds) {
        VhostUserMsg msg = { .header = { .request = request, .size = size, .flags = VHOST_USER_FLAG_NEED_REPLY } };

        if (size > 0)
                memcpy(&msg.payload, payload, size);
        if (vhost_user_send(p->fd, &msg, fds, n_fds) < 0)
                return; /* the session is over */
        run(p->subject);
        drain(p);
}

static void tell_u64(Peer *p, uint32_t request, uint64_t value) {
        tell(p, request, &value, sizeof(value), NULL, 0);
}

static void tell_state(Peer *p, uint32_t request, unsigned index, unsigned num) {
        struct vhost_vring_state state = { .index = index, .num = num };

        tell(p, request, &state, sizeof(state), NULL, 0);
}

static void tell_address(Peer *p, unsigned queue, unsigned part, uint64_t otherwise) {
        struct vhost_vring_addr address = {
                .index = queue,
                .desc_user_addr = FE_USER_BASE + RINGS(queue),
                .avail_user_addr = FE_USER_BASE + RINGS(queue) + AVAIL,
                .used_user_addr = FE_USER_BASE + RINGS(queue) + USED,
        };

        if (part < 3)
                *(__u64 *[]) { &address.desc_user_addr, &address.avail_user_addr, &address.used_user_addr }[part] = otherwise;
        tell(p, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0);
}

static void start_queue(Peer *p, unsigned queue, unsigned base) {
        uint64_t index = queue;

        tell_state(p, VHOST_USER_SET_VRING_NUM, queue, NUM);
        tell_state(p, VHOST_USER_SET_VRING_BASE, queue, base);
        tell_address(p, queue, 3, 0);
        tell(p, VHOST_USER_SET_VRING_CALL, &index, sizeof(index), &p->call, 1);
        tell(p, VHOST_USER_SET_VRING_ERR, &index, sizeof(index), &p->call, 1);
        tell(p, VHOST_USER_SET_VRING_KICK, &index, sizeof(index), &p->kicks[queue], 1);
        tell_state(p, VHOST_USER_SET_VRING_ENABLE, queue, 1);
}

static void start_queues(Peer *p) {
        for (unsigned i = 0; i < p->subject->n_queues; i++) {
                memset(ram + RINGS(i), 0, RING_BYTES);
                p->avail_idx[i] = 0;
                start_queue(p, i, 0);
        }
}

static void share_memory(Peer *p) {
        VhostUserMemory table = {
                .nregions = 2,
                .regions = {
                        { FE_ADDRESS(FIRST_BEGIN), FIRST_END - FIRST_BEGIN, FE_USER_BASE + FIRST_BEGIN, FIRST_BEGIN },
                        { FE_ADDRESS(SECOND_BEGIN), SECOND_END - SECOND_BEGIN, FE_USER_BASE + SECOND_BEGIN, SECOND_BEGIN },
                },
        };

        tell(p, VHOST_USER_SET_MEM_TABLE, &table, offsetof(VhostUserMemory, regions[2]), (int[]) { ram_fd, ram_fd }, 2);
}

static void poison(Peer *p, void *begin, size_t size) {
        must(p->n_edges < ELEMENTSOF(p->edges));
        p->edges[p->n_edges] = begin;
        p->edge_sizes[p->n_edges++] = size;
        ASAN_POISON_MEMORY_REGION(begin, size);
}

/* The rest of the pages in which the regions begin and end. */
static void poison_edges(Peer *p) {
        const Session *s = p->subject->helper.device->session;

        for (size_t i = 0; s && i < s->memory.n_regions; i++) {
                const GuestRegion *r = &s->memory.regions[i];
                uint8_t *end = r->host + r->size;

                poison(p, r->mapping, (size_t) (r->host - (uint8_t *) r->mapping));
                poison(p, end, (size_t) (ALIGN_UP((uintptr_t) end, (uintptr_t) PAGE) - (uintptr_t) end));
        }
}

static void negotiate(Peer *p, Input *in) {
        uint64_t features = device_offered_features(p->subject->helper.device);
        unsigned flags = (unsigned) take(in, 1);

        if (flags & FUZZ_WITH_MASK)
                features &= ~take(in, 8);
        if (flags & FUZZ_WITHOUT_INDIRECT)
                features &= ~(UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC);
        if (flags & FUZZ_WITHOUT_EVENT_IDX)
                features &= ~(UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX);
        /* A session ends at the first mistake of a front-end that does not ask for the result; ours asks. */
        tell_u64(p, VHOST_USER_SET_PROTOCOL_FEATURES, UINT64_C(1) << VHOST_USER_PROTOCOL_F_REPLY_ACK |
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_STATUS | UINT64_C(1) << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);
        tell_u64(p, VHOST_USER_SET_FEATURES, features | UINT64_C(1) << VHOST_USER_F_PROTOCOL_FEATURES);
        share_memory(p);
        poison_edges(p);
        if (flags & FUZZ_WITH_LOG) {
                VhostUserInflight inflight = { .num_queues = (uint16_t) p->subject->n_queues, .queue_size = NUM,
                        .mmap_size = p->subject->n_queues * queue_region_size(NUM) };

                must(ftruncate(log_fd, 0) == 0 && ftruncate(log_fd, KIB(64)) == 0);
                tell(p, VHOST_USER_SET_INFLIGHT_FD, &inflight, sizeof(inflight), &log_fd, 1);
        }
        start_queues(p);
}

/* ---- operations ---- */

static struct vring_desc *descriptors(unsigned queue) {
        return (struct vring_desc *) (void *) (ram + RINGS(queue));
}

static struct vring_avail *avail_ring(unsigned queue) {
        return (struct vring_avail *) (void *) (ram + RINGS(queue) + AVAIL);
}

static void offer(Peer *p, unsigned queue, uint16_t head) {
        struct vring_avail *avail = avail_ring(queue);

        avail->ring[p->avail_idx[queue] % NUM] = head;
        avail->idx = ++p->avail_idx[queue];
}

static void lay_out(Peer *p, unsigned which) {
        const Request *requests = p->subject->device->requests, *r;
        unsigned n = 0;

        while (requests[n].name)
                n++;
        r = &requests[which % n];
        n = request_n_buffers(r);
        for (unsigned i = 0; i < n; i++) {
                const RequestBuffer *b = &r->buffers[i];

                memset(ram + BUFFER(i), 0, BUFFER_BYTES);
                if (!b->writable)
                        memcpy(ram + BUFFER(i), b->data, MIN(b->length, BUFFER_BYTES));
                descriptors(r->queue)[i] = (struct vring_desc) { FE_ADDRESS(BUFFER(i)), b->length,
                        (uint16_t) ((b->writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0)), (uint16_t) (i + 1) };
        }
        offer(p, r->queue, 0);
}

static void write_ram(Input *in, size_t base, size_t room) {
        size_t offset = take(in, 2) % room, n = take(in, 1);
        const uint8_t *bytes = take_bytes(in, &n);

        memcpy(ram + base + offset, bytes, MIN(n, room - offset));
}

static void set_descriptor(Input *in, unsigned queue) {
        unsigned index = (unsigned) take(in, 1) % NUM;
        uint16_t flags = (uint16_t) take(in, 1), next = (uint16_t) take(in, 1);
        unsigned buffer = (unsigned) take(in, 1);
        uint16_t offset = (uint16_t) take(in, 2);
        uint32_t length = (uint32_t) take(in, 4);

        descriptors(queue)[index] = (struct vring_desc) { FE_ADDRESS(BUFFER(buffer) + offset), length, flags, next };
}

static void config(Peer *p, Input *in, bool write) {
        VhostUserConfig c = { .offset = (uint32_t) take(in, 1), .flags = VHOST_USER_CONFIG_WRITABLE };
        size_t n = take(in, 1);

        c.size = (uint32_t) n;
        if (write) {
                const uint8_t *bytes = take_bytes(in, &n); /* which may make n less */
                memcpy(c.region, bytes, n);
        }
        tell(p, write ? VHOST_USER_SET_CONFIG : VHOST_USER_GET_CONFIG, &c, (uint32_t) VHOST_USER_CONFIG_HEADER_SIZE + c.size, NULL, 0);
}

static void kick(Peer *p, unsigned queue) {
        must(eventfd_write(p->kicks[queue], 1) == 0 || errno == EAGAIN);
        run(p->subject);
}

static void host(Peer *p, Input *in, unsigned queue) {
        size_t n = take(in, 1);
        const uint8_t *bytes = take_bytes(in, &n);

        stimulate(p->subject, queue, bytes, n);
}

static void reset(Peer *p) {
        tell_u64(p, VHOST_USER_SET_STATUS, 0);
        start_queues(p);
}

static void operate(Peer *p, Input *in) {
        FuzzOperation operation = (FuzzOperation) (take(in, 1) % FUZZ_OPERATIONS);
        unsigned argument, queue;

        if (operation == FUZZ_RESET) {
                reset(p);
                return;
        }
        if (operation == FUZZ_READ_CONFIG || operation == FUZZ_WRITE_CONFIG) {
                config(p, in, operation == FUZZ_WRITE_CONFIG);
                return;
        }
        argument = (unsigned) take(in, 1);
        queue = argument % p->subject->n_queues;
        switch (operation) {
        case FUZZ_REQUEST:
                lay_out(p, argument);
                break;
        case FUZZ_KICK:
                kick(p, queue);
                break;
        case FUZZ_WRITE_RING:
                write_ram(in, RINGS(queue), RING_BYTES);
                break;
        case FUZZ_WRITE_BUFFER:
                write_ram(in, BUFFER(argument), BUFFER_BYTES);
                break;
        case FUZZ_DESCRIPTOR:
                set_descriptor(in, queue);
                break;
        case FUZZ_OFFER:
                offer(p, queue, (uint16_t) take(in, 1));
                break;
        case FUZZ_INDEX:
                avail_ring(queue)->idx = p->avail_idx[queue] = (uint16_t) take(in, 2);
                break;
        case FUZZ_HOST:
                host(p, in, queue);
                break;
        case FUZZ_ADDRESS:
                argument = (unsigned) take(in, 1) % 4;
                tell_address(p, queue, argument, take(in, 8));
                break;
        case FUZZ_SIZE:
                tell_state(p, VHOST_USER_SET_VRING_NUM, queue, (unsigned) take(in, 2));
                break;
        case FUZZ_BASE:
                tell_state(p, VHOST_USER_SET_VRING_BASE, queue, (unsigned) take(in, 2));
                break;
        case FUZZ_STOP:
                tell_state(p, VHOST_USER_GET_VRING_BASE, queue, 0);
                start_queue(p, queue, p->avail_idx[queue]);
                break;
        case FUZZ_ENABLE:
                tell_state(p, VHOST_USER_SET_VRING_ENABLE, queue, (unsigned) take(in, 1) % 3);
                break;
        default:
                break;
        }
}

/* ---- one input ---- */

static void remove_files(void) {
        for (size_t i = 0; i < ELEMENTSOF(subjects); i++) {
                if (!subjects[i].ready)
                        continue;
                (void) unlink(subjects[i].socket);
                (void) unlink(subjects[i].varlink);
                (void) unlink(subjects[i].vsock);
                if (subjects[i].listener_path)
                        (void) unlink(subjects[i].listener_path);
                (void) rmdir(subjects[i].directory);
        }
}

static void open_all(void) {
        ram_fd = guest_memory_create_fd(FE_RAM_SIZE, 0);
        log_fd = memfd_create("fuzz-log", MFD_CLOEXEC);
        must(ram_fd >= 0 && log_fd >= 0);
        ram = mmap(NULL, FE_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
        must(ram != MAP_FAILED);
        log_set_max_level(LOG_EMERG);
        (void) atexit(remove_files);
}

static void begin(Peer *p, Subject *s) {
        *p = (Peer) { .subject = s, .fd = connect_unix(s->socket), .call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
        must(p->fd >= 0 && p->call >= 0);
        for (unsigned i = 0; i < s->n_queues; i++) {
                p->kicks[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                must(p->kicks[i] >= 0);
        }
        run(s);
        must(s->helper.device->session);
}

static void end(Peer *p) {
        Subject *s = p->subject;

        /* The guest is gone, and so is what it has said: the next input finds the device as in the beginning. */
        tell_u64(p, VHOST_USER_SET_STATUS, 0);
        for (unsigned i = 0; i < p->n_edges; i++)
                ASAN_UNPOISON_MEMORY_REGION(p->edges[i], p->edge_sizes[i]);
        if (!streq(s->device->type, "net"))
                s->host = safe_close(s->host);
        p->fd = safe_close(p->fd);
        for (unsigned i = 0; i < 1000 && s->helper.device->session; i++)
                (void) sd_event_run(s->helper.event, 0);
        must(!s->helper.device->session); /* or it hangs */
        for (unsigned i = 0; i < s->n_queues; i++)
                (void) safe_close(p->kicks[i]);
        (void) safe_close(p->call);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        Input in = { data, size };
        unsigned n = 0, which;
        Subject *s;
        Peer p;

        if (ram_fd < 0)
                open_all();
        while (request_devices[n].name)
                n++;
        which = (unsigned) take(&in, 1) % n;
        must(which < ELEMENTSOF(subjects));
        s = &subjects[which];
        s->device = &request_devices[which];
        if (!s->ready)
                open_subject(s);

        begin(&p, s);
        negotiate(&p, &in);
        while (in.size > 0 && s->helper.device->session)
                operate(&p, &in);
        end(&p);
        return 0;
}
