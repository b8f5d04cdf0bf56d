/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/pci_regs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "virtio-rig.h"

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        (void) fprintf(stderr, "# %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
                        abort();                                                                               \
                }                                                                                              \
        } while (false)

/* --- the loop --- */

static void on_state(void *userdata) {
        Rig *rig = userdata;

        rig->n_states++;
        (void) eventfd_write(rig->wake_fd, 1);
}

static void on_config(void *userdata) {
        Rig *rig = userdata;

        rig->n_config++;
        virtio_pci_config_changed(rig->virtio);
}

static void on_lost(void *userdata) {
        Rig *rig = userdata;

        rig->n_lost++;
}

static void on_broken(void *userdata) {
        Rig *rig = userdata;

        rig->n_broken++;
        virtio_pci_needs_reset(rig->virtio);
}

static int on_wake(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Rig *rig = userdata;
        eventfd_t count;

        (void) eventfd_read(fd, &count);
        must(vhost_frontend_attach(rig->frontend, sd_event_source_get_event(s)) >= 0);
        return 0;
}

static int on_end(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        return sd_event_exit(sd_event_source_get_event(s), 0);
}

static void *run_loop(void *userdata) {
        sd_event *event = NULL;
        Rig *rig = userdata;

        must(sd_event_new(&event) >= 0);
        must(sd_event_add_io(event, NULL, rig->wake_fd, EPOLLIN, on_wake, rig) >= 0);
        must(sd_event_add_io(event, NULL, rig->end_fd, EPOLLIN, on_end, rig) >= 0);
        must(sd_event_loop(event) >= 0);
        must(rig->ending);
        /* Its sources hold the loop. */
        vhost_frontend_abort(rig->frontend);
        (void) virtio_pci_free(rig->virtio);
        (void) vhost_frontend_free(rig->frontend);
        (void) sd_event_unref(event);
        return NULL;
}

/* --- registers --- */

uint32_t rig_read(Rig *rig, uint64_t offset, unsigned size) {
        uint64_t value = 0;

        io_space_access(&rig->mmio, 0, rig->bar + offset, &value, size, false);
        return (uint32_t) value;
}

void rig_write(Rig *rig, uint64_t offset, uint32_t value, unsigned size) {
        io_space_access(&rig->mmio, 0, rig->bar + offset, &value, size, true);
}

uint32_t rig_config_read(Rig *rig, unsigned offset, unsigned size) {
        uint32_t value = 0;

        pci_ecam_access(&rig->bus, 0, RIG_ECAM(rig->slot) + offset, &value, size, false);
        return value;
}

void rig_config_write(Rig *rig, unsigned offset, uint32_t value, unsigned size) {
        pci_ecam_access(&rig->bus, 0, RIG_ECAM(rig->slot) + offset, &value, size, true);
}

unsigned rig_capability(Rig *rig, uint8_t id, uint8_t virtio_type) {
        unsigned at = rig_config_read(rig, PCI_CAPABILITY_LIST, 1);

        for (unsigned i = 0; at != 0 && i < 48; i++, at = rig_config_read(rig, at + 1, 1))
                if (rig_config_read(rig, at, 1) == id && (id != PCI_CAP_ID_VNDR || rig_config_read(rig, at + 3, 1) == virtio_type))
                        return at;
        return 0;
}

/* --- making --- */

