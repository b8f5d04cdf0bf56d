/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "catalog-ids.h"
#include "json-util.h"
#include "log.h"
#include "machine-device-internal.h"
#include "machine-internal.h"
#include "reload.h"
#include "restore-memory.h"
#include "restore.h"
#include "snapshot-device.h"
#include "snapshot-memory.h"
#include "snapshot.h"
#include "userfault.h"

#define META_SECTION "snapshot"
#define META_VERSION 1

/* A piece of memory takes as long at most. */
#define EXTEND_USEC (60 * USEC_PER_SEC)

struct Restore {
        int memory_fd, userfaultfd;
        SnapshotMemory *file; /* of memory_fd */
        void *buffer;
        StateReader *reader;
        json_object *meta;
        SavedDevice *devices; /* n_devices, in the machine's order */
        size_t n_devices;
        bool helpers_asked;
        int error;            /* of the helpers */
        char *message;

        RestoreMemory *memory; /* NULL: it is all there */
        atomic_bool memory_done;
        atomic_int memory_error;
        bool running;
        bool resumes; /* who is released goes on */
        size_t n_active, n_held; /* devices with a driver; of these, which had to wait for the last page */
        uint64_t begin_usec, run_usec, devices_usec, memory_usec;
};

Restore *restore_free(Restore *r) {
        if (!r)
                return NULL;
        (void) restore_memory_free(r->memory);
        (void) snapshot_memory_free(r->file);
        (void) safe_close(r->memory_fd);
        (void) safe_close(r->userfaultfd);
        (void) state_reader_free(r->reader);
        json_putp(&r->meta);
        for (size_t i = 0; i < r->n_devices; i++)
                saved_device_done(&r->devices[i]);
        free(r->devices);
        free(r->buffer);
        free(r->message);
        return mfree(r);
}

/* --- the files --- */

bool restore_files_take(RestoreFiles *files, const char *name, int fd) {
        const struct {
                const char *name;
                int *fd;
        } known[] = {
                { "restore-state", &files->state_fd },
                { "restore-memory", &files->memory_fd },
                { "restore-userfaultfd", &files->userfaultfd_fd },
        };

        for (size_t i = 0; i < ELEMENTSOF(known); i++)
                if (streq(name, known[i].name) && *known[i].fd < 0) {
                        *known[i].fd = fd;
                        (void) sd_notifyf(false, "FDSTOREREMOVE=1\nFDNAME=%s", name);
                        return true;
                }
        return false;
}

int restore_files_open(RestoreFiles *files, const char *directory, char **ret_message) {
        _cleanup_close_ int dir = open(directory, O_DIRECTORY | O_CLOEXEC);

        if (dir < 0)
                return set_message(ret_message, -errno, "Cannot open the snapshot %s: %s.", directory, strerror(errno));
        files->state_fd = openat(dir, "state", O_RDONLY | O_CLOEXEC | O_NOCTTY);
        files->memory_fd = openat(dir, "memory", O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (files->state_fd < 0 || files->memory_fd < 0)
                return set_message(ret_message, -errno, "Cannot open the files of the snapshot %s: %s.", directory, strerror(errno));
        files->userfaultfd_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC); /* where there is none it may be had otherwise */
        return 0;
}

/* --- what can be checked before there is a machine --- */

static int read_meta(Restore *r, char **ret_message) {
        const char *text;
        size_t size;
        int k;

        k = state_enter(r->reader, META_SECTION, 0, META_VERSION);
        if (k < 0)
                return set_message(ret_message, k, "The snapshot does not say of what it is, or in a newer version's words.");
        text = state_get_blob_view(r->reader, SNAPSHOT_META_MAX, &size);
        k = state_leave(r->reader, ret_message);
        return k < 0 ? k : snapshot_meta_parse(text, size, &r->meta, ret_message);
}

