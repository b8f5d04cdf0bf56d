/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "json-util.h"
#include "snapshot.h"

/* All little-endian: magic, format, reserved, the size of what follows, and its checksum (CRC-64 of ECMA-182, reflected, as in xz). */
#define MAGIC "VMMSNAP\n"
#define HEAD_SIZE 32U
#define CRC64_POLYNOMIAL UINT64_C(0xC96C5795D7870F42)

#define DISK_VERSION 1

/* --- the file `state` --- */

uint64_t snapshot_checksum(const void *data, size_t size) {
        const uint8_t *p = data;
        uint64_t table[256], crc = UINT64_MAX;

        for (unsigned i = 0; i < ELEMENTSOF(table); i++) {
                uint64_t v = i;

                for (unsigned bit = 0; bit < 8; bit++)
                        v = v & 1 ? v >> 1 ^ CRC64_POLYNOMIAL : v >> 1;
                table[i] = v;
        }
        for (size_t i = 0; i < size; i++)
                crc = table[(crc ^ p[i]) & 0xff] ^ crc >> 8;
        return ~crc;
}

int snapshot_write_state(int fd, const void *data, size_t size) {
        uint8_t head[HEAD_SIZE] = {};
        int r;

        /* Rather none than one that nobody reads. */
        if (size > SNAPSHOT_STATE_MAX - HEAD_SIZE)
                return -E2BIG;

        memcpy(head, MAGIC, 8);
        store_le32(head + 8, SNAPSHOT_FORMAT);
        store_le64(head + 16, size);
        store_le64(head + 24, snapshot_checksum(data, size));
        r = write_full(fd, head, sizeof(head));
        return r < 0 ? r : write_full(fd, data, size);
}

int snapshot_parse_state(const void *buffer, size_t size, const void **ret_data, size_t *ret_size, char **ret_message) {
        const uint8_t *p = buffer;

        if (size < HEAD_SIZE || memcmp(p, MAGIC, 8) != 0)
                return set_message(ret_message, -EBADMSG, "The file 'state' is not of a snapshot, or cut off.");
        if (load_le32(p + 8) != SNAPSHOT_FORMAT)
                return set_message(ret_message, -EPROTONOSUPPORT, "The snapshot has format %u; this version reads %u.", load_le32(p + 8),
                        SNAPSHOT_FORMAT);
        if (load_le64(p + 16) != size - HEAD_SIZE)
                return set_message(ret_message, -EBADMSG, "The file 'state' has %zu bytes, and should have %" PRIu64 ": it is cut off or damaged.",
                        size, load_le64(p + 16) + HEAD_SIZE);
        if (load_le64(p + 24) != snapshot_checksum(p + HEAD_SIZE, size - HEAD_SIZE))
                return set_message(ret_message, -EBADMSG, "The file 'state' is damaged: its checksum is wrong.");
        *ret_data = p + HEAD_SIZE;
        *ret_size = size - HEAD_SIZE;
        return 0;
}

int snapshot_read_state(int fd, void **ret_buffer, const void **ret_data, size_t *ret_size, char **ret_message) {
        _cleanup_free_ char *buffer = NULL;
        size_t size;
        int r;

        if (lseek(fd, 0, SEEK_SET) < 0)
                return set_message(ret_message, -errno, "Cannot read the file 'state': %s.", strerror(errno));
        r = read_whole_fd(fd, SNAPSHOT_STATE_MAX, &buffer, &size);
        if (r < 0)
                return set_message(ret_message, r, "Cannot read the file 'state': %s.", strerror(-r));
        r = snapshot_parse_state(buffer, size, ret_data, ret_size, ret_message);
        if (r < 0)
                return r;
        *ret_buffer = TAKE_PTR(buffer);
        return 0;
}

/* --- what it is of --- */

const char *snapshot_architecture(void) {
#if defined(__x86_64__)
        return "x86_64";
#elif defined(__aarch64__)
        return "aarch64";
#else
#error "no such architecture"
#endif
}

static uint64_t get_u64(json_object *from, const char *key) {
        json_object *v = json_get(from, key, json_type_int);

        return v ? json_object_get_uint64(v) : 0;
}

static bool device_is_valid(json_object *o) {
        int64_t queues = json_get_integer(o, "queues", -1), slot = json_get_integer(o, "slot", -1);

        return device_name_is_valid(json_get_string(o, "name", "")) && json_get_string(o, "type", NULL) && queues >= 0 && queues <= 1024 &&
                slot >= -1 && slot < 256;
}

static bool disk_is_valid(json_object *o) {
        int64_t nsec = json_get_integer(o, "modifiedNsec", -1);

        return device_name_is_valid(json_get_string(o, "device", "")) && json_get(o, "size", json_type_int) &&
                json_get(o, "modifiedSec", json_type_int) && nsec >= 0 && nsec < (int64_t) NSEC_PER_SEC;
}