void rig_new(Rig *rig, uint16_t virtio_id, unsigned n_queues) {
        const VhostFrontendHandlers handlers = {
                .state_changed = on_state, .config_changed = on_config, .broken = on_broken, .lost = on_lost, .userdata = rig,
        };
        int slot;

        *rig = (Rig) { .directory = "/tmp/vmm-rig-XXXXXX", .kvm = { .kvm_fd = -EBADF, .vm_fd = -EBADF } };
        must(mkdtemp(rig->directory));
        (void) snprintf(rig->path, sizeof(rig->path), "%s/device", rig->directory);
        must(io_space_init(&rig->mmio) == 0);
        pci_bus_init(&rig->bus, &rig->kvm, &rig->mmio, 0xC0000000, MIB(1));
        must(guest_memory_add(&rig->memory, guest_memory_create_fd(RIG_MEMORY, 0), 0, 0, RIG_MEMORY, 0) == 0);
        must(vhost_frontend_new("device", rig->path, virtio_id, n_queues, &rig->memory, &handlers, &rig->frontend) == 0);
        must(virtio_pci_new(virtio_id, 0xFF0000, rig->frontend, &rig->kvm, &rig->virtio) == 0);
        slot = pci_bus_add(&rig->bus, virtio_pci_device(rig->virtio), -1);
        must(slot > 0);
        rig->slot = (unsigned) slot;
        rig->bar = rig_config_read(rig, PCI_BASE_ADDRESS_0, 4);
        rig_config_write(rig, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
        must(rig_config_read(rig, rig_capability(rig, PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_COMMON_CFG) + 8, 4) == RIG_COMMON);
        must(rig_config_read(rig, rig_capability(rig, PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_NOTIFY_CFG) + 8, 4) == RIG_NOTIFY);
        must(rig_config_read(rig, rig_capability(rig, PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_DEVICE_CFG) + 8, 4) == RIG_DEVICE);
        must(rig_config_read(rig, rig_capability(rig, PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_ISR_CFG) + 8, 4) == RIG_ISR);
        must(rig_config_read(rig, rig_capability(rig, PCI_CAP_ID_MSIX, 0) + PCI_MSIX_TABLE, 4) == RIG_MSIX);

        rig->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        rig->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        must(rig->wake_fd >= 0 && rig->end_fd >= 0);
        must(pthread_create(&rig->loop, NULL, run_loop, rig) == 0);
}

void rig_free(Rig *rig) {
        rig->ending = true; /* says to thread checkers what the eventfd says to the loop */
        (void) eventfd_write(rig->end_fd, 1);
        must(pthread_join(rig->loop, NULL) == 0);
        rig_kill(rig);
        guest_memory_done(&rig->memory);
        io_space_done(&rig->mmio);
        (void) close(rig->wake_fd);
        (void) close(rig->end_fd);
        (void) unlink(rig->path);
        (void) rmdir(rig->directory);
}

void rig_start(Rig *rig) {
        must(vhost_frontend_start(rig->frontend) == 0);
}

void rig_spawn(Rig *rig, const char *const *arguments) {
        const char *argv[16] = { getenv("VMM_DEVICE") };
        char option[80];
        size_t n = 1;
        int fd;

        must(argv[0]);
        (void) snprintf(option, sizeof(option), "--socket-path=%s", rig->path);
        for (; *arguments && n < ELEMENTSOF(argv) - 3; arguments++)
                argv[n++] = *arguments;
        /* qemu-user, by which programs of another architecture are run, has no seccomp(2), and nothing else refuses to say whether there is a filter. */
        if (prctl(PR_GET_SECCOMP) < 0)
                argv[n++] = "--no-sandbox";
        argv[n] = option;
        (void) unlink(rig->path);
        rig->helper = fork();
        must(rig->helper >= 0);
        if (rig->helper == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                /* Its sandbox does not let it look for leaks in itself. */
                (void) setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
                (void) execv(argv[0], (char *const *) argv);
                _exit(127);
        }
        for (unsigned i = 0; (fd = connect_unix(rig->path)) < 0; i++) {
                must(i < 6000);
                (void) usleep(10000);
        }
        (void) close(fd);
}

void rig_kill(Rig *rig) {
        if (rig->helper <= 0)
                return;
        (void) kill(rig->helper, SIGKILL);
        must(waitpid(rig->helper, NULL, 0) == rig->helper);
        rig->helper = 0;
}

void rig_expect_state(Rig *rig, VhostFrontendState state) {
        for (unsigned i = 0; vhost_frontend_state(rig->frontend) != state; i++) {
                must(i < 60000);
                (void) usleep(1000);
        }
}

/* --- the driver --- */

#define COMMON(field) (RIG_COMMON + VIRTIO_PCI_COMMON_##field)

uint64_t rig_offered_features(Rig *rig) {
        uint64_t features;

        rig_write(rig, COMMON(DFSELECT), 0, 4);
        features = rig_read(rig, COMMON(DF), 4);
        rig_write(rig, COMMON(DFSELECT), 1, 4);
        return features | (uint64_t) rig_read(rig, COMMON(DF), 4) << 32;
}

uint8_t rig_negotiate(Rig *rig, uint64_t without) {
        uint64_t features;

        rig_reset(rig);
        rig_write(rig, COMMON(STATUS), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, 1);
        features = rig_offered_features(rig) & ~without;
        for (uint32_t i = 0; i < 2; i++) {
                rig_write(rig, COMMON(GFSELECT), i, 4);
                rig_write(rig, COMMON(GF), (uint32_t) (features >> (32 * i)), 4);
        }
        rig_write(rig, COMMON(STATUS), rig_read(rig, COMMON(STATUS), 1) | VIRTIO_CONFIG_S_FEATURES_OK, 1);
        return (uint8_t) rig_read(rig, COMMON(STATUS), 1);
}

void rig_set_queue(Rig *rig, unsigned index) {
        uint64_t base = 0x10000 * (uint64_t) (index + 1);
        RigQueue *q = &rig->queues[index];
        uint8_t *memory = guest_memory_at(&rig->memory, base, 0x10000);

        must(memory);
        memset(memory, 0, 0x10000);
        *q = (RigQueue) { .descriptors = (void *) memory, .available = (void *) (memory + 0x1000), .used = (void *) (memory + 0x2000) };
        rig_write(rig, COMMON(Q_SELECT), index, 2);
        rig_write(rig, COMMON(Q_SIZE), RIG_QUEUE_SIZE, 2);
        rig_write(rig, COMMON(Q_DESCLO), (uint32_t) base, 4);
        rig_write(rig, COMMON(Q_DESCHI), 0, 4);
        rig_write(rig, COMMON(Q_AVAILLO), (uint32_t) base + 0x1000, 4);
        rig_write(rig, COMMON(Q_AVAILHI), 0, 4);
        rig_write(rig, COMMON(Q_USEDLO), (uint32_t) base + 0x2000, 4);
        rig_write(rig, COMMON(Q_USEDHI), 0, 4);
        rig_write(rig, COMMON(Q_ENABLE), 1, 2);
}

uint8_t rig_drive(Rig *rig) {
        must(rig_negotiate(rig, UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX) & VIRTIO_CONFIG_S_FEATURES_OK);
        rig_set_queue(rig, 0);
        rig_write(rig, COMMON(STATUS), rig_read(rig, COMMON(STATUS), 1) | VIRTIO_CONFIG_S_DRIVER_OK, 1);
        return (uint8_t) rig_read(rig, COMMON(STATUS), 1);
}

void rig_reset(Rig *rig) {
        rig_write(rig, COMMON(STATUS), 0, 1);
        must(rig_read(rig, COMMON(STATUS), 1) == 0);
}

void rig_submit(Rig *rig, unsigned queue, uint16_t descriptor, uint64_t buffer, uint32_t size) {
        RigQueue *q = &rig->queues[queue];
        uint16_t index = q->available->idx;

        q->descriptors[descriptor] = (struct vring_desc) { .addr = buffer, .len = size, .flags = VRING_DESC_F_WRITE };
        q->available->ring[index % RIG_QUEUE_SIZE] = descriptor;
        __atomic_store_n(&q->available->idx, (uint16_t) (index + 1), __ATOMIC_RELEASE);
        rig_write(rig, RIG_NOTIFY + 4 * queue, queue, 2);
}

bool rig_used(Rig *rig, unsigned queue, int msec, struct vring_used_elem *ret) {
        RigQueue *q = &rig->queues[queue];
        struct pollfd p = { .fd = vhost_frontend_queue(rig->frontend, queue)->call_fd, .events = POLLIN };
        uint64_t until = now_usec() + (uint64_t) msec * USEC_PER_MSEC, now, count;

        while (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->used_seen) {
                now = now_usec();
                if (now >= until)
                        return false;
                if (poll(&p, 1, (int) ((until - now) / USEC_PER_MSEC + 1)) > 0)
                        (void) !read(p.fd, &count, sizeof(count));
        }
        *ret = q->used->ring[q->used_seen++ % RIG_QUEUE_SIZE];
        return true;
}