/* What a snapshot has beside what a successor of this process is given. */
static uint32_t own_section(const char *name) {
        static const struct {
                const char *name;
                uint32_t version;
        } own[] = {
                { META_SECTION, META_VERSION },  { "x86-cpuid", 1 }, { "arm64-cpu", 1 }, { SNAPSHOT_VHOST_SECTION, SNAPSHOT_DEVICE_VERSION },
                { SNAPSHOT_IN_FLIGHT_SECTION, SNAPSHOT_DEVICE_VERSION }, { SNAPSHOT_BUS_SECTION, SNAPSHOT_DEVICE_VERSION },
        };

        for (size_t i = 0; i < ELEMENTSOF(own); i++)
                if (streq(own[i].name, name))
                        return own[i].version;
        return 0;
}

/* All of them before any is read: what is unknown is told by its name. */
static int check_sections(const StateReader *reader, char **ret_message) {
        uint32_t instance, version;
        const char *name;
        int r = 0;

        for (size_t i = 0; state_reader_section(reader, i, &name, &instance, &version) && r >= 0; i++) {
                uint32_t latest = own_section(name);

                if (latest == 0)
                        r = reload_section_check(name, version, ret_message);
                else if (version > latest)
                        r = set_message(ret_message, -EPROTONOSUPPORT, "the state's section '%s' has version %" PRIu32 ", and this vmmd knows 1 to %" PRIu32,
                                name, version, latest);
        }
        return r;
}

static int open_state(Restore *r, int state_fd, const MachineDefinition *d, char **ret_message) {
        const void *data;
        size_t size;
        int k;

        k = snapshot_read_state(state_fd, &r->buffer, &data, &size, ret_message);
        if (k >= 0)
                k = state_reader_new(data, size, &r->reader, ret_message);
        if (k >= 0)
                k = check_sections(r->reader, ret_message);
        if (k >= 0)
                k = read_meta(r, ret_message);
        if (k >= 0)
                k = snapshot_check_definition(r->meta, d, ret_message);
        return k < 0 ? k : snapshot_memory_open(r->memory_fd, d->memory, snapshot_meta_compression(r->meta), &r->file, ret_message);
}

int restore_new(RestoreFiles *files, const MachineDefinition *d, Restore **ret, char **ret_message) {
        _cleanup_(restore_freep) Restore *r = NULL;
        _cleanup_close_ int state = TAKE_FD(files->state_fd), memory = TAKE_FD(files->memory_fd), userfaultfd = TAKE_FD(files->userfaultfd_fd);
        int k;

        if (state < 0 && memory < 0) {
                *ret = NULL;
                return 0;
        }
        if (state < 0 || memory < 0)
                return set_message(ret_message, -EBADF, "A snapshot is two files, of which one was not handed over.");
        r = calloc(1, sizeof(Restore));
        if (!r)
                return -ENOMEM;
        *r = (Restore) { .memory_fd = TAKE_FD(memory), .userfaultfd = TAKE_FD(userfaultfd), .begin_usec = now_usec() };
        k = open_state(r, state, d, ret_message);
        if (k < 0)
                return k;
        *ret = TAKE_PTR(r);
        return 0;
}

/* --- the machine is being built --- */

static int check_slot(const MachineDevice *d, int64_t slot, char **ret_message) {
        int64_t now = d->virtio ? (int64_t) virtio_pci_device(d->virtio)->slot : -1;

        if (now == slot)
                return 0;
        return set_message(ret_message, -EXDEV, "Device '%s' was in PCI slot %" PRIi64 ", and is in %" PRIi64 ".", d->definition->name, slot, now);
}

int restore_devices(Machine *m, char **ret_message) {
        Restore *r = m->restore;
        int k = 0;

        r->devices = calloc(MAX(m->n_devices, (size_t) 1), sizeof(SavedDevice));
        if (!r->devices)
                return -ENOMEM;
        r->n_devices = m->n_devices;
        for (unsigned i = 0; i < m->n_devices && k >= 0; i++) {
                MachineDevice *d = m->devices[i];
                SnapshotDevice then;

                snapshot_meta_device(r->meta, i, &then); /* as many as the definition has: that was checked */
                k = check_slot(d, then.slot, ret_message);
                if (k >= 0)
                        k = saved_device_read(d, i, r->reader, &r->devices[i], ret_message);
                /* The helper takes it up when it is greeted. */
                if (k >= 0 && d->bus)
                        bus_client_set_state(d->bus, r->devices[i].bus_state);
        }
        return k;
}