static bool all_are_valid(json_object *array, bool (*is_valid)(json_object *o)) {
        if (!array)
                return false;
        for (size_t i = 0; i < json_object_array_length(array); i++)
                if (!is_valid(json_object_array_get_idx(array, i)))
                        return false;
        return true;
}

int snapshot_meta_parse(const char *text, size_t size, json_object **ret, char **ret_message) {
        _cleanup_json_ json_object *meta = NULL;
        struct json_tokener *tokener;
        int64_t format;

        if (size == 0 || size > SNAPSHOT_META_MAX)
                return set_message(ret_message, -EBADMSG, "The snapshot's meta data is empty or too long.");
        tokener = json_tokener_new_ex(8);
        if (!tokener)
                return -ENOMEM;
        meta = json_tokener_parse_ex(tokener, text, (int) size);
        json_tokener_free(tokener);
        if (!meta || !json_object_is_type(meta, json_type_object))
                return set_message(ret_message, -EBADMSG, "The snapshot's meta data is no JSON object.");

        format = json_get_integer(meta, "format", 0);
        if (format < SNAPSHOT_META_FORMAT_PLAIN || format > SNAPSHOT_META_FORMAT)
                return set_message(ret_message, format > 0 ? -EPROTONOSUPPORT : -EBADMSG,
                        "The snapshot has format %" PRIi64 "; this version reads %u.", format, SNAPSHOT_META_FORMAT);
        if (format > SNAPSHOT_META_FORMAT_PLAIN && !snapshot_meta_compression(meta))
                return set_message(ret_message, -EPROTONOSUPPORT, "The snapshot's memory is compressed in a way that this version does not know.");
        if (!json_get_string(meta, "architecture", NULL) || !json_get_string(meta, "machine", NULL) || get_u64(meta, "memory") == 0 ||
                get_u64(meta, "vcpus") == 0 || !all_are_valid(json_get(meta, "devices", json_type_array), device_is_valid) ||
                !all_are_valid(json_get(meta, "disks", json_type_array), disk_is_valid))
                return set_message(ret_message, -EBADMSG, "The snapshot's meta data lacks what it should have.");
        *ret = TAKE_PTR(meta);
        return 0;
}

const char *snapshot_meta_compression(json_object *meta) {
        const char *compression = json_get_string(meta, "compression", NULL);

        if (json_get_integer(meta, "format", 0) == SNAPSHOT_META_FORMAT_PLAIN)
                return NULL;
        return compression && streq(compression, SNAPSHOT_COMPRESSION) ? compression : NULL;
}

size_t snapshot_meta_n_devices(json_object *meta) {
        return json_object_array_length(json_get(meta, "devices", json_type_array));
}

void snapshot_meta_device(json_object *meta, size_t i, SnapshotDevice *ret) {
        json_object *o = json_object_array_get_idx(json_get(meta, "devices", json_type_array), i);

        *ret = (SnapshotDevice) {
                .name = json_get_string(o, "name", ""),
                .type = json_get_string(o, "type", ""),
                .slot = json_get_integer(o, "slot", -1),
                .queues = (unsigned) json_get_integer(o, "queues", 0),
                .features = get_u64(o, "features"),
        };
}

size_t snapshot_meta_n_disks(json_object *meta) {
        return json_object_array_length(json_get(meta, "disks", json_type_array));
}

void snapshot_meta_disk(json_object *meta, size_t i, SnapshotDisk *ret) {
        json_object *o = json_object_array_get_idx(json_get(meta, "disks", json_type_array), i);

        *ret = (SnapshotDisk) {
                .device = json_get_string(o, "device", ""),
                .size = get_u64(o, "size"),
                .mtime_sec = json_get_integer(o, "modifiedSec", 0),
                .mtime_nsec = (uint32_t) json_get_integer(o, "modifiedNsec", 0),
                .inode = get_u64(o, "inode"),
                .is_device = json_get_boolean(o, "blockDevice", false),
        };
}

int snapshot_disk_to_json(const SnapshotDisk *disk, const char *path, json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "device", disk->device);
        if (r >= 0)
                r = json_add_string(o, "path", path);
        if (r >= 0)
                r = json_add(o, "size", json_object_new_uint64(disk->size));
        if (r >= 0)
                r = json_add_integer(o, "modifiedSec", disk->mtime_sec);
        if (r >= 0)
                r = json_add_integer(o, "modifiedNsec", disk->mtime_nsec);
        if (r >= 0)
                r = json_add(o, "inode", json_object_new_uint64(disk->inode));
        if (r >= 0)
                r = json_add_boolean(o, "blockDevice", disk->is_device);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(o);
        return 0;
}

