/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "catalog-ids.h"
#include "config.h"
#include "hotplug.h"
#include "json-util.h"
#include "log.h"
#include "machine-device-internal.h"
#include "machine-internal.h"
#include "reload.h"
#include "snapshot-device.h"
#include "snapshot-memory.h"
#include "snapshot-take.h"
#include "snapshot.h"

#define PAGE KIB(4)
/* Looked through in one go. */
#define PIECE MIB(1)

#define META_SECTION "snapshot"
#define META_VERSION 1

struct MachineSnapshot {
        int state_fd, memory_fd;
        bool compress;
        bool resume;     /* in the end */
        bool was_paused; /* so it stays, whatever comes of it */
        bool writing;
        atomic_bool cancelled;
        MachineSnapshotDone done;
        void *userdata;

        StateWriter *writer;
        char *cpu_model;
        json_object *meta, *disks;
        MachineDevice *devices[MACHINE_DEVICES_MAX]; /* references, as they are when it is taken */
        size_t n_devices;
        uint64_t begin_usec, memory_bytes, memory_stored;
        int error;
        char *message;
};

MachineSnapshot *machine_snapshot_free(MachineSnapshot *s) {
        if (!s)
                return NULL;
        (void) safe_close(s->state_fd);
        (void) safe_close(s->memory_fd);
        (void) state_writer_free(s->writer);
        json_putp(&s->meta);
        json_putp(&s->disks);
        for (size_t i = 0; i < s->n_devices; i++)
                (void) machine_device_unref(s->devices[i]);
        free(s->cpu_model);
        free(s->message);
        return mfree(s);
}

/* --- memory --- */

/* Where the file of the guest's memory has no pages the guest has seen none. Files of huge pages do not tell. */
static int find_data(int fd, uint64_t *offset, uint64_t end, uint64_t *ret_end) {
        off_t data, hole;

        data = lseek(fd, (off_t) *offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
                *offset = *ret_end = end;
                return 0;
        }
        hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0) {
                *ret_end = end;
                return errno == EINVAL ? 0 : -errno;
        }
        *offset = MIN(ALIGN_DOWN((uint64_t) data, PAGE), end);
        *ret_end = MIN(ALIGN_UP((uint64_t) hole, PAGE), end);
        return 0;
}

static int write_region(MachineSnapshot *s, SnapshotMemoryWriter *w, const GuestRegion *region) {
        uint64_t offset = region->fd_offset, end = offset + region->size, data_end;
        int r = 0;

        while (offset < end && r >= 0) {
                r = find_data(region->fd, &offset, end, &data_end);
                while (r >= 0 && offset < data_end) {
                        uint64_t length = MIN(data_end - offset, PIECE);

                        if (s->cancelled)
                                return -ECANCELED;
                        r = snapshot_memory_write(w, region->host + (offset - region->fd_offset), length, offset);
                        offset += length;
                }
        }
        return r;
}

static int write_memory(Machine *m, MachineSnapshot *s) {
        _cleanup_(snapshot_memory_writer_freep) SnapshotMemoryWriter *w = NULL;
        int r;

        r = snapshot_memory_writer_new(s->memory_fd, m->definition->memory, s->compress, &w);
        for (size_t i = 0; i < m->memory.n_regions && r >= 0; i++)
                r = write_region(s, w, &m->memory.regions[i]);
        if (r >= 0)
                r = snapshot_memory_writer_finish(w);
        if (r < 0)
                return r == -ECANCELED ? r : set_message(&s->message, r, "Cannot write the guest's memory: %s.", strerror(-r));
        s->memory_bytes = snapshot_memory_bytes(w);
        s->memory_stored = snapshot_memory_stored(w);
        return 0;
}

/* --- devices --- */