/* Any thread. */
static void on_memory(int error, void *userdata) {
        Machine *m = userdata;

        /* Nobody can end a vCPU's wait for a page but who answers it: with zeroes, from here on, so that none is to enter the guest again. */
        if (error < 0)
                vcpu_set_pause(&m->vcpus);
        m->restore->memory_usec = now_usec();
        m->restore->memory_error = error;
        m->restore->memory_done = true;
        machine_request(m, MACHINE_REQUEST_RESTORED);
}

/* Huge pages are of the kind that cannot come one by one; and who wants memory beforehand has it. */
static bool wants_memory_at_once(const MachineDefinition *d) {
        return d->huge_page_size > 0 || d->prefault;
}

/* The unit is starting, and its time to do so is not meant for the reading of memory of any size. */
static void tell_manager(void *userdata) {
        (void) sd_notifyf(false, "EXTEND_TIMEOUT_USEC=%llu", (unsigned long long) EXTEND_USEC);
}

int restore_memory(Machine *m, char **ret_message) {
        Restore *r = m->restore;
        int k, uffd;

        k = arch_cpu_load(&m->vcpus, r->reader, ret_message);
        if (k < 0)
                return k;
        if (wants_memory_at_once(m->definition))
                return restore_memory_read(&m->memory, r->file, tell_manager, NULL, ret_message);
        uffd = userfault_new(r->userfaultfd);
        k = uffd < 0 ? uffd : restore_memory_new(uffd, &m->memory, r->file, on_memory, m, &r->memory);
        if (k >= 0)
                return 0;
        log_notice("There is no userfaultfd for us here (%s): the guest's memory is read before it runs.", strerror(-k));
        return restore_memory_read(&m->memory, r->file, tell_manager, NULL, ret_message);
}

/* --- the helpers have answered --- */

bool restore_wants_helpers(const Machine *m) {
        return m->restore && !m->restore->helpers_asked && !m->ended;
}

void restore_helpers(Machine *m) {
        Restore *r = m->restore;

        r->helpers_asked = true;
        for (unsigned i = 0; i < r->n_devices && r->error >= 0; i++) {
                _cleanup_free_ char *message = NULL;
                MachineDevice *d = m->devices[i];

                if (!d->frontend)
                        continue;
                r->error = vhost_frontend_restore(d->frontend, &r->devices[i].vhost, &message);
                if (r->error < 0)
                        (void) set_message(&r->message, 0, "Device '%s': %s.", d->definition->name, message ?: strerror(-r->error));
        }
}

static int load(Machine *m, char **ret_message) {
        Restore *r = m->restore;
        int k;

        if (r->error < 0)
                return set_message(ret_message, r->error, "%s", r->message ?: strerror(-r->error));
        k = machine_load(m, r->reader, ret_message);
        for (unsigned i = 0; i < r->n_devices && k >= 0; i++) {
                MachineDevice *d = m->devices[i];

                if (!d->frontend)
                        continue;
                k = vhost_frontend_restored(d->frontend, &r->devices[i].vhost);
                if (k < 0)
                        return set_message(ret_message, k, "Device '%s': its queues do not lie in the guest's memory.", d->definition->name);
                if (r->memory && r->userfaultfd >= 0)
                        vhost_frontend_serve_pages(d->frontend, r->memory, r->userfaultfd);
        }
        return k < 0 ? k : state_reader_finish(r->reader, ret_message);
}

/* Where it does not fit nothing has run yet: a start that was refused, like that of a wrong definition. */
static void refuse(Machine *m, const char *message) {
        machine_problem(m, MESSAGE_SNAPSHOT_REFUSED, "The snapshot cannot be restored: %s", message);
        machine_finish(m, MACHINE_RESULT_DEFINITION, m->last_problem ?: "The snapshot cannot be restored.");
}

