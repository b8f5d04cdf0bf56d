/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A snapshot of a machine on disk, vmm.snapshot(5): what vmmd writes and reads, and vmmctl looks at, too.
 *
 * It is three files. `state` is a head and a state (state.h) of which the head has a checksum: truncated or changed it is refused. `memory` is the guest's RAM as the
 * memfd behind it has it: as long as that, with holes where nothing but zeroes was, or compressed (vmmd/snapshot-memory.h). `meta.json` says what the two are of, for people and for checks before anything is
 * started; the same text is within `state`, and that one counts. */

#include <json-c/json.h>

#include "definition.h"
#include "state.h"

/* Of the file `state`; and of meta data, of which the later is that of snapshots whose memory is compressed, so that an earlier version says by name what it cannot read. */
#define SNAPSHOT_FORMAT 1
#define SNAPSHOT_META_FORMAT_PLAIN 1
#define SNAPSHOT_META_FORMAT 2
/* The only way of compressing memory there is, as meta data has it. */
#define SNAPSHOT_COMPRESSION "zstd"
#define SNAPSHOT_STATE_MAX MIB(64)
#define SNAPSHOT_META_MAX MIB(1)
#define SNAPSHOT_DIRECTORY "/var/lib/vmm/snapshots"
/* Below it, a directory for each machine that is to be restored when it is started next; vmm-open takes it away. */
#define SNAPSHOT_RESTORE_DIRECTORY "/run/vmm-restore"

/* CRC-64 of ECMA-182, reflected, as in xz. */
uint64_t snapshot_checksum(const void *data, size_t size);

/* Writes the head and the state. -E2BIG where it would not be read again. */
int snapshot_write_state(int fd, const void *data, size_t size);
/* Reads and checks them: *ret_data lies within *ret_buffer, which is the caller's. -EBADMSG, -EPROTONOSUPPORT; the message says what is wrong. */
int snapshot_read_state(int fd, void **ret_buffer, const void **ret_data, size_t *ret_size, char **ret_message);
/* The same for bytes that are in memory already. */
int snapshot_parse_state(const void *buffer, size_t size, const void **ret_data, size_t *ret_size, char **ret_message);

/* A device as the snapshot has it. Strings belong to the meta data. */
typedef struct SnapshotDevice {
        const char *name, *type;
        int64_t slot; /* PCI; -1 for a device of registers */
        unsigned queues;
        uint64_t features; /* that its driver uses */
} SnapshotDevice;

/* A file behind a device, as it was when the snapshot was taken. */
typedef struct SnapshotDisk {
        const char *device;
        uint64_t size;
        int64_t mtime_sec;
        uint32_t mtime_nsec;
        uint64_t inode;
        bool is_device; /* a block device: of these only the size is known */
} SnapshotDisk;

/* Parses the text; anything that is not as it should be is -EBADMSG. */
int snapshot_meta_parse(const char *text, size_t size, json_object **ret, char **ret_message);
/* How its memory is compressed; NULL where it is not. */
const char *snapshot_meta_compression(json_object *meta);
size_t snapshot_meta_n_devices(json_object *meta);
/* Of meta data that was parsed. */
void snapshot_meta_device(json_object *meta, size_t i, SnapshotDevice *ret);
size_t snapshot_meta_n_disks(json_object *meta);
void snapshot_meta_disk(json_object *meta, size_t i, SnapshotDisk *ret);
int snapshot_disk_to_json(const SnapshotDisk *disk, const char *path, json_object **ret);

/* Whether a machine of that definition can take it: architecture, memory, vCPUs, devices. The message names what cannot. */
int snapshot_check_definition(json_object *meta, const MachineDefinition *d, char **ret_message);

/* The architecture that this program is built for, as in meta data. */
const char *snapshot_architecture(void);

/* What a helper says of the file that it serves, within its device state. */
#define SNAPSHOT_DISK_SECTION "disk"
void snapshot_disk_save(const SnapshotDisk *disk, StateWriter *w);
/* -ENOENT where there is none. */
int snapshot_disk_load(StateReader *r, SnapshotDisk *ret, char **ret_message);
/* Fills in what a descriptor tells. */
int snapshot_disk_look(int fd, SnapshotDisk *ret);
/* Whether what is there now is what was there then: its size, and of a file when it was written last. Not its inode: a copy that kept its times is as good. */
int snapshot_disk_compare(const SnapshotDisk *then, const SnapshotDisk *now, const char *what, char **ret_message);