/* The files behind a device, by what its helper says of them. What else a helper says is its own business. */
static int note_disk(MachineSnapshot *s, MachineDevice *d, const void *state, size_t size) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        json_object *o = NULL;
        SnapshotDisk disk;
        int r;

        if (!state || state_reader_new(state, size, &reader, NULL) < 0 || snapshot_disk_load(reader, &disk, NULL) < 0)
                return 0;
        disk.device = d->definition->name;
        r = snapshot_disk_to_json(&disk, device_definition_string(d->definition, "path", NULL), &o);
        return r < 0 ? r : json_append(s->disks, o);
}

static int write_device(MachineSnapshot *s, unsigned index) {
        _cleanup_free_ void *state = NULL;
        MachineDevice *d = s->devices[index];
        size_t size = 0;
        int r;

        if (s->cancelled)
                return -ECANCELED;
        r = saved_device_write(d, index, s->writer, &state, &size, &s->message);
        return r < 0 ? r : note_disk(s, d, state, size);
}

static int describe_device_to(json_object *array, MachineDevice *d) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", d->definition->name);
        if (r >= 0)
                r = json_add_string(o, "type", d->definition->type->name);
        if (r >= 0)
                r = json_add_integer(o, "queues", d->frontend ? vhost_frontend_n_queues(d->frontend) : 0);
        if (r >= 0)
                r = json_add_integer(o, "slot", d->virtio ? (int64_t) virtio_pci_device(d->virtio)->slot : -1);
        if (r >= 0)
                r = json_add_boolean(o, "attached", machine_device_is_attached(d));
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

static int describe_devices(MachineSnapshot *s) {
        json_object *array = json_object_new_array();
        int r = array ? 0 : -ENOMEM;

        for (size_t i = 0; i < s->n_devices && r >= 0; i++)
                r = describe_device_to(array, s->devices[i]);
        if (r < 0) {
                json_object_put(array);
                return r;
        }
        return json_add(s->meta, "devices", array);
}

/* --- what it is of --- */

static int make_meta(const Machine *m, MachineSnapshot *s) {
        const MachineDefinition *d = m->definition;
        int r;

        s->meta = json_object_new_object();
        s->disks = json_object_new_array();
        if (!s->meta || !s->disks)
                return -ENOMEM;
        r = json_add_integer(s->meta, "format", s->compress ? SNAPSHOT_META_FORMAT : SNAPSHOT_META_FORMAT_PLAIN);
        if (r >= 0 && s->compress)
                r = json_add_string(s->meta, "compression", SNAPSHOT_COMPRESSION);
        if (r >= 0)
                r = json_add_string(s->meta, "producer", "vmmd " PROJECT_VERSION);
        if (r >= 0)
                r = json_add_string(s->meta, "machine", d->name);
        if (r >= 0)
                r = json_add_integer(s->meta, "taken", (int64_t) now_realtime_usec());
        if (r >= 0)
                r = json_add_string(s->meta, "architecture", snapshot_architecture());
        if (r >= 0)
                r = json_add_string(s->meta, "cpu", s->cpu_model);
        if (r >= 0)
                r = json_add(s->meta, "memory", json_object_new_uint64(d->memory));
        if (r >= 0)
                r = json_add_integer(s->meta, "vcpus", d->vcpus);
        return r < 0 ? r : describe_devices(s);
}