void restore_run(Machine *m) {
        _cleanup_free_ char *message = NULL;
        Restore *r = m->restore;
        int k;

        /* Somebody had it reset meanwhile: then it boots. */
        if (m->ended || m->goal != GOAL_NONE)
                return;
        k = load(m, &message);
        if (k < 0) {
                refuse(m, message ?: strerror(-k));
                return;
        }
        r->running = true;
        r->run_usec = now_usec();
        m->devices_suspended = true;
        vcpu_set_resume(&m->vcpus, false);
        log_info("The guest goes on from the snapshot of '%s', %" PRIu64 " ms after the snapshot was opened.",
                json_get_string(r->meta, "machine", ""), (r->run_usec - r->begin_usec) / USEC_PER_MSEC);
        if (!r->memory) {
                on_memory(0, m);
                return;
        }
        restore_memory_begin(r->memory);
        machine_begin_work(m, WORK_RESUME);
}

/* --- memory --- */

void restore_devices_resumed(Machine *m) {
        Restore *r = m->restore;

        if (!r || r->devices_usec != 0)
                return;
        for (unsigned i = 0; i < MIN(r->n_devices, m->n_devices); i++) {
                const MachineDevice *d = m->devices[i];

                if (!d->frontend || !r->devices[i].vhost.active)
                        continue;
                r->n_active++;
                if (!vhost_frontend_is_held(d->frontend))
                        continue;
                r->n_held++;
                log_info("Device '%s' waits until all of the guest's memory is there.", d->definition->name);
        }
        r->devices_usec = now_usec();
}

static void tell_restored(Machine *m) {
        Restore *r = m->restore;
        RestoreMemoryStatistics statistics = {};

        if (r->memory)
                restore_memory_statistics(r->memory, &statistics);
        log_id(LOG_INFO, MESSAGE_SNAPSHOT_RESTORED,
                "Machine '%s' is restored: the guest ran after %" PRIu64 " ms, %zu of %zu devices after %" PRIu64 " ms, all memory was there after %" PRIu64
                " ms (%" PRIu64 " MiB read while it ran, %" PRIu64 " pages waited for).",
                m->definition->name, (r->run_usec - r->begin_usec) / USEC_PER_MSEC, r->n_active - r->n_held, r->n_active,
                (r->devices_usec - r->begin_usec) / USEC_PER_MSEC, (r->memory_usec - r->begin_usec) / USEC_PER_MSEC, statistics.bytes >> 20, statistics.faults);
}

void restore_update(Machine *m) {
        Restore *r = m->restore;

        if (!r || !r->memory_done || m->ended)
                return;
        if (r->memory_error < 0) {
                machine_problem(m, MESSAGE_GUEST_CRASHED, "The rest of the guest's memory cannot be read from the snapshot: %s",
                        (r->memory ? restore_memory_message(r->memory) : NULL) ?: strerror(-r->memory_error));
                machine_finish(m, MACHINE_RESULT_ERROR, m->last_problem ?: "The snapshot's memory cannot be read.");
                return;
        }
        if (m->work != WORK_NONE)
                return; /* whose end brings us here again */
        /* Who paused the machine with its devices also has them resumed. */
        r->resumes = !m->devices_suspended || (m->goal == GOAL_NONE && m->state != MACHINE_PAUSED);
        machine_begin_work(m, WORK_RELEASE);
}

void restore_release(Machine *m) {
        machine_devices_release(m);
        if (m->restore->resumes)
                machine_devices_resume(m);
        restore_devices_resumed(m);
}

void restore_released(Machine *m) {
        if (m->restore->resumes)
                m->devices_suspended = false;
        tell_restored(m);
        m->restore = restore_free(m->restore);
}

void restore_cancel(Machine *m) {
        if (!m->restore)
                return;
        log_info("The guest was reset before all of its memory was restored.");
        machine_devices_release(m); /* asks nobody, where no driver is at work */
        m->restore = restore_free(m->restore);
}
