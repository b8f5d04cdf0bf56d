/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* snapshot take, restore, list, remove. A snapshot is a directory (lib/snapshot.h). It is made here, as the user who calls, under a name that is none, and gets its own when all of it is
 * on the disk: whatever goes wrong before, an earlier one of that name is as it was. */

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "bus.h"
#include "machine.h"
#include "output.h"
#include "snapshot.h"
#include "unit-name.h"

static const char *const file_names[] = { "state", "memory", "meta.json" };
enum { FILE_STATE, FILE_MEMORY, FILE_META, FILES };

static const char *directory_of(const Options *o) {
        return o->directory ?: SNAPSHOT_DIRECTORY;
}

static char *snapshot_path(const Options *o, const char *name) {
        char *path;

        return asprintf(&path, "%s/%s", directory_of(o), name) < 0 ? NULL : path;
}

/* As those of machines: no path, and nothing hidden. */
static bool check_name(const char *name) {
        if (machine_name_is_valid(name))
                return true;
        complain("'%s' is no name of a snapshot: expected letters, digits, '.', '_' and '-', at most %u of them.", name, MACHINE_NAME_MAX);
        return false;
}

/* ---- files ---- */

static int read_meta_at(int dir, json_object **ret, char **ret_problem) {
        _cleanup_close_ int fd = openat(dir, file_names[FILE_META], O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
        _cleanup_free_ char *text = NULL;
        size_t size;
        int r;

        if (fd < 0)
                return set_message(ret_problem, -errno, "Cannot open its %s: %s", file_names[FILE_META], strerror(errno));
        r = read_whole_fd(fd, SNAPSHOT_META_MAX, &text, &size);
        return r < 0 ? set_message(ret_problem, r, "Cannot read its %s: %s", file_names[FILE_META], strerror(-r)) :
                snapshot_meta_parse(text, size, ret, ret_problem);
}

/* The three files, and nothing else: what else is in there is not ours. */
static int remove_snapshot_at(int parent, const char *name) {
        _cleanup_close_ int dir = openat(parent, name, O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

        if (dir < 0)
                return -errno;
        for (unsigned i = 0; i < FILES; i++)
                if (unlinkat(dir, file_names[i], 0) < 0 && errno != ENOENT)
                        return -errno;
        return unlinkat(parent, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

/* ---- take ---- */

typedef struct Taking {
        const Options *options;
        char *machine, *name;
        int parent, dir, fds[FILES];
        char *temporary; /* the directory's name as long as it is not whole; NULL where there is none */
} Taking;

static void taking_done(Taking *t) {
        for (unsigned i = 0; i < FILES; i++)
                (void) safe_close(t->fds[i]);
        if (t->temporary)
                (void) remove_snapshot_at(t->parent, t->temporary);
        (void) safe_close(t->dir);
        (void) safe_close(t->parent);
        free(t->temporary);
}

static int make_directory(Taking *t) {
        const char *directory = directory_of(t->options);

        if (!t->options->directory)
                (void) mkdir(directory, 0700); /* else it is there, or what is wrong with it shows now */
        t->parent = open(directory, O_DIRECTORY | O_CLOEXEC);
        if (t->parent < 0) {
                complain("Cannot open %s: %m", directory);
                return -errno;
        }
        /* Of a name that no snapshot can have, and that only one of us uses at a time. */
        if (asprintf(&t->temporary, ".%s.%d", t->name, getpid()) < 0) {
                t->temporary = NULL;
                return -ENOMEM;
        }
        if (mkdirat(t->parent, t->temporary, 0700) < 0) {
                int error = -errno;

                complain("Cannot make a directory in %s: %m", directory);
                t->temporary = mfree(t->temporary);
                return error;
        }
        t->dir = openat(t->parent, t->temporary, O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        for (unsigned i = 0; i < FILES && t->dir >= 0; i++) {
                t->fds[i] = openat(t->dir, file_names[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
                if (t->fds[i] < 0)
                        break;
        }
        if (t->dir < 0 || t->fds[FILES - 1] < 0) {
                complain("Cannot make files in %s: %m", directory);
                return -errno;
        }
        return 0;
}

static int call_take(Taking *t, json_object **ret_meta) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        _cleanup_json_ json_object *parameters = json_object_new_object(), *reply = NULL;
        _cleanup_free_ char *problem = NULL;
        json_object *meta;
        int r;

        r = parameters ? json_add_integer(parameters, "state", FILE_STATE) : -ENOMEM;
        if (r >= 0)
                r = json_add_integer(parameters, "memory", FILE_MEMORY);
        if (r >= 0)
                r = json_add_boolean(parameters, "resume", !option_given(t->options, OPTION_STOP));
        /* Who does not ask for it gets on with a vmmd that does not know it. */
        if (r >= 0 && option_given(t->options, OPTION_COMPRESS))
                r = json_add_boolean(parameters, "compress", true);
        if (r >= 0)
                r = machine_connect(t->options, t->machine, &client, &problem);
        if (r >= 0) {
                varlink_client_set_timeout(client, UINT64_MAX); /* as long as the memory takes */
                r = machine_call_passing(t->options, client, "TakeSnapshot", parameters, t->fds, 2, &reply, &problem);
        }
        if (r < 0)
                return machine_conclude(t->machine, r, problem);
        meta = json_get(reply, "meta", json_type_object);
        if (!meta) {
                complain("%s: it does not say what the snapshot is of.", t->machine);
                return STATUS_FAILED;
        }
        *ret_meta = json_object_get(meta);
        return STATUS_OK;
}

static int write_meta(Taking *t, json_object *meta) {
        const char *text = json_object_to_json_string_ext(meta, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE);
        int r;

        r = text ? write_full(t->fds[FILE_META], text, strlen(text)) : -ENOMEM;
        return r < 0 ? r : write_full(t->fds[FILE_META], "\n", 1);
}

/* On the disk, and then under its name. One that had it before goes afterwards. */
static int publish(Taking *t) {
        int r;

        for (unsigned i = 0; i < FILES; i++)
                if (fsync(t->fds[i]) < 0)
                        return -errno;
        if (fsync(t->dir) < 0)
                return -errno;
        if (renameat2(t->parent, t->temporary, t->parent, t->name, RENAME_NOREPLACE) >= 0)
                t->temporary = mfree(t->temporary);
        else if (errno != EEXIST || renameat2(t->parent, t->temporary, t->parent, t->name, RENAME_EXCHANGE) < 0)
                return -errno;
        r = fsync(t->parent) < 0 ? -errno : 0;
        if (r >= 0 && t->temporary) {
                if (remove_snapshot_at(t->parent, t->temporary) < 0)
                        complain("The earlier snapshot of that name is still there, as %s/%s.", directory_of(t->options), t->temporary);
                t->temporary = mfree(t->temporary);
        }
        return r;
}

/* Its disks are to stay as the snapshot has them: so it ends while it is paused. */
static int end_machine(const Taking *t) {
        _cleanup_free_ char *problem = NULL;
        Options options = *t->options;
        sd_bus *bus = NULL;
        int r;

        r = machine_call_by_name(t->options, t->machine, "Terminate", NULL, NULL, &problem);
        if (r < 0 && r != -ECONNRESET && r != -EPIPE)
                return machine_conclude(t->machine, r, problem);
        /* And its unit, where it has one: it is over when that is. */
        if (bus_open(t->options, &bus) < 0)
                return STATUS_OK;
        sd_bus_flush_close_unref(bus);
        options.given |= OPTION_FORCE;
        return command_stop(&options, (char *[]) { t->machine }, 1);
}

static int taken(Taking *t, json_object *meta) {
        int r, status = STATUS_OK;

        r = write_meta(t, meta);
        if (r >= 0)
                r = publish(t);
        if (r < 0) {
                complain("Cannot keep the snapshot: %s", strerror(-r));
                status = STATUS_FAILED;
        }
        if (!option_given(t->options, OPTION_STOP))
                return status;
        if (status == STATUS_OK)
                return end_machine(t);
        /* Without a snapshot there is no reason to end it. */
        (void) machine_call_by_name(t->options, t->machine, "Resume", NULL, NULL, NULL);
        return status;
}

static int snapshot_take(const Options *o, char **arguments, size_t n) {
        _cleanup_(taking_done) Taking t = {
                .options = o, .machine = arguments[0], .name = arguments[1], .parent = -EBADF, .dir = -EBADF, .fds = { -EBADF, -EBADF, -EBADF },
        };
        _cleanup_json_ json_object *meta = NULL;
        int status;

        if (!check_name(t.name))
                return STATUS_USAGE;
        if (make_directory(&t) < 0)
                return STATUS_FAILED;
        status = call_take(&t, &meta);
        if (status != STATUS_OK)
                return status;
        status = taken(&t, meta);
        if (status != STATUS_OK)
                return status;
        if (o->json != JSON_OFF)
                return print_json(o, meta) < 0 ? STATUS_FAILED : STATUS_OK;
        if (!o->quiet)
                (void) printf("%s: snapshot '%s' is taken%s.\n", t.machine, t.name, option_given(o, OPTION_STOP) ? ", and the machine is stopped" : "");
        return STATUS_OK;
}

/* ---- restore ---- */

static const DeviceDefinition *find_device(const MachineDefinition *d, const char *name) {
        for (size_t i = 0; i < d->n_devices; i++)
                if (streq(d->devices[i].name, name))
                        return &d->devices[i];
        return NULL;
}

/* What is wrong with a snapshot is better said here than looked for in the journal; vmmd and the helpers look again. */
static int check_disk(const SnapshotDisk *then, const MachineDefinition *d, char **ret_problem) {
        const DeviceDefinition *device = find_device(d, then->device);
        const char *path = device ? device_definition_string(device, "path", NULL) : NULL;
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *what = NULL;
        SnapshotDisk now;
        int r;

        if (!path)
                return set_message(ret_problem, -ESTALE, "The machine has no disk '%s'.", then->device);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return set_message(ret_problem, -errno, "Cannot look at the disk '%s', %s: %s.", then->device, path, strerror(errno));
        r = snapshot_disk_look(fd, &now);
        if (r < 0)
                return r;
        if (asprintf(&what, "The disk '%s', %s,", then->device, path) < 0) {
                what = NULL;
                return -ENOMEM;
        }
        return snapshot_disk_compare(then, &now, what, ret_problem);
}

static int check_fits(json_object *meta, const char *machine, char **ret_problem) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError e = {};
        int r;

        r = definition_load(NULL, machine, &d, &e);
        if (r == -EBADMSG)
                *ret_problem = definition_error_to_string(&e);
        else if (r < 0)
                (void) set_message(ret_problem, r, r == -ENOENT ? "There is no definition of the machine '%s'." : "Cannot read the definition of '%s'.", machine);
        if (r >= 0)
                r = snapshot_check_definition(meta, d, ret_problem);
        for (size_t i = 0; r >= 0 && i < snapshot_meta_n_disks(meta); i++) {
                SnapshotDisk disk;

                snapshot_meta_disk(meta, i, &disk);
                r = check_disk(&disk, d, ret_problem);
        }
        return r;
}

static int check_snapshot(const Options *o, const char *name, const char *machine, char **ret_path) {
        _cleanup_free_ char *path = snapshot_path(o, name), *problem = NULL, *real = NULL;
        _cleanup_json_ json_object *meta = NULL;
        _cleanup_close_ int dir = -EBADF;
        int r = -ENOMEM;

        if (path) {
                dir = open(path, O_DIRECTORY | O_CLOEXEC);
                r = dir < 0 ? set_message(&problem, -errno, "Cannot open it: %s", strerror(errno)) : read_meta_at(dir, &meta, &problem);
        }
        if (r >= 0)
                r = check_fits(meta, machine, &problem);
        if (r >= 0) {
                real = realpath(path, NULL);
                r = real ? 0 : -errno;
        }
        if (r < 0) {
                complain("Snapshot '%s': %s", name, problem ?: strerror(-r));
                return STATUS_FAILED;
        }
        *ret_path = TAKE_PTR(real);
        return STATUS_OK;
}

/* Where vmm-open finds it, once. */
static int leave_link(const char *link, const char *path) {
        (void) mkdir(SNAPSHOT_RESTORE_DIRECTORY, 0700);
        if (unlink(link) < 0 && errno != ENOENT)
                return -errno;
        return symlink(path, link) < 0 ? -errno : 0;
}

static bool is_running(const Options *o, const char *machine) {
        sd_bus *bus = NULL;
        UnitState s = {};
        _cleanup_free_ char *unit = NULL;
        bool running = false;

        unit = machine_unit_name(machine, "service");
        if (unit && bus_open(o, &bus) >= 0 && unit_state_get(bus, unit, &s) >= 0)
                running = !streq(s.active_state, "inactive") && !streq(s.active_state, "failed");
        unit_state_done(&s);
        sd_bus_flush_close_unref(bus);
        return running;
}

static int snapshot_restore(const Options *o, char **arguments, size_t n) {
        char *name = arguments[0], *machine = arguments[1];
        _cleanup_free_ char *path = NULL, *link = NULL;
        int r, status;

        if (!check_name(name))
                return STATUS_USAGE;
        if (!machine_name_is_valid(machine)) {
                complain("'%s' is no name of a machine.", machine);
                return STATUS_UNKNOWN_MACHINE;
        }
        status = check_snapshot(o, name, machine, &path);
        if (status != STATUS_OK)
                return status;
        if (is_running(o, machine)) {
                complain("%s: it runs already; a snapshot is restored into a machine that does not.", machine);
                return STATUS_FAILED;
        }
        if (asprintf(&link, SNAPSHOT_RESTORE_DIRECTORY "/%s", machine) < 0) {
                link = NULL;
                complain("Out of memory.");
                return STATUS_FAILED;
        }
        r = leave_link(link, path);
        if (r < 0) {
                complain("Cannot make %s: %s", link, strerror(-r));
                return STATUS_FAILED;
        }
        status = command_start(o, &machine, 1);
        /* Whatever came of this start, the next one boots. */
        if (unlink(link) >= 0 && status == STATUS_OK) {
                complain("%s: it was started by somebody else meanwhile, without the snapshot.", machine);
                status = STATUS_FAILED;
        }
        if (status == STATUS_OK && !o->quiet && o->json == JSON_OFF)
                (void) printf("%s: goes on from snapshot '%s'.\n", machine, name);
        return status;
}

/* ---- list ---- */

static uint64_t size_on_disk(int dir) {
        uint64_t size = 0;
        struct stat st;

        for (unsigned i = 0; i < FILES; i++)
                if (fstatat(dir, file_names[i], &st, AT_SYMLINK_NOFOLLOW) >= 0)
                        size += (uint64_t) st.st_blocks * 512;
        return size;
}

static int list_as_json(json_object *array, const char *name, json_object *meta, uint64_t size, const char *problem) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        r = o ? json_add_string(o, "name", name) : -ENOMEM;
        if (r >= 0)
                r = json_add_string(o, "problem", problem);
        if (r >= 0)
                r = json_add(o, "size", json_object_new_uint64(size));
        if (r >= 0 && meta)
                r = json_add(o, "meta", json_object_get(meta));
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

static void list_as_row(Table *t, const char *name, json_object *meta, uint64_t size, const char *problem) {
        _cleanup_free_ char *taken = NULL, *memory = NULL, *bytes = format_bytes(size), *machine = NULL;

        table_add(t, COLOR_NONE, "%s", name);
        if (!meta) {
                table_add(t, COLOR_RED, "%s", problem ?: "?");
                for (unsigned i = 0; i < 5; i++)
                        table_add(t, COLOR_NONE, "-");
                return;
        }
        taken = format_time((uint64_t) json_get_integer(meta, "taken", 0));
        memory = format_bytes((uint64_t) json_get_integer(meta, "memory", 0));
        machine = make_printable(json_dup_string(meta, "machine"));
        table_add(t, COLOR_NONE, "%s", machine ?: "?");
        table_add(t, COLOR_NONE, "%s", taken ?: "?");
        table_add(t, COLOR_NONE, "%s", memory ?: "?");
        table_add(t, COLOR_NONE, "%zu", snapshot_meta_n_devices(meta));
        table_add(t, COLOR_NONE, "%s", snapshot_meta_compression(meta) ?: "plain");
        table_add(t, COLOR_NONE, "%s", bytes ?: "?");
}

static int list_one(int parent, const char *name, Table *t, json_object *array) {
        _cleanup_close_ int dir = openat(parent, name, O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        _cleanup_json_ json_object *meta = NULL;
        _cleanup_free_ char *problem = NULL;
        uint64_t size;

        if (dir < 0)
                return 0;
        (void) read_meta_at(dir, &meta, &problem);
        (void) make_printable(problem);
        size = size_on_disk(dir);
        if (array)
                return list_as_json(array, name, meta, size, problem);
        list_as_row(t, name, meta, size, problem);
        return 0;
}

static int is_shown(const struct dirent *e) {
        return machine_name_is_valid(e->d_name);
}

static int list_all(const Options *o, int parent, struct dirent **entries, int n) {
        static const char *const headings[] = { "NAME", "MACHINE", "TAKEN", "MEMORY", "DEVICES", "KEPT", "SIZE" };
        _cleanup_json_ json_object *array = o->json == JSON_OFF ? NULL : json_object_new_array();
        _cleanup_(table_done) Table t = { .n_columns = ELEMENTSOF(headings) };
        int r = 0;

        if (o->json != JSON_OFF && !array)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(headings) && !o->quiet; i++)
                table_add(&t, COLOR_BOLD, "%s", headings[i]);
        for (int i = 0; i < n && r >= 0; i++)
                r = list_one(parent, entries[i]->d_name, &t, array);
        if (r < 0)
                return r;
        return array ? print_json(o, array) : table_print(&t, "");
}

static int snapshot_list(const Options *o, char **arguments, size_t n) {
        _cleanup_close_ int parent = open(directory_of(o), O_DIRECTORY | O_CLOEXEC);
        struct dirent **entries = NULL;
        int n_entries, r;

        if (parent < 0 && (errno != ENOENT || o->directory)) {
                complain("Cannot open %s: %m", directory_of(o));
                return STATUS_FAILED;
        }
        n_entries = parent < 0 ? 0 : scandir(directory_of(o), &entries, is_shown, alphasort);
        r = n_entries < 0 ? -errno : list_all(o, parent, entries, n_entries);
        for (int i = 0; i < n_entries; i++)
                free(entries[i]);
        free(entries);
        if (r < 0)
                complain("Cannot list the snapshots: %s", strerror(-r));
        return r < 0 ? STATUS_FAILED : STATUS_OK;
}

/* ---- remove ---- */

static int snapshot_remove(const Options *o, char **arguments, size_t n) {
        _cleanup_close_ int parent = open(directory_of(o), O_DIRECTORY | O_CLOEXEC);
        int status = STATUS_OK;

        if (parent < 0) {
                complain("Cannot open %s: %m", directory_of(o));
                return STATUS_FAILED;
        }
        for (size_t i = 0; i < n; i++) {
                int r = check_name(arguments[i]) ? remove_snapshot_at(parent, arguments[i]) : -EINVAL;

                if (r < 0 && r != -EINVAL)
                        complain("Cannot remove the snapshot '%s': %s", arguments[i], r == -ENOENT ? "there is none of that name" : strerror(-r));
                if (r < 0 && status == STATUS_OK)
                        status = r == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
        }
        return status;
}

/* ---- all of them ---- */

int command_snapshot(const Options *o, char **arguments, size_t n) {
        static const struct {
                const char *word;
                size_t min, max;
                CommandFunction run;
                const char *arguments;
        } words[] = {
                { "take", 2, 2, snapshot_take, "NAME SNAPSHOT" },
                { "restore", 2, 2, snapshot_restore, "SNAPSHOT NAME" },
                { "list", 0, 0, snapshot_list, "" },
                { "remove", 1, SIZE_MAX, snapshot_remove, "SNAPSHOT..." },
        };

        for (size_t i = 0; i < ELEMENTSOF(words); i++) {
                if (!streq(words[i].word, arguments[0]))
                        continue;
                if (n - 1 >= words[i].min && n - 1 <= words[i].max)
                        return words[i].run(o, arguments + 1, n - 1);
                complain("snapshot %s: expected: snapshot %s %s", arguments[0], arguments[0], words[i].arguments);
                return STATUS_USAGE;
        }
        complain("snapshot: '%s' is none of take, restore, list, remove.", arguments[0]);
        return STATUS_USAGE;
}