static int finish_meta(MachineSnapshot *s) {
        const char *text;
        int r;

        r = json_add(s->meta, "disks", json_object_get(s->disks));
        if (r >= 0)
                r = json_add(s->meta, "memoryWritten", json_object_new_uint64(s->memory_bytes));
        if (r >= 0)
                r = json_add(s->meta, "memoryStored", json_object_new_uint64(s->memory_stored));
        if (r < 0)
                return r;
        text = json_object_to_json_string_ext(s->meta, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        state_begin(s->writer, META_SECTION, 0, META_VERSION);
        state_put_blob(s->writer, text, strlen(text));
        return state_end(s->writer);
}

/* What only this process knows. All vCPUs parked, no helper at a ring. */
static int collect(Machine *m, MachineSnapshot *s) {
        int r;

        for (size_t i = 0; i < m->n_devices; i++)
                s->devices[s->n_devices++] = machine_device_ref(m->devices[i]);
        r = state_writer_new(&s->writer);
        if (r >= 0)
                r = arch_cpu_save(&m->vcpus, s->writer, &s->cpu_model);
        if (r >= 0)
                r = make_meta(m, s);
        if (r >= 0)
                r = machine_save(m, s->writer);
        return r < 0 ? set_message(&s->message, r, "Cannot read the machine's state: %s.", strerror(-r)) : 0;
}

/* --- the work, on its thread --- */

static int write_state(MachineSnapshot *s) {
        const void *data;
        size_t size;
        int r;

        r = finish_meta(s);
        if (r >= 0)
                r = state_writer_finish(s->writer, &data, &size);
        if (r >= 0)
                r = snapshot_write_state(s->state_fd, data, size);
        return r < 0 ? set_message(&s->message, r, "Cannot write the machine's state: %s.", strerror(-r)) : 0;
}

void machine_snapshot_write(Machine *m) {
        MachineSnapshot *s = m->snapshot;
        int r = 0;

        for (unsigned i = 0; i < s->n_devices && r >= 0; i++)
                r = write_device(s, i);
        if (r >= 0)
                r = write_memory(m, s);
        s->error = r < 0 ? r : write_state(s);
}

/* --- the loop's part --- */

static void finish(Machine *m) {
        MachineSnapshot *s = TAKE_PTR(m->snapshot);

        s->done(m, s->error, s->message, s->meta, s->userdata);
        (void) machine_snapshot_free(s);
}

static void on_resumed(Machine *m, int error, void *userdata) {
        MachineSnapshot *s = m->snapshot;

        if (s->error >= 0)
                log_id(LOG_INFO, MESSAGE_SNAPSHOT_TAKEN, "Took a snapshot of machine '%s': %llu MiB of memory, which take %llu MiB; the guest stood still for %llu ms.",
                        m->definition->name, (unsigned long long) (s->memory_bytes >> 20), (unsigned long long) (s->memory_stored >> 20),
                        (unsigned long long) ((now_usec() - s->begin_usec) / USEC_PER_MSEC));
        finish(m);
}

void machine_snapshot_written(Machine *m) {
        MachineSnapshot *s = m->snapshot;

        s->writing = false;
        if (s->error < 0 && s->error != -ECANCELED)
                log_warning("Cannot take a snapshot: %s", s->message ?: strerror(-s->error));
        /* Somebody who wanted something else of the machine gets it now. Where there is no snapshot nobody has a reason to keep the guest waiting. */
        if (m->goal != GOAL_NONE || m->state != MACHINE_PAUSED || s->was_paused || (!s->resume && s->error >= 0) ||
                machine_resume(m, on_resumed, NULL) < 0)
                on_resumed(m, 0, NULL);
}

static int check_devices(Machine *m, char **ret_message) {
        if (m->plugin)
                return set_message(ret_message, -EOPNOTSUPP, "The machine's hardware is a plugin's, and so is nearly all of its state.");
        for (size_t i = 0; i < m->n_devices; i++) {
                MachineDevice *d = m->devices[i];

                /* Which devices there are is the definition's word when it is restored. */
                if (machine_device_is_attached(d))
                        return set_message(ret_message, -EOPNOTSUPP,
                                "Device '%s' was attached while the machine ran, and no definition has it: detach it first.", d->definition->name);
                if (d->bus ? !bus_client_is_connected(d->bus) : vhost_frontend_state(d->frontend) != VHOST_FRONTEND_READY)
                        return set_message(ret_message, -EOPNOTSUPP, "Device '%s': its helper is not there.", d->definition->name);
                if (d->frontend && !vhost_frontend_can_save(d->frontend))
                        return set_message(ret_message, -EOPNOTSUPP,
                                "Device '%s' (%s) is of a kind that cannot tell its state (vhost-user's DEVICE_STATE).", d->definition->name,
                                d->definition->type->name);
        }
        return 0;
}

static void begin_writing(Machine *m) {
        MachineSnapshot *s = m->snapshot;

        /* Again: a device may have come while the machine was being paused. */
        s->error = check_devices(m, &s->message);
        if (s->error >= 0)
                s->error = collect(m, s);
        s->writing = true;
        if (s->error < 0)
                machine_snapshot_written(m);
        else
                machine_begin_work(m, WORK_SNAPSHOT);
}

static void on_paused(Machine *m, int error, void *userdata) {
        if (error >= 0) {
                begin_writing(m);
                return;
        }
        m->snapshot->error = error;
        finish(m);
}

void machine_snapshot_cancel(Machine *m) {
        if (m->snapshot)
                m->snapshot->cancelled = true;
}

/* Somebody's descriptors: what is written to a file that is read by others meanwhile, or to none at all, is no snapshot. */
static int check_file(int fd) {
        int flags = fcntl(fd, F_GETFL);
        struct stat st;

        if (flags < 0 || fstat(fd, &st) < 0)
                return -errno;
        return S_ISREG(st.st_mode) && st.st_size == 0 && (flags & O_ACCMODE) != O_RDONLY && !(flags & O_APPEND) ? 0 : -EINVAL;
}

/* What else is under way, in words. */
static int check_others(const Machine *m, char **ret_message) {
        _cleanup_free_ char *obstacle = hotplug_obstacle(m->hotplug);

        if (m->snapshot)
                return set_message(ret_message, -EOPNOTSUPP, "Another snapshot is just being taken.");
        if (m->restore)
                return set_message(ret_message, -EOPNOTSUPP, "The machine goes on from a snapshot, of which not all is there yet.");
        if (reload_is_under_way(m->reload))
                return set_message(ret_message, -EOPNOTSUPP, "Another vmmd is just taking the machine over.");
        return obstacle ? set_message(ret_message, -EOPNOTSUPP, "%s", obstacle) : 0;
}

static int take(Machine *m, MachineSnapshot *s, char **ret_message) {
        bool paused = m->state == MACHINE_PAUSED;
        int r;

        if ((m->state != MACHINE_RUNNING && !paused) || m->ended)
                return -EBUSY;
        r = check_others(m, ret_message);
        if (r < 0)
                return r;
        if (m->goal != GOAL_NONE || m->work != WORK_NONE)
                return -EBUSY;
        if (check_file(s->state_fd) < 0 || check_file(s->memory_fd) < 0)
                return -EINVAL;
        if (s->compress && !snapshot_memory_can_compress())
                return set_message(ret_message, -EOPNOTSUPP, "Memory cannot be compressed: this vmmd was built without zstd.");
        r = check_devices(m, ret_message);
        if (r < 0)
                return r;
        s->was_paused = paused;
        s->begin_usec = now_usec();
        m->snapshot = s;
        r = machine_suspend(m, on_paused, NULL);
        if (r < 0)
                m->snapshot = NULL;
        return r;
}

int machine_snapshot(Machine *m, int state_fd, int memory_fd, bool compress, bool resume, MachineSnapshotDone done, void *userdata, char **ret_message) {
        MachineSnapshot *s = calloc(1, sizeof(MachineSnapshot));
        int r;

        if (!s) {
                (void) safe_close(state_fd);
                (void) safe_close(memory_fd);
                return -ENOMEM;
        }
        *s = (MachineSnapshot) {
                .state_fd = state_fd, .memory_fd = memory_fd, .compress = compress, .resume = resume, .done = done, .userdata = userdata,
        };
        r = take(m, s, ret_message);
        if (r < 0)
                (void) machine_snapshot_free(s);
        return r;
}