static int check_device(const SnapshotDevice *then, const DeviceDefinition *now, char **ret_message) {
        bool bus = now->type->transport == DEVICE_TRANSPORT_BUS;

        if (!streq(then->name, now->name))
                return set_message(ret_message, -EXDEV, "Where the snapshot has device '%s', the machine has '%s'.", then->name, now->name);
        if (!streq(then->type, now->type->name))
                return set_message(ret_message, -EXDEV, "Device '%s' is of type %s in the snapshot, and of type %s in the machine.", then->name,
                        then->type, now->type->name);
        if (!bus && then->queues != device_definition_queues(now))
                return set_message(ret_message, -EXDEV, "Device '%s' has %u queues in the snapshot, and %u in the machine.", then->name,
                        then->queues, device_definition_queues(now));
        return 0;
}

int snapshot_check_definition(json_object *meta, const MachineDefinition *d, char **ret_message) {
        const char *architecture = json_get_string(meta, "architecture", "");
        uint64_t memory = get_u64(meta, "memory"), vcpus = get_u64(meta, "vcpus");
        size_t n = snapshot_meta_n_devices(meta);
        int r = 0;

        if (!streq(architecture, snapshot_architecture()))
                return set_message(ret_message, -EXDEV, "The snapshot is of a machine of %s; this host is %s.", architecture, snapshot_architecture());
        if (memory != d->memory)
                return set_message(ret_message, -EXDEV, "The snapshot is of a machine with %" PRIu64 " bytes of memory, and this one has %" PRIu64 ".",
                        memory, d->memory);
        if (vcpus != d->vcpus)
                return set_message(ret_message, -EXDEV, "The snapshot is of a machine with %" PRIu64 " vCPUs, and this one has %u.", vcpus, d->vcpus);
        for (size_t i = 0; i < n && r >= 0; i++) {
                SnapshotDevice device;

                snapshot_meta_device(meta, i, &device);
                if (i >= d->n_devices)
                        return set_message(ret_message, -EXDEV, "Device '%s' (%s) of the snapshot is not in the machine's definition.", device.name,
                                device.type);
                r = check_device(&device, &d->devices[i], ret_message);
        }
        if (r >= 0 && n < d->n_devices)
                return set_message(ret_message, -EXDEV, "Device '%s' of the machine is not in the snapshot.", d->devices[n].name);
        return r;
}

/* --- disks, which are not part of it --- */

int snapshot_disk_look(int fd, SnapshotDisk *ret) {
        struct stat st;
        uint64_t size;

        if (fstat(fd, &st) < 0)
                return -errno;
        *ret = (SnapshotDisk) { .size = (uint64_t) st.st_size, .inode = st.st_ino };
        if (!S_ISBLK(st.st_mode)) {
                ret->mtime_sec = st.st_mtim.tv_sec;
                ret->mtime_nsec = (uint32_t) st.st_mtim.tv_nsec;
                return 0;
        }
        if (ioctl(fd, BLKGETSIZE64, &size) < 0)
                return -errno;
        ret->is_device = true;
        ret->size = size;
        return 0;
}

int snapshot_disk_compare(const SnapshotDisk *then, const SnapshotDisk *now, const char *what, char **ret_message) {
        if (then->is_device != now->is_device)
                return set_message(ret_message, -ESTALE, "%s was a %s when the snapshot was taken.", what, then->is_device ? "block device" : "file");
        if (then->size != now->size)
                return set_message(ret_message, -ESTALE, "%s had %" PRIu64 " bytes when the snapshot was taken, and has %" PRIu64 ".", what,
                        then->size, now->size);
        if (then->mtime_sec != now->mtime_sec || then->mtime_nsec != now->mtime_nsec)
                return set_message(ret_message, -ESTALE,
                        "%s was written to after the snapshot was taken (or is a copy that did not keep its time of modification).", what);
        return 0;
}

void snapshot_disk_save(const SnapshotDisk *disk, StateWriter *w) {
        state_begin(w, SNAPSHOT_DISK_SECTION, 0, DISK_VERSION);
        state_put_u64(w, disk->size);
        state_put_u64(w, (uint64_t) disk->mtime_sec);
        state_put_u32(w, disk->mtime_nsec);
        state_put_u64(w, disk->inode);
        state_put_u8(w, disk->is_device);
}

int snapshot_disk_load(StateReader *r, SnapshotDisk *ret, char **ret_message) {
        SnapshotDisk disk = {};
        int k;

        k = state_enter(r, SNAPSHOT_DISK_SECTION, 0, DISK_VERSION);
        if (k < 0)
                return k;
        disk.size = state_get_u64(r);
        disk.mtime_sec = (int64_t) state_get_u64(r);
        disk.mtime_nsec = state_get_u32(r);
        disk.inode = state_get_u64(r);
        disk.is_device = state_get_u8(r);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        *ret = disk;
        return 0;
}
